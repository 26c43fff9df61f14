//! The pure protocol of quorate: ids, policy, commands, the replicated state machine, the tlog's formats and what a
//! certificate proves.
//!
//! No clock, no randomness, no disk and no network: time and logs are arguments, output is data. Every node, the
//! client and the auditor run this same code, so that a decision can be replayed by anyone who has the tlog.
#![forbid(unsafe_code)]

#[cfg(all(feature = "danger-hostile", not(debug_assertions)))]
compile_error!("danger-hostile switches defences off: it is for tests, and no release can contain it");

pub mod certificate;
pub mod command;
pub mod crypto;
#[cfg(feature = "danger-hostile")]
pub mod danger_hostile;
pub mod ids;
pub mod leaf;
pub mod policy;
pub mod proof;
pub mod refusal;
pub mod rendezvous;
pub mod shares;
pub mod sshsig;
pub mod state;
#[cfg(any(test, feature = "danger-testing"))]
pub mod testing;
pub mod tlog;
pub mod token;
