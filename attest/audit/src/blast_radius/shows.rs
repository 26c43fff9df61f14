//! What one piece of evidence shows. Nothing here decides whether the evidence is good: the replay did.
use super::NoTarget;
use crate::manifest::{Package, SignedRelease};
use quorate_attest::evidence::Evidence;
use quorate_attest::{eventlog, ima};
use quorate_core::crypto::Hash;
use quorate_core::ids::NodeId;
use quorate_core::policy::Policy;
use quorate_core::state::Blobs;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Reasons told of one exposure: the first few say it all.
pub(super) const REASONS_MAX: usize = 8;

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Digests of files, and where each comes from.
    digests: BTreeMap<Hash, String>,
    releases: Vec<Sought>,
}

#[derive(Debug, Clone)]
struct Sought {
    manifest: Hash,
    name: String,
    pcrs: BTreeMap<u8, BTreeSet<Hash>>,
}

/// Why evidence counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Reason {
    /// An event of the replayed log has the digest.
    EventLog {
        /// In this PCR.
        pcr: u8,
        /// The digest.
        digest: Hash,
        /// Whose digest.
        what: String,
    },
    /// A file in the quoted part of the IMA list has the digest.
    Ima {
        /// The digest.
        digest: Hash,
        /// Its path then.
        path: String,
        /// Whose digest.
        what: String,
    },
    /// All PCRs that the release names have values that it names.
    Pcrs {
        /// Which release.
        release: String,
    },
    /// The reference values that the node was good by were taken from this release, says the policy.
    Policy {
        /// Which release.
        release: String,
        /// Whether from this one alone; otherwise it may have been another one.
        alone: bool,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EventLog { pcr, digest, what } => write!(f, "event log, PCR {pcr}: {digest} ({what})"),
            Self::Ima { digest, path, what } => {
                write!(f, "IMA list: {} {digest} ({what})", path.escape_debug())
            }
            Self::Pcrs { release } => write!(f, "the quoted PCRs are those of release {release}"),
            Self::Policy { release, alone: true } => {
                write!(f, "policy: its reference values are those of release {release}")
            }
            Self::Policy { release, alone: false } => {
                write!(f, "policy: its reference values are those of release {release} or of another one")
            }
        }
    }
}

impl Reason {
    /// Whether the evidence cannot be that of something else.
    pub(super) fn is_certain(&self) -> bool {
        !matches!(self, Self::Policy { alone: false, .. })
    }
}

impl Target {
    /// Files of these digests, and whatever the releases consist of that hold the package.
    pub fn new(
        binaries: &[Hash],
        package: Option<&Package>,
        releases: &[SignedRelease],
    ) -> Result<Self, NoTarget> {
        let mut target = Self::default();
        for digest in binaries {
            target.digests.insert(*digest, "as asked for".into());
        }
        if let Some(package) = package {
            let holding = |r: &&SignedRelease| r.components().iter().any(|c| package.is(c));
            for release in releases.iter().filter(holding) {
                for binary in &release.manifest().binaries {
                    let what = format!("{} of release {}", binary.name.escape_debug(), release.name());
                    target.digests.entry(binary.sha256).or_insert(what);
                }
                target.releases.push(Sought {
                    manifest: release.digest(),
                    name: release.name(),
                    pcrs: release.manifest().pcr_values().map_err(|_| NoTarget::Pcrs)?,
                });
            }
            if target.releases.is_empty() {
                let package = package.to_string();
                return Err(NoTarget::PackageNowhere { package, releases: releases.len() });
            }
        }
        Ok(target)
    }

    /// Whether it rests on what this release says.
    pub fn names(&self, release: &SignedRelease) -> bool {
        self.releases.iter().any(|r| r.manifest == release.digest())
    }

    /// The digests looked for.
    pub fn digests(&self) -> &BTreeMap<Hash, String> {
        &self.digests
    }

    /// Why this evidence counts; empty where it does not. `good` where the policy accepted it.
    pub(super) fn shown(
        &self,
        node: NodeId,
        evidence: &Evidence,
        good: bool,
        policy: &Policy,
        blobs: &dyn Blobs,
    ) -> Vec<Reason> {
        let quoted: BTreeMap<u8, [u8; 32]> = evidence.pcrs.iter().copied().collect();
        let mut reasons = Vec::new();
        let log = blobs.blob(&Hash(evidence.event_log)).unwrap_or_default();
        let replayed = eventlog::replay(&log).ok();
        // An event in a PCR that was not quoted, or that the quoted value does not come from, is anybody's claim.
        let explained = |pcr: u8| {
            let value = replayed.as_ref().map(|r| r.value(pcr));
            value.is_some() && quoted.get(&pcr).copied() == value
        };
        for event in eventlog::events(&log).unwrap_or_default().iter().filter(|e| e.is_extended()) {
            let (Ok(pcr), Some(digest)) = (u8::try_from(event.pcr), event.sha256.map(Hash)) else { continue };
            if let Some(what) = self.digests.get(&digest)
                && explained(pcr)
            {
                reasons.push(Reason::EventLog { pcr, digest, what: what.clone() });
            }
        }
        if let (Some(list), Some(quoted), Some(replayed)) =
            (evidence.ima_log, quoted.get(&ima::IMA_PCR), &replayed)
        {
            let list = blobs.blob(&Hash(list)).unwrap_or_default();
            let start = replayed.value(ima::IMA_PCR);
            for measured in ima::measured(&list, &start, quoted).unwrap_or_default() {
                let digest = Hash(measured.file);
                if let Some(what) = self.digests.get(&digest) {
                    reasons.push(Reason::Ima { digest, path: measured.path, what: what.clone() });
                }
            }
        }
        let named = policy.members.get(&node).and_then(|m| policy.releases.get(&m.reference_values));
        for release in &self.releases {
            let has = |(pcr, values): (&u8, &BTreeSet<Hash>)| {
                quoted.get(pcr).is_some_and(|value| values.contains(&Hash(*value)))
            };
            if !release.pcrs.is_empty() {
                if release.pcrs.iter().all(has) {
                    reasons.push(Reason::Pcrs { release: release.name.clone() });
                }
            } else if good && let Some(named) = named.filter(|named| named.contains(&release.manifest)) {
                reasons.push(Reason::Policy { release: release.name.clone(), alone: named.len() == 1 });
            }
        }
        reasons.sort();
        reasons.dedup();
        reasons.truncate(REASONS_MAX);
        reasons
    }
}
