//! What a report tells, gathered in one pass over history. Every list is bounded: a report is for people, and whoever writes
//! history chooses how much of it there is; what is left out is counted.
use super::changes::{self, Change};
use super::volume::Volume;
use crate::finding::{Error, Finding};
use crate::replay::{Checked, Options, Replay, Step};
use crate::store::Mirror;
use crate::verify::Summary;
use crate::words;
use quorate_attest::evidence::BootKeys;
use quorate_core::command::{Alarm, ClientCommand, Command, NodeCommand};
use quorate_core::crypto::Hash;
use quorate_core::ids::{ClientId, NodeId, PolicyVersion, RequestId, RouteId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::policy::Policy;
use quorate_core::proof::taken;
use quorate_core::refusal::Refusal;
use quorate_core::state::{NodeRecord, NodeStatus, NotAttested};
use quorate_core::tlog::{LeafIndex, TreeSize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of a table that are kept; the rest are counted.
pub(super) const ROWS_MAX: usize = 250;
/// Segments and marks of one lane, likewise: more than a picture has pixels.
const LANE_MAX: usize = 4096;
/// An event is told once if it is one of so many last ones again.
const AGAIN_WITHIN: usize = 8;
/// Batches between two looks at which requests are over.
const SWEEP_BATCHES: u64 = 1024;

/// The first so many, and how many there were.
#[derive(Debug, Clone)]
pub(super) struct Kept<T> {
    pub(super) rows: Vec<T>,
    pub(super) total: u64,
    max: usize,
}

impl<T> Kept<T> {
    fn new(max: usize) -> Self {
        Self { rows: Vec::new(), total: 0, max }
    }
    fn push(&mut self, row: T) {
        self.total += 1;
        if self.rows.len() < self.max {
            self.rows.push(row);
        }
    }
    pub(super) fn left_out(&self) -> u64 {
        self.total - self.rows.len() as u64
    }
}

/// How a node stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Attested,
    Never,
    Lapsed,
    Refused(String),
    Awaiting,
    Recovered,
    PolicyChanged,
    Removed,
}

impl Standing {
    fn of(status: &NodeStatus) -> Self {
        match status {
            NodeStatus::Attested { .. } => Self::Attested,
            NodeStatus::NotAttested(why) => match why {
                NotAttested::Never => Self::Never,
                NotAttested::Lapsed => Self::Lapsed,
                NotAttested::Refused(check) => Self::Refused(check.clone()),
                NotAttested::AwaitingCertificate => Self::Awaiting,
                NotAttested::Recovered => Self::Recovered,
                NotAttested::PolicyChanged => Self::PolicyChanged,
            },
        }
    }
    /// In words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Attested => "attested".into(),
            Self::Never => "never attested".into(),
            Self::Lapsed => "lapsed: its evidence is too old".into(),
            Self::Refused(check) => format!("refused: {check}"),
            Self::Awaiting => "restarted, awaiting a certificate without it".into(),
            Self::Recovered => "recovered, fresh evidence due".into(),
            Self::PolicyChanged => "policy no longer accepts its evidence".into(),
            Self::Removed => "no longer a member".into(),
        }
    }
}

/// A stretch of time.
#[derive(Debug, Clone)]
pub(super) struct Span<T> {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// First leaf of the batch with which it began.
    pub(super) leaf: LeafIndex,
    pub(super) what: T,
}

/// Stretches without gaps; the last one is open.
#[derive(Debug, Clone)]
pub(super) struct Lane<T> {
    pub(super) spans: Kept<Span<T>>,
    now: Option<T>,
}

impl<T: Clone + PartialEq> Lane<T> {
    fn new() -> Self {
        Self { spans: Kept::new(LANE_MAX), now: None }
    }
    /// What holds from this moment on. Gives whether that is news.
    fn set(&mut self, time: Timestamp, leaf: LeafIndex, what: T) -> bool {
        if self.now.as_ref() == Some(&what) {
            return false;
        }
        self.end(time);
        self.spans.push(Span { from: time, to: time, leaf, what: what.clone() });
        self.now = Some(what);
        true
    }
    fn end(&mut self, time: Timestamp) {
        // Where spans were left out, the last one kept must not grow over them.
        if self.now.is_some() && self.spans.left_out() == 0 {
            self.spans.rows.last_mut().into_iter().for_each(|span| span.to = time);
        }
    }
    /// What holds at the end.
    pub(super) fn now(&self) -> Option<&T> {
        self.now.as_ref()
    }
}

/// A moment of a node.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) time: Timestamp,
    pub(super) leaf: LeafIndex,
    pub(super) kind: MarkKind,
    pub(super) text: String,
}

/// What kind of moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MarkKind {
    Lapsed,
    Refused,
    Restarted,
}

/// A node's part of history.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) custodian: String,
    pub(super) software_tpm: bool,
    pub(super) standing: Lane<Standing>,
    pub(super) marks: Kept<Mark>,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) lapses: u64,
    pub(super) boots: u64,
    pub(super) firmware: u64,
    boot: Option<BootKeys>,
    attested_ms: u64,
    attested_since: Option<Timestamp>,
}

impl Node {
    /// For how long it was attested.
    pub(super) fn attested_ms(&self) -> u64 {
        self.attested_ms
    }
}

/// A policy version that came into force.
#[derive(Debug, Clone)]
pub(super) struct PolicyRow {
    pub(super) version: PolicyVersion,
    pub(super) digest: Hash,
    pub(super) leaf: LeafIndex,
    /// None of genesis: it is before time.
    pub(super) time: Option<Timestamp>,
    pub(super) signers: Vec<String>,
    pub(super) admins: usize,
    pub(super) threshold: usize,
    pub(super) changes: Vec<Change>,
}

/// How much a reader should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Notice,
    Warning,
    Grave,
}

/// Something out of the ordinary.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) time: Timestamp,
    pub(super) leaf: LeafIndex,
    pub(super) severity: Severity,
    pub(super) kind: &'static str,
    pub(super) text: String,
    pub(super) request: Option<(RequestId, Option<(ClientId, RouteId)>)>,
    /// How often it was said again soon after, and when last.
    pub(super) again: Option<(u64, Timestamp)>,
}

/// A credential's life.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    pub(super) epochs: Lane<Epoch>,
    pub(super) notes: Kept<(Timestamp, LeafIndex, String)>,
}

/// A splitting of a provider's key, and whether it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Epoch {
    /// In use.
    Usable(u32),
    /// Stopped by admins.
    Frozen(u32),
    /// The route has no credential.
    None,
}

/// Where it ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) size: TreeSize,
    pub(super) root: Hash,
    pub(super) cosigners: Vec<NodeId>,
}

/// Everything a report is made from.
#[derive(Debug, Clone)]
pub(super) struct Collected {
    pub(super) genesis: Hash,
    pub(super) summary: Summary,
    pub(super) checked: Checked,
    /// The newest checkpoint, where all of history holds.
    pub(super) end: Option<End>,
    pub(super) position: TreeSize,
    /// What the mirror's checkpoint claims.
    pub(super) claimed: TreeSize,
    pub(super) findings: Vec<Finding>,
    /// Of the first batch and of the last one replayed.
    pub(super) period: (Timestamp, Timestamp),
    pub(super) policy: Arc<Policy>,
    pub(super) attested: usize,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) dark: Lane<bool>,
    pub(super) dark_ms: u64,
    pub(super) policies: Kept<PolicyRow>,
    pub(super) volume: Volume,
    pub(super) events: Kept<Event>,
    /// By kind.
    pub(super) event_counts: BTreeMap<(std::cmp::Reverse<Severity>, &'static str), u64>,
    pub(super) refusals: BTreeMap<&'static str, (Refusal, u64)>,
    pub(super) credentials: BTreeMap<RouteId, Credential>,
    pub(super) firmware_unchecked: bool,
}

struct Collector {
    c: Collected,
    open: BTreeMap<RequestId, (ClientId, RouteId)>,
    batches: u64,
    was_light: bool,
}

/// Replays a mirror to its end, or to where it breaks: then what came before is told, and the finding.
pub(super) fn collect(
    mirror: &Mirror,
    genesis: Hash,
    options: Options,
    mut watch: impl FnMut(TreeSize, TreeSize),
) -> Result<Collected, Error> {
    let mut replay = Replay::start(mirror, genesis, options)?;
    let mut collector = Collector::new(&replay, genesis);
    let claimed = replay.newest().size();
    loop {
        match replay.step() {
            Ok(Some(step)) => {
                collector.step(&step, &replay);
                watch(replay.position(), claimed);
            }
            Ok(None) => break,
            Err(Error::Found(finding)) => {
                collector.c.end = None;
                collector.c.findings.extend(replay.findings().iter().cloned());
                collector.c.findings.push(*finding);
                return Ok(collector.finish(&replay));
            }
            Err(error) => return Err(error),
        }
    }
    collector.c.findings.extend(replay.findings().iter().cloned());
    Ok(collector.finish(&replay))
}

impl Collector {
    fn new(replay: &Replay, genesis: Hash) -> Self {
        let state = replay.state();
        let policy = Arc::clone(state.policy());
        let signers = policy.check_signers(state.signed_policy()).unwrap_or_default();
        let mut policies = Kept::new(ROWS_MAX);
        policies.push(PolicyRow {
            version: policy.version,
            digest: policy.digest,
            leaf: LeafIndex(0),
            time: None,
            signers,
            admins: policy.admins.len(),
            threshold: policy.admin_threshold,
            changes: changes::of_genesis(&policy),
        });
        Self {
            c: Collected {
                genesis,
                summary: Summary::default(),
                checked: Checked::default(),
                end: None,
                position: TreeSize::ZERO,
                claimed: replay.newest().size(),
                findings: Vec::new(),
                period: (Timestamp(0), Timestamp(0)),
                policy,
                attested: 0,
                nodes: state.nodes().keys().map(|id| (*id, Node::new())).collect(),
                dark: Lane::new(),
                dark_ms: 0,
                policies,
                volume: Volume::default(),
                events: Kept::new(ROWS_MAX),
                event_counts: BTreeMap::new(),
                refusals: BTreeMap::new(),
                credentials: BTreeMap::new(),
                firmware_unchecked: false,
            },
            open: BTreeMap::new(),
            batches: 0,
            was_light: false,
        }
    }

    fn step(&mut self, step: &Step, replay: &Replay) {
        if self.batches == 0 {
            self.c.period.0 = step.time;
        } else if self.was_light && self.c.dark.now() == Some(&true) {
            self.c.dark_ms += step.time.since_ms(self.c.period.1);
        }
        self.c.period.1 = step.time;
        self.batches += 1;
        self.c.summary.add(step);
        for leaf in &step.leaves {
            let Leaf::V1 { body, .. } = leaf.leaf();
            self.leaf(step.time, leaf.index(), body, replay);
        }
        let state = replay.state();
        for (id, record) in state.nodes() {
            self.node(*id, record, step, state.policy());
        }
        for (id, node) in &mut self.c.nodes {
            if !state.nodes().contains_key(id) {
                node.stand(Standing::Removed, step);
            }
        }
        let dark = state.is_dark();
        // Every log begins in the dark.
        if self.c.dark.set(step.time, step.first, dark) && self.was_light {
            let text = match dark {
                true => "fewer than a quorum of nodes attested: nothing is forwarded",
                false => "a quorum of nodes is attested again",
            };
            let kind = if dark { "no quorum" } else { "quorum again" };
            self.event(step.time, step.first, Severity::Warning, kind, text, None);
        }
        self.was_light |= !dark;
        self.credentials(step, state.policy());
        if let Some(certified) = &step.certified
            && certified.reference().size == self.c.claimed
        {
            self.c.end = Some(End {
                size: certified.reference().size,
                root: certified.reference().root,
                cosigners: certified.cosignatures().iter().map(|(n, _)| *n).collect(),
            });
        }
        if self.batches.is_multiple_of(SWEEP_BATCHES) {
            self.open.retain(|request, _| state.request(request).is_some());
        }
    }

    fn node(&mut self, id: NodeId, record: &NodeRecord, step: &Step, policy: &Policy) {
        let member = policy.members.get(&id);
        let node = self.c.nodes.entry(id).or_insert_with(Node::new);
        if let Some(member) = member
            && (node.name != member.name || node.custodian != member.custodian.as_str())
        {
            node.name.clone_from(&member.name);
            node.custodian = member.custodian.as_str().to_owned();
        }
        if let NodeStatus::Attested { boot, software_tpm, .. } = &record.status {
            node.software_tpm = *software_tpm;
            node.firmware = record.firmware;
            if node.boot.as_ref() != Some(boot) {
                if node.boot.replace(boot.clone()).is_some() {
                    let text = "started again, with new boot keys".to_owned();
                    node.marks.push(Mark {
                        time: step.time,
                        leaf: step.first,
                        kind: MarkKind::Restarted,
                        text,
                    });
                }
                node.boots += 1;
            }
        }
        node.stand(Standing::of(&record.status), step);
    }

    fn credentials(&mut self, step: &Step, policy: &Policy) {
        for (id, route) in &policy.routes {
            let epoch = match &route.credential {
                Some(c) if c.frozen => Epoch::Frozen(c.share_epoch),
                Some(c) => Epoch::Usable(c.share_epoch),
                None => Epoch::None,
            };
            if epoch == Epoch::None && !self.c.credentials.contains_key(id) {
                continue;
            }
            let lane = self
                .c
                .credentials
                .entry(id.clone())
                .or_insert_with(|| Credential { epochs: Lane::new(), notes: Kept::new(ROWS_MAX) });
            lane.epochs.set(step.time, step.first, epoch);
        }
        for (id, credential) in &mut self.c.credentials {
            if !policy.routes.contains_key(id) {
                credential.epochs.set(step.time, step.first, Epoch::None);
            }
        }
    }

    fn leaf(&mut self, time: Timestamp, at: LeafIndex, body: &LeafBody, replay: &Replay) {
        match body {
            LeafBody::Decided { command, outcome } => self.decided(time, at, command, outcome, replay),
            LeafBody::Lapsed { node } => {
                let text = "lapsed: no evidence in time".to_owned();
                self.mark(*node, Mark { time, leaf: at, kind: MarkKind::Lapsed, text });
                let text = format!("{node} lapsed: no evidence in time, it no longer counts");
                self.event(time, at, Severity::Warning, "lapse", text, None);
            }
            LeafBody::Unsettled { request, relay, client } => {
                let who = match (relay, client) {
                    (true, true) => "neither relay nor client said how it ended",
                    (true, false) => "the relay never said how it ended",
                    (false, _) => "the client never said how it ended",
                };
                self.anomaly(time, at, *request, "settlement missing", who);
            }
            LeafBody::Anomaly { request, rule } => {
                self.anomaly(time, at, *request, "anomaly", words::anomaly(*rule));
            }
            LeafBody::PairSuspended { route, relay, keyer, share_epoch } => {
                let text = format!(
                    "{relay} with {keyer} suspended (share epoch {share_epoch}): requests of several clients failed"
                );
                self.credential_note(route, time, at, text.clone());
                self.event(time, at, Severity::Warning, "suspension", format!("route {route}: {text}"), None);
            }
            LeafBody::CredentialFrozen { route, share_epoch } => {
                let text =
                    format!("frozen by the mesh (share epoch {share_epoch}): it failed over all nodes alike");
                self.credential_note(route, time, at, text.clone());
                self.event(
                    time,
                    at,
                    Severity::Grave,
                    "credential frozen",
                    format!("route {route}: {text}"),
                    None,
                );
            }
            LeafBody::Undecodable { entry } => {
                let text = format!("an entry that does not decode ({entry}): a leader lied");
                self.event(time, at, Severity::Grave, "undecodable", text, None);
            }
            LeafBody::Genesis { .. } | LeafBody::StateDigest { .. } | LeafBody::BatchEnd(_) => {}
        }
    }

    fn decided(
        &mut self,
        time: Timestamp,
        at: LeafIndex,
        command: &Command,
        outcome: &Outcome,
        replay: &Replay,
    ) {
        if let Outcome::Refused(refusal) = outcome {
            self.c.refusals.entry(refusal.code()).or_insert((*refusal, 0)).1 += 1;
        }
        match (command, outcome) {
            (Command::Client(c), outcome) => match (&c.body, outcome) {
                (ClientCommand::Authorise(a), Outcome::Authorised) => {
                    self.c.volume.authorised(time, &c.client, &a.route);
                    self.open.insert(a.request, (c.client.clone(), a.route.clone()));
                }
                (ClientCommand::Authorise(a), Outcome::Refused(_)) => {
                    self.c.volume.refused(&c.client, &a.route);
                }
                (ClientCommand::Report(reports), Outcome::Reported(refused)) => {
                    for report in taken(reports, refused) {
                        if let Some((client, route)) = self.open.get(&report.request) {
                            self.c.volume.reported(client, route, report);
                        }
                    }
                }
                _ => {}
            },
            (Command::Node(c), outcome) => match (&c.body, outcome) {
                (NodeCommand::Settle(list), Outcome::Settled(refused)) => {
                    for settlement in taken(list, refused) {
                        if let Some((client, route)) = self.open.get(&settlement.request) {
                            self.c.volume.settled(client, route, settlement);
                        }
                    }
                }
                (NodeCommand::Alarm(alarm), Outcome::AlarmRaised) => self.alarm(time, at, c.node, alarm),
                _ => {}
            },
            (Command::Evidence(c), Outcome::Appraised { .. }) => {
                self.counts(c.node, |node| node.accepted += 1);
                let policy = replay.state().policy();
                let values = policy.members.get(&c.node).map(|m| &m.reference_values);
                let values = values.and_then(|name| policy.reference_values.get(name));
                self.c.firmware_unchecked |= values.is_some_and(|v| v.firmware_versions.is_none());
            }
            (Command::Evidence(c), Outcome::AppraisalRefused { check }) => {
                self.counts(c.node, |node| node.refused += 1);
                let text = format!("evidence refused: {check}");
                self.mark(c.node, Mark { time, leaf: at, kind: MarkKind::Refused, text });
                let text = format!("the evidence of {} was refused: {check}", c.node);
                self.event(time, at, Severity::Grave, "evidence refused", text, None);
            }
            (Command::Recover(_), Outcome::Recovered) => {
                let text = words::command(command);
                self.event(time, at, Severity::Notice, "recovery", text, None);
            }
            (Command::Policy(_), Outcome::PolicyChanged { version, signers }) => {
                // Later leaves of the batch cannot change it again in a way that matters here: a second change in one batch
                // shows as the state's, and the row before says what it was.
                let new = replay.state().policy();
                let row = PolicyRow {
                    version: *version,
                    digest: match command {
                        Command::Policy(c) => c.document,
                        _ => new.digest,
                    },
                    leaf: at,
                    time: Some(time),
                    signers: signers.clone(),
                    admins: self.c.policy.admins.len(),
                    threshold: self.c.policy.admin_threshold,
                    changes: changes::between(&self.c.policy, new),
                };
                for destination in row.changes.iter().filter(|c| c.widens) {
                    let text = format!("policy version {version}: {}", destination.text);
                    self.event(time, at, Severity::Notice, "policy widened", text, None);
                }
                self.c.policies.push(row);
                self.c.policy = Arc::clone(new);
            }
            _ => {}
        }
    }

    fn alarm(&mut self, time: Timestamp, at: LeafIndex, by: NodeId, alarm: &Alarm) {
        let text = format!("{by}: {}", words::alarm(alarm));
        match alarm {
            Alarm::HeadRefused { request, .. } => {
                self.event(time, at, Severity::Warning, "alarm: head refused", text, Some(*request));
            }
            Alarm::Equivocation { .. } => {
                self.event(time, at, Severity::Grave, "alarm: equivocation", text, None);
            }
            Alarm::Withheld { .. } => self.event(time, at, Severity::Warning, "alarm: withheld", text, None),
            Alarm::AdmissionRefused { node, check } => {
                let said = format!("not admitted by {by}: {check}");
                self.mark(*node, Mark { time, leaf: at, kind: MarkKind::Refused, text: said });
                self.event(time, at, Severity::Grave, "alarm: admission refused", text, None);
            }
        }
    }

    fn anomaly(
        &mut self,
        time: Timestamp,
        at: LeafIndex,
        request: RequestId,
        kind: &'static str,
        text: &str,
    ) {
        if let Some((client, route)) = self.open.get(&request) {
            self.c.volume.anomaly(client, route);
        }
        self.event(time, at, Severity::Warning, kind, text, Some(request));
    }

    fn event(
        &mut self,
        time: Timestamp,
        leaf: LeafIndex,
        severity: Severity,
        kind: &'static str,
        text: impl Into<String>,
        request: Option<RequestId>,
    ) {
        let text = text.into();
        let request = request.map(|r| (r, self.open.get(&r).cloned()));
        let mut recent = self.c.events.rows.iter_mut().rev().take(AGAIN_WITHIN);
        if let Some(same) = recent.find(|e| (e.kind, &e.text, &e.request) == (kind, &text, &request)) {
            same.again = Some((same.again.map_or(0, |(n, _)| n) + 1, time));
        } else {
            self.c.events.push(Event { time, leaf, severity, kind, text, request, again: None });
        }
        *self.c.event_counts.entry((std::cmp::Reverse(severity), kind)).or_default() += 1;
    }

    fn credential_note(&mut self, route: &RouteId, time: Timestamp, at: LeafIndex, text: String) {
        if let Some(credential) = self.c.credentials.get_mut(route) {
            credential.notes.push((time, at, text));
        }
    }

    fn mark(&mut self, node: NodeId, mark: Mark) {
        self.counts(node, |node| {
            node.lapses += u64::from(mark.kind == MarkKind::Lapsed);
            node.marks.push(mark);
        });
    }

    fn counts(&mut self, node: NodeId, count: impl FnOnce(&mut Node)) {
        // Whoever is accused need not exist.
        if let Some(node) = self.c.nodes.get_mut(&node) {
            count(node);
        }
    }

    fn finish(mut self, replay: &Replay) -> Collected {
        let end = self.c.period.1;
        for node in self.c.nodes.values_mut() {
            node.standing.end(end);
            if let Some(since) = node.attested_since.take() {
                node.attested_ms += end.since_ms(since);
            }
        }
        self.c.dark.end(end);
        self.c.credentials.values_mut().for_each(|c| c.epochs.end(end));
        self.c.checked = replay.checked();
        self.c.position = replay.position();
        self.c.attested = replay.state().attested_nodes().count();
        self.c.policy = Arc::clone(replay.state().policy());
        self.c
    }
}

impl Node {
    fn new() -> Self {
        Self {
            name: String::new(),
            custodian: String::new(),
            software_tpm: false,
            standing: Lane::new(),
            marks: Kept::new(LANE_MAX),
            accepted: 0,
            refused: 0,
            lapses: 0,
            boots: 0,
            firmware: 0,
            boot: None,
            attested_ms: 0,
            attested_since: None,
        }
    }

    fn stand(&mut self, standing: Standing, step: &Step) {
        let attested = standing == Standing::Attested;
        if self.standing.set(step.time, step.first, standing) {
            if let Some(since) = self.attested_since.take() {
                self.attested_ms += step.time.since_ms(since);
            }
            self.attested_since = attested.then_some(step.time);
        }
    }
}
