//! The simulator, judged by the official SDKs and CLI over real HTTP.

use tollgate::clock::Clock;
use tollgate::sim::{FaultKind, Simulator};

use crate::harness::{judge, sdk, stripe};

const KEY: &str = "sk_test_walk";

async fn simulator() -> Simulator {
    stripe::simulator(Clock::manual("2026-11-01T09:00:00Z".parse().unwrap()), KEY).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customers_life_told_by_the_official_sdk_is_what_the_simulator_has() {
    let simulator = simulator().await;
    let walk = sdk::drive(&simulator.base_url(), KEY).await.expect("nothing surprises the SDK");
    let text = |name: &str| walk[name].as_str().unwrap_or_else(|| panic!("no {name}: {walk}"));

    // Sent twice, counted once.
    assert_eq!(simulator.sum_of(text("customer"), text("event_name")), 3);
    let identifiers: Vec<_> =
        simulator.meter_events().into_iter().map(|event| event.identifier).collect();
    assert_eq!(identifiers, [text("identifier")]);
    // The upgrade was told of, with the price before it and the one after.
    let updated = simulator.events().into_iter().rfind(|event| {
        event["type"] == "customer.subscription.updated"
            && event["data"]["object"]["id"] == text("subscription")
    });
    let subscription = updated.expect("an event")["data"]["object"].clone();
    assert_eq!(subscription["items"]["data"][0]["price"]["id"], walk["prices"]["pro"]);
    // The SDK gave every write a key; the one refusal was the repeated usage.
    let requests = simulator.requests();
    let refused: Vec<_> = requests.iter().filter(|request| request.status != Some(200)).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].path, stripe::METER_EVENTS);
    assert_eq!(refused[0].status, Some(400));
    assert_eq!(judge::mistakes(&simulator), [""; 0]);
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walk_can_be_taken_twice_in_one_account() {
    let simulator = simulator().await;
    let first = sdk::drive(&simulator.base_url(), KEY).await.unwrap();
    let second = sdk::drive(&simulator.base_url(), KEY).await.unwrap();
    assert_ne!(first["customer"], second["customer"]);
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_names_the_simulators_faults_as_it_names_stripes() {
    let simulator = simulator().await;
    // A connection that closes without a byte is tried once more by the SDK, whatever it is told.
    for (kind, times, name) in [
        (FaultKind::ServerError, 1, "StripeAPIError"),
        (FaultKind::RateLimited, 1, "StripeRateLimitError"),
        (FaultKind::DropBeforeEffect, 2, "StripeConnectionError"),
    ] {
        simulator.fail_next("/v1/", times, kind);
        let surprise = sdk::drive(&simulator.base_url(), KEY).await.expect_err("a fault");
        assert!(surprise.contains(name), "{kind:?}: {surprise}");
    }
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_sdk_is_led_through_every_resource_without_a_surprise() {
    let simulator = simulator().await;
    let made = sdk::tour(&simulator.base_url(), KEY).await.expect("nothing surprises the SDK");
    assert!(made["subscription"].as_str().is_some_and(|id| id.starts_with("sub_")), "{made}");
    assert_eq!(judge::mistakes(&simulator), [""; 0]);
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_for_python_is_not_surprised_either() {
    let simulator = simulator().await;
    sdk::drive_python(&simulator.base_url(), KEY).await.expect("nothing surprises the SDK");
    assert_eq!(judge::mistakes(&simulator), [""; 0]);
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_cli_brings_about_the_events_it_is_asked_for() {
    let simulator = simulator().await;
    for event in [
        "customer.updated",
        "customer.deleted",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.trial_will_end",
        "invoice.paid",
        "payment_method.attached",
        "billing_portal.configuration.created",
        "billing_portal.session.created",
        "test_helpers.test_clock.ready",
    ] {
        sdk::trigger(&simulator.base_url(), KEY, event).await.expect("the trigger succeeds");
        let told = simulator.events().into_iter().rfind(|told| told["type"] == event);
        let object =
            told.unwrap_or_else(|| panic!("{event} was not told of"))["data"]["object"].clone();
        if event == "billing_portal.configuration.created" {
            // The next trigger opens a session without naming a configuration.
            simulator.set_default_portal(object["id"].as_str().unwrap()).unwrap();
        }
    }
    // A card that fails is refused to the CLI's last call, and told of none the less.
    for event in ["invoice.payment_failed", "invoice.payment_action_required"] {
        sdk::trigger(&simulator.base_url(), KEY, event).await.expect("the trigger succeeds");
        assert!(simulator.events().into_iter().any(|told| told["type"] == event), "{event}");
    }
    assert_eq!(judge::mistakes(&simulator), [""; 0]);
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_of_failed_usage_is_what_the_sdk_takes_it_for() {
    let clock = Clock::manual("2026-11-01T09:00:00Z".parse().unwrap());
    let simulator = stripe::simulator(clock.clone(), KEY).await;
    let base = simulator.base_url();
    simulator.seed_catalog(&[], &["ai_runs"]).unwrap();
    for event_name in ["ai_runs", "no_such_meter"] {
        let form = format!(
            "event_name={event_name}&payload[stripe_customer_id]=cus_none&payload[value]=1"
        );
        let post = reqwest::Client::new().post(format!("{base}/v1/billing/meter_events"));
        let post =
            post.bearer_auth(KEY).header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(post.body(form).send().await.unwrap().status().as_u16(), 200);
    }
    clock.advance(std::time::Duration::from_secs(10)).unwrap();
    let reports = simulator.thin_events();
    assert_eq!(reports.len(), 2);
    for report in reports {
        let id = report["id"].as_str().unwrap();
        let read = sdk::read_thin(&base, KEY, id).await.expect("nothing surprises the SDK");
        assert_eq!(read["error_count"], 1);
    }
    assert_eq!(judge::mistakes(&simulator), [""; 0]);
    simulator.stop().await;
}
