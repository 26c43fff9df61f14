//! The benchmark: what a mesh of attested nodes adds to a direct TLS connection, and what it costs.
//!
//! "Direct" is the same client code on connections to the same provider that were opened ahead, without the mesh. Direct and
//! mesh alternate in short rounds, so that both see the same machine; so does `fdatasync` on the nodes' own filesystem. Every
//! answer is compared with the direct one, and receipts are verified from genesis, so that a mesh which cheats shows.

mod cells;
mod probe;
mod report;
mod sample;

pub use cells::{Plan, measure};
pub use report::Report;
