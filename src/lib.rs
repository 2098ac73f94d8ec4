//! Tollgate: usage-gated tiers between an AI product and its Stripe account.
//!
//! The modules in reading order; each uses only those above it (`tests/it/tidy.rs` holds that).

/// What time it is.
pub mod clock;
/// Ids, secrets and jitter.
pub mod entropy;
/// The rules, pure.
pub mod domain;
/// The database.
pub mod store;
/// The Stripe API and its webhooks.
pub mod stripe;
/// The mails.
pub mod mail;
/// The environment and its mistakes.
pub mod config;
/// What every part shares.
pub mod app;
/// May this customer run?
pub mod gate;
/// Making the tier Stripe's, and reporting usage.
pub mod sync;
/// What each plan costs, earns and should cap: reading usage, drawing the report.
pub mod report;
/// What happens by the clock.
pub mod jobs;
/// What is answered over HTTP.
pub mod http;
/// A stateful Stripe for tests and the sandbox.
pub mod sim;
/// The command line.
pub mod cli;
