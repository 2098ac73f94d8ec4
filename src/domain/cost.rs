//! What a run costs us: tokens times the model's price, exact to the picodollar.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::clock::Timestamp;
use crate::domain::answer::thousands;
use crate::domain::plan::ModelPrices;
use crate::domain::usage::MAX_QUANTITY;

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

/// What a run's `properties` say of its model and tokens; everything else in them is the caller's.
///
/// `input_tokens` counts all input, cached tokens included, and `cached_input_tokens` says how many
/// of them came from the cache, as OpenAI, Gemini and OpenTelemetry's conventions for generative AI
/// count. Anthropic's `input_tokens` leaves cached tokens out: add `cache_read_input_tokens` to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunProperties {
    pub model: Option<String>,
    pub input_tokens: Option<i64>,
    pub cached_input_tokens: Option<i64>,
    pub output_tokens: Option<i64>,
}

/// Which property is wrong. The message names what was wanted and never repeats what was there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("properties.{field} {wanted}")]
pub struct InvalidProperty {
    pub field: &'static str,
    pub wanted: &'static str,
}

/// The longest name of a model, as in the plans file.
const MAX_MODEL_NAME: usize = 100;

impl RunProperties {
    /// Reads the four properties that have a meaning here.
    ///
    /// # Errors
    /// The first that is of a wrong type or value. Null is as good as absent.
    pub fn parse(properties: &Map<String, Value>) -> Result<Self, InvalidProperty> {
        let parsed = Self {
            model: model(properties)?,
            input_tokens: tokens(properties, "input_tokens")?,
            cached_input_tokens: tokens(properties, "cached_input_tokens")?,
            output_tokens: tokens(properties, "output_tokens")?,
        };
        if parsed.cached_input_tokens.unwrap_or(0) > parsed.input_tokens.unwrap_or(0) {
            return Err(InvalidProperty {
                field: "cached_input_tokens",
                wanted: "must be at most input_tokens, which include the cached ones",
            });
        }
        Ok(parsed)
    }

    /// The run's tokens; `None` if it says nothing of them, and then it has no cost either.
    pub fn tokens(&self) -> Option<Tokens> {
        if self.input_tokens.is_none() && self.output_tokens.is_none() {
            return None;
        }
        Some(Tokens {
            input: self.input_tokens.unwrap_or(0),
            cached_input: self.cached_input_tokens.unwrap_or(0),
            output: self.output_tokens.unwrap_or(0),
        })
    }

    /// What the run cost, in picodollars; `None` if it names no tokens or no model with a price.
    pub fn cost(&self, models: &BTreeMap<String, ModelPrices>, at: Timestamp) -> Option<i64> {
        cost(models, self.model.as_deref()?, self.tokens()?, at).ok()
    }
}

fn model(properties: &Map<String, Value>) -> Result<Option<String>, InvalidProperty> {
    const FIELD: &str = "model";
    let name = match properties.get(FIELD) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(name)) => name,
        Some(_) => return Err(InvalidProperty { field: FIELD, wanted: "must be a string" }),
    };
    let fits =
        (1..=MAX_MODEL_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    let wanted = "must be 1 to 100 printable ASCII characters without spaces";
    fits.then(|| Some(name.clone())).ok_or(InvalidProperty { field: FIELD, wanted })
}

fn tokens(
    properties: &Map<String, Value>,
    field: &'static str,
) -> Result<Option<i64>, InvalidProperty> {
    let value = match properties.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_i64().filter(|tokens| (0..=MAX_QUANTITY).contains(tokens)),
    };
    let wanted = "must be an integer from 0 to 1000000000";
    value.map(Some).ok_or(InvalidProperty { field, wanted })
}

#[cfg(test)]
mod tests;
