//! Meter events of which it is not certain whether Stripe has counted them, and what becomes of
//! them.

use std::ops::Range;

use sqlx::Row;

use super::outbox::{MeterEvent, Sendable, read};
use super::{Result, Store, Tx, time_or_none};
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::proof::Place;

/// What comparing sums has shown of a meter event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// Stripe has counted it.
    Counted,
    /// It came to nothing, and someone has to do something about it before it is sent anew.
    Rejected { code: String, reason: String },
    /// It was not counted, and can be no more.
    TooLate { reason: String },
    /// Nothing yet.
    Unclear { again_at: Timestamp, reason: Option<String> },
}

/// Usage that Stripe will soon be unable to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expiring {
    pub customers: i64,
    pub meter_events: i64,
    pub units: i64,
}

impl Store {
    /// A customer's meter events, or all, of which only Stripe's sums can tell whether they were
    /// counted, at most `limit`: those that were first sent before `in_doubt_before` and never
    /// answered for good, the oldest usage first, and after them those that may be among failures
    /// that Stripe did not name, of one Stripe customer after the other. None that moved after
    /// `settled_by`, or is to be looked at after `due_by`.
    pub async fn doubtful_meter_events(
        &self,
        customer_id: Option<&CustomerId>,
        in_doubt_before: Timestamp,
        settled_by: Timestamp,
        due_by: Timestamp,
        limit: i64,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(
            "SELECT * FROM (SELECT * FROM meter_events WHERE state = 'parked' \
             AND rejected_code IS NULL AND first_sent_at_ms <= $2 AND next_attempt_at_ms <= $1 \
             UNION ALL SELECT * FROM meter_events WHERE state = 'delivered' \
             AND suspected_at_ms <= $3 AND next_attempt_at_ms <= $1) AS doubtful \
             WHERE settled_at_ms <= $3 AND ($5 = '' OR customer_id = $5) \
             ORDER BY CASE WHEN state = 'parked' THEN '' ELSE stripe_customer_id END, \
             timestamp_ms, identifier LIMIT $4",
        )
        .bind(due_by.ms())
        .bind(in_doubt_before.ms())
        .bind(settled_by.ms())
        .bind(limit)
        .bind(customer_id.map_or("", CustomerId::as_str))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }

    /// Those of a customer's parked meter events that, by all that is noted here, Stripe has never
    /// taken, and that are not [`Sendable`] any more though Stripe takes their usage; the oldest
    /// first, at most `limit`.
    pub async fn untaken_meter_events(
        &self,
        customer_id: &CustomerId,
        sendable: Sendable,
        limit: i64,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(
            "SELECT * FROM meter_events WHERE customer_id = $1 AND state = 'parked' \
             AND rejected_code IS NULL AND first_sent_at_ms IS NULL AND timestamp_ms > $3 \
             AND COALESCE(cleared_at_ms, created_at_ms) <= $2 \
             ORDER BY timestamp_ms, identifier LIMIT $4",
        )
        .bind(customer_id.as_str())
        .bind(sendable.known_after.ms())
        .bind(sendable.taken_after.ms())
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }

    /// The times of the first and the last parked meter event for a place that
    /// [`Store::doubtful_meter_events`] would find, were it asked for all.
    pub async fn doubtful_span(
        &self,
        place: &Place,
        in_doubt_before: Timestamp,
        settled_by: Timestamp,
        due_by: Timestamp,
    ) -> Result<Option<(Timestamp, Timestamp)>> {
        let row = sqlx::query(
            "SELECT MIN(timestamp_ms) AS first_ms, MAX(timestamp_ms) AS last_ms FROM meter_events \
             WHERE stripe_customer_id = $1 AND event_name = $2 AND state = 'parked' \
             AND rejected_code IS NULL AND first_sent_at_ms <= $3 AND settled_at_ms <= $4 \
             AND next_attempt_at_ms <= $5",
        )
        .bind(&place.stripe_customer_id)
        .bind(&place.meter)
        .bind(in_doubt_before.ms())
        .bind(settled_by.ms())
        .bind(due_by.ms())
        .fetch_one(&self.readers)
        .await?;
        Ok(time_or_none(&row, "first_ms")?.zip(time_or_none(&row, "last_ms")?))
    }

    /// Every meter event for a place in a span of time, but those whose units another one sends.
    pub async fn meter_events_at(
        &self,
        place: &Place,
        span: &Range<Timestamp>,
    ) -> Result<Vec<MeterEvent>> {
        let rows = sqlx::query(
            "SELECT * FROM meter_events WHERE stripe_customer_id = $1 AND event_name = $2 \
             AND timestamp_ms >= $3 AND timestamp_ms < $4 AND state <> 'replaced' \
             ORDER BY timestamp_ms, identifier",
        )
        .bind(&place.stripe_customer_id)
        .bind(&place.meter)
        .bind(span.start.ms())
        .bind(span.end.ms())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read).collect()
    }

    /// The meter event that sends the units of another one anew, if there is one.
    pub async fn replacement_of(&self, identifier: &str) -> Result<Option<MeterEvent>> {
        let row = sqlx::query("SELECT * FROM meter_events WHERE replaces = $1")
            .bind(identifier)
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// The meters to which something was sent that arrived in this time, by their event names.
    pub async fn meters_sent_to(&self, span: &Range<Timestamp>) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT DISTINCT event_name FROM meter_events WHERE first_sent_at_ms <= $2 \
             AND COALESCE(settled_at_ms, $2) >= $1 ORDER BY event_name",
        )
        .bind(span.start.ms())
        .bind(span.end.ms())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(row.try_get("event_name")?)).collect()
    }

    /// What has not arrived at Stripe of usage from this time.
    pub async fn undelivered(&self, span: &Range<Timestamp>) -> Result<Expiring> {
        let row = sqlx::query(
            "SELECT COUNT(DISTINCT customer_id) AS customers, COUNT(*) AS meter_events, \
             CAST(COALESCE(SUM(units), 0) AS BIGINT) AS units FROM meter_events \
             WHERE state IN ('pending', 'parked') AND timestamp_ms >= $1 AND timestamp_ms < $2",
        )
        .bind(span.start.ms())
        .bind(span.end.ms())
        .fetch_one(&self.readers)
        .await?;
        Ok(Expiring {
            customers: row.try_get("customers")?,
            meter_events: row.try_get("meter_events")?,
            units: row.try_get("units")?,
        })
    }
}

impl Tx {
    /// Parks the meter event that Stripe says came to nothing after it had been received, by its
    /// identifier or by any idempotency key it was sent under, all of which begin with that; answers
    /// it if that is new.
    pub async fn reject_meter_event(
        &mut self,
        request: &str,
        code: &str,
        reason: &str,
    ) -> Result<Option<MeterEvent>> {
        let now = self.now.ms();
        let row = sqlx::query(
            "UPDATE meter_events SET state = 'parked', rejected_code = $2, detail = $3, \
             settled_at_ms = $4, next_attempt_at_ms = $4, suspected_at_ms = NULL \
             WHERE identifier = $1 AND first_sent_at_ms IS NOT NULL AND rejected_code IS NULL \
             AND state <> 'replaced' RETURNING *",
        )
        .bind(request.split_once("-send").map_or(request, |(identifier, _)| identifier))
        .bind(code)
        .bind(reason)
        .bind(now)
        .fetch_optional(self.connection())
        .await?;
        row.as_ref().map(read).transpose()
    }

    /// Notes of every meter event for a meter that may have arrived in this time that Stripe may
    /// have rejected it; answers how many there are.
    pub async fn suspect_meter_events(
        &mut self,
        meter: &str,
        span: &Range<Timestamp>,
    ) -> Result<u64> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE meter_events SET suspected_at_ms = $4, next_attempt_at_ms = CASE \
             WHEN state = 'delivered' THEN CAST($4 AS BIGINT) ELSE next_attempt_at_ms END \
             WHERE event_name = $1 AND state IN ('pending', 'delivered') \
             AND first_sent_at_ms <= $3 AND COALESCE(settled_at_ms, $3) >= $2",
        )
        .bind(meter)
        .bind(span.start.ms())
        .bind(span.end.ms())
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected())
    }

    /// Settles a meter event that was in `state` by what Stripe's sums show; answers whether it
    /// was still in it.
    pub async fn settle_doubt(
        &mut self,
        identifier: &str,
        state: &str,
        shown: &Shown,
    ) -> Result<bool> {
        let now = self.now.ms();
        let (change, at, code, reason) = match shown {
            // It was sent, whatever is noted here: a backup may be from before.
            Shown::Counted => (
                "state = 'delivered', detail = $5, rejected_code = $4, suspected_at_ms = NULL, \
                 first_sent_at_ms = COALESCE(first_sent_at_ms, created_at_ms)",
                now,
                None,
                Some("Stripe's sum has it"),
            ),
            Shown::Rejected { code, reason } => (
                "state = 'parked', detail = $5, rejected_code = $4, suspected_at_ms = NULL",
                now,
                Some(code.as_str()),
                Some(reason.as_str()),
            ),
            // Stripe has never counted it, which is as good as never sent.
            Shown::TooLate { reason } => (
                "state = 'parked', detail = $5, rejected_code = $4, suspected_at_ms = NULL, \
                 first_sent_at_ms = NULL",
                now,
                None,
                Some(reason.as_str()),
            ),
            Shown::Unclear { again_at, reason } => (
                "detail = COALESCE($5, detail), rejected_code = COALESCE($4, rejected_code)",
                again_at.ms(),
                None,
                reason.as_deref(),
            ),
        };
        let sql = format!(
            "UPDATE meter_events SET {change}, next_attempt_at_ms = $3 \
             WHERE identifier = $1 AND state = $2"
        );
        let done = sqlx::query(super::assembled(sql))
            .bind(identifier)
            .bind(state)
            .bind(at)
            .bind(code)
            .bind(reason)
            .execute(self.connection())
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Writes down another meter event for the units of one in `state` that Stripe has not counted,
    /// which is settled by that; answers whether it was still in `state`. What counts is the same:
    /// customer, meter, units and time.
    ///
    /// The caller holds the customer's lock.
    pub async fn replace_meter_event(
        &mut self,
        identifier: &str,
        state: &str,
        replacement: &str,
    ) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE meter_events SET state = 'replaced', suspected_at_ms = NULL, detail = $3 \
             WHERE identifier = $1 AND state = $2",
        )
        .bind(identifier)
        .bind(state)
        .bind(format!("Stripe's sum does not have it: {replacement} sends its units"))
        .execute(self.connection())
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        // Windows end ever later, so what lies before all of them is free for good.
        sqlx::query(
            "INSERT INTO meter_events (identifier, idempotency_key, customer_id, feature_id, \
             event_name, stripe_customer_id, units, timestamp_ms, series, period_start_ms, \
             window_end_ms, state, attempts, next_attempt_at_ms, created_at_ms, replaces, \
             billable_until_ms) SELECT $2, $3, m.customer_id, m.feature_id, m.event_name, \
             m.stripe_customer_id, m.units, m.timestamp_ms, m.series, m.period_start_ms, (SELECT MIN(w.window_end_ms) - 1 \
             FROM meter_events AS w WHERE w.customer_id = m.customer_id \
             AND w.feature_id = m.feature_id AND w.series = m.series \
             AND w.period_start_ms = m.period_start_ms), 'pending', 0, $4, $4, $1, \
             m.billable_until_ms FROM meter_events AS m WHERE m.identifier = $1",
        )
        .bind(identifier)
        .bind(replacement)
        .bind(format!("{replacement}-send"))
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(true)
    }

    /// Makes a parked meter event that Stripe has refused at once pending again, with another
    /// idempotency key, after Stripe's sum has shown that it has none of it: from now on it may be
    /// sent for a day as if it had just been written down. Answers whether it was so.
    pub async fn put_back_cleared(&mut self, identifier: &str) -> Result<bool> {
        let now = self.now.ms();
        let done = sqlx::query(
            "UPDATE meter_events SET state = 'pending', next_attempt_at_ms = $2, \
             settled_at_ms = NULL, cleared_at_ms = $2, \
             idempotency_key = identifier || '-send-' || CAST(attempts AS TEXT) \
             WHERE identifier = $1 AND state = 'parked' AND rejected_code IS NULL \
             AND first_sent_at_ms IS NULL",
        )
        .bind(identifier)
        .bind(now)
        .execute(self.connection())
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
