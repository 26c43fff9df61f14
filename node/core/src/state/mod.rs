//! The replicated state machine: a pure, deterministic function of state and entry. Time enters only as the entry's
//! timestamp; every signature is checked here, so a lying leader can delay a command but neither forge nor alter one.
//!
//! ```text
//! entry ──► lapses and deadlines due by its time ──► commands in order ──► BatchEnd ──► (size, root, certifiers)
//! ```
//! Each step appends leaves. What is forwarded, and who may certify, follows from the state after the entry.
//! It survives a lying leader (safety); whether it makes progress under one is the shell's concern.
mod ahead;
mod attestation;
mod budget;
mod metering;
mod policy_change;
mod recovery;
mod requests;
#[cfg(test)]
mod tests;
mod tokens;

pub use ahead::VerifiedAhead;
pub use attestation::{NodeRecord, NodeStatus, NotAttested, appraise_member, evidence_nonce, recovery_nonce};
pub use budget::{Account, DAYS_KEPT, Hold, REFUSAL_LEAVES_MAX, Said, Usage, Window};
pub use metering::{
    CredentialUse, EXCUSED_PER_NODE_MAX, EXCUSED_PER_PAIR_MAX, FREEZING_CLIENTS, FaultKind, HOLD_MS, Meter,
    OPEN_PER_PAIR_MAX, PROBES_PER_PAIR_MAX, Pair, REMEMBERED_PER_PAIR_MAX, STALLS_MAX, SUSPENDING_CLIENTS,
    VOIDS_PER_PAIR_MAX,
};
pub use policy_change::{changed_members, outgoing_rule};
pub use recovery::{NoPlan, RecoveryPlan, build_recovery, plan_recovery};
pub use requests::{Pool, RequestRecord};
pub use tokens::{
    IN_FLIGHT_PER_TOKEN_MAX, POOLS_PER_TOKEN_MAX, REVOKED_PER_ISSUER_MAX, TOKENS_MAX, TOKENS_PER_ISSUER_MAX,
    TokenRecord, presentable, usable,
};

use crate::certificate::{Certifiers, QuorumRule};
use crate::command::{Batch, CheckpointRef, Command, NodeCommand};
use crate::crypto::{Hash, PublicKey, encode, sha256};
use crate::ids::{ClientId, NodeId, PolicyVersion, PoolId, RequestId, RouteId, TeamId, Timestamp};
use crate::leaf::{BatchEnd, Leaf, LeafBody, Outcome};
use crate::policy::{Moment, Policy, PolicyMistakes, SignedPolicy};
use crate::refusal::Refusal;
use crate::tlog::{Checkpoint, Frontier, LeafIndex, Origin, TreeSize, leaf_hash};
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::evidence::BootKeys;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// The state machine's version; a change of rules needs a new one, switched by a logged entry.
pub const MACHINE_VERSION: u32 = 5;
/// How many anchors are remembered: at one per second, more than any nonce may be old.
const ANCHORS_MAX: usize = 256;
/// Batches between anchors are at least this far apart by entry time, unless one changed who is attested.
const ANCHOR_SPACING_MS: u64 = 1000;
/// Most routes that ever had a credential, those of routes long gone included: their share epochs are never forgotten.
pub const KEYED_ROUTES_MAX: usize = 4096;
/// Fewest batches between two snapshot points.
pub const SNAPSHOT_BATCHES_MIN: u64 = 256;

/// Content-addressed logs and documents; whatever an applied entry names is there.
pub trait Blobs {
    /// The blob of that SHA-256.
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>>;
}

/// A checkpoint that evidence may name as its nonce.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Anchor {
    /// Size and root.
    pub checkpoint: CheckpointRef,
    /// Entry time.
    pub time: Timestamp,
    /// Who can certify it.
    pub certifiers: Certifiers,
}

/// Everything that is replicated, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Data {
    machine: u32,
    genesis: Hash,
    origin: Origin,
    policy: SignedPolicy,
    time: Timestamp,
    tree: Frontier,
    nodes: BTreeMap<NodeId, NodeRecord>,
    anchors: VecDeque<Anchor>,
    pools: BTreeMap<PoolId, Pool>,
    pool_deadlines: BTreeSet<(Timestamp, PoolId)>,
    requests: BTreeMap<RequestId, RequestRecord>,
    request_deadlines: BTreeSet<(Timestamp, RequestId)>,
    budgets: budget::Budgets,
    tokens: tokens::Tokens,
    /// The highest share epoch each route's credential ever had. At most [`KEYED_ROUTES_MAX`].
    share_epochs: BTreeMap<RouteId, u32>,
    /// One for each route that has a credential.
    meters: BTreeMap<RouteId, Meter>,
    changing: Option<Changing>,
    batches_since_snapshot: u64,
    digest_due: bool,
}

/// Members changed, and nothing yet shows that a checkpoint with the change is certified by the old set as well: until then
/// every checkpoint needs both, or a leader could step over the one that does.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Changing {
    /// The version before the change.
    from: PolicyVersion,
    /// What the old set demands.
    rule: QuorumRule,
    /// A removed member's key and the time of its last evidence; it may agree to its removal until that lapses.
    removed: Option<(NodeId, PublicKey, Timestamp)>,
    /// Size from which on a tree holds the change.
    since: TreeSize,
}

/// The state after some entry.
#[derive(Debug, Clone)]
pub struct State {
    data: Data,
    policy: Arc<Policy>,
    ahead: VerifiedAhead,
}

/// A leaf as `apply` made it: nobody else can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedLeaf {
    leaf: Leaf,
    index: LeafIndex,
}

impl AppliedLeaf {
    /// The leaf.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }
    /// Its position in the tree.
    pub fn index(&self) -> LeafIndex {
        self.index
    }
}

/// What one entry did.
#[derive(Debug, Clone)]
pub struct Applied {
    /// New leaves, in order.
    pub leaves: Vec<AppliedLeaf>,
    /// Their bytes, in the same order.
    pub leaf_bytes: Vec<Vec<u8>>,
    /// Outcome of each command that was decided, by the command's digest, and its leaf where it has one.
    pub outcomes: Vec<(Hash, Outcome, Option<usize>)>,
    /// The tree after the entry.
    pub checkpoint: CheckpointRef,
    /// Who can certify it.
    pub certifiers: Certifiers,
    /// Whether evidence may name this checkpoint as nonce.
    pub anchor: bool,
    /// Whether this is a snapshot point: the state as it is now will be committed to by the next batch's first leaf.
    pub snapshot_point: bool,
}

/// Why a genesis was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// The document is wrong.
    #[error("the genesis policy is not valid")]
    Policy(#[from] PolicyMistakes),
    /// Not version 1.
    #[error("the document is not version 1")]
    NotGenesis,
    /// Its own admins did not sign it.
    #[error("the genesis policy is not signed by its own admins")]
    Signers(#[source] Refusal),
}

/// A state that does not decode.
#[derive(Debug, thiserror::Error)]
pub enum BadSnapshot {
    /// Not our bytes.
    #[error("the snapshot does not decode")]
    Undecodable,
    /// A newer program wrote it.
    #[error("the snapshot is of state machine version {0}, this program knows {MACHINE_VERSION}")]
    Version(u32),
    /// Policy inside does not parse.
    #[error("the policy in the snapshot is not valid")]
    Policy(#[from] PolicyMistakes),
    /// Another cluster's.
    #[error("the snapshot is of another cluster")]
    WrongCluster,
}

/// The checkpoint of genesis: one leaf that names the first policy.
pub fn genesis_leaf(policy: Hash) -> Leaf {
    Leaf::V1 { time: Timestamp(0), body: LeafBody::Genesis { policy } }
}

impl State {
    /// The state that a genesis policy, signed by its own admins, defines. Returns it with the bytes of leaf 0.
    pub fn genesis(signed: SignedPolicy) -> Result<(Self, Vec<u8>), GenesisError> {
        let policy = Policy::parse(&signed.document)?;
        if policy.version.0 != 1 {
            return Err(GenesisError::NotGenesis);
        }
        policy.check_signers(&signed).map_err(GenesisError::Signers)?;
        let leaf = encode(&genesis_leaf(policy.digest));
        let mut tree = Frontier::new();
        tree.push(leaf_hash(&leaf));
        let data = Data {
            machine: MACHINE_VERSION,
            genesis: policy.digest,
            origin: Policy::origin(&policy.cluster, &policy.digest),
            policy: signed,
            time: Timestamp(0),
            tree,
            nodes: policy.members.keys().map(|n| (*n, NodeRecord::default())).collect(),
            anchors: VecDeque::new(),
            pools: BTreeMap::new(),
            pool_deadlines: BTreeSet::new(),
            requests: BTreeMap::new(),
            request_deadlines: BTreeSet::new(),
            budgets: budget::Budgets::default(),
            tokens: tokens::Tokens::default(),
            share_epochs: share_epochs(&policy).collect(),
            meters: metering::meters(&BTreeMap::new(), &policy),
            changing: None,
            batches_since_snapshot: 0,
            digest_due: false,
        };
        Ok((Self { data, policy: Arc::new(policy), ahead: VerifiedAhead::default() }, leaf))
    }

    /// Reads a snapshot's bytes. Whether they are the certified state is for the caller: compare [`State::digest`].
    pub fn from_bytes(bytes: &[u8], genesis: Hash) -> Result<Self, BadSnapshot> {
        let data: Data = borsh::from_slice(bytes).map_err(|_| BadSnapshot::Undecodable)?;
        if data.machine != MACHINE_VERSION {
            return Err(BadSnapshot::Version(data.machine));
        }
        if data.genesis != genesis {
            return Err(BadSnapshot::WrongCluster);
        }
        let policy = Arc::new(Policy::parse(&data.policy.document)?);
        Ok(Self { data, policy, ahead: VerifiedAhead::default() })
    }

    /// The canonical bytes of the state.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(&self.data)
    }
    /// SHA-256 of the canonical bytes: equal on every node that applied the same entries.
    pub fn digest(&self) -> Hash {
        sha256(&self.to_bytes())
    }
    /// Where signatures of commands that will be applied can be checked early.
    pub fn verified_ahead(&self) -> &VerifiedAhead {
        &self.ahead
    }
    /// Digest of the genesis policy: the cluster's identity.
    pub fn cluster(&self) -> Hash {
        self.data.genesis
    }
    /// First line of every checkpoint.
    pub fn origin(&self) -> &Origin {
        &self.data.origin
    }
    /// Policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }
    /// Its document and signatures.
    pub fn signed_policy(&self) -> &SignedPolicy {
        &self.data.policy
    }
    /// Time of the last entry.
    pub fn time(&self) -> Timestamp {
        self.data.time
    }
    /// The tree's right edge.
    pub fn tree(&self) -> &Frontier {
        &self.data.tree
    }
    /// The tree's size and root.
    pub fn checkpoint(&self) -> CheckpointRef {
        CheckpointRef { size: self.data.tree.size(), root: self.data.tree.root() }
    }
    /// What is known of each member.
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.data.nodes
    }
    /// Checkpoints that evidence may name, oldest first.
    pub fn anchors(&self) -> &VecDeque<Anchor> {
        &self.data.anchors
    }
    /// An open pool.
    pub fn pool(&self, pool: &PoolId) -> Option<&Pool> {
        self.data.pools.get(pool)
    }
    /// A request that is open or whose nonce is still remembered.
    pub fn request(&self, request: &RequestId) -> Option<&RequestRecord> {
        self.data.requests.get(request)
    }
    /// What a client has used, as of the state's time.
    pub fn usage(&self, client: &ClientId) -> Option<Usage> {
        self.data.budgets.clients.get(client).map(|u| u.clone().at(Moment::of(self.data.time)))
    }
    /// What every client has used that ever asked, as of the state's time; by name, from the one after `after` on.
    pub fn usage_by_client(&self, after: Option<&ClientId>) -> impl Iterator<Item = (&ClientId, Usage)> + '_ {
        self.usage_in(&self.data.budgets.clients, after)
    }
    /// What the clients of each team have used together, likewise.
    pub fn usage_by_team(&self, after: Option<&TeamId>) -> impl Iterator<Item = (&TeamId, Usage)> + '_ {
        self.usage_in(self.data.budgets.teams(), after)
    }
    /// What went over each route, likewise.
    pub fn usage_by_route(&self, after: Option<&RouteId>) -> impl Iterator<Item = (&RouteId, Usage)> + '_ {
        self.usage_in(self.data.budgets.routes(), after)
    }
    /// What the clients of one team have used together.
    pub fn usage_of_team(&self, team: &TeamId) -> Option<Usage> {
        self.data.budgets.teams().get(team).map(|u| u.clone().at(Moment::of(self.data.time)))
    }
    fn usage_in<'s, K: Ord>(
        &self,
        of: &'s BTreeMap<K, Usage>,
        after: Option<&K>,
    ) -> impl Iterator<Item = (&'s K, Usage)> + use<'s, K> {
        let now = Moment::of(self.data.time);
        let rest = of.range((after.map_or(Unbounded, Excluded), Unbounded));
        rest.map(move |(id, u)| (id, u.clone().at(now)))
    }
    /// What all clients used together, by day since the epoch; the last [`DAYS_KEPT`] on which anything was asked.
    pub fn usage_by_day(&self) -> &BTreeMap<u64, Window> {
        self.data.budgets.days()
    }
    /// The highest share epoch that a route's credential ever had; a new one must be higher.
    pub fn share_epoch_highest(&self, route: &RouteId) -> Option<u32> {
        self.data.share_epochs.get(route).copied()
    }
    /// The faults of a route's credential, if it has one.
    pub fn meter(&self, route: &RouteId) -> Option<&Meter> {
        self.data.meters.get(route)
    }
    /// Whether a route's credential may be used over this pair, in this share epoch, by anybody: what relay and keyer ask
    /// themselves once more before a hole is filled. A route without credential has epoch 0.
    pub fn credential_usable(&self, route: &RouteId, share_epoch: u32, pair: Pair) -> Result<(), Refusal> {
        let route = self.policy.routes.get(route).ok_or(Refusal::UnknownRoute)?;
        if route.share_epoch() != share_epoch {
            return Err(Refusal::StaleShareEpoch);
        }
        match &route.credential {
            Some(c) if c.frozen => Err(Refusal::CredentialFrozen),
            _ => self.data.meters.get(&route.id).map_or(Ok(()), |m| m.usable(pair)),
        }
    }
    /// Boot keys of an attested member.
    pub fn attested(&self, node: NodeId) -> Option<&BootKeys> {
        self.data.nodes.get(&node).and_then(NodeRecord::attested)
    }
    /// All attested members.
    pub fn attested_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.data.nodes.iter().filter(|(_, r)| r.attested().is_some()).map(|(n, _)| *n)
    }
    /// Whether fewer than a quorum are attested: then only evidence, recovery and admin commands apply.
    pub fn is_dark(&self) -> bool {
        self.attested_nodes().count() < self.policy.quorum()
    }
    /// Batches since the last snapshot point.
    pub fn batches_since_snapshot(&self) -> u64 {
        self.data.batches_since_snapshot
    }
    /// Whether the next batch will begin with this state's digest.
    pub fn digest_due(&self) -> bool {
        self.data.digest_due
    }
    /// When the next lapse or deadline is due, by entry time.
    pub fn next_due(&self) -> Option<Timestamp> {
        let lapse = self.policy.attestation.lapse_ms;
        let lapses =
            self.data.nodes.values().filter_map(|r| r.attested_at()).map(|t| t.plus_ms(lapse).plus_ms(1));
        let deadline = self.data.request_deadlines.first().map(|(t, _)| *t);
        lapses.chain(deadline).chain(metering::next_due(&self.data.meters)).min()
    }

    /// Applies one entry's bytes.
    pub fn apply(&mut self, entry: &[u8], blobs: &dyn Blobs) -> Applied {
        match borsh::from_slice::<Batch>(entry) {
            Ok(batch) if batch.commands.len() <= crate::command::COMMANDS_MAX => {
                Run::new(self).batch(batch, blobs)
            }
            _ => self.apply_undecodable(sha256(entry)),
        }
    }

    /// As [`State::apply`], for who has the entry's parts: an auditor who reads them from leaves.
    pub fn apply_batch(&mut self, batch: Batch, blobs: &dyn Blobs) -> Applied {
        if batch.commands.len() > crate::command::COMMANDS_MAX {
            return self.apply_undecodable(sha256(&encode(&batch)));
        }
        Run::new(self).batch(batch, blobs)
    }

    /// What an entry does that is no batch within its bounds: a leaf that names its bytes by their SHA-256.
    pub fn apply_undecodable(&mut self, entry: Hash) -> Applied {
        let mut run = Run::new(self);
        let time = run.state.data.time;
        run.digest_leaf(time);
        run.leaf(time, LeafBody::Undecodable { entry });
        run.finish(NodeId(0))
    }
}

/// One application of an entry.
struct Run<'a> {
    state: &'a mut State,
    /// The tree that this entry extends.
    start: CheckpointRef,
    leaves: Vec<AppliedLeaf>,
    leaf_bytes: Vec<Vec<u8>>,
    outcomes: Vec<(Hash, Outcome, Option<usize>)>,
    /// Keys that may certify only the checkpoint that ends with this batch.
    recovered: BTreeMap<NodeId, PublicKey>,
    anchor: bool,
    snapshot_point: bool,
}

impl<'a> Run<'a> {
    fn new(state: &'a mut State) -> Self {
        Self {
            start: state.checkpoint(),
            state,
            leaves: Vec::new(),
            leaf_bytes: Vec::new(),
            outcomes: Vec::new(),
            recovered: BTreeMap::new(),
            anchor: false,
            snapshot_point: false,
        }
    }

    fn leaf(&mut self, time: Timestamp, body: LeafBody) -> LeafIndex {
        let leaf = Leaf::V1 { time, body };
        let bytes = encode(&leaf);
        let index = LeafIndex(self.state.data.tree.size().0);
        self.state.data.tree.push(leaf_hash(&bytes));
        self.leaf_bytes.push(bytes);
        self.leaves.push(AppliedLeaf { leaf, index });
        index
    }

    fn batch(mut self, batch: Batch, blobs: &dyn Blobs) -> Applied {
        // The leader's clock may jump back; the state's time never does.
        let time = batch.time.max(self.state.data.time);
        self.digest_leaf(time);
        self.state.data.time = time;
        self.lapse();
        self.deadlines();
        self.state.data.tokens.expire(time);
        self.release_faults();
        for command in batch.commands {
            let digest = command.digest();
            let decided = self.decide(digest, &command, blobs);
            self.record(digest, command, decided);
        }
        self.finish(batch.proposer)
    }

    /// What the previous batch promised comes first, whatever this entry is.
    fn digest_leaf(&mut self, time: Timestamp) {
        if self.state.data.digest_due {
            let (size, digest) = (self.state.data.tree.size(), self.state.digest());
            self.state.data.digest_due = false;
            self.leaf(time, LeafBody::StateDigest { size, digest });
        }
    }

    /// A leaf where the author is proven, none for bytes that anybody could have made up; nor for what a client is refused beyond
    /// its part of them.
    fn record(&mut self, digest: Hash, command: Command, decided: Result<Outcome, Refusal>) {
        let time = self.state.data.time;
        let outcome = decided.unwrap_or_else(Outcome::Refused);
        let unproven = matches!(
            outcome,
            Outcome::Refused(
                Refusal::BadSignature
                    | Refusal::UnknownClient
                    | Refusal::UnknownNode
                    | Refusal::NodeNotAttested
                    | Refusal::BadContribution
                    | Refusal::UnknownSigner
                    | Refusal::Oversized
                    | Refusal::BadToken
                    | Refusal::UnknownToken
            )
        );
        let in_vain = match &outcome {
            Outcome::Refused(_) => true,
            Outcome::Reported(refused) => {
                matches!(&command, Command::Client(c) if c.body.reports() == refused.len())
            }
            _ => false,
        };
        let kept = match &command {
            Command::Client(c) if in_vain && !unproven => {
                self.state.data.budgets.refusal_leaf(&c.client, c.token.is_some(), Moment::of(time))
            }
            _ => !unproven,
        };
        let position = kept.then(|| {
            let position = self.leaves.len();
            self.leaf(time, LeafBody::Decided { command, outcome: outcome.clone() });
            position
        });
        self.outcomes.push((digest, outcome, position));
    }

    fn decide(&mut self, digest: Hash, command: &Command, blobs: &dyn Blobs) -> Result<Outcome, Refusal> {
        // First of all: a refusal may become a leaf, and a leaf holds the whole command.
        if !command.within_bounds() {
            return Err(Refusal::Oversized);
        }
        match command {
            Command::Client(c) => self.client_command(digest, c),
            Command::Node(c) => {
                if !self.state.data.nodes.contains_key(&c.node) {
                    return Err(Refusal::UnknownNode);
                }
                let boot = self.state.attested(c.node).ok_or(Refusal::NodeNotAttested)?;
                let key = PublicKey(boot.cosign);
                if !self.state.ahead.take(digest, key) && !c.is_by(self.state.data.genesis, &key) {
                    return Err(Refusal::BadSignature);
                }
                if self.state.is_dark() {
                    return Err(Refusal::Dark);
                }
                match &c.body {
                    NodeCommand::Settle(settlements) => self.settle(c.node, settlements),
                    NodeCommand::Alarm(alarm) => self.alarm(c.node, alarm),
                    NodeCommand::Unanswered(requests) => self.unanswered(c.node, requests),
                    NodeCommand::Snapshot => self.snapshot(),
                }
            }
            Command::Evidence(c) => self.evidence(c, blobs),
            Command::Recover(c) => self.recover(c, blobs),
            Command::Policy(c) => self.change_policy(c, blobs),
        }
    }

    fn snapshot(&mut self) -> Result<Outcome, Refusal> {
        if self.state.data.batches_since_snapshot < SNAPSHOT_BATCHES_MIN {
            return Err(Refusal::TooSoon);
        }
        self.snapshot_point = true;
        Ok(Outcome::SnapshotPoint)
    }

    fn certifiers(&self) -> Certifiers {
        let state = &*self.state;
        let mut keys: BTreeMap<NodeId, PublicKey> = state
            .data
            .nodes
            .iter()
            .filter_map(|(n, r)| Some((*n, PublicKey(r.attested()?.cosign))))
            .collect();
        keys.extend(self.recovered.iter().map(|(n, k)| (*n, *k)));
        let mut rules = vec![rule_of(&state.policy)];
        if let Some(changing) = &state.data.changing {
            rules.push(changing.rule.clone());
            let fresh = |at: Timestamp| state.data.time.since_ms(at) <= state.policy.attestation.lapse_ms;
            keys.extend(changing.removed.filter(|(_, _, at)| fresh(*at)).map(|(n, k, _)| (n, k)));
        }
        Certifiers { keys, rules }
    }

    fn finish(mut self, proposer: NodeId) -> Applied {
        let time = self.state.data.time;
        let data = &mut self.state.data;
        data.batches_since_snapshot =
            if self.snapshot_point { 0 } else { data.batches_since_snapshot.saturating_add(1) };
        data.digest_due = self.snapshot_point;
        let attested = data.nodes.iter().filter_map(|(n, r)| Some((*n, r.attested_leaf()?))).collect();
        let end = BatchEnd {
            policy: self.state.policy.version,
            policy_digest: self.state.policy.digest,
            attested,
            dark: self.state.is_dark(),
            changing: self.state.data.changing.as_ref().map(|c| c.from),
            proposer,
        };
        self.leaf(time, LeafBody::BatchEnd(end));
        let checkpoint = self.state.checkpoint();
        let certifiers = self.certifiers();
        let data = &mut self.state.data;
        let spaced = data.anchors.back().is_none_or(|a| time.since_ms(a.time) >= ANCHOR_SPACING_MS);
        let anchor = self.anchor || spaced;
        if anchor {
            data.anchors.push_back(Anchor { checkpoint, time, certifiers: certifiers.clone() });
            if data.anchors.len() > ANCHORS_MAX {
                data.anchors.pop_front();
            }
        }
        Applied {
            leaves: self.leaves,
            leaf_bytes: self.leaf_bytes,
            outcomes: self.outcomes,
            checkpoint,
            certifiers,
            anchor,
            snapshot_point: self.snapshot_point,
        }
    }
}

/// Share epochs of a policy's credentials.
fn share_epochs(policy: &Policy) -> impl Iterator<Item = (RouteId, u32)> {
    policy.routes.values().filter(|r| r.credential.is_some()).map(|r| (r.id.clone(), r.share_epoch()))
}

/// The rule of a policy's member set.
pub fn rule_of(policy: &Policy) -> QuorumRule {
    QuorumRule { members: policy.members.keys().copied().collect(), threshold: policy.quorum() as u32 }
}

/// A checkpoint of this log as C2SP writes it.
pub fn checkpoint_of(origin: &Origin, reference: CheckpointRef) -> Checkpoint {
    Checkpoint { origin: origin.clone(), size: reference.size, root: reference.root }
}

/// The tree that holds genesis alone.
pub fn genesis_checkpoint(genesis: Hash) -> CheckpointRef {
    let mut tree = Frontier::new();
    tree.push(leaf_hash(&encode(&genesis_leaf(genesis))));
    CheckpointRef { size: TreeSize(1), root: tree.root() }
}
