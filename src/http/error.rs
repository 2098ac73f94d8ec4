//! Errors as the API words them: `{"error": {"code", "message", "param"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::credit::CreditError;
use crate::gate::GateError;
use crate::store::StoreError;

/// An error on its way to a caller. The message is for the caller; what it must not see goes to
/// the log where the error is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    pub param: Option<String>,
}

/// An error as it goes out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"error": {"code": "invalid_value",
    "message": "required_balance must be an integer from 1 to 1000000000", "param": "required_balance"}}))]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// The field, the header or the part of the path that is at fault.
    #[schema(required)]
    pub param: Option<String>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None }
    }

    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// 400: the body is not JSON, or a field is of the wrong type.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// 422: a field has the right type and a wrong value.
    pub fn invalid(param: impl Into<String>, wanted: impl std::fmt::Display) -> Self {
        let param = param.into();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", format!("{param} {wanted}"))
            .param(param)
    }

    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 404: the plans file in force has no such feature.
    pub fn unknown_feature() -> Self {
        Self::not_found("unknown_feature", "feature_id is not a feature of the plans file")
            .param("feature_id")
    }

    /// 409: one key, two requests.
    pub fn key_reused() -> Self {
        let message =
            "idempotency_key was used with another request; use a new key for a new request";
        Self::new(StatusCode::CONFLICT, "idempotency_key_reused", message).param("idempotency_key")
    }

    /// As the contract words it.
    pub fn body(&self) -> ErrorBody {
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorBody { error: ErrorDetail { code: self.code, message, param } }
    }

    /// What a long read could not do; 503 `overloaded` if it had to wait too long for its turn.
    pub fn of_long_read(error: StoreError) -> Self {
        if error.is_without_turn() {
            let message = "too many long reads are under way; ask again soon";
            return Self::unavailable("overloaded", message);
        }
        error.into()
    }

    /// 503: try again soon.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl From<GateError> for ApiError {
    fn from(error: GateError) -> Self {
        match error {
            GateError::UnknownCustomer => unknown_customer(),
            GateError::UnknownFeature => Self::unknown_feature(),
            GateError::KeyReused => Self::key_reused(),
            GateError::UnknownReservation => {
                Self::not_found("unknown_reservation", "there is no such reservation")
                    .param("reservation_id")
            }
            GateError::Settled(_) => {
                Self::new(StatusCode::CONFLICT, "reservation_settled", error.to_string())
                    .param("reservation_id")
            }
            GateError::Credits(cause) => {
                let (code, param) = match &cause {
                    CreditError::NoModel => ("missing_field", "properties.model"),
                    CreditError::NoTokens => ("missing_field", "properties.input_tokens"),
                    CreditError::UnknownModel { .. } => ("unknown_model", "properties.model"),
                    CreditError::TooLarge => ("invalid_value", "properties"),
                };
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, cause.to_string()).param(param)
            }
            GateError::Overloaded => Self::unavailable(
                "overloaded",
                "too many requests are waiting; nothing was counted",
            ),
            GateError::NotTaken => Self::from(GateError::Unavailable(None)),
            GateError::Unavailable(cause) => {
                if let Some(error) = cause {
                    tracing::error!(%error, "the gate could not answer");
                }
                Self::unavailable(
                    "unavailable",
                    "the database cannot answer; ask again with the same idempotency_key",
                )
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the database could not answer a request");
        Self::unavailable("unavailable", "the database cannot answer")
    }
}

pub fn unknown_customer() -> ApiError {
    ApiError::not_found("unknown_customer", "there is no such customer").param("customer_id")
}
