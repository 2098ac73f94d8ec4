//! One batch of a writer: load, decide in order, write, commit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::books::{Account, Books, Entry};
use super::request::{Ask, Request};
use super::{Decided, GateError, outage};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::answer::{Facts, Particular, Remark};
use crate::domain::cost::cost_of_run;
use crate::domain::customer::Customer;
use crate::domain::decision::{Crossing, Intent, Mark, crossing, decide, threshold};
use crate::domain::ids::{CustomerId, FeatureId, ReservationId};
use crate::domain::notice::{NoticeKind, NoticeState};
use crate::domain::period::{BillingPeriod, REPORTABLE_FOR};
use crate::domain::plan::Catalog;
use crate::domain::quota::{Allowance, Quotas};
use crate::domain::run::RunFacts;
use crate::domain::usage::{Counter, OpenWindow};
use crate::store::events::{EventKey, NewEvent, Remembered, hold};
use crate::store::notices::Notice;
use crate::store::outbox::NewMeterEvent;
use crate::store::quotas::NewDraw;
use crate::store::reservations::Reservation;
use crate::store::usage::{CounterKey, PeriodCounter, Seen};
use crate::store::{Line, Store, StoreError, Tx};

/// How often a batch is tried when the database asks for it.
const ATTEMPTS: u32 = 3;

/// Decides a batch in a transaction and makes it durable; one result per request, in order.
pub(super) async fn run(
    app: &App,
    line: &Line,
    mut books: Books,
    asks: &[Ask],
) -> (Books, Vec<Result<Decided, GateError>>) {
    let mut attempt = 1;
    loop {
        let error = match try_once(app, line, &mut books, asks).await {
            Ok((now, results)) => {
                outage::remember_all(app, &books, now, &results);
                app.outages.ended();
                books.age();
                return (books, results);
            }
            Err(error) => error,
        };
        // What was decided and not written is known nowhere.
        books.clear();
        if error.is_duplicate() && !books.doubts_keys() {
            books.doubt_keys();
            continue;
        }
        if !error.asks_for_retry() || attempt == ATTEMPTS {
            return (books, refuse_all(app, &error, asks.len()));
        }
        tracing::warn!(%error, attempt, "the gate's transaction is tried again");
        attempt += 1;
    }
}

/// What everyone is told whose batch could not be written.
pub(super) fn refuse_all(
    app: &App,
    error: &StoreError,
    requests: usize,
) -> Vec<Result<Decided, GateError>> {
    tracing::error!(%error, requests, "the gate cannot count");
    // A row that cannot be read is no outage; and a database that only asks for the same once more
    // is not away for everybody else.
    if error.is_outage() && !error.asks_for_retry() {
        app.outages.began(app.clock.now());
    }
    let refusal = || match error.is_outage() {
        true => GateError::NotTaken,
        false => GateError::Unavailable(None),
    };
    (0..requests).map(|_| Err(refusal())).collect()
}

async fn try_once(
    app: &App,
    line: &Line,
    books: &mut Books,
    asks: &[Ask],
) -> Result<(Timestamp, Vec<Result<Decided, GateError>>), StoreError> {
    let mut tx = app.store.begin_on(line).await?;
    let now = tx.now;
    let alone = app.store.is_ours_alone();
    if alone && books.is_kept() {
        let changed = tx.take_changed();
        outage::forget(app, changed.as_ref());
        books.forget(changed);
    }
    let mut batch = Batch::new(app, if alone { books.lend() } else { books.blank() });
    batch.begin(now);
    batch.load(&mut tx, asks).await?;
    let results = asks.iter().map(|ask| batch.decide_on(ask)).collect();
    batch.close().put(&mut tx).await?;
    tx.commit().await?;
    match alone {
        true => *books = batch.books,
        false => books.take_over(batch.books),
    }
    Ok((now, results))
}

/// What a batch knows and what it is going to write.
pub(super) struct Batch {
    pub app: App,
    pub now: Timestamp,
    pub plan_version: i64,
    pub catalog: Arc<Catalog>,
    pub books: Books,
    pub remembered: HashMap<(CustomerId, String), Remembered>,
    pub reservations: HashMap<ReservationId, Reservation>,
    pub touched: HashSet<CounterKey>,
    /// What was decided on, if others may have changed it by the time it is written: customers'
    /// revisions, and counters as they were before this batch.
    seen: Option<HashMap<CounterKey, (i64, Entry)>>,
    pub holds: HashSet<ReservationId>,
    events: Vec<NewEvent>,
    draws: Vec<NewDraw>,
    notices: Vec<Notice>,
    meter_events: Vec<NewMeterEvent>,
}

/// What there is to write of a batch.
pub(super) struct Writes {
    /// The plans file that all of it was decided under.
    pub plan_version: i64,
    seen: Vec<Seen>,
    events: Vec<NewEvent>,
    counters: Vec<PeriodCounter>,
    holds: Vec<Reservation>,
    draws: Vec<NewDraw>,
    notices: Vec<Notice>,
    meter_events: Vec<NewMeterEvent>,
}

impl Writes {
    async fn put(&self, tx: &mut Tx) -> Result<(), StoreError> {
        tx.put_runs(&self.events, &self.counters).await?;
        self.put_the_rest(tx).await
    }

    async fn put_the_rest(&self, tx: &mut Tx) -> Result<(), StoreError> {
        tx.put_reservations(&self.holds).await?;
        tx.put_draws(&self.draws).await?;
        for notice in &self.notices {
            tx.insert_notice(notice).await?;
        }
        for event in &self.meter_events {
            tx.insert_meter_event(event).await?;
        }
        Ok(())
    }

    /// Whether there is nothing to write but runs and their counters.
    pub fn are_runs_alone(&self) -> bool {
        self.holds.is_empty()
            && self.draws.is_empty()
            && self.notices.is_empty()
            && self.meter_events.is_empty()
    }

    /// Writes all of it as the transaction that `tx` is yet to begin on this line, if what it was
    /// decided on still holds; answers whether it does.
    pub async fn commit(&self, store: &Store, tx: Tx, line: &Line) -> Result<bool, StoreError> {
        if self.are_runs_alone() {
            return tx.commit_runs(&self.seen, &self.events, &self.counters).await;
        }
        let mut tx = store.begin_held(tx, line).await?;
        if !tx.put_runs_on(&self.seen, &self.events, &self.counters).await? {
            return Ok(false);
        }
        self.put_the_rest(&mut tx).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// A customer's counter, and what it may use, at the moment of a decision.
struct Stand<'c> {
    period: BillingPeriod,
    key: CounterKey,
    counter: Counter,
    allowance: Option<Allowance<'c>>,
}

impl Batch {
    pub fn new(app: &App, books: Books) -> Self {
        let (plan_version, catalog) = app.plans.active();
        Self {
            app: app.clone(),
            now: app.clock.now(),
            plan_version,
            catalog,
            books,
            remembered: HashMap::new(),
            reservations: HashMap::new(),
            touched: HashSet::new(),
            seen: None,
            holds: HashSet::new(),
            events: Vec::new(),
            draws: Vec::new(),
            notices: Vec::new(),
            meter_events: Vec::new(),
        }
    }

    /// The same for decisions ahead of the transaction that writes them.
    pub fn ahead(app: &App, books: Books) -> Self {
        let seen = (!app.store.is_ours_alone()).then(HashMap::new);
        Self { seen, ..Self::new(app, books) }
    }

    /// What is decided from here on is decided at `now`.
    pub fn begin(&mut self, now: Timestamp) {
        self.now = now;
        (self.plan_version, self.catalog) = self.app.plans.active();
    }

    /// Takes what there is to write; the books stay, and say how it will be then.
    pub fn close(&mut self) -> Writes {
        let books = &self.books;
        let counter = |key: CounterKey| {
            let Entry { period_end, counter, .. } = books.get(&key.customer_id)?.entry(&key)?;
            Some((key.clone(), *period_end, counter.clone()))
        };
        let counters = self.touched.drain().filter_map(counter).collect();
        let reservations = &self.reservations;
        let holds = self.holds.drain().filter_map(|id| reservations.get(&id)).cloned().collect();
        self.reservations.clear();
        self.remembered.clear();
        let seen = self.seen.iter_mut().flat_map(HashMap::drain);
        let mut seen: Vec<Seen> =
            seen.map(|(key, (revision, e))| (revision, (key, e.period_end, e.counter))).collect();
        seen.sort_unstable_by(|(_, (a, ..)), (_, (b, ..))| a.customer_id.cmp(&b.customer_id));
        Writes {
            plan_version: self.plan_version,
            seen,
            events: std::mem::take(&mut self.events),
            counters,
            holds,
            draws: std::mem::take(&mut self.draws),
            notices: std::mem::take(&mut self.notices),
            meter_events: std::mem::take(&mut self.meter_events),
        }
    }

    /// Whether the books say all that a request's decision needs; its key is another matter.
    pub fn knows(&mut self, ask: &Ask) -> bool {
        let Ask::Run(request) = ask else { return false };
        if !self.books.recall(&request.customer_id) {
            return false;
        }
        let found = self.books.get_mut_and_terms(&request.customer_id);
        let Some((account, kept)) = found else { return false };
        if request.units(&self.catalog, kept.unwrap_or(&self.catalog)).is_err() {
            return false;
        }
        let now = self.now;
        account.enter_period(now);
        let key = counter_key(&account.customer, &request.feature_id, account.period_at(now));
        let terms = account.customer.terms_version;
        // Only what has a row can be compared, and quotas have no revision of their own.
        let comparable = |entry: &Entry| entry.as_stored && !account.customer.has_quotas;
        account.entry(&key).is_some_and(|entry| self.seen.is_none() || comparable(entry))
            && terms.is_none_or(|version| self.books.terms.contains_key(&version))
    }

    pub fn decide_on(&mut self, ask: &Ask) -> Result<Decided, GateError> {
        match ask {
            Ask::Run(request) => self.run(request),
            Ask::Settle(settlement) => self.settle(settlement),
            Ask::Journalled(event) => self.journalled(event),
        }
    }

    fn run(&mut self, request: &Request) -> Result<Decided, GateError> {
        let event_key = request
            .event_key()
            .unwrap_or_else(|| EventKey::Own(self.app.entropy.id("evt", self.now)));
        let Some(account) = self.books.get(&request.customer_id) else {
            // Who comes with data is still unknown only if the request was no reason to create it.
            let refusal = request.customer_data.as_ref().and(self.units(request).err());
            return Err(refusal.unwrap_or(GateError::UnknownCustomer));
        };
        let request_key = event_key.request_key();
        let known = self.remembered.get(&(request.customer_id.clone(), request_key.clone()));
        if let Some(known) = known {
            return match known.request_hash.as_deref() == event_key.request_hash() {
                true => Ok((known.facts.clone(), known.plan_version)),
                false => Err(GateError::KeyReused),
            };
        }
        let (key, facts) = self.decide(request, account, &event_key)?;
        if let Some(seen) = &mut self.seen
            && let Some(entry) = account.entry(&key)
        {
            let revision = account.customer.revision;
            seen.entry(key.clone()).or_insert_with(|| (revision, entry.clone()));
        }
        let metered = self.apply(&key, &facts, &request_key, None);
        let entity_id = request.entity_id.as_ref().map(ToString::to_string);
        self.hold(&key, &facts, entity_id.as_deref());
        // Whatever moves a counter has a row, by which the database refuses it a second time.
        if facts.counted > 0 || facts.hold.is_some() || request.key.is_some() {
            self.remember(NewEvent {
                series: key.series,
                key: event_key,
                entity_id,
                plan_version: self.plan_version,
                metered,
                run: request.said.run.clone(),
                cost_picodollars: self.cost(&request.said.run, facts.counted),
                properties: request.said.properties.clone(),
                facts: facts.clone(),
            });
        }
        Ok((facts, self.plan_version))
    }

    /// Counts a run as it was answered in an outage, unless it is counted already.
    fn journalled(&mut self, event: &NewEvent) -> Result<Decided, GateError> {
        let id = &event.facts.customer_id;
        let known = |key: &EventKey| self.remembered.get(&(id.clone(), key.request_key()));
        let own = journalled_own_key(event);
        let taken = |known: &Remembered| {
            known.facts.counted > 0 && known.request_hash.as_deref() == event.key.request_hash()
        };
        if let Some(known) = known(&event.key).filter(|known| taken(known)).or(known(&own)) {
            return Ok((known.facts.clone(), known.plan_version));
        }
        // Its key has got another answer meanwhile, or had one before: the run took place all the
        // same, and is counted by itself.
        let key = if known(&event.key).is_some() { own } else { event.key.clone() };
        let account = self.books.get(id).ok_or(GateError::UnknownCustomer)?;
        let mut event = NewEvent { key, ..event.clone() };
        let current = account.period_at(self.now);
        let answered_on = journalled_key(&event);
        let end = account.entry(&answered_on).map_or(event.facts.period.end, |own| own.period_end);
        let decided_at = event.facts.decided_at;
        let reportable = event.series == account.customer.tier.cycle.series
            && (current.start <= event.facts.period.start || decided_at < current.start)
            && decided_at < end
            && self.now < end.plus(REPORTABLE_FOR);
        if !reportable {
            // As with a run that was committed too late for its period, or for its subscription.
            event.facts.period = current;
            event.series = account.customer.tier.cycle.series;
        }
        let (facts, request_key) = (event.facts.clone(), event.key.request_key());
        let plan_version = event.plan_version;
        let metered = self.apply(&journalled_key(&event), &facts, &request_key, None);
        self.remember(NewEvent { metered, ..event });
        Ok((facts, plan_version))
    }

    /// What is to be said of a run, and which counter it is counted on.
    fn decide(
        &self,
        request: &Request,
        account: &Account,
        event_key: &EventKey,
    ) -> Result<(CounterKey, Facts), GateError> {
        let Request { customer_id, feature_id, intent, .. } = request;
        let terms = self.terms(account);
        let value = request.units(&self.catalog, terms)?;
        let stand = stand(account, terms, feature_id, self.now);
        let tier = &account.customer.tier;
        let entitlement = tier.entitlement(terms, stand.allowance, self.now);
        let Counter { usage, reserved, .. } = stand.counter;
        let verdict = decide(entitlement, usage, reserved, value, *intent);
        let usage = usage.saturating_add(verdict.counted);
        let until = self.now.plus(Duration::from_secs(request.hold_seconds.into()));
        let held = || hold(customer_id, &event_key.request_key(), verdict.held, until);
        let facts = Facts {
            customer_id: customer_id.clone(),
            feature_id: feature_id.clone(),
            plan_id: tier.plan(terms).map(|plan| plan.id.clone()),
            intent: *intent,
            asked: value,
            counted: verdict.counted,
            reason: verdict.reason,
            particular: particular(&account.customer, stand.allowance, usage),
            usage,
            reserved: reserved.saturating_add(verdict.held),
            period: stand.period,
            decided_at: self.now,
            event_id: (verdict.counted > 0).then(|| event_key.event_id(customer_id)),
            hold: (verdict.held > 0).then(held),
            remark: Remark::None,
        };
        Ok((stand.key, facts))
    }

    /// What a run cost us, if it was one and its model has a price.
    pub fn cost(&self, run: &RunFacts, counted: i64) -> Option<i64> {
        if counted > 0 { cost_of_run(&self.catalog.models, run, self.now) } else { None }
    }

    /// The plans file whose limits hold for a customer.
    pub fn terms<'b>(&'b self, account: &Account) -> &'b Catalog {
        let kept =
            account.customer.terms_version.and_then(|version| self.books.terms.get(&version));
        kept.unwrap_or(&self.catalog)
    }

    /// The units that a request takes, as far as its customer is known.
    pub fn units(&self, request: &Request) -> Result<i64, GateError> {
        let account = self.books.find(&request.customer_id);
        request.units(&self.catalog, account.map_or(&self.catalog, |account| self.terms(account)))
    }

    /// Moves the counter as the facts say, with all that follows: what grants pay, the metering
    /// window, and the notice of a threshold. `released` units were held for the run. Answers
    /// whether the units go to a meter.
    pub fn apply(
        &mut self,
        key: &CounterKey,
        facts: &Facts,
        request_key: &str,
        released: Option<&Reservation>,
    ) -> bool {
        let held = facts.hold.as_ref().filter(|_| facts.intent == Intent::Reserve);
        if facts.counted == 0 && held.is_none() && released.is_none() {
            return false;
        }
        let (now, plan_version, app) = (self.now, self.plan_version, &self.app);
        let Some((account, terms)) = self.books.get_mut_and_terms(&key.customer_id) else {
            return false;
        };
        let catalog = &self.catalog;
        let terms = terms.unwrap_or(catalog);
        let Some(entry) = account.entry(key).cloned() else { return false };
        let Entry { period_end, mut counter, .. } = entry;
        let before = counter.usage;
        counter.reserved += held.map_or(0, |hold| hold.units);
        if let Some(released) = released.filter(|released| released.counter == *key) {
            counter.reserved -= released.hold.units;
        }
        counter.usage = before.saturating_add(facts.counted);
        let Account { customer, quotas, .. } = &mut *account;
        let mut none = Quotas::default();
        let quotas = quotas.get_mut(&key.feature_id).unwrap_or(&mut none);
        let tier = &customer.tier;
        let allowance =
            tier.allowance(terms, key.feature_id.as_str(), quotas, counter.from_grants, now);
        if let Some(allowance) = allowance
            && facts.counted > 0
        {
            // A period that is over tells nobody any more.
            let crossed =
                crossing(&allowance, before, counter.usage).filter(|_| facts.period.contains(now));
            self.notices.extend(crossed.map(|c| notice(app, customer, facts, c, plan_version)));
            let base = allowance.base;
            let so_far = (before, counter.from_grants);
            for draw in quotas.draw(base, so_far, period_end, facts.counted, now) {
                counter.from_grants += draw.units;
                let request_key = request_key.to_owned();
                self.draws.push(NewDraw { counter: key.clone(), request_key, draw });
            }
        }
        let meter = catalog.features.get(&key.feature_id).and_then(|f| f.stripe_meter.as_ref());
        let metered = match (meter, &customer.stripe_customer_id) {
            (Some(event_name), Some(stripe_id)) if facts.counted > 0 => {
                let window = catalog.metering_window;
                let period = BillingPeriod { start: facts.period.start, end: period_end };
                let closed = counter.meter(facts.counted, now, period, window, event_name);
                let billed = tier.subscription.is_some();
                self.meter_events.extend(
                    closed.map(|w| meter_event(app, now, key, period_end, stripe_id, w, billed)),
                );
                true
            }
            _ => false,
        };
        account.put(key, Entry { period_end, counter, as_stored: true });
        self.touched.insert(key.clone());
        metered
    }

    fn hold(&mut self, key: &CounterKey, facts: &Facts, entity_id: Option<&str>) {
        let Some(hold) = &facts.hold else { return };
        let reservation = Reservation {
            hold: hold.clone(),
            counter: key.clone(),
            period_end: facts.period.end,
            entity_id: entity_id.map(str::to_owned),
            created_at: self.now,
            settled_at: None,
        };
        self.holds.insert(hold.id.clone());
        self.reservations.insert(hold.id.clone(), reservation);
    }

    pub fn remember(&mut self, event: NewEvent) {
        let request_hash = event.key.request_hash().map(str::to_owned);
        if request_hash.is_some() {
            let key = (event.facts.customer_id.clone(), event.key.request_key());
            let facts = event.facts.clone();
            let plan_version = event.plan_version;
            self.remembered.insert(key, Remembered { facts, request_hash, plan_version });
        }
        self.events.push(event);
    }
}

/// Where a customer stands with a feature now.
fn stand<'c>(
    account: &Account,
    terms: &'c Catalog,
    feature_id: &FeatureId,
    now: Timestamp,
) -> Stand<'c> {
    let tier = &account.customer.tier;
    let period = account.period_at(now);
    let key = counter_key(&account.customer, feature_id, period);
    let counter = account.entry(&key).map(|entry| entry.counter.clone()).unwrap_or_default();
    let none = Quotas::default();
    let quotas = account.quotas.get(feature_id).unwrap_or(&none);
    let allowance = tier.allowance(terms, feature_id.as_str(), quotas, counter.from_grants, now);
    Stand { period, key, counter, allowance }
}

/// The counter that a run of an outage was answered on.
pub(super) fn journalled_key(event: &NewEvent) -> CounterKey {
    CounterKey {
        customer_id: event.facts.customer_id.clone(),
        feature_id: event.facts.feature_id.clone(),
        series: event.series,
        period_start: event.facts.period.start,
    }
}

/// What a run of an outage is known by where its own key has another answer.
pub(super) fn journalled_own_key(event: &NewEvent) -> EventKey {
    EventKey::Own(format!("outage:{}", event.key.request_key()))
}

pub(super) fn counter_key(
    customer: &Customer,
    feature_id: &FeatureId,
    period: BillingPeriod,
) -> CounterKey {
    CounterKey {
        customer_id: customer.id.clone(),
        feature_id: feature_id.clone(),
        series: customer.tier.cycle.series,
        period_start: period.start,
    }
}

/// The limit in force, if it is not what the plan in the active plans file says anyway.
pub(super) fn particular(
    customer: &Customer,
    allowance: Option<Allowance<'_>>,
    usage: i64,
) -> Option<Particular> {
    let allowance = allowance?;
    (allowance.is_particular() || customer.terms_version.is_some()).then(|| Particular {
        enforcement: allowance.enforcement,
        threshold: threshold(&allowance, usage),
    })
}

/// The notice of a threshold that a customer has come to.
pub(super) fn notice(
    app: &App,
    customer: &Customer,
    facts: &Facts,
    crossed: Crossing,
    plan_version: i64,
) -> Notice {
    let (kind, mark) = match crossed {
        Crossing::Cap => (NoticeKind::CapReached, Mark::Percent(100)),
        Crossing::Nudge(mark) => (NoticeKind::UsageNudge, mark),
    };
    Notice {
        notice_id: app.entropy.id("ntc", facts.decided_at),
        customer_id: customer.id.clone(),
        feature_id: facts.feature_id.clone(),
        series: customer.tier.cycle.series,
        period: facts.period,
        kind,
        mark,
        entitlement_version: customer.tier.entitlement_version,
        state: NoticeState::Due,
        usage_units: facts.usage,
        plan_id: facts.plan_id.clone(),
        from_plan_id: None,
        plan_version,
        created_at: facts.decided_at,
        due_at: facts.decided_at,
        state_since: facts.decided_at,
        attempts: 0,
        detail: None,
    }
}

/// Freezes a closed window into a meter event for a Stripe customer; from here on nothing of it
/// changes that Stripe sees. `billed`: whether a subscription is there to bill it.
///
/// A replica whose clock is behind may count a run in a period whose last window is closed. It is
/// reported in the period's last second: Stripe bills by the timestamp, and the run is this period's.
pub(super) fn meter_event(
    app: &App,
    now: Timestamp,
    counter: &CounterKey,
    period_end: Timestamp,
    stripe_customer_id: &str,
    window: OpenWindow,
    billed: bool,
) -> NewMeterEvent {
    let period = BillingPeriod { start: counter.period_start, end: period_end };
    let identifier = app.entropy.id("tg", now);
    NewMeterEvent {
        idempotency_key: format!("{identifier}-send"),
        identifier,
        counter: counter.clone(),
        stripe_customer_id: stripe_customer_id.to_owned(),
        timestamp: window.start.min(period_end.minus(Duration::from_secs(1))),
        billable_until: billed.then(|| period.billable_until()),
        window,
    }
}
