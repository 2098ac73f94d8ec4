//! The gate over HTTP: what it answers, what it counts, and what it never lets through.

mod batch;
mod credits;
mod denials;
mod foresight;
mod history;
mod keys;
mod load;
mod outage;
mod quotas;
mod races;
mod reservations;
mod soft;

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::domain::ids::CustomerId;

use crate::harness::postgres::TestDb;
use crate::harness::sql::{assert_books_balance, rows};
use crate::harness::world::{API_KEY, World};

const PLANS: &str = include_str!("../../plans.example.toml");
const TEAM_LIMIT: &str = "{ granted = 6000, enforcement = \"hard\", custom = true }";

/// The example's plans with one passage replaced.
fn plans(passage: &str, instead: &str) -> String {
    assert!(PLANS.contains(passage), "the example has no {passage}");
    PLANS.replacen(passage, instead, 1)
}

/// `/v1/check` with these fields beside customer and feature.
async fn ask(world: &World, customer: &str, fields: Value) -> Value {
    post(world, "/v1/check", customer, fields).await
}

/// `/v1/track` with these fields beside customer and feature.
async fn track(world: &World, customer: &str, fields: Value) -> Value {
    post(world, "/v1/track", customer, fields).await
}

async fn post(world: &World, path: &str, customer: &str, fields: Value) -> Value {
    world.call("POST", path, &body(customer, fields)).await.ok()
}

fn body(customer: &str, fields: Value) -> Value {
    let mut body = json!({"customer_id": customer, "feature_id": "ai_runs"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Asks and answers the status and the very bytes that came.
async fn bytes(world: &World, path: &str, body: &Value) -> (u16, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = world.http.post(world.url(path)).bearer_auth(API_KEY).body(body);
    let response = request.send().await.expect("the daemon answers");
    (response.status().as_u16(), response.text().await.expect("a whole body"))
}

/// The kinds of a customer's notices with their percents, by the time they were made and then by
/// percent: the clock of a story stands still between its lines.
async fn notices(world: &World, customer: &str) -> Vec<String> {
    let mut rows = world.list(&format!("/notices?customer_id={customer}")).await;
    rows.sort_by_key(|row| (row["created_at"].to_string(), row["percent"].as_i64()));
    let word = |row: &Value| format!("{} {}", row["kind"].as_str().unwrap(), row["percent"]);
    rows.iter().map(word).collect()
}

both_databases! {
    async fn at_the_cap_the_answer_has_all_that_the_gate_shows(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 200).await;
        world.advance_to("2026-11-18T15:00:00Z").await;
        let mut answer = world.check("acme").await;
        let url = answer["upgrade"]["url"].take();
        let url = url.as_str().expect("a link");
        assert!(url.starts_with("https://billing.example.com/upgrade?token="), "{url}");
        assert_eq!(answer, json!({
            "allowed": false, "reason": "limit_reached",
            "customer_id": "acme", "feature_id": "ai_runs", "plan_id": "starter", "required_balance": 1,
            "balance": {"granted": 200, "usage": 200, "reserved": 0, "remaining": 0, "unlimited": false,
                "overage_allowed": false, "soft_limit": null, "next_reset_at": "2026-12-01T00:00:00Z"},
            "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
            "threshold": {"state": "limit_reached", "percent": 100},
            "pace": {"elapsed_days": 18, "period_days": 30, "projected": 333},
            "upgrade": {"plan_id": "pro", "name": "Pro", "price": "$99/month",
                "message": "You used 200 runs in the first 18 days of this period. At that pace, you'd use \
                    333 runs in a full one. Pro gives you unlimited runs at $99/month.",
                "url": null},
            "reservation": null, "event_id": null,
        }));
        // The link is for people, and it works.
        let path = url.strip_prefix("https://billing.example.com").unwrap();
        let page = world.http.get(world.url(path)).send().await.unwrap();
        assert_eq!(page.status(), 200);
        assert!(page.text().await.unwrap().contains("Pro gives you unlimited runs"));
    }

    async fn a_question_counts_nothing_and_a_run_counts_what_it_takes(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        for _ in 0..3 {
            let asked = ask(&world, "acme", json!({"required_balance": 7})).await;
            assert_eq!((&asked["allowed"], &asked["balance"]["usage"]), (&json!(true), &json!(0)));
            assert_eq!((&asked["required_balance"], &asked["event_id"]), (&json!(7), &Value::Null));
        }
        assert_eq!(rows(&db.url, "SELECT * FROM usage_events").await, Vec::<String>::new());
        assert_eq!(rows(&db.url, "SELECT * FROM usage_counters").await, Vec::<String>::new());
        let run = ask(&world, "acme", json!({"required_balance": 7, "send_event": true})).await;
        assert_eq!((&run["balance"]["usage"], &run["balance"]["remaining"]), (&json!(7), &json!(193)));
        assert!(run["event_id"].as_str().is_some_and(|id| id.starts_with("evt_")), "{run}");
        assert_ne!(world.run("acme").await["event_id"], run["event_id"]);
        assert_eq!(world.usage("acme").await, 8);
        assert_books_balance(&db.url).await;
    }

    async fn a_run_that_does_not_fit_is_refused_whole(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 197).await;
        let big = ask(&world, "acme", json!({"required_balance": 4, "send_event": true})).await;
        assert_eq!((&big["allowed"], &big["reason"]), (&json!(false), &json!("limit_reached")));
        assert_eq!((&big["balance"]["usage"], &big["balance"]["remaining"]), (&json!(197), &json!(3)));
        assert_eq!(big["event_id"], Value::Null);
        assert_eq!(world.runs("acme", 3).await["threshold"]["state"], "limit_reached");
        assert_eq!(world.run("acme").await["allowed"], false);
        assert_eq!(world.usage("acme").await, 200);
    }

    async fn the_threshold_follows_usage_up_to_a_hard_limit(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        for (runs, state, percent) in
            [(158, "ok", 79), (1, "ok", 79), (1, "nudge", 80), (39, "nudge", 99), (1, "limit_reached", 100)]
        {
            let answer = world.runs("acme", runs).await;
            assert_eq!(answer["threshold"], json!({"state": state, "percent": percent}));
            assert_eq!(world.check("acme").await["threshold"], answer["threshold"]);
        }
    }

    async fn a_soft_limit_counts_on_and_says_so(db: TestDb) {
        let world = World::with_plans(&db, &plans("default_plan = \"starter\"", "default_plan = \"pro\"")).await;
        world.customer("acme").await;
        let full = world.runs("acme", 2000).await;
        assert_eq!((&full["reason"], &full["threshold"]["state"]), (&json!("within_limit"), &json!("nudge")));
        let over = world.runs("acme", 5).await;
        assert_eq!((&over["allowed"], &over["reason"]), (&json!(true), &json!("over_soft_limit")));
        assert_eq!(over["threshold"], json!({"state": "over_soft_limit", "percent": 100}));
        assert_eq!(over["balance"], json!({
            "granted": 2000, "usage": 2005, "reserved": 0, "remaining": 0, "unlimited": false,
            "overage_allowed": true, "soft_limit": 2000, "next_reset_at": "2026-12-01T00:00:00Z",
        }));
        assert_eq!(over["upgrade"]["plan_id"], "team");
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80"], "a soft limit has no cap to tell of");
    }

    async fn an_unlimited_plan_has_no_number(db: TestDb) {
        let unlimited = plans(TEAM_LIMIT, "{ enforcement = \"unlimited\" }")
            .replace("default_plan = \"starter\"", "default_plan = \"team\"");
        let world = World::with_plans(&db, &unlimited).await;
        world.customer("acme").await;
        let answer = world.runs("acme", 1_000_000_000).await;
        assert_eq!((&answer["reason"], &answer["upgrade"]), (&json!("unlimited"), &Value::Null));
        assert_eq!(answer["threshold"], json!({"state": "ok", "percent": null}));
        assert_eq!(answer["balance"], json!({
            "granted": null, "usage": 1_000_000_000, "reserved": 0, "remaining": null, "unlimited": true,
            "overage_allowed": false, "soft_limit": null, "next_reset_at": "2026-12-01T00:00:00Z",
        }));
        assert_eq!(world.runs("acme", 1_000_000_000).await["balance"]["usage"], 2_000_000_000);
        assert_eq!(notices(&world, "acme").await, Vec::<String>::new());
    }

    async fn track_counts_what_has_happened_and_with_cap_only_what_remains(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let one = track(&world, "acme", json!({})).await;
        assert_eq!((&one["value"], &one["allowed"], &one["balance"]["usage"]), (&json!(1), &json!(true), &json!(1)));
        world.runs("acme", 196).await;
        let capped = json!({"value": 5, "overage_behavior": "cap"});
        let part = track(&world, "acme", capped.clone()).await;
        assert_eq!((&part["value"], &part["balance"]["usage"]), (&json!(3), &json!(200)));
        let none = track(&world, "acme", capped).await;
        assert_eq!((&none["value"], &none["event_id"]), (&json!(0), &Value::Null));
        let past = track(&world, "acme", json!({"value": 5})).await;
        assert_eq!((&past["value"], &past["balance"]["usage"]), (&json!(5), &json!(205)));
        assert_eq!((&past["balance"]["granted"], &past["balance"]["remaining"]), (&json!(200), &json!(0)));
        assert_eq!(past["threshold"], json!({"state": "limit_reached", "percent": 102}));
        let allowed = track(&world, "acme", json!({"value": 5, "overage_behavior": "allow"})).await;
        assert_eq!((&allowed["value"], &allowed["balance"]["usage"]), (&json!(5), &json!(210)));
        assert_books_balance(&db.url).await;
    }

    async fn each_threshold_is_noticed_once_with_the_run_that_crossed_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 159).await;
        assert_eq!(notices(&world, "acme").await, Vec::<String>::new());
        // Nothing is settled in between: the notice is there with the answer.
        world.run("acme").await;
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80"]);
        world.runs("acme", 39).await;
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80"]);
        world.run("acme").await;
        world.run("acme").await;
        track(&world, "acme", json!({"value": 100})).await;
        assert_eq!(notices(&world, "acme").await, ["usage_nudge 80", "cap_reached 100"]);
        let rows = world.list("/notices?customer_id=acme&state=due").await;
        let mut usage: Vec<_> = rows.iter().map(|row| row["usage_units"].as_i64().unwrap()).collect();
        usage.sort_unstable();
        assert_eq!(usage, [160, 200], "as it was at the crossing");
    }

    async fn a_run_from_below_the_nudge_to_the_cap_tells_of_the_cap_only(db: TestDb) {
        let world = World::start(&db).await;
        for (customer, path) in [("acme", "/v1/check"), ("beta", "/v1/track")] {
            world.customer(customer).await;
            world.runs(customer, 158).await;
            let rest = match path {
                "/v1/check" => json!({"required_balance": 42, "send_event": true}),
                _ => json!({"value": 60}),
            };
            post(&world, path, customer, rest).await;
            assert_eq!(notices(&world, customer).await, ["cap_reached 100"], "{path}");
        }
    }

    async fn a_new_month_starts_at_its_instant_and_the_old_one_stays_in_the_books(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 200).await;
        world.advance_to("2026-11-30T23:59:59.999Z").await;
        let last = world.run("acme").await;
        assert_eq!((&last["allowed"], &last["period"]["end"]), (&json!(false), &json!("2026-12-01T00:00:00Z")));
        world.advance(Duration::from_millis(1)).await;
        let first = world.runs("acme", 170).await;
        assert_eq!(first["balance"]["usage"], 170);
        assert_eq!(first["period"], json!({"start": "2026-12-01T00:00:00Z", "end": "2027-01-01T00:00:00Z"}));
        assert_eq!(
            rows(&db.url, "SELECT usage_units FROM usage_counters ORDER BY period_start_ms").await,
            ["200", "170"]
        );
        assert_eq!(
            notices(&world, "acme").await,
            ["cap_reached 100", "usage_nudge 80"],
            "each period has its own"
        );
        assert_books_balance(&db.url).await;
    }

    async fn a_customer_of_the_31st_keeps_its_day_through_short_months(db: TestDb) {
        let world = World::start(&db).await;
        world.advance_to("2027-01-31T13:00:00Z").await;
        world.customer("acme").await;
        let end = async || world.check("acme").await["period"]["end"].clone();
        assert_eq!(end().await, "2027-02-28T00:00:00Z");
        world.advance_to("2027-02-28T00:00:00Z").await;
        assert_eq!(end().await, "2027-03-31T00:00:00Z");
    }

    async fn a_first_subscription_starts_at_zero_and_an_upgrade_keeps_the_counter(db: TestDb) {
        let world = World::start(&db).await;
        let stripe_id = world.link("acme").await;
        world.runs("acme", 200).await;
        world.advance_to("2026-11-10T09:30:00Z").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        let fresh = world.check("acme").await;
        assert_eq!((&fresh["allowed"], &fresh["balance"]["usage"]), (&json!(true), &json!(0)));
        assert_eq!(fresh["period"], json!({"start": "2026-11-10T09:30:00Z", "end": "2026-12-10T09:30:00Z"}));
        world.runs("acme", 200).await;
        world.change_price(&subscription, "pro_monthly").await;
        let open = world.run("acme").await;
        assert_eq!((&open["allowed"], &open["balance"]["usage"]), (&json!(true), &json!(201)));
        assert_eq!(open["plan_id"], "pro");
        assert_books_balance(&db.url).await;
    }

    async fn customer_data_makes_a_customer_and_changes_none(db: TestDb) {
        let world = World::start(&db).await;
        let someone = json!({"customer_data": {"email": "jo@example.com", "name": "Jo\u{7} Bloggs"}});
        let unknown = world.call("POST", "/v1/check", &body("acme", json!({}))).await;
        assert_eq!((unknown.status, unknown.error().as_str()), (404, "unknown_customer: customer_id"));
        // A read-only question makes it too, and counts nothing.
        assert_eq!(ask(&world, "acme", someone).await["balance"]["usage"], 0);
        let made = world.call("GET", "/v1/customers/acme", &Value::Null).await.ok();
        assert_eq!((&made["email"], &made["name"]), (&json!("jo@example.com"), &json!("Jo Bloggs")));
        assert_eq!(made["plan_id"], "starter");
        let other = json!({"customer_data": {"email": "eve@example.com"}, "send_event": true});
        assert_eq!(ask(&world, "acme", other).await["balance"]["usage"], 1);
        let same = world.call("GET", "/v1/customers/acme", &Value::Null).await.ok();
        assert_eq!(same["email"], "jo@example.com");
        assert_eq!(track(&world, "beta", json!({"customer_data": {}, "value": 3})).await["value"], 3);
    }

    async fn customers_are_put_got_and_deleted(db: TestDb) {
        let world = World::start(&db).await;
        let made = world.customer("acme").await;
        assert_eq!(made["created_at"], "2026-11-01T09:00:00Z");
        assert_eq!(made["period"], json!({"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"}));
        assert_eq!((&made["subscription"], &made["stripe_customer_id"]), (&Value::Null, &Value::Null));
        assert_eq!(world.customer("acme").await, made, "putting the same again changes nothing");
        world.runs("acme", 5).await;
        // A put changes what it names and leaves the rest.
        let renamed = world.call("PUT", "/v1/customers/acme", &json!({"name": "Acme GmbH"})).await.ok();
        assert_eq!((&renamed["name"], &renamed["email"]), (&json!("Acme GmbH"), &json!("acme@example.com")));
        assert_eq!(renamed["features"][0]["balance"]["usage"], 5);
        assert_eq!(world.call("GET", "/v1/customers/acme", &Value::Null).await.ok(), renamed);

        assert_eq!(world.call("DELETE", "/v1/customers/acme", &Value::Null).await.status, 204);
        for (method, path, sent) in [
            ("GET", "/v1/customers/acme", Value::Null),
            ("DELETE", "/v1/customers/acme", Value::Null),
            ("POST", "/v1/check", body("acme", json!({"send_event": true}))),
        ] {
            let gone = world.call(method, path, &sent).await;
            assert_eq!((gone.status, gone.error().as_str()), (404, "unknown_customer: customer_id"), "{method}");
        }
        let kept = rows(&db.url, "SELECT email, name, stripe_customer_id FROM customers").await;
        assert_eq!(kept, ["NULL|NULL|NULL"], "nothing personal is left");
        assert_books_balance(&db.url).await;
        // Its usage does not vanish by deleting the customer and making it again.
        world.customer("acme").await;
        assert_eq!(world.usage("acme").await, 5);
    }

    async fn an_id_may_have_any_printable_character(db: TestDb) {
        let world = World::start(&db).await;
        let id = "Acme & Söhne/42 ?#%\"'\\".replace("ö", "oe");
        assert!(id.parse::<CustomerId>().is_ok());
        let path = "/v1/customers/Acme%20%26%20Soehne%2F42%20%3F%23%25%22%27%5C";
        assert_eq!(world.call("PUT", path, &json!({})).await.ok()["customer_id"], id);
        assert_eq!(world.runs(&id, 3).await["customer_id"], id);
        let got = world.call("GET", path, &Value::Null).await.ok();
        assert_eq!(got["features"][0]["balance"]["usage"], 3);
    }
}
