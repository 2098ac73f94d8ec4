//! Where Stripe sends its events: one endpoint for snapshots, one destination for what only comes
//! thin. Both are told from others by their address alone, because one account may serve several
//! daemons.

use super::catalog::right_or_different;
use super::found::{Destination, Endpoint, Found};
use super::{Change, Creation, Difference, Kind, State, Step, Wanted, Write};

/// What an endpoint lists that wants everything.
const ALL: &str = "*";

pub(super) fn endpoint(wanted: &Wanted, found: &[Endpoint]) -> Step {
    let mut step = Step {
        kind: Kind::Endpoint,
        name: String::new(),
        detail: format!("{} events in version {}", wanted.events.len(), wanted.api_version),
        state: State::Missing,
        note: None,
        writes: Vec::new(),
    };
    let url = match &wanted.webhook_url {
        Ok(url) => url,
        Err(reason) => {
            let remedy = "set TOLLGATE_PUBLIC_URL to the https address at which Stripe reaches \
                          this daemon";
            step.state = State::Refused { reason: reason.clone(), remedy: remedy.to_owned() };
            return step;
        }
    };
    step.name.clone_from(url);
    let here: Vec<&Endpoint> = found.iter().filter(|endpoint| endpoint.url == *url).collect();
    let speaks = |endpoint: &Endpoint| endpoint.api_version.as_deref() == Some(wanted.api_version);
    let ours = here.iter().filter(|endpoint| speaks(endpoint)).max_by_key(|e| e.enabled);
    let others = here.iter().filter(|endpoint| ours.is_none_or(|ours| ours.id != endpoint.id));
    step.note = beside(others.copied().filter(|endpoint| endpoint.enabled));
    let Some(ours) = ours else {
        let events = wanted.events.iter().map(|event| (*event).to_owned()).collect();
        step.writes.push(Write::Create(Creation::Endpoint {
            url: url.clone(),
            api_version: wanted.api_version,
            events,
        }));
        return step;
    };
    let events = with_missing(&ours.events, &wanted.events);
    let differences = differences(ours.enabled, &ours.events, events.as_deref());
    if !differences.is_empty() {
        let events = events.unwrap_or_else(|| ours.events.clone());
        let id = ours.id.clone();
        step.writes.push(Write::Change(Change::UpdateEndpoint { id, events }));
    }
    step.state = right_or_different(&ours.id, differences);
    step
}

/// An endpoint's version is fixed for ever, so a new build makes a new endpoint. The old one goes
/// on: each event then comes twice and is stored once, and no moment is without one.
fn beside<'a>(others: impl Iterator<Item = &'a Endpoint>) -> Option<String> {
    let named: Vec<String> = others
        .map(|other| {
            let version = other.api_version.as_deref().unwrap_or("the account's version");
            format!("{} ({version})", other.id)
        })
        .collect();
    (!named.is_empty()).then(|| {
        format!(
            "the same address has {} as well: keep its secret in STRIPE_WEBHOOK_SECRET beside the \
             other's until you have deleted it at Stripe",
            named.join(" and ")
        )
    })
}

/// All events there are and those that are missing; `None` if none is.
fn with_missing(found: &[String], wanted: &[&'static str]) -> Option<Vec<String>> {
    if found.iter().any(|event| event == ALL) {
        return None;
    }
    let missing = wanted.iter().filter(|wanted| found.iter().all(|event| event != *wanted));
    let missing: Vec<String> = missing.map(|event| (*event).to_owned()).collect();
    (!missing.is_empty()).then(|| [found, &missing].concat())
}

fn differences(enabled: bool, found: &[String], events: Option<&[String]>) -> Vec<Difference> {
    let mut differences = Vec::new();
    if !enabled {
        differences.push(Difference::new("status", "disabled", "enabled"));
    }
    if let Some(events) = events {
        let missing = &events[found.len()..];
        differences.push(Difference::new("events", "missing", missing.join(", ")));
    }
    differences
}

/// The step of the thin events; none while there is nowhere to send them.
pub(super) fn destination(wanted: &Wanted, found: &[Destination]) -> Option<Step> {
    let url = wanted.webhook_url.as_ref().ok()?;
    let mut step = Step {
        kind: Kind::Destination,
        name: url.clone(),
        detail: format!("{} events of meters", wanted.thin_events.len()),
        state: State::Missing,
        note: None,
        writes: Vec::new(),
    };
    let here = found.iter().filter(|destination| destination.url == *url);
    let Some(ours) = here.max_by_key(|destination| destination.enabled) else {
        let events = wanted.thin_events.iter().map(|event| (*event).to_owned()).collect();
        let url = url.clone();
        step.writes.push(Write::Create(Creation::Destination { url, events }));
        return Some(step);
    };
    let events = with_missing(&ours.events, &wanted.thin_events);
    let differences = differences(ours.enabled, &ours.events, events.as_deref());
    if let Some(events) = events {
        let id = ours.id.clone();
        step.writes.push(Write::Change(Change::UpdateDestination { id, events }));
    }
    if !ours.enabled {
        let id = ours.id.clone();
        step.writes.push(Write::Change(Change::EnableDestination { id }));
    }
    step.state = right_or_different(&ours.id, differences);
    Some(step)
}

/// Endpoints and destinations that send to us now. Each signs with a secret of its own. Those that
/// could not be looked at are left out.
pub fn senders(wanted: &Wanted, found: &Found) -> Vec<String> {
    let Ok(url) = &wanted.webhook_url else { return Vec::new() };
    let endpoints = found.endpoints.iter().flatten();
    let endpoints = endpoints.filter(|e| e.enabled && e.url == *url).map(|e| e.id.clone());
    let destinations = found.destinations.iter().flatten();
    let destinations = destinations.filter(|d| d.enabled && d.url == *url).map(|d| d.id.clone());
    endpoints.chain(destinations).collect()
}

/// What to do if so many secrets cannot be those of all senders.
pub fn secret_missing(senders: &[String], secrets: usize) -> Option<String> {
    (secrets < senders.len()).then(|| {
        let held = match secrets {
            0 => "is not set".to_owned(),
            1 => "has one secret".to_owned(),
            n => format!("has {n} secrets"),
        };
        format!(
            "STRIPE_WEBHOOK_SECRET {held}, and webhooks come from {}, each with a secret of its \
             own: Stripe tells a secret only once, so roll each missing one in the Dashboard, or \
             delete what it is of there and run `tollgate stripe push` again",
            senders.join(" and ")
        )
    })
}
