//! What ends by the clock: reservations that nobody settled, overrides and grants whose time is up.
//!
//! Decisions never wait for this: a grant that has expired grants nothing from that instant on.
//! Here its row is settled, and the customer told if that puts it at a threshold.

use std::collections::HashMap;

use super::quotas::{self, Change, ChangeError};
use crate::app::App;
use crate::domain::answer::HoldState;
use crate::domain::ids::CustomerId;
use crate::store::StoreError;
use crate::store::reservations::Reservation;
use crate::store::usage::CounterKey;

/// How many customers one call takes; the caller asks again while it is told of this many.
pub const AT_ONCE: i64 = 200;
/// How many holds of one customer end in one transaction: others wait for it.
const HOLDS: usize = 500;

/// Gives back the units of reservations whose time has passed; answers of how many customers.
pub async fn expire_holds(app: &App) -> Result<usize, StoreError> {
    let due = app.store.customers_with_expired_holds(app.clock.now(), AT_ONCE).await?;
    for id in &due {
        while expire_some_of(app, id).await? == HOLDS {}
    }
    Ok(due.len())
}

/// Answers how many there were.
async fn expire_some_of(app: &App, id: &CustomerId) -> Result<usize, StoreError> {
    let mut tx = app.store.begin().await?;
    tx.lock_customer_or_deleted(id).await?;
    let mut expired = tx.expired_holds_of(id, tx.now, HOLDS as i64).await?;
    let now = tx.now;
    let mut units: HashMap<CounterKey, i64> = HashMap::new();
    for Reservation { hold, counter, settled_at, .. } in &mut expired {
        hold.state = HoldState::Expired;
        *settled_at = Some(now);
        *units.entry(counter.clone()).or_default() += hold.units;
    }
    let held: Vec<_> = units.keys().cloned().collect();
    let mut counters = if held.is_empty() { Vec::new() } else { tx.counters(&held).await? };
    for (key, _, counter) in &mut counters {
        counter.reserved -= units.get(key).copied().unwrap_or_default();
    }
    tx.put_counters(&counters).await?;
    tx.put_reservations(&expired).await?;
    tx.commit().await?;
    for reservation in &expired {
        tracing::info!(
            customer_id = %id, reservation_id = %reservation.hold.id, units = reservation.hold.units,
            "a reservation expired; its units are free again"
        );
    }
    Ok(expired.len())
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
