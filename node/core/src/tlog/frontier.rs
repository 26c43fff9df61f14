//! The right edge of an RFC 6962 tree: the roots of the perfect subtrees its size decomposes into, largest first.
//!
//! Enough to append and to know the root, in at most 64 hashes. Appending costs one hash per completed node, which is
//! less than two on average. It cannot prove anything about old leaves: a store that wants to keep the interior
//! nodes, each final the moment it is complete, takes them from [`Frontier::push_with`].

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};

use super::hash::{EMPTY_ROOT, Hash, TreeSize, node_hash};

/// Larger than any log will grow, small enough that adding to it never overflows: a bound for sizes read from outside.
pub const TREE_SIZE_MAX: u64 = 1 << 62;

/// The right edge of a tree of a certain size.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize)]
pub struct Frontier {
    size: u64,
    /// one for each set bit of `size`, the highest first
    peaks: Vec<Hash>,
}

/// As many peaks as the size has set bits, and a size within [`TREE_SIZE_MAX`]: these were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{peaks} peaks do not make the frontier of a tree of size {size}")]
pub struct NotAFrontier {
    /// the size that was given
    pub size: u64,
    /// how many peaks came with it
    pub peaks: usize,
}

impl Frontier {
    /// The frontier of the empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// A frontier from the perfect subtrees of `size`, largest first. Whose peaks they are is the caller's to know.
    pub fn from_peaks(size: TreeSize, peaks: Vec<Hash>) -> Result<Self, NotAFrontier> {
        if size.0 > TREE_SIZE_MAX || peaks.len() != peak_count(size.0) {
            return Err(NotAFrontier { size: size.0, peaks: peaks.len() });
        }
        Ok(Self { size: size.0, peaks })
    }

    /// How many leaves were pushed.
    pub fn size(&self) -> TreeSize {
        TreeSize(self.size)
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf_hash: Hash) {
        self.push_with(leaf_hash, |_, _, _| ());
    }

    /// Appends a leaf and reports every node this completes, as (level, index at that level, hash), the leaf itself at
    /// level 0 first, its ancestors after it.
    pub fn push_with(&mut self, leaf_hash: Hash, mut completed: impl FnMut(u8, u64, Hash)) {
        let index = self.size;
        let mut node = leaf_hash;
        let mut level = 0;
        completed(level, index, node);
        // each trailing set bit of the old size is a perfect subtree whose right sibling the new node now is
        while (index >> level) & 1 == 1 {
            let Some(left) = self.peaks.pop() else { break };
            node = node_hash(&left, &node);
            level += 1;
            completed(level, index >> level, node);
        }
        self.peaks.push(node);
        self.size = index.saturating_add(1);
    }

    /// The root at this size.
    pub fn root(&self) -> Hash {
        let from_the_right = self.peaks.iter().rev().copied();
        from_the_right.reduce(|right, left| node_hash(&left, &right)).unwrap_or(EMPTY_ROOT)
    }
}

impl BorshDeserialize for Frontier {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let size = u64::deserialize_reader(reader)?;
        let count = u32::deserialize_reader(reader)? as usize;
        let wrong = NotAFrontier { size, peaks: count };
        if size > TREE_SIZE_MAX || count != peak_count(size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        let peaks = (0..count).map(|_| Hash::deserialize_reader(reader)).collect::<io::Result<_>>()?;
        Ok(Self { size, peaks })
    }
}

fn peak_count(size: u64) -> usize {
    size.count_ones() as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tlog::testing::{Twin, leaves};

    #[test]
    fn equals_the_twin_at_every_size_and_reports_every_node() {
        let twin = Twin::new(&leaves(300));
        let mut frontier = Frontier::new();
        let mut nodes = BTreeMap::new();
        assert_eq!(frontier.root(), EMPTY_ROOT);
        for (index, leaf) in twin.leaf_hashes.iter().enumerate() {
            frontier.push_with(*leaf, |level, index, hash| {
                assert_eq!(nodes.insert((level, index), hash), None, "reported twice");
            });
            assert_eq!(frontier.size(), TreeSize(index as u64 + 1));
            assert_eq!(frontier.root(), twin.root(index as u64 + 1));
            let bytes = borsh::to_vec(&frontier).unwrap();
            assert_eq!(borsh::from_slice::<Frontier>(&bytes).unwrap(), frontier);
        }
        for level in 0..9u8 {
            for index in 0..300u64 >> level {
                assert_eq!(nodes.remove(&(level, index)), Some(twin.node(level, index)));
            }
        }
        assert_eq!(nodes.len(), 0, "reported a node that is not complete");
    }

    #[test]
    fn refuses_what_is_not_a_frontier() {
        let mut frontier = Frontier::new();
        (0..5).for_each(|_| frontier.push(EMPTY_ROOT));
        let good = borsh::to_vec(&frontier).unwrap();
        let mut bad = good.clone();
        bad[0] = 7; // a size with three bits, two peaks
        assert!(borsh::from_slice::<Frontier>(&bad).unwrap_err().to_string().contains("2 peaks"));
        let mut bad = good;
        bad[7] = 0x80; // size 2^63 + 5
        assert!(borsh::from_slice::<Frontier>(&bad).is_err());
        assert!(Frontier::from_peaks(TreeSize(3), vec![EMPTY_ROOT]).is_err());
    }
}
