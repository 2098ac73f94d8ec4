//! A subscription's life on the clock: trial, renewal, cancellation, expiry.
//!
//! All times here are Stripe's: whole seconds since the epoch.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::calendar::Interval;
use super::catalog;
use super::events::record_update;
use super::invoices::{self, Line};
use super::state::{Call, Due, State, Table};
use crate::clock::Timestamp;

const HOUR_S: i64 = 3600;
/// A first payment that nobody completes lapses after this.
const INCOMPLETE_FOR_S: i64 = 23 * HOUR_S;
/// How long before a trial's end Stripe announces it.
const TRIAL_NOTICE_S: i64 = 72 * HOUR_S;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Incomplete,
    IncompleteExpired,
    Trialing,
    Active,
    PastDue,
    Unpaid,
    Paused,
    Canceled,
}

impl Status {
    const ALL: [Self; 8] = [
        Self::Incomplete,
        Self::IncompleteExpired,
        Self::Trialing,
        Self::Active,
        Self::PastDue,
        Self::Unpaid,
        Self::Paused,
        Self::Canceled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Paused => "paused",
            Self::Canceled => "canceled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether the subscription is over for good.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Canceled | Self::IncompleteExpired)
    }

    /// Whether periods go on.
    fn renews(self) -> bool {
        matches!(self, Self::Trialing | Self::Active | Self::PastDue | Self::Unpaid)
    }
}

#[derive(Clone)]
pub(super) struct Item {
    pub id: String,
    pub created_s: i64,
    pub price: String,
    pub interval: Interval,
    /// `None` for a metered price.
    pub quantity: Option<u64>,
    pub period_start_s: i64,
    pub period_end_s: i64,
    pub metadata: Map<String, Value>,
}

#[derive(Clone)]
pub(super) struct Subscription {
    pub id: String,
    pub customer: String,
    pub status: Status,
    pub created_s: i64,
    /// From where periods are counted.
    pub anchor_s: i64,
    pub cancel_at_s: Option<i64>,
    pub cancel_at_period_end: bool,
    pub canceled_at_s: Option<i64>,
    pub ended_at_s: Option<i64>,
    pub trial_start_s: Option<i64>,
    pub trial_end_s: Option<i64>,
    pub trial_end_announced: bool,
    pub metadata: Map<String, Value>,
    pub items: Vec<Item>,
    pub latest_invoice: Option<String>,
    /// Prorations that wait for the next invoice.
    pub pending_lines: Vec<Line>,
    pub billing_mode: &'static str,
    pub currency: String,
    pub collection_method: &'static str,
    pub days_until_due: Option<u64>,
    pub default_payment_method: Value,
    pub description: Value,
    pub cancellation_details: Value,
}

/// Every subscription there ever was, in the order they were made.
#[derive(Default)]
pub(super) struct Subscriptions {
    rows: Vec<Subscription>,
    places: HashMap<String, usize>,
}

impl Subscriptions {
    pub fn get(&self, id: &str) -> Option<&Subscription> {
        self.places.get(id).map(|place| &self.rows[*place])
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Subscription> {
        self.rows.iter()
    }
}

impl State {
    /// Stores a subscription and plans what happens to it next.
    pub fn save_subscription(&mut self, subscription: Subscription) {
        let id = subscription.id.clone();
        let due = Due::Subscription(id.clone());
        if let Some(at_s) = self.subscriptions.get(&id).and_then(Subscription::next_due_s) {
            self.schedule.remove(&(at_s, due.clone()));
        }
        if let Some(at_s) = subscription.next_due_s() {
            self.schedule.insert((at_s, due));
        }
        let Subscriptions { rows, places } = &mut self.subscriptions;
        match places.get(&id) {
            Some(place) => rows[*place] = subscription,
            None => {
                places.insert(id, rows.len());
                rows.push(subscription);
            }
        }
    }
}

impl Subscription {
    /// When a period that starts at `start_s` ends.
    pub fn period_end_s(&self, interval: Interval, start_s: i64) -> i64 {
        let natural_s = match self.trial_end_s {
            Some(trial_end_s) if start_s < trial_end_s => trial_end_s,
            _ => interval.next_boundary(self.anchor_s, start_s),
        };
        // An earlier `cancel_at` shortens the period.
        self.cancel_at_s.map_or(natural_s, |cancel_at_s| natural_s.min(cancel_at_s.max(start_s)))
    }

    /// Ends every running period anew, after the anchor, the trial or the cancellation changed.
    pub fn end_periods(&mut self) {
        let mut items = std::mem::take(&mut self.items);
        for item in &mut items {
            item.period_end_s = self.period_end_s(item.interval, item.period_start_s);
        }
        self.items = items;
    }

    /// The end of the longest running period, where `cancel_at_period_end` takes effect.
    pub fn last_period_end_s(&self) -> i64 {
        self.items.iter().map(|item| item.period_end_s).max().unwrap_or(self.anchor_s)
    }

    /// When something happens to it by itself.
    fn next_due_s(&self) -> Option<i64> {
        if self.status == Status::Incomplete {
            return Some(self.created_s + INCOMPLETE_FOR_S);
        }
        if !self.status.renews() {
            return None;
        }
        let period_end_s = self.items.iter().map(|item| item.period_end_s).min();
        [period_end_s, self.cancel_at_s, self.trial_notice_s()].into_iter().flatten().min()
    }

    /// When the end of the trial is to be announced, if it still is.
    fn trial_notice_s(&self) -> Option<i64> {
        let end_s = self.trial_end_s.filter(|_| self.status == Status::Trialing)?;
        (!self.trial_end_announced).then(|| (end_s - TRIAL_NOTICE_S).max(self.created_s))
    }

    /// The object as Stripe shows it.
    pub fn render(&self, prices: &Table) -> Value {
        let items: Vec<Value> =
            self.items.iter().map(|item| item.render(&self.id, prices)).collect();
        let mut subscription = self.render_terms();
        let rest = json!({
            "invoice_settings": {
                "account_tax_ids": null,
                "custom_fields": null,
                "description": null,
                "footer": null,
                "issuer": { "type": "self" },
            },
            "items": {
                "object": "list",
                "data": items,
                "has_more": false,
                "url": format!("/v1/subscription_items?subscription={}", self.id),
            },
            "latest_invoice": self.latest_invoice,
            "livemode": false,
            "managed_payments": null,
            "metadata": self.metadata,
            "next_pending_invoice_item_invoice": null,
            "on_behalf_of": null,
            "pause_collection": null,
            "payment_settings": {
                "payment_method_options": null,
                "payment_method_types": null,
                "save_default_payment_method": "off",
            },
            "pending_invoice_item_interval": null,
            "pending_setup_intent": null,
            "pending_update": null,
            "schedule": null,
            "start_date": self.created_s,
            "status": self.status.as_str(),
            "test_clock": null,
            "transfer_data": null,
            "trial_end": self.trial_end_s,
            "trial_settings": {
                "end_behavior": {
                    "billing_cycle_anchor": "now", "missing_payment_method": "create_invoice",
                },
            },
            "trial_start": self.trial_start_s,
        });
        if let (Value::Object(subscription), Value::Object(rest)) = (&mut subscription, rest) {
            subscription.extend(rest);
        }
        subscription
    }

    /// The object's fields up to `ended_at`, in Stripe's order, which is that of the alphabet.
    fn render_terms(&self) -> Value {
        let flexible = match self.billing_mode {
            "flexible" => json!({ "proration_discounts": "included" }),
            _ => Value::Null,
        };
        json!({
            "id": self.id,
            "object": "subscription",
            "application": null,
            "application_fee_percent": null,
            "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
            "billing_cycle_anchor": self.anchor_s,
            "billing_cycle_anchor_config": null,
            "billing_mode": { "flexible": flexible, "type": self.billing_mode },
            "billing_schedules": [],
            "billing_thresholds": null,
            "cancel_at": self.cancel_at_s,
            "cancel_at_period_end": self.cancel_at_period_end,
            "canceled_at": self.canceled_at_s,
            "cancellation_details": self.cancellation_details,
            "collection_method": self.collection_method,
            "created": self.created_s,
            "currency": self.currency,
            "customer": self.customer,
            "customer_account": null,
            "days_until_due": self.days_until_due,
            "default_payment_method": self.default_payment_method,
            "default_source": null,
            "default_tax_rates": [],
            "description": self.description,
            "discounts": [],
            "ended_at": self.ended_at_s,
        })
    }
}

impl Item {
    fn render(&self, subscription: &str, prices: &Table) -> Value {
        let price = prices.get(&self.price).cloned().unwrap_or_default();
        let mut item = json!({
            "id": self.id,
            "object": "subscription_item",
            "billing_thresholds": null,
            "created": self.created_s,
            "current_period_end": self.period_end_s,
            "current_period_start": self.period_start_s,
            "current_trial": null,
            "discounts": [],
            "metadata": self.metadata,
            "plan": catalog::plan_of(&price),
            "price": price,
            "subscription": subscription,
            "tax_rates": [],
        });
        if let Some(quantity) = self.quantity {
            item["quantity"] = quantity.into();
        }
        item
    }
}

/// Stores the changed subscription and tells of it if anything can be seen of the change.
/// Answers the object as it now is.
pub(super) fn change(call: &mut Call<'_>, after: Subscription) -> Value {
    let prices = &call.state.prices;
    let before = call.state.subscriptions.get(&after.id).map(|before| before.render(prices));
    let shown = after.render(prices);
    call.state.save_subscription(after);
    record_update(call, "customer.subscription.updated", &before.unwrap_or_default(), &shown);
    shown
}

/// Ends the subscription at this moment.
pub(super) fn end(call: &mut Call<'_>, mut subscription: Subscription) -> Value {
    let now_s = call.now_s();
    subscription.status = Status::Canceled;
    subscription.ended_at_s = Some(now_s);
    subscription.canceled_at_s.get_or_insert(now_s);
    if subscription.cancellation_details["reason"].is_null() {
        subscription.cancellation_details["reason"] = "cancellation_requested".into();
    }
    let shown = subscription.render(&call.state.prices);
    call.state.save_subscription(subscription);
    super::events::record(call, "customer.subscription.deleted", &shown, None);
    shown
}

/// Does everything that was due by now, each at its own moment.
pub(super) fn run_due(call: &mut Call<'_>) {
    let until = call.now;
    let origin = std::mem::take(&mut call.origin);
    while let Some((at_s, _)) = call.state.schedule.first()
        && *at_s <= until.seconds()
        && let Some((at_s, due)) = call.state.schedule.pop_first()
    {
        call.now = Timestamp::from_seconds(at_s);
        match due {
            Due::Subscription(id) => {
                if let Some(subscription) = call.state.subscriptions.get(&id).cloned() {
                    take_next_step(call, subscription);
                }
            }
            Due::Invoice(id) => {
                invoices::finalize(call, &id);
            }
        }
    }
    call.now = until;
    call.origin = origin;
}

/// What is due for a subscription at this moment.
fn take_next_step(call: &mut Call<'_>, mut subscription: Subscription) {
    let now_s = call.now_s();
    if subscription.status == Status::Incomplete {
        subscription.status = Status::IncompleteExpired;
        subscription.ended_at_s = Some(now_s);
        if let Some(invoice) = &subscription.latest_invoice {
            invoices::void(call, invoice);
        }
        change(call, subscription);
    } else if subscription.cancel_at_s.is_some_and(|at_s| at_s <= now_s) {
        end(call, subscription);
    } else if subscription.trial_notice_s().is_some_and(|at_s| at_s <= now_s) {
        subscription.trial_end_announced = true;
        let shown = subscription.render(&call.state.prices);
        call.state.save_subscription(subscription);
        super::events::record(call, "customer.subscription.trial_will_end", &shown, None);
    } else {
        renew(call, subscription);
    }
}

/// Starts the next period of every item whose period ended, and drafts the invoice.
fn renew(call: &mut Call<'_>, mut subscription: Subscription) {
    let now_s = call.now_s();
    if subscription.trial_end_s.is_some_and(|end_s| end_s <= now_s)
        && subscription.status == Status::Trialing
    {
        subscription.status = Status::Active;
    }
    let mut items = subscription.items.clone();
    let mut lines = std::mem::take(&mut subscription.pending_lines);
    for item in items.iter_mut().filter(|item| item.period_end_s <= now_s) {
        let ended = (item.period_start_s, item.period_end_s);
        item.period_start_s = item.period_end_s;
        item.period_end_s = subscription.period_end_s(item.interval, item.period_start_s);
        // A metered price is billed for the period that ended, any other for the one that begins.
        let billed = match item.quantity {
            None => ended,
            Some(_) => (item.period_start_s, item.period_end_s),
        };
        lines.push(invoices::full_line(call.state, item, billed));
    }
    subscription.items = items;
    let invoice = invoices::draft(call, &subscription, "subscription_cycle", lines);
    subscription.latest_invoice = Some(invoice);
    change(call, subscription);
}
