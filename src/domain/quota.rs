//! What a customer may use of one feature: its plan's limit, a quota of its own in that limit's
//! place, and one-off grants on top.
//!
//! Grants raise the number. A grant that is used *before* the plan's allowance is drawn first, the
//! soonest to expire first; one that is used *after* it is drawn when the allowance is gone. What
//! was drawn stays granted in its period, so that an expiry never turns counted runs into overrun.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::domain::ids::PlanId;
use crate::domain::plan::{Enforcement, Limit};

/// A customer's own quota, in place of its plan's number while it is on that plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The plan it was made for; on another one it sleeps. `None`: made without a plan.
    pub plan_id: Option<PlanId>,
    pub enforcement: Enforcement,
    /// From this instant on the plan's own number holds again.
    pub ends_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub note: Option<String>,
}

impl Override {
    /// Whether it holds on this plan at `now`.
    pub fn holds(&self, plan_id: Option<&PlanId>, now: Timestamp) -> bool {
        self.plan_id.as_ref() == plan_id && self.ends_at.is_none_or(|end| now < end)
    }

    /// Whether it says the same as `other`, whenever that was said.
    pub fn same_as(&self, other: &Self) -> bool {
        *self == Self { created_at: self.created_at, ..other.clone() }
    }
}

/// Whether a grant is used before the plan's allowance or after it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DrawOrder {
    Before,
    After,
}

impl DrawOrder {
    /// The word the contract and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// A one-off allowance of whole units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grant {
    pub grant_id: String,
    pub units: i64,
    pub used: i64,
    pub draw: DrawOrder,
    /// From this instant on what is left of it is gone.
    pub expires_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub note: Option<String>,
}

impl Grant {
    /// What can still be drawn at `now`.
    pub fn left(&self, now: Timestamp) -> i64 {
        if self.expires_at.is_some_and(|end| now >= end) { 0 } else { self.units - self.used }
    }
}

/// All that is particular to one customer and feature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quotas {
    pub own: Option<Override>,
    /// Those that have not been revoked, settled as expired or used up.
    pub grants: Vec<Grant>,
}

/// The limit in force for a customer and feature, and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance<'a> {
    /// The plan's limit: its thresholds hold whatever the number is. `None` if the plan has none
    /// and all there is are grants.
    pub limit: Option<&'a Limit>,
    /// Without grants.
    pub base: Enforcement,
    /// What the gate goes by.
    pub enforcement: Enforcement,
}

impl Allowance<'_> {
    /// Whether the number in force is not the plan's own.
    pub fn is_particular(&self) -> bool {
        self.limit.is_none_or(|limit| limit.enforcement != self.enforcement)
    }
}

impl Quotas {
    /// What holds at `now` on a plan that has this `limit`; `None` if nothing is granted at all.
    ///
    /// `from_grants`: units of the period's usage that grants have paid for.
    pub fn allowance<'a>(
        &self,
        plan_id: Option<&PlanId>,
        limit: Option<&'a Limit>,
        from_grants: i64,
        now: Timestamp,
    ) -> Option<Allowance<'a>> {
        let own = self.own.as_ref().filter(|own| own.holds(plan_id, now));
        let left = self.grants.iter().fold(0, |sum: i64, g| sum.saturating_add(g.left(now)));
        let stated = own.map(|own| own.enforcement).or(limit.map(|limit| limit.enforcement));
        let base = match stated {
            Some(base) => base,
            None if left > 0 || from_grants > 0 => Enforcement::Hard { granted: 0 },
            None => return None,
        };
        let raised = |granted: i64| granted.saturating_add(from_grants).saturating_add(left);
        let enforcement = match base {
            Enforcement::Hard { granted } => Enforcement::Hard { granted: raised(granted) },
            Enforcement::Soft { granted } => Enforcement::Soft { granted: raised(granted) },
            Enforcement::Unlimited => Enforcement::Unlimited,
        };
        Some(Allowance { limit, base, enforcement })
    }

    /// What counts in a period that ends then: grants that were made later are none of its.
    pub fn of_period(&self, end: Timestamp) -> Self {
        let mut of_period = self.clone();
        of_period.grants.retain(|grant| grant.created_at < end);
        of_period
    }

    /// Draws what grants pay of `units` more, and answers what was drawn from which. The rest is
    /// the plan's: its allowance, or overrun. Where the plan has no number there is nothing to pay.
    ///
    /// `usage` and `from_grants` are those of the period, which ends at `period_end`, before these
    /// units. A grant that was made later does not pay for what was used in it.
    pub fn draw(
        &mut self,
        base: Enforcement,
        (usage, from_grants): (i64, i64),
        period_end: Timestamp,
        units: i64,
        now: Timestamp,
    ) -> Vec<Draw> {
        let mut draws = Vec::new();
        let Some(granted) = base.number().filter(|_| !self.grants.is_empty()) else { return draws };
        let plans_own = granted.saturating_sub(usage - from_grants).max(0);
        self.grants.sort_by_cached_key(|grant| {
            (grant.draw, grant.expires_at.map_or(i64::MAX, Timestamp::ms), grant.grant_id.clone())
        });
        let mut wanted = units;
        for order in [DrawOrder::Before, DrawOrder::After] {
            if order == DrawOrder::After {
                wanted -= wanted.min(plans_own);
            }
            let in_time = |grant: &&mut Grant| grant.draw == order && grant.created_at < period_end;
            for grant in self.grants.iter_mut().filter(in_time) {
                let taken = grant.left(now).min(wanted);
                if taken > 0 {
                    grant.used += taken;
                    wanted -= taken;
                    draws.push(Draw { grant_id: grant.grant_id.clone(), units: taken });
                }
            }
        }
        draws
    }
}

/// Units of a run that a grant has paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draw {
    pub grant_id: String,
    pub units: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);
    const LATER: Timestamp = Timestamp::from_seconds(2_000);
    /// Of the period.
    const END: Timestamp = Timestamp::from_seconds(9_000);

    fn grant(id: &str, units: i64, draw: DrawOrder, expires_at: Option<Timestamp>) -> Grant {
        Grant {
            grant_id: id.to_owned(),
            units,
            used: 0,
            draw,
            expires_at,
            created_at: NOW,
            note: None,
        }
    }

    fn quotas(grants: Vec<Grant>) -> Quotas {
        Quotas { own: None, grants }
    }

    fn hard(granted: i64) -> Limit {
        Limit {
            enforcement: Enforcement::Hard { granted },
            nudge_at_percent: vec![80],
            nudge_at_units: Vec::new(),
            custom: false,
        }
    }

    fn number(quotas: &Quotas, limit: &Limit, from_grants: i64, now: Timestamp) -> i64 {
        let allowance = quotas.allowance(None, Some(limit), from_grants, now).unwrap();
        match allowance.enforcement {
            Enforcement::Hard { granted } => granted,
            other => panic!("{other:?}"),
        }
    }

    fn drawn(draws: &[Draw]) -> Vec<(&str, i64)> {
        draws.iter().map(|draw| (draw.grant_id.as_str(), draw.units)).collect()
    }

    #[test]
    fn an_own_quota_holds_on_its_plan_and_until_its_end() {
        let own = Override {
            plan_id: Some("team".parse().unwrap()),
            enforcement: Enforcement::Hard { granted: 20_000 },
            ends_at: Some(LATER),
            created_at: NOW,
            note: None,
        };
        let quotas = Quotas { own: Some(own), grants: Vec::new() };
        let (team, pro) = ("team".parse().unwrap(), "pro".parse().unwrap());
        let limit = hard(6000);
        let at = |plan, now| quotas.allowance(Some(plan), Some(&limit), 0, now).unwrap();
        assert_eq!(at(&team, NOW).enforcement, Enforcement::Hard { granted: 20_000 });
        assert!(at(&team, NOW).is_particular());
        assert_eq!(at(&team, LATER).enforcement, Enforcement::Hard { granted: 6000 });
        assert_eq!(at(&pro, NOW).enforcement, Enforcement::Hard { granted: 6000 });
    }

    #[test]
    fn a_grant_before_the_plan_is_used_first_and_one_after_it_last() {
        let mut both = quotas(vec![
            grant("after", 10, DrawOrder::After, None),
            grant("before", 10, DrawOrder::Before, None),
        ]);
        assert_eq!(number(&both, &hard(100), 0, NOW), 120);
        let base = Enforcement::Hard { granted: 100 };
        assert_eq!(drawn(&both.draw(base, (0, 0), END, 15, NOW)), [("before", 10)]);
        assert_eq!(drawn(&both.draw(base, (15, 10), END, 95, NOW)), []);
        assert_eq!(drawn(&both.draw(base, (110, 10), END, 1, NOW)), [("after", 1)]);
        assert_eq!(number(&both, &hard(100), 11, NOW), 120);
    }

    #[test]
    fn of_two_grants_the_sooner_to_expire_is_used_first() {
        let mut two = quotas(vec![
            grant("for_ever", 5, DrawOrder::Before, None),
            grant("soon", 5, DrawOrder::Before, Some(LATER)),
        ]);
        let base = Enforcement::Hard { granted: 0 };
        assert_eq!(drawn(&two.draw(base, (0, 0), END, 7, NOW)), [("soon", 5), ("for_ever", 2)]);
    }

    #[test]
    fn an_expired_grant_leaves_granted_what_was_used_of_it() {
        let mut one = quotas(vec![grant("g", 50, DrawOrder::Before, Some(LATER))]);
        one.draw(Enforcement::Hard { granted: 200 }, (0, 0), END, 20, NOW);
        assert_eq!(number(&one, &hard(200), 20, NOW), 250);
        assert_eq!(number(&one, &hard(200), 20, LATER), 220);
        assert!(one.draw(Enforcement::Hard { granted: 200 }, (20, 20), END, 200, LATER).is_empty());
    }

    #[test]
    fn a_grant_opens_a_feature_that_the_plan_does_not_have() {
        let one = quotas(vec![grant("g", 3, DrawOrder::After, Some(LATER))]);
        let allowance = one.allowance(None, None, 0, NOW).unwrap();
        assert_eq!(allowance.enforcement, Enforcement::Hard { granted: 3 });
        assert_eq!(one.allowance(None, None, 0, LATER), None);
        let used_up = quotas(Vec::new()).allowance(None, None, 3, LATER).unwrap();
        assert_eq!(used_up.enforcement, Enforcement::Hard { granted: 3 }, "in its period");
    }

    #[test]
    fn a_grant_pays_for_nothing_where_nothing_is_limited_and_for_no_period_before_it() {
        let mut one = quotas(vec![grant("g", 3, DrawOrder::Before, None)]);
        assert_eq!(one.draw(Enforcement::Unlimited, (0, 0), END, 2, NOW), []);
        let base = Enforcement::Hard { granted: 0 };
        assert_eq!(one.draw(base, (0, 0), NOW, 2, LATER), [], "made when the period ended");
        assert_eq!(one.of_period(NOW), quotas(Vec::new()));
        assert_eq!(drawn(&one.draw(base, (0, 0), END, 2, LATER)), [("g", 2)]);
    }

    proptest! {
        /// However grants and runs come, no unit is drawn twice, no grant is overdrawn, and what
        /// is granted falls only by what expires unused.
        #[test]
        fn draws_are_exact_against_a_unit_by_unit_model(
            granted in 0_i64..40,
            grants in proptest::collection::vec((1_i64..20, any::<bool>(), proptest::option::of(0_i64..60)), 0..5),
            runs in proptest::collection::vec((1_i64..12, 0_i64..6), 0..25),
        ) {
            let mut quotas = quotas(grants.iter().enumerate().map(|(n, (units, before, expires))| {
                let draw = if *before { DrawOrder::Before } else { DrawOrder::After };
                grant(&format!("g{n}"), *units, draw, expires.map(Timestamp::from_seconds))
            }).collect());
            // The model keeps a purse of single units: (order, expiry, id).
            let mut purse: Vec<(DrawOrder, i64, String)> = quotas.grants.iter().flat_map(|g| {
                let expiry = g.expires_at.map_or(i64::MAX, |e| e.ms());
                (0..g.units).map(move |_| (g.draw, expiry, g.grant_id.clone()))
            }).collect();
            purse.sort();
            let base = Enforcement::Hard { granted };
            let (mut usage, mut from_grants, mut plan_used, mut now_s) = (0, 0, 0, 0);
            for (units, wait) in runs {
                now_s += wait;
                let now = Timestamp::from_seconds(now_s);
                let draws = quotas.draw(base, (usage, from_grants), END, units, now);
                let mut expected = 0;
                for _ in 0..units {
                    purse.retain(|(_, expiry, _)| *expiry > now.ms());
                    let first = purse.iter().position(|(draw, _, _)| *draw == DrawOrder::Before);
                    match first {
                        Some(at) => { purse.remove(at); expected += 1; }
                        None if plan_used < granted => plan_used += 1,
                        None if !purse.is_empty() => { purse.remove(0); expected += 1; }
                        None => plan_used += 1,
                    }
                }
                let total: i64 = draws.iter().map(|draw| draw.units).sum();
                prop_assert_eq!(total, expected);
                usage += units;
                from_grants += total;
                prop_assert!(quotas.grants.iter().all(|g| (0..=g.units).contains(&g.used)));
                let left = i64::try_from(purse.len()).unwrap();
                let limit = hard(granted);
                prop_assert_eq!(number(&quotas, &limit, from_grants, now), granted + from_grants + left);
            }
        }
    }
}
