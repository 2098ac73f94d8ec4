//! The pages that mails and the gate link to: what is used, and the way up.
//!
//! A link's token is all the authority there is: it names one customer and one purpose.

use std::sync::LazyLock;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tera::{Context, Tera};

use super::Daemon;
use super::customers::question;
use super::error::ApiError;
use crate::domain::answer::thousands;
use crate::domain::link::Purpose;

static PAGES: LazyLock<Tera> = LazyLock::new(|| {
    let mut pages = Tera::default();
    pages
        .add_raw_template("usage.html", include_str!("../../templates/pages/usage.html"))
        .expect("the built-in page is checked by a test");
    pages
});

#[derive(Deserialize)]
pub struct LinkQuery {
    token: String,
}

type Token = Result<Query<LinkQuery>, QueryRejection>;

#[derive(Serialize)]
struct FeatureRow {
    name: String,
    usage: String,
    granted: Option<String>,
    /// How far along the bar goes, at most to its end; `None` without a number to reach.
    percent: Option<i64>,
    message: Option<String>,
}

/// What the customer has used.
#[utoipa::path(get, path = "/usage", tag = "links", operation_id = "usage_page",
    params(("token" = String, Query, description = "The link's, valid to the period's end")),
    responses(
        (status = 200, description = "The page", content_type = "text/html", body = String),
        (status = 400, description = "Not a link of ours", content_type = "text/plain", body = String),
        (status = 403, description = "The link is not valid, or not any more", content_type = "text/plain", body = String),
        (status = 503, description = "Not now", content_type = "text/plain", body = String),
    ))]
pub async fn usage(State(daemon): State<Daemon>, token: Token) -> Response {
    page(&daemon, token, Purpose::Usage, "Your usage", None).await
}

/// What the next plan gives.
#[utoipa::path(get, path = "/upgrade", tag = "links", operation_id = "upgrade_page",
    params(("token" = String, Query, description = "The link's, valid to the period's end")),
    responses(
        (status = 200, description = "The page", content_type = "text/html", body = String),
        (status = 400, description = "Not a link of ours", content_type = "text/plain", body = String),
        (status = 403, description = "The link is not valid, or not any more", content_type = "text/plain", body = String),
        (status = 503, description = "Not now", content_type = "text/plain", body = String),
    ))]
pub async fn upgrade(State(daemon): State<Daemon>, token: Token) -> Response {
    let how_to = "To upgrade, open the billing page of the product you use.";
    page(&daemon, token, Purpose::Upgrade, "Your plan and the next one", Some(how_to)).await
}

async fn page(
    daemon: &Daemon,
    token: Token,
    purpose: Purpose,
    title: &str,
    how_to: Option<&str>,
) -> Response {
    let page = match token {
        Ok(Query(query)) => render(daemon, &query.token, purpose, title, how_to).await,
        Err(_) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_link", "this link is not valid"))
        }
    };
    let mut response = match page {
        Ok(html) => Html(html).into_response(),
        // Bad links are met by people, so they get a sentence and not JSON.
        Err(error) => (error.status, error.message).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn render(
    daemon: &Daemon,
    token: &str,
    purpose: Purpose,
    title: &str,
    how_to: Option<&str>,
) -> Result<String, ApiError> {
    let app = &daemon.app;
    let id = app
        .links
        .verify(purpose, token, app.clock.now())
        .map_err(|error| ApiError::new(StatusCode::FORBIDDEN, "invalid_link", error.to_string()))?;
    let gone = || ApiError::new(StatusCode::FORBIDDEN, "invalid_link", "this link is not valid");
    let customer = app.store.customer(&id).await?.ok_or_else(gone)?;
    let (_, catalog) = app.plans.active();
    let plan = customer.tier.plan(&catalog);
    let mut features = Vec::new();
    for feature_id in plan.into_iter().flat_map(|plan| plan.limits.keys()) {
        let answer = daemon.gate.ask(question(&id, feature_id)).await?;
        let name =
            catalog.features.get(feature_id).map_or(feature_id.as_str(), |f| f.name.as_str());
        features.push(FeatureRow {
            name: name.to_owned(),
            usage: thousands(answer.balance.usage),
            granted: answer.balance.granted.map(thousands),
            percent: answer.threshold.percent.map(|percent| percent.min(100)),
            message: answer.upgrade.map(|upgrade| upgrade.message),
        });
    }
    let period = customer.tier.cycle.period_at(app.clock.now());
    let mut context = Context::new();
    context.insert("title", title);
    context.insert("plan_name", plan.map_or("No", |plan| plan.name.as_str()));
    context.insert("period_end", &period.end.to_jiff().strftime("%B %-d").to_string());
    context.insert("features", &features);
    context.insert("how_to", &how_to);
    PAGES.render("usage.html", &context).map_err(|error| {
        tracing::error!(%error, "a page could not be rendered");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong here; it is logged",
        )
    })
}
