//! `tollgate stripe push` against a simulated account: what it makes, what it changes, what it
//! refuses, and what it leaves when it is killed.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::clock::Clock;
use tollgate::sim::FaultKind;

use crate::harness::postgres::TestDb;
use crate::harness::process::{Finished, wait_for};
use crate::harness::shop::Shop;
use crate::harness::world::START;

async fn shop() -> (TestDb, Shop) {
    let db = TestDb::sqlite();
    let shop = Shop::open(&db).await;
    (db, shop)
}

/// The lines of an answer that begin with this mark.
fn marked(finished: &Finished, mark: char) -> Vec<&str> {
    finished.stdout.lines().filter(|line| line.starts_with(&format!("{mark} "))).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is no text in {value}"))
}

// --- making and finding ------------------------------------------------------------------------

#[tokio::test]
async fn a_new_account_gets_everything_and_a_second_push_writes_nothing() {
    let (_db, shop) = shop().await;
    let pushed = shop.push(&[]).await;
    assert_eq!((pushed.code, marked(&pushed, '+').len()), (Some(0), 10), "{pushed:?}");
    assert!(pushed.stdout.starts_with("Stripe account acct_1Simulated (US, usd), test mode\n"));

    let meter = &shop.rows("/v1/billing/meters").await[0];
    assert_eq!((text(meter, "event_name"), text(meter, "display_name")), ("ai_runs", "AI runs"));
    let pro = shop.price("pro_monthly").await;
    assert_eq!((&pro["unit_amount"], text(&pro, "product")), (&json!(9900), "tollgate_pro"));
    let endpoint = &shop.rows("/v1/webhook_endpoints").await[0];
    let url = format!("http://{}/webhooks/stripe", shop.address);
    assert_eq!(
        (text(endpoint, "url"), text(endpoint, "api_version")),
        (&*url, "2026-09-30.endive")
    );
    let events = endpoint["enabled_events"].as_array().unwrap();
    assert!(
        events.contains(&json!("customer.subscription.updated")) && !events.contains(&json!("*"))
    );
    let portal = &shop.rows("/v1/billing_portal/configurations").await[0]["features"];
    assert_eq!(portal["subscription_update"]["products"].as_array().unwrap().len(), 3);
    assert_eq!(portal["subscription_cancel"]["mode"], "at_period_end");

    let writes = shop.writes();
    let again = shop.push(&[]).await;
    assert_eq!((again.code, marked(&again, '=').len()), (Some(0), 10), "{again:?}");
    assert!(again.stdout.contains("\n0 created, 0 changed, 10 as they should be\n"), "{again:?}");
    assert_eq!(shop.writes(), writes, "a second push wrote");
}

#[tokio::test]
async fn the_signing_secrets_are_shown_once_and_ready_to_be_set() {
    let (_db, mut shop) = shop().await;
    let pushed = shop.push(&[]).await;
    let line = pushed.stdout.lines().rfind(|line| line.contains("STRIPE_WEBHOOK_SECRET="));
    let (_, secrets) = line.expect("a line to copy").split_once('=').unwrap();
    assert!(secrets.split(',').count() == 2 && secrets.starts_with("whsec_"), "{secrets}");
    shop.machine.set("STRIPE_WEBHOOK_SECRET", secrets);
    let again = shop.push(&[]).await;
    assert!(!again.stdout.contains("whsec_") && !again.stderr.contains("whsec_"), "{again:?}");
    assert!(!again.stdout.contains("roll each missing one"), "{again:?}");
    let (one, _) = secrets.split_once(',').unwrap();
    shop.machine.set("STRIPE_WEBHOOK_SECRET", one);
    let again = shop.push(&[]).await;
    let said = "STRIPE_WEBHOOK_SECRET has one secret, and webhooks come from we_";
    assert!(again.stdout.contains(said) && again.code == Some(0), "{again:?}");
    shop.machine.unset("STRIPE_WEBHOOK_SECRET");
    let again = Shop::pushed(&shop.push(&["--json"]).await);
    assert!(text(&again, "secret_missing").contains("is not set"), "{again}");
}

#[tokio::test]
async fn a_secret_is_shown_before_anything_else_can_go_wrong() {
    let (_db, shop) = shop().await;
    // The last thing that is made.
    let path = "/v2/core/event_destinations";
    shop.sim.fail_next(path, 1, FaultKind::SlowBodyMs(0));
    shop.sim.fail_next(path, 1, FaultKind::DelayMs(60_000));
    let mut process = shop.machine.spawn(&["stripe", "push"]);
    let out = wait_for("the endpoint's secret is shown", async || {
        let out = process.stdout();
        out.contains("    STRIPE_WEBHOOK_SECRET=whsec_").then_some(out)
    });
    let out = out.await;
    assert!(!out.contains("thin events"), "{out}");
    process.kill();
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let (db, shop) = shop().await;
    let told = shop.push(&["--dry-run"]).await;
    assert_eq!((told.code, marked(&told, '+').len()), (Some(0), 10), "{told:?}");
    assert!(told.stdout.contains("10 would be created"), "{told:?}");
    assert_eq!(shop.writes(), 0);
    let told = Shop::pushed(&shop.push(&["--dry-run", "--json"]).await);
    assert_eq!((&told["mode"], &told["dry_run"]), (&json!("test"), &json!(true)));
    let price = told["steps"].as_array().unwrap().iter().find(|s| s["name"] == "pro_monthly");
    assert_eq!(price.unwrap()["action"], "create", "{told}");
    assert!(!db.sqlite_file().exists(), "looking created a database");
}

#[tokio::test]
async fn prices_that_somebody_made_are_taken_as_they_are_and_marked() {
    let (_db, shop) = shop().await;
    let product = shop.stripe("POST", "/v1/products", &[("name", "Professional")]).await;
    let form = [
        ("product", text(&product, "id")),
        ("unit_amount", "9900"),
        ("currency", "usd"),
        ("recurring[interval]", "month"),
        ("lookup_key", "pro_monthly"),
    ];
    let made = shop.stripe("POST", "/v1/prices", &form).await;
    let pushed = shop.push(&[]).await;
    assert!(marked(&pushed, '~')[0].contains("plan mark none → pro"), "{pushed:?}");
    let pro = shop.price("pro_monthly").await;
    assert_eq!((&pro["id"], text(&pro["metadata"], "tollgate_plan_id")), (&made["id"], "pro"));
    assert_eq!(marked(&shop.push(&[]).await, '=').len(), 10, "once");
    let products = shop.rows("/v1/products").await;
    let names: Vec<&str> = products.iter().map(|product| text(product, "name")).collect();
    assert_eq!(names, ["Team", "Starter", "Professional"], "no second product for Pro");
}

#[tokio::test]
async fn a_plan_that_costs_nothing_needs_nothing() {
    let (_db, shop) = shop().await;
    shop.edit_plans("amount = \"29.00\"", "amount = \"0.00\"");
    assert_eq!(shop.push(&[]).await.code, Some(0));
    assert!(shop.price("starter_monthly").await.is_null());
    assert_eq!(shop.rows("/v1/products").await.len(), 2);
}

// --- changing ----------------------------------------------------------------------------------

#[tokio::test]
async fn a_changed_amount_is_a_new_price_and_who_pays_the_old_one_goes_on() {
    let (_db, shop) = shop().await;
    shop.push(&[]).await;
    let old = shop.price("pro_monthly").await;
    let form = [
        ("payment_method", "pm_card_visa"),
        ("invoice_settings[default_payment_method]", "pm_card_visa"),
    ];
    let customer = shop.stripe("POST", "/v1/customers", &form).await;
    let form = [("customer", text(&customer, "id")), ("items[0][price]", text(&old, "id"))];
    let subscription = shop.stripe("POST", "/v1/subscriptions", &form).await;

    shop.edit_plans("amount = \"99.00\"", "amount = \"109.00\"");
    let pushed = shop.push(&[]).await;
    let changed = marked(&pushed, '~');
    assert!(changed[0].contains("amount $99 → $109"), "{pushed:?}");
    assert_eq!((pushed.code, changed.len()), (Some(0), 2), "{pushed:?}");

    let new = shop.price("pro_monthly").await;
    assert_eq!((&new["unit_amount"], &new["product"]), (&json!(10900), &old["product"]));
    let old = shop.stripe("GET", &format!("/v1/prices/{}", text(&old, "id")), &[]).await;
    assert_eq!((&old["active"], &old["lookup_key"]), (&json!(false), &Value::Null));
    assert_eq!(old["metadata"]["tollgate_plan_id"], "pro", "so that it is still known for Pro's");
    let path = format!("/v1/subscriptions/{}", text(&subscription, "id"));
    let kept = shop.stripe("GET", &path, &[]).await;
    assert_eq!(
        (&kept["items"]["data"][0]["price"]["id"], &kept["status"]),
        (&old["id"], &json!("active"))
    );
    let portal = shop.rows("/v1/billing_portal/configurations").await;
    assert!(portal[0].to_string().contains(text(&new, "id")), "the portal offers the new price");
    assert!(!portal[0].to_string().contains(text(&old, "id")), "and the old one no more");
}

#[tokio::test]
async fn another_currency_or_interval_is_a_new_price_too_and_back_again_is_a_third() {
    let (_db, shop) = shop().await;
    shop.push(&[]).await;
    let mut seen = vec![shop.price("team_monthly").await["id"].clone()];
    for (from, to, field, value) in [
        (
            "\"399.00\", currency = \"usd\"",
            "\"399\", currency = \"jpy\"",
            "unit_amount",
            json!(399),
        ),
        (
            "\"399\", currency = \"jpy\"",
            "\"399.00\", currency = \"usd\"",
            "unit_amount",
            json!(39900),
        ),
        (
            "\"month\", lookup_key = \"team",
            "\"year\", lookup_key = \"team",
            "type",
            json!("recurring"),
        ),
    ] {
        shop.edit_plans(from, to);
        assert_eq!(shop.push(&[]).await.code, Some(0), "{to}");
        let price = shop.price("team_monthly").await;
        assert_eq!(price[field], value, "{price}");
        assert!(!seen.contains(&price["id"]), "{to}: a price cannot change");
        seen.push(price["id"].clone());
    }
    assert_eq!(shop.price("team_monthly").await["recurring"]["interval"], "year");
    let open = shop.rows("/v1/prices?active=true").await;
    assert_eq!(open.len(), 3, "all others are archived: {open:?}");
}

#[tokio::test]
async fn the_default_price_of_a_product_gives_way_to_its_successor() {
    let (_db, shop) = shop().await;
    shop.push(&[]).await;
    let old = shop.price("pro_monthly").await;
    let form = [("default_price", text(&old, "id"))];
    shop.stripe("POST", "/v1/products/tollgate_pro", &form).await;
    shop.edit_plans("amount = \"99.00\"", "amount = \"109.00\"");
    assert_eq!(shop.push(&[]).await.code, Some(0));
    let product = shop.stripe("GET", "/v1/products/tollgate_pro", &[]).await;
    assert_eq!(product["default_price"], shop.price("pro_monthly").await["id"]);
}

#[tokio::test]
async fn what_somebody_switched_off_or_renamed_is_set_right() {
    let (_db, shop) = shop().await;
    shop.push(&[]).await;
    let meter = text(&shop.rows("/v1/billing/meters").await[0], "id").to_owned();
    shop.stripe("POST", &format!("/v1/billing/meters/{meter}/deactivate"), &[]).await;
    let form = [("active", "false"), ("name", "Old")];
    shop.stripe("POST", "/v1/products/tollgate_pro", &form).await;
    let price = text(&shop.price("pro_monthly").await, "id").to_owned();
    shop.stripe("POST", &format!("/v1/prices/{price}"), &[("active", "false")]).await;
    let portal = text(&shop.rows("/v1/billing_portal/configurations").await[0], "id").to_owned();
    let form = [("features[subscription_cancel][mode]", "immediately")];
    shop.stripe("POST", &format!("/v1/billing_portal/configurations/{portal}"), &form).await;
    let endpoint = text(&shop.rows("/v1/webhook_endpoints").await[0], "id").to_owned();
    let form = [("disabled", "true"), ("enabled_events[]", "charge.refunded")];
    shop.stripe("POST", &format!("/v1/webhook_endpoints/{endpoint}"), &form).await;
    let thin = text(&shop.rows("/v2/core/event_destinations").await[0], "id").to_owned();
    shop.stripe("POST", &format!("/v2/core/event_destinations/{thin}/disable"), &[]).await;

    let pushed = shop.push(&[]).await;
    assert_eq!((pushed.code, marked(&pushed, '~').len()), (Some(0), 6), "{pushed:?}");
    assert_eq!(marked(&shop.push(&[]).await, '=').len(), 10);
    assert_eq!(shop.rows("/v1/billing/meters").await[0]["status"], "active");
    let endpoint = &shop.rows("/v1/webhook_endpoints").await[0];
    let events = endpoint["enabled_events"].as_array().unwrap();
    assert_eq!(events.len(), 18, "ours are added, theirs stays: {events:?}");
    assert_eq!(endpoint["status"], "enabled");
}

#[tokio::test]
async fn an_endpoint_of_another_version_gets_a_successor_and_goes_on_beside_it() {
    let (_db, shop) = shop().await;
    let url = format!("http://{}/webhooks/stripe", shop.address);
    let old = shop.sim.add_webhook_endpoint(&url, "whsec_of_an_older_build");
    shop.sim.set_webhook_version(&old, "2024-06-20").unwrap();
    let pushed = shop.push(&[]).await;
    assert_eq!((pushed.code, marked(&pushed, '+').len()), (Some(0), 10), "{pushed:?}");
    assert!(pushed.stdout.contains(&format!("{old} (2024-06-20)")), "{pushed:?}");
    assert!(pushed.stdout.contains("STRIPE_WEBHOOK_SECRET=whsec_"), "{pushed:?}");
    assert_eq!(shop.rows("/v1/webhook_endpoints").await.len(), 2);
    let writes = shop.writes();
    assert_eq!(shop.push(&[]).await.code, Some(0));
    assert_eq!(shop.writes(), writes);
}

// --- refusing ----------------------------------------------------------------------------------

/// Pushes, which must be refused with these words and write nothing.
async fn refused(shop: &Shop, args: &[&str], words: &str) {
    let writes = shop.writes();
    let finished = shop.push(args).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(said.contains(words) && said.contains("nothing was written"), "{words}: {finished:?}");
    assert_eq!(shop.writes(), writes, "{words}");
}

#[tokio::test]
async fn a_meter_that_counts_otherwise_stops_everything_before_the_first_write() {
    let (_db, shop) = shop().await;
    let form = [
        ("display_name", "AI runs"),
        ("event_name", "ai_runs"),
        ("default_aggregation[formula]", "count"),
    ];
    shop.stripe("POST", "/v1/billing/meters", &form).await;
    refused(&shop, &[], "is count, not sum; a meter keeps these").await;
    refused(&shop, &["--dry-run"], "another stripe_meter in the plans file").await;
    shop.edit_plans("stripe_meter = \"ai_runs\"", "stripe_meter = \"ai_runs_summed\"");
    assert_eq!(shop.push(&[]).await.code, Some(0));
}

#[tokio::test]
async fn an_address_that_stripe_cannot_send_to_is_refused() {
    let (_db, mut shop) = shop().await;
    shop.machine.set("TOLLGATE_PUBLIC_URL", "http://billing.example.com");
    refused(&shop, &[], "Stripe cannot send webhooks to http://billing.example.com").await;
}

#[tokio::test]
async fn an_amount_that_stripe_would_refuse_is_refused_before_the_first_write() {
    let (_db, shop) = shop().await;
    let team = "amount = \"399.00\", currency = \"usd\"";
    shop.edit_plans(team, "amount = \"80.45\", currency = \"isk\"");
    refused(&shop, &[], "80.45 ISK is no multiple of 1 ISK, and Stripe takes no other").await;
    shop.edit_plans("\"80.45\", currency = \"isk\"", "\"80\", currency = \"ugx\"");
    assert_eq!(shop.push(&[]).await.code, Some(0));
    assert_eq!(shop.price("team_monthly").await["unit_amount"], 8000);
}

#[tokio::test]
async fn a_restricted_key_is_told_what_it_may_not_do() {
    let (_db, shop) = shop().await;
    shop.sim.change_faults(|faults| faults.not_permitted = vec!["GET /v1/billing/meters".into()]);
    refused(&shop, &[], "allow the key to read and write billing meters").await;
    let hidden = ["POST /v", "GET /v1/account"].map(str::to_owned);
    shop.sim.change_faults(|faults| faults.not_permitted = hidden.to_vec());
    let finished = shop.push(&[]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stdout.contains("account unknown to this key"), "{finished:?}");
    assert!(
        finished.stderr.contains("403") && finished.stderr.contains("meter ai_runs"),
        "{finished:?}"
    );
    assert!(!finished.stdout.contains('+'), "nothing is told as done: {finished:?}");
}

#[tokio::test]
async fn a_live_account_is_written_to_only_when_told_so() {
    let db = TestDb::sqlite();
    let shop = Shop::open_at(&db, Clock::system(), "sk_live_of_the_tests").await;
    refused(&shop, &[], "add --live").await;
    let pushed = shop.push(&["--live"]).await;
    assert!(pushed.stdout.starts_with("Stripe account acct_1Simulated (US, usd), live mode\n"));
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    assert_eq!(shop.push(&[]).await.code, Some(0), "with nothing to write it needs no word");
}

both_databases! {
    async fn a_database_stays_with_the_mode_and_the_account_it_began_with(db: TestDb) {
        let mut shop = Shop::open(&db).await;
        shop.machine.serve().await.stop().await;
        let live = Shop::open_at(&db, Clock::system(), "sk_live_of_the_tests").await;
        for args in [&["serve"][..], &["stripe", "push", "--live"]] {
            let refused = live.machine.run(args).await;
            assert_eq!(refused.code, Some(78), "{refused:?}");
            assert!(refused.stderr.contains("is a live key, and the database belongs to test mode"), "{refused:?}");
        }
        assert_eq!(live.writes(), 0);
        shop.sim.set_account("acct_of_somebody_else");
        for args in [&["serve"][..], &["stripe", "push"], &["sync", "--all"]] {
            let refused = shop.machine.run(args).await;
            assert_eq!(refused.code, Some(78), "{refused:?}");
            assert!(refused.stderr.contains("is of acct_of_somebody_else"), "{refused:?}");
        }
        let silent = "http://127.0.0.1:1";
        shop.machine.set("STRIPE_API_BASE", silent);
        shop.machine.serve().await.stop().await;
    }
}

// --- being interrupted -------------------------------------------------------------------------

/// What `stripe push` makes, each kind where it is listed.
const MADE: [&str; 6] = [
    "/v1/billing/meters",
    "/v1/products",
    "/v1/prices",
    "/v1/billing_portal/configurations",
    "/v1/webhook_endpoints",
    "/v2/core/event_destinations",
];

/// The keys of the creations at a path, in the order sent.
fn keys_sent(shop: &Shop, path: &str) -> Vec<String> {
    let requests = shop.sim.requests().into_iter();
    let sent = requests.filter(|request| request.method == "POST" && request.path == path);
    sent.filter_map(|request| request.idempotency_key).collect()
}

#[tokio::test]
async fn an_answer_lost_by_a_reading_or_a_write_is_got_over_in_one_run() {
    for lost in [FaultKind::DropAfterEffect, FaultKind::CutBody, FaultKind::DropBeforeEffect] {
        let (_db, shop) = shop().await;
        for path in MADE {
            // The first call reads. What answers it the second time comes through; the next call
            // there is the first write.
            shop.sim.fail_next(path, 1, lost);
            shop.sim.fail_next(path, 1, FaultKind::SlowBodyMs(0));
            shop.sim.fail_next(path, 1, lost);
        }
        let pushed = Shop::pushed(&shop.push(&["--json"]).await);
        assert_eq!(pushed["secrets"].as_array().unwrap().len(), 2, "{pushed}");
        for path in MADE {
            let sent = keys_sent(&shop, path);
            assert!(sent[0] == sent[1], "{lost:?}: {path} {sent:?}");
        }
        assert_everything_is_there_once(&shop).await;
    }
}

#[tokio::test]
async fn a_limit_ends_the_run_and_the_next_one_goes_on_with_the_same_keys() {
    for path in MADE {
        let (_db, shop) = shop().await;
        shop.sim.fail_next(path, 1, FaultKind::SlowBodyMs(0));
        shop.sim.fail_next(path, 1, FaultKind::RateLimited);
        let limited = shop.push(&[]).await;
        assert_eq!(limited.code, Some(1), "{path}: {limited:?}");
        for said in ["429", "run it again to go on from here"] {
            assert!(limited.stderr.contains(said), "{path}: {limited:?}");
        }
        assert_eq!(shop.push(&[]).await.code, Some(0), "{path}");
        let sent = keys_sent(&shop, path);
        assert!(sent[0] == sent[1], "{path}: {sent:?}");
        assert_everything_is_there_once(&shop).await;
    }
}

#[tokio::test]
async fn what_was_made_and_deleted_today_is_made_anew() {
    let (_db, shop) = shop().await;
    shop.push(&[]).await;
    let endpoint = text(&shop.rows("/v1/webhook_endpoints").await[0], "id").to_owned();
    shop.stripe("DELETE", &format!("/v1/webhook_endpoints/{endpoint}"), &[]).await;
    let thin = text(&shop.rows("/v2/core/event_destinations").await[0], "id").to_owned();
    shop.stripe("DELETE", &format!("/v2/core/event_destinations/{thin}"), &[]).await;
    // Stripe still knows the first answers by their idempotency keys.
    let pushed = Shop::pushed(&shop.push(&["--json"]).await);
    let secrets = pushed["secrets"].as_array().unwrap();
    assert!(secrets.len() == 2 && secrets.iter().all(|s| s["of"] != *endpoint && s["of"] != *thin));
    assert_everything_is_there_once(&shop).await;
}

#[tokio::test]
async fn what_was_made_and_undone_today_is_made_anew() {
    let (_db, shop) = shop().await;
    shop.push(&[]).await;
    let old = text(&shop.price("pro_monthly").await, "id").to_owned();
    shop.edit_plans("amount = \"99.00\"", "amount = \"109.00\"");
    shop.push(&[]).await;
    // Somebody goes back to the old price in the Dashboard, and the portal is switched off.
    let form = [("active", "true"), ("lookup_key", "pro_monthly"), ("transfer_lookup_key", "true")];
    shop.stripe("POST", &format!("/v1/prices/{old}"), &form).await;
    let portal = text(&shop.rows("/v1/billing_portal/configurations").await[0], "id").to_owned();
    let path = format!("/v1/billing_portal/configurations/{portal}");
    shop.stripe("POST", &path, &[("active", "false")]).await;
    // Stripe still knows the first answers by their idempotency keys.
    let pushed = shop.push(&[]).await;
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    let new = shop.price("pro_monthly").await;
    assert_eq!((&new["unit_amount"], &new["active"]), (&json!(10900), &json!(true)));
    assert_eq!(shop.push(&[]).await.code, Some(0));
}

#[tokio::test]
async fn a_500_that_stripe_remembers_does_not_block_the_day() {
    let (_db, shop) = shop().await;
    // The reading, then the write.
    shop.sim.fail_next("/v1/webhook_endpoints", 1, FaultKind::SlowBodyMs(0));
    shop.sim.fail_next("/v1/webhook_endpoints", 1, FaultKind::ServerError);
    assert_eq!(shop.push(&[]).await.code, Some(0));
    assert_everything_is_there_once(&shop).await;
}

async fn assert_everything_is_there_once(shop: &Shop) {
    let prices = shop.rows("/v1/prices?active=true").await;
    let mut keys: Vec<&str> = prices.iter().map(|price| text(price, "lookup_key")).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["pro_monthly", "starter_monthly", "team_monthly"]);
    assert_eq!(shop.rows("/v1/products").await.len(), 3);
    for path in [
        "/v1/billing/meters",
        "/v1/billing_portal/configurations",
        "/v1/webhook_endpoints",
        "/v2/core/event_destinations",
    ] {
        assert_eq!(shop.rows(path).await.len(), 1, "{path}");
    }
}

/// Kills a push at its `nth` call, which Stripe may work off after all. False if it ended before.
async fn killed_at(shop: &Shop, clock: &Clock, nth: usize) -> bool {
    let before = shop.sim.requests().len();
    shop.sim.change_faults(|faults| faults.api.clear());
    if nth > 0 {
        shop.sim.fail_next("/v", u32::try_from(nth).unwrap(), FaultKind::SlowBodyMs(0));
    }
    shop.sim.fail_next("/v", 1, FaultKind::DelayMs(1000));
    let mut process = shop.machine.spawn(&["stripe", "push"]);
    let hangs = wait_for("it hangs or ends", async || {
        let requests = shop.sim.requests();
        let hangs = requests.len() == before + nth + 1 && requests[before + nth].status.is_none();
        let ended = process.ended().is_some();
        (hangs || ended).then_some(hangs && !ended)
    })
    .await;
    if hangs {
        process.kill();
    }
    // What was under way is finished without anybody listening.
    clock.advance(Duration::from_secs(2));
    let all = "what hung is done";
    wait_for(all, async || {
        shop.sim.requests().iter().all(|request| request.status.is_some()).then_some(())
    })
    .await;
    shop.sim.change_faults(|faults| faults.api.clear());
    hangs
}

#[tokio::test]
async fn killed_at_any_call_the_next_run_completes_it() {
    let mut calls = 0;
    loop {
        let db = TestDb::sqlite();
        let clock = Clock::manual(START.parse().unwrap());
        let shop = Shop::open_at(&db, clock.clone(), crate::harness::world::STRIPE_KEY).await;
        let hung = killed_at(&shop, &clock, calls).await;
        assert_eq!(shop.push(&[]).await.code, Some(0), "after call {calls}");
        assert_everything_is_there_once(&shop).await;
        if !hung {
            break;
        }
        calls += 1;
    }
    assert!(calls > 20, "all of them: {calls}");
}

#[tokio::test]
async fn killed_at_any_call_of_a_change_of_price_the_next_run_completes_it() {
    let db = TestDb::sqlite();
    let clock = Clock::manual(START.parse().unwrap());
    let shop = Shop::open_at(&db, clock.clone(), crate::harness::world::STRIPE_KEY).await;
    assert_eq!(shop.push(&[]).await.code, Some(0));
    let mut amount = 99;
    for call in 0.. {
        shop.edit_plans(&format!("\"{amount}.00\""), &format!("\"{}.00\"", amount + 1));
        amount += 1;
        let hung = killed_at(&shop, &clock, call).await;
        assert_eq!(shop.push(&[]).await.code, Some(0), "after call {call}");
        assert_everything_is_there_once(&shop).await;
        assert_eq!(shop.price("pro_monthly").await["unit_amount"], amount * 100);
        if !hung {
            return assert!(call > 10, "all of them: {call}");
        }
    }
}
