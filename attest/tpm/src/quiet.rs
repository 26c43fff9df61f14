//! Silences tpm2-tss, which writes to standard error on its own. Our errors carry what it returned.
use std::{env, fs};

/// Sets `TSS2_LOG=all+none` unless the variable is set already. Call it first in `main`, before any thread
/// exists; once there are several it does nothing. Says whether the variable is set.
pub fn silence_c_library() -> bool {
    const VARIABLE: &str = "TSS2_LOG";
    if env::var_os(VARIABLE).is_some() {
        return true;
    }
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(usize::MAX);
    if threads != 1 {
        return false;
    }
    // SAFETY: the kernel lists exactly one thread in this process, and it is running this line. Nobody else can
    // read or write the environment meanwhile.
    unsafe { env::set_var(VARIABLE, "all+none") };
    true
}
