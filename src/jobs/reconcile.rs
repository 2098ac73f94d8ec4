//! Looks after what webhooks may have missed: customers whose Stripe period has ended without a
//! renewal having been seen are fetched anew. Kind to Stripe's allowance of reads: nobody else is.

use super::Progress;
use crate::app::App;
use crate::sync::{SyncError, sync_tier};

/// How many customers are looked up at once.
const AT_ONCE: i64 = 100;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    if app.stripe.is_none() {
        return Ok(Progress {
            note: Some("no Stripe key is configured".to_owned()),
            ..Progress::default()
        });
    }
    let moment = app.clock.now();
    let mut after = String::new();
    let mut done = 0;
    let mut failed = 0;
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
    let note = (failed > 0).then(|| format!("{failed} customers could not be synced"));
    Ok(Progress { done, more: false, note })
}
