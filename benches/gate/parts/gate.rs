//! The main table: runs decided and durable before they are answered, against all rivals.

use anyhow::Result;
use serde::Serialize;

use crate::machine;
use crate::progress::Progress;
use crate::request::CUSTOMERS;
use crate::sample::{Contender, Row, Timing, median, rounds};
use crate::server::{Ask, Data, Place, RIVALS, Server};

/// Times of the disk taken after each round.
const FSYNCS: usize = 100;

#[derive(Debug, Serialize)]
pub struct Gate {
    pub rows: Vec<Row>,
    pub stored: Vec<Stored>,
    /// `fdatasync` of 4 KB on the same disk, between the rounds.
    pub fsync_p50_ms: f64,
    pub fsync_p99_ms: f64,
}

/// What a rival's data takes, indexes included.
#[derive(Debug, Serialize)]
pub struct Stored {
    pub name: &'static str,
    pub events: u64,
    pub bytes_per_event: f64,
}

/// Measures the rivals of these names.
pub fn measure(
    place: &Place,
    wanted: &[String],
    connections: &[usize],
    timing: Timing,
    progress: &Progress,
) -> Result<Gate> {
    let names: Vec<_> = RIVALS
        .map(|(name, _)| name)
        .into_iter()
        .filter(|name| wanted.iter().any(|w| w == name))
        .collect();
    let mut servers = Vec::new();
    let mut before = Vec::new();
    for name in &names {
        progress.step(&format!("starting {name}"));
        let mut server = Server::start(place, name)?;
        if name.starts_with("tollgate") {
            server.introduce(CUSTOMERS)?;
        }
        before.push((server.asked(), server.stored_bytes()?));
        servers.push(server);
    }
    machine::settle_disk(&place.folder)?;
    let contenders: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(server, name)| Contender {
            name: (*name).to_owned(),
            server,
            ask: Ask::Checks(CUSTOMERS),
        })
        .collect();
    let (mut p50s, mut p99s) = (Vec::new(), Vec::new());
    let fsyncs = || {
        let times = machine::fsyncs_ms(&place.folder, FSYNCS)?;
        p50s.push(times[FSYNCS / 2]);
        p99s.push(times[FSYNCS * 99 / 100]);
        Ok(())
    };
    let rows = rounds(&mut servers, &contenders, connections, timing, progress, fsyncs)?;
    progress.step("weighing the databases");
    let mut stored = Vec::new();
    for ((name, server), (asked, bytes)) in names.iter().zip(&servers).zip(before) {
        if !matches!(server.data, Data::Nowhere) {
            let events = server.asked() - asked;
            let bytes = server.stored_bytes()?.saturating_sub(bytes);
            let bytes_per_event = bytes as f64 / events as f64;
            stored.push(Stored { name, events, bytes_per_event });
        }
    }
    Ok(Gate { rows, stored, fsync_p50_ms: median(p50s), fsync_p99_ms: median(p99s) })
}
