//! Cards that decline or want to be confirmed, and what waits for its payment.

use super::*;
use crate::sim::{AfterRetries, Card};

/// A customer whose card behaves so.
async fn holder(desk: &Desk, card: Card) -> String {
    let customer = desk.customer().await;
    desk.sim.set_card(&customer, card).unwrap();
    customer
}

async fn start(desk: &Desk, customer: &str, more: &[(&str, &str)]) -> Reply {
    let price = desk.price("starter_monthly").await;
    let mut form = vec![("customer", customer), ("items[0][price]", price.as_str())];
    form.extend_from_slice(more);
    desk.post("/v1/subscriptions", &form).await
}

/// An update to the dearer plan, invoiced at once.
async fn upgrade(desk: &Desk, subscription: &Value, behavior: &str) -> Reply {
    let pro = desk.price("pro_monthly").await;
    let item = id(&subscription["items"]["data"][0]);
    let form = [
        ("items[0][id]", item.as_str()),
        ("items[0][price]", &pro),
        ("proration_behavior", "always_invoice"),
        ("payment_behavior", behavior),
    ];
    desk.post(&format!("/v1/subscriptions/{}", id(subscription)), &form).await
}

fn plan(subscription: &Value) -> &str {
    subscription["items"]["data"][0]["price"]["lookup_key"].as_str().unwrap()
}

#[tokio::test]
async fn a_declined_first_payment_leaves_it_incomplete_for_23_hours() {
    let desk = desk().await;
    let customer = holder(&desk, Card::Declines).await;
    let from = desk.sim.events().len();
    let made = start(&desk, &customer, &[]).await.json;
    assert_eq!(made["status"], "incomplete");
    assert_eq!(
        desk.told(from),
        [
            "invoice.created",
            "customer.subscription.created",
            "invoice.finalized",
            "invoice.payment_failed"
        ]
    );
    desk.clock.advance(HOUR * 23);
    let lapsed = desk.subscription(&id(&made)).await;
    assert_eq!(lapsed["status"], "incomplete_expired");

    let refused = start(&desk, &customer, &[("payment_behavior", "error_if_incomplete")]).await;
    assert_eq!((refused.status, refused.error().1), (402, "card_declined"));
    let all = desk.get("/v1/subscriptions", &[("status", "all")]).await.json;
    assert_eq!(all["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_payment_that_wants_to_be_confirmed_waits_for_its_holder() {
    let desk = desk().await;
    let customer = holder(&desk, Card::NeedsAuthentication).await;
    let made = start(&desk, &customer, &[]).await.json;
    assert_eq!(made["status"], "incomplete");
    assert_eq!(desk.told(0).last().unwrap(), "invoice.payment_action_required");
    let invoice = made["latest_invoice"].as_str().unwrap();
    desk.sim.authenticate(invoice, true).unwrap();
    assert_eq!(desk.subscription(&id(&made)).await["status"], "active");
    assert!(desk.sim.authenticate(invoice, true).is_err(), "it is paid");
}

#[tokio::test]
async fn allow_incomplete_gives_the_new_price_though_it_is_not_paid() {
    let desk = desk().await;
    let customer = holder(&desk, Card::Works).await;
    let made = start(&desk, &customer, &[]).await.json;
    desk.sim.set_card(&customer, Card::Declines).unwrap();
    let changed = upgrade(&desk, &made, "allow_incomplete").await.json;
    assert_eq!((plan(&changed), &changed["status"]), ("pro_monthly", &"past_due".into()));
    let again = upgrade(&desk, &made, "error_if_incomplete").await;
    assert_eq!(again.status, 200, "nothing is left to pay for");
}

#[tokio::test]
async fn pending_if_incomplete_changes_the_price_only_once_it_is_paid() {
    let desk = desk().await;
    let customer = holder(&desk, Card::Works).await;
    let made = start(&desk, &customer, &[]).await.json;
    desk.sim.set_card(&customer, Card::NeedsAuthentication).unwrap();
    let from = desk.sim.events().len();
    let waiting = upgrade(&desk, &made, "pending_if_incomplete").await.json;
    assert_eq!((plan(&waiting), &waiting["status"]), ("starter_monthly", &"active".into()));
    let pending = &waiting["pending_update"];
    assert_eq!(pending["subscription_items"][0]["price"]["lookup_key"], "pro_monthly");
    assert_eq!(pending["expires_at"], seconds(START) + 23 * 3600);
    assert_eq!(
        desk.told(from),
        [
            "invoice.created",
            "customer.subscription.updated",
            "invoice.finalized",
            "invoice.payment_failed",
            "invoice.payment_action_required",
        ]
    );
    let from = desk.sim.events().len();
    desk.sim.authenticate(waiting["latest_invoice"].as_str().unwrap(), true).unwrap();
    let paid = desk.subscription(&id(&made)).await;
    assert_eq!((plan(&paid), &paid["pending_update"]), ("pro_monthly", &Value::Null));
    let told = desk.told(from);
    assert!(told.contains(&"customer.subscription.pending_update_applied".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_change_that_nobody_pays_for_is_off_after_23_hours() {
    let desk = desk().await;
    let customer = holder(&desk, Card::Works).await;
    let made = start(&desk, &customer, &[]).await.json;
    desk.sim.set_card(&customer, Card::Declines).unwrap();
    let waiting = upgrade(&desk, &made, "pending_if_incomplete").await.json;
    desk.clock.advance(HOUR * 23);
    let after = desk.subscription(&id(&made)).await;
    assert_eq!((plan(&after), &after["pending_update"]), ("starter_monthly", &Value::Null));
    let told = desk.told(0);
    assert!(told.contains(&"customer.subscription.pending_update_expired".to_owned()), "{told:?}");
    let invoice = format!("/v1/invoices/{}", waiting["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["status"], "void");

    let path = format!("/v1/subscriptions/{}", id(&made));
    let form = [("payment_behavior", "pending_if_incomplete"), ("metadata[a]", "b")];
    assert_eq!(desk.post(&path, &form).await.status, 400, "metadata cannot wait");
}

#[tokio::test]
async fn a_renewal_is_tried_four_times_and_then_the_setting_decides() {
    for (setting, status) in [
        (AfterRetries::Cancel, "canceled"),
        (AfterRetries::MarkUnpaid, "unpaid"),
        (AfterRetries::LeavePastDue, "past_due"),
    ] {
        let desk = desk().await;
        desk.sim.change_faults(|faults| faults.after_retries = setting);
        let customer = holder(&desk, Card::Works).await;
        let made = start(&desk, &customer, &[]).await.json;
        desk.sim.set_card(&customer, Card::Declines).unwrap();
        desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
        let overdue = desk.subscription(&id(&made)).await;
        assert_eq!(overdue["status"], "past_due");
        let from = desk.sim.events().len();
        desk.clock.advance(DAY * 15);
        assert_eq!(desk.subscription(&id(&made)).await["status"], status);
        let failed =
            desk.told(from).iter().filter(|kind| *kind == "invoice.payment_failed").count();
        assert_eq!(failed, 3);
    }
}

#[tokio::test]
async fn a_new_card_is_charged_at_the_next_try() {
    let desk = desk().await;
    let customer = holder(&desk, Card::Works).await;
    let made = start(&desk, &customer, &[]).await.json;
    desk.sim.set_card(&customer, Card::Declines).unwrap();
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    assert_eq!(desk.subscription(&id(&made)).await["status"], "past_due");
    desk.sim.set_card(&customer, Card::Works).unwrap();
    desk.clock.advance(DAY * 3);
    assert_eq!(desk.subscription(&id(&made)).await["status"], "active");
}

#[tokio::test]
async fn test_cards_are_attached_by_their_names() {
    let desk = desk().await;
    let customer = desk.customer().await;
    let form = [("customer", customer.as_str())];
    let card = desk.make("/v1/payment_methods/pm_card_visa/attach", &form).await;
    let default = [("invoice_settings[default_payment_method]", card["id"].as_str().unwrap())];
    desk.make(&format!("/v1/customers/{customer}"), &default).await;
    let declined = desk.post("/v1/payment_methods/pm_card_chargeDeclined/attach", &form).await;
    assert_eq!((declined.status, declined.error().1), (402, "card_declined"));
    let none = desk.post("/v1/payment_methods/pm_none/attach", &form).await;
    assert_eq!(none.error().1, "resource_missing");
    assert_eq!(start(&desk, &customer, &[]).await.status, 200);
    let detached = desk.make(&format!("/v1/payment_methods/{}/detach", id(&card)), &[]).await;
    assert!(detached["customer"].is_null());
    assert_eq!(start(&desk, &customer, &[]).await.error().1, "resource_missing");
}

#[tokio::test]
async fn a_pause_ends_by_resuming_with_a_new_period() {
    let desk = desk().await;
    let made = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&made));
    desk.clock.advance_to(at("2026-11-16T00:00:00Z"));
    let paused = desk.make(&format!("{path}/pause"), &[]).await;
    assert_eq!(paused["status"], "paused");
    assert_eq!(paused["status_details"]["paused"]["subscription"]["type"], "pause_requested");
    assert_eq!(desk.post(&format!("{path}/pause"), &[]).await.status, 400);
    desk.clock.advance_to(at("2026-12-16T00:00:00Z"));
    let resumed = desk.make(&format!("{path}/resume"), &[]).await;
    assert_eq!(period(&resumed), ("2026-12-16".into(), "2027-01-16".into()));
    let told = desk.told(0);
    assert!(told.contains(&"customer.subscription.paused".to_owned()), "{told:?}");
    assert!(told.contains(&"customer.subscription.resumed".to_owned()), "{told:?}");
    let classic = desk.subscribe("starter_monthly", &[("billing_mode[type]", "classic")]).await;
    let path = format!("/v1/subscriptions/{}/pause", id(&classic));
    assert_eq!(desk.post(&path, &[]).await.status, 400);
}

#[tokio::test]
async fn paused_collection_voids_invoices_and_leaves_the_status() {
    let desk = desk().await;
    let made = desk.subscribe("starter_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&made));
    let held = desk.make(&path, &[("pause_collection[behavior]", "void")]).await;
    assert_eq!(
        (&held["status"], &held["pause_collection"]["behavior"]),
        (&"active".into(), &"void".into())
    );
    desk.clock.advance_to(at("2026-12-01T01:00:00Z"));
    let renewed = desk.subscription(&id(&made)).await;
    assert_eq!(renewed["status"], "active");
    let invoice = format!("/v1/invoices/{}", renewed["latest_invoice"].as_str().unwrap());
    assert_eq!(desk.get(&invoice, &[]).await.json["status"], "void");
    assert!(desk.make(&path, &[("pause_collection", "")]).await["pause_collection"].is_null());
}

#[tokio::test]
async fn a_trial_that_ends_without_a_card_does_what_it_was_told() {
    for (behavior, status) in
        [("pause", "paused"), ("cancel", "canceled"), ("create_invoice", "active")]
    {
        let desk = desk().await;
        let trial = [
            ("trial_period_days", "7"),
            ("trial_settings[end_behavior][missing_payment_method]", behavior),
        ];
        let customer = desk.customer().await;
        let made = start(&desk, &customer, &trial).await.json;
        desk.clock.advance(DAY * 7);
        assert_eq!(desk.subscription(&id(&made)).await["status"], status);
    }
}
