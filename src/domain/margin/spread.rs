//! Percentiles by nearest rank: the p-th is the smallest value that at least p % of the customers
//! do not exceed. It is always one customer's own value, never a mean of two.

use serde::Serialize;

use crate::domain::cost::Picodollars;

/// The nearest-rank percentile of ascending values; `None` if there are none.
pub(super) fn nearest_rank<T: Copy>(ascending: &[T], percent: usize) -> Option<T> {
    let rank = (ascending.len() * percent).div_ceil(100).max(1);
    ascending.get(rank - 1).copied()
}

/// How a count spreads over customers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CountSpread {
    pub p10: i64,
    pub p50: i64,
    pub p90: i64,
    pub p99: i64,
    pub max: i64,
}

/// How an amount spreads over customers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MoneySpread {
    pub p10: Picodollars,
    pub p50: Picodollars,
    pub p90: Picodollars,
    pub p99: Picodollars,
    pub max: Picodollars,
}

impl CountSpread {
    /// `None` if there are no values.
    pub fn of(mut values: Vec<i64>) -> Option<Self> {
        values.sort_unstable();
        let at = |percent| nearest_rank(&values, percent);
        Some(Self { p10: at(10)?, p50: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

impl MoneySpread {
    /// `None` if there are no values.
    pub fn of(ascending: &[Picodollars]) -> Option<Self> {
        let at = |percent| nearest_rank(ascending, percent);
        Some(Self { p10: at(10)?, p50: at(50)?, p90: at(90)?, p99: at(99)?, max: at(100)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_percentile_is_a_value_and_not_a_mean() {
        // The textbook case of nearest rank: of 15, 20, 35, 40, 50 the 40th percentile is 20.
        let values = [15, 20, 35, 40, 50];
        let at = |percent| nearest_rank(&values, percent);
        assert_eq!(
            [at(5), at(30), at(40), at(50), at(100)].map(Option::unwrap),
            [15, 20, 20, 35, 50]
        );
        assert_eq!(nearest_rank::<i64>(&[], 50), None);
        assert_eq!(nearest_rank(&[7], 10), Some(7));
    }

    proptest! {
        /// The definition itself as the oracle: the smallest value that enough do not exceed.
        #[test]
        fn nearest_rank_is_its_definition(mut values in prop::collection::vec(0_i64..50, 1..200), percent in 1_usize..=100) {
            values.sort_unstable();
            let covers = |v: &&i64| values.iter().filter(|x| x <= v).count() * 100 >= percent * values.len();
            prop_assert_eq!(nearest_rank(&values, percent), values.iter().find(covers).copied());
        }
    }
}
