//! Receipts on disk: one for each attempt that the log knows, and a chain that names all attempts of a request.
//!
//! Written behind the answer, when the log has settled the request. A chain holds ids, routes and what came of each
//! attempt; no content. What cannot be fetched stands in the chain with the reason. A request whose relay was lost is settled by
//! nobody: its receipt, of what is proven by then, is written all the same, and the chain says `"settled": false`.
use crate::attempt::{Came, Tried};
use crate::metrics::Metrics;
use crate::upstream::Upstream;
use quorate_client::Attempted;
use quorate_core::ids::RequestId;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Receipts fetched at once; each waits for a settlement.
const FETCHES_MAX: usize = 32;
/// Requests whose receipts are waited for; more are counted as failed.
const WAITING_MAX: usize = 4096;

/// Writes receipts to one folder.
pub(crate) struct Receipts {
    folder: PathBuf,
    fetching: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// What one request came to.
pub(crate) struct Chain {
    pub(crate) answered: Option<RequestId>,
    pub(crate) attempts: Vec<(Attempted, Came)>,
}

impl Chain {
    /// Of the attempts of a request.
    pub(crate) fn new(answered: Option<RequestId>, tried: &[Tried]) -> Self {
        let each = |t: &Tried| {
            let came = t.came;
            let attempts = t.trail.attempts();
            let last = attempts.len();
            // All but the last of a target's were refused, or lost, and tried again by the client itself.
            attempts
                .into_iter()
                .enumerate()
                .map(move |(at, a)| (a, if at + 1 == last { came } else { Came::Failed }))
        };
        Self { answered, attempts: tried.iter().flat_map(each).collect() }
    }

    /// All ids, oldest first.
    pub(crate) fn ids(&self) -> String {
        self.attempts.iter().map(|(a, _)| a.request.to_string()).collect::<Vec<_>>().join(",")
    }
}

impl Receipts {
    /// Makes the folder if it is not there.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            fetching: Arc::new(Semaphore::new(FETCHES_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            tasks: TaskTracker::new(),
        })
    }

    /// Begins to fetch and write, in the background.
    pub(crate) fn write(&self, upstream: Arc<dyn Upstream>, metrics: Arc<Metrics>, chain: Chain) {
        let Ok(waiting) = self.waiting.clone().try_acquire_owned() else {
            metrics.receipts_failed.inc();
            return;
        };
        let (folder, fetching) = (self.folder.clone(), self.fetching.clone());
        self.tasks.spawn(async move {
            let _waiting = waiting;
            let Ok(_fetching) = fetching.acquire().await else { return };
            let each = chain
                .attempts
                .iter()
                .map(|(attempted, came)| entry(upstream.as_ref(), &metrics, &folder, attempted, *came));
            let attempts = futures::future::join_all(each).await;
            let Some(name) = chain.answered.or(chain.attempts.last().map(|(a, _)| a.request)) else { return };
            let text = json!({
                "quorate": "receipt chain v1",
                "answered": chain.answered.map(|id| id.to_string()),
                "attempts": attempts,
            });
            put(&metrics, folder.join(format!("{name}.chain.json")), format!("{text:#}\n")).await;
        });
    }

    /// Waits for those that were begun.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn entry(
    upstream: &dyn Upstream,
    metrics: &Metrics,
    folder: &Path,
    attempted: &Attempted,
    came: Came,
) -> serde_json::Value {
    let id = attempted.request;
    let name = format!("{id}.receipt");
    let answered = matches!(came, Came::Answered | Came::Status(_));
    let receipt = match upstream.receipt(id, answered).await {
        Ok((text, settled)) => match (put(metrics, folder.join(&name), text).await, settled) {
            (true, true) => json!({"receipt": name}),
            (true, false) => json!({"receipt": name, "settled": false}),
            (false, _) => json!({"missing": "it could not be written"}),
        },
        Err(error) => {
            metrics.receipts_failed.inc();
            json!({"missing": error.code()})
        }
    };
    let mut entry = json!({
        "request": id.to_string(),
        "route": attempted.route.as_str(),
        "relay": attempted.relay.to_string(),
        "keyer": attempted.keyer.to_string(),
        "came_to": came_to(came),
    });
    if let (Some(entry), serde_json::Value::Object(receipt)) = (entry.as_object_mut(), receipt) {
        entry.extend(receipt);
    }
    entry
}

/// As it stands in chains and metrics.
pub(crate) fn came_to(came: Came) -> &'static str {
    match came {
        Came::Pending => "pending",
        Came::Answered => "answered",
        Came::Status(_) => "error_status",
        Came::Failed => "failed",
        Came::NoConnection => "no_connection",
        Came::NoAnswer => "no_answer",
        Came::Outrun => "outrun",
    }
}

/// Whole or not at all: whoever reads the folder sees no half file.
async fn put(metrics: &Metrics, path: PathBuf, text: String) -> bool {
    let part = path.with_extension("part");
    let written = async {
        tokio::fs::write(&part, text).await?;
        tokio::fs::rename(&part, &path).await
    };
    match written.await {
        Ok(()) => {
            metrics.receipts_written.inc();
            true
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a receipt could not be written");
            metrics.receipts_failed.inc();
            false
        }
    }
}
