//! Closing metering windows: usage that nobody adds to any more is frozen for Stripe.

use std::collections::BTreeSet;

use super::batch::meter_event;
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::ids::CustomerId;
use crate::domain::period::Cycle;
use crate::domain::usage::OpenWindow;
use crate::store::usage::CounterKey;
use crate::store::{StoreError, Tx};

/// How many windows one call closes; the caller asks again while it is told of this many.
pub const AT_ONCE: i64 = 500;

/// Closes windows whose end has passed; answers how many it has closed. One that cannot be stays open and
/// keeps no other so.
pub async fn close_due(app: &App) -> Result<usize, StoreError> {
    let mut closed = 0;
    for key in app.store.counters_to_close(app.clock.now(), AT_ONCE).await? {
        match close_one(app, &key).await {
            Ok(()) => closed += 1,
            Err(error) if error.is_outage() => return Err(error),
            Err(error) => say_stuck(&key.customer_id, &error),
        }
    }
    Ok(closed)
}

async fn close_one(app: &App, key: &CounterKey) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    if let Some(customer) = tx.lock_customer(&key.customer_id).await? {
        close(app, &mut tx, &customer, key, When::IfDue).await?;
    }
    tx.commit().await
}

fn say_stuck(customer_id: &CustomerId, error: &StoreError) {
    tracing::error!(
        customer_id = %customer_id, %error,
        "a customer's metering window cannot be closed: its usage is not sent"
    );
}

/// Closes a customer's windows whose end has passed.
pub async fn close_due_of(app: &App, customer_id: &CustomerId) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    if let Some(customer) = tx.lock_customer(customer_id).await? {
        for key in tx.open_counters_of(customer_id).await? {
            close(app, &mut tx, &customer, &key, When::IfDue).await?;
        }
    }
    tx.commit().await
}

/// Closes all of a customer's windows at this instant, within the transaction that is about to
/// change whom they are reported to.
pub async fn cut(app: &App, tx: &mut Tx, customer: &Customer) -> Result<(), StoreError> {
    for key in tx.open_counters_of(&customer.id).await? {
        close(app, tx, customer, &key, When::Now).await?;
    }
    Ok(())
}

/// Closes these customers' windows of Stripe's period at this instant, before it ends, in one
/// transaction; if one of them stands in the way of that, in one for each. Answers those whose
/// windows cannot be closed.
pub async fn flush(app: &App, ids: &[CustomerId]) -> Result<Vec<CustomerId>, StoreError> {
    match flush_together(app, ids).await {
        Err(error) if !error.is_outage() => {}
        done => return done.map(|()| Vec::new()),
    }
    let mut stuck = Vec::new();
    for id in ids {
        match flush_together(app, std::slice::from_ref(id)).await {
            Ok(()) => {}
            Err(error) if error.is_outage() => return Err(error),
            Err(error) => {
                say_stuck(id, &error);
                stuck.push(id.clone());
            }
        }
    }
    Ok(stuck)
}

async fn flush_together(app: &App, ids: &[CustomerId]) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    // In order of id, as everyone locks several.
    for id in ids.iter().collect::<BTreeSet<_>>() {
        let Some(customer) = tx.lock_customer(id).await? else { continue };
        let Cycle { series, stripe, .. } = customer.tier.cycle;
        for key in tx.open_counters_of(id).await? {
            if key.series == series && stripe.is_some_and(|own| own.start == key.period_start) {
                close(app, &mut tx, &customer, &key, When::Now).await?;
            }
        }
    }
    tx.commit().await
}

/// Closes one counter's window at this instant. The caller holds the customer's lock.
pub(super) async fn close_now(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    key: &CounterKey,
) -> Result<(), StoreError> {
    close(app, tx, customer, key, When::Now).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    IfDue,
    Now,
}

/// The caller holds the customer's lock.
async fn close(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    key: &CounterKey,
    when: When,
) -> Result<(), StoreError> {
    let Some((period_end, mut counter)) = tx.counter_and_end(key).await? else { return Ok(()) };
    let closed = match when {
        When::IfDue => counter.close_window(tx.now),
        When::Now => counter.cut_window(tx.now),
    };
    let Some(window) = closed else { return Ok(()) };
    tx.put_counters(&[(key.clone(), period_end, counter)]).await?;
    freeze(app, tx, customer, key, period_end, window).await
}

/// Stores a closed window as the meter event that it is from now on.
pub(super) async fn freeze(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    key: &CounterKey,
    period_end: Timestamp,
    window: OpenWindow,
) -> Result<(), StoreError> {
    // A window opens only for a customer tied to Stripe, and closes before that tie changes.
    let stripe_id = customer
        .stripe_customer_id
        .as_deref()
        .ok_or(StoreError::Corrupt { table: "usage_counters", column: "open_meter" })?;
    let billed = customer.tier.subscription.is_some();
    tx.insert_meter_event(&meter_event(app, tx.now, key, period_end, stripe_id, window, billed))
        .await
}
