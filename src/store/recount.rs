//! What counters and grants say, beside what the rows they are made of add up to.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::retention::read_key;
use super::usage::CounterKey;
use super::{Result, Store, Tx, assembled, customers, time};
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::recount::{Parts, Stored};

/// A counter and its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecountedCounter {
    pub key: CounterKey,
    /// `None` if neither a counter nor an event says it.
    pub period_end: Option<Timestamp>,
    /// `None` if there are only parts.
    pub stored: Option<Stored>,
    pub parts: Parts,
}

/// A grant and its draws, in whole units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecountedGrant {
    pub customer_id: CustomerId,
    pub feature_id: String,
    pub grant_id: String,
    pub units: i64,
    /// `None` if there are only draws.
    pub used: Option<i64>,
    pub drawn: i64,
}

/// What is stored of some customers, in order of id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recounted {
    pub counters: Vec<RecountedCounter>,
    pub grants: Vec<RecountedGrant>,
}

/// One statement, so that all of it is of one moment while others write.
const COUNTERS: &str = "SELECT customer_id, feature_id, series, period_start_ms, \
    CAST(MAX(end_ms) AS BIGINT) AS end_ms, CAST(SUM(counters) AS BIGINT) AS counters, \
    CAST(SUM(usage) AS BIGINT) AS usage, CAST(SUM(reserved) AS BIGINT) AS reserved, \
    CAST(SUM(from_grants) AS BIGINT) AS from_grants, CAST(SUM(pruned) AS BIGINT) AS pruned, \
    CAST(SUM(open) AS BIGINT) AS open, CAST(SUM(counted) AS BIGINT) AS counted, \
    CAST(SUM(metered) AS BIGINT) AS metered, CAST(SUM(unknown) AS BIGINT) AS unknown, \
    CAST(SUM(held) AS BIGINT) AS held, CAST(SUM(drawn) AS BIGINT) AS drawn, \
    CAST(SUM(frozen) AS BIGINT) AS frozen FROM (\
    SELECT customer_id, feature_id, series, period_start_ms, period_end_ms AS end_ms, 1 AS counters, \
    usage_units AS usage, reserved_units AS reserved, from_grants_units AS from_grants, \
    pruned_units AS pruned, COALESCE(open_units, 0) AS open, 0 AS counted, 0 AS metered, \
    0 AS unknown, 0 AS held, 0 AS drawn, 0 AS frozen FROM usage_counters \
    WHERE customer_id >= $1 AND customer_id <= $2 \
    UNION ALL SELECT customer_id, feature_id, series, \
    COALESCE(counted_from_ms, period_start_ms), period_end_ms, 0, 0, 0, 0, 0, 0, counted_units, \
    CASE WHEN substr(outcome, 5, 1) = 'm' THEN counted_units ELSE 0 END, \
    CASE WHEN substr(outcome, 5, 1) = '?' THEN 1 ELSE 0 END, 0, 0, 0 FROM usage_events \
    WHERE customer_id >= $1 AND customer_id <= $2 AND counted_units > 0 \
    UNION ALL SELECT customer_id, feature_id, series, period_start_ms, period_end_ms, \
    0, 0, 0, 0, 0, 0, 0, 0, 0, units, 0, 0 FROM reservations \
    WHERE customer_id >= $1 AND customer_id <= $2 AND state = 'pending' \
    UNION ALL SELECT customer_id, feature_id, series, period_start_ms, 0, \
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, units, 0 FROM grant_draws \
    WHERE customer_id >= $1 AND customer_id <= $2 \
    UNION ALL SELECT customer_id, feature_id, series, period_start_ms, 0, \
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, units FROM meter_events \
    WHERE customer_id >= $1 AND customer_id <= $2 AND state <> 'replaced') AS parts \
    GROUP BY customer_id, feature_id, series, period_start_ms \
    ORDER BY customer_id, feature_id, series, period_start_ms";

const GRANTS: &str = "SELECT customer_id, grant_id, MAX(feature_id) AS feature_id, \
    CAST(SUM(grants) AS BIGINT) AS grants, CAST(SUM(units) AS BIGINT) AS units, \
    CAST(SUM(used) AS BIGINT) AS used, CAST(SUM(drawn) AS BIGINT) AS drawn FROM (\
    SELECT customer_id, grant_id, feature_id, 1 AS grants, units, used_units AS used, 0 AS drawn \
    FROM grants WHERE customer_id >= $1 AND customer_id <= $2 \
    UNION ALL SELECT customer_id, grant_id, feature_id, 0, 0, 0, units FROM grant_draws \
    WHERE customer_id >= $1 AND customer_id <= $2) AS parts \
    GROUP BY customer_id, grant_id ORDER BY customer_id, grant_id";

impl Store {
    /// Whoever has a row that a recount looks at, in order of id, after `after`, at most `limit`:
    /// deleted customers too, and ids that no customer has.
    pub async fn customers_to_recount(&self, after: &str, limit: i64) -> Result<Vec<CustomerId>> {
        let next = |table: &str| {
            format!(
                "SELECT customer_id FROM (SELECT DISTINCT customer_id FROM {table} \
                 WHERE customer_id > $1 ORDER BY customer_id LIMIT $2) AS {table}_next"
            )
        };
        let tables = ["usage_counters", "usage_events", "meter_events", "grants", "grant_draws"];
        let all = tables.map(next).join(" UNION ");
        let sql = format!("{all} ORDER BY customer_id LIMIT $2");
        let rows = sqlx::query(assembled(sql))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.long_readers)
            .await?;
        rows.iter().map(|row| customers::parse_id(row.try_get("customer_id")?)).collect()
    }

    /// All there is of the customers from `first` to `last`.
    pub async fn recounted(&self, first: &CustomerId, last: &CustomerId) -> Result<Recounted> {
        let of = |sql| sqlx::query(sql).bind(first.as_str()).bind(last.as_str());
        let counters = of(COUNTERS).fetch_all(&self.long_readers).await?;
        let grants = of(GRANTS).fetch_all(&self.long_readers).await?;
        read(&counters, &grants)
    }
}

impl Tx {
    /// All there is of one customer, whose lock the caller holds.
    pub async fn recounted_of(&mut self, id: &CustomerId) -> Result<Recounted> {
        let of = |sql| sqlx::query(sql).bind(id.to_string()).bind(id.to_string());
        let counters = of(COUNTERS).fetch_all(self.connection()).await?;
        let grants = of(GRANTS).fetch_all(self.connection()).await?;
        read(&counters, &grants)
    }

    /// Says how many units of a grant are used.
    pub async fn set_used_units(
        &mut self,
        id: &CustomerId,
        grant_id: &str,
        units: i64,
    ) -> Result<()> {
        sqlx::query("UPDATE grants SET used_units = $3 WHERE customer_id = $1 AND grant_id = $2")
            .bind(id.as_str())
            .bind(grant_id)
            .bind(units)
            .execute(self.connection())
            .await?;
        Ok(())
    }
}

fn read(counters: &[AnyRow], grants: &[AnyRow]) -> Result<Recounted> {
    Ok(Recounted {
        counters: counters.iter().map(read_counter).collect::<Result<_>>()?,
        grants: grants.iter().map(read_grant).collect::<Result<_>>()?,
    })
}

fn read_counter(row: &AnyRow) -> Result<RecountedCounter> {
    let units = |column: &str| row.try_get::<i64, _>(column);
    let stored = Stored {
        usage: units("usage")?,
        reserved: units("reserved")?,
        from_grants: units("from_grants")?,
        pruned: units("pruned")?,
        open: units("open")?,
    };
    let parts = Parts {
        counted: units("counted")?,
        metered: units("metered")?,
        metering_unknown: units("unknown")? > 0,
        held: units("held")?,
        drawn: units("drawn")?,
        frozen: units("frozen")?,
    };
    Ok(RecountedCounter {
        key: read_key(row)?,
        period_end: Some(time(row, "end_ms")?).filter(|end| end.ms() > 0),
        stored: (units("counters")? > 0).then_some(stored),
        parts,
    })
}

fn read_grant(row: &AnyRow) -> Result<RecountedGrant> {
    let used = row.try_get("used")?;
    Ok(RecountedGrant {
        customer_id: customers::parse_id(row.try_get("customer_id")?)?,
        feature_id: row.try_get("feature_id")?,
        grant_id: row.try_get("grant_id")?,
        units: row.try_get("units")?,
        used: (row.try_get::<i64, _>("grants")? > 0).then_some(used),
        drawn: row.try_get("drawn")?,
    })
}
