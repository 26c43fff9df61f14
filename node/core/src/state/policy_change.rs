//! A change of policy: m of n admins of the *current* version signed the new document, which names the current one's digest.
use super::attestation::{NodeStatus, NotAttested};
use super::{Blobs, Changing, KEYED_ROUTES_MAX, NodeRecord, Run, rule_of};
use crate::certificate::QuorumRule;
use crate::command::PolicyCommand;
use crate::crypto::{PublicKey, sha256};
use crate::ids::NodeId;
use crate::leaf::Outcome;
use crate::policy::{Policy, change_allowed};
use crate::refusal::Refusal;
use crate::tlog::TreeSize;
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
        let signers = old.check_signers(&signed);
        #[cfg(feature = "danger-hostile")]
        let signers = match signers {
            Err(_) if crate::danger_hostile::off("AdminSignatures") => Ok(Vec::new()),
            signers => signers,
        };
        let signers = signers?;
        let new = Policy::parse(&signed.document).map_err(|_| Refusal::PolicyInvalid)?;
        if new.previous != Some(old.digest)
            || new.version.0 != old.version.0 + 1
            || new.cluster != old.cluster
        {
            return Err(Refusal::WrongPredecessor);
        }
        if new.expires < self.state.data.time {
            return Err(Refusal::PolicyExpired);
        }
        if changed_members(&old, &new).len() > 1 {
            return Err(Refusal::TooManyMemberChanges);
        }
        change_allowed(&old, &new, &self.state.data.share_epochs)?;
        let mut share_epochs = self.state.data.share_epochs.clone();
        share_epochs.extend(super::share_epochs(&new));
        if share_epochs.len() > KEYED_ROUTES_MAX {
            return Err(Refusal::Oversized);
        }
        let old_set: BTreeSet<NodeId> = old.members.keys().copied().collect();
        let new_set: BTreeSet<NodeId> = new.members.keys().copied().collect();
        if let Some(rule) = outgoing_rule(&old, &new) {
            if self.state.data.changing.is_some() {
                // One at a time: the old and the new set certify a change before the next begins.
                return Err(Refusal::TooManyMemberChanges);
            }
            let key = |n: &NodeId| {
                let record = self.state.data.nodes.get(n)?;
                Some((*n, PublicKey(record.attested()?.cosign), record.attested_at()?))
            };
            let removed = old_set.difference(&new_set).find_map(key);
            let since = TreeSize(self.state.data.tree.size().0.saturating_add(1));
            self.state.data.changing = Some(Changing { from: old.version, rule, removed, since });
        }
        self.state.data.nodes.retain(|n, _| new_set.contains(n));
        for node in &new_set {
            self.state.data.nodes.entry(*node).or_default();
        }
        for (node, record) in &mut self.state.data.nodes {
            let same_ak = old.members.get(node).map(|m| &m.ak) == new.members.get(node).map(|m| &m.ak);
            if !same_ak {
                *record = NodeRecord::default();
            } else if record.attested().is_some() && !still_accepted(&old, &new, *node, record) {
                record.status = NodeStatus::NotAttested(NotAttested::PolicyChanged);
            }
        }
        self.anchor = true;
        self.state.data.share_epochs = share_epochs;
        self.state.data.meters = super::metering::meters(&self.state.data.meters, &new);
        let version = new.version;
        self.state.data.policy = signed;
        self.state.policy = Arc::new(new);
        Ok(Outcome::PolicyChanged { version, signers })
    }
}

/// What the old set demands of the checkpoints that hold a change, where it changes who certifies. A member with another AK
/// is another machine, so it cannot speak for the old one.
pub fn outgoing_rule(old: &Policy, new: &Policy) -> Option<QuorumRule> {
    let mut rule = rule_of(old);
    let replaced = changed_members(old, new);
    if replaced.is_empty() && old.quorum() == new.quorum() {
        return None;
    }
    rule.members.retain(|n| !(replaced.contains(n) && new.members.contains_key(n)));
    Some(rule)
}

/// Members that were added, removed or given another AK.
pub fn changed_members(old: &Policy, new: &Policy) -> BTreeSet<NodeId> {
    let ids: BTreeSet<NodeId> = old.members.keys().chain(new.members.keys()).copied().collect();
    let ak = |p: &Policy, n: &NodeId| p.members.get(n).map(|m| m.ak.clone());
    ids.into_iter().filter(|n| ak(old, n) != ak(new, n)).collect()
}

/// Whether the evidence that a node rests on would be accepted under the new policy too: what a client will find when it
/// appraises that evidence again.
fn still_accepted(old: &Policy, new: &Policy, node: NodeId, record: &NodeRecord) -> bool {
    let Some(member) = new.members.get(&node) else { return false };
    let Some(values) = new.reference_values.get(&member.reference_values) else { return false };
    let before =
        old.members.get(&node).and_then(|m| old.reference_values.get(&m.reference_values).map(|v| (m, v)));
    let Some((member_before, values_before)) = before else { return false };
    let same_selection = old.attestation.pcrs == new.attestation.pcrs;
    let software_fits = member.software_tpm == member_before.software_tpm
        && (!member.software_tpm || new.attestation.allow_software_tpm);
    let known = |(i, value): &(u8, [u8; 32])| values.pcrs.get(i).is_some_and(|v| v.contains(value));
    // Where a measurement list explains a PCR, only a new appraisal can tell.
    let fits = values.ima.is_none()
        && values_before.ima.is_none()
        && record.pcrs.iter().all(known)
        && values.firmware_versions.as_ref().is_none_or(|good| good.contains(&record.firmware));
    software_fits && same_selection && (values == values_before || fits)
}
