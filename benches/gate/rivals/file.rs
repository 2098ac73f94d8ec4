//! A bare append-only file: what the disk and the HTTP server allow when there is no database.
//!
//! Counters and keys are in memory; whatever waits while the last batch is synced is the next one.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot};

use super::{Counter, GRANTED, Run};

/// How many runs may wait, and how many are written at once.
const QUEUE: usize = 4096;

struct Waiting {
    run: Run,
    reply: oneshot::Sender<bool>,
}

/// The way to the thread that owns the file.
pub struct Log(mpsc::Sender<Waiting>);

impl Log {
    pub fn open(folder: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(folder.join("runs.log"))?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        std::thread::spawn(move || {
            // Without its file there is nothing to serve.
            if let Err(error) = write(file, waiting) {
                eprintln!("the file cannot be written: {error}");
                std::process::exit(1);
            }
        });
        Ok(Self(queue))
    }
}

impl Counter for Log {
    async fn count(&self, run: Run) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Waiting { run, reply }).await.ok().context("the writer has ended")?;
        answer.await.context("the writer has ended")
    }
}

fn write(mut file: File, mut waiting: mpsc::Receiver<Waiting>) -> std::io::Result<()> {
    let mut used: HashMap<String, i64> = HashMap::new();
    let mut keys: HashSet<(String, String)> = HashSet::new();
    let mut taken = Vec::with_capacity(QUEUE);
    let mut lines = Vec::new();
    let mut replies = Vec::with_capacity(QUEUE);
    while waiting.blocking_recv_many(&mut taken, QUEUE) > 0 {
        for Waiting { run, reply } in taken.drain(..) {
            let allowed = decide(&mut used, &mut keys, &run);
            if allowed {
                let Run { customer_id, idempotency_key, required_balance } = run;
                writeln!(lines, "{customer_id}\t{idempotency_key}\t{required_balance}")?;
            }
            replies.push((reply, allowed));
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        lines.clear();
        for (reply, allowed) in replies.drain(..) {
            let _ = reply.send(allowed); // a caller that hung up does not want its answer
        }
    }
    Ok(())
}

fn decide(
    used: &mut HashMap<String, i64>,
    keys: &mut HashSet<(String, String)>,
    run: &Run,
) -> bool {
    if !keys.insert((run.customer_id.clone(), run.idempotency_key.clone())) {
        return true; // counted under this key already; written twice, which harms nobody
    }
    let used = used.entry(run.customer_id.clone()).or_default();
    let allowed = *used + run.required_balance <= GRANTED;
    if allowed {
        *used += run.required_balance;
    }
    allowed
}
