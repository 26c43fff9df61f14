//! What a snapshot must hold of the tlog beside the files: the leaves and hashes of the tiles that are not full.
//!
//! Nothing in it is redundant, so nothing in it can disagree: the hashes of the level 0 tile, the frontier and the root
//! follow from it. That it belongs to the files beside it is for [`super::fsck`] and [`super::install`] to say.

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use quorate_core::tlog::{
    Frontier, Hash, MAX_LEAF_BYTES, TILE_HEIGHT, TILE_WIDTH, TreeSize, frontier::TREE_SIZE_MAX, leaf_hash,
    tree_root,
};

/// Version of the encoding; a golden test keeps it readable.
const VERSION: u8 = 1;

/// The right edge of a tlog at one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreTail {
    size: TreeSize,
    /// the open tiles of level 1 and up; none above the highest that has hashes
    tiles: Vec<Vec<Hash>>,
    /// the open bundle
    leaves: Vec<Vec<u8>>,
}

/// Why bytes are not the tail of any tlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// written by a version that is not this one's to read
    #[error("tail version {0} is not supported")]
    Version(u8),
    /// no tlog is that large
    #[error("tree size {0} is beyond any tlog's")]
    Size(u64),
    /// more tile levels than a size of 64 bits can have
    #[error("no tlog has open tiles of {0} levels")]
    Levels(usize),
    /// a tile has more or fewer hashes than the size says
    #[error("the open tile of level {level} has {got} hashes, not {want}")]
    TileWidth {
        /// which
        level: u8,
        /// hashes it has
        got: u64,
        /// hashes it must have
        want: u64,
    },
    /// the bundle has more or fewer leaves than the size says
    #[error("the open bundle has {got} leaves, not {want}")]
    Leaves {
        /// leaves it has
        got: u64,
        /// leaves it must have
        want: u64,
    },
    /// a leaf that C2SP tlog-tiles cannot express
    #[error("a leaf of {0} bytes exceeds {MAX_LEAF_BYTES}")]
    LeafTooLong(usize),
}

impl StoreTail {
    /// The size of the tlog.
    pub fn size(&self) -> TreeSize {
        self.size
    }

    /// The root of the tlog.
    pub fn root(&self) -> Hash {
        self.frontier().root()
    }

    /// The frontier: what is open, cut into perfect subtrees.
    pub fn frontier(&self) -> Frontier {
        let level_0: Vec<_> = self.leaves.iter().map(|leaf| leaf_hash(leaf)).collect();
        let mut peaks = Vec::new();
        for row in self.tiles.iter().rev().chain([&level_0]) {
            let mut rest = row.as_slice();
            for width in (0..TILE_HEIGHT).rev().map(|height| 1usize << height) {
                if row.len() & width == 0 {
                    continue;
                }
                let Some((perfect, after)) = rest.split_at_checked(width) else { break };
                peaks.push(tree_root(perfect));
                rest = after;
            }
        }
        // widths were checked against the size when the tail was made: there are as many peaks as it has bits
        Frontier::from_peaks(self.size, peaks).unwrap_or_default()
    }

    /// The hash of each full tile that stands in an open one: (tile level and index of the full one, its root).
    pub(super) fn full_subtrees(&self) -> impl Iterator<Item = (u8, u64, Hash)> {
        (0u8..).zip(&self.tiles).flat_map(|(below, row)| {
            let first = super::full_tiles(self.size, below) / TILE_WIDTH * TILE_WIDTH;
            (first..).zip(row).map(move |(index, hash)| (below, index, *hash))
        })
    }

    pub(super) fn tiles(&self) -> &[Vec<Hash>] {
        &self.tiles
    }

    pub(super) fn leaves(&self) -> &[Vec<u8>] {
        &self.leaves
    }

    /// From an edge, whose widths are those of its size.
    pub(super) fn of_edge(size: TreeSize, mut tiles: Vec<Vec<Hash>>, leaves: Vec<Vec<u8>>) -> Self {
        while tiles.last().is_some_and(Vec::is_empty) {
            tiles.pop();
        }
        Self { size, tiles, leaves }
    }

    fn check(self) -> Result<Self, TailError> {
        let size = self.size.0;
        if size > TREE_SIZE_MAX {
            return Err(TailError::Size(size));
        }
        let (got, want) = (self.leaves.len() as u64, size % TILE_WIDTH);
        if got != want {
            return Err(TailError::Leaves { got, want });
        }
        if self.tiles.len() > usize::from(TILE_HEIGHT) {
            return Err(TailError::Levels(self.tiles.len()));
        }
        for level in 1..=TILE_HEIGHT {
            let got = self.tiles.get(usize::from(level) - 1).map_or(0, |row| row.len() as u64);
            let want = super::full_tiles(self.size, level - 1) % TILE_WIDTH;
            if got != want {
                return Err(TailError::TileWidth { level, got, want });
            }
        }
        if let Some(leaf) = self.leaves.iter().find(|leaf| leaf.len() > MAX_LEAF_BYTES) {
            return Err(TailError::LeafTooLong(leaf.len()));
        }
        Ok(Self::of_edge(self.size, self.tiles, self.leaves))
    }
}

impl BorshSerialize for StoreTail {
    fn serialize<W: io::Write>(&self, writer: &mut W) -> io::Result<()> {
        (VERSION, self.size, &self.tiles, &self.leaves).serialize(writer)
    }
}

impl BorshDeserialize for StoreTail {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        let invalid = |error: TailError| io::Error::new(io::ErrorKind::InvalidData, error);
        let version = u8::deserialize_reader(reader)?;
        if version != VERSION {
            return Err(invalid(TailError::Version(version)));
        }
        let (size, tiles, leaves) = BorshDeserialize::deserialize_reader(reader)?;
        Self { size, tiles, leaves }.check().map_err(invalid)
    }
}
