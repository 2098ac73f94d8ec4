use bigdecimal::BigDecimal;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::plan::Catalog;

fn models(input: &str, output: &str, cached: &str) -> BTreeMap<String, ModelPrices> {
    let source = format!(
        "[features.runs]\nname = \"Runs\"\nunit = \"run\"\n\
         [[plans]]\nid = \"free\"\nname = \"Free\"\nrank = 1\n\
         limits.runs = {{ granted = 5, enforcement = \"hard\" }}\n\
         [models.m]\ninput = \"{input}\"\noutput = \"{output}\"\ncached_input = \"{cached}\"\n\
         [[models.m.prices]]\nfrom = \"2027-01-01\"\ninput = \"2\"\noutput = \"2\"\n"
    );
    Catalog::parse(&source).expect("a valid plans file").models
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn cached_tokens_are_part_of_the_input_and_cost_their_own_price() {
    let models = models("3", "15", "0.30");
    let tokens = Tokens { input: 1000, cached_input: 400, output: 10 };
    let before = at("2026-11-01T00:00:00Z");
    // 600 × $3 + 400 × $0.30 + 10 × $15, each per million: $0.00207.
    assert_eq!(cost(&models, "m", tokens, before), Ok(2_070_000_000));
    // From the new year on everything is $2.
    assert_eq!(cost(&models, "m", tokens, at("2027-01-01T00:00:00Z")), Ok(2_020_000_000));
    assert_eq!(cost(&models, "other", tokens, before), Err(Unpriced::UnknownModel));
    let dear = self::models("1000000", "1000000", "1000000");
    let huge = Tokens { input: 1_000_000_000, cached_input: 0, output: 0 };
    assert_eq!(cost(&dear, "m", huge, before), Err(Unpriced::TooLarge));
}

/// A price of up to six decimals, as people write it.
fn price() -> impl Strategy<Value = String> {
    (0_u32..5000, 0_u32..1_000_000).prop_map(|(whole, rest)| format!("{whole}.{rest:06}"))
}

proptest! {
    /// The oracle works with decimal numbers of any length and rounds nothing.
    #[test]
    fn costs_equal_a_big_decimals(
        (input, output, cached) in (price(), price(), price()),
        (fresh, hits, written) in (0_i64..400_000, 0_i64..400_000, 0_i64..400_000),
    ) {
        let tokens = Tokens { input: fresh + hits, cached_input: hits, output: written };
        let cost = cost(&models(&input, &output, &cached), "m", tokens, at("2026-11-01T00:00:00Z"));
        let dollars = |tokens: i64, price: &str| -> BigDecimal {
            BigDecimal::from(tokens) * price.parse::<BigDecimal>().unwrap() / 1_000_000
        };
        let oracle = dollars(fresh, &input) + dollars(hits, &cached) + dollars(written, &output);
        let ours: BigDecimal = Picodollars(cost.unwrap().into()).exact().parse().unwrap();
        prop_assert_eq!(ours, oracle);
    }
}

#[test]
fn amounts_are_exact_for_machines_and_rounded_for_people() {
    for (picodollars, exact, shown) in [
        (0, "0.00", "$0.00"),
        (29_000_000_000_000, "29.00", "$29.00"),
        (12_500_000_000, "0.0125", "$0.0125"),
        (2_070_000_000, "0.00207", "$0.00207"),
        (1, "0.000000000001", "$0.00"),
        (1_234_565_000_000_000, "1234.565", "$1,234.57"),
        (-5_500_000_000_000, "-5.50", "-$5.50"),
        (999_999_999_999, "0.999999999999", "$1.00"),
    ] {
        let amount = Picodollars(picodollars);
        assert_eq!((amount.exact().as_str(), amount.to_string().as_str()), (exact, shown));
    }
}

#[test]
fn a_run_without_tokens_or_a_known_model_has_no_cost() {
    let models = models("1", "1", "1");
    let cost = |properties: Value| {
        let (run, _) = RunFacts::from_properties(properties.as_object().unwrap().clone()).unwrap();
        cost_of_run(&models, &run, at("2026-11-01T00:00:00Z"))
    };
    assert_eq!(cost(json!({"model": "m", "output_tokens": 3})), Some(3_000_000));
    assert_eq!(cost(json!({"model": "m"})), None);
    assert_eq!(cost(json!({"model": "n", "output_tokens": 3})), None);
    assert_eq!(cost(json!({"output_tokens": 3})), None);
}
