//! Products and prices.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::decimal::Decimal;
use super::events::{record, record_update};
use super::params::{MetadataChange, Params};
use super::state::{Call, Page, text};

/// A product's fields that may be changed later by an empty string or a new text.
const PRODUCT_TEXTS: [&str; 4] = ["description", "statement_descriptor", "unit_label", "url"];

const PRODUCT_NOT_SIMULATED: [&str; 8] = [
    "default_price_data",
    "images",
    "marketing_features",
    "package_dimensions",
    "shippable",
    "tax_code",
    "tax_details",
    "type",
];

pub(super) fn create_product(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let id = params.text("id")?.unwrap_or_else(|| call.id("prod"));
    let name = params.required_text("name")?;
    let active = params.boolean("active")?.unwrap_or(true);
    let metadata = MetadataChange::fresh(params.metadata()?);
    let now_s = call.now_s();
    let mut product = json!({
        "id": id,
        "object": "product",
        "active": active,
        "created": now_s,
        "default_price": null,
        "description": null,
        "images": [],
        "livemode": false,
        "marketing_features": [],
        "metadata": metadata,
        "name": name,
        "package_dimensions": null,
        "shippable": null,
        "statement_descriptor": null,
        "tax_code": null,
        "tax_details": null,
        "type": "service",
        "unit_label": null,
        "updated": now_s,
        "url": null,
    });
    for field in PRODUCT_TEXTS {
        product[field] = params.clearable(field)?.unwrap_or_default();
    }
    params.finish(&PRODUCT_NOT_SIMULATED)?;
    if call.state.products.get(&id).is_some() {
        return Err(ApiError::already_exists(&format!("Product already exists: {id}")));
    }
    record(call, "product.created", &product, None);
    call.state.products.put(product.clone());
    Ok(product)
}

pub(super) fn update_product(
    call: &mut Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    let name = params.text("name")?.map(Value::from);
    let active = params.boolean("active")?.map(Value::from);
    let metadata = params.metadata()?;
    let default_price = params.clearable("default_price")?;
    if let Some(price) = default_price.as_ref().and_then(Value::as_str)
        && call.state.prices.get(price).is_none_or(|price| price["product"] != id)
    {
        return Err(ApiError::no_such_param("price", price, "default_price"));
    }
    let mut changes = vec![("name", name), ("active", active), ("default_price", default_price)];
    for field in PRODUCT_TEXTS {
        changes.push((field, params.clearable(field)?));
    }
    params.finish(&PRODUCT_NOT_SIMULATED)?;
    let Some(before) = call.state.products.get(id).cloned() else {
        return Err(ApiError::no_such("product", id));
    };
    let mut product = before.clone();
    apply(&mut product, changes, metadata.as_ref());
    if product != before {
        product["updated"] = call.now_s().into();
    }
    record_update(call, "product.updated", &before, &product);
    call.state.products.put(product.clone());
    Ok(product)
}

/// Deletes a product that never had a price.
pub(super) fn delete_product(
    call: &mut Call<'_>,
    id: &str,
    params: Params,
) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let product = call.state.products.get(id).cloned();
    let product = product.ok_or_else(|| ApiError::no_such("product", id))?;
    if call.state.prices.iter().any(|price| price["product"] == id) {
        return Err(ApiError::refused(
            "This product cannot be deleted because it has one or more user-created prices.",
        ));
    }
    call.state.products.remove(id);
    record(call, "product.deleted", &product, None);
    Ok(json!({ "id": id, "object": "product", "deleted": true }))
}

/// Writes the changes that were asked for into an object.
pub(super) fn apply(
    object: &mut Value,
    changes: Vec<(&str, Option<Value>)>,
    metadata: Option<&MetadataChange>,
) {
    for (field, change) in changes {
        if let Some(value) = change {
            object[field] = value;
        }
    }
    if let (Some(change), Some(fields)) = (metadata, object["metadata"].as_object_mut()) {
        change.apply(fields);
    }
}

pub(super) fn retrieve_product(
    call: &Call<'_>,
    id: &str,
    params: Params,
) -> Result<Value, ApiError> {
    params.finish(&[])?;
    call.state.products.get(id).cloned().ok_or_else(|| ApiError::no_such("product", id))
}

pub(super) fn list_products(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let active = params.boolean("active")?;
    let ids = params.texts("ids")?;
    params.finish(&["shippable", "type", "url"])?;
    let products = call.state.products.iter().rev().cloned();
    page.cut("/v1/products", "product", products, |product| {
        active.is_none_or(|active| product["active"] == active)
            && (ids.is_empty() || ids.iter().any(|id| text(product, "id") == id))
    })
}

pub(super) fn create_price(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let currency = params.required_text("currency")?.to_lowercase();
    let (amount, amount_decimal) = read_amount(&mut params)?;
    let recurring = read_recurring(&mut params)?;
    let lookup_key = params.text("lookup_key")?;
    let transfer = params.boolean("transfer_lookup_key")?.unwrap_or(false);
    let active = params.boolean("active")?.unwrap_or(true);
    let nickname = params.text("nickname")?;
    let metadata = MetadataChange::fresh(params.metadata()?);
    let tax_behavior = params.word("tax_behavior", &["exclusive", "inclusive", "unspecified"])?;
    params.word("billing_scheme", &["per_unit"])?;
    let product = params.text("product")?;
    let product_data = params.section("product_data")?;
    if product.is_none() && product_data.is_none() {
        return Err(params.missing("product"));
    }
    params.finish(&[
        "currency_options",
        "custom_unit_amount",
        "tiers",
        "tiers_mode",
        "transform_quantity",
    ])?;
    check_whole(&currency, amount)?;
    check_price(call, product.as_deref(), &recurring, lookup_key.as_deref(), transfer)?;
    let product = match (product, product_data) {
        (Some(product), _) => product,
        (None, data) => text(&create_product(call, data.unwrap_or_default())?, "id").to_owned(),
    };
    if let Some(key) = &lookup_key {
        release_lookup_key(call, key);
    }
    let kind = if recurring.is_null() { "one_time" } else { "recurring" };
    let price = json!({
        "id": call.id("price"),
        "object": "price",
        "active": active,
        "billing_scheme": "per_unit",
        "created": call.now_s(),
        "currency": currency,
        "custom_unit_amount": null,
        "livemode": false,
        "lookup_key": lookup_key,
        "metadata": metadata,
        "nickname": nickname,
        "product": product,
        "recurring": recurring,
        "tax_behavior": tax_behavior.unwrap_or("unspecified"),
        "tiers_mode": null,
        "transform_quantity": null,
        "type": kind,
        "unit_amount": amount,
        "unit_amount_decimal": amount_decimal,
    });
    record(call, "price.created", &price, None);
    call.state.prices.put(price.clone());
    Ok(price)
}

/// The amount in minor units: whole where it is whole, and as a decimal text.
fn read_amount(params: &mut Params) -> Result<(Option<i64>, String), ApiError> {
    let whole = params.count("unit_amount")?.and_then(|amount| i64::try_from(amount).ok());
    let decimal = params.text("unit_amount_decimal")?;
    match (whole, decimal) {
        (Some(whole), None) => Ok((Some(whole), whole.to_string())),
        (None, Some(text)) => match Decimal::parse(&text) {
            Ok(decimal) => Ok((decimal.to_string().parse().ok(), decimal.to_string())),
            Err(_) => {
                Err(ApiError::invalid("unit_amount_decimal", format!("Invalid decimal: {text}")))
            }
        },
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "unit_amount_decimal",
            "You may only specify one of these parameters: unit_amount, unit_amount_decimal.",
        )),
        (None, None) => Err(params.missing("unit_amount")),
    }
}

/// Krónur and Ugandan shillings have no hundredths, and are counted in them all the same.
/// Source: <https://docs.stripe.com/currencies>, "Special cases".
fn check_whole(currency: &str, amount: Option<i64>) -> Result<(), ApiError> {
    if !["isk", "ugx"].contains(&currency) || amount.is_some_and(|amount| amount % 100 == 0) {
        return Ok(());
    }
    let message = format!(
        "Invalid amount. Currency {} has become effectively zero-decimal and charged amounts must \
         be evenly divisible by 100.",
        currency.to_uppercase()
    );
    let code = "invalid_charge_amount_no_decimal_compatible";
    Err(ApiError::invalid("unit_amount", message).code(code))
}

fn read_recurring(params: &mut Params) -> Result<Value, ApiError> {
    let Some(mut recurring) = params.section("recurring")? else { return Ok(Value::Null) };
    let interval = recurring.word("interval", &["day", "week", "month", "year"])?;
    let interval = interval.ok_or_else(|| recurring.missing("interval"))?;
    let count = recurring.count("interval_count")?.unwrap_or(1);
    let usage_type = recurring.word("usage_type", &["licensed", "metered"])?.unwrap_or("licensed");
    let meter = recurring.text("meter")?;
    let trial_days = recurring.count("trial_period_days")?;
    recurring.finish(&[])?;
    if usage_type == "metered" && meter.is_none() {
        return Err(ApiError::missing("recurring[meter]"));
    }
    // Three years are Stripe's longest interval.
    let longest = match interval {
        "day" => 1095,
        "week" => 156,
        "month" => 36,
        _ => 3,
    };
    if !(1..=longest).contains(&count) {
        return Err(ApiError::invalid_integer("recurring[interval_count]", &count.to_string()));
    }
    Ok(json!({
        "interval": interval,
        "interval_count": count,
        "meter": meter,
        "trial_period_days": trial_days,
        "usage_type": usage_type,
    }))
}

/// Whether what the new price refers to allows it.
fn check_price(
    call: &Call<'_>,
    product: Option<&str>,
    recurring: &Value,
    lookup_key: Option<&str>,
    transfer: bool,
) -> Result<(), ApiError> {
    if let Some(id) = product.filter(|id| call.state.products.get(id).is_none()) {
        return Err(ApiError::no_such_param("product", id, "product"));
    }
    if let Some(id) = recurring["meter"].as_str()
        && call.state.meters.get(id).is_none()
    {
        return Err(ApiError::no_such_param("billing meter", id, "recurring[meter]"));
    }
    let Some(key) = lookup_key else { return Ok(()) };
    match call.state.prices.iter().find(|price| price["lookup_key"] == key) {
        Some(holder) if !transfer => {
            let id = text(holder, "id");
            Err(ApiError::refused(format!("A price (`{id}`) already uses that lookup key.")))
        }
        _ => Ok(()),
    }
}

/// Takes the key away from the price that has it.
fn release_lookup_key(call: &mut Call<'_>, key: &str) {
    let holder = call.state.prices.iter().find(|price| price["lookup_key"] == key).cloned();
    if let Some(before) = holder {
        let mut price = before.clone();
        price["lookup_key"] = Value::Null;
        record_update(call, "price.updated", &before, &price);
        call.state.prices.put(price);
    }
}

pub(super) fn update_price(
    call: &mut Call<'_>,
    id: &str,
    mut params: Params,
) -> Result<Value, ApiError> {
    let active = params.boolean("active")?.map(Value::from);
    let nickname = params.clearable("nickname")?;
    let lookup_key = params.clearable("lookup_key")?;
    let transfer = params.boolean("transfer_lookup_key")?.unwrap_or(false);
    let metadata = params.metadata()?;
    params.finish(&["currency_options", "tax_behavior"])?;
    let Some(before) = call.state.prices.get(id).cloned() else {
        return Err(ApiError::no_such("price", id));
    };
    if let Some(key) = lookup_key.as_ref().and_then(Value::as_str)
        && before["lookup_key"] != key
    {
        check_price(call, None, &Value::Null, Some(key), transfer)?;
        release_lookup_key(call, key);
    }
    let is_default = call.state.products.iter().any(|row| row["default_price"] == id);
    if is_default && active == Some(Value::Bool(false)) {
        let message =
            "This price cannot be archived because it is the default price of its product.";
        return Err(ApiError::refused(message));
    }
    let mut price = before.clone();
    let changes = vec![("active", active), ("nickname", nickname), ("lookup_key", lookup_key)];
    apply(&mut price, changes, metadata.as_ref());
    record_update(call, "price.updated", &before, &price);
    call.state.prices.put(price.clone());
    Ok(price)
}

pub(super) fn retrieve_price(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    call.state.prices.get(id).cloned().ok_or_else(|| ApiError::no_such("price", id))
}

pub(super) fn list_prices(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read_with_created(&mut params)?;
    let active = params.boolean("active")?;
    let currency = params.text("currency")?;
    let product = params.text("product")?;
    let kind = params.word("type", &["one_time", "recurring"])?;
    let lookup_keys = params.texts("lookup_keys")?;
    params.finish(&["recurring"])?;
    if lookup_keys.len() > 10 {
        let message = "You may specify up to 10 lookup_keys.";
        return Err(ApiError::invalid("lookup_keys", message));
    }
    let prices = call.state.prices.iter().rev().cloned();
    page.cut("/v1/prices", "price", prices, |price| {
        active.is_none_or(|active| price["active"] == active)
            && currency.as_ref().is_none_or(|currency| text(price, "currency") == currency)
            && product.as_ref().is_none_or(|product| text(price, "product") == product)
            && kind.is_none_or(|kind| text(price, "type") == kind)
            && (lookup_keys.is_empty()
                || lookup_keys.iter().any(|key| price["lookup_key"] == key.as_str()))
    })
}

/// The old name and shape of a price, which subscription items still carry.
pub(super) fn plan_of(price: &Value) -> Value {
    json!({
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": false,
        "metadata": price["metadata"],
        "meter": price["recurring"]["meter"],
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": null,
        "transform_usage": null,
        "trial_period_days": price["recurring"]["trial_period_days"],
        "usage_type": price["recurring"]["usage_type"],
    })
}
