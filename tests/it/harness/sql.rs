//! A look into a daemon's database from outside, to see what is stored and not what is said.

use sqlx::any::{AnyRow, AnyTypeInfoKind, install_default_drivers};
use sqlx::{AnyConnection, AssertSqlSafe, Column as _, Connection as _, Row as _, ValueRef as _};

/// What the daemon knows of its customers; what a refused request must leave as it was.
pub const TABLES: [&str; 12] = [
    "customers",
    "usage_counters",
    "usage_events",
    "reservations",
    "overrides",
    "grants",
    "grant_draws",
    "notices",
    "stripe_events",
    "meter_events",
    "audit",
    "api_keys",
];

/// The rows a query finds, each as its columns in order with `|` between them.
pub async fn rows(url: &str, query: &str) -> Vec<String> {
    install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.expect("the database is there");
    let found = sqlx::query(AssertSqlSafe(query.to_owned())).fetch_all(&mut connection).await;
    let found = found.unwrap_or_else(|error| panic!("{query}: {error}"));
    connection.close().await.expect("the connection closes");
    found
        .iter()
        .map(|row| {
            row.columns().iter().map(|c| text(row, c.ordinal())).collect::<Vec<_>>().join("|")
        })
        .collect()
}

fn text(row: &AnyRow, column: usize) -> String {
    let kind = row.try_get_raw(column).map(|value| (value.is_null(), value.type_info().kind()));
    match kind.expect("the column is there") {
        (true, _) => "NULL".to_owned(),
        (_, AnyTypeInfoKind::Text) => row.get(column),
        _ => row.get::<i64, _>(column).to_string(),
    }
}

/// Fails unless every counter is the sum of what it counts, and what it counts has a counter: usage
/// its events, what is reserved its pending reservations, what grants paid their draws; and unless
/// every grant is used up to the sum of its draws.
pub async fn assert_books_balance(url: &str) {
    for (column, table, units, only) in [
        ("usage_units", "usage_events", "counted_units", "counted_units > 0"),
        ("reserved_units", "reservations", "units", "state = 'pending'"),
        ("from_grants_units", "grant_draws", "units", "units > 0"),
    ] {
        let key = "customer_id, feature_id, series, period_start_ms";
        let counters =
            format!("SELECT {key}, {column} FROM usage_counters WHERE {column} > 0 ORDER BY {key}");
        // A run may be counted in another period than the one it was answered in.
        let counted = key.replace("period_start_ms", "COALESCE(counted_from_ms, period_start_ms)");
        let key = if table == "usage_events" { &counted } else { key };
        let sums = sums(url, key, units, table, only).await;
        assert_eq!(rows(url, &counters).await, sums, "{column} and the sums of {table}");
    }
    let key = "customer_id, grant_id";
    let used = format!("SELECT {key}, used_units FROM grants WHERE used_units > 0 ORDER BY {key}");
    let drawn = sums(url, key, "units", "grant_draws", "units > 0").await;
    assert_eq!(rows(url, &used).await, drawn, "grants and the sums of their draws");
}

async fn sums(url: &str, key: &str, units: &str, table: &str, only: &str) -> Vec<String> {
    let query = format!(
        "SELECT {key}, CAST(SUM({units}) AS BIGINT) FROM {table} WHERE {only} \
         GROUP BY {key} ORDER BY {key}"
    );
    rows(url, &query).await
}
