//! What happens while the database cannot answer.
//!
//! A plan says: by default nobody runs, and callers are told to come back. With `on_outage =
//! "allow"` a customer that was seen before may go on within a stated number of units, and within
//! what it had left when it was last seen. Each such run is written to a journal and synced before
//! its answer, and counted once when the database is back, in the period it was answered in.
//!
//! To ask a database that is away takes long, so one caller at a time does, for all. Everybody else
//! is answered at once from what is known, also who was waiting for a writer when it was found out.
//! A writer turns its queue away untried then, so that nothing which is written down here can be
//! counted from there as well.
//!
//! Whether the database had taken a run before it failed may not be known; so what is counted from
//! the journal is looked up first, like any request that comes twice.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use super::batch;
use super::books::Books;
use super::request::{Ask, Request};
use super::{Decided, GateError};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::answer::{Facts, Remark};
use crate::domain::cost::cost_of_run;
use crate::domain::decision::{Intent, Reason};
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::plan::{Enforcement, OnOutage};
use crate::domain::run::RunFacts;
use crate::store::StoreError;
use crate::store::events::{EventKey, NewEvent};

/// How many journalled runs are counted in one transaction.
const AT_ONCE: usize = 500;
/// How long whoever looks whether the database is back waits to see it.
const LOOK: Duration = Duration::from_secs(2);
/// How long a run waits until the journal, which names its customer, is counted.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Keeps what was just decided, where a customer's plan will want to know it in an outage.
pub(super) fn remember_all(
    app: &App,
    books: &Books,
    now: Timestamp,
    results: &[Result<Decided, GateError>],
) {
    let (_, catalog) = app.plans.active();
    if catalog.plans.iter().all(|plan| plan.on_outage == OnOutage::Deny) {
        return;
    }
    forget(app, app.store.take_told().as_ref());
    for (facts, plan_version) in results.iter().flatten() {
        let Some(account) = books.find(&facts.customer_id) else { continue };
        // Not what was answered long ago or in an outage, or of another period.
        let is_news = facts.decided_at == now
            && facts.remark != Remark::Degraded
            && facts.period == account.customer.tier.cycle.period_at(now);
        // What a run takes is told by the plans in force alone in an outage.
        let kept = account.customer.terms_version.and_then(|version| books.terms.get(&version));
        let feature_id = &facts.feature_id;
        let same_rates =
            kept.is_none_or(|kept| kept.credits.get(feature_id) == catalog.credits.get(feature_id));
        if is_news && same_rates && allowance(app, facts).is_some() {
            app.outages.remember(NewEvent {
                facts: facts.clone(),
                series: account.customer.tier.cycle.series,
                key: EventKey::Own(String::new()),
                entity_id: None,
                plan_version: *plan_version,
                metered: false,
                run: RunFacts::default(),
                cost_picodollars: None,
                properties: None,
            });
        }
    }
}

/// Forgets customers whom others may have changed; everyone, if that is not known.
pub(super) fn forget(app: &App, changed: Option<&HashSet<CustomerId>>) {
    if changed.is_none_or(|changed| !changed.is_empty()) {
        app.outages.forget(changed);
    }
}

/// How many units the plan lets through in an outage.
fn allowance(app: &App, facts: &Facts) -> Option<i64> {
    let (_, catalog) = app.plans.active();
    match catalog.plan(facts.plan_id.as_ref()?.as_str())?.on_outage {
        OnOutage::Allow { units } => Some(units),
        OnOutage::Deny => None,
    }
}

/// The answer to a request that the database could not decide, if the customer's plan lets it
/// through.
pub(super) async fn stand_in(app: &App, request: &Request) -> Option<Decided> {
    let (app, request) = (app.clone(), request.clone());
    let judged = tokio::task::spawn_blocking(move || let_through(&app, &request)).await.ok()?;
    match judged {
        Ok(decided) => decided,
        Err(error) => {
            tracing::error!(%error, "a run cannot be written to the journal of the outage");
            None
        }
    }
}

fn let_through(app: &App, request: &Request) -> io::Result<Option<Decided>> {
    let subject = (request.customer_id.clone(), request.feature_id.clone());
    forget(app, app.store.take_told().as_ref());
    let key = match request.event_key() {
        Some(key) if request.intent != Intent::Check => key,
        _ => return Ok(asked(app, request, &subject)),
    };
    let request_key = key.request_key();
    let entry = app.outages.let_through(&subject, &request_key, |known, drawn| {
        judge(app, request, known, drawn, Some(key))
    })?;
    let same = |entry: &NewEvent| match (&entry.key, &request.key) {
        (EventKey::Request { request_hash, .. }, Some(key)) => *request_hash == key.request_hash,
        _ => true,
    };
    let decided = entry.filter(same).map(|entry| (entry.facts, entry.plan_version));
    metrics::counter!("tollgate_outage_runs_total").increment(u64::from(decided.is_some()));
    Ok(decided)
}

/// The answer to a question that counts nothing, and leaves nothing behind.
fn asked(app: &App, request: &Request, subject: &(CustomerId, FeatureId)) -> Option<Decided> {
    let (known, drawn) = app.outages.last_known(subject)?;
    let event = judge(app, request, &known, drawn, None)?;
    Some((event.facts, event.plan_version))
}

/// What a run was answered in an outage, if it waits to be counted.
pub(super) fn answered(app: &App, request: &Request) -> Option<Result<Decided, GateError>> {
    let key = request.key.as_ref().filter(|_| !app.outages.is_empty())?;
    let event = app.outages.answered(&request.customer_id, &format!("k:{}", key.key))?;
    Some(match event.key.request_hash() == Some(&key.request_hash) {
        true => Ok((event.facts, event.plan_version)),
        false => Err(GateError::KeyReused),
    })
}

/// While an outage lasts, lets one caller now and then see whether it is over; if it is, what the
/// journal holds is counted before anything else.
pub async fn look_again(app: &App) {
    if !app.outages.may_look_at(app.clock.now()) {
        return;
    }
    let app = app.clone();
    // It goes on when the caller does not wait for it any more.
    let look = tokio::spawn(async move {
        // Whoever counts the journal is looking already.
        let Ok(_alone) = app.outages.counting.try_lock() else { return };
        // Should it fail, the outage lasts: nothing more is to be known of it.
        let _ = match app.outages.is_empty() {
            true => count(&app, &[]).await,
            false => count_waiting(&app).await.map(|_| ()),
        };
    });
    let _ = tokio::time::timeout(LOOK, look).await;
}

/// Counts the journal before a customer that it names is decided on again.
///
/// # Errors
/// [`GateError::NotTaken`] while the database is away, or the journal not counted: then the run is
/// not to be tried.
pub(super) async fn catch_up(app: &App, request: &Request) -> Result<(), GateError> {
    if app.outages.lasts() {
        return Err(GateError::NotTaken);
    }
    let subject = (request.customer_id.clone(), request.feature_id.clone());
    if app.outages.is_empty() || app.outages.drawn(&subject) == 0 {
        return Ok(());
    }
    let task = app.clone();
    // A caller that hangs up must not leave a transaction half-way.
    let counted = tokio::spawn(async move {
        let _alone = task.outages.counting.lock().await;
        // Whoever was here before may have found that the database is away again.
        match task.outages.lasts() {
            true => Err(GateError::NotTaken),
            false => count_waiting(&task).await,
        }
    });
    match tokio::time::timeout(CATCH_UP, counted).await {
        Err(_) => {
            app.outages.began(app.clock.now());
            Err(GateError::NotTaken)
        }
        Ok(Ok(Err(GateError::NotTaken))) => Err(GateError::NotTaken),
        // What else can go wrong is with the file, and no reason to keep anybody out.
        Ok(_) => Ok(()),
    }
}

/// What would be written down of the run; `None` if it is not let through.
fn judge(
    app: &App,
    request: &Request,
    known: &NewEvent,
    drawn: i64,
    key: Option<EventKey>,
) -> Option<NewEvent> {
    let now = app.clock.now();
    let (_, catalog) = app.plans.active();
    let facts = &known.facts;
    let counts = match request.intent {
        Intent::Check => false,
        Intent::Consume | Intent::Record => true,
        // What is left is not known well enough to hold it or to count up to it.
        Intent::RecordCapped | Intent::Reserve | Intent::Commit | Intent::Release => return None,
    };
    let value = request.units(&catalog, &catalog).ok()?;
    let plan = catalog.plan(facts.plan_id.as_ref()?.as_str())?;
    let limit = plan.limits.get(&request.feature_id).map(|limit| limit.enforcement);
    let enforcement = facts.particular.map(|own| own.enforcement).or(limit)?;
    let usage = facts.usage.saturating_add(drawn);
    let within = match enforcement {
        Enforcement::Hard { granted } => {
            usage.saturating_add(facts.reserved).saturating_add(value) <= granted
        }
        Enforcement::Soft { .. } | Enforcement::Unlimited => true,
    };
    let allowed = allowance(app, facts).is_some_and(|units| drawn.saturating_add(value) <= units);
    if !(allowed && within && may_run(facts.reason) && facts.period.contains(now)) {
        return None;
    }
    let reason = match enforcement {
        Enforcement::Unlimited => Reason::Unlimited,
        Enforcement::Soft { granted } if usage + value > granted => Reason::OverSoftLimit,
        Enforcement::Soft { .. } | Enforcement::Hard { .. } => Reason::WithinLimit,
    };
    let counted = if counts { value } else { 0 };
    let event_id = key.as_ref().filter(|_| counts).map(|key| key.event_id(&request.customer_id));
    Some(NewEvent {
        facts: Facts {
            intent: request.intent,
            asked: value,
            counted,
            reason,
            usage: usage.saturating_add(counted),
            decided_at: now,
            event_id,
            hold: None,
            remark: Remark::Degraded,
            ..facts.clone()
        },
        series: known.series,
        key: key.unwrap_or(EventKey::Own(String::new())),
        entity_id: request.entity_id.as_ref().map(ToString::to_string),
        plan_version: known.plan_version,
        metered: false,
        run: request.said.run.clone(),
        cost_picodollars: cost_of_run(&catalog.models, &request.said.run, now),
        properties: request.said.properties.clone(),
    })
}

/// Whether the last answer left the gate open but for the balance.
fn may_run(reason: Reason) -> bool {
    reason.allows() || matches!(reason, Reason::LimitReached | Reason::HeldByRunningJobs)
}

/// Counts what the journal holds; answers how many runs that were.
pub async fn count_journal(app: &App) -> Result<usize, GateError> {
    let _alone = app.outages.counting.lock().await;
    count_waiting(app).await
}

/// The same for whoever does so alone.
async fn count_waiting(app: &App) -> Result<usize, GateError> {
    let waiting = app.outages.waiting();
    let mut at_once = AT_ONCE;
    let mut counted = 0;
    while counted < waiting.len() {
        let chunk = &waiting[counted..waiting.len().min(counted + at_once)];
        match count(app, chunk).await {
            Ok(()) => {
                counted += chunk.len();
                on_disk(app.outages.counted(chunk.len()))?;
                tracing::warn!(runs = chunk.len(), "runs of an outage are counted");
            }
            Err(GateError::NotTaken) => return Err(GateError::NotTaken),
            // One of them is at fault: the others are counted one by one.
            Err(_) if chunk.len() > 1 => at_once = 1,
            Err(error) => {
                tracing::error!(
                    customer_id = %chunk[0].facts.customer_id, units = chunk[0].facts.counted, %error,
                    "a run of an outage cannot be counted and is set aside"
                );
                counted += 1;
                on_disk(app.outages.set_aside())?;
            }
        }
    }
    Ok(waiting.len())
}

async fn count(app: &App, chunk: &[NewEvent]) -> Result<(), GateError> {
    let asks: Vec<_> = chunk.iter().map(|entry| Ask::Journalled(Box::new(entry.clone()))).collect();
    let (_, results) = batch::run(app, &app.store.line(), Books::default(), &asks).await;
    results.into_iter().try_for_each(|result| result.map(|_| ()))
}

fn on_disk(written: io::Result<()>) -> Result<(), StoreError> {
    written.map_err(|error| {
        tracing::error!(%error, "the journal of the outage cannot be rewritten");
        StoreError::Unfit("the journal of the outage cannot be rewritten".to_owned())
    })
}
