//! Looks after what webhooks may have missed: customers whose Stripe period has ended without a
//! renewal having been seen are fetched anew. Kind to Stripe's allowance of reads: nobody else is.

use super::Progress;
use crate::app::App;
use crate::sync::{Mode, SyncError, sync_customer};

/// How many customers one step fetches.
const AT_ONCE: i64 = 100;

pub(super) async fn step(app: &App) -> anyhow::Result<Progress> {
    if app.stripe.is_none() {
        return Ok(Progress {
            note: Some("no Stripe key is configured".to_owned()),
            ..Progress::default()
        });
    }
    let overdue = app.store.customers_with_overdue_renewal(app.clock.now(), AT_ONCE).await?;
    let mut done = 0;
    let mut failed = 0;
    for id in &overdue {
        match sync_customer(app, id, Mode::Apply).await {
            Ok(_) => done += 1,
            // Whoever is at it already does the same.
            Err(SyncError::Busy) => {}
            Err(error) => {
                failed += 1;
                tracing::warn!(customer_id = %id, %error, "a customer with an overdue renewal could not be synced");
            }
        }
    }
    let note = (failed > 0).then(|| format!("{failed} customers could not be synced"));
    Ok(Progress { done, more: false, note })
}
