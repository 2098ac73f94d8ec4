//! The report's months: counted from a first day, as a customer's billing months are.

use crate::clock::Timestamp;
use crate::domain::period::{BillingPeriod, Cycle};

/// Finds a moment's month. Months that were met are remembered: calendar arithmetic per run would
/// take longer than everything else.
#[derive(Debug)]
pub(super) struct Months {
    cycle: Option<Cycle>,
    met: Vec<BillingPeriod>,
}

impl Months {
    /// Counted from `first_day`, or else from the day of the first moment asked for.
    pub fn new(first_day: Option<Timestamp>) -> Self {
        Self { cycle: first_day.map(|day| Cycle::local(0, day)), met: Vec::new() }
    }

    pub fn of(&mut self, moment: Timestamp) -> BillingPeriod {
        if let Some(month) = self.met.iter().find(|month| month.contains(moment)) {
            return *month;
        }
        let cycle = *self.cycle.get_or_insert_with(|| Cycle::local(0, moment.start_of_day()));
        let month = cycle.period_at(moment);
        self.met.push(month);
        month
    }

    /// The month of a moment that was asked for before.
    pub fn containing(&self, moment: Timestamp) -> BillingPeriod {
        let cycle = self.cycle.unwrap_or_else(|| Cycle::local(0, moment.start_of_day()));
        cycle.period_at(moment)
    }

    /// How many months begin in `[from, to)`; `from` is the start of one.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> i64 {
        let Some(cycle) = self.cycle else { return 0 };
        let mut months = 0;
        let mut start = from;
        while start < to {
            months += 1;
            let end = cycle.period_at(start).end;
            if end <= start {
                break; // the calendar's own end
            }
            start = end;
        }
        months
    }
}
