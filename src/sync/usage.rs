//! Usage on its way to Stripe: sending what is in the outbox, and judging the answers.

use std::collections::HashSet;
use std::time::Duration;

use super::doubts::taken_after;
use super::reconcile::{self, Compared};
use super::{Difference, Mode, SyncError};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::gate::windows;
use crate::store::StoreError;
use crate::store::outbox::{MeterEvent as Row, SendOutcome, Sendable};
use crate::stripe::{MeterEvent, MeterOutcome, Stripe};

/// How long after its first send a meter event may be sent again. Stripe promises to know an
/// identifier again for at least 24 hours (its documentation of meter events, `identifier`); the
/// minutes less are for a send that is slow to arrive and for replicas whose clocks differ. After
/// it, only Stripe's own sums can tell whether the first send was counted.
pub const IN_DOUBT_AFTER: Duration = Duration::from_secs((24 * 60 - 10) * 60);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How many meter events one call sends; the caller asks again while it is told of this many.
pub const AT_ONCE: i64 = 200;

/// Compares a customer's usage with Stripe's sums and settles what is in doubt, puts back what is
/// parked and may be sent, closes and sends all that is due whatever its next attempt was to be, and
/// answers what came of it; [`Mode::DryRun`] answers what there is to do.
pub(super) async fn sync_usage(
    app: &App,
    id: &CustomerId,
    mode: Mode,
) -> Result<Vec<Difference>, SyncError> {
    if mode == Mode::Apply {
        windows::close_due_of(app, id).await?;
    }
    let Compared { mut differences, mut put_back, frozen } =
        reconcile::customer(app, id, mode).await?;
    let now = app.clock.now();
    let (put_back, units) = match mode {
        Mode::DryRun => {
            let waiting = app.store.pending_units_of(id).await?;
            let to_close = app.store.units_to_close(id, now).await?;
            let parked = match frozen {
                true => 0,
                false => app.store.sendable_meter_events_of(id, sendable(now)).await?,
            };
            (put_back.len() + parked, waiting + to_close)
        }
        Mode::Apply => {
            if !frozen {
                let mut tx = app.store.begin().await?;
                put_back.extend(tx.unpark_meter_events(id, sendable(now)).await?);
                tx.commit().await?;
            }
            let sent = send_all_of(app, id).await?;
            // What Stripe has refused again is parked again, and nothing was different.
            let parked = app.store.parked_meter_events_of(id).await?;
            (put_back.iter().filter(|identifier| !parked.contains(*identifier)).count(), sent)
        }
    };
    let difference = |what, is: bool, local: String, action| {
        is.then_some(Difference { what, local: Some(local), stripe: None, action })
    };
    differences.extend(difference(
        "parked meter events",
        put_back > 0,
        put_back.to_string(),
        "put back",
    ));
    differences.extend(difference("usage", units > 0, format!("{units} units waiting"), "sent"));
    Ok(differences)
}

/// What may be sent again as it is, once it is parked.
pub(super) fn sendable(now: Timestamp) -> Sendable {
    Sendable { known_after: now.minus(IN_DOUBT_AFTER), taken_after: taken_after(now) }
}

/// Sends a customer's waiting usage, the oldest first, until Stripe wants no more; answers the
/// units that arrived.
pub(super) async fn send_all_of(app: &App, id: &CustomerId) -> Result<i64, StoreError> {
    let Some(stripe) = &app.stripe else { return Ok(0) };
    let mut delivered = 0;
    for row in app.store.oldest_pending_of(id, AT_ONCE).await? {
        match send(app, stripe, &row).await? {
            Step::Settled(SendOutcome::Delivered { .. }) => delivered += row.units,
            Step::Settled(SendOutcome::Parked { .. }) | Step::Gone => {}
            Step::Settled(SendOutcome::TryAgain { .. }) | Step::Paused => break,
        }
    }
    Ok(delivered)
}

/// When this many customers in a row have to wait, Stripe is at fault, not they.
const GIVE_UP_AFTER: u32 = 5;

/// What came of a round of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    pub delivered: usize,
    pub parked: usize,
    /// Stripe refuses our key, asks for a slower pace or does not answer: the rest waits.
    pub paused: bool,
    /// There was more than one round takes, and some of it is settled.
    pub more: bool,
}

/// Sends meter events whose time has come. A customer's refusal parks its own event only; one whose
/// event has to wait waits with all its others for the next round, so that it costs one send.
pub async fn send_due(app: &App) -> Result<Sent, StoreError> {
    send_round(app, &app.store.pending_meter_events(app.clock.now(), AT_ONCE).await?).await
}

/// Sends these in order; stops when Stripe is at fault.
pub(super) async fn send_round(app: &App, due: &[Row]) -> Result<Sent, StoreError> {
    let (mut sent, mut failed_in_a_row) = (Sent::default(), 0);
    let mut waiting = HashSet::new();
    let Some(stripe) = &app.stripe else { return Ok(sent) };
    for row in due {
        if waiting.contains(&row.customer_id) {
            continue;
        }
        match send(app, stripe, row).await {
            Ok(Step::Settled(SendOutcome::Delivered { .. })) => {
                (sent.delivered, failed_in_a_row) = (sent.delivered + 1, 0);
            }
            Ok(Step::Settled(SendOutcome::Parked { .. })) => {
                (sent.parked, failed_in_a_row) = (sent.parked + 1, 0);
            }
            Ok(Step::Settled(SendOutcome::TryAgain { .. })) => {
                waiting.insert(&row.customer_id);
                failed_in_a_row += 1;
            }
            Ok(Step::Paused) => failed_in_a_row = GIVE_UP_AFTER,
            Ok(Step::Gone) => {}
            Err(error) if error.is_outage() => return Err(error),
            Err(error) => {
                tracing::error!(
                    customer_id = row.customer_id, identifier = row.identifier, %error,
                    "a meter event could not be sent"
                );
                waiting.insert(&row.customer_id);
            }
        }
        if failed_in_a_row >= GIVE_UP_AFTER {
            sent.paused = true;
            break;
        }
    }
    let full = i64::try_from(due.len()).is_ok_and(|taken| taken >= AT_ONCE);
    sent.more = full && !sent.paused && sent.delivered + sent.parked > 0;
    metrics::counter!("tollgate_meter_events_delivered_total").increment(sent.delivered as u64);
    metrics::counter!("tollgate_meter_events_parked_total").increment(sent.parked as u64);
    Ok(sent)
}

enum Step {
    Settled(SendOutcome),
    /// Not this event's fault: it waits as it is.
    Paused,
    /// Someone else settled it meanwhile.
    Gone,
}

async fn send(app: &App, stripe: &Stripe, row: &Row) -> Result<Step, StoreError> {
    let now = app.clock.now();
    if in_doubt(row, now) {
        return doubt(app, row).await;
    }
    let mut tx = app.store.begin().await?;
    let ours = tx.begin_send(&row.identifier).await?;
    tx.commit().await?;
    if !ours {
        return park_if_frozen(app, row).await;
    }
    let answer = stripe
        .send_meter_event(&MeterEvent {
            identifier: row.identifier.clone(),
            idempotency_key: row.idempotency_key.clone(),
            event_name: row.event_name.clone(),
            stripe_customer_id: row.stripe_customer_id.clone(),
            value: row.units,
            timestamp: row.timestamp,
        })
        .await;
    let wait = app.entropy.jitter(backoff(row.attempts).min(patience(row.billable_until, now)));
    conclude(app, row, judge(answer, now, wait)).await
}

/// Parks what only Stripe's sums can tell about.
async fn doubt(app: &App, row: &Row) -> Result<Step, StoreError> {
    let mut tx = app.store.begin().await?;
    tx.assume_sent(&row.identifier).await?;
    tx.commit().await?;
    let reason = "24 h after its first send Stripe may not know it again: compare sums before \
        sending it again"
        .to_owned();
    conclude(app, row, Verdict::of(SendOutcome::Parked { reason })).await
}

/// Somebody else settled a meter event, unless its customer's sending is frozen.
async fn park_if_frozen(app: &App, row: &Row) -> Result<Step, StoreError> {
    let Some(reason) = app.store.frozen_because(&row.customer_id).await? else {
        return Ok(Step::Gone);
    };
    let reason = format!("nothing is sent for this customer until someone has looked: {reason}");
    conclude(app, row, Verdict::of(SendOutcome::Parked { reason })).await
}

async fn conclude(app: &App, row: &Row, verdict: Verdict) -> Result<Step, StoreError> {
    let mut tx = app.store.begin().await?;
    if verdict.certainly_not_counted && row.first_sent_at.is_none() {
        tx.undo_first_send(&row.identifier, row.attempts).await?;
    }
    if verdict.key_spent {
        tx.renew_idempotency_key(&row.identifier).await?;
    }
    if let Next::Settle(outcome) = &verdict.next {
        tx.settle_meter_event(&row.identifier, outcome).await?;
    }
    tx.commit().await?;
    match verdict.next {
        Next::Settle(outcome) => {
            note_late(row, &outcome, app.clock.now());
            if let SendOutcome::Parked { reason } = &outcome {
                tracing::error!(
                    customer_id = row.customer_id,
                    identifier = row.identifier,
                    units = row.units,
                    reason,
                    "a meter event is parked: its usage is not billed until someone acts"
                );
            }
            Ok(Step::Settled(outcome))
        }
        Next::Pause { reason } => {
            tracing::error!(
                reason,
                "Stripe refuses our key; reporting usage is paused, the gate goes on"
            );
            Ok(Step::Paused)
        }
    }
}

/// Counts what reached Stripe when the invoice of its period was final.
fn note_late(row: &Row, outcome: &SendOutcome, now: Timestamp) {
    let late = row.billable_until.is_some_and(|until| now >= until);
    if late && matches!(outcome, SendOutcome::Delivered { .. }) {
        metrics::counter!("tollgate_meter_units_late_total").increment(row.units.unsigned_abs());
    }
}

/// Whether Stripe may have counted a meter event and not know its identifier any more. One that
/// waits for its first send may have had it after the backup was made that we come from, unless
/// Stripe's sum has shown since that it had none of it.
pub(super) fn in_doubt(row: &Row, now: Timestamp) -> bool {
    let waits = row.state == "pending";
    let first =
        row.first_sent_at.or_else(|| waits.then_some(row.cleared_at.unwrap_or(row.created_at)));
    first.is_some_and(|first| now.since(first) >= IN_DOUBT_AFTER)
}

/// Seconds that double with each attempt, up to an hour. The first retry is soon, because most
/// failures are a dropped connection.
fn backoff(attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(0, 12)).unwrap_or(12);
    Duration::from_secs(2_u64.pow(doublings)).min(LONGEST_WAIT)
}

/// The longest wait that leaves several tries until the moment after which an event is not billed.
fn patience(billable_until: Option<Timestamp>, now: Timestamp) -> Duration {
    match billable_until {
        Some(until) if until > now => (until.since(now) / 8).max(Duration::from_secs(1)),
        _ => LONGEST_WAIT,
    }
}

/// What Stripe's answer means for the row.
struct Verdict {
    next: Next,
    /// This send did not reach what counts, so it leaves nothing in doubt.
    certainly_not_counted: bool,
    /// Stripe will say nothing else under the same idempotency key.
    key_spent: bool,
}

enum Next {
    Settle(SendOutcome),
    Pause { reason: String },
}

impl Verdict {
    fn of(outcome: SendOutcome) -> Self {
        Self { next: Next::Settle(outcome), certainly_not_counted: false, key_spent: false }
    }

    fn not_counted(next: Next) -> Self {
        Self { next, certainly_not_counted: true, key_spent: false }
    }
}

fn judge(answer: MeterOutcome, now: Timestamp, wait: Duration) -> Verdict {
    let again =
        |wait: Duration, reason: String| SendOutcome::TryAgain { at: now.plus(wait), reason };
    match answer {
        MeterOutcome::Delivered => Verdict::of(SendOutcome::Delivered { detail: None }),
        MeterOutcome::AlreadyDelivered => {
            let detail = Some("Stripe had it already".to_owned());
            Verdict::of(SendOutcome::Delivered { detail })
        }
        MeterOutcome::Retry { reason } => Verdict::of(again(wait, reason)),
        MeterOutcome::KeySpent { reason } => {
            Verdict { key_spent: true, ..Verdict::of(again(wait, reason)) }
        }
        // Stripe's limiter stands before anything that counts.
        MeterOutcome::RateLimited { retry_after } => Verdict::not_counted(Next::Settle(again(
            retry_after.unwrap_or_default().min(LONGEST_WAIT).max(wait),
            "Stripe asks for a slower pace".to_owned(),
        ))),
        MeterOutcome::TooOld => {
            let reason = "Stripe takes no usage older than 35 days".to_owned();
            Verdict::not_counted(Next::Settle(SendOutcome::Parked { reason }))
        }
        MeterOutcome::Refused { code, message } => {
            let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
            let reason = format!("Stripe refused it{code}: {message}");
            Verdict::not_counted(Next::Settle(SendOutcome::Parked { reason }))
        }
        MeterOutcome::PauseReporter { reason } => Verdict::not_counted(Next::Pause { reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_an_hour() {
        assert_eq!(backoff(0), Duration::from_secs(1));
        assert_eq!(backoff(3), Duration::from_secs(8));
        assert_eq!(backoff(40), Duration::from_secs(3600));
    }

    #[test]
    fn who_has_little_time_left_waits_for_a_part_of_it() {
        let now = Timestamp::from_seconds(0);
        let until = |minutes: i64| patience(Some(Timestamp::from_seconds(60 * minutes)), now);
        assert_eq!(until(40), Duration::from_secs(300));
        assert_eq!(until(0), LONGEST_WAIT, "nothing is to be lost any more");
        assert_eq!(patience(None, now), LONGEST_WAIT);
    }
}
