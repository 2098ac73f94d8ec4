//! Sync: make a customer's local tier equal to what Stripe says.
//!
//! Whatever calls for it (a webhook, support, the reconcile tick), the same thing happens: the
//! subscriptions are fetched anew, the pure rule of `domain::tier` says what follows, and one
//! transaction writes it, together with the notice of an upgrade. A lease keeps two workers off
//! one customer, and the row's revision refuses a write that was decided on an older state.

mod doubts;
pub mod link;
pub mod proof;
pub mod reconcile;
pub mod rejections;
pub mod replay;
pub mod usage;
pub mod period_end;

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::{Customer, Profile, clean_name, is_plausible_email};
use crate::domain::decision::{Mark, Standing};
use crate::domain::ids::CustomerId;
use crate::domain::notice::{NoticeKind, NoticeState};
use crate::domain::plan::{Catalog, Plan};
use crate::domain::subscription::Subscription;
use crate::domain::tier::{NoTier, tier_from_stripe, upgrade};
use crate::gate::turn;
use crate::store::notices::Notice;
use crate::store::{StoreError, Tx};
use crate::stripe::{StripeError, StripeErrorKind};

/// After this long a worker is taken for dead and another may have its customer. If it only
/// stalled it finds its lease gone, and writes nothing.
const LEASE: Duration = Duration::from_secs(60);
/// How often a sync starts over because the row changed under it.
const ATTEMPTS: u32 = 3;

/// Whether to write what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Apply,
    DryRun,
}

/// What is done about a difference that a sync must not touch.
pub(super) const NOTHING: &str = "none: someone has to look";

/// What a sync found, in the contract's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SyncReport {
    pub customer_id: CustomerId,
    pub dry_run: bool,
    pub changed: bool,
    pub differences: Vec<Difference>,
}

/// One thing that was not as Stripe says, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Difference {
    pub what: &'static str,
    #[schema(required)]
    pub local: Option<String>,
    #[schema(required)]
    pub stripe: Option<String>,
    pub action: &'static str,
}

/// Why a customer could not be synced.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("there is no such customer")]
    UnknownCustomer,
    #[error("no Stripe key is configured")]
    NotConfigured,
    #[error("another worker is syncing this customer")]
    Busy,
    /// Stripe's state calls for no tier; the old one is kept.
    #[error(transparent)]
    NoTier(#[from] NoTier),
    /// Not deleted, of which Stripe would tell: never there. The id or the key is of another
    /// account, which is no reason to take a plan away.
    #[error("Stripe has no such customer as {stripe_customer_id}")]
    NoSuchStripeCustomer { stripe_customer_id: String },
    #[error("Stripe did not answer as hoped: {0}")]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SyncError {
    /// Whether the same sync may succeed later without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy | Self::Store(StoreError::Unavailable(_) | StoreError::Conflict { .. }) => {
                true
            }
            // A key can be mended while events wait.
            Self::NotConfigured => true,
            Self::Stripe(error) => {
                error.is_transient() || matches!(error.kind, StripeErrorKind::Unauthorized { .. })
            }
            Self::UnknownCustomer
            | Self::NoTier(_)
            | Self::NoSuchStripeCustomer { .. }
            | Self::Store(_) => false,
        }
    }
}

/// Makes the customer's tier and period equal to Stripe's: what a webhook and the clock call for.
pub async fn sync_tier(app: &App, id: &CustomerId) -> Result<(), SyncError> {
    let lease = Lease::take(app, id).await?;
    let synced = retry_conflicts(app, id, Asker::Daemon, &lease).await;
    lease.release(app).await?;
    synced.map(|_| ())
}

/// All that support can ask for: tier and period made equal to Stripe's, what is parked put back,
/// usage that is due closed and sent, and an entry in the audit trail. A dry run changes nothing.
pub async fn sync_customer(
    app: &App,
    id: &CustomerId,
    mode: Mode,
) -> Result<SyncReport, SyncError> {
    let lease = Lease::take(app, id).await?;
    let synced = sync_for_support(app, id, mode, &lease).await;
    lease.release(app).await?;
    synced
}

async fn sync_for_support(
    app: &App,
    id: &CustomerId,
    mode: Mode,
    lease: &Lease,
) -> Result<SyncReport, SyncError> {
    let mut differences = retry_conflicts(app, id, Asker::Support(mode), lease).await?;
    differences.extend(usage::sync_usage(app, id, mode).await?);
    Ok(SyncReport::new(id, mode, differences))
}

impl SyncReport {
    fn new(id: &CustomerId, mode: Mode, differences: Vec<Difference>) -> Self {
        Self {
            customer_id: id.clone(),
            dry_run: mode == Mode::DryRun,
            changed: mode == Mode::Apply && differences.iter().any(|d| d.action != NOTHING),
            differences,
        }
    }
}

/// The right to write what Stripe says about one customer.
struct Lease {
    name: String,
    /// Two syncs within one process exclude each other too, so each has a name of its own.
    holder: String,
}

impl Lease {
    async fn take(app: &App, id: &CustomerId) -> Result<Self, SyncError> {
        let now = app.clock.now();
        let lease = Self { name: format!("customer:{id}"), holder: app.entropy.id("sync", now) };
        match app.store.take_lease(&lease.name, &lease.holder, now, LEASE).await? {
            true => Ok(lease),
            false => Err(SyncError::Busy),
        }
    }

    async fn release(self, app: &App) -> Result<(), StoreError> {
        app.store.release_lease(&self.name, &self.holder).await
    }
}

/// Who wants a customer made equal to Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// A webhook or the clock.
    Daemon,
    Support(Mode),
}

async fn retry_conflicts(
    app: &App,
    id: &CustomerId,
    asker: Asker,
    lease: &Lease,
) -> Result<Vec<Difference>, SyncError> {
    for _ in 1..ATTEMPTS {
        match fetch_and_apply(app, id, asker, lease).await {
            Err(SyncError::Store(StoreError::Conflict { .. })) => {}
            done => return done,
        }
    }
    fetch_and_apply(app, id, asker, lease).await
}

async fn fetch_and_apply(
    app: &App,
    id: &CustomerId,
    asker: Asker,
    lease: &Lease,
) -> Result<Vec<Difference>, SyncError> {
    let fetched_at = app.clock.now();
    let before = app.store.customer(id).await?.ok_or(SyncError::UnknownCustomer)?;
    let stripe_state = fetch(app, &before).await?;
    let (plan_version, catalog) = app.plans.active();
    let mut tx = app.store.begin().await?;
    let customer = tx.lock_customer(id).await?.ok_or(SyncError::UnknownCustomer)?;
    if customer.revision != before.revision {
        return Err(StoreError::Conflict { what: "the customer" }.into());
    }
    if !tx.holds_lease(&lease.name, &lease.holder).await? {
        // Whoever has it now may have fetched later than we did.
        return Err(SyncError::Busy);
    }
    let mut after = Customer {
        tier: tier_from_stripe(&catalog, &customer.tier, &stripe_state.subscriptions, tx.now)?,
        profile: stripe_state.fill(customer.profile.clone()),
        ..customer.clone()
    };
    let plan_id = |customer: &Customer| customer.tier.plan(&catalog).map(|plan| plan.id.clone());
    if plan_id(&after) != plan_id(&customer) {
        // Who changes plan takes the new one as it is now.
        after.terms_version = None;
    }
    let mut differences = differences(&catalog, &customer, &after);
    if let Asker::Support(mode) = asker {
        differences.extend(settle_parked_webhooks(&mut tx, &after, mode, fetched_at).await?);
        let report = SyncReport::new(id, mode, differences.clone());
        let detail = serde_json::to_value(&report).expect("a report is plain JSON");
        let audit_id = app.entropy.id("aud", tx.now);
        tx.insert_audit(&audit_id, "admin", "sync", Some(id.as_str()), &detail).await?;
    }
    let mut frozen = false;
    if asker != Asker::Support(Mode::DryRun) && after != customer {
        frozen = turn::follow(app, &mut tx, &customer, &after.tier.cycle).await?;
        tx.update_customer(&after).await?;
        if let Some((from, to)) = upgrade(&catalog, &customer.tier, &after.tier) {
            let notice = upgrade_notice(app, &catalog, plan_version, &after, from, to, tx.now);
            if let Some(notice) = notice {
                tx.insert_notice(&notice).await?;
            }
        }
        tracing::info!(
            customer_id = %id,
            plan = after.tier.plan(&catalog).map(|plan| plan.id.as_str()),
            changes = differences.len(),
            "the tier was made equal to Stripe's"
        );
    }
    tx.commit().await?;
    if frozen {
        // Of a period that is over before its time there may be an invoice at any moment.
        usage::send_all_of(app, id).await?;
    }
    Ok(differences)
}

/// What Stripe says about a customer.
struct StripeState {
    subscriptions: Vec<Subscription>,
    email: Option<String>,
    name: Option<String>,
}

impl StripeState {
    /// What the product has not said about its customer is taken from Stripe.
    fn fill(&self, mut profile: Profile) -> Profile {
        let email = self.email.as_deref().filter(|email| is_plausible_email(email));
        profile.email = profile.email.or_else(|| email.map(str::to_owned));
        profile.name = profile.name.or_else(|| clean_name(self.name.as_deref()?));
        profile
    }
}

/// A customer without a Stripe customer, or with a deleted one, has no subscriptions.
async fn fetch(app: &App, customer: &Customer) -> Result<StripeState, SyncError> {
    let none = StripeState { subscriptions: Vec::new(), email: None, name: None };
    let Some(stripe_id) = &customer.stripe_customer_id else { return Ok(none) };
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    let Some(found) = stripe.customer(stripe_id).await? else {
        return Err(SyncError::NoSuchStripeCustomer { stripe_customer_id: stripe_id.clone() });
    };
    if found.deleted {
        return Ok(none);
    }
    let subscriptions = stripe.subscriptions_of(stripe_id).await?;
    Ok(StripeState { subscriptions, email: found.email, name: found.name })
}

/// What changes from one state of a customer to the next, for people to read.
fn differences(catalog: &Catalog, before: &Customer, after: &Customer) -> Vec<Difference> {
    let rows = |customer: &Customer| {
        let tier = &customer.tier;
        let subscription = tier.subscription.as_ref();
        [
            ("plan", tier.plan(catalog).map(|plan| plan.id.to_string())),
            ("subscription", subscription.map(|s| s.id.clone())),
            ("status", subscription.map(|s| s.status.as_str().to_owned())),
            ("standing", Some(standing_words(tier.standing))),
            ("period", tier.cycle.stripe.map(|p| format!("{} to {}", p.start, p.end))),
        ]
    };
    rows(before)
        .into_iter()
        .zip(rows(after))
        .filter(|(local, stripe)| local != stripe)
        .map(|((what, local), (_, stripe))| Difference { what, local, stripe, action: "set" })
        .chain((before.profile != after.profile).then_some(Difference {
            what: "profile",
            local: None,
            stripe: None,
            action: "filled in",
        }))
        .collect()
}

fn standing_words(standing: Standing) -> String {
    match standing {
        Standing::Good => "good".to_owned(),
        Standing::Grace { ends_at } => format!("past due, kept until {ends_at}"),
        Standing::PastDue => "past due".to_owned(),
        Standing::Paused => "paused".to_owned(),
    }
}

/// Parked webhooks that came before the fetch are applied by it: each only says that something
/// changed, and what there is now has just been seen.
async fn settle_parked_webhooks(
    tx: &mut Tx,
    customer: &Customer,
    mode: Mode,
    fetched_at: Timestamp,
) -> Result<Option<Difference>, StoreError> {
    let stripe_id = customer.stripe_customer_id.as_deref();
    let parked = match mode {
        Mode::DryRun => tx.parked_events(&customer.id, stripe_id, fetched_at).await?,
        Mode::Apply => tx.apply_parked_events(&customer.id, stripe_id, fetched_at).await?,
    };
    Ok((parked > 0).then(|| Difference {
        what: "parked webhooks",
        local: Some(parked.to_string()),
        stripe: None,
        action: "applied",
    }))
}

/// The mail that tells of an upgrade, about the first feature whose limit it changes.
fn upgrade_notice(
    app: &App,
    catalog: &Catalog,
    plan_version: i64,
    customer: &Customer,
    from: &Plan,
    to: &Plan,
    now: Timestamp,
) -> Option<Notice> {
    let feature_id = to
        .limits
        .iter()
        .find(|(feature, limit)| from.limits.get(*feature) != Some(limit))
        .or_else(|| to.limits.iter().next())
        .map(|(feature, _)| feature.clone())?;
    Some(Notice {
        notice_id: app.entropy.id("ntc", now),
        customer_id: customer.id.clone(),
        feature_id,
        series: customer.tier.cycle.series,
        period: customer.tier.cycle.period_at(now),
        kind: NoticeKind::PlanUpgraded,
        mark: Mark::Percent(0),
        entitlement_version: customer.tier.entitlement_version,
        state: NoticeState::Due,
        usage_units: 0,
        plan_id: Some(to.id.clone()),
        from_plan_id: Some(from.id.clone()),
        plan_version,
        created_at: now,
        due_at: now.plus(catalog.policy.post_upgrade_delay),
        state_since: now,
        attempts: 0,
        detail: None,
    })
}
