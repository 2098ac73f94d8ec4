//! Every switch of [`Faults`], and that the effect is where it says.

use reqwest::Method;

use super::*;
use crate::sim::{FaultKind, Faults};

const PATH: &str = "/v1/customers";

impl Desk {
    async fn count_customers(&self) -> usize {
        self.get(PATH, &[]).await.json["data"].as_array().unwrap().len()
    }
}

#[tokio::test]
async fn a_stored_500_is_replayed_with_or_without_its_effect() {
    for (kind, effects) in [(FaultKind::ServerError, 0), (FaultKind::ServerErrorAfterEffect, 1)] {
        let desk = desk().await;
        desk.sim.fail_next(PATH, 1, kind);
        let failed = desk.post_with_key("k1", PATH, &[]).await;
        assert_eq!((failed.status, &failed.json["error"]["type"]), (500, &"api_error".into()));
        let again = desk.post_with_key("k1", PATH, &[]).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (500, Some("true")));
        assert_eq!(desk.count_customers().await, effects, "{kind:?}");
    }
}

#[tokio::test]
async fn a_429_and_a_proxys_502_leave_the_key_free() {
    let desk = desk().await;
    desk.sim.fail_next(PATH, 1, FaultKind::RateLimited);
    desk.sim.fail_next(PATH, 1, FaultKind::LockTimeout);
    desk.sim.fail_next(PATH, 1, FaultKind::BadGateway);
    let limited = desk.post_with_key("k1", PATH, &[]).await;
    assert_eq!((limited.status, limited.error().1), (429, "rate_limit"));
    assert_eq!(limited.header("stripe-rate-limited-reason"), Some("endpoint-rate"));
    assert_eq!(limited.header("retry-after"), None);
    let locked = desk.post_with_key("k1", PATH, &[]).await;
    assert_eq!((locked.status, locked.error().1), (429, "lock_timeout"));
    assert_eq!(locked.header("stripe-rate-limited-reason"), None);
    let gateway = desk.post_with_key("k1", PATH, &[]).await;
    assert_eq!((gateway.status, gateway.header("content-type")), (502, Some("text/html")));
    let made = desk.post_with_key("k1", PATH, &[]).await;
    assert_eq!((made.status, made.header("idempotent-replayed")), (200, None));
    assert_eq!(desk.count_customers().await, 1);
}

#[tokio::test]
async fn a_cut_connection_says_nothing_about_the_effect() {
    let desk = desk().await;
    let send = async || {
        let key = [("idempotency-key", "k1")];
        desk.send(Method::POST, PATH, &[], &key).await
    };
    desk.sim.fail_next(PATH, 1, FaultKind::DropBeforeEffect);
    assert!(send().await.is_err());
    assert_eq!(desk.count_customers().await, 0);
    desk.sim.fail_next(PATH, 1, FaultKind::DropAfterEffect);
    assert!(send().await.is_err());
    assert_eq!(desk.count_customers().await, 1);
    let replay = send().await.unwrap();
    assert_eq!((replay.status, replay.header("idempotent-replayed")), (200, Some("true")));
    assert_eq!(desk.count_customers().await, 1);
    let statuses: Vec<_> = desk.sim.requests().iter().map(|call| call.status).collect();
    assert_eq!(statuses, [None, Some(200), None, Some(200), Some(200), Some(200)]);
}

#[tokio::test]
async fn a_call_in_flight_holds_its_key_and_finishes_without_its_caller() {
    let desk = desk().await;
    desk.sim.fail_next(PATH, 1, FaultKind::DelayMs(5_000));
    let impatient = reqwest::Client::builder().timeout(Duration::from_millis(200)).build().unwrap();
    let call = impatient.post(format!("{}{PATH}", desk.sim.base_url())).bearer_auth(KEY);
    assert!(call.header("idempotency-key", "k1").send().await.is_err());
    let second = desk.post_with_key("k1", PATH, &[]).await;
    assert_eq!((second.status, second.error().1), (409, "idempotency_key_in_use"));
    assert_eq!(desk.count_customers().await, 0);
    desk.clock.advance(Duration::from_secs(5));
    while desk.sim.requests()[0].status.is_none() {
        tokio::task::yield_now().await;
    }
    let third = desk.post_with_key("k1", PATH, &[]).await;
    assert_eq!((third.status, third.header("idempotent-replayed")), (200, Some("true")));
    assert_eq!(desk.count_customers().await, 1);
}

#[tokio::test]
async fn webhooks_are_doubled_shuffled_and_dropped() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_webhook_endpoint(&endpoint.url, "whsec_test");
    desk.sim.change_faults(|faults| faults.duplicate_webhooks = true);
    let customer = desk.customer().await;
    desk.sim.deliver_pending().await;
    let twice = endpoint.take();
    assert_eq!((twice.len(), &twice[0].body), (2, &twice[1].body));

    desk.sim.change_faults(|faults| {
        *faults = Faults { shuffle_webhooks: true, ..Faults::default() };
    });
    let path = format!("{PATH}/{customer}");
    for name in ["A", "B", "C"] {
        desk.make(&path, &[("name", name)]).await;
    }
    desk.sim.deliver_pending().await;
    let names: Vec<Value> =
        endpoint.take().iter().map(|got| got.json()["data"]["object"]["name"].clone()).collect();
    assert_eq!(names, ["C", "B", "A"]);

    desk.sim.change_faults(|faults| {
        *faults = Faults { drop_webhooks: true, ..Faults::default() };
    });
    desk.make(&path, &[("name", "D")]).await;
    desk.sim.change_faults(|faults| faults.drop_webhooks = false);
    desk.clock.advance(DAY * 4);
    desk.sim.deliver_pending().await;
    assert_eq!(endpoint.take_kinds(), [""; 0]);
    let lost = desk.get("/v1/events", &[("delivery_success", "false")]).await.json;
    assert_eq!(lost["data"][0]["data"]["object"]["name"], "D");
    assert_eq!(lost["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_switches_can_be_thrown_over_http() {
    let desk = desk().await;
    let url = format!("{}/_sim/faults", desk.sim.base_url());
    let body = r#"{"drop_webhooks": true,
                   "api": [{"path_prefix": "/v1/customers", "times": 1, "kind": "bad_gateway"}]}"#;
    let set = desk.client.post(&url).body(body).send().await.unwrap();
    assert_eq!(set.status().as_u16(), 200);
    assert!(desk.sim.faults().drop_webhooks);
    assert_eq!(desk.post(PATH, &[]).await.status, 502);
    let now = desk.client.get(&url).send().await.unwrap().text().await.unwrap();
    let now: Faults = serde_json::from_str(&now).unwrap();
    assert_eq!(now, Faults { drop_webhooks: true, ..Faults::default() });
    let wrong = desk.client.post(&url).body(r#"{"dorp": 1}"#).send().await.unwrap();
    assert_eq!(wrong.status().as_u16(), 400);
}
