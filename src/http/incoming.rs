//! Request bodies on their way in: how long they may be, how long they may take, and how many large
//! ones are read at a time.
//!
//! A body costs memory from its first byte to the answer, and whoever sends it decides how long that
//! takes. So what connections may hold is bounded here, whoever they are:
//!
//! - A small body ([`SMALL`]) is read as it comes. All [`super::server`]'s 8,192 connections with one
//!   each, half sent, and a read buffer of 16 KiB each hold 256 MiB.
//! - A larger one needs a seat, from before its first byte if it says how long it is, and keeps it
//!   until it is answered. Without a free one it is told so at once; it costs nothing and may come
//!   again, as Stripe does by itself. 48 seats for whoever has no key (Stripe's signature can only be
//!   judged when all is read) and 48 for the holders of keys, so that strangers cannot take the
//!   product's: 96 MiB, or at most 288 MiB where lengths are not said and buffers have to grow.
//!
//! What a body is parsed into may be a hundred times as large, but no handler keeps that while it
//! waits for anything: there is one at a time for each of the runtime's threads.

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body as Stream, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Daemon;
use super::error::ApiError;
use crate::clock::Clock;

/// The largest body taken, in bytes: API and webhooks alike.
const MAX_BODY: usize = 1 << 20;
/// The largest body that needs no seat, in bytes: nearly all that products and Stripe send.
const SMALL: usize = 16 << 10;
/// How many large bodies are read at a time, of strangers and of the holders of keys each.
const SEATS: usize = 48;
/// Of a refused body this much is read and forgotten: a caller that is cut off while it sends sees a
/// broken connection and not the reason.
const MAX_DRAINED: usize = 64 << 20;
/// How long a caller may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The seats of large bodies.
pub struct Seats {
    /// For those who show no credential before their body is read.
    pub strangers: Arc<Semaphore>,
    /// For those who have shown an API key or the admin token.
    key_holders: Arc<Semaphore>,
}

impl Default for Seats {
    fn default() -> Self {
        let seats = || Arc::new(Semaphore::new(SEATS));
        Self { strangers: seats(), key_holders: seats() }
    }
}

/// A whole request body within the limits, of someone who has shown a key. It holds its seat.
pub struct Body {
    bytes: Vec<u8>,
    seat: Option<OwnedSemaphorePermit>,
}

impl Body {
    /// The bytes, and the seat to hold on to until the answer.
    pub fn into_parts(self) -> (Vec<u8>, Option<OwnedSemaphorePermit>) {
        (self.bytes, self.seat)
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl FromRequest<Daemon> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, daemon: &Daemon) -> Result<Self, ApiError> {
        let unread = Unread::from_request(request, daemon).await?;
        unread.read(&daemon.seats.key_holders).await
    }
}

/// A body of which nothing has been read, for handlers that look at something else first.
pub struct Unread {
    stream: Stream,
    /// Whether the caller sends nothing before it is told to go on.
    waits: bool,
    clock: Clock,
}

impl FromRequest<Daemon> for Unread {
    type Rejection = ApiError;

    async fn from_request(request: Request, daemon: &Daemon) -> Result<Self, ApiError> {
        let waits = request.headers().contains_key(header::EXPECT);
        let clock = daemon.app.clock.clone();
        let mut unread = Self { stream: request.into_body(), waits, clock };
        match unread.length() {
            Some(length) if length > MAX_BODY => Err(unread.refuse(too_large())),
            _ => Ok(unread),
        }
    }
}

impl Unread {
    /// How long the body says it is.
    fn length(&self) -> Option<usize> {
        self.stream.size_hint().exact().map(|length| length.try_into().unwrap_or(usize::MAX))
    }

    /// The whole body, on one of these seats if it is large.
    ///
    /// # Errors
    /// The refusal: it is too large, too slow or cut short, or there is no seat.
    pub async fn read(mut self, seats: &Arc<Semaphore>) -> Result<Body, ApiError> {
        let clock = self.clock.clone();
        tokio::select! {
            biased;
            body = self.collect(seats) => body,
            () = clock.sleep(BODY_TIMEOUT) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "too_slow",
                "the body took over 30 s",
            )),
        }
    }

    async fn collect(&mut self, seats: &Arc<Semaphore>) -> Result<Body, ApiError> {
        let said = self.length().unwrap_or_default();
        let mut body = Body { bytes: Vec::new(), seat: None };
        if said > SMALL {
            body.seat = Some(self.seat(seats)?);
        }
        while let Some(frame) = next_frame(&mut self.stream).await {
            let frame =
                frame.map_err(|_| ApiError::malformed("the body could not be read to its end"))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = body.bytes.len() + data.len();
            if length > MAX_BODY {
                return Err(self.refuse(too_large()));
            }
            if length > SMALL && body.seat.is_none() {
                body.seat = Some(self.seat(seats)?);
            }
            if body.bytes.is_empty() {
                body.bytes.reserve_exact(said.max(length));
            }
            body.bytes.extend_from_slice(&data);
        }
        Ok(body)
    }

    fn seat(&mut self, seats: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
        seats.clone().try_acquire_owned().map_err(|_| {
            let message = "too many large bodies are being read; nothing was done with this one";
            self.refuse(ApiError::unavailable("overloaded", message))
        })
    }

    /// Refuses the request for this reason, at once; the rest of its body is read and forgotten.
    pub fn refuse(&mut self, error: ApiError) -> ApiError {
        let mut stream = std::mem::take(&mut self.stream);
        // To read would be to ask for it.
        if !self.waits && !stream.is_end_stream() {
            let clock = self.clock.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = drain(&mut stream) => {}
                    () = clock.sleep(BODY_TIMEOUT) => {}
                }
            });
        }
        error
    }
}

async fn drain(stream: &mut Stream) {
    let mut drained = 0;
    while let Some(Ok(frame)) = next_frame(stream).await {
        drained += frame.data_ref().map_or(0, |data| data.len());
        if drained > MAX_DRAINED {
            break;
        }
    }
}

async fn next_frame(stream: &mut Stream) -> Option<Result<Frame<Bytes>, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *stream).poll_frame(context)).await
}

fn too_large() -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body must have at most 1 MiB")
}
