//! Customers. A deleted one leaves a stub behind, as on Stripe.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::catalog::apply;
use super::events::{record, record_update};
use super::life::{self, Subscription};
use super::params::{MetadataChange, Params};
use super::payments;
use super::state::{Call, Page, exists, text};

const TEXTS: [&str; 4] = ["description", "email", "name", "phone"];

const NOT_SIMULATED: [&str; 15] = [
    "address",
    "balance",
    "business_name",
    "cash_balance",
    "default_source",
    "individual_name",
    "invoice_prefix",
    "next_invoice_sequence",
    "preferred_locales",
    "shipping",
    "source",
    "tax",
    "tax_exempt",
    "tax_id_data",
    "validate",
];

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let metadata = MetadataChange::fresh(params.metadata()?);
    let cards = read_cards(&mut params)?;
    let test_clock = params.text("test_clock")?;
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
        "test_clock": test_clock,
    });
    for field in TEXTS {
        customer[field] = params.clearable(field)?.unwrap_or_default();
    }
    params.finish(&NOT_SIMULATED)?;
    if let Some(clock) = &test_clock
        && call.state.test_clocks.get(clock).is_none()
    {
        return Err(ApiError::no_such_param("test clock", clock, "test_clock"));
    }
    customer["invoice_settings"]["default_payment_method"] = claim_cards(call, &cards, &id)?;
    call.state.customers.put(customer.clone());
    call.enter_time_of(&id);
    record(call, "customer.created", &customer, None);
    Ok(customer)
}

/// Payment methods that a request names: one to attach, and one to make the default.
#[derive(Default)]
struct Cards {
    attached: Option<String>,
    default: Option<String>,
}

fn read_cards(params: &mut Params) -> Result<Cards, ApiError> {
    let attached = params.text("payment_method")?;
    let Some(mut settings) = params.section("invoice_settings")? else {
        return Ok(Cards { attached, default: None });
    };
    let default = settings.text("default_payment_method")?;
    settings.finish(&["custom_fields", "footer", "rendering_options"])?;
    Ok(Cards { attached, default })
}

/// The id of the payment method that becomes the default; null if none does. A test card that is
/// named twice is one card.
fn claim_cards(call: &mut Call<'_>, cards: &Cards, customer: &str) -> Result<Value, ApiError> {
    let attached = match &cards.attached {
        Some(name) => Some(payments::claim(call, name, customer, "payment_method")?),
        None => None,
    };
    let param = "invoice_settings[default_payment_method]";
    Ok(match &cards.default {
        None => Value::Null,
        same if *same == cards.attached => attached.into(),
        Some(name) => payments::claim(call, name, customer, param)?.into(),
    })
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
    let cards = read_cards(&mut params)?;
    let mut changes = Vec::new();
    for field in TEXTS {
        changes.push((field, params.clearable(field)?));
    }
    params.finish(&NOT_SIMULATED)?;
    let before = live(call, id)?;
    if cards.attached.is_some() {
        // Only for making a customer: later a card is attached by its own call.
        return Err(ApiError::unknown_parameters(&["payment_method".to_owned()]));
    }
    call.enter_time_of(id);
    let default = claim_cards(call, &cards, id)?;
    let mut customer = before.clone();
    apply(&mut customer, changes, metadata.as_ref());
    if !default.is_null() {
        customer["invoice_settings"]["default_payment_method"] = default;
    }
    record_update(call, "customer.updated", &before, &customer);
    call.state.customers.put(customer.clone());
    Ok(customer)
}

/// Deletes a customer, which cancels its subscriptions at once.
pub(super) fn delete(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let customer = live(call, id)?;
    call.enter_time_of(id);
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
    let test_clock = params.text("test_clock")?;
    params.finish(&[])?;
    let customers = call.state.customers.iter().rev().cloned();
    // What lives by a test clock is hidden from who does not ask for it.
    page.cut("/v1/customers", "customer", customers, |customer| {
        exists(&customer)
            && customer["test_clock"].as_str() == test_clock.as_deref()
            && email.as_ref().is_none_or(|email| text(customer, "email") == email)
    })
}
