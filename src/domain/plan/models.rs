//! The model price table: what each model costs us, and since when.

use std::collections::BTreeMap;

use super::parse::{model_section, read_rates};
use super::reader::{Found, Node, Reader, Section};
use super::{ModelPrice, rules};
use crate::clock::Timestamp;

/// A model's prices over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPrices {
    /// Each from its moment until the next one's, ascending; never empty.
    versions: Vec<(Timestamp, ModelPrice)>,
}

/// From when a price holds that stands in the file without a date.
const ALWAYS: Timestamp = Timestamp::from_ms(i64::MIN);

impl ModelPrices {
    /// A price that has always held.
    pub fn always(price: ModelPrice) -> Self {
        Self { versions: vec![(ALWAYS, price)] }
    }

    /// The price in force at a moment; `None` before the first.
    pub fn at(&self, moment: Timestamp) -> Option<&ModelPrice> {
        let known = self.versions.partition_point(|(from, _)| *from <= moment);
        self.versions[..known].last().map(|(_, price)| price)
    }
}

const RATES: [&str; 3] = ["input", "output", "cached_input"];

/// A model whose prices could not be read is still known by name.
pub(super) fn read_models(
    reader: &mut Reader,
    root: &Section<'_>,
) -> BTreeMap<String, Option<ModelPrices>> {
    let Some(node) = reader.optional(root, "models") else {
        return BTreeMap::new();
    };
    let mut models = BTreeMap::new();
    for (name, node) in reader.entries(&node, &rules::MODEL_NAME) {
        let prices = read_model(reader, &name, &node);
        models.insert(name, prices);
    }
    models
}

/// The price beside `prices` holds until the first dated one. It may be left out if there are
/// dated ones: then the model is unknown before the first.
fn read_model(reader: &mut Reader, model: &str, node: &Node<'_>) -> Option<ModelPrices> {
    let section =
        model_section(reader, model, node, &["input", "output", "cached_input", "prices"])?;
    let dated = reader.optional(&section, "prices");
    let has_rates = RATES.iter().any(|key| reader.optional(&section, key).is_some());
    let undated = (has_rates || dated.is_none()).then(|| read_price(reader, &section));
    let mut versions = match undated {
        Some(price) => vec![(ALWAYS, price?)],
        None => Vec::new(),
    };
    let Some(list) = dated else { return Some(ModelPrices { versions }) };
    for (from, price) in read_dated(reader, &list)? {
        if versions.iter().any(|(other, _)| *other == from.value) {
            reader.wrong(&from.place, "must be unique; another price holds from the same day");
        }
        versions.push((from.value, price));
    }
    versions.sort_by_key(|(from, _)| *from);
    (!versions.is_empty()).then_some(ModelPrices { versions })
}

fn read_dated(reader: &mut Reader, list: &Node<'_>) -> Option<Vec<(Found<Timestamp>, ModelPrice)>> {
    let mut prices = Vec::new();
    let members = reader.list(list)?;
    if members.is_empty() {
        reader.wrong(&list.place, "must have at least one price");
    }
    for member in members {
        let section = reader.section(&member, &["from", "input", "output", "cached_input"])?;
        let from = reader.required_value(&section, "from", &rules::DAY);
        let price = read_price(reader, &section);
        prices.push((from?, price?));
    }
    Some(prices)
}

fn read_price(reader: &mut Reader, section: &Section<'_>) -> Option<ModelPrice> {
    let [input, output, cached_input] = read_rates(reader, section, RATES)?;
    Some(ModelPrice {
        input_picodollars_per_token: input,
        output_picodollars_per_token: output,
        cached_input_picodollars_per_token: cached_input,
    })
}
