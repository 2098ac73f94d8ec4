//! From a configuration to a running daemon: the one place where everything is wired together.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::account;
use crate::app::{
    App, Credentials, Nudges, Plans, PlansFile, PlansRefused, Shared, check_plans_in_use,
};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::link::Links;
use crate::domain::plan::Catalog;
use crate::domain::returning::ReturnOrigins;
use crate::entropy::Entropy;
use crate::gate::{Gate, terms};
use crate::http::auth::KeyRing;
use crate::http::server::serve;
use crate::http::{Daemon, router};
use crate::jobs::Jobs;
use crate::mail::templates::Templates;
use crate::mail::{MailUrl, Mailer, Timeouts};
use crate::store::journal::Outages;
use crate::store::{ServeLock, Store, StoreError};
use crate::stripe::Stripe;

/// How long running requests may take to end after the signal to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// How long the database's connections may take to close after that.
const CLOSE: Duration = Duration::from_secs(5);

/// Why a command did not come about.
#[derive(Debug)]
pub enum StartError {
    /// The configuration cannot be used; one mistake per line.
    Config(String),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for StartError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

pub async fn open_store(config: &Config, clock: Clock) -> Result<Store, StartError> {
    let opened = Store::open(&config.database_url, clock).await;
    opened.map_err(|error| match error {
        StoreError::Unfit(problem) => StartError::Config(format!("DATABASE_URL: {problem}")),
        error => StartError::Failed(error.into()),
    })
}

/// Reads and checks the plans file; its text is wanted too, because that is what versions hold.
pub fn read_plans(config: &Config) -> Result<(String, Catalog), StartError> {
    read_plans_at(&config.plans_path, "TOLLGATE_PLANS")
}

/// The same for any path; `named_by` is the variable or option that names it.
pub fn read_plans_at(path: &Path, named_by: &str) -> Result<(String, Catalog), StartError> {
    let source = std::fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        StartError::Config(format!(
            "{named_by}: {path} cannot be read ({error}); plans.example.toml is one to start from"
        ))
    })?;
    let catalog = Catalog::parse(&source).map_err(|errors| {
        StartError::Config(errors.in_file(path.display().to_string()).to_string())
    })?;
    Ok((source, catalog))
}

pub fn connect_mailer(config: &Config) -> Result<Option<Mailer>, StartError> {
    let (Some(url), Some(from)) = (&config.smtp_url, &config.mail_from) else { return Ok(None) };
    let url: MailUrl = url
        .expose_secret()
        .parse()
        .map_err(|error| StartError::Config(format!("SMTP_URL: {error}")))?;
    let mailer = Mailer::connect(&url, from, Timeouts::default())
        .map_err(|error| StartError::Config(format!("MAIL_FROM: {error}")))?;
    Ok(Some(mailer))
}

pub fn connect_stripe(
    config: &Config,
    clock: &Clock,
    entropy: &Entropy,
) -> Result<Option<Stripe>, StartError> {
    let Some(key) = &config.stripe_secret_key else { return Ok(None) };
    let stripe = Stripe::new(&config.stripe_api_base, key.clone(), clock.clone(), entropy.clone());
    Ok(Some(stripe.context("the Stripe client cannot be set up")?))
}

pub fn load_templates(config: &Config) -> Result<Templates, StartError> {
    Templates::load(config.templates_dir.as_deref())
        .map_err(|error| StartError::Config(format!("TOLLGATE_TEMPLATES: {error}")))
}

/// Who runs the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// Their own loops, by the clock.
    Loops,
    /// Whoever embeds the daemon, step by step.
    Steps,
    /// Nobody: the daemon answers one command's calls. The plans are the database's, because a
    /// command's file may be older than what the replicas run by, and they would follow it.
    Command,
}

/// A daemon that is up. Dropping it without [`Running::stop`] is like pulling the plug.
pub struct Running {
    pub app: App,
    /// Where it listens; of interest when port 0 was asked for.
    pub address: SocketAddr,
    jobs: Jobs,
    stop: CancellationToken,
    server: JoinHandle<()>,
    writer: JoinHandle<()>,
    upkeep: JoinHandle<()>,
    lock: ServeLock,
}

/// What is made from the configuration and the files it names, before anything is opened.
struct Parts {
    /// The plans file's text.
    source: String,
    catalog: Catalog,
    templates: Templates,
    mailer: Option<Mailer>,
    stripe: Option<Stripe>,
}

impl Parts {
    /// # Errors
    /// The mistakes of all parts at once.
    fn of(config: &Config, clock: &Clock, entropy: &Entropy) -> Result<Self, StartError> {
        let mut mistakes = Vec::new();
        let plans = unless_mistaken(read_plans(config), &mut mistakes)?;
        let templates = unless_mistaken(load_templates(config), &mut mistakes)?;
        let mailer = unless_mistaken(connect_mailer(config), &mut mistakes)?;
        let stripe = connect_stripe(config, clock, entropy)?;
        match (plans, templates, mailer) {
            (Some((source, catalog)), Some(templates), Some(mailer)) => {
                Ok(Self { source, catalog, templates, mailer, stripe })
            }
            _ => Err(StartError::Config(mistakes.join("\n"))),
        }
    }
}

/// Notes a mistake in the configuration, to go on looking for others.
fn unless_mistaken<T>(
    made: Result<T, StartError>,
    mistakes: &mut Vec<String>,
) -> Result<Option<T>, StartError> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(StartError::Config(mistake)) => {
            mistakes.push(mistake);
            Ok(None)
        }
        Err(failed) => Err(failed),
    }
}

/// Opens, migrates, reads, connects, listens.
pub async fn start(
    config: &Config,
    clock: Clock,
    entropy: Entropy,
    drive: Drive,
) -> Result<Running, StartError> {
    let Parts { source, catalog, templates, mailer, stripe } = Parts::of(config, &clock, &entropy)?;
    let store = open_store(config, clock.clone()).await?;
    let lock = store.lock_for_serving(&config.database_url)?;
    store.migrate().await?;
    account::pin_mode(config, &store).await?;
    if let (Some(stripe), Drive::Loops | Drive::Command) = (&stripe, drive) {
        account::pin_account(stripe, &store).await?;
    }
    let (known, source, catalog) = match drive {
        Drive::Command => plans_in_force(&store).await?.unwrap_or((Some(0), source, catalog)),
        Drive::Loops | Drive::Steps => (None, source, catalog),
    };
    check_plans_in_use(&store, &source, &catalog).await.map_err(|refused| match refused {
        PlansRefused::Lacks(_) | PlansRefused::LacksFeatures(_) => {
            StartError::Config(format!("TOLLGATE_PLANS: {refused}"))
        }
        PlansRefused::Store(error) => error.into(),
    })?;
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        StartError::Config(format!("TOLLGATE_LISTEN: {}: {error}", config.listen))
    })?;
    let address = listener.local_addr()?;
    let links =
        Links::new(config.public_url.clone(), signing_keys(config, &store, &entropy).await?);
    let version = match known {
        Some(version) => version,
        None => terms::activate(&store, &entropy, &source, &catalog).await?,
    };
    let replica_id = entropy.id("replica", clock.now()).into();
    let app = App::new(Shared {
        clock,
        entropy,
        store,
        plans: Plans::new(version, catalog),
        plans_file: PlansFile::new(config.plans_path.clone(), source),
        stripe,
        mailer,
        templates,
        links,
        returns: ReturnOrigins::new(&config.public_url, &config.return_origins),
        credentials: Credentials {
            api_key: config.api_key.clone(),
            admin_token: config.admin_token.clone(),
            webhook_secrets: config.stripe_webhook_secrets.clone(),
        },
        nudges: Nudges::default(),
        outages: Outages::open(config.outage_journal.clone())
            .context("the journal of an outage cannot be read")?,
        replica_id,
    });
    tracing::info!(%address, plans = version, "listening");
    let jobs = match drive {
        Drive::Loops => Jobs::start(&app),
        Drive::Steps | Drive::Command => Jobs::default(),
    };
    Ok(run(app, jobs, config, listener, lock)?)
}

fn run(
    app: App,
    jobs: Jobs,
    config: &Config,
    listener: TcpListener,
    lock: ServeLock,
) -> std::io::Result<Running> {
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let metrics = recorder();
    let (gate, writer) = Gate::start(app.clone());
    let daemon = Daemon {
        keys: Arc::new(KeyRing::new(&app.credentials, config.rate_limit)),
        pace: Arc::default(),
        seats: Arc::default(),
        app: app.clone(),
        gate,
        jobs: jobs.clone(),
        metrics: metrics.clone(),
    };
    let server = tokio::spawn(serve(listener, router(daemon), stop.clone()));
    // Without it the recorder's histograms would grow for ever.
    let upkeep = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            metrics.run_upkeep();
        }
    });
    Ok(Running { app, address, jobs, stop, server, writer, upkeep, lock })
}

impl Running {
    /// Takes no more requests, answers those that run, ends the jobs' steps, closes the database.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.upkeep.abort();
        let drained = tokio::time::timeout(DRAIN, async {
            self.jobs.stop().await;
            let served = self.server.await;
            // The server held the last handles on the gate.
            let _ = self.writer.await;
            served
        })
        .await;
        // A statement that hangs must not keep the process from ending.
        let _ = tokio::time::timeout(CLOSE, self.app.store.close()).await;
        drop(self.lock);
        match drained {
            Ok(served) => served.context("the server failed"),
            Err(_) => anyhow::bail!("some requests did not end within {} s", DRAIN.as_secs()),
        }
    }
}

/// The process has one metrics recorder, however many daemons a test starts in it.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            // Fails only if the embedding program has a recorder of its own; then ours stays empty.
            let _ = metrics::set_global_recorder(recorder);
            handle
        })
        .clone()
}

/// The plans that the replicas run by, with their version; `None` before the first start of one.
async fn plans_in_force(
    store: &Store,
) -> Result<Option<(Option<i64>, String, Catalog)>, StartError> {
    let Some((version, source)) = store.active_plans().await? else { return Ok(None) };
    let catalog = Catalog::parse(&source).map_err(|mistakes| {
        mistakes.in_file(format!("version {version} of the plans, in force,"))
    })?;
    Ok(Some((Some(version), source, catalog)))
}

/// The configured keys, or one made at the first start and kept in the database.
async fn signing_keys(
    config: &Config,
    store: &Store,
    entropy: &Entropy,
) -> Result<Vec<SecretString>, StartError> {
    if !config.signing_keys.is_empty() {
        return Ok(config.signing_keys.clone());
    }
    let key = store.setting_or("signing_key", || hex::encode(entropy.secret())).await?;
    Ok(vec![key.into()])
}
