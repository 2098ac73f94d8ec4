//! The gate: may this customer run?
//!
//! Requests that count queue to one writer, which takes all that wait, decides them in order with
//! the pure rule of `domain::decision`, and commits them as one transaction before it answers. An
//! idle gate commits at once; a busy one batches while the last commit is in flight. The queue is
//! bounded: when it is full, callers are told to come back instead of waiting without end.
//!
//! The gate never calls Stripe, and a question that counts nothing never waits for the writer.

mod batch;
pub mod windows;

use std::time::Duration;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::domain::answer::{Answer, Facts, answer};
use crate::domain::customer::Profile;
use crate::domain::decision::{Intent, decide};
use crate::domain::ids::{CustomerId, EntityId, FeatureId, IdempotencyKey};
use crate::store::StoreError;
use crate::store::usage::CounterKey;

pub use batch::create_customer;

/// How many requests may wait for the writer.
const QUEUE: usize = 4096;
/// How long a caller waits for its answer. A database that does not answer at all must not hold
/// everyone for as long as its connection takes to die.
const PATIENCE: Duration = Duration::from_secs(15);
/// How many the writer takes into one transaction.
const BATCH: usize = 1024;

/// A question to the gate, every field checked for its form.
#[derive(Debug, Clone)]
pub struct Request {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    pub entity_id: Option<EntityId>,
    /// Units, 1 to `domain::usage::MAX_QUANTITY`.
    pub value: i64,
    pub intent: Intent,
    /// With a key, this request's answer is remembered for ever.
    pub key: Option<RequestKey>,
    /// What the caller says of the run, as a JSON object.
    pub properties: Option<String>,
    /// Creates the customer if it is unknown.
    pub customer_data: Option<Profile>,
}

/// The caller's idempotency key, and a hash of all it asked under it.
#[derive(Debug, Clone)]
pub struct RequestKey {
    pub key: IdempotencyKey,
    pub request_hash: String,
}

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("there is no such customer")]
    UnknownCustomer,
    #[error("the plans file has no such feature")]
    UnknownFeature,
    #[error("this idempotency key was used with another request")]
    KeyReused,
    /// The queue is full: nothing was counted.
    #[error("too many requests are waiting")]
    Overloaded,
    /// Whether the run was counted is not known: ask again with the same idempotency key.
    #[error("the database cannot answer")]
    Unavailable(#[source] Option<StoreError>),
}

impl From<StoreError> for GateError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(Some(error))
    }
}

/// A decision's facts, and the version of the plans file it was made under.
type Decided = (Facts, i64);

struct Waiting {
    request: Request,
    reply: oneshot::Sender<Result<Decided, GateError>>,
}

/// The way to the gate. Clones lead to the same writer.
#[derive(Clone)]
pub struct Gate {
    app: App,
    queue: mpsc::Sender<Waiting>,
}

impl Gate {
    /// Starts the writer. It ends, having answered everyone, when the last handle is dropped.
    pub fn start(app: App) -> (Self, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = tokio::spawn(write(app.clone(), waiting));
        (Self { app, queue }, writer)
    }

    /// Decides, counts if so asked, and words the answer.
    pub async fn ask(&self, request: Request) -> Result<Answer, GateError> {
        let decided = if request.intent == Intent::Check && request.key.is_none() {
            match self.look(&request).await {
                // Whoever is not known yet is made known by the writer.
                Err(GateError::UnknownCustomer) if request.customer_data.is_some() => {
                    self.queue(request).await?
                }
                looked => looked?,
            }
        } else {
            self.queue(request).await?
        };
        let (facts, plan_version) = decided;
        let catalog = self.app.plans.version(plan_version, &self.app.store).await?;
        Ok(answer(&facts, &catalog, &self.app.links))
    }

    /// How many more requests the queue can take.
    pub fn room(&self) -> usize {
        self.queue.capacity()
    }

    async fn queue(&self, request: Request) -> Result<Decided, GateError> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Waiting { request, reply }).map_err(|_| GateError::Overloaded)?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(decided)) => decided,
            // The writer drops a reply only if it panicked over the batch.
            Ok(Err(_)) | Err(_) => Err(GateError::Unavailable(None)),
        }
    }

    /// Decides without counting and without the writer.
    async fn look(&self, request: &Request) -> Result<Decided, GateError> {
        let (plan_version, catalog) = self.app.plans.active();
        let customer = self.app.store.customer(&request.customer_id).await?;
        let customer = customer.ok_or(GateError::UnknownCustomer)?;
        if !catalog.features.contains_key(&request.feature_id) {
            return Err(GateError::UnknownFeature);
        }
        let now = self.app.clock.now();
        let period = customer.tier.cycle.period_at(now);
        let counter = self
            .app
            .store
            .counter(&CounterKey {
                customer_id: customer.id.clone(),
                feature_id: request.feature_id.clone(),
                series: customer.tier.cycle.series,
                period_start: period.start,
            })
            .await?;
        let entitlement = customer.tier.entitlement(&catalog, request.feature_id.as_str(), now);
        let verdict =
            decide(entitlement, counter.usage, counter.reserved, request.value, request.intent);
        let facts = Facts {
            customer_id: customer.id.clone(),
            feature_id: request.feature_id.clone(),
            plan_id: customer.tier.plan(&catalog).map(|plan| plan.id.clone()),
            intent: request.intent,
            asked: request.value,
            counted: 0,
            reason: verdict.reason,
            usage: counter.usage,
            reserved: counter.reserved,
            period,
            decided_at: now,
            event_id: None,
        };
        Ok((facts, plan_version))
    }
}

/// The writer: one batch after another until nobody can ask any more.
async fn write(app: App, mut waiting: mpsc::Receiver<Waiting>) {
    let app = Arc::new(app);
    let mut taken = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut taken, BATCH).await > 0 {
        metrics::histogram!("tollgate_gate_batch_size").record(taken.len() as f64);
        let (requests, replies): (Vec<_>, Vec<_>) =
            taken.drain(..).map(|w| (w.request, w.reply)).unzip();
        let app = app.clone();
        // A task of its own, so that a panic costs this batch its answers and not the daemon its
        // gate.
        let batch = tokio::spawn(async move { batch::run(&app, &requests).await });
        match batch.await {
            Ok(results) => {
                for (reply, result) in replies.into_iter().zip(results) {
                    // A caller that hung up does not want its answer.
                    let _ = reply.send(result);
                }
            }
            Err(panic) => tracing::error!(%panic, "a batch of the gate's writer failed"),
        }
    }
}
