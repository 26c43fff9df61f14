//! Only in a deliberately hostile build, which no release can contain: checks of the state machine switched off, so that a test can
//! show what each is good for: `Metering` bounds the tries of a hostile node, `AdminSignatures` stand before each change of policy.
//! In all nodes or in none: they are part of the state machine. Unarmed, they are on.
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
