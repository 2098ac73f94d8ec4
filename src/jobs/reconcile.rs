//! Looks after what webhooks may have missed: customers whose Stripe period has ended without a
//! renewal having been seen are fetched anew. Kind to Stripe's allowance of reads: nobody else is.

use super::Progress;
use crate::app::App;
use crate::sync::{SyncError, sync_tier};

/// How many customers are read from the database at a time.
const PAGE: i64 = 100;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    if app.stripe.is_none() {
        return Ok(Progress {
            note: Some("no Stripe key is configured".to_owned()),
            ..Progress::default()
        });
    }
    let now = app.clock.now();
    let (mut done, mut failed, mut after) = (0, 0, String::new());
    loop {
        let overdue = app.store.customers_with_overdue_renewal(now, &after, PAGE).await?;
        let Some(last) = overdue.last() else { break };
        after = last.to_string();
        for id in &overdue {
            match sync_tier(app, id).await {
                Ok(()) => done += 1,
                // Whoever is at it already does the same.
                Err(SyncError::Busy) => {}
                // One customer's trouble is no reason to leave the others.
                Err(error) => {
                    failed += 1;
                    tracing::warn!(customer_id = %id, %error, "an overdue renewal could not be looked at");
                }
            }
        }
    }
    let note = (failed > 0).then(|| format!("{failed} customers could not be synced"));
    Ok(Progress { done, more: false, note })
}
