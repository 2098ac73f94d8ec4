//! What is particular to a customer: its own quotas, one-off grants, and which runs drew on them.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::rowset::{Cell, Column, Insert, SetStatement};
use super::usage::CounterKey;
use super::{Dialect, Kind, Result, Store, StoreError, Tx, customers, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::plan::Enforcement;
use crate::domain::quota::{Draw, DrawOrder, Grant, Override, Quotas};

/// Whose quotas of what.
pub type QuotaKey = (CustomerId, FeatureId);

/// Which run drew on which grant.
#[derive(Debug, Clone)]
pub struct NewDraw {
    pub counter: CounterKey,
    pub request_key: String,
    pub draw: Draw,
}

const CUSTOMER_COLUMNS: &[Column] = &[("customer_id", Kind::Text)];

const DRAW_COLUMNS: &[Column] = &[
    ("customer_id", Kind::Text),
    ("request_key", Kind::Text),
    ("grant_id", Kind::Text),
    ("units", Kind::BigInt),
    ("series", Kind::BigInt),
    ("feature_id", Kind::Text),
    ("period_start_ms", Kind::BigInt),
];

/// The statements of the hot path, put together once.
pub(crate) struct Statements {
    overrides: SetStatement,
    grants: SetStatement,
    insert_draws: SetStatement,
}

impl Statements {
    pub(crate) fn new(dialect: Dialect) -> Self {
        let of =
            |table, only| SetStatement::lookup(dialect, CUSTOMER_COLUMNS, table, "t.*", (only, ""));
        let draws = Insert { table: "grant_draws", columns: DRAW_COLUMNS, on_conflict: "" };
        Self {
            overrides: of("overrides", ""),
            grants: of("grants", " AND t.state = 'live' AND t.used_units < t.units"),
            insert_draws: SetStatement::insert(dialect, draws),
        }
    }
}

impl Store {
    /// All quotas of one customer, by feature.
    pub async fn quotas_of(&self, id: &CustomerId) -> Result<HashMap<QuotaKey, Quotas>> {
        let overrides = sqlx::query("SELECT * FROM overrides WHERE customer_id = $1")
            .bind(id.as_str())
            .fetch_all(&self.readers)
            .await?;
        let grants = sqlx::query(
            "SELECT * FROM grants WHERE customer_id = $1 AND state = 'live' AND used_units < units",
        )
        .bind(id.as_str())
        .fetch_all(&self.readers)
        .await?;
        collect(&overrides, &grants)
    }

    /// A customer's grants, whatever their state, the newest first, as support sees them.
    pub async fn list_grants(&self, id: &CustomerId) -> Result<Vec<(FeatureId, String, Grant)>> {
        let rows = sqlx::query(
            "SELECT * FROM grants WHERE customer_id = $1 ORDER BY created_at_ms DESC, grant_id DESC",
        )
        .bind(id.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let ((_, feature_id), grant) = read_grant(row)?;
                Ok((feature_id, row.try_get("state")?, grant))
            })
            .collect()
    }

    /// Customers with an override or a grant whose time has passed `moment` and that still counts
    /// as in force, at most `limit`. Those of a deleted customer wait until it comes back.
    pub async fn customers_with_ended_quotas(
        &self,
        moment: Timestamp,
        limit: i64,
    ) -> Result<Vec<CustomerId>> {
        let rows = sqlx::query(
            "SELECT customer_id FROM customers WHERE deleted_at_ms IS NULL AND customer_id IN ( \
             SELECT customer_id FROM overrides WHERE ends_at_ms IS NOT NULL AND ends_at_ms <= $1 \
             UNION SELECT customer_id FROM grants \
             WHERE state = 'live' AND expires_at_ms IS NOT NULL AND expires_at_ms <= $1) \
             ORDER BY customer_id LIMIT $2",
        )
        .bind(moment.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| customers::parse_id(row.try_get("customer_id")?)).collect()
    }
}

impl Tx {
    /// The quotas of these customers, by customer and feature.
    pub async fn quotas(&mut self, ids: &[&CustomerId]) -> Result<HashMap<QuotaKey, Quotas>> {
        let rows: Vec<_> = ids.iter().map(|id| vec![Cell::text(id.as_str())]).collect();
        let statements = self.statements.clone();
        let overrides = statements.quotas.overrides.fetch(self.connection(), &rows).await?;
        let grants = statements.quotas.grants.fetch(self.connection(), &rows).await?;
        collect(&overrides, &grants)
    }

    /// Writes that runs drew on grants, and how much of each grant that leaves.
    pub async fn put_draws(&mut self, draws: &[NewDraw]) -> Result<()> {
        let rows: Vec<_> = draws.iter().map(draw_cells).collect();
        let statements = self.statements.clone();
        statements.quotas.insert_draws.execute(self.connection(), &rows).await?;
        for draw in draws {
            sqlx::query(
                "UPDATE grants SET used_units = used_units + $3 WHERE customer_id = $1 AND grant_id = $2",
            )
            .bind(draw.counter.customer_id.as_str())
            .bind(draw.draw.grant_id.as_str())
            .bind(draw.draw.units)
            .execute(self.connection())
            .await?;
        }
        Ok(())
    }

    /// Sets a customer's own quota of a feature in place of the one it had.
    pub async fn put_override(&mut self, key: &QuotaKey, own: &Override) -> Result<()> {
        sqlx::query(
            "INSERT INTO overrides (customer_id, feature_id, plan_id, enforcement, granted_units, \
             ends_at_ms, created_at_ms, note) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (customer_id, feature_id) DO UPDATE SET plan_id = excluded.plan_id, \
             enforcement = excluded.enforcement, granted_units = excluded.granted_units, \
             ends_at_ms = excluded.ends_at_ms, created_at_ms = excluded.created_at_ms, note = excluded.note",
        )
        .bind(key.0.as_str())
        .bind(key.1.as_str())
        .bind(own.plan_id.as_ref().map(|id| id.as_str()))
        .bind(own.enforcement.as_str())
        .bind(own.enforcement.number())
        .bind(own.ends_at.map(Timestamp::ms))
        .bind(own.created_at.ms())
        .bind(own.note.as_deref())
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Takes a customer's own quota of a feature away; answers whether there was one.
    pub async fn delete_override(&mut self, key: &QuotaKey) -> Result<bool> {
        let done = sqlx::query("DELETE FROM overrides WHERE customer_id = $1 AND feature_id = $2")
            .bind(key.0.as_str())
            .bind(key.1.as_str())
            .execute(self.connection())
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Adds a grant unless one of its id is there; answers whether it was added.
    pub async fn insert_grant(&mut self, key: &QuotaKey, grant: &Grant) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO grants (customer_id, grant_id, feature_id, units, used_units, draw, \
             expires_at_ms, state, created_at_ms, note) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'live', $8, $9) ON CONFLICT DO NOTHING",
        )
        .bind(key.0.as_str())
        .bind(grant.grant_id.as_str())
        .bind(key.1.as_str())
        .bind(grant.units)
        .bind(grant.used)
        .bind(grant.draw.as_str())
        .bind(grant.expires_at.map(Timestamp::ms))
        .bind(grant.created_at.ms())
        .bind(grant.note.as_deref())
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes back what is left of a live grant; answers which feature it was of, if it was live.
    pub async fn revoke_grant(
        &mut self,
        id: &CustomerId,
        grant_id: &str,
    ) -> Result<Option<FeatureId>> {
        let row = sqlx::query(
            "UPDATE grants SET state = 'revoked' \
             WHERE customer_id = $1 AND grant_id = $2 AND state = 'live' RETURNING feature_id",
        )
        .bind(id.as_str())
        .bind(grant_id)
        .fetch_optional(self.connection())
        .await?;
        row.as_ref().map(feature).transpose()
    }

    /// Settles a customer's quotas whose time has passed; answers of which features.
    pub async fn settle_ended_quotas(&mut self, id: &CustomerId) -> Result<Vec<FeatureId>> {
        let now = self.now.ms();
        let mut features = Vec::new();
        for statement in [
            "DELETE FROM overrides WHERE customer_id = $1 AND ends_at_ms IS NOT NULL \
             AND ends_at_ms <= $2 RETURNING feature_id",
            "UPDATE grants SET state = 'expired' WHERE customer_id = $1 AND state = 'live' \
             AND expires_at_ms IS NOT NULL AND expires_at_ms <= $2 RETURNING feature_id",
        ] {
            let rows = sqlx::query(statement)
                .bind(id.as_str())
                .bind(now)
                .fetch_all(self.connection())
                .await?;
            for row in &rows {
                features.push(feature(row)?);
            }
        }
        features.sort();
        features.dedup();
        Ok(features)
    }
}

fn draw_cells(new: &NewDraw) -> Vec<Cell<'_>> {
    vec![
        Cell::text(new.counter.customer_id.as_str()),
        Cell::text(new.request_key.as_str()),
        Cell::text(new.draw.grant_id.as_str()),
        Cell::Int(new.draw.units),
        Cell::Int(new.counter.series),
        Cell::text(new.counter.feature_id.as_str()),
        Cell::Int(new.counter.period_start.ms()),
    ]
}

fn collect(overrides: &[AnyRow], grants: &[AnyRow]) -> Result<HashMap<QuotaKey, Quotas>> {
    let mut found: HashMap<QuotaKey, Quotas> = HashMap::new();
    for row in overrides {
        found.entry(key(row)?).or_default().own = Some(read_override(row)?);
    }
    for row in grants {
        let (key, grant) = read_grant(row)?;
        found.entry(key).or_default().grants.push(grant);
    }
    Ok(found)
}

fn feature(row: &AnyRow) -> Result<FeatureId> {
    let text: String = row.try_get("feature_id")?;
    text.try_into().map_err(|_| StoreError::Corrupt { table: "grants", column: "feature_id" })
}

fn key(row: &AnyRow) -> Result<QuotaKey> {
    Ok((customers::parse_id(row.try_get("customer_id")?)?, feature(row)?))
}

fn read_override(row: &AnyRow) -> Result<Override> {
    let corrupt = |column| StoreError::Corrupt { table: "overrides", column };
    let granted: Option<i64> = row.try_get("granted_units")?;
    let number = || granted.ok_or(corrupt("granted_units"));
    let enforcement = match row.try_get::<&str, _>("enforcement")? {
        "hard" => Enforcement::Hard { granted: number()? },
        "soft" => Enforcement::Soft { granted: number()? },
        "unlimited" => Enforcement::Unlimited,
        _ => return Err(corrupt("enforcement")),
    };
    let plan_id: Option<String> = row.try_get("plan_id")?;
    Ok(Override {
        plan_id: plan_id.map(|id| id.try_into().map_err(|_| corrupt("plan_id"))).transpose()?,
        enforcement,
        ends_at: time_or_none(row, "ends_at_ms")?,
        created_at: time(row, "created_at_ms")?,
        note: row.try_get("note")?,
    })
}

fn read_grant(row: &AnyRow) -> Result<(QuotaKey, Grant)> {
    let draw = match row.try_get::<&str, _>("draw")? {
        "before" => DrawOrder::Before,
        "after" => DrawOrder::After,
        _ => return Err(StoreError::Corrupt { table: "grants", column: "draw" }),
    };
    let grant = Grant {
        grant_id: row.try_get("grant_id")?,
        units: row.try_get("units")?,
        used: row.try_get("used_units")?,
        draw,
        expires_at: time_or_none(row, "expires_at_ms")?,
        created_at: time(row, "created_at_ms")?,
        note: row.try_get("note")?,
    };
    Ok((key(row)?, grant))
}
