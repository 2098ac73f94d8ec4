//! The gate: may this customer run?
//!
//! Requests that count queue to a writer, which takes all that wait, decides them in order with the
//! pure rule of `domain::decision`, and commits them as one transaction before it answers. An idle
//! gate commits at once; a busy one batches while the last commit is in flight. The queue is
//! bounded: when it is full, callers are told to come back instead of waiting without end.
//!
//! SQLite has one writer. PostgreSQL commits side by side, so there are a few, each with the
//! customers that hash to it; rows are locked all the same, because replicas have writers too.
//!
//! The gate never calls Stripe, and a question that counts nothing never waits for the writer.

mod request;
mod books;
mod load;
mod batch;
mod settle;
mod writer;
pub mod expiry;
pub mod outage;
pub mod quotas;
pub mod terms;
pub mod windows;
pub mod turn;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::domain::answer::{Answer, Facts, HoldState, Remark, answer};
use crate::domain::credit::CreditError;
use crate::domain::customer::Customer;
use crate::domain::decision::{Intent, decide};
use crate::domain::ids::FeatureId;
use crate::domain::plan::Catalog;
use crate::domain::quota::Quotas;
use crate::store::usage::CounterKey;
use crate::store::{Line, StoreError};
use batch::particular;
use request::Ask;

pub use load::create_customer;
pub use request::{Request, RequestKey, Said, Settlement};

/// How many requests may wait for one writer.
const QUEUE: usize = 4096;
/// How many batches of callers may be in the queues at once. At a thousand runs each they leave half
/// of the shortest to those who ask for one.
const BATCHES: usize = 2;
/// How long a caller waits for its answer. A database that does not answer at all must not hold
/// everyone for as long as its connection takes to die.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("there is no such customer")]
    UnknownCustomer,
    #[error("the plans file has no such feature")]
    UnknownFeature,
    #[error("there is no such reservation")]
    UnknownReservation,
    #[error("this idempotency key was used with another request")]
    KeyReused,
    /// The reservation has an end already, and it is another one.
    #[error("the reservation is {} already", .0.as_str())]
    Settled(HoldState),
    #[error(transparent)]
    Credits(#[from] CreditError),
    /// The queue is full: nothing was counted.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The database would not take it, and nothing is under way any more. It may have been counted
    /// all the same, if what was lost is the database's answer.
    #[error("the database cannot answer")]
    NotTaken,
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

type Reply = oneshot::Receiver<Result<Decided, GateError>>;

type Replier = oneshot::Sender<Result<Decided, GateError>>;

struct Waiting {
    ask: Ask,
    reply: Replier,
}

/// The way to the gate. Clones lead to the same writers.
#[derive(Clone)]
pub struct Gate {
    app: App,
    queues: Arc<[mpsc::Sender<Waiting>]>,
    /// The turns of callers' batches.
    batches: Arc<Semaphore>,
}

impl Gate {
    /// Starts the writers. They end, having answered everyone, when the last handle is dropped.
    pub fn start(app: App) -> (Self, JoinHandle<()>) {
        let tasks = TaskTracker::new();
        let start = |line: &Line| {
            let (queue, waiting) = mpsc::channel(QUEUE);
            tasks.spawn(writer::write(app.clone(), line.clone(), waiting));
            queue
        };
        let queues = app.store.lines().iter().map(start).collect();
        tasks.close();
        let all = tokio::spawn(async move { tasks.wait().await });
        (Self { app, queues, batches: Arc::new(Semaphore::new(BATCHES)) }, all)
    }

    /// Decides, counts if so asked, and words the answer.
    pub async fn ask(&self, mut request: Request) -> Result<Answer, GateError> {
        self.name(&mut request);
        if let Some(answered) = outage::answered(&self.app, &request) {
            return self.word(answered?).await;
        }
        outage::look_again(&self.app).await;
        let request = Arc::new(request);
        let answer = self.conclude(self.decide_after_all(&request).await, &request).await;
        match answer {
            // The outage was over before this one could be let through in it. A batch leaves that to
            // its caller: one after another, its runs could wait for hours.
            Err(GateError::NotTaken) if !self.app.outages.lasts() => {
                self.word(self.decide_after_all(&request).await?).await
            }
            answer => answer,
        }
    }

    /// Decides once all is counted that waits to be.
    async fn decide_after_all(&self, request: &Arc<Request>) -> Result<Decided, GateError> {
        outage::catch_up(&self.app, request).await?;
        self.decide(request).await
    }

    /// Words a decision; one that the database could not make, the plan may make for an outage.
    async fn conclude(
        &self,
        decision: Result<Decided, GateError>,
        request: &Request,
    ) -> Result<Answer, GateError> {
        let decided = match decision {
            // Where nobody has answered in time, the writer may still be at it.
            Err(error @ (GateError::NotTaken | GateError::Unavailable(Some(_)))) => {
                outage::stand_in(&self.app, request).await.ok_or(error)?
            }
            decided => decided?,
        };
        self.word(decided).await
    }

    /// Gives a run without a key the id that it keeps through all that may happen.
    fn name(&self, request: &mut Request) {
        if request.key.is_none() && request.intent != Intent::Check {
            request.own_id = Some(self.app.entropy.id("evt", self.app.clock.now()));
        }
    }

    async fn decide(&self, request: &Arc<Request>) -> Result<Decided, GateError> {
        if request.intent == Intent::Check && request.key.is_none() {
            match look_to_its_end(&self.app, request).await {
                // Whoever is not known yet is made known by the writer.
                Err(GateError::UnknownCustomer) if request.customer_data.is_some() => {}
                Err(GateError::Unavailable(Some(error))) if error.is_outage() => {
                    // The writer finds out whether the database is away or its readers are busy.
                    let _ = self.enqueue(Ask::Run(request.clone()));
                    return Err(error.into());
                }
                looked => return looked,
            }
        }
        self.queue(Ask::Run(request.clone())).await
    }

    /// Counts many runs, in their order, and answers each by itself.
    ///
    /// # Errors
    /// [`GateError::Overloaded`] when others' batches leave it no turn: then nothing was counted.
    pub async fn ask_all(
        &self,
        requests: Vec<Request>,
    ) -> Result<Vec<Result<Answer, GateError>>, GateError> {
        let turn = tokio::time::timeout(PATIENCE, self.batches.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(GateError::Overloaded) };
        let gate = self.clone();
        // A caller that hangs up leaves its runs in the queue, so its turn must not end before.
        let asked = tokio::spawn(async move {
            let answers = gate.ask_each(requests).await;
            drop(turn);
            answers
        });
        asked.await.map_err(|_| GateError::Unavailable(None))
    }

    async fn ask_each(&self, requests: Vec<Request>) -> Vec<Result<Answer, GateError>> {
        outage::look_again(&self.app).await;
        let mut queued = Vec::with_capacity(requests.len());
        for mut request in requests {
            self.name(&mut request);
            let request = Arc::new(request);
            let waiting = match outage::answered(&self.app, &request) {
                Some(answered) => Ok(already(answered)),
                None => match outage::catch_up(&self.app, &request).await {
                    Ok(()) => self.enqueue(Ask::Run(request.clone())),
                    Err(away) => Err(away),
                },
            };
            queued.push((waiting, request));
        }
        let mut answers = Vec::with_capacity(queued.len());
        let mut patience = std::pin::pin!(tokio::time::sleep(PATIENCE));
        for (waiting, request) in queued {
            let decision = match waiting {
                Ok(answer) => tokio::select! {
                    biased;
                    decided = decided(answer) => decided,
                    () = &mut patience => Err(GateError::Unavailable(None)),
                },
                Err(not_queued) => Err(not_queued),
            };
            answers.push(self.conclude(decision, &request).await);
        }
        answers
    }

    /// Ends a reservation: counts what its run took, or gives the units back.
    pub async fn settle(&self, settlement: Settlement) -> Result<Answer, GateError> {
        outage::look_again(&self.app).await;
        let decided = self.queue(Ask::Settle(settlement)).await?;
        self.word(decided).await
    }

    async fn word(&self, (facts, plan_version): Decided) -> Result<Answer, GateError> {
        let catalog = self.app.plans.version(plan_version, &self.app.store).await?;
        Ok(answer(&facts, &catalog, &self.app.links))
    }

    /// How many more requests the fullest queue can take.
    pub fn room(&self) -> usize {
        self.queues.iter().map(mpsc::Sender::capacity).min().unwrap_or_default()
    }

    async fn queue(&self, ask: Ask) -> Result<Decided, GateError> {
        decided(self.enqueue(ask)?).await
    }

    fn enqueue(&self, ask: Ask) -> Result<Reply, GateError> {
        let (reply, answer) = oneshot::channel();
        let queue = &self.queues[share(&ask, self.queues.len())];
        queue.try_send(Waiting { ask, reply }).map_err(|_| GateError::Overloaded)?;
        Ok(answer)
    }
}

/// A caller that hangs up must not leave a question half-way through the database's answers.
async fn look_to_its_end(app: &App, request: &Arc<Request>) -> Result<Decided, GateError> {
    let (app, request) = (app.clone(), request.clone());
    let looked = tokio::spawn(async move { look(&app, &request).await });
    looked.await.unwrap_or(Err(GateError::Unavailable(None)))
}

/// Decides without counting and without the writer.
async fn look(app: &App, request: &Request) -> Result<Decided, GateError> {
    let (plan_version, active) = app.plans.active();
    let customer = app.store.customer(&request.customer_id).await?;
    let customer = customer.ok_or(GateError::UnknownCustomer)?;
    let terms = terms_of(app, &customer).await?;
    let value = request.units(&active, &terms)?;
    let now = app.clock.now();
    let period = customer.tier.cycle.period_at(now);
    let key = CounterKey {
        customer_id: customer.id.clone(),
        feature_id: request.feature_id.clone(),
        series: customer.tier.cycle.series,
        period_start: period.start,
    };
    let counter = app.store.counter(&key).await?;
    let quotas = quotas_of(app, &customer, &request.feature_id).await?;
    let tier = &customer.tier;
    let feature_id = request.feature_id.as_str();
    let allowance = tier.allowance(&terms, feature_id, &quotas, counter.from_grants, now);
    let entitlement = tier.entitlement(&terms, allowance, now);
    let verdict = decide(entitlement, counter.usage, counter.reserved, value, request.intent);
    let facts = Facts {
        customer_id: customer.id.clone(),
        feature_id: request.feature_id.clone(),
        plan_id: tier.plan(&terms).map(|plan| plan.id.clone()),
        intent: request.intent,
        asked: value,
        counted: 0,
        reason: verdict.reason,
        particular: particular(&customer, allowance, counter.usage),
        usage: counter.usage,
        reserved: counter.reserved,
        period,
        decided_at: now,
        event_id: None,
        hold: None,
        remark: Remark::None,
    };
    Ok((facts, plan_version))
}

/// The reply to a request that need not wait.
fn already(answered: Result<Decided, GateError>) -> Reply {
    let (reply, answer) = oneshot::channel();
    // Its other end is at hand.
    let _ = reply.send(answered);
    answer
}

async fn decided(answer: Reply) -> Result<Decided, GateError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(decided)) => decided,
        // The writer drops a reply only if it panicked over the batch.
        Ok(Err(_)) | Err(_) => Err(GateError::Unavailable(None)),
    }
}

/// The plans file whose limits hold for a customer.
pub async fn terms_of(app: &App, customer: &Customer) -> Result<Arc<Catalog>, StoreError> {
    match customer.terms_version {
        Some(version) => app.plans.version(version, &app.store).await,
        None => Ok(app.plans.active().1),
    }
}

/// What is particular to a customer and feature.
pub async fn quotas_of(
    app: &App,
    customer: &Customer,
    feature_id: &FeatureId,
) -> Result<Quotas, StoreError> {
    if !customer.has_quotas {
        return Ok(Quotas::default());
    }
    let mut quotas = app.store.quotas_of(&customer.id).await?;
    Ok(quotas.remove(&(customer.id.clone(), feature_id.clone())).unwrap_or_default())
}

/// Which of `writers` takes it: all of a customer's runs meet in one batch.
fn share(ask: &Ask, writers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    match ask {
        Ask::Run(request) => request.customer_id.as_str().hash(&mut hasher),
        Ask::Settle(settlement) => settlement.reservation_id.as_str().hash(&mut hasher),
        Ask::Journalled(event) => event.facts.customer_id.as_str().hash(&mut hasher),
    }
    usize::try_from(hasher.finish() % writers as u64).unwrap_or_default()
}
