//! The end of a period: what is used in its last moments reaches Stripe before it, and what has not
//! reached Stripe half an hour after it is told of.

use std::collections::HashSet;
use std::time::Duration;

use super::usage::{AT_ONCE, Sent, send_round};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::period::FLUSH_BEFORE_END;
use crate::gate::windows;
use crate::store::StoreError;

/// A replica's clock may be behind and the renewal not be known yet: until this long after the end
/// what is left of the period is sent at once too.
const FLUSH_AFTER_END: Duration = Duration::from_secs(60);
/// How many customers' windows one transaction closes: others wait for it.
const PAGE: usize = 50;
const LEASE: &str = "flush_periods";
const LEASE_FOR: Duration = Duration::from_secs(60);

/// Closes and sends what there is of periods that are about to end, without waiting for windows and
/// ticks. Done every second, this leaves the runs of the last second, and a send that is under way,
/// to arrive after the end. To look costs one read; what is found is one replica's to do.
pub async fn flush(app: &App) -> Result<Sent, StoreError> {
    if app.stripe.is_none() {
        return Ok(Sent::default());
    }
    let now = app.clock.now();
    let ending = (now.minus(FLUSH_AFTER_END), now.plus(FLUSH_BEFORE_END));
    let nothing = app.store.customers_to_flush(ending, now, 1).await?.is_empty()
        && app.store.due_meter_events_of_ending_periods(ending, 1).await?.is_empty();
    if nothing || !app.store.take_lease(LEASE, &app.replica_id, now, LEASE_FOR).await? {
        return Ok(Sent::default());
    }
    let flushed = close_and_send(app, ending, now).await;
    app.store.release_lease(LEASE, &app.replica_id).await?;
    flushed
}

/// Closes all before it sends any, so that a Stripe that is slow keeps no window open past its
/// period's end. One that cannot be closed keeps nothing else here.
async fn close_and_send(
    app: &App,
    ending: (Timestamp, Timestamp),
    now: Timestamp,
) -> Result<Sent, StoreError> {
    let closed = close_all(app, ending, now).await;
    let due = app.store.due_meter_events_of_ending_periods(ending, AT_ONCE).await?;
    let sent = send_round(app, &due).await?;
    closed.map(|()| sent)
}

async fn close_all(
    app: &App,
    ending: (Timestamp, Timestamp),
    opened_by: Timestamp,
) -> Result<(), StoreError> {
    // They are listed again and again.
    let mut stuck = HashSet::new();
    loop {
        let limit = PAGE + stuck.len();
        let mut page = app
            .store
            .customers_to_flush(ending, opened_by, i64::try_from(limit).unwrap_or(i64::MAX))
            .await?;
        let is_last = page.len() < limit;
        page.retain(|id| !stuck.contains(id));
        stuck.extend(windows::flush(app, &page).await?);
        if is_last {
            return Ok(());
        }
    }
}

/// Sends what is left of periods that are over, those first whose invoice is final first, however
/// rarely the schedule would.
pub async fn drain(app: &App) -> Result<Sent, StoreError> {
    let sent =
        send_round(app, &app.store.due_meter_events_of_closed_periods(AT_ONCE).await?).await?;
    watch(app).await?;
    Ok(sent)
}

/// Tells, once for each customer and period, of usage that may miss the invoice of its period.
async fn watch(app: &App) -> Result<(), StoreError> {
    let (units, untold) = app.store.overdue_units().await?;
    metrics::gauge!("tollgate_meter_units_overdue").set(units as f64);
    if untold == 0 {
        return Ok(());
    }
    let mut tx = app.store.begin().await?;
    let overdue = tx.tell_overdue().await?;
    tx.commit().await?;
    for late in overdue {
        tracing::error!(
            customer_id = %late.counter.customer_id,
            feature_id = %late.counter.feature_id,
            period_start = %late.counter.period_start,
            units = late.units,
            billable_until = %late.billable_until,
            "usage of a period that is over has not reached Stripe: after this time it is not billed"
        );
    }
    Ok(())
}
