//! `cluster/chaos` after set-up and build: see `quorate_tests::chaos`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use clap::Parser;
use quorate_cluster::mesh::{self, Key, Mesh, Provider, bin_dir};
use quorate_tests::chaos::{BACK, Net, Plan, Report, Stage, Through};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Kills, pauses, cuts off and breaks the disks of real nodes at random, under load, and checks that nothing acknowledged is
/// lost, nothing is forwarded without a certified leaf, and service is back within 15 s of each heal.
///
/// Needs root: each node gets a network namespace and a disk of its own.
#[derive(Parser)]
#[command(name = "cluster/chaos")]
struct Args {
    /// How long load runs.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of everything that is drawn: the same seed draws the same faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// No more disturbances than this.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    faults: usize,
    /// Within how many seconds of each heal service must be back.
    #[arg(long, default_value_t = BACK.as_secs())]
    back_s: u64,
    /// Applications at once.
    #[arg(long, default_value_t = 8)]
    at_once: usize,
    /// Pause of each between two requests, ms.
    #[arg(long, default_value_t = 200)]
    think_ms: u64,
    /// Write the report here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for the mesh's data [default: a fresh temporary one, removed when all went well].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What the program runs in a node's namespace whose links are slow: LISTEN=FROM=TO.
    #[arg(long, hide = true)]
    proxy: Vec<Through>,
    #[arg(long, hide = true, default_value_t = 0)]
    proxy_seed: u64,
}

fn main() -> ExitCode {
    match chaos(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster/chaos: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chaos(args: &Args) -> anyhow::Result<()> {
    if !args.proxy.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(quorate_tests::chaos::proxy(args.proxy.clone(), args.proxy_seed));
    }
    let plan = Plan {
        length: Duration::from_secs_f64(args.minutes.clamp(0.0, 10_000.0) * 60.0),
        faults: args.faults,
        back: Duration::from_secs(args.back_s),
        seed: args.seed,
        at_once: args.at_once,
        think: Duration::from_millis(args.think_ms),
    };
    plan.check()?;
    let temporary = std::env::temp_dir().join(format!("quorate-chaos-{}", std::process::id()));
    let dir = args.dir.clone().unwrap_or_else(|| temporary.clone());
    std::fs::create_dir_all(&dir)?;
    let report = run(&plan, &dir);
    if report.as_ref().map_or(true, |r| !r.broken.is_empty()) {
        eprintln!("cluster/chaos: hint: trace lines are in {}/n*/log", dir.display());
    } else if args.dir.is_none() {
        std::fs::remove_dir_all(&dir)?;
    }
    let report = report?;
    println!("{report}");
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(report.broken.is_empty(), "{} promises were broken", report.broken.len());
    println!("cluster/chaos: ok");
    Ok(())
}

fn run(plan: &Plan, dir: &std::path::Path) -> anyhow::Result<Report> {
    const NODES: u64 = 4;
    let net = Net::make(NODES, dir)?;
    let made = mesh::Plan {
        dir: dir.to_owned(),
        bin: bin_dir()?,
        nodes: NODES,
        hostile_nodes_max: 1,
        timing: None,
        provider: Provider::Demo(vec!["--chunk-delay-ms".into(), "5".into()]),
        key: Key::None,
        grant: (1_000_000, 1_000_000_000, 100_000_000_000_000),
        node_config: String::new(),
    };
    let mesh = Mesh::create_at(&made, &Net::place, &mut |line| eprintln!("{line}"))?;
    let stopped = mesh.clone();
    let outcome = Stage::set(mesh, net).and_then(|stage| stage.run(plan, &mut |line| eprintln!("{line}")));
    stopped.stop();
    // The disks: the namespace would drop them too, but then their folder could not be removed before.
    for site in &stopped.sites {
        let _not_mounted = std::process::Command::new("umount").arg(site.dir.join("data")).output();
    }
    outcome
}
