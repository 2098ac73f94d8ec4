//! Balances sold in credits: what a run draws follows from its model and its tokens.

use tollgate::gate::quotas::Change;

use super::*;

/// The example's plans with credits for sale: 100 on Starter, as hard as its runs.
fn credit_plans(unknown_models: &str) -> String {
    let feature = format!(
        "[features.ai_credits]\nname = \"AI credits\"\nunit = \"credit\"\n{unknown_models}\n\n[features.ai_runs]"
    );
    let limit = "limits.ai_runs = { granted = 200,";
    plans("[features.ai_runs]", &feature).replace(
        limit,
        &format!(
            "limits.ai_credits = {{ granted = 100, enforcement = \"hard\", nudge_at_percent = [80] }}\n{limit}"
        ),
    )
}

/// The same with other words in some places.
fn plans_with(plans: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(plans.to_owned(), |plans, (from, to)| {
        assert!(plans.contains(from), "{from}");
        plans.replacen(from, to, 1)
    })
}

/// A call about credits with these fields.
async fn credits(world: &World, path: &str, fields: Value) -> Value {
    let mut body = body("acme", fields);
    body["feature_id"] = json!("ai_credits");
    world.call("POST", path, &body).await.ok()
}

/// A Haiku run as its properties tell it: 0.2 credits per thousand tokens in, 1 per thousand out.
fn haiku(input: i64, output: i64) -> Value {
    json!({"model": "claude-haiku", "input_tokens": input, "output_tokens": output})
}

async fn used(world: &World) -> i64 {
    credits(world, "/v1/check", json!({})).await["balance"]["usage"].as_i64().unwrap()
}

both_databases! {
    async fn a_run_is_held_by_its_estimate_and_counted_by_what_it_took(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let held = credits(&world, "/v1/check", json!({"properties": haiku(10_000, 20_000), "reserve": {}})).await;
        assert_eq!((&held["reservation"]["units"], &held["required_balance"]), (&json!(22), &json!(22)));
        let path = format!("/v1/reservations/{}/commit", held["reservation"]["id"].as_str().unwrap());
        let actual = json!({"properties": haiku(10_000, 4_321)});
        let first = bytes(&world, &path, &actual).await;
        let done: Value = serde_json::from_str(&first.1).unwrap();
        assert_eq!((&done["value"], &done["balance"]["reserved"]), (&json!(7), &json!(0)), "6.321 in whole credits");
        assert_eq!(bytes(&world, &path, &actual).await, first);
        assert_eq!(bytes(&world, &path, &json!({"value": 7})).await, first, "the same in units");
        for other in [json!({"properties": haiku(10_000, 9_999)}), json!({}), json!({"value": 22})] {
            assert_eq!(bytes(&world, &path, &other).await.0, 409, "{other}");
        }
        let row = "SELECT model, input_tokens, cached_input_tokens, output_tokens, counted_units FROM usage_events \
            WHERE counted_units > 0";
        assert_eq!(rows(&db.url, row).await, ["claude-haiku|10000|NULL|4321|7"]);
        assert_books_balance(&db.url).await;
    }

    async fn other_tokens_are_another_commit_even_where_the_hold_would_have_been_the_same(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let held = credits(&world, "/v1/check", json!({"properties": haiku(0, 5_000), "reserve": {}})).await;
        let path = format!("/v1/reservations/{}/commit", held["reservation"]["id"].as_str().unwrap());
        assert_eq!(bytes(&world, &path, &json!({"properties": haiku(0, 5_000)})).await.0, 200);
        assert_eq!(bytes(&world, &path, &json!({"properties": haiku(0, 9_000)})).await.0, 409);
        assert_eq!(bytes(&world, &path, &json!({})).await.0, 200, "what was held is what was counted");
        assert_eq!(used(&world).await, 5);
    }

    async fn a_runs_sum_is_rounded_up_once(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        for (properties, drawn) in [
            (haiku(2_500, 500), 1),
            (haiku(2_500, 501), 2),
            (haiku(0, 0), 1),
            (json!({"model": "claude-haiku", "input_tokens": 50_000, "cached_input_tokens": 49_999}), 10),
        ] {
            let run = credits(&world, "/v1/track", json!({"properties": properties})).await;
            assert_eq!(run["value"], drawn, "{properties}");
        }
        assert_eq!(used(&world).await, 14);
    }

    async fn at_the_cap_a_run_is_judged_by_its_credits(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let asked = async |tokens: i64| {
            credits(&world, "/v1/check", json!({"properties": haiku(0, tokens), "send_event": true})).await
        };
        assert_eq!(asked(95_000).await["threshold"]["state"], "nudge");
        assert_eq!((asked(5_001).await["reason"].clone(), used(&world).await), (json!("limit_reached"), 95));
        assert_eq!(asked(5_000).await["balance"]["remaining"], 0);
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80", "cap_reached 100"]);
    }

    async fn a_number_that_is_stated_goes_before_what_the_tokens_would_draw(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let stated = json!({"properties": haiku(0, 50_000), "required_balance": 3, "send_event": true});
        assert_eq!(credits(&world, "/v1/check", stated).await["balance"]["usage"], 3);
        // Of a model without a price too: the caller knows best.
        let unknown = json!({"properties": {"model": "gpt-9"}, "value": 4});
        assert_eq!(credits(&world, "/v1/track", unknown).await["value"], 4);
        let held = credits(&world, "/v1/check", json!({"required_balance": 9, "reserve": {}})).await;
        let id = held["reservation"]["id"].as_str().unwrap();
        let both = json!({"value": 2, "properties": haiku(0, 50_000)});
        assert_eq!(world.commit(id, &both).await.ok()["value"], 2);
        // Who tells nothing of the run asks for one credit, or settles what was held.
        assert_eq!(credits(&world, "/v1/check", json!({})).await["required_balance"], 1);
    }

    async fn a_run_without_a_known_model_is_refused_by_name_and_leaves_no_trace(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let held = credits(&world, "/v1/check", json!({"required_balance": 5, "reserve": {}})).await;
        let commit = format!("/v1/reservations/{}/commit", held["reservation"]["id"].as_str().unwrap());
        for (properties, error) in [
            (json!({"model": "gpt-9", "output_tokens": 5}), "unknown_model: properties.model"),
            (json!({"output_tokens": 5}), "missing_field: properties.model"),
            (haiku(1_000_000_000_000, 1_000_000_000_000), "invalid_value: properties"),
        ] {
            let fields = json!({
                "feature_id": "ai_credits", "properties": properties, "customer_data": {}, "idempotency_key": "a",
            });
            for customer in ["acme", "stranger"] {
                for path in ["/v1/check", "/v1/track"] {
                    let refused = world.call("POST", path, &body(customer, fields.clone())).await;
                    assert_eq!((refused.status, refused.error().as_str()), (422, error), "{customer} {path}");
                }
            }
            let refused = world.call("POST", &commit, &json!({"properties": properties})).await;
            assert_eq!((refused.status, refused.error().as_str()), (422, error));
        }
        let unknown = world.call("POST", &commit, &json!({"properties": {"model": "gpt-9"}})).await;
        assert!(unknown.body["error"]["message"].as_str().unwrap().contains("gpt-9"), "{}", unknown.body);
        assert_eq!(rows(&db.url, "SELECT customer_id FROM customers").await, ["acme"], "nobody was made for it");
        assert_eq!(rows(&db.url, "SELECT counted_units FROM usage_events").await, ["0"], "the hold");
        assert_eq!(world.call("POST", &commit, &json!({"properties": haiku(0, 1)})).await.ok()["value"], 1);
    }

    async fn tokens_by_another_name_are_not_taken_for_none(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let held = credits(&world, "/v1/check", json!({"required_balance": 5, "reserve": {}})).await;
        let commit = format!("/v1/reservations/{}/commit", held["reservation"]["id"].as_str().unwrap());
        let of_openai = json!({"model": "claude-haiku", "prompt_tokens": 500_000, "completion_tokens": 9_000});
        for (path, fields) in [
            ("/v1/track", json!({"properties": of_openai})),
            ("/v1/check", json!({"properties": of_openai, "send_event": true})),
            ("/v1/check", json!({"properties": {"model": "claude-haiku"}, "reserve": {}})),
        ] {
            let mut run = body("acme", fields);
            run["feature_id"] = json!("ai_credits");
            let refused = world.call("POST", path, &run).await;
            assert_eq!((refused.status, refused.error().as_str()), (422, "missing_field: properties.input_tokens"));
        }
        let refused = world.call("POST", &commit, &json!({"properties": of_openai})).await;
        assert_eq!((refused.status, refused.error().as_str()), (422, "missing_field: properties.input_tokens"));
        let none = json!({"properties": {"input_tokens": 0, "output_tokens": 0}});
        let refused = world.call("POST", &commit, &none).await;
        assert_eq!((refused.status, refused.error().as_str()), (422, "missing_field: properties.model"));
        // A number, a count of none, and a question are all clear.
        assert_eq!(credits(&world, "/v1/track", json!({"properties": of_openai, "value": 7})).await["value"], 7);
        assert_eq!(credits(&world, "/v1/track", json!({"properties": haiku(0, 0)})).await["value"], 1);
        assert_eq!(credits(&world, "/v1/check", json!({"properties": of_openai})).await["allowed"], true);
        assert_eq!(world.commit(held["reservation"]["id"].as_str().unwrap(), &json!({})).await.ok()["value"], 5);
    }

    async fn an_unknown_model_counts_as_the_one_that_the_plans_name(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("count_unknown_models_as = \"claude-haiku\"")).await;
        world.customer("acme").await;
        let run = json!({"properties": {"model": "gpt-9", "output_tokens": 3_000}});
        assert_eq!(credits(&world, "/v1/track", run).await["value"], 3);
        let nameless = body("acme", json!({"feature_id": "ai_credits", "properties": {"output_tokens": 5}}));
        assert_eq!(world.call("POST", "/v1/track", &nameless).await.error(), "missing_field: properties.model");
        assert_eq!(rows(&db.url, "SELECT model FROM usage_events").await, ["gpt-9"]);
    }

    async fn a_feature_that_is_counted_in_runs_takes_one_whatever_the_tokens(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let run = track(&world, "acme", json!({"properties": {"model": "gpt-9", "output_tokens": 90_000}})).await;
        assert_eq!(run["value"], 1);
    }

    async fn who_keeps_its_terms_keeps_the_credits_that_its_models_take(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let dearer = plans_with(&credit_plans(""), &[
            ("id = \"starter\"", "id = \"starter\"\ngrandfather = true"),
            ("[models.claude-haiku]", "[models.gpt-9]\ninput = \"1.00\"\noutput = \"2.00\"\n\n[models.claude-haiku]"),
            ("per_1k_output = \"1\" }", "per_1k_output = \"2\" }\ngpt-9 = { per_1k_input = \"1\", per_1k_output = \"4\" }"),
        ]);
        std::fs::write(world.plans_file(), dearer).unwrap();
        world.settle().await;
        world.customer("new").await;
        let run = async |customer: &str, model: &str| {
            let properties = json!({"model": model, "output_tokens": 3000});
            let mut run = body(customer, json!({"properties": properties}));
            run["feature_id"] = json!("ai_credits");
            world.call("POST", "/v1/track", &run).await.ok()["value"].clone()
        };
        assert_eq!((run("acme", "claude-haiku").await, run("new", "claude-haiku").await), (json!(3), json!(6)));
        assert_eq!(run("acme", "gpt-9").await, 12, "a model that came since has the rate it came with");
        let held = credits(&world, "/v1/check", json!({"required_balance": 9, "reserve": {}})).await;
        let id = held["reservation"]["id"].as_str().unwrap();
        assert_eq!(world.commit(id, &json!({"properties": haiku(0, 2000)})).await.ok()["value"], 2);
        world.change("acme", Change::KeepTerms { version: None }).await.unwrap();
        assert_eq!(run("acme", "claude-haiku").await, 6);
        assert_eq!(world.subjects(), Vec::<String>::new());
    }

    async fn a_first_answer_stands_when_the_table_has_changed(db: TestDb) {
        let world = World::with_plans(&db, &credit_plans("")).await;
        world.customer("acme").await;
        let run = body("acme", json!({
            "feature_id": "ai_credits", "properties": haiku(0, 3_000), "idempotency_key": "a",
        }));
        let first = bytes(&world, "/v1/track", &run).await;
        let without = credit_plans("").replace("claude-haiku", "claude-opus");
        std::fs::write(world.plans_file(), without).unwrap();
        world.settle().await;
        assert_eq!(bytes(&world, "/v1/track", &run).await, first);
        assert_eq!(used(&world).await, 3);
    }
}
