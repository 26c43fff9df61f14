//! When a follower stops listening to a leader that leads nowhere. Raft renews a leader's lease with every heartbeat, and while it
//! lasts nobody votes for anyone else: a lying leader that sends heartbeats, and nothing that could be certified, would lead for
//! good.
//!
//! **Decides** by what this node sees itself: its leader is heard, there is something to do (the mesh is dark, or what is
//! applied here is not certified), and for [`PATIENCE`] none of it was done. No word of another node counts. **Assumes** that an
//! honest leader whom the faults of DESIGN.md section 4 leave a quorum is quicker. Where they leave it none, nothing is served
//! and honest leaders replace one another: each time they get twice as long, so that one is in time to end it.
//! **Leaves to** [`TermGuard`] what becomes of a leader that is distrusted.
use super::guard::TermGuard;
use super::types::{Raft, RaftNodeId};
use crate::ledger::Ledger;
use crate::recovery::is_dark_now;
use quorate_core::tlog::TreeSize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A recovery asks for contributions, quotes and an entry: some nine seconds, where a peer lets it wait. Once more without that
/// peer, that is less than this.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// It doubles with each leader that led nowhere, up to this.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// How often a follower looks.
const LOOK: Duration = Duration::from_secs(1);

/// What a follower sees.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Whose heartbeats it takes; not its own.
    pub leader: Option<RaftNodeId>,
    /// What is certified.
    pub certified: TreeSize,
    /// Whether anything is left to do.
    pub waiting: bool,
}

/// How long each leader has been waited for.
#[derive(Debug)]
pub struct Patience {
    certified: TreeSize,
    lasts: Duration,
    waited: BTreeMap<RaftNodeId, Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { certified: TreeSize::ZERO, lasts: PATIENCE, waited: BTreeMap::new() }
    }
}

impl Patience {
    /// So much time went by, and this is to be seen now. Returns the leader that there is no patience left with.
    pub fn step(&mut self, passed: Duration, seen: Seen) -> Option<RaftNodeId> {
        if seen.certified > self.certified || !seen.waiting {
            *self = Self { certified: seen.certified.max(self.certified), ..Self::default() };
            return None;
        }
        // One that comes and goes is waited for no longer than one that stays.
        let leader = seen.leader?;
        let waited = self.waited.entry(leader).or_default();
        // A pause of this whole node is no fault of the leader's.
        *waited += passed.min(LOOK * 2);
        if *waited < self.lasts {
            return None;
        }
        self.waited.clear();
        self.lasts = (self.lasts * 2).min(PATIENCE_MAX);
        Some(leader)
    }
}

/// A follower's task.
pub async fn watch(raft: Raft, ledger: Ledger, guard: TermGuard) {
    let (me, certified) = (ledger.me().0, ledger.certified());
    let mut patience = Patience::default();
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = tokio::time::Instant::now();
        let (view, leader) = (ledger.view(), raft.metrics().borrow().current_leader);
        let certified = certified.borrow().as_ref().map_or(TreeSize::ZERO, |c| c.own.size);
        let seen = Seen {
            leader: leader.filter(|l| *l != me),
            certified,
            waiting: is_dark_now(&view, ledger.now()) || certified < view.checkpoint.size,
        };
        if let Some(leader) = patience.step(now.saturating_duration_since(last), seen) {
            let lasts = guard.distrust(leader, view.policy.hostile_nodes_max, now.into_std());
            tracing::warn!(leader, ?lasts, "nothing is certified under this leader: not listening to it");
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(leader: u64, certified: u64, waiting: bool) -> Seen {
        Seen { leader: Some(leader), certified: TreeSize(certified), waiting }
    }

    /// Seconds until there is no patience left, in a hundred of them.
    fn ends(patience: &mut Patience, seen: Seen) -> Option<(usize, RaftNodeId)> {
        (1..=100).find_map(|at| patience.step(SECOND, seen).map(|leader| (at, leader)))
    }

    #[test]
    fn a_leader_that_leads_nowhere_loses_its_follower() {
        let mut patience = Patience::default();
        assert_eq!(
            ends(&mut patience, seen(2, 7, true)),
            Some((16, 2)),
            "one look finds what was certified so far"
        );
        assert_eq!(ends(&mut Patience::default(), seen(2, 7, false)), None, "there is nothing to do");
        assert_eq!(ends(&mut Patience::default(), Seen { leader: None, ..seen(2, 7, true) }), None);
        let mut working = Patience::default();
        assert!((1..100).all(|size| working.step(SECOND * 10, seen(2, size, true)).is_none()));
    }

    #[test]
    fn each_next_leader_gets_more_time_until_something_is_done() {
        let mut patience = Patience::default();
        let waiting = |leader| seen(leader, 0, true);
        let times: Vec<_> = (1..=4).filter_map(|leader| ends(&mut patience, waiting(leader))).collect();
        assert_eq!(times, [(15, 1), (30, 2), (60, 3), (60, 4)]);
        assert_eq!(patience.step(SECOND, seen(4, 1, true)), None);
        assert_eq!(ends(&mut patience, seen(4, 1, true)), Some((15, 4)));
    }

    #[test]
    fn a_leader_that_comes_and_goes_gains_nothing_by_it() {
        let mut patience = Patience::default();
        let leaders = (0..29).map(|at| seen(1 + at % 2, 0, true));
        assert_eq!(leaders.filter_map(|s| patience.step(SECOND, s)).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_node_that_slept_blames_nobody() {
        assert_eq!(Patience::default().step(SECOND * 3600, seen(1, 0, true)), None);
    }
}
