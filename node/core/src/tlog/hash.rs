//! RFC 6962 §2.1: the hashes of the Merkle tree, and the numbers that count its leaves.
//!
//! Leaves and interior nodes are hashed under different prefixes, so that no interior node can be passed off as a leaf.
//! A size is not an index: [`TreeSize`] and [`LeafIndex`] do not mix.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

/// RFC 6962 §2.1: prefix of a leaf's hash.
const LEAF_PREFIX: u8 = 0x00;
/// RFC 6962 §2.1: prefix of an interior node's hash.
const NODE_PREFIX: u8 = 0x01;

/// RFC 6962 §2.1: the root of the empty tree, SHA-256 of nothing.
pub const EMPTY_ROOT: Hash = Hash([
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
]);

/// A SHA-256 digest. Text form is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, std::hash::Hash, BorshSerialize, BorshDeserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What was read is not 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 hex digits")]
pub struct NotAHash;

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = NotAHash;
    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotAHash)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = NotAHash;
    fn try_from(bytes: &[u8]) -> Result<Self, NotAHash> {
        bytes.try_into().map(Self).map_err(|_| NotAHash)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: std::borrow::Cow<'de, str> = Deserialize::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, std::hash::Hash,
            BorshSerialize, BorshDeserialize, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// How many leaves a tree has.
    TreeSize
}
number! {
    /// Which leaf, counting from zero.
    LeafIndex
}

impl TreeSize {
    /// The tree without leaves.
    pub const ZERO: Self = Self(0);
}

impl LeafIndex {
    /// The smallest tree that has this leaf.
    pub fn size_with(self) -> TreeSize {
        TreeSize(self.0.saturating_add(1))
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash {
    finish(digest::digest(&digest::SHA256, bytes))
}

/// RFC 6962 §2.1: the hash of a leaf.
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[LEAF_PREFIX]);
    context.update(leaf);
    finish(context.finish())
}

/// RFC 6962 §2.1: the hash of an interior node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut input = [NODE_PREFIX; 65];
    let (_, children) = input.split_at_mut(1);
    for (to, from) in children.iter_mut().zip(left.0.iter().chain(&right.0)) {
        *to = *from;
    }
    sha256(&input)
}

/// RFC 6962 §2.1: the root over `hashes`, which are those of leaves or of equally high perfect subtrees.
pub fn tree_root(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => EMPTY_ROOT,
        [only] => *only,
        many => {
            let (left, right) = many.split_at(many.len().next_power_of_two() / 2);
            node_hash(&tree_root(left), &tree_root(right))
        }
    }
}

fn finish(digest: digest::Digest) -> Hash {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    Hash(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        assert_eq!(sha256(b""), EMPTY_ROOT);
        assert_eq!(tree_root(&[]), EMPTY_ROOT);
        // RFC 6962: SHA-256(0x00), the leaf without bytes
        assert_eq!(
            leaf_hash(b"").to_string(),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        // a leaf that spells an interior node is another hash
        let (a, b) = (leaf_hash(b"a"), leaf_hash(b"b"));
        assert_ne!(node_hash(&a, &b), leaf_hash(&[a.0, b.0].concat()));
        assert_ne!(node_hash(&a, &b), node_hash(&b, &a));
        assert_eq!(node_hash(&a, &b), sha256(&[&[1][..], &a.0, &b.0].concat()));
    }

    #[test]
    fn text_forms() {
        let hash = leaf_hash(b"x");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!("00".parse::<Hash>(), Err(NotAHash));
        assert_eq!(serde_json::from_str::<Hash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        assert_eq!(serde_json::to_string(&TreeSize(7)).unwrap(), "7");
        assert_eq!(borsh::from_slice::<Hash>(&borsh::to_vec(&hash).unwrap()).unwrap(), hash);
    }
}
