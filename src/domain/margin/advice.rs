//! What follows from the figures, each with its arithmetic. Prices and caps are per month.

use std::cmp::Ordering;

use serde::Serialize;

use super::ledger::{Account, Ledger};
use super::quotient_rounded_up;
use super::report::{Population, Wishes};
use super::spread::nearest_rank;
use super::tariff::Tier;
use crate::domain::answer::thousands;
use crate::domain::cost::Picodollars;
use crate::domain::plan::Feature;

/// One piece of advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    pub subject: Subject,
    /// The plan it is about; `None` if it is about all.
    pub plan_id: Option<String>,
    pub advice: String,
    /// How the number comes about, in figures that the report shows.
    pub arithmetic: String,
    pub price_usd: Option<Picodollars>,
    pub units: Option<i64>,
    /// The customers it is about, dearest first.
    pub customers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The lowest price that leaves the target margin at 80 % of the cap.
    PriceFloor,
    /// The highest cap of which 80 % still cost less than the price.
    Cap,
    /// The price that leaves the target margin on the 90th percentile's customer.
    P90Price,
    /// Who belongs on the highest plan.
    Outliers,
    /// Whether to limit runs or to sell credits.
    CapsOrCredits,
}

struct Facts<'a> {
    ledger: &'a Ledger,
    all: &'a Population<'a>,
    months: i64,
    feature: &'a Feature,
    target: u8,
}

pub(super) fn all(
    ledger: &Ledger,
    all: &Population<'_>,
    months: i64,
    feature: &Feature,
    wishes: &Wishes,
) -> Vec<Advice> {
    let target = wishes.target_margin_percent;
    let facts = Facts { ledger, all, months, feature, target };
    let mut advice = Vec::new();
    for (index, tier) in ledger.tariff().tiers.iter().enumerate() {
        let own = Population::on(ledger, index, months);
        advice.extend(facts.price_floor(tier, &own));
        advice.extend(facts.cap(tier, &own));
        advice.extend(facts.p90_price(tier, &own));
    }
    advice.extend(facts.outliers());
    advice.extend(facts.caps_or_credits());
    advice
}

impl Advice {
    fn new(subject: Subject, tier: Option<&Tier>, advice: String, arithmetic: String) -> Self {
        let plan_id = tier.map(|tier| tier.id.to_string());
        let (price_usd, units, customers) = (None, None, Vec::new());
        Self { subject, plan_id, advice, arithmetic, price_usd, units, customers }
    }
}

impl Facts<'_> {
    /// What a month at such a loaded cost must be sold for, rounded up to the cent.
    fn price_for(&self, loaded: Picodollars, months: i64) -> Picodollars {
        let share = i128::from(100 - self.target) * i128::from(months);
        let cents = quotient_rounded_up(loaded.0 * 100, share * Picodollars::CENT.0);
        Picodollars(cents * Picodollars::CENT.0)
    }

    fn price_floor(&self, tier: &Tier, own: &Population<'_>) -> Option<Advice> {
        let (target, name) = (self.target, &self.feature.name);
        let granted = tier.granted.filter(|granted| *granted > 0)?;
        let mean = own.or_all(self.all);
        let loaded = Picodollars(mean.cost_of(granted * 80, 100)?.0 + tier.overhead(1).0);
        let floor = self.price_for(loaded, 1);
        let verdict = if floor <= tier.price(1) {
            "it is priced above that"
        } else {
            "it is priced below that"
        };
        let advice = format!(
            "{}: a price of at least {floor} a month leaves {target} % at 80 % of {}; at {} {verdict}.",
            tier.name,
            if tier.is_hard { "the cap" } else { "its number" },
            tier.price(1),
        );
        let arithmetic = format!(
            "(80 % × {} {name} × {} + {} overhead) ÷ (1 − {target} %) = {loaded} ÷ {} = {floor}",
            thousands(granted),
            mean.cost_of(1, 1)?,
            tier.overhead(1),
            share(100 - target),
        );
        let advice = Advice::new(Subject::PriceFloor, Some(tier), advice, arithmetic);
        Some(Advice { price_usd: Some(floor), ..advice })
    }

    fn cap(&self, tier: &Tier, own: &Population<'_>) -> Option<Advice> {
        let name = &self.feature.name;
        let granted = tier.granted.filter(|granted| *granted > 0)?;
        let (price, overhead) = (tier.price(1), tier.overhead(1));
        let left = price.0 - overhead.0;
        let mean = own.or_all(self.all);
        let each = mean.cost_of(1, 1)?;
        if left <= 0 || mean.cost == 0 {
            let advice = if left <= 0 && price.0 > 0 {
                format!("{}: no cap helps; the price does not even bear the overhead.", tier.name)
            } else {
                return None;
            };
            let arithmetic = format!("{price} − {overhead} = {}", Picodollars(left));
            return Some(Advice::new(Subject::Cap, Some(tier), advice, arithmetic));
        }
        // The largest n with 80 % × n × mean < left, the mean being cost ÷ priced units.
        let beyond =
            quotient_rounded_up(left * 100 * i128::from(mean.priced_units), mean.cost * 80);
        let cap = i64::try_from(beyond - 1).ok()?;
        let advice = format!(
            "{}: a cap of up to {} {name} a month keeps it positive at 80 % use; it grants {}.",
            tier.name,
            thousands(cap),
            thousands(granted),
        );
        let arithmetic = format!(
            "({price} − {overhead} overhead) ÷ (80 % × {each}), and not all of it = {}",
            thousands(cap)
        );
        let advice = Advice::new(Subject::Cap, Some(tier), advice, arithmetic);
        Some(Advice { units: Some(cap), ..advice })
    }

    /// For plans that never close: no cap bounds what a customer costs, so the price follows from
    /// what customers do.
    fn p90_price(&self, tier: &Tier, own: &Population<'_>) -> Option<Advice> {
        if tier.is_hard {
            return None;
        }
        let (target, months) = (self.target, self.months);
        let (whose, p90) = match nearest_rank(&own.loaded_costs, 90) {
            Some(p90) => (format!("{}'s", tier.name), p90),
            None => ("all customers'".to_owned(), nearest_rank(&self.all.loaded_costs, 90)?),
        };
        let price = self.price_for(p90, months);
        let advice = format!(
            "{}: it never closes, so price it by its heavy users: {price} a month leaves {target} % \
             on the customer at p90; it costs {}.",
            tier.name,
            tier.price(1),
        );
        let over = if months == 1 { String::new() } else { format!(" ÷ {months} months") };
        let arithmetic = format!(
            "{whose} loaded cost at p90 {p90}{over} ÷ (1 − {target} %) = {p90}{over} ÷ {} = {price}",
            share(100 - target),
        );
        let advice = Advice::new(Subject::P90Price, Some(tier), advice, arithmetic);
        Some(Advice { price_usd: Some(price), ..advice })
    }

    /// Who uses more than the plan below the highest grants, or costs more than it earns.
    fn outliers(&self) -> Option<Advice> {
        let [.., below, highest] = self.ledger.tariff().tiers.as_slice() else { return None };
        let price = below.price(self.months);
        let granted = below.granted.map(|granted| granted * self.months);
        let loaded = |account: &Account| account.loaded_cost(self.ledger, self.months);
        let is_outlier = |account: &&&Account| {
            account.plan + 1 < self.ledger.tariff().tiers.len()
                && (granted.is_some_and(|granted| account.units > granted)
                    || loaded(account) > price)
        };
        let mut outliers: Vec<_> = self.all.accounts.iter().filter(is_outlier).collect();
        outliers.sort_by_key(|account| (std::cmp::Reverse(loaded(account)), &account.id));
        let advice = match outliers.len() {
            0 => format!("No customer below {} outgrows {}.", highest.name, below.name),
            1 => format!("1 customer belongs in {}.", highest.name),
            many => format!("{} customers belong in {}.", thousands(many as i64), highest.name),
        };
        let more_than = granted.map_or(String::new(), |granted| {
            format!("more than {}'s {} {} or ", below.name, thousands(granted), self.feature.name)
        });
        let arithmetic =
            format!("{more_than}a loaded cost above {}'s price of {price}", below.name);
        let customers = outliers.into_iter().map(|account| account.id.to_string()).collect();
        let advice = Advice::new(Subject::Outliers, Some(highest), advice, arithmetic);
        Some(Advice { customers, ..advice })
    }

    /// By the spread over customers of what their mean run costs: within one customer dear and
    /// cheap runs even out, between customers they do not.
    fn caps_or_credits(&self) -> Option<Advice> {
        let unit = &self.feature.unit;
        let mut means: Vec<_> = self.all.accounts.iter().filter_map(|a| Mean::of(a)).collect();
        means.sort_unstable_by(Mean::cmp);
        let (low, high) = (nearest_rank(&means, 10)?, nearest_rank(&means, 90)?);
        let (advice, is) = if high.is_within(2, low) {
            (
                format!(
                    "Caps: a {unit} costs about the same for everybody, so a number of {} is fair.",
                    self.feature.name
                ),
                "at most 2×",
            )
        } else if high.is_within(5, low) && !high.equals(5, low) {
            (
                format!(
                    "Between caps and credits: what a {unit} costs differs, yet not by enough to decide it. Look at who is below zero."
                ),
                "between 2× and 5×",
            )
        } else {
            (
                format!(
                    "Credits: what a {unit} costs differs too much to sell every {unit} alike."
                ),
                "5× or more",
            )
        };
        let ratio = match low.cost {
            0 => String::new(),
            _ => format!(" = {}×", high.tenths_of(low)),
        };
        let arithmetic = format!(
            "a customer's mean cost per {unit}: {} at p90 against {} at p10{ratio}, {is}",
            high.shown(),
            low.shown(),
        );
        Some(Advice::new(Subject::CapsOrCredits, None, advice, arithmetic))
    }
}

/// `0.30` of a hundred.
fn share(percent: u8) -> String {
    format!("0.{percent:02}")
}

/// An exact quotient.
#[derive(Debug, Clone, Copy)]
struct Mean {
    cost: i128,
    units: i128,
}

impl Mean {
    fn of(account: &Account) -> Option<Self> {
        let (cost, units) = (account.cost, i128::from(account.priced_units));
        (units > 0).then_some(Self { cost, units })
    }

    fn cmp(&self, other: &Self) -> Ordering {
        (self.cost * other.units).cmp(&(other.cost * self.units))
    }

    fn is_within(&self, times: i128, other: Self) -> bool {
        self.cost * other.units <= times * other.cost * self.units
    }

    fn equals(&self, times: i128, other: Self) -> bool {
        self.cost * other.units == times * other.cost * self.units
    }

    /// The ratio with one decimal.
    fn tenths_of(&self, other: Self) -> String {
        let tenths = super::rounded_quotient(10 * self.cost * other.units, other.cost * self.units);
        format!("{}.{}", tenths / 10, tenths % 10)
    }

    fn shown(&self) -> Picodollars {
        Picodollars(super::rounded_quotient(self.cost, self.units))
    }
}
