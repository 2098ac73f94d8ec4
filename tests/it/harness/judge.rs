//! The types of the official SDK as a judge of everything that goes over the wire to and from the
//! simulator, whoever calls it. `tests/sdk/judge.mjs` knows the types; one of it serves all tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tollgate::sim::{LoggedRequest, Simulator};

/// A mistake that many calls make is enough said after this many.
const MISTAKES_SHOWN: usize = 12;

static JUDGE: Mutex<Option<Judge>> = Mutex::new(None);

struct Judge {
    /// Ends with its input, when the tests do.
    _process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Judge {
    fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
        assert!(
            folder.join("node_modules/ajv").is_dir(),
            "the judge's packages are not installed in tests/sdk/node_modules: run scripts/test"
        );
        let mut command = Command::new("node");
        command.current_dir(folder).arg("judge.mjs").stdin(Stdio::piped()).stdout(Stdio::piped());
        // Node would make our own error stream one that does not block, and so break it for us.
        command.stderr(Stdio::null());
        let mut process = command
            .spawn()
            .unwrap_or_else(|error| panic!("node does not start ({error}): run scripts/test"));
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Self { _process: process, input, output }
    }

    fn mistakes(&mut self, case: &Value) -> Vec<String> {
        writeln!(self.input, "{case}").expect("the judge listens");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the judge answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the judge is gone after {case}"))
    }
}

/// What is wrong with the calls, their answers and the events of a simulator so far; empty if
/// nothing is.
pub fn mistakes(sim: &Simulator) -> Vec<String> {
    let calls = sim.requests().into_iter().map(case);
    let events = sim.events().into_iter().map(|event| json!({ "event": event }));
    let thin = sim.thin_events().into_iter().map(|event| {
        json!({
            "method": "GET", "path": "/v2/core/events/evt", "query": "", "body": "", "status": 200,
            "answer": event.to_string(),
        })
    });
    judge(calls.chain(events).chain(thin))
}

fn judge(cases: impl Iterator<Item = Value>) -> Vec<String> {
    let mut judge = JUDGE.lock().unwrap_or_else(PoisonError::into_inner);
    let judge = judge.get_or_insert_with(Judge::start);
    let mut found: Vec<String> = cases.flat_map(|case| judge.mistakes(&case)).collect();
    found.sort();
    found.dedup();
    found.truncate(MISTAKES_SHOWN);
    found
}

fn case(call: LoggedRequest) -> Value {
    json!({
        "method": call.method,
        "path": call.path,
        "query": call.query,
        "body": &*call.body,
        "status": call.status,
        "answer": call.answer.as_deref(),
    })
}

/// Holds a story's traffic to the SDK's types when the story ends well; one that failed has its
/// own tale to tell.
///
/// # Panics
/// When anything is wrong.
pub fn hold(sim: &Simulator) {
    if std::thread::panicking() {
        return;
    }
    let found = mistakes(sim);
    assert!(found.is_empty(), "against the SDK's types:\n{}", found.join("\n"));
}

mod tests {
    use super::*;

    fn call(method: &str, path: &str, body: &str, status: u16, answer: &Value) -> Value {
        json!({
            "method": method, "path": path, "query": "", "body": body, "status": status,
            "answer": answer.to_string(),
        })
    }

    #[test]
    fn what_the_sdk_would_not_send_is_found() {
        const EVENT: &str = "event_name=runs&payload[stripe_customer_id]=cus_1&payload[value]=3";
        let sent = |body: &str| {
            let error = json!({"error": {"type": "api_error", "message": "An error"}});
            judge([call("POST", "/v1/billing/meter_events", body, 500, &error)].into_iter())
        };
        assert_eq!(sent(EVENT), [""; 0]);
        for (body, found) in [
            (format!("{EVENT}&value=3"), "must NOT have additional properties value"),
            (EVENT.replace("payload", "paylod"), "must have required property 'payload'"),
            (format!("{EVENT}&timestamp=now"), "/timestamp must be number"),
        ] {
            let mistakes = sent(&body);
            assert!(mistakes.iter().any(|line| line.contains(found)), "{body}: {mistakes:?}");
        }
    }

    #[test]
    fn what_stripe_would_not_answer_is_found() {
        let unknown = json!({"error": {
            "type": "invalid_request_error", "code": "parameter_unknown", "message": "email",
        }});
        let card = json!({"id": "cus_1", "object": "card", "deleted": true});
        for (method, path, answer, status, found) in [
            ("POST", "/v1/customers", json!({"id": "cus_1"}), 200, "must have required property"),
            ("DELETE", "/v1/customers/cus_1", card, 200, "/object must be equal"),
            ("POST", "/v1/customers", unknown, 400, "is called unknown: email=a"),
        ] {
            let body = if method == "POST" { "email=a" } else { "" };
            let mistakes = judge([call(method, path, body, status, &answer)].into_iter());
            assert!(mistakes.iter().any(|line| line.contains(found)), "{mistakes:?}");
        }
        let nowhere = call("POST", "/v1/nothing", "", 200, &json!({}));
        assert!(judge([nowhere].into_iter())[0].ends_with("the SDK knows no such call"));
    }
}
