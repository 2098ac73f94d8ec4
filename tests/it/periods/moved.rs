//! What moves from one counter to another when periods turn out to be others than was thought, and
//! what must not be lost on the way.

use super::*;

/// The example's plans, where Starter lets three runs through in an outage.
fn lenient() -> String {
    include_str!("../../../plans.example.toml").replace(
        "id = \"starter\"",
        "id = \"starter\"\non_outage = \"allow\"\noutage_allowance = 3",
    )
}

/// One run while the database cannot answer.
async fn run_in_an_outage(world: &World, db: &TestDb) {
    rows(&db.url, "ALTER TABLE usage_events RENAME TO away").await;
    assert_eq!(keyed_run(world, "outage").await["degraded"], true);
    rows(&db.url, "ALTER TABLE away RENAME TO usage_events").await;
}

/// Resets the billing anchor at this moment, untold.
async fn reset_untold(world: &World, acme: &Subscriber, moment: &str) {
    world.lose_webhooks();
    jump(world, moment);
    acme.change(world, &[("billing_cycle_anchor[type]", "now")]).await;
}

both_databases! {
    async fn windows_of_two_counters_that_end_together_become_one_counters(db: TestDb) {
        let world = World::start(&db).await;
        let until = at("2026-11-15T09:00:00Z").seconds().to_string();
        let acme = subscriber(&world, "acme", &[("trial_end", &until)]).await;
        world.lose_webhooks();
        let longer = at("2026-11-20T09:00:00Z").seconds().to_string();
        acme.change(&world, &[("trial_end", &longer)]).await;
        jump(&world, "2026-11-15T08:59:00Z");
        let hold = world.reserve("acme", 6, 3600).await;
        jump(&world, "2026-11-15T09:01:00Z");
        world.runs("acme", 4).await;
        jump(&world, "2026-11-15T09:02:00Z");
        world.commit(&hold, &Value::Null).await.ok();
        jump(&world, "2026-11-15T09:06:00Z");
        world.run_job(Job::CloseWindows).await;
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, "10 from 2026-11-01T09:00:00Z to 2026-11-20T09:00:00Z");
        assert_adds_up(&world, "acme").await;
        world.advance(HOUR).await;
        world.advance_to("2026-11-20T10:01:00Z").await;
        assert_eq!(acme.billed(&world).await, ["10 from 2026-11-01T09:00:00Z to 2026-11-20T09:00:00Z"]);
    }

    async fn windows_that_end_together_move_to_one_period_that_began_before_both(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        reset_untold(&world, &acme, "2026-11-20T09:00:00Z").await;
        jump(&world, "2026-12-01T08:59:00Z");
        let hold = world.reserve("acme", 6, 3600).await;
        jump(&world, "2026-12-01T09:01:00Z");
        world.runs("acme", 4).await;
        jump(&world, "2026-12-01T09:02:00Z");
        world.commit(&hold, &Value::Null).await.ok();
        jump(&world, "2026-12-01T09:06:00Z");
        world.run_job(Job::CloseWindows).await;
        learn(&world, "acme").await;
        assert_eq!(stand(&world, "acme").await, "10 from 2026-11-20T09:00:00Z to 2026-12-20T09:00:00Z");
        assert_adds_up(&world, "acme").await;
        world.advance(HOUR).await;
        world.advance_to("2026-12-20T10:01:00Z").await;
        assert_eq!(acme.billed(&world).await.last().unwrap(),
            "10 from 2026-11-20T09:00:00Z to 2026-12-20T09:00:00Z");
    }

    async fn a_run_of_an_outage_is_counted_in_the_period_that_has_begun_before_it(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 10).await;
        reset_untold(&world, &acme, "2026-11-10T12:00:00Z").await;
        jump(&world, "2026-11-10T12:03:00Z");
        run_in_an_outage(&world, &db).await;
        learn(&world, "acme").await;
        world.run_job(Job::CountJournal).await;
        assert_eq!(stand(&world, "acme").await, "1 from 2026-11-10T12:00:00Z to 2026-12-10T12:00:00Z");
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 10);
        assert_adds_up(&world, "acme").await;
    }

    async fn a_run_of_an_outage_is_the_new_subscriptions_if_another_has_begun(db: TestDb) {
        let world = World::with_plans(&db, &lenient()).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 10).await;
        world.lose_webhooks();
        jump(&world, "2026-11-10T12:00:00Z");
        world.stripe("DELETE", &format!("/v1/subscriptions/{}", acme.subscription), &[]).await;
        run_in_an_outage(&world, &db).await;
        learn(&world, "acme").await;
        world.run_job(Job::CountJournal).await;
        assert_eq!(stand(&world, "acme").await, "1 from 2026-11-10T12:00:00Z to 2026-12-10T12:00:00Z");
        assert_adds_up(&world, "acme").await;
    }

    async fn a_hold_that_has_expired_is_committed_in_the_period_that_it_was_held_in(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.runs("acme", 3).await;
        reset_untold(&world, &acme, "2026-11-10T12:00:00Z").await;
        jump(&world, "2026-11-10T12:05:00Z");
        let hold = world.reserve("acme", 6, 60).await;
        jump(&world, "2026-11-10T12:10:00Z");
        world.run_job(Job::Expire).await;
        learn(&world, "acme").await;
        world.commit(&hold, &Value::Null).await.ok();
        assert_eq!(stand(&world, "acme").await, "6 from 2026-11-10T12:00:00Z to 2026-12-10T12:00:00Z");
        assert_eq!(counted(&world, "acme", "2026-11-01T09:00:00Z").await, 3);
        assert_adds_up(&world, "acme").await;
    }

    async fn falling_back_to_an_older_subscription_is_no_alarm(db: TestDb) {
        let world = World::start(&db).await;
        let acme = subscriber(&world, "acme", &[]).await;
        world.advance_to("2026-11-10T12:00:00Z").await;
        let newer = world.subscribe(&acme.stripe_id, "pro_monthly").await;
        assert_eq!(world.tier("acme").await, "pro active");
        world.sim.fail_next(METER_EVENTS, 1000, FaultKind::DropBeforeEffect);
        world.runs("acme", 9).await;
        world.advance_to("2026-11-20T12:00:00Z").await;
        world.runs("acme", 4).await;
        world.stripe("DELETE", &format!("/v1/subscriptions/{newer}"), &[]).await;
        world.settle().await;
        assert_eq!(world.tier("acme").await, "starter active");
        world.advance(10 * MINUTE).await;
        assert_eq!(world.app().store.overdue_units().await.unwrap(), (0, 0));
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance(HOUR).await;
        world.advance(HOUR).await;
        for row in world.list("/outbox?customer_id=acme").await {
            assert_eq!((&row["state"], &row["late"]), (&json!("delivered"), &json!(false)), "{row}");
        }
        world.advance_to("2026-12-01T10:01:00Z").await;
        assert_eq!(acme.billed(&world).await, ["13 from 2026-11-01T09:00:00Z to 2026-12-01T09:00:00Z"]);
    }
}
