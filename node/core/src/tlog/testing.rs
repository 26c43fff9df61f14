//! The obviously right tree: keeps every leaf, recomputes everything by RFC 6962 §2.1's own recursion.

use std::{convert::Infallible, path::PathBuf};

use super::hash::{EMPTY_ROOT, Hash, leaf_hash, node_hash};
use super::proof::NodeReader;

pub(crate) struct Twin {
    pub(crate) leaf_hashes: Vec<Hash>,
}

impl Twin {
    pub(crate) fn new(leaves: &[Vec<u8>]) -> Self {
        Self { leaf_hashes: leaves.iter().map(|leaf| leaf_hash(leaf)).collect() }
    }
    pub(crate) fn root(&self, size: u64) -> Hash {
        mth(&self.leaf_hashes[..size as usize])
    }
    pub(crate) fn node(&self, level: u8, index: u64) -> Hash {
        let width = 1usize << level;
        mth(&self.leaf_hashes[index as usize * width..(index as usize + 1) * width])
    }
}

impl NodeReader for Twin {
    type Error = Infallible;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Infallible> {
        Ok(Twin::node(self, level, index))
    }
}

fn mth(leaves: &[Hash]) -> Hash {
    match leaves.len() {
        0 => EMPTY_ROOT,
        1 => leaves[0],
        n => {
            let mut k = 1;
            while k * 2 < n {
                k *= 2;
            }
            node_hash(&mth(&leaves[..k]), &mth(&leaves[k..]))
        }
    }
}

pub(crate) fn leaves(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| format!("leaf {i}").into_bytes()).collect()
}

/// The folder of fixtures written by others, or the reason why its tests do not run.
pub(crate) fn fixtures(below: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("QUORATE_FIXTURES") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
    };
    let dir = root.join(below);
    if !dir.exists() {
        eprintln!("skipped: no {} (set QUORATE_FIXTURES to the folder of fixtures)", dir.display());
        return None;
    }
    Some(dir)
}
