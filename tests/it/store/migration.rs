//! A database as the first schema left it, with rows in it, under this build.

use std::borrow::Cow;

use serde_json::Value;
use sqlx::any::install_default_drivers;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AnyPool, AssertSqlSafe, SqlSafeStr as _};

use super::*;
use crate::harness::sql::assert_books_balance;
use crate::harness::world::World;

const FIRST: &str = include_str!("../../../migrations/0001_start.sql");
/// The tables of the first schema, all of whose rows must be there afterwards.
const TABLES: [&str; 12] = [
    "plan_versions",
    "settings",
    "customers",
    "usage_counters",
    "usage_events",
    "notices",
    "stripe_events",
    "meter_events",
    "api_keys",
    "leases",
    "audit",
    "_sqlx_migrations",
];

/// A customer of Starter at its 200: 199 of them in one run of a seat's, the last under a key; and
/// what it was answered under three keys more. Written down as the first build wrote it.
fn rows_of_version_1() -> Vec<String> {
    let (now, period) = (now().ms(), november());
    let (start, end) = (period.start.ms(), period.end.ms());
    let window_end = now + 300_000;
    let plans = include_str!("../../../plans.example.toml").replace('\'', "''");
    let event = |key: &str, id: &str, hash: &str, rest: &str| {
        format!(
            "INSERT INTO usage_events (customer_id, request_key, event_id, request_hash, plan_id, \
             plan_version, reserved_after, series, period_start_ms, period_end_ms, recorded_at_ms, \
             feature_id, intent, entity_id, asked_units, counted_units, reason, usage_after, properties) \
             VALUES ('acme', '{key}', {id}, {hash}, 'starter', 1, 0, 0, {start}, {end}, {now}, 'ai_runs', {rest})"
        )
    };
    let notice = |id: &str, kind: &str, percent: i64, usage: i64| {
        format!(
            "INSERT INTO notices VALUES ('{id}', 'acme', 'ai_runs', 0, {start}, {end}, '{kind}', {percent}, 3, \
             'due', {usage}, 'starter', NULL, 1, {now}, {now}, {now}, 0, NULL)"
        )
    };
    vec![
        format!("INSERT INTO plan_versions VALUES (1, '{plans}', {now})"),
        "INSERT INTO settings VALUES ('signing_key', 'of the first start')".to_owned(),
        format!(
            "INSERT INTO customers VALUES ('acme', 'jo@example.com', 'Jo', 'cus_1', {now}, NULL, NULL, NULL, \
             NULL, 'good', NULL, 0, {start}, 'month', NULL, NULL, 3, 5)"
        ),
        format!(
            "INSERT INTO usage_counters VALUES ('acme', 'ai_runs', 0, {start}, {end}, 200, 0, {now}, \
             {window_end}, 3, 'ai_runs', {now})"
        ),
        event(
            "evt_own",
            "NULL",
            "NULL",
            "'record', 'jo', 199, 199, 'within_limit', 199, '{\"model\":\"x\"}'",
        ),
        event(
            "k:run-200",
            "'evt_200'",
            "'086de8292f7afd63d63a803c1fc5fd68'",
            "'consume', NULL, 1, 1, 'within_limit', 200, NULL",
        ),
        event(
            "k:too-late",
            "NULL",
            "'f0c2ec4a187427ef42ba88c275fa53f8'",
            "'consume', NULL, 1, 0, 'limit_reached', 200, NULL",
        ),
        event(
            "k:done",
            "NULL",
            "'28519508be12bbe24e51e194550bc5f9'",
            "'record_capped', NULL, 9, 0, 'limit_reached', 200, NULL",
        ),
        event(
            "k:question",
            "NULL",
            "'2d7b756e02d16488a43c78ff92bb1d8f'",
            "'check', NULL, 1, 0, 'limit_reached', 200, NULL",
        ),
        notice("ntc_1", "usage_nudge", 80, 199),
        notice("ntc_2", "cap_reached", 100, 200),
        format!("INSERT INTO audit VALUES ('aud_1', {now}, 'admin', 'sync', 'acme', '{{}}')"),
    ]
}

/// Webhooks that the first build parked: two for want of a customer, one for another reason.
fn parked_by_version_1() -> Vec<String> {
    let now = now().ms();
    let parked = |(id, detail): (&str, &str)| {
        format!(
            "INSERT INTO stripe_events VALUES ('{id}', 'invoice.paid', 'cus_9', NULL, '{{}}', 'parked', 1, \
             {now}, {now}, {now}, '{detail}')"
        )
    };
    let events = [
        ("evt_stranger", "no customer is tied to its Stripe customer"),
        ("evt_named", "it cannot be tied to customer beta: there is no such customer"),
        ("evt_odd", "subscription sub_1 has no price whose lookup key is in the plans file"),
    ];
    events.into_iter().map(parked).collect()
}

/// Leaves the database as the first build would.
async fn version_1(db: &TestDb) {
    install_default_drivers();
    let mode = if db.is_postgres() { "" } else { "?mode=rwc" };
    let pool = AnyPool::connect(&format!("{}{mode}", db.url)).await.unwrap();
    let kind = MigrationType::Simple;
    let first = Migration::new(1, Cow::Borrowed("start"), kind, FIRST.into_sql_str(), false);
    Migrator::with_migrations(vec![first]).run(&pool).await.unwrap();
    for statement in rows_of_version_1().into_iter().chain(parked_by_version_1()) {
        sqlx::query(AssertSqlSafe(statement)).execute(&pool).await.unwrap();
    }
    pool.close().await;
}

async fn counts(db: &TestDb) -> Vec<String> {
    let mut counts = Vec::new();
    for table in TABLES {
        let count = rows(&db.url, &format!("SELECT COUNT(*) FROM {table}")).await.concat();
        counts.push(format!("{table} {count}"));
    }
    counts
}

/// The first build's answer at the cap, with these fields as they differ from call to call.
fn answered(fields: Value) -> Value {
    let mut answer = json!({
        "allowed": false, "reason": "limit_reached",
        "customer_id": "acme", "feature_id": "ai_runs", "plan_id": "starter", "required_balance": 1,
        "balance": {"granted": 200, "usage": 200, "reserved": 0, "remaining": 0, "unlimited": false,
            "overage_allowed": false, "soft_limit": null, "next_reset_at": "2026-12-01T00:00:00Z"},
        "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
        "threshold": {"state": "limit_reached", "percent": 100},
        "pace": {"elapsed_days": 1, "period_days": 30, "projected": 6000},
        "upgrade": {"plan_id": "pro", "name": "Pro", "price": "$99/month",
            "message": "You used 200 runs in the first day of this period. At that pace, you'd use \
                6,000 runs in a full one. Pro gives you unlimited runs at $99/month.",
            "url": null},
        "reservation": null, "event_id": null,
    });
    answer.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    answer
}

fn keyed(key: &str, fields: Value) -> Value {
    let mut body = json!({"customer_id": "acme", "feature_id": "ai_runs", "idempotency_key": key});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The texts whose order is not that of their bytes. A table that comes later and that nobody thought of
/// is among them.
fn in_another_order(db: &TestDb) -> &'static str {
    match db.is_postgres() {
        true => {
            "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT) FROM information_schema.columns \
             WHERE table_schema = current_schema() AND data_type = 'text' \
             AND collation_name IS DISTINCT FROM 'C' AND table_name <> '_sqlx_migrations'"
        }
        false => "SELECT name FROM sqlite_master WHERE sql LIKE '%COLLATE%'",
    }
}

both_databases! {
    async fn all_rows_of_the_first_schema_are_kept(db: TestDb) {
        version_1(&db).await;
        let before = counts(&db).await;
        let store = Store::open(&db.url.clone().into(), Clock::manual(now())).await.unwrap();
        assert!(!store.is_migrated().await.unwrap());
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
        assert_eq!(counts(&db).await[..11], before[..11]);
        let counter = "SELECT usage_units, reserved_units, from_grants_units, pruned_units, open_units, open_meter \
            FROM usage_counters";
        assert_eq!(rows(&db.url, counter).await, ["200|0|0|0|3|ai_runs"]);
        let events = "SELECT request_key, event_id, request_hash, outcome, entity_id, counted_units, properties \
            FROM usage_events ORDER BY request_key";
        assert_eq!(rows(&db.url, events).await, [
            "evt_own|NULL|NULL|tw--?-|jo|199|{\"model\":\"x\"}",
            "k:done|NULL|28519508be12bbe2|ml--?-|NULL|0|NULL",
            "k:question|NULL|2d7b756e02d16488|cl--?-|NULL|0|NULL",
            "k:run-200|evt_200|086de8292f7afd63|uw--?-|NULL|1|NULL",
            "k:too-late|NULL|f0c2ec4a187427ef|ul--?-|NULL|0|NULL",
        ]);
        let customer = store.customer(&acme()).await.unwrap().expect("it is there");
        let tier = &customer.tier;
        assert_eq!((tier.entitlement_version, tier.plan_since_version, customer.revision), (3, 3, 5));
        assert_eq!((customer.has_quotas, customer.terms_version), (false, None));
        let waiting = "SELECT event_id FROM stripe_events WHERE waits_for = 'customer' ORDER BY event_id";
        assert_eq!(rows(&db.url, waiting).await, ["evt_named", "evt_stranger"], "one needs a person");
    }

    async fn every_text_of_a_new_database_is_compared_byte_by_byte(db: TestDb) {
        open(&db).await;
        assert_eq!(rows(&db.url, in_another_order(&db)).await, [""; 0]);
        let names = "SELECT name FROM (SELECT name FROM settings UNION ALL SELECT 'a' AS name \
            UNION ALL SELECT 'B' AS name) AS s WHERE name IN ('a', 'B') ORDER BY name";
        assert_eq!(rows(&db.url, names).await, ["B", "a"]);
    }

    async fn a_database_in_use_keeps_its_order(db: TestDb) {
        version_1(&db).await;
        open(&db).await;
        let others = rows(&db.url, in_another_order(&db)).await;
        let key = others.iter().any(|text| text == "usage_events|request_key");
        assert_eq!(key, db.is_postgres(), "{others:?}");
    }

    async fn what_the_first_build_answered_is_answered_again_word_for_word(db: TestDb) {
        version_1(&db).await;
        let world = World::start(&db).await;
        for (path, body, fields) in [
            ("/v1/check", keyed("run-200", json!({"send_event": true})),
                json!({"allowed": true, "reason": "within_limit", "event_id": "evt_200"})),
            ("/v1/check", keyed("too-late", json!({"send_event": true})), json!({})),
            ("/v1/track", keyed("done", json!({"value": 9, "overage_behavior": "cap"})),
                json!({"required_balance": 9, "value": 0})),
            ("/v1/check", keyed("question", json!({})), json!({})),
        ] {
            let mut again = world.call("POST", path, &body).await.ok();
            let url = again["upgrade"]["url"].take();
            assert!(url.as_str().is_some_and(|url| url.starts_with("https://billing.example.com/upgrade?token=")));
            assert_eq!(again, answered(fields), "{body}");
            let mut other = body.clone();
            other["entity_id"] = json!("jo");
            assert_eq!(world.call("POST", path, &other).await.status, 409, "{body}");
        }
        assert_eq!(world.run("acme").await["reason"], "limit_reached");
        assert_books_balance(&db.url).await;
    }

    async fn what_was_due_is_sent_and_runs_go_on(db: TestDb) {
        version_1(&db).await;
        let world = World::start(&db).await;
        world.settle().await;
        assert_eq!(world.subjects(), ["You've used all of your AI runs this month."], "it overtook the nudge");
        let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "value": 5});
        assert_eq!(world.call("POST", "/v1/track", &body).await.ok()["balance"]["usage"], 205);
        world.advance(Duration::from_secs(300)).await;
        let sent = world.app().store.list_meter_events(Some("acme"), None, 9).await.unwrap();
        assert_eq!((sent.len(), sent[0].units, sent[0].stripe_customer_id.as_str()), (1, 8, "cus_1"));
        world.advance_to("2026-12-01T00:00:00Z").await;
        assert_eq!(world.runs("acme", 7).await["balance"]["usage"], 7);
        assert_books_balance(&db.url).await;
    }
}
