//! The tlog on disk: C2SP tlog-tiles as files, and the right edge in memory.
//!
//! Only full tiles and full entry bundles are files, under `dir/tile/…` by their C2SP names: each is written once, with
//! its final bytes, beside its name and then renamed. What is not full lives in memory and goes into the node's snapshot
//! as a [`StoreTail`]. So the commit point is the snapshot:
//!
//! ```text
//! append … append      full tiles become files; nothing is fsynced, the Raft log is what counts
//! sync                 files and folders are fsynced
//! snapshot(tail)       published by the caller, after sync
//! open(tail)           starts at that size; replaying the Raft log appends the same leaves over the same files
//! ```
//!
//! Appending over a file that is there already is accepted when the bytes are equal, and repairs a file that a power
//! cut left short or zeroed. Any other difference is [`StoreError::Fork`]: state machine or disk disagree with the past,
//! and the node must stop. A tail that was given up for a certified one is moved away by [`set_aside_beyond`], never deleted.
//!
//! The store believes its caller (what is appended was decided by Raft and apply) and its disk, whose files it does not
//! verify when it reads them, their shape apart: a wrong hash makes a proof that nobody accepts. [`fsck`] reads everything;
//! [`install`] verifies every byte that comes from a peer against a root that the caller trusts.
//!
//! One task owns the [`TileStore`]; others read through a [`TileReader`]. Calls block on the disk.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use quorate_core::tlog::{
    Hash, LeafIndex, MAX_LEAF_BYTES, ProofError, TILE_HEIGHT, TILE_WIDTH, TileError, TileKind, TilePath,
    TreeSize, encode_bundle, encode_tile, leaf_hash,
};

mod edge;
mod files;
pub mod http;
mod install;
mod reader;
mod tail;

use edge::Edge;
use files::Files;
pub use install::{BoxError, fsck, install, set_aside_beyond};
pub use reader::TileReader;
pub use tail::{StoreTail, TailError};

/// The durable tlog of one node. Sole writer of its folder.
pub struct TileStore {
    files: Files,
    /// read by every [`TileReader`], changed by [`TileStore::append`] alone, never while waiting for the disk
    edge: Arc<RwLock<Edge>>,
}

/// Why the store refused, or could not.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// there is a tlog here already
    #[error("{} already holds a tlog", .0.display())]
    AlreadyExists(PathBuf),
    /// a tlog is created on purpose, never because its files were missing
    #[error("{} holds no tlog", .0.display())]
    NotCreated(PathBuf),
    /// a leaf that C2SP tlog-tiles cannot express
    #[error("leaf {index} has {bytes} bytes, above {MAX_LEAF_BYTES}")]
    LeafTooLong {
        /// which it would have been
        index: LeafIndex,
        /// how long it is
        bytes: usize,
    },
    /// a full tile exists with other bytes: history would be rewritten
    #[error("{0} exists with other bytes: this would be a fork")]
    Fork(TilePath),
    /// a full tile below the store's size is not on disk
    #[error("{0} is missing")]
    Missing(TilePath),
    /// a file is not a tile
    #[error("{path} is damaged")]
    Damaged {
        /// which
        path: TilePath,
        /// in what way
        source: TileError,
    },
    /// a file's hashes do not lead to the root
    #[error("{0} does not have the hash that the tree has for it")]
    WrongHash(TilePath),
    /// what was asked for is beyond the store's size
    #[error("size {asked} is beyond the store's {size}")]
    Beyond {
        /// the size at which it would exist
        asked: TreeSize,
        /// the size there is
        size: TreeSize,
    },
    /// what was asked for has no proof
    #[error("there is no such proof")]
    Unprovable(#[source] ProofError),
    /// the tail is not the one of the root that was asked for
    #[error("the tail leads to root {got}, not {want}")]
    TailRoot {
        /// the root that is trusted
        want: Hash,
        /// the tail's
        got: Hash,
    },
    /// a peer did not give a tile
    #[error("{path} could not be fetched")]
    Fetch {
        /// which
        path: TilePath,
        /// what the fetcher said
        source: BoxError,
    },
    /// the disk failed
    #[error("{action} {}", path.display())]
    Io {
        /// what was tried
        action: &'static str,
        /// on what
        path: PathBuf,
        /// what came of it
        source: io::Error,
    },
    /// after a failed fsync nobody knows what is on disk: reopen from the last snapshot
    #[error("an earlier fsync failed")]
    SyncFailedBefore,
}

impl TileStore {
    /// Creates an empty tlog where there is none.
    pub fn create(dir: &Path) -> Result<Self, StoreError> {
        Files::create(dir)?;
        Ok(Self::at(Files::new(dir), &StoreTail::default()))
    }

    /// Opens the tlog at exactly the size of `tail`, whatever was appended after it. Every full tile and bundle below that
    /// must be there.
    pub fn open(dir: &Path, tail: &StoreTail) -> Result<Self, StoreError> {
        let files = Files::new(dir);
        files.check_created()?;
        for path in full_paths(tail.size()) {
            files.check_shape(&path)?;
        }
        Ok(Self::at(files, tail))
    }

    fn at(files: Files, tail: &StoreTail) -> Self {
        Self { files, edge: Arc::new(RwLock::new(Edge::from_tail(tail))) }
    }

    /// Appends leaves, all or none, and tells the new size and root. Not durable before [`TileStore::sync`].
    pub fn append<L: AsRef<[u8]>>(&mut self, leaves: &[L]) -> Result<(TreeSize, Hash), StoreError> {
        self.files.check_sound()?;
        let mut frontier = self.read(|edge| edge.frontier().clone());
        let mut added =
            Added { leaves: Vec::with_capacity(leaves.len()), nodes: Vec::with_capacity(2 * leaves.len()) };
        for leaf in leaves {
            let leaf = leaf.as_ref();
            if leaf.len() > MAX_LEAF_BYTES {
                return Err(StoreError::LeafTooLong {
                    index: LeafIndex(frontier.size().0),
                    bytes: leaf.len(),
                });
            }
            frontier.push_with(leaf_hash(leaf), |level, index, hash| added.nodes.push((level, index, hash)));
            added.leaves.push(Bytes::copy_from_slice(leaf));
        }
        // a full tile is on disk before any reader can see a size that needs it
        self.write_completed(&added)?;
        let head = (frontier.size(), frontier.root());
        let mut edge = self.edge.write().unwrap_or_else(PoisonError::into_inner);
        edge.advance(frontier, added);
        Ok(head)
    }

    /// The right edge, for the snapshot: [`TileStore::open`] resumes from it.
    pub fn tail(&self) -> StoreTail {
        self.read(Edge::to_tail)
    }

    /// The size and root now.
    pub fn head(&self) -> (TreeSize, Hash) {
        self.read(|edge| (edge.frontier().size(), edge.frontier().root()))
    }

    /// Makes everything appended so far durable, the tail apart. After an error the store refuses to go on: a second
    /// fsync could succeed without the data of the first.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.files.sync()
    }

    /// Read access for other tasks.
    pub fn reader(&self) -> TileReader {
        TileReader::new(self.files.reading(), Arc::clone(&self.edge))
    }

    fn read<T>(&self, look: impl FnOnce(&Edge) -> T) -> T {
        look(&self.edge.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes the tiles and bundles that these leaves complete.
    fn write_completed(&mut self, added: &Added) -> Result<(), StoreError> {
        let size = self.read(|edge| edge.frontier().size().0);
        if size % TILE_WIDTH + (added.leaves.len() as u64) < TILE_WIDTH {
            return Ok(());
        }
        let (mut bundle, mut rows) = self.read(|edge| (edge.leaves().to_vec(), BTreeMap::new()));
        let mut leaves = added.leaves.iter();
        for (level, index, hash) in &added.nodes {
            if *level == 0 {
                bundle.extend(leaves.next().cloned());
                if bundle.len() as u64 == TILE_WIDTH {
                    let path = full(TileKind::Entries, index / TILE_WIDTH)?;
                    let bytes =
                        encode_bundle(&bundle).map_err(|source| StoreError::Damaged { path, source })?;
                    self.files.write_once(&path, &bytes)?;
                    bundle.clear();
                }
            }
            if level % TILE_HEIGHT != 0 {
                continue;
            }
            let tile_level = level / TILE_HEIGHT;
            let row: &mut Vec<Hash> = rows
                .entry(tile_level)
                .or_insert_with(|| self.read(|edge| edge.open_row(tile_level).to_vec()));
            row.push(*hash);
            if row.len() as u64 == TILE_WIDTH {
                let path = full(TileKind::Hashes(tile_level), index / TILE_WIDTH)?;
                let bytes = encode_tile(row);
                row.clear();
                self.files.write_once(&path, &bytes)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TileStore").field("head", &self.head()).finish_non_exhaustive()
    }
}

/// What one append adds to the tree.
struct Added {
    leaves: Vec<Bytes>,
    /// (level, index, hash) in the order in which they were completed
    nodes: Vec<(u8, u64, Hash)>,
}

fn full(kind: TileKind, index: u64) -> Result<TilePath, StoreError> {
    // levels come from sizes, which have 64 bits: tile levels stay below 8
    TilePath::full(kind, index)
        .map_err(|source| StoreError::Damaged { path: TilePath::bundle_of(LeafIndex(index)).0, source })
}

/// How many full tiles of this level a tree has.
fn full_tiles(size: TreeSize, tile_level: u8) -> u64 {
    size.0.checked_shr(u32::from(TILE_HEIGHT) * (u32::from(tile_level) + 1)).unwrap_or(0)
}

/// Every file a tree of this size has.
fn full_paths(size: TreeSize) -> impl Iterator<Item = TilePath> {
    let of = move |kind, level| {
        (0..full_tiles(size, level)).filter_map(move |index| TilePath::full(kind, index).ok())
    };
    (0..TILE_HEIGHT).flat_map(move |level| of(TileKind::Hashes(level), level)).chain(of(TileKind::Entries, 0))
}

#[cfg(test)]
mod tests;
