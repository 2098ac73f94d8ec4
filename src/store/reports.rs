//! What the pricing report reads: usage events and customers, row by row, never all at once.

use futures_util::TryStreamExt;
use sqlx::Row;

use super::{Result, Store, time};
use crate::clock::Timestamp;
use crate::domain::ids::FeatureId;

/// A run as its event's row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRun {
    pub customer_id: String,
    pub plan_id: Option<String>,
    pub at: Timestamp,
    pub units: i64,
    pub model: Option<String>,
    pub input_tokens: i64,
    pub cached_input_tokens: i64,
    pub output_tokens: i64,
    /// By the price in force when it was recorded.
    pub cost_picodollars: Option<i64>,
}

impl Store {
    /// Hands over every run of a feature in `[from, to)`, each customer's in order of time, as far
    /// as its history is kept.
    ///
    /// # Errors
    /// What the database could not do; some runs may have been handed over already.
    pub async fn each_recorded_run(
        &self,
        feature: &FeatureId,
        from: Timestamp,
        to: Timestamp,
        mut take: impl FnMut(&RecordedRun),
    ) -> Result<()> {
        // Tokens that a run does not state are NULL there and count nothing.
        let mut rows = sqlx::query(
            "SELECT customer_id, plan_id, recorded_at_ms, counted_units, model, \
             COALESCE(input_tokens, 0) AS input_tokens, \
             COALESCE(cached_input_tokens, 0) AS cached_input_tokens, \
             COALESCE(output_tokens, 0) AS output_tokens, cost_picodollars \
             FROM usage_events WHERE feature_id = $1 AND recorded_at_ms >= $2 AND recorded_at_ms < $3 \
             AND counted_units > 0 AND length(outcome) = 6 ORDER BY customer_id, recorded_at_ms",
        )
        .bind(feature.as_str())
        .bind(from.ms())
        .bind(to.ms())
        .fetch(&self.long_readers);
        while let Some(row) = rows.try_next().await? {
            take(&RecordedRun {
                customer_id: row.try_get("customer_id")?,
                plan_id: row.try_get("plan_id")?,
                at: time(&row, "recorded_at_ms")?,
                units: row.try_get("counted_units")?,
                model: row.try_get("model")?,
                input_tokens: row.try_get("input_tokens")?,
                cached_input_tokens: row.try_get("cached_input_tokens")?,
                output_tokens: row.try_get("output_tokens")?,
                cost_picodollars: row.try_get("cost_picodollars")?,
            });
        }
        Ok(())
    }

    /// Hands over every customer that there was before `to`, with the plan of its subscription.
    ///
    /// # Errors
    /// What the database could not do.
    pub async fn each_customer_and_plan(
        &self,
        to: Timestamp,
        mut take: impl FnMut(&str, Option<&str>),
    ) -> Result<()> {
        let mut rows = sqlx::query(
            "SELECT customer_id, plan_id FROM customers \
             WHERE deleted_at_ms IS NULL AND created_at_ms < $1",
        )
        .bind(to.ms())
        .fetch(&self.long_readers);
        while let Some(row) = rows.try_next().await? {
            let plan: Option<String> = row.try_get("plan_id")?;
            take(row.try_get("customer_id")?, plan.as_deref());
        }
        Ok(())
    }
}
