//! One node: the product's ledger, cosigner, proposer, Raft, log store and guards, put together as `quorated` puts them together,
//! with simulated links, disk, clock and TPM below them.
use crate::attest::{self, Contributor};
use crate::disk::Crash;
use crate::giveup;
use crate::keyer::Registry;
use crate::network::call;
use crate::note;
use crate::peer::{Message, Reply};
use crate::snapshots::{ENTRIES_KEPT, SimSnapshots, keep, points};
use crate::world::{Machine, World};
use bytes::Bytes;
use openraft::EmptyNode;
use quorate_core::command::Command;
use quorate_core::crypto::public_key;
use quorate_core::ids::NodeId;
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::state::{Blobs as _, State};
use quorate_core::testing::key;
use quorate_core::tlog::TreeSize;
use quorate_proto::v1::ProposeRequest;
use quorate_transport::Identity;
use quorated::blobs::BlobStore;
use quorated::boot::Boot;
use quorated::cosigner::{Cosigner, CosignerHandle, CosignerParts, Signed};
use quorated::directory::PolicyChain;
use quorated::ledger::{Ledger, Start};
use quorated::membership;
use quorated::metrics::Metrics;
use quorated::proposer::{self, Courier, Queue, WayToLeader};
use quorated::raft::guard::TermGuard;
use quorated::raft::network::{Call, CallError, Network, Transport};
use quorated::raft::patience;
use quorated::raft::state_machine::{StateMachine, position};
use quorated::raft::types::Raft;
use quorated::raft::{CertifiedFloor, LogMonitor, LogReader, LogStore, LogStoreOptions, SnapshotStore};
use quorated::snapshots::{self, NodeSnapshots, Receiving};
use quorated::tilestore::{StoreTail, TileStore, set_aside_beyond};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Short segments, so that a run crosses from one to the next.
pub const SEGMENT_BYTES: u64 = 64 * 1024;
/// Commands of a node waiting for its courier.
const OUTGOING_MAX: usize = 1024;

/// A running node.
pub struct Node {
    /// Which member.
    pub id: NodeId,
    /// The world it is in.
    pub world: Arc<World>,
    /// Its keys of this start.
    pub boot: Boot,
    /// Its view.
    pub ledger: Ledger,
    /// Its Raft.
    pub raft: Raft,
    /// Its cosigner.
    pub cosigner: CosignerHandle,
    /// What it leads.
    pub queue: Queue,
    /// Its log.
    pub log: LogReader,
    /// Whether its disk failed.
    pub monitor: LogMonitor,
    /// What peers told Raft.
    pub guard: TermGuard,
    /// Blobs.
    pub blobs: BlobStore,
    /// Snapshots.
    pub snapshots: Arc<SimSnapshots>,
    /// Snapshots on their way here.
    pub receiving: Receiving,
    /// Policies that were in force here.
    pub chain: PolicyChain,
    /// Its part in recoveries.
    pub contributor: Contributor,
    /// Connections whose keyer it is.
    pub registry: Mutex<Registry>,
    tasks: Mutex<Option<JoinSet<()>>>,
    stopped: AtomicBool,
}

/// A node's links.
#[derive(Clone)]
pub struct SimPeers {
    world: Arc<World>,
    me: NodeId,
}

/// The open way to a leader.
pub struct Way {
    leader: NodeId,
    messages: mpsc::Sender<ProposeRequest>,
}

impl Transport for SimPeers {
    type Appends = ();

    async fn call(
        &self,
        target: NodeId,
        call_: Call,
        message: Bytes,
        _open: &mut Option<()>,
    ) -> Result<Bytes, CallError> {
        let message = match call_ {
            Call::Append => Message::Append(message),
            Call::Vote => Message::Vote(message),
            Call::Snapshot => Message::Snapshot(message),
        };
        // Raft's own timeout is shorter.
        match call(&self.world, self.me, target, message, Duration::from_secs(30)).await {
            Some(Reply::Raft(answer)) => Ok(answer),
            Some(_) => Err(CallError::Undecodable),
            None => Err(CallError::TimedOut),
        }
    }
}

impl WayToLeader for SimPeers {
    type Open = Way;

    fn way_to<'o>(
        &self,
        leader: NodeId,
        open: &'o mut Option<Way>,
    ) -> Option<&'o mpsc::Sender<ProposeRequest>> {
        if open.as_ref().is_none_or(|w| w.leader != leader || w.messages.is_closed()) {
            let (messages, mut receiver) = mpsc::channel::<ProposeRequest>(64);
            let (world, me) = (Arc::clone(&self.world), self.me);
            let node = self.world.running(me)?;
            node.spawn(async move {
                while let Some(request) = receiver.recv().await {
                    let world = Arc::clone(&world);
                    tokio::spawn(async move {
                        call(&world, me, leader, Message::Propose(Arc::new(request)), Duration::from_secs(5))
                            .await
                    });
                }
            });
            *open = Some(Way { leader, messages });
        }
        open.as_ref().map(|w| &w.messages)
    }

    fn has_link(&self, _leader: NodeId) -> bool {
        // Messages get lost; nothing here tells that they do.
        true
    }

    fn show(&self, leader: NodeId, withheld: &ProposeRequest) {
        let withheld = Arc::new(withheld.clone());
        for peer in self.world.members().into_iter().filter(|n| *n != leader && *n != self.me) {
            let (world, me, withheld) = (Arc::clone(&self.world), self.me, Arc::clone(&withheld));
            tokio::spawn(async move {
                drop(call(&world, me, peer, Message::Propose(withheld), Duration::from_secs(1)).await);
            });
        }
    }
}

/// Makes a new machine's files, as `quorated init` does.
pub fn init(dir: &Path, machine: &Machine) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    Cosigner::init(dir)?;
    TileStore::create(&dir.join("tlog"))?;
    LogStore::create_in(machine.disk.folder(), SEGMENT_BYTES)?;
    Ok(())
}

impl Node {
    /// Starts a process on a machine. Fails where `quorated` would refuse to start.
    pub async fn start(world: &Arc<World>, id: NodeId) -> anyhow::Result<Arc<Self>> {
        let machine = world.machine(id);
        let dir = world.dir(id);
        let (boot, genesis, first) = {
            let fleet = world.fleet();
            let node = &fleet.nodes[&id];
            let cosign = key(&format!("cosign {:?} {}", node.tpm.ak_public(), machine.starts()));
            anyhow::ensure!(
                public_key(&cosign).0 == node.boot().cosign,
                "the fleet counts starts in another way"
            );
            let boot = Boot { identity: Identity::generate()?, cosign: Arc::new(cosign), keys: node.boot() };
            (boot, fleet.genesis(), fleet.chain[0].clone())
        };
        let (state, leaf): (State, Vec<u8>) = genesis;
        let blobs = BlobStore::open(&dir)?;
        let chain = PolicyChain::open(&dir.join("policies"), first)?;
        let cluster = state.cluster();
        let store = SnapshotStore::open(&dir)?;
        let loaded = store.load()?;
        let (last_applied, members) = position(loaded.newest.as_ref());
        let (state, tiles) = match &loaded.newest {
            Some(snapshot) => {
                let opened = snapshots::open(&snapshot.content, cluster).map_err(anyhow::Error::msg)?;
                (opened.state, TileStore::open(&dir.join("tlog"), &opened.tail)?)
            }
            None => {
                let mut tiles = TileStore::open(&dir.join("tlog"), &StoreTail::default())?;
                tiles.append(&[leaf])?;
                (state, tiles)
            }
        };
        let (applied_tx, applied) = mpsc::unbounded_channel();
        let (outgoing_tx, outgoing) = mpsc::channel(OUTGOING_MAX);
        let on_leaf = {
            let (world, chain, blobs) = (Arc::downgrade(world), chain.clone(), blobs.clone());
            Box::new(move |leaf: &quorate_core::state::AppliedLeaf| {
                let Some(world) = world.upgrade() else { return };
                let Leaf::V1 { body, .. } = leaf.leaf();
                // Mirrors `node::leaf_hook`.
                if let LeafBody::Decided {
                    command: Command::Policy(c),
                    outcome: Outcome::PolicyChanged { version, .. },
                } = body
                {
                    note!(world, "{id} applied policy {}", version.0);
                    let kept = blobs.blob(&c.document).map(|document| chain.push(c.with_document(document)));
                    if !matches!(kept, Some(Ok(()))) {
                        world.oracle.fail(format!("{id} cannot keep policy {}: {kept:?}", version.0));
                    }
                }
                if let LeafBody::Decided {
                    outcome: outcome @ (Outcome::Refused(_) | Outcome::AlarmRaised),
                    ..
                } = body
                {
                    note!(world, "{id} applied leaf {}: {outcome:?}", leaf.index().0);
                }
            })
        };
        let start = Start {
            me: id,
            state,
            log_index: last_applied.map_or(0, |l| l.index),
            tiles,
            tiles_dir: dir.join("tlog"),
            blobs: blobs.clone(),
            on_leaf,
        };
        let (ledger, applier) = Ledger::with_clock(start, applied_tx, outgoing_tx, machine.clock.given());

        let floor = world.mutation.floor();
        let options = LogStoreOptions {
            segment_bytes: SEGMENT_BYTES,
            leads_ahead: Some(id.0),
            ..LogStoreOptions::default()
        };
        let disk = machine.disk.clone();
        let pace = move || {
            let took = disk.commit();
            async move { tokio::time::sleep(took).await }
        };
        let (log, writing) = LogStore::open_in(machine.disk.folder(), floor.log, options, pace)?;
        let (monitor, durable, reader) = (log.monitor(), log.durable(), log.reader());
        let parts = CosignerParts {
            ledger: ledger.clone(),
            boot: boot.clone(),
            applied,
            durable,
            raft_floor: floor.cosigner,
        };
        let (cosigner_task, cosigner) = Cosigner::open(&dir, parts)?;
        let (captured_tx, captured) = mpsc::unbounded_channel();
        let keeper =
            NodeSnapshots::new(store, dir.join("tlog"), cluster, captured_tx, chain.clone(), blobs.clone());
        if let Some(snapshot) = &loaded.newest {
            keeper.remember(&snapshot.meta, ledger.view().checkpoint.size);
        }
        let (me, tiles) = (id, dir.join("tlog"));
        let snapshots = Arc::new(SimSnapshots {
            inner: Arc::new(keeper),
            me,
            world: Arc::downgrade(world),
            tiles,
            cluster,
        });
        let machine_state = StateMachine::new(applier, Arc::clone(&snapshots), last_applied, members);
        let guard = TermGuard::default();
        let peers = SimPeers { world: Arc::clone(world), me: id };
        let network = Network { peers: peers.clone(), me: id, guard: guard.clone(), log: reader.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(writing);
        // openraft draws from a generator that no seed reaches: a range of one leaves it no choice.
        let timeout = world.chance(|rng| rng.range(500, 1_000));
        let config = openraft::Config {
            cluster_name: "quorate".into(),
            heartbeat_interval: 100,
            election_timeout_min: timeout,
            election_timeout_max: timeout + 1,
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            max_payload_entries: 64,
            ..openraft::Config::default()
        };
        let raft = Raft::new(id.0, Arc::new(config.validate()?), network, log, machine_state).await?;
        let queue = Queue::default();
        let node = Arc::new(Self {
            id,
            world: Arc::clone(world),
            boot: boot.clone(),
            ledger: ledger.clone(),
            raft: raft.clone(),
            cosigner: cosigner.clone(),
            queue: queue.clone(),
            log: reader,
            monitor,
            guard: guard.clone(),
            blobs: blobs.clone(),
            snapshots: Arc::clone(&snapshots),
            receiving: Receiving::default(),
            chain,
            contributor: Contributor::default(),
            registry: Mutex::default(),
            tasks: Mutex::new(Some(tasks)),
            stopped: AtomicBool::new(false),
        });
        node.spawn(cosigner_task.run());
        node.spawn(proposer::batch(raft.clone(), ledger.clone(), queue.clone(), Arc::new(Metrics::new())));
        let courier = Courier {
            ledger: ledger.clone(),
            boot,
            raft: raft.clone(),
            peers,
            queue,
            blobs,
            outgoing,
            guard: match world.mutation.bears_withholding() {
                true => TermGuard::default(),
                false => guard.clone(),
            },
        };
        if !world.mutation.waits_for_ever() {
            node.spawn(patience::watch(raft.clone(), ledger.clone(), guard));
        }
        node.spawn(courier.run());
        node.spawn(attest::evidence(Arc::clone(&node)));
        node.spawn(attest::recovery(Arc::clone(&node)));
        match world.mutation.forgets_lock() {
            true => cosigner.may_sign_from(TreeSize::ZERO),
            false => node.spawn(attest::ask_for_own_lock(Arc::clone(&node))),
        }
        node.spawn(points(Arc::clone(&node)));
        node.spawn(keep(Arc::clone(&node), captured));
        node.spawn(giveup::watch(Arc::clone(&node)));
        node.spawn(membership::follow_policy(raft.clone(), ledger.clone()));
        node.spawn(feed_streams(Arc::clone(&node)));
        node.spawn(watch(Arc::clone(&node)));
        node.spawn(watch_signing(Arc::clone(&node)));
        Ok(node)
    }

    /// What `quorated` does once it serves.
    pub async fn join(&self) {
        let policy = Arc::clone(&self.ledger.view().policy);
        let members: BTreeMap<u64, EmptyNode> = policy.members.keys().map(|n| (n.0, EmptyNode {})).collect();
        match self.raft.is_initialized().await {
            Ok(false) if policy.version.0 == 1 => drop(self.raft.initialize(members).await),
            Ok(_) if self.raft.metrics().borrow().vote.leader_id().voted_for() == Some(self.id.0) => {
                proposer::new_term(&self.raft).await;
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Runs something that ends with the process.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = tasks.as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// Whether the process was killed.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Whether storage or Raft ended here.
    pub fn failed(&self) -> Option<String> {
        let raft = self.raft.metrics().borrow().running_state.clone();
        self.monitor.failed().or_else(|| raft.err().map(|e| e.to_string()))
    }

    /// Kills the process: nothing that it does from here on reaches a disk or a link. The caller has ended the disk's handles.
    pub async fn kill(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(tasks);
        // The rest of Raft ends by itself; its log is closed, and its messages go nowhere.
        let _ended = tokio::time::timeout(Duration::from_secs(1), self.raft.shutdown()).await;
    }

    /// Asks a peer.
    pub async fn ask(&self, peer: NodeId, message: Message, within: Duration) -> Option<Reply> {
        call(&self.world, self.id, peer, message, within).await
    }

    /// The other members.
    pub fn peers(&self) -> Vec<NodeId> {
        let view = self.ledger.view();
        view.policy.members.keys().copied().filter(|n| *n != self.id).collect()
    }
}

/// Mirrors `node::feed_streams`: one stream to each member, as the policy has them.
async fn feed_streams(node: Arc<Node>) {
    let mut changed = node.ledger.standing_changed();
    let mut feeds: BTreeMap<NodeId, tokio::task::AbortHandle> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let peers = node.peers();
        feeds.retain(|n, feed| {
            let stays = peers.contains(n);
            if !stays {
                feed.abort();
            }
            stays
        });
        for peer in &peers {
            feeds.entry(*peer).or_insert_with(|| running.spawn(feed(Arc::clone(&node), *peer)));
        }
        while node.peers() == peers {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Mirrors `cosign_stream::feed`: who acts on a cosignature hears of it at once, others of the newest in their time; a stream that
/// broke begins again with the newest.
async fn feed(node: Arc<Node>, peer: NodeId) {
    let mut own = node.cosigner.subscribe();
    let mut newest: Option<Signed> = None;
    let (heard, mut acks) = mpsc::unbounded_channel::<TreeSize>();
    let (mut sent, mut acked, mut sent_at) = (TreeSize::ZERO, TreeSize::ZERO, Instant::now());
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let send = |signed: &Signed| {
        let (node, signed, heard) = (Arc::clone(&node), signed.clone(), heard.clone());
        tokio::spawn(async move {
            let size = signed.checkpoint.size;
            if node.ask(peer, Message::Cosign(signed), Duration::from_secs(2)).await.is_some() {
                let _ended = heard.send(size);
            }
        });
    };
    loop {
        tokio::select! {
            biased;
            signed = own.recv() => match signed {
                Ok((signed, audience)) => {
                    if audience.includes(peer) {
                        (sent, sent_at) = (signed.checkpoint.size, Instant::now());
                        send(&signed);
                    }
                    newest = Some(signed);
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Some(size) = acks.recv() => acked = acked.max(size),
            _ = tick.tick() => {
                let Some(signed) = &newest else { continue };
                let size = signed.checkpoint.size;
                let lost = acked < size && sent_at.elapsed() > Duration::from_secs(1);
                if sent < size || lost {
                    (sent, sent_at) = (size, Instant::now());
                    send(signed);
                }
            }
        }
    }
}

/// Shows the oracle what this node holds to be certified.
async fn watch(node: Arc<Node>) {
    let mut certified = node.ledger.certified();
    while certified.changed().await.is_ok() {
        let newest = certified.borrow_and_update().clone();
        if let Some(newest) = newest {
            note!(node.world, "{} certified {} {}", node.id, newest.own.size.0, short(&newest.own.root.0));
            node.world.oracle.certified(&node, newest.own);
        }
    }
}

/// Shows the oracle what this node signs.
async fn watch_signing(node: Arc<Node>) {
    let mut own = node.cosigner.subscribe();
    loop {
        match own.recv().await {
            Ok((signed, _)) => {
                note!(
                    node.world,
                    "{} signed {} {}",
                    node.id,
                    signed.checkpoint.size.0,
                    short(&signed.checkpoint.root.0)
                );
                node.world.oracle.signed(&node.world, &signed);
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// The beginning of a hash.
pub fn short(hash: &[u8]) -> String {
    hex::encode(&hash[..4])
}

/// What a crash does to the plain files of a node. `sign.lock` is written without waiting for the disk, tiles before their
/// snapshot is not synced at all.
pub fn crash_files(world: &World, id: NodeId, crash: Crash) -> anyhow::Result<()> {
    let dir = world.dir(id);
    if crash == Crash::Process {
        return Ok(());
    }
    let machine = world.machine(id);
    let older = machine.older_lock();
    std::fs::write(dir.join("sign.lock"), older)?;
    if world.chance(|rng| rng.permille(500)) {
        // What a snapshot stands on is synced before it counts.
        let newest = SnapshotStore::open(&dir)?.load()?.newest;
        let cluster = world.fleet().cluster();
        let tail = newest.and_then(|s| snapshots::open(&s.content, cluster).ok()).map(|opened| opened.tail);
        let tiles = dir.join("tlog");
        match tail {
            Some(tail) => drop(set_aside_beyond(&tiles, &tail)?),
            None => {
                std::fs::remove_dir_all(&tiles)?;
                TileStore::create(&tiles)?;
            }
        }
    }
    if world.chance(|rng| rng.permille(500)) {
        let _none = std::fs::remove_file(dir.join("certificate"));
    }
    Ok(())
}

/// Two floors: the cosigner's and the log's, one value unless a mutation parts them.
pub struct Floors {
    /// Raised by the cosigner.
    pub cosigner: CertifiedFloor,
    /// Obeyed by the log.
    pub log: CertifiedFloor,
}
