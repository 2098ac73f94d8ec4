//! The intake: Stripe's events that arrive together are stored together, because each commit costs
//! the disk as much as many do.
//!
//! Whoever has an event puts it to the others that wait, and whoever has the line first stores all
//! of them and tells the others. If that fails each tries by itself, so that one bad event is its
//! sender's affair alone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Row;
use tokio::sync::oneshot;

use super::rowset::{Cell, Column, Insert, SetStatement};
use super::{Dialect, Kind, Line, Result, Store, Tx};

/// How many are stored in one transaction: some megabytes at most, as a rule.
const AT_ONCE: usize = 128;

/// An event as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStripeEvent {
    pub event_id: String,
    pub event_type: String,
    pub stripe_customer_id: Option<String>,
    /// The customer that the event itself names.
    pub customer_id: Option<String>,
    pub body: String,
}

const COLUMNS: &[Column] = &[
    ("event_id", Kind::Text),
    ("event_type", Kind::Text),
    ("stripe_customer_id", Kind::Text),
    ("customer_id", Kind::Text),
    ("body", Kind::Text),
    ("state", Kind::Text),
    ("attempts", Kind::BigInt),
    ("next_attempt_at_ms", Kind::BigInt),
    ("received_at_ms", Kind::BigInt),
];

type Waiting = (Arc<NewStripeEvent>, oneshot::Sender<bool>);

/// Those that wait for the line, and the line.
pub(super) struct Intake {
    waiting: Mutex<Vec<Waiting>>,
    pub(super) line: Line,
    insert: SetStatement,
}

impl Intake {
    pub(super) fn new(dialect: Dialect, line: Line) -> Self {
        let on_conflict = "ON CONFLICT (event_id) DO NOTHING RETURNING event_id";
        let insert = Insert { table: "stripe_events", columns: COLUMNS, on_conflict };
        Self { waiting: Mutex::default(), line, insert: SetStatement::insert(dialect, insert) }
    }

    fn put(&self, event: Arc<NewStripeEvent>, reply: oneshot::Sender<bool>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who could not have the line wait no more.
        waiting.retain(|(_, reply)| !reply.is_closed());
        waiting.push((event, reply));
    }

    /// The oldest of those that wait.
    fn take(&self) -> (Vec<Arc<NewStripeEvent>>, Vec<oneshot::Sender<bool>>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(AT_ONCE);
        waiting.drain(..count).unzip()
    }
}

impl Store {
    /// Stores an event unless its id is known; answers whether it was new. It must be run to its
    /// end, because others may rely on it.
    pub async fn take_in(&self, event: NewStripeEvent) -> Result<bool> {
        let event = Arc::new(event);
        let (reply, mut answer) = oneshot::channel();
        self.intake.put(event.clone(), reply);
        loop {
            let held = tokio::select! {
                biased;
                answered = &mut answer => match answered {
                    Ok(new) => return Ok(new),
                    Err(_) => return self.take_in_alone(event).await,
                },
                held = self.hold(&self.intake.line) => held?,
            };
            let (events, replies) = self.intake.take();
            // Where that fails nobody is answered, and each hears of it by its reply's end.
            let Ok(mut new) = self.store_events(held, &events).await else { continue };
            for (event, reply) in events.iter().zip(replies) {
                // Who hung up does not want its answer.
                let _ = reply.send(new.remove(&event.event_id));
            }
        }
    }

    async fn take_in_alone(&self, event: Arc<NewStripeEvent>) -> Result<bool> {
        let held = self.hold(&self.intake.line).await?;
        let new = self.store_events(held, &[event]).await?;
        Ok(!new.is_empty())
    }

    /// Answers which of them are new.
    async fn store_events(
        &self,
        mut tx: Tx,
        events: &[Arc<NewStripeEvent>],
    ) -> Result<HashSet<String>> {
        if events.is_empty() {
            return Ok(HashSet::new());
        }
        tx.begin().await?;
        let now = tx.now.ms();
        let rows: Vec<_> = events.iter().map(|event| cells(event, now)).collect();
        let found = self.intake.insert.fetch(tx.connection(), &rows).await?;
        let new = found.iter().map(|row| Ok(row.try_get("event_id")?)).collect::<Result<_>>()?;
        tx.commit().await?;
        Ok(new)
    }
}

/// The cells of [`COLUMNS`], in their order.
fn cells(event: &NewStripeEvent, now_ms: i64) -> Vec<Cell<'_>> {
    vec![
        Cell::text(event.event_id.as_str()),
        Cell::text(event.event_type.as_str()),
        Cell::text_or_null(event.stripe_customer_id.as_deref()),
        Cell::text_or_null(event.customer_id.as_deref()),
        Cell::text(event.body.as_str()),
        Cell::text("pending"),
        Cell::Int(0),
        Cell::Int(now_ms),
        Cell::Int(now_ms),
    ]
}
