//! The OpenAPI document says what the daemon does: every route, and nothing else.

use serde_json::{Value, json};

use tollgate::clock::Clock;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Api, Machine};
use crate::harness::schemathesis::{self, There};
use crate::harness::stripe::{monthly, simulator};
use crate::harness::world::{ADMIN_TOKEN, API_KEY, STRIPE_KEY, WEBHOOK_SECRET, World, reply};

const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];

async fn document(world: &World) -> Value {
    reply(world.http.get(world.url("/openapi.json")).send().await.unwrap()).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_documented_route_is_there_and_takes_no_method_that_is_not() {
    let world = World::start(&TestDb::sqlite()).await;
    let document = document(&world).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let key = if path.starts_with("/admin") { ADMIN_TOKEN } else { API_KEY };
        let url = path.replace("{id}", "acme").replace("{feature_id}", "ai_runs");
        for method in METHODS {
            let documented = !item[method.to_lowercase()].is_null();
            let got =
                world.call_as(key, method, &url.replace("{grant_id}", "x"), &Value::Null).await;
            let here = got.error() != "not_found" && got.status != 405;
            assert_eq!(here, documented, "{method} {path}: {} {}", got.status, got.body);
        }
    }
}

/// A route that is not made from a documented handler would be in the router alone.
#[test]
fn routes_come_by_their_documents_only() {
    let router = include_str!("../../src/http/mod.rs");
    for by_hand in [".route(", ".route_service(", ".nest"] {
        assert!(!router.contains(by_hand), "{by_hand}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_credential_says_which() {
    let world = World::start(&TestDb::sqlite()).await;
    let document = document(&world).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let wanted = match path.split('/').nth(1) {
            Some("v1") => json!([{"api_key": []}]),
            Some("admin") => json!([{"admin_token": []}]),
            _ => Value::Null,
        };
        for (method, operation) in item.as_object().unwrap() {
            assert_eq!(operation["security"], wanted, "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_names_every_operation_and_needs_nothing_from_elsewhere() {
    let world = World::start(&TestDb::sqlite()).await;
    let response = world.http.get(world.url("/docs")).send().await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let page = response.text().await.unwrap();
    for item in document(&world).await["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(page.contains(&format!("<article id=\"{id}\">")), "{id}");
        }
    }
    for link in page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(page.contains(&format!("id=\"{link}\"")), "{link} leads nowhere");
    }
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("src="));
}

/// Customers, runs in flight, and a link that a customer was given.
async fn something_to_meet(api: &Api) -> There {
    let customers = ["acme", "beta", "gamma"];
    let (mut reservations, mut tokens) = (Vec::new(), Vec::new());
    for customer in customers {
        api.ok("PUT", &format!("/v1/customers/{customer}"), &json!({})).await;
        let hold = json!({"customer_id": customer, "feature_id": "ai_runs", "reserve": {}});
        for _ in 0..30 {
            let held = api.ok("POST", "/v1/check", &hold).await;
            reservations.push(held["reservation"]["id"].as_str().unwrap().to_owned());
            let url = held["upgrade"]["url"].as_str().unwrap();
            tokens.push(url.split_once("token=").unwrap().1.to_owned());
        }
    }
    There {
        customers: customers.join(" "),
        reservations: reservations.join(" "),
        tokens: tokens.join(" "),
    }
}

both_databases! {
    async fn whatever_the_document_allows_or_forbids_is_answered_as_it_says(db: TestDb) {
        let stripe = simulator(Clock::system(), STRIPE_KEY).await;
        let prices = ["pro_monthly", "team_monthly"].map(|lookup_key| monthly(lookup_key, 9900));
        stripe.seed_catalog(&prices, &[]).unwrap();
        let mut machine = Machine::on(&db);
        machine.set("STRIPE_API_BASE", &stripe.base_url());
        machine.set("STRIPE_SECRET_KEY", STRIPE_KEY);
        machine.set("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
        let daemon = machine.serve().await;
        let there = something_to_meet(&daemon.api).await;
        if let Err(said) = schemathesis::judge(&daemon.api.url(""), &there).await {
            panic!("{said}");
        }
        daemon.stop().await;
    }
}
