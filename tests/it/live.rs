//! What this project holds to be true of Stripe on the word of third parties, asked over HTTP: of
//! the simulator in every run of the tests, and of Stripe itself by `scripts/live`, which needs a
//! key of a sandbox. A fact that Stripe denies is one that the daemon and the simulator must both
//! unlearn.

use std::time::Duration;

use serde_json::Value;
use tollgate::clock::{Clock, Timestamp};
use tollgate::entropy::Entropy;

use crate::harness::stripe::{METER_EVENTS, simulator};
use crate::harness::world::form_body;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// How often Stripe is asked for a sum, and for how long between two tries.
const SUM_TRIES: u32 = 60;

/// A Stripe, and the right to write there.
struct Account {
    base: String,
    key: String,
    http: reqwest::Client,
    clock: Clock,
    /// Sets this run's names apart from those of earlier ones.
    run: String,
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// What the error says, on one line; without the rest of it.
    fn error(&self) -> String {
        let error = &self.body["error"];
        let word = |name: &str| error[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}: {}", self.status, word("type"), word("code"), word("message"))
    }
}

/// One thing held to be true, and what Stripe said.
#[derive(Debug)]
struct Fact {
    claim: &'static str,
    found: String,
    holds: bool,
}

impl Account {
    fn new(base: &str, key: &str, clock: Clock) -> Self {
        let run = Entropy::system().id("live", clock.now()).to_lowercase();
        let (base, key) = (base.to_owned(), key.to_owned());
        Self { base, key, http: reqwest::Client::new(), clock, run }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let request = request
            .bearer_auth(&self.key)
            .header("stripe-version", "2026-09-30.endive")
            .timeout(MINUTE);
        let response = request.send().await.expect("Stripe answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await.expect("the answer ends");
        Answer { status, headers, body: serde_json::from_str(&body).unwrap_or(Value::Null) }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    async fn post(&self, path: &str, key: &str, form: &[(&str, &str)]) -> Answer {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("idempotency-key", format!("{}-{key}", self.run))
            .body(form_body(form));
        self.send(request).await
    }

    async fn create(&self, path: &str, form: &[(&str, &str)]) -> String {
        let made = self.post(path, path, form).await;
        assert_eq!(made.status, 200, "{path}: {}", made.error());
        made.body["id"].as_str().expect("an id").to_owned()
    }

    /// One unit of usage under this identifier and idempotency key.
    async fn use_one(&self, event: &Usage<'_>) -> Answer {
        let timestamp = event.at.seconds().to_string();
        let form = [
            ("event_name", event.meter),
            ("identifier", event.identifier),
            ("timestamp", &timestamp),
            ("payload[stripe_customer_id]", event.customer),
            ("payload[value]", "1"),
        ];
        self.post(METER_EVENTS, event.key, &form).await
    }
}

#[derive(Clone, Copy)]
struct Usage<'a> {
    meter: &'a str,
    customer: &'a str,
    identifier: &'a str,
    key: &'a str,
    at: Timestamp,
}

/// Makes a meter and a customer and asks about each fact in turn. `wait` lets Stripe's own time
/// pass between two looks at a sum.
async fn ask(account: &Account, wait: impl AsyncFn()) -> Vec<Fact> {
    let meter_name = account.run.replace('-', "_");
    let meter = account
        .create(
            "/v1/billing/meters",
            &[
                ("display_name", "Tollgate's facts"),
                ("event_name", &meter_name),
                ("default_aggregation[formula]", "sum"),
            ],
        )
        .await;
    let customer = account.create("/v1/customers", &[("name", "Tollgate's facts")]).await;
    let first = format!("{}-first", account.run);
    let now = account.clock.now();
    let usage = Usage {
        meter: &meter_name,
        customer: &customer,
        identifier: &first,
        key: "a",
        at: now.minus(MINUTE),
    };
    let mut facts = about_repeats(account, usage).await;
    facts.extend(about_refusals(account, usage).await);
    facts.push(about_the_sum(account, &meter, usage, wait).await);
    // A meter cannot be deleted; out of the way it is one that takes no events.
    account.post(&format!("/v1/billing/meters/{meter}/deactivate"), "off", &[]).await;
    facts
}

async fn about_repeats(account: &Account, usage: Usage<'_>) -> Vec<Fact> {
    let sent = account.use_one(&usage).await;
    assert_eq!(sent.status, 200, "{}", sent.error());
    let replayed = account.use_one(&usage).await;
    let same_identifier = account.use_one(&Usage { key: "b", ..usage }).await;
    let other_body = account.use_one(&Usage { identifier: "other", ..usage }).await;
    let exists = "400 invalid_request_error -: An event already exists with identifier ";
    vec![
        Fact {
            claim: "the same identifier and key: the first 200 again, marked as replayed",
            found: format!("{} {}", replayed.status, replayed.header("idempotent-replayed")),
            holds: replayed.status == 200 && replayed.header("idempotent-replayed") == "true",
        },
        Fact {
            claim: "the same identifier under a new key: 400 without a code, not to be retried",
            found: format!(
                "{}; Stripe-Should-Retry: {}",
                same_identifier.error(),
                same_identifier.header("stripe-should-retry")
            ),
            holds: same_identifier.error().starts_with(exists)
                && same_identifier.header("stripe-should-retry") == "false",
        },
        Fact {
            claim: "another body under the same key: 400 idempotency_error",
            found: other_body.error(),
            holds: other_body.error().starts_with("400 idempotency_error"),
        },
    ]
}

async fn about_refusals(account: &Account, usage: Usage<'_>) -> Vec<Fact> {
    let old = Usage { identifier: "old", key: "old", at: usage.at.minus(36 * DAY), ..usage };
    let old = account.use_one(&old).await;
    let ahead = Usage { identifier: "ahead", key: "ahead", at: usage.at.plus(DAY), ..usage };
    let ahead = account.use_one(&ahead).await;
    let stranger = Usage { identifier: "who", key: "who", customer: "cus_nobody", ..usage };
    let stranger = account.use_one(&stranger).await;
    let no_meter = Usage { identifier: "no", key: "no", meter: "tollgate_no_such_meter", ..usage };
    let no_meter = account.use_one(&no_meter).await;
    // Either is provided for: at once, or by a thin event later.
    let at_once_or_later = |answer: &Answer| matches!(answer.status, 200 | 400 | 404);
    vec![
        Fact {
            claim: "36 days old: 400 that speaks of the timestamp and of days in past",
            found: old.error(),
            holds: old.status == 400
                && old.error().contains("timestamp")
                && old.error().contains("days in past"),
        },
        Fact { claim: "a day ahead: 400", found: ahead.error(), holds: ahead.status == 400 },
        Fact {
            claim: "an unknown customer: refused at once, or taken and refused later",
            found: stranger.error(),
            holds: at_once_or_later(&stranger),
        },
        Fact {
            claim: "an unknown meter: refused at once, or taken and refused later",
            found: no_meter.error(),
            holds: at_once_or_later(&no_meter),
        },
    ]
}

async fn about_the_sum(
    account: &Account,
    meter: &str,
    usage: Usage<'_>,
    wait: impl AsyncFn(),
) -> Fact {
    let minute = |moment: Timestamp| moment.seconds() / 60 * 60;
    let (from, to) = (minute(usage.at.minus(MINUTE)), minute(usage.at.plus(3 * MINUTE)));
    let path = format!(
        "/v1/billing/meters/{meter}/event_summaries?customer={}&start_time={from}&end_time={to}",
        usage.customer
    );
    let began = account.clock.now();
    let mut sum = Value::Null;
    for _ in 0..SUM_TRIES {
        sum = account.get(&path).await.body["data"][0]["aggregated_value"].clone();
        if sum.as_f64() == Some(1.0) {
            break;
        }
        wait().await;
    }
    Fact {
        claim: "usage sent three times under one identifier sums to one, within five minutes",
        found: format!("{sum} after {} s", account.clock.now().since(began).as_secs()),
        holds: sum.as_f64() == Some(1.0) && account.clock.now().since(began) <= 5 * MINUTE,
    }
}

#[track_caller]
fn all_hold(facts: &[Fact]) {
    for fact in facts {
        let mark = if fact.holds { "holds" } else { "FALSE" };
        println!("{mark}  {}\n       {}", fact.claim, fact.found);
    }
    let denied: Vec<_> = facts.iter().filter(|fact| !fact.holds).collect();
    assert!(denied.is_empty(), "{denied:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_says_what_stripe_is_held_to_say() {
    let clock = Clock::manual("2026-11-01T09:00:00Z".parse().unwrap());
    let key = "sk_test_facts";
    let simulator = simulator(clock.clone(), key).await;
    let account = Account::new(&simulator.base_url(), key, clock.clone());
    let wait = async || {
        clock.advance(Duration::from_secs(5));
    };
    all_hold(&ask(&account, wait).await);
    simulator.stop().await;
}

/// Run by `scripts/live`, which says what it needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "asks Stripe itself: scripts/live"]
async fn stripe_says_what_it_is_held_to_say() {
    let key = std::env::var("STRIPE_TEST_KEY").expect("STRIPE_TEST_KEY: a sandbox's secret key");
    assert!(key.starts_with("sk_test_") || key.starts_with("rk_test_"), "a test mode key only");
    let account = Account::new("https://api.stripe.com", &key, Clock::system());
    // Stripe's time is not ours to move.
    all_hold(&ask(&account, async || tokio::time::sleep(Duration::from_secs(5)).await).await);
}
