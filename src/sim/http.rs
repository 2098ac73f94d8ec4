//! The simulator's HTTP side: keys, faults, limits, and the idempotency layer around each call.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State as Extract};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::Value;
use tokio::net::TcpListener;

use super::answer::{Answer, ApiError, Travels};
use super::faults::{FaultKind, Faults, Limit};
use super::idempotency::Start;
use super::line::{CutSwitch, Lines, TroubledBody};
use super::params::Params;
use super::state::{API_VERSION, Call, LoggedRequest, Origin, State};
use super::{Shared, hosted, life, limits, routes};
use crate::clock::Timestamp;

/// Serves the API and `/_sim` until the simulator is stopped.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let stopped = shared.stopped.clone();
    let router = Router::new().fallback(handle).with_state(shared);
    let service = router.into_make_service_with_connect_info::<CutSwitch>();
    axum::serve(Lines(listener), service)
        .with_graceful_shutdown(async move { stopped.cancelled().await })
        .await
}

async fn handle(
    Extract(shared): Extract<Arc<Shared>>,
    ConnectInfo(cut): ConnectInfo<CutSwitch>,
    request: Request,
) -> Response {
    const LARGEST_BODY: usize = 1 << 20;
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        return respond(&shared, Answer::json(413, &Value::Null));
    };
    match parts.uri.path() {
        "/_sim/faults" => {
            let answer = serve_faults(&shared, &parts.method, &body);
            return respond(&shared, answer);
        }
        page if page.starts_with("/_sim/") => {
            let answer = hosted::serve(&shared, &parts.method, page);
            return respond(&shared, answer);
        }
        _ => {}
    }
    // In a task of its own: Stripe goes on working when the caller hangs up.
    let task = tokio::spawn({
        let shared = shared.clone();
        async move { work(&shared, parts, &body).await }
    });
    let answer = task.await.unwrap_or_else(|_| Some(ApiError::server_error().answer()));
    answer.map_or_else(
        || {
            cut.cut();
            Response::new(Body::empty())
        },
        |answer| respond(&shared, answer),
    )
}

fn respond(shared: &Arc<Shared>, answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let body = match answer.travels {
        Travels::Whole => Body::from(answer.body),
        Travels::Changed => Body::from(r#"{"object":"of another shape"}"#),
        Travels::Half => Body::new(TroubledBody::cut(answer.body)),
        Travels::SlowlyMs(delay_ms) => {
            let shared = shared.clone();
            let wait = async move { shared.pause(delay_ms).await };
            Body::new(TroubledBody::slow(answer.body, wait))
        }
    };
    // Only a header value that came from the caller could fail, and none of ours does.
    response.body(body).unwrap_or_default()
}

/// The switches over HTTP: read with `GET`, replaced as a whole with `POST`.
fn serve_faults(shared: &Shared, method: &Method, body: &[u8]) -> Answer {
    if *method == Method::POST {
        match serde_json::from_slice::<Faults>(body) {
            Ok(faults) => shared.change_faults(|current| *current = faults),
            Err(error) => {
                return Answer::json(400, &serde_json::json!({ "error": error.to_string() }));
            }
        }
    }
    let faults = shared.faults().clone();
    Answer::json(200, &serde_json::to_value(faults).unwrap_or_default())
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The key of the request: a bearer token, or the user name of basic credentials.
fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    let credentials = header_text(headers, header::AUTHORIZATION.as_str());
    let key = match credentials.and_then(|credentials| credentials.split_once(' ')) {
        Some(("Bearer", key)) => key.to_owned(),
        Some(("Basic", encoded)) => {
            let decoded = BASE64_STANDARD.decode(encoded).unwrap_or_default();
            let decoded = String::from_utf8(decoded).unwrap_or_default();
            decoded.split(':').next().unwrap_or_default().to_owned()
        }
        _ => return Err(ApiError::no_key()),
    };
    if key == shared.api_key { Ok(()) } else { Err(ApiError::wrong_key()) }
}

/// What can be refused before any work begins.
fn check_request(shared: &Shared, parts: &Parts) -> Result<(), ApiError> {
    authenticate(shared, &parts.headers)?;
    match header_text(&parts.headers, "stripe-version") {
        Some(version) if version != API_VERSION => return Err(ApiError::other_version(version)),
        _ => {}
    }
    // Version 2 of the API speaks JSON both ways.
    let content_type = header_text(&parts.headers, "content-type").unwrap_or_default();
    if parts.uri.path().starts_with("/v1/") && content_type.starts_with("application/json") {
        return Err(ApiError::bad_content_type());
    }
    Ok(())
}

/// Answers one API call, logs it, and wakes the tasks that may have something to do now. `None`
/// cuts the connection.
async fn work(shared: &Arc<Shared>, parts: Parts, body: &[u8]) -> Option<Answer> {
    let now = shared.clock.now();
    let request_id = shared.entropy.id("req", now);
    let key = header_text(&parts.headers, "idempotency-key")
        .filter(|_| parts.method == Method::POST)
        .map(str::to_owned);
    let place = {
        let mut state = shared.state();
        state.requests.push(LoggedRequest {
            at: now,
            request_id: request_id.clone(),
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: String::from_utf8_lossy(body).into(),
            idempotency_key: key.clone(),
            status: None,
            answer: None,
        });
        state.requests.len() - 1
    };
    let origin = Origin { request_id: Some(request_id.clone()), idempotency_key: key };
    let answer = match check_request(shared, &parts).and_then(|()| check_permission(shared, &parts))
    {
        Ok(()) => answer(shared, &parts, body, origin).await,
        Err(error) => Some(error.answer()),
    };
    if let Some(answer) = &answer {
        let logged = &mut shared.state().requests[place];
        logged.status = Some(answer.status);
        logged.answer = Some(answer.body.as_str().into());
    }
    shared.changed.notify_one();
    if shared.faults().webhooks_before_answers {
        shared.deliver_due(true).await;
    }
    let answer = answer?.with_header("request-id", request_id).with_header("date", date(now));
    Some(answer.with_header("stripe-version", API_VERSION))
}

/// `Wed, 25 Nov 2026 07:15:25 GMT`.
fn date(now: Timestamp) -> String {
    let printer = DateTimePrinter::new();
    // Fails only before the year 0.
    printer.timestamp_to_rfc9110_string(&now.to_jiff()).unwrap_or_default()
}

/// What a restricted key may not do.
fn check_permission(shared: &Shared, parts: &Parts) -> Result<(), ApiError> {
    let call = format!("{} {}", parts.method, parts.uri.path());
    let faults = shared.faults();
    match faults.not_permitted.iter().any(|prefix| call.starts_with(prefix)) {
        true => Err(ApiError::not_permitted()),
        false => Ok(()),
    }
}

/// What a fault says instead of doing any work; the key stays free.
fn refusal_by(fault: FaultKind) -> Option<Answer> {
    Some(match fault {
        FaultKind::RateLimited => ApiError::rate_limited(Limit::EndpointRate.reason()).answer(),
        FaultKind::LimitedBy(limit) => ApiError::rate_limited(limit.reason()).answer(),
        FaultKind::LockTimeout => ApiError::lock_timeout().answer(),
        FaultKind::BadGateway => Answer::bad_gateway(),
        FaultKind::Refused => ApiError::new(400, "This cannot be done.").answer(),
        _ => return None,
    })
}

/// Applies the fault that waits for this call, if any, around limits and the idempotency layer.
async fn answer(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: &[u8],
    origin: Origin,
) -> Option<Answer> {
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let (fault, per_second) = {
        let mut faults = shared.faults();
        (faults.take(path), faults.calls_per_second)
    };
    if fault == Some(FaultKind::DropBeforeEffect) {
        return None;
    }
    if let Some(refusal) = fault.and_then(refusal_by) {
        return Some(refusal);
    }
    let now_s = shared.clock.now().seconds();
    if let Some(per_second) = per_second
        && !shared.state().limits.admit(method, path, now_s, per_second)
    {
        return Some(ApiError::rate_limited(Limit::EndpointRate.reason()).answer());
    }
    let written = limits::written(method, path);
    if let Some(object) = &written
        && !shared.state().limits.lock(object)
    {
        return Some(ApiError::lock_timeout().answer());
    }
    let answer = answer_once(shared, parts, body, origin, fault).await;
    if let Some(object) = &written {
        shared.state().limits.unlock(object);
    }
    match fault {
        Some(FaultKind::DropAfterEffect) => None,
        Some(FaultKind::CutBody) => Some(Answer { travels: Travels::Half, ..answer }),
        Some(FaultKind::OtherShape) => Some(Answer { travels: Travels::Changed, ..answer }),
        Some(FaultKind::SlowBodyMs(delay_ms)) => {
            Some(Answer { travels: Travels::SlowlyMs(delay_ms), ..answer })
        }
        _ => Some(answer),
    }
}

/// The idempotency layer: does the work once per key, and otherwise gives the first answer again.
async fn answer_once(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: &[u8],
    origin: Origin,
    fault: Option<FaultKind>,
) -> Answer {
    let (body, query) = (String::from_utf8_lossy(body), parts.uri.query().unwrap_or_default());
    let params = if parts.uri.path().starts_with("/v2/") {
        match Params::parse_json(query, &body) {
            Ok(params) => params,
            Err(error) => return error.answer(),
        }
    } else {
        Params::parse(&[query, &body])
    };
    if let Some(key) = &origin.idempotency_key {
        let id = origin.request_id.as_deref().unwrap_or_default();
        let now = shared.clock.now();
        let start = shared.state().keys.start(key, id, parts.uri.path(), &params, now);
        match start {
            Start::Fresh => {}
            Start::Replay(answer) => return answer,
            Start::Refuse(error) => return error.answer(),
        }
    }
    if let Some(FaultKind::DelayMs(delay_ms)) = fault {
        shared.pause(delay_ms).await;
    }
    let key = origin.idempotency_key.clone();
    let result = match fault {
        Some(FaultKind::ServerError) => Err(ApiError::server_error()),
        Some(FaultKind::ShouldRetry(should)) => Err(ApiError::server_error_with_advice(should)),
        Some(FaultKind::ServerErrorAfterEffect) => {
            execute(shared, parts, params, origin).and_then(|_| Err(ApiError::server_error()))
        }
        _ => execute(shared, parts, params, origin),
    };
    let began = result.as_ref().err().is_none_or(ApiError::has_begun);
    let answer = match result {
        Ok(object) => Answer::json(200, &object),
        Err(error) => error.answer(),
    };
    if let Some(key) = key {
        shared.state().keys.finish(&key, began.then_some(&answer));
    }
    answer
}

/// Does the work, after everything that time has made due.
fn execute(
    shared: &Shared,
    parts: &Parts,
    mut params: Params,
    origin: Origin,
) -> Result<Value, ApiError> {
    let expand = params.texts("expand")?;
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    shared.with_call(origin, |call| {
        let answered = routes::route(call, method, path, params);
        let mut object = answered.unwrap_or_else(|| Err(ApiError::unknown_url(method, path)))?;
        for path in &expand {
            call.state.expand(&mut object, path)?;
        }
        if shared.api_key.contains("_live_") {
            set_live(&mut object);
        }
        Ok(object)
    })
}

/// Says of every object in an answer that it is of live mode.
fn set_live(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "livemode" {
                    *field = true.into();
                } else {
                    set_live(field);
                }
            }
        }
        Value::Array(rows) => rows.iter_mut().for_each(set_live),
        _ => {}
    }
}

impl Shared {
    /// Waits by the simulator's clock, or until the simulator is stopped.
    async fn pause(&self, delay_ms: u64) {
        let delay = self.clock.sleep(Duration::from_millis(delay_ms));
        tokio::select! { () = delay => {}, () = self.stopped.cancelled() => {} }
    }

    /// Opens the account at the present moment, with everything done that was due by then.
    pub(super) fn with_call<T>(&self, origin: Origin, work: impl FnOnce(&mut Call<'_>) -> T) -> T {
        let faults = self.faults().switches();
        let mut state = self.state();
        let state: &mut State = &mut state;
        let now = self.clock.now();
        let mut call = Call {
            state,
            entropy: &self.entropy,
            now,
            real_now: now,
            origin,
            faults,
            base_url: &self.base_url,
        };
        life::run_due(&mut call);
        work(&mut call)
    }
}
