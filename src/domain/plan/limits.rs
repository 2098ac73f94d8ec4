//! Reads what a plan grants of each feature, and when its customers are told.

use super::reader::{Found, Node, Reader, Rule, Section};
use super::rules::{self, EnforcementWord};
use super::{Enforcement, Limit};
use crate::domain::ids::FeatureId;

/// The plan's limits; those that could not be read are still known by their feature.
pub(super) fn read_limits(
    reader: &mut Reader,
    plan: &Section<'_>,
) -> Vec<(Found<FeatureId>, Option<Limit>)> {
    let Some(node) = reader.optional(plan, "limits") else {
        return Vec::new();
    };
    let entries = reader.entries(&node, &rules::FEATURE_ID);
    let read = |(id, node): (FeatureId, Node<'_>)| {
        let limit = read_limit(reader, &node);
        (Found { value: id, place: node.place }, limit)
    };
    entries.into_iter().map(read).collect()
}

fn read_limit(reader: &mut Reader, node: &Node<'_>) -> Option<Limit> {
    let known = ["granted", "enforcement", "nudge_at_percent", "nudge_at", "custom"];
    let section = reader.section(node, &known)?;
    let word = reader.required_value(&section, "enforcement", &rules::ENFORCEMENT);
    let word = word.map(|found| found.value);
    let granted = read_granted(reader, &section, word);
    let (nudge_at_percent, nudge_at_units) = read_nudges(reader, &section, word);
    let custom = reader.optional_value(&section, "custom", &rules::YES_OR_NO);
    let enforcement = match word? {
        EnforcementWord::Hard => Enforcement::Hard { granted: granted? },
        EnforcementWord::Soft => Enforcement::Soft { granted: granted? },
        EnforcementWord::Unlimited => Enforcement::Unlimited,
    };
    let custom = custom.is_some_and(|found| found.value);
    Some(Limit { enforcement, nudge_at_percent, nudge_at_units, custom })
}

const IF_UNLIMITED: &str = "where enforcement is \"unlimited\"";
const UNLESS_UNLIMITED: &str = "unless enforcement is \"unlimited\"";

fn read_granted(
    reader: &mut Reader,
    limit: &Section<'_>,
    word: Option<EnforcementWord>,
) -> Option<i64> {
    let granted = match word {
        Some(EnforcementWord::Hard | EnforcementWord::Soft) => {
            reader.required_value(limit, "granted", &rules::QUANTITY)
        }
        Some(EnforcementWord::Unlimited) => {
            reader.left_out(limit, "granted", IF_UNLIMITED);
            None
        }
        None => reader.optional_value(limit, "granted", &rules::QUANTITY),
    };
    granted.map(|found| found.value)
}

/// The percents of the granted amount, and the units where there is no such amount. The gate
/// closes at 100 % of a hard limit, so nothing above is worth telling.
fn read_nudges(
    reader: &mut Reader,
    limit: &Section<'_>,
    word: Option<EnforcementWord>,
) -> (Vec<u16>, Vec<i64>) {
    const PERCENTS: &str = "nudge_at_percent";
    const UNITS: &str = "nudge_at";
    let percents = match word {
        Some(EnforcementWord::Unlimited) => {
            reader.left_out(limit, PERCENTS, IF_UNLIMITED);
            Vec::new()
        }
        Some(EnforcementWord::Hard) => read_ascending(reader, limit, PERCENTS, &rules::PERCENT),
        Some(EnforcementWord::Soft) | None => {
            read_ascending(reader, limit, PERCENTS, &rules::PERCENT_AND_BEYOND)
        }
    };
    let units = match word {
        Some(EnforcementWord::Hard | EnforcementWord::Soft) => {
            reader.left_out(limit, UNITS, UNLESS_UNLIMITED);
            Vec::new()
        }
        Some(EnforcementWord::Unlimited) | None => {
            read_ascending(reader, limit, UNITS, &rules::UNITS)
        }
    };
    (percents, units)
}

/// The list's numbers in ascending order, each once; none unless they are written down.
fn read_ascending<T: Ord + Copy + std::fmt::Display>(
    reader: &mut Reader,
    limit: &Section<'_>,
    key: &str,
    rule: &Rule<T>,
) -> Vec<T> {
    let Some(node) = reader.optional(limit, key) else {
        return Vec::new();
    };
    let mut numbers = Vec::new();
    for member in reader.list(&node).unwrap_or_default() {
        let Some(number) = reader.value(&member, rule) else {
            continue;
        };
        if numbers.contains(&number.value) {
            reader.wrong(&number.place, format!("must not repeat {}", number.value));
        }
        numbers.push(number.value);
    }
    numbers.sort_unstable();
    numbers
}
