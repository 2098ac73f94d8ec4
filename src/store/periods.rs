//! Periods that end or turn out to be others: which counters that touches, and moving runs from one
//! counter to another. The rule is in `domain::period`.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::outbox::{self, MeterEvent, SAVED_UNTIL};
use super::retention::read_key;
use super::usage::CounterKey;
use super::{Result, Store, Tx, assembled, customers, time};
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::period::{ALARM_AFTER, BillingPeriod, DRAFT_FOR};

/// What moved from one counter to another, in whole units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    pub usage: i64,
    pub reserved: i64,
    pub from_grants: i64,
}

/// Usage of one counter that may miss the invoice of its period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdue {
    pub counter: CounterKey,
    pub units: i64,
    pub billable_until: Timestamp,
}

/// The rows of one counter, bound to `$1` to `$4`.
const OF_COUNTER: &str =
    "customer_id = $1 AND feature_id = $2 AND series = $3 AND period_start_ms = $4";
/// Its usage events, which name the period that they were answered in.
const EVENTS_OF_COUNTER: &str = "customer_id = $1 AND feature_id = $2 AND series = $3 \
    AND COALESCE(counted_from_ms, period_start_ms) = $4";
/// A customer `u` whose Stripe period ends in (`$1`, `$2`] and for whom usage may be sent.
const ENDING: &str = "u.stripe_end_ms > $1 AND u.stripe_end_ms <= $2 AND NOT EXISTS \
    (SELECT 1 FROM sending_freezes AS f WHERE f.customer_id = u.customer_id)";
/// What a subscription that ends has not got by then it bills never.
const URGENT_FIRST: &str = "CASE WHEN u.cancels_at_ms IS NULL THEN 1 ELSE 0 END, u.stripe_end_ms";
/// A meter event `m` that could be sent at `$3`. One that was sent and then given no time for its next
/// try waits for the schedule's tick: Stripe refuses our key.
const DUE: &str = "m.state = 'pending' AND m.next_attempt_at_ms <= $3 \
    AND (m.attempts = 0 OR m.next_attempt_at_ms > m.created_at_ms)";
/// Usage that waits for longer than it should: it is billed only until `$1`, and was not closed a
/// moment ago, which is `$2`.
const OVERDUE: &str = "state = 'pending' AND billable_until_ms <= $1 AND created_at_ms <= $2";
const A_MOMENT: Duration = Duration::from_secs(60);

impl Store {
    /// Customers whose Stripe period ends in (`after`, `until`] and who have open windows of it that
    /// began by `opened_by`, at most `limit`: those first whose subscription ends with it, then those
    /// whose period ends first.
    pub async fn customers_to_flush(
        &self,
        (after, until): (Timestamp, Timestamp),
        opened_by: Timestamp,
        limit: i64,
    ) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(assembled(format!(
            "SELECT u.customer_id FROM customers AS u WHERE {ENDING} \
             AND EXISTS (SELECT 1 FROM usage_counters AS c \
             WHERE c.customer_id = u.customer_id AND c.series = u.series \
             AND c.period_start_ms = u.stripe_start_ms AND c.open_end_ms IS NOT NULL \
             AND c.open_start_ms <= $3) ORDER BY {URGENT_FIRST}, u.customer_id LIMIT $4"
        )))
        .bind(after.ms())
        .bind(until.ms())
        .bind(opened_by.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| customers::parse_id(row.try_get("customer_id")?)).collect()
    }

    /// Meter events that could be sent now of customers whose Stripe period ends in
    /// (`after`, `until`], at most `limit`, in the order of [`Store::customers_to_flush`].
    pub async fn due_meter_events_of_ending_periods(
        &self,
        (after, until): (Timestamp, Timestamp),
        limit: i64,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(assembled(format!(
            "SELECT m.* FROM customers AS u JOIN meter_events AS m ON m.customer_id = u.customer_id \
             WHERE {ENDING} AND {DUE} \
             ORDER BY {URGENT_FIRST}, m.timestamp_ms, m.identifier LIMIT $4"
        )))
        .bind(after.ms())
        .bind(until.ms())
        .bind(self.clock.now().ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(outbox::read).collect()
    }

    /// Meter events of periods that are over and that are to be sent now, those first that Stripe
    /// bills for the shortest time still and those last that no invoice bills any more, at most
    /// `limit`.
    pub async fn due_meter_events_of_closed_periods(&self, limit: i64) -> Result<Vec<MeterEvent>> {
        let now = self.clock.now();
        let rows = sqlx::query(assembled(format!(
            "SELECT * FROM meter_events WHERE state = 'pending' AND billable_until_ms <= $2 \
             AND next_attempt_at_ms <= $1 ORDER BY {SAVED_UNTIL}, timestamp_ms, identifier LIMIT $3"
        )))
        .bind(now.ms())
        .bind(now.plus(DRAFT_FOR).ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(outbox::read).collect()
    }

    /// Units that have waited for longer than they should and may miss the invoice of their period,
    /// and of how many meter events that was not told yet.
    pub async fn overdue_units(&self) -> Result<(i64, i64)> {
        let now = self.clock.now();
        let row = sqlx::query(assembled(format!(
            "SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) AS units, \
             COUNT(*) - COUNT(alarmed_at_ms) AS untold FROM meter_events WHERE {OVERDUE}"
        )))
        .bind(overdue_before(now).ms())
        .bind(now.minus(A_MOMENT).ms())
        .fetch_one(&self.readers)
        .await?;
        Ok((row.try_get("units")?, row.try_get("untold")?))
    }
}

impl Tx {
    /// Notes of all usage that is overdue and was not told of yet that now it is; answers it by
    /// counter, what is billed for the shortest time still first.
    pub async fn tell_overdue(&mut self) -> Result<Vec<Overdue>> {
        let now = self.now;
        let rows = sqlx::query(assembled(format!(
            "UPDATE meter_events SET alarmed_at_ms = $3 WHERE {OVERDUE} AND alarmed_at_ms IS NULL \
             RETURNING customer_id, feature_id, series, period_start_ms, units, billable_until_ms"
        )))
        .bind(overdue_before(now).ms())
        .bind(now.minus(A_MOMENT).ms())
        .bind(now.ms())
        .fetch_all(self.connection())
        .await?;
        let mut by_counter: HashMap<CounterKey, Overdue> = HashMap::new();
        for row in &rows {
            let found = read_overdue(row)?;
            by_counter
                .entry(found.counter.clone())
                .and_modify(|known| {
                    known.units += found.units;
                    known.billable_until = known.billable_until.min(found.billable_until);
                })
                .or_insert(found);
        }
        let mut overdue: Vec<_> = by_counter.into_values().collect();
        overdue.sort_by_key(|found| (found.billable_until, found.counter.customer_id.to_string()));
        Ok(overdue)
    }

    /// Says when a customer's period ends that is known by its start. With another end it is another
    /// sum that Stripe has to prove.
    pub async fn set_period_end(
        &mut self,
        customer_id: &CustomerId,
        series: i64,
        period: BillingPeriod,
    ) -> Result<()> {
        for (sql, end) in [
            (
                "UPDATE usage_counters SET period_end_ms = $4, proven_at_ms = NULL, \
                 compared_at_ms = NULL WHERE customer_id = $1 AND series = $2 \
                 AND period_start_ms = $3 AND period_end_ms <> $4",
                period.end,
            ),
            (
                "UPDATE meter_events SET billable_until_ms = $4 WHERE customer_id = $1 \
                 AND series = $2 AND period_start_ms = $3 AND billable_until_ms <> $4 \
                 AND state <> 'delivered'",
                period.billable_until(),
            ),
        ] {
            sqlx::query(sql)
                .bind(customer_id.as_str())
                .bind(series)
                .bind(period.start.ms())
                .bind(end.ms())
                .execute(self.connection())
                .await?;
        }
        Ok(())
    }

    /// The series is over: its periods ended at this transaction's time if they were to go on, and
    /// no invoice bills what is not at Stripe yet and is of a period that went on after `at`.
    pub async fn end_series(
        &mut self,
        customer_id: &CustomerId,
        series: i64,
        at: Timestamp,
    ) -> Result<()> {
        let now = self.now.ms();
        sqlx::query(
            "UPDATE meter_events SET billable_until_ms = $3 WHERE customer_id = $1 AND series = $2 \
             AND state <> 'delivered' AND billable_until_ms >= $4",
        )
        .bind(customer_id.as_str())
        .bind(series)
        .bind(at.ms())
        .bind(at.plus(DRAFT_FOR).ms())
        .execute(self.connection())
        .await?;
        sqlx::query(
            "UPDATE usage_counters SET period_end_ms = $3 WHERE customer_id = $1 AND series = $2 \
             AND period_end_ms > $3",
        )
        .bind(customer_id.as_str())
        .bind(series)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Counters of a series that began at another moment than `start` and go on after it.
    pub async fn counters_across(
        &mut self,
        customer_id: &CustomerId,
        series: i64,
        start: Timestamp,
    ) -> Result<Vec<CounterKey>> {
        let rows = sqlx::query(
            "SELECT * FROM usage_counters WHERE customer_id = $1 AND series = $2 \
             AND period_start_ms <> $3 AND period_end_ms > $3 ORDER BY feature_id, period_start_ms",
        )
        .bind(customer_id.as_str())
        .bind(series)
        .bind(start.ms())
        .fetch_all(self.connection())
        .await?;
        rows.iter().map(read_key).collect()
    }

    /// Units that a counter's runs since `moment` sent to a meter.
    pub async fn units_metered_since(
        &mut self,
        key: &CounterKey,
        moment: Timestamp,
    ) -> Result<i64> {
        let sql = format!(
            "SELECT CAST(COALESCE(SUM(counted_units), 0) AS BIGINT) AS v FROM usage_events \
             WHERE {EVENTS_OF_COUNTER} AND recorded_at_ms >= $5 AND substr(outcome, 5, 1) = 'm'"
        );
        self.number_of(key, sql, moment).await
    }

    /// The end of a counter's last frozen window that began before `moment`, if it ended after it.
    pub async fn frozen_across(
        &mut self,
        key: &CounterKey,
        moment: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let sql = format!(
            "SELECT CAST(COALESCE(MAX(window_end_ms), 0) AS BIGINT) AS v FROM meter_events \
             WHERE {OF_COUNTER} AND timestamp_ms < $5 AND window_end_ms > $5"
        );
        let end_ms = self.number_of(key, sql, moment).await?;
        Ok((end_ms > 0).then(|| Timestamp::from_ms(end_ms)))
    }

    /// Makes a counter's rows since `since` those of the counter of `period`: runs, with what grants
    /// paid of them, and meter events; and all pending holds, whose runs can be reported only there.
    /// Answers what that is for the two counters, which the caller writes. What stays behind is
    /// billed until `period` begins.
    pub async fn move_rows(
        &mut self,
        key: &CounterKey,
        since: Timestamp,
        period: BillingPeriod,
    ) -> Result<Moved> {
        let runs = format!("{EVENTS_OF_COUNTER} AND recorded_at_ms >= $5");
        let keys = format!("SELECT request_key FROM usage_events WHERE {runs}");
        let draws = format!("{OF_COUNTER} AND request_key IN ({keys})");
        let sum = |column: &str, table: &str, rows: &str| {
            format!(
                "SELECT CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS v FROM {table} WHERE {rows}"
            )
        };
        let moved = Moved {
            usage: self.number_of(key, sum("counted_units", "usage_events", &runs), since).await?,
            from_grants: self.number_of(key, sum("units", "grant_draws", &draws), since).await?,
            reserved: self.move_holds(key, period).await?,
        };
        let stay = format!(
            "{OF_COUNTER} AND timestamp_ms < $5 AND state <> 'delivered' AND billable_until_ms > $6"
        );
        for sql in [
            format!("UPDATE grant_draws SET period_start_ms = $6 WHERE {draws}"),
            format!("UPDATE usage_events SET counted_from_ms = $6 WHERE {runs}"),
            format!("UPDATE meter_events SET billable_until_ms = $6 WHERE {stay}"),
        ] {
            let query = of(key, sql).bind(since.ms()).bind(period.start.ms());
            query.execute(self.connection()).await?;
        }
        self.free_window_ends(key, since, period).await?;
        let sql = format!(
            "UPDATE meter_events SET period_start_ms = $6, billable_until_ms = $7 \
             WHERE {OF_COUNTER} AND timestamp_ms >= $5"
        );
        of(key, sql)
            .bind(since.ms())
            .bind(period.start.ms())
            .bind(period.billable_until().ms())
            .execute(self.connection())
            .await?;
        self.unprove(key, period.start).await?;
        Ok(moved)
    }

    /// What was proven of a counter and of the one of the period that began at `other` was proven of
    /// what they held before; and what is being compared just now is: a time below zero is as good as
    /// none, and another one than was read.
    async fn unprove(&mut self, key: &CounterKey, other: Timestamp) -> Result<()> {
        let now = self.now.ms();
        let sql = "UPDATE usage_counters SET proven_at_ms = NULL, compared_at_ms = $6 \
            WHERE customer_id = $1 AND feature_id = $2 AND series = $3 \
            AND period_start_ms IN ($4, $5)";
        let query = of(key, sql.to_owned()).bind(other.ms()).bind(-now);
        query.execute(self.connection()).await?;
        Ok(())
    }

    /// Lets those of a counter's meter events since `since` whose window ends when one of the counter
    /// of `period` does end a moment before: it is the window's end that tells them apart.
    async fn free_window_ends(
        &mut self,
        key: &CounterKey,
        since: Timestamp,
        period: BillingPeriod,
    ) -> Result<()> {
        let of_either = "w.customer_id = $1 AND w.feature_id = $2 AND w.series = $3 \
            AND w.period_start_ms IN ($4, $6) AND w.window_end_ms";
        let taken = format!(
            "SELECT identifier FROM meter_events AS m WHERE {OF_COUNTER} AND timestamp_ms >= $5 \
             AND EXISTS (SELECT 1 FROM meter_events AS w WHERE {of_either} = m.window_end_ms \
             AND w.period_start_ms = $6)"
        );
        let query = of(key, taken).bind(since.ms()).bind(period.start.ms());
        for row in query.fetch_all(self.connection()).await? {
            let identifier: String = row.try_get("identifier")?;
            // One less than an end that is taken, and the greatest of these that is free.
            let sql = format!(
                "UPDATE meter_events SET window_end_ms = (SELECT MAX(e.window_end_ms) - 1 \
                 FROM meter_events AS e WHERE e.customer_id = $1 AND e.feature_id = $2 \
                 AND e.series = $3 AND e.period_start_ms IN ($4, $6) \
                 AND e.window_end_ms <= meter_events.window_end_ms \
                 AND NOT EXISTS (SELECT 1 FROM meter_events AS w \
                 WHERE {of_either} = e.window_end_ms - 1)) WHERE identifier = $5"
            );
            let query = of(key, sql).bind(identifier).bind(period.start.ms());
            query.execute(self.connection()).await?;
        }
        Ok(())
    }

    /// Answers the units they hold.
    async fn move_holds(&mut self, key: &CounterKey, period: BillingPeriod) -> Result<i64> {
        let pending = format!("{OF_COUNTER} AND state = 'pending'");
        let sql = format!(
            "SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) AS v FROM reservations WHERE {pending}"
        );
        let units = of(key, sql).fetch_one(self.connection()).await?.try_get("v")?;
        let sql = format!(
            "UPDATE reservations SET period_start_ms = $5, period_end_ms = $6 WHERE {pending}"
        );
        of(key, sql)
            .bind(period.start.ms())
            .bind(period.end.ms())
            .execute(self.connection())
            .await?;
        Ok(units)
    }

    async fn number_of(&mut self, key: &CounterKey, sql: String, moment: Timestamp) -> Result<i64> {
        let row = of(key, sql).bind(moment.ms()).fetch_one(self.connection()).await?;
        Ok(row.try_get("v")?)
    }
}

/// A statement about one counter, named by `$1` to `$4`.
fn of(key: &CounterKey, sql: String) -> Query<'static, Any, AnyArguments> {
    sqlx::query(assembled(sql))
        .bind(key.customer_id.to_string())
        .bind(key.feature_id.to_string())
        .bind(key.series)
        .bind(key.period_start.ms())
}

/// What can be billed only until then has waited too long at `now`.
fn overdue_before(now: Timestamp) -> Timestamp {
    now.plus(DRAFT_FOR.saturating_sub(ALARM_AFTER))
}

fn read_overdue(row: &AnyRow) -> Result<Overdue> {
    Ok(Overdue {
        counter: read_key(row)?,
        units: row.try_get("units")?,
        billable_until: time(row, "billable_until_ms")?,
    })
}
