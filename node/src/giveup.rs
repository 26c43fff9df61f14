//! Giving up a tail for a certified one. A lying leader can have this node apply, and sign, entries that nobody else will ever
//! certify; from then on it refuses every honest leader's log, because it never takes back what it applied.
//!
//! **Decides** that the others are right only on a proof from genesis ([`Proof::verify`]: admin-signed policy chain, quotes,
//! cosignatures of a quorum) of a checkpoint that this node's own tree neither extends nor leads up to. Not on cosignatures
//! that it collected: which keys may sign on the other branch follows from that branch's evidence, and whoever restarted
//! since has new ones. With at most f hostile nodes the proof also says that the own tail can never be certified: the quorum's
//! honest members do not sign two histories, and those who are left are too few.
//!
//! **What nobody signed** needs no such proof. A node that does not count signs nothing, so in darkness it may have applied what no
//! lock of its holds, and nothing can be certified without it. It gives that up where more members than can be hostile stand on
//! other histories, and where for a while too few were left for its own: above what it may have signed it promised nothing to
//! anybody. That is more than its lock says where the log that a start found has it count by the key of an earlier one: a power
//! cut takes the last locks with it, and not the log.
//!
//! **Raft's log alone** can conflict, and no tree shows it: a lying leader has this node apply an entry that makes no leaf where others
//! have a batch, or sends it what others have under other log ids. Then it refuses their log, and they its own. So a node whose tree
//! stands still while logs conflict lets go of its log: first of what makes no leaf at its end, and if that did not help, of all above
//! its snapshot. What it signed binds as before: it signs nothing more until its tree holds that again. Others must have it: a
//! quorum, by a proof that more is certified, or more peers than can be hostile, by the tiles that they give; and of those only such
//! as may not rely on this node meanwhile ([`turn`]): or all honest nodes could let go at once, each for the others' sake.
//!
//! **Refuses** to give up what this node itself saw certified: then more than f nodes are hostile, and people must look.
//!
//! ```text
//! nothing certified for a while ─► a peer's directory: proof ─► its tiles: how long is the shared prefix?
//!     ─► marker, durable ─► the process starts over ─► log cut, tiles and policies set aside, lock superseded ─► as any start
//! ```
//! The process starts over because nothing in memory may outlive the entries it came from. What is shared stays: others may
//! count on this node's copy of it. The old lock stays on record and no longer binds: it was a signature by keys of an earlier
//! boot over a tail that lost; the new lock is the proof's checkpoint.
use crate::blobs::BlobStore;
use crate::cosigner::{CosignerHandle, Lock};
use crate::init::{Layout, write_durably};
use crate::ledger::Ledger;
use crate::peers::Peers;
use crate::raft::guard::TermGuard;
use crate::raft::types::{LogId, Raft};
use crate::raft::{CertifiedFloor, LogStore, LogStoreError, LogStoreOptions, SnapshotStore};
use crate::snapshots;
use crate::tilestore::{StoreTail, TileReader, set_aside_beyond};
use anyhow::Context as _;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use openraft::{EntryPayload, RaftLogReader as _};
use quorate_core::command::{CheckpointRef, Contribution};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::proof::{PROOF_BYTES_MAX, Proof};
use quorate_core::state::{State, genesis_checkpoint};
use quorate_core::tlog::{
    NodeReader, TILE_HEIGHT, TileKind, TilePath, TreeSize, decode_tile, prove_consistency, root_at,
    tree_root, verify_consistency,
};
use quorate_proto::v1::mesh_client::MeshClient;
use quorate_proto::v1::{ContributeRequest, DirectoryRequest, TileRequest};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Code;

/// How long nothing may be certified before this node asks whether it is the one that is wrong.
const STALLED: Duration = Duration::from_secs(3);
/// How long no quorum may be left for a tail that this node did not sign: where all honest nodes answer, a mesh that can recover
/// does so sooner.
const LOST: Duration = Duration::from_secs(12);
/// How long somebody may stand elsewhere, and nothing be certified, until such a tail goes in any case.
const APART: Duration = Duration::from_secs(60);
/// For what one peer holds, its tiles included: one that is slow on purpose must not use up a turn.
const TOLD: Duration = Duration::from_secs(1);
/// Between two rounds of asking.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// For one peer's answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Entries read at a time.
const READ_ENTRIES: u64 = 256;

/// The decision, on disk until it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Marker {
    version: u8,
    /// Leaves that both histories share; all that this node has, if only Raft's log goes.
    pub shared: TreeSize,
    /// The checkpoint that was proven to be certified; else what this node holds to.
    pub certified: CheckpointRef,
}

/// Of a [`Marker`]: leaves go.
const OF_TAIL: u8 = 1;
/// Of a [`Marker`]: Raft's log goes.
const OF_LOG: u8 = 2;

impl Marker {
    /// That Raft's log goes, and `held` binds as before.
    pub fn of_log(own: TreeSize, held: CheckpointRef) -> Self {
        Self { version: OF_LOG, shared: own, certified: held }
    }

    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context("cannot read what is given up"),
        };
        let marker = borsh::from_slice(&bytes).ok().filter(|m: &Self| [OF_TAIL, OF_LOG].contains(&m.version));
        Ok(Some(marker.with_context(|| format!("{} is damaged", path.display()))?))
    }
}

/// What the locks of the members say in darkness about what this node applied and did not sign.
#[derive(Debug, Clone)]
pub struct Locks {
    /// What this node may not give up.
    pub held: CheckpointRef,
    /// Where the histories leave this node's own in which peers hold a lock.
    pub partings: Vec<TreeSize>,
    /// Peers that did not answer.
    pub silent: usize,
    /// All members.
    pub members: usize,
    /// So many must sign.
    pub quorum: usize,
    /// So many may be hostile.
    pub hostile_max: u32,
    /// Peers that have what this node may not give up, and may not rely on it now.
    pub holders: usize,
    /// Where this node's own tree, which does not have that, leaves the tree of one that has.
    pub astray: Option<TreeSize>,
}

/// Since when they have said that this node's tail may be lost.
#[derive(Debug, Default)]
pub struct Unsigned {
    apart: Option<Instant>,
    lost: Option<Instant>,
}

impl Unsigned {
    /// One round of asking. The tail goes at once where this node holds to another: it was given that tail again after it had let
    /// go of it, and signed none of it. And where one more member stands elsewhere than can be hostile, so that an honest
    /// one is among them. Where fewer do, it goes after [`LOST`] in which those, and the silent ones, left no quorum for it:
    /// hostile nodes are too few for that while all others answer, and a peer that starts answers soon. And it goes after
    /// [`APART`] in any case: whoever says that nothing stands in the way may be hostile too.
    pub fn round(&mut self, locks: &Locks, now: Instant) -> Option<Marker> {
        let mut above: Vec<TreeSize> =
            locks.partings.iter().copied().filter(|at| *at >= locks.held.size).collect();
        above.sort_unstable_by(|a, b| b.cmp(a));
        let marker = |shared| Marker { version: OF_TAIL, shared, certified: locks.held };
        if let Some(shared) = locks.astray {
            return Some(marker(shared));
        }
        if let Some(shared) = above.get(locks.hostile_max as usize) {
            return Some(marker(*shared));
        }
        let Some(shared) = above.last() else {
            *self = Self::default();
            return None;
        };
        let gone = locks.partings.len().saturating_add(locks.silent);
        match locks.members.saturating_sub(gone) < locks.quorum {
            true => drop(self.lost.get_or_insert(now)),
            false => self.lost = None,
        }
        let apart = *self.apart.get_or_insert(now);
        let since = |at: Instant| now.saturating_duration_since(at);
        let over = since(apart) >= APART || self.lost.is_some_and(|at| since(at) >= LOST);
        over.then(|| marker(*shared))
    }
}

/// Since when this node's tree stands still.
#[derive(Debug, Default)]
pub struct Standstill(Option<(TreeSize, Instant)>);

impl Standstill {
    /// One look at the tree, and at what conflicted since it stands still. With how many members' logs this node's does, and whether
    /// peers are to be asked what they have.
    pub fn look(&mut self, own: TreeSize, guard: &TermGuard, now: Instant) -> (usize, bool) {
        if self.0.is_none_or(|(size, _)| size != own) {
            self.0 = Some((own, now));
        }
        let since = self.0.map_or(now, |(_, since)| since);
        let conflicting = guard.conflicting(since.into_std());
        // A node that merely is cut off hears of no conflict.
        (conflicting, conflicting > 0 && self.lasts(STALLED, now))
    }

    /// Whether the log goes. Where more members conflict with this node than can be hostile, or more is certified than it has, it is
    /// most likely the one that is wrong, and the others wait for it.
    pub fn go(&self, certified: bool, conflicting: usize, locks: &Locks, now: Instant) -> bool {
        let wrong = certified || conflicting > locks.hostile_max as usize;
        let held = certified || locks.holders > locks.hostile_max as usize;
        held && self.lasts(LOST * if wrong { 1 } else { 2 }, now)
    }

    fn lasts(&self, bound: Duration, now: Instant) -> bool {
        self.0.is_some_and(|(_, since)| now.saturating_duration_since(since) >= bound)
    }
}

/// What a peer's directory says of this node's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Examined {
    /// Nothing that this node does not have.
    Held,
    /// More is certified than this node has.
    Behind,
    /// The tail must go.
    Astray(Marker),
}

/// What this node may not give up but for a certified history: the highest that it signed, may have signed, or saw certified.
pub fn held(cosigner: &CosignerHandle, cluster: Hash) -> CheckpointRef {
    let parts = [cosigner.lock(), cosigner.counted(), cosigner.certified()].into_iter().flatten();
    parts.max_by_key(|c| c.size).unwrap_or_else(|| genesis_checkpoint(cluster))
}

/// Where this node's tree and that of a peer's checkpoint part, if neither extends the other.
pub fn parting(
    own: &TileReader,
    theirs: CheckpointRef,
    fetch: impl Fn(&TilePath) -> Result<Bytes, String>,
) -> Result<Option<TreeSize>, Unusable> {
    if theirs.size <= own.size() && own.root_at(theirs.size)? == theirs.root {
        return Ok(None);
    }
    shared_prefix(own, &Tiles { size: theirs.size, fetch, have: RefCell::default() }, theirs)
}

/// Whether a peer has what this node may not give up, in the tree of that checkpoint: it gives the tiles.
pub fn holds(
    theirs: CheckpointRef,
    held: CheckpointRef,
    fetch: impl Fn(&TilePath) -> Result<Bytes, String>,
) -> Result<bool, Unusable> {
    if theirs.size < held.size {
        return Ok(false);
    }
    let tiles = Tiles { size: theirs.size, fetch, have: RefCell::default() };
    Ok(proven_root(&tiles, held.size, theirs)? == held.root)
}

/// Whether this node's own tree is another than what it holds to is of.
pub fn lacks(own: &TileReader, held: CheckpointRef) -> bool {
    held.size <= own.size() && own.root_at(held.size).is_ok_and(|root| root != held.root)
}

/// Which turn it is; `None` where clocks within bounds may disagree. In each the members stand in another order, and a node may
/// rely on those behind it: two never rely on one another, and everybody comes first once.
pub fn turn(now: Timestamp, skew_ms: u64) -> Option<u64> {
    let lasts = skew_ms.saturating_mul(3).max(1);
    let since = now.0.checked_rem(lasts)?;
    (skew_ms..skew_ms.saturating_mul(2)).contains(&since).then(|| now.0.checked_div(lasts)).flatten()
}

/// Whether one member stands behind another in that turn.
pub fn stands_behind(turn: u64, node: NodeId, other: NodeId, members: &[NodeId]) -> bool {
    let count = members.len() as u64;
    let place = |of| {
        let index = members.iter().position(|n| *n == of)? as u64;
        index.saturating_add(turn.checked_rem(count)?).checked_rem(count)
    };
    place(node) > place(other)
}

/// Root of a smaller tree, proven to be what the certified one began with.
fn proven_root<R: NodeReader<Error = Unusable>>(
    theirs: &R,
    size: TreeSize,
    whole: CheckpointRef,
) -> Result<Hash, Unusable> {
    let root = root_at(theirs, size)?;
    let proof = prove_consistency(theirs, size, whole.size).map_err(|_| Unusable::NotTheTree)?;
    verify_consistency(size, root, whole.size, whole.root, &proof).map_err(|_| Unusable::NotTheTree)?;
    Ok(root)
}

/// Why a peer's history says nothing about this node's.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A tile did not come.
    #[error("tile {0} did not come: {1}")]
    Fetch(TilePath, String),
    /// A tile is none.
    #[error("tile {0} is damaged")]
    Damaged(TilePath),
    /// What the peer gave does not lead to the certified root.
    #[error("the tiles do not lead to the certified root")]
    NotTheTree,
    /// The node's own tiles.
    #[error("this node's own tiles cannot be read")]
    Own(#[from] crate::tilestore::StoreError),
}

/// How many leaves this node's tree shares with a certified one, if one does not extend the other. Every root of `theirs` is
/// proven to be of the certified tree, so whoever gave its nodes need not be believed.
pub fn shared_prefix<R: NodeReader<Error = Unusable>>(
    own: &TileReader,
    theirs: &R,
    certified: CheckpointRef,
) -> Result<Option<TreeSize>, Unusable> {
    let same = |size: TreeSize| -> Result<bool, Unusable> {
        Ok(own.root_at(size)? == proven_root(theirs, size, certified)?)
    };
    let top = own.size().min(certified.size);
    if same(top)? {
        return Ok(None);
    }
    // Genesis is shared, the top is not.
    let (mut shared, mut differs) = (1, top.0);
    if differs <= shared || !same(TreeSize(shared))? {
        return Err(Unusable::NotTheTree);
    }
    while differs - shared > 1 {
        let middle = shared + (differs - shared) / 2;
        if same(TreeSize(middle))? { shared = middle } else { differs = middle }
    }
    Ok(Some(TreeSize(shared)))
}

/// A tree read from someone's tiles.
struct Tiles<F> {
    size: TreeSize,
    fetch: F,
    have: RefCell<BTreeMap<TilePath, Vec<Hash>>>,
}

impl<F: Fn(&TilePath) -> Result<Bytes, String>> Tiles<F> {
    fn path(&self, tile_level: u8, number: u64) -> Result<TilePath, Unusable> {
        let row = self.size.0.checked_shr(u32::from(tile_level) * u32::from(TILE_HEIGHT)).unwrap_or(0);
        let kind = TileKind::Hashes(tile_level);
        let path = if number < row >> TILE_HEIGHT {
            TilePath::full(kind, number)
        } else {
            TilePath::of_width(kind, number, u16::try_from(row & 0xff).unwrap_or_default())
        };
        path.map_err(|_| Unusable::NotTheTree)
    }
}

impl<F: Fn(&TilePath) -> Result<Bytes, String>> NodeReader for Tiles<F> {
    type Error = Unusable;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Unusable> {
        let (tile_level, height) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
        let bits = TILE_HEIGHT - height;
        let path = self.path(tile_level, index >> bits)?;
        let mut have = self.have.borrow_mut();
        let hashes = match have.entry(path) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let bytes = (self.fetch)(&path).map_err(|e| Unusable::Fetch(path, e))?;
                place.insert(decode_tile(&bytes, path.width()).map_err(|_| Unusable::Damaged(path))?)
            }
        };
        let first = usize::try_from(index & ((1 << bits) - 1)).unwrap_or_default() << height;
        let under = hashes.get(first..first + (1 << height)).ok_or(Unusable::NotTheTree)?;
        Ok(tree_root(under))
    }
}

/// The task that notices.
pub struct GiveUp {
    /// View.
    pub ledger: Ledger,
    /// Who is asked.
    pub peers: Peers,
    /// What this node saw certified.
    pub cosigner: CosignerHandle,
    /// When logs conflicted.
    pub guard: TermGuard,
    /// What is applied.
    pub raft: Raft,
    /// The data folder.
    pub root: PathBuf,
    /// Told once, after the decision is durable.
    pub decided: oneshot::Sender<()>,
}

impl GiveUp {
    /// Runs until the node stops, or must start over.
    pub async fn run(self) {
        let mut last = (self.cosigner.certified(), Instant::now());
        let (mut unsigned, mut standstill) = (Unsigned::default(), Standstill::default());
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let own = self.ledger.view().checkpoint.size;
            let (conflicting, stands) = standstill.look(own, &self.guard, Instant::now());
            let certified = self.cosigner.certified();
            let certified_size = certified.map_or(TreeSize::ZERO, |c| c.size);
            // What this node follows now may be another history than the one that it saw certified before.
            let keeps =
                certified.filter(|c| !lacks(&self.ledger.tiles(), *c)).map_or(TreeSize::ZERO, |c| c.size);
            if certified != last.0 || own <= certified_size {
                last = (certified, Instant::now());
            }
            let stalled = last.1.elapsed() >= STALLED;
            if !stalled {
                unsigned = Unsigned::default();
            }
            if !stalled && !stands {
                continue;
            }
            let mut behind = false;
            for node in self.peers.nodes() {
                let marker = match self.ask(node).await {
                    None | Some(Examined::Held) => continue,
                    Some(Examined::Behind) => {
                        behind = true;
                        continue;
                    }
                    Some(Examined::Astray(marker)) => marker,
                };
                if marker.shared < keeps {
                    tracing::error!(
                        node = node.0,
                        certified = marker.certified.size.0,
                        shared = marker.shared.0,
                        "two certified histories: more nodes are hostile than the policy allows for; this node keeps its own"
                    );
                    continue;
                }
                if self.write(&marker) {
                    tracing::error!(
                        certified = marker.certified.size.0,
                        shared = marker.shared.0,
                        own = own.0,
                        "this node's tail is not the certified one: giving it up and starting over"
                    );
                    let _stopping = self.decided.send(());
                    return;
                }
            }
            let locks = self.ask_locks().await;
            let applied = self.raft.metrics().borrow().last_applied.map_or(0, |l| l.index);
            // To ask took a while: what was signed meanwhile stays.
            if let Some(marker) =
                unsigned.round(&locks, Instant::now()).filter(|m| stalled && m.shared >= keeps)
                && self.cosigner.end_above(marker.certified.size, applied)
                && self.write(&marker)
            {
                tracing::error!(
                    shared = marker.shared.0,
                    own = own.0,
                    "this node applied what others did not, and signed none of it: giving it up and starting over"
                );
                let _stopping = self.decided.send(());
                return;
            }
            if stands
                && standstill.go(behind, conflicting, &locks, Instant::now())
                && self.cosigner.end_above(locks.held.size, applied)
                && self.write(&Marker::of_log(own, locks.held))
            {
                tracing::error!(
                    own = own.0,
                    "this node's log conflicts with others', who have what it has: giving it up and starting over"
                );
                let _stopping = self.decided.send(());
                return;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Makes a decision durable; whether it is.
    fn write(&self, marker: &Marker) -> bool {
        let written = write_durably(&Layout::new(&self.root).given_up(), &encode(marker));
        if let Err(error) = &written {
            tracing::error!(%error, "cannot write down what is given up");
        }
        written.is_ok()
    }

    /// In darkness peers tell their locks.
    async fn ask_locks(&self) -> Locks {
        let held = held(&self.cosigner, self.ledger.cluster());
        let (me, policy) = (self.ledger.me(), Arc::clone(&self.ledger.view().policy));
        let nodes: Vec<NodeId> = policy.members.keys().copied().collect();
        let turn = || turn(self.ledger.now(), policy.attestation.clock_skew_ms);
        let began = turn();
        let (mut partings, mut silent, mut holders, mut astray) = (Vec::new(), 0, 0, None);
        for node in self.peers.nodes() {
            let Some(mut client) = self.peers.client(node) else {
                silent += 1;
                continue;
            };
            let call = client.contribute(ContributeRequest {});
            let reply = match tokio::time::timeout(TOLD, call).await {
                Ok(Ok(reply)) => reply,
                // It is not dark there.
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => continue,
                Ok(Err(_)) | Err(_) => {
                    silent += 1;
                    continue;
                }
            };
            let contributed = borsh::from_slice::<Contribution>(&reply.into_inner().contribution);
            let Some(lock) = contributed.ok().filter(|c| c.node == node).map(|c| c.lock) else { continue };
            let (own, peers, runtime) =
                (self.ledger.tiles(), self.peers.clone(), tokio::runtime::Handle::current());
            let looked = tokio::task::spawn_blocking(move || {
                let fetch = |path: &TilePath| runtime.block_on(fetch(&peers, node, path));
                let holds = holds(lock, held, fetch).unwrap_or(false);
                Some((parting(&own, lock, fetch).ok()?, holds, lacks(&own, held)))
            });
            let looked = tokio::time::timeout(TOLD, looked).await;
            let Some((parting, holds, lacks)) = looked.ok().and_then(Result::ok).flatten() else { continue };
            holders += usize::from(holds && began.is_some_and(|turn| stands_behind(turn, node, me, &nodes)));
            astray = astray.or(parting.filter(|_| holds && lacks));
            partings.extend(parting);
        }
        if turn() != began {
            holders = 0;
        }
        let (members, quorum, hostile_max) = (nodes.len(), policy.quorum(), policy.hostile_nodes_max);
        Locks { held, partings, silent, members, quorum, hostile_max, holders, astray }
    }

    async fn ask(&self, node: NodeId) -> Option<Examined> {
        let channel = self.peers.connected(node)?.channel();
        let mut mesh = MeshClient::new(channel).max_decoding_message_size(PROOF_BYTES_MAX + 1024);
        let reply = tokio::time::timeout(ANSWER, mesh.directory(DirectoryRequest {})).await.ok()?.ok()?;
        let (bytes, cluster, own) = (reply.into_inner().proof, self.ledger.cluster(), self.ledger.tiles());
        let (peers, runtime) = (self.peers.clone(), tokio::runtime::Handle::current());
        let examined = tokio::task::spawn_blocking(move || {
            let fetch = |path: &TilePath| runtime.block_on(fetch(&peers, node, path));
            examine(&bytes, cluster, &own, fetch)
        });
        match examined.await.ok()? {
            Ok(examined) => Some(examined),
            Err(why) => {
                tracing::warn!(node = node.0, why, "a peer's proof of what is certified was of no use");
                None
            }
        }
    }
}

async fn fetch(peers: &Peers, node: NodeId, path: &TilePath) -> Result<Bytes, String> {
    let mut client = peers.client(node).ok_or("no connection")?;
    let call = client.tile(TileRequest { path: path.to_string() });
    let reply = tokio::time::timeout(ANSWER, call).await.map_err(|e| e.to_string())?;
    Ok(reply.map_err(|s| s.code().to_string())?.into_inner().data)
}

/// What follows from a peer's directory.
pub fn examine(
    proof: &[u8],
    cluster: Hash,
    own: &TileReader,
    fetch: impl Fn(&TilePath) -> Result<Bytes, String>,
) -> Result<Examined, String> {
    let text = |e: &dyn std::error::Error| crate::report::chain(e);
    let verified = Proof::from_bytes(proof).and_then(|p| p.verify(cluster)).map_err(|e| text(&e))?;
    let certified = verified.certified.reference();
    // Most of the time one root says that there is no conflict.
    if certified.size <= own.size() && own.root_at(certified.size).is_ok_and(|r| r == certified.root) {
        return Ok(Examined::Held);
    }
    let theirs = Tiles { size: certified.size, fetch, have: RefCell::default() };
    let shared = shared_prefix(own, &theirs, certified).map_err(|e| text(&e))?;
    Ok(match shared {
        Some(shared) => Examined::Astray(Marker { version: OF_TAIL, shared, certified }),
        None => Examined::Behind,
    })
}

/// Carries out a decision found at start, before anything is opened. Each step may be repeated after a crash; the marker goes
/// last.
pub async fn finish(
    layout: &Layout,
    cluster: Hash,
    genesis: &State,
    blobs: &BlobStore,
) -> anyhow::Result<bool> {
    let open = || LogStore::open(&layout.raft_log(), CertifiedFloor::new(), LogStoreOptions::default());
    finish_in(layout, cluster, genesis, blobs, open).await
}

/// As [`finish`], with a log of the caller's: for simulations.
pub async fn finish_in(
    layout: &Layout,
    cluster: Hash,
    genesis: &State,
    blobs: &BlobStore,
    open: impl FnOnce() -> Result<LogStore, LogStoreError>,
) -> anyhow::Result<bool> {
    let path = layout.given_up();
    let Some(marker) = Marker::read(&path)? else { return Ok(false) };
    let done = |n: u64| layout.root().join(format!("given-up-{n}"));
    let unused = (0u64..).find(|n| !done(*n).exists()).unwrap_or_default();
    let of_log = marker.version == OF_LOG;
    // As little as may help first.
    let before = unused.checked_sub(1).and_then(|last| Marker::read(&done(last)).ok().flatten());
    let again = before.is_some_and(|b| of_log && (b.version, b.shared) == (OF_LOG, marker.shared));
    let store = SnapshotStore::open(layout.root()).context("cannot open the snapshots")?;
    let newest = store.load().context("cannot read the snapshots")?.newest;
    let (mut state, tail, start, position) = match &newest {
        Some(snapshot) => {
            let opened = snapshots::open(&snapshot.content, cluster).map_err(anyhow::Error::msg)?;
            let last = snapshot.meta.last_log_id;
            (opened.state, opened.tail, last.map_or(0, |l| l.index + 1), last)
        }
        None => (genesis.clone(), StoreTail::default(), 0, None),
    };
    anyhow::ensure!(
        state.checkpoint().size <= marker.shared,
        "a snapshot of this node is beyond what it shares with the certified history: more nodes are hostile than the policy allows for"
    );
    let at_start = state.policy().version;

    let log = open().context("cannot open Raft's log")?;
    let mut kept = kept(&log, &mut state, blobs, start, position, marker.shared).await?;
    if of_log && (again || kept.end.map(|e| e.index) == kept.last) {
        // Index 0 is everybody's: no leader made it.
        kept.end = position.or(Some(LogId::default()));
    }
    if let Some(end) = kept.end {
        log.give_up_above(end.index, end).await.context("cannot cut Raft's log")?;
    }
    drop(log);
    if of_log {
        // It names a place in the log.
        match std::fs::remove_file(layout.root().join("certificate")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context("cannot remove the hint of what is certified");
            }
            Ok(()) | Err(_) => {}
        }
    }

    let moved = set_aside_beyond(&layout.tiles(), &tail).context("cannot set the tiles aside")?;
    // Their documents are blobs: those of the shared history come back as its entries are applied again.
    let aside = path.with_extension("policies");
    for version in at_start.0.saturating_add(1).. {
        let name = crate::directory::policy_file(quorate_core::ids::PolicyVersion(version));
        let policy = layout.policies().join(&name);
        if !policy.exists() {
            break;
        }
        std::fs::create_dir_all(&aside).context("cannot set policies aside")?;
        std::fs::rename(&policy, aside.join(&name)).context("cannot set a policy aside")?;
    }
    supersede(&layout.sign_lock(), marker.certified)?;
    std::fs::rename(&path, done(unused)).context("cannot put the decision away")?;
    tracing::warn!(
        shared = marker.shared.0,
        kept = kept.end.map(|e| e.index),
        tiles = moved,
        of_log,
        "a tail was given up"
    );
    Ok(true)
}

/// What of a log stays.
struct Kept {
    /// The last entry to keep.
    end: Option<LogId>,
    /// The highest index there is, within the shared leaves.
    last: Option<u64>,
}

/// All that lies within the shared leaves, but for what makes none after the last of them: that may be what keeps this node from the
/// others, and whoever leads sends it again.
async fn kept(
    log: &LogStore,
    state: &mut State,
    blobs: &BlobStore,
    start: u64,
    position: Option<LogId>,
    shared: TreeSize,
) -> anyhow::Result<Kept> {
    let mut reader = log.reader();
    let mut next = start;
    let mut kept = Kept { end: position, last: position.map(|p| p.index) };
    loop {
        let entries = reader.try_get_log_entries(next..next.saturating_add(READ_ENTRIES)).await;
        let entries = entries.map_err(|e| anyhow::anyhow!("cannot read Raft's log: {e}"))?;
        if entries.is_empty() {
            return Ok(kept);
        }
        for entry in entries {
            if let EntryPayload::Normal(batch) = &entry.payload {
                if state.apply(batch.bytes(), blobs).checkpoint.size > shared {
                    return Ok(kept);
                }
                kept.end = Some(entry.log_id);
            }
            // Raft's own first entry is everybody's.
            kept.end = kept.end.or(Some(entry.log_id));
            next = entry.log_id.index.saturating_add(1);
            kept.last = Some(entry.log_id.index);
        }
    }
}

/// The lock of the tail stays on record; what binds from here on is the certified checkpoint.
fn supersede(path: &Path, certified: CheckpointRef) -> anyhow::Result<()> {
    let describe = || format!("cannot use the sign lock {}", path.display());
    let bytes = std::fs::read(path).with_context(describe)?;
    let old = if bytes.is_empty() { None } else { Some(Lock::from_bytes(&bytes).with_context(describe)?) };
    let parts = old.into_iter().flat_map(|l| [Some(l.checkpoint), l.superseded]).flatten();
    let superseded = parts.filter(|c| *c != certified).max_by_key(|c| c.size);
    write_durably(path, &encode(&Lock { checkpoint: certified, superseded })).with_context(describe)
}

#[cfg(test)]
mod tests;
