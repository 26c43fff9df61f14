//! The node's plain HTTP service: the tlog's tiles and checkpoint, what replaying it takes, `/metrics`, `/healthz`. Public by
//! nature: nothing here is secret and nobody is asked who they are.
pub mod archive;

use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::services::mesh::NodeFacts;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::Arc;
use tokio::sync::watch;
use tower::ServiceExt;

/// OpenMetrics, as prometheus-client writes it.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Watched {
    ledger: Ledger,
    checkpoint: watch::Receiver<Arc<str>>,
    metrics: Arc<Metrics>,
    facts: Arc<dyn NodeFacts>,
}

/// Everything the node serves over HTTP. `checkpoint` holds the newest certified checkpoint as a signed note.
pub fn router(
    ledger: Ledger,
    checkpoint: watch::Receiver<Arc<str>>,
    metrics: Arc<Metrics>,
    facts: Arc<dyn NodeFacts>,
) -> Router {
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/healthz", get(serve_health))
        .fallback(serve_tlog)
        .with_state(Watched { ledger, checkpoint, metrics, facts })
}

/// The tile reader is taken anew for each request: an installed snapshot replaces the store.
async fn serve_tlog(State(watched): State<Watched>, request: Request) -> Response {
    let tiles = watched.ledger.tiles().as_ref().clone();
    match crate::tilestore::http::router(tiles, watched.checkpoint).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn serve_metrics(State(watched): State<Watched>) -> Response {
    match watched.metrics.scrape(&watched.ledger, watched.facts.as_ref()) {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// 200 while the node could serve a request, 503 and the reason otherwise.
async fn serve_health(State(watched): State<Watched>) -> Response {
    if let Some(reason) = watched.facts.failed() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("failed: {reason}\n")).into_response();
    }
    let view = watched.ledger.view();
    if view.dark {
        return (StatusCode::SERVICE_UNAVAILABLE, "dark: fewer than a quorum of nodes are attested\n")
            .into_response();
    }
    if !view.counts(watched.ledger.me(), watched.facts.boot(), crate::clock::now()) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not attested: this node's evidence does not count\n")
            .into_response();
    }
    (StatusCode::OK, "ok\n").into_response()
}
