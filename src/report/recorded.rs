//! The report from the daemon's own database.

use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::clock::Timestamp;
use crate::domain::cost::Tokens;
use crate::domain::margin::{Ledger, Run, Span};
use crate::store::{Store, StoreError};

/// Midnight (00:00 UTC) of a day such as `2026-10-01`.
pub fn midnight(text: &str) -> Option<Timestamp> {
    let day: Date = text.parse().ok()?;
    Some(Timestamp::from_jiff(day.to_zoned(TimeZone::UTC).ok()?.timestamp()))
}

/// The month that ends with the day of `now`: what is reported on unless a period is asked for.
pub fn month_until(now: Timestamp) -> Span {
    let today = now.to_jiff().to_zoned(TimeZone::UTC).date();
    let end = today.saturating_add(1.day());
    let mut start = end.saturating_sub(1.month());
    if start.day() < end.day() {
        // The month before is too short to have this day; from its last day on it would be two.
        start = start.saturating_add(1.day());
    }
    let moment = |day: Date| {
        let midnight = day.to_zoned(TimeZone::UTC).ok()?;
        Some(Timestamp::from_jiff(midnight.timestamp()))
    };
    Span { from: moment(start), to: moment(end) }
}

/// Books every recorded run of the span, and makes every customer known.
///
/// A run is held against the caps of the plan it was recorded on; in the report its customer stands
/// with the plan it is on now.
///
/// # Errors
/// What the database could not do.
pub async fn read_recorded(
    store: &Store,
    feature: &crate::domain::ids::FeatureId,
    span: Span,
    ledger: &mut Ledger,
) -> Result<(), StoreError> {
    let from = span.from.unwrap_or(Timestamp::from_ms(0));
    let to = span.to.unwrap_or(Timestamp::from_ms(i64::MAX));
    store
        .each_recorded_run(feature, from, to, |run| {
            let plan = run.plan_id.as_deref().and_then(|plan| ledger.tariff().find(plan));
            ledger.record(&Run {
                customer_id: &run.customer_id,
                plan,
                at: run.at,
                units: run.units,
                model: run.model.as_deref().unwrap_or_default(),
                tokens: Tokens {
                    input: run.input_tokens,
                    cached_input: run.cached_input_tokens,
                    output: run.output_tokens,
                },
                cost: run.cost_picodollars,
            });
        })
        .await?;
    store
        .each_customer_and_plan(to, |customer, plan| {
            let default = ledger.tariff().default;
            let plan = plan.map_or(Some(default), |plan| ledger.tariff().find(plan));
            ledger.customer(customer, plan);
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_month_ends_today_and_is_never_longer_than_one() {
        for (now, from, to) in [
            ("2026-11-18T09:30:00Z", "2026-10-19", "2026-11-19"),
            ("2026-10-31T23:59:59Z", "2026-10-01", "2026-11-01"),
            ("2027-03-30T12:00:00Z", "2027-03-01", "2027-03-31"),
            ("2027-03-28T12:00:00Z", "2027-03-01", "2027-03-29"),
            ("2028-03-28T12:00:00Z", "2028-02-29", "2028-03-29"),
        ] {
            let span = month_until(now.parse().unwrap());
            assert_eq!((span.from, span.to), (midnight(from), midnight(to)), "{now}");
        }
    }
}
