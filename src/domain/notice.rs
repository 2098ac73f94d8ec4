//! Notices: which mail is due, and what it says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::domain::decision::{Crossing, Mark};
use crate::domain::plan::Unlock;

/// The three mails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
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

/// Where a customer stands when a notice is about to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Standpoint {
    /// Plan and series of periods are those that the notice arose under.
    pub same_plan: bool,
    /// The notice's billing period has ended.
    pub period_over: bool,
    /// The highest threshold that the period's usage has reached, as things are now.
    pub reached: Option<Crossing>,
}

/// Why a notice is no longer true at the moment it would be sent, if it is not. `mark` is what the
/// notice is about, unless it tells of the cap or of an upgrade.
pub fn overtaken_by(kind: NoticeKind, mark: Mark, now: Standpoint) -> Option<&'static str> {
    match (kind, now.reached) {
        _ if !now.same_plan => Some("the plan has changed since"),
        (NoticeKind::PlanUpgraded, _) => None,
        _ if now.period_over => Some("its period is over"),
        (NoticeKind::UsageNudge, Some(Crossing::Cap)) => Some("the cap was reached since"),
        (NoticeKind::UsageNudge, reached) if Crossing::Nudge(mark).is_news_after(reached) => {
            Some("the limit was raised since")
        }
        (NoticeKind::CapReached, Some(Crossing::Cap)) | (NoticeKind::UsageNudge, _) => None,
        (NoticeKind::CapReached, _) => Some("the cap was raised since"),
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
    /// The configured percent that was crossed: 80; above 100 of a soft limit. `None` where nothing
    /// is granted that it could be of.
    pub percent: Option<u16>,
    /// The number of units that was reached, where there is no percent.
    pub at_units: Option<i64>,
    pub usage: i64,
    /// The number in force; `None` where there is none.
    pub granted: Option<i64>,
    /// Days since the period began, counting the one that has begun.
    pub elapsed_days: i64,
    pub period_days: i64,
    /// Usage in a full period at this pace.
    pub projected: i64,
    pub resets_at: Timestamp,
    /// The way up, if the plan names one that has the feature.
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

    const EIGHTY: Mark = Mark::Percent(80);

    fn now(reached: Option<Crossing>) -> Standpoint {
        Standpoint { same_plan: true, period_over: false, reached }
    }

    fn at_eighty() -> Standpoint {
        now(Some(Crossing::Nudge(EIGHTY)))
    }

    #[test]
    fn a_nudge_is_overtaken_by_another_plan_the_cap_a_higher_limit_or_the_next_period() {
        let overtaken = |now| overtaken_by(NoticeKind::UsageNudge, EIGHTY, now).is_some();
        assert!(!overtaken(at_eighty()));
        assert!(!overtaken(now(Some(Crossing::Nudge(Mark::Percent(90))))), "both are told");
        assert!(overtaken(Standpoint { same_plan: false, ..at_eighty() }));
        assert!(overtaken(Standpoint { period_over: true, ..at_eighty() }));
        assert!(overtaken(now(Some(Crossing::Cap))));
        assert!(overtaken(now(Some(Crossing::Nudge(Mark::Percent(50))))));
        assert!(overtaken(now(None)));
    }

    #[test]
    fn the_cap_mail_is_true_at_the_cap_and_an_upgrade_mail_in_the_next_period_too() {
        let cap = |now| overtaken_by(NoticeKind::CapReached, Mark::Percent(100), now);
        assert_eq!(cap(now(Some(Crossing::Cap))), None);
        assert!(cap(Standpoint { same_plan: false, ..now(Some(Crossing::Cap)) }).is_some());
        assert!(cap(at_eighty()).is_some());
        let upgrade = |now| overtaken_by(NoticeKind::PlanUpgraded, Mark::Percent(0), now);
        assert_eq!(upgrade(Standpoint { period_over: true, ..now(Some(Crossing::Cap)) }), None);
        assert!(upgrade(Standpoint { same_plan: false, ..at_eighty() }).is_some());
    }
}
