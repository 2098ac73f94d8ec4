//! Decisions per second beside what else one could have: see `benches/README.md`, and run it by
//! `scripts/bench`, which brings what it needs.

#![allow(
    clippy::disallowed_methods,
    reason = "a bench reads the wall clock: that is what it is for"
)]

mod database;
mod goals;
mod load;
mod machine;
mod parts;
mod progress;
mod report;
mod request;
mod rivals;
mod sample;
mod seed;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use parts::flat::Size;
use parts::{flat, gate, overload, webhooks};
use progress::Progress;
use report::Report;
use sample::Timing;
use server::{Data, Place, RIVALS, Server};

/// How fast Tollgate decides, beside what else one could have.
#[derive(Debug, Parser)]
struct Args {
    /// One short round of everything, and a large database that is not so large: under two
    /// minutes. To see that all is well, not for numbers.
    #[arg(long)]
    quick: bool,
    /// JSON on standard output, instead of tables.
    #[arg(long)]
    json: bool,
    /// What to measure. All but flat-postgres, which takes minutes, unless given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Whom to measure in the main table. `constant` is always there.
    #[arg(long, value_delimiter = ',', value_parser = RIVALS.map(|(name, _)| name))]
    rivals: Vec<String>,
    /// From how many connections the main table's load comes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    connections: Vec<usize>,
    /// How many customers the large database has.
    #[arg(long, default_value_t = 1_000_000, default_value_if("quick", "true", "20000"))]
    customers: u64,
    /// How many events it holds.
    #[arg(long, default_value_t = 10_000_000, default_value_if("quick", "true", "200000"))]
    events: u64,
    /// Where all data goes: a folder on the disk to be measured.
    #[arg(long)]
    folder: PathBuf,
    /// A PostgreSQL server with fsync on, as a superuser's URL.
    #[arg(long)]
    postgres: String,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Gate,
    Flat,
    FlatPostgres,
    Webhooks,
    Overload,
}

fn main() -> Result<()> {
    // This program is its own rivals too, each in a process of its own.
    if std::env::args().nth(1).is_some_and(|first| first == "rival") {
        return rivals::serve(&rivals::Setting::parse_from(std::env::args().skip(1)));
    }
    measure(&Args::parse())
}

fn measure(args: &Args) -> Result<()> {
    let progress = Progress::begin();
    let folder = tempfile::Builder::new().prefix("run").tempdir_in(&args.folder)?;
    let mut place = Place {
        folder: folder.path().to_owned(),
        postgres: args.postgres.clone(),
        answer: String::new(),
    };
    let timing = timing(args.quick);
    let mut report = Report {
        machine: machine::description(&place.folder),
        rounds: timing.rounds,
        seconds_measured: timing.measured.as_secs_f64(),
        ..Report::default()
    };
    (report.idle_mib, place.answer) = look_at_an_idle_one(&place)?;
    measure_parts(args, &place, timing, &progress, &mut report);
    report.seconds = progress.seconds();
    progress.end();
    if args.json {
        println!("{}", report.json()?);
    } else {
        report.print();
    }
    ensure!(report.failed.is_empty(), "not everything could be measured");
    Ok(())
}

/// A part that fails leaves the others their results.
fn measure_parts(
    args: &Args,
    place: &Place,
    timing: Timing,
    progress: &Progress,
    report: &mut Report,
) {
    let mut failed = Vec::new();
    let wanted =
        |part| args.only.contains(&part) || (args.only.is_empty() && part != Part::FlatPostgres);
    if wanted(Part::Gate) {
        let gate = gate::measure(place, &rivals(args), &args.connections, timing, progress);
        report.gate = kept("gate", gate, &mut failed);
    }
    let size = Size {
        customers: args.customers,
        events: args.events,
        sweep: Duration::from_secs(if args.quick { 3 } else { 60 }),
    };
    for (part, database) in [(Part::Flat, "sqlite"), (Part::FlatPostgres, "postgres")] {
        if wanted(part) {
            let flat = flat::measure(place, database, size, timing, progress);
            report.flat.extend(kept("flat", flat, &mut failed));
        }
    }
    if wanted(Part::Webhooks) {
        let rows = webhooks::measure(place, timing, progress);
        report.webhooks = kept("webhooks", rows, &mut failed).unwrap_or_default();
    }
    if wanted(Part::Overload) {
        let length = Duration::from_secs(if args.quick { 3 } else { 10 });
        let overload = overload::measure(place, length, progress);
        report.overload = kept("overload", overload, &mut failed);
    }
    report.failed = failed;
}

fn kept<T>(part: &str, result: Result<T>, failed: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| failed.push(format!("{part}: {error:#}"))).ok()
}

fn timing(quick: bool) -> Timing {
    let (rounds, warm_up_ms, measured_ms) = if quick { (1, 200, 800) } else { (3, 300, 2000) };
    Timing {
        rounds,
        warm_up: Duration::from_millis(warm_up_ms),
        measured: Duration::from_millis(measured_ms),
    }
}

fn rivals(args: &Args) -> Vec<String> {
    if args.rivals.is_empty() {
        return RIVALS.map(|(name, _)| name.to_owned()).to_vec();
    }
    let mut rivals = args.rivals.clone();
    rivals.push("constant".to_owned()); // all ratios are to it
    rivals
}

/// What a daemon holds in memory that nobody has asked anything, in MiB; and what it answers.
fn look_at_an_idle_one(place: &Place) -> Result<(f64, String)> {
    let folder = place.folder.join("idle");
    std::fs::create_dir(&folder)?;
    let daemon = Server::daemon(&folder, Data::Files(folder.clone()), 1)?;
    std::thread::sleep(Duration::from_secs(1));
    Ok((daemon.sum(machine::resident_mib)?, server::answer_of(&daemon)?))
}
