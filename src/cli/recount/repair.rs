//! Putting a customer's numbers right, in one transaction under its lock.

use serde_json::json;

use super::Finding;
use crate::domain::customer::Customer;
use crate::domain::ids::CustomerId;
use crate::domain::period::BillingPeriod;
use crate::domain::plan::Catalog;
use crate::domain::recount::{Metering, Number, Stuck, difference, differences, repair};
use crate::entropy::Entropy;
use crate::store::recount::{RecountedCounter, RecountedGrant};
use crate::store::{ServeLock, Store, StoreError, Tx};

pub(super) struct Repair {
    /// Says which meters there are.
    pub catalog: Catalog,
    pub entropy: Entropy,
    /// Held so that no daemon on SQLite trusts what it read before.
    pub _lock: ServeLock,
}

impl Repair {
    /// Answers what differed, and what became of it.
    pub async fn customer(
        &self,
        store: &Store,
        id: &CustomerId,
    ) -> Result<Vec<Finding>, StoreError> {
        let mut tx = store.begin().await?;
        let customer = tx.lock_customer_or_deleted(id).await?;
        // Only now can nobody move them.
        let read = tx.recounted_of(id).await?;
        let mut settled = Vec::new();
        for counter in &read.counters {
            let found = differences(counter.stored, &counter.parts);
            if found.is_empty() {
                continue;
            }
            let done = self.counter(&mut tx, customer.as_ref(), counter).await?;
            for difference in found {
                let done = match done {
                    Err(stuck) if stuck == Stuck::NoPeriod => Err(stuck),
                    Err(stuck) if difference.number == Number::Open => Err(stuck),
                    _ => Ok(()),
                };
                let finding = Finding::of_counter(counter, difference);
                settled.push(self.note(&mut tx, id, finding, done).await?);
            }
        }
        for grant in &read.grants {
            let Some(found) = difference(Number::GrantUsed, grant.used, grant.drawn) else {
                continue;
            };
            let done = repair_grant(&mut tx, grant).await?;
            let finding = Finding::of_grant(grant, found);
            settled.push(self.note(&mut tx, id, finding, done).await?);
        }
        tx.commit().await?;
        Ok(settled)
    }

    async fn counter(
        &self,
        tx: &mut Tx,
        customer: Option<&Customer>,
        of: &RecountedCounter,
    ) -> Result<Result<(), Stuck>, StoreError> {
        let found = tx.counter_and_end(&of.key).await?;
        let (end, mut counter) = match (found, of.period_end) {
            (Some(found), _) => found,
            (None, Some(end)) => (end, Default::default()),
            (None, None) => return Ok(Err(Stuck::NoPeriod)),
        };
        let feature = self.catalog.features.get(&of.key.feature_id);
        let meter = feature.and_then(|feature| feature.stripe_meter.as_deref());
        let tied = customer.is_some_and(|customer| customer.stripe_customer_id.is_some());
        let metering = meter.filter(|_| tied).map(|meter| Metering {
            meter,
            window: self.catalog.metering_window,
            now: tx.now,
        });
        let period = BillingPeriod { start: of.key.period_start, end };
        let done = repair(&mut counter, &of.parts, period, metering);
        tx.put_counters(&[(of.key.clone(), end, counter)]).await?;
        Ok(done)
    }

    async fn note(
        &self,
        tx: &mut Tx,
        id: &CustomerId,
        finding: Finding,
        done: Result<(), Stuck>,
    ) -> Result<Finding, StoreError> {
        if done.is_ok() {
            let audit_id = self.entropy.id("aud", tx.now);
            let detail = json!(finding);
            tx.insert_audit(&audit_id, "recount", "repair", Some(id.as_str()), &detail).await?;
        }
        Ok(finding.settled(done))
    }
}

async fn repair_grant(
    tx: &mut Tx,
    grant: &RecountedGrant,
) -> Result<Result<(), Stuck>, StoreError> {
    if grant.used.is_none() {
        return Ok(Err(Stuck::NoGrant));
    }
    if grant.drawn > grant.units {
        return Ok(Err(Stuck::Overdrawn));
    }
    tx.set_used_units(&grant.customer_id, &grant.grant_id, grant.drawn).await?;
    Ok(Ok(()))
}
