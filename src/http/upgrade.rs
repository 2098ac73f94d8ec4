//! Upgrades: the product's call that begins one, and the page on which a customer goes on with it.
//!
//! The page's token is all the authority there is, in its address and in its one button; so there
//! are no cookies that another site could borrow. Looking changes nothing, pressing the button does.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tera::Context;
use utoipa::ToSchema;

use super::Daemon;
use super::bodies::{NoFieldsBody, TokenForm, UpgradeBody};
use super::body::{CustomerPath, Fields};
use super::error::{ApiError, ErrorBody, unknown_customer};
use super::incoming::{Body, Unread};
use super::pages::{feature_rows, page, shown};
use crate::clock::Timestamp;
use crate::domain::ids::PlanId;
use crate::domain::link::{Purpose, Ticket};
use crate::domain::returning::{MAX_RETURN_URL, Return};
use crate::domain::upgrade::NoWay;
use crate::sync::upgrade::{
    StartKind, State as Stand, Step, UpgradeError, View, Wish, look, proceed, start,
};

mod pace;
mod words;

pub use pace::Pace;
use words::{Said, say};

/// How long an embed token is good.
const EMBED_FOR: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// Where to send the customer.
#[derive(Serialize, ToSchema)]
pub struct StartBody {
    url: String,
    kind: StartKind,
}

/// What a page of the product's needs to show a customer its numbers and the way up.
#[derive(Serialize, ToSchema)]
pub struct SessionBody {
    /// Reads this customer's numbers, and nothing else.
    token: String,
    expires_at: Timestamp,
    /// Good to the period's end.
    upgrade_url: String,
    /// Good to the period's end.
    usage_url: String,
}

/// Begins a change of plan and answers where to send the customer: to Stripe, or to our own page.
#[utoipa::path(post, path = "/v1/customers/{id}/upgrade", tag = "customers",
    operation_id = "upgrade_customer",
    params(("id" = crate::domain::ids::CustomerId, Path, description = "The product's own id of the customer")),
    request_body = UpgradeBody,
    responses(
        (status = 200, description = "Where to send the customer", body = StartBody),
        (status = 404, description = "No such customer or plan", body = ErrorBody),
        (status = 409, description = "The customer is on this plan, or its subscription does not allow a change", body = ErrorBody),
    ))]
pub async fn begin(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    body: Body,
) -> Result<Json<StartBody>, ApiError> {
    let app = &daemon.app;
    let mut fields = Fields::parse(&body)?;
    let plan_id: PlanId = fields.required_id("plan_id")?;
    let return_url = fields.string("return_url")?.ok_or_else(|| fields.missing("return_url"))?;
    fields.finish()?;
    let return_url = app.returns.check(&return_url).ok_or_else(|| {
        let wanted = format!(
            "must be an address of at most {MAX_RETURN_URL} characters on the origin of \
             TOLLGATE_PUBLIC_URL or one of TOLLGATE_RETURN_ORIGINS"
        );
        ApiError::invalid("return_url", wanted)
    })?;
    let wish = Wish::new(id, plan_id, return_url, app.clock.now());
    let started = start(app, &wish).await?;
    Ok(Json(StartBody { url: started.url, kind: started.kind }))
}

/// A token for what the product embeds of a customer's numbers, good for 15 minutes, and links.
#[utoipa::path(post, path = "/v1/customers/{id}/session", tag = "customers",
    operation_id = "create_session",
    params(("id" = crate::domain::ids::CustomerId, Path, description = "The product's own id of the customer")),
    request_body = Option<NoFieldsBody>,
    responses(
        (status = 200, description = "The token and the links", body = SessionBody),
        (status = 404, description = "No such customer", body = ErrorBody),
    ))]
pub async fn session(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    body: Body,
) -> Result<Json<SessionBody>, ApiError> {
    Fields::parse_or_empty(&body)?.finish()?;
    let app = &daemon.app;
    let customer = app.store.customer(&id).await?.ok_or_else(unknown_customer)?;
    let now = app.clock.now();
    let expires_at = Timestamp::from_seconds(now.plus(EMBED_FOR).seconds());
    let period_end = customer.tier.cycle.period_at(now).end;
    Ok(Json(SessionBody {
        token: app.links.token(Purpose::Embed, &id, expires_at),
        expires_at,
        upgrade_url: app.links.url(Purpose::Upgrade, &id, period_end),
        usage_url: app.links.url(Purpose::Usage, &id, period_end),
    }))
}

impl From<UpgradeError> for ApiError {
    fn from(error: UpgradeError) -> Self {
        let conflict =
            |code, error: &UpgradeError| Self::new(StatusCode::CONFLICT, code, error.to_string());
        match &error {
            UpgradeError::UnknownCustomer => unknown_customer(),
            UpgradeError::UnknownPlan => {
                Self::not_found("unknown_plan", error.to_string()).param("plan_id")
            }
            UpgradeError::NoPrice => Self::invalid("plan_id", "must be a plan with a price"),
            UpgradeError::NotConfigured => Self::unavailable("not_configured", error.to_string()),
            UpgradeError::PriceNotInStripe { .. } | UpgradeError::PriceDiffers { .. } => {
                tracing::error!(%error, "an upgrade cannot be sold");
                Self::unavailable("not_configured", error.to_string())
            }
            UpgradeError::NoWay(no_way) => {
                let code = match no_way {
                    NoWay::AlreadyOnPlan => "already_on_plan",
                    NoWay::Ends => "subscription_ends",
                    NoWay::Scheduled => "subscription_scheduled",
                    NoWay::DiscountedOrOnTrial => "discounted_or_on_trial",
                };
                conflict(code, &error).param("plan_id")
            }
            UpgradeError::NoTier(_) => conflict("subscription_not_in_plans", &error),
            UpgradeError::StripeCustomerDeleted => {
                conflict("stripe_customer_deleted", &error).param("stripe_customer_id")
            }
            UpgradeError::NoSuchStripeCustomer => {
                conflict("stripe_customer_missing", &error).param("stripe_customer_id")
            }
            UpgradeError::Overtaken => conflict("overtaken", &error),
            UpgradeError::Stripe(_) => {
                tracing::error!(%error, "Stripe could not be asked for an upgrade");
                Self::unavailable("stripe_unavailable", "Stripe cannot answer now; ask again")
            }
            UpgradeError::Store(_) => {
                tracing::error!(%error, "the database could not answer a request");
                Self::unavailable("unavailable", "the database cannot answer")
            }
        }
    }
}

// --- the page ----------------------------------------------------------------------------------

#[derive(Deserialize)]
pub struct PageQuery {
    token: String,
    /// What Stripe's pages add on the way back.
    tollgate_upgrade: Option<String>,
}

/// What another plan gives and costs, and the button that leads to it.
#[utoipa::path(get, path = "/upgrade", tag = "links", operation_id = "upgrade_page",
    params(
        ("token" = String, Query, description = "The link's"),
        ("tollgate_upgrade" = Option<String>, Query, description = "`done` or `canceled`, on the way back from Stripe"),
    ),
    responses(
        (status = 200, description = "The page", content_type = "text/html", body = String),
        (status = 400, description = "Not a link of ours", content_type = "text/plain", body = String),
        (status = 403, description = "The link is not valid, or not any more", content_type = "text/plain", body = String),
        (status = 429, description = "More than 10 times at once, or than once in 3 s", content_type = "text/plain", body = String),
        (status = 503, description = "Not now", content_type = "text/plain", body = String),
    ))]
pub async fn show(
    State(daemon): State<Daemon>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    shown(async {
        let Query(query) = query.map_err(|_| no_link())?;
        let ticket = ticket(&daemon, &query.token)?;
        let view = look(&daemon.app, &ticket).await.map_err(for_people)?;
        let returned = match query.tollgate_upgrade.as_deref() {
            Some("done") => Some(Return::Done),
            Some("canceled") => Some(Return::Canceled),
            _ => None,
        };
        let (_, catalog) = daemon.app.plans.active();
        let said = say(&view, &catalog, returned);
        render(&daemon, &ticket, &view, said).await
    })
    .await
}

/// Goes the way the page shows.
#[utoipa::path(post, path = "/upgrade", tag = "links", operation_id = "upgrade",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "A page that leads on to Stripe's, or says that the card was declined", content_type = "text/html", body = String),
        (status = 303, description = "Back to the page, which says what is so now", headers(("Location" = String, description = "The page"))),
        (status = 400, description = "Not a button of ours", content_type = "text/plain", body = String),
        (status = 403, description = "The link is not valid, or not any more", content_type = "text/plain", body = String),
        (status = 408, description = "The body took over 30 s", content_type = "text/plain", body = String),
        (status = 409, description = "The plan cannot be changed like this", content_type = "text/plain", body = String),
        (status = 413, description = "The body has more than 1 MiB", content_type = "text/plain", body = String),
        (status = 429, description = "More than 10 times at once, or than once in 3 s", content_type = "text/plain", body = String),
        (status = 503, description = "Not now", content_type = "text/plain", body = String),
    ))]
pub async fn go(State(daemon): State<Daemon>, body: Result<Unread, ApiError>) -> Response {
    shown(async {
        let body = body?.read(&daemon.seats.strangers).await?;
        let ticket = ticket(&daemon, &token_of(&body)?)?;
        match proceed(&daemon.app, &ticket).await.map_err(for_people)? {
            Step::Away { url } => page("upgrade.html", &words::away(&url)),
            Step::Look { token } => {
                let location = [(header::LOCATION, format!("?token={token}"))];
                Ok((StatusCode::SEE_OTHER, location).into_response())
            }
            Step::Declined => {
                let view = look(&daemon.app, &ticket).await.map_err(for_people)?;
                let again = Ticket { quoted: None, ..ticket.clone() };
                let said = words::declined(&view, &daemon.app.links.upgrade_url(&again));
                render(&daemon, &ticket, &view, said).await
            }
        }
    })
    .await
}

fn no_link() -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_link", "this link is not valid")
}

/// What the holder of a token may do, unless the customer's links are followed too often.
fn ticket(daemon: &Daemon, token: &str) -> Result<Ticket, ApiError> {
    let now = daemon.app.clock.now();
    let ticket = daemon.app.links.verify_upgrade(token, now);
    let ticket = ticket
        .map_err(|error| ApiError::new(StatusCode::FORBIDDEN, "invalid_link", error.to_string()))?;
    if daemon.pace.allows(&ticket.customer_id, now) {
        return Ok(ticket);
    }
    let words = "this page was opened very often just now; load it again in a few seconds";
    Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", words))
}

/// The one field of the form.
fn token_of(body: &[u8]) -> Result<String, ApiError> {
    let form = std::str::from_utf8(body).map_err(|_| no_link())?;
    let mut reader = Url::parse("form:").map_err(|_| no_link())?;
    reader.set_query(Some(form));
    let mut tokens = reader.query_pairs().filter(|(name, _)| name == "token");
    match (tokens.next(), tokens.next()) {
        (Some((_, token)), None) => Ok(token.into_owned()),
        _ => Err(no_link()),
    }
}

/// What a customer may know of an error: nothing of Stripe's, of keys, or of the plans file.
fn for_people(error: UpgradeError) -> ApiError {
    match error {
        UpgradeError::UnknownCustomer => {
            ApiError::new(StatusCode::FORBIDDEN, "invalid_link", "this link is not valid")
        }
        error => {
            let words = words::of_error(&error);
            let ApiError { status, code, .. } = error.into();
            let status = match status {
                StatusCode::CONFLICT => status,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            ApiError::new(status, code, words)
        }
    }
}

async fn render(
    daemon: &Daemon,
    ticket: &Ticket,
    view: &View,
    said: Said,
) -> Result<Response, ApiError> {
    let app = &daemon.app;
    let period = view.customer.tier.cycle.period_at(app.clock.now());
    let plan = view.plan.as_ref();
    let next = plan.and_then(|plan| plan.upgrade_to.as_ref());
    let is_next = next == view.wanted.as_ref().map(|wanted| &wanted.id);
    let features = feature_rows(daemon, &view.customer, plan, is_next).await?;
    let how = match view.state {
        Ok(Stand::On | Stand::Planned { .. }) => Return::Done,
        _ => Return::Canceled,
    };
    let back = ticket.return_url.as_deref().and_then(|url| app.returns.check(url));
    let mut context = Context::new();
    context.insert("title", "Your plan and the next one");
    context.insert("plan_name", plan.map_or("No", |plan| plan.name.as_str()));
    context.insert("period_end", &words::day(period.end));
    context.insert("features", &features);
    context.insert("said", &said);
    context.insert("token", &view.token);
    context.insert("back", &back.map(|back| back.with(how)));
    page("upgrade.html", &context)
}
