//! A database with very many customers and events, without a very long wait: the rows that the
//! daemon wrote for one customer, copied in the database under other names.
//!
//! So the schema stays the daemon's own affair, but for the few columns that tell rows apart.

use anyhow::{Result, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AnyConnection, AssertSqlSafe, Connection};

use crate::database;
use crate::progress::Progress;
use crate::request::customer_id;
use crate::server::Data;

/// How many rows one statement writes: few enough to see it go on.
const CHUNK: u64 = 1_000_000;

/// Copies customer 0, who has one event, until there are `customers` with `events` together.
///
/// # Errors
/// When the daemon's tables have changed beyond what this knows of them.
pub fn seed(data: &Data, customers: u64, events: u64, progress: &Progress) -> Result<()> {
    sqlx::any::install_default_drivers();
    let each = (events / customers).max(1);
    database::run(async {
        let mut connection = AnyConnection::connect(&data.url()).await?;
        let dialect = Dialect::of(data);
        for setting in dialect.settings() {
            sqlx::raw_sql(*setting).execute(&mut connection).await?;
        }
        let copies = [
            Copies { table: "customers", per_customer: 1, customers, each },
            Copies { table: "usage_counters", per_customer: 1, customers, each },
            Copies { table: "usage_events", per_customer: each, customers, each },
        ];
        for copy in copies {
            copy.write(&mut connection, dialect, progress).await?;
        }
        connection.close().await?;
        Ok(())
    })?;
    if let Data::Postgres(url) = data {
        progress.step("vacuum and analyze, as autovacuum would");
        database::run(async {
            let mut connection = PgConnection::connect(url).await?;
            sqlx::raw_sql("VACUUM ANALYZE").execute(&mut connection).await?;
            sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await?;
            Ok(connection.close().await?)
        })?;
    }
    Ok(())
}

/// A table to be filled with copies of customer 0's row.
struct Copies {
    table: &'static str,
    per_customer: u64,
    customers: u64,
    /// How many events each customer has.
    each: u64,
}

impl Copies {
    async fn write(
        &self,
        connection: &mut AnyConnection,
        dialect: Dialect,
        progress: &Progress,
    ) -> Result<()> {
        let columns: Vec<String> = sqlx::query_scalar(dialect.columns())
            .bind(self.table)
            .fetch_all(&mut *connection)
            .await?;
        ensure!(!columns.is_empty(), "there is no table {}", self.table);
        let values: Vec<_> = columns.iter().map(|name| self.value(name, dialect)).collect();
        // Customer 0 has its rows.
        let (mut from, end) = (self.per_customer, self.customers * self.per_customer);
        while from < end {
            let to = end.min(from + CHUNK);
            progress.step(&format!("filling {}: {from} of {end}", self.table));
            let sql = format!(
                "INSERT INTO {table} ({columns}) SELECT {values} FROM {numbers} \
                 CROSS JOIN (SELECT * FROM {table} WHERE customer_id = '{original}' LIMIT 1) AS t \
                 WHERE true ORDER BY n.n",
                table = self.table,
                columns = columns.join(", "),
                values = values.join(", "),
                numbers = dialect.numbers(from, to),
                original = customer_id(0),
            );
            let written =
                sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?.rows_affected();
            ensure!(written == to - from, "{} has no row of {}", self.table, customer_id(0));
            from = to;
        }
        Ok(())
    }

    /// What a column of row `n.n` holds, as SQL.
    fn value(&self, column: &str, dialect: Dialect) -> String {
        let customer = format!("n.n / {}", self.per_customer);
        match column {
            "customer_id" => format!("'customer-' || {}", dialect.padded(&customer, 7)),
            // No key of a measured run has an 's' in it.
            "request_key" => format!("'k:run_s' || {}", dialect.padded("n.n", 15)),
            "event_id" => format!(
                "CASE WHEN t.event_id IS NULL THEN NULL ELSE 'evt_' || {} END",
                dialect.padded("n.n", 26)
            ),
            "usage_units" => self.each.to_string(),
            "usage_after" => format!("n.n % {} + 1", self.each),
            _ => format!("t.{column}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    fn of(data: &Data) -> Self {
        if matches!(data, Data::Postgres(_)) { Self::Postgres } else { Self::Sqlite }
    }

    /// Nothing has to survive anything while the tables are filled.
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &[
                "PRAGMA journal_mode = OFF",
                "PRAGMA synchronous = OFF",
                "PRAGMA cache_size = -200000",
            ],
            Self::Postgres => &["SET synchronous_commit = off"],
        }
    }

    fn columns(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT name FROM pragma_table_info($1)",
            Self::Postgres => {
                "SELECT CAST(column_name AS TEXT) FROM information_schema.columns \
                 WHERE table_schema = current_schema() AND table_name = $1"
            }
        }
    }

    fn numbers(self, from: u64, to: u64) -> String {
        let last = to - 1;
        match self {
            Self::Sqlite => format!(
                "(WITH RECURSIVE r(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM r WHERE n < {last}) \
                 SELECT n FROM r) AS n"
            ),
            Self::Postgres => format!("generate_series({from}, {last}) AS n(n)"),
        }
    }

    fn padded(self, number: &str, digits: usize) -> String {
        match self {
            Self::Sqlite => format!("printf('%0{digits}d', {number})"),
            Self::Postgres => format!("lpad(CAST({number} AS TEXT), {digits}, '0')"),
        }
    }
}
