//! The end of a period: what is used in its last moments reaches Stripe before it, and what has not
//! reached Stripe half an hour after it is told of.

use std::time::Duration;

use super::usage::{AT_ONCE, Sent, send_round};
use crate::app::App;
use crate::domain::period::FLUSH_BEFORE_END;
use crate::gate::windows;
use crate::store::StoreError;

/// A replica's clock may be behind and the renewal not be known yet: until this long after the end
/// what is left of the period is sent at once too.
const FLUSH_AFTER_END: Duration = Duration::from_secs(60);

/// Closes and sends what there is of periods that are about to end, without waiting for windows and
/// ticks; answers of how many customers. Done every second, this leaves the runs of the last second,
/// and a send that is under way, to arrive after the end.
pub async fn flush(app: &App) -> Result<usize, StoreError> {
    if app.stripe.is_none() {
        return Ok(0);
    }
    let now = app.clock.now();
    let (after, until) = (now.minus(FLUSH_AFTER_END), now.plus(FLUSH_BEFORE_END));
    let ending = app.store.customers_to_flush(after, until, AT_ONCE).await?;
    for id in &ending {
        windows::flush(app, id).await?;
        send_round(app, &app.store.due_meter_events_of(id, AT_ONCE).await?).await?;
    }
    Ok(ending.len())
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
