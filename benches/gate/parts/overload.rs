//! Far more callers than the gate has seats for, and then the plug is pulled.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::{self, Callers, Outcome};
use crate::machine;
use crate::progress::Progress;
use crate::request::{CUSTOMERS, check, customer_id};
use crate::server::{Ask, Data, Place, Server};

/// More than the gate's queue takes.
const CONNECTIONS: usize = 6_000;
/// The load ends with the daemon; this is longer.
const NEVER: Duration = Duration::from_secs(600);

#[derive(Debug, Serialize)]
pub struct Overload {
    pub connections: usize,
    pub accepted_per_second: f64,
    /// 503s with a `Retry-After`.
    pub refused: u64,
    /// The longest wait of 99 in a hundred of the accepted.
    pub p99_ms: f64,
    pub peak_mib: f64,
    pub acknowledged: u64,
    /// What the daemon has counted, asked after it was killed and started again.
    pub counted: i64,
    /// Requests that were under way when it was killed: counted or not, nobody was told.
    pub unanswered: u64,
}

impl Overload {
    /// Everything that was acknowledged is there, and nothing is that was not asked for.
    pub fn is_exact(&self) -> bool {
        let least = i64::try_from(self.acknowledged).unwrap_or(i64::MAX);
        let most = least.saturating_add_unsigned(self.unanswered);
        (least..=most).contains(&self.counted)
    }
}

pub fn measure(place: &Place, length: Duration, progress: &Progress) -> Result<Overload> {
    progress.step("overload: starting the daemon");
    let folder = place.folder.join("overload");
    std::fs::create_dir(&folder)?;
    let mut daemon = Server::daemon(&folder, Data::Files(folder.clone()), 1)?;
    let introduced = daemon.introduce(CUSTOMERS)?;
    progress.step(&format!("overload: opening {CONNECTIONS} connections"));
    let callers = daemon.connect(CONNECTIONS)?;
    progress.step("overload: the load, and then kill -9");
    let (outcome, peak_mib) = load_until_killed(&mut daemon, callers, length)?;
    progress.step("overload: starting the daemon again to count");
    let again = Server::daemon(&folder, daemon.kill(), 1)?;
    Ok(Overload {
        connections: CONNECTIONS,
        accepted_per_second: outcome.accepted as f64 / length.as_secs_f64(),
        refused: outcome.refused,
        p99_ms: outcome.percentile_ms(0.99),
        peak_mib,
        acknowledged: introduced + outcome.accepted,
        counted: counted(&again)?,
        unanswered: outcome.hung_up as u64,
    })
}

/// Also the most memory the daemon held before it was killed.
fn load_until_killed(
    daemon: &mut Server,
    callers: Callers,
    length: Duration,
) -> Result<(Outcome, f64)> {
    let pid = daemon.pids().next().context("no process")?;
    machine::forget_peak(pid)?;
    let killer = thread::spawn(move || {
        thread::sleep(length);
        let peak_mib = machine::peak_mib(pid);
        let kill = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        kill.map_err(anyhow::Error::from).and(peak_mib)
    });
    let outcome = daemon.load(Ask::Checks(CUSTOMERS), callers, Duration::ZERO, NEVER)?;
    let peak_mib = killer.join().ok().context("the killer panicked")??;
    Ok((outcome, peak_mib))
}

/// The usage of all customers together, as the daemon says it.
fn counted(daemon: &Server) -> Result<i64> {
    let mut usage = 0;
    for number in 0..CUSTOMERS {
        let id = customer_id(number);
        let body = format!(r#"{{"customer_id":"{id}","feature_id":"ai_runs"}}"#);
        let answer = load::ask_once(daemon.addresses[0], &check(&body))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        usage += answer["balance"]["usage"].as_i64().context("an answer without a usage")?;
    }
    Ok(usage)
}
