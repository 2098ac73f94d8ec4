//! One measurement of one server, and medians of several.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::machine;
use crate::progress::Progress;
use crate::server::{Ask, Server};

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub rounds: usize,
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What a server did under a load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    pub per_second: f64,
    /// To the first contender of the same round.
    pub ratio: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// The most memory that the server's processes held.
    pub peak_mib: f64,
    /// Processor time per second: the server's, the load generator's, and what was left.
    /// The rest of the machine's cores is PostgreSQL's and the kernel's.
    pub server_cores: f64,
    pub load_cores: f64,
    pub idle_cores: f64,
}

/// A line of a table: medians, each of its own column.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    pub connections: usize,
    #[serde(flatten)]
    pub sample: Sample,
}

/// A server, and what is asked of it.
pub struct Contender {
    pub name: String,
    /// Its place among the servers.
    pub server: usize,
    pub ask: Ask,
}

/// Measures all contenders in turn, each round beginning with another one; at the end of each round
/// `after_round`.
pub fn rounds(
    servers: &mut [Server],
    contenders: &[Contender],
    connections: &[usize],
    timing: Timing,
    progress: &Progress,
    mut after_round: impl FnMut() -> Result<()>,
) -> Result<Vec<Row>> {
    let mut samples = vec![Vec::new(); connections.len() * contenders.len()];
    for round in 1..=timing.rounds {
        for (c, connections) in connections.iter().enumerate() {
            let mut measured = Vec::with_capacity(contenders.len());
            for turn in 0..contenders.len() {
                let k = (turn + round - 1) % contenders.len();
                let contender = &contenders[k];
                progress.step(&format!(
                    "round {round} of {}: {connections:>3} connections: {}",
                    timing.rounds, contender.name
                ));
                let server = &mut servers[contender.server];
                measured.push((k, measure(server, contender.ask, *connections, timing)?));
            }
            let base = measured.iter().find(|(k, _)| *k == 0);
            let base = base.map_or(f64::NAN, |(_, sample)| sample.per_second);
            for (k, sample) in measured {
                let ratio = sample.per_second / base;
                samples[c * contenders.len() + k].push(Sample { ratio, ..sample });
            }
        }
        after_round()?;
    }
    let cells = connections.iter().flat_map(|c| contenders.iter().map(move |k| (*c, k)));
    let rows = cells.zip(samples).map(|((connections, contender), samples)| Row {
        name: contender.name.clone(),
        connections,
        sample: medians(&samples),
    });
    Ok(rows.collect())
}

fn measure(server: &mut Server, ask: Ask, connections: usize, timing: Timing) -> Result<Sample> {
    server.pids().try_for_each(machine::forget_peak)?;
    let own = std::process::id();
    let spent = |server: &Server| -> Result<[f64; 3]> {
        let own = machine::cpu_seconds(own)?;
        Ok([server.sum(machine::cpu_seconds)?, own, machine::idle_seconds()?])
    };
    let callers = server.connect(connections)?;
    let before = spent(server)?;
    let began = Instant::now();
    let outcome = server.load(ask, callers, timing.warm_up, timing.measured)?;
    let seconds = began.elapsed().as_secs_f64();
    let after = spent(server)?;
    ensure!(outcome.hung_up == 0, "{} connections were closed", outcome.hung_up);
    ensure!(outcome.refused == 0, "{} requests were refused", outcome.refused);
    let [server_cores, load_cores, idle_cores] =
        [0, 1, 2].map(|k| (after[k] - before[k]) / seconds);
    Ok(Sample {
        per_second: outcome.latencies_us.len() as f64 / timing.measured.as_secs_f64(),
        ratio: f64::NAN,
        p50_ms: outcome.percentile_ms(0.5),
        p99_ms: outcome.percentile_ms(0.99),
        peak_mib: server.sum(machine::peak_mib)?,
        server_cores,
        load_cores,
        idle_cores,
    })
}

fn medians(samples: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
    Sample {
        per_second: of(|sample| sample.per_second),
        ratio: of(|sample| sample.ratio),
        p50_ms: of(|sample| sample.p50_ms),
        p99_ms: of(|sample| sample.p99_ms),
        peak_mib: of(|sample| sample.peak_mib),
        server_cores: of(|sample| sample.server_cores),
        load_cores: of(|sample| sample.load_cores),
        idle_cores: of(|sample| sample.idle_cores),
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
