//! `report DIR`: one self-contained HTML page for people, made from what a replay decided.
//!
//! | module | |
//! |---|---|
//! | `collect` | one pass over history, in bounded memory |
//! | `changes` | what a policy version changed, in words |
//! | `volume` | requests over time |
//! | `html` | markup into which nothing hostile can get |
//! | `picture` | inline SVG |
//! | `page` | the page |
//!
//! The page needs no network, no script and no other file, and says so in a content security policy. It is a function of the
//! mirror: the same copy gives the same bytes, so that two auditors can compare their reports. Where history breaks, the page
//! says so first and tells only what came before.
//!
//! **Refuses** nothing: a log that does not hold gives a page too, and exit code 3.
mod changes;
mod collect;
mod html;
mod page;
mod picture;
#[cfg(test)]
pub(crate) mod tests;
mod volume;

use crate::cli::{self, Exit, Failure, GenesisArg, Outcome};
use crate::finding::{Error, Finding};
use crate::replay::Options;
use crate::store::Mirror;
use quorate_core::crypto::Hash;
use std::path::{Path, PathBuf};

/// `report`'s arguments.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The mirror's folder
    dir: PathBuf,
    #[command(flatten)]
    genesis: GenesisArg,
    /// Where to write the page
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A page, and what it says is wrong.
#[derive(Debug, Clone)]
pub struct Report {
    /// The whole document.
    pub html: String,
    /// Empty where all of the copy holds.
    pub findings: Vec<Finding>,
}

/// Replays a mirror and tells what was in it. `watch` is told of each batch's end and of the newest checkpoint.
pub fn make(
    mirror: &Mirror,
    genesis: Hash,
    options: Options,
    watch: impl FnMut(quorate_core::tlog::TreeSize, quorate_core::tlog::TreeSize),
) -> Result<Report, Error> {
    let collected = match collect::collect(mirror, genesis, options, watch) {
        // It broke before anything could be told.
        Err(Error::Found(finding)) => {
            let html = page::refused(genesis, &finding);
            return Ok(Report { html, findings: vec![*finding] });
        }
        other => other?,
    };
    Ok(Report { html: page::render(&collected), findings: collected.findings })
}

/// Runs the command.
pub fn run(args: ReportArgs) -> Outcome {
    let mirror = Mirror::open(&args.dir)?;
    let bar = indicatif::ProgressBar::new(0);
    let report = make(&mirror, args.genesis.genesis, Options::default(), |done, all| {
        bar.set_length(all.0);
        bar.set_position(done.0);
    });
    bar.finish_and_clear();
    let report = report?;
    write(&args.out, &report.html)?;
    if report.findings.is_empty() {
        cli::say(&format!("wrote {}: everything in this copy holds\n", args.out.display()))?;
        Ok(Exit::Good)
    } else {
        let findings = cli::findings(&report.findings);
        cli::say(&format!("wrote {}; this copy does not hold:\n\n{findings}", args.out.display()))?;
        Ok(Exit::ProvenWrong)
    }
}

/// Whole or not at all.
fn write(out: &Path, html: &str) -> Result<(), Failure> {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = out.with_file_name(name);
    std::fs::write(&part, html).and_then(|()| std::fs::rename(&part, out)).map_err(|e| {
        Failure::new(format!("cannot write {}: {e}", out.display()), "choose another place: --out FILE")
    })
}
