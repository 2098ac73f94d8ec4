//! Limits that never close the gate: they count on, and tell at their own numbers.

use super::*;

const SOFT: &str = "{ granted = 2000, enforcement = \"soft\", nudge_at_percent = [80] }";

/// A daemon whose customers have this limit of `ai_runs` without paying.
async fn world_with(db: &TestDb, limit: &str) -> World {
    let all_on_pro =
        plans(SOFT, limit).replace("default_plan = \"starter\"", "default_plan = \"pro\"");
    let world = World::with_plans(db, &all_on_pro).await;
    world.customer("acme").await;
    world
}

/// Counts so many and lets the mails go out; answers the threshold that the run saw.
async fn run(world: &World, units: i64) -> Value {
    let answer = world.runs("acme", units).await;
    world.settle().await;
    answer["threshold"].clone()
}

fn percent(percent: i64) -> String {
    format!("You've used {percent}% of your AI runs this month.")
}

both_databases! {
    async fn a_soft_limit_tells_at_each_of_its_percents_also_beyond_all_of_it(db: TestDb) {
        let limit = "{ granted = 200, enforcement = \"soft\", nudge_at_percent = [50, 100, 150, 1000] }";
        let world = world_with(&db, limit).await;
        for (units, state, share) in [
            (99, "ok", 49), (1, "nudge", 50), (99, "nudge", 99), (1, "nudge", 100), (1, "over_soft_limit", 100),
            (98, "over_soft_limit", 149), (1, "over_soft_limit", 150), (1699, "over_soft_limit", 999),
        ] {
            assert_eq!(run(&world, units).await, json!({"state": state, "percent": share}));
        }
        assert_eq!(world.subjects(), [percent(50), percent(100), percent(150)]);
        run(&world, 1).await;
        run(&world, 1_000_000).await;
        assert_eq!(world.subjects().last(), Some(&percent(1000)));
        assert_eq!(world.subjects().len(), 4);
        let mail = world.mail.mails().pop().unwrap();
        assert!(mail.text.contains("2,000 AI runs"), "as it was at the crossing: {}", mail.text);
    }

    async fn one_leap_over_several_percents_tells_of_the_highest(db: TestDb) {
        let limit = "{ granted = 200, enforcement = \"soft\", nudge_at_percent = [50, 100, 150] }";
        let world = world_with(&db, limit).await;
        run(&world, 320).await;
        run(&world, 1).await;
        assert_eq!(world.subjects(), [percent(150)]);
    }

    async fn a_soft_limit_refuses_nothing_whatever_is_asked_of_it(db: TestDb) {
        let world = world_with(&db, "{ granted = 3, enforcement = \"soft\" }").await;
        run(&world, 3).await;
        let held = world.reserve("acme", 1_000_000_000, 60).await;
        for (path, fields) in [
            ("/v1/check", json!({"required_balance": 5, "send_event": true})),
            ("/v1/track", json!({"value": 5, "overage_behavior": "cap"})),
            ("/v1/track", json!({"value": 5})),
        ] {
            let answer = post(&world, path, "acme", fields).await;
            assert_eq!((&answer["allowed"], &answer["reason"]), (&json!(true), &json!("over_soft_limit")), "{path}");
        }
        assert_eq!(world.commit(&held, &Value::Null).await.ok()["value"], 1_000_000_000);
        assert_eq!(world.usage("acme").await, 1_000_000_018);
        assert_eq!(world.subjects(), Vec::<String>::new(), "it lists no percents");
        assert_books_balance(&db.url).await;
    }

    async fn an_unlimited_feature_tells_at_its_own_numbers(db: TestDb) {
        let world = world_with(&db, "{ enforcement = \"unlimited\", nudge_at = [1000, 5000] }").await;
        for (units, state) in [(999, "ok"), (1, "nudge"), (1, "nudge"), (4000, "nudge")] {
            assert_eq!(run(&world, units).await, json!({"state": state, "percent": null}));
        }
        let told = ["You've reached 1,000 AI runs this month.", "You've reached 5,000 AI runs this month."];
        assert_eq!(world.subjects(), told);
        let listed = world.list("/notices?customer_id=acme").await;
        let mut marks: Vec<_> = listed.iter().map(|n| (n["percent"].clone(), n["at_units"].as_i64())).collect();
        marks.sort_by_key(|(_, units)| *units);
        assert_eq!(marks, [(Value::Null, Some(1000)), (Value::Null, Some(5000))]);
        let mail = &world.mail.mails()[0];
        assert!(mail.text.contains("1,000 AI runs on the first day"), "{}", mail.text);
        // And again in the next period, there the highest of one leap alone.
        world.advance_to("2026-12-01T00:00:00Z").await;
        run(&world, 9000).await;
        assert_eq!(world.subjects(), [told[0], told[1], told[1]]);
    }

    async fn an_unlimited_feature_counts_on_and_holds(db: TestDb) {
        let world = world_with(&db, "{ enforcement = \"unlimited\" }").await;
        run(&world, 1_000_000_000).await;
        let held = world.reserve("acme", 7, 60).await;
        let capped = track(&world, "acme", json!({"value": 9, "overage_behavior": "cap"})).await;
        assert_eq!((&capped["value"], &capped["reason"]), (&json!(9), &json!("unlimited")));
        assert_eq!((&capped["balance"]["reserved"], &capped["balance"]["remaining"]), (&json!(7), &Value::Null));
        let done = world.commit(&held, &json!({"value": 70})).await.ok();
        assert_eq!((&done["balance"]["usage"], &done["over_limit"]), (&json!(1_000_000_079), &json!(false)));
        assert_books_balance(&db.url).await;
    }
}
