//! What nodes and clients say to one another, and what a node makes of it: `services/peer.rs` of the product, without tonic. Raft's
//! messages travel as the very bytes that the product sends.
use crate::node::Node;
use bytes::Bytes;
use openraft::EntryPayload;
use openraft::error::RaftError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use quorate_attest::evidence::Evidence;
use quorate_core::command::{Batch, CheckpointRef, Command, Contribution};
use quorate_core::crypto::{Hash, sha256};
use quorate_core::ids::{ConnectionId, NodeId, PoolId, RequestId};
use quorate_core::policy::Policy;
use quorate_core::state::Blobs;
use quorate_core::tlog::TreeSize;
use quorate_proto::v1::ProposeRequest;
use quorated::cosigner::Signed;
use quorated::ledger::Outgoing;
use quorated::raft::guard;
use quorated::raft::network::Answer;
use quorated::raft::types::{RaftNodeId, TypeConfig, Vote};
use serde::Serialize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A policy that a membership follows is applied within this.
const MEMBERSHIP_WAIT: Duration = Duration::from_millis(200);
/// As in the product.
const POLICIES_OF_LATE: usize = 8;

/// A message.
#[derive(Clone)]
pub enum Message {
    /// Raft's entries.
    Append(Bytes),
    /// Raft's question for a vote.
    Vote(Bytes),
    /// A piece of a snapshot.
    Snapshot(Bytes),
    /// Where the snapshot of that size stands in Raft's log.
    SnapshotPosition(TreeSize),
    /// Commands for the leader.
    Propose(Arc<ProposeRequest>),
    /// A cosignature.
    Cosign(Signed),
    /// What a node holds of another's cosignatures.
    HighestCosignature(NodeId),
    /// For a recovery.
    Contribute,
    /// For a recovery.
    RecoveryQuote(CheckpointRef, Arc<Vec<Contribution>>),
    /// A blob.
    Blob(Hash),
    /// The relay's question to the keyer.
    CheckHead {
        /// Which request.
        request: RequestId,
        /// On which connection.
        connection: ConnectionId,
        /// Of this head.
        head_digest: [u8; 32],
    },
    /// A client asks the log.
    Decide(Arc<Command>),
    /// An admin brings a policy and its document.
    Admin(Arc<Command>, Arc<Vec<u8>>),
    /// A client registers a connection with its keyer.
    Register(PoolId, ConnectionId),
    /// A client's request, at its relay.
    Request(Arc<Command>),
    /// A client asks for the state of the mesh.
    Directory,
    /// A node asks for a proof of what is certified.
    Proof,
}

/// An answer.
#[derive(Clone)]
pub enum Reply {
    /// Raft's.
    Raft(Bytes),
    /// The guards refused.
    Refused(String),
    /// Taken, or why not.
    Done(Result<(), String>),
    /// Of a snapshot.
    Position(Option<Vec<u8>>),
    /// Highest size.
    Highest(TreeSize),
    /// Contribution.
    Contribution(Box<Contribution>),
    /// Quote and log.
    Quote(Box<(Evidence, Vec<u8>)>),
    /// Blob.
    Blob(Vec<u8>),
    /// Proof from genesis.
    Proof(Bytes),
    /// Relays, their keyers and everybody's boot keys.
    Directory(Box<crate::client::Directory>),
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|e| e.to_string())
}

fn answer<T: Serialize, E: Serialize>(result: Result<T, E>) -> Result<Reply, String> {
    encoded(&match result {
        Ok(ok) => Answer::Ok(ok),
        Err(error) => Answer::Err(error),
    })
}

fn encoded<T: Serialize, E: Serialize>(answer: &Answer<T, E>) -> Result<Reply, String> {
    Ok(Reply::Raft(postcard::to_stdvec(answer).map_err(|e| e.to_string())?.into()))
}

impl Node {
    /// Answers a message.
    pub fn handle(
        self: Arc<Self>,
        from: NodeId,
        message: Message,
    ) -> Pin<Box<dyn Future<Output = Reply> + Send>> {
        Box::pin(self.answer_to(from, message))
    }

    async fn answer_to(self: Arc<Self>, from: NodeId, message: Message) -> Reply {
        match message {
            Message::Append(bytes) => self.append(from, &bytes).await.unwrap_or_else(|why| {
                crate::note!(self.world, "{} refused entries of {from}: {why}", self.id);
                Reply::Refused(why)
            }),
            Message::Vote(_) if !self.world.adversary.hears_candidates(self.id) => {
                Reply::Refused("it stays".into())
            }
            Message::Vote(bytes) => self.vote(from, &bytes).await.unwrap_or_else(Reply::Refused),
            Message::Snapshot(bytes) => {
                let installed = match decode(&bytes) {
                    Ok(rpc) => self.install_snapshot(from, rpc).await,
                    Err(why) => Err(why),
                };
                installed.and_then(answer).unwrap_or_else(|why| {
                    crate::note!(self.world, "{} refused a snapshot of {from}: {why}", self.id);
                    Reply::Refused(why)
                })
            }
            Message::SnapshotPosition(size) => Reply::Position(self.snapshots.inner.position(size)),
            Message::Propose(request) => self.take_proposal(from, &request),
            Message::Cosign(signed) => {
                if signed.node == from {
                    self.world.adversary.heard(&self, &signed);
                    self.cosigner.received(signed).await;
                }
                Reply::Done(Ok(()))
            }
            Message::HighestCosignature(node) => {
                Reply::Highest(self.cosigner.highest_of(node).map_or(TreeSize::ZERO, |c| c.size))
            }
            Message::Contribute => match self.contributor.contribute(&self, from) {
                Some(c) => Reply::Contribution(Box::new(c)),
                None => Reply::Refused("not dark".into()),
            },
            Message::RecoveryQuote(base, contributions) => {
                match self.contributor.quote(&self, from, base, contributions.to_vec()).await {
                    Some(quote) => Reply::Quote(Box::new(quote)),
                    None => Reply::Refused("no quote".into()),
                }
            }
            Message::Blob(digest) => match self.blobs.blob(&digest) {
                Some(blob) => Reply::Blob(blob),
                None => Reply::Refused("no such blob".into()),
            },
            Message::CheckHead { request, connection, head_digest } => {
                // Only attested peers have their heads checked.
                if self.ledger.view().attested(from) != Some(&self.world.boot_of(from)) {
                    return Reply::Refused("not attested".into());
                }
                Reply::Done(self.check_head(from, request, connection, head_digest).await)
            }
            Message::Decide(command) => {
                let decided =
                    self.ledger.decide(command.as_ref().clone(), Vec::new(), Duration::from_secs(3)).await;
                Reply::Done(decided.map(drop).map_err(|e| e.to_string()))
            }
            Message::Admin(command, document) => {
                let documents = vec![document.to_vec()];
                let decided =
                    self.ledger.decide(command.as_ref().clone(), documents, Duration::from_secs(3)).await;
                Reply::Done(decided.map(drop).map_err(|e| e.to_string()))
            }
            Message::Register(pool, connection) => Reply::Done(self.register(pool, connection).await),
            Message::Request(command) => Reply::Done(self.relay(command.as_ref().clone()).await.map(drop)),
            Message::Proof => self.prove().map_or_else(Reply::Refused, Reply::Proof),
            Message::Directory => Reply::Directory(Box::new(crate::client::Directory::of(&self))),
        }
    }

    fn my_vote(&self) -> Vote {
        self.raft.metrics().borrow().vote
    }

    async fn vote(&self, from: NodeId, bytes: &[u8]) -> Result<Reply, String> {
        let rpc: VoteRequest<RaftNodeId> = decode(bytes)?;
        if rpc.vote.leader_id.node_id != from.0 {
            return Err("a Raft message in another node's name".into());
        }
        let now = tokio::time::Instant::now().into_std();
        self.guard.check_candidate(&self.my_vote(), &rpc.vote, now).map_err(|e| e.to_string())?;
        answer(self.raft.vote(rpc).await)
    }

    /// Mirrors `PeerService::append`.
    async fn append(&self, from: NodeId, bytes: &[u8]) -> Result<Reply, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let mut rpc: AppendEntriesRequest<TypeConfig> = decode(bytes)?;
        if rpc.vote.leader_id.node_id != from.0 {
            return Err("a Raft message in another node's name".into());
        }
        let now = tokio::time::Instant::now().into_std();
        self.guard.check_leader(&self.my_vote(), &rpc.vote, now).map_err(|e| text(&e))?;
        guard::check_sequence(&rpc).map_err(|e| text(&e))?;
        if !self.world.mutation.skips_history_check() && !self.check_history(from, &rpc).await? {
            crate::note!(self.world, "{} applied other entries than {from} sends", self.id);
            return encoded(&Answer::<AppendEntriesResponse<RaftNodeId>, RaftError<RaftNodeId>>::Apart);
        }
        let ours = match rpc.leader_commit {
            Some(commit) => self.log.log_id_at(commit.index).await.ok().flatten(),
            None => None,
        };
        if !self.world.mutation.trusts_commit_index() {
            rpc.leader_commit = guard::commit_of(&rpc, ours).map_err(|e| text(&e))?;
        }
        let cut = self.cut_memberships(&mut rpc).await;
        self.check_entries(from, &rpc).await?;
        let top = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
        let result = self.raft.append_entries(rpc).await;
        if let (Ok(AppendEntriesResponse::Success), Some(top)) = (&result, top) {
            self.log.durable_upto(top.index).await.map_err(|e| text(&e))?;
        }
        answer(result.map(|answer| match answer {
            AppendEntriesResponse::Success if cut => AppendEntriesResponse::PartialSuccess(top),
            other => other,
        }))
    }

    async fn check_history(
        &self,
        from: NodeId,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<bool, String> {
        let committed = self.log.committed().map_or(0, |l| l.index);
        let applied = self.ledger.view().log_index.max(committed);
        let theirs = rpc.prev_log_id.iter().chain(rpc.entries.iter().map(|e| &e.log_id));
        for log_id in theirs.filter(|l| l.index <= applied) {
            let ours = self.log.log_id_at(log_id.index).await.map_err(|e| e.to_string())?;
            if ours.is_some_and(|ours| ours != *log_id) {
                self.guard.conflicts(from.0, tokio::time::Instant::now().into_std());
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Mirrors `PeerService::foreign_membership`.
    fn foreign_membership(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> Option<usize> {
        let in_effect = Arc::clone(&self.raft.metrics().borrow().membership_config);
        let policy = Arc::clone(&self.ledger.view().policy);
        let members_of = |policy: &Policy| policy.members.keys().map(|n| n.0).collect();
        let mut before = policy.previous;
        let earlier = std::iter::from_fn(|| {
            let policy = Policy::parse(&self.blobs.blob(&before?)?).ok()?;
            before = policy.previous;
            Some(members_of(&policy))
        });
        let policies = std::iter::once(members_of(&policy)).chain(earlier).take(POLICIES_OF_LATE);
        let named = guard::named_since(policies, in_effect.membership());
        guard::foreign_membership(&rpc.entries, &named, in_effect.membership())
    }

    async fn cut_memberships(&self, rpc: &mut AppendEntriesRequest<TypeConfig>) -> bool {
        let changes = rpc.entries.iter().any(|e| matches!(e.payload, EntryPayload::Membership(_)));
        if rpc.vote < self.my_vote() || !changes {
            return false;
        }
        self.drop_held(rpc).await;
        let mut at = self.foreign_membership(rpc);
        if at == Some(0) {
            tokio::time::sleep(MEMBERSHIP_WAIT).await;
            at = self.foreign_membership(rpc);
        }
        let Some(at) = at else { return false };
        rpc.entries.truncate(at);
        true
    }

    async fn drop_held(&self, rpc: &mut AppendEntriesRequest<TypeConfig>) {
        let applied = self.ledger.view().log_index;
        let theirs = std::iter::once(rpc.prev_log_id).chain(rpc.entries.iter().map(|e| Some(e.log_id)));
        let mut ours = Vec::new();
        for theirs in theirs {
            ours.push(match theirs {
                Some(id) if id.index <= applied => theirs,
                Some(id) => match self.log.log_id_at(id.index).await {
                    Ok(Some(own)) => Some(own),
                    Ok(None) | Err(_) => break,
                },
                None => None,
            });
        }
        let held = guard::held(rpc.prev_log_id, &rpc.entries, &ours);
        if let Some(last) = rpc.entries.drain(..held).next_back() {
            rpc.prev_log_id = Some(last.log_id);
        }
    }

    async fn check_entries(
        &self,
        from: NodeId,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<(), String> {
        let skew = self.ledger.view().policy.attestation.clock_skew_ms;
        let now = self.ledger.now();
        for entry in &rpc.entries {
            let EntryPayload::Normal(bytes) = &entry.payload else { continue };
            let Ok(batch) = borsh::from_slice::<Batch>(bytes.bytes()) else { continue };
            if batch.time.since_ms(now) > skew {
                return Err("entry time is ahead of this node's clock".into());
            }
            for digest in batch.commands.iter().flat_map(Command::blobs) {
                self.fetch_blob(from, &digest).await?;
            }
        }
        Ok(())
    }

    async fn fetch_blob(&self, from: NodeId, digest: &Hash) -> Result<(), String> {
        if self.blobs.has(digest) {
            return Ok(());
        }
        let peers = self.peers();
        for node in std::iter::once(from).chain(peers.into_iter().filter(|n| *n != from)) {
            let reply = self.ask(node, Message::Blob(*digest), Duration::from_secs(2)).await;
            if let Some(Reply::Blob(blob)) = reply
                && sha256(&blob) == *digest
            {
                return self.blobs.put(&blob).map(drop).map_err(|e| e.to_string());
            }
        }
        Err("a blob that an entry names is not there".into())
    }

    /// Mirrors `PeerService::carry_withheld`.
    fn carry_withheld(&self, attested: bool, request: &ProposeRequest) -> Reply {
        if !attested {
            return Reply::Refused("not attested".into());
        }
        for bytes in &request.commands {
            let Ok(command) = borsh::from_slice::<Command>(bytes) else {
                return Reply::Refused("not a command".into());
            };
            if self.ledger.is_signed_by_client(&command) {
                self.ledger.send(Outgoing::Shown(command));
            }
        }
        Reply::Done(Ok(()))
    }

    /// Mirrors `PeerService::queue_proposal`.
    fn take_proposal(&self, from: NodeId, request: &ProposeRequest) -> Reply {
        let attested = self.ledger.view().attested(from) == Some(&self.world.boot_of(from));
        if request.withheld {
            return self.carry_withheld(attested, request);
        }
        let leader = self.raft.metrics().borrow().current_leader.unwrap_or_default();
        if leader != self.id.0 {
            return Reply::Refused("not the leader".into());
        }
        let mut commands = Vec::new();
        for bytes in &request.commands {
            let Ok(command) = borsh::from_slice::<Command>(bytes) else {
                return Reply::Refused("not a command".into());
            };
            let own = match &command {
                Command::Evidence(c) => c.node == from,
                Command::Node(c) => c.node == from,
                Command::Client(_) | Command::Recover(_) | Command::Policy(_) => true,
            };
            let dropped = self.world.adversary.drops_proposal(self.id, from, &command);
            if (attested || command.goes_first()) && own && !dropped {
                commands.push(command);
            }
        }
        let named: Vec<Hash> = commands.iter().flat_map(Command::blobs).collect();
        for blob in &request.blobs {
            if named.contains(&sha256(blob)) && self.blobs.put(blob).is_err() {
                return Reply::Refused("cannot keep a blob".into());
            }
        }
        for command in commands {
            if command.blobs().iter().all(|digest| self.blobs.has(digest)) {
                self.queue.push(from, command);
            }
        }
        Reply::Done(Ok(()))
    }
}
