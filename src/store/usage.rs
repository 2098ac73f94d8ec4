//! The counters: how much of each feature a customer has used in each billing period.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::events::{self, NewEvent};
use super::rowset::{Basis, Cell, Column, Frame, Insert, Inserts, SetStatement, names};
use super::{Dialect, Kind, Result, Store, StoreError, Tx, customers, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::usage::{Counter, OpenWindow};

/// Names one counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterKey {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    pub series: i64,
    pub period_start: Timestamp,
}

/// A counter and the end of its period.
pub type PeriodCounter = (CounterKey, Timestamp, Counter);

/// A counter as a decision found it, and the revision of its customer.
pub type Seen = (i64, PeriodCounter);

/// The statements of the hot path, put together once.
pub(crate) struct Statements {
    lock_customers: SetStatement,
    counters: SetStatement,
    upsert_counters: SetStatement,
    runs: Inserts,
}

const COLUMNS: &[Column] = &[
    ("customer_id", Kind::Text),
    ("feature_id", Kind::Text),
    ("series", Kind::BigInt),
    ("period_start_ms", Kind::BigInt),
    ("period_end_ms", Kind::BigInt),
    ("usage_units", Kind::BigInt),
    ("reserved_units", Kind::BigInt),
    ("from_grants_units", Kind::BigInt),
    ("pruned_units", Kind::BigInt),
    ("open_start_ms", Kind::BigInt),
    ("open_end_ms", Kind::BigInt),
    ("open_units", Kind::BigInt),
    ("open_meter", Kind::Text),
    ("closed_until_ms", Kind::BigInt),
];

/// What a run was decided on: [`COLUMNS`] and the customer's revision.
const SEEN_COLUMNS: &[Column] = &{
    let mut all = [("revision", Kind::BigInt); COLUMNS.len() + 1];
    let mut at = 0;
    while at < COLUMNS.len() {
        all[at] = COLUMNS[at];
        at += 1;
    }
    all
};

/// The customer is locked before its counter, as everywhere, so that two who compare and write cannot
/// wait for each other. Both are locked because what is locked is read as it is then, while the rest
/// of the statement sees what was when it began.
const LOCK_SEEN: &str = "CROSS JOIN LATERAL (SELECT customer_id, revision FROM customers AS c \
     WHERE c.customer_id = w.customer_id AND c.deleted_at_ms IS NULL OFFSET 0 FOR UPDATE) AS c \
     CROSS JOIN LATERAL (SELECT * FROM usage_counters AS t WHERE t.customer_id = c.customer_id \
     AND t.feature_id = w.feature_id AND t.series = w.series AND t.period_start_ms = w.period_start_ms \
     OFFSET 0 FOR UPDATE) AS t";

const KEY_COLUMNS: &[Column] = &[
    ("customer_id", Kind::Text),
    ("feature_id", Kind::Text),
    ("series", Kind::BigInt),
    ("period_start_ms", Kind::BigInt),
];

const CUSTOMER_COLUMNS: &[Column] = &[("customer_id", Kind::Text)];

impl Statements {
    pub(crate) fn new(dialect: Dialect) -> Self {
        let updates: Vec<_> = COLUMNS[KEY_COLUMNS.len()..]
            .iter()
            .map(|(name, _)| format!("{name} = excluded.{name}"))
            .collect();
        let on_conflict =
            format!("ON CONFLICT ({}) DO UPDATE SET {}", names(KEY_COLUMNS), updates.join(", "));
        let upsert =
            Insert { table: "usage_counters", columns: COLUMNS, on_conflict: &on_conflict };
        Self {
            lock_customers: SetStatement::lookup(
                dialect,
                CUSTOMER_COLUMNS,
                "customers",
                &prefixed_customers(),
                (" AND t.deleted_at_ms IS NULL", dialect.lock_rows()),
            ),
            counters: SetStatement::lookup(dialect, KEY_COLUMNS, "usage_counters", "t.*", ("", "")),
            upsert_counters: SetStatement::insert(dialect, upsert),
            runs: Inserts::new(dialect, events::INSERT, upsert, &seen()),
        }
    }
}

/// How what was seen is found, and told to be the same.
fn seen() -> Basis {
    let values = |table: &str| {
        let names = COLUMNS[KEY_COLUMNS.len()..].iter().map(|(name, _)| format!("{table}.{name}"));
        names.collect::<Vec<_>>().join(", ")
    };
    let same = format!(
        "c.revision = w.revision AND ({}) IS NOT DISTINCT FROM ({})",
        values("t"),
        values("w")
    );
    Basis { columns: SEEN_COLUMNS, found: LOCK_SEEN, same }
}

fn prefixed_customers() -> String {
    customers::COLUMNS.split(", ").map(|name| format!("t.{name}")).collect::<Vec<_>>().join(", ")
}

impl Store {
    /// The counter, or an empty one if nothing was counted yet.
    pub async fn counter(&self, key: &CounterKey) -> Result<Counter> {
        let row = sqlx::query(
            "SELECT * FROM usage_counters WHERE customer_id = $1 AND feature_id = $2 AND series = $3 \
             AND period_start_ms = $4",
        )
        .bind(key.customer_id.as_str())
        .bind(key.feature_id.as_str())
        .bind(key.series)
        .bind(key.period_start.ms())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row
            .as_ref()
            .map(read_counter)
            .transpose()?
            .map(|(_, _, counter)| counter)
            .unwrap_or_default())
    }

    /// Counters with an open metering window that ends at `moment` or before, oldest first.
    pub async fn counters_to_close(
        &self,
        moment: Timestamp,
        limit: i64,
    ) -> Result<Vec<CounterKey>> {
        let rows = sqlx::query(
            "SELECT * FROM usage_counters WHERE open_end_ms IS NOT NULL AND open_end_ms <= $1 \
             ORDER BY open_end_ms LIMIT $2",
        )
        .bind(moment.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(read_counter(row)?.0)).collect()
    }

    /// A customer's units in open metering windows whose end has passed.
    pub async fn units_to_close(&self, customer_id: &CustomerId, moment: Timestamp) -> Result<i64> {
        let row = sqlx::query(
            "SELECT CAST(COALESCE(SUM(open_units), 0) AS BIGINT) AS v FROM usage_counters \
             WHERE customer_id = $1 AND open_end_ms IS NOT NULL AND open_end_ms <= $2",
        )
        .bind(customer_id.as_str())
        .bind(moment.ms())
        .fetch_one(&self.readers)
        .await?;
        Ok(row.try_get("v")?)
    }
}

impl Tx {
    /// The customers of these ids that exist, locked to the end of the transaction. The ids are in
    /// order, so that two replicas with common customers cannot deadlock.
    pub async fn lock_customers(&mut self, ids: &[&CustomerId]) -> Result<Vec<Customer>> {
        let rows: Vec<_> = ids.iter().map(|id| vec![Cell::text(id.as_str())]).collect();
        let statements = self.statements.clone();
        let found = statements.usage.lock_customers.fetch(self.connection(), &rows).await?;
        found.iter().map(customers::read).collect()
    }

    /// The counters of these keys that exist, each with the end of its period.
    pub async fn counters(&mut self, keys: &[CounterKey]) -> Result<Vec<PeriodCounter>> {
        let rows: Vec<_> = keys.iter().map(key_cells).collect();
        let statements = self.statements.clone();
        let found = statements.usage.counters.fetch(self.connection(), &rows).await?;
        found.iter().map(read_counter).collect()
    }

    /// One counter with the end of its period, if it exists.
    pub async fn counter_and_end(
        &mut self,
        key: &CounterKey,
    ) -> Result<Option<(Timestamp, Counter)>> {
        let found = self.counters(std::slice::from_ref(key)).await?;
        Ok(found.into_iter().next().map(|(_, end, counter)| (end, counter)))
    }

    /// All counters of a customer with an open metering window.
    pub async fn open_counters_of(&mut self, customer_id: &CustomerId) -> Result<Vec<CounterKey>> {
        let rows = sqlx::query(
            "SELECT * FROM usage_counters WHERE customer_id = $1 AND open_end_ms IS NOT NULL \
             ORDER BY feature_id, series, period_start_ms",
        )
        .bind(customer_id.as_str())
        .fetch_all(self.connection())
        .await?;
        rows.iter().map(|row| Ok(read_counter(row)?.0)).collect()
    }

    /// Writes runs, and the counters that they moved with the ends of their periods.
    ///
    /// # Errors
    /// [`StoreError::is_duplicate`] when a run's key has been answered before.
    pub async fn put_runs(
        &mut self,
        events: &[NewEvent],
        counters: &[PeriodCounter],
    ) -> Result<()> {
        self.insert_runs(events, counters, &[], Frame::Part).await.map(|_| ())
    }

    /// The same for runs that were decided before the transaction began, if what they were decided on
    /// is still as it was `seen`; answers whether it is. What was seen is in order of the customers'
    /// ids, so that two replicas with common customers cannot deadlock, and each counter of it is in
    /// the database. On SQLite, whose one process knows, nothing has to be seen.
    pub async fn put_runs_on(
        &mut self,
        seen: &[Seen],
        events: &[NewEvent],
        counters: &[PeriodCounter],
    ) -> Result<bool> {
        self.insert_runs(events, counters, seen, Frame::Part).await
    }

    /// The same as all of a transaction that has not begun yet, with its end.
    pub async fn commit_runs(
        mut self,
        seen: &[Seen],
        events: &[NewEvent],
        counters: &[PeriodCounter],
    ) -> Result<bool> {
        self.begins();
        let held = self.insert_runs(events, counters, seen, Frame::Whole).await?;
        self.has_ended();
        Ok(held)
    }

    async fn insert_runs(
        &mut self,
        events: &[NewEvent],
        counters: &[PeriodCounter],
        seen: &[Seen],
        frame: Frame,
    ) -> Result<bool> {
        let events: Vec<_> = events.iter().map(events::cells).collect();
        let counters: Vec<_> = counters.iter().map(cells).collect();
        let seen: Vec<_> = seen.iter().map(seen_cells).collect();
        let statements = self.statements.clone();
        let runs = &statements.usage.runs;
        runs.execute_on(self.connection(), &seen, [&events, &counters], frame).await
    }

    /// Writes counters, each with the end of its period.
    pub async fn put_counters(&mut self, counters: &[PeriodCounter]) -> Result<()> {
        let rows: Vec<_> = counters.iter().map(cells).collect();
        let statements = self.statements.clone();
        statements.usage.upsert_counters.execute(self.connection(), &rows).await
    }
}

fn key_cells(key: &CounterKey) -> Vec<Cell<'_>> {
    vec![
        Cell::text(key.customer_id.as_str()),
        Cell::text(key.feature_id.as_str()),
        Cell::Int(key.series),
        Cell::Int(key.period_start.ms()),
    ]
}

/// The cells of [`COLUMNS`], in their order.
fn cells((key, period_end, counter): &PeriodCounter) -> Vec<Cell<'_>> {
    let open = counter.open.as_ref();
    let mut cells = key_cells(key);
    cells.extend([
        Cell::Int(period_end.ms()),
        Cell::Int(counter.usage),
        Cell::Int(counter.reserved),
        Cell::Int(counter.from_grants),
        Cell::Int(counter.pruned),
        Cell::int_or_null(open.map(|open| open.start.ms())),
        Cell::int_or_null(open.map(|open| open.end.ms())),
        Cell::int_or_null(open.map(|open| open.value)),
        Cell::text_or_null(open.map(|open| open.meter.as_str())),
        Cell::int_or_null(counter.closed_until.map(Timestamp::ms)),
    ]);
    cells
}

/// The cells of [`SEEN_COLUMNS`], in their order.
fn seen_cells((revision, counter): &Seen) -> Vec<Cell<'_>> {
    let mut cells = cells(counter);
    cells.push(Cell::Int(*revision));
    cells
}

fn read_counter(row: &AnyRow) -> Result<PeriodCounter> {
    let key = CounterKey {
        customer_id: customers::parse_id(row.try_get("customer_id")?)?,
        feature_id: row
            .try_get::<String, _>("feature_id")?
            .try_into()
            .map_err(|_| StoreError::Corrupt { table: "usage_counters", column: "feature_id" })?,
        series: row.try_get("series")?,
        period_start: time(row, "period_start_ms")?,
    };
    let open = match (
        time_or_none(row, "open_start_ms")?,
        time_or_none(row, "open_end_ms")?,
        row.try_get::<Option<i64>, _>("open_units")?,
        row.try_get::<Option<String>, _>("open_meter")?,
    ) {
        (Some(start), Some(end), Some(value), Some(meter)) => {
            Some(OpenWindow { start, end, value, meter })
        }
        _ => None,
    };
    let counter = Counter {
        usage: row.try_get("usage_units")?,
        reserved: row.try_get("reserved_units")?,
        from_grants: row.try_get("from_grants_units")?,
        pruned: row.try_get("pruned_units")?,
        open,
        closed_until: time_or_none(row, "closed_until_ms")?,
    };
    Ok((key, time(row, "period_end_ms")?, counter))
}
