//! What a customer has used and when, from the usage events themselves.
//!
//! Events that retention has pruned are gone from here; the counters of their periods keep the
//! totals.

use sqlx::Row;

use super::{Result, Store, StoreError};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, EntityId, FeatureId};

/// A stretch of time `[from, to)`, cut into bins of `bin_ms` from the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Timestamp,
    pub to: Timestamp,
    pub bin_ms: i64,
}

/// What one entity used in one bin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Which bin it is, counted from the epoch.
    pub bin: i64,
    /// `None`: runs that named no entity.
    pub entity_id: Option<EntityId>,
    pub units: i64,
    /// How many runs these units were counted in.
    pub events: i64,
}

impl Store {
    /// Units that were counted in the span, by bin and entity in order, at most `limit` rows. A bin
    /// in which an entity used nothing has no row.
    pub async fn history(
        &self,
        customer_id: &CustomerId,
        feature_id: &FeatureId,
        span: Span,
        limit: i64,
    ) -> Result<Vec<Used>> {
        // Integers divide to integers on both databases, and no event is older than the epoch. A
        // seventh letter says that retention has left an event's key alone.
        let rows = sqlx::query(
            "SELECT recorded_at_ms / $5 AS bin, COALESCE(entity_id, '') AS entity, \
             CAST(SUM(counted_units) AS BIGINT) AS units, COUNT(*) AS events FROM usage_events \
             WHERE customer_id = $1 AND feature_id = $2 AND counted_units > 0 \
             AND length(outcome) = 6 AND recorded_at_ms >= $3 AND recorded_at_ms < $4 \
             GROUP BY 1, 2 ORDER BY 1, 2 LIMIT $6",
        )
        .bind(customer_id.as_str())
        .bind(feature_id.as_str())
        .bind(span.from.ms())
        .bind(span.to.ms())
        .bind(span.bin_ms)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let entity: String = row.try_get("entity")?;
                // An entity's id is never empty.
                let entity_id = Some(entity).filter(|entity| !entity.is_empty());
                let corrupt = StoreError::Corrupt { table: "usage_events", column: "entity_id" };
                Ok(Used {
                    bin: row.try_get("bin")?,
                    entity_id: entity_id
                        .map(EntityId::try_from)
                        .transpose()
                        .map_err(|_| corrupt)?,
                    units: row.try_get("units")?,
                    events: row.try_get("events")?,
                })
            })
            .collect()
    }
}
