//! Customers. A deleted one leaves a stub behind, as on Stripe.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::catalog::apply;
use super::events::{record, record_update};
use super::life::{self, Subscription};
use super::params::{MetadataChange, Params};
use super::state::{Call, Page, exists, text};

const TEXTS: [&str; 4] = ["description", "email", "name", "phone"];

const NOT_SIMULATED: [&str; 18] = [
    "address",
    "balance",
    "business_name",
    "cash_balance",
    "default_source",
    "individual_name",
    "invoice_prefix",
    "invoice_settings",
    "next_invoice_sequence",
    "payment_method",
    "preferred_locales",
    "shipping",
    "source",
    "tax",
    "tax_exempt",
    "tax_id_data",
    "test_clock",
    "validate",
];

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let metadata = MetadataChange::fresh(params.metadata()?);
    let id = call.id("cus");
    let mut customer = json!({
        "id": id,
        "object": "customer",
        "address": null,
        "balance": 0,
        "created": call.now_s(),
        "currency": null,
        "customer_account": null,
        "default_source": null,
        "delinquent": false,
        "discount": null,
        "invoice_prefix": id[id.len().saturating_sub(8)..].to_uppercase(),
        "invoice_settings": {
            "custom_fields": null,
            "default_payment_method": null,
            "footer": null,
            "rendering_options": null,
        },
        "livemode": false,
        "metadata": metadata,
        "next_invoice_sequence": 1,
        "preferred_locales": [],
        "shipping": null,
        "tax_exempt": "none",
        "test_clock": null,
    });
    for field in TEXTS {
        customer[field] = params.clearable(field)?.unwrap_or_default();
    }
    params.finish(&NOT_SIMULATED)?;
    record(call, "customer.created", &customer, None);
    call.state.customers.put(customer.clone());
    Ok(customer)
}

/// A live customer named in the address.
fn live(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let customer = call.state.customers.get(id).filter(exists);
    customer.cloned().ok_or_else(|| ApiError::no_such("customer", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    call.state.customers.get(id).cloned().ok_or_else(|| ApiError::no_such("customer", id))
}

pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let metadata = params.metadata()?;
    let mut changes = Vec::new();
    for field in TEXTS {
        changes.push((field, params.clearable(field)?));
    }
    params.finish(&NOT_SIMULATED)?;
    let before = live(call, id)?;
    let mut customer = before.clone();
    apply(&mut customer, changes, metadata.as_ref());
    record_update(call, "customer.updated", &before, &customer);
    call.state.customers.put(customer.clone());
    Ok(customer)
}

/// Deletes a customer, which cancels its subscriptions at once.
pub(super) fn delete(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let customer = live(call, id)?;
    let running: Vec<Subscription> = call
        .state
        .subscriptions
        .iter()
        .filter(|subscription| subscription.customer == id && !subscription.status.is_terminal())
        .cloned()
        .collect();
    for subscription in running {
        life::end(call, subscription);
    }
    record(call, "customer.deleted", &customer, None);
    let stub = json!({ "id": id, "object": "customer", "deleted": true });
    call.state.customers.put(stub.clone());
    Ok(stub)
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let email = params.text("email")?;
    params.finish(&["test_clock"])?;
    let customers = call.state.customers.iter().rev().cloned();
    page.cut("/v1/customers", "customer", customers, |customer| {
        exists(&customer) && email.as_ref().is_none_or(|email| text(customer, "email") == email)
    })
}
