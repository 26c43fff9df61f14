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
//! **Entries that make no leaf** (those that Raft's leaders begin with) no tree shows. A lying leader can have this node apply one where
//! all others have a batch: then it refuses their log, and they its own, though their certified tree extends its own. So a node
//! whose tree stands still while a peer proves more, and whose log ends in such entries, lets those go: they say nothing.
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
use crate::raft::types::LogId;
use crate::raft::{CertifiedFloor, LogReader, LogStore, LogStoreError, LogStoreOptions, SnapshotStore};
use crate::snapshots;
use crate::tilestore::{StoreTail, TileReader, set_aside_beyond};
use anyhow::Context as _;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use openraft::{EntryPayload, RaftLogReader as _};
use quorate_core::command::{CheckpointRef, Contribution};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::NodeId;
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
    /// Leaves that both histories share.
    pub shared: TreeSize,
    /// The checkpoint that was proven to be certified; of a tail that was not signed, what this node holds to.
    pub certified: CheckpointRef,
}

impl Marker {
    /// That entries go which make no leaf: all leaves stay, and `held` binds as before.
    pub fn of_leafless(own: TreeSize, held: CheckpointRef) -> Self {
        Self { version: 1, shared: own, certified: held }
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
}

/// Since when they have said that this node's tail may be lost.
#[derive(Debug, Default)]
pub struct Unsigned {
    apart: Option<Instant>,
    lost: Option<Instant>,
}

impl Unsigned {
    /// One round of asking. The tail goes at once where one more member stands elsewhere than can be hostile, so that an honest
    /// one is among them. Where fewer do, it goes after [`LOST`] in which those, and the silent ones, left no quorum for it:
    /// hostile nodes are too few for that while all others answer, and a peer that starts answers soon. And it goes after
    /// [`APART`] in any case: whoever says that nothing stands in the way may be hostile too.
    pub fn round(&mut self, locks: &Locks, now: Instant) -> Option<Marker> {
        let mut above: Vec<TreeSize> =
            locks.partings.iter().copied().filter(|at| *at >= locks.held.size).collect();
        above.sort_unstable_by(|a, b| b.cmp(a));
        let marker = |shared| Marker { version: 1, shared, certified: locks.held };
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

/// Since when this node's tree stands still while its log goes on: by entries that make no leaf, and by none else.
#[derive(Debug, Default)]
pub struct Leafless(Option<(TreeSize, Instant)>);

impl Leafless {
    /// One look at the tree, and at the index of the last entry that is committed here. Whether peers are to be asked what they have
    /// certified.
    pub fn look(&mut self, own: TreeSize, last_batch: u64, committed: u64, now: Instant) -> bool {
        match self.0 {
            _ if committed <= last_batch => self.0 = None,
            Some((size, _)) if size == own => {}
            Some(_) | None => self.0 = Some((own, now)),
        }
        self.lasts(STALLED, now)
    }

    /// Whether those entries go, now that a peer has proven more. They bind nobody, but a node that merely is behind need not start
    /// over either.
    pub fn go(&self, now: Instant) -> bool {
        self.lasts(LOST, now)
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
        let root = root_at(theirs, size)?;
        let proof = prove_consistency(theirs, size, certified.size).map_err(|_| Unusable::NotTheTree)?;
        verify_consistency(size, root, certified.size, certified.root, &proof)
            .map_err(|_| Unusable::NotTheTree)?;
        Ok(own.root_at(size)? == root)
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
    /// What is committed here.
    pub log: LogReader,
    /// The data folder.
    pub root: PathBuf,
    /// Told once, after the decision is durable.
    pub decided: oneshot::Sender<()>,
}

impl GiveUp {
    /// Runs until the node stops, or must start over.
    pub async fn run(self) {
        let mut last = (self.cosigner.certified(), Instant::now());
        let (mut unsigned, mut leafless) = (Unsigned::default(), Leafless::default());
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let view = self.ledger.view();
            let own = view.checkpoint.size;
            let committed = self.log.committed().map_or(0, |l| l.index);
            let stands = leafless.look(own, view.log_index, committed, Instant::now());
            let certified = self.cosigner.certified();
            let certified_size = certified.map_or(TreeSize::ZERO, |c| c.size);
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
                if marker.shared < certified_size {
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
            if behind && leafless.go(Instant::now()) && self.cosigner.end_above(own) {
                let marker = Marker::of_leafless(own, held(&self.cosigner, self.ledger.cluster()));
                if self.write(&marker) {
                    tracing::error!(
                        own = own.0,
                        "others certified more, and this node's log goes on with entries that make no leaf: giving those up and starting over"
                    );
                    let _stopping = self.decided.send(());
                    return;
                }
            }
            let locks = if stalled { self.ask_locks().await } else { None };
            // To ask took a while: what was signed meanwhile stays.
            if let Some(marker) = locks.and_then(|locks| unsigned.round(&locks, Instant::now()))
                && self.cosigner.end_above(marker.certified.size)
                && self.write(&marker)
            {
                tracing::error!(
                    shared = marker.shared.0,
                    own = self.ledger.view().checkpoint.size.0,
                    "this node applied what others did not, and signed none of it: giving it up and starting over"
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
    async fn ask_locks(&self) -> Option<Locks> {
        let held = held(&self.cosigner, self.ledger.cluster());
        if self.ledger.view().checkpoint.size <= held.size {
            return None;
        }
        let (mut partings, mut silent) = (Vec::new(), 0);
        for node in self.peers.nodes() {
            let Some(mut client) = self.peers.client(node) else {
                silent += 1;
                continue;
            };
            let call = client.contribute(ContributeRequest {});
            let reply = match tokio::time::timeout(ANSWER, call).await {
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
                parting(&own, lock, |path| runtime.block_on(fetch(&peers, node, path)))
            });
            partings.extend(looked.await.ok().and_then(Result::ok).flatten());
        }
        let policy = &self.ledger.view().policy;
        let (members, quorum, hostile_max) =
            (policy.members.len(), policy.quorum(), policy.hostile_nodes_max);
        Some(Locks { held, partings, silent, members, quorum, hostile_max })
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
        Some(shared) => Examined::Astray(Marker { version: 1, shared, certified }),
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
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).context("cannot read which tail is given up"),
    };
    let marker: Marker = borsh::from_slice(&bytes)
        .ok()
        .filter(|m: &Marker| m.version == 1)
        .with_context(|| format!("{} is damaged", path.display()))?;
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
    let (keep, committed) = kept(&log, &mut state, blobs, start, position, marker.shared).await?;
    if let (Some(keep), Some(committed)) = (keep, committed) {
        log.give_up_above(keep, committed).await.context("cannot cut Raft's log")?;
    }
    drop(log);

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
    let unused = (0u64..).map(|n| layout.root().join(format!("given-up-{n}"))).find(|to| !to.exists());
    std::fs::rename(&path, unused.unwrap_or_else(|| path.with_extension("done")))
        .context("cannot put the decision away")?;
    tracing::warn!(
        shared = marker.shared.0,
        kept = keep,
        tiles = moved,
        "a tail was given up for the certified one"
    );
    Ok(true)
}

/// The highest index to keep, and the last entry among those that may be applied: all that lies within the shared leaves, but for the
/// blank entries after the last of them. Those may be what keeps this node from the others.
async fn kept(
    log: &LogStore,
    state: &mut State,
    blobs: &BlobStore,
    start: u64,
    position: Option<LogId>,
    shared: TreeSize,
) -> anyhow::Result<(Option<u64>, Option<LogId>)> {
    let mut reader = log.reader();
    let (mut next, mut keep, mut committed) = (start, position.map(|p| p.index), position);
    loop {
        let entries = reader.try_get_log_entries(next..next.saturating_add(READ_ENTRIES)).await;
        let entries = entries.map_err(|e| anyhow::anyhow!("cannot read Raft's log: {e}"))?;
        if entries.is_empty() {
            return Ok((keep, committed));
        }
        for entry in entries {
            if let EntryPayload::Normal(batch) = &entry.payload {
                if state.apply(batch.bytes(), blobs).checkpoint.size > shared {
                    return Ok((keep, committed));
                }
                committed = Some(entry.log_id);
            }
            // Raft's own first entry is everybody's.
            committed = committed.or(Some(entry.log_id));
            next = entry.log_id.index.saturating_add(1);
            if !matches!(entry.payload, EntryPayload::Blank) {
                keep = Some(entry.log_id.index);
            }
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
