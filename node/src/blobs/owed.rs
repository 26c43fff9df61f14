//! A snapshot stands for leaves that were never applied here, and so for blobs that never came here. Auditors may ask every node
//! for all of history, so the node notes that it owes them, durably, before the snapshot counts, and fetches them from peers.
//!
//! The note is written before the snapshot's tiles replace the old ones. Until they have, the leaves here do not tell what is
//! missing, and nothing is paid.
use super::{BlobError, BlobStore};
use crate::ledger::Ledger;
use crate::peers::Peers;
use crate::tilestore::{StoreError, TileReader};
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::tlog::{
    Hash, LeafIndex, TILE_WIDTH, TileError, TileKind, TilePath, TreeSize, decode_bundle, sha256,
};
use quorate_proto::v1::BlobRequest;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How often it is looked whether something is owed; and tried again, at first.
const LOOKED_AT: Duration = Duration::from_secs(5);
/// Longest wait between two tries that brought nothing.
const TRIED_AGAIN_MAX: Duration = Duration::from_secs(600);
/// For one peer's answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A note that cannot be read still is one: everything there is, is looked through.
const UNREADABLE: TreeSize = TreeSize(u64::MAX);

/// Why it is not known what is missing.
#[derive(Debug, thiserror::Error)]
enum NotLooked {
    /// The tiles cannot be read.
    #[error("cannot read leaves")]
    Store(#[from] StoreError),
    /// A bundle that is none.
    #[error("bundle {0} of entries is damaged")]
    Bundle(u64, #[source] TileError),
    /// A leaf that is none.
    #[error("leaf {0} does not decode")]
    Leaf(LeafIndex, #[source] std::io::Error),
}

impl BlobStore {
    fn owed_path(&self) -> PathBuf {
        // No blob has this name.
        self.folder.join("owed")
    }

    /// Notes that blobs of leaves below `size` may be missing here, fsynced before it returns.
    pub fn owe(&self, size: TreeSize) -> Result<(), BlobError> {
        let _noting = self.noting.lock().unwrap_or_else(PoisonError::into_inner);
        let draft = self.owed_path().with_extension("draft");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&draft)?;
            file.write_all(size.0.to_string().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, self.owed_path())?;
            std::fs::File::open(self.folder.as_path())?.sync_all()
        };
        write().map_err(|e| BlobError::Disk(e, sha256(b"owed")))
    }

    /// Below which size blobs may be missing here, if any.
    pub fn owed(&self) -> Option<TreeSize> {
        match std::fs::read_to_string(self.owed_path()) {
            Ok(text) => Some(text.trim().parse().map_or(UNREADABLE, TreeSize)),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(_) => Some(UNREADABLE),
        }
    }

    /// All of them are here, unless more came to be owed meanwhile.
    fn paid(&self, size: TreeSize) {
        let _noting = self.noting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.owed() == Some(size) {
            // If it stays, everything is looked through once more.
            let _stays = std::fs::remove_file(self.owed_path());
        }
    }
}

/// What is known of one note. Leaves are looked through once for it, however often peers are asked.
#[derive(Default)]
struct Debt {
    note: Option<TreeSize>,
    /// Known once the leaves were looked through.
    missing: Option<BTreeSet<Hash>>,
    wait: Duration,
    again: Option<Instant>,
}

impl Debt {
    /// What is to be fetched now, then [`Debt::tried`]; `None` when it is not the time. Reads the disk.
    fn due(
        &mut self,
        tiles: &TileReader,
        blobs: &BlobStore,
        now: Instant,
    ) -> Result<Option<Vec<Hash>>, NotLooked> {
        let note = blobs.owed();
        if self.note != note {
            *self = Self { note, ..Self::default() };
        }
        let Some(size) = note else { return Ok(None) };
        if self.again.is_some_and(|again| now < again) {
            return Ok(None);
        }
        let missing = match &mut self.missing {
            Some(missing) => missing,
            none => {
                let here = tiles.size();
                let size = if size == UNREADABLE { here } else { size };
                if here < size {
                    return Ok(None);
                }
                match missing(tiles, blobs, size) {
                    Ok(found) => none.insert(found),
                    Err(error) => {
                        self.back_off(now);
                        return Err(error);
                    }
                }
            }
        };
        missing.retain(|digest| !blobs.has(digest));
        Ok(Some(missing.iter().copied().collect()))
    }

    /// After fetching what was due: how many are missing still. With the last one the note goes.
    fn tried(&mut self, blobs: &BlobStore, now: Instant) -> usize {
        let (Some(note), Some(missing)) = (self.note, &mut self.missing) else { return 0 };
        let before = missing.len();
        missing.retain(|digest| !blobs.has(digest));
        let left = missing.len();
        if left == 0 {
            blobs.paid(note);
            *self = Self::default();
            return 0;
        }
        if left < before {
            self.wait = Duration::ZERO;
        }
        self.back_off(now);
        left
    }

    fn back_off(&mut self, now: Instant) {
        self.wait = self.wait.saturating_mul(2).clamp(LOOKED_AT, TRIED_AGAIN_MAX);
        self.again = Some(now + self.wait);
    }
}

/// Fetches what is owed, for as long as the node runs.
pub async fn pay(ledger: Ledger, peers: Peers, blobs: BlobStore) {
    let mut debt = Debt::default();
    loop {
        let (tiles, here) = (ledger.tiles(), blobs.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let due = debt.due(&tiles, &here, Instant::now());
            (debt, due)
        });
        let Ok((looked, due)) = looked.await else { return };
        debt = looked;
        match due {
            Ok(None) => {}
            Ok(Some(missing)) => {
                for digest in missing {
                    fetch(&peers, &blobs, &digest).await;
                }
                match debt.tried(&blobs, Instant::now()) {
                    0 => tracing::info!("every blob that leaves name is here"),
                    left => tracing::warn!(
                        left,
                        "blobs of history are missing here, and no peer that is reached has them"
                    ),
                }
            }
            Err(error) => {
                tracing::warn!(error = crate::report::chain(&error), "cannot look for missing blobs");
            }
        }
        tokio::time::sleep(LOOKED_AT).await;
    }
}

/// Blobs that leaves below `size` name and that are not here. What cannot be read is an error: it may name some.
fn missing(tiles: &TileReader, blobs: &BlobStore, size: TreeSize) -> Result<BTreeSet<Hash>, NotLooked> {
    let mut found = BTreeSet::new();
    for index in 0..size.0.div_ceil(TILE_WIDTH) {
        let first = index * TILE_WIDTH;
        let width = u16::try_from((size.0 - first).min(TILE_WIDTH)).unwrap_or(u16::MAX);
        let damaged = |source| NotLooked::Bundle(index, source);
        let path = TilePath::of_width(TileKind::Entries, index, width).map_err(damaged)?;
        let bundle = tiles.tile(&path)?;
        for (at, leaf) in (first..).zip(decode_bundle(&bundle, width).map_err(damaged)?) {
            let leaf = borsh::from_slice(leaf).map_err(|e| NotLooked::Leaf(LeafIndex(at), e))?;
            if let Leaf::V1 { body: LeafBody::Decided { command, .. }, .. } = leaf {
                found.extend(command.blobs().into_iter().filter(|digest| !blobs.has(digest)));
            }
        }
    }
    Ok(found)
}

/// From the first peer that has it.
async fn fetch(peers: &Peers, blobs: &BlobStore, digest: &Hash) {
    for node in peers.nodes() {
        let Some(mut client) = peers.client(node) else { continue };
        let call = client.blob(BlobRequest { digest: digest.0.to_vec().into() });
        let Ok(Ok(reply)) = tokio::time::timeout(ANSWER, call).await else { continue };
        let blob = reply.into_inner().blob;
        if sha256(&blob) != *digest {
            continue;
        }
        match blobs.put(&blob) {
            Ok(_) => return,
            Err(error) => tracing::warn!(error = crate::report::chain(&error), "cannot keep a blob"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tilestore::TileStore;
    use quorate_core::testing::Mesh;
    use std::path::Path;

    fn opened(folder: &Path, mesh: &Mesh, leaves: usize) -> (BlobStore, TileStore) {
        let blobs = BlobStore::open(folder).unwrap();
        let mut store = TileStore::create(&folder.join("tlog")).unwrap();
        store.append(&mesh.log.leaves[..leaves]).unwrap();
        (blobs, store)
    }

    #[test]
    fn what_is_owed_survives_and_is_found() {
        let (mesh, folder) = (Mesh::four(), tempfile::tempdir().unwrap());
        let (blobs, store) = opened(folder.path(), &mesh, mesh.log.leaves.len());
        assert_eq!(blobs.owed(), None);
        blobs.owe(TreeSize(7)).unwrap();
        let blobs = BlobStore::open(folder.path()).unwrap();
        assert_eq!(blobs.owed(), Some(TreeSize(7)));

        let size = TreeSize(mesh.log.leaves.len() as u64);
        let named = missing(&store.reader(), &blobs, size).unwrap();
        assert!(!named.is_empty());
        assert_eq!(missing(&store.reader(), &blobs, TreeSize(1)).unwrap(), BTreeSet::new());
        for digest in &named {
            blobs.put(&mesh.fleet.blobs.0[digest]).unwrap();
        }
        assert_eq!(missing(&store.reader(), &blobs, size).unwrap(), BTreeSet::new());
        // Another snapshot came meanwhile: its blobs are owed still.
        blobs.owe(TreeSize(9)).unwrap();
        blobs.paid(TreeSize(7));
        assert_eq!(blobs.owed(), Some(TreeSize(9)));
        blobs.paid(TreeSize(9));
        assert_eq!(blobs.owed(), None);
    }

    #[test]
    fn nothing_is_paid_before_the_snapshots_tiles_are_here() {
        let (mesh, folder) = (Mesh::four(), tempfile::tempdir().unwrap());
        let (blobs, mut store) = opened(folder.path(), &mesh, 1);
        let (mut debt, now) = (Debt::default(), Instant::now());
        let size = TreeSize(mesh.log.leaves.len() as u64);
        blobs.owe(size).unwrap();
        // The old leaves name nothing that is missing, and all but the last do not tell all.
        for until in [1, mesh.log.leaves.len() - 1] {
            store.append(&mesh.log.leaves[store.head().0.0 as usize..until]).unwrap();
            assert!(debt.due(&store.reader(), &blobs, now).unwrap().is_none());
            assert_eq!(blobs.owed(), Some(size));
        }
        store.append(&mesh.log.leaves[store.head().0.0 as usize..]).unwrap();
        let due = debt.due(&store.reader(), &blobs, now).unwrap().unwrap();
        assert!(!due.is_empty());
        for digest in &due {
            blobs.put(&mesh.fleet.blobs.0[digest]).unwrap();
        }
        assert_eq!(debt.tried(&blobs, now), 0);
        assert_eq!(blobs.owed(), None);
        // A note that rotted is of every leaf here.
        std::fs::write(blobs.owed_path(), [0xff]).unwrap();
        assert_eq!(debt.due(&store.reader(), &blobs, now).unwrap(), Some(Vec::new()));
        assert_eq!(debt.tried(&blobs, now), 0);
        assert_eq!(blobs.owed(), None);
    }

    #[test]
    fn a_blob_that_nobody_has_is_asked_for_ever_more_rarely_without_reading_leaves() {
        let (mesh, folder) = (Mesh::four(), tempfile::tempdir().unwrap());
        let (blobs, store) = opened(folder.path(), &mesh, mesh.log.leaves.len());
        let size = TreeSize(mesh.log.leaves.len() as u64);
        blobs.owe(size).unwrap();
        let (mut debt, mut now) = (Debt::default(), Instant::now());
        let named = debt.due(&store.reader(), &blobs, now).unwrap().unwrap();
        let nobodys = sha256(b"nobody has it");
        debt.missing.as_mut().unwrap().insert(nobodys);
        let due: Vec<Hash> = debt.missing.iter().flatten().copied().collect();
        // Whoever looked through these would find nothing owed, or fail.
        let empty = TileStore::create(&folder.path().join("empty")).unwrap().reader();
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(debt.tried(&blobs, now), due.len());
            let again = debt.again.unwrap();
            waits.push((again - now).as_secs());
            assert_eq!(debt.due(&empty, &blobs, again - Duration::from_millis(1)).unwrap(), None);
            now = again;
            assert_eq!(debt.due(&empty, &blobs, now).unwrap().as_ref(), Some(&due));
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        // Others came: this one may come soon.
        for digest in &named {
            blobs.put(&mesh.fleet.blobs.0[digest]).unwrap();
        }
        assert_eq!(debt.tried(&blobs, now), 1);
        assert_eq!(debt.again, Some(now + LOOKED_AT));
        // Another snapshot is another debt, at once.
        blobs.owe(TreeSize(1)).unwrap();
        assert_eq!(debt.due(&store.reader(), &blobs, now).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn what_does_not_decode_is_not_taken_for_empty() {
        let (mesh, folder) = (Mesh::four(), tempfile::tempdir().unwrap());
        let (blobs, mut store) = opened(folder.path(), &mesh, 1);
        store.append(&[b"no leaf"]).unwrap();
        blobs.owe(TreeSize(2)).unwrap();
        let (mut debt, now) = (Debt::default(), Instant::now());
        let leaf = debt.due(&store.reader(), &blobs, now);
        assert!(matches!(leaf, Err(NotLooked::Leaf(LeafIndex(1), _))), "{leaf:?}");
        assert_eq!((blobs.owed(), debt.again), (Some(TreeSize(2)), Some(now + LOOKED_AT)));

        let leaf = mesh.log.leaves[0].clone();
        let mut full = TileStore::create(&folder.path().join("full")).unwrap();
        full.append(&vec![leaf; 2 * TILE_WIDTH as usize]).unwrap();
        let size = full.head().0;
        // Reopened, it keeps no full bundle in memory.
        let full = TileStore::open(&folder.path().join("full"), &full.tail()).unwrap();
        assert!(missing(&full.reader(), &blobs, size).is_ok());
        let bundle = folder.path().join("full/tile/entries/000");
        let bytes = std::fs::read(&bundle).unwrap();
        std::fs::write(&bundle, &bytes[..bytes.len() - 1]).unwrap();
        assert!(missing(&full.reader(), &blobs, size).is_err());
    }

    #[test]
    fn the_note_is_not_removed_while_another_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(folder.path()).unwrap();
        blobs.owe(TreeSize(7)).unwrap();
        std::thread::scope(|scope| {
            let noting = blobs.noting.lock().unwrap();
            let paying = scope.spawn(|| blobs.paid(TreeSize(7)));
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(blobs.owed(), Some(TreeSize(7)), "removed beside the lock");
            drop(noting);
            paying.join().unwrap();
            assert_eq!(blobs.owed(), None);
            let noting = blobs.noting.lock().unwrap();
            let owing = scope.spawn(|| blobs.owe(TreeSize(9)));
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(blobs.owed(), None, "written beside the lock");
            drop(noting);
            owing.join().unwrap().unwrap();
            assert_eq!(blobs.owed(), Some(TreeSize(9)));
        });
    }
}
