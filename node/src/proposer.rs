//! The way of a command to the leader, and the leader's batches.
//!
//! Commands queue while a batch is in flight and go in the next one: no timers on the request's path, and throughput grows
//! with load. Evidence, recovery and admin commands go first, so that load never starves attestation; settlements and reports
//! wait for company, since nobody waits for them.
//!
//! A lying leader can withhold: whoever's command is not committed within a bound campaigns, rate-limited, and does not listen to
//! that leader for a while; a client's command is shown to the other nodes before, so that they see it themselves:
//! [`crate::raft::withheld`].
use crate::blobs::BlobStore;
use crate::boot::Boot;
use crate::ledger::{Ledger, Outgoing};
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::raft::Batch as RaftBatch;
use crate::raft::guard::TermGuard;
use crate::raft::types::Raft;
use crate::raft::withheld::{Author, HEARD_WITHIN, Progress, SHOWN_AFTER, Seen, WITHHELD, Waited, own_break};
use bytes::Bytes;
use quorate_core::command::{
    Batch, COMMANDS_MAX, Command, NodeCommand, NodeSigned, SETTLEMENTS_MAX, Settlement,
};
use quorate_core::command::{ClientCommand, ClientSigned};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{NodeId, Timestamp};
use quorate_proto::v1::ProposeRequest;
use quorate_transport::Connected;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of commands in a batch: well below the largest entry.
pub(crate) const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Commands queued at a leader before callers are turned away.
pub(crate) const QUEUE_MAX: usize = 16 * COMMANDS_MAX;
/// Of them, commands that one node has in a lane: a hostile one fills no queue but its own part.
const QUEUE_PER_NODE_MAX: usize = QUEUE_MAX / 4;
/// Evidence, recovery and admin commands of one node in the queue: it has one or two at a time, and they go before all others.
const FIRST_PER_NODE_MAX: usize = 8;
/// How long settlements and reports wait for company.
const LAZY: Duration = Duration::from_millis(200);
/// Then they wait for a moment in which nobody waits for a batch: so long nobody asked for one.
const CALM: Duration = Duration::from_millis(4);
/// Where no such moment comes, they go with whatever goes.
const LAZY_MAX: Duration = Duration::from_millis(250);
/// Then so much of a batch is theirs, before those that somebody waits for: a flood of these must not hold up settlements until
/// requests count as unsettled.
const LAZY_SHARE: usize = COMMANDS_MAX / 8;
/// An unanswered command is sent again to whoever leads then; a lazy one after [`LAZY_MAX`] more.
const RESEND: Duration = Duration::from_millis(300);
/// A leader whose batch is not committed by now begins a new term.
const STUCK: Duration = Duration::from_secs(3);
/// At most one campaign for a command that is not committed in this time, and one leader distrusted for it.
const CAMPAIGN_EVERY: Duration = Duration::from_secs(10);
/// Withheld commands shown to the other nodes at once, at most once in [`SHOWN_AFTER`]: one says enough.
pub(crate) const SHOWN_MAX: usize = 8;
/// Commands in one message to the leader: it takes no more than twice as many.
const PROPOSED_AT_ONCE: usize = 256;
/// How often the courier looks how long commands have waited.
const LOOK: Duration = Duration::from_millis(100);
/// Messages to the leader that wait for the connection; each holds all commands that came meanwhile.
const PROPOSALS_WAITING_MAX: usize = 64;
/// After this nobody waits for the outcome any more.
const FORGET: Duration = Duration::from_secs(10);

/// The leader's queue; filled by this node and by its peers' Propose calls.
#[derive(Clone, Default)]
pub struct Queue {
    inner: Arc<QueueInner>,
}

#[derive(Default)]
struct QueueInner {
    lanes: Mutex<Lanes>,
    filled: Notify,
}

#[derive(Default)]
struct Lane {
    commands: VecDeque<(NodeId, Command)>,
    of_node: HashMap<NodeId, usize>,
}

impl Lane {
    fn push(&mut self, from: NodeId, command: Command, per_node_max: usize) -> bool {
        let held = self.of_node.entry(from).or_default();
        if self.commands.len() >= QUEUE_MAX || *held >= per_node_max {
            return false;
        }
        *held += 1;
        self.commands.push_back((from, command));
        true
    }

    fn pop(&mut self) -> Option<Command> {
        let (from, command) = self.commands.pop_front()?;
        if let Some(held) = self.of_node.get_mut(&from) {
            *held = held.saturating_sub(1);
        }
        Some(command)
    }

    fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

#[derive(Default)]
struct Lanes {
    first: Lane,
    normal: Lane,
    lazy: Lane,
    lazy_since: Option<Instant>,
    /// When a command came that somebody waits for.
    normal_at: Option<Instant>,
}

impl Lanes {
    /// How long it is until the lazy commands may go; `None` when there are none.
    fn lazy_in(&self, now: Instant) -> Option<Duration> {
        let since = self.lazy_since?;
        let calm = self.normal_at.map_or(since, |at| at + CALM);
        let at = (since + LAZY).max(calm).min(since + LAZY_MAX);
        Some(at.saturating_duration_since(now))
    }
}

impl Queue {
    /// Adds a command that came from a node; false when its part is full.
    pub fn push(&self, from: NodeId, command: Command) -> bool {
        let mut lanes = self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let (lane, per_node_max) = if command.goes_first() {
            (&mut lanes.first, FIRST_PER_NODE_MAX)
        } else if is_lazy(&command) {
            lanes.lazy_since.get_or_insert_with(Instant::now);
            (&mut lanes.lazy, QUEUE_PER_NODE_MAX)
        } else {
            lanes.normal_at = Some(Instant::now());
            (&mut lanes.normal, QUEUE_PER_NODE_MAX)
        };
        if !lane.push(from, command, per_node_max) {
            return false;
        }
        drop(lanes);
        self.inner.filled.notify_one();
        true
    }

    /// How long it is until lazy commands may go.
    fn lazy_in(&self) -> Option<Duration> {
        self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner).lazy_in(Instant::now())
    }

    fn clear(&self) {
        *self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner) = Lanes::default();
    }

    /// What goes into the next batch; nothing while only lazy commands wait and may wait on.
    fn take(&self) -> Vec<Command> {
        let mut lanes = self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lazy_due = lanes.lazy_in(Instant::now()) == Some(Duration::ZERO);
        if lanes.first.is_empty() && lanes.normal.is_empty() && !lazy_due {
            return Vec::new();
        }
        let Lanes { first, normal, lazy, .. } = &mut *lanes;
        let (mut commands, mut bytes) = (Vec::new(), 0);
        let mut fill = |lane: &mut Lane, commands_max: usize, bytes_max: usize| {
            while commands.len() < commands_max && bytes < bytes_max {
                let Some(command) = lane.pop() else { break };
                bytes += encode(&command).len();
                commands.push(command);
            }
        };
        // It is short: see FIRST_PER_NODE_MAX.
        fill(first, COMMANDS_MAX, BATCH_BYTES_MAX);
        if lazy_due {
            fill(lazy, LAZY_SHARE, BATCH_BYTES_MAX / 8);
        }
        fill(normal, COMMANDS_MAX, BATCH_BYTES_MAX);
        if lazy_due {
            fill(lazy, COMMANDS_MAX, BATCH_BYTES_MAX);
        }
        if lanes.lazy.is_empty() {
            lanes.lazy_since = None;
        }
        commands
    }
}

fn is_lazy(command: &Command) -> bool {
    match command {
        Command::Client(ClientSigned { body: ClientCommand::Report(_), .. }) => true,
        Command::Node(NodeSigned { body: NodeCommand::Settle(_), .. }) => true,
        Command::Client(_)
        | Command::Node(_)
        | Command::Evidence(_)
        | Command::Recover(_)
        | Command::Policy(_) => false,
    }
}

/// Of what a node's courier carries, but for what others showed. A flood may hold up what nobody waits for.
fn author(command: &Command) -> Author {
    match command {
        Command::Evidence(_) | Command::Node(_) => Author::Own,
        Command::Client(_) if is_lazy(command) => Author::Other,
        Command::Client(_) => Author::Client,
        Command::Recover(_) | Command::Policy(_) => Author::Other,
    }
}

/// Whether this node leads, by Raft's own word.
pub fn leads(raft: &Raft, me: NodeId) -> bool {
    raft.metrics().borrow().current_leader == Some(me.0)
}

/// The leader's task: batches while this node leads.
pub async fn batch(raft: Raft, ledger: Ledger, queue: Queue, metrics: Arc<Metrics>) {
    let me = ledger.me();
    // Not all of Raft's metrics: they change several times with every entry.
    let mut server = raft.server_metrics();
    loop {
        if !leads(&raft, me) {
            queue.clear();
            let led = server.wait_for(|m| m.current_leader == Some(me.0)).await;
            if led.is_err() {
                return;
            }
            continue;
        }
        let commands = queue.take();
        #[cfg(feature = "danger-hostile")]
        let commands = crate::danger_hostile::censored(commands);
        if commands.is_empty() && !due(&ledger) {
            let filled = queue.inner.filled.notified();
            tokio::select! {
                biased;
                () = filled => {}
                () = tokio::time::sleep(queue.lazy_in().unwrap_or(LAZY)) => {}
                stopped = server.changed() => if stopped.is_err() { return },
            }
            continue;
        }
        metrics.proposed(commands.len());
        let batch = Batch { time: ledger.now(), proposer: me, commands };
        let Ok(entry) = RaftBatch::new(encode(&batch)) else {
            tracing::error!("a batch exceeded its bound: dropped");
            continue;
        };
        let written = meanwhile(raft.client_write(entry), || ledger.verify_ahead(batch.commands));
        match tokio::time::timeout(STUCK, written).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "a batch was not committed by this leader");
                // Its authors send again to whoever leads now.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(_) => new_term(&raft).await,
        }
    }
}

/// Sets something going, and does something else while it is underway: entries are on their way to the disks before their
/// signatures have the processor.
pub async fn meanwhile<T>(first: impl Future<Output = T>, then: impl FnOnce()) -> T {
    let mut first = std::pin::pin!(first);
    let begun = futures::poll!(first.as_mut());
    then();
    match begun {
        Poll::Ready(done) => done,
        Poll::Pending => first.await,
    }
}

/// Followers refuse a leader's own entries once they are too old for its term. Under a new term they are history that
/// someone has to finish, and pass; so a leader that is stuck, or that Raft resumed after a restart, begins one.
pub async fn new_term(raft: &Raft) {
    tracing::debug!("beginning a new term");
    if let Err(error) = raft.trigger().elect().await {
        tracing::debug!(%error, "cannot campaign");
    }
}

/// Whether something is due by time alone: a lapse, a deadline, or the digest after a snapshot point.
fn due(ledger: &Ledger) -> bool {
    let view = ledger.view();
    view.digest_due || view.next_due.is_some_and(|t| ledger.now() > t)
}

/// A command on its way.
struct Underway {
    /// They go in the order in which they came.
    number: u64,
    command: Bytes,
    parsed: Command,
    blobs: Vec<Bytes>,
    author: Author,
    first_sent: Instant,
    last_sent: Instant,
    /// Since when it is not this node's own fault that it waits.
    campaigns_from: Instant,
    waited: Waited,
    shown: bool,
}

impl Underway {
    /// How long an answer may take before it is sent again.
    fn patience(&self) -> Duration {
        if is_lazy(&self.parsed) { LAZY_MAX + RESEND } else { RESEND }
    }

    /// How old it is when its node campaigns for it; whoever it was shown to does not.
    fn campaigns_after(&self) -> Option<Duration> {
        match self.author {
            Author::Own | Author::Other => Some(WITHHELD),
            Author::Client => Some(SHOWN_AFTER + WITHHELD),
            Author::Shown => None,
        }
    }
}

/// When this node last did something against a leader.
#[derive(Default)]
struct Lately {
    /// By a clock that nobody sets, and by the machine's.
    looked: Option<(Instant, Timestamp)>,
    showed: Option<Instant>,
    campaigned: Option<Instant>,
    distrusted: Option<Instant>,
}

/// Every node's task: signs what is this node's own, and brings commands to the leader until their outcome shows.
pub struct Courier<P = Peers> {
    /// View.
    pub ledger: Ledger,
    /// Keys.
    pub boot: Boot,
    /// Raft.
    pub raft: Raft,
    /// Links.
    pub peers: P,
    /// The local queue, for when this node leads.
    pub queue: Queue,
    /// Blobs.
    pub blobs: BlobStore,
    /// From the ledger.
    pub outgoing: mpsc::Receiver<Outgoing>,
    /// Remembers a leader that withheld.
    pub guard: TermGuard,
}

impl<P: WayToLeader> Courier<P> {
    /// Runs until the node stops.
    pub async fn run(mut self) {
        let mut underway: HashMap<Hash, Underway> = HashMap::new();
        let mut settlements: Vec<Settlement> = Vec::new();
        let mut settle_at: Option<Instant> = None;
        let mut lately = Lately::default();
        let mut number = 0u64;
        let mut proposals = None;
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut inbox = Vec::with_capacity(256);
        #[cfg(feature = "danger-hostile")]
        let mut danger_campaigned = None;
        loop {
            let (mut fresh, mut shown) = (Vec::new(), Vec::new());
            tokio::select! {
                biased;
                n = self.outgoing.recv_many(&mut inbox, 256) => {
                    if n == 0 {
                        return;
                    }
                    for item in inbox.drain(..) {
                        match item {
                            Outgoing::Command(command, blobs) => fresh.push((command, blobs)),
                            Outgoing::Shown(command) => shown.push(command),
                            Outgoing::Settlement(s) => {
                                settlements.push(s);
                                settle_at.get_or_insert_with(|| Instant::now() + LAZY);
                            }
                            Outgoing::Alarm(alarm) => fresh.push((self.sign(NodeCommand::Alarm(alarm)), Vec::new())),
                            Outgoing::Node(body) => fresh.push((self.sign(body), Vec::new())),
                        }
                    }
                }
                _ = tick.tick() => {}
            }
            if settlements.len() >= SETTLEMENTS_MAX || settle_at.is_some_and(|t| Instant::now() >= t) {
                settle_at = None;
                let mut all = std::mem::take(&mut settlements);
                while !all.is_empty() {
                    let rest = all.split_off(all.len().min(SETTLEMENTS_MAX));
                    fresh.push((
                        self.sign(NodeCommand::Settle(std::mem::replace(&mut all, rest))),
                        Vec::new(),
                    ));
                }
            }
            #[cfg(feature = "danger-hostile")]
            self.danger_hostile(&mut fresh, &mut danger_campaigned).await;
            let now = Instant::now();
            // How far the log went on, and only then what it decided: nothing that it decided so far is still waited for.
            let progress = self.ledger.progress();
            // Outcomes that this node applied need no more carrying.
            underway.retain(|digest, u| !self.ledger.was_decided(digest) && now - u.first_sent < FORGET);
            self.watch_leader(&mut underway, &mut lately, progress, now).await;
            let mut due: Vec<Hash> = Vec::new();
            let fresh = fresh.into_iter().map(|(command, blobs)| (author(&command), command, blobs));
            let shown = shown.into_iter().filter(|command| author(command) == Author::Client);
            let shown = shown.map(|command| (Author::Shown, command, Vec::new()));
            for (author, command, blobs) in fresh.chain(shown) {
                let bytes: Bytes = encode(&command).into();
                let digest = quorate_core::tlog::sha256(&bytes);
                // Its own clients' come first: what others show does not begin anew what this node waits for.
                if author == Author::Shown
                    && (underway.contains_key(&digest) || self.ledger.was_decided(&digest))
                {
                    continue;
                }
                let blobs = blobs.into_iter().map(Bytes::from).collect();
                number = number.wrapping_add(1);
                let entry = Underway {
                    number,
                    command: bytes,
                    parsed: command,
                    blobs,
                    author,
                    first_sent: now,
                    last_sent: now,
                    campaigns_from: now,
                    waited: Waited::default(),
                    shown: false,
                };
                underway.insert(digest, entry);
                due.push(digest);
            }
            let again = underway.iter().filter(|(_, u)| now - u.last_sent > u.patience());
            let mut again: Vec<(u64, Hash)> = again.map(|(digest, u)| (u.number, *digest)).collect();
            again.sort_unstable();
            due.extend(again.into_iter().map(|(_, digest)| digest));
            for due in due.chunks(PROPOSED_AT_ONCE) {
                self.carry(&mut underway, due, &mut proposals);
            }
        }
    }

    /// Counts how long the leader has had each command, shows clients' to the others, campaigns, distrusts.
    async fn watch_leader(
        &self,
        underway: &mut HashMap<Hash, Underway>,
        lately: &mut Lately,
        progress: Progress,
        now: Instant,
    ) {
        let clock = self.ledger.now();
        let (before, clock_before) = lately.looked.unwrap_or((now, clock));
        let passed = now - before;
        if lately.looked.is_some() && passed < LOOK {
            return;
        }
        lately.looked = Some((now, clock));
        let every = |at: Option<Instant>, time: Duration| at.is_none_or(|at| now - at > time);
        let (me, view) = (self.ledger.me(), self.ledger.view());
        let (leader, term, received) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let leader = metrics.current_leader.map(NodeId);
            (leader, metrics.vote.leader_id.term, metrics.last_log_index.unwrap_or(0))
        };
        // What a leader rightly does not take is not withheld; what is this node's own fault is nobody else's.
        let counts = view.counts(me, &self.boot.keys, clock);
        let own_break = own_break(passed, clock_before, clock) || leader == Some(me);
        let linked = leader.is_some_and(|leader| self.peers.has_link(leader));
        for u in underway.values_mut() {
            if own_break || !(counts || u.parsed.goes_first()) {
                u.campaigns_from = now;
                u.waited.begin_anew();
            } else if u.author != Author::Own && !linked {
                u.waited.begin_anew();
            }
        }
        if own_break {
            return;
        }
        let mut waiting: Vec<&mut Underway> =
            underway.values_mut().filter(|u| counts || u.parsed.goes_first()).collect();
        let heard = leader.filter(|l| self.guard.was_heard(l.0, term, HEARD_WITHIN, now.into_std()));
        match heard {
            Some(leader) => {
                let seen = Seen { leader, term, received, progress };
                let of = |u: &Underway| linked || u.author == Author::Own;
                waiting.iter_mut().filter(|u| of(u)).for_each(|u| u.waited.step(passed, seen));
                let blamed = waiting.iter().any(|u| u.waited.blames(u.author, leader));
                if blamed && every(lately.distrusted, CAMPAIGN_EVERY) {
                    (lately.campaigned, lately.distrusted) = (Some(now), Some(now));
                    let hostile_max = view.policy.hostile_nodes_max;
                    let lasts = self.guard.distrust(leader.0, hostile_max, now.into_std());
                    tracing::warn!(leader = leader.0, ?lasts, "the leader withholds: not listening to it");
                    return new_term(&self.raft).await;
                }
            }
            None => waiting.iter_mut().for_each(|u| u.waited.pause()),
        }
        let overdue =
            |u: &&mut Underway| u.campaigns_after().is_some_and(|time| now - u.campaigns_from > time);
        if every(lately.campaigned, CAMPAIGN_EVERY) && waiting.iter().any(overdue) {
            lately.campaigned = Some(now);
            tracing::warn!("a command of this node is not committed in time: campaigning");
            return new_term(&self.raft).await;
        }
        let Some(leader) = heard.filter(|_| every(lately.showed, SHOWN_AFTER)) else { return };
        waiting.retain(|u| u.author == Author::Client && !u.shown && u.waited.may_be_shown(leader));
        if waiting.is_empty() {
            return;
        }
        lately.showed = Some(now);
        waiting.sort_unstable_by_key(|u| u.number);
        let mut request = ProposeRequest { withheld: true, ..ProposeRequest::default() };
        for u in waiting.into_iter().take(SHOWN_MAX) {
            u.shown = true;
            request.commands.push(u.command.clone());
        }
        self.peers.show(leader, &request);
    }

    /// A hostile node campaigns when it likes, and as the leader puts into the log what it likes.
    #[cfg(feature = "danger-hostile")]
    async fn danger_hostile(
        &self,
        fresh: &mut Vec<(Command, Vec<Vec<u8>>)>,
        campaigned: &mut Option<Instant>,
    ) {
        if leads(&self.raft, self.ledger.me()) {
            fresh.extend(crate::danger_hostile::injected());
        } else if crate::danger_hostile::is("leader:campaign")
            && campaigned.is_none_or(|c| c.elapsed() > Duration::from_secs(1))
        {
            *campaigned = Some(Instant::now());
            new_term(&self.raft).await;
        }
    }

    fn sign(&self, body: NodeCommand) -> Command {
        Command::Node(NodeSigned::sign(self.ledger.cluster(), self.ledger.me(), body, &self.boot.cosign))
    }

    fn carry(&self, underway: &mut HashMap<Hash, Underway>, due: &[Hash], open: &mut Option<P::Open>) {
        if due.is_empty() {
            return;
        }
        let now = Instant::now();
        let Some(leader) = self.raft.metrics().borrow().current_leader.map(NodeId) else { return };
        if leader == self.ledger.me() {
            for digest in due {
                let Some(u) = underway.get_mut(digest) else { continue };
                u.last_sent = now;
                let kept = u.blobs.iter().try_for_each(|b| self.blobs.put(b).map(drop));
                match kept {
                    Ok(()) => drop(self.queue.push(leader, u.parsed.clone())),
                    Err(error) => tracing::error!(%error, "cannot keep a blob"),
                }
            }
            return;
        }
        let Some(way) = self.peers.way_to(leader, open) else { return };
        let mut request = ProposeRequest::default();
        for digest in due {
            let Some(u) = underway.get_mut(digest) else { continue };
            u.last_sent = now;
            request.commands.push(u.command.clone());
            request.blobs.extend(u.blobs.iter().cloned());
        }
        // One that does not fit is sent again, as one that is lost.
        if way.try_send(request).is_err() {
            tracing::debug!("a proposal waits for the leader");
        }
    }
}

/// How proposals reach a leader.
pub trait WayToLeader {
    /// What stays open between two proposals.
    type Open;
    /// Where proposals to this leader go; nowhere while there is no connection.
    fn way_to<'o>(
        &self,
        leader: NodeId,
        open: &'o mut Option<Self::Open>,
    ) -> Option<&'o mpsc::Sender<ProposeRequest>>;
    /// Whether what is sent to this leader leaves this node.
    fn has_link(&self, leader: NodeId) -> bool;
    /// Shows what this leader does not take to all others that can be reached. Nobody waits for it.
    fn show(&self, leader: NodeId, withheld: &ProposeRequest);
}

impl WayToLeader for Peers {
    type Open = Proposals;

    fn way_to<'o>(
        &self,
        leader: NodeId,
        open: &'o mut Option<Proposals>,
    ) -> Option<&'o mpsc::Sender<ProposeRequest>> {
        let connected = self.connected(leader)?;
        if open.as_ref().is_none_or(|p| !p.leads_to(&connected)) {
            *open = Some(Proposals::open(self, connected));
        }
        open.as_ref().map(|p| &p.messages)
    }

    fn has_link(&self, leader: NodeId) -> bool {
        self.connected(leader).is_some()
    }

    fn show(&self, leader: NodeId, withheld: &ProposeRequest) {
        for node in self.nodes().into_iter().filter(|n| *n != leader) {
            let Some(mut client) = self.attested_client(node) else { continue };
            let withheld = withheld.clone();
            tokio::spawn(async move {
                let shown = tokio::time::timeout(SHOWN_AFTER, client.propose(withheld)).await;
                if !matches!(shown, Ok(Ok(_))) {
                    tracing::debug!(node = node.0, "a node was not shown what the leader withholds");
                }
            });
        }
    }
}

/// A stream of proposals, on one connection to a leader.
pub struct Proposals {
    connected: Arc<Connected>,
    messages: mpsc::Sender<ProposeRequest>,
}

impl Proposals {
    fn open(peers: &Peers, connected: Arc<Connected>) -> Self {
        let (messages, receiver) = mpsc::channel(PROPOSALS_WAITING_MAX);
        let mut client = peers.client_on(&connected);
        tokio::spawn(async move {
            if let Err(status) = client.propose_stream(ReceiverStream::new(receiver)).await {
                tracing::debug!(code = %status.code(), "the leader did not take a proposal");
            }
        });
        Self { connected, messages }
    }

    fn leads_to(&self, connected: &Arc<Connected>) -> bool {
        Arc::ptr_eq(&self.connected, connected) && !self.messages.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::command::Alarm;
    use quorate_core::testing::key;

    #[test]
    fn one_node_fills_no_queue_but_its_own_part() {
        let queue = Queue::default();
        let policy = || {
            let change =
                quorate_core::command::PolicyCommand { document: Hash([1; 32]), signatures: Vec::new() };
            Command::Policy(change)
        };
        let alarm = |n: u64| {
            let alarm = Alarm::Withheld { command: Hash([n as u8; 32]) };
            Command::Node(NodeSigned::sign(Hash([0; 32]), NodeId(n), NodeCommand::Alarm(alarm), &key("n")))
        };
        let (hostile, honest) = (NodeId(1), NodeId(2));
        let spam = alarm(1);
        assert_eq!(
            (0..2 * QUEUE_MAX).filter(|_| queue.push(hostile, spam.clone())).count(),
            QUEUE_PER_NODE_MAX
        );
        assert_eq!((0..99).filter(|_| queue.push(hostile, policy())).count(), FIRST_PER_NODE_MAX);
        assert!(queue.push(honest, alarm(2)));
        assert!(queue.push(honest, policy()));
        // What was taken makes room again.
        assert_eq!(queue.take().len(), COMMANDS_MAX);
        assert!(queue.push(hostile, policy()) && queue.push(hostile, spam));
    }

    #[test]
    fn what_nobody_waits_for_goes_when_nobody_waits() {
        let settle = || {
            Command::Node(NodeSigned::sign(
                Hash([0; 32]),
                NodeId(1),
                NodeCommand::Settle(Vec::new()),
                &key("n"),
            ))
        };
        let alarm = Alarm::Withheld { command: Hash([1; 32]) };
        let alarm =
            Command::Node(NodeSigned::sign(Hash([0; 32]), NodeId(2), NodeCommand::Alarm(alarm), &key("n")));
        let queue = Queue::default();
        let wind_back = |by: Duration| {
            let mut lanes = queue.inner.lanes.lock().unwrap();
            lanes.lazy_since = lanes.lazy_since.map(|t| t.checked_sub(by).unwrap());
        };
        assert!(queue.push(NodeId(1), settle()) && queue.take().is_empty());
        assert!(queue.lazy_in().is_some_and(|wait| wait > LAZY - CALM));
        // Due; but somebody has just asked for a batch, and does not wait for what is in it beside.
        wind_back(LAZY);
        assert!(queue.push(NodeId(2), alarm.clone()));
        assert_eq!(queue.take(), vec![alarm.clone()]);
        assert!(queue.take().is_empty());
        // Overdue: with whatever goes.
        wind_back(LAZY_MAX - LAZY);
        assert!(queue.push(NodeId(2), alarm.clone()));
        assert_eq!(queue.take(), vec![settle(), alarm.clone()]);
        assert_eq!(queue.lazy_in(), None);
        // Nor does a flood of what somebody waits for hold it up.
        while queue.push(NodeId(2), alarm.clone()) {}
        assert!(queue.push(NodeId(1), settle()));
        wind_back(LAZY_MAX);
        assert!(queue.take().contains(&settle()));
    }
}
