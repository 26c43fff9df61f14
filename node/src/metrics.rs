//! What Prometheus sees. Labels are categories and node numbers, never a client, a route, a request or any text from outside.
//!
//! Counters and histograms are fed where things happen; gauges are read from the ledger when somebody scrapes.
use crate::clock;
use crate::ledger::Ledger;
use crate::services::mesh::NodeFacts;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use quorate_core::crypto::sha256;
use quorate_proto::v1::Timings;
use quorate_telemetry::Traces;
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNode {
    node: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStep {
    step: &'static str,
}

/// 50 microseconds to 3 seconds, factors of about two.
const SECONDS: [f64; 16] = [
    0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0015, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    3.0,
];
const BATCHES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

type Steps = Family<ByStep, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// All of the node's metrics.
pub struct Metrics {
    registry: Registry,
    authorised: Counter,
    refused: Family<ByCode, Counter>,
    bytes: Family<ByDirection, Counter>,
    keyer: Family<ByCode, Counter>,
    steps: Steps,
    fsync: Histogram,
    batch: Histogram,
    tunnels: Gauge,
    tree_size: Gauge,
    certified_size: Gauge,
    certified_lag: Gauge,
    attested: Gauge,
    members: Gauge,
    policy_version: Gauge,
    destinations: Gauge,
    destinations_digest: Gauge,
    dark: Gauge,
    evidence_age: Family<ByNode, Gauge>,
    term: Gauge,
    leader: Gauge,
    failed: Gauge,
    shares_held: Gauge,
    shares_missing: Gauge,
    spans_exported: Gauge,
    spans_dropped: Gauge,
    traces: Traces,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty set, and where spans go.
    pub fn traced(traces: Traces) -> Self {
        Self { traces, ..Self::new() }
    }

    /// Where spans go.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// An empty set.
    pub fn new() -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("quorate"),
            authorised: Counter::default(),
            refused: Family::default(),
            bytes: Family::default(),
            keyer: Family::default(),
            steps: Steps::new_with_constructor(seconds),
            fsync: seconds(),
            batch: Histogram::new(BATCHES),
            tunnels: Gauge::default(),
            tree_size: Gauge::default(),
            certified_size: Gauge::default(),
            certified_lag: Gauge::default(),
            attested: Gauge::default(),
            members: Gauge::default(),
            policy_version: Gauge::default(),
            destinations: Gauge::default(),
            destinations_digest: Gauge::default(),
            dark: Gauge::default(),
            evidence_age: Family::default(),
            term: Gauge::default(),
            leader: Gauge::default(),
            failed: Gauge::default(),
            shares_held: Gauge::default(),
            shares_missing: Gauge::default(),
            spans_exported: Gauge::default(),
            spans_dropped: Gauge::default(),
            traces: Traces::default(),
        };
        let r = &mut this.registry;
        r.register("requests_authorised", "Requests whose head this relay released", this.authorised.clone());
        r.register("requests_refused", "Tunnels that this relay refused, by code", this.refused.clone());
        r.register("relay_bytes", "Bytes carried after the handshake", this.bytes.clone());
        r.register("keyer_answers", "Heads this keyer judged, by code", this.keyer.clone());
        r.register(
            "request_step_seconds",
            "From the relay's receipt of a request to each step",
            this.steps.clone(),
        );
        r.register("raft_fsync_seconds", "Time to make Raft log entries durable", this.fsync.clone());
        r.register("raft_batch_commands", "Commands in a proposed batch", this.batch.clone());
        r.register("tunnels_open", "Open tunnels", this.tunnels.clone());
        r.register("tree_size", "Leaves applied", this.tree_size.clone());
        r.register("certified_size", "Leaves certified by a quorum", this.certified_size.clone());
        r.register("certified_lag", "Leaves applied but not yet certified", this.certified_lag.clone());
        r.register("nodes_attested", "Members attested now", this.attested.clone());
        r.register("members", "Members of the policy in force", this.members.clone());
        r.register("policy_version", "Version of the policy in force", this.policy_version.clone());
        r.register("destinations", "Hosts and ports that requests may go to", this.destinations.clone());
        r.register(
            "destinations_digest",
            "The set of these as a number that changes when it does",
            this.destinations_digest.clone(),
        );
        r.register("dark", "1 while fewer than a quorum are attested", this.dark.clone());
        r.register(
            "evidence_age_milliseconds",
            "Age of each attested node's newest evidence",
            this.evidence_age.clone(),
        );
        r.register("raft_term", "Raft's term", this.term.clone());
        r.register("raft_leader", "Number of the leader, 0 when unknown", this.leader.clone());
        r.register("failed", "1 when the node has stopped acknowledging", this.failed.clone());
        r.register("shares_held", "Credentialed routes whose shares are open", this.shares_held.clone());
        r.register(
            "shares_missing",
            "Credentialed routes whose shares this node cannot use: status says why",
            this.shares_missing.clone(),
        );
        r.register(
            "spans_exported",
            "Spans that the collector took, since the start",
            this.spans_exported.clone(),
        );
        r.register("spans_dropped", "Spans dropped, since the start", this.spans_dropped.clone());
        this
    }

    /// A head was released.
    pub fn released(&self, timings: &Timings) {
        self.authorised.inc();
        let steps = [
            ("applied", timings.applied_us),
            ("certified", timings.certified_us),
            ("keyer", timings.keyer_us),
            ("released", timings.released_us),
        ];
        for (step, us) in steps {
            self.steps.get_or_create(&ByStep { step }).observe(f64::from(us) / 1e6);
        }
    }
    /// A tunnel ended with a refusal. Codes are this node's own: another node's could be anything.
    pub fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&ByCode { code }).inc();
    }
    /// A keyer's answer; `approved` or a refusal's code.
    pub fn keyer_answer(&self, code: &'static str) {
        self.keyer.get_or_create(&ByCode { code }).inc();
    }
    /// A request is over.
    pub fn relayed(&self, up: u64, down: u64) {
        self.bytes.get_or_create(&ByDirection { direction: "up" }).inc_by(up);
        self.bytes.get_or_create(&ByDirection { direction: "down" }).inc_by(down);
    }
    /// Entries became durable.
    pub fn fsynced(&self, took: std::time::Duration) {
        self.fsync.observe(took.as_secs_f64());
    }
    /// A batch was proposed.
    pub fn proposed(&self, commands: usize) {
        self.batch.observe(commands as f64);
    }
    /// Credentialed routes with and without open shares.
    pub fn shares(&self, held: usize, missing: usize) {
        self.shares_held.set(signed(held as u64));
        self.shares_missing.set(signed(missing as u64));
    }
    /// Open tunnels, up and down.
    pub fn tunnels(&self) -> &Gauge {
        &self.tunnels
    }
    /// For what other parts of the node want to register.
    pub fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The exposition text, gauges read anew.
    pub fn scrape(&self, ledger: &Ledger, facts: &dyn NodeFacts) -> Result<String, std::fmt::Error> {
        let view = ledger.view();
        let now = clock::now();
        let size = view.checkpoint.size.0;
        let certified = ledger.certified().borrow().as_ref().map_or(0, |c| c.own.size.0);
        self.tree_size.set(signed(size));
        self.certified_size.set(signed(certified));
        self.certified_lag.set(signed(size.saturating_sub(certified)));
        let spans = self.traces.counts();
        self.spans_exported.set(signed(spans.exported));
        self.spans_dropped.set(signed(spans.dropped));
        self.dark.set(i64::from(view.dark));
        self.term.set(signed(facts.term()));
        self.leader.set(facts.leader().map_or(0, |n| signed(n.0)));
        self.failed.set(i64::from(facts.failed().is_some()));
        self.evidence_age.clear();
        let ages = view.nodes.iter().filter_map(|(n, r)| Some((n, r.attested_at()?)));
        let mut attested = 0;
        for (node, at) in ages {
            attested += 1;
            self.evidence_age.get_or_create(&ByNode { node: node.0 }).set(signed(now.since_ms(at)));
        }
        self.attested.set(attested);
        self.members.set(signed(view.policy.members.len() as u64));
        self.policy_version.set(signed(view.policy.version.0));
        let routes = view.policy.routes.values();
        let places: BTreeSet<_> =
            routes.map(|r| format!("{}:{}\n", r.document.host, r.document.port)).collect();
        self.destinations.set(signed(places.len() as u64));
        self.destinations_digest.set(fingerprint(places.into_iter().collect::<String>().as_bytes()));
        let mut out = String::with_capacity(8 * 1024);
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// 48 bits of a digest: a number that a float holds exactly.
fn fingerprint(bytes: &[u8]) -> i64 {
    sha256(bytes).0.iter().take(6).fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
