//! quorated: the node. Sockets, disk, clocks and tasks around the pure protocol of quorate-core.
#![forbid(unsafe_code)]

pub mod blobs;
pub mod ledger;
pub mod raft;
pub mod tilestore;
pub mod attester;
pub mod boot;
pub mod clock;
pub mod config;
pub mod cosigner;
pub mod peers;
pub mod proposer;
pub mod evidence;
pub mod recovery;
pub mod report;
pub mod cosign_stream;
pub mod snapshots;
pub mod init;
pub mod enrol;
pub mod membership;
pub mod node;
pub mod directory;
pub mod services;
pub mod http;
pub mod keyer;
pub mod metrics;
pub mod pool;
pub mod relay;
