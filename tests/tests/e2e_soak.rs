//! The soak of `cluster/soak`, for as long as a test may take: what it starts and checks works, and the promises that can be told
//! in half a minute hold. Whether memory grows cannot; the long run is for hands.
//!
//! Real processes and software TPMs; needs the binaries.
//!
//! **These bite**: the report of a run is judged by the same code whose own tests break each promise.
#![forbid(unsafe_code)]
use anyhow::ensure;
use quorate_cluster::soak::{PROVIDER, Plan, soak};
use quorate_tests::lab::{Key, Make};
use quorate_tests::{Lab, Shared};
use std::time::Duration;

static LAB: Shared = Shared::new(Make { name: "soak", provider: &PROVIDER, key: Key::Beside });

/// Load, and between two restarts: one by SIGTERM, one by SIGKILL.
const LENGTH: Duration = Duration::from_secs(24);
const RESTART_EVERY: Duration = Duration::from_secs(8);

#[test]
fn no_failure_without_a_name_and_no_lost_receipt() {
    LAB.run("no_failure_without_a_name_and_no_lost_receipt", |lab: &mut Lab| {
        let plan = Plan {
            length: LENGTH,
            warm_up: LENGTH / 3,
            seed: 5,
            at_once: 6,
            restart_every: RESTART_EVERY,
            samples: None,
        };
        let report = soak(&lab.mesh, &plan, &mut |line| println!("{line}"))?;
        println!("{report}");
        // Too short for slopes.
        let slope = |what: &String| what.contains(" grew by ");
        let broken: Vec<String> = report.violations().into_iter().filter(|v| !slope(v)).collect();
        ensure!(broken.is_empty(), "{broken:?}\n{report}");
        let answered = report.ends.get("answered").copied().unwrap_or_default();
        ensure!(answered > 20 && report.receipts.settled > 20, "too little of it: {report}");
        ensure!(report.restarts.0 >= 1 && report.restarts.1 >= 1, "{:?}", report.restarts);
        Ok(())
    });
}
