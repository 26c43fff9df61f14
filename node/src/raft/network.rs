//! Raft's messages over the peer links, bound to the peer's identity by the channel; what is checked here holds over any
//! [`Transport`].
use super::LogReader;
use super::guard::{Lie, TermGuard, check_answer, check_term};
use super::types::{RaftNodeId, TypeConfig};
use crate::peers::Peers;
use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, EmptyNode, RPCTypes};
use quorate_core::ids::NodeId;
use quorate_proto::v1::RaftMessage;
use quorate_transport::Connected;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Makes a client for each peer.
#[derive(Clone)]
pub struct Network<P = Peers> {
    /// The links.
    pub peers: P,
    /// This node.
    pub me: NodeId,
    /// Counts the terms that peers begin.
    pub guard: TermGuard,
    /// This node's own log: no peer's answer counts before it is durable here too.
    pub log: LogReader,
}

/// Raft's client to one peer.
pub struct PeerNetwork<P: Transport = Peers> {
    peers: P,
    me: NodeId,
    target: NodeId,
    guard: TermGuard,
    log: LogReader,
    /// Open while the last append on it was answered: Raft has one on its way to a peer at a time.
    appends: Option<P::Appends>,
}

/// How messages travel.
pub trait Transport: Clone + Send + Sync + 'static {
    /// What an answered append leaves open for the next.
    type Appends: Send + Sync + 'static;
    /// One message and its answer. Dropped when nobody waits any more.
    fn call(
        &self,
        target: NodeId,
        call: Call,
        message: Bytes,
        open: &mut Option<Self::Appends>,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send;
}

/// A stream of appends, on one connection.
pub struct Appends {
    connected: Arc<Connected>,
    messages: mpsc::Sender<RaftMessage>,
    answers: Streaming<RaftMessage>,
}

impl Appends {
    async fn open(peers: &Peers, connected: Arc<Connected>) -> Result<Self, CallError> {
        let (messages, receiver) = mpsc::channel(1);
        let mut client = peers.client_on(&connected);
        let opened = client.append_stream(ReceiverStream::new(receiver)).await;
        let answers = opened.map_err(|s| CallError::Status(s.code()))?.into_inner();
        Ok(Self { connected, messages, answers })
    }

    async fn exchange(&mut self, message: RaftMessage) -> Result<RaftMessage, CallError> {
        // A closed stream says why below.
        let _closed = self.messages.send(message).await;
        let answer = self.answers.message().await.map_err(|s| CallError::Status(s.code()))?;
        answer.ok_or(CallError::Status(tonic::Code::Cancelled))
    }
}

/// What travels back: Raft's own answer or error.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer<T, E> {
    /// The answer.
    Ok(T),
    /// Raft's error.
    Err(E),
    /// The leader's log conflicts with what the follower applied: it ends when one of them gives something up.
    Apart,
}

/// Which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Entries, or a heartbeat.
    Append,
    /// A candidate asks for a vote.
    Vote,
    /// A piece of a snapshot.
    Snapshot,
}

/// How long this node's own disk may hold up an entry before it stops speaking as the leader.
const STALLED: Duration = Duration::from_secs(2);

/// What does not reach a peer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection.
    #[error("no connection to {0}")]
    NotConnected(NodeId),
    /// The peer refused, or the connection broke.
    #[error("{0}")]
    Status(tonic::Code),
    /// Not an answer of Raft's.
    #[error("the answer does not decode")]
    Undecodable,
    /// No answer in time.
    #[error("timed out")]
    TimedOut,
    /// This node's disk.
    #[error("this node's own log is stalled")]
    Stalled,
    /// Two logs.
    #[error("this node's log conflicts with what the peer applied")]
    Apart,
}

impl<P: Transport> RaftNetworkFactory<TypeConfig> for Network<P> {
    type Network = PeerNetwork<P>;

    async fn new_client(&mut self, target: RaftNodeId, _node: &EmptyNode) -> PeerNetwork<P> {
        PeerNetwork {
            peers: self.peers.clone(),
            me: self.me,
            target: NodeId(target),
            guard: self.guard.clone(),
            log: self.log.clone(),
            appends: None,
        }
    }
}

type RpcError<E> = RPCError<RaftNodeId, EmptyNode, E>;

impl<P: Transport> PeerNetwork<P> {
    async fn call<
        Q: Serialize,
        A: DeserializeOwned,
        E: DeserializeOwned + std::error::Error + Clone + 'static,
    >(
        &mut self,
        call: Call,
        request: &Q,
        option: &RPCOption,
        rpc: RPCTypes,
    ) -> Result<A, RpcError<E>> {
        match self.exchange(call, request, option.hard_ttl()).await {
            Ok(Answer::Ok(answer)) => Ok(answer),
            Ok(Answer::Err(error)) => Err(RPCError::RemoteError(RemoteError::new(self.target.0, error))),
            Ok(Answer::Apart) => {
                self.guard.conflicts(self.target.0, now());
                // Asked again after a while: it may have given way by then.
                Err(RPCError::Unreachable(Unreachable::new(&AnyError::new(&CallError::Apart))))
            }
            Err(CallError::TimedOut) => Err(RPCError::Timeout(Timeout {
                action: rpc,
                id: self.me.0,
                target: self.target.0,
                timeout: option.hard_ttl(),
            })),
            Err(e @ CallError::NotConnected(_)) => {
                Err(RPCError::Unreachable(Unreachable::new(&AnyError::new(&e))))
            }
            Err(e) => Err(RPCError::Network(NetworkError::new(&AnyError::new(&e)))),
        }
    }

    fn lied<E: std::error::Error>(&self, lie: Lie) -> RpcError<E> {
        tracing::warn!(node = self.target.0, error = %lie, "an answer of Raft's was refused");
        RPCError::Network(NetworkError::new(&lie))
    }

    async fn exchange<Q: Serialize, A: DeserializeOwned, E: DeserializeOwned>(
        &mut self,
        call: Call,
        request: &Q,
        within: Duration,
    ) -> Result<Answer<A, E>, CallError> {
        let message = postcard::to_stdvec(request).map_err(|_| CallError::Undecodable)?.into();
        let answer = self.peers.call(self.target, call, message, &mut self.appends);
        let answer = tokio::time::timeout(within, answer).await.map_err(|_| CallError::TimedOut)??;
        postcard::from_bytes(&answer).map_err(|_| CallError::Undecodable)
    }
}

impl Transport for Peers {
    type Appends = Appends;

    async fn call(
        &self,
        target: NodeId,
        call: Call,
        message: Bytes,
        open: &mut Option<Appends>,
    ) -> Result<Bytes, CallError> {
        let connected = self.connected(target).ok_or(CallError::NotConnected(target))?;
        let message = RaftMessage { message };
        let mut client = self.client_on(&connected);
        let answer = match call {
            Call::Append => {
                // The stream is taken out meanwhile: an answer that nobody waited for would otherwise be taken for the next
                // append's.
                let stays = open.take().filter(|a| Arc::ptr_eq(&a.connected, &connected));
                let mut appends = match stays {
                    Some(appends) => appends,
                    None => Appends::open(self, connected).await?,
                };
                let answer = appends.exchange(message).await?;
                *open = Some(appends);
                return Ok(answer.message);
            }
            Call::Vote => client.vote(message).await,
            Call::Snapshot => client.install_snapshot(message).await,
        };
        answer.map(|a| a.into_inner().message).map_err(|s| CallError::Status(s.code()))
    }
}

/// Now, by the clock that runs the timers: a simulation's time, in one.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl<P: Transport> RaftNetwork<TypeConfig> for PeerNetwork<P> {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftNodeId>, RpcError<RaftError<RaftNodeId>>> {
        // Heartbeats must not keep the lead for a node whose disk commits nothing: without them somebody else campaigns.
        if self.log.is_stalled(STALLED) {
            return Err(RPCError::Unreachable(Unreachable::new(&AnyError::new(&CallError::Stalled))));
        }
        let answer = self.call(Call::Append, &rpc, &option, RPCTypes::AppendEntries).await?;
        check_answer(&self.guard, self.target.0, &rpc, &answer, now()).map_err(|e| self.lied(e))?;
        // The leader's own log is written while its peers write theirs; nothing is committed that it could lose.
        let top = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
        let vouches =
            matches!(answer, AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_));
        if let Some(top) = top.filter(|_| vouches) {
            self.log
                .durable_upto(top.index)
                .await
                .map_err(|e| RPCError::Network(NetworkError::new(&AnyError::new(&e))))?;
        }
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<RaftNodeId>, RpcError<RaftError<RaftNodeId, InstallSnapshotError>>>
    {
        let answer: InstallSnapshotResponse<RaftNodeId> =
            self.call(Call::Snapshot, &rpc, &option, RPCTypes::InstallSnapshot).await?;
        if answer.vote > rpc.vote {
            let checked = self.guard.check_higher(self.target.0, &rpc.vote, &answer.vote, now());
            checked.map_err(|e| self.lied(e))?;
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftNodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftNodeId>, RpcError<RaftError<RaftNodeId>>> {
        let answer: VoteResponse<RaftNodeId> = self.call(Call::Vote, &rpc, &option, RPCTypes::Vote).await?;
        check_term(&rpc.vote, &answer.vote).map_err(|e| self.lied(e))?;
        Ok(answer)
    }

    fn backoff(&self) -> Backoff {
        // A returned peer is tried again well within an election timeout.
        Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::{CertifiedFloor, LogStore, LogStoreOptions};
    use openraft::network::RPCOption;

    /// A follower that applied other entries.
    #[derive(Clone)]
    struct Apart;

    impl Transport for Apart {
        type Appends = ();
        async fn call(&self, _: NodeId, _: Call, _: Bytes, _: &mut Option<()>) -> Result<Bytes, CallError> {
            let answer = Answer::<AppendEntriesResponse<RaftNodeId>, RaftError<RaftNodeId>>::Apart;
            Ok(postcard::to_stdvec(&answer).unwrap().into())
        }
    }

    #[tokio::test]
    async fn a_follower_that_applied_other_entries_is_remembered_and_asked_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raft");
        LogStore::create(&path).unwrap();
        let log = LogStore::open(&path, CertifiedFloor::new(), LogStoreOptions::default()).unwrap();
        let (guard, began) = (TermGuard::default(), now());
        let mut network = Network { peers: Apart, me: NodeId(1), guard: guard.clone(), log: log.reader() };
        let mut peer = network.new_client(2, &EmptyNode {}).await;
        let vote = openraft::Vote::new_committed(3, 1);
        let rpc = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let answer = peer.append_entries(rpc, RPCOption::new(Duration::from_secs(5))).await;
        assert!(matches!(answer, Err(RPCError::Unreachable(_))), "{answer:?}");
        assert_eq!(guard.conflicting(began), 1);
    }
}
