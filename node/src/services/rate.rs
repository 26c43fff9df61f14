//! How much of this node one caller may have: calls a second, calls at a time.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Callers remembered: beyond it those are forgotten who have not called for so long that their part is whole again.
const CALLERS_MAX: usize = 4096;

/// Something for each caller: so many at once, so many a second.
#[derive(Debug)]
pub(crate) struct Rate<K> {
    burst: u64,
    per_second: u64,
    left: Mutex<BTreeMap<K, (u64, Instant)>>,
}

impl<K: Ord> Rate<K> {
    pub(crate) fn new(burst: u64, per_second: u64) -> Self {
        Self { burst, per_second, left: Mutex::default() }
    }

    /// Whether this caller may have so much more now.
    pub(crate) fn take(&self, caller: K, amount: u64, now: Instant) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = |have: u64, since: Instant| {
            let seconds = now.saturating_duration_since(since).as_secs();
            (have.saturating_add(seconds.saturating_mul(self.per_second)).min(self.burst), seconds)
        };
        if left.len() >= CALLERS_MAX && !left.contains_key(&caller) {
            left.retain(|_, (have, since)| grown(*have, *since).0 < self.burst);
            if left.len() >= CALLERS_MAX {
                return false;
            }
        }
        let (have, since) = left.entry(caller).or_insert((self.burst, now));
        let (more, seconds) = grown(*have, *since);
        if seconds > 0 {
            (*have, *since) = (more, now);
        }
        let rest = have.checked_sub(amount);
        if let Some(rest) = rest {
            *have = rest;
        }
        rest.is_some()
    }
}

/// Calls of each caller at a time.
#[derive(Debug)]
pub(crate) struct Places<K> {
    each: usize,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

/// One call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Ord> {
    caller: K,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Ord + Clone> Places<K> {
    pub(crate) fn new(each: usize) -> Self {
        Self { each, taken: Arc::default() }
    }

    /// A place for one more call of this caller, if it has one left.
    pub(crate) fn take(&self, caller: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let held = taken.entry(caller.clone()).or_default();
        if *held >= self.each {
            return None;
        }
        *held += 1;
        drop(taken);
        Some(Place { caller, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = taken.get_mut(&self.caller) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_caller_has_its_part_and_no_more() {
        let rate = Rate::new(3, 2);
        let start = Instant::now();
        assert!((0..3).all(|_| rate.take("a", 1, start)) && !rate.take("a", 1, start));
        assert!(rate.take("b", 3, start));
        let later = start + Duration::from_secs(1);
        assert!(rate.take("a", 2, later) && !rate.take("a", 1, later));
        assert!(!rate.take("a", 4, start + Duration::from_secs(9)));
        let whole = start + Duration::from_secs(9);
        assert!(rate.take("a", 3, whole) && !rate.take("a", 1, whole), "never more than at once");
    }

    #[test]
    fn callers_beyond_the_bound_wait_until_others_are_forgotten() {
        let rate = Rate::new(2, 1);
        let start = Instant::now();
        assert!((0..CALLERS_MAX).all(|caller| rate.take(caller, 1, start)));
        assert!(!rate.take(CALLERS_MAX, 1, start));
        assert!(rate.take(CALLERS_MAX, 1, start + Duration::from_secs(2)));
    }

    #[test]
    fn places_come_back() {
        let places = Places::new(2);
        let held = [places.take(1), places.take(1)];
        assert!(held.iter().all(Option::is_some) && places.take(1).is_none() && places.take(2).is_some());
        drop(held);
        assert!(places.take(1).is_some());
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
