//! Webhooks: what is sent, how it is signed, and what happens when nobody takes it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::*;

const SECRET: &str = "whsec_test";

async fn desk_with_endpoint() -> (Desk, Endpoint) {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_webhook_endpoint(&endpoint.url, SECRET);
    (desk, endpoint)
}

/// Checks a header as Stripe's own libraries do, and answers its second.
fn verify(secret: &str, received: &Received) -> i64 {
    let (at_s, v1) = received.signature.split_once(",v1=").unwrap();
    let at_s = at_s.strip_prefix("t=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at_s}.{}", received.body).as_bytes());
    mac.verify_slice(&hex::decode(v1).unwrap()).unwrap();
    at_s.parse().unwrap()
}

#[tokio::test]
async fn an_event_is_sent_signed_as_it_is_stored() {
    let (desk, endpoint) = desk_with_endpoint().await;
    let form = [("email", "ada@example.com")];
    let made = desk.post_with_key("k1", "/v1/customers", &form).await;
    desk.sim.deliver_pending().await;
    let received = endpoint.take();
    assert_eq!(received.len(), 1);
    assert_eq!(verify(SECRET, &received[0]), seconds(START));
    let event = received[0].json();
    assert_eq!(event["type"], "customer.created");
    assert_eq!(event["api_version"], "2026-09-30.endive");
    assert_eq!(event["data"]["object"], made.json);
    assert_eq!(event["request"]["idempotency_key"], "k1");
    assert_eq!(event["request"]["id"], made.header("request-id").unwrap());
    assert_eq!(event["pending_webhooks"], 1);
    let stored = desk.get(&format!("/v1/events/{}", id(&event)), &[]).await.json;
    assert_eq!(stored["pending_webhooks"], 0);
    assert_eq!(stored["data"], event["data"]);
}

#[tokio::test]
async fn the_background_task_delivers_without_being_asked() {
    let (desk, endpoint) = desk_with_endpoint().await;
    desk.subscribe("starter_monthly", &[]).await;
    desk.sim.deliver_pending().await;
    endpoint.take();
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    // Nobody calls the simulator: its own task sees the clock move.
    while endpoint.received.lock().unwrap().len() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        endpoint.take_kinds(),
        [
            "invoice.created",
            "customer.subscription.updated",
            "invoice.finalized",
            "invoice.paid",
            "invoice.payment_succeeded",
        ]
    );
}

#[tokio::test]
async fn a_body_stays_as_it_was_when_the_event_happened() {
    let (desk, endpoint) = desk_with_endpoint().await;
    endpoint.answer(500);
    let customer = desk.customer().await;
    desk.sim.deliver_pending().await;
    desk.make(&format!("/v1/customers/{customer}"), &[("name", "Ada")]).await;
    endpoint.answer(204);
    desk.clock.advance(Duration::from_secs(300));
    desk.sim.deliver_pending().await;
    let created: Vec<Received> = endpoint
        .take()
        .into_iter()
        .filter(|received| received.kind() == "customer.created")
        .collect();
    assert_eq!(created.len(), 2);
    assert_eq!(created[0].body, created[1].body);
    assert!(created[1].json()["data"]["object"]["name"].is_null());
    // Each attempt is signed anew.
    assert_eq!(verify(SECRET, &created[0]), seconds(START));
    assert_eq!(verify(SECRET, &created[1]), seconds(START) + 300);
}

#[tokio::test]
async fn a_refused_webhook_is_tried_for_three_days_and_then_given_up() {
    let (desk, endpoint) = desk_with_endpoint().await;
    // A redirect is not followed, and is no success.
    endpoint.answer(302);
    desk.customer().await;
    let mut attempts = 0;
    for _ in 0..5 * 24 * 12 {
        desk.sim.deliver_pending().await;
        attempts += endpoint.take().len();
        desk.clock.advance(Duration::from_secs(300));
    }
    // At 0, 5, 15, 35, 75, 155, 315, 635 and 1275 minutes, then every twelve hours.
    assert_eq!(attempts, 13);
    let failed = desk.get("/v1/events", &[("delivery_success", "false")]).await.json;
    assert_eq!(failed["data"][0]["type"], "customer.created");
    assert_eq!(failed["data"].as_array().unwrap().len(), 1);
    let delivered = desk.get("/v1/events", &[("delivery_success", "true"), ("type", "customer.*")]);
    assert_eq!(delivered.await.json["data"], serde_json::json!([]));
}

#[tokio::test]
async fn an_endpoint_made_by_api_gets_only_what_it_asked_for() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    let form = [
        ("url", endpoint.url.as_str()),
        ("enabled_events[]", "customer.updated"),
        ("enabled_events[]", "invoice.paid"),
        ("api_version", "2026-09-30.endive"),
    ];
    let made = desk.make("/v1/webhook_endpoints", &form).await;
    let secret = made["secret"].as_str().unwrap().to_owned();
    let path = format!("/v1/webhook_endpoints/{}", id(&made));
    assert!(desk.get(&path, &[]).await.json.get("secret").is_none());
    let customer = desk.customer().await;
    desk.make(&format!("/v1/customers/{customer}"), &[("name", "Ada")]).await;
    desk.sim.deliver_pending().await;
    let received = endpoint.take();
    assert_eq!(received.len(), 1);
    verify(&secret, &received[0]);
    let previous = &received[0].json()["data"]["previous_attributes"];
    assert_eq!(*previous, serde_json::json!({ "name": null }));

    assert_eq!(desk.delete(&path).await.json["deleted"], true);
    desk.make(&format!("/v1/customers/{customer}"), &[("name", "Eve")]).await;
    desk.sim.deliver_pending().await;
    assert!(endpoint.take().is_empty());
    assert_eq!(desk.get("/v1/webhook_endpoints", &[]).await.json["data"], serde_json::json!([]));
    let old = [&form[..3], &[("api_version", "2024-06-20")]].concat();
    assert_eq!(desk.post("/v1/webhook_endpoints", &old).await.status, 400);
}

#[tokio::test]
async fn events_are_listed_newest_first_and_by_type() {
    let desk = desk().await;
    desk.subscribe("starter_monthly", &[]).await;
    let query = [("types[]", "invoice.paid"), ("types[]", "customer.created")];
    let list = desk.get("/v1/events", &query).await.json;
    let kinds: Vec<_> = list["data"].as_array().unwrap().iter().map(|e| &e["type"]).collect();
    assert_eq!(kinds, ["invoice.paid", "customer.created"]);
    assert_eq!(desk.get("/v1/events/evt_none", &[]).await.status, 404);
}

#[tokio::test]
async fn an_endpoint_that_refuses_a_draft_holds_its_closing_up_for_three_days_at_most() {
    let (desk, endpoint) = desk_with_endpoint().await;
    let subscription = id(&desk.subscribe("starter_monthly", &[]).await);
    desk.sim.deliver_pending().await;
    endpoint.answer(500);
    desk.clock.advance_to(at("2026-12-01T00:00:00Z"));
    desk.sim.deliver_pending().await;
    let renewed = desk.subscription(&subscription).await;
    let invoice = format!("/v1/invoices/{}", renewed["latest_invoice"].as_str().unwrap());
    desk.clock.advance_to(at("2026-12-03T23:59:59Z"));
    assert_eq!(desk.get(&invoice, &[]).await.json["status"], "draft");
    desk.clock.advance_to(at("2026-12-04T00:00:00Z"));
    assert_eq!(desk.get(&invoice, &[]).await.json["status"], "paid");
}
