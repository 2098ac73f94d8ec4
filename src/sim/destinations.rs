//! Event destinations (API v2): where thin events are sent.

use serde_json::{Value, json};

use super::Simulator;
use super::answer::ApiError;
use super::catalog::apply;
use super::params::{MetadataChange, Params};
use super::state::{Call, text};
use super::thin::{self, rfc3339};

/// Stripe's parameters of a destination that the simulator refuses.
const NOT_SIMULATED: [&str; 4] =
    ["amazon_eventbridge", "azure_event_grid", "events_from", "snapshot_api_version"];

/// The parts of `webhook_endpoint` that are shown only to who asks for them.
const INCLUDED: [&str; 2] = ["webhook_endpoint.signing_secret", "webhook_endpoint.url"];

/// Stores a destination. Its address stands beside what is shown, where deliveries look for it.
fn add(call: &mut Call<'_>, name: &str, url: &str, secret: String, types: Vec<String>) -> String {
    let id = call.id("ed_test");
    let now = rfc3339(call.now);
    call.state.event_destinations.put(json!({
        "id": id,
        "object": "v2.core.event_destination",
        "created": now,
        "description": "",
        "enabled_events": types,
        "event_payload": "thin",
        "livemode": false,
        "metadata": {},
        "name": name,
        "status": "enabled",
        "type": "webhook_endpoint",
        "updated": now,
        "url": url,
    }));
    call.state.deliveries.set_secret(&id, secret);
    id
}

/// The object as it is shown: with the address or the secret only if asked for.
fn shown(row: &Value, include: &[String], secret: Option<String>) -> Value {
    let asked = |field: &str| include.iter().any(|asked| asked == field);
    let mut shown = row.clone();
    let url = shown.as_object_mut().and_then(|fields| fields.remove("url"));
    let mut endpoint = json!({});
    if let Some(secret) = secret.filter(|_| asked(INCLUDED[0])) {
        endpoint["signing_secret"] = secret.into();
    }
    if let Some(url) = url.filter(|_| asked(INCLUDED[1])) {
        endpoint["url"] = url;
    }
    shown["webhook_endpoint"] = endpoint;
    shown
}

fn read_include(params: &mut Params) -> Result<Vec<String>, ApiError> {
    let include = params.texts("include")?;
    match include.iter().find(|field| !INCLUDED.contains(&field.as_str())) {
        Some(field) => Err(ApiError::invalid("include", format!("Invalid include: {field}"))),
        None => Ok(include),
    }
}

fn read_url(params: &mut Params) -> Result<Option<String>, ApiError> {
    let Some(mut endpoint) = params.section("webhook_endpoint")? else { return Ok(None) };
    let url = endpoint.required_text("url")?;
    endpoint.finish(&[])?;
    Ok(Some(url))
}

pub(super) fn create(call: &mut Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let name = params.required_text("name")?;
    let types = params.texts("enabled_events")?;
    let payload = params.word("event_payload", &["snapshot", "thin"])?;
    let kinds = ["amazon_eventbridge", "azure_event_grid", "webhook_endpoint"];
    let kind = params.word("type", &kinds)?.ok_or_else(|| params.missing("type"))?;
    let url = read_url(&mut params)?.ok_or_else(|| params.missing("webhook_endpoint"))?;
    let description = params.text("description")?.map(Value::from);
    let metadata = params.metadata()?;
    let include = read_include(&mut params)?;
    if types.is_empty() {
        return Err(params.missing("enabled_events"));
    }
    if payload.ok_or_else(|| params.missing("event_payload"))? != "thin" {
        return Err(ApiError::not_simulated("event_payload"));
    }
    if kind != "webhook_endpoint" {
        return Err(ApiError::not_simulated("type"));
    }
    params.finish(&NOT_SIMULATED)?;
    let secret = format!("whsec_{}", hex::encode(call.entropy.secret()));
    let id = add(call, &name, &url, secret.clone(), types);
    let mut row = find(call, &id)?;
    apply(&mut row, vec![("description", description)], metadata.as_ref());
    call.state.event_destinations.put(row.clone());
    Ok(shown(&row, &include, Some(secret)))
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let found = call.state.event_destinations.get(id).cloned();
    found.ok_or_else(|| ApiError::no_such("event destination", id).code("not_found"))
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let include = read_include(&mut params)?;
    params.finish(&[])?;
    Ok(shown(&find(call, id)?, &include, None))
}

pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let types = params.texts("enabled_events")?;
    let types = (!types.is_empty()).then(|| types.into());
    let url = read_url(&mut params)?.map(Value::from);
    let name = params.text("name")?.map(Value::from);
    let description = params.text("description")?.map(Value::from);
    let metadata: Option<MetadataChange> = params.metadata()?;
    let include = read_include(&mut params)?;
    params.finish(&[])?;
    let mut row = find(call, id)?;
    let changes = vec![
        ("enabled_events", types),
        ("url", url),
        ("name", name),
        ("description", description),
        ("updated", Some(rfc3339(call.now).into())),
    ];
    apply(&mut row, changes, metadata.as_ref());
    call.state.event_destinations.put(row.clone());
    Ok(shown(&row, &include, None))
}

/// Switches a destination on or off.
pub(super) fn set_enabled(
    call: &mut Call<'_>,
    id: &str,
    enabled: bool,
    mut params: Params,
) -> Result<Value, ApiError> {
    let include = read_include(&mut params)?;
    params.finish(&[])?;
    let mut row = find(call, id)?;
    row["status"] = if enabled { "enabled" } else { "disabled" }.into();
    row["updated"] = rfc3339(call.now).into();
    call.state.event_destinations.put(row.clone());
    Ok(shown(&row, &include, None))
}

/// Sends the destination an event that says nothing, whatever events it wants.
pub(super) fn ping(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)?;
    Ok(thin::ping(call, id))
}

/// All on one page: nobody has more destinations than fit.
pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    params.count("limit")?;
    let include = read_include(&mut params)?;
    params.finish(&[])?;
    let rows = call.state.event_destinations.iter().rev();
    let data: Vec<Value> = rows.map(|row| shown(row, &include, None)).collect();
    Ok(json!({ "data": data, "next_page_url": null, "previous_page_url": null }))
}

pub(super) fn delete(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let row = find(call, id)?;
    call.state.event_destinations.remove(id);
    Ok(json!({ "id": id, "object": text(&row, "object") }))
}

impl Simulator {
    /// Registers a destination for thin events of these types (`*` for all) and answers its id.
    pub fn add_event_destination(&self, url: &str, secret: &str, types: &[&str]) -> String {
        let types = types.iter().map(|kind| (*kind).to_owned()).collect();
        self.with_call(|call| add(call, "By hand", url, secret.to_owned(), types))
    }
}
