//! Whole meshes in one process on virtual time from one seed: the product's state machine, Raft, log store, ledger, cosigner,
//! proposer, network layer, guards, and proofs of what is certified, over a simulated network, disk, clock and TPM.
//!
//! What is **mirrored** rather than run, since it speaks tonic or tss-esapi in the product: the peer service's order of checks
//! ([`peer`]), evidence, recovery and the question for one's own lock ([`attest`]), when a tail is given up ([`giveup`]), when a
//! snapshot is kept and where its tiles come from ([`snapshots`]), and what relay and keyer ask of the log ([`keyer`]). Whoever
//! changes those changes these. **Not here**: changes of members, TLS and its records.
//!
//! ```text
//! seed ─► plan: nodes, faults, lies ─► run, while clients ask ─► everything heals ─► a request must succeed
//!                                       └── oracle: every cosignature, certificate, released half and filled hole
//! ```
//! `tests/sim/run --seeds 0..1000 [--byzantine]` runs seeds, `--seed N --trace` replays one, `--shrink` leaves out what a failure
//! does not need. tokio wakes several waiters of one channel in an order that follows from a seed only under
//! `--cfg tokio_unstable`, which the script sets; elsewhere two runs of a seed may differ, and both must be right.
//!
//! What it found, and the bugs put back that it must find: `README.md` beside this crate.
#![cfg(feature = "mesh")]
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test code: a broken invariant should stop the run, and all inputs are the simulation's own"
)]

pub mod attest;
pub mod byzantine;
pub mod client;
pub mod clock;
pub mod disk;
pub mod giveup;
pub mod keyer;
pub mod mutation;
pub mod network;
pub mod node;
pub mod oracle;
pub mod peer;
pub mod rng;
pub mod rogue;
pub mod run;
pub mod schedule;
pub mod shrink;
pub mod snapshots;
pub mod trace;
pub mod world;
