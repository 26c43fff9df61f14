//! What is measured from outside the requests: processor time of every process, `fdatasync`, and the nodes' own histograms.
use super::sample::Sample;
use crate::mesh::{Mesh, http_get};
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// `/proc` counts processor time in these; every Linux architecture that runs the mesh has this value.
const TICKS_PER_SECOND: f64 = 100.0;
/// A write as long as a page: what a log appends at the least.
const WRITE_BYTES: usize = 4096;
/// Pages of the probe's file, written in turn: allocated before, as a log's are.
const PAGES: u64 = 1024;

/// Processor seconds used so far, by process.
pub(super) type Processor = BTreeMap<String, f64>;

fn seconds_of(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no stat")?;
    // utime and stime are the 14th and 15th fields; two stand before the parenthesis closes.
    let ticks: f64 = rest.split(' ').skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// Reads every process of the mesh, and this one.
pub(super) fn processor(mesh: &Mesh) -> anyhow::Result<Processor> {
    let mut all = Processor::new();
    for site in &mesh.sites {
        all.insert(format!("node {}", site.name), seconds_of(site.pid().context("a node does not run")?)?);
        let tpm = fs::read_to_string(site.tpm_dir.join("swtpm.pid")).ok().and_then(|p| p.trim().parse().ok());
        if let Some(used) = tpm.and_then(|pid| seconds_of(pid).ok()) {
            *all.entry("TPMs".to_owned()).or_default() += used;
        }
    }
    let provider = fs::read_to_string(mesh.provider_pid_file())?;
    all.insert("provider".to_owned(), seconds_of(provider.trim().parse()?)?);
    all.insert("client".to_owned(), seconds_of(std::process::id())?);
    Ok(all)
}

/// Adds what was used between two readings.
pub(super) fn add_used(total: &mut Processor, before: &Processor, after: &Processor) {
    for (process, end) in after {
        *total.entry(process.clone()).or_default() += end - before.get(process).copied().unwrap_or(0.0);
    }
}

/// `fdatasync` of one page beside the nodes' data, each after a pause, for as long as a round.
pub(super) fn fdatasync(mesh: &Mesh, pause: Duration, round: Duration) -> anyhow::Result<Sample> {
    let path = mesh.dir.join("fdatasync.probe");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    let page = [0x51; WRITE_BYTES];
    if file.metadata()?.len() == 0 {
        for at in 0..PAGES {
            file.write_all_at(&page, at * WRITE_BYTES as u64)?;
        }
        file.sync_all()?;
    }
    let (mut sample, until) = (Sample::default(), Instant::now() + round);
    for at in (0..PAGES).cycle() {
        if Instant::now() >= until {
            break;
        }
        std::thread::sleep(pause);
        let begun = Instant::now();
        file.write_all_at(&page, at * WRITE_BYTES as u64)?;
        file.sync_data()?;
        sample.push(begun.elapsed());
    }
    Ok(sample)
}

/// Sum and count of one of the nodes' histograms so far, by node.
#[derive(Debug, Default, Clone)]
pub(super) struct Histograms(BTreeMap<(u64, &'static str), (f64, f64)>);

/// The nodes' histograms that a request's path shows in.
const NAMES: [&str; 2] = ["quorate_raft_fsync_seconds", "quorate_raft_batch_commands"];

impl Histograms {
    pub(super) fn read(mesh: &Mesh) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for site in &mesh.sites {
            let (_, text) = http_get(&site.http, "/metrics")?;
            let value = |name: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
                line.and_then(|v| v.trim().parse::<f64>().ok()).unwrap_or(0.0)
            };
            for name in NAMES {
                all.insert((site.id, name), (value(&format!("{name}_sum")), value(&format!("{name}_count"))));
            }
        }
        Ok(Self(all))
    }

    /// Adds what was counted between two readings.
    pub(super) fn add(&mut self, before: &Self, after: &Self) {
        for (key, (sum, count)) in &after.0 {
            let (sum_before, count_before) = before.0.get(key).copied().unwrap_or_default();
            let total = self.0.entry(*key).or_default();
            *total = (total.0 + sum - sum_before, total.1 + count - count_before);
        }
    }

    fn mean(&self, name: &str) -> f64 {
        let of = self.0.iter().filter(|((_, n), _)| *n == name);
        let (sum, count) = of.fold((0.0, 0.0), |t, (_, v)| (t.0 + v.0, t.1 + v.1));
        sum / count
    }
    /// Mean time to make log entries durable, over all nodes, ms.
    pub(super) fn fsync_ms(&self) -> f64 {
        self.mean("quorate_raft_fsync_seconds") * 1e3
    }
    /// Mean number of commands in a batch.
    pub(super) fn batch(&self) -> f64 {
        self.mean("quorate_raft_batch_commands")
    }
}
