//! The customer portal: configurations, sessions with deep links, and the customer who confirms.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Simulator;
use super::answer::ApiError;
use super::catalog::apply;
use super::events::{record, record_update};
use super::life::Status;
use super::params::{MetadataChange, Params};
use super::state::{Call, Page, text};
use super::{schedules, subscriptions, updates};

const PRORATIONS: [&str; 3] = ["always_invoice", "create_prorations", "none"];
/// How many products a configuration may let customers move between.
const MAX_PRODUCTS: usize = 10;

/// Features as they are when nobody says otherwise.
fn default_features() -> Value {
    json!({
        "customer_update": { "allowed_updates": [], "enabled": false },
        "invoice_history": { "enabled": false },
        "payment_method_update": { "enabled": false, "payment_method_configuration": null },
        "subscription_cancel": {
            "cancellation_reason": { "enabled": false, "feedback_options": null, "options": [] },
            "enabled": false,
            "mode": "at_period_end",
            "proration_behavior": "none",
        },
        "subscription_update": {
            "billing_cycle_anchor": null,
            "default_allowed_updates": [],
            "enabled": false,
            "products": [],
            "proration_behavior": "none",
            "schedule_at_period_end": { "conditions": [] },
            "trial_update_behavior": "end_trial",
        },
    })
}

pub(super) fn create_configuration(
    call: &mut Call<'_>,
    mut params: Params,
) -> Result<Value, ApiError> {
    let features = params.section("features")?.ok_or_else(|| params.missing("features"))?;
    let mut configuration = json!({
        "id": call.id("bpc"),
        "object": "billing_portal.configuration",
        "active": true,
        "application": null,
        "business_profile": {
            "headline": null, "privacy_policy_url": null, "terms_of_service_url": null,
        },
        "created": call.now_s(),
        "default_return_url": null,
        "features": default_features(),
        // Only what is saved in the Dashboard is the default.
        "is_default": false,
        "livemode": false,
        "login_page": { "enabled": false, "url": null },
        "metadata": {},
        "name": null,
        "updated": call.now_s(),
    });
    read_features(call, features, &mut configuration["features"])?;
    read_settings(&mut params, &mut configuration)?;
    params.finish(&["login_page"])?;
    record(call, "billing_portal.configuration.created", &configuration, None);
    call.state.portal_configurations.put(configuration.clone());
    Ok(configuration)
}

pub(super) fn update_configuration(
    call: &mut Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    let before = find_configuration(call, id)?;
    let mut after = before.clone();
    if let Some(features) = params.section("features")? {
        read_features(call, features, &mut after["features"])?;
    }
    let active = params.boolean("active")?.map(Value::from);
    read_settings(&mut params, &mut after)?;
    params.finish(&["login_page"])?;
    apply(&mut after, vec![("active", active)], None);
    if after != before {
        after["updated"] = call.now_s().into();
    }
    record_update(call, "billing_portal.configuration.updated", &before, &after);
    call.state.portal_configurations.put(after.clone());
    Ok(after)
}

/// What is set beside the features.
fn read_settings(params: &mut Params, configuration: &mut Value) -> Result<(), ApiError> {
    if let Some(mut profile) = params.section("business_profile")? {
        for field in ["headline", "privacy_policy_url", "terms_of_service_url"] {
            if let Some(value) = profile.clearable(field)? {
                configuration["business_profile"][field] = value;
            }
        }
        profile.finish(&[])?;
    }
    let return_url = params.clearable("default_return_url")?;
    let name = params.clearable("name")?;
    let metadata: Option<MetadataChange> = params.metadata()?;
    let changes = vec![("default_return_url", return_url), ("name", name)];
    apply(configuration, changes, metadata.as_ref());
    Ok(())
}

fn read_features(
    call: &Call<'_>,
    mut params: Params,
    features: &mut Value,
) -> Result<(), ApiError> {
    for name in ["customer_update", "invoice_history", "payment_method_update"] {
        let Some(mut feature) = params.section(name)? else { continue };
        set(&mut features[name], "enabled", feature.boolean("enabled")?);
        if name == "customer_update" && feature.is_section("allowed_updates") {
            features[name]["allowed_updates"] = feature.texts("allowed_updates")?.into();
        }
        feature.finish(&["payment_method_configuration"])?;
    }
    if let Some(mut cancel) = params.section("subscription_cancel")? {
        let feature = &mut features["subscription_cancel"];
        set(feature, "enabled", cancel.boolean("enabled")?);
        set(feature, "mode", cancel.word("mode", &["at_period_end", "immediately"])?);
        set(feature, "proration_behavior", cancel.word("proration_behavior", &PRORATIONS)?);
        if let Some(mut reason) = cancel.section("cancellation_reason")? {
            set(&mut feature["cancellation_reason"], "enabled", reason.boolean("enabled")?);
            feature["cancellation_reason"]["options"] = reason.texts("options")?.into();
            reason.finish(&["feedback_options"])?;
        }
        cancel.finish(&[])?;
    }
    if let Some(update) = params.section("subscription_update")? {
        read_subscription_update(call, update, &mut features["subscription_update"])?;
    }
    params.finish(&[])
}

fn set(object: &mut Value, field: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[field] = value.into();
    }
}

fn read_subscription_update(
    call: &Call<'_>,
    mut update: Params,
    feature: &mut Value,
) -> Result<(), ApiError> {
    set(feature, "enabled", update.boolean("enabled")?);
    set(feature, "proration_behavior", update.word("proration_behavior", &PRORATIONS)?);
    let anchors = ["now", "unchanged"];
    set(feature, "billing_cycle_anchor", update.word("billing_cycle_anchor", &anchors)?);
    let trials = ["continue_trial", "end_trial"];
    set(feature, "trial_update_behavior", update.word("trial_update_behavior", &trials)?);
    if update.is_section("default_allowed_updates") {
        feature["default_allowed_updates"] = update.texts("default_allowed_updates")?.into();
    }
    if let Some(mut schedule) = update.section("schedule_at_period_end")? {
        let mut conditions = Vec::new();
        for mut condition in schedule.sections("conditions")? {
            let words = ["decreasing_item_amount", "shortening_interval"];
            let kind = condition.word("type", &words)?;
            conditions.push(json!({ "type": kind.ok_or_else(|| condition.missing("type"))? }));
            condition.finish(&[])?;
        }
        schedule.finish(&[])?;
        feature["schedule_at_period_end"]["conditions"] = conditions.into();
    }
    if update.is_section("products") {
        feature["products"] = read_products(call, &mut update)?.into();
    }
    update.finish(&[])?;
    let lacks = |field: &str| feature[field].as_array().is_none_or(Vec::is_empty);
    if feature["enabled"] == true && (lacks("products") || lacks("default_allowed_updates")) {
        let message = "To enable subscription updates, you must provide a non-empty `products` and \
                       `default_allowed_updates`.";
        return Err(ApiError::invalid("features[subscription_update]", message));
    }
    Ok(())
}

fn read_products(call: &Call<'_>, update: &mut Params) -> Result<Vec<Value>, ApiError> {
    let (mut products, mut seen) = (Vec::new(), BTreeSet::new());
    for mut entry in update.sections("products")? {
        let product = entry.required_text("product")?;
        let prices = entry.texts("prices")?;
        entry.finish(&["adjustable_quantity"])?;
        for id in &prices {
            let price = call.state.prices.get(id);
            let price = price.ok_or_else(|| ApiError::no_such_param("price", id, "prices"))?;
            if price["product"] != product.as_str() {
                let message = format!("The price {id} does not belong to the product {product}.");
                return Err(ApiError::refused(message));
            }
            let recurring = &price["recurring"];
            let terms = (
                product.clone(),
                recurring["interval"].to_string(),
                text(price, "currency").to_owned(),
            );
            if !seen.insert(terms) {
                let message = "Prices of one product must have different intervals or currencies.";
                return Err(ApiError::refused(message));
            }
        }
        products.push(json!({
            "adjustable_quantity": { "enabled": false, "maximum": null, "minimum": 1 },
            "prices": prices,
            "product": product,
        }));
    }
    if products.len() > MAX_PRODUCTS {
        let message = "You may specify up to 10 products.";
        return Err(ApiError::invalid("features[subscription_update][products]", message));
    }
    Ok(products)
}

fn find_configuration(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let configuration = call.state.portal_configurations.get(id).cloned();
    configuration.ok_or_else(|| ApiError::no_such("configuration", id))
}

pub(super) fn retrieve_configuration(
    call: &Call<'_>,
    id: &str,
    params: Params,
) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find_configuration(call, id)
}

pub(super) fn list_configurations(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read(&mut params)?;
    let active = params.boolean("active")?;
    let default = params.boolean("is_default")?;
    params.finish(&[])?;
    let rows = call.state.portal_configurations.iter().rev().cloned();
    page.cut("/v1/billing_portal/configurations", "configuration", rows, |row| {
        active.is_none_or(|active| row["active"] == active)
            && default.is_none_or(|default| row["is_default"] == default)
    })
}

pub(super) fn create_session(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required_text("customer")?;
    let configuration = params.text("configuration")?;
    let return_url = params.text("return_url")?;
    let locale = params.text("locale")?;
    let flow = params.section("flow_data")?;
    params.finish(&["customer_account", "on_behalf_of"])?;
    call.customer(&customer, "customer")?;
    let configuration = match configuration {
        Some(id) => call
            .state
            .portal_configurations
            .get(&id)
            .cloned()
            .ok_or_else(|| ApiError::no_such_param("configuration", &id, "configuration"))?,
        None => default_configuration(call)?,
    };
    let flow = match flow {
        Some(flow) => read_flow(call, flow, &customer, &configuration)?,
        None => Value::Null,
    };
    let id = call.id("bps");
    let session = json!({
        "id": id,
        "object": "billing_portal.session",
        "configuration": configuration["id"],
        "created": call.now_s(),
        "customer": customer,
        "customer_account": null,
        "flow": flow,
        "livemode": false,
        "locale": locale,
        "on_behalf_of": null,
        "return_url": return_url.map_or(configuration["default_return_url"].clone(), Value::from),
        "url": format!("{}/_sim/portal/{id}", call.base_url),
    });
    record(call, "billing_portal.session.created", &session, None);
    call.state.portal_sessions.put(session.clone());
    Ok(session)
}

fn default_configuration(call: &Call<'_>) -> Result<Value, ApiError> {
    let found = call.state.portal_configurations.iter().find(|row| row["is_default"] == true);
    found.cloned().ok_or_else(|| {
        ApiError::refused(
            "No configuration provided and your test mode default configuration has not been \
             created. Provide a configuration or create your default by saving your customer \
             portal settings in test mode at \
             https://dashboard.stripe.com/test/settings/billing/portal.",
        )
    })
}

fn read_flow(
    call: &Call<'_>,
    mut flow: Params,
    customer: &str,
    configuration: &Value,
) -> Result<Value, ApiError> {
    let kinds = [
        "payment_method_update",
        "subscription_cancel",
        "subscription_update",
        "subscription_update_confirm",
    ];
    let kind = flow.word("type", &kinds)?.ok_or_else(|| flow.missing("type"))?;
    let after_completion = read_after_completion(&mut flow)?;
    let mut shown = json!({
        "after_completion": after_completion,
        "customer_update": null,
        "subscription_cancel": null,
        "subscription_update": null,
        "subscription_update_confirm": null,
        "type": kind,
    });
    if kind != "payment_method_update" {
        let section = flow.section(kind)?;
        let mut section = section.ok_or_else(|| flow.missing(kind))?;
        shown[kind] = read_subscription_flow(call, &mut section, kind, customer, configuration)?;
        section.finish(&["retention", "discounts"])?;
    }
    flow.finish(&["customer_update"])?;
    let feature = if kind == "subscription_update_confirm" { "subscription_update" } else { kind };
    if configuration["features"][feature]["enabled"] != true {
        let message = format!(
            "This {kind} flow cannot be created because the {feature} feature is disabled in the \
             portal configuration."
        );
        return Err(ApiError::invalid("flow_data[type]", message));
    }
    Ok(shown)
}

fn read_after_completion(flow: &mut Params) -> Result<Value, ApiError> {
    let mut shown =
        json!({ "hosted_confirmation": null, "redirect": null, "type": "portal_homepage" });
    let Some(mut after) = flow.section("after_completion")? else { return Ok(shown) };
    let kinds = ["hosted_confirmation", "portal_homepage", "redirect"];
    let kind = after.word("type", &kinds)?.ok_or_else(|| after.missing("type"))?;
    shown["type"] = kind.into();
    if let Some(mut redirect) = after.section("redirect")? {
        shown["redirect"] = json!({ "return_url": redirect.required_text("return_url")? });
        redirect.finish(&[])?;
    }
    if let Some(mut confirmation) = after.section("hosted_confirmation")? {
        let message = confirmation.text("custom_message")?;
        shown["hosted_confirmation"] = json!({ "custom_message": message });
        confirmation.finish(&[])?;
    }
    after.finish(&[])?;
    Ok(shown)
}

/// The subscription that the deep link is about, and for a confirmation the one item it changes.
fn read_subscription_flow(
    call: &Call<'_>,
    section: &mut Params,
    kind: &str,
    customer: &str,
    configuration: &Value,
) -> Result<Value, ApiError> {
    let id = section.required_text("subscription")?;
    let param = format!("flow_data[{kind}][subscription]");
    let found = call.state.subscriptions.get(&id).filter(|found| found.customer == customer);
    let found = found.ok_or_else(|| ApiError::no_such_param("subscription", &id, &param))?;
    if !matches!(found.status, Status::Active | Status::Trialing | Status::PastDue) {
        let status = found.status.as_str();
        let message = format!("The subscription cannot be changed while it is {status}.");
        return Err(ApiError::invalid(&param, message));
    }
    if kind == "subscription_cancel" {
        return Ok(json!({ "retention": null, "subscription": id }));
    }
    if found.items.len() > 1 {
        let message = "Subscriptions with multiple items are not updatable in the customer portal.";
        return Err(ApiError::invalid(&param, message));
    }
    if found.schedule.is_some() {
        let message = "Subscriptions with a schedule are not updatable in the customer portal.";
        return Err(ApiError::invalid(&param, message));
    }
    if kind == "subscription_update" {
        return Ok(json!({ "subscription": id }));
    }
    let mut items = section.sections("items")?;
    let (Some(mut item), true) = (items.pop(), items.is_empty()) else {
        let message = "The `items` array must contain exactly one item.";
        return Err(ApiError::invalid("flow_data[subscription_update_confirm][items]", message));
    };
    let item_id = item.required_text("id")?;
    let price = item.text("price")?;
    let quantity = item.count("quantity")?;
    item.finish(&[])?;
    if found.items.iter().all(|item| item.id != item_id) {
        let param = "flow_data[subscription_update_confirm][items][0][id]";
        return Err(ApiError::no_such_param("subscription item", &item_id, param));
    }
    if let Some(price) = &price
        && !offers(configuration, price)
    {
        let message = format!(
            "The price {price} is not in the portal configuration's \
             `features[subscription_update][products]`."
        );
        let param = "flow_data[subscription_update_confirm][items][0][price]";
        return Err(ApiError::invalid(param, message));
    }
    let mut shown = json!({ "id": item_id, "price": price });
    set(&mut shown, "quantity", quantity);
    Ok(json!({ "discounts": null, "items": [shown], "subscription": id }))
}

fn offers(configuration: &Value, price: &str) -> bool {
    let products = configuration["features"]["subscription_update"]["products"].as_array();
    let prices = products.into_iter().flatten().flat_map(|product| product["prices"].as_array());
    prices.flatten().any(|offered| offered == price)
}

/// The customer follows the deep link and confirms.
pub(super) fn confirm(call: &mut Call<'_>, id: &str) -> Result<(), ApiError> {
    let session = call.state.portal_sessions.get(id).cloned();
    let session = session.ok_or_else(|| ApiError::no_such("portal session", id))?;
    let features = call.state.portal_configurations.get(text(&session, "configuration"));
    let features = features.map(|row| row["features"].clone()).unwrap_or_default();
    let flow = &session["flow"];
    let target = &flow[text(flow, "type")];
    let subscription = text(target, "subscription").to_owned();
    match text(flow, "type") {
        "subscription_cancel" => {
            if features["subscription_cancel"]["mode"] == "immediately" {
                subscriptions::cancel(call, &subscription, Params::default())?;
            } else {
                let form = [("cancel_at_period_end", "true")];
                updates::update(call, &subscription, Params::from_pairs(&form))?;
            }
        }
        "subscription_update_confirm" => {
            let item = &target["items"][0];
            change_price(call, &subscription, item, &features["subscription_update"])?;
        }
        _ => return Err(ApiError::refused("This portal session has nothing to confirm.")),
    }
    Ok(())
}

/// A move to a cheaper price waits for the period's end, if the configuration says so.
fn change_price(
    call: &mut Call<'_>,
    subscription: &str,
    item: &Value,
    feature: &Value,
) -> Result<(), ApiError> {
    let before = subscriptions::find(call, subscription)?;
    let amount = |price: &str| {
        call.state.prices.get(price).and_then(|price| price["unit_amount"].as_i64()).unwrap_or(0)
    };
    let old = before.items.first().map(|item| item.price.clone()).unwrap_or_default();
    let new = item["price"].as_str().unwrap_or(&old).to_owned();
    let conditions = feature["schedule_at_period_end"]["conditions"].as_array();
    let defers = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "decreasing_item_amount");
    if defers && amount(&new) < amount(&old) {
        return schedules::change_at_period_end(call, before, &new);
    }
    let quantity = item["quantity"].as_u64().map(|quantity| quantity.to_string());
    let mut form = vec![
        ("items[0][id]", text(item, "id")),
        ("items[0][price]", new.as_str()),
        ("proration_behavior", text(feature, "proration_behavior")),
        // The portal shows a declined card instead of changing the price.
        ("payment_behavior", "pending_if_incomplete"),
    ];
    if let Some(quantity) = &quantity {
        form.push(("items[0][quantity]", quantity));
    }
    updates::update(call, subscription, Params::from_pairs(&form))?;
    Ok(())
}

impl Simulator {
    /// Makes a portal configuration the default, as saving the portal's settings in the Dashboard
    /// does. Fails if there is no such configuration.
    pub fn set_default_portal(&self, configuration: &str) -> anyhow::Result<()> {
        self.with_call(|call| {
            let found = call.state.portal_configurations.get(configuration).is_some();
            anyhow::ensure!(found, "there is no portal configuration {configuration}");
            let rows: Vec<Value> = call.state.portal_configurations.iter().cloned().collect();
            for mut row in rows {
                row["is_default"] = (text(&row, "id") == configuration).into();
                call.state.portal_configurations.put(row);
            }
            Ok(())
        })
    }

    /// The customer follows a portal session's deep link and confirms what it shows. Fails if there
    /// is no such session or nothing to confirm.
    pub fn confirm_portal(&self, id: &str) -> anyhow::Result<()> {
        self.with_call(|call| confirm(call, id))
            .map_err(|error| anyhow::anyhow!("{}", error.answer().body))
            .with_context(|| format!("cannot confirm {id}"))
    }
}
