//! What peers may ask. Who calls is decided anew for each request from the channel's key, against the attested set of that
//! moment; a peer that is only admitted in the channel may speak Raft, recovery and evidence.
use crate::blobs::BlobStore;
use crate::clock;
use crate::cosigner::{CosignerHandle, Signed};
use crate::ledger::Ledger;
use crate::peers::{NotAdmitted, Peers, Standing};
use crate::proposer::Queue;
use crate::raft::LogReader;
use crate::raft::network::Answer;
use crate::raft::types::{Raft, RaftNodeId, TypeConfig};
use crate::recovery::Contributor;
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};
use quorate_core::command::{Batch, CheckpointRef, Command, Contribution};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::NodeId;
use quorate_core::state::Blobs;
use quorate_core::tlog::{Cosignature, TreeSize};
use quorate_proto::COMMAND_BYTES_MAX;
use quorate_proto::v1;
use quorate_proto::v1::peer_server::Peer;
use quorate_transport::Channel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

/// Commands in one proposal.
const PROPOSED_MAX: usize = 512;

/// The keyer's answer to a relay.
#[tonic::async_trait]
pub trait HeadChecker: Send + Sync + 'static {
    /// Checks the head that `relay` handed over.
    async fn check_head(&self, relay: NodeId, request: v1::CheckHeadRequest) -> v1::CheckHeadReply;
}

/// The service.
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
        let key = channel(request)?.peer_key();
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
    ) -> Result<(), Status> {
        let applied = self.ledger.view().log_index;
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
                return Err(Status::failed_precondition("the log conflicts with applied entries"));
            }
        }
        Ok(())
    }

    /// Whether entries may be appended: their time is within bounds, and every blob they name is durable here.
    async fn check_entries(
        &self,
        from: NodeId,
        rpc: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<(), Status> {
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
        }
        Ok(())
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

fn answer<T: Serialize, E: Serialize>(result: Result<T, E>) -> Reply<v1::RaftMessage> {
    let answer = match result {
        Ok(ok) => Answer::Ok(ok),
        Err(error) => Answer::Err(error),
    };
    let message = postcard::to_stdvec(&answer).map_err(|_| Status::internal("cannot encode"))?.into();
    Ok(Response::new(v1::RaftMessage { message }))
}

fn from_vote(node: NodeId, leader: RaftNodeId) -> Result<(), Status> {
    if node.0 == leader {
        Ok(())
    } else {
        Err(Status::permission_denied("a Raft message in another node's name"))
    }
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
        let rpc: AppendEntriesRequest<TypeConfig> = decode(request.get_ref())?;
        from_vote(node, rpc.vote.leader_id.node_id)?;
        self.check_history(node, &rpc).await?;
        self.check_entries(node, &rpc).await?;
        answer(self.raft.append_entries(rpc).await)
    }

    async fn vote(&self, request: Request<v1::RaftMessage>) -> Reply<v1::RaftMessage> {
        let node = self.member(&request)?.node();
        let rpc: VoteRequest<RaftNodeId> = decode(request.get_ref())?;
        from_vote(node, rpc.vote.leader_id.node_id)?;
        answer(self.raft.vote(rpc).await)
    }

    async fn install_snapshot(&self, request: Request<v1::RaftMessage>) -> Reply<v1::RaftMessage> {
        let node = self.member(&request)?.node();
        let rpc: InstallSnapshotRequest<TypeConfig> = decode(request.get_ref())?;
        from_vote(node, rpc.vote.leader_id.node_id)?;
        answer(self.raft.install_snapshot(rpc).await)
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Reply<v1::ProposeReply> {
        let standing = self.member(&request)?;
        let request = request.into_inner();
        if request.commands.len() > PROPOSED_MAX || request.blobs.len() > PROPOSED_MAX {
            return Err(bad("too many commands"));
        }
        let leader = self.raft.metrics().borrow().current_leader.unwrap_or_default();
        if leader != self.ledger.me().0 {
            return Ok(Response::new(v1::ProposeReply { queued: false, leader }));
        }
        for blob in &request.blobs {
            self.blobs.put(blob).map_err(|e| {
                tracing::error!(error = crate::report::chain(&e), "cannot keep a blob");
                Status::resource_exhausted("cannot keep a blob")
            })?;
        }
        for bytes in &request.commands {
            if bytes.len() > COMMAND_BYTES_MAX {
                return Err(bad("command too large"));
            }
            let command: Command = borsh::from_slice(bytes).map_err(|_| bad("not a command"))?;
            if matches!(standing, Standing::Admitted(_)) && !command.goes_first() {
                return Err(Status::permission_denied("not attested in the log"));
            }
            if !self.queue.push(command) {
                return Err(Status::resource_exhausted("the leader's queue is full"));
            }
        }
        Ok(Response::new(v1::ProposeReply { queued: true, leader }))
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
        self.member(&request)?;
        let contribution =
            self.contributor.contribute().map_err(|e| Status::failed_precondition(e.to_string()))?;
        Ok(Response::new(v1::ContributeReply { contribution: encode(&contribution).into() }))
    }

    async fn recovery_quote(
        &self,
        request: Request<v1::RecoveryQuoteRequest>,
    ) -> Reply<v1::RecoveryQuoteReply> {
        self.member(&request)?;
        let request = request.into_inner();
        if request.contributions.len() > quorate_core::policy::MEMBERS_MAX {
            return Err(bad("too many contributions"));
        }
        let base: CheckpointRef = borsh::from_slice(&request.base).map_err(|_| bad("base"))?;
        let contributions: Result<Vec<Contribution>, _> =
            request.contributions.iter().map(|c| borsh::from_slice(c)).collect();
        let contributions = contributions.map_err(|_| bad("contribution"))?;
        let attested = self.contributor.quote(base, contributions).await.map_err(|e| {
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
