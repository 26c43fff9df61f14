//! Builds a node from its configuration and runs it: one task per state machine, bounded queues between them.
//!
//! ```text
//! clients ─► Mesh ─► Relay ─► Courier ─► leader's Queue ─► Raft ─► Applier ─► Cosigner ─► certified ─► Relay, Keyer
//! peers  ─► Peer ─────────────────────────────┘                                  ▲
//!                 cosignatures ──────────────────────────────────────────────────┘
//! ```
use crate::attester::Attester;
use crate::blobs::BlobStore;
use crate::boot::Boot;
use crate::config::Config;
use crate::cosigner::{Cosigner, CosignerHandle, CosignerParts};
use crate::directory::{Directory, PolicyChain, RequestIndex};
use crate::evidence::EvidenceTask;
use crate::giveup::{self, GiveUp};
use crate::init::Layout;
use crate::keyer::Keyer;
use crate::ledger::{LeafHook, Ledger, Start};
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::proposer::{Courier, Queue};
use crate::raft::guard::TermGuard;
use crate::raft::network::Network;
use crate::raft::patience;
use crate::raft::state_machine::{StateMachine, position};
use crate::raft::types::Raft;
use crate::raft::{CertifiedFloor, LogMonitor, LogReader, LogStore, LogStoreOptions, SnapshotStore};
use crate::recovery::{Contributor, Recovery, ask_for_own_lock};
use crate::relay::{KeyerPort, Relay};
use crate::services::gate::Gate;
use crate::services::mesh::{MeshService, NodeFacts};
use crate::services::peer::{HeadChecker, PeerService};
use crate::shares::{self, Vault};
use crate::snapshots::{NodeSnapshots, Receiving};
use crate::tilestore::{StoreTail, TileStore};
use crate::{cosign_stream, http, membership, proposer, snapshots};
use anyhow::Context as _;
use axum::Router;
use openraft::error::Fatal;
use openraft::{EmptyNode, SnapshotPolicy};
use quorate_attest::evidence::BootKeys;
use quorate_core::command::{Command, NodeCommand};
use quorate_core::ids::NodeId;
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::state::{AppliedLeaf, Blobs, State};
use quorate_core::tlog::{KeyKind, KeyName, Note, VerifierKey};
use quorate_proto::PEER_MESSAGE_BYTES_MAX;
use quorate_proto::v1::peer_server::PeerServer;
use quorate_telemetry::Traces;
use quorate_transport::{Incoming, Limits};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// How long spans may take to go out at the end.
const SPANS_WAIT: Duration = Duration::from_secs(2);
/// Commands of this node waiting for the courier.
const OUTGOING_MAX: usize = 16_384;
/// Raft keeps this many entries below a snapshot, so that a follower that was briefly away needs no snapshot.
const ENTRIES_KEPT: u64 = 10_000;

/// How often Raft is looked at.
const RAFT_LOOKED_AT: Duration = Duration::from_millis(100);

/// A built node: bound, not yet serving.
pub struct Node {
    config: Config,
    ledger: Ledger,
    raft: Raft,
    monitor: LogMonitor,
    grpc: TcpListener,
    http: TcpListener,
    boot: Boot,
    peer_service: PeerService,
    mesh_service: MeshService,
    relay: Relay,
    metrics: Arc<Metrics>,
    facts: Arc<Facts>,
    archive: Router,
    tasks: JoinSet<()>,
    gave_up: oneshot::Receiver<()>,
}

/// Why a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Its tail is not the certified one: it must start over, see [`crate::giveup`].
    GaveUp,
}

impl Node {
    /// Opens everything and binds; nothing is served before [`Node::run`].
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let layout = Layout::new(&config.data_dir);
        let genesis = layout.read_genesis()?;
        let boot = Boot::new()?;
        let blobs = BlobStore::open(layout.root()).context("cannot open the blobs")?;
        let (genesis_state, genesis_leaf) =
            State::genesis(genesis.clone()).context("the genesis policy is not valid")?;
        let cluster = genesis_state.cluster();
        giveup::finish(&layout, cluster, &genesis_state, &blobs).await.context("cannot give up a tail")?;
        let chain = PolicyChain::open(&layout.policies(), genesis).context("cannot open the policies")?;
        let grpc = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let http = TcpListener::bind(config.http_listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.http_listen))?;

        let store = SnapshotStore::open(layout.root()).context("cannot open the snapshots")?;
        let loaded = store.load().context("cannot read the snapshots")?;
        for damaged in &loaded.rejected {
            tracing::error!(error = crate::report::chain(damaged), "a snapshot is damaged: passed over");
        }
        let (last_applied, members) = position(loaded.newest.as_ref());
        let (state, tiles) = match &loaded.newest {
            Some(snapshot) => {
                let opened = snapshots::open(&snapshot.content, cluster).map_err(anyhow::Error::msg)?;
                (
                    opened.state,
                    TileStore::open(&layout.tiles(), &opened.tail).context("cannot open the tiles")?,
                )
            }
            None => {
                let mut tiles = TileStore::open(&layout.tiles(), &StoreTail::default())
                    .context("cannot open the tiles")?;
                tiles.append(&[genesis_leaf]).context("cannot write the first leaf")?;
                (genesis_state, tiles)
            }
        };

        let index = Arc::new(RequestIndex::default());
        index.recall(&tiles.reader());
        let metrics = Arc::new(Metrics::traced(traces(&config)?));
        let relay_cell = Arc::new(OnceLock::new());
        let on_leaf = leaf_hook(Arc::clone(&index), chain.clone(), blobs.clone(), Arc::clone(&relay_cell));
        let (applied_tx, applied) = mpsc::unbounded_channel();
        let (outgoing_tx, outgoing) = mpsc::channel(OUTGOING_MAX);
        let start = Start {
            me: config.node,
            state,
            log_index: last_applied.map_or(0, |l| l.index),
            tiles,
            tiles_dir: layout.tiles(),
            blobs: blobs.clone(),
            on_leaf,
        };
        let (ledger, applier) = Ledger::new(start, applied_tx, outgoing_tx);

        let floor = CertifiedFloor::new();
        let fsyncs = Arc::clone(&metrics);
        let on_commit: Box<dyn Fn(Duration) + Send> = Box::new(move |took| fsyncs.fsynced(took));
        // Peers' answers are held back for it: see `Network` and `PeerService`.
        let leads_ahead = Some(config.node.0);
        let options =
            LogStoreOptions { on_commit: Some(on_commit), leads_ahead, ..LogStoreOptions::default() };
        let log =
            LogStore::open(&layout.raft_log(), floor.clone(), options).context("cannot open Raft's log")?;
        let (monitor, durable, log_reader) = (log.monitor(), log.durable(), log.reader());
        let parts =
            CosignerParts { ledger: ledger.clone(), boot: boot.clone(), applied, durable, raft_floor: floor };
        let (cosigner_task, cosigner) = Cosigner::open(layout.root(), parts)?;

        let attester = Attester::new(&config, blobs.clone()).context("cannot start the TPM's thread")?;
        let peers = Peers::new(ledger.clone(), boot.clone(), attester.clone(), blobs.clone());
        let (captured_tx, captured) = mpsc::unbounded_channel();
        let keeper = Arc::new(NodeSnapshots::new(
            store,
            layout.tiles(),
            cluster,
            captured_tx,
            chain.clone(),
            blobs.clone(),
        ));
        if let Some(snapshot) = &loaded.newest {
            keeper.remember(&snapshot.meta, ledger.view().checkpoint.size);
        }
        keeper.set_peers(peers.clone());
        let machine = StateMachine::new(applier, Arc::clone(&keeper), last_applied, members);
        let guard = TermGuard::default();
        let network =
            Network { peers: peers.clone(), me: config.node, guard: guard.clone(), log: log_reader.clone() };
        let raft_config = Arc::new(raft_config(&config).validate().context("Raft's timing")?);
        let ports = Arc::new(PeerKeyers(peers.clone()));
        let vault = Vault::new(config.node);
        let relay = Relay::new(
            ledger.clone(),
            boot.keys.clone(),
            ports,
            Arc::clone(&metrics),
            vault.clone(),
            config.tunnels_max,
        );
        let _first = relay_cell.set(relay.clone());
        let keyer = Keyer::new(ledger.clone(), boot.keys.clone(), Arc::clone(&metrics), vault.clone());
        let raft = Raft::new(config.node.0, raft_config, network, log, machine)
            .await
            .context("cannot start Raft")?;

        let shares = shares::Keeper {
            ledger: ledger.clone(),
            vault,
            tpm: attester.tpm().clone(),
            data_dir: layout.root().to_owned(),
            chain: chain.clone(),
            metrics: Arc::clone(&metrics),
        };
        let archive = http::archive::router(blobs.clone(), chain.clone(), Default::default());
        let directory = Directory::new(ledger.clone(), blobs.clone(), chain, index);
        let queue = Queue::default();
        let contributor = Contributor::new(ledger.clone(), boot.clone(), attester.clone(), cosigner.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(cosigner_task.run());
        tasks.spawn(shares.run());
        tasks.spawn(peers.clone().follow_policy());
        tasks.spawn(proposer::batch(raft.clone(), ledger.clone(), queue.clone(), Arc::clone(&metrics)));
        let courier = Courier {
            ledger: ledger.clone(),
            boot: boot.clone(),
            raft: raft.clone(),
            peers: peers.clone(),
            queue: queue.clone(),
            blobs: blobs.clone(),
            outgoing,
            guard: guard.clone(),
        };
        tasks.spawn(courier.run());
        tasks.spawn(patience::watch(raft.clone(), ledger.clone(), guard.clone()));
        let evidence =
            EvidenceTask { ledger: ledger.clone(), boot: boot.clone(), attester, cosigner: cosigner.clone() };
        tasks.spawn(evidence.run());
        let recovery = Recovery {
            ledger: ledger.clone(),
            raft: raft.clone(),
            peers: peers.clone(),
            contributor: contributor.clone(),
            blobs: blobs.clone(),
        };
        tasks.spawn(recovery.run());
        let (decided, gave_up) = oneshot::channel();
        let give_up = GiveUp {
            ledger: ledger.clone(),
            peers: peers.clone(),
            cosigner: cosigner.clone(),
            guard: guard.clone(),
            raft: raft.clone(),
            root: layout.root().to_owned(),
            decided,
        };
        tasks.spawn(give_up.run());
        tasks.spawn(ask_for_own_lock(ledger.clone(), peers.clone(), cosigner.clone()));
        tasks.spawn(membership::follow_policy(raft.clone(), ledger.clone()));
        tasks.spawn(feed_streams(peers.clone(), ledger.clone(), cosigner.clone()));
        tasks.spawn(snapshot_points(ledger.clone(), raft.clone(), config.raft.snapshot_batches));
        tasks.spawn(snapshots::keep(
            Arc::clone(&keeper),
            captured,
            directory.clone(),
            ledger.clone(),
            raft.clone(),
        ));
        tasks.spawn(crate::blobs::pay(ledger.clone(), peers.clone(), blobs.clone()));
        tasks.spawn(keyer.clone().sweep());
        let facts = Arc::new(Facts {
            raft: raft.clone(),
            peers: peers.clone(),
            monitor: monitor.clone(),
            boot: boot.keys.clone(),
        });
        let mesh_service = MeshService::new(
            ledger.clone(),
            relay.clone(),
            keyer.clone(),
            directory,
            Arc::clone(&facts) as Arc<dyn NodeFacts>,
        );
        let peer_service = PeerService {
            ledger: ledger.clone(),
            raft: raft.clone(),
            peers,
            queue,
            cosigner,
            contributor,
            keyer: Arc::new(keyer),
            blobs,
            log: log_reader,
            guard,
            snapshots: Arc::clone(&keeper),
            receiving: Arc::new(Receiving::default()),
            budgets: Arc::default(),
        };
        Ok(Self {
            config,
            ledger,
            raft,
            monitor,
            grpc,
            http,
            boot,
            peer_service,
            mesh_service,
            relay,
            metrics,
            facts,
            archive,
            tasks,
            gave_up,
        })
    }

    /// Serves until `stop` completes or storage fails, then drains.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<Ended> {
        let Self {
            config,
            ledger,
            raft,
            mut monitor,
            grpc,
            http: http_listener,
            boot,
            peer_service,
            mesh_service,
            relay,
            metrics,
            facts,
            archive,
            mut tasks,
            gave_up,
        } = self;
        let log_reader = peer_service.log.clone();
        let (me, policy) = (ledger.me(), Arc::clone(&ledger.view().policy));
        tracing::info!(
            node = me.0,
            cluster = %ledger.cluster(),
            policy = policy.version.0,
            grpc = %config.listen,
            http = %config.http_listen,
            version = env!("CARGO_PKG_VERSION"),
            "quorated starts"
        );
        let members: BTreeMap<u64, EmptyNode> = policy.members.keys().map(|n| (n.0, EmptyNode {})).collect();
        if !raft.is_initialized().await.context("Raft")? && policy.version.0 == 1 {
            // Every member of genesis begins with the same members; which of them is first does not matter.
            if let Err(error) = raft.initialize(members).await {
                tracing::debug!(%error, "Raft is initialised already");
            }
        } else if raft.metrics().borrow().vote.leader_id().voted_for() == Some(me.0) {
            proposer::new_term(&raft).await;
        }
        let peers = facts.peers.clone();
        let incoming = Incoming::new(grpc, &boot.identity, Limits::default())?;
        let (note_tx, note_rx) = watch::channel(Arc::from(""));
        tasks.spawn(publish_notes(ledger.clone(), note_tx));
        let router = http::router(ledger.clone(), note_rx, metrics.clone(), facts).merge(archive);
        tasks.spawn(async move {
            if let Err(error) = axum::serve(http_listener, router).await {
                tracing::error!(%error, "the HTTP service ended");
            }
        });
        let (health_reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(report_health(health_reporter, ledger.clone(), boot.keys.clone()));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(quorate_proto::DESCRIPTORS)
            .build_v1()
            .context("gRPC reflection")?;
        let (drain_tx, mut drain) = watch::channel(false);
        let server = quorate_transport::grpc_server()
            .add_service(health)
            .add_service(reflection)
            .add_service(mesh_service.into_server())
            .add_service(Gate::new(
                PeerServer::new(peer_service)
                    .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX),
                peers,
            ))
            .serve_with_incoming_shutdown(incoming, async move {
                let _closed = drain.wait_for(|d| *d).await;
            });
        let mut server = tokio::spawn(server);
        tokio::pin!(stop);
        let mut outcome = Ok(Ended::Stopped);
        tokio::select! {
            () = &mut stop => tracing::info!("stopping: draining"),
            reason = raft_stopped(&raft, &log_reader) => {
                tracing::error!(reason, "Raft stopped on this node: it must be started again");
                outcome = Err(anyhow::anyhow!("Raft stopped: {reason}"));
            }
            Ok(()) = gave_up => outcome = Ok(Ended::GaveUp),
            reason = monitor.wait_failed() => {
                let reason = reason.unwrap_or_else(|| "Raft's log closed".into());
                tracing::error!(reason, "storage failed: this node acknowledges nothing more; free space or replace the disk, then restart");
                // It stays up, so that status and metrics can say so, until it is stopped.
                stop.await;
                outcome = Err(anyhow::anyhow!("storage failed: {reason}"));
            }
            ended = &mut server => {
                outcome = ended.context("the gRPC server")?.context("the gRPC server").map(|()| Ended::Stopped);
            }
        }
        // What runs rests on what is certified; what would still be asked for would not be.
        let drain = match outcome {
            Ok(Ended::GaveUp) => Duration::ZERO,
            _ => Duration::from_millis(config.drain_ms),
        };
        relay.drain(tokio::time::Instant::now() + drain);
        if tokio::time::timeout(drain, relay.drained()).await.is_err() {
            tracing::warn!("running requests did not end in time: cut");
        }
        metrics.traces().flush(SPANS_WAIT).await;
        let _gone = drain_tx.send(true);
        // Peers' streams never end by themselves: what is left is cut.
        if tokio::time::timeout(Duration::from_millis(200), &mut server).await.is_err() {
            server.abort();
        }
        if let Err(error) = raft.shutdown().await {
            tracing::debug!(%error, "Raft's shutdown");
        }
        tasks.shutdown().await;
        relay.vault().erase();
        tracing::info!(node = me.0, "stopped");
        outcome
    }
}

/// Completes when Raft ended here for another reason than storage: a node without Raft would look alive and take part in
/// nothing. Storage that failed, be it the log's or the state machine's, closes the log, which says so.
async fn raft_stopped(raft: &Raft, log: &LogReader) -> String {
    let metrics = raft.metrics();
    // Looked at in turns: Raft's metrics change several times with every entry.
    loop {
        let running = metrics.borrow().running_state.clone();
        match running {
            Ok(()) if metrics.has_changed().is_err() => return "its task ended".to_owned(),
            Ok(()) => tokio::time::sleep(RAFT_LOOKED_AT).await,
            Err(Fatal::StorageError(error)) => {
                log.close_for(&error.to_string());
                std::future::pending::<()>().await;
            }
            Err(fatal) => return fatal.to_string(),
        }
    }
}

/// What Raft and the links know.
struct Facts {
    raft: Raft,
    peers: Peers,
    monitor: LogMonitor,
    boot: BootKeys,
}

impl NodeFacts for Facts {
    fn boot(&self) -> &BootKeys {
        &self.boot
    }
    fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow().current_leader.map(NodeId)
    }
    fn term(&self) -> u64 {
        self.raft.metrics().borrow().current_term
    }
    fn failed(&self) -> Option<String> {
        self.monitor.failed()
    }
    fn connected(&self, node: NodeId) -> bool {
        self.peers.connected(node).is_some()
    }
}

/// The relay's way to a keyer: over the link, while the keyer's key on it is an attested boot key.
struct PeerKeyers(Peers);

#[tonic::async_trait]
impl KeyerPort for PeerKeyers {
    async fn check_head(
        &self,
        keyer: NodeId,
        request: quorate_proto::v1::CheckHeadRequest,
    ) -> Result<quorate_proto::v1::CheckHeadReply, tonic::Status> {
        let client = self.0.attested_client(keyer);
        let mut client = client.ok_or_else(|| tonic::Status::unavailable("no connection to the keyer"))?;
        Ok(client.check_head(request).await?.into_inner())
    }
}

#[tonic::async_trait]
impl HeadChecker for Keyer {
    async fn check_head(
        &self,
        relay: NodeId,
        request: quorate_proto::v1::CheckHeadRequest,
    ) -> quorate_proto::v1::CheckHeadReply {
        Keyer::check_head(self, relay, request).await
    }
}

/// Renders each newly certified checkpoint for the HTTP service.
async fn publish_notes(ledger: Ledger, notes: watch::Sender<Arc<str>>) {
    let mut certified = ledger.certified();
    while certified.changed().await.is_ok() {
        // Auditors poll by the second; rendering each one under load would be waste, and the moment of a certificate is the one
        // in which requests wait for the processor.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Some(text) = note(&ledger) {
            notes.send_replace(text.into());
        }
    }
}

/// gRPC health: serving while a quorum is attested and this node is among them.
async fn report_health(reporter: tonic_health::server::HealthReporter, ledger: Ledger, boot: BootKeys) {
    let mut changed = ledger.view_changed();
    loop {
        let view = ledger.view();
        let healthy = !view.dark && view.counts(ledger.me(), &boot, crate::clock::now());
        let status = if healthy {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        reporter.set_service_status("", status).await;
        reporter.set_service_status("quorate.v1.Mesh", status).await;
        // Evidence ages while nothing changes.
        if let Ok(Err(_)) = tokio::time::timeout(Duration::from_secs(1), changed.changed()).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn raft_config(config: &Config) -> openraft::Config {
    openraft::Config {
        cluster_name: "quorate".into(),
        heartbeat_interval: config.raft.heartbeat_ms,
        election_timeout_min: config.raft.election_min_ms,
        election_timeout_max: config.raft.election_max_ms,
        // Snapshots are made at logged points only: their digest must stand in a certified leaf.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: ENTRIES_KEPT.min(config.raft.snapshot_batches),
        install_snapshot_timeout: 60_000,
        max_payload_entries: 64,
        ..openraft::Config::default()
    }
}

/// Sees every applied leaf: keeps the policy chain and where requests' leaves stand.
fn leaf_hook(
    index: Arc<RequestIndex>,
    chain: PolicyChain,
    blobs: BlobStore,
    relay: Arc<OnceLock<Relay>>,
) -> LeafHook {
    Box::new(move |leaf: &AppliedLeaf| {
        index.on_leaf(leaf);
        if let Some(relay) = relay.get() {
            relay.on_leaf(leaf);
        }
        let Leaf::V1 { body, .. } = leaf.leaf();
        if let LeafBody::Decided {
            command: Command::Policy(c),
            outcome: Outcome::PolicyChanged { version, .. },
        } = body
        {
            let kept = match blobs.blob(&c.document) {
                Some(document) => chain.push(c.with_document(document)).map_err(|e| crate::report::chain(&e)),
                None => Err("its document is gone".into()),
            };
            match kept {
                Ok(()) => tracing::info!(version = version.0, "a new policy is in force"),
                Err(error) => tracing::error!(
                    error,
                    version = version.0,
                    "cannot keep a policy: directories cannot be served"
                ),
            }
        }
    })
}

/// One stream of cosignatures to each member, as the policy has them.
async fn feed_streams(peers: Peers, ledger: Ledger, cosigner: CosignerHandle) {
    let mut changed = ledger.standing_changed();
    let mut feeds: BTreeMap<NodeId, tokio::task::AbortHandle> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let view = ledger.view();
        feeds.retain(|n, feed| {
            let stays = view.policy.members.contains_key(n);
            if !stays {
                feed.abort();
            }
            stays
        });
        for node in view.policy.members.keys().filter(|n| **n != ledger.me()) {
            feeds.entry(*node).or_insert_with(|| {
                running.spawn(cosign_stream::feed(peers.clone(), *node, cosigner.clone()))
            });
        }
        let version = view.policy.digest;
        drop(view);
        while ledger.view().policy.digest == version {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The leader asks for a snapshot point every so many batches.
async fn snapshot_points(ledger: Ledger, raft: Raft, every: u64) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if proposer::leads(&raft, ledger.me()) && ledger.read(State::batches_since_snapshot) >= every {
            ledger.send(crate::ledger::Outgoing::Node(NodeCommand::Snapshot));
        }
    }
}

/// The certified checkpoint as a signed note (C2SP tlog-checkpoint with cosignatures). None while this node's view is newer than
/// the certificate, so that too few of its keys are known here any more: auditors would take such a note for a forgery.
pub fn note(ledger: &Ledger) -> Option<String> {
    let certified = ledger.certified().borrow().clone()?;
    let checkpoint = certified.certified.checkpoint();
    let view = ledger.view();
    let lines: Vec<_> = certified
        .certified
        .cosignatures()
        .iter()
        .filter_map(|(node, cosignature)| {
            let member = view.policy.members.get(node)?;
            let key = view.attested(*node)?.cosign;
            cosignature.verify(checkpoint, &key).ok()?;
            let name = KeyName::new(format!("{}/{}", checkpoint.origin, member.name)).ok()?;
            Some(cosignature.to_note_signature(&name, &key))
        })
        .collect();
    if lines.len() < view.policy.quorum() {
        return None;
    }
    Note::new(checkpoint.body(), lines).ok().map(|n| n.to_string())
}

/// The vkey of a member's present boot key, for C2SP tools.
pub fn verifier_key(ledger: &Ledger, node: NodeId) -> Option<VerifierKey> {
    let view = ledger.view();
    let member = view.policy.members.get(&node)?;
    let name = KeyName::new(format!("{}/{}", ledger.origin(), member.name)).ok()?;
    Some(VerifierKey::new(name, KeyKind::CosignatureV1, view.attested(node)?.cosign))
}

/// Where spans go, as configured.
fn traces(config: &Config) -> anyhow::Result<Traces> {
    let Some(url) = &config.telemetry.otlp else { return Ok(Traces::default()) };
    Traces::to(url, config.telemetry.ca_file.as_deref(), "quorated", config.node.to_string())
        .context("telemetry: cannot send spans")
}
