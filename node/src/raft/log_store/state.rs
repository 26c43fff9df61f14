//! What is in memory: the log as it will be once the queue is written, and its most recent entries.

use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::Instant;

use openraft::EntryPayload;

use super::LogStoreError;
use super::journal::{Pointers, Step};
use super::places::{Located, Places};
use super::replay::Replayed;
use super::segment::Segment;
use crate::raft::types::{Entry, LogId, Vote};

/// Entries kept in memory: followers a moment behind are served without touching the disk.
pub(super) const TAIL_ENTRIES_MAX: usize = 4096;
/// Bytes kept in memory for the same; entries not yet durable are kept beyond both bounds.
pub(super) const TAIL_BYTES_MAX: usize = 16 << 20;
/// What an entry without a batch, and each entry's surroundings, count for in these bounds.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// The log as it will be once the queue is written.
pub(super) struct State {
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    /// The first index present, or where it would be.
    pub(super) first: u64,
    /// The most recent entries, ending with `last`.
    pub(super) tail: VecDeque<Entry>,
    pub(super) tail_bytes: usize,
    /// Below this index everything present is durable.
    pub(super) durable_end: u64,
    /// Since when the oldest entry waits that is not durable.
    pub(super) waiting_since: Option<Instant>,
    /// Counts truncations, so that whoever looked away can tell.
    pub(super) truncations: u64,
    /// Where the entries on disk are; changes once a write is durable.
    places: Places,
    /// The last durable vote.
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) committed_unsaved: bool,
}

/// An entry that does not follow its predecessor.
pub(super) struct Gap {
    pub(super) prev: Option<LogId>,
    pub(super) next: LogId,
}

/// What a range holds: first on disk, then in memory.
pub(super) struct View {
    pub(super) disk: Vec<Located>,
    pub(super) tail: Vec<Entry>,
}

impl State {
    pub(super) fn new(replayed: Replayed) -> Self {
        let Pointers { first, last, purged, vote, committed } = replayed.pointers;
        Self {
            purged,
            last,
            first,
            tail: VecDeque::new(),
            tail_bytes: 0,
            durable_end: last.map_or(0, |last| last.index + 1),
            waiting_since: None,
            truncations: 0,
            places: replayed.places,
            vote,
            committed,
            committed_unsaved: false,
        }
    }

    /// One above the last index.
    pub(super) fn end(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1)
    }

    fn tail_first(&self) -> u64 {
        self.tail.front().map_or_else(|| self.end(), |entry| entry.log_id.index)
    }

    /// What a range holds now. What is not in the tail is on disk: only durable entries leave the tail.
    pub(super) fn view(&self, start: u64, end: u64, bytes_max: usize) -> Result<View, LogStoreError> {
        let tail_first = self.tail_first();
        let (start, end) = (start.max(self.first), end.min(self.end()));
        let from = usize::try_from(start.saturating_sub(tail_first)).unwrap_or(usize::MAX);
        let upto = usize::try_from(end.saturating_sub(tail_first)).unwrap_or(usize::MAX);
        let on_disk = start..end.min(tail_first);
        let wanted = on_disk.end.saturating_sub(on_disk.start);
        let disk = self.places.locate(on_disk, bytes_max)?;
        let cut = (disk.len() as u64) < wanted;
        let tail = match cut {
            true => Vec::new(),
            false => self.tail.iter().take(upto).skip(from).cloned().collect(),
        };
        Ok(View { disk, tail })
    }

    /// Notes where the writer put what is now durable.
    pub(super) fn written(&mut self, begun: Option<Arc<Segment>>, steps: &[Step]) {
        if let Some(segment) = begun {
            self.places.add_segment(segment);
        }
        steps.iter().for_each(|step| self.places.apply(step));
    }

    pub(super) fn take_unneeded(&mut self, active: u64) -> Vec<Arc<Segment>> {
        self.places.take_unneeded(active)
    }

    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), Gap> {
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
        self.waiting_since.get_or_insert_with(Instant::now);
        self.tail_bytes += entries.iter().map(weight).sum::<usize>();
        self.tail.extend(entries.iter().cloned());
        Ok(())
    }

    pub(super) fn truncate(&mut self, from: u64, new_last: Option<LogId>) {
        while self.tail.back().is_some_and(|entry| entry.log_id.index >= from)
            && let Some(entry) = self.tail.pop_back()
        {
            self.tail_bytes -= weight(&entry);
        }
        self.last = new_last;
        self.durable_end = self.durable_end.min(from);
        self.waiting_since = None;
        self.truncations += 1;
    }

    pub(super) fn purge(&mut self, upto: LogId, all: bool) {
        while self.tail.front().is_some_and(|entry| all || entry.log_id.index <= upto.index) {
            self.pop_front();
        }
        self.first = upto.index + 1;
        self.purged = Some(upto);
        if all {
            self.last = Some(upto);
            self.durable_end = upto.index + 1;
            self.waiting_since = None;
            self.truncations += 1;
        }
    }

    /// Notes a durable append, unless a truncation came between, and lets go of what the tail need not keep.
    pub(super) fn made_durable(&mut self, last: u64, truncations: u64) {
        if truncations != self.truncations {
            return;
        }
        self.durable_end = self.durable_end.max(last + 1);
        // What came while this was written waits from now on.
        self.waiting_since = (self.durable_end < self.end()).then(Instant::now);
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

    pub(super) fn take_unsaved_committed(&mut self) -> Option<LogId> {
        match std::mem::take(&mut self.committed_unsaved) {
            true => self.committed,
            false => None,
        }
    }
}

/// The longest run of consecutive entries from the first on, within the bound.
pub(super) fn bounded(entries: Vec<Entry>, bytes_max: usize) -> Vec<Entry> {
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

/// What an entry counts for where bytes are bounded.
pub(super) fn weight(entry: &Entry) -> usize {
    let batch = match &entry.payload {
        EntryPayload::Normal(batch) => batch.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    ENTRY_OVERHEAD_BYTES.saturating_add(batch)
}
