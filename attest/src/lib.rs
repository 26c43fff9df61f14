//! The Verifier of RFC 9334: bytes, time and policy in, a decision out.
//!
//! Nothing here reads a clock, a file or the network, and nothing here links a TPM library: what a node sends is
//! parsed by hand, with a named bound on every length, and judged against what admins signed. Only [`credential`]
//! and the signing half of [`approval`] use randomness, and only an admin's machine runs them.
//!
//! | module | RFC 9334 |
//! |---|---|
//! | [`evidence`], [`qualifying`] | Evidence, and what makes it fresh |
//! | [`endorsement`], [`credential`] | Endorsements: which TPM holds the AK |
//! | [`reference_values`] | Reference Values |
//! | [`eventlog`], [`ima`] | the logs that explain PCR values |
//! | [`appraisal`] | appraisal, and its result |
//! | [`approval`] | (none: which states of a machine may open what is sealed to its TPM) |
#![forbid(unsafe_code)]

pub mod appraisal;
pub mod approval;
pub mod credential;
pub mod endorsement;
pub mod eventlog;
pub mod evidence;
#[cfg(test)]
mod fixtures;
pub mod ima;
pub mod qualifying;
mod read;
pub mod reference_values;
#[cfg(any(test, feature = "danger-testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tpm;
