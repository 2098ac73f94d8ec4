//! For whoever runs the daemon: is it alive, is it ready, how is it doing.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::Daemon;
use super::error::{ApiError, ErrorBody};

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "operation", operation_id = "healthz",
    responses((status = 200, description = "`ok`", content_type = "text/plain", body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers and has the schema of this build.
#[utoipa::path(get, path = "/readyz", tag = "operation", operation_id = "readyz",
    responses(
        (status = 200, description = "`ready`", content_type = "text/plain", body = String),
        (status = 503, description = "Not now", body = ErrorBody),
    ))]
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
#[utoipa::path(get, path = "/metrics", tag = "operation", operation_id = "metrics",
    responses((status = 200, description = "The metrics", content_type = "text/plain", body = String)))]
pub async fn metrics(State(daemon): State<Daemon>) -> impl IntoResponse {
    metrics::gauge!("tollgate_gate_queue_room").set(daemon.gate.room() as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], daemon.metrics.render())
}
