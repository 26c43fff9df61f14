//! C2SP tlog-tiles over HTTP: `/checkpoint`, `/tile/<L>/<N>[.p/<W>]`, `/tile/entries/<N>[.p/<W>]`.
//!
//! Serves what the published checkpoint covers and nothing beyond: a tile that was handed out to be cached for ever must
//! never change, and only what is certified never does. So the caller publishes certified checkpoints only. Nothing
//! here is secret, and nobody is asked who they are.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{
        StatusCode, Uri,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use quorate_core::tlog::{Checkpoint, Note, TilePath, TreeSize};
use tokio::sync::watch;

use super::{StoreError, TileReader};

/// C2SP tlog-tiles, Checkpoints: mutable, so not to be cached.
const CHECKPOINT_HEADERS: [(axum::http::HeaderName, &str); 2] =
    [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
/// C2SP tlog-tiles, Merkle Tree: immutable, partial tiles too, since each name has one content.
const TILE_HEADERS: [(axum::http::HeaderName, &str); 2] =
    [(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "public, max-age=31536000, immutable")];

/// Serves the store up to the checkpoint last published. An empty text means that there is none yet.
pub fn router(reader: TileReader, checkpoint: watch::Receiver<Arc<str>>) -> Router {
    Router::new()
        .route("/checkpoint", get(serve_checkpoint))
        .route("/tile/{*path}", get(serve_tile))
        .with_state(Served { reader, checkpoint })
}

#[derive(Clone)]
struct Served {
    reader: TileReader,
    checkpoint: watch::Receiver<Arc<str>>,
}

impl Served {
    fn note(&self) -> Arc<str> {
        Arc::clone(&self.checkpoint.borrow())
    }

    fn published_size(&self) -> Option<TreeSize> {
        let note = Note::parse(self.note().as_bytes()).ok()?;
        Some(Checkpoint::parse(note.text()).ok()?.size)
    }
}

async fn serve_checkpoint(State(served): State<Served>) -> Response {
    let note = served.note();
    if note.is_empty() {
        return (StatusCode::NOT_FOUND, "there is no certified checkpoint yet\n").into_response();
    }
    (CHECKPOINT_HEADERS, note.to_string()).into_response()
}

async fn serve_tile(State(served): State<Served>, uri: Uri) -> Response {
    let not_found = || (StatusCode::NOT_FOUND, "there is no such tile\n").into_response();
    // the raw path: no name of a tile needs percent-encoding
    let Some(path) = uri.path().strip_prefix('/').and_then(|path| path.parse::<TilePath>().ok()) else {
        return not_found();
    };
    let published = served.published_size().unwrap_or_default();
    if path.needs().is_none_or(|needs| needs > published) {
        return not_found();
    }
    let reader = served.reader;
    match tokio::task::spawn_blocking(move || reader.tile(&path)).await {
        Ok(Ok(bytes)) => (TILE_HEADERS, bytes).into_response(),
        Ok(Err(StoreError::Beyond { .. })) => not_found(),
        Ok(Err(error)) => {
            tracing::error!(tile = %path, error = &error as &dyn std::error::Error, "a tile could not be read");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        // only when the runtime shuts down
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, Bytes, to_bytes},
        http::Request,
    };
    use quorate_core::tlog::{KeyId, KeyName, NoteSignature, Origin};
    use tower::ServiceExt;

    use super::*;
    use crate::tilestore::tests::filled;

    fn note(size: u64, reader: &TileReader) -> Arc<str> {
        let root = reader.root_at(TreeSize(size)).unwrap();
        let checkpoint =
            Checkpoint { origin: Origin::new("quorate/test").unwrap(), size: TreeSize(size), root };
        let name = KeyName::new("quorate/test/node-1").unwrap();
        let line = NoteSignature { name, key_id: KeyId(1), bytes: vec![0; 72] };
        Note::new(checkpoint.body(), vec![line]).unwrap().to_string().into()
    }

    async fn fetch(router: &Router, path: &str) -> (StatusCode, String, String, Bytes) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let header = |name| response.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let (status, kind, cache) = (response.status(), header(CONTENT_TYPE), header(CACHE_CONTROL));
        (status, kind, cache, to_bytes(response.into_body(), 1 << 20).await.unwrap())
    }

    #[tokio::test]
    async fn serves_what_the_checkpoint_covers() {
        let (_dir, store) = filled(1000);
        let reader = store.reader();
        let (publish, checkpoint) = watch::channel(Arc::from(""));
        let router = router(reader.clone(), checkpoint);
        assert_eq!(fetch(&router, "/checkpoint").await.0, StatusCode::NOT_FOUND);
        assert_eq!(fetch(&router, "/tile/0/000").await.0, StatusCode::NOT_FOUND);

        let published = note(600, &reader);
        publish.send_replace(Arc::clone(&published));
        let (status, kind, cache, body) = fetch(&router, "/checkpoint").await;
        assert_eq!(
            (status, kind.as_str(), cache.as_str()),
            (StatusCode::OK, "text/plain; charset=utf-8", "no-cache")
        );
        assert_eq!(&body[..], published.as_bytes());
        for name in
            ["tile/0/001", "tile/entries/001", "tile/0/002.p/88", "tile/entries/002.p/88", "tile/1/000.p/2"]
        {
            let (status, kind, cache, body) = fetch(&router, &format!("/{name}")).await;
            assert_eq!(status, StatusCode::OK, "{name}");
            assert_eq!(kind, "application/octet-stream");
            assert_eq!(cache, "public, max-age=31536000, immutable");
            assert_eq!(body, reader.tile(&name.parse().unwrap()).unwrap(), "{name}");
        }
        // there, but not covered; nowhere; not names
        for name in [
            "tile/0/002",
            "tile/0/002.p/89",
            "tile/entries/002.p/89",
            "tile/1/000.p/3",
            "tile/1/000",
            "tile/9/000",
            "tile/0/0",
            "tile/0/000.p/256",
            "tile/0/%30%30%30",
            "tile/0/../0/000",
            "tile/entries/",
            "tile",
        ] {
            assert_eq!(fetch(&router, &format!("/{name}")).await.0, StatusCode::NOT_FOUND, "{name}");
        }
        publish.send_replace(note(1000, &reader));
        assert_eq!(fetch(&router, "/tile/0/002").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_damaged_file_is_our_fault() {
        let (dir, store) = filled(70_000);
        let reader = store.reader();
        let (_publish, checkpoint) = watch::channel(note(70_000, &reader));
        std::fs::write(dir.path().join("tile/0/000"), b"short").unwrap();
        let (status, _, cache, _) = fetch(&router(reader, checkpoint), "/tile/0/000").await;
        assert_eq!((status, cache.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, ""));
    }
}
