//! PostgreSQL, asked for each request on its own.

use anyhow::Result;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use super::{Counter, GRANTED, Run};
use crate::request::{CUSTOMERS, customer_id};

/// As many as the daemon has.
const POOL: u32 = 16;

const INSERT_EVENT: &str = "INSERT INTO events (customer_id, idempotency_key, units)
    VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const COUNT: &str = "UPDATE counters SET used = used + $2
    WHERE customer_id = $1 AND used + $2 <= granted";
const INSERT_EVENT_AND_COUNT: &str = "WITH event AS (
        INSERT INTO events (customer_id, idempotency_key, units) VALUES ($1, $2, $3)
        ON CONFLICT DO NOTHING RETURNING units
    )
    UPDATE counters SET used = used + event.units FROM event
    WHERE counters.customer_id = $1 AND used + event.units <= granted";

/// The tables that the rivals on PostgreSQL use, and their customers.
pub async fn create_tables(url: &str) -> Result<()> {
    let pool = PgPool::connect(url).await?;
    for statement in [
        "CREATE TABLE counters (customer_id TEXT PRIMARY KEY, used BIGINT NOT NULL, granted BIGINT NOT NULL)",
        "CREATE TABLE events (customer_id TEXT NOT NULL, idempotency_key TEXT NOT NULL,
            units BIGINT NOT NULL, recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            PRIMARY KEY (customer_id, idempotency_key))",
    ] {
        sqlx::query(statement).execute(&pool).await?;
    }
    let ids: Vec<_> = (0..CUSTOMERS).map(customer_id).collect();
    sqlx::query("INSERT INTO counters SELECT id, 0, $2 FROM unnest($1::TEXT[]) AS id")
        .bind(&ids)
        .bind(GRANTED)
        .execute(&pool)
        .await?;
    pool.close().await;
    Ok(())
}

async fn connect(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(POOL).connect(url).await?)
}

/// A transaction per request, as one writes it first.
pub struct Transaction(PgPool);

impl Transaction {
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self(connect(url).await?))
    }
}

impl Counter for Transaction {
    async fn count(&self, run: Run) -> Result<bool> {
        let mut tx = self.0.begin().await?;
        let event = sqlx::query(INSERT_EVENT)
            .bind(&run.customer_id)
            .bind(&run.idempotency_key)
            .bind(run.required_balance)
            .execute(&mut *tx)
            .await?;
        if event.rows_affected() == 0 {
            return Ok(true); // counted under this key already
        }
        let counted = sqlx::query(COUNT)
            .bind(&run.customer_id)
            .bind(run.required_balance)
            .execute(&mut *tx)
            .await?;
        if counted.rows_affected() == 0 {
            return Ok(false); // the event is rolled back
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// All of it in one careful statement: one round trip per request.
pub struct Statement(PgPool);

impl Statement {
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self(connect(url).await?))
    }
}

impl Counter for Statement {
    async fn count(&self, run: Run) -> Result<bool> {
        let counted = sqlx::query(INSERT_EVENT_AND_COUNT)
            .bind(&run.customer_id)
            .bind(&run.idempotency_key)
            .bind(run.required_balance)
            .execute(&self.0)
            .await?;
        Ok(counted.rows_affected() == 1)
    }
}
