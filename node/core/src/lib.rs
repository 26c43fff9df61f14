//! quorate-core: the pure protocol. No clock, no randomness, no disk, no network.
pub mod tlog;
