//! The one thread that writes: it joins what is queued into one frame, makes it durable, then answers.
//!
//! An answer is given only after one write and one `fdatasync` of the whole frame. After any failure the
//! thread answers everything with that failure and ends: a page that failed to reach the disk may be gone
//! from the page cache too, so trying again would prove nothing. Only a restart, which reads what the disk
//! really holds and writes its last frame once more, goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::disk::Folder;
use super::frame::{SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, Salt, Spot};
use super::journal::{Draft, Place, Pointers, Purge, Step, Truncation};
use super::replay::Replayed;
use super::segment::{Factory, Maker, Making, Segment};
use super::state::weight;
use super::{LogStoreError, Shared, record};
use crate::raft::types::{Entry, LogId, Vote};

/// Jobs in one frame at most, so that the first one's answer is not held back without end.
const JOINED_MAX: usize = 64;
/// Once a frame is this long, no further job joins it.
const JOINED_BYTES_MAX: usize = 4 << 20;

/// Called with the duration of each commit.
pub(super) type OnCommit = Box<dyn Fn(Duration) + Send>;
/// Called once, with the outcome or the reason of the failure.
pub(super) type Done = Box<dyn FnOnce(Result<(), &str>) + Send>;

/// A change of the log.
pub(super) enum Change {
    Append(Vec<Entry>),
    Truncate(Truncation),
    Purge(Purge),
    Vote(Vote),
}

impl Change {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(entries) => entries.iter().map(weight).sum(),
            Self::Truncate(_) | Self::Purge(_) | Self::Vote(_) => 0,
        }
    }
}

/// A change, whom to tell, and how many truncations preceded it.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) truncations: u64,
    pub(super) done: Done,
}

/// Where the next frame goes.
pub(super) struct End {
    salt: Salt,
    active: Arc<Segment>,
    at: u64,
    sequence: u64,
    pointers: Pointers,
    /// Whether the last frame says nothing that Raft relies on, and proves that those before were durable.
    sealed: bool,
    maker: Maker,
}

/// What became durable.
struct Committed {
    steps: Vec<Step>,
    entries: u64,
    bytes: u64,
    /// The segment that was begun, if one was.
    begun: Option<Arc<Segment>>,
    took: Duration,
}

impl End {
    pub(super) fn new(
        folder: Arc<dyn Folder>,
        replayed: &mut Replayed,
        segment_bytes: u64,
        making: Making,
    ) -> Result<Self, LogStoreError> {
        let factory = Factory::new(folder, replayed.salt, segment_bytes);
        let mut maker = Maker::start(factory, replayed.next.take(), making)?;
        for segment in replayed.places.take_unneeded(replayed.active.id()) {
            maker.retire(segment);
        }
        Ok(Self {
            salt: replayed.salt,
            active: Arc::clone(&replayed.active),
            at: replayed.at,
            sequence: replayed.sequence,
            pointers: replayed.pointers,
            sealed: replayed.sealed,
            maker,
        })
    }

    /// Writes one frame, in the next segment if it finds no room in this one.
    fn commit(&mut self, jobs: &[Job], committed: Option<LogId>) -> Result<Committed, LogStoreError> {
        let (mut steps, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        for job in jobs {
            match &job.change {
                Change::Append(entries) => {
                    for entry in entries {
                        let record = record::encode(entry)?;
                        bytes += record.len() as u64;
                        records.push(record);
                        // its place is known once the segment is
                        let place = Place { segment: 0, offset: 0, length: 0 };
                        steps.push(Step::Entry(entry.log_id, place));
                    }
                }
                Change::Truncate(truncation) => steps.push(Step::Truncate(*truncation)),
                Change::Purge(purge) => steps.push(Step::Purge(*purge)),
                Change::Vote(vote) => steps.push(Step::Vote(*vote)),
            }
        }
        steps.extend(committed.map(Step::Committed));
        let mut pointers = self.pointers;
        steps.iter().try_for_each(|step| pointers.apply(step))?;

        let mut frame = draft(None, &mut steps, &records)?;
        let mut begun = None;
        if self.at.saturating_add(frame.len() as u64) > self.active.room() {
            let id = self.active.id().saturating_add(1);
            let next = Arc::new(self.maker.take(id)?);
            frame = draft(Some(&self.pointers), &mut steps, &records)?;
            (self.active, self.at) = (Arc::clone(&next), SEGMENT_HEADER_BYTES as u64);
            begun = Some(next);
        }
        if frame.len().saturating_add(SEGMENT_HEADER_BYTES) > SEGMENT_BYTES_MAX {
            return Err(LogStoreError::WriteTooLong { bytes: frame.len() });
        }
        let segment = self.active.id();
        Spot { salt: self.salt, segment }.seal(&mut frame, self.at, self.sequence)?;
        let began = Instant::now();
        self.active.write_durably(self.at, &frame)?;
        let took = began.elapsed();

        for step in &mut steps {
            if let Step::Entry(_, place) = step {
                // below SEGMENT_BYTES_MAX, thus below u32::MAX
                let offset = u64::from(place.offset).saturating_add(self.at);
                *place = Place { segment, offset: u32::try_from(offset).unwrap_or(u32::MAX), ..*place };
            }
        }
        self.at += frame.len() as u64;
        self.sequence += 1;
        self.pointers = pointers;
        self.sealed = steps.iter().all(Step::is_hint);
        Ok(Committed { steps, entries: records.len() as u64, bytes, begun, took })
    }

    /// What need not be done before the answers.
    fn tidy(&mut self, shared: &Shared) {
        let unneeded = shared.state().take_unneeded(self.active.id());
        for segment in unneeded {
            self.maker.retire(segment);
        }
        if self.at >= self.active.room() / 2 {
            self.maker.ask(self.active.id().saturating_add(1));
        }
    }
}

/// The frame, and each entry's place in it.
fn draft(head: Option<&Pointers>, steps: &mut [Step], records: &[Vec<u8>]) -> Result<Vec<u8>, LogStoreError> {
    let mut draft = Draft::new();
    if let Some(pointers) = head {
        draft.pointers(pointers)?;
    }
    let mut records = records.iter();
    for step in steps {
        match step {
            Step::Entry(_, place) => {
                let record = records.next().map(Vec::as_slice).unwrap_or_default();
                (place.offset, place.length) = draft.entry(record)?;
            }
            step => draft.step(step)?,
        }
    }
    Ok(draft.finish())
}

/// The first frame of a new log.
pub(super) fn first_frame(salt: Salt, segment: u64) -> Result<Vec<u8>, LogStoreError> {
    let mut frame = draft(Some(&Pointers::default()), &mut [], &[])?;
    Spot { salt, segment }.seal(&mut frame, SEGMENT_HEADER_BYTES as u64, 1)?;
    Ok(frame)
}

/// Runs until the queue closes or a write fails.
pub(super) fn run(
    mut queue: mpsc::Receiver<Job>,
    shared: &Arc<Shared>,
    mut end: End,
    on_commit: Option<OnCommit>,
) {
    while let Some(first) = queue.blocking_recv() {
        let jobs = joined(first, &mut queue);
        match commit(shared, &mut end, &jobs) {
            Ok(committed) => {
                if let Some(on_commit) = &on_commit {
                    on_commit(committed.took);
                }
                settle(shared, jobs, committed);
                end.tidy(shared);
            }
            Err(error) => return refuse_all(queue, shared, jobs, &error),
        }
    }
    finish(shared, &mut end);
}

/// As [`run`], on the caller's executor; `pace` passes the time that a disk takes for one commit. For simulations, in which no
/// thread may run.
pub(super) async fn run_paced<P, F>(
    mut queue: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    mut end: End,
    mut pace: P,
) where
    P: FnMut() -> F,
    F: Future<Output = ()>,
{
    while let Some(first) = queue.recv().await {
        let jobs = joined(first, &mut queue);
        pace().await;
        match commit(&shared, &mut end, &jobs) {
            Ok(committed) => {
                settle(&shared, jobs, committed);
                end.tidy(&shared);
            }
            Err(error) => {
                let reason = refuse(&mut queue, &shared, jobs, &error);
                while let Some(job) = queue.recv().await {
                    (job.done)(Err(&reason));
                }
                return;
            }
        }
    }
    finish(&shared, &mut end);
}

/// What goes into one frame.
fn joined(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.change.bytes();
    let mut jobs = vec![first];
    while jobs.len() < JOINED_MAX
        && bytes < JOINED_BYTES_MAX
        && let Ok(job) = queue.try_recv()
    {
        bytes = bytes.saturating_add(job.change.bytes());
        jobs.push(job);
    }
    jobs
}

fn finish(shared: &Shared, end: &mut End) {
    // A clean end: keep the committed pointer, so that a restart re-applies without waiting for a leader. And prove, by
    // following it, that the last frame was durable.
    if (shared.state().committed_unsaved || !end.sealed)
        && let Err(error) = commit(shared, end, &[])
    {
        shared.fail(&error);
    }
}

fn commit(shared: &Shared, end: &mut End, jobs: &[Job]) -> Result<Committed, LogStoreError> {
    let pointer = shared.state().take_unsaved_committed();
    let committed = end.commit(jobs, pointer)?;
    shared.counters.record(jobs.len() as u64, committed.entries, committed.bytes, committed.took);
    Ok(committed)
}

fn settle(shared: &Shared, jobs: Vec<Job>, committed: Committed) {
    {
        let mut state = shared.state();
        state.written(committed.begun, &committed.steps);
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
                Change::Truncate(truncation) => Some(truncation.from.saturating_sub(1)),
                Change::Vote(_) | Change::Purge(_) => None,
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
    let reason = refuse(&mut queue, shared, jobs, error);
    while let Some(job) = queue.blocking_recv() {
        (job.done)(Err(&reason));
    }
}

fn refuse(queue: &mut mpsc::Receiver<Job>, shared: &Shared, jobs: Vec<Job>, error: &LogStoreError) -> String {
    let reason = shared.fail(error);
    queue.close();
    for job in jobs {
        (job.done)(Err(&reason));
    }
    reason
}
