//! What is kept: forgetting history bit by bit, and rebuilding counters from their parts.

use tollgate::domain::recount::{Parts, Stored};
use tollgate::store::history::{Span, Which};
use tollgate::store::recount::{Recounted, RecountedCounter};
use tollgate::store::retention::Pruned;

use super::*;

fn own(id: &str, units: i64) -> NewEvent {
    let mut event = usage_event();
    event.facts.counted = units;
    NewEvent { key: EventKey::Own(id.to_owned()), ..event }
}

async fn put(store: &Store, events: &[NewEvent], counter: Counter) {
    let mut tx = store.begin().await.unwrap();
    tx.insert_customer(&customer()).await.unwrap();
    tx.put_runs(events, &[]).await.unwrap();
    tx.put_counters(&[(counter_key(), november().end, counter)]).await.unwrap();
    tx.commit().await.unwrap();
}

fn used(usage: i64) -> Counter {
    Counter { usage, ..Counter::default() }
}

both_databases! {
    async fn history_is_forgotten_bit_by_bit_and_a_bit_that_fails_not_at_all(db: TestDb) {
        let store = open(&db).await;
        let events = [own("evt_1", 1), own("evt_2", 2), own("evt_3", 4), usage_event()];
        put(&store, &events, used(7)).await;
        let end = november().end;
        assert_eq!(store.counters_to_prune(now(), 9).await.unwrap(), []);
        let mut told = Vec::new();
        while store.counters_to_prune(end, 9).await.unwrap() == [counter_key()] {
            // The process ends half-way, and then it does not.
            let mut tx = store.begin().await.unwrap();
            tx.prune(&counter_key(), end, 2).await.unwrap();
            drop(tx);
            let mut tx = store.begin().await.unwrap();
            assert!(tx.lock_customer_or_deleted(&acme()).await.unwrap().is_some());
            told.push(tx.prune(&counter_key(), end, 2).await.unwrap().unwrap());
            tx.commit().await.unwrap();
        }
        let bit = |deleted, stripped, finished| Pruned { deleted, stripped, finished };
        assert_eq!(told, [bit(2, 0, false), bit(1, 1, false), bit(0, 0, true)]);
        let counter = store.counter(&counter_key()).await.unwrap();
        assert_eq!((counter.usage, counter.pruned), (7, 7));
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.prune(&counter_key(), end, 2).await.unwrap(), None, "it is done");
    }

    async fn history_is_summed_by_bin_and_entity(db: TestDb) {
        let store = open(&db).await;
        let mut late = own("evt_2", 2);
        late.facts.decided_at = now().plus(std::time::Duration::from_secs(86_400));
        put(&store, &[own("evt_1", 1), late], used(3)).await;
        let feature = "ai_runs".parse().unwrap();
        let span = Span { from: november().start, to: november().end, bin_ms: 86_400_000 };
        let found = store.history(&acme(), &feature, Which::Recorded, span, 9).await.unwrap();
        let told: Vec<_> = found.iter().map(|used| (used.bin, used.units, used.events)).collect();
        let day = november().start.ms() / 86_400_000;
        assert_eq!(told, [(day, 1, 1), (day + 1, 2, 1)]);
        // Of a period that ended before the second run, all that is counted in it is in its bins.
        let which = Which::CountedIn { series: counter_key().series };
        let cut = Span { to: now(), ..span };
        let counted = store.history(&acme(), &feature, which, cut, 9).await.unwrap();
        assert_eq!(counted.iter().map(|used| (used.bin, used.units)).collect::<Vec<_>>(), [(day, 3)]);
        let other = Which::CountedIn { series: counter_key().series + 1 };
        assert_eq!(store.history(&acme(), &feature, other, span, 9).await.unwrap(), []);
        assert!(found.iter().all(|used| used.entity_id.as_ref().is_some_and(|id| id.as_str() == "jo")));
    }

    async fn what_is_stripped_is_no_run_of_the_pricing_report(db: TestDb) {
        let store = open(&db).await;
        let mut event = usage_event();
        event.facts.counted = 3;
        put(&store, &[event], used(3)).await;
        let runs = async || {
            let (mut runs, feature) = (0, "ai_runs".parse().unwrap());
            store.each_recorded_run(&feature, now(), november().end, |_| runs += 1).await.unwrap();
            runs
        };
        assert_eq!(runs().await, 1);
        let mut tx = store.begin().await.unwrap();
        tx.prune(&counter_key(), november().end, 9).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(runs().await, 0);
    }

    async fn a_counter_is_read_beside_its_parts(db: TestDb) {
        let store = open(&db).await;
        let mut unknown = own("evt_1", 1);
        unknown.metered = false;
        let counter = Counter {
            usage: 9, reserved: 1, from_grants: 2, pruned: 4, open: Some(window()), closed_until: None,
        };
        put(&store, &[unknown, own("evt_2", 2)], counter).await;
        let stored = Stored { usage: 9, reserved: 1, from_grants: 2, pruned: 4, open: 3 };
        let parts = Parts { counted: 3, metered: 2, ..Parts::default() };
        let read = Recounted {
            counters: vec![RecountedCounter {
                key: counter_key(), period_end: Some(november().end), stored: Some(stored), parts,
            }],
            grants: Vec::new(),
        };
        assert_eq!(store.customers_to_recount("", 9).await.unwrap(), [acme()]);
        assert_eq!(store.customers_to_recount("acme", 9).await.unwrap(), []);
        assert_eq!(store.recounted(&acme(), &acme()).await.unwrap(), read);
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.recounted_of(&acme()).await.unwrap(), read);
        tx.set_used_units(&acme(), "none", 1).await.unwrap();
    }
}
