//! The shipped program under load, killed, stopped, robbed of its database; and what it logs.
//!
//! What these tests hold is one sentence: a run that was acknowledged is counted, once, for ever.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate::entropy::Entropy;

use crate::harness::load::{PLANS, Product};
use crate::harness::postgres::TestDb;
use crate::harness::process::{Machine, Process, wait_for};
use crate::harness::world::{API_KEY, WEBHOOK_SECRET};

/// How often a daemon is killed and started again, per database.
const ROUNDS: usize = 8;

fn machine(db: &TestDb) -> Machine {
    let machine = Machine::on(db);
    machine.write("plans.toml", PLANS);
    machine
}

/// After how many answers something happens: it must not matter, so it is any number.
fn any_moment() -> usize {
    usize::from(Entropy::system().secret()[0]) + 1
}

both_databases! {
    async fn killed_under_load_it_loses_no_acknowledged_run(db: TestDb) {
        let (machine, product) = (machine(&db), Product::default());
        for _ in 0..ROUNDS {
            let mut daemon = machine.serve().await;
            product.signs_up(&daemon.api).await;
            product.asks_again(&daemon.api).await;
            product.agrees_with(&daemon.api).await;
            let load = product.load(&daemon.api);
            load.answers(any_moment()).await;
            daemon.process.kill();
            load.end().await;
        }
        let daemon = machine.serve().await;
        product.asks_again(&daemon.api).await;
        product.agrees_with(&daemon.api).await;
        daemon.stop().await;
        product.agrees_with_database(&db.url).await;
    }

    async fn stopped_under_load_it_ends_in_good_order(db: TestDb) {
        let (machine, product) = (machine(&db), Product::default());
        let daemon = machine.serve().await;
        product.signs_up(&daemon.api).await;
        let load = product.load(&daemon.api);
        load.answers(any_moment()).await;
        daemon.stop().await;
        load.end().await;
        let daemon = machine.serve().await;
        product.asks_again(&daemon.api).await;
        product.agrees_with(&daemon.api).await;
        daemon.stop().await;
        product.agrees_with_database(&db.url).await;
    }

    async fn a_request_under_way_is_answered_before_it_stops(db: TestDb) {
        let daemon = machine(&db).serve().await;
        Product::default().signs_up(&daemon.api).await;
        let (mut request, body) = begin_run(&daemon.api.address).await;
        daemon.process.signal("TERM");
        wait_for("nobody else is let in", async || {
            TcpStream::connect(&daemon.api.address).await.err()
        })
        .await;
        request.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        request.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""usage":1"#), "{answer}");
        let finished = daemon.process.finish().await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
}

/// Sends a run up to its body, and waits until the daemon has asked for that: so it is under way.
async fn begin_run(address: &str) -> (TcpStream, String) {
    let body = json!({"customer_id": "ann", "feature_id": "ai_runs", "send_event": true});
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/check HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {API_KEY}\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let expected = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut go_on = vec![0; expected.len()];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(go_on, expected);
    (stream, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_file_is_refused() {
    let db = TestDb::sqlite();
    let machine = machine(&db);
    let first = machine.serve().await;
    let second = machine.run(&["serve"]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("is served by another process already"), "{second:?}");
    first.stop().await;
    machine.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_by_a_link_to_the_file_is_refused_too() {
    let db = TestDb::sqlite();
    let mut machine = machine(&db);
    let _first = machine.serve().await;
    let file = db.url.strip_prefix("sqlite://").unwrap();
    std::os::unix::fs::symlink(file, machine.path("link.db")).unwrap();
    machine.set("DATABASE_URL", "sqlite://link.db");
    let second = machine.run(&["serve"]).await;
    assert!(second.stderr.contains("is served by another process already"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_one_cap() {
    let db = TestDb::postgres().await;
    let (machine, product) = (machine(&db), Product::default());
    let (one, other) = (machine.serve().await, machine.serve().await);
    product.signs_up(&one.api).await;
    let loads = [product.load(&one.api), product.load(&other.api)];
    // Enough to use up the caps of all four customers with every second run, and some more.
    loads[0].answers(4 * 60 * 2 + 100).await;
    for load in loads {
        load.end().await;
    }
    product.agrees_with(&one.api).await;
    product.asks_again(&other.api).await;
    one.stop().await;
    other.stop().await;
    product.agrees_with_database(&db.url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn robbed_of_its_connections_it_recovers_unrestarted() {
    let db = TestDb::postgres().await;
    let (machine, product) = (machine(&db), Product::default());
    let daemon = machine.serve().await;
    product.signs_up(&daemon.api).await;
    let load = product.load(&daemon.api);
    for _ in 0..5 {
        load.answers(any_moment()).await;
        let turned_away = load.somebody_is_turned_away();
        tokio::pin!(turned_away);
        loop {
            db.hang_up_on_everyone().await;
            if tokio::time::timeout(Duration::from_millis(5), &mut turned_away).await.is_ok() {
                break;
            }
        }
    }
    load.end().await;
    assert!(product.turned_away() >= 5);
    product.asks_again(&daemon.api).await;
    product.agrees_with(&daemon.api).await;
    let finished = daemon.stop().await;
    product.agrees_with_database(&db.url).await;
    assert!(!finished.stderr.contains("panic"), "{}", finished.stderr);
}

/// How much memory the process has had at most, in KiB.
fn peak_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let (_, rest) = status.split_once("VmHWM:").expect("Linux says it");
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_that_never_end_do_not_fill_the_memory() {
    let db = TestDb::sqlite();
    let mut machine = machine(&db);
    machine.set("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
    let daemon = machine.serve().await;
    Product::default().signs_up(&daemon.api).await;
    let before = peak_kib(&daemon.process);
    let head = "POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\nstripe-signature: t=1,v1=ab\r\n\
                content-length: 1048576\r\n\r\n";
    let mut callers = Vec::new();
    for _ in 0..250 {
        let mut stream = TcpStream::connect(&daemon.api.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; (1 << 20) - 10]).await.unwrap();
        callers.push(stream);
    }
    let check = json!({"customer_id": "ann", "feature_id": "ai_runs"});
    daemon.api.ok("POST", "/v1/check", &check).await;
    let grown = peak_kib(&daemon.process) - before;
    assert!(grown < 128 << 10, "250 callers with 1 MiB each: {grown} KiB more");
}
