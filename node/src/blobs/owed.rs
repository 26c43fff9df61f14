//! A snapshot stands for leaves that were never applied here, and so for blobs that never came here. Auditors may ask every node
//! for all of history, so the node notes that it owes them, durably, before the snapshot counts, and fetches them from peers.
use super::{BlobError, BlobStore};
use crate::ledger::Ledger;
use crate::peers::Peers;
use crate::tilestore::TileReader;
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::tlog::{Hash, TILE_WIDTH, TileKind, TilePath, TreeSize, decode_bundle, sha256};
use quorate_proto::v1::BlobRequest;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// How often it is looked whether something is owed, and tried again.
const LOOKED_AT: Duration = Duration::from_secs(5);
/// For one peer's answer.
const ANSWER: Duration = Duration::from_secs(10);

impl BlobStore {
    fn owed_path(&self) -> PathBuf {
        // No blob has this name.
        self.folder.join("owed")
    }

    /// Notes that blobs of leaves below `size` may be missing here, fsynced before it returns.
    pub fn owe(&self, size: TreeSize) -> Result<(), BlobError> {
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
        let text = std::fs::read_to_string(self.owed_path()).ok()?;
        // A note that cannot be read still is one: everything is looked through.
        Some(TreeSize(text.trim().parse().unwrap_or(u64::MAX)))
    }

    /// All of them are here, unless more came to be owed meanwhile.
    fn paid(&self, size: TreeSize) {
        if self.owed() == Some(size) {
            // If it stays, everything is looked through once more.
            let _stays = std::fs::remove_file(self.owed_path());
        }
    }
}

/// Fetches what is owed, for as long as the node runs.
pub async fn pay(ledger: Ledger, peers: Peers, blobs: BlobStore) {
    loop {
        if let Some(size) = blobs.owed() {
            let (tiles, here) = (ledger.tiles(), blobs.clone());
            let missing = tokio::task::spawn_blocking(move || missing(&tiles, &here, size)).await;
            match missing {
                Ok(Ok(missing)) => {
                    let mut left = 0u32;
                    for digest in missing {
                        left += u32::from(!fetch(&peers, &blobs, &digest).await);
                    }
                    if left == 0 {
                        blobs.paid(size);
                        tracing::info!(size = size.0, "every blob that leaves name is here");
                    } else {
                        tracing::warn!(
                            left,
                            "blobs of history are missing here, and no peer that is reached has them"
                        );
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = crate::report::chain(&error), "cannot look for missing blobs");
                }
                Err(_) => return,
            }
        }
        tokio::time::sleep(LOOKED_AT).await;
    }
}

/// Blobs that leaves below `size` name and that are not here.
fn missing(
    tiles: &TileReader,
    blobs: &BlobStore,
    size: TreeSize,
) -> Result<BTreeSet<Hash>, crate::tilestore::StoreError> {
    let size = size.min(tiles.size());
    let mut found = BTreeSet::new();
    for index in 0..size.0.div_ceil(TILE_WIDTH) {
        let width = u16::try_from((size.0 - index * TILE_WIDTH).min(TILE_WIDTH)).unwrap_or(u16::MAX);
        let Ok(path) = TilePath::of_width(TileKind::Entries, index, width) else { continue };
        let bundle = tiles.tile(&path)?;
        for leaf in decode_bundle(&bundle, width).unwrap_or_default() {
            if let Ok(Leaf::V1 { body: LeafBody::Decided { command, .. }, .. }) = borsh::from_slice(leaf) {
                found.extend(command.blobs().into_iter().filter(|digest| !blobs.has(digest)));
            }
        }
    }
    Ok(found)
}

/// Whether the blob is here at the end.
async fn fetch(peers: &Peers, blobs: &BlobStore, digest: &Hash) -> bool {
    for node in peers.nodes() {
        let Some(mut client) = peers.client(node) else { continue };
        let call = client.blob(BlobRequest { digest: digest.0.to_vec().into() });
        let Ok(Ok(reply)) = tokio::time::timeout(ANSWER, call).await else { continue };
        let blob = reply.into_inner().blob;
        if sha256(&blob) != *digest {
            continue;
        }
        match blobs.put(&blob) {
            Ok(_) => return true,
            Err(error) => tracing::warn!(error = crate::report::chain(&error), "cannot keep a blob"),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tilestore::TileStore;
    use quorate_core::testing::Mesh;

    #[test]
    fn what_is_owed_survives_and_is_found() {
        let (mesh, folder) = (Mesh::four(), tempfile::tempdir().unwrap());
        let blobs = BlobStore::open(folder.path()).unwrap();
        let mut store = TileStore::create(&folder.path().join("tlog")).unwrap();
        store.append(&mesh.log.leaves).unwrap();
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
        assert_eq!(missing(&store.reader(), &blobs, TreeSize(u64::MAX)).unwrap(), BTreeSet::new());
        // Another snapshot came meanwhile: its blobs are owed still.
        blobs.owe(TreeSize(9)).unwrap();
        blobs.paid(TreeSize(7));
        assert_eq!(blobs.owed(), Some(TreeSize(9)));
        blobs.paid(TreeSize(9));
        assert_eq!(blobs.owed(), None);
    }
}
