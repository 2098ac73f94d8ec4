//! The audit trail: who changed what by hand. Rows are only ever added.

use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use super::{Result, Store, Tx, time};
use crate::clock::Timestamp;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditEntry {
    pub audit_id: String,
    pub at: Timestamp,
    pub actor: String,
    pub action: String,
    #[schema(required)]
    pub customer_id: Option<String>,
    pub detail: serde_json::Value,
}

impl Store {
    /// A customer's entries, or all; the newest first.
    pub async fn list_audit(
        &self,
        customer_id: Option<&str>,
        limit: i64,
    ) -> Result<Vec<AuditEntry>> {
        let rows = sqlx::query(
            "SELECT * FROM audit WHERE ($1 = '' OR customer_id = $1) \
             ORDER BY at_ms DESC, audit_id DESC LIMIT $2",
        )
        .bind(customer_id.unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let detail: String = row.try_get("detail")?;
                Ok(AuditEntry {
                    audit_id: row.try_get("audit_id")?,
                    at: time(row, "at_ms")?,
                    actor: row.try_get("actor")?,
                    action: row.try_get("action")?,
                    customer_id: row.try_get("customer_id")?,
                    detail: serde_json::from_str(&detail)
                        .unwrap_or(serde_json::Value::String(detail)),
                })
            })
            .collect()
    }
}

impl Tx {
    pub async fn insert_audit(
        &mut self,
        audit_id: &str,
        actor: &str,
        action: &str,
        customer_id: Option<&str>,
        detail: &serde_json::Value,
    ) -> Result<()> {
        let now = self.now.ms();
        sqlx::query(
            "INSERT INTO audit (audit_id, at_ms, actor, action, customer_id, detail) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(audit_id)
        .bind(now)
        .bind(actor)
        .bind(action)
        .bind(customer_id)
        .bind(detail.to_string())
        .execute(self.connection())
        .await?;
        Ok(())
    }
}
