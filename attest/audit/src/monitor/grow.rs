//! Appends verified leaves to a mirror. What becomes full is written at once; nothing that exists is wrong before the checkpoint
//! is replaced, last: files beyond it are nobody's, and the next run writes them again.
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::{Mirror, StoredCheckpoint, tile_path};
use crate::witness::disk::Disk;
use bytes::Bytes;
use quorate_core::crypto::Hash;
use quorate_core::tlog::{
    Frontier, TILE_HEIGHT, TILE_WIDTH, TileKind, TilePath, TreeSize, encode_bundle, encode_tile, leaf_hash,
};
use std::path::Path;

/// Of older checkpoints those are kept that are at least this many leaves apart.
const OLDER_SPACING: u64 = 4096;
/// Levels of tiles that a tree of 2^56 leaves has.
const LEVELS: u8 = 7;

/// A mirror that is being appended to.
pub(super) struct Growing<'m> {
    mirror: &'m Mirror,
    tree: Frontier,
    before: TreeSize,
    bundle: Vec<Bytes>,
    /// The open tile of each level.
    rows: Vec<Vec<Hash>>,
}

impl<'m> Growing<'m> {
    /// From a tree whose tiles the mirror holds.
    pub(super) fn from(mirror: &'m Mirror, tree: &Frontier) -> Result<Self, Error> {
        let size = tree.size();
        let bundle = match open_tile(TileKind::Entries, size) {
            Some(path) => mirror.bundle(&path)?,
            None => Vec::new(),
        };
        let mut rows = Vec::new();
        for level in 0..LEVELS {
            rows.push(match open_tile(TileKind::Hashes(level), size) {
                Some(path) => mirror.hashes(&path)?,
                None => Vec::new(),
            });
        }
        Ok(Self { mirror, tree: tree.clone(), before: size, bundle, rows })
    }

    /// One more leaf.
    pub(super) fn push(&mut self, leaf: Bytes) -> Result<(), Error> {
        let mut nodes = Vec::new();
        self.tree.push_with(leaf_hash(&leaf), |level, index, hash| {
            if level % TILE_HEIGHT == 0 {
                nodes.push((level / TILE_HEIGHT, index, hash));
            }
        });
        let number = (self.tree.size().0 - 1) / TILE_WIDTH;
        self.bundle.push(leaf);
        if self.bundle.len() as u64 == TILE_WIDTH {
            let leaves = std::mem::take(&mut self.bundle);
            self.write_bundle(TilePath::full(TileKind::Entries, number).ok(), &leaves)?;
        }
        for (level, index, hash) in nodes {
            let Some(row) = self.rows.get_mut(usize::from(level)) else { continue };
            row.push(hash);
            if row.len() as u64 == TILE_WIDTH {
                let row = std::mem::take(row);
                self.write_tile(TilePath::full(TileKind::Hashes(level), index / TILE_WIDTH).ok(), &row)?;
            }
        }
        Ok(())
    }

    /// Writes what is open, then the checkpoint over all of it.
    pub(super) fn publish(
        self,
        stored: &StoredCheckpoint,
        before: Option<&StoredCheckpoint>,
    ) -> Result<(), Error> {
        let size = self.tree.size();
        if !self.bundle.is_empty() {
            self.write_bundle(open_tile(TileKind::Entries, size), &self.bundle)?;
        }
        for (level, row) in (0..).zip(&self.rows).filter(|(_, row)| !row.is_empty()) {
            self.write_tile(open_tile(TileKind::Hashes(level), size), row)?;
        }
        if let Some(before) = before {
            let last = self.mirror.older()?.last().map_or(0, |size| size.0);
            if before.size().0.saturating_sub(last) >= OLDER_SPACING {
                let older = before.note.to_string();
                write(&self.mirror.older_path(before.size()), older.as_bytes())?;
            }
        }
        write(&self.mirror.checkpoint_path(), stored.note.to_string().as_bytes())?;
        for kind in (0..LEVELS).map(TileKind::Hashes).chain([TileKind::Entries]) {
            if let Some(path) = open_tile(kind, self.before).filter(|p| open_tile(kind, size) != Some(*p)) {
                // One that stays behind harms nobody.
                let file = self.mirror.tile_file(&path);
                let _left = std::fs::remove_file(&file);
                let _not_empty = file.parent().map(std::fs::remove_dir);
            }
        }
        Ok(())
    }

    fn write_bundle(&self, path: Option<TilePath>, leaves: &[Bytes]) -> Result<(), Error> {
        let path = path.ok_or_else(|| self.beyond())?;
        let bytes = encode_bundle(leaves).map_err(|e| Finding::at(Place::Tile(path), Fault::Tile(e)))?;
        write(&self.mirror.tile_file(&path), &bytes)
    }

    fn write_tile(&self, path: Option<TilePath>, row: &[Hash]) -> Result<(), Error> {
        let path = path.ok_or_else(|| self.beyond())?;
        write(&self.mirror.tile_file(&path), &encode_tile(row))
    }

    /// No tree that fits a disk comes here.
    fn beyond(&self) -> Finding {
        Finding::at(Place::Checkpoint, Fault::OtherSize(self.tree.size()))
    }
}

/// The partial tile at the right edge of a tree, if there is one.
fn open_tile(kind: TileKind, size: TreeSize) -> Option<TilePath> {
    let level = if let TileKind::Hashes(level) = kind { level } else { 0 };
    let number = size.0.checked_shr(u32::from(TILE_HEIGHT) * (u32::from(level) + 1))?;
    tile_path(kind, number, size).filter(|path| !path.is_full())
}

/// Replaces a file durably, and makes its folder.
pub(super) fn write(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::disk("create", folder))?;
    Disk::default().replace(file, bytes).map_err(Error::disk("write", file))
}
