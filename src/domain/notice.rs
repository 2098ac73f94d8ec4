//! Notices: which mail is due, and what it says.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::plan::Unlock;

/// The three mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    UsageNudge,
    CapReached,
    PlanUpgraded,
}

impl NoticeKind {
    /// The word the contract and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UsageNudge => "usage_nudge",
            Self::CapReached => "cap_reached",
            Self::PlanUpgraded => "plan_upgraded",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        [Self::UsageNudge, Self::CapReached, Self::PlanUpgraded]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

/// Where a notice is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeState {
    /// Waits for its time.
    Due,
    /// Committed before the mail server is spoken to.
    Sending,
    Sent,
    /// Overtaken by events: no longer true, so not sent.
    Dropped,
    /// The mail server said no, for good.
    Failed,
    /// The mail server's answer was lost; only a person can decide whether to send again.
    Unknown,
}

impl NoticeState {
    pub const ALL: [Self; 6] =
        [Self::Due, Self::Sending, Self::Sent, Self::Dropped, Self::Failed, Self::Unknown];

    /// The word the contract and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// Why a notice is no longer true at the moment it would be sent, if it is not.
///
/// `same_terms`: plan and subscription are those it arose under. `period_over`: its billing period
/// has ended. `at_cap`: the hard limit in force is used up.
pub fn overtaken_by(
    kind: NoticeKind,
    same_terms: bool,
    period_over: bool,
    at_cap: bool,
) -> Option<&'static str> {
    match kind {
        _ if !same_terms => Some("the plan has changed since"),
        NoticeKind::PlanUpgraded => None,
        NoticeKind::UsageNudge | NoticeKind::CapReached if period_over => {
            Some("its period is over")
        }
        NoticeKind::UsageNudge if at_cap => Some("the cap was reached since"),
        NoticeKind::CapReached if !at_cap => Some("the cap was raised since"),
        NoticeKind::UsageNudge | NoticeKind::CapReached => None,
    }
}

/// What a mail's template is given; everything already decided, nothing left to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NoticeMail {
    UsageNudge(UsageFacts),
    CapReached(UsageFacts),
    PlanUpgraded(UpgradeFacts),
}

/// The facts of a nudge and of the cap mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageFacts {
    pub customer_name: Option<String>,
    /// `AI runs`.
    pub feature_name: String,
    /// `run`.
    pub unit: String,
    pub plan_name: String,
    /// The configured percent that was crossed: 80; above 100 of a soft limit.
    pub percent: u16,
    pub usage: i64,
    pub granted: i64,
    /// Days since the period began, counting the one that has begun.
    pub elapsed_days: i64,
    pub period_days: i64,
    /// Usage in a full period at this pace.
    pub projected: i64,
    pub resets_at: Timestamp,
    /// The way up, if the plan names one.
    pub upgrade: Option<UpgradeOffer>,
    pub usage_url: Option<String>,
}

/// The next plan, as offered to a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpgradeOffer {
    pub plan_name: String,
    /// `$99/month`.
    pub price: Option<String>,
    /// What the plan gives of the feature: `unlimited runs`, `2,000 runs a month`.
    pub gives: String,
    pub url: Option<String>,
}

/// The facts of the mail a day after an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpgradeFacts {
    pub customer_name: Option<String>,
    pub feature_name: String,
    pub unit: String,
    pub from_plan_name: Option<String>,
    pub plan_name: String,
    /// The new number; `None` when the feature is now uncapped (soft or unlimited).
    pub granted: Option<i64>,
    #[serde(serialize_with = "unlocks")]
    pub unlocks: Vec<Unlock>,
    pub usage_url: Option<String>,
}

fn unlocks<S: serde::Serializer>(unlocks: &[Unlock], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Link<'a> {
        title: &'a str,
        url: &'a str,
    }
    serializer.collect_seq(unlocks.iter().map(|u| Link { title: &u.title, url: &u.url }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nudge_is_overtaken_by_an_upgrade_the_cap_or_the_next_period() {
        let nudge = NoticeKind::UsageNudge;
        assert_eq!(overtaken_by(nudge, true, false, false), None);
        assert!(overtaken_by(nudge, false, false, false).is_some());
        assert!(overtaken_by(nudge, true, true, false).is_some());
        assert!(overtaken_by(nudge, true, false, true).is_some());
    }

    #[test]
    fn the_cap_mail_is_true_at_the_cap_and_an_upgrade_mail_in_the_next_period_too() {
        assert_eq!(overtaken_by(NoticeKind::CapReached, true, false, true), None);
        assert!(overtaken_by(NoticeKind::CapReached, false, false, true).is_some());
        assert!(overtaken_by(NoticeKind::CapReached, true, false, false).is_some());
        assert_eq!(overtaken_by(NoticeKind::PlanUpgraded, true, true, false), None);
        assert!(overtaken_by(NoticeKind::PlanUpgraded, false, false, false).is_some());
    }
}
