//! The one list of environment variables. Each has a twin `NAME_FILE` that names a file to read
//! the value from.

/// An environment variable that Tollgate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    pub name: &'static str,
    /// Whether the value must never be shown.
    pub secret: bool,
    /// Goes after "must be".
    pub wanted: &'static str,
}

macro_rules! variables {
    ($($name:ident $kind:ident $wanted:literal;)*) => {
        $(pub(super) const $name: Variable = Variable {
            name: stringify!($name),
            secret: variables!(@secret $kind),
            wanted: $wanted,
        };)*
        /// Every variable, in the order in which mistakes are reported.
        pub const VARIABLES: &[Variable] = &[$($name),*];
    };
    (@secret open) => { false };
    (@secret secret) => { true };
}

variables! {
    DATABASE_URL secret "a URL starting with sqlite:, postgres: or postgresql:";
    TOLLGATE_LISTEN open "an IP address and port such as 127.0.0.1:8080";
    TOLLGATE_PUBLIC_URL open "an http or https URL such as https://billing.example.com, without a slash at the end, a query or a password";
    TOLLGATE_PLANS open "the path of the plans file";
    TOLLGATE_API_KEY secret "at least 16 printable ASCII characters without spaces";
    TOLLGATE_ADMIN_TOKEN secret "at least 16 printable ASCII characters without spaces";
    TOLLGATE_SIGNING_KEY secret "one key or two separated by a comma, each of at least 16 printable ASCII characters without spaces";
    STRIPE_SECRET_KEY secret "a Stripe key starting with sk_test_, sk_live_, rk_test_ or rk_live_";
    STRIPE_WEBHOOK_SECRET secret "secrets starting with whsec_, separated by commas";
    STRIPE_API_BASE open "an https URL without a slash at the end, a query or a password; plain http only to this machine (localhost, 127.0.0.1 or [::1])";
    SMTP_URL secret "a URL starting with smtps://, smtp:// or file:///";
    MAIL_FROM open "a mail address such as billing@example.com or \"Example <billing@example.com>\"";
    TOLLGATE_TEMPLATES open "the path of an existing directory";
    TOLLGATE_OUTAGE_JOURNAL open "the path of a file";
    TOLLGATE_RATE_LIMIT open "a whole number of requests per second from 1 to 1000000";
    TOLLGATE_RETURN_ORIGINS open "origins such as https://app.example.com, without paths, separated by commas";
    RUST_LOG open "a log filter such as info or warn,tollgate=debug";
    TOLLGATE_LOG_FORMAT open "text or json";
    OTEL_EXPORTER_OTLP_ENDPOINT open "an http or https URL without a query or a password";
}

/// What all variables of our own begin with; such a name that is not in the list is a typo.
pub(super) const PREFIX: &str = "TOLLGATE_";
/// What a twin's name ends with.
pub(super) const FILE_SUFFIX: &str = "_FILE";

/// Whether `name` is a variable or the twin of one.
pub(super) fn is_known(name: &str) -> bool {
    let base = name.strip_suffix(FILE_SUFFIX);
    VARIABLES.iter().any(|variable| variable.name == name || base == Some(variable.name))
}
