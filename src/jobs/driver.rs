//! The loop around each job: wait for its time or a nudge, take its lease, run a step, note how it
//! went. A step that panics ends that step and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::tz::TimeZone;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::ToSchema;

use super::{Job, Progress, Schedule};
use crate::app::App;
use crate::clock::Timestamp;

/// How long a replica may hold a job; a dead one's job is taken over after this.
const LEASE: Duration = Duration::from_secs(60);

/// How a job's last run went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobStatus {
    pub job: &'static str,
    #[schema(required)]
    pub last_run_at: Option<Timestamp>,
    pub ok: bool,
    #[schema(required)]
    pub note: Option<String>,
}

/// The running jobs. Clones watch the same ones.
#[derive(Clone, Default)]
pub struct Jobs {
    status: Arc<Mutex<HashMap<Job, JobStatus>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    /// Starts a loop for each job.
    pub fn start(app: &App) -> Self {
        let jobs = Self::default();
        for job in Job::ALL {
            let (jobs, app) = (jobs.clone(), app.clone());
            jobs.tasks.clone().spawn(async move { jobs.run(job, &app).await });
        }
        jobs
    }

    /// Lets running steps end and starts no more.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How each job's last run went.
    pub fn status(&self) -> Vec<JobStatus> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let never =
            |job: Job| JobStatus { job: job.name(), last_run_at: None, ok: true, note: None };
        Job::ALL
            .into_iter()
            .map(|job| status.get(&job).cloned().unwrap_or_else(|| never(job)))
            .collect()
    }

    async fn run(&self, job: Job, app: &App) {
        let never = Notify::new();
        let nudge = match job {
            Job::ProcessInbox => &app.nudges.inbox,
            Job::PushMeterEvents => &app.nudges.meter_events,
            _ => &never,
        };
        loop {
            let due_at = next_run(&job.schedule(app), app.clock.now());
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = app.clock.sleep_until(due_at) => {}
                () = nudge.notified() => {}
            }
            while !self.stop.is_cancelled() && self.run_once(job, app).await {}
        }
    }

    /// Answers whether there is more to do at once.
    async fn run_once(&self, job: Job, app: &App) -> bool {
        let now = app.clock.now();
        let lease = format!("job:{}", job.name());
        if !job.is_per_replica() {
            match app.store.take_lease(&lease, &app.replica_id, now, LEASE).await {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    tracing::error!(job = job.name(), %error, "a job could not take its lease");
                    return false;
                }
            }
        }
        let step = tokio::spawn({
            let app = app.clone();
            async move { job.step(&app).await }
        });
        let outcome = match step.await {
            Ok(outcome) => outcome,
            Err(panic) => Err(anyhow::anyhow!("the step failed: {panic}")),
        };
        // Kept, it would stop the nudges of the replica that has just made work for this job.
        if !job.is_per_replica()
            && let Err(error) = app.store.release_lease(&lease, &app.replica_id).await
        {
            tracing::warn!(job = job.name(), %error, "a job's lease was not given back; it expires");
        }
        self.note(job, now, outcome)
    }

    fn note(&self, job: Job, now: Timestamp, outcome: anyhow::Result<Progress>) -> bool {
        let (ok, note, more) = match outcome {
            Ok(progress) => (true, progress.note, progress.more),
            Err(error) => (false, Some(format!("{error:#}")), false),
        };
        let name = job.name();
        let before =
            self.status().into_iter().find(|status| status.job == name).and_then(|s| s.note);
        if !ok && before != note {
            // The same failure at every tick is said once; the status and the metric go on.
            tracing::error!(job = name, error = note, "a job's step failed");
        }
        metrics::counter!("tollgate_job_runs_total", "job" => name, "ok" => if ok { "true" } else { "false" })
            .increment(1);
        let status = JobStatus { job: name, last_run_at: Some(now), ok, note };
        self.status.lock().unwrap_or_else(PoisonError::into_inner).insert(job, status);
        more
    }
}

fn next_run(schedule: &Schedule, now: Timestamp) -> Timestamp {
    match schedule {
        Schedule::Every(interval) => now.plus(*interval),
        Schedule::Cron(expression) => next_tick(expression, now),
    }
}

/// The first moment after `now` that a cron expression names, in UTC. The plans file has been
/// checked, so an expression that names none is one like the 30th of February: an hour later is
/// as good as any time to look again.
fn next_tick(expression: &str, now: Timestamp) -> Timestamp {
    let parsed: Option<Cron> =
        CronParser::builder().seconds(Seconds::Optional).build().parse(expression).ok();
    parsed
        .and_then(|cron| {
            cron.find_next_occurrence(&now.to_jiff().to_zoned(TimeZone::UTC), false).ok()
        })
        .map_or(now.plus(Duration::from_secs(3600)), |next| Timestamp::from_jiff(next.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_follow_cron_in_utc() {
        let now: Timestamp = "2026-11-05T10:04:59Z".parse().unwrap();
        assert_eq!(next_tick("*/5 * * * *", now).to_string(), "2026-11-05T10:05:00Z");
        assert_eq!(next_tick("17 * * * *", now).to_string(), "2026-11-05T10:17:00Z");
        assert_eq!(next_tick("*/2 * * * * *", now).to_string(), "2026-11-05T10:05:00Z");
    }
}
