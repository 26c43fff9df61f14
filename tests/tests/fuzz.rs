//! The fuzz targets of `tests/fuzz` on stable Rust, each for a few seconds: committed seeds, mutations of them, random bytes. Those of
//! `quorate-splitkey` run with that crate's tests; exploring is for `cargo fuzz`.
//!
//! **These bite**: a seed that code made must be what it claims to be, so a target that refuses everything fails.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise panics"
)]
#![allow(unreachable_pub, dead_code, missing_docs, reason = "modules of another crate")]
use std::time::Duration;

#[path = "../fuzz/src/disk.rs"]
mod disk;
#[path = "../fuzz/src/input.rs"]
mod input;
#[path = "../fuzz/src/log.rs"]
mod log;
#[path = "../fuzz/src/machine.rs"]
mod machine;
#[path = "../fuzz/src/peer.rs"]
mod peer;
#[path = "../fuzz/src/provider.rs"]
mod provider;
#[path = "../fuzz/src/smoke.rs"]
mod smoke;

/// For each target, beside its seeds.
const EACH: Duration = Duration::from_secs(3);

macro_rules! targets {
    ($($name:ident: $target:path),* $(,)?) => {
        /// Every target here.
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                smoke::run(&[(stringify!($name), $target)], EACH);
            }
        )*
    };
}

targets! {
    apply: log::apply,
    notes: log::notes,
    proofs: log::proofs,
    policies: log::policies,
    tpm: machine::tpm,
    eventlogs: machine::eventlogs,
    raft: peer::raft,
    messages: peer::messages,
    wal: disk::wal,
    snapshots: disk::snapshots,
    http: provider::http,
    requests: provider::requests,
    answers: provider::answers,
}

/// The seeds that code makes of real structures are committed; `QUORATE_WRITE_SEEDS=1` writes them. Review what it wrote.
#[test]
fn what_code_makes_seeds_of_is_committed() {
    let made = [log::seeds(), machine::seeds(), peer::seeds(), disk::seeds(), provider::seeds()].concat();
    for (target, name, bytes) in made {
        assert!(NAMES.contains(&target), "{target} is none of them");
        if smoke::writes_seeds() {
            smoke::write(target, &name, &bytes);
        }
        let path = smoke::folder(target).join(format!("{name}.seed"));
        assert!(path.is_file(), "{} is missing: write the seeds", path.display());
    }
}
