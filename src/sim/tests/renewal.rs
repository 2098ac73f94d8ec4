//! Subscriptions as time and the API move them.

use super::*;
use crate::sim::Card;

#[tokio::test]
async fn a_subscription_is_active_paid_and_runs_for_a_month() {
    let desk = desk().await;
    let from = desk.sim.events().len();
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    assert_eq!(subscription["status"], "active");
    assert_eq!(subscription["billing_mode"]["type"], "flexible");
    assert!(subscription.get("current_period_end").is_none(), "periods are only on items");
    assert_eq!(period(&subscription), ("2026-11-01".into(), "2026-12-01".into()));
    assert_eq!(
        desk.told(from),
        [
            "payment_method.attached",
            "customer.created",
            "invoice.created",
            "customer.subscription.created",
            "invoice.finalized",
            "invoice.paid",
            "invoice.payment_succeeded",
        ]
    );
    let events = desk.sim.events();
    let paid = &events[events.len() - 2]["data"]["object"];
    assert!(paid.get("subscription").is_none());
    let parent = &paid["parent"]["subscription_details"];
    assert_eq!(parent["subscription"], subscription["id"]);
    assert_eq!((&paid["amount_paid"], &paid["status"]), (&2_900.into(), &"paid".into()));
}

#[tokio::test]
async fn a_renewal_moves_the_period_and_pays_an_hour_later() {
    let desk = desk().await;
    let subscription = id(&desk.subscribe("starter_monthly", &[]).await);
    let from = desk.sim.events().len();
    desk.clock.advance_to(at("2026-11-30T23:59:59Z"));
    assert_eq!(desk.told(from), [""; 0]);
    desk.clock.advance_to(at("2026-12-01T00:30:00Z"));
    let renewed = desk.subscription(&subscription).await;
    assert_eq!(period(&renewed), ("2026-12-01".into(), "2027-01-01".into()));
    assert_eq!(desk.told(from), ["invoice.created", "customer.subscription.updated"]);
    let updated = desk.sim.events().last().unwrap().clone();
    assert_eq!(updated["created"], seconds("2026-12-01T00:00:00Z"), "at its own moment");
    assert_eq!(updated["request"]["id"], Value::Null, "nobody asked for it");
    let previous = &updated["data"]["previous_attributes"];
    let old_end = &previous["items"]["data"][0]["current_period_end"];
    assert_eq!(*old_end, seconds("2026-12-01T00:00:00Z"));
    assert!(previous.get("status").is_none());

    desk.clock.advance(HOUR);
    let finalized = ["invoice.finalized", "invoice.paid", "invoice.payment_succeeded"];
    assert_eq!(desk.told(from + 2), finalized);
}

#[tokio::test]
async fn months_missed_in_one_leap_are_renewed_one_by_one() {
    let desk = desk_at("2027-01-31T12:00:00Z").await;
    let subscription = id(&desk.subscribe("starter_monthly", &[]).await);
    let from = desk.sim.events().len();
    desk.clock.advance_to(at("2027-04-15T00:00:00Z"));
    let renewed = desk.subscription(&subscription).await;
    let (start, end) = period(&renewed);
    assert_eq!((&*start, &*end), ("2027-03-31T12:00:00Z", "2027-04-30T12:00:00Z"));
    let events = desk.sim.events();
    let renewals: Vec<i64> = events[from..]
        .iter()
        .filter(|event| event["type"] == "customer.subscription.updated")
        .map(|event| event["created"].as_i64().unwrap())
        .collect();
    let moments = [seconds("2027-02-28T12:00:00Z"), seconds("2027-03-31T12:00:00Z")];
    assert_eq!(renewals, moments);
}

#[tokio::test]
async fn a_cancellation_at_period_end_can_be_withdrawn_until_then() {
    let desk = desk().await;
    let subscription = id(&desk.subscribe("starter_monthly", &[]).await);
    let path = format!("/v1/subscriptions/{subscription}");
    let planned = desk.make(&path, &[("cancel_at_period_end", "true")]).await;
    assert_eq!(planned["cancel_at"], seconds("2026-12-01T00:00:00Z"));
    assert_eq!(planned["status"], "active");
    let withdrawn = desk.make(&path, &[("cancel_at_period_end", "false")]).await;
    assert!(withdrawn["cancel_at"].is_null() && withdrawn["canceled_at"].is_null());
    desk.make(&path, &[("cancel_at_period_end", "true")]).await;
    let from = desk.sim.events().len();
    desk.clock.advance_to(at("2026-12-01T00:00:00Z"));
    assert_eq!(desk.told(from), ["customer.subscription.deleted"]);
    let ended = desk.subscription(&subscription).await;
    assert_eq!(ended["status"], "canceled");
    assert_eq!(ended["ended_at"], seconds("2026-12-01T00:00:00Z"));
    assert_eq!(ended["canceled_at"], seconds(START));
    desk.clock.advance(DAY * 90);
    assert_eq!(desk.told(from).len(), 1, "nothing renews after the end");
}

#[tokio::test]
async fn canceled_subscriptions_leave_the_default_list() {
    let desk = desk().await;
    let kept = desk.subscribe("starter_monthly", &[]).await;
    let gone = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&gone));
    let reply = desk.delete(&path).await;
    assert_eq!(reply.json["status"], "canceled");
    assert_eq!(desk.delete(&path).await.error().1, "resource_missing");
    assert_eq!(desk.post(&path, &[("cancel_at_period_end", "true")]).await.status, 400);
    assert_eq!(desk.post(&path, &[("metadata[why]", "price")]).await.status, 200);
    let list = async |query: &[(&str, &str)]| {
        let list = desk.get("/v1/subscriptions", query).await.json;
        list["data"].as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]).await, [id(&kept)]);
    assert_eq!(list(&[("status", "all")]).await, [id(&gone), id(&kept)]);
    assert_eq!(list(&[("status", "canceled")]).await, [id(&gone)]);
    let customer = kept["customer"].as_str().unwrap();
    assert_eq!(list(&[("customer", customer), ("status", "all")]).await, [id(&kept)]);
    let cursor = id(&gone);
    assert_eq!(list(&[("starting_after", &cursor)]).await, [id(&kept)]);
}

#[tokio::test]
async fn a_trial_ends_in_a_paid_period() {
    let desk = desk().await;
    let end = seconds("2026-11-15T00:00:00Z").to_string();
    let trialing = desk.subscribe("starter_monthly", &[("trial_end", &end)]).await;
    assert_eq!(trialing["status"], "trialing");
    assert_eq!(period(&trialing), ("2026-11-01".into(), "2026-11-15".into()));
    let from = desk.sim.events().len();
    desk.clock.advance_to(at("2026-11-12T00:00:00Z"));
    assert_eq!(desk.told(from), ["customer.subscription.trial_will_end"]);
    desk.clock.advance_to(at("2026-11-15T01:00:00Z"));
    let active = desk.subscription(&id(&trialing)).await;
    assert_eq!(active["status"], "active");
    assert_eq!(period(&active), ("2026-11-15".into(), "2026-12-15".into()));
    let events = desk.sim.events();
    let updated =
        events.iter().rev().find(|event| event["type"] == "customer.subscription.updated");
    assert_eq!(updated.unwrap()["data"]["previous_attributes"]["status"], "trialing");
    let paid = events.iter().rev().find(|event| event["type"] == "invoice.paid").unwrap();
    assert_eq!(paid["data"]["object"]["amount_paid"], 2_900);
}

#[tokio::test]
async fn an_incomplete_subscription_is_paid_or_lapses() {
    let desk = desk().await;
    let form = [("payment_behavior", "default_incomplete")];
    let (paid, lapsed) = (
        desk.subscribe("starter_monthly", &form).await,
        desk.subscribe("starter_monthly", &form).await,
    );
    assert_eq!(paid["status"], "incomplete");
    let invoice = paid["latest_invoice"].as_str().unwrap();
    let settled = desk.make(&format!("/v1/invoices/{invoice}/pay"), &[]).await;
    assert_eq!(settled["status"], "paid");
    desk.clock.advance(HOUR * 23);
    assert_eq!(desk.subscription(&id(&paid)).await["status"], "active");
    assert_eq!(desk.subscription(&id(&lapsed)).await["status"], "incomplete_expired");
    let invoice = lapsed["latest_invoice"].as_str().unwrap();
    assert_eq!(desk.post(&format!("/v1/invoices/{invoice}/pay"), &[]).await.status, 400);
}

#[tokio::test]
async fn naming_the_item_changes_its_price_within_the_period() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription));
    let item = id(&subscription["items"]["data"][0]);
    let pro = desk.price("pro_monthly").await;
    desk.clock.advance_to(at("2026-11-16T00:00:00Z"));
    let from = desk.sim.events().len();
    let form = [
        ("items[0][id]", item.as_str()),
        ("items[0][price]", &pro),
        ("proration_behavior", "always_invoice"),
    ];
    let upgraded = desk.make(&path, &form).await;
    assert_eq!(upgraded["items"]["data"].as_array().unwrap().len(), 1);
    assert_eq!(upgraded["items"]["data"][0]["price"]["lookup_key"], "pro_monthly");
    assert_eq!(period(&upgraded), ("2026-11-01".into(), "2026-12-01".into()));
    let events = desk.sim.events();
    let updated =
        events[from..].iter().find(|event| event["type"] == "customer.subscription.updated");
    let old = &updated.unwrap()["data"]["previous_attributes"]["items"]["data"][0]["price"];
    assert_eq!(old["lookup_key"], "starter_monthly");
    // Half a month is left: half the new price less half the old.
    let paid = events.iter().rev().find(|event| event["type"] == "invoice.paid").unwrap();
    assert_eq!(paid["data"]["object"]["amount_paid"], (9_900 - 2_900) / 2);
    assert_eq!(paid["data"]["object"]["billing_reason"], "subscription_update");
    assert!(paid["request"]["id"].is_string());
}

#[tokio::test]
async fn prorations_wait_for_the_next_invoice_unless_told_otherwise() {
    let desk = desk().await;
    for (behavior, amount) in [("create_prorations", 9_900 + 3_500), ("none", 9_900)] {
        let start = desk.clock.now();
        let subscription = desk.subscribe("starter_monthly", &[]).await;
        let path = format!("/v1/subscriptions/{}", id(&subscription));
        let item = id(&subscription["items"]["data"][0]);
        let pro = desk.price("pro_monthly").await;
        let end_s = subscription["items"]["data"][0]["current_period_end"].as_i64().unwrap();
        desk.clock.advance_to(Timestamp::from_seconds((start.seconds() + end_s) / 2));
        let form = [
            ("items[0][id]", item.as_str()),
            ("items[0][price]", &pro),
            ("proration_behavior", behavior),
        ];
        desk.make(&path, &form).await;
        desk.clock.advance_to(Timestamp::from_seconds(end_s).plus(HOUR));
        let renewed = desk.subscription(&id(&subscription)).await;
        let invoice = format!("/v1/invoices/{}", renewed["latest_invoice"].as_str().unwrap());
        assert_eq!(desk.get(&invoice, &[]).await.json["amount_paid"], amount, "{behavior}");
    }
}

#[tokio::test]
async fn naming_no_item_adds_one_beside_the_old() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription));
    let pro = desk.price("pro_monthly").await;
    let both = desk.make(&path, &[("items[0][price]", &pro)]).await;
    assert_eq!(both["items"]["data"].as_array().unwrap().len(), 2);
    assert_eq!(desk.post(&path, &[("items[0][price]", &pro)]).await.status, 400);
    let first = id(&both["items"]["data"][0]);
    let form = [("items[0][id]", first.as_str()), ("items[0][deleted]", "true")];
    let one = desk.make(&path, &form).await;
    assert_eq!(one["items"]["data"][0]["price"]["lookup_key"], "pro_monthly");
    assert_eq!(desk.post(&path, &[("items[0][id]", &first)]).await.status, 400);
}

#[tokio::test]
async fn another_interval_starts_a_new_period_at_once() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription));
    let item = id(&subscription["items"]["data"][0]);
    let yearly = desk.price("pro_yearly").await;
    desk.clock.advance_to(at("2026-11-16T00:00:00Z"));
    let form = [("items[0][id]", item.as_str()), ("items[0][price]", &yearly)];
    let upgraded = desk.make(&path, &form).await;
    assert_eq!(period(&upgraded), ("2026-11-16".into(), "2027-11-16".into()));
    let invoice = format!("/v1/invoices/{}", upgraded["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["amount_paid"], 99_000 - 2_900 / 2);
}

#[tokio::test]
async fn the_anchor_is_reset_by_a_hash_and_no_longer_by_a_word() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription));
    desk.clock.advance_to(at("2026-11-16T00:00:00Z"));
    assert_eq!(desk.post(&path, &[("billing_cycle_anchor", "now")]).await.status, 400);
    let reset = desk.make(&path, &[("billing_cycle_anchor[type]", "now")]).await;
    assert_eq!(period(&reset), ("2026-11-16".into(), "2026-12-16".into()));
}

#[tokio::test]
async fn a_future_anchor_makes_a_short_first_period() {
    let desk = desk().await;
    let anchor = seconds("2026-11-20T00:00:00Z").to_string();
    let form = [("billing_cycle_anchor", anchor.as_str())];
    let subscription = desk.subscribe("starter_monthly", &form).await;
    assert_eq!(period(&subscription), ("2026-11-01".into(), "2026-11-20".into()));
    desk.clock.advance_to(at("2026-11-20T00:00:00Z"));
    let renewed = desk.subscription(&id(&subscription)).await;
    assert_eq!(period(&renewed), ("2026-11-20".into(), "2026-12-20".into()));
}

#[tokio::test]
async fn an_earlier_cancel_at_shortens_the_period() {
    let desk = desk().await;
    let subscription = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription));
    let cancel_at = seconds("2026-11-10T00:00:00Z").to_string();
    let planned = desk.make(&path, &[("cancel_at", &cancel_at)]).await;
    assert_eq!(period(&planned), ("2026-11-01".into(), "2026-11-10".into()));
    let withdrawn = desk.make(&path, &[("cancel_at", "")]).await;
    assert_eq!(period(&withdrawn), ("2026-11-01".into(), "2026-12-01".into()));
    desk.make(&path, &[("cancel_at", &cancel_at)]).await;
    desk.clock.advance_to(at("2026-11-10T00:00:00Z"));
    assert_eq!(desk.subscription(&id(&subscription)).await["status"], "canceled");
}

#[tokio::test]
async fn metered_usage_is_billed_for_the_period_that_ended_until_the_draft_closes() {
    let desk = desk().await;
    let meter = desk.meter().await;
    let form = [
        ("product_data[name]", "Runs"),
        ("currency", "usd"),
        ("unit_amount_decimal", "2.5"),
        ("recurring[interval]", "month"),
        ("recurring[usage_type]", "metered"),
        ("recurring[meter]", meter.as_str()),
    ];
    let metered = id(&desk.make("/v1/prices", &form).await);
    let subscription = desk.subscribe("starter_monthly", &[("items[1][price]", &metered)]).await;
    assert!(subscription["items"]["data"][1].get("quantity").is_none());
    let customer = subscription["customer"].as_str().unwrap();
    let report = async |value: &str, at: &str| {
        let at_s = seconds(at).to_string();
        let form = [
            ("event_name", "ai_runs"),
            ("payload[stripe_customer_id]", customer),
            ("payload[value]", value),
            ("timestamp", &at_s),
        ];
        desk.make("/v1/billing/meter_events", &form).await;
    };
    desk.clock.advance_to(at("2026-12-01T00:30:00Z"));
    // Late, but in time for the draft; and one that belongs to the next period.
    report("100", "2026-11-30T23:59:59Z").await;
    report("1000", "2026-12-01T00:00:00Z").await;
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    let renewed = desk.subscription(&id(&subscription)).await;
    report("50", "2026-11-30T23:59:59Z").await;
    let invoice = format!("/v1/invoices/{}", renewed["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["amount_paid"], 2_900 + 250);
}

#[tokio::test]
async fn failed_payment_is_told_and_paying_brings_the_subscription_back() {
    let desk = desk().await;
    let made = desk.subscribe("starter_monthly", &[]).await;
    let (subscription, customer) = (id(&made), made["customer"].as_str().unwrap());
    desk.sim.set_card(customer, Card::Declines).unwrap();
    desk.sim.set_subscription_status(&subscription, "past_due").unwrap();
    let updated = desk.sim.events().last().unwrap().clone();
    assert_eq!(updated["data"]["previous_attributes"]["status"], "active");
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    let overdue = desk.subscription(&subscription).await;
    assert_eq!(overdue["status"], "past_due");
    assert_eq!(desk.sim.events().last().unwrap()["type"], "invoice.payment_failed");
    let invoice = overdue["latest_invoice"].as_str().unwrap();
    desk.sim.set_card(customer, Card::Works).unwrap();
    desk.make(&format!("/v1/invoices/{invoice}/pay"), &[]).await;
    assert_eq!(desk.subscription(&subscription).await["status"], "active");
    assert!(desk.sim.set_subscription_status(&subscription, "sleepy").is_err());
}
