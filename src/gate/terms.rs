//! Putting a plans file in force: whose limits it changes, and who keeps the old ones.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::batch::{counter_key, notice};
use super::quotas::{facts, threshold_of};
use crate::app::App;
use crate::domain::customer::Customer;
use crate::domain::ids::{CustomerId, FeatureId, PlanId};
use crate::domain::plan::{Catalog, Plan};
use crate::entropy::Entropy;
use crate::store::{Store, StoreError, Tx};

/// How many customers are told in one transaction.
const AT_ONCE: i64 = 200;
/// After this long every replica runs by the newest plans: they look every five seconds. One that does
/// not yet would count past a threshold without telling, and take a notice for overtaken.
const FOLLOWED_AFTER: Duration = Duration::from_secs(10);

/// Puts a checked plans file in force and answers its version. Where it changes a plan's limits,
/// those who are on the plan keep the old ones if it says so (`grandfather`), until support moves
/// them or they change plan; for the others thresholds are told again under the new ones, and
/// [`tell_some`] tells those who are past one at once.
pub async fn activate(
    store: &Store,
    entropy: &Entropy,
    source: &str,
    catalog: &Catalog,
) -> Result<i64, StoreError> {
    let mut tx = store.begin().await?;
    let before = tx.newest_plans().await?;
    let (version, is_new) = tx.activate_plans(source).await?;
    if let Some((old_version, old_source)) = before.filter(|_| is_new)
        // What a former build took and this one does not can have no terms to keep.
        && let Ok(old) = Catalog::parse(&old_source)
    {
        pass_on(&mut tx, entropy, (old_version, &old), (version, catalog)).await?;
    }
    tx.commit().await?;
    Ok(version)
}

async fn pass_on(
    tx: &mut Tx,
    entropy: &Entropy,
    (old_version, old): (i64, &Catalog),
    (version, new): (i64, &Catalog),
) -> Result<(), StoreError> {
    for affected in affected(old, new) {
        let Affected { plan_id, is_default } = affected;
        let keeps = affected.keeps(old, new);
        let customers = match keeps {
            true => tx.keep_terms(plan_id, is_default, old_version).await?,
            false => tx.renew_entitlements(plan_id, is_default).await?,
        };
        if !keeps && customers > 0 {
            tx.leave_untold(version).await?;
        }
        let action = if keeps { "plan.grandfathered" } else { "plan.limits_changed" };
        let detail = json!({"plan_id": plan_id, "without_subscription": is_default,
            "from_version": old_version, "to_version": version, "customers": customers});
        let audit_id = entropy.id("aud", tx.now);
        tx.insert_audit(&audit_id, "plans_file", action, None, &detail).await?;
    }
    Ok(())
}

/// Tells some of those whom a plans file has put at a threshold; answers whether there may be more.
///
/// A page of customers is told in the transaction that takes it, so that each is told once, whatever
/// stops in between and however many replicas there are. Runs are told of by the gate meanwhile, at
/// the same entitlement version.
pub async fn tell_some(app: &App) -> Result<bool, StoreError> {
    let Some(untold) = app.store.untold_plans().await? else { return Ok(false) };
    let followed = untold.activated_at.plus(FOLLOWED_AFTER) <= app.clock.now();
    if app.plans.active().0 < untold.version || !(followed || app.store.is_ours_alone()) {
        return Ok(false);
    }
    let old = app.plans.version(untold.version - 1, &app.store).await?;
    let new = app.plans.version(untold.version, &app.store).await?;
    let ids = app.store.customers_on_terms_in_force(&untold.told_through, AT_ONCE).await?;
    let more = i64::try_from(ids.len()).is_ok_and(|found| found >= AT_ONCE);
    let mut tx = app.store.begin().await?;
    let through = ids.last().filter(|_| more).map(CustomerId::as_str);
    if !tx.take_untold(&untold, through).await? {
        return Ok(true);
    }
    let mut customers = tx.lock_customers(&ids.iter().collect::<Vec<_>>()).await?;
    let changed = affected(&old, &new);
    customers.retain(|customer| {
        let concerns = |affected: &Affected<'_>| match &customer.tier.plan_id {
            Some(id) => affected.plan_id == Some(id),
            None => affected.is_default,
        };
        let mut changed = changed.iter().filter(|affected| !affected.keeps(&old, &new));
        customer.terms_version.is_none() && changed.any(concerns)
    });
    tell(app, &mut tx, &old, &customers).await?;
    tx.commit().await?;
    Ok(true)
}

/// Tells each of these customers of the threshold that it is past under the plans in force and was
/// not under the `old`; also of one that it came past in between, when no run told of it.
async fn tell(
    app: &App,
    tx: &mut Tx,
    old: &Catalog,
    customers: &[Customer],
) -> Result<(), StoreError> {
    let (plan_version, active) = app.plans.active();
    let ids: Vec<_> = customers.iter().filter(|c| c.has_quotas).map(|c| &c.id).collect();
    let quotas = if ids.is_empty() { HashMap::new() } else { tx.quotas(&ids).await? };
    let now = tx.now;
    let key_of = |customer: &Customer, feature_id: &FeatureId| {
        counter_key(customer, feature_id, customer.tier.cycle.period_at(now))
    };
    let features = || active.features.keys();
    let keys: Vec<_> =
        customers.iter().flat_map(|c| features().map(|feature_id| key_of(c, feature_id))).collect();
    let found = if keys.is_empty() { Vec::new() } else { tx.counters(&keys).await? };
    let counters: HashMap<_, _> =
        found.into_iter().map(|(key, _, counter)| (key, counter)).collect();
    for customer in customers {
        for feature_id in features() {
            let Some(counter) = counters.get(&key_of(customer, feature_id)) else { continue };
            let at = |terms| threshold_of(customer, terms, feature_id, &quotas, counter, now);
            let (was, is) = (at(old), at(&active));
            let Some(crossed) = is.filter(|at| at.is_news_after(was) || is == was) else {
                continue;
            };
            let facts = facts(customer, &active, feature_id, counter, now);
            let notice = notice(app, customer, &facts, crossed, plan_version);
            if crossed.is_news_after(was) || !tx.is_told(&notice).await? {
                tx.insert_notice(&notice).await?;
            }
        }
    }
    Ok(())
}

/// Customers for whom a new file changes something.
#[derive(Debug, PartialEq, Eq)]
struct Affected<'a> {
    /// Those whose subscription names this plan.
    plan_id: Option<&'a PlanId>,
    /// Those without a subscription, who are on the file's default.
    is_default: bool,
}

impl Affected<'_> {
    /// Whether these keep the limits they have.
    fn keeps(&self, old: &Catalog, new: &Catalog) -> bool {
        let keeps = |id: &PlanId| new.plan(id.as_str()).is_some_and(|plan| plan.grandfather);
        self.plan_id.or(old.default_plan.as_ref()).is_some_and(keeps)
    }
}

fn affected<'a>(old: &'a Catalog, new: &Catalog) -> Vec<Affected<'a>> {
    let changed = Catalog::changed_limits(old, new);
    // Other credits are no other limit, so that nobody is told anything; but whoever is to keep its
    // terms keeps these too.
    let other_rates = |plan: &Plan| {
        let keeps = new.plan(plan.id.as_str()).is_some_and(|plan| plan.grandfather);
        keeps && old.changes_rates(plan, new)
    };
    let another_default = old.default_plan != new.default_plan;
    let on = |plan: &'a Plan| Affected {
        plan_id: Some(&plan.id),
        is_default: !another_default && old.default_plan.as_ref() == Some(&plan.id),
    };
    let plans =
        old.plans.iter().filter(|plan| changed.contains(&plan.id) || other_rates(plan)).map(on);
    let default = another_default.then_some(Affected { plan_id: None, is_default: true });
    plans.chain(default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLANS: &str = include_str!("../../plans.example.toml");

    #[test]
    fn another_default_affects_those_without_a_subscription_and_nobody_else() {
        let old = Catalog::parse(PLANS).unwrap();
        let named = |name: &str| PLANS.replace("default_plan = \"starter\"", name);
        let other = Catalog::parse(&named("default_plan = \"pro\"")).unwrap();
        let none = Catalog::parse(&named("")).unwrap();
        let everyone_without = [Affected { plan_id: None, is_default: true }];
        assert_eq!(affected(&old, &other), everyone_without);
        assert_eq!(affected(&old, &none), everyone_without);
        assert_eq!(affected(&old, &old), []);
    }

    #[test]
    fn a_changed_default_plan_affects_its_subscribers_and_those_without_a_subscription() {
        let old = Catalog::parse(PLANS).unwrap();
        let new = Catalog::parse(&PLANS.replace("granted = 200,", "granted = 100,")).unwrap();
        let starter = "starter".parse().unwrap();
        assert_eq!(affected(&old, &new), [Affected { plan_id: Some(&starter), is_default: true }]);
    }
}
