//! The report as tables of words, the same for the terminal and for the page.

use serde::Serialize;

use crate::domain::answer::thousands;
use crate::domain::cost::Picodollars;
use crate::domain::margin::{
    CountSpread, Group, MoneySpread, Outcome, PlanReport, Report, Scenario,
};

/// The first column names the row, the others are numbers.
#[derive(Debug, Serialize)]
pub struct Table {
    pub title: String,
    /// What has to be known to read it.
    pub note: String,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// How many customers a list shows; the JSON has all of them.
const LISTED: usize = 10;

impl Table {
    fn new(title: &str, note: impl Into<String>, header: &[&str]) -> Self {
        let header = header.iter().map(|&name| name.to_owned()).collect();
        Self { title: title.to_owned(), note: note.into(), header, rows: Vec::new() }
    }
}

/// `81.0 %`, rounded once more from hundredths, halves away from zero.
pub fn percent(basis_points: Option<i64>) -> String {
    let Some(points) = basis_points else { return "–".to_owned() };
    let tenths = (points.abs() + 5) / 10;
    let sign = if points < 0 && tenths > 0 { "-" } else { "" };
    format!("{sign}{}.{} %", thousands(tenths / 10), tenths % 10)
}

/// `1 month` or `3 months`.
pub fn counted(count: impl TryInto<i64>, one: &str, many: &str) -> String {
    let count = count.try_into().unwrap_or(i64::MAX);
    format!("{} {}", thousands(count), if count == 1 { one } else { many })
}

pub fn day(moment: crate::clock::Timestamp) -> String {
    moment.to_jiff().strftime("%Y-%m-%d").to_string()
}

/// What has to be said before any number.
pub fn notes(report: &Report) -> Vec<String> {
    let runs = |count: u64| counted(count, &report.unit, &report.feature_name);
    let mut notes = vec![format!(
        "Percentiles are over customers, not {}, by nearest rank: each is one customer's own figure. \
         Customers without any are included: {} of {}.",
        report.feature_name,
        thousands(report.all.zero_usage_customers as i64),
        thousands(report.all.customers as i64),
    )];
    if report.months != 1 {
        notes.push(format!(
            "All figures are for the whole period: prices, overheads and caps count {} times.",
            report.months
        ));
    }
    // No month is shorter than 28 days.
    if report.to.since(report.from).as_secs() < report.months as u64 * 28 * 86_400 {
        notes.push(
            "The period ends within its last month, which counts whole: as if nothing more came."
                .to_owned(),
        );
    } else if report.last_run_at.ms() < report.to.ms() - 86_400_000 {
        notes.push(format!(
            "The last {} is of {}, before the period's end: a month that is not over looks better than it will be.",
            report.unit,
            day(report.last_run_at)
        ));
    }
    if report.unpriced.runs > 0 {
        let models: Vec<_> = report
            .unpriced
            .models
            .iter()
            .take(LISTED)
            .map(|model| {
                let name = if model.model.is_empty() { "(none named)" } else { &model.model };
                format!("{name} ({})", thousands(model.runs as i64))
            })
            .collect();
        notes.push(format!(
            "{} have no known cost and count as costing nothing, so costs are too low: {}.",
            runs(report.unpriced.runs),
            models.join(", ")
        ));
    }
    if report.runs_out_of_order > 0 {
        notes.push(format!(
            "{} came before an earlier one of the same customer. Who is gated when follows the order \
             of the rows: sort them by time.",
            runs(report.runs_out_of_order)
        ));
    }
    if report.runs_outside_period > 0 {
        notes
            .push(format!("{} outside the period are left out.", runs(report.runs_outside_period)));
    }
    notes
}

/// All tables.
#[derive(Debug, Serialize)]
pub struct Tables {
    pub totals: Table,
    pub margins: Table,
    pub all: Table,
    /// One per plan that somebody is on, by rank.
    pub plans: Vec<Table>,
    /// Who is gated and what follows, and the back-test if there is one.
    pub gate: Vec<Table>,
}

impl Tables {
    pub fn of(report: &Report) -> Self {
        let used = report.plans.iter().filter(|plan| plan.group.customers > 0);
        let mut gate = vec![gated("Who meets a closed gate", report, &report.today)];
        match &report.changed {
            None => gate.push(rates(report)),
            Some(changed) => gate.extend([
                gated("Who meets a closed gate under the changed plans", report, changed),
                side_by_side(report, changed),
                gates_by_day(&report.today, changed),
            ]),
        }
        Self {
            totals: totals(report),
            margins: margins(report),
            all: spread(report, "All customers", &report.all),
            plans: used.map(|plan| spread(report, &plan.plan_name, &plan.group)).collect(),
            gate,
        }
    }

    pub fn in_order(&self) -> impl Iterator<Item = &Table> {
        [&self.totals, &self.margins, &self.all].into_iter().chain(&self.plans).chain(&self.gate)
    }
}

fn totals(report: &Report) -> Table {
    let note = "As recorded: what was used, whoever was turned away.";
    let header = [
        "plan",
        "customers",
        &report.feature_name,
        "revenue",
        "inference",
        "overhead",
        "margin",
        "margin %",
    ];
    let mut table = Table::new("Revenue, cost and margin", note, &header);
    let row = |name: &str, group: &Group, totals: &crate::domain::margin::Totals| {
        vec![
            name.to_owned(),
            thousands(group.customers as i64),
            thousands(group.units),
            totals.revenue_usd.to_string(),
            totals.inference_cost_usd.to_string(),
            totals.overhead_usd.to_string(),
            totals.margin_usd.to_string(),
            percent(totals.margin_basis_points),
        ]
    };
    table
        .rows
        .extend(report.plans.iter().map(|plan| row(&plan.plan_name, &plan.group, &plan.totals)));
    table.rows.push(row("all", &report.all, &report.totals));
    table
}

/// The columns of the margin table, and what its rows are called in the report.
const MARGIN_COLUMNS: [(&str, &str); 5] = [
    ("p50", "median"),
    ("80_percent_of_cap", "80 % of cap"),
    ("cap", "at cap"),
    ("p90", "p90"),
    ("p99", "p99"),
];

fn margins(report: &Report) -> Table {
    let note = "Of one customer, after inference and overhead. At the cap a run costs the plan's mean, or \
                all customers' mean if nobody is on the plan. A soft limit's number stands for its cap.";
    let mut header = vec!["plan", "price", "cap"];
    header.extend(MARGIN_COLUMNS.map(|(_, name)| name));
    header.extend(["below zero", "gated"]);
    let mut table = Table::new("Gross margin", note, &header);
    for plan in &report.plans {
        let mut row = vec![plan.plan_name.clone(), plan.price_usd.to_string(), cap(plan)];
        row.extend(MARGIN_COLUMNS.map(|(at, _)| {
            let found = plan.margins.iter().find(|margin| margin.at == at);
            percent(found.and_then(|margin| margin.margin_basis_points))
        }));
        row.push(thousands(plan.below_zero_customers as i64));
        row.push(thousands(plan.gated_customers as i64));
        table.rows.push(row);
    }
    table
}

fn cap(plan: &PlanReport) -> String {
    match plan.granted {
        None => "none".to_owned(),
        Some(granted) if plan.is_hard => thousands(granted),
        Some(granted) => format!("{} soft", thousands(granted)),
    }
}

fn spread(report: &Report, name: &str, group: &Group) -> Table {
    let customers = counted(group.customers, "customer", "customers");
    let note = match group.cost_per_unit_usd {
        Some(mean) => format!("{customers}; a {} costs {mean} on average.", report.unit),
        None => format!("{customers}."),
    };
    let mut table = Table::new(name, note, &["per customer", "p10", "p50", "p90", "p99", "max"]);
    let mut counts = |name: &str, spread: Option<CountSpread>| {
        if let Some(s) = spread {
            let values = [s.p10, s.p50, s.p90, s.p99, s.max].map(thousands);
            table.rows.push(std::iter::once(name.to_owned()).chain(values).collect());
        }
    };
    counts(&report.feature_name, group.units_by_customer);
    counts("input tokens", group.input_tokens_by_customer);
    counts("output tokens", group.output_tokens_by_customer);
    let mut amounts = |name: &str, spread: Option<MoneySpread>| {
        if let Some(s) = spread {
            let values = [s.p10, s.p50, s.p90, s.p99, s.max].map(|amount| amount.to_string());
            table.rows.push(std::iter::once(name.to_owned()).chain(values).collect());
        }
    };
    amounts("inference", group.inference_cost_by_customer_usd);
    amounts("loaded cost", group.loaded_cost_by_customer_usd);
    table
}

fn gated(title: &str, report: &Report, scenario: &Scenario) -> Table {
    let note = match scenario.gated_customers {
        0 => "Nobody.".to_owned(),
        all => format!(
            "{}, {} {} denied if all of them stay.{}",
            counted(all, "customer", "customers"),
            thousands(scenario.denied_units),
            report.feature_name,
            if all > LISTED { format!(" The first {LISTED}:") } else { String::new() }
        ),
    };
    let mut table = Table::new(title, note, &["customer", "plan", "first denied (UTC)", "denied"]);
    for gated in scenario.gated.iter().take(LISTED) {
        table.rows.push(vec![
            gated.customer_id.clone(),
            gated.plan_id.clone(),
            gated.at.to_jiff().strftime("%Y-%m-%d %H:%M").to_string(),
            thousands(gated.denied_units),
        ]);
    }
    table
}

const RATES_NOTE: &str = "If so many of the gated customers upgrade at once, from that month's price on, and the others \
                          stay within their cap. Rates to compare, not a forecast.";

fn outcome(outcome: &Outcome) -> [String; 4] {
    let Outcome { revenue_usd, cost_usd, margin_usd, margin_basis_points, .. } = outcome;
    let amount = |amount: &Picodollars| amount.to_string();
    [amount(revenue_usd), amount(cost_usd), amount(margin_usd), percent(*margin_basis_points)]
}

fn rates(report: &Report) -> Table {
    let header = ["upgrade", "revenue", "cost", "margin", "margin %"];
    let mut table = Table::new("With the gate, by upgrade rate", RATES_NOTE, &header);
    for row in &report.today.outcomes {
        let name = format!("{} %", row.upgrade_percent);
        table.rows.push(std::iter::once(name).chain(outcome(row)).collect());
    }
    table
}

fn side_by_side(report: &Report, changed: &Scenario) -> Table {
    let header = [
        "upgrade",
        "revenue today",
        "changed",
        "cost today",
        "changed",
        "margin today",
        "changed",
        "% today",
        "changed",
    ];
    let mut table =
        Table::new("Back-test: today's plans beside the changed ones", RATES_NOTE, &header);
    for (today, changed) in report.today.outcomes.iter().zip(&changed.outcomes) {
        let pairs = outcome(today).into_iter().zip(outcome(changed));
        let name = format!("{} %", today.upgrade_percent);
        let cells = pairs.flat_map(|(today, changed)| [today, changed]);
        table.rows.push(std::iter::once(name).chain(cells).collect());
    }
    table
}

fn gates_by_day(today: &Scenario, changed: &Scenario) -> Table {
    let header = ["day", "today", "changed"];
    let note = "Customers who meet a closed gate for the first time.";
    let mut table = Table::new("Back-test: gated by day", note, &header);
    let on = |scenario: &Scenario, day: &str| {
        let found = scenario.gated_by_day.iter().find(|count| count.day == day);
        thousands(found.map_or(0, |count| count.customers as i64))
    };
    let all = today.gated_by_day.iter().chain(&changed.gated_by_day);
    let days: std::collections::BTreeSet<_> = all.map(|count| count.day.as_str()).collect();
    table
        .rows
        .extend(days.into_iter().map(|day| vec![day.to_owned(), on(today, day), on(changed, day)]));
    table
}
