//! The table, and the same as JSON.
use super::sample::Quantiles;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nodes of the mesh.
    pub nodes: usize,
    /// Rounds of each cell and side.
    pub rounds: usize,
    /// Length of a round, ms.
    pub round_ms: u64,
    /// Upstream delay of the cells that have one, ms.
    pub upstream_ms: u64,
    /// `fdatasync` of one page on the nodes' filesystem, in between the rounds, ms.
    pub fdatasync_ms: Quantiles,
    /// Processor seconds per second of each process while nobody asks anything.
    pub idle_cpu_per_second: BTreeMap<String, f64>,
    /// The rows.
    pub cells: Vec<CellReport>,
    /// Receipts that verified from genesis.
    pub receipts_verified: usize,
    /// What failed; anything here fails the run.
    pub failures: Vec<String>,
    /// What must be reached.
    pub targets: Vec<Target>,
}

/// One row.
#[derive(Debug, Serialize)]
pub struct CellReport {
    /// Requests at once, and how.
    pub name: String,
    /// Requests at once.
    pub at_once: usize,
    /// Streamed answers.
    pub streaming: bool,
    /// Whether the mesh's side is a route with a key, and `direct` the same through the mesh without one.
    pub keyed: bool,
    /// Delay of the provider, ms.
    pub upstream_ms: u64,
    /// Mesh less direct, quantile by quantile, ms.
    pub added: Added,
    /// Where the time of a request through the mesh goes.
    pub steps: Steps,
    /// Without the mesh.
    pub direct: Side,
    /// Through the mesh.
    pub mesh: Side,
}

/// Mesh less direct.
#[derive(Debug, Serialize)]
pub struct Added {
    /// Until the body's first byte, ms.
    pub first: Quantiles,
    /// Until the answer is whole, ms.
    pub whole: Quantiles,
}

/// One side of a row.
#[derive(Debug, Serialize)]
pub struct Side {
    /// Requests, those that warmed up included.
    pub requests: usize,
    /// Those that failed.
    pub failures: usize,
    /// Until the body's first byte, ms.
    pub first: Quantiles,
    /// Until the answer is whole, ms.
    pub whole: Quantiles,
    /// Requests per second, median of the rounds.
    pub per_second: f64,
    /// Processor seconds per thousand requests, nodes and client together.
    pub nodes_and_client_cpu_per_thousand: f64,
    /// Processor seconds per thousand requests, each process, background work included.
    pub cpu_per_thousand: BTreeMap<String, f64>,
}

/// Medians of a request's steps, ms; the relay's clock, but for the hop.
#[derive(Debug, Serialize)]
pub struct Steps {
    /// Client to relay and back: first byte less the relay's time less direct's first byte.
    pub hop: f64,
    /// From the relay's receipt until its leaf is applied there: leader, log, commit notice.
    pub raft: f64,
    /// Of which a node makes its log durable; mean over nodes.
    pub fsync_mean: f64,
    /// Commands in a batch; mean.
    pub commands_per_batch: f64,
    /// Until a quorum's cosignatures met.
    pub cosignatures: f64,
    /// Waited for the keyer after that.
    pub keyer: f64,
    /// Until head and body were written to the provider.
    pub release: f64,
    /// Share of requests whose relay led.
    pub relay_leads: f64,
}

/// What must be reached.
#[derive(Debug, Serialize)]
pub struct Target {
    /// Of what.
    pub name: String,
    /// The bound.
    pub bound: f64,
    /// Whether more is better.
    pub above: bool,
    /// What was measured.
    pub got: f64,
    /// Whether it is reached.
    pub met: bool,
}

fn triple(q: Quantiles) -> String {
    format!("{:7.2} {:7.2} {:7.2}", q.p50, q.p90, q.p99)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, rounds, round_ms, upstream_ms, fdatasync_ms, .. } = self;
        writeln!(
            f,
            "{nodes} nodes, {rounds} rounds of {round_ms} ms a side, interleaved; rows with 16 at once: {upstream_ms} ms upstream delay"
        )?;
        writeln!(f, "fdatasync beside the nodes' data, ms:   p50 p90 p99 {}", triple(*fdatasync_ms))?;
        writeln!(f, "\nlatency, ms{:>12}{:>24}{:>24}{:>24}", "", "direct", "mesh", "added")?;
        writeln!(
            f,
            "{:23}{:>24}{:>24}{:>24}",
            "", "p50     p90     p99", "p50     p90     p99", "p50     p90     p99"
        )?;
        for c in &self.cells {
            if c.streaming {
                let (d, m, a) = (triple(c.direct.first), triple(c.mesh.first), triple(c.added.first));
                writeln!(f, "{:23}{d:>24}{m:>24}{a:>24}", format!("{}, first byte", c.name))?;
            }
            let (d, m, a) = (triple(c.direct.whole), triple(c.mesh.whole), triple(c.added.whole));
            writeln!(f, "{:23}{d:>24}{m:>24}{a:>24}", format!("{}, whole", c.name))?;
        }
        if self.cells.iter().any(|c| c.keyed) {
            writeln!(
                f,
                "keyed: what stands under direct went through the mesh too, on a route without a key"
            )?;
        }
        writeln!(f, "\nrequests/s{:>13}{:>10}{:>10}", "", "direct", "mesh")?;
        for c in &self.cells {
            writeln!(f, "{:23}{:>10.0}{:>10.0}", c.name, c.direct.per_second, c.mesh.per_second)?;
        }
        self.steps(f)?;
        self.processor(f)?;
        writeln!(f, "\nreceipts verified from genesis: {}", self.receipts_verified)?;
        writeln!(f, "failures: {}", self.failures.len())?;
        for failure in self.failures.iter().take(5) {
            writeln!(f, "  {failure}")?;
        }
        if nodes == &4 && !self.targets.is_empty() {
            writeln!(f, "\ntargets")?;
        }
        for t in self.targets.iter().filter(|_| *nodes == 4) {
            let (sign, word) = (if t.above { ">=" } else { "<" }, if t.met { "met" } else { "MISSED" });
            writeln!(f, "  {:40} {sign:>2} {:8.2} {:>9.2}  {word}", t.name, t.bound, t.got)?;
        }
        Ok(())
    }
}

impl Report {
    fn steps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nwhere a request's time goes, medians, ms")?;
        writeln!(
            f,
            "{:23}{:>8}{:>8}{:>14}{:>9}{:>8}{:>9}{:>14}{:>13}",
            "", "hop", "Raft", "(mean fsync)", "cosign", "keyer", "release", "commands/batch", "relay leads"
        )?;
        for c in &self.cells {
            let s = &c.steps;
            writeln!(
                f,
                "{:23}{:>8.2}{:>8.2}{:>14.2}{:>9.2}{:>8.2}{:>9.2}{:>14.1}{:>12.0}%",
                c.name,
                s.hop,
                s.raft,
                s.fsync_mean,
                s.cosignatures,
                s.keyer,
                s.release,
                s.commands_per_batch,
                s.relay_leads * 100.0
            )?;
        }
        Ok(())
    }

    fn processor(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nCPU seconds per thousand requests (background work included)")?;
        let Some(first) = self.cells.first() else { return Ok(()) };
        let processes: Vec<&String> = first.mesh.cpu_per_thousand.keys().collect();
        write!(f, "{:23}", "")?;
        for process in &processes {
            write!(f, "{process:>10}")?;
        }
        writeln!(f, "{:>16}{:>16}", "nodes+client", "direct: client")?;
        for c in &self.cells {
            write!(f, "{:23}", c.name)?;
            for process in &processes {
                write!(f, "{:>10.2}", c.mesh.cpu_per_thousand.get(*process).copied().unwrap_or(f64::NAN))?;
            }
            let direct = c.direct.cpu_per_thousand.get("client").copied().unwrap_or(f64::NAN);
            writeln!(f, "{:>16.2}{direct:>16.2}", c.mesh.nodes_and_client_cpu_per_thousand)?;
        }
        write!(f, "{:23}", "idle, CPU s/s")?;
        for process in &processes {
            write!(f, "{:>10.3}", self.idle_cpu_per_second.get(*process).copied().unwrap_or(f64::NAN))?;
        }
        writeln!(f)
    }
}
