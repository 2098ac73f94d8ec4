//! Reading request bodies field by field, so that each mistake names its field.

use std::ops::RangeInclusive;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::json::{self, NotJson};
use crate::clock::Timestamp;
use crate::domain::customer::{MAX_NAME, clean_name, is_plausible_email};
use crate::domain::ids::{CustomerId, ReservationId};
use crate::domain::run::whole;
use crate::domain::usage::MAX_QUANTITY;
use crate::gate::GateError;

/// The longest note kept, in characters.
pub const MAX_NOTE: usize = 500;

/// The customer that a path names as `{id}`.
pub struct CustomerPath(pub CustomerId);

impl<S: Send + Sync> FromRequestParts<S> for CustomerPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        const NAME: &str = "customer_id";
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::malformed("customer_id in the path is not UTF-8").param(NAME))?;
        CustomerId::try_from(id).map(Self).map_err(|wanted| ApiError::invalid(NAME, wanted))
    }
}

/// The reservation that a path names as `{id}`.
pub struct ReservationPath(pub ReservationId);

impl<S: Send + Sync> FromRequestParts<S> for ReservationPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await.map(|Path(id)| id);
        // What cannot be an id of ours is unknown like any other.
        let id = id.ok().and_then(|id| ReservationId::try_from(id).ok());
        id.map(Self).ok_or_else(|| GateError::UnknownReservation.into())
    }
}

/// The fields of a JSON object. Each is taken out once; what is left at the end is unknown.
#[derive(Debug)]
pub struct Fields {
    fields: Map<String, Value>,
    /// Where this object stands in the body: `properties.` or nothing.
    path: String,
}

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match json::parse(body) {
            Ok(Value::Object(fields)) => Ok(Self { fields, path: String::new() }),
            Ok(_) => Err(ApiError::malformed("the body must be a JSON object")),
            Err(NotJson::Syntax { line, column }) => Err(ApiError::malformed(format!(
                "the body is not JSON: see line {line}, column {column}"
            ))),
            Err(NotJson::Twice(path)) => Err(twice(&path)),
        }
    }

    /// The same, where no body at all is as good as an empty object.
    pub fn parse_or_empty(body: &[u8]) -> Result<Self, ApiError> {
        Self::parse(if body.is_empty() { b"{}" } else { body })
    }

    /// The fields of an event of a batch, which stands at this place in it. They are named as those of
    /// a run told alone, because each is answered by itself.
    pub fn event(value: Value, place: usize) -> Result<Self, ApiError> {
        match value {
            Value::Object(fields) => Ok(Self { fields, path: String::new() }),
            _ => {
                let name = format!("events[{place}]");
                Err(ApiError::malformed(format!("{name} must be a JSON object")).param(name))
            }
        }
    }

    /// The fields of a query string.
    pub fn query(query: Pairs) -> Result<Self, ApiError> {
        let Query(pairs) =
            query.map_err(|_| ApiError::malformed("the query string cannot be read"))?;
        let mut fields = Map::new();
        for (name, value) in pairs {
            if fields.contains_key(&name) {
                return Err(twice(&name));
            }
            fields.insert(name, Value::String(value));
        }
        Ok(Self { fields, path: String::new() })
    }

    /// Leaves out what is there and empty, as a form sends a filter that nobody filled in.
    #[must_use]
    pub fn without_empty(mut self) -> Self {
        self.fields.retain(|_, value| *value != "");
        self
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    fn wrong_type(&self, field: &str, wanted: &str) -> ApiError {
        let name = self.name(field);
        ApiError::malformed(format!("{name} must be {wanted}")).param(name)
    }

    /// 422: a field that is needed is not there.
    pub fn missing(&self, field: &str) -> ApiError {
        let name = self.name(field);
        let message = format!("{name} is missing");
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "missing_field", message).param(name)
    }

    /// Whether the field is there, be it null.
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    pub fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type(field, "a string")),
        }
    }

    pub fn boolean(&mut self, field: &str) -> Result<bool, ApiError> {
        match self.take(field) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(self.wrong_type(field, "true or false")),
        }
    }

    /// A string in one of our id types.
    pub fn id<T>(&mut self, field: &str) -> Result<Option<T>, ApiError>
    where
        T: TryFrom<String, Error: std::fmt::Display>,
    {
        let Some(text) = self.string(field)? else { return Ok(None) };
        T::try_from(text).map(Some).map_err(|wanted| ApiError::invalid(self.name(field), wanted))
    }

    pub fn required_id<T>(&mut self, field: &str) -> Result<T, ApiError>
    where
        T: TryFrom<String, Error: std::fmt::Display>,
    {
        self.id(field)?.ok_or_else(|| self.missing(field))
    }

    /// A quantity of units: an integer from 1 to 10⁹.
    pub fn quantity(&mut self, field: &str) -> Result<Option<i64>, ApiError> {
        self.integer(field, 1..=MAX_QUANTITY)
    }

    /// An integer of this range, however it is written.
    pub fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Number(number)) => {
                let value = whole(&number).filter(|value| range.contains(value));
                value.map(Some).ok_or_else(|| {
                    let (low, high) = (range.start(), range.end());
                    let wanted = format!("must be an integer from {low} to {high}");
                    ApiError::invalid(self.name(field), wanted)
                })
            }
            Some(_) => Err(self.wrong_type(field, "a number")),
        }
    }

    pub fn required_integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> Result<i64, ApiError> {
        self.integer(field, range)?.ok_or_else(|| self.missing(field))
    }

    /// A moment: RFC 3339, such as `2026-12-01T00:00:00Z`.
    pub fn time(&mut self, field: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let wanted = "must be a time such as \"2026-12-01T00:00:00Z\"";
            ApiError::invalid(self.name(field), wanted)
        })
    }

    /// A list.
    pub fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(self.wrong_type(field, "a list")),
        }
    }

    /// One of the given words.
    pub fn word<T: Copy>(
        &mut self,
        field: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        let wanted =
            || words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
        found
            .map(Some)
            .ok_or_else(|| ApiError::invalid(self.name(field), format!("must be {}", wanted())))
    }

    /// A name for people to read: control characters are taken out, and it must not be too long.
    pub fn person_name(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        if text.trim().chars().count() > MAX_NAME {
            let wanted = format!("must have at most {MAX_NAME} characters");
            return Err(ApiError::invalid(self.name(field), wanted));
        }
        Ok(clean_name(&text))
    }

    /// A line that support writes for itself: control characters are taken out.
    pub fn note(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        if text.chars().count() > MAX_NOTE {
            let wanted = format!("must have at most {MAX_NOTE} characters");
            return Err(ApiError::invalid(self.name(field), wanted));
        }
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// An e-mail address, as far as that can be told without writing to it.
    pub fn email(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        if is_plausible_email(&text) {
            Ok(Some(text))
        } else {
            Err(ApiError::invalid(
                self.name(field),
                "must be an e-mail address of at most 254 characters",
            ))
        }
    }

    /// An object within this one.
    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                Ok(Some(Fields { fields, path: format!("{}.", self.name(field)) }))
            }
            Some(_) => Err(self.wrong_type(field, "an object")),
        }
    }

    /// All the fields as they are, for an object whose content is the caller's own.
    pub fn into_map(self) -> Map<String, Value> {
        self.fields
    }

    /// The whole object in one form, whatever the white space and the order of names it came with,
    /// so that equal requests hash alike. Only before fields are taken out of it.
    pub fn canonical(&self) -> String {
        serde_json::to_string(&InOrder(&self.fields)).expect("JSON can be written as JSON")
    }

    /// Refuses what was not taken.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(field) => {
                let name = self.name(field);
                let message = "this field is not known here".to_owned();
                Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_field", message)
                    .param(short(&name)))
            }
        }
    }
}

/// A query string as it came.
pub type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn twice(name: &str) -> ApiError {
    let name = short(name);
    ApiError::malformed(format!("{name} comes twice")).param(name)
}

/// A caller's own text, fit to be repeated in an error.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// The same JSON with the keys of all objects in order, so that equal requests hash alike.
struct InOrder<'a, T>(&'a T);

impl Serialize for InOrder<'_, Map<String, Value>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_by_key(|(name, _)| *name);
        serializer.collect_map(sorted.into_iter().map(|(name, value)| (name, InOrder(value))))
    }
}

impl Serialize for InOrder<'_, Value> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => InOrder(fields).serialize(serializer),
            Value::Array(values) => serializer.collect_seq(values.iter().map(InOrder)),
            // `1.0` is `1` wherever a number is taken.
            Value::Number(number) if let Some(whole) = whole(number) => {
                serializer.serialize_i64(whole)
            }
            other => other.serialize(serializer),
        }
    }
}
