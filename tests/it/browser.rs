//! What customers and founders see: the mails, the pages they lead to and the report, in a real
//! Chromium, each on a phone and on a desktop, in light and in dark.

use std::time::Duration;

use serde_json::json;
use tollgate::sim::Card;

use crate::harness::browser::Browser;
use crate::harness::postgres::TestDb;
use crate::harness::world::{ADMIN_TOKEN, World};

const PLANS: &str = include_str!("../../plans.example.toml");
const NONE: [&str; 0] = [];

/// A daemon that is reached at the address its links begin with, and a browser that may ask it and
/// Stripe's pages.
struct Scene {
    world: World,
    browser: Browser,
    _db: TestDb,
}

impl Scene {
    async fn open() -> Self {
        Self::with_plans(PLANS).await
    }

    async fn with_plans(plans: &str) -> Self {
        let db = TestDb::sqlite();
        let mut world = World::with_plans(&db, plans).await;
        let address = world.url("");
        world.restart_with(&[("TOLLGATE_PUBLIC_URL", &address)]).await;
        let browser = Browser::start(&[&address, &world.sim.base_url()]);
        Self { world, browser, _db: db }
    }

    /// A customer with runs, and the mail that is due, if any.
    async fn with_runs(&self, customer: &str, runs: i64) {
        self.world.customer(customer).await;
        self.world.runs(customer, runs).await;
        self.world.settle().await;
    }

    /// The way up that the answer names to a run that is denied.
    async fn way_up(&self, customer: &str) -> String {
        let denied = self.world.run(customer).await;
        denied["upgrade"]["url"].as_str().expect("a denial names the way up").to_owned()
    }

    /// Opens the newest mail as its reader would.
    async fn open_mail(&self) {
        self.browser.show(&self.world.mail.mail().html).await;
    }

    /// Claims that a person can read all this on the page, and that nothing is wrong with it.
    async fn reads(&self, facts: &[&str]) {
        let text = self.browser.text().await;
        for fact in facts {
            assert!(text.contains(fact), "no {fact:?} in {text}");
        }
        assert_eq!(self.browser.faults().await, NONE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nudge_leads_from_the_mail_to_the_way_up() {
    let scene = Scene::open().await;
    scene.with_runs("acme", 160).await;
    scene.open_mail().await;
    assert_eq!(scene.browser.buttons().await, ["Upgrade to Pro"]);
    scene
        .reads(&["You've used 80% of your AI runs this month.", "unlimited runs for $99/month"])
        .await;
    assert_eq!(scene.browser.follow("Upgrade to Pro").await, 200);
    assert!(scene.browser.address().await.starts_with(&scene.world.url("/upgrade?token=")));
    scene.reads(&["Starter", "AI runs", "160 of 200 used", "Pro gives you unlimited runs"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mail_at_the_cap_and_the_denied_answer_lead_to_the_same_page() {
    let scene = Scene::open().await;
    scene.with_runs("acme", 200).await;
    scene.open_mail().await;
    assert_eq!(scene.browser.buttons().await, ["Upgrade to Pro"]);
    scene.reads(&["You've used all of your AI runs this month."]).await;
    assert_eq!(scene.browser.follow("Upgrade to Pro").await, 200);
    let from_mail = scene.browser.text().await;

    assert_eq!(scene.browser.open(&scene.way_up("acme").await).await, 200);
    assert_eq!(scene.browser.text().await, from_mail);
    scene.reads(&["200 of 200 used"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mail_after_an_upgrade_leads_to_the_usage() {
    let scene = Scene::open().await;
    scene.world.customer("acme").await;
    let acme = scene.world.link("acme").await;
    scene.world.subscribe(&acme, "pro_monthly").await;
    scene.world.runs("acme", 1500).await;
    scene.world.advance(Duration::from_secs(86_400)).await;
    scene.open_mail().await;
    assert_eq!(scene.browser.buttons().await, ["View usage"]);
    scene.reads(&["Your AI runs are now uncapped.", "Invite up to five teammates"]).await;
    assert_eq!(scene.browser.follow("View usage").await, 200);
    scene.reads(&["Pro", "1,500 of 2,000 used"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_pays_on_stripes_page_and_comes_back_to_an_open_gate() {
    let scene = Scene::open().await;
    scene.with_runs("acme", 200).await;
    scene.browser.open(&scene.way_up("acme").await).await;
    scene.reads(&["Change to Pro", "$99/month", "unlimited runs", "200 of 200 used"]).await;
    assert_eq!(scene.browser.follow("Continue to Pro").await, 200);
    assert!(scene.browser.address().await.starts_with(&scene.world.sim.base_url()));
    assert!(scene.browser.text().await.contains("99.00 USD"));
    assert_eq!(scene.browser.follow("Pay").await, 200);
    assert!(scene.browser.address().await.starts_with(&scene.world.url("/upgrade?token=")));
    scene.reads(&["Done. You are on the Pro plan, and everything in it is open to you."]).await;
    // No webhook has told of it yet.
    assert_eq!(scene.world.run("acme").await["allowed"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_subscription_confirms_what_it_costs_and_pays() {
    let scene = Scene::open().await;
    scene.world.customer("acme").await;
    let acme = scene.world.link("acme").await;
    scene.world.sim.set_card(&acme, Card::Works).unwrap();
    scene.world.subscribe(&acme, "starter_monthly").await;
    scene.world.runs("acme", 200).await;
    scene.world.advance(Duration::from_secs(15 * 86_400)).await;
    scene.browser.open(&scene.way_up("acme").await).await;
    scene.reads(&["Due now $35", "From December 1 $99/month", "The card you pay with"]).await;
    assert_eq!(scene.browser.follow("Confirm and pay $35").await, 200);
    scene.reads(&["You are on the Pro plan, and everything in it is open to you."]).await;
    assert_eq!(scene.world.run("acme").await["allowed"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_altered_or_expired_says_so_in_a_sentence() {
    let scene = Scene::open().await;
    scene.with_runs("acme", 160).await;
    scene.open_mail().await;
    scene.browser.follow("Upgrade to Pro").await;
    let link = scene.browser.address().await;
    assert_eq!(scene.browser.open(&link.replace("/upgrade?", "/usage?")).await, 403);
    assert_eq!(scene.browser.text().await, "this link is not valid");
    scene.world.advance_to("2026-12-01T00:00:00Z").await;
    assert_eq!(scene.browser.open(&link).await, 403);
    assert_eq!(scene.browser.text().await, "this link has expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_as_long_as_they_may_be_fit_on_a_phone() {
    let long = "Abcdefghij".repeat(10);
    let plans = PLANS
        .replace("name = \"AI runs\"", &format!("name = \"{long}\""))
        .replace("name = \"Pro\"", &format!("name = \"{long}\""))
        .replace("name = \"Starter\"", &format!("name = \"{long}\""));
    let scene = Scene::with_plans(&plans).await;
    let customer = json!({"email": "ada@example.com", "name": long});
    scene.world.call("PUT", "/v1/customers/acme", &customer).await.ok();
    scene.world.runs("acme", 160).await;
    scene.world.settle().await;
    scene.open_mail().await;
    scene.reads(&[&format!("Hi {long},")]).await;
    scene.browser.follow(&format!("Upgrade to {long}")).await;
    scene.reads(&["160 of 200 used"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_is_documented_on_a_page_for_everybody() {
    let scene = Scene::open().await;
    assert_eq!(scene.browser.open(&scene.world.url("/docs")).await, 200);
    scene.reads(&["/v1/check", "A decision is always a 200", "required_balance"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_founder_reads_what_to_charge() {
    let scene = Scene::open().await;
    scene.world.customer("idle").await;
    for (customer, runs) in [("acme", 3), ("globex", 40), ("initech", 120)] {
        scene.world.customer(customer).await;
        let body = json!({
            "customer_id": customer, "feature_id": "ai_runs", "send_event": true,
            "required_balance": runs,
            "properties": {"model": "claude-haiku", "input_tokens": 3000, "output_tokens": 500},
        });
        scene.world.call("POST", "/v1/check", &body).await.ok();
    }
    let report = scene.world.url("/admin/report/pricing");
    assert_eq!(scene.browser.open(&report).await, 401);
    assert_eq!(scene.browser.open_as(ADMIN_TOKEN, &report).await, 200);
    scene
        .reads(&[
            "What to charge, and where to gate",
            "Gross margin",
            "Starter",
            "customers by use",
        ])
        .await;
}
