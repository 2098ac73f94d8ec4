//! While the database cannot answer: who may go on, how far, and that each such run is counted once.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::gate::Gate;
use tollgate::jobs::Job;

use super::load::consume;
use super::{body, plans};
use crate::harness::postgres::TestDb;
use crate::harness::process::wait_for;
use crate::harness::sql::{assert_books_balance, rows};
use crate::harness::world::{Reply, World};

/// The example's plans, where Starter lets three runs through in an outage.
fn lenient() -> String {
    plans("id = \"starter\"", "id = \"starter\"\non_outage = \"allow\"\noutage_allowance = 3")
}

/// Takes away the table that every run is written to.
async fn outage(db: &TestDb) {
    rows(&db.url, "ALTER TABLE usage_events RENAME TO away").await;
}

async fn back(db: &TestDb) {
    rows(&db.url, "ALTER TABLE away RENAME TO usage_events").await;
}

async fn run(world: &World, key: &str) -> Reply {
    let fields = json!({"send_event": true, "idempotency_key": key});
    world.call("POST", "/v1/check", &body("acme", fields)).await
}

both_databases! {
    async fn by_default_nobody_runs_in_an_outage(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.run("acme").await;
        outage(&db).await;
        let refused = run(&world, "a").await;
        assert_eq!((refused.status, refused.error().as_str()), (503, "unavailable"));
        back(&db).await;
        assert_eq!(run(&world, "a").await.ok()["balance"]["usage"], 2);
    }

    async fn a_plan_can_let_a_stated_number_through_and_each_is_counted_once(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 10).await;
        outage(&db).await;
        let mut answers = Vec::new();
        for (key, usage) in [("a", 11), ("b", 12), ("c", 13)] {
            let answer = run(&world, key).await.ok();
            assert_eq!((&answer["allowed"], &answer["degraded"]), (&json!(true), &json!(true)));
            assert_eq!(answer["balance"]["usage"], usage);
            answers.push((key, answer));
        }
        assert_eq!(run(&world, "a").await.ok(), answers[0].1, "the same run once more");
        assert_eq!(run(&world, "d").await.status, 503, "three are let through");
        back(&db).await;
        world.run_job(Job::CountJournal).await;
        world.run_job(Job::CountJournal).await;
        assert_eq!(world.usage("acme").await, 13);
        for (key, answer) in answers {
            assert_eq!(run(&world, key).await.ok(), answer, "the first answer, for ever");
        }
        assert!(!world.outage_journal().exists());
        assert_eq!(run(&world, "d").await.ok()["balance"]["usage"], 14);
        assert_books_balance(&db.url).await;
    }

    async fn until_the_journal_is_counted_it_answers_for_its_runs(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 197).await;
        outage(&db).await;
        let answer = run(&world, "a").await.ok();
        back(&db).await;
        assert_eq!(run(&world, "a").await.ok(), answer, "before any job has run");
        let other = json!({"events": [{
            "customer_id": "acme", "feature_id": "ai_runs", "value": 3, "idempotency_key": "a",
        }]});
        let told = world.call("POST", "/v1/track/batch", &other).await.ok();
        assert_eq!(told["results"][0]["error"]["code"], "idempotency_key_reused", "{told}");
        assert_eq!(run(&world, "b").await.ok()["balance"]["usage"], 199, "a comes first");
        assert_eq!(run(&world, "c").await.ok()["balance"]["usage"], 200);
        world.app().clock.advance(Duration::from_secs(1));
        assert_eq!(run(&world, "d").await.ok()["allowed"], false);
        world.run_job(Job::CountJournal).await;
        assert_eq!(world.usage("acme").await, 200);
    }

    async fn an_outage_is_no_way_past_a_hard_cap(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 199).await;
        outage(&db).await;
        assert_eq!(run(&world, "a").await.ok()["balance"]["usage"], 200);
        assert_eq!(run(&world, "b").await.status, 503);
        back(&db).await;
        world.run_job(Job::CountJournal).await;
        assert_eq!(world.usage("acme").await, 200);
        assert_eq!(world.check("acme").await["allowed"], false);
    }

    async fn nor_are_two_outages_in_a_row(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 199).await;
        for (key, status) in [("a", 200), ("b", 503)] {
            outage(&db).await;
            assert_eq!(run(&world, key).await.status, status);
            back(&db).await;
            world.run_job(Job::CountJournal).await;
        }
        assert_eq!(world.usage("acme").await, 200);
    }

    async fn a_journal_outlives_the_process_and_a_line_cut_short_was_never_answered(db: TestDb) {
        let mut world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 10).await;
        outage(&db).await;
        let answer = run(&world, "a").await.ok();
        world.stop().await;
        let mut journal = std::fs::read_to_string(world.outage_journal()).unwrap();
        journal.push_str("{\"facts\":");
        std::fs::write(world.outage_journal(), journal).unwrap();
        world.try_boot().await.expect("the daemon starts");
        back(&db).await;
        world.run_job(Job::CountJournal).await;
        assert_eq!(world.usage("acme").await, 11);
        assert_eq!(run(&world, "a").await.ok(), answer);
    }

    async fn a_run_that_the_database_had_taken_after_all_is_not_counted_again(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        let first = run(&world, "a").await.ok();
        outage(&db).await;
        // The answer was lost on the way to the product, which asks again in the outage.
        assert_eq!(run(&world, "a").await.ok()["degraded"], true);
        back(&db).await;
        world.run_job(Job::CountJournal).await;
        assert_eq!(world.usage("acme").await, 1);
        assert_eq!(run(&world, "a").await.ok(), first);
    }

    async fn who_has_changed_since_it_was_last_seen_is_not_known(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 10).await;
        assert_eq!(world.call("DELETE", "/v1/customers/acme", &Value::Null).await.status, 204);
        outage(&db).await;
        let refused = run(&world, "a").await.status;
        assert!([404, 503].contains(&refused), "let through, though nobody could count it: {refused}");
        assert!(!world.outage_journal().exists());
    }

    async fn what_was_committed_late_is_known_in_an_outage(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 150).await;
        let late = world.reserve("acme", 49, 60).await;
        world.advance(Duration::from_secs(60)).await;
        world.run("acme").await;
        assert_eq!(world.commit(&late, &Value::Null).await.ok()["balance"]["remaining"], 0);
        outage(&db).await;
        assert_eq!(run(&world, "a").await.status, 503);
    }

    async fn one_caller_a_second_looks_for_the_database_and_nobody_else_waits_for_it(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 10).await;
        outage(&db).await;
        for key in ["a", "b", "c"] {
            assert_eq!(run(&world, key).await.ok()["degraded"], true);
        }
        back(&db).await;
        assert_eq!(run(&world, "d").await.status, 503, "nobody has looked since");
        let stranger = world.call("POST", "/v1/check", &body("stranger", json!({}))).await;
        assert_eq!((stranger.status, stranger.error().as_str()), (503, "unavailable"));
        world.app().clock.advance(Duration::from_secs(1));
        assert_eq!(run(&world, "d").await.ok()["balance"]["usage"], 14, "what waited comes first");
        assert_eq!(world.usage("acme").await, 14);
        assert_books_balance(&db.url).await;
    }

    async fn of_a_batch_as_many_are_let_through_as_of_single_runs(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        world.customer("acme").await;
        world.runs("acme", 10).await;
        outage(&db).await;
        for key in ["a", "b"] {
            assert_eq!(run(&world, key).await.ok()["degraded"], true);
        }
        back(&db).await;
        let three = json!({"events": vec![body("acme", json!({})); 3]});
        let told = world.call("POST", "/v1/track/batch", &three).await.ok();
        let statuses: Vec<_> = told["results"].as_array().unwrap().iter().map(|r| r["status"].as_i64().unwrap()).collect();
        assert_eq!(statuses, [200, 503, 503], "nobody has looked since, and three are let through");
        world.app().clock.advance(Duration::from_secs(1));
        let told = world.call("POST", "/v1/track/batch", &three).await.ok();
        assert_eq!(told["results"][2]["answer"]["balance"]["usage"], 16);
        assert_books_balance(&db.url).await;
    }
}

/// Only PostgreSQL can hang up on its callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_writer_when_the_outage_is_found_is_let_through_too_and_counted_once() {
    let db = TestDb::postgres().await;
    let world = World::with_plans(&db, &lenient()).await;
    world.customer("acme").await;
    world.runs("acme", 10).await;
    let (gate, _writers) = Gate::start(world.app().clone());
    let room = gate.room();
    let mut held = world.app().store.begin().await.unwrap();
    held.lock_customer(&"acme".parse().unwrap()).await.unwrap();
    let ask = || {
        tokio::spawn({
            let gate = gate.clone();
            async move { gate.ask(consume("acme")).await }
        })
    };
    let first = ask();
    wait_for("the writer waits for the customer", async || {
        let waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (!rows(&db.url, waits).await.is_empty()).then_some(())
    })
    .await;
    let waiting = [ask(), ask()];
    wait_for("the others wait for the writer", async || (gate.room() == room - 2).then_some(()))
        .await;
    db.hang_up_on_everyone().await;
    let mut places = std::collections::BTreeSet::new();
    for asked in [first].into_iter().chain(waiting) {
        let answer = asked.await.unwrap().unwrap();
        assert!(answer.degraded, "its writer did not try it");
        places.insert(answer.balance.usage);
    }
    assert_eq!(places, [11, 12, 13].into());
    world.run_job(Job::CountJournal).await;
    assert_eq!(world.usage("acme").await, 13);
    assert_books_balance(&db.url).await;
}
