//! The load: a closed loop on each of many kept-alive connections, from one thread.
//!
//! One thread with raw sockets takes as little of the machine as a load can, and the same from
//! every rival. Each connection sends its next request when it has read the last one's answer.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// How long a server may leave all connections without a single answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A server that is behind with accepting makes the next connection wait for a whole second.
const CONNECTS_AT_ONCE: usize = 256;
const BREATHER: Duration = Duration::from_millis(20);

/// Where requests come from.
pub trait Requests {
    /// Puts the next request in place of what the buffer holds; `false` when there is none left.
    fn next(&mut self, buffer: &mut Vec<u8>) -> bool;
}

/// What the servers answered.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Time from request to answer, of each 200 in the measured time, in µs, sorted.
    pub latencies_us: Vec<u32>,
    /// All 200s, also before and after the measured time.
    pub accepted: u64,
    /// All 503s; each names a `Retry-After`.
    pub refused: u64,
    /// Connections that the server closed, or that broke.
    pub hung_up: usize,
}

impl Outcome {
    /// Counts an answer, and measures it if it came in the measured time.
    fn add(&mut self, caller: &Caller, status: u16, measured: Option<Instant>) -> Result<()> {
        match status {
            200 => self.accepted += 1,
            503 if caller.names_retry_after() => self.refused += 1,
            _ => bail!("answered {}", String::from_utf8_lossy(&caller.answer)),
        }
        if status == 200
            && let Some(now) = measured
        {
            self.latencies_us.push((now - caller.asked).as_micros() as u32);
        }
        Ok(())
    }

    /// The latency that this share of the answers does not exceed, in ms.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let count = self.latencies_us.len();
        let rank = ((count as f64 * share).ceil() as usize).clamp(1, count.max(1));
        self.latencies_us.get(rank - 1).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }
}

/// Connections that are open and idle.
pub struct Callers {
    poll: Poll,
    callers: Vec<Caller>,
}

impl Callers {
    /// So many connections, divided between the servers.
    pub fn connect(servers: &[SocketAddr], connections: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let connect = |(number, address): (usize, &SocketAddr)| {
            if number % CONNECTS_AT_ONCE == CONNECTS_AT_ONCE - 1 {
                std::thread::sleep(BREATHER);
            }
            let stream = std::net::TcpStream::connect(address)
                .with_context(|| format!("{address} takes no connection"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(number), interest)?;
            Ok(Caller::new(stream))
        };
        let callers = servers.iter().cycle().take(connections).enumerate().map(connect);
        let callers = callers.collect::<Result<_>>()?;
        Ok(Self { poll, callers })
    }

    /// Asks until the time is over or the requests are, and awaits all answers. Those of the
    /// warm-up are not measured.
    ///
    /// # Errors
    /// When a server does not answer, or with anything but 200 and 503.
    pub fn run(
        mut self,
        requests: &mut dyn Requests,
        warm_up: Duration,
        measured: Duration,
    ) -> Result<Outcome> {
        let from = Instant::now() + warm_up;
        let to = from + measured;
        let mut outcome = Outcome::default();
        let mut waiting = self.callers.iter_mut().filter_map(|caller| caller.ask(requests)).count();
        let mut events = Events::with_capacity(1024);
        while waiting > 0 {
            self.poll.poll(&mut events, Some(PATIENCE))?;
            ensure!(!events.is_empty(), "no answer within {PATIENCE:?}");
            for event in &events {
                let caller = &mut self.callers[event.token().0];
                let status = match caller.advance() {
                    Progress::Waiting => continue,
                    Progress::HungUp => {
                        outcome.hung_up += 1;
                        waiting -= 1;
                        continue;
                    }
                    Progress::Answered(status) => status,
                };
                let now = Instant::now();
                outcome.add(caller, status, (from..to).contains(&now).then_some(now))?;
                if now >= to || caller.ask(requests).is_none() {
                    waiting -= 1;
                }
            }
        }
        outcome.latencies_us.sort_unstable();
        Ok(outcome)
    }
}

enum Progress {
    Waiting,
    HungUp,
    /// The status.
    Answered(u16),
}

/// One connection.
struct Caller {
    stream: TcpStream,
    request: Vec<u8>,
    sent: usize,
    /// The answer as far as it has come.
    answer: Vec<u8>,
    asked: Instant,
    /// Between a request's first byte and its answer's last.
    busy: bool,
}

impl Caller {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            request: Vec::new(),
            sent: 0,
            answer: Vec::with_capacity(4096),
            asked: Instant::now(),
            busy: false,
        }
    }

    /// Begins the next request, if there is one.
    fn ask(&mut self, requests: &mut dyn Requests) -> Option<()> {
        requests.next(&mut self.request).then_some(())?;
        self.sent = 0;
        self.answer.clear();
        self.busy = true;
        self.asked = Instant::now();
        // A broken connection shows when the answer is read.
        let _ = self.send();
        Some(())
    }

    fn send(&mut self) -> std::io::Result<()> {
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Goes on with the request under way as far as the connection lets it.
    fn advance(&mut self) -> Progress {
        if !self.busy {
            return Progress::Waiting;
        }
        if self.send().is_err() {
            return self.end(Progress::HungUp);
        }
        let mut part = [0; 4096];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return self.end(Progress::HungUp),
                Ok(read) => self.answer.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(_) => return self.end(Progress::HungUp),
            }
            if let Some(status) = whole_answer(&self.answer) {
                return self.end(Progress::Answered(status));
            }
        }
    }

    fn end(&mut self, progress: Progress) -> Progress {
        self.busy = false;
        progress
    }

    fn names_retry_after(&self) -> bool {
        header(&self.answer, b"retry-after").is_some()
    }
}

/// Asks once, on a connection of its own; the answer's body.
///
/// # Errors
/// When the answer is not a whole 200.
pub fn ask_once(address: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let read = stream.read(&mut part)?;
        ensure!(read > 0, "{address} hung up");
        answer.extend_from_slice(&part[..read]);
        let Some(status) = whole_answer(&answer) else { continue };
        let text = String::from_utf8_lossy(&answer);
        ensure!(status == 200, "{address} answered {text}");
        return Ok(text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned());
    }
}

/// The status of an answer of which nothing is missing.
fn whole_answer(answer: &[u8]) -> Option<u16> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.trim().parse::<usize>().ok();
    let length = header(&answer[..head + 2], b"content-length").and_then(number)?;
    if answer.len() < head + 4 + length {
        return None;
    }
    number(answer.get(9..12)?).and_then(|status| u16::try_from(status).ok())
}

/// The value of a header, its name given in lower case.
fn header<'a>(answer: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    answer.split(|byte| *byte == b'\n').find_map(|line| {
        let (before, after) = line.split_at_checked(name.len())?;
        (before.eq_ignore_ascii_case(name) && after.first() == Some(&b':')).then(|| &after[1..])
    })
}
