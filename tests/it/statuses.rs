//! The rows of the table of statuses (`domain::tier`) that the stories of sync do not tell, through
//! a whole daemon: planned ends, paused collection, several subscriptions, items of several kinds.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::jobs::Job;

use crate::harness::world::World;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// What `stripe push` writes on a price before another takes its lookup key.
const MARKED: [(&str, &str); 1] = [("metadata[tollgate_plan_id]", "pro")];

async fn shown(world: &World, customer: &str, field: &str) -> Value {
    world.shown(customer).await["subscription"][field].clone()
}

both_databases! {
    async fn support_sees_when_a_subscription_is_to_end(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        assert_eq!(shown(&world, "acme", "cancels_at").await, Value::Null);
        world.lose_webhooks();
        world.change_subscription(&subscription, &[("cancel_at_period_end", "true")]).await;
        let dry = world.sync_dry("acme").await;
        let planned = json!([{
            "what": "planned end", "local": null, "stripe": "2026-12-01T09:00:00Z", "action": "set",
        }]);
        assert_eq!(dry["differences"], planned);
        world.sync("acme").await.ok();
        assert_eq!(shown(&world, "acme", "cancels_at").await, "2026-12-01T09:00:00Z");
        assert_eq!(world.gate("acme").await, "true within_limit");
        world.change_subscription(&subscription, &[("cancel_at_period_end", "false")]).await;
        world.sync("acme").await.ok();
        assert_eq!(shown(&world, "acme", "cancels_at").await, Value::Null);
        world.change_subscription(&subscription, &[("cancel_at", "1794000000")]).await;
        world.sync("acme").await.ok();
        assert_eq!(shown(&world, "acme", "cancels_at").await, "2026-11-06T21:20:00Z");
    }

    async fn who_is_on_a_price_that_was_replaced_stays_on_its_plan(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        let old = world.price("pro_monthly").await;
        let price = world.stripe("POST", &format!("/v1/prices/{old}"), &MARKED).await;
        let new = [
            ("product", price["product"].as_str().unwrap()),
            ("currency", "usd"),
            ("unit_amount", "10900"),
            ("recurring[interval]", "month"),
            ("lookup_key", "pro_monthly"),
            ("transfer_lookup_key", "true"),
        ];
        assert_ne!(world.stripe("POST", "/v1/prices", &new).await["id"], old.as_str());
        world.change_subscription(&subscription, &[("metadata[seen]", "1")]).await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(world.list("/inbox?state=parked").await, [Value::Null; 0]);
        assert_eq!(world.sync("acme").await.ok()["differences"], json!([]));
    }

    async fn paused_collection_closes_the_gate_where_the_plans_file_says_so(db: TestDb) {
        let plans = include_str!("../../plans.example.toml");
        let deny = plans.replace("pause_collection = \"allow\"", "pause_collection = \"deny\"");
        let world = World::with_plans(&db, &deny).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        world.change_subscription(&subscription, &[("pause_collection[behavior]", "void")]).await;
        assert_eq!(world.gate("acme").await, "false paused");
        assert_eq!(shown(&world, "acme", "collection_paused").await, true);
        assert_eq!(world.tier("acme").await, "pro active", "its status stays");
        // The file is changed: whoever is looked at next is held to the new policy.
        std::fs::write(world.plans_file(), plans).unwrap();
        world.run_job(Job::ReloadPlans).await;
        world.sync("acme").await.ok();
        assert_eq!(world.gate("acme").await, "true within_limit");
        world.change_subscription(&subscription, &[("pause_collection", "")]).await;
        assert_eq!(shown(&world, "acme", "collection_paused").await, false);
    }

    async fn an_address_that_stripe_has_is_followed_until_the_product_says_one(db: TestDb) {
        let world = World::start(&db).await;
        world.call("PUT", "/v1/customers/acme", &json!({})).await.ok();
        let stripe = world.stripe("POST", "/v1/customers", &[("email", "old@example.com")]).await;
        let stripe_id = stripe["id"].as_str().unwrap();
        let link = json!({"stripe_customer_id": stripe_id});
        world.call("PUT", "/v1/customers/acme", &link).await.ok();
        let moved = async |address: &str| {
            let path = format!("/v1/customers/{stripe_id}");
            world.stripe("POST", &path, &[("email", address)]).await;
            world.settle().await;
            world.shown("acme").await["email"].clone()
        };
        assert_eq!(moved("new@example.com").await, "new@example.com");
        assert_eq!(moved("").await, "new@example.com", "none is no better one");
        let own = json!({"email": "own@example.com"});
        world.call("PUT", "/v1/customers/acme", &own).await.ok();
        assert_eq!(moved("newer@example.com").await, "own@example.com");
        world.call("PUT", "/v1/customers/acme", &json!({"email": null})).await.ok();
        assert_eq!(moved("newest@example.com").await, "newest@example.com");
    }

    async fn a_second_live_subscription_is_told_until_it_is_over(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, first) = world.subscriber("acme", "starter_monthly").await;
        let report = world.sync("acme").await.ok();
        assert_eq!(report["alerts"], json!([]));
        let second = world.subscribe(&stripe_id, "pro_monthly").await;
        assert_eq!(world.tier("acme").await, "pro active");
        for _ in 0..2 {
            let report = world.sync("acme").await.ok();
            let alert = report["alerts"][0].as_str().unwrap();
            assert!(alert.starts_with("2 live subscriptions") && alert.contains(&first), "{alert}");
            assert!(alert.ends_with(&format!("{second} gives the tier")), "{alert}");
            assert_eq!(report["differences"], json!([]), "nothing that a sync could put right");
        }
        let metrics = world.http.get(world.url("/metrics")).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        assert!(metrics.contains("tollgate_several_subscriptions_total"), "{metrics}");
        world.stripe("DELETE", &format!("/v1/subscriptions/{first}"), &[]).await;
        world.settle().await;
        assert_eq!(world.sync("acme").await.ok()["alerts"], json!([]));
    }

    async fn once_its_grace_is_over_a_higher_plan_gives_way_to_one_that_is_paid(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, _) = world.subscriber("acme", "starter_monthly").await;
        let second = world.subscribe(&stripe_id, "pro_monthly").await;
        world.sim.set_subscription_status(&second, "past_due").unwrap();
        world.settle().await;
        assert_eq!((world.gate("acme").await.as_str(), world.tier("acme").await.as_str()),
            ("true within_limit", "pro past_due"));
        for _ in 0..7 {
            world.clock.advance(DAY - HOUR);
            world.run_job(Job::Reconcile).await;
            assert_eq!(world.tier("acme").await, "pro past_due");
            world.clock.advance(HOUR);
        }
        assert_eq!(world.gate("acme").await, "false past_due");
        world.run_job(Job::Reconcile).await;
        assert_eq!((world.gate("acme").await.as_str(), world.tier("acme").await.as_str()),
            ("true within_limit", "starter active"));
        world.sim.set_subscription_status(&second, "active").unwrap();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active", "paid after all");
    }

    async fn a_metered_item_beside_the_base_changes_neither_plan_nor_clock(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let overage = world.metered_price().await;
        let price = world.price("pro_monthly").await;
        world.stripe("POST", "/v1/subscriptions", &[
            ("customer", stripe_id.as_str()), ("items[0][price]", overage.as_str()),
            ("items[1][price]", &price),
        ]).await;
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(world.run("acme").await["period"]["end"], "2026-12-01T09:00:00Z");
    }
}
