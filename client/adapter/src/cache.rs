//! Answers kept for the same request asked again: opt-in, exact match, encrypted at rest.
//!
//! **Decides** by the caller's local name, the route, the model there and as the caller says it, the operation, the headers that go on
//! and every byte of the body; what of that is equal gets the stored answer, whose `x-quorate-request` names the request that it came by. Only whole answers with status 200
//! are kept, and only of requests that ask for the same again (embeddings, counts, temperature 0) unless the configuration says
//! otherwise. `cache-control: no-store` and `no-cache` are honoured on both sides.
//!
//! **At rest**: AES-256-GCM-SIV under a key file of mode 0600; names are HMACs, so that nobody without the key can look whether
//! a prompt was asked. A file that does not open is a miss and goes. Least recently used answers go first when it is full.
use crate::config::CacheConfig;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderMap, header};
use quorate_dialects::{Call, Operation};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 64;
/// Binds a file to its name and this format.
const LABEL: &str = "quorate adapter cache v2";
/// Makes half-written files of several requests several files.
static PARTS: AtomicU64 = AtomicU64::new(0);
/// Files looked at when the process starts.
const FILES_MAX: usize = 1_000_000;

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Folder or key file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Others may read the key.
    #[error("{}: the cache's key is readable by others", .0.display())]
    Mode(PathBuf),
    /// Not a key of ours.
    #[error("{}: not a cache key of {KEY_BYTES} bytes", .0.display())]
    Key(PathBuf),
}

/// What a stored answer is, beside its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Unix seconds.
    pub(crate) created: u64,
    pub(crate) content_type: String,
    /// Which request it came by.
    pub(crate) request: String,
    pub(crate) route: String,
}

#[derive(Debug, Default)]
struct Index {
    /// Length, and when it was last used.
    files: HashMap<String, (u64, u64)>,
    bytes: u64,
    clock: u64,
}

/// See the module.
pub(crate) struct Cache {
    config: CacheConfig,
    sealing: RandomizedNonceKey,
    naming: hmac::Key,
    index: Mutex<Index>,
}

/// What a request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leave {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

#[derive(Deserialize)]
struct Heat {
    temperature: Option<f64>,
    #[serde(alias = "generation_config", rename = "generationConfig")]
    generation: Option<Box<Heat>>,
    #[serde(rename = "inferenceConfig")]
    inference: Option<Box<Heat>>,
}

impl Heat {
    fn is_none(&self) -> bool {
        let inner = |h: &Option<Box<Self>>| h.as_ref().is_some_and(|h| h.is_none());
        self.temperature == Some(0.0) || inner(&self.generation) || inner(&self.inference)
    }
}

impl Cache {
    /// Opens the folder; makes folder and key where they are missing.
    pub(crate) fn open(config: &CacheConfig) -> Result<Self, CacheError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CacheError::File { path, source }
        };
        std::fs::create_dir_all(&config.dir).map_err(at(&config.dir))?;
        let key = load_key(&config.key_file)?;
        let bad = || CacheError::Key(config.key_file.clone());
        let (seal, name) = key.split_at_checked(KEY_BYTES / 2).ok_or_else(bad)?;
        let sealing = RandomizedNonceKey::new(&AES_256_GCM_SIV, seal).map_err(|_| bad())?;
        let naming = hmac::Key::new(hmac::HMAC_SHA256, name);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&config.dir).map_err(at(&config.dir))?.take(FILES_MAX).flatten() {
            let (Ok(meta), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else { continue };
            if name.ends_with(".part") {
                let _gone_already = std::fs::remove_file(entry.path());
            } else if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                found.push((meta.mtime(), name, meta.len()));
            }
        }
        found.sort_unstable();
        let mut index = Index::default();
        for (_, name, length) in found {
            index.clock += 1;
            index.bytes += length;
            index.files.insert(name, (length, index.clock));
        }
        Ok(Self { config: config.clone(), sealing, naming, index: Mutex::new(index) })
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be done for a request.
    pub(crate) fn leave(&self, call: &Call, headers: &HeaderMap) -> Leave {
        let same_again = self.config.any || is_same_again(call);
        let (no_store, no_cache) = said(headers);
        Leave { read: same_again && !no_store && !no_cache, write: same_again && !no_store }
    }

    /// The name of a request's answer by one route.
    pub(crate) fn name(
        &self,
        who: Option<&str>,
        (route, model): (&str, &str),
        call: &Call,
        headers: &[(String, String)],
    ) -> String {
        let mut context = hmac::Context::with_key(&self.naming);
        let form = if call.is_json_array() { " as an array" } else { "" };
        let operation = format!("{:?}{form}", call.operation());
        let parts = [LABEL, who.unwrap_or_default(), route, model, call.model(), &operation];
        let mut headers: Vec<&(String, String)> = headers.iter().collect();
        headers.sort();
        let headers = headers.into_iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        for part in parts.map(str::as_bytes).into_iter().chain([&call.expose_body()[..]]).chain(headers) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        hex::encode(context.sign())
    }

    /// A stored answer that is not too old.
    pub(crate) async fn get(&self, name: &str) -> Option<(Meta, Bytes)> {
        if !self.lock().files.contains_key(name) {
            return None;
        }
        let read = tokio::fs::read(self.config.dir.join(name)).await.ok();
        let opened = read.and_then(|bytes| self.opened(name, bytes));
        match opened {
            Some((meta, body)) if now().saturating_sub(meta.created) < self.config.ttl_s => {
                let mut index = self.lock();
                index.clock += 1;
                let clock = index.clock;
                if let Some((_, used)) = index.files.get_mut(name) {
                    *used = clock;
                }
                Some((meta, body))
            }
            Some(_) | None => {
                self.forget(name);
                None
            }
        }
    }

    fn opened(&self, name: &str, mut bytes: Vec<u8>) -> Option<(Meta, Bytes)> {
        let mut sealed = bytes.split_off_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let plain = self.sealing.open_in_place(nonce, Aad::from(aad(name)), &mut sealed).ok()?;
        let end = plain.iter().position(|b| *b == b'\n')?;
        let (meta, body) = plain.split_at_checked(end)?;
        Some((serde_json::from_slice(meta).ok()?, Bytes::copy_from_slice(body.get(1..)?)))
    }

    fn forget(&self, name: &str) {
        let _gone_already = std::fs::remove_file(self.config.dir.join(name));
        let mut index = self.lock();
        if let Some((length, _)) = index.files.remove(name) {
            index.bytes = index.bytes.saturating_sub(length);
        }
    }

    /// Largest body that is kept.
    pub(crate) fn entry_bytes_max(&self) -> usize {
        self.config.entry_bytes_max
    }

    /// Keeps an answer, and lets the least recently used go.
    pub(crate) async fn put(self: Arc<Self>, name: String, meta: Meta, body: Vec<u8>) {
        let stored = tokio::task::spawn_blocking(move || self.store(&name, &meta, &body)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(%error, "an answer could not be kept");
        }
    }

    fn store(&self, name: &str, meta: &Meta, body: &[u8]) -> std::io::Result<()> {
        if body.len() > self.config.entry_bytes_max {
            return Ok(());
        }
        let mut sealed = serde_json::to_vec(meta)?;
        sealed.push(b'\n');
        sealed.extend_from_slice(body);
        let nonce = self
            .sealing
            .seal_in_place_append_tag(Aad::from(aad(name)), &mut sealed)
            .map_err(|_| std::io::Error::other("sealing failed"))?;
        let part = PARTS.fetch_add(1, Ordering::Relaxed);
        let (path, part) = (self.config.dir.join(name), self.config.dir.join(format!("{name}.{part}.part")));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(nonce.as_ref())?;
        file.write_all(&sealed)?;
        std::fs::rename(&part, &path)?;
        let length = (NONCE_LEN + sealed.len()) as u64;
        let mut gone = Vec::new();
        {
            let mut index = self.lock();
            index.clock += 1;
            let clock = index.clock;
            let before = index.files.insert(name.to_owned(), (length, clock)).map_or(0, |(l, _)| l);
            index.bytes = index.bytes.saturating_sub(before) + length;
            while index.bytes > self.config.bytes_max && index.files.len() > 1 {
                let oldest = index.files.iter().min_by_key(|(_, (_, used))| *used).map(|(n, _)| n.clone());
                let Some(oldest) = oldest else { break };
                if let Some((length, _)) = index.files.remove(&oldest) {
                    index.bytes = index.bytes.saturating_sub(length);
                }
                gone.push(oldest);
            }
        }
        for name in gone {
            let _gone_already = std::fs::remove_file(self.config.dir.join(name));
        }
        Ok(())
    }
}

trait SplitOff {
    fn split_off_checked(&mut self, at: usize) -> Option<Vec<u8>>;
}

impl SplitOff for Vec<u8> {
    fn split_off_checked(&mut self, at: usize) -> Option<Vec<u8>> {
        (at <= self.len()).then(|| self.split_off(at))
    }
}

fn aad(name: &str) -> String {
    format!("{LABEL}\n{name}")
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether an answer forbids to keep it.
pub(crate) fn may_keep(headers: &HeaderMap) -> bool {
    said(headers) == (false, false)
}

/// `no-store`, `no-cache`.
fn said(headers: &HeaderMap) -> (bool, bool) {
    let all: Vec<String> = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|d| d.trim().to_ascii_lowercase())
        .collect();
    (all.iter().any(|d| d == "no-store"), all.iter().any(|d| d == "no-cache" || d == "max-age=0"))
}

fn is_same_again(call: &Call) -> bool {
    match call.operation() {
        Operation::Responses => false,
        operation if crate::api::is_pure(operation) => true,
        _ => serde_json::from_slice::<Heat>(call.expose_body()).is_ok_and(|heat| heat.is_none()),
    }
}

fn load_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, CacheError> {
    let at = |source| CacheError::File { path: path.to_owned(), source };
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
            let failed = |_| at(std::io::Error::other("the operating system gave no randomness"));
            aws_lc_rs::rand::fill(&mut key).map_err(failed)?;
            file.write_all(&key).map_err(at)?;
            Ok(key)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let file = std::fs::File::open(path).map_err(at)?;
            if file.metadata().map_err(at)?.mode() & 0o077 != 0 {
                return Err(CacheError::Mode(path.to_owned()));
            }
            let mut key = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
            file.take(KEY_BYTES as u64 + 1).read_to_end(&mut key).map_err(at)?;
            if key.len() == KEY_BYTES { Ok(key) } else { Err(CacheError::Key(path.to_owned())) }
        }
        Err(error) => Err(at(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_dialects::Endpoint;
    use std::os::unix::fs::PermissionsExt as _;

    fn config(dir: &Path) -> CacheConfig {
        CacheConfig {
            dir: dir.join("answers"),
            key_file: dir.join("key"),
            bytes_max: 4_000,
            entry_bytes_max: 1_000,
            ttl_s: 60,
            any: false,
        }
    }

    fn call(operation: Operation, body: &str) -> Call {
        let endpoint = Endpoint { operation, model: None, json_array: false };
        Call::read(endpoint, Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    fn chat(more: &str) -> Call {
        call(Operation::Chat, &format!(r#"{{"model":"m","messages":[]{more}}}"#))
    }

    fn meta(created: u64) -> Meta {
        Meta { created, content_type: "application/json".into(), request: "ab".into(), route: "r".into() }
    }

    #[tokio::test]
    async fn what_was_kept_is_found_again_by_whoever_asked_and_is_no_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(&config(dir.path())).unwrap());
        let name = cache.name(Some("web"), ("r", "m"), &chat(""), &[]);
        assert_eq!(cache.get(&name).await, None);
        let kept = meta(now());
        cache.clone().put(name.clone(), kept.clone(), b"the answer".to_vec()).await;
        let again = Arc::new(Cache::open(&config(dir.path())).unwrap());
        assert_eq!(again.get(&name).await, Some((kept, Bytes::from_static(b"the answer"))));
        for other in [
            again.name(Some("batch"), ("r", "m"), &chat(""), &[]),
            again.name(None, ("r", "m"), &chat(""), &[]),
            again.name(Some("web"), ("s", "m"), &chat(""), &[]),
            again.name(Some("web"), ("r", "n"), &chat(""), &[]),
            again.name(Some("web"), ("r", "m"), &chat(" "), &[]),
            again.name(Some("web"), ("r", "m"), &chat(""), &[("anthropic-beta".into(), "x".into())]),
        ] {
            assert_ne!(other, name);
        }
        let stream = |json_array| {
            let operation = Operation::GenerateContent { stream: true };
            let endpoint = Endpoint { operation, model: Some("g".into()), json_array };
            again.name(None, ("r", "g"), &Call::read(endpoint, Bytes::from_static(b"{}")).unwrap(), &[])
        };
        assert_ne!(stream(true), stream(false), "an array is no stream of events");
        let file = dir.path().join("answers").join(&name);
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"answer") && !bytes.windows(4).any(|w| w == b"json"));
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        // One bit, or another name, and it is none.
        let mut changed = bytes.clone();
        changed[20] ^= 1;
        std::fs::write(&file, changed).unwrap();
        assert_eq!(again.get(&name).await, None);
        assert!(!file.exists());
        let elsewhere = again.name(Some("x"), ("r", "m"), &chat(""), &[]);
        std::fs::write(dir.path().join("answers").join(&elsewhere), bytes).unwrap();
        let moved = Cache::open(&config(dir.path())).unwrap();
        assert_eq!(moved.get(&elsewhere).await, None);
    }

    #[tokio::test]
    async fn old_answers_and_too_many_go() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(&config(dir.path())).unwrap());
        let name = |n: u32| cache.name(None, ("r", "m"), &chat(&format!(",\"seed\":{n}")), &[]);
        cache.clone().put(name(0), meta(now() - 61), vec![0; 10]).await;
        assert_eq!(cache.get(&name(0)).await, None, "too old");
        cache.clone().put(name(0), meta(now()), vec![0; 1_001]).await;
        assert_eq!(cache.get(&name(0)).await, None, "too long");
        for n in 1..=3 {
            cache.clone().put(name(n), meta(now()), vec![0; 1_000]).await;
        }
        assert!(cache.get(&name(1)).await.is_some());
        cache.clone().put(name(4), meta(now()), vec![0; 1_000]).await;
        assert_eq!(cache.get(&name(2)).await, None, "the least recently used");
        for n in [1, 3, 4] {
            assert!(cache.get(&name(n)).await.is_some(), "{n}");
        }
        assert_eq!(std::fs::read_dir(dir.path().join("answers")).unwrap().count(), 3);
    }

    #[test]
    fn only_what_asks_for_the_same_again_is_kept_and_only_by_leave() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&config(dir.path())).unwrap();
        let leave = |call: &Call, control: &str| {
            let mut headers = HeaderMap::new();
            if !control.is_empty() {
                headers.insert(header::CACHE_CONTROL, control.parse().unwrap());
            }
            let Leave { read, write } = cache.leave(call, &headers);
            (read, write)
        };
        let cold = chat(",\"temperature\":0");
        assert_eq!(leave(&chat(""), ""), (false, false));
        assert_eq!(leave(&chat(",\"temperature\":0.1"), ""), (false, false));
        assert_eq!(leave(&cold, ""), (true, true));
        assert_eq!(leave(&cold, "max-age=5, No-Cache"), (false, true));
        assert_eq!(leave(&cold, "no-store"), (false, false));
        let embed = call(Operation::Embeddings, r#"{"model":"m","input":"x"}"#);
        assert_eq!(leave(&embed, ""), (true, true));
        let stored = call(Operation::Responses, r#"{"model":"m","input":"x","temperature":0}"#);
        assert_eq!(leave(&stored, ""), (false, false), "it makes an object at the provider");
    }

    #[test]
    fn the_key_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        drop(Cache::open(&config).unwrap());
        assert_eq!(std::fs::metadata(&config.key_file).unwrap().mode() & 0o777, 0o600);
        std::fs::set_permissions(&config.key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Cache::open(&config), Err(CacheError::Mode(_))));
        std::fs::set_permissions(&config.key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&config.key_file, b"short").unwrap();
        assert!(matches!(Cache::open(&config), Err(CacheError::Key(_))));
    }
}
