//! All integration tests, in one binary: one link, one harness. Each test reads as a story.

// First, so that `both_databases!` is known everywhere below.
#[macro_use]
mod harness;

mod cli;
mod deploy;
mod logs;
mod mail;
mod plans;
mod process;
mod sandbox;
mod tidy;
