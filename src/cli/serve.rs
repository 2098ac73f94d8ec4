//! `tollgate serve`.

use tokio::signal::unix::{SignalKind, signal};

use super::log_to_stderr;
use super::start::{Drive, StartError, start};
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy::Entropy;

pub async fn run(config: Config) -> Result<(), StartError> {
    log_to_stderr(&config.log_filter, config.log_format);
    for part in config.idle_parts() {
        tracing::warn!("{part}");
    }
    let running = start(&config, Clock::system(), Entropy::system(), Drive::Loops).await?;
    told_to_stop().await?;
    tracing::info!("stopping");
    Ok(running.stop().await?)
}

/// Returns at the first SIGTERM or SIGINT.
pub async fn told_to_stop() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
