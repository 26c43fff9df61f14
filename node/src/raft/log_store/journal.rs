//! What frames say: changes of the log one after the other, and the pointers that sum up all before them.
//!
//! A body is `kind u8 | length u32 | record` repeated, then zeros up to a multiple of 8; an empty body says only
//! that what precedes is durable. The first frame of a segment begins with the [`Pointers`] as they were, so
//! that the segments before it can go once none of their entries is needed.

use serde::{Deserialize, Serialize};

use super::frame::{ALIGN, FRAME_HEADER_BYTES, Fields};
use super::{LogStoreError, record};
use crate::raft::types::{LogId, Vote};

/// Kinds of records.
const PADDING: u8 = 0;
pub(super) const POINTERS: u8 = 1;
pub(super) const ENTRY: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
pub(super) const VOTE: u8 = 5;
const COMMITTED: u8 = 6;
/// Kind and length before each record.
const RECORD_HEADER_BYTES: usize = 5;

/// Where an entry's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// One change, as it is replayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    Entry(LogId, Place),
    Truncate(Truncation),
    Purge(Purge),
    Vote(Vote),
    Committed(LogId),
}

impl Step {
    /// Whether losing it costs time only.
    pub(super) fn is_hint(&self) -> bool {
        matches!(self, Self::Committed(_))
    }
}

/// Removes `from` and all above it; `last` is then the last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Truncation {
    pub(super) from: u64,
    pub(super) last: Option<LogId>,
}

/// Removes `upto` and all below it; all above it too if they belong to another history.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Purge {
    pub(super) upto: LogId,
    pub(super) all: bool,
}

/// Everything about a log but its entries.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Pointers {
    /// The first index present, or where it would be.
    pub(super) first: u64,
    pub(super) last: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
}

impl Pointers {
    /// One above the last index.
    pub(super) fn end(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index.saturating_add(1))
    }

    pub(super) fn apply(&mut self, step: &Step) -> Result<(), LogStoreError> {
        match *step {
            Step::Entry(log_id, _) => {
                let (index, end) = (log_id.index, self.end());
                // an empty log may begin anywhere
                match self.last {
                    None => self.first = index,
                    Some(_) if index < end => return Err(LogStoreError::Overwrite { index }),
                    Some(_) if index > end => {
                        return Err(LogStoreError::Hole { first: end, last: index, count: 1 });
                    }
                    Some(_) => {}
                }
                self.last = Some(log_id);
            }
            Step::Truncate(Truncation { last, .. }) => self.last = last,
            Step::Purge(Purge { upto, all }) => {
                self.first = upto.index.saturating_add(1);
                self.purged = Some(upto);
                if all {
                    self.last = Some(upto);
                }
            }
            Step::Vote(vote) => self.vote = Some(vote),
            Step::Committed(committed) => self.committed = Some(committed),
        }
        Ok(())
    }
}

/// A frame in the making, with room for its header.
pub(super) struct Draft(Vec<u8>);

impl Draft {
    pub(super) fn new() -> Self {
        Self(vec![0; FRAME_HEADER_BYTES])
    }

    /// Adds a record; returns where it begins in the frame, and its length.
    pub(super) fn put(&mut self, kind: u8, record: &[u8]) -> Result<(u32, u32), LogStoreError> {
        let bytes = self.0.len().saturating_add(record.len());
        let too_long = |_| LogStoreError::WriteTooLong { bytes };
        let length = u32::try_from(record.len()).map_err(too_long)?;
        self.0.push(kind);
        self.0.extend_from_slice(&length.to_le_bytes());
        let offset = u32::try_from(self.0.len()).map_err(too_long)?;
        self.0.extend_from_slice(record);
        Ok((offset, length))
    }

    pub(super) fn pointers(&mut self, pointers: &Pointers) -> Result<(), LogStoreError> {
        self.put(POINTERS, &record::encode(pointers)?).map(drop)
    }

    /// The record of an entry, encoded by the caller, who knows where the frame will be only later.
    pub(super) fn entry(&mut self, record: &[u8]) -> Result<(u32, u32), LogStoreError> {
        self.put(ENTRY, record)
    }

    /// Anything but an entry.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), LogStoreError> {
        match step {
            Step::Entry(..) => Ok(()),
            Step::Truncate(truncation) => self.put(TRUNCATE, &record::encode(truncation)?).map(drop),
            Step::Purge(purge) => self.put(PURGE, &record::encode(purge)?).map(drop),
            Step::Vote(vote) => self.put(VOTE, &record::encode(vote)?).map(drop),
            Step::Committed(committed) => self.put(COMMITTED, &record::encode(committed)?).map(drop),
        }
    }

    /// Pads it: the whole frame, its header still empty.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self.0
    }
}

/// What one frame says.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The pointers before it, if it is a segment's first.
    pub(super) pointers: Option<Pointers>,
    pub(super) steps: Vec<Step>,
}

/// Reads a body that begins at `offset` of its segment. A valid frame that says something else than the writer would is
/// damage, too.
pub(super) fn read(segment: u64, offset: usize, body: &[u8]) -> Result<Told, LogStoreError> {
    let damaged = |what| LogStoreError::Damaged { segment, offset: offset as u64, what };
    let mut told = Told::default();
    let mut fields = Fields(body);
    while let Some(kind) = fields.u8() {
        if kind == PADDING {
            if fields.0.len() >= ALIGN || fields.0.iter().any(|byte| *byte != 0) {
                return Err(damaged("its padding is not zeros"));
            }
            break;
        }
        let length = fields.u32().and_then(|length| usize::try_from(length).ok());
        let begin = offset.saturating_add(body.len().saturating_sub(fields.0.len()));
        let record = length.and_then(|length| fields.slice(length));
        let record = record.ok_or_else(|| damaged("a record is cut short"))?;
        fn decode<T: serde::de::DeserializeOwned>(
            key: &'static str,
            record: &[u8],
        ) -> Result<T, LogStoreError> {
            record::decode(record).map_err(|what| LogStoreError::CorruptPointer { key, what })
        }
        let first = begin == offset.saturating_add(RECORD_HEADER_BYTES);
        match kind {
            POINTERS if first => told.pointers = Some(decode("pointers", record)?),
            POINTERS => return Err(damaged("pointers are not at the head of a segment")),
            ENTRY => {
                let log_id = record::log_id(record).map_err(damaged)?;
                let fits = (u32::try_from(begin), u32::try_from(record.len()));
                let (Ok(offset), Ok(length)) = fits else { return Err(damaged("it is too long")) };
                told.steps.push(Step::Entry(log_id, Place { segment, offset, length }));
            }
            TRUNCATE => told.steps.push(Step::Truncate(decode("truncation", record)?)),
            PURGE => told.steps.push(Step::Purge(decode("purge", record)?)),
            VOTE => told.steps.push(Step::Vote(decode("vote", record)?)),
            COMMITTED => told.steps.push(Step::Committed(decode("committed", record)?)),
            _ => return Err(damaged("a record is of an unknown kind")),
        }
    }
    Ok(told)
}
