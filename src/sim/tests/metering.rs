//! Meter events: the window, the identifiers, the values, and what becomes of them.

use super::*;

const EVENTS: &str = "/v1/billing/meter_events";

impl Desk {
    async fn report(&self, customer: &str, value: &str, more: &[(&str, &str)]) -> Reply {
        let mut form = vec![
            ("event_name", "ai_runs"),
            ("payload[stripe_customer_id]", customer),
            ("payload[value]", value),
        ];
        form.extend_from_slice(more);
        self.post(EVENTS, &form).await
    }

    async fn summaries(&self, query: &[(&str, &str)]) -> Reply {
        let path = format!("/v1/billing/meters/{}/event_summaries", self.meter().await);
        self.get(&path, query).await
    }
}

#[tokio::test]
async fn an_identifier_counts_once_a_day_and_again_the_day_after() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let form = [("identifier", "w1")];
    let first = desk.report(&customer, "3", &form).await;
    assert_eq!((first.status, &first.json["identifier"]), (200, &"w1".into()));
    let again = desk.report(&customer, "3", &form).await;
    assert_eq!(again.error(), (400, "", "An event already exists with identifier w1."));
    assert_eq!(again.json["error"]["type"], "invalid_request_error");
    assert!(again.json["error"].get("code").is_none());
    assert_eq!(again.header("stripe-should-retry"), Some("false"));

    desk.clock.advance(DAY - Duration::from_secs(1));
    assert_eq!(desk.report(&customer, "3", &form).await.status, 400);
    assert_eq!(desk.sim.sum_of(&customer, "ai_runs"), 3);
    desk.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.report(&customer, "3", &form).await.status, 200);
    assert_eq!(desk.sim.sum_of(&customer, "ai_runs"), 6);
}

#[tokio::test]
async fn the_same_key_replays_the_first_answer_instead() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let form = [
        ("event_name", "ai_runs"),
        ("payload[stripe_customer_id]", customer.as_str()),
        ("payload[value]", "3"),
        ("identifier", "w1"),
    ];
    let first = desk.post_with_key("k1", EVENTS, &form).await;
    let replay = desk.post_with_key("k1", EVENTS, &form).await;
    assert_eq!((replay.status, &replay.text), (200, &first.text));
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    let other_key = desk.post_with_key("k2", EVENTS, &form).await;
    assert_eq!(other_key.error().2, "An event already exists with identifier w1.");
    assert_eq!(desk.sim.sum_of(&customer, "ai_runs"), 3);
}

#[tokio::test]
async fn an_event_may_be_thirty_five_days_old_or_five_minutes_ahead() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let now_s = seconds(START);
    let report_at =
        async |at_s: i64| desk.report(&customer, "1", &[("timestamp", &at_s.to_string())]).await;
    let oldest_s = now_s - 35 * 86_400;
    assert_eq!(report_at(oldest_s).await.status, 200);
    assert_eq!(report_at(now_s + 300).await.status, 200);
    let old = report_at(oldest_s - 1).await;
    let message = format!(
        "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater \
         than or equal to {oldest_s}."
    );
    assert_eq!(old.error(), (400, "", message.as_str()));
    assert_eq!(report_at(now_s + 301).await.status, 400);
    assert_eq!(desk.sim.sum_of(&customer, "ai_runs"), 2);
}

#[tokio::test]
async fn values_are_decimals_of_fifteen_digits_and_sum_exactly() {
    let desk = desk().await;
    let customer = desk.customer().await;
    for value in ["0.1", "0.2", "123456789012345", "-0.3"] {
        assert_eq!(desk.report(&customer, value, &[]).await.status, 200, "{value}");
    }
    for value in ["1234567890123456", "1e3", "", "many"] {
        assert_eq!(desk.report(&customer, value, &[]).await.status, 400, "{value}");
    }
    assert_eq!(desk.sim.sum_of(&customer, "ai_runs").to_string(), "123456789012345");
    assert_eq!(desk.sim.sum_of(&customer, "other"), 0);
}

#[tokio::test]
async fn an_unknown_customer_is_accepted_and_comes_to_nothing() {
    let desk = desk().await;
    let reply = desk.report("cus_none", "1", &[("identifier", "w1")]).await;
    assert_eq!(reply.status, 200);
    let form = [
        ("event_name", "nothing"),
        ("payload[stripe_customer_id]", "cus_none"),
        ("payload[value]", "1"),
    ];
    assert_eq!(desk.post(EVENTS, &form).await.status, 200);
    let failures = desk.sim.meter_failures();
    let codes: Vec<_> = failures.iter().map(|event| event.failure.unwrap()).collect();
    assert_eq!(codes, ["meter_event_customer_not_found", "no_meter"]);
    assert_eq!(failures[0].identifier, "w1");
    assert!(desk.sim.meter_events().is_empty());
    assert_eq!(desk.sim.sum_of("cus_none", "ai_runs"), 0);

    desk.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
    let refused = desk.report("cus_none", "1", &[]).await;
    assert_eq!(refused.error(), (400, "resource_missing", "No such customer: 'cus_none'"));
    assert_eq!(desk.sim.meter_failures().len(), 2);
}

#[tokio::test]
async fn a_deactivated_meter_counts_nothing() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let path = format!("/v1/billing/meters/{}", desk.meter().await);
    desk.make(&format!("{path}/deactivate"), &[]).await;
    desk.report(&customer, "1", &[]).await;
    assert_eq!(desk.sim.meter_failures()[0].failure, Some("archived_meter"));
    let inactive = desk.get("/v1/billing/meters", &[("status", "inactive")]).await.json;
    assert_eq!(inactive["data"].as_array().unwrap().len(), 1);
    desk.make(&format!("{path}/reactivate"), &[]).await;
    desk.report(&customer, "1", &[]).await;
    assert_eq!(desk.sim.sum_of(&customer, "ai_runs"), 1);
}

#[tokio::test]
async fn an_event_name_belongs_to_one_meter() {
    let desk = desk().await;
    let form = [
        ("display_name", "Runs"),
        ("event_name", "ai_runs"),
        ("default_aggregation[formula]", "sum"),
    ];
    assert_eq!(desk.post("/v1/billing/meters", &form).await.status, 400);
    assert_eq!(desk.get("/v1/billing/meters", &[]).await.json["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn summaries_follow_the_events_own_time_and_lag_behind() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let start_s = seconds(START);
    for (value, offset_s) in [("1", -7200), ("2", -3601), ("4", -3600), ("8", 0)] {
        let at_s = (start_s + offset_s).to_string();
        desk.report(&customer, value, &[("timestamp", &at_s)]).await;
    }
    desk.report("cus_none", "100", &[]).await;
    let (from, to) = ((start_s - 7200).to_string(), start_s.to_string());
    let span = [("customer", &*customer), ("start_time", &*from), ("end_time", &*to)];
    // The start counts, the end does not.
    let whole = desk.summaries(&span).await.json;
    assert_eq!(whole["data"][0]["aggregated_value"], 7.0);
    let hourly = [&span[..], &[("value_grouping_window", "hour")]].concat();
    let hourly = desk.summaries(&hourly).await.json;
    let values: Vec<f64> = hourly["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|summary| summary["aggregated_value"].as_f64().unwrap())
        .collect();
    assert_eq!(values, [4.0, 3.0]);

    desk.sim.change_faults(|faults| faults.summary_lag_seconds = 120);
    assert_eq!(desk.summaries(&span).await.json["data"], serde_json::json!([]));
    desk.clock.advance(Duration::from_secs(120));
    assert_eq!(desk.summaries(&span).await.json["data"][0]["aggregated_value"], 7.0);

    let crooked = (start_s - 7201).to_string();
    let span = [("customer", &*customer), ("start_time", &*crooked), ("end_time", &*to)];
    assert_eq!(desk.summaries(&span).await.status, 400);
}
