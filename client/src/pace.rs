//! Which of several lanes is likely to be the quickest: by the time their nodes took for a request's authorisation, times the
//! requests that wait for one (the "peak EWMA" of load balancers, without the peak). The leader as the relay saves a hop; no
//! node is told so, clients find out, and turn elsewhere when it is busy.
//!
//! A relay can be quick in order to be chosen. It gains what any relay has: sizes and timing.
use crate::pool::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The newest measurement's weight.
const WEIGHT: f64 = 0.2;
/// After so long without a measurement an old one counts for 37 %: a lane that was slow is tried again in time.
const FORGET: Duration = Duration::from_secs(10);

/// One lane's.
#[derive(Default)]
pub(crate) struct Pace {
    measured: Mutex<Option<(f64, Instant)>>,
    waiting: AtomicUsize,
}

impl Pace {
    /// What to compare; the lowest is the best. Nothing is better than what was never tried.
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        let waiting = self.waiting.load(Ordering::Relaxed) + 1;
        let aged = |(seconds, at): (f64, Instant)| {
            seconds * (-now.saturating_duration_since(at).as_secs_f64() / FORGET.as_secs_f64()).exp()
        };
        lock(&self.measured).map_or(0.0, aged) * waiting as f64
    }

    /// A request begins to wait; until the answer is dropped it counts, and [`Wait::over`] measures it.
    pub(crate) fn begin(&self) -> Wait<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Wait { pace: self, since: Instant::now() }
    }
}

/// See [`Pace::begin`].
pub(crate) struct Wait<'a> {
    pace: &'a Pace,
    since: Instant,
}

impl Wait<'_> {
    /// It was authorised.
    pub(crate) fn over(self) {
        let (seconds, now) = (self.since.elapsed().as_secs_f64(), Instant::now());
        let mut measured = lock(&self.pace.measured);
        let mean = measured.map_or(seconds, |(mean, _)| mean + WEIGHT * (seconds - mean));
        *measured = Some((mean, now));
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.pace.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(seconds: f64, at: Instant) -> Pace {
        Pace { measured: Mutex::new(Some((seconds, at))), waiting: AtomicUsize::new(0) }
    }

    #[test]
    fn the_quick_one_is_preferred_until_it_is_busy() {
        let now = Instant::now();
        let (quick, slow) = (measured(0.002, now), measured(0.003, now));
        assert!(quick.cost(now) < slow.cost(now));
        let waits = quick.begin();
        assert!(quick.cost(now) > slow.cost(now));
        drop(waits);
        assert!(quick.cost(now) < slow.cost(now));
    }

    #[test]
    fn what_is_new_or_long_unused_is_tried() {
        let now = Instant::now();
        let (quick, slow) = (measured(0.002, now), measured(0.003, now));
        assert!(Pace::default().cost(now) < quick.cost(now));
        let later = now + Duration::from_secs(5);
        quick.begin().over();
        let fresh = measured(0.002, later);
        assert!(slow.cost(later) < fresh.cost(later));
    }

    #[test]
    fn a_measurement_moves_the_mean() {
        let pace = measured(1.0, Instant::now());
        pace.begin().over();
        let cost = pace.cost(Instant::now());
        assert!((0.75..0.85).contains(&cost), "{cost}");
    }
}
