//! Tests of the whole crate over logs made by the real state machine.
mod honest;
