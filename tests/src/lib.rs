//! The harness of the end-to-end tests: real processes, real sockets, software TPMs, and waiting for conditions.
//!
//! A test makes a [`Workdir`], starts things in it, waits with [`Workdir::wait_for`], and ends with
//! [`Workdir::passed`]; until that is called the folder with every log is kept, and the failure says where.
//! Whatever a test started ends when its handle is dropped, also while panicking. Binaries come from the target
//! folder beside the test, so `cargo build --workspace --bins` must run before; `cluster/test` does.
//!
//! There is no fixed pause anywhere: a test waits for what it needs, and a bound turns waiting into a failure that
//! names what was awaited, why the last look failed, and the last lines of every log.
#![forbid(unsafe_code)]

pub mod bins;
pub mod cluster;
pub mod net;
pub mod process;
pub mod provider;
pub mod tpm;
pub mod workdir;

pub use crate::cluster::Cluster;
pub use crate::net::{PortBlock, http_get};
pub use crate::process::Process;
pub use crate::provider::DemoProvider;
pub use crate::tpm::SoftTpm;
pub use crate::workdir::Workdir;

/// Says that a test did not run, and why, past libtest's capture: `cluster/test` lists these lines.
pub fn skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let _unheard = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}
