//! Forgetting usage history whose time has passed.
//!
//! An event that is known by nothing but its own id is deleted. One that is known by a key is the
//! record of what that key was answered: it stays, without what is history only, and a seventh
//! letter in its `outcome` says so.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::usage::CounterKey;
use super::{Result, Store, StoreError, Tx, assembled, customers, time};
use crate::clock::Timestamp;

/// What one call of [`Tx::prune`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Events that are gone.
    pub deleted: u64,
    /// Events that are only the record of a key any more.
    pub stripped: u64,
    /// Whether the counter has any history left.
    pub finished: bool,
}

/// Events that were deleted, and their units.
struct Gone {
    events: u64,
    units: i64,
    /// Of those, the ones that had gone to a meter; `None` if some do not say.
    metered: Option<i64>,
}

/// A counter `c` that nobody can add to and that has no usage on its way to Stripe: its period
/// ended at `$1` or before, and none of its windows is open, pending or parked.
const AT_REST: &str = "c.pruned_at_ms IS NULL AND c.period_end_ms <= $1 AND c.open_end_ms IS NULL \
    AND NOT EXISTS (SELECT 1 FROM meter_events AS m WHERE m.customer_id = c.customer_id \
    AND m.feature_id = c.feature_id AND m.series = c.series \
    AND m.period_start_ms = c.period_start_ms AND m.state IN ('pending', 'parked'))";

/// The rows of one counter among those of a customer that one call goes through.
const ROWS: &str = "customer_id = $1 AND request_key > $2 AND request_key <= $3";
const OF_COUNTER: &str =
    "feature_id = $4 AND series = $5 AND COALESCE(counted_from_ms, period_start_ms) = $6";
const IS_KEYED: &str = "substr(request_key, 1, 2) IN ('k:', 'r:')";

impl Store {
    /// Counters of periods that ended at `moment` or before and whose history is still there to be
    /// forgotten, the oldest first, at most `limit`.
    pub async fn counters_to_prune(
        &self,
        moment: Timestamp,
        limit: i64,
    ) -> Result<Vec<CounterKey>> {
        // A counter keeps the end that its period had when it was first used. Stripe may have moved
        // it since, and those are not to stand in the way of others.
        let rows = sqlx::query(assembled(format!(
            "SELECT c.* FROM usage_counters AS c WHERE c.period_start_ms < $1 AND {AT_REST} \
             AND NOT EXISTS (SELECT 1 FROM customers AS u WHERE u.customer_id = c.customer_id \
             AND u.series = c.series AND u.stripe_start_ms = c.period_start_ms \
             AND u.stripe_end_ms > $1) ORDER BY c.period_start_ms LIMIT $2"
        )))
        .bind(moment.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_key).collect()
    }
}

impl Tx {
    /// Forgets history of a counter whose period ended at `moment` or before, as far as it is among
    /// the next `rows` events of its customer; the next call goes on from there. `None` if there is
    /// nothing to forget, or usage is still on its way to Stripe.
    ///
    /// The caller holds the customer's lock and knows that the period is over.
    pub async fn prune(
        &mut self,
        key: &CounterKey,
        moment: Timestamp,
        rows: i64,
    ) -> Result<Option<Pruned>> {
        let Some(from) = self.pruned_through(key, moment).await? else { return Ok(None) };
        let next = sqlx::query(
            "SELECT COALESCE(MAX(request_key), '') AS last, COUNT(*) AS n FROM (SELECT request_key \
             FROM usage_events WHERE customer_id = $1 AND request_key > $2 \
             ORDER BY request_key LIMIT $3) AS next",
        )
        .bind(key.customer_id.as_str())
        .bind(from.as_str())
        .bind(rows)
        .fetch_one(self.connection())
        .await?;
        let to: String = next.try_get("last")?;
        let holds = self.strip_holds(key, rows).await?;
        let finished = next.try_get::<i64, _>("n")? < rows && holds < rows;
        let gone = self.delete_unkeyed(key, &from, &to).await?;
        let stripped = self.strip_keyed(key, &from, &to).await?;
        sqlx::query(
            "UPDATE usage_counters SET pruned_units = pruned_units + $5, \
             pruned_metered_units = pruned_metered_units + $8, pruned_through = $6, \
             pruned_at_ms = $7 WHERE customer_id = $1 AND feature_id = $2 AND series = $3 \
             AND period_start_ms = $4",
        )
        .bind(key.customer_id.as_str())
        .bind(key.feature_id.as_str())
        .bind(key.series)
        .bind(key.period_start.ms())
        .bind(gone.units)
        .bind((!finished).then_some(to))
        .bind(finished.then_some(self.now.ms()))
        .bind(gone.metered)
        .execute(self.connection())
        .await?;
        Ok(Some(Pruned { deleted: gone.events, stripped, finished }))
    }

    /// How far the customer's events have been gone through for a counter that is at rest.
    async fn pruned_through(
        &mut self,
        key: &CounterKey,
        moment: Timestamp,
    ) -> Result<Option<String>> {
        let row = sqlx::query(assembled(format!(
            "SELECT COALESCE(c.pruned_through, '') AS v FROM usage_counters AS c WHERE {AT_REST} \
             AND c.customer_id = $2 AND c.feature_id = $3 AND c.series = $4 \
             AND c.period_start_ms = $5"
        )))
        .bind(moment.ms())
        .bind(key.customer_id.as_str())
        .bind(key.feature_id.as_str())
        .bind(key.series)
        .bind(key.period_start.ms())
        .fetch_optional(self.connection())
        .await?;
        Ok(row.map(|row| row.try_get("v")).transpose()?)
    }

    async fn delete_unkeyed(&mut self, key: &CounterKey, from: &str, to: &str) -> Result<Gone> {
        let which = format!("{ROWS} AND {OF_COUNTER} AND NOT {IS_KEYED}");
        let sum = format!(
            "SELECT CAST(COALESCE(SUM(counted_units), 0) AS BIGINT) AS units, \
             CAST(COALESCE(SUM(CASE WHEN substr(outcome, 5, 1) = 'm' THEN counted_units ELSE 0 END), \
             0) AS BIGINT) AS metered, COALESCE(SUM(CASE WHEN substr(outcome, 5, 1) = '?' \
             AND counted_units > 0 THEN 1 ELSE 0 END), 0) AS unknown FROM usage_events WHERE {which}"
        );
        let bound = |sql: String| {
            sqlx::query(assembled(sql))
                .bind(key.customer_id.to_string())
                .bind(from.to_owned())
                .bind(to.to_owned())
                .bind(key.feature_id.to_string())
                .bind(key.series)
                .bind(key.period_start.ms())
        };
        let sums = bound(sum).fetch_one(self.connection()).await?;
        let metered = sums.try_get("metered")?;
        let delete = format!("DELETE FROM usage_events WHERE {which}");
        let deleted = bound(delete).execute(self.connection()).await?.rows_affected();
        Ok(Gone {
            events: deleted,
            units: sums.try_get("units")?,
            metered: (sums.try_get::<i64, _>("unknown")? == 0).then_some(metered),
        })
    }

    /// What counted nothing may have no counter that its time could be told by: it goes with the
    /// first counter of its own period or a later one. Periods follow one another, so that its own
    /// is over too.
    async fn strip_keyed(&mut self, key: &CounterKey, from: &str, to: &str) -> Result<u64> {
        let sql = format!(
            "UPDATE usage_events SET entity_id = NULL, model = NULL, input_tokens = NULL, \
             cached_input_tokens = NULL, output_tokens = NULL, cost_picodollars = NULL, \
             properties = NULL, outcome = outcome || 'p' \
             WHERE {ROWS} AND {IS_KEYED} AND length(outcome) = 6 AND (({OF_COUNTER}) \
             OR (counted_units = 0 AND (series < $5 OR (series = $5 AND period_start_ms <= $6))))"
        );
        let done = sqlx::query(assembled(sql))
            .bind(key.customer_id.as_str())
            .bind(from)
            .bind(to)
            .bind(key.feature_id.as_str())
            .bind(key.series)
            .bind(key.period_start.ms())
            .execute(self.connection())
            .await?;
        Ok(done.rows_affected())
    }

    /// Forgets whom the counter's reservations were for, at most `rows` of them; answers of how many.
    /// Whatever is pending is yet to be of some period.
    async fn strip_holds(&mut self, key: &CounterKey, rows: i64) -> Result<i64> {
        let done = sqlx::query(
            "UPDATE reservations SET entity_id = NULL WHERE reservation_id IN ( \
             SELECT reservation_id FROM reservations WHERE customer_id = $1 AND feature_id = $2 \
             AND series = $3 AND period_start_ms = $4 AND entity_id IS NOT NULL \
             AND state <> 'pending' LIMIT $5)",
        )
        .bind(key.customer_id.as_str())
        .bind(key.feature_id.as_str())
        .bind(key.series)
        .bind(key.period_start.ms())
        .bind(rows)
        .execute(self.connection())
        .await?;
        Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
    }
}

/// Which counter a row of any table belongs to.
pub(super) fn read_key(row: &AnyRow) -> Result<CounterKey> {
    let corrupt = StoreError::Corrupt { table: "usage_counters", column: "feature_id" };
    let feature_id: String = row.try_get("feature_id")?;
    Ok(CounterKey {
        customer_id: customers::parse_id(row.try_get("customer_id")?)?,
        feature_id: feature_id.try_into().map_err(|_| corrupt)?,
        series: row.try_get("series")?,
        period_start: time(row, "period_start_ms")?,
    })
}
