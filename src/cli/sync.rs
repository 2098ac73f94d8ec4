//! `tollgate sync`: makes customers equal to what Stripe says of them, and tells what differed.

mod desk;

use std::io::IsTerminal as _;

use anyhow::anyhow;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::progress;
use super::start::StartError;
use crate::config::Config;
use crate::domain::ids::CustomerId;
use desk::Desk;

#[derive(Args)]
pub struct Options {
    /// The customer, by the product's own id.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    customer: Option<CustomerId>,
    /// Everyone who has a Stripe customer, in order of id.
    #[arg(long)]
    all: bool,
    /// Only say what differs.
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(config: &Config, options: &Options) -> Result<(), StartError> {
    let desk = Desk::open(config).await?;
    let synced = match &options.customer {
        Some(id) => sync_one(&desk, id, options).await,
        None => sync_all(&desk, options).await,
    };
    desk.close().await?;
    Ok(synced?)
}

fn dry_run(options: &Options) -> (&'static str, &'static str) {
    ("dry_run", if options.dry_run { "true" } else { "false" })
}

async fn sync_one(desk: &Desk, id: &CustomerId, options: &Options) -> anyhow::Result<()> {
    let report = desk.post(&["customers", id.as_str(), "sync"], &[dry_run(options)]).await;
    let report = report.map_err(|error| error.context(format!("{id} could not be synced")))?;
    if options.json {
        println!("{report}");
        return Ok(());
    }
    let lines = lines(&report);
    for line in &lines {
        println!("{line}");
    }
    match (list(&report["differences"]).len(), options.dry_run) {
        (0, _) => println!("{id} is as Stripe says"),
        (n, true) => println!("{id}: {}; nothing was changed", count(n, "difference")),
        (n, false) => println!("{id}: {}, put right", count(n, "difference")),
    }
    Ok(())
}

/// Page by page, so that there is something to see, and so that what was done stays done.
async fn sync_all(desk: &Desk, options: &Options) -> anyhow::Result<()> {
    let mut told = Told::new(options);
    let mut after: Option<String> = None;
    loop {
        let mut query = vec![dry_run(options)];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page = desk.post(&["sync"], &query).await?;
        told.page(&page);
        if page["stopped"] == true {
            told.end();
            return Err(anyhow!("Stripe does not answer now: the rest was not synced"));
        }
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    told.end();
    match told.failures.len() {
        0 => Ok(()),
        n => Err(anyhow!("{} could not be synced", count(n, "customer"))),
    }
}

/// What has been said so far.
struct Told<'a> {
    options: &'a Options,
    bar: ProgressBar,
    customers: u64,
    reports: Vec<Value>,
    failures: Vec<Value>,
}

impl<'a> Told<'a> {
    fn new(options: &'a Options) -> Self {
        let bar = progress::customers();
        Self { options, bar, customers: 0, reports: Vec::new(), failures: Vec::new() }
    }

    fn page(&mut self, page: &Value) {
        let customers = page["customers"].as_u64().unwrap_or_default();
        self.customers += customers;
        let (reports, failures) = (list(&page["reports"]), list(&page["failures"]));
        if !self.options.json {
            let failed = failures.iter().map(failure_line);
            for line in reports.iter().flat_map(lines).chain(failed) {
                self.bar.suspend(|| println!("{line}"));
            }
        }
        self.reports.extend_from_slice(reports);
        self.failures.extend_from_slice(failures);
        self.bar.inc(customers);
        if !std::io::stderr().is_terminal() {
            eprintln!("{} done", count(self.customers, "customer"));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
        if self.options.json {
            let all = json!({
                "dry_run": self.options.dry_run, "customers": self.customers,
                "reports": self.reports, "failures": self.failures,
            });
            println!("{all}");
            return;
        }
        let differing =
            self.reports.iter().filter(|report| !list(&report["differences"]).is_empty()).count();
        let customers = count(self.customers, "customer");
        match (differing, self.options.dry_run) {
            (0, _) => println!("{customers} looked at: none differs from Stripe"),
            (n, true) => println!("{customers} looked at: {n} differ; nothing was changed"),
            (n, false) => println!("{customers} looked at: {n} differed and are put right"),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Each difference and each alert of a report, aligned.
fn lines(report: &Value) -> Vec<String> {
    let customer = word(&report["customer_id"]);
    let differences = list(&report["differences"]).iter().map(|difference| {
        let (what, action) = (word(&difference["what"]), word(&difference["action"]));
        let (local, stripe) = (word(&difference["local"]), word(&difference["stripe"]));
        let change = format!("{local} -> {stripe}");
        format!("{customer:<24}  {what:<19}  {change:<44}  {action}")
    });
    let alerts = list(&report["alerts"]).iter();
    let alerts = alerts.map(|alert| format!("{customer:<24}  {:<19}  {}", "ALERT", word(alert)));
    differences.chain(alerts).collect()
}

fn failure_line(failure: &Value) -> String {
    let (customer, error) = (word(&failure["customer_id"]), word(&failure["error"]));
    format!("{customer:<24}  {:<19}  {error}", "FAILED")
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn count(n: impl TryInto<u64>, noun: &str) -> String {
    match n.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}
