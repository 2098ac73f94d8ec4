//! Plans files that are or were in force, and what the daemon remembers about itself.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Result, Store, Tx, customers, time};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, PlanId};

/// A version of the plans file that has put customers at thresholds, of which not all are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untold {
    pub version: i64,
    pub activated_at: Timestamp,
    /// The last customer, in order of id, who has been looked at.
    pub told_through: String,
}

/// What some customers are on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TermsInUse {
    /// Their subscription's plan, if they have one.
    pub plan_id: Option<String>,
    /// The version of the plans file that they keep, if it is not the newest.
    pub version: Option<i64>,
}

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

    /// The oldest version of the plans file of which not all customers have been told whom it puts at
    /// a threshold.
    pub async fn untold_plans(&self) -> Result<Option<Untold>> {
        let row = sqlx::query(
            "SELECT version, activated_at_ms, told_through FROM plan_versions \
             WHERE told_through IS NOT NULL ORDER BY version LIMIT 1",
        )
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| {
            Ok(Untold {
                version: row.try_get("version")?,
                activated_at: time(&row, "activated_at_ms")?,
                told_through: row.try_get("told_through")?,
            })
        })
        .transpose()
    }

    /// Customers who keep no terms, in order of id, after `after`, at most `limit`.
    pub async fn customers_on_terms_in_force(
        &self,
        after: &str,
        limit: i64,
    ) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT customer_id FROM customers WHERE terms_version IS NULL \
             AND deleted_at_ms IS NULL AND customer_id > $1 ORDER BY customer_id LIMIT $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| customers::parse_id(row.try_get("customer_id")?)).collect()
    }

    /// The value of a setting, made by `make` if there is none yet; all replicas get the same.
    pub async fn setting_or(&self, name: &str, make: impl FnOnce() -> String) -> Result<String> {
        let mut held = self.hold(&self.line()).await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(make())
        .execute(held.connection())
        .await?;
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_one(held.connection())
            .await?;
        Ok(row.try_get("value")?)
    }

    /// The value of a setting, if it has one.
    pub async fn setting(&self, name: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(row.try_get("value")?)).transpose()
    }

    /// Gives a setting a value, whatever it had.
    pub async fn put_setting(&self, name: &str, value: &str) -> Result<()> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(self.hold(&self.line()).await?.connection())
        .await?;
        Ok(())
    }

    /// What customers are on, each once, to refuse a plans file that lacks some of it.
    pub async fn terms_in_use(&self) -> Result<Vec<TermsInUse>> {
        let rows = sqlx::query(
            "SELECT DISTINCT plan_id, terms_version FROM customers WHERE deleted_at_ms IS NULL",
        )
        .fetch_all(&self.readers)
        .await?;
        let read = |row: &AnyRow| {
            Ok(TermsInUse {
                plan_id: row.try_get("plan_id")?,
                version: row.try_get("terms_version")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The features that customers have an override or a grant of now, each with one of these customers.
    pub async fn features_given(&self) -> Result<Vec<(String, String)>> {
        let rows = sqlx::query(
            "SELECT feature_id, MIN(customer_id) AS customer_id FROM (\
             SELECT feature_id, customer_id FROM overrides WHERE ends_at_ms IS NULL OR ends_at_ms > $1 \
             UNION SELECT feature_id, customer_id FROM grants WHERE state = 'live' AND used_units < units \
             AND (expires_at_ms IS NULL OR expires_at_ms > $1)) AS given \
             WHERE customer_id IN (SELECT customer_id FROM customers WHERE deleted_at_ms IS NULL) \
             GROUP BY feature_id ORDER BY feature_id",
        )
        .bind(self.clock.now().ms())
        .fetch_all(&self.readers)
        .await?;
        let read = |row: &AnyRow| Ok((row.try_get("feature_id")?, row.try_get("customer_id")?));
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Notes that a version's customers are to be told whom it puts at a threshold.
    pub async fn leave_untold(&mut self, version: i64) -> Result<()> {
        sqlx::query("UPDATE plan_versions SET told_through = '' WHERE version = $1")
            .bind(version)
            .execute(self.connection())
            .await?;
        Ok(())
    }

    /// Takes the next page of those who are to be told, up to `through`; `None` if it is the last.
    /// Answers whether nobody else has taken it since `untold` was read.
    pub async fn take_untold(&mut self, untold: &Untold, through: Option<&str>) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE plan_versions SET told_through = $3 WHERE version = $1 AND told_through = $2",
        )
        .bind(untold.version)
        .bind(untold.told_through.as_str())
        .bind(through)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The newest plans file and its version number.
    pub async fn newest_plans(&mut self) -> Result<Option<(i64, String)>> {
        let row =
            sqlx::query("SELECT version, source FROM plan_versions ORDER BY version DESC LIMIT 1")
                .fetch_optional(self.connection())
                .await?;
        row.map(|row| Ok((row.try_get("version")?, row.try_get("source")?))).transpose()
    }

    /// Lets those who are on a plan keep its limits of that version of the plans file, unless they
    /// keep older ones; `is_default` for those without a subscription too. Answers how many.
    pub async fn keep_terms(
        &mut self,
        plan_id: Option<&PlanId>,
        is_default: bool,
        version: i64,
    ) -> Result<u64> {
        self.changes_all();
        let done = sqlx::query(
            "UPDATE customers SET terms_version = $3, revision = revision + 1 \
             WHERE terms_version IS NULL AND deleted_at_ms IS NULL \
             AND (plan_id = $1 OR (plan_id IS NULL AND $2 = 1))",
        )
        .bind(plan_id.map(PlanId::as_str))
        .bind(i64::from(is_default))
        .bind(version)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected())
    }

    /// Begins a new entitlement version for those who are on a plan whose limits have changed for
    /// them, so that thresholds are told again under the new ones. Answers how many.
    pub async fn renew_entitlements(
        &mut self,
        plan_id: Option<&PlanId>,
        is_default: bool,
    ) -> Result<u64> {
        self.changes_all();
        let done = sqlx::query(
            "UPDATE customers SET entitlement_version = entitlement_version + 1, \
             revision = revision + 1 WHERE terms_version IS NULL AND deleted_at_ms IS NULL \
             AND (plan_id = $1 OR (plan_id IS NULL AND $2 = 1))",
        )
        .bind(plan_id.map(PlanId::as_str))
        .bind(i64::from(is_default))
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected())
    }

    /// Puts a plans file in force; the newest one stays as it is if it is the same file. Answers the
    /// version, and whether it is this transaction that put it in force.
    pub async fn activate_plans(&mut self, source: &str) -> Result<(i64, bool)> {
        let now = self.now;
        loop {
            let newest = sqlx::query(
                "SELECT version, source FROM plan_versions ORDER BY version DESC LIMIT 1",
            )
            .fetch_optional(self.connection())
            .await?;
            let version = match newest {
                Some(row) if row.try_get::<String, _>("source")? == source => {
                    return Ok((row.try_get("version")?, false));
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
                return Ok((version, true));
            }
            // Another replica took this version between our two statements, as happens when
            // several start at once: perhaps with the very same file, so look again.
        }
    }
}
