//! What Stripe has to have of a customer's usage, whose sums are still to be compared with it, and
//! for whom sending is frozen.

use std::ops::Range;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Result, Store, StoreError, Tx, customers, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::period::BillingPeriod;
use crate::domain::proof::{Metered, Place, Reported};

/// A customer's period, whose counters are proven together: they may share a meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeriodKey {
    pub customer_id: CustomerId,
    pub series: i64,
    pub period_start: Timestamp,
}

/// A period to be compared, and what its counters were when that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparable {
    pub key: PeriodKey,
    pub counters: Vec<Found>,
}

/// What a comparison of a counter is decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub period_end: Timestamp,
    pub compared_at: Option<Timestamp>,
}

/// Which periods are to be compared with Stripe.
#[derive(Debug, Clone, Copy)]
pub struct Unproven {
    /// Those that ended in this time,
    pub ended_after: Timestamp,
    pub ended_by: Timestamp,
    /// began at this moment or later,
    pub began_after: Timestamp,
    /// and were not compared since.
    pub compared_by: Timestamp,
}

/// Meter events of one place, in whole units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Others {
    pub delivered: i64,
    /// Of those, delivered after the moment asked about.
    pub fresh: i64,
    /// Sent without an answer for good: Stripe may have counted them.
    pub unanswered: i64,
}

/// One statement, so that all of it is of one moment while others write. Its first part is what
/// counters and usage events say, its second what is in meter events. A period ends where its counter
/// says: its usage events keep the end that it had when they were answered.
const PARTS: &str = "SELECT feature_id, series, period_start_ms, '' AS stripe_customer_id, \
    '' AS event_name, CAST(COALESCE(MAX(end_ms), MAX(told_ms)) AS BIGINT) AS end_ms, \
    CAST(SUM(metered) AS BIGINT) AS units, \
    CAST(SUM(unknown) AS BIGINT) AS unknown, CAST(SUM(open) AS BIGINT) AS open, \
    MAX(open_meter) AS open_meter, 0 AS fresh, 0 AS waiting, 0 AS parked, NULL AS because, \
    0 AS unsent, 0 AS first_ms, 0 AS last_ms FROM (\
    SELECT feature_id, series, period_start_ms, period_end_ms AS end_ms, 0 AS told_ms, \
    COALESCE(pruned_metered_units, 0) AS metered, \
    CASE WHEN pruned_metered_units IS NULL THEN 1 ELSE 0 END AS unknown, \
    COALESCE(open_units, 0) AS open, open_meter FROM usage_counters WHERE customer_id = $1 \
    UNION ALL SELECT feature_id, series, COALESCE(counted_from_ms, period_start_ms), \
    NULL, CASE WHEN counted_from_ms IS NULL THEN period_end_ms ELSE 0 END, \
    CASE WHEN substr(outcome, 5, 1) = 'm' THEN counted_units ELSE 0 END, \
    CASE WHEN substr(outcome, 5, 1) = '?' THEN 1 ELSE 0 END, 0, NULL FROM usage_events \
    WHERE customer_id = $1 AND counted_units > 0) AS counted \
    GROUP BY feature_id, series, period_start_ms \
    UNION ALL SELECT feature_id, series, period_start_ms, stripe_customer_id, event_name, 0, \
    CAST(SUM(units) AS BIGINT), 0, 0, NULL, \
    CAST(SUM(CASE WHEN state = 'delivered' AND settled_at_ms > $2 THEN units ELSE 0 END) AS BIGINT), \
    CAST(SUM(CASE WHEN state = 'pending' THEN units ELSE 0 END) AS BIGINT), \
    CAST(SUM(CASE WHEN state = 'parked' THEN units ELSE 0 END) AS BIGINT), \
    MAX(CASE WHEN state = 'parked' THEN detail END), \
    CAST(SUM(CASE WHEN state IN ('pending', 'parked') AND (first_sent_at_ms IS NULL \
    OR rejected_code IS NOT NULL) THEN units ELSE 0 END) AS BIGINT), \
    CAST(MIN(timestamp_ms) AS BIGINT), CAST(MAX(timestamp_ms) AS BIGINT) FROM meter_events \
    WHERE customer_id = $1 AND state <> 'replaced' \
    GROUP BY feature_id, series, period_start_ms, stripe_customer_id, event_name";

impl Store {
    /// What a customer's counters and usage events say has to be at Stripe, and what is in its
    /// meter events; of those delivered after `fresh_after`, Stripe's sums may know nothing yet.
    pub async fn metered_of(
        &self,
        customer_id: &CustomerId,
        fresh_after: Timestamp,
    ) -> Result<(Vec<Metered>, Vec<Reported>)> {
        let rows = sqlx::query(PARTS)
            .bind(customer_id.as_str())
            .bind(fresh_after.ms())
            .fetch_all(&self.readers)
            .await?;
        let (mut metered, mut reported) = (Vec::new(), Vec::new());
        for row in &rows {
            if row.try_get::<&str, _>("event_name")?.is_empty() {
                metered.push(read_metered(row)?);
            } else {
                reported.push(read_reported(row)?);
            }
        }
        Ok((metered, reported))
    }

    /// What other periods and customers have sent to a place in a span of time.
    pub async fn sent_by_others(
        &self,
        place: &Place,
        span: &Range<Timestamp>,
        fresh_after: Timestamp,
        period: &PeriodKey,
    ) -> Result<Others> {
        let sum = |what: &str| {
            format!("CAST(COALESCE(SUM(CASE WHEN {what} THEN units ELSE 0 END), 0) AS BIGINT)")
        };
        let sql = format!(
            "SELECT {} AS delivered, {} AS fresh, {} AS unanswered FROM meter_events \
             WHERE stripe_customer_id = $1 AND event_name = $2 AND timestamp_ms >= $3 \
             AND timestamp_ms < $4 \
             AND NOT (customer_id = $6 AND series = $7 AND period_start_ms = $8)",
            sum("state = 'delivered'"),
            sum("state = 'delivered' AND settled_at_ms > $5"),
            sum("state IN ('pending', 'parked') AND first_sent_at_ms IS NOT NULL \
                 AND rejected_code IS NULL"),
        );
        let row = sqlx::query(super::assembled(sql))
            .bind(&place.stripe_customer_id)
            .bind(&place.meter)
            .bind(span.start.ms())
            .bind(span.end.ms())
            .bind(fresh_after.ms())
            .bind(period.customer_id.as_str())
            .bind(period.series)
            .bind(period.period_start.ms())
            .fetch_one(&self.readers)
            .await?;
        Ok(Others {
            delivered: row.try_get("delivered")?,
            fresh: row.try_get("fresh")?,
            unanswered: row.try_get("unanswered")?,
        })
    }

    /// Customers with usage of any kind, in order of id, after `after`, at most `limit`.
    pub async fn customers_with_usage(&self, after: &str, limit: i64) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT DISTINCT customer_id FROM (SELECT customer_id FROM usage_counters \
             WHERE customer_id > $1 UNION SELECT customer_id FROM meter_events \
             WHERE customer_id > $1) AS used ORDER BY customer_id LIMIT $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| customers::parse_id(row.try_get("customer_id")?)).collect()
    }

    /// Periods that nobody has found to be at Stripe yet, the oldest first, at most `limit`. Those
    /// with usage on its way there are not ripe.
    pub async fn unproven_periods(&self, which: Unproven, limit: i64) -> Result<Vec<Comparable>> {
        let rows = sqlx::query(
            "SELECT DISTINCT c.customer_id, c.series, c.period_start_ms, c.period_end_ms, \
             c.compared_at_ms FROM usage_counters AS c \
             WHERE c.proven_at_ms IS NULL AND c.period_start_ms >= $3 AND c.period_start_ms < $2 \
             AND c.period_end_ms > $1 AND c.period_end_ms <= $2 AND c.open_end_ms IS NULL \
             AND COALESCE(c.compared_at_ms, 0) <= $4 \
             AND NOT EXISTS (SELECT 1 FROM meter_events AS m WHERE m.customer_id = c.customer_id \
             AND m.feature_id = c.feature_id AND m.series = c.series \
             AND m.period_start_ms = c.period_start_ms AND m.state = 'pending') \
             ORDER BY c.period_start_ms, c.customer_id, c.series LIMIT $5",
        )
        .bind(which.ended_after.ms())
        .bind(which.ended_by.ms())
        .bind(which.began_after.ms())
        .bind(which.compared_by.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let mut periods: Vec<Comparable> = Vec::new();
        for row in &rows {
            let key = PeriodKey {
                customer_id: customers::parse_id(row.try_get("customer_id")?)?,
                series: row.try_get("series")?,
                period_start: time(row, "period_start_ms")?,
            };
            let found = Found {
                period_end: time(row, "period_end_ms")?,
                compared_at: time_or_none(row, "compared_at_ms")?,
            };
            match periods.last_mut().filter(|last| last.key == key) {
                Some(last) => last.counters.push(found),
                None => periods.push(Comparable { key, counters: vec![found] }),
            }
        }
        Ok(periods)
    }

    /// Why nothing is sent for a customer; `None` if it is.
    pub async fn frozen_because(&self, customer_id: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT reason FROM sending_freezes WHERE customer_id = $1")
            .bind(customer_id)
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(row.try_get("reason")?)).transpose()
    }
}

impl Tx {
    /// Notes that a period's counters were compared with Stripe now, and whether every sum was
    /// what they say. Counters that are not any more what that was decided on are left alone: they
    /// have moved, or another comparison was faster.
    pub async fn note_compared(&mut self, period: &Comparable, proven: bool) -> Result<()> {
        let now = self.now.ms();
        for found in &period.counters {
            sqlx::query(
                "UPDATE usage_counters SET compared_at_ms = $4, proven_at_ms = $5 \
                 WHERE customer_id = $1 AND series = $2 AND period_start_ms = $3 \
                 AND period_end_ms = $6 AND COALESCE(compared_at_ms, 0) = $7",
            )
            .bind(period.key.customer_id.as_str())
            .bind(period.key.series)
            .bind(period.key.period_start.ms())
            .bind(now)
            .bind(proven.then_some(now))
            .bind(found.period_end.ms())
            .bind(found.compared_at.map_or(0, Timestamp::ms))
            .execute(self.connection())
            .await?;
        }
        Ok(())
    }

    /// Freezes the sending of a customer's usage; answers whether it was not frozen before.
    pub async fn freeze_sending(&mut self, customer_id: &CustomerId, reason: &str) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "INSERT INTO sending_freezes (customer_id, reason, frozen_at_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (customer_id) DO NOTHING",
        )
        .bind(customer_id.as_str())
        .bind(reason)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Lets a customer's usage be sent again; answers whether it was frozen.
    pub async fn thaw_sending(&mut self, customer_id: &CustomerId) -> Result<bool> {
        let done = sqlx::query("DELETE FROM sending_freezes WHERE customer_id = $1")
            .bind(customer_id.as_str())
            .execute(self.connection())
            .await?;
        Ok(done.rows_affected() == 1)
    }
}

fn feature_id(row: &AnyRow) -> Result<FeatureId> {
    let corrupt = StoreError::Corrupt { table: "usage_counters", column: "feature_id" };
    row.try_get::<String, _>("feature_id")?.try_into().map_err(|_| corrupt)
}

fn read_metered(row: &AnyRow) -> Result<Metered> {
    let known = row.try_get::<i64, _>("unknown")? == 0;
    let units = row.try_get("units")?;
    Ok(Metered {
        feature_id: feature_id(row)?,
        series: row.try_get("series")?,
        period: BillingPeriod { start: time(row, "period_start_ms")?, end: time(row, "end_ms")? },
        units: known.then_some(units),
        open: row.try_get("open")?,
        open_meter: row.try_get("open_meter")?,
    })
}

fn read_reported(row: &AnyRow) -> Result<Reported> {
    Ok(Reported {
        feature_id: feature_id(row)?,
        series: row.try_get("series")?,
        period_start: time(row, "period_start_ms")?,
        place: Place {
            stripe_customer_id: row.try_get("stripe_customer_id")?,
            meter: row.try_get("event_name")?,
        },
        units: row.try_get("units")?,
        fresh: row.try_get("fresh")?,
        waiting: row.try_get("waiting")?,
        parked: row.try_get("parked")?,
        parked_because: row.try_get("because")?,
        unsent: row.try_get("unsent")?,
        first_at: time(row, "first_ms")?,
        last_at: time(row, "last_ms")?,
    })
}
