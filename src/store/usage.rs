//! The books: usage events, and the counter of each customer, feature and billing period.
//!
//! The gate hands over whole batches, so every statement here takes a set of rows as one JSON
//! parameter: a batch costs a handful of statements however many runs are in it.

use std::sync::Arc;

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{
    Dialect, Kind, Result, Store, StoreError, Tx, assembled, customers, time, time_or_none,
};
use crate::clock::Timestamp;
use crate::domain::answer::Facts;
use crate::domain::customer::Customer;
use crate::domain::decision::{Intent, Reason};
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::period::BillingPeriod;
use crate::domain::usage::{Counter, OpenWindow};

/// Names one counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterKey {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    pub series: i64,
    pub period_start: Timestamp,
}

/// A remembered answer, and the hash of the request it was given to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    pub facts: Facts,
    pub request_hash: String,
    pub plan_version: i64,
}

/// A usage event about to be written.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub facts: Facts,
    pub series: i64,
    /// The caller's idempotency key and the hash of its request; without one the event's own id
    /// is the row's key and nothing need be remembered but the run.
    pub request: Option<(String, String)>,
    pub entity_id: Option<String>,
    pub plan_version: i64,
    /// What the caller said of the run (model, tokens), as JSON.
    pub properties: Option<String>,
}

/// The statements of the hot path, put together once.
pub(crate) struct Statements {
    lock_customers: Arc<str>,
    remembered: Arc<str>,
    counters: Arc<str>,
    insert_events: Arc<str>,
    upsert_counters: Arc<str>,
}

const EVENT_COLUMNS: &[(&str, Kind)] = &[
    ("customer_id", Kind::Text),
    ("request_key", Kind::Text),
    ("event_id", Kind::Text),
    ("request_hash", Kind::Text),
    ("intent", Kind::Text),
    ("feature_id", Kind::Text),
    ("entity_id", Kind::Text),
    ("asked_units", Kind::BigInt),
    ("counted_units", Kind::BigInt),
    ("reason", Kind::Text),
    ("plan_id", Kind::Text),
    ("plan_version", Kind::BigInt),
    ("usage_after", Kind::BigInt),
    ("reserved_after", Kind::BigInt),
    ("series", Kind::BigInt),
    ("period_start_ms", Kind::BigInt),
    ("period_end_ms", Kind::BigInt),
    ("recorded_at_ms", Kind::BigInt),
    ("properties", Kind::Text),
];

const COUNTER_COLUMNS: &[(&str, Kind)] = &[
    ("customer_id", Kind::Text),
    ("feature_id", Kind::Text),
    ("series", Kind::BigInt),
    ("period_start_ms", Kind::BigInt),
    ("period_end_ms", Kind::BigInt),
    ("usage_units", Kind::BigInt),
    ("reserved_units", Kind::BigInt),
    ("open_start_ms", Kind::BigInt),
    ("open_end_ms", Kind::BigInt),
    ("open_units", Kind::BigInt),
    ("open_meter", Kind::Text),
    ("closed_until_ms", Kind::BigInt),
];

impl Statements {
    pub(crate) fn new(dialect: Dialect) -> Self {
        let events = dialect.json_rows(EVENT_COLUMNS);
        let counters = dialect.json_rows(COUNTER_COLUMNS);
        let wanted_keys = dialect.json_rows(&EVENT_COLUMNS[..2]);
        let wanted_counters = dialect.json_rows(&COUNTER_COLUMNS[..4]);
        let wanted_customers = dialect.json_rows(&EVENT_COLUMNS[..1]);
        let event_names = names(EVENT_COLUMNS);
        let counter_names = names(COUNTER_COLUMNS);
        let customer_names = customers::COLUMNS;
        let lock = dialect.lock_rows();
        Self {
            // In order of id, so that two replicas with common customers cannot deadlock.
            lock_customers: format!(
                "SELECT {customer_names} FROM customers WHERE deleted_at_ms IS NULL AND customer_id IN \
                 (SELECT customer_id FROM {wanted_customers} AS w) ORDER BY customer_id{lock}"
            )
            .into(),
            // CROSS JOIN makes SQLite start from the few wanted rows, not from the table.
            remembered: format!(
                "SELECT e.* FROM {wanted_keys} AS w CROSS JOIN usage_events AS e \
                 WHERE e.customer_id = w.customer_id AND e.request_key = w.request_key"
            )
            .into(),
            counters: format!(
                "SELECT c.* FROM {wanted_counters} AS w CROSS JOIN usage_counters AS c \
                 WHERE c.customer_id = w.customer_id AND c.feature_id = w.feature_id \
                 AND c.series = w.series AND c.period_start_ms = w.period_start_ms"
            )
            .into(),
            insert_events: format!(
                "INSERT INTO usage_events ({event_names}) SELECT {event_names} FROM {events} AS w WHERE true"
            )
            .into(),
            upsert_counters: format!(
                "INSERT INTO usage_counters ({counter_names}) SELECT {counter_names} FROM {counters} AS w \
                 WHERE true ON CONFLICT (customer_id, feature_id, series, period_start_ms) DO UPDATE SET \
                 period_end_ms = excluded.period_end_ms, usage_units = excluded.usage_units, reserved_units = excluded.reserved_units, \
                 open_start_ms = excluded.open_start_ms, open_end_ms = excluded.open_end_ms, \
                 open_units = excluded.open_units, open_meter = excluded.open_meter, closed_until_ms = excluded.closed_until_ms"
            )
            .into(),
        }
    }
}

fn names(columns: &[(&str, Kind)]) -> String {
    columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[derive(Serialize)]
struct WantedCustomer<'a> {
    customer_id: &'a CustomerId,
}

#[derive(Serialize)]
struct WantedKey<'a> {
    customer_id: &'a CustomerId,
    request_key: String,
}

#[derive(Serialize)]
struct WantedCounter<'a> {
    customer_id: &'a CustomerId,
    feature_id: &'a FeatureId,
    series: i64,
    period_start_ms: i64,
}

#[derive(Serialize)]
struct EventRow<'a> {
    customer_id: &'a CustomerId,
    request_key: String,
    event_id: Option<&'a str>,
    request_hash: Option<&'a str>,
    intent: Intent,
    feature_id: &'a FeatureId,
    entity_id: Option<&'a str>,
    asked_units: i64,
    counted_units: i64,
    reason: Reason,
    plan_id: Option<&'a str>,
    plan_version: i64,
    usage_after: i64,
    reserved_after: i64,
    series: i64,
    period_start_ms: i64,
    period_end_ms: i64,
    recorded_at_ms: i64,
    properties: Option<&'a str>,
}

#[derive(Serialize)]
struct CounterRow<'a> {
    #[serde(flatten)]
    key: WantedCounter<'a>,
    period_end_ms: i64,
    usage_units: i64,
    reserved_units: i64,
    open_start_ms: Option<i64>,
    open_end_ms: Option<i64>,
    open_units: Option<i64>,
    open_meter: Option<&'a str>,
    closed_until_ms: Option<i64>,
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

    /// The sum of all units accepted from this customer in the period, from the events themselves.
    pub async fn sum_of_events(&self, key: &CounterKey) -> Result<i64> {
        let row = sqlx::query(
            "SELECT CAST(COALESCE(SUM(counted_units), 0) AS BIGINT) AS v FROM usage_events \
             WHERE customer_id = $1 AND feature_id = $2 AND series = $3 AND period_start_ms = $4",
        )
        .bind(key.customer_id.as_str())
        .bind(key.feature_id.as_str())
        .bind(key.series)
        .bind(key.period_start.ms())
        .fetch_one(&self.readers)
        .await?;
        Ok(row.try_get("v")?)
    }
}

impl Tx {
    /// The customers of these ids that exist, locked to the end of the transaction.
    pub async fn lock_customers(&mut self, ids: &[&CustomerId]) -> Result<Vec<Customer>> {
        let wanted = json(ids.iter().map(|id| WantedCustomer { customer_id: id }));
        let rows = sqlx::query(assembled(self.statements.lock_customers.clone()))
            .bind(wanted)
            .fetch_all(self.connection())
            .await?;
        rows.iter().map(customers::read).collect()
    }

    /// The answers already given to these customers and idempotency keys.
    pub async fn remembered(
        &mut self,
        requests: &[(&CustomerId, &str)],
    ) -> Result<Vec<((CustomerId, String), Remembered)>> {
        let wanted = json(
            requests
                .iter()
                .map(|(customer_id, key)| WantedKey { customer_id, request_key: keyed(key) }),
        );
        let rows = sqlx::query(assembled(self.statements.remembered.clone()))
            .bind(wanted)
            .fetch_all(self.connection())
            .await?;
        rows.iter().map(read_remembered).collect()
    }

    /// The counters of these keys that exist.
    pub async fn counters(&mut self, keys: &[CounterKey]) -> Result<Vec<(CounterKey, Counter)>> {
        let wanted = json(keys.iter().map(wanted));
        let rows = sqlx::query(assembled(self.statements.counters.clone()))
            .bind(wanted)
            .fetch_all(self.connection())
            .await?;
        rows.iter().map(|row| read_counter(row).map(|(key, _, counter)| (key, counter))).collect()
    }

    /// One counter with the end of its period, if it exists.
    pub async fn counter_and_end(
        &mut self,
        key: &CounterKey,
    ) -> Result<Option<(Timestamp, Counter)>> {
        let rows = sqlx::query(assembled(self.statements.counters.clone()))
            .bind(json([wanted(key)].into_iter()))
            .fetch_all(self.connection())
            .await?;
        rows.first()
            .map(|row| read_counter(row).map(|(_, end, counter)| (end, counter)))
            .transpose()
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

    pub async fn insert_events(&mut self, events: &[NewEvent]) -> Result<()> {
        let rows = json(events.iter().map(event_row));
        sqlx::query(assembled(self.statements.insert_events.clone()))
            .bind(rows)
            .execute(self.connection())
            .await?;
        Ok(())
    }

    /// Writes counters, each with the end of its period.
    pub async fn put_counters(
        &mut self,
        counters: &[(CounterKey, Timestamp, Counter)],
    ) -> Result<()> {
        let rows = json(counters.iter().map(|(key, period_end, counter)| CounterRow {
            key: wanted(key),
            period_end_ms: period_end.ms(),
            usage_units: counter.usage,
            reserved_units: counter.reserved,
            open_start_ms: counter.open.as_ref().map(|open| open.start.ms()),
            open_end_ms: counter.open.as_ref().map(|open| open.end.ms()),
            open_units: counter.open.as_ref().map(|open| open.value),
            open_meter: counter.open.as_ref().map(|open| open.meter.as_str()),
            closed_until_ms: counter.closed_until.map(Timestamp::ms),
        }));
        sqlx::query(assembled(self.statements.upsert_counters.clone()))
            .bind(rows)
            .execute(self.connection())
            .await?;
        Ok(())
    }
}

fn wanted(key: &CounterKey) -> WantedCounter<'_> {
    WantedCounter {
        customer_id: &key.customer_id,
        feature_id: &key.feature_id,
        series: key.series,
        period_start_ms: key.period_start.ms(),
    }
}

/// Keyed rows are marked, so that no caller's key can meet an event's id.
fn keyed(idempotency_key: &str) -> String {
    format!("k:{idempotency_key}")
}

fn event_row(event: &NewEvent) -> EventRow<'_> {
    let facts = &event.facts;
    let event_id = facts.event_id.as_deref();
    EventRow {
        customer_id: &facts.customer_id,
        request_key: match &event.request {
            Some((key, _)) => keyed(key),
            None => event_id.unwrap_or_default().to_owned(),
        },
        event_id: event.request.as_ref().and(event_id),
        request_hash: event.request.as_ref().map(|(_, hash)| hash.as_str()),
        intent: facts.intent,
        feature_id: &facts.feature_id,
        entity_id: event.entity_id.as_deref(),
        asked_units: facts.asked,
        counted_units: facts.counted,
        reason: facts.reason,
        plan_id: facts.plan_id.as_ref().map(|id| id.as_str()),
        plan_version: event.plan_version,
        usage_after: facts.usage,
        reserved_after: facts.reserved,
        series: event.series,
        period_start_ms: facts.period.start.ms(),
        period_end_ms: facts.period.end.ms(),
        recorded_at_ms: facts.decided_at.ms(),
        properties: event.properties.as_deref(),
    }
}

fn json(rows: impl Iterator<Item: Serialize>) -> String {
    serde_json::to_string(&rows.collect::<Vec<_>>()).expect("rows are plain JSON")
}

fn read_counter(row: &AnyRow) -> Result<(CounterKey, Timestamp, Counter)> {
    let key = CounterKey {
        customer_id: customers::parse_id(row.try_get("customer_id")?)?,
        feature_id: parse_feature(row)?,
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
        open,
        closed_until: time_or_none(row, "closed_until_ms")?,
    };
    Ok((key, time(row, "period_end_ms")?, counter))
}

fn parse_feature(row: &AnyRow) -> Result<FeatureId> {
    row.try_get::<String, _>("feature_id")?.try_into().map_err(|_| corrupt("feature_id"))
}

fn corrupt(column: &'static str) -> StoreError {
    StoreError::Corrupt { table: "usage_events", column }
}

fn read_remembered(row: &AnyRow) -> Result<((CustomerId, String), Remembered)> {
    let customer_id = customers::parse_id(row.try_get("customer_id")?)?;
    let request_key: String = row.try_get("request_key")?;
    let key = request_key.strip_prefix("k:").ok_or(corrupt("request_key"))?.to_owned();
    let plan_id: Option<String> = row.try_get("plan_id")?;
    let facts = Facts {
        customer_id: customer_id.clone(),
        feature_id: parse_feature(row)?,
        plan_id: plan_id.map(|id| id.try_into().map_err(|_| corrupt("plan_id"))).transpose()?,
        intent: word(row, "intent")?,
        asked: row.try_get("asked_units")?,
        counted: row.try_get("counted_units")?,
        reason: word(row, "reason")?,
        usage: row.try_get("usage_after")?,
        reserved: row.try_get("reserved_after")?,
        period: BillingPeriod {
            start: time(row, "period_start_ms")?,
            end: time(row, "period_end_ms")?,
        },
        decided_at: time(row, "recorded_at_ms")?,
        event_id: row.try_get("event_id")?,
    };
    let request_hash: Option<String> = row.try_get("request_hash")?;
    let remembered = Remembered {
        facts,
        request_hash: request_hash.ok_or(corrupt("request_hash"))?,
        plan_version: row.try_get("plan_version")?,
    };
    Ok(((customer_id, key), remembered))
}

/// Reads a column that holds one of an enum's words.
fn word<T: serde::de::DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    serde_json::from_value(serde_json::Value::String(text)).map_err(|_| corrupt(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field that the statement does not name would silently be stored as NULL.
    #[test]
    fn rows_and_statements_name_the_same_columns() {
        let names = |columns: &[(&str, Kind)]| {
            let mut names: Vec<_> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
            names.sort();
            names
        };
        let fields = |json: serde_json::Value| {
            let mut fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
            fields.sort();
            fields
        };
        let now = Timestamp::from_seconds(0);
        let event = NewEvent {
            facts: Facts {
                customer_id: "c".parse().unwrap(),
                feature_id: "f".parse().unwrap(),
                plan_id: None,
                intent: Intent::Check,
                asked: 1,
                counted: 0,
                reason: Reason::NoPlan,
                usage: 0,
                reserved: 0,
                period: BillingPeriod { start: now, end: now },
                decided_at: now,
                event_id: None,
            },
            series: 0,
            request: None,
            entity_id: None,
            plan_version: 1,
            properties: None,
        };
        assert_eq!(fields(serde_json::to_value(event_row(&event)).unwrap()), names(EVENT_COLUMNS));
    }
}
