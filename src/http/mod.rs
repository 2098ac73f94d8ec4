//! What the daemon answers over HTTP.

pub mod admin;
pub mod api;
pub mod auth;
pub mod bodies;
pub mod body;
pub mod customers;
pub mod docs;
pub mod error;
pub mod incoming;
pub mod json;
pub mod openapi;
pub mod ops;
pub mod outbox;
pub mod pages;
pub mod quotas;
pub mod report;
pub mod server;
pub mod upgrade;
pub mod usage;
pub mod webhook;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::gate::Gate;
use crate::jobs::Jobs;
use auth::KeyRing;
use error::ApiError;
use incoming::Seats;

/// What the handlers share.
#[derive(Clone)]
pub struct Daemon {
    pub app: App,
    pub gate: Gate,
    pub jobs: Jobs,
    pub keys: Arc<KeyRing>,
    pub pace: Arc<upgrade::Pace>,
    pub seats: Arc<Seats>,
    pub metrics: PrometheusHandle,
}

/// All routes of the daemon.
pub fn router(daemon: Daemon) -> Router {
    let with_key = || middleware::from_fn_with_state(daemon.clone(), auth::require_api_key);
    let with_token = middleware::from_fn_with_state(daemon.clone(), auth::require_admin);
    let (routes, _) = OpenApiRouter::new()
        .merge(product().route_layer(with_key()))
        .merge(support().route_layer(with_token))
        .merge(open())
        .layer(middleware::from_fn(to_its_end))
        // What counts is done by the gate's writer, whoever hangs up: no task of its own.
        .merge(gate().route_layer(with_key()))
        .split_for_parts();
    routes.fallback(no_such_route).method_not_allowed_fallback(no_such_method).with_state(daemon)
}

/// The same routes for the document's sake: nothing asks for credentials.
fn documented() -> OpenApiRouter<Daemon> {
    gate().merge(product()).merge(support()).merge(open())
}

/// The hot path: what the product calls around every run.
fn gate() -> OpenApiRouter<Daemon> {
    let routes = OpenApiRouter::new()
        .routes(routes!(api::check))
        .routes(routes!(api::track))
        .routes(routes!(api::track_batch))
        .routes(routes!(api::commit))
        .routes(routes!(api::release));
    openapi::guarded(routes, openapi::API_KEY)
}

/// What else the product calls with its API key.
fn product() -> OpenApiRouter<Daemon> {
    let routes = OpenApiRouter::new()
        .routes(routes!(customers::put, customers::get, customers::delete))
        .routes(routes!(upgrade::begin))
        .routes(routes!(upgrade::session))
        .routes(routes!(usage::get));
    openapi::guarded(routes, openapi::API_KEY)
}

/// What support calls with the admin token.
fn support() -> OpenApiRouter<Daemon> {
    let routes = OpenApiRouter::new()
        .routes(routes!(admin::sync))
        .routes(routes!(admin::sync_all))
        .routes(routes!(quotas::get))
        .routes(routes!(quotas::set_override, quotas::clear_override))
        .routes(routes!(quotas::grant))
        .routes(routes!(quotas::revoke))
        .routes(routes!(quotas::keep_terms))
        .routes(routes!(admin::audit))
        .routes(routes!(admin::notices))
        .routes(routes!(admin::inbox))
        .routes(routes!(admin::replay_event))
        .routes(routes!(admin::outbox))
        .routes(routes!(outbox::replay))
        .routes(routes!(admin::jobs))
        .routes(routes!(report::pricing))
        .routes(routes!(report::pricing_page));
    openapi::guarded(routes, openapi::ADMIN_TOKEN)
}

/// What bears its own authority, as Stripe's signature or a link's token, or needs none.
fn open() -> OpenApiRouter<Daemon> {
    let routes = OpenApiRouter::new()
        .routes(routes!(webhook::stripe))
        .routes(routes!(ops::healthz))
        .routes(routes!(ops::readyz))
        .routes(routes!(ops::metrics))
        .routes(routes!(openapi::json))
        .routes(routes!(docs::docs));
    let pages = OpenApiRouter::new()
        .routes(routes!(upgrade::show, upgrade::go))
        .routes(routes!(pages::usage));
    openapi::fallible(routes).merge(pages)
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
