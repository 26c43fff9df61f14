//! Why the log could not be opened, read or written.

use std::io;
use std::path::{Path, PathBuf};

use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};

use super::frame::FORMAT_VERSION;
use crate::raft::types::{RaftNodeId, StorageError};

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
    /// Another process has it open.
    #[error("the Raft log at {path} is in use")]
    InUse {
        /// Where it is.
        path: PathBuf,
    },
    /// The file system refused; a full disk and a failed fsync come out here.
    #[error("could not {doing} {path}")]
    File {
        /// The attempt.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// This is no log, or another version's.
    #[error("the log's format is not version {FORMAT_VERSION}: {got:?}")]
    UnknownFormat {
        /// The version found, if any.
        got: Option<u32>,
    },
    /// What was durable is damaged.
    #[error("segment {segment} of the log is damaged at byte {offset}: {what}")]
    Damaged {
        /// The segment.
        segment: u64,
        /// Where in its file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A segment between others is gone.
    #[error("segment {segment} of the log is missing")]
    MissingSegment {
        /// The one that should be there.
        segment: u64,
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
    /// More in one write than a segment may hold.
    #[error("{bytes} bytes in one write of the log")]
    WriteTooLong {
        /// The length.
        bytes: usize,
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
    pub(super) fn file(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { doing, path, source }
    }

    pub(super) fn into_storage(self, subject: ErrorSubject<RaftNodeId>, verb: ErrorVerb) -> StorageError {
        StorageIOError::new(subject, verb, AnyError::new(&self)).into()
    }
}
