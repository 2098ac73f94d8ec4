//! `tollgate serve`.

use tokio::signal::unix::{SignalKind, signal};

use super::log_to_stderr;
use super::start::{Drive, StartError, start};
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy::Entropy;

pub async fn run(config: Config) -> Result<(), StartError> {
    let told_to_stop = told_to_stop()?;
    tokio::pin!(told_to_stop);
    log_to_stderr(&config.log_filter, config.log_format);
    for part in config.idle_parts() {
        tracing::warn!("{part}");
    }
    let running = tokio::select! {
        running = start(&config, Clock::system(), Entropy::system(), Drive::Loops) => running?,
        // Nothing was promised to anyone yet.
        () = &mut told_to_stop => return Ok(()),
    };
    told_to_stop.await;
    tracing::info!("stopping");
    Ok(running.stop().await?)
}

/// Ends at the first SIGTERM or SIGINT from the moment of this call, whenever it is awaited:
/// without this call a signal would end the process there and then.
pub fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
