//! The ends of periods: what is due before and after them, and rows that move from one counter to
//! another.

use tollgate::store::outbox::MeterEvent;
use tollgate::store::periods::Moved;

use super::*;

fn event(identifier: &str, minutes: u64) -> NewMeterEvent {
    let timestamp = now().plus(Duration::from_secs(60 * minutes));
    let end = timestamp.plus(Duration::from_secs(300));
    NewMeterEvent {
        identifier: identifier.to_owned(),
        idempotency_key: format!("{identifier}-send"),
        counter: counter_key(),
        stripe_customer_id: "cus_1".to_owned(),
        window: OpenWindow { start: timestamp, end, ..window() },
        timestamp,
        billable_until: Some(november().billable_until()),
    }
}

/// A customer with a counter of seven units, three of them since ten minutes after [`now`], and two
/// meter events of three.
async fn used(db: &TestDb) -> (Store, Clock) {
    let clock = Clock::manual(now());
    let store = Store::open(&db.url.clone().into(), clock.clone()).await.unwrap();
    store.migrate().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.insert_customer(&customer()).await.unwrap();
    tx.update_customer(&customer()).await.unwrap();
    let run = |id: &str, units: i64, minutes: u64| {
        let mut run = usage_event();
        run.facts.counted = units;
        run.facts.decided_at = now().plus(Duration::from_secs(60 * minutes));
        NewEvent { key: EventKey::Own(id.to_owned()), ..run }
    };
    tx.put_runs(&[run("evt_1", 4, 0), run("evt_2", 3, 10)], &[]).await.unwrap();
    let counter = Counter { usage: 7, open: Some(window()), ..Counter::default() };
    tx.put_counters(&[(counter_key(), november().end, counter)]).await.unwrap();
    for event in [event("tg_1", 0), event("tg_2", 10)] {
        tx.insert_meter_event(&event).await.unwrap();
    }
    tx.commit().await.unwrap();
    (store, clock)
}

fn in_minutes(minutes: u64) -> Timestamp {
    now().plus(Duration::from_secs(60 * minutes))
}

both_databases! {
    async fn usage_of_a_period_that_ends_is_found_and_told_of(db: TestDb) {
        let (store, clock) = used(&db).await;
        let end = november().end;
        let ending = async |after, opened_by| {
            let customers = store.customers_to_flush((after, end), opened_by, 9).await.unwrap();
            let due = store.due_meter_events_of_ending_periods((after, end), 9).await.unwrap();
            (customers, due.len())
        };
        assert_eq!(ending(now(), end).await, (vec![acme()], 2));
        let before = Timestamp::from_ms(window().start.ms() - 1);
        assert_eq!(ending(now(), before).await, (vec![], 2), "nothing was open then");
        assert_eq!(ending(end, end).await, (vec![], 0));
        let mut tx = store.begin().await.unwrap();
        tx.freeze_sending(&acme(), "someone has to look").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ending(now(), end).await, (vec![], 0), "nothing is sent for it");
        assert_eq!(store.overdue_units().await.unwrap(), (0, 0));
        assert_eq!(store.due_meter_events_of_closed_periods(9).await.unwrap(), []);
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.tell_overdue().await.unwrap(), []);
        tx.end_series(&acme(), 0, now()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.overdue_units().await.unwrap(), (0, 0), "just closed");
        clock.advance(Duration::from_secs(60)).unwrap();
        assert_eq!(store.overdue_units().await.unwrap(), (6, 2));
        assert_eq!(store.due_meter_events_of_closed_periods(9).await.unwrap().len(), 2);
        let mut tx = store.begin().await.unwrap();
        let told = tx.tell_overdue().await.unwrap();
        assert_eq!((&told[0].counter, told[0].units, told[0].billable_until), (&counter_key(), 6, now()));
        assert_eq!(tx.tell_overdue().await.unwrap(), [], "once");
        tx.commit().await.unwrap();
        assert_eq!(store.overdue_units().await.unwrap(), (6, 0));
        assert_eq!(rows(&db.url, "SELECT period_end_ms FROM usage_counters").await, [now().ms().to_string()]);
    }

    async fn what_can_still_be_billed_is_sent_before_what_can_not(db: TestDb) {
        let (store, clock) = used(&db).await;
        rows(&db.url, "DELETE FROM meter_events").await;
        clock.advance(Duration::from_secs(3600)).unwrap();
        let mut tx = store.begin().await.unwrap();
        for (identifier, minutes) in [("tg_over", 0), ("tg_soon", 70), ("tg_first", 65)] {
            let billable_until = Some(in_minutes(minutes));
            let timestamp = event(identifier, minutes);
            tx.insert_meter_event(&NewMeterEvent { billable_until, ..timestamp }).await.unwrap();
        }
        let none = NewMeterEvent { billable_until: None, ..event("tg_never", 80) };
        tx.insert_meter_event(&none).await.unwrap();
        tx.commit().await.unwrap();
        let named = |rows: Vec<MeterEvent>| {
            rows.into_iter().map(|row| row.identifier).collect::<Vec<_>>()
        };
        let closed = store.due_meter_events_of_closed_periods(9).await.unwrap();
        assert_eq!(named(closed), ["tg_first", "tg_soon", "tg_over"]);
        let all = store.pending_meter_events(clock.now(), 9).await.unwrap();
        assert_eq!(named(all), ["tg_first", "tg_soon", "tg_over", "tg_never"]);
    }

    async fn rows_move_to_the_counter_of_the_period_that_they_are_of(db: TestDb) {
        let (store, _) = used(&db).await;
        let period = BillingPeriod { start: in_minutes(2), end: november().end };
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.counters_across(&acme(), 0, period.start).await.unwrap(), [counter_key()]);
        assert_eq!(tx.counters_across(&acme(), 0, november().start).await.unwrap(), []);
        assert_eq!(tx.units_metered_since(&counter_key(), period.start).await.unwrap(), 3);
        let frozen = tx.frozen_across(&counter_key(), period.start).await.unwrap();
        assert_eq!(frozen, Some(in_minutes(5)), "the window that began before");
        assert_eq!(tx.frozen_across(&counter_key(), in_minutes(7)).await.unwrap(), None);
        let moved = tx.move_rows(&counter_key(), in_minutes(5), period).await.unwrap();
        assert_eq!(moved, Moved { usage: 3, reserved: 0, from_grants: 0 });
        assert_eq!(tx.move_rows(&counter_key(), in_minutes(5), period).await.unwrap(), Moved::default());
        tx.commit().await.unwrap();
        let moved_to = CounterKey { period_start: period.start, ..counter_key() };
        assert_eq!(store.sum_of_events(&moved_to).await.unwrap(), 3);
        assert_eq!(store.sum_of_events(&counter_key()).await.unwrap(), 4);
        let until = "SELECT identifier, period_start_ms, billable_until_ms FROM meter_events ORDER BY identifier";
        let (start, begun) = (november().start.ms(), period.start.ms());
        assert_eq!(rows(&db.url, until).await, [
            format!("tg_1|{start}|{begun}"), format!("tg_2|{begun}|{}", period.billable_until().ms()),
        ]);
    }

    async fn events_whose_windows_end_together_are_told_apart_when_they_move(db: TestDb) {
        let (store, _) = used(&db).await;
        let period = BillingPeriod { start: now().minus(Duration::from_secs(60)), ..november() };
        let there = CounterKey { period_start: period.start, ..counter_key() };
        let mut tx = store.begin().await.unwrap();
        for (identifier, minutes) in [("tg_3", 0), ("tg_4", 10)] {
            let event = NewMeterEvent { counter: there.clone(), ..event(identifier, minutes) };
            tx.insert_meter_event(&event).await.unwrap();
        }
        tx.put_counters(&[(there, period.end, Counter::default())]).await.unwrap();
        tx.commit().await.unwrap();
        rows(&db.url, "UPDATE usage_counters SET proven_at_ms = 1, compared_at_ms = 1").await;
        rows(&db.url, "UPDATE meter_events SET window_end_ms = window_end_ms - 600001 WHERE identifier = 'tg_4'").await;
        let mut tx = store.begin().await.unwrap();
        tx.move_rows(&counter_key(), period.start, period).await.unwrap();
        tx.commit().await.unwrap();
        let ends = "SELECT identifier, window_end_ms FROM meter_events ORDER BY identifier";
        let end = in_minutes(5).ms();
        assert_eq!(rows(&db.url, ends).await, [
            format!("tg_1|{}", end - 2), format!("tg_2|{}", in_minutes(15).ms()),
            format!("tg_3|{end}"), format!("tg_4|{}", end - 1),
        ]);
        let proven = "SELECT COUNT(*) FROM usage_counters WHERE proven_at_ms = compared_at_ms";
        assert_eq!(rows(&db.url, proven).await, ["0"]);
    }

    async fn a_period_that_is_longer_is_longer_everywhere(db: TestDb) {
        let (store, _) = used(&db).await;
        rows(&db.url, "UPDATE usage_counters SET proven_at_ms = 1, compared_at_ms = 1").await;
        let proven = "SELECT COUNT(*) FROM usage_counters WHERE proven_at_ms = compared_at_ms";
        let mut tx = store.begin().await.unwrap();
        tx.set_period_end(&acme(), 0, november()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(rows(&db.url, proven).await, ["1"], "as before");
        let longer = BillingPeriod { end: november().end.plus(Duration::from_secs(60)), ..november() };
        let mut tx = store.begin().await.unwrap();
        tx.set_period_end(&acme(), 0, longer).await.unwrap();
        tx.set_period_end(&acme(), 1, november()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(rows(&db.url, proven).await, ["0"]);
        let ends = "SELECT DISTINCT billable_until_ms FROM meter_events UNION SELECT period_end_ms FROM usage_counters ORDER BY 1";
        assert_eq!(rows(&db.url, ends).await, [longer.end.ms().to_string(), longer.billable_until().ms().to_string()]);
    }
}
