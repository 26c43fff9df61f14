//! The runtime of a process that lives long: its blocking threads are few, and stay.
use std::time::Duration;

/// Blocking jobs at once: a moment's disk or cryptography each. More threads than these would not be faster, and each keeps
/// a stack and allocator's caches for ever: tokio wakes them in turn, so that a burst's threads never become idle.
const BLOCKING_MIN: usize = 8;
const BLOCKING_MAX: usize = 64;

/// A multi-threaded runtime whose memory does not grow with its worst moment.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads((2 * cores).clamp(BLOCKING_MIN, BLOCKING_MAX))
        .thread_keep_alive(Duration::from_secs(3600))
        .build()
}
