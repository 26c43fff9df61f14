//! The chaos of `cluster/chaos`, for as long as a test may take: the first disturbances of one seed, which kill the leader, break a
//! disk, make a node's links slow and lossy, and cut the leader off. The long run is for hands.
//!
//! Real processes, software TPMs, a network namespace and a disk for each node; needs root and the binaries.
//!
//! **These bite**: the report of a run is judged by the same code whose own tests break each promise, and a run in which anything
//! else happened than the seed draws fails.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "test code")]
use anyhow::{Context as _, ensure};
use quorate_tests::skipped;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const SEED: &str = "133391";
const DISTURBANCES: [&str; 4] = [
    "the leader killed",
    "a disk that broke",
    "a node with slow, lossy links",
    "the leader cut off from the others",
];
/// Machines that test are busy with other things; `cluster/chaos` by itself demands 15 s.
const BACK_S: &str = "60";

/// A command in namespaces of its own.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--"]);
    command
}

/// Why this cannot be done here.
fn missing() -> Option<String> {
    let tried = "ip link add name hub type bridge && nft add table ip slow && \
                 nft 'add chain ip slow out { type nat hook output priority -100; }' && test -e /dev/loop-control && \
                 command -v mkfs.ext4 && command -v swtpm && command -v ssh-keygen";
    match unshared().args(["sh", "-c", tried]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "no namespaces, bridge, nftables, loop devices or software TPMs for this user: {}",
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it was not root who ran it")
        )),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

#[test]
fn nothing_is_lost_while_nodes_disks_and_links_fail() {
    let test = "nothing_is_lost_while_nodes_disks_and_links_fail";
    if let Some(reason) = missing() {
        return skipped(test, &reason);
    }
    let dir = std::env::temp_dir().join(format!("quorate-e2e-chaos-{}", std::process::id()));
    match chaos(&dir) {
        Ok(()) => drop(std::fs::remove_dir_all(&dir)),
        Err(error) => panic!("{test}: {error:#}\nkept: {}", dir.display()),
    }
}

fn chaos(dir: &PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let report = dir.join("report.json");
    let output = unshared()
        .arg(env!("CARGO_BIN_EXE_quorate-chaos"))
        .args(["--seed", SEED, "--faults", &DISTURBANCES.len().to_string(), "--back-s", BACK_S])
        .args(["--minutes", "10", "--at-once", "4", "--json"])
        .arg(&report)
        .arg("--dir")
        .arg(dir)
        .output()?;
    let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    println!("{said}");
    ensure!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    let episodes = report["episodes"].as_array().context("no episodes")?;
    let faults: Vec<&str> = episodes.iter().filter_map(|e| e["fault"].as_str()).collect();
    ensure!(faults == DISTURBANCES, "{faults:?}");
    ensure!(report["broken"] == serde_json::json!([]), "{report}");
    let answered = report["answered"].as_u64().unwrap_or_default();
    ensure!(answered > 20 && report["receipts"].as_u64() > Some(20), "too little of it: {report}");
    Ok(())
}
