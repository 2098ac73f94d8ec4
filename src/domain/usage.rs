//! Usage: the counter of a billing period, its open metering window, and its pace.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::period::{BillingPeriod, REPORTABLE_FOR};

/// The largest quantity one call may count; the smallest is 1.
pub const MAX_QUANTITY: i64 = 1_000_000_000;

/// A customer's counter of one feature in one billing period, in whole units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counter {
    /// Accepted units.
    pub usage: i64,
    /// Units held by running jobs.
    pub reserved: i64,
    /// Of `usage`, the units that grants have paid for.
    pub from_grants: i64,
    /// Of `usage`, the units whose events retention has deleted.
    pub pruned: i64,
    /// Units accepted and not yet frozen into a meter event.
    pub open: Option<OpenWindow>,
    /// Up to when windows are closed; a window never reopens.
    pub closed_until: Option<Timestamp>,
}

/// Usage that waits for its metering window to close, in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenWindow {
    pub start: Timestamp,
    pub end: Timestamp,
    pub value: i64,
    /// The Stripe meter it goes to: fixed when the window opens, whatever the plans file says
    /// when it closes.
    pub meter: String,
}

impl OpenWindow {
    /// The window in two, cut at `at`: what was accepted before, and the `later` units since. A part
    /// without units, or that is no time at all, is none.
    pub fn split(self, at: Timestamp, later: i64) -> (Option<Self>, Option<Self>) {
        if at <= self.start {
            return (None, Some(self));
        }
        if at >= self.end {
            return (Some(self), None);
        }
        let later = later.clamp(0, self.value);
        let before = Self { end: at, value: self.value - later, meter: self.meter.clone(), ..self };
        let after = Self { start: at, value: later, ..self };
        (Some(before).filter(|part| part.value > 0), Some(after).filter(|part| part.value > 0))
    }
}

impl Counter {
    /// Puts `value` accepted units for `meter` into the metering window of `now`, and answers the
    /// window this closes: the open one, if `now` is past it or it goes to another meter.
    ///
    /// Windows lie on a grid of `window` from the epoch, cut at the period's bounds so that none
    /// straddles a period, and never begin before the last one closed: a replica whose clock is
    /// behind adds to the window that is open instead of reopening an old one.
    pub fn meter(
        &mut self,
        value: i64,
        now: Timestamp,
        period: BillingPeriod,
        window: Duration,
        meter: &str,
    ) -> Option<OpenWindow> {
        let closed = match &self.open {
            Some(open) if open.meter != meter => self.cut_window(now),
            _ => self.close_window(now),
        };
        match &mut self.open {
            Some(open) => open.value += value,
            None => {
                let (start, end) = self.window_at(now, period, window);
                self.open = Some(OpenWindow { start, end, value, meter: meter.to_owned() });
            }
        }
        closed
    }

    /// Closes the open window if `now` has reached its end.
    pub fn close_window(&mut self, now: Timestamp) -> Option<OpenWindow> {
        let closed = self.open.take_if(|open| now >= open.end)?;
        self.closed_until = Some(closed.end);
        Some(closed)
    }

    /// Closes the open window at `now`, before its end if need be.
    pub fn cut_window(&mut self, now: Timestamp) -> Option<OpenWindow> {
        let open = self.open.take()?;
        let end = open.end.min(now.max(Timestamp::from_ms(open.start.ms() + 1)));
        self.closed_until = Some(end);
        Some(OpenWindow { end, ..open })
    }

    fn window_at(
        &self,
        now: Timestamp,
        period: BillingPeriod,
        window: Duration,
    ) -> (Timestamp, Timestamp) {
        let length_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX).max(1);
        let floor = self.closed_until.unwrap_or(period.start).max(period.start);
        let moment = now.max(floor);
        let grid_ms = moment.ms().div_euclid(length_ms) * length_ms;
        let start = Timestamp::from_ms(grid_ms).max(floor);
        let end = Timestamp::from_ms(grid_ms + length_ms);
        // What comes after the end is still this period's, and must reach Stripe while it can.
        let last = if start < period.end { period.end } else { period.end.plus(REPORTABLE_FOR) };
        (start, if start < last { end.min(last) } else { end })
    }
}

/// How fast a period's allowance is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Days since the period began, counting the one that has begun: 1 at its first instant.
    pub elapsed_days: i64,
    pub period_days: i64,
    /// Usage in a full period at this pace, rounded down.
    pub projected: i64,
}

/// `usage` units in `period` up to `now`, carried on to its end: 200 in the first 18 of 30 days
/// are 333.
pub fn pace(usage: i64, period: BillingPeriod, now: Timestamp) -> Pace {
    const DAY_MS: i64 = 86_400_000;
    let length_ms = period.end.ms() - period.start.ms();
    let period_days = ((length_ms + DAY_MS / 2) / DAY_MS).max(1);
    let elapsed_ms = (now.ms() - period.start.ms()).max(0);
    let elapsed_days = ((elapsed_ms + DAY_MS - 1) / DAY_MS).clamp(1, period_days);
    let projected = i128::from(usage) * i128::from(period_days) / i128::from(elapsed_days);
    Pace { elapsed_days, period_days, projected: i64::try_from(projected).unwrap_or(i64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn november() -> BillingPeriod {
        BillingPeriod { start: at("2026-11-01T00:00:00Z"), end: at("2026-12-01T00:00:00Z") }
    }

    #[test]
    fn two_hundred_runs_in_eighteen_days_are_333_in_a_month() {
        let pace = pace(200, november(), at("2026-11-18T15:00:00Z"));
        assert_eq!(pace, Pace { elapsed_days: 18, period_days: 30, projected: 333 });
    }

    #[test]
    fn pace_counts_the_first_instant_as_the_first_day_and_stops_at_the_period() {
        assert_eq!(pace(3, november(), november().start).projected, 90);
        assert_eq!(pace(3, november(), at("2027-01-01T00:00:00Z")).projected, 3);
    }

    #[test]
    fn usage_of_one_window_is_frozen_when_the_next_begins() {
        let mut counter = Counter::default();
        assert_eq!(
            counter.meter(2, at("2026-11-05T10:01:00Z"), november(), 5 * MINUTE, "ai_runs"),
            None
        );
        assert_eq!(
            counter.meter(3, at("2026-11-05T10:04:59Z"), november(), 5 * MINUTE, "ai_runs"),
            None
        );
        let closed = counter
            .meter(1, at("2026-11-05T10:05:00Z"), november(), 5 * MINUTE, "ai_runs")
            .unwrap();
        assert_eq!((closed.start, closed.value), (at("2026-11-05T10:00:00Z"), 5));
        assert_eq!(counter.open.as_ref().unwrap().value, 1);
    }

    #[test]
    fn a_clock_that_is_behind_never_reopens_a_closed_window() {
        let mut counter = Counter::default();
        counter.meter(2, at("2026-11-05T10:01:00Z"), november(), 5 * MINUTE, "ai_runs");
        counter.close_window(at("2026-11-05T10:05:00Z")).unwrap();
        counter.meter(1, at("2026-11-05T10:04:00Z"), november(), 5 * MINUTE, "ai_runs");
        assert_eq!(counter.open.as_ref().unwrap().start, at("2026-11-05T10:05:00Z"));
    }

    #[test]
    fn a_window_goes_to_the_meter_it_was_opened_for() {
        let mut counter = Counter::default();
        let now = at("2026-11-05T10:01:00Z");
        counter.meter(2, now, november(), 5 * MINUTE, "old");
        let closed = counter.meter(3, now.plus(MINUTE), november(), 5 * MINUTE, "new").unwrap();
        assert_eq!((closed.meter.as_str(), closed.value), ("old", 2));
        let open = counter.open.unwrap();
        assert_eq!((open.meter.as_str(), open.value), ("new", 3));
        assert!(open.start >= closed.end);
    }

    #[test]
    fn a_window_is_split_at_a_moment_within_it_and_keeps_every_unit() {
        let [nine, five, two] =
            ["09:00:00Z", "09:05:00Z", "09:02:00Z"].map(|time| at(&format!("2026-11-05T{time}")));
        let meter = "ai_runs".to_owned();
        let whole = OpenWindow { start: nine, end: five, value: 7, meter };
        let part = |start, end, value| Some(OpenWindow { start, end, value, ..whole.clone() });
        let split = |moment, later| whole.clone().split(moment, later);
        assert_eq!(split(two, 3), (part(nine, two, 4), part(two, five, 3)));
        assert_eq!(split(two, 0), (part(nine, two, 7), None));
        assert_eq!(split(two, 9), (None, part(two, five, 7)), "never more than there is");
        assert_eq!(split(nine, 3), (None, Some(whole.clone())));
        assert_eq!(split(five, 3), (Some(whole.clone()), None));
    }

    proptest! {
        /// Replicas whose clocks differ, clocks that go back, windows that are cut, a period whose
        /// end moves: nothing is lost, and no moment is in two windows.
        #[test]
        fn windows_never_reopen(
            steps in proptest::collection::vec((0_u64..2_600_000, -7_200_i64..7_200, 0_u8..4, 1_i64..50), 1..80),
            window_s in 1_u64..3600,
            moved_end_s in 1_000_000_u64..3_000_000,
        ) {
            let (mut counter, mut closed, mut period) = (Counter::default(), Vec::new(), november());
            let mut metered = 0;
            for (n, (second, skew_s, step, value)) in steps.iter().enumerate() {
                let now = Timestamp::from_ms(
                    period.start.plus(Duration::from_secs(*second)).ms() + skew_s * 1000,
                );
                if n == steps.len() / 2 {
                    period.end = period.start.plus(Duration::from_secs(moved_end_s));
                }
                match step {
                    0 => closed.extend(counter.close_window(now)),
                    1 => closed.extend(counter.cut_window(now)),
                    _ => {
                        metered += value;
                        let window = Duration::from_secs(window_s);
                        closed.extend(counter.meter(*value, now, period, window, "ai_runs"));
                    }
                }
            }
            closed.extend(counter.open.clone());
            prop_assert_eq!(closed.iter().map(|w| w.value).sum::<i64>(), metered);
            prop_assert!(closed.windows(2).all(|pair| pair[0].end <= pair[1].start), "{closed:?}");
            prop_assert!(closed.iter().all(|w| november().start <= w.start && w.start < w.end));
        }

        /// Whatever the order of times: nothing is lost, windows tile forwards, none straddles
        /// the period.
        #[test]
        fn windows_tile_and_keep_every_unit(
            steps in proptest::collection::vec((0_i64..2_592_000, 1_i64..50), 1..60),
            window_s in 1_u64..3600,
        ) {
            let mut counter = Counter::default();
            let mut closed = Vec::new();
            for (second, value) in &steps {
                let now = november().start.plus(Duration::from_secs(second.unsigned_abs()));
                closed.extend(counter.meter(*value, now, november(), Duration::from_secs(window_s), "ai_runs"));
            }
            closed.extend(counter.close_window(november().end));
            prop_assert_eq!(counter.open, None);
            prop_assert_eq!(closed.iter().map(|w| w.value).sum::<i64>(), steps.iter().map(|s| s.1).sum::<i64>());
            prop_assert!(closed.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(closed.iter().all(|w| w.start >= november().start && w.end <= november().end && w.start < w.end));
        }
    }
}
