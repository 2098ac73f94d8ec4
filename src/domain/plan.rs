//! The plans file: features, plans and policies, parsed and checked whole.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::ids::{FeatureId, PlanId};
use crate::domain::money::Money;

/// Everything the plans file says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// The plan of customers without a live subscription; `None` denies them.
    pub default_plan: Option<PlanId>,
    pub features: BTreeMap<FeatureId, Feature>,
    /// By rank, lowest first.
    pub plans: Vec<Plan>,
    /// Length of a metering window: usage becomes one meter event per customer, meter and window.
    pub metering_window: Duration,
    pub schedule: Schedule,
    pub policy: Policy,
}

/// What is metered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    pub id: FeatureId,
    /// As people read it, in the plural: `AI runs`.
    pub name: String,
    /// One of them: `run`.
    pub unit: String,
    /// The Stripe meter's `event_name`; `None` keeps usage local.
    pub stripe_meter: Option<String>,
}

/// A tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub id: PlanId,
    pub name: String,
    /// A change to a plan of higher rank is an upgrade. Unique.
    pub rank: i64,
    pub price: Option<Price>,
    pub upgrade_to: Option<PlanId>,
    pub limits: BTreeMap<FeatureId, Limit>,
    /// What an upgrade to this plan opens, for the mail a day later.
    pub unlocks: Vec<Unlock>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    pub amount: Money,
    pub interval: Interval,
    /// The Stripe price's lookup key, by which a subscription's items are matched to plans.
    pub lookup_key: String,
}

/// How often a price recurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interval {
    Month,
    Year,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlock {
    pub title: String,
    pub url: String,
}

/// What a plan grants of one feature in a billing period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub enforcement: Enforcement,
    /// Percents of the granted amount at which the customer is told, ascending, 1 to 100.
    pub nudge_at_percent: Vec<u8>,
    /// The quota is meant to be set per customer; the number here holds until it is.
    pub custom: bool,
}

/// What happens at the limit. Amounts are whole units per billing period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// The gate closes when `granted` is used.
    Hard { granted: i64 },
    /// Counted and told about, never blocked.
    Soft { granted: i64 },
    /// No number at all.
    Unlimited,
}

/// When jobs run: cron expressions, UTC, five fields or six with seconds first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub notices: String,
    pub meter_events: String,
    pub reconcile: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long after an upgrade its mail is sent.
    pub post_upgrade_delay: Duration,
    /// How long a past-due customer keeps the plan.
    pub past_due_grace: Duration,
}

impl Catalog {
    pub fn plan(&self, id: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.id.as_str() == id)
    }

    pub fn plan_by_lookup_key(&self, lookup_key: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.price.as_ref().is_some_and(|p| p.lookup_key == lookup_key))
    }
}
