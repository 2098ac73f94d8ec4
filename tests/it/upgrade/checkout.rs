//! The first subscription: one Stripe customer, one session that can be paid, one subscription.

use std::time::Duration;

use tokio::task::JoinSet;

use super::*;
use crate::harness::world::{API_KEY, reply};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The same question by several callers at once, at these addresses.
async fn ask_at_once(addresses: &[std::net::SocketAddr], bodies: &[Value]) -> Vec<(u16, Value)> {
    let mut callers = JoinSet::new();
    for caller in 0..8 {
        let address = addresses[caller % addresses.len()];
        let body = bodies[caller / 2 % bodies.len()].to_string();
        let url = format!("http://{address}/v1/customers/acme/upgrade");
        let request = reqwest::Client::new().post(url).bearer_auth(API_KEY).body(body);
        callers.spawn(async move {
            let response = request.send().await.expect("the daemon answers");
            let status = response.status().as_u16();
            (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
        });
    }
    callers.join_all().await
}

fn wish(plan: &str) -> Value {
    json!({"plan_id": plan, "return_url": APP})
}

/// A price in the account that is none of a plan's.
async fn price_of_a_contract(world: &World) -> String {
    let form = [
        ("currency", "usd"),
        ("unit_amount", "100000"),
        ("product_data[name]", "Contract"),
        ("recurring[interval]", "month"),
    ];
    let price = world.stripe("POST", "/v1/prices", &form).await;
    price["id"].as_str().unwrap().to_owned()
}

both_databases! {
    async fn who_has_no_subscription_pays_at_checkout_and_the_gate_is_open(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 200).await;
        assert_eq!(world.run("acme").await["allowed"], false);
        let (kind, url) = upgrade(&world, "acme", "pro").await;
        assert_eq!(kind, "checkout");
        let session = pay(&world, &url).unwrap();
        world.settle().await;
        assert_eq!(world.run("acme").await["allowed"], true);
        assert_eq!(plan_of(&world, "acme").await, "pro");

        let back = session["success_url"].as_str().unwrap();
        assert_eq!(back, format!("{APP}&tollgate_upgrade=done"));
        assert_eq!(session["cancel_url"], format!("{APP}&tollgate_upgrade=canceled"));
        assert_eq!(session["client_reference_id"], "acme");
        let stripe_id = session["customer"].as_str().unwrap();
        let subscription = &live(&world, stripe_id).await[0];
        assert_eq!(subscription["metadata"]["tollgate_customer_id"], "acme");
        assert_eq!(subscription["billing_mode"]["type"], "flexible");
        let customer = &stripe_customers(&world).await[0];
        assert_eq!(customer["metadata"]["tollgate_customer_id"], "acme");
        assert_eq!(customer["email"], "acme@example.com");
    }

    async fn who_turns_back_at_checkout_has_changed_nothing(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        upgrade(&world, "acme", "pro").await;
        world.advance(2 * HOUR).await;
        assert_eq!(plan_of(&world, "acme").await, "starter");
        assert_eq!(open_sessions(&world).await.len(), 0, "the session has ended by itself");
        assert_eq!(upgrade(&world, "acme", "pro").await.0, "checkout");
    }

    async fn a_card_that_fails_at_checkout_leaves_the_page_to_try_another(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        world.runs("acme", 200).await;
        let first = upgrade(&world, "acme", "pro").await;
        for fails in [CheckoutPayment::Declined, CheckoutPayment::Unconfirmed] {
            assert!(world.sim.complete_checkout(id_in(&first.1), fails).is_err());
            world.settle().await;
            assert_eq!(world.gate("acme").await, "false limit_reached", "{fails:?}");
            assert_eq!(upgrade(&world, "acme", "pro").await, first, "the page is still there");
        }
        let session = pay(&world, &first.1).unwrap();
        world.settle().await;
        assert_eq!(world.gate("acme").await, "true within_limit");
        assert_eq!(live(&world, session["customer"].as_str().unwrap()).await.len(), 1);
        assert_eq!(open_sessions(&world).await.len(), 0);
    }

    async fn the_same_wish_again_is_the_same_page(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let first = upgrade(&world, "acme", "pro").await;
        world.advance(10 * MINUTE).await;
        assert_eq!(upgrade(&world, "acme", "pro").await, first);
        assert_eq!(open_sessions(&world).await.len(), 1);
        // Too little time is left to pay in peace.
        world.advance(40 * MINUTE).await;
        assert_ne!(upgrade(&world, "acme", "pro").await, first);
        assert_eq!(open_sessions(&world).await.len(), 1);
        assert_eq!(stripe_customers(&world).await.len(), 1);
    }

    async fn of_two_tabs_only_the_newer_can_be_paid(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let (_, pro) = upgrade(&world, "acme", "pro").await;
        let (_, team) = upgrade(&world, "acme", "team").await;
        assert!(pay(&world, &pro).is_err(), "the older tab is closed");
        pay(&world, &team).unwrap();
        world.settle().await;
        assert_eq!(plan_of(&world, "acme").await, "team");
    }

    async fn a_page_that_was_paid_meanwhile_is_not_followed_by_another(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let session = pay(&world, &url).unwrap();
        // No webhook has arrived yet.
        assert_eq!(ask(&world, "acme", "pro", APP).await.error(), "already_on_plan: plan_id");
        assert_eq!(plan_of(&world, "acme").await, "pro", "who is told so has it");
        assert_eq!(upgrade(&world, "acme", "team").await.0, "confirm");
        assert_eq!(live(&world, session["customer"].as_str().unwrap()).await.len(), 1);
        assert_eq!(open_sessions(&world).await.len(), 0);
    }

    async fn who_looked_before_a_page_was_paid_opens_no_other_one(db: TestDb) {
        let world = start(&db).await;
        let stripe_id = world.linked("acme").await;
        let (_, url) = upgrade(&world, "acme", "pro").await;
        let request = world.http.post(world.url("/v1/customers/acme/upgrade"));
        let request = request.bearer_auth(API_KEY).body(wish("pro").to_string());
        let late = while_stripe_answers(&world, "/v1/subscriptions", request.send(), async || {
            pay(&world, &url).unwrap();
            // The page closes what could still be paid beside that.
            assert_eq!(ask(&world, "acme", "pro", APP).await.error(), "already_on_plan: plan_id");
        });
        assert_eq!(reply(late.await.unwrap()).await.error(), "already_on_plan: plan_id");
        assert_eq!(live(&world, &stripe_id).await.len(), 1);
        assert_eq!(open_sessions(&world).await.len(), 0);
    }

    async fn calls_at_once_give_one_customer_and_one_page(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let answers = ask_at_once(&[world.config.listen], &[wish("pro")]).await;
        let first = &answers[0];
        assert!(first.0 == 200 && answers.iter().all(|answer| answer == first), "{answers:?}");
        assert_eq!(stripe_customers(&world).await.len(), 1);
        assert_eq!(open_sessions(&world).await.len(), 1);
    }

    async fn different_wishes_at_once_leave_at_most_one_page_open(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let answers = ask_at_once(&[world.config.listen], &[wish("pro"), wish("team")]).await;
        assert!(answers.iter().all(|(status, _)| matches!(status, 200 | 409)), "{answers:?}");
        assert!(open_sessions(&world).await.len() <= 1);
        assert_eq!(stripe_customers(&world).await.len(), 1);
        let (_, url) = upgrade(&world, "acme", "pro").await;
        assert_eq!(open_sessions(&world).await, [id_in(&url)]);
    }

    async fn a_customer_made_before_the_crash_is_found_again(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        // It was made, and the answer was lost for as long as the caller had patience.
        world.sim.fail_next("/v1/customers", 2, FaultKind::DropAfterEffect);
        assert_eq!(ask(&world, "acme", "pro", APP).await.error(), "stripe_unavailable");
        let again = json!({"email": "new@example.com"});
        world.call("PUT", "/v1/customers/acme", &again).await.ok();
        assert_eq!(upgrade(&world, "acme", "pro").await.0, "checkout");
        assert_eq!(stripe_customers(&world).await.len(), 1);
    }

    async fn a_customer_made_under_a_key_that_stripe_has_forgotten_is_found_too(db: TestDb) {
        let world = start(&db).await;
        world.sim.change_faults(|faults| faults.drop_webhooks = true);
        world.customer("acme").await;
        world.sim.fail_next("/v1/customers", 2, FaultKind::DropAfterEffect);
        assert_eq!(ask(&world, "acme", "pro", APP).await.status, 503);
        world.advance(25 * HOUR).await;
        assert_eq!(upgrade(&world, "acme", "pro").await.0, "checkout");
        assert_eq!(stripe_customers(&world).await.len(), 1);
    }

    async fn a_failure_that_stripe_repeats_is_got_over(db: TestDb) {
        let world = start(&db).await;
        for (customer, path, kind) in [
            ("acme", "/v1/customers", FaultKind::ServerError),
            ("globex", "/v1/customers", FaultKind::ServerErrorAfterEffect),
            ("initech", "/v1/checkout/sessions", FaultKind::ServerError),
            ("umbrella", "/v1/checkout/sessions", FaultKind::ServerErrorAfterEffect),
        ] {
            world.customer(customer).await;
            world.sim.fail_next(path, 1, kind);
            assert_eq!(ask(&world, customer, "pro", APP).await.error(), "stripe_unavailable");
            let (kind, url) = upgrade(&world, customer, "pro").await;
            assert_eq!(kind, "checkout", "{path}");
            pay(&world, &url).unwrap();
            world.settle().await;
            assert_eq!(plan_of(&world, customer).await, "pro");
        }
        assert_eq!(stripe_customers(&world).await.len(), 4);
    }

    async fn a_lost_answer_costs_nothing(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        world.sim.fail_next("/v1/customers", 1, FaultKind::DropAfterEffect);
        world.sim.fail_next("/v1/checkout/sessions", 1, FaultKind::CutBody);
        assert_eq!(upgrade(&world, "acme", "pro").await.0, "checkout");
        assert_eq!(stripe_customers(&world).await.len(), 1);
        assert_eq!(open_sessions(&world).await.len(), 1);
    }

    async fn a_first_payment_begun_elsewhere_can_not_be_paid_beside_checkout(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let price = world.price("team_monthly").await;
        let form = [
            ("customer", stripe_id.as_str()),
            ("items[0][price]", &price),
            ("payment_behavior", "default_incomplete"),
        ];
        let begin = async || {
            let begun = world.stripe("POST", "/v1/subscriptions", &form).await;
            assert_eq!(begun["status"], "incomplete");
            begun["latest_invoice"].as_str().unwrap().to_owned()
        };
        let before = begin().await;
        let (kind, url) = upgrade(&world, "acme", "pro").await;
        assert_eq!(kind, "checkout");
        assert!(world.sim.authenticate(&before, true).is_err(), "its invoice is void");
        // The same page again is as alone as it was.
        let after = begin().await;
        assert_eq!(upgrade(&world, "acme", "pro").await.1, url);
        assert!(world.sim.authenticate(&after, true).is_err(), "its invoice is void");
        pay(&world, &url).unwrap();
        world.settle().await;
        assert_eq!(plan_of(&world, "acme").await, "pro");
    }

    async fn a_first_payment_for_something_else_is_left_alone(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let price = price_of_a_contract(&world).await;
        let form = [
            ("customer", stripe_id.as_str()),
            ("items[0][price]", price.as_str()),
            ("payment_behavior", "default_incomplete"),
        ];
        let begun = world.stripe("POST", "/v1/subscriptions", &form).await;
        assert_eq!(upgrade(&world, "acme", "pro").await.0, "checkout");
        world.sim.authenticate(begun["latest_invoice"].as_str().unwrap(), true).unwrap();
    }

    async fn a_subscription_to_something_else_is_not_joined_by_another(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        let price = price_of_a_contract(&world).await;
        let form = [("customer", stripe_id.as_str()), ("items[0][price]", price.as_str())];
        world.stripe("POST", "/v1/subscriptions", &form).await;
        assert_eq!(ask(&world, "acme", "pro", APP).await.error(), "subscription_not_in_plans");
        assert_eq!(open_sessions(&world).await.len(), 0);
    }

    async fn a_page_is_closed_when_the_customer_goes(db: TestDb) {
        let world = start(&db).await;
        for customer in ["deleted", "tied", "sold", "unheard"] {
            world.customer(customer).await;
            assert_eq!(upgrade(&world, customer, "pro").await.0, "checkout");
        }
        assert_eq!(open_sessions(&world).await.len(), 4);
        world.call("DELETE", "/v1/customers/deleted", &Value::Null).await;
        world.settle().await;
        assert_eq!(open_sessions(&world).await.len(), 3, "the customer was deleted");
        world.link("tied").await;
        world.settle().await;
        assert_eq!(open_sessions(&world).await.len(), 2, "another one pays");
        let sell = async |customer: &str| {
            let found = world.call("GET", &format!("/v1/customers/{customer}"), &Value::Null).await;
            let stripe_id = found.ok()["stripe_customer_id"].as_str().unwrap().to_owned();
            world.sim.set_card(&stripe_id, Card::Works).unwrap();
            let price = world.price("team_monthly").await;
            let form = [("customer", stripe_id.as_str()), ("items[0][price]", &price)];
            world.stripe("POST", "/v1/subscriptions", &form).await;
        };
        sell("sold").await;
        world.settle().await;
        assert_eq!(open_sessions(&world).await.len(), 1, "it was sold a subscription elsewhere");
        sell("unheard").await;
        let error = ask(&world, "unheard", "team", APP).await.error();
        assert_eq!(error, "already_on_plan: plan_id");
        assert_eq!(open_sessions(&world).await.len(), 0, "and so was this, of which no webhook told");
    }

    async fn what_cannot_be_sold_is_said(db: TestDb) {
        let plans = include_str!("../../../plans.example.toml").replace(
            "price = { amount = \"29.00\", currency = \"usd\", interval = \"month\", lookup_key = \"starter_monthly\" }",
            "",
        );
        let plans = plans.replace("lookup_key = \"team_monthly\"", "lookup_key = \"team_2099\"");
        let mut world = World::with_plans(&db, &plans).await;
        world.customer("acme").await;
        let back = format!("{PUBLIC}/x");
        for (customer, plan, return_url, status, error) in [
            ("acme", "platinum", back.as_str(), 404, "unknown_plan: plan_id"),
            ("acme", "starter", &back, 422, "invalid_value: plan_id"),
            ("acme", "team", &back, 503, "not_configured"),
            ("globex", "pro", &back, 404, "unknown_customer: customer_id"),
            ("acme", "pro", APP, 422, "invalid_value: return_url"),
            ("acme", "pro", "https://billing.example.com@evil.example/", 422, "invalid_value: return_url"),
            ("acme", "pro", "javascript:alert(1)", 422, "invalid_value: return_url"),
        ] {
            let reply = ask(&world, customer, plan, return_url).await;
            assert_eq!((reply.status, reply.error()), (status, error.to_owned()), "{plan} {return_url}");
        }
        let path = "/v1/customers/acme/upgrade";
        assert_eq!(world.call("POST", path, &json!({"return_url": back})).await.error(), "missing_field: plan_id");
        assert_eq!(world.call("POST", path, &json!({"plan_id": "pro"})).await.error(), "missing_field: return_url");
        assert_eq!(open_sessions(&world).await.len(), 0);
        world.restart_with(&[("STRIPE_SECRET_KEY", "")]).await;
        assert_eq!(ask(&world, "acme", "pro", &back).await.error(), "not_configured");
    }

    async fn a_deleted_stripe_customer_is_said_to_be_so(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let stripe_id = world.link("acme").await;
        world.stripe("DELETE", &format!("/v1/customers/{stripe_id}"), &[]).await;
        let error = ask(&world, "acme", "pro", APP).await.error();
        assert_eq!(error, "stripe_customer_deleted: stripe_customer_id");
        assert_eq!(stripe_customers(&world).await.len(), 0);
    }

    async fn a_customer_that_was_deleted_and_comes_back_is_another_one_to_stripe(db: TestDb) {
        let world = start(&db).await;
        world.customer("acme").await;
        let (_, first) = upgrade(&world, "acme", "pro").await;
        assert_eq!(world.call("DELETE", "/v1/customers/acme", &Value::Null).await.status, 204);
        world.customer("acme").await;
        let (kind, second) = upgrade(&world, "acme", "pro").await;
        assert_eq!(kind, "checkout");
        assert_ne!(first, second);
        assert_eq!(open_sessions(&world).await, [id_in(&second)]);
        assert_eq!(stripe_customers(&world).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_agree_on_one_customer_and_one_page() {
    let db = TestDb::postgres().await;
    let world = start(&db).await;
    world.customer("acme").await;
    let other = world.replica(world.clock.clone()).await;
    let addresses = [world.config.listen, other.address];
    let answers = ask_at_once(&addresses, &[wish("pro")]).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, 200, "{answers:?}");
    let answers = ask_at_once(&addresses, &[wish("team"), wish("pro")]).await;
    assert!(answers.iter().all(|(status, _)| matches!(status, 200 | 409)), "{answers:?}");
    assert_eq!(stripe_customers(&world).await.len(), 1);
    assert!(open_sessions(&world).await.len() <= 1);
    other.stop().await.unwrap();
}
