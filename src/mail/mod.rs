//! The three mails: what they say ([`templates`]) and how they leave ([`Mailer`]).
//!
//! A mail goes out at most once, and exactly once unless the server's answer was lost: SMTP
//! allows no better. [`Delivery`] therefore tells four outcomes apart, and whoever sends must have
//! committed that it is sending before it calls [`Mailer::send`].

mod directory;
mod filters;
mod message;
pub mod samples;
mod smtp;
pub mod templates;
mod text;
mod url;

use lettre::message::Mailbox;

use crate::clock::Timestamp;

pub use smtp::Timeouts;
pub use templates::{RenderedMail, TemplateError, Templates};
pub use url::{InvalidMailUrl, MailUrl};

/// One mail, ready to go. It names a person, so it has no `Debug`.
#[derive(Clone)]
pub struct OutgoingMail {
    /// `ntc_0192…@billing.example.com`, without angle brackets. The same notice always has the
    /// same one, so that a mail sent twice can be recognised by whoever receives it.
    pub message_id: String,
    pub to_address: String,
    pub to_name: Option<String>,
    /// The `Date` header.
    pub date: Timestamp,
    pub rendered: RenderedMail,
}

/// What became of one attempt. Reasons are one line without mail addresses, fit for a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The server answered that it has the mail.
    Accepted,
    /// The server certainly does not have it; a later attempt may succeed.
    TryLater { reason: String },
    /// The server certainly does not have it and never will take it.
    Refused { reason: String },
    /// The content was sent and no answer came. It may be in the customer's inbox, so sending it
    /// again is for a person to decide.
    Unknown { reason: String },
}

/// `MAIL_FROM` is not a mailbox such as `Acme <billing@acme.example>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a mail address such as `Acme <billing@acme.example>`")]
pub struct InvalidSender;

/// Hands mails to an SMTP server, or writes them into a directory.
pub struct Mailer {
    from: Mailbox,
    route: Route,
}

enum Route {
    Smtp(smtp::Smtp),
    Directory(directory::Directory),
}

impl Mailer {
    /// Prepares the way to `url`. Opens nothing yet: connections are made for the first mail, kept,
    /// and checked before they are used again.
    pub fn connect(url: &MailUrl, from: &str, timeouts: Timeouts) -> Result<Self, InvalidSender> {
        let from = message::sender(from)?;
        let route = match &url.route {
            url::Route::Smtp(server) => Route::Smtp(smtp::Smtp::new(server.clone(), timeouts)),
            url::Route::Directory(path) => Route::Directory(directory::Directory(path.clone())),
        };
        Ok(Self { from, route })
    }

    /// The domain of the sender, in which message ids are made.
    pub fn domain(&self) -> &str {
        self.from.email.domain()
    }

    /// Makes one attempt to hand `mail` over. Dropping the future in mid-dialogue closes its
    /// connection; what became of the mail is then as unknown as [`Delivery::Unknown`].
    pub async fn send(&self, mail: &OutgoingMail) -> Delivery {
        let composed = match message::compose(&self.from, mail) {
            Ok(composed) => composed,
            Err(reason) => {
                return Delivery::Refused { reason: reason.to_owned() };
            }
        };
        match &self.route {
            Route::Smtp(smtp) => smtp.send(&composed).await,
            Route::Directory(directory) => directory.write(&mail.message_id, composed.bytes).await,
        }
    }

    /// Whether a mail could be sent now: the server is reached, takes our credentials and our
    /// sender address, or the directory can be written. Sends nothing. The error is one line.
    pub async fn check(&self) -> Result<(), String> {
        match &self.route {
            Route::Smtp(smtp) => smtp.check(self.from.email.clone()).await,
            Route::Directory(directory) => directory.check().await,
        }
    }
}
