//! The inbox: Stripe's events, stored before they are acknowledged, applied afterwards.
//!
//! `pending` becomes `applied`, `ignored` or `parked`; whatever is settled can be made pending again.

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;
use utoipa::ToSchema;

use super::{Result, Store, Tx, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoredEvent {
    pub event_id: String,
    pub event_type: String,
    #[schema(required)]
    pub stripe_customer_id: Option<String>,
    /// Whom the event names itself, or whom it was found to concern.
    #[schema(required)]
    pub customer_id: Option<String>,
    /// `pending`, `applied`, `ignored` or `parked`.
    pub state: String,
    pub attempts: i64,
    pub received_at: Timestamp,
    #[schema(required)]
    pub settled_at: Option<Timestamp>,
    #[schema(required)]
    pub detail: Option<String>,
    /// `customer` if it is parked only until its customer is created or tied; null if it waits for
    /// a person, or for nothing.
    #[schema(required)]
    pub waits_for: Option<String>,
}

/// What becomes of a stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventOutcome {
    Applied,
    /// Nothing in it concerns a tier.
    Ignored,
    /// It cannot be applied now, and waiting will not help; someone has to.
    Parked {
        reason: String,
    },
    /// Parked too, but only until the customer it is about is created or tied.
    Waiting {
        reason: String,
    },
    TryAgain {
        at: Timestamp,
        reason: String,
    },
}

const COLUMNS: &str = "event_id, event_type, stripe_customer_id, customer_id, state, attempts, \
    received_at_ms, settled_at_ms, detail, waits_for";

/// What [`EventOutcome::Waiting`] waits for.
const CUSTOMER: &str = "customer";

impl Store {
    /// Pending events whose time has come, the oldest first, at most `limit`.
    pub async fn pending_events(&self, moment: Timestamp, limit: i64) -> Result<Vec<StoredEvent>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM stripe_events WHERE state = 'pending' AND next_attempt_at_ms <= $1 \
             ORDER BY next_attempt_at_ms, event_id LIMIT $2"
        );
        let rows = sqlx::query(super::assembled(sql))
            .bind(moment.ms())
            .bind(limit)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read).collect()
    }

    /// An event's body as it came.
    pub async fn event_body(&self, event_id: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT body FROM stripe_events WHERE event_id = $1")
            .bind(event_id)
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(row.try_get("body")?)).transpose()
    }

    /// A stored event.
    pub async fn stored_event(&self, event_id: &str) -> Result<Option<StoredEvent>> {
        let sql = format!("SELECT {COLUMNS} FROM stripe_events WHERE event_id = $1");
        let row =
            sqlx::query(super::assembled(sql)).bind(event_id).fetch_optional(&self.readers).await?;
        row.as_ref().map(read).transpose()
    }

    /// Removes an event that was only sent to see whether it arrives.
    pub async fn forget_event(&self, event_id: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM stripe_events WHERE event_id = $1")
            .bind(event_id)
            .execute(tx.connection())
            .await?;
        tx.commit().await
    }

    /// Events that wait for a customer who is known by now, at most `limit`. Whoever creates or
    /// ties a customer puts its events back; one that was being parked at that very moment is
    /// found here.
    pub async fn waiting_events_of_known(&self, limit: i64) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT event_id FROM stripe_events WHERE waits_for IS NOT NULL AND EXISTS ( \
             SELECT 1 FROM customers AS c WHERE c.deleted_at_ms IS NULL AND ( \
             c.stripe_customer_id = stripe_events.stripe_customer_id \
             OR c.customer_id = stripe_events.customer_id AND c.stripe_customer_id IS NULL)) \
             ORDER BY event_id LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("event_id")?)).collect()
    }

    /// A customer's events, or all, in one state or any; the newest first.
    pub async fn list_events(
        &self,
        customer_id: Option<&str>,
        state: Option<&str>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM stripe_events WHERE ($1 = '' OR customer_id = $1) \
             AND ($2 = '' OR state = $2) ORDER BY received_at_ms DESC, event_id DESC LIMIT $3"
        );
        let rows = sqlx::query(super::assembled(sql))
            .bind(customer_id.unwrap_or_default())
            .bind(state.unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Stores an event unless its id is known; answers whether it was new.
    pub async fn insert_event(
        &mut self,
        event_id: &str,
        event_type: &str,
        stripe_customer_id: Option<&str>,
        customer_id: Option<&str>,
        body: &str,
    ) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "INSERT INTO stripe_events (event_id, event_type, stripe_customer_id, customer_id, body, state, \
             attempts, next_attempt_at_ms, received_at_ms) VALUES ($1, $2, $3, $4, $5, 'pending', 0, $6, $6) \
             ON CONFLICT (event_id) DO NOTHING",
        )
        .bind(event_id)
        .bind(event_type)
        .bind(stripe_customer_id)
        .bind(customer_id)
        .bind(body)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Settles a pending event, or sets its next attempt, and notes whom it was found to concern.
    pub async fn settle_event(
        &mut self,
        event_id: &str,
        customer_id: Option<&CustomerId>,
        outcome: &EventOutcome,
    ) -> Result<()> {
        let now = self.now.ms();
        let (state, at, detail) = match outcome {
            EventOutcome::Applied => ("applied", now, None),
            EventOutcome::Ignored => ("ignored", now, None),
            EventOutcome::Parked { reason } | EventOutcome::Waiting { reason } => {
                ("parked", now, Some(reason.as_str()))
            }
            EventOutcome::TryAgain { at, reason } => ("pending", at.ms(), Some(reason.as_str())),
        };
        let waits_for = matches!(outcome, EventOutcome::Waiting { .. }).then_some(CUSTOMER);
        sqlx::query(
            "UPDATE stripe_events SET state = $2, customer_id = COALESCE($3, customer_id), detail = $4, \
             attempts = attempts + 1, next_attempt_at_ms = $5, \
             settled_at_ms = CASE WHEN $2 = 'pending' THEN NULL ELSE CAST($6 AS BIGINT) END, waits_for = $7 \
             WHERE event_id = $1 AND state = 'pending'",
        )
        .bind(event_id)
        .bind(state)
        .bind(customer_id.map(CustomerId::as_str))
        .bind(detail)
        .bind(at)
        .bind(now)
        .bind(waits_for)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Notes the Stripe customer that a stored event turned out to be about, and whom of ours it
    /// names, where the event itself did not say.
    pub async fn name_event(
        &mut self,
        event_id: &str,
        stripe_customer_id: &str,
        customer_id: Option<&str>,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE stripe_events SET stripe_customer_id = COALESCE(stripe_customer_id, $2), \
             customer_id = COALESCE(customer_id, $3) WHERE event_id = $1",
        )
        .bind(event_id)
        .bind(stripe_customer_id)
        .bind(customer_id)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Makes the parked events of a customer pending again, as if they had just come; answers how
    /// many there were. A customer that has a Stripe customer is not helped by events of another
    /// one that claim to be its own, so those stay.
    pub async fn unpark_events(
        &mut self,
        customer_id: &CustomerId,
        stripe_customer_id: Option<&str>,
    ) -> Result<u64> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE stripe_events SET state = 'pending', attempts = 0, next_attempt_at_ms = $3, \
             settled_at_ms = NULL, waits_for = NULL \
             WHERE state = 'parked' AND (stripe_customer_id = $2 \
             OR customer_id = $1 AND (stripe_customer_id IS NULL OR $2 = ''))",
        )
        .bind(customer_id.as_str())
        .bind(stripe_customer_id.unwrap_or_default())
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected())
    }

    /// Makes one event pending again, as if it had just come; answers whether it was anything else,
    /// settled or waiting for its next attempt.
    pub async fn replay_event(&mut self, event_id: &str) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE stripe_events SET state = 'pending', attempts = 0, next_attempt_at_ms = $2, \
             settled_at_ms = NULL, waits_for = NULL WHERE event_id = $1 \
             AND (state <> 'pending' OR attempts > 0)",
        )
        .bind(event_id)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Settles a customer's parked events that came up to `moment` as applied; answers how many.
    pub async fn apply_parked_events(
        &mut self,
        customer_id: &CustomerId,
        stripe_customer_id: Option<&str>,
        moment: Timestamp,
    ) -> Result<i64> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE stripe_events SET state = 'applied', settled_at_ms = $4, customer_id = $1, waits_for = NULL \
             WHERE state = 'parked' AND received_at_ms <= $3 AND (stripe_customer_id = $2 \
             OR customer_id = $1 AND (stripe_customer_id IS NULL OR $2 = ''))",
        )
        .bind(customer_id.as_str())
        .bind(stripe_customer_id.unwrap_or_default())
        .bind(moment.ms())
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
    }

    /// How many [`Tx::apply_parked_events`] would settle.
    pub async fn parked_events(
        &mut self,
        customer_id: &CustomerId,
        stripe_customer_id: Option<&str>,
        moment: Timestamp,
    ) -> Result<i64> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS n FROM stripe_events \
             WHERE state = 'parked' AND received_at_ms <= $3 AND (stripe_customer_id = $2 \
             OR customer_id = $1 AND (stripe_customer_id IS NULL OR $2 = ''))",
        )
        .bind(customer_id.as_str())
        .bind(stripe_customer_id.unwrap_or_default())
        .bind(moment.ms())
        .fetch_one(self.connection())
        .await?;
        Ok(row.try_get("n")?)
    }
}

fn read(row: &AnyRow) -> Result<StoredEvent> {
    Ok(StoredEvent {
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        stripe_customer_id: row.try_get("stripe_customer_id")?,
        customer_id: row.try_get("customer_id")?,
        state: row.try_get("state")?,
        attempts: row.try_get("attempts")?,
        received_at: time(row, "received_at_ms")?,
        settled_at: time_or_none(row, "settled_at_ms")?,
        detail: row.try_get("detail")?,
        waits_for: row.try_get("waits_for")?,
    })
}
