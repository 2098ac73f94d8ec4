//! The way to another plan: which one it is ([`crate::domain::upgrade`]), and going it.
//!
//! Nothing here decides about the tier. Stripe changes the subscription, and [`super::sync_tier`]
//! follows it; where Stripe says that it has changed, this does so at once, so that the customer who
//! comes back finds the gate open before the webhook has arrived.

mod change;
mod checkout;
mod customer;
mod page;

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{SyncError, sync_tier};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::ids::{CustomerId, PlanId};
use crate::domain::link::Ticket;
use crate::domain::plan::{Catalog, Plan};
use crate::domain::provision::Offer;
use crate::domain::provision::found::Portal;
use crate::domain::returning::{Return, ReturnUrl};
use crate::domain::subscription::SubscriptionStatus;
use crate::domain::tier::{NoTier, giving, is_to_a_plan};
use crate::domain::upgrade::{Current, NoWay, Way, way};
use crate::store::StoreError;
use crate::stripe::{PortalFlow, Stripe, StripeError, StripeErrorKind};

pub use change::{Step, proceed};
pub use checkout::close_left;
pub use page::{State, View, look};

/// How long a link to the confirm page is good: as long as a change waits for its payment, so that
/// the page can be come back to while it does.
const LINK_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked again because something came in between.
const ATTEMPTS: u32 = 4;

/// A change of plan that is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    pub customer_id: CustomerId,
    pub plan_id: PlanId,
    /// Where to go afterwards; our own page if the product does not say.
    pub return_url: Option<ReturnUrl>,
    /// Until when a link to our own page is good.
    pub expires_at: Timestamp,
    /// Not by the portal, which has refused: the way is our own page.
    here: bool,
    /// Whose it is.
    asker: Asker,
}

/// Who asks for a way to another plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// The product, which knows that it is the customer who is in front of it.
    Product,
    /// Whoever holds a link. Links are in mails, and mails are passed on: they must not open a
    /// customer's invoices and addresses. The one exception is the page of an invoice that keeps a
    /// change or the present plan waiting: it can be paid nowhere else.
    Holder,
}

impl Wish {
    /// The product's: the link to our own page is good for a day.
    pub fn new(
        customer_id: CustomerId,
        plan_id: PlanId,
        return_url: ReturnUrl,
        now: Timestamp,
    ) -> Self {
        let (return_url, expires_at) = (Some(return_url), now.plus(LINK_FOR));
        Self { customer_id, plan_id, return_url, expires_at, here: false, asker: Asker::Product }
    }

    /// The one of whoever holds `ticket`.
    fn of(app: &App, ticket: &Ticket, plan_id: &PlanId) -> Self {
        Self {
            customer_id: ticket.customer_id.clone(),
            plan_id: plan_id.clone(),
            // What was signed yesterday may lead where nothing of ours is today.
            return_url: ticket.return_url.as_deref().and_then(|url| app.returns.check(url)),
            expires_at: ticket.expires_at,
            here: ticket.here,
            asker: Asker::Holder,
        }
    }

    /// Of our own page for it.
    fn ticket(&self) -> Ticket {
        Ticket {
            customer_id: self.customer_id.clone(),
            plan_id: Some(self.plan_id.clone()),
            return_url: self.return_url.as_ref().map(|url| url.as_str().to_owned()),
            here: self.here,
            quoted: None,
            expires_at: self.expires_at,
        }
    }

    /// Where Stripe's pages lead back to: the same for every call that asks for the same.
    fn way_back(&self, app: &App) -> ReturnUrl {
        let ours = || ReturnUrl::ours(&app.links.upgrade_url(&self.ticket()));
        let back = self.return_url.clone().or_else(ours);
        back.expect("TOLLGATE_PUBLIC_URL was checked to be an address")
    }
}

/// Where the customer goes from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub url: String,
    pub kind: StartKind,
}

/// What is there: `checkout` and `portal` are Stripe's pages, `confirm` is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    Checkout,
    Portal,
    Confirm,
}

/// Why a change of plan did not come about.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("there is no such customer")]
    UnknownCustomer,
    #[error("no Stripe key is configured")]
    NotConfigured,
    #[error("plan_id is not a plan of the plans file")]
    UnknownPlan,
    #[error("plan_id is a plan without a price: it cannot be bought")]
    NoPrice,
    #[error(
        "Stripe has no active price with the lookup key {lookup_key}; tollgate stripe push makes it"
    )]
    PriceNotInStripe { lookup_key: String },
    /// What the page says would not be what is charged.
    #[error(
        "Stripe's price with the lookup key {lookup_key} does not cost what the plans file says; \
         tollgate stripe push mends it"
    )]
    PriceDiffers { lookup_key: String },
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// A live subscription that cannot be told for a plan's: another one beside it might be one too
    /// many.
    #[error(transparent)]
    NoTier(#[from] NoTier),
    #[error("the customer's Stripe customer was deleted; tie the customer to another one")]
    StripeCustomerDeleted,
    #[error("Stripe has no such customer as this one is tied to")]
    NoSuchStripeCustomer,
    #[error("another change of plan came in between; nothing was done")]
    Overtaken,
    #[error("Stripe did not answer as hoped: {0}")]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finds the way to a plan and its first page.
///
/// # Errors
/// When there is no way, or Stripe cannot be asked.
pub async fn start(app: &App, wish: &Wish) -> Result<Start, UpgradeError> {
    Ok(match lead(app, wish).await? {
        Lead::Stripe(start) => start,
        Lead::Ours(ticket) => {
            Start { url: app.links.upgrade_url(&ticket), kind: StartKind::Confirm }
        }
    })
}

/// The first page of a way.
enum Lead {
    Stripe(Start),
    /// Our own, for the holder of this ticket.
    Ours(Ticket),
}

async fn lead(app: &App, wish: &Wish) -> Result<Lead, UpgradeError> {
    let (_, catalog) = app.plans.active();
    let wanted = buyable(&catalog, &wish.plan_id)?;
    let mut over = None;
    for _ in 0..ATTEMPTS {
        let survey = survey(app, &catalog, &wish.customer_id, wanted, wish.here).await?;
        if page::is_news(&survey) {
            // Who is told that there is nothing to buy must find the gate open.
            sync_now(app, &wish.customer_id).await;
        }
        if let Some(lead) = set_out(app, &survey, wish, &mut over).await? {
            return Ok(lead);
        }
    }
    Err(UpgradeError::Overtaken)
}

/// The plan, if it can be bought.
fn buyable<'c>(catalog: &'c Catalog, plan_id: &PlanId) -> Result<&'c Plan, UpgradeError> {
    let plan = catalog.plan(plan_id.as_str()).ok_or(UpgradeError::UnknownPlan)?;
    if plan.price.is_none() { Err(UpgradeError::NoPrice) } else { Ok(plan) }
}

/// What there is to know before a way is chosen, all of it asked just now.
struct Survey<'c> {
    customer: Customer,
    wanted: &'c Plan,
    stripe: Stripe,
    current: Option<Current<'c>>,
    /// Subscriptions to plans whose first payment was begun and not finished: each may still become
    /// one that is paid for.
    incomplete: Vec<String>,
    portal: Option<Portal>,
    way: Result<Way, NoWay>,
    /// The wanted plan's price at Stripe; empty if nobody had to know yet.
    price_id: String,
}

async fn survey<'c>(
    app: &App,
    catalog: &'c Catalog,
    id: &CustomerId,
    wanted: &'c Plan,
    here: bool,
) -> Result<Survey<'c>, UpgradeError> {
    let customer = app.store.customer(id).await?.ok_or(UpgradeError::UnknownCustomer)?;
    let stripe = app.stripe.clone().ok_or(UpgradeError::NotConfigured)?;
    let mut survey = Survey {
        customer,
        wanted,
        stripe,
        current: None,
        incomplete: Vec::new(),
        portal: None,
        way: Ok(Way::Checkout),
        price_id: String::new(),
    };
    let stripe = &survey.stripe;
    let Some(stripe_id) = &survey.customer.stripe_customer_id else { return Ok(survey) };
    match stripe.customer(stripe_id).await? {
        Some(found) if found.deleted => return Err(UpgradeError::StripeCustomerDeleted),
        Some(_) => {}
        None => return Err(UpgradeError::NoSuchStripeCustomer),
    }
    let subscriptions = stripe.subscriptions_of(stripe_id).await?;
    let tier = &survey.customer.tier;
    if let Some((subscription, item, plan)) =
        giving(catalog, tier, &subscriptions, app.clock.now())?
    {
        let terms = stripe.terms(&subscription.id).await?;
        let item = terms.items.iter().find(|found| found.id == item.id).cloned();
        let item = item.ok_or(UpgradeError::Overtaken)?;
        // The plan that the customer is on is kept at the price it has, whatever the plans file asks
        // of others by now.
        survey.price_id = match wanted.id == plan.id {
            true => item.price_id.clone(),
            false => price_of(stripe, wanted).await?,
        };
        survey.portal = if here { None } else { stripe.portal().await? };
        checkout::close(app, stripe, &survey.customer, &subscription.id).await?;
        survey.current = Some(Current { plan, item, terms });
    }
    // What else is sold to the same Stripe customer is none of our business.
    let unfinished = subscriptions.iter().filter(|found| {
        found.status == SubscriptionStatus::Incomplete && is_to_a_plan(catalog, found)
    });
    survey.incomplete = unfinished.map(|found| found.id.clone()).collect();
    let current = survey.current.as_ref();
    survey.way = way(wanted, &survey.price_id, current, survey.portal.as_ref());
    Ok(survey)
}

async fn price_of(stripe: &Stripe, plan: &Plan) -> Result<String, UpgradeError> {
    let offer = Offer::of(plan).ok_or(UpgradeError::NoPrice)?;
    match stripe.price_by_lookup_key(&offer.lookup_key).await? {
        Some(found) if offer.is_sold_by(&found) => Ok(found.id),
        Some(_) => Err(UpgradeError::PriceDiffers { lookup_key: offer.lookup_key }),
        None => Err(UpgradeError::PriceNotInStripe { lookup_key: offer.lookup_key }),
    }
}

/// The first page of the way that a survey has found; `None` if it was overtaken by events and the
/// survey has to be made again.
async fn set_out(
    app: &App,
    survey: &Survey<'_>,
    wish: &Wish,
    over: &mut Option<String>,
) -> Result<Option<Lead>, UpgradeError> {
    match survey.way? {
        Way::Checkout => {
            let url = checkout::open(app, survey, &wish.way_back(app), over).await?;
            Ok(url.map(|url| Lead::Stripe(Start { url, kind: StartKind::Checkout })))
        }
        Way::Portal | Way::Mend => {
            Ok(Some(match portal_link(survey, wish.asker, &wish.way_back(app)).await? {
                Some(url) => Lead::Stripe(Start { url, kind: StartKind::Portal }),
                None => Lead::Ours(Ticket { here: true, ..wish.ticket() }),
            }))
        }
        Way::Confirm | Way::AtPeriodEnd | Way::Keep | Way::Pending => {
            Ok(Some(Lead::Ours(wish.ticket())))
        }
    }
}

/// A link into Stripe's portal; `None` if Stripe refuses one, be it that there is no configuration,
/// or that it does not offer the price: then our own page has to do.
async fn portal_link(
    survey: &Survey<'_>,
    asker: Asker,
    back: &ReturnUrl,
) -> Result<Option<String>, UpgradeError> {
    let (Some(stripe_id), Some(current)) = (&survey.customer.stripe_customer_id, &survey.current)
    else {
        return Ok(None);
    };
    let flow = match (survey.way, asker) {
        (Ok(Way::Portal), _) => PortalFlow::Confirm {
            subscription_id: &current.terms.subscription_id,
            item_id: &current.item.id,
            price_id: &survey.price_id,
            quantity: current.item.quantity,
        },
        (_, Asker::Product) => PortalFlow::Home,
        (_, Asker::Holder) => PortalFlow::PaymentMethod,
    };
    let configuration = survey.portal.as_ref().map(|portal| portal.id.as_str());
    let (done, canceled) = (back.with(Return::Done), back.with(Return::Canceled));
    let link = survey.stripe.portal_link(stripe_id, configuration, flow, &done, &canceled).await;
    match link {
        Err(error) if matches!(error.kind, StripeErrorKind::Refused { .. }) => {
            tracing::warn!(customer_id = %survey.customer.id, %error, "no link into the portal");
            Ok(None)
        }
        link => Ok(Some(link?)),
    }
}

/// Makes the tier Stripe's at once. That is a courtesy: the webhook brings it about too.
async fn sync_now(app: &App, id: &CustomerId) {
    let mut patience = Patience::default();
    loop {
        match sync_tier(app, id).await {
            // Whoever is at it may have looked before the change.
            Err(SyncError::Busy) if patience.is_left() => patience.wait(app).await,
            Err(error) => {
                tracing::warn!(customer_id = %id, %error, "not synced after an upgrade");
                return;
            }
            Ok(()) => return,
        }
    }
}

/// How long one waits for somebody else who is at the same: longer each time, some two seconds in
/// all. Machine time, for it is another task or process that is waited for.
struct Patience {
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pause: Duration::from_millis(50) }
    }
}

impl Patience {
    fn is_left(&self) -> bool {
        self.pause < Duration::from_secs(2)
    }

    async fn wait(&mut self, app: &App) {
        tokio::time::sleep(app.entropy.jitter(self.pause)).await;
        self.pause *= 2;
    }
}
