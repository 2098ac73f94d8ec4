//! Decisions per second, as a ratio to the bare HTTP server in the same run.
//!
//! Rivals, interleaved in rounds, medians printed: axum answering a constant, and the daemon
//! counting every run durably on SQLite (and on PostgreSQL where `TEST_POSTGRES_URL` names a
//! server with a database to fill). The load comes from this process over kept-alive connections,
//! so it takes its share of the machine from all rivals alike.
//!
//! Run it with `cargo bench --bench gate`; see `benches/README.md`.

#![allow(
    clippy::disallowed_methods,
    reason = "a bench reads the wall clock: that is what it is for"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tollgate::cli::start::{Drive, Running, start};
use tollgate::clock::Clock;
use tollgate::config::Config;
use tollgate::entropy::Entropy;

const KEY: &str = "key-of-the-bench-0123456789";
const CUSTOMERS: u64 = 1000;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];

/// The same limits for everyone: never reached, so that every decision counts.
const PLANS: &str = r#"
default_plan = "team"
[features.ai_runs]
name = "AI runs"
unit = "run"
[[plans]]
id = "team"
name = "Team"
rank = 1
limits.ai_runs = { granted = 1000000000, enforcement = "hard", nudge_at_percent = [80] }
"#;

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder for the database");
    std::fs::write(folder.path().join("plans.toml"), PLANS).expect("the plans file is written");
    let mut rivals = vec![("constant", constant().await, None)];
    let sqlite = format!("sqlite://{}/bench.db", folder.path().display());
    let daemon = daemon(&folder, &sqlite).await;
    rivals.push(("sqlite", daemon.address, Some(daemon)));
    if let Ok(url) = std::env::var("TEST_POSTGRES_URL") {
        let daemon = self::daemon(&folder, &url).await;
        rivals.push(("postgres", daemon.address, Some(daemon)));
    }
    println!(
        "{:<10} {:>5} {:>12} {:>8} {:>9} {:>9}",
        "rival", "conns", "decisions/s", "ratio", "p50 ms", "p99 ms"
    );
    for connections in CONNECTIONS {
        let mut rounds: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
        for _ in 0..ROUNDS {
            for (name, address, _) in &rivals {
                rounds.entry(name).or_default().push(load(*address, connections).await);
            }
        }
        let ceiling = median(&rounds["constant"]).per_second;
        for (name, _, _) in &rivals {
            let round = median(&rounds[name]);
            println!(
                "{name:<10} {connections:>5} {:>12.0} {:>8.2} {:>9.2} {:>9.2}",
                round.per_second,
                round.per_second / ceiling,
                round.p50_ms,
                round.p99_ms,
            );
        }
    }
    for (_, _, daemon) in rivals {
        if let Some(daemon) = daemon {
            daemon.stop().await.expect("the daemon stops in good order");
        }
    }
}

/// axum with the same payload sizes and no decision at all.
async fn constant() -> SocketAddr {
    let answer = r#"{"allowed":true,"reason":"within_limit"}"#.repeat(16);
    let route = axum::routing::post(move |_: axum::body::Bytes| {
        let answer = answer.clone();
        async move { ([("content-type", "application/json")], answer) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = axum::Router::new().route("/v1/check", route);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn daemon(folder: &tempfile::TempDir, database_url: &str) -> Running {
    let plans = folder.path().join("plans.toml").display().to_string();
    let env = [
        ("DATABASE_URL", database_url),
        ("TOLLGATE_LISTEN", "127.0.0.1:0"),
        ("TOLLGATE_PLANS", &plans),
        ("TOLLGATE_API_KEY", KEY),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let config = Config::load(&env, None).expect("the configuration is good");
    start(&config, Clock::system(), Entropy::system(), Drive::Loops)
        .await
        .expect("the daemon starts")
}

#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn median(rounds: &[Round]) -> Round {
    let mut rounds = rounds.to_vec();
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    rounds[rounds.len() / 2]
}

/// A closed loop on each connection for the length of a round.
async fn load(address: SocketAddr, connections: usize) -> Round {
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let callers: Vec<_> = (0..connections)
        .map(|_| tokio::spawn(caller(address, stop.clone(), next.clone())))
        .collect();
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(caller.await.expect("no caller fails"));
    }
    let seconds = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        let rank = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len());
        latencies[rank - 1].as_secs_f64() * 1000.0
    };
    Round { per_second: latencies.len() as f64 / seconds, p50_ms: at(0.5), p99_ms: at(0.99) }
}

async fn caller(address: SocketAddr, stop: Arc<AtomicBool>, next: Arc<AtomicU64>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("the rival listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let mut latencies = Vec::new();
    let mut answer = Vec::with_capacity(4096);
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let body = format!(
            r#"{{"customer_id":"customer-{}","feature_id":"ai_runs","send_event":true,"customer_data":{{}}}}"#,
            number % CUSTOMERS
        );
        let request = format!(
            "POST /v1/check HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).await.expect("the rival reads");
        read_answer(&mut stream, &mut answer).await;
        latencies.push(asked.elapsed());
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    latencies
}

/// Reads one whole answer, by its content length.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) {
    answer.clear();
    let mut expected = usize::MAX;
    while answer.len() < expected {
        let read = stream.read_buf(answer).await.expect("the rival answers");
        assert!(read > 0, "the rival hung up");
        if expected == usize::MAX
            && let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let length = text.split("content-length: ").nth(1).expect("a content length");
            let length: usize =
                length.lines().next().unwrap_or_default().trim().parse().expect("a number");
            expected = head + 4 + length;
        }
    }
}
