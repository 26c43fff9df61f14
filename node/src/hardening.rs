//! What the process asks of the kernel before it holds anything secret: that nobody of its own user may trace it or read its
//! memory (`PR_SET_DUMPABLE`, prctl(2)), and that no core dump of it is written (`RLIMIT_CORE`). Root on the machine can do both
//! all the same: what it finds is one node's shares, which are worth nothing alone.
//!
//! exec(2) undoes the first, so each start asks again.
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// The kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("the kernel does not let the process close its memory to others ({0})")]
pub struct NotHardened(&'static str, #[source] rustix::io::Errno);

/// Closes the process's memory to everybody but root.
pub fn harden() -> Result<(), NotHardened> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| NotHardened("PR_SET_DUMPABLE", e))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|e| NotHardened("RLIMIT_CORE", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_closed_to_others_and_leaves_no_core() {
        harden().unwrap();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let core = rustix::process::getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    }
}
