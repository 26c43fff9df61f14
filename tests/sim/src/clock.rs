//! Virtual time, and each machine's own idea of it.
use quorate_core::ids::Timestamp;
use quorate_core::testing::START;
use quorated::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::time::Instant;

/// A machine's clock: virtual time, and how far it is off.
#[derive(Clone)]
pub struct SimClock {
    began: Instant,
    offset_ms: Arc<AtomicI64>,
}

impl SimClock {
    /// Right, from now on.
    pub fn new(began: Instant) -> Self {
        Self { began, offset_ms: Arc::default() }
    }

    /// How far it is off.
    pub fn set_offset(&self, ms: i64) {
        self.offset_ms.store(ms, Ordering::Relaxed);
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        let elapsed = self.began.elapsed().as_millis() as i64;
        let off = self.offset_ms.load(Ordering::Relaxed);
        Timestamp(START.0.saturating_add_signed(elapsed + off))
    }

    /// As the product takes it.
    pub fn given(&self) -> Clock {
        let clock = self.clone();
        Clock::Given(Arc::new(move || clock.now()))
    }
}
