//! SQLite, a transaction per request, each synced to the disk.

use std::path::Path;

use anyhow::Result;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::{Counter, GRANTED, Run};

/// SQLite has one writer at a time: with one connection they queue in order.
pub struct Sqlite(SqlitePool);

impl Sqlite {
    pub async fn open(folder: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(folder.join("rival.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        for statement in [
            "CREATE TABLE counters (customer_id TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE events (customer_id TEXT NOT NULL, idempotency_key TEXT NOT NULL,
                units INTEGER NOT NULL, recorded_at INTEGER NOT NULL DEFAULT (unixepoch()),
                PRIMARY KEY (customer_id, idempotency_key)) WITHOUT ROWID",
        ] {
            sqlx::query(statement).execute(&pool).await?;
        }
        Ok(Self(pool))
    }
}

impl Counter for Sqlite {
    async fn count(&self, run: Run) -> Result<bool> {
        let mut tx = self.0.begin_with("BEGIN IMMEDIATE").await?;
        let event = sqlx::query("INSERT INTO events (customer_id, idempotency_key, units) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(&run.customer_id)
            .bind(&run.idempotency_key)
            .bind(run.required_balance)
            .execute(&mut *tx)
            .await?;
        if event.rows_affected() == 0 {
            return Ok(true); // counted under this key already
        }
        let counted = sqlx::query(
            "INSERT INTO counters (customer_id, used) VALUES ($1, $2)
            ON CONFLICT DO UPDATE SET used = used + excluded.used WHERE used + excluded.used <= $3",
        )
        .bind(&run.customer_id)
        .bind(run.required_balance)
        .bind(GRANTED)
        .execute(&mut *tx)
        .await?;
        if counted.rows_affected() == 0 {
            return Ok(false); // the event is rolled back
        }
        tx.commit().await?;
        Ok(true)
    }
}
