//! For whoever runs the daemon: is it alive, is it ready, how is it doing.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::Daemon;
use super::error::ApiError;

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers and has the schema of this build.
pub async fn readyz(State(daemon): State<Daemon>) -> Result<&'static str, ApiError> {
    match daemon.app.store.is_migrated().await {
        Ok(true) => Ok("ready\n"),
        _ => Err(ApiError::unavailable(
            "not_ready",
            "the database does not answer, or its schema is another",
        )),
    }
}

/// In Prometheus' text format.
pub async fn metrics(State(daemon): State<Daemon>) -> impl IntoResponse {
    metrics::gauge!("tollgate_gate_queue_room").set(daemon.gate.room() as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], daemon.metrics.render())
}
