//! Transactions that follow one another on one connection, and runs written in one call.

use tokio::task::JoinSet;
use tollgate::store::intake::NewStripeEvent;
use tollgate::store::usage::Seen;

use super::*;

fn run(key: &str) -> NewEvent {
    let event = usage_event();
    let facts = Facts { counted: 3, hold: None, intent: Intent::Consume, ..event.facts };
    let key = EventKey::Request { key: key.to_owned(), request_hash: "hash".to_owned() };
    NewEvent { facts, key, ..event }
}

fn counter(usage: i64) -> PeriodCounter {
    (counter_key(), november().end, Counter { usage, ..Counter::default() })
}

/// A customer at revision 1 with three units, each time with something else about it.
fn other_than_it_is() -> Vec<Seen> {
    let moved = |change: fn(&mut PeriodCounter)| {
        let mut counter = counter(3);
        change(&mut counter);
        (1, counter)
    };
    let open = |counter: &mut PeriodCounter| {
        let (start, end) = (november().start, november().end);
        counter.2.open = Some(OpenWindow { start, end, value: 1, meter: "runs".to_owned() });
    };
    vec![
        (2, counter(3)),
        moved(|counter| counter.0.customer_id = "nobody".parse().unwrap()),
        moved(|counter| counter.0.series += 1),
        moved(|counter| counter.1 = november().start),
        moved(|counter| counter.2.usage = 2),
        moved(|counter| counter.2.reserved = 1),
        moved(|counter| counter.2.from_grants = 1),
        moved(|counter| counter.2.pruned = 1),
        moved(|counter| counter.2.closed_until = Some(november().start)),
        moved(open),
    ]
}

fn stripe_event(id: &str) -> NewStripeEvent {
    NewStripeEvent {
        event_id: id.to_owned(),
        event_type: "invoice.paid".to_owned(),
        stripe_customer_id: Some("cus_1".to_owned()),
        customer_id: None,
        body: "{}".to_owned(),
    }
}

both_databases! {
    async fn events_that_arrive_together_are_each_stored_once(db: TestDb) {
        let store = open(&db).await;
        let mut senders = JoinSet::new();
        for n in 0..300 {
            let store = store.clone();
            // Each comes three times.
            senders.spawn(async move { store.take_in(stripe_event(&(n / 3).to_string())).await.unwrap() });
        }
        assert_eq!(senders.join_all().await.into_iter().filter(|new| *new).count(), 100);
        assert_eq!(store.pending_events(now(), 999).await.unwrap().len(), 100);
        assert!(!store.take_in(stripe_event("7")).await.unwrap());
        let stored = store.list_events(None, None, 1).await.unwrap().remove(0);
        assert_eq!(stored.stripe_customer_id.as_deref(), Some("cus_1"));
        assert_eq!(store.event_body("7").await.unwrap().as_deref(), Some("{}"));
    }

    async fn an_event_that_cannot_be_stored_is_no_affair_of_the_others(db: TestDb) {
        let store = open(&db).await;
        let mut senders = JoinSet::new();
        for n in 0..100 {
            let store = store.clone();
            // A text with a NUL is refused by one database and taken by the other.
            let id = if n == 50 { "50\0".to_owned() } else { n.to_string() };
            senders.spawn(async move { store.take_in(stripe_event(&id)).await.is_ok() });
        }
        assert!(senders.join_all().await.into_iter().filter(|stored| *stored).count() >= 99);
        assert!(store.pending_events(now(), 999).await.unwrap().len() >= 99);
    }

    async fn runs_and_their_counters_are_written_in_one_call_or_not_at_all(db: TestDb) {
        let store = open(&db).await;
        let line = store.line();
        let write = async |events: &[NewEvent], usage| {
            store.hold(&line).await.unwrap().commit_runs(&[], events, &[counter(usage)]).await
        };
        // More than one statement takes at a time, in no size that there is a statement for.
        let runs: Vec<_> = (0..300).map(|n| run(&n.to_string())).collect();
        write(&runs, 900).await.unwrap();
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 900);
        assert!(write(&[run("new"), run("7")], 906).await.unwrap_err().is_duplicate());
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 900);
        assert_eq!(store.counter(&counter_key()).await.unwrap().usage, 900);
        write(&[run("new")], 903).await.unwrap();
        assert_eq!(store.counter(&counter_key()).await.unwrap().usage, 903);
        store.hold(&line).await.unwrap().commit_runs(&[], &[], &[]).await.unwrap();
    }

    async fn a_run_without_a_key_is_found_by_its_id(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        let key = EventKey::Own("evt_1".to_owned());
        tx.put_runs(&[NewEvent { key, ..run("") }], &[]).await.unwrap();
        let found = tx.remembered(&[(&acme(), "evt_1".to_owned())]).await.unwrap();
        let [(_, known)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(known.facts.event_id.as_deref(), Some("evt_1"));
        assert_eq!((known.facts.counted, known.request_hash.as_deref()), (3, None));
    }

    async fn runs_are_written_only_if_all_is_as_it_was_seen(db: TestDb) {
        let store = open(&db).await;
        let line = store.line();
        let mut tx = store.begin_on(&line).await.unwrap();
        tx.insert_customer(&customer()).await.unwrap();
        tx.put_runs(&[run("first")], &[counter(3)]).await.unwrap();
        tx.commit().await.unwrap();
        for (revision, seen) in if db.is_postgres() { other_than_it_is() } else { Vec::new() } {
            let tx = store.hold(&line).await.unwrap();
            let seen = [(revision, seen)];
            assert!(!tx.commit_runs(&seen, &[run("late")], &[counter(6)]).await.unwrap(), "{seen:?}");
        }
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 3);
        assert_eq!(store.counter(&counter_key()).await.unwrap().usage, 3);
        let seen = if db.is_postgres() { vec![(1, counter(3))] } else { Vec::new() };
        let mut tx = store.begin_on(&line).await.unwrap();
        assert!(tx.put_runs_on(&seen, &[run("in time")], &[counter(6)]).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.counter(&counter_key()).await.unwrap().usage, 6);
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 6);
    }

    async fn whoever_is_next_on_a_line_finds_what_was_not_committed_rolled_back(db: TestDb) {
        let store = open(&db).await;
        let line = store.line();
        let mut tx = store.hold(&line).await.unwrap();
        tx.begin().await.unwrap();
        tx.put_runs(&[run("a")], &[counter(3)]).await.unwrap();
        drop(tx);
        let mut tx = store.begin_on(&line).await.unwrap();
        assert_eq!(tx.counters(&[counter_key()]).await.unwrap(), []);
        // What is refused ends the transaction on one database and not on the other.
        tx.put_runs(&[run("a")], &[counter(3)]).await.unwrap();
        assert!(tx.put_runs(&[run("a")], &[]).await.unwrap_err().is_duplicate());
        drop(tx);
        let mut tx = store.begin_on(&line).await.unwrap();
        tx.put_runs(&[run("a")], &[counter(3)]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 3);
    }
}

/// The statement began before the other's transaction ended, and must not see what was then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_while_a_write_waited_for_it_is_seen() {
    let db = TestDb::postgres().await;
    let store = open(&db).await;
    let mut tx = store.begin().await.unwrap();
    tx.insert_customer(&customer()).await.unwrap();
    tx.put_runs(&[run("first")], &[counter(3)]).await.unwrap();
    tx.commit().await.unwrap();
    let mut other = store.begin().await.unwrap();
    other.lock_customer(&acme()).await.unwrap();
    let late = store.hold(&store.line()).await.unwrap();
    let late = tokio::spawn(async move {
        late.commit_runs(&[(1, counter(3))], &[run("late")], &[counter(6)]).await
    });
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while rows(&db.url, waiting).await != ["1"] {
        tokio::task::yield_now().await;
    }
    // As the gate does: the customer is locked, and only its counter is changed.
    other.put_runs(&[run("in time")], &[counter(6)]).await.unwrap();
    other.commit().await.unwrap();
    assert!(!late.await.unwrap().unwrap());
    assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 6);
    assert_eq!(store.counter(&counter_key()).await.unwrap().usage, 6);
}
