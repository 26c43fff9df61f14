//! What peers may ask. Who calls is decided anew for each request from the channel's key, against the attested set of that
//! moment; a peer that is only admitted in the channel may speak Raft, recovery and evidence.
use crate::blobs::BlobStore;
use crate::clock;
use crate::cosigner::{CosignerHandle, Signed};
use crate::ledger::{Ledger, Outgoing};
use crate::peers::{NotAdmitted, Peers, Standing};
use crate::proposer::{Queue, SHOWN_MAX, meanwhile};
use crate::raft::LogReader;
use crate::raft::guard::{self, Lie, TermGuard};
use crate::raft::network::Answer;
use crate::raft::types::{Entry, Raft, RaftNodeId, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::recovery::Contributor;
use crate::services::rate::Rate;
use crate::snapshots::{self, NodeSnapshots, Receiving};
use futures::{Stream, StreamExt as _};
use openraft::EntryPayload;
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
};
use quorate_core::command::{Batch, CheckpointRef, Command, Contribution};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::NodeId;
use quorate_core::policy::Policy;
use quorate_core::state::Blobs;
use quorate_core::tlog::{Cosignature, TreeSize};
use quorate_proto::COMMAND_BYTES_MAX;
use quorate_proto::v1;
use quorate_proto::v1::peer_server::Peer;
use quorate_transport::{Channel, PublicKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status, Streaming};

/// A policy that a membership follows is applied within this, or the leader sends the membership again.
const MEMBERSHIP_WAIT: Duration = Duration::from_millis(200);
/// So many versions of the policy may come before the members of the first of them are appended.
const POLICIES_OF_LATE: usize = 8;
/// Bytes of blobs that one node may have kept at once: its logs after a start, several times over.
const BLOB_BURST_BYTES: u64 = 64 * 1024 * 1024;
/// And in a second, from then on: a measurement list grows, and each length of it is a blob.
const BLOB_BYTES_PER_SECOND: u64 = 256 * 1024;

/// Bytes of its own evidence and statements that one node may have put into the log at once, and in a second from then on:
/// ten times what a relay settles under full load. Each becomes leaves that everybody keeps.
const STATEMENT_BURST_BYTES: u64 = 16 * 1024 * 1024;
/// See [`STATEMENT_BURST_BYTES`].
const STATEMENT_BYTES_PER_SECOND: u64 = 512 * 1024;

/// What each peer may have this node keep.
#[derive(Debug)]
pub struct Budgets {
    blobs: Rate<NodeId>,
    statements: Rate<NodeId>,
    shown: Rate<NodeId>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            blobs: Rate::new(BLOB_BURST_BYTES, BLOB_BYTES_PER_SECOND),
            statements: Rate::new(STATEMENT_BURST_BYTES, STATEMENT_BYTES_PER_SECOND),
            shown: Rate::new(SHOWN_MAX as u64, SHOWN_MAX as u64),
        }
    }
}

/// Commands in one proposal.
const PROPOSED_MAX: usize = 512;

/// The keyer's answer to a relay.
#[tonic::async_trait]
pub trait HeadChecker: Send + Sync + 'static {
    /// Checks the head that `relay` handed over.
    async fn check_head(&self, relay: NodeId, request: v1::CheckHeadRequest) -> v1::CheckHeadReply;
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct PeerService {
    /// View.
    pub ledger: Ledger,
    /// Raft.
    pub raft: Raft,
    /// Who is who.
    pub peers: Peers,
    /// The leader's queue.
    pub queue: Queue,
    /// Cosignatures.
    pub cosigner: CosignerHandle,
    /// Recovery.
    pub contributor: Contributor,
    /// Heads.
    pub keyer: Arc<dyn HeadChecker>,
    /// Blobs.
    pub blobs: BlobStore,
    /// Raft's log: what was applied here is never given up for a leader's word.
    pub log: LogReader,
    /// Counts the terms that peers begin.
    pub guard: TermGuard,
    /// Snapshots.
    pub snapshots: Arc<NodeSnapshots>,
    /// What peers may have kept.
    pub budgets: Arc<Budgets>,
    /// Snapshots on their way here.
    pub receiving: Arc<Receiving>,
}

type Reply<T> = Result<Response<T>, Status>;

fn bad(what: &'static str) -> Status {
    Status::invalid_argument(what)
}

fn channel<T>(request: &Request<T>) -> Result<Channel, Status> {
    request.extensions().get::<Channel>().cloned().ok_or_else(|| Status::internal("no channel"))
}

impl PeerService {
    /// Any member that proved itself, in the log or in the channel.
    fn member<T>(&self, request: &Request<T>) -> Result<Standing, Status> {
        self.standing(channel(request)?.peer_key())
    }

    fn standing(&self, key: PublicKey) -> Result<Standing, Status> {
        self.peers.standing(key).ok_or_else(|| Status::permission_denied("not a member that proved itself"))
    }

    /// A member whose key is an attested boot key now.
    fn attested<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        match self.member(request)? {
            Standing::Attested(node) => Ok(node),
            Standing::Admitted(_) => Err(Status::permission_denied("not attested in the log")),
        }
    }

    /// Whether a leader's log agrees with what was applied here. Among honest nodes it always does (Raft §5.4.3); a lying
    /// leader would have Raft truncate committed entries.
    async fn check_history(
        &self,
        from: NodeId,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<bool, Status> {
        let committed = self.log.committed().map_or(0, |l| l.index);
        let applied = self.ledger.view().log_index.max(committed);
        let theirs = rpc.prev_log_id.iter().chain(rpc.entries.iter().map(|e| &e.log_id));
        for log_id in theirs.filter(|l| l.index <= applied) {
            let ours = self.log.log_id_at(log_id.index).await.map_err(|e| {
                tracing::error!(error = crate::report::chain(&e), "cannot read Raft's log");
                Status::unavailable("cannot read the log")
            })?;
            // A purged entry is covered by a certified snapshot.
            if ours.is_some_and(|ours| ours != *log_id) {
                tracing::error!(
                    leader = from.0,
                    index = log_id.index,
                    "the leader's log conflicts with entries applied here: refused"
                );
                self.guard.conflicts(from.0, Instant::now());
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn my_vote(&self) -> Vote {
        self.raft.metrics().borrow().vote
    }

    fn check_leader(&self, node: NodeId, vote: &Vote) -> Result<(), Status> {
        let checked = self.guard.check_leader(&self.my_vote(), vote, Instant::now());
        checked.map_err(|lie| lied(node, lie))
    }

    /// Cuts the entries before a membership that no policy names. The policy may come with an entry that is not applied here
    /// yet: then the leader sends the rest again, and it fits.
    async fn cut_memberships(&self, from: NodeId, rpc: &mut AppendEntriesRequest<TypeConfig>) -> bool {
        let changes = |e: &Entry| matches!(e.payload, EntryPayload::Membership(_));
        // Raft refuses what comes from an earlier leader.
        if rpc.vote < self.my_vote() || !rpc.entries.iter().any(changes) {
            return false;
        }
        self.drop_held(rpc).await;
        let mut at = self.foreign_membership(rpc);
        if at == Some(0) {
            tokio::time::sleep(MEMBERSHIP_WAIT).await;
            at = self.foreign_membership(rpc);
        }
        let Some(at) = at else { return false };
        tracing::warn!(leader = from.0, "a Raft membership that the policy does not name yet: not appended");
        rpc.entries.truncate(at);
        true
    }

    /// Takes off what this node's log has already: its memberships were judged when they came, by the policy of that time. Should
    /// Raft truncate them meanwhile, what is left of the message no longer follows its log, and is refused.
    async fn drop_held(&self, rpc: &mut AppendEntriesRequest<TypeConfig>) {
        let applied = self.raft.metrics().borrow().last_applied;
        let theirs = std::iter::once(rpc.prev_log_id).chain(rpc.entries.iter().map(|e| Some(e.log_id)));
        let mut ours = Vec::with_capacity(rpc.entries.len().saturating_add(1));
        for theirs in theirs {
            ours.push(match theirs {
                // Applied entries may be purged; that they are the same was checked with the history.
                Some(id) if applied.is_some_and(|applied| id.index <= applied.index) => theirs,
                Some(id) => match self.log.log_id_at(id.index).await {
                    Ok(Some(own)) => Some(own),
                    Ok(None) | Err(_) => break,
                },
                None => None,
            });
        }
        let held = guard::held(rpc.prev_log_id, &rpc.entries, &ours);
        if let Some(last) = rpc.entries.drain(..held).last() {
            rpc.prev_log_id = Some(last.log_id);
        }
    }

    fn foreign_membership(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> Option<usize> {
        let in_effect = Arc::clone(&self.raft.metrics().borrow().membership_config);
        let policy = Arc::clone(&self.ledger.view().policy);
        let current = members_of(&policy);
        let at =
            guard::foreign_membership(&rpc.entries, std::slice::from_ref(&current), in_effect.membership());
        at?;
        let mut before = policy.previous;
        let earlier = std::iter::from_fn(|| {
            let policy = Policy::parse(&self.blobs.blob(&before?)?).ok()?;
            before = policy.previous;
            Some(members_of(&policy))
        });
        let policies = std::iter::once(current).chain(earlier).take(POLICIES_OF_LATE);
        let named = guard::named_since(policies, in_effect.membership());
        guard::foreign_membership(&rpc.entries, &named, in_effect.membership())
    }

    /// A snapshot's digest is certified, and its position in Raft's log is what f other members say too: a lying leader could
    /// otherwise have this node skip entries, or go back to an older state. All of that is checked before Raft hears of it,
    /// because a snapshot that fails to install stops Raft here.
    async fn check_snapshot(&self, from: NodeId, meta: &SnapshotMeta, content: &[u8]) -> Result<(), Status> {
        let refuse = |why: &str| {
            tracing::error!(leader = from.0, why, "a snapshot was refused");
            Status::failed_precondition("the snapshot was refused")
        };
        let size = self.snapshots.check(content).map_err(|e| refuse(&e))?;
        if size <= self.ledger.view().checkpoint.size {
            return Err(refuse("it holds no more than this node's own tree"));
        }
        let position = snapshots::position_bytes(meta).map_err(|e| refuse(&e))?;
        let needed = self.ledger.view().policy.hostile_nodes_max as usize;
        let mut agree = 0;
        for node in self.peers.nodes().into_iter().filter(|n| *n != from) {
            let Some(mut client) = self.peers.client(node) else { continue };
            let call = client.snapshot_position(v1::SnapshotPositionRequest { size: size.0 });
            let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_secs(2), call).await else { continue };
            agree += usize::from(reply.into_inner().position == position);
        }
        if agree < needed { Err(refuse("too few members know its position in Raft's log")) } else { Ok(()) }
    }

    /// Whether entries may be appended: their time is within bounds, and every blob they name is durable here. Returns their
    /// commands, whose signatures are worth a check ahead.
    async fn check_entries(
        &self,
        from: NodeId,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<Vec<Command>, Status> {
        let mut coming = Vec::new();
        let policy = Arc::clone(&self.ledger.view().policy);
        let (skew, now) = (policy.attestation.clock_skew_ms, clock::now());
        for entry in &rpc.entries {
            let EntryPayload::Normal(bytes) = &entry.payload else { continue };
            // What does not decode applies as just that, alike on every node; it names no time and no blob.
            let Ok(batch) = borsh::from_slice::<Batch>(bytes.bytes()) else { continue };
            if batch.time.since_ms(now) > skew {
                tracing::warn!(
                    leader = from.0,
                    ahead_ms = batch.time.since_ms(now),
                    "an entry is from the future: refused"
                );
                return Err(Status::failed_precondition("entry time is ahead of this node's clock"));
            }
            // An old time is not refused: after a crash or a partition it is history that someone has to finish. What a
            // lying leader backdates is committed and never certified: the cosigner signs no checkpoint of another time.
            for digest in batch.commands.iter().flat_map(Command::blobs) {
                self.fetch_blob(from, &digest).await?;
            }
            // Only of whom Raft will listen to.
            if coming.is_empty() && rpc.vote >= self.my_vote() {
                coming = batch.commands;
            }
        }
        Ok(coming)
    }

    /// Hands Raft's entries on, once everything in them that can be checked here was.
    async fn append(&self, node: NodeId, message: &v1::RaftMessage) -> Result<v1::RaftMessage, Status> {
        let mut rpc: AppendEntriesRequest<TypeConfig> = decode(message)?;
        from_vote(node, rpc.vote.leader_id.node_id)?;
        self.check_leader(node, &rpc.vote)?;
        let mine = self.my_vote();
        if deposed(&mine, &rpc.vote) {
            // It led before it was paused or cut off. Its entries may differ from what was applied since; told so at once,
            // it steps down rather than sending them again.
            return answer::<_, RaftError<RaftNodeId>>(Ok(AppendEntriesResponse::HigherVote(mine)));
        }
        guard::check_sequence(&rpc).map_err(|lie| lied(node, lie))?;
        if !self.check_history(node, &rpc).await? {
            return encoded(&Answer::<AppendEntriesResponse<RaftNodeId>, RaftError<RaftNodeId>>::Apart);
        }
        let ours = match rpc.leader_commit {
            Some(commit) => self.log.log_id_at(commit.index).await.ok().flatten(),
            None => None,
        };
        rpc.leader_commit = guard::commit_of(&rpc, ours).map_err(|lie| lied(node, lie))?;
        let cut = self.cut_memberships(node, &mut rpc).await;
        let coming = self.check_entries(node, &rpc).await?;
        let top = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
        let result = meanwhile(self.raft.append_entries(rpc), || self.ledger.verify_ahead(coming)).await;
        if let (Ok(AppendEntriesResponse::Success), Some(top)) = (&result, top) {
            // What this node appended as a leader it may hold in memory alone: it vouches for nothing that it could lose.
            let durable = self.log.durable_upto(top.index).await;
            durable.map_err(|_| Status::unavailable("the log is closed for writing"))?;
        }
        answer(result.map(|answer| match answer {
            AppendEntriesResponse::Success if cut => AppendEntriesResponse::PartialSuccess(top),
            other => other,
        }))
    }

    /// Queues what a peer proposes, if this node leads.
    /// A node proposes its own evidence and statements, recoveries, what clients signed, and what admins signed.
    fn may_propose(&self, from: NodeId, command: &Command, blobs: &[bytes::Bytes]) -> bool {
        match command {
            Command::Evidence(c) => c.node == from,
            Command::Node(c) => c.node == from,
            Command::Client(_) | Command::Recover(_) => true,
            Command::Policy(c) => {
                let sent = blobs.iter().find(|b| quorate_core::tlog::sha256(b) == c.document);
                let document = sent.map(|b| b.to_vec()).or_else(|| self.blobs.blob(&c.document));
                let policy = Arc::clone(&self.ledger.view().policy);
                document.is_some_and(|d| policy.check_signers(&c.with_document(d)).is_ok())
            }
        }
    }

    /// Takes clients' commands along that a peer's leader does not take. Only what a client did sign: an honest leader takes that,
    /// and nobody can have this node distrust it for the rest.
    fn carry_withheld(&self, standing: Standing, commands: &[bytes::Bytes]) -> Result<(), Status> {
        let Standing::Attested(from) = standing else {
            return Err(Status::permission_denied("not attested in the log"));
        };
        for bytes in commands.iter().take(SHOWN_MAX) {
            if bytes.len() > COMMAND_BYTES_MAX || !self.budgets.shown.take(from, 1, Instant::now()) {
                return Err(Status::resource_exhausted("too much shown"));
            }
            let command: Command = borsh::from_slice(bytes).map_err(|_| bad("not a command"))?;
            if self.ledger.is_signed_by_client(&command) {
                self.ledger.send(Outgoing::Shown(command));
            }
        }
        Ok(())
    }

    fn queue_proposal(
        &self,
        standing: Standing,
        request: &v1::ProposeRequest,
    ) -> Result<v1::ProposeReply, Status> {
        if request.commands.len() > PROPOSED_MAX || request.blobs.len() > PROPOSED_MAX {
            return Err(bad("too many commands"));
        }
        let leader = self.raft.metrics().borrow().current_leader.unwrap_or_default();
        if request.withheld {
            self.carry_withheld(standing, &request.commands)?;
            return Ok(v1::ProposeReply { queued: false, leader });
        }
        if leader != self.ledger.me().0 {
            return Ok(v1::ProposeReply { queued: false, leader });
        }
        let from = standing.node();
        let mut commands = Vec::with_capacity(request.commands.len());
        for bytes in &request.commands {
            if bytes.len() > COMMAND_BYTES_MAX {
                return Err(bad("command too large"));
            }
            let command: Command = borsh::from_slice(bytes).map_err(|_| bad("not a command"))?;
            // Left out, not refused: what travels with it may be the evidence that it lacks.
            let attested = matches!(standing, Standing::Attested(_));
            if (attested || command.goes_first()) && self.may_propose(from, &command, &request.blobs) {
                let own = !matches!(command, Command::Client(_));
                if own && !self.budgets.statements.take(from, bytes.len() as u64, Instant::now()) {
                    tracing::warn!(node = from.0, "a node says more than it may: left out");
                    continue;
                }
                commands.push(command);
            }
        }
        // Only what one of them names, and no more of one node than it needs: a disk that is full stops this node.
        let named: BTreeSet<Hash> = commands.iter().flat_map(Command::blobs).collect();
        for blob in &request.blobs {
            let digest = quorate_core::tlog::sha256(blob);
            if !named.contains(&digest) || self.blobs.has(&digest) {
                continue;
            }
            if !self.budgets.blobs.take(from, blob.len() as u64, Instant::now()) {
                tracing::warn!(node = from.0, "a node proposes more blobs than it may: not kept");
                continue;
            }
            self.blobs.put(blob).map_err(|e| {
                tracing::error!(error = crate::report::chain(&e), "cannot keep a blob");
                Status::resource_exhausted("cannot keep a blob")
            })?;
        }
        for command in commands {
            // No follower appends an entry that names a blob which nobody has: the log would end there.
            if !command.blobs().iter().all(|digest| self.blobs.has(digest)) {
                tracing::warn!(node = from.0, "a proposal names a blob that is not here: left out");
                continue;
            }
            if !self.queue.push(from, command) {
                return Err(Status::resource_exhausted("the leader's queue is full"));
            }
        }
        Ok(v1::ProposeReply { queued: true, leader })
    }

    async fn fetch_blob(&self, from: NodeId, digest: &Hash) -> Result<(), Status> {
        if self.blobs.has(digest) {
            return Ok(());
        }
        let missing = || Status::unavailable("a blob that an entry names is not there");
        let nodes = std::iter::once(from).chain(self.peers.nodes().into_iter().filter(|n| *n != from));
        for node in nodes {
            let Some(mut client) = self.peers.client(node) else { continue };
            let call = client.blob(v1::BlobRequest { digest: digest.0.to_vec().into() });
            let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_secs(2), call).await else { continue };
            let blob = reply.into_inner().blob;
            if quorate_core::tlog::sha256(&blob) != *digest {
                continue;
            }
            return match self.blobs.put(&blob) {
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::error!(
                        error = crate::report::chain(&error),
                        "cannot keep a blob: refusing the entry"
                    );
                    Err(missing())
                }
            };
        }
        Err(missing())
    }
}

fn decode<T: DeserializeOwned>(message: &v1::RaftMessage) -> Result<T, Status> {
    postcard::from_bytes(&message.message).map_err(|_| bad("not a Raft message"))
}

fn answer<T: Serialize, E: Serialize>(result: Result<T, E>) -> Result<v1::RaftMessage, Status> {
    encoded(&match result {
        Ok(ok) => Answer::Ok(ok),
        Err(error) => Answer::Err(error),
    })
}

fn encoded<T: Serialize, E: Serialize>(answer: &Answer<T, E>) -> Result<v1::RaftMessage, Status> {
    let message = postcard::to_stdvec(answer).map_err(|_| Status::internal("cannot encode"))?.into();
    Ok(v1::RaftMessage { message })
}

/// Whether a leader was followed by another, whom this node knows.
fn deposed(mine: &Vote, leader: &Vote) -> bool {
    leader.leader_id < mine.leader_id
}

fn from_vote(node: NodeId, leader: RaftNodeId) -> Result<(), Status> {
    if node.0 == leader {
        Ok(())
    } else {
        Err(Status::permission_denied("a Raft message in another node's name"))
    }
}

fn members_of(policy: &Policy) -> BTreeSet<u64> {
    policy.members.keys().map(|n| n.0).collect()
}

fn lied(node: NodeId, lie: Lie) -> Status {
    if lie == Lie::Distrusted {
        // Said once, when that began.
        return Status::failed_precondition("not listening to this leader");
    }
    tracing::warn!(node = node.0, error = %lie, "a message of Raft's was refused");
    Status::failed_precondition("no honest member sends this")
}

fn refused(error: &NotAdmitted) -> Status {
    // Strangers learn that a check failed; operators learn which.
    tracing::warn!(error = crate::report::chain(error), "a peer was not admitted");
    Status::permission_denied("not admitted")
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn challenge(&self, request: Request<v1::ChallengeRequest>) -> Reply<v1::ChallengeReply> {
        let channel = channel(&request)?;
        let reply = self.peers.challenge(channel.id(), channel.peer_key()).map_err(|e| refused(&e))?;
        Ok(Response::new(reply))
    }

    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Reply<v1::AdmitReply> {
        let channel = channel(&request)?;
        let exporter = *channel.exporter();
        let reply =
            self.peers.answer(channel.id(), channel.peer_key(), &exporter, request.into_inner()).await;
        reply.map(Response::new).map_err(|e| refused(&e))
    }

    async fn append_entries(&self, request: Request<v1::RaftMessage>) -> Reply<v1::RaftMessage> {
        let node = self.member(&request)?.node();
        self.append(node, request.get_ref()).await.map(Response::new)
    }

    type AppendStreamStream = Pin<Box<dyn Stream<Item = Result<v1::RaftMessage, Status>> + Send>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<v1::RaftMessage>>,
    ) -> Reply<Self::AppendStreamStream> {
        self.member(&request)?;
        let (key, service) = (channel(&request)?.peer_key(), Arc::new(self.clone()));
        let answers = request.into_inner().then(move |message| {
            let service = Arc::clone(&service);
            async move {
                // Asked anew for each: the stream outlives a revocation.
                let node = service.standing(key)?.node();
                service.append(node, &message?).await
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<v1::RaftMessage>) -> Reply<v1::RaftMessage> {
        let node = self.member(&request)?.node();
        let rpc: VoteRequest<RaftNodeId> = decode(request.get_ref())?;
        from_vote(node, rpc.vote.leader_id.node_id)?;
        let now = Instant::now();
        self.guard.check_candidate(&self.my_vote(), &rpc.vote, now).map_err(|lie| lied(node, lie))?;
        answer(self.raft.vote(rpc).await).map(Response::new)
    }

    async fn install_snapshot(&self, request: Request<v1::RaftMessage>) -> Reply<v1::RaftMessage> {
        let node = self.member(&request)?.node();
        let rpc: InstallSnapshotRequest<TypeConfig> = decode(request.get_ref())?;
        from_vote(node, rpc.vote.leader_id.node_id)?;
        self.check_leader(node, &rpc.vote)?;
        let (vote, meta, mine) = (rpc.vote, rpc.meta.clone(), self.my_vote());
        let content = if vote < mine { None } else { self.receiving.take(node, rpc)? };
        type Failed = RaftError<RaftNodeId, InstallSnapshotError>;
        let Some(content) = content else {
            return answer::<_, Failed>(Ok(InstallSnapshotResponse { vote: mine })).map(Response::new);
        };
        self.check_snapshot(node, &meta, &content).await?;
        let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(content)) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        answer::<_, Failed>(
            installed.map(|r| InstallSnapshotResponse { vote: r.vote }).map_err(RaftError::Fatal),
        )
        .map(Response::new)
    }

    async fn snapshot_position(
        &self,
        request: Request<v1::SnapshotPositionRequest>,
    ) -> Reply<v1::SnapshotPositionReply> {
        self.member(&request)?;
        let position = self.snapshots.position(TreeSize(request.get_ref().size));
        let position = position.ok_or_else(|| Status::not_found("no snapshot of that size"))?;
        Ok(Response::new(v1::SnapshotPositionReply { position: position.into() }))
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Reply<v1::ProposeReply> {
        let standing = self.member(&request)?;
        self.queue_proposal(standing, &request.into_inner()).map(Response::new)
    }

    async fn propose_stream(
        &self,
        request: Request<Streaming<v1::ProposeRequest>>,
    ) -> Reply<v1::ProposeReply> {
        let key = channel(&request)?.peer_key();
        let mut proposals = request.into_inner();
        let mut reply = v1::ProposeReply::default();
        while let Some(proposal) = proposals.message().await? {
            reply = self.queue_proposal(self.standing(key)?, &proposal)?;
            if !reply.queued {
                break;
            }
        }
        Ok(Response::new(reply))
    }

    async fn cosign(&self, request: Request<Streaming<v1::CosignatureMessage>>) -> Reply<v1::CosignReply> {
        // Cosignatures prove themselves; whose stream it is must still be known, and stay so.
        let key = channel(&request)?.peer_key();
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            let Some(standing) = self.peers.standing(key) else {
                return Err(Status::permission_denied("not a member that proved itself"));
            };
            let root = message.root.as_ref().try_into().map_err(|_| bad("root"))?;
            let signature = message.signature.as_ref().try_into().map_err(|_| bad("signature"))?;
            let signed = Signed {
                node: standing.node(),
                checkpoint: CheckpointRef { size: TreeSize(message.size), root: Hash(root) },
                cosignature: Cosignature { time_s: message.time_s, signature },
                log_index: message.log_index,
            };
            self.cosigner.received(signed).await;
        }
        Ok(Response::new(v1::CosignReply {}))
    }

    async fn check_head(&self, request: Request<v1::CheckHeadRequest>) -> Reply<v1::CheckHeadReply> {
        let relay = self.attested(&request)?;
        Ok(Response::new(self.keyer.check_head(relay, request.into_inner()).await))
    }

    async fn contribute(&self, request: Request<v1::ContributeRequest>) -> Reply<v1::ContributeReply> {
        let caller = self.member(&request)?.node();
        let contribution =
            self.contributor.contribute(caller).map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(v1::ContributeReply { contribution: encode(&contribution).into() }))
    }

    async fn recovery_quote(
        &self,
        request: Request<v1::RecoveryQuoteRequest>,
    ) -> Reply<v1::RecoveryQuoteReply> {
        let caller = self.member(&request)?.node();
        let request = request.into_inner();
        if request.contributions.len() > quorate_core::policy::MEMBERS_MAX {
            return Err(bad("too many contributions"));
        }
        let base: CheckpointRef = borsh::from_slice(&request.base).map_err(|_| bad("base"))?;
        let contributions: Result<Vec<Contribution>, _> =
            request.contributions.iter().map(|c| borsh::from_slice(c)).collect();
        let contributions = contributions.map_err(|_| bad("contribution"))?;
        let attested = self.contributor.quote(caller, base, contributions).await.map_err(|e| {
            tracing::warn!(error = crate::report::chain(&e), "no recovery quote");
            Status::failed_precondition(e.to_string())
        })?;
        let blobs = attested.blobs.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::RecoveryQuoteReply { evidence: encode(&attested.evidence).into(), blobs }))
    }

    async fn highest_cosignature(
        &self,
        request: Request<v1::HighestCosignatureRequest>,
    ) -> Reply<v1::HighestCosignatureReply> {
        self.member(&request)?;
        let held = self.cosigner.highest_of(NodeId(request.get_ref().node));
        let reply = match held {
            Some(c) => v1::HighestCosignatureReply { size: c.size.0, root: c.root.0.to_vec().into() },
            None => v1::HighestCosignatureReply::default(),
        };
        Ok(Response::new(reply))
    }

    async fn blob(&self, request: Request<v1::BlobRequest>) -> Reply<v1::BlobReply> {
        self.member(&request)?;
        let digest: [u8; 32] = request.get_ref().digest.as_ref().try_into().map_err(|_| bad("digest"))?;
        let blob = self.blobs.blob(&Hash(digest)).ok_or_else(|| Status::not_found("no such blob"))?;
        Ok(Response::new(v1::BlobReply { blob: blob.into() }))
    }

    async fn tile(&self, request: Request<v1::TileRequest>) -> Reply<v1::TileReply> {
        self.member(&request)?;
        let path = request.get_ref().path.parse().map_err(|_| bad("path"))?;
        let data = self.ledger.tiles().tile(&path).map_err(|_| Status::not_found("no such tile"))?;
        Ok(Response::new(v1::TileReply { data }))
    }
}
