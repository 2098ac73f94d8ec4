//! `tollgate report`: what the plans cost, earn and should cap.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::progress;
use super::start::{StartError, open_store, read_plans_at};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::margin::{Ledger, Report, Span, Tariff, Wishes};
use crate::domain::plan::{Catalog, Feature};
use crate::report::csv::{CsvError, Names, Progress, read_customers, read_usage};
use crate::report::recorded::{midnight, month_until, read_recorded};
use crate::report::{example, html, text};

#[derive(Subcommand)]
pub enum Command {
    /// What each plan costs, earns and should cap, from your own usage.
    Pricing(Box<Pricing>),
    /// Write a CSV file of usage to try the report on; the same number of rows is the same file.
    ExampleCsv {
        #[arg(long, default_value_t = 100_000)]
        rows: u64,
    },
}

#[derive(Args)]
pub struct Pricing {
    /// Usage, one row per run. Without it the daemon's own database is read.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// What a column is called in the file, such as timestamp=created_at; may be repeated.
    /// Columns: customer, timestamp, model, input_tokens (cached ones included), output_tokens,
    /// and if there are any cached_input_tokens and plan.
    #[arg(long, value_name = "COLUMN=NAME", value_parser = renamed, requires = "csv")]
    column: Vec<(String, String)>,
    /// A CSV file of all customers with a column customer, and plan if you like: so that those
    /// without a run are counted.
    #[arg(long, value_name = "FILE", requires = "csv")]
    customers: Option<PathBuf>,
    /// Leave out lines that cannot be read, instead of stopping at the first.
    #[arg(long, requires = "csv")]
    skip_bad: bool,
    /// Your plans; by default plans.toml, or for the daemon's database TOLLGATE_PLANS.
    #[arg(long, value_name = "FILE")]
    plans: Option<PathBuf>,
    /// Changed plans, to see what the same usage would have met under them.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// What is metered, if the plans file has several features.
    #[arg(long, value_name = "FEATURE")]
    feature: Option<String>,
    /// The first day (UTC), from which months are counted; by default that of the first row, or
    /// for the daemon's database a month ago.
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<Timestamp>,
    /// The day after the last one (UTC); by default the end of the last row's month, or for the
    /// daemon's database tomorrow.
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<Timestamp>,
    /// The gross margin to aim for, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(0..=99))]
    target_margin: u8,
    /// How many of the gated customers upgrade, in percent: one row of the table each.
    #[arg(long, value_name = "PERCENTS", value_delimiter = ',', default_values_t = [0, 10, 25, 50, 100],
          value_parser = clap::value_parser!(u8).range(0..=100))]
    upgrade_rates: Vec<u8>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
    /// Write a page with charts to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn renamed(text: &str) -> Result<(String, String), String> {
    let (column, name) = text.split_once('=').ok_or("must be COLUMN=NAME")?;
    Names::default().set(column, name)?;
    Ok((column.to_owned(), name.to_owned()))
}

fn day(text: &str) -> Result<Timestamp, &'static str> {
    midnight(text).ok_or("must be a day such as 2026-10-01")
}

pub async fn run(command: Command) -> Result<(), StartError> {
    match command {
        Command::Pricing(options) => pricing(&options).await,
        Command::ExampleCsv { rows } => {
            let mut out = BufWriter::new(io::stdout().lock());
            let written = example::write_usage(&mut out, rows).and_then(|()| out.flush());
            unless_reader_left(written)
        }
    }
}

/// Whoever closes our output has read enough of it.
fn unless_reader_left(written: io::Result<()>) -> Result<(), StartError> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// Where the runs come from.
enum Source<'a> {
    /// A file needs no daemon and no account, so its reader needs no configuration either.
    Csv(&'a Path),
    Database(Box<Config>),
}

impl<'a> Source<'a> {
    fn of(options: &'a Pricing) -> Result<Self, StartError> {
        if let Some(csv) = &options.csv {
            return Ok(Self::Csv(csv));
        }
        let config = Config::from_process();
        let config = config.map_err(|errors| StartError::Config(errors.to_string()))?;
        Ok(Self::Database(Box::new(config)))
    }

    fn plans(&self) -> &Path {
        match self {
            Self::Csv(_) => Path::new("plans.toml"),
            Self::Database(config) => &config.plans_path,
        }
    }

    /// What is reported on where nothing is asked for: all of a file, the last month of a database.
    fn span(&self, clock: &Clock) -> Span {
        match self {
            Self::Csv(_) => Span::default(),
            Self::Database(_) => month_until(clock.now()),
        }
    }
}

async fn pricing(options: &Pricing) -> Result<(), StartError> {
    let clock = Clock::system();
    let source = Source::of(options)?;
    let plans = options.plans.as_deref().unwrap_or(source.plans());
    let (_, catalog) = read_plans_at(plans, "--plans")?;
    let known = || catalog.features.keys().map(|id| id.as_str()).collect::<Vec<_>>().join(", ");
    let feature = catalog
        .feature_or_only(options.feature.as_deref())
        .ok_or_else(|| anyhow!("--feature must be one of {}", known()))?;
    let today = tariff(plans, &catalog, feature)?;
    let changed = match &options.against {
        None => None,
        Some(path) => Some(tariff(path, &read_plans_at(path, "--against")?.1, feature)?),
    };
    let usual = source.span(&clock);
    let span = Span { from: options.from.or(usual.from), to: options.to.or(usual.to) };
    let mut ledger = Ledger::new(today, changed, span)
        .map_err(|plan| anyhow!("the changed plans lack {plan}, which today's have"))?;
    match &source {
        Source::Csv(csv) => read_files(options, csv, &catalog, &mut ledger)?,
        Source::Database(config) => {
            let store = open_store(config, clock).await?;
            if !store.is_migrated().await? {
                return Err(anyhow!("the schema is not up to date: run `tollgate migrate`").into());
            }
            read_recorded(&store, &feature.id, span, &mut ledger).await?;
            store.close().await;
        }
    }
    let wishes = Wishes {
        target_margin_percent: options.target_margin,
        upgrade_percents: options.upgrade_rates.clone(),
    };
    let report = ledger.report(feature, &wishes).map_err(anyhow::Error::from)?;
    show(options, &report)
}

fn tariff(path: &Path, catalog: &Catalog, feature: &Feature) -> Result<Tariff, StartError> {
    let tariff = Tariff::of(catalog, &feature.id);
    tariff.map_err(|error| StartError::Config(format!("{}: {error}", path.display())))
}

fn read_files(
    options: &Pricing,
    csv: &Path,
    catalog: &Catalog,
    ledger: &mut Ledger,
) -> Result<(), StartError> {
    let mut names = Names::default();
    for (column, name) in &options.column {
        names.set(column, name).map_err(anyhow::Error::msg)?;
    }
    let mut console = Console::new(options.skip_bad);
    if let Some(customers) = &options.customers {
        read_customers(customers, &names, ledger, &mut console).map_err(anyhow::Error::from)?;
    }
    console.begin(std::fs::metadata(csv).map_or(0, |file| file.len()));
    let rows = read_usage(csv, &names, &catalog.models, ledger, &mut console);
    console.end(rows.as_ref().copied().unwrap_or(0));
    rows.map_err(anyhow::Error::from)?;
    Ok(())
}

fn show(options: &Pricing, report: &Report) -> Result<(), StartError> {
    if let Some(path) = &options.html {
        let page = html::render(report).context("the page cannot be drawn")?;
        std::fs::write(path, page).with_context(|| path.display().to_string())?;
        eprintln!("the page is in {}", path.display());
    }
    let mut out = io::stdout().lock();
    let written = if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(report)?)
    } else if options.html.is_none() {
        write!(out, "{}", text::render(report))
    } else {
        Ok(())
    };
    unless_reader_left(written)
}

/// Tells how far the reading is: a bar on a terminal, a line per tenth of the file elsewhere.
struct Console {
    skip_bad: bool,
    skipped: u64,
    bytes: u64,
    tenths: u64,
    bar: Option<ProgressBar>,
}

/// How many bad lines are named one by one.
const NAMED_BAD_LINES: u64 = 20;

impl Console {
    fn new(skip_bad: bool) -> Self {
        Self { skip_bad, skipped: 0, bytes: 0, tenths: 0, bar: None }
    }

    fn begin(&mut self, bytes: u64) {
        self.bytes = bytes;
        if io::stderr().is_terminal() {
            self.bar = Some(progress::bytes(bytes));
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn end(&self, rows: u64) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let skipped = match self.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} of them left out"),
        };
        eprintln!("{rows} rows read{skipped}");
    }
}

impl Progress for Console {
    fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            return;
        }
        let tenths = (bytes * 10).checked_div(self.bytes).unwrap_or(10);
        if tenths > self.tenths && tenths < 10 {
            self.tenths = tenths;
            eprintln!("{} % read", tenths * 10);
        }
    }

    fn bad_line(&mut self, error: CsvError) -> Result<(), CsvError> {
        if !self.skip_bad {
            return Err(error);
        }
        self.skipped += 1;
        if self.skipped <= NAMED_BAD_LINES {
            self.say(&format!("left out: {error}"));
        }
        if self.skipped == NAMED_BAD_LINES {
            self.say("further bad lines are only counted");
        }
        Ok(())
    }
}
