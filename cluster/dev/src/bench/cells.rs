//! The cells of the table: so many requests at once, plain or streamed, direct and through the mesh in alternate rounds.
use super::probe::{Histograms, Processor, add_used, fdatasync, processor};
use super::report::{Added, CellReport, Report, Side, Steps, Target};
use super::sample::{Sample, median};
use crate::mesh::{KEYED_ROUTE, Mesh};
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use quorate_client::{
    Client, DangerDirect, PoolOptions, Provenance, Request, Response, Target as To, TrustFile,
};
use quorate_core::ids::NodeId;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The provider's model that answers at once, and the one that waits as long as `--slow-ms` says.
const MODELS: (&str, &str) = ("demo-chat", "fault-slow");
/// Between two requests of the cells with one connection: time for the pool to open the next, as direct's does.
const THINK: Duration = Duration::from_millis(10);
/// Not measured, at the head of each round: pools fill as demand shows.
const WARM_UP: Duration = Duration::from_millis(400);
/// Receipts verified after each round through the mesh.
const RECEIPTS: usize = 3;
/// Answers of each worker that are compared byte by byte; the others by length.
const COMPARED: usize = 16;
/// Failures whose text is kept.
const FAILURES_SHOWN: usize = 8;

/// What to measure, and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds of each cell and side.
    pub rounds: usize,
    /// Length of a round.
    pub round: Duration,
    /// Only cells whose name contains this.
    pub only: String,
    /// Delay of the slow model, ms, as the provider was told.
    pub upstream_ms: u64,
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Cell {
    name: &'static str,
    at_once: usize,
    streaming: bool,
    slow: bool,
    /// Wait between a worker's requests.
    think: Duration,
    /// Through the mesh on both sides: without a key, and with one.
    keyed: bool,
}

const fn cell(name: &'static str, at_once: usize, streaming: bool, slow: bool, think: Duration) -> Cell {
    Cell { name, at_once, streaming, slow, think, keyed: false }
}

/// What a key costs.
const KEYED: &str = "1 plain keyed";

const CELLS: [Cell; 7] = [
    cell("1 plain", 1, false, false, THINK),
    Cell { keyed: true, ..cell(KEYED, 1, false, false, THINK) },
    cell("1 stream", 1, true, false, THINK),
    cell("16 plain", 16, false, true, Duration::ZERO),
    cell("16 stream", 16, true, true, Duration::ZERO),
    cell("64 plain", 64, false, false, Duration::ZERO),
    cell("64 stream", 64, true, false, Duration::ZERO),
];

/// Both ways to the same provider.
#[derive(Clone)]
enum Way {
    Direct(Arc<DangerDirect>),
    Mesh(Client),
}

impl Way {
    async fn send(&self, request: &Request) -> Result<Response, quorate_client::Error> {
        match self {
            Self::Direct(direct) => direct.request(request).await,
            Self::Mesh(client) => client.request(request.clone()).await,
        }
    }
}

/// One request that was answered.
struct Answered {
    first: Duration,
    whole: Duration,
    provenance: Provenance,
    body: Vec<u8>,
}

async fn ask(way: &Way, request: &Request) -> anyhow::Result<Answered> {
    let begun = Instant::now();
    let mut response = way.send(request).await?;
    let (mut first, mut body) = (None, Vec::new());
    while let Some(piece) = poll_fn(|cx| futures::Stream::poll_next(Pin::new(&mut response.body), cx)).await {
        body.extend_from_slice(&piece?);
        first.get_or_insert_with(|| begun.elapsed());
    }
    let whole = begun.elapsed();
    ensure!(response.status.as_u16() == 200, "the provider answered {}", response.status);
    Ok(Answered { first: first.unwrap_or(whole), whole, provenance: response.provenance.clone(), body })
}

/// The answer without its creation time, which is all that differs between two answers to one question.
fn timeless(body: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"\"created\":";
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.windows(MARK.len()).position(|w| w == MARK) {
        let (head, tail) = rest.split_at(at + MARK.len());
        out.extend_from_slice(head);
        let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
        rest = tail.get(digits..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

/// What one side of a cell gathered over its rounds.
#[derive(Default)]
struct Gathered {
    first: Sample,
    whole: Sample,
    rates: Vec<f64>,
    /// All requests, those that warmed up included: processor time is divided by them.
    requests: usize,
    failures: usize,
    processor: Processor,
    steps: StepSamples,
}

#[derive(Default)]
struct StepSamples {
    hop: Sample,
    raft: Sample,
    cosignatures: Sample,
    keyer: Sample,
    release: Sample,
    at_leader: usize,
}

struct Bench<'a> {
    mesh: &'a Mesh,
    plan: &'a Plan,
    client: Client,
    direct: Arc<DangerDirect>,
    failures: Vec<String>,
    receipts: usize,
    /// First byte of the direct side of the last cell that had one, ms.
    direct_first: f64,
    say: &'a mut dyn FnMut(&str),
}

/// Measures everything over a mesh that is up.
pub async fn measure(mesh: &Mesh, plan: &Plan, say: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let trust = TrustFile::load(&mesh.trust())?;
    let client = Client::connect(trust).await?;
    let directory = client.directory();
    let route = directory.verified().policy.routes.values().find(|r| r.credential.is_none());
    let route = route.context("the policy has no route that can be asked without the mesh")?;
    let direct = Arc::new(DangerDirect::new(&route.document, PoolOptions::default())?);
    let mut bench =
        Bench { mesh, plan, client, direct, failures: Vec::new(), receipts: 0, direct_first: f64::NAN, say };
    let idle = bench.idle().await?;
    let mut cells = Vec::new();
    let mut syncs = Sample::default();
    for cell in CELLS.iter().filter(|c| c.name.contains(&plan.only)) {
        (bench.say)(&format!(
            "{} at once, {}{}",
            cell.at_once,
            if cell.streaming { "streaming" } else { "plain" },
            if cell.keyed { ", with a key" } else { "" }
        ));
        cells.push(bench.cell(cell, &mut syncs).await?);
    }
    ensure!(!cells.is_empty(), "no cell is named like {:?}", plan.only);
    let fdatasync_ms = syncs.quantiles();
    let mut report = Report {
        nodes: mesh.sites.len(),
        rounds: plan.rounds,
        round_ms: plan.round.as_millis() as u64,
        upstream_ms: plan.upstream_ms,
        fdatasync_ms,
        idle_cpu_per_second: idle,
        cells,
        receipts_verified: bench.receipts,
        failures: bench.failures,
        targets: Vec::new(),
    };
    report.targets = targets(&report);
    Ok(report)
}

impl Bench<'_> {
    /// What the processes use while nobody asks anything: heartbeats, evidence, timers.
    async fn idle(&mut self) -> anyhow::Result<Processor> {
        let (before, begun) = (processor(self.mesh)?, Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (mut used, took) = (Processor::new(), begun.elapsed().as_secs_f64());
        add_used(&mut used, &before, &processor(self.mesh)?);
        used.values_mut().for_each(|s| *s /= took);
        Ok(used)
    }

    async fn cell(&mut self, cell: &Cell, syncs: &mut Sample) -> anyhow::Result<CellReport> {
        let mesh = Way::Mesh(self.client.clone());
        let direct = Way::Direct(Arc::clone(&self.direct));
        let ways = [if cell.keyed { mesh.clone() } else { direct.clone() }, mesh];
        let requests = [question(cell, false), question(cell, cell.keyed)];
        // What everybody must answer.
        let expected = ask(&direct, &requests[0]).await.context("the provider does not answer")?.body;
        let expected = timeless(&expected);
        let mut sides = [Gathered::default(), Gathered::default()];
        let mut histograms = Histograms::default();
        for number in 0..self.plan.rounds {
            for turn in 0..2 {
                // The one that goes first alternates too.
                let which = (number + turn) % 2;
                let (Some(way), Some(request)) = (ways.get(which), requests.get(which)) else { continue };
                let Some(side) = sides.get_mut(which) else { continue };
                let before = Histograms::read(self.mesh)?;
                let provenances = self.round(cell, way, request, &expected, side).await?;
                if which == 1 {
                    histograms.add(&before, &Histograms::read(self.mesh)?);
                    self.verify(&provenances, &request.body).await;
                }
            }
            if cell.at_once == 1 {
                let (mesh, round) = (self.mesh.clone(), self.plan.round / 2);
                syncs.extend(tokio::task::spawn_blocking(move || fdatasync(&mesh, THINK, round)).await??);
            }
        }
        let [direct, mesh] = sides;
        if !cell.keyed {
            self.direct_first = direct.first.quantiles().p50;
        }
        let steps = &mesh.steps;
        let steps = Steps {
            hop: steps.hop.quantiles().p50 - self.direct_first,
            raft: steps.raft.quantiles().p50,
            fsync_mean: histograms.fsync_ms(),
            commands_per_batch: histograms.batch(),
            cosignatures: steps.cosignatures.quantiles().p50,
            keyer: steps.keyer.quantiles().p50,
            release: steps.release.quantiles().p50,
            relay_leads: steps.at_leader as f64 / mesh.whole.len().max(1) as f64,
        };
        let (direct, mesh) = (side(direct), side(mesh));
        Ok(CellReport {
            name: cell.name.to_owned(),
            at_once: cell.at_once,
            streaming: cell.streaming,
            keyed: cell.keyed,
            upstream_ms: if cell.slow { self.plan.upstream_ms } else { 0 },
            added: Added { first: mesh.first.minus(direct.first), whole: mesh.whole.minus(direct.whole) },
            steps,
            direct,
            mesh,
        })
    }

    async fn round(
        &mut self,
        cell: &Cell,
        way: &Way,
        request: &Request,
        expected: &[u8],
        into: &mut Gathered,
    ) -> anyhow::Result<Vec<Provenance>> {
        let leader = self.leader().await;
        let before = processor(self.mesh)?;
        let begun = Instant::now();
        let (measured, end) = (begun + WARM_UP, begun + WARM_UP + self.plan.round);
        let workers = (0..cell.at_once).map(|_| {
            let (way, request, expected, think) =
                (way.clone(), request.clone(), Bytes::copy_from_slice(expected), cell.think);
            tokio::spawn(async move { work(&way, &request, &expected, think, end).await })
        });
        let workers: Vec<_> = workers.collect();
        let (mut provenances, mut counted) = (Vec::new(), 0usize);
        for worker in workers {
            for (at, outcome) in worker.await? {
                into.requests += 1;
                let answered = match outcome {
                    Ok(answered) => answered,
                    Err(error) => {
                        into.failures += 1;
                        self.failed(format!("{}: {error:#}", cell.name));
                        continue;
                    }
                };
                if at < measured {
                    continue;
                }
                // Ended within the round: throughput counts these alone.
                counted += usize::from(at + answered.whole <= end);
                into.first.push(answered.first);
                into.whole.push(answered.whole);
                if let Way::Mesh(_) = way {
                    into.steps.push(&answered, leader);
                    provenances.push(answered.provenance);
                }
            }
        }
        into.rates.push(counted as f64 / self.plan.round.as_secs_f64());
        // Reports, goodbyes and pools that were still filling belong to this round.
        self.client.flush().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        add_used(&mut into.processor, &before, &processor(self.mesh)?);
        Ok(provenances)
    }

    async fn leader(&self) -> Option<NodeId> {
        self.client.status().await.into_iter().find_map(|(_, s)| s.ok()).map(|s| NodeId(s.leader))
    }

    /// Asks for receipts, verifies them from genesis, and that they are about what was asked.
    async fn verify(&mut self, provenances: &[Provenance], body: &[u8]) {
        let step = (provenances.len() / RECEIPTS).max(1);
        for provenance in provenances.iter().step_by(step).take(RECEIPTS) {
            match self.receipt(provenance, body).await {
                Ok(()) => self.receipts += 1,
                Err(error) => self.failed(format!("receipt of {}: {error:#}", provenance.request)),
            }
        }
    }

    async fn receipt(&self, provenance: &Provenance, body: &[u8]) -> anyhow::Result<()> {
        let receipt = self.client.receipt(provenance.request).await?;
        let genesis = self.mesh.genesis.parse().ok().context("the genesis digest does not parse")?;
        let (_, authorisation) = receipt.verify(genesis)?;
        let asked = authorisation.request();
        ensure!(asked.request == provenance.request, "it is another request's");
        ensure!((asked.relay, asked.keyer) == (provenance.relay, provenance.keyer), "it names other nodes");
        let salted: Vec<u8> = provenance.body_salt.iter().chain(body).copied().collect();
        ensure!(asked.body_digest == quorate_core::tlog::sha256(&salted), "it is about another body");
        Ok(())
    }

    fn failed(&mut self, what: String) {
        if self.failures.len() < FAILURES_SHOWN {
            (self.say)(&format!("failed: {what}"));
        }
        self.failures.push(what);
    }
}

type Outcomes = Vec<(Instant, anyhow::Result<Answered>)>;

async fn work(way: &Way, request: &Request, expected: &[u8], think: Duration, end: Instant) -> Outcomes {
    let mut outcomes = Outcomes::new();
    while Instant::now() < end {
        if !think.is_zero() {
            tokio::time::sleep(think).await;
        }
        let begun = Instant::now();
        let answered = ask(way, request).await.and_then(|mut answered| {
            // The time of creation has ten digits, whatever it is, and there is one in each chunk.
            let digits = 10 * answered.body.windows(10).filter(|w| *w == b"\"created\":").count();
            if answered.body.len() != expected.len() + digits
                || outcomes.len().is_multiple_of(COMPARED) && timeless(&answered.body) != expected
            {
                bail!("the answer is not the one that a direct request gets");
            }
            answered.body = Vec::new();
            Ok(answered)
        });
        outcomes.push((begun, answered));
    }
    outcomes
}

fn question(cell: &Cell, keyed: bool) -> Request {
    let model = if cell.slow { MODELS.1 } else { MODELS.0 };
    let stream = cell.streaming;
    let body = format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"Why does a mesh of routers need a quorum?"}}],"stream":{stream}}}"#
    );
    let target = if keyed { To::Route(KEYED_ROUTE.to_owned()) } else { To::Model(model.to_owned()) };
    Request::post_json(target, "/v1/chat/completions", body)
}

impl StepSamples {
    fn push(&mut self, answered: &Answered, leader: Option<NodeId>) {
        let t = answered.provenance.authorised.timings;
        let us = |us: u32| Duration::from_micros(u64::from(us));
        self.hop.push(answered.first.saturating_sub(us(t.released_us)));
        self.raft.push(us(t.applied_us));
        self.cosignatures.push(us(t.certified_us.saturating_sub(t.applied_us)));
        self.keyer.push(us(t.keyer_us.saturating_sub(t.certified_us)));
        self.release.push(us(t.released_us.saturating_sub(t.certified_us.max(t.keyer_us))));
        self.at_leader += usize::from(leader == Some(answered.provenance.relay));
    }
}

fn side(gathered: Gathered) -> Side {
    let Gathered { first, whole, rates, requests, failures, processor, .. } = gathered;
    let thousands = requests.max(1) as f64 / 1e3;
    let per_thousand: Processor = processor.into_iter().map(|(p, s)| (p, s / thousands)).collect();
    let nodes_and_client =
        per_thousand.iter().filter(|(p, _)| p.starts_with("node ") || *p == "client").map(|(_, s)| s).sum();
    Side {
        requests,
        failures,
        first: first.quantiles(),
        whole: whole.quantiles(),
        per_second: median(&rates),
        nodes_and_client_cpu_per_thousand: nodes_and_client,
        cpu_per_thousand: per_thousand,
    }
}

/// The issue's own targets, for four nodes.
fn targets(report: &Report) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut target = |name: &str, cell: &str, bound: f64, above: bool, of: &dyn Fn(&CellReport) -> f64| {
        if let Some(cell) = report.cells.iter().find(|c| c.name == cell) {
            let got = of(cell);
            let met = if above { got >= bound } else { got < bound };
            targets.push(Target { name: name.to_owned(), bound, above, got, met });
        }
    };
    let sync = report.fdatasync_ms.p50;
    target("added p50 at 1, ms (2 + fdatasync)", "1 plain", 2.0 + sync, false, &|c| c.added.whole.p50);
    target("added p50 with a key over without, ms", KEYED, 0.3, false, &|c| c.added.whole.p50);
    target("added p50 at 16, ms", "16 plain", 4.0, false, &|c| c.added.whole.p50);
    target("added p99 at 16, ms", "16 plain", 10.0, false, &|c| c.added.whole.p99);
    target("requests/s at 64", "64 plain", 800.0, true, &|c| c.mesh.per_second);
    target("CPU s/1000, nodes and client, at 64", "64 plain", 1.5, false, &|c| {
        c.mesh.nodes_and_client_cpu_per_thousand
    });
    target("CPU s/1000, nodes and client, at 16", "16 plain", 1.5, false, &|c| {
        c.mesh.nodes_and_client_cpu_per_thousand
    });
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_differ_by_their_time_alone() {
        let (one, other) = (br#"{"created":1700000000,"a":1}"#, br#"{"created":1799999999,"a":1}"#);
        assert_eq!(timeless(one), timeless(other));
        assert_eq!(timeless(one), br#"{"created":,"a":1}"#);
        assert_ne!(timeless(one), timeless(br#"{"created":1700000000,"a":2}"#));
    }
}
