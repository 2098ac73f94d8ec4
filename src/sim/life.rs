//! A subscription's life on the clock: trial, renewal, cancellation, expiry.
//!
//! All times here are Stripe's: whole seconds since the epoch.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::calendar::Interval;
use super::catalog;
use super::events::{record, record_update};
use super::invoices::{self, Line};
use super::payments::Outcome;
use super::state::{Call, Due, State, Table};
use super::{checkout, clocks, payments, schedules, thin};
use crate::clock::Timestamp;

const HOUR_S: i64 = 3600;
/// A first payment, or a change that waits for one, lapses after this.
pub(super) const INCOMPLETE_FOR_S: i64 = 23 * HOUR_S;
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
    /// From when usage counts under this price: its period's start, or a switch within it.
    pub usage_from_s: i64,
    pub metadata: Map<String, Value>,
}

#[derive(Clone)]
pub(super) struct Subscription {
    pub id: String,
    pub customer: String,
    /// The customer's, for good.
    pub test_clock: Option<String>,
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
    /// A change that waits until its invoice is paid.
    pub pending: Option<Box<Pending>>,
    pub pause_collection: Value,
    /// Why and when it was paused.
    pub paused: Option<(&'static str, i64)>,
    /// What the end of a trial does without a card: `cancel`, `create_invoice` or `pause`.
    pub without_card: &'static str,
    /// The subscription schedule that it is on.
    pub schedule: Option<String>,
}

/// A change that takes effect once it is paid for.
#[derive(Clone)]
pub(super) struct Pending {
    pub invoice: String,
    pub expires_at_s: i64,
    /// The subscription as the change would make it.
    pub after: Subscription,
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
        let planned_at_s = self.subscriptions.get(&id).and_then(Subscription::next_due_s);
        let timetable = self.timetable_of(&subscription.customer);
        if let Some(at_s) = planned_at_s {
            timetable.remove(&(at_s, due.clone()));
        }
        if let Some(at_s) = subscription.next_due_s() {
            timetable.insert((at_s, due));
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
        let pending_until_s = self.pending.as_ref().map(|pending| pending.expires_at_s);
        let resumes_at_s = self.pause_collection["resumes_at"].as_i64();
        [period_end_s, self.cancel_at_s, self.trial_notice_s(), pending_until_s, resumes_at_s]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the end of the trial is to be announced, if it still is.
    fn trial_notice_s(&self) -> Option<i64> {
        let end_s = self.trial_end_s.filter(|_| self.status == Status::Trialing)?;
        (!self.trial_end_announced).then(|| (end_s - TRIAL_NOTICE_S).max(self.created_s))
    }

    /// The object as Stripe shows it.
    pub fn render(&self, prices: &Table) -> Value {
        let items = self.render_items(prices);
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
            "pause_collection": self.pause_collection,
            "payment_settings": {
                "payment_method_options": null,
                "payment_method_types": null,
                "save_default_payment_method": "off",
            },
            "pending_invoice_item_interval": null,
            "pending_setup_intent": null,
            "pending_update": self.render_pending(prices),
            "schedule": self.schedule,
            "start_date": self.created_s,
            "status": self.status.as_str(),
            "test_clock": self.test_clock,
            "transfer_data": null,
            "trial_end": self.trial_end_s,
            "trial_settings": {
                "end_behavior": {
                    "billing_cycle_anchor": "now", "missing_payment_method": self.without_card,
                },
            },
            "trial_start": self.trial_start_s,
        });
        if let (Value::Object(subscription), Value::Object(rest)) = (&mut subscription, rest) {
            subscription.extend(rest);
        }
        if let Some((reason, at_s)) = self.paused {
            subscription["status_details"] = json!({ "paused": {
                "subscription": { "type": reason },
                "transitioned_at": at_s,
                "type": "subscription",
            } });
        }
        subscription
    }

    fn render_items(&self, prices: &Table) -> Vec<Value> {
        self.items.iter().map(|item| item.render(&self.id, prices)).collect()
    }

    /// Of a change that waits, what it would change; the rest is null.
    fn render_pending(&self, prices: &Table) -> Value {
        let Some(pending) = &self.pending else { return Value::Null };
        let after = &pending.after;
        json!({
            "billing_cycle_anchor": (after.anchor_s != self.anchor_s).then_some(after.anchor_s),
            "cancel_at_period_end": null,
            "discount": null,
            "discounts": null,
            "expires_at": pending.expires_at_s,
            "metadata": null,
            "subscription_items": after.render_items(prices),
            "trial_end": (after.trial_end_s != self.trial_end_s).then_some(after.trial_end_s),
            "trial_from_plan": null,
        })
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
    record(call, "customer.subscription.deleted", &shown, None);
    shown
}

/// Ends the subscription at this moment and bills what its meters have counted up to now. Nothing
/// comes after it, so the invoice is final at once: there is no hour for late usage.
pub(super) fn end_with_invoice(call: &mut Call<'_>, mut subscription: Subscription) -> Value {
    let now_s = call.now_s();
    let metered = subscription.items.iter().filter(|item| item.quantity.is_none());
    let lines: Vec<Line> = metered
        .filter(|_| subscription.status != Status::Trialing)
        .map(|item| invoices::full_line(call.state, item, (item.usage_from_s, now_s)))
        .collect();
    if lines.is_empty() {
        return end(call, subscription);
    }
    let invoice = invoices::draft(call, &subscription, "subscription_cycle", lines);
    subscription.latest_invoice = Some(invoice.clone());
    let shown = end(call, subscription);
    invoices::finalize(call, &invoice);
    shown
}

/// What follows for a subscription from an attempt to have one of its invoices paid.
pub(super) fn after_charge(call: &mut Call<'_>, invoice: &Value, outcome: Outcome) {
    let id = invoice["id"].as_str().unwrap_or_default();
    let Some(mut subscription) = invoices::subscription_of(call, invoice) else { return };
    let pending = subscription.pending.take_if(|pending| pending.invoice == id);
    match (outcome, pending) {
        (Outcome::Paid, Some(pending)) => apply_pending(call, subscription, *pending),
        (Outcome::Paid, None) => {
            use Status::{Incomplete, PastDue, Unpaid};
            if matches!(subscription.status, Incomplete | PastDue | Unpaid) {
                subscription.status = Status::Active;
                change(call, subscription);
            }
        }
        // The change goes on waiting: nothing of the subscription changed.
        (_, Some(_)) => {}
        (_, None) => {
            if matches!(subscription.status, Status::Active | Status::Trialing) {
                subscription.status = Status::PastDue;
                change(call, subscription);
            }
        }
    }
}

/// What waited has been paid for.
fn apply_pending(call: &mut Call<'_>, mut subscription: Subscription, pending: Pending) {
    let after = pending.after;
    subscription.items = after.items;
    subscription.anchor_s = after.anchor_s;
    subscription.trial_end_s = after.trial_end_s;
    subscription.status = after.status;
    let shown = subscription.render(&call.state.prices);
    record(call, "customer.subscription.pending_update_applied", &shown, None);
    change(call, subscription);
}

/// Nobody paid for it in time: the change is off, and so is its invoice.
fn drop_pending(call: &mut Call<'_>, mut subscription: Subscription) {
    if let Some(pending) = subscription.pending.take() {
        invoices::void(call, &pending.invoice);
    }
    let shown = subscription.render(&call.state.prices);
    record(call, "customer.subscription.pending_update_expired", &shown, None);
    change(call, subscription);
}

/// The last retry of a payment failed: what the account's setting says.
pub(super) fn give_up_payment(call: &mut Call<'_>, invoice: &Value) {
    use super::faults::AfterRetries;
    let Some(mut subscription) = invoices::subscription_of(call, invoice) else { return };
    if subscription.status != Status::PastDue {
        return;
    }
    match call.faults.after_retries {
        AfterRetries::Cancel => {
            subscription.cancellation_details["reason"] = "payment_failed".into();
            end(call, subscription);
        }
        AfterRetries::MarkUnpaid => {
            subscription.status = Status::Unpaid;
            change(call, subscription);
        }
        AfterRetries::LeavePastDue => {}
    }
}

/// Puts a subscription on hold and tells of it.
pub(super) fn pause(
    call: &mut Call<'_>,
    mut subscription: Subscription,
    reason: &'static str,
) -> Value {
    subscription.status = Status::Paused;
    subscription.paused = Some((reason, call.now_s()));
    let shown = subscription.render(&call.state.prices);
    record(call, "customer.subscription.paused", &shown, None);
    change(call, subscription)
}

/// Does everything that was due by now, each at its own moment.
pub(super) fn run_due(call: &mut Call<'_>) {
    let (until, origin) = (call.real_now, std::mem::take(&mut call.origin));
    while let Some((at_s, _)) = call.state.timetable.first()
        && *at_s <= until.seconds()
        && let Some((at_s, due)) = call.state.timetable.pop_first()
    {
        call.now = Timestamp::from_seconds(at_s);
        call.real_now = call.now;
        run(call, due);
    }
    (call.now, call.real_now, call.origin) = (until, until, origin);
}

/// Does one thing that is due at this moment.
pub(super) fn run(call: &mut Call<'_>, due: Due) {
    match due {
        Due::Subscription(id) => {
            if let Some(subscription) = call.state.subscriptions.get(&id).cloned() {
                take_next_step(call, subscription);
            }
        }
        Due::Invoice(id) => invoices::finalize_when_told(call, &id),
        Due::Retry(id) => invoices::charge(call, &id),
        Due::Checkout(id) => checkout::lapse(call, &id),
        Due::Schedule(id) => schedules::take_next_step(call, &id),
        Due::TestClock(id) => clocks::arrive(call, &id),
        Due::MeterReport => thin::report_meter_failures(call),
    }
}

/// What is due for a subscription at this moment.
fn take_next_step(call: &mut Call<'_>, mut subscription: Subscription) {
    let now_s = call.now_s();
    let is_due = |at_s: Option<i64>| at_s.is_some_and(|at_s| at_s <= now_s);
    if subscription.status == Status::Incomplete {
        subscription.status = Status::IncompleteExpired;
        subscription.ended_at_s = Some(now_s);
        if let Some(invoice) = &subscription.latest_invoice {
            invoices::void(call, invoice);
        }
        change(call, subscription);
    } else if is_due(subscription.pending.as_ref().map(|pending| pending.expires_at_s)) {
        drop_pending(call, subscription);
    } else if is_due(subscription.cancel_at_s) {
        end_with_invoice(call, subscription);
    } else if is_due(subscription.trial_notice_s()) {
        subscription.trial_end_announced = true;
        let shown = subscription.render(&call.state.prices);
        call.state.save_subscription(subscription);
        record(call, "customer.subscription.trial_will_end", &shown, None);
    } else if is_due(subscription.pause_collection["resumes_at"].as_i64()) {
        subscription.pause_collection = Value::Null;
        change(call, subscription);
    } else {
        end_trial_or_renew(call, subscription);
    }
}

fn end_trial_or_renew(call: &mut Call<'_>, mut subscription: Subscription) {
    let now_s = call.now_s();
    let trial_ends = subscription.status == Status::Trialing
        && subscription.trial_end_s.is_some_and(|end_s| end_s <= now_s);
    if trial_ends {
        if end_trial_without_card(call, &subscription).is_some() {
            return;
        }
        subscription.status = Status::Active;
    }
    renew(call, subscription);
}

/// Cancels or pauses a subscription whose trial ends, if there is no card and that is its setting;
/// answers the object then.
pub(super) fn end_trial_without_card(
    call: &mut Call<'_>,
    subscription: &Subscription,
) -> Option<Value> {
    let own = &subscription.default_payment_method;
    if payments::method_of(call, &subscription.customer, own).is_some() {
        return None;
    }
    match subscription.without_card {
        "cancel" => Some(end(call, subscription.clone())),
        "pause" => Some(pause(call, subscription.clone(), "trial_end_without_payment_method")),
        _ => None,
    }
}

/// Starts the next period of every item whose period ended, and drafts the invoice.
fn renew(call: &mut Call<'_>, mut subscription: Subscription) {
    let now_s = call.now_s();
    let mut items = subscription.items.clone();
    let mut lines = std::mem::take(&mut subscription.pending_lines);
    for item in items.iter_mut().filter(|item| item.period_end_s <= now_s) {
        lines.push(next_period(call.state, &subscription, item));
    }
    subscription.items = items;
    let invoice = invoices::draft(call, &subscription, "subscription_cycle", lines);
    subscription.latest_invoice = Some(invoice);
    change(call, subscription);
}

/// Moves an item into its next period; answers what is billed at that moment.
pub(super) fn next_period(state: &State, subscription: &Subscription, item: &mut Item) -> Line {
    let ended = (item.usage_from_s, item.period_end_s);
    item.period_start_s = item.period_end_s;
    item.usage_from_s = item.period_end_s;
    item.period_end_s = subscription.period_end_s(item.interval, item.period_start_s);
    // A metered price is billed for the period that ended, any other for the one that begins.
    let billed = match item.quantity {
        None => ended,
        Some(_) => (item.period_start_s, item.period_end_s),
    };
    invoices::full_line(state, item, billed)
}
