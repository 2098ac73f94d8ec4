//! Usage held against Stripe's sums: whatever is in doubt is billed once, whatever Stripe rejected
//! is seen, and nobody's trouble is anybody else's.

mod others;
mod support;

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::jobs::Job;
use tollgate::sim::FaultKind;
use tollgate::store::outbox::NewMeterEvent;
use tollgate::store::usage::CounterKey;

use crate::harness::sql::rows;
use crate::harness::stripe::METER_EVENTS;
use crate::harness::world::{WEBHOOK_SECRET, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

// --- What the stories are told in --------------------------------------------------------------

/// A customer's outbox, oldest first, each row as `state units`.
async fn outbox(world: &World, customer: &str) -> Vec<String> {
    let mut rows = world.list(&format!("/outbox?customer_id={customer}")).await;
    rows.reverse();
    let word = |row: &Value| format!("{} {}", row["state"].as_str().unwrap(), row["units"]);
    rows.iter().map(word).collect()
}

/// The reason that a customer's only parked row gives.
async fn reason(world: &World, customer: &str) -> String {
    let parked = world.list(&format!("/outbox?customer_id={customer}&state=parked")).await;
    assert_eq!(parked.len(), 1, "{parked:?}");
    parked[0]["detail"].as_str().expect("it is parked with a reason").to_owned()
}

/// The identifier of a customer's only row in a state.
async fn identifier(world: &World, customer: &str, state: &str) -> String {
    let found = world.list(&format!("/outbox?customer_id={customer}&state={state}")).await;
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]["identifier"].as_str().unwrap().to_owned()
}

/// How often Stripe's sums were asked for.
fn readings(world: &World) -> usize {
    let requests = world.sim.requests();
    requests.iter().filter(|request| request.path.ends_with("/event_summaries")).count()
}

/// Stripe is unreachable until what was sent before is in doubt and parked.
async fn a_day_of_silence(world: &World) {
    world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
    for _ in 0..25 {
        world.advance(HOUR).await;
    }
    world.sim.change_faults(|faults| faults.api.clear());
}

/// The address of the only meter.
async fn meter(world: &World) -> String {
    let meters = world.stripe("GET", "/v1/billing/meters", &[]).await;
    format!("/v1/billing/meters/{}", meters["data"][0]["id"].as_str().unwrap())
}

/// Runs whose usage Stripe has refused, for a reason that is gone.
async fn refused_at_once(world: &World, customer: &str, runs: i64) {
    let meter = meter(world).await;
    world.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
    world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
    world.runs(customer, runs).await;
    world.advance(5 * MINUTE).await;
    world.stripe("POST", &format!("{meter}/reactivate"), &[]).await;
}

async fn replay(world: &World, identifier: &str) -> (u16, String) {
    let reply = world.admin("POST", &format!("/outbox/{identifier}/replay")).await;
    let outcome = reply.body["outcome"].as_str().map(str::to_owned);
    (reply.status, outcome.unwrap_or_else(|| reply.error()))
}

// --- In doubt for a day ------------------------------------------------------------------------

both_databases! {
    async fn after_a_day_in_doubt_stripes_sum_says_what_is_sent_anew(db: TestDb) {
        let world = World::start(&db).await;
        let (had, lacks) = (world.linked("had").await, world.linked("lacks").await);
        world.runs("had", 7).await;
        world.sim.fail_next(METER_EVENTS, 1, FaultKind::DropAfterEffect);
        world.advance(5 * MINUTE).await;
        world.runs("lacks", 9).await;
        a_day_of_silence(&world).await;
        assert_eq!(outbox(&world, "lacks").await, ["parked 9"]);
        assert_eq!((world.billed(&had), world.billed(&lacks)), ("7".into(), "0".into()));

        world.advance(HOUR).await;
        assert_eq!(outbox(&world, "had").await, ["delivered 7"]);
        assert_eq!(outbox(&world, "lacks").await, ["replaced 9", "delivered 9"]);
        world.advance(3 * DAY).await;
        assert_eq!((world.billed(&had), world.billed(&lacks)), ("7".into(), "9".into()));
        let sent: Vec<_> = world.sim.meter_events().into_iter().filter(|e| e.customer == lacks).collect();
        let anew = identifier(&world, "lacks", "delivered").await;
        assert_eq!((sent.len(), &sent[0].identifier), (1, &anew));
        let old = identifier(&world, "lacks", "replaced").await;
        let kept = format!("SELECT replaces FROM meter_events WHERE identifier = '{anew}'");
        assert_eq!(rows(&db.url, &kept).await, [old]);
    }

    async fn a_sum_that_fits_neither_is_left_to_someone(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.report_by_hand(&acme, "3").await;
        a_day_of_silence(&world).await;
        world.advance(HOUR).await;
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        let said = reason(&world, "acme").await;
        assert!(said.contains("is 3, ours 7 with what is in doubt and 0 without"), "{said}");
        let read = readings(&world);
        world.advance(20 * HOUR).await;
        assert_eq!(readings(&world), read, "it is asked once a day");
        let refused = replay(&world, &identifier(&world, "acme", "parked").await).await;
        assert_eq!(refused, (409, "may_count_twice: identifier".to_owned()));
        assert_eq!(world.billed(&acme), "3");
    }

    async fn what_lies_in_the_same_minute_and_is_on_its_way_makes_it_wait(db: TestDb) {
        let plans = include_str!("../../plans.example.toml").replace("\"5m\"", "\"10s\"");
        let world = World::with_plans(&db, &plans).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.sim.fail_next(METER_EVENTS, 1, FaultKind::DropAfterEffect);
        world.advance(10 * SECOND).await;
        world.runs("acme", 5).await;
        a_day_of_silence(&world).await;
        // Both are in the minute; one was counted, the other was not.
        world.advance(HOUR).await;
        assert_eq!(outbox(&world, "acme").await, ["parked 7", "parked 5"]);
        let rows = world.list("/outbox?customer_id=acme").await;
        assert!(rows.iter().all(|row| row["detail"].as_str().unwrap().contains("is 7, ours 12")));
        assert_eq!(world.billed(&acme), "7", "which it was is not guessed");
    }

    async fn what_stripe_takes_no_more_is_settled_for_good_whatever_its_sum(db: TestDb) {
        let world = World::start(&db).await;
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        for (customer, stripe_id, foreign) in [("acme", acme, "3"), ("globex", globex, "9")] {
            world.runs(customer, 7).await;
            world.report_by_hand(&stripe_id, foreign).await;
        }
        a_day_of_silence(&world).await;
        world.clock.advance(70 * DAY).unwrap();
        Job::Reconcile.step(world.app()).await.unwrap();
        for customer in ["acme", "globex"] {
            let said = reason(&world, customer).await;
            assert!(said.contains("ours 7 with") && said.contains("35 days"), "{said}");
        }
        let read = readings(&world);
        world.clock.advance(2 * DAY).unwrap();
        Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(readings(&world), read, "nothing can be done about it any more");
        assert_eq!(rows(&db.url, "SELECT reason FROM sending_freezes").await, [""; 0]);
    }

    async fn a_sum_that_lags_is_not_believed_too_soon(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.sim.change_faults(|faults| faults.summary_lag_seconds = 25 * 60);
        world.runs("acme", 7).await;
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
        world.advance(5 * MINUTE).await;
        for _ in 0..45 {
            world.advance(HOUR / 2).await;
        }
        // One of the last sends gets through, and nobody hears of it.
        world.sim.change_faults(|faults| faults.api.clear());
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropAfterEffect);
        for _ in 0..30 {
            world.advance(5 * MINUTE).await;
        }
        assert_eq!(world.billed(&acme), "7");
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance(DAY).await;
        assert_eq!((outbox(&world, "acme").await, world.billed(&acme)), (vec!["delivered 7".to_owned()], "7".into()));
    }
}

both_databases! {
    async fn what_a_restored_backup_has_not_sent_is_asked_about_before_it_is_sent(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.advance(5 * MINUTE).await;
        world.advance(26 * HOUR).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 7"]);
        // The backup is of the moment before it was sent.
        rows(&db.url, "UPDATE meter_events SET state = 'pending', attempts = 0, \
            first_sent_at_ms = NULL, settled_at_ms = NULL").await;
        world.advance(MINUTE).await;
        assert_eq!((outbox(&world, "acme").await, world.billed(&acme)), (vec!["parked 7".to_owned()], "7".into()));
        world.advance(HOUR).await;
        assert_eq!((outbox(&world, "acme").await, world.billed(&acme)), (vec!["delivered 7".to_owned()], "7".into()));
    }

    async fn what_could_not_be_sent_for_a_day_is_sent_once_its_sum_was_read(db: TestDb) {
        let mut world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        world.advance(5 * MINUTE).await;
        world.advance(DAY).await;
        world.restart_with(&[]).await;
        world.settle().await;
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        world.advance(HOUR).await;
        assert_eq!(outbox(&world, "acme").await, ["replaced 7", "delivered 7"]);
        assert_eq!(world.billed(&acme), "7");
    }
}

// --- Stripe is ahead ---------------------------------------------------------------------------

both_databases! {
    async fn of_whom_stripe_has_more_nothing_is_sent_until_someone_has_looked(db: TestDb) {
        let world = World::start(&db).await;
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        world.runs("acme", 5).await;
        world.report_by_hand(&acme, "1").await;
        world.advance_to("2026-12-01T03:00:00Z").await;
        world.runs("acme", 4).await;
        world.runs("globex", 4).await;
        world.advance(10 * MINUTE).await;
        assert_eq!((world.billed(&acme), world.billed(&globex)), ("6".into(), "4".into()));
        let said = reason(&world, "acme").await;
        assert!(said.contains("the ledger has 5 units and Stripe 6"), "{said}");
        let refused = replay(&world, &identifier(&world, "acme", "parked").await).await;
        assert_eq!(refused, (409, "sending_frozen: identifier".to_owned()));
        let found = world.admin("POST", "/customers/acme/sync").await.ok();
        assert_eq!(found["differences"][0]["stripe"], "6 units", "{found}");
        assert_eq!((&found["changed"], world.billed(&acme)), (&json!(false), "6".to_owned()));

        // Support has taken the unit back at Stripe, at the time it was for.
        let november = [
            ("event_name", "ai_runs"), ("payload[stripe_customer_id]", acme.as_str()),
            ("payload[value]", "-1"), ("timestamp", "1793523600"),
        ];
        world.stripe("POST", METER_EVENTS, &november).await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        world.settle().await;
        assert_eq!(world.billed(&acme), "9");
        assert_eq!(world.admin("POST", "/customers/acme/sync").await.ok()["differences"], json!([]));
    }

    async fn a_surplus_is_not_hidden_by_what_waits_to_be_sent(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 5).await;
        world.report_by_hand(&acme, "1").await;
        world.advance(HOUR).await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        world.runs("acme", 4).await;
        world.advance(10 * MINUTE).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 5", "parked 4"]);
        world.admin("POST", "/customers/acme/sync").await.ok();
        world.settle().await;
        assert_eq!(world.billed(&acme), "6", "Stripe still has one more than was sent");
        world.report_by_hand(&acme, "-1").await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        world.settle().await;
        assert_eq!(world.billed(&acme), "9");
    }

    async fn foreign_usage_does_not_prove_what_was_never_sent(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        refused_at_once(&world, "acme", 5).await;
        world.report_by_hand(&acme, "5").await;
        world.advance_to("2026-12-01T03:00:00Z").await;
        assert_eq!(proven(&db.url).await, 0);
        let refused = replay(&world, &identifier(&world, "acme", "parked").await).await;
        assert_eq!((refused.0, world.billed(&acme)), (409, "5".to_owned()), "{refused:?}");
    }

    async fn usage_that_stripe_has_no_meter_for_keeps_nobody_frozen(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 5).await;
        world.report_by_hand(&acme, "1").await;
        world.advance(HOUR).await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        let plans = include_str!("../../plans.example.toml")
            .replace("stripe_meter = \"ai_runs\"", "stripe_meter = \"no_such_meter\"");
        std::fs::write(world.plans_file(), plans).unwrap();
        world.settle().await;
        world.runs("acme", 2).await;
        world.advance(10 * MINUTE).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 5", "parked 2"]);
        world.report_by_hand(&acme, "-1").await;
        world.admin("POST", "/customers/acme/sync").await.ok();
        assert_eq!(rows(&db.url, "SELECT reason FROM sending_freezes").await, [""; 0]);
    }

    async fn an_unanswered_send_of_the_next_period_freezes_nobody(db: TestDb) {
        let world = World::start(&db).await;
        world.clock.advance(150 * SECOND).unwrap();
        let acme = world.linked("acme").await;
        world.subscribe(&acme, "pro_monthly").await;
        world.runs("acme", 4).await;
        // The next period begins within a minute that is read with this one.
        world.advance_to("2026-12-01T09:02:30Z").await;
        world.runs("acme", 8).await;
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropAfterEffect);
        for _ in 0..3 {
            world.advance(HOUR).await;
        }
        assert_eq!((readings(&world), world.billed(&acme)), (1, "12".to_owned()));
        assert_eq!(rows(&db.url, "SELECT reason FROM sending_freezes").await, [""; 0]);
    }

    async fn a_period_that_is_proven_is_not_asked_about_again(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.customer("local").await;
        world.runs("acme", 5).await;
        world.runs("local", 5).await;
        world.advance(DAY).await;
        assert_eq!(readings(&world), 0, "a period that goes on is nobody's doubt");
        world.advance_to("2026-12-01T03:00:00Z").await;
        assert_eq!(readings(&world), 1);
        for _ in 0..10 {
            world.advance(7 * HOUR).await;
        }
        assert_eq!((readings(&world), world.billed(&acme)), (1, "5".to_owned()));
        let proven = "SELECT COUNT(*) FROM usage_counters WHERE proven_at_ms IS NOT NULL";
        assert_eq!(rows(&db.url, proven).await, ["2"]);
    }

    async fn a_unit_that_stripe_lacks_is_told_once_a_day_and_freezes_nobody(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 5).await;
        world.advance(5 * MINUTE).await;
        world.report_by_hand(&acme, "-1").await;
        world.clock.advance(30 * DAY).unwrap();
        let told = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(told.note.as_deref(), Some("1 sums of usage need someone to look"));
        let again = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!((again.note, readings(&world)), (None, 1));
        world.runs("acme", 3).await;
        world.advance(DAY).await;
        assert_eq!((readings(&world), world.billed(&acme)), (2, "7".to_owned()));
    }
}

// --- Rejected after it was received ------------------------------------------------------------

/// Tells the daemon of failures, as a thin event destination does.
fn listen(world: &World) {
    let kinds = ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"];
    world.sim.add_event_destination(&world.url("/webhooks/stripe"), WEBHOOK_SECRET, &kinds);
}

both_databases! {
    async fn what_stripe_rejects_after_receiving_it_is_parked_and_replayed_once_mended(db: TestDb) {
        let world = World::start(&db).await;
        listen(&world);
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        let meter = meter(&world).await;
        world.runs("acme", 7).await;
        world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
        world.advance(5 * MINUTE).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 7"], "Stripe said 200");
        world.advance(30 * SECOND).await;
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        assert!(reason(&world, "acme").await.contains("archived_meter"));
        let old = identifier(&world, "acme", "parked").await;
        let mut reports = world.list("/inbox?state=applied").await;
        reports.retain(|event| event["event_type"] == "v1.billing.meter.error_report_triggered");
        assert_eq!(reports.len(), 1);

        world.stripe("POST", &format!("{meter}/reactivate"), &[]).await;
        world.runs("globex", 2).await;
        // Under its identifier Stripe would say that it has it.
        world.admin("POST", "/customers/acme/sync").await.ok();
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        assert_eq!(replay(&world, &old).await, (409, "too_early: identifier".to_owned()));
        world.advance(HOUR).await;
        for _ in 0..2 {
            assert_eq!(replay(&world, &old).await, (200, "replaced".to_owned()));
        }
        world.settle().await;
        assert_eq!(outbox(&world, "acme").await, ["replaced 7", "delivered 7"]);
        assert_eq!((world.billed(&acme), world.billed(&globex)), ("7".into(), "2".into()));
        let audit = world.list("/audit?customer_id=acme").await;
        let replays: Vec<_> = audit.iter().filter(|row| row["action"] == "replay").collect();
        assert_eq!((replays.len(), &replays[0]["detail"]["identifier"]), (1, &json!(old)));
    }

    async fn failures_that_stripe_does_not_name_are_found_by_its_sums(db: TestDb) {
        let world = World::start(&db).await;
        listen(&world);
        world.sim.change_faults(|faults| faults.error_reports_without_samples = true);
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        let meter = meter(&world).await;
        world.runs("globex", 2).await;
        world.advance(5 * MINUTE).await;
        world.runs("acme", 7).await;
        world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
        world.advance(5 * MINUTE).await;
        world.stripe("POST", &format!("{meter}/reactivate"), &[]).await;
        world.advance(30 * SECOND).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 7"], "it may have been anyone's");
        world.advance(HOUR).await;
        assert_eq!(outbox(&world, "globex").await, ["delivered 2"]);
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        assert!(reason(&world, "acme").await.contains("without naming them"));
        world.advance(HOUR).await;
        let old = identifier(&world, "acme", "parked").await;
        assert_eq!(replay(&world, &old).await, (200, "replaced".to_owned()));
        world.settle().await;
        assert_eq!((world.billed(&acme), world.billed(&globex)), ("7".into(), "2".into()));
    }

    async fn whose_sum_has_all_that_is_suspected_is_read_once(db: TestDb) {
        let plans = include_str!("../../plans.example.toml").replace("\"5m\"", "\"10s\"");
        let world = World::with_plans(&db, &plans).await;
        listen(&world);
        world.sim.change_faults(|faults| faults.error_reports_without_samples = true);
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        let meter = meter(&world).await;
        for _ in 0..4 {
            world.runs("globex", 2).await;
            world.advance(MINUTE).await;
        }
        world.runs("acme", 7).await;
        world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
        world.advance(30 * SECOND).await;
        world.stripe("POST", &format!("{meter}/reactivate"), &[]).await;
        world.advance(30 * SECOND).await;
        let suspected = "SELECT COUNT(*) FROM meter_events WHERE suspected_at_ms IS NOT NULL";
        assert_eq!(rows(&db.url, suspected).await, ["5"]);
        world.advance(HOUR).await;
        assert_eq!(readings(&world), 2, "one for each customer");
        assert_eq!(rows(&db.url, suspected).await, ["0"]);
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        assert_eq!((world.billed(&acme), world.billed(&globex)), ("0".into(), "8".into()));
    }

    async fn usage_for_a_meter_that_is_not_there_is_parked(db: TestDb) {
        let plans = include_str!("../../plans.example.toml")
            .replace("stripe_meter = \"ai_runs\"", "stripe_meter = \"no_such_meter\"");
        let world = World::with_plans(&db, &plans).await;
        listen(&world);
        world.linked("acme").await;
        for samples in [true, false] {
            world.sim.change_faults(|faults| faults.error_reports_without_samples = !samples);
            world.runs("acme", 7).await;
            world.advance(5 * MINUTE).await;
            world.advance(MINUTE).await;
            world.advance(HOUR).await;
        }
        let parked = world.list("/outbox?customer_id=acme&state=parked").await;
        let codes: Vec<_> = parked.iter().map(|row| row["rejected_code"].clone()).collect();
        assert_eq!(codes, ["no_meter", "no_meter"]);
    }

    async fn a_report_that_cannot_be_fetched_now_waits_for_stripe_and_for_a_key(db: TestDb) {
        let mut world = World::start(&db).await;
        listen(&world);
        world.linked("acme").await;
        let meter = meter(&world).await;
        world.runs("acme", 7).await;
        world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
        world.advance(5 * MINUTE).await;
        world.sim.fail_next("/v2/core/events", 1, FaultKind::RateLimited);
        world.advance(30 * SECOND).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 7"]);
        let report = "/inbox?state=pending";
        assert_eq!(world.list(report).await[0]["attempts"], 1);
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        world.advance(MINUTE).await;
        assert_eq!(outbox(&world, "acme").await, ["delivered 7"]);
        assert_eq!(world.list(report).await[0]["attempts"], 2, "and is not given up");
        world.restart_with(&[]).await;
        world.advance(MINUTE).await;
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
    }
}

// --- Replay ------------------------------------------------------------------------------------

both_databases! {
    async fn a_replay_never_counts_anything_twice(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.advance(5 * MINUTE).await;
        let row = identifier(&world, "acme", "delivered").await;
        assert_eq!(replay(&world, &row).await, (409, "too_early: identifier".to_owned()));
        world.advance(HOUR).await;
        assert_eq!(replay(&world, &row).await, (200, "delivered".to_owned()), "Stripe has it");
        assert_eq!(replay(&world, "tg_nobody").await, (404, "unknown_meter_event: identifier".to_owned()));
        assert_eq!(replay(&world, "%00").await, (404, "unknown_meter_event: identifier".to_owned()));
        world.sim.fail_next("/v1/billing/meters", 9, FaultKind::RateLimited);
        assert_eq!(replay(&world, &row).await, (503, "stripe_unavailable".to_owned()));
        world.settle().await;
        assert_eq!((world.billed(&acme), world.list("/outbox").await.len()), ("7".to_owned(), 1));
        assert_eq!(world.list("/audit?customer_id=acme").await.len(), 0, "nothing was done");
    }

    async fn what_was_never_taken_is_put_back_as_it_is(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        refused_at_once(&world, "acme", 7).await;
        let row = identifier(&world, "acme", "parked").await;
        for _ in 0..2 {
            assert_eq!(replay(&world, &row).await, (200, "waits".to_owned()));
        }
        world.settle().await;
        assert_eq!((outbox(&world, "acme").await, world.billed(&acme)), (vec!["delivered 7".to_owned()], "7".into()));
        assert_eq!(world.list("/audit?customer_id=acme").await.len(), 1);
    }

    async fn what_stripe_takes_no_more_is_told_of_in_time_and_not_replayed(db: TestDb) {
        let mut world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        world.advance(29 * DAY).await;
        let note = async |world: &World| Job::Reconcile.step(world.app()).await.unwrap().note.unwrap();
        assert_eq!(note(&world).await, "no Stripe key is configured");
        world.advance(2 * DAY).await;
        let told = note(&world).await;
        assert!(told.ends_with("7 units of usage are over 30 days old and not at Stripe"), "{told}");
        world.advance(5 * DAY).await;
        world.restart_with(&[]).await;
        world.settle().await;
        world.advance(HOUR).await;
        assert_eq!((outbox(&world, "acme").await, world.billed(&acme)), (vec!["parked 7".to_owned()], "0".into()));
        let row = identifier(&world, "acme", "parked").await;
        assert_eq!(replay(&world, &row).await, (409, "too_old: identifier".to_owned()));
    }
}

// --- Nobody's trouble is anybody else's --------------------------------------------------------

/// How many counters are proven.
async fn proven(url: &str) -> usize {
    rows(url, "SELECT customer_id FROM usage_counters WHERE proven_at_ms IS NOT NULL").await.len()
}

/// A backlog of windows that ended before now, written down as the gate would have.
async fn backlog(world: &World, customer: &str, stripe_id: &str, count: i64) {
    let mut tx = world.app().store.begin().await.unwrap();
    for n in 0..count {
        let start = world.now().minus(Duration::from_secs(3600 - n.unsigned_abs()));
        tx.insert_meter_event(&NewMeterEvent {
            identifier: format!("tg_{customer}_{n:04}"),
            idempotency_key: format!("tg_{customer}_{n:04}-send"),
            counter: CounterKey {
                customer_id: customer.parse().unwrap(),
                feature_id: "ai_runs".parse().unwrap(),
                series: 0,
                period_start: start.start_of_day(),
            },
            stripe_customer_id: stripe_id.to_owned(),
            window: tollgate::domain::usage::OpenWindow {
                start,
                end: start.plus(SECOND),
                value: 1,
                meter: "ai_runs".to_owned(),
            },
            timestamp: start,
            billable_until: None,
        })
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
}

both_databases! {
    async fn a_customer_that_cannot_be_sent_costs_the_others_one_send(db: TestDb) {
        let world = World::start(&db).await;
        let sick = world.linked("sick").await;
        let fine = [world.linked("fine-0").await, world.linked("fine-1").await];
        backlog(&world, "sick", &sick, 450).await;
        world.clock.advance(SECOND).unwrap();
        for (n, stripe_id) in fine.iter().enumerate() {
            backlog(&world, &format!("fine-{n}"), stripe_id, 1).await;
        }
        world.sim.fail_next(METER_EVENTS, 1, FaultKind::BadGateway);
        Job::PushMeterEvents.step(world.app()).await.unwrap();
        for stripe_id in &fine {
            assert_eq!(world.billed(stripe_id), "1");
        }
        assert_eq!(world.billed(&sick), "0");
        world.advance(HOUR).await;
        assert_eq!(world.billed(&sick), "450");
    }

    async fn a_customer_whose_sums_cannot_be_read_stops_no_other(db: TestDb) {
        let world = World::start(&db).await;
        let (gone, fine) = (world.linked("a-gone").await, world.linked("fine").await);
        world.runs("a-gone", 2).await;
        world.runs("fine", 3).await;
        a_day_of_silence(&world).await;
        world.stripe("DELETE", &format!("/v1/customers/{gone}"), &[]).await;
        world.advance(HOUR).await;
        assert_eq!((outbox(&world, "a-gone").await, world.billed(&fine)), (vec!["parked 2".to_owned()], "3".into()));
        assert!(reason(&world, "a-gone").await.contains("No such customer"));
    }
}

both_databases! {
    async fn a_reading_that_fails_costs_the_others_nothing_and_three_in_a_row_an_hour(db: TestDb) {
        let world = World::start(&db).await;
        let customers = ["a", "b", "c", "d", "e"];
        for customer in customers {
            world.linked(customer).await;
            world.runs(customer, 2).await;
        }
        world.advance(5 * MINUTE).await;
        world.clock.advance(31 * DAY).unwrap();
        let failing = "/v1/billing/meters/";
        world.sim.fail_next(failing, 1, FaultKind::RateLimited);
        let told = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(told.note.unwrap(), "1 sums of usage need someone to look");
        assert_eq!(proven(&db.url).await, 4);
        world.clock.advance(DAY).unwrap();
        assert_eq!(Job::Reconcile.step(world.app()).await.unwrap().note, None);
        assert_eq!(proven(&db.url).await, 5);

        rows(&db.url, "UPDATE usage_counters SET proven_at_ms = NULL, compared_at_ms = NULL").await;
        world.sim.fail_next(failing, 3, FaultKind::RateLimited);
        let told = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(proven(&db.url).await, 0);
        assert!(told.note.unwrap().ends_with("Stripe's sums cannot be read now"));
        Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(proven(&db.url).await, 3, "the two that were tried wait for a day");
    }
}

// --- Support's sync ----------------------------------------------------------------------------

both_databases! {
    async fn a_sync_compares_sums_and_settles_what_is_in_doubt(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        world.runs("acme", 7).await;
        a_day_of_silence(&world).await;
        // Parked a moment ago: before half an hour has passed no sum is believed.
        world.clock.advance(31 * MINUTE).unwrap();
        let dry = world.admin("POST", "/customers/acme/sync?dry_run=true").await.ok();
        assert_eq!(dry["differences"][0]["what"], "meter events in doubt", "{dry}");
        assert_eq!(outbox(&world, "acme").await, ["parked 7"]);
        let done = world.admin("POST", "/customers/acme/sync").await.ok();
        assert_eq!((&done["changed"], world.billed(&acme)), (&json!(true), "7".to_owned()), "{done}");
        assert_eq!(world.admin("POST", "/customers/acme/sync").await.ok()["differences"], json!([]));

        world.advance(HOUR).await;
        world.report_by_hand(&acme, "-1").await;
        for path in ["/customers/acme/sync?dry_run=true", "/customers/acme/sync"] {
            let found = world.admin("POST", path).await.ok();
            let told = &found["differences"][0];
            assert_eq!((&told["what"], &found["changed"]), (&json!("usage at Stripe"), &json!(false)));
            assert_eq!(told["local"], "7 units of ai_runs from 2026-11-01T00:00:00Z");
            assert_eq!((&told["stripe"], found["differences"].as_array().unwrap().len()), (&json!("6 units"), 1));
        }
    }
}
