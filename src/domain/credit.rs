//! Credits: what one run draws from a balance that is sold in credits instead of runs.

use crate::domain::plan::{CreditRate, Rates};
use crate::domain::run::RunFacts;
use crate::domain::usage::MAX_QUANTITY;

const NANOCREDITS_PER_CREDIT: i128 = 1_000_000_000;

/// Why it cannot be said what a run draws.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreditError {
    #[error("the run names no model, and its credits depend on that")]
    NoModel,
    /// The name is fit to be shown: see [`crate::domain::run::is_model_name`].
    #[error(
        "the run says neither how many credits it takes nor its tokens by their names, which are \
         input_tokens, cached_input_tokens and output_tokens"
    )]
    NoTokens,
    #[error("the plans file has no credits for the model {model}")]
    UnknownModel { model: String },
    #[error("the run would draw more than 1000000000 credits")]
    TooLarge,
}

/// The whole credits that `run` draws, from 1 to [`MAX_QUANTITY`].
///
/// The sum over all its tokens is rounded up once. A run never draws less than one credit, also
/// without any tokens: what has cost nothing is no run, and its reservation is released instead.
///
/// # Errors
/// When the run names no model, or one that no table knows and has no stand-in for, or
/// draws more than the gate counts at once.
pub fn credits_drawn<'c>(rates: impl Into<Rates<'c>>, run: &RunFacts) -> Result<i64, CreditError> {
    let model = run.model.as_ref().ok_or(CreditError::NoModel)?;
    let rates = rates.into();
    let rate = rates.of(model).ok_or_else(|| CreditError::UnknownModel { model: model.clone() })?;
    let rounded_up = (nanocredits(rate, run) + NANOCREDITS_PER_CREDIT - 1) / NANOCREDITS_PER_CREDIT;
    i64::try_from(rounded_up.max(1))
        .ok()
        .filter(|credits| *credits <= MAX_QUANTITY)
        .ok_or(CreditError::TooLarge)
}

/// The exact sum. Tokens and rates are at most 10¹² each, so it is at most 2·10²⁴.
fn nanocredits(rate: &CreditRate, run: &RunFacts) -> i128 {
    let part = |tokens: i64, rate: i64| i128::from(tokens) * i128::from(rate);
    part(run.uncached_input_tokens(), rate.input_nanocredits_per_token)
        + part(run.cached_input_tokens, rate.cached_input_nanocredits_per_token)
        + part(run.output_tokens, rate.output_nanocredits_per_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::{Catalog, CreditTable};
    use crate::domain::run::MAX_TOKENS;
    use proptest::prelude::*;

    /// The largest rate that the plans file takes, in nanocredits per token.
    const MAX_RATE: i64 = 1_000_000_000_000;

    /// The example's table: 0.2 credits per thousand tokens in, 1 per thousand out.
    fn example() -> CreditTable {
        let catalog = Catalog::parse(include_str!("../../plans.example.toml")).unwrap();
        catalog.credits["ai_credits"].clone()
    }

    fn run(model: &str, input: i64, cached: i64, output: i64) -> RunFacts {
        RunFacts {
            model: Some(model.to_owned()),
            input_tokens: input,
            cached_input_tokens: cached,
            output_tokens: output,
        }
    }

    fn haiku(input: i64, output: i64) -> Result<i64, CreditError> {
        credits_drawn(&example(), &run("claude-haiku", input, 0, output))
    }

    fn table(input: i64, cached: i64, output: i64) -> CreditTable {
        let rate = CreditRate {
            input_nanocredits_per_token: input,
            output_nanocredits_per_token: output,
            cached_input_nanocredits_per_token: cached,
        };
        CreditTable { rates: [("m".to_owned(), rate)].into(), unknown_models: None }
    }

    #[test]
    fn the_sum_is_rounded_up_once_and_not_each_part() {
        assert_eq!(haiku(2500, 500), Ok(1), "0.5 + 0.5");
        assert_eq!(haiku(2500, 501), Ok(2), "0.5 + 0.501");
        assert_eq!(haiku(5_000_000, 1_000_000), Ok(2000));
    }

    #[test]
    fn a_run_draws_at_least_one_credit() {
        assert_eq!(haiku(0, 0), Ok(1));
        assert_eq!(haiku(1, 0), Ok(1));
        assert_eq!(credits_drawn(&table(0, 0, 0), &run("m", 9, 0, 9)), Ok(1), "of a free model");
    }

    #[test]
    fn cached_input_has_its_own_rate_and_is_not_counted_twice() {
        let tenth = table(1_000_000, 100_000, 0);
        assert_eq!(credits_drawn(&tenth, &run("m", 10_000, 0, 0)), Ok(10));
        assert_eq!(credits_drawn(&tenth, &run("m", 10_000, 10_000, 0)), Ok(1));
        assert_eq!(credits_drawn(&tenth, &run("m", 11_000, 10_000, 0)), Ok(2));
    }

    #[test]
    fn a_run_without_a_known_model_is_refused_by_name() {
        let nameless = RunFacts { model: None, ..run("", 1, 0, 1) };
        assert_eq!(credits_drawn(&example(), &nameless), Err(CreditError::NoModel));
        let refused = credits_drawn(&example(), &run("gpt-9", 1, 0, 1)).unwrap_err();
        assert_eq!(refused.to_string(), "the plans file has no credits for the model gpt-9");
        assert!(credits_drawn(&example(), &run("Claude-Haiku", 1, 0, 1)).is_err());
    }

    #[test]
    fn an_unknown_model_draws_as_the_stated_one() {
        let mut stated = table(1_000_000, 0, 0);
        stated.unknown_models = Some(example().rates["claude-haiku"]);
        assert_eq!(credits_drawn(&stated, &run("gpt-9", 0, 0, 3000)), Ok(3));
        assert_eq!(credits_drawn(&stated, &run("m", 0, 0, 3000)), Ok(1), "m has its own rate");
        let nameless = RunFacts { model: None, ..run("", 1, 0, 1) };
        assert_eq!(credits_drawn(&stated, &nameless), Err(CreditError::NoModel));
    }

    #[test]
    fn a_run_beyond_a_thousand_million_credits_is_refused() {
        let one_each = table(0, 0, 1_000_000_000);
        assert_eq!(credits_drawn(&one_each, &run("m", 0, 0, MAX_QUANTITY)), Ok(MAX_QUANTITY));
        let one_more = run("m", 0, 0, MAX_QUANTITY + 1);
        assert_eq!(credits_drawn(&one_each, &one_more), Err(CreditError::TooLarge));
        let dearest = table(MAX_RATE, MAX_RATE, MAX_RATE);
        let largest = run("m", MAX_TOKENS, MAX_TOKENS / 2, MAX_TOKENS);
        assert_eq!(credits_drawn(&dearest, &largest), Err(CreditError::TooLarge));
    }

    /// An exact number of credits as people write it: whole ones and billionths.
    #[derive(Clone, Copy, Default)]
    struct Exact {
        whole: i128,
        billionths: i128,
    }

    impl Exact {
        /// Tokens at a rate, by long multiplication in base 10⁹: no product exceeds 10²¹.
        fn product(tokens: i64, rate: i64) -> Self {
            const BASE: i128 = 1_000_000_000;
            let (tokens, rate) = (i128::from(tokens), i128::from(rate));
            let low = tokens * (rate % BASE);
            Self { whole: tokens * (rate / BASE) + low / BASE, billionths: low % BASE }
        }

        fn plus(self, other: Self) -> Self {
            let (carry, billionths) = match self.billionths + other.billionths {
                sum if sum >= 1_000_000_000 => (1, sum - 1_000_000_000),
                sum => (0, sum),
            };
            Self { whole: self.whole + other.whole + carry, billionths }
        }

        fn rounded_up(self) -> i128 {
            if self.billionths > 0 { self.whole + 1 } else { self.whole }
        }
    }

    /// Small numbers, large ones, and the edges.
    fn up_to(max: i64) -> impl Strategy<Value = i64> {
        prop_oneof![Just(0), 1..2000_i64, 0..=1_000_000_i64, 0..=max, Just(max)]
    }

    proptest! {
        #[test]
        fn credits_are_the_exact_sum_rounded_up_between_one_and_the_most(
            rates in [up_to(MAX_RATE), up_to(MAX_RATE), up_to(MAX_RATE)],
            (uncached, cached, output) in
                (up_to(MAX_TOKENS / 2), up_to(MAX_TOKENS / 2), up_to(MAX_TOKENS)),
        ) {
            let exact = Exact::product(uncached, rates[0])
                .plus(Exact::product(cached, rates[1]))
                .plus(Exact::product(output, rates[2]))
                .rounded_up();
            let wanted = match exact {
                0 => Ok(1),
                1..=1_000_000_000 => Ok(i64::try_from(exact).unwrap()),
                _ => Err(CreditError::TooLarge),
            };
            let drawn =
                credits_drawn(&table(rates[0], rates[1], rates[2]), &run("m", uncached + cached, cached, output));
            prop_assert_eq!(drawn, wanted);
        }

        /// Nobody saves by cutting a run in two, and nobody pays for it more than one credit.
        #[test]
        fn two_halves_draw_as_much_as_the_whole_or_one_more(
            rate in 0..=10_000_000_i64,
            first in 0..=1_000_000_i64,
            second in 0..=1_000_000_i64,
        ) {
            let of = |tokens| credits_drawn(&table(0, 0, rate), &run("m", 0, 0, tokens)).unwrap();
            let more = of(first) + of(second) - of(first + second);
            prop_assert!((0..=1).contains(&more), "{more} more");
        }
    }
}
