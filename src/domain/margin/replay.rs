//! What the gate would have done: each customer's runs in their order against a tariff's caps.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ledger::{Ledger, Run};
use super::tariff::{Tariff, Tier};
use super::{margin_basis_points, rounded_quotient};
use crate::clock::Timestamp;
use crate::domain::cost::Picodollars;

/// One customer's way through the gate, on two paths at once: it stays at its first denial, or it
/// upgrades there and then. Either way the month's usage stays counted, as in the gate.
#[derive(Debug, Clone, Copy, Default)]
struct Replay {
    month_start_ms: i64,
    used_if_stays: i64,
    used_if_upgrades: i64,
    cost_if_stays: i128,
    cost_if_upgrades: i128,
    denied_units: i64,
    /// The first denial, and the start of its month.
    gated: Option<(Timestamp, Timestamp)>,
}

/// A tariff and every customer's way through its gate.
#[derive(Debug)]
pub(super) struct Side {
    pub tariff: Tariff,
    /// For each plan of today's tariff its index in this one.
    places: Vec<usize>,
    /// In the order of the ledger's accounts.
    replays: Vec<Replay>,
}

impl Side {
    /// Today's tariff.
    pub fn new(tariff: Tariff) -> Self {
        Self { places: (0..tariff.tiers.len()).collect(), tariff, replays: Vec::new() }
    }

    /// A changed tariff.
    ///
    /// # Errors
    /// The id of a plan of today's that it lacks: that plan's customers would have nowhere to be.
    pub fn beside(today: &Tariff, tariff: Tariff) -> Result<Self, String> {
        let place = |tier: &Tier| tariff.find(tier.id.as_str()).ok_or_else(|| tier.id.to_string());
        let places: Result<_, _> = today.tiers.iter().map(place).collect();
        Ok(Self { places: places?, tariff, replays: Vec::new() })
    }

    pub fn open(&mut self) {
        self.replays.push(Replay::default());
    }

    /// `plan` is an index in today's tariff.
    pub fn take(&mut self, account: usize, plan: usize, run: &Run<'_>, month_start: Timestamp) {
        self.replays[account].take(&self.tariff, self.places[plan], run, month_start);
    }
}

impl Replay {
    fn take(&mut self, tariff: &Tariff, plan: usize, run: &Run<'_>, month_start: Timestamp) {
        let tier = &tariff.tiers[plan];
        let cost = i128::from(run.cost.unwrap_or(0));
        // A run that comes after one of a later month finds no count to go by: it is let in.
        let in_order = month_start.ms() >= self.month_start_ms;
        if month_start.ms() > self.month_start_ms {
            self.month_start_ms = month_start.ms();
            (self.used_if_stays, self.used_if_upgrades) = (0, 0);
        }
        if in_order && self.used_if_stays.saturating_add(run.units) > tier.cap() {
            self.denied_units += run.units;
            self.gated.get_or_insert((run.at, month_start));
        } else {
            self.used_if_stays += if in_order { run.units } else { 0 };
            self.cost_if_stays += cost;
        }
        let upgraded = tier.upgrade_to.filter(|_| self.gated.is_some());
        let cap = upgraded.map_or(tier, |to| &tariff.tiers[to]).cap();
        if !in_order || self.used_if_upgrades.saturating_add(run.units) <= cap {
            self.used_if_upgrades += if in_order { run.units } else { 0 };
            self.cost_if_upgrades += cost;
        }
    }
}

/// A customer that meets a closed gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gated {
    pub customer_id: String,
    pub plan_id: String,
    /// The first run that is denied.
    pub at: Timestamp,
    /// Units denied over the whole period if the customer stays on its plan.
    pub denied_units: i64,
}

/// How many customers meet a closed gate for the first time on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DayCount {
    /// `2026-11-18`.
    pub day: String,
    pub customers: usize,
}

/// What follows if so many of the gated customers upgrade at once, and the others stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub upgrade_percent: u8,
    pub revenue_usd: Picodollars,
    pub cost_usd: Picodollars,
    pub margin_usd: Picodollars,
    pub margin_basis_points: Option<i64>,
}

/// The whole period under a tariff's gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scenario {
    pub gated_customers: usize,
    pub denied_units: i64,
    pub gated_by_day: Vec<DayCount>,
    pub outcomes: Vec<Outcome>,
    /// By moment.
    pub gated: Vec<Gated>,
}

/// Sums over customers at one end of the scale: nobody upgrades, or everybody who is gated.
#[derive(Default)]
struct End {
    revenue: i128,
    cost: i128,
}

impl Scenario {
    pub(super) fn of(
        ledger: &Ledger,
        side: &Side,
        from: Timestamp,
        months: i64,
        percents: &[u8],
    ) -> Self {
        let (mut stay, mut upgrade) = (End::default(), End::default());
        let mut gated = Vec::new();
        for (account, replay) in ledger.accounts.iter().zip(&side.replays) {
            let tiers = &side.tariff.tiers;
            let tier = &tiers[side.places[account.plan]];
            stay.revenue += tier.price(months).0;
            stay.cost += replay.cost_if_stays + tier.overhead(months).0;
            let before = replay
                .gated
                .map_or(months, |(_, month)| ledger.months.between(from, month).min(months));
            let after = tier.upgrade_to.map_or(tier, |to| &tiers[to]);
            upgrade.revenue += tier.price(before).0 + after.price(months - before).0;
            upgrade.cost += replay.cost_if_upgrades
                + tier.overhead(before).0
                + after.overhead(months - before).0;
            gated.extend(replay.gated.map(|(at, _)| Gated {
                customer_id: account.id.to_string(),
                plan_id: tier.id.to_string(),
                at,
                denied_units: replay.denied_units,
            }));
        }
        gated.sort_by(|a, b| (a.at, &a.customer_id).cmp(&(b.at, &b.customer_id)));
        Self {
            gated_customers: gated.len(),
            denied_units: gated.iter().map(|customer| customer.denied_units).sum(),
            gated_by_day: by_day(&gated),
            outcomes: percents.iter().map(|percent| outcome(&stay, &upgrade, *percent)).collect(),
            gated,
        }
    }

    /// The gated customers of one plan.
    pub fn gated_on<'a>(&'a self, tier: &'a Tier) -> impl Iterator<Item = &'a Gated> {
        self.gated.iter().filter(|customer| customer.plan_id == tier.id.as_str())
    }
}

fn by_day(gated: &[Gated]) -> Vec<DayCount> {
    let mut days = BTreeMap::<String, usize>::new();
    for customer in gated {
        *days.entry(customer.at.to_jiff().strftime("%Y-%m-%d").to_string()).or_default() += 1;
    }
    days.into_iter().map(|(day, customers)| DayCount { day, customers }).collect()
}

fn outcome(stay: &End, upgrade: &End, percent: u8) -> Outcome {
    let between = |stay: i128, upgrade: i128| {
        let percent = i128::from(percent);
        Picodollars(rounded_quotient(stay * (100 - percent) + upgrade * percent, 100))
    };
    let revenue = between(stay.revenue, upgrade.revenue);
    let cost = between(stay.cost, upgrade.cost);
    Outcome {
        upgrade_percent: percent,
        revenue_usd: revenue,
        cost_usd: cost,
        margin_usd: Picodollars(revenue.0 - cost.0),
        margin_basis_points: margin_basis_points(revenue, cost),
    }
}
