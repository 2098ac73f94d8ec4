//! One mail as the bytes that SMTP carries.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, MultiPartKind, SinglePart};
use lettre::{Address, Message};
use sha2::{Digest, Sha256};

use super::text::one_line;
use super::{InvalidSender, OutgoingMail};

/// Longest display name in a header, in characters.
const MAX_NAME_CHARS: usize = 100;
/// Longest subject, in characters.
pub(super) const MAX_SUBJECT_CHARS: usize = 150;
/// Longest mail address, in bytes: a path has 256 with its brackets (RFC 5321, 4.5.3.1.3).
const MAX_ADDRESS_BYTES: usize = 254;
/// Longest message id, in bytes. It is also a file name, and those end at 255.
const MAX_MESSAGE_ID_BYTES: usize = 200;

/// A mail in wire form. Always ASCII, except for addresses that are not.
pub(super) struct Composed {
    pub from: Address,
    pub to: Address,
    pub bytes: Vec<u8>,
}

/// Reads `MAIL_FROM`.
pub(super) fn sender(text: &str) -> Result<Mailbox, InvalidSender> {
    let mailbox: Mailbox = text.trim().parse().map_err(|_| InvalidSender)?;
    Ok(Mailbox::new(mailbox.name.as_deref().and_then(display_name), mailbox.email))
}

/// Builds the mail. The same arguments give the same bytes. The error says what is wrong with
/// this mail, for ever, and names nobody.
pub(super) fn compose(from: &Mailbox, mail: &OutgoingMail) -> Result<Composed, &'static str> {
    let to = recipient(&mail.to_address)?;
    check_message_id(&mail.message_id)?;
    // lettre panics where it cannot encode a header (a line break in a display name did it). All
    // that goes in is cleaned; should we have missed something, one mail fails and not the job.
    let bytes = catch_unwind(AssertUnwindSafe(|| format(from, &to, mail)))
        .map_err(|_| "this mail's headers cannot be encoded")?
        .map_err(|_| "this mail cannot be composed")?;
    Ok(Composed { from: from.email.clone(), to, bytes })
}

fn recipient(address: &str) -> Result<Address, &'static str> {
    let address = address.trim();
    if address.len() > MAX_ADDRESS_BYTES {
        return Err("the customer's mail address is too long");
    }
    address.parse().map_err(|_| "the customer's mail address is not one")
}

/// `id-left "@" id-right` of RFC 5322, 3.6.4, in its simplest form: `dot-atom`s on both sides.
fn check_message_id(id: &str) -> Result<(), &'static str> {
    let is_atom = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".!#$%&'*+-/=?^_`{|}~".contains(&b))
    };
    let halves = id.split_once('@').filter(|_| id.len() <= MAX_MESSAGE_ID_BYTES);
    if halves.is_some_and(|(left, right)| is_atom(left) && is_atom(right)) {
        Ok(())
    } else {
        Err("the message id is not one")
    }
}

fn display_name(name: &str) -> Option<String> {
    Some(one_line(name, MAX_NAME_CHARS)).filter(|name| !name.is_empty())
}

fn format(
    from: &Mailbox,
    to: &Address,
    mail: &OutgoingMail,
) -> Result<Vec<u8>, lettre::error::Error> {
    let to_name = mail.to_name.as_deref().and_then(display_name);
    let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
    let parts = MultiPart::builder()
        .kind(MultiPartKind::Alternative)
        .boundary(boundary(mail))
        .singlepart(SinglePart::plain(mail.rendered.text.clone()))
        .singlepart(SinglePart::html(mail.rendered.html.clone()));
    let message = Message::builder()
        .from(from.clone())
        .to(Mailbox::new(to_name, to.clone()))
        .subject(one_line(&mail.rendered.subject, MAX_SUBJECT_CHARS))
        .message_id(Some(format!("<{}>", mail.message_id)))
        .date(system_time(mail))
        // RFC 3834, 5: keeps holiday replies from answering us.
        .raw_header(HeaderValue::new(automatic, "auto-generated".to_owned()))
        .multipart(parts)?;
    Ok(message.formatted())
}

fn system_time(mail: &OutgoingMail) -> SystemTime {
    // Before 1970 and after 9999 there is no HTTP date, which is what lettre writes.
    const LAST_SECOND: u64 = 253_402_300_799;
    let seconds = u64::try_from(mail.date.seconds()).unwrap_or(0).min(LAST_SECOND);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The line between the two bodies: made of their own hash, so neither can contain it.
fn boundary(mail: &OutgoingMail) -> String {
    let mut hash = Sha256::new();
    for part in [&mail.message_id, &mail.rendered.text, &mail.rendered.html] {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..20])
}
