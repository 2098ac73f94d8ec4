//! A customer's month while Stripe's webhooks come as badly as they may: each twice, and as a twin
//! under another id, the newest first, and before the call that caused them is answered.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::sim::{Card, CheckoutPayment};

use crate::harness::sql::assert_books_balance;
use crate::harness::world::World;

const DAY: Duration = Duration::from_secs(86_400);

/// The product sends the customer to a page; answers the kind of page and the id in its address.
async fn upgrade(world: &World, plan: &str) -> (String, String) {
    let body = json!({"plan_id": plan, "return_url": "https://billing.example.com/done"});
    let way = world.call("POST", "/v1/customers/acme/upgrade", &body).await.ok();
    let text = |field: &str| way[field].as_str().unwrap().to_owned();
    (text("kind"), text("url").rsplit('/').next().unwrap().to_owned())
}

/// Runs that are allowed, now and on each of some days.
async fn runs_for(world: &World, days: u32, each: i64) {
    for _ in 0..days {
        world.runs("acme", each).await;
        world.advance(DAY).await;
    }
}

/// The customer has here what it has at Stripe, and nothing of what came waits or is parked.
async fn assert_as_at_stripe(world: &World, stripe_id: &str, tier: &str) {
    assert_eq!(world.tier_at_stripe(stripe_id).await, tier);
    assert_eq!(world.tier("acme").await, tier);
    let states = world.inbox_states().await;
    assert!(
        states.iter().all(|state| ["applied", "ignored"].contains(&state.as_str())),
        "{states:?}"
    );
    let looked = world.sync_dry("acme").await;
    assert_eq!(looked["differences"], json!([]), "{tier}");
}

both_databases! {
    async fn webhooks_that_come_twice_shuffled_and_early_make_a_month_like_any_other(db: TestDb) {
        let world = World::start(&db).await;
        world.sim.change_faults(|faults| {
            faults.duplicate_webhooks = true;
            faults.twin_events = true;
            faults.shuffle_webhooks = true;
            faults.webhooks_before_answers = true;
        });
        world.customer("acme").await;
        let (kind, session) = upgrade(&world, "starter").await;
        assert_eq!(kind, "checkout");
        let paid = world.sim.complete_checkout(&session, CheckoutPayment::Card).unwrap();
        world.settle().await;
        let stripe_id = paid["customer"].as_str().unwrap();
        assert_as_at_stripe(&world, stripe_id, "starter active").await;

        runs_for(&world, 10, 20).await;
        assert_eq!(world.gate("acme").await, "false limit_reached");
        let subscription = paid["subscription"].as_str().unwrap();
        world.change_price(subscription, "pro_monthly").await;
        assert_as_at_stripe(&world, stripe_id, "pro active").await;
        runs_for(&world, 10, 20).await;
        assert_eq!(world.subjects().len(), 3, "80 %, the cap, the upgrade: each once: {:?}", world.subjects());

        // The renewal is not paid, and a new card pays for it.
        world.sim.set_card(stripe_id, Card::Declines).unwrap();
        let form = [("default_payment_method", "")];
        world.change_subscription(subscription, &form).await;
        runs_for(&world, 11, 1).await;
        assert_as_at_stripe(&world, stripe_id, "pro past_due").await;
        world.sim.set_card(stripe_id, Card::Works).unwrap();
        let path = format!("/v1/invoices?customer={stripe_id}&status=open");
        let open = world.stripe("GET", &path, &[]).await["data"][0]["id"].clone();
        world.sim.authenticate(open.as_str().unwrap(), true).unwrap();
        world.settle().await;
        assert_as_at_stripe(&world, stripe_id, "pro active").await;

        world.stripe("DELETE", &format!("/v1/subscriptions/{subscription}"), &[]).await;
        world.advance(DAY).await;
        assert_as_at_stripe(&world, stripe_id, "starter -").await;
        assert_eq!((world.billed(stripe_id).as_str(), world.subjects().len()), ("411", 3));
        assert_books_balance(&db.url).await;
        assert_eq!(world.list("/outbox?state=parked").await, [Value::Null; 0]);
    }
}
