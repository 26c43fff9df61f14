//! `cluster/drill` after set-up and build: see `quorate_tests::drill`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use clap::Parser;
use quorate_tests::drill::{ATTACKS, Report, payload, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The tabletop exercise, run for real: starts a mesh of attested nodes with software TPMs, lets one party be hostile at a time,
/// and prints what stopped or exposed each attack, what proves it, and how long that took.
#[derive(Parser)]
#[command(name = "cluster/drill")]
struct Args {
    /// Only attacks whose name contains this; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Says which attacks there are, and ends.
    #[arg(long)]
    list: bool,
    /// Write the table here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the malicious package runs: posts its loot there.
    #[arg(long, hide = true, value_name = "ADDRESS", requires = "home")]
    payload: Option<String>,
    #[arg(long, hide = true)]
    home: Option<PathBuf>,
    #[arg(long, hide = true)]
    pid: Vec<u32>,
}

fn main() -> ExitCode {
    match drill(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster/drill: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn drill(args: Args) -> anyhow::Result<()> {
    if let (Some(address), Some(home)) = (&args.payload, &args.home) {
        println!("{}", payload::run(address, home, &args.pid)?);
        return Ok(());
    }
    if args.list {
        for attack in ATTACKS {
            println!("{:<22} {}", attack.name, attack.what);
        }
        return Ok(());
    }
    let unknown = args.only.iter().find(|o| !ATTACKS.iter().any(|a| a.name.contains(o.as_str())));
    ensure!(unknown.is_none(), "no attack is called {}: see --list", unknown.map_or("", |u| u));
    let begun = Instant::now();
    let mut report = Report { only: args.only, ..Report::default() };
    let ran = run(&mut report);
    println!("{}", report.markdown());
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    ran?;
    report.check()?;
    let seconds = begun.elapsed().as_secs();
    println!(
        "cluster/drill: ok: {} attacks, each stopped or exposed, in {} min {:02} s",
        report.rows.len(),
        seconds / 60,
        seconds % 60
    );
    Ok(())
}
