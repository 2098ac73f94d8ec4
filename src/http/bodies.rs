//! What callers send, as the document describes it.
//!
//! Requests are read field by field ([`super::body`]), so that each mistake is told by its field's
//! name. These types say the same in one piece, for the document alone; that they say the same is
//! held by the test that sends what they allow, and what they do not, to a running daemon.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, EntityId, FeatureId, IdempotencyKey, PlanId};
use crate::domain::quota::DrawOrder;
use crate::gate::quotas::Kind;

/// May this customer run?
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"customer_id": "acme", "feature_id": "ai_runs", "send_event": true,
    "idempotency_key": "run-42", "customer_data": {"email": "ada@acme.example", "name": "Acme"}}))]
pub struct CheckBody {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    /// Units the run takes. If it is left out: 1, or the credits that `properties` come to.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub required_balance: Option<i64>,
    /// Whether to count the run in the same step, if it is allowed.
    pub send_event: Option<bool>,
    pub idempotency_key: Option<IdempotencyKey>,
    /// Holds the units for a run in flight. Not together with `send_event`.
    pub reserve: Option<ReserveBody>,
    pub properties: Option<PropertiesBody>,
    pub entity_id: Option<EntityId>,
    /// Creates the customer on the default plan if there is none.
    pub customer_data: Option<CustomerDataBody>,
}

/// How long units are held.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReserveBody {
    /// Seconds until units that were neither committed nor released are free again, within five more.
    #[schema(minimum = 1, maximum = 604_800, default = 900)]
    pub expires_in_seconds: Option<i64>,
}

/// What the caller says of the run: its model and tokens, and up to 4 KiB of whatever else.
#[derive(ToSchema)]
pub struct PropertiesBody {
    /// The model's name as in the plans file. A feature that is counted in credits needs it.
    #[schema(min_length = 1, max_length = 100, pattern = "^[!-~]+$")]
    pub model: Option<String>,
    /// All tokens read, from the provider's cache or not.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    pub input_tokens: Option<i64>,
    /// Those of `input_tokens` that came from the cache.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    pub cached_input_tokens: Option<i64>,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    pub output_tokens: Option<i64>,
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// Who a customer is.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomerDataBody {
    #[schema(max_length = 254, pattern = r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+$")]
    pub email: Option<String>,
    /// Control characters are taken out.
    #[schema(max_length = 200)]
    pub name: Option<String>,
}

/// A run that has already happened.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"customer_id": "acme", "feature_id": "ai_runs", "value": 3,
    "idempotency_key": "run-43", "entity_id": "ada"}))]
pub struct TrackBody {
    pub customer_id: CustomerId,
    pub feature_id: FeatureId,
    /// Units the run took. If it is left out: 1, or the credits that `properties` come to.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub value: Option<i64>,
    pub idempotency_key: Option<IdempotencyKey>,
    pub overage_behavior: Option<OverageBehavior>,
    pub properties: Option<PropertiesBody>,
    pub entity_id: Option<EntityId>,
    /// Creates the customer on the default plan if there is none.
    pub customer_data: Option<CustomerDataBody>,
}

/// `allow` counts all of the value, even past a hard limit; `cap` at most what remains.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum OverageBehavior {
    Allow,
    Cap,
}

/// Runs that have already happened, in their order.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrackBatchBody {
    /// Each is what `/v1/track` takes, and is read by itself: one that is wrong is told so in its own
    /// result.
    #[schema(value_type = Vec<Value>, min_items = 1, max_items = 1000,
        example = json!([{"customer_id": "acme", "feature_id": "ai_runs"}]))]
    pub events: Vec<TrackBody>,
}

/// How a run whose units were held came out.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitBody {
    /// Units the run took; if it is left out, the credits that `properties` come to, or what was
    /// held.
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    pub value: Option<i64>,
    pub properties: Option<PropertiesBody>,
}

/// Nothing is left to say.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseBody {}

/// Who the customer is. A field that is left out stays as it is; null clears it.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ada@acme.example", "name": "Acme"}))]
pub struct PutCustomerBody {
    #[schema(max_length = 254, pattern = r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+$")]
    pub email: Option<String>,
    /// Control characters are taken out.
    #[schema(max_length = 200)]
    pub name: Option<String>,
    /// Ties the customer to one of Stripe's. Null leaves the tie as it is.
    #[schema(max_length = 255, pattern = "^cus_[A-Za-z0-9_]*$")]
    pub stripe_customer_id: Option<String>,
}

/// The plan to change to, and where to come back to.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"plan_id": "pro", "return_url": "https://app.example.com/settings"}))]
pub struct UpgradeBody {
    pub plan_id: PlanId,
    /// On the origin of TOLLGATE_PUBLIC_URL or one of TOLLGATE_RETURN_ORIGINS. The customer comes
    /// back with `tollgate_upgrade=done` or `tollgate_upgrade=canceled` added to its query.
    #[schema(max_length = 1000, pattern = "^https?://")]
    pub return_url: String,
}

/// Nothing has to be said.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoFieldsBody {}

/// What the button of a page sends.
#[derive(ToSchema)]
pub struct TokenForm {
    pub token: String,
}

/// A quota of the customer's own.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"granted": 20000, "ends_at": "2099-01-01T00:00:00Z", "note": "contract of May"}))]
pub struct OverrideChange {
    /// What happens at the number; as the plan does it, or hard, if it is left out.
    pub enforcement: Option<Kind>,
    /// Units per billing period. Needed unless `enforcement` is `unlimited`, and then left out.
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    pub granted: Option<i64>,
    /// From this moment on the plan's own number holds again; in the future.
    pub ends_at: Option<Timestamp>,
    /// For support's own eyes.
    #[schema(max_length = 500)]
    pub note: Option<String>,
}

/// Units to grant once.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"feature_id": "ai_runs", "units": 50, "draw": "before",
    "idempotency_key": "ticket-7", "note": "sorry for Tuesday"}))]
pub struct GrantChange {
    pub feature_id: FeatureId,
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub units: i64,
    /// Whether it is drawn before the plan's allowance, as if you say nothing, or after it.
    pub draw: Option<DrawOrder>,
    /// From this moment on what is left is gone; in the future.
    pub expires_at: Option<Timestamp>,
    /// For support's own eyes.
    #[schema(max_length = 500)]
    pub note: Option<String>,
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Whose limits the customer is to have.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"version": null}))]
pub struct TermsChange {
    /// A version of the plans file that has the customer's plan; null for the one in
    /// force at any time, which a number is not: it stays, also if it is the newest now.
    #[schema(required, minimum = 1, maximum = 1_000_000_000)]
    pub version: Option<i64>,
}
