//! Every switch of [`Faults`], and that the effect is where it says.

use reqwest::Method;

use super::*;
use crate::sim::{FaultKind, Faults, Limit, WebhookDamage};

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

#[tokio::test]
async fn twins_of_one_change_differ_only_in_their_ids() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_webhook_endpoint(&endpoint.url, "whsec_test");
    desk.sim.change_faults(|faults| faults.twin_events = true);
    desk.customer().await;
    desk.sim.deliver_pending().await;
    let mut twins: Vec<Value> = endpoint.take().iter().map(Received::json).collect();
    assert_eq!(twins.len(), 2);
    assert_ne!(twins[0]["id"], twins[1]["id"]);
    twins[1]["id"] = twins[0]["id"].clone();
    assert_eq!(twins[0], twins[1]);
}

#[tokio::test]
async fn webhooks_can_come_before_the_answer() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_webhook_endpoint(&endpoint.url, "whsec_test");
    desk.sim.change_faults(|faults| faults.webhooks_before_answers = true);
    desk.customer().await;
    // Nobody has asked for a delivery, and the answer is only just here.
    assert_eq!(endpoint.take_kinds(), ["customer.created"]);
}

#[tokio::test]
async fn each_damage_to_a_webhook_is_the_one_it_says() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    desk.sim.add_webhook_endpoint(&endpoint.url, "whsec_test");
    let receive = async |damage| {
        desk.sim.change_faults(|faults| faults.webhook_damage = Some(damage));
        desk.subscribe("starter_monthly", &[]).await;
        desk.sim.deliver_pending().await;
        let received = endpoint.take();
        received.into_iter().find(|got| got.kind() == "customer.subscription.created").unwrap()
    };
    let signed = |secret: &str, at_s: i64, body: &str| {
        crate::sim::webhooks::signature(&[secret.to_owned()], Timestamp::from_seconds(at_s), body)
    };
    let now_s = seconds(START);
    let stale = receive(WebhookDamage::StaleSignature).await;
    assert_eq!(stale.signature, signed("whsec_test", now_s - 600, &stale.body));
    let foreign = receive(WebhookDamage::ForeignSecret).await;
    assert_ne!(foreign.signature, signed("whsec_test", now_s, &foreign.body));
    let altered = receive(WebhookDamage::AlteredWhitespace).await;
    assert_ne!(altered.signature, signed("whsec_test", now_s, &altered.body));
    assert_eq!(altered.signature, signed("whsec_test", now_s, &format!("{:#}", altered.json())));
    let old = receive(WebhookDamage::OldApiVersion).await;
    assert_eq!(old.signature, signed("whsec_test", now_s, &old.body));
    assert_eq!(old.json()["api_version"], "2024-06-20");
    assert!(old.json()["data"]["object"]["current_period_end"].is_i64());
}

#[tokio::test]
async fn a_rolled_secret_signs_beside_the_new_one_for_a_day() {
    let (desk, endpoint) = (desk().await, Endpoint::start().await);
    let webhook = desk.sim.add_webhook_endpoint(&endpoint.url, "whsec_old");
    desk.sim.roll_webhook_secret(&webhook, "whsec_new").unwrap();
    let count = async || {
        desk.customer().await;
        desk.sim.deliver_pending().await;
        endpoint.take()[0].signature.matches("v1=").count()
    };
    assert_eq!(count().await, 2);
    desk.clock.advance(DAY);
    assert_eq!(count().await, 1);
    assert!(desk.sim.roll_webhook_secret("we_none", "whsec_new").is_err());
}

#[tokio::test]
async fn bodies_come_late_or_only_half() {
    let desk = desk().await;
    desk.sim.fail_next(PATH, 1, FaultKind::CutBody);
    assert!(desk.send(Method::POST, PATH, &[], &[]).await.is_err());
    assert_eq!(desk.count_customers().await, 1);
    desk.sim.fail_next(PATH, 1, FaultKind::SlowBodyMs(30_000));
    let url = format!("{}{PATH}", desk.sim.base_url());
    let head = desk.client.post(url).bearer_auth(KEY).send().await.unwrap();
    assert_eq!((head.status().as_u16(), desk.count_customers().await), (200, 2));
    desk.clock.advance(Duration::from_secs(30));
    assert!(head.text().await.unwrap().contains("cus_"));
}

#[tokio::test]
async fn advice_and_reasons_are_in_the_headers() {
    let desk = desk().await;
    for should in [true, false] {
        desk.sim.fail_next(PATH, 1, FaultKind::ShouldRetry(should));
        let reply = desk.post(PATH, &[]).await;
        let advice = reply.header("stripe-should-retry").unwrap();
        assert_eq!((reply.status, advice), (500, should.to_string().as_str()));
    }
    desk.sim.fail_next(PATH, 1, FaultKind::LimitedBy(Limit::GlobalConcurrency));
    let reply = desk.post(PATH, &[]).await;
    assert_eq!(reply.header("stripe-rate-limited-reason"), Some("global-concurrency"));
}

#[tokio::test]
async fn an_endpoint_takes_25_calls_a_second_and_others_none_the_less() {
    let desk = desk().await;
    desk.sim.change_faults(|faults| faults.calls_per_second = Some(25));
    for _ in 0..25 {
        assert_eq!(desk.get(PATH, &[]).await.status, 200);
    }
    let limited = desk.get(PATH, &[]).await;
    assert_eq!(limited.status, 429);
    assert_eq!(limited.header("stripe-rate-limited-reason"), Some("endpoint-rate"));
    assert_eq!(desk.get("/v1/prices", &[]).await.status, 200);
    desk.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.get(PATH, &[]).await.status, 200);
}

#[tokio::test]
async fn two_writers_of_one_subscription_meet_at_its_lock() {
    let desk = desk().await;
    let path = format!("/v1/subscriptions/{}", id(&desk.subscribe("pro_monthly", &[]).await));
    desk.sim.fail_next(&path, 1, FaultKind::DelayMs(5_000));
    let before = desk.sim.requests().len();
    let (slow, met) = tokio::join!(desk.post(&path, &[("metadata[a]", "1")]), async {
        while desk.sim.requests().len() == before {
            tokio::task::yield_now().await;
        }
        // The first call has the lock once its fault is used up.
        while !desk.sim.faults().api.is_empty() {
            tokio::task::yield_now().await;
        }
        let met = desk.post(&path, &[("metadata[a]", "2")]).await;
        desk.clock.advance(Duration::from_secs(5));
        met
    });
    assert_eq!((met.status, met.error().1), (429, "lock_timeout"));
    assert_eq!(met.header("stripe-rate-limited-reason"), None);
    assert_eq!(slow.json["metadata"]["a"], "1");
}
