//! From what Stripe says to the tier: the one rule, pure.
//!
//! One subscription gives the tier. What it says of itself:
//!
//! | Stripe says | plan | may it run |
//! |---|---|---|
//! | `trialing` | the subscription's | yes |
//! | `active`, whether or not every invoice is paid | the subscription's | yes |
//! | `past_due` | the subscription's | for `policy.past_due_grace`, then denied as `past_due` |
//! | `unpaid` | the subscription's | denied as `past_due` |
//! | `paused` | the subscription's | denied as `paused` |
//! | `incomplete` | as without it | as without it |
//! | `incomplete_expired` | as without it | as without it |
//! | `canceled` | the default | yes; a new period starts where the subscription ended |
//! | `cancel_at_period_end`, `cancel_at` | the subscription's until it is `canceled` | as its status says; the moment is shown |
//! | `pause_collection` | the subscription's | as its status says, unless `policy.pause_collection` is `deny`: then denied as `paused` |
//! | a status this build does not know | as before | as before; an error that support sees |
//! | no price that the plans file knows | as before | as before; an error that support sees |
//! | customer deleted, or no subscription | the default | yes |
//!
//! Which one gives it, and by which of its items:
//!
//! | Stripe has | what follows |
//! |---|---|
//! | several live subscriptions | the one that lets the customer run now, then the one of higher rank, then the newest; [`several_live`] is told to support, because each of them is paid for |
//! | one that has had its grace, beside one that is paid for | the one that is paid for, whatever their ranks |
//! | one to no plan, that was there when one to a plan ended | as without it |
//! | one that cannot be read, beside one that can | the one that can, unless the other gave the tier so far |
//! | flat and metered items | the licensed item names the plan; a metered one only where there is no other |
//! | items with different periods | the period of the item that names the plan is the cap's clock |
//!
//! The grace is the customer's, not a subscription's: it begins when one is first seen past due,
//! because Stripe does not say since when it is, and there is no other until nothing is owed.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::domain::customer::{LiveSubscription, Tier};
use crate::domain::decision::Standing;
use crate::domain::period::{BillingPeriod, Cycle};
use crate::domain::plan::{Catalog, Interval, PauseCollection, Plan};
use crate::domain::subscription::{Subscription, SubscriptionItem, SubscriptionStatus};

#[cfg(test)]
mod tests;

/// Why Stripe's state gives no tier; the customer keeps the one it has, and support is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTier {
    #[error("subscription {subscription_id} has no price of a plan in the plans file")]
    PriceNotInPlans { subscription_id: String },
    #[error("subscription {subscription_id} has the unknown status {status:?}")]
    UnknownStatus { subscription_id: String, status: String },
}

/// A live subscription to a plan, and what it would mean to have it.
struct Candidate<'a, 'c> {
    subscription: &'a Subscription,
    /// The item that names plan and period.
    item: &'a SubscriptionItem,
    plan: &'c Plan,
    standing: Standing,
}

/// The tier that `subscriptions` (all of one customer's, whatever their status) call for, still at
/// the versions it has: `Customer::with_tier` knows whether the plan in force is another one.
///
/// # Errors
/// When the subscription that gave the tier so far cannot be read, or when another cannot and
/// nothing else gives one.
pub fn tier_from_stripe(
    catalog: &Catalog,
    current: &Tier,
    subscriptions: &[Subscription],
    now: Timestamp,
) -> Result<Tier, NoTier> {
    let grace_ends_at = grace_end(subscriptions, current, catalog.policy.past_due_grace, now);
    let best = best(catalog, subscriptions, grace_ends_at, now);
    if let Some(why) = unreadable(catalog, current, subscriptions, best.is_some(), now) {
        return Err(why);
    }
    Ok(match best {
        Some(best) => subscribed(current, best, grace_ends_at),
        None => unsubscribed(current, subscriptions, now),
    })
}

/// The subscription that gives the tier at `now`, with the item that names the plan; `None` if none
/// is live.
///
/// # Errors
/// When one that may be live cannot be told for a plan's.
pub fn giving<'a, 'c>(
    catalog: &'c Catalog,
    current: &Tier,
    subscriptions: &'a [Subscription],
    now: Timestamp,
) -> Result<Option<Giving<'a, 'c>>, NoTier> {
    let unknown = subscriptions.iter().find_map(|s| match &s.status {
        SubscriptionStatus::Unknown(word) => Some((s.id.clone(), word.clone())),
        _ => None,
    });
    if let Some((subscription_id, status)) = unknown {
        return Err(NoTier::UnknownStatus { subscription_id, status });
    }
    let grace_ends_at = grace_end(subscriptions, current, catalog.policy.past_due_grace, now);
    match best(catalog, subscriptions, grace_ends_at, now) {
        Some(best) => Ok(Some((best.subscription, best.item, best.plan))),
        None => match subscriptions.iter().find(|s| is_live(&s.status)) {
            Some(odd) => Err(NoTier::PriceNotInPlans { subscription_id: odd.id.clone() }),
            None => Ok(None),
        },
    }
}

type Giving<'a, 'c> = (&'a Subscription, &'a SubscriptionItem, &'c Plan);

/// Of the live subscriptions to a plan the one that lets the customer run at `now`, then the one of
/// higher rank, then the newest.
fn best<'a, 'c>(
    catalog: &'c Catalog,
    subscriptions: &'a [Subscription],
    grace_ends_at: Option<Timestamp>,
    now: Timestamp,
) -> Option<Candidate<'a, 'c>> {
    subscriptions.iter().filter_map(|s| candidate(catalog, s, grace_ends_at)).max_by_key(|c| {
        let lets_run = c.standing.denial(now).is_none();
        (lets_run, c.plan.rank, c.subscription.created_at, &c.subscription.id)
    })
}

/// Says so if the customer has more than one live subscription to a plan, and which of them gives
/// the tier: it pays for each, and for all but one in vain.
pub fn several_live(
    catalog: &Catalog,
    tier: &Tier,
    subscriptions: &[Subscription],
) -> Option<String> {
    let live = subscriptions.iter().filter(|s| is_live(&s.status));
    let live: Vec<_> = live.filter(|s| is_to_a_plan(catalog, s)).collect();
    if live.len() < 2 {
        return None;
    }
    let words: Vec<_> = live.iter().map(|s| format!("{} ({})", s.id, s.status.as_str())).collect();
    let giver = tier.subscription.as_ref().map_or("none", |own| own.id.as_str());
    Some(format!(
        "{} live subscriptions are paid for: {}; {giver} gives the tier",
        live.len(),
        words.join(", ")
    ))
}

/// Until when the customer has time to pay. Begun at `now` if a subscription is seen past due for
/// the first time, and remembered for as long as anything is owed: another one that is past due
/// begins no grace of its own.
fn grace_end(
    subscriptions: &[Subscription],
    current: &Tier,
    grace: Duration,
    now: Timestamp,
) -> Option<Timestamp> {
    let is = |wanted: &SubscriptionStatus| subscriptions.iter().any(|s| s.status == *wanted);
    let past_due = is(&SubscriptionStatus::PastDue);
    let begun = current.grace_ends_at.filter(|_| past_due || is(&SubscriptionStatus::Unpaid));
    begun.or_else(|| past_due.then(|| now.plus(grace)))
}

fn is_live(status: &SubscriptionStatus) -> bool {
    use SubscriptionStatus as S;
    matches!(status, S::Trialing | S::Active | S::PastDue | S::Unpaid | S::Paused)
}

fn candidate<'a, 'c>(
    catalog: &'c Catalog,
    subscription: &'a Subscription,
    grace_ends_at: Option<Timestamp>,
) -> Option<Candidate<'a, 'c>> {
    if !is_live(&subscription.status) {
        return None;
    }
    let (item, plan) = item_in_plans(catalog, subscription)?;
    let denied = catalog.policy.pause_collection == PauseCollection::Deny;
    let standing = match (&subscription.status, grace_ends_at) {
        _ if subscription.collection_paused && denied => Standing::Paused,
        (SubscriptionStatus::PastDue, Some(ends_at)) => Standing::Grace { ends_at },
        (SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid, _) => Standing::PastDue,
        (SubscriptionStatus::Paused, _) => Standing::Paused,
        _ => Standing::Good,
    };
    Some(Candidate { subscription, item, plan, standing })
}

/// Whether a subscription, live or not, is to a plan of the plans file.
pub fn is_to_a_plan(catalog: &Catalog, subscription: &Subscription) -> bool {
    item_in_plans(catalog, subscription).is_some()
}

/// The item that names plan and period: one whose price is a plan's, the licensed base before a
/// metered price beside it.
fn item_in_plans<'a, 'c>(
    catalog: &'c Catalog,
    subscription: &'a Subscription,
) -> Option<(&'a SubscriptionItem, &'c Plan)> {
    subscription
        .items
        .iter()
        .filter_map(|item| Some((item, plan_of(catalog, item)?)))
        .max_by_key(|(item, plan)| (!item.metered, plan.rank, &item.id))
}

/// The plan of a price: the one that has its lookup key, else, for a price whose key has gone to its
/// successor, the one it is marked as of.
fn plan_of<'c>(catalog: &'c Catalog, item: &SubscriptionItem) -> Option<&'c Plan> {
    let by_key = item.lookup_key.as_deref().and_then(|key| catalog.plan_by_lookup_key(key));
    by_key.or_else(|| catalog.plan(item.plan_mark.as_deref()?))
}

/// Why the tier has to stay as it is: its own subscription cannot be read, or, where nothing else
/// gives a tier, some other one.
fn unreadable(
    catalog: &Catalog,
    current: &Tier,
    subscriptions: &[Subscription],
    has_other: bool,
    now: Timestamp,
) -> Option<NoTier> {
    let own_id = current.subscription.as_ref().map(|own| own.id.as_str());
    let is_own = |s: &Subscription| own_id == Some(s.id.as_str());
    // One to something else that stood beside a plan's is no other way to that plan. This must not
    // hang on which one gives the tier now, or the next sync would not know it any more.
    let canceled = subscriptions.iter().filter(|s| s.status == SubscriptionStatus::Canceled);
    let to_plans = canceled.filter(|s| item_in_plans(catalog, s).is_some());
    let plan_end = to_plans.map(|s| s.ended_at.unwrap_or(now)).max();
    subscriptions.iter().find_map(|s| {
        let subscription_id = s.id.clone();
        match &s.status {
            SubscriptionStatus::Unknown(word) if is_own(s) || !has_other => {
                Some(NoTier::UnknownStatus { subscription_id, status: word.clone() })
            }
            status if is_live(status) && item_in_plans(catalog, s).is_none() => {
                let stood_beside = plan_end.is_some_and(|end| s.created_at <= end);
                let keeps = is_own(s) || !has_other && !stood_beside;
                keeps.then_some(NoTier::PriceNotInPlans { subscription_id })
            }
            _ => None,
        }
    })
}

fn subscribed(current: &Tier, best: Candidate<'_, '_>, grace_ends_at: Option<Timestamp>) -> Tier {
    let Candidate { subscription, item, plan, standing } = best;
    let same = current.subscription.as_ref().is_some_and(|s| s.id == subscription.id);
    let at_period_end = subscription.cancel_at_period_end.then_some(item.period_end);
    Tier {
        plan_id: Some(plan.id.clone()),
        subscription: Some(LiveSubscription {
            id: subscription.id.clone(),
            status: subscription.status.clone(),
            cancels_at: subscription.cancel_at.or(at_period_end),
            collection_paused: subscription.collection_paused,
        }),
        standing,
        grace_ends_at,
        cycle: Cycle {
            series: current.cycle.series + i64::from(!same),
            anchor: subscription.billing_cycle_anchor,
            // The plan may be sold by another interval today than when this was subscribed to.
            interval: item
                .interval
                .or_else(|| plan.price.as_ref().map(|price| price.interval))
                .unwrap_or(Interval::Month),
            stripe: Some(BillingPeriod { start: item.period_start, end: item.period_end }),
        },
        entitlement_version: current.entitlement_version,
        plan_since_version: current.plan_since_version,
    }
}

/// Without a live subscription: as before if there was none, else a new series of months from the
/// moment the last one ended. One that came and went while nobody looked ended all the same.
fn unsubscribed(current: &Tier, subscriptions: &[Subscription], now: Timestamp) -> Tier {
    let ended = subscriptions.iter().filter(|s| s.status == SubscriptionStatus::Canceled);
    let last_end = ended.filter_map(|s| s.ended_at).max();
    let ended_at = match &current.subscription {
        Some(own) => {
            let found = subscriptions.iter().find(|s| s.id == own.id);
            last_end.max(Some(found.and_then(|s| s.ended_at).unwrap_or(now)))
        }
        None => last_end.filter(|ended_at| *ended_at > current.cycle.anchor),
    };
    let cycle = match ended_at {
        // As Stripe says it, be it ahead of our clock: so it is known again.
        Some(ended_at) => Cycle::local(current.cycle.series + 1, ended_at),
        None => current.cycle,
    };
    Tier {
        plan_id: None,
        subscription: None,
        standing: Standing::Good,
        grace_ends_at: None,
        cycle,
        entitlement_version: current.entitlement_version,
        plan_since_version: current.plan_since_version,
    }
}

/// The move up from one plan to another, if it is one: both known, the second of higher rank, and
/// not in arrears.
pub fn upgrade<'a>(
    catalog: &'a Catalog,
    from: Option<&Plan>,
    to: Option<&Plan>,
    standing: Standing,
) -> Option<(&'a Plan, &'a Plan)> {
    let now = |plan: Option<&Plan>| catalog.plan(plan?.id.as_str());
    let (from, to) = (now(from)?, now(to)?);
    (to.rank > from.rank && standing == Standing::Good).then_some((from, to))
}
