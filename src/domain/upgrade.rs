//! Which way leads to another plan: the one rule, pure.
//!
//! | live subscription | wanted plan | way |
//! |---|---|---|
//! | none, or only `incomplete` | any with a price | Checkout |
//! | `trialing`, `active`; one item, nothing planned, and the portal offers the price | higher | the portal |
//! | `trialing`, `active`; otherwise | higher | our confirm page |
//! | `active` | lower | our confirm page: at the period's end |
//! | `past_due`, `unpaid`, `paused` | any other | first the payment is mended |
//! | a change of it waits for its payment | any other | first that payment |
//! | `trialing`, `active`, while a downgrade from here is planned | higher | our confirm page: first that is given up |
//! | any | its own, while a downgrade from here is planned | our confirm page: it is kept |
//! | any | its own otherwise | refused |
//! | on trial, or with a discount | lower | refused: a schedule of ours would end both |
//! | ends at its period's end | lower | refused: it ends anyway |
//! | others' schedule is on it | any other | refused: a person planned something |
//! | none to a plan of ours, but one to something else | any | refused |
//!
//! Checkout never changes a subscription, it adds one; so it is the way only where there is none.
//! Down always goes by our own page, because only there it is certain that nothing moves before the
//! period ends: the portal does as its settings say.

use crate::clock::Timestamp;
use crate::domain::plan::Plan;
use crate::domain::provision::found::Portal;
use crate::domain::subscription::SubscriptionStatus;

/// A live subscription, as far as a change of its plan depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub subscription_id: String,
    pub status: SubscriptionStatus,
    pub items: Vec<Item>,
    /// It ends by itself at its period's end, or at another moment that was set.
    pub ends: bool,
    /// A change waits for its payment until this moment.
    pub pending_until: Option<Timestamp>,
    pub schedule: Option<Schedule>,
    /// The newest invoice, if that is not paid.
    pub unpaid: Option<UnpaidInvoice>,
    /// It or one of its items has a discount.
    pub discounted: bool,
    pub billing: Billing,
}

/// How a subscription is paid for and taxed. A phase of a schedule that does not repeat it loses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Billing {
    /// Stripe's word for it.
    pub collection_method: String,
    /// With invoices that are sent.
    pub days_until_due: Option<u64>,
    /// Its own; `None` if it is paid for as its customer pays.
    pub default_payment_method: Option<String>,
    pub default_tax_rates: Vec<String>,
    pub automatic_tax: bool,
}

/// An invoice that was tried to be paid in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpaidInvoice {
    pub id: String,
    /// Stripe's page on which it can be paid.
    pub url: Option<String>,
    pub created_at: Timestamp,
}

/// What keeps an invoice from being paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hurdle {
    /// The bank wants the customer to confirm the payment (3-D Secure).
    Bank,
    /// The card was declined.
    Card,
    /// Stripe has not said yet.
    Unknown,
}

/// One price within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    pub price_id: String,
    /// `None` for a metered price.
    pub quantity: Option<u64>,
    pub tax_rates: Vec<String>,
    pub period_start: Timestamp,
    pub period_end: Timestamp,
}

/// What is planned for it already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub id: String,
    /// Made by a downgrade here, and not by a person in Stripe's Dashboard or by its portal; or it
    /// plans nothing, as one of ours does before its phases are written.
    pub is_ours: bool,
    /// When the present phase began.
    pub phase_start: Option<Timestamp>,
    /// Its prices.
    pub price_ids: Vec<String>,
    /// The prices of the phase after the present one.
    pub next_price_ids: Vec<String>,
}

/// A customer's present plan and the subscription that gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current<'c> {
    pub plan: &'c Plan,
    /// The one of the items that stands for the plan.
    pub item: Item,
    pub terms: Terms,
}

/// How a customer gets from plan to plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Stripe's page for a first subscription.
    Checkout,
    /// Stripe's page for confirming a change.
    Portal,
    /// Our page with Stripe's preview.
    Confirm,
    /// Our page, for a change when the period ends.
    AtPeriodEnd,
    /// Our page, for giving up such a change: to stay, or before another one.
    Keep,
    /// A change is under way: its payment comes first.
    Pending,
    /// The present plan is not paid for: that comes first.
    Mend,
}

/// Why there is no way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    #[error("the customer is on this plan already")]
    AlreadyOnPlan,
    #[error("the customer's subscription ends by itself when its period does")]
    Ends,
    #[error("a change of the customer's subscription is scheduled at Stripe already")]
    Scheduled,
    #[error(
        "the customer's subscription is on trial or has a discount, which a move down would end"
    )]
    DiscountedOrOnTrial,
}

/// The way from `current` (`None` without a live subscription) to `wanted`, whose price at Stripe is
/// `price_id`. `portal` is the configuration that is ours.
pub fn way(
    wanted: &Plan,
    price_id: &str,
    current: Option<&Current<'_>>,
    portal: Option<&Portal>,
) -> Result<Way, NoWay> {
    use SubscriptionStatus as S;
    let Some(Current { plan, terms, .. }) = current else { return Ok(Way::Checkout) };
    let planned = terms.schedule.as_ref();
    let moves =
        planned.is_some_and(|schedule| schedule.is_ours && !schedule.next_price_ids.is_empty());
    if plan.id == wanted.id {
        return if moves { Ok(Way::Keep) } else { Err(NoWay::AlreadyOnPlan) };
    }
    if terms.pending_until.is_some() {
        return Ok(Way::Pending);
    }
    if matches!(terms.status, S::PastDue | S::Unpaid | S::Paused) {
        return Ok(Way::Mend);
    }
    if planned.is_some_and(|schedule| !schedule.is_ours) {
        return Err(NoWay::Scheduled);
    }
    if wanted.rank < plan.rank {
        let particular = terms.discounted || terms.status == S::Trialing;
        return match (terms.ends, particular) {
            (true, _) => Err(NoWay::Ends),
            (false, true) => Err(NoWay::DiscountedOrOnTrial),
            (false, false) => Ok(Way::AtPeriodEnd),
        };
    }
    // The way up may end at a card that is declined, and what was planned must outlive that. So it
    // is given up by a step of its own, which is agreed to as such.
    if moves {
        return Ok(Way::Keep);
    }
    // The portal takes neither several items nor a schedule, and does not say what it makes of a
    // subscription that ends.
    let simple = terms.items.len() == 1 && planned.is_none() && !terms.ends;
    let offered = portal.is_some_and(|portal| portal.offers(price_id));
    Ok(if simple && offered { Way::Portal } else { Way::Confirm })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::Catalog;

    fn catalog() -> Catalog {
        Catalog::parse(include_str!("../../plans.example.toml")).unwrap()
    }

    fn item(id: &str, quantity: Option<u64>) -> Item {
        Item {
            id: id.to_owned(),
            price_id: format!("price_{id}"),
            quantity,
            tax_rates: Vec::new(),
            period_start: Timestamp::from_seconds(1_800_000_000),
            period_end: Timestamp::from_seconds(1_802_678_400),
        }
    }

    fn schedule(is_ours: bool) -> Schedule {
        let id = "sub_sched_1".to_owned();
        let next_price_ids = vec!["price_starter".to_owned()];
        Schedule { id, is_ours, phase_start: None, price_ids: Vec::new(), next_price_ids }
    }

    /// Active, on one item.
    fn terms() -> Terms {
        Terms {
            subscription_id: "sub_1".to_owned(),
            status: SubscriptionStatus::Active,
            items: vec![item("base", Some(1))],
            ends: false,
            pending_until: None,
            schedule: None,
            unpaid: None,
            discounted: false,
            billing: Billing::default(),
        }
    }

    /// A configuration that lets customers change between these prices.
    fn portal(price_ids: &[&str]) -> Portal {
        let price = |id: &&str| ("prod_1".to_owned(), (*id).to_owned());
        Portal {
            id: "bpc_1".to_owned(),
            cancels_at_period_end: true,
            payment_methods: true,
            invoices: true,
            changes: true,
            prices: price_ids.iter().map(price).collect(),
        }
    }

    /// The way from Pro under `terms` to `wanted`, with a portal that offers that plan.
    fn from_pro(terms: Terms, wanted: &str) -> Result<Way, NoWay> {
        let catalog = catalog();
        let plan = catalog.plan("pro").unwrap();
        let current = Current { plan, item: terms.items[0].clone(), terms };
        let portal = portal(&["price_other", "price_wanted"]);
        way(catalog.plan(wanted).unwrap(), "price_wanted", Some(&current), Some(&portal))
    }

    #[test]
    fn without_a_live_subscription_checkout_sells_any_plan() {
        let catalog = catalog();
        for plan in &catalog.plans {
            assert_eq!(way(plan, "price_1", None, None), Ok(Way::Checkout));
        }
    }

    #[test]
    fn up_goes_by_the_portal_only_if_it_takes_just_that() {
        assert_eq!(from_pro(terms(), "team"), Ok(Way::Portal));
        let two = vec![item("base", Some(1)), item("meter", None)];
        assert_eq!(from_pro(Terms { items: two, ..terms() }, "team"), Ok(Way::Confirm));
        let empty = Schedule { next_price_ids: Vec::new(), ..schedule(true) };
        let scheduled = Terms { schedule: Some(empty), ..terms() };
        assert_eq!(from_pro(scheduled, "team"), Ok(Way::Confirm));

        let catalog = catalog();
        let plan = catalog.plan("pro").unwrap();
        let current = Current { plan, item: item("base", Some(1)), terms: terms() };
        let team = catalog.plan("team").unwrap();
        for portal in [None, Some(portal(&[])), Some(portal(&["price_other"]))] {
            let found = way(team, "price_wanted", Some(&current), portal.as_ref());
            assert_eq!(found, Ok(Way::Confirm), "{portal:?}");
        }
    }

    #[test]
    fn down_waits_for_the_periods_end_whatever_the_portal_offers() {
        assert_eq!(from_pro(terms(), "starter"), Ok(Way::AtPeriodEnd));
        assert_eq!(from_pro(Terms { ends: true, ..terms() }, "starter"), Err(NoWay::Ends));
        assert_eq!(from_pro(Terms { ends: true, ..terms() }, "team"), Ok(Way::Confirm));
    }

    #[test]
    fn what_a_move_down_would_cost_beside_the_plan_forbids_it() {
        let discounted = Terms { discounted: true, ..terms() };
        let on_trial = Terms { status: SubscriptionStatus::Trialing, ..terms() };
        for particular in [discounted, on_trial] {
            assert_eq!(from_pro(particular.clone(), "team"), Ok(Way::Portal));
            assert_eq!(from_pro(particular, "starter"), Err(NoWay::DiscountedOrOnTrial));
        }
    }

    #[test]
    fn what_is_owed_comes_first() {
        for status in ["past_due", "unpaid", "paused"] {
            let owing = Terms { status: SubscriptionStatus::from(status), ..terms() };
            assert_eq!(from_pro(owing.clone(), "team"), Ok(Way::Mend), "{status}");
            assert_eq!(from_pro(owing, "starter"), Ok(Way::Mend), "{status}");
        }
        let waiting = Terms { pending_until: Some(Timestamp::from_seconds(1)), ..terms() };
        assert_eq!(from_pro(waiting, "team"), Ok(Way::Pending));
    }

    #[test]
    fn the_plan_one_has_and_plans_that_people_made_are_left_alone() {
        assert_eq!(from_pro(terms(), "pro"), Err(NoWay::AlreadyOnPlan));
        let others = Terms { schedule: Some(schedule(false)), ..terms() };
        assert_eq!(from_pro(others.clone(), "team"), Err(NoWay::Scheduled));
        assert_eq!(from_pro(others, "pro"), Err(NoWay::AlreadyOnPlan));
        let ours = Terms { schedule: Some(schedule(true)), ..terms() };
        assert_eq!(from_pro(ours.clone(), "pro"), Ok(Way::Keep));
        assert_eq!(from_pro(ours, "team"), Ok(Way::Keep), "it is given up before anything is paid");
        let empty = Schedule { next_price_ids: Vec::new(), ..schedule(true) };
        let empty = Terms { schedule: Some(empty), ..terms() };
        assert_eq!(from_pro(empty, "pro"), Err(NoWay::AlreadyOnPlan));
    }
}
