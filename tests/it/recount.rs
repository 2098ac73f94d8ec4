//! `tollgate recount`: counters rebuilt from what they are made of.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::domain::quota::DrawOrder;
use tollgate::gate::quotas::{Change, NewGrant, change};

use crate::harness::postgres::TestDb;
use crate::harness::process::{Finished, Machine};
use crate::harness::sql::rows;
use crate::harness::world::World;

const DAY: Duration = Duration::from_secs(86_400);

async fn recount(db: &TestDb, options: &[&str]) -> Finished {
    Machine::on(db).run(&[&["recount"], options].concat()).await
}

/// The example's plans, with history kept for as short as may be.
async fn start(db: &TestDb) -> World {
    let plans = include_str!("../../plans.example.toml")
        .replace("# [retention]", "[retention]")
        .replace("# usage_events = \"400d\"", "usage_events = \"62d\"");
    World::with_plans(db, &plans).await
}

async fn grant(world: &World, customer: &str, grant_id: &str) {
    let grant = NewGrant {
        grant_id: grant_id.to_owned(),
        units: 50,
        draw: DrawOrder::Before,
        expires_at: None,
        note: None,
    };
    let feature_id = "ai_runs".parse().unwrap();
    let granted = Change::AddGrant { feature_id, grant };
    assert!(change(world.app(), &customer.parse().unwrap(), "test", granted).await.unwrap());
}

async fn hold(world: &World, customer: &str, units: i64) -> String {
    let body = json!({
        "customer_id": customer, "feature_id": "ai_runs", "reserve": {}, "required_balance": units,
    });
    let held = world.call("POST", "/v1/check", &body).await.ok();
    held["reservation"]["id"].as_str().expect("it is held").to_owned()
}

async fn settle(world: &World, id: &str, how: &str, body: Value) {
    world.call("POST", &format!("/v1/reservations/{id}/{how}"), &body).await.ok();
}

/// A customer with something in every number: tied to Stripe, with a grant, a hold and open usage.
async fn busy(world: &World, customer: &str) {
    world.customer(customer).await;
    world.runs(customer, 2).await;
    world.link(customer).await;
    grant(world, customer, "gift").await;
    world.runs(customer, 3).await;
    let keyed = json!({
        "customer_id": customer, "feature_id": "ai_runs", "value": 4, "idempotency_key": "a",
    });
    world.call("POST", "/v1/track", &keyed).await.ok();
    world.advance(Duration::from_secs(600)).await;
    let (first, second) = (hold(world, customer, 5).await, hold(world, customer, 6).await);
    settle(world, &first, "commit", json!({"value": 7})).await;
    settle(world, &second, "release", Value::Null).await;
    hold(world, customer, 8).await;
    world.runs(customer, 9).await;
}

both_databases! {
    async fn after_a_busy_history_nothing_differs(db: TestDb) {
        let world = start(&db).await;
        for customer in ["acme", "globex", "initech"] {
            busy(&world, customer).await;
        }
        world.call("DELETE", "/v1/customers/initech", &Value::Null).await;
        for days in [1, 30, 31, 40] {
            let same = recount(&db, &[]).await;
            assert_eq!(same.code, Some(0), "{same:?}");
            world.advance(days * DAY).await;
            busy_again(&world).await;
        }
        let pruned = "SELECT CAST(SUM(pruned_units) AS BIGINT) FROM usage_counters";
        assert_eq!(rows(&db.url, pruned).await, ["48"], "what is pruned is a part too");
        let same = recount(&db, &[]).await;
        let counters = rows(&db.url, "SELECT COUNT(*) FROM usage_counters").await.remove(0);
        let said = format!("{counters} counters and 3 grants of 3 customers compared: each number is what its rows add up to\n");
        assert_eq!((same.code, same.stdout), (Some(0), said));
    }

    async fn each_number_that_differs_is_found_and_repaired(db: TestDb) {
        let mut world = start(&db).await;
        busy(&world, "acme").await;
        world.stop().await;
        let before = rows(&db.url, "SELECT * FROM usage_counters").await;
        for (number, wrong) in [
            ("usage_units", "UPDATE usage_counters SET usage_units = usage_units + 1"),
            ("reserved_units", "UPDATE usage_counters SET reserved_units = 0"),
            ("from_grants_units", "UPDATE usage_counters SET from_grants_units = 1"),
            ("open_units", "UPDATE usage_counters SET open_units = open_units - 1"),
            ("used_units", "UPDATE grants SET used_units = used_units - 1"),
        ] {
            rows(&db.url, wrong).await;
            let found = recount(&db, &["--customer", "acme"]).await;
            assert_eq!((found.code, found.stdout.lines().count()), (Some(1), 1), "{found:?}");
            assert!(found.stdout.starts_with("acme ") && found.stdout.contains(number), "{found:?}");
            let repaired = recount(&db, &["--repair"]).await;
            assert_eq!(repaired.code, Some(0), "{repaired:?}");
            assert!(repaired.stdout.contains("repaired"), "{repaired:?}");
            assert_eq!(rows(&db.url, "SELECT * FROM usage_counters").await, before, "{number}");
            assert_eq!(recount(&db, &[]).await.code, Some(0));
        }
        let audit = "SELECT actor, action, customer_id FROM audit WHERE actor = 'recount'";
        assert_eq!(rows(&db.url, audit).await, ["recount|repair|acme"; 5]);
    }

    async fn events_without_a_counter_get_one(db: TestDb) {
        let mut world = start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 3).await;
        world.stop().await;
        let before = rows(&db.url, "SELECT * FROM usage_counters").await;
        rows(&db.url, "DELETE FROM usage_counters").await;
        let found = recount(&db, &["--json"]).await;
        assert_eq!(found.code, Some(1), "{found:?}");
        let told: Value = serde_json::from_str(&found.stdout).unwrap();
        let difference = json!({
            "customer_id": "acme", "feature_id": "ai_runs", "series": 0, "number": "usage_units",
            "period_start": "2026-11-01T00:00:00Z", "stored": null, "rebuilt": 3,
        });
        assert_eq!(told, json!({
            "differences": [difference], "repaired": 0, "counters": 1, "grants": 0, "customers": 1,
        }));
        assert_eq!(recount(&db, &["--repair"]).await.code, Some(0));
        assert_eq!(rows(&db.url, "SELECT * FROM usage_counters").await, before);
    }

    async fn nobody_is_not_proven(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let found = recount(&db, &["--customer", "nobody"]).await;
        assert_eq!((found.code, found.stdout.as_str()), (Some(1), ""), "{found:?}");
        assert!(found.stderr.contains("nobody cannot be recounted: there is no such customer"), "{found:?}");
        assert_eq!(recount(&db, &["--customer", "acme"]).await.code, Some(0), "without a row yet");
    }

    async fn what_cannot_be_repaired_says_why_and_the_rest_is(db: TestDb) {
        let mut world = start(&db).await;
        busy(&world, "acme").await;
        world.advance(DAY).await;
        world.stop().await;
        rows(&db.url, "DELETE FROM usage_events WHERE request_key = 'k:a'").await;
        let found = recount(&db, &["--repair"]).await;
        assert_eq!(found.code, Some(1), "{found:?}");
        let open = found.stdout.lines().find(|line| line.contains("open_units")).unwrap();
        assert!(open.ends_with("not repaired: more went to Stripe than was counted"), "{open}");
        let usage = found.stdout.lines().find(|line| line.contains(" usage_units")).unwrap();
        assert!(usage.ends_with("repaired") && !usage.contains("not"), "{usage}");
        assert_eq!(recount(&db, &[]).await.stdout.lines().count(), 1);
    }

    async fn a_daemon_on_sqlite_is_not_repaired_behind_its_back(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 3).await;
        rows(&db.url, "UPDATE usage_counters SET usage_units = 5").await;
        let repaired = recount(&db, &["--repair"]).await;
        if db.is_postgres() {
            assert_eq!((repaired.code, world.usage("acme").await), (Some(0), 3), "{repaired:?}");
        } else {
            assert_eq!(repaired.code, Some(1));
            assert!(repaired.stderr.contains("--repair needs the daemon stopped"), "{repaired:?}");
        }
    }
}

/// More of everything, in whatever period this is; a hold from an earlier one ends late.
async fn busy_again(world: &World) {
    world.runs("acme", 2).await;
    let id = hold(world, "acme", 3).await;
    world.runs("globex", 1).await;
    world.clock.advance(8 * DAY).unwrap();
    settle(world, &id, "commit", json!({"value": 4})).await;
    hold(world, "globex", 5).await;
    // Stripe takes no usage that is older than 35 days.
    world.advance(Duration::from_secs(3600)).await;
}
