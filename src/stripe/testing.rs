//! A scripted Stripe on a loopback socket, for this module's tests. It speaks raw HTTP/1.1, so
//! that it can also misbehave in ways no HTTP library offers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::Stripe;
use super::transport::Patience;
use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;

/// What the fake does with one request.
pub enum Turn {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Reads the request and closes the connection.
    Hangup,
    /// Promises a body and never finishes it.
    Stall,
}

impl Turn {
    pub fn json(status: u16, body: &str) -> Self {
        Self::answer(status, "application/json", body)
    }

    pub fn html(status: u16) -> Self {
        Self::answer(status, "text/html", "<html><body>Bad gateway</body></html>")
    }

    fn answer(status: u16, kind: &str, body: &str) -> Self {
        let headers = vec![("content-type", kind.to_owned()), ("request-id", "req_1".to_owned())];
        Self::Answer { status, headers, body: body.to_owned() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }
}

/// A request as it arrived.
#[derive(Clone)]
pub struct Seen {
    pub line: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The decoded form fields, sorted.
    pub fn form(&self) -> Vec<(String, String)> {
        Self::decode(&self.body)
    }

    /// The decoded query fields, sorted.
    pub fn query(&self) -> Vec<(String, String)> {
        let target = self.line.split(' ').nth(1).unwrap();
        Self::decode(target.split_once('?').map_or("", |(_, query)| query))
    }

    fn decode(encoded: &str) -> Vec<(String, String)> {
        let url = reqwest::Url::parse(&format!("http://x/?{encoded}")).unwrap();
        let mut pairs: Vec<_> = url.query_pairs().into_owned().collect();
        pairs.sort();
        pairs
    }
}

#[derive(Default)]
struct State {
    script: VecDeque<Turn>,
    seen: Vec<Seen>,
    connections: usize,
}

pub struct FakeStripe {
    base: String,
    state: Arc<Mutex<State>>,
}

impl FakeStripe {
    pub async fn start(script: impl IntoIterator<Item = Turn>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let script = script.into_iter().collect();
        let state = Arc::new(Mutex::new(State { script, ..State::default() }));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(BufReader::new(stream), shared.clone()));
            }
        });
        Self { base, state }
    }

    /// A client of this fake that is quick to lose patience.
    pub fn stripe(&self) -> Stripe {
        let patience = Patience {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(3),
            first_pause: Duration::from_millis(1),
        };
        let key = SecretString::from("sk_test_fake");
        let clock = Clock::manual(Timestamp::from_seconds(1_800_000_000));
        Stripe::with_patience(&self.base, &key, clock, Entropy::seeded(1), patience).unwrap()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }
}

async fn serve(mut stream: BufReader<TcpStream>, state: Arc<Mutex<State>>) {
    while let Some(seen) = read_request(&mut stream).await {
        let turn = {
            let mut state = state.lock().unwrap();
            state.seen.push(seen);
            state.script.pop_front()
        };
        let (head, body) = match turn.unwrap_or_else(|| Turn::json(599, "no turn left")) {
            Turn::Hangup => return,
            Turn::Stall => {
                ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n".to_owned(), "{".to_owned())
            }
            Turn::Answer { status, headers, body } => {
                let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                (head + "\r\n", body)
            }
        };
        // The client may hang up first: that is its choice.
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}

/// One request, or `None` once the client has closed the connection.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let headers: BTreeMap<_, _> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen { line: lines.remove(0), headers, body: String::from_utf8(body).unwrap() })
}

/// A list page as Stripe writes it.
pub fn list(data: &[Value], has_more: bool) -> Value {
    json!({"object": "list", "url": "/v1/things", "has_more": has_more, "data": data})
}

/// A subscription with every field that version 2026-09-30.endive requires.
pub fn subscription(id: &str, created: i64, items: &Value) -> Value {
    json!({
        "id": id, "object": "subscription", "customer": "cus_1", "status": "active",
        "created": created, "start_date": created, "billing_cycle_anchor": created,
        "currency": "usd", "livemode": false, "metadata": {"tollgate_customer_id": "acme"},
        "collection_method": "charge_automatically", "cancel_at_period_end": false,
        "cancel_at": null, "canceled_at": null, "ended_at": null, "trial_end": null,
        "automatic_tax": {"enabled": false, "liability": null, "disabled_reason": null},
        "billing_mode": {"type": "flexible", "flexible": {"proration_discounts": "included"}},
        "billing_schedules": [], "discounts": [], "default_tax_rates": [],
        "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
        "items": items,
    })
}

/// A subscription item on a monthly price.
pub fn item(id: &str, lookup_key: Option<&str>, usage_type: &str) -> Value {
    let common = json!({
        "active": true, "billing_scheme": "per_unit", "created": 1_700_000_000, "currency": "usd",
        "livemode": false, "metadata": {}, "product": "prod_1",
    });
    let mut price = json!({
        "id": format!("price_{id}"), "object": "price", "type": "recurring",
        "lookup_key": lookup_key, "unit_amount": 2900, "unit_amount_decimal": "2900",
        "recurring": {"interval": "month", "interval_count": 1, "usage_type": usage_type,
                      "meter": null, "trial_period_days": null},
    });
    let mut plan = json!({
        "id": format!("price_{id}"), "object": "plan", "interval": "month", "interval_count": 1,
        "usage_type": usage_type, "amount": 2900,
    });
    for (name, value) in common.as_object().unwrap() {
        price[name] = value.clone();
        plan[name] = value.clone();
    }
    json!({
        "id": id, "object": "subscription_item", "subscription": "sub_1", "created": 1_700_000_000,
        "current_period_start": 1_800_000_000, "current_period_end": 1_802_678_400,
        "discounts": [], "metadata": {}, "tax_rates": [], "quantity": 1,
        "price": price, "plan": plan,
    })
}
