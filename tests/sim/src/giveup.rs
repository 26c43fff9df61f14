//! Giving up a tail for a certified one: `giveup.rs` of the product, whose proof, search for what is shared, and log are the real
//! ones; tiles are read from the peer without a link.
use crate::disk::Crash;
use crate::node::{Node, SEGMENT_BYTES, lock_of};
use crate::note;
use crate::peer::{Message, Reply};
use crate::world::World;
use bytes::Bytes;
use openraft::{EntryPayload, RaftLogReader as _};
use quorate_core::crypto::encode;
use quorate_core::ids::NodeId;
use quorate_core::tlog::TreeSize;
use quorated::blobs::BlobStore;
use quorated::cosigner::Lock;
use quorated::directory::{Directory, PolicyChain, RequestIndex};
use quorated::giveup::{Marker, examine};
use quorated::raft::{CertifiedFloor, LogStore, LogStoreOptions};
use quorated::tilestore::{StoreTail, set_aside_beyond};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const STALLED: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);

impl Node {
    /// A proof from genesis of what this node holds to be certified. The product builds it on threads: the whole world waits for
    /// them here.
    pub fn prove(&self) -> Result<Bytes, String> {
        let folder = self.world.dir(self.id).join("policies");
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let genesis = self.world.fleet().chain[0].clone();
        let (ledger, blobs) = (self.ledger.clone(), self.blobs.clone());
        let prove = move || {
            let chain = PolicyChain::open(&folder, genesis).map_err(|e| e.to_string())?;
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
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let certified = node.cosigner.certified();
        let certified_size = certified.map_or(TreeSize::ZERO, |c| c.size);
        if certified != last.0 || node.ledger.view().checkpoint.size <= certified_size {
            last = (certified, Instant::now());
        }
        if last.1.elapsed() < STALLED {
            continue;
        }
        for peer in node.peers() {
            let Some(Reply::Proof(proof)) = node.ask(peer, Message::Proof, ANSWER).await else { continue };
            let Some(theirs) = node.world.running(peer) else { continue };
            let fetch = |path: &_| theirs.ledger.tiles().tile(path).map_err(|e| e.to_string());
            let marker = match examine(&proof, node.ledger.cluster(), &node.ledger.tiles(), fetch) {
                Ok(Some(marker)) => marker,
                Ok(None) => continue,
                Err(why) => {
                    note!(node.world, "{}: a proof of {peer} is of no use: {why}", node.id);
                    continue;
                }
            };
            if marker.shared < certified_size {
                node.world
                    .oracle
                    .fail(format!("one history: {} is shown another certified history", node.id));
                continue;
            }
            note!(
                node.world,
                "{} gives up its tail above {} for {}",
                node.id,
                marker.shared.0,
                marker.certified.size.0
            );
            let machine = node.world.machine(node.id);
            *machine.giving_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(marker);
            let (world, id) = (Arc::clone(&node.world), node.id);
            // The process ends, and starts over.
            tokio::spawn(async move {
                world.crash(id, Crash::Process).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                world.start(id).await;
            });
            return;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Mirrors `giveup::finish`.
pub async fn finish(world: &Arc<World>, id: NodeId) -> anyhow::Result<()> {
    let machine = world.machine(id);
    let marker = machine.giving_up.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Marker { shared, certified, .. }) = marker else { return Ok(()) };
    let dir = world.dir(id);
    let (mut state, _) = world.fleet().genesis();
    let blobs = BlobStore::open(&dir)?;
    let options = LogStoreOptions { segment_bytes: SEGMENT_BYTES, ..LogStoreOptions::default() };
    let (log, writing) =
        LogStore::open_in(machine.disk.folder(), CertifiedFloor::new(), options, || std::future::ready(()))?;
    let writing = tokio::spawn(writing);
    let mut reader = log.reader();
    let entries = reader.try_get_log_entries(0..u64::MAX).await?;
    let (mut keep, mut committed) = (None, None);
    for entry in entries {
        if let EntryPayload::Normal(batch) = &entry.payload {
            if state.apply(batch.bytes(), &blobs).checkpoint.size > shared {
                break;
            }
            committed = Some(entry.log_id);
        }
        committed = committed.or(Some(entry.log_id));
        keep = Some(entry.log_id.index);
    }
    if let (Some(keep), Some(committed)) = (keep, committed) {
        log.give_up_above(keep, committed).await?;
    }
    drop(log);
    writing.await?;
    set_aside_beyond(&dir.join("tiles"), &StoreTail::default())?;
    let path = dir.join("sign.lock");
    let old = std::fs::read(&path)?;
    let parts = lock_of(&old).into_iter().flat_map(|l| [Some(l.checkpoint), l.superseded]).flatten();
    let superseded = parts.filter(|c| *c != certified).max_by_key(|c| c.size);
    std::fs::write(&path, encode(&Lock { checkpoint: certified, superseded }))?;
    world.flush(id);
    world.oracle.gave_up(id, shared);
    Ok(())
}
