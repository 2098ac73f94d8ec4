//! A replica decides on what it remembers and compares that with the database as it writes: so
//! whatever another has changed meanwhile is heeded. PostgreSQL alone; on SQLite there is one process.

use tollgate::cli::start::Running;

use super::*;
use crate::harness::world::ADMIN_TOKEN;

/// Two replicas. Each has answered acme, on 195 of 200 runs, and believes to know all about it.
async fn two_that_know_acme(db: &TestDb) -> (World, Running) {
    let world = World::start(db).await;
    let other = world.replica(world.clock.clone()).await;
    world.customer("acme").await;
    world.runs("acme", 193).await;
    run_at(&world, &other, 1).await;
    world.runs("acme", 1).await;
    (world, other)
}

/// Asks the other replica for a run of so many units.
async fn run_at(world: &World, other: &Running, units: i64) -> Value {
    let run = body("acme", json!({"send_event": true, "required_balance": units}));
    let url = format!("http://{}/v1/check", other.address);
    let request = world.http.post(url).bearer_auth(API_KEY).body(run.to_string());
    let answer = request.send().await.unwrap().text().await.unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_has_counted_is_counted() {
    let db = TestDb::postgres().await;
    let (world, other) = two_that_know_acme(&db).await;
    assert_eq!(run_at(&world, &other, 4).await["balance"]["usage"], 199);
    assert_eq!(world.run("acme").await["balance"]["usage"], 200);
    let denied = run_at(&world, &other, 1).await;
    assert_eq!((&denied["allowed"], &denied["reason"]), (&json!(false), &json!("limit_reached")));
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_on_what_was_remembered_may_run_if_another_has_made_room() {
    let db = TestDb::postgres().await;
    let (world, other) = two_that_know_acme(&db).await;
    let id = world.reserve("acme", 5, 60).await;
    assert_eq!(run_at(&world, &other, 1).await["reason"], "held_by_running_jobs");
    world.release(&id).await.ok();
    assert_eq!(run_at(&world, &other, 5).await["allowed"], true);
    assert_eq!(world.run("acme").await["reason"], "limit_reached");
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_set_at_one_replica_holds_at_the_other_at_once() {
    let db = TestDb::postgres().await;
    let (world, other) = two_that_know_acme(&db).await;
    assert_eq!(run_at(&world, &other, 6).await["allowed"], false);
    let grant =
        json!({"feature_id": "ai_runs", "units": 7, "draw": "after", "idempotency_key": "a"});
    let path = "/admin/api/v1/customers/acme/grants";
    world.call_as(ADMIN_TOKEN, "POST", path, &grant).await.ok();
    assert_eq!(run_at(&world, &other, 12).await["allowed"], true);
    assert_eq!(world.run("acme").await["allowed"], false);
    assert_eq!(rows(&db.url, "SELECT used_units FROM grants").await, ["7"]);
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_deleted_at_one_replica_is_unknown_at_the_other() {
    let db = TestDb::postgres().await;
    let (world, other) = two_that_know_acme(&db).await;
    run_at(&world, &other, 1).await;
    assert_eq!(world.call("DELETE", "/v1/customers/acme", &Value::Null).await.status, 204);
    assert_eq!(run_at(&world, &other, 1).await["error"]["code"], "unknown_customer");
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_moved_to_another_plan_at_one_replica_is_on_it_at_the_other() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let other = world.replica(world.clock.clone()).await;
    let stripe_id = world.link("acme").await;
    run_at(&world, &other, 200).await;
    assert_eq!(run_at(&world, &other, 1).await["reason"], "limit_reached");
    world.subscribe(&stripe_id, "pro_monthly").await;
    let allowed = run_at(&world, &other, 1).await;
    assert_eq!((&allowed["allowed"], &allowed["plan_id"]), (&json!(true), &json!("pro")));
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}

/// It died while nobody used it, which shows only by the next batch. The run has no key, and is counted
/// once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_lost_in_between_costs_nobody_its_answer() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    world.customer("acme").await;
    world.runs("acme", 1).await;
    world.runs("acme", 1).await;
    db.hang_up_on_everyone().await;
    assert_eq!(world.runs("acme", 1).await["balance"]["usage"], 3);
    assert_eq!(world.usage("acme").await, 3);
    assert_books_balance(&db.url).await;
}
