//! The SMTP dialogue.
//!
//! lettre's own transport is not used, only its connection, for three reasons found in its source
//! (0.11.23). Its error does not say whether the content had been sent, which is the difference
//! between "try again" and "ask a person". Its async connection has no timeout once TCP is
//! connected. And its pool takes back a connection whose future was dropped in mid-dialogue, whose
//! late answer the next mail would then read as its own.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lettre::Address;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Noop, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::response::{Response, Severity};
use secrecy::ExposeSecret;

use super::Delivery;
use super::message::Composed;
use super::text::loggable;
use super::url::{Encryption, Server};

/// How long to wait for the server.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection that can send mail: name lookup, TCP, TLS, greeting and login together.
    pub connect: Duration,
    /// For the answer to one command.
    pub command: Duration,
    /// For the answer to the content. Cut short, it leaves a mail whose fate nobody knows.
    pub content: Duration,
}

/// The minimums of RFC 5321, 4.5.3.2, where cutting short costs something; less for connecting,
/// which does not.
impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(60),
            command: Duration::from_mins(5),
            content: Duration::from_mins(10),
        }
    }
}

impl Timeouts {
    /// No attempt to send takes longer. Whoever finds a mail in the state of being sent for longer
    /// than this may take its sender for dead.
    pub fn longest_attempt(&self) -> Duration {
        // A kept connection that does not answer, a new one, MAIL, RCPT, DATA, and the content.
        self.connect * 2 + self.command * 3 + self.content
    }
}

/// How many connections are kept open between mails.
const MAX_IDLE: usize = 4;

/// An SMTP server and the open connections to it.
pub(super) struct Smtp {
    server: Server,
    timeouts: Timeouts,
    hello: ClientId,
    /// Connections that finished a mail. Every one is asked with NOOP before it carries another.
    idle: Mutex<Vec<AsyncSmtpConnection>>,
}

/// How far the dialogue had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has been said about this mail; an error is the server's or the configuration's.
    Connecting,
    /// Sender, recipient and the wish to send have been named, but no content.
    Envelope,
    /// The content is on its way or there.
    Content,
}

/// What went wrong.
#[derive(Debug)]
struct Fault {
    answer: Answer,
    /// Loggable.
    detail: String,
}

/// What the server said, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// 4xx
    NotNow,
    /// 5xx
    Never,
    /// No answer, or none that means anything here.
    None,
}

/// The whole decision: what an error means for the mail.
fn outcome(phase: Phase, fault: Fault) -> Delivery {
    let reason = fault.detail;
    match (phase, fault.answer) {
        // A wrong password or a server that is down says nothing about the mail.
        (Phase::Connecting, _) => Delivery::TryLater { reason },
        (_, Answer::NotNow) => Delivery::TryLater { reason },
        (_, Answer::Never) => Delivery::Refused { reason },
        (Phase::Envelope, Answer::None) => Delivery::TryLater { reason },
        (Phase::Content, Answer::None) => Delivery::Unknown { reason },
    }
}

impl Fault {
    fn new(answer: Answer, detail: impl fmt::Display) -> Self {
        Self { answer, detail: loggable(&detail.to_string()) }
    }
}

impl From<lettre::transport::smtp::Error> for Fault {
    fn from(error: lettre::transport::smtp::Error) -> Self {
        let answer = match error.status().map(|code| code.severity) {
            Some(Severity::TransientNegativeCompletion) => Answer::NotNow,
            Some(Severity::PermanentNegativeCompletion) => Answer::Never,
            _ => Answer::None,
        };
        Self::new(answer, error)
    }
}

impl Smtp {
    pub fn new(server: Server, timeouts: Timeouts) -> Self {
        Self { server, timeouts, hello: ClientId::default(), idle: Mutex::default() }
    }

    pub async fn send(&self, mail: &Composed) -> Delivery {
        let mut connection = match self.connection().await {
            Ok(connection) => connection,
            Err(fault) => return outcome(Phase::Connecting, fault),
        };
        // From here on an early return drops the connection, which closes it: after an error its
        // state is not worth finding out.
        if let Err(fault) = self.send_envelope(&mut connection, mail).await {
            return outcome(Phase::Envelope, fault);
        }
        if let Err(fault) = self.send_content(&mut connection, mail).await {
            return outcome(Phase::Content, fault);
        }
        self.keep(connection);
        Delivery::Accepted
    }

    /// Connects, logs in, and asks whether `from` may send, without sending.
    pub async fn check(&self, from: Address) -> Result<(), String> {
        let checked = async {
            let mut connection = within(self.timeouts.connect, self.open()).await?;
            self.command(
                &mut connection,
                Mail::new(Some(from), Vec::new()),
                Severity::PositiveCompletion,
            )
            .await?;
            self.command(&mut connection, Rset, Severity::PositiveCompletion).await?;
            // All that was to be known is known, however the server says good-bye.
            let _ = within(self.timeouts.connect, async { Ok(connection.quit().await?) }).await;
            Ok(())
        };
        checked.await.map_err(|fault: Fault| fault.detail)
    }

    /// A connection that has just answered: a kept one, or a new one.
    async fn connection(&self) -> Result<AsyncSmtpConnection, Fault> {
        // On its own line: the lock must not be held while the server is spoken to.
        let kept = self.idle().pop();
        if let Some(mut kept) = kept {
            let alive = within(self.timeouts.connect, async { Ok(kept.command(Noop).await?) });
            if alive.await.is_ok() {
                return Ok(kept);
            }
            // Servers close idle connections without a word. This one was the last to be used, so
            // the others have been idle for longer.
            self.idle().clear();
        }
        within(self.timeouts.connect, self.open()).await
    }

    fn idle(&self) -> MutexGuard<'_, Vec<AsyncSmtpConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    async fn open(&self) -> Result<AsyncSmtpConnection, Fault> {
        let Server { host, port, encryption, login } = &self.server;
        let tls = || TlsParameters::new(host.clone());
        let tls_at_once = (*encryption == Encryption::FromTheFirstByte).then(tls).transpose()?;
        let address = (host.as_str(), *port);
        let timeout = Some(self.timeouts.connect);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, timeout, &self.hello, tls_at_once, None)
                .await?;
        if *encryption == Encryption::StartTls {
            connection.starttls(tls()?, &self.hello).await?;
        }
        if let Some(login) = login {
            let credentials =
                Credentials::new(login.user.clone(), login.password.expose_secret().to_owned());
            connection.auth(DEFAULT_MECHANISMS, &credentials).await?;
        }
        Ok(connection)
    }

    async fn send_envelope(
        &self,
        connection: &mut AsyncSmtpConnection,
        mail: &Composed,
    ) -> Result<(), Fault> {
        let parameters = mail_parameters(connection, mail)?;
        let from = Mail::new(Some(mail.from.clone()), parameters);
        self.command(connection, from, Severity::PositiveCompletion).await?;
        let to = Rcpt::new(mail.to.clone(), Vec::new());
        self.command(connection, to, Severity::PositiveCompletion).await?;
        self.command(connection, Data, Severity::PositiveIntermediate).await
    }

    async fn send_content(
        &self,
        connection: &mut AsyncSmtpConnection,
        mail: &Composed,
    ) -> Result<(), Fault> {
        let answer =
            within(self.timeouts.content, async { Ok(connection.message(&mail.bytes).await?) });
        expect(&answer.await?, Severity::PositiveCompletion)
    }

    async fn command(
        &self,
        connection: &mut AsyncSmtpConnection,
        command: impl fmt::Display,
        wanted: Severity,
    ) -> Result<(), Fault> {
        let answer =
            within(self.timeouts.command, async { Ok(connection.command(command).await?) });
        expect(&answer.await?, wanted)
    }
}

/// lettre takes any 2xx or 3xx for a yes; each command has only one of them.
fn expect(answer: &Response, wanted: Severity) -> Result<(), Fault> {
    if answer.code().severity == wanted {
        return Ok(());
    }
    Err(Fault::new(Answer::None, format_args!("unexpected answer {}", answer.code())))
}

/// The content is ASCII unless an address is not, and then the server must know how (RFC 6531).
fn mail_parameters(
    connection: &AsyncSmtpConnection,
    mail: &Composed,
) -> Result<Vec<MailParameter>, Fault> {
    if mail.bytes.is_ascii() {
        return Ok(Vec::new());
    }
    let server = connection.server_info();
    if server.supports_feature(Extension::SmtpUtfEight)
        && server.supports_feature(Extension::EightBitMime)
    {
        return Ok(vec![
            MailParameter::SmtpUtfEight,
            MailParameter::Body(MailBodyParameter::EightBitMime),
        ]);
    }
    Err(Fault::new(Answer::Never, "the mail server takes only ASCII addresses"))
}

/// Waits for a real server, so this is real time and not the clock's.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Fault::new(Answer::None, format_args!("no answer within {limit:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lost_answers_to_the_content_leave_a_mail_unknown() {
        let name = |phase, answer| match outcome(phase, Fault::new(answer, "x")) {
            Delivery::Accepted => "accepted",
            Delivery::TryLater { .. } => "later",
            Delivery::Refused { .. } => "refused",
            Delivery::Unknown { .. } => "unknown",
        };
        for (phase, not_now, never, none) in [
            (Phase::Connecting, "later", "later", "later"),
            (Phase::Envelope, "later", "refused", "later"),
            (Phase::Content, "later", "refused", "unknown"),
        ] {
            assert_eq!(name(phase, Answer::NotNow), not_now, "{phase:?}");
            assert_eq!(name(phase, Answer::Never), never, "{phase:?}");
            assert_eq!(name(phase, Answer::None), none, "{phase:?}");
        }
    }
}
