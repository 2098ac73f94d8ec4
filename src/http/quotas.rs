//! `/admin/api/v1/customers/{id}/…`: a customer's own quotas, its grants, and the terms it keeps.

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use super::Daemon;
use super::bodies::{GrantChange, OverrideChange, TermsChange};
use super::body::{CustomerPath, Fields};
use super::error::{ApiError, ErrorBody, unknown_customer};
use super::incoming::Body;
use crate::clock::Timestamp;
use crate::domain::customer::Customer;
use crate::domain::ids::{CustomerId, FeatureId, IdempotencyKey, PlanId, derived_id};
use crate::domain::quota::{DrawOrder, Grant, Override};
use crate::domain::usage::MAX_QUANTITY;
use crate::gate::quotas::{Change, ChangeError, Kind, NewGrant, NewOverride, change};
use crate::gate::terms_of;
use crate::store::StoreError;

/// How the audit trail names whoever holds the admin token.
const ACTOR: &str = "admin";
/// The newest version of a plans file there can be.
pub const MAX_VERSION: i64 = 1_000_000_000;

/// All that is particular to a customer.
#[derive(Serialize, ToSchema)]
pub struct QuotasBody {
    customer_id: CustomerId,
    /// The plan in force.
    #[schema(required)]
    plan_id: Option<PlanId>,
    /// The version of the plans file whose limits the customer keeps; null for the one in force at any
    /// time.
    #[schema(required)]
    terms_version: Option<i64>,
    /// Its own quotas, in order of the feature.
    overrides: Vec<OverrideBody>,
    /// Its grants, whatever became of them, the newest first.
    grants: Vec<GrantBody>,
}

/// A customer's own quota of a feature.
#[derive(Serialize, ToSchema)]
pub struct OverrideBody {
    feature_id: FeatureId,
    /// The plan it was made for; on another one it sleeps.
    #[schema(required)]
    plan_id: Option<PlanId>,
    #[schema(value_type = Kind)]
    enforcement: &'static str,
    /// Units; null if unlimited.
    #[schema(required)]
    granted: Option<i64>,
    /// Whether it holds now.
    in_force: bool,
    /// From this moment on the plan's own number holds again.
    #[schema(required)]
    ends_at: Option<Timestamp>,
    created_at: Timestamp,
    #[schema(required)]
    note: Option<String>,
}

/// A grant and what is left of it.
#[derive(Serialize, ToSchema)]
pub struct GrantBody {
    #[serde(flatten)]
    granted: GrantedBody,
    state: GrantState,
    /// Units that runs have drawn.
    used: i64,
    /// Units that runs can still draw.
    left: i64,
}

/// A grant as it was made, which never changes.
#[derive(Serialize, ToSchema)]
pub struct GrantedBody {
    grant_id: String,
    feature_id: FeatureId,
    units: i64,
    /// Whether it is drawn before the plan's allowance or after it.
    draw: DrawOrder,
    #[schema(required)]
    expires_at: Option<Timestamp>,
    created_at: Timestamp,
    #[schema(required)]
    note: Option<String>,
}

/// What became of a grant.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    Live,
    UsedUp,
    Expired,
    Revoked,
}

/// Which terms a customer keeps.
#[derive(Serialize, ToSchema)]
pub struct TermsBody {
    customer_id: CustomerId,
    #[schema(required)]
    terms_version: Option<i64>,
}

/// Everything that is particular to a customer.
#[utoipa::path(get, path = "/admin/api/v1/customers/{id}/quotas", tag = "quotas", operation_id = "get_quotas",
    params(("id" = CustomerId, Path, description = "The product's own id of the customer")),
    responses(
        (status = 200, description = "Own quotas, grants and terms", body = QuotasBody),
        (status = 404, description = "No such customer", body = ErrorBody),
    ))]
pub async fn get(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
) -> Result<Json<QuotasBody>, ApiError> {
    let app = &daemon.app;
    let customer = app.store.customer(&id).await?.ok_or_else(unknown_customer)?;
    let (overrides, grants) =
        (overrides_of(&daemon, &customer).await?, app.store.list_grants(&id).await?);
    let now = app.clock.now();
    let grants = grants.into_iter().map(|(feature_id, state, grant)| {
        let left = if state == "live" { grant.left(now) } else { 0 };
        let state = match state.as_str() {
            "revoked" => GrantState::Revoked,
            "live" if left > 0 => GrantState::Live,
            _ if grant.used == grant.units => GrantState::UsedUp,
            _ => GrantState::Expired,
        };
        GrantBody { state, used: grant.used, left, granted: granted(feature_id, grant) }
    });
    let terms = terms_of(app, &customer).await?;
    Ok(Json(QuotasBody {
        plan_id: customer.tier.plan(&terms).map(|plan| plan.id.clone()),
        terms_version: customer.terms_version,
        overrides,
        grants: grants.collect(),
        customer_id: id,
    }))
}

/// Sets the customer's own quota of a feature in place of its plan's number.
#[utoipa::path(put, path = "/admin/api/v1/customers/{id}/overrides/{feature_id}", tag = "quotas", operation_id = "set_override",
    params(
        ("id" = CustomerId, Path, description = "The product's own id of the customer"),
        ("feature_id" = FeatureId, Path),
    ),
    request_body = OverrideChange,
    responses(
        (status = 200, description = "The quota as it is now", body = OverrideBody),
        (status = 404, description = "No such customer, or no such feature", body = ErrorBody),
    ))]
pub async fn set_override(
    State(daemon): State<Daemon>,
    FeaturePath(id, feature_id): FeaturePath,
    body: Body,
) -> Result<Json<OverrideBody>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let kinds = [("hard", Kind::Hard), ("soft", Kind::Soft), ("unlimited", Kind::Unlimited)];
    let own = NewOverride {
        kind: fields.word("enforcement", &kinds)?,
        granted: fields.integer("granted", 0..=MAX_QUANTITY)?,
        ends_at: fields.time("ends_at")?,
        note: fields.note("note")?,
    };
    fields.finish()?;
    if own.kind == Some(Kind::Unlimited) && own.granted.is_some() {
        return Err(ApiError::invalid("granted", "must be left out of an unlimited quota"));
    }
    let set = Change::SetOverride { feature_id: feature_id.clone(), own };
    change(&daemon.app, &id, ACTOR, set).await.map_err(|error| refused(error, "ends_at"))?;
    let customer = daemon.app.store.customer(&id).await?.ok_or_else(unknown_customer)?;
    let overrides = overrides_of(&daemon, &customer).await?;
    let set = overrides.into_iter().find(|own| own.feature_id == feature_id);
    set.map(Json).ok_or_else(|| refused(ChangeError::NoOverride, "feature_id"))
}

/// Takes the customer's own quota of a feature away: the plan's number holds again.
#[utoipa::path(delete, path = "/admin/api/v1/customers/{id}/overrides/{feature_id}", tag = "quotas", operation_id = "clear_override",
    params(
        ("id" = CustomerId, Path, description = "The product's own id of the customer"),
        ("feature_id" = FeatureId, Path),
    ),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "No such customer, or it has no quota of its own", body = ErrorBody),
    ))]
pub async fn clear_override(
    State(daemon): State<Daemon>,
    FeaturePath(id, feature_id): FeaturePath,
) -> Result<StatusCode, ApiError> {
    let cleared = change(&daemon.app, &id, ACTOR, Change::ClearOverride { feature_id }).await;
    cleared.map_err(|error| refused(error, "feature_id"))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Grants units once, on top of what the plan allows.
#[utoipa::path(post, path = "/admin/api/v1/customers/{id}/grants", tag = "quotas", operation_id = "grant",
    params(("id" = CustomerId, Path, description = "The product's own id of the customer")),
    request_body = GrantChange,
    responses(
        (status = 200, description = "The grant as it was made", body = GrantedBody, links(
            ("revoke" = (operation_id = "revoke_grant", parameters(
                ("id" = "$request.path.id"), ("grant_id" = "$response.body#/grant_id"),
            ))),
        )),
        (status = 404, description = "No such customer, or no such feature", body = ErrorBody),
        (status = 409, description = "The idempotency key was used with another request", body = ErrorBody),
    ))]
pub async fn grant(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    body: Body,
) -> Result<Json<GrantedBody>, ApiError> {
    let app = &daemon.app;
    let mut fields = Fields::parse(&body)?;
    let key: Option<IdempotencyKey> = fields.id("idempotency_key")?;
    let feature_id: FeatureId = fields.required_id("feature_id")?;
    let grant = NewGrant {
        grant_id: match &key {
            Some(key) => derived_id("grt", &id, key.as_str()),
            None => app.entropy.id("grt", app.clock.now()),
        },
        units: fields.required_integer("units", 1..=MAX_QUANTITY)?,
        draw: fields
            .word("draw", &[("before", DrawOrder::Before), ("after", DrawOrder::After)])?
            .unwrap_or(DrawOrder::Before),
        expires_at: fields.time("expires_at")?,
        note: fields.note("note")?,
    };
    fields.finish()?;
    app.store.customer(&id).await?.ok_or_else(unknown_customer)?;
    // Asked again long after, a grant may have expired: its answer is still the first.
    if key.is_none() || granted_before(&daemon, &id, &grant.grant_id).await?.is_none() {
        let add = Change::AddGrant { feature_id: feature_id.clone(), grant: grant.clone() };
        change(app, &id, ACTOR, add).await.map_err(|error| refused(error, "expires_at"))?;
    }
    let made = granted_before(&daemon, &id, &grant.grant_id).await?;
    let made = made.ok_or_else(|| refused(ChangeError::NoGrant, "grant_id"))?;
    let same = made.feature_id == feature_id
        && made.units == grant.units
        && made.draw == grant.draw
        && made.expires_at == grant.expires_at
        && made.note == grant.note;
    if same { Ok(Json(made)) } else { Err(ApiError::key_reused()) }
}

/// Takes back what is left of a grant; what was used of it stays granted in its period.
#[utoipa::path(delete, path = "/admin/api/v1/customers/{id}/grants/{grant_id}", tag = "quotas", operation_id = "revoke_grant",
    params(
        ("id" = CustomerId, Path, description = "The product's own id of the customer"),
        ("grant_id" = String, Path, description = "`grant_id` of the grant's answer"),
    ),
    responses(
        (status = 204, description = "What was left is gone"),
        (status = 404, description = "No such customer, or no such grant, or it is over", body = ErrorBody),
    ))]
pub async fn revoke(
    State(daemon): State<Daemon>,
    GrantPath(id, grant_id): GrantPath,
) -> Result<StatusCode, ApiError> {
    let revoked = change(&daemon.app, &id, ACTOR, Change::RevokeGrant { grant_id }).await;
    revoked.map_err(|error| refused(error, "grant_id"))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keeps the customer under the limits of a version of the plans file, also if it is the one in force;
/// null puts it under those that are in force at any time.
#[utoipa::path(put, path = "/admin/api/v1/customers/{id}/terms", tag = "quotas", operation_id = "keep_terms",
    params(("id" = CustomerId, Path, description = "The product's own id of the customer")),
    request_body = TermsChange,
    responses(
        (status = 200, description = "The terms it has now", body = TermsBody),
        (status = 404, description = "No such customer", body = ErrorBody),
    ))]
pub async fn keep_terms(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    body: Body,
) -> Result<Json<TermsBody>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    if !fields.has("version") {
        // Leaving it out by mistake must not move anybody.
        return Err(fields.missing("version"));
    }
    let version = fields.integer("version", 1..=MAX_VERSION)?;
    fields.finish()?;
    let kept = change(&daemon.app, &id, ACTOR, Change::KeepTerms { version }).await;
    kept.map_err(|error| refused(error, "version"))?;
    let customer = daemon.app.store.customer(&id).await?.ok_or_else(unknown_customer)?;
    Ok(Json(TermsBody { customer_id: id, terms_version: customer.terms_version }))
}

async fn overrides_of(
    daemon: &Daemon,
    customer: &Customer,
) -> Result<Vec<OverrideBody>, StoreError> {
    let app = &daemon.app;
    let terms = terms_of(app, customer).await?;
    let plan_id = customer.tier.plan(&terms).map(|plan| &plan.id);
    let mut bodies: Vec<_> = app
        .store
        .quotas_of(&customer.id)
        .await?
        .into_iter()
        .filter_map(|((_, feature_id), quotas)| Some((feature_id, quotas.own?)))
        .map(|(feature_id, own)| override_body(feature_id, own, plan_id, app.clock.now()))
        .collect();
    bodies.sort_by(|a, b| a.feature_id.cmp(&b.feature_id));
    Ok(bodies)
}

fn override_body(
    feature_id: FeatureId,
    own: Override,
    plan_id: Option<&PlanId>,
    now: Timestamp,
) -> OverrideBody {
    OverrideBody {
        feature_id,
        enforcement: own.enforcement.as_str(),
        granted: own.enforcement.number(),
        in_force: own.holds(plan_id, now),
        plan_id: own.plan_id,
        ends_at: own.ends_at,
        created_at: own.created_at,
        note: own.note,
    }
}

async fn granted_before(
    daemon: &Daemon,
    id: &CustomerId,
    grant_id: &str,
) -> Result<Option<GrantedBody>, StoreError> {
    let grants = daemon.app.store.list_grants(id).await?;
    let found = grants.into_iter().find(|(_, _, grant)| grant.grant_id == grant_id);
    Ok(found.map(|(feature_id, _, grant)| granted(feature_id, grant)))
}

fn granted(feature_id: FeatureId, grant: Grant) -> GrantedBody {
    GrantedBody {
        grant_id: grant.grant_id,
        feature_id,
        units: grant.units,
        draw: grant.draw,
        expires_at: grant.expires_at,
        created_at: grant.created_at,
        note: grant.note,
    }
}

/// `end`: what this call names the moment at which its change is over.
fn refused(error: ChangeError, end: &str) -> ApiError {
    let message = error.to_string();
    match error {
        ChangeError::UnknownCustomer => unknown_customer(),
        ChangeError::UnknownFeature => ApiError::unknown_feature(),
        ChangeError::NoOverride => {
            ApiError::not_found("unknown_override", message).param("feature_id")
        }
        ChangeError::NoGrant => ApiError::not_found("unknown_grant", message).param("grant_id"),
        ChangeError::UnknownTerms => {
            let wanted = "must be one of the plans file that has the customer's plan";
            ApiError::invalid("version", wanted)
        }
        ChangeError::NumberMissing => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "missing_field", message)
                .param("granted")
        }
        ChangeError::EndsInThePast => ApiError::invalid(end, "must lie in the future"),
        ChangeError::Store(error) => error.into(),
    }
}

/// The customer and the feature that a path names.
pub struct FeaturePath(CustomerId, FeatureId);

impl<S: Send + Sync> FromRequestParts<S> for FeaturePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (customer_id, feature_id) = two(parts, state).await?;
        let invalid = |param| move |wanted| ApiError::invalid(param, wanted);
        Ok(Self(
            customer_id.try_into().map_err(invalid("customer_id"))?,
            feature_id.try_into().map_err(invalid("feature_id"))?,
        ))
    }
}

/// The customer and the grant that a path names.
pub struct GrantPath(CustomerId, String);

impl<S: Send + Sync> FromRequestParts<S> for GrantPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (customer_id, grant_id) = two(parts, state).await?;
        let customer_id = customer_id.try_into();
        let customer_id = customer_id.map_err(|wanted| ApiError::invalid("customer_id", wanted))?;
        // What cannot be an id of ours is unknown like any other; PostgreSQL would choke on a NUL.
        let ours = grant_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !ours {
            return Err(refused(ChangeError::NoGrant, "grant_id"));
        }
        Ok(Self(customer_id, grant_id))
    }
}

async fn two<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<(String, String), ApiError> {
    let two = Path::<(String, String)>::from_request_parts(parts, state).await;
    two.map(|Path(two)| two).map_err(|_| ApiError::malformed("an id in the path is not UTF-8"))
}
