//! What a run costs us: tokens times the model's price, exact to the picodollar.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::clock::Timestamp;
use crate::domain::answer::thousands;
use crate::domain::plan::ModelPrices;
use crate::domain::run::RunFacts;

/// A dollar amount in 10⁻¹² dollars. Prices per million tokens have at most six decimals, so what
/// any number of tokens costs is a whole number of these: nothing is ever rounded on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Picodollars(pub i128);

/// One cent.
const CENT: i128 = 10_i128.pow(10);

impl Picodollars {
    pub const ZERO: Self = Self(0);
    pub const CENT: Self = Self(CENT);

    pub const fn from_cents(cents: i64) -> Self {
        Self(cents as i128 * CENT)
    }

    /// The exact amount in dollars with at least two decimals and no idle zeros: `0.0125`.
    pub fn exact(self) -> String {
        let (sign, amount) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let one = 10_u128.pow(12);
        let decimals = format!("{:012}", amount % one);
        let kept = decimals.trim_end_matches('0').len().max(2);
        format!("{sign}{}.{}", amount / one, &decimals[..kept])
    }
}

/// For people: `$1,234.50`, rounded to the cent, halves away from zero. Single runs are told apart
/// by less than a cent, so amounts below a dollar have up to four decimals and those below a cent
/// up to six.
impl fmt::Display for Picodollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = self.0.unsigned_abs();
        let decimals: usize = match amount {
            0 => 2,
            _ if amount < CENT.unsigned_abs() => 6,
            _ if amount < CENT.unsigned_abs() * 100 => 4,
            _ => 2,
        };
        let unit = 10_u128.pow(12 - decimals as u32);
        let rounded = (amount + unit / 2) / unit;
        let per_dollar = 10_u128.pow(decimals as u32);
        let whole = i64::try_from(rounded / per_dollar).unwrap_or(i64::MAX);
        let fraction = format!("{:0decimals$}", rounded % per_dollar);
        let kept = fraction.trim_end_matches('0').len().max(2);
        let sign = if self.0 < 0 && rounded > 0 { "-" } else { "" };
        write!(f, "{sign}${}.{}", thousands(whole), &fraction[..kept])
    }
}

/// The exact amount as a text, because a JSON number loses digits on the way to many readers.
impl Serialize for Picodollars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.exact())
    }
}

/// The tokens of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// All input, the cached part included.
    pub input: i64,
    /// The part of `input` that came from the provider's cache; never more than `input`.
    pub cached_input: i64,
    pub output: i64,
}

/// Why a run has no cost. It is counted and listed, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unpriced {
    #[error("the model has no price at that moment in the plans file")]
    UnknownModel,
    /// Nine million dollars: some number is wrong, and it fits no column.
    #[error("the cost does not fit 64 bits of picodollars")]
    TooLarge,
}

/// What a run costs, in picodollars, by the price in force at its moment.
///
/// # Errors
/// [`Unpriced`], if the plans file cannot say.
pub fn cost(
    models: &BTreeMap<String, ModelPrices>,
    model: &str,
    tokens: Tokens,
    at: Timestamp,
) -> Result<i64, Unpriced> {
    let price = models.get(model).and_then(|prices| prices.at(at)).ok_or(Unpriced::UnknownModel)?;
    let part = |tokens: i64, rate: i64| i128::from(tokens) * i128::from(rate);
    let cost = part(tokens.input - tokens.cached_input, price.input_picodollars_per_token)
        + part(tokens.cached_input, price.cached_input_picodollars_per_token)
        + part(tokens.output, price.output_picodollars_per_token);
    i64::try_from(cost).map_err(|_| Unpriced::TooLarge)
}

/// What a run cost, in picodollars, by what it says of itself; `None` if it names no tokens or no
/// model with a price. It is then listed as such, never guessed.
pub fn cost_of_run(
    models: &BTreeMap<String, ModelPrices>,
    run: &RunFacts,
    at: Timestamp,
) -> Option<i64> {
    let tokens = Tokens::from(run);
    let model = run.model.as_deref().filter(|_| tokens != Tokens::default())?;
    cost(models, model, tokens, at).ok()
}

impl From<&RunFacts> for Tokens {
    fn from(run: &RunFacts) -> Self {
        Self {
            input: run.input_tokens,
            cached_input: run.cached_input_tokens,
            output: run.output_tokens,
        }
    }
}

#[cfg(test)]
mod tests;
