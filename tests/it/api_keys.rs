//! Who is let in: keys made, revoked, kept as hashes only, and held to a rate.

use std::time::Duration;

use reqwest::header;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::http::auth::hash;

use crate::harness::process::Machine;
use crate::harness::sql::rows;
use crate::harness::world::{ADMIN_TOKEN, API_KEY, STRIPE_KEY, WEBHOOK_SECRET, World};

/// Stores a key as `tollgate keys create` does; answers its id.
async fn make_key(world: &World, key: &str) -> String {
    let app = world.app();
    let mut tx = app.store.begin().await.unwrap();
    let key_id = app.entropy.id("key", tx.now);
    tx.insert_key(&key_id, "a test's", &hash(key)).await.unwrap();
    tx.commit().await.unwrap();
    key_id
}

async fn revoke(world: &World, key_id: &str) {
    let mut tx = world.app().store.begin().await.unwrap();
    assert!(tx.revoke_key(key_id).await.unwrap());
    tx.commit().await.unwrap();
}

/// The status of a run counted with this key.
async fn run_with(world: &World, key: &str) -> u16 {
    let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "send_event": true});
    world.call_as(key, "POST", "/v1/check", &body).await.status
}

/// Moves the clock and lets no job run.
fn wait(world: &World, duration: Duration) {
    world.clock.advance(duration).expect("a manual clock");
}

both_databases! {
    async fn the_environments_key_and_every_made_one_open_the_gate(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        assert_eq!(run_with(&world, "second-key").await, 401);
        make_key(&world, "second-key").await;
        for key in [API_KEY, "second-key", API_KEY] {
            assert_eq!(run_with(&world, key).await, 200);
        }
        assert_eq!(world.usage("acme").await, 3);
        let admin = world.call_as("second-key", "GET", "/admin/api/v1/audit", &Value::Null).await;
        assert_eq!((admin.status, admin.error().as_str()), (403, "forbidden"));
    }

    async fn a_revoked_key_is_worthless_within_five_seconds(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let [used, unused] = [make_key(&world, "used").await, make_key(&world, "unused").await];
        make_key(&world, "other").await;
        assert_eq!(run_with(&world, "used").await, 200);
        // Using a key does not lengthen the time for which its goodness is taken for granted.
        wait(&world, Duration::from_secs(4));
        assert_eq!(run_with(&world, "used").await, 200);
        revoke(&world, &used).await;
        revoke(&world, &unused).await;
        assert_eq!(run_with(&world, "unused").await, 401);
        wait(&world, Duration::from_secs(1));
        for _ in 0..3 {
            assert_eq!(run_with(&world, "used").await, 401);
        }
        assert_eq!(run_with(&world, "other").await, 200);
        assert_eq!(world.usage("acme").await, 3);
        wait(&world, Duration::from_secs(3600));
        assert_eq!((run_with(&world, "used").await, run_with(&world, API_KEY).await), (401, 200));
    }

    async fn a_key_that_was_good_stays_so_while_keys_cannot_be_looked_up(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let used = make_key(&world, "used").await;
        make_key(&world, "stranger").await;
        assert_eq!(run_with(&world, "used").await, 200);
        rows(&db.url, "ALTER TABLE api_keys RENAME TO away").await;
        wait(&world, Duration::from_secs(3600));
        assert_eq!((run_with(&world, "used").await, run_with(&world, "stranger").await), (200, 503));
        rows(&db.url, "ALTER TABLE away RENAME TO api_keys").await;
        revoke(&world, &used).await;
        wait(&world, Duration::from_secs(5));
        assert_eq!((run_with(&world, "used").await, run_with(&world, "stranger").await), (401, 200));
    }

    async fn no_key_and_no_secret_is_kept_but_as_a_hash(db: TestDb) {
        let world = World::start(&db).await;
        let mut machine = Machine::bare();
        machine.set("DATABASE_URL", &db.url);
        let created = machine.run(&["keys", "create", "--json"]).await.stdout;
        let created: Value = serde_json::from_str(&created).expect("JSON");
        let key = created["key"].as_str().expect("a key").to_owned();
        world.customer("acme").await;
        assert_eq!(run_with(&world, &key).await, 200);
        assert_eq!(rows(&db.url, "SELECT hash FROM api_keys").await, [hash(&key)]);

        let tables = if db.is_postgres() {
            "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'"
        } else {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> '_sqlx_migrations'"
        };
        let tables = rows(&db.url, tables).await;
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
        assert!(tables.contains(&"api_keys") && tables.contains(&"settings"), "{tables:?}");
        let stored = world.rows(&tables).await;
        for secret in [key.as_str(), &key[4..], API_KEY, ADMIN_TOKEN, STRIPE_KEY, WEBHOOK_SECRET] {
            assert!(stored.iter().all(|row| !row.contains(secret)), "a secret is in the database");
        }
    }

    async fn a_key_above_its_rate_is_told_to_wait_and_counts_nothing(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        make_key(&world, "other").await;
        world.restart_with(&[("TOLLGATE_RATE_LIMIT", "1")]).await;
        let ask = json!({"customer_id": "acme", "feature_id": "ai_runs", "send_event": true}).to_string();
        let mut callers = JoinSet::new();
        for _ in 0..50 {
            let request = world.http.post(world.url("/v1/check")).bearer_auth(API_KEY);
            callers.spawn(request.body(ask.clone()).send());
        }
        let (mut allowed, mut refused) = (0, 0);
        for response in callers.join_all().await {
            let response = response.expect("the daemon answers");
            if response.status() == 200 {
                allowed += 1;
                continue;
            }
            assert_eq!((response.status().as_u16(), &response.headers()[header::RETRY_AFTER]), (429, &"1".parse().unwrap()));
            assert!(response.text().await.unwrap().contains("\"code\":\"rate_limited\""));
            refused += 1;
        }
        // How many seconds fifty calls take is the machine's business; not fifty.
        assert!(allowed >= 1 && refused >= 1, "{allowed} allowed, {refused} refused");
        // Another key has a rate of its own.
        assert_eq!(run_with(&world, "other").await, 200);
        let usage = rows(&db.url, "SELECT usage_units FROM usage_counters").await;
        assert_eq!(usage, [(allowed + 1).to_string()]);
    }

    async fn without_a_rate_limit_nobody_is_held_up(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            let body = r#"{"customer_id": "acme", "feature_id": "ai_runs", "send_event": true}"#;
            callers.spawn(world.http.post(world.url("/v1/check")).bearer_auth(API_KEY).body(body).send());
        }
        assert!(callers.join_all().await.into_iter().all(|response| response.unwrap().status() == 200));
        assert_eq!(world.usage("acme").await, 100);
    }
}
