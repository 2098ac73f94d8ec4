//! The pricing report for the founder: as JSON and as a page.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use utoipa::IntoParams;

use super::Daemon;
use super::body::{Fields, Pairs};
use super::error::{ApiError, ErrorBody};
use crate::clock::Timestamp;
use crate::domain::ids::FeatureId;
use crate::domain::margin::{Ledger, Report, Span, Tariff, Wishes};
use crate::report::recorded::{midnight, month_until, read_recorded};

/// What a report is asked for, as the document describes it.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the query is read field by field")]
struct Asked {
    /// The first day, in UTC.
    #[param(value_type = String, format = Date, required = false)]
    from: Option<String>,
    /// The first day that is not included.
    #[param(value_type = String, format = Date, required = false)]
    to: Option<String>,
    /// May be left out if there is but one.
    #[param(value_type = String, required = false)]
    feature_id: Option<FeatureId>,
    /// In percent; 70 if left out.
    #[param(minimum = 0, maximum = 99)]
    target_margin: Option<u8>,
}

/// What customers cost and pay: percentiles, margins and advice; of the last month unless told
/// otherwise.
#[utoipa::path(get, path = "/admin/api/v1/report/pricing", tag = "support", operation_id = "pricing_report",
    params(Asked),
    responses(
        (status = 200, description = "The report", body = ref("#/components/schemas/PricingReport")),
        (status = 404, description = "No runs in this time", body = ErrorBody),
        (status = 409, description = "The plans file lacks what the report needs", body = ErrorBody),
    ))]
pub async fn pricing(State(daemon): State<Daemon>, query: Pairs) -> Result<Json<Report>, ApiError> {
    Ok(Json(report(&daemon, query).await?))
}

/// The same as a page with charts.
#[utoipa::path(get, path = "/admin/report/pricing", tag = "support", operation_id = "pricing_report_page",
    params(Asked),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        (status = 404, description = "No runs in this time", body = ErrorBody),
        (status = 409, description = "The plans file lacks what the report needs", body = ErrorBody),
    ))]
pub async fn pricing_page(
    State(daemon): State<Daemon>,
    query: Pairs,
) -> Result<Response, ApiError> {
    let report = report(&daemon, query).await?;
    let page = crate::report::html::render(&report).map_err(|error| {
        tracing::error!(%error, "the pricing report could not be drawn");
        let message = "something went wrong here; it is logged";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    })?;
    let mut response = Html(page).into_response();
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
    Ok(response)
}

async fn report(daemon: &Daemon, query: Pairs) -> Result<Report, ApiError> {
    let mut fields = Fields::query(query)?;
    let month = month_until(daemon.app.clock.now());
    let span = Span {
        from: day(&mut fields, "from")?.or(month.from),
        to: day(&mut fields, "to")?.or(month.to),
    };
    let feature_id = fields.id::<FeatureId>("feature_id")?;
    let target = fields.string("target_margin")?;
    fields.finish()?;
    if span.from >= span.to {
        return Err(ApiError::invalid("to", "must be after from"));
    }
    let target = match target.as_deref() {
        None => Wishes::default().target_margin_percent,
        Some(text) => text.parse().ok().filter(|percent| *percent < 100).ok_or_else(|| {
            ApiError::invalid("target_margin", "must be a whole percentage from 0 to 99")
        })?,
    };
    let (_, catalog) = daemon.app.plans.active();
    let feature = catalog.feature_or_only(feature_id.as_ref().map(FeatureId::as_str));
    let feature = feature.ok_or_else(|| {
        let wanted = match feature_id {
            None => "must be given, as the plans file has several features",
            Some(_) => "must be a feature of the plans file",
        };
        ApiError::invalid("feature_id", wanted)
    })?;
    let unfit = |problem: String| ApiError::new(StatusCode::CONFLICT, "plans_unfit", problem);
    let tariff = Tariff::of(&catalog, &feature.id).map_err(|error| unfit(error.to_string()))?;
    let mut ledger = Ledger::new(tariff, None, span).map_err(unfit)?;
    let read = read_recorded(&daemon.app.store, &feature.id, span, &mut ledger).await;
    read.map_err(ApiError::of_long_read)?;
    let wishes = Wishes { target_margin_percent: target, ..Wishes::default() };
    ledger
        .report(feature, &wishes)
        .map_err(|error| ApiError::not_found("no_runs", error.to_string()))
}

fn day(fields: &mut Fields, name: &'static str) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = fields.string(name)? else { return Ok(None) };
    let wanted = "must be a day such as 2026-10-01";
    midnight(&text).map(Some).ok_or_else(|| ApiError::invalid(name, wanted))
}
