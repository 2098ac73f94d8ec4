//! The official Stripe SDKs and CLI, run as judges: they sign, verify, and lead through what a
//! server that speaks Stripe's API must answer. The scripts are in `tests/sdk/`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tollgate::clock::Timestamp;

/// What the SDK says about a signature.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted { id: String },
    Refused { message: String },
}

/// The `Stripe-Signature` header that the SDK makes for a UTF-8 body.
pub async fn sign(secret: &str, at: Timestamp, body: &str) -> String {
    let seconds = at.seconds().to_string();
    expect_success(run("sign.mjs", &[secret, &seconds], body.as_bytes()).await)
}

/// Whether the SDK takes this header for this body, received at this moment.
pub async fn verify(secret: &str, header: &str, received_at: Timestamp, body: &[u8]) -> Verdict {
    let seconds = received_at.seconds().to_string();
    let line = expect_success(run("verify.mjs", &[secret, header, &seconds], body).await);
    let verdict: Value = serde_json::from_str(&line).expect("verify.mjs prints JSON");
    let text = |key: &str| verdict[key].as_str().unwrap_or_default().to_owned();
    if verdict["accepted"] == true {
        Verdict::Accepted { id: text("id") }
    } else {
        Verdict::Refused { message: text("message") }
    }
}

/// Walks a customer's life against the server at `base_url` (no path) and answers the ids it
/// made; `Err` is what surprised the SDK.
pub async fn drive(base_url: &str, key: &str) -> Result<Value, String> {
    made(run("drive.mjs", &[base_url, key], b"").await)
}

/// Leads through everything that provisioning and upgrades need, and answers the ids it made;
/// `Err` is what surprised the SDK.
pub async fn tour(base_url: &str, key: &str) -> Result<Value, String> {
    made(run("tour.mjs", &[base_url, key], b"").await)
}

/// Fetches a thin event that reports errors, and answers what it says of them.
pub async fn read_thin(base_url: &str, key: &str, id: &str) -> Result<Value, String> {
    made(run("thin.mjs", &[base_url, key, id], b"").await)
}

/// The essentials once more, by the SDK for Python.
pub async fn drive_python(base_url: &str, key: &str) -> Result<Value, String> {
    let python = folder().join(".venv/bin/python");
    assert!(python.exists(), "Stripe's SDK for Python is not installed: run scripts/test");
    let mut command = Command::new(python);
    command.arg("drive.py").args([base_url, key]);
    made(run_command(command, b"").await)
}

/// Has the official CLI bring about an event, as `stripe trigger` does; `Err` is its complaint.
pub async fn trigger(base_url: &str, key: &str, event: &str) -> Result<(), String> {
    let home = tempfile::tempdir().expect("a home for the CLI's settings");
    let mut command = Command::new(folder().join("node_modules/.bin/stripe"));
    command.args(["trigger", event, "--api-base", base_url, "--api-key", key]);
    command.env("HOME", home.path()).env("XDG_CONFIG_HOME", home.path());
    command.env("STRIPE_CLI_TELEMETRY_OPTOUT", "1");
    let output = run_command(command, b"").await;
    if output.status.success() { Ok(()) } else { Err(text(&output.stderr) + &text(&output.stdout)) }
}

/// What a script that ended well printed in its last line.
fn made(output: Output) -> Result<Value, String> {
    if !output.status.success() {
        return Err(text(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout).expect("the script prints JSON"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn expect_success(output: Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
}

/// Runs a script of `tests/sdk/` with node.
///
/// # Panics
/// When node or the SDK is not installed.
async fn run(script: &str, args: &[&str], input: &[u8]) -> Output {
    assert!(
        folder().join("node_modules/stripe").is_dir(),
        "the official Stripe SDK is not installed in tests/sdk/node_modules: run scripts/test"
    );
    let mut command = Command::new("node");
    command.arg(script).args(args);
    run_command(command, input).await
}

/// Runs a command in `tests/sdk/`, on a thread where it may block: the server it talks to may live
/// in this very runtime.
async fn run_command(mut command: Command, input: &[u8]) -> Output {
    command.current_dir(folder());
    let input = input.to_owned();
    tokio::task::spawn_blocking(move || run_blocking(command, &input)).await.expect("no panic")
}

fn run_blocking(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start ({error}): run scripts/test"));
    // A script that leaves early closes its input; what it says of that is in its output.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("node's output can be read")
}

mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use tollgate::clock::Clock;

    use super::*;
    use crate::harness::stripe::simulator;

    const SECRET: &str = "whsec_test";
    const BODY: &str = r#"{"id":"evt_1","object":"event","type":"invoice.paid","name":"Zoë"}"#;
    const SENT_AT: Timestamp = Timestamp::from_seconds(1_790_000_000);

    #[tokio::test]
    async fn the_sdk_accepts_its_own_signature_for_five_minutes() {
        let header = sign(SECRET, SENT_AT, BODY).await;
        for (age_s, accepted) in [(0, true), (300, true), (301, false)] {
            let received_at = SENT_AT.plus(Duration::from_secs(age_s));
            let verdict = verify(SECRET, &header, received_at, BODY.as_bytes()).await;
            assert_eq!(verdict == Verdict::Accepted { id: "evt_1".into() }, accepted, "{age_s} s");
        }
    }

    #[tokio::test]
    async fn the_sdk_refuses_an_altered_body_and_a_foreign_secret() {
        let header = sign(SECRET, SENT_AT, BODY).await;
        let altered = BODY.replace("evt_1", "evt_2");
        for (secret, body) in [(SECRET, altered.as_str()), ("whsec_other", BODY)] {
            let verdict = verify(secret, &header, SENT_AT, body.as_bytes()).await;
            assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_simulator_surprises_the_official_sdk_nowhere() {
        let simulator = simulator(Clock::manual(SENT_AT), "sk_test_walk").await;
        let made = drive(&simulator.base_url(), "sk_test_walk").await.expect("no surprise");
        assert!(made["subscription"].as_str().is_some_and(|id| id.starts_with("sub_")), "{made}");
        let error = drive(&simulator.base_url(), "sk_test_other").await.unwrap_err();
        assert!(error.contains("StripeAuthenticationError"), "{error}");
        simulator.stop().await;
    }

    #[tokio::test]
    async fn the_walk_fails_loudly_when_nobody_answers() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let error = drive(&format!("http://127.0.0.1:{port}"), "sk_test_x").await.unwrap_err();
        assert!(error.contains("ECONNREFUSED"), "{error}");
    }
}
