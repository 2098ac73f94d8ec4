//! What is held against Stripe's sums, and what of it is in doubt.

use tollgate::domain::proof::{Metered, Place, Reported};
use tollgate::store::doubts::{Expiring, Shown};
use tollgate::store::proof::{Comparable, Found, Others, PeriodKey, Unproven};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn place() -> Place {
    Place { stripe_customer_id: "cus_1".to_owned(), meter: "ai_runs".to_owned() }
}

/// The `n`-th window's meter event.
fn meter_event(n: u64) -> NewMeterEvent {
    let end = now().plus(Duration::from_secs(300 * (n + 1)));
    NewMeterEvent {
        identifier: format!("tg_{n}"),
        idempotency_key: format!("tg_{n}-send"),
        counter: counter_key(),
        stripe_customer_id: "cus_1".to_owned(),
        window: OpenWindow { end, ..window() },
        timestamp: end.minus(Duration::from_secs(300)),
        billable_until: None,
    }
}

/// Three windows that were sent: one delivered, one parked, one without an answer.
async fn sent(store: &Store) {
    let mut tx = store.begin().await.unwrap();
    for n in 0..3 {
        tx.insert_meter_event(&meter_event(n)).await.unwrap();
        assert!(tx.begin_send(&format!("tg_{n}")).await.unwrap());
    }
    tx.settle_meter_event("tg_0", &SendOutcome::Delivered { detail: None }).await.unwrap();
    let parked = SendOutcome::Parked { reason: "in doubt".to_owned() };
    tx.settle_meter_event("tg_1", &parked).await.unwrap();
    tx.commit().await.unwrap();
}

fn period() -> PeriodKey {
    PeriodKey { customer_id: acme(), series: 0, period_start: november().start }
}

/// The period, as it is to be compared when it was last at this time.
fn comparable(compared_at: Option<Timestamp>) -> Comparable {
    let found = Found { period_end: november().end, compared_at };
    Comparable { key: period(), counters: vec![found] }
}

/// What may be sent again at [`now`] if it may for a minute.
fn sendable() -> Sendable {
    Sendable { known_after: now().minus(MINUTE), taken_after: now().minus(10 * MINUTE) }
}

both_databases! {
    async fn what_has_to_be_at_stripe_and_what_is_on_its_way_are_read_at_one_moment(db: TestDb) {
        let store = open(&db).await;
        let mut event = usage_event();
        event.facts.counted = 12;
        let counter = Counter { usage: 12, open: Some(window()), ..Counter::default() };
        let mut tx = store.begin().await.unwrap();
        tx.put_runs(&[event], &[]).await.unwrap();
        tx.put_counters(&[(counter_key(), november().end, counter)]).await.unwrap();
        tx.commit().await.unwrap();
        sent(&store).await;
        let feature_id: tollgate::domain::ids::FeatureId = "ai_runs".parse().unwrap();
        let metered = Metered {
            feature_id: feature_id.clone(), series: 0, period: november(), units: Some(12), open: 3,
            open_meter: Some("ai_runs".to_owned()),
        };
        let reported = Reported {
            feature_id, series: 0, period_start: november().start, place: place(), units: 9,
            fresh: 3, waiting: 3, parked: 3, parked_because: Some("in doubt".to_owned()), unsent: 0,
            first_at: now(), last_at: now().plus(10 * MINUTE),
        };
        let read = store.metered_of(&acme(), now().minus(MINUTE)).await.unwrap();
        assert_eq!(read, (vec![metered.clone()], vec![reported.clone()]));
        let settled = Reported { fresh: 0, ..reported };
        let read = store.metered_of(&acme(), now()).await.unwrap();
        assert_eq!(read, (vec![metered], vec![settled]));
        assert_eq!(store.customers_with_usage("", 9).await.unwrap(), [acme()]);
        assert_eq!(store.customers_with_usage("acme", 9).await.unwrap(), []);
        let span = now()..november().end;
        let others = async |series| {
            let of = PeriodKey { series, ..period() };
            store.sent_by_others(&place(), &span, now(), &of).await.unwrap()
        };
        assert_eq!(others(0).await, Others::default());
        assert_eq!(others(1).await, Others { delivered: 3, fresh: 0, unanswered: 6 });
        let mut tx = store.begin().await.unwrap();
        tx.reject_meter_event("tg_1", "archived_meter", "rejected").await.unwrap();
        tx.commit().await.unwrap();
        let unanswered = others(1).await.unanswered;
        assert_eq!(unanswered, 3, "what Stripe has rejected it has answered");
    }

    async fn a_period_ends_where_its_counter_says_and_not_where_it_was_thought_to(db: TestDb) {
        let store = open(&db).await;
        let end = now().plus(Duration::from_secs(86_400));
        let counter = Counter { usage: 3, ..Counter::default() };
        let mut event = usage_event();
        event.facts.counted = 3;
        let mut tx = store.begin().await.unwrap();
        tx.put_runs(&[event], &[]).await.unwrap();
        tx.put_counters(&[(counter_key(), end, counter)]).await.unwrap();
        tx.commit().await.unwrap();
        let (metered, _) = store.metered_of(&acme(), now()).await.unwrap();
        assert_eq!(metered[0].period, BillingPeriod { start: november().start, end });
    }

    async fn a_period_is_compared_until_it_is_proven(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        let counter = Counter { usage: 3, ..Counter::default() };
        tx.put_counters(&[(counter_key(), november().end, counter)]).await.unwrap();
        tx.commit().await.unwrap();
        let which = Unproven {
            ended_after: november().start, ended_by: november().end,
            began_after: november().start, compared_by: now().minus(MINUTE),
        };
        let due = async |which| store.unproven_periods(which, 9).await.unwrap();
        assert_eq!(due(which).await, [comparable(None)]);
        assert_eq!(due(Unproven { ended_by: now(), ..which }).await, [], "it goes on");
        assert_eq!(due(Unproven { ended_after: november().end, ..which }).await, [], "long ago");
        let note = async |decided_on: Comparable, proven| {
            let mut tx = store.begin().await.unwrap();
            tx.note_compared(&decided_on, proven).await.unwrap();
            tx.commit().await.unwrap();
        };
        note(comparable(None), false).await;
        assert_eq!(due(which).await, [], "just now");
        let again = vec![comparable(Some(now()))];
        assert_eq!(due(Unproven { compared_by: now(), ..which }).await, again);
        sent(&store).await;
        let later = Unproven { compared_by: now(), ..which };
        assert_eq!(due(later).await, [], "something is on its way");
        rows(&db.url, "DELETE FROM meter_events").await;
        let mut shorter = again[0].clone();
        shorter.counters[0].period_end = now();
        for decided_on in [comparable(None), shorter] {
            note(decided_on, true).await;
            assert_eq!(due(later).await, again, "it was decided on what is no more");
        }
        note(again[0].clone(), true).await;
        assert_eq!(due(later).await, []);
    }

    async fn nothing_is_sent_for_a_customer_whose_sending_is_frozen(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        tx.insert_meter_event(&meter_event(0)).await.unwrap();
        assert!(tx.freeze_sending(&acme(), "Stripe has more").await.unwrap());
        assert!(!tx.freeze_sending(&acme(), "again").await.unwrap());
        assert!(!tx.begin_send("tg_0").await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.frozen_because("acme").await.unwrap().as_deref(), Some("Stripe has more"));
        let mut tx = store.begin().await.unwrap();
        assert!(tx.thaw_sending(&acme()).await.unwrap());
        assert!(!tx.thaw_sending(&acme()).await.unwrap());
        assert!(tx.begin_send("tg_0").await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.frozen_because("acme").await.unwrap(), None);
    }

    async fn what_was_never_sent_may_have_been_when_it_was_written_down(db: TestDb) {
        let store = open(&db).await;
        sent(&store).await;
        let mut tx = store.begin().await.unwrap();
        tx.insert_meter_event(&meter_event(3)).await.unwrap();
        tx.commit().await.unwrap();
        rows(&db.url, "UPDATE meter_events SET created_at_ms = 7").await;
        let mut tx = store.begin().await.unwrap();
        for identifier in ["tg_1", "tg_2", "tg_3"] {
            tx.assume_sent(identifier).await.unwrap();
        }
        tx.commit().await.unwrap();
        let old = "SELECT identifier FROM meter_events WHERE first_sent_at_ms = 7";
        assert_eq!(rows(&db.url, old).await, ["tg_3"]);
    }

    async fn what_is_in_doubt_is_found_and_settled(db: TestDb) {
        let store = open(&db).await;
        sent(&store).await;
        let doubtful = async |due_by| {
            let found = store.doubtful_meter_events(None, now(), now(), due_by, 9).await.unwrap();
            found.into_iter().map(|row| row.identifier).collect::<Vec<_>>()
        };
        assert_eq!(doubtful(now()).await, ["tg_1"]);
        let of_nobody = "nobody".parse().unwrap();
        let none = store.doubtful_meter_events(Some(&of_nobody), now(), now(), now(), 9).await;
        assert_eq!(none.unwrap(), []);
        let span = now()..now().plus(5 * MINUTE);
        assert_eq!(store.meters_sent_to(&span).await.unwrap(), ["ai_runs"]);
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.suspect_meter_events("ai_runs", &span).await.unwrap(), 2, "not the parked one");
        tx.commit().await.unwrap();
        assert_eq!(doubtful(now()).await, ["tg_1", "tg_0"]);
        let settle = async |identifier: &str, state: &str, shown: Shown| {
            let mut tx = store.begin().await.unwrap();
            let settled = tx.settle_doubt(identifier, state, &shown).await.unwrap();
            tx.commit().await.unwrap();
            let row = store.meter_event(identifier).await.unwrap().unwrap();
            format!("{settled} {} {}", row.state, row.detail.unwrap_or_default())
        };
        let later = now().plus(MINUTE);
        let span = async |due_by| store.doubtful_span(&place(), now(), now(), due_by).await.unwrap();
        let at = now().plus(5 * MINUTE);
        assert_eq!((span(now()).await, span(now().minus(MINUTE)).await), (Some((at, at)), None));
        let unclear = Shown::Unclear { again_at: later, reason: Some("neither".to_owned()) };
        assert_eq!(settle("tg_1", "parked", unclear).await, "true parked neither");
        assert_eq!(doubtful(now()).await, ["tg_0"]);
        assert_eq!(doubtful(later).await, ["tg_1", "tg_0"]);
        let too_late = Shown::TooLate { reason: "too late".to_owned() };
        assert_eq!(settle("tg_0", "parked", too_late.clone()).await, "false delivered ");
        let rejected = Shown::Rejected { code: "unnamed".to_owned(), reason: "it lacks".to_owned() };
        assert_eq!(settle("tg_0", "delivered", rejected).await, "true parked it lacks");
        assert_eq!(settle("tg_0", "parked", Shown::Counted).await, "true delivered Stripe's sum has it");
        assert_eq!(settle("tg_1", "parked", too_late).await, "true parked too late");
        assert_eq!(doubtful(later).await, [""; 0]);
    }

    async fn units_are_sent_anew_by_one_other_meter_event_and_no_more(db: TestDb) {
        let store = open(&db).await;
        sent(&store).await;
        let mut tx = store.begin().await.unwrap();
        tx.lock_customer_or_deleted(&acme()).await.unwrap();
        assert!(!tx.replace_meter_event("tg_1", "delivered", "tg_9").await.unwrap());
        assert!(tx.replace_meter_event("tg_1", "parked", "tg_4").await.unwrap());
        assert!(!tx.replace_meter_event("tg_1", "parked", "tg_5").await.unwrap());
        assert!(tx.replace_meter_event("tg_0", "delivered", "tg_6").await.unwrap());
        tx.commit().await.unwrap();
        let anew = store.replacement_of("tg_1").await.unwrap().unwrap();
        let old = store.meter_event("tg_1").await.unwrap().unwrap();
        assert_eq!((anew.identifier.as_str(), anew.idempotency_key.as_str()), ("tg_4", "tg_4-send"));
        assert_eq!((anew.units, anew.timestamp, anew.first_sent_at), (old.units, old.timestamp, None));
        assert_eq!((old.state.as_str(), anew.state.as_str()), ("replaced", "pending"));
        let there = store.meter_events_at(&place(), &(now()..november().end)).await.unwrap();
        let there: Vec<_> = there.iter().map(|row| row.identifier.as_str()).collect();
        assert_eq!(there, ["tg_6", "tg_4", "tg_2"]);
        let recounted = store.recounted(&acme(), &acme()).await.unwrap();
        assert_eq!(recounted.counters[0].parts.frozen, 9, "no unit twice");
        let all = store.undelivered(&(now()..november().end)).await.unwrap();
        assert_eq!(all, Expiring { customers: 1, meter_events: 3, units: 9 });
    }

    async fn a_rejection_names_its_meter_event_by_identifier_or_key(db: TestDb) {
        let store = open(&db).await;
        sent(&store).await;
        let mut tx = store.begin().await.unwrap();
        tx.insert_meter_event(&meter_event(3)).await.unwrap();
        let mut reject = async |request: &str| {
            let row = tx.reject_meter_event(request, "archived_meter", "rejected").await.unwrap();
            row.map(|row| format!("{} {} {:?}", row.identifier, row.state, row.rejected_code))
        };
        let archived = |identifier| Some(format!("{identifier} parked Some(\"archived_meter\")"));
        assert_eq!(reject("tg_0").await, archived("tg_0"));
        assert_eq!(reject("tg_2-send-4").await, archived("tg_2"));
        assert_eq!(reject("tg_0").await, None, "it is known");
        assert_eq!(reject("tg_3").await, None, "it was never sent");
        assert_eq!(reject("somebody else's").await, None);
        // Under its old identifier Stripe would take it for the one it has rejected.
        assert!(!tx.unpark_meter_event("tg_0", sendable()).await.unwrap());
        assert!(tx.unpark_meter_event("tg_1", sendable()).await.unwrap());
        tx.commit().await.unwrap();
    }

    async fn what_stripe_refused_is_sendable_for_a_while_once_its_sum_has_cleared_it(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        tx.insert_meter_event(&meter_event(0)).await.unwrap();
        tx.commit().await.unwrap();
        let park = "UPDATE meter_events SET state = 'parked', created_at_ms = 7";
        rows(&db.url, park).await;
        let untaken = async || {
            let found = store.untaken_meter_events(&acme(), sendable(), 9).await.unwrap();
            (found.len(), store.sendable_meter_events_of(&acme(), sendable()).await.unwrap())
        };
        assert_eq!(untaken().await, (1, 0));
        let mut tx = store.begin().await.unwrap();
        assert!(!tx.unpark_meter_event("tg_0", sendable()).await.unwrap());
        assert!(tx.put_back_cleared("tg_0").await.unwrap());
        assert!(!tx.put_back_cleared("tg_0").await.unwrap());
        tx.commit().await.unwrap();
        let row = store.meter_event("tg_0").await.unwrap().unwrap();
        assert_eq!((row.state.as_str(), row.cleared_at, row.first_sent_at), ("pending", Some(now()), None));
        rows(&db.url, park).await;
        assert_eq!(untaken().await, (0, 1));
    }
}
