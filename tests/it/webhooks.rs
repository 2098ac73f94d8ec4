//! `POST /webhooks/stripe`: what is let in, what is kept, and what comes of it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::jobs::Job;

use crate::harness::postgres::TestDb;
use crate::harness::sdk;
use crate::harness::webhooks::{event, sign, v1};
use crate::harness::world::{WEBHOOK_SECRET, World};

const REFUSED: &str = "invalid_signature: Stripe-Signature";

/// An event that is about nobody here, to be let in or refused.
fn some_event(id: &str) -> String {
    let object = json!({"id": "cus_zoe", "object": "customer", "name": "Zoë", "metadata": {}});
    event(id, "customer.updated", &object).to_string()
}

/// The same change one byte further: another byte, and never the same.
fn alter(bytes: &[u8], place: usize) -> Vec<u8> {
    let mut altered = bytes.to_owned();
    altered[place] ^= 1;
    altered
}

both_databases! {
    async fn what_the_official_sdk_signs_is_taken_and_one_altered_byte_is_not(db: TestDb) {
        let world = World::start(&db).await;
        let body = some_event("evt_sdk");
        let header = sdk::sign(WEBHOOK_SECRET, world.now(), &body).await;
        for place in 0..body.len() {
            let reply = world.post_webhook(Some(&header), alter(body.as_bytes(), place)).await;
            assert_eq!((reply.status, reply.error().as_str()), (400, REFUSED), "byte {place}");
        }
        for place in 0..header.len() {
            let altered = String::from_utf8(alter(header.as_bytes(), place)).unwrap();
            let reply = world.post_webhook(Some(&altered), body.as_str()).await;
            assert_eq!((reply.status, reply.error().as_str()), (400, REFUSED), "{altered}");
        }
        assert_eq!(world.list("/inbox").await, [Value::Null; 0], "nothing refused is kept");
        world.post_webhook(Some(&header), body).await.ok();
        let kept = world.list("/inbox").await;
        assert_eq!((kept.len(), &kept[0]["event_id"]), (1, &json!("evt_sdk")));
    }

    async fn any_v1_under_any_secret_in_rotation_is_taken(db: TestDb) {
        let mut world = World::start(&db).await;
        world.restart_with(&[("STRIPE_WEBHOOK_SECRET", "whsec_older, whsec_newer")]).await;
        let (now, body) = (world.now(), some_event("evt_1"));
        let t = now.seconds();
        let by = |secret: &str| v1(secret, t, body.as_bytes());
        for (header, status) in [
            (format!("t={t},v1={}", by("whsec_older")), 200),
            (format!("t={t},v1={}", by("whsec_newer")), 200),
            (format!("t={t},v1={},v1={}", "0".repeat(64), by("whsec_newer")), 200),
            (format!("t={t},v1={},v1=,v0=1", by("whsec_older")), 200),
            (format!("v1={},t={t}", by("whsec_older")), 200),
            (format!("t={t},v0={}", by("whsec_newer")), 400),
            (format!("t={t},v1={}", by(WEBHOOK_SECRET)), 400),
            (format!("t={t},v1={}", by("whsec_older, whsec_newer")), 400),
            (format!("t={t},v1={}", by("whsec_newer").to_uppercase()), 400),
        ] {
            let reply = world.post_webhook(Some(&header), body.as_str()).await;
            assert_eq!(reply.status, status, "{header}: {}", reply.body);
        }
        world.restart_with(&[("STRIPE_WEBHOOK_SECRET", "whsec_newer")]).await;
        let header = sign("whsec_older", now, body.as_bytes());
        assert_eq!(world.post_webhook(Some(&header), body).await.error(), REFUSED, "rolled out");
        assert_eq!(world.list("/inbox").await.len(), 1);
    }

    async fn five_minutes_either_way_are_taken_and_a_second_more_is_not(db: TestDb) {
        let world = World::start(&db).await;
        for (offset_s, status) in [(-301, 400), (-300, 200), (0, 200), (300, 200), (301, 400)] {
            let body = some_event(&format!("evt_{offset_s}"));
            let seconds = world.now().seconds() + offset_s;
            let header = format!("t={seconds},v1={}", v1(WEBHOOK_SECRET, seconds, body.as_bytes()));
            let reply = world.post_webhook(Some(&header), body).await;
            assert_eq!(reply.status, status, "{offset_s} s: {}", reply.body);
        }
        assert_eq!(world.list("/inbox").await.len(), 3);
    }

    async fn without_a_signature_of_ours_nothing_is_taken(db: TestDb) {
        let world = World::start(&db).await;
        let body = some_event("evt_forged");
        let (now, t) = (world.now(), world.now().seconds());
        let good = v1(WEBHOOK_SECRET, t, body.as_bytes());
        let headers = [
            None,
            Some(String::new()),
            Some("t=".to_owned()),
            Some(format!("v1={good}")),
            Some(format!("t={t}")),
            Some(format!("t={t},v1=")),
            Some(format!("t={t}000000000000000000000,v1={good}")),
            Some(format!("t={t},t={t},v1={good}")),
            Some(sign("", now, body.as_bytes())),
            Some(sign(" ", now, body.as_bytes())),
            Some(sign("whsec_", now, body.as_bytes())),
            Some(format!("t={t},v1={}", good.repeat(200))),
        ];
        for header in headers {
            let reply = world.post_webhook(header.as_deref(), body.as_str()).await;
            assert_eq!((reply.status, reply.error().as_str()), (400, REFUSED), "{header:?}");
        }
        assert_eq!(world.list("/inbox").await, [Value::Null; 0]);
    }

    async fn without_a_secret_configured_even_an_empty_one_lets_nothing_in(db: TestDb) {
        let mut world = World::start(&db).await;
        world.restart_with(&[("STRIPE_WEBHOOK_SECRET", "")]).await;
        let body = some_event("evt_1");
        for secret in ["", WEBHOOK_SECRET] {
            let header = sign(secret, world.now(), body.as_bytes());
            let reply = world.post_webhook(Some(&header), body.as_str()).await;
            // Stripe keeps what is refused like this and sends it again.
            assert_eq!((reply.status, reply.error().as_str()), (503, "not_configured"));
        }
        assert_eq!(world.list("/inbox").await, [Value::Null; 0]);
    }

    async fn signed_but_no_event_is_malformed(db: TestDb) {
        let world = World::start(&db).await;
        let long = format!(r#"{{"id":"{}","type":"a"}}"#, "x".repeat(256));
        let bodies: [&[u8]; 12] = [
            b"", b"{", b"<html>", b"null", b"[]", b"\"evt_1\"", br#"{"id":"evt_1"}"#,
            br#"{"id":7,"type":"a"}"#, br#"{"id":"evt\u0000","type":"a"}"#,
            br#"{"id":"","type":"a"}"#, b"{\"id\":\"evt_1\",\"type\":\"\xff\"}", long.as_bytes(),
        ];
        for body in bodies {
            let header = sign(WEBHOOK_SECRET, world.now(), body);
            let reply = world.post_webhook(Some(&header), body).await;
            let text = String::from_utf8_lossy(body);
            assert_eq!((reply.status, reply.error().as_str()), (400, "malformed"), "{text}");
        }
        assert_eq!(world.list("/inbox").await, [Value::Null; 0]);
    }

    async fn a_body_of_one_mib_is_taken_and_a_byte_more_is_not(db: TestDb) {
        let world = World::start(&db).await;
        let event = some_event("evt_big");
        let padded = |length: usize| event.clone() + &" ".repeat(length - event.len());
        for (length, status) in [((1 << 20) + 1, 413), (2 << 20, 413), (1 << 20, 200)] {
            let body = padded(length);
            let header = sign(WEBHOOK_SECRET, world.now(), body.as_bytes());
            let before = world.list("/inbox").await.len();
            let reply = world.post_webhook(Some(&header), body).await;
            assert_eq!(reply.status, status, "{length} bytes");
            assert_eq!(world.list("/inbox").await.len() - before, usize::from(status == 200));
        }
    }

    async fn an_event_of_the_other_mode_is_refused(db: TestDb) {
        let world = World::start(&db).await;
        let mut live: Value = serde_json::from_str(&some_event("evt_live")).unwrap();
        live["livemode"] = json!(true);
        let reply = world.deliver(&live).await;
        assert_eq!((reply.status, reply.error().as_str()), (400, "wrong_mode: livemode"));
        assert_eq!(world.list("/inbox").await, [Value::Null; 0]);
    }

    async fn an_event_of_an_unknown_type_is_kept_and_ignored(db: TestDb) {
        let world = World::start(&db).await;
        let nobody = json!({"id": "thing_1", "object": "thing", "customer": "cus_1"});
        for kind in ["brand.new.thing", "charge.refunded", "x"] {
            world.deliver(&event(&format!("evt_{kind}"), kind, &nobody)).await.ok();
        }
        world.deliver(&json!({"id": "evt_bare", "type": "bare"})).await.ok();
        world.settle().await;
        assert_eq!(world.list("/inbox").await.len(), 4);
        assert_eq!(world.inbox_states().await, ["ignored"]);
    }
}

/// A Stripe customer on Pro of whom nobody here knows, unless its subscription's metadata says who it
/// is; its webhooks have arrived.
async fn parked_stranger(world: &World, metadata: &[(&str, &str)]) -> (String, String) {
    let stripe_id = world.stripe_customer(&[("email", "z@example.com")]).await;
    let subscription = world.subscribe_quietly(&stripe_id, metadata).await;
    world.settle().await;
    (stripe_id, subscription)
}

/// What concerns a tier is applied; of the rest nothing waits.
async fn assert_nothing_waits(world: &World) {
    let rows = world.list("/inbox").await;
    let waiting: Vec<_> =
        rows.iter().filter(|row| row["state"] == "parked" || row["state"] == "pending").collect();
    assert!(waiting.is_empty(), "{waiting:?}");
}

both_databases! {
    async fn an_unknown_customers_events_are_parked_and_applied_when_it_is_linked(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (stripe_id, _) = parked_stranger(&world, &[]).await;
        let parked = world.list("/inbox?state=parked").await;
        assert!(parked.iter().any(|row| row["event_type"] == "customer.subscription.created"));
        assert!(parked.iter().all(|row| row["detail"].as_str().unwrap().contains("tied")));
        assert_eq!(world.tier("acme").await, "starter -");
        world.lose_webhooks();
        let body = json!({"stripe_customer_id": stripe_id});
        world.call("PUT", "/v1/customers/acme", &body).await.ok();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_nothing_waits(&world).await;
        let ours = world.list("/inbox?customer_id=acme").await.len();
        assert_eq!(ours, parked.len() + 1, "the parked ones, and the link itself");
    }

    async fn metadata_on_the_stripe_customer_links_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (stripe_id, _) = parked_stranger(&world, &[]).await;
        let form = [("metadata[tollgate_customer_id]", "acme")];
        world.stripe("POST", &format!("/v1/customers/{stripe_id}"), &form).await;
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(world.shown("acme").await["stripe_customer_id"], stripe_id.as_str());
        assert_nothing_waits(&world).await;
    }

    async fn metadata_on_the_stripe_customer_counts_for_events_that_do_not_carry_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.lose_webhooks();
        let form = [("metadata[tollgate_customer_id]", "acme")];
        let (stripe_id, _) = world.stranger_on_pro(&form).await;
        let events = world.events_of(&stripe_id);
        let paid = events.iter().find(|event| event["type"] == "invoice.paid").unwrap();
        assert_eq!(world.deliver(paid).await.status, 200);
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
    }

    async fn metadata_on_the_subscription_links_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.customer("beta").await;
        let named = [("metadata[tollgate_customer_id]", "acme")];
        parked_stranger(&world, &named).await;
        assert_eq!(world.tier("acme").await, "pro active");
        let (_, subscription) = parked_stranger(&world, &[]).await;
        let form = [("metadata[tollgate_customer_id]", "beta")];
        world.stripe("POST", &format!("/v1/subscriptions/{subscription}"), &form).await;
        world.settle().await;
        assert_eq!(world.tier("beta").await, "pro active");
        assert_nothing_waits(&world).await;
    }

    async fn a_checkouts_reference_links_it(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (stripe_id, subscription) = parked_stranger(&world, &[]).await;
        let session = json!({
            "id": "cs_test_1", "object": "checkout.session", "mode": "subscription",
            "status": "complete", "customer": stripe_id, "subscription": subscription,
            "client_reference_id": "acme", "metadata": {},
        });
        world.deliver(&event("evt_cs", "checkout.session.completed", &session)).await.ok();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_nothing_waits(&world).await;
    }

    async fn what_names_a_customer_before_it_exists_is_applied_when_it_does(db: TestDb) {
        let world = World::start(&db).await;
        let named = |id| [("metadata[tollgate_customer_id]", id)];
        parked_stranger(&world, &named("acme")).await;
        parked_stranger(&world, &named("beta")).await;
        assert!(world.inbox_states().await.contains(&"parked".to_owned()));
        world.lose_webhooks();
        world.customer("acme").await;
        let body = json!({
            "customer_id": "beta", "feature_id": "ai_runs", "send_event": true,
            "customer_data": {"email": "beta@example.com"},
        });
        world.call("POST", "/v1/check", &body).await.ok();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_eq!(world.tier("beta").await, "pro active");
        assert_nothing_waits(&world).await;
    }

    async fn one_stripe_customer_pays_for_one_customer(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        world.customer("beta").await;
        let acme_at_stripe = world.link("acme").await;
        let body = json!({"stripe_customer_id": acme_at_stripe});
        let taken = world.call("PUT", "/v1/customers/beta", &body).await;
        assert_eq!((taken.status, taken.error().as_str()),
            (409, "stripe_customer_taken: stripe_customer_id"));
        // Someone else's Checkout that claims to be acme's.
        let (other, _) = parked_stranger(&world, &[("metadata[tollgate_customer_id]", "acme")]).await;
        assert_eq!(world.tier("acme").await, "starter -");
        let parked = world.list("/inbox?customer_id=acme&state=parked").await;
        assert!(parked.iter().any(|row| row["stripe_customer_id"] == other.as_str()), "{parked:?}");
        let report = world.sync("acme").await.ok();
        assert_eq!(report["differences"], json!([]), "a stranger's claim is not acme's to apply");
    }

    async fn a_thin_event_moves_the_tier_too(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.lose_webhooks();
        world.change_price(&subscription, "pro_monthly").await;
        assert_eq!(world.tier("acme").await, "starter active");
        let thin = json!({
            "id": "evt_thin", "object": "v2.core.event", "livemode": false,
            "type": "v1.customer.subscription.updated", "created": "2026-11-01T09:00:00.000Z",
            "related_object": {"id": subscription, "type": "subscription",
                               "url": format!("/v1/subscriptions/{subscription}")},
        });
        world.deliver(&thin).await.ok();
        world.settle().await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_nothing_waits(&world).await;
    }
}

both_databases! {
    async fn what_was_acknowledged_survives_a_restart_and_is_then_applied(db: TestDb) {
        let mut world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.change_price_quietly(&subscription, "pro_monthly").await;
        world.sim.deliver_pending().await;
        let pending = world.list("/inbox?state=pending").await;
        assert!(pending.iter().any(|row| row["event_type"] == "customer.subscription.updated"));
        world.restart().await;
        assert_eq!(world.list("/inbox?state=pending").await, pending, "kept as they were");
        assert_eq!(world.tier("acme").await, "starter active", "nothing ran yet");
        world.run_job(Job::ProcessInbox).await;
        assert_eq!(world.tier("acme").await, "pro active");
        assert_nothing_waits(&world).await;
    }

    async fn a_duplicate_is_one_row_and_one_effect(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.lose_webhooks();
        world.change_price_quietly(&subscription, "pro_monthly").await;
        let event = world.events_of(&stripe_id).pop().unwrap();
        assert_eq!(event["type"], "customer.subscription.updated");
        let rows_before = world.list("/inbox").await.len();
        let body = event.to_string();
        let mut posts = JoinSet::new();
        for _ in 0..20 {
            let header = sign(WEBHOOK_SECRET, world.now(), body.as_bytes());
            let request = world.http.post(world.url("/webhooks/stripe"));
            posts.spawn(request.header("stripe-signature", header).body(body.clone()).send());
        }
        for answer in posts.join_all().await {
            assert_eq!(answer.unwrap().status(), 200);
        }
        assert_eq!(world.list("/inbox").await.len(), rows_before + 1, "twenty at once");
        world.settle().await;
        assert_eq!(world.list("/notices?customer_id=acme").await.len(), 1);
        let settled = world.everything().await;
        for _ in 0..3 {
            world.deliver(&event).await.ok();
            world.settle().await;
        }
        assert_eq!(world.everything().await, settled, "and three later ones");
    }

    async fn many_workers_at_once_double_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let names: Vec<String> = (0..8).map(|n| format!("c{n}")).collect();
        let mut subscriptions = Vec::new();
        for name in &names {
            world.customer(name).await;
            let stripe_id = world.link(name).await;
            subscriptions.push(world.subscribe(&stripe_id, "starter_monthly").await);
        }
        for subscription in &subscriptions {
            world.change_price_quietly(subscription, "pro_monthly").await;
        }
        world.sim.deliver_pending().await;
        // As replicas would that all think the job is theirs.
        let mut workers = JoinSet::new();
        for _ in 0..6 {
            let app = world.app().clone();
            workers.spawn(async move { Job::ProcessInbox.step(&app).await });
        }
        for step in workers.join_all().await {
            step.unwrap();
        }
        world.advance(Duration::from_secs(1)).await;
        for name in &names {
            assert_eq!(world.tier(name).await, "pro active");
            let notices = world.list(&format!("/notices?customer_id={name}")).await;
            assert_eq!(notices.len(), 1, "one upgrade, told once: {notices:?}");
        }
        assert_nothing_waits(&world).await;
    }

    async fn every_event_again_changes_nothing(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let subscription = world.subscribe(&stripe_id, "starter_monthly").await;
        world.runs("acme", 200).await;
        world.change_price(&subscription, "pro_monthly").await;
        world.runs("acme", 7).await;
        world.advance(Duration::from_secs(3 * 86_400)).await;
        world.change_price(&subscription, "starter_monthly").await;
        world.settle().await;
        let before = world.everything().await;
        let events = world.events_of(&stripe_id);
        assert!(events.len() > 5, "{}", events.len());
        for event in events.iter().rev() {
            world.deliver(event).await.ok();
            world.settle().await;
        }
        assert_eq!(world.everything().await, before, "the same events");
        let tables = ["customers", "usage_counters", "usage_events", "notices", "meter_events"];
        let before = world.rows(&tables).await;
        for (n, event) in events.iter().enumerate() {
            let mut twin = event.clone();
            twin["id"] = json!(format!("evt_twin_{n}"));
            world.deliver(&twin).await.ok();
        }
        world.settle().await;
        assert_eq!(world.rows(&tables).await, before, "their twins under other ids");
        assert_nothing_waits(&world).await;
    }
}

both_databases! {
    async fn an_old_subscriptions_end_does_not_close_the_gate_of_a_new_one(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let old = world.subscribe(&stripe_id, "starter_monthly").await;
        world.runs("acme", 200).await;
        world.lose_webhooks();
        world.stripe("DELETE", &format!("/v1/subscriptions/{old}"), &[]).await;
        let deleted = world.events_of(&stripe_id).pop().unwrap();
        assert_eq!(deleted["type"], "customer.subscription.deleted");
        world.sim.change_faults(|faults| faults.drop_webhooks = false);
        world.subscribe(&stripe_id, "pro_monthly").await;
        assert_eq!(world.run("acme").await["allowed"], true);
        let before = world.shown("acme").await;
        world.deliver(&deleted).await.ok();
        world.settle().await;
        assert_eq!(world.shown("acme").await, before, "plan, period and usage are as they were");
        assert_eq!(world.run("acme").await["plan_id"], "pro");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_taken_though_the_connection_of_the_one_before_has_died() {
    let db = TestDb::postgres().await;
    let world = World::start(&db).await;
    let about = json!({"id": "in_1", "object": "invoice", "customer": null});
    for n in 0..3 {
        let told = event(&format!("evt_{n}"), "invoice.paid", &about);
        assert_eq!(world.deliver(&told).await.status, 200, "{n}");
        db.hang_up_on_everyone().await;
    }
    assert_eq!(world.rows(&["stripe_events"]).await.len(), 3);
}
