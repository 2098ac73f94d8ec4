//! Invoices that belong to no subscription, and the items they bill: enough for a webhook about an
//! invoice that is none of the daemon's business.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::events::record;
use super::invoices;
use super::params::{MetadataChange, Params};
use super::state::{Call, text};

const ITEM_NOT_SIMULATED: [&str; 15] = [
    "customer_account",
    "discountable",
    "discounts",
    "invoice",
    "period",
    "price_data",
    "pricing",
    "quantity",
    "quantity_decimal",
    "subscription",
    "tax_behavior",
    "tax_code",
    "tax_rates",
    "unit_amount_decimal",
    "expand",
];
const NOT_SIMULATED: [&str; 26] = [
    "account_tax_ids",
    "application_fee_amount",
    "automatic_tax",
    "automatically_finalizes_at",
    "currency",
    "custom_fields",
    "customer_account",
    "days_until_due",
    "default_payment_method",
    "default_source",
    "default_tax_rates",
    "discounts",
    "due_date",
    "effective_at",
    "footer",
    "from_invoice",
    "issuer",
    "number",
    "on_behalf_of",
    "payment_settings",
    "rendering",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
    "subscription",
    "transfer_data",
];

/// Puts an amount on the customer's next invoice.
pub(super) fn create_item(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required_text("customer")?;
    let amount = params.integer("amount")?.ok_or_else(|| params.missing("amount"))?;
    let currency = params.required_text("currency")?.to_lowercase();
    let description = params.clearable("description")?.unwrap_or_default();
    let metadata = MetadataChange::fresh(params.metadata()?);
    params.finish(&ITEM_NOT_SIMULATED)?;
    call.customer(&customer, "customer")?;
    call.enter_time_of(&customer);
    let now_s = call.now_s();
    let item = json!({
        "id": call.id("ii"),
        "object": "invoiceitem",
        "amount": amount,
        "currency": currency,
        "customer": customer,
        "customer_account": null,
        "date": now_s,
        "description": description,
        "discountable": true,
        "discounts": [],
        "invoice": null,
        "livemode": false,
        "metadata": metadata,
        "parent": null,
        "period": { "start": now_s, "end": now_s },
        "pricing": null,
        "proration": false,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": call.state.clock_of(&customer),
    });
    record(call, "invoiceitem.created", &item, None);
    call.state.invoice_items.put(item.clone());
    Ok(item)
}

/// Drafts an invoice of the items that wait for the customer, if it is told to include them.
pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required_text("customer")?;
    let description = params.clearable("description")?.unwrap_or_default();
    let metadata = MetadataChange::fresh(params.metadata()?);
    let include = params.word("pending_invoice_items_behavior", &["exclude", "include"])?;
    let ways = ["charge_automatically", "send_invoice"];
    let way = params.word("collection_method", &ways)?.unwrap_or("charge_automatically");
    let auto_advance = params.boolean("auto_advance")?.unwrap_or(false);
    params.finish(&NOT_SIMULATED)?;
    call.customer(&customer, "customer")?;
    call.enter_time_of(&customer);
    let id = call.id("in");
    let waits = |item: &&Value| item["customer"] == customer.as_str() && item["invoice"].is_null();
    let mut items: Vec<Value> = Vec::new();
    if include == Some("include") {
        items = call.state.invoice_items.iter().filter(waits).cloned().collect();
    }
    let mut lines = Vec::new();
    for item in &mut items {
        item["invoice"] = id.as_str().into();
        lines.push(render_line(call, &id, item));
        call.state.invoice_items.put(item.clone());
    }
    let currency = items.first().map_or("usd", |item| text(item, "currency")).to_owned();
    let now_s = call.now_s();
    let mut invoice = invoices::addressed(call, &id, &customer, lines);
    let known = json!({
        "auto_advance": auto_advance,
        "automatically_finalizes_at": null,
        "billing_reason": "manual",
        "collection_method": way,
        "created": now_s,
        "currency": currency,
        "default_payment_method": null,
        "description": description,
        "metadata": metadata,
        "parent": null,
        "period_end": now_s,
        "period_start": now_s,
    });
    if let (Value::Object(invoice), Value::Object(known)) = (&mut invoice, known) {
        invoice.extend(known);
    }
    invoices::add_up(&mut invoice);
    record(call, "invoice.created", &invoice, None);
    call.state.invoices.put(invoice.clone());
    Ok(invoice)
}

fn render_line(call: &Call<'_>, invoice: &str, item: &Value) -> Value {
    json!({
        "id": call.id("il"),
        "object": "line_item",
        "amount": item["amount"],
        "currency": item["currency"],
        "description": item["description"],
        "discount_amounts": [],
        "discountable": true,
        "discounts": [],
        "invoice": invoice,
        "livemode": false,
        "metadata": {},
        "parent": {
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": false,
                "proration_details": { "credited_items": null },
                "subscription": null,
            },
            "subscription_item_details": null,
            "type": "invoice_item_details",
        },
        "period": item["period"],
        "pretax_credit_amounts": [],
        "pricing": null,
        "quantity": 1,
        "quantity_decimal": "1",
        "subscription": null,
        "subtotal": item["amount"],
        "taxes": [],
    })
}
