//! The writer: one batch after another until nobody can ask any more.
//!
//! While one batch is on its way to the disk, the next is decided on what the books will say then,
//! and written as soon as that has landed; nobody is answered before its own has. This needs no
//! transaction until everything is decided: if the write fails, or somebody else turns out to have
//! changed one of the customers meanwhile, what was decided is thrown back and decided again in one,
//! and so is what was decided upon it. What the books do not know is decided in a transaction from the
//! start. On PostgreSQL the statement that writes finds out itself whether another replica has changed
//! something; where that happens often, nothing is decided ahead for a while.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::batch::{self, Batch, Writes};
use super::books::Books;
use super::request::Ask;
use super::{Decided, GateError, Replier, Waiting, outage};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::store::{Line, StoreError};

/// How many a writer takes into one transaction.
const BATCH: usize = 1024;
/// A batch is decided as of one moment. Who comes later than this after it waits for the next, be
/// the disk ever so slow: meanwhile a period may have ended.
const MOMENT: Duration = Duration::from_secs(1);

/// After how many batches at most it is tried again to decide ahead.
const MOST_CAUTION: u32 = 256;

type Results = Vec<Result<Decided, GateError>>;

/// A batch that is being gathered.
#[derive(Default)]
struct Next {
    asks: Vec<Ask>,
    replies: Vec<Replier>,
    /// Whether it is decided already; then it has a result for each.
    ahead: bool,
    results: Results,
}

/// A batch that is being written.
struct Flight {
    /// It goes on whenever the writer waits. As a task of its own it would wait for the runtime twice
    /// per batch, which was measured to cost a quarter of the decisions per second on PostgreSQL.
    /// `Err` if it panics.
    flown: BoxFuture<'static, std::thread::Result<Flown>>,
    replies: Vec<Replier>,
    results: Results,
    decided_at: Timestamp,
}

/// What became of it.
struct Flown {
    asks: Vec<Ask>,
    /// Whom others had changed before it was written; everyone, if that is not known.
    changed: Option<HashSet<CustomerId>>,
    written: Result<(), Refused>,
}

enum Refused {
    /// It was decided on what is not true any more.
    Outdated,
    /// The same, as another replica has changed it.
    Overtaken,
    /// A connection was lost that may have died long before, or taken these runs with it. Nobody was
    /// answered, so they are decided once more, with what they are known by looked up.
    InDoubt,
    Store(StoreError),
}

struct Writer {
    app: App,
    line: Line,
    /// What is decided ahead, with the books.
    batch: Batch,
    next: Next,
    flight: Option<Flight>,
    /// How many there were in the last batch.
    last: usize,
    caution: Caution,
}

/// Where replicas have customers in common, one that decides ahead is often too late. So after each
/// batch that was, more are decided in a transaction at once, twice as many each time.
#[derive(Default)]
struct Caution {
    /// How many batches are yet to be decided so.
    batches: u32,
    last: u32,
}

impl Caution {
    fn was_too_late(&mut self) {
        self.last = (self.last * 2).clamp(1, MOST_CAUTION);
        self.batches = self.last;
    }

    fn was_in_time(&mut self) {
        self.last /= 2;
    }

    fn has_waited(&mut self) {
        self.batches = self.batches.saturating_sub(1);
    }
}

/// Answers whoever asks; ends when nobody can any more and everyone is answered.
pub(super) async fn write(app: App, line: Line, mut queue: mpsc::Receiver<Waiting>) {
    let mut writer = Writer {
        batch: Batch::ahead(&app, Books::kept()),
        app,
        line,
        next: Next::default(),
        flight: None,
        last: 0,
        caution: Caution::default(),
    };
    let mut taken = Vec::with_capacity(BATCH);
    let mut waiting = VecDeque::new();
    let mut open = true;
    while open || writer.is_busy() || !waiting.is_empty() {
        waiting.extend(taken.drain(..));
        writer.admit(&mut waiting);
        if writer.flight.is_none() && !writer.next.asks.is_empty() {
            writer.launch().await;
            continue;
        }
        let room = if open && waiting.is_empty() { writer.room(queue.len()) } else { 0 };
        let landed = tokio::select! {
            biased;
            flown = writer.landed(), if writer.flight.is_some() => Some(flown),
            count = queue.recv_many(&mut taken, room), if room > 0 => {
                open = count > 0;
                None
            }
            else => None,
        };
        if let Some(flown) = landed {
            writer.land(flown).await;
        }
    }
}

impl Writer {
    fn is_busy(&self) -> bool {
        self.flight.is_some() || !self.next.asks.is_empty()
    }

    /// How many more the next batch takes: half of those who are about. While these are written,
    /// the others' answers are on their way and their next questions come in. Taking all leaves
    /// either the disk or the network idle.
    fn room(&self, queued: usize) -> usize {
        let gathered = self.next.asks.len();
        let half = (self.last + gathered + queued).div_ceil(2).clamp(1, BATCH);
        half.saturating_sub(gathered)
    }

    /// Takes those who wait into the next batch, as far as they fit into it, and decides it if
    /// that can be done ahead.
    fn admit(&mut self, waiting: &mut VecDeque<Waiting>) {
        let now = self.app.clock.now();
        if self.next.asks.is_empty() && !waiting.is_empty() {
            self.batch.begin(now);
            self.next.ahead = self.caution.batches == 0
                && !self.batch.books.doubts_keys()
                && waiting.iter().all(|waiting| self.batch.knows(&waiting.ask));
        }
        while let Some(Waiting { ask, reply }) = waiting.pop_front() {
            if self.next.ahead {
                if !self.batch.knows(&ask) || now.since(self.batch.now) > MOMENT {
                    waiting.push_front(Waiting { ask, reply });
                    return;
                }
                // A panic costs one its answer, and not the daemon its gate.
                let decided = catch_unwind(AssertUnwindSafe(|| self.batch.decide_on(&ask)));
                let Ok(result) = decided else {
                    tracing::error!("a decision of the gate's writer failed");
                    self.throw_all_back();
                    continue;
                };
                self.next.results.push(result);
            }
            self.next.asks.push(ask);
            self.next.replies.push(reply);
        }
    }

    /// Sends the next batch on its way.
    async fn launch(&mut self) {
        if self.app.outages.lasts() {
            return self.turn_away();
        }
        let Next { asks, replies, ahead, results } = std::mem::take(&mut self.next);
        self.last = asks.len();
        metrics::histogram!("tollgate_gate_batch_size").record(asks.len() as f64);
        if !ahead {
            return self.run(asks, replies).await;
        }
        let decided_at = self.batch.now;
        let writes = self.batch.close();
        self.batch.books.age();
        let flight = fly(self.app.clone(), self.line.clone(), writes, asks);
        let flown = AssertUnwindSafe(flight).catch_unwind().boxed();
        self.flight = Some(Flight { flown, replies, results, decided_at });
    }

    /// Answers, while the database is away, that nothing was tried. To try takes so long that all
    /// who wait would give up one after another, not knowing whether they were counted.
    fn turn_away(&mut self) {
        self.throw_all_back();
        let replies = std::mem::take(&mut self.next).replies;
        let results = replies.iter().map(|_| Err(GateError::NotTaken)).collect();
        answer(replies, results);
    }

    /// Decides in a transaction.
    async fn run(&mut self, asks: Vec<Ask>, replies: Vec<Replier>) {
        self.caution.has_waited();
        let (app, line, books) = (self.app.clone(), self.line.clone(), self.batch.books.lend());
        // A task of its own, so that a panic costs this batch its answers and not the daemon its
        // gate.
        let task = tokio::spawn(async move { batch::run(&app, &line, books, &asks).await });
        match task.await {
            Ok((books, results)) => {
                self.batch.books = books;
                answer(replies, results);
            }
            Err(panic) => tracing::error!(%panic, "a batch of the gate's writer failed"),
        }
    }

    async fn landed(&mut self) -> std::thread::Result<Flown> {
        match &mut self.flight {
            Some(flight) => (&mut flight.flown).await,
            None => std::future::pending().await,
        }
    }

    async fn land(&mut self, flown: std::thread::Result<Flown>) {
        let Some(Flight { replies, results, decided_at, .. }) = self.flight.take() else { return };
        let Ok(Flown { asks, changed, written }) = flown else {
            tracing::error!("a batch of the gate's writer failed");
            return self.throw_all_back();
        };
        outage::forget(&self.app, changed.as_ref());
        let Err(refused) = written else {
            self.caution.was_in_time();
            outage::remember_all(&self.app, &self.batch.books, decided_at, &results);
            self.app.outages.ended();
            answer(replies, results);
            return self.forget(changed);
        };
        self.throw_all_back();
        match &refused {
            Refused::Outdated => {}
            Refused::Overtaken => self.caution.was_too_late(),
            Refused::InDoubt => self.batch.books.doubt_keys(),
            Refused::Store(error) if error.is_duplicate() => self.batch.books.doubt_keys(),
            Refused::Store(error) if error.asks_for_retry() => {}
            Refused::Store(error) => {
                return answer(replies, batch::refuse_all(&self.app, error, asks.len()));
            }
        }
        self.run(asks, replies).await;
    }

    /// Forgets whom others have changed, and throws back what was decided on them.
    fn forget(&mut self, changed: Option<HashSet<CustomerId>>) {
        let concerned = match &changed {
            None => true,
            Some(ids) => !ids.is_empty() && concerns(&self.next.asks, ids),
        };
        if self.next.ahead && concerned {
            self.throw_back();
            let asks = self.next.asks.iter();
            let theirs = asks.filter_map(customer_of).cloned().collect();
            self.batch.books.forget(Some(theirs));
        }
        self.batch.books.forget(changed);
    }

    /// What was decided and not written is known nowhere, nor what was decided upon it.
    fn throw_all_back(&mut self) {
        self.throw_back();
        self.batch.books.clear();
    }

    fn throw_back(&mut self) {
        self.batch.close();
        self.next.ahead = false;
        self.next.results.clear();
    }
}

/// Writes what was decided, if it still holds.
async fn fly(app: App, line: Line, writes: Writes, asks: Vec<Ask>) -> Flown {
    let mut tx = match app.store.hold(&line).await {
        Ok(tx) => tx,
        Err(error) => {
            let written = Err(Refused::Store(error));
            return Flown { asks, changed: Some(HashSet::new()), written };
        }
    };
    let changed = tx.take_changed();
    let holds = changed.as_ref().is_some_and(|ids| ids.is_empty() || !concerns(&asks, ids))
        && app.plans.active().0 == writes.plan_version;
    let written = match holds {
        true => match writes.commit(&app.store, tx, &line).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refused::Overtaken),
            Err(error) if writes.are_runs_alone() && is_in_doubt(&app, &error) => {
                Err(Refused::InDoubt)
            }
            Err(error) => Err(Refused::Store(error)),
        },
        false => Err(Refused::Outdated),
    };
    Flown { asks, changed, written }
}

/// Whether a database that is there may have taken what was sent to it. What SQLite could not write is
/// not written.
fn is_in_doubt(app: &App, error: &StoreError) -> bool {
    !app.store.is_ours_alone() && error.is_outage() && !error.asks_for_retry()
}

fn concerns(asks: &[Ask], changed: &HashSet<CustomerId>) -> bool {
    asks.iter().filter_map(customer_of).any(|id| changed.contains(id))
}

/// Whom a run is of. Nothing else is decided ahead.
fn customer_of(ask: &Ask) -> Option<&CustomerId> {
    match ask {
        Ask::Run(request) => Some(&request.customer_id),
        Ask::Settle(_) | Ask::Journalled(_) => None,
    }
}

fn answer(replies: Vec<Replier>, results: Results) {
    for (reply, result) in replies.into_iter().zip(results) {
        // A caller that hung up does not want its answer.
        let _ = reply.send(result);
    }
}
