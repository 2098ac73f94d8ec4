//! From runs to Stripe's meters: what is reported, when, to whom, and that whatever goes wrong on
//! the way every unit is billed once.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::clock::{Clock, Timestamp};
use tollgate::entropy::Entropy;
use tollgate::jobs::Job;
use tollgate::sim::{Decimal, FaultKind, LoggedRequest, MeterEvent};
use tollgate::store::outbox;
use tollgate::store::usage::CounterKey;

use crate::harness::postgres::TestDb;
use crate::harness::sql::rows;
use crate::harness::stripe::METER_EVENTS;
use crate::harness::world::{API_KEY, World};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

// --- What the stories are told in --------------------------------------------------------------

/// Units and time of what Stripe counts for one of its customers, in order of arrival.
fn counted(world: &World, stripe_id: &str) -> Vec<(i64, String)> {
    let events = world.sim.meter_events();
    let of_customer = events.iter().filter(|event| event.customer == stripe_id);
    of_customer.map(|event| (units(event), time_of(event).to_string())).collect()
}

fn units(event: &MeterEvent) -> i64 {
    event.value.to_string().parse().expect("whole units")
}

fn time_of(event: &MeterEvent) -> Timestamp {
    Timestamp::from_seconds(event.timestamp_s)
}

/// Every attempt to send a meter event.
fn sends(world: &World) -> Vec<LoggedRequest> {
    let requests = world.sim.requests().into_iter();
    requests.filter(|request| request.path == METER_EVENTS).collect()
}

/// The customer's only meter event as the daemon keeps it.
async fn row(world: &World, customer: &str) -> outbox::MeterEvent {
    let rows = world.app().store.list_meter_events(Some(customer), None, 10).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.into_iter().next().unwrap()
}

/// What Stripe tells one meter event from another by, and what it counts.
fn frozen(row: &outbox::MeterEvent) -> (String, String, String, i64, Timestamp) {
    (
        row.identifier.clone(),
        row.event_name.clone(),
        row.stripe_customer_id.clone(),
        row.units,
        row.timestamp,
    )
}

/// Waits for the daemon's own loops, which are beyond this test's reach.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Ten seconds in which the daemon's own loops get their turn; answers how its jobs are doing.
async fn ten_seconds(world: &World) -> Vec<Value> {
    world.list("/jobs").await;
    world.clock.advance(Duration::from_secs(10)).unwrap();
    world.list("/jobs").await
}

// --- What is reported, and when ----------------------------------------------------------------

both_databases! {
    async fn a_period_that_stripe_makes_longer_is_metered_to_its_new_end(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let price = world.price("starter_monthly").await;
        let until = |moment: &str| moment.parse::<Timestamp>().unwrap().seconds().to_string();
        let form = [
            ("customer", stripe_id.as_str()),
            ("items[0][price]", &price),
            ("trial_end", &until("2026-11-10T00:00:00Z")),
        ];
        let subscription = world.stripe("POST", "/v1/subscriptions", &form).await;
        world.settle().await;
        world.run("acme").await;
        let path = format!("/v1/subscriptions/{}", subscription["id"].as_str().unwrap());
        world.stripe("POST", &path, &[("trial_end", &until("2026-11-20T00:00:00Z"))]).await;
        world.settle().await;
        world.advance_to("2026-11-15T12:00:00Z").await;
        assert_eq!(world.run("acme").await["balance"]["usage"], 2, "the same period");
        world.advance(Duration::from_secs(3600)).await;
        let last = "SELECT MAX(timestamp_ms) AS v FROM meter_events";
        let noon: Timestamp = "2026-11-15T12:00:00Z".parse().unwrap();
        assert_eq!(rows(&db.url, last).await, [noon.ms().to_string()], "when it was, not earlier");
    }

    async fn the_runs_of_a_window_are_one_meter_event_once_it_is_closed(db: TestDb) {
        let world = World::start(&db).await;
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        world.runs("acme", 2).await;
        world.runs("globex", 9).await;
        world.advance(4 * MINUTE + Duration::from_secs(59)).await;
        world.runs("acme", 3).await;
        world.settle().await;
        assert_eq!(sends(&world).len(), 0, "the window is still open");

        world.advance(Duration::from_secs(1)).await;
        let nine = "2026-11-01T09:00:00Z".to_owned();
        assert_eq!(counted(&world, &acme), [(5, nine.clone())]);
        assert_eq!(counted(&world, &globex), [(9, nine.clone())]);

        world.run("acme").await;
        world.advance(5 * MINUTE).await;
        assert_eq!(counted(&world, &acme), [(5, nine), (1, "2026-11-01T09:05:00Z".to_owned())]);
        assert_eq!(sends(&world).len(), 3);
    }

    async fn a_window_goes_out_at_the_first_tick_after_it_closed(db: TestDb) {
        let plans = include_str!("../../plans.example.toml").replace("\"5m\"", "\"1m\"");
        let mut world = World::with_plans(&db, &plans).await;
        let acme = world.linked("acme").await;
        world.restart_with_loops().await;
        world.runs("acme", 7).await;
        // The window closes at 09:01, the schedule's tick is at 09:05.
        for _ in 0..30 {
            ten_seconds(&world).await;
        }
        eventually("the meter event arrives", || !world.sim.meter_events().is_empty()).await;
        assert_eq!(counted(&world, &acme), [(7, "2026-11-01T09:00:00Z".to_owned())]);
        let sent: Vec<_> = sends(&world).iter().map(|send| send.at.to_string()).collect();
        assert_eq!(sent, ["2026-11-01T09:05:00Z"]);
    }

    async fn a_job_that_is_done_leaves_its_lease_to_the_other_replicas(db: TestDb) {
        let mut world = World::start(&db).await;
        world.restart_with_loops().await;
        let ran = |jobs: Vec<Value>| {
            jobs.iter().any(|row| row["job"] == "deliver_notices" && row["ok"] == true
                && row["last_run_at"].is_string())
        };
        // The clock may be faster than the job, so it is machine time that must not run out.
        let done = async { while !ran(ten_seconds(&world).await) {} };
        let in_time = tokio::time::timeout(Duration::from_secs(20), done).await;
        in_time.expect("a job of every minute runs");
        let lease = ("job:deliver_notices", "another replica");
        let store = &world.app().store;
        // The clock stands still now: at most one more step is under way, and nothing expires.
        let taken = async {
            while !store.take_lease(lease.0, lease.1, world.now(), MINUTE).await.unwrap() {}
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), taken).await;
        in_time.expect("a lease is given back after its step");
    }

    async fn each_meter_gets_its_own_event_and_a_feature_without_one_none(db: TestDb) {
        let features = "[features.images]\nname = \"Images\"\nunit = \"image\"\n\
            stripe_meter = \"pics\"\n[features.seats]\nname = \"Seats\"\nunit = \"seat\"\n";
        let limits = "limits.images = { granted = 50, enforcement = \"hard\" }\n\
            limits.seats = { granted = 50, enforcement = \"hard\" }\n\
            limits.ai_runs = { granted = 200";
        let plans = include_str!("../../plans.example.toml")
            .replace("[features.ai_runs]", &format!("{features}[features.ai_runs]"))
            .replace("limits.ai_runs = { granted = 200,", &format!("{limits},"));
        let world = World::with_plans(&db, &plans).await;
        let sum = ("default_aggregation[formula]", "sum");
        let meter = [("display_name", "p"), ("event_name", "pics"), sum];
        world.stripe("POST", "/v1/billing/meters", &meter).await;
        let acme = world.linked("acme").await;
        for (feature, value) in [("ai_runs", 1), ("images", 2), ("seats", 4)] {
            let body = json!({"customer_id": "acme", "feature_id": feature, "value": value});
            world.call("POST", "/v1/track", &body).await.ok();
        }
        world.advance(5 * MINUTE).await;

        assert_eq!(world.sim.sum_of(&acme, "ai_runs"), 1);
        assert_eq!(world.sim.sum_of(&acme, "pics"), 2);
        assert_eq!(sends(&world).len(), 2, "seats stay here");
    }

    async fn usage_is_reported_from_the_link_on(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 10).await;
        world.advance(10 * MINUTE).await;
        world.runs("acme", 20).await;
        let acme = world.link("acme").await;
        world.runs("acme", 3).await;
        world.advance(10 * MINUTE).await;

        assert_eq!(counted(&world, &acme), [(3, "2026-11-01T09:10:00Z".to_owned())]);
        assert_eq!(world.usage("acme").await, 33);
    }

    async fn usage_before_another_stripe_customer_is_the_old_ones(db: TestDb) {
        let world = World::start(&db).await;
        let old = world.linked("acme").await;
        world.runs("acme", 3).await;
        world.advance(2 * MINUTE).await;
        let new = world.link("acme").await;
        world.runs("acme", 4).await;
        world.advance(5 * MINUTE).await;

        assert_eq!(counted(&world, &old), [(3, "2026-11-01T09:00:00Z".to_owned())]);
        assert_eq!(counted(&world, &new), [(4, "2026-11-01T09:02:00Z".to_owned())]);
    }

    async fn a_deleted_customers_open_window_is_still_billed(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 3).await;
        assert_eq!(world.call("DELETE", "/v1/customers/acme", &Value::Null).await.status, 204);
        world.settle().await;
        assert_eq!(counted(&world, &acme), [(3, "2026-11-01T09:00:00Z".to_owned())]);
        world.advance(HOUR).await;
        assert_eq!(world.billed(&acme), "3");
    }

    async fn a_window_never_straddles_the_end_of_stripes_period(db: TestDb) {
        let world = World::start(&db).await;
        world.advance(Duration::from_secs(150)).await;
        let acme = world.linked("acme").await;
        world.subscribe(&acme, "pro_monthly").await;
        world.advance_to("2026-12-01T09:02:29Z").await;
        let before = world.runs("acme", 3).await;
        assert_eq!(before["period"]["end"], "2026-12-01T09:02:30Z");
        world.advance(Duration::from_secs(1)).await;
        let after = world.runs("acme", 4).await;
        assert_eq!(after["period"]["start"], "2026-12-01T09:02:30Z");
        world.advance(10 * MINUTE).await;

        let times = ["2026-12-01T09:00:00Z", "2026-12-01T09:02:30Z"].map(str::to_owned);
        let [first, second] = times;
        assert_eq!(counted(&world, &acme), [(3, first), (4, second)]);
    }
}

// --- What Stripe and the network may answer ----------------------------------------------------

both_databases! {
    async fn every_retry_is_the_same_request_and_counts_once(db: TestDb) {
        let world = World::start(&db).await;
        for (n, kind) in [
            FaultKind::DropBeforeEffect,
            FaultKind::DropAfterEffect,
            FaultKind::RateLimited,
            FaultKind::LockTimeout,
            FaultKind::BadGateway,
        ]
        .into_iter()
        .enumerate()
        {
            let customer = format!("customer-{n}");
            let stripe_id = world.linked(&customer).await;
            let sent_before = sends(&world).len();
            world.runs(&customer, 7).await;
            world.sim.fail_next(METER_EVENTS, 2, kind);
            world.advance(5 * MINUTE).await;
            let first = row(&world, &customer).await;
            assert_eq!((first.state.as_str(), first.attempts), ("pending", 1), "{kind:?}");
            assert!(first.detail.is_some(), "{kind:?} is explained");
            world.advance(5 * MINUTE).await;
            world.advance(5 * MINUTE).await;

            let last = row(&world, &customer).await;
            assert_eq!(last.state, "delivered", "{kind:?}: {:?}", last.detail);
            assert_eq!(frozen(&last), frozen(&first), "{kind:?}");
            let sent = sends(&world).split_off(sent_before).into_iter();
            let keys: Vec<_> = sent.map(|send| send.idempotency_key).collect();
            assert_eq!(keys, vec![Some(first.idempotency_key.clone()); 3], "{kind:?}");
            assert_eq!(last.idempotency_key, first.idempotency_key, "{kind:?}");
            assert_eq!(counted(&world, &stripe_id), [(7, first.timestamp.to_string())], "{kind:?}");
        }
    }

    async fn a_500_that_stripe_repeats_for_a_day_is_outlived(db: TestDb) {
        let world = World::start(&db).await;
        for (customer, kind) in
            [("not-done", FaultKind::ServerError), ("done", FaultKind::ServerErrorAfterEffect)]
        {
            let stripe_id = world.linked(customer).await;
            world.runs(customer, 7).await;
            world.sim.fail_next(METER_EVENTS, 1, kind);
            world.advance(5 * MINUTE).await;
            let first = row(&world, customer).await;
            // Under the same key Stripe says the same again; under another it tells the truth.
            world.advance(5 * MINUTE).await;
            world.advance(5 * MINUTE).await;

            let last = row(&world, customer).await;
            assert_eq!((last.state.as_str(), last.attempts), ("delivered", 3), "{:?}", last.detail);
            assert_eq!(frozen(&last), frozen(&first));
            assert_ne!(last.idempotency_key, first.idempotency_key);
            assert_eq!(world.billed(&stripe_id), "7", "{customer}");
        }
        assert_eq!(row(&world, "done").await.detail.as_deref(), Some("Stripe had it already"));
    }

    async fn a_refused_event_is_parked_with_its_reason_and_stops_nobody_else(db: TestDb) {
        let world = World::start(&db).await;
        let (gone, fine) = (world.linked("gone").await, world.linked("fine").await);
        world.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
        world.stripe("DELETE", &format!("/v1/customers/{gone}"), &[]).await;
        world.runs("gone", 2).await;
        world.runs("fine", 3).await;
        world.advance(5 * MINUTE).await;
        world.advance(48 * HOUR).await;

        assert_eq!(world.billed(&fine), "3");
        assert_eq!(sends(&world).len(), 2, "the refused one is not sent again");
        let parked = world.list("/outbox?state=parked").await;
        assert_eq!(parked.len(), 1);
        assert_eq!((&parked[0]["customer_id"], &parked[0]["units"]), (&json!("gone"), &json!(2)));
        let reason = parked[0]["detail"].as_str().unwrap();
        assert!(reason.contains("No such customer"), "{reason}");
    }

    async fn what_a_switched_off_meter_refused_is_billed_once_support_put_it_back(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
        let meters = world.stripe("GET", "/v1/billing/meters", &[]).await;
        let meter = format!("/v1/billing/meters/{}", meters["data"][0]["id"].as_str().unwrap());
        world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
        world.runs("acme", 7).await;
        world.advance(5 * MINUTE).await;
        let reason = row(&world, "acme").await.detail.unwrap();
        assert!(reason.contains("No active meter"), "{reason}");

        world.stripe("POST", &format!("{meter}/reactivate"), &[]).await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        world.settle().await;
        assert_eq!(world.billed(&acme), "7");
        assert_eq!(row(&world, "acme").await.state, "delivered");
    }

    async fn a_wrong_key_pauses_all_reporting_and_the_gate_goes_on(db: TestDb) {
        let mut world = World::start(&db).await;
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        world.restart_with(&[("STRIPE_SECRET_KEY", "sk_test_wrong")]).await;
        world.runs("acme", 7).await;
        world.runs("globex", 5).await;
        // A long weekend.
        for _ in 0..9 {
            world.advance(8 * HOUR).await;
        }
        assert_eq!(world.run("acme").await["allowed"], true);
        assert_eq!(world.list("/outbox?state=parked").await.len(), 2, "it is asked about first");
        assert!(sends(&world).iter().all(|send| send.status == Some(401)));

        world.restart_with(&[]).await;
        world.advance(HOUR).await;
        assert_eq!((world.billed(&acme), world.billed(&globex)), ("8".into(), "5".into()));
        assert_eq!(world.list("/outbox?state=parked").await.len(), 0);
    }

    async fn what_stripe_may_have_forgotten_is_parked_and_never_sent_blindly(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.sim.fail_next(METER_EVENTS, 1, FaultKind::DropAfterEffect);
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
        world.advance(5 * MINUTE).await;
        for _ in 0..23 {
            world.advance(HOUR).await;
        }
        assert_eq!(row(&world, "acme").await.state, "pending");
        assert_eq!(sends(&world).last().unwrap().at, world.now(), "within a day it is tried on");
        world.advance(HOUR).await;
        let tries = sends(&world).len();
        let reason = row(&world, "acme").await.detail.unwrap();
        assert!(reason.contains("24 h"), "{reason}");

        // Stripe works again and knows the identifier no more; support syncs.
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance(HOUR).await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        world.advance(72 * HOUR).await;
        assert_eq!(row(&world, "acme").await.state, "delivered", "its sum has it");
        assert_eq!((sends(&world).len(), world.billed(&acme)), (tries, "7".to_owned()));
    }

    async fn usage_older_than_stripe_takes_is_parked_not_redated(db: TestDb) {
        let mut world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        world.advance(36 * 24 * HOUR).await;
        world.restart_with(&[]).await;
        world.settle().await;
        let parked = row(&world, "acme").await;
        assert_eq!((parked.state.as_str(), world.billed(&acme).as_str()), ("parked", "0"));
        assert!(parked.detail.unwrap().contains("35 days"));
    }
}

// --- Crashes -----------------------------------------------------------------------------------

both_databases! {
    async fn a_restart_between_closing_and_sending_loses_nothing(db: TestDb) {
        let mut world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.clock.advance(5 * MINUTE).unwrap();
        world.run_job(Job::CloseWindows).await;
        let closed = row(&world, "acme").await;
        world.restart().await;
        world.settle().await;
        assert_eq!(frozen(&row(&world, "acme").await), frozen(&closed));
        assert_eq!(counted(&world, &acme), [(7, "2026-11-01T09:00:00Z".to_owned())]);
    }

    async fn a_death_between_sending_and_noting_it_bills_once(db: TestDb) {
        let mut world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.clock.advance(5 * MINUTE).unwrap();
        world.run_job(Job::CloseWindows).await;
        // What the dead process left: the send begun in the database, the event at Stripe, and
        // nothing settled.
        world.sim.fail_next(METER_EVENTS, 1, FaultKind::DropAfterEffect);
        world.run_job(Job::PushMeterEvents).await;
        assert_eq!(world.billed(&acme), "7");
        world.restart().await;
        world.advance(HOUR).await;
        assert_eq!(row(&world, "acme").await.state, "delivered");
        assert_eq!((sends(&world).len(), world.billed(&acme)), (2, "7".to_owned()));
    }

    async fn two_rounds_of_sending_at_once_bill_once(db: TestDb) {
        let world = World::start(&db).await;
        let mut stripe_ids = Vec::new();
        for n in 0..10 {
            stripe_ids.push(world.linked(&format!("c{n}")).await);
            world.runs(&format!("c{n}"), 7).await;
        }
        world.clock.advance(5 * MINUTE).unwrap();
        let round = || Job::PushMeterEvents.step(world.app());
        let (a, b, c) = tokio::join!(round(), round(), round());
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        world.advance(HOUR).await;
        for (n, stripe_id) in stripe_ids.iter().enumerate() {
            assert_eq!(world.billed(stripe_id), "7");
            assert_eq!(row(&world, &format!("c{n}")).await.state, "delivered");
        }
    }
}

// --- Books against books -----------------------------------------------------------------------

/// Units in the ledger and at Stripe for each of the customer's first two periods.
async fn books(world: &World, customer: &str, stripe_id: &str) -> [(i64, Decimal); 2] {
    let customer = world.app().store.customer(&customer.parse().unwrap()).await.unwrap().unwrap();
    let cycle = customer.tier.cycle;
    let second = cycle.period_at(world.now());
    let bounds = [(cycle.anchor, second.start), (second.start, second.end)];
    let mut sums = Vec::new();
    for (start, end) in bounds {
        let key = CounterKey {
            customer_id: customer.id.clone(),
            feature_id: "ai_runs".parse().unwrap(),
            series: cycle.series,
            period_start: start,
        };
        let ledger = world.app().store.sum_of_events(&key).await.unwrap();
        let events = world.sim.meter_events();
        let of_period = events
            .iter()
            .filter(|event| event.customer == stripe_id && (start..end).contains(&time_of(event)));
        sums.push((ledger, of_period.map(|event| event.value).sum()));
    }
    sums.try_into().expect("two periods")
}

both_databases! {
    async fn after_weeks_of_runs_and_faults_stripes_sums_are_the_ledgers(db: TestDb) {
        let world = World::start(&db).await;
        let dice = Entropy::seeded(29);
        let throw = |sides: u64| {
            let bytes = dice.secret();
            u64::from_le_bytes(bytes[..8].try_into().unwrap()) % sides
        };
        let mut stripe_ids = Vec::new();
        for n in 0..4 {
            let stripe_id = world.linked(&format!("c{n}")).await;
            world.subscribe(&stripe_id, "pro_monthly").await;
            stripe_ids.push(stripe_id);
        }
        // Over the end of November and well into the second period.
        while world.now() < "2026-12-09T00:00:00Z".parse().unwrap() {
            for _ in 0..throw(4) {
                let customer = format!("c{}", throw(4));
                world.runs(&customer, i64::try_from(1 + throw(20)).unwrap()).await;
                world.clock.advance(Duration::from_secs(throw(400))).unwrap();
            }
            let kinds = [
                FaultKind::ServerError,
                FaultKind::ServerErrorAfterEffect,
                FaultKind::RateLimited,
                FaultKind::LockTimeout,
                FaultKind::BadGateway,
                FaultKind::DropBeforeEffect,
                FaultKind::DropAfterEffect,
            ];
            if let Some(kind) = kinds.get(usize::try_from(throw(9)).unwrap()) {
                world.sim.fail_next(METER_EVENTS, 1, *kind);
            }
            world.advance(10 * MINUTE).await;
            while !world.list("/outbox?state=pending").await.is_empty() {
                world.advance(10 * MINUTE).await;
            }
            world.advance(Duration::from_secs(throw(24 * 3600))).await;
        }
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance(HOUR).await;
        world.advance(HOUR).await;

        for (n, stripe_id) in stripe_ids.iter().enumerate() {
            let customer = format!("c{n}");
            let [first, second] = books(&world, &customer, stripe_id).await;
            assert!(first.0 > 0 && second.0 > 0, "{customer} ran in both periods");
            assert_eq!(first.1, first.0, "{customer}'s first period");
            assert_eq!(second.1, second.0, "{customer}'s second period");
            assert_eq!(world.usage(&customer).await, second.0);
            assert_eq!(world.sim.sum_of(stripe_id, "ai_runs"), first.0 + second.0);
        }
        assert_eq!(world.list("/outbox?state=parked").await.len(), 0);
    }
}

// --- Several replicas --------------------------------------------------------------------------

/// Counts runs on another daemon than the world's.
async fn runs_at(
    world: &World,
    address: std::net::SocketAddr,
    customer: &str,
    count: i64,
) -> Value {
    let body = json!({
        "customer_id": customer, "feature_id": "ai_runs", "send_event": true, "required_balance": count,
    });
    let request = world.http.post(format!("http://{address}/v1/check")).bearer_auth(API_KEY);
    let answer = request.body(body.to_string()).send().await.unwrap().text().await.unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_on_a_replica_whose_clock_is_behind_is_billed_in_the_period_it_counts_in() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let acme = world.linked("acme").await;
    world.subscribe(&acme, "pro_monthly").await;
    world.advance_to("2026-12-01T08:59:58Z").await;
    world.runs("acme", 3).await;
    let behind = world.replica(Clock::manual(world.now())).await;
    // This replica closes the period's last window; to the other it is still open.
    world.clock.advance(Duration::from_secs(2)).unwrap();
    world.run_job(Job::CloseWindows).await;
    let late = runs_at(&world, behind.address, "acme", 4).await;
    assert_eq!(late["period"]["end"], "2026-12-01T09:00:00Z", "{late}");
    world.advance(10 * MINUTE).await;

    assert_eq!(
        counted(&world, &acme),
        [(3, "2026-12-01T08:55:00Z".to_owned()), (4, "2026-12-01T08:59:59Z".to_owned())]
    );
    behind.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_count_and_send_at_once_bill_once() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let acme = world.linked("acme").await;
    let other = world.replica(world.clock.clone()).await;
    for _ in 0..5 {
        world.runs("acme", 3).await;
        let answer = runs_at(&world, other.address, "acme", 4).await;
        assert_eq!(answer["allowed"], true, "{answer}");
        world.clock.advance(5 * MINUTE).unwrap();
        let (here, there) = tokio::join!(
            Job::PushMeterEvents.step(world.app()),
            Job::PushMeterEvents.step(&other.app)
        );
        assert!(here.is_ok() && there.is_ok());
    }
    world.advance(HOUR).await;
    assert_eq!(counted(&world, &acme).iter().map(|(units, _)| *units).collect::<Vec<_>>(), [7; 5]);
    other.stop().await.unwrap();
}
