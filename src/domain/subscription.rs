//! What Stripe says about a customer and its subscriptions, and what follows for the tier.

use crate::clock::Timestamp;

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
    /// `metadata.tollgate_customer_id`, if set.
    pub tollgate_customer_id: Option<String>,
}

/// One price within a subscription. Periods live here since Stripe's basil versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionItem {
    pub id: String,
    pub price_id: String,
    pub lookup_key: Option<String>,
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
