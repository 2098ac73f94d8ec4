//! The figures by hand, and against an oracle that keeps every run and counts in big decimals.

use bigdecimal::BigDecimal;
use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::domain::cost::{Tokens, cost};
use crate::domain::plan::{Catalog, Feature};

const TIERS: &str = include_str!("../../../examples/three-tiers.toml");

fn catalog(source: &str) -> Catalog {
    Catalog::parse(source).expect("a valid plans file")
}

fn feature(catalog: &Catalog) -> &Feature {
    &catalog.features["ai_runs"]
}

fn tariff(catalog: &Catalog) -> Tariff {
    Tariff::of(catalog, &feature(catalog).id).expect("a tariff")
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a moment")
}

fn november() -> Span {
    Span { from: Some(at("2026-11-01T00:00:00Z")), to: Some(at("2026-12-01T00:00:00Z")) }
}

fn wishes() -> Wishes {
    Wishes { target_margin_percent: 70, upgrade_percents: vec![0, 50, 100] }
}

/// The dollars of a run in the example: 3,000 tokens in, 500 out, $0.0125.
const EXAMPLE_RUN: Tokens = Tokens { input: 3000, cached_input: 0, output: 500 };

/// Books a customer's runs, one an hour from the first of November on.
fn book(ledger: &mut Ledger, catalog: &Catalog, customer: &str, plan: &str, runs: i64) {
    let plan = ledger.tariff().find(plan);
    ledger.customer(customer, plan);
    for hour in 0..runs {
        let at = Timestamp::from_seconds(at("2026-11-01T00:00:00Z").seconds() + hour * 360);
        let cost = cost(&catalog.models, "example-model", EXAMPLE_RUN, at).ok();
        let (model, tokens) = ("example-model", EXAMPLE_RUN);
        ledger.record(&Run { customer_id: customer, plan, at, units: 1, model, tokens, cost });
    }
}

fn whole_percent(basis_points: Option<i64>) -> i64 {
    rounded_quotient(i128::from(basis_points.unwrap()), 100) as i64
}

fn margin(report: &Report, plan: &str, at: &str) -> (String, i64) {
    let plan = report.plans.iter().find(|row| row.plan_id == plan).unwrap();
    let row = plan.margins.iter().find(|row| row.at == at).unwrap();
    (row.loaded_cost_usd.to_string(), whole_percent(row.margin_basis_points))
}

#[test]
fn the_articles_three_tiers_leave_what_it_says() {
    let catalog = catalog(TIERS);
    let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
    book(&mut ledger, &catalog, "small", "starter", 200);
    book(&mut ledger, &catalog, "middle", "pro", 1500);
    book(&mut ledger, &catalog, "large", "team", 6000);
    let report = ledger.report(feature(&catalog), &wishes()).unwrap();
    assert_eq!(margin(&report, "starter", "cap"), ("$5.50".to_owned(), 81));
    assert_eq!(margin(&report, "pro", "p50"), ("$23.75".to_owned(), 76));
    assert_eq!(margin(&report, "pro", "cap"), ("$30.00".to_owned(), 70));
    assert_eq!(margin(&report, "team", "cap"), ("$85.00".to_owned(), 79));
    assert_eq!(margin(&report, "starter", "80_percent_of_cap"), ("$5.00".to_owned(), 83));
    assert_eq!(report.totals.revenue_usd.exact(), "527.00");
    // $2.50 + $18.75 + $75, and $3 + $5 + $10.
    assert_eq!(report.totals.inference_cost_usd.exact(), "96.25");
    assert_eq!(report.totals.overhead_usd.exact(), "18.00");
    assert_eq!(report.today.gated_customers, 0);
}

#[test]
fn customers_without_a_run_are_in_every_spread_and_pay() {
    let catalog = catalog(TIERS);
    let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
    book(&mut ledger, &catalog, "busy", "starter", 100);
    for idle in ["b", "c", "d"] {
        ledger.customer(idle, None);
    }
    let report = ledger.report(feature(&catalog), &wishes()).unwrap();
    assert_eq!((report.all.customers, report.all.zero_usage_customers), (4, 3));
    let runs = report.all.units_by_customer.unwrap();
    assert_eq!((runs.p50, runs.p90, runs.max), (0, 100, 100));
    let loaded = report.all.loaded_cost_by_customer_usd.unwrap();
    assert_eq!((loaded.p50.exact(), loaded.max.exact()), ("3.00".into(), "4.25".into()));
    assert_eq!(report.totals.revenue_usd.exact(), "116.00");
}

#[test]
fn a_customer_over_its_cap_is_gated_at_the_run_that_is_denied() {
    let catalog = catalog(TIERS);
    let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
    book(&mut ledger, &catalog, "over", "starter", 240);
    book(&mut ledger, &catalog, "at", "starter", 200);
    let report = ledger.report(feature(&catalog), &wishes()).unwrap();
    let [gated] = report.today.gated.as_slice() else { panic!("{:?}", report.today) };
    // Run 201 comes 200 times six minutes after the first.
    assert_eq!((gated.customer_id.as_str(), gated.at), ("over", at("2026-11-01T20:00:00Z")));
    assert_eq!(gated.denied_units, 40);
    let [nobody, half, all] = report.today.outcomes.as_slice() else { panic!() };
    // Both stay: 2 × $29, 400 runs and 2 × $3. The one upgrades: $29 + $99, 440 runs, $3 + $5.
    assert_eq!(
        (nobody.revenue_usd.exact(), nobody.cost_usd.exact()),
        ("58.00".into(), "11.00".into())
    );
    assert_eq!((all.revenue_usd.exact(), all.cost_usd.exact()), ("128.00".into(), "13.50".into()));
    assert_eq!((half.revenue_usd.exact(), half.cost_usd.exact()), ("93.00".into(), "12.25".into()));
}

#[test]
fn a_changed_file_is_held_against_the_same_runs() {
    let today = catalog(TIERS);
    let changed =
        catalog(&TIERS.replace("granted = 200,", "granted = 50,").replace("29.00", "39.00"));
    let mut ledger = Ledger::new(tariff(&today), Some(tariff(&changed)), november()).unwrap();
    book(&mut ledger, &today, "a", "starter", 60);
    book(&mut ledger, &today, "b", "starter", 50);
    let report = ledger.report(feature(&today), &wishes()).unwrap();
    let changed = report.changed.unwrap();
    assert_eq!((report.today.gated_customers, changed.gated_customers), (0, 1));
    assert_eq!(changed.gated_by_day, [DayCount { day: "2026-11-01".to_owned(), customers: 1 }]);
    assert_eq!(report.today.outcomes[0].revenue_usd.exact(), "58.00");
    assert_eq!(changed.outcomes[0].revenue_usd.exact(), "78.00");
    let lacking = self::catalog(
        &TIERS
            .replace("id = \"team\"", "id = \"crew\"")
            .replace("\"team\"", "\"crew\"")
            .replace("team =", "crew ="),
    );
    let refused = Ledger::new(tariff(&today), Some(tariff(&lacking)), november());
    assert_eq!(refused.err().as_deref(), Some("team"));
}

#[test]
fn caps_open_again_with_the_month_and_an_upgrade_pays_from_its_month_on() {
    let catalog = catalog(TIERS);
    let span = Span { to: Some(at("2027-02-01T00:00:00Z")), ..november() };
    let mut ledger = Ledger::new(tariff(&catalog), None, span).unwrap();
    let run = |at, units| Run {
        customer_id: "c",
        plan: None,
        at,
        units,
        model: "",
        tokens: Tokens::default(),
        cost: Some(0),
    };
    ledger.record(&Run { customer_id: "gone", ..run(at("2026-10-31T23:59:59Z"), 1) });
    ledger.record(&run(at("2026-11-30T23:00:00Z"), 200));
    ledger.record(&run(at("2026-12-01T00:00:00Z"), 200));
    ledger.record(&run(at("2026-12-02T00:00:00Z"), 1));
    ledger.record(&run(at("2027-02-01T00:00:00Z"), 1));
    let report = ledger.report(feature(&catalog), &wishes()).unwrap();
    assert_eq!((report.months, report.runs_outside_period), (3, 2));
    assert_eq!((report.all.customers, report.all.zero_usage_customers), (2, 1));
    assert_eq!(report.today.gated[0].at, at("2026-12-02T00:00:00Z"));
    // November at $29, December and January at $99; who is gone pays 3 × $29.
    assert_eq!(report.today.outcomes[2].revenue_usd.exact(), "314.00");
}

#[test]
fn runs_of_unknown_models_are_counted_and_not_guessed() {
    let catalog = catalog(TIERS);
    let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
    book(&mut ledger, &catalog, "c", "starter", 2);
    for (model, times) in [("gpt-9", 3), ("", 1)] {
        for _ in 0..times {
            let at = at("2026-11-02T00:00:00Z");
            let (plan, tokens, cost) = (None, EXAMPLE_RUN, None);
            ledger.record(&Run { customer_id: "c", plan, at, units: 1, model, tokens, cost });
        }
    }
    let report = ledger.report(feature(&catalog), &wishes()).unwrap();
    let named: Vec<_> = report.unpriced.models.iter().map(|m| (m.model.as_str(), m.runs)).collect();
    assert_eq!((report.unpriced.runs, named), (4, vec![("gpt-9", 3), ("", 1)]));
    // The mean is over the two runs that have a cost.
    assert_eq!(report.all.cost_per_unit_usd.unwrap().exact(), "0.0125");
}

fn advice<'a>(report: &'a Report, subject: Subject, plan: &str) -> &'a Advice {
    let about = |advice: &&Advice| {
        advice.subject == subject && advice.plan_id.as_deref().is_none_or(|id| id == plan)
    };
    report.advice.iter().find(about).expect("such advice")
}

#[test]
fn advice_shows_its_arithmetic() {
    let catalog = catalog(TIERS);
    let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
    book(&mut ledger, &catalog, "small", "starter", 200);
    book(&mut ledger, &catalog, "middle", "pro", 2400);
    let report = ledger.report(feature(&catalog), &wishes()).unwrap();
    let floor = advice(&report, Subject::PriceFloor, "starter");
    // 160 runs at $0.0125 and $3 are $5; $5 ÷ 0.3 is $16.666….
    assert_eq!(floor.price_usd.unwrap().exact(), "16.67");
    assert_eq!(
        floor.arithmetic,
        "(80 % × 200 AI runs × $0.0125 + $3.00 overhead) ÷ (1 − 70 %) = $5.00 ÷ 0.30 = $16.67"
    );
    // $26 ÷ (0.8 × $0.0125) is 2,600 to the cent: 2,599 leave something.
    assert_eq!(advice(&report, Subject::Cap, "starter").units, Some(2599));
    // $30 + $5 at p90; ÷ 0.3 is $116.666….
    assert_eq!(advice(&report, Subject::P90Price, "pro").price_usd.unwrap().exact(), "116.67");
    assert_eq!(advice(&report, Subject::Outliers, "team").customers, ["middle"]);
    let caps = advice(&report, Subject::CapsOrCredits, "");
    assert!(caps.advice.starts_with("Caps:") && caps.arithmetic.contains("1.0×"), "{caps:?}");
}

#[test]
fn the_spread_of_cost_per_run_decides_between_caps_and_credits() {
    let catalog = catalog(TIERS);
    for (times, verdict) in [(2, "Caps:"), (3, "Between"), (4, "Between"), (5, "Credits:")] {
        let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
        for (customer_id, cost) in [("cheap", 1000), ("dear", 1000 * times)] {
            let (plan, at, model) = (None, at("2026-11-02T00:00:00Z"), "m");
            let (tokens, cost) = (Tokens::default(), Some(cost));
            ledger.record(&Run { customer_id, plan, at, units: 1, model, tokens, cost });
        }
        let report = ledger.report(feature(&catalog), &wishes()).unwrap();
        let found = &advice(&report, Subject::CapsOrCredits, "").advice;
        assert!(found.starts_with(verdict), "{times}: {found}");
    }
}

/// A run of the oracle's world: customer, hour of the month, tokens.
type Drawn = (usize, i64, i64, i64);

/// What the oracle says of a customer: units, dollars, whether and when it is gated.
fn judged(runs: &[Drawn], customer: usize, cap: usize) -> (i64, BigDecimal, Option<i64>) {
    let own: Vec<_> = runs.iter().filter(|run| run.0 == customer).collect();
    let million = BigDecimal::from(1_000_000);
    let dollars = own.iter().map(|(_, _, input, output)| {
        (BigDecimal::from(*input) * "2.50".parse::<BigDecimal>().unwrap()
            + BigDecimal::from(*output) * BigDecimal::from(10))
            / &million
    });
    (own.len() as i64, dollars.sum(), own.get(cap).map(|run| run.1))
}

proptest! {
    #[test]
    fn figures_equal_an_oracle_that_keeps_every_run(
        mut runs in prop::collection::vec((0_usize..12, 0_i64..700, 0_i64..90_000, 0_i64..9000), 1..250),
        cap in 1_usize..30,
    ) {
        runs.sort_by_key(|run| run.1);
        let catalog = catalog(&TIERS.replace("granted = 200,", &format!("granted = {cap},")));
        let mut ledger = Ledger::new(tariff(&catalog), None, november()).unwrap();
        let ids: Vec<_> = (0..12).map(|n| format!("c{n}")).collect();
        for id in &ids { ledger.customer(id, None); }
        let moment = |hour: i64| Timestamp::from_seconds(at("2026-11-01T00:00:00Z").seconds() + hour * 3600);
        for (customer, hour, input, output) in &runs {
            let tokens = Tokens { input: *input, cached_input: 0, output: *output };
            let (at, model, plan) = (moment(*hour), "example-model", None);
            let cost = cost(&catalog.models, model, tokens, at).ok();
            ledger.record(&Run { customer_id: &ids[*customer], plan, at, units: 1, model, tokens, cost });
        }
        let report = ledger.report(feature(&catalog), &wishes()).unwrap();
        let customers: Vec<_> = (0..12).map(|customer| judged(&runs, customer, cap)).collect();
        let exact = |amount: Picodollars| amount.exact().parse::<BigDecimal>().unwrap();

        let total: BigDecimal = customers.iter().map(|customer| customer.1.clone()).sum();
        prop_assert_eq!(exact(report.totals.inference_cost_usd), total.clone());
        let mut loaded: Vec<_> = customers.iter().map(|c| &c.1 + BigDecimal::from(3)).collect();
        loaded.sort();
        let spread = report.all.loaded_cost_by_customer_usd.unwrap();
        // Of twelve: ranks 2, 6, 11, 12.
        for (ours, rank) in [(spread.p10, 2), (spread.p50, 6), (spread.p90, 11), (spread.p99, 12)] {
            prop_assert_eq!(exact(ours), loaded[rank - 1].clone());
        }
        let price = BigDecimal::from(29);
        let below = loaded.iter().filter(|cost| **cost > price).count();
        prop_assert_eq!(report.plans[0].below_zero_customers, below);
        let revenue = BigDecimal::from(12 * 29);
        let margin = (&revenue - (&total + BigDecimal::from(36))) * BigDecimal::from(10_000) / revenue;
        let rounded = margin.with_scale_round(0, bigdecimal::RoundingMode::HalfUp);
        prop_assert_eq!(BigDecimal::from(report.totals.margin_basis_points.unwrap()), rounded);

        let mut gated: Vec<_> = customers.iter().zip(&ids)
            .filter_map(|(customer, id)| Some((moment(customer.2?), id.clone()))).collect();
        gated.sort();
        let ours: Vec<_> = report.today.gated.iter().map(|g| (g.at, g.customer_id.clone())).collect();
        prop_assert_eq!(ours, gated);
    }
}
