//! `quorate-audit`: what an auditor decides alone, offline and later, from the genesis digest and a copy of any node's log.
//!
//! | module | |
//! |---|---|
//! | [`store`] | a mirror: a folder of C2SP tiles, checkpoints and blobs, read with every byte in doubt |
//! | [`replay`] | history through the state machine that the nodes run; the same leaves must come out |
//! | [`mirror`] | fills such a folder from a node or from another mirror |
//! | [`verify`] | replays all of it and says what holds, or what failed, where, and what that means |
//! | [`life`], [`prove`] | one request: who asked, through whom, on which measured software, and proofs of that for others |
//! | [`monitor`] | follows all nodes and a witness; compares what they sign and raises what somebody should look at |
//! | [`witness`] | a C2SP tlog-witness, and the feeding of one |
//! | [`report`] | one HTML page for people: who was attested when, policy, requests, what was out of the ordinary |
//! | [`manifest`] | signed release manifests: binaries, packages and provenance behind reference values |
//! | [`blast_radius`] | which requests met a binary or a package, by the nodes' own evidence |
//! | [`prune`] | cuts a prefix off a mirror without losing proofs of what remains |
//! | [`finding`] | what can be wrong, as facts with a place |
//!
//! **Assumes** SHA-256, Ed25519, and the genesis digest that the auditor was given. **Trusts** no node, no mirror and no
//! transport: whatever was altered, dropped, swapped or cut is a [`finding::Finding`]. What no copy can show by itself is
//! that there is no second, equally certified history: comparing what several nodes serve does.
#![forbid(unsafe_code)]

pub mod blast_radius;
pub mod cli;
pub mod fetch;
pub mod finding;
pub mod life;
pub mod manifest;
pub mod mirror;
pub mod monitor;
pub mod prove;
pub mod prune;
pub mod replay;
pub mod report;
pub mod store;
#[cfg(any(test, feature = "danger-testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod witness;
pub mod words;
