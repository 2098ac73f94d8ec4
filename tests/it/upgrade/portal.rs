//! Stripe's own page for confirming a change, where it takes just that change.

use super::*;

/// What the newest link into the portal opens; null for all of it.
fn portal_flow(world: &World) -> Value {
    let events = world.sim.events().into_iter().rev();
    let mut made = events.filter(|event| event["type"] == "billing_portal.session.created");
    made.next().expect("a link was made")["data"]["object"]["flow"].clone()
}

both_databases! {
    async fn one_item_goes_up_by_the_portal_and_the_gate_is_open(db: TestDb) {
        let world = start(&db).await;
        let configuration = portal(&world).await;
        let (_, subscription) = world.subscriber("acme", "starter_monthly").await;
        world.runs("acme", 200).await;
        let (kind, url) = upgrade(&world, "acme", "pro").await;
        assert_eq!(kind, "portal");
        world.sim.confirm_portal(id_in(&url)).unwrap();
        world.settle().await;
        assert_eq!(world.run("acme").await["allowed"], true);
        let now = world.stripe("GET", &format!("/v1/subscriptions/{subscription}"), &[]).await;
        assert_eq!(now["items"]["data"].as_array().unwrap().len(), 1);
        assert_eq!(now["items"]["data"][0]["price"]["lookup_key"], "pro_monthly");

        let made = world.sim.events().into_iter().rev().find(|event| event["type"] == "billing_portal.session.created");
        let session = &made.unwrap()["data"]["object"];
        assert_eq!(session["configuration"], configuration);
        assert_eq!(session["return_url"], format!("{APP}&tollgate_upgrade=canceled"));
        let redirect = &session["flow"]["after_completion"]["redirect"]["return_url"];
        assert_eq!(*redirect, format!("{APP}&tollgate_upgrade=done"));
    }

    async fn a_portal_of_someone_elses_making_is_not_used(db: TestDb) {
        let world = start(&db).await;
        let configuration = portal(&world).await;
        let path = format!("/v1/billing_portal/configurations/{configuration}");
        world.stripe("POST", &path, &[("metadata[tollgate]", "")]).await;
        world.sim.set_default_portal(&configuration).unwrap();
        world.subscriber("acme", "starter_monthly").await;
        assert_eq!(upgrade(&world, "acme", "pro").await.0, "confirm");
    }

    async fn what_the_portal_refuses_is_confirmed_on_our_own_page(db: TestDb) {
        let world = start(&db).await;
        portal(&world).await;
        world.subscriber("acme", "starter_monthly").await;
        world.sim.fail_next("/v1/billing_portal/sessions", 2, FaultKind::Refused);
        let (kind, url) = upgrade(&world, "acme", "pro").await;
        assert_eq!(kind, "confirm");
        assert!(read(&world, &url).await.contains("Confirm and pay $70"));
        // The link in a mail does not know yet that the portal refuses.
        let session = world.call("POST", "/v1/customers/acme/session", &Value::Null).await.ok();
        let page = go_on(&world, session["upgrade_url"].as_str().unwrap()).await;
        let (_, location, _) = press(&world, &token_in(&page)).await;
        assert!(read(&world, &location.unwrap()).await.contains("You are on Pro"));
    }

    async fn a_card_that_fails_in_the_portal_leaves_the_plan_and_the_page_says_so(db: TestDb) {
        let world = start(&db).await;
        portal(&world).await;
        for (customer, card) in [("acme", Card::Declines), ("globex", Card::NeedsAuthentication)] {
            let (stripe_id, _) = world.subscriber(customer, "starter_monthly").await;
            world.sim.set_card(&stripe_id, card).unwrap();
            let (_, url) = upgrade(&world, customer, "pro").await;
            world.sim.confirm_portal(id_in(&url)).unwrap();
            world.settle().await;
            assert_eq!(plan_of(&world, customer).await, "starter");
            let (kind, url) = upgrade(&world, customer, "pro").await;
            assert_eq!(kind, "confirm");
            let page = read(&world, &url).await;
            assert!(page.contains("Your plan is unchanged: you are on Starter."), "{page}");
        }
    }

    async fn who_owes_for_the_present_plan_is_led_to_pay_that_first(db: TestDb) {
        let world = start(&db).await;
        for status in ["past_due", "unpaid", "paused"] {
            let (_, subscription) = world.subscriber(status, "starter_monthly").await;
            world.sim.set_subscription_status(&subscription, status).unwrap();
            // Without a portal of any kind our own page has to do.
            let (kind, url) = upgrade(&world, status, "pro").await;
            assert_eq!(kind, "confirm");
            assert!(read(&world, &url).await.contains("Your last payment did not go through"));
        }
        portal(&world).await;
        for status in ["past_due", "unpaid", "paused"] {
            let (kind, url) = upgrade(&world, status, "pro").await;
            assert_eq!(kind, "portal", "{status}");
            assert!(world.sim.confirm_portal(id_in(&url)).is_err(), "there is nothing to confirm");
            assert_eq!(portal_flow(&world), Value::Null, "the product opens all of it");
            let path = format!("/v1/customers/{status}/session");
            let session = world.call("POST", &path, &Value::Null).await.ok();
            let page = read(&world, session["upgrade_url"].as_str().unwrap()).await;
            assert_eq!(press(&world, &token_in(&page)).await.0, 200);
            assert_eq!(portal_flow(&world)["type"], "payment_method_update", "a link in a mail does not");
        }
    }
}
