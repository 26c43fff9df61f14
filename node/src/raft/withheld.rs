//! When a leader withholds. Raft elects whoever has the longest log, and a lying leader has it: it may leave out what it likes, be
//! unseated, and be elected again before anybody else.
//!
//! **Decides** by what this node sees itself, for each command that it carries: how long a leader led while the command was on its
//! way, and whether the log went on without it. Time under another leader, or none, counts for nobody; time before and after an
//! election counts together, so that a leader gains nothing by being elected anew.
//!
//! ```text
//! client ─► node ─► leader: left out ── SHOWN_AFTER ─► the other nodes carry it, too ── WITHHELD ─► each distrusts by itself
//! ```
//! One node's distrust unseats nobody whom the others still vote for, and only the node that a client came to would see the
//! client's command left out. So it shows the command to the others. A lying one can show them nothing but commands that clients
//! did sign, and those an honest leader takes.
//!
//! **Assumes** that an honest leader takes every command that a client signed from every attested node, whatever becomes of it in the
//! log, and that one under whom the log goes on has the quorum to do so. Where the log stands still that may be missing:
//! [`super::patience`] knows that case. A leader that takes a client's command from nobody loses the lead; so does one that is
//! slower than this while others fill its log, and somebody quicker is tried.
//! **Leaves to** [`super::guard::TermGuard`] what becomes of a leader that is distrusted.
use quorate_core::ids::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// A command that a leader did not commit in this time of its lead is withheld.
pub const WITHHELD: Duration = Duration::from_secs(2);
/// A client's command that is under way for so long is shown to the other nodes.
pub const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// What a leader commits so long after a command came could have held it: the command was sent twice by then, and a batch that
/// was under way before it is committed.
const TAKEN_WITHIN: Duration = Duration::from_millis(600);
/// Of a pause of the whole node no more is any leader's fault.
const STEP_MAX: Duration = Duration::from_millis(500);

/// Whose command it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    /// This node's.
    Own,
    /// A client's that came to this node.
    Client,
    /// A client's that another node showed.
    Shown,
    /// Anybody else's: a leader may have reasons to leave it out.
    Other,
}

#[derive(Debug, Clone, Copy, Default)]
struct Under {
    waited: Duration,
    /// How far this node had received the log when the leader could have taken it.
    log: Option<u64>,
}

/// What became of one command under each leader.
#[derive(Debug, Clone, Default)]
pub struct Waited {
    under: BTreeMap<NodeId, Under>,
}

impl Waited {
    /// So much time went by under this leader; the log is received up to there.
    pub fn step(&mut self, passed: Duration, leader: NodeId, received: u64) {
        let under = self.under.entry(leader).or_default();
        under.waited += passed.min(STEP_MAX);
        if under.waited >= TAKEN_WITHIN {
            under.log.get_or_insert(received);
        }
    }

    /// Whether it is time to show it to the other nodes.
    pub fn may_be_shown(&self, leader: NodeId) -> bool {
        self.under.get(&leader).is_some_and(|u| u.waited > SHOWN_AFTER)
    }

    /// Whether this leader is to be distrusted for it; the log is applied up to there.
    pub fn blames(&self, author: Author, leader: NodeId, applied: u64) -> bool {
        let Some(under) = self.under.get(&leader) else { return false };
        let went_on = under.log.is_some_and(|then| applied > then);
        match author {
            Author::Own => under.waited > WITHHELD,
            // As late as those whom it was shown to: alone this node would only disturb them.
            Author::Client => went_on && under.waited > SHOWN_AFTER + WITHHELD,
            Author::Shown => went_on && under.waited > WITHHELD,
            Author::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);
    const LEADER: NodeId = NodeId(4);

    /// Tenths of a second until this leader is blamed, when the log grows by one in so many of them.
    fn blamed_after(waited: &mut Waited, author: Author, grows_every: u64) -> Option<u64> {
        (1..=100).find(|at| {
            let applied = at / grows_every;
            waited.step(TENTH, LEADER, applied);
            waited.blames(author, LEADER, applied)
        })
    }

    #[test]
    fn a_leader_that_leaves_out_what_clients_signed_is_blamed_by_all_at_once() {
        let after = |author| blamed_after(&mut Waited::default(), author, 5);
        assert_eq!((after(Author::Own), after(Author::Other)), (Some(21), None));
        // It is shown ten tenths after it came.
        assert_eq!((after(Author::Client), after(Author::Shown)), (Some(31), Some(21)));
    }

    #[test]
    fn a_leader_that_commits_nothing_has_perhaps_no_quorum() {
        let never = 1_000;
        assert_eq!(blamed_after(&mut Waited::default(), Author::Client, never), None);
        assert_eq!(blamed_after(&mut Waited::default(), Author::Shown, never), None);
        assert_eq!(blamed_after(&mut Waited::default(), Author::Own, never), Some(21));
    }

    #[test]
    fn a_batch_that_was_under_way_before_it_blames_nobody() {
        let mut waited = Waited::default();
        // The log grows once, at the fourth tenth of a second.
        for at in 1..=100 {
            waited.step(TENTH, LEADER, u64::from(at >= 4));
        }
        assert!(!waited.blames(Author::Shown, LEADER, 1));
        assert!(waited.blames(Author::Shown, LEADER, 2), "the next one could have held it");
    }

    #[test]
    fn elections_in_between_gain_a_leader_nothing_and_cost_others_nothing() {
        let mut waited = Waited::default();
        for (at, leader) in (0..30).map(|at| (at, if at % 10 == 9 { NodeId(2) } else { LEADER })) {
            waited.step(TENTH, leader, at);
        }
        assert!(waited.blames(Author::Shown, LEADER, 30) && !waited.blames(Author::Shown, NodeId(2), 30));
    }

    #[test]
    fn a_node_that_slept_blames_nobody() {
        let mut waited = Waited::default();
        waited.step(Duration::from_secs(3600), LEADER, 9);
        assert!(!waited.blames(Author::Own, LEADER, 99));
    }
}
