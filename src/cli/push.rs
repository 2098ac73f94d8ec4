//! `tollgate stripe push`: makes the Stripe account hold what the plans file needs, and prints what
//! that is like a diff.

use anyhow::anyhow;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::account;
use super::provision::{apply, wanted};
use super::start::{StartError, connect_stripe, open_store, read_plans};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::provision::found::{Account, Found};
use crate::domain::provision::{
    Difference, State, Step, Wanted, is_refused, plan, secret_missing, senders,
};
use crate::entropy::Entropy;
use crate::store::Store;
use crate::stripe::{Made, Secret, Stripe, StripeErrorKind};

/// Names up to this length are aligned.
const LONG_NAME: usize = 32;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make meters, products, prices, the portal and the webhook endpoint as the plans file needs
    /// them. Running it twice changes nothing.
    Push(Options),
}

#[derive(clap::Args)]
pub struct Options {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write to live mode: without this a live key changes nothing.
    #[arg(long)]
    live: bool,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(config: &Config, command: Command) -> Result<(), StartError> {
    let Command::Push(options) = command;
    let (_, catalog) = read_plans(config)?;
    let connected = connect_stripe(config, &Clock::system(), &Entropy::system())?;
    let stripe = connected.ok_or_else(|| {
        StartError::Config("STRIPE_SECRET_KEY: is not set: there is no account to write to".into())
    })?;
    let live = config.livemode() == Some(true);
    let account = known_account(&stripe).await?;
    check_database(config, live, account.as_ref()).await?;
    let secrets = config.stripe_webhook_secrets.len();
    let mut output = Output { secrets, ..Output::of(options.json, account, live) };
    output.say(&output.whose());
    let wanted = wanted(config, &catalog);
    let found = stripe.find(&wanted).await;
    let mut made = Made::default();
    let pushed = push(&stripe, &options, &wanted, found, &mut made, &mut output).await;
    output.finish(options.dry_run, &made.secrets);
    pushed
}

/// The key's account; `None` where a restricted key may not read it.
async fn known_account(stripe: &Stripe) -> Result<Option<Account>, StartError> {
    match stripe.account().await {
        Ok((account, _)) => Ok(Some(account)),
        Err(error) if matches!(error.kind, StripeErrorKind::Unauthorized { status: 403, .. }) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a key that does not fit the database, where there is one: an account can be provisioned
/// from a machine that has none.
async fn check_database(
    config: &Config,
    live: bool,
    account: Option<&Account>,
) -> Result<(), StartError> {
    if Store::file_to_create(&config.database_url).is_some() {
        return Ok(());
    }
    let store = open_store(config, Clock::system()).await?;
    let fits = match store.is_migrated().await? {
        true => account::compare(&store, live, account.map(|account| &*account.id)).await?,
        false => Ok(String::new()),
    };
    store.close().await;
    fits.map(|_| ()).map_err(StartError::Config)
}

async fn push(
    stripe: &Stripe,
    options: &Options,
    wanted: &Wanted,
    found: Found,
    made: &mut Made,
    output: &mut Output,
) -> Result<(), StartError> {
    let steps = plan(wanted, &found);
    // Addresses are longer than anything else, and stand at the end.
    let names = steps.iter().map(|step| step.name.len()).filter(|length| *length <= LONG_NAME);
    output.name_width = names.max().unwrap_or(0);
    let is_idle = steps.iter().all(|step| step.writes.is_empty());
    let held_back = output.live && !options.live && !is_idle;
    output.missing = secret_missing(&senders(wanted, &found), output.secrets);
    if is_refused(&steps) || is_idle || options.dry_run || held_back {
        steps.iter().for_each(|step| output.tell(step));
        if is_refused(&steps) {
            return Err(anyhow!("nothing was written, because something is refused").into());
        }
        output.say(&format!("\n{}", summary(&steps, options.dry_run || held_back)));
        if held_back && !options.dry_run {
            return Err(anyhow!("nothing was written: add --live to write to live mode").into());
        }
        return Ok(());
    }
    let tell = |step: &Step, made: &Made| {
        output.tell(step);
        output.reveal(&made.secrets);
    };
    let applied = apply(stripe, &steps, made, tell).await;
    if let Err((step, error)) = applied {
        let (kind, name) = (step.kind.label(), &step.name);
        let error = anyhow!("{kind} {name}: {error}\nrun it again to go on from here");
        return Err(error.into());
    }
    // What was written is read again: the account says what it holds, not our answers.
    let found = stripe.find(wanted).await;
    output.missing = secret_missing(&senders(wanted, &found), output.secrets + made.secrets.len());
    let left = plan(wanted, &found);
    if left.iter().any(|step| !matches!(step.state, State::Right { .. })) {
        return Err(anyhow!("the account is not yet as it should be: run it again").into());
    }
    output.say(&format!("\n{}", summary(&steps, false)));
    Ok(())
}

fn summary(steps: &[Step], dry_run: bool) -> String {
    let count = |is: fn(&State) -> bool| steps.iter().filter(|step| is(&step.state)).count();
    let created = count(|state| matches!(state, State::Missing));
    let changed = count(|state| matches!(state, State::Different { .. }));
    let unchanged = count(|state| matches!(state, State::Right { .. }));
    let would = if dry_run { "would be " } else { "" };
    format!("{created} {would}created, {changed} {would}changed, {unchanged} as they should be")
}

/// What is printed, for people line by line, for programs at once.
struct Output {
    json: bool,
    account: Option<Account>,
    live: bool,
    /// The longest name of a step.
    name_width: usize,
    steps: Vec<Value>,
    /// How many signing secrets are configured here.
    secrets: usize,
    /// How many of the new ones have been shown.
    revealed: usize,
    /// What to do about a secret that nobody has.
    missing: Option<String>,
}

impl Output {
    fn of(json: bool, account: Option<Account>, live: bool) -> Self {
        let (name_width, steps) = (0, Vec::new());
        let (secrets, revealed, missing) = (0, 0, None);
        Self { json, account, live, name_width, steps, secrets, revealed, missing }
    }

    fn say(&self, line: &str) {
        if !self.json {
            println!("{line}");
        }
    }

    fn whose(&self) -> String {
        let mode = account::mode(self.live);
        match &self.account {
            Some(account) => format!("Stripe account {}, {mode} mode\n", described(account)),
            None => format!("Stripe account unknown to this key, {mode} mode\n"),
        }
    }

    fn tell(&mut self, step: &Step) {
        let (kind, name, width) = (step.kind.label(), &step.name, self.name_width);
        let (mark, what) = worded(step);
        self.say(&format!("{mark} {kind:<11}  {name:<width$}  {what}"));
        if let Some(note) = &step.note {
            self.say(&format!("    {note}"));
        }
        self.steps.push(as_json(step));
    }

    /// The signing secrets so far, at once: should this run be killed, nobody can be told them a
    /// second time. The last line has them all.
    fn reveal(&mut self, secrets: &[Secret]) {
        if secrets.len() > self.revealed {
            self.revealed = secrets.len();
            let new: Vec<&str> = secrets.iter().map(|s| s.secret.expose_secret()).collect();
            self.say(&format!("    STRIPE_WEBHOOK_SECRET={}", new.join(",")));
        }
    }

    /// What to do with the signing secrets, and all of it for programs.
    fn finish(&self, dry_run: bool, secrets: &[Secret]) {
        if self.json {
            let secrets = secrets.iter();
            let secrets = secrets.map(|s| json!({"of": s.of, "secret": s.secret.expose_secret()}));
            let secrets: Vec<Value> = secrets.collect();
            let answer = json!({
                "account": self.account.as_ref().map(|account| &account.id),
                "mode": account::mode(self.live),
                "dry_run": dry_run,
                "steps": self.steps,
                "secrets": secrets,
                "secret_missing": self.missing,
            });
            println!("{answer}");
            return;
        }
        if !secrets.is_empty() {
            let others = match self.secrets {
                0 => "",
                _ => ", and after another comma what stands there today",
            };
            println!("\nWhat webhooks are signed with Stripe tells only now.");
            println!("The daemon needs the last STRIPE_WEBHOOK_SECRET above{others}.");
        }
        if let Some(missing) = &self.missing {
            println!("\n{missing}");
        }
    }
}

/// `acct_1 (US, usd)`.
pub fn described(account: &Account) -> String {
    let known = [&account.country, &account.default_currency].into_iter().flatten();
    let known: Vec<&str> = known.map(String::as_str).collect();
    format!("{} ({})", account.id, known.join(", "))
}

/// The mark in front of a line and the words behind the name.
fn worded(step: &Step) -> (char, String) {
    let detail = &step.detail;
    match &step.state {
        State::Right { id } => ('=', format!("{detail} ({id})")),
        State::Missing => ('+', format!("create: {detail}")),
        State::Different { id, differences } => ('~', format!("{} ({id})", told(differences))),
        State::Refused { reason, remedy } => ('!', format!("refused: {reason}; {remedy}")),
        State::Unseen { reason, forbidden } => {
            ('!', format!("refused: {reason}; {}", after_unseen(step, *forbidden)))
        }
    }
}

/// What to do about what could not be looked at.
fn after_unseen(step: &Step, forbidden: bool) -> String {
    match forbidden {
        true => format!("allow the key to read and write {}", step.kind.permission()),
        false => "run it again".to_owned(),
    }
}

/// `amount $99 → $109, interval month → year`.
pub fn told(differences: &[Difference]) -> String {
    let one = |d: &Difference| format!("{} {} → {}", d.what, d.found, d.wanted);
    differences.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn as_json(step: &Step) -> Value {
    let mut json = json!({
        "kind": step.kind.label(), "name": step.name, "detail": step.detail, "note": step.note,
    });
    match &step.state {
        State::Right { id } => {
            json["action"] = "none".into();
            json["id"] = id.as_str().into();
        }
        State::Missing => json["action"] = "create".into(),
        State::Different { id, differences } => {
            let one = |d: &Difference| json!({"what": d.what, "from": d.found, "to": d.wanted});
            json["action"] = "change".into();
            json["id"] = id.as_str().into();
            json["differences"] = differences.iter().map(one).collect();
        }
        State::Refused { reason, remedy } => {
            json["action"] = "refuse".into();
            json["reason"] = reason.as_str().into();
            json["remedy"] = remedy.as_str().into();
        }
        State::Unseen { reason, forbidden } => {
            json["action"] = "refuse".into();
            json["reason"] = reason.as_str().into();
            json["remedy"] = after_unseen(step, *forbidden).into();
        }
    }
    json
}
