//! Looks after what webhooks may have missed: customers whose Stripe period has ended without a
//! renewal having been seen are fetched anew, and usage is held against Stripe's sums where it is in
//! doubt or its period has ended. Kind to Stripe's allowance of reads: nothing else is asked.

use super::Progress;
use crate::app::App;
use crate::store::StoreError;
use crate::sync::reconcile::{self, Reconciled};
use crate::sync::{SyncError, sync_tier};

/// How many customers are looked up at once.
const AT_ONCE: i64 = 100;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    let expiring = reconcile::warn_of_expiring(app).await?;
    let expiring = (expiring > 0)
        .then(|| format!("{expiring} units of usage are over 30 days old and not at Stripe"));
    if app.stripe.is_none() {
        let note = Some("no Stripe key is configured".to_owned());
        return Ok(Progress { note: joined([note, expiring]), ..Progress::default() });
    }
    let (renewed, failed) = renewals(app).await?;
    let Reconciled { settled, proven, differing, stopped } = reconcile::usage(app).await?;
    let note = joined([
        (failed > 0).then(|| format!("{failed} customers could not be synced")),
        (differing > 0).then(|| format!("{differing} sums of usage need someone to look")),
        stopped.then(|| "Stripe's sums cannot be read now".to_owned()),
        expiring,
    ]);
    Ok(Progress { done: renewed + settled + proven, more: false, note })
}

fn joined<const N: usize>(notes: [Option<String>; N]) -> Option<String> {
    let notes: Vec<_> = notes.into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// Fetches customers with an overdue renewal anew; answers how many, and how many failed.
async fn renewals(app: &App) -> Result<(usize, usize), StoreError> {
    let moment = app.clock.now();
    let mut after = String::new();
    let (mut done, mut failed) = (0, 0);
    // Through to the last: some stay overdue for good (paused ones do), and must not stand in the
    // way of the others.
    loop {
        let page = app.store.customers_with_overdue_renewal(moment, &after, AT_ONCE).await?;
        let Some(last) = page.last() else { break };
        after = last.to_string();
        for id in &page {
            match sync_tier(app, id).await {
                Ok(_) => done += 1,
                // Whoever is at it already does the same.
                Err(SyncError::Busy) => {}
                Err(error) => {
                    failed += 1;
                    tracing::warn!(customer_id = %id, %error, "a customer with an overdue renewal could not be synced");
                }
            }
        }
    }
    Ok((done, failed))
}
