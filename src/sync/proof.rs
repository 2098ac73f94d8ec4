//! The proof: what a customer used and reported, held against Stripe's own sums.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::OnceCell;

use super::{SyncError, Trouble};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::ids::CustomerId;
use crate::domain::period::BillingPeriod;
use crate::domain::plan::Catalog;
use crate::domain::proof::{Account, Place, SETTLED_AFTER, TAKEN_FOR, accounts};
use crate::store::proof::{Comparable, Others, PeriodKey, Unproven};
use crate::store::{Store, StoreError};
use crate::stripe::{Meter, Stripe, StripeError, StripeErrorKind, Sum};

/// How many periods one call compares.
pub const AT_ONCE: i64 = 100;
/// When a period is compared after its end: half an hour in which its usage is still reported, as
/// long again for that to arrive, and [`SETTLED_AFTER`].
const COMPARED_AFTER: Duration = Duration::from_secs(90 * 60);
/// How long a period that differed waits to be compared again: one reading a day.
const AGAIN_AFTER: Duration = Duration::from_secs(23 * 60 * 60);
/// A year, and a few days more.
const LONGEST_PERIOD: Duration = Duration::from_secs(370 * 86_400);

/// Stripe's side of the books. Which meters there are is asked once, when it is first needed.
pub struct Sums<'a> {
    stripe: &'a Stripe,
    meters: OnceCell<HashMap<String, Meter>>,
}

/// Why there is no sum to compare with.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("nothing says which meter and Stripe customer it belongs to")]
    NoPlace,
    #[error("Stripe has no meter for it")]
    NoMeter,
    #[error("the meter's formula is {0}, which adds nothing up")]
    NotASum(String),
    #[error("it is {0}, no whole number of units: someone else reports to this meter too")]
    NotWhole(String),
    #[error(transparent)]
    Stripe(#[from] StripeError),
}

impl Unreadable {
    /// Whether the same sum may be read a moment later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Stripe(error) if error.is_transient())
    }

    /// Whether no sum at all can be read with the key we have.
    pub fn is_our_keys(&self) -> bool {
        matches!(self, Self::Stripe(error) if matches!(error.kind, StripeErrorKind::Unauthorized { .. }))
    }
}

impl<'a> Sums<'a> {
    pub fn of(stripe: &'a Stripe) -> Self {
        Self { stripe, meters: OnceCell::new() }
    }

    /// Every meter, by its event name.
    pub(super) async fn meters(&self) -> Result<&HashMap<String, Meter>, StripeError> {
        self.meters
            .get_or_try_init(async || {
                let meters = self.stripe.meters().await?;
                Ok(meters.into_iter().map(|meter| (meter.event_name.clone(), meter)).collect())
            })
            .await
    }

    /// Whole units of a place in a span of whole minutes.
    pub(super) async fn units(
        &self,
        place: &Place,
        span: Range<Timestamp>,
    ) -> Result<i64, Unreadable> {
        let meter = self.meters().await?.get(&place.meter).ok_or(Unreadable::NoMeter)?;
        if meter.formula != "sum" {
            return Err(Unreadable::NotASum(meter.formula.clone()));
        }
        match self.stripe.units(&meter.id, &place.stripe_customer_id, span).await? {
            Sum::Units(units) => Ok(units),
            Sum::NotWhole(number) => Err(Unreadable::NotWhole(number)),
        }
    }
}

/// One sum of Stripe's beside ours, in whole units.
#[derive(Debug, Serialize)]
pub struct Line {
    pub customer_id: CustomerId,
    pub stripe_customer_id: Option<String>,
    pub meter: Option<String>,
    pub period: BillingPeriod,
    /// What usage events and counters say was accepted and metered.
    pub ledger: i64,
    /// `None` if it cannot be read.
    pub stripe: Option<i64>,
    /// What Stripe has too many, below zero too few.
    pub difference: Option<i64>,
    /// What is known of why.
    pub remarks: Vec<String>,
    /// Nothing of it was on its way or had only just arrived.
    #[serde(skip)]
    pub settled: bool,
    /// What is parked, waits, or is in an open window.
    #[serde(skip)]
    pub undelivered: i64,
    /// Of that, what Stripe cannot have.
    #[serde(skip)]
    pub unsent: i64,
    #[serde(skip)]
    pub unreadable: Option<Unreadable>,
}

impl Line {
    /// Whether there is a difference that the outbox does not account for.
    pub(super) fn is_unexplained(&self) -> bool {
        self.difference
            .is_some_and(|difference| difference > 0 || difference + self.undelivered < 0)
    }

    /// Whether Stripe has more than we have, or may have, for all that can be read. Where it has no
    /// meter, or nothing says which, it has nothing.
    pub(super) fn may_be_ahead(&self) -> bool {
        match self.unreadable {
            Some(Unreadable::NoPlace | Unreadable::NoMeter) => false,
            _ => self.difference.is_none_or(|difference| difference > 0),
        }
    }

    /// Whether ledger and Stripe are known to say the same.
    pub fn agrees(&self) -> bool {
        self.difference == Some(0)
    }

    /// The line in words, for logs and reasons.
    fn words(&self) -> String {
        let BillingPeriod { start, end } = self.period;
        let meter = self.meter.as_deref().unwrap_or("no meter");
        let stripe = self.stripe.map_or("an unknown number of".to_owned(), |n| n.to_string());
        let unsent = match self.unsent {
            0 => String::new(),
            units => format!(", of which {units} were never sent,"),
        };
        format!(
            "of {meter} from {start} to {end} the ledger has {} units{unsent} and Stripe {stripe}",
            self.ledger
        )
    }
}

/// All that a customer has used of meters, in order of time.
pub async fn accounts_of(
    store: &Store,
    catalog: &Catalog,
    customer_id: &CustomerId,
    now: Timestamp,
) -> Result<Vec<Account>, StoreError> {
    let customer = store.customer(customer_id).await?;
    let (metered, reported) = store.metered_of(customer_id, now.minus(SETTLED_AFTER)).await?;
    let cycle = customer.as_ref().map(|customer| customer.tier.cycle);
    let now_in = cycle.map(|cycle| (cycle.series, cycle.period_at(now)));
    let stripe_id = customer.and_then(|customer| customer.stripe_customer_id);
    Ok(accounts(&metered, &reported, now_in, |feature_id| {
        let meter = catalog.features.get(feature_id)?.stripe_meter.clone()?;
        Some(Place { stripe_customer_id: stripe_id.clone()?, meter })
    }))
}

/// Reads Stripe's sum for an account, and what of its span is not the account's own.
pub async fn compare(
    store: &Store,
    sums: &Sums<'_>,
    catalog: &Catalog,
    customer_id: &CustomerId,
    account: &Account,
    now: Timestamp,
) -> Result<Line, StoreError> {
    let Some(place) = &account.place else {
        return Ok(line(customer_id, account, Err(Unreadable::NoPlace), Others::default(), now));
    };
    let read = sums.units(place, account.span()).await;
    let key = PeriodKey {
        customer_id: customer_id.clone(),
        series: account.series,
        period_start: account.period.start,
    };
    // A span of whole minutes reaches into the periods before and after.
    let fresh_after = now.minus(SETTLED_AFTER);
    let others = store.sent_by_others(place, &account.span(), fresh_after, &key).await?;
    if read.as_ref().is_ok_and(|units| units - others.delivered > account.most()) {
        // Something may have been used and sent since the account was made.
        let mut accounts = accounts_of(store, catalog, customer_id, now).await?;
        accounts.retain(|other| other.is_same(account));
        if let Some(account) = accounts.first() {
            return Ok(line(customer_id, account, read, others, now));
        }
    }
    Ok(line(customer_id, account, read, others, now))
}

/// Both sides of an account. A period that goes on may be short of what is still on its way.
fn line(
    customer_id: &CustomerId,
    account: &Account,
    read: Result<i64, Unreadable>,
    others: Others,
    now: Timestamp,
) -> Line {
    let on_its_way = if account.is_closed(now) { 0 } else { account.waiting + account.open };
    let moving = account.fresh + others.fresh + on_its_way;
    let stripe = read.as_ref().ok().map(|units| match units - others.delivered {
        // What is too much may be others', as far as they wait for an answer.
        own if own > account.most() => account.most().max(own - others.unanswered),
        own => own,
    });
    let difference = stripe.map(|stripe| account.difference(stripe, moving));
    let unreadable = read.err();
    let mut remarks = match difference {
        Some(0) => Vec::new(),
        _ => account.remarks(),
    };
    if moving > 0 && stripe.is_some_and(|stripe| stripe < account.ledger) {
        remarks.push(format!("{moving} units may not show yet"));
    }
    remarks.extend(unreadable.as_ref().map(|why| format!("Stripe's sum cannot be read: {why}")));
    let place = account.place.clone();
    Line {
        customer_id: customer_id.clone(),
        stripe_customer_id: place.as_ref().map(|place| place.stripe_customer_id.clone()),
        meter: place.map(|place| place.meter),
        period: account.period,
        ledger: account.ledger,
        stripe,
        difference,
        remarks,
        settled: moving == 0 && others.unanswered == 0,
        undelivered: account.parked + account.waiting + account.open,
        unsent: account.ledger - account.most(),
        unreadable,
    }
}

/// What came of comparing sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proven {
    pub periods: usize,
    pub differing: usize,
    /// Stripe does not answer now.
    pub stopped: bool,
}

/// Compares periods that have ended and are not proven yet. One that is proven is not asked about
/// again; one that differs is, once a day, for as long as Stripe takes usage of it.
pub(super) async fn prove_due(app: &App, sums: &Sums<'_>) -> Result<Proven, SyncError> {
    let now = app.clock.now();
    let oldest = now.minus(TAKEN_FOR);
    let which = Unproven {
        ended_after: oldest,
        ended_by: now.minus(COMPARED_AFTER),
        began_after: oldest.minus(LONGEST_PERIOD),
        compared_by: now.minus(AGAIN_AFTER),
    };
    let (mut proven, mut trouble) = (Proven::default(), Trouble::default());
    for period in app.store.unproven_periods(which, AT_ONCE).await? {
        let done = prove(app, sums, &period).await;
        let stripe_fails = trouble.is_stripes(&done);
        match done {
            Ok(true) => proven.periods += 1,
            Ok(false) => proven.differing += 1,
            Err(error) if stripe_fails => {
                tracing::warn!(%error, "Stripe's sums cannot be read now: the rest waits");
                proven.stopped = true;
                break;
            }
            Err(SyncError::Store(error)) if error.is_outage() => return Err(error.into()),
            Err(error) => {
                tracing::error!(
                    customer_id = %period.key.customer_id, %error,
                    "a customer's usage cannot be compared with Stripe"
                );
                put_behind(app, &period).await?;
                proven.differing += 1;
            }
        }
    }
    Ok(proven)
}

/// Lets a period that could not be compared come after all others, should it be the one at fault.
async fn put_behind(app: &App, period: &Comparable) -> Result<(), StoreError> {
    match note_compared(app, period, false).await {
        Err(error) if !error.is_outage() => {
            tracing::error!(customer_id = %period.key.customer_id, %error, "nor can that be noted");
            Ok(())
        }
        noted => noted,
    }
}

/// Compares all that was reported of one period and notes what came of it.
async fn prove(app: &App, sums: &Sums<'_>, period: &Comparable) -> Result<bool, SyncError> {
    let now = app.clock.now();
    let (_, catalog) = app.plans.active();
    let PeriodKey { customer_id, series, period_start } = &period.key;
    let mut lines = Vec::new();
    for account in accounts_of(&app.store, &catalog, customer_id, now).await? {
        if (account.series, account.period.start) != (*series, *period_start) {
            continue;
        }
        if !account.is_closed(now) {
            // Stripe has made it longer since its counter was written.
            note_compared(app, period, false).await?;
            return Ok(false);
        }
        let line = compare(&app.store, sums, &catalog, customer_id, &account, now).await?;
        match line.unreadable {
            Some(Unreadable::Stripe(error)) if error.is_outage() => return Err(error.into()),
            _ => lines.push(line),
        }
    }
    let proven = lines.iter().all(|line| line.agrees() && line.settled && line.undelivered == 0);
    note_differences(app, &lines).await?;
    note_compared(app, period, proven).await?;
    Ok(proven)
}

async fn note_compared(app: &App, period: &Comparable, proven: bool) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    tx.note_compared(period, proven).await?;
    tx.commit().await
}

/// Says loudly what differs, and freezes the sending of customers of whom Stripe has more.
pub(super) async fn note_differences(app: &App, lines: &[Line]) -> Result<(), StoreError> {
    for line in lines.iter().filter(|line| !line.agrees()) {
        metrics::counter!("tollgate_sums_differ_total").increment(1);
        tracing::error!(
            customer_id = %line.customer_id,
            remarks = line.remarks.join("; "),
            "{}", line.words()
        );
        if line.difference.is_some_and(|difference| difference > 0) {
            freeze(app, &line.customer_id, &line.words()).await?;
        }
    }
    Ok(())
}

/// Stripe knows of usage that we do not, as after a backup was restored. Whatever is sent before
/// someone has looked may be there already.
pub(super) async fn freeze(
    app: &App,
    customer_id: &CustomerId,
    reason: &str,
) -> Result<(), StoreError> {
    let mut tx = app.store.begin().await?;
    let new = tx.freeze_sending(customer_id, reason).await?;
    tx.commit().await?;
    if new {
        metrics::counter!("tollgate_sending_frozen_total").increment(1);
        tracing::error!(
            customer_id = %customer_id, reason,
            "Stripe has counted more than we have: sending is frozen for this customer"
        );
    }
    Ok(())
}
