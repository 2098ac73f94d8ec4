//! What the daemon does on its own, by the clock.
//!
//! A job takes no input: it looks for what is due and does it, so that a lost nudge, a restart and
//! another replica all come to the same. Each has a `step` that tests drive and the loop below
//! merely calls.

mod deliver_notices;
mod driver;
mod process_inbox;
mod prune;
mod reconcile;
mod reload_plans;

use std::time::Duration;

use crate::app::App;
use crate::gate::{expiry, outage, windows};
use crate::sync::{period_end, usage};

pub use driver::{JobStatus, Jobs};

/// The jobs, in the order in which one round of all of them makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    ReloadPlans,
    ProcessInbox,
    CloseWindows,
    PushMeterEvents,
    DeliverNotices,
    Reconcile,
    Expire,
    CountJournal,
    Prune,
    FlushPeriods,
    DrainPeriods,
}

/// What a step did, in one line for people; `more` if it stopped before it was through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    pub done: usize,
    pub more: bool,
    pub note: Option<String>,
}

/// When a job runs.
enum Schedule {
    /// A cron expression from the plans file.
    Cron(String),
    Every(Duration),
}

impl Job {
    pub const ALL: [Self; 11] = [
        Self::ReloadPlans,
        Self::CountJournal,
        Self::ProcessInbox,
        Self::Expire,
        Self::FlushPeriods,
        Self::CloseWindows,
        Self::PushMeterEvents,
        Self::DrainPeriods,
        Self::DeliverNotices,
        Self::Reconcile,
        Self::Prune,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ReloadPlans => "reload_plans",
            Self::ProcessInbox => "process_inbox",
            Self::CloseWindows => "close_windows",
            Self::PushMeterEvents => "push_meter_events",
            Self::DeliverNotices => "deliver_notices",
            Self::Reconcile => "reconcile",
            Self::Expire => "expire",
            Self::CountJournal => "count_journal",
            Self::Prune => "prune",
            Self::FlushPeriods => "flush_periods",
            Self::DrainPeriods => "drain_periods",
        }
    }

    /// Runs the job once. Repeating it when nothing is due does nothing.
    pub async fn step(self, app: &App) -> anyhow::Result<Progress> {
        match self {
            Self::ReloadPlans => reload_plans::step(app).await,
            Self::ProcessInbox => process_inbox::step(app).await,
            Self::CloseWindows => close_windows(app).await,
            Self::PushMeterEvents => push_meter_events(app).await,
            Self::DeliverNotices => deliver_notices::step(app).await,
            Self::Reconcile => reconcile::step(app).await,
            Self::Expire => expire(app).await,
            Self::CountJournal => count_journal(app).await,
            Self::Prune => prune::step(app).await,
            Self::FlushPeriods => flush_periods(app).await,
            Self::DrainPeriods => drain_periods(app).await,
        }
    }

    fn schedule(self, app: &App) -> Schedule {
        let (_, catalog) = app.plans.active();
        match self {
            // The webhook's nudge is what usually wakes it.
            Self::ProcessInbox => Schedule::Every(Duration::from_secs(5)),
            Self::ReloadPlans => Schedule::Every(Duration::from_secs(5)),
            // Units that nobody needs any more should not keep others waiting.
            Self::Expire | Self::CountJournal => Schedule::Every(Duration::from_secs(5)),
            Self::CloseWindows | Self::PushMeterEvents => {
                Schedule::Cron(catalog.schedule.meter_events.clone())
            }
            Self::DeliverNotices => Schedule::Cron(catalog.schedule.notices.clone()),
            Self::Reconcile => Schedule::Cron(catalog.schedule.reconcile.clone()),
            Self::Prune => Schedule::Every(Duration::from_secs(3600)),
            Self::FlushPeriods => Schedule::Every(Duration::from_secs(1)),
            Self::DrainPeriods => Schedule::Every(Duration::from_secs(60)),
        }
    }

    /// Whether every replica has to run it for itself, or may: to look every second costs less than a
    /// lease, which is taken only where there is something to do.
    fn is_per_replica(self) -> bool {
        matches!(self, Self::ReloadPlans | Self::CountJournal | Self::FlushPeriods)
    }
}

async fn count_journal(app: &App) -> anyhow::Result<Progress> {
    Ok(Progress { done: outage::count_journal(app).await?, more: false, note: None })
}

async fn expire(app: &App) -> anyhow::Result<Progress> {
    let (holds, quotas) = (expiry::expire_holds(app).await?, expiry::end_quotas(app).await?);
    let at_once = usize::try_from(expiry::AT_ONCE)?;
    Ok(Progress { done: holds + quotas, more: holds.max(quotas) >= at_once, note: None })
}

async fn close_windows(app: &App) -> anyhow::Result<Progress> {
    let done = windows::close_due(app).await?;
    if done > 0 {
        app.nudges.meter_events.notify_one();
    }
    let more = i64::try_from(done).is_ok_and(|done| done >= windows::AT_ONCE);
    Ok(Progress { done, more, note: None })
}

async fn flush_periods(app: &App) -> anyhow::Result<Progress> {
    let sent = period_end::flush(app).await?;
    Ok(Progress { done: sent.delivered, more: sent.more, note: None })
}

async fn drain_periods(app: &App) -> anyhow::Result<Progress> {
    let sent = period_end::drain(app).await?;
    Ok(Progress { done: sent.delivered, more: sent.more, note: None })
}

async fn push_meter_events(app: &App) -> anyhow::Result<Progress> {
    if app.stripe.is_none() {
        return Ok(Progress {
            note: Some("no Stripe key is configured".to_owned()),
            ..Progress::default()
        });
    }
    // Closing has the same times and may be another replica's: what closes now goes out now. A
    // window that cannot be closed keeps nothing else here.
    let closed = windows::close_due(app).await;
    let sent = usage::send_due(app).await?;
    closed?;
    let note = match (sent.paused, sent.parked) {
        (true, _) => Some("paused: Stripe refuses our key or does not take usage now".to_owned()),
        (false, 0) => None,
        (false, parked) => Some(format!("{parked} parked")),
    };
    Ok(Progress { done: sent.delivered, more: sent.more, note })
}
