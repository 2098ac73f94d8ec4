//! The built program as its users run it: a process of its own with nothing in its environment but
//! what the test says, in a folder of its own.
//!
//! Waiting for a process is waiting for the outside, so it looks again every few milliseconds;
//! nothing here decides anything by how long that took.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::postgres::TestDb;
use super::world::{ADMIN_TOKEN, API_KEY, Reply};

/// How often to look, and how many times before giving up: half a minute.
const PAUSE: Duration = Duration::from_millis(10);
const LOOKS: usize = 3000;

/// Looks again and again until there is something to see.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS {
        if let Some(seen) = look().await {
            return seen;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("{what}: not within {} s", (PAUSE * LOOKS as u32).as_secs());
}

/// A machine to run the program on: its folder, where it starts, and its environment.
pub struct Machine {
    folder: TempDir,
    env: BTreeMap<String, String>,
}

impl Machine {
    /// No variable set, no file there.
    pub fn bare() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the process");
        Self { folder, env: BTreeMap::new() }
    }

    /// Ready for `serve` on this database: the example's plans, an API key and an admin token.
    pub fn on(db: &TestDb) -> Self {
        let mut machine = Self::bare();
        machine.write("plans.toml", include_str!("../../../plans.example.toml"));
        machine.set("DATABASE_URL", &db.url);
        machine.set("TOLLGATE_API_KEY", API_KEY);
        machine.set("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN);
        // Several run at once; which port it got is in the log.
        machine.set("TOLLGATE_LISTEN", "127.0.0.1:0");
        machine
    }

    pub fn set(&mut self, variable: &str, value: &str) {
        self.env.insert(variable.to_owned(), value.to_owned());
    }

    pub fn unset(&mut self, variable: &str) {
        self.env.remove(variable);
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).expect("the process's folder is writable");
    }

    /// Starts the program and leaves it running.
    pub fn spawn(&self, args: &[&str]) -> Process {
        // Files and not pipes, which would fill up while nobody reads.
        let output = tempfile::tempdir().expect("a folder for the output");
        let file = |name: &str| File::create(output.path().join(name)).expect("a writable folder");
        let child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .expect("the program starts");
        Process { child, output }
    }

    /// Runs the program to its end.
    pub async fn run(&self, args: &[&str]) -> Finished {
        self.spawn(args).finish().await
    }

    /// Starts the daemon and waits until it is ready.
    pub async fn serve(&self) -> Daemon {
        let mut process = self.spawn(&["serve"]);
        let address = wait_for("the daemon listens", async || {
            let log = process.stderr();
            if let Some(status) = process.ended() {
                panic!("the daemon does not start ({status}): {log}");
            }
            let (_, rest) = log.split_once("listening address=")?;
            rest.split_once(char::is_whitespace).map(|(address, _)| address.to_owned())
        })
        .await;
        let api = Api::at(&address);
        api.is_ready().await;
        Daemon { process, api }
    }
}

/// A running program; killed when this is dropped.
pub struct Process {
    child: Child,
    output: TempDir,
}

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.child.id())])
            .status()
            .expect("a shell");
        assert!(status.success(), "the signal {name} is not sent: {status}");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    pub fn stdout(&self) -> String {
        self.read("out")
    }

    pub fn stderr(&self) -> String {
        self.read("err")
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.output.path().join(name)).expect("its output is there");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for its end.
    pub async fn finish(mut self) -> Finished {
        let status = wait_for("the program ends", async || self.ended()).await;
        Finished { code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }

    /// `kill -9`, and the process is gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        let status = self.child.wait().expect("a child can be waited for");
        assert_eq!(status.signal(), Some(9), "it was gone before it was killed: {}", self.stderr());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running daemon that answers.
pub struct Daemon {
    pub process: Process,
    pub api: Api,
}

impl Daemon {
    /// Stops it as a supervisor would and asserts that it ends in good order.
    pub async fn stop(self) -> Finished {
        self.process.signal("TERM");
        let finished = self.process.finish().await;
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished
    }
}

/// The way to a daemon, whoever runs it.
#[derive(Clone)]
pub struct Api {
    /// `127.0.0.1:…`
    pub address: String,
    http: reqwest::Client,
}

impl Api {
    pub fn at(address: &str) -> Self {
        // Fails only if there is one already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        Self { address: address.to_owned(), http: reqwest::Client::new() }
    }

    async fn is_ready(&self) {
        wait_for("the daemon is ready", async || {
            let ready = self.call("GET", "/readyz", &Value::Null).await.ok()?;
            (ready.status == 200).then_some(())
        })
        .await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Calls the API with the product's key; an error if no whole answer came.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> reqwest::Result<Reply> {
        self.call_as(API_KEY, method, path, body).await
    }

    /// Calls the API with any key; no body if it is null.
    pub async fn call_as(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: &Value,
    ) -> reqwest::Result<Reply> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let method: reqwest::Method = method.parse().expect("a method");
        let request = self.http.request(method, self.url(path)).bearer_auth(key).body(body);
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Reply { status, body })
    }

    /// The body of an answer that must be a 200.
    pub async fn ok(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call(method, path, body).await.expect("the daemon answers").ok()
    }
}
