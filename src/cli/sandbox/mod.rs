//! `tollgate sandbox`: the daemon, a Stripe simulator, caught mail and a clock that can be moved,
//! all on this machine; then the story of one customer, told as it happens.

mod actors;
mod story;
mod tools;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;

use super::log_to_stderr;
use super::serve::told_to_stop;
use super::start::{Drive, Running, StartError, start};
use crate::clock::Clock;
use crate::config::{Config, LogFormat};
use crate::domain::plan::{Catalog, Interval, Plan};
use crate::entropy::Entropy;
use crate::sim::{SeedPrice, SimConfig, Simulator};

pub(super) const API_KEY: &str = "sandbox-api-key-0000";
pub(super) const ADMIN_TOKEN: &str = "sandbox-admin-token-0000";
pub(super) const STRIPE_KEY: &str = "sk_test_sandbox";
const WEBHOOK_SECRET: &str = "whsec_sandbox";
/// The plans of the story, and of whatever is tried after it.
const PLANS: &str = include_str!("../../../plans.example.toml");

#[derive(clap::Args)]
pub struct Options {
    /// Stop after the story; the exit code is 0 only if every step was seen to happen.
    #[arg(long)]
    exit: bool,
    /// Take any free ports instead of 8080 (api), 8081 (Stripe) and 8082 (mail and clock).
    #[arg(long)]
    any_port: bool,
}

/// Everything that runs.
pub(super) struct Sandbox {
    pub daemon: Running,
    pub stripe: Simulator,
    pub clock: Clock,
    /// Where caught mails lie, one file each.
    pub mail_dir: PathBuf,
    tools: SocketAddr,
    /// Removed when the sandbox ends.
    folder: PathBuf,
}

pub async fn run(options: Options) -> Result<(), StartError> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    log_to_stderr(&filter, LogFormat::Text);
    let sandbox = Sandbox::start(&options).await?;
    sandbox.print_addresses();
    let told = story::tell(&sandbox).await;
    match &told {
        Ok(()) => println!("\nEvery step was seen to happen."),
        Err(error) => println!("\nThe story broke off: {error:#}"),
    }
    if !options.exit {
        sandbox.print_invitation();
        told_to_stop().await?;
    }
    sandbox.stop().await?;
    Ok(told?)
}

impl Sandbox {
    async fn start(options: &Options) -> Result<Self, StartError> {
        let clock = Clock::ahead();
        let entropy = Entropy::system();
        let folder = std::env::temp_dir().join(entropy.id("tollgate-sandbox", clock.now()));
        let mail_dir = folder.join("mail");
        std::fs::create_dir_all(&mail_dir)?;
        std::fs::write(folder.join("plans.toml"), PLANS)?;
        let stripe = Simulator::start(SimConfig {
            clock: clock.clone(),
            entropy: entropy.clone(),
            api_key: STRIPE_KEY.to_owned(),
            listen: address(options, 8081).await,
        })
        .await?;
        seed(&stripe)?;
        let listen = address(options, 8080).await;
        let config = config(&folder, &mail_dir, &stripe, listen)?;
        let daemon = start(&config, clock.clone(), entropy, Drive::Loops).await?;
        stripe.add_webhook_endpoint(
            &format!("http://{}/webhooks/stripe", daemon.address),
            WEBHOOK_SECRET,
        );
        let tools = TcpListener::bind(address(options, 8082).await).await?;
        let tools_address = tools.local_addr()?;
        tokio::spawn(tools::serve(tools, clock.clone(), mail_dir.clone()));
        Ok(Self { daemon, stripe, clock, mail_dir, tools: tools_address, folder })
    }

    fn print_addresses(&self) {
        println!("api     http://{}", self.daemon.address);
        println!("stripe  {}", self.stripe.base_url());
        println!("mail    http://{}/mail", self.tools);
        println!("clock   http://{}/clock", self.tools);
        println!("admin   http://{}/admin/api/v1", self.daemon.address);
        println!();
    }

    fn print_invitation(&self) {
        let (api, tools) = (self.daemon.address, self.tools);
        println!("\nIt stays up; stop it with Ctrl-C. Try:\n");
        println!("  curl -s http://{api}/v1/check -H 'Authorization: Bearer {API_KEY}' \\");
        println!(
            "    -d '{{\"customer_id\": \"acme\", \"feature_id\": \"ai_runs\", \"send_event\": true}}'"
        );
        println!(
            "  curl -s -X POST 'http://{api}/admin/api/v1/customers/acme/sync?dry_run=true' \\\n    \
             -H 'Authorization: Bearer {ADMIN_TOKEN}'"
        );
        println!("  curl -s http://{tools}/clock -d '{{\"advance\": \"1d\"}}'");
        println!(
            "  curl -s {}/v1/subscriptions -H 'Authorization: Bearer {STRIPE_KEY}'",
            self.stripe.base_url()
        );
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stripe.stop().await;
        let stopped = self.daemon.stop().await;
        std::fs::remove_dir_all(&self.folder)?;
        stopped
    }
}

/// The usual port if it is free, else any.
async fn address(options: &Options, port: u16) -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    if options.any_port || TcpListener::bind(usual).await.is_err() { any } else { usual }
}

/// What `tollgate stripe push` would have made in a real account.
fn seed(stripe: &Simulator) -> anyhow::Result<()> {
    let catalog = Catalog::parse(PLANS)?;
    let price = |plan: &Plan| {
        plan.price.clone().map(|price| (price.lookup_key, price.amount, price.interval))
    };
    let prices: Vec<_> = catalog.plans.iter().filter_map(price).collect();
    let seeds: Vec<_> = prices
        .iter()
        .map(|(lookup_key, amount, interval)| SeedPrice {
            lookup_key,
            amount_minor: amount.minor,
            currency: amount.currency.code(),
            interval: match interval {
                Interval::Month => "month",
                Interval::Year => "year",
            },
        })
        .collect();
    let meters: Vec<_> =
        catalog.features.values().filter_map(|f| f.stripe_meter.as_deref()).collect();
    stripe.seed_catalog(&seeds, &meters)
}

/// The same configuration that `serve` reads, made of this machine's own parts.
fn config(
    folder: &std::path::Path,
    mail_dir: &std::path::Path,
    stripe: &Simulator,
    listen: SocketAddr,
) -> Result<Config, StartError> {
    let env: BTreeMap<String, String> = [
        ("DATABASE_URL", format!("sqlite://{}", folder.join("tollgate.db").display())),
        ("TOLLGATE_LISTEN", listen.to_string()),
        ("TOLLGATE_PLANS", folder.join("plans.toml").display().to_string()),
        ("TOLLGATE_API_KEY", API_KEY.to_owned()),
        ("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN.to_owned()),
        ("STRIPE_SECRET_KEY", STRIPE_KEY.to_owned()),
        ("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET.to_owned()),
        ("STRIPE_API_BASE", stripe.base_url()),
        ("SMTP_URL", format!("file://{}", mail_dir.display())),
        ("MAIL_FROM", "Example <billing@example.com>".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    Config::load(&env, None).map_err(|mistakes| StartError::Config(mistakes.to_string()))
}
