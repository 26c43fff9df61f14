//! One hostile party at a time, as real processes: a client, a relay, a keyer, a leader whose host is owned: see
//! `quorate_tests::drill`, which `cluster/drill` runs as well. What reached the provider is asked of the provider, which keeps
//! every byte it decrypted.
//!
//! Two of four nodes run the hostile build (`quorated::danger_hostile`), approved by the admins and attested like any other;
//! the other two are the product's own binary. An attack meets the product's binary first, and is stopped. Then, where a check
//! of ours is what stopped it, the same attack meets a hostile build in which that check alone is off, **and succeeds**: so
//! each row can fail in both directions. Where nothing of ours stands behind a row (the provider's TLS refuses an altered
//! record), it says so.
//!
//! Real processes and software TPMs; builds `quorated-hostile`. The table at the end is this test's report.
#![forbid(unsafe_code)]
use quorate_tests::drill::{MAKE, Report, keyed};
use quorate_tests::{Shared, hostile_build};

static LAB: Shared = Shared::new(MAKE);

#[test]
fn no_release_contains_it() -> anyhow::Result<()> {
    hostile_build::refuses_release()
}

#[test]
fn one_hostile_party_at_a_time() {
    // Before there is a mesh that would wait for it; what failed is said where it is needed.
    let _built = hostile_build::build();
    LAB.run("one_hostile_party_at_a_time", |lab| {
        let mut report = Report::default();
        keyed::rows(lab, &mut report)?;
        println!("{}", report.markdown());
        report.check()
    });
}
