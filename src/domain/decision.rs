//! The gate's decision: may this run go ahead, and what does it leave behind?

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::plan::{Enforcement, Limit};

/// Why a run is allowed or denied, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// What a customer may use of one feature: its limit, or why it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entitlement<'a> {
    Granted(&'a Limit),
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
}

/// The outcome of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub reason: Reason,
    /// Units to add to usage; 0 when nothing is counted.
    pub counted: i64,
}

/// Decides on `value` units (at least 1), `usage` and `reserved` being what is taken already.
///
/// Under a hard limit usage plus reservations never exceed the granted amount, except by
/// [`Intent::Record`], whose run has happened already.
pub fn decide(
    entitlement: Entitlement<'_>,
    usage: i64,
    reserved: i64,
    value: i64,
    intent: Intent,
) -> Verdict {
    let (reason, room) = match entitlement {
        Entitlement::Denied(reason) => (reason, 0),
        Entitlement::Granted(limit) => match limit.enforcement {
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
        },
    };
    let counted = match intent {
        Intent::Check => 0,
        Intent::Consume if reason.allows() => value,
        Intent::Consume => 0,
        Intent::Record => value,
        Intent::RecordCapped => value.min(room),
    };
    Verdict { reason, counted }
}

/// A threshold that usage has just passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// This configured percent of the granted amount.
    Nudge { percent: u16 },
    /// All of a hard limit.
    Cap,
}

/// What the step from `before` to `after` units crossed. Only the highest threshold counts: a run
/// that goes from 79 % to the cap tells of the cap.
pub fn crossing(limit: &Limit, before: i64, after: i64) -> Option<Crossing> {
    let granted = match limit.enforcement {
        Enforcement::Unlimited => return None,
        Enforcement::Hard { granted } => {
            if before < granted && granted <= after {
                return Some(Crossing::Cap);
            }
            granted
        }
        Enforcement::Soft { granted } => granted,
    };
    limit
        .nudge_at_percent
        .iter()
        .copied()
        .filter(|percent| !reached(before, granted, *percent) && reached(after, granted, *percent))
        .max()
        .map(|percent| Crossing::Nudge { percent })
}

/// Whether `usage` is at or above `percent` of `granted`, exactly.
fn reached(usage: i64, granted: i64, percent: u16) -> bool {
    i128::from(usage) * 100 >= i128::from(granted) * i128::from(percent)
}

/// Where usage stands against its limit, for banner, gate and mail alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdState {
    Ok,
    Nudge,
    LimitReached,
    OverSoftLimit,
}

/// The state, and usage in percent of the granted amount rounded down; no percent without one.
pub fn threshold(limit: &Limit, usage: i64) -> (ThresholdState, Option<i64>) {
    let percent = |granted: i64| {
        let share = i128::from(usage) * 100 / i128::from(granted.max(1));
        Some(if granted == 0 { 100 } else { i64::try_from(share).unwrap_or(i64::MAX) })
    };
    let nudged = |granted| match limit.nudge_at_percent.iter().any(|p| reached(usage, granted, *p))
    {
        true => ThresholdState::Nudge,
        false => ThresholdState::Ok,
    };
    match limit.enforcement {
        Enforcement::Unlimited => (ThresholdState::Ok, None),
        Enforcement::Hard { granted } if usage >= granted => {
            (ThresholdState::LimitReached, percent(granted))
        }
        Enforcement::Soft { granted } if usage > granted => {
            (ThresholdState::OverSoftLimit, percent(granted))
        }
        Enforcement::Hard { granted } | Enforcement::Soft { granted } => {
            (nudged(granted), percent(granted))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(enforcement: Enforcement) -> Limit {
        Limit { enforcement, nudge_at_percent: vec![80], nudge_at_units: Vec::new(), custom: false }
    }

    fn hard(granted: i64) -> Limit {
        limit(Enforcement::Hard { granted })
    }

    fn ask(limit: &Limit, usage: i64, reserved: i64, value: i64, intent: Intent) -> Verdict {
        decide(Entitlement::Granted(limit), usage, reserved, value, intent)
    }

    #[test]
    fn the_last_unit_is_allowed_and_the_next_is_not() {
        let cap = hard(200);
        let last = ask(&cap, 199, 0, 1, Intent::Consume);
        assert_eq!(last, Verdict { reason: Reason::WithinLimit, counted: 1 });
        let next = ask(&cap, 200, 0, 1, Intent::Consume);
        assert_eq!(next, Verdict { reason: Reason::LimitReached, counted: 0 });
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
        assert_eq!(over, Verdict { reason: Reason::OverSoftLimit, counted: 1 });
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
        assert_eq!(crossing(&hard(200), 158, 159), None);
        assert_eq!(crossing(&hard(200), 159, 160), Some(Crossing::Nudge { percent: 80 }));
        assert_eq!(crossing(&hard(200), 160, 161), None);
    }

    #[test]
    fn a_run_from_below_the_nudge_to_the_cap_tells_of_the_cap_only() {
        assert_eq!(crossing(&hard(200), 150, 200), Some(Crossing::Cap));
        assert_eq!(crossing(&hard(200), 200, 260), None);
    }

    #[test]
    fn a_soft_limit_nudges_at_its_own_percents_and_has_no_cap() {
        let soft =
            Limit { nudge_at_percent: vec![80, 100], ..limit(Enforcement::Soft { granted: 10 }) };
        assert_eq!(crossing(&soft, 9, 10), Some(Crossing::Nudge { percent: 100 }));
        assert_eq!(crossing(&soft, 7, 12), Some(Crossing::Nudge { percent: 100 }));
        assert_eq!(crossing(&soft, 10, 20), None);
    }

    #[test]
    fn threshold_states_follow_the_limit() {
        assert_eq!(threshold(&hard(200), 159), (ThresholdState::Ok, Some(79)));
        assert_eq!(threshold(&hard(200), 160), (ThresholdState::Nudge, Some(80)));
        assert_eq!(threshold(&hard(200), 200), (ThresholdState::LimitReached, Some(100)));
        assert_eq!(threshold(&hard(0), 0), (ThresholdState::LimitReached, Some(100)));
        let soft = limit(Enforcement::Soft { granted: 10 });
        assert_eq!(threshold(&soft, 11), (ThresholdState::OverSoftLimit, Some(110)));
        assert_eq!(threshold(&limit(Enforcement::Unlimited), 11), (ThresholdState::Ok, None));
    }

    proptest! {
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
                match crossing(&cap, usage, usage + verdict.counted) {
                    Some(Crossing::Cap) => caps += 1,
                    Some(Crossing::Nudge { .. }) => nudges += 1,
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
