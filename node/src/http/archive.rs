//! What an auditor needs beside the tlog to replay it: `/genesis`, the first policy with its admins' signatures, and
//! `/blob/<hex SHA-256>`, the documents and measurement logs that leaves name. Both never change and are kept for ever.
use crate::blobs::BlobStore;
use crate::directory::PolicyChain;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quorate_core::crypto::encode;
use quorate_core::ids::PolicyVersion;
use quorate_core::state::Blobs;
use quorate_core::tlog::Hash;

const HEADERS: [(axum::http::HeaderName, &str); 2] =
    [(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "public, max-age=31536000, immutable")];

#[derive(Clone)]
struct Archive {
    blobs: BlobStore,
    chain: PolicyChain,
}

/// Serves what is kept here.
pub fn router(blobs: BlobStore, chain: PolicyChain) -> Router {
    Router::new()
        .route("/genesis", get(serve_genesis))
        .route("/blob/{digest}", get(serve_blob))
        .with_state(Archive { blobs, chain })
}

async fn serve_genesis(State(archive): State<Archive>) -> Response {
    match archive.chain.upto(PolicyVersion(1)).as_deref() {
        Some([genesis, ..]) => (HEADERS, encode(genesis)).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn serve_blob(State(archive): State<Archive>, Path(digest): Path<String>) -> Response {
    let not_found = || (StatusCode::NOT_FOUND, "there is no such blob\n").into_response();
    // One spelling, as the file's name.
    let Some(digest) = digest.parse::<Hash>().ok().filter(|parsed| parsed.to_string() == digest) else {
        return not_found();
    };
    let read = tokio::task::spawn_blocking(move || {
        archive.blobs.blob(&digest).or_else(|| archive.chain.document(&digest))
    });
    match read.await {
        Ok(Some(bytes)) => (HEADERS, bytes).into_response(),
        Ok(None) => not_found(),
        // Only when the runtime shuts down.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, Bytes, to_bytes};
    use axum::http::Request;
    use quorate_core::policy::SignedPolicy;
    use quorate_core::testing::Fleet;
    use tower::ServiceExt;

    async fn fetch(router: &Router, path: &str) -> (StatusCode, Bytes) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let immutable = response.headers().get(CACHE_CONTROL).is_some_and(|v| v == HEADERS[1].1);
        assert_eq!(immutable, response.status() == StatusCode::OK, "{path}");
        (response.status(), to_bytes(response.into_body(), 1 << 20).await.unwrap())
    }

    #[tokio::test]
    async fn serves_genesis_blobs_and_documents_and_never_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        let genesis: SignedPolicy = Fleet::new(4, 1, |_| ()).chain[0].clone();
        let blobs = BlobStore::open(folder.path()).unwrap();
        let chain = PolicyChain::open(&folder.path().join("policies"), genesis.clone()).unwrap();
        let router = router(blobs.clone(), chain);
        assert_eq!(fetch(&router, "/genesis").await, (StatusCode::OK, encode(&genesis).into()));
        let kept = blobs.put(b"an event log").unwrap();
        assert_eq!(fetch(&router, &format!("/blob/{kept}")).await.1, &b"an event log"[..]);
        let document = quorate_core::tlog::sha256(&genesis.document);
        assert_eq!(fetch(&router, &format!("/blob/{document}")).await.1, genesis.document);
        std::fs::write(folder.path().join("blobs").join(kept.to_string()), b"another").unwrap();
        let upper = document.to_string().to_uppercase();
        for name in [kept.to_string(), upper, "00".repeat(32), "owed".into(), "../policies".into()] {
            assert_eq!(fetch(&router, &format!("/blob/{name}")).await.0, StatusCode::NOT_FOUND, "{name}");
        }
    }
}
