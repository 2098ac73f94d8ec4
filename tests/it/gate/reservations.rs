//! Units held for a run in flight, and the one end that each hold has.

use tokio::task::JoinSet;
use tollgate::jobs::Job;

use super::*;
use crate::harness::process::Machine;
use crate::harness::world::reserve;

/// A week in seconds: the longest that units are held.
const WEEK: i64 = 604_800;

/// A customer on Starter's 200 who has used so many.
async fn used(world: &World, customer: &str, runs: i64) {
    world.customer(customer).await;
    world.runs(customer, runs).await;
}

/// Usage, units held, and what is left.
fn balance(answer: &Value) -> (i64, i64, i64) {
    let number = |name: &str| answer["balance"][name].as_i64().expect("a number");
    (number("usage"), number("reserved"), number("remaining"))
}

/// What became of a settled run: what was counted, whether too late, whether too much.
fn outcome(answer: &Value) -> (i64, bool, bool) {
    let flag = |name: &str| answer[name].as_bool().expect("an answer to commit says so");
    (answer["value"].as_i64().expect("what was counted"), flag("late"), flag("over_limit"))
}

fn commit_path(id: &str) -> String {
    format!("/v1/reservations/{id}/commit")
}

fn release_path(id: &str) -> String {
    format!("/v1/reservations/{id}/release")
}

/// Status and error of a settlement that comes after another.
async fn refusal(world: &World, path: &str, body: &Value) -> (u16, String) {
    let reply = world.call("POST", path, body).await;
    (reply.status, reply.error())
}

fn settled_already() -> (u16, String) {
    (409, "reservation_settled: reservation_id".to_owned())
}

async fn states(db: &TestDb) -> Vec<String> {
    rows(&db.url, "SELECT state FROM reservations ORDER BY reservation_id").await
}

// --- holding -----------------------------------------------------------------------------------

both_databases! {
    /// By its row the database refuses it when it is decided once more, because the answer to the commit
    /// was lost on the way.
    async fn a_hold_has_a_row_though_it_has_no_key(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let held = world.call("POST", "/v1/check", &reserve("acme", 8, 60)).await.ok();
        let events = "SELECT counted_units, request_hash, hold_until_ms - recorded_at_ms FROM usage_events";
        assert_eq!(rows(&db.url, events).await, ["0|NULL|60000"]);
        world.call("POST", &commit_path(held["reservation"]["id"].as_str().unwrap()), &json!({})).await.ok();
        assert_eq!((world.usage("acme").await, rows(&db.url, events).await.len()), (8, 2));
        assert_books_balance(&db.url).await;
    }

    async fn what_is_held_is_out_of_others_reach_until_its_run_is_counted(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let held = world.call("POST", "/v1/check", &reserve("acme", 8, 60)).await.ok();
        assert_eq!((balance(&held), &held["event_id"]), ((190, 8, 2), &Value::Null));
        let id = held["reservation"]["id"].as_str().expect("an id");
        assert_eq!(held["reservation"], json!({
            "id": id, "state": "pending", "units": 8, "expires_at": "2026-11-01T09:01:00Z",
        }));
        for (units, reason) in [(2, "within_limit"), (3, "held_by_running_jobs"), (11, "limit_reached")] {
            let asked = ask(&world, "acme", json!({"required_balance": units})).await;
            assert_eq!(asked["reason"], reason, "{units} more");
        }
        let capped = track(&world, "acme", json!({"value": 5, "overage_behavior": "cap"})).await;
        assert_eq!((&capped["value"], &capped["reason"]), (&json!(2), &json!("held_by_running_jobs")));
        let done = world.commit(id, &Value::Null).await.ok();
        assert_eq!((outcome(&done), balance(&done)), ((8, false, false), (200, 0, 0)));
        assert_eq!((&done["reservation"]["state"], &done["reason"]), (&json!("committed"), &json!("within_limit")));
        assert!(done["event_id"].as_str().is_some_and(|id| id.starts_with("evt_")), "{done}");
        assert_books_balance(&db.url).await;
    }

    async fn a_run_may_take_less_than_was_held_or_more_or_nothing(db: TestDb) {
        let world = World::start(&db).await;
        for (value, over_limit) in [(0, false), (5, false), (8, false), (10, false), (11, true), (1000, true)] {
            let customer = format!("took-{value}");
            used(&world, &customer, 190).await;
            let id = world.reserve(&customer, 8, 60).await;
            let done = world.commit(&id, &json!({"value": value})).await.ok();
            assert_eq!(outcome(&done), (value, false, over_limit));
            assert_eq!(balance(&done), (190 + value, 0, (10 - value).max(0)));
            assert_eq!(done["event_id"].is_null(), value == 0);
            assert_eq!(balance(&world.check(&customer).await), balance(&done));
        }
        assert_books_balance(&db.url).await;
    }

    async fn a_run_that_came_to_nothing_gives_its_units_back(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let id = world.reserve("acme", 10, 60).await;
        assert_eq!(world.run("acme").await["reason"], "held_by_running_jobs");
        let back = world.release(&id).await.ok();
        assert_eq!((balance(&back), &back["reservation"]["state"]), ((190, 0, 10), &json!("released")));
        assert_eq!((back.get("value"), back.get("late"), &back["event_id"]), (None, None, &Value::Null));
        world.runs("acme", 10).await;
        assert_books_balance(&db.url).await;
    }

    async fn a_soft_limit_holds_without_end_and_counts_what_is_held(db: TestDb) {
        let world = World::with_plans(&db, &plans("default_plan = \"starter\"", "default_plan = \"pro\"")).await;
        used(&world, "acme", 1999).await;
        let (one, two) = (world.reserve("acme", 9, 60).await, world.reserve("acme", 5000, 60).await);
        assert_eq!(balance(&world.check("acme").await), (1999, 5009, 0));
        for id in [one, two] {
            assert_eq!(world.commit(&id, &Value::Null).await.ok()["over_limit"], false, "it has no cap");
        }
        assert_eq!(world.usage("acme").await, 1999 + 5009);
    }

    async fn a_hold_tells_nobody_and_the_commit_that_crosses_a_threshold_does(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 150).await;
        let (nudged, full) = (world.reserve("acme", 20, 60).await, world.reserve("acme", 30, 60).await);
        assert_eq!(notices(&world, "acme").await, Vec::<String>::new());
        world.commit(&nudged, &Value::Null).await.ok();
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80"]);
        world.commit(&full, &Value::Null).await.ok();
        world.commit(&full, &Value::Null).await.ok();
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80", "cap_reached 100"]);
    }

    async fn the_run_is_its_seats_whoever_settles_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let held = ask(&world, "acme", json!({"entity_id": "jo", "reserve": {}})).await;
        assert_eq!(held["reservation"]["expires_at"], "2026-11-01T09:15:00Z", "a quarter of an hour, unsaid");
        world.commit(held["reservation"]["id"].as_str().unwrap(), &Value::Null).await.ok();
        let whose = "SELECT entity_id, counted_units FROM usage_events ORDER BY counted_units";
        assert_eq!(rows(&db.url, whose).await, ["jo|0", "jo|1"]);
    }

    async fn a_reserve_under_a_key_holds_once_and_has_one_answer(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let mut keyed = reserve("acme", 8, 60);
        keyed["idempotency_key"] = json!("job-1");
        let first = bytes(&world, "/v1/check", &keyed).await;
        assert_eq!(bytes(&world, "/v1/check", &keyed).await, first);
        assert_eq!(balance(&world.check("acme").await), (190, 8, 2));
        let mut longer = keyed.clone();
        longer["reserve"] = json!({"expires_in_seconds": 61});
        assert_eq!(world.call("POST", "/v1/check", &longer).await.error(), "idempotency_key_reused: idempotency_key");
        let answer: Value = serde_json::from_str(&first.1).unwrap();
        world.commit(answer["reservation"]["id"].as_str().unwrap(), &Value::Null).await.ok();
        world.restart().await;
        assert_eq!(bytes(&world, "/v1/check", &keyed).await, first, "also when the run is over");
        assert_eq!(balance(&world.check("acme").await), (198, 0, 2));
        assert_books_balance(&db.url).await;
    }

    async fn a_reserve_that_was_denied_holds_nothing_and_stays_denied(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 195).await;
        let mut keyed = reserve("acme", 8, 60);
        keyed["idempotency_key"] = json!("job-1");
        let denied = bytes(&world, "/v1/check", &keyed).await;
        assert!(denied.1.contains("limit_reached") && denied.1.contains("\"reservation\":null"), "{denied:?}");
        let stripe_id = world.link("acme").await;
        world.subscribe(&stripe_id, "pro_monthly").await;
        assert_eq!(bytes(&world, "/v1/check", &keyed).await, denied);
        assert_eq!(states(&db).await, Vec::<String>::new());
    }

    async fn what_cannot_be_held_is_refused_with_its_field(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        for (fields, status, error) in [
            (json!({"reserve": {}, "send_event": true}), 422, "invalid_value: reserve"),
            (json!({"reserve": true}), 400, "malformed: reserve"),
            (json!({"reserve": {"expires_in_seconds": 0}}), 422, "invalid_value: reserve.expires_in_seconds"),
            (json!({"reserve": {"expires_in_seconds": WEEK + 1}}), 422, "invalid_value: reserve.expires_in_seconds"),
            (json!({"reserve": {"for": 5}}), 422, "unknown_field: reserve.for"),
        ] {
            let reply = world.call("POST", "/v1/check", &body("acme", fields)).await;
            assert_eq!((reply.status, reply.error().as_str()), (status, error));
        }
        assert_eq!(states(&db).await, Vec::<String>::new());
    }
}

// --- one end -----------------------------------------------------------------------------------

both_databases! {
    async fn a_commit_is_final_and_asked_again_it_has_the_same_answer(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let id = world.reserve("acme", 8, 60).await;
        let (commit, five) = (commit_path(&id), json!({"value": 5}));
        let first = bytes(&world, &commit, &five).await;
        assert_eq!(first.0, 200, "{}", first.1);
        world.runs("acme", 3).await;
        world.restart().await;
        world.advance(Duration::from_secs(40 * 86_400)).await;
        assert_eq!(bytes(&world, &commit, &five).await, first);
        for (path, body) in [
            (&commit, json!({"value": 6})),
            (&commit, json!({})),
            (&commit, json!({"value": 0})),
            (&release_path(&id), Value::Null),
        ] {
            assert_eq!(refusal(&world, path, &body).await, settled_already(), "{path} {body}");
        }
        assert_eq!(bytes(&world, &commit, &five).await, first);
        assert_eq!(rows(&db.url, "SELECT usage_units, reserved_units FROM usage_counters").await, ["198|0"]);
        assert_books_balance(&db.url).await;
    }

    async fn the_number_that_was_held_and_none_at_all_are_the_same_commit(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let commit = commit_path(&world.reserve("acme", 8, 60).await);
        let first = bytes(&world, &commit, &Value::Null).await;
        for same in [json!({}), json!({"value": 8}), json!({"value": null})] {
            assert_eq!(bytes(&world, &commit, &same).await, first, "{same}");
        }
        assert_eq!(world.usage("acme").await, 198);
    }

    async fn a_release_is_final_too(db: TestDb) {
        let mut world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let id = world.reserve("acme", 8, 60).await;
        let first = bytes(&world, &release_path(&id), &Value::Null).await;
        world.runs("acme", 5).await;
        world.restart().await;
        assert_eq!(bytes(&world, &release_path(&id), &json!({})).await, first);
        for value in [json!({}), json!({"value": 0}), json!({"value": 8})] {
            assert_eq!(refusal(&world, &commit_path(&id), &value).await, settled_already());
        }
        assert_eq!(balance(&world.check("acme").await), (195, 0, 5));
    }

    async fn nobody_settles_what_was_never_held(db: TestDb) {
        let world = World::start(&db).await;
        let held = world.customer("acme").await;
        assert_eq!(held["features"][0]["balance"]["reserved"], 0);
        let long = "x".repeat(65);
        for id in ["res_0", "%00", "%FF", long.as_str()] {
            for path in [commit_path(id), release_path(id)] {
                let unknown = refusal(&world, &path, &Value::Null).await;
                assert_eq!(unknown, (404, "unknown_reservation: reservation_id".to_owned()), "{path}");
            }
        }
    }

    async fn a_commit_with_a_bad_value_leaves_the_hold_as_it_was(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let id = world.reserve("acme", 8, 60).await;
        for (bad, status, error) in [
            (json!({"value": -1}), 422, "invalid_value: value"),
            (json!({"value": 1_000_000_001}), 422, "invalid_value: value"),
            (json!({"value": "8"}), 400, "malformed: value"),
            (json!({"units": 8}), 422, "unknown_field: units"),
            (json!([]), 400, "malformed"),
        ] {
            assert_eq!(refusal(&world, &commit_path(&id), &bad).await, (status, error.to_owned()), "{bad}");
        }
        assert_eq!(refusal(&world, &release_path(&id), &json!({"value": 1})).await.0, 422);
        assert_eq!(balance(&world.check("acme").await), (190, 8, 2));
        world.commit(&id, &Value::Null).await.ok();
    }
}

// --- late --------------------------------------------------------------------------------------

both_databases! {
    async fn what_nobody_settles_in_time_is_free_again(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let id = world.reserve("acme", 10, 60).await;
        world.advance(Duration::from_millis(59_999)).await;
        assert_eq!(world.run("acme").await["reason"], "held_by_running_jobs");
        world.advance(Duration::from_millis(1)).await;
        assert_eq!((states(&db).await, world.runs("acme", 10).await["balance"]["reserved"].clone()), (
            vec!["expired".to_owned()], json!(0)
        ));
        // The run ends all the same, and is counted past the cap.
        let commit = commit_path(&id);
        let first = bytes(&world, &commit, &Value::Null).await;
        let late: Value = serde_json::from_str(&first.1).unwrap();
        assert_eq!((outcome(&late), balance(&late)), ((10, true, true), (210, 0, 0)));
        assert_eq!((&late["reservation"]["state"], &late["reason"]), (&json!("committed"), &json!("limit_reached")));
        assert_eq!(bytes(&world, &commit, &Value::Null).await, first);
        assert_eq!(refusal(&world, &release_path(&id), &Value::Null).await, settled_already());
        assert_eq!(states(&db).await, ["committed"]);
        assert_books_balance(&db.url).await;
    }

    async fn a_release_after_expiry_gives_nothing_back_twice(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let (late, pending) = (world.reserve("acme", 4, 60).await, world.reserve("acme", 6, 600).await);
        world.advance(Duration::from_secs(60)).await;
        assert_eq!(balance(&world.check("acme").await), (190, 6, 4));
        assert_eq!(balance(&world.release(&late).await.ok()), (190, 6, 4));
        assert_eq!(refusal(&world, &commit_path(&late), &Value::Null).await, settled_already());
        assert_eq!(balance(&world.release(&pending).await.ok()), (190, 0, 10));
        assert_books_balance(&db.url).await;
    }

    async fn however_many_have_expired_all_units_are_free_again(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        for _ in 0..200 {
            world.reserve("acme", 1, 60).await;
        }
        let more = "INSERT INTO reservations SELECT reservation_id || t.column1, customer_id, feature_id, entity_id, \
            series, period_start_ms, period_end_ms, units, state, created_at_ms, expires_at_ms, settled_at_ms \
            FROM reservations CROSS JOIN (VALUES ('a'), ('b'), ('c'), ('d')) AS t";
        rows(&db.url, more).await;
        rows(&db.url, "UPDATE usage_counters SET reserved_units = 1000").await;
        world.clock.advance(Duration::from_secs(60)).unwrap();
        Job::Expire.step(world.app()).await.unwrap();
        assert_eq!(rows(&db.url, "SELECT reserved_units FROM usage_counters").await, ["0"]);
        assert_eq!(rows(&db.url, "SELECT DISTINCT state FROM reservations").await, ["expired"]);
    }

    async fn who_is_late_is_told_so_even_before_the_job_has_looked(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        let id = world.reserve("acme", 8, 60).await;
        world.clock.advance(Duration::from_secs(60)).unwrap();
        let done = world.commit(&id, &Value::Null).await.ok();
        assert_eq!((outcome(&done), balance(&done)), ((8, true, false), (198, 0, 2)));
        world.run_job(Job::Expire).await;
        assert_eq!((states(&db).await, world.usage("acme").await), (vec!["committed".to_owned()], 198));
    }

    async fn a_run_across_the_periods_end_is_the_old_ones_for_half_an_hour(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        world.advance_to("2026-11-30T23:00:00Z").await;
        let (soon, later) = (world.reserve("acme", 3, WEEK).await, world.reserve("acme", 5, WEEK).await);
        world.advance_to("2026-12-01T00:29:59.999Z").await;
        world.runs("acme", 20).await;
        let november = json!({"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"});
        let in_time = world.commit(&soon, &Value::Null).await.ok();
        assert_eq!((&in_time["period"], outcome(&in_time)), (&november, (3, false, false)));
        assert_eq!(balance(&in_time), (193, 5, 2));
        world.advance(Duration::from_millis(1)).await;
        let late = world.commit(&later, &Value::Null).await.ok();
        assert_eq!((&late["period"]["start"], outcome(&late)), (&json!("2026-12-01T00:00:00Z"), (5, true, false)));
        assert_eq!(balance(&late), (25, 0, 175));
        assert_eq!(
            rows(&db.url, "SELECT usage_units, reserved_units FROM usage_counters ORDER BY period_start_ms").await,
            ["193|0", "25|0"]
        );
        assert_books_balance(&db.url).await;
    }

    async fn a_period_that_is_over_tells_nobody_of_its_thresholds(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 150).await;
        world.advance_to("2026-11-30T23:50:00Z").await;
        let id = world.reserve("acme", 50, WEEK).await;
        world.advance_to("2026-12-01T00:10:00Z").await;
        assert_eq!(world.commit(&id, &Value::Null).await.ok()["balance"]["usage"], 200);
        assert_eq!(notices(&world, "acme").await, Vec::<String>::new());
    }

    async fn a_hold_given_back_after_its_period_was_never_there(db: TestDb) {
        let world = World::start(&db).await;
        used(&world, "acme", 190).await;
        world.advance_to("2026-11-30T23:00:00Z").await;
        let id = world.reserve("acme", 8, WEEK).await;
        world.advance_to("2026-12-03T00:00:00Z").await;
        let back = world.release(&id).await.ok();
        assert_eq!((&back["period"]["end"], balance(&back)), (&json!("2026-12-01T00:00:00Z"), (190, 0, 10)));
        assert_eq!(balance(&world.check("acme").await), (0, 0, 200));
        assert_books_balance(&db.url).await;
    }

    async fn a_run_across_a_first_subscription_is_the_subscriptions(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        world.runs("acme", 10).await;
        let (run, void) = (world.reserve("acme", 8, WEEK).await, world.reserve("acme", 3, WEEK).await);
        world.advance_to("2026-11-01T09:10:00Z").await;
        world.subscribe(&stripe_id, "starter_monthly").await;
        let done = world.commit(&run, &Value::Null).await.ok();
        assert_eq!((&done["period"]["start"], outcome(&done)), (&json!("2026-11-01T09:10:00Z"), (8, true, false)));
        assert_eq!(balance(&done), (8, 0, 192));
        world.release(&void).await.ok();
        let counters = "SELECT series, usage_units, reserved_units FROM usage_counters ORDER BY series";
        assert_eq!(rows(&db.url, counters).await, ["0|10|0", "1|8|0"]);
        assert_books_balance(&db.url).await;
    }

    async fn a_deleted_customers_holds_end_by_the_clock(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let id = world.reserve("acme", 8, 60).await;
        world.call("DELETE", "/v1/customers/acme", &Value::Null).await;
        assert_eq!(refusal(&world, &commit_path(&id), &Value::Null).await, (404, "unknown_customer: customer_id".to_owned()));
        world.advance(Duration::from_secs(60)).await;
        assert_eq!(states(&db).await, ["expired"]);
        world.customer("acme").await;
        assert_eq!(outcome(&world.commit(&id, &Value::Null).await.ok()), (8, true, false));
        assert_books_balance(&db.url).await;
    }
}

// --- Stripe, crashes and replicas --------------------------------------------------------------

both_databases! {
    async fn a_committed_run_reaches_stripe_once_with_what_it_took(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        let (run, void) = (world.reserve("acme", 8, 600).await, world.reserve("acme", 3, 60).await);
        world.advance(Duration::from_secs(120)).await;
        world.commit(&run, &json!({"value": 5})).await.ok();
        world.commit(&run, &json!({"value": 5})).await.ok();
        world.release(&void).await.ok();
        world.advance(Duration::from_secs(600)).await;
        assert_eq!(world.billed(&stripe_id), "5");
    }

    async fn stripe_hears_of_it_in_the_period_it_is_counted_in(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        world.advance_to("2026-11-30T23:50:00Z").await;
        let (own, next) = (world.reserve("acme", 3, WEEK).await, world.reserve("acme", 5, WEEK).await);
        world.advance_to("2026-12-01T00:12:00Z").await;
        world.commit(&own, &Value::Null).await.ok();
        world.advance_to("2026-12-01T01:00:00Z").await;
        world.commit(&next, &Value::Null).await.ok();
        world.advance(Duration::from_secs(600)).await;
        let told: Vec<_> = world.sim.meter_events().iter().map(|event| {
            let moment = tollgate::clock::Timestamp::from_seconds(event.timestamp_s);
            format!("{} {moment}", event.value)
        }).collect();
        assert_eq!(told, ["3 2026-11-30T23:59:59Z", "5 2026-12-01T01:00:00Z"]);
        assert_eq!(world.billed(&stripe_id), "8");
    }

    async fn holds_survive_a_killed_daemon(db: TestDb) {
        let machine = Machine::on(&db);
        let mut daemon = machine.serve().await;
        daemon.api.ok("PUT", "/v1/customers/acme", &json!({})).await;
        let mut ids = Vec::new();
        for units in [8, 9, 10] {
            let held = daemon.api.ok("POST", "/v1/check", &reserve("acme", units, WEEK)).await;
            ids.push(held["reservation"]["id"].as_str().unwrap().to_owned());
        }
        let done = daemon.api.ok("POST", &commit_path(&ids[0]), &json!({"value": 7})).await;
        let back = daemon.api.ok("POST", &release_path(&ids[1]), &Value::Null).await;
        daemon.process.kill();
        let daemon = machine.serve().await;
        assert_eq!(daemon.api.ok("POST", &commit_path(&ids[0]), &json!({"value": 7})).await, done);
        assert_eq!(daemon.api.ok("POST", &release_path(&ids[1]), &Value::Null).await, back);
        let last = daemon.api.ok("POST", &commit_path(&ids[2]), &Value::Null).await;
        assert_eq!((outcome(&last), balance(&last)), ((10, false, false), (17, 0, 183)));
        daemon.stop().await;
        assert_books_balance(&db.url).await;
    }
}

/// The same few settlements of one reservation by 24 callers, every other one at the second daemon.
async fn settled_from_both_sides(world: &World, other: &str, id: &str) -> Vec<(u16, String)> {
    let settlements = [
        (commit_path(id), json!({"value": 3})),
        (commit_path(id), json!({"value": 5})),
        (release_path(id), json!({})),
    ];
    let mut callers = JoinSet::new();
    for caller in 0..24 {
        let (path, body) = &settlements[caller % settlements.len()];
        let url = if caller % 2 == 0 { world.url(path) } else { format!("http://{other}{path}") };
        let request = world.http.post(url).bearer_auth(API_KEY).body(body.to_string());
        callers.spawn(async move {
            let response = request.send().await.expect("the daemon answers");
            (response.status().as_u16(), response.text().await.expect("a whole body"))
        });
    }
    callers.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_settle_one_hold_at_once_agree_on_its_end() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let other = world.replica(world.clock.clone()).await;
    for round in 0..10 {
        let customer = format!("round-{round}");
        used(&world, &customer, 190).await;
        let id = world.reserve(&customer, 8, 60).await;
        let mut answers = settled_from_both_sides(&world, &other.address.to_string(), &id).await;
        answers.retain(|(status, _)| *status != 409);
        assert_eq!(
            answers.len(),
            8,
            "one of three ends, told to all who asked for it: {answers:?}"
        );
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        let end: Value = serde_json::from_str(&answers[0].1).unwrap();
        assert_eq!(balance(&world.check(&customer).await), balance(&end));
    }
    assert_books_balance(&db.url).await;
    other.stop().await.unwrap();
}
