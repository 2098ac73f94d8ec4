//! Invariant I16: no secret and nothing personal in what the daemon writes, not even at `trace`,
//! where the libraries talk too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tollgate::clock::Clock;
use tollgate::sim::Simulator;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Api, Finished, Machine, wait_for};
use crate::harness::smtp_sink::{Fault, SmtpSink};
use crate::harness::stripe::{monthly, simulator};

const API_KEY: &str = "canary-api-key-0123456789";
const ADMIN_TOKEN: &str = "canary-admin-token-0123456789";
const SIGNING_KEY: &str = "canary-signing-key-0123456789";
const STRIPE_KEY: &str = "sk_test_canarystripekey0123456789";
const WEBHOOK_SECRET: &str = "whsec_canarywebhooksecret0123456789";
const SMTP_PASSWORD: &str = "canarysmtppassword0123456789";
const DATABASE_PASSWORD: &str = "canarydatabasepassword0123456789";
const NAME: &str = "Canary Lovelace";
const EMAIL: &str = "canary.ada@acme.example";
const REFUSED_EMAIL: &str = "canary.bob@acme.example";

/// Soon used up, and everything by the clock every second.
fn plans() -> String {
    let mut plans = include_str!("../../plans.example.toml").to_owned();
    for (from, to) in [
        ("granted = 200,", "granted = 10,"),
        ("window = \"5m\"", "window = \"1s\""),
        ("notices = \"* * * * *\"", "notices = \"* * * * * *\""),
        ("meter_events = \"*/5 * * * *\"", "meter_events = \"* * * * * *\""),
        ("post_upgrade_delay = \"24h\"", "post_upgrade_delay = \"1s\""),
    ] {
        assert!(plans.contains(from), "{from}");
        plans = plans.replace(from, to);
    }
    plans
}

/// The daemon's surroundings, every secret of them a canary.
struct Surroundings {
    stripe: Simulator,
    mail: SmtpSink,
    machine: Machine,
}

impl Surroundings {
    async fn of(db: &TestDb) -> Self {
        let stripe = simulator(Clock::system(), STRIPE_KEY).await;
        let prices = [monthly("starter_monthly", 2900), monthly("pro_monthly", 9900)];
        stripe.seed_catalog(&prices, &["ai_runs"]).expect("the catalog is seeded");
        let mail = SmtpSink::start().await;
        let mut machine = Machine::on(db);
        machine.write("plans.toml", &plans());
        let login = format!("smtp://postman:{SMTP_PASSWORD}@");
        for (variable, value) in [
            // A server that trusts us takes any password.
            (
                "DATABASE_URL",
                db.url.replace("postgres@", &format!("postgres:{DATABASE_PASSWORD}@")),
            ),
            ("TOLLGATE_API_KEY", API_KEY.to_owned()),
            ("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN.to_owned()),
            ("TOLLGATE_SIGNING_KEY", SIGNING_KEY.to_owned()),
            ("STRIPE_SECRET_KEY", STRIPE_KEY.to_owned()),
            ("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET.to_owned()),
            ("STRIPE_API_BASE", stripe.base_url()),
            ("SMTP_URL", mail.url().replace("smtp://", &login)),
            ("MAIL_FROM", "billing@example.com".to_owned()),
            ("RUST_LOG", "trace".to_owned()),
        ] {
            machine.set(variable, &value);
        }
        Self { stripe, mail, machine }
    }

    async fn stripe(&self, path: &str, form: &str) -> Value {
        let request = reqwest::Client::new()
            .post(format!("{}{path}", self.stripe.base_url()))
            .bearer_auth(STRIPE_KEY)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.to_owned());
        let answer = request.send().await.expect("the simulator answers").text().await;
        serde_json::from_str(&answer.expect("a whole body")).expect("JSON")
    }

    async fn price(&self, api: &str) -> String {
        let url = format!("{}/v1/prices?lookup_keys[]={api}", self.stripe.base_url());
        let request = reqwest::Client::new().get(url).bearer_auth(STRIPE_KEY);
        let found = request.send().await.expect("the simulator answers").text().await;
        let found: Value = serde_json::from_str(&found.expect("a whole body")).expect("JSON");
        text(&found["data"][0]["id"])
    }

    async fn mails(&self, count: usize) {
        wait_for("the mails", async || (self.mail.mails().len() >= count).then_some(())).await;
    }

    /// Ada subscribes, uses up her plan, is told so, upgrades, is told that too; support looks.
    async fn ada_lives(&self, api: &Api) {
        let form = format!(
            "email={EMAIL}&name={NAME}&payment_method=pm_card_visa\
             &invoice_settings[default_payment_method]=pm_card_visa"
        );
        let stripe_id = text(&self.stripe("/v1/customers", &form).await["id"]);
        let body = json!({"email": EMAIL, "name": NAME, "stripe_customer_id": stripe_id});
        api.call_as(API_KEY, "PUT", "/v1/customers/ada", &body).await.unwrap().ok();
        let price = self.price("starter_monthly").await;
        let form = format!("customer={stripe_id}&items[0][price]={price}");
        let subscription = self.stripe("/v1/subscriptions", &form).await;
        self.ada_is_on(api, "starter").await;
        for (runs, mails) in [(8, 1), (3, 2)] {
            for _ in 0..runs {
                run(api, "ada").await;
            }
            self.mails(mails).await;
        }
        let price = self.price("pro_monthly").await;
        let item = text(&subscription["items"]["data"][0]["id"]);
        let path = format!("/v1/subscriptions/{}", text(&subscription["id"]));
        self.stripe(&path, &format!("items[0][id]={item}&items[0][price]={price}")).await;
        self.ada_is_on(api, "pro").await;
        run(api, "ada").await;
        self.mails(3).await;
        let sync = "/admin/api/v1/customers/ada/sync";
        api.call_as(ADMIN_TOKEN, "POST", sync, &Value::Null).await.unwrap().ok();
        wait_for("the usage at Stripe", async || {
            (self.stripe.sum_of(&stripe_id, "ai_runs").to_string() == "11").then_some(())
        })
        .await;
    }

    async fn ada_is_on(&self, api: &Api, plan: &str) {
        wait_for(plan, async || {
            let ada = api.call_as(API_KEY, "GET", "/v1/customers/ada", &Value::Null).await;
            let ada = ada.unwrap().ok();
            (ada["plan_id"] == plan && ada["subscription"]["status"] == "active").then_some(())
        })
        .await;
    }

    /// The server refuses Bob's mail and repeats his address in its refusal.
    async fn bob_cannot_be_reached(&self, api: &Api) {
        self.mail.set_fault(Fault::Rcpt("550 5.1.1 <canary.bob@acme.example> is unknown here"));
        let body = json!({"email": REFUSED_EMAIL, "name": NAME});
        api.call_as(API_KEY, "PUT", "/v1/customers/bob", &body).await.unwrap().ok();
        for _ in 0..10 {
            run(api, "bob").await;
        }
        wait_for("the refusal", async || {
            let path = "/admin/api/v1/notices?customer_id=bob&state=failed";
            let failed = api.call_as(ADMIN_TOKEN, "GET", path, &Value::Null).await.unwrap().ok();
            (!failed["data"].as_array().unwrap().is_empty()).then_some(())
        })
        .await;
    }
}

async fn run(api: &Api, customer: &str) -> Value {
    let body = json!({
        "customer_id": customer, "feature_id": "ai_runs", "send_event": true,
        "properties": {"model": "canary-model"},
    });
    api.call_as(API_KEY, "POST", "/v1/check", &body).await.unwrap().ok()
}

/// Requests that are refused, with something in them that must not come out in a log.
async fn strangers_knock(api: &Api) {
    let mail = json!({"email": EMAIL});
    for (key, method, path, body, status) in [
        (API_KEY, "PUT", "/v1/customers/ada", json!({"email": [EMAIL]}), 400),
        (API_KEY, "PUT", "/v1/customers/ada", json!({"email": EMAIL, NAME: 1}), 400),
        (API_KEY, "PUT", "/v1/customers/canary%00", mail.clone(), 422),
        (API_KEY, "POST", "/v1/check", json!({"customer_id": EMAIL, "feature_id": NAME}), 422),
        (API_KEY, "GET", "/admin/api/v1/audit", Value::Null, 403),
        (ADMIN_TOKEN, "PUT", "/v1/customers/ada", mail.clone(), 403),
        ("canary-wrong-key", "PUT", "/v1/customers/ada", mail.clone(), 401),
        (API_KEY, "POST", "/webhooks/stripe", mail, 400),
        (API_KEY, "GET", "/upgrade?token=canary-token", Value::Null, 400),
    ] {
        let reply = api.call_as(key, method, path, &body).await.unwrap();
        assert!(reply.status / 100 == 4, "{path}: {reply:?} is not {status}");
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn assert_silent(finished: &Finished, canaries: &[String]) {
    let said = format!("{}{}", finished.stdout, finished.stderr).to_lowercase();
    for canary in canaries {
        let canary = canary.to_lowercase();
        if let Some(at) = said.find(&canary) {
            let line = said[..at].rfind('\n').map_or(0, |start| start + 1);
            let line = said[line..].lines().next().unwrap_or_default();
            panic!("{canary} is in the log:\n{}", &line.chars().take(2000).collect::<String>());
        }
    }
}

both_databases! {
    async fn no_secret_and_nothing_personal_is_in_the_log_even_at_trace(db: TestDb) {
        let mut surroundings = Surroundings::of(&db).await;
        let made = surroundings.machine.run(&["keys", "create", "--json"]).await;
        let made_key = text(&serde_json::from_str::<Value>(&made.stdout).unwrap()["key"]);
        let daemon = surroundings.machine.serve().await;
        let endpoint = daemon.api.url("/webhooks/stripe");
        surroundings.stripe.add_webhook_endpoint(&endpoint, WEBHOOK_SECRET);
        surroundings.ada_lives(&daemon.api).await;
        surroundings.bob_cannot_be_reached(&daemon.api).await;
        strangers_knock(&daemon.api).await;
        let body = json!({"customer_id": "bob", "feature_id": "ai_runs"});
        let reply = daemon.api.call_as(&made_key, "POST", "/v1/check", &body).await.unwrap().ok();
        let token = text(&reply["upgrade"]["url"]).split_once("token=").expect("a token").1.to_owned();
        surroundings.mail.set_fault(None);

        let finished = daemon.stop().await;
        assert!(finished.stderr.contains("DEBUG") && finished.stderr.contains("TRACE"));
        let login = STANDARD.encode(format!("\0postman\0{SMTP_PASSWORD}"));
        let signed = [made_key, token, login, EMAIL.replace('@', "%40"), NAME.replace(' ', "+")];
        let canaries = signed.into_iter().chain(["canary".to_owned()]).collect::<Vec<_>>();
        assert_silent(&finished, &canaries);
        let pushed = surroundings.machine.run(&["stripe", "push"]).await;
        assert_eq!(pushed.code, Some(0), "{pushed:?}");
        assert_silent(&pushed, &canaries);
        let secrets = pushed.stdout.rsplit_once("STRIPE_WEBHOOK_SECRET=").expect("it tells them").1;
        let secrets = secrets.lines().next().expect("a line");
        surroundings.machine.set("STRIPE_WEBHOOK_SECRET", secrets);
        let examined = surroundings.machine.run(&["doctor"]).await;
        assert_eq!(examined.code, Some(0), "{examined:?}");
        assert_silent(&examined, &canaries);
    }
}
