//! History, replayed: the commands of each batch go through the state machine that every node runs, and the very leaves of the
//! log must come out. That re-checks every signature, every decision and every quote against the policy of its moment.
//!
//! ```text
//! bundles ─► workers: leaf = its hash in the tile? decode, check signatures ahead ─► in order ─► batch ─► apply ─► same leaves?
//!                                     ▲ keys of the moment                                    │
//!                                     └───────────────────────────────────────────────────────┘
//! ```
//! One thread applies. The workers only warm [`VerifiedAhead`], which `apply` consults with the key that it chose itself; the
//! verdict is the same without them. Beside the leaves, every tile, every stored checkpoint under the certifiers of its size,
//! and every blob that a leaf names are compared.
//!
//! **Left to the caller**: whether the newest checkpoint is recent, and whether other nodes serve the same history.
mod blobs;
mod differ;
pub(crate) use differ::find as difference;
mod read;
mod rows;

use crate::finding::{Error, Fault, Finding, Place};
use crate::prune;
use crate::store::{Mirror, StoredCheckpoint};
use blobs::AuditedBlobs;
use bytes::Bytes;
use quorate_core::certificate::{CertifiedCheckpoint, Certifiers};
use quorate_core::command::{Batch, COMMANDS_MAX, CheckpointRef, Command};
use quorate_core::crypto::{Hash, PublicKey, sha256};
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::policy::Policy;
use quorate_core::refusal::Refusal;
use quorate_core::state::{Applied, AppliedLeaf, NodeRecord, State, VerifiedAhead};
use quorate_core::tlog::{Cosignature, KeyName, LeafIndex, TILE_WIDTH, TreeSize};
use read::{Keys, ReadLeaf, Reader};
use rows::Rows;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Most leaves of a batch that no command stands behind: each request that any state can hold may be flagged at once.
const AUTOMATIC_LEAVES_MAX: usize = 1 << 22;

/// How to replay.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads that read and check signatures ahead.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(2, Into::into) }
    }
}

/// One batch, replayed and found to be what the log has.
#[derive(Debug)]
pub struct Step {
    /// Its first leaf.
    pub first: LeafIndex,
    /// Entry time.
    pub time: Timestamp,
    /// Who proposed it; nobody signed that.
    pub proposer: NodeId,
    /// Its leaves, the batch's end last.
    pub leaves: Vec<AppliedLeaf>,
    /// The tree after it.
    pub checkpoint: CheckpointRef,
    /// Who could certify that tree.
    pub certifiers: Certifiers,
    /// Where the mirror holds a checkpoint of this size: certified, as it is.
    pub certified: Option<CertifiedCheckpoint>,
}

/// What was looked at so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Leaves that came out alike.
    pub leaves: u64,
    /// Batches.
    pub batches: u64,
    /// Commands whose author's signature was checked.
    pub commands: u64,
    /// Quotes that were appraised, recoveries' included.
    pub quotes: u64,
    /// Tiles above the leaves' own.
    pub tiles: u64,
    /// Distinct blobs.
    pub blobs: u64,
    /// Checkpoints found certified.
    pub checkpoints: u64,
    /// Cosignatures under them, those inside evidence apart.
    pub cosignatures: u64,
}

/// A replay on its way. [`Replay::step`] until it gives `None`: then everything was checked.
pub struct Replay {
    mirror: Mirror,
    newest: StoredCheckpoint,
    older: VecDeque<TreeSize>,
    state: State,
    blobs: AuditedBlobs,
    reader: Reader,
    /// Tiles above the leaves' own; none where the copy lacks its beginning.
    rows: Option<Rows>,
    begins: LeafIndex,
    /// Leaves read and not yet replayed.
    pending: VecDeque<ReadLeaf>,
    next: LeafIndex,
    checked: Checked,
    findings: Vec<Finding>,
    ended: bool,
}

impl Replay {
    /// Begins at genesis, which must have this digest.
    pub fn start(mirror: &Mirror, genesis: Hash, options: Options) -> Result<Self, Error> {
        if let Some(pruned) = prune::pruned(mirror) {
            return Err(Error::Pruned(pruned.minimum_index));
        }
        let signed = mirror.genesis()?;
        let at_genesis = |fault| Finding::at(Place::Genesis, fault);
        let got = sha256(&signed.document);
        if got != genesis {
            return Err(at_genesis(Fault::OtherGenesis { expected: genesis, got }).into());
        }
        let (state, leaf) = State::genesis(signed).map_err(|e| {
            let cause = std::error::Error::source(&e).map(|c| format!(": {c}")).unwrap_or_default();
            at_genesis(Fault::GenesisInvalid(format!("{e}{cause}")))
        })?;
        let mut replay = Self::after(mirror, state, options)?;
        replay.rows = Some(Rows::new(mirror.clone(), replay.newest.size()));
        replay.first_leaf(&leaf)?;
        Ok(replay)
    }

    /// Begins where a mirror was cut, with the state that the cut left there. Nothing here proves that state: whoever made the cut
    /// had verified what led to it.
    pub fn resume(mirror: &Mirror, genesis: Hash, options: Options) -> Result<Self, Error> {
        prune::check(mirror)?;
        let state = prune::state(mirror, genesis)?;
        let size = state.tree().size();
        let mut replay = Self::after(mirror, state, options)?;
        // Certified by whom, only history before the cut tells.
        replay.older.retain(|older| *older > size);
        replay.begins = LeafIndex(size.0);
        replay.next = replay.begins;
        let skipped = usize::try_from(size.0 % TILE_WIDTH).unwrap_or(usize::MAX);
        for _ in 0..skipped {
            replay.read_leaf()?;
        }
        Ok(replay)
    }

    fn after(mirror: &Mirror, state: State, options: Options) -> Result<Self, Error> {
        let newest = mirror.newest()?;
        let expected = state.origin().clone();
        if newest.checkpoint.origin != expected {
            let said = newest.checkpoint.origin.clone();
            return Err(Finding::at(Place::Checkpoint, Fault::OtherOrigin { said, expected }).into());
        }
        let keys = Keys::of(&state);
        let from = (state.tree().size().0 / TILE_WIDTH, options.threads);
        let reader = Reader::start(mirror, newest.size(), keys, state.verified_ahead().clone(), from);
        Ok(Self {
            mirror: mirror.clone(),
            older: mirror.older()?.into(),
            state,
            blobs: AuditedBlobs::new(mirror.clone()),
            reader,
            rows: None,
            begins: LeafIndex(0),
            newest,
            pending: VecDeque::new(),
            next: LeafIndex(0),
            checked: Checked::default(),
            findings: Vec::new(),
            ended: false,
        })
    }

    /// The next batch; `None` when the log ended and everything about it was checked.
    pub fn step(&mut self) -> Result<Option<Step>, Error> {
        if self.ended {
            return Ok(None);
        }
        let step = self.try_step();
        self.ended = !matches!(step, Ok(Some(_)));
        step
    }

    /// The state after the last step.
    pub fn state(&self) -> &State {
        &self.state
    }
    /// The checkpoint that the mirror ends with. A claim until the last step.
    pub fn newest(&self) -> &StoredCheckpoint {
        &self.newest
    }
    /// Leaves replayed so far.
    pub fn position(&self) -> TreeSize {
        TreeSize(self.next.0)
    }
    /// What was checked so far.
    pub fn checked(&self) -> Checked {
        Checked { blobs: self.blobs.distinct(), ..self.checked }
    }
    /// What is wrong with the copy without touching history: older checkpoints, tiles that only proofs need.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn first_leaf(&mut self, expected: &[u8]) -> Result<(), Error> {
        let place = Place::Leaf(LeafIndex(0));
        let Some(read) = self.read_leaf()? else { return Err(Finding::at(place, Fault::Missing).into()) };
        if read.bytes != expected {
            let said =
                read.leaf.as_ref().map_or_else(|| "a leaf that does not decode".into(), crate::words::leaf);
            let rules = crate::words::leaf(&quorate_core::state::genesis_leaf(self.state.cluster()));
            return Err(Finding::at(place, Fault::Differs { said, rules }).into());
        }
        self.next = LeafIndex(1);
        self.checked.leaves = 1;
        Ok(())
    }

    /// The next leaf, in order.
    fn read_leaf(&mut self) -> Result<Option<ReadLeaf>, Error> {
        if self.pending.is_empty()
            && let Some(bundle) = self.reader.next()?
        {
            if let Some(rows) = &mut self.rows {
                rows.push(bundle.hashes)?;
            }
            self.pending = bundle.leaves.into();
        }
        Ok(self.pending.pop_front())
    }

    fn try_step(&mut self) -> Result<Option<Step>, Error> {
        let first = self.next;
        let Some((end, leaves)) = self.read_batch(first)? else {
            self.finish()?;
            return Ok(None);
        };
        let Leaf::V1 { time, .. } = &end;
        let time = *time;
        let mut said: Vec<Bytes> = Vec::with_capacity(leaves.len());
        let mut commands = Vec::new();
        let mut undecodable = None;
        let mut quotes = 0;
        for (index, read) in (first.0..).map(LeafIndex).zip(leaves) {
            let place = Place::Leaf(index);
            let Some(Leaf::V1 { time: leaf_time, body }) = read.leaf else {
                return Err(Finding::at(place, Fault::Undecodable).into());
            };
            if leaf_time != time {
                return Err(Finding::at(place, Fault::Time { said: leaf_time, batch: time }).into());
            }
            match body {
                LeafBody::Decided { command, outcome } => {
                    if outcome != Outcome::Refused(Refusal::MissingBlob) {
                        self.blobs.require(&command, index)?;
                    }
                    quotes += match &command {
                        Command::Evidence(_) => 1,
                        Command::Recover(c) => c.evidence.len() as u64,
                        _ => 0,
                    };
                    commands.push(command);
                }
                LeafBody::Undecodable { entry } => undecodable = Some(entry),
                _ => {}
            }
            said.push(read.bytes);
        }
        let Leaf::V1 { body: LeafBody::BatchEnd(batch_end), .. } = end else {
            return Err(Finding::at(Place::Leaf(first), Fault::Undecodable).into());
        };
        let proposer = batch_end.proposer;
        self.checked.commands += commands.len() as u64;
        self.checked.quotes += quotes;
        let applied = match undecodable {
            Some(entry) => self.state.apply_undecodable(entry),
            None => self.state.apply_batch(Batch { time, proposer, commands }, &self.blobs),
        };
        if let Some(error) = self.blobs.failed() {
            return Err(error);
        }
        let alike = said.len() == applied.leaf_bytes.len()
            && said.iter().zip(&applied.leaf_bytes).all(|(a, b)| a == b);
        if !alike {
            return Err(differ::find(first, &said, &applied).into());
        }
        self.next = LeafIndex(first.0.saturating_add(said.len() as u64));
        self.checked.leaves = self.next.0.saturating_sub(self.begins.0);
        self.checked.batches += 1;
        if applied.leaves.iter().any(changes_keys) {
            self.reader.publish(Keys::of(&self.state));
        }
        let certified = self.certified(&applied)?;
        let Applied { leaves, checkpoint, certifiers, .. } = applied;
        Ok(Some(Step { first, time, proposer, leaves, checkpoint, certifiers, certified }))
    }

    /// The leaves of the batch that begins here, and what its last one says. None where the log ends.
    fn read_batch(&mut self, first: LeafIndex) -> Result<Option<(Leaf, Vec<ReadLeaf>)>, Error> {
        let mut leaves = Vec::new();
        let mut commands = 0;
        while let Some(read) = self.read_leaf()? {
            match &read.leaf {
                Some(Leaf::V1 { body: LeafBody::Decided { .. }, .. }) => commands += 1,
                Some(end @ Leaf::V1 { body: LeafBody::BatchEnd(_), .. }) => {
                    let end = end.clone();
                    leaves.push(read);
                    return Ok(Some((end, leaves)));
                }
                _ => {}
            }
            leaves.push(read);
            if commands > COMMANDS_MAX || leaves.len() > AUTOMATIC_LEAVES_MAX {
                return Err(Finding::at(Place::Leaf(self.next), Fault::EndlessBatch(first)).into());
            }
        }
        match leaves.is_empty() {
            true => Ok(None),
            false => Err(Finding::at(Place::Checkpoint, Fault::NotABatchEnd).into()),
        }
    }

    /// Checks the checkpoint that the mirror holds of this size, if it holds one.
    fn certified(&mut self, applied: &Applied) -> Result<Option<CertifiedCheckpoint>, Error> {
        let size = applied.checkpoint.size;
        let mut found = None;
        while let Some(older) = self.older.pop_front() {
            if older > size {
                self.older.push_front(older);
                break;
            }
            let place = Place::OlderCheckpoint(older);
            if older < size {
                self.findings.push(Finding::at(place, Fault::NotABatchEnd));
                continue;
            }
            let checked = self.mirror.older_checkpoint(older).and_then(|stored| {
                Ok(certify(&stored, applied, &self.state).map_err(|fault| Finding::at(place, fault))?)
            });
            match checked {
                Ok(certified) => found = Some(certified),
                Err(Error::Found(finding)) => self.findings.push(*finding),
                Err(error) => return Err(error),
            }
        }
        if size == self.newest.size() {
            let at_newest = |fault| Finding::at(Place::Checkpoint, fault);
            found = Some(certify(&self.newest, applied, &self.state).map_err(at_newest)?);
        }
        if let Some(certified) = &found {
            self.checked.checkpoints += 1;
            self.checked.cosignatures += certified.cosignatures().len() as u64;
        }
        Ok(found)
    }

    /// After the last batch: what remains to be compared.
    fn finish(&mut self) -> Result<(), Error> {
        for older in std::mem::take(&mut self.older) {
            self.findings.push(Finding::at(Place::OlderCheckpoint(older), Fault::NotABatchEnd));
        }
        if self.newest.size() == TreeSize(1) {
            // Genesis is certified by its admins, not by nodes; no node serves that.
            return Err(Finding::at(Place::Checkpoint, Fault::NotABatchEnd).into());
        }
        if let Some(rows) = &mut self.rows {
            self.findings.extend(rows.finish()?);
            self.checked.tiles = rows.compared();
        }
        Ok(())
    }
}

/// Whether after this leaf somebody else may sign.
fn changes_keys(leaf: &AppliedLeaf) -> bool {
    let Leaf::V1 { body, .. } = leaf.leaf();
    match body {
        LeafBody::Lapsed { .. } => true,
        LeafBody::Decided { command, .. } => command.goes_first(),
        _ => false,
    }
}

/// Checks a checkpoint against the tree and the certifiers of its size.
pub(crate) fn certify(
    stored: &StoredCheckpoint,
    applied: &Applied,
    state: &State,
) -> Result<CertifiedCheckpoint, Fault> {
    let checkpoint = &stored.checkpoint;
    if checkpoint.origin != *state.origin() {
        let (said, expected) = (checkpoint.origin.clone(), state.origin().clone());
        return Err(Fault::OtherOrigin { said, expected });
    }
    if checkpoint.root != applied.checkpoint.root {
        return Err(Fault::Root { said: checkpoint.root, computed: applied.checkpoint.root });
    }
    let cosignatures = cosignatures(stored, &applied.certifiers, state.policy())?;
    applied.certifiers.certify(checkpoint.clone(), &cosignatures).map_err(Fault::NotCertified)
}

/// The cosignatures of a note, each by the node whose key its line names: lines ascend by node, and there is no other line.
fn cosignatures(
    stored: &StoredCheckpoint,
    certifiers: &Certifiers,
    policy: &Policy,
) -> Result<Vec<(NodeId, Cosignature)>, Fault> {
    let origin = &stored.checkpoint.origin;
    let mut found: Vec<(NodeId, Cosignature)> = Vec::new();
    for line in stored.note.signatures() {
        let unknown = || Fault::UnknownCosigner(line.name.as_str().to_owned());
        let by = certifiers.keys.iter().find_map(|(node, key)| {
            let name = KeyName::new(format!("{origin}/{}", policy.members.get(node)?.name)).ok()?;
            Some((*node, Cosignature::from_note_signature(line, &name, &key.0).ok()?))
        });
        let (node, cosignature) = by.ok_or_else(unknown)?;
        if found.last().is_some_and(|(last, _)| *last > node) {
            return Err(Fault::CosignatureOrder);
        }
        found.push((node, cosignature));
    }
    Ok(found)
}

/// Boot keys of the nodes that may sign commands now.
fn boot_keys(nodes: &BTreeMap<NodeId, NodeRecord>) -> BTreeMap<NodeId, PublicKey> {
    nodes.iter().filter_map(|(n, r)| Some((*n, PublicKey(r.attested()?.cosign)))).collect()
}

impl Keys {
    fn of(state: &State) -> Self {
        Self { cluster: state.cluster(), policy: Arc::clone(state.policy()), boot: boot_keys(state.nodes()) }
    }
    fn verify(&self, ahead: &VerifiedAhead, command: &Command) {
        ahead.verify(self.cluster, command, &self.policy, |_| None, |node| self.boot.get(&node).copied());
    }
}
