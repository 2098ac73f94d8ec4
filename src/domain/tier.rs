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
    let live: Vec<_> = subscriptions.iter().filter(|s| is_live(&s.status)).collect();
    let best = live
        .iter()
        .filter_map(|s| item_in_plans(catalog, s).map(|(item, plan)| (*s, item, plan)))
        .max_by_key(|(s, _, plan)| (lets_run(&s.status), plan.rank, s.created_at, s.id.clone()));
    let mut tier = match (best, live.first()) {
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
    }
    Ok(tier)
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
