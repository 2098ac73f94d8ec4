//! schemathesis, run as a judge: it reads the OpenAPI document of a running daemon, sends what the
//! document allows and what it does not, and holds every answer against it. What it needs to know
//! beside the document is in `tests/openapi/`.

use std::path::Path;
use std::process::{Command, Output};

use super::world::{ADMIN_TOKEN, API_KEY};

/// What is there for it to meet, by the names that `tests/openapi/hooks.py` knows; each is a list
/// with spaces between.
pub struct There {
    pub customers: String,
    pub reservations: String,
    pub tokens: String,
}

/// What it says against the daemon at `url` (no path); an error if it found anything.
///
/// # Panics
/// When schemathesis is not installed.
pub async fn judge(url: &str, there: &There) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    let program = folder.join(".venv/bin/schemathesis");
    assert!(
        program.is_file(),
        "schemathesis is not installed in tests/openapi/.venv: run scripts/test, or yourself \
         python3 -m venv tests/openapi/.venv && \
         tests/openapi/.venv/bin/pip install -r tests/openapi/requirements.txt"
    );
    let mut command = Command::new(program);
    command
        .current_dir(&folder)
        .args(["--no-color", "--config-file", "schemathesis.toml", "run"])
        .arg(format!("{url}/openapi.json"))
        .env("API_KEY", API_KEY)
        .env("ADMIN_TOKEN", ADMIN_TOKEN)
        .env("CUSTOMERS", &there.customers)
        .env("RESERVATIONS", &there.reservations)
        .env("TOKENS", &there.tokens)
        // Nothing is written beside the sources.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    // On a thread where it may block: whom the daemon talks to may live in this very runtime.
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let Output { status, stdout, stderr } = output.expect("schemathesis starts");
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(()) } else { Err(said) }
}
