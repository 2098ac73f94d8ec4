//! From what Stripe says to the tier: the one rule, pure.
//!
//! | Stripe's status | plan | standing |
//! |---|---|---|
//! | `trialing`, `active` | the subscription's | good |
//! | `past_due` | the subscription's | grace, then denied as `past_due` |
//! | `unpaid` | the subscription's | denied as `past_due` |
//! | `paused` | the subscription's | denied as `paused` |
//! | `incomplete` | as without a subscription | good |
//! | `canceled`, `incomplete_expired`, customer deleted | the default | good |
//! | a word this build does not know | as before | as before |
//!
//! Of several live subscriptions the one that lets the customer run wins, then the higher rank.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::customer::{LiveSubscription, Tier};
use crate::domain::decision::Standing;
use crate::domain::period::{BillingPeriod, Cycle};
use crate::domain::plan::{Catalog, Interval, Plan};
use crate::domain::subscription::{Subscription, SubscriptionItem, SubscriptionStatus};

/// Why Stripe's state gives no tier; the customer keeps the one it has, and support is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTier {
    #[error("subscription {subscription_id} has no price whose lookup key is in the plans file")]
    PriceNotInPlans { subscription_id: String },
    #[error("subscription {subscription_id} has the unknown status {status:?}")]
    UnknownStatus { subscription_id: String, status: String },
}

/// The tier that `subscriptions` (all of one customer's, whatever their status) call for.
pub fn tier_from_stripe(
    catalog: &Catalog,
    current: &Tier,
    subscriptions: &[Subscription],
    now: Timestamp,
) -> Result<Tier, NoTier> {
    if let Some((subscription_id, status)) = subscriptions.iter().find_map(unknown_status) {
        return Err(NoTier::UnknownStatus { subscription_id, status });
    }
    let live = || subscriptions.iter().filter(|s| is_live(&s.status));
    let best = best(catalog, subscriptions);
    // Once the subscription that gave the tier has ended, a live one to something else does not
    // keep it.
    let own_ended = current
        .subscription
        .as_ref()
        .is_some_and(|own| subscriptions.iter().any(|s| s.id == own.id && !is_live(&s.status)));
    let unreadable = live().next().filter(|_| !own_ended);
    let mut tier = match (best, unreadable) {
        (Some((subscription, item, plan)), _) => {
            subscribed(current, subscription, item, plan, catalog.policy.past_due_grace, now)
        }
        (None, Some(subscription)) => {
            return Err(NoTier::PriceNotInPlans { subscription_id: subscription.id.clone() });
        }
        (None, None) => unsubscribed(current, subscriptions, now),
    };
    let plan_id = |tier: &Tier| tier.plan(catalog).map(|plan| plan.id.clone());
    if plan_id(&tier) != plan_id(current) {
        tier.entitlement_version = current.entitlement_version + 1;
        tier.plan_since_version = tier.entitlement_version;
    }
    Ok(tier)
}

/// The subscription that gives the tier, with the item that names the plan; `None` if none is live.
///
/// # Errors
/// When one that may be live cannot be told for a plan's.
pub fn giving<'a, 'c>(
    catalog: &'c Catalog,
    subscriptions: &'a [Subscription],
) -> Result<Option<Giving<'a, 'c>>, NoTier> {
    if let Some((subscription_id, status)) = subscriptions.iter().find_map(unknown_status) {
        return Err(NoTier::UnknownStatus { subscription_id, status });
    }
    let strange = subscriptions.iter().find(|s| is_live(&s.status));
    match (best(catalog, subscriptions), strange) {
        (None, Some(strange)) => {
            Err(NoTier::PriceNotInPlans { subscription_id: strange.id.clone() })
        }
        (best, _) => Ok(best),
    }
}

type Giving<'a, 'c> = (&'a Subscription, &'a SubscriptionItem, &'c Plan);

/// Of the live subscriptions to a plan of ours the one that lets the customer run, then the one of
/// the highest rank.
fn best<'a, 'c>(catalog: &'c Catalog, subscriptions: &'a [Subscription]) -> Option<Giving<'a, 'c>> {
    subscriptions
        .iter()
        .filter(|s| is_live(&s.status))
        .filter_map(|s| item_in_plans(catalog, s).map(|(item, plan)| (s, item, plan)))
        .max_by_key(|(s, _, plan)| (lets_run(&s.status), plan.rank, s.created_at, s.id.clone()))
}

fn unknown_status(subscription: &Subscription) -> Option<(String, String)> {
    match &subscription.status {
        SubscriptionStatus::Unknown(word) => Some((subscription.id.clone(), word.clone())),
        _ => None,
    }
}

fn is_live(status: &SubscriptionStatus) -> bool {
    use SubscriptionStatus as S;
    matches!(status, S::Trialing | S::Active | S::PastDue | S::Unpaid | S::Paused)
}

fn lets_run(status: &SubscriptionStatus) -> bool {
    use SubscriptionStatus as S;
    matches!(status, S::Trialing | S::Active | S::PastDue)
}

/// The item that names plan and period: one whose lookup key is in the plans file, the licensed
/// base before a metered price beside it.
fn item_in_plans<'a, 'c>(
    catalog: &'c Catalog,
    subscription: &'a Subscription,
) -> Option<(&'a SubscriptionItem, &'c Plan)> {
    subscription
        .items
        .iter()
        .filter_map(|item| {
            let plan = catalog.plan_by_lookup_key(item.lookup_key.as_deref()?)?;
            Some((item, plan))
        })
        .max_by_key(|(item, plan)| (!item.metered, plan.rank))
}

fn subscribed(
    current: &Tier,
    subscription: &Subscription,
    item: &SubscriptionItem,
    plan: &Plan,
    grace: Duration,
    now: Timestamp,
) -> Tier {
    let same = current.subscription.as_ref().is_some_and(|s| s.id == subscription.id);
    let series = current.cycle.series + i64::from(!same);
    let standing = match (&subscription.status, current.standing) {
        (SubscriptionStatus::PastDue, Standing::Grace { ends_at }) if same => {
            Standing::Grace { ends_at }
        }
        (SubscriptionStatus::PastDue, _) => Standing::Grace { ends_at: now.plus(grace) },
        (SubscriptionStatus::Unpaid, _) => Standing::PastDue,
        (SubscriptionStatus::Paused, _) => Standing::Paused,
        _ => Standing::Good,
    };
    Tier {
        plan_id: Some(plan.id.clone()),
        subscription: Some(LiveSubscription {
            id: subscription.id.clone(),
            status: subscription.status.clone(),
        }),
        standing,
        cycle: Cycle {
            series,
            anchor: subscription.billing_cycle_anchor,
            interval: plan.price.as_ref().map_or(Interval::Month, |price| price.interval),
            stripe: Some(BillingPeriod { start: item.period_start, end: item.period_end }),
        },
        entitlement_version: current.entitlement_version,
        plan_since_version: current.plan_since_version,
    }
}

/// Without a live subscription: as before if there was none, else a new series of months from the
/// moment the subscription ended.
fn unsubscribed(current: &Tier, subscriptions: &[Subscription], now: Timestamp) -> Tier {
    let Some(last) = &current.subscription else {
        return Tier { plan_id: None, standing: Standing::Good, ..current.clone() };
    };
    let ended_at = subscriptions.iter().find(|s| s.id == last.id).and_then(|s| s.ended_at);
    Tier {
        plan_id: None,
        subscription: None,
        standing: Standing::Good,
        cycle: Cycle::local(current.cycle.series + 1, ended_at.unwrap_or(now).min(now)),
        entitlement_version: current.entitlement_version,
        plan_since_version: current.plan_since_version,
    }
}

/// The move up from one plan to another, if it is one: both known, the second of higher rank.
pub fn upgrade<'a>(
    catalog: &'a Catalog,
    before: &Tier,
    after: &Tier,
) -> Option<(&'a Plan, &'a Plan)> {
    let (from, to) = (before.plan(catalog)?, after.plan(catalog)?);
    (to.rank > from.rank && after.standing == Standing::Good).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::Reason;

    const DAY: Duration = Duration::from_secs(86_400);

    fn catalog() -> Catalog {
        Catalog::parse(include_str!("../../plans.example.toml")).unwrap()
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
            tollgate_customer_id: None,
        }
    }

    fn item(lookup_key: &str, metered: bool) -> SubscriptionItem {
        SubscriptionItem {
            id: format!("si_{lookup_key}"),
            price_id: format!("price_{lookup_key}"),
            lookup_key: Some(lookup_key.to_owned()),
            metered,
            period_start: at("2026-11-10T09:30:00Z"),
            period_end: at("2026-12-10T09:30:00Z"),
        }
    }

    fn stranger() -> Tier {
        Tier::initial(at("2026-11-01T09:00:00Z"))
    }

    fn next(current: &Tier, subscriptions: &[Subscription]) -> Tier {
        tier_from_stripe(&catalog(), current, subscriptions, now()).unwrap()
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
        let told = tier_from_stripe(&catalog(), &on_pro(), &[odd], now()).unwrap_err();
        let (subscription_id, status) = ("sub_1".to_owned(), "hibernating".to_owned());
        assert_eq!(told, NoTier::UnknownStatus { subscription_id, status });
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
        assert_eq!(next(&on_pro(), &[odd, ended]).plan_id, None);
    }

    #[test]
    fn a_strange_price_does_not_hide_a_known_subscription_beside_it() {
        let odd = subscription("sub_9", "active", "support_contract");
        let known = subscription("sub_1", "active", "pro_monthly");
        assert_eq!(next(&on_pro(), &[odd, known]), on_pro());
    }

    #[test]
    fn of_several_subscriptions_the_one_that_lets_run_wins_then_the_higher_rank() {
        let starter = |status| subscription("sub_1", status, "starter_monthly");
        let pro = |status| subscription("sub_2", status, "pro_monthly");
        let chosen = |subscriptions: &[Subscription]| {
            next(&stranger(), subscriptions).subscription.unwrap().id
        };
        assert_eq!(chosen(&[starter("active"), pro("active")]), "sub_2");
        assert_eq!(chosen(&[pro("active"), starter("active")]), "sub_2");
        assert_eq!(chosen(&[starter("active"), pro("unpaid")]), "sub_1");
        assert_eq!(chosen(&[starter("active"), pro("paused")]), "sub_1");
        assert_eq!(chosen(&[starter("active"), pro("canceled")]), "sub_1");
    }

    #[test]
    fn the_base_price_names_plan_and_period_before_a_metered_one_beside_it() {
        let mut mixed = subscription("sub_1", "active", "pro_monthly");
        mixed.items.insert(
            0,
            SubscriptionItem {
                period_end: at("2026-11-11T09:30:00Z"),
                ..item("team_monthly", true)
            },
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
        let paid =
            next(&next(&on_pro(), &past_due), &[subscription("sub_1", "active", "pro_monthly")]);
        assert_eq!(paid, on_pro());
        let later = now().plus(20 * DAY);
        let again = tier_from_stripe(&catalog(), &paid, &past_due, later).unwrap();
        assert_eq!(again.standing, Standing::Grace { ends_at: later.plus(7 * DAY) });
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
    fn an_upgrade_is_a_move_to_a_higher_rank_that_is_paid_for() {
        let catalog = catalog();
        let moved = |before: &Tier, after: &Tier| {
            upgrade(&catalog, before, after).map(|(from, to)| format!("{} {}", from.id, to.id))
        };
        let team = next(&on_pro(), &[subscription("sub_1", "active", "team_monthly")]);
        assert_eq!(moved(&stranger(), &on_pro()).as_deref(), Some("starter pro"));
        assert_eq!(moved(&on_pro(), &team).as_deref(), Some("pro team"));
        assert_eq!(moved(&team, &on_pro()), None);
        assert_eq!(moved(&team, &team), None);
        let unpaid = next(&on_pro(), &[subscription("sub_1", "unpaid", "team_monthly")]);
        assert_eq!(moved(&on_pro(), &unpaid), None);
    }
}
