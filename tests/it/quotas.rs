//! Support gives a customer a quota of its own, grants it units, keeps it on old terms.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::postgres::TestDb;
use crate::harness::sql::rows;
use crate::harness::world::{ADMIN_TOKEN, API_KEY, Reply, World};

const PLANS: &str = include_str!("../../plans.example.toml");
const DAY: Duration = Duration::from_secs(86_400);

/// Calls the admin API about `acme`, a second later than whatever was before.
async fn support(world: &World, method: &str, path: &str, body: Value) -> Reply {
    world.advance(Duration::from_secs(1)).await;
    let path = format!("/admin/api/v1/customers/acme{path}");
    world.call_as(ADMIN_TOKEN, method, &path, &body).await
}

async fn quotas(world: &World) -> Value {
    support(world, "GET", "/quotas", Value::Null).await.ok()
}

/// The one feature of a customer as the product sees it.
async fn feature(world: &World) -> Value {
    world.call("GET", "/v1/customers/acme", &Value::Null).await.ok()["features"][0].clone()
}

/// What the audit list says was done to `acme`, the newest first.
async fn audited(world: &World) -> Vec<String> {
    let entries = world.list("/audit?customer_id=acme").await;
    entries.iter().map(|entry| entry["action"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn start(db: &TestDb) -> World {
    let world = World::start(db).await;
    world.customer("acme").await;
    world
}

both_databases! {
    async fn an_own_quota_holds_until_its_end_or_until_it_is_taken_away(db: TestDb) {
        let world = start(&db).await;
        world.runs("acme", 200).await;
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        let own = json!({"granted": 300, "ends_at": "2026-11-03T09:00:00Z", "note": "trial\u{0} of Team"});
        let set = support(&world, "PUT", "/overrides/ai_runs", own.clone()).await.ok();
        assert_eq!(set, json!({"feature_id": "ai_runs", "plan_id": "starter", "enforcement": "hard",
            "granted": 300, "in_force": true, "ends_at": "2026-11-03T09:00:00Z",
            "created_at": "2026-11-01T09:00:01Z", "note": "trial of Team"}));
        assert_eq!(world.run("acme").await["balance"]["granted"], 300);
        let shown = feature(&world).await;
        assert_eq!(shown["override"], json!({"enforcement": "hard", "granted": 300,
            "ends_at": "2026-11-03T09:00:00Z"}));
        world.advance(2 * DAY).await;
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        assert_eq!((&feature(&world).await["override"], &quotas(&world).await["overrides"]), (&Value::Null, &json!([])));

        let unlimited = json!({"enforcement": "unlimited"});
        support(&world, "PUT", "/overrides/ai_runs", unlimited).await.ok();
        assert_eq!(world.run("acme").await["reason"], "unlimited");
        assert_eq!(support(&world, "DELETE", "/overrides/ai_runs", Value::Null).await.status, 204);
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        let again = support(&world, "DELETE", "/overrides/ai_runs", Value::Null).await;
        assert_eq!((again.status, again.error()), (404, "unknown_override: feature_id".to_owned()));
        assert_eq!(audited(&world).await,
            ["override.cleared", "override.set", "quotas.ended", "override.set"]);
    }

    async fn the_same_quota_set_twice_is_one_change_and_one_mail(db: TestDb) {
        let world = start(&db).await;
        world.runs("acme", 90).await;
        for _ in 0..2 {
            support(&world, "PUT", "/overrides/ai_runs", json!({"granted": 100})).await.ok();
            world.settle().await;
        }
        assert_eq!(audited(&world).await, ["override.set"]);
        assert_eq!(world.subjects(), ["You've used 80% of your AI runs this month."]);
    }

    async fn a_grant_is_drawn_shown_and_taken_back(db: TestDb) {
        let world = start(&db).await;
        let first = json!({"feature_id": "ai_runs", "units": 50, "note": "sorry for Tuesday"});
        let first = support(&world, "POST", "/grants", first).await.ok();
        let last = json!({"feature_id": "ai_runs", "units": 10, "draw": "after", "expires_at": "2026-11-02T00:00:00Z"});
        support(&world, "POST", "/grants", last).await.ok();
        assert_eq!(world.runs("acme", 20).await["balance"]["granted"], 260);
        let told = quotas(&world).await["grants"].clone();
        assert_eq!((&told[1]["grant_id"], &told[1]["used"], &told[1]["left"], &told[1]["state"]),
            (&first["grant_id"], &json!(20), &json!(30), &json!("live")));
        assert_eq!((&told[0]["draw"], &told[0]["left"]), (&json!("after"), &json!(10)));
        assert_eq!(feature(&world).await["grants_left"], 40);
        world.advance(DAY).await;
        assert_eq!(quotas(&world).await["grants"][0]["state"], "expired");

        let path = format!("/grants/{}", first["grant_id"].as_str().unwrap());
        assert_eq!(support(&world, "DELETE", &path, Value::Null).await.status, 204);
        assert_eq!(support(&world, "DELETE", &path, Value::Null).await.error(), "unknown_grant: grant_id");
        let told = quotas(&world).await["grants"][1].clone();
        assert_eq!((&told["state"], &told["used"], &told["left"]), (&json!("revoked"), &json!(20), &json!(0)));
        assert_eq!(world.check("acme").await["balance"]["granted"], 220, "what was used stays granted");
        assert_eq!(audited(&world).await,
            ["grant.revoked", "quotas.ended", "grant.added", "grant.added"]);
    }

    async fn a_grant_under_a_key_is_made_once_and_answered_alike_for_ever(db: TestDb) {
        let world = start(&db).await;
        let asked = json!({"feature_id": "ai_runs", "units": 5, "expires_at": "2026-11-02T00:00:00Z",
            "idempotency_key": "ticket-7"});
        let first = support(&world, "POST", "/grants", asked.clone()).await.ok();
        world.runs("acme", 1).await;
        assert_eq!(support(&world, "POST", "/grants", asked.clone()).await.ok(), first);
        world.advance(3 * DAY).await;
        assert_eq!(support(&world, "POST", "/grants", asked.clone()).await.ok(), first);
        assert_eq!(rows(&db.url, "SELECT units, used_units FROM grants").await, ["5|1"]);
        let mut other = asked;
        other["units"] = json!(6);
        let refused = support(&world, "POST", "/grants", other).await;
        assert_eq!((refused.status, refused.error()), (409, "idempotency_key_reused: idempotency_key".to_owned()));
    }

    async fn a_customer_is_kept_on_old_terms_and_moved_on(db: TestDb) {
        let world = start(&db).await;
        let dearer = PLANS.replace("granted = 200,", "granted = 10,");
        std::fs::write(world.plans_file(), dearer).unwrap();
        world.settle().await;
        assert_eq!(world.check("acme").await["balance"]["granted"], 10);
        let kept = support(&world, "PUT", "/terms", json!({"version": 1})).await.ok();
        assert_eq!(kept, json!({"customer_id": "acme", "terms_version": 1}));
        assert_eq!(world.check("acme").await["balance"]["granted"], 200);
        assert_eq!((&quotas(&world).await["terms_version"], &feature(&world).await["balance"]["granted"]),
            (&json!(1), &json!(200)));
        support(&world, "PUT", "/terms", json!({"version": null})).await.ok();
        assert_eq!(world.check("acme").await["balance"]["granted"], 10);
        let unknown = support(&world, "PUT", "/terms", json!({"version": 9})).await;
        assert_eq!((unknown.status, unknown.error()), (422, "invalid_value: version".to_owned()));
    }

    async fn a_customer_is_pinned_to_the_terms_in_force_before_they_change(db: TestDb) {
        let world = start(&db).await;
        let kept = json!({"customer_id": "acme", "terms_version": 1});
        for _ in 0..2 {
            assert_eq!(support(&world, "PUT", "/terms", json!({"version": 1})).await.ok(), kept);
        }
        assert_eq!(quotas(&world).await["terms_version"], 1);
        std::fs::write(world.plans_file(), PLANS.replace("granted = 200,", "granted = 10,")).unwrap();
        world.settle().await;
        assert_eq!(world.run("acme").await["balance"]["granted"], 200);
        support(&world, "PUT", "/terms", json!({"version": null})).await.ok();
        assert_eq!(world.check("acme").await["balance"]["granted"], 10);
        let trail = world.list("/audit?customer_id=acme").await;
        let moves: Vec<_> = trail.iter().map(|entry| entry["detail"].clone()).collect();
        assert_eq!(moves, [json!({"from": 1, "to": null}), json!({"from": null, "to": 1})]);
        let refused = support(&world, "PUT", "/terms", json!({"version": 9})).await;
        assert_eq!(refused.body["error"]["message"], "version must be one of the plans file that has the customer's plan");
    }

    async fn what_cannot_be_is_refused_with_the_fields_name_and_changes_nothing(db: TestDb) {
        let world = start(&db).await;
        let long = "x".repeat(501);
        for (method, path, body, status, error) in [
            ("PUT", "/overrides/ai_runs", json!({}), 422, "missing_field: granted"),
            ("PUT", "/overrides/ai_runs", json!({"granted": -1}), 422, "invalid_value: granted"),
            ("PUT", "/overrides/ai_runs", json!({"granted": "9"}), 400, "malformed: granted"),
            ("PUT", "/overrides/ai_runs", json!({"granted": 9, "enforcement": "firm"}), 422, "invalid_value: enforcement"),
            ("PUT", "/overrides/ai_runs", json!({"granted": 9, "enforcement": "unlimited"}), 422, "invalid_value: granted"),
            ("PUT", "/overrides/ai_runs", json!({"granted": 9, "ends_at": "2026-11-01T09:00:00Z"}), 422, "invalid_value: ends_at"),
            ("PUT", "/overrides/ai_runs", json!({"granted": 9, "note": long}), 422, "invalid_value: note"),
            ("PUT", "/overrides/ai_runs", json!({"granted": 9, "plan": "pro"}), 422, "unknown_field: plan"),
            ("PUT", "/overrides/imports", json!({"granted": 9}), 404, "unknown_feature: feature_id"),
            ("PUT", "/overrides/%C3%BC", json!({"granted": 9}), 422, "invalid_value: feature_id"),
            ("POST", "/grants", json!({"units": 9}), 422, "missing_field: feature_id"),
            ("POST", "/grants", json!({"feature_id": "ai_runs"}), 422, "missing_field: units"),
            ("POST", "/grants", json!({"feature_id": "ai_runs", "units": 0}), 422, "invalid_value: units"),
            ("POST", "/grants", json!({"feature_id": "imports", "units": 9}), 404, "unknown_feature: feature_id"),
            ("POST", "/grants", json!({"feature_id": "ai_runs", "units": 9, "draw": "first"}), 422, "invalid_value: draw"),
            ("POST", "/grants", json!({"feature_id": "ai_runs", "units": 9, "expires_at": "2026-10-01T00:00:00Z"}), 422, "invalid_value: expires_at"),
            ("POST", "/grants", json!({"feature_id": "ai_runs", "units": 9, "idempotency_key": ""}), 422, "invalid_value: idempotency_key"),
            ("DELETE", "/grants/grt_1", Value::Null, 404, "unknown_grant: grant_id"),
            ("DELETE", "/grants/%00", Value::Null, 404, "unknown_grant: grant_id"),
            ("PUT", "/terms", json!({}), 422, "missing_field: version"),
            ("PUT", "/terms", json!({"version": 0}), 422, "invalid_value: version"),
        ] {
            let refused = support(&world, method, path, body.clone()).await;
            assert_eq!((refused.status, refused.error().as_str()), (status, error), "{method} {path} {body}");
        }
        assert_eq!(audited(&world).await, Vec::<String>::new());
        assert_eq!(quotas(&world).await, json!({"customer_id": "acme", "plan_id": "starter",
            "terms_version": null, "overrides": [], "grants": []}));
    }

    async fn a_stranger_has_no_quotas_and_the_product_cannot_set_any(db: TestDb) {
        let world = World::start(&db).await;
        let grant = json!({"feature_id": "ai_runs", "units": 9, "idempotency_key": "a"});
        for (method, path, body) in [
            ("GET", "/quotas", Value::Null),
            ("PUT", "/overrides/ai_runs", json!({"granted": 9})),
            ("DELETE", "/overrides/ai_runs", Value::Null),
            ("POST", "/grants", grant),
            ("DELETE", "/grants/grt_1", Value::Null),
            ("PUT", "/terms", json!({"version": null})),
        ] {
            let unknown = support(&world, method, path, body.clone()).await;
            assert_eq!((unknown.status, unknown.error().as_str()), (404, "unknown_customer: customer_id"), "{method} {path}");
            let path = format!("/admin/api/v1/customers/acme{path}");
            assert_eq!(world.call_as(API_KEY, method, &path, &body).await.status, 403, "{path}");
            assert_eq!(world.call_as("nobody", method, &path, &body).await.status, 401, "{path}");
        }
    }
}
