//! The simulator over real HTTP, on a clock that only the test moves.

mod accounts;
mod metering;
mod misbehaviour;
mod paying;
mod renewal;
mod sending;
mod telling;
mod upgrading;
mod wire;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode};
use reqwest::Method;
use serde_json::Value;

use super::{SeedPrice, SimConfig, Simulator};
use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;

const KEY: &str = "sk_test_simulated";
const START: &str = "2026-11-01T00:00:00Z";
/// A card that works, for a new customer.
const CARD: [(&str, &str); 2] = [
    ("payment_method", "pm_card_visa"),
    ("invoice_settings[default_payment_method]", "pm_card_visa"),
];
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A simulator with a catalog, and someone who calls it.
struct Desk {
    sim: Simulator,
    clock: Clock,
    client: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
    json: Value,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The error's code, or what it says where it has none.
    fn error(&self) -> (u16, &str, &str) {
        let error = &self.json["error"];
        let code = error["code"].as_str().unwrap_or_default();
        (self.status, code, error["message"].as_str().unwrap())
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn seconds(text: &str) -> i64 {
    at(text).seconds()
}

async fn desk() -> Desk {
    desk_at(START).await
}

async fn desk_at(start: &str) -> Desk {
    let clock = Clock::manual(at(start));
    let config = SimConfig {
        clock: clock.clone(),
        entropy: Entropy::seeded(7),
        api_key: KEY.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
    };
    let sim = Simulator::start(config).await.unwrap();
    let price = |lookup_key, amount_minor, interval| SeedPrice {
        lookup_key,
        amount_minor,
        currency: "usd",
        interval,
    };
    let prices = [
        price("starter_monthly", 2_900, "month"),
        price("pro_monthly", 9_900, "month"),
        price("pro_yearly", 99_000, "year"),
    ];
    sim.seed_catalog(&prices, &["ai_runs"]).unwrap();
    Desk { sim, clock, client: reqwest::Client::new() }
}

fn encode(pairs: &[(&str, &str)]) -> String {
    let mut url = reqwest::Url::parse("http://form/").unwrap();
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

impl Desk {
    /// Sends a call; an error if the connection was cut.
    async fn send(
        &self,
        method: Method,
        path: &str,
        form: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<Reply, reqwest::Error> {
        let mut url = format!("{}{path}", self.sim.base_url());
        if method == Method::GET && !form.is_empty() {
            url = format!("{url}?{}", encode(form));
        }
        let mut request = self.client.request(method.clone(), url);
        if method != Method::GET {
            let kind = "application/x-www-form-urlencoded";
            request = request.header("content-type", kind).body(encode(form));
        }
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.bearer_auth(KEY);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let json = serde_json::from_str(&text).unwrap_or_default();
        Ok(Reply { status, headers, text, json })
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Reply {
        self.send(Method::POST, path, form, &[]).await.unwrap()
    }

    async fn post_with_key(&self, key: &str, path: &str, form: &[(&str, &str)]) -> Reply {
        self.send(Method::POST, path, form, &[("idempotency-key", key)]).await.unwrap()
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, path, query, &[]).await.unwrap()
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], &[]).await.unwrap()
    }

    /// Makes an object and answers it.
    async fn make(&self, path: &str, form: &[(&str, &str)]) -> Value {
        let reply = self.post(path, form).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json
    }

    async fn customer(&self) -> String {
        id(&self.make("/v1/customers", &[("email", "ada@example.com")]).await)
    }

    /// A new customer with a card that works.
    async fn payer(&self) -> String {
        id(&self.make("/v1/customers", &[("email", "ada@example.com"), CARD[0], CARD[1]]).await)
    }

    async fn price(&self, lookup_key: &str) -> String {
        let reply = self.get("/v1/prices", &[("lookup_keys[]", lookup_key)]).await;
        id(&reply.json["data"][0])
    }

    async fn meter(&self) -> String {
        id(&self.get("/v1/billing/meters", &[]).await.json["data"][0])
    }

    /// A subscription of a new customer, who has a card, to one price.
    async fn subscribe(&self, lookup_key: &str, more: &[(&str, &str)]) -> Value {
        let (customer, price) = (self.payer().await, self.price(lookup_key).await);
        let mut form = vec![("customer", customer.as_str()), ("items[0][price]", &price)];
        form.extend_from_slice(more);
        self.make("/v1/subscriptions", &form).await
    }

    async fn subscription(&self, id: &str) -> Value {
        self.get(&format!("/v1/subscriptions/{id}"), &[]).await.json
    }

    /// The events from the `from`th on, by type.
    fn told(&self, from: usize) -> Vec<String> {
        let events = self.sim.events();
        events[from..].iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }
}

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("no id in {object}")).to_owned()
}

/// The running period of a subscription's only item, as dates.
fn period(subscription: &Value) -> (String, String) {
    let item = &subscription["items"]["data"][0];
    let date = |field: &str| {
        let at = Timestamp::from_seconds(item[field].as_i64().unwrap());
        at.to_string().trim_end_matches("T00:00:00Z").to_owned()
    };
    (date("current_period_start"), date("current_period_end"))
}

/// One webhook as it arrived.
#[derive(Clone, Debug)]
struct Received {
    signature: String,
    body: String,
}

impl Received {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }
}

/// An endpoint that keeps what it receives and answers as it is told.
#[derive(Clone, Default)]
struct Endpoint {
    received: Arc<Mutex<Vec<Received>>>,
    /// What to answer; 200 if nothing is said.
    status: Arc<Mutex<Option<u16>>>,
    url: String,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let endpoint = Self { url, ..Self::default() };
        let router = Router::new().fallback(receive).with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        endpoint
    }

    fn answer(&self, status: u16) {
        *self.status.lock().unwrap() = Some(status);
    }

    /// Everything received since the last look.
    fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *self.received.lock().unwrap())
    }

    fn take_kinds(&self) -> Vec<String> {
        self.take().iter().map(Received::kind).collect()
    }
}

async fn receive(
    Extract(endpoint): Extract<Endpoint>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let signature = headers["stripe-signature"].to_str().unwrap().to_owned();
    endpoint.received.lock().unwrap().push(Received { signature, body });
    let status = endpoint.status.lock().unwrap().unwrap_or(200);
    StatusCode::from_u16(status).unwrap()
}
