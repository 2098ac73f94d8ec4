//! All integration tests, in one binary: one link, one harness. Each test reads as a story.

// First, so that `both_databases!` is known everywhere below.
#[macro_use]
mod harness;

mod api_keys;
mod bad_input;
mod browser;
mod cli;
mod deploy;
mod doctor;
mod gate;
mod history;
mod inbox;
mod large_bodies;
mod live;
mod logs;
mod mail;
mod month;
mod notices;
mod openapi;
mod orders;
mod pages;
mod periods;
mod plans;
mod process;
mod prove;
mod push;
mod quotas;
mod reconcile;
mod recount;
mod report;
mod retention;
mod sandbox;
mod simulator;
mod statuses;
mod store;
mod sync;
mod sync_all;
mod tidy;
mod upgrade;
mod usage;
mod webhooks;
