//! `blast-radius`: which requests met a binary, or a package, by the nodes' own evidence.
//!
//! | module | |
//! |---|---|
//! | `shows` | what one piece of evidence shows: event log, IMA list, PCR values, the release that policy names |
//! | `trace` | one pass over history: between which leaves a node showed it, and which requests it served then |
//! | `tell` | text and JSON, with inclusion proofs to the newest checkpoint |
//!
//! Evidence is a photograph: a binary was there when the quote was made, and may have come any time after the quote before.
//! Therefore a request is **shown** where evidence that its relay or keyer rested on, or gave while it ran, shows the binary;
//! and **possible** where it ended between the last evidence without the binary and the first with it. Evidence that was
//! refused counts as well, if the check that failed is one that only the enrolled TPM can fail: a rogue binary is usually found
//! by being refused.
//!
//! ```text
//! evidence   without            with      with          without
//!               │ ░░░ possible ░░ │ ████████ shown ████████ │
//! ```
//! **Assumes** the log holds; the replay decides that on the way, and a log that does not hold gives findings and nothing else.
//! **Cannot see** what a measurement does not cover: what was never measured, or was changed in memory.
mod shows;
mod tell;
#[cfg(test)]
mod tests;
mod trace;

pub use shows::{Reason, Target};
pub use trace::{Affected, Certainty, Exposure, Radius, Role, Served, radius};

use crate::cli::{self, Exit, Failure, GenesisArg, Outcome};
use crate::finding::Error;
use crate::manifest::{self, ManifestError, Package, Release, SignedRelease, Trust};
use crate::replay::Options;
use crate::store::Mirror;
use quorate_core::crypto::Hash;
use std::path::PathBuf;

/// `blast-radius`'s arguments.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["binaries", "package"])))]
pub struct BlastRadiusArgs {
    /// The mirror's folder
    dir: PathBuf,
    #[command(flatten)]
    genesis: GenesisArg,
    /// SHA-256 of a file, as launchers, firmware or IMA measure it; repeat for several
    #[arg(long = "binary", value_name = "HEX")]
    binaries: Vec<Hash>,
    /// NAME, NAME@VERSION or a package URL; which releases hold it, their SBOMs say
    #[arg(long, requires = "releases")]
    package: Option<Package>,
    /// A release manifest, its signature and its SBOM beside it; repeat for each release that ever ran
    #[arg(long = "release", value_name = "FILE")]
    releases: Vec<PathBuf>,
    /// Public keys that releases are believed from, beside admins and policies of the log
    #[arg(long = "signer", value_name = "FILE")]
    signers: Vec<PathBuf>,
    /// List what nodes only certified, too
    #[arg(long)]
    certified: bool,
    /// One JSON object a line, every request with its inclusion proof
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: BlastRadiusArgs) -> Outcome {
    let mirror = Mirror::open(&args.dir)?;
    let mut trust = Trust::default();
    for file in &args.signers {
        trust.keys.extend(manifest::keys(file)?);
    }
    let releases =
        args.releases.iter().map(|p| SignedRelease::read(p)).collect::<Result<Vec<_>, ManifestError>>()?;
    let target = Target::new(&args.binaries, args.package.as_ref(), &releases)?;
    let bar = indicatif::ProgressBar::new(0);
    let found = radius(&mirror, args.genesis.genesis, Options::default(), &target, |done, all| {
        bar.set_length(all.0);
        bar.set_position(done.0);
    });
    bar.finish_and_clear();
    let found = match found {
        Err(Error::Found(finding)) => {
            let text = cli::findings(&[*finding]);
            cli::say(&format!("this log does not hold, so nothing follows from it:\n\n{text}"))?;
            return Ok(Exit::ProvenWrong);
        }
        other => other?,
    };
    // Who is an admin, and which manifests policies name, only the log knows.
    trust.keys.extend(found.admins.iter().map(|(key, name)| (key.clone(), name.clone())));
    trust.manifests.extend(found.manifests.iter().copied());
    let named: Vec<Release> = releases
        .into_iter()
        .filter(|release| target.names(release))
        .map(|release| release.vouch(&trust))
        .collect::<Result<_, _>>()?;
    if args.json {
        tell::json(&mirror, &args, &target, &named, &found, cli::say_json)?;
    } else {
        cli::say(&tell::text(&args, &target, &named, &found))?;
    }
    Ok(Exit::Good)
}

/// Why a question cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// No release holds the package.
    #[error("none of the {releases} release(s) holds the package {package}")]
    PackageNowhere {
        /// What was asked for.
        package: String,
        /// How many were looked at.
        releases: usize,
    },
    /// PCR lists that do not parse; reading a release refuses those.
    #[error("a release names PCRs that are none")]
    Pcrs,
}

impl From<NoTarget> for Failure {
    fn from(error: NoTarget) -> Self {
        let hint = "name every release that ever ran: --release FILE; versions are compared as they stand";
        Self::new(error.to_string(), hint)
    }
}
