//! The pages that mails and the gate link to: what is used, and what all such pages share.
//!
//! A link's token is all the authority there is: it names one customer and one purpose.

use std::sync::LazyLock;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tera::{Context, Tera};

use super::Daemon;
use super::customers::question;
use super::error::ApiError;
use crate::domain::answer::thousands;
use crate::domain::customer::Customer;
use crate::domain::link::Purpose;
use crate::domain::plan::Plan;
use crate::gate::terms_of;

static PAGES: LazyLock<Tera> = LazyLock::new(|| {
    let mut pages = Tera::default();
    pages
        .add_raw_templates([
            ("base.html", include_str!("../../templates/pages/base.html")),
            ("features.html", include_str!("../../templates/pages/features.html")),
            ("usage.html", include_str!("../../templates/pages/usage.html")),
            ("upgrade.html", include_str!("../../templates/pages/upgrade.html")),
        ])
        .expect("the built-in pages are checked by a test");
    pages
});

/// Nobody may frame a page, keep it, or learn its address, and its forms lead to ourselves only.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
];

#[derive(Deserialize)]
pub struct LinkQuery {
    token: String,
}

type Token = Result<Query<LinkQuery>, QueryRejection>;

/// A feature and how much of it is used.
#[derive(Serialize)]
pub(super) struct FeatureRow {
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
    shown(async {
        let bad =
            || ApiError::new(StatusCode::BAD_REQUEST, "invalid_link", "this link is not valid");
        let Query(query) = token.map_err(|_| bad())?;
        usage_page(&daemon, &query.token).await
    })
    .await
}

/// A page with its headers. Bad links are met by people, so they get a sentence and not JSON.
pub(super) async fn shown(page: impl Future<Output = Result<Response, ApiError>>) -> Response {
    let mut response = match page.await {
        Ok(response) => response,
        Err(error) => (error.status, error.message).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn usage_page(daemon: &Daemon, token: &str) -> Result<Response, ApiError> {
    let app = &daemon.app;
    let forbidden = |why: String| ApiError::new(StatusCode::FORBIDDEN, "invalid_link", why);
    let id = app
        .links
        .verify(Purpose::Usage, token, app.clock.now())
        .map_err(|error| forbidden(error.to_string()))?;
    let customer = app.store.customer(&id).await?;
    let customer = customer.ok_or_else(|| forbidden("this link is not valid".to_owned()))?;
    let terms = terms_of(app, &customer).await?;
    let plan = customer.tier.plan(&terms);
    let period = customer.tier.cycle.period_at(app.clock.now());
    let mut context = Context::new();
    context.insert("title", "Your usage");
    context.insert("plan_name", plan.map_or("No", |plan| plan.name.as_str()));
    context.insert("period_end", &period.end.to_jiff().strftime("%B %-d").to_string());
    context.insert("features", &feature_rows(daemon, &customer, plan, true).await?);
    page("usage.html", &context)
}

/// What a customer has used of each feature of its plan; with the words on the next plan, or not.
pub(super) async fn feature_rows(
    daemon: &Daemon,
    customer: &Customer,
    plan: Option<&Plan>,
    with_offer: bool,
) -> Result<Vec<FeatureRow>, ApiError> {
    let (_, catalog) = daemon.app.plans.active();
    let mut features = Vec::new();
    for feature_id in plan.into_iter().flat_map(|plan| plan.limits.keys()) {
        let answer = daemon.gate.ask(question(&customer.id, feature_id)).await?;
        let name =
            catalog.features.get(feature_id).map_or(feature_id.as_str(), |f| f.name.as_str());
        features.push(FeatureRow {
            name: name.to_owned(),
            usage: thousands(answer.balance.usage),
            granted: answer.balance.granted.map(thousands),
            percent: answer.threshold.percent.map(|percent| percent.min(100)),
            message: answer.upgrade.map(|upgrade| upgrade.message).filter(|_| with_offer),
        });
    }
    Ok(features)
}

pub(super) fn page(name: &str, context: &Context) -> Result<Response, ApiError> {
    let html = PAGES.render(name, context).map_err(|error| {
        tracing::error!(%error, "a page could not be rendered");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong here; it is logged",
        )
    })?;
    Ok(Html(html).into_response())
}
