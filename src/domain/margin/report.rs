//! From a ledger to the report. Its terminal, JSON and HTML faces all show this one value.

use serde::Serialize;

use super::advice::{self, Advice};
use super::ledger::{Account, Ledger};
use super::replay::Scenario;
use super::spread::{CountSpread, MoneySpread, nearest_rank};
use super::tariff::Tier;
use super::{margin_basis_points, rounded_quotient};
use crate::clock::Timestamp;
use crate::domain::cost::Picodollars;
use crate::domain::plan::Feature;

/// What the reader wants to know beside the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    /// The gross margin to aim for, 0 to 99 percent.
    pub target_margin_percent: u8,
    /// How many of the gated customers upgrade: each rate is one row of the table.
    pub upgrade_percents: Vec<u8>,
}

/// A margin of 70 %, and five rates from nobody to everybody.
impl Default for Wishes {
    fn default() -> Self {
        Self { target_margin_percent: 70, upgrade_percents: vec![0, 10, 25, 50, 100] }
    }
}

/// The whole report. Amounts are for the whole period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub feature_id: String,
    /// As people read it, in the plural.
    pub feature_name: String,
    pub unit: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub months: i64,
    /// What the advice aims for.
    pub target_margin_percent: u8,
    /// The last run of the period: a month that is not over looks better than it will be.
    pub last_run_at: Timestamp,
    pub unpriced: UnpricedRuns,
    /// Runs that came before an earlier one of the same customer.
    pub runs_out_of_order: u64,
    /// Runs before `from` or from `to` on.
    pub runs_outside_period: u64,
    pub all: Group,
    pub totals: Totals,
    /// By rank.
    pub plans: Vec<PlanReport>,
    pub advice: Vec<Advice>,
    /// The same runs against today's caps.
    pub today: Scenario,
    /// The same runs against a changed plans file.
    pub changed: Option<Scenario>,
}

/// Runs without a cost: their model has no price, or they name no model or tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnpricedRuns {
    pub runs: u64,
    /// Most runs first.
    pub models: Vec<UnpricedModel>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnpricedModel {
    pub model: String,
    pub runs: u64,
}

/// Customers and how what they use and cost spreads over them. Each spread is sorted for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    pub customers: usize,
    /// They are among `customers` and in every spread.
    pub zero_usage_customers: usize,
    pub units: i64,
    /// The mean over runs with a known cost.
    pub cost_per_unit_usd: Option<Picodollars>,
    pub units_by_customer: Option<CountSpread>,
    pub input_tokens_by_customer: Option<CountSpread>,
    pub output_tokens_by_customer: Option<CountSpread>,
    pub inference_cost_by_customer_usd: Option<MoneySpread>,
    /// Inference and overhead.
    pub loaded_cost_by_customer_usd: Option<MoneySpread>,
}

/// Sums over customers, as the runs were recorded: with no gate but the one they passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub revenue_usd: Picodollars,
    pub inference_cost_usd: Picodollars,
    pub overhead_usd: Picodollars,
    pub margin_usd: Picodollars,
    pub margin_basis_points: Option<i64>,
}

/// The margin that a customer leaves at one amount of use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MarginAt {
    /// `p50`, `80_percent_of_cap`, `cap`, `p90` or `p99`.
    pub at: &'static str,
    pub loaded_cost_usd: Picodollars,
    pub margin_basis_points: Option<i64>,
}

/// How many customers used how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Distribution {
    /// Each bar spans so many units, the first from zero.
    pub units_per_bar: i64,
    pub customers: Vec<usize>,
    /// Customers beyond the last bar.
    pub beyond: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanReport {
    pub plan_id: String,
    pub plan_name: String,
    pub price_usd: Picodollars,
    pub overhead_per_customer_usd: Picodollars,
    /// Units granted over the period.
    pub granted: Option<i64>,
    pub is_hard: bool,
    #[serde(flatten)]
    pub group: Group,
    pub margins: Vec<MarginAt>,
    /// Customers whose loaded cost exceeds the price.
    pub below_zero_customers: usize,
    pub gated_customers: usize,
    pub totals: Totals,
    pub distribution: Distribution,
    /// The loaded cost at p1, p2 and so on to p100.
    pub loaded_cost_percentiles_usd: Vec<Picodollars>,
}

/// There is nothing to report on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are no runs in the period, or none that retention has left")]
pub struct Empty;

impl Ledger {
    /// # Errors
    /// [`Empty`], if no run was in the span.
    pub fn report(&self, feature: &Feature, wishes: &Wishes) -> Result<Report, Empty> {
        let (first, last) = self.first_run.zip(self.last_run).ok_or(Empty)?;
        let from = self.span.from.unwrap_or_else(|| self.months.containing(first).start);
        let to = self.span.to.unwrap_or_else(|| self.months.containing(last).end);
        let months = self.months.between(from, to);
        let scenario = |side| Scenario::of(self, side, from, months, &wishes.upgrade_percents);
        let today = scenario(&self.today);
        let all = Population::of_all(self, months);
        let plan = |(index, tier)| plan_report(self, index, tier, &all, months, &today);
        let plans: Vec<_> = self.tariff().tiers.iter().enumerate().map(plan).collect();
        Ok(Report {
            feature_id: feature.id.to_string(),
            feature_name: feature.name.clone(),
            unit: feature.unit.clone(),
            from,
            to,
            months,
            target_margin_percent: wishes.target_margin_percent,
            last_run_at: last,
            unpriced: self.unpriced_runs(),
            runs_out_of_order: self.out_of_order,
            runs_outside_period: self.outside,
            totals: totals(plans.iter().map(|plan| &plan.totals)),
            advice: advice::all(self, &all, months, feature, wishes),
            all: all.group(),
            plans,
            changed: self.changed.as_ref().map(scenario),
            today,
        })
    }

    fn unpriced_runs(&self) -> UnpricedRuns {
        let named =
            |(model, runs): (&String, &u64)| UnpricedModel { model: model.clone(), runs: *runs };
        let mut models: Vec<_> = self.unpriced.iter().map(named).collect();
        models.sort_by_key(|model| std::cmp::Reverse(model.runs));
        UnpricedRuns { runs: models.iter().map(|model| model.runs).sum(), models }
    }
}

/// Some of the customers.
pub(super) struct Population<'a> {
    pub accounts: Vec<&'a Account>,
    /// Ascending.
    pub loaded_costs: Vec<Picodollars>,
    /// Picodollars and the units they were spent on: together the exact mean.
    pub cost: i128,
    pub priced_units: i64,
}

impl<'a> Population<'a> {
    fn of_all(ledger: &'a Ledger, months: i64) -> Self {
        Self::of(ledger, ledger.accounts.iter().collect(), months)
    }

    pub fn on(ledger: &'a Ledger, plan: usize, months: i64) -> Self {
        let accounts = ledger.accounts.iter().filter(|account| account.plan == plan).collect();
        Self::of(ledger, accounts, months)
    }

    fn of(ledger: &Ledger, accounts: Vec<&'a Account>, months: i64) -> Self {
        let loaded = |account: &&Account| account.loaded_cost(ledger, months);
        let mut loaded_costs: Vec<_> = accounts.iter().map(loaded).collect();
        loaded_costs.sort_unstable();
        Self {
            loaded_costs,
            cost: accounts.iter().map(|account| account.cost).sum(),
            priced_units: accounts.iter().map(|account| account.priced_units).sum(),
            accounts,
        }
    }

    fn counts(&self, count: impl Fn(&Account) -> i64) -> Option<CountSpread> {
        CountSpread::of(self.accounts.iter().map(|account| count(account)).collect())
    }

    fn group(&self) -> Group {
        let mut inference: Vec<_> =
            self.accounts.iter().map(|account| Picodollars(account.cost)).collect();
        inference.sort_unstable();
        Group {
            customers: self.accounts.len(),
            zero_usage_customers: self.accounts.iter().filter(|a| a.units == 0).count(),
            units: self.accounts.iter().map(|account| account.units).sum(),
            cost_per_unit_usd: self.cost_of(1, 1),
            units_by_customer: self.counts(|account| account.units),
            input_tokens_by_customer: self.counts(|account| account.input_tokens),
            output_tokens_by_customer: self.counts(|account| account.output_tokens),
            inference_cost_by_customer_usd: MoneySpread::of(&inference),
            loaded_cost_by_customer_usd: MoneySpread::of(&self.loaded_costs),
        }
    }

    /// What `numerator / denominator` units cost at this population's mean; `None` if it has no
    /// mean.
    pub fn cost_of(&self, numerator: i64, denominator: i64) -> Option<Picodollars> {
        let parts = i128::from(self.priced_units) * i128::from(denominator);
        (parts > 0).then(|| Picodollars(rounded_quotient(self.cost * i128::from(numerator), parts)))
    }

    /// This one, or all customers if it has no mean of its own.
    pub fn or_all<'b>(&'b self, all: &'b Self) -> &'b Self {
        if self.priced_units > 0 { self } else { all }
    }
}

impl Account {
    pub fn loaded_cost(&self, ledger: &Ledger, months: i64) -> Picodollars {
        Picodollars(self.cost + ledger.tariff().tiers[self.plan].overhead(months).0)
    }
}

fn plan_report(
    ledger: &Ledger,
    index: usize,
    tier: &Tier,
    all: &Population<'_>,
    months: i64,
    today: &Scenario,
) -> PlanReport {
    let own = Population::on(ledger, index, months);
    let price = tier.price(months);
    let customers = own.accounts.len();
    let times_customers = |each: Picodollars| Picodollars(each.0 * customers as i128);
    let (revenue, overhead) = (times_customers(price), times_customers(tier.overhead(months)));
    PlanReport {
        plan_id: tier.id.to_string(),
        plan_name: tier.name.clone(),
        price_usd: price,
        overhead_per_customer_usd: tier.overhead(months),
        granted: tier.granted.map(|granted| granted * months),
        is_hard: tier.is_hard,
        margins: margins(tier, &own, all, months),
        below_zero_customers: own.loaded_costs.iter().filter(|cost| **cost > price).count(),
        gated_customers: today.gated_on(tier).count(),
        totals: Totals::of(revenue, Picodollars(own.cost), overhead),
        distribution: distribution(tier, &own, months),
        loaded_cost_percentiles_usd: (1..=100)
            .filter_map(|percent| nearest_rank(&own.loaded_costs, percent))
            .collect(),
        group: own.group(),
    }
}

fn margins(tier: &Tier, own: &Population<'_>, all: &Population<'_>, months: i64) -> Vec<MarginAt> {
    let overhead = tier.overhead(months);
    let percentile = |percent| nearest_rank(&own.loaded_costs, percent);
    let granted = tier.granted.filter(|granted| *granted > 0).map(|granted| granted * months);
    let at_cap = |percent| {
        let inference = own.or_all(all).cost_of(granted? * percent, 100)?;
        Some(Picodollars(inference.0 + overhead.0))
    };
    let rows = [
        ("p50", percentile(50)),
        ("80_percent_of_cap", at_cap(80)),
        ("cap", at_cap(100)),
        ("p90", percentile(90)),
        ("p99", percentile(99)),
    ];
    let price = tier.price(months);
    let row = |(at, cost): (_, Option<Picodollars>)| {
        let loaded_cost_usd = cost?;
        let margin_basis_points = margin_basis_points(price, loaded_cost_usd);
        Some(MarginAt { at, loaded_cost_usd, margin_basis_points })
    };
    rows.into_iter().filter_map(row).collect()
}

/// About this many bars show a shape without noise.
const BARS: i64 = 24;

/// Bars up to a quarter beyond the cap or to the 99th percentile, whichever is further.
fn distribution(tier: &Tier, own: &Population<'_>, months: i64) -> Distribution {
    let mut units: Vec<_> = own.accounts.iter().map(|account| account.units).collect();
    units.sort_unstable();
    let cap = tier.granted.unwrap_or(0) * months;
    let reach = nearest_rank(&units, 99).unwrap_or(0).max(cap + cap / 4).max(BARS);
    let units_per_bar = round_step(reach.div_euclid(BARS) + i64::from(reach % BARS > 0));
    let bars = usize::try_from(reach / units_per_bar + 1).unwrap_or(1);
    let mut distribution = Distribution { units_per_bar, customers: vec![0; bars], beyond: 0 };
    for units in units {
        let bar = usize::try_from(units / units_per_bar).unwrap_or(usize::MAX);
        match distribution.customers.get_mut(bar) {
            Some(customers) => *customers += 1,
            None => distribution.beyond += 1,
        }
    }
    distribution
}

/// The next 1, 2 or 5 followed by zeros, as people count.
fn round_step(at_least: i64) -> i64 {
    let mut power = 1_i64;
    loop {
        for digit in [1, 2, 5] {
            if digit * power >= at_least {
                return digit * power;
            }
        }
        power *= 10;
    }
}

impl Totals {
    fn of(revenue: Picodollars, inference: Picodollars, overhead: Picodollars) -> Self {
        let cost = Picodollars(inference.0 + overhead.0);
        Self {
            revenue_usd: revenue,
            inference_cost_usd: inference,
            overhead_usd: overhead,
            margin_usd: Picodollars(revenue.0 - cost.0),
            margin_basis_points: margin_basis_points(revenue, cost),
        }
    }
}

fn totals<'a>(plans: impl Iterator<Item = &'a Totals>) -> Totals {
    let (mut revenue, mut inference, mut overhead) = (0, 0, 0);
    for plan in plans {
        revenue += plan.revenue_usd.0;
        inference += plan.inference_cost_usd.0;
        overhead += plan.overhead_usd.0;
    }
    Totals::of(Picodollars(revenue), Picodollars(inference), Picodollars(overhead))
}
