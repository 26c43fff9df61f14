//! What every build must pass: seeds without a failure, the same seed twice, and bugs put back that must be found.
#![expect(clippy::unwrap_used, reason = "test code")]
use quorate_sim::mutation::Mutation;
use quorate_sim::run::{Ran, run};
use quorate_sim::schedule::{Kinds, Plan};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const THREADS: usize = 2;

fn hostile() -> Kinds {
    Kinds { byzantine: true, relentless: false }
}

/// Runs seeds on a few threads until `enough` says so; what failed, by seed.
fn failures(seeds: Range<u64>, kinds: Kinds, mutation: Mutation, enough: usize) -> Vec<(u64, Ran)> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.lock().unwrap().len() >= enough {
                        return;
                    }
                    let ran = run(&Plan::new(seed, kinds), mutation, false);
                    if ran.failure.is_some() {
                        failed.lock().unwrap().push((seed, ran));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

fn none_fails(seeds: Range<u64>, kinds: Kinds) {
    let failed = failures(seeds, kinds, Mutation::None, 3);
    let said: Vec<String> = failed
        .iter()
        .map(|(seed, ran)| format!("seed {seed}: {}", ran.failure.as_deref().unwrap_or_default()))
        .collect();
    assert!(failed.is_empty(), "{said:#?}\nreplay with tests/sim/run --seed N --trace ({kinds:?})");
}

#[test]
fn crashes_partitions_and_bad_disks_lose_nothing_and_heal() {
    none_fails(0..120, Kinds::default());
}

#[test]
fn one_hostile_node_neither_forks_nor_wedges_the_mesh() {
    none_fails(0..200, hostile());
}

/// Seven nodes, two of them hostile: what three applied and nobody signed stands in the way of what two signed.
#[test]
fn of_seven_an_unsigned_tail_gives_way_to_two_locks() {
    none_fails(217..218, hostile());
}

/// Without the cfg, tokio wakes several waiters in an order that no seed reaches.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_gives_the_same_trace() {
    for (seed, byzantine) in [(1, false), (2, true), (3, false), (4, true)] {
        let plan = Plan::new(seed, if byzantine { hostile() } else { Kinds::default() });
        let (one, other) = (run(&plan, Mutation::None, false), run(&plan, Mutation::None, false));
        assert_eq!((one.digest, one.trace), (other.digest, other.trace), "seed {seed}");
    }
}

/// And the same seed without the bug is clean: it is the bug that was found.
#[test]
fn bugs_that_are_put_back_are_found() {
    use Mutation::*;
    for mutation in [SyncsLate, KeyerTrustsApplied, TrustsCommitIndex, WaitsForEver] {
        let kinds = Kinds { byzantine: mutation.needs_hostile(), relentless: mutation.needs_relentless() };
        let found = failures(0..1_000, kinds, mutation, 1);
        let (seed, ran) =
            found.first().unwrap_or_else(|| panic!("{mutation:?} was not found within 1,000 seeds"));
        println!("{mutation:?}: seed {seed}: {}", ran.failure.as_deref().unwrap_or_default());
        none_fails(*seed..*seed + 1, kinds);
    }
}
