//! Snapshots: the product's own, kept and installed as `snapshots.rs` does, but for its threads and links: proofs are built while
//! the whole world waits, and tiles are read from a peer without a link. Hostile peers give tiles that are not the tree's.
use crate::node::Node;
use crate::note;
use crate::peer::{Message, Reply};
use crate::world::World;
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{InstallSnapshotRequest, InstallSnapshotResponse};
use quorate_core::command::NodeCommand;
use quorate_core::crypto::Hash;
use quorate_core::ids::NodeId;
use quorate_core::state::State;
use quorate_core::tlog::{LeafIndex, TreeSize};
use quorated::directory::{Directory, RequestIndex};
use quorated::ledger::Outgoing;
use quorated::proposer::leads;
use quorated::raft::StoredSnapshot;
use quorated::raft::state_machine::{Captured, Installed, Snapshots};
use quorated::raft::types::{RaftNodeId, Snapshot, SnapshotMeta, TypeConfig};
use quorated::snapshots::{NodeSnapshots, position_bytes, verify};
use quorated::tilestore::{StoreError, install};
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// As often as the state machine allows.
const BATCHES: u64 = 256;
/// Entries that stay behind a snapshot: few, so that whoever was away needs one.
pub const ENTRIES_KEPT: u64 = 24;

/// A node's snapshots.
pub struct SimSnapshots {
    /// The product's.
    pub inner: Arc<NodeSnapshots>,
    /// Which member.
    pub me: NodeId,
    /// The world it is in.
    pub world: Weak<World>,
    /// Its tree.
    pub tiles: PathBuf,
    /// Whose snapshots.
    pub cluster: Hash,
}

impl Snapshots for SimSnapshots {
    fn newest(&self) -> Result<Option<StoredSnapshot>, String> {
        self.inner.newest()
    }

    /// Mirrors `NodeSnapshots::install`.
    async fn install(&self, meta: SnapshotMeta, content: Vec<u8>) -> Result<Installed, String> {
        let (installed, proof) = verify(&content, self.cluster)?;
        'fetched: loop {
            let world = self.world.upgrade().ok_or("the world ended")?;
            for peer in world.members().into_iter().filter(|n| *n != self.me) {
                if !world.net.connected(peer, self.me) {
                    continue;
                }
                let Some(theirs) = world.running(peer) else { continue };
                let lies = world.adversary.hostile.contains(&peer) && world.chance(|rng| rng.permille(500));
                let fetched = install(&self.tiles, &installed.tail, installed.tail.root(), |path| {
                    let mut tile = theirs.ledger.tiles().tile(path)?.to_vec();
                    if lies && let Some(byte) = tile.last_mut() {
                        *byte ^= 1;
                    }
                    Ok(tile)
                });
                match fetched {
                    Ok(_) => break 'fetched,
                    Err(StoreError::Fetch { .. } | StoreError::WrongHash(_) | StoreError::Damaged { .. }) => {
                    }
                    Err(e) => return Err(e.to_string()),
                }
            }
            drop(world);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.inner.take(&meta, &content, installed.tail.size(), proof)?;
        if let Some(world) = self.world.upgrade() {
            note!(world, "{} installed a snapshot of size {}", self.me, installed.tail.size().0);
            world.oracle.installed();
        }
        Ok(installed)
    }

    fn captured(&self, captured: Captured) {
        self.inner.captured(captured);
    }
}

/// Mirrors `node::snapshot_points`.
pub async fn points(node: Arc<Node>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if leads(&node.raft, node.id) && node.ledger.read(State::batches_since_snapshot) >= BATCHES {
            node.ledger.send(Outgoing::Node(NodeCommand::Snapshot));
        }
    }
}

/// Mirrors `snapshots::keep`.
pub async fn keep(node: Arc<Node>, mut captured: mpsc::UnboundedReceiver<Captured>) {
    while let Some(c) = captured.recv().await {
        let size = c.tail.size();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        if node.ledger.certified_at(TreeSize(size.0 + 1), deadline).await.is_err() {
            continue;
        }
        let (ledger, blobs, chain) = (node.ledger.clone(), node.blobs.clone(), node.chain.clone());
        let prove = move || {
            let directory = Directory::new(ledger, blobs, chain, Arc::new(RequestIndex::default()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
            runtime.block_on(directory.prove(vec![LeafIndex(size.0)])).ok()
        };
        let Ok(Some(proof)) = std::thread::spawn(prove).join() else { continue };
        if let Err(error) = node.snapshots.inner.keep(c, &proof) {
            node.world.oracle.fail(format!("{} cannot keep a snapshot: {error}", node.id));
            return;
        }
        note!(node.world, "{} keeps a snapshot of size {}", node.id, size.0);
        drop(node.raft.trigger().snapshot().await);
    }
}

impl Node {
    /// Mirrors `PeerService::install_snapshot`.
    pub(crate) async fn install_snapshot(
        &self,
        from: NodeId,
        rpc: InstallSnapshotRequest<TypeConfig>,
    ) -> Result<
        Result<InstallSnapshotResponse<RaftNodeId>, RaftError<RaftNodeId, InstallSnapshotError>>,
        String,
    > {
        if rpc.vote.leader_id.node_id != from.0 {
            return Err("a Raft message in another node's name".into());
        }
        let now = tokio::time::Instant::now().into_std();
        let mine = self.raft.metrics().borrow().vote;
        self.guard.check_leader(&mine, &rpc.vote, now).map_err(|e| e.to_string())?;
        let (vote, meta) = (rpc.vote, rpc.meta.clone());
        let content = match vote < mine {
            true => None,
            false => self.receiving.take(from, rpc).map_err(|s| s.message().to_owned())?,
        };
        let Some(content) = content else { return Ok(Ok(InstallSnapshotResponse { vote: mine })) };
        if !self.world.mutation.trusts_snapshots() {
            self.check_snapshot(from, &meta, &content).await?;
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(content)) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        Ok(installed.map(|r| InstallSnapshotResponse { vote: r.vote }).map_err(RaftError::Fatal))
    }

    /// Mirrors `PeerService::check_snapshot`.
    async fn check_snapshot(&self, from: NodeId, meta: &SnapshotMeta, content: &[u8]) -> Result<(), String> {
        let size = self.snapshots.inner.check(content)?;
        if size <= self.ledger.view().checkpoint.size {
            return Err("it holds no more than this node's own tree".into());
        }
        let position = position_bytes(meta)?;
        let needed = self.ledger.view().policy.hostile_nodes_max as usize;
        let mut agree = 0;
        for node in self.peers().into_iter().filter(|n| *n != from) {
            let reply = self.ask(node, Message::SnapshotPosition(size), Duration::from_secs(2)).await;
            agree += usize::from(matches!(reply, Some(Reply::Position(Some(theirs))) if theirs == position));
        }
        if agree < needed { Err("too few members know its position in Raft's log".into()) } else { Ok(()) }
    }
}
