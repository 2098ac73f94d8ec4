//! Down: when the period ends, and not before.

use super::*;

both_databases! {
    async fn a_move_down_waits_for_the_periods_end_and_says_when(db: TestDb) {
        let world = start(&db).await;
        portal(&world).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        add_metered_item(&world, &subscription).await;
        let (kind, url) = upgrade(&world, "acme", "starter").await;
        assert_eq!(kind, "confirm");
        let page = read(&world, &url).await;
        for fact in ["You keep Pro until December 1. From then on it is Starter.", "$29/month",
            "<dt>Due now</dt><dd>nothing</dd>", "Change to Starter on December 1"] {
            assert!(page.contains(fact), "no {fact:?} in {page}");
        }
        let page = go_on(&world, &url).await;
        assert!(page.contains("Starter begins on December 1"), "{page}");
        world.settle().await;
        world.advance_to("2026-12-01T08:59:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "pro");
        world.advance_to("2026-12-01T11:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "starter");
        let now = world.stripe("GET", &format!("/v1/subscriptions/{subscription}"), &[]).await;
        assert_eq!(now["items"]["data"].as_array().unwrap().len(), 2);
    }

    async fn pressing_twice_plans_once_and_it_can_be_taken_back(db: TestDb) {
        let world = start(&db).await;
        world.subscriber("acme", "pro_monthly").await;
        let (_, url) = upgrade(&world, "acme", "starter").await;
        let token = token_in(&read(&world, &url).await);
        assert_eq!(press(&world, &token).await.0, 303);
        assert_eq!(press(&world, &token).await.0, 303);
        let schedules = world.stripe("GET", "/v1/subscription_schedules", &[]).await;
        assert_eq!(schedules["data"].as_array().unwrap().len(), 1);
        assert_eq!(schedules["data"][0]["phases"].as_array().unwrap().len(), 2);

        let page = read(&world, &url).await;
        assert!(page.contains("Keep Pro instead"), "{page}");
        let (_, location, _) = press(&world, &token_in(&page)).await;
        assert!(read(&world, &location.unwrap()).await.contains("You are on Pro"));
        world.advance_to("2026-12-02T12:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "pro");
    }

    async fn a_plan_is_kept_at_a_price_that_nobody_can_buy_any_more(db: TestDb) {
        let world = start(&db).await;
        world.subscriber("acme", "pro_monthly").await;
        let (_, down) = upgrade(&world, "acme", "starter").await;
        let planned = go_on(&world, &down).await;
        let path = format!("/v1/prices/{}", world.price("pro_monthly").await);
        world.stripe("POST", &path, &[("active", "false")]).await;
        let (_, location, _) = press(&world, &token_in(&planned)).await;
        assert!(read(&world, &location.unwrap()).await.contains("You are on Pro"));
        world.advance_to("2026-12-02T12:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "pro");
    }

    async fn what_is_planned_does_not_take_back_what_was_changed_meanwhile(db: TestDb) {
        let world = start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        let (_, down) = upgrade(&world, "acme", "starter").await;
        let token = token_in(&read(&world, &down).await);
        let button = world.http.post(world.url("/upgrade"));
        let button = button.header("content-type", "application/x-www-form-urlencoded");
        let button = button.body(format!("token={token}")).send();
        let path = format!("/v1/subscriptions/{subscription}");
        let pressed = while_stripe_answers(&world, &path, button, async || {
            world.change_price(&subscription, "team_monthly").await;
        });
        assert_eq!(pressed.await.unwrap().status(), 409);
        assert_eq!(world.stripe("GET", &path, &[]).await["schedule"], Value::Null);
        world.advance_to("2026-12-02T12:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "team");
    }

    async fn a_move_up_first_gives_up_the_move_down(db: TestDb) {
        let world = start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        add_metered_item(&world, &subscription).await;
        let (_, down) = upgrade(&world, "acme", "starter").await;
        go_on(&world, &down).await;
        let (kind, up) = upgrade(&world, "acme", "team").await;
        assert_eq!(kind, "confirm", "the portal takes no subscription with a schedule");
        let page = read(&world, &up).await;
        assert!(page.contains("Before you can change to Team, it has to be given up."), "{page}");
        assert!(go_on(&world, &up).await.contains("Confirm and pay"));
        assert!(go_on(&world, &up).await.contains("You are on Team"));
        world.advance_to("2026-12-02T12:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "team");
    }

    async fn a_move_down_outlives_a_move_up_that_was_not_agreed_to_as_giving_it_up(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, _) = world.subscriber("acme", "pro_monthly").await;
        let (_, up) = upgrade(&world, "acme", "team").await;
        let confirm = token_in(&read(&world, &up).await);
        let (_, down) = upgrade(&world, "acme", "starter").await;
        go_on(&world, &down).await;
        world.sim.set_card(&stripe_id, Card::Declines).unwrap();
        let (status, location, _) = press(&world, &confirm).await;
        assert_eq!(status, 303);
        let page = read(&world, &location.unwrap()).await;
        assert!(page.contains("A change of your plan on December 1 is planned."), "{page}");
        world.sim.set_card(&stripe_id, Card::Works).unwrap();
        world.advance_to("2026-12-02T12:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "starter");
    }

    async fn a_crash_before_anything_is_planned_leaves_nothing_in_the_way(db: TestDb) {
        let world = start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        let form = [("from_subscription", subscription.as_str())];
        world.stripe("POST", "/v1/subscription_schedules", &form).await;
        assert_eq!(ask(&world, "acme", "pro", APP).await.error(), "already_on_plan: plan_id");
        let (_, down) = upgrade(&world, "acme", "starter").await;
        assert!(go_on(&world, &down).await.contains("Starter begins on December 1"));
        let (_, up) = upgrade(&world, "acme", "team").await;
        go_on(&world, &up).await;
        assert!(go_on(&world, &up).await.contains("You are on Team"));
    }

    async fn what_was_shown_before_a_renewal_is_shown_anew_after_it(db: TestDb) {
        let world = start(&db).await;
        world.subscriber("acme", "pro_monthly").await;
        world.advance_to("2026-12-01T08:50:00Z").await;
        let (_, url) = upgrade(&world, "acme", "starter").await;
        let page = read(&world, &url).await;
        assert!(page.contains("Change to Starter on December 1"), "{page}");
        world.advance_to("2026-12-01T09:10:00Z").await;
        let (status, location, _) = press(&world, &token_in(&page)).await;
        assert_eq!(status, 303);
        let page = read(&world, &location.unwrap()).await;
        assert!(page.contains("Change to Starter on January 1"), "{page}");
        let schedules = world.stripe("GET", "/v1/subscription_schedules", &[]).await;
        assert_eq!(schedules["data"].as_array().unwrap().len(), 0);
    }

    async fn a_move_down_keeps_how_the_subscription_is_paid_for(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "pro_monthly").await;
        let cards = format!("/v1/payment_methods?customer={stripe_id}");
        let card = world.stripe("GET", &cards, &[]).await["data"][0]["id"].clone();
        let path = format!("/v1/subscriptions/{subscription}");
        world.stripe("POST", &path, &[("default_payment_method", card.as_str().unwrap())]).await;
        let (_, url) = upgrade(&world, "acme", "starter").await;
        go_on(&world, &url).await;
        world.advance_to("2026-12-01T11:00:00Z").await;
        assert_eq!(plan_of(&world, "acme").await, "starter");
        assert_eq!(world.stripe("GET", &path, &[]).await["default_payment_method"], card);
    }

    async fn a_trial_is_not_ended_by_a_move_down(db: TestDb) {
        let world = start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        let until = world.clock.now().plus(std::time::Duration::from_secs(10 * 86_400));
        let until = until.seconds().to_string();
        let form = [("trial_end", until.as_str()), ("proration_behavior", "none")];
        world.stripe("POST", &format!("/v1/subscriptions/{subscription}"), &form).await;
        let error = ask(&world, "acme", "starter", APP).await.error();
        assert_eq!(error, "discounted_or_on_trial: plan_id");
        assert_eq!(upgrade(&world, "acme", "team").await.0, "confirm");
    }

    async fn what_a_person_has_planned_is_left_alone(db: TestDb) {
        let world = start(&db).await;
        let (_, subscription) = world.subscriber("acme", "pro_monthly").await;
        let form = [("from_subscription", subscription.as_str())];
        let made = world.stripe("POST", "/v1/subscription_schedules", &form).await;
        let (phase, price) = (&made["phases"][0], world.price("team_monthly").await);
        let (start, end) = (phase["start_date"].to_string(), phase["end_date"].to_string());
        let form = [
            ("phases[0][items][0][price]", phase["items"][0]["price"].as_str().unwrap()),
            ("phases[0][items][0][quantity]", "1"),
            ("phases[0][start_date]", &start),
            ("phases[0][end_date]", &end),
            ("phases[1][items][0][price]", &price),
            ("phases[1][items][0][quantity]", "1"),
        ];
        let path = format!("/v1/subscription_schedules/{}", made["id"].as_str().unwrap());
        world.stripe("POST", &path, &form).await;
        for plan in ["starter", "team"] {
            let error = ask(&world, "acme", plan, APP).await.error();
            assert_eq!(error, "subscription_scheduled: plan_id", "{plan}");
        }
        assert_eq!(ask(&world, "acme", "pro", APP).await.error(), "already_on_plan: plan_id");
    }
}
