//! What templates may do with a value.

use tera::{Kwargs, State, Tera, TeraResult};

use crate::clock::Timestamp;

/// Registers the filters, and takes away the two functions that Tera brings along: `range`, with
/// which a loop can run for a very long time, and `throw`, which can put a customer's name into an
/// error. (Tera 2.4 has no `get_env`; files outside the set cannot be included.)
pub(super) fn register(tera: &mut Tera) {
    tera.register_filter("number", |value: i64, _: Kwargs, _: &State| number(value));
    tera.register_filter("date", date);
    tera.register_filter("counted", counted);
    tera.register_filter("first_days", |days: i64, _: Kwargs, _: &State| first_days(days));
    for function in ["range", "throw"] {
        tera.register_function(function, move |_: Kwargs, _: &State| -> TeraResult<bool> {
            Err(tera::Error::message(format!("`{function}` is not available in mails")))
        });
    }
}

/// `2000` → `2,000`.
fn number(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if value < 0 {
        grouped.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `2026-12-01T00:00:00Z` → `December 1`, in UTC. No mail speaks of a day more than a period away,
/// so the year goes without saying.
fn date(value: &str, _: Kwargs, _: &State) -> TeraResult<String> {
    let moment: Timestamp =
        value.parse().map_err(|_| tera::Error::message("`date` wants a time"))?;
    Ok(month_and_day(moment))
}

fn month_and_day(moment: Timestamp) -> String {
    moment.to_jiff().strftime("%B %-d").to_string()
}

/// `2000 | counted(one="run", many="AI runs")` → `2,000 AI runs`, and `1 run` for one. Without
/// `many` the plural is made from `one` by the rules of English.
fn counted(value: i64, words: Kwargs, _: &State) -> TeraResult<String> {
    let one: &str = words.must_get("one")?;
    let many: Option<&str> = words.get("many")?;
    Ok(match (value, many) {
        (1, _) => format!("1 {one}"),
        (_, Some(many)) => format!("{} {many}", number(value)),
        (_, None) => format!("{} {}", number(value), plural(one)),
    })
}

fn plural(one: &str) -> String {
    let ends = |endings: &[&str]| endings.iter().any(|ending| one.ends_with(ending));
    match one.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
        _ if ends(&["s", "x", "ch", "sh"]) => format!("{one}es"),
        _ => format!("{one}s"),
    }
}

/// `14` → `in the first 14 days`.
fn first_days(days: i64) -> String {
    if days <= 1 {
        "on the first day".to_owned()
    } else {
        format!("in the first {} days", number(days))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_thousands() {
        let shown = [0, 999, 1000, 1_234_567, -45_000, i64::MIN].map(number);
        assert_eq!(
            shown,
            ["0", "999", "1,000", "1,234,567", "-45,000", "-9,223,372,036,854,775,808"]
        );
    }

    #[test]
    fn plurals_are_english() {
        assert_eq!(
            ["run", "query", "day", "batch", "pass"].map(plural),
            ["runs", "queries", "days", "batches", "passes"]
        );
    }

    #[test]
    fn dates_are_months_and_days() {
        assert_eq!(month_and_day("2026-12-01T00:00:00Z".parse().unwrap()), "December 1");
        assert_eq!(month_and_day("2028-02-29T23:59:59.999Z".parse().unwrap()), "February 29");
        assert_eq!(
            [1, 2, 30].map(first_days),
            ["on the first day", "in the first 2 days", "in the first 30 days"]
        );
    }
}
