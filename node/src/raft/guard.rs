//! What a lying member may not tell Raft. Raft survives crashed nodes, and openraft believes every message that decodes: here
//! are the bounds that keep one hostile member from stopping the others for good.
//!
//! **Refuses**: terms near the end of their range (a vote is durable, and nobody could ever campaign again), a member that
//! names itself leader again and again, entries that do not follow one another, a commit index that points at other entries
//! than these, Raft memberships that the policy does not name, and for a while a leader under whom nothing was done.
//! **Leaves to the caller** whose message it is, and what this node waited for in vain.
//!
//! It does not tell who deserves to lead: an untrusted sequencer may, and can only delay.
use super::types::{Entry, LogId, Membership, RaftNodeId, TypeConfig, Vote};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far a message may raise the term: more campaigns than a partitioned node makes in its life, and so few that the
/// range of terms lasts longer than any mesh.
const TERM_JUMP_MAX: u64 = 1 << 32;
/// No log grows this long; what is added to an index below it does not overflow.
const INDEX_MAX: u64 = 1 << 62;
/// Terms that one peer may begin on its own word in a row: an unlucky series of elections has fewer.
const BURST: u32 = 8;
/// After those, one in this time: the others elect, and serve, in between.
const REFILL: Duration = Duration::from_secs(20);
/// How long a leader under whom nothing was done is not listened to: for others to elect, and to recover what lapsed.
const DISTRUST: Duration = Duration::from_secs(10);
/// It doubles each time, up to this: a slow node is not kept out of the mesh.
const DISTRUST_MAX: Duration = Duration::from_secs(60);
/// And is forgotten after this.
const FORGIVEN: Duration = Duration::from_secs(600);

/// A message that no honest member sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lie {
    /// A term nobody reaches by campaigning.
    #[error("the term is too far ahead")]
    Term,
    /// Too many terms begun without this node's vote.
    #[error("it began too many terms lately")]
    TooManyTerms,
    /// A leader's message under a candidate's vote, or the reverse.
    #[error("the vote is of the wrong kind")]
    VoteKind,
    /// Entries that do not follow one another.
    #[error("the entries do not follow one another")]
    Sequence,
    /// A commit index that names another entry.
    #[error("the commit index names another entry")]
    Commit,
    /// An answer that does not fit the question.
    #[error("the answer does not fit what was sent")]
    Answer,
    /// No lie: it led, and nothing came of it.
    #[error("nothing was done under this leader lately")]
    Distrusted,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    since: Instant,
    /// The last term counted: a leader says it in many messages.
    counted: u64,
}

#[derive(Debug, Clone, Copy)]
struct Distrust {
    until: Instant,
    lasts: Duration,
}

/// Counts the terms that peers begin, and remembers who led in vain, and when logs conflicted. Clones share all of it.
#[derive(Debug, Clone, Default)]
pub struct TermGuard {
    buckets: Arc<Mutex<HashMap<RaftNodeId, Bucket>>>,
    distrusted: Arc<Mutex<HashMap<RaftNodeId, Distrust>>>,
    heard: Arc<Mutex<Option<Heard>>>,
    conflicted: Arc<Mutex<HashMap<RaftNodeId, Instant>>>,
}

/// The last message of a leader that this node listens to.
#[derive(Debug, Clone, Copy)]
struct Heard {
    leader: RaftNodeId,
    term: u64,
    at: Instant,
}

impl TermGuard {
    /// A leader's log conflicts with what was applied here, or this leader's with what that follower says that it applied.
    pub fn conflicts(&self, node: RaftNodeId, now: Instant) {
        self.conflicted.lock().unwrap_or_else(PoisonError::into_inner).insert(node, now);
    }

    /// With how many members it did since then.
    pub fn conflicting(&self, since: Instant) -> usize {
        let all = self.conflicted.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter(|at| **at >= since).count()
    }

    /// Stops listening to a leader for a while, and says how long. At most `hostile_max` at a time, those of late: more than can
    /// be hostile were never the reason, and somebody must be able to lead.
    ///
    /// Only by what this node saw itself: a peer that could have others distrusted would choose the leader.
    pub fn distrust(&self, node: RaftNodeId, hostile_max: u32, now: Instant) -> Duration {
        let mut all = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, d| now.saturating_duration_since(d.until) < FORGIVEN);
        let lasts = all.get(&node).map_or(DISTRUST, |d| (d.lasts * 2).min(DISTRUST_MAX));
        all.remove(&node);
        let mut others: Vec<&mut Distrust> = all.values_mut().filter(|d| d.until > now).collect();
        others.sort_unstable_by_key(|d| std::cmp::Reverse(d.until));
        for earlier in others.into_iter().skip((hostile_max as usize).saturating_sub(1)) {
            earlier.until = now;
        }
        all.insert(node, Distrust { until: now + lasts, lasts });
        lasts
    }

    /// Whether a leader led in this term until lately: Raft names one until it hears of another, long after it fell silent.
    pub fn was_heard(&self, leader: RaftNodeId, term: u64, within: Duration, now: Instant) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|h| {
            (h.leader, h.term) == (leader, term) && now.saturating_duration_since(h.at) <= within
        })
    }

    fn is_distrusted(&self, node: RaftNodeId, now: Instant) -> bool {
        let all = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&node).is_some_and(|d| d.until > now)
    }

    /// A candidate's vote: openraft's leader lease rations those, here only its range is checked.
    pub fn check_candidate(&self, mine: &Vote, theirs: &Vote, now: Instant) -> Result<(), Lie> {
        if theirs.committed {
            return Err(Lie::VoteKind);
        }
        if self.is_distrusted(theirs.leader_id.node_id, now) {
            return Err(Lie::Distrusted);
        }
        check_term(mine, theirs)
    }

    /// A leader's vote, in a message of its own. One that this node voted for costs nothing; others are counted.
    pub fn check_leader(&self, mine: &Vote, theirs: &Vote, now: Instant) -> Result<(), Lie> {
        if !theirs.committed {
            return Err(Lie::VoteKind);
        }
        // Raft refuses it and says why: an honest leader steps down.
        if theirs.leader_id < mine.leader_id {
            return Ok(());
        }
        // Raft would renew its lease, and while that lasts nobody elects another.
        if self.is_distrusted(theirs.leader_id.node_id, now) {
            return Err(Lie::Distrusted);
        }
        let (leader, term) = (theirs.leader_id.node_id, theirs.leader_id.term);
        if mine.leader_id != theirs.leader_id {
            check_term(mine, theirs)?;
            self.count(leader, term, now)?;
        }
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Heard { leader, term, at: now });
        Ok(())
    }

    /// A higher vote that a follower answers with: it makes a leader step down.
    pub fn check_higher(
        &self,
        from: RaftNodeId,
        mine: &Vote,
        theirs: &Vote,
        now: Instant,
    ) -> Result<(), Lie> {
        if !matches!(theirs.partial_cmp(mine), Some(std::cmp::Ordering::Greater)) {
            return Err(Lie::Answer);
        }
        check_term(mine, theirs)?;
        self.count(from, theirs.leader_id.term, now)
    }

    fn count(&self, node: RaftNodeId, term: u64, now: Instant) -> Result<(), Lie> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(node).or_insert(Bucket { left: BURST, since: now, counted: 0 });
        if bucket.counted == term {
            return Ok(());
        }
        let refilled = now.saturating_duration_since(bucket.since).as_secs() / REFILL.as_secs();
        if refilled > 0 {
            bucket.left = bucket.left.saturating_add(u32::try_from(refilled).unwrap_or(u32::MAX)).min(BURST);
            bucket.since = now;
        }
        bucket.left = bucket.left.checked_sub(1).ok_or(Lie::TooManyTerms)?;
        bucket.counted = term;
        Ok(())
    }
}

/// Whether a term is within reach of this node's.
pub fn check_term(mine: &Vote, theirs: &Vote) -> Result<(), Lie> {
    match theirs.leader_id.term <= mine.leader_id.term.saturating_add(TERM_JUMP_MAX) {
        true => Ok(()),
        false => Err(Lie::Term),
    }
}

/// Whether a leader's entries follow `prev`, and one another, and no leader comes before its predecessor (Raft §5.3). The first
/// entry of all is no leader's: the members of the genesis policy made it, each for itself.
pub fn check_sequence(rpc: &AppendEntriesRequest<TypeConfig>) -> Result<(), Lie> {
    let mut prev: Option<LogId> = rpc.prev_log_id;
    let mut ids = prev.into_iter().chain(rpc.entries.iter().map(|e| e.log_id));
    if ids.any(|id| id.index == 0 && id != LogId::default()) {
        return Err(Lie::Sequence);
    }
    if prev.is_some_and(|p| p.index >= INDEX_MAX || p.leader_id > rpc.vote.leader_id) {
        return Err(Lie::Sequence);
    }
    for entry in &rpc.entries {
        let id = entry.log_id;
        let next = prev.map_or(0, |p| p.index + 1);
        let ordered = prev.is_none_or(|p| p.leader_id <= id.leader_id) && id.leader_id <= rpc.vote.leader_id;
        if id.index != next || !ordered || id.index >= INDEX_MAX {
            return Err(Lie::Sequence);
        }
        prev = Some(id);
    }
    Ok(())
}

/// The leader's commit index, no further than what this message vouches for; `ours` is this node's entry at its index.
///
/// openraft takes the lesser of two log ids, and an id with an early leader and a late index would be the lesser one.
pub fn commit_of(rpc: &AppendEntriesRequest<TypeConfig>, ours: Option<LogId>) -> Result<Option<LogId>, Lie> {
    let top = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
    let (Some(commit), Some(top)) = (rpc.leader_commit, top) else { return Ok(None) };
    if commit.index >= top.index {
        return if commit.leader_id >= top.leader_id { Ok(Some(top)) } else { Err(Lie::Commit) };
    }
    match rpc.entries.iter().map(|e| e.log_id).find(|id| id.index == commit.index) {
        Some(sent) if sent == commit => Ok(Some(commit)),
        Some(_) => Err(Lie::Commit),
        // Purged here, so committed long ago; or our own entry is of a tail that this leader is about to replace.
        None => Ok(ours.filter(|id| *id == commit)),
    }
}

/// How many of the first entries this node's log has already, given its own log ids from `prev` on. A leader that does not
/// know how far a restarted node's log reaches sends again what lies behind it. Only an unbroken row counts: after the first
/// entry that differs Raft would take all the others anew, whatever their ids say.
pub fn held(prev: Option<LogId>, entries: &[Entry], ours: &[Option<LogId>]) -> usize {
    let theirs = std::iter::once(prev).chain(entries.iter().map(|e| Some(e.log_id)));
    let same = theirs.zip(ours).take_while(|(theirs, ours)| theirs == *ours).count();
    same.saturating_sub(1)
}

/// The members that may take effect next: those that the policy in force names, and those of the versions since the one whose
/// members are in effect; `policies` are the newest first. A leader may learn of a policy and append its members only after
/// the next one came, and nobody could ever go on from there. Never back: who has left may be gone for good.
pub fn named_since(
    policies: impl Iterator<Item = BTreeSet<RaftNodeId>>,
    in_effect: &Membership,
) -> Vec<BTreeSet<RaftNodeId>> {
    let mut named: Vec<BTreeSet<RaftNodeId>> = Vec::new();
    for members in policies {
        let effective = in_effect.get_joint_config().contains(&members);
        named.push(members);
        if effective {
            return named;
        }
    }
    named.truncate(1);
    named
}

/// Position of the first entry with a membership of sets that neither `named` has, nor the membership in effect.
///
/// Raft's members take effect when they are appended: a leader that named itself the only voter, and then fell silent,
/// would leave nobody who may campaign.
pub fn foreign_membership(
    entries: &[Entry],
    named: &[BTreeSet<RaftNodeId>],
    in_effect: &Membership,
) -> Option<usize> {
    let known: Vec<&BTreeSet<RaftNodeId>> = in_effect.get_joint_config().iter().chain(named).collect();
    let anybody: BTreeSet<RaftNodeId> = known.iter().copied().flatten().copied().collect();
    let fits = |m: &Membership| {
        let configs = m.get_joint_config();
        let named = !configs.is_empty() && configs.len() <= 2 && configs.iter().all(|c| known.contains(&c));
        named && m.nodes().all(|(n, _)| anybody.contains(n))
    };
    entries.iter().position(|entry| match &entry.payload {
        EntryPayload::Membership(m) => !fits(m),
        EntryPayload::Blank | EntryPayload::Normal(_) => false,
    })
}

/// Whether a follower's answer fits what was sent. openraft asserts it.
pub fn check_answer(
    guard: &TermGuard,
    from: RaftNodeId,
    rpc: &AppendEntriesRequest<TypeConfig>,
    answer: &AppendEntriesResponse<RaftNodeId>,
    now: Instant,
) -> Result<(), Lie> {
    match answer {
        AppendEntriesResponse::Success => Ok(()),
        AppendEntriesResponse::PartialSuccess(matching) => {
            let sent = rpc.entries.iter().map(|e| Some(e.log_id));
            let known = std::iter::once(rpc.prev_log_id).chain(sent).any(|id| id == *matching);
            if known { Ok(()) } else { Err(Lie::Answer) }
        }
        AppendEntriesResponse::Conflict => rpc.prev_log_id.map(drop).ok_or(Lie::Answer),
        AppendEntriesResponse::HigherVote(vote) => guard.check_higher(from, &rpc.vote, vote, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{CommittedLeaderId, EmptyNode};

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, 1), index)
    }
    fn blank(term: u64, index: u64) -> Entry {
        Entry { log_id: id(term, index), payload: EntryPayload::Blank }
    }
    fn rpc(
        prev: Option<LogId>,
        entries: Vec<Entry>,
        commit: Option<LogId>,
    ) -> AppendEntriesRequest<TypeConfig> {
        let vote = Vote::new_committed(9, 1);
        AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit }
    }
    fn membership(configs: &[&[u64]]) -> Membership {
        let sets: Vec<BTreeSet<u64>> = configs.iter().map(|c| c.iter().copied().collect()).collect();
        let nodes: std::collections::BTreeMap<u64, EmptyNode> =
            sets.iter().flatten().map(|n| (*n, EmptyNode {})).collect();
        Membership::new(sets, nodes)
    }

    #[test]
    fn no_message_uses_up_the_terms() {
        let guard = TermGuard::default();
        let (mine, now) = (Vote::new(5, 1), Instant::now());
        assert_eq!(guard.check_candidate(&mine, &Vote::new(u64::MAX, 2), now), Err(Lie::Term));
        assert_eq!(guard.check_candidate(&mine, &Vote::new(6, 2), now), Ok(()));
        assert_eq!(guard.check_candidate(&mine, &Vote::new_committed(6, 2), now), Err(Lie::VoteKind));
        assert_eq!(guard.check_leader(&mine, &Vote::new_committed(u64::MAX, 2), now), Err(Lie::Term));
        assert_eq!(guard.check_leader(&mine, &Vote::new(6, 2), now), Err(Lie::VoteKind));
        assert_eq!(guard.check_higher(2, &mine, &Vote::new(u64::MAX, 2), now), Err(Lie::Term));
        assert_eq!(guard.check_higher(2, &mine, &Vote::new(4, 2), now), Err(Lie::Answer));
    }

    #[test]
    fn nobody_renames_the_first_entry() {
        let first = Entry { log_id: LogId::default(), payload: EntryPayload::Blank };
        assert_eq!(check_sequence(&rpc(None, vec![first.clone(), blank(1, 1)], None)), Ok(()));
        assert_eq!(check_sequence(&rpc(Some(first.log_id), vec![blank(1, 1)], None)), Ok(()));
        assert_eq!(check_sequence(&rpc(None, vec![blank(1, 0)], None)), Err(Lie::Sequence));
        assert_eq!(check_sequence(&rpc(Some(id(1, 0)), vec![], None)), Err(Lie::Sequence));
    }

    #[test]
    fn conflicts_are_counted_by_member() {
        let (guard, now, later) = (TermGuard::default(), Instant::now(), Duration::from_secs(6));
        guard.conflicts(2, now);
        guard.conflicts(2, now + later);
        guard.conflicts(3, now);
        assert_eq!(guard.conflicting(now), 2);
        assert_eq!(guard.conflicting(now + later), 1);
        assert_eq!(guard.conflicting(now + later * 2), 0);
    }

    #[test]
    fn one_peer_cannot_take_the_lead_without_end() {
        let guard = TermGuard::default();
        let now = Instant::now();
        let take = |term, node, now| {
            guard.check_leader(&Vote::new_committed(term - 1, 1), &Vote::new_committed(term, node), now)
        };
        for term in 2..2 + u64::from(BURST) {
            assert_eq!(take(term, 2, now), Ok(()));
        }
        assert_eq!(take(50, 2, now), Err(Lie::TooManyTerms));
        assert_eq!(take(50, 3, now), Ok(()), "others are not held for it");
        assert_eq!(take(50, 2, now + REFILL), Ok(()));
        // What this node voted for, or follows already, costs nothing.
        let voted = Vote::new(60, 2);
        for _ in 0..100 {
            assert_eq!(guard.check_leader(&voted, &Vote::new_committed(60, 2), now), Ok(()));
        }
    }

    #[test]
    fn a_leader_that_did_nothing_is_not_listened_to_for_a_while() {
        let guard = TermGuard::default();
        let start = Instant::now();
        let leads =
            |node, now| guard.check_leader(&Vote::new_committed(5, node), &Vote::new_committed(5, node), now);
        let campaigns = |node, now| guard.check_candidate(&Vote::new(5, 1), &Vote::new(6, node), now);
        assert_eq!(guard.distrust(2, 1, start), DISTRUST);
        assert_eq!(leads(2, start), Err(Lie::Distrusted), "its heartbeats would renew its lease");
        assert_eq!(campaigns(2, start), Err(Lie::Distrusted));
        assert_eq!((leads(3, start), campaigns(3, start)), (Ok(()), Ok(())));
        let stale = guard.check_leader(&Vote::new(6, 1), &Vote::new_committed(5, 2), start);
        assert_eq!(stale, Ok(()), "Raft tells it that its term is over");
        let later = start + DISTRUST;
        assert_eq!((leads(2, later), campaigns(2, later)), (Ok(()), Ok(())));
        // Again and again, it takes longer, and not for ever.
        assert_eq!(guard.distrust(2, 1, later), DISTRUST * 2);
        assert_eq!(leads(2, later + DISTRUST), Err(Lie::Distrusted));
        for _ in 0..9 {
            guard.distrust(2, 1, later);
        }
        assert_eq!(leads(2, later + DISTRUST_MAX), Ok(()));
        assert_eq!(guard.distrust(2, 1, later + DISTRUST_MAX + FORGIVEN), DISTRUST, "it is forgotten");
    }

    #[test]
    fn a_leader_is_heard_while_it_is_listened_to() {
        let guard = TermGuard::default();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let leads = |node, term, now| {
            guard.check_leader(&Vote::new_committed(5, 2), &Vote::new_committed(term, node), now)
        };
        let heard = |node, term, now| guard.was_heard(node, term, second, now);
        assert!(!heard(2, 5, start));
        assert_eq!(leads(2, 5, start), Ok(()));
        assert!(heard(2, 5, start + second) && !heard(2, 5, start + second * 2), "it fell silent");
        assert!(!heard(2, 6, start) && !heard(3, 5, start));
        assert_eq!(leads(1, 4, start + second * 2), Ok(()), "Raft tells it that its term is over");
        assert!(!heard(1, 4, start + second * 2) && !heard(2, 5, start + second * 2));
        assert_eq!(leads(2, u64::MAX, start + second * 2), Err(Lie::Term));
        guard.distrust(2, 1, start);
        assert_eq!(leads(2, 5, start + second * 2), Err(Lie::Distrusted));
        assert!(!heard(2, 5, start + second * 2));
    }

    #[test]
    fn no_more_are_distrusted_than_may_be_hostile() {
        let guard = TermGuard::default();
        let start = Instant::now();
        let distrusted = |now| (1..=5).filter(|node| guard.is_distrusted(*node, now)).collect::<Vec<_>>();
        for (seconds, node) in (1..=3).enumerate() {
            let now = start + Duration::from_secs(seconds as u64);
            guard.distrust(node, 1, now);
            assert_eq!(distrusted(now), [node], "the one of late");
        }
        let now = start + Duration::from_secs(4);
        guard.distrust(4, 2, now);
        assert_eq!(distrusted(now), [3, 4]);
        guard.distrust(4, 2, now);
        assert_eq!(distrusted(now), [3, 4], "the same one again makes nobody else trusted");
        guard.distrust(5, 2, now);
        assert_eq!(distrusted(now), [4, 5]);
    }

    #[test]
    fn entries_follow_one_another() {
        let good = rpc(Some(id(1, 4)), vec![blank(1, 5), blank(2, 6)], None);
        assert_eq!(check_sequence(&good), Ok(()));
        let bad: [(Option<LogId>, Vec<Entry>); 5] = [
            (Some(id(1, 4)), vec![blank(1, 6)]),
            (Some(id(1, 4)), vec![blank(1, 5), blank(1, 7)]),
            (Some(id(3, 4)), vec![blank(2, 5)]),
            (Some(id(1, 4)), vec![blank(10, 5)]),
            (Some(id(1, u64::MAX)), vec![]),
        ];
        for (prev, entries) in bad {
            assert_eq!(check_sequence(&rpc(prev, entries, None)), Err(Lie::Sequence));
        }
    }

    #[test]
    fn a_commit_index_stays_within_what_is_vouched_for() {
        let rpc = |commit| rpc(Some(id(2, 4)), vec![blank(2, 5), blank(3, 6)], Some(commit));
        assert_eq!(commit_of(&rpc(id(3, 9)), None), Ok(Some(id(3, 6))));
        assert_eq!(commit_of(&rpc(id(2, 5)), None), Ok(Some(id(2, 5))));
        assert_eq!(commit_of(&rpc(id(1, 3)), Some(id(1, 3))), Ok(Some(id(1, 3))));
        assert_eq!(commit_of(&rpc(id(1, 3)), None), Ok(None));
        assert_eq!(commit_of(&rpc(id(1, 900)), None), Err(Lie::Commit), "an early leader, a late index");
        assert_eq!(commit_of(&rpc(id(1, 5)), None), Err(Lie::Commit));
        assert_eq!(commit_of(&rpc(id(1, 3)), Some(id(2, 3))), Ok(None), "a tail about to be replaced");
    }

    #[test]
    fn raft_has_the_members_that_the_policy_names() {
        let entry = |m| vec![blank(1, 1), Entry { log_id: id(1, 2), payload: EntryPayload::Membership(m) }];
        let (four, five) = (BTreeSet::from([1, 2, 3, 4]), BTreeSet::from([1, 2, 3, 4, 5]));
        let now = membership(&[&[1, 2, 3, 4]]);
        let check =
            |m, members: &BTreeSet<u64>| foreign_membership(&entry(m), std::slice::from_ref(members), &now);
        assert_eq!(check(membership(&[&[1, 2, 3, 4]]), &four), None);
        assert_eq!(check(membership(&[&[1, 2, 3, 4], &[1, 2, 3, 4, 5]]), &five), None);
        assert_eq!(check(membership(&[&[1, 2, 3, 4, 5]]), &five), None);
        assert_eq!(check(membership(&[&[1, 2, 3, 4, 5]]), &four), Some(1));
        assert_eq!(check(membership(&[&[1]]), &four), Some(1), "alone");
        assert_eq!(check(membership(&[&[1, 2, 3, 4], &[1]]), &four), Some(1));
    }

    #[test]
    fn what_the_log_has_already_is_an_unbroken_row() {
        let entries = vec![blank(2, 5), blank(2, 6), blank(3, 7)];
        let own = |ids: &[(u64, u64)]| ids.iter().map(|(t, i)| Some(id(*t, *i))).collect::<Vec<_>>();
        let count = |ids: &[(u64, u64)]| held(Some(id(2, 4)), &entries, &own(ids));
        assert_eq!(count(&[(2, 4), (2, 5), (2, 6), (3, 7)]), 3);
        assert_eq!(count(&[(2, 4), (2, 5)]), 1, "its log ends there");
        // Raft truncates at the first that differs: the last is the same by its id alone, and would come with anything in it.
        assert_eq!(count(&[(2, 4), (2, 5), (1, 6), (3, 7)]), 1);
        assert_eq!(count(&[(1, 4), (2, 5), (2, 6), (3, 7)]), 0, "not even what comes before is the same");
        assert_eq!(held(None, &[blank(1, 0), blank(1, 1)], &[None, Some(id(1, 0)), None]), 1);
        assert_eq!(held(Some(id(2, 4)), &entries, &[None, None, None, None]), 0);
    }

    #[test]
    fn members_may_come_late_and_never_back() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let (four, five, replaced) = (set(&[1, 2, 3, 4]), set(&[1, 2, 3, 4, 5]), set(&[1, 2, 3, 5]));
        let policies = || [replaced.clone(), five.clone(), four.clone()].into_iter();
        let named = |in_effect: &[&[u64]]| named_since(policies(), &membership(in_effect));
        assert_eq!(named(&[&[1, 2, 3, 4]]), [replaced.clone(), five.clone(), four.clone()]);
        assert_eq!(named(&[&[1, 2, 3, 4, 5]]), [replaced.clone(), five.clone()]);
        // The fourth is gone, and with it every quorum of three of the first four that a silent leader is in.
        let only = vec![replaced.clone()];
        assert_eq!(named(&[&[1, 2, 3, 5]]), only);
        assert_eq!(named(&[&[1, 2]]), only, "nobody knows how old it is");
    }

    #[test]
    fn answers_fit_their_questions() {
        let (guard, now) = (TermGuard::default(), Instant::now());
        let sent = rpc(Some(id(1, 4)), vec![blank(1, 5)], None);
        let check = |rpc: &_, answer| check_answer(&guard, 2, rpc, &answer, now);
        assert_eq!(check(&sent, AppendEntriesResponse::PartialSuccess(Some(id(1, 5)))), Ok(()));
        assert_eq!(check(&sent, AppendEntriesResponse::PartialSuccess(Some(id(1, 6)))), Err(Lie::Answer));
        assert_eq!(check(&sent, AppendEntriesResponse::Conflict), Ok(()));
        assert_eq!(check(&rpc(None, vec![], None), AppendEntriesResponse::Conflict), Err(Lie::Answer));
        let higher = |term| AppendEntriesResponse::HigherVote(Vote::new(term, 2));
        assert_eq!(check(&sent, higher(3)), Err(Lie::Answer));
        for term in 0..u64::from(BURST) {
            assert_eq!(check(&sent, higher(10 + term)), Ok(()));
        }
        assert_eq!(check(&sent, higher(99)), Err(Lie::TooManyTerms), "it cannot depose every leader");
    }
}
