//! Two daemons on one PostgreSQL: the database alone is the authority.

use serde_json::Value;
use tokio::task::JoinSet;
use tollgate::cli::start::{Drive, Running, start};
use tollgate::entropy::Entropy;

use super::*;
use crate::harness::sql::assert_books_balance;
use crate::harness::world::{API_KEY, World};

/// A second daemon on the world's database and clock, at an address of its own.
async fn second(world: &World) -> Running {
    let mut config = world.config.clone();
    config.listen.set_port(0);
    let started = start(&config, world.clock.clone(), Entropy::system(), Drive::Steps).await;
    started.unwrap_or_else(|error| panic!("the second daemon does not start: {error:?}"))
}

/// The same request by 64 callers, half of them at each daemon; the answers in no order.
async fn from_both_sides(world: &World, other: &Running, path: &str, body: &Value) -> Vec<Value> {
    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let address = if caller % 2 == 0 { world.config.listen } else { other.address };
        let request = reqwest::Client::new().post(format!("http://{address}{path}"));
        let request = request.bearer_auth(API_KEY).body(body.to_string());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_units_are_given_out_once_between_them() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let other = second(&world).await;
    for (round, left) in [1, 5, 33].into_iter().enumerate() {
        let customer = format!("round-{round}");
        world.customer(&customer).await;
        world.runs(&customer, 200 - left).await;
        let run = json!({"customer_id": customer, "feature_id": "ai_runs", "send_event": true});
        let answers = from_both_sides(&world, &other, "/v1/check", &run).await;
        assert_eq!(allowed(&answers), usize::try_from(left).unwrap());
        assert_eq!(world.usage(&customer).await, 200);
    }
    assert_eq!(
        rows(&db.url, "SELECT kind FROM notices WHERE customer_id = 'round-0'").await.len(),
        2
    );
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_at_both_is_one_run_and_one_answer() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let other = second(&world).await;
    let run = json!({
        "customer_id": "acme", "feature_id": "ai_runs", "send_event": true, "idempotency_key": "a",
        "customer_data": {"email": "jo@example.com"},
    });
    let answers = from_both_sides(&world, &other, "/v1/check", &run).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(rows(&db.url, "SELECT usage_units FROM usage_counters").await, ["1"]);
    assert_eq!(rows(&db.url, "SELECT revision FROM customers").await, ["1"]);
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}
