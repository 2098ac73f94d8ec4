//! Thin events, reports of failed usage, and test clocks.

use super::*;

async fn report(desk: &Desk, event_name: &str, customer: &str, identifier: &str) {
    let form = [
        ("event_name", event_name),
        ("identifier", identifier),
        ("payload[stripe_customer_id]", customer),
        ("payload[value]", "1"),
    ];
    desk.make("/v1/billing/meter_events", &form).await;
}

#[tokio::test]
async fn what_was_accepted_and_failed_is_reported_seconds_later_by_a_thin_event() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_event_destination(
        &endpoint.url,
        "whsec_thin",
        &["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"],
    );
    report(&desk, "ai_runs", "cus_none", "w1").await;
    report(&desk, "ai_runs", "cus_none", "w2").await;
    report(&desk, "no_such", "cus_none", "w3").await;
    desk.sim.deliver_pending().await;
    assert!(endpoint.take().is_empty());
    desk.clock.advance(Duration::from_secs(10));
    desk.sim.deliver_pending().await;
    let mut kinds = Vec::new();
    for received in endpoint.take() {
        let thin = received.json();
        assert!(thin.get("data").is_none());
        kinds.push(received.kind());
        let whole = desk.get(&format!("/v2/core/events/{}", id(&thin)), &[]).await.json;
        let reason = &whole["data"]["reason"];
        if received.kind() == "v1.billing.meter.error_report_triggered" {
            assert_eq!(thin["related_object"]["type"], "billing.meter");
            assert_eq!(reason["error_count"], 2);
            let kind = &reason["error_types"][0];
            assert_eq!(kind["code"], "meter_event_customer_not_found");
            assert_eq!(kind["sample_errors"][0]["request"]["identifier"], "w1");
        } else {
            assert_eq!(reason["error_types"][0]["code"], "no_meter");
        }
    }
    kinds.sort();
    assert_eq!(
        kinds,
        ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"]
    );
    assert_eq!(desk.get("/v2/core/events/evt_none", &[]).await.status, 404);
}

#[tokio::test]
async fn a_snapshot_event_has_a_thin_twin_for_whom_it_interests() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_event_destination(&endpoint.url, "whsec_thin", &["*"]);
    let customer = desk.customer().await;
    desk.sim.deliver_pending().await;
    let thin = endpoint.take().remove(0).json();
    assert_eq!(
        (&thin["object"], &thin["type"]),
        (&"v2.core.event".into(), &"v1.customer.created".into())
    );
    assert_eq!(thin["related_object"]["url"], format!("/v1/customers/{customer}"));
    let snapshot = format!("/v1/events/{}", thin["snapshot_event"].as_str().unwrap());
    assert_eq!(desk.get(&snapshot, &[]).await.json["type"], "customer.created");
}

#[tokio::test]
async fn a_customer_on_a_test_clock_lives_by_it() {
    let desk = desk().await;
    let now = seconds(START);
    let form = [("frozen_time", &*now.to_string())];
    let clock = desk.make("/v1/test_helpers/test_clocks", &form).await;
    let path = format!("/v1/test_helpers/test_clocks/{}", id(&clock));
    let form = [("test_clock", &*id(&clock)), CARD[0], CARD[1]];
    let customer = id(&desk.make("/v1/customers", &form).await);
    let price = desk.price("starter_monthly").await;
    let form = [("customer", customer.as_str()), ("items[0][price]", &price)];
    let made = desk.make("/v1/subscriptions", &form).await;
    assert_eq!(made["test_clock"], clock["id"]);
    desk.clock.advance_to(at("2027-03-01T00:00:00Z"));
    assert_eq!(
        period(&desk.subscription(&id(&made)).await).0,
        "2026-11-01",
        "its time stands still"
    );

    let advance = format!("{path}/advance");
    let to = |text: &str| seconds(text).to_string();
    assert_eq!(
        desk.post(&advance, &[("frozen_time", &to("2026-10-01T00:00:00Z"))]).await.status,
        400
    );
    assert_eq!(
        desk.post(&advance, &[("frozen_time", &to("2027-01-02T00:00:00Z"))]).await.status,
        400
    );
    desk.sim.change_faults(|faults| faults.test_clock_lag_seconds = 5);
    let sent = desk.make(&advance, &[("frozen_time", &to("2026-12-02T00:00:00Z"))]).await;
    assert_eq!(sent["status"], "advancing");
    assert_eq!(
        desk.post(&advance, &[("frozen_time", &to("2026-12-03T00:00:00Z"))]).await.status,
        400
    );
    desk.clock.advance(Duration::from_secs(5));
    assert_eq!(desk.get(&path, &[]).await.json["status"], "ready");
    assert_eq!(desk.told(0).last().unwrap(), "test_helpers.test_clock.ready");
    let renewed = desk.subscription(&id(&made)).await;
    assert_eq!(period(&renewed), ("2026-12-01".into(), "2027-01-01".into()));
    let invoice = format!("/v1/invoices/{}", renewed["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["status"], "paid");

    assert_eq!(desk.get("/v1/customers", &[]).await.json["data"], serde_json::json!([]));
    let shown = desk.get("/v1/customers", &[("test_clock", &*id(&clock))]).await.json;
    assert_eq!(shown["data"].as_array().unwrap().len(), 1);
    assert_eq!(desk.delete(&path).await.json["deleted"], true);
    assert_eq!(desk.subscription(&id(&made)).await["status"], "canceled");
}

#[tokio::test]
async fn a_search_sees_what_was_written_only_after_a_while() {
    let desk = desk().await;
    desk.sim.change_faults(|faults| faults.search_lag_seconds = 60);
    let form = [("email", "ada@example.com"), ("metadata[tollgate_customer_id]", "acme")];
    let made = desk.make("/v1/customers", &form).await;
    let query = [("query", "metadata[\"tollgate_customer_id\"]:\"acme\"")];
    let search = async || desk.get("/v1/customers/search", &query).await.json["data"].clone();
    assert_eq!(search().await, serde_json::json!([]));
    desk.clock.advance(Duration::from_secs(60));
    assert_eq!(search().await[0]["id"], made["id"]);
}
