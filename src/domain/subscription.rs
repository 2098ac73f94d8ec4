//! What Stripe says about a customer and its subscriptions, and what follows for the tier.

use crate::clock::Timestamp;
use crate::domain::plan::Interval;

/// A subscription's status in Stripe's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionStatus {
    Trialing,
    Active,
    PastDue,
    Unpaid,
    Paused,
    Canceled,
    Incomplete,
    IncompleteExpired,
    /// One this build does not know: the last known tier is kept.
    Unknown(String),
}

impl SubscriptionStatus {
    /// Stripe's word for it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Paused => "paused",
            Self::Canceled => "canceled",
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Unknown(word) => word,
        }
    }
}

impl From<&str> for SubscriptionStatus {
    fn from(word: &str) -> Self {
        match word {
            "trialing" => Self::Trialing,
            "active" => Self::Active,
            "past_due" => Self::PastDue,
            "unpaid" => Self::Unpaid,
            "paused" => Self::Paused,
            "canceled" => Self::Canceled,
            "incomplete" => Self::Incomplete,
            "incomplete_expired" => Self::IncompleteExpired,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

/// A subscription as last fetched from Stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub id: String,
    pub stripe_customer_id: String,
    pub status: SubscriptionStatus,
    pub items: Vec<SubscriptionItem>,
    pub created_at: Timestamp,
    /// The moment Stripe counts this subscription's periods from.
    pub billing_cycle_anchor: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub cancel_at_period_end: bool,
    /// When it is planned to end, at a period's end or not.
    pub cancel_at: Option<Timestamp>,
    /// Stripe's `pause_collection`: it goes on, but its invoices are not collected.
    pub collection_paused: bool,
    /// `metadata.tollgate_customer_id`, if set.
    pub tollgate_customer_id: Option<String>,
}

/// One price within a subscription. Periods live here since Stripe's basil versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionItem {
    pub id: String,
    pub price_id: String,
    pub lookup_key: Option<String>,
    /// The plan that the price says it is of (`metadata.tollgate_plan_id`). It stays when a new price
    /// takes over the lookup key, and subscriptions go on with the old one.
    pub plan_mark: Option<String>,
    /// How often the price is paid; `None` where it is neither each month nor each year.
    pub interval: Option<Interval>,
    /// Billed by a meter rather than at a fixed amount.
    pub metered: bool,
    pub period_start: Timestamp,
    pub period_end: Timestamp,
}

/// A Stripe customer as last fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeCustomer {
    pub id: String,
    pub deleted: bool,
    pub email: Option<String>,
    pub name: Option<String>,
    /// `metadata.tollgate_customer_id`, if set.
    pub tollgate_customer_id: Option<String>,
}
