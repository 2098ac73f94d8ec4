//! All that was found, as tables for people and as JSON.

use serde::Serialize;

use crate::goals::{Goal, goals};
use crate::parts::flat::Flat;
use crate::parts::gate::Gate;
use crate::parts::overload::Overload;
use crate::sample::Row;
use crate::server::RIVALS;

/// The parts that were not asked for are not there.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub machine: String,
    pub seconds: f64,
    pub rounds: usize,
    pub seconds_measured: f64,
    /// Of the daemon on SQLite that nobody has asked anything yet.
    pub idle_mib: f64,
    pub gate: Option<Gate>,
    pub flat: Vec<Flat>,
    pub webhooks: Vec<Row>,
    pub overload: Option<Overload>,
    /// What could not be measured, and why.
    pub failed: Vec<String>,
}

impl Report {
    /// # Errors
    /// None that happen: there is nothing in it that JSON cannot say.
    pub fn json(&self) -> anyhow::Result<String> {
        let mut report = serde_json::to_value(self)?;
        report["goals"] = serde_json::to_value(goals(self))?;
        Ok(serde_json::to_string_pretty(&report)?)
    }

    pub fn print(&self) {
        println!("{}", self.machine);
        println!(
            "medians of {} interleaved rounds of {} s; ratios are taken within a round",
            self.rounds, self.seconds_measured
        );
        if let Some(gate) = &self.gate {
            print_gate(gate);
        }
        for flat in &self.flat {
            println!("\na large database on {}\n", flat.database);
            table(&flat.rows);
            println!("\n{} customers known: at most {:.0} MiB", flat.known, flat.peak_mib);
        }
        if !self.webhooks.is_empty() {
            println!("\nwebhooks of 4 KB, verified and stored before they are acknowledged\n");
            table(&self.webhooks);
        }
        if let Some(overload) = &self.overload {
            print_overload(overload);
        }
        print_goals(&goals(self));
        for failure in &self.failed {
            println!("\nFAILED: {failure}");
        }
        println!("\n{:.0} seconds in all", self.seconds);
    }
}

fn print_gate(gate: &Gate) {
    println!("\nruns decided and durable before they are answered\n");
    table(&gate.rows);
    println!(
        "\nfdatasync of 4 KB on this disk: median {:.2} ms, p99 {:.2} ms",
        gate.fsync_p50_ms, gate.fsync_p99_ms
    );
    println!("\nan answered run survives a power cut by\n");
    let measured = |name: &str| gate.rows.iter().any(|row| row.name == name);
    for (name, durability) in RIVALS.into_iter().filter(|(name, _)| measured(name)) {
        println!("{name:<22}{durability}");
    }
    println!("\n{:<22}{:>10}{:>14}", "stored", "events", "bytes/event");
    for stored in &gate.stored {
        println!("{:<22}{:>10}{:>14.0}", stored.name, stored.events, stored.bytes_per_event);
    }
}

fn table(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default().max(20);
    println!(
        "{:<width$}{:>7}{:>11}{:>8}{:>9}{:>9}{:>10}   cores: server  load  idle",
        "", "conns", "per second", "ratio", "p50 ms", "p99 ms", "peak MiB"
    );
    let mut connections = 0;
    for row in rows {
        if connections != 0 && connections != row.connections {
            println!();
        }
        connections = row.connections;
        let sample = &row.sample;
        println!(
            "{:<width$}{connections:>7}{:>11.0}{:>8.3}{:>9.2}{:>9.2}{:>10.0}{:>16.2}{:>6.2}{:>6.2}",
            row.name,
            sample.per_second,
            sample.ratio,
            sample.p50_ms,
            sample.p99_ms,
            sample.peak_mib,
            sample.server_cores,
            sample.load_cores,
            sample.idle_cores,
        );
    }
}

fn print_overload(overload: &Overload) {
    println!("\n{} connections at once, then kill -9\n", overload.connections);
    println!(
        "{:.0} accepted per second, p99 {:.0} ms; {} refused with 503 and Retry-After; at most {:.0} MiB",
        overload.accepted_per_second, overload.p99_ms, overload.refused, overload.peak_mib
    );
    println!(
        "{} acknowledged, {} counted after the restart, {} were under way",
        overload.acknowledged, overload.counted, overload.unanswered
    );
}

fn print_goals(goals: &[Goal]) {
    println!("\n{:<68}{:>14}{:>14}", "goal", "wanted", "found");
    for goal in goals {
        let Some(reached) = goal.reached else { continue };
        let verdict = if reached { "reached" } else { "NOT REACHED" };
        println!("{:<68}{:>14}{:>14}  {verdict}", goal.what, goal.wanted, goal.found);
    }
    for goal in goals.iter().filter(|goal| goal.reached.is_none()) {
        println!("not measured: {}", goal.what);
    }
}
