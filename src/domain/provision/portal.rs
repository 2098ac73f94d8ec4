//! The customer portal's configuration: what an upgrade, a downgrade and a cancellation may do.

use std::collections::BTreeSet;

use super::catalog::{holder, is_needless, right_or_different};
use super::found::{Portal, Price};
use super::{Change, Creation, Difference, Kind, Offer, PortalTerms, PriceRef, State, Step, Write};

/// How many products Stripe lets customers move between.
const MAX_PRODUCTS: usize = 10;

/// The step of the one configuration that is ours.
pub(super) fn portal(offers: &[Offer], prices: &[Price], found: &[Portal]) -> Step {
    let (terms, note) = match movable(offers, prices) {
        Ok(prices) => (PortalTerms { prices }, None),
        Err(why) => (PortalTerms { prices: Vec::new() }, Some(why)),
    };
    let mut step = Step {
        kind: Kind::Portal,
        name: "configuration".to_owned(),
        detail: described(&terms),
        state: State::Missing,
        note,
        writes: Vec::new(),
    };
    let Some(portal) = found.first() else {
        step.writes.push(Write::Create(Creation::Portal(terms)));
        return step;
    };
    let differences = differences(portal, &terms);
    if !differences.is_empty() {
        let id = portal.id.clone();
        step.writes.push(Write::Change(Change::UpdatePortal { id, terms }));
    }
    step.state = right_or_different(&portal.id, differences);
    step
}

fn described(terms: &PortalTerms) -> String {
    let cards = "cards, invoices, cancelling at the period's end";
    match terms.prices.len() {
        0 => cards.to_owned(),
        n => format!("{cards}, moving between {n} prices"),
    }
}

/// The prices that customers may move between, or why they may move between none.
fn movable(offers: &[Offer], prices: &[Price]) -> Result<Vec<(String, PriceRef)>, String> {
    let mut movable = Vec::new();
    let mut terms = BTreeSet::new();
    for offer in offers {
        let holder = holder(offer, prices);
        if is_needless(offer, holder) {
            continue;
        }
        let product = holder.map_or_else(|| offer.own_product(), |price| price.product.clone());
        let currency = offer.amount.currency.code().to_owned();
        if !terms.insert((product.clone(), offer.interval.label(), currency)) {
            return Err(format!(
                "no changes of plan: two plans have the same interval and currency in {product}, \
                 which the portal does not take; give each plan a product of its own"
            ));
        }
        let stays = holder.filter(|price| offer.is_sold_by(price));
        let price = match stays {
            Some(price) => PriceRef::Id(price.id.clone()),
            None => PriceRef::New { lookup_key: offer.lookup_key.clone() },
        };
        movable.push((product, price));
    }
    let products: BTreeSet<&String> = movable.iter().map(|(product, _)| product).collect();
    if products.len() > MAX_PRODUCTS {
        let count = products.len();
        return Err(format!(
            "no changes of plan: the portal takes {MAX_PRODUCTS} products, these are {count}"
        ));
    }
    Ok(movable)
}

fn differences(portal: &Portal, terms: &PortalTerms) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, found: bool, wanted: bool| {
        if found != wanted {
            let word = |is| if is { "on" } else { "off" };
            differences.push(Difference::new(what, word(found), word(wanted)));
        }
    };
    compare("cancelling at the period's end", portal.cancels_at_period_end, true);
    compare("cards", portal.payment_methods, true);
    compare("invoices", portal.invoices, true);
    compare("changes of plan", portal.changes, !terms.prices.is_empty());
    let found: BTreeSet<(String, PriceRef)> = portal
        .prices
        .iter()
        .map(|(product, price)| (product.clone(), PriceRef::Id(price.clone())))
        .collect();
    let wanted: BTreeSet<(String, PriceRef)> = terms.prices.iter().cloned().collect();
    if found != wanted {
        let named = |prices: &BTreeSet<(String, PriceRef)>| {
            let names = prices.iter().map(|(_, price)| match price {
                PriceRef::Id(id) => id.clone(),
                PriceRef::New { lookup_key } => format!("new {lookup_key}"),
            });
            let names: Vec<String> = names.collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        // Only what comes and goes: what stays says nothing.
        let gone: BTreeSet<_> = found.difference(&wanted).cloned().collect();
        let come: BTreeSet<_> = wanted.difference(&found).cloned().collect();
        differences.push(Difference::new("prices", named(&gone), named(&come)));
    }
    differences
}
