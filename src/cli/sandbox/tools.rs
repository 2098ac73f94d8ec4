//! The sandbox's own server: the clock, to read and to move, and the mails it caught.
//!
//! - `GET /clock` answers `{"now": …}`; `POST /clock {"advance": "1d"}` moves it (s, m, h, d).
//! - `GET /mail` lists the caught mails; `GET /mail/{file}` is one of them, as it was sent.

use std::path::PathBuf;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::domain::plan::parse_duration;

#[derive(Clone)]
struct Tools {
    clock: Clock,
    mail_dir: PathBuf,
}

pub async fn serve(listener: TcpListener, clock: Clock, mail_dir: PathBuf) -> std::io::Result<()> {
    let router = Router::new()
        .route("/clock", get(read_clock).post(move_clock))
        .route("/mail", get(list_mail))
        .route("/mail/{file}", get(read_mail))
        .with_state(Tools { clock, mail_dir });
    axum::serve(listener, router).await
}

async fn read_clock(State(tools): State<Tools>) -> Json<Value> {
    Json(json!({"now": tools.clock.now()}))
}

/// The longest step: beyond a year, stories make no sense.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

// Not through `Json`, so that curl's `-d` needs no content type beside it.
async fn move_clock(
    State(tools): State<Tools>,
    body: String,
) -> Result<Json<Value>, (StatusCode, String)> {
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let by = body["advance"].as_str().and_then(parse_duration);
    match by.filter(|by| *by <= LONGEST) {
        Some(by) => Ok(Json(json!({"now": tools.clock.advance(by)}))),
        None => {
            let wanted =
                "the body must be {\"advance\": \"…\"}, at most 366d, such as 90s, 5m, 12h or 1d\n";
            Err((StatusCode::UNPROCESSABLE_ENTITY, wanted.to_owned()))
        }
    }
}

async fn list_mail(State(tools): State<Tools>) -> Json<Value> {
    let mails: Vec<_> = super::actors::caught_mails(&tools.mail_dir)
        .into_iter()
        .map(|mail| json!({"file": mail.file, "subject": mail.subject, "to": mail.to}))
        .collect();
    Json(json!({"data": mails}))
}

async fn read_mail(State(tools): State<Tools>, Path(file): Path<String>) -> Response {
    // Only what is listed can be read, so no path can lead out of the folder.
    let listed =
        super::actors::caught_mails(&tools.mail_dir).into_iter().any(|mail| mail.file == file);
    match std::fs::read(tools.mail_dir.join(&file)) {
        Ok(mail) if listed => ([(header::CONTENT_TYPE, "message/rfc822")], mail).into_response(),
        _ => (StatusCode::NOT_FOUND, "there is no such mail\n").into_response(),
    }
}
