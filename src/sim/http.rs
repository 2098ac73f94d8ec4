//! The simulator's HTTP side: connections that can be cut, keys, faults, and the way from an
//! address to the function that answers it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State as Extract};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::answer::{Answer, ApiError};
use super::faults::{FaultKind, Faults};
use super::idempotency::Start;
use super::params::Params;
use super::state::{API_VERSION, Call, LoggedRequest, Origin, State};
use super::{Shared, catalog, customers, events, invoices, life, meters, subscriptions, webhooks};

/// A connection that the simulator can cut off before a byte of the answer is written.
pub(super) struct Line {
    stream: TcpStream,
    cut: CutSwitch,
}

#[derive(Clone, Default)]
pub(super) struct CutSwitch(Arc<AtomicBool>);

/// Accepts connections as [`Line`]s.
pub(super) struct Lines(pub TcpListener);

impl Listener for Lines {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        (Line { stream, cut: CutSwitch::default() }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Lines>> for CutSwitch {
    fn connect_info(stream: IncomingStream<'_, Lines>) -> Self {
        stream.io().cut.clone()
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut.0.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

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
        return respond(Answer::json(413, &Value::Null));
    };
    if parts.uri.path() == "/_sim/faults" {
        return respond(serve_faults(&shared, &parts.method, &body));
    }
    // In a task of its own: Stripe goes on working when the caller hangs up.
    let worked = tokio::spawn(async move { work(&shared, parts, &body).await }).await;
    let answer = worked.unwrap_or_else(|_| Some(ApiError::server_error().answer()));
    answer.map_or_else(
        || {
            cut.0.store(true, Ordering::Release);
            Response::new(Body::empty())
        },
        respond,
    )
}

fn respond(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    // Only a header value that came from the caller could fail, and none of ours does.
    response.body(Body::from(answer.body)).unwrap_or_default()
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
    let content_type = header_text(&parts.headers, "content-type").unwrap_or_default();
    if content_type.starts_with("application/json") {
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
    let answer = match check_request(shared, &parts) {
        Ok(()) => answer(shared, &parts, body, origin).await,
        Err(error) => Some(error.answer()),
    };
    if let Some(answer) = &answer {
        let logged = &mut shared.state().requests[place];
        logged.status = Some(answer.status);
        logged.answer = Some(answer.body.as_str().into());
    }
    shared.changed.notify_one();
    let answer = answer?.with_header("request-id", request_id);
    Some(answer.with_header("stripe-version", API_VERSION))
}

/// Applies the fault that waits for this call, if any, around the idempotency layer.
async fn answer(
    shared: &Arc<Shared>,
    parts: &Parts,
    body: &[u8],
    origin: Origin,
) -> Option<Answer> {
    let path = parts.uri.path();
    let fault = shared.faults().take(path);
    match fault {
        Some(FaultKind::RateLimited) => return Some(ApiError::rate_limited().answer()),
        Some(FaultKind::LockTimeout) => return Some(ApiError::lock_timeout().answer()),
        Some(FaultKind::BadGateway) => return Some(Answer::bad_gateway()),
        Some(FaultKind::DropBeforeEffect) => return None,
        _ => {}
    }
    let body = String::from_utf8_lossy(body);
    let params = Params::parse(&[parts.uri.query().unwrap_or_default(), &body]);
    if let Some(key) = &origin.idempotency_key {
        let id = origin.request_id.as_deref().unwrap_or_default();
        let now = shared.clock.now();
        let start = shared.state().keys.start(key, id, path, &params, now);
        match start {
            Start::Fresh => {}
            Start::Replay(answer) => {
                return (fault != Some(FaultKind::DropAfterEffect)).then_some(answer);
            }
            Start::Refuse(error) => return Some(error.answer()),
        }
    }
    if let Some(FaultKind::DelayMs(delay_ms)) = fault {
        let delay = shared.clock.sleep(Duration::from_millis(delay_ms));
        tokio::select! { () = delay => {}, () = shared.stopped.cancelled() => {} }
    }
    let key = origin.idempotency_key.clone();
    let result = match fault {
        Some(FaultKind::ServerError) => Err(ApiError::server_error()),
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
    (fault != Some(FaultKind::DropAfterEffect)).then_some(answer)
}

/// Does the work, after everything that time has made due.
fn execute(
    shared: &Shared,
    parts: &Parts,
    mut params: Params,
    origin: Origin,
) -> Result<Value, ApiError> {
    let expand = params.texts("expand")?;
    shared.with_call(origin, |call| {
        let mut object = route(call, &parts.method, parts.uri.path(), params)?;
        for path in &expand {
            call.state.expand(&mut object, path)?;
        }
        Ok(object)
    })
}

fn route(
    call: &mut Call<'_>,
    method: &Method,
    path: &str,
    params: Params,
) -> Result<Value, ApiError> {
    let unknown = || ApiError::unknown_url(method.as_str(), path);
    let steps: Vec<&str> = path.strip_prefix("/v1/").ok_or_else(unknown)?.split('/').collect();
    match (method.as_str(), steps.as_slice()) {
        ("POST", ["customers"]) => customers::create(call, params),
        ("GET", ["customers"]) => customers::list(call, params),
        ("GET", ["customers", id]) => customers::retrieve(call, id, params),
        ("POST", ["customers", id]) => customers::update(call, id, params),
        ("DELETE", ["customers", id]) => customers::delete(call, id, params),
        ("POST", ["products"]) => catalog::create_product(call, params),
        ("GET", ["products"]) => catalog::list_products(call, params),
        ("GET", ["products", id]) => catalog::retrieve_product(call, id, params),
        ("POST", ["products", id]) => catalog::update_product(call, id, params),
        ("POST", ["prices"]) => catalog::create_price(call, params),
        ("GET", ["prices"]) => catalog::list_prices(call, params),
        ("GET", ["prices", id]) => catalog::retrieve_price(call, id, params),
        ("POST", ["prices", id]) => catalog::update_price(call, id, params),
        ("POST", ["subscriptions"]) => subscriptions::create(call, params),
        ("GET", ["subscriptions"]) => subscriptions::list(call, params),
        ("GET", ["subscriptions", id]) => subscriptions::retrieve(call, id, params),
        ("POST", ["subscriptions", id]) => subscriptions::update(call, id, params),
        ("DELETE", ["subscriptions", id]) => subscriptions::cancel(call, id, params),
        ("GET", ["invoices"]) => invoices::list(call, params),
        ("GET", ["invoices", id]) => invoices::retrieve(call, id, params),
        ("POST", ["invoices", id, "pay"]) => invoices::pay(call, id, params),
        ("POST", ["billing", "meters"]) => meters::create(call, params),
        ("GET", ["billing", "meters"]) => meters::list(call, params),
        ("GET", ["billing", "meters", id]) => meters::retrieve(call, id, params),
        ("POST", ["billing", "meters", id]) => meters::update(call, id, params),
        ("POST", ["billing", "meters", id, "deactivate"]) => {
            meters::set_active(call, id, false, params)
        }
        ("POST", ["billing", "meters", id, "reactivate"]) => {
            meters::set_active(call, id, true, params)
        }
        ("GET", ["billing", "meters", id, "event_summaries"]) => {
            meters::list_summaries(call, id, params)
        }
        ("POST", ["billing", "meter_events"]) => meters::create_event(call, params),
        ("GET", ["events"]) => events::list(call, params),
        ("GET", ["events", id]) => events::retrieve(call, id, params),
        ("POST", ["webhook_endpoints"]) => webhooks::create(call, params),
        ("GET", ["webhook_endpoints"]) => webhooks::list(call, params),
        ("GET", ["webhook_endpoints", id]) => webhooks::retrieve(call, id, params),
        ("POST", ["webhook_endpoints", id]) => webhooks::update(call, id, params),
        ("DELETE", ["webhook_endpoints", id]) => webhooks::delete(call, id, params),
        _ => Err(unknown()),
    }
}

impl Shared {
    /// Opens the account at the present moment, with everything done that was due by then.
    pub(super) fn with_call<T>(&self, origin: Origin, work: impl FnOnce(&mut Call<'_>) -> T) -> T {
        let (drop_webhooks, refuse_at_once, summary_lag_seconds) = {
            let faults = self.faults();
            let lag_s = faults.summary_lag_seconds;
            (faults.drop_webhooks, faults.refuse_meter_events_at_once, lag_s)
        };
        let mut state = self.state();
        let state: &mut State = &mut state;
        let mut call = Call {
            state,
            entropy: &self.entropy,
            now: self.clock.now(),
            origin,
            drop_webhooks,
            refuse_at_once,
            summary_lag_seconds,
        };
        life::run_due(&mut call);
        work(&mut call)
    }
}
