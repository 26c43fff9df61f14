//! The files: written once, under their final name only when whole, fsynced together.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use quorate_core::tlog::{FULL_TILE_BYTES, TileError, TileKind, TilePath, decode_bundle};

use super::StoreError;

/// A disk loses what was not synced in whole sectors.
const SECTOR_BYTES: usize = 512;
/// The length prefixes alone of a full bundle.
const BUNDLE_BYTES_MIN: u64 = 512;

#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    /// written since the last sync
    unsynced: BTreeSet<PathBuf>,
    /// an fsync failed: what is on disk is unknown
    sync_failed: bool,
}

impl Files {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), unsynced: BTreeSet::new(), sync_failed: false }
    }

    /// The same files, to read from.
    pub(super) fn reading(&self) -> Self {
        Self::new(&self.dir)
    }

    pub(super) fn create(dir: &Path) -> Result<(), StoreError> {
        fs::create_dir_all(dir).map_err(io_error("create folder", dir))?;
        let tiles = dir.join("tile");
        fs::create_dir(&tiles).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreError::AlreadyExists(dir.to_owned()),
            _ => io_error("create folder", &tiles)(source),
        })?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        for made in [Some(dir), parent].into_iter().flatten() {
            sync_path(made)?;
        }
        Ok(())
    }

    pub(super) fn check_created(&self) -> Result<(), StoreError> {
        if self.dir.join("tile").is_dir() { Ok(()) } else { Err(StoreError::NotCreated(self.dir.clone())) }
    }

    pub(super) fn check_sound(&self) -> Result<(), StoreError> {
        if self.sync_failed { Err(StoreError::SyncFailedBefore) } else { Ok(()) }
    }

    /// Whether a full tile is there and has the length of one, without reading it.
    pub(super) fn check_shape(&self, path: &TilePath) -> Result<(), StoreError> {
        let file = self.on_disk(path);
        let bytes = match fs::metadata(&file) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing(*path)),
            Err(error) => return Err(io_error("look at", &file)(error)),
        };
        let source = match path.kind() {
            TileKind::Hashes(_) if bytes != FULL_TILE_BYTES as u64 => TileError::TileBytes {
                width: path.width(),
                got: usize::try_from(bytes).unwrap_or(usize::MAX),
            },
            TileKind::Entries if bytes < BUNDLE_BYTES_MIN => TileError::BundleTruncated { entry: 0 },
            TileKind::Hashes(_) | TileKind::Entries => return Ok(()),
        };
        Err(StoreError::Damaged { path: *path, source })
    }

    /// The bytes of a full tile, of the right shape.
    pub(super) fn read(&self, path: &TilePath) -> Result<Vec<u8>, StoreError> {
        let file = self.on_disk(path);
        let bytes = fs::read(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(*path),
            _ => io_error("read", &file)(error),
        })?;
        let damaged = |source| StoreError::Damaged { path: *path, source };
        match path.kind() {
            TileKind::Hashes(_) if bytes.len() != FULL_TILE_BYTES => {
                return Err(damaged(TileError::TileBytes { width: path.width(), got: bytes.len() }));
            }
            TileKind::Hashes(_) => {}
            TileKind::Entries => drop(decode_bundle(&bytes, path.width()).map_err(damaged)?),
        }
        Ok(bytes)
    }

    /// Writes a full tile, unless it is there. One that is there with other bytes is a fork, unless they are what a
    /// power cut leaves of the right ones.
    pub(super) fn write_once(&mut self, path: &TilePath, bytes: &[u8]) -> Result<(), StoreError> {
        let file = self.on_disk(path);
        match fs::read(&file) {
            Ok(there) if there == bytes => {
                // perhaps written before a restart and never synced
                self.unsynced.insert(file);
                return Ok(());
            }
            Ok(there) if !is_torn(&there, bytes) => return Err(StoreError::Fork(*path)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", &file)(error)),
        }
        self.replace(path, bytes)
    }

    /// Writes a full tile, whatever was there.
    pub(super) fn replace(&mut self, path: &TilePath, bytes: &[u8]) -> Result<(), StoreError> {
        let file = self.on_disk(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(io_error("create folder", parent))?;
        }
        // one writer: the name is ours alone, and no tile's
        let staged = file.with_extension("tmp");
        fs::write(&staged, bytes).map_err(io_error("write", &staged))?;
        fs::rename(&staged, &file).map_err(io_error("rename", &staged))?;
        self.unsynced.insert(file);
        Ok(())
    }

    /// Counts a full tile that was found in place among those to sync.
    pub(super) fn keep(&mut self, path: &TilePath) {
        let file = self.on_disk(path);
        self.unsynced.insert(file);
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        self.check_sound()?;
        let synced = self.try_sync();
        self.sync_failed = synced.is_err();
        if synced.is_ok() {
            self.unsynced.clear();
        }
        synced
    }

    fn try_sync(&self) -> Result<(), StoreError> {
        let mut folders = BTreeSet::new();
        for file in &self.unsynced {
            sync_path(file)?;
            folders.extend(file.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.dir)));
        }
        folders.into_iter().try_for_each(sync_path)
    }

    pub(super) fn on_disk(&self, path: &TilePath) -> PathBuf {
        self.dir.join(path.to_string())
    }
}

pub(super) fn sync_path(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// Whether `there` is `wanted` with sectors zeroed or its end missing.
fn is_torn(there: &[u8], wanted: &[u8]) -> bool {
    let sectors = there.chunks(SECTOR_BYTES).zip(wanted.chunks(SECTOR_BYTES));
    there.len() <= wanted.len()
        && sectors
            .into_iter()
            .all(|(there, wanted)| wanted.starts_with(there) || there.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_is_zeroed_or_short_and_nothing_else() {
        let wanted: Vec<u8> = (0..2000u32).map(|i| (i % 251 + 1) as u8).collect();
        assert!(is_torn(&[], &wanted));
        assert!(is_torn(&wanted[..1300], &wanted));
        assert!(is_torn(&vec![0; 2000], &wanted));
        let mut hole = wanted.clone();
        hole[512..1024].fill(0);
        assert!(is_torn(&hole, &wanted));
        hole[600] = 1;
        assert!(!is_torn(&hole, &wanted));
        let mut changed = wanted.clone();
        changed[1999] ^= 1;
        assert!(!is_torn(&changed, &wanted));
        assert!(!is_torn(&[&wanted[..], &[0]].concat(), &wanted));
    }
}
