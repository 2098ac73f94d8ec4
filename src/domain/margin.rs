//! The pricing report's arithmetic: what each tier costs, earns and should cap.
//!
//! A [`Ledger`] takes runs one by one and keeps a few numbers per customer, never the runs. Its
//! [`Report`] holds figures over the whole period: over three months a price, an overhead and a cap
//! count three times. Caps close month by month, as the gate's do.
//!
//! Everything is integers: units, tokens, and picodollars in 128 bits. A quotient is rounded once,
//! where it is stated, halves away from zero.

mod advice;
mod ledger;
mod months;
mod replay;
mod report;
mod spread;
mod tariff;
#[cfg(test)]
mod tests;

pub use advice::{Advice, Subject};
pub use ledger::{Ledger, Run, Span};
pub use replay::{DayCount, Gated, Outcome, Scenario};
pub use report::{
    Distribution, Empty, Group, MarginAt, PlanReport, Report, Totals, UnpricedModel, UnpricedRuns,
    Wishes,
};
pub use spread::{CountSpread, MoneySpread};
pub use tariff::{Tariff, Tier, Unfit};

use crate::domain::cost::Picodollars;

/// The gross margin in hundredths of a percent, halves away from zero; `None` without revenue.
pub fn margin_basis_points(revenue: Picodollars, cost: Picodollars) -> Option<i64> {
    if revenue.0 <= 0 {
        return None;
    }
    i64::try_from(rounded_quotient((revenue.0 - cost.0) * 10_000, revenue.0)).ok()
}

/// `numerator / denominator`, halves away from zero; the denominator is positive.
fn rounded_quotient(numerator: i128, denominator: i128) -> i128 {
    let half = if numerator < 0 { -(denominator / 2) } else { denominator / 2 };
    (numerator + half) / denominator
}

/// `numerator / denominator`, rounded up; both are positive, or the numerator is zero.
fn quotient_rounded_up(numerator: i128, denominator: i128) -> i128 {
    (numerator + denominator - 1) / denominator
}
