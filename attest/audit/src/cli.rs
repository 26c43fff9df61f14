//! The command line: one subcommand for each question an auditor has, and the one place that writes to the terminal.
use crate::finding::{Error, Finding};
use crate::{blast_radius, life, manifest, mirror, monitor, prove, prune, report, verify, witness};
use clap::{Parser, Subcommand};
use quorate_core::crypto::Hash;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// How a command ends.
pub type Outcome = Result<Exit, Failure>;

/// The exit codes that are not clap's (2: usage).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: what was asked is so.
    Good,
    /// 3: the log, or somebody who serves it, is proven wrong; what was found is on standard output.
    ProvenWrong,
    /// 4: nothing is proven wrong, and somebody should look (`monitor`).
    Alarmed,
}

/// Exit 1: it could not be done; says nothing about the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One line, lower case.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl Failure {
    /// What failed and what to do.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

const AFTER_HELP: &str = "\
An audit begins with a copy and ends without trust in anybody:

  mirror http://node-1.example:7102 log        any node, or another mirror; resumes, and follows
  verify log                                   every signature, quote and decision, again
  report log --out log.html                    one page for people
  explain log REQUEST                          the life of one request
  prove log REQUEST                            proofs of it that others can check
  blast-radius log --package openssl@3.0.1 --release app.release.json
                                               who was served by nodes that ran it
  monitor log --node http://node-1.example:7102 --node …
                                               all nodes, from now on

All of them take --genesis HEX, or QUORATE_GENESIS: the SHA-256 of the first policy, which is
the cluster's identity and what your admins told you. Nothing else is believed.

Exit codes: 0 what was asked holds; 1 it could not be done (disk, network); 2 usage;
3 something is proven wrong; 4 somebody should look (`monitor`).";

/// Decide for yourself what a quorate mesh did, from its genesis digest and a copy of its log
#[derive(Parser)]
#[command(name = "quorate-audit", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Copy a node's log into a folder; resumes, and refuses what does not fit
    Mirror(mirror::MirrorArgs),
    /// Replay a mirrored log from genesis: does everything in it hold?
    Verify(verify::VerifyArgs),
    /// The life of one request: who asked, through whom, on which measured software
    Explain(life::ExplainArgs),
    /// Proofs of one request for others: a receipt, and a C2SP tlog-proof with its keys
    Prove(prove::ProveArgs),
    /// Which requests met a binary or a package, by the evidence of the nodes that served them
    BlastRadius(blast_radius::BlastRadiusArgs),
    /// Release manifests: make one to sign, check a signed one
    Manifest(manifest::ManifestArgs),
    /// Cut off the beginning of a mirror; proofs of what remains stay possible
    Prune(prune::PruneArgs),
    /// One HTML page for people, from a whole mirror
    Report(report::ReportArgs),
    /// Follow all nodes: compare what they sign, verify what is new, raise what somebody should look at
    Monitor(monitor::MonitorArgs),
    /// Cosign logs that only grow (C2SP tlog-witness), or feed a mirrored log to a witness
    Witness(witness::WitnessArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(Exit::Good) => ExitCode::SUCCESS,
        Ok(Exit::ProvenWrong) => ExitCode::from(3),
        Ok(Exit::Alarmed) => ExitCode::from(4),
        Err(failure) => {
            report(&failure);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Outcome {
    match cli.command {
        Subcommands::Mirror(args) => mirror::run(args),
        Subcommands::Verify(args) => verify::run(args),
        Subcommands::Explain(args) => life::run(args),
        Subcommands::Prove(args) => prove::run(args),
        Subcommands::BlastRadius(args) => blast_radius::run(args),
        Subcommands::Manifest(args) => manifest::run(args),
        Subcommands::Prune(args) => prune::run(args),
        Subcommands::Report(args) => report::run(args),
        Subcommands::Monitor(args) => monitor::run(args),
        Subcommands::Witness(args) => witness::run(args),
    }
}

/// The genesis digest, as every command that decides something takes it.
#[derive(Debug, Clone, clap::Args)]
pub struct GenesisArg {
    /// SHA-256 of policy version 1, 64 hex digits: all that is believed without proof
    #[arg(long, env = "QUORATE_GENESIS", value_name = "HEX")]
    pub genesis: Hash,
}

fn report(failure: &Failure) {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut err = std::io::stderr().lock();
    let colour = std::io::stderr().is_terminal();
    for (kind, code, text) in [("error", 31, &failure.message), ("hint", 36, &failure.hint)] {
        if text.is_empty() {
            continue;
        }
        let kind = if colour { format!("\x1b[1;{code}m{kind}\x1b[0m") } else { kind.to_owned() };
        let _nobody_reads = writeln!(err, "quorate-audit: {kind}: {}", plain(text));
    }
}

/// Writes text to standard output.
pub fn say(text: &str) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    };
    write().map_err(|e| Failure::new(format!("cannot write to standard output: {e}"), ""))
}

/// Writes one JSON object on one line.
pub fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::new(format!("cannot encode: {e}"), ""))?;
    say(&format!("{text}\n"))
}

/// Findings for people: place, what, what it means.
pub fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!("  at            {}\n", finding.place));
        text.push_str(&format!("  what          {} [{}]\n", finding.fault, finding.fault.code()));
        text.push_str(&format!("  that means    {}\n\n", finding.fault.meaning()));
    }
    text
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = match &error {
            Error::Found(_) => "`quorate-audit verify` says more",
            Error::Disk { .. } => "free space or fix permissions, then run it again: what is there is kept",
            Error::NoMirror(_) => "make one: `quorate-audit mirror http://NODE:PORT DIR`",
            Error::Pruned(_) => {
                "`verify` checks what remains; for the rest, mirror again into another folder"
            }
            Error::Worker => "this is a bug in quorate-audit: please report it",
        };
        Self::new(chain(&error), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    /// 0 holds, 1 could not be done, 3 proven wrong: what scripts go by.
    #[test]
    fn how_commands_end() {
        let mut mesh = quorate_core::testing::Mesh::four();
        let pool = mesh.open_pool();
        let request = mesh.authorise(&pool);
        mesh.settle(&pool, request);
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mirror = crate::testing::mirror_of(&mesh, dir.path(), &[]);
        let genesis = mesh.fleet.cluster().to_string();
        let run = |command: &str, dir: &std::path::Path, more: &[&str]| {
            let line = ["quorate-audit", command, dir.to_str().unwrap(), "--genesis", &genesis];
            dispatch(Cli::try_parse_from(line.iter().chain(more)).unwrap())
        };
        let (id, there) = (request.to_string(), out.path().to_str().unwrap());
        for json in [&[][..], &["--json"]] {
            assert_eq!(run("verify", dir.path(), json), Ok(Exit::Good));
            assert_eq!(run("explain", dir.path(), &[&[id.as_str()], json].concat()), Ok(Exit::Good));
            assert_eq!(
                run("prove", dir.path(), &[&[id.as_str(), "--out", there], json].concat()),
                Ok(Exit::Good)
            );
        }
        for kind in ["receipt", "leaf", "tlog-proof", "vkeys"] {
            assert!(out.path().join(format!("{id}.{kind}")).is_file(), "{kind}");
        }
        assert!(run("verify", out.path(), &[]).unwrap_err().hint.contains("quorate-audit mirror"));
        let unknown = run("explain", dir.path(), &["00000000000000000000000000000000"]).unwrap_err();
        assert!(unknown.message.contains("no leaf"), "{unknown:?}");

        let note = std::fs::read_to_string(mirror.checkpoint_path()).unwrap();
        let (kept, _) = note.rsplit_once("\u{2014}").unwrap();
        let (kept, _) = kept.rsplit_once("\u{2014}").unwrap();
        std::fs::write(mirror.checkpoint_path(), kept).unwrap();
        for json in [&[][..], &["--json"]] {
            assert_eq!(run("verify", dir.path(), json), Ok(Exit::ProvenWrong));
            assert_eq!(run("explain", dir.path(), &[&[id.as_str()], json].concat()), Ok(Exit::ProvenWrong));
            assert_eq!(
                run("prove", dir.path(), &[&[id.as_str(), "--out", there], json].concat()),
                Ok(Exit::ProvenWrong)
            );
        }
    }
}
