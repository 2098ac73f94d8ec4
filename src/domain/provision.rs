//! What must stand in the Stripe account for the plans file to work, and what follows from what
//! does: a list of steps, each with what it changes and the writes that change it.
//!
//! The rule of all of them: what Stripe lets us change is changed, what it does not is made anew
//! beside the old where subscriptions can go on with the old one, and everything else is refused
//! with what to do about it. Where something is refused, nothing at all is to be written.

use crate::domain::money::Money;
use crate::domain::plan::{Catalog, Interval, Plan};

mod catalog;
pub mod found;
mod portal;
#[cfg(test)]
mod tests;
mod webhooks;

use found::{Found, Unseen};
pub use webhooks::{secret_missing, senders};

/// What the account should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The mode of the key: objects of the other one are none of ours.
    pub livemode: Option<bool>,
    pub meters: Vec<Meter>,
    pub offers: Vec<Offer>,
    /// Where webhooks go, or why Stripe could not send them there.
    pub webhook_url: Result<String, String>,
    /// The one version this build reads: an endpoint's cannot be changed later.
    pub api_version: &'static str,
    /// The snapshot events we act on.
    pub events: Vec<&'static str>,
    /// The events that come as thin ones only.
    pub thin_events: Vec<&'static str>,
}

/// A meter that sums what we report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    pub event_name: String,
    pub display_name: String,
}

/// A plan that is sold: a product with one recurring price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub plan_id: String,
    /// The product's name.
    pub name: String,
    pub amount: Money,
    pub interval: Interval,
    pub lookup_key: String,
}

impl Offer {
    /// What the plans file asks for a plan; `None` for one without a price.
    pub fn of(plan: &Plan) -> Option<Self> {
        let price = plan.price.as_ref()?;
        Some(Self {
            plan_id: plan.id.as_str().to_owned(),
            name: plan.name.clone(),
            amount: price.amount,
            interval: price.interval,
            lookup_key: price.lookup_key.clone(),
        })
    }

    /// Whether the price says what the plans file says.
    pub fn is_sold_by(&self, price: &found::Price) -> bool {
        catalog::differences(self, price).is_empty()
    }

    /// The product we make for the plan; a price that is there already keeps the product it has.
    pub fn own_product(&self) -> String {
        format!("tollgate_{}", self.plan_id)
    }
}

/// What kind of object a step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Meter,
    Product,
    Price,
    Portal,
    Endpoint,
    Destination,
}

impl Kind {
    /// As it stands in front of a line.
    pub fn label(self) -> &'static str {
        match self {
            Self::Meter => "meter",
            Self::Product => "product",
            Self::Price => "price",
            Self::Portal => "portal",
            Self::Endpoint => "webhooks",
            Self::Destination => "thin events",
        }
    }

    /// What a restricted key must be allowed to read, and `push` to write.
    pub fn permission(self) -> &'static str {
        match self {
            Self::Meter => "billing meters",
            Self::Product => "products",
            Self::Price => "prices",
            Self::Portal => "the customer portal",
            Self::Endpoint => "webhook endpoints",
            Self::Destination => "event destinations",
        }
    }
}

/// What becomes of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    /// As its owner knows it: an event name, a lookup key, an address.
    pub name: String,
    /// What it is to be, in a few words.
    pub detail: String,
    pub state: State,
    /// What else there is to know about it.
    pub note: Option<String>,
    /// In order; none unless it is missing or differs.
    pub writes: Vec<Write>,
}

/// How an object stands to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As wanted, under this id.
    Right {
        id: String,
    },
    Missing,
    Different {
        id: String,
        differences: Vec<Difference>,
    },
    /// It can be neither used nor changed.
    Refused {
        reason: String,
        remedy: String,
    },
    /// It could not be looked at; `forbidden` if the key may not read its kind.
    Unseen {
        reason: String,
        forbidden: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: String,
    pub found: String,
    pub wanted: String,
}

impl Difference {
    fn new(what: &str, found: impl Into<String>, wanted: impl Into<String>) -> Self {
        Self { what: what.to_owned(), found: found.into(), wanted: wanted.into() }
    }
}

/// One call that changes the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Create(Creation),
    Change(Change),
}

/// What makes an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    Meter(Meter),
    Product { id: String, name: String, plan_id: String },
    Price { offer: Offer, product: String, replaces: Option<String> },
    Portal(PortalTerms),
    Endpoint { url: String, api_version: &'static str, events: Vec<String> },
    Destination { url: String, events: Vec<String> },
}

/// What changes one that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    RenameMeter {
        id: String,
        display_name: String,
    },
    ReactivateMeter {
        id: String,
    },
    UpdateProduct {
        id: String,
        name: Option<String>,
    },
    ReactivatePrice {
        id: String,
    },
    /// Says of which plan a price is, for when its lookup key is another's.
    MarkPrice {
        id: String,
        plan_id: String,
    },
    /// A product's default price cannot be archived: its successor comes first.
    SetDefaultPrice {
        product: String,
        price: PriceRef,
    },
    ArchivePrice {
        id: String,
    },
    UpdatePortal {
        id: String,
        terms: PortalTerms,
    },
    UpdateEndpoint {
        id: String,
        events: Vec<String>,
    },
    UpdateDestination {
        id: String,
        events: Vec<String>,
    },
    EnableDestination {
        id: String,
    },
}

/// What customers may do in the portal beside what they always may: pay by another card, read
/// their invoices, cancel at the period's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalTerms {
    /// The prices they may move between, with their products; empty offers no changes.
    pub prices: Vec<(String, PriceRef)>,
}

/// A price that is there, or one that an earlier write of the same run makes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PriceRef {
    Id(String),
    New { lookup_key: String },
}

impl Wanted {
    /// What the plans file asks for.
    ///
    /// A plan without a price needs nothing at Stripe. The file says no price for usage beyond a
    /// limit, so meters count and nothing is billed by them.
    pub fn of(
        catalog: &Catalog,
        livemode: Option<bool>,
        webhook_url: Result<String, String>,
        api_version: &'static str,
        events: Vec<&'static str>,
        thin_events: Vec<&'static str>,
    ) -> Self {
        let meters = catalog.features.values().filter_map(|feature| {
            let event_name = feature.stripe_meter.clone()?;
            Some(Meter { event_name, display_name: feature.name.clone() })
        });
        let meters = meters.collect();
        let offers = catalog.plans.iter().filter_map(Offer::of).collect();
        Self { livemode, meters, offers, webhook_url, api_version, events, thin_events }
    }
}

/// What follows from what was found: every object of ours, in the order in which to write.
pub fn plan(wanted: &Wanted, found: &Found) -> Vec<Step> {
    let mut steps = seen(Kind::Meter, &found.meters, |meters| {
        wanted.meters.iter().map(|meter| catalog::meter(meter, meters)).collect()
    });
    let catalog = found.prices.as_ref().and_then(|prices| match &found.products {
        Ok(products) => Ok((prices, products)),
        Err(unseen) => Err(unseen),
    });
    match catalog {
        Ok((prices, products)) => {
            for offer in &wanted.offers {
                steps.extend(catalog::offer(wanted, offer, prices, products));
            }
            steps.extend(seen(Kind::Portal, &found.portals, |portals| {
                vec![portal::portal(&wanted.offers, prices, portals)]
            }));
        }
        Err(unseen) => steps.push(unreadable(unseen.kind, unseen)),
    }
    steps.extend(seen(Kind::Endpoint, &found.endpoints, |endpoints| {
        vec![webhooks::endpoint(wanted, endpoints)]
    }));
    steps.extend(seen(Kind::Destination, &found.destinations, |destinations| {
        webhooks::destination(wanted, destinations).into_iter().collect()
    }));
    steps
}

/// Whether one of the steps can neither be done nor be left.
pub fn is_refused(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step.state, State::Refused { .. } | State::Unseen { .. }))
}

fn seen<T>(
    kind: Kind,
    found: &Result<T, Unseen>,
    steps: impl FnOnce(&T) -> Vec<Step>,
) -> Vec<Step> {
    match found {
        Ok(found) => steps(found),
        Err(unseen) => vec![unreadable(kind, unseen)],
    }
}

fn unreadable(kind: Kind, unseen: &Unseen) -> Step {
    let state = State::Unseen { reason: unseen.reason.clone(), forbidden: unseen.forbidden };
    let (name, detail) = (String::new(), String::new());
    Step { kind, name, detail, state, note: None, writes: Vec::new() }
}
