//! A mirror as a folder, read with every byte in doubt.
//!
//! ```text
//! DIR/genesis            policy version 1 and its admins' signatures, as nodes serve them
//! DIR/checkpoint         the newest checkpoint mirrored (C2SP tlog-checkpoint, signed note)
//! DIR/checkpoints/SIZE   those of earlier runs
//! DIR/tile/…             C2SP tlog-tiles: full ones, and the partial ones of the newest checkpoint
//! DIR/blob/HEX           policy documents, event logs and measurement lists, by SHA-256
//! ```
//! Any static web server over it is a C2SP log again, and can be mirrored. Reading decides structure only: lengths, encodings,
//! digests of blobs, and leaves against the hashes beside them. Whether the tree is the certified one is for
//! [`crate::replay`] to say.
use crate::finding::{Error, Fault, Finding, Place};
use bytes::Bytes;
use quorate_core::crypto::Hash;
use quorate_core::policy::{POLICY_BYTES_MAX, SignedPolicy};
use quorate_core::tlog::note::NOTE_BYTES_MAX;
use quorate_core::tlog::{
    BUNDLE_BYTES_MAX, Checkpoint, FULL_TILE_BYTES, LeafIndex, NodeReader, Note, TILE_HEIGHT, TILE_WIDTH,
    TileError, TileKind, TilePath, TreeSize, decode_bundle, decode_tile, leaf_hash, root_at, sha256,
    tree_root,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest blob: what nodes keep at most.
pub const BLOB_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest genesis file: a document and its signatures.
pub const GENESIS_BYTES_MAX: usize = POLICY_BYTES_MAX + 64 * 1024;

/// A mirror's folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mirror {
    dir: Arc<Path>,
}

/// A bundle whose leaves have the hashes beside them.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// In order.
    pub leaves: Vec<Bytes>,
    /// Of the tile of level 0.
    pub hashes: Vec<Hash>,
}

/// A checkpoint and the note it stands in. What it says is a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// With its cosignatures.
    pub note: Note,
    /// Its text.
    pub checkpoint: Checkpoint,
}

impl StoredCheckpoint {
    /// Reads a note's one spelling.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let note = Note::parse(bytes).map_err(Fault::Note)?;
        let checkpoint = Checkpoint::parse(note.text()).map_err(Fault::Checkpoint)?;
        if note.to_string().as_bytes() == bytes {
            Ok(Self { note, checkpoint })
        } else {
            Err(Fault::NotCanonical)
        }
    }
    /// Leaves it covers.
    pub fn size(&self) -> TreeSize {
        self.checkpoint.size
    }
}

/// The tile or bundle of this number in a tree of that size; none where the tree has none.
pub fn tile_path(kind: TileKind, index: u64, size: TreeSize) -> Option<TilePath> {
    let level = match kind {
        TileKind::Hashes(level) => level,
        TileKind::Entries => 0,
    };
    let row = size.0.checked_shr(u32::from(level) * u32::from(TILE_HEIGHT))?;
    let first = index.checked_mul(TILE_WIDTH)?;
    let width = row.checked_sub(first)?.min(TILE_WIDTH);
    TilePath::of_width(kind, index, u16::try_from(width).ok()?).ok()
}

/// Every tile and bundle that a tree of this size has, bundles last.
pub fn tile_paths(size: TreeSize) -> impl Iterator<Item = TilePath> {
    let of = move |kind: TileKind| (0..).map_while(move |index| tile_path(kind, index, size));
    (0..TILE_HEIGHT).flat_map(move |level| of(TileKind::Hashes(level))).chain(of(TileKind::Entries))
}

impl Mirror {
    /// A folder that holds a mirror.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let mirror = Self::at(dir);
        if mirror.checkpoint_path().is_file() { Ok(mirror) } else { Err(Error::NoMirror(dir.into())) }
    }

    /// A folder that may become one.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// Of the genesis policy.
    pub fn genesis_path(&self) -> PathBuf {
        self.dir.join("genesis")
    }
    /// Of the newest checkpoint.
    pub fn checkpoint_path(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }
    /// Of an older checkpoint.
    pub fn older_path(&self, size: TreeSize) -> PathBuf {
        self.dir.join("checkpoints").join(size.to_string())
    }
    /// Of a tile.
    pub fn tile_file(&self, path: &TilePath) -> PathBuf {
        self.dir.join(path.to_string())
    }
    /// Of a blob.
    pub fn blob_path(&self, digest: &Hash) -> PathBuf {
        self.dir.join("blob").join(digest.to_string())
    }

    /// The genesis policy, not yet checked.
    pub fn genesis(&self) -> Result<SignedPolicy, Error> {
        let bytes = self.read(&self.genesis_path(), GENESIS_BYTES_MAX, || Place::Genesis)?;
        let undecodable = || Finding::at(Place::Genesis, Fault::Undecodable);
        Ok(borsh::from_slice(&bytes).map_err(|_| undecodable())?)
    }

    /// The newest checkpoint, not yet checked.
    pub fn newest(&self) -> Result<StoredCheckpoint, Error> {
        let bytes = self.read(&self.checkpoint_path(), NOTE_BYTES_MAX, || Place::Checkpoint)?;
        Ok(StoredCheckpoint::parse(&bytes).map_err(|fault| Finding::at(Place::Checkpoint, fault))?)
    }

    /// Sizes of the older checkpoints, ascending.
    pub fn older(&self) -> Result<Vec<TreeSize>, Error> {
        let dir = self.dir.join("checkpoints");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::disk("list", dir)(e)),
        };
        let mut sizes = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::disk("list", dir.clone()))?.file_name();
            let size = name.to_str().and_then(|n| Some((n, n.parse::<u64>().ok()?)));
            // What a crash left half written has another name.
            sizes.extend(
                size.filter(|(name, size)| *name == size.to_string()).map(|(_, size)| TreeSize(size)),
            );
        }
        sizes.sort_unstable();
        Ok(sizes)
    }

    /// An older checkpoint, not yet checked.
    pub fn older_checkpoint(&self, size: TreeSize) -> Result<StoredCheckpoint, Error> {
        let place = || Place::OlderCheckpoint(size);
        let bytes = self.read(&self.older_path(size), NOTE_BYTES_MAX, place)?;
        let stored = StoredCheckpoint::parse(&bytes).map_err(|fault| Finding::at(place(), fault))?;
        match stored.size() {
            said if said == size => Ok(stored),
            said => Err(Finding::at(place(), Fault::OtherSize(said)).into()),
        }
    }

    /// A tile's hashes, as many as its name says.
    pub fn hashes(&self, path: &TilePath) -> Result<Vec<Hash>, Error> {
        let bytes = self.read(&self.tile_file(path), FULL_TILE_BYTES, || Place::Tile(*path))?;
        Ok(decode_tile(&bytes, path.width()).map_err(|e| Finding::at(Place::Tile(*path), Fault::Tile(e)))?)
    }

    /// A bundle's leaves, as many as its name says.
    pub fn bundle(&self, path: &TilePath) -> Result<Vec<Bytes>, Error> {
        let bytes = Bytes::from(self.read(&self.tile_file(path), BUNDLE_BYTES_MAX, || Place::Tile(*path))?);
        match decode_bundle(&bytes, path.width()) {
            Ok(leaves) => Ok(leaves.into_iter().map(|leaf| bytes.slice_ref(leaf)).collect()),
            Err(error) => Err(self.broken(path, &bytes, error).into()),
        }
    }

    /// A bundle that does not decode: the first leaf that is not the tree's says more than where the file ends.
    fn broken(&self, path: &TilePath, mut bytes: &[u8], error: TileError) -> Finding {
        let first = path.index().saturating_mul(TILE_WIDTH);
        let tile = TilePath::of_width(TileKind::Hashes(0), path.index(), path.width()).ok();
        let hashes = tile.and_then(|tile| Some((tile, self.hashes(&tile).ok()?)));
        for (at, hash) in
            hashes.iter().flat_map(|(tile, hashes)| hashes.iter().map(move |hash| (tile, hash))).enumerate()
        {
            let (tile, hash) = hash;
            let Some((length, rest)) = bytes.split_first_chunk() else { break };
            let Some((leaf, rest)) = rest.split_at_checked(u16::from_be_bytes(*length).into()) else { break };
            if leaf_hash(leaf) != *hash {
                return Finding::at(
                    Place::Leaf(LeafIndex(first.saturating_add(at as u64))),
                    Fault::LeafHash(*tile),
                );
            }
            bytes = rest;
        }
        match error {
            TileError::BundleTruncated { entry } => {
                let at = LeafIndex(first.saturating_add(entry.into()));
                Finding::at(Place::Leaf(at), Fault::Tile(error))
            }
            error => Finding::at(Place::Tile(*path), Fault::Tile(error)),
        }
    }

    /// Bundle `index` of a tree of this size with its hashes, each leaf compared with its own. No bundle beyond the tree.
    pub fn checked_bundle(&self, index: u64, size: TreeSize) -> Result<Option<Bundle>, Error> {
        let (Some(entries), Some(tile)) =
            (tile_path(TileKind::Entries, index, size), tile_path(TileKind::Hashes(0), index, size))
        else {
            return Ok(None);
        };
        let (leaves, hashes) = (self.bundle(&entries)?, self.hashes(&tile)?);
        let first = index.saturating_mul(TILE_WIDTH);
        for ((at, leaf), hash) in (first..).zip(&leaves).zip(&hashes) {
            if leaf_hash(leaf) != *hash {
                return Err(self.blame(LeafIndex(at), &tile, &leaves, size)?.into());
            }
        }
        Ok(Some(Bundle { leaves, hashes }))
    }

    /// Leaf and tile differ: which of the two is wrong, as the tile above says, or, where there is none, the checkpoint.
    fn blame(
        &self,
        at: LeafIndex,
        tile: &TilePath,
        leaves: &[Bytes],
        size: TreeSize,
    ) -> Result<Finding, Error> {
        let leaf = Finding::at(Place::Leaf(at), Fault::LeafHash(*tile));
        let by_leaves: Vec<Hash> = leaves.iter().map(|leaf| leaf_hash(leaf)).collect();
        if !tile.is_full() {
            let tree = self.tree(size);
            tree.tiles.borrow_mut().insert(*tile, by_leaves);
            let sound = self.newest().is_ok_and(|newest| {
                newest.size() == size && root_at(&tree, size).is_ok_and(|root| root == newest.checkpoint.root)
            });
            return Ok(if sound { Finding::at(Place::Tile(*tile), Fault::OpenTile) } else { leaf });
        }
        let Some(above) = tile_path(TileKind::Hashes(1), tile.index() / TILE_WIDTH, size) else {
            return Ok(leaf);
        };
        let Ok(row) = self.hashes(&above) else { return Ok(leaf) };
        let place = usize::try_from(tile.index() % TILE_WIDTH).unwrap_or(usize::MAX);
        match row.get(place) {
            Some(expected) if *expected == tree_root(&by_leaves) => {
                Ok(Finding::at(Place::Tile(*tile), Fault::TileRoot(above)))
            }
            _ => Ok(leaf),
        }
    }

    /// One leaf of a tree of this size, compared with its hash.
    pub fn leaf(&self, at: LeafIndex, size: TreeSize) -> Result<Bytes, Error> {
        let missing = || Error::from(Finding::at(Place::Leaf(at), Fault::Missing));
        let Bundle { leaves, .. } = self.checked_bundle(at.0 / TILE_WIDTH, size)?.ok_or_else(missing)?;
        let place = usize::try_from(at.0 % TILE_WIDTH).unwrap_or(usize::MAX);
        leaves.get(place).cloned().ok_or_else(missing)
    }

    /// Whether a blob's file is there.
    pub fn has_blob(&self, digest: &Hash) -> bool {
        self.blob_path(digest).is_file()
    }

    /// A blob, compared with its name.
    pub fn blob(&self, digest: &Hash) -> Result<Vec<u8>, Error> {
        let place = || Place::Blob(*digest, None);
        let bytes = self.read(&self.blob_path(digest), BLOB_BYTES_MAX, place)?;
        match sha256(&bytes) {
            got if got == *digest => Ok(bytes),
            got => Err(Finding::at(place(), Fault::OtherDigest(got)).into()),
        }
    }

    /// The tree of this size, to make proofs from.
    pub fn tree(&self, size: TreeSize) -> Tree<'_> {
        Tree { mirror: self, size, tiles: RefCell::default() }
    }

    fn read(&self, file: &Path, bytes_max: usize, place: impl Fn() -> Place) -> Result<Vec<u8>, Error> {
        let open = std::fs::File::open(file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Finding::at(place(), Fault::Missing).into(),
            _ => Error::disk("read", file)(e),
        });
        let mut bytes = Vec::new();
        open?.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(Error::disk("read", file))?;
        if bytes.len() > bytes_max {
            return Err(Finding::at(place(), Fault::TooLong(bytes_max as u64)).into());
        }
        Ok(bytes)
    }
}

/// Nodes of a tree, from a mirror's tiles. Each tile is read once.
#[derive(Debug)]
pub struct Tree<'m> {
    mirror: &'m Mirror,
    size: TreeSize,
    tiles: RefCell<BTreeMap<TilePath, Vec<Hash>>>,
}

impl NodeReader for Tree<'_> {
    type Error = Error;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Error> {
        let beyond = || Error::from(Finding::at(Place::Checkpoint, Fault::OtherSize(self.size)));
        let (path, below) = node_place(level, index, self.size).ok_or_else(beyond)?;
        let mut tiles = self.tiles.borrow_mut();
        let hashes = match tiles.entry(path) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(place) => place.insert(self.mirror.hashes(&path)?),
        };
        hashes.get(below).map(tree_root).ok_or_else(beyond)
    }
}

/// Where a node of a tree stands: its tile, and those of the tile's hashes whose root it is. None where the tree has none.
pub(crate) fn node_place(level: u8, index: u64, size: TreeSize) -> Option<(TilePath, Range<usize>)> {
    let (tile_level, height) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
    let bits = TILE_HEIGHT - height;
    let (number, offset) = (index >> bits, index & ((1 << bits) - 1));
    let from = usize::try_from(offset << height).ok()?;
    Some((tile_path(TileKind::Hashes(tile_level), number, size)?, from..from.checked_add(1 << height)?))
}

/// A tile that a tree as far as it is known lacks, and needs first; none where the tree has none.
pub(crate) struct Need(pub(crate) Option<TilePath>);

/// A node of a tree as far as its tiles are known.
pub(crate) fn known_node(
    level: u8,
    index: u64,
    size: TreeSize,
    tiles: &BTreeMap<TilePath, Vec<Hash>>,
) -> Result<Hash, Need> {
    let (path, below) = node_place(level, index, size).ok_or(Need(None))?;
    let hashes = tiles.get(&path).ok_or(Need(Some(path)))?;
    hashes.get(below).map(tree_root).ok_or(Need(None))
}
