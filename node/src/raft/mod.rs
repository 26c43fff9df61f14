//! Raft's types and its durable storage.
//!
//! What is decided here: when an entry, a vote or a snapshot counts as durable, and what may never be
//! taken back ([`CertifiedFloor`]). What is assumed: the disk keeps what it acknowledged after a
//! sync. What is left to others: the state machine, the network, and every check on what an entry
//! says; to this module a [`Batch`] is opaque bytes.
//!
//! Raft survives crashed nodes, not lying ones. Against a lying leader this module holds one line
//! only: an index at or below the certified floor is never truncated.

pub mod guard;
pub mod log_store;
pub mod network;
pub mod patience;
pub mod snapshot_store;
pub mod state_machine;
pub mod types;
pub mod withheld;

pub use log_store::{
    Blob, CertifiedFloor, Folder, LogMonitor, LogReader, LogStats, LogStore, LogStoreError, LogStoreOptions,
};
pub use snapshot_store::{LoadedSnapshots, SnapshotDigest, SnapshotError, SnapshotStore, StoredSnapshot};
pub use types::{Applied, Batch, BatchTooLarge, TypeConfig};
