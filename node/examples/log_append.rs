//! How long an append to Raft's log takes until it is durable, through the same calls that Raft makes.
//!
//! `cargo run --release -p quorated --example log_append [FOLDER]`; measure in the folder (thus on the disk) that will be
//! used. Without one it takes a temporary folder, which may be memory and then shows nothing about a disk.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt as _;
use openraft::testing::blank_ent;
use quorated::raft::{Batch, CertifiedFloor, LogStore, LogStoreOptions, TypeConfig};

const ROUNDS: usize = 2_000;
const ENTRY_BYTES: usize = 512;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(&parent).with_context(|| format!("no room in {}", parent.display()))?;
    let path = folder.path().join("raft");
    LogStore::create(&path)?;
    let mut store = LogStore::open(&path, CertifiedFloor::new(), LogStoreOptions::default())?;

    println!("durable appends of {ENTRY_BYTES} byte entries in {}, {ROUNDS} rounds", parent.display());
    println!("{:>8} {:>10} {:>10} {:>10}", "entries", "p50 us", "p99 us", "max us");
    let mut index = 0;
    for count in [1, 32] {
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                let mut entry = blank_ent::<TypeConfig>(1, 1, index);
                entry.payload = EntryPayload::Normal(Batch::new(vec![0x5a; ENTRY_BYTES])?);
                entries.push(entry);
                index += 1;
            }
            let began = Instant::now();
            store.blocking_append(entries).await?;
            times.push(began.elapsed());
        }
        times.sort();
        let at = |share: usize| times.get((times.len() - 1) * share / 100).map_or(0, Duration::as_micros);
        println!("{count:>8} {:>10} {:>10} {:>10}", at(50), at(99), at(100));
    }
    let stats = store.stats();
    let mean = stats.commit_us_total / stats.commits.max(1);
    println!("{} commits, {mean} us each on average inside the storage engine", stats.commits);
    Ok(())
}
