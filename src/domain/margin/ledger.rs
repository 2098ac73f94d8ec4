//! Takes runs one by one and keeps a few numbers per customer.

use std::collections::{BTreeMap, HashMap};

use super::months::Months;
use super::replay::Side;
use super::tariff::Tariff;
use crate::clock::Timestamp;
use crate::domain::cost::Tokens;

/// A run that was accepted, or would have been without a gate.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub customer_id: &'a str,
    /// The index of the customer's plan in today's tariff, if the source says so.
    pub plan: Option<usize>,
    pub at: Timestamp,
    pub units: i64,
    pub model: &'a str,
    pub tokens: Tokens,
    /// In picodollars; `None` if it has no price.
    pub cost: Option<i64>,
}

/// The half-open span of time to report on; what is not given follows from the runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// What is kept of one customer.
#[derive(Debug)]
pub(super) struct Account {
    pub id: Box<str>,
    /// The last one that was named.
    pub plan: usize,
    pub units: i64,
    /// Those of `units` whose cost is known.
    pub priced_units: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cost: i128,
    last_run: Timestamp,
}

/// The customers of a period and what they used.
#[derive(Debug)]
pub struct Ledger {
    pub(super) today: Side,
    pub(super) changed: Option<Side>,
    pub(super) span: Span,
    pub(super) months: Months,
    index: HashMap<Box<str>, usize>,
    pub(super) accounts: Vec<Account>,
    pub(super) unpriced: BTreeMap<String, u64>,
    pub(super) first_run: Option<Timestamp>,
    pub(super) last_run: Option<Timestamp>,
    pub(super) out_of_order: u64,
    pub(super) outside: u64,
}

/// How many unknown models are told apart; a column of garbage must not fill the memory.
const MAX_UNPRICED_MODELS: usize = 1000;
const OTHER_MODELS: &str = "(others)";

impl Ledger {
    /// `changed` is the tariff to test against the same runs.
    ///
    /// # Errors
    /// The id of a plan that the changed tariff lacks: its customers would have nowhere to be.
    pub fn new(today: Tariff, changed: Option<Tariff>, span: Span) -> Result<Self, String> {
        let changed = changed.map(|changed| Side::beside(&today, changed)).transpose()?;
        Ok(Self {
            today: Side::new(today),
            changed,
            span,
            months: Months::new(span.from),
            index: HashMap::new(),
            accounts: Vec::new(),
            unpriced: BTreeMap::new(),
            first_run: None,
            last_run: None,
            out_of_order: 0,
            outside: 0,
        })
    }

    pub fn tariff(&self) -> &Tariff {
        &self.today.tariff
    }

    /// Makes a customer known, with or without runs. Without a plan it is on the default one.
    pub fn customer(&mut self, id: &str, plan: Option<usize>) -> usize {
        let at = match self.index.get(id) {
            Some(at) => *at,
            None => self.open(id),
        };
        if let Some(plan) = plan {
            self.accounts[at].plan = plan;
        }
        at
    }

    fn open(&mut self, id: &str) -> usize {
        let at = self.accounts.len();
        self.index.insert(id.into(), at);
        self.accounts.push(Account {
            id: id.into(),
            plan: self.today.tariff.default,
            units: 0,
            priced_units: 0,
            input_tokens: 0,
            output_tokens: 0,
            cost: 0,
            last_run: Timestamp::from_ms(i64::MIN),
        });
        for side in std::iter::once(&mut self.today).chain(&mut self.changed) {
            side.open();
        }
        at
    }

    /// Books a run; one outside the span is only counted.
    pub fn record(&mut self, run: &Run<'_>) {
        let Span { from, to } = self.span;
        if from.is_some_and(|from| run.at < from) {
            // Who ran before is a customer, if one without a run in the span.
            self.customer(run.customer_id, run.plan);
            self.outside += 1;
            return;
        }
        if to.is_some_and(|to| run.at >= to) {
            self.outside += 1;
            return;
        }
        let month_start = self.months.of(run.at).start;
        self.first_run = Some(self.first_run.map_or(run.at, |first| first.min(run.at)));
        self.last_run = Some(self.last_run.map_or(run.at, |last| last.max(run.at)));
        let at = self.customer(run.customer_id, run.plan);
        let account = &mut self.accounts[at];
        // Beyond 64 bits lies nothing but made-up input, which must not stop the reader.
        account.units = account.units.saturating_add(run.units);
        account.input_tokens = account.input_tokens.saturating_add(run.tokens.input);
        account.output_tokens = account.output_tokens.saturating_add(run.tokens.output);
        match run.cost {
            Some(cost) => {
                account.cost += i128::from(cost);
                account.priced_units += run.units;
            }
            None => count_unpriced(&mut self.unpriced, run.model),
        }
        if run.at < account.last_run {
            self.out_of_order += 1;
        } else {
            account.last_run = run.at;
        }
        let plan = account.plan;
        for side in std::iter::once(&mut self.today).chain(&mut self.changed) {
            side.take(at, plan, run, month_start);
        }
    }
}

fn count_unpriced(unpriced: &mut BTreeMap<String, u64>, model: &str) {
    let known = unpriced.contains_key(model) || unpriced.len() < MAX_UNPRICED_MODELS;
    let name = if known { model } else { OTHER_MODELS };
    match unpriced.get_mut(name) {
        Some(runs) => *runs += 1,
        None => {
            unpriced.insert(name.to_owned(), 1);
        }
    }
}
