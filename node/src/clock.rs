//! The one place where the node reads the wall clock.
use quorate_core::ids::Timestamp;
use std::sync::Arc;

/// Now, by this machine's clock.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = Timestamp(since.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)).unwrap_or(0));
    #[cfg(feature = "danger-hostile")]
    let now = now.plus_ms(crate::danger_hostile::ahead_ms());
    now
}

/// Where a ledger's time comes from.
#[derive(Clone, Default)]
pub enum Clock {
    /// This machine's clock.
    #[default]
    System,
    /// A simulation's.
    Given(Arc<dyn Fn() -> Timestamp + Send + Sync>),
}

impl Clock {
    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => now(),
            Self::Given(now) => now(),
        }
    }
}
