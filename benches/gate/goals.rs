//! The goals, and whether they were reached.

use serde::Serialize;

use crate::parts::gate::Gate;
use crate::report::Report;
use crate::sample::Sample;

#[derive(Debug, Serialize)]
pub struct Goal {
    pub what: String,
    pub wanted: String,
    pub found: String,
    /// `None` where the part was not measured.
    pub reached: Option<bool>,
}

/// All goals, in the order in which they were set.
pub fn goals(report: &Report) -> Vec<Goal> {
    let mut goals = speed_goals(report.gate.as_ref());
    goals.extend(size_goals(report));
    goals.push(webhook_goal(report));
    goals.extend(overload_goals(report));
    goals
}

fn speed_goals(gate: Option<&Gate>) -> Vec<Goal> {
    let row = |name: &str, connections: usize| -> Option<&Sample> {
        let rows = &gate?.rows;
        let row = rows.iter().find(|row| row.name == name && row.connections == connections);
        row.map(|row| &row.sample)
    };
    // How many times as fast one is as the other, by their ratios within a round.
    let times = |name: &str, other: &str, connections| {
        Some(row(name, connections)?.ratio / row(other, connections)?.ratio)
    };
    let (sqlite, postgres) = ("tollgate-sqlite", "tollgate-postgres");
    let p99_allowed = || {
        let constant = row("constant", 64)?.p99_ms;
        Some(3.0 * constant + 2.0 * gate?.fsync_p99_ms)
    };
    let p99 = |name| row(name, 64).map(|sample| sample.p99_ms);
    vec![
        at_least("SQLite at 64, to the constant server", 0.6, times(sqlite, "constant", 64)),
        at_least("SQLite at 256, to the constant server", 0.6, times(sqlite, "constant", 256)),
        at_least("SQLite at 64, to the bare append-only file", 1.0, times(sqlite, "file", 64)),
        at_least("SQLite at 256, to the bare append-only file", 1.0, times(sqlite, "file", 256)),
        at_least(
            "SQLite at 64, to SQLite with a transaction per request",
            12.0,
            times(sqlite, "sqlite-transaction", 64),
        ),
        at_least(
            "PostgreSQL at 256, to the constant server",
            0.35,
            times(postgres, "constant", 256),
        ),
        at_least(
            "PostgreSQL at 256, to a transaction per request",
            5.0,
            times(postgres, "postgres-transaction", 256),
        ),
        at_least(
            "two replicas on PostgreSQL at 256, to a transaction per request",
            5.0,
            times("tollgate-postgres-2", "postgres-transaction", 256),
        ),
        at_least("SQLite at 64, to node and pg", 20.0, times(sqlite, "node-pg", 64)),
        at_least("SQLite at 64, to Redis with AOF always", 1.5, times(sqlite, "redis-aof", 64)),
        at_most(
            "SQLite's p99 at 64: 3 of the constant server's and 2 fsyncs', ms",
            p99_allowed(),
            p99(sqlite),
        ),
        at_most("PostgreSQL's p99 at 64: the same, ms", p99_allowed(), p99(postgres)),
        at_least(
            "SQLite at 1, to SQLite with a transaction per request",
            1.0,
            times(sqlite, "sqlite-transaction", 1),
        ),
        at_least(
            "PostgreSQL at 1, to a transaction per request",
            1.0,
            times(postgres, "postgres-transaction", 1),
        ),
    ]
}

fn size_goals(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    for database in ["sqlite", "postgres"] {
        let flat = report.flat.iter().find(|flat| flat.database == database);
        let ratio = flat.and_then(|flat| flat.rows.get(1)).map(|row| row.sample.ratio);
        let what = format!("a large database on {database}, all ask, to a small one");
        goals.push(at_least(&what, 0.85, ratio));
    }
    let gate = report.gate.as_ref();
    let peak = gate.and_then(|gate| {
        let is_it =
            |row: &&crate::sample::Row| row.name == "tollgate-sqlite" && row.connections == 256;
        gate.rows.iter().find(is_it).map(|row| row.sample.peak_mib)
    });
    goals.push(at_most("idle, MiB resident", Some(25.0), Some(report.idle_mib)));
    goals.push(at_most("SQLite at 256, MiB at most", Some(60.0), peak));
    let flat = report.flat.first();
    let what = match flat {
        Some(flat) => format!("{} customers known, MiB at most", flat.known),
        None => "a million customers known, MiB at most".to_owned(),
    };
    goals.push(at_most(&what, Some(200.0), flat.map(|flat| flat.peak_mib)));
    for name in ["tollgate-sqlite", "tollgate-postgres"] {
        let stored = gate.and_then(|gate| gate.stored.iter().find(|stored| stored.name == name));
        let what = format!("{name}: bytes per event, indexes included");
        goals.push(at_most(&what, Some(150.0), stored.map(|stored| stored.bytes_per_event)));
    }
    goals
}

fn webhook_goal(report: &Report) -> Goal {
    let ratio = report.webhooks.get(1).map(|row| row.sample.ratio);
    at_least("webhook intake on SQLite at 64, to the constant server", 0.25, ratio)
}

fn overload_goals(report: &Report) -> [Goal; 2] {
    let overload = report.overload.as_ref();
    [
        Goal {
            what: "overload: a full queue answers 503 with Retry-After".to_owned(),
            wanted: "some".to_owned(),
            found: overload.map_or_else(String::new, |overload| overload.refused.to_string()),
            reached: overload.map(|overload| overload.refused > 0),
        },
        Goal {
            what: "overload and kill -9: of the acknowledged, lost".to_owned(),
            wanted: "0".to_owned(),
            found: overload.map_or_else(String::new, |overload| {
                let acknowledged = i64::try_from(overload.acknowledged).unwrap_or(i64::MAX);
                (acknowledged - overload.counted).max(0).to_string()
            }),
            reached: overload.map(crate::parts::overload::Overload::is_exact),
        },
    ]
}

fn at_least(what: &str, wanted: f64, found: Option<f64>) -> Goal {
    Goal {
        what: what.to_owned(),
        wanted: format!("≥ {wanted}"),
        found: found.map_or_else(String::new, |found| format!("{found:.2}")),
        reached: found.map(|found| found >= wanted),
    }
}

fn at_most(what: &str, wanted: Option<f64>, found: Option<f64>) -> Goal {
    Goal {
        what: what.to_owned(),
        wanted: wanted.map_or_else(String::new, |wanted| format!("≤ {wanted:.1}")),
        found: found.map_or_else(String::new, |found| format!("{found:.1}")),
        reached: wanted.zip(found).map(|(wanted, found)| found <= wanted),
    }
}
