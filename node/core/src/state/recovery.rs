//! Dark start: when fewer than a quorum are attested by entry time, one `recover` entry re-establishes boot keys. It must
//! extend every contributed lock, and its quotes are over values that nobody could have known before.
use super::attestation::{appraise_member, recovery_nonce};
use super::{Blobs, NodeStatus, NotAttested, Run};
use crate::command::RecoverCommand;
use crate::crypto::{Hash, PublicKey};
use crate::ids::NodeId;
use crate::leaf::Outcome;
use crate::refusal::Refusal;
use crate::tlog::{ConsistencyProof, verify_consistency};
use std::collections::BTreeSet;

impl Run<'_> {
    pub(super) fn recover(&mut self, c: &RecoverCommand, blobs: &dyn Blobs) -> Result<Outcome, Refusal> {
        let state = &*self.state;
        let cluster = state.data.genesis;
        self.check_contributions(c)?;
        if !state.is_dark() {
            return Err(Refusal::NotDark);
        }
        if c.contributions.len() < state.policy.quorum() {
            return Err(Refusal::TooFewContributions);
        }
        if c.contributions.iter().map(|x| x.certified).max() != Some(c.base) {
            return Err(Refusal::WrongBase);
        }
        let own = self.start;
        if c.tree != own.size {
            return Err(Refusal::LockConflict);
        }
        let prefix = |part: crate::command::CheckpointRef, proof: &ConsistencyProof| {
            verify_consistency(part.size, part.root, own.size, own.root, proof).map_err(|_| Refusal::LockConflict)
        };
        for (x, (certified, lock)) in c.contributions.iter().zip(&c.proofs) {
            prefix(x.certified, certified)?;
            prefix(x.lock, lock)?;
        }
        let mut appraised = Vec::with_capacity(c.evidence.len());
        for (x, (node, evidence)) in c.contributions.iter().zip(&c.evidence) {
            let expected = recovery_nonce(cluster, *node, &x.boot, c);
            let floor = state.data.nodes.get(node).and_then(|r| r.floor);
            match appraise_member(&state.policy, *node, evidence, &expected, floor.as_ref(), blobs)? {
                Ok(a) => appraised.push((*node, a.counters(), evidence.pcrs.clone(), PublicKey(x.boot.cosign))),
                Err(check) => return Ok(Outcome::AppraisalRefused { check }),
            }
        }
        for (node, counters, pcrs, key) in appraised {
            let Some(record) = self.state.data.nodes.get_mut(&node) else { continue };
            record.floor = Some(counters);
            record.pcrs = pcrs;
            // Its new evidence stands in this entry, which the darkness' own certificate will hold.
            record.awaiting = None;
            record.status = NodeStatus::NotAttested(NotAttested::Recovered);
            self.recovered.insert(node, key);
        }
        // Only a certificate of this checkpoint, or of one after it, ends the darkness.
        self.state.data.anchors.clear();
        self.anchor = true;
        Ok(Outcome::Recovered)
    }

    /// Everything is there once, in order, and signed by the boot key it names.
    fn check_contributions(&self, c: &RecoverCommand) -> Result<(), Refusal> {
        let n = c.contributions.len();
        if c.evidence.len() != n || c.proofs.len() != n {
            return Err(Refusal::Oversized);
        }
        let mut keys: BTreeSet<Hash> = BTreeSet::new();
        let mut last = NodeId(0);
        for (x, (node, _)) in c.contributions.iter().zip(&c.evidence) {
            let ordered = x.node > last && *node == x.node;
            let own = x.possesses_key(self.state.data.genesis) && keys.insert(Hash(x.boot.cosign));
            if !ordered || !own || !self.state.data.nodes.contains_key(&x.node) {
                return Err(Refusal::BadContribution);
            }
            last = x.node;
        }
        Ok(())
    }
}
