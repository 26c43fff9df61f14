//! Development only: a software TPM for each node, and a stand-in for the firmware that would measure it.
//!
//! On a real machine firmware and boot loader extend the PCRs before the kernel starts, and no program can do it in
//! their place afterwards. Here `quorate-launch` does, as root of the very machine it describes: **its measurements
//! prove nothing about this machine.** They exercise the same event log, quote and appraisal that production uses.
//!
//! - [`swtpm`]: software TPM processes that outlive the launcher, found again by their process id.
//! - [`event_log`]: a made-up, well-formed TCG event log of a machine that boots quorated.
//! - [`boot`]: plays an event log into a TPM and measures the node's binary; and what the PCRs must then be.
pub mod boot;
pub mod event_log;
pub mod swtpm;

/// What the launcher says whenever it plays the firmware.
pub const WARNING: &str = "development: plays the firmware; measurements prove nothing about this machine";
