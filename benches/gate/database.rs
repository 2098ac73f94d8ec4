//! What the benches ask of the databases themselves.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection};

/// Runs a future of sqlx's to its end.
pub fn run<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

/// Executes statements of ours on PostgreSQL.
pub fn execute(url: &str, sql: String) -> Result<()> {
    run(async {
        let mut connection = PgConnection::connect(url).await.context("PostgreSQL")?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    })
}

/// The size of a database on PostgreSQL.
pub fn postgres_bytes(url: &str) -> Result<u64> {
    run(async {
        let mut connection = PgConnection::connect(url).await?;
        sqlx::query("CHECKPOINT").execute(&mut connection).await?;
        let bytes: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(u64::try_from(bytes)?)
    })
}

/// Opens a SQLite file that is there.
pub async fn open(path: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(path);
    Ok(SqliteConnection::connect_with(&options).await?)
}

/// Moves SQLite's write-ahead log into the database file.
pub fn checkpoint(path: &Path) -> Result<()> {
    run(async {
        let mut connection = open(path).await?;
        let (busy, _, _): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut connection).await?;
        ensure!(busy == 0, "{} is busy", path.display());
        Ok(connection.close().await?)
    })
}
