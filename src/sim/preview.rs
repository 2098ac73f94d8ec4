//! What an invoice would say: Stripe's `invoices/create_preview`.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::invoices::{self, Line};
use super::items::{check_items, new_item, read_items};
use super::life::{Status, Subscription, next_period};
use super::params::Params;
use super::state::{Call, text};
use super::subscriptions::{Terms, blank, find, read_billing_mode};
use super::updates::{self, Planned};

/// Stripe's parameters of a preview that the simulator refuses.
const NOT_SIMULATED: [&str; 9] = [
    "automatic_tax",
    "customer_account",
    "customer_details",
    "discounts",
    "invoice_items",
    "issuer",
    "on_behalf_of",
    "schedule",
    "schedule_details",
];
const DETAILS_NOT_SIMULATED: [&str; 7] = [
    "billing_schedules",
    "cancel_now",
    "default_tax_rates",
    "pause",
    "resume_at",
    "resume_subscription",
    "start_date",
];

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let mode = params.word("preview_mode", &["next", "recurring"])?;
    params.text("currency")?;
    let details = params.section("subscription_details")?.unwrap_or_default();
    params.finish(&NOT_SIMULATED)?;
    let recurring = mode == Some("recurring");
    match (subscription, customer) {
        (Some(id), customer) => {
            let before = find(call, &id)
                .map_err(|_| ApiError::no_such_param("subscription", &id, "subscription"))?;
            if customer.is_some_and(|customer| customer != before.customer) {
                let message = "The subscription does not belong to the customer.";
                return Err(ApiError::invalid("customer", message));
            }
            of_change(call, &before, details, recurring)
        }
        (None, Some(customer)) => of_new(call, customer, details),
        (None, None) => Err(ApiError::missing("customer")),
    }
}

/// The next invoice of a subscription, after a change if one is described.
fn of_change(
    call: &mut Call<'_>,
    before: &Subscription,
    mut details: Params,
    recurring: bool,
) -> Result<Value, ApiError> {
    call.enter_time_of(&before.customer);
    let update = updates::read_changes(&mut details, call.now_s())?;
    details.finish(&[&DETAILS_NOT_SIMULATED[..], &["billing_mode"]].concat())?;
    if before.status.is_terminal() {
        let message = "You cannot preview the upcoming invoice for a canceled subscription.";
        return Err(ApiError::refused(message).code("invoice_upcoming_none"));
    }
    let Planned { mut after, lines, invoice_now } = updates::plan(call, before, update)?;
    if recurring {
        let lines = next_lines(call, &mut after);
        return Ok(render(call, &after, "upcoming", lines));
    }
    // A change that is invoiced at once is an invoice of its own; any other rides on the next.
    if invoice_now {
        return Ok(render(call, &after, "subscription_update", lines));
    }
    if after.cancel_at_period_end && after.items.iter().all(|item| item.quantity.is_some()) {
        let message = "No upcoming invoices for customer: the subscription will be canceled.";
        return Err(ApiError::refused(message).code("invoice_upcoming_none"));
    }
    let waiting = std::mem::take(&mut after.pending_lines);
    let next = next_lines(call, &mut after);
    Ok(render(call, &after, "upcoming", [waiting, lines, next].concat()))
}

/// What the next renewal bills. Moves the items into that period.
fn next_lines(call: &Call<'_>, subscription: &mut Subscription) -> Vec<Line> {
    let mut items = subscription.items.clone();
    let first_end_s = items.iter().map(|item| item.period_end_s).min().unwrap_or_default();
    let due = items.iter_mut().filter(|item| item.period_end_s == first_end_s);
    let lines = due.map(|item| next_period(call.state, subscription, item)).collect();
    subscription.items = items;
    lines
}

/// The first invoice of a subscription that does not exist yet.
fn of_new(call: &mut Call<'_>, customer: String, mut details: Params) -> Result<Value, ApiError> {
    call.customer(&customer, "customer")?;
    call.enter_time_of(&customer);
    let wanted = read_items(&mut details)?;
    if wanted.is_empty() {
        return Err(ApiError::missing("subscription_details[items]"));
    }
    let terms = Terms {
        customer,
        trial_end_s: None,
        anchor_s: None,
        billing_mode: read_billing_mode(&mut details)?,
        metadata: None,
        default_payment_method: Value::Null,
        description: Value::Null,
    };
    details.finish(&DETAILS_NOT_SIMULATED)?;
    let mut subscription = blank(call, terms);
    for wanted in wanted {
        let item = new_item(call, &subscription, wanted)?;
        subscription.items.push(item);
    }
    let price = call.state.prices.get(&subscription.items[0].price);
    subscription.currency =
        price.map(|price| text(price, "currency").to_owned()).unwrap_or_default();
    check_items(call, &subscription)?;
    let items = subscription.items.iter().filter(|item| item.quantity.is_some());
    let lines = items
        .map(|item| invoices::full_line(call.state, item, (item.period_start_s, item.period_end_s)))
        .collect();
    Ok(render(call, &subscription, "subscription_create", lines))
}

fn render(call: &Call<'_>, subscription: &Subscription, reason: &str, lines: Vec<Line>) -> Value {
    let id = call.id("upcoming_in");
    let at_s = match reason {
        "upcoming" => {
            let starts = subscription.items.iter().map(|item| item.period_start_s);
            starts.max().unwrap_or(call.now_s())
        }
        _ => call.now_s(),
    };
    let mut invoice = invoices::render(call, &id, subscription, reason, &lines, at_s);
    let exists = call.state.subscriptions.get(&subscription.id).is_some();
    if !exists {
        forget_subscription(&mut invoice);
    }
    invoices::bill_usage(call.state, &mut invoice);
    invoices::add_up(&mut invoice);
    invoice["next_payment_attempt"] =
        (subscription.status != Status::Paused).then_some(at_s + invoices::DRAFT_FOR_S).into();
    invoice
}

/// A subscription that does not exist has no id to show.
fn forget_subscription(invoice: &mut Value) {
    invoice["parent"] = Value::Null;
    for line in invoice["lines"]["data"].as_array_mut().into_iter().flatten() {
        line["subscription"] = Value::Null;
        line["parent"] = json!(null);
    }
}
