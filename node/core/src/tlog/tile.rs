//! C2SP tlog-tiles: names of tiles and entry bundles, and their bytes. Parsing accepts the one spelling and no other.
//!
//! Out of scope: pruning (this log is never pruned), HTTP and disks (the caller's).

use std::{fmt, str::FromStr};

use super::hash::{Hash, LeafIndex, TreeSize};

/// Hashes in a full tile, entries in a full bundle.
pub const TILE_WIDTH: u64 = 256;
/// Levels of the tree in one level of tiles.
pub const TILE_HEIGHT: u8 = 8;
/// The highest level a tile's name may have.
pub const LEVEL_MAX: u8 = 63;
/// Bytes of a full tile.
pub const FULL_TILE_BYTES: usize = 256 * HASH_BYTES;
/// An entry's length is a `uint16`.
pub const MAX_LEAF_BYTES: usize = 65_535;
/// Bytes of the largest entry bundle there can be.
pub const BUNDLE_BYTES_MAX: usize = 256 * (LENGTH_BYTES + MAX_LEAF_BYTES);
/// Longer than any name: `tile/entries/`, seven groups, `.p/255`.
const PATH_BYTES_MAX: usize = 64;

const HASH_BYTES: usize = 32;
const LENGTH_BYTES: usize = 2;

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TileKind {
    /// Merkle Tree Hashes of this tile level: level `l` has the roots of `256^l` leaves each
    Hashes(u8),
    /// the leaves themselves
    Entries,
}

/// The name of a tile or entry bundle, full or partial, such as `tile/0/x001/x234/067.p/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TilePath {
    kind: TileKind,
    index: u64,
    width: u16,
}

/// Why something is not a tile, or not a tile's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// tiles have levels 0 to 63
    #[error("there are no tiles of level {0}")]
    Level(u64),
    /// a partial tile has 1 to 255 entries, a full one 256
    #[error("no tile is {0} wide")]
    Width(u64),
    /// not the one spelling of any tile's name
    #[error("not the name of a tile")]
    Name,
    /// the bytes are not as many hashes as the tile is wide
    #[error("a tile of width {width} has {got} bytes")]
    TileBytes {
        /// hashes there should be
        width: u16,
        /// bytes there are
        got: usize,
    },
    /// the bundle ends within an entry, or before the last one
    #[error("the entry bundle ends within entry {entry}")]
    BundleTruncated {
        /// the entry in which it ends
        entry: u16,
    },
    /// bytes after the last entry
    #[error("the entry bundle goes on for {bytes} bytes after its last entry")]
    BundleTrailing {
        /// how many
        bytes: usize,
    },
    /// the length of an entry does not fit into 16 bits
    #[error("an entry of {bytes} bytes exceeds {MAX_LEAF_BYTES}")]
    LeafTooLong {
        /// how many
        bytes: usize,
    },
}

impl TilePath {
    /// The full tile `index`.
    pub fn full(kind: TileKind, index: u64) -> Result<Self, TileError> {
        Self::of_width(kind, index, TILE_WIDTH as u16)
    }

    /// The tile `index` with `width` (1 to 256) entries.
    pub fn of_width(kind: TileKind, index: u64, width: u16) -> Result<Self, TileError> {
        match kind {
            TileKind::Hashes(level) if level > LEVEL_MAX => return Err(TileError::Level(level.into())),
            TileKind::Hashes(_) | TileKind::Entries => {}
        }
        if width == 0 || u64::from(width) > TILE_WIDTH {
            return Err(TileError::Width(width.into()));
        }
        Ok(Self { kind, index, width })
    }

    /// The bundle that holds a leaf, and the leaf's place in it.
    pub fn bundle_of(leaf: LeafIndex) -> (Self, u16) {
        let path = Self { kind: TileKind::Entries, index: leaf.0 / TILE_WIDTH, width: TILE_WIDTH as u16 };
        (path, (leaf.0 % TILE_WIDTH) as u16)
    }

    /// What it holds.
    pub fn kind(&self) -> TileKind {
        self.kind
    }

    /// Its place among the tiles of its kind.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes or entries it has.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it is full, and so final.
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == TILE_WIDTH
    }

    /// The smallest tree in which this tile exists with this width; none if that is beyond any tree.
    pub fn needs(&self) -> Option<TreeSize> {
        let level = match self.kind {
            TileKind::Hashes(level) => level,
            TileKind::Entries => 0,
        };
        let hashes = self.index.checked_mul(TILE_WIDTH)?.checked_add(self.width.into())?;
        hashes.checked_mul(TILE_WIDTH.checked_pow(level.into())?).map(TreeSize)
    }
}

impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes(level) => write!(f, "tile/{level}/")?,
            TileKind::Entries => f.write_str("tile/entries/")?,
        }
        let mut above = 1u64;
        while self.index / above >= 1000 {
            above *= 1000;
        }
        while above > 1 {
            write!(f, "x{:03}/", self.index / above % 1000)?;
            above /= 1000;
        }
        write!(f, "{:03}", self.index % 1000)?;
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl FromStr for TilePath {
    type Err = TileError;
    fn from_str(text: &str) -> Result<Self, TileError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(TileError::Name);
        }
        let rest = text.strip_prefix("tile/").ok_or(TileError::Name)?;
        let (kind, rest) = rest.split_once('/').ok_or(TileError::Name)?;
        let kind = match kind {
            "entries" => TileKind::Entries,
            level => TileKind::Hashes(level.parse().map_err(|_| TileError::Name)?),
        };
        let (groups, width) = match rest.split_once(".p/") {
            Some((groups, width)) => (groups, width.parse().map_err(|_| TileError::Name)?),
            None => (rest, TILE_WIDTH as u16),
        };
        let mut index = 0u64;
        for group in groups.split('/') {
            let digits = group.strip_prefix('x').unwrap_or(group);
            let digits: u64 = digits.parse().map_err(|_| TileError::Name)?;
            index = index.checked_mul(1000).and_then(|i| i.checked_add(digits)).ok_or(TileError::Name)?;
        }
        let path = Self::of_width(kind, index, width)?;
        // whatever the above let through, only the spelling that we would write is a name
        if path.to_string() == text { Ok(path) } else { Err(TileError::Name) }
    }
}

/// The bytes of a tile.
pub fn encode_tile(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The hashes of a tile of `width`.
pub fn decode_tile(bytes: &[u8], width: u16) -> Result<Vec<Hash>, TileError> {
    let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
    if hashes.len() != usize::from(width) || !rest.is_empty() {
        return Err(TileError::TileBytes { width, got: bytes.len() });
    }
    Ok(hashes.iter().map(|hash| Hash(*hash)).collect())
}

/// The bytes of an entry bundle.
pub fn encode_bundle<L: AsRef<[u8]>>(leaves: &[L]) -> Result<Vec<u8>, TileError> {
    let mut out = Vec::with_capacity(leaves.iter().map(|leaf| LENGTH_BYTES + leaf.as_ref().len()).sum());
    for leaf in leaves {
        let leaf = leaf.as_ref();
        let length = u16::try_from(leaf.len()).map_err(|_| TileError::LeafTooLong { bytes: leaf.len() })?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(leaf);
    }
    Ok(out)
}

/// The entries of a bundle of `width`.
pub fn decode_bundle(mut bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, TileError> {
    let mut leaves = Vec::with_capacity(width.into());
    for entry in 0..width {
        let truncated = TileError::BundleTruncated { entry };
        let Some((length, rest)) = bytes.split_first_chunk() else { return Err(truncated) };
        let length = u16::from_be_bytes(*length);
        let Some((leaf, rest)) = rest.split_at_checked(length.into()) else { return Err(truncated) };
        leaves.push(leaf);
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(TileError::BundleTrailing { bytes: bytes.len() });
    }
    Ok(leaves)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_specifications_examples() {
        let path: TilePath = "tile/0/x001/x234/067".parse().unwrap();
        assert_eq!((path.kind(), path.index(), path.width()), (TileKind::Hashes(0), 1_234_067, 256));
        // a tree of size 70,000: 273 full level 0 tiles, a partial one of width 112, level 1: one full and 17, level 2: 1
        for (name, needs) in [
            ("tile/0/272", 69_888),
            ("tile/0/273.p/112", 70_000),
            ("tile/entries/273.p/112", 70_000),
            ("tile/1/000", 65_536),
            ("tile/1/001.p/17", 69_888),
            ("tile/2/000.p/1", 65_536),
        ] {
            let path: TilePath = name.parse().unwrap();
            assert_eq!(path.needs(), Some(TreeSize(needs)), "{name}");
            assert_eq!(path.to_string(), name);
        }
        assert_eq!("tile/63/000".parse::<TilePath>().unwrap().needs(), None);
        let last = TilePath::full(TileKind::Hashes(63), u64::MAX).unwrap();
        assert_eq!(last.to_string().parse(), Ok(last));
        assert_eq!(last.to_string(), "tile/63/x018/x446/x744/x073/x709/x551/615");
    }

    #[test]
    fn refuses_every_other_spelling() {
        for name in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "/tile/0/000",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000/001",
            "tile/0/001/002",
            "tile/0/x001",
            "tile/0/x001/x002",
            "tile/00/000",
            "tile/+0/000",
            "tile/0/+01",
            "tile/-1/000",
            "tile/0/000.p/",
            "tile/0/000.p/256",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/0/000.p/+1",
            "tile/0/000.p/1/",
            "tile/0/000.p/1.p/1",
            "tile/Entries/000",
            "tile/0/xx01/002",
            "tile/0/../000",
            "tile/0/000 ",
            "tile/0//000",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert!(name.parse::<TilePath>().is_err(), "{name}");
        }
        assert_eq!("tile/64/000".parse::<TilePath>(), Err(TileError::Level(64)));
        assert_eq!("tile/0/000.p/257".parse::<TilePath>(), Err(TileError::Width(257)));
    }

    #[test]
    fn bundles_are_exact() {
        let leaves: [&[u8]; 3] = [b"a", b"", b"ccc"];
        let bytes = encode_bundle(&leaves).unwrap();
        assert_eq!(bytes, b"\0\x01a\0\0\0\x03ccc");
        assert_eq!(decode_bundle(&bytes, 3).unwrap(), leaves);
        assert_eq!(decode_bundle(&bytes, 2), Err(TileError::BundleTrailing { bytes: 5 }));
        assert_eq!(decode_bundle(&bytes, 4), Err(TileError::BundleTruncated { entry: 3 }));
        assert_eq!(decode_bundle(&bytes[..bytes.len() - 1], 3), Err(TileError::BundleTruncated { entry: 2 }));
        let (longest, longer) = (vec![7; MAX_LEAF_BYTES], vec![7; MAX_LEAF_BYTES + 1]);
        assert_eq!(decode_bundle(&encode_bundle(&[&longest]).unwrap(), 1).unwrap(), [&longest]);
        assert_eq!(encode_bundle(&[longer]), Err(TileError::LeafTooLong { bytes: MAX_LEAF_BYTES + 1 }));
    }

    #[test]
    fn tiles_are_exact() {
        let bytes = encode_tile(&[Hash([1; 32]), Hash([2; 32])]);
        assert_eq!(decode_tile(&bytes, 2).unwrap(), [Hash([1; 32]), Hash([2; 32])]);
        assert_eq!(decode_tile(&bytes, 3), Err(TileError::TileBytes { width: 3, got: 64 }));
        assert_eq!(decode_tile(&bytes[1..], 2), Err(TileError::TileBytes { width: 2, got: 63 }));
    }

    proptest! {
        #[test]
        fn names_round_trip(level in prop::option::of(0u8..64), index: u64, width in 1u16..=256) {
            let kind = level.map_or(TileKind::Entries, TileKind::Hashes);
            let path = TilePath::of_width(kind, index, width).unwrap();
            prop_assert_eq!(path.to_string().parse(), Ok(path));
        }

        #[test]
        fn arbitrary_names_and_bytes_never_panic(name in "(tile/)?(entries|[0-9]{1,3})/[x0-9/.p]{0,20}", bytes: Vec<u8>, width: u16) {
            if let Ok(path) = name.parse::<TilePath>() {
                prop_assert_eq!(path.to_string(), name);
            }
            if let Ok(leaves) = decode_bundle(&bytes, width) {
                prop_assert_eq!(encode_bundle(&leaves).unwrap(), bytes);
            }
        }
    }
}
