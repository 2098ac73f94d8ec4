//! A look into a daemon's database from outside, to see what is stored and not what is said.

use sqlx::any::{AnyRow, AnyTypeInfoKind, install_default_drivers};
use sqlx::{AnyConnection, AssertSqlSafe, Column as _, Connection as _, Row as _, ValueRef as _};

/// What the daemon knows of its customers; what a refused request must leave as it was.
pub const TABLES: [&str; 8] = [
    "customers",
    "usage_counters",
    "usage_events",
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

/// Fails unless every counter is the sum of its usage events and every event has a counter.
pub async fn assert_books_balance(url: &str) {
    let key = "customer_id, feature_id, series, period_start_ms";
    let counters =
        rows(url, &format!("SELECT {key}, usage_units FROM usage_counters ORDER BY {key}")).await;
    let sums = rows(
        url,
        &format!(
            "SELECT {key}, CAST(SUM(counted_units) AS BIGINT) FROM usage_events \
             WHERE counted_units > 0 GROUP BY {key} ORDER BY {key}"
        ),
    )
    .await;
    assert_eq!(counters, sums, "counters and the sums of their events");
}
