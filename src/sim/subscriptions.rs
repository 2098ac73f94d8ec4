//! Subscriptions as the API changes them.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::cancellations::{apply_details, cancel_at_period_end, read_cancel_at, read_details};
use super::invoices::{self, Line, full_line};
use super::items::{check_items, new_item, read_items};
use super::life::{self, Item, Status, Subscription, change};
use super::params::{MetadataChange, Params};
use super::payments::{self, Outcome};
use super::state::{Call, Page, text};

/// Stripe's parameters for making a subscription that the simulator refuses.
pub(super) const NOT_SIMULATED: [&str; 18] = [
    "add_invoice_items",
    "application_fee_percent",
    "automatic_tax",
    "backdate_start_date",
    "billing_cycle_anchor_config",
    "billing_schedules",
    "billing_thresholds",
    "customer_account",
    "default_source",
    "default_tax_rates",
    "discounts",
    "invoice_settings",
    "on_behalf_of",
    "payment_settings",
    "pending_invoice_item_interval",
    "transfer_data",
    "trial_from_plan",
    "managed_payments",
];

pub(super) const PAYMENT_BEHAVIORS: [&str; 4] =
    ["allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"];
pub(super) const PRORATION_BEHAVIORS: [&str; 3] = ["always_invoice", "create_prorations", "none"];
const DAY_S: i64 = 86_400;

/// When the trial is to end: a second in the future, or now.
pub(super) fn read_trial_end(params: &mut Params, now_s: i64) -> Result<Option<i64>, ApiError> {
    let Some(text) = params.text("trial_end")? else { return Ok(None) };
    if text == "now" {
        return Ok(Some(now_s));
    }
    match text.parse() {
        Ok(end_s) if end_s > now_s => Ok(Some(end_s)),
        Ok(_) => Err(ApiError::invalid("trial_end", "trial_end must be in the future.")),
        Err(_) => Err(ApiError::invalid_integer("trial_end", &text)),
    }
}

/// `flexible` unless said otherwise, as for every subscription made by API since 2025-09-30.
pub(super) fn read_billing_mode(params: &mut Params) -> Result<&'static str, ApiError> {
    let Some(mut mode) = params.section("billing_mode")? else { return Ok("flexible") };
    let kind = mode.word("type", &["classic", "flexible"])?.ok_or_else(|| mode.missing("type"))?;
    mode.finish(&["flexible"])?;
    Ok(kind)
}

/// What a new subscription is to be, apart from its items.
pub(super) struct Terms {
    pub customer: String,
    pub trial_end_s: Option<i64>,
    pub anchor_s: Option<i64>,
    pub billing_mode: &'static str,
    pub metadata: Option<MetadataChange>,
    pub default_payment_method: Value,
    pub description: Value,
}

/// A subscription without items yet, on the terms that most have.
pub(super) fn blank(call: &Call<'_>, terms: Terms) -> Subscription {
    let now_s = call.now_s();
    let Terms { customer, trial_end_s, anchor_s, .. } = terms;
    Subscription {
        id: call.id("sub"),
        status: if trial_end_s.is_some() { Status::Trialing } else { Status::Active },
        test_clock: call.state.clock_of(&customer).map(str::to_owned),
        customer,
        created_s: now_s,
        anchor_s: trial_end_s.or(anchor_s).unwrap_or(now_s),
        cancel_at_s: None,
        cancel_at_period_end: false,
        canceled_at_s: None,
        ended_at_s: None,
        trial_start_s: trial_end_s.map(|_| now_s),
        trial_end_s,
        trial_end_announced: false,
        metadata: MetadataChange::fresh(terms.metadata),
        items: Vec::new(),
        latest_invoice: None,
        pending_lines: Vec::new(),
        billing_mode: terms.billing_mode,
        currency: String::new(),
        collection_method: "charge_automatically",
        days_until_due: None,
        default_payment_method: terms.default_payment_method,
        description: terms.description,
        cancellation_details: json!({
            "comment": null, "feedback": null, "feedback_option": null, "reason": null,
        }),
        pending: None,
        pause_collection: Value::Null,
        paused: None,
        without_card: "create_invoice",
        schedule: None,
    }
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required_text("customer")?;
    call.enter_time_of(&customer);
    let now_s = call.now_s();
    let wanted = read_items(&mut params)?;
    if wanted.is_empty() {
        return Err(params.missing("items"));
    }
    // Stripe allows trials of up to two years.
    let trial_days = params.count("trial_period_days")?.map(|days| days.min(730) as i64);
    let trial_end_s = read_trial_end(&mut params, now_s)?
        .or(trial_days.map(|days| now_s + days * DAY_S))
        .filter(|end_s| *end_s > now_s);
    let at_period_end = params.boolean("cancel_at_period_end")?.unwrap_or(false);
    let behavior = params.word("payment_behavior", &PAYMENT_BEHAVIORS)?;
    let currency = params.text("currency")?;
    params.word("proration_behavior", &PRORATION_BEHAVIORS)?;
    params.boolean("off_session")?;
    let terms = Terms {
        customer,
        trial_end_s,
        anchor_s: params.integer("billing_cycle_anchor")?,
        billing_mode: read_billing_mode(&mut params)?,
        metadata: params.metadata()?,
        default_payment_method: params.clearable("default_payment_method")?.unwrap_or_default(),
        description: params.clearable("description")?.unwrap_or_default(),
    };
    let mut subscription = blank(call, terms);
    read_collection(&mut params, &mut subscription, now_s)?;
    params.finish(&NOT_SIMULATED)?;
    call.customer(&subscription.customer, "customer")?;
    for wanted in wanted {
        let item = new_item(call, &subscription, wanted)?;
        subscription.items.push(item);
    }
    check_anchor(&subscription, now_s)?;
    let price = call.state.prices.get(&subscription.items[0].price).cloned().unwrap_or_default();
    subscription.currency = currency.unwrap_or_else(|| text(&price, "currency").to_owned());
    check_items(call, &subscription)?;
    if at_period_end {
        cancel_at_period_end(&mut subscription, now_s);
    }
    start(call, subscription, behavior.unwrap_or("allow_incomplete"))
}

/// How and when it is paid, and when it is to end.
fn read_collection(
    params: &mut Params,
    subscription: &mut Subscription,
    now_s: i64,
) -> Result<(), ApiError> {
    subscription.cancel_at_s = read_cancel_at(params, now_s)?.flatten();
    subscription.canceled_at_s = subscription.cancel_at_s.map(|_| now_s);
    subscription.collection_method = params
        .word("collection_method", &["charge_automatically", "send_invoice"])?
        .unwrap_or("charge_automatically");
    subscription.days_until_due = params.count("days_until_due")?;
    if let Some(without_card) = read_trial_settings(params)? {
        subscription.without_card = without_card;
    }
    Ok(())
}

pub(super) fn read_trial_settings(params: &mut Params) -> Result<Option<&'static str>, ApiError> {
    let Some(mut settings) = params.section("trial_settings")? else { return Ok(None) };
    let Some(mut end) = settings.section("end_behavior")? else {
        return Err(settings.missing("end_behavior"));
    };
    let words = ["cancel", "create_invoice", "pause"];
    let without_card = end.word("missing_payment_method", &words)?;
    end.finish(&["billing_cycle_anchor"])?;
    settings.finish(&[])?;
    Ok(without_card)
}

/// An anchor may not lie in the past, nor beyond the end of the first natural period.
fn check_anchor(subscription: &Subscription, now_s: i64) -> Result<(), ApiError> {
    if subscription.trial_end_s.is_some() {
        return Ok(());
    }
    let natural_s = |item: &Item| item.interval.next_boundary(now_s, now_s);
    let latest_s = subscription.items.iter().map(natural_s).min().unwrap_or(now_s);
    if (now_s..=latest_s).contains(&subscription.anchor_s) {
        return Ok(());
    }
    Err(ApiError::invalid(
        "billing_cycle_anchor",
        "billing_cycle_anchor must be in the future and no later than the next natural billing \
         date.",
    ))
}

/// Stores a new subscription with its first invoice and tells of both. `behavior` is Stripe's
/// `payment_behavior`.
pub(super) fn start(
    call: &mut Call<'_>,
    mut subscription: Subscription,
    behavior: &str,
) -> Result<Value, ApiError> {
    let lines = first_lines(call, &subscription);
    let owes = lines.iter().any(|line| line.amount > 0);
    let automatic = subscription.collection_method == "charge_automatically";
    if owes && behavior != "default_incomplete" {
        payments::check_can_pay(call, &subscription)?;
    }
    let outcome = match payments::outcome(call, &subscription) {
        outcome if owes && automatic => outcome,
        _ => Outcome::Paid,
    };
    if behavior == "error_if_incomplete"
        && let Some(refusal) = outcome.refusal()
    {
        return Err(refusal);
    }
    let waits = owes && behavior == "default_incomplete";
    if waits || outcome != Outcome::Paid {
        subscription.status = Status::Incomplete;
    }
    let id = subscription.id.clone();
    // The invoice is stored first, so that the subscription's first event can name it.
    let invoice = invoices::draft(call, &subscription, "subscription_create", lines);
    subscription.latest_invoice = Some(invoice.clone());
    let shown = subscription.render(&call.state.prices);
    call.state.save_subscription(subscription);
    super::events::record(call, "customer.subscription.created", &shown, None);
    invoices::finalize(call, &invoice);
    if !waits && outcome != Outcome::Paid {
        invoices::conclude(call, &invoice, outcome);
    }
    Ok(render(call, &id))
}

/// What the first invoice bills: nothing for a trial, and nothing yet for a metered price.
fn first_lines(call: &Call<'_>, subscription: &Subscription) -> Vec<Line> {
    let items = subscription.items.iter().filter(|item| item.quantity.is_some());
    items
        .map(|item| {
            let mut line = full_line(call.state, item, (item.period_start_s, item.period_end_s));
            if subscription.status == Status::Trialing {
                line.amount = 0;
            }
            line
        })
        .collect()
}

pub(super) fn render(call: &Call<'_>, id: &str) -> Value {
    let found = call.state.subscriptions.get(id);
    found.map(|found| found.render(&call.state.prices)).unwrap_or_default()
}

pub(super) fn find(call: &Call<'_>, id: &str) -> Result<Subscription, ApiError> {
    let found = call.state.subscriptions.get(id).cloned();
    found.ok_or_else(|| ApiError::no_such("subscription", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    Ok(find(call, id)?.render(&call.state.prices))
}

/// Canceled ones are left out unless `status` asks for them.
pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let customer = params.text("customer")?;
    let price = params.text("price")?;
    let status = params.text("status")?;
    let test_clock = params.text("test_clock")?;
    params.finish(&[
        "automatic_tax",
        "collection_method",
        "current_period_end",
        "current_period_start",
        "customer_account",
        "plan",
    ])?;
    let known = ["all", "ended"];
    if let Some(status) = &status
        && !known.contains(&status.as_str())
        && Status::parse(status).is_none()
    {
        return Err(ApiError::invalid("status", format!("Invalid status: {status}")));
    }
    let wanted = |subscription: &Value| match status.as_deref() {
        None => subscription["status"] != "canceled",
        Some("all") => true,
        Some("ended") => {
            Status::parse(text(subscription, "status")).is_some_and(Status::is_terminal)
        }
        Some(status) => subscription["status"] == status,
    };
    let has_price = |subscription: &Value, price: &String| {
        let items = subscription["items"]["data"].as_array();
        items.into_iter().flatten().any(|item| text(&item["price"], "id") == price)
    };
    // Filtered by customer before anything is rendered: that is how lists are asked for. What
    // lives by a test clock is hidden from who asks for neither.
    let of_customer = |subscription: &&Subscription| match &customer {
        Some(customer) => subscription.customer == *customer,
        None => subscription.test_clock == test_clock,
    };
    let all = call.state.subscriptions.iter().rev().filter(of_customer);
    let rows = all.map(|subscription| subscription.render(&call.state.prices));
    page.cut("/v1/subscriptions", "subscription", rows, |subscription| {
        wanted(subscription) && price.as_ref().is_none_or(|price| has_price(subscription, price))
    })
}

pub(super) fn cancel(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let details = read_details(&mut params)?;
    let invoice_now = params.boolean("invoice_now")?;
    params.finish(&["prorate"])?;
    let mut subscription = find(call, id)?;
    call.enter_time_of(&subscription.customer);
    if subscription.status.is_terminal() {
        return Err(ApiError::no_such("subscription", id));
    }
    apply_details(&mut subscription, details);
    // A cancellation at once replaces one that was planned.
    subscription.cancel_at_s = None;
    subscription.cancel_at_period_end = false;
    subscription.canceled_at_s = Some(call.now_s());
    Ok(match invoice_now {
        Some(true) => life::end_with_invoice(call, subscription),
        // What the meters have counted is billed no more.
        _ => life::end(call, subscription),
    })
}

/// Puts a subscription on hold. Stripe allows it in flexible billing mode only.
pub(super) fn pause(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    params.word("type", &["subscription"])?;
    params.finish(&["bill_for", "invoicing_behavior"])?;
    let subscription = find(call, id)?;
    call.enter_time_of(&subscription.customer);
    if subscription.billing_mode != "flexible" {
        return Err(ApiError::refused(
            "Only subscriptions with `billing_mode[type]=flexible` can be paused.",
        ));
    }
    if !matches!(subscription.status, Status::Active | Status::Trialing | Status::PastDue) {
        let status = subscription.status.as_str();
        return Err(ApiError::refused(format!(
            "A subscription that is {status} cannot be paused."
        )));
    }
    Ok(life::pause(call, subscription, "pause_requested"))
}

/// Takes a subscription off hold. Its period begins anew unless the anchor is to stay.
pub(super) fn resume(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let restarts = match params.section("billing_cycle_anchor")? {
        None => true,
        Some(mut anchor) => {
            let kind = anchor.word("type", &["now", "unchanged"])?;
            let kind = kind.ok_or_else(|| anchor.missing("type"))?;
            anchor.finish(&[])?;
            kind == "now"
        }
    };
    params.word("proration_behavior", &PRORATION_BEHAVIORS)?;
    params.finish(&["payment_behavior", "proration_date"])?;
    let mut subscription = find(call, id)?;
    call.enter_time_of(&subscription.customer);
    if subscription.status != Status::Paused {
        return Err(ApiError::refused("Only a subscription that is paused can be resumed."));
    }
    subscription.status = Status::Active;
    subscription.paused = None;
    let shown = subscription.render(&call.state.prices);
    super::events::record(call, "customer.subscription.resumed", &shown, None);
    if !restarts {
        return Ok(change(call, subscription));
    }
    let now_s = call.now_s();
    subscription.anchor_s = now_s;
    for item in &mut subscription.items {
        item.period_start_s = now_s;
        item.usage_from_s = now_s;
    }
    subscription.end_periods();
    let lines = first_lines(call, &subscription);
    let invoice = invoices::draft(call, &subscription, "subscription_update", lines);
    subscription.latest_invoice = Some(invoice.clone());
    change(call, subscription);
    invoices::finalize(call, &invoice);
    Ok(render(call, id))
}
