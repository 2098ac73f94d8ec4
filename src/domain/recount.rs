//! Counters rebuilt from what they are made of, and held against what is stored.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::period::BillingPeriod;
use crate::domain::usage::Counter;

/// What a counter's row says, in whole units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    pub usage: i64,
    pub reserved: i64,
    pub from_grants: i64,
    pub pruned: i64,
    /// Units of the open metering window.
    pub open: i64,
}

/// What the rows that a counter is made of add up to, in whole units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Of the usage events that are there.
    pub counted: i64,
    /// Of those among them that went to a meter.
    pub metered: i64,
    /// Whether some are older than the note of whether they went to a meter.
    pub metering_unknown: bool,
    /// Of pending reservations.
    pub held: i64,
    /// Of draws on grants.
    pub drawn: i64,
    /// Of metering windows frozen into meter events.
    pub frozen: i64,
}

/// A number that is kept beside the rows it follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    Usage,
    Reserved,
    FromGrants,
    Open,
    /// How much of a grant is used.
    GrantUsed,
}

/// A number that is not what its rows add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    pub number: Number,
    /// `None`: there is no such counter or grant.
    pub stored: Option<i64>,
    pub rebuilt: i64,
}

/// Why a number cannot be put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    #[error("more went to Stripe than was counted")]
    MoreFrozenThanCounted,
    #[error("the feature has no meter, or the customer no Stripe customer, for them to go to")]
    NoMeter,
    #[error("nothing says when the period ends")]
    NoPeriod,
    #[error("there is no such grant")]
    NoGrant,
    #[error("more was drawn than the grant has")]
    Overdrawn,
}

/// Where units go for which a metering window has to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Metering<'a> {
    pub meter: &'a str,
    pub window: Duration,
    pub now: Timestamp,
}

impl Number {
    /// As its column is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage_units",
            Self::Reserved => "reserved_units",
            Self::FromGrants => "from_grants_units",
            Self::Open => "open_units",
            Self::GrantUsed => "used_units",
        }
    }
}

impl Parts {
    fn usage(&self, pruned: i64) -> i64 {
        pruned.saturating_add(self.counted)
    }

    /// `None` where it cannot be told: of pruned events nobody knows whether they went to a meter.
    /// A counter has none before its last window has reached Stripe.
    fn open(&self, pruned: i64) -> Option<i64> {
        let told = !self.metering_unknown && pruned == 0;
        told.then(|| self.metered.saturating_sub(self.frozen))
    }
}

/// What differs between a counter and its parts.
pub fn differences(stored: Option<Stored>, parts: &Parts) -> Vec<Difference> {
    let row = stored.unwrap_or_default();
    let numbers = [
        (Number::Usage, row.usage, Some(parts.usage(row.pruned))),
        (Number::Reserved, row.reserved, Some(parts.held)),
        (Number::FromGrants, row.from_grants, Some(parts.drawn)),
        (Number::Open, row.open, parts.open(row.pruned)),
    ];
    numbers
        .into_iter()
        .filter_map(|(number, kept, rebuilt)| difference(number, stored.map(|_| kept), rebuilt?))
        .collect()
}

/// The difference, if there is one; what is not there counts as zero.
pub fn difference(number: Number, stored: Option<i64>, rebuilt: i64) -> Option<Difference> {
    let differs = stored.unwrap_or_default() != rebuilt;
    differs.then_some(Difference { number, stored, rebuilt })
}

/// Gives a counter the numbers that its parts add up to.
///
/// # Errors
/// Why its open metering window stays as it is; everything else is put right all the same.
pub fn repair(
    counter: &mut Counter,
    parts: &Parts,
    period: BillingPeriod,
    metering: Option<Metering<'_>>,
) -> Result<(), Stuck> {
    counter.usage = parts.usage(counter.pruned);
    counter.reserved = parts.held;
    counter.from_grants = parts.drawn;
    match (parts.open(counter.pruned), &mut counter.open) {
        (None, _) => {}
        (Some(..0), _) => return Err(Stuck::MoreFrozenThanCounted),
        (Some(0), open) => *open = None,
        (Some(units), Some(open)) => open.value = units,
        (Some(units), None) => {
            let Metering { meter, window, now } = metering.ok_or(Stuck::NoMeter)?;
            counter.meter(units, now, period, window, meter);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::usage::OpenWindow;

    const PARTS: Parts =
        Parts { counted: 7, metered: 5, metering_unknown: false, held: 2, drawn: 3, frozen: 4 };
    const STORED: Stored = Stored { usage: 7, reserved: 2, from_grants: 3, pruned: 0, open: 1 };

    fn november() -> BillingPeriod {
        BillingPeriod {
            start: "2026-11-01T00:00:00Z".parse().unwrap(),
            end: "2026-12-01T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn a_counter_that_is_the_sum_of_its_parts_differs_in_nothing() {
        assert_eq!(differences(Some(STORED), &PARTS), []);
        assert_eq!(differences(None, &Parts::default()), []);
        // Seven more units, of events that are gone, whether they were metered or not.
        let pruned = Stored { usage: 14, pruned: 7, open: 0, ..STORED };
        assert_eq!(differences(Some(pruned), &PARTS), []);
    }

    #[test]
    fn each_number_that_differs_is_named() {
        let wrong = Stored { usage: 8, reserved: 0, from_grants: 4, pruned: 0, open: 0 };
        let found = differences(Some(wrong), &PARTS);
        let named: Vec<_> = found.iter().map(|d| (d.number, d.stored, d.rebuilt)).collect();
        assert_eq!(
            named,
            [
                (Number::Usage, Some(8), 7),
                (Number::Reserved, Some(0), 2),
                (Number::FromGrants, Some(4), 3),
                (Number::Open, Some(0), 1),
            ]
        );
        assert!(differences(None, &PARTS).iter().all(|difference| difference.stored.is_none()));
    }

    #[test]
    fn what_was_metered_is_not_guessed() {
        let unknown = Parts { metering_unknown: true, ..PARTS };
        assert_eq!(differences(Some(Stored { open: 9, ..STORED }), &unknown), []);
    }

    #[test]
    fn a_repaired_counter_differs_in_nothing_and_has_a_window_for_what_is_open() {
        let now = "2026-11-05T10:01:00Z".parse().unwrap();
        let metering = Metering { meter: "ai_runs", window: Duration::from_secs(300), now };
        let mut counter = Counter::default();
        assert_eq!(repair(&mut counter, &PARTS, november(), None), Err(Stuck::NoMeter));
        assert_eq!((counter.usage, counter.reserved, counter.from_grants), (7, 2, 3));
        assert_eq!(repair(&mut counter, &PARTS, november(), Some(metering)), Ok(()));
        let open = OpenWindow {
            start: "2026-11-05T10:00:00Z".parse().unwrap(),
            end: "2026-11-05T10:05:00Z".parse().unwrap(),
            value: 1,
            meter: "ai_runs".to_owned(),
        };
        assert_eq!(counter.open, Some(open));
        let more = Parts { metered: 6, ..PARTS };
        assert_eq!(repair(&mut counter, &more, november(), None), Ok(()));
        assert_eq!(counter.open.as_ref().map(|open| open.value), Some(2));
        let none = Parts { metered: 4, ..PARTS };
        assert_eq!(repair(&mut counter, &none, november(), None), Ok(()));
        assert_eq!(counter.open, None);
        let less = Parts { metered: 3, ..PARTS };
        assert_eq!(
            repair(&mut counter, &less, november(), None),
            Err(Stuck::MoreFrozenThanCounted)
        );
    }
}
