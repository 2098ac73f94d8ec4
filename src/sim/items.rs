//! The items of a subscription, as requests name them.

use super::answer::ApiError;
use super::calendar::Interval;
use super::life::{Item, Subscription};
use super::params::{MetadataChange, Params};
use super::state::{Call, text};

const ITEM_NOT_SIMULATED: [&str; 7] = [
    "billing_thresholds",
    "clear_usage",
    "current_trial",
    "discounts",
    "plan",
    "price_data",
    "tax_rates",
];

/// One entry of `items[]`.
pub(super) struct ItemChange {
    /// Where it stands in the request: `items[0]`.
    pub path: String,
    pub id: Option<String>,
    pub price: Option<String>,
    pub quantity: Option<u64>,
    pub deleted: bool,
    pub metadata: Option<MetadataChange>,
}

pub(super) fn read_items(params: &mut Params) -> Result<Vec<ItemChange>, ApiError> {
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
pub(super) fn new_item(
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
        usage_from_s: now_s,
        metadata: MetadataChange::fresh(wanted.metadata),
    })
}

/// Whether the items may stand together in one subscription.
pub(super) fn check_items(call: &Call<'_>, subscription: &Subscription) -> Result<(), ApiError> {
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

/// An entry that names no item adds one beside the old, as Stripe does.
pub(super) fn apply_items(
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
        if changes_price {
            item.usage_from_s = call.now_s();
        }
        after.items[place] = item;
    }
    Ok(())
}
