//! Changing a subscription's plan: what it is now, what the change costs, and the change itself.

use std::collections::HashMap;

use serde::Serialize;

use super::calls::{Nothing, OurMetadata, Page, Unread};
use super::objects::{CUSTOMER_ID_KEY, path_segment};
use super::{Stripe, StripeError};
use crate::clock::Timestamp;
use crate::domain::money::{Currency, Money};
use crate::domain::subscription::SubscriptionStatus;
use crate::domain::upgrade::{Billing, Hurdle, Item, Schedule, Terms, UnpaidInvoice};

/// Another price for one of a subscription's items; the others stay as they are.
#[derive(Debug, Clone, Copy)]
pub struct PlanChange<'a> {
    pub subscription_id: &'a str,
    pub item_id: &'a str,
    pub price_id: &'a str,
    /// Stripe takes one unless it is told; `None` for a metered price.
    pub quantity: Option<u64>,
    /// From when on the new price is reckoned, so that it costs what its preview said.
    pub proration_at: Timestamp,
}

impl Stripe {
    /// A live subscription as it is now, as far as a change of its plan depends on it.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn terms(&self, subscription_id: &str) -> Result<Terms, StripeError> {
        #[derive(Serialize)]
        struct Query {
            expand: [&'static str; 2],
        }
        let path = format!("/subscriptions/{}", path_segment(subscription_id, "subscription id")?);
        let query = Query { expand: ["latest_invoice", "schedule"] };
        let found: Found = self.get(&path, &query).await?;
        let items = match found.items.has_more {
            true => self.all_items(subscription_id).await?,
            false => found.items.data,
        };
        let has_discount = |discounts: &[String]| !discounts.is_empty();
        let discounted = has_discount(&found.discounts)
            || items.iter().any(|item| has_discount(&item.discounts));
        let unpaid =
            found.latest_invoice.filter(|invoice| invoice.status.as_deref() == Some("open"));
        Ok(Terms {
            subscription_id: found.id,
            status: SubscriptionStatus::from(found.status.as_str()),
            items: items.into_iter().map(Item::from).collect(),
            ends: found.cancel_at_period_end || found.cancel_at.is_some(),
            pending_until: found
                .pending_update
                .map(|pending| Timestamp::from_seconds(pending.expires_at)),
            schedule: found.schedule.map(Schedule::from),
            discounted,
            billing: Billing {
                collection_method: found.collection_method,
                days_until_due: found.days_until_due,
                default_payment_method: found.default_payment_method,
                default_tax_rates: ids(found.default_tax_rates),
                automatic_tax: found.automatic_tax.enabled,
            },
            unpaid: unpaid.map(|invoice| UnpaidInvoice {
                id: invoice.id,
                url: invoice.hosted_invoice_url,
                created_at: Timestamp::from_seconds(invoice.created),
            }),
        })
    }

    /// Those of a subscription with more items than its embedded list shows; Stripe allows 20.
    async fn all_items(&self, subscription: &str) -> Result<Vec<FoundItem>, StripeError> {
        #[derive(Serialize)]
        struct Query<'a> {
            subscription: &'a str,
            limit: i64,
        }
        let query = Query { subscription, limit: 100 };
        let page: Page<FoundItem> = self.get("/subscription_items", &query).await?;
        Ok(page.data)
    }

    /// What keeps `invoice` from being paid, as far as the events since it was made tell. It is
    /// for words only: what is so, the invoice's page and the subscription say.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn hurdle(&self, invoice: &UnpaidInvoice) -> Result<Hurdle, StripeError> {
        const BANK: &str = "invoice.payment_action_required";
        const CARD: &str = "invoice.payment_failed";
        #[derive(Serialize)]
        struct Since {
            gte: i64,
        }
        #[derive(Serialize)]
        struct Query {
            types: [&'static str; 2],
            created: Since,
            limit: i64,
        }
        let created = Since { gte: invoice.created_at.seconds() };
        let query = Query { types: [BANK, CARD], created, limit: 100 };
        let page: Page<FoundEvent> = self.get("/events", &query).await?;
        let told = |kind: &str| {
            let of =
                |event: &FoundEvent| event.data.object.id.as_deref() == Some(invoice.id.as_str());
            page.data.iter().any(|event| event.kind == kind && of(event))
        };
        // Where the bank is to confirm, the attempt has failed as well.
        Ok(match (told(BANK), told(CARD)) {
            (true, _) => Hurdle::Bank,
            (false, true) => Hurdle::Card,
            (false, false) => Hurdle::Unknown,
        })
    }

    /// What is due when a change is confirmed, by Stripe's own reckoning.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses, such as for a price in another currency.
    pub async fn due_now(&self, change: PlanChange<'_>) -> Result<Money, StripeError> {
        let invoice = self.preview(change, "next").await?;
        money(invoice.amount_due, &invoice)
    }

    /// What each period after the present one costs after a change, by Stripe's own reckoning.
    ///
    /// # Errors
    /// As with [`Self::due_now`].
    pub async fn due_later(&self, change: PlanChange<'_>) -> Result<Money, StripeError> {
        let invoice = self.preview(change, "recurring").await?;
        money(invoice.total, &invoice)
    }

    async fn preview(
        &self,
        change: PlanChange<'_>,
        mode: &'static str,
    ) -> Result<Invoice, StripeError> {
        let preview = Preview {
            subscription: change.subscription_id,
            preview_mode: mode,
            subscription_details: ChangeForm::of(change),
        };
        self.post("/invoices/create_preview", &preview).await
    }

    /// Changes the plan now and charges for it now. If the payment does not come through at once,
    /// everything stays as it was and the change waits for the payment.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses. What became of it is to be seen in
    /// [`Self::terms`] then.
    pub async fn change_plan(&self, change: PlanChange<'_>, key: &str) -> Result<(), StripeError> {
        #[derive(Serialize)]
        struct Form<'a> {
            #[serde(flatten)]
            change: ChangeForm<'a>,
            payment_behavior: &'static str,
        }
        let id = path_segment(change.subscription_id, "subscription id")?;
        let form =
            Form { change: ChangeForm::of(change), payment_behavior: "pending_if_incomplete" };
        self.post_once::<Unread>(&format!("/subscriptions/{id}"), &form, key).await.map(|_| ())
    }

    /// Plans the change for the moment at which the present period of the changed item ends. Until
    /// then nothing changes. `false` if the subscription has other prices by now than `terms` say:
    /// then nothing is planned, because a plan repeats what there is.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses.
    pub async fn change_plan_later(
        &self,
        terms: &Terms,
        change: PlanChange<'_>,
        customer_id: &str,
        key: &str,
    ) -> Result<bool, StripeError> {
        #[derive(Serialize)]
        struct New<'a> {
            from_subscription: &'a str,
        }
        let schedule = match &terms.schedule {
            Some(schedule) => schedule.clone(),
            None => {
                let new = New { from_subscription: &terms.subscription_id };
                let made: FoundSchedule =
                    self.post_once("/subscription_schedules", &new, key).await?;
                made.into()
            }
        };
        let mut had: Vec<_> = terms.items.iter().map(|item| item.price_id.as_str()).collect();
        let mut has: Vec<_> = schedule.price_ids.iter().map(String::as_str).collect();
        had.sort_unstable();
        has.sort_unstable();
        if had != has {
            self.release_schedule(&schedule.id).await?;
            return Ok(false);
        }
        let item = terms.items.iter().find(|item| item.id == change.item_id);
        let item = item.ok_or_else(|| StripeError::unsendable("item id"))?;
        let start = schedule.phase_start.unwrap_or(item.period_start).seconds();
        let end = item.period_end.seconds();
        let items = |changed_id: Option<&str>| {
            let items = terms.items.iter().map(|item| match changed_id == Some(item.id.as_str()) {
                true => PhaseItem::of(item, change.price_id),
                false => PhaseItem::of(item, &item.price_id),
            });
            items.collect()
        };
        let now = Phase {
            start_date: Some(start),
            end_date: Some(end),
            ..Phase::of(&terms.billing, items(None))
        };
        let then = Phase::of(&terms.billing, items(Some(change.item_id)));
        let form = ScheduleForm {
            end_behavior: "release",
            metadata: OurMetadata { tollgate_customer_id: customer_id },
            phases: [now, then],
        };
        let path =
            format!("/subscription_schedules/{}", path_segment(&schedule.id, "schedule id")?);
        self.post::<Unread>(&path, &form).await.map(|_| true)
    }

    /// Gives up what a schedule has planned; the subscription goes on as it is.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses.
    pub async fn release_schedule(&self, id: &str) -> Result<(), StripeError> {
        let id = path_segment(id, "schedule id")?;
        let path = format!("/subscription_schedules/{id}/release");
        self.post::<Unread>(&path, &Nothing {}).await.map(|_| ())
    }
}

fn money(minor: i64, invoice: &Invoice) -> Result<Money, StripeError> {
    let currency: Result<Currency, _> = invoice.currency.parse();
    let currency = currency.map_err(|_| StripeError::unreadable("a preview has no currency"))?;
    Ok(Money { minor, currency })
}

#[derive(miniserde::Deserialize)]
struct Found {
    id: String,
    status: String,
    items: Page<FoundItem>,
    cancel_at: Option<i64>,
    cancel_at_period_end: bool,
    pending_update: Option<PendingUpdate>,
    schedule: Option<FoundSchedule>,
    latest_invoice: Option<LatestInvoice>,
    discounts: Vec<String>,
    collection_method: String,
    days_until_due: Option<u64>,
    default_payment_method: Option<String>,
    default_tax_rates: Option<Vec<Named>>,
    automatic_tax: AutomaticTax,
}

#[derive(miniserde::Deserialize)]
struct Named {
    id: String,
}

fn ids(named: Option<Vec<Named>>) -> Vec<String> {
    named.into_iter().flatten().map(|named| named.id).collect()
}

#[derive(Serialize, miniserde::Deserialize)]
struct AutomaticTax {
    enabled: bool,
}

#[derive(miniserde::Deserialize)]
struct FoundItem {
    id: String,
    price: FoundPrice,
    quantity: Option<u64>,
    discounts: Vec<String>,
    tax_rates: Option<Vec<Named>>,
    current_period_start: i64,
    current_period_end: i64,
}

#[derive(miniserde::Deserialize)]
struct FoundPrice {
    id: String,
}

impl From<FoundItem> for Item {
    fn from(item: FoundItem) -> Self {
        Self {
            id: item.id,
            price_id: item.price.id,
            quantity: item.quantity,
            tax_rates: ids(item.tax_rates),
            period_start: Timestamp::from_seconds(item.current_period_start),
            period_end: Timestamp::from_seconds(item.current_period_end),
        }
    }
}

#[derive(miniserde::Deserialize)]
struct PendingUpdate {
    expires_at: i64,
}

#[derive(miniserde::Deserialize)]
struct LatestInvoice {
    id: String,
    created: i64,
    status: Option<String>,
    hosted_invoice_url: Option<String>,
}

#[derive(miniserde::Deserialize)]
struct FoundEvent {
    #[serde(rename = "type")]
    kind: String,
    data: FoundData,
}

#[derive(miniserde::Deserialize)]
struct FoundData {
    object: FoundObject,
}

#[derive(miniserde::Deserialize)]
struct FoundObject {
    id: Option<String>,
}

#[derive(miniserde::Deserialize)]
struct FoundSchedule {
    id: String,
    end_behavior: String,
    metadata: Option<HashMap<String, String>>,
    current_phase: Option<CurrentPhase>,
    phases: Vec<FoundPhase>,
}

#[derive(miniserde::Deserialize)]
struct CurrentPhase {
    start_date: i64,
    end_date: i64,
}

#[derive(miniserde::Deserialize)]
struct FoundPhase {
    start_date: i64,
    items: Vec<FoundPhaseItem>,
}

#[derive(miniserde::Deserialize)]
struct FoundPhaseItem {
    price: String,
}

impl From<FoundSchedule> for Schedule {
    fn from(found: FoundSchedule) -> Self {
        let phases = found.phases;
        let begun_at = |moment: Option<i64>| -> Option<Vec<String>> {
            let phase = phases.iter().find(|phase| Some(phase.start_date) == moment)?;
            Some(phase.items.iter().map(|item| item.price.clone()).collect())
        };
        let (start, end) = found.current_phase.map(|now| (now.start_date, now.end_date)).unzip();
        let next = begun_at(end);
        let plans_nothing = next.is_none() && found.end_behavior == "release";
        let is_named = found.metadata.is_some_and(|all| all.contains_key(CUSTOMER_ID_KEY));
        Self {
            id: found.id,
            is_ours: is_named || plans_nothing,
            phase_start: start.map(Timestamp::from_seconds),
            price_ids: begun_at(start).unwrap_or_default(),
            next_price_ids: next.unwrap_or_default(),
        }
    }
}

#[derive(miniserde::Deserialize)]
struct Invoice {
    amount_due: i64,
    total: i64,
    currency: String,
}

#[derive(Serialize)]
struct Preview<'a> {
    subscription: &'a str,
    preview_mode: &'static str,
    subscription_details: ChangeForm<'a>,
}

#[derive(Serialize)]
struct ChangeForm<'a> {
    items: [ChangedItem<'a>; 1],
    proration_behavior: &'static str,
    proration_date: i64,
}

#[derive(Serialize)]
struct ChangedItem<'a> {
    id: &'a str,
    price: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<u64>,
}

impl<'a> ChangeForm<'a> {
    fn of(change: PlanChange<'a>) -> Self {
        Self {
            items: [ChangedItem {
                id: change.item_id,
                price: change.price_id,
                quantity: change.quantity,
            }],
            proration_behavior: "always_invoice",
            proration_date: change.proration_at.seconds(),
        }
    }
}

#[derive(Serialize)]
struct ScheduleForm<'a> {
    end_behavior: &'static str,
    metadata: OurMetadata<'a>,
    phases: [Phase<'a>; 2],
}

#[derive(Serialize)]
struct Phase<'a> {
    items: Vec<PhaseItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_date: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_date: Option<i64>,
    proration_behavior: &'static str,
    collection_method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    invoice_settings: Option<InvoiceSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_payment_method: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    default_tax_rates: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    automatic_tax: Option<AutomaticTax>,
}

impl<'a> Phase<'a> {
    /// One that is paid for and taxed as the subscription is.
    fn of(billing: &'a Billing, items: Vec<PhaseItem<'a>>) -> Self {
        let days_until_due = billing.days_until_due;
        Self {
            items,
            start_date: None,
            end_date: None,
            proration_behavior: "none",
            collection_method: &billing.collection_method,
            invoice_settings: days_until_due.map(|days| InvoiceSettings { days_until_due: days }),
            default_payment_method: billing.default_payment_method.as_deref(),
            default_tax_rates: &billing.default_tax_rates,
            automatic_tax: billing.automatic_tax.then_some(AutomaticTax { enabled: true }),
        }
    }
}

#[derive(Serialize)]
struct InvoiceSettings {
    days_until_due: u64,
}

#[derive(Serialize)]
struct PhaseItem<'a> {
    price: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tax_rates: &'a [String],
}

impl<'a> PhaseItem<'a> {
    /// The item, at this price.
    fn of(item: &'a Item, price: &'a str) -> Self {
        Self { price, quantity: item.quantity, tax_rates: &item.tax_rates }
    }
}
