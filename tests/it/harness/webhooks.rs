//! What stories about webhooks and sync need of the world: events made and signed by hand,
//! Stripe's own events delivered in any order, and a look at everything that is stored.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha256;
use tollgate::clock::Timestamp;

use super::sql;
use super::world::{Reply, WEBHOOK_SECRET, World, reply};

/// The `Stripe-Signature` header for a body. Judged against the official SDK's by the stories
/// that use that.
pub fn sign(secret: &str, at: Timestamp, body: &[u8]) -> String {
    let seconds = at.seconds();
    format!("t={seconds},v1={}", v1(secret, seconds, body))
}

/// One signature of the scheme `v1`.
pub fn v1(secret: &str, seconds: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A snapshot event of Stripe's about an object.
pub fn event(id: &str, kind: &str, object: &Value) -> Value {
    json!({
        "id": id, "object": "event", "type": kind, "livemode": false,
        "api_version": "2026-09-30.endive", "created": 1_793_523_600, "pending_webhooks": 1,
        "request": {"id": null, "idempotency_key": null}, "data": {"object": object},
    })
}

impl World {
    /// Posts any bytes as a webhook, with this `Stripe-Signature` or none.
    pub async fn post_webhook(&self, header: Option<&str>, body: impl Into<Vec<u8>>) -> Reply {
        let mut request = self.http.post(self.url("/webhooks/stripe")).body(body.into());
        if let Some(header) = header {
            request = request.header("stripe-signature", header);
        }
        reply(request.send().await.expect("the daemon answers")).await
    }

    /// Delivers an event, rightly signed now. No job has run when this returns.
    pub async fn deliver(&self, event: &Value) -> Reply {
        let body = event.to_string();
        let header = sign(WEBHOOK_SECRET, self.now(), body.as_bytes());
        self.post_webhook(Some(&header), body).await
    }

    /// From now on Stripe's webhooks get lost, so that a story delivers what it likes by hand.
    pub fn lose_webhooks(&self) {
        self.sim.change_faults(|faults| faults.drop_webhooks = true);
    }

    /// Stripe's events about one of its customers, in the order they happened.
    pub fn events_of(&self, stripe_id: &str) -> Vec<Value> {
        let about = |event: &Value| {
            let object = &event["data"]["object"];
            object["id"] == stripe_id || object["customer"] == stripe_id
        };
        self.sim.events().into_iter().filter(about).collect()
    }

    /// The states of all stored events, each once, in order of name.
    pub async fn inbox_states(&self) -> Vec<String> {
        let mut states: Vec<String> = self
            .list("/inbox")
            .await
            .iter()
            .map(|row| row["state"].as_str().expect("a state").to_owned())
            .collect();
        states.sort();
        states.dedup();
        states
    }

    pub async fn shown(&self, customer: &str) -> Value {
        self.call("GET", &format!("/v1/customers/{customer}"), &Value::Null).await.ok()
    }

    /// The plan and the subscription's status, as `pro active` or `starter -`.
    pub async fn tier(&self, customer: &str) -> String {
        let shown = self.shown(customer).await;
        let status = shown["subscription"]["status"].as_str().unwrap_or("-");
        format!("{} {status}", shown["plan_id"].as_str().unwrap_or("-"))
    }

    /// The same in Stripe's own words: the plan (by lookup key) and status of the subscription that
    /// has not ended.
    pub async fn tier_at_stripe(&self, stripe_id: &str) -> String {
        let path = format!("/v1/subscriptions?customer={stripe_id}");
        let listed = self.stripe("GET", &path, &[]).await;
        let listed = listed["data"].as_array().expect("a list");
        let [live] = &listed[..] else {
            assert!(listed.is_empty(), "one live subscription at most: {listed:?}");
            return "starter -".to_owned();
        };
        let key = live["items"]["data"][0]["price"]["lookup_key"].as_str().expect("a plan's");
        let status = live["status"].as_str().expect("a status");
        format!("{} {status}", key.trim_end_matches("_monthly"))
    }

    /// Support's sync of one customer.
    pub async fn sync(&self, customer: &str) -> Reply {
        self.admin("POST", &format!("/customers/{customer}/sync")).await
    }

    /// The same, only looking.
    pub async fn sync_dry(&self, customer: &str) -> Value {
        self.admin("POST", &format!("/customers/{customer}/sync?dry_run=true")).await.ok()
    }

    /// How often Stripe has been asked for somebody's subscriptions.
    pub fn looks(&self) -> usize {
        let is_look = |asked: &&tollgate::sim::LoggedRequest| {
            asked.method == "GET" && asked.path == "/v1/subscriptions"
        };
        self.sim.requests().iter().filter(is_look).count()
    }

    /// Every row of these tables, in an order that does not depend on when it was written.
    pub async fn rows(&self, tables: &[&str]) -> Vec<String> {
        let url = self.config.database_url.expose_secret();
        let mut all = Vec::new();
        for table in tables {
            let mut rows = sql::rows(url, &format!("SELECT * FROM {table}")).await;
            rows.sort();
            all.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
        }
        all
    }

    /// Everything that is stored about customers, their usage and what is to be sent or applied;
    /// not who is at work on it, nor the audit.
    pub async fn everything(&self) -> Vec<String> {
        self.rows(&[
            "customers",
            "usage_counters",
            "usage_events",
            "notices",
            "stripe_events",
            "meter_events",
        ])
        .await
    }
}
