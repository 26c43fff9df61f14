//! `cluster/soak` after set-up and build: see `quorate_cluster::soak`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use clap::Parser;
use quorate_cluster::mesh::{self, Key, Mesh, Provider, bin_dir};
use quorate_cluster::soak::{PROVIDER, Plan, soak};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Evidence interval, lapse and nonce age, ms: restarted nodes are back soon, and a busy machine keeps up.
const TIMING: (u64, u64, u64) = (2_000, 10_000, 10_000);
/// Memory is judged after so many minutes, or a third of a shorter run.
const WARM_UP_MINUTES: f64 = 10.0;
/// Shortest run.
const MINUTES_MIN: f64 = 0.2;

/// Mixed load through the adapter while nodes restart: no leak, no lost receipt, no failure without a name.
///
/// Requests in every dialect, plain and streamed, cancelled at any point, to a provider that fails in every way; budgets that are
/// hit; a node restarted every minute. The exit code is 0 only if every promise held.
#[derive(Parser)]
#[command(name = "cluster/soak")]
struct Args {
    /// How long load runs.
    #[arg(long, default_value_t = 30.0, value_name = "MINUTES")]
    minutes: f64,
    /// Of every request, cancel and restart; the timing is the machine's.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Applications at once.
    #[arg(long, default_value_t = 8, value_name = "N")]
    at_once: usize,
    /// Seconds between two restarts.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    restart_every: f64,
    /// Write the result here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write each sample of memory here as it is taken, as JSON lines.
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Folder for the mesh's data [default: a fresh temporary one].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster/soak: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Programs of its own: a build meanwhile must not change what a restarted node is.
fn binaries(dir: &Path) -> anyhow::Result<PathBuf> {
    let (from, bin) = (bin_dir()?, dir.join("bin"));
    std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    for name in ["quorated", "quorate", "quorate-launch", "quorate-demo-provider"] {
        std::fs::copy(from.join(name), bin.join(name)).with_context(|| format!("{name} is not built"))?;
    }
    Ok(bin)
}

fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.minutes >= MINUTES_MIN, "--minutes is at least {MINUTES_MIN}");
    ensure!(args.restart_every >= 1.0 && args.at_once >= 1, "--restart-every and --at-once are at least 1");
    let temporary = std::env::temp_dir().join(format!("quorate-soak-{}", std::process::id()));
    let dir = args.dir.clone().unwrap_or(temporary);
    let plan = mesh::Plan {
        dir: dir.clone(),
        bin: binaries(&dir)?,
        nodes: 4,
        hostile_nodes_max: 1,
        timing: Some(TIMING),
        provider: Provider::Demo(PROVIDER.map(ToOwned::to_owned).into()),
        key: Key::Beside,
        grant: (1_000_000, 100_000_000, 100_000_000_000_000),
        node_config: String::new(),
    };
    let mesh = Mesh::create(&plan, &mut |line| eprintln!("{line}"))?;
    let minutes = |m: f64| Duration::from_secs_f64(m * 60.0);
    let plan = Plan {
        length: minutes(args.minutes),
        warm_up: minutes(WARM_UP_MINUTES.min(args.minutes / 3.0)),
        seed: args.seed,
        at_once: args.at_once,
        restart_every: Duration::from_secs_f64(args.restart_every),
        samples: args.samples.clone(),
    };
    let outcome = mesh
        .start_nodes()
        .and_then(|()| mesh.wait_all_healthy(Duration::from_secs(60)))
        .and_then(|()| soak(&mesh, &plan, &mut |line| eprintln!("{line}")));
    mesh.stop();
    let held = outcome.as_ref().is_ok_and(|report| report.violations().is_empty());
    if held && args.dir.is_none() {
        drop(std::fs::remove_dir_all(&dir));
    } else if !held {
        eprintln!("cluster/soak: hint: trace lines are in {}", dir.display());
    }
    let report = outcome?;
    println!("{report}");
    if let Some(path) = &args.json {
        let mut json = serde_json::to_value(&report)?;
        if let Some(object) = json.as_object_mut() {
            object.insert("violations".into(), report.violations().into());
        }
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let violations = report.violations().len();
    ensure!(violations == 0, "{violations} promises were broken");
    Ok(())
}
