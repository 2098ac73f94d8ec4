//! The report as one page that needs nothing else: no script, no font, no second file.

use std::sync::LazyLock;

use anyhow::Context as _;
use serde::Serialize;
use tera::{Context, Tera};

use super::charts;
use super::tables::{Tables, counted, day, notes, percent};
use crate::domain::answer::thousands;
use crate::domain::margin::{PlanReport, Report};

static PAGES: LazyLock<Tera> = LazyLock::new(|| {
    let mut pages = Tera::default();
    pages
        .add_raw_templates([
            ("table.html", include_str!("../../templates/report/table.html")),
            ("pricing.html", include_str!("../../templates/report/pricing.html")),
        ])
        .expect("the built-in page is checked by a test");
    pages
});

/// How many customers a piece of advice names.
const NAMED: usize = 10;

#[derive(Serialize)]
struct PlanCharts {
    name: String,
    color: &'static str,
    distribution: String,
    cost: String,
}

#[derive(Serialize)]
struct AdviceRow {
    advice: String,
    arithmetic: String,
    customers: String,
}

/// The whole page.
///
/// # Errors
/// What could not be drawn: a fault of this build, not of the report.
pub fn render(report: &Report) -> anyhow::Result<String> {
    let tables = Tables::of(report);
    let mut plans = Vec::new();
    for (index, plan) in report.plans.iter().enumerate() {
        if plan.group.customers > 0 {
            plans.push(plan_charts(report, plan, index)?);
        }
    }
    let totals = &report.totals;
    let figures = [
        ("customers", thousands(report.all.customers as i64)),
        (report.feature_name.as_str(), thousands(report.all.units)),
        ("revenue", totals.revenue_usd.to_string()),
        ("gross margin", percent(totals.margin_basis_points)),
        (
            "customers below zero",
            thousands(report.plans.iter().map(|p| p.below_zero_customers as i64).sum()),
        ),
        ("customers gated", thousands(report.today.gated_customers as i64)),
    ];
    let mut context = Context::new();
    context.insert("from", &day(report.from));
    context.insert("to", &day(report.to));
    context.insert("months", &counted(report.months, "month", "months"));
    context.insert("figures", &figures);
    context.insert("notes", &notes(report));
    context.insert("advice", &advice(report));
    context.insert("tables", &tables);
    context.insert("plans", &plans);
    context.insert("margin_chart", &charts::margin_by_percentile(report)?);
    PAGES.render("pricing.html", &context).context("the page does not render")
}

fn plan_charts(report: &Report, plan: &PlanReport, index: usize) -> anyhow::Result<PlanCharts> {
    Ok(PlanCharts {
        name: plan.plan_name.clone(),
        color: charts::color(index),
        distribution: charts::distribution(report, plan, index)?,
        cost: charts::cost_against_price(plan, index)?,
    })
}

fn advice(report: &Report) -> Vec<AdviceRow> {
    let row = |advice: &crate::domain::margin::Advice| {
        let named: Vec<_> = advice.customers.iter().take(NAMED).map(String::as_str).collect();
        let more = if advice.customers.len() > NAMED { ", …" } else { "" };
        AdviceRow {
            advice: advice.advice.clone(),
            arithmetic: advice.arithmetic.clone(),
            customers: format!("{}{more}", named.join(", ")),
        }
    };
    report.advice.iter().map(row).collect()
}
