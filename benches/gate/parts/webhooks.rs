//! Webhook intake: 4 KB verified and stored before it is acknowledged.

use std::fs;

use anyhow::Result;

use crate::progress::Progress;
use crate::sample::{Contender, Row, Timing, rounds};
use crate::server::{Ask, Place, Server};

const CONNECTIONS: usize = 64;

/// Measures the daemon on both databases, against the constant server asked the same.
pub fn measure(place: &Place, timing: Timing, progress: &Progress) -> Result<Vec<Row>> {
    let place = Place {
        folder: place.folder.join("webhooks"),
        postgres: place.postgres.clone(),
        answer: r#"{"received":true}"#.to_owned(),
    };
    fs::create_dir(&place.folder)?;
    let names = ["constant", "tollgate-sqlite", "tollgate-postgres"];
    let mut servers = Vec::new();
    for name in names {
        progress.step(&format!("starting {name} for webhooks"));
        servers.push(Server::start(&place, name)?);
    }
    let contenders: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(server, name)| Contender {
            name: format!("{name}, webhooks"),
            server,
            ask: Ask::Webhooks,
        })
        .collect();
    rounds(&mut servers, &contenders, &[CONNECTIONS], timing, progress, || Ok(()))
}
