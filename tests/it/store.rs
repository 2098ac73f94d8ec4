//! The database from below: every statement on both kinds, a schema with rows in it migrated, and two
//! replicas on one PostgreSQL.

mod inbox;
mod migration;
mod particular;
mod proof;
mod keep;
mod lines;
mod periods;
mod replicas;
mod upgrades;

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tollgate::clock::{Clock, Timestamp};
use tollgate::domain::answer::{Facts, Particular, Remark};
use tollgate::domain::customer::{Customer, LiveSubscription, Profile, Tier};
use tollgate::domain::decision::{Intent, Mark, Reason, Standing, ThresholdState};
use tollgate::domain::ids::CustomerId;
use tollgate::domain::notice::{NoticeKind, NoticeState};
use tollgate::domain::period::BillingPeriod;
use tollgate::domain::plan::Enforcement;
use tollgate::domain::run::RunFacts;
use tollgate::domain::subscription::SubscriptionStatus;
use tollgate::domain::usage::{Counter, OpenWindow};
use tollgate::store::Store;
use tollgate::store::events::{EventKey, NewEvent, hold};
use tollgate::store::notices::Notice;
use tollgate::store::outbox::{NewMeterEvent, SendOutcome, Sendable};
use tollgate::store::plans::TermsInUse;
use tollgate::store::reports::RecordedRun;
use tollgate::store::usage::{CounterKey, PeriodCounter};

use crate::harness::postgres::TestDb;
use crate::harness::sql::rows;
use crate::harness::world::START;

fn now() -> Timestamp {
    START.parse().unwrap()
}

fn acme() -> CustomerId {
    "acme".parse().unwrap()
}

fn november() -> BillingPeriod {
    BillingPeriod {
        start: "2026-11-01T00:00:00Z".parse().unwrap(),
        end: "2026-12-01T00:00:00Z".parse().unwrap(),
    }
}

fn counter_key() -> CounterKey {
    CounterKey {
        customer_id: acme(),
        feature_id: "ai_runs".parse().unwrap(),
        series: 0,
        period_start: november().start,
    }
}

/// A customer with something in every column.
fn customer() -> Customer {
    let mut tier = Tier::initial(now());
    tier.plan_id = Some("pro".parse().unwrap());
    tier.subscription = Some(LiveSubscription {
        id: "sub_1".to_owned(),
        status: SubscriptionStatus::PastDue,
        cancels_at: Some(november().end),
        collection_paused: true,
    });
    tier.standing = Standing::Grace { ends_at: november().end };
    tier.grace_ends_at = Some(november().end);
    tier.cycle.stripe = Some(november());
    Customer {
        id: acme(),
        profile: Profile {
            email: Some("jo@example.com".to_owned()),
            name: Some("Jo".to_owned()),
            email_is_stripes: true,
        },
        stripe_customer_id: Some("cus_1".to_owned()),
        created_at: now(),
        tier,
        terms_version: Some(3),
        has_quotas: true,
        revision: 1,
    }
}

const KEY: &str = "a key with 'quotes' and \"more\" \\";

/// A reservation's own answer, with something in every column.
fn usage_event() -> NewEvent {
    let request_key = format!("k:{KEY}");
    NewEvent {
        facts: Facts {
            customer_id: acme(),
            feature_id: "ai_runs".parse().unwrap(),
            plan_id: Some("pro".parse().unwrap()),
            intent: Intent::Reserve,
            asked: 3,
            counted: 0,
            reason: Reason::WithinLimit,
            particular: Some(Particular {
                enforcement: Enforcement::Hard { granted: 7000 },
                threshold: ThresholdState::Nudge,
            }),
            usage: 3,
            reserved: 3,
            period: november(),
            decided_at: now(),
            event_id: None,
            hold: Some(hold(&acme(), &request_key, 3, november().end)),
            remark: Remark::None,
        },
        series: 0,
        key: EventKey::Request { key: KEY.to_owned(), request_hash: "hash".to_owned() },
        entity_id: Some("jo".to_owned()),
        plan_version: 1,
        metered: true,
        run: RunFacts {
            model: Some("claude-haiku".to_owned()),
            input_tokens: 1200,
            cached_input_tokens: 1000,
            output_tokens: 80,
        },
        cost_picodollars: Some(600_000_000),
        properties: Some("{\"prompt\": 7}".to_owned()),
    }
}

fn window() -> OpenWindow {
    let end = now().plus(Duration::from_secs(300));
    OpenWindow { start: now(), end, value: 3, meter: "ai_runs".to_owned() }
}

fn notice() -> Notice {
    Notice {
        notice_id: "ntc_1".to_owned(),
        customer_id: acme(),
        feature_id: "ai_runs".parse().unwrap(),
        series: 0,
        period: november(),
        kind: NoticeKind::UsageNudge,
        mark: Mark::Percent(80),
        entitlement_version: 1,
        state: NoticeState::Due,
        usage_units: 160,
        plan_id: Some("starter".parse().unwrap()),
        from_plan_id: Some("free".parse().unwrap()),
        plan_version: 1,
        created_at: now(),
        due_at: now(),
        state_since: now(),
        attempts: 0,
        detail: None,
    }
}

async fn open(db: &TestDb) -> Store {
    let store = Store::open(&db.url.clone().into(), Clock::manual(now())).await.unwrap();
    assert!(!store.is_migrated().await.unwrap());
    store.migrate().await.unwrap();
    store
}

both_databases! {
    async fn customers_are_written_and_read_back_whole(db: TestDb) {
        let store = open(&db).await;
        let tier = Tier::initial(now());
        let profile = Profile { email_is_stripes: false, ..customer().profile };
        let fresh = Customer { tier, profile, terms_version: None, has_quotas: false, ..customer() };
        let mut tx = store.begin().await.unwrap();
        assert!(tx.insert_customer(&fresh).await.unwrap());
        assert!(!tx.insert_customer(&fresh).await.unwrap(), "it is there");
        assert_eq!(tx.lock_customer(&acme()).await.unwrap(), Some(fresh));
        tx.update_customer(&customer()).await.unwrap();
        let written = Customer { revision: 2, ..customer() };
        assert_eq!(tx.lock_customers(&[&acme()]).await.unwrap(), std::slice::from_ref(&written));
        assert_eq!(tx.customer_id_of_stripe("cus_1").await.unwrap(), Some(acme()));
        // Whoever read an older revision writes nothing.
        assert!(tx.update_customer(&customer()).await.is_err());
        tx.commit().await.unwrap();
        assert_eq!(store.customer(&acme()).await.unwrap(), Some(written.clone()));
        assert_eq!(store.customer_by_stripe_id("cus_1").await.unwrap(), Some(written));
        let on_old_pro = TermsInUse { plan_id: Some("pro".to_owned()), version: Some(3) };
        assert_eq!(store.terms_in_use().await.unwrap(), [on_old_pro]);
        assert_eq!(store.features_given().await.unwrap(), []);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.delete_customer(&acme()).await.unwrap());
        assert!(!tx.delete_customer(&acme()).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.customer(&acme()).await.unwrap(), None);
    }

    async fn usage_is_written_and_read_back_whole(db: TestDb) {
        let store = open(&db).await;
        let counter = Counter {
            usage: 3, reserved: 1, from_grants: 2, pruned: 1, open: Some(window()), closed_until: Some(now()),
        };
        let (event, request_key) = (usage_event(), format!("k:{KEY}"));
        let mut tx = store.begin().await.unwrap();
        tx.put_runs(std::slice::from_ref(&event), &[]).await.unwrap();
        let row = (counter_key(), november().end, counter.clone());
        tx.put_counters(std::slice::from_ref(&row)).await.unwrap();
        tx.put_counters(&[row]).await.unwrap();
        let remembered = tx.remembered(&[(&acme(), request_key.clone()), (&acme(), "other".to_owned())]).await.unwrap();
        assert_eq!(remembered.len(), 1);
        let ((customer_id, key), answer) = &remembered[0];
        assert_eq!((customer_id, key, &answer.facts), (&acme(), &request_key, &event.facts));
        assert_eq!((answer.request_hash.as_deref(), answer.plan_version), (Some("hash"), 1));
        assert_eq!(tx.counters(&[counter_key()]).await.unwrap(), [(counter_key(), november().end, counter.clone())]);
        let with_end = Some((november().end, counter.clone()));
        assert_eq!(tx.counter_and_end(&counter_key()).await.unwrap(), with_end);
        assert_eq!(tx.open_counters_of(&acme()).await.unwrap(), [counter_key()]);
        tx.commit().await.unwrap();
        assert_eq!(store.counter(&counter_key()).await.unwrap(), counter);
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 0);
        assert_eq!(store.counters_to_close(window().end, 9).await.unwrap(), [counter_key()]);
        assert_eq!(store.counters_to_close(now(), 9).await.unwrap(), []);
        assert_eq!(store.units_to_close(&acme(), window().end).await.unwrap(), 3);
        assert_eq!(store.units_to_close(&acme(), now()).await.unwrap(), 0);
        // The same key again is refused by the database itself.
        let mut tx = store.begin().await.unwrap();
        assert!(tx.put_runs(&[event], &[]).await.unwrap_err().is_duplicate());
    }

    async fn notices_move_from_state_to_state(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        assert!(tx.insert_notice(&notice()).await.unwrap());
        let like = Notice { notice_id: "ntc_2".to_owned(), ..notice() };
        assert!(!tx.insert_notice(&like).await.unwrap(), "one of its kind");
        assert!(!store.is_told_anew(&notice()).await.unwrap());
        assert_eq!(tx.lock_notice("ntc_1").await.unwrap(), Some(notice()));
        tx.commit().await.unwrap();
        assert_eq!(store.due_notices(now(), 9).await.unwrap(), [notice()]);
        let (due, sending) = (NoticeState::Due, NoticeState::Sending);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.move_notice("ntc_1", due, sending, None).await.unwrap());
        assert!(!tx.move_notice("ntc_1", due, sending, None).await.unwrap());
        tx.postpone_notice("ntc_1", november().end, "busy").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.due_notices(now(), 9).await.unwrap(), []);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.move_notice("ntc_1", due, sending, None).await.unwrap());
        assert_eq!(tx.give_up_sending(november().end, "lost").await.unwrap(), 1);
        tx.commit().await.unwrap();
        let listed = store.list_notices(Some("acme"), Some("unknown"), 9).await.unwrap();
        assert_eq!((listed.len(), listed[0].attempts, listed[0].detail.as_deref()), (1, 2, Some("lost")));
        assert_eq!(store.list_notices(None, None, 9).await.unwrap(), listed);
    }

    async fn a_notice_that_came_to_nothing_makes_way_for_one_of_a_later_plans_file(db: TestDb) {
        let store = open(&db).await;
        let (due, dropped) = (NoticeState::Due, NoticeState::Dropped);
        let like = Notice { notice_id: "ntc_2".to_owned(), usage_units: 320, ..notice() };
        let later = Notice { plan_version: notice().plan_version + 1, ..like.clone() };
        let mut tx = store.begin().await.unwrap();
        assert!(tx.insert_notice(&notice()).await.unwrap());
        assert!(!tx.insert_notice(&later).await.unwrap(), "it may yet be sent");
        assert!(tx.move_notice("ntc_1", due, dropped, Some("the limit was raised since")).await.unwrap());
        assert!(!tx.insert_notice(&like).await.unwrap(), "nothing has changed");
        assert!(tx.insert_notice(&later).await.unwrap());
        assert_eq!(tx.lock_notice("ntc_1").await.unwrap(), None);
        assert_eq!(tx.lock_notice("ntc_2").await.unwrap(), Some(later));
    }

    async fn the_outbox_keeps_sends_and_settles(db: TestDb) {
        let store = open(&db).await;
        let event = NewMeterEvent {
            identifier: "tg_1".to_owned(),
            idempotency_key: "tg_1-send".to_owned(),
            counter: counter_key(),
            stripe_customer_id: "cus_1".to_owned(),
            window: window(),
            timestamp: now(),
            billable_until: None,
        };
        let mut tx = store.begin().await.unwrap();
        tx.insert_meter_event(&event).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.pending_meter_events(now(), 9).await.unwrap().len(), 1);
        assert_eq!(store.oldest_pending_of(&acme(), 9).await.unwrap().len(), 1);
        assert_eq!(store.pending_units_of(&acme()).await.unwrap(), 3);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.begin_send("tg_1").await.unwrap());
        tx.undo_first_send("tg_1", 0).await.unwrap();
        tx.renew_idempotency_key("tg_1").await.unwrap();
        let later = SendOutcome::TryAgain { at: november().end, reason: "busy".to_owned() };
        tx.settle_meter_event("tg_1", &later).await.unwrap();
        let parked = SendOutcome::Parked { reason: "refused".to_owned() };
        tx.settle_meter_event("tg_1", &parked).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.parked_meter_events_of(&acme()).await.unwrap(), ["tg_1".to_owned()].into());
        let a_moment_before = now().minus(Duration::from_secs(1));
        let sendable = Sendable { known_after: a_moment_before, taken_after: a_moment_before };
        for too_late in [Sendable { known_after: now(), ..sendable }, Sendable { taken_after: now(), ..sendable }] {
            assert_eq!(store.sendable_meter_events_of(&acme(), too_late).await.unwrap(), 0);
        }
        assert_eq!(store.sendable_meter_events_of(&acme(), sendable).await.unwrap(), 1);
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.unpark_meter_events(&acme(), sendable).await.unwrap(), ["tg_1"]);
        tx.settle_meter_event("tg_1", &SendOutcome::Delivered { detail: None }).await.unwrap();
        assert!(!tx.begin_send("tg_1").await.unwrap());
        tx.commit().await.unwrap();
        let listed = store.list_meter_events(Some("acme"), Some("delivered"), 9).await.unwrap();
        assert_eq!((listed[0].units, listed[0].attempts, listed[0].first_sent_at), (3, 1, None));
        assert_eq!(store.list_meter_events(None, None, 9).await.unwrap(), listed);
    }

    async fn plans_settings_keys_leases_and_audit(db: TestDb) {
        let store = open(&db).await;
        assert_eq!(store.active_plans().await.unwrap(), None);
        let mut tx = store.begin().await.unwrap();
        for (source, outcome) in [("a", (1, true)), ("a", (1, false)), ("b", (2, true))] {
            assert_eq!(tx.activate_plans(source).await.unwrap(), outcome);
        }
        tx.insert_key("key_1", "ci", "hash").await.unwrap();
        tx.insert_audit("aud_1", "admin", "sync", Some("acme"), &json!({"a": 1})).await.unwrap();
        assert!(!tx.holds_lease("job", "a").await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.active_plans().await.unwrap(), Some((2, "b".to_owned())));
        assert_eq!(store.plans_of(1).await.unwrap().as_deref(), Some("a"));
        assert_eq!(store.plans_of(3).await.unwrap(), None);
        assert_eq!(store.setting("name").await.unwrap(), None);
        assert_eq!(store.setting_or("name", || "first".to_owned()).await.unwrap(), "first");
        assert_eq!(store.setting("name").await.unwrap().as_deref(), Some("first"));
        assert_eq!(store.setting_or("name", || "second".to_owned()).await.unwrap(), "first");
        assert_eq!(store.live_key("hash").await.unwrap().as_deref(), Some("key_1"));
        let mut tx = store.begin().await.unwrap();
        assert!(tx.revoke_key("key_1").await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.live_key("hash").await.unwrap(), None);
        assert_eq!(store.list_keys().await.unwrap()[0].revoked_at, Some(now()));
        assert_eq!(store.list_audit(Some("acme"), 9).await.unwrap()[0].detail, json!({"a": 1}));
        assert_eq!(store.list_audit(None, 9).await.unwrap().len(), 1);
        let minute = Duration::from_secs(60);
        let take = async |holder, moment| store.take_lease("job", holder, moment, minute).await.unwrap();
        assert!(take("a", now()).await && !take("b", now()).await && take("a", now()).await);
        assert!(take("b", now().plus(minute)).await, "it has expired");
        store.release_lease("job", "a").await.unwrap();
        assert!(!take("c", now().plus(minute)).await, "it is no longer a's to give back");
        store.release_lease("job", "b").await.unwrap();
        assert!(take("c", now().plus(minute)).await);
    }

    async fn migrating_again_changes_nothing(db: TestDb) {
        let store = open(&db).await;
        let applied = rows(&db.url, "SELECT version FROM _sqlx_migrations ORDER BY version").await;
        let again = Store::open(&db.url.clone().into(), Clock::manual(now())).await.unwrap();
        assert!(again.is_migrated().await.unwrap());
        again.migrate().await.unwrap();
        store.migrate().await.unwrap();
        assert!(store.is_migrated().await.unwrap());
        let now_applied = rows(&db.url, "SELECT version FROM _sqlx_migrations ORDER BY version").await;
        assert_eq!(now_applied, applied);
    }

    async fn a_transaction_that_is_dropped_leaves_nothing(db: TestDb) {
        let store = open(&db).await;
        for _ in 0..40 {
            let mut tx = store.begin().await.unwrap();
            tx.insert_customer(&customer()).await.unwrap();
            drop(tx);
        }
        assert_eq!(store.customer(&acme()).await.unwrap(), None);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.insert_customer(&customer()).await.unwrap());
        tx.commit().await.unwrap();
    }
}

both_databases! {
    async fn the_pricing_report_is_handed_runs_in_order_and_customers_with_their_plans(db: TestDb) {
        let store = open(&db).await;
        let counted = |id: &str, decided_at| {
            let event = usage_event();
            let facts = Facts { counted: 2, decided_at, hold: None, intent: Intent::Record, ..event.facts };
            NewEvent { facts, key: EventKey::Own(id.to_owned()), ..event }
        };
        let (earlier, later) = (now(), now().plus(Duration::from_secs(60)));
        let mut tx = store.begin().await.unwrap();
        tx.insert_customer(&customer()).await.unwrap();
        // The third counts nothing: it is no run.
        let events = [counted("a", later), counted("b", earlier), usage_event()];
        tx.put_runs(&events, &[]).await.unwrap();
        tx.commit().await.unwrap();

        let feature = "ai_runs".parse().unwrap();
        let (mut runs, mut customers) = (Vec::new(), Vec::new());
        let take = |run: &RecordedRun| runs.push(run.clone());
        store.each_recorded_run(&feature, now(), later.plus(Duration::from_millis(1)), take).await.unwrap();
        assert_eq!(runs.iter().map(|run| run.at).collect::<Vec<_>>(), [earlier, later]);
        let expected = RecordedRun {
            customer_id: "acme".to_owned(),
            plan_id: Some("pro".to_owned()),
            at: earlier,
            units: 2,
            model: Some("claude-haiku".to_owned()),
            input_tokens: 1200,
            cached_input_tokens: 1000,
            output_tokens: 80,
            cost_picodollars: Some(600_000_000),
        };
        assert_eq!(runs[0], expected);
        store.each_recorded_run(&feature, later, later, |run| panic!("{run:?}")).await.unwrap();
        let take = |id: &str, plan: Option<&str>| customers.push((id.to_owned(), plan.is_some()));
        store.each_customer_and_plan(november().end, take).await.unwrap();
        assert_eq!(customers, [("acme".to_owned(), false)]);
    }
}

/// Whatever the store can do is done above on both databases, so that a column that one of them
/// lacks or types otherwise cannot slip by.
#[test]
fn every_function_of_the_store_is_called_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = |folder: &str| {
        let files = root.join(folder).read_dir().unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect::<Vec<_>>()
    };
    let called = format!("{}{}", include_str!("store.rs"), sources("tests/it/store").concat());
    let mut functions = Vec::new();
    for source in sources("src/store") {
        let named = source.split("pub async fn ").skip(1);
        functions.extend(named.map(|rest| rest.split(['(', '<']).next().unwrap().to_owned()));
    }
    assert!(functions.len() > 40, "{functions:?}");
    // The end of a process, and tested as such.
    functions.retain(|name| name != "close");
    functions.retain(|name| {
        !called.contains(&format!(".{name}(")) && !called.contains(&format!("::{name}("))
    });
    assert_eq!(functions, Vec::<String>::new(), "not called in tests/it/store");
}
