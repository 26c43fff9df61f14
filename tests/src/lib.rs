//! The harness of the end-to-end tests: meshes of real processes with software TPMs, and waiting for conditions.
//!
//! Meshes are dear, so the tests of one binary share one, one test at a time: see [`Shared`]. A mesh that a test failed on
//! is not used again; its folder stays, and the failure says where and shows the last lines of every log. Binaries come from
//! the target folder beside the test, so they must be built before (`cluster/test` does). They are linked into the mesh's
//! own folder: a build that runs meanwhile must not change what was measured.
//!
//! Whatever a mesh started ends with the test's process, however that ends: see [`lab`]. There is no fixed pause anywhere: a
//! test waits for what it needs, and a bound turns waiting into a failure that names what was awaited.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod contrary;
pub mod drill;
pub mod hostile;
pub mod hostile_build;
pub mod lab;
pub mod raw;
pub mod recorder;
pub mod rogue;
pub mod stacks;
pub mod tlog;

pub use lab::{Lab, Shared};
pub use quorate_cluster::mesh::{http_get, run, wait_for};
pub use tlog::Tlog;

/// Says that a test did not run, and why, past libtest's capture: `cluster/test` lists these lines.
pub fn skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let _unheard = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}
