//! What a batch has to know before it decides: reservations, customers with their quotas, remembered
//! answers, counters. Each is one read for the whole batch, of what the books do not have.
//!
//! Most keys are new, and one that is not shows when its row is written: it is there already. So
//! remembered answers are read only by a batch that was thrown back for that, and by those that
//! come soon after it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::batch::{Batch, counter_key, journalled_key, journalled_own_key};
use super::books::{Account, Entry};
use super::request::{Ask, Request};
use crate::clock::Timestamp;
use crate::domain::customer::{Customer, Profile, Tier};
use crate::domain::ids::{CustomerId, ReservationId};
use crate::domain::usage::Counter;
use crate::store::usage::CounterKey;
use crate::store::{StoreError, Tx};

impl Batch {
    /// Locks and reads what the books do not say.
    pub async fn load(&mut self, tx: &mut Tx, asks: &[Ask]) -> Result<(), StoreError> {
        self.load_reservations(tx, asks).await?;
        let locked = self.load_customers(tx, asks).await?;
        if locked && !self.app.store.is_ours_alone() {
            // Now that their customers are locked, nobody else settles them.
            self.load_reservations(tx, asks).await?;
        }
        if self.books.doubts_keys() || asks.iter().any(|ask| self.may_be_old(ask)) {
            self.load_remembered(tx, asks).await?;
        }
        self.load_counters(tx, asks).await
    }

    /// Whether what a request was answered before has to be known, because it will not show by its
    /// row being there already.
    fn may_be_old(&self, ask: &Ask) -> bool {
        match ask {
            Ask::Run(request) => request.key.is_some() && self.units(request).is_err(),
            Ask::Settle(_) | Ask::Journalled(_) => true,
        }
    }

    async fn load_reservations(&mut self, tx: &mut Tx, asks: &[Ask]) -> Result<(), StoreError> {
        let mut ids: Vec<&ReservationId> = asks
            .iter()
            .filter_map(|ask| match ask {
                Ask::Run(_) | Ask::Journalled(_) => None,
                Ask::Settle(settlement) => Some(&settlement.reservation_id),
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            let found = tx.reservations(&ids).await?;
            self.reservations = found.into_iter().map(|r| (r.hold.id.clone(), r)).collect();
        }
        Ok(())
    }

    /// The customers of the batch, locked where that is needed, those that are new and come with
    /// their data created first. Answers whether any were read.
    async fn load_customers(&mut self, tx: &mut Tx, asks: &[Ask]) -> Result<bool, StoreError> {
        let runs = || {
            asks.iter().filter_map(|ask| match ask {
                Ask::Run(request) => Some(request),
                Ask::Settle(_) | Ask::Journalled(_) => None,
            })
        };
        let journalled = asks.iter().filter_map(|ask| match ask {
            Ask::Journalled(event) => Some(&event.facts.customer_id),
            Ask::Run(_) | Ask::Settle(_) => None,
        });
        // The writer's own books have not seen these.
        tx.note_changes(journalled.clone());
        let held = self.reservations.values().map(|r| &r.counter.customer_id).chain(journalled);
        let all: HashSet<&CustomerId> =
            runs().map(|request| &request.customer_id).chain(held).collect();
        let mut unknown: Vec<CustomerId> =
            all.into_iter().filter(|id| !self.books.recall(id)).cloned().collect();
        if unknown.is_empty() {
            return Ok(false);
        }
        unknown.sort_unstable();
        let mut found = tx.lock_customers(&unknown.iter().collect::<Vec<_>>()).await?;
        // In order of id too, so that two replicas that create the same customers cannot deadlock.
        let mut created = Vec::new();
        let known: HashSet<_> = found.iter().map(|customer| customer.id.clone()).collect();
        for id in unknown.iter().filter(|id| !known.contains(*id)) {
            // A request that is going to be refused creates nobody.
            let asks = |r: &&Arc<Request>| r.customer_id == *id && self.units(r).is_ok();
            if let Some(profile) = runs().filter(asks).find_map(|r| r.customer_data.clone()) {
                create_customer(tx, id, profile).await?;
                created.push(id);
            }
        }
        if !created.is_empty() {
            found.extend(tx.lock_customers(&created).await?);
        }
        self.open_accounts(tx, found).await?;
        Ok(true)
    }

    /// Takes customers into the books, with their quotas and the plans files that they keep.
    async fn open_accounts(&mut self, tx: &mut Tx, found: Vec<Customer>) -> Result<(), StoreError> {
        let particular: Vec<_> =
            found.iter().filter(|customer| customer.has_quotas).map(|c| c.id.clone()).collect();
        for customer in found {
            if let Some(version) = customer.terms_version
                && !self.books.terms.contains_key(&version)
            {
                let catalog = self.app.plans.version(version, &self.app.store).await?;
                self.books.terms.insert(version, catalog);
            }
            self.books.insert(Account::new(customer));
        }
        if !particular.is_empty() {
            let ids: Vec<_> = particular.iter().collect();
            for ((id, feature_id), quotas) in tx.quotas(&ids).await? {
                if let Some(account) = self.books.get_mut(&id) {
                    account.quotas.insert(feature_id, quotas);
                }
            }
        }
        Ok(())
    }

    async fn load_remembered(&mut self, tx: &mut Tx, asks: &[Ask]) -> Result<(), StoreError> {
        let keys: Vec<(&CustomerId, String)> = asks
            .iter()
            .filter_map(|ask| match ask {
                Ask::Run(request) => {
                    Some((&request.customer_id, request.event_key()?.request_key()))
                }
                Ask::Journalled(event) => Some((&event.facts.customer_id, event.key.request_key())),
                Ask::Settle(settlement) => {
                    let reservation = self.reservations.get(&settlement.reservation_id)?;
                    let key = format!("r:{}", settlement.reservation_id);
                    Some((&reservation.counter.customer_id, key))
                }
            })
            .collect();
        let own = asks.iter().filter_map(|ask| match ask {
            Ask::Journalled(event) => {
                let key = journalled_own_key(event).request_key();
                Some((&event.facts.customer_id, key))
            }
            Ask::Run(_) | Ask::Settle(_) => None,
        });
        let keys: Vec<_> = keys.into_iter().chain(own).collect();
        if !keys.is_empty() {
            let found = tx.remembered(&keys).await?;
            self.remembered = found.into_iter().collect();
        }
        Ok(())
    }

    /// The counters that the batch may move and that are not in the books; those that are not in the
    /// database either begin at zero.
    async fn load_counters(&mut self, tx: &mut Tx, asks: &[Ask]) -> Result<(), StoreError> {
        let mut wanted: HashMap<CounterKey, Timestamp> = HashMap::new();
        for ask in asks {
            let (customer_id, feature_id) = match ask {
                Ask::Run(request) => (&request.customer_id, &request.feature_id),
                Ask::Journalled(event) => {
                    wanted.insert(journalled_key(event), event.facts.period.end);
                    (&event.facts.customer_id, &event.facts.feature_id)
                }
                Ask::Settle(settlement) => {
                    match self.reservations.get(&settlement.reservation_id) {
                        Some(r) => (&r.counter.customer_id, &r.counter.feature_id),
                        None => continue,
                    }
                }
            };
            let Some(account) = self.books.get(customer_id) else { continue };
            let period = account.period_at(self.now);
            let key = counter_key(&account.customer, feature_id, period);
            if account.entry(&key).is_none() {
                wanted.insert(key, period.end);
            }
        }
        for reservation in self.reservations.values() {
            let account = self.books.get(&reservation.counter.customer_id);
            if account.is_some_and(|account| account.entry(&reservation.counter).is_none()) {
                wanted.entry(reservation.counter.clone()).or_insert(reservation.period_end);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = wanted.keys().cloned().collect();
        let found = tx.counters(&keys).await?;
        let zero = |(key, end)| ((key, end, Counter::default()), false);
        let found = found.into_iter().map(|counter| (counter, true));
        // What is found comes last, in place of the zero.
        for ((key, period_end, counter), has_row) in wanted.into_iter().map(zero).chain(found) {
            let now = self.now;
            if let Some(account) = self.books.get_mut(&key.customer_id) {
                // Stripe may have moved the end of the period in force since it was written.
                let current = account.period_at(now);
                let is_current = counter_key(&account.customer, &key.feature_id, current) == key;
                let end = if is_current { current.end } else { period_end };
                let as_stored = has_row && end == period_end;
                account.put(&key, Entry { period_end: end, counter, as_stored });
            }
        }
        Ok(())
    }
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
        terms_version: None,
        has_quotas: false,
        revision: 1,
    };
    if tx.insert_customer(&customer).await? {
        tx.unpark_events(id, None).await?;
    }
    Ok(())
}
