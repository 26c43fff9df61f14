//! quorated: the node. Sockets, disk, clocks and tasks around the pure protocol of quorate-core.
#![forbid(unsafe_code)]

#[cfg(all(feature = "danger-hostile", not(debug_assertions)))]
compile_error!("danger-hostile contains attacks: it is for tests, and no release can contain it");

pub mod attester;
pub mod blobs;
pub mod boot;
pub mod clock;
pub mod config;
pub mod cosign_stream;
pub mod cosigner;
#[cfg(feature = "danger-hostile")]
pub mod danger_hostile;
pub mod directory;
pub mod enrol;
pub mod evidence;
pub mod giveup;
pub mod hardening;
pub mod http;
pub mod init;
pub mod keyer;
pub mod ledger;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod pool;
pub mod proposer;
pub mod raft;
pub mod recovery;
pub mod relay;
pub mod report;
pub mod services;
pub mod shares;
pub mod snapshots;
pub mod tilestore;
