//! The page behind the links of mails and of the gate.

use std::time::Duration;

use super::*;

/// The link in the gate's answer to a customer.
async fn link_of(world: &World, customer: &str) -> String {
    let answer = world.check(customer).await;
    answer["upgrade"]["url"].as_str().expect("a link").to_owned()
}

both_databases! {
    async fn the_gates_link_leads_to_checkout_and_back_to_the_news(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 200).await;
        let link = link_of(&world, "acme").await;
        let page = read(&world, &link).await;
        for fact in ["Starter plan", "200 of 200 used", "Change to Pro", "$99/month", "unlimited runs"] {
            assert!(page.contains(fact), "no {fact:?} in {page}");
        }
        assert_eq!(stripe_customers(&world).await.len(), 0, "looking changes nothing");
        let (status, away, page) = press(&world, &token_in(&page)).await;
        let away = away.unwrap();
        assert_eq!(status, 200);
        assert!(away.starts_with(&world.sim.base_url()), "{away}");
        assert!(page.contains(&format!("href=\"{away}\"")), "{page}");
        // A double click is one page of Stripe's.
        let again = press(&world, &token_in(&read(&world, &link).await)).await.1.unwrap();
        assert_eq!(again, away);

        let session = pay(&world, &away).unwrap();
        // No webhook has arrived: coming back is enough.
        let back = session["success_url"].as_str().unwrap();
        let page = read(&world, back).await;
        assert!(page.contains("Done. You are on the Pro plan"), "{page}");
        assert_eq!(world.run("acme").await["allowed"], true);
    }

    async fn who_turns_back_reads_that_nothing_was_changed(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let page = read(&world, &link_of(&world, "acme").await).await;
        let (_, away, _) = press(&world, &token_in(&page)).await;
        let path = format!("/v1/checkout/sessions/{}", id_in(&away.unwrap()));
        let session = world.stripe("GET", &path, &[]).await;
        let page = read(&world, session["cancel_url"].as_str().unwrap()).await;
        assert!(page.contains("You turned back: nothing was changed."), "{page}");
        assert!(page.contains("Continue to Pro"), "{page}");
    }

    async fn the_button_goes_by_the_portal_where_that_takes_it(db: TestDb) {
        let world = start(&db).await;
        portal(&world).await;
        world.subscriber("acme", "starter_monthly").await;
        let page = read(&world, &link_of(&world, "acme").await).await;
        let (status, away, _) = press(&world, &token_in(&page)).await;
        assert_eq!(status, 200);
        world.sim.confirm_portal(id_in(&away.unwrap())).unwrap();
        let page = read(&world, &link_of(&world, "acme").await).await;
        assert!(page.contains("Pro plan") && page.contains("You are on Pro"), "{page}");
    }

    async fn the_same_button_again_does_not_lead_to_the_plan_after_next(db: TestDb) {
        let world = start(&db).await;
        let (stripe_id, subscription) = world.subscriber("acme", "starter_monthly").await;
        add_metered_item(&world, &subscription).await;
        let link = link_of(&world, "acme").await;
        let token = token_in(&read(&world, &link).await);
        for _ in 0..3 {
            assert_eq!(press(&world, &token).await.0, 303);
        }
        assert_eq!(plan_of(&world, "acme").await, "pro");
        // Nor does a link without what a page has shown.
        let bare = link.split_once("token=").unwrap().1;
        assert_eq!(press(&world, bare).await.0, 303);
        let items = &live(&world, &stripe_id).await[0]["items"]["data"];
        assert_eq!(items[0]["price"]["lookup_key"], "pro_monthly");
    }

    async fn a_token_opens_nothing_but_its_own_customers_page(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let session = world.call("POST", "/v1/customers/acme/session", &Value::Null).await.ok();
        let text = |field: &str| session[field].as_str().unwrap().to_owned();
        assert_eq!(text("expires_at"), "2026-11-01T09:15:00Z");
        assert_eq!(text("upgrade_url"), link_of(&world, "acme").await);
        let usage = text("usage_url");
        for other in [text("token"), usage.split_once("token=").unwrap().1.to_owned()] {
            let link = format!("{PUBLIC}/upgrade?token={other}");
            assert_eq!(open(&world, &link).await.status(), 403);
            assert_eq!(press(&world, &other).await.0, 403);
        }
        assert!(read(&world, &usage).await.contains("0 of 200 used"));
        let missing = world.call("POST", "/v1/customers/globex/session", &Value::Null).await;
        assert_eq!(missing.error(), "unknown_customer: customer_id");

        let token = text("upgrade_url").split_once("token=").unwrap().1.to_owned();
        world.call("DELETE", "/v1/customers/acme", &Value::Null).await;
        assert_eq!(press(&world, &token).await.0, 403);
        assert_eq!(stripe_customers(&world).await.len(), 0);
    }

    async fn what_is_no_button_of_ours_does_nothing(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let token = link_of(&world, "acme").await.split_once("token=").unwrap().1.to_owned();
        let (payload, signature) = token.rsplit_once('.').unwrap();
        for (body, status) in [
            (String::new(), 400),
            ("token".to_owned(), 403),
            ("nothing=1".to_owned(), 400),
            (format!("token={token}&token={token}"), 400),
            (format!("token={payload}.{}", signature.to_uppercase()), 403),
            ("token=%00%FF%3Cscript%3E".to_owned(), 403),
            (format!("{{\"token\": \"{token}\"}}"), 400),
        ] {
            let request = world.http.post(world.url("/upgrade")).body(body.clone());
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), status, "{body}");
            assert!(!response.text().await.unwrap().contains('<'));
        }
        // The address alone is no button.
        let request = world.http.post(world.url(&format!("/upgrade?token={token}")));
        assert_eq!(request.send().await.unwrap().status(), 400);
        assert_eq!(stripe_customers(&world).await.len(), 0);
    }

    async fn the_links_of_the_confirm_page_end_after_a_day(db: TestDb) {
        let world = start(&db).await;
        world.subscriber("acme", "starter_monthly").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let token = token_in(&read(&world, &url).await);
        world.advance(Duration::from_secs(24 * 3600)).await;
        assert_eq!(open(&world, &url).await.status(), 403);
        assert_eq!(press(&world, &token).await.0, 403);
        assert_eq!(plan_of(&world, "acme").await, "starter");
    }

    async fn a_program_that_follows_one_link_again_and_again_is_held_up(db: TestDb) {
        let world = start(&db).await;
        for customer in ["acme", "globex"] {
            world.customer(customer).await;
        }
        let (link, other) = (link_of(&world, "acme").await, link_of(&world, "globex").await);
        let token = token_in(&read(&world, &link).await);
        for _ in 0..9 {
            assert_eq!(open(&world, &link).await.status(), 200);
        }
        let refused = open(&world, &link).await;
        assert_eq!(refused.status(), 429);
        assert!(refused.text().await.unwrap().contains("load it again in a few seconds"));
        assert_eq!(press(&world, &token).await.0, 429);
        assert_eq!(open(&world, &other).await.status(), 200, "others have no part in it");
        world.advance(Duration::from_secs(3)).await;
        assert_eq!(press(&world, &token).await.0, 200);
        assert_eq!(open(&world, &link).await.status(), 429);
    }

    async fn when_stripe_is_away_the_page_still_shows_what_is_used(db: TestDb) {
        let mut world = start(&db).await;
        let (_, _) = world.subscriber("acme", "starter_monthly").await;
        world.runs("acme", 3).await;
        let link = link_of(&world, "acme").await;
        world.sim.fail_next("/v1/customers", 3, tollgate::sim::FaultKind::BadGateway);
        let page = read(&world, &link).await;
        assert!(page.contains("3 of 200 used") && page.contains("Try again in a few minutes"), "{page}");
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        let page = read(&world, &link).await;
        assert!(page.contains("open the billing page of the product you use"), "{page}");
        assert!(!page.contains("<button"), "{page}");
    }

    async fn the_page_may_send_its_form_nowhere_but_home(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let link = link_of(&world, "acme").await;
        let response = open(&world, &link).await;
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        for part in ["default-src 'none'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert_eq!(response.headers()["referrer-policy"], "no-referrer");
        let page = response.text().await.unwrap();
        assert!(page.contains("action=\"upgrade\"") && !page.contains("<script"), "{page}");
        let request = world.http.post(world.url("/upgrade")).body(format!("token={}", token_in(&page)));
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-security-policy"], policy.as_str());
        assert_eq!(response.headers()["cache-control"], "no-store");
    }

    async fn names_and_addresses_are_text_and_never_markup(db: TestDb) {
        let plans = include_str!("../../../plans.example.toml")
            .replace("name = \"Pro\"", "name = \"<b>Pro</b>\"");
        let mut world = World::with_plans(&db, &plans).await;
        world.restart_with(&[("TOLLGATE_RETURN_ORIGINS", "https://app.example.com")]).await;
        world.subscriber("acme", "starter_monthly").await;
        let hostile = "https://app.example.com/?a=\"><script>alert(1)</script>";
        let started = ask(&world, "acme", "pro", hostile).await.ok();
        let response = open(&world, started["url"].as_str().unwrap()).await;
        let page = response.text().await.unwrap();
        assert!(!page.contains("<b>Pro") && !page.contains("<script"), "{page}");
    }
}
