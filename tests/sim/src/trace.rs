//! What happened, line by line with virtual time, and a digest over all of it: the same seed must give the same digest.
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// Lines kept for the report of a failure; the digest covers all.
const KEPT: usize = 400;

struct Inner {
    digest: u64,
    lines: u64,
    last: VecDeque<String>,
}

/// A run's trace.
pub struct Trace {
    began: Instant,
    print: bool,
    inner: Mutex<Inner>,
}

impl Trace {
    /// An empty one; prints each line as it comes, if asked to.
    pub fn new(began: Instant, print: bool) -> Self {
        let inner = Inner { digest: 0xcbf2_9ce4_8422_2325, lines: 0, last: VecDeque::new() };
        Self { began, print, inner: Mutex::new(inner) }
    }

    /// Adds a line.
    pub fn line(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", self.began.elapsed().as_secs_f64());
        if self.print {
            println!("{line}");
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in line.bytes() {
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        inner.lines += 1;
        inner.last.push_back(line);
        if inner.last.len() > KEPT {
            inner.last.pop_front();
        }
    }

    /// Digest of all lines so far.
    pub fn digest(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).digest
    }

    /// The last lines.
    pub fn last(&self) -> Vec<String> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).last.iter().cloned().collect()
    }
}

/// Adds a line to a world's trace.
#[macro_export]
macro_rules! note {
    ($world:expr, $($what:tt)*) => { $world.trace.line(format_args!($($what)*)) };
}
