//! The outbox: meter events for Stripe, every field fixed before the first send.

use std::collections::HashSet;

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;
use utoipa::ToSchema;

use super::usage::CounterKey;
use super::{Result, Store, Tx, assembled, time, time_or_none};
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::usage::OpenWindow;

/// A closed window on its way to Stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MeterEvent {
    pub identifier: String,
    #[serde(skip)]
    pub idempotency_key: String,
    pub customer_id: String,
    pub feature_id: String,
    pub event_name: String,
    pub stripe_customer_id: String,
    pub units: i64,
    pub timestamp: Timestamp,
    /// Until when Stripe takes it into the invoice of its period; `None` where no invoice bills it.
    #[schema(required)]
    pub billable_until: Option<Timestamp>,
    /// Whether it reached Stripe after that: its usage may not be billed.
    pub late: bool,
    /// `pending`, `delivered`, `parked`, or `replaced`: another one sends its units.
    pub state: String,
    pub attempts: i64,
    #[schema(required)]
    pub first_sent_at: Option<Timestamp>,
    pub created_at: Timestamp,
    #[schema(required)]
    pub settled_at: Option<Timestamp>,
    #[schema(required)]
    pub detail: Option<String>,
    /// The identifier of the one whose units this one sends anew.
    #[schema(required)]
    pub replaces: Option<String>,
    /// Stripe's word for why it came to nothing after it had been received.
    #[schema(required)]
    pub rejected_code: Option<String>,
    /// When Stripe told of failures without naming them, of which this may be one.
    #[serde(skip)]
    pub suspected_at: Option<Timestamp>,
    /// When Stripe's sum last showed that it had none of it, after Stripe had refused it at once.
    #[serde(skip)]
    pub cleared_at: Option<Timestamp>,
}

/// A meter event about to be stored.
#[derive(Debug, Clone)]
pub struct NewMeterEvent {
    pub identifier: String,
    pub idempotency_key: String,
    pub counter: CounterKey,
    pub stripe_customer_id: String,
    pub window: OpenWindow,
    /// Decides the billing period at Stripe, so it lies in the counter's own.
    pub timestamp: Timestamp,
    /// Until when Stripe takes it into the invoice of that period, if one bills it.
    pub billable_until: Option<Timestamp>,
}

/// What becomes of a meter event after a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendOutcome {
    Delivered { detail: Option<String> },
    Parked { reason: String },
    TryAgain { at: Timestamp, reason: String },
}

/// Which parked meter events may be sent again as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sendable {
    /// Stripe knows those again that it had, or may have had, after this for the first time.
    pub known_after: Timestamp,
    /// Stripe takes usage from after this.
    pub taken_after: Timestamp,
}

/// A meter event that is [`Sendable`] by `$2` and `$3`. One that was never sent may have been when
/// it was written down, because a backup may have been restored; and what Stripe rejected after
/// receiving it is still known to it by its identifier.
const SENDABLE: &str = "state = 'parked' AND rejected_code IS NULL AND timestamp_ms > $3 \
    AND COALESCE(first_sent_at_ms, cleared_at_ms, created_at_ms) > $2";
/// What makes it pending at `$4`. It gets another idempotency key, because under the old one Stripe
/// would refuse it again.
const PUT_BACK: &str = "state = 'pending', next_attempt_at_ms = $4, settled_at_ms = NULL, \
    idempotency_key = identifier || '-send-' || CAST(attempts AS TEXT)";

/// Until when a meter event can be billed, or never if that is over at `$1` or no invoice bills it:
/// what can be saved goes before what cannot.
pub(super) const SAVED_UNTIL: &str = "CASE WHEN billable_until_ms > $1 THEN billable_until_ms \
    ELSE 9223372036854775807 END";

impl Store {
    /// Meter events whose time has come, at most `limit`: each customer's first one, then each
    /// one's second, and so on, so that nobody's backlog stands before everybody else. First are
    /// those that Stripe bills for the shortest time still, so that the oldest period is sent first;
    /// last are those that no invoice bills any more.
    pub async fn pending_meter_events(
        &self,
        moment: Timestamp,
        limit: i64,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(assembled(format!(
            "SELECT * FROM (SELECT m.*, ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY \
             {SAVED_UNTIL}, timestamp_ms, identifier) AS turn \
             FROM meter_events AS m WHERE state = 'pending' AND next_attempt_at_ms <= $1) AS due \
             ORDER BY turn, {SAVED_UNTIL}, timestamp_ms, identifier LIMIT $2"
        )))
        .bind(moment.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }

    /// A customer's meter events that wait to be sent, the oldest usage first, at most `limit`.
    pub async fn oldest_pending_of(
        &self,
        customer_id: &CustomerId,
        limit: i64,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(
            "SELECT * FROM meter_events WHERE state = 'pending' AND customer_id = $1 \
             ORDER BY timestamp_ms, identifier LIMIT $2",
        )
        .bind(customer_id.as_str())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }

    /// A customer's units that wait to be sent.
    pub async fn pending_units_of(&self, customer_id: &CustomerId) -> Result<i64> {
        let row = sqlx::query(
            "SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) AS v FROM meter_events \
             WHERE state = 'pending' AND customer_id = $1",
        )
        .bind(customer_id.as_str())
        .fetch_one(&self.readers)
        .await?;
        Ok(row.try_get("v")?)
    }

    /// How many meter events [`Tx::unpark_meter_events`] would put back.
    pub async fn sendable_meter_events_of(
        &self,
        customer_id: &CustomerId,
        sendable: Sendable,
    ) -> Result<usize> {
        let row = sqlx::query(assembled(format!(
            "SELECT COUNT(*) AS n FROM meter_events WHERE customer_id = $1 AND {SENDABLE}"
        )))
        .bind(customer_id.as_str())
        .bind(sendable.known_after.ms())
        .bind(sendable.taken_after.ms())
        .fetch_one(&self.readers)
        .await?;
        Ok(usize::try_from(row.try_get::<i64, _>("n")?).unwrap_or_default())
    }

    /// The identifiers of all that is parked of a customer.
    pub async fn parked_meter_events_of(
        &self,
        customer_id: &CustomerId,
    ) -> Result<HashSet<String>> {
        let rows = sqlx::query(
            "SELECT identifier FROM meter_events WHERE customer_id = $1 AND state = 'parked'",
        )
        .bind(customer_id.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("identifier")?)).collect()
    }

    /// The meter event of this identifier, if there is one.
    pub async fn meter_event(&self, identifier: &str) -> Result<Option<MeterEvent>> {
        let row = sqlx::query("SELECT * FROM meter_events WHERE identifier = $1")
            .bind(identifier)
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// A customer's meter events, or all, in one state or any; the newest first.
    pub async fn list_meter_events(
        &self,
        customer_id: Option<&str>,
        state: Option<&str>,
        limit: i64,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(
            "SELECT * FROM meter_events WHERE ($1 = '' OR customer_id = $1) AND ($2 = '' OR state = $2) \
             ORDER BY created_at_ms DESC, identifier DESC LIMIT $3",
        )
        .bind(customer_id.unwrap_or_default())
        .bind(state.unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Stores a meter event. A second one for the same window is a fault and fails.
    pub async fn insert_meter_event(&mut self, event: &NewMeterEvent) -> Result<()> {
        let now = self.now.ms();
        sqlx::query(
            "INSERT INTO meter_events (identifier, idempotency_key, customer_id, feature_id, event_name, \
             stripe_customer_id, units, timestamp_ms, series, period_start_ms, window_end_ms, state, attempts, \
             next_attempt_at_ms, created_at_ms, billable_until_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'pending', 0, $12, $12, $13)",
        )
        .bind(&event.identifier)
        .bind(&event.idempotency_key)
        .bind(event.counter.customer_id.as_str())
        .bind(event.counter.feature_id.as_str())
        .bind(&event.window.meter)
        .bind(&event.stripe_customer_id)
        .bind(event.window.value)
        .bind(event.timestamp.ms())
        .bind(event.counter.series)
        .bind(event.counter.period_start.ms())
        .bind(event.window.end.ms())
        .bind(now)
        .bind(event.billable_until.map(Timestamp::ms))
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Notes that a send is about to begin, before it does; answers whether the event still waits
    /// and its customer's usage may be sent.
    pub async fn begin_send(&mut self, identifier: &str) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE meter_events SET attempts = attempts + 1, \
             first_sent_at_ms = COALESCE(first_sent_at_ms, $2) WHERE identifier = $1 AND state = 'pending' \
             AND NOT EXISTS (SELECT 1 FROM sending_freezes AS f \
             WHERE f.customer_id = meter_events.customer_id)",
        )
        .bind(identifier)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Notes of a meter event that waits and has no first send that it may have had one when it was
    /// written down.
    pub async fn assume_sent(&mut self, identifier: &str) -> Result<()> {
        sqlx::query(
            "UPDATE meter_events SET first_sent_at_ms = COALESCE(first_sent_at_ms, created_at_ms) \
             WHERE identifier = $1 AND state = 'pending'",
        )
        .bind(identifier)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Takes back that a send was begun, after an answer that says it was not even looked at or
    /// was refused: it starts no doubt about what Stripe has counted. Only if it is the one send
    /// since `attempts_before`; of another one the answer may still be out.
    pub async fn undo_first_send(&mut self, identifier: &str, attempts_before: i64) -> Result<()> {
        sqlx::query(
            "UPDATE meter_events SET first_sent_at_ms = NULL WHERE identifier = $1 AND attempts = $2",
        )
        .bind(identifier)
        .bind(attempts_before + 1)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Gives a meter event another idempotency key, after Stripe has answered for good under the
    /// one it had. What it counts by, the identifier, stays.
    pub async fn renew_idempotency_key(&mut self, identifier: &str) -> Result<()> {
        sqlx::query(
            "UPDATE meter_events SET idempotency_key = identifier || '-send-' || CAST(attempts AS TEXT) \
             WHERE identifier = $1 AND state = 'pending'",
        )
        .bind(identifier)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    pub async fn settle_meter_event(
        &mut self,
        identifier: &str,
        outcome: &SendOutcome,
    ) -> Result<()> {
        let now = self.now.ms();
        let (state, at, detail) = match outcome {
            SendOutcome::Delivered { detail } => ("delivered", now, detail.as_deref()),
            SendOutcome::Parked { reason } => ("parked", now, Some(reason.as_str())),
            SendOutcome::TryAgain { at, reason } => ("pending", at.ms(), Some(reason.as_str())),
        };
        sqlx::query(
            "UPDATE meter_events SET state = $2, detail = $3, next_attempt_at_ms = $4, \
             settled_at_ms = CASE WHEN $2 = 'pending' THEN NULL ELSE CAST($5 AS BIGINT) END \
             WHERE identifier = $1 AND state = 'pending'",
        )
        .bind(identifier)
        .bind(state)
        .bind(detail)
        .bind(at)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(())
    }

    /// Makes those of a customer's parked meter events pending again that may be sent as they are,
    /// each with another idempotency key; answers their identifiers.
    pub async fn unpark_meter_events(
        &mut self,
        customer_id: &CustomerId,
        sendable: Sendable,
    ) -> Result<Vec<String>> {
        let now = self.now.ms();
        let rows = sqlx::query(assembled(format!(
            "UPDATE meter_events SET {PUT_BACK} WHERE customer_id = $1 AND {SENDABLE} \
             RETURNING identifier"
        )))
        .bind(customer_id.as_str())
        .bind(sendable.known_after.ms())
        .bind(sendable.taken_after.ms())
        .bind(now)
        .fetch_all(self.connection())
        .await?;
        rows.iter().map(|row| Ok(row.try_get("identifier")?)).collect()
    }

    /// The same for one meter event; answers whether it was put back.
    pub async fn unpark_meter_event(
        &mut self,
        identifier: &str,
        sendable: Sendable,
    ) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(assembled(format!(
            "UPDATE meter_events SET {PUT_BACK} WHERE identifier = $1 AND {SENDABLE}"
        )))
        .bind(identifier)
        .bind(sendable.known_after.ms())
        .bind(sendable.taken_after.ms())
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

pub(super) fn read(row: &AnyRow) -> Result<MeterEvent> {
    let billable_until = time_or_none(row, "billable_until_ms")?;
    let settled_at = time_or_none(row, "settled_at_ms")?;
    let state: String = row.try_get("state")?;
    let late = billable_until.zip(settled_at).is_some_and(|(until, at)| at >= until);
    Ok(MeterEvent {
        billable_until,
        late: late && state == "delivered",
        identifier: row.try_get("identifier")?,
        idempotency_key: row.try_get("idempotency_key")?,
        customer_id: row.try_get("customer_id")?,
        feature_id: row.try_get("feature_id")?,
        event_name: row.try_get("event_name")?,
        stripe_customer_id: row.try_get("stripe_customer_id")?,
        units: row.try_get("units")?,
        timestamp: time(row, "timestamp_ms")?,
        state,
        attempts: row.try_get("attempts")?,
        first_sent_at: time_or_none(row, "first_sent_at_ms")?,
        created_at: time(row, "created_at_ms")?,
        settled_at,
        detail: row.try_get("detail")?,
        replaces: row.try_get("replaces")?,
        rejected_code: row.try_get("rejected_code")?,
        suspected_at: time_or_none(row, "suspected_at_ms")?,
        cleared_at: time_or_none(row, "cleared_at_ms")?,
    })
}
