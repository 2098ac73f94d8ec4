//! The servers under load: each a process of its own (two for two replicas), with data of its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::load::{self, Callers, Outcome};
use crate::request::{API_KEY, CUSTOMERS, Checks, WEBHOOK_SECRET, Webhooks};
use crate::rivals::{self, Rival};
use crate::{database, machine};

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(30);

/// The same limit for everyone, never reached, so that every run is counted.
const PLANS: &str = r#"
default_plan = "team"
[features.ai_runs]
name = "AI runs"
unit = "run"
[[plans]]
id = "team"
name = "Team"
rank = 1
limits.ai_runs = { granted = 1000000000, enforcement = "hard", nudge_at_percent = [80] }
"#;

/// What the servers are started with.
pub struct Place {
    /// On the disk that is measured.
    pub folder: PathBuf,
    /// A superuser's URL of the PostgreSQL server, ending with a database's name.
    pub postgres: String,
    /// What the rivals answer: the daemon's answer.
    pub answer: String,
}

/// What there is to compare, in the order of the table: a name, and what an answered run survives.
pub const RIVALS: [(&str, &str); 10] = [
    ("constant", "nothing is stored"),
    ("redis-aof", "one fsync per turn of Redis's event loop (AOF always)"),
    ("postgres-statement", "fsync at commit, which PostgreSQL shares between sessions"),
    ("postgres-transaction", "fsync at commit, which PostgreSQL shares between sessions"),
    ("node-pg", "fsync at commit, which PostgreSQL shares between sessions"),
    ("sqlite-transaction", "one fsync per run (WAL, synchronous FULL)"),
    ("file", "one fdatasync per batch; no database"),
    ("tollgate-sqlite", "one fsync per batch (WAL, synchronous FULL)"),
    ("tollgate-postgres", "one fsync per batch, at commit"),
    ("tollgate-postgres-2", "one fsync per batch and replica, at commit"),
];

/// Where a server keeps its runs.
pub enum Data {
    Nowhere,
    Files(PathBuf),
    Postgres(String),
}

pub struct Server {
    pub addresses: Vec<SocketAddr>,
    pub data: Data,
    processes: Vec<Process>,
    /// The number of its next request: numbers make idempotency keys, so none comes twice.
    next_number: u64,
}

/// What is asked of a server.
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// Runs of so many customers in turn.
    Checks(u64),
    /// Signed webhooks.
    Webhooks,
}

impl Server {
    /// One of [`RIVALS`].
    pub fn start(place: &Place, name: &str) -> Result<Self> {
        let folder = place.folder.join(name);
        fs::create_dir(&folder)?;
        let database = || create_database(place, name);
        match name {
            "tollgate-sqlite" => Self::daemon(&folder, Data::Files(folder.clone()), 1),
            "tollgate-postgres" => Self::daemon(&folder, Data::Postgres(database()?), 1),
            "tollgate-postgres-2" => Self::daemon(&folder, Data::Postgres(database()?), 2),
            "node-pg" => {
                let url = database()?;
                database::run(rivals::postgres::create_tables(&url))?;
                Self::node(place, &folder, url)
            }
            "postgres-statement" | "postgres-transaction" => {
                let url = database()?;
                database::run(rivals::postgres::create_tables(&url))?;
                Self::rival(place, name, &folder, Data::Postgres(url))
            }
            "constant" => Self::rival(place, name, &folder, Data::Nowhere),
            _ => Self::rival(place, name, &folder, Data::Files(folder.clone())),
        }
        .with_context(|| format!("{name} does not start"))
    }

    /// The daemon, on a database that is there already or not.
    pub fn daemon(folder: &Path, data: Data, replicas: usize) -> Result<Self> {
        let mut server = Self::on(data);
        fs::write(folder.join("plans.toml"), PLANS)?;
        for _ in 0..replicas {
            let address = free_address()?;
            let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
            command
                .arg("serve")
                .current_dir(folder) // no .env of the project's
                .env_clear()
                .env("DATABASE_URL", server.data.url())
                .env("TOLLGATE_LISTEN", address.to_string())
                .env("TOLLGATE_API_KEY", API_KEY)
                .env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
            server.add(command, &folder.join("log"), address)?;
        }
        Ok(server)
    }

    fn node(place: &Place, folder: &Path, url: String) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new("node");
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rivals/server.mjs"))
            .env("DATABASE_URL", &url)
            .env("LISTEN", address.to_string())
            .env("ANSWER", &place.answer);
        let mut server = Self::on(Data::Postgres(url));
        server.add(command, &folder.join("log"), address)?;
        Ok(server)
    }

    fn rival(place: &Place, name: &str, folder: &Path, data: Data) -> Result<Self> {
        let mut server = Self::on(data);
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["rival", name, "--listen", &address.to_string(), "--answer", &place.answer])
            .arg("--folder")
            .arg(folder);
        if let Data::Postgres(url) = &server.data {
            command.args(["--url", url]);
        }
        if Rival::from_str(name, false) == Ok(Rival::RedisAof) {
            let redis = free_address()?;
            command.args(["--redis", &redis.to_string()]);
            server.add(redis_server(folder, redis), &folder.join("redis.log"), redis)?;
            server.addresses.clear(); // it is not what the load asks
        }
        server.add(command, &folder.join("log"), address)?;
        Ok(server)
    }

    fn on(data: Data) -> Self {
        Self { addresses: Vec::new(), data, processes: Vec::new(), next_number: 0 }
    }

    fn add(&mut self, command: Command, log: &Path, address: SocketAddr) -> Result<()> {
        let mut process = Process::start(command, log)?;
        process.wait_until_listening(address, log)?;
        self.processes.push(process);
        self.addresses.push(address);
        Ok(())
    }

    /// Makes customers of those who will ask. The rivals have theirs.
    pub fn introduce(&mut self, customers: u64) -> Result<u64> {
        let numbers = self.next_number..self.next_number + customers;
        self.next_number = numbers.end;
        let mut requests = Checks::introducing(customers, numbers);
        let callers = self.connect(16)?;
        let outcome = callers.run(&mut requests, Duration::ZERO, Duration::from_secs(60))?;
        ensure!(outcome.accepted == customers, "only {} customers were made", outcome.accepted);
        Ok(outcome.accepted)
    }

    /// Lets each customer ask once more, as far as the time goes. Answers how many have.
    pub fn ask_each(&mut self, customers: u64, callers: Callers, longest: Duration) -> Result<u64> {
        // At a multiple of their number a new turn begins.
        let begin = self.next_number.next_multiple_of(customers);
        let mut requests = Checks::counting(customers, begin..begin + customers);
        let outcome = callers.run(&mut requests, Duration::ZERO, longest)?;
        self.next_number = requests.next_number();
        Ok(outcome.accepted)
    }

    pub fn connect(&self, connections: usize) -> Result<Callers> {
        Callers::connect(&self.addresses, connections)
    }

    /// Loads the server.
    pub fn load(
        &mut self,
        ask: Ask,
        callers: Callers,
        warm_up: Duration,
        measured: Duration,
    ) -> Result<Outcome> {
        match ask {
            Ask::Checks(customers) => {
                let mut requests = Checks::counting(customers, self.next_number..u64::MAX);
                let outcome = callers.run(&mut requests, warm_up, measured);
                self.next_number = requests.next_number();
                outcome
            }
            Ask::Webhooks => {
                let mut requests = Webhooks::signed_now(self.next_number);
                let outcome = callers.run(&mut requests, warm_up, measured);
                self.next_number = requests.next_number();
                outcome
            }
        }
    }

    /// How many requests it has been sent.
    pub fn asked(&self) -> u64 {
        self.next_number
    }

    /// Its own processes; PostgreSQL's are nobody's.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(|process| process.0.id())
    }

    /// Adds up what a measure says of its processes.
    pub fn sum(&self, measure: fn(u32) -> Result<f64>) -> Result<f64> {
        self.pids().map(measure).sum()
    }

    /// The bytes its data takes when the write-ahead log has gone into the tables; nothing is
    /// vacuumed.
    pub fn stored_bytes(&self) -> Result<u64> {
        match &self.data {
            Data::Nowhere => Ok(0),
            Data::Postgres(url) => database::postgres_bytes(url),
            Data::Files(folder) => {
                for entry in fs::read_dir(folder)? {
                    let path = entry?.path();
                    if path.extension().is_some_and(|ending| ending == "db") {
                        database::checkpoint(&path)?;
                    }
                }
                let not_data = ["plans.toml", "log", "redis.log"];
                machine::bytes_in(folder, &|name| {
                    !(not_data.contains(&name) || name.ends_with("-wal") || name.ends_with("-shm"))
                })
            }
        }
    }

    /// Ends it in good order, so that its data can be written to, and answers with its data.
    pub fn stop(mut self) -> Result<Data> {
        for process in &mut self.processes {
            let pid = process.0.id().to_string();
            ensure!(Command::new("kill").arg(pid).status()?.success(), "kill failed");
            process.0.wait()?;
        }
        Ok(self.data)
    }

    /// Goes on where another server on the same data had come to.
    pub fn having_asked(mut self, asked: u64) -> Self {
        self.next_number = asked;
        self
    }

    /// Kills it at once, like a power cut.
    pub fn kill(self) -> Data {
        self.data
    }
}

impl Data {
    /// As the daemon's `DATABASE_URL`.
    pub fn url(&self) -> String {
        match self {
            Self::Nowhere => String::new(),
            Self::Files(folder) => format!("sqlite://{}/tollgate.db", folder.display()),
            Self::Postgres(url) => url.clone(),
        }
    }
}

/// A child that does not outlive this value.
struct Process(Child);

impl Process {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("{} cannot run", program.display()))?;
        Ok(Self(child))
    }

    fn wait_until_listening(&mut self, address: SocketAddr, log: &Path) -> Result<()> {
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = self.0.try_wait()?;
            if ended.is_some() || began.elapsed() > START {
                bail!("it said: {}", fs::read_to_string(log).unwrap_or_default());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis_server(folder: &Path, address: SocketAddr) -> Command {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
        .arg("--dir")
        .arg(folder);
    command
}

/// A new database on the PostgreSQL server; its URL.
pub fn create_database(place: &Place, name: &str) -> Result<String> {
    let part = place.folder.file_name().unwrap_or_default().display().to_string();
    let name = format!("{part}_{name}").replace(['-', '.'], "_").to_ascii_lowercase();
    database::execute(&place.postgres, format!("CREATE DATABASE {name}"))?;
    let (server, _) = place.postgres.rsplit_once('/').context("the URL names no database")?;
    Ok(format!("{server}/{name}"))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What the daemon answers when it has counted a run.
pub fn answer_of(daemon: &Server) -> Result<String> {
    let body = format!(
        r#"{{"customer_id":"{}","feature_id":"ai_runs","send_event":true,"customer_data":{{}}}}"#,
        crate::request::customer_id(CUSTOMERS)
    );
    load::ask_once(daemon.addresses[0], &crate::request::check(&body))
}
