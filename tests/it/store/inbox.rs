//! The inbox's rows, and who is to be looked at for what never came into it.

use tollgate::store::inbox::{EventOutcome, StoredEvent};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn parked() -> EventOutcome {
    EventOutcome::Parked { reason: "broken".to_owned() }
}

fn waiting() -> EventOutcome {
    EventOutcome::Waiting { reason: "nobody's".to_owned() }
}

async fn insert(store: &Store, event_id: &str, stripe_id: Option<&str>, named: Option<&str>) {
    let mut tx = store.begin().await.unwrap();
    assert!(tx.insert_event(event_id, "invoice.paid", stripe_id, named, "{}").await.unwrap());
    tx.commit().await.unwrap();
}

async fn settle(store: &Store, event_id: &str, outcome: &EventOutcome) -> StoredEvent {
    let mut tx = store.begin().await.unwrap();
    tx.settle_event(event_id, None, outcome).await.unwrap();
    tx.commit().await.unwrap();
    store.stored_event(event_id).await.unwrap().unwrap()
}

/// A customer that is tied to this Stripe customer, in a transaction that is still open.
async fn make(tx: &mut tollgate::store::Tx, id: &str, stripe_id: Option<&str>) -> Customer {
    let stripe_customer_id = stripe_id.map(str::to_owned);
    let tier = Tier::initial(now());
    let made = Customer { id: id.parse().unwrap(), stripe_customer_id, tier, ..customer() };
    assert!(tx.insert_customer(&made).await.unwrap());
    made
}

both_databases! {
    async fn the_inbox_keeps_settles_and_puts_back(db: TestDb) {
        let store = open(&db).await;
        insert(&store, "evt_1", None, Some("acme")).await;
        let mut tx = store.begin().await.unwrap();
        assert!(!tx.insert_event("evt_1", "invoice.paid", None, None, "{}").await.unwrap());
        tx.name_event("evt_1", "cus_1", Some("acme")).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.pending_events(now(), 9).await.unwrap().len(), 1);
        assert_eq!(store.event_body("evt_1").await.unwrap().as_deref(), Some("{}"));
        let mut tx = store.begin().await.unwrap();
        let later = EventOutcome::TryAgain { at: november().end, reason: "down".to_owned() };
        tx.settle_event("evt_1", None, &later).await.unwrap();
        tx.settle_event("evt_1", Some(&acme()), &parked()).await.unwrap();
        assert_eq!(tx.parked_events(&acme(), Some("cus_1"), now()).await.unwrap(), 1);
        assert_eq!(tx.unpark_events(&acme(), Some("cus_1")).await.unwrap(), 1);
        tx.settle_event("evt_1", None, &parked()).await.unwrap();
        assert_eq!(tx.apply_parked_events(&acme(), Some("cus_1"), now()).await.unwrap(), 1);
        tx.commit().await.unwrap();
        let listed = store.list_events(Some("acme"), Some("applied"), 9).await.unwrap();
        assert_eq!((listed.len(), listed[0].settled_at), (1, Some(now())));
        assert_eq!(store.list_events(None, None, 9).await.unwrap(), listed);
        store.forget_event("evt_2").await.unwrap();
        assert!(store.stored_event("evt_1").await.unwrap().is_some(), "another's");
        store.forget_event("evt_1").await.unwrap();
        assert_eq!(store.stored_event("evt_1").await.unwrap(), None);
    }

    async fn a_settled_event_is_put_back_once_as_if_it_had_just_come(db: TestDb) {
        let store = open(&db).await;
        insert(&store, "evt_1", Some("cus_1"), None).await;
        let fresh = store.stored_event("evt_1").await.unwrap().unwrap();
        let later = EventOutcome::TryAgain { at: november().end, reason: "down".to_owned() };
        for outcome in [EventOutcome::Applied, EventOutcome::Ignored, parked(), waiting(), later] {
            let settled = settle(&store, "evt_1", &outcome).await;
            assert_eq!(settled.waits_for.is_some(), outcome == waiting());
            let mut tx = store.begin().await.unwrap();
            assert!(tx.replay_event("evt_1").await.unwrap());
            assert!(!tx.replay_event("evt_1").await.unwrap(), "it is there already");
            assert!(!tx.replay_event("evt_2").await.unwrap(), "there is none");
            tx.commit().await.unwrap();
            let again = store.stored_event("evt_1").await.unwrap().unwrap();
            assert_eq!(StoredEvent { detail: None, ..again }, fresh);
        }
        assert_eq!(store.stored_event("evt_2").await.unwrap(), None);
    }

    async fn whoever_comes_to_be_while_its_event_is_parked_is_found_afterwards(db: TestDb) {
        let store = open(&db).await;
        for (event_id, id, stripe_id) in [("evt_1", "acme", Some("cus_1")), ("evt_2", "beta", None)] {
            // The event names its customer only while that one is being made.
            insert(&store, event_id, None, None).await;
            let mut maker = store.begin().await.unwrap();
            let made = make(&mut maker, id, stripe_id).await;
            assert_eq!(maker.unpark_events(&made.id, stripe_id).await.unwrap(), 0, "not yet named");
            let worker = tokio::spawn({
                let store = store.clone();
                async move {
                    let mut tx = store.begin().await.unwrap();
                    tx.name_event(event_id, "cus_1", (id == "beta").then_some(id)).await.unwrap();
                    tx.commit().await.unwrap();
                    settle(&store, event_id, &waiting()).await;
                    // On PostgreSQL it is through before the other one is; SQLite has one writer.
                    store.waiting_events_of_known(9).await.unwrap()
                }
            });
            if db.is_postgres() {
                assert_eq!(worker.await.unwrap(), [""; 0], "nobody is known yet");
                maker.commit().await.unwrap();
            } else {
                maker.commit().await.unwrap();
                assert_eq!(worker.await.unwrap(), [event_id], "it came after its customer");
            }
            assert_eq!(store.waiting_events_of_known(9).await.unwrap(), [event_id]);
            let mut tx = store.begin().await.unwrap();
            assert!(tx.replay_event(event_id).await.unwrap());
            tx.delete_customer(&made.id).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(store.waiting_events_of_known(9).await.unwrap(), Vec::<String>::new());
            settle(&store, event_id, &waiting()).await;
            assert_eq!(store.waiting_events_of_known(9).await.unwrap(), Vec::<String>::new());
            settle(&store, event_id, &EventOutcome::Applied).await;
        }
    }

    async fn those_whom_the_clock_overtook_are_listed_until_they_are_looked_at(db: TestDb) {
        let store = open(&db).await;
        let patience = Duration::from_secs(7200);
        let mut tx = store.begin().await.unwrap();
        make(&mut tx, "acme", Some("cus_1")).await;
        tx.update_customer(&customer()).await.unwrap();
        tx.commit().await.unwrap();
        let overtaken = async |moment: Timestamp| {
            let again_before = moment.minus(HOUR);
            store.overtaken_customers(moment, patience, again_before, "", 9).await.unwrap()
        };
        let end = november().end;
        assert_eq!(overtaken(end).await, [acme()]);
        assert_eq!(overtaken(end.minus(Duration::from_millis(1))).await, []);
        assert_eq!(store.overtaken_customers(end, patience, end, "acme", 9).await.unwrap(), []);
        // Its renewal may be late; its time to pay is over for good.
        store.note_look(&acme(), end).await.unwrap();
        assert_eq!(overtaken(end.plus(HOUR)).await, [], "asked about just now");
        assert_eq!(overtaken(end.plus(2 * HOUR)).await, [acme()]);
        store.note_look(&acme(), end.plus(30 * DAY)).await.unwrap();
        assert_eq!(overtaken(end).await, [acme()], "by a clock that was ahead");
        store.note_look(&acme(), end.plus(patience)).await.unwrap();
        assert_eq!(overtaken(end.plus(patience)).await, []);
        let mut tx = store.begin().await.unwrap();
        let mut in_grace = tx.lock_customer(&acme()).await.unwrap().unwrap();
        in_grace.tier.cycle.stripe = None;
        tx.update_customer(&in_grace).await.unwrap();
        tx.commit().await.unwrap();
        store.note_look(&acme(), end.minus(Duration::from_millis(1))).await.unwrap();
        assert_eq!(overtaken(end).await, [acme()]);
        store.note_look(&acme(), end.plus(DAY)).await.unwrap();
        assert_eq!(overtaken(end).await, [acme()], "by a clock that was ahead");
        store.note_look(&acme(), end).await.unwrap();
        assert_eq!(overtaken(end).await, []);
    }

    async fn the_sweep_takes_those_with_a_stripe_customer_the_longest_ago_first(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        for (id, stripe_id) in [("a", Some("cus_a")), ("b", Some("cus_b")), ("c", Some("cus_c")), ("d", None)] {
            make(&mut tx, id, stripe_id).await;
        }
        tx.commit().await.unwrap();
        let ids = |found: Vec<CustomerId>| found.iter().map(ToString::to_string).collect::<Vec<_>>();
        let minute = Duration::from_secs(60);
        store.note_look(&"a".parse().unwrap(), now()).await.unwrap();
        store.note_look(&"b".parse().unwrap(), now().minus(minute)).await.unwrap();
        let due = async |moment, limit| ids(store.customers_to_sweep(moment, moment, limit).await.unwrap());
        assert_eq!(due(now().plus(minute), 9).await, ["c", "b", "a"]);
        assert_eq!(due(now().plus(minute), 2).await, ["c", "b"]);
        assert_eq!(due(now(), 9).await, ["c", "b"]);
        assert_eq!(due(now().minus(minute), 9).await, ["c", "a"], "a's is of a clock that was ahead");
        assert_eq!(store.count_tied_customers().await.unwrap(), 3);
        assert_eq!(ids(store.tied_customers("a", 9).await.unwrap()), ["b", "c"]);
        assert_eq!(ids(store.tied_customers("", 1).await.unwrap()), ["a"]);
        store.put_setting("swept_to", "then").await.unwrap();
        store.put_setting("swept_to", "now").await.unwrap();
        assert_eq!(store.setting("swept_to").await.unwrap().as_deref(), Some("now"));
        assert_eq!(store.setting("nothing").await.unwrap(), None);
    }
}
