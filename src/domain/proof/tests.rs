use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn november() -> BillingPeriod {
    BillingPeriod { start: at("2026-11-01T00:00:00Z"), end: at("2026-12-01T00:00:00Z") }
}

fn place(meter: &str) -> Place {
    Place { stripe_customer_id: "cus_1".to_owned(), meter: meter.to_owned() }
}

fn counter(feature: &str, units: i64) -> Metered {
    Metered {
        feature_id: feature.parse().unwrap(),
        series: 0,
        period: november(),
        units: Some(units),
        open: 0,
        open_meter: None,
    }
}

fn sent(feature: &str, meter: &str, units: i64) -> Reported {
    Reported {
        feature_id: feature.parse().unwrap(),
        series: 0,
        period_start: november().start,
        place: place(meter),
        units,
        fresh: 0,
        waiting: 0,
        parked: 0,
        parked_because: None,
        unsent: 0,
        first_at: at("2026-11-05T10:00:00Z"),
        last_at: at("2026-11-05T10:00:00Z"),
    }
}

/// The accounts as `meter ledger lost`.
fn told(metered: &[Metered], reported: &[Reported]) -> Vec<String> {
    let accounts = accounts(metered, reported, None, |_| Some(place("today")));
    let meter = |account: &Account| account.place.as_ref().map(|place| place.meter.clone());
    let line = |account: &Account| {
        format!("{} {} {}", meter(account).unwrap_or_default(), account.ledger, account.lost)
    };
    accounts.iter().map(line).collect()
}

#[test]
fn features_that_share_a_meter_are_one_account() {
    let counters = [counter("runs", 5), counter("images", 7)];
    let rows = [sent("runs", "ai", 5), sent("images", "ai", 7)];
    assert_eq!(told(&counters, &rows), ["ai 12 0"]);
}

#[test]
fn a_feature_that_changed_its_meter_is_two_accounts() {
    let rows = [sent("runs", "new", 3), sent("runs", "old", 2)];
    assert_eq!(told(&[counter("runs", 5)], &rows), ["new 3 0", "old 2 0"]);
}

#[test]
fn what_is_in_no_meter_event_is_missing_where_usage_went_last() {
    let later = Reported { last_at: at("2026-11-06T10:00:00Z"), ..sent("runs", "new", 3) };
    let rows = [sent("runs", "old", 2), later];
    assert_eq!(told(&[counter("runs", 9)], &rows), ["new 7 4", "old 2 0"]);
    assert_eq!(told(&[counter("runs", 9)], &[]), ["today 9 9"]);
    // More in the outbox than was ever used: the ledger is what was used.
    assert_eq!(told(&[counter("runs", 1)], &rows[..1]), ["old 1 -1"]);
}

#[test]
fn an_open_window_belongs_to_the_meter_it_was_opened_for() {
    let open = Metered { open: 4, open_meter: Some("new".to_owned()), ..counter("runs", 6) };
    assert_eq!(told(&[open], &[sent("runs", "old", 2)]), ["new 4 0", "old 2 0"]);
}

#[test]
fn where_usage_events_do_not_say_the_outbox_does() {
    let unknown = Metered { units: None, ..counter("runs", 0) };
    assert_eq!(told(&[unknown], &[sent("runs", "ai", 2)]), ["ai 2 0"]);
    let local = Metered { units: Some(0), ..counter("runs", 0) };
    assert_eq!(told(&[local], &[]), [""; 0], "usage that stays here is no account");
}

#[test]
fn a_period_ends_where_a_later_one_begins() {
    let (first, began) = (counter("runs", 2), at("2026-11-10T09:30:00Z"));
    let period = BillingPeriod { start: began, end: at("2026-12-10T09:30:00Z") };
    let second = Metered { series: 1, period, ..counter("runs", 3) };
    let rows = [
        sent("runs", "ai", 2),
        Reported { series: 1, period_start: began, last_at: began, ..sent("runs", "ai", 3) },
    ];
    let longer = BillingPeriod { end: at("2026-12-20T09:30:00Z"), ..period };
    let found = accounts(&[first, second], &rows, Some((1, longer)), |_| None);
    let ends: Vec<_> = found.iter().map(|account| account.period.end.to_string()).collect();
    assert_eq!(ends, ["2026-11-10T09:30:00Z", "2026-12-20T09:30:00Z"]);
    assert!(found[0].is_closed(began) && !found[1].is_closed(period.end));
}

/// The span of the last account.
fn span(metered: &[Metered], reported: &[Reported]) -> String {
    let found = accounts(metered, reported, None, |_| Some(place("ai")));
    let span = found.last().unwrap().span();
    format!("{} {}", span.start, span.end)
}

#[test]
fn a_span_is_whole_minutes_around_the_period_and_all_that_was_reported() {
    let odd = BillingPeriod { start: at("2026-11-01T09:02:30Z"), end: at("2026-12-01T09:02:30Z") };
    let counters = [Metered { period: odd, ..counter("runs", 1) }];
    assert_eq!(span(&counters, &[]), "2026-11-01T09:02:00Z 2026-12-01T09:03:00Z");
    let before = BillingPeriod { start: at("2026-10-01T00:00:00Z"), end: november().start };
    let counters = [Metered { period: before, ..counter("runs", 1) }, counter("runs", 2)];
    let rows = [
        Reported { period_start: before.start, ..sent("runs", "ai", 1) },
        Reported { last_at: at("2026-12-01T00:00:30Z"), ..sent("runs", "ai", 2) },
    ];
    assert_eq!(span(&counters, &rows), "2026-11-01T00:00:00Z 2026-12-01T00:01:00Z");
}

#[test]
fn what_stripe_has_from_before_the_first_report_is_not_ours() {
    let rows = [sent("runs", "ai", 1)];
    assert_eq!(span(&[counter("runs", 1)], &rows), "2026-11-05T10:00:00Z 2026-12-01T00:00:00Z");
}

#[test]
fn what_was_sent_a_moment_ago_is_no_difference() {
    let account = &accounts(&[counter("runs", 10)], &[sent("runs", "ai", 10)], None, |_| None)[0];
    let difference = |stripe, fresh| account.difference(stripe, fresh);
    assert_eq!((difference(10, 0), difference(9, 0), difference(11, 0)), (0, -1, 1));
    assert_eq!((difference(10, 3), difference(7, 3), difference(8, 3)), (0, 0, 0));
    assert_eq!((difference(6, 3), difference(11, 3)), (-1, 1));
}

#[test]
fn what_was_never_sent_hides_no_surplus() {
    let parked = Reported { parked: 4, unsent: 4, ..sent("runs", "ai", 9) };
    let open = Metered { open: 1, open_meter: Some("ai".to_owned()), ..counter("runs", 10) };
    let account = &accounts(&[open], &[parked], None, |_| Some(place("ai")))[0];
    let difference = |stripe| account.difference(stripe, 0);
    assert_eq!((account.ledger, difference(5), difference(4)), (10, -5, -6));
    assert_eq!((difference(6), difference(10), difference(11)), (1, 5, 6));
}

#[test]
fn a_sum_says_whether_what_is_in_doubt_was_counted() {
    let expected = Expected { certain: 5, under_way: 0, doubtful: 7 };
    for (stripe, told) in [
        (12, Told::Counted),
        (5, Told::Missing),
        (6, Told::Neither),
        (0, Told::Neither),
        (13, Told::Ahead { by: 1 }),
    ] {
        assert_eq!(expected.held_against(stripe), told, "{stripe}");
    }
    let moving = Expected { under_way: 1, ..expected };
    for stripe in [0, 5, 12, 13] {
        assert_eq!(moving.held_against(stripe), Told::TooEarly, "{stripe}");
    }
    assert_eq!(moving.held_against(14), Told::Ahead { by: 1 });
}
