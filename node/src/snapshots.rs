//! Snapshots that cannot be poisoned: one is kept, and sent to others, only with a proof that its state's digest stands in a
//! certified leaf; one is installed only after that proof was verified from genesis.
//!
//! ```text
//! entry with a snapshot point ─► state captured ─► next entry's first leaf: StateDigest ─► certified ─► tiles fsynced, kept
//! ```
use crate::blobs::BlobStore;
use crate::directory::{Directory, PolicyChain};
use crate::peers::Peers;
use crate::raft::state_machine::{Captured, Installed, Snapshots};
use crate::raft::types::{Raft, SnapshotMeta, TypeConfig};
use crate::raft::{SnapshotStore, StoredSnapshot};
use crate::tilestore::{StoreError, StoreTail, install};
use borsh::{BorshDeserialize, BorshSerialize};
use openraft::raft::InstallSnapshotRequest;
use quorate_core::crypto::encode;
use quorate_core::ids::NodeId;
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::proof::Proof;
use quorate_core::state::State;
use quorate_core::tlog::{Hash, LeafIndex, TreeSize, sha256};
use quorate_proto::v1::TileRequest;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// Largest snapshot: every request and pool that the bounds of the state machine allow has room in it.
const SNAPSHOT_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Positions of snapshots told to others; the store keeps two.
const POSITIONS_KEPT: usize = 4;
/// Between two tries to fetch what a snapshot stands on.
const FETCH_AGAIN: Duration = Duration::from_millis(500);

/// What a snapshot file holds.
#[derive(BorshSerialize, BorshDeserialize)]
struct Content {
    version: u8,
    state: Vec<u8>,
    tail: Vec<u8>,
    /// That the leaf after the tail is the state's digest, certified. Empty only in this node's own first files.
    proof: Vec<u8>,
}

/// The snapshot side of a node.
pub struct NodeSnapshots {
    store: Mutex<SnapshotStore>,
    tiles_dir: PathBuf,
    cluster: Hash,
    captured: mpsc::UnboundedSender<Captured>,
    peers: OnceLock<Peers>,
    chain: PolicyChain,
    blobs: BlobStore,
    /// Where in Raft's log the last snapshots stand, by tree size.
    positions: Mutex<BTreeMap<TreeSize, Vec<u8>>>,
}

/// A snapshot's position in Raft's log as members compare it.
pub fn position_bytes(meta: &SnapshotMeta) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(&(&meta.last_log_id, &meta.last_membership)).map_err(|e| e.to_string())
}

/// Snapshots that leaders are sending, in pieces. openraft's own receiver would follow any offset.
#[derive(Debug, Default)]
pub struct Receiving {
    /// One for each peer.
    parts: Mutex<HashMap<NodeId, (String, Vec<u8>)>>,
}

impl Receiving {
    /// Takes one piece; the whole content with the last one.
    pub fn take(
        &self,
        from: NodeId,
        rpc: InstallSnapshotRequest<TypeConfig>,
    ) -> Result<Option<Vec<u8>>, Status> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, content) = parts.entry(from).or_default();
        if *id != rpc.meta.snapshot_id || rpc.offset == 0 {
            *id = rpc.meta.snapshot_id;
            content.clear();
        }
        // A piece whose answer was lost comes again.
        let offset = usize::try_from(rpc.offset).ok().filter(|o| *o <= content.len());
        let offset = offset.ok_or_else(|| Status::failed_precondition("a piece is missing"))?;
        if offset.saturating_add(rpc.data.len()) > SNAPSHOT_BYTES_MAX {
            parts.remove(&from);
            return Err(Status::resource_exhausted("the snapshot is too large"));
        }
        content.truncate(offset);
        content.extend_from_slice(&rpc.data);
        Ok(rpc.done.then(|| parts.remove(&from).map(|(_, content)| content)).flatten())
    }
}

/// Reads a stored snapshot: its state and tail.
pub fn open(content: &[u8], cluster: Hash) -> Result<Installed, String> {
    let content: Content =
        borsh::from_slice(content).map_err(|e| format!("the snapshot does not decode: {e}"))?;
    if content.version != 1 {
        return Err(format!("snapshot version {} is not known", content.version));
    }
    let state = State::from_bytes(&content.state, cluster).map_err(|e| crate::report::chain(&e))?;
    let tail: StoreTail =
        borsh::from_slice(&content.tail).map_err(|e| format!("the tail does not decode: {e}"))?;
    if (tail.size(), tail.root()) != (state.checkpoint().size, state.checkpoint().root) {
        return Err("state and tail are of different trees".into());
    }
    Ok(Installed { state, tail })
}

/// Verifies that a snapshot's digest stands in a certified leaf right after its tree.
pub fn verify(content: &[u8], cluster: Hash) -> Result<(Installed, Proof), String> {
    let installed = open(content, cluster)?;
    let parsed: Content = borsh::from_slice(content).map_err(|e| e.to_string())?;
    let proof = Proof::from_bytes(&parsed.proof).map_err(|e| crate::report::chain(&e))?;
    let verified = proof.verify(cluster).map_err(|e| crate::report::chain(&e))?;
    let size = installed.state.checkpoint().size;
    let expected = LeafBody::StateDigest { size, digest: sha256(&parsed.state) };
    let stands = verified.leaves.iter().any(|l| {
        let Leaf::V1 { body, .. } = l.leaf();
        l.index() == LeafIndex(size.0) && *body == expected
    });
    if stands { Ok((installed, proof)) } else { Err("the snapshot's digest is in no certified leaf".into()) }
}

impl NodeSnapshots {
    /// Builds it; `captured` is read by [`keep`].
    pub fn new(
        store: SnapshotStore,
        tiles_dir: PathBuf,
        cluster: Hash,
        captured: mpsc::UnboundedSender<Captured>,
        chain: PolicyChain,
        blobs: BlobStore,
    ) -> Self {
        let (store, peers, positions) = (Mutex::new(store), OnceLock::new(), Mutex::default());
        Self { store, tiles_dir, cluster, captured, peers, chain, blobs, positions }
    }
    /// Verifies a snapshot; the size of its tree.
    pub fn check(&self, content: &[u8]) -> Result<TreeSize, String> {
        Ok(verify(content, self.cluster)?.0.tail.size())
    }
    /// Where the snapshot of that size stands in Raft's log, if it is kept here.
    pub fn position(&self, size: TreeSize) -> Option<Vec<u8>> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).get(&size).cloned()
    }
    /// Tells others where a snapshot stands that was kept before this start.
    pub fn remember(&self, meta: &SnapshotMeta, size: TreeSize) {
        let Ok(position) = position_bytes(meta) else { return };
        let mut positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        positions.insert(size, position);
        while positions.len() > POSITIONS_KEPT {
            positions.pop_first();
        }
    }
    /// Where missing tiles come from.
    pub fn set_peers(&self, peers: Peers) {
        let _twice = self.peers.set(peers);
    }
    /// What a verified snapshot stands on is here. It counts once it is saved; what is owed for it is noted before.
    pub fn take(
        &self,
        meta: &SnapshotMeta,
        content: &[u8],
        size: TreeSize,
        proof: Proof,
    ) -> Result<(), String> {
        // The leaves that would have brought these are not applied here; others that they name are fetched in time.
        self.blobs.owe(size).map_err(|e| crate::report::chain(&e))?;
        for blob in &proof.blobs {
            self.blobs.put(blob).map_err(|e| crate::report::chain(&e))?;
        }
        for policy in proof.chain {
            self.chain.push(policy).map_err(|e| crate::report::chain(&e))?;
        }
        self.save(meta, content)?;
        self.remember(meta, size);
        Ok(())
    }
    /// Keeps what was captured, with the proof that its digest is certified.
    pub fn keep(&self, c: Captured, proof: &Proof) -> Result<(), String> {
        let size = c.tail.size();
        let id = format!("{}-{}", c.log_id.index, size.0);
        let meta =
            SnapshotMeta { last_log_id: Some(c.log_id), last_membership: c.membership, snapshot_id: id };
        let content =
            encode(&Content { version: 1, state: c.state, tail: encode(&c.tail), proof: encode(proof) });
        self.save(&meta, &content)?;
        self.remember(&meta, size);
        Ok(())
    }
    fn save(&self, meta: &SnapshotMeta, content: &[u8]) -> Result<(), String> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.save(meta, content).map(drop).map_err(|e| crate::report::chain(&e))
    }
}

impl Snapshots for NodeSnapshots {
    fn newest(&self) -> Result<Option<StoredSnapshot>, String> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.load().map(|l| l.newest).map_err(|e| crate::report::chain(&e))
    }

    async fn install(&self, meta: SnapshotMeta, content: Vec<u8>) -> Result<Installed, String> {
        let (installed, proof) = verify(&content, self.cluster)?;
        let peers = self.peers.get().cloned().ok_or("no peers yet")?;
        for first in 0usize.. {
            let (dir, tail, root) = (self.tiles_dir.clone(), installed.tail.clone(), installed.tail.root());
            let (runtime, peers) = (tokio::runtime::Handle::current(), peers.clone());
            let fetched = tokio::task::spawn_blocking(move || {
                install(&dir, &tail, root, |path| {
                    Ok(runtime.block_on(fetch(&peers, first, path.to_string()))?)
                })
            });
            match fetched.await.map_err(|e| e.to_string())? {
                Ok(_) => break,
                // A peer that lies, or none that answers: what is there already stays, another peer is asked first. To give
                // up would stop Raft on this node for good.
                Err(
                    e @ (StoreError::Fetch { .. } | StoreError::WrongHash(_) | StoreError::Damaged { .. }),
                ) => {
                    tracing::warn!(error = crate::report::chain(&e), "a snapshot's tiles are not here yet");
                    tokio::time::sleep(FETCH_AGAIN).await;
                }
                Err(e) => return Err(crate::report::chain(&e)),
            }
        }
        self.take(&meta, &content, installed.tail.size(), proof)?;
        tracing::info!(size = installed.tail.size().0, "a certified snapshot was installed");
        Ok(installed)
    }

    fn captured(&self, captured: Captured) {
        let _stopping = self.captured.send(captured);
    }
}

async fn fetch(peers: &Peers, first: usize, path: String) -> std::io::Result<Vec<u8>> {
    let mut nodes = peers.nodes();
    let first = first.checked_rem(nodes.len()).unwrap_or_default();
    nodes.rotate_left(first);
    for node in nodes {
        let Some(mut client) = peers.client(node) else { continue };
        let call = client.tile(TileRequest { path: path.clone() });
        if let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_secs(10), call).await {
            return Ok(reply.into_inner().data.to_vec());
        }
    }
    Err(std::io::Error::other(format!("no peer gives tile {path}")))
}

/// Keeps captured snapshots once their digest is certified, then lets Raft purge what they cover.
pub async fn keep(
    snapshots: Arc<NodeSnapshots>,
    mut captured: mpsc::UnboundedReceiver<Captured>,
    directory: Directory,
    ledger: crate::ledger::Ledger,
    raft: Raft,
) {
    while let Some(c) = captured.recv().await {
        let size = c.tail.size();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        if ledger.certified_at(TreeSize(size.0 + 1), deadline).await.is_err() {
            tracing::warn!(size = size.0, "a snapshot point was not certified in time: passed over");
            continue;
        }
        let proof = match directory.prove(vec![LeafIndex(size.0)]).await {
            Ok(proof) => proof,
            Err(error) => {
                tracing::warn!(error = crate::report::chain(&error), "no proof for a snapshot: passed over");
                continue;
            }
        };
        let (keeper, index) = (Arc::clone(&snapshots), c.log_id.index);
        let saved = tokio::task::spawn_blocking(move || keeper.keep(c, &proof));
        match saved.await.map_err(|e| e.to_string()).and_then(|r| r) {
            Ok(()) => {
                tracing::info!(size = size.0, index, "snapshot kept");
                if let Err(error) = raft.trigger().snapshot().await {
                    tracing::debug!(%error, "cannot tell Raft of the snapshot");
                }
            }
            Err(error) => tracing::error!(error, "cannot keep a snapshot"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tilestore::TileStore;
    use quorate_core::command::NodeCommand;
    use quorate_core::leaf::Outcome;
    use quorate_core::state::Blobs as _;
    use quorate_core::testing::Mesh;

    /// A snapshot whose digest is certified, of a history in which logs and a policy are named.
    fn made() -> (Mesh, TreeSize, Vec<u8>, tempfile::TempDir) {
        let (mut mesh, folder) = (Mesh::four(), tempfile::tempdir().unwrap());
        // One comes only so often.
        for _ in 0..260 {
            mesh.apply(vec![]);
        }
        let ask = mesh.fleet.node_command(NodeId(1), NodeCommand::Snapshot);
        assert_eq!(mesh.decide(ask), Outcome::SnapshotPoint);
        let (state, size) = (mesh.state().to_bytes(), mesh.state().checkpoint().size);
        mesh.apply(vec![]);
        let mut tiles = TileStore::create(&folder.path().join("tlog")).unwrap();
        tiles.append(&mesh.log.leaves[..size.0 as usize]).unwrap();
        let proof = encode(&mesh.proof(&[LeafIndex(size.0)]));
        let content = Content { version: 1, state, tail: encode(&tiles.tail()), proof };
        (mesh, size, encode(&content), folder)
    }

    fn snapshots(mesh: &Mesh, folder: &std::path::Path) -> (NodeSnapshots, BlobStore) {
        let blobs = BlobStore::open(folder).unwrap();
        let chain = PolicyChain::open(&folder.join("policies"), mesh.fleet.chain[0].clone()).unwrap();
        let store = SnapshotStore::open(folder).unwrap();
        let (captured, _) = mpsc::unbounded_channel();
        let tiles = folder.join("tlog");
        (NodeSnapshots::new(store, tiles, mesh.fleet.cluster(), captured, chain, blobs.clone()), blobs)
    }

    fn meta() -> SnapshotMeta {
        SnapshotMeta { last_log_id: None, last_membership: Default::default(), snapshot_id: "1".into() }
    }

    #[test]
    fn what_is_owed_for_a_snapshot_is_noted_before_it_counts() {
        let (mesh, size, content, folder) = made();
        let (snapshots, blobs) = snapshots(&mesh, folder.path());
        let (installed, proof) = verify(&content, mesh.fleet.cluster()).unwrap();
        assert_eq!((installed.tail.size(), blobs.owed()), (size, None));
        let named = quorate_core::crypto::sha256(&proof.blobs[0]);
        // It cannot be saved: the note is there all the same, and a later start pays what may be missing.
        let files = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path());
        let place = files.into_iter().find(|p| p.ends_with("snapshots")).expect("the store's folder");
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::write(&place, b"no folder").unwrap();
        assert!(snapshots.take(&meta(), &content, size, proof.clone()).is_err());
        assert_eq!((blobs.owed(), snapshots.position(size)), (Some(size), None));
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        snapshots.take(&meta(), &content, size, proof).unwrap();
        assert!(snapshots.newest().unwrap().is_some() && snapshots.position(size).is_some());
        assert!(blobs.blob(&named).is_some());
        assert_eq!(BlobStore::open(folder.path()).unwrap().owed(), Some(size));
    }

    #[test]
    fn a_snapshot_that_no_leaf_certifies_is_refused() {
        let (mesh, size, content, _folder) = made();
        assert!(verify(&content, mesh.fleet.cluster()).is_ok());
        let parsed = || borsh::from_slice::<Content>(&content).unwrap();
        // The certified leaf is another one than the state's digest.
        let other = Content { proof: encode(&mesh.proof(&[LeafIndex(size.0 - 1)])), ..parsed() };
        let refused = verify(&encode(&other), mesh.fleet.cluster()).err().unwrap();
        assert!(refused.contains("in no certified leaf"), "{refused}");
        let version = Content { version: 2, ..parsed() };
        assert!(verify(&encode(&version), mesh.fleet.cluster()).is_err());
        assert!(verify(&content, Hash([7; 32])).is_err());
    }
}
