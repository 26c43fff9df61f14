//! Dark start: when fewer than a quorum are attested by entry time, one `recover` entry re-establishes boot keys. It must
//! extend every contributed lock, and its quotes are over values that nobody could have known before.
use super::attestation::{appraise_member, recovery_nonce};
use super::{Blobs, NodeStatus, NotAttested, Run, State};
use crate::command::{CheckpointRef, Contribution, RecoverCommand};
use crate::crypto::{Hash, PublicKey};
use crate::ids::NodeId;
use crate::leaf::Outcome;
use crate::refusal::Refusal;
use crate::tlog::{
    ConsistencyProof, NodeReader, ProveError, TreeSize, prove_consistency, root_at, verify_consistency,
};
use quorate_attest::evidence::Evidence;
use std::collections::{BTreeMap, BTreeSet};

/// What a recovery rests on before anybody has quoted: the nonce of every quote follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// The highest certified checkpoint contributed.
    pub base: CheckpointRef,
    /// By node, ascending; at least a quorum, none in conflict with the tree.
    pub contributions: Vec<Contribution>,
}

/// Why a recovery cannot be planned yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{usable} contributions of {needed} extend to this log; in conflict with it: {conflicting:?}")]
pub struct NoPlan {
    /// Contributions that fit.
    pub usable: usize,
    /// How many it takes.
    pub needed: usize,
    /// Members whose lock or certified checkpoint is no prefix of this log.
    pub conflicting: BTreeSet<NodeId>,
}

/// Chooses among contributions those a recovery can rest on, given the proposer's state and its tree at the same size.
/// What a contributor merely claims is checked against that tree, so one that lies is left out, not followed.
pub fn plan_recovery<R: NodeReader>(
    state: &State,
    tree: &R,
    contributions: impl IntoIterator<Item = Contribution>,
) -> Result<Result<RecoveryPlan, NoPlan>, R::Error> {
    let size = state.checkpoint().size;
    let mut usable: BTreeMap<NodeId, Contribution> = BTreeMap::new();
    let mut conflicting = BTreeSet::new();
    for x in contributions {
        if !state.data.nodes.contains_key(&x.node) || !x.possesses_key(state.data.genesis) {
            continue;
        }
        let mut fits = true;
        for part in [x.certified, x.lock] {
            fits &= part.size > TreeSize::ZERO && part.size <= size && root_at(tree, part.size)? == part.root;
        }
        if fits {
            usable.entry(x.node).or_insert(x);
        } else {
            conflicting.insert(x.node);
        }
    }
    let mut keys = BTreeSet::new();
    usable.retain(|_, x| keys.insert(x.boot.cosign));
    let base = usable.values().map(|x| x.certified).max();
    let needed = state.policy.quorum();
    Ok(match base {
        Some(base) if usable.len() >= needed => {
            Ok(RecoveryPlan { base, contributions: usable.into_values().collect() })
        }
        _ => Err(NoPlan { usable: usable.len(), needed, conflicting }),
    })
}

/// The command of a plan once its nodes have quoted; `evidence` in any order. What it lacks, `apply` will name.
pub fn build_recovery<R: NodeReader>(
    state: &State,
    tree: &R,
    plan: RecoveryPlan,
    mut evidence: Vec<(NodeId, Evidence)>,
) -> Result<RecoverCommand, ProveError<R::Error>> {
    let size = state.checkpoint().size;
    evidence.sort_by_key(|(node, _)| *node);
    let prove = |part: CheckpointRef| prove_consistency(tree, part.size, size);
    let proofs = plan
        .contributions
        .iter()
        .map(|x| Ok((prove(x.certified)?, prove(x.lock)?)))
        .collect::<Result<_, _>>()?;
    let RecoveryPlan { base, contributions } = plan;
    Ok(RecoverCommand { base, contributions, evidence, tree: size, proofs })
}

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
        let prefix = |part: CheckpointRef, proof: &ConsistencyProof| {
            verify_consistency(part.size, part.root, own.size, own.root, proof)
                .map_err(|_| Refusal::LockConflict)
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
                Ok(a) => {
                    appraised.push((*node, a.counters(), evidence.pcrs.clone(), PublicKey(x.boot.cosign)))
                }
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
