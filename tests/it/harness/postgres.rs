//! Empty databases for tests, and the macro that runs one test on both kinds.

use std::path::PathBuf;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use tollgate::clock::Clock;
use tollgate::entropy::Entropy;

/// Writes a test once and runs it on SQLite and on PostgreSQL, each time in a new empty database:
///
/// ```ignore
/// both_databases! {
///     async fn a_customer_is_found_again(db: TestDb) {
///         let store = Store::open(&db.url).await.unwrap();
///         …
///     }
/// }
/// ```
///
/// It makes a module of the test's name with the tests `sqlite` and `postgres` in it.
macro_rules! both_databases {
    ($($(#[$meta:meta])* async fn $name:ident($db:ident: TestDb) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test uses what is around it")]
            use super::*;

            $(#[$meta])*
            async fn test($db: $crate::harness::postgres::TestDb) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                test($crate::harness::postgres::TestDb::sqlite()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                test($crate::harness::postgres::TestDb::postgres().await).await;
            }
        }
    )+};
}

/// The name of SQLite's file in its folder.
const SQLITE_FILE: &str = "tollgate.db";

/// An empty database, removed when this is dropped.
pub struct TestDb {
    /// What `DATABASE_URL` would say.
    pub url: String,
    kind: Kind,
}

enum Kind {
    /// The folder the file is in; gone with it.
    Sqlite {
        folder: TempDir,
    },
    Postgres,
}

impl TestDb {
    pub fn sqlite() -> Self {
        let (folder, url) = fresh_sqlite();
        Self { url, kind: Kind::Sqlite { folder } }
    }

    /// Where SQLite keeps it, be it there already or not.
    pub fn sqlite_file(&self) -> PathBuf {
        match &self.kind {
            Kind::Sqlite { folder } => folder.path().join(SQLITE_FILE),
            Kind::Postgres => panic!("PostgreSQL keeps it where it likes"),
        }
    }

    pub async fn postgres() -> Self {
        Self { url: fresh_database().await, kind: Kind::Postgres }
    }

    /// Ends every connection to the database but its own, as a PostgreSQL that restarts does.
    pub async fn hang_up_on_everyone(&self) {
        let mut killer = PgConnection::connect(&self.url).await.expect("the database is there");
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .execute(&mut killer)
        .await
        .expect("a superuser may");
    }

    /// For the few tests that must know, such as one about row locks.
    pub fn is_postgres(&self) -> bool {
        matches!(self.kind, Kind::Postgres)
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if self.is_postgres() {
            let url = self.url.clone();
            // A thread of its own, because a runtime may not be blocked on from inside another.
            let dropped = std::thread::spawn(move || drop_database(&url)).join();
            // The cluster is thrown away anyway, so a failure here must not hide the test's own.
            if !matches!(dropped, Ok(Ok(()))) {
                eprintln!("a test database was left behind: {dropped:?}");
            }
        }
    }
}

/// The URL of a file that is not there yet, and the folder it will be in.
pub fn fresh_sqlite() -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("the system's folder for temporary files is writable");
    let url = format!("sqlite://{}", folder.path().join(SQLITE_FILE).display());
    (folder, url)
}

/// The URL of a new, empty PostgreSQL database of its own.
///
/// # Panics
/// Without `TEST_POSTGRES_URL`, or when its server refuses.
pub async fn fresh_database() -> String {
    let server = server_url();
    let name = Entropy::system().id("test", Clock::system().now());
    run_on(&server, format!("CREATE DATABASE {name} TEMPLATE template0"))
        .await
        .unwrap_or_else(|error| panic!("no test database on TEST_POSTGRES_URL: {error}"));
    let mut url = server;
    url.set_path(&name);
    url.into()
}

fn server_url() -> reqwest::Url {
    let url = std::env::var("TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!(
            "this test needs PostgreSQL and TEST_POSTGRES_URL is not set: run scripts/test, \
             which starts one, or set it to a superuser's URL"
        )
    });
    url.parse().expect("TEST_POSTGRES_URL is a URL")
}

async fn run_on(server: &reqwest::Url, sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(server.as_str()).await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

fn drop_database(url: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url: reqwest::Url = url.parse()?;
    let name = url.path().trim_start_matches('/').to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // FORCE: the test's own pool may still hold connections.
    let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
    Ok(runtime.block_on(run_on(&server_url(), sql))?)
}

mod tests {
    use sqlx::AnyConnection;
    use sqlx::any::install_default_drivers;

    use super::*;

    async fn open(db: &TestDb) -> AnyConnection {
        install_default_drivers();
        let mode = if db.is_postgres() { "" } else { "?mode=rwc" };
        AnyConnection::connect(&format!("{}{mode}", db.url)).await.unwrap()
    }

    both_databases! {
        async fn a_test_database_is_empty_and_shared_with_no_other(db: TestDb) {
            let other = if db.is_postgres() { TestDb::postgres().await } else { TestDb::sqlite() };
            for db in [&db, &other] {
                // Fails if the table is there already.
                let mut connection = open(db).await;
                sqlx::raw_sql("CREATE TABLE mine (id BIGINT)")
                    .execute(&mut connection)
                    .await
                    .unwrap();
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_postgres_database_is_gone_after_its_test_even_with_a_connection_open() {
        let db = TestDb::postgres().await;
        let url = db.url.clone();
        let _still_open = open(&db).await;
        drop(db);
        let error = PgConnection::connect(&url).await.expect_err("it is gone");
        assert!(error.to_string().contains("does not exist"), "{error}");
    }
}
