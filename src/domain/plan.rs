//! The plans file: features, plans and policies, parsed and checked whole.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::ids::{FeatureId, PlanId};
use crate::domain::money::Money;

mod limits;
mod mistakes;
mod models;
mod parse;
mod reader;
mod rules;
#[cfg(test)]
mod tests;

pub(crate) use mistakes::nearest;
pub use mistakes::{PlanFileErrors, PlanFileMistake};
pub use models::ModelPrices;
pub use rules::parse_duration;

/// Everything the plans file says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// The plan of customers without a live subscription; `None` denies them.
    pub default_plan: Option<PlanId>,
    pub features: BTreeMap<FeatureId, Feature>,
    /// By rank, lowest first.
    pub plans: Vec<Plan>,
    /// What the models cost us, by the name under which runs report them.
    pub models: BTreeMap<String, ModelPrices>,
    /// For features counted in credits: what each model takes. A feature may have a table here
    /// before it is declared in `features`; it takes effect with its declaration.
    pub credits: BTreeMap<FeatureId, CreditTable>,
    /// Length of a metering window: usage becomes one meter event per customer, meter and window.
    pub metering_window: Duration,
    pub schedule: Schedule,
    pub policy: Policy,
    pub retention: Retention,
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
    pub on_outage: OnOutage,
    /// When this file changes the plan's limits, those who are on the plan keep the old ones until
    /// they are moved.
    pub grandfather: bool,
}

/// What becomes of a plan's runs while the database cannot answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnOutage {
    Deny,
    /// Each customer may draw up to `units` of each feature in one outage, within what it had left
    /// when it was last seen. They are written down beside the database and counted when it
    /// answers again.
    Allow {
        units: i64,
    },
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
    /// Percents of the granted amount at which the customer is told, each once, ascending: 1 to
    /// 100 of a hard limit, 1 to 1000 of a soft one, none of an unlimited one. Empty (no nudges)
    /// unless the file lists some.
    pub nudge_at_percent: Vec<u16>,
    /// Where nothing is granted that percents could be of: the units, used in a billing period,
    /// at which the customer of an unlimited feature is told, each once, ascending, 1 to 10⁹.
    pub nudge_at_units: Vec<i64>,
    /// The quota is meant to be set per customer; the number here holds until it is.
    pub custom: bool,
}

/// What happens at the limit. Amounts are whole units per billing period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Enforcement {
    /// The gate closes when `granted` is used.
    Hard { granted: i64 },
    /// Counted and told about, never blocked.
    Soft { granted: i64 },
    /// No number at all.
    Unlimited,
}

/// What a model costs us. Picodollars (10⁻¹² dollars) per token are the same number as
/// micro-dollars per million tokens, so every price of up to six decimals is exact.
/// A rate is at most 10¹²: multiply it by tokens in `i128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelPrice {
    pub input_picodollars_per_token: i64,
    pub output_picodollars_per_token: i64,
    /// The price of input if the file gives no other.
    pub cached_input_picodollars_per_token: i64,
}

/// What the models take of a feature that is counted in credits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreditTable {
    /// By the name under which runs report the model.
    pub rates: BTreeMap<String, CreditRate>,
    /// What a model without a rate takes: that of the one which the feature names in
    /// `count_unknown_models_as`. `None` refuses its runs.
    pub unknown_models: Option<CreditRate>,
}

impl CreditTable {
    /// Whether each model takes in `newer` what it takes here. What this table does not know is not
    /// looked at: that came with the newer one.
    fn holds_in(&self, newer: &Self) -> bool {
        let same_stand_in = || self.unknown_models == newer.unknown_models;
        (self.unknown_models.is_none() || same_stand_in())
            && self.rates.iter().all(|(model, rate)| newer.rates.get(model) == Some(rate))
    }
}

/// What models take of a feature, for customers who may be on older terms: these keep the rates that
/// they have, and models that came since have the rate they came with.
#[derive(Debug, Clone, Copy)]
pub struct Rates<'c> {
    terms: &'c CreditTable,
    active: Option<&'c CreditTable>,
}

impl Rates<'_> {
    /// The rate of a model; `None` if its runs are refused.
    pub fn of(&self, model: &str) -> Option<&CreditRate> {
        let since = || self.active.and_then(|table| table.rates.get(model));
        let by_name = self.terms.rates.get(model).or_else(since);
        let unknown = || self.active.and_then(|table| table.unknown_models.as_ref());
        by_name.or(self.terms.unknown_models.as_ref()).or_else(unknown)
    }
}

impl<'c> From<&'c CreditTable> for Rates<'c> {
    fn from(terms: &'c CreditTable) -> Self {
        Self { terms, active: None }
    }
}

/// What a model takes in credits. Nanocredits (10⁻⁹ credits) per token are the same number as
/// micro-credits per thousand tokens. A run's sum is rounded up to whole credits.
/// A rate is at most 10¹²: multiply it by tokens in `i128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditRate {
    pub input_nanocredits_per_token: i64,
    pub output_nanocredits_per_token: i64,
    /// The rate of input if the file gives no other.
    pub cached_input_nanocredits_per_token: i64,
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
    /// What becomes of a customer whose invoices Stripe does not collect.
    pub pause_collection: PauseCollection,
    /// What a customer costs us per month beside the models, in dollars; plans may be absent.
    pub cost_overhead: BTreeMap<PlanId, Money>,
}

/// What Stripe's `pause_collection`, which leaves a subscription's status as it is, does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseCollection {
    /// It runs on, as Stripe's documentation has it: the service goes on, the money waits.
    Allow,
    /// It is denied as `paused`.
    Deny,
}

/// How long history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// How long usage events are kept, counted from the end of their billing period, 62 to 36,500
    /// days; `None` keeps them for ever.
    ///
    /// Pruning never touches a period that is still open, what an idempotency key was answered,
    /// or usage that has not reached Stripe yet, however old.
    pub usage_events: Option<Duration>,
}

/// Notices every minute, meter events every five, reconciliation once an hour.
impl Default for Schedule {
    fn default() -> Self {
        Self {
            notices: "* * * * *".to_owned(),
            meter_events: "*/5 * * * *".to_owned(),
            reconcile: "17 * * * *".to_owned(),
        }
    }
}

/// The mail a day after an upgrade, a week's grace, paused collection closes no gate, no overhead.
impl Default for Policy {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            post_upgrade_delay: DAY,
            past_due_grace: 7 * DAY,
            pause_collection: PauseCollection::Allow,
            cost_overhead: BTreeMap::new(),
        }
    }
}

impl Retention {
    /// Usage of billing periods that ended then or before is history to be forgotten. As 62 days
    /// are the least, no run that finishes late is still counted in one of them.
    pub fn usage_forgotten_until(self, now: Timestamp) -> Option<Timestamp> {
        self.usage_events.map(|kept| now.minus(kept))
    }
}

impl Enforcement {
    /// The number of units, where there is one.
    pub fn number(self) -> Option<i64> {
        match self {
            Self::Hard { granted } | Self::Soft { granted } => Some(granted),
            Self::Unlimited => None,
        }
    }

    /// The word the plans file and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hard { .. } => "hard",
            Self::Soft { .. } => "soft",
            Self::Unlimited => "unlimited",
        }
    }
}

impl Interval {
    /// As people read it after "a" or a slash: `month`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Month => "month",
            Self::Year => "year",
        }
    }
}

impl Plan {
    /// The plan above this one, if it has the feature: one without it is no way to more of that.
    pub fn way_up<'c>(&self, catalog: &'c Catalog, feature_id: &FeatureId) -> Option<&'c Self> {
        let next = catalog.plan(self.upgrade_to.as_ref()?.as_str())?;
        next.limits.contains_key(feature_id).then_some(next)
    }

    /// Whether both plans grant the same amounts of the same features, enforced alike.
    fn limits_as(&self, other: &Self) -> bool {
        let granted = |(feature, limit): (&FeatureId, &Limit)| (feature.clone(), limit.enforcement);
        self.limits.iter().map(granted).eq(other.limits.iter().map(granted))
    }
}

impl Price {
    /// As people read it: `$99/month`.
    pub fn display(&self) -> String {
        format!("{}/{}", self.amount, self.interval.label())
    }
}

impl Catalog {
    /// Reads a plans file and checks it whole.
    ///
    /// # Errors
    /// Every mistake in the file, each with its line, its key and what was wanted there.
    pub fn parse(source: &str) -> Result<Self, PlanFileErrors> {
        parse::catalog(source)
    }

    pub fn plan(&self, id: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.id.as_str() == id)
    }

    /// The feature of that id, or, without an id, the only one there is.
    pub fn feature_or_only(&self, id: Option<&str>) -> Option<&Feature> {
        match id {
            Some(id) => self.features.get(id),
            None if self.features.len() == 1 => self.features.values().next(),
            None => None,
        }
    }

    /// The plans whose customers find other limits in `new`, by rank: a feature has come or gone,
    /// or another number or enforcement holds for it. A plan that is gone is among them, one that
    /// is new is not: nobody is on it yet.
    ///
    /// When customers are told, and whether a number is meant to be set for each, is no limit:
    /// a change of that alone holds for everybody.
    pub fn changed_limits(old: &Self, new: &Self) -> Vec<PlanId> {
        let differs =
            |plan: &&Plan| new.plan(plan.id.as_str()).is_none_or(|now| !now.limits_as(plan));
        old.plans.iter().filter(differs).map(|plan| plan.id.clone()).collect()
    }

    /// Whether models take other credits of what a plan of this file is limited in than in `new`.
    pub fn changes_rates(&self, plan: &Plan, new: &Self) -> bool {
        plan.limits.keys().any(|feature| {
            match (self.credits.get(feature), new.credits.get(feature)) {
                (None, None) => false,
                (Some(old), Some(new)) => !old.holds_in(new),
                _ => true,
            }
        })
    }

    /// What models take of a feature under these terms while `active` is in force; `None` where runs
    /// of it are counted otherwise.
    pub fn rates<'c>(&'c self, active: &'c Self, feature_id: &FeatureId) -> Option<Rates<'c>> {
        let since = active.credits.get(feature_id);
        let terms = if self.features.contains_key(feature_id) { self } else { active };
        Some(Rates { terms: terms.credits.get(feature_id)?, active: since })
    }

    pub fn plan_by_lookup_key(&self, lookup_key: &str) -> Option<&Plan> {
        self.plans
            .iter()
            .find(|plan| plan.price.as_ref().is_some_and(|p| p.lookup_key == lookup_key))
    }
}
