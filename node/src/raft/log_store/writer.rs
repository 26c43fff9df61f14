//! The one thread that writes: it joins what is queued into one transaction, makes it durable, then answers.
//!
//! An answer is given only after redb's commit returned, which ends with an fsync
//! (`Durability::Immediate`). After any failure the thread answers everything with that failure and
//! ends: a page that failed to reach the disk may be gone from the page cache too, so trying again
//! would prove nothing. Only a restart, which reads what the disk really holds, goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::Durability;
use tokio::sync::mpsc;

use super::{COMMITTED, LOG, LogStoreError, META, PURGED, Shared, VOTE, record};
use crate::raft::types::{Entry, LogId, Vote};

/// Jobs in one transaction at most, so that the first one's answer is not held back without end.
const JOINED_MAX: usize = 64;

/// Called with the duration of each commit.
pub(super) type OnCommit = Box<dyn Fn(Duration) + Send>;
/// Called once, with the outcome or the reason of the failure.
pub(super) type Done = Box<dyn FnOnce(Result<(), &str>) + Send>;

/// A change of the log.
pub(super) enum Change {
    Append(Vec<Entry>),
    /// Removes this index and all above it.
    Truncate(u64),
    /// Removes this index and all below it; all above it too if they belong to another history.
    Purge {
        upto: LogId,
        all: bool,
    },
    Vote(Vote),
}

/// A change, whom to tell, and how many truncations preceded it.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) truncations: u64,
    pub(super) done: Done,
}

/// Runs until the queue closes or a write fails.
pub(super) fn run(mut queue: mpsc::Receiver<Job>, shared: &Arc<Shared>, on_commit: Option<OnCommit>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < JOINED_MAX
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        match commit(shared, &jobs) {
            Ok(took) => {
                if let Some(on_commit) = &on_commit {
                    on_commit(took);
                }
                settle(shared, jobs);
            }
            Err(error) => return refuse_all(queue, shared, jobs, &error),
        }
    }
    // a clean end: keep the committed pointer, so that a restart re-applies without waiting for a leader
    if shared.state().committed_unsaved
        && let Err(error) = commit(shared, &[])
    {
        shared.fail(&error);
    }
}

fn commit(shared: &Shared, jobs: &[Job]) -> Result<Duration, LogStoreError> {
    let committed = shared.state().take_unsaved_committed();
    let mut txn = shared.db.begin_write().map_err(LogStoreError::engine("begin a write"))?;
    txn.set_durability(Durability::Immediate).map_err(LogStoreError::engine("ask for durability"))?;
    let (mut entries, mut bytes) = (0u64, 0u64);
    {
        let mut log = txn.open_table(LOG).map_err(LogStoreError::engine("open the log table"))?;
        let mut meta = txn.open_table(META).map_err(LogStoreError::engine("open the meta table"))?;
        for job in jobs {
            match &job.change {
                Change::Append(batch) => {
                    for entry in batch {
                        let index = entry.log_id.index;
                        let record = record::encode(entry)?;
                        entries += 1;
                        bytes += record.len() as u64;
                        let old = log
                            .insert(index, record.as_slice())
                            .map_err(LogStoreError::engine("insert an entry"))?;
                        if old.is_some() {
                            return Err(LogStoreError::Overwrite { index });
                        }
                    }
                }
                Change::Truncate(from) => {
                    log.retain_in(*from.., |_, _| false).map_err(LogStoreError::engine("truncate"))?;
                }
                Change::Purge { upto, all } => {
                    let end = if *all { u64::MAX } else { upto.index };
                    log.retain_in(..=end, |_, _| false).map_err(LogStoreError::engine("purge"))?;
                    put(&mut meta, PURGED, &record::encode(upto)?)?;
                }
                Change::Vote(vote) => put(&mut meta, VOTE, &record::encode(vote)?)?,
            }
        }
        if let Some(committed) = committed {
            put(&mut meta, COMMITTED, &record::encode(&committed)?)?;
        }
    }
    let began = Instant::now();
    txn.commit().map_err(LogStoreError::engine("commit"))?;
    let took = began.elapsed();
    shared.counters.record(jobs.len() as u64, entries, bytes, took);
    Ok(took)
}

fn put(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    record: &[u8],
) -> Result<(), LogStoreError> {
    meta.insert(key, record).map_err(LogStoreError::engine("insert a pointer"))?;
    Ok(())
}

fn settle(shared: &Shared, jobs: Vec<Job>) {
    {
        let mut state = shared.state();
        for job in &jobs {
            if let Change::Append(entries) = &job.change
                && let Some(last) = entries.last()
            {
                state.made_durable(last.log_id.index, job.truncations);
            }
        }
        for job in &jobs {
            let index = match &job.change {
                Change::Append(entries) => entries.last().map(|last| last.log_id.index),
                Change::Truncate(from) => Some(from.saturating_sub(1)),
                Change::Vote(_) | Change::Purge { .. } => None,
            };
            if let Some(index) = index {
                shared.durable.send_replace(index);
            }
        }
    }
    for job in jobs {
        (job.done)(Ok(()));
    }
}

fn refuse_all(mut queue: mpsc::Receiver<Job>, shared: &Shared, jobs: Vec<Job>, error: &LogStoreError) {
    let reason = shared.fail(error);
    queue.close();
    for job in jobs {
        (job.done)(Err(&reason));
    }
    while let Some(job) = queue.blocking_recv() {
        (job.done)(Err(&reason));
    }
}
