//! Pairs (relay and keyer) that this client leaves out, for a route's credential as it stands: its own request failed over them,
//! the log said that they are barred or suspended, or they that they lack their shares. Forgotten with a new share epoch, and when admins lift what was imposed.
//!
//! Only a memory, for speed: the log decides. What is left out wrongly costs a choice, what is missing costs a refusal.
use quorate_core::ids::RouteId;
use quorate_core::policy::Route;
use quorate_core::state::Pair;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Share epoch of a route's credential, and how often it was lifted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) share_epoch: u32,
    pub(crate) lifted: u32,
}

impl Stamp {
    pub(crate) fn of(route: &Route) -> Self {
        let lifted = route.credential.as_ref().map_or(0, |c| c.lifted);
        Self { share_epoch: route.share_epoch(), lifted }
    }
}

/// The end of leaving a pair out; `None` lasts as long as the stamp.
type Until = Option<Instant>;

/// See the module. Bounded by the policy: its routes, and the 42 pairs of seven members.
#[derive(Default)]
pub(crate) struct Shunned {
    pairs: HashMap<RouteId, (Stamp, BTreeMap<Pair, Until>)>,
    /// When a pair was last cleared: what was asked before says nothing of it any more.
    cleared: HashMap<RouteId, BTreeMap<Pair, Instant>>,
}

impl Shunned {
    pub(crate) fn add(&mut self, route: &RouteId, stamp: Stamp, pair: Pair, until: Until) {
        if stamp.share_epoch == 0 {
            return;
        }
        let entry = self.pairs.entry(route.clone()).or_insert((stamp, BTreeMap::new()));
        if entry.0 != stamp {
            *entry = (stamp, BTreeMap::new());
        }
        let kept = entry.1.entry(pair).or_insert(until);
        // The longer of both.
        *kept = match (*kept, until) {
            (Some(old), Some(new)) => Some(old.max(new)),
            _ => None,
        };
    }

    /// After a pair was refused to a request that was begun at `asked`.
    pub(crate) fn add_refused(
        &mut self,
        route: &RouteId,
        stamp: Stamp,
        pair: Pair,
        asked: Instant,
        until: Instant,
    ) {
        let cleared = self.cleared.get(route).and_then(|c| c.get(&pair));
        if cleared.is_none_or(|cleared| *cleared < asked) {
            self.add(route, stamp, pair, Some(until));
        }
    }

    pub(crate) fn forget(&mut self, route: &RouteId, pair: Pair, now: Instant) {
        if let Some((_, pairs)) = self.pairs.get_mut(route) {
            pairs.remove(&pair);
        }
        self.cleared.entry(route.clone()).or_default().insert(pair, now);
    }

    pub(crate) fn contains(&self, route: &RouteId, stamp: Stamp, pair: Pair, now: Instant) -> bool {
        self.pairs
            .get(route)
            .filter(|(kept, _)| *kept == stamp)
            .and_then(|(_, pairs)| pairs.get(&pair))
            .is_some_and(|until| until.is_none_or(|until| until > now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::ids::NodeId;
    use std::time::Duration;

    #[test]
    fn a_pair_is_left_out_until_its_time_or_another_stamp() {
        let (route, other) = (RouteId::new("r").unwrap(), RouteId::new("s").unwrap());
        let stamp = Stamp { share_epoch: 3, lifted: 0 };
        let pair = |relay, keyer| Pair { relay: NodeId(relay), keyer: NodeId(keyer) };
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let mut shunned = Shunned::default();
        shunned.add(&route, stamp, pair(1, 2), Some(later));
        shunned.add(&route, stamp, pair(1, 3), None);
        let has = |s: &Shunned, stamp, pair, at| s.contains(&route, stamp, pair, at);
        assert!(has(&shunned, stamp, pair(1, 2), start) && !has(&shunned, stamp, pair(1, 2), later));
        assert!(has(&shunned, stamp, pair(1, 3), later));
        assert!(!has(&shunned, stamp, pair(2, 1), start), "the other way round is another pair");
        assert!(!shunned.contains(&other, stamp, pair(1, 3), start));
        for newer in [Stamp { share_epoch: 4, ..stamp }, Stamp { lifted: 1, ..stamp }] {
            assert!(!has(&shunned, newer, pair(1, 3), start));
        }
        // What lasts is not shortened.
        shunned.add(&route, stamp, pair(1, 3), Some(start));
        assert!(has(&shunned, stamp, pair(1, 3), later));
        shunned.forget(&route, pair(1, 3), later);
        assert!(!has(&shunned, stamp, pair(1, 3), start));
        // A refusal of something asked before the pair was cleared comes late.
        let end = later + Duration::from_secs(60);
        shunned.add_refused(&route, stamp, pair(1, 3), start, end);
        assert!(!has(&shunned, stamp, pair(1, 3), later));
        shunned.add_refused(&route, stamp, pair(1, 3), later + Duration::from_millis(1), end);
        assert!(has(&shunned, stamp, pair(1, 3), later) && !has(&shunned, stamp, pair(1, 3), end));
        shunned.forget(&route, pair(1, 3), end);
        shunned.add(&route, Stamp { share_epoch: 4, ..stamp }, pair(2, 1), None);
        assert!(!has(&shunned, stamp, pair(1, 2), start), "another epoch starts anew");
        shunned.add(&other, Stamp::default(), pair(1, 2), None);
        assert!(
            !shunned.contains(&other, Stamp::default(), pair(1, 2), start),
            "without credential no fault"
        );
    }
}
