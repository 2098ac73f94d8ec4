//! `tollgate prove`: what was used in every closed period is at Stripe, to the unit.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::entropy::Entropy;
use tollgate::jobs::Job;
use tollgate::sim::FaultKind;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Finished, Machine, wait_for};
use crate::harness::sql::{assert_books_balance, rows};
use crate::harness::stripe::METER_EVENTS;
use crate::harness::world::{STRIPE_KEY, World};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const PLANS: &str = include_str!("../../plans.example.toml");
/// The command has the machine's clock, to which all this is past.
const START: &str = "2026-08-01T09:00:00Z";
const AUGUST_IS_OVER: &str = "2026-09-01T03:00:00Z";

async fn start(db: &TestDb) -> World {
    World::with_plans_at(db, PLANS, START).await
}

async fn prove(db: &TestDb, world: &World, options: &[&str]) -> Finished {
    let mut machine = Machine::on(db);
    let plans = std::fs::read_to_string(world.plans_file()).unwrap();
    machine.write("plans.toml", &plans);
    machine.set("STRIPE_API_BASE", &world.sim.base_url());
    machine.set("STRIPE_SECRET_KEY", STRIPE_KEY);
    machine.run(&[&["prove"], options].concat()).await
}

/// The lines of a proof, as `customer meter ledger stripe difference`.
async fn lines(db: &TestDb, world: &World) -> Vec<String> {
    let proof = prove(db, world, &["--json"]).await;
    let told: Value = serde_json::from_str(&proof.stdout).unwrap_or_else(|_| panic!("{proof:?}"));
    let agrees = told["differing"] == 0 && told["unreadable"] == 0;
    assert_eq!(proof.code, Some(i32::from(!agrees)), "{proof:?}");
    let word = |line: &Value| {
        let [customer, meter] = ["customer_id", "meter"].map(|name| line[name].as_str().unwrap());
        format!("{customer} {meter} {} {} {}", line["ledger"], line["stripe"], line["difference"])
    };
    told["lines"].as_array().unwrap().iter().map(word).collect()
}

both_databases! {
    async fn a_unit_too_few_and_one_too_many_are_both_found(db: TestDb) {
        let world = start(&db).await;
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        world.linked("initech").await;
        for (customer, units) in [("acme", 5), ("globex", 6), ("initech", 7)] {
            world.runs(customer, units).await;
        }
        world.advance(HOUR).await;
        world.report_by_hand(&acme, "-1").await;
        world.report_by_hand(&globex, "1").await;
        world.advance_to(AUGUST_IS_OVER).await;
        assert_eq!(lines(&db, &world).await, [
            "acme ai_runs 5 4 -1", "globex ai_runs 6 7 1", "initech ai_runs 7 7 0",
        ]);
        let table = prove(&db, &world, &[]).await;
        let period = "2026-08-01T00:00:00Z 2026-09-01T00:00:00Z";
        let expected = [
            "customer meter period ledger Stripe difference".to_owned(),
            format!("acme ai_runs {period} 5 4 -1"),
            format!("globex ai_runs {period} 6 7 +1"),
            format!("initech ai_runs {period} 7 7 0"),
            "total 3 closed periods 18 18 0".to_owned(),
        ];
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(table.stdout.lines().map(words).collect::<Vec<_>>(), expected);
        assert_eq!((table.code, table.stderr.trim()), (Some(1), "tollgate: 2 of 3 sums differ"));
        let one = prove(&db, &world, &["--customer", "initech"]).await;
        assert_eq!((one.code, one.stdout.lines().count()), (Some(0), 3), "{one:?}");
    }

    async fn a_meter_event_that_was_lost_is_missed(db: TestDb) {
        let world = start(&db).await;
        world.linked("acme").await;
        world.runs("acme", 5).await;
        world.advance(HOUR).await;
        world.runs("acme", 2).await;
        world.clock.advance(5 * MINUTE).unwrap();
        world.run_job(Job::CloseWindows).await;
        rows(&db.url, "DELETE FROM meter_events WHERE state = 'pending'").await;
        world.advance_to(AUGUST_IS_OVER).await;
        assert_eq!(lines(&db, &world).await, ["acme ai_runs 7 5 -2"]);
        let table = prove(&db, &world, &[]).await.stdout;
        assert!(table.contains("-2  2 units were metered and are in no meter event"), "{table}");
    }

    async fn parked_usage_differs_and_says_why(db: TestDb) {
        let world = start(&db).await;
        let acme = world.linked("acme").await;
        world.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
        world.runs("acme", 5).await;
        world.stripe("DELETE", &format!("/v1/customers/{acme}"), &[]).await;
        world.advance_to(AUGUST_IS_OVER).await;
        let proof = prove(&db, &world, &[]).await;
        assert_eq!(proof.code, Some(1));
        assert!(proof.stdout.contains("5 units are parked: Stripe refused it"), "{proof:?}");
        assert!(proof.stdout.contains("Stripe's sum cannot be read"), "{proof:?}");
        assert!(proof.stderr.contains("0 of 1 sums differ, and 1 cannot be read"), "{proof:?}");
    }

    async fn features_of_one_meter_are_one_sum_and_local_usage_is_in_none(db: TestDb) {
        let features = "[features.seats]\nname = \"Seats\"\nunit = \"seat\"\n[features.ai_runs]";
        let limits = "limits.seats = { granted = 50, enforcement = \"hard\" }\n\
            limits.ai_runs = { granted = 200,";
        let plans = PLANS
            .replace("[features.ai_runs]", features)
            .replace("limits.ai_runs = { granted = 200,", limits);
        let world = World::with_plans_at(&db, &plans, START).await;
        world.customer("local").await;
        world.linked("acme").await;
        let track = async |customer: &str, feature: &str, value: i64| {
            let body = json!({"customer_id": customer, "feature_id": feature, "value": value});
            world.call("POST", "/v1/track", &body).await.ok();
        };
        track("local", "ai_runs", 8).await;
        track("acme", "seats", 4).await;
        track("acme", "ai_runs", 1).await;
        // The feature gets another id; the meter stays.
        let renamed = plans.replace("ai_runs", "jobs").replace("meter = \"jobs\"", "meter = \"ai_runs\"");
        std::fs::write(world.plans_file(), renamed).unwrap();
        world.settle().await;
        track("acme", "jobs", 2).await;
        world.advance_to(AUGUST_IS_OVER).await;
        assert_eq!(lines(&db, &world).await, ["acme ai_runs 3 3 0"]);
    }

    async fn a_feature_that_changed_its_meter_is_proven_at_both(db: TestDb) {
        let world = start(&db).await;
        let sum = ("default_aggregation[formula]", "sum");
        let meter = [("display_name", "p"), ("event_name", "runs_2"), sum];
        world.stripe("POST", "/v1/billing/meters", &meter).await;
        world.linked("acme").await;
        world.runs("acme", 5).await;
        let plans = PLANS.replace("stripe_meter = \"ai_runs\"", "stripe_meter = \"runs_2\"");
        std::fs::write(world.plans_file(), plans).unwrap();
        world.settle().await;
        world.runs("acme", 2).await;
        world.advance(5 * MINUTE).await;
        world.advance_to(AUGUST_IS_OVER).await;
        assert_eq!(lines(&db, &world).await, ["acme ai_runs 5 5 0", "acme runs_2 2 2 0"]);
    }

    async fn periods_that_begin_within_a_minute_and_within_another_are_told_apart(db: TestDb) {
        let world = start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 1).await;
        world.clock.advance(Duration::from_secs(150)).unwrap();
        // A first subscription, at half past a minute, begins a series of its own.
        let subscription = world.subscribe(&acme, "pro_monthly").await;
        world.runs("acme", 2).await;
        world.advance_to("2026-09-01T09:02:25Z").await;
        world.runs("acme", 4).await;
        world.clock.advance(Duration::from_secs(10)).unwrap();
        world.runs("acme", 8).await;
        world.advance(5 * MINUTE).await;
        world.stripe("DELETE", &format!("/v1/subscriptions/{subscription}"), &[]).await;
        world.settle().await;
        world.runs("acme", 16).await;
        world.advance(3 * HOUR).await;
        assert_eq!(lines(&db, &world).await, [
            "acme ai_runs 1 1 0", "acme ai_runs 6 6 0", "acme ai_runs 8 8 0", "acme ai_runs 16 16 0",
        ]);
        assert_eq!(world.billed(&acme), "31");
    }

    async fn what_retention_has_deleted_stays_proven(db: TestDb) {
        let plans = PLANS
            .replace("# [retention]", "[retention]")
            .replace("# usage_events = \"400d\"", "usage_events = \"62d\"");
        let world = World::with_plans_at(&db, &plans, "2026-05-01T09:00:00Z").await;
        world.customer("acme").await;
        world.runs("acme", 3).await;
        world.link("acme").await;
        world.runs("acme", 4).await;
        world.advance(HOUR).await;
        world.advance_to("2026-08-20T00:00:00Z").await;
        let pruned = "SELECT pruned_units, pruned_metered_units FROM usage_counters";
        assert_eq!(rows(&db.url, pruned).await, ["7|4"]);
        assert_eq!(lines(&db, &world).await, ["acme ai_runs 4 4 0"]);
    }

    async fn without_a_key_or_with_a_wrong_one_nothing_is_proven(db: TestDb) {
        let world = start(&db).await;
        world.linked("acme").await;
        world.runs("acme", 5).await;
        world.advance_to(AUGUST_IS_OVER).await;
        let mut machine = Machine::on(&db);
        let without = machine.run(&["prove"]).await;
        assert_eq!(without.code, Some(1));
        assert!(without.stderr.contains("STRIPE_SECRET_KEY is not set"), "{without:?}");
        machine.set("STRIPE_API_BASE", &world.sim.base_url());
        machine.set("STRIPE_SECRET_KEY", "sk_test_wrong");
        let wrong = machine.run(&["prove"]).await;
        assert_eq!((wrong.code, wrong.stdout.as_str()), (Some(1), ""), "{wrong:?}");
        assert!(wrong.stderr.contains("does not accept our key"), "{wrong:?}");
    }
}

// --- A thousand runs ---------------------------------------------------------------------------

const KINDS: [FaultKind; 9] = [
    FaultKind::ServerError,
    FaultKind::ServerErrorAfterEffect,
    FaultKind::RateLimited,
    FaultKind::LockTimeout,
    FaultKind::BadGateway,
    FaultKind::DropBeforeEffect,
    FaultKind::DropAfterEffect,
    FaultKind::CutBody,
    FaultKind::DelayMs(5000),
];

/// Runs the job that sends while these befall its calls, one after another. Time goes on only while
/// Stripe takes its time over one.
async fn push_under(world: &World, faults: &[FaultKind]) {
    for fault in faults {
        world.sim.fail_next(METER_EVENTS, 1, *fault);
    }
    let before = world.sim.requests().len();
    let job = Job::PushMeterEvents.step(world.app());
    tokio::pin!(job);
    loop {
        tokio::select! {
            done = &mut job => return done.map(|_| ()).expect("it sends"),
            () = a_call_hangs(world, before, faults) => {
                world.clock.advance(Duration::from_secs(1)).unwrap();
            }
        }
    }
}

/// Waits until the newest call is one that is delayed, and has been for a look: by then it waits by
/// the clock.
async fn a_call_hangs(world: &World, before: usize, faults: &[FaultKind]) {
    let mut seen = false;
    wait_for("it is sent, or hangs", async || {
        let calls = world.sim.requests().split_off(before);
        let sends = calls.iter().filter(|call| call.path == METER_EVENTS).count();
        let fault = sends.checked_sub(1).and_then(|place| faults.get(place));
        let hangs = matches!(fault, Some(FaultKind::DelayMs(_)))
            && calls.last().is_some_and(|call| call.status.is_none());
        std::mem::replace(&mut seen, hangs).then_some(())
    })
    .await;
}

both_databases! {
    async fn a_thousand_runs_under_faults_and_restarts_are_at_stripe_to_the_unit(db: TestDb) {
        let mut world = start(&db).await;
        let dice = Entropy::seeded(31);
        let throw = |sides: usize| usize::from(dice.secret()[0]) % sides;
        let mut stripe_ids = Vec::new();
        for n in 0..4 {
            stripe_ids.push(world.linked(&format!("c{n}")).await);
            world.subscribe(&stripe_ids[n], "pro_monthly").await;
        }
        for round in 0..50 {
            for _ in 0..20 {
                assert_eq!(world.run(&format!("c{}", throw(4))).await["allowed"], true);
            }
            world.clock.advance(5 * MINUTE).unwrap();
            let faults: Vec<_> = (0..throw(4)).map(|_| KINDS[throw(KINDS.len())]).collect();
            push_under(&world, &faults).await;
            if round % 10 == 4 {
                // A day and more in which nothing gets through, or nobody hears that it did.
                let kind = [FaultKind::DropBeforeEffect, FaultKind::DropAfterEffect][throw(2)];
                world.sim.fail_next(METER_EVENTS, 500, kind);
                for _ in 0..25 {
                    world.advance(HOUR).await;
                }
                world.sim.change_faults(|faults| faults.api.clear());
            }
            if throw(4) == 0 {
                world.restart().await;
            }
            world.sim.change_faults(|faults| faults.api.clear());
            world.advance(HOUR).await;
        }
        world.advance_to("2026-09-03T00:00:00Z").await;
        world.advance(HOUR).await;
        let ledger = "SELECT CAST(SUM(usage_units) AS BIGINT) FROM usage_counters";
        assert_eq!(rows(&db.url, ledger).await, ["1000"]);
        assert_books_balance(&db.url).await;
        let proof = prove(&db, &world, &[]).await;
        assert_eq!(proof.code, Some(0), "{proof:?}");
        let total: i64 = stripe_ids.iter().map(|id| world.billed(id).parse::<i64>().unwrap()).sum();
        assert_eq!(total, 1000);
        let replaced = "SELECT COUNT(*) FROM meter_events WHERE state = 'replaced'";
        assert_ne!(rows(&db.url, replaced).await, ["0"], "something was in doubt and missing");
        let waiting = "SELECT state, detail FROM meter_events WHERE state IN ('pending', 'parked')";
        assert_eq!(rows(&db.url, waiting).await, [""; 0]);
    }
}
