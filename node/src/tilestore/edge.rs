//! The right edge in memory: every open tile with its interior nodes, so that a proof near it hashes nothing.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use quorate_core::tlog::{Frontier, Hash, TILE_HEIGHT, TILE_WIDTH, TreeSize, leaf_hash, node_hash};

use super::{Added, full_tiles, tail::StoreTail};

/// Full tiles kept beyond their completion, 16 KiB each: a leaf's proof is asked for seconds after it was appended.
const RECENT_TILES_MAX: usize = 16;
/// Full bundles kept, at most 16 MiB each, mostly below 200 KiB.
const RECENT_BUNDLES_MAX: usize = 2;

/// A tile and the eight levels of the tree that it stands for, leaf side first.
#[derive(Clone, Debug, Default)]
pub(super) struct TileNodes {
    rows: [Vec<Hash>; TILE_HEIGHT as usize],
}

impl TileNodes {
    pub(super) fn from_hashes(hashes: &[Hash]) -> Self {
        let mut rows: [Vec<Hash>; TILE_HEIGHT as usize] = Default::default();
        let mut row = hashes.to_vec();
        for slot in &mut rows {
            let above = row.as_chunks::<2>().0.iter().map(|[left, right]| node_hash(left, right)).collect();
            *slot = std::mem::replace(&mut row, above);
        }
        Self { rows }
    }

    /// The node `offset` of the level `height` above the tile's own hashes.
    pub(super) fn get(&self, height: u8, offset: usize) -> Option<Hash> {
        self.rows.get(usize::from(height))?.get(offset).copied()
    }

    /// The tile's own hashes.
    pub(super) fn hashes(&self) -> &[Hash] {
        let [hashes, ..] = &self.rows;
        hashes
    }

    fn push(&mut self, height: u8, hash: Hash) {
        if let Some(row) = self.rows.get_mut(usize::from(height)) {
            row.push(hash);
        }
    }
}

/// Where a tile of the tree is to be found.
pub(super) enum Lookup<T> {
    Here(T),
    OnDisk,
    Beyond(TreeSize),
}

/// The right edge at one size.
#[derive(Default)]
pub(super) struct Edge {
    frontier: Frontier,
    /// the open tile of each tile level, number `size >> 8 * (level + 1)`
    open: Vec<TileNodes>,
    /// the open bundle
    leaves: Vec<Bytes>,
    recent: VecDeque<(u8, u64, Arc<TileNodes>)>,
    recent_bundles: VecDeque<(u64, Vec<Bytes>)>,
}

impl Edge {
    pub(super) fn from_tail(tail: &StoreTail) -> Self {
        let level_0: Vec<_> = tail.leaves().iter().map(|leaf| leaf_hash(leaf)).collect();
        let above = tail.tiles().iter().map(Vec::as_slice);
        let open = std::iter::once(level_0.as_slice()).chain(above).map(TileNodes::from_hashes).collect();
        let leaves = tail.leaves().iter().map(|leaf| Bytes::copy_from_slice(leaf)).collect();
        Self { frontier: tail.frontier(), open, leaves, ..Self::default() }
    }

    pub(super) fn to_tail(&self) -> StoreTail {
        let tiles = self.open.iter().skip(1).map(|tile| tile.hashes().to_vec()).collect();
        let leaves = self.leaves.iter().map(|leaf| leaf.to_vec()).collect();
        StoreTail::of_edge(self.frontier.size(), tiles, leaves)
    }

    pub(super) fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    pub(super) fn leaves(&self) -> &[Bytes] {
        &self.leaves
    }

    pub(super) fn open_row(&self, tile_level: u8) -> &[Hash] {
        self.open.get(usize::from(tile_level)).map_or(&[], TileNodes::hashes)
    }

    /// Calls `look` with the tile that has the first `width` hashes, if it is in memory.
    pub(super) fn tile<T>(
        &self,
        tile_level: u8,
        index: u64,
        needs: Option<TreeSize>,
        look: impl FnOnce(&TileNodes) -> Option<T>,
    ) -> Lookup<T> {
        let size = self.frontier.size();
        let Some(needs) = needs.filter(|needs| *needs <= size) else {
            return Lookup::Beyond(needs.unwrap_or(TreeSize(u64::MAX)));
        };
        let found = if index == full_tiles(size, tile_level) {
            self.open.get(usize::from(tile_level))
        } else {
            let recent =
                self.recent.iter().find(|(level, number, _)| (*level, *number) == (tile_level, index));
            recent.map(|(_, _, tile)| tile.as_ref())
        };
        match found.map(look) {
            Some(Some(found)) => Lookup::Here(found),
            // an open tile has everything below the size
            Some(None) => Lookup::Beyond(needs),
            None => Lookup::OnDisk,
        }
    }

    /// Calls `look` with the entries of bundle `index`, if they are in memory.
    pub(super) fn bundle<T>(
        &self,
        index: u64,
        needs: Option<TreeSize>,
        look: impl FnOnce(&[Bytes]) -> Option<T>,
    ) -> Lookup<T> {
        let size = self.frontier.size();
        let Some(needs) = needs.filter(|needs| *needs <= size) else {
            return Lookup::Beyond(needs.unwrap_or(TreeSize(u64::MAX)));
        };
        let found = if index == full_tiles(size, 0) {
            Some(self.leaves.as_slice())
        } else {
            self.recent_bundles
                .iter()
                .find(|(number, _)| *number == index)
                .map(|(_, leaves)| leaves.as_slice())
        };
        match found.map(look) {
            Some(Some(found)) => Lookup::Here(found),
            Some(None) => Lookup::Beyond(needs),
            None => Lookup::OnDisk,
        }
    }

    /// Moves on to `frontier`. What is full is on disk already.
    pub(super) fn advance(&mut self, frontier: Frontier, added: Added) {
        let mut leaves = added.leaves.into_iter();
        for (level, index, hash) in added.nodes {
            let (tile_level, height) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
            if height == 0 {
                if let Some(below) = tile_level.checked_sub(1) {
                    self.retire_tile(below, index);
                }
                if self.open.len() <= usize::from(tile_level) {
                    self.open.resize_with(usize::from(tile_level) + 1, TileNodes::default);
                }
            }
            if level == 0 {
                self.leaves.extend(leaves.next());
                if self.leaves.len() as u64 == TILE_WIDTH {
                    let bundle = std::mem::take(&mut self.leaves);
                    self.recent_bundles.push_back((index / TILE_WIDTH, bundle));
                    if self.recent_bundles.len() > RECENT_BUNDLES_MAX {
                        self.recent_bundles.pop_front();
                    }
                }
            }
            if let Some(tile) = self.open.get_mut(usize::from(tile_level)) {
                tile.push(height, hash);
            }
        }
        self.frontier = frontier;
    }

    fn retire_tile(&mut self, tile_level: u8, index: u64) {
        if let Some(open) = self.open.get_mut(usize::from(tile_level)) {
            self.recent.push_back((tile_level, index, Arc::new(std::mem::take(open))));
            if self.recent.len() > RECENT_TILES_MAX {
                self.recent.pop_front();
            }
        }
    }
}
