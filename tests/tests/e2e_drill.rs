//! The drill's attacks from outside of the nodes that no other end-to-end test runs: disks, TPMs, strangers, clients whose host is
//! owned. `e2e_attestation` has the other machines, `e2e_hostile` what hostile nodes do; `cluster/drill` runs all of it.
//!
//! Real processes and software TPMs; needs the binaries. **These bite**: each row has its unmutated twin, and names what shows
//! that its check is what stops it; a row without either fails.
#![forbid(unsafe_code)]
use quorate_tests::Shared;
use quorate_tests::drill::{MAKE, Report, outside};

static LAB: Shared = Shared::new(MAKE);

#[test]
fn attacks_from_outside_are_stopped_or_exposed() {
    LAB.run("attacks_from_outside_are_stopped_or_exposed", |lab| {
        let only = [
            "stolen-disk",
            "rolled-back-tpm",
            "rolled-back-disk",
            "self-joining",
            "flooded-term",
            "poisoned-snapshot",
            "client-package",
            "over-budget",
            "revocation",
        ];
        let mut report = Report { only: only.map(str::to_owned).to_vec(), ..Report::default() };
        outside(lab, &mut report)?;
        println!("{}", report.markdown());
        report.check()
    });
}
