//! Invoices: drafted at renewal, finalized an hour later, paid at once.
//!
//! Money is in minor units of the currency. No tax, no discounts, no customer balance.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::decimal::Decimal;
use super::events::record;
use super::life::{self, Item, Status, Subscription};
use super::meters;
use super::params::Params;
use super::state::{Call, Due, Page, State, text};

/// How long a renewal's invoice stays open for late usage.
const DRAFT_FOR_S: i64 = 3600;

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
    call.state.schedule.insert((finalizes_at_s, Due::Invoice(id.clone())));
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

fn render(
    call: &Call<'_>,
    id: &str,
    subscription: &Subscription,
    reason: &str,
    lines: &[Line],
    finalizes_at_s: i64,
) -> Value {
    let now_s = call.now_s();
    let lines: Vec<Value> =
        lines.iter().map(|line| render_line(call, id, subscription, line)).collect();
    let customer = call.state.customers.get(&subscription.customer).cloned().unwrap_or_default();
    let mut invoice = empty_invoice();
    let known = json!({
        "id": id,
        "automatically_finalizes_at": finalizes_at_s,
        "billing_reason": reason,
        "collection_method": subscription.collection_method,
        "created": now_s,
        "currency": subscription.currency,
        "customer": subscription.customer,
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "default_payment_method": subscription.default_payment_method,
        "lines": {
            "object": "list",
            "data": lines,
            "has_more": false,
            "url": format!("/v1/invoices/{id}/lines"),
        },
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

// Fields of a draft that do not depend on whom and what it bills.
const NULL_AT_FIRST: [&str; 29] = [
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
    "test_clock",
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
fn add_up(invoice: &mut Value) {
    let lines = invoice["lines"]["data"].as_array();
    let total: i64 = lines.into_iter().flatten().filter_map(|line| line["amount"].as_i64()).sum();
    for field in ["subtotal", "subtotal_excluding_tax", "total", "total_excluding_tax"] {
        invoice[field] = total.into();
    }
    invoice["amount_due"] = total.max(0).into();
    invoice["amount_remaining"] = total.max(0).into();
}

/// Closes a draft for good and, if the customer pays automatically, has it paid.
pub(super) fn finalize(call: &mut Call<'_>, id: &str) {
    let Some(mut invoice) = call.state.invoices.get(id).cloned() else { return };
    if let Some(at_s) = invoice["automatically_finalizes_at"].as_i64() {
        call.state.schedule.remove(&(at_s, Due::Invoice(id.to_owned())));
    }
    bill_usage(call.state, &mut invoice);
    add_up(&mut invoice);
    let now_s = call.now_s();
    invoice["status"] = "open".into();
    invoice["automatically_finalizes_at"] = Value::Null;
    invoice["effective_at"] = now_s.into();
    invoice["ending_balance"] = 0.into();
    invoice["number"] = format!("SIM-{}", &id[id.len().saturating_sub(8)..].to_uppercase()).into();
    invoice["status_transitions"]["finalized_at"] = now_s.into();
    record(call, "invoice.finalized", &invoice, None);
    call.state.invoices.put(invoice.clone());
    let status = subscription_of(call, &invoice).map(|subscription| subscription.status);
    if invoice["collection_method"] != "charge_automatically" {
        record(call, "invoice.sent", &invoice, None);
        return;
    }
    match status {
        Some(Status::Active | Status::Trialing) => settle(call, invoice),
        Some(Status::PastDue | Status::Unpaid) => {
            invoice["attempted"] = true.into();
            invoice["attempt_count"] = 1.into();
            call.state.invoices.put(invoice.clone());
            record(call, "invoice.payment_failed", &invoice, None);
        }
        // An incomplete first payment waits for the customer.
        _ => {}
    }
}

/// Fills in the lines of metered prices: usage whose own time lies in the line's period.
fn bill_usage(state: &State, invoice: &mut Value) {
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

fn subscription_of(call: &Call<'_>, invoice: &Value) -> Option<Subscription> {
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

/// The customer pays an open invoice, which brings an incomplete or overdue subscription back.
pub(super) fn pay(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[
        "forgive",
        "mandate",
        "off_session",
        "paid_out_of_band",
        "payment_method",
        "source",
    ])?;
    let Some(invoice) = call.state.invoices.get(id).cloned() else {
        return Err(ApiError::no_such("invoice", id));
    };
    match text(&invoice, "status") {
        "open" => {}
        "paid" => return Err(ApiError::refused("Invoice is already paid")),
        status => {
            return Err(ApiError::refused(format!("A {status} invoice cannot be paid.")));
        }
    }
    settle(call, invoice.clone());
    if let Some(mut subscription) = subscription_of(call, &invoice)
        && matches!(subscription.status, Status::Incomplete | Status::PastDue | Status::Unpaid)
    {
        subscription.status = Status::Active;
        life::change(call, subscription);
    }
    Ok(call.state.invoices.get(id).cloned().unwrap_or_default())
}
