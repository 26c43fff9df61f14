//! A change of policy: m of n admins of the *current* version signed the new document, which names the current one's digest.
use super::attestation::{NodeStatus, NotAttested};
use super::{Blobs, NodeRecord, Run, rule_of};
use crate::command::PolicyCommand;
use crate::crypto::{PublicKey, sha256};
use crate::ids::NodeId;
use crate::leaf::Outcome;
use crate::policy::Policy;
use crate::refusal::Refusal;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Run<'_> {
    pub(super) fn change_policy(&mut self, c: &PolicyCommand, blobs: &dyn Blobs) -> Result<Outcome, Refusal> {
        let old = Arc::clone(&self.state.policy);
        let document = blobs.blob(&c.document).ok_or(Refusal::MissingBlob)?;
        if sha256(&document) != c.document {
            return Err(Refusal::MissingBlob);
        }
        let signed = c.with_document(document);
        let signers = old.check_signers(&signed)?;
        let new = Policy::parse(&signed.document).map_err(|_| Refusal::PolicyInvalid)?;
        if new.previous != Some(old.digest) || new.version.0 != old.version.0 + 1 || new.cluster != old.cluster {
            return Err(Refusal::WrongPredecessor);
        }
        if new.expires < self.state.data.time {
            return Err(Refusal::PolicyExpired);
        }
        if changed_members(&old, &new).len() > 1 {
            return Err(Refusal::TooManyMemberChanges);
        }
        let old_set: BTreeSet<NodeId> = old.members.keys().copied().collect();
        let new_set: BTreeSet<NodeId> = new.members.keys().copied().collect();
        if old_set != new_set && self.old_rule.is_some() {
            // One change of members to a checkpoint: it is certified by the old and the new set.
            return Err(Refusal::TooManyMemberChanges);
        }
        if old_set != new_set || old.quorum() != new.quorum() {
            let removed = old_set.difference(&new_set);
            let keys = removed.filter_map(|n| Some((*n, PublicKey(self.state.attested(*n)?.cosign)))).collect();
            self.old_rule = Some((rule_of(&old), keys));
        }
        self.state.data.nodes.retain(|n, _| new_set.contains(n));
        for node in &new_set {
            self.state.data.nodes.entry(*node).or_default();
        }
        for (node, record) in &mut self.state.data.nodes {
            let same_ak = old.members.get(node).map(|m| &m.ak) == new.members.get(node).map(|m| &m.ak);
            if !same_ak {
                *record = NodeRecord::default();
            } else if record.attested().is_some() && !still_accepted(&new, *node, record) {
                record.status = NodeStatus::NotAttested(NotAttested::PolicyChanged);
            }
        }
        self.anchor = true;
        let version = new.version;
        self.state.data.policy = signed;
        self.state.policy = Arc::new(new);
        Ok(Outcome::PolicyChanged { version, signers })
    }
}

/// Members that were added, removed or given another AK.
pub fn changed_members(old: &Policy, new: &Policy) -> BTreeSet<NodeId> {
    let ids: BTreeSet<NodeId> = old.members.keys().chain(new.members.keys()).copied().collect();
    let ak = |p: &Policy, n: &NodeId| p.members.get(n).map(|m| m.ak.clone());
    ids.into_iter().filter(|n| ak(old, n) != ak(new, n)).collect()
}

/// Whether evidence accepted before would be accepted under the new policy, as far as its PCR values tell.
fn still_accepted(policy: &Policy, node: NodeId, record: &NodeRecord) -> bool {
    let Some(member) = policy.members.get(&node) else { return false };
    let Some(values) = policy.reference_values.get(&member.reference_values) else { return false };
    let selection: BTreeSet<u8> = record.pcrs.iter().map(|(i, _)| *i).collect();
    let software_fits = !member.software_tpm || policy.attestation.allow_software_tpm;
    let known = |(i, value): &(u8, [u8; 32])| values.pcrs.get(i).is_some_and(|v| v.contains(value));
    // Where a measurement list explains a PCR, only a new appraisal can tell.
    software_fits && values.ima.is_none() && selection == policy.attestation.pcrs && record.pcrs.iter().all(known)
}

