//! One pass over history. Memory grows with what is affected, not with the log.
use super::shows::{Reason, Target};
use crate::finding::Error;
use crate::replay::{Options, Replay, Step};
use crate::store::Mirror;
use quorate_attest::evidence::Evidence;
use quorate_core::command::{Authorise, ClientCommand, Command, NodeCommand};
use quorate_core::crypto::{Hash, encode, sha256};
use quorate_core::ids::{ClientId, NodeId, RequestId, RouteId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::proof::taken;
use quorate_core::sshsig::AdminKey;
use quorate_core::state::{Blobs, State};
use quorate_core::tlog::{LeafIndex, TreeSize};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Answers remembered about evidence: a node's logs are the same for quote after quote.
const REMEMBERED_MAX: usize = 256;

/// Checks that only a quote of the enrolled TPM, bound to the node's keys and explained by its event log, can fail. Such
/// evidence shows what ran although it was refused.
const GENUINE_CHECKS: &[&str] = &[
    "ima",
    "ima-missing",
    "ima-not-expected",
    "no-reference-value",
    "reference-value",
    "firmware-version",
    "software-tpm",
];

/// What a node was to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It carried the records.
    Relay,
    /// It checked the head and filled in its share.
    Keyer,
    /// It was attested when the authorisation was certified, so its cosignature may have counted.
    Certifier,
}

impl Role {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Keyer => "keyer",
            Self::Certifier => "certifier",
        }
    }
}

/// How sure it is that the node had it while it served the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// It may have: it ended before the evidence that shows it, and after the last one that does not.
    Possible,
    /// Evidence that it rested on, or gave meanwhile, shows it.
    Shown,
}

/// A request, as its authorisation has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Leaf of the authorisation.
    pub leaf: LeafIndex,
    /// Its time.
    pub time: Timestamp,
    /// Id.
    pub request: RequestId,
    /// Whose.
    pub client: ClientId,
    /// Where to.
    pub route: RouteId,
    /// Through whom.
    pub relay: NodeId,
    /// Checked by whom.
    pub keyer: NodeId,
}

/// A request that met what is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// Which.
    pub served: Rc<Served>,
    /// In whom, as what, how surely.
    pub by: BTreeMap<(NodeId, Role), Certainty>,
}

impl Affected {
    /// The surest of its nodes.
    pub fn certainty(&self) -> Certainty {
        self.by.values().max().copied().unwrap_or(Certainty::Possible)
    }
}

/// A node's time with what is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exposure {
    /// Who.
    pub node: NodeId,
    /// Why.
    pub reasons: Vec<Reason>,
    /// Whether it cannot have been something else.
    pub certain: bool,
    /// Last evidence before that does not show it; none where its first evidence does.
    pub before: Option<LeafIndex>,
    /// First evidence that shows it.
    pub first: LeafIndex,
    /// Its time.
    pub first_time: Timestamp,
    /// Last evidence that shows it.
    pub last: LeafIndex,
    /// Its time.
    pub last_time: Timestamp,
    /// First evidence afterwards that does not; none where the log ends before.
    pub until: Option<LeafIndex>,
    /// Whether the evidence was refused from the beginning.
    pub refused: bool,
    /// Requests authorised meanwhile, by whomever: its cosignature may have counted.
    pub certified: u64,
    /// Checkpoints in this copy under which its cosignature stands.
    pub cosigned: u64,
}

/// What was found in a log that holds.
#[derive(Debug, Clone)]
pub struct Radius {
    /// By first leaf.
    pub exposures: Vec<Exposure>,
    /// By leaf.
    pub affected: BTreeMap<LeafIndex, Affected>,
    /// Leaves that were replayed.
    pub size: TreeSize,
    /// Pieces of evidence that were looked into.
    pub evidence: u64,
    /// Admins of any policy of the log.
    pub admins: BTreeMap<AdminKey, String>,
    /// Release manifests that any policy of the log names.
    pub manifests: BTreeSet<Hash>,
}

/// Replays a mirror and follows what is looked for. An error where it does not hold.
pub fn radius(
    mirror: &Mirror,
    genesis: Hash,
    options: Options,
    target: &Target,
    mut watch: impl FnMut(TreeSize, TreeSize),
) -> Result<Radius, Error> {
    let mut replay = Replay::start(mirror, genesis, options)?;
    let all = replay.newest().size();
    let mut trace = Trace::new(mirror, target);
    trace.policy(replay.state());
    while let Some(step) = replay.step()? {
        trace.step(&step, replay.state());
        watch(replay.position(), all);
    }
    if let Some(finding) = replay.findings().first() {
        return Err(finding.clone().into());
    }
    Ok(trace.finish(replay.position()))
}

/// What is followed of a node.
#[derive(Default)]
struct Followed {
    /// Its newest evidence.
    last: Option<LeafIndex>,
    /// Index of the exposure that it is in.
    exposed: Option<usize>,
    /// Requests it serves that are open, or were since its newest evidence.
    since: Vec<(Rc<Served>, Role)>,
}

struct Trace<'t> {
    target: &'t Target,
    blobs: MirrorBlobs,
    nodes: BTreeMap<NodeId, Followed>,
    open: BTreeSet<RequestId>,
    exposures: Vec<Exposure>,
    affected: BTreeMap<LeafIndex, Affected>,
    remembered: BTreeMap<Hash, Vec<Reason>>,
    evidence: u64,
    admins: BTreeMap<AdminKey, String>,
    manifests: BTreeSet<Hash>,
}

/// Blobs that the replay found good already.
struct MirrorBlobs(Mirror);

impl Blobs for MirrorBlobs {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        self.0.blob(digest).ok()
    }
}

impl<'t> Trace<'t> {
    fn new(mirror: &Mirror, target: &'t Target) -> Self {
        Self {
            target,
            blobs: MirrorBlobs(mirror.clone()),
            nodes: BTreeMap::new(),
            open: BTreeSet::new(),
            exposures: Vec::new(),
            affected: BTreeMap::new(),
            remembered: BTreeMap::new(),
            evidence: 0,
            admins: BTreeMap::new(),
            manifests: BTreeSet::new(),
        }
    }

    fn policy(&mut self, state: &State) {
        let policy = state.policy();
        self.admins.extend(policy.admins.iter().map(|(key, name)| (key.clone(), name.clone())));
        self.manifests.extend(policy.releases.values().flatten().copied());
    }

    fn step(&mut self, step: &Step, state: &State) {
        let mut authorised = Vec::new();
        for leaf in &step.leaves {
            let Leaf::V1 { body, .. } = leaf.leaf();
            match body {
                LeafBody::Decided { command, outcome } => {
                    self.decided(step.time, leaf.index(), command, outcome, state, &mut authorised);
                }
                LeafBody::Unsettled { request, relay: true, .. } => {
                    self.open.remove(request);
                }
                LeafBody::BatchEnd(end) => {
                    for (node, _) in &end.attested {
                        self.certifies(*node, &authorised);
                    }
                }
                _ => {}
            }
        }
        if let Some(certified) = &step.certified {
            for (node, _) in certified.cosignatures() {
                if let Some(exposure) = self.exposed(*node) {
                    exposure.cosigned += 1;
                }
            }
        }
    }

    fn decided(
        &mut self,
        time: Timestamp,
        at: LeafIndex,
        command: &Command,
        outcome: &Outcome,
        state: &State,
        authorised: &mut Vec<Rc<Served>>,
    ) {
        match (command, outcome) {
            (Command::Evidence(c), outcome) => {
                let good = match outcome {
                    Outcome::Appraised { .. } | Outcome::AwaitingCertificate => true,
                    Outcome::AppraisalRefused { check } if GENUINE_CHECKS.contains(&check.as_str()) => false,
                    _ => return,
                };
                self.evidence(c.node, at, time, &c.evidence, good, state);
            }
            (Command::Recover(c), Outcome::Recovered) => {
                for (node, evidence) in &c.evidence {
                    self.evidence(*node, at, time, evidence, true, state);
                }
            }
            (Command::Policy(_), Outcome::PolicyChanged { .. }) => self.policy(state),
            (Command::Client(c), Outcome::Authorised) => {
                if let ClientCommand::Authorise(a) = &c.body {
                    authorised.push(self.authorised(time, at, &c.client, a));
                }
            }
            (Command::Node(c), Outcome::Settled(refused)) => {
                if let NodeCommand::Settle(list) = &c.body {
                    for settlement in taken(list, refused) {
                        self.open.remove(&settlement.request);
                    }
                }
            }
            _ => {}
        }
    }

    fn authorised(
        &mut self,
        time: Timestamp,
        leaf: LeafIndex,
        client: &ClientId,
        a: &Authorise,
    ) -> Rc<Served> {
        let served = Rc::new(Served {
            leaf,
            time,
            request: a.request,
            client: client.clone(),
            route: a.route.clone(),
            relay: a.relay,
            keyer: a.keyer,
        });
        self.open.insert(a.request);
        for (node, role) in [(a.relay, Role::Relay), (a.keyer, Role::Keyer)] {
            match self.nodes.entry(node).or_default().exposed {
                Some(index) => self.affect(&served, node, role, Certainty::Shown, index),
                None => self.nodes.entry(node).or_default().since.push((Rc::clone(&served), role)),
            }
        }
        served
    }

    fn certifies(&mut self, node: NodeId, authorised: &[Rc<Served>]) {
        let Some(index) = self.nodes.get(&node).and_then(|n| n.exposed) else { return };
        if let Some(exposure) = self.exposures.get_mut(index) {
            exposure.certified += authorised.len() as u64;
        }
        for served in authorised {
            if served.relay != node && served.keyer != node {
                self.affect(served, node, Role::Certifier, Certainty::Shown, index);
            }
        }
    }

    fn affect(
        &mut self,
        served: &Rc<Served>,
        node: NodeId,
        role: Role,
        certainty: Certainty,
        exposure: usize,
    ) {
        // What evidence shows only perhaps is only possible.
        let certain = self.exposures.get(exposure).is_some_and(|e| e.certain);
        let certainty = if certain { certainty } else { Certainty::Possible };
        let entry = self.affected.entry(served.leaf);
        let affected = entry.or_insert_with(|| Affected { served: Rc::clone(served), by: BTreeMap::new() });
        let known = affected.by.entry((node, role)).or_insert(certainty);
        *known = (*known).max(certainty);
    }

    fn exposed(&mut self, node: NodeId) -> Option<&mut Exposure> {
        let index = self.nodes.get(&node)?.exposed?;
        self.exposures.get_mut(index)
    }

    fn evidence(
        &mut self,
        node: NodeId,
        at: LeafIndex,
        time: Timestamp,
        evidence: &Evidence,
        good: bool,
        state: &State,
    ) {
        self.evidence += 1;
        let reasons = self.reasons(node, evidence, good, state);
        let followed = self.nodes.entry(node).or_default();
        let before = followed.last.replace(at);
        let since = std::mem::take(&mut followed.since);
        match (reasons.is_empty(), followed.exposed) {
            (true, None) => {}
            (true, Some(index)) => {
                followed.exposed = None;
                if let Some(exposure) = self.exposures.get_mut(index) {
                    exposure.until = Some(at);
                }
            }
            (false, Some(index)) => {
                if let Some(exposure) = self.exposures.get_mut(index) {
                    (exposure.last, exposure.last_time) = (at, time);
                    exposure.certain |= reasons.iter().any(Reason::is_certain);
                }
            }
            (false, None) => {
                let index = self.exposures.len();
                followed.exposed = Some(index);
                self.exposures.push(Exposure {
                    node,
                    certain: reasons.iter().any(Reason::is_certain),
                    reasons,
                    before,
                    first: at,
                    first_time: time,
                    last: at,
                    last_time: time,
                    until: None,
                    refused: !good,
                    certified: 0,
                    cosigned: 0,
                });
                for (served, role) in &since {
                    let certainty = match self.open.contains(&served.request) {
                        true => Certainty::Shown,
                        false => Certainty::Possible,
                    };
                    self.affect(served, node, *role, certainty, index);
                }
            }
        }
        let open: Vec<_> = since.into_iter().filter(|(s, _)| self.open.contains(&s.request)).collect();
        self.nodes.entry(node).or_default().since.extend(open);
    }

    fn reasons(&mut self, node: NodeId, evidence: &Evidence, good: bool, state: &State) -> Vec<Reason> {
        let policy = state.policy();
        let values = policy.members.get(&node).map(|m| m.reference_values.clone());
        let logs = (evidence.event_log, evidence.ima_log, &evidence.pcrs);
        let key = sha256(&encode(&(logs, policy.digest, values, good)));
        if let Some(known) = self.remembered.get(&key) {
            return known.clone();
        }
        let reasons = self.target.shown(node, evidence, good, policy, &self.blobs);
        if self.remembered.len() == REMEMBERED_MAX {
            self.remembered.clear();
        }
        self.remembered.insert(key, reasons.clone());
        reasons
    }

    fn finish(self, size: TreeSize) -> Radius {
        Radius {
            exposures: self.exposures,
            affected: self.affected,
            size,
            evidence: self.evidence,
            admins: self.admins,
            manifests: self.manifests,
        }
    }
}
