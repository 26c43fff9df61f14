//! Reading beside the writer: nodes, leaves, tiles and proofs of any size up to the current one.
//!
//! What is near the right edge comes from memory under a short lock; the rest from files, which never change.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use quorate_core::tlog::{
    ConsistencyProof, FULL_TILE_BYTES, Hash, InclusionProof, LeafIndex, NodeReader, ProveError, TILE_HEIGHT,
    TileError, TileKind, TilePath, TreeSize, decode_bundle, decode_tile, encode_bundle, encode_tile,
    prove_consistency, prove_inclusion, root_at,
};

use super::{
    StoreError,
    edge::{Edge, Lookup, TileNodes},
    files::Files,
    full,
};

/// A view of the store for other tasks; cheap to clone, always at the current size.
#[derive(Clone)]
pub struct TileReader {
    files: Arc<Files>,
    edge: Arc<RwLock<Edge>>,
}

impl TileReader {
    pub(super) fn new(files: Files, edge: Arc<RwLock<Edge>>) -> Self {
        Self { files: Arc::new(files), edge }
    }

    /// The current size and its root.
    pub fn head(&self) -> (TreeSize, Hash) {
        self.look(|edge| (edge.frontier().size(), edge.frontier().root()))
    }

    /// The current size.
    pub fn size(&self) -> TreeSize {
        self.look(|edge| edge.frontier().size())
    }

    /// The root at `size`.
    pub fn root_at(&self, size: TreeSize) -> Result<Hash, StoreError> {
        self.check_size(size)?;
        root_at(&Memo::new(self), size)
    }

    /// A leaf's bytes.
    pub fn leaf(&self, index: LeafIndex) -> Result<Bytes, StoreError> {
        let (path, offset) = TilePath::bundle_of(index);
        let in_memory = self.look(|edge| {
            edge.bundle(path.index(), Some(index.size_with()), |leaves| {
                leaves.get(usize::from(offset)).cloned()
            })
        });
        match in_memory {
            Lookup::Here(leaf) => Ok(leaf),
            Lookup::Beyond(asked) => Err(self.beyond(asked)),
            Lookup::OnDisk => {
                let bytes = Bytes::from(self.files.read(&path)?);
                let leaves = decode_bundle(&bytes, path.width())
                    .map_err(|source| StoreError::Damaged { path, source })?;
                let missing =
                    StoreError::Damaged { path, source: TileError::BundleTruncated { entry: offset } };
                leaves.get(usize::from(offset)).map(|leaf| bytes.slice_ref(leaf)).ok_or(missing)
            }
        }
    }

    /// The bytes of any tile or bundle, full or partial, that exists at the current size.
    pub fn tile(&self, path: &TilePath) -> Result<Bytes, StoreError> {
        let width = usize::from(path.width());
        let damaged = |source| StoreError::Damaged { path: *path, source };
        match path.kind() {
            TileKind::Hashes(level) => {
                let look = |tile: &TileNodes| tile.hashes().get(..width).map(encode_tile);
                match self.look(|edge| edge.tile(level, path.index(), path.needs(), look)) {
                    Lookup::Here(bytes) => Ok(Bytes::from(bytes)),
                    Lookup::Beyond(asked) => Err(self.beyond(asked)),
                    Lookup::OnDisk => {
                        let bytes = Bytes::from(self.files.read(&full(path.kind(), path.index())?)?);
                        let end = FULL_TILE_BYTES / 256 * width;
                        if end > bytes.len() {
                            return Err(damaged(TileError::TileBytes {
                                width: path.width(),
                                got: bytes.len(),
                            }));
                        }
                        Ok(bytes.slice(..end))
                    }
                }
            }
            TileKind::Entries => {
                // references are copied under the lock, bytes after it
                let look = |leaves: &[Bytes]| leaves.get(..width).map(<[Bytes]>::to_vec);
                match self.look(|edge| edge.bundle(path.index(), path.needs(), look)) {
                    Lookup::Here(leaves) => encode_bundle(&leaves).map(Bytes::from).map_err(damaged),
                    Lookup::Beyond(asked) => Err(self.beyond(asked)),
                    Lookup::OnDisk => {
                        let full = full(path.kind(), path.index())?;
                        let bytes = self.files.read(&full)?;
                        let mut leaves = decode_bundle(&bytes, full.width()).map_err(damaged)?;
                        leaves.truncate(width);
                        encode_bundle(&leaves).map(Bytes::from).map_err(damaged)
                    }
                }
            }
        }
    }

    /// Proves that leaf `index` is in the tree of `size`.
    pub fn inclusion(&self, index: LeafIndex, size: TreeSize) -> Result<InclusionProof, StoreError> {
        self.check_size(size)?;
        prove_inclusion(&Memo::new(self), index, size).map_err(StoreError::from)
    }

    /// Proves that the tree of size `new` extends the tree of size `old`.
    pub fn consistency(&self, old: TreeSize, new: TreeSize) -> Result<ConsistencyProof, StoreError> {
        self.check_size(new)?;
        prove_consistency(&Memo::new(self), old, new).map_err(StoreError::from)
    }

    fn look<T>(&self, look: impl FnOnce(&Edge) -> T) -> T {
        look(&self.edge.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn check_size(&self, asked: TreeSize) -> Result<(), StoreError> {
        let size = self.size();
        if asked > size { Err(StoreError::Beyond { asked, size }) } else { Ok(()) }
    }

    fn beyond(&self, asked: TreeSize) -> StoreError {
        StoreError::Beyond { asked, size: self.size() }
    }

    fn node_with(
        &self,
        level: u8,
        index: u64,
        from_file: impl FnOnce(&TilePath, u8, usize) -> Result<Hash, StoreError>,
    ) -> Result<Hash, StoreError> {
        let needs =
            1u64.checked_shl(level.into()).and_then(|leaves| index.checked_add(1)?.checked_mul(leaves));
        let (tile_level, height) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
        let row_bits = TILE_HEIGHT - height;
        let (number, offset) = (index >> row_bits, (index & ((1 << row_bits) - 1)) as usize);
        let found = self
            .look(|edge| edge.tile(tile_level, number, needs.map(TreeSize), |tile| tile.get(height, offset)));
        match found {
            Lookup::Here(hash) => Ok(hash),
            Lookup::Beyond(asked) => Err(self.beyond(asked)),
            Lookup::OnDisk => from_file(&full(TileKind::Hashes(tile_level), number)?, height, offset),
        }
    }

    fn read_nodes(&self, path: &TilePath) -> Result<TileNodes, StoreError> {
        let bytes = self.files.read(path)?;
        let hashes = decode_tile(&bytes, path.width())
            .map_err(|source| StoreError::Damaged { path: *path, source })?;
        Ok(TileNodes::from_hashes(&hashes))
    }
}

impl fmt::Debug for TileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TileReader").field("head", &self.head()).finish_non_exhaustive()
    }
}

impl NodeReader for TileReader {
    type Error = StoreError;
    fn node(&self, level: u8, index: u64) -> Result<Hash, StoreError> {
        Memo::new(self).node(level, index)
    }
}

impl From<ProveError<StoreError>> for StoreError {
    fn from(error: ProveError<StoreError>) -> Self {
        match error {
            ProveError::Unprovable(reason) => Self::Unprovable(reason),
            ProveError::Reader(error) => error,
        }
    }
}

/// Reads each file at most once for one proof.
struct Memo<'r> {
    reader: &'r TileReader,
    tiles: RefCell<BTreeMap<TilePath, TileNodes>>,
}

impl<'r> Memo<'r> {
    fn new(reader: &'r TileReader) -> Self {
        Self { reader, tiles: RefCell::default() }
    }
}

impl NodeReader for Memo<'_> {
    type Error = StoreError;
    fn node(&self, level: u8, index: u64) -> Result<Hash, StoreError> {
        self.reader.node_with(level, index, |path, height, offset| {
            let mut tiles = self.tiles.borrow_mut();
            if !tiles.contains_key(path) {
                tiles.insert(*path, self.reader.read_nodes(path)?);
            }
            tiles.get(path).and_then(|tile| tile.get(height, offset)).ok_or(StoreError::Missing(*path))
        })
    }
}
