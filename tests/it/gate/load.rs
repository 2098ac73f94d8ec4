//! Many callers at once, and a database that cannot follow.

use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::IntoResponse as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tollgate::domain::decision::Intent;
use tollgate::gate::{Gate, GateError, Request, Said};
use tollgate::http::error::ApiError;
use tollgate::store::Tx;

use super::*;
use crate::harness::process::wait_for;

const CALLERS: usize = 64;

/// The same request by 64 callers at once, each on a connection of its own.
async fn all_at_once(world: &World, path: &str, body: &Value) -> Vec<Value> {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let request = reqwest::Client::new().post(world.url(path)).bearer_auth(API_KEY);
        let request = request.body(body.to_string());
        callers.spawn(async move {
            let response = request.send().await.expect("the daemon answers");
            assert_eq!(response.status(), 200);
            let text = response.text().await.expect("a whole body");
            serde_json::from_str::<Value>(&text).expect("an answer")
        });
    }
    callers.join_all().await
}

fn allowed(answers: &[Value]) -> usize {
    answers.iter().filter(|answer| answer["allowed"] == true).count()
}

/// A gate of its own whose writer waits until the transaction is dropped, which holds acme.
async fn held_up(world: &World) -> (Gate, JoinHandle<()>, Tx) {
    world.customer("acme").await;
    let app = world.app().clone();
    let (gate, writer) = Gate::start(app.clone());
    let mut held = app.store.begin().await.unwrap();
    held.lock_customer(&"acme".parse().unwrap()).await.unwrap();
    (gate, writer, held)
}

pub fn consume(customer: &str) -> Request {
    Request {
        customer_id: customer.parse().unwrap(),
        feature_id: "ai_runs".parse().unwrap(),
        entity_id: None,
        value: None,
        intent: Intent::Consume,
        hold_seconds: 0,
        key: None,
        own_id: None,
        said: Said::default(),
        customer_data: None,
    }
}

both_databases! {
    async fn sixty_four_callers_on_the_last_units_get_exactly_what_is_left(db: TestDb) {
        let world = World::start(&db).await;
        for (round, left) in [1, 2, 7, 31, 63, 64].into_iter().enumerate() {
            let customer = format!("round-{round}");
            world.customer(&customer).await;
            world.runs(&customer, 200 - left).await;
            let answers = all_at_once(&world, "/v1/check", &body(&customer, json!({"send_event": true}))).await;
            assert_eq!(allowed(&answers), usize::try_from(left).unwrap(), "{left} were left");
            // Each accepted run stands at a place of its own in the count.
            let mut places: Vec<_> = answers.iter().filter(|a| a["allowed"] == true)
                .map(|a| a["balance"]["usage"].as_i64().unwrap()).collect();
            places.sort_unstable();
            assert_eq!(places, (200 - left + 1..=200).collect::<Vec<_>>());
            assert_eq!(world.usage(&customer).await, 200);
        }
        assert_books_balance(&db.url).await;
    }

    async fn runs_of_several_units_never_pass_the_cap_together(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 190).await;
        let three = body("acme", json!({"required_balance": 3, "send_event": true}));
        assert_eq!(allowed(&all_at_once(&world, "/v1/check", &three).await), 3);
        assert_eq!(world.usage("acme").await, 199);
        world.customer("beta").await;
        world.runs("beta", 190).await;
        let capped = body("beta", json!({"value": 3, "overage_behavior": "cap"}));
        let answers = all_at_once(&world, "/v1/track", &capped).await;
        let counted: i64 = answers.iter().map(|a| a["value"].as_i64().unwrap()).sum();
        assert_eq!((counted, world.usage("beta").await), (10, 200));
        assert_books_balance(&db.url).await;
    }

    async fn one_key_from_sixty_four_callers_is_one_run(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let same = body("acme", json!({"send_event": true, "idempotency_key": "a"}));
        let answers = all_at_once(&world, "/v1/check", &same).await;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(rows(&db.url, "SELECT counted_units FROM usage_events").await, ["1"]);
        assert_eq!(world.usage("acme").await, 1);
    }

    async fn a_threshold_crossed_by_sixty_four_callers_is_noticed_once(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 150).await;
        let run = body("acme", json!({"send_event": true}));
        all_at_once(&world, "/v1/check", &run).await;
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80", "cap_reached 100"]);
    }

    async fn an_unknown_customer_that_comes_64_times_is_made_once(db: TestDb) {
        let world = World::start(&db).await;
        let hello = json!({"send_event": true, "customer_data": {"email": "jo@example.com"}});
        let answers = all_at_once(&world, "/v1/check", &body("acme", hello)).await;
        assert_eq!((allowed(&answers), world.usage("acme").await), (64, 64));
        assert_eq!(rows(&db.url, "SELECT email, revision FROM customers").await, ["jo@example.com|1"]);
    }

    async fn a_full_queue_turns_callers_away_and_loses_nobody(db: TestDb) {
        let world = World::start(&db).await;
        let (gate, _writer, held) = held_up(&world).await;
        let mut callers = JoinSet::new();
        let mut asked = 0;
        let turned_away = loop {
            let gate = gate.clone();
            callers.spawn(async move { gate.ask(consume("acme")).await });
            asked += 1;
            if let Some(first_done) = callers.try_join_next() {
                break first_done.unwrap();
            }
            tokio::task::yield_now().await;
        };
        assert!(matches!(turned_away, Err(GateError::Overloaded)), "{turned_away:?}");
        drop(held);
        let (mut accepted, mut refused) = (0, 1);
        for result in callers.join_all().await {
            match result {
                Ok(answer) if answer.allowed => accepted += 1,
                Ok(_) => {}
                Err(GateError::Overloaded) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(asked - refused >= 4096, "{asked} asked, {refused} were turned away");
        assert_eq!((accepted, world.usage("acme").await), (200, 200));
        let told = ApiError::from(GateError::Overloaded).into_response();
        assert_eq!(told.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(told.headers()[RETRY_AFTER], "1");
        assert_books_balance(&db.url).await;
    }

    async fn batches_wait_their_turn_and_leave_room_for_single_runs(db: TestDb) {
        let world = World::start(&db).await;
        let (gate, _writer, held) = held_up(&world).await;
        let batches: JoinSet<_> = (0..12).map(|_| {
            let gate = gate.clone();
            let thousand = vec![Request { intent: Intent::Record, ..consume("acme") }; 1000];
            async move { gate.ask_all(thousand).await }
        }).collect();
        wait_for("two of them are in the queue", async || (gate.room() <= 4096 - 976).then_some(())).await;
        assert!(gate.room() >= 4096 - 2000, "{}", gate.room());
        let single = tokio::spawn({
            let gate = gate.clone();
            async move { gate.ask(consume("acme")).await }
        });
        drop(held);
        let single = single.await.unwrap().expect("there is room");
        for answers in batches.join_all().await {
            assert!(answers.expect("its turn came").iter().all(Result::is_ok));
        }
        assert_eq!(world.usage("acme").await, 12_000 + i64::from(single.allowed));
        assert_books_balance(&db.url).await;
    }

    async fn who_hangs_up_and_asks_again_with_its_key_is_counted_once(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let run = |key: i64| body("acme", json!({"send_event": true, "idempotency_key": key.to_string()}));
        for key in 1..=100 {
            let body = run(key).to_string();
            let request = format!(
                "POST /v1/check HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            let mut caller = TcpStream::connect(world.config.listen).await.unwrap();
            caller.write_all(request.as_bytes()).await.unwrap();
            // Gone before the answer, and every other one in the middle of its request.
            drop(caller);
            let mut caller = TcpStream::connect(world.config.listen).await.unwrap();
            caller.write_all(&request.as_bytes()[..request.len() - 9]).await.unwrap();
        }
        // A stop in good order ends what is under way.
        world.restart().await;
        assert!(rows(&db.url, "SELECT * FROM usage_events").await.len() <= 100);
        assert_books_balance(&db.url).await;
        for key in 1..=100 {
            assert_eq!(world.call("POST", "/v1/check", &run(key)).await.ok()["allowed"], true);
        }
        assert_eq!(world.usage("acme").await, 100);
        assert_books_balance(&db.url).await;
    }

    async fn without_its_database_the_gate_stays_closed(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.app().store.close().await;
        for fields in [json!({}), json!({"send_event": true}), json!({"idempotency_key": "a"})] {
            let request = world.http.post(world.url("/v1/check")).bearer_auth(API_KEY);
            let response = request.body(body("acme", fields).to_string()).send().await.unwrap();
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key("retry-after"));
            assert!(response.text().await.unwrap().contains("\"code\":\"unavailable\""));
        }
        assert_eq!(world.call("GET", "/readyz", &Value::Null).await.status, 503);
        assert_eq!(world.call("GET", "/healthz", &Value::Null).await.status, 200);
    }
}
