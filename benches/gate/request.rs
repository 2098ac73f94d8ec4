//! The requests: written once, and only their numbers changed from one to the next.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::load::Requests;
use crate::machine::unix_seconds;

/// The daemon's bootstrap API key.
pub const API_KEY: &str = "key-of-the-bench-0123456789";
/// The daemon's webhook secret.
pub const WEBHOOK_SECRET: &str = "whsec_bench0123456789bench0123456789";

/// How many customers ask in turn, unless a part says otherwise.
pub const CUSTOMERS: u64 = 1_000;
/// A prime, so that customers come in an order that no table is stored in, each equally often.
const STRIDE: u64 = 611_953;

/// How many bytes a webhook's body has.
const WEBHOOK_BYTES: usize = 4096;

/// The digits of a customer's number: enough for ten million.
const DIGITS: usize = 7;

/// The id of a customer. All are equally long, and in byte order by number.
pub fn customer_id(number: u64) -> String {
    format!("customer-{number:0DIGITS$}")
}

/// `POST /v1/check` with `send_event`: runs to be counted, each under a key that no other has.
pub struct Checks {
    template: Vec<u8>,
    customer_at: usize,
    key_at: usize,
    customers: u64,
    /// The run's number, which makes its key.
    number: u64,
    end: u64,
}

impl Checks {
    /// Of these customers in turn, run by run from one number to before another.
    pub fn counting(customers: u64, numbers: std::ops::Range<u64>) -> Self {
        Self::with_tail(customers, numbers, "")
    }

    /// The same, and whoever is not known becomes a customer.
    pub fn introducing(customers: u64, numbers: std::ops::Range<u64>) -> Self {
        Self::with_tail(customers, numbers, r#","customer_data":{}"#)
    }

    fn with_tail(customers: u64, numbers: std::ops::Range<u64>, tail: &str) -> Self {
        let (before_customer, before_key) = (
            r#"{"customer_id":""#,
            r#"","feature_id":"ai_runs","send_event":true,"idempotency_key":"run_"#,
        );
        let body = format!("{before_customer}{}{before_key}{:016x}\"{tail}}}", customer_id(0), 0);
        let template = check(&body);
        let body_at = template.len() - body.len();
        let customer_ends = body_at + before_customer.len() + customer_id(0).len();
        Self {
            template,
            customer_at: customer_ends - DIGITS,
            key_at: customer_ends + before_key.len(),
            customers,
            number: numbers.start,
            end: numbers.end,
        }
    }

    /// The number of the run that comes next.
    pub fn next_number(&self) -> u64 {
        self.number
    }
}

/// A request to the gate.
pub fn check(body: &str) -> Vec<u8> {
    let request = format!(
        "POST /v1/check HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {API_KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    request.into_bytes()
}

impl Requests for Checks {
    fn next(&mut self, buffer: &mut Vec<u8>) -> bool {
        if self.number >= self.end {
            return false;
        }
        let number = self.number;
        self.number += 1;
        buffer.clone_from(&self.template);
        let mut customer = number.wrapping_mul(STRIDE) % self.customers;
        for digit in buffer[self.customer_at..][..DIGITS].iter_mut().rev() {
            *digit = b'0' + (customer % 10) as u8;
            customer /= 10;
        }
        write_hex(&mut buffer[self.key_at..][..16], scattered(number));
        true
    }
}

/// `POST /webhooks/stripe`: a signed subscription event of 4 KB, each with an id of its own.
///
/// The id stands at the body's end, so that all of the signature but its last block is the same
/// for all: signing must not cost the load generator what verifying costs the server.
pub struct Webhooks {
    template: Vec<u8>,
    signature_at: usize,
    id_at: usize,
    signed: Hmac<Sha256>,
    /// The event's number, which makes its id.
    number: u64,
}

impl Webhooks {
    /// Signed as of now, so it serves for less than Stripe's tolerance of five minutes.
    pub fn signed_now(first_number: u64) -> Self {
        let start = r#"{"object":"event","api_version":"2026-01-28","livemode":false,"type":"customer.subscription.updated","data":{"object":{"object":"subscription","id":"sub_bench","customer":"cus_bench","metadata":{"padding":""#;
        let end = r#""}}},"id":"evt_0000000000000000"}"#;
        let padding = "x".repeat(WEBHOOK_BYTES - start.len() - end.len());
        let body = format!("{start}{padding}{end}");
        let at = unix_seconds();
        let head = format!(
            "POST /webhooks/stripe HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nstripe-signature: t={at},v1=",
            body.len()
        );
        let same = body.len() - r#"0000000000000000"}"#.len();
        let mut signed = Hmac::<Sha256>::new_from_slice(WEBHOOK_SECRET.as_bytes())
            .expect("a key of any length will do");
        signed.update(format!("{at}.{}", &body[..same]).as_bytes());
        let template = format!("{head}{}\r\n\r\n{body}", "0".repeat(64)).into_bytes();
        let id_at = template.len() - r#"0000000000000000"}"#.len();
        Self { template, signature_at: head.len(), id_at, signed, number: first_number }
    }

    /// The number of the event that comes next.
    pub fn next_number(&self) -> u64 {
        self.number
    }
}

impl Requests for Webhooks {
    fn next(&mut self, buffer: &mut Vec<u8>) -> bool {
        buffer.clone_from(&self.template);
        write_hex(&mut buffer[self.id_at..][..16], scattered(self.number));
        self.number += 1;
        let mut signed = self.signed.clone();
        signed.update(&buffer[self.id_at..]);
        let signature = hex::encode(signed.finalize().into_bytes());
        buffer[self.signature_at..][..64].copy_from_slice(signature.as_bytes());
        true
    }
}

/// Another number for each number, in no order: keys of real runs come in none either.
/// (The finalizer of SplitMix64, which is a bijection.)
fn scattered(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn write_hex(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}
