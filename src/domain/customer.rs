//! A customer and its tier: what it is entitled to, and from when to when.

use crate::clock::Timestamp;
use crate::domain::decision::{Entitlement, Reason, Standing};
use crate::domain::ids::{CustomerId, PlanId};
use crate::domain::period::Cycle;
use crate::domain::plan::{Catalog, Plan};
use crate::domain::subscription::SubscriptionStatus;

/// The product's paying account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    pub id: CustomerId,
    pub profile: Profile,
    /// Whom its usage is reported to Stripe as; without one it stays local.
    pub stripe_customer_id: Option<String>,
    pub created_at: Timestamp,
    pub tier: Tier,
    /// Goes up with each write of the row.
    pub revision: i64,
}

/// Whom to write to.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Profile {
    pub email: Option<String>,
    pub name: Option<String>,
}

/// Personal data never reaches a log, not even by accident.
impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Profile(…)")
    }
}

/// What a customer is entitled to and how its periods run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// The plan of the live subscription; without one the catalog's default holds.
    pub plan_id: Option<PlanId>,
    pub subscription: Option<LiveSubscription>,
    pub standing: Standing,
    pub cycle: Cycle,
    /// Goes up when the plan in force changes; a notice is sent once per version.
    pub entitlement_version: i64,
}

/// The subscription that gives the tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSubscription {
    pub id: String,
    pub status: SubscriptionStatus,
}

impl Tier {
    /// The tier of a customer created at `created_at`: the default plan, in months from that day.
    pub fn initial(created_at: Timestamp) -> Self {
        Self {
            plan_id: None,
            subscription: None,
            standing: Standing::Good,
            cycle: Cycle::local(0, created_at.start_of_day()),
            entitlement_version: 1,
        }
    }

    /// The plan in force, whether or not the standing lets it be used.
    pub fn plan<'a>(&self, catalog: &'a Catalog) -> Option<&'a Plan> {
        let id = self.plan_id.as_ref().or(catalog.default_plan.as_ref())?;
        catalog.plan(id.as_str())
    }

    /// What the customer may use of `feature_id` at `now`.
    pub fn entitlement<'a>(
        &self,
        catalog: &'a Catalog,
        feature_id: &str,
        now: Timestamp,
    ) -> Entitlement<'a> {
        if let Some(reason) = self.standing.denial(now) {
            return Entitlement::Denied(reason);
        }
        match self.plan(catalog) {
            None => Entitlement::Denied(Reason::NoPlan),
            Some(plan) => match plan.limits.get(feature_id) {
                None => Entitlement::Denied(Reason::FeatureNotInPlan),
                Some(limit) => Entitlement::Granted(limit),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLANS: &str = include_str!("../../plans.example.toml");

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn denial(tier: &Tier, catalog: &Catalog, feature_id: &str, now: Timestamp) -> Option<Reason> {
        match tier.entitlement(catalog, feature_id, now) {
            Entitlement::Denied(reason) => Some(reason),
            Entitlement::Granted(_) => None,
        }
    }

    #[test]
    fn a_new_customer_is_on_the_default_plan_in_months_from_its_day() {
        let catalog = Catalog::parse(PLANS).unwrap();
        let tier = Tier::initial(at("2026-11-05T23:59:59.999Z"));
        assert_eq!(tier.plan(&catalog).unwrap().id.as_str(), "starter");
        let period = tier.cycle.period_at(at("2026-11-20T00:00:00Z"));
        assert_eq!(period.start, at("2026-11-05T00:00:00Z"));
        assert_eq!(period.end, at("2026-12-05T00:00:00Z"));
    }

    #[test]
    fn the_subscriptions_plan_goes_before_the_default_even_if_the_file_has_it_no_more() {
        let catalog = Catalog::parse(PLANS).unwrap();
        let mut tier = Tier::initial(at("2026-11-05T00:00:00Z"));
        tier.plan_id = Some("pro".parse().unwrap());
        assert_eq!(tier.plan(&catalog).unwrap().id.as_str(), "pro");
        tier.plan_id = Some("gone".parse().unwrap());
        let now = at("2026-11-06T00:00:00Z");
        assert_eq!(denial(&tier, &catalog, "ai_runs", now), Some(Reason::NoPlan));
    }

    #[test]
    fn each_lack_has_its_reason_and_payment_goes_first() {
        let deny_strangers = PLANS.replace("default_plan = \"starter\"", "");
        let without_default = Catalog::parse(&deny_strangers).unwrap();
        let catalog = Catalog::parse(PLANS).unwrap();
        let now = at("2026-11-06T00:00:00Z");
        let mut tier = Tier::initial(now);
        assert_eq!(denial(&tier, &without_default, "ai_runs", now), Some(Reason::NoPlan));
        assert_eq!(denial(&tier, &catalog, "exports", now), Some(Reason::FeatureNotInPlan));
        assert_eq!(denial(&tier, &catalog, "ai_runs", now), None);
        tier.standing = Standing::Paused;
        assert_eq!(denial(&tier, &without_default, "exports", now), Some(Reason::Paused));
        tier.standing = Standing::PastDue;
        assert_eq!(denial(&tier, &catalog, "ai_runs", now), Some(Reason::PastDue));
    }

    #[test]
    fn a_profile_does_not_show_in_logs() {
        let profile = Profile {
            email: Some("jo@example.com".to_owned()),
            name: Some("Jo Bloggs".to_owned()),
        };
        let logged = format!("{profile:?}");
        assert!(!logged.contains("jo") && !logged.contains("Jo"), "{logged}");
    }
}
