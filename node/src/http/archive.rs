//! What an auditor needs beside the tlog to replay it: `/genesis`, the first policy with its admins' signatures, and
//! `/blob/<hex SHA-256>`, the documents and measurement logs that leaves name. Both never change and are kept for ever.
//!
//! Nobody is asked who they are and a blob may be large, so few are read at once ([`Bounds`]), and who reads slowly is cut off.
use crate::blobs::BlobStore;
use crate::directory::PolicyChain;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quorate_core::crypto::encode;
use quorate_core::ids::PolicyVersion;
use quorate_core::state::Blobs;
use quorate_core::tlog::Hash;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// What a body is handed over in: copies, so that a reader who stalls holds some of these and not the whole.
const CHUNK_BYTES: usize = 16 * 1024;

const HEADERS: [(axum::http::HeaderName, &str); 2] =
    [(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "public, max-age=31536000, immutable")];

/// How much is read for strangers.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Answers being read or written, each with a whole blob in memory.
    pub at_once: usize,
    /// How long a request waits to be one of them.
    pub turn: Duration,
    /// How long a body may take to be written.
    pub written: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        // 128 MiB at most; a mirror's sixteen connections get their turns; a minute is what an auditor waits for an answer.
        Self { at_once: 8, turn: Duration::from_secs(2), written: Duration::from_secs(60) }
    }
}

#[derive(Clone)]
struct Archive {
    blobs: BlobStore,
    chain: PolicyChain,
    bounds: Bounds,
    turns: Arc<Semaphore>,
}

/// Serves what is kept here.
pub fn router(blobs: BlobStore, chain: PolicyChain, bounds: Bounds) -> Router {
    let turns = Arc::new(Semaphore::new(bounds.at_once));
    Router::new()
        .route("/genesis", get(serve_genesis))
        .route("/blob/{digest}", get(serve_blob))
        .with_state(Archive { blobs, chain, bounds, turns })
}

async fn serve_genesis(State(archive): State<Archive>) -> Response {
    let read = |archive: &Archive| match archive.chain.upto(PolicyVersion(1)).as_deref() {
        Some([genesis, ..]) => Ok(encode(genesis)),
        _ => Err((StatusCode::INTERNAL_SERVER_ERROR, "genesis is not here\n")),
    };
    archive.answer(read).await
}

async fn serve_blob(State(archive): State<Archive>, Path(digest): Path<String>) -> Response {
    let not_found = (StatusCode::NOT_FOUND, "there is no such blob\n");
    // One spelling, as the file's name.
    let Some(digest) = digest.parse::<Hash>().ok().filter(|parsed| parsed.to_string() == digest) else {
        return not_found.into_response();
    };
    let read = move |archive: &Archive| {
        archive.blobs.blob(&digest).or_else(|| archive.chain.document(&digest)).ok_or(not_found)
    };
    archive.answer(read).await
}

impl Archive {
    /// What `read` gives, in its turn. The turn lasts until the body is written or given up, also when nobody waits any more.
    async fn answer(
        self,
        read: impl FnOnce(&Self) -> Result<Vec<u8>, (StatusCode, &'static str)> + Send + 'static,
    ) -> Response {
        let (bounds, turn) = (self.bounds, Arc::clone(&self.turns).acquire_owned());
        let Ok(Ok(turn)) = tokio::time::timeout(bounds.turn, turn).await else {
            let later = [(RETRY_AFTER, "5")];
            return (StatusCode::SERVICE_UNAVAILABLE, later, "too many are reading\n").into_response();
        };
        match tokio::task::spawn_blocking(move || (read(&self), turn)).await {
            Ok((Ok(bytes), turn)) => {
                let length = [(CONTENT_LENGTH, bytes.len().to_string())];
                (HEADERS, length, body(bytes, turn, bounds.written)).into_response()
            }
            Ok((Err(refused), _)) => refused.into_response(),
            // Only when the runtime shuts down.
            Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

/// A task owns the bytes, not the response: a connection that is stuck asks for nothing more, and nobody would see its time end.
fn body(bytes: Vec<u8>, turn: OwnedSemaphorePermit, within: Duration) -> Body {
    let (chunks, taken) = mpsc::channel(1);
    tokio::spawn(async move {
        let hand_over = async {
            for chunk in bytes.chunks(CHUNK_BYTES) {
                if chunks.send(Bytes::copy_from_slice(chunk)).await.is_err() {
                    break;
                }
            }
        };
        // Cut off, the body is shorter than its length: no reader takes it for the whole.
        let _cut_off = tokio::time::timeout(within, hand_over).await;
        drop(turn);
    });
    Body::from_stream(ReceiverStream::new(taken).map(Ok::<_, Infallible>))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
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
        let router = router(blobs.clone(), chain, Bounds::default());
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

    #[tokio::test]
    async fn few_read_at_once_and_a_slow_reader_loses_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let genesis: SignedPolicy = Fleet::new(4, 1, |_| ()).chain[0].clone();
        let blobs = BlobStore::open(folder.path()).unwrap();
        let chain = PolicyChain::open(&folder.path().join("policies"), genesis).unwrap();
        let blob = vec![7; 40 * CHUNK_BYTES + 1];
        let path = format!("/blob/{}", blobs.put(&blob).unwrap());
        let ask = async |router: &Router, path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };
        let whole = async |response: Response| to_bytes(response.into_body(), 1 << 20).await.unwrap();

        let (never, generous) = (Duration::from_secs(3600), Duration::from_secs(30));
        let bounds = Bounds { at_once: 2, turn: Duration::from_millis(50), written: never };
        let patient = router(blobs.clone(), chain.clone(), bounds);
        let (first, _second) = (ask(&patient, &path).await, ask(&patient, &path).await);
        assert_eq!(first.headers()[CONTENT_LENGTH], blob.len().to_string());
        for path in [path.as_str(), "/genesis"] {
            let refused = ask(&patient, path).await;
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(refused.headers().contains_key(RETRY_AFTER), "{path}");
        }
        assert_eq!(whole(first).await, blob);
        // Its turn ends with its last chunk, and so does one of a reader who goes away.
        let third = router(blobs.clone(), chain.clone(), Bounds { turn: generous, ..bounds });
        for _ in 0..3 {
            assert_eq!(whole(ask(&third, &path).await).await, blob);
            assert_eq!(ask(&third, &path).await.status(), StatusCode::OK);
        }

        let strict = Bounds { at_once: 1, turn: generous, written: Duration::from_millis(50) };
        let strict = router(blobs, chain, strict);
        let stuck = ask(&strict, &path).await;
        // Waits for its turn, which the stuck one has for a moment only.
        assert_eq!(ask(&strict, "/genesis").await.status(), StatusCode::OK);
        assert!(whole(stuck).await.len() <= 2 * CHUNK_BYTES);
    }
}
