//! Putting a plans file in force: whose limits it changes, and who keeps the old ones.

use serde_json::json;

use crate::domain::plan::Catalog;
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
    let version = tx.activate_plans(source).await?;
    if let Some((old_version, old_source)) = before.filter(|(old, _)| *old != version)
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
    for plan_id in Catalog::changed_limits(old, new) {
        let is_default = old.default_plan.as_ref() == Some(&plan_id);
        let keeps = new.plan(plan_id.as_str()).is_some_and(|plan| plan.grandfather);
        let customers = match keeps {
            true => tx.keep_terms(&plan_id, is_default, old_version).await?,
            false => tx.renew_entitlements(&plan_id, is_default).await?,
        };
        let action = if keeps { "plan.grandfathered" } else { "plan.limits_changed" };
        let detail = json!({"plan_id": plan_id, "from_version": old_version,
            "to_version": version, "customers": customers});
        let audit_id = entropy.id("aud", tx.now);
        tx.insert_audit(&audit_id, "plans_file", action, None, &detail).await?;
    }
    Ok(())
}
