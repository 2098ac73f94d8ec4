//! `tollgate sandbox`: the daemon, a Stripe simulator, caught mail and a clock that can be moved,
//! all on this machine; then the story of one customer, told as it happens.

mod actors;
mod story;
mod tools;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use secrecy::SecretString;
use tokio::net::TcpListener;

use super::log_to_stderr;
use super::provision::{apply, wanted};
use super::serve::told_to_stop;
use super::start::{Drive, Running, StartError, connect_stripe, read_plans, start};
use crate::clock::Clock;
use crate::config::{Config, LogFormat};
use crate::domain::provision::plan;
use crate::entropy::Entropy;
use crate::sim::{SimConfig, Simulator};
use crate::stripe::Made;

pub(super) const API_KEY: &str = "sandbox-api-key-0000";
pub(super) const ADMIN_TOKEN: &str = "sandbox-admin-token-0000";
pub(super) const STRIPE_KEY: &str = "sk_test_sandbox";
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
    folder: Folder,
}

pub async fn run(options: Options) -> Result<(), StartError> {
    log_to_stderr(&log_filter()?, LogFormat::Text);
    let told_to_stop = told_to_stop()?;
    tokio::pin!(told_to_stop);
    let sandbox = Sandbox::start(&options).await?;
    sandbox.print_addresses();
    let told = tokio::select! {
        told = story::tell(&sandbox) => told,
        () = &mut told_to_stop => {
            sandbox.stop().await?;
            let cut_short = anyhow::anyhow!("stopped before the story's end");
            return if options.exit { Err(cut_short.into()) } else { Ok(()) };
        }
    };
    match &told {
        Ok(()) => println!("\nEvery step was seen to happen."),
        Err(error) => println!("\nThe story broke off: {error:#}"),
    }
    if !options.exit {
        sandbox.print_invitation();
        told_to_stop.await;
    }
    sandbox.stop().await?;
    Ok(told?)
}

/// Errors alone, so that the story can be read, unless `RUST_LOG` wants more.
fn log_filter() -> Result<String, StartError> {
    let Ok(wanted) = std::env::var("RUST_LOG") else { return Ok("error".to_owned()) };
    let env = BTreeMap::from([("RUST_LOG".to_owned(), wanted)]);
    let config = Config::load(&env, None);
    Ok(config.map_err(|mistakes| StartError::Config(mistakes.to_string()))?.log_filter)
}

/// A folder for what the sandbox keeps, gone when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn create(path: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::error!(%error, "the sandbox's folder is left behind: {}", self.0.display());
        }
    }
}

impl Sandbox {
    async fn start(options: &Options) -> Result<Self, StartError> {
        let clock = Clock::ahead();
        let entropy = Entropy::system();
        let name = entropy.id("tollgate-sandbox", clock.now());
        let folder = Folder::create(std::env::temp_dir().join(name))?;
        let mail_dir = folder.0.join("mail");
        std::fs::create_dir_all(&mail_dir)?;
        std::fs::write(folder.0.join("plans.toml"), PLANS)?;
        let stripe = Simulator::start(SimConfig {
            clock: clock.clone(),
            entropy: entropy.clone(),
            api_key: STRIPE_KEY.to_owned(),
            listen: address(options, 8081).await?,
        })
        .await?;
        let listen = address(options, 8080).await?;
        let mut config = config(&folder.0, &mail_dir, &stripe, listen)?;
        config.stripe_webhook_secrets = push(&config, &clock, &entropy).await?;
        let daemon = start(&config, clock.clone(), entropy, Drive::Loops).await?;
        let tools = TcpListener::bind(address(options, 8082).await?).await?;
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
            "  curl -s http://{api}/v1/customers/acme/upgrade -H 'Authorization: Bearer {API_KEY}' \\"
        );
        println!(
            "    -d '{{\"plan_id\": \"team\", \"return_url\": \"http://{api}/usage\"}}'   # open its url"
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
        drop(self.folder);
        stopped
    }
}

/// The usual port if it is free, else any that is. Always a number, because links are made of it.
async fn address(options: &Options, port: u16) -> std::io::Result<SocketAddr> {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    if !options.any_port && TcpListener::bind(usual).await.is_ok() {
        return Ok(usual);
    }
    TcpListener::bind(any).await?.local_addr()
}

/// Does what `tollgate stripe push` does in a real account; answers the secrets that webhooks are
/// signed with.
async fn push(
    config: &Config,
    clock: &Clock,
    entropy: &Entropy,
) -> Result<Vec<SecretString>, StartError> {
    let (_, catalog) = read_plans(config)?;
    let stripe = connect_stripe(config, clock, entropy)?.context("the sandbox has a key")?;
    let wanted = wanted(config, &catalog);
    let steps = plan(&wanted, &stripe.find(&wanted).await);
    let mut made = Made::default();
    let applied = apply(&stripe, &steps, &mut made, |_, _| ()).await;
    applied.map_err(|(step, error)| anyhow::anyhow!("{}: {error}", step.name))?;
    Ok(made.secrets.into_iter().map(|made| made.secret).collect())
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
        ("STRIPE_API_BASE", stripe.base_url()),
        ("SMTP_URL", format!("file://{}", mail_dir.display())),
        ("MAIL_FROM", "Example <billing@example.com>".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    Config::load(&env, None).map_err(|mistakes| StartError::Config(mistakes.to_string()))
}
