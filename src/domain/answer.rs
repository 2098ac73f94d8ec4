//! The gate's answer as the contract words it, made from the facts of a decision.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::domain::decision::{Intent, Reason, ThresholdState, percent_used, threshold};
use crate::domain::ids::{CustomerId, FeatureId, PlanId, ReservationId};
use crate::domain::link::{Links, Purpose};
use crate::domain::notice::UpgradeOffer;
use crate::domain::period::BillingPeriod;
use crate::domain::plan::{Catalog, Enforcement, Feature, Interval, Limit, Plan, Price};
use crate::domain::quota::Allowance;
use crate::domain::usage::pace;

/// All that an answer depends on. Stored with a remembered decision, so that the same answer can
/// be given again at any later time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    /// The plan in force then.
    pub plan_id: Option<PlanId>,
    pub intent: Intent,
    pub asked: i64,
    pub counted: i64,
    pub reason: Reason,
    /// `None`: what the plan itself says.
    pub particular: Option<Particular>,
    pub usage: i64,
    pub reserved: i64,
    pub period: BillingPeriod,
    pub decided_at: Timestamp,
    pub event_id: Option<String>,
    pub hold: Option<Hold>,
    pub remark: Remark,
}

/// The limit in force for this customer alone, and where usage stood against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Particular {
    pub enforcement: Enforcement,
    pub threshold: ThresholdState,
}

/// What an answer has to add about how it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Remark {
    #[default]
    None,
    /// A reservation was committed after its expiry, or after its period could be reported.
    Late,
    /// The database could not answer; the run was journalled and is counted when it can.
    Degraded,
}

/// Units held, or that were held until this answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hold {
    pub id: ReservationId,
    pub state: HoldState,
    pub units: i64,
    pub expires_at: Timestamp,
}

/// Where a reservation is. `committed` and `released` are final; what has expired gave its units
/// back, and may still be settled by the run that finished late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    Pending,
    Committed,
    Released,
    Expired,
}

impl HoldState {
    /// The word the contract and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Committed => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }
}

/// The body of a decision. Field names are the public contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Answer {
    pub allowed: bool,
    pub reason: Reason,
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    #[schema(required)]
    pub plan_id: Option<PlanId>,
    pub required_balance: i64,
    /// What was counted; only in answers to `track` and `commit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<i64>,
    /// Whether a hard limit is exceeded; only in answers to `commit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_limit: Option<bool>,
    /// Whether the run came after its reservation's expiry, or too late for the period that it was held
    /// in; only in answers to `commit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// Whether the database could not answer, and the run is journalled until it can.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
    pub balance: Balance,
    pub period: Bounds,
    pub threshold: Threshold,
    pub pace: PaceBody,
    /// The plan above, if there is one that has the feature.
    #[schema(required)]
    pub upgrade: Option<Upgrade>,
    #[schema(required)]
    pub reservation: Option<Hold>,
    #[schema(required)]
    pub event_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Balance {
    #[schema(required)]
    pub granted: Option<i64>,
    pub usage: i64,
    pub reserved: i64,
    #[schema(required)]
    pub remaining: Option<i64>,
    pub unlimited: bool,
    pub overage_allowed: bool,
    #[schema(required)]
    pub soft_limit: Option<i64>,
    pub next_reset_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Bounds {
    pub start: Timestamp,
    pub end: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Threshold {
    pub state: ThresholdState,
    #[schema(required)]
    pub percent: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PaceBody {
    pub elapsed_days: i64,
    pub period_days: i64,
    pub projected: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Upgrade {
    pub plan_id: PlanId,
    pub name: String,
    #[schema(required)]
    pub price: Option<String>,
    pub message: String,
    pub url: String,
}

/// Words the answer. `catalog` is the plans file that was in force when the decision was made.
pub fn answer(facts: &Facts, catalog: &Catalog, links: &Links) -> Answer {
    let plan = facts.plan_id.as_ref().and_then(|id| catalog.plan(id.as_str()));
    let limit = plan.and_then(|plan| plan.limits.get(&facts.feature_id));
    let now = facts.particular.or_else(|| limit.map(|limit| plans_own(limit, facts.usage)));
    let enforcement = now.map(|now| now.enforcement);
    let pace = pace(facts.usage, facts.period, facts.decided_at);
    let commits = facts.intent == Intent::Commit;
    Answer {
        allowed: facts.reason.allows(),
        reason: facts.reason,
        customer_id: facts.customer_id.clone(),
        feature_id: facts.feature_id.clone(),
        plan_id: facts.plan_id.clone(),
        required_balance: facts.asked,
        value: facts.intent.tells_what_was_counted().then_some(facts.counted),
        over_limit: commits.then(|| exceeds(enforcement, facts)),
        late: commits.then_some(facts.remark == Remark::Late),
        degraded: facts.remark == Remark::Degraded,
        balance: balance(enforcement, facts),
        period: Bounds { start: facts.period.start, end: facts.period.end },
        threshold: Threshold {
            state: now.map_or(ThresholdState::Ok, |now| now.threshold),
            percent: enforcement.and_then(|enforcement| percent_used(enforcement, facts.usage)),
        },
        pace: PaceBody {
            elapsed_days: pace.elapsed_days,
            period_days: pace.period_days,
            projected: pace.projected,
        },
        upgrade: upgrade(facts, plan, pace.elapsed_days, pace.projected, catalog, links),
        reservation: facts.hold.clone(),
        event_id: facts.event_id.clone(),
    }
}

fn plans_own(limit: &Limit, usage: i64) -> Particular {
    let enforcement = limit.enforcement;
    let allowance = Allowance { limit: Some(limit), base: enforcement, enforcement };
    Particular { enforcement, threshold: threshold(&allowance, usage) }
}

fn exceeds(enforcement: Option<Enforcement>, facts: &Facts) -> bool {
    let taken = facts.usage.saturating_add(facts.reserved);
    matches!(enforcement, Some(Enforcement::Hard { granted }) if taken > granted)
}

/// Without a limit (no plan, or not in the plan) nothing is granted.
fn balance(enforcement: Option<Enforcement>, facts: &Facts) -> Balance {
    let taken = facts.usage.saturating_add(facts.reserved);
    let enforcement = enforcement.unwrap_or(Enforcement::Hard { granted: 0 });
    let granted = enforcement.number();
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
    let next = plan?.way_up(catalog, &facts.feature_id)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const PLANS: &str = include_str!("../../plans.example.toml");

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// A question on the 18th day of November, on Starter, after `usage` runs.
    fn facts(usage: i64, reason: Reason) -> Facts {
        Facts {
            customer_id: "acme".parse().unwrap(),
            feature_id: "ai_runs".parse().unwrap(),
            plan_id: Some("starter".parse().unwrap()),
            intent: Intent::Check,
            asked: 1,
            counted: 0,
            reason,
            particular: None,
            usage,
            reserved: 0,
            period: BillingPeriod {
                start: at("2026-11-01T00:00:00Z"),
                end: at("2026-12-01T00:00:00Z"),
            },
            decided_at: at("2026-11-18T15:00:00Z"),
            event_id: None,
            hold: None,
            remark: Remark::None,
        }
    }

    fn worded(facts: &Facts, plans: &str) -> Value {
        let links = Links::new("https://billing.example.com", vec!["key".into()]);
        let answer = answer(facts, &Catalog::parse(plans).unwrap(), &links);
        serde_json::to_value(answer).unwrap()
    }

    fn message(facts: &Facts, plans: &str) -> String {
        worded(facts, plans)["upgrade"]["message"].as_str().unwrap().to_owned()
    }

    fn balance(plan: &str, usage: i64, plans: &str) -> Value {
        let plan_id = Some(plan.parse().unwrap());
        worded(&Facts { plan_id, ..facts(usage, Reason::WithinLimit) }, plans)["balance"].clone()
    }

    #[test]
    fn the_contracts_example_word_for_word() {
        let mut answer = worded(&facts(200, Reason::LimitReached), PLANS);
        let url = answer["upgrade"]["url"].take();
        assert!(url.as_str().unwrap().starts_with("https://billing.example.com/upgrade?token="));
        assert_eq!(
            answer,
            json!({"allowed": false, "reason": "limit_reached",
                "customer_id": "acme", "feature_id": "ai_runs", "plan_id": "starter", "required_balance": 1,
                "balance": {"granted": 200, "usage": 200, "reserved": 0, "remaining": 0, "unlimited": false,
                    "overage_allowed": false, "soft_limit": null, "next_reset_at": "2026-12-01T00:00:00Z"},
                "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
                "threshold": {"state": "limit_reached", "percent": 100},
                "pace": {"elapsed_days": 18, "period_days": 30, "projected": 333},
                "upgrade": {"plan_id": "pro", "name": "Pro", "price": "$99/month",
                    "message": "You used 200 runs in the first 18 days of this period. At that pace, \
                        you'd use 333 runs in a full one. Pro gives you unlimited runs at $99/month.",
                    "url": null},
                "reservation": null, "event_id": null})
        );
    }

    #[test]
    fn the_link_up_is_for_this_customer_until_the_periods_end() {
        let answer = worded(&facts(200, Reason::LimitReached), PLANS);
        let links = Links::new("https://billing.example.com", vec!["key".into()]);
        let token = answer["upgrade"]["url"].as_str().unwrap().split_once("token=").unwrap().1;
        let verify = |moment| links.verify(Purpose::Upgrade, token, at(moment));
        assert_eq!(verify("2026-11-30T23:59:59Z"), Ok("acme".parse().unwrap()));
        assert!(verify("2026-12-01T00:00:00Z").is_err());
    }

    #[test]
    fn one_run_on_the_first_day_is_told_in_the_singular() {
        let first =
            Facts { decided_at: at("2026-11-01T09:00:00Z"), ..facts(1, Reason::WithinLimit) };
        assert_eq!(
            message(&first, PLANS),
            "You used 1 run in the first day of this period. At that pace, you'd use 30 runs in a \
             full one. Pro gives you unlimited runs at $99/month."
        );
    }

    #[test]
    fn who_has_used_nothing_is_only_told_of_the_way_up() {
        let none = facts(0, Reason::WithinLimit);
        assert_eq!(message(&none, PLANS), "Pro gives you unlimited runs at $99/month.");
    }

    #[test]
    fn a_capped_next_plan_names_its_number_and_a_free_one_no_price() {
        let on_pro =
            Facts { plan_id: Some("pro".parse().unwrap()), ..facts(2500, Reason::OverSoftLimit) };
        assert_eq!(
            message(&on_pro, PLANS),
            "You used 2,500 runs in the first 18 days of this period. At that pace, you'd use 4,166 \
             runs in a full one. Team gives you 6,000 runs a month at $399/month."
        );
        let price = "price = { amount = \"99.00\", currency = \"usd\", interval = \"month\", lookup_key = \"pro_monthly\" }";
        assert!(PLANS.contains(price));
        let free = PLANS.replace(price, "");
        let none = facts(0, Reason::WithinLimit);
        assert_eq!(message(&none, &free), "Pro gives you unlimited runs.");
        assert_eq!(worded(&none, &free)["upgrade"]["price"], Value::Null);
    }

    #[test]
    fn the_highest_plan_has_no_way_up() {
        let on_team =
            Facts { plan_id: Some("team".parse().unwrap()), ..facts(1, Reason::WithinLimit) };
        assert_eq!(worded(&on_team, PLANS)["upgrade"], Value::Null);
    }

    #[test]
    fn a_plan_without_the_feature_is_no_way_up() {
        let without = PLANS.replace(
            "limits.ai_runs = { granted = 6000, enforcement = \"hard\", custom = true }",
            "",
        );
        assert_ne!(without, PLANS);
        let on_pro =
            Facts { plan_id: Some("pro".parse().unwrap()), ..facts(1, Reason::WithinLimit) };
        assert_eq!(worded(&on_pro, &without)["upgrade"], Value::Null);
    }

    #[test]
    fn the_balance_follows_the_limits_kind() {
        let hard = balance("starter", 150, PLANS);
        assert_eq!((&hard["granted"], &hard["remaining"]), (&json!(200), &json!(50)));
        assert_eq!((&hard["soft_limit"], &hard["overage_allowed"]), (&Value::Null, &json!(false)));
        let soft = balance("pro", 2100, PLANS);
        assert_eq!((&soft["granted"], &soft["soft_limit"]), (&json!(2000), &json!(2000)));
        assert_eq!((&soft["remaining"], &soft["overage_allowed"]), (&json!(0), &json!(true)));
        assert_eq!((&soft["usage"], &soft["unlimited"]), (&json!(2100), &json!(false)));
        let unlimited = PLANS.replace(
            "{ granted = 6000, enforcement = \"hard\", custom = true }",
            "{ enforcement = \"unlimited\" }",
        );
        let open = balance("team", 9, &unlimited);
        assert_eq!((&open["granted"], &open["soft_limit"]), (&Value::Null, &Value::Null));
        assert_eq!((&open["remaining"], &open["unlimited"]), (&Value::Null, &json!(true)));
    }

    #[test]
    fn what_runs_hold_is_not_left_over_and_nothing_is_ever_less_than_nothing() {
        let held = Facts { reserved: 30, ..facts(150, Reason::WithinLimit) };
        assert_eq!(worded(&held, PLANS)["balance"]["remaining"], 20);
        assert_eq!(balance("starter", 260, PLANS)["remaining"], 0);
    }

    #[test]
    fn without_a_plan_nothing_is_granted_and_nothing_offered() {
        let nobody = Facts { plan_id: None, ..facts(0, Reason::NoPlan) };
        let answer = worded(&nobody, PLANS);
        assert_eq!((&answer["allowed"], &answer["plan_id"]), (&json!(false), &Value::Null));
        assert_eq!((&answer["balance"]["granted"], &answer["upgrade"]), (&json!(0), &Value::Null));
        assert_eq!(answer["threshold"], json!({"state": "ok", "percent": null}));
    }

    #[test]
    fn only_an_answer_to_track_says_what_was_counted() {
        let value = |intent| {
            let facts = Facts { intent, asked: 5, counted: 3, ..facts(200, Reason::LimitReached) };
            worded(&facts, PLANS).get("value").cloned()
        };
        assert_eq!(value(Intent::Record), Some(json!(3)));
        assert_eq!(value(Intent::RecordCapped), Some(json!(3)));
        assert_eq!(value(Intent::Consume), None);
        assert_eq!(value(Intent::Check), None);
    }

    #[test]
    fn thousands_have_commas() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (-1_234_567, "-1,234,567")];
        for (number, text) in cases {
            assert_eq!(thousands(number), text);
        }
    }
}
