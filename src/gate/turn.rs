//! What becomes of a customer's counters when Stripe says that its periods are others than was
//! thought. The rule is in `domain::period`; the caller holds the customer's lock and writes the
//! customer itself.

use super::windows::{close_now, freeze};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::period::{BillingPeriod, Cycle, Turn};
use crate::domain::usage::{Counter, OpenWindow};
use crate::store::usage::CounterKey;
use crate::store::{StoreError, Tx};

/// Makes the counters of `customer`, as it still is, follow the cycle that it is about to have;
/// answers whether usage was frozen that should reach Stripe at once.
pub async fn follow(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    next: &Cycle,
) -> Result<bool, StoreError> {
    match customer.tier.cycle.turn(next) {
        None => Ok(false),
        Some(Turn::Ended { at }) => end_series(app, tx, customer, at.min(tx.now)).await,
        Some(Turn::Bounds(period)) => move_into(app, tx, customer, period).await,
    }
}

/// Freezes what is open, in two where a subscription ended within a window. What was answered on
/// the terms of no subscription is not for the first one to bill: there, nothing is split.
async fn end_series(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let open = tx.open_counters_of(&customer.id).await?;
    for key in &open {
        let Some((period_end, mut counter)) = tx.counter_and_end(key).await? else { continue };
        let later = tx.units_metered_since(key, at).await?;
        let Some(window) = counter.cut_window(tx.now) else { continue };
        tx.put_counters(&[(key.clone(), period_end, counter)]).await?;
        let subscribed = customer.tier.subscription.is_some();
        let (before, after) =
            if subscribed { window.split(at, later) } else { (Some(window), None) };
        for window in before.into_iter().chain(after) {
            freeze(app, tx, customer, key, period_end, window).await?;
        }
    }
    tx.end_series(&customer.id, customer.tier.cycle.series, at).await?;
    Ok(!open.is_empty())
}

/// Counts in `period` whatever was made since its start, and freezes what is open of periods that
/// are over: their invoice is drafted already.
async fn move_into(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    period: BillingPeriod,
) -> Result<bool, StoreError> {
    let series = customer.tier.cycle.series;
    tx.set_period_end(&customer.id, series, period).await?;
    let others = tx.counters_across(&customer.id, series, period.start).await?;
    for key in &others {
        move_counter(app, tx, customer, key, period).await?;
    }
    let mut frozen = !others.is_empty();
    for key in tx.open_counters_of(&customer.id).await? {
        let over = key.series == series && key.period_start < period.start;
        if over {
            close_now(app, tx, customer, &key).await?;
            frozen = true;
        }
    }
    Ok(frozen)
}

async fn move_counter(
    app: &App,
    tx: &mut Tx,
    customer: &Customer,
    key: &CounterKey,
    period: BillingPeriod,
) -> Result<(), StoreError> {
    let Some((end, mut from)) = tx.counter_and_end(key).await? else { return Ok(()) };
    let to_key = CounterKey { period_start: period.start, ..key.clone() };
    let to = tx.counter_and_end(&to_key).await?;
    let mut to = to.map(|(_, counter)| counter).unwrap_or_default();
    let later = tx.units_metered_since(key, period.start).await?;
    let open = from.open.take().map(|window| window.split(period.start, later));
    let (before, after) = open.unwrap_or_default();
    if let Some(window) = before {
        from.closed_until = Some(window.end);
        freeze(app, tx, customer, key, end, window).await?;
    }
    if let Some(closed) = take_over(&mut to, after, from.closed_until) {
        freeze(app, tx, customer, &to_key, period.end, closed).await?;
    }
    // The runs of a window that is frozen stay with it.
    let since = tx.frozen_across(key, period.start).await?.unwrap_or(period.start);
    let moved = tx.move_rows(key, since, period).await?;
    from.usage -= moved.usage;
    from.reserved -= moved.reserved;
    from.from_grants -= moved.from_grants;
    to.usage += moved.usage;
    to.reserved += moved.reserved;
    to.from_grants += moved.from_grants;
    let end = period.start.max(key.period_start);
    tx.put_counters(&[(key.clone(), end, from), (to_key, period.end, to)]).await?;
    tracing::info!(
        customer_id = %customer.id, feature_id = %key.feature_id, units = moved.usage,
        thought = %key.period_start, began = %period.start,
        "runs are counted in the period that Stripe says they are of"
    );
    Ok(())
}

/// Goes on with a window that another counter had open; answers the one of its own that this closes.
fn take_over(
    counter: &mut Counter,
    window: Option<OpenWindow>,
    closed_until: Option<Timestamp>,
) -> Option<OpenWindow> {
    let closed = window.as_ref().and_then(|window| counter.cut_window(window.start));
    counter.closed_until = counter.closed_until.max(closed_until);
    counter.open = window.or(counter.open.take());
    closed
}
