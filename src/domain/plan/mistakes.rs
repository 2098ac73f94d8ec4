//! What is wrong with a plans file, in words that let its author mend it at once.

use std::fmt;

/// One mistake in the plans file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanFileMistake {
    /// Counted from 1.
    pub line: usize,
    /// The way to the key, plans by their id: `plans.pro.price.amount`; a plan without a usable
    /// id by its place, counted from 0: `plans[1].name`. Empty if the file as a whole is meant.
    pub key: String,
    /// What was wanted: `must be …`.
    pub wanted: String,
}

/// Every mistake in a plans file, in the order of its lines; never empty.
///
/// Displayed as one line each: `plans.toml:12: plans.pro.price.amount: must be …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanFileErrors {
    file: String,
    mistakes: Vec<PlanFileMistake>,
}

impl PlanFileErrors {
    pub(super) fn new(mut mistakes: Vec<PlanFileMistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.line);
        Self { file: "plans.toml".to_owned(), mistakes }
    }

    /// The same mistakes, shown under the name by which the operator knows the file.
    #[must_use]
    pub fn in_file(self, file: impl Into<String>) -> Self {
        Self { file: file.into(), ..self }
    }

    pub fn mistakes(&self) -> &[PlanFileMistake] {
        &self.mistakes
    }
}

impl fmt::Display for PlanFileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}: ", self.file, mistake.line)?;
            if !mistake.key.is_empty() {
                write!(f, "{}: ", mistake.key)?;
            }
            f.write_str(&mistake.wanted)?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanFileErrors {}

/// The candidate that `word` was most likely meant to be; `None` if none is close.
///
/// Close means at most one slip (a letter too many, missing, wrong, or two swapped) per three
/// letters.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    /// No key or variable is longer; a longer word is not worth comparing.
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (slips(word, candidate), candidate))
        .filter(|(slips, _)| slips * 3 <= word.chars().count())
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// The edit distance with swaps of neighbours (optimal string alignment).
fn slips(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let wrong = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + wrong);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_key_and_a_strange_word_finds_none() {
        let keys = ["name", "unit", "stripe_meter"];
        assert_eq!(nearest("nmae", keys), Some("name"));
        assert_eq!(nearest("units", keys), Some("unit"));
        assert_eq!(nearest("stripemeter", keys), Some("stripe_meter"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest(&"name".repeat(1000), keys), None);
    }

    #[test]
    fn slips_are_counted_as_people_make_them() {
        assert_eq!(slips("kitten", "sitting"), 3);
        assert_eq!(slips("price", "prcie"), 1);
        assert_eq!(slips("", "abc"), 3);
        assert_eq!(slips("größe", "grösse"), 2);
    }

    #[test]
    fn mistakes_are_shown_one_per_line_in_the_order_of_the_file() {
        let mistake = |line, key: &str, wanted: &str| PlanFileMistake {
            line,
            key: key.to_owned(),
            wanted: wanted.to_owned(),
        };
        let errors = PlanFileErrors::new(vec![
            mistake(12, "plans.pro.rank", "must be a whole number"),
            mistake(3, "", "is not TOML"),
        ]);
        let shown = errors.clone().in_file("/etc/tollgate/plans.toml").to_string();
        assert_eq!(
            shown,
            "/etc/tollgate/plans.toml:3: is not TOML\n\
             /etc/tollgate/plans.toml:12: plans.pro.rank: must be a whole number"
        );
        assert!(errors.to_string().starts_with("plans.toml:3: "));
    }
}
