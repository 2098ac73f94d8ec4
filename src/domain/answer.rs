//! The gate's answer as the contract words it, made from the facts of a decision.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::domain::decision::{Intent, Reason, ThresholdState, threshold};
use crate::domain::ids::{CustomerId, FeatureId, PlanId};
use crate::domain::link::{Links, Purpose};
use crate::domain::notice::UpgradeOffer;
use crate::domain::period::BillingPeriod;
use crate::domain::plan::{Catalog, Enforcement, Feature, Interval, Plan, Price};
use crate::domain::usage::pace;

/// All that an answer depends on. Stored with a remembered decision, so that the same answer can
/// be given again at any later time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    /// The plan in force then.
    pub plan_id: Option<PlanId>,
    pub intent: Intent,
    pub asked: i64,
    pub counted: i64,
    pub reason: Reason,
    pub usage: i64,
    pub reserved: i64,
    pub period: BillingPeriod,
    pub decided_at: Timestamp,
    pub event_id: Option<String>,
}

/// The body of a decision. Field names are the public contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    pub allowed: bool,
    pub reason: Reason,
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    pub plan_id: Option<PlanId>,
    pub required_balance: i64,
    /// What was counted; only in answers to `track`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<i64>,
    pub balance: Balance,
    pub period: Bounds,
    pub threshold: Threshold,
    pub pace: PaceBody,
    pub upgrade: Option<Upgrade>,
    pub reservation: Option<()>,
    pub event_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    pub granted: Option<i64>,
    pub usage: i64,
    pub reserved: i64,
    pub remaining: Option<i64>,
    pub unlimited: bool,
    pub overage_allowed: bool,
    pub soft_limit: Option<i64>,
    pub next_reset_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bounds {
    pub start: Timestamp,
    pub end: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Threshold {
    pub state: ThresholdState,
    pub percent: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PaceBody {
    pub elapsed_days: i64,
    pub period_days: i64,
    pub projected: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upgrade {
    pub plan_id: PlanId,
    pub name: String,
    pub price: Option<String>,
    pub message: String,
    pub url: String,
}

/// Words the answer. `catalog` is the plans file that was in force when the decision was made.
pub fn answer(facts: &Facts, catalog: &Catalog, links: &Links) -> Answer {
    let plan = facts.plan_id.as_ref().and_then(|id| catalog.plan(id.as_str()));
    let limit = plan.and_then(|plan| plan.limits.get(&facts.feature_id));
    let pace = pace(facts.usage, facts.period, facts.decided_at);
    let (state, percent) = limit.map_or((ThresholdState::Ok, None), |l| threshold(l, facts.usage));
    Answer {
        allowed: facts.reason.allows(),
        reason: facts.reason,
        customer_id: facts.customer_id.clone(),
        feature_id: facts.feature_id.clone(),
        plan_id: facts.plan_id.clone(),
        required_balance: facts.asked,
        value: matches!(facts.intent, Intent::Record | Intent::RecordCapped)
            .then_some(facts.counted),
        balance: balance(limit.map(|l| l.enforcement), facts),
        period: Bounds { start: facts.period.start, end: facts.period.end },
        threshold: Threshold { state, percent },
        pace: PaceBody {
            elapsed_days: pace.elapsed_days,
            period_days: pace.period_days,
            projected: pace.projected,
        },
        upgrade: upgrade(facts, plan, pace.elapsed_days, pace.projected, catalog, links),
        reservation: None,
        event_id: facts.event_id.clone(),
    }
}

/// Without a limit (no plan, or not in the plan) nothing is granted.
fn balance(enforcement: Option<Enforcement>, facts: &Facts) -> Balance {
    let taken = facts.usage.saturating_add(facts.reserved);
    let enforcement = enforcement.unwrap_or(Enforcement::Hard { granted: 0 });
    let granted = match enforcement {
        Enforcement::Hard { granted } | Enforcement::Soft { granted } => Some(granted),
        Enforcement::Unlimited => None,
    };
    let soft_limit = match enforcement {
        Enforcement::Soft { granted } => Some(granted),
        Enforcement::Hard { .. } | Enforcement::Unlimited => None,
    };
    Balance {
        granted,
        usage: facts.usage,
        reserved: facts.reserved,
        remaining: granted.map(|granted| granted.saturating_sub(taken).max(0)),
        unlimited: granted.is_none(),
        overage_allowed: soft_limit.is_some(),
        soft_limit,
        next_reset_at: facts.period.end,
    }
}

fn upgrade(
    facts: &Facts,
    plan: Option<&Plan>,
    elapsed_days: i64,
    projected: i64,
    catalog: &Catalog,
    links: &Links,
) -> Option<Upgrade> {
    let feature = catalog.features.get(&facts.feature_id)?;
    let next = catalog.plan(plan?.upgrade_to.as_ref()?.as_str())?;
    let offer = offer(feature, next);
    let at_price = offer.price.as_ref().map(|price| format!(" at {price}")).unwrap_or_default();
    let way_up = format!("{} gives you {}{at_price}.", next.name, offer.gives);
    let message = if facts.usage == 0 {
        way_up
    } else {
        format!(
            "You used {} in the first {} of this period. At that pace, you'd use {} in a full one. {way_up}",
            units(facts.usage, &feature.unit),
            if elapsed_days == 1 { "day".to_owned() } else { format!("{elapsed_days} days") },
            units(projected, &feature.unit),
        )
    };
    Some(Upgrade {
        plan_id: next.id.clone(),
        name: next.name.clone(),
        price: offer.price,
        message,
        url: links.url(Purpose::Upgrade, &facts.customer_id, facts.period.end),
    })
}

/// What `plan` offers of `feature`, in words; the link is the caller's to add.
pub fn offer(feature: &Feature, plan: &Plan) -> UpgradeOffer {
    let interval = plan.price.as_ref().map_or(Interval::Month, |price| price.interval);
    let gives = match plan.limits.get(&feature.id).map(|limit| limit.enforcement) {
        Some(Enforcement::Hard { granted }) => {
            format!("{} a {}", units(granted, &feature.unit), interval.label())
        }
        Some(Enforcement::Soft { .. } | Enforcement::Unlimited) => {
            format!("unlimited {}s", feature.unit)
        }
        None => plan.name.clone(),
    };
    UpgradeOffer {
        plan_name: plan.name.clone(),
        price: plan.price.as_ref().map(Price::display),
        gives,
        url: None,
    }
}

/// `1 run`, `2,000 runs`.
fn units(count: i64, unit: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {unit}{plural}", thousands(count))
}

/// An integer with commas between its thousands.
pub fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        out.push('-');
    }
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
