//! Connections that can be cut, and answers that come slowly or not to their end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

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

impl CutSwitch {
    /// Not a byte more is written.
    pub fn cut(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A body that waits before its first byte, or breaks off in its middle.
pub(super) struct TroubledBody {
    wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    text: Option<Bytes>,
    breaks_off: bool,
}

impl TroubledBody {
    /// Waits for `wait`, then comes whole.
    pub fn slow(text: String, wait: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { wait: Some(Box::pin(wait)), text: Some(text.into()), breaks_off: false }
    }

    /// Its first half, and then the connection ends.
    pub fn cut(text: String) -> Self {
        let mut text = Bytes::from(text);
        text.truncate(text.len() / 2);
        Self { wait: None, text: Some(text), breaks_off: true }
    }
}

impl hyper::body::Body for TroubledBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(wait) = &mut self.wait {
            if wait.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.wait = None;
        }
        Poll::Ready(match self.text.take() {
            Some(text) => Some(Ok(Frame::data(text))),
            None if self.breaks_off => Some(Err(io::ErrorKind::ConnectionAborted.into())),
            None => None,
        })
    }
}
