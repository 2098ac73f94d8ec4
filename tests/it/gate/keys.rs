//! One idempotency key, one answer, ever.

use super::*;

fn run(key: &str) -> Value {
    body("acme", json!({"send_event": true, "idempotency_key": key}))
}

both_databases! {
    async fn the_first_answer_stands_whatever_happens_since(db: TestDb) {
        let mut world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.runs("acme", 197).await;
        let asked = [
            ("/v1/check", run("run-198")),
            ("/v1/check", body("acme", json!({"idempotency_key": "question"}))),
            ("/v1/track", body("acme", json!({"idempotency_key": "done", "value": 9, "overage_behavior": "cap"}))),
            ("/v1/check", run("too-late")),
        ];
        let mut first = Vec::new();
        for (path, body) in &asked {
            first.push(bytes(&world, path, body).await);
        }
        assert!(first.iter().all(|(status, _)| *status == 200), "{first:?}");
        assert!(first[0].1.contains("\"usage\":198") && first[3].1.contains("limit_reached"), "{first:?}");

        let same = async |world: &World, since: &str| {
            for ((path, body), before) in asked.iter().zip(&first) {
                assert_eq!(bytes(world, path, body).await, *before, "{path} after {since}");
            }
        };
        same(&world, "nothing").await;
        world.advance(Duration::from_secs(3600)).await;
        track(&world, "acme", json!({"value": 50})).await;
        same(&world, "an hour and more usage").await;
        world.change_price(&subscription, "pro_monthly").await;
        assert_eq!(world.run("acme").await["plan_id"], "pro");
        same(&world, "an upgrade").await;
        let dearer = PLANS.replace("granted = 200,", "granted = 10,").replace("\"99.00\"", "\"149.00\"");
        std::fs::write(world.plans_file(), dearer).unwrap();
        world.settle().await;
        same(&world, "a change of the plans file").await;
        world.restart().await;
        same(&world, "a restart").await;
        world.advance_to("2027-01-20T00:00:00Z").await;
        same(&world, "two months").await;
        let usage = "SELECT usage_units FROM usage_counters ORDER BY period_start_ms LIMIT 1";
        assert_eq!(rows(&db.url, usage).await, ["251"], "197 + 1 + 2 + 50 + 1, none of them twice");
        assert_books_balance(&db.url).await;
    }

    async fn a_denial_is_remembered_and_a_new_key_asks_anew(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.runs("acme", 200).await;
        let denied = world.call("POST", "/v1/check", &run("a")).await.ok();
        assert_eq!(denied["reason"], "limit_reached");
        world.change_price(&subscription, "pro_monthly").await;
        assert_eq!(world.call("POST", "/v1/check", &run("a")).await.ok(), denied);
        assert_eq!(world.call("POST", "/v1/check", &run("b")).await.ok()["allowed"], true);
        assert_eq!(world.usage("acme").await, 201);
    }

    async fn a_key_with_another_body_is_refused_and_counts_nothing(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.customer("beta").await;
        world.call("POST", "/v1/check", &run("a")).await.ok();
        for (path, fields) in [
            ("/v1/check", json!({"send_event": true, "required_balance": 2})),
            ("/v1/check", json!({"send_event": false})),
            ("/v1/check", json!({"send_event": true, "entity_id": "jo"})),
            ("/v1/check", json!({"send_event": true, "properties": {"model": "claude-haiku"}})),
            ("/v1/track", json!({})),
        ] {
            let mut other = body("acme", fields);
            other["idempotency_key"] = json!("a");
            let refused = world.call("POST", path, &other).await;
            let told = (refused.status, refused.error());
            assert_eq!(told, (409, "idempotency_key_reused: idempotency_key".to_owned()), "{path} {other}");
        }
        assert_eq!(world.usage("acme").await, 1);
        // Keys are each customer's own.
        let elsewhere = body("beta", json!({"send_event": true, "idempotency_key": "a"}));
        assert_eq!(world.call("POST", "/v1/check", &elsewhere).await.ok()["balance"]["usage"], 1);
    }

    async fn white_space_order_of_fields_and_spelling_of_integers_make_no_other_body(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let texts = [
            r#"{"customer_id":"acme","feature_id":"ai_runs","send_event":true,"idempotency_key":"a","properties":{"x":1,"y":[2]}}"#,
            r#" { "properties" : { "y" : [ 2e0 ], "x" : 1.0 }, "idempotency_key" : "a", "send_event" : true,
                  "feature_id" : "ai_runs", "customer_id" : "acme" } "#,
        ];
        let mut answers = Vec::new();
        for text in texts {
            answers.push(world.call_raw(API_KEY, "POST", "/v1/check", text.into()).await.ok());
        }
        assert_eq!(answers[0], answers[1]);
        assert_eq!(world.usage("acme").await, 1);
    }

    async fn a_key_may_have_255_printable_characters(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let longest: String = (b' '..=b'~').cycle().take(255).map(char::from).collect();
        let first = world.call("POST", "/v1/check", &run(&longest)).await.ok();
        assert_eq!(world.call("POST", "/v1/check", &run(&longest)).await.ok(), first);
        // A key that looks like one of our own ids is nobody's but the caller's.
        let event_id = world.run("acme").await["event_id"].as_str().unwrap().to_owned();
        for key in [event_id.clone(), format!("k:{event_id}")] {
            assert_ne!(world.call("POST", "/v1/check", &run(&key)).await.ok()["event_id"], event_id);
        }
        assert_eq!(world.usage("acme").await, 4);
    }

    async fn a_key_that_comes_with_an_unknown_customer_binds_nobody(db: TestDb) {
        let world = World::start(&db).await;
        assert_eq!(world.call("POST", "/v1/check", &run("a")).await.status, 404);
        world.customer("acme").await;
        assert_eq!(world.call("POST", "/v1/check", &run("a")).await.ok()["balance"]["usage"], 1);
    }
}
