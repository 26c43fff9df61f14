//! This node's view of the replicated state: what was applied here, what is certified, and who waits for which outcome.
//!
//! One task, Raft's state machine worker, applies entries ([`Applier`]); everybody else holds a [`Ledger`], reads, and
//! waits. Nothing is forwarded on the strength of "applied": [`Ledger::decide`] and [`Ledger::authorisation`] return only
//! what is certified, by a quorum, over a root that equals this node's own.
use crate::clock::Clock;
use crate::raft::withheld::Progress;
use crate::tilestore::{StoreError, StoreTail, TileReader, TileStore};
use arc_swap::ArcSwap;
use quorate_attest::evidence::BootKeys;
use quorate_core::certificate::{CertifiedAuthorisation, CertifiedCheckpoint, CertifiedLeaf, Certifiers};
use quorate_core::command::{
    Alarm, Authorise, COMMANDS_MAX, CheckpointRef, ClientCommand, Command, NodeCommand, NodeSigned,
    Settlement,
};
use quorate_core::crypto::{Hash, PublicKey};
use quorate_core::ids::{ConnectionId, NodeId, RequestId, Timestamp, TokenId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::policy::Policy;
use quorate_core::proof::{LeafCertificate, ProvenLeaf};
use quorate_core::refusal::Refusal;
use quorate_core::state::{AppliedLeaf, Blobs, NodeRecord, State, VerifiedAhead};
use quorate_core::tlog::{LeafIndex, Origin, TreeSize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// Authorisations remembered for a keyer that has not asked yet, and for how long: a request lives two minutes at most.
const AUTHORISATIONS_MAX: usize = 65_536;
const AUTHORISATION_KEPT: Duration = Duration::from_secs(120);
/// How long a decided command is remembered for couriers that still carry it. They forget it long before.
const DECIDED_KEPT: Duration = Duration::from_secs(60);
/// Commands that may wait for their outcome at a time.
const WAITERS_MAX: usize = 65_536;

/// What changes with every batch and everybody reads.
#[derive(Debug, Clone)]
pub struct View {
    /// Policy in force.
    pub policy: Arc<Policy>,
    /// What is known of each member.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Time of the last entry.
    pub time: Timestamp,
    /// The tree.
    pub checkpoint: CheckpointRef,
    /// Fewer than a quorum attested.
    pub dark: bool,
    /// When the next lapse or deadline is due.
    pub next_due: Option<Timestamp>,
    /// Whether the next batch owes a snapshot point's digest.
    pub digest_due: bool,
    /// Raft index of the last entry.
    pub log_index: u64,
}

impl View {
    fn of(state: &State, log_index: u64) -> Self {
        Self {
            policy: Arc::clone(state.policy()),
            nodes: state.nodes().clone(),
            time: state.time(),
            checkpoint: state.checkpoint(),
            dark: state.is_dark(),
            next_due: state.next_due(),
            digest_due: state.digest_due(),
            log_index,
        }
    }
    /// Whether the policy is the same, and who is attested with which keys.
    fn stands_as(&self, other: &Self) -> bool {
        let attested =
            |view: &Self| view.nodes.iter().map(|(n, r)| (*n, r.attested().cloned())).collect::<Vec<_>>();
        self.policy.digest == other.policy.digest
            && self.dark == other.dark
            && attested(self) == attested(other)
    }
    /// Boot keys of an attested node.
    pub fn attested(&self, node: NodeId) -> Option<&BootKeys> {
        self.nodes.get(&node).and_then(NodeRecord::attested)
    }
    /// Which attested node has this TLS key.
    pub fn node_by_tls_key(&self, key: &[u8; 32]) -> Option<NodeId> {
        self.nodes.iter().find(|(_, r)| r.attested().is_some_and(|b| b.tls == *key)).map(|(n, _)| *n)
    }
    /// Whether this very start of a node counts: what its evidence binds are these keys, and it is fresh. A node that just
    /// started sees an old state, in which an earlier start of it was attested.
    pub fn counts(&self, node: NodeId, boot: &BootKeys, now: Timestamp) -> bool {
        self.attested(node) == Some(boot) && self.attested_at(node, now)
    }
    /// Evidence that is not too old by the given clock either: what a relay and a keyer go by.
    pub fn attested_at(&self, node: NodeId, now: Timestamp) -> bool {
        let Some(at) = self.nodes.get(&node).and_then(NodeRecord::attested_at) else { return false };
        now.since_ms(at)
            <= self.policy.attestation.lapse_ms.saturating_add(self.policy.attestation.clock_skew_ms)
    }
}

/// Who acts on a checkpoint and so hears each cosignature of it at once. The others hear of the newest in their time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Everybody.
    All,
    /// These; nobody, where all that was decided is over anyway.
    Nodes(BTreeSet<NodeId>),
}

impl Audience {
    /// Relays and keyers of what a batch allows. Anything out of the ordinary is for everybody, and so are the checkpoints that
    /// everybody follows the log by.
    fn of(leaves: &[AppliedLeaf], everybody: bool) -> Self {
        let mut nodes = BTreeSet::new();
        for leaf in leaves {
            let Leaf::V1 { body, .. } = leaf.leaf();
            match body {
                LeafBody::BatchEnd(_) => {}
                LeafBody::Decided { command: Command::Client(c), .. } => match &c.body {
                    ClientCommand::OpenPool(p) => nodes.extend([p.relay, p.keyer]),
                    ClientCommand::Authorise(a) => nodes.extend([a.relay, a.keyer]),
                    ClientCommand::Report(_) | ClientCommand::RevokeToken(_) => {}
                },
                LeafBody::Decided {
                    command: Command::Node(NodeSigned { body: NodeCommand::Settle(_), .. }),
                    ..
                } => {}
                _ => return Self::All,
            }
        }
        if everybody { Self::All } else { Self::Nodes(nodes) }
    }

    /// Whether a node is one of them.
    pub fn includes(&self, node: NodeId) -> bool {
        match self {
            Self::All => true,
            Self::Nodes(nodes) => nodes.contains(&node),
        }
    }
}

/// How often everybody hears of a checkpoint, by entry time. By it, so that all nodes choose the same ones: cosignatures meet at
/// one size only.
const SAMPLE_MS: u64 = 50;

fn is_sample(before: Timestamp, time: Timestamp) -> bool {
    before.0 / SAMPLE_MS != time.0 / SAMPLE_MS
}

/// A batch as applied, for the cosigner.
#[derive(Debug, Clone)]
pub struct AppliedCheckpoint {
    /// Who waits for its cosignatures.
    pub audience: Audience,
    /// Raft index of the entry.
    pub log_index: u64,
    /// The tree after it.
    pub checkpoint: CheckpointRef,
    /// Who may certify it.
    pub certifiers: Certifiers,
    /// Whether evidence may name it as nonce.
    pub anchor: bool,
    /// Entry time.
    pub time: Timestamp,
}

/// A certified checkpoint that equals this node's own.
#[derive(Debug, Clone)]
pub struct Certified {
    /// The certificate.
    pub certified: CertifiedCheckpoint,
    /// This node's own tree at that size, compared with it.
    pub own: CheckpointRef,
    /// Raft index of its entry.
    pub log_index: u64,
}

/// The decision on a command, certified.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The outcome.
    pub outcome: Outcome,
    /// Its leaf; `None` for what leaves none.
    pub leaf: Option<CertifiedLeaf>,
    /// When this node had applied it.
    pub applied_at: Instant,
}

/// Why no decision came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// The state machine refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not committed, or not certified, in time.
    #[error("no quorum decided in time")]
    NoQuorum,
    /// Too many wait already.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The node is stopping.
    #[error("the node is shutting down")]
    ShuttingDown,
}

struct AppliedOutcome {
    outcome: Outcome,
    leaf: Option<AppliedLeaf>,
    size: TreeSize,
    at: Instant,
}

#[derive(Default)]
struct Authorisations {
    waiting: HashMap<RequestId, Vec<Waiting>>,
    seen: HashMap<RequestId, Found>,
    order: VecDeque<(Instant, RequestId)>,
}

/// A leaf, and the tree's size with which it is certified.
type Found = (AppliedLeaf, TreeSize);

/// Who asks for an authorisation, by the connection that the head came on.
struct Waiting {
    connection: ConnectionId,
    answer: oneshot::Sender<Found>,
}

impl Authorisations {
    /// The authorisation of a request, or a promise of it. Only who has its connection takes it away: any relay may name any
    /// request beside a connection of its own.
    fn ask(
        &mut self,
        request: RequestId,
        connection: ConnectionId,
    ) -> Result<Result<Found, oneshot::Receiver<Found>>, DecideError> {
        if let Some(found) = self.seen.get(&request).cloned() {
            if authorised(&found.0).is_some_and(|a| a.connection == connection) {
                self.seen.remove(&request);
            }
            return Ok(Ok(found));
        }
        self.waiting.retain(|_, all| {
            all.retain(|w| !w.answer.is_closed());
            !all.is_empty()
        });
        if self.waiting.values().map(Vec::len).sum::<usize>() >= AUTHORISATIONS_MAX {
            return Err(DecideError::Overloaded);
        }
        let (answer, promise) = oneshot::channel();
        self.waiting.entry(request).or_default().push(Waiting { connection, answer });
        Ok(Err(promise))
    }

    /// Tells whoever waits; kept unless one of them has the request's connection.
    fn found(&mut self, request: RequestId, connection: ConnectionId, found: &Found, now: Instant) {
        let mut taken = false;
        for waiting in self.waiting.remove(&request).unwrap_or_default() {
            let told = waiting.answer.send(found.clone()).is_ok();
            taken |= told && waiting.connection == connection;
        }
        if !taken {
            self.keep(request, found.clone(), now);
        }
    }

    fn keep(&mut self, request: RequestId, found: Found, now: Instant) {
        if self.seen.insert(request, found).is_none() {
            self.order.push_back((now, request));
        }
        // Of a route without a credential the keyer never asks.
        while let Some(&(since, old)) = self.order.front()
            && (self.order.len() > AUTHORISATIONS_MAX || now - since > AUTHORISATION_KEPT)
        {
            self.order.pop_front();
            self.seen.remove(&old);
        }
    }
}

/// Digests of the last commands decided: a courier stops carrying those.
#[derive(Default)]
struct DecidedLately {
    seen: HashSet<Hash>,
    order: VecDeque<(Instant, Hash)>,
}

impl DecidedLately {
    fn push(&mut self, digests: impl Iterator<Item = Hash>, now: Instant) {
        for digest in digests {
            if self.seen.insert(digest) {
                self.order.push_back((now, digest));
            }
        }
        while let Some(&(since, old)) = self.order.front()
            && (self.order.len() > AUTHORISATIONS_MAX || now - since > DECIDED_KEPT)
        {
            self.order.pop_front();
            self.seen.remove(&old);
        }
    }
}

/// What leaves this node for the leader.
///
/// Every second one is a command: boxing it would cost each request.
#[derive(Debug)]
pub enum Outgoing {
    /// A command and the blobs it names.
    Command(Command, Vec<Vec<u8>>),
    /// A client's command that another node's leader did not take.
    Shown(Command),
    /// A settlement, to be signed in a batch.
    Settlement(Settlement),
    /// An alarm, to be signed.
    Alarm(Alarm),
    /// Another statement of this node, to be signed.
    Node(NodeCommand),
}

struct Inner {
    me: NodeId,
    cluster: Hash,
    origin: Origin,
    state: RwLock<State>,
    ahead: ArcSwap<VerifiedAhead>,
    ahead_turn: Arc<Semaphore>,
    view: ArcSwap<View>,
    view_changed: watch::Sender<u64>,
    /// As that, but only for batches after which the policy is another, or who counts.
    standing_changed: watch::Sender<u64>,
    tiles: ArcSwap<TileReader>,
    waiters: Mutex<HashMap<Hash, Vec<oneshot::Sender<AppliedOutcome>>>>,
    authorisations: Mutex<Authorisations>,
    decided: Mutex<DecidedLately>,
    progress: Mutex<Progress>,
    certified: watch::Sender<Option<Arc<Certified>>>,
    /// Somebody waits for a certificate of at least this size.
    wanted: watch::Sender<TreeSize>,
    outgoing: mpsc::Sender<Outgoing>,
    clock: Clock,
}

/// Handle to this node's view; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

/// The only one who applies; owned by Raft's state machine worker.
pub struct Applier<B> {
    ledger: Ledger,
    tiles: TileStore,
    tiles_dir: PathBuf,
    blobs: B,
    applied: mpsc::UnboundedSender<AppliedCheckpoint>,
    on_leaf: LeafHook,
}

/// Called with every applied leaf, in order; must not block.
pub type LeafHook = Box<dyn Fn(&AppliedLeaf) + Send + Sync>;

/// What a ledger starts from.
pub struct Start<B> {
    /// This node.
    pub me: NodeId,
    /// From a snapshot or genesis.
    pub state: State,
    /// Raft index of the last entry in it.
    pub log_index: u64,
    /// Open at the state's tree size.
    pub tiles: TileStore,
    /// Its folder.
    pub tiles_dir: PathBuf,
    /// What entries name.
    pub blobs: B,
    /// Sees every leaf.
    pub on_leaf: LeafHook,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Builds the pair. `applied` receives every batch's checkpoint in order; `outgoing` is read by the proposer.
    pub fn new<B: Blobs>(
        start: Start<B>,
        applied: mpsc::UnboundedSender<AppliedCheckpoint>,
        outgoing: mpsc::Sender<Outgoing>,
    ) -> (Self, Applier<B>) {
        Self::with_clock(start, applied, outgoing, Clock::System)
    }

    /// As [`Self::new`], by another clock; a simulation's also says that nothing may leave the caller's thread.
    pub fn with_clock<B: Blobs>(
        start: Start<B>,
        applied: mpsc::UnboundedSender<AppliedCheckpoint>,
        outgoing: mpsc::Sender<Outgoing>,
        clock: Clock,
    ) -> (Self, Applier<B>) {
        let Start { me, state, log_index, tiles, tiles_dir, blobs, on_leaf } = start;
        let inner = Inner {
            me,
            cluster: state.cluster(),
            origin: state.origin().clone(),
            view: ArcSwap::from_pointee(View::of(&state, log_index)),
            view_changed: watch::Sender::new(log_index),
            standing_changed: watch::Sender::new(log_index),
            ahead: ArcSwap::from_pointee(state.verified_ahead().clone()),
            ahead_turn: Arc::new(Semaphore::new(1)),
            state: RwLock::new(state),
            tiles: ArcSwap::from_pointee(tiles.reader()),
            waiters: Mutex::default(),
            authorisations: Mutex::default(),
            decided: Mutex::default(),
            progress: Mutex::default(),
            certified: watch::Sender::new(None),
            wanted: watch::Sender::new(TreeSize::ZERO),
            outgoing,
            clock,
        };
        let ledger = Self { inner: Arc::new(inner) };
        (ledger.clone(), Applier { ledger, tiles, tiles_dir, blobs, applied, on_leaf })
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }
    /// Genesis digest.
    pub fn cluster(&self) -> Hash {
        self.inner.cluster
    }
    /// Now, by this node's clock.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }
    /// The tlog's name.
    pub fn origin(&self) -> &Origin {
        &self.inner.origin
    }
    /// The current view.
    pub fn view(&self) -> Arc<View> {
        self.inner.view.load_full()
    }
    /// Changes with every applied batch.
    pub fn view_changed(&self) -> watch::Receiver<u64> {
        self.inner.view_changed.subscribe()
    }
    /// Changes with the batches that change the policy or who is attested: a task that wants to know no more is not woken in
    /// the moment in which requests wait for the processor.
    pub fn standing_changed(&self) -> watch::Receiver<u64> {
        self.inner.standing_changed.subscribe()
    }
    /// The newest certified checkpoint.
    pub fn certified(&self) -> watch::Receiver<Option<Arc<Certified>>> {
        self.inner.certified.subscribe()
    }
    /// The largest size that anybody here waited for a certificate of.
    pub(crate) fn wanted(&self) -> watch::Receiver<TreeSize> {
        self.inner.wanted.subscribe()
    }
    /// The tiles.
    pub fn tiles(&self) -> Arc<TileReader> {
        self.inner.tiles.load_full()
    }
    /// A short look at the whole state; do nothing slow in it.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.inner.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends something to the leader without waiting for its outcome; false when the queue is full.
    pub fn send(&self, outgoing: Outgoing) -> bool {
        self.inner.outgoing.try_send(outgoing).is_ok()
    }
    /// Queues a settlement for the next signed batch of them.
    pub async fn settle(&self, settlement: Settlement) {
        // A full queue holds the relay's task, not the request: its bytes are through already.
        let _closed = self.inner.outgoing.send(Outgoing::Settlement(settlement)).await;
    }
    /// Raises an alarm.
    pub fn alarm(&self, alarm: Alarm) {
        if !self.send(Outgoing::Alarm(alarm)) {
            tracing::warn!("an alarm was dropped: the queue to the leader is full");
        }
    }

    /// Proposes a command and waits until its outcome is under a certified checkpoint.
    pub async fn decide(
        &self,
        command: Command,
        blobs: Vec<Vec<u8>>,
        within: Duration,
    ) -> Result<Decided, DecideError> {
        let deadline = Instant::now() + within;
        let applied = self.propose(command, blobs, deadline).await?;
        let certified = self.certified_at(applied.size, deadline).await?;
        let leaf = match &applied.leaf {
            Some(leaf) => Some(
                certified.certified.applied_leaf(leaf, certified.own).map_err(|_| DecideError::NoQuorum)?,
            ),
            None => None,
        };
        match applied.outcome {
            Outcome::Refused(refusal) => Err(refusal.into()),
            outcome => Ok(Decided { outcome, leaf, applied_at: applied.at }),
        }
    }

    /// Proposes a command and waits until it is applied here. Only for evidence and recovery, which nothing is forwarded
    /// on, and which must go on while nothing can be certified.
    pub async fn decide_applied(
        &self,
        command: Command,
        blobs: Vec<Vec<u8>>,
        within: Duration,
    ) -> Result<Outcome, DecideError> {
        match self.propose(command, blobs, Instant::now() + within).await?.outcome {
            Outcome::Refused(refusal) => Err(refusal.into()),
            outcome => Ok(outcome),
        }
    }

    async fn propose(
        &self,
        command: Command,
        blobs: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Result<AppliedOutcome, DecideError> {
        let digest = command.digest();
        let (tx, rx) = oneshot::channel();
        {
            let mut waiters = lock(&self.inner.waiters);
            if waiters.len() >= WAITERS_MAX {
                waiters.retain(|_, w| {
                    w.retain(|s| !s.is_closed());
                    !w.is_empty()
                });
                if waiters.len() >= WAITERS_MAX {
                    return Err(DecideError::Overloaded);
                }
            }
            waiters.entry(digest).or_default().push(tx);
        }
        if !self.send(Outgoing::Command(command, blobs)) {
            lock(&self.inner.waiters).remove(&digest);
            return Err(DecideError::Overloaded);
        }
        match tokio::time::timeout_at(deadline, rx).await {
            Ok(applied) => applied.map_err(|_| DecideError::ShuttingDown),
            Err(_) => {
                let mut waiters = lock(&self.inner.waiters);
                if let Some(w) = waiters.get_mut(&digest) {
                    w.retain(|s| !s.is_closed());
                    if w.is_empty() {
                        waiters.remove(&digest);
                    }
                }
                Err(DecideError::NoQuorum)
            }
        }
    }

    /// Checks the signatures of a batch while its entry is on its way to the disks, so that applying it need not. One batch at a
    /// time: while one is checked, others are left to `apply`, so that nobody can have this node check without end.
    pub fn verify_ahead(&self, commands: Vec<Command>) {
        if commands.is_empty() {
            return;
        }
        let Ok(turn) = Arc::clone(&self.inner.ahead_turn).try_acquire_owned() else { return };
        if commands.len() > COMMANDS_MAX || matches!(self.inner.clock, Clock::Given(_)) {
            return;
        }
        let ledger = self.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let (view, ahead) = (ledger.view(), ledger.inner.ahead.load_full());
            let boot_key = |node| view.attested(node).map(|boot| PublicKey(boot.cosign));
            let token_key = |id: &TokenId| ledger.read(|state| state.token(id).map(|r| r.token.key));
            for command in &commands {
                ahead.verify(ledger.inner.cluster, command, &view.policy, token_key, boot_key);
            }
        });
    }

    /// Whether a client that the policy in force names signed this.
    pub fn is_signed_by_client(&self, command: &Command) -> bool {
        let view = self.view();
        let token_key = |id: &TokenId| self.read(|state| state.token(id).map(|r| r.token.key));
        VerifiedAhead::is_by_client(self.inner.cluster, command, &view.policy, token_key)
    }

    /// Waits until the authorisation of a request is under a certified checkpoint, in this node's own view.
    pub async fn authorisation(
        &self,
        request: RequestId,
        connection: ConnectionId,
        within: Duration,
    ) -> Result<CertifiedAuthorisation, DecideError> {
        let deadline = Instant::now() + within;
        let known = lock(&self.inner.authorisations).ask(request, connection)?;
        let (leaf, size) = match known {
            Ok(found) => found,
            Err(promise) => tokio::time::timeout_at(deadline, promise)
                .await
                .map_err(|_| DecideError::NoQuorum)?
                .map_err(|_| DecideError::ShuttingDown)?,
        };
        let certified = match self.certified_at(size, deadline).await {
            Ok(certified) => certified,
            Err(error) => {
                // It may be certified yet, and who asks again has to hear of it.
                lock(&self.inner.authorisations).keep(request, (leaf, size), Instant::now());
                return Err(error);
            }
        };
        let leaf =
            certified.certified.applied_leaf(&leaf, certified.own).map_err(|_| DecideError::NoQuorum)?;
        leaf.authorisation().ok_or(DecideError::NoQuorum)
    }

    /// Waits for a certified checkpoint of at least this size.
    pub async fn certified_at(
        &self,
        size: TreeSize,
        deadline: Instant,
    ) -> Result<Arc<Certified>, DecideError> {
        let mut watch = self.inner.certified.subscribe();
        self.inner.wanted.send_if_modified(|wanted| {
            let more = *wanted < size;
            *wanted = size.max(*wanted);
            more
        });
        let reached = watch.wait_for(|c| c.as_ref().is_some_and(|c| c.own.size >= size));
        let found = tokio::time::timeout_at(deadline, reached).await.map_err(|_| DecideError::NoQuorum)?;
        found.map_err(|_| DecideError::ShuttingDown)?.clone().ok_or(DecideError::NoQuorum)
    }

    /// A leaf under the newest certified checkpoint, with its certificate.
    pub fn leaf_certificate(&self, index: LeafIndex) -> Option<LeafCertificate> {
        let certified = self.inner.certified.borrow().clone()?;
        let tiles = self.tiles();
        let inclusion = tiles.inclusion(index, certified.own.size).ok()?;
        let bytes = tiles.leaf(index).ok()?.to_vec();
        Some(LeafCertificate {
            checkpoint: certified.own,
            cosignatures: certified.certified.cosignatures().to_vec(),
            leaf: ProvenLeaf { index, bytes, inclusion },
        })
    }

    /// Publishes a certificate whose root the cosigner compared with this node's own.
    pub(crate) fn publish(&self, certified: Certified) {
        self.inner.certified.send_if_modified(|current| {
            let newer = current.as_ref().is_none_or(|c| c.own.size < certified.own.size);
            if newer {
                *current = Some(Arc::new(certified));
            }
            newer
        });
    }

    /// Whether the outcome of a command was applied here lately.
    pub fn was_decided(&self, digest: &Hash) -> bool {
        lock(&self.inner.decided).seen.contains(digest)
    }

    /// How far the log went on here.
    pub fn progress(&self) -> Progress {
        *lock(&self.inner.progress)
    }

    fn resolve(&self, outcomes: Vec<(Hash, Outcome, Option<usize>)>, leaves: &[AppliedLeaf], size: TreeSize) {
        let at = Instant::now();
        lock(&self.inner.decided).push(outcomes.iter().map(|(digest, ..)| *digest), at);
        let mut waiters = lock(&self.inner.waiters);
        for (digest, outcome, position) in outcomes {
            let Some(waiting) = waiters.remove(&digest) else { continue };
            let leaf = position.and_then(|p| leaves.get(p));
            for waiter in waiting {
                let _gone =
                    waiter.send(AppliedOutcome { outcome: outcome.clone(), leaf: leaf.cloned(), size, at });
            }
        }
    }

    /// Remembers authorisations that name this node as keyer.
    fn remember(&self, leaves: &[AppliedLeaf], size: TreeSize) {
        let mut a = lock(&self.inner.authorisations);
        let now = Instant::now();
        for leaf in leaves {
            if let Some(mine) = authorised(leaf).filter(|a| a.keyer == self.inner.me) {
                a.found(mine.request, mine.connection, &(leaf.clone(), size), now);
            }
        }
    }
}

/// What a leaf authorises.
fn authorised(leaf: &AppliedLeaf) -> Option<&Authorise> {
    let Leaf::V1 { body, .. } = leaf.leaf();
    match body {
        LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => match &c.body {
            ClientCommand::Authorise(a) => Some(a),
            _ => None,
        },
        _ => None,
    }
}

impl<B: Blobs> Applier<B> {
    /// Applies one Raft entry's batch: the tree's size after it, and whether it is a snapshot point.
    pub fn apply(&mut self, entry: &[u8], log_index: u64) -> Result<(TreeSize, bool), StoreError> {
        let inner = &self.ledger.inner;
        let before = inner.view.load_full();
        let (applied, view) = {
            let mut state = inner.state.write().unwrap_or_else(PoisonError::into_inner);
            let applied = state.apply(entry, &self.blobs);
            let view = View::of(&state, log_index);
            (applied, view)
        };
        // Before anybody hears of it: once it is certified it is proven from the tiles.
        let (size, root) = self.tiles.append(&applied.leaf_bytes)?;
        // The tiles and the state grow from the same leaves; if they ever differ, nothing here can be trusted.
        assert_eq!(
            (size, root),
            (applied.checkpoint.size, applied.checkpoint.root),
            "tiles and state disagree"
        );
        let (time, stands) = (view.time, view.stands_as(&before));
        let skew_ms = view.policy.attestation.clock_skew_ms;
        inner.view.store(Arc::new(view));
        let _stopping = self.applied.send(AppliedCheckpoint {
            audience: Audience::of(&applied.leaves, applied.anchor || is_sample(before.time, time)),
            log_index,
            checkpoint: applied.checkpoint,
            certifiers: applied.certifiers,
            anchor: applied.anchor,
            time,
        });
        let commands = applied.outcomes.len();
        self.ledger.resolve(applied.outcomes, &applied.leaves, size);
        // After what was decided: whoever sees that the log went on sees with what.
        lock(&inner.progress).step(log_index, commands, entry.len(), time, inner.clock.now(), skew_ms);
        self.ledger.remember(&applied.leaves, size);
        for leaf in &applied.leaves {
            (self.on_leaf)(leaf);
        }
        inner.view_changed.send_replace(log_index);
        if !stands {
            inner.standing_changed.send_replace(log_index);
        }
        Ok((size, applied.snapshot_point))
    }

    /// The state's bytes and the tree's tail, for a snapshot; what the tail stands on is made durable first, since Raft
    /// will forget the entries.
    pub fn content(&mut self) -> Result<(Vec<u8>, StoreTail), StoreError> {
        self.tiles.sync()?;
        Ok((self.ledger.read(State::to_bytes), self.tiles.tail()))
    }

    /// Replaces everything by an installed snapshot.
    pub fn reset(&mut self, state: State, tail: &StoreTail, log_index: u64) -> Result<(), StoreError> {
        let view = View::of(&state, log_index);
        self.tiles = TileStore::open(&self.tiles_dir, tail)?;
        let inner = &self.ledger.inner;
        inner.tiles.store(Arc::new(self.tiles.reader()));
        inner.ahead.store(Arc::new(state.verified_ahead().clone()));
        *inner.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        inner.view.store(Arc::new(view));
        inner.view_changed.send_replace(log_index);
        inner.standing_changed.send_replace(log_index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::testing::{CLIENT, Fleet, Mesh};

    /// Time bounds what is remembered, not only a number that a quiet mesh takes days to reach.
    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut mesh = Mesh::four();
        let pool = mesh.open_pool();
        let (first, second) = (mesh.authorise(&pool), mesh.authorise(&pool));
        let found = |id| -> Found {
            let mut leaves =
                mesh.applied.iter().flat_map(|a| a.leaves.iter().map(|l| (l, a.checkpoint.size)));
            let mine =
                |(leaf, _): &(&AppliedLeaf, TreeSize)| authorised(leaf).is_some_and(|a| a.request == id);
            let (leaf, size) = leaves.find(mine).unwrap();
            (leaf.clone(), size)
        };
        let mut remembered = Authorisations::default();
        let begun = Instant::now();
        remembered.keep(first, found(first), begun);
        let later = begun + AUTHORISATION_KEPT;
        remembered.keep(second, found(second), later);
        assert_eq!(remembered.seen.len(), 2, "a request may live as long");
        remembered.keep(second, found(second), later + Duration::from_secs(1));
        assert!(remembered.seen.contains_key(&second) && remembered.seen.len() == 1);
        assert_eq!(remembered.order.len(), 1);

        let mut decided = DecidedLately::default();
        decided.push([Hash([1; 32])].into_iter(), begun);
        decided.push([Hash([2; 32])].into_iter(), begun + DECIDED_KEPT + Duration::from_secs(1));
        assert!(!decided.seen.contains(&Hash([1; 32])) && decided.seen.contains(&Hash([2; 32])));
        assert_eq!((decided.seen.len(), decided.order.len()), (1, 1));
    }

    #[test]
    fn who_acts_on_a_batch_hears_of_it_at_once_and_everybody_of_anything_unusual() {
        let mut mesh = Mesh::four();
        let heard = |mesh: &mut Mesh, commands| {
            let applied = mesh.apply(commands);
            (Audience::of(&applied.leaves, false), Audience::of(&applied.leaves, true))
        };
        let pool = mesh.open_pool();
        let both = Audience::Nodes(BTreeSet::from([pool.relay, pool.keyer]));
        let state = mesh.state().clone();
        let request = mesh.fleet.request(&state, &pool);
        let id = request.request;
        let authorise = mesh.fleet.client(CLIENT, ClientCommand::Authorise(request));
        assert_eq!(heard(&mut mesh, vec![authorise.clone()]), (both.clone(), Audience::All));
        // A refusal is waited for too.
        assert_eq!(heard(&mut mesh, vec![authorise]).0, both);
        let report = mesh.fleet.client(CLIENT, ClientCommand::Report(vec![Fleet::report(id)]));
        let settle = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![Fleet::settlement(id)]));
        assert_eq!(heard(&mut mesh, vec![report, settle]).0, Audience::Nodes(BTreeSet::new()));
        let evidence = mesh.evidence(1);
        assert_eq!(heard(&mut mesh, vec![evidence]).0, Audience::All);
        let outsider = mesh.fleet.nodes.keys().copied().find(|n| *n != pool.relay && *n != pool.keyer);
        assert!(!both.includes(outsider.unwrap()) && both.includes(pool.keyer));
    }
}
