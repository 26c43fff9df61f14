//! What this process itself has seen of each target: how fast it answers, and whether it fails.
//!
//! ```text
//! closed --(FAILURES_MAX in a row)--> open --(pause)--> one probe --ok--> closed
//!                                       ^----(pause doubled)----failed--'
//! ```
//! An open target is passed over while another is there. Where none is, one request at a time still tries: the breaker
//! spares a provider that is down, it does not decide that nothing is served.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that open a breaker.
const FAILURES_MAX: u32 = 5;
/// How long it stays open first, and at most.
const OPEN: Duration = Duration::from_secs(5);
const OPEN_MAX: Duration = Duration::from_secs(120);
/// Weight of the newest measurement of speed.
const NEWEST: f64 = 0.2;
/// Targets remembered: configured ones and routes are far fewer.
const TARGETS_MAX: usize = 4096;

#[derive(Debug, Default, Clone)]
struct Seen {
    failures: u32,
    open: Option<(Instant, Duration)>,
    probing: bool,
    first_byte_ms: Option<f64>,
}

/// Whether a target may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Yes.
    Closed,
    /// One request may find out.
    Probe,
    /// Not until then; while a probe runs, soon.
    Open(Duration),
}

/// The book of all targets.
#[derive(Debug, Default, Clone)]
pub(crate) struct Book {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, target: &str, change: impl FnOnce(&mut Seen) -> T) -> Option<T> {
        let mut seen = self.lock();
        if let Some(seen) = seen.get_mut(target) {
            return Some(change(seen));
        }
        (seen.len() < TARGETS_MAX).then(|| change(seen.entry(target.to_owned()).or_default()))
    }

    /// Whether the target may be asked now.
    pub(crate) fn verdict(&self, target: &str, now: Instant) -> Verdict {
        match self.lock().get(target) {
            Some(Seen { open: Some((until, _)), probing, .. }) => match until.checked_duration_since(now) {
                Some(left) if !left.is_zero() => Verdict::Open(left),
                _ if *probing => Verdict::Open(Duration::from_secs(1)),
                _ => Verdict::Probe,
            },
            _ => Verdict::Closed,
        }
    }

    /// Enters a request. `force` probes before the pause is over, if no other does.
    pub(crate) fn admit(&self, target: &str, now: Instant, force: bool) -> Option<Pass> {
        let admitted = self.with(target, |seen| match seen.open {
            None => Some(false),
            Some((until, _)) if !seen.probing && (force || until <= now) => {
                seen.probing = true;
                Some(true)
            }
            Some(_) => None,
        });
        let probe = admitted.unwrap_or(Some(false))?;
        Some(Pass { book: self.clone(), target: target.to_owned(), probe, begun: now })
    }

    /// Time to the answer's head, averaged, newest first; `None` before the first.
    pub(crate) fn first_byte_ms(&self, target: &str) -> Option<f64> {
        self.lock().get(target)?.first_byte_ms
    }

    /// Targets whose breaker is open.
    pub(crate) fn open_count(&self) -> usize {
        self.lock().values().filter(|s| s.open.is_some()).count()
    }
}

/// A request on its way to a target. Dropping it without a word says nothing of the target.
#[derive(Debug)]
pub(crate) struct Pass {
    book: Book,
    target: String,
    probe: bool,
    begun: Instant,
}

impl Pass {
    /// It answered.
    pub(crate) fn answered(self, now: Instant) {
        let took = now.saturating_duration_since(self.begun).as_secs_f64() * 1000.0;
        self.book.with(&self.target, |seen| {
            seen.failures = 0;
            seen.open = None;
            seen.first_byte_ms = Some(seen.first_byte_ms.map_or(took, |old| old + NEWEST * (took - old)));
        });
    }

    /// It failed in a way that the next request would meet too.
    pub(crate) fn failed(self, now: Instant) {
        self.book.with(&self.target, |seen| {
            seen.failures = seen.failures.saturating_add(1);
            let pause = match seen.open {
                Some((_, pause)) if self.probe => (pause * 2).min(OPEN_MAX),
                Some(_) => return,
                None if seen.failures >= FAILURES_MAX => OPEN,
                None => return,
            };
            seen.open = Some((now + pause, pause));
        });
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe {
            self.book.with(&self.target, |seen| seen.probing = false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(book: &Book, now: Instant, times: u32) {
        (0..times).for_each(|_| book.admit("t", now, false).unwrap().failed(now));
    }

    #[test]
    fn a_breaker_opens_probes_and_closes() {
        let (book, now) = (Book::default(), Instant::now());
        fail(&book, now, FAILURES_MAX - 1);
        book.admit("t", now, false).unwrap().answered(now);
        fail(&book, now, FAILURES_MAX - 1);
        assert_eq!(book.verdict("t", now), Verdict::Closed, "a success begins the count anew");
        fail(&book, now, 1);
        assert_eq!(book.verdict("t", now), Verdict::Open(OPEN));
        assert!(book.admit("t", now, false).is_none());
        let later = now + OPEN;
        assert_eq!(book.verdict("t", later), Verdict::Probe);
        let probe = book.admit("t", later, false).unwrap();
        assert!(book.admit("t", later, false).is_none(), "one probe at a time");
        probe.failed(later);
        assert_eq!(book.verdict("t", later), Verdict::Open(OPEN * 2));
        // Given up, by a client that hung up: the next may probe.
        drop(book.admit("t", later, true).unwrap());
        let forced = book.admit("t", later, true).unwrap();
        assert!(book.admit("t", later, true).is_none());
        forced.answered(later);
        assert_eq!((book.verdict("t", later), book.open_count()), (Verdict::Closed, 0));
    }

    #[test]
    fn failures_of_requests_under_way_do_not_prolong_an_open_breaker() {
        let (book, now) = (Book::default(), Instant::now());
        let late = book.admit("t", now, false).unwrap();
        fail(&book, now, FAILURES_MAX);
        late.failed(now + Duration::from_secs(3));
        assert_eq!(book.verdict("t", now), Verdict::Open(OPEN));
    }

    #[test]
    fn speed_is_averaged() {
        let (book, now) = (Book::default(), Instant::now());
        assert_eq!(book.first_byte_ms("t"), None);
        book.admit("t", now, false).unwrap().answered(now + Duration::from_millis(100));
        book.admit("t", now, false).unwrap().answered(now + Duration::from_millis(200));
        let ms = book.first_byte_ms("t").unwrap();
        assert!((ms - 120.0).abs() < 1.0, "{ms}");
    }
}
