//! Hostile nodes: the product's own node with its own keys, whose links lie. What it says to others, as a leader and as a follower,
//! is altered on its way out; nobody else's messages can be, since channels are authenticated.
use crate::node::Node;
use crate::note;
use crate::peer::{Message, Reply};
use crate::rng::Rng;
use crate::world::World;
use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteResponse};
use quorate_core::command::{Batch, Command};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{ConnectionId, NodeId, RequestId};
use quorate_core::state::checkpoint_of;
use quorate_core::tlog::{Cosignature, TreeSize};
use quorated::cosigner::Signed;
use quorated::raft::Batch as RaftBatch;
use quorated::raft::network::Answer;
use quorated::raft::types::{LogId, Membership, RaftNodeId, TypeConfig, Vote};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One way to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// As a leader: nodes of one half see other entries at the same log ids.
    Fork,
    /// As a leader: some entries say nothing that anybody can read.
    Garbage,
    /// As a leader: entries are so many milliseconds off.
    Dated(i64),
    /// As a leader: a commit index with an early leader and a late index.
    Commit,
    /// As a leader: other entries in the place of committed ones.
    Rewrite,
    /// As a leader: a Raft membership of itself alone.
    Alone,
    /// As a leader: one node in two hears nothing.
    Withhold,
    /// As a leader: what others propose is dropped.
    Drop,
    /// As a follower: claims to have what it has not, or conflicts, or higher votes.
    Answers,
    /// Votes for whoever asks, every time.
    Votes,
    /// Campaigns for terms far ahead.
    Terms,
    /// Signs whatever checkpoint anybody shows it, and tells.
    SignsAll,
    /// Claims to hold cosignatures of sizes that never come.
    Claims,
    /// Takes no part in recoveries, or not to the end.
    Recovery,
    /// As a leader: snapshots of another state, an earlier one, or at another position.
    Snapshots,
    /// As a relay: asks keyers about requests and connections of others, and twice.
    Asks,
    /// As a leader: what clients signed is dropped, and everything else goes on.
    Censor,
    /// Hears of no higher term: it leads for as long as anybody follows.
    Stays,
    /// As a leader: entries of earlier leaders reach one half under its own name, their content untouched.
    Renames,
}

/// Who is hostile, and how.
#[derive(Debug, Clone, Default)]
pub struct Adversary {
    /// Who.
    pub hostile: BTreeSet<NodeId>,
    /// How.
    pub lies: BTreeSet<Lie>,
    /// Whether it goes on when everything else heals; it falls silent otherwise.
    pub goes_on: bool,
    /// For [`Lie::Renames`]: from which index on, for each leader's term and whom it tells.
    renamed: Arc<Mutex<BTreeMap<(u64, NodeId), u64>>>,
}

impl Adversary {
    /// As many hostile nodes as the mesh is to survive, with some ways to lie.
    pub fn new(rng: &mut Rng, more: &mut Rng, members: &[NodeId], hostile_max: u32, goes_on: bool) -> Self {
        let all = [
            Lie::Fork,
            Lie::Garbage,
            Lie::Dated(rng.range(0, 60_000) as i64 - 40_000),
            Lie::Commit,
            Lie::Rewrite,
            Lie::Alone,
            Lie::Withhold,
            Lie::Drop,
            Lie::Answers,
            Lie::Votes,
            Lie::Terms,
            Lie::SignsAll,
            Lie::Claims,
            Lie::Recovery,
            Lie::Snapshots,
            Lie::Asks,
        ];
        let share = rng.range(100, 500);
        let mut lies: BTreeSet<Lie> = all.into_iter().filter(|_| rng.permille(share)).collect();
        lies.insert(*rng.pick(&all));
        // Later ones have a stream of their own: an earlier seed lies as it did.
        let later = [(Lie::Censor, 150), (Lie::Stays, 100), (Lie::Renames, 150)];
        lies.extend(later.into_iter().filter(|(_, share)| more.permille(*share)).map(|(lie, _)| lie));
        let mut hostile = BTreeSet::new();
        while hostile.len() < hostile_max as usize {
            hostile.insert(*rng.pick(members));
        }
        Self { hostile, lies, goes_on, renamed: Arc::default() }
    }

    fn does(&self, node: NodeId, lie: Lie) -> bool {
        self.hostile.contains(&node) && self.lies.contains(&lie)
    }

    fn dated(&self) -> Option<i64> {
        self.lies.iter().find_map(|lie| if let Lie::Dated(ms) = lie { Some(*ms) } else { None })
    }

    /// A message as it leaves a node; `None` if it is withheld.
    pub fn outgoing(
        &self,
        world: &Arc<World>,
        from: NodeId,
        to: NodeId,
        message: Message,
    ) -> Option<Message> {
        if !self.hostile.contains(&from) {
            return Some(message);
        }
        match message {
            Message::Append(bytes) => {
                if self.does(from, Lie::Withhold)
                    && to.0.is_multiple_of(2)
                    && world.chance(|rng| rng.permille(900))
                {
                    return None;
                }
                if !self.alters() {
                    return Some(Message::Append(bytes));
                }
                let Ok(mut rpc) = postcard::from_bytes::<AppendEntriesRequest<TypeConfig>>(&bytes) else {
                    return Some(Message::Append(bytes));
                };
                self.alter(world, from, to, &mut rpc);
                let bytes = postcard::to_stdvec(&rpc).map_or(bytes, Bytes::from);
                Some(Message::Append(bytes))
            }
            Message::Snapshot(bytes) if self.does(from, Lie::Snapshots) => {
                let Ok(mut rpc) = postcard::from_bytes::<InstallSnapshotRequest<TypeConfig>>(&bytes) else {
                    return Some(Message::Snapshot(bytes));
                };
                match world.chance(|rng| rng.below(4)) {
                    0 => {
                        let at = world.chance(|rng| rng.draw()) as usize % rpc.data.len().max(1);
                        rpc.data.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1);
                    }
                    1 => rpc.meta.last_log_id.iter_mut().for_each(|id| id.index += 100),
                    2 => {
                        rpc.meta.last_log_id.iter_mut().for_each(|id| id.index = id.index.saturating_sub(100))
                    }
                    _ => return Some(Message::Snapshot(bytes)),
                }
                let bytes = postcard::to_stdvec(&rpc).map_or(bytes, Bytes::from);
                Some(Message::Snapshot(bytes))
            }
            other => Some(other),
        }
    }

    /// Whether a leader's entries are not what they were.
    fn alters(&self) -> bool {
        let lies = [Lie::Fork, Lie::Garbage, Lie::Alone, Lie::Commit, Lie::Renames];
        self.dated().is_some() || lies.iter().any(|lie| self.lies.contains(lie))
    }

    fn alter(&self, world: &World, from: NodeId, to: NodeId, rpc: &mut AppendEntriesRequest<TypeConfig>) {
        for entry in &mut rpc.entries {
            let index = entry.log_id.index;
            let spread = Rng::new(world.seed ^ index).draw();
            match &mut entry.payload {
                EntryPayload::Normal(content) => {
                    let Ok(mut batch) = borsh::from_slice::<Batch>(content.bytes()) else { continue };
                    if let Some(ms) = self.dated() {
                        batch.time.0 = batch.time.0.saturating_add_signed(ms);
                    }
                    // To one half, and not always: the log is to go on, and to differ.
                    if self.does(from, Lie::Fork) && to.0.is_multiple_of(2) && spread.is_multiple_of(4) {
                        batch.time.0 += 1;
                        batch.commands.pop();
                    }
                    let bytes = match self.does(from, Lie::Garbage) && spread.is_multiple_of(7) {
                        true => vec![0xff; 40],
                        false => encode(&batch),
                    };
                    if let Ok(altered) = RaftBatch::new(bytes) {
                        *content = altered;
                    }
                }
                EntryPayload::Blank if self.does(from, Lie::Alone) => {
                    let alone = BTreeSet::from([from.0]);
                    let nodes = BTreeMap::from([(from.0, openraft::EmptyNode {})]);
                    entry.payload = EntryPayload::Membership(Membership::new(vec![alone], nodes));
                }
                EntryPayload::Blank | EntryPayload::Membership(_) => {}
            }
        }
        if self.does(from, Lie::Commit)
            && let Some(commit) = &mut rpc.leader_commit
        {
            let far = world.chance(|rng| rng.range(1, 1_000));
            let leader = openraft::CommittedLeaderId::new(commit.leader_id.term.saturating_sub(1), from.0);
            *commit = LogId::new(leader, commit.index + far);
        }
        if self.does(from, Lie::Renames) && to.0.is_multiple_of(2) {
            self.rename(to, rpc);
        }
    }

    fn rename(&self, to: NodeId, rpc: &mut AppendEntriesRequest<TypeConfig>) {
        let mut renamed = self.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = rpc.entries.iter().map(|e| e.log_id).find(|id| id.leader_id < rpc.vote.leader_id);
        let known = renamed.get(&(rpc.vote.leader_id.term, to)).copied();
        let Some(from) = known.or(earlier.map(|id| id.index)) else { return };
        renamed.insert((rpc.vote.leader_id.term, to), from);
        let ids = rpc.entries.iter_mut().map(|e| &mut e.log_id);
        for id in ids.chain(&mut rpc.prev_log_id).chain(&mut rpc.leader_commit).filter(|id| id.index >= from)
        {
            id.leader_id =
                openraft::CommittedLeaderId::new(rpc.vote.leader_id.term, rpc.vote.leader_id.node_id);
        }
    }

    /// An answer as it leaves a node.
    pub fn answering(
        &self,
        world: &Arc<World>,
        from: NodeId,
        _to: NodeId,
        asked: &Asked,
        reply: Reply,
    ) -> Reply {
        if !self.hostile.contains(&from) {
            return reply;
        }
        match (asked, reply) {
            (Asked::Append(rpc), reply) if self.lies.contains(&Lie::Answers) => {
                let answer = match world.chance(|rng| rng.below(6)) {
                    0 => AppendEntriesResponse::Success,
                    1 => AppendEntriesResponse::Conflict,
                    2 => AppendEntriesResponse::HigherVote(Vote::new(rpc.vote.leader_id.term + 1, from.0)),
                    3 => AppendEntriesResponse::PartialSuccess(rpc.entries.last().map(|e| e.log_id)),
                    _ => return reply,
                };
                raft_reply::<_, openraft::error::RaftError<RaftNodeId>>(answer).unwrap_or(reply)
            }
            (Asked::Vote(vote), reply) if self.lies.contains(&Lie::Votes) => {
                let answer = VoteResponse { vote: *vote, vote_granted: true, last_log_id: None };
                raft_reply::<_, openraft::error::RaftError<RaftNodeId>>(answer).unwrap_or(reply)
            }
            (_, Reply::Highest(_)) if self.lies.contains(&Lie::Claims) => Reply::Highest(TreeSize(1 << 40)),
            (_, Reply::Contribution(_) | Reply::Quote(_))
                if self.lies.contains(&Lie::Recovery) && world.chance(|rng| rng.permille(600)) =>
            {
                Reply::Refused("no".into())
            }
            (_, reply) => reply,
        }
    }

    /// Whether a leader leaves out what is proposed.
    pub fn drops_proposal(&self, node: NodeId, from: NodeId, command: &Command) -> bool {
        let censored = matches!(command, Command::Client(_)) && self.does(node, Lie::Censor);
        node != from && (self.does(node, Lie::Drop) || censored)
    }

    /// Whether a node hears that there is a higher term.
    pub fn hears(&self, node: NodeId, reply: &Reply) -> bool {
        let Reply::Raft(bytes) = reply else { return true };
        !self.does(node, Lie::Stays) || !is_higher_vote(bytes)
    }

    /// Whether a node hears of a candidate.
    pub fn hears_candidates(&self, node: NodeId) -> bool {
        !self.does(node, Lie::Stays)
    }

    /// A hostile node heard a cosignature: it signs the same, whatever it is.
    pub fn heard(&self, node: &Arc<Node>, signed: &Signed) {
        // Two of them would answer one another without end.
        if !self.does(node.id, Lie::SignsAll) || self.hostile.contains(&signed.node) {
            return;
        }
        let checkpoint = checkpoint_of(node.ledger.origin(), signed.checkpoint);
        let time_s = node.ledger.now().0 / 1000;
        let Ok(cosignature) = Cosignature::sign(&node.boot.cosign, &checkpoint, time_s) else { return };
        let (to, own) = (signed.node, Signed { node: node.id, cosignature, ..signed.clone() });
        let speaker = Arc::clone(node);
        node.spawn(async move { drop(speaker.ask(to, Message::Cosign(own), Duration::from_secs(2)).await) });
    }
}

/// Whether a follower answers a leader so.
fn is_higher_vote(bytes: &[u8]) -> bool {
    type Answered = Answer<AppendEntriesResponse<RaftNodeId>, openraft::error::RaftError<RaftNodeId>>;
    matches!(postcard::from_bytes::<Answered>(bytes), Ok(Answer::Ok(AppendEntriesResponse::HigherVote(_))))
}

/// What an answer is to.
pub enum Asked {
    /// Entries.
    Append(Box<AppendEntriesRequest<TypeConfig>>),
    /// A vote.
    Vote(Vote),
    /// Anything else.
    Other,
}

impl Asked {
    /// Only looked at where somebody might lie about it.
    pub fn of(adversary: &Adversary, to: NodeId, message: &Message) -> Self {
        if !adversary.hostile.contains(&to) {
            return Self::Other;
        }
        match message {
            Message::Append(bytes) if adversary.lies.contains(&Lie::Answers) => {
                postcard::from_bytes(bytes).map_or(Self::Other, |rpc| Self::Append(Box::new(rpc)))
            }
            Message::Vote(bytes) if adversary.lies.contains(&Lie::Votes) => {
                postcard::from_bytes::<openraft::raft::VoteRequest<RaftNodeId>>(bytes)
                    .map_or(Self::Other, |rpc| Self::Vote(rpc.vote))
            }
            _ => Self::Other,
        }
    }
}

fn raft_reply<T: serde::Serialize, E: serde::Serialize>(answer: T) -> Option<Reply> {
    postcard::to_stdvec(&Answer::<T, E>::Ok(answer)).ok().map(|bytes| Reply::Raft(bytes.into()))
}

/// Entries of this term, some places back.
async fn rewrite(node: &Arc<Node>) {
    let vote = node.raft.metrics().borrow().vote;
    let back = node.world.chance(|rng| rng.range(1, 6));
    let Some(at) = node.ledger.view().log_index.checked_sub(back) else { return };
    if !vote.committed || vote.leader_id.node_id != node.id.0 {
        return;
    }
    let Ok(Some(prev_log_id)) = node.log.log_id_at(at).await else { return };
    let leader = openraft::CommittedLeaderId::new(vote.leader_id.term, node.id.0);
    let entry = |index| openraft::Entry { log_id: LogId::new(leader, index), payload: EntryPayload::Blank };
    let rpc = AppendEntriesRequest::<TypeConfig> {
        vote,
        prev_log_id: Some(prev_log_id),
        entries: (1..=back).map(|i| entry(at + i)).collect(),
        leader_commit: Some(LogId::new(leader, at + back)),
    };
    let Ok(bytes) = postcard::to_stdvec(&rpc) else { return };
    note!(node.world, "{} sends other entries from {} on", node.id, at + 1);
    for peer in node.peers().into_iter().filter(|p| p.0.is_multiple_of(2)) {
        drop(node.ask(peer, Message::Append(bytes.clone().into()), Duration::from_millis(300)).await);
    }
}

/// What a hostile node does of its own accord.
pub async fn mischief(node: Arc<Node>) {
    let world = Arc::clone(&node.world);
    let adversary = world.adversary.clone();
    loop {
        let pause = world.chance(|rng| rng.range(300, 2_500));
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if adversary.does(node.id, Lie::Terms) {
            let term = node.raft.metrics().borrow().current_term + world.chance(|rng| rng.range(1, 1 << 20));
            let vote = Vote::new(term, node.id.0);
            let rpc = openraft::raft::VoteRequest { vote, last_log_id: None };
            if let Ok(bytes) = postcard::to_stdvec(&rpc) {
                for peer in node.peers() {
                    drop(
                        node.ask(peer, Message::Vote(bytes.clone().into()), Duration::from_millis(200)).await,
                    );
                }
            }
        }
        if adversary.does(node.id, Lie::Asks) {
            let (peer, some) = world.chance(|rng| (*rng.pick(&node.peers()), rng.draw()));
            let known = world.oracle.some_request(some);
            let made_up = [some as u8; 16];
            let (request, connection) = known.unwrap_or((RequestId(made_up), ConnectionId(made_up)));
            let head_digest = Hash(quorate_core::crypto::sha256(&connection.0).0).0;
            for _ in 0..2 {
                let question = Message::CheckHead { request, connection, head_digest };
                drop(node.ask(peer, question, Duration::from_secs(1)).await);
            }
        }
        if adversary.does(node.id, Lie::Rewrite) {
            rewrite(&node).await;
        }
        // It wants the lead; to leave something out it wants nothing more, and keeps it.
        let leads = node.raft.metrics().borrow().current_leader == Some(node.id.0);
        let eager = match adversary.does(node.id, Lie::Censor) {
            true if leads => 0,
            true => 700,
            false => 150,
        };
        if world.chance(|rng| rng.permille(eager)) {
            note!(world, "{} campaigns: it is hostile", node.id);
            drop(node.raft.trigger().elect().await);
        }
    }
}
