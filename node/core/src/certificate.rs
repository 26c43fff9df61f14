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
use crate::crypto::PublicKey;
use crate::ids::NodeId;
use crate::leaf::Leaf;
use crate::state::AppliedLeaf;
use crate::tlog::{
    Checkpoint, Cosignature, InclusionProof, LeafIndex, TreeSize, leaf_hash, verify_inclusion,
};
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
        cosignature: &Cosignature,
    ) -> Result<(), NotCertified> {
        let key = self.keys.get(&node).ok_or(NotCertified::NotACertifier(node))?;
        cosignature.verify(checkpoint, &key.0).map_err(|_| NotCertified::BadCosignature(node))
    }

    /// Verifies a certificate: every cosignature listed, and that they suffice.
    pub fn certify(
        &self,
        checkpoint: Checkpoint,
        cosignatures: &[(NodeId, Cosignature)],
    ) -> Result<CertifiedCheckpoint, NotCertified> {
        let mut nodes = BTreeSet::new();
        for (node, cosignature) in cosignatures {
            self.check(&checkpoint, *node, cosignature)?;
            if !nodes.insert(*node) {
                return Err(NotCertified::Doubled(*node));
            }
        }
        self.satisfied_by(&nodes)?;
        Ok(CertifiedCheckpoint { checkpoint, cosignatures: cosignatures.to_vec() })
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
                command: Command::Client(ClientSigned { client, body: ClientCommand::Authorise(a), .. }),
                outcome: Outcome::Authorised,
            } => Some(CertifiedAuthorisation {
                client: client.clone(),
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
    request: crate::command::Authorise,
    time: crate::ids::Timestamp,
    index: LeafIndex,
    under: CheckpointRef,
}

impl CertifiedAuthorisation {
    /// Who asked.
    pub fn client(&self) -> &crate::ids::ClientId {
        &self.client
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
