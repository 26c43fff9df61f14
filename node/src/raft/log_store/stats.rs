//! What the writer thread counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds, in microseconds, of [`LogStats::commit_buckets`]; the last bucket has none.
pub const COMMIT_BUCKETS_US: [u64; 12] =
    [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 102_400, 1_000_000];

/// A reading of the store's counters since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStats {
    /// Transactions made durable, one fsync each.
    pub commits: u64,
    /// Jobs (append, vote, truncate, purge) in them; more than `commits` when queued jobs were joined.
    pub jobs: u64,
    /// Entries made durable.
    pub entries: u64,
    /// Encoded bytes of these entries.
    pub bytes: u64,
    /// Microseconds spent in commits, fsync included.
    pub commit_us_total: u64,
    /// Microseconds of the most recent commit.
    pub commit_us_last: u64,
    /// Commits by duration, not cumulative; see [`COMMIT_BUCKETS_US`].
    pub commit_buckets: [u64; COMMIT_BUCKETS_US.len() + 1],
}

/// Written by the writer thread alone, read by anyone: relaxed order is enough.
#[derive(Default)]
pub(super) struct Counters {
    commits: AtomicU64,
    jobs: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    commit_us_total: AtomicU64,
    commit_us_last: AtomicU64,
    commit_buckets: [AtomicU64; COMMIT_BUCKETS_US.len() + 1],
}

impl Counters {
    pub(super) fn record(&self, jobs: u64, entries: u64, bytes: u64, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.jobs.fetch_add(jobs, Ordering::Relaxed);
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commit_us_total.fetch_add(us, Ordering::Relaxed);
        self.commit_us_last.store(us, Ordering::Relaxed);
        let slot = COMMIT_BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(bucket) = self.commit_buckets.get(slot) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> LogStats {
        let mut stats = LogStats {
            commits: self.commits.load(Ordering::Relaxed),
            jobs: self.jobs.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            commit_us_total: self.commit_us_total.load(Ordering::Relaxed),
            commit_us_last: self.commit_us_last.load(Ordering::Relaxed),
            ..LogStats::default()
        };
        for (to, from) in stats.commit_buckets.iter_mut().zip(&self.commit_buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_lands_in_its_bucket() {
        let counters = Counters::default();
        for us in [50, 51, 2_000_000] {
            counters.record(2, 3, 10, Duration::from_micros(us));
        }
        let stats = counters.read();
        assert_eq!((stats.commits, stats.jobs, stats.entries, stats.bytes), (3, 6, 9, 30));
        assert_eq!(stats.commit_buckets[..2], [1, 1]);
        assert_eq!(stats.commit_buckets[12], 1);
        assert_eq!(stats.commit_us_total, 2_000_101);
        assert_eq!(stats.commit_us_last, 2_000_000);
    }
}
