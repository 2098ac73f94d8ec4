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
        Some(Turn::Ended { at }) => {
            let own = customer.tier.cycle.period_at(tx.now);
            let at = match next.stripe {
                // An older subscription goes on. Stripe bills by the customer, so that one bills what
                // its period is the time of, whichever subscription it was used under.
                Some(older) if older.start < own.start => older.end,
                _ => at.min(tx.now),
            };
            end_series(app, tx, customer, at).await
        }
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
    let (own, closed) = take_over(&mut to, after, &mut from, tx.now);
    if let Some(window) = own {
        freeze(app, tx, customer, key, end, window).await?;
    }
    if let Some(window) = closed {
        freeze(app, tx, customer, &to_key, period.end, window).await?;
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

/// Goes on with the window that another counter, `from`, had open; answers what this closes: that
/// window, where some of its time is closed already, and the counter's own. So no window that stays
/// open ends when one that is closed and of the same counter does.
fn take_over(
    counter: &mut Counter,
    window: Option<OpenWindow>,
    from: &mut Counter,
    now: Timestamp,
) -> (Option<OpenWindow>, Option<OpenWindow>) {
    from.open = window;
    let overlaps = |open: &OpenWindow| counter.closed_until.is_some_and(|until| until > open.start);
    let from_closed =
        if from.open.as_ref().is_some_and(overlaps) { from.cut_window(now) } else { None };
    let window = from.open.take();
    let until = window.as_ref().map(|window| window.start).or(from.closed_until);
    let own = counter.open.as_ref().zip(until);
    let closes = own.is_some_and(|(own, until)| window.is_some() || own.start < until);
    let closed = until.filter(|_| closes).and_then(|until| counter.cut_window(until));
    counter.closed_until = counter.closed_until.max(from.closed_until);
    counter.open = window.or(counter.open.take());
    (from_closed, closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start_s: i64, end_s: i64) -> OpenWindow {
        let (start, end) = (Timestamp::from_seconds(start_s), Timestamp::from_seconds(end_s));
        OpenWindow { start, end, value: 1, meter: "runs".to_owned() }
    }

    fn counter(open: Option<OpenWindow>, closed_until_s: Option<i64>) -> Counter {
        let closed_until = closed_until_s.map(Timestamp::from_seconds);
        Counter { open, closed_until, ..Counter::default() }
    }

    fn taken(to: &Counter, from: &Counter) -> (Option<i64>, Option<i64>, Option<i64>) {
        let (mut to, mut from) = (to.clone(), from.clone());
        let window = from.open.take();
        let (own, closed) = take_over(&mut to, window, &mut from, Timestamp::from_seconds(400));
        let end = |window: Option<OpenWindow>| window.map(|window| window.end.seconds());
        (end(own), end(closed), end(to.open))
    }

    #[test]
    fn a_window_that_stays_open_ends_when_none_does_that_is_closed() {
        let (late, begun) = (window(120, 300), window(60, 300));
        let nothing = counter(None, None);
        assert_eq!(taken(&nothing, &counter(Some(begun.clone()), None)), (None, None, Some(300)));
        let closed = counter(None, Some(300));
        assert_eq!(taken(&closed, &counter(Some(begun), None)), (Some(300), None, None));
        let open = counter(Some(late), Some(60));
        assert_eq!(taken(&open, &closed), (None, Some(300), None));
        assert_eq!(taken(&open, &nothing), (None, None, Some(300)));
        let next = counter(Some(window(300, 600)), Some(300));
        assert_eq!(taken(&open, &next), (None, Some(300), Some(600)));
        assert_eq!(taken(&next, &counter(None, Some(300))), (None, None, Some(600)));
    }
}
