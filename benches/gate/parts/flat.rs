//! Whether a large database is as fast as a small one.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::machine;
use crate::progress::Progress;
use crate::request::CUSTOMERS;
use crate::sample::{Contender, Row, Timing, rounds};
use crate::seed::seed;
use crate::server::{Ask, Data, Place, Server, create_database};

/// Asked of each server.
const CONNECTIONS: usize = 64;
/// How fast customers are made known, at the end.
const SWEEP_CONNECTIONS: usize = 256;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub customers: u64,
    pub events: u64,
    /// How long it may take at most to let every customer ask.
    pub sweep: Duration,
}

#[derive(Debug, Serialize)]
pub struct Flat {
    pub database: &'static str,
    pub customers: u64,
    pub events: u64,
    pub rows: Vec<Row>,
    /// How many customers had asked when the memory was read.
    pub known: u64,
    pub peak_mib: f64,
}

/// Measures the daemon on SQLite or on PostgreSQL.
pub fn measure(
    place: &Place,
    database: &'static str,
    size: Size,
    timing: Timing,
    progress: &Progress,
) -> Result<Flat> {
    let Size { customers, events, sweep } = size;
    let mut small = daemon(place, database, "small")?;
    small.introduce(CUSTOMERS)?;
    let large = seeded(place, database, size, progress)?;
    machine::settle_disk(&place.folder)?;
    let mut servers = [small, large];
    let contender =
        |name: String, server, asking| Contender { name, server, ask: Ask::Checks(asking) };
    let contenders = [
        contender(format!("{CUSTOMERS} customers, no events before"), 0, CUSTOMERS),
        contender(format!("{customers} customers, {events} events, all ask"), 1, customers),
        contender(format!("{customers} customers, {events} events, {CUSTOMERS} ask"), 1, CUSTOMERS),
    ];
    let rows = rounds(&mut servers, &contenders, &[CONNECTIONS], timing, progress, || Ok(()))?;
    let [_, mut large] = servers;
    progress.step("letting every customer ask");
    let known = large.ask_each(customers, large.connect(SWEEP_CONNECTIONS)?, sweep)?;
    Ok(Flat { database, customers, events, rows, known, peak_mib: large.sum(machine::peak_mib)? })
}

fn daemon(place: &Place, database: &str, name: &str) -> Result<Server> {
    let name = format!("flat-{database}-{name}");
    let folder = place.folder.join(&name);
    std::fs::create_dir(&folder)?;
    let data = match database {
        "postgres" => Data::Postgres(create_database(place, &name)?),
        _ => Data::Files(folder.clone()),
    };
    Server::daemon(&folder, data, 1)
}

/// A daemon that has just been started on a large database.
fn seeded(place: &Place, database: &str, size: Size, progress: &Progress) -> Result<Server> {
    let mut original = daemon(place, database, "large")?;
    original.introduce(1)?;
    let asked = original.asked();
    let data = original.stop()?;
    seed(&data, size.customers, size.events, progress)?;
    let folder = place.folder.join(format!("flat-{database}-large"));
    Ok(Server::daemon(&folder, data, 1)?.having_asked(asked))
}
