//! `/v1/customers/{id}`: who the customers are.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Daemon;
use super::bodies::PutCustomerBody;
use super::body::{CustomerPath, Fields};
use super::error::{ApiError, ErrorBody, unknown_customer};
use super::incoming::Body;
use crate::clock::Timestamp;
use crate::domain::answer::{Balance, Bounds, PaceBody, Threshold};
use crate::domain::customer::{Customer, Profile};
use crate::domain::decision::Intent;
use crate::domain::ids::{CustomerId, FeatureId, PlanId, printable_ascii};
use crate::domain::plan::Plan;
use crate::gate::quotas::Kind;
use crate::gate::{Request, Said, create_customer, terms_of, windows};
use crate::sync::link::{LINKED, LinkError, link};

/// A customer as the API shows it.
#[derive(Serialize, ToSchema)]
pub struct CustomerBody {
    customer_id: CustomerId,
    #[schema(required)]
    email: Option<String>,
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    stripe_customer_id: Option<String>,
    #[schema(required)]
    plan_id: Option<PlanId>,
    /// The version of the plans file whose limits it keeps; null for the one in force.
    #[schema(required)]
    terms_version: Option<i64>,
    #[schema(required)]
    subscription: Option<SubscriptionBody>,
    period: Bounds,
    features: Vec<FeatureBody>,
    created_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
struct SubscriptionBody {
    id: String,
    status: String,
    /// When it is planned to end, at the end of a period or not; everything stays until then.
    #[schema(required)]
    cancels_at: Option<Timestamp>,
    /// Whether Stripe is told not to collect its invoices; `policy.pause_collection` says what
    /// follows.
    collection_paused: bool,
}

#[derive(Serialize, ToSchema)]
struct FeatureBody {
    feature_id: FeatureId,
    /// The customer's own quota, if one holds in place of the plan's.
    #[serde(rename = "override")]
    #[schema(required)]
    own: Option<OwnQuotaBody>,
    /// Units that one-off grants have left; they are part of the balance.
    grants_left: i64,
    balance: Balance,
    threshold: Threshold,
    pace: PaceBody,
}

/// A quota that a customer has of its own.
#[derive(Serialize, ToSchema)]
struct OwnQuotaBody {
    #[schema(value_type = Kind)]
    enforcement: &'static str,
    /// Units; null if unlimited.
    #[schema(required)]
    granted: Option<i64>,
    #[schema(required)]
    ends_at: Option<Timestamp>,
}

/// What a `PUT` says: `None` leaves a field as it is, `Some(None)` clears it.
struct Changes {
    email: Option<Option<String>>,
    name: Option<Option<String>>,
    stripe_customer_id: Option<String>,
}

/// Creates the customer on the default plan, or changes what the body names.
#[utoipa::path(put, path = "/v1/customers/{id}", tag = "customers", operation_id = "put_customer",
    params(("id" = CustomerId, Path, description = "The product's own id of the customer")),
    request_body = Option<PutCustomerBody>,
    responses(
        (status = 200, description = "The customer as it is now", body = CustomerBody, links(
            ("get" = (operation_id = "get_customer", parameters(("id" = "$request.path.id")))),
            ("delete" = (operation_id = "delete_customer", parameters(("id" = "$request.path.id")))),
            ("grant" = (operation_id = "grant", parameters(("id" = "$request.path.id")))),
        )),
        (status = 404, description = "The customer was deleted meanwhile", body = ErrorBody),
        (status = 409, description = "Another customer has this Stripe customer", body = ErrorBody),
    ))]
pub async fn put(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    body: Body,
) -> Result<Json<CustomerBody>, ApiError> {
    let changes = changes(&body)?;
    let app = &daemon.app;
    let mut tx = app.store.begin().await?;
    let before = match tx.lock_customer(&id).await? {
        Some(customer) => customer,
        None => {
            create_customer(&mut tx, &id, Profile::default()).await?;
            tx.lock_customer(&id).await?.ok_or_else(unknown_customer)?
        }
    };
    let mut after = before.clone();
    if let Some(email) = changes.email {
        after.profile.email = email;
        after.profile.email_is_stripes = false;
    }
    if let Some(name) = changes.name {
        after.profile.name = name;
    }
    let linked = match &changes.stripe_customer_id {
        Some(stripe_id) => {
            link(app, &mut tx, &mut after, stripe_id).await.map_err(link_refused)?;
            before.stripe_customer_id != after.stripe_customer_id
        }
        None => false,
    };
    if after != before {
        tx.update_customer(&after).await.map_err(|error| match error.is_duplicate() {
            true => link_refused(LinkError::Taken),
            false => error.into(),
        })?;
    }
    if linked {
        // The customer may have had a subscription long before: look, as after a webhook.
        let event_id = app.entropy.id("linked", tx.now);
        tx.insert_event(&event_id, LINKED, None, Some(id.as_str()), "{}").await?;
    }
    tx.commit().await?;
    app.nudges.inbox.notify_one();
    show(&daemon, &id).await
}

/// Who the customer is, and what it has left of each feature.
#[utoipa::path(get, path = "/v1/customers/{id}", tag = "customers", operation_id = "get_customer",
    params(("id" = CustomerId, Path, description = "The product's own id of the customer")),
    responses(
        (status = 200, description = "The customer", body = CustomerBody),
        (status = 404, description = "No such customer", body = ErrorBody),
    ))]
pub async fn get(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
) -> Result<Json<CustomerBody>, ApiError> {
    show(&daemon, &id).await
}

/// Forgets who the customer is; its usage stays in the books without a name.
#[utoipa::path(delete, path = "/v1/customers/{id}", tag = "customers", operation_id = "delete_customer",
    params(("id" = CustomerId, Path, description = "The product's own id of the customer")),
    responses(
        (status = 204, description = "Forgotten"),
        (status = 404, description = "No such customer", body = ErrorBody),
    ))]
pub async fn delete(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
) -> Result<StatusCode, ApiError> {
    let app = &daemon.app;
    let mut tx = app.store.begin().await?;
    let customer = tx.lock_customer(&id).await?.ok_or_else(unknown_customer)?;
    windows::cut(app, &mut tx, &customer).await?;
    tx.delete_customer(&id).await?;
    tx.forget_upgrades(&id).await?;
    tx.commit().await?;
    app.nudges.inbox.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

async fn show(daemon: &Daemon, id: &CustomerId) -> Result<Json<CustomerBody>, ApiError> {
    let app = &daemon.app;
    let customer = app.store.customer(id).await?.ok_or_else(unknown_customer)?;
    let terms = terms_of(app, &customer).await?;
    let plan = customer.tier.plan(&terms);
    let period = customer.tier.cycle.period_at(app.clock.now());
    let features = features(daemon, &customer, plan).await?;
    Ok(Json(CustomerBody {
        customer_id: customer.id.clone(),
        email: customer.profile.email.clone(),
        name: customer.profile.name.clone(),
        stripe_customer_id: customer.stripe_customer_id.clone(),
        plan_id: plan.map(|plan| plan.id.clone()),
        terms_version: customer.terms_version,
        subscription: customer.tier.subscription.as_ref().map(|s| SubscriptionBody {
            id: s.id.clone(),
            status: s.status.as_str().to_owned(),
            cancels_at: s.cancels_at,
            collection_paused: s.collection_paused,
        }),
        period: Bounds { start: period.start, end: period.end },
        features,
        created_at: customer.created_at,
    }))
}

/// What its plan, an own quota or a grant gives a customer, in order of the feature.
async fn features(
    daemon: &Daemon,
    customer: &Customer,
    plan: Option<&Plan>,
) -> Result<Vec<FeatureBody>, ApiError> {
    let now = daemon.app.clock.now();
    let (_, active) = daemon.app.plans.active();
    let all = match customer.has_quotas {
        true => daemon.app.store.quotas_of(&customer.id).await?,
        false => HashMap::new(),
    };
    let mut features = Vec::new();
    for feature_id in active.features.keys() {
        let quotas = all.get(&(customer.id.clone(), feature_id.clone()));
        let own = quotas.and_then(|quotas| quotas.own.as_ref());
        let own = own.filter(|own| own.holds(plan.map(|plan| &plan.id), now));
        let grants = quotas.into_iter().flat_map(|quotas| &quotas.grants);
        let grants_left = grants.map(|grant| grant.left(now)).fold(0, i64::saturating_add);
        let in_plan = plan.is_some_and(|plan| plan.limits.contains_key(feature_id));
        if !in_plan && own.is_none() && grants_left == 0 {
            continue;
        }
        let answer = daemon.gate.ask(question(&customer.id, feature_id)).await?;
        features.push(FeatureBody {
            feature_id: feature_id.clone(),
            own: own.map(|own| OwnQuotaBody {
                enforcement: own.enforcement.as_str(),
                granted: own.enforcement.number(),
                ends_at: own.ends_at,
            }),
            grants_left,
            balance: answer.balance,
            threshold: answer.threshold,
            pace: answer.pace,
        });
    }
    Ok(features)
}

/// A question that counts nothing.
pub(super) fn question(customer_id: &CustomerId, feature_id: &FeatureId) -> Request {
    Request {
        customer_id: customer_id.clone(),
        feature_id: feature_id.clone(),
        entity_id: None,
        value: None,
        intent: Intent::Check,
        hold_seconds: 0,
        key: None,
        own_id: None,
        said: Said::default(),
        customer_data: None,
    }
}

fn changes(body: &[u8]) -> Result<Changes, ApiError> {
    let mut fields = Fields::parse_or_empty(body)?;
    let has_email = fields.has("email");
    let has_name = fields.has("name");
    let changes = Changes {
        email: has_email.then_some(fields.email("email")?),
        name: has_name.then_some(fields.person_name("name")?),
        stripe_customer_id: fields.string("stripe_customer_id")?,
    };
    if let Some(stripe_id) = &changes.stripe_customer_id {
        let form = printable_ascii(stripe_id, 255).is_ok()
            && stripe_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !form || !stripe_id.starts_with("cus_") {
            return Err(ApiError::invalid(
                "stripe_customer_id",
                "must be a Stripe customer's id such as \"cus_…\"",
            ));
        }
    }
    fields.finish()?;
    Ok(changes)
}

fn link_refused(error: LinkError) -> ApiError {
    match error {
        LinkError::Store(error) => error.into(),
        LinkError::UnknownCustomer => unknown_customer(),
        LinkError::Taken | LinkError::Elsewhere => {
            ApiError::new(StatusCode::CONFLICT, "stripe_customer_taken", error.to_string())
                .param("stripe_customer_id")
        }
    }
}
