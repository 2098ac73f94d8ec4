//! A product under load that keeps its own books: what it sent, and every answer it got. Whatever
//! happens to the daemon, its books must come to agree with these.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::any::install_default_drivers;
use sqlx::{AnyConnection, Connection as _, Row as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::process::Api;

/// How many callers send at once.
pub const CALLERS: usize = 16;
/// The hard cap of `ai_runs` in [`PLANS`]; `exports` is never used up.
pub const CAP: i64 = 60;
/// Everything that runs by the clock runs every second, to be under way when something happens.
pub const PLANS: &str = r#"
default_plan = "only"

[features.ai_runs]
name = "AI runs"
unit = "run"
stripe_meter = "ai_runs"

[features.exports]
name = "Exports"
unit = "export"
stripe_meter = "exports"

[[plans]]
id = "only"
name = "Only"
rank = 1
limits.ai_runs = { granted = 60, enforcement = "hard", nudge_at_percent = [80] }
limits.exports = { granted = 1000000, enforcement = "hard" }

[metering]
window = "1s"

[schedule]
notices = "* * * * * *"
meter_events = "* * * * * *"
"#;

const CUSTOMERS: [&str; 4] = ["ann", "bob", "cyd", "dov"];
const FEATURES: [&str; 2] = ["ai_runs", "exports"];

/// One run the product wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    customer: &'static str,
    feature: &'static str,
    key: String,
}

impl Run {
    fn body(&self) -> Value {
        json!({
            "customer_id": self.customer, "feature_id": self.feature, "send_event": true,
            "idempotency_key": self.key,
        })
    }
}

/// The product's books. Clones share them.
#[derive(Clone, Default)]
pub struct Product {
    /// Every run sent, with its answer once there was one.
    runs: Arc<Mutex<BTreeMap<Run, Option<Value>>>>,
    answered: watch::Sender<usize>,
    /// Answers of 503.
    turned_away: watch::Sender<usize>,
}

impl Product {
    /// Creates the customers, each tied to a Stripe customer so that usage is metered.
    pub async fn signs_up(&self, api: &Api) {
        for customer in CUSTOMERS {
            let body = json!({"stripe_customer_id": format!("cus_{customer}")});
            api.ok("PUT", &format!("/v1/customers/{customer}"), &body).await;
        }
    }

    /// Starts callers that send one run after another until they are stopped or the daemon is gone.
    pub fn load(&self, api: &Api) -> Load {
        let stop = CancellationToken::new();
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(call(self.clone(), api.clone(), caller, stop.clone()));
        }
        Load { product: self.clone(), callers, stop }
    }

    fn next(&self, caller: usize) -> Run {
        let mut runs = self.runs.lock().unwrap();
        let n = runs.len();
        let run = Run {
            customer: CUSTOMERS[n % CUSTOMERS.len()],
            feature: FEATURES[n / CUSTOMERS.len() % FEATURES.len()],
            key: format!("{caller}-{n}"),
        };
        runs.insert(run.clone(), None);
        run
    }

    /// Keeps an answer, which must be the one given before if there was one.
    fn note(&self, run: &Run, answer: Value) {
        let before = self.runs.lock().unwrap().insert(run.clone(), Some(answer.clone()));
        match before.flatten() {
            Some(before) => assert_eq!(answer, before, "another answer to {run:?}"),
            None => self.answered.send_modify(|n| *n += 1),
        }
    }

    pub fn turned_away(&self) -> usize {
        *self.turned_away.borrow()
    }

    /// Asks again for every run ever sent: those that were answered must be answered as before,
    /// the others now are.
    pub async fn asks_again(&self, api: &Api) {
        let runs: Vec<Run> = self.runs.lock().unwrap().keys().cloned().collect();
        let mut callers = JoinSet::new();
        for share in runs.chunks(runs.len().div_ceil(CALLERS).max(1)) {
            let (product, api, share) = (self.clone(), api.clone(), share.to_vec());
            callers.spawn(async move {
                for run in share {
                    product.note(&run, api.ok("POST", "/v1/check", &run.body()).await);
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.expect("every run is answered");
        }
    }

    /// How many runs each customer was allowed, by feature.
    fn allowed(&self) -> BTreeMap<(&'static str, &'static str), i64> {
        let mut allowed = BTreeMap::new();
        for (run, answer) in self.runs.lock().unwrap().iter() {
            let answer = answer.as_ref().unwrap_or_else(|| panic!("{run:?} has no answer"));
            *allowed.entry((run.customer, run.feature)).or_default() +=
                i64::from(answer["allowed"] == true);
        }
        allowed
    }

    /// Asserts that the daemon has counted what it allowed, no run twice and none too many.
    pub async fn agrees_with(&self, api: &Api) {
        for ((customer, feature), allowed) in self.allowed() {
            let body = json!({"customer_id": customer, "feature_id": feature});
            let answer = api.ok("POST", "/v1/check", &body).await;
            assert_eq!(answer["balance"]["usage"], allowed, "{customer}: {answer}");
            assert!(feature != "ai_runs" || allowed <= CAP, "{customer} went past the cap");
        }
    }

    /// Asserts the same of the database, where counters, events and metering must be at one.
    pub async fn agrees_with_database(&self, url: &str) {
        let accounts = accounts(url).await;
        let allowed = self.allowed();
        assert_eq!(accounts.len(), allowed.len(), "{accounts:?}");
        for account in accounts {
            let key = (account.customer.as_str(), account.feature.as_str());
            let (_, allowed) = allowed.iter().find(|(k, _)| **k == key).expect("a known account");
            let Account { usage, events, metered, .. } = account;
            assert_eq!((usage, events, metered), (*allowed, *allowed, *allowed), "{account:?}");
        }
    }
}

/// Callers at work.
pub struct Load {
    product: Product,
    callers: JoinSet<()>,
    stop: CancellationToken,
}

impl Load {
    /// Waits until this many more answers came.
    pub async fn answers(&self, count: usize) {
        let mut answered = self.product.answered.subscribe();
        let goal = *answered.borrow() + count;
        answered.wait_for(|answered| *answered >= goal).await.expect("the product lives");
    }

    /// Waits until a caller was turned away with a 503.
    pub async fn somebody_is_turned_away(&self) {
        let mut turned_away = self.product.turned_away.subscribe();
        turned_away.changed().await.expect("the product lives");
    }

    /// Sends no more; every run under way is answered, or the daemon is gone.
    pub async fn end(mut self) {
        self.stop.cancel();
        while let Some(caller) = self.callers.join_next().await {
            caller.expect("no caller is surprised");
        }
    }
}

async fn call(product: Product, api: Api, caller: usize, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let run = product.next(caller);
        loop {
            let Ok(reply) = api.call("POST", "/v1/check", &run.body()).await else { return };
            match reply.status {
                200 => {
                    product.note(&run, reply.body);
                    break;
                }
                // Whether it was counted is not known: the same key again.
                503 => {
                    product.turned_away.send_modify(|n| *n += 1);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                _ => panic!("{run:?}: {reply:?}"),
            }
        }
    }
}

/// One counter, and the same number from two other tables.
#[derive(Debug)]
struct Account {
    customer: String,
    feature: String,
    usage: i64,
    /// The sum of its usage events.
    events: i64,
    /// The sum of its meter events and the open window.
    metered: i64,
}

async fn accounts(url: &str) -> Vec<Account> {
    install_default_drivers();
    let mut connection = AnyConnection::connect(url).await.expect("the database is there");
    let rows = sqlx::query(
        "SELECT customer_id, feature_id, usage_units, \
         (SELECT CAST(COALESCE(SUM(counted_units), 0) AS BIGINT) FROM usage_events AS e \
          WHERE e.customer_id = c.customer_id AND e.feature_id = c.feature_id \
          AND e.series = c.series AND e.period_start_ms = c.period_start_ms) AS events, \
         (SELECT CAST(COALESCE(SUM(units), 0) AS BIGINT) FROM meter_events AS m \
          WHERE m.customer_id = c.customer_id AND m.feature_id = c.feature_id \
          AND m.series = c.series AND m.period_start_ms = c.period_start_ms) \
         + COALESCE(open_units, 0) AS metered \
         FROM usage_counters AS c",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the books can be read");
    rows.iter()
        .map(|row| Account {
            customer: row.get("customer_id"),
            feature: row.get("feature_id"),
            usage: row.get("usage_units"),
            events: row.get("events"),
            metered: row.get("metered"),
        })
        .collect()
}
