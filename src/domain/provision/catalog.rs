//! Meters, products and prices.

use super::found::{self, Product};
use super::{
    Change, Creation, Difference, Kind, Meter, Offer, PriceRef, State, Step, Wanted, Write,
};
use crate::domain::money::{Currency, Money};

/// The payload keys and the formula that we report by; a meter made with others counts nothing of
/// ours.
const CUSTOMER_KEY: &str = "stripe_customer_id";
const VALUE_KEY: &str = "value";
const FORMULA: &str = "sum";

pub(super) fn meter(wanted: &Meter, found: &[found::Meter]) -> Step {
    let step = |state, writes| Step {
        kind: Kind::Meter,
        name: wanted.event_name.clone(),
        detail: format!("{:?}, sum of {VALUE_KEY} by {CUSTOMER_KEY}", wanted.display_name),
        state,
        note: None,
        writes,
    };
    // One name, one meter; should an old account have two, the one that counts.
    let same = found.iter().filter(|meter| meter.event_name == wanted.event_name);
    let Some(meter) = same.max_by_key(|meter| meter.active) else {
        return step(State::Missing, vec![Write::Create(Creation::Meter(wanted.clone()))]);
    };
    if let Some(reason) = fixed_otherwise(meter) {
        let remedy = "a meter keeps these, and its event name, for ever: give the feature another \
                      stripe_meter in the plans file";
        return step(State::Refused { reason, remedy: remedy.to_owned() }, Vec::new());
    }
    let mut differences = Vec::new();
    let mut writes = Vec::new();
    if !meter.active {
        differences.push(Difference::new("status", "deactivated", "active"));
        writes.push(Write::Change(Change::ReactivateMeter { id: meter.id.clone() }));
    }
    if meter.display_name != wanted.display_name {
        differences.push(Difference::new("name", &*meter.display_name, &*wanted.display_name));
        let display_name = wanted.display_name.clone();
        writes.push(Write::Change(Change::RenameMeter { id: meter.id.clone(), display_name }));
    }
    step(right_or_different(&meter.id, differences), writes)
}

/// In what a meter differs that can never be changed.
fn fixed_otherwise(meter: &found::Meter) -> Option<String> {
    let says = |what: &str, found: &str, wanted: &str| format!("{what} is {found}, not {wanted}");
    let id = &meter.id;
    if meter.formula != FORMULA {
        return Some(says(&format!("the formula of {id}"), &meter.formula, FORMULA));
    }
    if meter.customer_key != CUSTOMER_KEY {
        let what = format!("the customer's key in {id}");
        return Some(says(&what, &meter.customer_key, CUSTOMER_KEY));
    }
    if meter.value_key != VALUE_KEY {
        return Some(says(&format!("the value's key in {id}"), &meter.value_key, VALUE_KEY));
    }
    let window = meter.event_time_window.as_deref()?;
    Some(format!("{id} keeps only the last event of each {window}, and ours add up"))
}

pub(super) fn right_or_different(id: &str, differences: Vec<Difference>) -> State {
    let id = id.to_owned();
    if differences.is_empty() { State::Right { id } } else { State::Different { id, differences } }
}

/// The price that has the offer's lookup key.
pub(super) fn holder<'a>(offer: &Offer, prices: &'a [found::Price]) -> Option<&'a found::Price> {
    prices.iter().find(|price| price.lookup_key.as_ref() == Some(&offer.lookup_key))
}

/// A price of nothing is not made: whoever pays nothing needs no subscription.
pub(super) fn is_needless(offer: &Offer, holder: Option<&found::Price>) -> bool {
    offer.amount.minor == 0 && holder.is_none()
}

/// The product of an offer and its price.
pub(super) fn offer(
    wanted: &Wanted,
    offer: &Offer,
    prices: &[found::Price],
    products: &[Product],
) -> Vec<Step> {
    let holder = holder(offer, prices);
    if is_needless(offer, holder) {
        return Vec::new();
    }
    let product_id = holder.map_or_else(|| offer.own_product(), |price| price.product.clone());
    let product = products.iter().find(|product| product.id == product_id);
    vec![
        product_step(offer, &product_id, product),
        price_step(wanted, offer, &product_id, product, holder, prices),
    ]
}

fn product_step(offer: &Offer, id: &str, found: Option<&Product>) -> Step {
    let step = |state, writes| Step {
        kind: Kind::Product,
        name: id.to_owned(),
        detail: format!("{:?}", found.map_or(&offer.name, |product| &product.name)),
        state,
        note: None,
        writes,
    };
    let Some(product) = found else {
        let create = Creation::Product {
            id: id.to_owned(),
            name: offer.name.clone(),
            plan_id: offer.plan_id.clone(),
        };
        return step(State::Missing, vec![Write::Create(create)]);
    };
    let mut differences = Vec::new();
    if !product.active {
        differences.push(Difference::new("status", "archived", "active"));
    }
    // Somebody else's product has the name that somebody gave it.
    let renamed = id == offer.own_product() && product.name != offer.name;
    if renamed {
        differences.push(Difference::new("name", &*product.name, &*offer.name));
    }
    let name = renamed.then(|| offer.name.clone());
    let change = Change::UpdateProduct { id: id.to_owned(), name };
    let writes = if differences.is_empty() { Vec::new() } else { vec![Write::Change(change)] };
    step(right_or_different(id, differences), writes)
}

fn price_step(
    wanted: &Wanted,
    offer: &Offer,
    product_id: &str,
    product: Option<&Product>,
    holder: Option<&found::Price>,
    prices: &[found::Price],
) -> Step {
    let mut step = Step {
        kind: Kind::Price,
        name: offer.lookup_key.clone(),
        detail: format!("{}/{}", offer.amount, offer.interval.label()),
        state: State::Missing,
        note: None,
        writes: Vec::new(),
    };
    if let Some((reason, remedy)) = unsellable(wanted, offer, holder) {
        step.state = State::Refused { reason, remedy };
        return step;
    }
    let create = |replaces| {
        let (offer, product) = (offer.clone(), product_id.to_owned());
        Write::Create(Creation::Price { offer, product, replaces })
    };
    let Some(price) = holder else {
        step.writes.push(create(None));
        return step;
    };
    let (left_open, unmarked) = (left_open(price, prices), unmarked(wanted, offer, price, prices));
    // First of all: whoever is on an old price must not be without a plan for a moment.
    step.writes.extend(unmarked.iter().map(|price| {
        let (id, plan_id) = (price.id.clone(), offer.plan_id.clone());
        Write::Change(Change::MarkPrice { id, plan_id })
    }));
    let mut differences = differences(offer, price);
    if differences.is_empty() {
        let stays = PriceRef::Id(price.id.clone());
        if !price.active {
            differences.push(Difference::new("status", "archived", "active"));
            let id = price.id.clone();
            step.writes.push(Write::Change(Change::ReactivatePrice { id }));
        }
        // A run that was cut short may have left the old one open.
        if let Some(old) = left_open {
            differences.push(Difference::new(&old.id, "active", "archived"));
            step.writes.extend(retire(old, &stays, product));
        }
    } else {
        step.note = Some(format!(
            "a new price takes the lookup key; {} is archived, and subscriptions on it go on",
            price.id
        ));
        step.writes.push(create(Some(price.id.clone())));
        let new = PriceRef::New { lookup_key: offer.lookup_key.clone() };
        for old in [Some(price).filter(|price| price.active), left_open].into_iter().flatten() {
            step.writes.extend(retire(old, &new, product));
        }
    }
    differences.extend(unmarked.iter().map(|marked| {
        let what = match marked.id == price.id {
            true => "plan mark".to_owned(),
            false => format!("plan mark of {}", marked.id),
        };
        let found = marked.plan_mark.as_deref().unwrap_or("none");
        Difference::new(&what, found, &*offer.plan_id)
    }));
    step.state = right_or_different(&price.id, differences);
    step
}

/// The prices that do not yet say of which plan they are: the one that has the lookup key, and the
/// one it replaced. The key can be moved in the Dashboard as well, and by the mark alone whoever is
/// on such a price then keeps the plan.
fn unmarked<'a>(
    wanted: &Wanted,
    offer: &Offer,
    holder: &'a found::Price,
    prices: &'a [found::Price],
) -> Vec<&'a found::Price> {
    // Two plans that replaced the same price would mark it in turns, at each push.
    let is_anothers = |price: &found::Price| {
        let others = wanted.offers.iter().filter(|other| other.plan_id != offer.plan_id);
        let mut others = others.map(|other| (Some(&other.plan_id), Some(&other.lookup_key)));
        others.any(|(id, key)| price.plan_mark.as_ref() == id || price.lookup_key.as_ref() == key)
    };
    let replaced = replaced(holder, prices).filter(|price| !is_anothers(price));
    let both = [Some(holder), replaced].into_iter().flatten();
    both.filter(|price| price.plan_mark.as_ref() != Some(&offer.plan_id)).collect()
}

/// Why there can be no such price.
fn unsellable(
    wanted: &Wanted,
    offer: &Offer,
    holder: Option<&found::Price>,
) -> Option<(String, String)> {
    if let (Some(price), Some(live)) = (holder, wanted.livemode)
        && price.livemode != live
    {
        let mode = |live| if live { "live" } else { "test" };
        let reason = format!("{} is of {} mode", price.id, mode(price.livemode));
        return Some((reason, format!("use the {} mode's own key and prices", mode(live))));
    }
    let step_minor = offer.amount.currency.charge_step_minor();
    if offer.amount.minor % step_minor != 0 {
        let step = Money { minor: step_minor, ..offer.amount };
        let reason =
            format!("{} is no multiple of {step}, and Stripe takes no other", offer.amount);
        return Some((reason, "round the amount in the plans file".to_owned()));
    }
    None
}

/// In what the price is not what the plans file says; all of it is fixed for ever in a price.
pub(super) fn differences(offer: &Offer, price: &found::Price) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, found: String, wanted: String| {
        if found != wanted {
            differences.push(Difference::new(what, found, wanted));
        }
    };
    let amount = price.currency.parse::<Currency>().ok().zip(price.amount_minor);
    let amount = amount.map(|(currency, minor)| Money { minor, currency }.to_string());
    compare("amount", amount.unwrap_or_else(|| "not one".to_owned()), offer.amount.to_string());
    // Two currencies may write their amounts alike.
    compare("currency", price.currency.clone(), offer.amount.currency.code().to_owned());
    let interval = match (price.interval.as_deref(), price.interval_count) {
        (None, _) => "paid once".to_owned(),
        (Some(interval), 1) => interval.to_owned(),
        (Some(interval), count) => format!("{count} {interval}s"),
    };
    compare("interval", interval, offer.interval.label().to_owned());
    let usage = if price.metered { "metered" } else { "licensed" };
    compare("usage", usage.to_owned(), "licensed".to_owned());
    let scheme = if price.plain { "per unit" } else { "tiers or packages" };
    compare("scheme", scheme.to_owned(), "per unit".to_owned());
    differences
}

/// The price that this one replaced, if it can still be bought.
fn left_open<'a>(price: &found::Price, prices: &'a [found::Price]) -> Option<&'a found::Price> {
    replaced(price, prices).filter(|old| old.active && old.lookup_key.is_none())
}

fn replaced<'a>(price: &found::Price, prices: &'a [found::Price]) -> Option<&'a found::Price> {
    let old = price.replaces.as_ref()?;
    prices.iter().find(|price| price.id == *old)
}

/// What closes a price to new subscriptions, once its successor has the lookup key.
fn retire(old: &found::Price, successor: &PriceRef, product: Option<&Product>) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(product) = product.filter(|p| p.default_price.as_ref() == Some(&old.id)) {
        let (product, price) = (product.id.clone(), successor.clone());
        writes.push(Write::Change(Change::SetDefaultPrice { product, price }));
    }
    writes.push(Write::Change(Change::ArchivePrice { id: old.id.clone() }));
    writes
}
