//! API keys: only their hashes are kept.

use serde::Serialize;
use sqlx::Row;

use super::{Result, Store, Tx, time, time_or_none};
use crate::clock::Timestamp;

/// An API key as it can be listed; the key itself is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    pub key_id: String,
    pub name: String,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

impl Store {
    /// The id of the key with this hash, unless it is revoked.
    pub async fn live_key(&self, hash: &str) -> Result<Option<String>> {
        let row =
            sqlx::query("SELECT key_id FROM api_keys WHERE hash = $1 AND revoked_at_ms IS NULL")
                .bind(hash)
                .fetch_optional(&self.readers)
                .await?;
        row.map(|row| Ok(row.try_get("key_id")?)).transpose()
    }

    pub async fn list_keys(&self) -> Result<Vec<ApiKey>> {
        let rows = sqlx::query(
            "SELECT key_id, name, created_at_ms, revoked_at_ms FROM api_keys ORDER BY created_at_ms, key_id",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ApiKey {
                    key_id: row.try_get("key_id")?,
                    name: row.try_get("name")?,
                    created_at: time(row, "created_at_ms")?,
                    revoked_at: time_or_none(row, "revoked_at_ms")?,
                })
            })
            .collect()
    }
}

impl Tx {
    pub async fn insert_key(&mut self, key_id: &str, name: &str, hash: &str) -> Result<()> {
        let now = self.now.ms();
        sqlx::query(
            "INSERT INTO api_keys (key_id, name, hash, created_at_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(key_id)
        .bind(name)
        .bind(hash)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Answers whether there was such a live key.
    pub async fn revoke_key(&mut self, key_id: &str) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE api_keys SET revoked_at_ms = $2 WHERE key_id = $1 AND revoked_at_ms IS NULL",
        )
        .bind(key_id)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
