//! Our own page: Stripe's preview, one button, one charge.

use std::time::Duration;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A customer on Starter with a metered item beside it, in the middle of its month.
async fn with_two_items(world: &World, customer: &str) -> (String, String) {
    let (stripe_id, subscription) = world.subscriber(customer, "starter_monthly").await;
    add_metered_item(world, &subscription).await;
    world.advance(15 * DAY).await;
    (stripe_id, subscription)
}

/// What was invoiced for changes of a subscription, in cents, and what became of it.
async fn charges(world: &World, stripe_id: &str) -> Vec<(i64, String)> {
    let path = format!("/v1/invoices?customer={stripe_id}");
    let found = world.stripe("GET", &path, &[]).await;
    let changes = found["data"].as_array().unwrap().iter();
    let changes = changes.filter(|invoice| invoice["billing_reason"] == "subscription_update");
    changes
        .map(|invoice| {
            (invoice["total"].as_i64().unwrap(), invoice["status"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// The keys of the changes that the daemon has sent to a path, one for each time.
fn keys_sent(world: &World, path: &str) -> Vec<String> {
    let requests = world.sim.requests().into_iter();
    let sent = requests.filter(|request| request.method == "POST" && request.path == path);
    sent.filter_map(|request| request.idempotency_key).collect()
}

async fn open_invoice(world: &World, stripe_id: &str) -> String {
    let path = format!("/v1/invoices?customer={stripe_id}&status=open");
    world.stripe("GET", &path, &[]).await["data"][0]["id"].as_str().unwrap().to_owned()
}

both_databases! {
    async fn several_items_are_confirmed_here_at_the_price_that_was_shown(db: TestDb) {
        let world = start(&db).await;
        portal(&world).await;
        let (stripe_id, subscription) = with_two_items(&world, "acme").await;
        world.runs("acme", 200).await;
        let (kind, url) = upgrade(&world, "acme", "pro").await;
        assert_eq!(kind, "confirm");
        // Half of the month is left: half of 99 dollars less half of 29.
        let page = read(&world, &url).await;
        for fact in ["<dt>Due now</dt><dd>$35</dd>", "<dt>From December 1</dt><dd>$99/month</dd>",
            "unlimited runs", "Confirm and pay $35"] {
            assert!(page.contains(fact), "no {fact:?} in {page}");
        }
        // The customer thinks about it for ten minutes.
        world.advance(Duration::from_secs(600)).await;
        let (status, location, _) = press(&world, &token_in(&page)).await;
        assert_eq!(status, 303);
        assert_eq!(charges(&world, &stripe_id).await, [(3500, "paid".to_owned())]);
        // No webhook has arrived, and all is as it should be.
        assert_eq!(world.run("acme").await["allowed"], true);
        let page = read(&world, &location.unwrap()).await;
        assert!(page.contains("You are on Pro"), "{page}");
        assert!(page.contains(&format!("href=\"{APP}&tollgate_upgrade=done\"")), "{page}");

        let now = world.stripe("GET", &format!("/v1/subscriptions/{subscription}"), &[]).await;
        let items = now["items"]["data"].as_array().unwrap();
        let usage: Vec<_> = items.iter().map(|item| &item["price"]["recurring"]["usage_type"]).collect();
        assert_eq!(usage, ["licensed", "metered"]);
        assert_eq!(items[0]["price"]["lookup_key"], "pro_monthly");
    }

    async fn seats_are_kept(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        let path = format!("/v1/subscriptions/{subscription}");
        let item = world.stripe("GET", &path, &[]).await["items"]["data"][0]["id"].clone();
        let form = [("items[0][id]", item.as_str().unwrap()), ("items[0][quantity]", "3")];
        world.stripe("POST", &path, &form).await;
        world.advance(15 * DAY).await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let page = read(&world, &url).await;
        assert!(page.contains("<dd>$297/month</dd>"), "{page}");
        world.settle().await;
        go_on(&world, &url).await;
        let items = &live(&world, &stripe_id).await[0]["items"]["data"];
        assert_eq!((&items[0]["quantity"], items[0]["price"]["lookup_key"].as_str()), (&json!(3), Some("pro_monthly")));
        let (_, down) = upgrade(&world, "acme", "starter").await;
        let page = read(&world, &down).await;
        assert!(page.contains("<dt>Starter from December 1</dt><dd>$87/month</dd>"), "{page}");
    }

    async fn pressing_twice_charges_once(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, _) = with_two_items(&world, "acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let token = token_in(&read(&world, &url).await);
        let (one, other) = tokio::join!(press(&world, &token), press(&world, &token));
        assert_eq!((one.0, other.0), (303, 303));
        assert_eq!(press(&world, &token).await.0, 303);
        assert_eq!(charges(&world, &stripe_id).await.len(), 1);
        assert_eq!(plan_of(&world, "acme").await, "pro");
    }

    async fn two_tabs_charge_once(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, _) = with_two_items(&world, "acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let first = token_in(&read(&world, &url).await);
        world.advance(Duration::from_secs(5)).await;
        let second = token_in(&read(&world, &url).await);
        assert_ne!(first, second);
        let (one, other) = tokio::join!(press(&world, &first), press(&world, &second));
        assert_eq!((one.0, other.0), (303, 303));
        let charges = charges(&world, &stripe_id).await;
        assert_eq!(charges.iter().filter(|(total, _)| *total != 0).count(), 1, "{charges:?}");
    }

    async fn a_declined_card_leaves_the_plan_until_it_is_paid_for(db: TestDb) {
        let world = start(&db).await;
        for (customer, card, heading) in [
            ("acme", Card::Declines, "Your card was declined"),
            ("globex", Card::NeedsAuthentication, "Your bank wants you to confirm the payment"),
        ] {
            let (stripe_id, _) = world.subscriber(customer, "starter_monthly").await;
            let subscription = live(&world, &stripe_id).await[0]["id"].as_str().unwrap().to_owned();
            add_metered_item(&world, &subscription).await;
            world.sim.set_card(&stripe_id, card).unwrap();
            let (_, url) = upgrade(&world, customer, "pro").await;
            let page = go_on(&world, &url).await;
            let invoice = open_invoice(&world, &stripe_id).await;
            for fact in [
                heading,
                "Your plan is unchanged: you are on Starter.",
                &format!("href=\"{}/_sim/invoices/{invoice}\"", world.sim.base_url()),
                "it is dropped on November 2 at 08:00 UTC, and nothing is charged",
            ] {
                assert!(page.contains(fact), "no {fact:?} in {page}");
            }
            world.settle().await;
            assert_eq!(plan_of(&world, customer).await, "starter");

            world.sim.authenticate(&invoice, true).unwrap();
            // Still no webhook: the page asks Stripe itself.
            assert!(read(&world, &url).await.contains("You are on Pro"));
            assert_eq!(plan_of(&world, customer).await, "pro");
        }
    }

    async fn a_payment_that_never_comes_changes_nothing_and_can_be_tried_again(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        add_metered_item(&world, &subscription).await;
        world.sim.set_card(&stripe_id, Card::Declines).unwrap();
        let (_, url) = upgrade(&world, "acme", "pro").await;
        go_on(&world, &url).await;
        world.advance(Duration::from_secs(23 * 3600 + 60)).await;
        assert_eq!(plan_of(&world, "acme").await, "starter");
        world.sim.set_card(&stripe_id, Card::Works).unwrap();
        assert!(go_on(&world, &url).await.contains("You are on Pro"));
        assert_eq!(plan_of(&world, "acme").await, "pro");
    }

    async fn a_price_that_was_shown_long_ago_is_shown_anew_before_it_is_charged(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, _) = with_two_items(&world, "acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let token = token_in(&read(&world, &url).await);
        world.advance(Duration::from_secs(31 * 60)).await;
        let (status, location, _) = press(&world, &token).await;
        assert_eq!(status, 303);
        assert!(read(&world, &location.unwrap()).await.contains("Confirm and pay $34.95"));
        assert_eq!(charges(&world, &stripe_id).await, []);
        assert_eq!(plan_of(&world, "acme").await, "starter");
    }

    async fn what_has_become_dearer_since_it_was_shown_is_shown_anew(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, subscription) = with_two_items(&world, "acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let token = token_in(&read(&world, &url).await);
        let path = format!("/v1/subscriptions/{subscription}");
        let item = world.stripe("GET", &path, &[]).await["items"]["data"][0]["id"].clone();
        let seats = [
            ("items[0][id]", item.as_str().unwrap()),
            ("items[0][quantity]", "2"),
            ("proration_behavior", "none"),
        ];
        world.stripe("POST", &path, &seats).await;
        let (status, location, _) = press(&world, &token).await;
        assert_eq!(status, 303);
        assert!(read(&world, &location.unwrap()).await.contains("Confirm and pay $70"));
        assert_eq!(charges(&world, &stripe_id).await, []);
    }

    async fn what_else_has_come_to_be_paid_is_shown_before_it_is_agreed_to(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, subscription) = with_two_items(&world, "acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let token = token_in(&read(&world, &url).await);
        let form = [
            ("currency", "usd"),
            ("unit_amount", "1000"),
            ("product_data[name]", "Support"),
            ("recurring[interval]", "month"),
        ];
        let support = world.stripe("POST", "/v1/prices", &form).await;
        let item = [
            ("items[0][price]", support["id"].as_str().unwrap()),
            ("proration_behavior", "none"),
        ];
        world.stripe("POST", &format!("/v1/subscriptions/{subscription}"), &item).await;
        let (status, location, _) = press(&world, &token).await;
        assert_eq!(status, 303);
        assert!(read(&world, &location.unwrap()).await.contains("<dd>$109/month</dd>"));
        assert_eq!(charges(&world, &stripe_id).await, []);
    }

    async fn a_price_that_stripe_has_otherwise_is_not_sold(db: TestDb) {
        let plans = include_str!("../../../plans.example.toml").replace("\"99.00\"", "\"89.00\"");
        let world = World::with_plans(&db, &plans).await;
        world.customer("acme").await;
        let reply = ask(&world, "acme", "pro", &format!("{PUBLIC}/x")).await;
        assert_eq!((reply.status, reply.error()), (503, "not_configured".to_owned()));
        let message = reply.body["error"]["message"].as_str().unwrap();
        for word in ["pro_monthly", "tollgate stripe push"] {
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(open_sessions(&world).await.len(), 0);
    }

    async fn a_change_without_an_answer_is_sent_again_with_its_key_and_made_once(db: TestDb) {
        let world = start(&db).await;
        for (customer, fault) in [
            ("acme", FaultKind::DropAfterEffect),
            ("globex", FaultKind::CutBody),
            ("initech", FaultKind::DropBeforeEffect),
            ("hooli", FaultKind::RateLimited),
        ] {
            let (stripe_id, subscription) = with_two_items(&world, customer).await;
            let (_, url) = upgrade(&world, customer, "pro").await;
            let token = token_in(&read(&world, &url).await);
            // The first call only reads, and nothing happens to it; the second is the change.
            let path = format!("/v1/subscriptions/{subscription}");
            world.sim.fail_next(&path, 1, FaultKind::SlowBodyMs(0));
            world.sim.fail_next(&path, 1, fault);
            assert_eq!(press(&world, &token).await.0, 303, "{fault:?}");
            let sent = keys_sent(&world, &path);
            assert!(sent.len() == 2 && sent[0] == sent[1], "{fault:?}: {sent:?}");
            assert_eq!(press(&world, &token).await.0, 303, "{fault:?}");
            let charges = charges(&world, &stripe_id).await;
            assert!(charges.len() == 1 && charges[0].1 == "paid", "{fault:?}: {charges:?}");
            assert_eq!(plan_of(&world, customer).await, "pro");
        }
    }

    async fn a_subscription_that_ends_is_changed_until_then(db: TestDb) {
        let world = start(&db).await;
        let (_, subscription) = with_two_items(&world, "acme").await;
        let path = format!("/v1/subscriptions/{subscription}");
        world.stripe("POST", &path, &[("cancel_at_period_end", "true")]).await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let page = read(&world, &url).await;
        assert!(page.contains("Your subscription ends on December 1, as planned."), "{page}");
        assert!(!page.contains("From December 1"), "{page}");
        assert!(go_on(&world, &url).await.contains("You are on Pro"));
        assert_eq!(ask(&world, "acme", "starter", APP).await.error(), "subscription_ends: plan_id");
    }
}
