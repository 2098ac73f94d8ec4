//! Many runs told of in one call: in their order, each answered by itself.

use super::*;

async fn batch(world: &World, events: Value) -> Vec<Value> {
    let reply = world.call("POST", "/v1/track/batch", &json!({"events": events})).await.ok();
    reply["results"].as_array().expect("a list").clone()
}

fn run(fields: Value) -> Value {
    body("acme", fields)
}

both_databases! {
    async fn each_run_is_counted_in_its_place(db: TestDb) {
        let world = World::start(&db).await;
        for customer in ["acme", "beta"] {
            world.customer(customer).await;
        }
        let events: Vec<_> = (0..60).map(|n| {
            let customer = if n % 3 == 0 { "beta" } else { "acme" };
            body(customer, json!({"value": n + 1, "entity_id": format!("seat-{}", n % 5)}))
        }).collect();
        let results = batch(&world, json!(events)).await;
        let mut usage = std::collections::BTreeMap::new();
        for (n, (event, result)) in events.iter().zip(&results).enumerate() {
            let so_far = usage.entry(event["customer_id"].as_str().unwrap()).or_insert(0);
            *so_far += n + 1;
            let answer = &result["answer"];
            assert_eq!((&result["status"], &answer["customer_id"]), (&json!(200), &event["customer_id"]));
            assert_eq!((&answer["value"], &answer["balance"]["usage"]), (&event["value"], &json!(*so_far)));
        }
        assert_eq!(results.len(), 60);
        let seats = "SELECT CAST(SUM(counted_units) AS BIGINT) FROM usage_events GROUP BY entity_id ORDER BY entity_id";
        assert_eq!(rows(&db.url, seats).await.len(), 5);
        assert_books_balance(&db.url).await;
    }

    async fn an_answer_is_the_one_that_the_run_alone_would_have_had(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let event = run(json!({"value": 150, "idempotency_key": "a"}));
        let alone = world.call("POST", "/v1/track", &event).await.ok();
        let capped = run(json!({"value": 90, "overage_behavior": "cap"}));
        let results = batch(&world, json!([event, capped, capped])).await;
        assert_eq!(results[0], json!({"status": 200, "answer": alone}));
        assert_eq!((&results[1]["answer"]["value"], &results[2]["answer"]["value"]), (&json!(50), &json!(0)));
        assert_eq!(notices(&world, "acme").await, ["cap_reached 100"]);
    }

    async fn a_bad_run_costs_the_others_nothing(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let events = json!([
            run(json!({"value": 1})),
            run(json!({"value": 0})),
            {"customer_id": "stranger", "feature_id": "ai_runs"},
            7,
            run(json!({"feature_id": "imports"})),
            run(json!({"value": "two"})),
            run(json!({"send_event": true})),
            {"feature_id": "ai_runs"},
            run(json!({"value": 2})),
        ]);
        let results = batch(&world, events).await;
        let told: Vec<_> = results.iter().map(|result| {
            let error = &result["error"];
            (result["status"].as_u64().unwrap(), error["code"].as_str().unwrap_or("-"), error["param"].as_str().unwrap_or("-"))
        }).collect();
        assert_eq!(told, [
            (200, "-", "-"),
            (422, "invalid_value", "value"),
            (404, "unknown_customer", "customer_id"),
            (400, "malformed", "events[3]"),
            (404, "unknown_feature", "feature_id"),
            (400, "malformed", "value"),
            (422, "unknown_field", "send_event"),
            (422, "missing_field", "customer_id"),
            (200, "-", "-"),
        ]);
        assert_eq!(world.usage("acme").await, 3);
        assert!(results.iter().all(|result| result["answer"].is_null() != result["error"].is_null()));
    }

    async fn a_thousand_runs_are_taken_and_one_more_is_not(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let many = |count: usize| json!(vec![run(json!({})); count]);
        let results = batch(&world, many(1000)).await;
        let usage: Vec<_> = results.iter().map(|r| r["answer"]["balance"]["usage"].as_i64().unwrap()).collect();
        assert_eq!(usage, (1..=1000).collect::<Vec<_>>());
        for refused in [json!({"events": many(1001)}), json!({"events": []}), json!({})] {
            let refused = world.call("POST", "/v1/track/batch", &refused).await;
            assert_eq!((refused.status, refused.error().as_str()), (422, "invalid_value: events"));
        }
        for (malformed, status, error) in [
            (json!({"events": {}}), 400, "malformed: events"),
            (json!([run(json!({}))]), 400, "malformed"),
            (json!({"events": [run(json!({}))], "idempotency_key": "a"}), 422, "unknown_field: idempotency_key"),
        ] {
            let refused = world.call("POST", "/v1/track/batch", &malformed).await;
            assert_eq!((refused.status, refused.error().as_str()), (status, error));
        }
        assert_eq!(world.usage("acme").await, 1000);
        assert_books_balance(&db.url).await;
    }

    async fn keys_mean_in_a_batch_what_they_mean_elsewhere(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let events: Vec<_> = (0..40).map(|n| {
            run(json!({"value": n % 20 + 1, "idempotency_key": format!("run-{}", n % 20)}))
        }).collect();
        let first = batch(&world, json!(events)).await;
        assert_eq!(first[..20], first[20..], "the second of its key in one batch");
        track(&world, "acme", json!({"value": 3})).await;
        world.restart().await;
        assert_eq!(batch(&world, json!(events)).await, first, "the whole call again");
        let other = run(json!({"value": 99, "idempotency_key": "run-0"}));
        let mixed = batch(&world, json!([events[1], other, events[0]])).await;
        assert_eq!((&mixed[0], &mixed[2]), (&first[1], &first[0]));
        assert_eq!((&mixed[1]["status"], &mixed[1]["error"]["code"]), (&json!(409), &json!("idempotency_key_reused")));
        assert_eq!(world.usage("acme").await, 210 + 3);
        assert_books_balance(&db.url).await;
    }

    async fn a_customer_can_come_with_its_first_batch(db: TestDb) {
        let world = World::start(&db).await;
        let hello = body("new", json!({"customer_data": {"email": "jo@example.com"}, "value": 2}));
        let results = batch(&world, json!([hello, hello])).await;
        assert_eq!(results[1]["answer"]["balance"]["usage"], 4);
        assert_eq!(rows(&db.url, "SELECT email, revision FROM customers").await, ["jo@example.com|1"]);
    }
}
