//! A thousand callers and one last unit: exactly one of them gets it, round after round.
//!
//! Most rounds go straight to the gate's writers, because what is raced for is decided there; some
//! come over real HTTP.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::task::JoinSet;
use tollgate::domain::answer::Answer;
use tollgate::domain::customer::Profile;
use tollgate::domain::decision::{Intent, Standing};
use tollgate::gate::{Gate, GateError, Request, RequestKey, Said};

use super::*;
use crate::harness::process::wait_for;

const CALLERS: usize = 1000;
const ROUNDS: usize = 200;
const HTTP_ROUNDS: usize = 20;
/// A customer of this plan's first unit is its last.
const ONE_UNIT: &str = r#"
default_plan = "only"

[features.ai_runs]
name = "AI runs"
unit = "run"

[[plans]]
id = "only"
name = "Only"
rank = 1
limits.ai_runs = { granted = 1, enforcement = "hard" }
"#;

/// A run of a customer that comes to be with it.
fn request(customer: &str, intent: Intent) -> Request {
    Request {
        customer_id: customer.parse().unwrap(),
        feature_id: "ai_runs".parse().unwrap(),
        entity_id: None,
        value: None,
        intent,
        hold_seconds: 60,
        key: None,
        own_id: None,
        said: Said::default(),
        customer_data: Some(Profile::default()),
    }
}

/// How many of a thousand callers, in turn at each of the gates, are allowed.
async fn allowed_of_a_thousand(gates: &[Gate], customer: &str, intent: Intent) -> usize {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let gate = gates[caller % gates.len()].clone();
        let request = request(customer, intent);
        callers.spawn(async move { gate.ask(request).await.expect("an answer").allowed });
    }
    callers.join_all().await.into_iter().filter(|allowed| *allowed).count()
}

/// Plays all rounds at these gates; every other one for a hold.
async fn assert_one_of_a_thousand(gates: &[Gate], url: &str) {
    for round in 0..ROUNDS {
        let customer = format!("round-{round}");
        let intent = if round % 2 == 0 { Intent::Consume } else { Intent::Reserve };
        let allowed = allowed_of_a_thousand(gates, &customer, intent).await;
        assert_eq!(allowed, 1, "round {round}");
    }
    let taken =
        rows(url, "SELECT usage_units, reserved_units FROM usage_counters ORDER BY usage_units")
            .await;
    assert_eq!(taken[..ROUNDS / 2], vec!["0|1"; ROUNDS / 2]);
    assert_eq!(taken[ROUNDS / 2..], vec!["1|0"; ROUNDS / 2]);
    assert_books_balance(url).await;
}

type Asked = Pin<Box<dyn Future<Output = Result<Answer, GateError>> + Send>>;

/// Asks for a run; the question is in the writer's queue when this returns, unless it has taken it.
async fn ask(gate: &Gate) -> Asked {
    let gate = gate.clone();
    let mut asked: Asked =
        Box::pin(async move { gate.ask(request("acme", Intent::Consume)).await });
    let first = poll_fn(|context| Poll::Ready(asked.as_mut().poll(context))).await;
    assert!(first.is_pending(), "nobody can be answered yet: {first:?}");
    asked
}

/// A writer is in the middle of the first of these runs: where it decides ahead, it has decided, and
/// its write waits for the line; on PostgreSQL it waits for the customer's row.
async fn runs_under_way(gate: &Gate, db: &TestDb, idle: usize) -> Vec<Asked> {
    let taken = async || {
        wait_for("the writer takes it", async || (gate.room() == idle).then_some(())).await;
    };
    let first = ask(gate).await;
    taken().await;
    if db.is_postgres() {
        let waiting = "SELECT COUNT(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let seen = async || (rows(&db.url, waiting).await == ["1"]).then_some(());
        wait_for("the writer waits for the row", seen).await;
        return vec![first];
    }
    // It takes the next only when it is through with deciding the one before.
    let second = ask(gate).await;
    taken().await;
    vec![first, second]
}

both_databases! {
    async fn who_is_paused_while_a_run_is_decided_does_not_run(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (gate, _writers) = Gate::start(world.app().clone());
        for _ in 0..3 {
            assert!(gate.ask(request("acme", Intent::Consume)).await.unwrap().allowed);
        }
        let idle = gate.room();
        let mut tx = world.app().store.begin().await.unwrap();
        let mut customer = tx.lock_customer(&"acme".parse().unwrap()).await.unwrap().unwrap();
        let mut callers = runs_under_way(&gate, &db, idle).await;
        for _ in 0..18 {
            callers.push(ask(&gate).await);
        }
        customer.tier.standing = Standing::Paused;
        tx.update_customer(&customer).await.unwrap();
        tx.commit().await.unwrap();
        for asked in callers {
            assert!(!asked.await.unwrap().allowed);
        }
        assert_eq!(world.usage("acme").await, 3);
        assert_books_balance(&db.url).await;
    }

    async fn old_keys_among_new_ones_get_their_first_answers(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (gate, _writers) = Gate::start(world.app().clone());
        let run = |key: usize| {
            let key = RequestKey { key: key.to_string().parse().unwrap(), request_hash: "hash".to_owned() };
            Request { key: Some(key), ..request("acme", Intent::Consume) }
        };
        let mut first = Vec::new();
        for key in 0..10 {
            first.push(gate.ask(run(key)).await.unwrap());
        }
        let mut callers = JoinSet::new();
        for caller in 0..100 {
            let gate = gate.clone();
            // Each of the old keys five times, and fifty new ones between them.
            let key = if caller % 2 == 0 { caller / 2 % 10 } else { 1000 + caller };
            callers.spawn(async move { (key, gate.ask(run(key)).await.unwrap()) });
            tokio::task::yield_now().await;
        }
        for (key, answer) in callers.join_all().await {
            assert!(answer.allowed && first.get(key).is_none_or(|first| *first == answer), "{key}");
        }
        assert_eq!(world.usage("acme").await, 60);
        assert_books_balance(&db.url).await;
    }

    async fn one_of_a_thousand_callers_gets_the_last_unit(db: TestDb) {
        let world = World::with_plans(&db, ONE_UNIT).await;
        let (gate, _writers) = Gate::start(world.app().clone());
        assert_one_of_a_thousand(&[gate], &db.url).await;
    }

    async fn one_of_a_thousand_callers_over_http_gets_the_last_unit(db: TestDb) {
        let world = Arc::new(World::with_plans(&db, ONE_UNIT).await);
        for round in 0..HTTP_ROUNDS {
            let customer = format!("round-{round}");
            world.customer(&customer).await;
            let mut callers = JoinSet::new();
            for _ in 0..CALLERS {
                let (world, run) = (world.clone(), body(&customer, json!({"send_event": true})));
                callers.spawn(async move { world.call("POST", "/v1/check", &run).await.ok() });
            }
            let answers = callers.join_all().await;
            let allowed = answers.iter().filter(|answer| answer["allowed"] == true).count();
            assert_eq!((answers.len(), allowed), (CALLERS, 1), "round {round}");
        }
        assert_eq!(rows(&db.url, "SELECT usage_units FROM usage_counters").await, vec!["1"; HTTP_ROUNDS]);
        assert_books_balance(&db.url).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_a_thousand_callers_at_two_replicas_gets_the_last_unit() {
    let db = TestDb::postgres().await;
    let world = World::with_plans(&db, ONE_UNIT).await;
    let other = world.replica(world.clock.clone()).await;
    let (here, _writers) = Gate::start(world.app().clone());
    let (there, _others) = Gate::start(other.app.clone());
    assert_one_of_a_thousand(&[here, there], &db.url).await;
    other.stop().await.unwrap();
}
