//! Who is turned away, and with which word.

use super::*;

/// A customer with a Stripe subscription to Pro, 10 runs used; answers the subscription's id.
async fn paying(world: &World, customer: &str) -> String {
    let stripe_id = world.link(customer).await;
    let subscription = world.subscribe(&stripe_id, "pro_monthly").await;
    world.runs(customer, 10).await;
    subscription
}

/// Lets Stripe put the subscription into a status and tell of it.
async fn stripe_says(world: &World, subscription: &str, status: &str) {
    world.sim.set_subscription_status(subscription, status).expect("the simulator knows it");
    world.settle().await;
}

/// Asserts that question, run and capped track are denied for this reason and count nothing.
async fn assert_denied(world: &World, customer: &str, reason: &str) {
    let before = world.check(customer).await;
    assert_eq!((&before["allowed"], &before["reason"]), (&json!(false), &json!(reason)));
    let run = world.run(customer).await;
    assert_eq!((&run["allowed"], &run["reason"]), (&json!(false), &json!(reason)));
    assert_eq!(run["event_id"], Value::Null);
    let capped = track(world, customer, json!({"value": 2, "overage_behavior": "cap"})).await;
    assert_eq!((&capped["value"], &capped["reason"]), (&json!(0), &json!(reason)));
    assert_eq!(world.check(customer).await["balance"], before["balance"]);
}

both_databases! {
    async fn without_a_default_plan_strangers_are_turned_away(db: TestDb) {
        let world = World::with_plans(&db, &plans("default_plan = \"starter\"", "")).await;
        let made = world.customer("acme").await;
        assert_eq!((&made["plan_id"], &made["features"]), (&Value::Null, &json!([])));
        assert_denied(&world, "acme", "no_plan").await;
        let answer = world.check("acme").await;
        assert_eq!((&answer["plan_id"], &answer["upgrade"]), (&Value::Null, &Value::Null));
        assert_eq!(answer["balance"]["granted"], 0);
        // Who subscribes is let in.
        let stripe_id = world.link("acme").await;
        world.subscribe(&stripe_id, "starter_monthly").await;
        assert_eq!(world.run("acme").await["reason"], "within_limit");
    }

    async fn a_feature_the_plan_lacks_is_denied_and_one_nobody_has_is_unknown(db: TestDb) {
        let with_exports = plans(
            "[features.ai_runs]",
            "[features.exports]\nname = \"Exports\"\nunit = \"export\"\n\n[features.ai_runs]",
        )
        .replace(TEAM_LIMIT, &format!("{TEAM_LIMIT}\nlimits.exports = {{ enforcement = \"unlimited\" }}"));
        let world = World::with_plans(&db, &with_exports).await;
        world.customer("acme").await;
        let export = json!({"customer_id": "acme", "feature_id": "exports", "send_event": true});
        let denied = world.call("POST", "/v1/check", &export).await.ok();
        assert_eq!((&denied["allowed"], &denied["reason"]), (&json!(false), &json!("feature_not_in_plan")));
        let unknown = json!({"customer_id": "acme", "feature_id": "imports"});
        let unknown = world.call("POST", "/v1/check", &unknown).await;
        assert_eq!((unknown.status, unknown.error().as_str()), (404, "unknown_feature: feature_id"));
        assert_eq!(rows(&db.url, "SELECT * FROM usage_events").await, Vec::<String>::new());
    }

    async fn a_failed_payment_has_its_grace_and_then_closes_the_gate(db: TestDb) {
        let world = World::start(&db).await;
        let subscription = paying(&world, "acme").await;
        stripe_says(&world, &subscription, "past_due").await;
        assert_eq!(world.run("acme").await["reason"], "within_limit");
        world.advance(Duration::from_secs(7 * 86_400 - 1)).await;
        assert_eq!(world.run("acme").await["allowed"], true);
        world.advance(Duration::from_secs(1)).await;
        assert_denied(&world, "acme", "past_due").await;
        // A run that has happened is still counted.
        assert_eq!(track(&world, "acme", json!({"value": 3})).await["value"], 3);
        stripe_says(&world, &subscription, "active").await;
        assert_eq!(world.run("acme").await["balance"]["usage"], 16);
    }

    async fn unpaid_and_paused_close_the_gate_at_once(db: TestDb) {
        let world = World::start(&db).await;
        let subscription = paying(&world, "acme").await;
        for (status, reason) in [("unpaid", "past_due"), ("paused", "paused")] {
            stripe_says(&world, &subscription, status).await;
            assert_denied(&world, "acme", reason).await;
            stripe_says(&world, &subscription, "active").await;
            assert_eq!(world.run("acme").await["allowed"], true, "{status}");
        }
    }

    async fn the_end_of_a_subscription_is_the_default_plan_from_zero(db: TestDb) {
        let world = World::start(&db).await;
        let subscription = paying(&world, "acme").await;
        world.advance_to("2026-11-12T10:00:00Z").await;
        stripe_says(&world, &subscription, "canceled").await;
        let answer = world.check("acme").await;
        assert_eq!((&answer["plan_id"], &answer["reason"]), (&json!("starter"), &json!("within_limit")));
        assert_eq!((&answer["balance"]["granted"], &answer["balance"]["usage"]), (&json!(200), &json!(0)));
        assert_eq!(answer["period"], json!({"start": "2026-11-12T10:00:00Z", "end": "2026-12-12T10:00:00Z"}));
    }
}
