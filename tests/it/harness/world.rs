//! A whole daemon on real HTTP, with a Stripe simulator, a mail server and a clock that stands
//! still until it is told to move.
//!
//! Jobs are driven by [`World::settle`], which [`World::advance`] and the Stripe helpers call: so a
//! story's next line finds everything done that was due, and no test waits for a loop.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::cli::start::{Drive, Running, StartError, start};
use tollgate::clock::{Clock, Timestamp};
use tollgate::config::Config;
use tollgate::domain::usage::MAX_QUANTITY;
use tollgate::entropy::Entropy;
use tollgate::gate::quotas::{self, Change, ChangeError};
use tollgate::jobs::Job;
use tollgate::sim::Simulator;

use super::judge;
use super::postgres::TestDb;
use super::smtp_sink::SmtpSink;
use super::stripe::{METER_EVENTS, monthly, simulator};

pub const API_KEY: &str = "api-key-of-the-tests-0123";
pub const ADMIN_TOKEN: &str = "admin-token-of-the-tests-0123";
pub const STRIPE_KEY: &str = "sk_test_of_the_tests";
pub const WEBHOOK_SECRET: &str = "whsec_of_the_tests";
/// Where every story begins.
pub const START: &str = "2026-11-01T09:00:00Z";
/// Steps of one job that must be enough for any story; more means that it never ends.
const STEPS: usize = 100;

/// An answer over HTTP.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
}

impl Reply {
    /// The error's code and param, as `code` or `code: param`.
    pub fn error(&self) -> String {
        let error = &self.body["error"];
        match error["param"].as_str() {
            Some(param) => format!("{}: {param}", error["code"].as_str().unwrap_or_default()),
            None => error["code"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// The body of a reply that must be a 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }
}

/// The daemon and everything around it.
pub struct World {
    pub clock: Clock,
    pub sim: Simulator,
    pub mail: SmtpSink,
    pub config: Config,
    pub http: reqwest::Client,
    running: Option<Running>,
    files: TempDir,
    database_url: String,
}

impl World {
    /// A daemon on this database with the example's plans, at [`START`].
    pub async fn start(db: &TestDb) -> Self {
        Self::with_plans(db, include_str!("../../../plans.example.toml")).await
    }

    /// The same with other plans.
    pub async fn with_plans(db: &TestDb, plans: &str) -> Self {
        Self::with_plans_at(db, plans, START).await
    }

    /// The same at another moment: commands that run as processes have the machine's clock, and to
    /// them this must be past.
    pub async fn with_plans_at(db: &TestDb, plans: &str, start: &str) -> Self {
        let clock = Clock::manual(start.parse().expect("start is a time"));
        let sim = simulator(clock.clone(), STRIPE_KEY).await;
        let plans_prices =
            [("starter_monthly", 2900), ("pro_monthly", 9900), ("team_monthly", 39900)];
        let prices = plans_prices.map(|(lookup_key, minor)| monthly(lookup_key, minor));
        sim.seed_catalog(&prices, &["ai_runs"]).expect("the catalog is seeded");
        let mail = SmtpSink::start().await;
        let files = tempfile::tempdir().expect("a folder for the plans file");
        std::fs::write(files.path().join("plans.toml"), plans).expect("the plans file is written");
        let config = config(&db.url, &sim, &mail, &files, &[]);
        let mut world = Self {
            clock,
            sim,
            mail,
            config,
            http: reqwest::Client::new(),
            running: None,
            files,
            database_url: db.url.clone(),
        };
        world.boot().await;
        world.sim.add_webhook_endpoint(&world.url("/webhooks/stripe"), WEBHOOK_SECRET);
        world
    }

    async fn boot(&mut self) {
        self.boot_with(Drive::Steps).await;
    }

    async fn boot_with(&mut self, drive: Drive) {
        let running = self.start_daemon(&self.config, self.clock.clone(), drive).await;
        // The same address after a restart, because Stripe keeps calling it.
        self.config.listen = running.address;
        self.running = Some(running);
    }

    /// Stops the daemon in good order and starts it again on the same database.
    pub async fn restart(&mut self) {
        self.running().stop().await.expect("the daemon stops in good order");
        self.boot().await;
    }

    /// Restarts with these environment variables changed.
    pub async fn restart_with(&mut self, changes: &[(&str, &str)]) {
        self.running().stop().await.expect("the daemon stops in good order");
        let listen = self.config.listen;
        self.config = config(&self.database_url, &self.sim, &self.mail, &self.files, changes);
        self.config.listen = listen;
        self.boot().await;
    }

    /// Stops the daemon in good order; [`World::try_boot`] starts it again.
    pub async fn stop(&mut self) {
        self.running().stop().await.expect("the daemon stops in good order");
    }

    /// Starts the daemon, which may refuse.
    pub async fn try_boot(&mut self) -> Result<(), StartError> {
        let clock = self.clock.clone();
        self.running = Some(start(&self.config, clock, Entropy::system(), Drive::Steps).await?);
        Ok(())
    }

    /// Restarts with the jobs in their own loops, which follow the clock by themselves.
    pub async fn restart_with_loops(&mut self) {
        self.running().stop().await.expect("the daemon stops in good order");
        self.boot_with(Drive::Loops).await;
    }

    /// A second daemon on the same database, on a port and by a clock of its own. SQLite's file
    /// belongs to one process, so only PostgreSQL has it.
    pub async fn replica(&self, clock: Clock) -> Running {
        let mut config = self.config.clone();
        config.listen = "127.0.0.1:0".parse().expect("an address");
        self.start_daemon(&config, clock, Drive::Steps).await
    }

    async fn start_daemon(&self, config: &Config, clock: Clock, drive: Drive) -> Running {
        let running = start(config, clock, Entropy::system(), drive).await;
        running.unwrap_or_else(|error| panic!("the daemon does not start: {error:?}"))
    }

    fn running(&mut self) -> Running {
        self.running.take().expect("the daemon runs")
    }

    pub fn app(&self) -> &tollgate::app::App {
        &self.running.as_ref().expect("the daemon runs").app
    }

    /// The path of the plans file, for stories in which it changes.
    pub fn plans_file(&self) -> std::path::PathBuf {
        self.files.path().join("plans.toml")
    }

    /// Where runs are written down while the database cannot answer.
    pub fn outage_journal(&self) -> std::path::PathBuf {
        self.files.path().join("tollgate.outage")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.config.listen)
    }

    // --- time and jobs --------------------------------------------------------------------------

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Moves the clock and does what is due then.
    pub async fn advance(&self, by: Duration) {
        self.clock.advance(by).expect("a manual clock");
        self.settle().await;
    }

    /// Moves the clock to a moment and does what is due then.
    pub async fn advance_to(&self, moment: &str) {
        let moment: Timestamp = moment.parse().expect("a time");
        self.advance(moment.since(self.now())).await;
    }

    /// Delivers webhooks and runs every job until nothing is due at this moment.
    pub async fn settle(&self) {
        for _ in 0..3 {
            self.sim.deliver_pending().await;
            for job in Job::ALL {
                self.run_job(job).await;
            }
        }
    }

    /// Runs one job until it has nothing more to do.
    pub async fn run_job(&self, job: Job) {
        for _ in 0..STEPS {
            let progress = job.step(self.app()).await;
            match progress {
                Ok(progress) if progress.more => {}
                Ok(_) => return,
                Err(error) => panic!("{} fails: {error:#}", job.name()),
            }
        }
        panic!("{} never ends", job.name());
    }

    // --- the product ----------------------------------------------------------------------------

    /// Calls the API with the product's key.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.call_as(API_KEY, method, path, body).await
    }

    /// Calls the API with any key; no body if it is null.
    pub async fn call_as(&self, key: &str, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.call_raw(key, method, path, body).await
    }

    /// Calls the API with any bytes for a body.
    pub async fn call_raw(&self, key: &str, method: &str, path: &str, body: Vec<u8>) -> Reply {
        let method: reqwest::Method = method.parse().expect("a method");
        let request = self.http.request(method, self.url(path)).bearer_auth(key).body(body);
        reply(request.send().await.expect("the daemon answers")).await
    }

    /// Creates a customer with an address of its own.
    pub async fn customer(&self, id: &str) -> Value {
        let body = json!({"email": format!("{id}@example.com"), "name": format!("{id} Inc")});
        self.call("PUT", &format!("/v1/customers/{id}"), &body).await.ok()
    }

    /// Asks without counting.
    pub async fn check(&self, customer: &str) -> Value {
        let body = json!({"customer_id": customer, "feature_id": "ai_runs"});
        self.call("POST", "/v1/check", &body).await.ok()
    }

    /// Whether a run is allowed now and why, uncounted: `true within_limit`.
    pub async fn gate(&self, customer: &str) -> String {
        let answer = self.check(customer).await;
        format!("{} {}", answer["allowed"], answer["reason"].as_str().expect("a reason"))
    }

    /// Asks and counts one run.
    pub async fn run(&self, customer: &str) -> Value {
        let body = json!({"customer_id": customer, "feature_id": "ai_runs", "send_event": true});
        self.call("POST", "/v1/check", &body).await.ok()
    }

    /// Runs that must all be allowed, counted in one step.
    pub async fn runs(&self, customer: &str, count: i64) -> Value {
        assert!(count <= MAX_QUANTITY);
        let body = json!({
            "customer_id": customer, "feature_id": "ai_runs", "send_event": true, "required_balance": count,
        });
        let answer = self.call("POST", "/v1/check", &body).await.ok();
        assert_eq!(answer["allowed"], true, "{answer}");
        answer
    }

    /// Holds units for a run, which must be allowed; answers the reservation's id.
    pub async fn reserve(&self, customer: &str, units: i64, seconds: i64) -> String {
        let answer = self.call("POST", "/v1/check", &reserve(customer, units, seconds)).await.ok();
        assert_eq!(answer["allowed"], true, "{answer}");
        answer["reservation"]["id"].as_str().expect("a hold has an id").to_owned()
    }

    /// Counts a run whose units were held.
    pub async fn commit(&self, reservation_id: &str, body: &Value) -> Reply {
        self.call("POST", &format!("/v1/reservations/{reservation_id}/commit"), body).await
    }

    /// Gives back what was held.
    pub async fn release(&self, reservation_id: &str) -> Reply {
        let path = format!("/v1/reservations/{reservation_id}/release");
        self.call("POST", &path, &Value::Null).await
    }

    pub async fn usage(&self, customer: &str) -> i64 {
        self.check(customer).await["balance"]["usage"].as_i64().expect("usage is a number")
    }

    // --- support --------------------------------------------------------------------------------

    /// Changes what is particular to a customer; answers whether that changed anything.
    pub async fn change(&self, customer: &str, change: Change) -> Result<bool, ChangeError> {
        let customer_id = customer.parse().expect("a customer's id");
        quotas::change(self.app(), &customer_id, "support", change).await
    }

    /// Calls the admin API.
    pub async fn admin(&self, method: &str, path: &str) -> Reply {
        self.call_as(ADMIN_TOKEN, method, &format!("/admin/api/v1{path}"), &Value::Null).await
    }

    /// The rows of an admin list.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        self.admin("GET", path).await.ok()["data"].as_array().expect("a list").clone()
    }

    // --- Stripe ---------------------------------------------------------------------------------

    /// Calls the simulator as someone with the account's key would.
    pub async fn stripe(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Value {
        let method: reqwest::Method = method.parse().expect("a method");
        let request = self
            .http
            .request(method, format!("{}{path}", self.sim.base_url()))
            .bearer_auth(STRIPE_KEY)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form_body(form));
        let reply = reply(request.send().await.expect("the simulator answers")).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.body
    }

    pub async fn price(&self, lookup_key: &str) -> String {
        let found =
            self.stripe("GET", &format!("/v1/prices?lookup_keys[]={lookup_key}"), &[]).await;
        found["data"][0]["id"].as_str().expect("the price is seeded").to_owned()
    }

    /// Creates a Stripe customer with a card that works; answers its id.
    pub async fn stripe_customer(&self, form: &[(&str, &str)]) -> String {
        let card = ("invoice_settings[default_payment_method]", "pm_card_visa");
        let form = [form, &[("payment_method", "pm_card_visa"), card]].concat();
        let made = self.stripe("POST", "/v1/customers", &form).await;
        made["id"].as_str().expect("an id").to_owned()
    }

    /// Creates a Stripe customer with a card and ties the customer to it.
    pub async fn link(&self, customer: &str) -> String {
        let email = format!("{customer}@example.com");
        let stripe_id = self.stripe_customer(&[("email", &email)]).await;
        let body = json!({"stripe_customer_id": stripe_id, "email": email});
        self.call("PUT", &format!("/v1/customers/{customer}"), &body).await.ok();
        self.settle().await;
        stripe_id
    }

    /// A customer on the default plan who is tied to Stripe; answers its Stripe id.
    pub async fn linked(&self, customer: &str) -> String {
        self.customer(customer).await;
        self.link(customer).await
    }

    /// A customer with a subscription; answers its ids at Stripe.
    pub async fn subscriber(&self, customer: &str, lookup_key: &str) -> (String, String) {
        let stripe_id = self.linked(customer).await;
        let subscription = self.subscribe(&stripe_id, lookup_key).await;
        (stripe_id, subscription)
    }

    /// Changes a subscription at Stripe, and the webhooks arrive.
    pub async fn change_subscription(&self, subscription_id: &str, form: &[(&str, &str)]) {
        self.stripe("POST", &format!("/v1/subscriptions/{subscription_id}"), form).await;
        self.settle().await;
    }

    /// Usage that somebody else reports to Stripe, at this moment.
    pub async fn report_by_hand(&self, stripe_id: &str, units: &str) {
        let now = self.now().seconds().to_string();
        let form = [
            ("event_name", "ai_runs"),
            ("payload[stripe_customer_id]", stripe_id),
            ("payload[value]", units),
            ("timestamp", now.as_str()),
        ];
        self.stripe("POST", METER_EVENTS, &form).await;
    }

    /// Gives a Stripe customer a subscription and lets the webhooks arrive; answers its id.
    pub async fn subscribe(&self, stripe_id: &str, lookup_key: &str) -> String {
        let price = self.price(lookup_key).await;
        let form = [("customer", stripe_id), ("items[0][price]", price.as_str())];
        let subscription = self.stripe("POST", "/v1/subscriptions", &form).await;
        self.settle().await;
        subscription["id"].as_str().expect("an id").to_owned()
    }

    /// Changes a subscription's price in Stripe, without anything arriving here yet.
    pub async fn change_price_quietly(&self, subscription_id: &str, lookup_key: &str) {
        let path = format!("/v1/subscriptions/{subscription_id}");
        let subscription = self.stripe("GET", &path, &[]).await;
        let item = subscription["items"]["data"][0]["id"].as_str().expect("an item").to_owned();
        let price = self.price(lookup_key).await;
        self.stripe("POST", &path, &[("items[0][id]", &item), ("items[0][price]", &price)]).await;
    }

    /// The same, and the webhooks arrive.
    pub async fn change_price(&self, subscription_id: &str, lookup_key: &str) {
        self.change_price_quietly(subscription_id, lookup_key).await;
        self.settle().await;
    }

    /// All units that Stripe has counted for a Stripe customer.
    pub fn billed(&self, stripe_id: &str) -> String {
        self.sim.sum_of(stripe_id, "ai_runs").to_string()
    }

    // --- mail -----------------------------------------------------------------------------------

    /// The subjects of the mails received so far, in order.
    pub fn subjects(&self) -> Vec<String> {
        self.mail.mails().into_iter().map(|mail| mail.subject).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        judge::hold(&self.sim);
    }
}

/// What asks for units of `ai_runs` to be held.
pub fn reserve(customer: &str, units: i64, seconds: i64) -> Value {
    json!({
        "customer_id": customer, "feature_id": "ai_runs", "required_balance": units,
        "reserve": {"expires_in_seconds": seconds},
    })
}

fn config(
    database_url: &str,
    sim: &Simulator,
    mail: &SmtpSink,
    files: &TempDir,
    changes: &[(&str, &str)],
) -> Config {
    let plans = files.path().join("plans.toml").display().to_string();
    let (stripe_base, smtp_url) = (sim.base_url(), mail.url());
    let journal = files.path().join("tollgate.outage").display().to_string();
    let mut env: BTreeMap<String, String> = [
        ("DATABASE_URL", database_url),
        ("TOLLGATE_LISTEN", "127.0.0.1:0"),
        ("TOLLGATE_PUBLIC_URL", "https://billing.example.com"),
        ("TOLLGATE_PLANS", &plans),
        ("TOLLGATE_OUTAGE_JOURNAL", &journal),
        ("TOLLGATE_API_KEY", API_KEY),
        ("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN),
        ("STRIPE_SECRET_KEY", STRIPE_KEY),
        ("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ("STRIPE_API_BASE", &stripe_base),
        ("SMTP_URL", &smtp_url),
        ("MAIL_FROM", "Example <billing@example.com>"),
    ]
    .into_iter()
    .chain(changes.iter().copied())
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    env.retain(|_, value| !value.is_empty());
    Config::load(&env, None).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// Reads a response whole.
pub async fn reply(response: reqwest::Response) -> Reply {
    let status = response.status().as_u16();
    let text = response.text().await.expect("a whole body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Reply { status, body }
}

/// A form as Stripe takes it.
pub fn form_body(form: &[(&str, &str)]) -> String {
    let pairs: Vec<_> =
        form.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    pairs.join("&")
}

/// Percent-encodes a form value.
fn encode(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
