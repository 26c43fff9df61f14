//! Certification: a checkpoint is certified by cosignatures of a quorum of all members, by keys that were attested in the
//! state after the checkpoint's last entry. The type [`CertifiedCheckpoint`] cannot be had without that check, and
//! [`CertifiedLeaf`] not without an inclusion proof to one: relay, keyer and client act on these types only.
//!
//! Nothing is forwarded without a certified leaf, because nobody else can make the types that forwarding takes:
//!
//! ```compile_fail,E0451
//! # use quorate_core::{certificate::CertifiedCheckpoint, tlog::Checkpoint};
//! fn forge(checkpoint: Checkpoint) -> CertifiedCheckpoint {
//!     CertifiedCheckpoint { checkpoint, cosignatures: vec![] }
//! }
//! ```
//! ```compile_fail,E0451
//! # use quorate_core::{certificate::CertifiedLeaf, command::CheckpointRef, leaf::Leaf, tlog::LeafIndex};
//! fn forge(leaf: Leaf, under: CheckpointRef) -> CertifiedLeaf {
//!     CertifiedLeaf { leaf, index: LeafIndex(0), under }
//! }
//! ```
//! ```compile_fail,E0451
//! # use quorate_core::{certificate::CertifiedAuthorisation, command::{Authorise, CheckpointRef}, ids::*, tlog::LeafIndex};
//! fn forge(client: ClientId, request: Authorise, under: CheckpointRef) -> CertifiedAuthorisation {
//!     CertifiedAuthorisation { client, request, time: Timestamp(0), index: LeafIndex(0), under }
//! }
//! ```
//! ```compile_fail,E0451
//! # use quorate_core::{leaf::Leaf, state::AppliedLeaf, tlog::LeafIndex};
//! fn forge(leaf: Leaf) -> AppliedLeaf {
//!     AppliedLeaf { leaf, index: LeafIndex(0) }
//! }
//! ```
//! ```compile_fail,E0451
//! # use quorate_core::{certificate::VerifiedCosignature, crypto::PublicKey, ids::NodeId, tlog::{Checkpoint, Cosignature}};
//! fn forge(checkpoint: Checkpoint, cosignature: Cosignature) -> VerifiedCosignature {
//!     VerifiedCosignature { checkpoint, node: NodeId(1), key: PublicKey([0; 32]), cosignature }
//! }
//! ```
//! nor can they be read from bytes:
//! ```compile_fail,E0277
//! # use quorate_core::certificate::CertifiedAuthorisation;
//! fn forge(bytes: &[u8]) -> CertifiedAuthorisation {
//!     borsh::from_slice(bytes).unwrap()
//! }
//! ```
//! The one way there is:
//! ```
//! # use quorate_core::{certificate::*, command::CheckpointRef, state::AppliedLeaf};
//! fn honest(certified: &CertifiedCheckpoint, leaf: &AppliedLeaf, own: CheckpointRef) -> Option<CertifiedAuthorisation> {
//!     certified.applied_leaf(leaf, own).ok()?.authorisation()
//! }
//! ```
use crate::command::CheckpointRef;
use crate::crypto::{PublicKey, public_key, sign};
use crate::ids::NodeId;
use crate::leaf::Leaf;
use crate::state::AppliedLeaf;
use crate::tlog::{
    Checkpoint, Cosignature, InclusionProof, LeafIndex, TreeSize, cosigned_bytes, leaf_hash, verify_inclusion,
};
use aws_lc_rs::signature::Ed25519KeyPair;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// Who may certify one checkpoint, and how many of which members it takes.
#[derive(Debug, Clone, PartialEq, Eq, Default, BorshSerialize, BorshDeserialize)]
pub struct Certifiers {
    /// Cosigning key of each node able to sign.
    pub keys: BTreeMap<NodeId, PublicKey>,
    /// Every rule must be met; there are two while members change, the old set's and the new one's.
    pub rules: Vec<QuorumRule>,
}

/// So many of these.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct QuorumRule {
    /// All members, attested or not.
    pub members: BTreeSet<NodeId>,
    /// Cosignatures needed.
    pub threshold: u32,
}

/// Why cosignatures are no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCertified {
    /// A cosignature of a node that may not sign this checkpoint.
    #[error("{0} may not certify this checkpoint: it is not attested in the state the checkpoint commits to")]
    NotACertifier(NodeId),
    /// A cosignature that does not verify.
    #[error("the cosignature of {0} does not verify")]
    BadCosignature(NodeId),
    /// One node twice.
    #[error("{0} stands twice among the cosignatures")]
    Doubled(NodeId),
    /// Too few.
    #[error("{have} of {need} cosignatures")]
    TooFew {
        /// Valid ones from the rule's members.
        have: usize,
        /// Needed.
        need: usize,
    },
    /// A cosignature that was verified for another checkpoint.
    #[error("the cosignature of {0} is over another checkpoint")]
    OtherCheckpoint(NodeId),
    /// The leaf is not in the tree.
    #[error("the leaf is not in the certified tree")]
    NotIncluded,
}

impl Certifiers {
    /// Whether these nodes suffice.
    pub fn satisfied_by(&self, nodes: &BTreeSet<NodeId>) -> Result<(), NotCertified> {
        if self.rules.is_empty() {
            return Err(NotCertified::TooFew { have: 0, need: usize::MAX });
        }
        for rule in &self.rules {
            let (have, need) = (rule.members.intersection(nodes).count(), rule.threshold as usize);
            if have < need {
                return Err(NotCertified::TooFew { have, need });
            }
        }
        Ok(())
    }

    /// Verifies one cosignature.
    pub fn check(
        &self,
        checkpoint: &Checkpoint,
        node: NodeId,
        cosignature: Cosignature,
    ) -> Result<VerifiedCosignature, NotCertified> {
        let key = *self.keys.get(&node).ok_or(NotCertified::NotACertifier(node))?;
        cosignature.verify(checkpoint, &key.0).map_err(|_| NotCertified::BadCosignature(node))?;
        Ok(VerifiedCosignature { checkpoint: checkpoint.clone(), node, key, cosignature })
    }

    /// Makes a node's own cosignature; its key must be the one that may certify.
    pub fn cosign(
        &self,
        checkpoint: &Checkpoint,
        node: NodeId,
        pair: &Ed25519KeyPair,
        time_s: u64,
    ) -> Result<VerifiedCosignature, NotCertified> {
        let key = public_key(pair);
        if self.keys.get(&node) != Some(&key) {
            return Err(NotCertified::NotACertifier(node));
        }
        let signature = sign(pair, &cosigned_bytes(checkpoint, time_s)).0;
        let cosignature = Cosignature { time_s, signature };
        Ok(VerifiedCosignature { checkpoint: checkpoint.clone(), node, key, cosignature })
    }

    /// A certificate from cosignatures that were verified as they came: that they are this checkpoint's, by keys that may
    /// certify it, and that they suffice.
    pub fn certify_verified(
        &self,
        checkpoint: Checkpoint,
        cosignatures: impl IntoIterator<Item = VerifiedCosignature>,
    ) -> Result<CertifiedCheckpoint, NotCertified> {
        let mut nodes = BTreeSet::new();
        let mut listed = Vec::new();
        for verified in cosignatures {
            let node = verified.node;
            if verified.checkpoint != checkpoint {
                return Err(NotCertified::OtherCheckpoint(node));
            }
            if self.keys.get(&node) != Some(&verified.key) {
                return Err(NotCertified::NotACertifier(node));
            }
            if !nodes.insert(node) {
                return Err(NotCertified::Doubled(node));
            }
            listed.push((node, verified.cosignature));
        }
        self.satisfied_by(&nodes)?;
        Ok(CertifiedCheckpoint { checkpoint, cosignatures: listed })
    }

    /// Verifies a certificate: every cosignature listed, and that they suffice.
    pub fn certify(
        &self,
        checkpoint: Checkpoint,
        cosignatures: &[(NodeId, Cosignature)],
    ) -> Result<CertifiedCheckpoint, NotCertified> {
        let verified: Result<Vec<_>, _> =
            cosignatures.iter().map(|(node, c)| self.check(&checkpoint, *node, *c)).collect();
        self.certify_verified(checkpoint, verified?)
    }
}

/// A cosignature that verified, of one checkpoint by one key. Private fields: only [`Certifiers::check`] and
/// [`Certifiers::cosign`] make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCosignature {
    checkpoint: Checkpoint,
    node: NodeId,
    key: PublicKey,
    cosignature: Cosignature,
}

impl VerifiedCosignature {
    /// The cosignature.
    pub fn cosignature(&self) -> Cosignature {
        self.cosignature
    }
}

/// A checkpoint that a quorum cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedCheckpoint {
    checkpoint: Checkpoint,
    cosignatures: Vec<(NodeId, Cosignature)>,
}

impl CertifiedCheckpoint {
    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
    /// Size and root.
    pub fn reference(&self) -> CheckpointRef {
        CheckpointRef { size: self.checkpoint.size, root: self.checkpoint.root }
    }
    /// Who cosigned.
    pub fn cosignatures(&self) -> &[(NodeId, Cosignature)] {
        &self.cosignatures
    }

    /// A leaf proven to be under this checkpoint.
    pub fn leaf(
        &self,
        bytes: &[u8],
        index: LeafIndex,
        proof: &InclusionProof,
    ) -> Result<CertifiedLeaf, NotCertified> {
        verify_inclusion(leaf_hash(bytes), index, self.checkpoint.size, self.checkpoint.root, proof)
            .map_err(|_| NotCertified::NotIncluded)?;
        let leaf = borsh::from_slice(bytes).map_err(|_| NotCertified::NotIncluded)?;
        Ok(CertifiedLeaf { leaf, index, under: self.reference() })
    }

    /// A leaf that the holder applied itself; the root of its own tree at this checkpoint's size must be the certified one.
    pub fn applied_leaf(
        &self,
        leaf: &AppliedLeaf,
        own: CheckpointRef,
    ) -> Result<CertifiedLeaf, NotCertified> {
        if own != self.reference() || leaf.index().0 >= own.size.0 {
            return Err(NotCertified::NotIncluded);
        }
        Ok(CertifiedLeaf { leaf: leaf.leaf().clone(), index: leaf.index(), under: own })
    }
}

/// A leaf under a certified checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedLeaf {
    leaf: Leaf,
    index: LeafIndex,
    under: CheckpointRef,
}

impl CertifiedLeaf {
    /// The leaf.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }
    /// Its position.
    pub fn index(&self) -> LeafIndex {
        self.index
    }
    /// The certified checkpoint it was proven under.
    pub fn under(&self) -> CheckpointRef {
        self.under
    }
    /// The authorisation in it, if that is what it is: the one thing that lets a relay forward and a keyer answer.
    pub fn authorisation(&self) -> Option<CertifiedAuthorisation> {
        use crate::command::{ClientCommand, ClientSigned, Command};
        use crate::leaf::{LeafBody, Outcome};
        let Leaf::V1 { time, body } = &self.leaf;
        match body {
            LeafBody::Decided {
                command:
                    Command::Client(ClientSigned { client, token, body: ClientCommand::Authorise(a), .. }),
                outcome: Outcome::Authorised,
            } => Some(CertifiedAuthorisation {
                client: client.clone(),
                token: *token,
                request: a.clone(),
                time: *time,
                index: self.index,
                under: self.under,
            }),
            _ => None,
        }
    }
}

/// A request whose authorisation is a certified leaf. Private fields: only [`CertifiedLeaf::authorisation`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedAuthorisation {
    client: crate::ids::ClientId,
    token: Option<crate::ids::TokenId>,
    request: crate::command::Authorise,
    time: crate::ids::Timestamp,
    index: LeafIndex,
    under: CheckpointRef,
}

impl CertifiedAuthorisation {
    /// Who asked, or answers for who did.
    pub fn client(&self) -> &crate::ids::ClientId {
        &self.client
    }
    /// The token it was asked with; `None` where the client's own key signed.
    pub fn token(&self) -> Option<crate::ids::TokenId> {
        self.token
    }
    /// For what.
    pub fn request(&self) -> &crate::command::Authorise {
        &self.request
    }
    /// When it was authorised, by entry time.
    pub fn time(&self) -> crate::ids::Timestamp {
        self.time
    }
    /// Position of the leaf.
    pub fn index(&self) -> LeafIndex {
        self.index
    }
    /// The certified checkpoint.
    pub fn under(&self) -> CheckpointRef {
        self.under
    }
}

/// Size of a tree with one leaf: genesis.
pub const GENESIS_SIZE: TreeSize = TreeSize(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Hash;
    use crate::testing::key;
    use crate::tlog::Origin;

    fn checkpoint(root: u8) -> Checkpoint {
        Checkpoint { origin: Origin::new("quorate/demo").unwrap(), size: TreeSize(9), root: Hash([root; 32]) }
    }

    fn certifiers() -> Certifiers {
        let members: BTreeSet<NodeId> = (1..=4).map(NodeId).collect();
        let keys = members.iter().map(|n| (*n, public_key(&key(&n.to_string())))).collect();
        Certifiers { keys, rules: vec![QuorumRule { members, threshold: 3 }] }
    }

    fn cosigned(nodes: &[u64], root: u8) -> Vec<VerifiedCosignature> {
        let sign = |n: &u64| {
            let node = NodeId(*n);
            certifiers().cosign(&checkpoint(root), node, &key(&node.to_string()), 1_700_000_000).unwrap()
        };
        nodes.iter().map(sign).collect()
    }

    #[test]
    fn verified_cosignatures_certify_their_own_checkpoint_once_each() {
        let rule = certifiers();
        let certified = rule.certify_verified(checkpoint(1), cosigned(&[1, 2, 3], 1)).unwrap();
        // What was made here verifies from its bytes, too.
        assert_eq!(rule.certify(checkpoint(1), certified.cosignatures()), Ok(certified.clone()));
        assert_eq!(
            rule.certify_verified(checkpoint(1), cosigned(&[1, 2], 1)),
            Err(NotCertified::TooFew { have: 2, need: 3 })
        );
        let mut mixed = cosigned(&[1, 2], 1);
        mixed.extend(cosigned(&[3], 2));
        assert_eq!(
            rule.certify_verified(checkpoint(1), mixed),
            Err(NotCertified::OtherCheckpoint(NodeId(3)))
        );
        let doubled = cosigned(&[1, 2, 2], 1);
        assert_eq!(rule.certify_verified(checkpoint(1), doubled), Err(NotCertified::Doubled(NodeId(2))));
    }

    #[test]
    fn a_key_that_may_not_certify_neither_signs_nor_counts() {
        let cosignatures = cosigned(&[1, 2, 3], 1);
        let mut rule = certifiers();
        rule.keys.insert(NodeId(3), public_key(&key("restarted")));
        assert_eq!(
            rule.certify_verified(checkpoint(1), cosignatures),
            Err(NotCertified::NotACertifier(NodeId(3)))
        );
        let own = rule.cosign(&checkpoint(1), NodeId(3), &key(&NodeId(3).to_string()), 1_700_000_000);
        assert_eq!(own, Err(NotCertified::NotACertifier(NodeId(3))));
    }
}
