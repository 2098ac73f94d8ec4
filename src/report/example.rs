//! A CSV file of usage to try the report on: the same number of rows is the same file for ever.

use std::io::{self, Write};

use crate::clock::Timestamp;

/// 2026-10-01T00:00:00Z, and 31 days in seconds.
const START: Timestamp = Timestamp::from_seconds(1_790_812_800);
const MONTH_SECONDS: u64 = 31 * 86_400;

/// The mean number of runs of a customer.
const RUNS_PER_CUSTOMER: u64 = 500;

/// SplitMix64 (Steele, Lea and Flood, 2014). The library's generators may change with their
/// version; an example must not.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`, small numbers being likelier: the product of two.
    fn small_below(&mut self, end: u64) -> u64 {
        (self.next() % end) * (self.next() % end) / end
    }
}

struct Customer {
    plan: &'static str,
    /// Where this customer's share of the runs ends.
    weight_ends: u64,
    /// Some send whole documents: their runs have so many times the tokens.
    run_size: u64,
}

/// Of twenty customers fifteen are on Starter, four on Pro, one is on Team.
fn customers(count: u64, numbers: &mut Numbers) -> Vec<Customer> {
    let mut weight_ends = 0;
    let customer = |index| {
        let (plan, least, spread) = match index % 20 {
            0 => ("team", 1500, 9000),
            1..=4 => ("pro", 100, 5200),
            _ => ("starter", 2, 600),
        };
        weight_ends += least + numbers.small_below(spread);
        let run_size = 1 + numbers.small_below(4);
        Customer { plan, weight_ends, run_size }
    };
    (0..count).map(customer).collect()
}

/// Writes a header and `rows` rows, in order of time over October 2026. Of a thousand runs one is of
/// a model that no plans file knows.
///
/// # Errors
/// What `out` could not take.
pub fn write_usage(out: &mut impl Write, rows: u64) -> io::Result<()> {
    let mut numbers = Numbers(42);
    let customers = customers(rows.div_ceil(RUNS_PER_CUSTOMER).max(1), &mut numbers);
    let weights = customers.last().map_or(1, |last| last.weight_ends);
    writeln!(out, "customer,timestamp,model,input_tokens,output_tokens,cached_input_tokens,plan")?;
    for row in 0..rows {
        let drawn = numbers.next() % weights;
        let index = customers.partition_point(|customer| customer.weight_ends <= drawn);
        let seconds = u128::from(row) * u128::from(MONTH_SECONDS) / u128::from(rows);
        let at = Timestamp::from_seconds(START.seconds() + seconds as i64);
        let model =
            if numbers.next().is_multiple_of(1000) { "claude-next" } else { "claude-haiku" };
        let Customer { plan, run_size, .. } = customers[index];
        let input = run_size * (500 + numbers.small_below(16_000));
        let cached = if numbers.next().is_multiple_of(3) { input * 4 / 5 } else { 0 };
        let output = run_size * (100 + numbers.small_below(4000));
        writeln!(out, "c{:05},{at},{model},{input},{output},{cached},{plan}", index + 1)?;
    }
    Ok(())
}
