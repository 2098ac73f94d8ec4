use proptest::prelude::*;

use super::*;
use crate::domain::customer::{Customer, Profile};
use crate::domain::decision::Reason;

const DAY: Duration = Duration::from_secs(86_400);

const EXAMPLE: &str = include_str!("../../../plans.example.toml");

fn catalog() -> Catalog {
    Catalog::parse(EXAMPLE).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-18T15:00:00Z")
}

/// A subscription since the 10th to the plan with this lookup key, in Stripe's word for its status.
fn subscription(id: &str, status: &str, lookup_key: &str) -> Subscription {
    let start = at("2026-11-10T09:30:00Z");
    Subscription {
        id: id.to_owned(),
        stripe_customer_id: "cus_1".to_owned(),
        status: SubscriptionStatus::from(status),
        items: vec![item(lookup_key, false)],
        created_at: start,
        billing_cycle_anchor: start,
        ended_at: None,
        cancel_at_period_end: false,
        cancel_at: None,
        collection_paused: false,
        tollgate_customer_id: None,
    }
}

fn item(lookup_key: &str, metered: bool) -> SubscriptionItem {
    SubscriptionItem {
        id: format!("si_{lookup_key}"),
        price_id: format!("price_{lookup_key}"),
        lookup_key: Some(lookup_key.to_owned()),
        plan_mark: None,
        interval: Some(Interval::Month),
        metered,
        period_start: at("2026-11-10T09:30:00Z"),
        period_end: at("2026-12-10T09:30:00Z"),
    }
}

fn stranger() -> Tier {
    Tier::initial(at("2026-11-01T09:00:00Z"))
}

fn next(current: &Tier, subscriptions: &[Subscription]) -> Tier {
    let tier = tier_from_stripe(&catalog(), current, subscriptions, now()).unwrap();
    customer(current, None).with_tier(tier, &catalog(), &catalog()).tier
}

fn customer(tier: &Tier, terms_version: Option<i64>) -> Customer {
    Customer {
        id: "acme".parse().unwrap(),
        profile: Profile::default(),
        stripe_customer_id: None,
        created_at: tier.cycle.anchor,
        tier: tier.clone(),
        terms_version,
        has_quotas: false,
        revision: 1,
    }
}

/// A customer who has been on Pro.
fn on_pro() -> Tier {
    next(&stranger(), &[subscription("sub_1", "active", "pro_monthly")])
}

fn plan(tier: &Tier) -> String {
    tier.plan(&catalog()).unwrap().id.to_string()
}

fn denial_at(tier: &Tier, moment: Timestamp) -> Option<Reason> {
    tier.standing.denial(moment)
}

#[test]
fn trialing_and_active_give_the_subscriptions_plan() {
    for status in ["trialing", "active"] {
        let tier = next(&stranger(), &[subscription("sub_1", status, "pro_monthly")]);
        assert_eq!((plan(&tier).as_str(), tier.standing), ("pro", Standing::Good), "{status}");
        assert_eq!(tier.subscription.unwrap().status.as_str(), status);
    }
}

#[test]
fn past_due_keeps_the_plan_for_the_grace_and_is_then_denied() {
    let tier = next(&on_pro(), &[subscription("sub_1", "past_due", "pro_monthly")]);
    assert_eq!(plan(&tier), "pro");
    assert_eq!(denial_at(&tier, now().plus(6 * DAY)), None);
    assert_eq!(denial_at(&tier, now().plus(7 * DAY)), Some(Reason::PastDue));
}

#[test]
fn unpaid_and_paused_keep_the_plan_and_are_denied_at_once() {
    for (status, reason) in [("unpaid", Reason::PastDue), ("paused", Reason::Paused)] {
        let tier = next(&on_pro(), &[subscription("sub_1", status, "pro_monthly")]);
        assert_eq!(plan(&tier), "pro", "{status}");
        assert_eq!(denial_at(&tier, now()), Some(reason), "{status}");
    }
}

#[test]
fn incomplete_is_as_if_there_were_no_subscription() {
    let first = subscription("sub_1", "incomplete", "pro_monthly");
    assert_eq!(next(&stranger(), &[first]), stranger());
    let second = subscription("sub_2", "incomplete", "team_monthly");
    let both = [subscription("sub_1", "active", "pro_monthly"), second];
    assert_eq!(next(&on_pro(), &both), on_pro());
}

#[test]
fn canceled_expired_and_vanished_subscriptions_leave_the_default_plan() {
    for status in ["canceled", "incomplete_expired"] {
        let tier = next(&on_pro(), &[subscription("sub_1", status, "pro_monthly")]);
        assert_eq!((plan(&tier).as_str(), tier.subscription), ("starter", None), "{status}");
        assert_eq!(tier.standing, Standing::Good, "{status}");
    }
    // A deleted Stripe customer has no subscriptions at all.
    let tier = next(&on_pro(), &[]);
    assert_eq!((plan(&tier).as_str(), tier.subscription), ("starter", None));
}

#[test]
fn what_was_denied_for_payment_is_good_again_once_the_subscription_is_over() {
    let unpaid = next(&on_pro(), &[subscription("sub_1", "unpaid", "pro_monthly")]);
    let over = next(&unpaid, &[subscription("sub_1", "canceled", "pro_monthly")]);
    assert_eq!(denial_at(&over, now()), None);
}

#[test]
fn an_unknown_status_keeps_the_tier_and_is_told() {
    let odd = subscription("sub_1", "hibernating", "pro_monthly");
    let higher = subscription("sub_2", "active", "team_monthly");
    for subscriptions in [vec![odd.clone()], vec![odd.clone(), higher.clone()]] {
        let told = tier_from_stripe(&catalog(), &on_pro(), &subscriptions, now()).unwrap_err();
        let (subscription_id, status) = ("sub_1".to_owned(), "hibernating".to_owned());
        assert_eq!(told, NoTier::UnknownStatus { subscription_id, status });
    }
    let beside = next(&stranger(), &[odd, higher.clone()]);
    assert_eq!(beside.subscription, next(&stranger(), &[higher]).subscription, "not its own");
}

#[test]
fn a_price_whose_lookup_key_has_gone_to_its_successor_is_still_of_its_plan() {
    let mut old = subscription("sub_1", "active", "pro_monthly");
    (old.items[0].lookup_key, old.items[0].plan_mark) = (None, Some("pro".to_owned()));
    assert_eq!(next(&on_pro(), &[old.clone()]), on_pro());
    // A key that is a plan's says more than a mark.
    old.items[0].lookup_key = Some("team_monthly".to_owned());
    assert_eq!(plan(&next(&on_pro(), &[old.clone()])), "team");
    (old.items[0].lookup_key, old.items[0].plan_mark) = (None, Some("gone".to_owned()));
    assert!(tier_from_stripe(&catalog(), &on_pro(), &[old], now()).is_err());
}

#[test]
fn a_price_that_is_not_in_the_plans_keeps_the_tier_and_is_told() {
    let odd = subscription("sub_9", "active", "enterprise_monthly");
    let told = tier_from_stripe(&catalog(), &on_pro(), &[odd], now()).unwrap_err();
    assert_eq!(told, NoTier::PriceNotInPlans { subscription_id: "sub_9".to_owned() });
    let mut without_key = subscription("sub_9", "active", "pro_monthly");
    without_key.items[0].lookup_key = None;
    assert!(tier_from_stripe(&catalog(), &on_pro(), &[without_key], now()).is_err());
}

#[test]
fn a_strange_price_does_not_keep_alive_a_subscription_that_has_ended() {
    let odd = subscription("sub_9", "active", "support_contract");
    let ended = subscription("sub_1", "canceled", "pro_monthly");
    let both = [odd, ended];
    let over = next(&on_pro(), &both);
    assert_eq!(over.plan_id, None);
    assert_eq!(next(&over, &both), over, "asked again");
}

#[test]
fn a_strange_price_that_came_after_the_plan_had_ended_is_told() {
    let mut odd = subscription("sub_9", "active", "enterprise_monthly");
    let mut ended = subscription("sub_1", "canceled", "pro_monthly");
    ended.ended_at = Some(at("2026-11-17T12:00:00Z"));
    odd.created_at = at("2026-11-17T12:00:01Z");
    let over = next(&on_pro(), &[ended.clone()]);
    assert!(tier_from_stripe(&catalog(), &over, &[ended, odd], now()).is_err());
}

#[test]
fn a_strange_price_does_not_hide_a_known_subscription_beside_it() {
    let odd = subscription("sub_9", "active", "support_contract");
    let known = subscription("sub_1", "active", "pro_monthly");
    assert_eq!(next(&on_pro(), &[odd, known]), on_pro());
    // But a plan that cannot be read any more is not left for a lower one.
    let own = subscription("sub_1", "active", "enterprise_monthly");
    let lower = subscription("sub_2", "active", "starter_monthly");
    assert!(tier_from_stripe(&catalog(), &on_pro(), &[own, lower], now()).is_err());
}

#[test]
fn of_several_subscriptions_the_one_that_lets_run_wins_then_the_higher_rank() {
    let starter = |status| subscription("sub_1", status, "starter_monthly");
    let pro = |status| subscription("sub_2", status, "pro_monthly");
    let chosen =
        |subscriptions: &[Subscription]| next(&stranger(), subscriptions).subscription.unwrap().id;
    assert_eq!(chosen(&[starter("active"), pro("active")]), "sub_2");
    assert_eq!(chosen(&[pro("active"), starter("active")]), "sub_2");
    assert_eq!(chosen(&[starter("active"), pro("unpaid")]), "sub_1");
    assert_eq!(chosen(&[starter("active"), pro("paused")]), "sub_1");
    assert_eq!(chosen(&[starter("active"), pro("canceled")]), "sub_1");
    assert_eq!(chosen(&[starter("active"), pro("past_due")]), "sub_2", "it has its grace");
    assert_eq!(chosen(&[starter("unpaid"), pro("paused")]), "sub_2", "neither lets run");
    let mut newer = subscription("sub_0", "active", "pro_monthly");
    newer.created_at = now();
    assert_eq!(chosen(&[pro("active"), newer]), "sub_0", "of equals the newest");
}

#[test]
fn a_higher_plan_wins_for_its_grace_and_not_a_moment_longer() {
    let both = [
        subscription("sub_1", "active", "starter_monthly"),
        subscription("sub_2", "past_due", "pro_monthly"),
    ];
    let at = |tier: &Tier, moment| tier_from_stripe(&catalog(), tier, &both, moment).unwrap();
    let first = next(&stranger(), &both);
    assert_eq!(plan(&first), "pro");
    let ends = now().plus(7 * DAY);
    assert_eq!(at(&first, now().plus(6 * DAY)), first);
    let after = at(&first, ends);
    assert_eq!((plan(&after).as_str(), denial_at(&after, ends)), ("starter", None));
    // It is not tried again: the one that gives the tier is another, and still it is past due.
    assert_eq!(at(&after, ends.plus(DAY)), after);
    let alone = tier_from_stripe(&catalog(), &after, &both[1..], ends.plus(DAY)).unwrap();
    assert_eq!(denial_at(&alone, ends.plus(DAY)), Some(Reason::PastDue));
}

#[test]
fn a_second_debt_beside_the_first_has_no_grace_of_its_own() {
    let first = [subscription("sub_1", "past_due", "pro_monthly")];
    let second = [first[0].clone(), subscription("sub_2", "past_due", "team_monthly")];
    let in_grace = next(&on_pro(), &first);
    let later = now().plus(3 * DAY);
    let both = tier_from_stripe(&catalog(), &in_grace, &second, later).unwrap();
    assert_eq!(plan(&both), "team");
    assert_eq!(both.standing, Standing::Grace { ends_at: now().plus(7 * DAY) });
    let unpaid = [subscription("sub_1", "unpaid", "pro_monthly")];
    let unpaid = tier_from_stripe(&catalog(), &both, &unpaid, later).unwrap();
    assert_eq!(unpaid.grace_ends_at, Some(now().plus(7 * DAY)), "nothing has been paid");
    let paid = next(&unpaid, &[subscription("sub_1", "active", "pro_monthly")]);
    assert_eq!(paid.grace_ends_at, None);
}

#[test]
fn several_live_subscriptions_are_told_and_one_beside_what_is_over_is_not() {
    let pro = subscription("sub_1", "active", "pro_monthly");
    let told = |other: Subscription| several_live(&catalog(), &on_pro(), &[pro.clone(), other]);
    assert_eq!(
        told(subscription("sub_2", "paused", "team_monthly")).as_deref(),
        Some(
            "2 live subscriptions are paid for: sub_1 (active), sub_2 (paused); sub_1 gives the tier"
        )
    );
    for status in ["canceled", "incomplete", "incomplete_expired"] {
        assert_eq!(told(subscription("sub_2", status, "team_monthly")), None, "{status}");
    }
    assert_eq!(told(subscription("sub_2", "active", "support_contract")), None, "no plan of ours");
    assert_eq!(several_live(&catalog(), &stranger(), &[]), None);
}

#[test]
fn a_planned_end_changes_nothing_until_it_comes_and_is_shown() {
    let mut ending = subscription("sub_1", "active", "pro_monthly");
    ending.cancel_at_period_end = true;
    let tier = next(&on_pro(), &[ending.clone()]);
    assert_eq!((plan(&tier).as_str(), tier.standing), ("pro", Standing::Good));
    assert_eq!(tier.cycle, on_pro().cycle);
    let shown = |tier: &Tier| tier.subscription.as_ref().unwrap().cancels_at;
    assert_eq!(shown(&tier), Some(at("2026-12-10T09:30:00Z")));
    ending.cancel_at = Some(at("2026-11-20T00:00:00Z"));
    assert_eq!(shown(&next(&on_pro(), &[ending])), Some(at("2026-11-20T00:00:00Z")));
    assert_eq!(shown(&next(&tier, &[subscription("sub_1", "active", "pro_monthly")])), None);
}

#[test]
fn paused_collection_closes_the_gate_only_where_the_policy_says_so() {
    let mut uncollected = subscription("sub_1", "active", "pro_monthly");
    uncollected.collection_paused = true;
    let mut strict = catalog();
    strict.policy.pause_collection = PauseCollection::Deny;
    for (catalog, denial) in [(catalog(), None), (strict, Some(Reason::Paused))] {
        let tier = tier_from_stripe(&catalog, &on_pro(), &[uncollected.clone()], now()).unwrap();
        assert_eq!((plan(&tier).as_str(), denial_at(&tier, now())), ("pro", denial));
        let shown = tier.subscription.unwrap();
        assert_eq!((shown.status.as_str(), shown.collection_paused), ("active", true));
    }
}

#[test]
fn items_with_different_periods_leave_the_clock_to_the_base() {
    let mut mixed = subscription("sub_1", "active", "pro_monthly");
    let overage = |key: Option<&str>| SubscriptionItem {
        lookup_key: key.map(str::to_owned),
        period_start: at("2026-11-15T00:00:00Z"),
        period_end: at("2026-11-22T00:00:00Z"),
        ..item("overage", true)
    };
    mixed.items = vec![overage(None), item("pro_monthly", false), overage(Some("team_monthly"))];
    assert_eq!(next(&stranger(), &[mixed.clone()]), on_pro());
    mixed.items.reverse();
    assert_eq!(next(&stranger(), &[mixed.clone()]), on_pro(), "in whatever order");
    mixed.items = vec![overage(Some("team_monthly"))];
    let metered = next(&stranger(), &[mixed]);
    assert_eq!(
        (plan(&metered).as_str(), metered.cycle.stripe.unwrap().end),
        ("team", at("2026-11-22T00:00:00Z")),
        "a plan that is metered alone"
    );
}

#[test]
fn what_came_and_went_while_nobody_looked_leaves_what_it_would_have_left() {
    let ended_at = at("2026-11-17T12:00:00Z");
    let mut ended = subscription("sub_1", "canceled", "pro_monthly");
    ended.ended_at = Some(ended_at);
    let seen = next(&on_pro(), &[ended.clone()]);
    let unseen = next(&stranger(), &[ended.clone()]);
    assert_eq!((unseen.cycle.anchor, plan(&unseen)), (seen.cycle.anchor, plan(&seen)));
    assert_eq!(next(&unseen, &[ended.clone()]), unseen, "once");
    let mut never = ended;
    never.status = SubscriptionStatus::IncompleteExpired;
    assert_eq!(next(&stranger(), &[never]), stranger(), "what was never paid for is no end");
}

#[test]
fn the_base_price_names_plan_and_period_before_a_metered_one_beside_it() {
    let mut mixed = subscription("sub_1", "active", "pro_monthly");
    mixed.items.insert(
        0,
        SubscriptionItem { period_end: at("2026-11-11T09:30:00Z"), ..item("team_monthly", true) },
    );
    assert_eq!(next(&stranger(), &[mixed]), on_pro());
}

#[test]
fn a_first_subscription_starts_a_new_series_with_stripes_period() {
    let tier = on_pro();
    assert_eq!(tier.cycle.series, stranger().cycle.series + 1);
    let period = tier.cycle.period_at(now());
    assert_eq!(period.start, at("2026-11-10T09:30:00Z"));
    assert_eq!(period.end, at("2026-12-10T09:30:00Z"));
}

#[test]
fn an_upgrade_and_a_renewal_keep_the_series() {
    let upgraded = next(&on_pro(), &[subscription("sub_1", "active", "team_monthly")]);
    assert_eq!((plan(&upgraded).as_str(), upgraded.cycle), ("team", on_pro().cycle));
    let mut renewed = subscription("sub_1", "active", "pro_monthly");
    renewed.items[0].period_start = at("2026-12-10T09:30:00Z");
    renewed.items[0].period_end = at("2027-01-10T09:30:00Z");
    let renewed = next(&on_pro(), &[renewed]);
    assert_eq!(renewed.cycle.series, on_pro().cycle.series);
    assert_eq!(renewed.entitlement_version, on_pro().entitlement_version);
}

#[test]
fn the_end_of_a_subscription_starts_a_new_series_at_that_moment() {
    let ended_at = at("2026-11-17T12:00:00Z");
    let mut ended = subscription("sub_1", "canceled", "pro_monthly");
    ended.ended_at = Some(ended_at);
    let tier = next(&on_pro(), &[ended]);
    assert_eq!(tier.cycle, Cycle::local(on_pro().cycle.series + 1, ended_at));
    // Nothing is left that Stripe could tell: then it ended when that was noticed.
    let tier = next(&on_pro(), &[]);
    assert_eq!(tier.cycle, Cycle::local(on_pro().cycle.series + 1, now()));
}

#[test]
fn another_subscription_in_place_of_the_first_starts_a_new_series() {
    let tier = next(&on_pro(), &[subscription("sub_2", "active", "pro_monthly")]);
    assert_eq!(tier.cycle.series, on_pro().cycle.series + 1);
}

#[test]
fn grace_keeps_its_end_however_often_stripe_is_asked() {
    let past_due = [subscription("sub_1", "past_due", "pro_monthly")];
    let first = next(&on_pro(), &past_due);
    let later = tier_from_stripe(&catalog(), &first, &past_due, now().plus(5 * DAY)).unwrap();
    assert_eq!(later, first);
}

#[test]
fn a_payment_that_came_ends_the_grace_and_the_next_failure_has_one_of_its_own() {
    let past_due = [subscription("sub_1", "past_due", "pro_monthly")];
    let paid = next(&next(&on_pro(), &past_due), &[subscription("sub_1", "active", "pro_monthly")]);
    assert_eq!(paid, on_pro());
    let later = now().plus(20 * DAY);
    let again = tier_from_stripe(&catalog(), &paid, &past_due, later).unwrap();
    assert_eq!(again.standing, Standing::Grace { ends_at: later.plus(7 * DAY) });
}

#[test]
fn an_end_that_is_ahead_of_our_clock_is_applied_once() {
    let mut ended = subscription("sub_1", "canceled", "pro_monthly");
    ended.ended_at = Some(now().plus(DAY));
    let over = next(&on_pro(), &[ended.clone()]);
    assert_eq!(over.cycle, Cycle::local(on_pro().cycle.series + 1, now().plus(DAY)));
    for moment in [now().plus(DAY / 2), now().plus(2 * DAY)] {
        assert_eq!(tier_from_stripe(&catalog(), &over, &[ended.clone()], moment).unwrap(), over);
    }
}

/// A moment within forty days of `now()`, before or after it.
fn around_now() -> impl Strategy<Value = Timestamp> {
    let seconds = 40 * 86_400_i64;
    (-seconds..seconds).prop_map(|offset_s| Timestamp::from_seconds(now().seconds() + offset_s))
}

/// Some subscription, whether or not Stripe would ever have such a one.
fn any_subscription() -> impl Strategy<Value = Subscription> {
    let status = proptest::sample::select(vec![
        "trialing",
        "active",
        "past_due",
        "unpaid",
        "paused",
        "canceled",
        "incomplete",
        "incomplete_expired",
        "hibernating",
    ]);
    let price = proptest::sample::select(vec![
        "starter_monthly",
        "pro_monthly",
        "team_monthly",
        "support_contract",
    ]);
    let end = proptest::option::of(around_now());
    (status, price, around_now(), end).prop_map(|(status, price, created_at, ended_at)| {
        Subscription { created_at, ended_at, ..subscription("sub", status, price) }
    })
}

/// Some tier: with or without one of four subscriptions, and with or without a debt.
fn any_tier() -> impl Strategy<Value = Tier> {
    let own = proptest::option::of(0..4_usize);
    (own, around_now(), proptest::option::of(around_now())).prop_map(|(own, anchor, debt)| {
        let giver = own.map(|n| subscription(&format!("sub_{n}"), "active", "pro_monthly"));
        let tier = next(&stranger(), giver.as_slice());
        Tier { cycle: Cycle { anchor, ..tier.cycle }, grace_ends_at: debt, ..tier }
    })
}

proptest! {
    #[test]
    fn syncing_twice_is_syncing_once(
        current in any_tier(),
        mut subscriptions in proptest::collection::vec(any_subscription(), 0..4),
    ) {
        for (n, subscription) in subscriptions.iter_mut().enumerate() {
            subscription.id = format!("sub_{n}");
        }
        if let Ok(once) = tier_from_stripe(&catalog(), &current, &subscriptions, now()) {
            let twice = tier_from_stripe(&catalog(), &once, &subscriptions, now());
            prop_assert_eq!(twice, Ok(once));
        }
    }
}

#[test]
fn asking_again_changes_nothing() {
    for status in ["trialing", "active", "past_due", "unpaid", "paused", "canceled"] {
        let subscriptions = [subscription("sub_1", status, "pro_monthly")];
        let once = next(&on_pro(), &subscriptions);
        assert_eq!(next(&once, &subscriptions), once, "{status}");
    }
}

#[test]
fn the_version_goes_up_only_when_the_plan_in_force_changes() {
    let version = |status: &str, key: &str| {
        next(&on_pro(), &[subscription("sub_1", status, key)]).entitlement_version
    };
    let pro = on_pro().entitlement_version;
    assert_eq!(pro, stranger().entitlement_version + 1);
    assert_eq!(version("past_due", "pro_monthly"), pro);
    assert_eq!(version("paused", "pro_monthly"), pro);
    assert_eq!(version("active", "team_monthly"), pro + 1);
    assert_eq!(version("canceled", "pro_monthly"), pro + 1);
    // To pay for the plan one had by default is no change of what one may do.
    let paying = next(&stranger(), &[subscription("sub_1", "active", "starter_monthly")]);
    assert_eq!(paying.entitlement_version, stranger().entitlement_version);
}

#[test]
fn terms_are_kept_for_a_plan_and_never_leave_a_subscriber_without_one() {
    let old = catalog();
    // Today Starter is for those who pay, Team for everyone else, and Lite is new.
    let lite = "\n[[plans]]\nid = \"lite\"\nname = \"Lite\"\nrank = 9\nlimits.ai_runs = { granted = 1, enforcement = \"hard\" }\n";
    let today =
        format!("{EXAMPLE}{lite}").replace("default_plan = \"starter\"", "default_plan = \"team\"");
    let today = Catalog::parse(&today).unwrap();
    let free = stranger();
    let on = |plan: &str| Tier { plan_id: Some(plan.parse().unwrap()), ..stranger() };
    for (before, after, keeps, plan) in [
        (&free, &free, true, "starter"),
        (&free, &on("starter"), true, "starter"),
        (&free, &on("lite"), false, "lite"),
        (&free, &on("pro"), false, "pro"),
        (&on("starter"), &free, false, "team"),
        (&on("pro"), &free, false, "team"),
        (&on("pro"), &on("pro"), true, "pro"),
        (&on("lite"), &on("lite"), false, "lite"),
    ] {
        let moved = customer(before, Some(1)).with_tier(after.clone(), &old, &today);
        let terms = if keeps { &old } else { &today };
        let shown = moved.tier.plan(terms).map(|plan| plan.id.as_str());
        assert_eq!(
            (moved.terms_version.is_some(), shown),
            (keeps, Some(plan)),
            "{before:?} {after:?}"
        );
        let anew = i64::from(!keeps);
        assert_eq!(
            moved.tier.entitlement_version,
            before.entitlement_version + anew,
            "{before:?} {after:?}"
        );
    }
}

#[test]
fn an_upgrade_is_a_move_to_a_higher_rank_that_is_paid_for() {
    let catalog = catalog();
    let moved = |before: &Tier, after: &Tier| {
        let (from, to) = (before.plan(&catalog), after.plan(&catalog));
        let moved = upgrade(&catalog, from, to, after.standing);
        moved.map(|(from, to)| format!("{} {}", from.id, to.id))
    };
    let team = next(&on_pro(), &[subscription("sub_1", "active", "team_monthly")]);
    assert_eq!(moved(&stranger(), &on_pro()).as_deref(), Some("starter pro"));
    assert_eq!(moved(&on_pro(), &team).as_deref(), Some("pro team"));
    assert_eq!(moved(&team, &on_pro()), None);
    assert_eq!(moved(&team, &team), None);
    let unpaid = next(&on_pro(), &[subscription("sub_1", "unpaid", "team_monthly")]);
    assert_eq!(moved(&on_pro(), &unpaid), None);
}

#[test]
fn a_late_renewal_is_awaited_for_the_interval_of_the_subscriptions_own_price() {
    let yearly = include_str!("../../../plans.example.toml")
        .replace("\"month\", lookup_key = \"pro", "\"year\", lookup_key = \"pro");
    let yearly = Catalog::parse(&yearly).unwrap();
    for (own, expected) in [
        (Some(Interval::Month), Interval::Month),
        (Some(Interval::Year), Interval::Year),
        (None, Interval::Year),
    ] {
        let mut old = subscription("sub_1", "active", "pro_monthly");
        old.items[0].interval = own;
        let tier = tier_from_stripe(&yearly, &stranger(), &[old], now()).unwrap();
        assert_eq!(tier.cycle.interval, expected, "{own:?}");
    }
}
