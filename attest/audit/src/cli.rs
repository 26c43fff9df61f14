//! The command line: one subcommand for each question an auditor has, and the one place that writes to the terminal.
use crate::finding::{Error, Finding};
use crate::{life, mirror, prove, verify, witness};
use clap::{Parser, Subcommand};
use quorate_core::crypto::Hash;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// How a command ends well.
pub type Outcome = Result<Exit, Failure>;

/// The exit codes that are not clap's (2: usage).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: what was asked is so.
    Good,
    /// 3: the log, or somebody who serves it, is proven wrong; what was found is on standard output.
    ProvenWrong,
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

  quorate-audit mirror http://node-1.example:7102 log     # any node, or another mirror; resumes
  quorate-audit verify log --genesis 0606c2e3…            # every signature, quote and decision again
  quorate-audit explain log --genesis 0606c2e3… REQUEST   # the life of one request
  quorate-audit prove log --genesis 0606c2e3… REQUEST     # for others to check

The genesis digest is the SHA-256 of the first policy: the cluster's identity, which your admins told you. It may stand in
QUORATE_GENESIS.

Exit codes: 0 what was asked holds; 1 it could not be done (disk, network); 2 usage; 3 something is proven wrong.";

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
    /// Cosign logs that only grow (C2SP tlog-witness), or feed a mirrored log to a witness
    Witness(witness::WitnessArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Subcommands::Mirror(args) => mirror::run(args),
        Subcommands::Verify(args) => verify::run(args),
        Subcommands::Explain(args) => life::run(args),
        Subcommands::Prove(args) => prove::run(args),
        Subcommands::Witness(args) => witness::run(args),
    };
    match outcome {
        Ok(Exit::Good) => ExitCode::SUCCESS,
        Ok(Exit::ProvenWrong) => ExitCode::from(3),
        Err(failure) => {
            report(&failure);
            ExitCode::FAILURE
        }
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
}
