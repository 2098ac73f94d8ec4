//! Usage history is forgotten when its time has come, and nothing else is.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::jobs::Job;

use crate::harness::postgres::TestDb;
use crate::harness::sql::rows;
use crate::harness::world::World;

const DAY: Duration = Duration::from_secs(86_400);

/// The example's plans, with history kept for as short as may be.
async fn world(db: &TestDb) -> World {
    let plans = include_str!("../../plans.example.toml")
        .replace("# [retention]", "[retention]")
        .replace("# usage_events = \"400d\"", "usage_events = \"62d\"");
    World::with_plans(db, &plans).await
}

/// A run with all that can be said of one.
fn told(key: &str) -> Value {
    json!({
        "customer_id": "acme", "feature_id": "ai_runs", "send_event": true, "idempotency_key": key,
        "entity_id": "jo", "properties": {"model": "claude-haiku", "input_tokens": 1000, "mine": 1},
    })
}

/// What is stored of the runs, those that are known by a key first.
async fn history(db: &TestDb) -> Vec<String> {
    let query = "SELECT substr(request_key, 1, 3), counted_units, entity_id, model, input_tokens, \
        properties FROM usage_events ORDER BY CASE WHEN substr(request_key, 1, 2) = 'k:' THEN 0 \
        ELSE 1 END, request_key";
    rows(&db.url, query).await
}

async fn units(db: &TestDb) -> Vec<String> {
    let query = "SELECT usage_units, pruned_units FROM usage_counters ORDER BY period_start_ms";
    rows(&db.url, query).await
}

const WHOLE: &str = "k:a|1|jo|claude-haiku|1000|{\"mine\":1}";

both_databases! {
    async fn two_months_after_its_period_a_run_is_forgotten_and_its_units_stay(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        world.runs("acme", 3).await;
        let answer = world.call("POST", "/v1/check", &told("a")).await.ok();
        world.advance_to("2026-12-24T00:00:00Z").await;
        world.runs("acme", 5).await;
        world.advance_to("2027-01-31T23:59:59Z").await;
        let december = "evt|5|NULL|NULL|NULL|NULL".to_owned();
        let november = december.replace('5', "3");
        assert_eq!(history(&db).await, [WHOLE.to_owned(), november, december.clone()]);

        world.advance(Duration::from_secs(1)).await;
        let record = "k:a|1|NULL|NULL|NULL|NULL".to_owned();
        assert_eq!(history(&db).await, [record, december]);
        assert_eq!(units(&db).await, ["4|3", "5|0"]);
        assert_eq!(world.call("POST", "/v1/check", &told("a")).await.ok(), answer);
        let before = rows(&db.url, "SELECT * FROM usage_events ORDER BY request_key").await;
        let again = Job::Prune.step(world.app()).await.unwrap();
        assert_eq!((again.done, again.more), (0, false), "nothing is visited twice");
        assert_eq!(rows(&db.url, "SELECT * FROM usage_events ORDER BY request_key").await, before);
    }

    async fn whom_a_run_was_held_for_is_forgotten_with_it(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        let mut held = told("a");
        held.as_object_mut().unwrap().remove("send_event");
        held["reserve"] = json!({});
        let id = world.call("POST", "/v1/check", &held).await.ok()["reservation"]["id"].clone();
        let answer = world.commit(id.as_str().unwrap(), &Value::Null).await.ok();
        world.advance_to("2027-01-31T23:59:59Z").await;
        let named = "SELECT entity_id FROM reservations";
        assert_eq!(rows(&db.url, named).await, ["jo"]);
        world.advance(Duration::from_secs(1)).await;
        assert_eq!(rows(&db.url, named).await, ["NULL"]);
        assert_eq!(world.commit(id.as_str().unwrap(), &Value::Null).await.ok(), answer);
    }

    async fn without_the_setting_history_stays_for_ever(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.call("POST", "/v1/check", &told("a")).await.ok();
        world.advance(4000 * DAY).await;
        assert_eq!(history(&db).await, [WHOLE]);
    }

    async fn usage_that_stripe_does_not_have_yet_keeps_its_history(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        world.link("acme").await;
        world.runs("acme", 3).await;
        world.clock.advance(100 * DAY).unwrap();
        let settle = async |state| {
            rows(&db.url, &format!("UPDATE meter_events SET state = '{state}'")).await;
            world.run_job(Job::Prune).await;
            history(&db).await.len()
        };
        assert_eq!(settle("none: the window is open").await, 1);
        world.run_job(Job::CloseWindows).await;
        for (state, left) in [("pending", 1), ("parked", 1), ("delivered", 0)] {
            assert_eq!(settle(state).await, left, "{state}");
        }
        assert_eq!(units(&db).await, ["3|3"]);
    }

    async fn a_period_that_stripe_has_lengthened_is_still_open(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        world.subscribe(&stripe_id, "pro_monthly").await;
        world.runs("acme", 3).await;
        world.advance(Duration::from_secs(600)).await;
        let lengthen = "UPDATE customers SET stripe_end_ms = stripe_end_ms + 86400000";
        rows(&db.url, &format!("{lengthen} * CAST(300 AS BIGINT)")).await;
        world.clock.advance(300 * DAY).unwrap();
        world.run_job(Job::Prune).await;
        assert_eq!(history(&db).await.len(), 1);
        world.clock.advance(92 * DAY).unwrap();
        world.run_job(Job::Prune).await;
        assert_eq!(history(&db).await.len(), 0);
    }

    async fn a_deleted_customers_history_is_forgotten_too(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        world.runs("acme", 3).await;
        world.call("POST", "/v1/check", &told("a")).await.ok();
        world.call("DELETE", "/v1/customers/acme", &Value::Null).await;
        world.advance(100 * DAY).await;
        assert_eq!(history(&db).await, ["k:a|1|NULL|NULL|NULL|NULL"]);
        assert_eq!(units(&db).await, ["4|3"]);
    }

    async fn a_denial_that_was_never_counted_goes_with_its_period(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        let mut too_many = told("a");
        too_many["required_balance"] = json!(201);
        let answer = world.call("POST", "/v1/check", &too_many).await.ok();
        assert_eq!(answer["allowed"], false);
        world.advance_to("2026-12-24T00:00:00Z").await;
        world.runs("acme", 5).await;
        world.advance(100 * DAY).await;
        assert_eq!(history(&db).await, ["k:a|0|NULL|NULL|NULL|NULL"]);
        assert_eq!(world.call("POST", "/v1/check", &too_many).await.ok(), answer);
    }

    /// What it remembers of a counter must not be written over what was pruned meanwhile.
    async fn the_gate_reads_a_pruned_counter_again(db: TestDb) {
        let world = world(&db).await;
        world.customer("acme").await;
        world.runs("acme", 3).await;
        let hold = json!({"customer_id": "acme", "feature_id": "ai_runs", "reserve": {}, "required_balance": 2});
        let held = world.call("POST", "/v1/check", &hold).await.ok();
        let id = held["reservation"]["id"].as_str().unwrap().to_owned();
        world.clock.advance(100 * DAY).unwrap();
        world.run_job(Job::Prune).await;
        world.call("POST", &format!("/v1/reservations/{id}/release"), &Value::Null).await.ok();
        assert_eq!(units(&db).await, ["3|3"]);
        assert_eq!(rows(&db.url, "SELECT reserved_units FROM usage_counters").await, ["0"]);
    }
}
