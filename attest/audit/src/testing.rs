//! Writes mirrors for tests: a log as a node would serve it, made by the real state machine with keys that follow from their
//! names. Streams to disk, so that a log of any size can be made.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test code: a broken invariant should stop the test, and all inputs are the test's own"
)]
use crate::store::Mirror;
use quorate_core::certificate::CertifiedCheckpoint;
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::NodeId;
use quorate_core::policy::SignedPolicy;
use quorate_core::testing::Mesh;
use quorate_core::tlog::{
    Checkpoint, Cosignature, Frontier, KeyName, Note, TILE_HEIGHT, TILE_WIDTH, TileKind, TilePath, TreeSize,
    encode_bundle, encode_tile, leaf_hash, sha256,
};
use std::collections::BTreeMap;
use std::path::Path;

/// A mirror on its way.
pub struct LogWriter {
    mirror: Mirror,
    tree: Frontier,
    bundle: Vec<Vec<u8>>,
    rows: BTreeMap<u8, (u64, Vec<Hash>)>,
}

impl LogWriter {
    /// In a new folder.
    pub fn new(dir: &Path, genesis: &SignedPolicy) -> Self {
        let mirror = Mirror::at(dir);
        std::fs::create_dir_all(dir.join("blob")).unwrap();
        std::fs::create_dir_all(dir.join("checkpoints")).unwrap();
        std::fs::write(mirror.genesis_path(), encode(genesis)).unwrap();
        let writer = Self { mirror, tree: Frontier::new(), bundle: Vec::new(), rows: BTreeMap::new() };
        writer.blob(&genesis.document);
        writer
    }

    /// Keeps a blob.
    pub fn blob(&self, bytes: &[u8]) {
        let path = self.mirror.blob_path(&sha256(bytes));
        if !path.exists() {
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// Appends a leaf; what becomes full is written.
    pub fn push(&mut self, leaf: &[u8]) {
        let mut nodes = Vec::new();
        self.tree.push_with(leaf_hash(leaf), |level, index, hash| nodes.push((level, index, hash)));
        self.bundle.push(leaf.to_vec());
        if self.bundle.len() as u64 == TILE_WIDTH {
            let number = (self.tree.size().0 - 1) / TILE_WIDTH;
            let bytes = encode_bundle(&std::mem::take(&mut self.bundle)).unwrap();
            self.write(TilePath::full(TileKind::Entries, number).unwrap(), &bytes);
        }
        for (level, index, hash) in nodes.into_iter().filter(|(level, ..)| level % TILE_HEIGHT == 0) {
            let level = level / TILE_HEIGHT;
            let (number, row) = self.rows.entry(level).or_default();
            *number = index / TILE_WIDTH;
            row.push(hash);
            if row.len() as u64 == TILE_WIDTH {
                let (path, bytes) =
                    (TilePath::full(TileKind::Hashes(level), *number).unwrap(), encode_tile(row));
                row.clear();
                self.write(path, &bytes);
            }
        }
    }

    /// Leaves so far.
    pub fn size(&self) -> TreeSize {
        self.tree.size()
    }

    /// The root so far.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// Keeps a checkpoint of an earlier size, as an earlier run would have.
    pub fn older(&self, note: &Note, size: TreeSize) {
        std::fs::write(self.mirror.older_path(size), note.to_string()).unwrap();
    }

    /// Writes what is not full, and the checkpoint.
    pub fn finish(&self, note: &Note) -> Mirror {
        if !self.bundle.is_empty() {
            let (number, width) = (self.tree.size().0 / TILE_WIDTH, self.bundle.len() as u16);
            let path = TilePath::of_width(TileKind::Entries, number, width).unwrap();
            self.write(path, &encode_bundle(&self.bundle).unwrap());
        }
        for (level, (number, row)) in self.rows.iter().filter(|(_, (_, row))| !row.is_empty()) {
            let path = TilePath::of_width(TileKind::Hashes(*level), *number, row.len() as u16).unwrap();
            self.write(path, &encode_tile(row));
        }
        std::fs::write(self.mirror.checkpoint_path(), note.to_string()).unwrap();
        self.mirror.clone()
    }

    fn write(&self, path: TilePath, bytes: &[u8]) {
        let file = self.mirror.tile_file(&path);
        std::fs::create_dir_all(file.parent().expect("tiles stand in folders")).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
}

/// A checkpoint and its cosignatures as a note, as a node serves it. `key` gives a node's name and boot key.
pub fn note_of(
    checkpoint: &Checkpoint,
    cosignatures: &[(NodeId, Cosignature)],
    key: impl Fn(NodeId) -> (String, [u8; 32]),
) -> Note {
    let line = |(node, cosignature): &(NodeId, Cosignature)| {
        let (name, key) = key(*node);
        let name = KeyName::new(format!("{}/{name}", checkpoint.origin)).unwrap();
        cosignature.to_note_signature(&name, &key)
    };
    Note::new(checkpoint.body(), cosignatures.iter().map(line).collect()).unwrap()
}

/// The note of a checkpoint that a test's mesh certified, by the present boot keys.
pub fn note(mesh: &Mesh, certified: &CertifiedCheckpoint) -> Note {
    note_of(certified.checkpoint(), certified.cosignatures(), |node| {
        let boot = mesh.fleet.nodes.get(&node).expect("a member").boot();
        (mesh.state().policy().members.get(&node).expect("a member").name.clone(), boot.cosign)
    })
}

/// A mirror of a whole mesh's log at its newest certified checkpoint, which must be the log's end, and of older ones.
pub fn mirror_of(mesh: &Mesh, dir: &Path, older: &[TreeSize]) -> Mirror {
    let mut writer = LogWriter::new(dir, mesh.fleet.chain.first().expect("genesis"));
    mesh.fleet.blobs.0.values().for_each(|blob| writer.blob(blob));
    mesh.log.leaves.iter().for_each(|leaf| writer.push(leaf));
    for size in older {
        writer.older(&note(mesh, mesh.certified.get(size).expect("certified")), *size);
    }
    let newest = mesh.certified.get(&writer.size()).expect("the log ends certified");
    writer.finish(&note(mesh, newest))
}
