//! Search, which sees an object as it was some time ago: reading what was just written is what
//! Stripe's search is not for.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::params::Params;
use super::state::{Call, exists, text};

/// One condition of a query: `status:"active"` or `metadata["key"]:"value"`.
struct Clause {
    field: String,
    /// The key, if the field is `metadata`.
    key: Option<String>,
    value: String,
}

/// Reads conditions joined by `AND`; nothing else of the query language is simulated.
fn read(query: &str) -> Result<Vec<Clause>, ApiError> {
    let wrong = || ApiError::invalid("query", "The simulator does not understand this query.");
    let clause = |part: &str| {
        let (name, value) = part.trim().rsplit_once(':').ok_or_else(wrong)?;
        let value = unquoted(value).ok_or_else(wrong)?;
        let (field, key) = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
            Some((field, key)) => (field, Some(unquoted(key).ok_or_else(wrong)?)),
            None => (name, None),
        };
        Ok(Clause { field: field.to_owned(), key, value })
    };
    query.split(" AND ").map(clause).collect()
}

fn unquoted(text: &str) -> Option<String> {
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote).and_then(|text| text.strip_suffix(*quote)));
    inner.map(str::to_owned)
}

impl Clause {
    fn holds(&self, object: &Value) -> bool {
        let field = match &self.key {
            Some(key) => &object[&self.field][key],
            None => &object[&self.field],
        };
        field.as_str() == Some(&self.value)
    }
}

/// What the index knows of objects of one kind: each as the last event before the lag shows it.
fn indexed(call: &Call<'_>, kind: &str) -> Vec<Value> {
    let lag_s = i64::try_from(call.faults.search_lag_seconds).unwrap_or(i64::MAX);
    let until_s = call.now_s().saturating_sub(lag_s);
    let mut known: Vec<Value> = Vec::new();
    for event in call.state.events.iter() {
        let object = &event["data"]["object"];
        if object["object"] != kind || event["created"].as_i64().is_none_or(|at_s| at_s > until_s) {
            continue;
        }
        known.retain(|other| other["id"] != object["id"]);
        if event["type"] != "customer.deleted" {
            known.push(object.clone());
        }
    }
    known.reverse();
    known
}

fn search(call: &Call<'_>, mut params: Params, kind: &str) -> Result<Value, ApiError> {
    let clauses = read(&params.required_text("query")?)?;
    let limit = params.count("limit")?.unwrap_or(10);
    params.finish(&["page"])?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let found: Vec<Value> = indexed(call, kind)
        .into_iter()
        .filter(|object| exists(&object) && clauses.iter().all(|clause| clause.holds(object)))
        .collect();
    let has_more = found.len() > limit;
    let shown = &found[..found.len().min(limit)];
    let next = shown.last().filter(|_| has_more).map(|last| text(last, "id"));
    Ok(json!({
        "object": "search_result",
        "data": shown,
        "has_more": has_more,
        "next_page": next,
        "url": format!("/v1/{kind}s/search"),
    }))
}

pub(super) fn customers(call: &Call<'_>, params: Params) -> Result<Value, ApiError> {
    search(call, params, "customer")
}

pub(super) fn subscriptions(call: &Call<'_>, params: Params) -> Result<Value, ApiError> {
    search(call, params, "subscription")
}
