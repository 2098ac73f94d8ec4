//! Invoices: drafted at renewal, finalized an hour later, paid at once.
//!
//! Money is in minor units of the currency. No tax, no discounts, no customer balance.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::decimal::Decimal;
use super::events::record;
use super::life::{self, Item, Status, Subscription};
use super::params::Params;
use super::payments::{self, Outcome};
use super::state::{Call, Due, Page, State, text};
use super::{meters, webhooks};

/// How long a renewal's invoice stays open for late usage.
pub(super) const DRAFT_FOR_S: i64 = 3600;
const DAY_S: i64 = 86_400;
/// After how many days each failed payment of a renewal is tried again. Stripe's own choice of
/// days is not published; these are the ones an account can set.
const RETRY_AFTER_DAYS: [i64; 3] = [3, 5, 7];

/// What one line of an invoice bills.
#[derive(Clone)]
pub(super) struct Line {
    pub item: String,
    pub price: String,
    pub amount: i64,
    pub period_s: (i64, i64),
    pub quantity: Option<u64>,
    pub proration: bool,
}

/// What a price asks for `quantity` units; nothing yet for a metered one.
pub(super) fn amount_of(state: &State, price: &str, quantity: Option<u64>) -> i64 {
    let unit = state.prices.get(price).and_then(|price| price["unit_amount_decimal"].as_str());
    let unit = unit.and_then(|unit| Decimal::parse(unit).ok()).unwrap_or_default();
    let quantity = usize::try_from(quantity.unwrap_or(0)).unwrap_or(usize::MAX);
    Decimal::from_count(quantity).times_rounded(unit)
}

/// The line for a whole period of an item.
pub(super) fn full_line(state: &State, item: &Item, period_s: (i64, i64)) -> Line {
    Line {
        item: item.id.clone(),
        price: item.price.clone(),
        amount: amount_of(state, &item.price, item.quantity),
        period_s,
        quantity: item.quantity,
        proration: false,
    }
}

/// Stores a draft, planned to be finalized an hour later, and answers its id.
pub(super) fn draft(
    call: &mut Call<'_>,
    subscription: &Subscription,
    reason: &str,
    lines: Vec<Line>,
) -> String {
    let id = call.id("in");
    let finalizes_at_s = call.now_s() + DRAFT_FOR_S;
    let invoice = render(call, &id, subscription, reason, &lines, finalizes_at_s);
    record(call, "invoice.created", &invoice, None);
    call.state.invoices.put(invoice);
    let timetable = call.state.timetable_of(&subscription.customer);
    timetable.insert((finalizes_at_s, Due::Invoice(id.clone())));
    id
}

fn render_line(call: &Call<'_>, invoice: &str, subscription: &Subscription, line: &Line) -> Value {
    let price = call.state.prices.get(&line.price).cloned().unwrap_or_default();
    json!({
        "id": call.id("il"),
        "object": "line_item",
        "amount": line.amount,
        "currency": subscription.currency,
        "description": null,
        "discount_amounts": [],
        "discountable": true,
        "discounts": [],
        "invoice": invoice,
        "livemode": false,
        "metadata": {},
        "parent": {
            "invoice_item_details": null,
            "subscription_item_details": {
                "invoice_item": null,
                "proration": line.proration,
                "proration_details": { "credited_items": null },
                "subscription": subscription.id,
                "subscription_item": line.item,
            },
            "type": "subscription_item_details",
        },
        "period": { "start": line.period_s.0, "end": line.period_s.1 },
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": { "price": line.price, "product": price["product"] },
            "type": "price_details",
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        "quantity": line.quantity,
        "quantity_decimal": line.quantity.map(|quantity| quantity.to_string()),
        "subscription": subscription.id,
        "subtotal": line.amount,
        "taxes": [],
    })
}

/// An invoice of a subscription as it is before it is finalized.
pub(super) fn render(
    call: &Call<'_>,
    id: &str,
    subscription: &Subscription,
    reason: &str,
    lines: &[Line],
    finalizes_at_s: i64,
) -> Value {
    let now_s = call.now_s();
    let lines = lines.iter().map(|line| render_line(call, id, subscription, line)).collect();
    let mut invoice = addressed(call, id, &subscription.customer, lines);
    let known = json!({
        "automatically_finalizes_at": finalizes_at_s,
        "billing_reason": reason,
        "collection_method": subscription.collection_method,
        "created": now_s,
        "currency": subscription.currency,
        "default_payment_method": subscription.default_payment_method,
        "parent": {
            "quote_details": null,
            "subscription_details": {
                "metadata": subscription.metadata,
                "subscription": subscription.id,
            },
            "type": "subscription_details",
        },
        "period_start": now_s,
        "period_end": now_s,
    });
    if let (Value::Object(invoice), Value::Object(known)) = (&mut invoice, known) {
        invoice.extend(known);
    }
    add_up(&mut invoice);
    invoice
}

/// A draft with its lines, addressed to a customer.
pub(super) fn addressed(call: &Call<'_>, id: &str, customer: &str, lines: Vec<Value>) -> Value {
    let holder = call.state.customers.get(customer).cloned().unwrap_or_default();
    let mut invoice = empty_invoice();
    let known = json!({
        "id": id,
        "customer": customer,
        "customer_email": holder["email"],
        "customer_name": holder["name"],
        "customer_phone": holder["phone"],
        "lines": {
            "object": "list",
            "data": lines,
            "has_more": false,
            "url": format!("/v1/invoices/{id}/lines"),
        },
        "test_clock": holder["test_clock"],
    });
    if let (Value::Object(invoice), Value::Object(known)) = (&mut invoice, known) {
        invoice.extend(known);
    }
    invoice
}

// Fields of a draft that do not depend on whom and what it bills.
const NULL_AT_FIRST: [&str; 28] = [
    "account_country",
    "account_name",
    "account_tax_ids",
    "application",
    "custom_fields",
    "customer_account",
    "customer_address",
    "customer_shipping",
    "default_source",
    "description",
    "due_date",
    "effective_at",
    "ending_balance",
    "footer",
    "from_invoice",
    "hosted_invoice_url",
    "invoice_pdf",
    "last_finalization_error",
    "latest_revision",
    "next_payment_attempt",
    "number",
    "on_behalf_of",
    "receipt_number",
    "rendering",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
    "webhooks_delivered_at",
];
const ZERO_AT_FIRST: [&str; 7] = [
    "amount_overpaid",
    "amount_paid",
    "amount_shipping",
    "attempt_count",
    "post_payment_credit_notes_amount",
    "pre_payment_credit_notes_amount",
    "starting_balance",
];
const EMPTY_AT_FIRST: [&str; 6] = [
    "customer_tax_ids",
    "default_tax_rates",
    "discounts",
    "total_discount_amounts",
    "total_pretax_credit_amounts",
    "total_taxes",
];

/// Everything of a draft that does not depend on whom and what it bills.
fn empty_invoice() -> Value {
    let mut invoice = json!({ "object": "invoice" });
    for field in NULL_AT_FIRST {
        invoice[field] = Value::Null;
    }
    for field in ZERO_AT_FIRST {
        invoice[field] = 0.into();
    }
    for field in EMPTY_AT_FIRST {
        invoice[field] = json!([]);
    }
    invoice["attempted"] = false.into();
    invoice["auto_advance"] = true.into();
    invoice["automatic_tax"] = json!({
        "disabled_reason": null, "enabled": false, "liability": null, "provider": null,
        "status": null,
    });
    invoice["customer_tax_exempt"] = "none".into();
    invoice["issuer"] = json!({ "type": "self" });
    invoice["livemode"] = false.into();
    invoice["metadata"] = json!({});
    invoice["payment_settings"] = json!({
        "default_mandate": null, "payment_method_options": null, "payment_method_types": null,
    });
    invoice["status"] = "draft".into();
    invoice["status_transitions"] = json!({
        "finalized_at": null, "marked_uncollectible_at": null, "paid_at": null, "voided_at": null,
    });
    invoice
}

/// The sums that follow from the lines. A negative total is owed by nobody.
pub(super) fn add_up(invoice: &mut Value) {
    let lines = invoice["lines"]["data"].as_array();
    let total: i64 = lines.into_iter().flatten().filter_map(|line| line["amount"].as_i64()).sum();
    for field in ["subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax"] {
        invoice[field] = total.into();
    }
    invoice["amount_due"] = total.max(0).into();
    invoice["amount_remaining"] = total.max(0).into();
}

/// Closes a draft whose hour is over, unless an endpoint has refused to hear that it was drafted:
/// then Stripe waits for it, up to three days.
pub(super) fn finalize_when_told(call: &mut Call<'_>, id: &str) {
    const LONGEST_S: i64 = 3 * DAY_S;
    let Some(mut invoice) = call.state.invoices.get(id).cloned() else { return };
    let age_s = call.now_s() - invoice["created"].as_i64().unwrap_or_default();
    if age_s >= LONGEST_S || !webhooks::was_refused(call.state, "invoice.created", id) {
        finalize(call, id);
        return;
    }
    let again_at_s = call.now_s() + DRAFT_FOR_S;
    invoice["automatically_finalizes_at"] = again_at_s.into();
    let customer = text(&invoice, "customer").to_owned();
    call.state.invoices.put(invoice);
    call.state.timetable_of(&customer).insert((again_at_s, Due::Invoice(id.to_owned())));
}

/// Closes a draft for good and, if the customer pays automatically, has it paid.
pub(super) fn finalize(call: &mut Call<'_>, id: &str) {
    let Some(mut invoice) = call.state.invoices.get(id).cloned() else { return };
    let subscription = subscription_of(call, &invoice);
    let pause = subscription.as_ref().map(|found| found.pause_collection["behavior"].clone());
    let pause = pause.as_ref().and_then(Value::as_str).unwrap_or_default();
    if pause == "keep_as_draft" {
        return;
    }
    close_draft(call, &mut invoice);
    record(call, "invoice.finalized", &invoice, None);
    call.state.invoices.put(invoice.clone());
    if pause == "void" {
        void(call, id);
    } else if pause == "mark_uncollectible" {
        invoice["status"] = "uncollectible".into();
        invoice["status_transitions"]["marked_uncollectible_at"] = call.now_s().into();
        record(call, "invoice.marked_uncollectible", &invoice, None);
        call.state.invoices.put(invoice);
    } else if invoice["collection_method"] != "charge_automatically" {
        record(call, "invoice.sent", &invoice, None);
    } else if subscription.is_some_and(|found| found.status != Status::Incomplete) {
        charge(call, id);
    }
}

/// Turns a draft into an open invoice, with the usage that counts for it.
fn close_draft(call: &mut Call<'_>, invoice: &mut Value) {
    let id = text(invoice, "id").to_owned();
    let customer = text(invoice, "customer").to_owned();
    if let Some(at_s) = invoice["automatically_finalizes_at"].as_i64() {
        call.state.timetable_of(&customer).remove(&(at_s, Due::Invoice(id.clone())));
    }
    bill_usage(call.state, invoice);
    add_up(invoice);
    let now_s = call.now_s();
    invoice["status"] = "open".into();
    invoice["automatically_finalizes_at"] = Value::Null;
    invoice["effective_at"] = now_s.into();
    invoice["ending_balance"] = 0.into();
    invoice["hosted_invoice_url"] = format!("{}/_sim/invoices/{id}", call.base_url).into();
    invoice["invoice_pdf"] = format!("{}/_sim/invoices/{id}/pdf", call.base_url).into();
    invoice["number"] = format!("SIM-{}", &id[id.len().saturating_sub(8)..].to_uppercase()).into();
    invoice["status_transitions"]["finalized_at"] = now_s.into();
}

/// Charges the customer's card for an open invoice.
pub(super) fn charge(call: &mut Call<'_>, id: &str) {
    let Some(invoice) = call.state.invoices.get(id).filter(|found| found["status"] == "open")
    else {
        return;
    };
    let outcome = match subscription_of(call, invoice) {
        Some(subscription) if invoice["amount_due"] != 0 => payments::outcome(call, &subscription),
        _ => Outcome::Paid,
    };
    conclude(call, id, outcome);
}

/// An attempt to pay an open invoice has ended so.
pub(super) fn conclude(call: &mut Call<'_>, id: &str, outcome: Outcome) {
    let Some(mut invoice) = call.state.invoices.get(id).cloned() else { return };
    if outcome == Outcome::Paid {
        settle(call, invoice.clone());
        life::after_charge(call, &invoice, outcome);
        return;
    }
    let attempts = invoice["attempt_count"].as_i64().unwrap_or(0) + 1;
    invoice["attempted"] = true.into();
    invoice["attempt_count"] = attempts.into();
    let again_at_s = retry_at_s(call, &invoice, attempts);
    invoice["next_payment_attempt"] = again_at_s.into();
    if let Some(at_s) = again_at_s {
        let customer = text(&invoice, "customer").to_owned();
        call.state.timetable_of(&customer).insert((at_s, Due::Retry(id.to_owned())));
    }
    call.state.invoices.put(invoice.clone());
    record(call, "invoice.payment_failed", &invoice, None);
    if outcome == Outcome::ActionRequired {
        record(call, "invoice.payment_action_required", &invoice, None);
    }
    life::after_charge(call, &invoice, outcome);
    if again_at_s.is_none() && attempts > 1 && invoice["billing_reason"] == "subscription_cycle" {
        life::give_up_payment(call, &invoice);
    }
}

/// When a failed payment is tried again: only a renewal's is, and only if there is a card.
fn retry_at_s(call: &Call<'_>, invoice: &Value, attempts: i64) -> Option<i64> {
    if invoice["billing_reason"] != "subscription_cycle" {
        return None;
    }
    let subscription = subscription_of(call, invoice)?;
    let own = &subscription.default_payment_method;
    payments::method_of(call, &subscription.customer, own)?;
    let place = usize::try_from(attempts - 1).ok()?;
    RETRY_AFTER_DAYS.get(place).map(|days| call.now_s() + days * DAY_S)
}

/// Fills in the lines of metered prices: usage whose own time lies in the line's period.
pub(super) fn bill_usage(state: &State, invoice: &mut Value) {
    let customer = text(invoice, "customer").to_owned();
    let Some(lines) = invoice["lines"]["data"].as_array_mut() else { return };
    for line in lines {
        let price = text(&line["pricing"]["price_details"], "price");
        let Some(price) = state.prices.get(price) else { continue };
        if price["recurring"]["usage_type"] != "metered" {
            continue;
        }
        let (Some(start_s), Some(end_s)) =
            (line["period"]["start"].as_i64(), line["period"]["end"].as_i64())
        else {
            continue;
        };
        let meter = text(&price["recurring"], "meter");
        let Some(meter) = state.meters.get(meter) else { continue };
        let used = meters::usage(state, meter, &customer, start_s..end_s);
        let unit = Decimal::parse(text(price, "unit_amount_decimal")).unwrap_or_default();
        // Stripe bills a negative total as nothing.
        let used = used.unwrap_or_default().max(Decimal::default());
        line["amount"] = used.times_rounded(unit).into();
        line["subtotal"] = line["amount"].clone();
        line["quantity_decimal"] = used.to_string().into();
    }
}

pub(super) fn subscription_of(call: &Call<'_>, invoice: &Value) -> Option<Subscription> {
    let id = text(&invoice["parent"]["subscription_details"], "subscription");
    call.state.subscriptions.get(id).cloned()
}

/// The payment went through.
fn settle(call: &mut Call<'_>, mut invoice: Value) {
    invoice["status"] = "paid".into();
    invoice["attempted"] = true.into();
    invoice["attempt_count"] = (invoice["attempt_count"].as_i64().unwrap_or(0) + 1).into();
    invoice["amount_paid"] = invoice["amount_due"].clone();
    invoice["amount_remaining"] = 0.into();
    invoice["next_payment_attempt"] = Value::Null;
    invoice["status_transitions"]["paid_at"] = call.now_s().into();
    record(call, "invoice.paid", &invoice, None);
    record(call, "invoice.payment_succeeded", &invoice, None);
    call.state.invoices.put(invoice);
}

pub(super) fn void(call: &mut Call<'_>, id: &str) {
    let Some(mut invoice) = call.state.invoices.get(id).cloned() else { return };
    invoice["status"] = "void".into();
    invoice["status_transitions"]["voided_at"] = call.now_s().into();
    record(call, "invoice.voided", &invoice, None);
    call.state.invoices.put(invoice);
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    call.state.invoices.get(id).cloned().ok_or_else(|| ApiError::no_such("invoice", id))
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let status = params.text("status")?;
    params.finish(&["collection_method", "customer_account", "due_date"])?;
    let invoices = call.state.invoices.iter().rev().cloned();
    page.cut("/v1/invoices", "invoice", invoices, |invoice| {
        let of = text(&invoice["parent"]["subscription_details"], "subscription");
        customer.as_ref().is_none_or(|id| text(invoice, "customer") == id)
            && subscription.as_ref().is_none_or(|id| of == id)
            && status.as_ref().is_none_or(|status| text(invoice, "status") == status)
    })
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    call.state.invoices.get(id).cloned().ok_or_else(|| ApiError::no_such("invoice", id))
}

/// The customer pays an open invoice, which brings an incomplete or overdue subscription back. A
/// card that declines is a 402.
pub(super) fn pay(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let method = params.text("payment_method")?;
    let out_of_band = params.boolean("paid_out_of_band")?.unwrap_or(false);
    params.boolean("off_session")?;
    params.finish(&["forgive", "mandate", "source"])?;
    let invoice = find(call, id)?;
    call.enter_time_of(text(&invoice, "customer"));
    match text(&invoice, "status") {
        "open" => {}
        "draft" => finalize(call, id),
        "paid" => return Err(ApiError::refused("Invoice is already paid")),
        status => {
            return Err(ApiError::refused(format!("A {status} invoice cannot be paid.")));
        }
    }
    let outcome = match method {
        _ if out_of_band => Outcome::Paid,
        Some(name) => {
            let customer = text(&invoice, "customer").to_owned();
            let method = payments::claim(call, &name, &customer, "payment_method")?;
            payments::outcome_of(call, &method)
        }
        None => explicit_outcome(call, &invoice),
    };
    conclude(call, id, outcome);
    match outcome.refusal() {
        Some(refusal) => Err(refusal),
        None => find(call, id),
    }
}

/// Who asks for a payment by name means it: a customer without a card pays by means unseen.
fn explicit_outcome(call: &Call<'_>, invoice: &Value) -> Outcome {
    let Some(subscription) = subscription_of(call, invoice) else { return Outcome::Paid };
    let own = &subscription.default_payment_method;
    match payments::method_of(call, &subscription.customer, own) {
        Some(method) => payments::outcome_of(call, &method),
        None => Outcome::Paid,
    }
}

/// Closes a draft before its hour is over.
pub(super) fn finalize_now(
    call: &mut Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    params.boolean("auto_advance")?;
    params.finish(&[])?;
    let invoice = find(call, id)?;
    if invoice["status"] != "draft" {
        return Err(ApiError::refused("This invoice is already finalized, you can't re-finalize."));
    }
    call.enter_time_of(text(&invoice, "customer"));
    finalize(call, id);
    find(call, id)
}

pub(super) fn void_now(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let invoice = find(call, id)?;
    if !matches!(text(&invoice, "status"), "open" | "uncollectible") {
        let message = "You can only pass in open invoices. This invoice isn't open.";
        return Err(ApiError::refused(message));
    }
    call.enter_time_of(text(&invoice, "customer"));
    void(call, id);
    find(call, id)
}
