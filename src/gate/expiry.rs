//! What ends by the clock: reservations that nobody settled, overrides and grants whose time is up.
//!
//! Decisions never wait for this: a grant that has expired grants nothing from that instant on.
//! Here its row is settled, and the customer told if that puts it at a threshold.

use super::quotas::{self, Change, ChangeError};
use crate::app::App;
use crate::domain::answer::HoldState;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;

/// How many customers one call takes; the caller asks again while it is told of this many.
pub const AT_ONCE: i64 = 200;

/// Gives back the units of reservations whose time has passed; answers of how many customers.
pub async fn expire_holds(app: &App) -> Result<usize, StoreError> {
    let due = app.store.customers_with_expired_holds(app.clock.now(), AT_ONCE).await?;
    for id in &due {
        expire_holds_of(app, id).await?;
    }
    Ok(due.len())
}

async fn expire_holds_of(app: &App, id: &CustomerId) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    tx.lock_customer_or_deleted(id).await?;
    let mut expired = tx.expired_holds_of(id, tx.now).await?;
    let now = tx.now;
    for reservation in &mut expired {
        reservation.hold.state = HoldState::Expired;
        reservation.settled_at = Some(now);
        if let Some((period_end, mut counter)) = tx.counter_and_end(&reservation.counter).await? {
            counter.reserved -= reservation.hold.units;
            tx.put_counters(&[(reservation.counter.clone(), period_end, counter)]).await?;
        }
    }
    tx.put_reservations(&expired).await?;
    tx.commit().await?;
    for reservation in &expired {
        tracing::info!(
            customer_id = %id, reservation_id = %reservation.hold.id, units = reservation.hold.units,
            "a reservation expired; its units are free again"
        );
    }
    Ok(())
}

/// Settles overrides and grants whose time has passed; answers of how many customers.
pub async fn end_quotas(app: &App) -> Result<usize, StoreError> {
    let due = app.store.customers_with_ended_quotas(app.clock.now(), AT_ONCE).await?;
    for id in &due {
        match quotas::change(app, id, "clock", Change::Ended).await {
            // Deleted since we looked.
            Ok(_) | Err(ChangeError::UnknownCustomer) => {}
            Err(ChangeError::Store(error)) => return Err(error),
            Err(refused) => tracing::error!(customer_id = %id, %refused, "quotas did not end"),
        }
    }
    Ok(due.len())
}
