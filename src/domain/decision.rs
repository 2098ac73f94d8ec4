//! The gate's decision: may this run go ahead, and what does it leave behind?

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::domain::plan::Enforcement;
use crate::domain::quota::Allowance;

/// Why a run is allowed or denied, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    WithinLimit,
    OverSoftLimit,
    Unlimited,
    LimitReached,
    HeldByRunningJobs,
    PastDue,
    Paused,
    NoPlan,
    FeatureNotInPlan,
}

impl Reason {
    /// The word the contract and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WithinLimit => "within_limit",
            Self::OverSoftLimit => "over_soft_limit",
            Self::Unlimited => "unlimited",
            Self::LimitReached => "limit_reached",
            Self::HeldByRunningJobs => "held_by_running_jobs",
            Self::PastDue => "past_due",
            Self::Paused => "paused",
            Self::NoPlan => "no_plan",
            Self::FeatureNotInPlan => "feature_not_in_plan",
        }
    }

    pub fn allows(self) -> bool {
        matches!(self, Self::WithinLimit | Self::OverSoftLimit | Self::Unlimited)
    }
}

/// How a customer stands with its payments, as far as the gate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    Good,
    /// A payment failed; the plan is kept until the grace ends.
    Grace {
        ends_at: Timestamp,
    },
    PastDue,
    Paused,
}

impl Standing {
    /// Why the gate is closed whatever the balance, if it is.
    pub fn denial(self, now: Timestamp) -> Option<Reason> {
        match self {
            Self::Good => None,
            Self::Grace { ends_at } => (now >= ends_at).then_some(Reason::PastDue),
            Self::PastDue => Some(Reason::PastDue),
            Self::Paused => Some(Reason::Paused),
        }
    }
}

/// What a customer may use of one feature: its allowance, or why it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entitlement<'a> {
    Granted(Allowance<'a>),
    Denied(Reason),
}

/// What the caller wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Only ask.
    Check,
    /// Ask, and count if allowed, in one step.
    Consume,
    /// Count a run that has happened, whatever the limit.
    Record,
    /// Count of a run that has happened at most what remains.
    RecordCapped,
    /// Ask, and hold the units for a run if allowed.
    Reserve,
    /// Count a finished run in place of what was held for it, whatever the limit.
    Commit,
    /// Give back what was held; nothing is counted.
    Release,
}

impl Intent {
    /// Whether the run has happened already, so that it is counted whatever the limit says.
    pub fn tells_what_was_counted(self) -> bool {
        matches!(self, Self::Record | Self::RecordCapped | Self::Commit)
    }
}

/// The outcome of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub reason: Reason,
    /// Units to add to usage; 0 when nothing is counted.
    pub counted: i64,
    /// Units to hold; 0 when nothing is.
    pub held: i64,
}

/// Decides on `value` units, `usage` and `reserved` being what is taken already. `value` is at
/// least 1, except that a run that was reserved may turn out to have taken nothing.
///
/// Under a hard limit usage plus reservations never exceed the granted amount, except by
/// [`Intent::Record`] and [`Intent::Commit`], whose run has happened already.
pub fn decide(
    entitlement: Entitlement<'_>,
    usage: i64,
    reserved: i64,
    value: i64,
    intent: Intent,
) -> Verdict {
    let (reason, room) = judge(entitlement, usage, reserved, value);
    let if_allowed = if reason.allows() { value } else { 0 };
    let (counted, held) = match intent {
        Intent::Check | Intent::Release => (0, 0),
        Intent::Consume => (if_allowed, 0),
        Intent::Record | Intent::Commit => (value, 0),
        Intent::RecordCapped => (value.min(room), 0),
        Intent::Reserve => (0, if_allowed),
    };
    Verdict { reason, counted, held }
}

/// Whether `value` more units are allowed, and how many would be.
fn judge(entitlement: Entitlement<'_>, usage: i64, reserved: i64, value: i64) -> (Reason, i64) {
    let allowance = match entitlement {
        Entitlement::Denied(reason) => return (reason, 0),
        Entitlement::Granted(allowance) => allowance,
    };
    match allowance.enforcement {
        Enforcement::Unlimited => (Reason::Unlimited, i64::MAX),
        Enforcement::Soft { granted } if usage.saturating_add(value) > granted => {
            (Reason::OverSoftLimit, i64::MAX)
        }
        Enforcement::Soft { .. } => (Reason::WithinLimit, i64::MAX),
        Enforcement::Hard { granted } => {
            let free = granted.saturating_sub(usage);
            let room = free.saturating_sub(reserved).max(0);
            let reason = if value <= room {
                Reason::WithinLimit
            } else if value <= free {
                Reason::HeldByRunningJobs
            } else {
                Reason::LimitReached
            };
            (reason, room)
        }
    }
}

/// A number at which a customer is told of its usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// This percent of the granted amount.
    Percent(u16),
    /// This many units, where nothing limits them.
    Units(i64),
}

/// A threshold that usage has just passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Crossing {
    Nudge(Mark),
    /// All of a hard limit.
    Cap,
}

impl Crossing {
    /// Whether it is to be told to someone who was at `was` under other limits. What is told in units
    /// and what is told in percent are neither above nor below each other.
    pub fn is_news_after(self, was: Option<Self>) -> bool {
        let in_units = |at| matches!(at, Self::Nudge(Mark::Units(_)));
        was.is_none_or(|was| in_units(was) != in_units(self) || self > was)
    }
}

/// What the step from `before` to `after` units crossed. Only the highest threshold counts: a run
/// that goes from 79 % to the cap tells of the cap.
pub fn crossing(allowance: &Allowance<'_>, before: i64, after: i64) -> Option<Crossing> {
    let highest = reached(allowance, after);
    highest.filter(|_| reached(allowance, before) < highest)
}

/// The highest threshold that `usage` has reached.
pub fn reached(allowance: &Allowance<'_>, usage: i64) -> Option<Crossing> {
    if let Enforcement::Hard { granted } = allowance.enforcement
        && usage >= granted
    {
        return Some(Crossing::Cap);
    }
    let limit = allowance.limit?;
    match allowance.enforcement {
        Enforcement::Unlimited => {
            let units = limit.nudge_at_units.iter().copied().filter(|units| usage >= *units);
            units.max().map(|units| Crossing::Nudge(Mark::Units(units)))
        }
        Enforcement::Hard { granted } | Enforcement::Soft { granted } => {
            let percents = limit.nudge_at_percent.iter().copied();
            let percents = percents.filter(|percent| is_at(usage, granted, *percent));
            percents.max().map(|percent| Crossing::Nudge(Mark::Percent(percent)))
        }
    }
}

/// Whether `usage` is at or above `percent` of `granted`, exactly.
fn is_at(usage: i64, granted: i64, percent: u16) -> bool {
    i128::from(usage) * 100 >= i128::from(granted) * i128::from(percent)
}

/// Where usage stands against its limit, for banner, gate and mail alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdState {
    Ok,
    Nudge,
    LimitReached,
    OverSoftLimit,
}

/// The state of `usage` under its allowance.
pub fn threshold(allowance: &Allowance<'_>, usage: i64) -> ThresholdState {
    match (allowance.enforcement, reached(allowance, usage)) {
        (_, Some(Crossing::Cap)) => ThresholdState::LimitReached,
        (Enforcement::Soft { granted }, _) if usage > granted => ThresholdState::OverSoftLimit,
        (_, Some(Crossing::Nudge(_))) => ThresholdState::Nudge,
        (_, None) => ThresholdState::Ok,
    }
}

/// Usage in percent of the granted amount, rounded down; `None` where there is no number.
pub fn percent_used(enforcement: Enforcement, usage: i64) -> Option<i64> {
    match enforcement {
        Enforcement::Unlimited => None,
        Enforcement::Hard { granted: 0 } | Enforcement::Soft { granted: 0 } => Some(100),
        Enforcement::Hard { granted } | Enforcement::Soft { granted } => {
            let share = i128::from(usage) * 100 / i128::from(granted);
            Some(i64::try_from(share).unwrap_or(i64::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::Limit;
    use proptest::prelude::*;

    fn limit(enforcement: Enforcement) -> Limit {
        Limit { enforcement, nudge_at_percent: vec![80], nudge_at_units: Vec::new(), custom: false }
    }

    fn plain(limit: &Limit) -> Allowance<'_> {
        Allowance { limit: Some(limit), base: limit.enforcement, enforcement: limit.enforcement }
    }

    fn hard(granted: i64) -> Limit {
        limit(Enforcement::Hard { granted })
    }

    fn ask(limit: &Limit, usage: i64, reserved: i64, value: i64, intent: Intent) -> Verdict {
        decide(Entitlement::Granted(plain(limit)), usage, reserved, value, intent)
    }

    const EIGHTY: Crossing = Crossing::Nudge(Mark::Percent(80));

    #[test]
    fn the_last_unit_is_allowed_and_the_next_is_not() {
        let cap = hard(200);
        let last = ask(&cap, 199, 0, 1, Intent::Consume);
        assert_eq!(last, Verdict { reason: Reason::WithinLimit, counted: 1, held: 0 });
        let next = ask(&cap, 200, 0, 1, Intent::Consume);
        assert_eq!(next, Verdict { reason: Reason::LimitReached, counted: 0, held: 0 });
    }

    #[test]
    fn units_held_by_running_jobs_are_named_as_the_obstacle_when_they_alone_are() {
        assert_eq!(ask(&hard(10), 5, 5, 1, Intent::Check).reason, Reason::HeldByRunningJobs);
        assert_eq!(ask(&hard(10), 10, 0, 1, Intent::Check).reason, Reason::LimitReached);
    }

    #[test]
    fn a_run_that_has_happened_is_counted_past_the_cap_unless_capped() {
        assert_eq!(ask(&hard(10), 9, 0, 5, Intent::Record).counted, 5);
        assert_eq!(ask(&hard(10), 9, 0, 5, Intent::RecordCapped).counted, 1);
        assert_eq!(ask(&hard(10), 12, 0, 5, Intent::RecordCapped).counted, 0);
    }

    #[test]
    fn a_soft_limit_counts_and_never_blocks() {
        let soft = limit(Enforcement::Soft { granted: 10 });
        assert_eq!(ask(&soft, 9, 0, 1, Intent::Consume).reason, Reason::WithinLimit);
        let over = ask(&soft, 10, 0, 1, Intent::Consume);
        assert_eq!(over, Verdict { reason: Reason::OverSoftLimit, counted: 1, held: 0 });
    }

    #[test]
    fn grace_ends_at_its_instant() {
        let ends_at = Timestamp::from_seconds(100);
        let standing = Standing::Grace { ends_at };
        assert_eq!(standing.denial(Timestamp::from_ms(99_999)), None);
        assert_eq!(standing.denial(ends_at), Some(Reason::PastDue));
    }

    #[test]
    fn the_nudge_falls_exactly_on_eighty_percent() {
        assert_eq!(crossing(&plain(&hard(200)), 158, 159), None);
        assert_eq!(crossing(&plain(&hard(200)), 159, 160), Some(EIGHTY));
        assert_eq!(crossing(&plain(&hard(200)), 160, 161), None);
    }

    #[test]
    fn a_run_from_below_the_nudge_to_the_cap_tells_of_the_cap_only() {
        assert_eq!(crossing(&plain(&hard(200)), 150, 200), Some(Crossing::Cap));
        assert_eq!(crossing(&plain(&hard(200)), 200, 260), None);
    }

    #[test]
    fn a_soft_limit_nudges_at_its_own_percents_and_has_no_cap() {
        let soft =
            Limit { nudge_at_percent: vec![80, 100], ..limit(Enforcement::Soft { granted: 10 }) };
        assert_eq!(crossing(&plain(&soft), 9, 10), Some(Crossing::Nudge(Mark::Percent(100))));
        assert_eq!(crossing(&plain(&soft), 7, 12), Some(Crossing::Nudge(Mark::Percent(100))));
        assert_eq!(crossing(&plain(&soft), 10, 20), None);
    }

    #[test]
    fn an_unlimited_feature_is_told_of_at_its_own_numbers() {
        let unlimited = Limit { nudge_at_units: vec![1000, 5000], ..limit(Enforcement::Unlimited) };
        let told = |before, after| crossing(&plain(&unlimited), before, after);
        assert_eq!(told(998, 999), None);
        assert_eq!(told(999, 1000), Some(Crossing::Nudge(Mark::Units(1000))));
        assert_eq!(told(1000, 4999), None);
        assert_eq!(told(0, 9000), Some(Crossing::Nudge(Mark::Units(5000))));
    }

    #[test]
    fn threshold_states_follow_the_limit() {
        let state = |limit: &Limit, usage| threshold(&plain(limit), usage);
        assert_eq!(state(&hard(200), 159), ThresholdState::Ok);
        assert_eq!(state(&hard(200), 160), ThresholdState::Nudge);
        assert_eq!(state(&hard(200), 200), ThresholdState::LimitReached);
        assert_eq!(state(&hard(0), 0), ThresholdState::LimitReached);
        let soft = limit(Enforcement::Soft { granted: 10 });
        assert_eq!(state(&soft, 11), ThresholdState::OverSoftLimit);
        assert_eq!(state(&limit(Enforcement::Unlimited), 11), ThresholdState::Ok);
    }

    #[test]
    fn percents_are_rounded_down_and_need_a_number() {
        let hard = |granted| Enforcement::Hard { granted };
        assert_eq!(percent_used(hard(200), 159), Some(79));
        assert_eq!(percent_used(hard(0), 0), Some(100));
        assert_eq!(percent_used(Enforcement::Soft { granted: 10 }, 11), Some(110));
        assert_eq!(percent_used(Enforcement::Unlimited, 11), None);
    }

    #[test]
    fn what_is_reserved_is_held_and_what_is_committed_is_counted_whatever_the_limit() {
        let reserved = ask(&hard(10), 5, 2, 3, Intent::Reserve);
        assert_eq!(reserved, Verdict { reason: Reason::WithinLimit, counted: 0, held: 3 });
        assert_eq!(ask(&hard(10), 5, 3, 3, Intent::Reserve).held, 0);
        let committed = ask(&hard(10), 5, 2, 9, Intent::Commit);
        assert_eq!(committed, Verdict { reason: Reason::LimitReached, counted: 9, held: 0 });
        assert_eq!(ask(&hard(10), 10, 0, 0, Intent::Commit).reason, Reason::WithinLimit);
    }

    /// The rule said once more, unit by unit and without arithmetic on whole amounts.
    fn naive(enforcement: Enforcement, usage: i64, reserved: i64, value: i64) -> (bool, bool) {
        let Enforcement::Hard { granted } = enforcement else { return (true, true) };
        let mut seats: Vec<bool> = (0..granted).map(|n| n >= usage).collect();
        let without_holds = seats.iter().filter(|free| **free).count();
        for _ in 0..reserved {
            if let Some(seat) = seats.iter_mut().find(|free| **free) {
                *seat = false;
            }
        }
        let fits = |free: usize| i64::try_from(free).unwrap() >= value;
        (fits(seats.iter().filter(|free| **free).count()), fits(without_holds))
    }

    proptest! {
        #[test]
        fn the_decision_agrees_with_a_naive_model(
            kind in 0..3, granted in 0_i64..60, usage in 0_i64..80, reserved in 0_i64..30, value in 1_i64..40,
        ) {
            let enforcement = match kind {
                0 => Enforcement::Hard { granted },
                1 => Enforcement::Soft { granted },
                _ => Enforcement::Unlimited,
            };
            let limit = limit(enforcement);
            let (allowed, but_for_holds) = naive(enforcement, usage, reserved, value);
            for intent in [Intent::Check, Intent::Consume, Intent::Reserve] {
                let verdict = ask(&limit, usage, reserved, value, intent);
                prop_assert_eq!(verdict.reason.allows(), allowed);
                prop_assert_eq!(verdict.reason == Reason::HeldByRunningJobs, !allowed && but_for_holds);
                let taken = if allowed && intent != Intent::Check { value } else { 0 };
                prop_assert_eq!(verdict.counted + verdict.held, taken);
            }
            for intent in [Intent::Record, Intent::Commit] {
                prop_assert_eq!(ask(&limit, usage, reserved, value, intent).counted, value);
            }
            let capped = ask(&limit, usage, reserved, value, Intent::RecordCapped).counted;
            let most = (0..=value).rev().find(|n| *n == 0 || naive(enforcement, usage, reserved, *n).0);
            prop_assert_eq!(Some(capped), most);
        }

        /// However runs come, consuming never passes a hard cap and each threshold is told once.
        #[test]
        fn consuming_never_passes_the_cap_and_crosses_each_threshold_once(
            granted in 0_i64..500,
            values in proptest::collection::vec(1_i64..60, 0..80),
        ) {
            let cap = hard(granted);
            let (mut usage, mut nudges, mut caps) = (0, 0, 0);
            for value in values {
                let verdict = ask(&cap, usage, 0, value, Intent::Consume);
                prop_assert_eq!(verdict.reason.allows(), usage + value <= granted);
                match crossing(&plain(&cap), usage, usage + verdict.counted) {
                    Some(Crossing::Cap) => caps += 1,
                    Some(Crossing::Nudge(_)) => nudges += 1,
                    None => {}
                }
                usage += verdict.counted;
                prop_assert!(usage <= granted);
            }
            prop_assert!(nudges <= 1 && caps <= 1);
            prop_assert_eq!(caps == 1, granted > 0 && usage == granted);
        }
    }
}
