//! Raft's log, vote and pointers on disk: openraft's `RaftLogStorage` over redb.
//!
//! ```text
//!  append ──> tail (memory, readable at once) ──> queue ──> writer thread: one transaction, one fsync
//!                                                                │
//!  callback, save_vote, truncate, purge return  <────────────────┘
//! ```
//!
//! What is decided here:
//! - **Durable means fsynced.** A callback fires, and a vote, truncation or purge returns, only after a
//!   commit that ended with a successful fsync. Jobs queued meanwhile share the next one.
//! - **What is certified stays.** [`CertifiedFloor`] names the highest index whose outcome is certified;
//!   truncation at or below it is refused ([`LogStoreError::CertifiedTruncation`]). Raft on this node
//!   stops then: a leader that asks for it lies, or more than f nodes do. A network layer which compares
//!   log ids first turns such a request away without stopping.
//! - **One failure ends writing.** After a failed write or fsync every later write is refused and
//!   [`LogMonitor::failed`] says why, until the process restarts and reads what the disk kept.
//! - **A log is created on purpose.** [`LogStore::open`] never creates: a lost file must not look like a
//!   new node, which would vote and sign again.
//!
//! What is assumed: the disk keeps what it acknowledged. A disk rolled back to an older state is not
//! noticed here; the sign lock and the TPM's counters notice it. redb commits in one phase with page
//! checksums; someone who orders the disk's flushes at will already owns the disk.

mod record;
mod stats;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, DefensiveError, EntryPayload, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader,
    StorageIOError, Violation,
};
use redb::backends::FileBackend;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};
use tokio::sync::{mpsc, oneshot, watch};

use self::stats::Counters;
pub use self::stats::{COMMIT_BUCKETS_US, LogStats};
use self::writer::{Change, Done, Job};
use super::types::{Entry, LogId, RaftNodeId, StorageError, TypeConfig, Vote};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

/// The layout of the tables; a record has a version of its own.
const FORMAT_VERSION: &[u8] = &[1];

/// Jobs waiting for the writer. openraft awaits each append, so more than a few means a stalled disk.
const QUEUE_MAX: usize = 256;
/// Entries kept in memory: followers a moment behind are served without touching the disk.
const TAIL_ENTRIES_MAX: usize = 4096;
/// Bytes kept in memory for the same; entries not yet durable are kept beyond both bounds.
const TAIL_BYTES_MAX: usize = 16 << 20;
/// Bytes of entries for one replication message, unless a single entry is longer.
const REPLICATED_BYTES_MAX: usize = 4 << 20;
/// What an entry without a batch, and each entry's surroundings, count for in these bounds.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Why the log could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogStoreError {
    /// There is no log to open.
    #[error("no Raft log at {path}")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is a log already.
    #[error("a Raft log is already at {path}")]
    Exists {
        /// Where it is.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("could not {doing} {path}")]
    File {
        /// The attempt.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The storage engine refused; a full disk and a failed fsync come out here.
    #[error("the log's storage could not {doing}")]
    Engine {
        /// The attempt.
        doing: &'static str,
        /// Its answer.
        source: Box<redb::Error>,
    },
    /// The file is no log, or a later version's.
    #[error("the log's format is not version 1: {got:02x?}")]
    UnknownFormat {
        /// The version found, if any.
        got: Option<Vec<u8>>,
    },
    /// An entry on disk is damaged.
    #[error("log entry {index} is damaged: {what}")]
    CorruptEntry {
        /// The entry's index.
        index: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The vote or a pointer on disk is damaged.
    #[error("the log's {key} is damaged: {what}")]
    CorruptPointer {
        /// Which one.
        key: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Entries are missing between others.
    #[error("the log has a hole: {count} entries between {first} and {last}")]
    Hole {
        /// The index that should be the first.
        first: u64,
        /// The last index.
        last: u64,
        /// How many are there.
        count: u64,
    },
    /// An entry would replace another without a truncation.
    #[error("log entry {index} is there already")]
    Overwrite {
        /// The entry's index.
        index: u64,
    },
    /// Somebody asked to take back what is certified.
    #[error("refused to truncate the log from {asked}: it is certified up to {certified}")]
    CertifiedTruncation {
        /// The first index to remove.
        asked: u64,
        /// The highest certified index.
        certified: u64,
    },
    /// A value did not encode.
    #[error("a log record did not encode")]
    Encoding {
        /// The encoder's answer.
        source: postcard::Error,
    },
    /// An earlier write failed, so nothing is written any more.
    #[error("the log is closed for writing: {reason}")]
    Failed {
        /// The first failure.
        reason: String,
    },
    /// The runtime is shutting down.
    #[error("a read of the log was cancelled")]
    ReadCancelled,
}

impl LogStoreError {
    fn engine<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Engine { doing, source: Box::new(source.into()) }
    }

    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    fn into_storage(self, subject: ErrorSubject<RaftNodeId>, verb: ErrorVerb) -> StorageError {
        StorageIOError::new(subject, verb, AnyError::new(&self)).into()
    }
}

/// The highest log index whose outcome is certified. Whoever verifies certificates raises it; it never falls.
///
/// Clones share one value. It lives in memory: raise it again after a restart, before Raft starts.
#[derive(Debug, Clone, Default)]
pub struct CertifiedFloor {
    /// One above the certified index; zero when nothing is certified.
    end: Arc<AtomicU64>,
}

impl CertifiedFloor {
    /// A floor below everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks `index` and all below it as certified.
    pub fn raise(&self, index: u64) {
        self.end.fetch_max(index.saturating_add(1), Ordering::SeqCst);
    }

    /// The highest certified index.
    pub fn certified(&self) -> Option<u64> {
        self.end.load(Ordering::SeqCst).checked_sub(1)
    }

    fn allow_truncation(&self, from: u64) -> Result<(), LogStoreError> {
        match self.certified() {
            Some(certified) if from <= certified => {
                Err(LogStoreError::CertifiedTruncation { asked: from, certified })
            }
            _ => Ok(()),
        }
    }
}

/// What an operator may tune.
pub struct LogStoreOptions {
    /// Page cache of the storage engine. Default 32 MiB: recent entries are in memory anyway.
    pub cache_bytes: usize,
    /// Called on the writer thread with the duration of each commit, fsync included. Must not block.
    pub on_commit: Option<Box<dyn Fn(Duration) + Send>>,
    /// This node, if what it appends as leader may be sent out while it is being made durable. openraft counts the leader's
    /// own log as soon as it is appended, so whoever gives this must hold back every peer's answer until
    /// [`LogReader::durable_upto`]: an entry then is committed only once the leader's disk has it too, as before. Entries
    /// that another node leads are always durable before openraft hears so. Not for a cluster whose majority is one node.
    pub leads_ahead: Option<RaftNodeId>,
}

impl Default for LogStoreOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, on_commit: None, leads_ahead: None }
    }
}

/// The log of this node; the only handle that writes. Dropping it waits for the writer thread.
pub struct LogStore {
    reader: LogReader,
    floor: CertifiedFloor,
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    leads_ahead: Option<RaftNodeId>,
}

/// Reads the log; cheap to clone. Holds the file open.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

/// Watches the store after openraft took it. Does not hold the file open.
#[derive(Clone)]
pub struct LogMonitor {
    failed: watch::Receiver<Option<String>>,
    counters: Arc<Counters>,
}

impl LogMonitor {
    /// Why the store stopped writing, if it did.
    pub fn failed(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Waits for a failure; `None` when the store was closed without one.
    pub async fn wait_failed(&mut self) -> Option<String> {
        match self.failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        }
    }

    /// The counters now.
    pub fn stats(&self) -> LogStats {
        self.counters.read()
    }
}

impl LogStore {
    /// Creates an empty log at `path`, durably, and closes it again. A crash leaves a whole log or none.
    pub fn create(path: &Path) -> Result<(), LogStoreError> {
        if path.exists() {
            return Err(LogStoreError::Exists { path: path.to_owned() });
        }
        let draft = path.with_extension("creating");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LogStoreError::file("remove", &draft)(error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(LogStoreError::file("create", &draft))?;
        let backend = FileBackend::new(file).map_err(LogStoreError::engine("take the file"))?;
        let db = Database::builder()
            .create_with_backend(backend)
            .map_err(LogStoreError::engine("create the log"))?;
        initialise(&db)?;
        db.close().map_err(LogStoreError::engine("close the new log"))?;
        File::open(&draft).and_then(|file| file.sync_all()).map_err(LogStoreError::file("sync", &draft))?;
        std::fs::rename(&draft, path).map_err(LogStoreError::file("rename", &draft))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(LogStoreError::file("sync", folder))
    }

    /// Opens the log at `path` and starts its writer. The file stays locked against a second process.
    pub fn open(path: &Path, floor: CertifiedFloor, options: LogStoreOptions) -> Result<Self, LogStoreError> {
        if !path.exists() {
            return Err(LogStoreError::Missing { path: path.to_owned() });
        }
        let db = Database::builder()
            .set_cache_size(options.cache_bytes)
            .open(path)
            .map_err(LogStoreError::engine("open the log"))?;
        Self::start(db, floor, options)
    }

    fn start(db: Database, floor: CertifiedFloor, options: LogStoreOptions) -> Result<Self, LogStoreError> {
        let state = State::load(&db)?;
        let (failed, _) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let durable = watch::Sender::new(state.last.map_or(0, |last| last.index));
        let shared = Arc::new(Shared { db, state: Mutex::new(state), failed, durable, counters });
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let for_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn({
                let on_commit = options.on_commit;
                move || writer::run(jobs, &for_writer, on_commit)
            })
            .map_err(LogStoreError::file("start the writer of", Path::new("the Raft log")))?;
        let leads_ahead = options.leads_ahead;
        Ok(Self {
            reader: LogReader { shared },
            floor,
            queue: Some(queue),
            writer: Some(writer),
            leads_ahead,
        })
    }

    /// A handle for metrics and for noticing a failed disk.
    pub fn monitor(&self) -> LogMonitor {
        let shared = &self.reader.shared;
        LogMonitor { failed: shared.failed.subscribe(), counters: Arc::clone(&shared.counters) }
    }

    /// The highest index that is durable here: a node cosigns nothing above it.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.reader.shared.durable.subscribe()
    }

    /// Why the store stopped writing, if it did.
    pub fn failed(&self) -> Option<String> {
        self.reader.shared.failed.borrow().clone()
    }

    /// The counters now.
    pub fn stats(&self) -> LogStats {
        self.reader.shared.counters.read()
    }

    /// A reader of the same log.
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// The floor this store obeys.
    pub fn floor(&self) -> &CertifiedFloor {
        &self.floor
    }

    /// Whether this node appends these as the leader they belong to, by its last durable vote.
    fn appends_ahead(&self, entries: &[Entry]) -> bool {
        let (Some(me), Some(vote)) = (self.leads_ahead, self.reader.shared.state().vote) else {
            return false;
        };
        let ours = |entry: &Entry| {
            let author = &entry.log_id.leader_id;
            author.node_id == me && author.term == vote.leader_id.term
        };
        vote.committed && vote.leader_id.node_id == me && entries.iter().all(ours)
    }

    /// Room in the queue, taken before memory changes: nothing may fail between the two.
    async fn permit(&self) -> Result<mpsc::Permit<'_, Job>, LogStoreError> {
        let shared = &self.reader.shared;
        if let Some(reason) = shared.failed.borrow().clone() {
            return Err(LogStoreError::Failed { reason });
        }
        let Some(queue) = &self.queue else { return Err(shared.why_failed()) };
        queue.reserve().await.map_err(|_| shared.why_failed())
    }

    /// Makes `entries` readable and queues them; `done` is called once they are durable, or cannot be.
    async fn enqueue(&self, entries: Vec<Entry>, done: Done) -> Result<(), StorageError> {
        let permit = self.permit().await.map_err(|e| e.into_storage(ErrorSubject::Logs, ErrorVerb::Write))?;
        let mut state = self.reader.shared.state();
        state.append(&entries).map_err(|Gap { prev, next }| {
            let violation = Violation::LogsNonConsecutive { prev, next };
            DefensiveError::new(ErrorSubject::Log(next), violation)
        })?;
        permit.send(Job { change: Change::Append(entries), truncations: state.truncations, done });
        Ok(())
    }

    async fn truncate_from(&self, from: u64) -> Result<(), LogStoreError> {
        self.floor.allow_truncation(from)?;
        let (first, last, purged) = {
            let state = self.reader.shared.state();
            (state.first, state.last, state.purged)
        };
        if last.is_none_or(|last| last.index < from) {
            return Ok(());
        }
        let new_last = match from.checked_sub(1) {
            Some(before) if first <= before => {
                let kept = self.reader.read(before, from, usize::MAX).await?.pop();
                let kept =
                    kept.ok_or(LogStoreError::CorruptEntry { index: before, what: "it is missing" })?;
                Some(kept.log_id)
            }
            _ => purged,
        };
        let permit = self.permit().await?;
        let (done, outcome) = answer();
        {
            let mut state = self.reader.shared.state();
            // once more: the floor may have risen while we waited for room
            self.floor.allow_truncation(from)?;
            state.truncate(from, new_last);
            permit.send(Job { change: Change::Truncate(from), truncations: state.truncations, done });
        }
        self.wait(outcome).await
    }

    /// Gives up everything above `keep`, and what Raft held to be committed above `committed`. Only before Raft starts: a state
    /// machine that applied those entries must not outlive them. The certified floor holds here too.
    pub async fn give_up_above(&self, keep: u64, committed: LogId) -> Result<(), LogStoreError> {
        let from = keep.saturating_add(1);
        self.floor.allow_truncation(from)?;
        {
            let mut state = self.reader.shared.state();
            if state.committed > Some(committed) {
                state.committed = Some(committed);
                state.committed_unsaved = true;
            }
        }
        self.truncate_from(from).await?;
        // A vote already held: this flushes the pointer also where there was nothing to truncate.
        let vote = self.reader.shared.state().vote;
        match vote {
            Some(vote) => self.write_vote(vote).await,
            None => Ok(()),
        }
    }

    async fn purge_upto(&self, upto: LogId) -> Result<(), LogStoreError> {
        let permit = self.permit().await?;
        let (done, outcome) = answer();
        {
            let mut state = self.reader.shared.state();
            if state.purged.is_some_and(|purged| upto.index <= purged.index) {
                return Ok(());
            }
            // A log's leaders never go back (Raft §5.3), so entries after `upto` from an earlier leader are of
            // another history: the leader's snapshot replaces them, and what follows it must find its place.
            let all = state.last < Some(upto);
            if all && state.end() > upto.index + 1 {
                self.floor.allow_truncation(upto.index + 1)?;
            }
            state.purge(upto, all);
            permit.send(Job { change: Change::Purge { upto, all }, truncations: state.truncations, done });
        }
        self.wait(outcome).await
    }

    async fn write_vote(&self, vote: Vote) -> Result<(), LogStoreError> {
        let permit = self.permit().await?;
        let (done, outcome) = answer();
        permit.send(Job { change: Change::Vote(vote), truncations: 0, done });
        self.wait(outcome).await?;
        self.reader.shared.state().vote = Some(vote);
        Ok(())
    }

    async fn wait(&self, outcome: oneshot::Receiver<Result<(), String>>) -> Result<(), LogStoreError> {
        match outcome.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(LogStoreError::Failed { reason }),
            Err(_) => Err(self.reader.shared.why_failed()),
        }
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the Raft log's writer ended in a panic");
        }
    }
}

fn answer() -> (Done, oneshot::Receiver<Result<(), String>>) {
    let (tx, rx) = oneshot::channel();
    // a caller that went away no longer needs the answer
    let done = move |outcome: Result<(), &str>| drop(tx.send(outcome.map_err(str::to_owned)));
    (Box::new(done), rx)
}

impl LogReader {
    /// Completes once everything up to this index is durable here. Fails once the store is closed for writing.
    pub async fn durable_upto(&self, index: u64) -> Result<(), LogStoreError> {
        let (mut durable, mut failed) = (self.shared.durable.subscribe(), self.shared.failed.subscribe());
        loop {
            if self.shared.state().durable_end > index {
                return Ok(());
            }
            if failed.borrow_and_update().is_some() {
                return Err(self.shared.why_failed());
            }
            // Neither sender is dropped before `self`.
            tokio::select! {
                _ = durable.changed() => {}
                _ = failed.changed() => {}
            }
        }
    }

    /// The log id of the entry at an index; `None` when there is no such entry (any more).
    pub async fn log_id_at(&self, index: u64) -> Result<Option<LogId>, LogStoreError> {
        let entries = self.read(index, index.saturating_add(1), 0).await?;
        Ok(entries.first().map(|entry| entry.log_id))
    }

    /// What Raft last said to be committed.
    pub fn committed(&self) -> Option<LogId> {
        self.shared.state().committed
    }

    /// Entries of `[start, end)`: whole, or the first `bytes_max` of them but at least one. A purge at
    /// the same time may take away the beginning; a truncation never leaves a hole.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, LogStoreError> {
        loop {
            let view = self.shared.state().view(start, end);
            if view.disk.is_empty() {
                return Ok(bounded(view.tail, bytes_max));
            }
            let shared = Arc::clone(&self.shared);
            let mut entries =
                tokio::task::spawn_blocking(move || read_disk(&shared.db, view.disk, bytes_max))
                    .await
                    .map_err(|_| LogStoreError::ReadCancelled)??;
            if self.shared.state().truncations == view.truncations {
                entries.extend(view.tail);
                return Ok(bounded(entries, bytes_max));
            }
        }
    }
}

/// The longest run of consecutive entries from the first on, within the bound.
fn bounded(entries: Vec<Entry>, bytes_max: usize) -> Vec<Entry> {
    let mut bytes = 0usize;
    let mut next = None;
    let keep = entries
        .iter()
        .take_while(|entry| {
            let index = entry.log_id.index;
            let fits =
                next.is_none() || (next == Some(index) && bytes.saturating_add(weight(entry)) <= bytes_max);
            bytes = bytes.saturating_add(weight(entry));
            next = Some(index + 1);
            fits
        })
        .count();
    let mut entries = entries;
    entries.truncate(keep);
    entries
}

fn read_disk(
    db: &Database,
    range: std::ops::Range<u64>,
    bytes_max: usize,
) -> Result<Vec<Entry>, LogStoreError> {
    let txn = db.begin_read().map_err(LogStoreError::engine("begin a read"))?;
    let log = txn.open_table(LOG).map_err(LogStoreError::engine("open the log table"))?;
    let mut entries = Vec::new();
    let mut bytes = 0usize;
    for row in log.range(range).map_err(LogStoreError::engine("read entries"))? {
        let (index, record) = row.map_err(LogStoreError::engine("read an entry"))?;
        let entry = record::decode_entry(index.value(), record.value())?;
        bytes = bytes.saturating_add(weight(&entry));
        entries.push(entry);
        if bytes > bytes_max {
            break;
        }
    }
    Ok(entries)
}

fn weight(entry: &Entry) -> usize {
    let batch = match &entry.payload {
        EntryPayload::Normal(batch) => batch.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    ENTRY_OVERHEAD_BYTES.saturating_add(batch)
}

fn initialise(db: &Database) -> Result<(), LogStoreError> {
    let txn = db.begin_write().map_err(LogStoreError::engine("begin a write"))?;
    {
        txn.open_table(LOG).map_err(LogStoreError::engine("make the log table"))?;
        let mut meta = txn.open_table(META).map_err(LogStoreError::engine("make the meta table"))?;
        meta.insert(FORMAT, FORMAT_VERSION).map_err(LogStoreError::engine("insert the format"))?;
    }
    txn.commit().map_err(LogStoreError::engine("commit"))
}

/// What the store, its readers and its writer share.
struct Shared {
    db: Database,
    /// Held for memory work only, never across a disk access or an await.
    state: Mutex<State>,
    failed: watch::Sender<Option<String>>,
    /// Highest index that a sync has made durable; falls with a truncation.
    durable: watch::Sender<u64>,
    counters: Arc<Counters>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the store for writing. The first reason stays.
    fn fail(&self, error: &LogStoreError) -> String {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        self.failed.send_if_modified(|failed| match failed {
            None => {
                tracing::error!(
                    reason,
                    "the Raft log can no longer be written; this node stops acknowledging"
                );
                *failed = Some(reason.clone());
                true
            }
            Some(_) => false,
        });
        reason
    }

    fn why_failed(&self) -> LogStoreError {
        let reason = self.failed.borrow().clone();
        LogStoreError::Failed { reason: reason.unwrap_or_else(|| "its writer has ended".to_owned()) }
    }
}

/// The log as it will be once the queue is written.
struct State {
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The first index present, or where it would be.
    first: u64,
    /// The most recent entries, ending with `last`.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// Below this index everything present is durable.
    durable_end: u64,
    /// Counts truncations, so that whoever looked away can tell.
    truncations: u64,
    /// The last durable vote.
    vote: Option<Vote>,
    committed: Option<LogId>,
    committed_unsaved: bool,
}

/// An entry that does not follow its predecessor.
struct Gap {
    prev: Option<LogId>,
    next: LogId,
}

/// Where a range is found.
struct View {
    disk: std::ops::Range<u64>,
    tail: Vec<Entry>,
    truncations: u64,
}

impl State {
    fn load(db: &Database) -> Result<Self, LogStoreError> {
        let txn = db.begin_read().map_err(LogStoreError::engine("begin a read"))?;
        let meta = match txn.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => {
                return Err(LogStoreError::UnknownFormat { got: None });
            }
            other => other.map_err(LogStoreError::engine("open the meta table"))?,
        };
        let log = txn.open_table(LOG).map_err(LogStoreError::engine("open the log table"))?;
        let value = |key: &'static str| -> Result<Option<Vec<u8>>, LogStoreError> {
            let found = meta.get(key).map_err(LogStoreError::engine("read a pointer"))?;
            Ok(found.map(|record| record.value().to_vec()))
        };
        let format = value(FORMAT)?;
        if format.as_deref() != Some(FORMAT_VERSION) {
            return Err(LogStoreError::UnknownFormat { got: format });
        }
        let log_id = |key: &'static str| -> Result<Option<LogId>, LogStoreError> {
            let decode = |record: Vec<u8>| record::decode(&record);
            value(key)?.map(decode).transpose().map_err(|what| LogStoreError::CorruptPointer { key, what })
        };
        let vote = value(VOTE)?
            .map(|record| record::decode(&record))
            .transpose()
            .map_err(|what| LogStoreError::CorruptPointer { key: VOTE, what })?;
        let (purged, committed) = (log_id(PURGED)?, log_id(COMMITTED)?);

        let after_purge = purged.map(|purged| purged.index + 1);
        let first_row = log.first().map_err(LogStoreError::engine("read the first entry"))?;
        let last_row = log.last().map_err(LogStoreError::engine("read the last entry"))?;
        let (first, last) = match (first_row, last_row) {
            (Some((found, _)), Some((index, record))) => {
                let last = record::decode_entry(index.value(), record.value())?.log_id;
                let first = after_purge.unwrap_or(found.value());
                let count = log.len().map_err(LogStoreError::engine("count entries"))?;
                if found.value() != first || last.index - first + 1 != count {
                    return Err(LogStoreError::Hole { first, last: last.index, count });
                }
                (first, Some(last))
            }
            _ => (after_purge.unwrap_or(0), purged),
        };
        Ok(Self {
            purged,
            last,
            first,
            tail: VecDeque::new(),
            tail_bytes: 0,
            durable_end: last.map_or(0, |last| last.index + 1),
            truncations: 0,
            vote,
            committed,
            committed_unsaved: false,
        })
    }

    /// One above the last index.
    fn end(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1)
    }

    fn tail_first(&self) -> u64 {
        self.tail.front().map_or_else(|| self.end(), |entry| entry.log_id.index)
    }

    fn view(&self, start: u64, end: u64) -> View {
        let tail_first = self.tail_first();
        let (start, end) = (start.max(self.first), end.min(self.end()));
        let from = usize::try_from(start.saturating_sub(tail_first)).unwrap_or(usize::MAX);
        let upto = usize::try_from(end.saturating_sub(tail_first)).unwrap_or(usize::MAX);
        let tail = self.tail.iter().take(upto).skip(from).cloned().collect();
        View { disk: start..end.min(tail_first), tail, truncations: self.truncations }
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), Gap> {
        // all or nothing: check before touching. An empty log may begin anywhere.
        let mut prev = self.last;
        for entry in entries {
            let next = entry.log_id;
            if prev.is_some_and(|prev| prev.index + 1 != next.index) {
                return Err(Gap { prev, next });
            }
            prev = Some(next);
        }
        if let (None, Some(entry)) = (self.last, entries.first()) {
            self.first = entry.log_id.index;
        }
        self.last = prev;
        self.tail_bytes += entries.iter().map(weight).sum::<usize>();
        self.tail.extend(entries.iter().cloned());
        Ok(())
    }

    fn truncate(&mut self, from: u64, new_last: Option<LogId>) {
        while self.tail.back().is_some_and(|entry| entry.log_id.index >= from)
            && let Some(entry) = self.tail.pop_back()
        {
            self.tail_bytes -= weight(&entry);
        }
        self.last = new_last;
        self.durable_end = self.durable_end.min(from);
        self.truncations += 1;
    }

    fn purge(&mut self, upto: LogId, all: bool) {
        while self.tail.front().is_some_and(|entry| all || entry.log_id.index <= upto.index) {
            self.pop_front();
        }
        self.first = upto.index + 1;
        self.purged = Some(upto);
        if all {
            self.last = Some(upto);
            self.durable_end = upto.index + 1;
            self.truncations += 1;
        }
    }

    /// Notes a durable append, unless a truncation came between, and lets go of what the tail need not keep.
    fn made_durable(&mut self, last: u64, truncations: u64) {
        if truncations != self.truncations {
            return;
        }
        self.durable_end = self.durable_end.max(last + 1);
        while (self.tail.len() > TAIL_ENTRIES_MAX || self.tail_bytes > TAIL_BYTES_MAX)
            && self.tail.front().is_some_and(|entry| entry.log_id.index < self.durable_end)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= weight(&entry);
        }
    }

    fn take_unsaved_committed(&mut self) -> Option<LogId> {
        match std::mem::take(&mut self.committed_unsaved) {
            true => self.committed,
            false => None,
        }
    }
}

fn read_error(error: LogStoreError) -> StorageError {
    error.into_storage(ErrorSubject::Logs, ErrorVerb::Read)
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).await.map_err(read_error)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, REPLICATED_BYTES_MAX).await.map_err(read_error)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.reader.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let state = self.reader.shared.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        // Raft §5.2: one vote in a term; a vote that goes back would allow a second
        let current = self.reader.shared.state().vote;
        if let Some(curr) = current
            && !matches!(
                vote.partial_cmp(&curr),
                Some(std::cmp::Ordering::Greater | std::cmp::Ordering::Equal)
            )
        {
            let violation = Violation::VoteNotAscending { curr, to: *vote };
            return Err(DefensiveError::new(ErrorSubject::Vote, violation).into());
        }
        self.write_vote(*vote).await.map_err(|e| e.into_storage(ErrorSubject::Vote, ErrorVerb::Write))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.reader.shared.state().vote)
    }

    /// Kept in memory and written with the next transaction: losing it costs a wait for the leader, no safety.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let mut state = self.reader.shared.state();
        state.committed = committed;
        state.committed_unsaved = committed.is_some();
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.reader.shared.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if self.appends_ahead(&entries) {
            // A failure closes the store for writing, and no answer of a peer counts from then on.
            self.enqueue(entries, Box::new(|_| ())).await?;
            callback.log_io_completed(Ok(()));
            return Ok(());
        }
        let done = move |outcome: Result<(), &str>| {
            let failed = |reason: &str| io::Error::other(LogStoreError::Failed { reason: reason.to_owned() });
            callback.log_io_completed(outcome.map_err(failed));
        };
        self.enqueue(entries, Box::new(done)).await
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let failed = |e: LogStoreError| e.into_storage(ErrorSubject::Log(log_id), ErrorVerb::Delete);
        self.truncate_from(log_id.index).await.map_err(failed)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let failed = |e: LogStoreError| e.into_storage(ErrorSubject::Log(log_id), ErrorVerb::Delete);
        self.purge_upto(log_id).await.map_err(failed)
    }
}

#[cfg(test)]
mod tests;
