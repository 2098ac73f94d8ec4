//! All integration tests, in one binary: one link, one harness. Each test reads as a story.

// First, so that `both_databases!` is known everywhere below.
#[macro_use]
mod harness;

mod api_keys;
mod bad_input;
mod browser;
mod cli;
mod deploy;
mod gate;
mod history;
mod live;
mod logs;
mod mail;
mod notices;
mod openapi;
mod pages;
mod periods;
mod plans;
mod process;
mod prove;
mod quotas;
mod reconcile;
mod recount;
mod report;
mod retention;
mod sandbox;
mod simulator;
mod store;
mod sync;
mod tidy;
mod usage;
mod webhooks;
