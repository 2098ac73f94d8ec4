//! What the daemon answers over HTTP.

pub mod admin;
pub mod api;
pub mod auth;
pub mod body;
pub mod customers;
pub mod error;
pub mod json;
pub mod ops;
pub mod pages;
pub mod quotas;
pub mod server;
pub mod usage;
pub mod webhook;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::app::App;
use crate::gate::Gate;
use crate::jobs::Jobs;
use auth::KeyRing;
use error::ApiError;

/// What the handlers share.
#[derive(Clone)]
pub struct Daemon {
    pub app: App,
    pub gate: Gate,
    pub jobs: Jobs,
    pub keys: Arc<KeyRing>,
    pub metrics: PrometheusHandle,
}

/// All routes of the daemon.
pub fn router(daemon: Daemon) -> Router {
    let api = Router::new()
        .route("/v1/check", post(api::check))
        .route("/v1/track", post(api::track))
        .route("/v1/track/batch", post(api::track_batch))
        .route("/v1/reservations/{id}/commit", post(api::commit))
        .route("/v1/reservations/{id}/release", post(api::release))
        .route(
            "/v1/customers/{id}",
            put(customers::put).get(customers::get).delete(customers::delete),
        )
        .route("/v1/customers/{id}/usage", get(usage::get))
        .route_layer(middleware::from_fn_with_state(daemon.clone(), auth::require_api_key));
    let admin = Router::new()
        .route("/admin/api/v1/customers/{id}/sync", post(admin::sync))
        .route("/admin/api/v1/customers/{id}/quotas", get(quotas::get))
        .route(
            "/admin/api/v1/customers/{id}/overrides/{feature_id}",
            put(quotas::set_override).delete(quotas::clear_override),
        )
        .route("/admin/api/v1/customers/{id}/grants", post(quotas::grant))
        .route("/admin/api/v1/customers/{id}/grants/{grant_id}", delete(quotas::revoke))
        .route("/admin/api/v1/customers/{id}/terms", put(quotas::keep_terms))
        .route("/admin/api/v1/audit", get(admin::audit))
        .route("/admin/api/v1/notices", get(admin::notices))
        .route("/admin/api/v1/inbox", get(admin::inbox))
        .route("/admin/api/v1/outbox", get(admin::outbox))
        .route("/admin/api/v1/jobs", get(admin::jobs))
        .route_layer(middleware::from_fn_with_state(daemon.clone(), auth::require_admin));
    Router::new()
        .merge(api)
        .merge(admin)
        .route("/webhooks/stripe", post(webhook::stripe))
        .route("/upgrade", get(pages::upgrade))
        .route("/usage", get(pages::usage))
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(to_its_end))
        .with_state(daemon)
}

/// Runs each request in a task of its own: a caller that hangs up must not stop a transaction
/// half-way, and a handler that panics answers 500 like any other fault.
async fn to_its_end(request: Request, next: Next) -> Response {
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(panic) => {
            tracing::error!(%panic, "a request handler failed");
            let message = "something went wrong here; it is logged";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message).into_response()
        }
    }
}

async fn no_such_route() -> ApiError {
    ApiError::not_found("not_found", "there is nothing at this path")
}

async fn no_such_method(method: Method) -> ApiError {
    let message = format!("this path does not take {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
