//! `tollgate doctor`: nothing amiss where everything answers, and each fault on a line of its own.

use std::time::Duration;

use serde_json::Value;
use tollgate::clock::Clock;
use tollgate::store::Store;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Machine, wait_for};
use crate::harness::shop::Shop;
use crate::harness::smtp_sink::SmtpSink;
use crate::harness::stripe::simulator;
use crate::harness::world::{STRIPE_KEY, WEBHOOK_SECRET};

/// A shop whose doctor finds nothing: provisioned, with a mail server.
async fn healthy(db: &TestDb) -> (Shop, SmtpSink) {
    let (mut shop, mail) = (Shop::open(db).await, SmtpSink::start().await);
    shop.machine.set("SMTP_URL", &mail.url());
    shop.machine.set("MAIL_FROM", "billing@example.com");
    shop.provision().await;
    (shop, mail)
}

/// What is not `ok`, as `level what: detail`, but for the standing note on the endpoint's secret.
async fn amiss(shop: &Shop) -> Vec<String> {
    let examined = shop.examined().await.into_iter();
    let amiss = examined.filter(|(what, level, _)| {
        let standing = what == "deliveries" && level == "note";
        level != "ok" && !standing
    });
    amiss.map(|(what, level, detail)| format!("{level} {what}: {detail}")).collect()
}

/// The one thing that is not `ok` must say this.
async fn only_amiss(shop: &Shop, said: &str) {
    let amiss = amiss(shop).await;
    let [only] = &amiss[..] else { panic!("{said}: {amiss:#?}") };
    let mut rest = only.as_str();
    for part in said.split(" … ") {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("{said}\nis not in\n{only}")).1;
    }
}

both_databases! {
    async fn nothing_is_amiss_where_everything_answers(db: TestDb) {
        let (shop, mail) = healthy(&db).await;
        only_amiss(&shop, "note round trip: not tried … does the daemon run there?").await;
        let daemon = shop.machine.serve().await;
        assert_eq!(amiss(&shop).await, [""; 0]);
        let examined = shop.machine.run(&["doctor"]).await;
        assert_eq!((examined.code, examined.stderr.as_str()), (Some(0), ""), "{examined:?}");
        let lines: Vec<&str> = examined.stdout.lines().collect();
        let at = lines[0].find("every variable").expect("the first line's detail");
        assert!(lines.iter().all(|line| line.as_bytes()[at - 2] == b' '), "{lines:#?}");
        for line in ["stripe mode ", "clock ", "price pro_monthly ", "webhooks ", "round trip ", "stripe's ping "] {
            assert!(lines.iter().any(|l| l.contains(line)), "{line}: {lines:#?}");
        }
        assert_eq!(mail.mails().len(), 0, "an examination sends no mail");
        let inbox = daemon.api.call_as(crate::harness::world::ADMIN_TOKEN, "GET", "/admin/api/v1/inbox", &Value::Null);
        let inbox = inbox.await.unwrap().ok();
        assert_eq!(inbox["data"], Value::Array(Vec::new()), "an examination leaves nothing behind");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn an_account_that_nobody_provisioned_lacks_each_thing_by_name() {
    let db = TestDb::sqlite();
    let (mut shop, mail) = (Shop::open(&db).await, SmtpSink::start().await);
    shop.machine.set("SMTP_URL", &mail.url());
    shop.machine.set("MAIL_FROM", "billing@example.com");
    let found = amiss(&shop).await;
    for what in [
        "fault meter ai_runs: is missing: `tollgate stripe push` makes it",
        "fault product tollgate_pro: is missing",
        "fault price pro_monthly: is missing: `tollgate stripe push` makes it ($99/month)",
        "fault portal: is missing",
        "fault webhooks: is missing",
        "note thin events: is missing",
        "fault webhook secret: STRIPE_WEBHOOK_SECRET is not set",
    ] {
        assert!(found.iter().any(|line| line.starts_with(what)), "{what}: {found:#?}");
    }
    assert_eq!(shop.writes(), 0, "an examination writes nothing");
    assert!(!db.sqlite_file().exists(), "looking created a database");
}

#[tokio::test]
async fn what_was_changed_at_stripe_is_found_where_it_was_changed() {
    let db = TestDb::sqlite();
    let (shop, _mail) = healthy(&db).await;
    let daemon = shop.machine.serve().await;
    let meter = shop.rows("/v1/billing/meters").await[0]["id"].as_str().unwrap().to_owned();
    shop.stripe("POST", &format!("/v1/billing/meters/{meter}/deactivate"), &[]).await;
    only_amiss(&shop, "fault meter ai_runs: … status deactivated → active; `tollgate stripe push`")
        .await;
    shop.stripe("POST", &format!("/v1/billing/meters/{meter}/reactivate"), &[]).await;

    shop.edit_plans("amount = \"99.00\"", "amount = \"98.00\"");
    let found = amiss(&shop).await;
    assert!(found[0].starts_with("fault price pro_monthly: "), "{found:#?}");
    assert!(found[0].contains("amount $99 → $98; `tollgate stripe push`"), "{found:#?}");
    assert!(found.len() == 2 && found[1].starts_with("fault portal: "), "{found:#?}");
    shop.edit_plans("amount = \"98.00\"", "amount = \"99.00\"");

    let endpoint = shop.rows("/v1/webhook_endpoints").await[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/webhook_endpoints/{endpoint}");
    shop.stripe("POST", &path, &[("disabled", "true")]).await;
    only_amiss(&shop, "fault webhooks: … status disabled → enabled").await;
    shop.stripe("POST", &path, &[("disabled", "false"), ("enabled_events[]", "invoice.paid")])
        .await;
    only_amiss(&shop, "fault webhooks: … events missing → customer.subscription.created, ").await;
    shop.stripe("POST", &path, &[("enabled_events[]", "*")]).await;
    shop.sim.set_webhook_version(&endpoint, "2024-06-20").unwrap();
    only_amiss(&shop, "fault webhooks: is missing … 2026-09-30.endive").await;
    shop.sim.set_webhook_version(&endpoint, "2026-09-30.endive").unwrap();
    assert_eq!(amiss(&shop).await, [""; 0]);
    daemon.stop().await;
}

#[tokio::test]
async fn secrets_that_do_not_fit_are_found_by_sending() {
    let db = TestDb::sqlite();
    let (mut shop, _mail) = healthy(&db).await;
    let daemon = shop.machine.serve().await;
    let endpoint = &shop.rows("/v2/core/event_destinations").await[0];
    let thin = endpoint["id"].as_str().unwrap().to_owned();
    shop.sim.roll_webhook_secret(&thin, "whsec_new").unwrap();
    // For a day the former one signs as well.
    assert_eq!(amiss(&shop).await, [""; 0]);
    shop.sim.roll_webhook_secret(&thin, "whsec_newer").unwrap();
    only_amiss(
        &shop,
        &format!("note stripe's ping: … is the secret of {thin} in STRIPE_WEBHOOK_SECRET?"),
    )
    .await;

    shop.machine.set("STRIPE_WEBHOOK_SECRET", &format!("{WEBHOOK_SECRET},whsec_other"));
    only_amiss(
        &shop,
        "fault round trip: … has other secrets in STRIPE_WEBHOOK_SECRET: no signature matches",
    )
    .await;
    daemon.stop().await;
    shop.machine.unset("STRIPE_WEBHOOK_SECRET");
    shop.machine.serve().await.stop().await;
}

#[tokio::test]
async fn fewer_secrets_than_senders_are_a_fault_that_says_what_to_do() {
    let db = TestDb::sqlite();
    let (mut shop, _mail) = healthy(&db).await;
    shop.machine.set("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
    // Its daemon does not run: the round trip is not tried.
    let found = amiss(&shop).await;
    let fault = found.iter().find(|line| line.starts_with("fault webhook secret: "));
    assert!(
        fault.is_some_and(|line| line.contains(" has one secret, and webhooks come from we_")),
        "{found:#?}"
    );
    shop.machine.unset("STRIPE_WEBHOOK_SECRET");
    only_amiss(&shop, "fault webhook secret: STRIPE_WEBHOOK_SECRET is not set, and … roll").await;
}

#[tokio::test]
async fn of_the_endpoints_secret_the_last_delivery_tells() {
    let db = TestDb::sqlite();
    let (shop, _mail) = healthy(&db).await;
    let daemon = shop.machine.serve().await;
    let said = async || {
        let examined = shop.examined().await.into_iter();
        let mut notes = examined.filter(|(what, _, _)| what == "deliveries");
        let (_, level, detail) = notes.next().expect("a word on deliveries");
        assert_eq!(level, "note", "{detail}");
        detail
    };
    let detail = said().await;
    assert!(detail.ends_with("only its own events show: none has come lately"), "{detail}");
    let store = Store::open(&db.url.clone().into(), Clock::system()).await.unwrap();
    let old = r#"{"created": 1700000000}"#;
    let mut tx = store.begin().await.unwrap();
    tx.insert_event("evt_fetched", "customer.updated", None, None, old).await.unwrap();
    tx.insert_event("evt_thin", "v1.thin", None, None, r#"{"created": 9999999999}"#).await.unwrap();
    tx.commit().await.unwrap();
    let detail = said().await;
    assert!(detail.ends_with("none has come lately"), "a fetched one proves nothing: {detail}");
    shop.stripe("POST", "/v1/customers", &[("name", "Ada")]).await;
    wait_for("the event is stored", async || {
        (store.list_events(None, None, 9).await.unwrap().len() > 2).then_some(())
    })
    .await;
    let detail = said().await;
    assert!(detail.contains("only its own events show: the last came at 20"), "{detail}");
    store.close().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_another_or_none_is_told_apart() {
    let db = TestDb::sqlite();
    let (mut shop, _mail) = healthy(&db).await;
    let daemon = shop.machine.serve().await;
    let stranger = simulator(Clock::system(), STRIPE_KEY).await;
    let public = format!("http://{}", shop.address);
    shop.machine.set("TOLLGATE_PUBLIC_URL", &stranger.base_url());
    let found = amiss(&shop).await;
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("fault round trip: ")
                && line.ends_with("that is no Tollgate")),
        "{found:#?}"
    );
    shop.machine.set("TOLLGATE_PUBLIC_URL", &public);
    shop.machine.set("DATABASE_URL", "sqlite://elsewhere.db");
    shop.machine.run(&["migrate"]).await;
    only_amiss(&shop, "fault round trip: … stores into another database than this one").await;
    daemon.stop().await;
    shop.machine.set("TOLLGATE_PUBLIC_URL", "https://nobody.invalid");
    let found = amiss(&shop).await;
    assert!(found.iter().any(|line| line.starts_with("fault round trip: not tried")), "{found:#?}");
}

#[tokio::test]
async fn a_clock_that_runs_away_is_found() {
    let db = TestDb::sqlite();
    let ahead = Clock::system().now().plus(Duration::from_secs(200));
    let shop = Shop::open_at(&db, Clock::manual(ahead), STRIPE_KEY).await;
    let found = amiss(&shop).await;
    let clock = found.iter().find(|line| line.starts_with("fault clock: ")).expect("a fault");
    assert!(clock.contains("s behind Stripe's"), "{clock}");
}

#[tokio::test]
async fn a_restricted_key_is_told_what_is_missing_and_the_rest_is_examined() {
    let db = TestDb::sqlite();
    let (shop, _mail) = healthy(&db).await;
    let daemon = shop.machine.serve().await;
    let hidden = |calls: &[&str]| {
        let calls = calls.iter().map(|call| (*call).to_owned()).collect();
        shop.sim.change_faults(|faults| faults.not_permitted = calls);
    };
    hidden(&["POST /v1"]);
    assert_eq!(amiss(&shop).await, [""; 0], "reading is enough");
    hidden(&["POST /v", "GET /v1/account"]);
    let found = amiss(&shop).await;
    assert!(
        found.len() == 2 && found[0].starts_with("note stripe account: not compared"),
        "{found:#?}"
    );
    assert!(found[1].starts_with("note stripe's ping: not tried: "), "{found:#?}");
    hidden(&["GET /v1/webhook_endpoints"]);
    let note = "note webhooks: not examined, the key may not read webhook endpoints: … (403)";
    only_amiss(&shop, note).await;
    hidden(&["GET /v1/prices"]);
    only_amiss(&shop, "note price: not examined, the key may not read prices: … (403)").await;
    hidden(&["GET /v1/customers"]);
    only_amiss(&shop, "fault stripe key: … (403)").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_key_of_another_mode_or_account_is_found() {
    let db = TestDb::sqlite();
    let (shop, _mail) = healthy(&db).await;
    let daemon = shop.machine.serve().await;
    shop.sim.set_account("acct_of_somebody_else");
    only_amiss(&shop, "fault stripe mode: … is of acct_of_somebody_else, and the database belongs to acct_1Simulated").await;
    let live = Shop::open_at(&db, Clock::system(), "sk_live_of_the_tests").await;
    let found = amiss(&live).await;
    assert!(
        found
            .iter()
            .any(|line| line.contains("is a live key, and the database belongs to test mode")),
        "{found:#?}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn the_doctor_names_each_fault_on_a_line_and_leaves_nothing_behind() {
    let (stripe, mut machine) = (Shop::open(&TestDb::sqlite()).await, Machine::bare());
    machine.set("DATABASE_URL", "sqlite://no/such/folder/tollgate.db");
    machine.set("STRIPE_SECRET_KEY", "sk_test_of_somebody_else");
    machine.set("STRIPE_API_BASE", &stripe.sim.base_url());
    // Nobody listens on port 1.
    machine.set("SMTP_URL", "smtp://127.0.0.1:1");
    machine.set("MAIL_FROM", "billing@example.com");
    let examined = machine.run(&["doctor"]).await;
    assert_eq!(examined.code, Some(1), "{examined:?}");
    let lines: Vec<&str> = examined.stdout.lines().collect();
    for (what, word) in [
        ("plans", "plans.example.toml"),
        ("database", "no existing folder"),
        ("stripe key", "key"),
        ("webhook secret", "STRIPE_WEBHOOK_SECRET"),
        ("mail", ""),
    ] {
        let fault = lines.iter().filter(|line| line.starts_with(&format!("FAULT  {what} ")));
        let fault: Vec<_> = fault.collect();
        assert!(fault.len() == 1 && fault[0].contains(word), "{what}: {lines:#?}");
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("ok ")).count(), 2, "{lines:#?}");
    assert!(!examined.stdout.contains("somebody_else"), "{lines:#?}");

    let json = machine.run(&["doctor", "--json"]).await;
    let findings: Value = serde_json::from_str(&json.stdout).expect("JSON");
    let faults = findings.as_array().unwrap().iter().filter(|finding| finding["ok"] == false);
    assert_eq!((json.code, faults.count()), (Some(1), 5), "{findings}");

    machine.set("DATABASE_URL", "sqlite://tollgate.db");
    machine.run(&["doctor"]).await;
    assert!(!machine.path("tollgate.db").exists(), "looking created the database");
}

#[tokio::test]
async fn the_doctor_says_when_a_database_does_not_exist() {
    let db = TestDb::postgres().await;
    let mut machine = Machine::on(&db);
    machine.set("DATABASE_URL", &format!("{}_gone", db.url));
    let examined = machine.run(&["doctor"]).await;
    let fault = examined.stdout.lines().find(|line| line.starts_with("FAULT  database"));
    assert!(fault.is_some_and(|line| line.contains("does not exist")), "{examined:?}");
}
