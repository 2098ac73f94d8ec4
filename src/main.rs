//! The `tollgate` program.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    tollgate::cli::run(tollgate::cli::Cli::parse()).await
}
