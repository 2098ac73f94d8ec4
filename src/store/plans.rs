//! Plans files that are or were in force, and what the daemon remembers about itself.

use sqlx::Row;

use super::{Result, Store, Tx};

impl Store {
    /// The newest plans file and its version number.
    pub async fn active_plans(&self) -> Result<Option<(i64, String)>> {
        let row =
            sqlx::query("SELECT version, source FROM plan_versions ORDER BY version DESC LIMIT 1")
                .fetch_optional(&self.readers)
                .await?;
        row.map(|row| Ok((row.try_get("version")?, row.try_get("source")?))).transpose()
    }

    /// The plans file of that version.
    pub async fn plans_of(&self, version: i64) -> Result<Option<String>> {
        let row = sqlx::query("SELECT source FROM plan_versions WHERE version = $1")
            .bind(version)
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(row.try_get("source")?)).transpose()
    }

    /// The value of a setting, made by `make` if there is none yet; all replicas get the same.
    pub async fn setting_or(&self, name: &str, make: impl FnOnce() -> String) -> Result<String> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(make())
        .execute(&self.writers)
        .await?;
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_one(&self.writers)
            .await?;
        Ok(row.try_get("value")?)
    }

    /// Subscriptions' plans that are in use, to refuse a plans file that lacks one.
    pub async fn plans_in_use(&self) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT DISTINCT plan_id FROM customers WHERE plan_id IS NOT NULL AND deleted_at_ms IS NULL",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("plan_id")?)).collect()
    }
}

impl Tx {
    /// Puts a plans file in force and answers its version; the newest one stays as it is if it is
    /// the same file.
    pub async fn activate_plans(&mut self, source: &str) -> Result<i64> {
        let now = self.now;
        loop {
            let newest = sqlx::query(
                "SELECT version, source FROM plan_versions ORDER BY version DESC LIMIT 1",
            )
            .fetch_optional(self.connection())
            .await?;
            let version = match newest {
                Some(row) if row.try_get::<String, _>("source")? == source => {
                    return Ok(row.try_get("version")?);
                }
                Some(row) => row.try_get::<i64, _>("version")? + 1,
                None => 1,
            };
            let done = sqlx::query(
                "INSERT INTO plan_versions (version, source, activated_at_ms) VALUES ($1, $2, $3) \
                 ON CONFLICT (version) DO NOTHING",
            )
            .bind(version)
            .bind(source)
            .bind(now.ms())
            .execute(self.connection())
            .await?;
            if done.rows_affected() == 1 {
                return Ok(version);
            }
            // Another replica took this version between our two statements, as happens when
            // several start at once: perhaps with the very same file, so look again.
        }
    }
}
