//! Subscriptions as the API changes them.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::calendar::Interval;
use super::invoices::{self, Line, amount_of, full_line};
use super::life::{self, Item, Status, Subscription, change};
use super::params::{MetadataChange, Params};
use super::state::{Call, Page, text};

/// Stripe's parameters for making a subscription that the simulator refuses.
const NOT_SIMULATED: [&str; 20] = [
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
    "pause_collection",
    "payment_settings",
    "pending_invoice_item_interval",
    "transfer_data",
    "trial_from_plan",
    "trial_settings",
    "managed_payments",
];
const ITEM_NOT_SIMULATED: [&str; 7] = [
    "billing_thresholds",
    "clear_usage",
    "current_trial",
    "discounts",
    "plan",
    "price_data",
    "tax_rates",
];

const PAYMENT_BEHAVIORS: [&str; 4] =
    ["allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"];
const PRORATION_BEHAVIORS: [&str; 3] = ["always_invoice", "create_prorations", "none"];
const DAY_S: i64 = 86_400;

/// One entry of `items[]`.
struct ItemChange {
    /// Where it stands in the request: `items[0]`.
    path: String,
    id: Option<String>,
    price: Option<String>,
    quantity: Option<u64>,
    deleted: bool,
    metadata: Option<MetadataChange>,
}

fn read_items(params: &mut Params) -> Result<Vec<ItemChange>, ApiError> {
    let mut changes = Vec::new();
    for mut item in params.sections("items")? {
        changes.push(ItemChange {
            path: item.path().to_owned(),
            id: item.text("id")?,
            price: item.text("price")?,
            quantity: item.count("quantity")?,
            deleted: item.boolean("deleted")?.unwrap_or(false),
            metadata: item.metadata()?,
        });
        item.finish(&ITEM_NOT_SIMULATED)?;
    }
    Ok(changes)
}

/// What a price means for an item: its interval, and whether it is metered.
fn terms_of(call: &Call<'_>, id: &str, param: &str) -> Result<(Interval, bool), ApiError> {
    let price = call.state.prices.get(id);
    let price = price.ok_or_else(|| ApiError::no_such_param("price", id, param))?;
    if price["active"] == false {
        let message = format!(
            "The price specified is inactive. This field only accepts active \
                               prices: {id}"
        );
        return Err(ApiError::refused(message));
    }
    let recurring = &price["recurring"];
    if recurring.is_null() {
        let message = "The price specified is set to `type=one_time` but this field only accepts \
                       prices with `type=recurring`.";
        return Err(ApiError::refused(message));
    }
    let count = recurring["interval_count"].as_i64().unwrap_or(1);
    Ok((Interval::new(text(recurring, "interval"), count), recurring["usage_type"] == "metered"))
}

/// Only a licensed price has a quantity, one unless said otherwise.
fn quantity_for(metered: bool, sent: Option<u64>, param: &str) -> Result<Option<u64>, ApiError> {
    match (metered, sent) {
        (false, sent) => Ok(Some(sent.unwrap_or(1))),
        (true, None) => Ok(None),
        (true, Some(_)) => Err(ApiError::invalid(
            &format!("{param}[quantity]"),
            "Quantity cannot be set for a metered price.",
        )),
    }
}

/// A new item whose period starts now and ends with `subscription`'s terms.
fn new_item(
    call: &Call<'_>,
    subscription: &Subscription,
    wanted: ItemChange,
) -> Result<Item, ApiError> {
    let param = format!("{}[price]", wanted.path);
    let price = wanted.price.ok_or_else(|| ApiError::missing(&param))?;
    let (interval, metered) = terms_of(call, &price, &param)?;
    let now_s = call.now_s();
    Ok(Item {
        id: call.id("si"),
        created_s: now_s,
        quantity: quantity_for(metered, wanted.quantity, &wanted.path)?,
        price,
        interval,
        period_start_s: now_s,
        period_end_s: subscription.period_end_s(interval, now_s),
        metadata: MetadataChange::fresh(wanted.metadata),
    })
}

/// Whether the items may stand together in one subscription.
fn check_items(call: &Call<'_>, subscription: &Subscription) -> Result<(), ApiError> {
    let items = &subscription.items;
    if items.is_empty() {
        return Err(ApiError::refused("A subscription must have at least one active item."));
    }
    for (place, item) in items.iter().enumerate() {
        let currency = call.state.prices.get(&item.price).map(|price| text(price, "currency"));
        if currency != Some(subscription.currency.as_str()) {
            return Err(ApiError::refused(
                "All prices on a subscription must have the same currency.",
            ));
        }
        if items[..place].iter().any(|other| other.price == item.price) {
            return Err(ApiError::refused(
                "Subscription items cannot share the same price; use the quantity of one item.",
            ));
        }
        if subscription.billing_mode == "classic" && item.interval != items[0].interval {
            return Err(ApiError::refused(
                "All prices of a classic subscription must have the same interval.",
            ));
        }
    }
    Ok(())
}

/// When the trial is to end: a second in the future, or now.
fn read_trial_end(params: &mut Params, now_s: i64) -> Result<Option<i64>, ApiError> {
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
fn read_billing_mode(params: &mut Params) -> Result<&'static str, ApiError> {
    let Some(mut mode) = params.section("billing_mode")? else { return Ok("flexible") };
    let kind = mode.word("type", &["classic", "flexible"])?.ok_or_else(|| mode.missing("type"))?;
    mode.finish(&["flexible"])?;
    Ok(kind)
}

/// A `cancel_at` in the future; `Some(None)` unsets it.
fn read_cancel_at(params: &mut Params, now_s: i64) -> Result<Option<Option<i64>>, ApiError> {
    let Some(value) = params.clearable("cancel_at")? else { return Ok(None) };
    let Some(text) = value.as_str() else { return Ok(Some(None)) };
    match text.parse() {
        Ok(at_s) if at_s > now_s => Ok(Some(Some(at_s))),
        Ok(_) => Err(ApiError::invalid("cancel_at", "cancel_at must be in the future.")),
        Err(_) => Err(ApiError::invalid_integer("cancel_at", text)),
    }
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let now_s = call.now_s();
    let customer = params.required_text("customer")?;
    let wanted = read_items(&mut params)?;
    if wanted.is_empty() {
        return Err(params.missing("items"));
    }
    // Stripe allows trials of up to two years.
    let trial_days = params.count("trial_period_days")?.map(|days| days.min(730) as i64);
    let trial_end_s = read_trial_end(&mut params, now_s)?
        .or(trial_days.map(|days| now_s + days * DAY_S))
        .filter(|end_s| *end_s > now_s);
    let anchor_s = params.integer("billing_cycle_anchor")?;
    let at_period_end = params.boolean("cancel_at_period_end")?.unwrap_or(false);
    let cancel_at_s = read_cancel_at(&mut params, now_s)?.flatten();
    let behavior = params.word("payment_behavior", &PAYMENT_BEHAVIORS)?;
    let currency = params.text("currency")?;
    params.word("proration_behavior", &PRORATION_BEHAVIORS)?;
    params.boolean("off_session")?;
    let mut subscription = Subscription {
        id: call.id("sub"),
        status: if trial_end_s.is_some() { Status::Trialing } else { Status::Active },
        customer,
        created_s: now_s,
        anchor_s: trial_end_s.or(anchor_s).unwrap_or(now_s),
        cancel_at_s,
        cancel_at_period_end: false,
        canceled_at_s: cancel_at_s.map(|_| now_s),
        ended_at_s: None,
        trial_start_s: trial_end_s.map(|_| now_s),
        trial_end_s,
        trial_end_announced: false,
        metadata: MetadataChange::fresh(params.metadata()?),
        items: Vec::new(),
        latest_invoice: None,
        pending_lines: Vec::new(),
        billing_mode: read_billing_mode(&mut params)?,
        currency: String::new(),
        collection_method: params
            .word("collection_method", &["charge_automatically", "send_invoice"])?
            .unwrap_or("charge_automatically"),
        days_until_due: params.count("days_until_due")?,
        default_payment_method: params.clearable("default_payment_method")?.unwrap_or_default(),
        description: params.clearable("description")?.unwrap_or_default(),
        cancellation_details: json!({
            "comment": null, "feedback": null, "feedback_option": null, "reason": null,
        }),
    };
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
    Ok(start(call, subscription, behavior == Some("default_incomplete")))
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

/// Stores a new subscription with its first invoice and tells of both.
fn start(call: &mut Call<'_>, mut subscription: Subscription, wait_for_payment: bool) -> Value {
    let trialing = subscription.status == Status::Trialing;
    let items: Vec<&Item> =
        subscription.items.iter().filter(|item| item.quantity.is_some()).collect();
    let lines: Vec<Line> = items
        .iter()
        .map(|item| {
            let mut line = full_line(call.state, item, (item.period_start_s, item.period_end_s));
            if trialing {
                line.amount = 0;
            }
            line
        })
        .collect();
    if wait_for_payment && lines.iter().any(|line| line.amount > 0) {
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
    render(call, &id)
}

fn render(call: &Call<'_>, id: &str) -> Value {
    let found = call.state.subscriptions.get(id);
    found.map(|found| found.render(&call.state.prices)).unwrap_or_default()
}

fn find(call: &Call<'_>, id: &str) -> Result<Subscription, ApiError> {
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
    params.finish(&[
        "automatic_tax",
        "collection_method",
        "current_period_end",
        "current_period_start",
        "customer_account",
        "plan",
        "test_clock",
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
    // Filtered by customer before anything is rendered: that is how lists are asked for.
    let of_customer = |subscription: &&Subscription| {
        customer.as_ref().is_none_or(|customer| subscription.customer == *customer)
    };
    let all = call.state.subscriptions.iter().rev().filter(of_customer);
    let rows = all.map(|subscription| subscription.render(&call.state.prices));
    page.cut("/v1/subscriptions", "subscription", rows, |subscription| {
        wanted(subscription) && price.as_ref().is_none_or(|price| has_price(subscription, price))
    })
}

pub(super) fn cancel(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let details = read_cancellation_details(&mut params)?;
    params.finish(&["invoice_now", "prorate"])?;
    let mut subscription = find(call, id)?;
    if subscription.status.is_terminal() {
        return Err(ApiError::no_such("subscription", id));
    }
    apply_cancellation_details(&mut subscription, details);
    // A cancellation at once replaces one that was planned.
    subscription.cancel_at_s = None;
    subscription.cancel_at_period_end = false;
    subscription.canceled_at_s = Some(call.now_s());
    Ok(life::end(call, subscription))
}

type CancellationDetails = Vec<(&'static str, Value)>;

fn read_cancellation_details(params: &mut Params) -> Result<CancellationDetails, ApiError> {
    let Some(mut section) = params.section("cancellation_details")? else {
        return Ok(Vec::new());
    };
    let mut details = Vec::new();
    for field in ["comment", "feedback"] {
        if let Some(value) = section.clearable(field)? {
            details.push((field, value));
        }
    }
    section.finish(&["feedback_option"])?;
    Ok(details)
}

fn apply_cancellation_details(subscription: &mut Subscription, details: CancellationDetails) {
    for (field, value) in details {
        subscription.cancellation_details[field] = value;
    }
}

fn cancel_at_period_end(subscription: &mut Subscription, now_s: i64) {
    subscription.cancel_at_period_end = true;
    subscription.cancel_at_s = Some(subscription.last_period_end_s());
    subscription.canceled_at_s = Some(now_s);
    subscription.cancellation_details["reason"] = "cancellation_requested".into();
}

/// Withdraws a planned cancellation.
fn keep(subscription: &mut Subscription) {
    subscription.cancel_at_period_end = false;
    subscription.cancel_at_s = None;
    subscription.canceled_at_s = None;
    subscription.cancellation_details["reason"] = Value::Null;
    subscription.end_periods();
}

/// What an update asks for.
struct Update {
    items: Vec<ItemChange>,
    at_period_end: Option<bool>,
    cancel_at_s: Option<Option<i64>>,
    trial_end_s: Option<i64>,
    anchor_now: bool,
    proration: &'static str,
    proration_date_s: Option<i64>,
    metadata: Option<MetadataChange>,
    description: Option<Value>,
    default_payment_method: Option<Value>,
    cancellation_details: CancellationDetails,
}

fn read_update(params: &mut Params, now_s: i64) -> Result<Update, ApiError> {
    let mut anchor_now = false;
    // A hash since 2026-09-30; the word of older versions is no longer understood.
    if let Some(mut anchor) = params.section("billing_cycle_anchor")? {
        let kind = anchor.word("type", &["now", "unchanged"])?;
        anchor_now = kind.ok_or_else(|| anchor.missing("type"))? == "now";
        anchor.finish(&[])?;
    }
    params.word("payment_behavior", &PAYMENT_BEHAVIORS)?;
    params.boolean("off_session")?;
    Ok(Update {
        items: read_items(params)?,
        at_period_end: params.boolean("cancel_at_period_end")?,
        cancel_at_s: read_cancel_at(params, now_s)?,
        trial_end_s: read_trial_end(params, now_s)?,
        anchor_now,
        proration: params
            .word("proration_behavior", &PRORATION_BEHAVIORS)?
            .unwrap_or("create_prorations"),
        proration_date_s: params.integer("proration_date")?,
        metadata: params.metadata()?,
        description: params.clearable("description")?,
        default_payment_method: params.clearable("default_payment_method")?,
        cancellation_details: read_cancellation_details(params)?,
    })
}

pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let now_s = call.now_s();
    let update = read_update(&mut params, now_s)?;
    params.finish(&[&NOT_SIMULATED[..], &["collection_method", "days_until_due"]].concat())?;
    let before = find(call, id)?;
    let touches_billing = !update.items.is_empty()
        || update.at_period_end.is_some()
        || update.cancel_at_s.is_some()
        || update.trial_end_s.is_some()
        || update.anchor_now;
    if before.status.is_terminal() && touches_billing {
        return Err(ApiError::refused(
            "A canceled subscription can only update its cancellation_details and metadata.",
        ));
    }
    let mut after = before.clone();
    if let Some(change) = &update.metadata {
        change.apply(&mut after.metadata);
    }
    after.description = update.description.unwrap_or(after.description);
    after.default_payment_method =
        update.default_payment_method.unwrap_or(after.default_payment_method);
    apply_cancellation_details(&mut after, update.cancellation_details);
    apply_items(call, &mut after, update.items)?;
    if touches_billing {
        check_items(call, &after)?;
    }
    let restarts = apply_restart(&before, &mut after, update.trial_end_s, update.anchor_now, now_s);
    apply_cancellation(&mut after, update.at_period_end, update.cancel_at_s, now_s);
    let from_s = update.proration_date_s.unwrap_or(now_s);
    let lines = match update.proration {
        _ if before.status.is_terminal() => Vec::new(),
        "none" if !restarts => Vec::new(),
        "none" => charges(call, &before, &after, from_s),
        _ => [credits(call, &before, &after, from_s), charges(call, &before, &after, from_s)]
            .concat(),
    };
    Ok(store(call, after, lines, restarts || update.proration == "always_invoice"))
}

/// Stores a changed subscription; its lines are invoiced at once or with the next invoice.
fn store(
    call: &mut Call<'_>,
    mut after: Subscription,
    lines: Vec<Line>,
    invoice_now: bool,
) -> Value {
    let id = after.id.clone();
    if lines.is_empty() || !invoice_now {
        after.pending_lines.extend(lines);
        return change(call, after);
    }
    let invoice = invoices::draft(call, &after, "subscription_update", lines);
    after.latest_invoice = Some(invoice.clone());
    change(call, after);
    invoices::finalize(call, &invoice);
    render(call, &id)
}

/// An entry that names no item adds one beside the old, as Stripe does.
fn apply_items(
    call: &Call<'_>,
    after: &mut Subscription,
    changes: Vec<ItemChange>,
) -> Result<(), ApiError> {
    for wanted in changes {
        let Some(id) = &wanted.id else {
            let item = new_item(call, after, wanted)?;
            after.items.push(item);
            continue;
        };
        let place = after.items.iter().position(|item| item.id == *id);
        let param = format!("{}[id]", wanted.path);
        let place =
            place.ok_or_else(|| ApiError::no_such_param("subscription item", id, &param))?;
        if wanted.deleted {
            after.items.remove(place);
            continue;
        }
        let mut item = after.items[place].clone();
        if let Some(change) = &wanted.metadata {
            change.apply(&mut item.metadata);
        }
        let price = wanted.price.unwrap_or_else(|| item.price.clone());
        let changes_price = price != item.price;
        if changes_price || wanted.quantity.is_some() {
            let param = format!("{}[price]", wanted.path);
            let (interval, metered) = terms_of(call, &price, &param)?;
            // A quantity that is not sent with a new price becomes one.
            item.quantity = quantity_for(metered, wanted.quantity, &wanted.path)?;
            item.interval = interval;
            item.price = price;
        }
        after.items[place] = item;
    }
    Ok(())
}

/// Starts periods anew where Stripe does: a trial ends or moves, the anchor is set to now, or an
/// item's interval changed. Answers whether a new period began now.
fn apply_restart(
    before: &Subscription,
    after: &mut Subscription,
    trial_end_s: Option<i64>,
    anchor_now: bool,
    now_s: i64,
) -> bool {
    let interval_changed = after.items.iter().any(|item| {
        let old = before.items.iter().find(|old| old.id == item.id);
        old.is_some_and(|old| old.interval != item.interval)
    });
    if let Some(end_s) = trial_end_s.filter(|end_s| *end_s > now_s) {
        after.status = Status::Trialing;
        after.trial_start_s.get_or_insert(now_s);
        after.trial_end_s = Some(end_s);
        after.trial_end_announced = false;
        after.anchor_s = end_s;
        after.end_periods();
        return false;
    }
    let trial_ends_now = trial_end_s.is_some() && after.status == Status::Trialing;
    if !(trial_ends_now || anchor_now || interval_changed) {
        return false;
    }
    if after.status == Status::Trialing {
        after.status = Status::Active;
        after.trial_end_s = Some(now_s);
    }
    after.anchor_s = now_s;
    for item in &mut after.items {
        item.period_start_s = now_s;
    }
    after.end_periods();
    true
}

fn apply_cancellation(
    after: &mut Subscription,
    at_period_end: Option<bool>,
    cancel_at_s: Option<Option<i64>>,
    now_s: i64,
) {
    match cancel_at_s {
        Some(Some(at_s)) => {
            after.cancel_at_s = Some(at_s);
            after.cancel_at_period_end = false;
            after.canceled_at_s = Some(now_s);
            after.cancellation_details["reason"] = "cancellation_requested".into();
            after.end_periods();
        }
        Some(None) => keep(after),
        None => {}
    }
    match at_period_end {
        Some(true) if !after.cancel_at_period_end => {
            keep(after);
            cancel_at_period_end(after, now_s);
        }
        Some(false) if after.cancel_at_period_end => keep(after),
        _ => {}
    }
}

/// The share of an item's full amount for the rest of its period from `from_s` on.
fn remaining(call: &Call<'_>, item: &Item, from_s: i64) -> Line {
    let from_s = from_s.clamp(item.period_start_s, item.period_end_s);
    let mut line = full_line(call.state, item, (from_s, item.period_end_s));
    let whole_s = i128::from((item.period_end_s - item.period_start_s).max(1));
    let left_s = i128::from(item.period_end_s - from_s);
    let amount = i128::from(amount_of(call.state, &item.price, item.quantity));
    let share = (amount * left_s * 2 + whole_s).div_euclid(whole_s * 2);
    line.amount = i64::try_from(share).unwrap_or(i64::MAX);
    line.proration = from_s != item.period_start_s;
    line
}

fn is_same(one: &Item, other: &Item) -> bool {
    one.id == other.id
        && one.price == other.price
        && one.quantity == other.quantity
        && one.period_start_s == other.period_start_s
}

/// What was paid for time that the change takes away. Nothing was paid for a trial, and a metered
/// price is never paid in advance.
fn credits(call: &Call<'_>, before: &Subscription, after: &Subscription, from_s: i64) -> Vec<Line> {
    if before.status == Status::Trialing {
        return Vec::new();
    }
    let gone = before.items.iter().filter(|old| !after.items.iter().any(|new| is_same(old, new)));
    gone.filter(|item| item.quantity.is_some())
        .map(|item| {
            let mut line = remaining(call, item, from_s);
            line.amount = -line.amount;
            line.proration = true;
            line
        })
        .collect()
}

/// What the change makes payable for the rest of the period.
fn charges(call: &Call<'_>, before: &Subscription, after: &Subscription, from_s: i64) -> Vec<Line> {
    if after.status == Status::Trialing {
        return Vec::new();
    }
    let new = after.items.iter().filter(|new| !before.items.iter().any(|old| is_same(old, new)));
    new.filter(|item| item.quantity.is_some()).map(|item| remaining(call, item, from_s)).collect()
}
