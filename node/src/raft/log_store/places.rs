//! Where on disk each entry is, and which segments are still needed for that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::journal::{Place, Purge, Step, Truncation};
use super::segment::Segment;
use super::{LogStoreError, record};
use crate::raft::types::Entry;

/// The entries on disk. The writer alone changes it, after a sync.
#[derive(Default)]
pub(super) struct Places {
    /// The index of the first place.
    first: u64,
    /// Segments never fall along the indexes: an entry is written after its predecessor.
    places: VecDeque<Place>,
    segments: BTreeMap<u64, Arc<Segment>>,
}

/// One entry to read. Holding it keeps its segment from being written over.
pub(super) struct Located {
    index: u64,
    place: Place,
    segment: Arc<Segment>,
}

impl Located {
    /// Reads the entry.
    pub(super) fn read(&self) -> Result<Entry, LogStoreError> {
        let record = self.segment.read(u64::from(self.place.offset), self.place.length as usize)?;
        record::decode_entry(self.index, &record)
    }
}

impl Places {
    /// No entry is placed yet; the first to come has this index.
    pub(super) fn starting_at(first: u64) -> Self {
        Self { first, ..Self::default() }
    }

    /// The index of the first place, and how many follow.
    pub(super) fn extent(&self) -> (u64, u64) {
        (self.first, self.places.len() as u64)
    }

    pub(super) fn apply(&mut self, step: &Step) {
        match *step {
            Step::Entry(log_id, place) => {
                if self.places.is_empty() {
                    self.first = log_id.index;
                }
                self.places.push_back(place);
            }
            Step::Truncate(Truncation { from, .. }) => {
                let keep = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
                self.places.truncate(keep);
            }
            Step::Purge(Purge { all: true, .. }) => self.places.clear(),
            Step::Purge(Purge { upto, .. }) => {
                while self.first <= upto.index && self.places.pop_front().is_some() {
                    self.first += 1;
                }
            }
            Step::Vote(_) | Step::Committed(_) => {}
        }
    }

    pub(super) fn add_segment(&mut self, segment: Arc<Segment>) {
        self.segments.insert(segment.id(), segment);
    }

    /// Takes out the segments before `active` that hold nothing needed, oldest first.
    pub(super) fn take_unneeded(&mut self, active: u64) -> Vec<Arc<Segment>> {
        let needed = self.places.front().map_or(active, |place| place.segment.min(active));
        if self.segments.first_key_value().is_none_or(|(first, _)| *first >= needed) {
            return Vec::new();
        }
        let kept = self.segments.split_off(&needed);
        std::mem::replace(&mut self.segments, kept).into_values().collect()
    }

    /// The entries of a range of indexes, up to the first one with which they are longer than `bytes_max`.
    pub(super) fn locate(
        &self,
        range: std::ops::Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Located>, LogStoreError> {
        let mut located = Vec::new();
        let mut bytes = 0usize;
        for index in range {
            let at = index.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
            let place = at.and_then(|at| self.places.get(at)).copied();
            let segment = place.and_then(|place| self.segments.get(&place.segment)).cloned();
            let (Some(place), Some(segment)) = (place, segment) else {
                return Err(LogStoreError::CorruptEntry { index, what: "it is missing" });
            };
            located.push(Located { index, place, segment });
            bytes = bytes.saturating_add(place.length as usize);
            if bytes > bytes_max {
                break;
            }
        }
        Ok(located)
    }
}
