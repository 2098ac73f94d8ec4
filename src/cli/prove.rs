//! `tollgate prove`: what was used in every closed period, held against Stripe's sums.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use indicatif::ProgressBar;

use super::progress;
use super::start::{StartError, connect_stripe, open_store, read_plans};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::ids::CustomerId;
use crate::domain::plan::Catalog;
use crate::domain::proof::Account;
use crate::entropy::Entropy;
use crate::store::{Store, StoreError};
use crate::sync::proof::{Line, Sums, accounts_of, compare};

#[derive(Args)]
pub struct Options {
    /// Only this customer.
    #[arg(long, value_name = "ID")]
    customer: Option<CustomerId>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// How many customers are looked up at once.
const PAGE: i64 = 100;
/// Twenty readings a second: Stripe takes twenty-five in a sandbox.
const PACE: Duration = Duration::from_millis(50);
/// How often a sum is asked for that Stripe does not tell now, and how long is waited before that.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

pub async fn run(config: &Config, options: &Options) -> Result<(), StartError> {
    let (clock, entropy) = (Clock::system(), Entropy::system());
    let (_, catalog) = read_plans(config)?;
    let stripe = connect_stripe(config, &clock, &entropy)?;
    let stripe =
        stripe.context("STRIPE_SECRET_KEY is not set: there are no sums to compare with")?;
    let store = open_store(config, clock.clone()).await?;
    if !store.is_migrated().await? {
        return Err(anyhow!("the schema is not up to date: run `tollgate migrate`").into());
    }
    let mut proof = Proof {
        store: &store,
        catalog,
        sums: Sums::of(&stripe),
        clock,
        told: Told::new(options.json),
    };
    let mut after = String::new();
    loop {
        let ids = match &options.customer {
            None => store.customers_with_usage(&after, PAGE).await?,
            Some(id) if after.is_empty() => vec![id.clone()],
            Some(_) => Vec::new(),
        };
        let Some(last) = ids.last() else { break };
        after = last.to_string();
        for id in &ids {
            proof.customer(id).await?;
        }
    }
    let ended = proof.told.end();
    store.close().await;
    ended
}

/// A proof under way.
struct Proof<'a> {
    store: &'a Store,
    catalog: Catalog,
    sums: Sums<'a>,
    clock: Clock,
    told: Told,
}

impl Proof<'_> {
    async fn customer(&mut self, id: &CustomerId) -> anyhow::Result<()> {
        let now = self.clock.now();
        for account in accounts_of(self.store, &self.catalog, id, now).await? {
            if account.is_closed(now) {
                let line = self.line(id, &account).await?;
                if let Some(why) = line.unreadable.as_ref().filter(|why| why.is_our_keys()) {
                    return Err(anyhow!("{why}"));
                }
                self.told.line(&line)?;
            }
        }
        self.told.bar.inc(1);
        Ok(())
    }

    /// Asks again for a while what Stripe does not tell now.
    async fn line(&self, id: &CustomerId, account: &Account) -> Result<Line, StoreError> {
        for _ in 1..ATTEMPTS {
            // Machine time: it spares Stripe, and decides nothing.
            tokio::time::sleep(PACE).await;
            let now = self.clock.now();
            let line = compare(self.store, &self.sums, &self.catalog, id, account, now).await?;
            if !line.unreadable.as_ref().is_some_and(|why| why.may_pass()) {
                return Ok(line);
            }
            tokio::time::sleep(PAUSE).await;
        }
        compare(self.store, &self.sums, &self.catalog, id, account, self.clock.now()).await
    }
}

/// What has been said so far, and the sums of it.
struct Told {
    json: bool,
    bar: ProgressBar,
    lines: usize,
    ledger: i64,
    stripe: i64,
    difference: i64,
    differing: usize,
    unreadable: usize,
}

const HEAD: [&str; 6] = ["customer", "meter", "period", "ledger", "Stripe", "difference"];

/// One line of the table; the last cell is whatever is to be said besides.
fn row(cells: &[&str; 6], remarks: &str) -> String {
    let [customer, meter, period, ledger, stripe, difference] = cells;
    let line = format!(
        "{customer:<24}  {meter:<16}  {period:<41}  {ledger:>12}  {stripe:>12}  {difference:>10}  {remarks}"
    );
    line.trim_end().to_owned()
}

impl Told {
    fn new(json: bool) -> Self {
        let bar = progress::customers();
        Self {
            json,
            bar,
            lines: 0,
            ledger: 0,
            stripe: 0,
            difference: 0,
            differing: 0,
            unreadable: 0,
        }
    }

    fn line(&mut self, line: &Line) -> serde_json::Result<()> {
        let text = match (self.json, self.lines) {
            (true, 0) => format!("{{\"lines\": [\n{}", serde_json::to_string(line)?),
            (true, _) => format!(",\n{}", serde_json::to_string(line)?),
            (false, 0) => format!("{}\n{}", row(&HEAD, ""), words(line)),
            (false, _) => words(line),
        };
        self.bar.suspend(|| match self.json {
            true => print!("{text}"),
            false => println!("{text}"),
        });
        self.lines += 1;
        self.ledger += line.ledger;
        self.stripe += line.stripe.unwrap_or_default();
        self.difference += line.difference.unwrap_or_default();
        self.differing += usize::from(line.difference.is_some_and(|difference| difference != 0));
        self.unreadable += usize::from(line.stripe.is_none());
        Ok(())
    }

    fn end(&self) -> Result<(), StartError> {
        self.bar.finish_and_clear();
        let Self { lines, ledger, stripe, difference, differing, unreadable, .. } = self;
        if self.json {
            let begun = if *lines == 0 { "{\"lines\": [" } else { "" };
            println!(
                "{begun}],\n\"ledger\": {ledger}, \"stripe\": {stripe}, \"difference\": {difference}, \
                 \"differing\": {differing}, \"unreadable\": {unreadable}}}"
            );
        } else {
            let periods = format!("{lines} closed periods");
            let [ledger, stripe] = [ledger, stripe].map(i64::to_string);
            let total = ["total", "", &periods, &ledger, &stripe, &signed(*difference)];
            println!("{}", row(&total, ""));
        }
        match (differing, unreadable) {
            (0, 0) => Ok(()),
            (_, 0) => Err(anyhow!("{differing} of {lines} sums differ").into()),
            _ => {
                Err(anyhow!("{differing} of {lines} sums differ, and {unreadable} cannot be read")
                    .into())
            }
        }
    }
}

fn signed(units: i64) -> String {
    if units == 0 { "0".to_owned() } else { format!("{units:+}") }
}

fn words(line: &Line) -> String {
    let or_unknown = |units: Option<i64>| units.map_or("?".to_owned(), |units| units.to_string());
    let cells = [
        line.customer_id.as_str(),
        line.meter.as_deref().unwrap_or("?"),
        &format!("{} {}", line.period.start, line.period.end),
        &line.ledger.to_string(),
        &or_unknown(line.stripe),
        &line.difference.map_or("?".to_owned(), signed),
    ];
    row(&cells, &line.remarks.join("; "))
}
