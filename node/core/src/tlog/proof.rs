//! Inclusion and consistency proofs: made by RFC 6962 §2.1.1 and §2.1.2, verified by RFC 9162 §2.1.3.2 and §2.1.4.2.
//!
//! Making reads perfect subtrees from a [`NodeReader`] and nothing else. Verifying assumes nothing about the proof: any
//! bytes give an answer or an error that names what is wrong. A consistency proof from the empty tree says nothing and is
//! refused; the caller who accepts any tree as a successor of none decides so itself.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use super::hash::{EMPTY_ROOT, Hash, LeafIndex, TreeSize, node_hash};

/// A tree of at most 2^64 leaves has 64 levels below its root; a consistency proof has one hash more.
pub const PROOF_HASHES_MAX: usize = 65;

/// Where proofs get their hashes: perfect subtrees, by level (0 = leaves) and index at that level.
pub trait NodeReader {
    /// Why a node could not be read.
    type Error;
    /// The hash of leaves `index << level` up to `(index + 1) << level`.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

macro_rules! proof {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, Serialize, Deserialize)]
        #[serde(try_from = "Vec<Hash>")]
        pub struct $name(Vec<Hash>);

        impl $name {
            /// The hashes, leaf side first.
            pub fn hashes(&self) -> &[Hash] {
                &self.0
            }
        }

        impl TryFrom<Vec<Hash>> for $name {
            type Error = ProofError;
            fn try_from(hashes: Vec<Hash>) -> Result<Self, ProofError> {
                if hashes.len() > PROOF_HASHES_MAX {
                    return Err(ProofError::TooLong);
                }
                Ok(Self(hashes))
            }
        }

        impl BorshDeserialize for $name {
            fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
                let count = u32::deserialize_reader(reader)? as usize;
                if count > PROOF_HASHES_MAX {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, ProofError::TooLong));
                }
                (0..count).map(|_| Hash::deserialize_reader(reader)).collect::<io::Result<_>>().map(Self)
            }
        }
    };
}

proof! {
    /// RFC 6962 §2.1.1, a Merkle audit path.
    InclusionProof
}
proof! {
    /// RFC 6962 §2.1.2, a Merkle consistency proof.
    ConsistencyProof
}

/// Why a proof does not prove what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// the index is not one of the tree's
    #[error("leaf {index} is not in a tree of size {size}")]
    IndexBeyondSize {
        /// the leaf in question
        index: LeafIndex,
        /// the tree in question
        size: TreeSize,
    },
    /// a tree cannot extend a larger one
    #[error("the old size {old} is above the new size {new}")]
    OldBeyondNew {
        /// the size said to be older
        old: TreeSize,
        /// the size said to be newer
        new: TreeSize,
    },
    /// every tree extends the empty one: there is nothing to verify
    #[error("consistency with the empty tree says nothing")]
    FromEmptyTree,
    /// more hashes than the shape of the tree has room for
    #[error("the proof has too many hashes")]
    TooLong,
    /// fewer hashes than the shape of the tree needs
    #[error("the proof has too few hashes")]
    TooShort,
    /// the proof leads to another root (of the new tree, for consistency)
    #[error("the proof leads to root {computed}, not {expected}")]
    RootMismatch {
        /// where the proof leads
        computed: Hash,
        /// where it should
        expected: Hash,
    },
    /// the consistency proof starts from another old root
    #[error("the proof starts from old root {computed}, not {expected}")]
    OldRootMismatch {
        /// where the proof starts
        computed: Hash,
        /// where it should
        expected: Hash,
    },
}

/// Why a proof could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProveError<E> {
    /// what was asked has no proof
    #[error("there is no such proof")]
    Unprovable(#[source] ProofError),
    /// a node could not be read
    #[error("a node of the tree could not be read")]
    Reader(#[source] E),
}

/// The root at `size`.
pub fn root_at<R: NodeReader>(reader: &R, size: TreeSize) -> Result<Hash, R::Error> {
    range_root(reader, 0, size.0)
}

/// Proves that leaf `index` is in the tree of `size`.
pub fn prove_inclusion<R: NodeReader>(
    reader: &R,
    index: LeafIndex,
    size: TreeSize,
) -> Result<InclusionProof, ProveError<R::Error>> {
    if index.0 >= size.0 {
        return Err(ProveError::Unprovable(ProofError::IndexBeyondSize { index, size }));
    }
    // RFC 6962 §2.1.1, PATH(m, D[n]), from the root down: collect the other side of each split
    let (mut low, mut high) = (0, size.0);
    let mut path = Vec::new();
    while high - low > 1 {
        let middle = low + split(high - low);
        let (other_low, other_high);
        if index.0 < middle {
            (other_low, other_high, high) = (middle, high, middle);
        } else {
            (other_low, other_high, low) = (low, middle, middle);
        }
        path.push(range_root(reader, other_low, other_high).map_err(ProveError::Reader)?);
    }
    path.reverse();
    Ok(InclusionProof(path))
}

/// Proves that the tree of size `new` extends the tree of size `old`.
pub fn prove_consistency<R: NodeReader>(
    reader: &R,
    old: TreeSize,
    new: TreeSize,
) -> Result<ConsistencyProof, ProveError<R::Error>> {
    check_sizes(old, new).map_err(ProveError::Unprovable)?;
    // RFC 6962 §2.1.2, SUBPROOF(m, D[n], b), from the root down
    let (mut low, mut high) = (0, new.0);
    let mut path = Vec::new();
    while high != old.0 {
        let middle = low + split(high - low);
        let (other_low, other_high);
        if old.0 <= middle {
            (other_low, other_high, high) = (middle, high, middle);
        } else {
            (other_low, other_high, low) = (low, middle, middle);
        }
        path.push(range_root(reader, other_low, other_high).map_err(ProveError::Reader)?);
    }
    // b is true exactly while nothing was split off on the left: then the verifier knows this root already
    if low != 0 {
        path.push(range_root(reader, low, high).map_err(ProveError::Reader)?);
    }
    path.reverse();
    Ok(ConsistencyProof(path))
}

/// RFC 9162 §2.1.3.2: verifies that the leaf with `leaf_hash` is number `index` of the tree with `size` and `root`.
pub fn verify_inclusion(
    leaf_hash: Hash,
    index: LeafIndex,
    size: TreeSize,
    root: Hash,
    proof: &InclusionProof,
) -> Result<(), ProofError> {
    if index.0 >= size.0 {
        return Err(ProofError::IndexBeyondSize { index, size });
    }
    let mut climb = Climb { index: index.0, last: size.0 - 1 };
    let mut computed = leaf_hash;
    for sibling in &proof.0 {
        computed = match climb.step()? {
            Side::Left => node_hash(sibling, &computed),
            Side::Right => node_hash(&computed, sibling),
        };
    }
    climb.at_root()?;
    if computed != root {
        return Err(ProofError::RootMismatch { computed, expected: root });
    }
    Ok(())
}

/// RFC 9162 §2.1.4.2: verifies that the tree (`new`, `new_root`) extends the tree (`old`, `old_root`).
pub fn verify_consistency(
    old: TreeSize,
    old_root: Hash,
    new: TreeSize,
    new_root: Hash,
    proof: &ConsistencyProof,
) -> Result<(), ProofError> {
    check_sizes(old, new)?;
    if old == new {
        if !proof.0.is_empty() {
            return Err(ProofError::TooLong);
        }
        if old_root != new_root {
            return Err(ProofError::RootMismatch { computed: old_root, expected: new_root });
        }
        return Ok(());
    }
    let mut hashes = proof.0.iter().copied();
    // an old tree that is perfect is a node of the new one, and its root need not be sent
    let first = if old.0.is_power_of_two() {
        if proof.0.is_empty() {
            return Err(ProofError::TooShort);
        }
        old_root
    } else {
        hashes.next().ok_or(ProofError::TooShort)?
    };
    let mut climb = Climb { index: old.0 - 1, last: new.0 - 1 };
    climb.skip(1);
    let (mut computed_old, mut computed_new) = (first, first);
    for sibling in hashes {
        match climb.step()? {
            Side::Left => {
                computed_old = node_hash(&sibling, &computed_old);
                computed_new = node_hash(&sibling, &computed_new);
            }
            Side::Right => computed_new = node_hash(&computed_new, &sibling),
        }
    }
    climb.at_root()?;
    if computed_old != old_root {
        return Err(ProofError::OldRootMismatch { computed: computed_old, expected: old_root });
    }
    if computed_new != new_root {
        return Err(ProofError::RootMismatch { computed: computed_new, expected: new_root });
    }
    Ok(())
}

fn check_sizes(old: TreeSize, new: TreeSize) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::OldBeyondNew { old, new });
    }
    if old == TreeSize::ZERO {
        return Err(ProofError::FromEmptyTree);
    }
    Ok(())
}

/// On which side of the path the next sibling stands.
enum Side {
    Left,
    Right,
}

/// The way from a node up to the root; `fn` and `sn` of RFC 9162 §2.1.3.2.
struct Climb {
    index: u64,
    last: u64,
}

impl Climb {
    fn step(&mut self) -> Result<Side, ProofError> {
        if self.last == 0 {
            return Err(ProofError::TooLong);
        }
        let side = if self.index & 1 == 1 || self.index == self.last {
            if self.index & 1 == 0 {
                // a node without a right sibling rises unchanged until it is one
                self.skip(0);
            }
            Side::Left
        } else {
            Side::Right
        };
        self.index >>= 1;
        self.last >>= 1;
        Ok(side)
    }

    /// Rises while the lowest bit of the index is `bit`.
    fn skip(&mut self, bit: u64) {
        while self.index & 1 == bit && self.index != 0 {
            self.index >>= 1;
            self.last >>= 1;
        }
    }

    fn at_root(&self) -> Result<(), ProofError> {
        if self.last == 0 { Ok(()) } else { Err(ProofError::TooShort) }
    }
}

/// RFC 6962 §2.1: the largest power of two below `width`, which is at least 2.
fn split(width: u64) -> u64 {
    1 << (width - 1).ilog2()
}

/// The root over leaves `low..high`, where `low` is aligned as it is when it comes from splitting a tree.
fn range_root<R: NodeReader>(reader: &R, mut low: u64, high: u64) -> Result<Hash, R::Error> {
    let mut perfect = Vec::new();
    while low < high {
        let level = (high - low).ilog2();
        // at most 63, as the level of a u64
        perfect.push(reader.node(level as u8, low >> level)?);
        low += 1 << level;
    }
    let from_the_right = perfect.into_iter().rev();
    Ok(from_the_right.reduce(|right, left| node_hash(&left, &right)).unwrap_or(EMPTY_ROOT))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;
    use crate::tlog::testing::{Twin, fixtures, leaves};

    /// RFC 6962 §2.1.1 to the letter.
    fn path(m: usize, d: &[Hash]) -> Vec<Hash> {
        if d.len() == 1 {
            return vec![];
        }
        let k = split(d.len() as u64) as usize;
        let root = |d: &[Hash]| Twin { leaf_hashes: d.to_vec() }.root(d.len() as u64);
        if m < k {
            [path(m, &d[..k]), vec![root(&d[k..])]].concat()
        } else {
            [path(m - k, &d[k..]), vec![root(&d[..k])]].concat()
        }
    }

    /// RFC 6962 §2.1.2 to the letter.
    fn subproof(m: usize, d: &[Hash], b: bool) -> Vec<Hash> {
        let root = |d: &[Hash]| Twin { leaf_hashes: d.to_vec() }.root(d.len() as u64);
        if m == d.len() {
            return if b { vec![] } else { vec![root(d)] };
        }
        let k = split(d.len() as u64) as usize;
        if m <= k {
            [subproof(m, &d[..k], b), vec![root(&d[k..])]].concat()
        } else {
            [subproof(m - k, &d[k..], false), vec![root(&d[..k])]].concat()
        }
    }

    #[test]
    fn every_small_proof_equals_the_twins_and_verifies() {
        let twin = Twin::new(&leaves(70));
        for size in 1..=70 {
            let (root, n) = (twin.root(size), TreeSize(size));
            assert_eq!(root_at(&twin, n), Ok(root));
            for index in 0..size {
                let proof = prove_inclusion(&twin, LeafIndex(index), n).unwrap();
                assert_eq!(proof.0, path(index as usize, &twin.leaf_hashes[..size as usize]));
                verify_inclusion(twin.leaf_hashes[index as usize], LeafIndex(index), n, root, &proof)
                    .unwrap();
            }
            for old in 1..=size {
                let proof = prove_consistency(&twin, TreeSize(old), n).unwrap();
                assert_eq!(proof.0, subproof(old as usize, &twin.leaf_hashes[..size as usize], true));
                verify_consistency(TreeSize(old), twin.root(old), n, root, &proof).unwrap();
            }
        }
    }

    #[test]
    fn each_error_by_one_mutation() {
        let twin = Twin::new(&leaves(13));
        let (n, root, leaf) = (TreeSize(13), twin.root(13), twin.leaf_hashes[5]);
        let proof = prove_inclusion(&twin, LeafIndex(5), n).unwrap();
        let verify =
            |leaf, index, size, root, proof: &_| verify_inclusion(leaf, LeafIndex(index), size, root, proof);
        assert_eq!(verify(leaf, 5, n, root, &proof), Ok(()));
        let beyond = ProofError::IndexBeyondSize { index: LeafIndex(13), size: n };
        assert_eq!(verify(leaf, 13, n, root, &proof), Err(beyond));
        assert_eq!(prove_inclusion(&twin, LeafIndex(13), n), Err(ProveError::Unprovable(beyond)));
        assert!(matches!(
            verify(twin.leaf_hashes[6], 5, n, root, &proof),
            Err(ProofError::RootMismatch { .. })
        ));
        assert!(matches!(verify(leaf, 4, n, root, &proof), Err(ProofError::RootMismatch { .. })));
        let expected = twin.root(12);
        assert_eq!(
            verify(leaf, 5, n, expected, &proof),
            Err(ProofError::RootMismatch { computed: root, expected })
        );
        let short = InclusionProof(proof.0[..3].to_vec());
        assert_eq!(verify(leaf, 5, n, root, &short), Err(ProofError::TooShort));
        let long = InclusionProof([&proof.0[..], &[leaf]].concat());
        assert_eq!(verify(leaf, 5, n, root, &long), Err(ProofError::TooLong));

        let (m, old_root) = (TreeSize(6), twin.root(6));
        let proof = prove_consistency(&twin, m, n).unwrap();
        assert_eq!(verify_consistency(m, old_root, n, root, &proof), Ok(()));
        let beyond = ProofError::OldBeyondNew { old: n, new: m };
        assert_eq!(verify_consistency(n, root, m, old_root, &proof), Err(beyond));
        assert_eq!(prove_consistency(&twin, n, m), Err(ProveError::Unprovable(beyond)));
        let empty = ProofError::FromEmptyTree;
        assert_eq!(
            verify_consistency(TreeSize::ZERO, EMPTY_ROOT, n, root, &ConsistencyProof::default()),
            Err(empty)
        );
        assert_eq!(prove_consistency(&twin, TreeSize::ZERO, n), Err(ProveError::Unprovable(empty)));
        assert_eq!(
            verify_consistency(m, leaf, n, root, &proof),
            Err(ProofError::OldRootMismatch { computed: old_root, expected: leaf })
        );
        assert_eq!(
            verify_consistency(m, old_root, n, leaf, &proof),
            Err(ProofError::RootMismatch { computed: root, expected: leaf })
        );
        let short = ConsistencyProof(proof.0[..2].to_vec());
        assert_eq!(verify_consistency(m, old_root, n, root, &short), Err(ProofError::TooShort));
        let none = ConsistencyProof::default();
        assert_eq!(verify_consistency(m, old_root, n, root, &none), Err(ProofError::TooShort));
        assert_eq!(verify_consistency(TreeSize(8), twin.root(8), n, root, &none), Err(ProofError::TooShort));
        let long = ConsistencyProof([&proof.0[..], &[leaf]].concat());
        assert_eq!(verify_consistency(m, old_root, n, root, &long), Err(ProofError::TooLong));
        assert_eq!(verify_consistency(n, root, n, root, &proof), Err(ProofError::TooLong));
    }

    #[test]
    fn encodings_are_bounded() {
        let proof = InclusionProof(vec![EMPTY_ROOT; 3]);
        assert_eq!(borsh::from_slice::<InclusionProof>(&borsh::to_vec(&proof).unwrap()).unwrap(), proof);
        assert_eq!(
            serde_json::from_str::<InclusionProof>(&serde_json::to_string(&proof).unwrap()).unwrap(),
            proof
        );
        let huge = vec![EMPTY_ROOT; PROOF_HASHES_MAX + 1];
        assert_eq!(InclusionProof::try_from(huge.clone()), Err(ProofError::TooLong));
        assert!(borsh::from_slice::<ConsistencyProof>(&borsh::to_vec(&huge).unwrap()).is_err());
        assert!(serde_json::from_str::<ConsistencyProof>(&serde_json::to_string(&huge).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn larger_proofs_equal_the_twins(size in 1u64..1200, a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
            let twin = Twin::new(&leaves(size as usize));
            let (index, old) = (a.index(size as usize), b.index(size as usize) + 1);
            let (n, root) = (TreeSize(size), twin.root(size));
            let proof = prove_inclusion(&twin, LeafIndex(index as u64), n).unwrap();
            prop_assert_eq!(&proof.0, &path(index, &twin.leaf_hashes));
            verify_inclusion(twin.leaf_hashes[index], LeafIndex(index as u64), n, root, &proof).unwrap();
            let proof = prove_consistency(&twin, TreeSize(old as u64), n).unwrap();
            prop_assert_eq!(&proof.0, &subproof(old, &twin.leaf_hashes, true));
            verify_consistency(TreeSize(old as u64), twin.root(old as u64), n, root, &proof).unwrap();
        }

        #[test]
        fn arbitrary_proofs_never_verify_nor_panic(
            index: u64, size: u64, old: u64, hashes in prop::collection::vec(any::<[u8; 32]>().prop_map(Hash), 0..=65),
        ) {
            let inclusion = InclusionProof(hashes.clone());
            let leaf = Hash([7; 32]);
            prop_assert!(verify_inclusion(leaf, LeafIndex(index), TreeSize(size), EMPTY_ROOT, &inclusion).is_err());
            let consistency = ConsistencyProof(hashes);
            prop_assert!(verify_consistency(TreeSize(old), leaf, TreeSize(size), EMPTY_ROOT, &consistency).is_err());
        }
    }

    fn json_files(dir: &Path, found: &mut Vec<(String, serde_json::Value)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                json_files(&path, found);
            } else if path.extension().is_some_and(|e| e == "json") {
                found.push((
                    path.display().to_string(),
                    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap(),
                ));
            }
        }
    }

    fn vector_hash(value: &serde_json::Value) -> Option<Hash> {
        Hash::try_from(STANDARD.decode(value.as_str()?).ok()?.as_slice()).ok()
    }

    fn vector_proof<P: TryFrom<Vec<Hash>>>(value: &serde_json::Value) -> Option<P> {
        let none = vec![];
        let list = value.as_array().unwrap_or(&none);
        P::try_from(list.iter().map(vector_hash).collect::<Option<Vec<_>>>()?).ok()
    }

    fn inclusion_vector(v: &serde_json::Value) -> Option<Result<(), ProofError>> {
        let (index, size) = (LeafIndex(v["leafIdx"].as_u64()?), TreeSize(v["treeSize"].as_u64()?));
        Some(verify_inclusion(
            vector_hash(&v["leafHash"])?,
            index,
            size,
            vector_hash(&v["root"])?,
            &vector_proof(&v["proof"])?,
        ))
    }

    fn consistency_vector(v: &serde_json::Value) -> Option<Result<(), ProofError>> {
        let (old, new) = (TreeSize(v["size1"].as_u64()?), TreeSize(v["size2"].as_u64()?));
        Some(verify_consistency(
            old,
            vector_hash(&v["root1"])?,
            new,
            vector_hash(&v["root2"])?,
            &vector_proof(&v["proof"])?,
        ))
    }

    #[test]
    fn vectors_of_transparency_dev() {
        /// Positive, but its roots have 12 bytes: no [`Hash`] can hold them.
        const NOT_HASHES: &str = "consistency/additional/sizes-are-equal-one-and-proof-is-empty.json";
        type Check = fn(&serde_json::Value) -> Option<Result<(), ProofError>>;
        let Some(dir) = fixtures("tlog/merkle/testdata") else { return };
        let kinds: [(&str, Check, usize, usize); 2] =
            [("inclusion", inclusion_vector, 6, 80), ("consistency", consistency_vector, 5, 80)];
        for (kind, check, positives_min, negatives_min) in kinds {
            let mut vectors = vec![];
            json_files(&dir.join(kind), &mut vectors);
            let (mut positives, mut negatives) = (0, 0);
            for (file, vector) in vectors {
                if file.ends_with(NOT_HASHES) {
                    eprintln!("skipped: {NOT_HASHES}: its roots are not 32 bytes");
                    continue;
                }
                // `None`: already its hashes do not parse
                let verified = check(&vector) == Some(Ok(()));
                assert_eq!(verified, vector["wantErr"] == false, "{file}: {:?}", check(&vector));
                *(if verified { &mut positives } else { &mut negatives }) += 1;
            }
            assert!(
                positives >= positives_min && negatives >= negatives_min,
                "{kind}: {positives} + {negatives}"
            );
        }
    }
}
