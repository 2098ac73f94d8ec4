//! Every shape a mail can have, to check templates with and to preview them.

use crate::clock::Timestamp;
use crate::domain::notice::{NoticeMail, UpgradeFacts, UpgradeOffer, UsageFacts};
use crate::domain::plan::Unlock;

/// A mail to try templates on.
pub struct Sample {
    /// What is special about it: `no upgrade`.
    pub shape: &'static str,
    pub mail: NoticeMail,
}

/// All of them; of each kind the fullest first.
pub fn all() -> Vec<Sample> {
    let usage = usage_shapes();
    let nudges = usage.iter().map(|(shape, facts)| (*shape, NoticeMail::UsageNudge(nudge(facts))));
    let caps = usage.iter().map(|(shape, facts)| (*shape, NoticeMail::CapReached(facts.clone())));
    let upgrades =
        upgrade_shapes().into_iter().map(|(shape, facts)| (shape, NoticeMail::PlanUpgraded(facts)));
    nudges.chain(caps).chain(upgrades).map(|(shape, mail)| Sample { shape, mail }).collect()
}

/// The cap's facts, as they were at 80 %.
fn nudge(cap: &UsageFacts) -> UsageFacts {
    UsageFacts {
        percent: cap.percent.map(|_| 80),
        usage: (cap.usage * 4 / 5).max(1),
        elapsed_days: (cap.elapsed_days * 4 / 5).max(1),
        ..cap.clone()
    }
}

fn usage_shapes() -> Vec<(&'static str, UsageFacts)> {
    let offer = UpgradeOffer {
        plan_name: "Pro".into(),
        price: Some("$99/month".into()),
        gives: "unlimited runs".into(),
        url: Some("https://billing.example.com/upgrade?token=sample&plan=pro".into()),
    };
    let full = UsageFacts {
        customer_name: Some("Ada Lovelace".into()),
        feature_name: "AI runs".into(),
        unit: "run".into(),
        plan_name: "Starter".into(),
        percent: Some(100),
        at_units: None,
        usage: 200,
        granted: Some(200),
        elapsed_days: 18,
        period_days: 30,
        projected: 333,
        // 2026-12-01T00:00:00Z
        resets_at: Timestamp::from_seconds(1_796_083_200),
        upgrade: Some(offer.clone()),
        usage_url: Some("https://billing.example.com/usage?token=sample".into()),
    };
    let with_offer = |offer| UsageFacts { upgrade: Some(offer), ..full.clone() };
    vec![
        ("full", full.clone()),
        ("no name", UsageFacts { customer_name: None, ..full.clone() }),
        ("no upgrade", UsageFacts { upgrade: None, ..full.clone() }),
        (
            "no links",
            UsageFacts {
                usage_url: None,
                ..with_offer(UpgradeOffer { url: None, ..offer.clone() })
            },
        ),
        ("upgrade without price", with_offer(UpgradeOffer { price: None, ..offer.clone() })),
        ("upgrade without link", with_offer(UpgradeOffer { url: None, ..offer })),
        (
            "nothing optional",
            UsageFacts { customer_name: None, upgrade: None, usage_url: None, ..full.clone() },
        ),
        (
            "one",
            UsageFacts {
                usage: 1,
                granted: Some(1),
                projected: 1,
                elapsed_days: 1,
                period_days: 1,
                ..full.clone()
            },
        ),
        (
            "many",
            UsageFacts {
                usage: 1_000_000_000,
                granted: Some(1_000_000_000),
                projected: 1_666_666_666,
                ..full
            },
        ),
    ]
}

fn upgrade_shapes() -> Vec<(&'static str, UpgradeFacts)> {
    let unlocks = [
        "Run whole folders at once",
        "Invite up to five teammates",
        "Keep your history for a year",
        "A fourth thing",
    ]
    .map(|title| Unlock { title: title.into(), url: "https://example.com/docs?a=1&b=2".into() });
    let full = UpgradeFacts {
        customer_name: Some("Ada Lovelace".into()),
        feature_name: "AI runs".into(),
        unit: "run".into(),
        from_plan_name: Some("Starter".into()),
        plan_name: "Pro".into(),
        granted: None,
        unlocks: unlocks[..2].to_vec(),
        usage_url: Some("https://billing.example.com/usage?token=sample".into()),
    };
    let number = UpgradeFacts { plan_name: "Team".into(), granted: Some(6000), ..full.clone() };
    vec![
        ("uncapped", full.clone()),
        (
            "uncapped, nothing optional",
            UpgradeFacts {
                customer_name: None,
                from_plan_name: None,
                unlocks: Vec::new(),
                usage_url: None,
                ..full.clone()
            },
        ),
        ("a number", number.clone()),
        (
            "a number, nothing optional",
            UpgradeFacts {
                customer_name: None,
                from_plan_name: None,
                unlocks: Vec::new(),
                usage_url: None,
                ..number.clone()
            },
        ),
        ("one", UpgradeFacts { granted: Some(1), unlocks: unlocks[..1].to_vec(), ..number }),
        ("four unlocks", UpgradeFacts { unlocks: unlocks.to_vec(), ..full }),
    ]
}
