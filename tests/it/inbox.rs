//! The inbox in depth: thin events, events that wait for their customer, replays, and webhooks that
//! never came.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::domain::customer::{Customer, Profile, Tier};
use tollgate::jobs::Job;
use tollgate::sim::FaultKind;

use crate::harness::webhooks::event;
use crate::harness::world::{API_KEY, World};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// What a destination for thin events gets.
fn thin(event_type: &str, object_id: &str, object_type: &str) -> Value {
    json!({
        "id": format!("evt_thin_{object_id}"), "object": "v2.core.event", "livemode": false,
        "type": format!("v1.{event_type}"), "created": "2026-11-01T09:00:00.000Z",
        "related_object": {"id": object_id, "type": object_type, "url": format!("/v1/x/{object_id}")},
    })
}

/// What became of an event: its state, what it waits for, and why.
async fn fate(world: &World, event_id: &str) -> String {
    let rows = world.list("/inbox").await;
    let row = rows.iter().find(|row| row["event_id"] == event_id).expect("it is in the inbox");
    let waits_for = row["waits_for"].as_str().unwrap_or("-");
    format!("{} {waits_for}", row["state"].as_str().unwrap())
}

both_databases! {
    async fn a_thin_event_finds_whose_it_is_by_its_object(db: TestDb) {
        let world = World::start(&db).await;
        world.lose_webhooks();
        let metadata = |id| [("metadata[tollgate_customer_id]", id)];
        for customer in ["of-session", "of-invoice", "of-customer", "of-subscription"] {
            world.customer(customer).await;
        }
        let (by_session, _) = world.stranger_on_pro(&[]).await;
        let (_, invoiced) = world.stranger_on_pro(&metadata("of-invoice")).await;
        let (by_customer, _) = world.stranger_on_pro(&metadata("of-customer")).await;
        let (_, by_subscription) = world.stranger_on_pro(&metadata("of-subscription")).await;
        let invoiced = world.stripe("GET", &format!("/v1/subscriptions/{invoiced}"), &[]).await;
        let price = world.price("starter_monthly").await;
        let form = [
            ("mode", "subscription"), ("customer", by_session.as_str()),
            ("client_reference_id", "of-session"), ("success_url", "https://example.com"),
            ("line_items[0][price]", &price), ("line_items[0][quantity]", "1"),
        ];
        let session = world.stripe("POST", "/v1/checkout/sessions", &form).await;
        for (event_type, object, word) in [
            ("checkout.session.expired", session["id"].as_str().unwrap(), "checkout.session"),
            ("invoice.paid", invoiced["latest_invoice"].as_str().unwrap(), "invoice"),
            ("customer.updated", &by_customer, "customer"),
            ("customer.subscription.updated", &by_subscription, "subscription"),
        ] {
            world.deliver(&thin(event_type, object, word)).await.ok();
        }
        world.run_job(Job::ProcessInbox).await;
        for customer in ["of-session", "of-invoice", "of-customer", "of-subscription"] {
            assert_eq!(world.tier(customer).await, "pro active", "{customer}");
        }
        assert_eq!(world.inbox_states().await, ["applied"]);
    }

    async fn an_event_that_is_about_nobody_is_kept_and_ignored(db: TestDb) {
        let world = World::start(&db).await;
        let left = json!({"id": "cs_left", "object": "checkout.session", "customer": null});
        world.deliver(&event("evt_left", "checkout.session.expired", &left)).await.ok();
        world.deliver(&thin("customer.subscription.trial_will_end", "sub_1", "subscription")).await.ok();
        world.settle().await;
        assert_eq!(world.inbox_states().await, ["ignored"]);
        // A key of another account, perhaps: someone should know.
        let gone = thin("customer.subscription.deleted", "sub_gone", "subscription");
        world.deliver(&gone).await.ok();
        world.settle().await;
        assert_eq!(fate(&world, "evt_thin_sub_gone").await, "parked -");
        assert_eq!(world.subjects(), Vec::<String>::new(), "no event of Stripe's sends a mail");
    }

    async fn an_event_says_that_it_waits_for_its_customer_and_does_so_in_peace(db: TestDb) {
        let world = World::start(&db).await;
        world.lose_webhooks();
        let (stripe_id, _) = world.stranger_on_pro(&[("metadata[tollgate_customer_id]", "acme")]).await;
        let paid = json!({"id": "in_1", "object": "invoice", "customer": stripe_id});
        world.deliver(&event("evt_1", "invoice.paid", &paid)).await.ok();
        world.settle().await;
        assert_eq!(fate(&world, "evt_1").await, "parked customer");
        let asked = world.sim.requests().len();
        world.run_job(Job::ProcessInbox).await;
        assert_eq!(world.sim.requests().len(), asked, "waiting asks Stripe nothing");
        // Someone makes the customer in the very moment in which its event is parked, and finds
        // nothing to put back.
        let app = world.app();
        let mut tx = app.store.begin().await.unwrap();
        let made = Customer {
            id: "acme".parse().unwrap(), profile: Profile::default(), stripe_customer_id: None,
            created_at: tx.now, tier: Tier::initial(tx.now), terms_version: None,
            has_quotas: false, revision: 1,
        };
        assert!(tx.insert_customer(&made).await.unwrap());
        tx.commit().await.unwrap();
        world.run_job(Job::ProcessInbox).await;
        assert_eq!(fate(&world, "evt_1").await, "applied -");
        assert_eq!(world.tier("acme").await, "pro active");
    }

    async fn what_cannot_be_read_waits_for_a_person_and_keeps_nobody_else_waiting(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.settle().await;
        world.lose_webhooks();
        for _ in 0..3 {
            let (_, odd) = world.stranger_on_pro(&[]).await;
            world.sim.fail_next(&format!("/v1/subscriptions/{odd}"), 1, FaultKind::OtherShape);
            let told = thin("customer.subscription.updated", &odd, "subscription");
            world.deliver(&told).await.ok();
        }
        let progress = Job::ProcessInbox.step(world.app()).await.unwrap();
        assert_eq!(progress.note, None, "Stripe is there");
        let parked = world.list("/inbox?state=parked").await;
        assert_eq!(parked.len(), 3);
        assert!(parked[0]["detail"].as_str().unwrap().contains("cannot be read"), "{parked:?}");

        // Nor does Stripe's being slow about one kind of object keep tiers waiting.
        world.sim.fail_next("/v1/invoices", 3, FaultKind::RateLimited);
        world.change_price_quietly(&subscription, "pro_monthly").await;
        let paid = json!({"id": "in_9", "object": "invoice", "customer": stripe_id});
        world.deliver(&event("evt_1", "invoice.paid", &paid)).await.ok();
        for n in 0..3 {
            let told = thin("invoice.paid", &format!("in_{n}"), "invoice");
            world.deliver(&told).await.ok();
        }
        let progress = Job::ProcessInbox.step(world.app()).await.unwrap();
        assert!(progress.note.unwrap().contains("the rest waits"));
        assert_eq!((fate(&world, "evt_1").await, world.tier("acme").await),
            ("applied -".to_owned(), "pro active".to_owned()));
    }

    async fn an_event_is_parked_after_its_last_try_and_supports_sync_revives_it(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.lose_webhooks();
        world.change_price_quietly(&subscription, "pro_monthly").await;
        let (told, began_at) = (last_change(&world), world.now());
        world.deliver(world.events_of(&stripe_id).last().unwrap()).await.ok();
        let path = format!("/v1/customers/{stripe_id}");
        world.sim.fail_next(&path, u32::MAX, FaultKind::RateLimited);
        let mut tries = 0;
        while fate(&world, &told).await == "pending -" {
            assert!(world.now().since(began_at) < 4 * DAY, "not tried for ever");
            let before = world.sim.requests().len();
            world.run_job(Job::ProcessInbox).await;
            tries += world.sim.requests().split_off(before).iter().filter(|r| r.path == path).count();
            world.clock.advance(5 * MINUTE);
        }
        assert!(tries == 1000 && world.now().since(began_at) > 3 * DAY, "{tries} tries");
        let parked = world.list("/inbox?state=parked&customer_id=acme").await;
        assert_eq!((parked.len(), &parked[0]["attempts"], &parked[0]["waits_for"]), (1, &json!(1000), &Value::Null));
        assert!(parked[0]["detail"].as_str().unwrap().contains("429"), "{parked:?}");

        world.sim.change_faults(|faults| faults.api.clear());
        world.clock.advance(HOUR);
        world.run_job(Job::ProcessInbox).await;
        assert_eq!((fate(&world, &told).await.as_str(), world.tier("acme").await.as_str()),
            ("parked -", "starter active"), "only a person mends it");
        assert_eq!(world.sync("acme").await.ok()["changed"], true);
        assert_eq!((fate(&world, &told).await.as_str(), world.tier("acme").await.as_str()),
            ("applied -", "pro active"));
    }

    async fn a_customer_deleted_at_stripe_before_its_events_came_is_no_trouble(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, _) = world.subscriber("acme", "pro_monthly").await;
        world.lose_webhooks();
        let (unknown, _) = world.stranger_on_pro(&[]).await;
        for gone in [&stripe_id, &unknown] {
            world.stripe("DELETE", &format!("/v1/customers/{gone}"), &[]).await;
            for late in world.events_of(gone).iter().rev() {
                world.deliver(late).await.ok();
            }
        }
        world.settle().await;
        assert_eq!(world.tier("acme").await, "starter -");
        let parked = world.list("/inbox?state=parked").await;
        let deleted = |row: &Value| row["event_type"] == "customer.deleted";
        assert!(parked.iter().any(deleted), "nobody is known whom it could be about: {parked:?}");
        assert!(parked.iter().all(|row| row["stripe_customer_id"] == unknown.as_str()), "{parked:?}");
    }
}

both_databases! {
    async fn a_parked_event_is_replayed_once_however_often_it_is_asked_for(db: TestDb) {
        let world = World::start(&db).await;
        let path = "/inbox/evt_mine/replay";
        let invoice = json!({"id": "in_1", "object": "invoice", "customer": "cus_nobody"});
        world.deliver(&event("evt_mine", "invoice.paid", &invoice)).await.ok();
        world.settle().await;
        assert_eq!(fate(&world, "evt_mine").await, "parked customer");
        let replayed = world.admin("POST", path).await.ok();
        assert_eq!((&replayed["state"], &replayed["attempts"]), (&json!("pending"), &json!(0)));
        assert_eq!(world.admin("POST", path).await.ok(), replayed, "and again");
        let audit = world.list("/audit").await;
        assert_eq!(audit.len(), 1, "what changed nothing leaves no entry: {audit:?}");
        assert_eq!((&audit[0]["action"], &audit[0]["detail"]["state"], &audit[0]["detail"]["event_id"]),
            (&json!("replay_event"), &json!("parked"), &json!("evt_mine")));
        world.settle().await;
        assert_eq!(fate(&world, "evt_mine").await, "parked customer", "for the same reason");
    }

    async fn a_replay_of_what_was_applied_doubles_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.change_price(&subscription, "pro_monthly").await;
        let tables = ["customers", "usage_counters", "notices", "meter_events"];
        let before = world.rows(&tables).await;
        for told in world.events_of(&stripe_id) {
            let path = format!("/inbox/{}/replay", told["id"].as_str().unwrap());
            assert_eq!(world.admin("POST", &path).await.ok()["state"], "pending");
        }
        world.settle().await;
        assert_eq!(world.rows(&tables).await, before);
        assert_eq!(world.inbox_states().await, ["applied", "ignored"]);
    }

    async fn a_replay_is_for_support_and_for_events_that_are_there(db: TestDb) {
        let world = World::start(&db).await;
        let odd = "x".repeat(300);
        for (id, path) in [("evt_1", "evt_1"), ("nul", "a%00b"), ("long", odd.as_str()), ("bytes", "%FF")] {
            let reply = world.admin("POST", &format!("/inbox/{path}/replay")).await;
            assert_eq!((reply.status, reply.error().as_str()), (404, "unknown_event: event_id"), "{id}");
        }
        let path = "/admin/api/v1/inbox/evt_1/replay";
        assert_eq!(world.call_as(API_KEY, "POST", path, &Value::Null).await.status, 403);
        assert_eq!(world.list("/audit").await, [Value::Null; 0]);
    }
}

both_databases! {
    async fn what_stripe_could_not_deliver_in_four_days_is_fetched_at_the_next_tick(db: TestDb) {
        let mut world = World::start(&db).await;
        let (_, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.settle().await;
        world.stop().await;
        world.change_price_quietly(&subscription, "pro_monthly").await;
        let (changed_at, id) = (world.now(), last_change(&world));
        // Every retry finds nobody; then Stripe has given up.
        while world.now().since(changed_at) < 4 * DAY {
            world.sim.deliver_pending().await;
            world.clock.advance(HOUR);
        }
        world.try_boot().await.unwrap();
        world.sim.deliver_pending().await;
        assert_eq!(world.tier("acme").await, "starter active");
        world.run_job(Job::Reconcile).await;
        assert_eq!(fate(&world, &id).await, "pending -", "in the inbox as if it had come");
        world.run_job(Job::ProcessInbox).await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(fate(&world, &id).await, "applied -");
    }

    async fn a_long_list_of_undelivered_events_is_read_bit_by_bit_and_once(db: TestDb) {
        let world = World::start(&db).await;
        world.run_job(Job::Reconcile).await;
        world.lose_webhooks();
        let customer = world.stripe("POST", "/v1/customers", &[]).await;
        for _ in 1..1250 {
            world.sim.tell("customer.updated", &customer);
        }
        world.sim.tell("customer.tax_id.created", &customer);
        // How many pages a tick reads, and how many events are in the inbox after it.
        let tick = async || {
            let before = pages(&world);
            Job::Reconcile.step(world.app()).await.unwrap();
            (pages(&world) - before, world.rows(&["stripe_events"]).await.len())
        };
        assert_eq!(tick().await, (0, 0), "Stripe was asked just now");
        // What was read is read again once, because an event may be listed late.
        for expected in [(10, 1000), (3, 1250), (10, 1250), (3, 1250), (1, 1250), (1, 1250)] {
            world.clock.advance(HOUR);
            assert_eq!(tick().await, expected);
        }
        world.clock.advance(HOUR);
        world.sim.tell("customer.updated", &customer);
        assert_eq!(tick().await, (1, 1250), "it may be on its way");
        world.clock.advance(HOUR);
        assert_eq!(tick().await, (1, 1251));
    }

    async fn a_clock_that_was_once_ahead_does_not_silence_the_list(db: TestDb) {
        let world = World::start(&db).await;
        let ahead = world.now().plus(30 * DAY);
        let noted = json!({"read_to": ahead, "under_way": null, "asked_at": ahead}).to_string();
        world.app().store.put_setting("missed_webhooks", &noted).await.unwrap();
        Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(pages(&world), 1);
        let (asked, noted) = (world.sim.requests(), world.app().store.setting("missed_webhooks").await);
        let from = world.now().minus(30 * DAY).seconds();
        assert!(asked.last().unwrap().query.contains(&from.to_string()), "from where nothing is known");
        assert!(!noted.unwrap().unwrap().contains(&ahead.to_string()));
    }

    async fn a_list_that_cannot_be_had_stops_neither_the_looks_nor_the_next_try(db: TestDb) {
        let world = World::start(&db).await;
        let (_, ended) = world.subscriber("ended", "pro_monthly").await;
        world.lose_webhooks();
        let path = format!("/v1/subscriptions/{ended}");
        world.stripe("POST", &path, &[("cancel_at_period_end", "true")]).await;
        world.clock.advance_to("2026-12-01T09:00:00Z".parse().unwrap());
        world.sim.fail_next("/v1/events", 1, FaultKind::RateLimited);
        let progress = Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(progress.note.as_deref(), Some("undelivered webhooks could not be listed"));
        assert_eq!(world.tier("ended").await, "starter -", "found by looking");
        let asked = pages(&world);
        Job::Reconcile.step(world.app()).await.unwrap();
        assert_eq!(pages(&world), asked, "Stripe was asked just now");
        world.clock.advance(HOUR);
        let progress = Job::Reconcile.step(world.app()).await.unwrap();
        assert!(progress.note.unwrap().ends_with("missed webhooks found"));
    }
}

/// The id of the newest change of a subscription.
fn last_change(world: &World) -> String {
    let events = world.sim.events();
    let change = events.iter().rev().find(|told| told["type"] == "customer.subscription.updated");
    change.expect("it was changed")["id"].as_str().unwrap().to_owned()
}

/// How many pages of events Stripe has been asked for.
fn pages(world: &World) -> usize {
    world.sim.requests().iter().filter(|asked| asked.path == "/v1/events").count()
}

/// Stripe has nobody to tell of anything any more, so that no list says what was not delivered.
async fn forget_our_endpoint(world: &World) {
    let endpoints = world.stripe("GET", "/v1/webhook_endpoints", &[]).await;
    let id = endpoints["data"][0]["id"].as_str().unwrap();
    world.stripe("DELETE", &format!("/v1/webhook_endpoints/{id}"), &[]).await;
}

/// Ticks once an hour, so many times, and notes after each how many are on Pro.
async fn tick(world: &World, customers: usize, hours: usize) -> Vec<usize> {
    let mut found = Vec::new();
    for _ in 0..hours {
        world.clock.advance(HOUR);
        world.run_job(Job::Reconcile).await;
        let mut on_pro = 0;
        for n in 0..customers {
            on_pro += usize::from(world.tier(&format!("c{n}")).await == "pro active");
        }
        found.push(on_pro);
    }
    found
}

both_databases! {
    async fn the_sweep_looks_at_everyone_once_a_day_bit_by_bit(db: TestDb) {
        let world = World::start(&db).await;
        let mut subscriptions = Vec::new();
        for n in 0..4 {
            subscriptions.push(world.subscriber(&format!("c{n}"), "starter_monthly").await.1);
            world.clock.advance(MINUTE);
        }
        world.customer("local").await;
        forget_our_endpoint(&world).await;
        for subscription in &subscriptions {
            world.change_price_quietly(subscription, "pro_monthly").await;
        }
        let looks = world.looks();
        assert_eq!(tick(&world, 4, 23).await, [0; 23], "who was looked at today waits");
        assert_eq!(world.looks(), looks);
        assert_eq!(tick(&world, 4, 6).await, [1, 2, 3, 4, 4, 4]);
        assert_eq!(world.looks() - looks, 4);
        assert_eq!(tick(&world, 4, 24).await, [4; 24]);
        assert_eq!(world.looks() - looks, 8, "and once more tomorrow");
    }

    async fn one_who_cannot_be_looked_at_does_not_keep_the_sweep_from_the_others(db: TestDb) {
        let world = World::start(&db).await;
        let mut subscriptions = Vec::new();
        for n in 0..3 {
            subscriptions.push(world.subscriber(&format!("c{n}"), "starter_monthly").await);
            world.clock.advance(MINUTE);
        }
        forget_our_endpoint(&world).await;
        for (_, subscription) in &subscriptions {
            world.change_price_quietly(subscription, "pro_monthly").await;
        }
        assert_eq!(tick(&world, 3, 23).await, [0; 23]);
        let troubled = format!("/v1/customers/{}", subscriptions[0].0);
        world.sim.fail_next(&troubled, 1, FaultKind::LockTimeout);
        assert_eq!(tick(&world, 3, 5).await, [0, 1, 2, 3, 3]);
    }

    async fn when_stripe_is_down_the_sweep_waits_and_forgets_nobody(db: TestDb) {
        let world = World::start(&db).await;
        for n in 0..6 {
            let (_, subscription) = world.subscriber(&format!("c{n}"), "starter_monthly").await;
            world.lose_webhooks();
            world.change_price_quietly(&subscription, "pro_monthly").await;
            world.sim.change_faults(|faults| faults.drop_webhooks = false);
        }
        forget_our_endpoint(&world).await;
        world.clock.advance(2 * DAY);
        world.sim.fail_next("/v1/events", 1000, FaultKind::RateLimited);
        world.sim.fail_next("/v1/customers", 1000, FaultKind::RateLimited);
        let before = world.sim.requests().len();
        let progress = Job::Reconcile.step(world.app()).await.unwrap();
        assert!(progress.note.unwrap().contains("Stripe does not answer now"));
        assert_eq!(world.sim.requests().len() - before, 4, "one list and three customers");
        world.sim.change_faults(|faults| faults.api.clear());
        world.sim.fail_next("/v1/events", 1000, FaultKind::RateLimited);
        assert_eq!(tick(&world, 6, 4).await, [3, 4, 5, 6], "the three come again later");
    }
}
