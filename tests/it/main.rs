//! All integration tests, in one binary: one link, one harness. Each test reads as a story.

// First, so that `both_databases!` is known everywhere below.
#[macro_use]
mod harness;

mod deploy;
mod mail;
mod notices;
mod pages;
mod simulator;
mod tidy;
mod usage;
