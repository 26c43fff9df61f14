//! `quorate-sim --seeds 0..1000`: runs seeds, and prints what was wrong with which.
use clap::Parser;
use quorate_sim::mutation::Mutation;
use quorate_sim::run::{Ran, run};
use quorate_sim::schedule::{Kinds, Plan};
use quorate_sim::shrink::shrink;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Simulates whole meshes, each from one seed.
#[derive(Parser)]
struct Options {
    /// Seeds to run, for instance 0..1000.
    #[arg(long, value_parser = range, conflicts_with = "seed")]
    seeds: Option<Range<u64>>,
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints what happens, for one seed.
    #[arg(long)]
    trace: bool,
    /// For one seed that fails: leaves out whatever it fails without, and prints how it ends then.
    #[arg(long)]
    shrink: bool,
    /// With hostile nodes.
    #[arg(long)]
    byzantine: bool,
    /// With hostile nodes that go on lying after everything else healed.
    #[arg(long)]
    relentless: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Puts a fixed bug back.
    #[arg(long, value_enum, default_value_t = Mutation::None)]
    mutation: Mutation,
    /// Ends at the first failure.
    #[arg(long)]
    first: bool,
}

/// Runs that making one plan small may take.
const RUNS_TO_SHRINK: usize = 200;

fn show(plan: &Plan) {
    println!(
        "{} nodes, {} clients{}, evidence every {} ms, heals at {} ms",
        plan.nodes,
        plan.clients,
        if plan.busy { " (busy)" } else { "" },
        plan.evidence_ms,
        plan.heals_at_ms
    );
    if plan.rogue {
        println!("  one client is hostile");
    }
    if !plan.adversary.hostile.is_empty() {
        println!(
            "  hostile: {:?}, goes on: {}, {:?}",
            plan.adversary.hostile, plan.adversary.goes_on, plan.adversary.lies
        );
    }
    plan.events.iter().for_each(|e| println!("  {e}"));
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("two numbers with .. between them")?;
    let number = |t: &str| t.parse::<u64>().map_err(|e| e.to_string());
    Ok(number(from)?..number(to)?)
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    let kinds = Kinds { byzantine: options.byzantine || options.relentless, relentless: options.relentless };
    if let Some(seed) = options.seed {
        if std::env::var_os("RUST_LOG").is_some() {
            tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .without_time()
                .init();
        }
        let plan = Plan::new(seed, kinds);
        show(&plan);
        let ran = run(&plan, options.mutation, options.trace);
        println!(
            "digest {:016x}, {} served, served again {:?} after the healing",
            ran.digest, ran.filled, ran.healed_in
        );
        if ran.failure.is_some() && options.shrink {
            let (plan, ran) = shrink(&plan, options.mutation, RUNS_TO_SHRINK);
            println!("without what does not matter:");
            show(&plan);
            ran.trace.iter().for_each(|line| println!("{line}"));
        }
        return verdict(&ran.failure);
    }
    let seeds = options.seeds.unwrap_or(0..100);
    let (next, began) = (AtomicU64::new(seeds.start), Instant::now());
    let (to, results) = mpsc::channel::<(u64, Ran)>();
    let mut failed = 0;
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            let (to, next, seeds) = (to.clone(), &next, &seeds);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end
                        || to.send((seed, run(&Plan::new(seed, kinds), options.mutation, false))).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(to);
        let (mut done, mut filled, mut installed, mut locked) = (0u64, 0, 0, 0);
        let mut slowest = (std::time::Duration::ZERO, 0);
        for (seed, ran) in results {
            done += 1;
            filled += ran.filled;
            installed += ran.installed;
            locked += u64::from(ran.locked);
            slowest = slowest.max((ran.healed_in.unwrap_or_default(), seed));
            if let Some(failure) = &ran.failure {
                failed += 1;
                println!("seed {seed}: {failure}");
                if options.first {
                    next.store(seeds.end, Ordering::Relaxed);
                }
            }
            if done.is_multiple_of(100) {
                let rate = done as f64 / began.elapsed().as_secs_f64();
                println!("{done} seeds, {failed} failed, {filled} requests served, {rate:.1} seeds/s");
            }
        }
        println!(
            "{done} seeds in {:.0} s, {failed} failed, {filled} requests served, {installed} snapshots installed, {locked} left to admins; slowest to serve again: seed {}, {:.1} s",
            began.elapsed().as_secs_f64(),
            slowest.1,
            slowest.0.as_secs_f64()
        );
    });
    if failed == 0 { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}

fn verdict(failure: &Option<String>) -> std::process::ExitCode {
    match failure {
        None => std::process::ExitCode::SUCCESS,
        Some(failure) => {
            println!("{failure}");
            std::process::ExitCode::FAILURE
        }
    }
}
