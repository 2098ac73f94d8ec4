//! The three ways to another plan: Checkout, the portal, and a preview with a change of one's own.

use super::*;
use crate::sim::{Card, CheckoutPayment};

impl Desk {
    async fn checkout(&self, customer: &str, more: &[(&str, &str)]) -> Value {
        let price = self.price("pro_monthly").await;
        let mut form = vec![
            ("mode", "subscription"),
            ("customer", customer),
            ("success_url", "https://example.com/done?session={CHECKOUT_SESSION_ID}"),
            ("line_items[0][price]", price.as_str()),
            ("line_items[0][quantity]", "1"),
            ("client_reference_id", "acme"),
            ("subscription_data[metadata][tollgate_customer_id]", "acme"),
        ];
        form.extend_from_slice(more);
        self.make("/v1/checkout/sessions", &form).await
    }

    /// A default portal configuration that lets customers move between two prices.
    async fn configuration(&self, more: &[(&str, &str)]) -> Value {
        let mut form: Vec<(String, String)> = vec![
            ("features[subscription_update][enabled]".into(), "true".into()),
            ("features[subscription_update][default_allowed_updates][]".into(), "price".into()),
            ("features[subscription_update][proration_behavior]".into(), "always_invoice".into()),
            ("features[subscription_cancel][enabled]".into(), "true".into()),
        ];
        for (place, key) in ["starter_monthly", "pro_monthly"].into_iter().enumerate() {
            let price = self.price(key).await;
            let product =
                self.get(&format!("/v1/prices/{price}"), &[]).await.json["product"].clone();
            let name = format!("features[subscription_update][products][{place}]");
            form.push((format!("{name}[product]"), product.as_str().unwrap().to_owned()));
            form.push((format!("{name}[prices][]"), price));
        }
        let mut pairs: Vec<(&str, &str)> =
            form.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        pairs.extend_from_slice(more);
        let made = self.make("/v1/billing_portal/configurations", &pairs).await;
        self.sim.set_default_portal(&id(&made)).unwrap();
        made
    }

    async fn deep_link(&self, subscription: &Value, price: &str) -> Reply {
        let item = id(&subscription["items"]["data"][0]);
        let form = [
            ("customer", subscription["customer"].as_str().unwrap()),
            ("flow_data[type]", "subscription_update_confirm"),
            ("flow_data[subscription_update_confirm][subscription]", &id(subscription)),
            ("flow_data[subscription_update_confirm][items][0][id]", &item),
            ("flow_data[subscription_update_confirm][items][0][price]", price),
            ("flow_data[after_completion][type]", "redirect"),
            ("flow_data[after_completion][redirect][return_url]", "https://example.com/back"),
        ];
        self.post("/v1/billing_portal/sessions", &form).await
    }
}

fn plan(subscription: &Value) -> &str {
    subscription["items"]["data"][0]["price"]["lookup_key"].as_str().unwrap()
}

#[tokio::test]
async fn a_completed_checkout_makes_a_subscription_and_another_makes_a_second() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let session = desk.checkout(&customer, &[]).await;
    assert_eq!((&session["status"], &session["amount_total"]), (&"open".into(), &9_900.into()));
    let from = desk.sim.events().len();
    let done = desk.sim.complete_checkout(&id(&session), CheckoutPayment::Card).unwrap();
    assert_eq!((&done["status"], &done["payment_status"]), (&"complete".into(), &"paid".into()));
    let told = desk.told(from);
    let place = |kind: &str| told.iter().position(|told| told == kind).unwrap();
    assert!(place("customer.subscription.created") < place("invoice.paid"), "{told:?}");
    assert!(place("customer.subscription.updated") < place("checkout.session.completed"));
    let made = desk.subscription(done["subscription"].as_str().unwrap()).await;
    assert_eq!((&made["status"], plan(&made)), (&"active".into(), "pro_monthly"));
    assert_eq!(made["metadata"]["tollgate_customer_id"], "acme");
    assert!(desk.sim.complete_checkout(&id(&session), CheckoutPayment::Card).is_err());

    let second = desk.checkout(&customer, &[]).await;
    desk.sim.complete_checkout(&id(&second), CheckoutPayment::Card).unwrap();
    let live = desk.get("/v1/subscriptions", &[("customer", &customer)]).await.json;
    assert_eq!(live["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_checkout_that_nobody_completes_expires() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let session = desk.checkout(&customer, &[]).await;
    desk.clock.advance(DAY);
    let path = format!("/v1/checkout/sessions/{}", id(&session));
    let expired = desk.get(&path, &[]).await.json;
    assert_eq!((&expired["status"], &expired["url"]), (&"expired".into(), &Value::Null));
    assert_eq!(desk.told(0).last().unwrap(), "checkout.session.expired");
    let other = desk.checkout(&customer, &[]).await;
    desk.make(&format!("/v1/checkout/sessions/{}/expire", id(&other)), &[]).await;
    assert!(desk.sim.complete_checkout(&id(&other), CheckoutPayment::Card).is_err());
    let removed = [("mode", "subscription"), ("payment_method_types[]", "card")];
    let refused = desk
        .post(
            "/v1/checkout/sessions",
            &[&removed[..], &[("success_url", "https://e.com"), ("line_items[0][price]", "p")]]
                .concat(),
        )
        .await;
    assert_eq!(refused.error().1, "parameter_unknown");
}

#[tokio::test]
async fn a_delayed_payment_is_settled_later_either_way() {
    for (succeeded, status) in [(true, "active"), (false, "past_due")] {
        let desk = desk().await;
        let session = desk.checkout(&desk.customer().await, &[]).await;
        let done = desk.sim.complete_checkout(&id(&session), CheckoutPayment::Delayed).unwrap();
        assert_eq!(done["payment_status"], "unpaid");
        desk.sim.settle_checkout(&id(&session), succeeded).unwrap();
        let made = desk.subscription(done["subscription"].as_str().unwrap()).await;
        assert_eq!(made["status"], status);
        let word = if succeeded { "succeeded" } else { "failed" };
        assert_eq!(*desk.told(0).last().unwrap(), format!("checkout.session.async_payment_{word}"));
    }
}

#[tokio::test]
async fn a_persons_way_through_the_pages_is_the_same() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let session = desk.checkout(&customer, &[]).await;
    let url = session["url"].as_str().unwrap();
    let page = desk.client.get(url).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("99.00 USD") && page.contains("/pay"), "{page}");
    let patient =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let paid = patient.post(format!("{url}/pay")).send().await.unwrap();
    assert_eq!(paid.status().as_u16(), 303);
    let location = paid.headers()["location"].to_str().unwrap();
    assert_eq!(location, format!("https://example.com/done?session={}", id(&session)));
    let again = patient.post(format!("{url}/pay")).send().await.unwrap();
    assert_eq!(again.status().as_u16(), 400);
}

#[tokio::test]
async fn a_deep_link_upgrades_and_shows_a_declined_card_instead() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let pro = desk.price("pro_monthly").await;
    assert_eq!(desk.deep_link(&subscription, &pro).await.status, 400, "no default configuration");
    desk.configuration(&[]).await;
    let session = desk.deep_link(&subscription, &pro).await.json;
    let customer = subscription["customer"].as_str().unwrap();
    desk.sim.set_card(customer, Card::Declines).unwrap();
    desk.sim.confirm_portal(&id(&session)).unwrap();
    assert_eq!(plan(&desk.subscription(&id(&subscription)).await), "starter_monthly");
    desk.sim.set_card(customer, Card::Works).unwrap();
    desk.sim.confirm_portal(&id(&session)).unwrap();
    assert_eq!(plan(&desk.subscription(&id(&subscription)).await), "pro_monthly");
}

#[tokio::test]
async fn a_deep_link_knows_its_limits() {
    let desk = desk().await;
    desk.configuration(&[]).await;
    let single = desk.subscribe("starter_monthly", &[]).await;
    let yearly = desk.price("pro_yearly").await;
    let refused = desk.deep_link(&single, &yearly).await;
    assert!(refused.error().2.contains("is not in the portal configuration's"), "{refused:?}");
    let pro = desk.price("pro_monthly").await;
    let double = desk.subscribe("starter_monthly", &[("items[1][price]", &yearly)]).await;
    let refused = desk.deep_link(&double, &pro).await;
    assert!(refused.error().2.contains("multiple items"), "{refused:?}");
}

#[tokio::test]
async fn a_downgrade_waits_for_the_periods_end_if_the_portal_is_told_so() {
    let desk = desk().await;
    let condition = "features[subscription_update][schedule_at_period_end][conditions][0][type]";
    desk.configuration(&[(condition, "decreasing_item_amount")]).await;
    let subscription = desk.subscribe("pro_monthly", &[]).await;
    let starter = desk.price("starter_monthly").await;
    let session = desk.deep_link(&subscription, &starter).await.json;
    desk.sim.confirm_portal(&id(&session)).unwrap();
    let waiting = desk.subscription(&id(&subscription)).await;
    assert_eq!(plan(&waiting), "pro_monthly");
    assert!(waiting["schedule"].is_string());
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    let after = desk.subscription(&id(&subscription)).await;
    assert_eq!(plan(&after), "starter_monthly");
    assert_eq!(period(&after), ("2026-12-01".into(), "2027-01-01".into()));
    let invoice = format!("/v1/invoices/{}", after["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["amount_paid"], 2_900);
}

#[tokio::test]
async fn a_schedule_is_made_of_a_subscription_changed_and_released() {
    let desk = desk().await;
    let subscription = desk.subscribe("pro_monthly", &[]).await;
    let form = [("from_subscription", &*id(&subscription))];
    let schedule = desk.make("/v1/subscription_schedules", &form).await;
    let (pro, starter) = (desk.price("pro_monthly").await, desk.price("starter_monthly").await);
    let phase = &schedule["phases"][0];
    let (start, end) = (phase["start_date"].to_string(), phase["end_date"].to_string());
    let form = [
        ("end_behavior", "release"),
        ("phases[0][items][0][price]", pro.as_str()),
        ("phases[0][items][0][quantity]", "1"),
        ("phases[0][start_date]", &start),
        ("phases[0][end_date]", &end),
        ("phases[1][items][0][price]", &starter),
        ("phases[1][items][0][quantity]", "1"),
        ("phases[1][proration_behavior]", "none"),
    ];
    let path = format!("/v1/subscription_schedules/{}", id(&schedule));
    desk.make(&path, &form).await;
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    assert_eq!(plan(&desk.subscription(&id(&subscription)).await), "starter_monthly");
    let released = desk.make(&format!("{path}/release"), &[]).await;
    assert_eq!(released["status"], "released");
    assert!(desk.subscription(&id(&subscription)).await["schedule"].is_null());
    assert_eq!(desk.post(&format!("{path}/release"), &[]).await.status, 400);
}

#[tokio::test]
async fn a_preview_says_what_the_change_then_costs() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let pro = desk.price("pro_monthly").await;
    let item = id(&subscription["items"]["data"][0]);
    desk.clock.advance_to(at("2026-11-16T00:00:00Z"));
    let date = seconds("2026-11-16T00:00:00Z").to_string();
    let form = [
        ("subscription", &*id(&subscription)),
        ("subscription_details[items][0][id]", &item),
        ("subscription_details[items][0][price]", &pro),
        ("subscription_details[proration_behavior]", "always_invoice"),
        ("subscription_details[proration_date]", &date),
    ];
    let from = desk.sim.events().len();
    let preview = desk.make("/v1/invoices/create_preview", &form).await;
    assert_eq!((desk.told(from).len(), preview["amount_due"].as_i64()), (0, Some(3_500)));
    let change = [
        ("items[0][id]", item.as_str()),
        ("items[0][price]", &pro),
        ("proration_behavior", "always_invoice"),
        ("proration_date", &date),
        ("payment_behavior", "pending_if_incomplete"),
    ];
    let changed = desk.make(&format!("/v1/subscriptions/{}", id(&subscription)), &change).await;
    let invoice = format!("/v1/invoices/{}", changed["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["amount_paid"], preview["amount_due"]);
    let next = desk.make("/v1/invoices/create_preview", &form[..1]).await;
    assert_eq!(next["amount_due"], 9_900);
}

#[tokio::test]
async fn switching_a_metered_price_bills_the_usage_so_far_only_in_flexible_mode() {
    for (mode, billed) in [("flexible", 10 * 2 + 5 * 3), ("classic", 5 * 3)] {
        let desk = desk().await;
        let meter = desk.meter().await;
        let mut prices = Vec::new();
        for unit in ["2", "3"] {
            let form = [
                ("product_data[name]", "Runs"),
                ("currency", "usd"),
                ("unit_amount", unit),
                ("recurring[interval]", "month"),
                ("recurring[usage_type]", "metered"),
                ("recurring[meter]", meter.as_str()),
            ];
            prices.push(id(&desk.make("/v1/prices", &form).await));
        }
        let customer = desk.payer().await;
        let form = [
            ("customer", customer.as_str()),
            ("items[0][price]", &prices[0]),
            ("billing_mode[type]", mode),
        ];
        let made = desk.make("/v1/subscriptions", &form).await;
        let report = async |value: &str| {
            let form = [
                ("event_name", "ai_runs"),
                ("payload[stripe_customer_id]", customer.as_str()),
                ("payload[value]", value),
            ];
            desk.make("/v1/billing/meter_events", &form).await;
        };
        report("10").await;
        desk.clock.advance_to(at("2026-11-16T00:00:00Z"));
        let item = id(&made["items"]["data"][0]);
        let form = [("items[0][id]", item.as_str()), ("items[0][price]", &prices[1])];
        desk.make(&format!("/v1/subscriptions/{}", id(&made)), &form).await;
        report("5").await;
        desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
        let renewed = desk.subscription(&id(&made)).await;
        let invoice = format!("/v1/invoices/{}", renewed["latest_invoice"].as_str().unwrap());
        assert_eq!(desk.get(&invoice, &[]).await.json["amount_paid"], billed, "{mode}");
    }
}
