//! What the gate knows of customers while it decides: who they are, what they may use, and how
//! much they have used.
//!
//! On SQLite one process owns the file, so what it has read stays true until it writes something
//! else: the books are kept from batch to batch, and a run by a customer that is in them costs no
//! read. On PostgreSQL other replicas write too, so what the books say is a guess there: whatever is
//! decided on them is compared with the rows by the statement that writes it, and where that finds
//! another has been faster, a transaction locks and reads them anew. The rules that decide are the
//! same, and do not know which of the two it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::ids::{CustomerId, FeatureId};
use crate::domain::period::BillingPeriod;
use crate::domain::plan::Catalog;
use crate::domain::quota::Quotas;
use crate::domain::usage::Counter;
use crate::store::usage::CounterKey;

/// How many customers one of the two generations holds. A customer with its counter takes about a
/// kilobyte, so that both take some 40 MB at most, and twice that on PostgreSQL, where two writers
/// have books.
const GENERATION: usize = 20_000;

/// For how many batches keys are looked up first after one has come twice: a caller that asks again
/// is seldom alone.
const DOUBT: u32 = 64;

/// One customer, as of the last time anyone wrote it.
pub(super) struct Account {
    pub customer: Customer,
    /// The billing period that was last in force.
    period: Option<BillingPeriod>,
    pub quotas: HashMap<FeatureId, Quotas>,
    counters: Vec<(CounterKey, Entry)>,
}

/// A counter, with the end of its period.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub period_end: Timestamp,
    pub counter: Counter,
    /// Whether it has a row that says the same, or will have one when the batch that moves it is
    /// written.
    pub as_stored: bool,
}

impl Account {
    pub fn new(customer: Customer) -> Self {
        Self { customer, period: None, quotas: HashMap::new(), counters: Vec::new() }
    }

    /// The billing period in force at `now`.
    pub fn period_at(&self, now: Timestamp) -> BillingPeriod {
        let still = self.period.filter(|period| period.contains(now));
        still.unwrap_or_else(|| self.customer.tier.cycle.period_at(now))
    }

    /// Reckons the period once for all that come in it.
    pub fn enter_period(&mut self, now: Timestamp) {
        self.period = Some(self.period_at(now));
    }

    pub fn entry(&self, key: &CounterKey) -> Option<&Entry> {
        self.counters.iter().find(|(known, _)| known == key).map(|(_, entry)| entry)
    }

    pub fn put(&mut self, key: &CounterKey, entry: Entry) {
        match self.counters.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = entry,
            None => self.counters.push((key.clone(), entry)),
        }
    }
}

/// The accounts that are known. The least recently used are forgotten, a generation at a time.
#[derive(Default)]
pub(super) struct Books {
    /// Whether they are the writer's, who is told what others change.
    kept: bool,
    /// Plans files whose limits some customers keep, by version.
    pub terms: HashMap<i64, Arc<Catalog>>,
    /// How many more batches look their keys up before they decide.
    doubt: u32,
    young: HashMap<CustomerId, Account>,
    old: HashMap<CustomerId, Account>,
}

impl Books {
    /// The writer's own.
    pub fn kept() -> Self {
        Self { kept: true, ..Self::default() }
    }

    pub fn is_kept(&self) -> bool {
        self.kept
    }

    pub fn clear(&mut self) {
        self.lend();
    }

    /// Books in which nobody is, for a transaction that locks and reads everyone it decides on.
    pub fn blank(&self) -> Self {
        Self { terms: self.terms.clone(), doubt: self.doubt, ..Self::default() }
    }

    /// Takes over what such a transaction has left behind.
    pub fn take_over(&mut self, others: Self) {
        self.terms = others.terms;
        self.old.retain(|id, _| !others.young.contains_key(id));
        self.young.extend(others.young);
    }

    /// Takes all there is to know out, for as long as it is being changed.
    pub fn lend(&mut self) -> Self {
        let left = Self {
            kept: self.kept,
            terms: self.terms.clone(),
            doubt: self.doubt,
            ..Self::default()
        };
        std::mem::replace(self, left)
    }

    /// Notes that a key came twice.
    pub fn doubt_keys(&mut self) {
        self.doubt = DOUBT;
    }

    /// Whether a key may well have been answered before.
    pub fn doubts_keys(&self) -> bool {
        self.doubt > 0
    }

    /// Forgets what others may have changed; everything, if that is not known.
    pub fn forget(&mut self, changed: Option<HashSet<CustomerId>>) {
        match changed {
            None => self.clear(),
            Some(ids) => {
                for id in &ids {
                    self.young.remove(id);
                    self.old.remove(id);
                }
            }
        }
    }

    /// Whether the customer is known; one that is stays so for the length of this batch.
    pub fn recall(&mut self, id: &CustomerId) -> bool {
        if let Some(account) = self.old.remove(id) {
            self.young.insert(id.clone(), account);
        }
        self.young.contains_key(id)
    }

    /// The same without recalling it.
    pub fn find(&self, id: &CustomerId) -> Option<&Account> {
        self.young.get(id).or_else(|| self.old.get(id))
    }

    pub fn get(&self, id: &CustomerId) -> Option<&Account> {
        self.young.get(id)
    }

    pub fn get_mut(&mut self, id: &CustomerId) -> Option<&mut Account> {
        self.young.get_mut(id)
    }

    /// The account to be changed, and the plans file whose limits its customer keeps, if it does.
    pub fn get_mut_and_terms(
        &mut self,
        id: &CustomerId,
    ) -> Option<(&mut Account, Option<&Catalog>)> {
        let account = self.young.get_mut(id)?;
        let kept = account.customer.terms_version.and_then(|version| self.terms.get(&version));
        Some((account, kept.map(Arc::as_ref)))
    }

    pub fn insert(&mut self, account: Account) {
        self.young.insert(account.customer.id.clone(), account);
    }

    /// Makes room between two batches.
    pub fn age(&mut self) {
        self.doubt = self.doubt.saturating_sub(1);
        if self.young.len() > GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::customer::{Profile, Tier};

    fn account(id: &str) -> Account {
        let now = Timestamp::from_seconds(0);
        Account::new(Customer {
            id: id.parse().unwrap(),
            profile: Profile::default(),
            stripe_customer_id: None,
            created_at: now,
            tier: Tier::initial(now),
            terms_version: None,
            has_quotas: false,
            revision: 1,
        })
    }

    #[test]
    fn who_was_changed_by_others_is_forgotten_and_everyone_if_that_is_not_known() {
        let mut books = Books::default();
        for id in ["ann", "bob"] {
            books.insert(account(id));
        }
        books.forget(Some(HashSet::from(["ann".parse().unwrap()])));
        assert!(!books.recall(&"ann".parse().unwrap()) && books.recall(&"bob".parse().unwrap()));
        books.forget(None);
        assert!(!books.recall(&"bob".parse().unwrap()));
    }

    #[test]
    fn who_asks_often_is_remembered_and_the_others_make_room() {
        let mut books = Books::default();
        let regular: CustomerId = "regular".parse().unwrap();
        books.insert(account("regular"));
        for n in 0..4 * GENERATION {
            books.insert(account(&format!("passer-by-{n}")));
            books.age();
            assert!(n % 1000 != 0 || books.recall(&regular));
        }
        assert!(books.young.len() + books.old.len() <= 2 * (GENERATION + 1));
    }
}
