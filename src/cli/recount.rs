//! `tollgate recount`: rebuilds every counter from what it is made of and says what differs.

mod repair;

use std::collections::BTreeSet;

use anyhow::{Context as _, anyhow};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::progress;
use super::start::{StartError, open_store, read_plans};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::ids::CustomerId;
use crate::domain::recount::{Difference, Number, Stuck, difference, differences};
use crate::entropy::Entropy;
use crate::store::Store;
use crate::store::recount::{Recounted, RecountedCounter, RecountedGrant};
use repair::Repair;

#[derive(Args)]
pub struct Options {
    /// Only this customer.
    #[arg(long, value_name = "ID")]
    customer: Option<CustomerId>,
    /// Write the rebuilt numbers where they differ, each with an entry in the audit trail. On SQLite
    /// the daemon must not run meanwhile.
    #[arg(long)]
    repair: bool,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// How many customers are read at once.
const PAGE: i64 = 100;

/// A number that differs, and whose it is.
#[derive(Debug, Serialize)]
struct Finding {
    customer_id: String,
    feature_id: String,
    /// Of a counter: its series and where its period starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period_start: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<String>,
    number: &'static str,
    /// `null`: there is no such counter or grant.
    stored: Option<i64>,
    rebuilt: i64,
    /// What became of it, if it was to be repaired.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Finding {
    fn of_counter(counter: &RecountedCounter, found: Difference) -> Self {
        let key = &counter.key;
        Self {
            customer_id: key.customer_id.to_string(),
            feature_id: key.feature_id.to_string(),
            series: Some(key.series),
            period_start: Some(key.period_start),
            grant_id: None,
            number: found.number.as_str(),
            stored: found.stored,
            rebuilt: found.rebuilt,
            repaired: None,
            reason: None,
        }
    }

    fn of_grant(grant: &RecountedGrant, found: Difference) -> Self {
        Self {
            customer_id: grant.customer_id.to_string(),
            feature_id: grant.feature_id.clone(),
            series: None,
            period_start: None,
            grant_id: Some(grant.grant_id.clone()),
            number: found.number.as_str(),
            stored: found.stored,
            rebuilt: found.rebuilt,
            repaired: None,
            reason: None,
        }
    }

    fn settled(self, done: Result<(), Stuck>) -> Self {
        let reason = done.err().map(|stuck| stuck.to_string());
        Self { repaired: Some(reason.is_none()), reason, ..self }
    }

    fn line(&self) -> String {
        let of = match (&self.grant_id, self.period_start, self.series) {
            (None, Some(start), Some(series)) => format!("{start} series {series}"),
            (grant, ..) => format!("grant {}", grant.as_deref().unwrap_or_default()),
        };
        let stored = self.stored.map_or("nothing".to_owned(), |units| units.to_string());
        let outcome = match (self.repaired, &self.reason) {
            (Some(true), _) => "  repaired".to_owned(),
            (_, Some(reason)) => format!("  not repaired: {reason}"),
            _ => String::new(),
        };
        format!(
            "{:<24}  {:<16}  {of:<31}  {:<17}  stored {stored:>12}  rebuilt {:>12}{outcome}",
            self.customer_id, self.feature_id, self.number, self.rebuilt
        )
    }
}

/// Everything that differs in what was read.
fn findings(read: &Recounted) -> impl Iterator<Item = Finding> {
    let counters = read.counters.iter().flat_map(|counter| {
        let found = differences(counter.stored, &counter.parts);
        found.into_iter().map(|difference| Finding::of_counter(counter, difference))
    });
    let grants = read.grants.iter().filter_map(|grant| {
        let found = difference(Number::GrantUsed, grant.used, grant.drawn)?;
        Some(Finding::of_grant(grant, found))
    });
    counters.chain(grants)
}

pub async fn run(config: &Config, options: &Options) -> Result<(), StartError> {
    let store = open_store(config, Clock::system()).await?;
    if !store.is_migrated().await? {
        return Err(anyhow!("the schema is not up to date: run `tollgate migrate`").into());
    }
    let repair = match options.repair {
        false => None,
        true => {
            let lock = store.lock_for_serving(&config.database_url);
            let lock = lock.context("--repair needs the daemon stopped")?;
            let (_, catalog) = read_plans(config)?;
            Some(Repair { catalog, entropy: Entropy::system(), _lock: lock })
        }
    };
    let mut told = Told::new(options.json);
    let mut after = String::new();
    loop {
        let ids = match &options.customer {
            None => store.customers_to_recount(&after, PAGE).await?,
            Some(id) if after.is_empty() => vec![id.clone()],
            Some(_) => Vec::new(),
        };
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else { break };
        let read = store.recounted(first, last).await?;
        if let Some(id) = &options.customer {
            is_somebody(&store, id, &read).await?;
        }
        let mut found: Vec<_> = findings(&read).collect();
        if let Some(repair) = &repair {
            let whose: BTreeSet<_> = found.iter().map(|f| f.customer_id.clone()).collect();
            found.clear();
            for id in ids.iter().filter(|id| whose.contains(id.as_str())) {
                found.extend(repair.customer(&store, id).await?);
            }
        }
        told.page(ids.len(), &read, &found)?;
        after = last.to_string();
    }
    store.close().await;
    told.end()
}

/// Refuses an id that no customer has and no row names: that nothing is wrong with nobody proves nothing.
async fn is_somebody(store: &Store, id: &CustomerId, read: &Recounted) -> anyhow::Result<()> {
    let has_rows = !(read.counters.is_empty() && read.grants.is_empty());
    if has_rows || store.customer(id).await?.is_some() {
        return Ok(());
    }
    Err(anyhow!("{id} cannot be recounted: there is no such customer"))
}

/// What has been said so far.
struct Told {
    json: bool,
    bar: ProgressBar,
    customers: usize,
    counters: usize,
    grants: usize,
    differences: usize,
    repaired: usize,
}

impl Told {
    fn new(json: bool) -> Self {
        let bar = progress::customers();
        Self { json, bar, customers: 0, counters: 0, grants: 0, differences: 0, repaired: 0 }
    }

    fn page(
        &mut self,
        customers: usize,
        read: &Recounted,
        found: &[Finding],
    ) -> serde_json::Result<()> {
        self.customers += customers;
        self.counters += read.counters.len();
        self.grants += read.grants.len();
        for finding in found {
            // Line by line, so that however much differs is never held at once.
            let line = match (self.json, self.differences) {
                (false, _) => finding.line(),
                (true, 0) => format!("{{\"differences\": [\n{}", serde_json::to_string(finding)?),
                (true, _) => format!(",\n{}", serde_json::to_string(finding)?),
            };
            self.differences += 1;
            self.repaired += usize::from(finding.repaired == Some(true));
            self.bar.suspend(|| match self.json {
                true => print!("{line}"),
                false => println!("{line}"),
            });
        }
        self.bar.inc(customers.try_into().unwrap_or_default());
        Ok(())
    }

    fn end(&self) -> Result<(), StartError> {
        self.bar.finish_and_clear();
        let Self { customers, counters, grants, differences, repaired, .. } = self;
        let compared = format!("{counters} counters and {grants} grants of {customers} customers");
        if self.json {
            let begun = if *differences == 0 { "{\"differences\": [" } else { "" };
            println!(
                "{begun}],\n\"repaired\": {repaired}, \"counters\": {counters}, \
                 \"grants\": {grants}, \"customers\": {customers}}}"
            );
        } else if *differences == 0 {
            println!("{compared} compared: each number is what its rows add up to");
        } else if differences == repaired {
            println!("{compared} compared: {differences} numbers differed and are repaired");
        }
        match differences - repaired {
            0 => Ok(()),
            left => Err(anyhow!("{compared} compared: {left} numbers differ").into()),
        }
    }
}
