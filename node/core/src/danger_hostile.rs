//! Only in a deliberately hostile build, which no release can contain: the metering switched off, so that a test can show that it
//! is what bounds the tries of a hostile node. In all nodes or in none: it is part of the state machine. Unarmed, it is on.
use std::sync::OnceLock;

static OFF: OnceLock<fn(&str) -> bool> = OnceLock::new();

/// From now on this tells, by its name, which defence is off.
pub fn arm(off: fn(&str) -> bool) {
    let _armed_before = OFF.set(off);
}

/// Whether this defence is off.
pub(crate) fn off(name: &str) -> bool {
    OFF.get().is_some_and(|off| off(name))
}
