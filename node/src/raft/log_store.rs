//! Raft's log, vote and pointers on disk: openraft's `RaftLogStorage` over a write-ahead log of our own.
//!
//! ```text
//!  append ──> tail (memory, readable at once) ──> queue ──> writer thread: one frame, one write, one fsync
//!                                                                │
//!  callback, save_vote, truncate, purge return  <────────────────┘
//! ```
//!
//! On disk it is a folder of segments, each as long as it will be before it is used (`segment`). The writer puts all jobs of
//! one commit into one frame and writes it behind the last (`frame`, `journal`); each segment begins with the pointers as
//! they were, so that emptied ones can go. Opening follows the frames (`replay`) and keeps in memory where each entry is
//! (`places`).
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
//! - **Torn is not damaged.** A crash can tear only the frame whose sync did not return, and nothing is written behind it
//!   before it: a frame holds a whole commit, so no part of a torn one is valid on its own, and the next is written only
//!   after this one's sync. Opening drops an invalid frame only if no header of a later one is found anywhere;
//!   otherwise, or if a head or segment is gone, it refuses ([`LogStoreError::Damaged`]).
//!
//! What cannot be told apart: a write that a crash tore, and damage to the very last frame after its sync (or to the
//! headers of all frames from some point on). Such a frame is dropped with what it says. A clean end writes one more
//! frame, which says nothing, so this takes damage and a crash at once. Peers bring lost entries back, and the sign
//! lock and the TPM's counters, kept elsewhere, still refuse a second signature; a lost vote may be given twice, so
//! this node then counts among the faulty ones.
//!
//! What is assumed: the disk keeps what it acknowledged, and a write changes no other bytes, not even of the same sector,
//! when power fails. A disk rolled back to an older state is not noticed here; the sign lock and the TPM's counters
//! notice it. Someone who orders the disk's flushes at will already owns the disk.

mod disk;
mod error;
mod frame;
mod journal;
mod places;
mod record;
mod replay;
mod segment;
mod state;
mod stats;
mod writer;

use std::fmt::Debug;
use std::fs::{DirBuilder, File};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{DefensiveError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, Violation};
use tokio::sync::{mpsc, oneshot, watch};

use self::disk::LockedFolder;
pub use self::disk::{Blob, Folder};
pub use self::error::LogStoreError;
use self::frame::Salt;
use self::journal::{Purge, Truncation};
use self::places::Located;
use self::segment::{Factory, Making};
use self::state::{Gap, State, bounded};
use self::stats::Counters;
pub use self::stats::{COMMIT_BUCKETS_US, LogStats};
use self::writer::{Change, Done, End, Job, OnCommit};
use super::types::{Entry, LogId, RaftNodeId, StorageError, TypeConfig, Vote};

/// Jobs waiting for the writer. openraft awaits each append, so more than a few means a stalled disk.
const QUEUE_MAX: usize = 256;
/// The length of a segment unless options say otherwise: some minutes of full load.
const SEGMENT_BYTES: u64 = 16 << 20;
/// The number of the first segment.
const FIRST_SEGMENT: u64 = 1;
/// Bytes of entries for one replication message, unless a single entry is longer.
const REPLICATED_BYTES_MAX: usize = 4 << 20;

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
    /// The length of a segment file. Default 16 MiB; shorter ones give room back sooner after a purge.
    pub segment_bytes: u64,
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
        Self { segment_bytes: SEGMENT_BYTES, on_commit: None, leads_ahead: None }
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
    /// Creates an empty log in a new folder at `path`, durably, and closes it again. A crash leaves a whole log or none.
    pub fn create(path: &Path) -> Result<(), LogStoreError> {
        if path.exists() {
            return Err(LogStoreError::Exists { path: path.to_owned() });
        }
        let draft = path.with_extension("creating");
        let removed = match draft.is_dir() {
            true => std::fs::remove_dir_all(&draft),
            false => std::fs::remove_file(&draft),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LogStoreError::file("remove", &draft)(error));
            }
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&draft).map_err(LogStoreError::file("create", &draft))?;
        initialise(Arc::new(LockedFolder::lock(&draft)?), SEGMENT_BYTES)?;
        // never onto a log that came meanwhile: a folder that is not empty cannot be replaced
        std::fs::rename(&draft, path).map_err(LogStoreError::file("rename", &draft))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(LogStoreError::file("sync", folder))
    }

    /// Opens the log at `path` and starts its writer. The folder stays locked against a second process.
    pub fn open(path: &Path, floor: CertifiedFloor, options: LogStoreOptions) -> Result<Self, LogStoreError> {
        if !path.exists() {
            return Err(LogStoreError::Missing { path: path.to_owned() });
        }
        if !path.is_dir() {
            return Err(LogStoreError::UnknownFormat { got: None });
        }
        Self::start(Arc::new(LockedFolder::lock(path)?), floor, options, Making::Ahead)
    }

    /// As [`Self::create`], in a folder of the caller's.
    pub fn create_in(folder: Arc<dyn Folder>, segment_bytes: u64) -> Result<(), LogStoreError> {
        initialise(folder, segment_bytes)
    }

    /// As [`Self::open`], in a folder of the caller's and without any thread: nothing is written until the caller runs the
    /// future, which `pace`s itself before each commit. For simulations.
    pub fn open_in<P, F>(
        folder: Arc<dyn Folder>,
        floor: CertifiedFloor,
        options: LogStoreOptions,
        pace: P,
    ) -> Result<(Self, impl Future<Output = ()> + use<P, F>), LogStoreError>
    where
        P: FnMut() -> F,
        F: Future<Output = ()>,
    {
        let (store, jobs, end, _) = Self::prepare(folder, floor, options, Making::AtOnce)?;
        let shared = Arc::clone(&store.reader.shared);
        Ok((store, writer::run_paced(jobs, shared, end, pace)))
    }

    fn start(
        folder: Arc<dyn Folder>,
        floor: CertifiedFloor,
        options: LogStoreOptions,
        making: Making,
    ) -> Result<Self, LogStoreError> {
        let path = folder.path();
        let (mut store, jobs, end, on_commit) = Self::prepare(folder, floor, options, making)?;
        let shared = Arc::clone(&store.reader.shared);
        let writer = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer::run(jobs, &shared, end, on_commit))
            .map_err(LogStoreError::file("start the writer of", path))?;
        store.writer = Some(writer);
        Ok(store)
    }

    /// Everything but whoever writes.
    fn prepare(
        folder: Arc<dyn Folder>,
        floor: CertifiedFloor,
        options: LogStoreOptions,
        making: Making,
    ) -> Result<(Self, mpsc::Receiver<Job>, End, Option<OnCommit>), LogStoreError> {
        let mut replayed = replay::replay(&*folder)?;
        let end = End::new(Arc::clone(&folder), &mut replayed, options.segment_bytes, making)?;
        let mut state = State::new(replayed);
        // openraft takes a leader's own vote up again as the lead of the same term. What this node sent ahead of its disk in
        // that term is lost here and may stand at its peers: under the old term it would give the same log ids to other
        // entries. As a mere vote for itself it has to campaign, for a later term.
        if let (Some(me), Some(vote)) = (options.leads_ahead, &mut state.vote)
            && vote.leader_id.node_id == me
        {
            vote.committed = false;
        }
        let (failed, _) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let durable = watch::Sender::new(state.last.map_or(0, |last| last.index));
        let threads = making == Making::Ahead;
        let shared = Arc::new(Shared {
            _folder: folder,
            state: Mutex::new(state),
            failed,
            durable,
            counters,
            threads,
        });
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let LogStoreOptions { on_commit, leads_ahead, .. } = options;
        let reader = LogReader { shared };
        Ok((Self { reader, floor, queue: Some(queue), writer: None, leads_ahead }, jobs, end, on_commit))
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
            let change = Change::Truncate(Truncation { from, last: new_last });
            permit.send(Job { change, truncations: state.truncations, done });
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
            // A shorter log may be of a later leader, but is of another history all the same.
            let all = state.last < Some(upto) || state.end() <= upto.index + 1;
            if all && state.end() > upto.index + 1 {
                self.floor.allow_truncation(upto.index + 1)?;
            }
            state.purge(upto, all);
            let change = Change::Purge(Purge { upto, all });
            permit.send(Job { change, truncations: state.truncations, done });
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
    /// Closes the log for writing because other storage of this node failed: what it can no longer apply it must not
    /// acknowledge.
    pub fn close_for(&self, reason: &str) {
        self.shared.close(reason);
    }

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
                biased;
                _ = durable.changed() => {}
                _ = failed.changed() => {}
            }
        }
    }

    /// Whether the disk fails, or holds an entry up for longer than this.
    pub fn is_stalled(&self, bound: Duration) -> bool {
        self.shared.failed.borrow().is_some()
            || self.shared.state().waiting_since.is_some_and(|since| since.elapsed() > bound)
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

    /// Entries of `[start, end)`: whole, or the first `bytes_max` of them but at least one; as the log was at one moment.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, LogStoreError> {
        let view = self.shared.state().view(start, end, bytes_max)?;
        if view.disk.is_empty() {
            return Ok(bounded(view.tail, bytes_max));
        }
        let read = move || view.disk.iter().map(Located::read).collect::<Result<Vec<_>, _>>();
        let mut entries = match self.shared.threads {
            true => tokio::task::spawn_blocking(read).await.map_err(|_| LogStoreError::ReadCancelled)??,
            false => read()?,
        };
        entries.extend(view.tail);
        Ok(bounded(entries, bytes_max))
    }
}

fn initialise(folder: Arc<dyn Folder>, segment_bytes: u64) -> Result<(), LogStoreError> {
    let mut salt = [0; 16];
    let no_randomness =
        |_| LogStoreError::file("draw a salt for", folder.path())(io::Error::other("no randomness"));
    SystemRandom::new().fill(&mut salt).map_err(no_randomness)?;
    let salt = Salt(salt);
    let first = writer::first_frame(salt, FIRST_SEGMENT)?;
    Factory::new(folder, salt, segment_bytes).without_pause().make(FIRST_SEGMENT, &first).map(drop)
}

/// What the store, its readers and its writer share.
struct Shared {
    /// Its lock must outlive every reader.
    _folder: Arc<dyn Folder>,
    /// Held for memory work only, never across a disk access or an await.
    state: Mutex<State>,
    failed: watch::Sender<Option<String>>,
    /// Highest index that a sync has made durable; falls with a truncation.
    durable: watch::Sender<u64>,
    counters: Arc<Counters>,
    /// Whether reads of the disk may leave the caller's thread.
    threads: bool,
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
        self.close(&reason);
        reason
    }

    fn close(&self, reason: &str) {
        self.failed.send_if_modified(|failed| match failed {
            None => {
                tracing::error!(
                    reason,
                    "the Raft log can no longer be written; this node stops acknowledging"
                );
                *failed = Some(reason.to_owned());
                true
            }
            Some(_) => false,
        });
    }

    fn why_failed(&self) -> LogStoreError {
        let reason = self.failed.borrow().clone();
        LogStoreError::Failed { reason: reason.unwrap_or_else(|| "its writer has ended".to_owned()) }
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
