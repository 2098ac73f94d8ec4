//! Sync: make a customer's local tier equal to what Stripe says.
//!
//! Whatever calls for it (a webhook, support, the reconcile tick), the same thing happens: the
//! subscriptions are fetched anew, the pure rule of `domain::tier` says what follows, and one
//! transaction writes it, together with the notice of an upgrade. A lease keeps two workers off
//! one customer, and the row's revision refuses a write that was decided on an older state.

pub mod all;
mod doubts;
pub mod link;
pub mod looks;
pub mod missed;
pub mod period_end;
pub mod proof;
pub mod reconcile;
pub mod rejections;
pub mod replay;
pub mod upgrade;
pub mod usage;

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::customer::{Customer, Profile, clean_name, is_plausible_email};
use crate::domain::decision::{Mark, Standing};
use crate::domain::ids::CustomerId;
use crate::domain::notice::{NoticeKind, NoticeState};
use crate::domain::plan::{Catalog, Plan};
use crate::domain::subscription::Subscription;
use crate::domain::tier::{NoTier, several_live, tier_from_stripe, upgrade};
use crate::gate::{terms_of, turn};
use crate::store::notices::Notice;
use crate::store::{StoreError, Tx};
use crate::stripe::{StripeError, StripeErrorKind};

/// After this long a worker is taken for dead and another may have its customer. If it only
/// stalled it finds its lease gone, and writes nothing.
const LEASE: Duration = Duration::from_secs(60);
/// How often a sync starts over because the row changed under it.
const ATTEMPTS: u32 = 3;
/// This many failures of Stripe's in a row mean that it is at fault, not the customers asked for.
const GIVE_UP_AFTER: u32 = 3;

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
    /// What is not right at Stripe, and only a person can put right there.
    pub alerts: Vec<String>,
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
    /// Its id may be a mail address, so it is not said.
    #[error("Stripe has no such customer as this one is tied to")]
    NoSuchStripeCustomer,
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
            | Self::NoSuchStripeCustomer
            | Self::Store(_) => false,
        }
    }
}

/// How often in a row Stripe itself has failed, and not only about one of its objects. Whoever works
/// through many customers then leaves the rest for later, instead of waiting for a timeout with each.
#[derive(Debug, Default)]
pub struct Trouble(u32);

impl Trouble {
    /// Counts how a sync went; answers whether Stripe is not worth asking any more now.
    pub fn is_stripes<T>(&mut self, done: &Result<T, SyncError>) -> bool {
        self.after(match done {
            Err(SyncError::Stripe(error)) => Some(error),
            _ => None,
        })
    }

    /// The same of a call that went well or not at Stripe, or failed in this way.
    pub(super) fn after(&mut self, error: Option<&StripeError>) -> bool {
        self.0 = match error {
            // Whoever is asked for next, the key is the same.
            Some(error) if error.is_key_unknown() => GIVE_UP_AFTER,
            Some(error) if error.is_outage() => self.0 + 1,
            _ => 0,
        };
        self.0 >= GIVE_UP_AFTER
    }
}

/// Makes the customer's tier and period equal to Stripe's: what a webhook and the clock call for.
pub async fn sync_tier(app: &App, id: &CustomerId) -> Result<(), SyncError> {
    let lease = Lease::take(app, id).await?;
    let began = app.clock.now();
    let synced = retry_conflicts(app, id, Asker::Daemon, &lease).await;
    lease.release(app).await?;
    if synced.is_ok() {
        app.store.note_look(id, began).await?;
    }
    synced.map(|_| ())
}

/// All that support can ask for: tier and period made equal to Stripe's, what is parked put back,
/// usage that is due closed and sent, and an entry in the audit trail. A dry run changes nothing.
pub async fn sync_customer(
    app: &App,
    id: &CustomerId,
    mode: Mode,
) -> Result<SyncReport, SyncError> {
    sync_for(app, id, Asker::Support(mode)).await
}

async fn sync_for(app: &App, id: &CustomerId, asker: Asker) -> Result<SyncReport, SyncError> {
    let lease = Lease::take(app, id).await?;
    let began = app.clock.now();
    let synced = sync_all_of(app, id, asker, &lease).await;
    lease.release(app).await?;
    if synced.is_ok() && asker.mode() == Mode::Apply {
        app.store.note_look(id, began).await?;
    }
    synced
}

/// Tier, period and usage of one customer.
async fn sync_all_of(
    app: &App,
    id: &CustomerId,
    asker: Asker,
    lease: &Lease,
) -> Result<SyncReport, SyncError> {
    let report = retry_conflicts(app, id, asker, lease).await?;
    Ok(report.with(usage::sync_usage(app, id, asker.mode()).await?))
}

impl SyncReport {
    fn new(id: &CustomerId, mode: Mode, differences: Vec<Difference>) -> Self {
        let customer_id = id.clone();
        let (dry_run, alerts) = (mode == Mode::DryRun, Vec::new());
        Self { customer_id, dry_run, changed: false, differences: Vec::new(), alerts }
            .with(differences)
    }

    /// The report with more that was not as Stripe says.
    fn with(mut self, found: impl IntoIterator<Item = Difference>) -> Self {
        self.differences.extend(found);
        let acted = self.differences.iter().any(|found| found.action != NOTHING);
        self.changed = !self.dry_run && acted;
        self
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
    /// Support wants it for all: the audit trail has an entry only where something differed.
    SupportForAll(Mode),
}

impl Asker {
    fn mode(self) -> Mode {
        match self {
            Self::Daemon => Mode::Apply,
            Self::Support(mode) | Self::SupportForAll(mode) => mode,
        }
    }

    fn leaves_entry(self, report: &SyncReport) -> bool {
        match self {
            Self::Daemon => false,
            Self::Support(_) => true,
            Self::SupportForAll(_) => !report.differences.is_empty(),
        }
    }
}

async fn retry_conflicts(
    app: &App,
    id: &CustomerId,
    asker: Asker,
    lease: &Lease,
) -> Result<SyncReport, SyncError> {
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
) -> Result<SyncReport, SyncError> {
    let fetched_at = app.clock.now();
    let before = app.store.customer(id).await?.ok_or(SyncError::UnknownCustomer)?;
    let stripe_state = fetch(app, &before).await?;
    let plans = app.plans.active();
    let kept = terms_of(app, &before).await?;
    let mut tx = app.store.begin().await?;
    let customer = tx.lock_customer(id).await?.ok_or(SyncError::UnknownCustomer)?;
    if customer.revision != before.revision {
        return Err(StoreError::Conflict { what: "the customer" }.into());
    }
    if !tx.holds_lease(&lease.name, &lease.holder).await? {
        // Whoever has it now may have fetched later than we did.
        return Err(SyncError::Busy);
    }
    let catalog = &plans.1;
    let after = decide(catalog, &kept, &customer, &stripe_state, tx.now)?;
    // What it keeps it has kept before.
    let terms = if after.terms_version.is_some() { &kept } else { catalog };
    let mode = asker.mode();
    let found = differences((&customer, &kept), (&after, terms));
    let mut report = SyncReport::new(id, mode, found);
    report.alerts.extend(several_live(catalog, &after.tier, &stripe_state.subscriptions));
    if asker != Asker::Daemon {
        report = report.with(settle_parked_webhooks(&mut tx, &after, mode, fetched_at).await?);
    }
    if asker.leaves_entry(&report) {
        let detail = serde_json::to_value(&report).expect("a report is plain JSON");
        let audit_id = app.entropy.id("aud", tx.now);
        tx.insert_audit(&audit_id, "admin", "sync", Some(id.as_str()), &detail).await?;
    }
    let mut frozen = false;
    if mode == Mode::Apply && after != customer {
        let plans = (plans.0, &**catalog);
        frozen = apply(app, &mut tx, plans, (&customer, &kept), (&after, terms)).await?;
        tracing::info!(
            customer_id = %id,
            plan = after.tier.plan(terms).map(|plan| plan.id.as_str()),
            changes = report.differences.len(),
            "the tier was made equal to Stripe's"
        );
    }
    tx.commit().await?;
    if frozen {
        // Of a period that is over before its time there may be an invoice at any moment.
        usage::send_all_of(app, id).await?;
    }
    raise_alerts(&report);
    Ok(report)
}

/// A customer, and the plans file whose limits hold for it.
type UnderTerms<'a> = (&'a Customer, &'a Catalog);

/// Writes what a customer becomes, with all that follows; answers whether a period ended early.
async fn apply(
    app: &App,
    tx: &mut Tx,
    (plan_version, catalog): (i64, &Catalog),
    (before, kept): UnderTerms<'_>,
    (after, terms): UnderTerms<'_>,
) -> Result<bool, StoreError> {
    let frozen = turn::follow(app, tx, before, &after.tier.cycle).await?;
    tx.update_customer(after).await?;
    let subscribed = |c: &Customer| c.tier.subscription.as_ref().map(|own| own.id.clone());
    if subscribed(after).is_some() && subscribed(after) != subscribed(before) {
        // Whoever went on paying there would pay for a second one.
        tx.leave_checkout(&after.id).await?;
    }
    let (from, to) = (before.tier.plan(kept), after.tier.plan(terms));
    if after.terms_version != before.terms_version {
        let detail = json!({"from": before.terms_version, "to": after.terms_version,
            "from_plan_id": from.map(|plan| &plan.id), "to_plan_id": to.map(|plan| &plan.id)});
        let (audit_id, id) = (app.entropy.id("aud", tx.now), after.id.as_str());
        tx.insert_audit(&audit_id, "stripe", "terms.moved", Some(id), &detail).await?;
    }
    if let Some((from, to)) = upgrade(catalog, from, to, after.tier.standing) {
        let notice = upgrade_notice(app, catalog, plan_version, after, from, to, tx.now);
        if let Some(notice) = notice {
            tx.insert_notice(&notice).await?;
        }
    }
    Ok(frozen)
}

/// The customer as Stripe's state calls for; `kept` are the terms it has been under.
fn decide(
    catalog: &Catalog,
    kept: &Catalog,
    customer: &Customer,
    stripe_state: &StripeState,
    now: Timestamp,
) -> Result<Customer, NoTier> {
    let tier = tier_from_stripe(catalog, &customer.tier, &stripe_state.subscriptions, now)?;
    let profile = stripe_state.fill(customer.profile.clone());
    Ok(Customer { profile, ..customer.with_tier(tier, kept, catalog) })
}

fn raise_alerts(report: &SyncReport) {
    for alert in &report.alerts {
        metrics::counter!("tollgate_several_subscriptions_total").increment(1);
        tracing::warn!(customer_id = %report.customer_id, alert, "Stripe's side needs a person");
    }
}

/// What Stripe says about a customer.
struct StripeState {
    subscriptions: Vec<Subscription>,
    email: Option<String>,
    name: Option<String>,
}

impl StripeState {
    /// What the product has not said about its customer is taken from Stripe; the address again
    /// and again, because mails must not go to one that is no longer right.
    fn fill(&self, mut profile: Profile) -> Profile {
        let email = self.email.as_deref().filter(|email| is_plausible_email(email));
        if let Some(email) = email.filter(|_| profile.email.is_none() || profile.email_is_stripes) {
            profile.email = Some(email.to_owned());
            profile.email_is_stripes = true;
        }
        profile.name = profile.name.or_else(|| clean_name(self.name.as_deref()?));
        profile
    }
}

/// A customer without a Stripe customer, or with a deleted one, has no subscriptions.
async fn fetch(app: &App, customer: &Customer) -> Result<StripeState, SyncError> {
    let none = StripeState { subscriptions: Vec::new(), email: None, name: None };
    let Some(stripe_id) = &customer.stripe_customer_id else { return Ok(none) };
    let stripe = app.stripe.as_ref().ok_or(SyncError::NotConfigured)?;
    let found = stripe.customer(stripe_id).await?.ok_or(SyncError::NoSuchStripeCustomer)?;
    if found.deleted {
        return Ok(none);
    }
    let subscriptions = stripe.subscriptions_of(stripe_id).await?;
    Ok(StripeState { subscriptions, email: found.email, name: found.name })
}

/// What changes from one state of a customer to the next, for people to read.
fn differences(before: UnderTerms<'_>, after: UnderTerms<'_>) -> Vec<Difference> {
    let rows = |(customer, terms): UnderTerms<'_>| {
        let tier = &customer.tier;
        let subscription = tier.subscription.as_ref();
        [
            ("plan", tier.plan(terms).map(|plan| plan.id.to_string())),
            ("terms", customer.terms_version.map(|v| format!("version {v} of the plans file"))),
            ("subscription", subscription.map(|s| s.id.clone())),
            ("status", subscription.map(|s| s.status.as_str().to_owned())),
            ("standing", Some(standing_words(tier.standing))),
            ("planned end", subscription.and_then(|s| s.cancels_at).map(|at| at.to_string())),
            ("collection", subscription.map(|s| collection_word(s.collection_paused).to_owned())),
            ("period", tier.cycle.stripe.map(|p| format!("{} to {}", p.start, p.end))),
        ]
    };
    rows(before)
        .into_iter()
        .zip(rows(after))
        .filter(|(local, stripe)| local != stripe)
        .map(|((what, local), (_, stripe))| Difference { what, local, stripe, action: "set" })
        .chain((before.0.profile != after.0.profile).then_some(Difference {
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

fn collection_word(paused: bool) -> &'static str {
    if paused { "paused" } else { "as usual" }
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
