//! What the simulator answers: Stripe's error object and the reply that carries it.

use serde_json::{Value, json};

/// One reply as it goes over the wire, and as the idempotency layer keeps it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: String,
    pub headers: Vec<(&'static str, String)>,
    /// How the body travels.
    pub travels: Travels,
}

/// What happens to a body on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Travels {
    Whole,
    /// Another one comes in its place.
    Changed,
    /// Its first byte comes this many milliseconds after the head.
    SlowlyMs(u64),
    /// Only its first half comes.
    Half,
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            body: format!("{body:#}"),
            headers: vec![("content-type", "application/json".into())],
            travels: Travels::Whole,
        }
    }

    /// A page for a person.
    pub fn page(status: u16, html: String) -> Self {
        let headers = vec![("content-type", "text/html; charset=utf-8".into())];
        Self { status, body: html, headers, travels: Travels::Whole }
    }

    /// A page that sends its reader elsewhere.
    pub fn redirect(url: &str) -> Self {
        Self::page(303, String::new()).with_header("location", url)
    }

    /// What a proxy in front of Stripe says when it cannot reach it: no JSON at all.
    pub fn bad_gateway() -> Self {
        Self {
            status: 502,
            body: "<html><head><title>502 Bad Gateway</title></head><body></body></html>".into(),
            headers: vec![("content-type", "text/html".into())],
            travels: Travels::Whole,
        }
    }

    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A refusal in Stripe's own form.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    param: Option<String>,
    header: Option<(&'static str, &'static str)>,
    /// Whether the endpoint had begun to execute. Stripe keeps the answer under the idempotency
    /// key only then; a request that fails validation leaves its key free.
    began: bool,
}

impl ApiError {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: "invalid_request_error",
            code: None,
            message: message.into(),
            param: None,
            header: None,
            began: false,
        }
    }

    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    fn began(mut self) -> Self {
        self.began = true;
        self
    }

    /// A parameter whose value cannot be read.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(400, message).param(param)
    }

    pub fn invalid_integer(param: &str, value: &str) -> Self {
        Self::invalid(param, format!("Invalid integer: {value}")).code("parameter_invalid_integer")
    }

    pub fn empty(param: &str) -> Self {
        Self::invalid(
            param,
            format!(
                "You passed an empty string for '{param}'. We assume empty values are an attempt \
                 to unset a parameter; however '{param}' cannot be unset. You should remove \
                 '{param}' from your request or supply a non-empty value."
            ),
        )
        .code("parameter_invalid_empty")
    }

    pub fn missing(param: &str) -> Self {
        Self::invalid(param, format!("Missing required param: {param}.")).code("parameter_missing")
    }

    /// Names nobody read; `params` is never empty.
    pub fn unknown_parameters(params: &[String]) -> Self {
        let plural = if params.len() > 1 { "s" } else { "" };
        let message = format!("Received unknown parameter{plural}: {}", params.join(", "));
        Self::invalid(&params[0], message).code("parameter_unknown")
    }

    /// Stripe has this parameter, the simulator does not: refused, so that no test counts on it.
    pub fn not_simulated(param: &str) -> Self {
        Self::invalid(param, format!("The simulator does not simulate the parameter '{param}'."))
    }

    /// The object named in the address does not exist.
    pub fn no_such(noun: &str, id: &str) -> Self {
        Self { status: 404, ..Self::no_such_param(noun, id, "id") }
    }

    /// An object named by a parameter does not exist.
    pub fn no_such_param(noun: &str, id: &str, param: &str) -> Self {
        Self::new(400, format!("No such {noun}: '{id}'"))
            .code("resource_missing")
            .param(param)
            .began()
    }

    /// The request was understood and is refused for what it would do.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(400, message).began()
    }

    /// Found out only once the object is there, so the answer is kept.
    pub fn not_expandable(path: &str) -> Self {
        Self::refused(format!("This property cannot be expanded ({path}).")).param("expand")
    }

    pub fn already_exists(message: &str) -> Self {
        Self::refused(message).code("resource_already_exists")
    }

    /// The meter event that was already received (text from production reports; no code).
    pub fn duplicate_identifier(identifier: &str) -> Self {
        let message = format!("An event already exists with identifier {identifier}.");
        Self { header: Some(("stripe-should-retry", "false")), ..Self::refused(message) }
    }

    pub fn unknown_url(method: &str, path: &str) -> Self {
        Self::new(
            404,
            format!(
                "Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs \
                 or we can help at https://support.stripe.com/."
            ),
        )
    }

    pub fn bad_content_type() -> Self {
        Self::new(
            400,
            "Invalid request (check that your POST content type is \
             application/x-www-form-urlencoded).",
        )
    }

    pub fn other_version(version: &str) -> Self {
        Self::new(400, format!("The simulator does not speak Stripe API version {version}."))
    }

    pub fn no_key() -> Self {
        Self::new(401, "You did not provide an API key.")
    }

    /// A restricted key asked for what it was not made for.
    pub fn not_permitted() -> Self {
        let message = "The provided key 'rk_test_****' does not have the required permissions for \
                       this endpoint. Having more permissions would allow this request to continue.";
        Self::new(403, message)
    }

    /// Names nothing of the key that was sent.
    pub fn wrong_key() -> Self {
        Self::new(401, "Invalid API Key provided.")
    }

    pub fn key_too_long() -> Self {
        Self::new(400, "Idempotency keys may be at most 255 characters long.")
    }

    pub fn key_reused(key: &str) -> Self {
        Self {
            kind: "idempotency_error",
            ..Self::new(
                400,
                format!(
                    "Keys for idempotent requests can only be used with the same parameters they \
                     were first used with. Try using a key other than '{key}' if you meant to \
                     execute a different request."
                ),
            )
        }
    }

    pub fn key_in_use(key: &str) -> Self {
        Self::new(
            409,
            format!(
                "There is currently another in-progress request using this Idempotent Key '{key}'."
            ),
        )
        .code("idempotency_key_in_use")
    }

    /// `reason` is one of Stripe's own.
    pub fn rate_limited(reason: &'static str) -> Self {
        Self {
            header: Some(("stripe-rate-limited-reason", reason)),
            ..Self::new(429, "Request rate limit exceeded.").code("rate_limit")
        }
    }

    pub fn card_declined() -> Self {
        Self {
            kind: "card_error",
            ..Self::new(402, "Your card was declined.").code("card_declined").began()
        }
    }

    /// The card's holder has to confirm, and the call was to fail rather than to wait for that.
    pub fn action_required() -> Self {
        let message = "Payment for this subscription requires additional user action before it \
                       can be completed successfully. Payment can be completed using the \
                       PaymentIntent associated with `subscription.latest_invoice`.";
        Self {
            kind: "card_error",
            ..Self::new(402, message).code("subscription_payment_intent_requires_action").began()
        }
    }

    /// Two writers met on one object: a 429 that carries no reason header.
    pub fn lock_timeout() -> Self {
        Self::new(
            429,
            "This object cannot be accessed right now because another API request or Stripe \
             process is currently accessing it.",
        )
        .code("lock_timeout")
    }

    /// A 500 whose header says whether to try again.
    pub fn server_error_with_advice(should_retry: bool) -> Self {
        let advice = if should_retry { "true" } else { "false" };
        Self { header: Some(("stripe-should-retry", advice)), ..Self::server_error() }
    }

    pub fn server_error() -> Self {
        Self { kind: "api_error", ..Self::new(500, "An unknown error occurred").began() }
    }

    pub fn has_begun(&self) -> bool {
        self.began
    }

    pub fn answer(&self) -> Answer {
        let mut error = json!({ "message": self.message, "type": self.kind });
        if let Some(code) = self.code {
            error["code"] = code.into();
            error["doc_url"] =
                format!("https://stripe.com/docs/error-codes/{}", code.replace('_', "-")).into();
        }
        if self.code == Some("card_declined") {
            error["decline_code"] = "generic_decline".into();
        }
        if let Some(param) = &self.param {
            error["param"] = param.as_str().into();
        }
        let answer = Answer::json(self.status, &json!({ "error": error }));
        match self.header {
            Some((name, value)) => answer.with_header(name, value),
            None => answer,
        }
    }
}
