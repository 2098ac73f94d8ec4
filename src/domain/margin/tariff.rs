//! A plans file as the report sees it: what each plan earns, bears and allows of one feature.

use crate::domain::cost::Picodollars;
use crate::domain::ids::{FeatureId, PlanId};
use crate::domain::money::{Currency, Money};
use crate::domain::plan::{Catalog, Enforcement, Interval, Plan};

/// One plan's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    pub id: PlanId,
    pub name: String,
    price: Picodollars,
    /// How many months `price` pays for: 1 or 12.
    price_months: i128,
    /// Per customer and month.
    overhead: Picodollars,
    /// Units granted per month; `None` if the plan has no number.
    pub granted: Option<i64>,
    /// Whether the gate closes there.
    pub is_hard: bool,
    /// The index of the plan offered at the cap.
    pub upgrade_to: Option<usize>,
}

impl Tier {
    /// What a customer pays for so many months; a yearly price counts a twelfth for each, rounded
    /// to the picodollar.
    pub fn price(&self, months: i64) -> Picodollars {
        let paid = self.price.0 * i128::from(months);
        Picodollars(super::rounded_quotient(paid, self.price_months))
    }

    /// What a customer costs beside the models in so many months.
    pub fn overhead(&self, months: i64) -> Picodollars {
        Picodollars(self.overhead.0 * i128::from(months))
    }

    /// How many units a month can have; the largest number there is if nothing closes.
    pub fn cap(&self) -> i64 {
        self.granted.filter(|_| self.is_hard).unwrap_or(i64::MAX)
    }
}

/// All plans, lowest rank first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tariff {
    pub tiers: Vec<Tier>,
    /// The plan of customers of whom nothing else is known: the file's default, or the lowest.
    pub default: usize,
}

/// Why a plans file cannot be reported on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error(
        "plans.{0}.price.currency: the report sets prices against costs in dollars, so it must be \"usd\""
    )]
    NotInDollars(PlanId),
    #[error("there is no [features.{0}]")]
    NoSuchFeature(FeatureId),
    #[error("no plan grants {0}")]
    NobodyMayUse(FeatureId),
}

impl Tariff {
    /// The plans' numbers for one feature. A plan that does not grant it closes at zero.
    ///
    /// # Errors
    /// [`Unfit`], in terms of the plans file.
    pub fn of(catalog: &Catalog, feature: &FeatureId) -> Result<Self, Unfit> {
        if !catalog.features.contains_key(feature) {
            return Err(Unfit::NoSuchFeature(feature.clone()));
        }
        if !catalog.plans.iter().any(|plan| plan.limits.contains_key(feature)) {
            return Err(Unfit::NobodyMayUse(feature.clone()));
        }
        let tiers: Result<Vec<_>, _> =
            catalog.plans.iter().map(|plan| tier(catalog, plan, feature)).collect();
        let default = catalog.default_plan.as_ref().and_then(|id| place(catalog, id));
        Ok(Self { tiers: tiers?, default: default.unwrap_or(0) })
    }

    pub fn find(&self, plan_id: &str) -> Option<usize> {
        self.tiers.iter().position(|tier| tier.id.as_str() == plan_id)
    }
}

fn place(catalog: &Catalog, id: &PlanId) -> Option<usize> {
    catalog.plans.iter().position(|plan| plan.id == *id)
}

fn tier(catalog: &Catalog, plan: &Plan, feature: &FeatureId) -> Result<Tier, Unfit> {
    let dollars = |money: Money| match money.currency {
        Currency::USD => Ok(Picodollars::from_cents(money.minor)),
        _ => Err(Unfit::NotInDollars(plan.id.clone())),
    };
    let (price, price_months) = match &plan.price {
        None => (Picodollars::ZERO, 1),
        Some(price) => {
            let months = if price.interval == Interval::Year { 12 } else { 1 };
            (dollars(price.amount)?, months)
        }
    };
    let overhead = catalog.policy.cost_overhead.get(&plan.id);
    let (granted, is_hard) = match plan.limits.get(feature).map(|limit| limit.enforcement) {
        None => (Some(0), true),
        Some(Enforcement::Hard { granted }) => (Some(granted), true),
        Some(Enforcement::Soft { granted }) => (Some(granted), false),
        Some(Enforcement::Unlimited) => (None, false),
    };
    Ok(Tier {
        id: plan.id.clone(),
        name: plan.name.clone(),
        price,
        price_months,
        overhead: overhead.map_or(Picodollars::ZERO, |money| Picodollars::from_cents(money.minor)),
        granted,
        is_hard,
        upgrade_to: plan.upgrade_to.as_ref().and_then(|id| place(catalog, id)),
    })
}
