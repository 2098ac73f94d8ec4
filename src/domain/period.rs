//! Billing periods: half-open, in UTC, tiling time from an anchor as Stripe does it.
//!
//! Stripe's bounds win. What is counted before they are known is counted in the period that is in
//! force as far as we know, and moved once they are:
//!
//! - A run is counted in the period of Stripe's in which it was made. If Stripe says that a period
//!   began at a moment within or before the one that runs have been counted in, as after a changed
//!   interval, an anchor that was reset, the end of a trial or a period made longer, the runs since
//!   that moment move to the counter of the period that began then. A provisional period that turns
//!   out to be no period at all is empty after that.
//! - What an open metering window holds is split at that moment; a meter event that is frozen stays
//!   as it is, and the runs of one that began before the moment stay where it is billed.
//! - A renewal that is merely late moves nothing: the provisional period has the start that Stripe
//!   names later, and only its end may change.
//! - Another subscription, the first or the end of the last begins a new series at zero. Runs
//!   between that moment and the one at which it became known were answered on the old terms and
//!   stay in the old series. They are reported with their true time, except that a window which is
//!   open when a first subscription becomes known is not split; if the subscription had ended, no
//!   invoice bills them, and the outbox says so.
//! - Units that are held when a period turns out to have ended before its time are held in the one
//!   that began then.
//! - No run is lost or counted twice by any of this, and what a run was answered stays its answer.
//!   Where runs of two periods that were thought to be two turn out to be of one, its usage may be
//!   above the cap: then the gate is shut until it ends.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, Zoned};
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::plan::Interval;

/// How long after its end a period's usage can still be reported. Stripe finalises a renewal's
/// invoice about an hour after the period's end (its documentation, "Subscription invoices"); the
/// other half of that hour is for the meter event to get there.
pub const REPORTABLE_FOR: Duration = Duration::from_secs(30 * 60);

/// How long after its end a renewed period's invoice stays a draft, so that usage with a time in the
/// period is still billed (the same page: about an hour). A subscription that has ended has no
/// such hour.
pub const DRAFT_FOR: Duration = Duration::from_secs(60 * 60);

/// Usage that has not reached Stripe this long after its period's end is an alarm: half of the draft
/// hour is left to do something about it.
pub const ALARM_AFTER: Duration = Duration::from_secs(30 * 60);

/// In this last stretch of a period usage is sent as it comes, because it is not known whether the
/// subscription goes on, and of one that does not, nothing is billed after its end.
pub const FLUSH_BEFORE_END: Duration = Duration::from_secs(30);

/// A half-open span of time, `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BillingPeriod {
    pub start: Timestamp,
    pub end: Timestamp,
}

impl BillingPeriod {
    pub fn contains(&self, moment: Timestamp) -> bool {
        self.start <= moment && moment < self.end
    }

    /// Until when usage of it is billed, if the subscription goes on.
    pub fn billable_until(&self) -> Timestamp {
        self.end.plus(DRAFT_FOR)
    }
}

/// How one cycle goes over into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The series ended at this moment, and the next began.
    Ended { at: Timestamp },
    /// Within the series Stripe's bounds are these now.
    Bounds(BillingPeriod),
}

/// From what a customer's periods are reckoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    /// Numbers a customer's runs of consecutive periods. A first subscription and the end of one
    /// each begin a new series, whose counters start at zero even if a period of the series before
    /// began at the same instant.
    pub series: i64,
    /// Where the periods are counted from; its day of the month is kept, clamped at month ends.
    pub anchor: Timestamp,
    pub interval: Interval,
    /// Stripe's own bounds, which win while they last.
    pub stripe: Option<BillingPeriod>,
}

impl Cycle {
    /// The cycle of a customer without a subscription: months from `start`.
    pub fn local(series: i64, start: Timestamp) -> Self {
        Self { series, anchor: start, interval: Interval::Month, stripe: None }
    }

    /// What the counters of this cycle have to be told when `next` takes its place.
    pub fn turn(&self, next: &Self) -> Option<Turn> {
        if next.series != self.series {
            let at = next.stripe.map_or(next.anchor, |period| period.start);
            return Some(Turn::Ended { at });
        }
        next.stripe.filter(|period| self.stripe != Some(*period)).map(Turn::Bounds)
    }

    /// The period in force at `now`.
    ///
    /// After the end of Stripe's bounds a renewal is merely late: the next period starts
    /// provisionally at that end, and Stripe's bounds, when they come, name the same start.
    pub fn period_at(&self, now: Timestamp) -> BillingPeriod {
        let Some(stripe) = self.stripe else {
            return grid_period(self.anchor, self.interval, now);
        };
        if now < stripe.end {
            return stripe;
        }
        let on_grid = grid_period(self.anchor, self.interval, now);
        BillingPeriod { start: on_grid.start.max(stripe.end), end: on_grid.end }
    }
}

/// The period around `now` on the grid of boundaries counted from `anchor`.
fn grid_period(anchor: Timestamp, interval: Interval, now: Timestamp) -> BillingPeriod {
    let guess = periods_between(anchor, interval, now);
    // Clamping at month ends moves a boundary by at most three days, so the guess is at most one
    // period off.
    let n = (guess - 1..=guess + 1)
        .rev()
        .find(|n| boundary(anchor, interval, *n) <= now)
        .unwrap_or(guess - 1);
    BillingPeriod { start: boundary(anchor, interval, n), end: boundary(anchor, interval, n + 1) }
}

/// How many whole calendar months or years lie between the two, days ignored.
fn periods_between(anchor: Timestamp, interval: Interval, now: Timestamp) -> i64 {
    let (from, to) = (utc(anchor), utc(now));
    let years = i64::from(to.year()) - i64::from(from.year());
    match interval {
        Interval::Year => years,
        Interval::Month => years * 12 + i64::from(to.month()) - i64::from(from.month()),
    }
}

/// The `n`-th boundary: `n` intervals after the anchor, on the anchor's day of the month or the
/// month's last day if it has no such day, at the anchor's time of day.
/// Source: Stripe's documentation, "Billing cycle": an anchor on the 31st bills on the last day of
/// shorter months and returns to the 31st.
fn boundary(anchor: Timestamp, interval: Interval, n: i64) -> Timestamp {
    let span = match interval {
        Interval::Month => Span::new().try_months(n),
        Interval::Year => Span::new().try_years(n),
    };
    // Beyond jiff's calendar (year 9999) there is nothing sensible to do but stand still.
    span.and_then(|span| utc(anchor).checked_add(span))
        .map_or(anchor, |moment| Timestamp::from_jiff(moment.timestamp()))
}

fn utc(moment: Timestamp) -> Zoned {
    moment.to_jiff().to_zoned(TimeZone::UTC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn period(start: &str, end: &str) -> BillingPeriod {
        BillingPeriod { start: at(start), end: at(end) }
    }

    #[test]
    fn an_anchor_on_the_31st_keeps_its_day_through_short_months() {
        let cycle = Cycle::local(0, at("2027-01-31T00:00:00Z"));
        assert_eq!(
            cycle.period_at(at("2027-02-10T12:00:00Z")),
            period("2027-01-31T00:00:00Z", "2027-02-28T00:00:00Z")
        );
        assert_eq!(
            cycle.period_at(at("2027-03-01T00:00:00Z")),
            period("2027-02-28T00:00:00Z", "2027-03-31T00:00:00Z")
        );
    }

    #[test]
    fn a_leap_day_anchor_bills_yearly_on_the_28th() {
        let cycle =
            Cycle { interval: Interval::Year, ..Cycle::local(0, at("2028-02-29T08:00:00Z")) };
        assert_eq!(
            cycle.period_at(at("2029-06-01T00:00:00Z")),
            period("2029-02-28T08:00:00Z", "2030-02-28T08:00:00Z")
        );
    }

    #[test]
    fn stripes_bounds_win_and_a_late_renewal_starts_at_their_end() {
        let stripe = period("2026-11-10T09:30:00Z", "2026-12-10T09:30:00Z");
        let cycle = Cycle { stripe: Some(stripe), ..Cycle::local(1, stripe.start) };
        assert_eq!(cycle.period_at(at("2026-12-10T09:29:59Z")), stripe);
        let provisional = period("2026-12-10T09:30:00Z", "2027-01-10T09:30:00Z");
        assert_eq!(cycle.period_at(at("2026-12-10T09:30:00Z")), provisional);
        let renewed = Cycle { stripe: Some(provisional), ..cycle };
        assert_eq!(renewed.period_at(at("2026-12-20T00:00:00Z")), provisional);
    }

    #[test]
    fn a_turn_is_told_by_the_series_and_by_stripes_bounds() {
        let local = Cycle::local(0, at("2026-11-01T00:00:00Z"));
        let november = period("2026-11-10T09:30:00Z", "2026-12-10T09:30:00Z");
        let first = Cycle { series: 1, stripe: Some(november), ..local };
        assert_eq!(local.turn(&local), None);
        assert_eq!(local.turn(&first), Some(Turn::Ended { at: november.start }));
        assert_eq!(first.turn(&first), None);
        let shorter = BillingPeriod { end: at("2026-11-20T00:00:00Z"), ..november };
        let shortened = Cycle { stripe: Some(shorter), ..first };
        assert_eq!(first.turn(&shortened), Some(Turn::Bounds(shorter)));
        let over = Cycle::local(2, at("2026-11-15T12:00:00Z"));
        assert_eq!(first.turn(&over), Some(Turn::Ended { at: over.anchor }));
    }

    proptest! {
        /// Any anchor, any moment of thirty years before or after it: the period contains it, and the next begins
        /// exactly where it ends.
        #[test]
        fn periods_tile_time(anchor_s in 1_700_000_000_i64..2_600_000_000, ahead_s in -946_080_000_i64..946_080_000, yearly: bool) {
            let interval = if yearly { Interval::Year } else { Interval::Month };
            let cycle = Cycle { interval, ..Cycle::local(0, Timestamp::from_seconds(anchor_s)) };
            let now = Timestamp::from_seconds(anchor_s + ahead_s);
            let here = cycle.period_at(now);
            prop_assert!(here.contains(now), "{here:?} {now}");
            prop_assert_eq!(cycle.period_at(here.end).start, here.end);
            prop_assert_eq!(cycle.period_at(here.start), here);
        }
    }
}
