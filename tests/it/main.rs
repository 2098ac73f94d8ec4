//! All integration tests, in one binary: one link, one harness.

// First, so that `both_databases!` is known everywhere below.
#[macro_use]
mod harness;

mod deploy;
mod tidy;
