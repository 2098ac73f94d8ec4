//! Accepts connections and serves them, within limits that `axum::serve` does not have: a caller
//! that never finishes its headers is hung up on, and connections are so many and hold so much.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How long a caller may take to send a request's headers, and how long an idle connection is
/// kept: a little longer than common proxies keep theirs.
const HEADERS_WITHIN: Duration = Duration::from_secs(75);
/// The most that is kept of what a caller sent ahead, in bytes; so the longest headers too.
const MAX_AHEAD: usize = 16 << 10;
/// How many connections are served at a time; more wait to be accepted.
const SEATS: usize = 8192;
/// How long to wait when the system has no more descriptors to accept with.
const BREATHER: Duration = Duration::from_millis(100);

/// Serves until told to stop, then answers the requests under way.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    server.max_buf_size(MAX_AHEAD);
    let connections = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(SEATS));
    while let Some(seat) = stop.run_until_cancelled(seats.clone().acquire_owned()).await {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        // Answers are small and waited for; a socket that refuses this works all the same.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = connections.watch(server.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // How a caller breaks off is its own affair.
            let _ = connection.await;
            drop(seat);
        });
    }
    drop(listener);
    connections.shutdown().await;
}
