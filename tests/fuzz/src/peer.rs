//! What a peer's channel carries: Raft's own messages, and every message of the API.
use crate::input::Input;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{CommittedLeaderId, EntryPayload};
use prost::Message;
use quorate_core::ids::NodeId;
use quorate_proto::v1;
use quorated::raft::guard::{self, TermGuard};
use quorated::raft::types::{Entry, LogId, Membership, SnapshotMeta, Vote};
use quorated::raft::{Batch, TypeConfig};
use quorated::snapshots::Receiving;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use std::time::Instant;

/// What decodes has one settled form.
fn settled<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value: T = postcard::from_bytes(data).ok()?;
    let Ok(bytes) = postcard::to_stdvec(&value) else { panic!("read and cannot be written") };
    let Ok(again) = postcard::from_bytes::<T>(&bytes) else { panic!("written and cannot be read") };
    assert!(postcard::to_stdvec(&again).is_ok_and(|again| again == bytes));
    Some(value)
}

/// Input: a choice (1), then a message of Raft's as a peer sends it, judged as a node judges it before Raft hears of it.
pub fn raft(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    let mine = Vote::new_committed(5, 1);
    let (terms, now) = (TermGuard::default(), Instant::now());
    match choice % 6 {
        0 => {
            let Some(rpc) = settled::<AppendEntriesRequest<TypeConfig>>(data) else { return false };
            let _judged = terms.check_leader(&mine, &rpc.vote, now);
            let ours: Vec<Option<LogId>> = rpc.entries.iter().map(|e| Some(e.log_id)).collect();
            assert!(guard::held(rpc.prev_log_id, &rpc.entries, &ours) <= rpc.entries.len());
            let members: BTreeSet<u64> = (1..=4).collect();
            let in_effect = Membership::new(vec![members.clone()], None);
            let named = guard::named_since([members.clone()].into_iter(), &in_effect);
            let foreign = guard::foreign_membership(&rpc.entries, &named, &in_effect);
            for entry in rpc.entries.get(..foreign.unwrap_or(rpc.entries.len())).unwrap_or_default() {
                if let EntryPayload::Membership(m) = &entry.payload {
                    assert!(m.nodes().all(|(n, _)| members.contains(n)), "a stranger");
                    assert!(m.get_joint_config().iter().all(|c| *c == members), "voters that nobody named");
                }
            }
            if guard::check_sequence(&rpc).is_ok() {
                let first = rpc.prev_log_id.map_or(0, |p| p.index + 1);
                for (index, entry) in (first..).zip(&rpc.entries) {
                    assert_eq!(entry.log_id.index, index);
                    assert!(entry.log_id.leader_id <= rpc.vote.leader_id);
                }
                let top = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
                // A log's leaders never go back: its own entry there is of none later than the ones after it.
                let ours =
                    rpc.leader_commit.filter(|id| top.is_some_and(|top| id.leader_id <= top.leader_id));
                for ours in [None, ours] {
                    if let Ok(Some(commit)) = guard::commit_of(&rpc, ours) {
                        assert!(Some(commit) <= top, "no further than what the message vouches for");
                    }
                }
            }
            true
        }
        1 => {
            let Some(rpc) = settled::<VoteRequest<u64>>(data) else { return false };
            let far = rpc.vote.leader_id.term.saturating_sub(mine.leader_id.term) > 1 << 40;
            let checked = terms.check_candidate(&mine, &rpc.vote, now);
            assert!(!(far || rpc.vote.committed) || checked.is_err());
            true
        }
        2 => {
            let Some(rpc) = settled::<InstallSnapshotRequest<TypeConfig>>(data) else { return false };
            let (length, done, first) = (rpc.data.len(), rpc.done, rpc.offset == 0);
            match Receiving::default().take(NodeId(1), rpc) {
                Ok(Some(content)) => assert!(done && first && content.len() == length),
                Ok(None) => assert!(!done && first),
                Err(_) => assert!(!first, "a first piece is taken"),
            }
            true
        }
        3 => {
            let mut input = Input(data);
            let at = u64::from(input.byte());
            let Some(answer) = settled::<AppendEntriesResponse<u64>>(input.0) else { return false };
            let prev = Some(LogId::new(CommittedLeaderId::new(1, 1), at));
            let entries = vec![Entry {
                log_id: LogId::new(CommittedLeaderId::new(1, 1), at + 1),
                payload: EntryPayload::Blank,
            }];
            let rpc = AppendEntriesRequest { vote: mine, prev_log_id: prev, entries, leader_commit: None };
            let checked = guard::check_answer(&terms, 2, &rpc, &answer, now);
            if let (Ok(()), AppendEntriesResponse::PartialSuccess(Some(id))) = (checked, &answer) {
                assert!((at..=at + 1).contains(&id.index), "an entry that was not sent");
            }
            true
        }
        4 => settled::<VoteResponse<u64>>(data).is_some(),
        _ => settled::<InstallSnapshotResponse<u64>>(data).is_some(),
    }
}

/// Decodes, and what was decoded has one settled form.
fn message<M: Message + Default>(data: &[u8]) -> bool {
    let Ok(value) = M::decode(data) else { return false };
    let bytes = value.encode_to_vec();
    assert_eq!(bytes.len(), value.encoded_len());
    let Ok(again) = M::decode(bytes.as_slice()) else { panic!("written and cannot be read") };
    assert!(again.encode_to_vec() == bytes);
    true
}

macro_rules! all_messages {
    ($($name:ident),* $(,)?) => {
        /// Every message that is sent.
        const MESSAGES: &[fn(&[u8]) -> bool] = &[$(message::<v1::$name>),*];
    };
}

all_messages!(
    DirectoryRequest,
    DirectoryReply,
    SubmitRequest,
    SubmitReply,
    RegisterRequest,
    RegisterReply,
    TunnelUp,
    TunnelDown,
    Timings,
    Refused,
    ReceiptRequest,
    ReceiptReply,
    UsageRequest,
    UsageReply,
    Usage,
    WindowUsage,
    DayUsage,
    TokenUsage,
    StatusRequest,
    StatusReply,
    CredentialStatus,
    SuspendedPair,
    ShareStatus,
    NodeStatus,
    ChallengeRequest,
    ChallengeReply,
    AdmitRequest,
    AdmitReply,
    RaftMessage,
    ProposeRequest,
    ProposeReply,
    CosignatureMessage,
    CosignReply,
    CheckHeadRequest,
    CheckHeadReply,
    HoleAnswer,
    HeadRefused,
    ContributeRequest,
    ContributeReply,
    RecoveryQuoteRequest,
    RecoveryQuoteReply,
    HighestCosignatureRequest,
    HighestCosignatureReply,
    SnapshotPositionRequest,
    SnapshotPositionReply,
    BlobRequest,
    BlobReply,
    TileRequest,
    TileReply,
);

/// Input: which message (1), its bytes.
pub fn messages(data: &[u8]) -> bool {
    let mut input = Input(data);
    let which = usize::from(input.byte()) % MESSAGES.len();
    MESSAGES.get(which).is_some_and(|message| message(input.0))
}

/// Real structures, as inputs of the targets here.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let id = |term, index| LogId::new(CommittedLeaderId::new(term, 1), index);
    let batch =
        Batch::new(crate::log::with_known(|k| k.mesh.log.leaves.first().cloned().unwrap_or_default()));
    let members = Membership::new(vec![(1..=4).collect()], None);
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(batch.unwrap_or_default()),
        EntryPayload::Membership(members),
    ];
    let entries =
        (8..).zip(payloads).map(|(index, payload)| Entry { log_id: id(5, index), payload }).collect();
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(5, 1),
        prev_log_id: Some(id(4, 7)),
        entries,
        leader_commit: Some(id(5, 9)),
    };
    let vote = VoteRequest { vote: Vote::new(6, 2), last_log_id: Some(id(5, 10)) };
    let install = InstallSnapshotRequest::<TypeConfig> {
        vote: Vote::new_committed(5, 1),
        meta: SnapshotMeta {
            last_log_id: Some(id(5, 10)),
            last_membership: Default::default(),
            snapshot_id: "s".into(),
        },
        offset: 0,
        data: vec![1, 2, 3],
        done: true,
    };
    let answer: AppendEntriesResponse<u64> = AppendEntriesResponse::PartialSuccess(Some(id(1, 3)));
    let bytes = |choice: &[u8], message: Result<Vec<u8>, postcard::Error>| {
        [choice, &message.unwrap_or_default()].concat()
    };
    let mut all = vec![
        ("raft", "append".to_owned(), bytes(&[0], postcard::to_stdvec(&append))),
        ("raft", "vote".to_owned(), bytes(&[1], postcard::to_stdvec(&vote))),
        ("raft", "install".to_owned(), bytes(&[2], postcard::to_stdvec(&install))),
        ("raft", "partial".to_owned(), bytes(&[3, 3], postcard::to_stdvec(&answer))),
    ];
    let open = v1::tunnel_up::Open { pool: vec![1; 16].into(), connection: vec![2; 16].into() };
    let open = v1::TunnelUp { frame: Some(v1::tunnel_up::Frame::Open(open)) };
    let submit = v1::SubmitRequest { command: vec![1, 2, 3].into(), ..Default::default() };
    let propose =
        v1::ProposeRequest { commands: vec![vec![1, 2].into()], blobs: vec![vec![3].into()], withheld: true };
    let cosign = v1::CosignatureMessage { size: 9, root: vec![1; 32].into(), ..Default::default() };
    for (name, which, bytes) in [
        ("tunnel", 6, open.encode_to_vec()),
        ("submit", 2, submit.encode_to_vec()),
        ("propose", 29, propose.encode_to_vec()),
        ("cosign", 31, cosign.encode_to_vec()),
    ] {
        all.push(("messages", name.to_owned(), [&[which], &bytes[..]].concat()));
    }
    all
}
