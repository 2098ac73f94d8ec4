//! When billing periods end. All times here are Stripe's: whole seconds since the epoch.

use jiff::{Span, tz::TimeZone};

use crate::clock::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Day,
    Week,
    Month,
    Year,
}

/// How often a price recurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub unit: Unit,
    /// At least one.
    pub count: i64,
}

impl Interval {
    /// `unit` is one of Stripe's words; anything else counts as a month.
    pub fn new(unit: &str, count: i64) -> Self {
        let unit = match unit {
            "day" => Unit::Day,
            "week" => Unit::Week,
            "year" => Unit::Year,
            _ => Unit::Month,
        };
        Self { unit, count: count.max(1) }
    }

    /// `n` intervals after the anchor. Months are counted from the anchor itself, so a day that a
    /// short month lacks comes back in the next long one.
    fn boundary(self, anchor_s: i64, n: i64) -> i64 {
        let steps = n.saturating_mul(self.count);
        let span = match self.unit {
            Unit::Day => Span::new().try_days(steps),
            Unit::Week => Span::new().try_weeks(steps),
            Unit::Month => Span::new().try_months(steps),
            Unit::Year => Span::new().try_years(steps),
        };
        let anchor = Timestamp::from_seconds(anchor_s).to_jiff().to_zoned(TimeZone::UTC);
        match span.and_then(|span| anchor.checked_add(span)) {
            Ok(end) => end.timestamp().as_second(),
            // Beyond the year 9999 nothing is ever due.
            Err(_) => i64::MAX,
        }
    }

    /// The first boundary after `after_s`; never before the anchor.
    pub fn next_boundary(self, anchor_s: i64, after_s: i64) -> i64 {
        const DAY_S: i64 = 86_400;
        let longest_days = match self.unit {
            Unit::Day => 1,
            Unit::Week => 7,
            Unit::Month => 31,
            Unit::Year => 366,
        };
        // No interval is longer than this, so the guess is never past the answer.
        let longest_s = DAY_S.saturating_mul(longest_days).saturating_mul(self.count);
        let mut n = (after_s.saturating_sub(anchor_s) / longest_s).max(0);
        loop {
            let boundary_s = self.boundary(anchor_s, n);
            if boundary_s > after_s || boundary_s == i64::MAX {
                return boundary_s;
            }
            n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().seconds()
    }

    fn ends(interval: Interval, anchor: &str, count: usize) -> Vec<String> {
        let anchor_s = at(anchor);
        let mut end_s = anchor_s;
        let mut ends = Vec::new();
        for _ in 0..count {
            end_s = interval.next_boundary(anchor_s, end_s);
            ends.push(Timestamp::from_seconds(end_s).to_string()[..10].to_owned());
        }
        ends
    }

    #[test]
    fn a_month_end_is_clamped_and_comes_back() {
        assert_eq!(
            ends(Interval::new("month", 1), "2027-01-31T10:00:00Z", 4),
            ["2027-02-28", "2027-03-31", "2027-04-30", "2027-05-31"]
        );
        assert_eq!(
            ends(Interval::new("year", 1), "2028-02-29T00:00:00Z", 4),
            ["2029-02-28", "2030-02-28", "2031-02-28", "2032-02-29"]
        );
        assert_eq!(
            ends(Interval::new("month", 3), "2026-11-30T00:00:00Z", 2),
            ["2027-02-28", "2027-05-30"]
        );
        assert_eq!(ends(Interval::new("week", 2), "2026-12-25T00:00:00Z", 1), ["2027-01-08"]);
    }

    #[test]
    fn the_boundary_after_a_boundary_is_the_next_one() {
        let monthly = Interval::new("month", 1);
        let anchor_s = at("2026-11-01T00:00:00Z");
        let first_s = at("2026-12-01T00:00:00Z");
        assert_eq!(monthly.next_boundary(anchor_s, first_s - 1), first_s);
        assert_eq!(monthly.next_boundary(anchor_s, first_s), at("2027-01-01T00:00:00Z"));
        assert_eq!(monthly.next_boundary(anchor_s, anchor_s - 5), anchor_s);
        assert_eq!(
            monthly.next_boundary(anchor_s, at("2046-11-15T00:00:00Z")),
            at("2046-12-01T00:00:00Z")
        );
    }
}
