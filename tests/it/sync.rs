//! What Stripe says becomes so here: tiers, statuses, periods, and support's sync.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::jobs::Job;
use tollgate::sim::FaultKind;

use crate::harness::webhooks::event;
use crate::harness::world::{ADMIN_TOKEN, API_KEY, World};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Ends it at once, and the webhooks arrive.
async fn cancel(world: &World, subscription: &str) {
    world.stripe("DELETE", &format!("/v1/subscriptions/{subscription}"), &[]).await;
    world.settle().await;
}

async fn set_status(world: &World, subscription: &str, status: &str) {
    world.sim.set_subscription_status(subscription, status).unwrap();
    world.settle().await;
}

async fn upgrade_notices(world: &World, customer: &str) -> Vec<Value> {
    let mut notices = world.list(&format!("/notices?customer_id={customer}")).await;
    notices.retain(|notice| notice["kind"] == "plan_upgraded");
    notices
}

async fn entitlement_version(world: &World, customer: &str) -> i64 {
    let id = customer.parse().unwrap();
    let found = world.app().store.customer(&id).await.unwrap().unwrap();
    found.tier.entitlement_version
}

/// What differs, as `what: local -> stripe`.
fn differences(report: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let one = |d: &Value| {
        assert!(d["action"].is_string(), "{d}");
        format!("{}: {} -> {}", word(&d["what"]), word(&d["local"]), word(&d["stripe"]))
    };
    report["differences"].as_array().expect("a list").iter().map(one).collect()
}

both_databases! {
    async fn an_upgrade_opens_the_gate_and_keeps_the_usage(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.runs("acme", 200).await;
        assert_eq!(world.gate("acme").await, "false limit_reached");
        let period = world.shown("acme").await["period"].clone();
        let version = entitlement_version(&world, "acme").await;
        world.change_price(&subscription, "pro_monthly").await;
        let open = world.run("acme").await;
        assert_eq!((&open["allowed"], &open["plan_id"]), (&json!(true), &json!("pro")));
        assert_eq!(open["balance"]["usage"], 201, "no new counter within a subscription");
        assert_eq!(open["period"], period);
        assert_eq!(entitlement_version(&world, "acme").await, version + 1);
        let notices = upgrade_notices(&world, "acme").await;
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert_eq!((&notices[0]["from_plan_id"], &notices[0]["plan_id"]),
            (&json!("starter"), &json!("pro")));
        assert_eq!(notices[0]["due_at"], "2026-11-02T09:00:00Z");
    }

    async fn a_downgrade_brings_the_cap_back(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        world.runs("acme", 201).await;
        world.change_price(&subscription, "starter_monthly").await;
        let denied = world.run("acme").await;
        assert_eq!((&denied["allowed"], &denied["reason"]),
            (&json!(false), &json!("limit_reached")));
        let balance = &denied["balance"];
        assert_eq!((&balance["granted"], &balance["usage"], &balance["remaining"]),
            (&json!(200), &json!(201), &json!(0)), "an overrun is never negative");
        let told = upgrade_notices(&world, "acme").await;
        assert_eq!(told.len(), 1, "of the move from the default plan to Pro, not of the way back");
    }

    async fn a_cancellation_leads_to_the_default_plan_with_a_fresh_counter(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        world.runs("acme", 500).await;
        world.advance(3 * DAY).await;
        cancel(&world, &subscription).await;
        let shown = world.shown("acme").await;
        assert_eq!(world.tier("acme").await, "starter -");
        assert_eq!(shown["period"]["start"], "2026-11-04T09:00:00Z", "there and then");
        assert_eq!(shown["period"]["end"], "2026-12-04T09:00:00Z");
        assert_eq!(world.run("acme").await["balance"]["usage"], 1);
    }

    async fn a_cancellation_at_period_end_keeps_the_plan_until_then(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        world.runs("acme", 500).await;
        world.change_subscription(&subscription, &[("cancel_at_period_end", "true")]).await;
        world.advance_to("2026-12-01T08:59:59Z").await;
        assert_eq!((world.tier("acme").await.as_str(), world.usage("acme").await),
            ("pro active", 500));
        world.advance(SECOND).await;
        assert_eq!((world.tier("acme").await.as_str(), world.usage("acme").await),
            ("starter -", 0));
        assert_eq!(world.shown("acme").await["period"]["start"], "2026-12-01T09:00:00Z");
    }

    async fn past_due_keeps_the_plan_for_seven_days_and_not_a_second_longer(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "pro_monthly").await;
        world.runs("acme", 3).await;
        set_status(&world, &subscription, "past_due").await;
        assert_eq!(world.gate("acme").await, "true within_limit");
        world.advance(3 * DAY).await;
        let invoice = json!({"id": "in_1", "object": "invoice", "customer": stripe_id});
        world.deliver(&event("evt_again", "invoice.payment_failed", &invoice)).await.ok();
        world.advance(4 * DAY - SECOND).await;
        assert_eq!(world.gate("acme").await, "true within_limit");
        world.advance(SECOND).await;
        assert_eq!(world.gate("acme").await, "false past_due", "a second failure prolongs nothing");
        set_status(&world, &subscription, "active").await;
        assert_eq!(world.run("acme").await["balance"]["usage"], 4, "paid: open, usage kept");
    }

    async fn unpaid_and_paused_close_the_gate_until_they_are_over(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        world.runs("acme", 3).await;
        for (status, answer) in [
            ("unpaid", "false past_due"),
            ("active", "true within_limit"),
            ("paused", "false paused"),
            ("active", "true within_limit"),
        ] {
            set_status(&world, &subscription, status).await;
            assert_eq!(world.gate("acme").await, answer, "{status}");
            assert_eq!(world.tier("acme").await, format!("pro {status}"));
            assert_eq!(world.usage("acme").await, 3);
        }
    }

    async fn incomplete_is_as_without_a_subscription_until_it_is_paid(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        world.runs("acme", 5).await;
        let price = world.price("pro_monthly").await;
        let form = [("customer", stripe_id.as_str()), ("items[0][price]", &price),
            ("payment_behavior", "default_incomplete")];
        let made = world.stripe("POST", "/v1/subscriptions", &form).await;
        assert_eq!(made["status"], "incomplete");
        world.settle().await;
        assert_eq!((world.tier("acme").await.as_str(), world.usage("acme").await),
            ("starter -", 5));
        let invoice = made["latest_invoice"].as_str().unwrap();
        world.stripe("POST", &format!("/v1/invoices/{invoice}/pay"), &[]).await;
        world.settle().await;
        assert_eq!((world.tier("acme").await.as_str(), world.usage("acme").await),
            ("pro active", 0));
        let lapsing = world.stripe("POST", "/v1/subscriptions", &form).await;
        world.advance(DAY).await;
        let path = format!("/v1/subscriptions/{}", lapsing["id"].as_str().unwrap());
        assert_eq!(world.stripe("GET", &path, &[]).await["status"], "incomplete_expired");
        assert_eq!(world.tier("acme").await, "pro active", "one that lapsed takes nothing away");
    }

    async fn a_trial_gives_the_plan_and_its_end_a_new_period(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let price = world.price("pro_monthly").await;
        let form = [("customer", stripe_id.as_str()), ("items[0][price]", &price),
            ("trial_period_days", "14")];
        world.stripe("POST", "/v1/subscriptions", &form).await;
        world.settle().await;
        world.runs("acme", 7).await;
        assert_eq!(world.tier("acme").await, "pro trialing");
        assert_eq!(world.shown("acme").await["period"]["end"], "2026-11-15T09:00:00Z");
        world.advance_to("2026-11-15T09:00:00Z").await;
        assert_eq!((world.tier("acme").await.as_str(), world.usage("acme").await),
            ("pro active", 0));
    }

    async fn a_first_subscription_counts_anew_even_from_the_same_instant(db: TestDb) {
        let world = World::start(&db).await;
        world.advance_to("2026-11-02T00:00:00Z").await;
        world.customer("acme").await;
        world.runs("acme", 200).await;
        let before = world.shown("acme").await["period"].clone();
        let stripe_id = world.link("acme").await;
        world.subscribe(&stripe_id, "starter_monthly").await;
        assert_eq!(world.shown("acme").await["period"], before, "the same bounds");
        assert_eq!(world.run("acme").await["balance"]["usage"], 1, "another counter");
    }

    async fn a_stripe_customer_deleted_leaves_the_default_plan(db: TestDb) {
        let world = World::start(&db).await;
        let (told, _) = world.subscriber("told", "pro_monthly").await;
        let (missed, _) = world.subscriber("missed", "pro_monthly").await;
        world.stripe("DELETE", &format!("/v1/customers/{told}"), &[]).await;
        world.settle().await;
        assert_eq!(world.tier("told").await, "starter -");
        world.lose_webhooks();
        world.stripe("DELETE", &format!("/v1/customers/{missed}"), &[]).await;
        assert_eq!(world.tier("missed").await, "pro active");
        world.sync("missed").await.ok();
        assert_eq!(world.tier("missed").await, "starter -");
        assert_eq!(world.gate("missed").await, "true within_limit", "the default plan's");
    }
}

/// The state and attempts of the one change of a customer's subscription.
async fn the_change(world: &World, stripe_id: &str) -> (String, i64) {
    let rows = world.list("/inbox").await;
    let about = |row: &&Value| {
        row["stripe_customer_id"] == stripe_id
            && row["event_type"] == "customer.subscription.updated"
    };
    let found: Vec<_> = rows.iter().filter(about).collect();
    let [row] = found[..] else { panic!("one event, not {found:?}") };
    (row["state"].as_str().unwrap().to_owned(), row["attempts"].as_i64().unwrap())
}

both_databases! {
    async fn while_stripe_is_down_an_event_waits_and_is_applied_after(db: TestDb) {
        let world = World::start(&db).await;
        let kinds = [
            FaultKind::RateLimited,
            FaultKind::LockTimeout,
            FaultKind::ServerError,
            FaultKind::BadGateway,
            FaultKind::DropBeforeEffect,
        ];
        for (n, kind) in kinds.into_iter().enumerate() {
            let customer = format!("c{n}");
            let (stripe_id, subscription) = world.subscriber(&customer, "starter_monthly").await;
            // Either of the two calls a refetch makes.
            let path = [format!("/v1/customers/{stripe_id}"), "/v1/subscriptions".to_owned()];
            world.change_price_quietly(&subscription, "pro_monthly").await;
            world.sim.fail_next(&path[n % 2], 1000, kind);
            world.sim.deliver_pending().await;
            world.run_job(Job::ProcessInbox).await;
            assert_eq!(the_change(&world, &stripe_id).await, ("pending".to_owned(), 1), "{kind:?}");
            assert_eq!(world.tier(&customer).await, "starter active");
            world.sim.change_faults(|faults| faults.api.clear());
            world.advance(SECOND).await;
            assert_eq!(world.tier(&customer).await, "pro active", "{kind:?}");
            assert_eq!(the_change(&world, &stripe_id).await.0, "applied");
        }
    }

    async fn one_customers_trouble_backs_off_and_stops_no_other(db: TestDb) {
        let world = World::start(&db).await;
        let (troubled, theirs) = world.subscriber("a-troubled", "starter_monthly").await;
        let (_, ours) = world.subscriber("b-fine", "starter_monthly").await;
        world.sim.fail_next(&format!("/v1/customers/{troubled}"), 1000, FaultKind::RateLimited);
        world.change_price_quietly(&theirs, "pro_monthly").await;
        world.change_price(&ours, "pro_monthly").await;
        assert_eq!(world.tier("b-fine").await, "pro active");
        for _ in 0..31 {
            world.clock.advance(SECOND);
            world.run_job(Job::ProcessInbox).await;
        }
        let (state, attempts) = the_change(&world, &troubled).await;
        // Waits of 1, 2, 4, 8 and 16 s, each from half to whole.
        assert_eq!((state.as_str(), attempts), ("pending", 6));
        for _ in 0..120 {
            world.clock.advance(MINUTE);
            world.run_job(Job::ProcessInbox).await;
        }
        assert_eq!(world.tier("a-troubled").await, "starter active");
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance(5 * MINUTE).await;
        assert_eq!(world.tier("a-troubled").await, "pro active", "two hours later, by itself");
    }

    async fn when_stripe_fails_for_several_the_rest_does_not_queue_at_its_door(db: TestDb) {
        let world = World::start(&db).await;
        let mut subscriptions = Vec::new();
        for n in 0..6 {
            subscriptions.push(world.subscriber(&format!("c{n}"), "starter_monthly").await.1);
        }
        for subscription in &subscriptions {
            world.change_price_quietly(subscription, "pro_monthly").await;
        }
        world.sim.deliver_pending().await;
        let before = world.sim.requests().len();
        world.sim.fail_next("/v1/customers/", 1000, FaultKind::RateLimited);
        world.run_job(Job::ProcessInbox).await;
        assert_eq!(world.sim.requests().len() - before, 3, "three refusals are enough");
        let rows = world.list("/inbox?state=pending").await;
        let tried = |row: &&Value| row["attempts"] != 0;
        assert_eq!((rows.len(), rows.iter().filter(tried).count()), (6, 3), "none was lost");
        world.sim.change_faults(|faults| faults.api.clear());
        world.advance(SECOND).await;
        for n in 0..6 {
            assert_eq!(world.tier(&format!("c{n}")).await, "pro active");
        }
    }

    async fn what_only_a_person_can_mend_is_parked_with_its_reason(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        let (_, other) = world.subscriber("beta", "starter_monthly").await;
        sell_gold(&world).await;
        world.change_price(&subscription, "gold_monthly").await;
        let parked = world.list("/inbox?customer_id=acme&state=parked").await;
        assert_eq!(parked.len(), 1, "found under its customer");
        assert!(parked[0]["detail"].as_str().unwrap().contains("no price of a plan"));
        assert_eq!(world.tier("acme").await, "pro active", "the last tier that was known");
        world.change_price(&other, "pro_monthly").await;
        assert_eq!(world.tier("beta").await, "pro active");
        let before = world.everything().await;
        let refused = world.sync("acme").await;
        assert_eq!((refused.status, refused.error().as_str()), (409, "no_tier"));
        assert_eq!(world.everything().await, before);
        offer_gold(&world);
        world.run_job(Job::ReloadPlans).await;
        let report = world.sync("acme").await.ok();
        assert!(differences(&report).contains(&"plan: pro -> gold".to_owned()), "{report}");
        assert!(differences(&report).contains(&"parked webhooks: 1 -> -".to_owned()), "{report}");
        world.settle().await;
        assert_eq!(world.tier("acme").await, "gold active");
        assert_eq!(world.inbox_states().await, ["applied", "ignored"]);
    }

    async fn a_revoked_key_parks_nothing(db: TestDb) {
        let mut world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.restart_with(&[("STRIPE_SECRET_KEY", "sk_test_revoked")]).await;
        world.change_price(&subscription, "pro_monthly").await;
        assert_eq!(the_change(&world, &stripe_id).await, ("pending".to_owned(), 1));
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        world.advance(MINUTE).await;
        assert_eq!(the_change(&world, &stripe_id).await, ("pending".to_owned(), 2));
        world.restart_with(&[]).await;
        world.advance(5 * MINUTE).await;
        assert_eq!(world.tier("acme").await, "pro active");
    }

    async fn a_stripe_customer_that_never_was_takes_nothing_away(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, _) = world.subscriber("acme", "pro_monthly").await;
        let body = json!({"stripe_customer_id": "cus_of_another_account"});
        world.call("PUT", "/v1/customers/acme", &body).await.ok();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        let parked = world.list("/inbox?customer_id=acme&state=parked").await;
        assert!(parked[0]["detail"].as_str().unwrap().contains("no such customer"), "{parked:?}");
        let refused = world.sync("acme").await;
        assert_eq!((refused.status, refused.error().as_str()), (409, "no_such_stripe_customer"));
        world.call("PUT", "/v1/customers/acme", &json!({"stripe_customer_id": stripe_id})).await.ok();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(world.list("/inbox?state=parked").await, [Value::Null; 0]);
    }

    async fn names_from_stripe_are_cleaned_before_they_are_kept(db: TestDb) {
        let world = World::start(&db).await;
        world.call("PUT", "/v1/customers/acme", &json!({})).await.ok();
        let form = [("name", " Ac\u{0}me\r\nBcc: x "), ("email", "no address")];
        let stripe_id = world.stripe_customer(&form).await;
        let body = json!({"stripe_customer_id": stripe_id});
        world.call("PUT", "/v1/customers/acme", &body).await.ok();
        world.subscribe(&stripe_id, "pro_monthly").await;
        let shown = world.shown("acme").await;
        assert_eq!((&shown["name"], &shown["email"]), (&json!("AcmeBcc: x"), &Value::Null));
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(world.sync_dry("acme").await["differences"], json!([]));
    }
}

/// Sells a plan at Stripe that the plans file does not have.
async fn sell_gold(world: &World) {
    let form = [
        ("product_data[name]", "Gold"),
        ("lookup_key", "gold_monthly"),
        ("unit_amount", "99900"),
        ("currency", "usd"),
        ("recurring[interval]", "month"),
    ];
    world.stripe("POST", "/v1/prices", &form).await;
}

/// All that Stripe was asked, but for the list of what it could not deliver: that is asked for by
/// the clock, whoever is overdue.
fn calls(world: &World) -> Vec<String> {
    let requests = world.sim.requests().into_iter().filter(|asked| asked.path != "/v1/events");
    requests.map(|asked| format!("{} {}", asked.method, asked.path)).collect()
}

/// Adds it to the plans file.
fn offer_gold(world: &World) {
    const GOLD: &str = r#"
[[plans]]
id = "gold"
name = "Gold"
rank = 9
price = { amount = "999.00", currency = "usd", interval = "month", lookup_key = "gold_monthly" }
limits.ai_runs = { enforcement = "unlimited" }
"#;
    let plans = include_str!("../../plans.example.toml");
    let (before, after) = plans.split_once("\n[[plans]]").unwrap();
    std::fs::write(world.plans_file(), format!("{before}{GOLD}\n[[plans]]{after}")).unwrap();
}

both_databases! {
    async fn a_late_renewal_starts_its_period_once(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, _) = world.subscriber("acme", "starter_monthly").await;
        world.runs("acme", 200).await;
        world.lose_webhooks();
        // The clock alone: no job runs, so nobody asks Stripe.
        world.clock.advance_to("2026-12-01T08:59:59Z".parse().unwrap());
        assert_eq!(world.gate("acme").await, "false limit_reached");
        world.clock.advance(SECOND);
        let provisional = world.runs("acme", 11).await;
        assert_eq!(provisional["balance"]["usage"], 11);
        let december = json!({"start": "2026-12-01T09:00:00Z", "end": "2027-01-01T09:00:00Z"});
        assert_eq!(provisional["period"], december);
        world.clock.advance(2 * DAY);
        let renewed = world.events_of(&stripe_id).into_iter().rev()
            .find(|event| event["type"] == "customer.subscription.updated").unwrap();
        world.deliver(&renewed).await.ok();
        world.run_job(Job::ProcessInbox).await;
        let known = world.check("acme").await;
        assert_eq!((&known["balance"]["usage"], &known["period"]), (&json!(11), &december));
        assert_eq!(world.rows(&["usage_counters"]).await.len(), 2, "one for each month");
    }

    async fn reconcile_finds_a_renewal_and_an_end_that_nobody_told(db: TestDb) {
        let world = World::start(&db).await;
        let (_, _) = world.subscriber("renewed", "pro_monthly").await;
        let (_, ended) = world.subscriber("ended", "pro_monthly").await;
        world.lose_webhooks();
        world.change_subscription(&ended, &[("cancel_at_period_end", "true")]).await;
        world.clock.advance_to("2026-12-01T09:00:00Z".parse().unwrap());
        world.runs("renewed", 3).await;
        world.runs("ended", 3).await;
        world.run_job(Job::Reconcile).await;
        assert_eq!(world.tier("ended").await, "starter -");
        assert_eq!(world.usage("ended").await, 0);
        assert_eq!((world.tier("renewed").await.as_str(), world.usage("renewed").await),
            ("pro active", 3));
        let asked = calls(&world);
        world.run_job(Job::Reconcile).await;
        assert_eq!(calls(&world), asked, "nobody is overdue any more");
    }

    async fn reconcile_gets_past_those_that_stay_overdue(db: TestDb) {
        let world = World::start(&db).await;
        for n in 0..101 {
            let named = format!("paused-{n}");
            world.customer(&named).await;
            let form = [("metadata[tollgate_customer_id]", named.as_str())];
            let (_, subscription) = world.stranger_on_pro(&form).await;
            world.sim.set_subscription_status(&subscription, "paused").unwrap();
        }
        world.advance(DAY).await;
        let (_, ended) = world.subscriber("ended", "pro_monthly").await;
        world.lose_webhooks();
        world.change_subscription(&ended, &[("cancel_at_period_end", "true")]).await;
        world.clock.advance_to("2026-12-02T09:00:00Z".parse().unwrap());
        world.run_job(Job::Reconcile).await;
        assert_eq!(world.tier("ended").await, "starter -");
        assert_eq!(world.gate("paused-100").await, "false paused");
    }
}

both_databases! {
    async fn a_dry_run_tells_of_a_missed_upgrade_and_a_sync_applies_it(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.runs("acme", 200).await;
        world.lose_webhooks();
        world.change_price_quietly(&subscription, "pro_monthly").await;
        world.clock.advance(10 * MINUTE);
        let before = world.everything().await;
        let dry = world.sync_dry("acme").await;
        assert_eq!((&dry["customer_id"], &dry["dry_run"], &dry["changed"]),
            (&json!("acme"), &json!(true), &json!(false)));
        let found = differences(&dry);
        assert!(found.contains(&"plan: starter -> pro".to_owned()), "{found:?}");
        assert!(found.iter().any(|d| d.starts_with("usage: ")), "200 runs are due: {found:?}");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(world.sync_dry("acme").await["differences"], dry["differences"], "again");
        assert_eq!(world.everything().await, before, "looking changes nothing");
        assert_eq!(world.rows(&["leases"]).await, [""; 0]);
        assert_eq!(world.billed(&stripe_id), "0");

        let report = world.sync("acme").await.ok();
        assert_eq!((&report["dry_run"], &report["changed"]), (&json!(false), &json!(true)));
        assert!(differences(&report).contains(&"plan: starter -> pro".to_owned()), "{report}");
        assert_eq!(world.run("acme").await["balance"]["usage"], 201);
        assert_eq!(world.billed(&stripe_id), "200");
        assert_eq!(upgrade_notices(&world, "acme").await.len(), 1);

        let settled = world.everything().await;
        let again = world.sync("acme").await.ok();
        assert_eq!((&again["differences"], &again["changed"]), (&json!([]), &json!(false)));
        assert_eq!(world.everything().await, settled);
    }

    async fn every_sync_by_support_leaves_an_audit_row(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.lose_webhooks();
        world.change_price_quietly(&subscription, "pro_monthly").await;
        world.sync_dry("acme").await;
        world.clock.advance(SECOND);
        let report = world.sync("acme").await.ok();
        let rows = world.list("/audit?customer_id=acme").await;
        assert_eq!(rows.len(), 2, "{rows:?}");
        for (row, dry_run) in rows.iter().zip([false, true]) {
            assert_eq!((&row["actor"], &row["action"]), (&json!("admin"), &json!("sync")));
            assert_eq!(row["detail"]["dry_run"], dry_run, "the newest first");
        }
        assert_eq!(rows[0]["detail"], report, "what was found is kept");
        assert_eq!(world.list("/audit?customer_id=beta").await, [Value::Null; 0]);
    }

    async fn a_sync_sends_again_what_was_parked_on_its_way_to_stripe(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, _) = world.subscriber("acme", "pro_monthly").await;
        let meters = world.stripe("GET", "/v1/billing/meters", &[]).await;
        let meter = format!("/v1/billing/meters/{}", meters["data"][0]["id"].as_str().unwrap());
        world.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
        world.stripe("POST", &format!("{meter}/deactivate"), &[]).await;
        world.runs("acme", 42).await;
        world.advance(10 * MINUTE).await;
        assert_eq!(world.list("/outbox?customer_id=acme&state=parked").await.len(), 1);
        world.stripe("POST", &format!("{meter}/reactivate"), &[]).await;
        world.settle().await;
        let before = world.everything().await;
        let dry = world.sync_dry("acme").await;
        assert_eq!(differences(&dry)[0], "parked meter events: 1 -> -", "{dry}");
        assert_eq!(world.everything().await, before);
        assert_eq!(world.sync("acme").await.ok()["changed"], true);
        assert_eq!(world.billed(&stripe_id), "42");
        assert_eq!(world.list("/outbox?state=parked").await, [Value::Null; 0]);
        assert_eq!(world.sync("acme").await.ok()["differences"], json!([]));
        assert_eq!(world.billed(&stripe_id), "42", "and no unit twice");
    }

    async fn sync_is_for_support_and_for_customers_that_exist(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let path = "/admin/api/v1/customers/acme/sync";
        for (key, path, answer) in [
            (API_KEY, path, (403, "forbidden")),
            ("no-such-key-0123456789", path, (401, "unauthorized")),
            (ADMIN_TOKEN, "/admin/api/v1/customers/nobody/sync", (404, "unknown_customer: customer_id")),
            (ADMIN_TOKEN, "/admin/api/v1/customers/nobody/sync?dry_run=true", (404, "unknown_customer: customer_id")),
            (ADMIN_TOKEN, "/admin/api/v1/customers/acme/sync?dry_run=maybe", (422, "invalid_value: dry_run")),
            (ADMIN_TOKEN, "/admin/api/v1/customers/acme/sync?dryrun=true", (422, "unknown_field: dryrun")),
        ] {
            let reply = world.call_as(key, "POST", path, &Value::Null).await;
            assert_eq!((reply.status, reply.error().as_str()), answer, "{path}");
        }
        let nothing = world.sync("acme").await.ok();
        assert_eq!((&nothing["changed"], &nothing["differences"]), (&json!(false), &json!([])),
            "a customer without a Stripe customer is as it should be");
        assert_eq!(world.list("/audit").await.len(), 1, "of the one that was done");
    }

    async fn while_stripe_is_down_a_sync_says_so_and_changes_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.lose_webhooks();
        world.change_price_quietly(&subscription, "pro_monthly").await;
        let before = world.everything().await;
        world.sim.fail_next("/v1/subscriptions", 1, FaultKind::RateLimited);
        let failed = world.sync("acme").await;
        assert_eq!((failed.status, failed.error().as_str()), (503, "stripe_unavailable"));
        assert_eq!(world.everything().await, before);
        assert_eq!(world.sync("acme").await.ok()["changed"], true);
        assert_eq!(world.tier("acme").await, "pro active");
    }

    async fn many_syncs_at_once_double_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.runs("acme", 200).await;
        let version = entitlement_version(&world, "acme").await;
        world.change_price_quietly(&subscription, "pro_monthly").await;
        world.clock.advance(10 * MINUTE);
        let mut syncs = JoinSet::new();
        for _ in 0..12 {
            let url = world.url("/admin/api/v1/customers/acme/sync");
            syncs.spawn(world.http.post(url).bearer_auth(ADMIN_TOKEN).send());
        }
        world.settle().await;
        let answers: Vec<u16> =
            syncs.join_all().await.into_iter().map(|answer| answer.unwrap().status().as_u16()).collect();
        assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
        world.advance(MINUTE).await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(entitlement_version(&world, "acme").await, version + 1);
        assert_eq!(upgrade_notices(&world, "acme").await.len(), 1);
        assert_eq!(world.billed(&stripe_id), "200");
        assert_eq!(world.sync("acme").await.ok()["differences"], json!([]));
    }

    async fn a_sync_that_stalled_past_its_lease_writes_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.lose_webhooks();
        world.sim.fail_next("/v1/subscriptions", 1, FaultKind::DelayMs(300_000));
        let asked = world.sim.requests().len();
        let stalled = tokio::spawn({
            let url = world.url("/admin/api/v1/customers/acme/sync");
            world.http.post(url).bearer_auth(ADMIN_TOKEN).send()
        });
        // For the customer, and then for its subscriptions, where it stalls.
        while world.sim.requests().len() < asked + 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.sync("acme").await.error(), "busy", "one worker per customer");
        world.clock.advance(200 * SECOND);
        assert_eq!(world.sync("acme").await.ok()["changed"], false, "its lease is taken over");
        world.change_price_quietly(&subscription, "pro_monthly").await;
        world.clock.advance(600 * SECOND);
        assert_eq!(stalled.await.unwrap().unwrap().status(), 503);
        assert_eq!(world.tier("acme").await, "starter active");
        assert_eq!(world.sync("acme").await.ok()["changed"], true);
    }
}
