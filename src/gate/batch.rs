//! One batch of the gate's writer: load, decide in order, write, commit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Decided, GateError, Request};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::answer::Facts;
use crate::domain::customer::{Customer, Profile, Tier};
use crate::domain::decision::{Crossing, Entitlement, crossing, decide};
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::notice::{NoticeKind, NoticeState};
use crate::domain::period::BillingPeriod;
use crate::domain::plan::Catalog;
use crate::domain::usage::{Counter, OpenWindow};
use crate::store::notices::Notice;
use crate::store::outbox::NewMeterEvent;
use crate::store::usage::{CounterKey, NewEvent, Remembered};
use crate::store::{StoreError, Tx};

/// How often a batch is tried when the database asks for it.
const ATTEMPTS: u32 = 3;

/// Decides a batch and makes it durable; one result per request, in order.
pub(super) async fn run(app: &App, requests: &[Request]) -> Vec<Result<Decided, GateError>> {
    for attempt in 1..=ATTEMPTS {
        match try_once(app, requests).await {
            Ok(results) => return results,
            Err(error) if error.asks_for_retry() && attempt < ATTEMPTS => {
                tracing::warn!(%error, attempt, "the gate's transaction is tried again");
            }
            Err(error) => {
                tracing::error!(%error, requests = requests.len(), "the gate cannot count");
                break;
            }
        }
    }
    requests.iter().map(|_| Err(GateError::Unavailable(None))).collect()
}

async fn try_once(
    app: &App,
    requests: &[Request],
) -> Result<Vec<Result<Decided, GateError>>, StoreError> {
    let mut tx = app.store.begin().await?;
    let mut batch = Batch::load(app, &mut tx, requests).await?;
    let results = requests.iter().map(|request| batch.decide(app, request)).collect();
    batch.write(&mut tx).await?;
    tx.commit().await?;
    Ok(results)
}

/// What a batch knows and what it is going to write.
struct Batch {
    now: Timestamp,
    plan_version: i64,
    catalog: Arc<Catalog>,
    customers: HashMap<CustomerId, Customer>,
    remembered: HashMap<(CustomerId, String), Remembered>,
    counters: HashMap<CounterKey, (BillingPeriod, Counter)>,
    touched: HashSet<CounterKey>,
    events: Vec<NewEvent>,
    notices: Vec<Notice>,
    meter_events: Vec<NewMeterEvent>,
}

impl Batch {
    async fn load(app: &App, tx: &mut Tx, requests: &[Request]) -> Result<Self, StoreError> {
        let (plan_version, catalog) = app.plans.active();
        let customers = load_customers(tx, &catalog, requests).await?;
        let keyed: Vec<_> = requests
            .iter()
            .filter_map(|r| r.key.as_ref().map(|key| (&r.customer_id, key.key.as_str())))
            .collect();
        let remembered = if keyed.is_empty() {
            HashMap::new()
        } else {
            tx.remembered(&keyed).await?.into_iter().collect()
        };
        let mut counters = HashMap::new();
        for request in requests {
            if let Some(customer) = customers.get(&request.customer_id) {
                let period = customer.tier.cycle.period_at(tx.now);
                let key = counter_key(customer, &request.feature_id, period);
                counters.insert(key, (period, Counter::default()));
            }
        }
        let wanted: Vec<_> = counters.keys().cloned().collect();
        for (key, counter) in tx.counters(&wanted).await? {
            if let Some((_, known)) = counters.get_mut(&key) {
                *known = counter;
            }
        }
        Ok(Self {
            now: tx.now,
            plan_version,
            catalog,
            customers,
            remembered,
            counters,
            touched: HashSet::new(),
            events: Vec::new(),
            notices: Vec::new(),
            meter_events: Vec::new(),
        })
    }

    fn decide(&mut self, app: &App, request: &Request) -> Result<Decided, GateError> {
        let Some(customer) = self.customers.get(&request.customer_id) else {
            // Who comes with data is still unknown only if the feature was no reason to create it.
            return Err(match request.customer_data {
                Some(_) => GateError::UnknownFeature,
                None => GateError::UnknownCustomer,
            });
        };
        if let Some(key) = &request.key {
            let known = self.remembered.get(&(customer.id.clone(), key.key.to_string()));
            if let Some(known) = known {
                let same = known.request_hash == key.request_hash;
                return if same {
                    Ok((known.facts.clone(), known.plan_version))
                } else {
                    Err(GateError::KeyReused)
                };
            }
        }
        if !self.catalog.features.contains_key(&request.feature_id) {
            return Err(GateError::UnknownFeature);
        }
        let period = customer.tier.cycle.period_at(self.now);
        let key = counter_key(customer, &request.feature_id, period);
        let counter =
            self.counters.get(&key).map(|(_, counter)| counter.clone()).unwrap_or_default();
        let entitlement =
            customer.tier.entitlement(&self.catalog, request.feature_id.as_str(), self.now);
        let verdict =
            decide(entitlement, counter.usage, counter.reserved, request.value, request.intent);
        let facts = Facts {
            customer_id: customer.id.clone(),
            feature_id: request.feature_id.clone(),
            plan_id: customer.tier.plan(&self.catalog).map(|plan| plan.id.clone()),
            intent: request.intent,
            asked: request.value,
            counted: verdict.counted,
            reason: verdict.reason,
            usage: counter.usage.saturating_add(verdict.counted),
            reserved: counter.reserved,
            period,
            decided_at: self.now,
            event_id: (verdict.counted > 0).then(|| app.entropy.id("evt", self.now)),
        };
        if verdict.counted > 0 {
            let crossed = match entitlement {
                Entitlement::Granted(limit) => crossing(limit, counter.usage, facts.usage),
                Entitlement::Denied(_) => None,
            };
            self.notices
                .extend(crossed.map(|c| notice(app, customer, &facts, c, self.plan_version)));
            self.count(app, key.clone(), counter, &facts);
        }
        if verdict.counted > 0 || request.key.is_some() {
            self.remember(request, &facts, key.series);
        }
        Ok((facts, self.plan_version))
    }

    /// Moves the counter, and the metering window if the usage is to be reported.
    fn count(&mut self, app: &App, key: CounterKey, mut counter: Counter, facts: &Facts) {
        counter.usage = facts.usage;
        let meter =
            self.catalog.features.get(&key.feature_id).and_then(|f| f.stripe_meter.as_ref());
        let stripe_id =
            self.customers.get(&key.customer_id).and_then(|c| c.stripe_customer_id.as_ref());
        if let (Some(event_name), Some(stripe_id)) = (meter, stripe_id) {
            let window = self.catalog.metering_window;
            let closed = counter.meter(facts.counted, self.now, facts.period, window, event_name);
            self.meter_events.extend(
                closed.map(|w| meter_event(app, self.now, &key, facts.period.end, stripe_id, w)),
            );
        }
        self.touched.insert(key.clone());
        self.counters.insert(key, (facts.period, counter));
    }

    fn remember(&mut self, request: &Request, facts: &Facts, series: i64) {
        let request_key = request.key.as_ref().map(|k| (k.key.to_string(), k.request_hash.clone()));
        if let Some((key, request_hash)) = request_key.clone() {
            let remembered =
                Remembered { facts: facts.clone(), request_hash, plan_version: self.plan_version };
            self.remembered.insert((facts.customer_id.clone(), key), remembered);
        }
        self.events.push(NewEvent {
            facts: facts.clone(),
            series,
            request: request_key,
            entity_id: request.entity_id.as_ref().map(ToString::to_string),
            plan_version: self.plan_version,
            properties: request.properties.clone(),
        });
    }

    async fn write(&self, tx: &mut Tx) -> Result<(), StoreError> {
        if !self.events.is_empty() {
            tx.insert_events(&self.events).await?;
        }
        if !self.touched.is_empty() {
            let counters: Vec<_> = self
                .touched
                .iter()
                .filter_map(|key| {
                    let (period, counter) = self.counters.get(key)?;
                    Some((key.clone(), period.end, counter.clone()))
                })
                .collect();
            tx.put_counters(&counters).await?;
        }
        for notice in &self.notices {
            tx.insert_notice(notice).await?;
        }
        for event in &self.meter_events {
            tx.insert_meter_event(event).await?;
        }
        Ok(())
    }
}

/// The customers of the batch, locked, those that are new and come with their data created first.
async fn load_customers(
    tx: &mut Tx,
    catalog: &Catalog,
    requests: &[Request],
) -> Result<HashMap<CustomerId, Customer>, StoreError> {
    let mut wanted: Vec<&CustomerId> = requests.iter().map(|r| &r.customer_id).collect();
    wanted.sort();
    wanted.dedup();
    let by_id =
        |customers: Vec<Customer>| customers.into_iter().map(|c| (c.id.clone(), c)).collect();
    let mut known: HashMap<_, _> = by_id(tx.lock_customers(&wanted).await?);
    // In order of id too, so that two replicas that create the same customers cannot deadlock.
    let mut created = Vec::new();
    for id in wanted.into_iter().filter(|id| !known.contains_key(*id)) {
        // A request that is going to be refused creates nobody.
        let asks =
            |r: &&Request| r.customer_id == *id && catalog.features.contains_key(&r.feature_id);
        let profile =
            requests.iter().filter(asks).find_map(|request| request.customer_data.clone());
        if let Some(profile) = profile {
            create_customer(tx, id, profile).await?;
            created.push(id);
        }
    }
    if !created.is_empty() {
        known.extend::<HashMap<_, _>>(by_id(tx.lock_customers(&created).await?));
    }
    Ok(known)
}

/// Creates a customer on the default plan, unless someone else just did. A payment that arrived
/// before its customer waits parked in the inbox: now it can be applied.
pub async fn create_customer(
    tx: &mut Tx,
    id: &CustomerId,
    profile: Profile,
) -> Result<(), StoreError> {
    let customer = Customer {
        id: id.clone(),
        profile,
        stripe_customer_id: None,
        created_at: tx.now,
        tier: Tier::initial(tx.now),
        revision: 1,
    };
    if tx.insert_customer(&customer).await? {
        tx.unpark_events(id, None).await?;
    }
    Ok(())
}

fn counter_key(customer: &Customer, feature_id: &FeatureId, period: BillingPeriod) -> CounterKey {
    CounterKey {
        customer_id: customer.id.clone(),
        feature_id: feature_id.clone(),
        series: customer.tier.cycle.series,
        period_start: period.start,
    }
}

fn notice(
    app: &App,
    customer: &Customer,
    facts: &Facts,
    crossed: Crossing,
    plan_version: i64,
) -> Notice {
    let (kind, percent) = match crossed {
        Crossing::Cap => (NoticeKind::CapReached, 100),
        Crossing::Nudge { percent } => (NoticeKind::UsageNudge, i64::from(percent)),
    };
    Notice {
        notice_id: app.entropy.id("ntc", facts.decided_at),
        customer_id: customer.id.clone(),
        feature_id: facts.feature_id.clone(),
        series: customer.tier.cycle.series,
        period: facts.period,
        kind,
        percent,
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

/// Freezes a closed window into a meter event for a Stripe customer; from here on none of it changes.
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
) -> NewMeterEvent {
    let identifier = app.entropy.id("tg", now);
    NewMeterEvent {
        idempotency_key: format!("{identifier}-send"),
        identifier,
        counter: counter.clone(),
        stripe_customer_id: stripe_customer_id.to_owned(),
        timestamp: window.start.min(period_end.minus(Duration::from_secs(1))),
        window,
    }
}
