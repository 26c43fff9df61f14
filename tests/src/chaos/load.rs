//! Applications that ask through all of it, and keep what they sent and what they were told: what was answered must be in the
//! log, and what reached the provider must have been theirs and authorised.
use aws_lc_rs::digest;
use quorate_client::{Client, Request, Target, Trail};
use quorate_core::ids::RequestId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

/// A request that has not ended by then hangs: the SDK's own bounds are shorter.
const HANG: Duration = Duration::from_secs(60);
/// The longest a request may run, by its own word.
const LONGEST: Duration = Duration::from_secs(20);

/// One request of an application.
pub(super) struct Asked {
    /// SHA-256 of its body, hex: no two are the same.
    pub(super) body: String,
    /// Its attempts.
    pub(super) trail: Trail,
    /// When it was begun, and when it ended.
    pub(super) times: (Instant, Instant),
    /// The attempt that was answered with the whole of the answer, or the stable code of the error.
    pub(super) outcome: Result<RequestId, String>,
}

/// All applications.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts so many, each of which waits this long between two requests.
    pub(super) fn start(client: &Client, model: &str, at_once: usize, think: Duration) -> Self {
        let (stop, asked, serial) = (Arc::default(), Arc::default(), Arc::new(AtomicU64::new(0)));
        let mut load = Self { stop, asked, workers: JoinSet::new() };
        for worker in 0..at_once {
            let (client, model, serial) = (client.clone(), model.to_owned(), Arc::clone(&serial));
            let (stop, asked) = (Arc::clone(&load.stop), Arc::clone(&load.asked));
            load.workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = serial.fetch_add(1, Ordering::Relaxed);
                    let one = ask(&client, &model, number, worker % 2 == 1).await;
                    let failed = one.outcome.is_err();
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                    // As applications do after an error.
                    tokio::time::sleep(if failed { think * 2 } else { think }).await;
                }
            });
        }
        load
    }

    /// Reads what was asked so far.
    pub(super) fn read<T>(&self, read: impl FnOnce(&[Asked]) -> T) -> T {
        read(&self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first answer to a request that was begun after this.
    pub(super) fn first_after(&self, since: Instant) -> Option<Instant> {
        self.read(|asked| {
            let good = asked.iter().rev().take_while(|a| a.times.1 >= since);
            good.filter(|a| a.outcome.is_ok() && a.times.0 >= since).map(|a| a.times.1).min()
        })
    }

    /// The longest time within these without an answer.
    pub(super) fn silence(&self, from: Instant, to: Instant) -> Duration {
        self.read(|asked| {
            let recent = asked.iter().rev().take_while(|a| a.times.1 >= from);
            let mut ends: Vec<Instant> =
                recent.filter(|a| a.outcome.is_ok() && a.times.1 <= to).map(|a| a.times.1).collect();
            ends.extend([from, to]);
            ends.sort();
            ends.windows(2)
                .filter_map(|w| Some(w.get(1)?.duration_since(*w.first()?)))
                .max()
                .unwrap_or_default()
        })
    }

    /// Errors by their code.
    pub(super) fn errors(&self) -> BTreeMap<String, usize> {
        self.read(|asked| {
            asked.iter().filter_map(|a| a.outcome.as_ref().err()).fold(BTreeMap::new(), |mut by, code| {
                *by.entry(code.clone()).or_default() += 1;
                by
            })
        })
    }

    /// Lets all of them end.
    pub(super) async fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.workers.join_next().await.is_some() {}
    }
}

/// Hex of SHA-256.
fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

async fn ask(client: &Client, model: &str, number: u64, stream: bool) -> Asked {
    let body = format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"Request {number}: what is a quorum?"}}],"max_tokens":16,"stream":{stream}}}"#
    );
    let digest = sha256(body.as_bytes());
    let trail = Trail::default();
    let mut request = Request::post_json(Target::Model(model.to_owned()), "/v1/chat/completions", body);
    request.trail = Some(trail.clone());
    request.duration_max = Some(LONGEST);
    let begun = Instant::now();
    let outcome = match tokio::time::timeout(HANG, answer(client, request)).await {
        Ok(outcome) => outcome,
        Err(_) => Err("hang".to_owned()),
    };
    Asked { body: digest, trail, times: (begun, Instant::now()), outcome }
}

async fn answer(client: &Client, request: Request) -> Result<RequestId, String> {
    let code = |error: quorate_client::Error| error.code().to_owned();
    let mut response = client.request(request).await.map_err(code)?;
    while let Some(piece) = response.body.next().await {
        piece.map_err(code)?;
    }
    match response.status.as_u16() {
        200 => Ok(response.provenance.request),
        other => Err(format!("status_{other}")),
    }
}
