//! What a customer has used, by day, by hour and by whom.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tollgate::clock::Timestamp;

use crate::harness::postgres::TestDb;
use crate::harness::world::{ADMIN_TOKEN, API_KEY, Reply, World, reply};

const HOUR: Duration = Duration::from_secs(3600);

async fn run_by(world: &World, entity: Option<&str>, units: i64) {
    let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "value": units, "entity_id": entity});
    world.call("POST", "/v1/track", &body).await.ok();
}

async fn ask(world: &World, query: &str) -> Reply {
    world.call("GET", &format!("/v1/customers/acme/usage?{query}"), &Value::Null).await
}

/// The bins in which something was used, as `start units events`.
fn used(usage: &Value) -> Vec<String> {
    let bins = usage["bins"].as_array().expect("a list");
    let told = bins.iter().map(|bin| {
        format!("{} {} {}", bin["start"].as_str().unwrap_or_default(), bin["units"], bin["events"])
    });
    told.filter(|bin| !bin.ends_with(" 0 0")).collect()
}

/// Reads of history that are under way, each on a connection, and do not end before they are told to.
struct LongReads {
    go_on: Vec<mpsc::Sender<()>>,
    reads: Vec<JoinHandle<()>>,
}

impl LongReads {
    /// Begins so many; as many as find a connection are under way when this returns.
    async fn begin(world: &World, count: usize) -> Self {
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let mut all = Self { go_on: Vec::new(), reads: Vec::new() };
        for _ in 0..count {
            let (go_on, wait) = mpsc::channel::<()>();
            let (store, begun, runtime) =
                (world.app().store.clone(), begun.clone(), Handle::current());
            let (from, to) = (Timestamp::from_ms(0), world.now().plus(HOUR));
            all.reads.push(tokio::task::spawn_blocking(move || {
                let feature = "ai_runs".parse().unwrap();
                // Those that find no connection are told so, which is as it should be.
                let _ = runtime.block_on(store.each_recorded_run(&feature, from, to, |_| {
                    let _ = begun.send(());
                    let _ = wait.recv();
                }));
            }));
            all.go_on.push(go_on);
        }
        for _ in 0..2 {
            has_begun.recv().await.expect("two long reads at least are under way");
        }
        all
    }

    async fn end(self) {
        drop(self.go_on);
        for read in self.reads {
            read.await.unwrap();
        }
    }
}

/// Three days of two people and a cron job.
async fn three_days(db: &TestDb) -> World {
    let world = World::start(db).await;
    world.customer("acme").await;
    run_by(&world, Some("jo"), 2).await;
    run_by(&world, None, 1).await;
    world.advance(HOUR).await;
    run_by(&world, Some("al"), 4).await;
    world.advance(47 * HOUR).await;
    run_by(&world, Some("jo"), 3).await;
    world
}

both_databases! {
    async fn usage_is_told_by_day_in_the_current_period(db: TestDb) {
        let world = three_days(&db).await;
        let usage = ask(&world, "feature_id=ai_runs").await.ok();
        assert_eq!((&usage["from"], &usage["to"], &usage["bin"]),
            (&json!("2026-11-01T00:00:00Z"), &json!("2026-12-01T00:00:00Z"), &json!("day")));
        assert_eq!(usage["bins"].as_array().unwrap().len(), 30);
        assert_eq!(used(&usage), ["2026-11-01T00:00:00Z 7 3", "2026-11-03T00:00:00Z 3 1"]);
        assert_eq!((&usage["total"], &usage["events"]), (&json!(10), &json!(4)));
        assert_eq!(usage["entities"], json!([
            {"entity_id": "jo", "units": 5, "events": 2}, {"entity_id": "al", "units": 4, "events": 1},
            {"entity_id": null, "units": 1, "events": 1}]));
        assert_eq!(usage["total"], world.check("acme").await["balance"]["usage"]);
    }

    async fn usage_is_told_by_hour_and_by_whom(db: TestDb) {
        let world = three_days(&db).await;
        let usage = ask(&world, "feature_id=ai_runs&bin=hour&group_by=entity\
            &from=2026-11-01T09:00:00Z&to=2026-11-01T11:00:00Z").await.ok();
        assert_eq!(usage["bins"], json!([
            {"start": "2026-11-01T09:00:00Z", "end": "2026-11-01T10:00:00Z", "units": 3, "events": 2, "entities": [
                {"entity_id": "jo", "units": 2, "events": 1}, {"entity_id": null, "units": 1, "events": 1}]},
            {"start": "2026-11-01T10:00:00Z", "end": "2026-11-01T11:00:00Z", "units": 4, "events": 1, "entities": [
                {"entity_id": "al", "units": 4, "events": 1}]}]));
    }

    async fn a_span_includes_its_first_instant_and_not_its_last(db: TestDb) {
        let world = three_days(&db).await;
        for (from, to, total) in [("09:00:00Z", "10:00:00Z", 3), ("10:00:00Z", "10:00:00.001Z", 4),
            ("10:00:00.001Z", "11:00:00Z", 0), ("00:00:00%2B01:00", "11:30:00%2B01:00", 7)] {
            let query = format!("feature_id=ai_runs&from=2026-11-01T{from}&to=2026-11-01T{to}");
            assert_eq!(ask(&world, &query).await.ok()["total"], total, "{query}");
        }
    }

    async fn denials_and_holds_are_not_usage_and_a_committed_run_is(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 190).await;
        let hold = json!({"customer_id": "acme", "feature_id": "ai_runs", "required_balance": 10, "reserve": {},
            "entity_id": "jo"});
        let hold = world.call("POST", "/v1/check", &hold).await.ok();
        assert_eq!(world.run("acme").await["reason"], "held_by_running_jobs");
        assert_eq!(ask(&world, "feature_id=ai_runs").await.ok()["total"], 190);
        let commit = format!("/v1/reservations/{}/commit", hold["reservation"]["id"].as_str().unwrap());
        world.call("POST", &commit, &json!({"value": 7})).await.ok();
        let usage = ask(&world, "feature_id=ai_runs").await.ok();
        assert_eq!((&usage["total"], &usage["events"]), (&json!(197), &json!(2)));
        assert_eq!(usage["entities"][1], json!({"entity_id": "jo", "units": 7, "events": 1}));
    }

    async fn usage_of_the_current_period_is_what_its_counter_says(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.advance_to("2026-11-30T23:50:00Z").await;
        let held = world.reserve("acme", 4, 7200).await;
        world.advance_to("2026-12-01T00:10:00Z").await;
        world.runs("acme", 2).await;
        // Within half an hour of the period's end a run is counted where its units were held.
        world.commit(&held, &Value::Null).await.ok();
        let usage = ask(&world, "feature_id=ai_runs").await.ok();
        assert_eq!((&usage["total"], &usage["from"]), (&json!(world.usage("acme").await), &json!("2026-12-01T00:00:00Z")));
        let by_time = "feature_id=ai_runs&from=2026-12-01T00:00:00Z&to=2027-01-01T00:00:00Z";
        assert_eq!(ask(&world, by_time).await.ok()["total"], 6);
        let bins = usage["bins"].as_array().unwrap();
        let in_bins: i64 = bins.iter().map(|bin| bin["units"].as_i64().unwrap()).sum();
        assert_eq!(usage["total"], in_bins);
    }

    async fn long_reads_that_take_for_ever_stop_no_checks(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        run_by(&world, None, 1).await;
        let reads = LongReads::begin(&world, 20).await;
        let refused = world.http.get(world.url("/v1/customers/acme/usage?feature_id=ai_runs"));
        let refused = refused.bearer_auth(API_KEY).send().await.unwrap();
        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        assert_eq!(reply(refused).await.error(), "overloaded");
        assert_eq!(world.check("acme").await["allowed"], true);
        assert_eq!(world.call("GET", "/v1/customers/acme", &Value::Null).await.status, 200);
        reads.end().await;
        assert_eq!(ask(&world, "feature_id=ai_runs").await.ok()["total"], 1);
    }

    async fn what_retention_has_removed_is_gone_with_key_or_without(db: TestDb) {
        let plans = include_str!("../../plans.example.toml").replace("# [retention]", "[retention]");
        let world = World::with_plans(&db, &plans.replace("# usage_events = \"400d\"", "usage_events = \"62d\"")).await;
        world.customer("acme").await;
        run_by(&world, Some("jo"), 2).await;
        let keyed = json!({"customer_id": "acme", "feature_id": "ai_runs", "idempotency_key": "a"});
        world.call("POST", "/v1/track", &keyed).await.ok();
        let november = "feature_id=ai_runs&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";
        world.advance_to("2027-01-31T00:00:00Z").await;
        assert_eq!(ask(&world, november).await.ok()["total"], 3);
        world.advance_to("2027-02-03T00:00:00Z").await;
        let usage = ask(&world, november).await.ok();
        assert_eq!((&usage["total"], &usage["entities"]), (&json!(0), &json!([])));
    }

    async fn what_cannot_be_asked_is_refused_by_name(db: TestDb) {
        let world = three_days(&db).await;
        for (query, status, error) in [
            ("", 422, "missing_field: feature_id"),
            ("feature_id=imports", 404, "unknown_feature: feature_id"),
            ("feature_id=ai_runs&bin=week", 422, "invalid_value: bin"),
            ("feature_id=ai_runs&group_by=plan", 422, "invalid_value: group_by"),
            ("feature_id=ai_runs&from=yesterday", 422, "invalid_value: from"),
            ("feature_id=ai_runs&from=2026-12-01T00:00:00Z", 422, "invalid_value: to"),
            ("feature_id=ai_runs&from=2024-01-01T00:00:00Z", 422, "invalid_value: to"),
            ("feature_id=ai_runs&to=2027-01-01T00:00:00Z&bin=hour", 422, "invalid_value: to"),
            ("feature_id=ai_runs&feature_id=ai_runs", 400, "malformed: feature_id"),
            ("feature_id=ai_runs&unit=run", 422, "unknown_field: unit"),
        ] {
            let refused = ask(&world, query).await;
            assert_eq!((refused.status, refused.error().as_str()), (status, error), "{query}");
        }
        let stranger = world.call("GET", "/v1/customers/beta/usage?feature_id=ai_runs", &Value::Null).await;
        assert_eq!((stranger.status, stranger.error().as_str()), (404, "unknown_customer: customer_id"));
        let path = "/v1/customers/acme/usage?feature_id=ai_runs";
        assert_eq!(world.call_as(ADMIN_TOKEN, "GET", path, &Value::Null).await.status, 403);
        assert_eq!(world.call_as("nobody", "GET", path, &Value::Null).await.status, 401);
        world.call("DELETE", "/v1/customers/acme", &Value::Null).await;
        assert_eq!(ask(&world, "feature_id=ai_runs").await.error(), "unknown_customer: customer_id");
    }
}
