//! A customer and its tier: what it is entitled to, and from when to when.

use crate::clock::Timestamp;
use crate::domain::decision::{Entitlement, Reason, Standing};
use crate::domain::ids::{CustomerId, PlanId};
use crate::domain::period::Cycle;
use crate::domain::plan::{Catalog, Plan};
use crate::domain::quota::{Allowance, Quotas};
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
    /// The plans file whose limits it keeps, be it the one in force; `None` for that at any time.
    pub terms_version: Option<i64>,
    /// Whether it ever had an override or a grant, and they are worth looking for.
    pub has_quotas: bool,
    /// Goes up with each write of the row.
    pub revision: i64,
}

/// Whom to write to.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Profile {
    pub email: Option<String>,
    pub name: Option<String>,
    /// The product has not said an address: this is Stripe's, and changes as it does there.
    pub email_is_stripes: bool,
}

/// The longest name kept, in characters.
pub const MAX_NAME: usize = 200;

/// A name fit for a mail's header: without control characters, spaces around it and what exceeds
/// [`MAX_NAME`]; `None` if nothing is left.
pub fn clean_name(text: &str) -> Option<String> {
    let printable: String = text.chars().filter(|c| !c.is_control()).collect();
    let short: String = printable.trim().chars().take(MAX_NAME).collect();
    Some(short).filter(|name| !name.is_empty())
}

/// Whether this is an e-mail address, as far as that can be told without writing to it.
pub fn is_plausible_email(text: &str) -> bool {
    let parts = text.split_once('@');
    let shaped = parts.is_some_and(|(local, domain)| {
        !local.is_empty() && !domain.is_empty() && !domain.contains('@')
    });
    shaped && text.len() <= 254 && text.chars().all(|c| !c.is_control() && !c.is_whitespace())
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
    /// Until when the customer has had time to pay what is past due; kept while it owes anything,
    /// whichever subscription gives the tier.
    pub grace_ends_at: Option<Timestamp>,
    pub cycle: Cycle,
    /// Goes up when what the customer is entitled to changes; a notice is sent once per version.
    pub entitlement_version: i64,
    /// The version with which the plan in force came.
    pub plan_since_version: i64,
}

/// The subscription that gives the tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSubscription {
    pub id: String,
    pub status: SubscriptionStatus,
    /// When it is planned to end; until then everything stays as it is.
    pub cancels_at: Option<Timestamp>,
    /// Its invoices are not collected; what follows is for `policy.pause_collection` to say.
    pub collection_paused: bool,
}

impl Customer {
    /// The customer with the tier that Stripe calls for. `kept` are the terms it has been under,
    /// `active` those in force.
    ///
    /// Terms are kept for a plan: whoever comes to another one, whose subscription begins with
    /// another one or leaves it on another one, takes that as it is now. So does who would be left
    /// without a plan.
    pub fn with_tier(&self, tier: Tier, kept: &Catalog, active: &Catalog) -> Self {
        let plan_id = |tier: &Tier, terms: &Catalog| tier.plan(terms).map(|plan| plan.id.clone());
        let (was, stays) = (plan_id(&self.tier, kept), plan_id(&tier, kept));
        let anew = plan_id(&tier, active);
        let another = tier.plan_id != self.tier.plan_id && (stays != was || anew != was);
        let keeps = !another && (stays.is_some() || anew.is_none());
        let terms_version = self.terms_version.filter(|_| keeps);
        let is = if terms_version.is_some() { stays } else { anew };
        let mut after = Self { tier, terms_version, ..self.clone() };
        after.tier.entitlement_version = self.tier.entitlement_version;
        if is != was || terms_version != self.terms_version {
            after.tier.entitlement_version += 1;
        }
        if is != was {
            after.tier.plan_since_version = after.tier.entitlement_version;
        }
        after
    }
}

impl Tier {
    /// The tier of a customer created at `created_at`: the default plan, in months from that day.
    pub fn initial(created_at: Timestamp) -> Self {
        Self {
            plan_id: None,
            subscription: None,
            standing: Standing::Good,
            grace_ends_at: None,
            cycle: Cycle::local(0, created_at.start_of_day()),
            entitlement_version: 1,
            plan_since_version: 1,
        }
    }

    /// The plan in force, whether or not the standing lets it be used.
    pub fn plan<'a>(&self, catalog: &'a Catalog) -> Option<&'a Plan> {
        let id = self.plan_id.as_ref().or(catalog.default_plan.as_ref())?;
        catalog.plan(id.as_str())
    }

    /// What is granted of `feature_id` at `now`, whether or not the standing lets it be used, under
    /// the terms of `catalog` and what `quotas` say of this customer and feature. `from_grants`:
    /// units of the period's usage that grants have paid for.
    pub fn allowance<'a>(
        &self,
        catalog: &'a Catalog,
        feature_id: &str,
        quotas: &Quotas,
        from_grants: i64,
        now: Timestamp,
    ) -> Option<Allowance<'a>> {
        let plan = self.plan(catalog);
        let limit = plan.and_then(|plan| plan.limits.get(feature_id));
        quotas.allowance(plan.map(|plan| &plan.id), limit, from_grants, now)
    }

    /// What the customer may use at `now` of what `allowance` grants it.
    pub fn entitlement<'a>(
        &self,
        catalog: &Catalog,
        allowance: Option<Allowance<'a>>,
        now: Timestamp,
    ) -> Entitlement<'a> {
        match (self.standing.denial(now), allowance) {
            (Some(reason), _) => Entitlement::Denied(reason),
            (None, Some(allowance)) => Entitlement::Granted(allowance),
            (None, None) if self.plan(catalog).is_none() => Entitlement::Denied(Reason::NoPlan),
            (None, None) => Entitlement::Denied(Reason::FeatureNotInPlan),
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
        let allowance = tier.allowance(catalog, feature_id, &Quotas::default(), 0, now);
        match tier.entitlement(catalog, allowance, now) {
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
    fn names_lose_what_no_header_may_hold() {
        assert_eq!(clean_name(" Ac\u{0}me\r\nBcc: x\u{7f} ").as_deref(), Some("AcmeBcc: x"));
        assert_eq!(clean_name("Zoë Ltd").as_deref(), Some("Zoë Ltd"));
        assert_eq!(clean_name("\t \n"), None);
        assert_eq!(clean_name(&"é".repeat(201)), Some("é".repeat(200)));
    }

    #[test]
    fn an_address_has_two_sides_and_no_spaces() {
        for good in ["a@b", "jo+x@example.com", "zoë@exämple.com"] {
            assert!(is_plausible_email(good), "{good}");
        }
        let long = format!("a@{}", "b".repeat(253));
        for bad in ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b\r\nBcc: x", &long] {
            assert!(!is_plausible_email(bad), "{bad}");
        }
    }

    #[test]
    fn a_profile_does_not_show_in_logs() {
        let profile = Profile {
            email: Some("jo@example.com".to_owned()),
            name: Some("Jo Bloggs".to_owned()),
            email_is_stripes: false,
        };
        let logged = format!("{profile:?}");
        assert!(!logged.contains("jo") && !logged.contains("Jo"), "{logged}");
    }
}
