//! Checkout sessions that start a subscription, and the customer who completes them.
//!
//! Checkout never changes a subscription: one that is completed beside a live subscription makes a
//! second one, as on Stripe.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Simulator;
use super::answer::ApiError;
use super::events::record;
use super::items::{ItemChange, check_items, new_item};
use super::life::{self, Status};
use super::params::{MetadataChange, Params};
use super::payments::{self, Card};
use super::state::{Call, Due, Page, exists, text};
use super::subscriptions::{self, Terms, blank, read_billing_mode};
use super::{customers, invoices};

const MINUTE_S: i64 = 60;
const DAY_S: i64 = 86_400;

/// Stripe's parameters of a session that the simulator refuses.
const NOT_SIMULATED: [&str; 38] = [
    "adaptive_pricing",
    "after_expiration",
    "allowed_payment_method_types",
    "automatic_tax",
    "branding_settings",
    "consent_collection",
    "currency",
    "custom_fields",
    "custom_text",
    "customer_account",
    "customer_creation",
    "customer_update",
    "discounts",
    "excluded_payment_method_types",
    "integration_identifier",
    "invoice_creation",
    "managed_payments",
    "name_collection",
    "optional_items",
    "origin_context",
    "payment_intent_data",
    "payment_method_configuration",
    "payment_method_data",
    "payment_method_options",
    "permissions",
    "phone_number_collection",
    "redirect_on_completion",
    "return_url",
    "saved_payment_method_options",
    "setup_intent_data",
    "shipping_address_collection",
    "shipping_options",
    "submit_type",
    "tax_id_collection",
    "ui_mode",
    "wallet_options",
    "billing_address_collection",
    "payment_method_collection",
];
const SUBSCRIPTION_NOT_SIMULATED: [&str; 9] = [
    "application_fee_percent",
    "billing_cycle_anchor",
    "billing_cycle_anchor_config",
    "default_tax_rates",
    "invoice_settings",
    "on_behalf_of",
    "pending_invoice_item_interval",
    "proration_behavior",
    "transfer_data",
];

/// How the customer pays on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckoutPayment {
    /// By card, at once.
    Card,
    /// By bank debit, which is known only later: see [`Simulator::settle_checkout`].
    Delayed,
    /// By a card that is declined: the page says so and stays open for another one.
    Declined,
    /// By a card whose holder does not confirm the payment, with the same outcome.
    Unconfirmed,
}

impl CheckoutPayment {
    /// What the page says instead of being done.
    fn refusal(self) -> Option<ApiError> {
        match self {
            Self::Card | Self::Delayed => None,
            Self::Declined => payments::Outcome::Declined.refusal(),
            Self::Unconfirmed => payments::Outcome::ActionRequired.refusal(),
        }
    }
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let mode = params.word("mode", &["payment", "setup", "subscription"])?;
    let success_url = params.text("success_url")?;
    let cancel_url = params.text("cancel_url")?;
    let customer = params.text("customer")?;
    let email = params.text("customer_email")?;
    let reference = params.text("client_reference_id")?;
    let metadata = MetadataChange::fresh(params.metadata()?);
    let lifetime_s = params.integer("expires_at")?;
    let allow_promotion_codes = params.boolean("allow_promotion_codes")?;
    let locale = params.text("locale")?;
    let lines = read_lines(&mut params)?;
    let data = read_subscription_data(&mut params)?;
    params.finish(&NOT_SIMULATED)?;
    match mode {
        Some("subscription") => {}
        Some(_) => return Err(ApiError::not_simulated("mode")),
        None => return Err(ApiError::missing("mode")),
    }
    if let Some(id) = &customer {
        call.customer(id, "customer")?;
        call.enter_time_of(id);
        if email.is_some() {
            let message = "You may only specify one of these parameters: customer, customer_email.";
            return Err(ApiError::invalid("customer_email", message));
        }
    }
    let success_url = success_url.ok_or_else(|| ApiError::missing("success_url"))?;
    let now_s = call.now_s();
    let expires_at_s = lifetime_s.unwrap_or(now_s + DAY_S);
    if !(now_s + 30 * MINUTE_S..=now_s + DAY_S).contains(&expires_at_s) {
        return Err(ApiError::invalid(
            "expires_at",
            "The `expires_at` timestamp must be at least 30 minutes and at most 24 hours from \
             Checkout Session creation.",
        ));
    }
    let (currency, total) = check_lines(call, &lines)?;
    let id = call.id("cs_test");
    let mut session = empty_session();
    let known = json!({
        "id": id,
        "allow_promotion_codes": allow_promotion_codes,
        "amount_subtotal": total,
        "amount_total": total,
        "cancel_url": cancel_url,
        "client_reference_id": reference,
        "created": now_s,
        "currency": currency,
        "customer": customer,
        "customer_creation": customer.is_none().then_some("always"),
        "customer_email": email,
        "expires_at": expires_at_s,
        "locale": locale,
        "metadata": metadata,
        "success_url": success_url,
        "url": format!("{}/_sim/checkout/{id}", call.base_url),
    });
    if let (Value::Object(session), Value::Object(known)) = (&mut session, known) {
        session.extend(known);
    }
    call.state.checkout_sessions.put(session.clone());
    call.state.checkout_orders.insert(id.clone(), Order { lines, data });
    let timetable = call.state.timetable_of(customer.as_deref().unwrap_or_default());
    timetable.insert((expires_at_s, Due::Checkout(id)));
    Ok(session)
}

/// What a session sells: kept beside it, for the session does not show it.
#[derive(Clone)]
pub(super) struct Order {
    lines: Vec<(String, Option<u64>)>,
    data: SubscriptionData,
}

#[derive(Clone, Default)]
struct SubscriptionData {
    billing_mode: Option<&'static str>,
    metadata: Option<MetadataChange>,
    description: Option<Value>,
    trial_days: Option<u64>,
    trial_end_s: Option<i64>,
    without_card: Option<&'static str>,
}

/// Prices and quantities.
fn read_lines(params: &mut Params) -> Result<Vec<(String, Option<u64>)>, ApiError> {
    let mut lines = Vec::new();
    for mut line in params.sections("line_items")? {
        lines.push((line.required_text("price")?, line.count("quantity")?));
        line.finish(&[
            "adjustable_quantity",
            "dynamic_tax_rates",
            "metadata",
            "price_data",
            "tax_rates",
        ])?;
    }
    if lines.is_empty() { Err(params.missing("line_items")) } else { Ok(lines) }
}

fn read_subscription_data(params: &mut Params) -> Result<SubscriptionData, ApiError> {
    let Some(mut data) = params.section("subscription_data")? else {
        return Ok(SubscriptionData::default());
    };
    let read = SubscriptionData {
        billing_mode: Some(read_billing_mode(&mut data)?),
        metadata: data.metadata()?,
        description: data.clearable("description")?,
        trial_days: data.count("trial_period_days")?,
        trial_end_s: data.integer("trial_end")?,
        without_card: subscriptions::read_trial_settings(&mut data)?,
    };
    data.finish(&SUBSCRIPTION_NOT_SIMULATED)?;
    Ok(read)
}

/// The currency and the amount that is due at once.
fn check_lines(
    call: &Call<'_>,
    lines: &[(String, Option<u64>)],
) -> Result<(String, i64), ApiError> {
    let (mut currency, mut total) = (String::new(), 0_i64);
    for (place, (id, quantity)) in lines.iter().enumerate() {
        let param = format!("line_items[{place}][price]");
        let price = call.state.prices.get(id);
        let price = price.ok_or_else(|| ApiError::no_such_param("price", id, &param))?;
        let metered = price["recurring"]["usage_type"] == "metered";
        let quantity_param = format!("line_items[{place}][quantity]");
        if metered && quantity.is_some() {
            let message = "Quantity should not be specified where usage_type is `metered`.";
            return Err(ApiError::invalid(&quantity_param, message));
        }
        if !metered && quantity.is_none() {
            return Err(ApiError::missing(&quantity_param));
        }
        text(price, "currency").clone_into(&mut currency);
        total = total.saturating_add(invoices::amount_of(call.state, id, *quantity));
    }
    Ok((currency, total))
}

/// A session before anything of it is known.
fn empty_session() -> Value {
    const NULL_AT_FIRST: [&str; 33] = [
        "adaptive_pricing",
        "after_expiration",
        "allow_promotion_codes",
        "allowed_payment_method_types",
        "billing_address_collection",
        "client_secret",
        "collected_information",
        "consent",
        "consent_collection",
        "currency_conversion",
        "customer_account",
        "customer_details",
        "discounts",
        "integration_identifier",
        "invoice",
        "invoice_creation",
        "managed_payments",
        "origin_context",
        "payment_intent",
        "payment_link",
        "payment_method_configuration_details",
        "permissions",
        "recovered_from",
        "saved_payment_method_options",
        "setup_intent",
        "shipping_address_collection",
        "shipping_cost",
        "submit_type",
        "subscription",
        "wallet_options",
        "cancel_url",
        "client_reference_id",
        "locale",
    ];
    let mut session = json!({
        "object": "checkout.session",
        "automatic_tax": { "enabled": false, "liability": null, "provider": null, "status": null },
        "custom_fields": [],
        "custom_text": {
            "after_submit": null, "shipping_address": null, "submit": null,
            "terms_of_service_acceptance": null,
        },
        "livemode": false,
        "mode": "subscription",
        "payment_method_collection": "always",
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "shipping_options": [],
        "status": "open",
        "total_details": { "amount_discount": 0, "amount_shipping": 0, "amount_tax": 0 },
        "ui_mode": "hosted_page",
    });
    for field in NULL_AT_FIRST {
        session[field] = Value::Null;
    }
    session
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let session = call.state.checkout_sessions.get(id).cloned();
    session.ok_or_else(|| ApiError::no_such("checkout.session", id))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let status = params.word("status", &["complete", "expired", "open"])?;
    params.finish(&["customer_account", "customer_details", "payment_intent", "payment_link"])?;
    let sessions = call.state.checkout_sessions.iter().rev().cloned();
    page.cut("/v1/checkout/sessions", "checkout session", sessions, |session| {
        customer.as_ref().is_none_or(|id| session["customer"] == id.as_str())
            && subscription.as_ref().is_none_or(|id| session["subscription"] == id.as_str())
            && status.is_none_or(|status| session["status"] == status)
    })
}

pub(super) fn expire(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let session = find(call, id)?;
    if session["status"] != "open" {
        let status = text(&session, "status");
        let message = format!(
            "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout \
             Session has a status of {status}."
        );
        return Err(ApiError::refused(message));
    }
    Ok(close(call, session, "expired"))
}

/// Nobody completed the session in time.
pub(super) fn lapse(call: &mut Call<'_>, id: &str) {
    if let Some(session) = call.state.checkout_sessions.get(id).cloned()
        && session["status"] == "open"
    {
        close(call, session, "expired");
    }
}

fn close(call: &mut Call<'_>, mut session: Value, status: &str) -> Value {
    session["status"] = status.into();
    session["url"] = Value::Null;
    if status == "expired" {
        record(call, "checkout.session.expired", &session, None);
    }
    call.state.checkout_sessions.put(session.clone());
    session
}

/// The customer fills in the page and pays.
pub(super) fn complete(
    call: &mut Call<'_>,
    id: &str,
    payment: CheckoutPayment,
) -> Result<Value, ApiError> {
    let mut session = find(call, id)?;
    if session["status"] != "open" {
        return Err(ApiError::refused("The Checkout Session is not open."));
    }
    if let Some(refusal) = payment.refusal() {
        return Err(refusal);
    }
    let customer = match session["customer"].as_str() {
        Some(customer) => customer.to_owned(),
        None => make_customer(call, &session)?,
    };
    call.customer(&customer, "customer")?;
    call.enter_time_of(&customer);
    let order = call.state.checkout_orders.get(id).cloned();
    let order = order.ok_or_else(|| ApiError::no_such("checkout.session", id))?;
    let method = payments::attach_card(call, Card::Works.test_name(), &customer)?["id"].clone();
    let subscription = subscribe(call, &customer, &order, method, payment)?;
    let details = call.state.customers.get(&customer).filter(exists).cloned().unwrap_or_default();
    session["customer"] = customer.into();
    session["customer_details"] = json!({
        "address": null, "business_name": null, "email": details["email"],
        "individual_name": null, "name": details["name"], "phone": null, "tax_exempt": "none",
        "tax_ids": [],
    });
    session["subscription"] = subscription["id"].clone();
    session["invoice"] = subscription["latest_invoice"].clone();
    session["payment_status"] = match (payment, subscription["status"].as_str()) {
        (CheckoutPayment::Delayed, _) => "unpaid",
        (_, Some("trialing")) => "no_payment_required",
        _ => "paid",
    }
    .into();
    let session = close(call, session, "complete");
    record(call, "checkout.session.completed", &session, None);
    Ok(session)
}

fn make_customer(call: &mut Call<'_>, session: &Value) -> Result<String, ApiError> {
    let email = session["customer_email"].as_str().unwrap_or("someone@example.com");
    let made = customers::create(call, Params::from_pairs(&[("email", email)]))?;
    Ok(text(&made, "id").to_owned())
}

/// Starts the subscription: incomplete first, active once it is paid.
fn subscribe(
    call: &mut Call<'_>,
    customer: &str,
    order: &Order,
    method: Value,
    payment: CheckoutPayment,
) -> Result<Value, ApiError> {
    let now_s = call.now_s();
    let data = order.data.clone();
    let trial_days = data.trial_days.map(|days| now_s + days.min(730) as i64 * DAY_S);
    let terms = Terms {
        customer: customer.to_owned(),
        trial_end_s: data.trial_end_s.or(trial_days).filter(|end_s| *end_s > now_s),
        anchor_s: None,
        billing_mode: data.billing_mode.unwrap_or("flexible"),
        metadata: data.metadata,
        default_payment_method: method,
        description: data.description.unwrap_or_default(),
    };
    let mut subscription = blank(call, terms);
    subscription.without_card = data.without_card.unwrap_or(subscription.without_card);
    for (place, (price, quantity)) in order.lines.iter().enumerate() {
        let wanted = ItemChange {
            path: format!("line_items[{place}]"),
            id: None,
            price: Some(price.clone()),
            quantity: *quantity,
            deleted: false,
            metadata: None,
        };
        let item = new_item(call, &subscription, wanted)?;
        subscription.items.push(item);
    }
    let price = call.state.prices.get(&subscription.items[0].price);
    subscription.currency =
        price.map(|price| text(price, "currency").to_owned()).unwrap_or_default();
    check_items(call, &subscription)?;
    let id = subscription.id.clone();
    let started = subscriptions::start(call, subscription, "default_incomplete")?;
    let invoice = text(&started, "latest_invoice").to_owned();
    if started["status"] == Status::Incomplete.as_str() {
        match payment {
            CheckoutPayment::Card => invoices::charge(call, &invoice),
            // The bank has taken the order: Stripe grants the subscription meanwhile.
            CheckoutPayment::Delayed => activate(call, &id),
            // Refused before anything was made.
            CheckoutPayment::Declined | CheckoutPayment::Unconfirmed => {}
        }
    }
    Ok(subscriptions::render(call, &id))
}

fn activate(call: &mut Call<'_>, id: &str) {
    if let Some(mut subscription) = call.state.subscriptions.get(id).cloned() {
        subscription.status = Status::Active;
        life::change(call, subscription);
    }
}

/// The bank has said whether the delayed payment of a session came through.
fn settle(call: &mut Call<'_>, id: &str, succeeded: bool) -> Result<(), ApiError> {
    let mut session = find(call, id)?;
    let invoice = text(&session, "invoice").to_owned();
    call.enter_time_of(text(&session, "customer"));
    if succeeded {
        session["payment_status"] = "paid".into();
        call.state.checkout_sessions.put(session.clone());
        invoices::conclude(call, &invoice, payments::Outcome::Paid);
        record(call, "checkout.session.async_payment_succeeded", &session, None);
    } else {
        invoices::conclude(call, &invoice, payments::Outcome::Declined);
        record(call, "checkout.session.async_payment_failed", &session, None);
    }
    Ok(())
}

impl Simulator {
    /// The customer completes a Checkout session, as on the page that its `url` shows; answers the
    /// completed session. Fails if it is not open, or if the payment does.
    pub fn complete_checkout(&self, id: &str, payment: CheckoutPayment) -> anyhow::Result<Value> {
        self.with_call(|call| complete(call, id, payment))
            .map_err(|error| anyhow::anyhow!("{}", error.answer().body))
            .with_context(|| format!("cannot complete {id}"))
    }

    /// The delayed payment of a completed session came through, or did not. Fails if there is no
    /// such session.
    pub fn settle_checkout(&self, id: &str, succeeded: bool) -> anyhow::Result<()> {
        self.with_call(|call| settle(call, id, succeeded))
            .map_err(|error| anyhow::anyhow!("{}", error.answer().body))
    }
}
