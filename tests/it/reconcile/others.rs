//! What one run of the hourly job costs, and that one customer's trouble is nobody else's.

use super::support::{foreign, written};
use super::*;

/// Whose row cannot be read any more.
async fn spoil(url: &str, customer: &str) {
    let spoil = format!("UPDATE customers SET standing = 'odd' WHERE customer_id = '{customer}'");
    rows(url, &spoil).await;
}

/// How many metering windows are open.
async fn open_windows(url: &str) -> Vec<String> {
    rows(url, "SELECT customer_id FROM usage_counters WHERE open_end_ms IS NOT NULL").await
}

both_databases! {
    async fn after_a_days_outage_one_reading_settles_all_that_waited(db: TestDb) {
        let world = World::start(&db).await;
        let (acme, globex) = (world.linked("acme").await, world.linked("globex").await);
        for _ in 0..4 {
            world.runs("acme", 7).await;
            world.runs("globex", 2).await;
            world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
            world.advance(5 * MINUTE).await;
        }
        world.sim.change_faults(|faults| faults.api.clear());
        world.clock.advance(DAY).unwrap();
        world.run_job(Job::PushMeterEvents).await;
        assert_eq!(outbox(&world, "acme").await, ["parked 7"; 4]);
        world.advance(HOUR).await;
        assert_eq!(readings(&world), 2, "one for each customer");
        assert_eq!((world.billed(&acme), world.billed(&globex)), ("28".into(), "8".into()));
        let left = world.list("/outbox?state=parked").await;
        assert_eq!(left, [Value::Null; 0]);
    }

    async fn a_sum_with_something_certain_in_it_does_not_tell_what_is_missing(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        let delivered = "state = 'delivered', attempts = 1, first_sent_at_ms = :then, settled_at_ms = :then";
        let doubt = "state = 'parked', attempts = 3, first_sent_at_ms = :then, settled_at_ms = :then";
        for (name, minutes, columns) in [
            ("1", 50, doubt), ("2", 40, delivered), ("3", 30, doubt), ("4", 20, delivered),
        ] {
            let row = (&*format!("tg_a_{name}"), acme.as_str(), "ai_runs");
            written((&world, &db.url), row, 2 * DAY + minutes * MINUTE, columns).await;
        }
        // Both that are in doubt were counted, and both that are not came to nothing unheard.
        for minutes in [50, 30] {
            foreign(&world, &acme, 2 * DAY + minutes * MINUTE, "7").await;
        }
        Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(rows(&db.url, "SELECT state FROM meter_events ORDER BY identifier").await, ["delivered"; 4]);
    }

    async fn a_sweep_that_is_not_done_leaves_the_sums_to_its_last_step(db: TestDb) {
        let world = World::start(&db).await;
        world.linked("acme").await;
        world.runs("acme", 5).await;
        world.advance(5 * MINUTE).await;
        for n in 0..110 {
            world.customer(&format!("c{n:03}")).await;
        }
        world.clock.advance(31 * DAY).unwrap();
        rows(&db.url, "UPDATE customers SET stripe_customer_id = 'cus_of_' || customer_id \
            WHERE stripe_customer_id IS NULL").await;
        let first = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!((first.more, readings(&world)), (true, 0));
        let last = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!((last.more, readings(&world)), (false, 1));
    }

    async fn a_customer_whose_windows_cannot_be_closed_keeps_nobody_elses_open(db: TestDb) {
        let world = World::start(&db).await;
        for customer in ["a-odd", "fine"] {
            world.linked(customer).await;
            world.runs(customer, 2).await;
        }
        spoil(&db.url, "a-odd").await;
        world.clock.advance(5 * MINUTE).unwrap();
        let closed = Job::CloseWindows.step(world.app()).await.unwrap();
        assert_eq!((closed.done, closed.more), (1, false));
        assert_eq!(open_windows(&db.url).await, ["a-odd"]);
    }

    async fn nor_at_the_end_of_a_period(db: TestDb) {
        let world = World::start(&db).await;
        for customer in ["a-odd", "fine"] {
            world.subscriber(customer, "pro_monthly").await;
        }
        world.advance_to("2026-12-01T08:59:55Z").await;
        for customer in ["a-odd", "fine"] {
            world.runs(customer, 2).await;
        }
        spoil(&db.url, "a-odd").await;
        Job::FlushPeriods.step(world.app()).await.unwrap();
        assert_eq!(open_windows(&db.url).await, ["a-odd"]);
    }

    async fn a_period_that_cannot_be_compared_goes_behind_all_others(db: TestDb) {
        let world = World::start(&db).await;
        for customer in ["a-odd", "fine"] {
            world.linked(customer).await;
            world.runs(customer, 2).await;
        }
        world.advance(5 * MINUTE).await;
        spoil(&db.url, "a-odd").await;
        world.clock.advance(31 * DAY).unwrap();
        let told = Job::Reconcile.step(world.app()).await.unwrap().note.unwrap();
        assert!(told.contains("1 sums of usage need someone to look"), "{told}");
        assert_eq!(proven(&db.url).await, 1);
        let told = Job::Reconcile.step(world.app()).await.unwrap().note.unwrap_or_default();
        assert!(!told.contains("sums of usage"), "it is compared once a day: {told}");
    }

    async fn a_revoked_key_stops_the_first_reading_and_lets_no_period_wait(db: TestDb) {
        let mut world = World::start(&db).await;
        for customer in ["acme", "globex"] {
            world.linked(customer).await;
            world.runs(customer, 2).await;
        }
        world.advance(5 * MINUTE).await;
        world.restart_with(&[("STRIPE_SECRET_KEY", "sk_test_revoked")]).await;
        world.clock.advance(31 * DAY).unwrap();
        let told = Job::Reconcile.step(world.app()).await.unwrap().note.unwrap();
        assert!(told.ends_with("Stripe's sums cannot be read now"), "{told}");
        world.restart_with(&[]).await;
        Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(proven(&db.url).await, 2);
    }

    async fn a_sum_that_the_key_may_not_read_is_its_meters_trouble(db: TestDb) {
        let world = World::start(&db).await;
        for customer in ["acme", "globex"] {
            world.linked(customer).await;
            world.runs(customer, 2).await;
        }
        world.advance(5 * MINUTE).await;
        rows(&db.url, "UPDATE meter_events SET event_name = 'seats' WHERE customer_id = 'acme'").await;
        let form = [
            ("display_name", "Seats"), ("event_name", "seats"), ("default_aggregation[formula]", "sum"),
        ];
        let meter = world.stripe("POST", "/v1/billing/meters", &form).await;
        let forbidden = format!("GET /v1/billing/meters/{}", meter["id"].as_str().unwrap());
        world.sim.change_faults(|faults| faults.not_permitted = vec![forbidden]);
        world.clock.advance(31 * DAY).unwrap();
        let told = Job::Reconcile.step(world.app()).await.unwrap().note.unwrap();
        assert!(told.contains("1 sums of usage need someone to look"), "{told}");
        assert_eq!(proven(&db.url).await, 1);
    }
}
