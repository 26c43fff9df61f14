//! quorated: the node. Sockets, disk, clocks and tasks around the pure protocol of quorate-core.
#![forbid(unsafe_code)]

pub mod blobs;
pub mod ledger;
pub mod raft;
pub mod tilestore;
