//! When a leader withholds. Raft elects whoever has the longest log, and a lying leader has it: it may leave out what it likes, be
//! unseated, and be elected again before anybody else.
//!
//! **Decides** by what this node sees itself, for each command that it carries: how long a leader led while the command was on its
//! way, by a clock that nobody sets, and whether the log went on without it. Time under another leader, or none, counts for
//! nobody. Time before and after an election counts together, so that a leader gains nothing by being elected anew; what it left
//! out it is shown to have left out in one stint, since whoever comes back begins with an empty queue.
//!
//! ```text
//! client ─► node ─► leader: left out ── SHOWN_AFTER ─► the other nodes carry it, too ── WITHHELD ─► each distrusts by itself
//! ```
//! One node's distrust unseats nobody whom the others still vote for, and only the node that a client came to would see the
//! client's command left out. So it shows the command to the others. A lying one can show them nothing but commands that clients
//! did sign, and those an honest leader takes.
//!
//! The log **went on without** a client's command when a batch came that had room for it: an honest leader's batch is below its
//! bounds only when the leader's queue is empty. Batches that are full show something only when more came than its queue holds, so
//! that a flood has no honest leader distrusted. A batch that is not of the present by this node's clock shows nothing: either this
//! node lags behind, or its clock is wrong.
//!
//! **Assumes** that an honest leader takes every command that a client signed from every attested node, whatever becomes of it in the
//! log, and that one under whom the log goes on has the quorum to do so. Where the log stands still that may be missing:
//! [`super::patience`] knows that case. A leader that takes a client's command from nobody loses the lead; so does one that is
//! slower than this while others fill its log, and somebody quicker is tried.
//!
//! **Leaves to the caller** to begin anew ([`Waited::begin_anew`]) after what is this node's own: it slept, its clock was set, it
//! does not count, it has no link to the leader; and to [`super::guard::TermGuard`] what becomes of a leader that is distrusted.
use crate::proposer::{BATCH_BYTES_MAX, QUEUE_MAX};
use quorate_core::command::COMMANDS_MAX;
use quorate_core::ids::{NodeId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// A command that a leader did not commit in this time of its lead is withheld.
pub const WITHHELD: Duration = Duration::from_secs(2);
/// A client's command that is under way for so long is shown to the other nodes.
pub const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// What a leader commits so long after a command came could have held it: the command was sent twice by then, and a batch that
/// was under way before it is committed.
const TAKEN_WITHIN: Duration = Duration::from_millis(600);
/// A leader that was not heard for so long did not lead meanwhile: its followers begin to elect another.
pub const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// Looks that are so far apart were not made in time: this node slept, or is overloaded.
const SLEPT: Duration = Duration::from_secs(1);
/// A clock that goes so much ahead of time, or behind it, between two looks was set.
const CLOCK_SET_MS: u64 = 500;
/// So many commands in full batches, and what was queued before them is out: of each batch others may have a part, too.
const QUEUE_PASSED: u64 = 2 * QUEUE_MAX as u64;

/// How far the log went on here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Raft index of the last batch that was of the present when it was applied, and had room.
    pub room: u64,
    /// Commands applied so far.
    pub commands: u64,
}

impl Progress {
    /// A batch of so many commands and bytes, and of that time, was applied at this index.
    pub fn step(
        &mut self,
        index: u64,
        commands: usize,
        bytes: usize,
        time: Timestamp,
        now: Timestamp,
        skew_ms: u64,
    ) {
        self.commands = self.commands.saturating_add(commands as u64);
        if commands < COMMANDS_MAX && bytes < BATCH_BYTES_MAX && time.0.abs_diff(now.0) <= skew_ms {
            self.room = index;
        }
    }
}

/// Whether two looks at this node's clocks tell that what it waited is no leader's fault.
pub fn own_break(passed: Duration, before: Timestamp, now: Timestamp) -> bool {
    let expected = before.0.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
    passed > SLEPT || expected.abs_diff(now.0) > CLOCK_SET_MS
}

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

/// What a follower sees at one look.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Who leads, and was heard lately.
    pub leader: NodeId,
    /// In which term.
    pub term: u64,
    /// How far this node received the log.
    pub received: u64,
    /// How far it went on.
    pub progress: Progress,
}

/// An unbroken time under one leader.
#[derive(Debug, Clone, Copy)]
struct Stint {
    leader: NodeId,
    term: u64,
    waited: Duration,
    /// Where the log stood when the leader could have taken the command.
    from: Option<Progress>,
    went_on: bool,
}

/// What became of one command under each leader.
#[derive(Debug, Clone, Default)]
pub struct Waited {
    under: BTreeMap<NodeId, Duration>,
    stint: Option<Stint>,
}

impl Waited {
    /// So much time went by under this leader.
    pub fn step(&mut self, passed: Duration, seen: Seen) {
        let Seen { leader, term, received, progress } = seen;
        *self.under.entry(leader).or_default() += passed;
        let same = self.stint.filter(|s| (s.leader, s.term) == (leader, term));
        let mut stint =
            same.unwrap_or(Stint { leader, term, waited: Duration::ZERO, from: None, went_on: false });
        stint.waited += passed;
        if stint.waited >= TAKEN_WITHIN {
            let from = *stint.from.get_or_insert(Progress { room: received.max(progress.room), ..progress });
            let passed_by = progress.commands.saturating_sub(from.commands) > QUEUE_PASSED;
            stint.went_on = progress.room > from.room || passed_by;
        }
        self.stint = Some(stint);
    }

    /// The leader fell silent, or there is none: what it led until now still counts.
    pub fn pause(&mut self) {
        self.stint = None;
    }

    /// Something was amiss with this node itself: nothing of the time until now counts.
    pub fn begin_anew(&mut self) {
        *self = Self::default();
    }

    fn under(&self, leader: NodeId) -> Duration {
        self.under.get(&leader).copied().unwrap_or_default()
    }

    /// Whether it is time to show it to the other nodes.
    pub fn may_be_shown(&self, leader: NodeId) -> bool {
        self.under(leader) > SHOWN_AFTER
    }

    /// Whether this leader is to be distrusted for it.
    pub fn blames(&self, author: Author, leader: NodeId) -> bool {
        let Some(stint) = self.stint.filter(|s| s.leader == leader) else { return false };
        let went_on = |time| stint.went_on && self.under(leader) > time;
        match author {
            // A leader that commits nothing at all is told so by whoever has something to say itself.
            Author::Own => stint.waited > WITHHELD || went_on(WITHHELD),
            // As late as those whom it was shown to: alone this node would only disturb them.
            Author::Client => went_on(SHOWN_AFTER + WITHHELD),
            Author::Shown => went_on(WITHHELD),
            Author::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);
    const LEADER: NodeId = NodeId(4);

    fn seen(leader: NodeId, term: u64, room: u64) -> Seen {
        Seen { leader, term, received: room, progress: Progress { room, commands: room } }
    }

    /// Tenths of a second until this leader is blamed, when the log grows by one in so many of them.
    fn blamed_after(waited: &mut Waited, author: Author, grows_every: u64) -> Option<u64> {
        (1..=100).find(|at| {
            waited.step(TENTH, seen(LEADER, 7, at / grows_every));
            waited.blames(author, LEADER)
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
            waited.step(TENTH, seen(LEADER, 7, u64::from(at >= 4)));
        }
        assert!(!waited.blames(Author::Shown, LEADER));
        waited.step(TENTH, seen(LEADER, 7, 2));
        assert!(waited.blames(Author::Shown, LEADER), "the next one could have held it");
    }

    #[test]
    fn elections_in_between_gain_a_leader_nothing_and_cost_others_nothing() {
        let mut waited = Waited::default();
        // Whoever takes turns with it begins a term, too.
        for at in 0..30 {
            let leader = if at % 10 == 9 { NodeId(2) } else { LEADER };
            waited.step(TENTH, seen(leader, at / 10 * 2 + u64::from(leader != LEADER), at));
        }
        assert!(!waited.blames(Author::Shown, NodeId(2)));
        for at in 30..37 {
            assert!(!waited.blames(Author::Shown, LEADER), "it has just come back, with an empty queue");
            waited.step(TENTH, seen(LEADER, 6, at));
        }
        assert!(waited.blames(Author::Shown, LEADER));
    }

    #[test]
    fn a_leader_that_fell_silent_did_not_lead_meanwhile() {
        let mut waited = Waited::default();
        for _ in 0..20 {
            waited.step(TENTH, seen(LEADER, 7, 0));
        }
        waited.pause();
        assert!(!waited.blames(Author::Own, LEADER));
        // It started again and leads again: what was sent to it before is lost.
        assert_eq!(blamed_after(&mut waited, Author::Own, 1_000), Some(21));
        // The whole time counts against one that goes on without it.
        waited.pause();
        assert_eq!(blamed_after(&mut waited, Author::Shown, 5), Some(10));
    }

    #[test]
    fn what_a_node_waited_for_by_its_own_fault_blames_nobody() {
        let mut waited = Waited::default();
        for at in 0..20 {
            waited.step(TENTH, seen(LEADER, 7, at));
        }
        waited.begin_anew();
        assert!(!waited.may_be_shown(LEADER));
        assert_eq!(blamed_after(&mut waited, Author::Shown, 5), Some(21));

        let at = Timestamp(1_000_000);
        assert!(!own_break(TENTH, at, at.plus_ms(100)));
        assert!(own_break(Duration::from_secs(3_600), at, at.plus_ms(3_600_000)), "it slept");
        assert!(own_break(TENTH, at.plus_ms(60_000), at.plus_ms(100)), "its clock was a minute ahead");
        assert!(own_break(TENTH, at, at.plus_ms(60_100)), "and is so now");
    }

    #[test]
    fn only_a_batch_of_the_present_with_room_shows_what_was_left_out() {
        let now = Timestamp(1_000_000);
        let after = |commands, bytes, time: u64| {
            let mut progress = Progress::default();
            progress.step(9, commands, bytes, Timestamp(time), now, 5_000);
            progress.room
        };
        assert_eq!(after(COMMANDS_MAX - 1, BATCH_BYTES_MAX - 1, now.0), 9);
        assert_eq!(after(COMMANDS_MAX, 1, now.0), 0, "what comes later waits in the queue");
        assert_eq!(after(1, BATCH_BYTES_MAX, now.0), 0);
        assert_eq!(after(1, 1, now.0 - 5_001), 0, "this node lags, or its clock is ahead");
        assert_eq!(after(1, 1, now.0 + 5_001), 0, "its clock is behind");
    }

    #[test]
    fn a_flood_blames_nobody_until_the_whole_queue_went_by() {
        let mut waited = Waited::default();
        let full = |commands| Seen { progress: Progress { room: 0, commands }, ..seen(LEADER, 7, 0) };
        for at in 0..100 {
            waited.step(TENTH, full(QUEUE_PASSED * at / 100));
        }
        assert!(!waited.blames(Author::Client, LEADER));
        waited.step(TENTH, full(QUEUE_PASSED * 2));
        assert!(waited.blames(Author::Client, LEADER), "it stands behind none of these");
    }
}
