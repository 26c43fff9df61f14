//! `cluster/bench` after set-up and build: see `quorate_cluster::bench`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use clap::Parser;
use quorate_cluster::bench::{Plan, Report, measure};
use quorate_cluster::mesh::{self, Key, Mesh, Provider, bin_dir};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rounds when nothing else is asked for.
const ROUNDS: usize = 5;
/// A round's measured part.
const ROUND: Duration = Duration::from_millis(2_500);
/// The same with --quick: under a minute in all.
const QUICK: (usize, Duration) = (1, Duration::from_millis(1_500));
/// The upstream delay of the rows that have one.
const UPSTREAM_MS: u64 = 50;

/// Measures what an attested mesh adds to a direct TLS connection to the same provider, and what it costs.
#[derive(Parser)]
#[command(
    name = "cluster/bench",
    after_help = "Beside other gateways, with a benchmark of theirs or of yours:\n  cluster/bench --serve --provider https://localhost:9101/v1 --provider-ca ca.pem --model mock-gpt\nleaves a mesh and its adapter up, and prints where it listens and the process whose family is to be charged for CPU."
)]
struct Args {
    /// Nodes, 3 to 7. The targets are for four.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(3..=7))]
    nodes: u64,
    /// Few and short rounds: under a minute.
    #[arg(long)]
    quick: bool,
    /// Rounds of each row and side [default: 5, or 1 with --quick].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Only rows whose name contains this, such as `64 plain`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Write the result here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for the mesh's data: the filesystem to measure on [default: a fresh temporary one].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Fail when a target is missed, not only when a request or a receipt failed.
    #[arg(long)]
    check: bool,
    /// Measure nothing: leave the mesh and `quorate serve` up for somebody else's benchmark, until SIGINT or SIGTERM.
    #[arg(long, requires = "provider", conflicts_with_all = ["quick", "rounds", "only", "json", "check"])]
    serve: bool,
    /// With --serve: the provider, https://host:port/v1.
    #[arg(long, value_name = "URL", requires = "model")]
    provider: Option<String>,
    /// PEM of the root that signed its certificate [default: the system's roots].
    #[arg(long, value_name = "FILE", requires = "provider")]
    provider_ca: Option<PathBuf>,
    /// Its API key, which is split over the nodes [default: it asks for none].
    #[arg(long, value_name = "FILE", requires = "provider")]
    provider_key_file: Option<PathBuf>,
    /// Its model.
    #[arg(long, value_name = "NAME", requires = "provider")]
    model: Option<String>,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster/bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<()> {
    let temporary = std::env::temp_dir().join(format!("quorate-bench-{}", std::process::id()));
    let dir = args.dir.clone().unwrap_or_else(|| temporary.clone());
    ensure!(args.serve || args.provider.is_none(), "--provider is for --serve");
    let (provider, key) = match &args.provider {
        None => (Provider::Demo(vec!["--slow-ms".into(), UPSTREAM_MS.to_string()]), Key::Beside),
        Some(url) => {
            let model = args.model.clone().context("--provider needs --model")?;
            let (url, ca) = (url.clone(), args.provider_ca.clone());
            let external = Provider::External { url, ca, model, dialect: "openai".into() };
            (external, args.provider_key_file.clone().map_or(Key::None, Key::File))
        }
    };
    let plan = mesh::Plan {
        dir: dir.clone(),
        bin: bin_dir()?,
        nodes: args.nodes,
        hostile_nodes_max: if args.nodes == 7 { 2 } else { 1 },
        timing: None,
        provider,
        key,
        grant: (60_000_000, 1_000_000_000, 100_000_000_000_000),
        node_config: String::new(),
    };
    let mesh = Mesh::create(&plan, &mut |line| eprintln!("{line}"))?;
    let outcome = if args.serve { serve(&mesh).map(|()| None) } else { run(args, &mesh).map(Some) };
    mesh.stop();
    match &outcome {
        Ok(_) if args.dir.is_none() => drop(std::fs::remove_dir_all(&dir)),
        Ok(_) => {}
        Err(_) => eprintln!("cluster/bench: hint: trace lines are in {}/n*/log", dir.display()),
    }
    let Some(report) = outcome? else { return Ok(()) };
    println!("{report}");
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(report.failures.is_empty(), "{} requests or receipts failed", report.failures.len());
    let missed = report.targets.iter().filter(|t| !t.met).count();
    ensure!(!args.check || missed == 0, "{missed} targets were missed");
    Ok(())
}

/// Leaves everything up until it is told to stop.
fn serve(mesh: &Mesh) -> anyhow::Result<()> {
    mesh.start_nodes()?;
    mesh.wait_all_healthy(Duration::from_secs(60))?;
    mesh.start_adapter(&[])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        println!(
            "cluster/bench: ready http://{}/v1 model {} pid {}",
            mesh.adapter,
            mesh.model,
            std::process::id()
        );
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = end.recv() => {}
        }
        Ok(())
    })
}

fn run(args: &Args, mesh: &Mesh) -> anyhow::Result<Report> {
    mesh.start_nodes()?;
    mesh.wait_all_healthy(Duration::from_secs(60))?;
    let (rounds, round) = if args.quick { QUICK } else { (ROUNDS, ROUND) };
    let rounds = args.rounds.unwrap_or(rounds).max(1);
    let plan = Plan { rounds, round, only: args.only.clone(), upstream_ms: UPSTREAM_MS };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(mesh, &plan, &mut |line| eprintln!("{line}")));
    runtime.shutdown_timeout(Duration::from_secs(1));
    report
}
