//! A real SMTP server that keeps what it is given and fails where it is told to.

use std::sync::{Arc, Mutex};

use base64::Engine;
use mail_parser::MessageParser;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where the server fails. It fails there every time until told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Greets with this line instead of 220 and hangs up: `421 4.3.2 busy`.
    Greeting(&'static str),
    /// Answers AUTH with this line.
    Auth(&'static str),
    /// Answers RCPT with this line.
    Rcpt(&'static str),
    /// Answers DATA with this line.
    Data(&'static str),
    /// Answers the content with this line; only a 250 keeps the mail.
    Content(&'static str),
    /// Hangs up at RCPT without an answer.
    DropAtRcpt,
    /// Never answers RCPT.
    SilentAtRcpt,
    /// Takes the mail and hangs up before the 250.
    DropAfterContent,
    /// Takes the mail and never answers.
    SilentAfterContent,
}

/// A mail the server took.
#[derive(Debug, Clone)]
pub struct SinkMail {
    pub envelope_from: String,
    pub envelope_to: Vec<String>,
    /// As it came over the wire, without the dots that transport added.
    pub raw: String,
    /// The `From` header's address.
    pub from: String,
    /// The `To` header's address.
    pub to: String,
    pub to_name: Option<String>,
    pub subject: String,
    pub text: String,
    pub html: String,
    /// Without angle brackets.
    pub message_id: String,
}

/// A running server; it stops when dropped.
pub struct SmtpSink {
    port: u16,
    state: Arc<Mutex<State>>,
    close_idle: watch::Sender<()>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    mails: Vec<SinkMail>,
    connections: usize,
    silent: usize,
    logins: Vec<(String, String)>,
}

impl SmtpSink {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let close_idle = watch::Sender::new(());
        let accepting = tokio::spawn({
            let (state, close_idle) = (state.clone(), close_idle.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    state.lock().unwrap().connections += 1;
                    let session = Session {
                        stream: BufReader::new(stream),
                        state: state.clone(),
                        close_idle: close_idle.subscribe(),
                    };
                    // A client that hangs up ends its session, and nothing else.
                    tokio::spawn(async move { session.serve().await.ok() });
                }
            }
        });
        Self { port, state, close_idle, accepting }
    }

    /// `smtp://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything taken so far, oldest first.
    pub fn mails(&self) -> Vec<SinkMail> {
        self.state.lock().unwrap().mails.clone()
    }

    /// The only mail taken so far.
    pub fn mail(&self) -> SinkMail {
        let mut mails = self.mails();
        assert_eq!(mails.len(), 1, "exactly one mail");
        mails.remove(0)
    }

    pub fn set_fault(&self, fault: impl Into<Option<Fault>>) {
        self.state.lock().unwrap().fault = fault.into();
    }

    /// How many connections were ever made.
    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// How many sessions have fallen silent on their client.
    pub fn silent(&self) -> usize {
        self.state.lock().unwrap().silent
    }

    /// User and password of every successful login.
    pub fn logins(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().logins.clone()
    }

    /// Closes every connection that is between two mails, without a word, as servers do.
    pub fn close_idle(&self) {
        self.close_idle.send_replace(());
    }
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Session {
    stream: BufReader<TcpStream>,
    state: Arc<Mutex<State>>,
    close_idle: watch::Receiver<()>,
}

impl Session {
    async fn serve(mut self) -> std::io::Result<()> {
        if let Some(Fault::Greeting(line)) = self.fault() {
            return self.answer(line).await;
        }
        self.answer("220 sink ESMTP").await?;
        let (mut from, mut to) = (None, Vec::new());
        loop {
            let idle = from.is_none();
            let Some(line) = self.read_command(idle).await? else {
                return Ok(());
            };
            let (verb, argument) = line.split_once(' ').unwrap_or((&line, ""));
            match (verb.to_ascii_uppercase().as_str(), self.fault()) {
                ("EHLO", _) => self.answer("250-sink\r\n250-8BITMIME\r\n250 AUTH PLAIN").await?,
                ("AUTH", Some(Fault::Auth(line))) => self.answer(line).await?,
                ("AUTH", _) => self.login(argument).await?,
                ("MAIL", _) => {
                    from = Some(address(argument));
                    self.answer("250 2.1.0 ok").await?;
                }
                ("RCPT", Some(Fault::Rcpt(line))) => self.answer(line).await?,
                ("RCPT", Some(Fault::DropAtRcpt)) => return Ok(()),
                ("RCPT", Some(Fault::SilentAtRcpt)) => self.wait_for_hang_up().await?,
                ("RCPT", _) if from.is_some() => {
                    to.push(address(argument));
                    self.answer("250 2.1.5 ok").await?;
                }
                ("DATA", Some(Fault::Data(line))) => self.answer(line).await?,
                ("DATA", _) if !to.is_empty() => {
                    self.answer("354 go ahead").await?;
                    let Some(raw) = self.read_content().await? else {
                        return Ok(());
                    };
                    let envelope = (from.take().unwrap_or_default(), std::mem::take(&mut to));
                    if !self.take_mail(envelope, raw).await? {
                        return Ok(());
                    }
                }
                ("RSET", _) => {
                    (from, to) = (None, Vec::new());
                    self.answer("250 2.0.0 ok").await?;
                }
                ("NOOP", _) => self.answer("250 2.0.0 ok").await?,
                ("QUIT", _) => return self.answer("221 2.0.0 bye").await,
                ("RCPT" | "DATA", _) => self.answer("503 5.5.1 out of order").await?,
                _ => self.answer("500 5.5.2 what").await?,
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.state.lock().unwrap().fault
    }

    async fn answer(&mut self, line: &str) -> std::io::Result<()> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await
    }

    /// `None` when either side ends the connection.
    async fn read_command(&mut self, idle: bool) -> std::io::Result<Option<String>> {
        let mut line = String::new();
        let read = tokio::select! {
            read = self.stream.read_line(&mut line) => read?,
            _ = self.close_idle.changed(), if idle => 0,
        };
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    /// Up to the line with one dot; `None` if the client hung up before.
    async fn read_content(&mut self) -> std::io::Result<Option<String>> {
        let mut content = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 {
                return Ok(None);
            }
            assert!(line.ends_with("\r\n"), "a bare line feed in {line:?}");
            assert!(line.len() <= 1000, "a line longer than RFC 5321 allows");
            if line == ".\r\n" {
                return Ok(Some(content));
            }
            content.push_str(line.strip_prefix('.').unwrap_or(&line));
        }
    }

    /// Keeps the mail, or fails as told. False ends the connection.
    async fn take_mail(
        &mut self,
        envelope: (String, Vec<String>),
        raw: String,
    ) -> std::io::Result<bool> {
        let fault = self.fault();
        let answer = match fault {
            Some(Fault::Content(line)) => line,
            _ => "250 2.0.0 queued",
        };
        if answer.starts_with("250") {
            self.state.lock().unwrap().mails.push(parse(envelope, raw));
        }
        match fault {
            Some(Fault::DropAfterContent) => return Ok(false),
            Some(Fault::SilentAfterContent) => self.wait_for_hang_up().await?,
            _ => self.answer(answer).await?,
        }
        Ok(true)
    }

    async fn wait_for_hang_up(&mut self) -> std::io::Result<()> {
        self.state.lock().unwrap().silent += 1;
        let mut ignored = Vec::new();
        self.stream.read_to_end(&mut ignored).await.map(drop)
    }

    /// `PLAIN` with its initial response: base64 of NUL user NUL password.
    async fn login(&mut self, argument: &str) -> std::io::Result<()> {
        let decoded = argument
            .strip_prefix("PLAIN ")
            .and_then(|encoded| base64::engine::general_purpose::STANDARD.decode(encoded).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(decoded) = decoded else {
            return self.answer("501 5.5.4 only PLAIN").await;
        };
        let mut parts = decoded.splitn(3, '\0').skip(1).map(str::to_owned);
        let login = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.state.lock().unwrap().logins.push(login);
        self.answer("235 2.7.0 welcome").await
    }
}

/// `TO:<ada@example.com> …` → `ada@example.com`
fn address(argument: &str) -> String {
    let inside = argument.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inside.map(|(address, _)| address.to_owned()).unwrap_or_default()
}

fn parse((envelope_from, envelope_to): (String, Vec<String>), raw: String) -> SinkMail {
    let message = MessageParser::default().parse(raw.as_bytes()).expect("a mail");
    let mailbox = |address: Option<&mail_parser::Address<'_>>| {
        let first = address.and_then(|address| address.first());
        let name = first.and_then(|first| first.name()).map(str::to_owned);
        (first.and_then(|first| first.address()).unwrap_or_default().to_owned(), name)
    };
    let (from, _) = mailbox(message.from());
    let (to, to_name) = mailbox(message.to());
    let body = |part: Option<&mail_parser::MessagePart<'_>>| {
        part.and_then(|part| part.text_contents()).unwrap_or_default().replace("\r\n", "\n")
    };
    SinkMail {
        from,
        to,
        to_name,
        subject: message.subject().unwrap_or_default().to_owned(),
        text: body(message.text_part(0)),
        html: body(message.html_part(0)),
        message_id: message.message_id().unwrap_or_default().to_owned(),
        envelope_from,
        envelope_to,
        raw,
    }
}
