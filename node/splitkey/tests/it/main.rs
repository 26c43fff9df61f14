//! The crate against real TLS endpoints, in memory.

// The configured exemption reaches `#[test]` functions only, not the helpers they share.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "test code")]

mod fuzz;
mod hole;
mod properties;
mod request;
mod support;
mod watch;
