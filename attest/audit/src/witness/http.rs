//! The witness over HTTP: `POST /add-checkpoint` as C2SP tlog-witness has it, and for people and monitors what it cosigned last.
//! Requests are not authenticated beyond the checkpoint's signatures, as the specification has it.
use super::decide::{Answer, Witness};
use super::request::REQUEST_BYTES_MAX;
use super::state::log_id;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use quorate_core::crypto::Hash;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// For a body to arrive.
const BODY: Duration = Duration::from_secs(20);
const TEXT: &str = "text/plain; charset=utf-8";
/// C2SP tlog-witness: the type of a 409's body.
const SIZE: &str = "text/x.tlog.size";

/// Everything that a witness serves.
pub fn router(witness: Arc<Witness>) -> Router {
    Router::new()
        .route("/", get(about))
        .route("/add-checkpoint", post(add_checkpoint))
        .route("/{log}/checkpoint", get(last))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(witness)
}

async fn add_checkpoint(State(witness): State<Arc<Witness>>, body: Body) -> Response {
    // A body that is too long, too slow or cut off is a bad request like any other.
    let body = tokio::time::timeout(BODY, axum::body::to_bytes(body, REQUEST_BYTES_MAX)).await;
    let body = body.ok().and_then(Result::ok);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let decided = tokio::task::spawn_blocking(move || match body {
        Some(body) => witness.add_checkpoint(&body, now_s),
        None => Answer::Malformed(super::request::Malformed::Body),
    });
    match decided.await {
        Ok(answer) => respond(&answer),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn respond(answer: &Answer) -> Response {
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (kind, body) = match answer {
        Answer::Cosigned(line) => (TEXT, line.clone()),
        Answer::Conflict(size) | Answer::Forked(size, _) => (SIZE, format!("{size}\n")),
        Answer::Malformed(why) => (TEXT, format!("{why}\n")),
        Answer::UnknownLog => (TEXT, "this witness does not know the log\n".into()),
        Answer::NotSigned(why) => (TEXT, format!("{why}\n")),
        Answer::Inconsistent(why, _) => (TEXT, format!("{why}\n")),
        // Which file is nobody's business.
        Answer::Failed(_) => (TEXT, "the witness cannot store what it would cosign\n".into()),
    };
    log(answer);
    (status, [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], body).into_response()
}

/// What somebody should look at goes to standard error.
fn log(answer: &Answer) {
    match answer {
        Answer::Failed(error) => eprintln!("quorate-audit: error: {}", crate::cli::chain(error)),
        other => {
            if let Some(fork) = other.fork() {
                let what = if fork.proven { "a log FORKED" } else { "a log may have forked" };
                let kept = fork.kept.as_ref().map_or("enough are kept".into(), |p| p.display().to_string());
                eprintln!("quorate-audit: {what}: both checkpoints: {kept}");
            }
        }
    }
}

async fn last(State(witness): State<Arc<Witness>>, Path(id): Path<Hash>) -> Response {
    let Some(origin) = witness.origins().find(|origin| log_id(origin) == id).cloned() else {
        return (StatusCode::NOT_FOUND, "this witness does not know the log\n").into_response();
    };
    match tokio::task::spawn_blocking(move || witness.last(&origin)).await {
        Ok(Ok(Some(cosigned))) => {
            ([(CONTENT_TYPE, TEXT), (CACHE_CONTROL, "no-cache")], cosigned.note.to_string()).into_response()
        }
        Ok(Ok(None)) => (StatusCode::NOT_FOUND, "nothing was cosigned yet\n").into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn about(State(witness): State<Arc<Witness>>) -> String {
    let mut text = format!("a C2SP tlog-witness\nkey {}\n", witness.key().verifier_key());
    for origin in witness.origins() {
        let _to_memory = writeln!(text, "log {origin} /{}/checkpoint", log_id(origin));
    }
    text
}

/// 200 while the memory of each log can be read.
async fn health(State(witness): State<Arc<Witness>>) -> Response {
    let checked = tokio::task::spawn_blocking(move || {
        witness.origins().cloned().collect::<Vec<_>>().iter().all(|origin| witness.last(origin).is_ok())
    });
    match checked.await {
        Ok(true) => (StatusCode::OK, "ok\n").into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "a log's memory cannot be read\n").into_response(),
    }
}

async fn metrics(State(witness): State<Arc<Witness>>) -> Response {
    let mut text = String::from("# TYPE quorate_witness_answers counter\n");
    for (status, count) in &witness.counts.answers {
        let count = count.load(Ordering::Relaxed);
        let _to_memory = writeln!(text, "quorate_witness_answers_total{{status=\"{status}\"}} {count}");
    }
    let forks = witness.counts.forks.load(Ordering::Relaxed);
    let _to_memory =
        write!(text, "# TYPE quorate_witness_forks counter\nquorate_witness_forks_total {forks}\n# EOF\n");
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}
