//! What Stripe rejected after it had received it. Its events say only that there were failures;
//! which meter events they were is fetched, and those that are not named are settled by sums.

use std::ops::Range;
use std::time::Duration;

use super::SyncError;
use super::proof::Sums;
use crate::app::App;
use crate::clock::Timestamp;
use crate::store::inbox::{EventOutcome, StoredEvent};
use crate::stripe::{Failure, MeterFailures};

/// How far our notes of when a meter event was sent and answered may be off Stripe's.
const SLACK: Duration = Duration::from_secs(5 * 60);

/// Settles what an event tells of. Applying it again changes nothing.
///
/// # Errors
/// When Stripe cannot be asked what it means, or the database cannot answer.
pub async fn apply(app: &App, event: &StoredEvent) -> Result<EventOutcome, SyncError> {
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    let Some(failures) = stripe.meter_failures(&event.event_id).await? else {
        let reason = "Stripe tells nothing of which meter events have failed".to_owned();
        return Ok(EventOutcome::Parked { reason });
    };
    for failure in &failures.named {
        reject(app, failure).await?;
    }
    if failures.unnamed > 0 {
        suspect(app, &Sums::of(stripe), &failures, event.received_at).await?;
    }
    Ok(EventOutcome::Applied)
}

/// Parks the meter event that a failure names. One that is not ours is somebody else's.
async fn reject(app: &App, failure: &Failure) -> Result<(), SyncError> {
    let Failure { request, code } = failure;
    let reason = format!("Stripe rejected it after receiving it ({code})");
    let mut tx = app.store.begin().await?;
    let row = tx.reject_meter_event(request, code, &reason).await?;
    tx.commit().await?;
    if let Some(row) = row {
        metrics::counter!("tollgate_meter_events_rejected_total").increment(1);
        tracing::error!(
            customer_id = row.customer_id,
            identifier = row.identifier,
            units = row.units,
            code,
            "Stripe rejected a meter event after receiving it: its usage is not billed"
        );
    }
    Ok(())
}

/// Notes of everything that arrived at the time of failures without a name that it may be among
/// them. `told_at` stands for a time that Stripe does not tell.
async fn suspect(
    app: &App,
    sums: &Sums<'_>,
    failures: &MeterFailures,
    told_at: Timestamp,
) -> Result<(), SyncError> {
    let from = failures.from.unwrap_or(told_at).minus(SLACK);
    let span: Range<_> = from..failures.until.unwrap_or(told_at).plus(SLACK);
    let known = sums.meters().await?;
    let meters = match &failures.meter_id {
        Some(id) => {
            let meter = known.values().find(|meter| meter.id == *id);
            meter.map(|meter| meter.event_name.clone()).into_iter().collect()
        }
        // Sent to a meter that there is not.
        None => {
            let mut names = app.store.meters_sent_to(&span).await?;
            names.retain(|name| !known.contains_key(name));
            names
        }
    };
    let mut suspected = 0;
    let mut tx = app.store.begin().await?;
    for meter in &meters {
        suspected += tx.suspect_meter_events(meter, &span).await?;
    }
    tx.commit().await?;
    tracing::error!(
        unnamed = failures.unnamed,
        suspected,
        "Stripe rejected meter events without naming them: its sums will tell which"
    );
    Ok(())
}
