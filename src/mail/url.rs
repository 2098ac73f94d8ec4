//! `SMTP_URL`: where mails go.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;
use secrecy::SecretString;

/// Where mails go, read from one URL:
///
/// | URL | meaning |
/// |---|---|
/// | `smtps://user:password@host` | TLS from the first byte (port 465) |
/// | `smtp://user:password@host?tls=required` | STARTTLS, or no mail at all (port 587) |
/// | `smtp://host` | no encryption (port 25), for a relay on this machine or a private network |
/// | `file:///directory` | one `.eml` file per mail, no server |
///
/// Encryption is never opportunistic. Without it a user and password are refused unless the host
/// is this machine. Special characters in user and password are percent-encoded.
#[derive(Clone)]
pub struct MailUrl {
    pub(super) route: Route,
}

#[derive(Clone)]
pub(super) enum Route {
    Smtp(Server),
    Directory(PathBuf),
}

#[derive(Clone)]
pub(super) struct Server {
    /// A name or an IP address, an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
    pub encryption: Encryption,
    pub login: Option<Login>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    None,
    StartTls,
    FromTheFirstByte,
}

#[derive(Clone)]
pub(super) struct Login {
    pub user: String,
    pub password: SecretString,
}

/// Why a text is not a mail URL. The messages never repeat it: it holds a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMailUrl {
    #[error("must be a URL such as smtps://user:password@mail.example.com:465 or file:///var/mail")]
    NotAUrl,
    #[error("must begin with smtps://, smtp:// or file:///")]
    Scheme,
    #[error("must name a host, as in smtps://mail.example.com")]
    Host,
    #[error("must name an absolute directory, as in file:///var/mail")]
    Directory,
    #[error("takes nothing after the host and port except ?tls=required (on smtp://)")]
    Extra,
    #[error("must have both a user and a password, or neither, percent-encoded UTF-8")]
    Login,
    #[error("sends the password unencrypted: use smtps:// or add ?tls=required")]
    PlaintextPassword,
}

impl FromStr for MailUrl {
    type Err = InvalidMailUrl;

    fn from_str(text: &str) -> Result<Self, InvalidMailUrl> {
        let url: Url = text.trim().parse().map_err(|_| InvalidMailUrl::NotAUrl)?;
        let route = match url.scheme() {
            "file" => Route::Directory(directory(&url)?),
            "smtp" | "smtps" => Route::Smtp(server(&url)?),
            _ => return Err(InvalidMailUrl::Scheme),
        };
        Ok(Self { route })
    }
}

fn directory(url: &Url) -> Result<PathBuf, InvalidMailUrl> {
    if url.query().is_some() || url.fragment().is_some() {
        return Err(InvalidMailUrl::Extra);
    }
    url.to_file_path().map_err(|()| InvalidMailUrl::Directory)
}

fn server(url: &Url) -> Result<Server, InvalidMailUrl> {
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(InvalidMailUrl::Host)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
        return Err(InvalidMailUrl::Extra);
    }
    let (encryption, default_port) = match (url.scheme(), url.query()) {
        ("smtps", None) => (Encryption::FromTheFirstByte, 465),
        ("smtp", Some("tls=required")) => (Encryption::StartTls, 587),
        ("smtp", None) => (Encryption::None, 25),
        _ => return Err(InvalidMailUrl::Extra),
    };
    let login = login(url)?;
    if login.is_some() && encryption == Encryption::None && !is_this_machine(&host) {
        return Err(InvalidMailUrl::PlaintextPassword);
    }
    Ok(Server { host, port: url.port().unwrap_or(default_port), encryption, login })
}

fn login(url: &Url) -> Result<Option<Login>, InvalidMailUrl> {
    match (url.username(), url.password()) {
        ("", None) => Ok(None),
        (user, Some(password)) if !user.is_empty() && !password.is_empty() => Ok(Some(Login {
            user: percent_decode(user).ok_or(InvalidMailUrl::Login)?,
            password: percent_decode(password).ok_or(InvalidMailUrl::Login)?.into(),
        })),
        _ => Err(InvalidMailUrl::Login),
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `%40` → `@`. The URL parser has already encoded whatever was not ASCII. `None` if a `%` is not
/// followed by two hexadecimal digits or the result is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = if *first == b'%' {
            bytes.extend(hex::decode(tail.get(..2)?).ok()?);
            &tail[2..]
        } else {
            bytes.push(*first);
            tail
        };
    }
    String::from_utf8(bytes).ok()
}

/// The URL without its user and password.
impl fmt::Display for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Server { host, port, encryption, .. } = match &self.route {
            Route::Directory(path) => return write!(f, "file://{}", path.display()),
            Route::Smtp(server) => server,
        };
        let scheme = if *encryption == Encryption::FromTheFirstByte { "smtps" } else { "smtp" };
        let tls = if *encryption == Encryption::StartTls { "?tls=required" } else { "" };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}{tls}")
        } else {
            write!(f, "{scheme}://{host}:{port}{tls}")
        }
    }
}

impl fmt::Debug for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn shown(url: &str) -> String {
        url.parse::<MailUrl>().map_or_else(|e| format!("{e:?}"), |url| url.to_string())
    }

    #[test]
    fn every_form_is_read_and_shown_without_its_password() {
        assert_eq!(shown("smtps://u:s3cret@mail.example.com"), "smtps://mail.example.com:465");
        assert_eq!(
            shown("smtp://u:p@[2001:db8::1]?tls=required"),
            "smtp://[2001:db8::1]:587?tls=required"
        );
        assert_eq!(shown("smtp://relay"), "smtp://relay:25");
        assert_eq!(shown("smtp://u:p@127.0.0.1:1025/"), "smtp://127.0.0.1:1025");
        assert_eq!(shown("file:///var/mail%20box"), "file:///var/mail box");
    }

    #[test]
    fn what_cannot_work_or_is_not_safe_is_refused() {
        for (url, why) in [
            ("mail.example.com", InvalidMailUrl::NotAUrl),
            ("https://mail.example.com", InvalidMailUrl::Scheme),
            ("smtp://", InvalidMailUrl::Host),
            ("file://relative/path", InvalidMailUrl::Directory),
            ("smtp://host?tls=opportunistic", InvalidMailUrl::Extra),
            ("smtps://host/name", InvalidMailUrl::Extra),
            ("smtps://user@host", InvalidMailUrl::Login),
            ("smtps://user:%zz@host", InvalidMailUrl::Login),
            ("smtp://user:s3cret@mail.example.com", InvalidMailUrl::PlaintextPassword),
        ] {
            let error = url.parse::<MailUrl>().expect_err(url);
            assert_eq!(error, why, "{url}");
            assert!(!error.to_string().contains("s3cret"));
        }
    }

    #[test]
    fn user_and_password_are_percent_decoded() {
        let url: MailUrl = "smtps://ada%40example.com:p%25%3a%C3%BC@host".parse().unwrap();
        let Route::Smtp(Server { login: Some(login), .. }) = url.route else { panic!("{url}") };
        assert_eq!(login.user, "ada@example.com");
        assert_eq!(login.password.expose_secret(), "p%:ü");
    }
}
