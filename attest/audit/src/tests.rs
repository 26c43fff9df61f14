//! Tests of the whole crate over logs made by the real state machine.
pub(crate) mod busy;
mod copies;
mod foreign;
mod honest;
mod proofs;
mod tamper;
