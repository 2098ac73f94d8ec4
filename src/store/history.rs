//! What a customer has used and when, from the usage events themselves.
//!
//! Events that retention has pruned are gone from here; the counters of their periods keep the
//! totals.

use sqlx::Row;

use super::{Result, Store, StoreError, assembled};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, EntityId, FeatureId};

/// A stretch of time `[from, to)`, cut into bins of `bin_ms` from the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Timestamp,
    pub to: Timestamp,
    pub bin_ms: i64,
}

/// Which units are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that were recorded in the span.
    Recorded,
    /// Those that are counted in the billing period that the span is, of this series: the sum is its
    /// counter's. What was recorded before or after it is in its first or last bin.
    CountedIn { series: i64 },
}

impl Which {
    /// The moment by which a run is put into its bin, and which runs are wanted. Both name all
    /// parameters, so that they are bound alike.
    fn sql(self) -> (&'static str, &'static str) {
        match self {
            Self::Recorded => {
                ("recorded_at_ms", "recorded_at_ms >= $3 AND recorded_at_ms < $4 AND $7 = 0")
            }
            Self::CountedIn { .. } => (
                "CASE WHEN recorded_at_ms < $3 THEN $3 WHEN recorded_at_ms >= $4 THEN $4 - 1 \
                 ELSE recorded_at_ms END",
                "COALESCE(counted_from_ms, period_start_ms) = $3 AND series = $7",
            ),
        }
    }

    fn series(self) -> i64 {
        match self {
            Self::Recorded => 0,
            Self::CountedIn { series } => series,
        }
    }
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
    /// Units of the span, by bin and entity in order, at most `limit` rows. A bin
    /// in which an entity used nothing has no row.
    pub async fn history(
        &self,
        customer_id: &CustomerId,
        feature_id: &FeatureId,
        which: Which,
        span: Span,
        limit: i64,
    ) -> Result<Vec<Used>> {
        // Integers divide to integers on both databases, and no event is older than the epoch. A
        // seventh letter says that retention has left an event's key alone.
        let (moment, wanted) = which.sql();
        let rows = sqlx::query(assembled(format!(
            "SELECT ({moment}) / $5 AS bin, COALESCE(entity_id, '') AS entity, \
             CAST(SUM(counted_units) AS BIGINT) AS units, COUNT(*) AS events FROM usage_events \
             WHERE customer_id = $1 AND feature_id = $2 AND counted_units > 0 \
             AND length(outcome) = 6 AND {wanted} GROUP BY 1, 2 ORDER BY 1, 2 LIMIT $6"
        )))
        .bind(customer_id.as_str())
        .bind(feature_id.as_str())
        .bind(span.from.ms())
        .bind(span.to.ms())
        .bind(span.bin_ms)
        .bind(limit)
        .bind(which.series())
        .fetch_all(&self.long_readers)
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
