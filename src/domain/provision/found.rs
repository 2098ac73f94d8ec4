//! What stands in a Stripe account, as far as it can concern us.

use super::Kind;

/// What was found. Each kind is read for itself, because a restricted key may see some and not
/// others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub meters: Result<Vec<Meter>, Unseen>,
    /// Those that have one of our lookup keys, and those that such a price says it replaces.
    pub prices: Result<Vec<Price>, Unseen>,
    /// Those of the prices found, and our own.
    pub products: Result<Vec<Product>, Unseen>,
    /// Ours, by their metadata.
    pub portals: Result<Vec<Portal>, Unseen>,
    pub endpoints: Result<Vec<Endpoint>, Unseen>,
    pub destinations: Result<Vec<Destination>, Unseen>,
}

/// Why something could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    pub kind: Kind,
    pub reason: String,
    /// The key may not read it.
    pub forbidden: bool,
}

/// Whom the key belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: String,
    pub country: Option<String>,
    pub default_currency: Option<String>,
    pub charges_enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    pub id: String,
    pub event_name: String,
    pub display_name: String,
    pub active: bool,
    pub formula: String,
    /// Under which key of the payload the customer stands.
    pub customer_key: String,
    pub value_key: String,
    /// `hour` or `day`: later events of one such window replace earlier ones.
    pub event_time_window: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    pub id: String,
    pub name: String,
    pub active: bool,
    pub default_price: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    pub id: String,
    pub product: String,
    pub lookup_key: Option<String>,
    /// The plan it is marked as of.
    pub plan_mark: Option<String>,
    pub active: bool,
    pub livemode: bool,
    /// `None` where it is no whole number of minor units or has tiers.
    pub amount_minor: Option<i64>,
    pub currency: String,
    /// `None` for a price that is paid once.
    pub interval: Option<String>,
    pub interval_count: i64,
    pub metered: bool,
    /// Neither tiers nor packages: a subscription costs the amount.
    pub plain: bool,
    /// The price that this one was made to replace.
    pub replaces: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portal {
    pub id: String,
    pub cancels_at_period_end: bool,
    pub payment_methods: bool,
    pub invoices: bool,
    /// Whether plans may be changed, each change billed at once, downgrades at the period's end.
    pub changes: bool,
    /// Product and price.
    pub prices: Vec<(String, String)>,
}

impl Portal {
    /// Whether customers may change to this price there.
    pub fn offers(&self, price_id: &str) -> bool {
        self.prices.iter().any(|(_, price)| price == price_id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub id: String,
    pub url: String,
    /// `None`: the account's own version, whatever that is.
    pub api_version: Option<String>,
    pub events: Vec<String>,
    pub enabled: bool,
}

/// A destination of thin events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub id: String,
    pub url: String,
    pub events: Vec<String>,
    pub enabled: bool,
}
