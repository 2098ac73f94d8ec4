//! Putting a plans file in force: whose limits it changes, and who keeps the old ones.

use serde_json::json;

use crate::domain::ids::PlanId;
use crate::domain::plan::{Catalog, Plan};
use crate::entropy::Entropy;
use crate::store::{Store, StoreError, Tx};

/// Puts a checked plans file in force and answers its version. Where it changes a plan's limits,
/// those who are on the plan keep the old ones if it says so (`grandfather`), until support moves
/// them or they change plan; for the others thresholds are told again under the new ones.
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
    for Affected { plan_id, is_default } in affected(old, new) {
        let keeps = |id: &PlanId| new.plan(id.as_str()).is_some_and(|plan| plan.grandfather);
        let keeps = plan_id.or(old.default_plan.as_ref()).is_some_and(keeps);
        let customers = match keeps {
            true => tx.keep_terms(plan_id, is_default, old_version).await?,
            false => tx.renew_entitlements(plan_id, is_default).await?,
        };
        let action = if keeps { "plan.grandfathered" } else { "plan.limits_changed" };
        let detail = json!({"plan_id": plan_id, "without_subscription": is_default,
            "from_version": old_version, "to_version": version, "customers": customers});
        let audit_id = entropy.id("aud", tx.now);
        tx.insert_audit(&audit_id, "plans_file", action, None, &detail).await?;
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

fn affected<'a>(old: &'a Catalog, new: &Catalog) -> Vec<Affected<'a>> {
    let changed = Catalog::changed_limits(old, new);
    let another_default = old.default_plan != new.default_plan;
    let on = |plan: &'a Plan| Affected {
        plan_id: Some(&plan.id),
        is_default: !another_default && old.default_plan.as_ref() == Some(&plan.id),
    };
    let plans = old.plans.iter().filter(|plan| changed.contains(&plan.id)).map(on);
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
