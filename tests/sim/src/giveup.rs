//! Giving up a tail for a certified one: `giveup.rs` of the product, all but the links: tiles are read from the peer without one.
use crate::disk::Crash;
use crate::node::{Node, SEGMENT_BYTES};
use crate::note;
use crate::peer::{Message, Reply};
use crate::world::World;
use bytes::Bytes;
use quorate_core::crypto::encode;
use quorate_core::ids::NodeId;
use quorate_core::state::genesis_checkpoint;
use quorate_core::tlog::TreeSize;
use quorated::blobs::BlobStore;
use quorated::directory::{Directory, RequestIndex};
use quorated::giveup::{self, Examined, Locks, Marker, Standstill, Unsigned, examine};
use quorated::init::Layout;
use quorated::raft::{CertifiedFloor, LogStore, LogStoreOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const STALLED: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);
/// As in the product.
const TOLD: Duration = Duration::from_secs(1);

impl Node {
    /// A proof from genesis of what this node holds to be certified. The product builds it on threads: the whole world waits for
    /// them here.
    pub fn prove(&self) -> Result<Bytes, String> {
        let (ledger, blobs, chain) = (self.ledger.clone(), self.blobs.clone(), self.chain.clone());
        let prove = move || {
            let directory = Directory::new(ledger, blobs, chain, Arc::new(RequestIndex::default()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.map_err(|e| e.to_string())?.block_on(directory.directory()).map_err(|e| e.to_string())
        };
        std::thread::spawn(prove).join().map_err(|_| "panicked".to_owned())?
    }
}

/// Mirrors `GiveUp::run`.
pub async fn watch(node: Arc<Node>) {
    let mut last = (node.cosigner.certified(), Instant::now());
    let (mut unsigned, mut standstill) = (Unsigned::default(), Standstill::default());
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let own = node.ledger.view().checkpoint.size;
        let (conflicting, stands) = standstill.look(own, &node.guard, Instant::now());
        let certified = node.cosigner.certified();
        let certified_size = certified.map_or(TreeSize::ZERO, |c| c.size);
        let keeps =
            certified.filter(|c| !giveup::lacks(&node.ledger.tiles(), *c)).map_or(TreeSize::ZERO, |c| c.size);
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
        for peer in node.peers() {
            let Some(Reply::Proof(proof)) = node.ask(peer, Message::Proof, ANSWER).await else { continue };
            let Some(theirs) = node.world.running(peer) else { continue };
            let fetch = |path: &_| theirs.ledger.tiles().tile(path).map_err(|e| e.to_string());
            let marker = match examine(&proof, node.ledger.cluster(), &node.ledger.tiles(), fetch) {
                Ok(Examined::Astray(marker)) => marker,
                Ok(Examined::Held) => continue,
                Ok(Examined::Behind) => {
                    behind = true;
                    continue;
                }
                Err(why) => {
                    note!(node.world, "{}: a proof of {peer} is of no use: {why}", node.id);
                    continue;
                }
            };
            if marker.shared < keeps {
                node.world
                    .oracle
                    .fail(format!("one history: {} is shown another certified history", node.id));
                continue;
            }
            node.world.oracle.gives_up_for_certified(&node, marker.shared);
            return start_over(&node, &marker);
        }
        let locks = ask_locks(&node).await;
        let applied = applied(&node);
        if stalled
            && !node.world.mutation.keeps_unsigned()
            && let Some(marker) = unsigned.round(&locks, Instant::now()).filter(|m| m.shared >= keeps)
            && (node.world.mutation.forgets_signed()
                || node.cosigner.end_above(marker.certified.size, applied))
        {
            node.world.oracle.gives_up_unsigned(&node, marker.shared);
            return start_over(&node, &marker);
        }
        if stands
            && standstill.go(behind, conflicting, &locks, Instant::now())
            && !node.world.mutation.keeps_log()
            && node.cosigner.end_above(locks.held.size, applied)
        {
            return start_over(&node, &Marker::of_log(own, locks.held));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Up to where Raft applied its log.
pub fn applied(node: &Node) -> u64 {
    node.raft.metrics().borrow().last_applied.map_or(0, |l| l.index)
}

/// Mirrors `GiveUp::ask_locks`.
async fn ask_locks(node: &Arc<Node>) -> Locks {
    let held = match node.world.mutation.forgets_signed() {
        true => node.cosigner.lock().unwrap_or_else(|| genesis_checkpoint(node.ledger.cluster())),
        false => giveup::held(&node.cosigner, node.ledger.cluster()),
    };
    let policy = Arc::clone(&node.ledger.view().policy);
    let nodes: Vec<NodeId> = policy.members.keys().copied().collect();
    let turn = || giveup::turn(node.ledger.now(), policy.attestation.clock_skew_ms);
    let began = turn();
    let (mut partings, mut silent, mut holders, mut astray) = (Vec::new(), 0, 0, None);
    for peer in node.peers() {
        let c = match node.ask(peer, Message::Contribute, TOLD).await {
            Some(Reply::Contribution(c)) => c,
            Some(_) => continue,
            None => {
                silent += 1;
                continue;
            }
        };
        let Some(theirs) = node.world.running(peer).filter(|_| c.node == peer) else { continue };
        let fetch = |path: &_| theirs.ledger.tiles().tile(path).map_err(|e| e.to_string());
        let own = node.ledger.tiles();
        let Ok(parting) = giveup::parting(&own, c.lock, fetch) else { continue };
        let holds = giveup::holds(c.lock, held, fetch).unwrap_or(false);
        let behind = |turn| giveup::stands_behind(turn, peer, node.id, &nodes);
        holders += usize::from(holds && began.is_some_and(behind));
        astray = astray.or(parting.filter(|_| holds && giveup::lacks(&own, held)));
        partings.extend(parting);
    }
    if turn() != began {
        holders = 0;
    }
    let (members, quorum, hostile_max) = (nodes.len(), policy.quorum(), policy.hostile_nodes_max);
    Locks { held, partings, silent, members, quorum, hostile_max, holders, astray }
}

/// The process ends, and starts over.
fn start_over(node: &Arc<Node>, marker: &Marker) {
    let (shared, certified) = (marker.shared.0, marker.certified.size.0);
    note!(node.world, "{} gives up its tail above {shared} for {certified}", node.id);
    let (world, id) = (Arc::clone(&node.world), node.id);
    if let Err(error) = std::fs::write(Layout::new(&world.dir(id)).given_up(), encode(marker)) {
        return world.oracle.fail(format!("the simulation itself: {error}"));
    }
    tokio::spawn(async move {
        world.crash(id, Crash::Process).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.start(id).await;
    });
}

/// What a start does first: the product's own, on the simulated disk.
pub async fn finish(world: &Arc<World>, id: NodeId) -> anyhow::Result<()> {
    let (machine, layout) = (world.machine(id), Layout::new(&world.dir(id)));
    let Ok(bytes) = std::fs::read(layout.given_up()) else { return Ok(()) };
    let Marker { shared, .. } = borsh::from_slice(&bytes)?;
    let (state, _) = world.fleet().genesis();
    let blobs = BlobStore::open(layout.root())?;
    let mut writing = None;
    let open = || {
        let options = LogStoreOptions { segment_bytes: SEGMENT_BYTES, ..LogStoreOptions::default() };
        let folder = machine.disk.folder();
        let (log, task) =
            LogStore::open_in(folder, CertifiedFloor::new(), options, || std::future::ready(()))?;
        writing = Some(tokio::spawn(task));
        Ok(log)
    };
    giveup::finish_in(&layout, state.cluster(), &state, &blobs, open).await?;
    if let Some(writing) = writing {
        writing.await?;
    }
    world.flush(id);
    world.oracle.gave_up(id, shared);
    Ok(())
}
