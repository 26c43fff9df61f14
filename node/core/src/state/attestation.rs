//! Evidence in, attested set out. The Verifier's verdict is a function of the log: the nonce is a certified checkpoint of this
//! very history, its age is judged by entry time, and counters may only rise.
use super::{Blobs, Run};
use crate::command::{EvidenceCommand, RecoverCommand};
use crate::crypto::Hash;
use crate::ids::{NodeId, Timestamp};
use crate::leaf::{LeafBody, Outcome};
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::state::checkpoint_of;
use crate::tlog::{LeafIndex, TreeSize};
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::appraisal::{AppraisalPolicy, Appraised, Counters, Logs, appraise};
use quorate_attest::endorsement::EnrolledAk;
use quorate_attest::evidence::{BootKeys, Evidence};
use quorate_attest::qualifying;

/// What is known of a member.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub struct NodeRecord {
    /// Whether it counts.
    pub status: NodeStatus,
    /// Counters of the newest evidence that was accepted; they may only rise.
    pub floor: Option<Counters>,
    /// Set by a machine reset: evidence counts again once its nonce is a certified tree of at least this size.
    pub awaiting: Option<TreeSize>,
    /// Size of the newest nonce that a quote of this node's AK was seen over: anything older is a replay.
    pub newest_nonce: Option<TreeSize>,
    /// PCR values of the newest accepted evidence, for a change of reference values.
    pub pcrs: Vec<(u8, [u8; 32])>,
    /// Firmware version of the newest accepted evidence, likewise.
    pub firmware: u64,
}

/// Whether a node counts as attested.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum NodeStatus {
    /// It does.
    Attested {
        /// Keys of its boot.
        boot: BootKeys,
        /// Entry time of its newest evidence.
        at: Timestamp,
        /// Entry time from which on it was attested without a break, by these boot keys.
        since: Timestamp,
        /// Leaf with that evidence.
        leaf: LeafIndex,
        /// Whether its TPM is software.
        software_tpm: bool,
    },
    /// It does not, and why.
    NotAttested(NotAttested),
}

/// Why a node does not count.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, thiserror::Error)]
pub enum NotAttested {
    /// No evidence yet.
    #[error("no evidence yet")]
    Never,
    /// Too old.
    #[error("its evidence lapsed")]
    Lapsed,
    /// Rejected.
    #[error("its evidence was refused: {0}")]
    Refused(String),
    /// The machine was reset; evidence is good.
    #[error(
        "its machine was reset; it counts again once a checkpoint certified without it holds its evidence"
    )]
    AwaitingCertificate,
    /// Part of a recovery; fresh evidence is due.
    #[error("recovered; its evidence over the recovery's checkpoint is due")]
    Recovered,
    /// The policy no longer accepts it.
    #[error("the policy no longer accepts its evidence")]
    PolicyChanged,
}

impl Default for NodeStatus {
    fn default() -> Self {
        Self::NotAttested(NotAttested::Never)
    }
}

impl NodeRecord {
    /// Boot keys, if attested.
    pub fn attested(&self) -> Option<&BootKeys> {
        match &self.status {
            NodeStatus::Attested { boot, .. } => Some(boot),
            NodeStatus::NotAttested(_) => None,
        }
    }
    /// Entry time of the newest evidence, if attested.
    pub fn attested_at(&self) -> Option<Timestamp> {
        match &self.status {
            NodeStatus::Attested { at, .. } => Some(*at),
            NodeStatus::NotAttested(_) => None,
        }
    }
    /// From when on it is attested without a break by the same boot keys, if attested.
    pub fn attested_since(&self) -> Option<Timestamp> {
        match &self.status {
            NodeStatus::Attested { since, .. } => Some(*since),
            NodeStatus::NotAttested(_) => None,
        }
    }
    /// Leaf of the newest evidence, if attested.
    pub fn attested_leaf(&self) -> Option<LeafIndex> {
        match &self.status {
            NodeStatus::Attested { leaf, .. } => Some(*leaf),
            NodeStatus::NotAttested(_) => None,
        }
    }
}

/// Appraises evidence of a member under a policy: what `apply`, a client and an auditor all do.
pub fn appraise_member(
    policy: &Policy,
    node: NodeId,
    evidence: &Evidence,
    expected: &[u8; 32],
    floor: Option<&Counters>,
    blobs: &dyn Blobs,
) -> Result<Result<Appraised, String>, Refusal> {
    let member = policy.members.get(&node).ok_or(Refusal::UnknownNode)?;
    let event_log = blobs.blob(&Hash(evidence.event_log)).ok_or(Refusal::MissingBlob)?;
    let ima = match evidence.ima_log {
        Some(digest) => Some(blobs.blob(&Hash(digest)).ok_or(Refusal::MissingBlob)?),
        None => None,
    };
    let Some(values) = policy.reference_values.get(&member.reference_values) else {
        return Ok(Err("no_reference_values".into()));
    };
    let Ok(ak) = EnrolledAk::from_policy(&member.ak, member.software_tpm) else {
        return Ok(Err("ak_malformed".into()));
    };
    let appraisal = AppraisalPolicy {
        selection: policy.attestation.pcrs.clone(),
        allow_software_tpm: policy.attestation.allow_software_tpm,
    };
    let logs = Logs { event_log: &event_log, ima: ima.as_deref() };
    Ok(appraise(evidence, logs, &ak, values, &appraisal, expected, floor).map_err(|r| r.code().to_owned()))
}

/// The qualifying data of ordinary evidence.
pub fn evidence_nonce(cluster: Hash, command: &EvidenceCommand) -> [u8; 32] {
    qualifying::for_log(&cluster.0, command.node.0, &command.boot, &command.nonce.root.0)
}

/// The qualifying data of one node's quote in a recovery.
pub fn recovery_nonce(cluster: Hash, node: NodeId, boot: &BootKeys, command: &RecoverCommand) -> [u8; 32] {
    let contributions = RecoverCommand::contributions_digest(&command.contributions);
    qualifying::for_recovery(&cluster.0, node.0, boot, &command.base.root.0, &contributions.0)
}

impl Run<'_> {
    /// What is too old by this entry's time no longer counts.
    pub(super) fn lapse(&mut self) {
        let (time, lapse_ms) = (self.state.data.time, self.state.policy.attestation.lapse_ms);
        let old = |r: &NodeRecord| r.attested_at().is_some_and(|at| time.since_ms(at) > lapse_ms);
        let lapsed: Vec<NodeId> =
            self.state.data.nodes.iter().filter(|(_, r)| old(r)).map(|(n, _)| *n).collect();
        for node in lapsed {
            if let Some(record) = self.state.data.nodes.get_mut(&node) {
                record.status = NodeStatus::NotAttested(NotAttested::Lapsed);
            }
            self.anchor = true;
            self.leaf(time, LeafBody::Lapsed { node });
        }
    }

    pub(super) fn evidence(&mut self, c: &EvidenceCommand, blobs: &dyn Blobs) -> Result<Outcome, Refusal> {
        let state = &*self.state;
        let (time, cluster) = (state.data.time, state.data.genesis);
        let record = state.data.nodes.get(&c.node).ok_or(Refusal::UnknownNode)?;
        if !c.possesses_key(cluster) {
            return Err(Refusal::BadSignature);
        }
        let anchor =
            state.data.anchors.iter().rev().find(|a| a.checkpoint == c.nonce).ok_or(Refusal::StaleNonce)?;
        if time.since_ms(anchor.time) > state.policy.attestation.nonce_age_ms {
            return Err(Refusal::StaleNonce);
        }
        anchor
            .certifiers
            .certify(checkpoint_of(&state.data.origin, c.nonce), &c.certificate)
            .map_err(|_| Refusal::UncertifiedNonce)?;
        // What a lying leader held back or plays again must neither prolong an attestation nor cost a node its place.
        let newest = record.newest_nonce;
        if newest.is_some_and(|newest| c.nonce.size < newest) {
            return Err(Refusal::StaleNonce);
        }
        let same_nonce = newest == Some(c.nonce.size);
        let floor = record.floor;
        let expected = evidence_nonce(cluster, c);
        let verdict =
            appraise_member(&state.policy, c.node, &c.evidence, &expected, record.floor.as_ref(), blobs)?;
        let leaf = LeafIndex(state.data.tree.size().0);
        let Some(record) = self.state.data.nodes.get_mut(&c.node) else { return Err(Refusal::UnknownNode) };
        let appraised = match verdict {
            // The very quote that stands there already.
            Ok(appraised) if same_nonce && floor == Some(appraised.counters()) => {
                return Err(Refusal::StaleNonce);
            }
            Ok(appraised) => appraised,
            Err(check) => {
                // A quote under the enrolled AK that fails says something about the machine; one that does not even
                // verify could be anybody's and must not cost an attested node its place.
                let forgeable = FORGEABLE_CHECKS.contains(&check.as_str());
                if !forgeable && same_nonce {
                    return Err(Refusal::StaleNonce);
                }
                if !forgeable {
                    record.newest_nonce = Some(c.nonce.size);
                }
                if !forgeable || record.attested().is_none() {
                    self.anchor |= record.attested().is_some();
                    record.status = NodeStatus::NotAttested(NotAttested::Refused(check.clone()));
                }
                return Ok(Outcome::AppraisalRefused { check });
            }
        };
        if self.state.data.changing.as_ref().is_some_and(|changing| c.nonce.size >= changing.since) {
            self.state.data.changing = None;
            self.anchor = true;
        }
        let Some(record) = self.state.data.nodes.get_mut(&c.node) else { return Err(Refusal::UnknownNode) };
        // Only a change of who is attested needs an anchor of its own: a node that quotes as fast as its TPM can would
        // otherwise push out the anchors that slower ones quote over.
        let same = record.attested() == Some(&c.boot);
        record.newest_nonce = Some(c.nonce.size);
        record.firmware = appraised.firmware_version();
        if appraised.machine_reset() && record.awaiting.is_none() {
            // The certificate must hold this leaf: a tree larger than the one it is appended to.
            record.awaiting = Some(TreeSize(leaf.0.saturating_add(1)));
        }
        record.floor = Some(appraised.counters());
        record.pcrs.clone_from(&c.evidence.pcrs);
        if record.awaiting.is_some_and(|size| c.nonce.size < size) {
            record.status = NodeStatus::NotAttested(NotAttested::AwaitingCertificate);
            self.anchor = true;
            return Ok(Outcome::AwaitingCertificate);
        }
        record.awaiting = None;
        self.anchor |= !same;
        let software_tpm = appraised.software_tpm();
        let since = record.attested_since().filter(|_| same).unwrap_or(time);
        record.status = NodeStatus::Attested { boot: c.boot.clone(), at: time, since, leaf, software_tpm };
        Ok(Outcome::Appraised { firmware: appraised.firmware_version(), software_tpm })
    }
}

/// Rejections that anyone can provoke with bytes of their own. From the qualifying data on, a quote is the member's TPM's
/// and bound to the boot key that signed the command.
const FORGEABLE_CHECKS: &[&str] = &[
    "no_reference_values",
    "ak_malformed",
    "empty-selection",
    "no-such-pcr",
    "resettable-pcr",
    "ima-without-pcr10",
    "signature-malformed",
    "signature-scheme",
    "signature",
    "magic",
    "not-a-quote",
    "quote-malformed",
    "qualifying-data",
];
