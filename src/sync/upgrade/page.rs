//! What our own page says: which change is possible and what it costs, or what came of it.

use super::change::{due_now, fingerprint, plan_change};
use super::{Survey, UpgradeError, buyable, survey, sync_now};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::ids::PlanId;
use crate::domain::link::{Quoted, Ticket};
use crate::domain::money::Money;
use crate::domain::plan::{Catalog, Interval, Plan};
use crate::domain::upgrade::{Current, Hurdle, NoWay, Way};
use crate::gate::terms_of;

/// What there is to show to the holder of a ticket.
#[derive(Debug)]
pub struct View {
    pub customer: Customer,
    /// The plan in force.
    pub plan: Option<Plan>,
    /// The plan to change to; `None` if there is none above the present one.
    pub wanted: Option<Plan>,
    /// An error here leaves the rest of the page as it is.
    pub state: Result<State, UpgradeError>,
    /// Of the button, if the state has one.
    pub token: String,
}

/// How it stands with the wanted plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is to be had.
    Nothing,
    /// The customer is on it.
    On,
    /// It is to be paid for, or confirmed, on a page of Stripe's.
    AtStripe,
    /// It is to be confirmed here.
    Confirm {
        due_now: Money,
        /// What each period costs after the present one.
        later: Money,
        /// When the present period ends; `None` if a new one begins at once, because the wanted
        /// plan is paid for at another interval.
        until: Option<Timestamp>,
        /// The subscription ends then.
        ends: bool,
    },
    /// It is to be confirmed here, for then.
    AtPeriodEnd {
        at: Timestamp,
        /// What the plan costs for each period from then on.
        later: Money,
    },
    /// It is planned for then; the button keeps the present plan.
    Planned {
        at: Timestamp,
    },
    /// A move down from here is planned for then, and can be given up.
    Keep {
        at: Timestamp,
    },
    /// A change waits for its payment: until then, and here.
    Pending {
        until: Timestamp,
        url: Option<String>,
        hurdle: Hurdle,
    },
    /// The present plan is not paid for: here it can be.
    Mend {
        url: Option<String>,
    },
    Refused(NoWay),
}

/// Finds out what the page has to say.
///
/// # Errors
/// When the customer is not known, or the plan named is none that can be bought.
pub async fn look(app: &App, ticket: &Ticket) -> Result<View, UpgradeError> {
    let (_, catalog) = app.plans.active();
    let wanted = match plan_of(app, &catalog, ticket).await? {
        Some(plan_id) => Some(buyable(&catalog, &plan_id)?),
        None => None,
    };
    // In whole seconds, as a ticket keeps it and Stripe takes it.
    let now = Timestamp::from_seconds(app.clock.now().seconds());
    let found = match wanted {
        Some(wanted) => state_of(app, &catalog, ticket, wanted, now).await,
        None => Ok((State::Nothing, String::new())),
    };
    let (state, change) = match found {
        Ok((state, change)) => (Ok(state), change),
        Err(error) => (Err(error), String::new()),
    };
    let customer = app.store.customer(&ticket.customer_id).await?;
    let customer = customer.ok_or(UpgradeError::UnknownCustomer)?;
    let terms = terms_of(app, &customer).await?;
    let plan = customer.tier.plan(&terms);
    // What is planned can be taken back.
    let to = if matches!(state, Ok(State::Planned { .. })) { plan } else { wanted };
    let plan_id = to.map(|plan| plan.id.clone());
    let button = Ticket { plan_id, quoted: Some(Quoted { at: now, change }), ..ticket.clone() };
    Ok(View {
        plan: plan.cloned(),
        customer,
        wanted: wanted.cloned(),
        state,
        token: app.links.upgrade_token(&button),
    })
}

/// The plan that a ticket is for: the one it names, or the one above the customer's.
pub(super) async fn plan_of(
    app: &App,
    catalog: &Catalog,
    ticket: &Ticket,
) -> Result<Option<PlanId>, UpgradeError> {
    if ticket.plan_id.is_some() {
        return Ok(ticket.plan_id.clone());
    }
    let customer = app.store.customer(&ticket.customer_id).await?;
    let customer = customer.ok_or(UpgradeError::UnknownCustomer)?;
    let terms = terms_of(app, &customer).await?;
    // Its plan is by its own terms, the way up from there is today's.
    let plan = customer.tier.plan(&terms).and_then(|plan| catalog.plan(plan.id.as_str()));
    Ok(plan.and_then(|plan| plan.upgrade_to.clone()))
}

/// The state, and the fingerprint of the change that it is about.
async fn state_of(
    app: &App,
    catalog: &Catalog,
    ticket: &Ticket,
    wanted: &Plan,
    now: Timestamp,
) -> Result<(State, String), UpgradeError> {
    let survey = survey(app, catalog, &ticket.customer_id, wanted, ticket.here).await?;
    if is_news(&survey) {
        sync_now(app, &ticket.customer_id).await;
    }
    let due_now = due_now(&survey, now).await?;
    let change = fingerprint(&survey, survey.way, due_now);
    let Some(current) = &survey.current else { return Ok((State::AtStripe, change)) };
    let terms = &current.terms;
    let at = current.item.period_end;
    let url = terms.unpaid.as_ref().and_then(|invoice| invoice.url.clone());
    let state = match survey.way {
        Err(NoWay::AlreadyOnPlan) => State::On,
        Err(no_way) => State::Refused(no_way),
        Ok(Way::Checkout | Way::Portal) => State::AtStripe,
        Ok(Way::Pending) => {
            let hurdle = match &terms.unpaid {
                // A key that may not read events can still sell.
                Some(invoice) => survey.stripe.hurdle(invoice).await.unwrap_or(Hurdle::Unknown),
                None => Hurdle::Unknown,
            };
            State::Pending { until: terms.pending_until.unwrap_or(at), url, hurdle }
        }
        Ok(Way::Mend) => State::Mend { url },
        Ok(Way::Keep) => State::Keep { at },
        Ok(Way::AtPeriodEnd) if is_planned(&survey, current) => {
            return Ok((State::Planned { at }, fingerprint(&survey, Ok(Way::Keep), None)));
        }
        Ok(Way::AtPeriodEnd) => State::AtPeriodEnd { at, later: seats(wanted, current)? },
        Ok(Way::Confirm) => {
            let later = plan_change(current, &survey.price_id, now);
            State::Confirm {
                due_now: due_now.ok_or(UpgradeError::Overtaken)?,
                later: survey.stripe.due_later(later).await?,
                until: Some(at).filter(|_| interval(wanted) == interval(current.plan)),
                ends: terms.ends,
            }
        }
    };
    Ok((state, change))
}

/// What the wanted plan costs for each period, for all seats that there are.
fn seats(wanted: &Plan, current: &Current<'_>) -> Result<Money, UpgradeError> {
    let price = wanted.price.as_ref().ok_or(UpgradeError::NoPrice)?;
    let seats = i64::try_from(current.item.quantity.unwrap_or(1)).unwrap_or(i64::MAX);
    Ok(Money { minor: price.amount.minor.saturating_mul(seats), ..price.amount })
}

fn interval(plan: &Plan) -> Option<Interval> {
    plan.price.as_ref().map(|price| price.interval)
}

/// Whether Stripe says something that has not been heard of here yet: then the customer, who may
/// just have paid, must not have to wait for the webhook.
pub(super) fn is_news(survey: &Survey<'_>) -> bool {
    let tier = &survey.customer.tier;
    let Some(current) = &survey.current else { return tier.subscription.is_some() };
    let known = tier.subscription.as_ref().is_some_and(|known| {
        known.id == current.terms.subscription_id && known.status == current.terms.status
    });
    !known || tier.plan_id.as_ref() != Some(&current.plan.id)
}

fn is_planned(survey: &Survey<'_>, current: &Current<'_>) -> bool {
    let schedule = current.terms.schedule.as_ref();
    schedule.is_some_and(|schedule| schedule.next_price_ids.contains(&survey.price_id))
}
