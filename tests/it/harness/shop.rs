//! A machine with a key to a simulated Stripe account, for the commands that provision and examine
//! it. The account is new: nothing stands in it.

use std::net::TcpListener;

use serde_json::{Value, json};
use tollgate::clock::Clock;
use tollgate::sim::Simulator;

use super::judge;
use super::postgres::TestDb;
use super::process::{Finished, Machine};
use super::stripe::simulator;
use super::world::STRIPE_KEY;

pub struct Shop {
    pub sim: Simulator,
    pub machine: Machine,
    key: String,
    /// Where the daemon listens, and Stripe sends to.
    pub address: String,
}

impl Shop {
    pub async fn open(db: &TestDb) -> Self {
        Self::open_at(db, Clock::system(), STRIPE_KEY).await
    }

    /// The same with a clock of Stripe's own, and any key.
    pub async fn open_at(db: &TestDb, clock: Clock, key: &str) -> Self {
        let sim = simulator(clock, key).await;
        let mut machine = Machine::on(db);
        let address = free_address();
        machine.set("STRIPE_SECRET_KEY", key);
        machine.set("STRIPE_API_BASE", &sim.base_url());
        machine.set("TOLLGATE_LISTEN", &address);
        machine.set("TOLLGATE_PUBLIC_URL", &format!("http://{address}"));
        Self { sim, machine, key: key.to_owned(), address }
    }

    pub async fn push(&self, args: &[&str]) -> Finished {
        self.machine.run(&[&["stripe", "push"], args].concat()).await
    }

    /// What `stripe push --json` says when it succeeds.
    #[track_caller]
    pub fn pushed(finished: &Finished) -> Value {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        serde_json::from_str(&finished.stdout).expect("JSON")
    }

    /// Pushes and hands the signing secrets to the daemon.
    pub async fn provision(&mut self) {
        let pushed = Self::pushed(&self.push(&["--json"]).await);
        let secrets = pushed["secrets"].as_array().expect("a list").iter();
        let secrets: Vec<&str> = secrets.map(|s| s["secret"].as_str().expect("text")).collect();
        self.machine.set("STRIPE_WEBHOOK_SECRET", &secrets.join(","));
    }

    /// Changes the plans file.
    pub fn edit_plans(&self, from: &str, to: &str) {
        let file = self.machine.path("plans.toml");
        let text = std::fs::read_to_string(file).expect("the plans file");
        assert!(text.contains(from), "{from} is not in the plans file");
        self.machine.write("plans.toml", &text.replace(from, to));
    }

    /// Calls Stripe as its owner does in the Dashboard; the answer must be a 200.
    pub async fn stripe(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Value {
        let mut url =
            reqwest::Url::parse(&format!("{}{path}", self.sim.base_url())).expect("a URL");
        let method: reqwest::Method = method.parse().expect("a method");
        let mut request = reqwest::Client::new().request(method.clone(), url.clone());
        if method == reqwest::Method::GET {
            url.query_pairs_mut().extend_pairs(form);
            request = reqwest::Client::new().request(method, url);
        } else {
            let mut encoded = reqwest::Url::parse("http://form/").expect("a URL");
            encoded.query_pairs_mut().extend_pairs(form);
            let body = encoded.query().unwrap_or_default().to_owned();
            let form = "application/x-www-form-urlencoded";
            request = request.header("content-type", form).body(body);
        }
        let answer = request.bearer_auth(&self.key).send().await.expect("the simulator answers");
        let (status, text) = (answer.status().as_u16(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    pub async fn rows(&self, path: &str) -> Vec<Value> {
        let list = self.stripe("GET", path, &[("limit", "100")]).await;
        list["data"].as_array().expect("a list").clone()
    }

    /// The price that has the lookup key.
    pub async fn price(&self, lookup_key: &str) -> Value {
        let found = self.stripe("GET", "/v1/prices", &[("lookup_keys[]", lookup_key)]).await;
        found["data"][0].clone()
    }

    /// How many calls have changed something at Stripe, or tried to.
    pub fn writes(&self) -> usize {
        self.sim.requests().iter().filter(|request| request.method != "GET").count()
    }

    /// What `doctor` finds, as what, level and detail.
    pub async fn examined(&self) -> Vec<(String, String, String)> {
        let examined = self.machine.run(&["doctor", "--json"]).await;
        let findings: Value = serde_json::from_str(&examined.stdout).expect("JSON");
        let findings = findings.as_array().expect("a list").clone();
        let faults = findings.iter().any(|finding| finding["ok"] == json!(false));
        assert_eq!(examined.code, Some(i32::from(faults)), "{examined:?}");
        let text = |finding: &Value, field: &str| finding[field].as_str().expect("text").to_owned();
        findings.iter().map(|f| (text(f, "what"), text(f, "level"), text(f, "detail"))).collect()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        judge::hold(&self.sim);
    }
}

/// An address that was free a moment ago: it has to be known before the daemon listens.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has an address").to_string()
}
