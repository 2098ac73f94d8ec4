//! Support's sync of a customer's usage: what it says it has done it has done, and once.

use tollgate::domain::usage::OpenWindow;
use tollgate::store::outbox::MeterEvent;

use super::*;

/// A meter event of seven units for usage of this long ago, written down at its time, which is in
/// the state that `columns` say.
pub(super) async fn written(
    (world, url): (&World, &str),
    (identifier, stripe_id, meter): (&str, &str, &str),
    ago: Duration,
    columns: &str,
) {
    let start = world.now().minus(ago);
    let event = NewMeterEvent {
        identifier: identifier.to_owned(),
        idempotency_key: format!("{identifier}-send"),
        counter: CounterKey {
            customer_id: "acme".parse().unwrap(),
            feature_id: "ai_runs".parse().unwrap(),
            series: 0,
            period_start: start.start_of_day(),
        },
        stripe_customer_id: stripe_id.to_owned(),
        window: OpenWindow { start, end: start.plus(SECOND), value: 7, meter: meter.to_owned() },
        timestamp: start,
        billable_until: None,
    };
    let mut tx = world.app().store.begin().await.unwrap();
    tx.insert_meter_event(&event).await.unwrap();
    tx.commit().await.unwrap();
    let at = start.ms();
    let set = format!(
        "UPDATE meter_events SET created_at_ms = {at}, next_attempt_at_ms = {at}, {columns} \
         WHERE identifier = '{identifier}'"
    );
    rows(url, &set.replace(":then", &at.to_string())).await;
}

/// What Stripe has from somebody else of this long ago.
pub(super) async fn foreign(world: &World, stripe_id: &str, ago: Duration, units: &str) {
    let at = world.now().minus(ago).seconds().to_string();
    let form = [
        ("event_name", "ai_runs"),
        ("payload[stripe_customer_id]", stripe_id),
        ("payload[value]", units),
        ("timestamp", at.as_str()),
    ];
    world.stripe("POST", METER_EVENTS, &form).await;
}

/// What a sync by support says was different, in its words.
async fn synced(world: &World) -> Vec<String> {
    let report = world.admin("POST", "/customers/acme/sync").await.ok();
    let word = |found: &Value| {
        format!(
            "{}: {} {}",
            found["what"].as_str().unwrap(),
            found["local"].as_str().unwrap_or("-"),
            found["action"].as_str().unwrap()
        )
    };
    report["differences"].as_array().unwrap().iter().map(word).collect()
}

async fn states(world: &World) -> Vec<String> {
    let events = world.app().store.list_meter_events(Some("acme"), None, 99).await.unwrap();
    let word = |event: &MeterEvent| format!("{} {}", event.identifier, event.state);
    let mut words: Vec<_> = events.iter().map(word).collect();
    words.retain(|word| word.starts_with("tg_a_"));
    words.sort();
    words
}

/// Another meter, which takes nothing and says so at once.
async fn a_meter_that_refuses(world: &World) {
    let form = [
        ("display_name", "Seats"),
        ("event_name", "seats"),
        ("default_aggregation[formula]", "sum"),
    ];
    let meter = world.stripe("POST", "/v1/billing/meters", &form).await;
    let path = format!("/v1/billing/meters/{}/deactivate", meter["id"].as_str().unwrap());
    world.stripe("POST", &path, &[]).await;
    world.sim.change_faults(|faults| faults.refuse_meter_events_at_once = true);
}

const SENT: &str = "attempts = 3, first_sent_at_ms = :then";
const NEVER: &str = "state = 'parked', settled_at_ms = :then";
const REFUSED: &str = "state = 'parked', settled_at_ms = :then, attempts = 1";

both_databases! {
    async fn a_second_sync_has_no_differences_whatever_is_parked(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        a_meter_that_refuses(&world).await;
        let doubt = format!("state = 'parked', settled_at_ms = :then, {SENT}");
        foreign(&world, &acme, 5 * DAY, "3").await;
        for (name, meter, ago, columns) in [
            ("too_old", "ai_runs", 40 * DAY, NEVER),
            ("too_old_to_tell", "ai_runs", 41 * DAY, doubt.as_str()),
            ("refused", "seats", 4 * DAY, REFUSED),
            ("refused_now", "seats", HOUR, REFUSED),
            ("doubt", "ai_runs", 3 * DAY, doubt.as_str()),
            ("neither", "ai_runs", 5 * DAY, doubt.as_str()),
            ("held", "ai_runs", 6 * DAY, NEVER),
            ("never", "ai_runs", 2 * HOUR, NEVER),
        ] {
            let row = (&*format!("tg_a_{name}"), acme.as_str(), meter);
            written((&world, &db.url), row, ago, columns).await;
        }
        assert_eq!(synced(&world).await, [
            "meter events in doubt: 2 sent anew, as Stripe's sum lacks them",
            "parked meter events: 1 put back",
            "usage: 21 units waiting sent",
        ]);
        let settled = [
            "tg_a_doubt replaced", "tg_a_held replaced", "tg_a_neither parked", "tg_a_never delivered",
            "tg_a_refused parked", "tg_a_refused_now parked", "tg_a_too_old parked",
            "tg_a_too_old_to_tell parked",
        ];
        assert_eq!((states(&world).await, world.billed(&acme)), (settled.map(str::to_owned).to_vec(), "24".to_owned()));
        let none: [String; 0] = [];
        let written_down = world.list("/outbox").await.len();
        for wait in [Duration::ZERO, HOUR, 25 * HOUR, 25 * HOUR] {
            world.clock.advance(wait).unwrap();
            assert_eq!(synced(&world).await, none, "after {wait:?}");
        }
        assert_eq!(states(&world).await, settled);
        assert_eq!(world.list("/outbox").await.len(), written_down, "nothing is written down anew");
        assert_eq!(world.billed(&acme), "24");
    }

    async fn what_was_never_tried_in_a_day_is_asked_about_half_an_hour_later_and_once(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        let waits = "state = 'pending'";
        written((&world, &db.url), ("tg_a_1", &acme, "ai_runs"), 2 * DAY, waits).await;
        let none: [String; 0] = [];
        for _ in 0..2 {
            assert_eq!((synced(&world).await, states(&world).await), (none.to_vec(), vec!["tg_a_1 parked".to_owned()]));
        }
        world.clock.advance(31 * MINUTE).unwrap();
        let told = ["meter events in doubt: 1 sent anew, as Stripe's sum lacks them", "usage: 7 units waiting sent"];
        assert_eq!((synced(&world).await, world.billed(&acme)), (told.map(str::to_owned).to_vec(), "7".to_owned()));
        assert_eq!(synced(&world).await, none);
    }

    async fn what_was_refused_long_ago_is_sent_once_its_reason_is_gone(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        refused_at_once(&world, "acme", 7).await;
        world.clock.advance(3 * DAY).unwrap();
        let row = identifier(&world, "acme", "parked").await;
        let told = ["parked meter events: 1 put back", "usage: 7 units waiting sent"];
        assert_eq!((synced(&world).await, world.billed(&acme)), (told.map(str::to_owned).to_vec(), "7".to_owned()));
        assert_eq!(identifier(&world, "acme", "delivered").await, row, "Stripe has never had it");
        refused_at_once(&world, "acme", 2).await;
        world.clock.advance(3 * DAY).unwrap();
        let row = identifier(&world, "acme", "parked").await;
        assert_eq!(replay(&world, &row).await, (200, "waits".to_owned()));
        world.settle().await;
        assert_eq!(world.billed(&acme), "9");
    }

    async fn what_a_backup_says_was_refused_and_stripe_has_is_not_sent_again(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        let row = ("tg_a_1", acme.as_str(), "ai_runs");
        written((&world, &db.url), row, 3 * DAY, REFUSED).await;
        foreign(&world, &acme, 3 * DAY, "7").await;
        assert_eq!(replay(&world, "tg_a_1").await, (200, "delivered".to_owned()));
        let row = ("tg_a_2", acme.as_str(), "ai_runs");
        written((&world, &db.url), row, 4 * DAY, REFUSED).await;
        foreign(&world, &acme, 4 * DAY, "7").await;
        assert_eq!(synced(&world).await, ["meter events in doubt: 1 delivered, by Stripe's sum"]);
        assert_eq!(world.billed(&acme), "14");
    }

    async fn a_sync_that_finds_stripe_ahead_thaws_and_sends_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        let doubt = format!("state = 'parked', settled_at_ms = :then, {SENT}");
        let delivered = format!("state = 'delivered', settled_at_ms = :then, {SENT}");
        let (before, later) = (2 * DAY, 2 * DAY - HOUR);
        for (name, ago, columns) in [
            ("doubt", before, doubt.as_str()), ("later", later, &delivered), ("never", HOUR, NEVER),
        ] {
            let row = (&*format!("tg_a_{name}"), acme.as_str(), "ai_runs");
            written((&world, &db.url), row, ago, columns).await;
        }
        // Of a minute Stripe has too much, of the day it has not.
        foreign(&world, &acme, before, "9").await;
        foreign(&world, &acme, later, "-2").await;
        let none: [String; 0] = [];
        for _ in 0..2 {
            assert_eq!(synced(&world).await, none);
            assert_eq!(rows(&db.url, "SELECT customer_id FROM sending_freezes").await, ["acme"]);
            assert_eq!(states(&world).await, ["tg_a_doubt parked", "tg_a_later delivered", "tg_a_never parked"]);
        }
        foreign(&world, &acme, before, "-9").await;
        foreign(&world, &acme, later, "9").await;
        assert_eq!(synced(&world).await, [
            "meter events in doubt: 1 sent anew, as Stripe's sum lacks them",
            "parked meter events: 1 put back",
            "usage: 14 units waiting sent",
        ]);
        assert_eq!((synced(&world).await, world.billed(&acme)), (none.to_vec(), "21".to_owned()));
    }

    async fn a_sum_that_the_key_may_not_read_keeps_nothing_else_from_being_synced(db: TestDb) {
        let world = World::start(&db).await;
        let acme = world.linked("acme").await;
        let doubt = format!("state = 'parked', settled_at_ms = :then, {SENT}");
        written((&world, &db.url), ("tg_a_doubt", &acme, "ai_runs"), 2 * DAY, &doubt).await;
        written((&world, &db.url), ("tg_a_never", &acme, "ai_runs"), HOUR, NEVER).await;
        world.sim.change_faults(|faults| faults.not_permitted = vec!["GET /v1/billing/meters/".to_owned()]);
        assert_eq!(synced(&world).await, ["parked meter events: 1 put back", "usage: 7 units waiting sent"]);
        assert!(reason(&world, "acme").await.contains("403"));
        assert_eq!(states(&world).await, ["tg_a_doubt parked", "tg_a_never delivered"]);
    }
}
