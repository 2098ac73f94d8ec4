//! The rivals: the same HTTP server around other ways to count a run.
//!
//! Each reads the whole request, counts its run once and within the customer's limit, and answers
//! with as many bytes as the daemon does. All of them do less than the daemon: no periods, plans,
//! notices or metering windows, and customers that are there already.

pub mod file;
pub mod postgres;
pub mod redis;
pub mod sqlite;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::serve::ListenerExt;
use serde::Deserialize;
use tokio::net::TcpListener;

/// What every customer may use: never reached, so that every run is counted.
pub const GRANTED: i64 = 1_000_000_000;

/// A rival that this program itself can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rival {
    Constant,
    PostgresTransaction,
    PostgresStatement,
    RedisAof,
    SqliteTransaction,
    File,
}

/// How to run it. Every one takes what it needs of it.
#[derive(Debug, clap::Parser)]
pub struct Setting {
    pub rival: Rival,
    #[arg(long)]
    pub listen: SocketAddr,
    /// What is answered when a run was counted.
    #[arg(long)]
    pub answer: String,
    /// The PostgreSQL database.
    #[arg(long, default_value = "")]
    pub url: String,
    /// Where Redis listens.
    #[arg(long)]
    pub redis: Option<SocketAddr>,
    /// Where files go.
    #[arg(long, default_value = ".")]
    pub folder: PathBuf,
}

/// The part of the request that counts.
#[derive(Debug, Deserialize)]
pub struct Run {
    pub customer_id: String,
    pub idempotency_key: String,
    #[serde(default = "one")]
    pub required_balance: i64,
}

fn one() -> i64 {
    1
}

/// A way to count. Answers whether the run may go ahead: the first answer again for a key that was
/// there before.
pub trait Counter: Send + Sync + 'static {
    fn count(&self, run: Run) -> impl Future<Output = Result<bool>> + Send;
}

/// Serves until killed.
///
/// # Errors
/// When it cannot begin to.
pub fn serve(setting: &Setting) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let answer = Bytes::from(setting.answer.clone());
        let router = match setting.rival {
            Rival::Constant => {
                Router::new().fallback(async move |_: Bytes| json(StatusCode::OK, answer.clone()))
            }
            Rival::PostgresTransaction => {
                gate(answer, postgres::Transaction::connect(&setting.url).await?)
            }
            Rival::PostgresStatement => {
                gate(answer, postgres::Statement::connect(&setting.url).await?)
            }
            Rival::RedisAof => {
                let address = setting.redis.context("--redis is missing")?;
                gate(answer, redis::Redis::connect(address).await?)
            }
            Rival::SqliteTransaction => gate(answer, sqlite::Sqlite::open(&setting.folder).await?),
            Rival::File => gate(answer, file::Log::open(&setting.folder)?),
        };
        let listener = TcpListener::bind(setting.listen).await?;
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true); // a socket that refuses this works all the same
        });
        Ok(axum::serve(listener, router).await?)
    })
}

fn gate<C: Counter>(answer: Bytes, counter: C) -> Router {
    let counter = Arc::new(counter);
    let check = async move |body: Bytes| {
        let counted = match serde_json::from_slice(&body) {
            Ok(run) => counter.count(run).await,
            Err(error) => return json(StatusCode::BAD_REQUEST, error.to_string().into()),
        };
        match counted {
            Ok(true) => json(StatusCode::OK, answer.clone()),
            Ok(false) => json(StatusCode::OK, r#"{"allowed":false}"#.into()),
            Err(error) => json(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}").into()),
        }
    };
    Router::new().route("/v1/check", post(check))
}

fn json(status: StatusCode, body: Bytes) -> axum::response::Response {
    (status, [("content-type", "application/json")], body).into_response()
}
