//! Making the files fit a tail whose root is trusted: from what is there, from a peer, or not at all.
//!
//! The tail's open tiles hold the root of every full tile beside them, those tiles' hashes the roots of the ones below,
//! down to the leaves. So each file is checked against what is known already before it is accepted, and a lying peer can
//! do no more than fail. The caller bounds what a fetch may return: [`FULL_TILE_BYTES`] for tiles, [`BUNDLE_BYTES_MAX`]
//! for bundles.
//!
//! [`FULL_TILE_BYTES`]: quorate_core::tlog::FULL_TILE_BYTES
//! [`BUNDLE_BYTES_MAX`]: quorate_core::tlog::BUNDLE_BYTES_MAX

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use quorate_core::tlog::{
    Hash, TILE_WIDTH, TileError, TileKind, TilePath, TreeSize, decode_bundle, decode_tile, leaf_hash,
    tree_root,
};

use super::{
    StoreError, StoreTail, TileStore,
    files::{Files, io_error, sync_path},
    full,
};

/// Whatever a fetcher has to say about its failure.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where tiles that fell out of history go, below the store's folder.
const SET_ASIDE: &str = "set-aside";

/// Makes the store in `dir` that of `tail`, which must have the trusted `root`: verifies every file there is, fetches
/// those that are missing or wrong, sets aside those beyond, and syncs. Creates the store if there is none.
pub fn install(
    dir: &Path,
    tail: &StoreTail,
    root: Hash,
    mut fetch: impl FnMut(&TilePath) -> Result<Vec<u8>, BoxError>,
) -> Result<TileStore, StoreError> {
    let got = tail.root();
    if got != root {
        return Err(StoreError::TailRoot { want: root, got });
    }
    match Files::create(dir) {
        Ok(()) | Err(StoreError::AlreadyExists(_)) => {}
        Err(error) => return Err(error),
    }
    let mut walk = Walk { files: Files::new(dir), fetch: Some(&mut fetch) };
    walk.run(tail)?;
    walk.files.sync()?;
    set_aside_beyond(dir, tail)?;
    TileStore::open(dir, tail)
}

/// Reads every file of the store and verifies it against the tail's root. Finds the first that is wrong.
pub fn fsck(dir: &Path, tail: &StoreTail) -> Result<(), StoreError> {
    let files = Files::new(dir);
    files.check_created()?;
    Walk { files, fetch: None }.run(tail)
}

/// Moves the files beyond `tail` out of the way, for a tail that was given up: what replaces them will differ. They stay
/// readable, as evidence, in a folder of their own. Tells how many there were.
pub fn set_aside_beyond(dir: &Path, tail: &StoreTail) -> Result<usize, StoreError> {
    let mut beyond = Vec::new();
    collect_beyond(dir, &dir.join("tile"), tail.size(), &mut beyond)?;
    if beyond.is_empty() {
        return Ok(0);
    }
    let unused =
        (0u64..).map(|n| dir.join(SET_ASIDE).join(format!("{}-{n}", tail.size()))).find(|to| !to.exists());
    let to = unused.unwrap_or_else(|| dir.join(SET_ASIDE));
    let mut folders = BTreeSet::new();
    for path in &beyond {
        let (from, to) = (dir.join(path.to_string()), to.join(path.to_string()));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(io_error("create folder", parent))?;
            fs::rename(&from, &to).map_err(io_error("rename", &from))?;
        }
        let above = from.ancestors().chain(to.ancestors()).filter(|folder| folder.starts_with(dir));
        folders.extend(above.filter(|folder| folder.is_dir()).map(Path::to_owned));
    }
    // gone from here for good, before anything is written in its place
    folders.iter().try_for_each(|folder| sync_path(folder))?;
    Ok(beyond.len())
}

fn collect_beyond(
    root: &Path,
    dir: &Path,
    size: TreeSize,
    beyond: &mut Vec<TilePath>,
) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path: PathBuf = entry.map_err(io_error("list", dir))?.path();
        if path.is_dir() {
            collect_beyond(root, &path, size, beyond)?;
            continue;
        }
        // anything else here is not ours, or a file that a crash left half written
        let name = path
            .strip_prefix(root)
            .ok()
            .and_then(Path::to_str)
            .and_then(|name| name.parse::<TilePath>().ok());
        beyond.extend(name.filter(|tile| tile.needs().is_none_or(|needs| needs > size)));
    }
    Ok(())
}

type Fetch<'f> = &'f mut dyn FnMut(&TilePath) -> Result<Vec<u8>, BoxError>;

struct Walk<'f> {
    files: Files,
    fetch: Option<Fetch<'f>>,
}

impl Walk<'_> {
    fn run(&mut self, tail: &StoreTail) -> Result<(), StoreError> {
        tail.full_subtrees().try_for_each(|(level, index, expected)| self.tile(level, index, expected))
    }

    /// Checks the full tile that must have this root, and everything below. As deep as there are tile levels, below 8.
    fn tile(&mut self, level: u8, index: u64, expected: Hash) -> Result<(), StoreError> {
        let path = full(TileKind::Hashes(level), index)?;
        let hashes = self.obtain(&path, |bytes| {
            let hashes = decode_tile(bytes, path.width())?;
            Ok((tree_root(&hashes) == expected).then_some(hashes))
        })?;
        let Some(below) = level.checked_sub(1) else {
            let path = full(TileKind::Entries, index)?;
            return self.obtain(&path, |bytes| {
                let leaves = decode_bundle(bytes, path.width())?;
                let equal = leaves.iter().zip(&hashes).all(|(leaf, hash)| leaf_hash(leaf) == *hash);
                Ok(equal.then_some(()))
            });
        };
        let first = index.saturating_mul(TILE_WIDTH);
        (first..).zip(hashes).try_for_each(|(index, hash)| self.tile(below, index, hash))
    }

    /// What `accept` makes of the file, or of the fetched one. `None` from it: not what the tree has there.
    fn obtain<T>(
        &mut self,
        path: &TilePath,
        accept: impl Fn(&[u8]) -> Result<Option<T>, TileError>,
    ) -> Result<T, StoreError> {
        let accept = |bytes: &[u8]| match accept(bytes) {
            Ok(Some(accepted)) => Ok(accepted),
            Ok(None) => Err(StoreError::WrongHash(*path)),
            Err(source) => Err(StoreError::Damaged { path: *path, source }),
        };
        let here = self.files.read(path).and_then(|bytes| accept(&bytes));
        let Some(fetch) = &mut self.fetch else { return here };
        match here {
            Ok(accepted) => {
                self.files.keep(path);
                Ok(accepted)
            }
            Err(error @ StoreError::Io { .. }) => Err(error),
            Err(_) => {
                let bytes = fetch(path).map_err(|source| StoreError::Fetch { path: *path, source })?;
                let accepted = accept(&bytes)?;
                self.files.replace(path, &bytes)?;
                Ok(accepted)
            }
        }
    }
}
