//! The command line.

mod account;
mod doctor;
mod keys;
mod progress;
mod prove;
mod provision;
mod push;
mod recount;
mod report;
pub mod sandbox;
mod serve;
pub mod start;
mod sync;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, LogFormat};
use start::StartError;

/// Usage-gated tiers between an AI product and its Stripe account.
#[derive(Parser)]
#[command(name = "tollgate", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon: gate, webhooks, jobs. Brings the database's schema up to date first.
    Serve,
    /// Run everything on this machine with no account anywhere, and play one customer's story.
    Sandbox(sandbox::Options),
    /// Bring the database's schema up to date and stop, for release phases.
    Migrate,
    /// Create, list and revoke API keys.
    Keys {
        #[command(subcommand)]
        command: keys::Command,
    },
    /// What your plans cost, earn and should cap, from your own usage.
    Report {
        #[command(subcommand)]
        command: report::Command,
    },
    /// Make customers equal to what Stripe says of them; exit 1 if one could not be.
    Sync(sync::Options),
    /// Rebuild every counter from its events and say what differs; exit 1 if anything does.
    Recount(recount::Options),
    /// Hold what was used in every closed period against Stripe's sums; exit 1 if any differs.
    Prove(prove::Options),
    /// Make the Stripe account hold what the plans file needs.
    Stripe {
        #[command(subcommand)]
        command: push::Command,
    },
    /// Check configuration, database, plans, Stripe, mail and templates.
    Doctor {
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The exit code of a configuration that cannot be used (`EX_CONFIG` of sysexits).
const BAD_CONFIGURATION: u8 = 78;

/// Runs the command given on the command line.
pub async fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Sandbox(options) => sandbox::run(options).await,
        Command::Doctor { json } => doctor::run(json).await,
        Command::Report { command } => report::run(command).await,
        command => match Config::from_process() {
            Err(errors) => Err(StartError::Config(errors.to_string())),
            Ok(config) => match command {
                Command::Serve => serve::run(config).await,
                Command::Migrate => migrate(&config).await,
                Command::Keys { command } => keys::run(&config, command).await,
                Command::Recount(options) => recount::run(&config, &options).await,
                Command::Prove(options) => prove::run(&config, &options).await,
                Command::Sync(options) => sync::run(&config, &options).await,
                Command::Stripe { command } => push::run(&config, command).await,
                Command::Sandbox(_) | Command::Doctor { .. } | Command::Report { .. } => {
                    unreachable!("handled above")
                }
            },
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Config(mistakes)) => {
            eprintln!("{mistakes}");
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(StartError::Failed(error)) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn migrate(config: &Config) -> Result<(), StartError> {
    let store = start::open_store(config, crate::clock::Clock::system()).await?;
    store.migrate().await?;
    println!("the schema is up to date");
    store.close().await;
    Ok(())
}

/// Sets up logging as configured; standard error, so that standard output stays for answers.
fn log_to_stderr(filter: &str, format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second initialisation in one process, as in tests, keeps the first.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
