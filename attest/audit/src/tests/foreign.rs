//! A mirror as an implementation of other people reads it: the crate `tlog_tiles` (Cloudflare's azul), with its own hashes,
//! tile arithmetic, checkpoint parser and proofs.
use super::busy::busy;
use crate::store::Mirror;
use crate::testing::mirror_of;
use quorate_core::tlog::{LeafIndex, Note, TileKind, TilePath, prove_inclusion};
use tlog_tiles::{
    Checkpoint, Error, Hash, HashReader as _, Tile, TileHashReader, TileReader, check_record, check_tree,
    prove_record, prove_tree, record_hash, stored_hash_index,
};

struct Foreign(Mirror);

impl TileReader for Foreign {
    fn height(&self) -> u8 {
        8
    }
    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let read = |tile: &Tile| {
            let (kind, width) = (TileKind::Hashes(tile.level()), tile.width() as u16);
            let path = TilePath::of_width(kind, tile.level_index(), width).unwrap();
            // C2SP tlog-tiles: who wants the first hashes of a tile that has more of them reads those.
            let file = self.0.tile_file(&path);
            let grown = self.0.tile_file(&TilePath::full(kind, tile.level_index()).unwrap());
            let mut bytes = std::fs::read(&file).or_else(|_| std::fs::read(grown)).unwrap();
            bytes.truncate(usize::from(width) * 32);
            bytes
        };
        Ok(tiles.iter().map(read).collect())
    }
    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

#[test]
fn tiles_checkpoint_and_proofs_are_good_to_another_implementation() {
    let mesh = busy();
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(&mesh, dir.path(), &[]);
    let note = std::fs::read(mirror.checkpoint_path()).unwrap();
    let text = Note::parse(&note).unwrap().text().to_owned();
    let checkpoint = Checkpoint::from_bytes(text.as_bytes()).unwrap();
    assert_eq!((checkpoint.origin(), checkpoint.extension()), (mesh.state().origin().as_str(), ""));
    let (size, root) = (checkpoint.size(), *checkpoint.hash());
    assert_eq!(root.0, mesh.log.state.checkpoint().root.0);

    let foreign = Foreign(mirror.clone());
    let reader = TileHashReader::new(size, root, &foreign);
    let ours = mirror.newest().unwrap().size();
    for (index, leaf) in mesh.log.leaves.iter().enumerate() {
        let index = index as u64;
        let hash = reader.read_hashes(&[stored_hash_index(0, index)]).unwrap()[0];
        assert_eq!(hash, record_hash(leaf), "leaf {index}");
        // Their verifier on our proof, and their proof is ours.
        let proof: Vec<Hash> = prove_inclusion(&mirror.tree(ours), LeafIndex(index), ours)
            .unwrap()
            .hashes()
            .iter()
            .map(|h| Hash(h.0))
            .collect();
        assert_eq!(prove_record(size, index, &reader).unwrap(), proof, "leaf {index}");
        check_record(&proof, size, root, index, hash).unwrap();
        check_record(&proof, size, root, index, record_hash(b"another")).unwrap_err();
    }
    for (older, certified) in mesh.certified.iter().step_by(29) {
        let proof = prove_tree(size, older.0, &reader).unwrap();
        check_tree(&proof, size, root, older.0, Hash(certified.checkpoint().root.0)).unwrap();
        check_tree(&proof, size, root, older.0, Hash([7; 32])).unwrap_err();
    }
    // It finds what we find: a proof from an altered tile is none. (Its reader alone lets this tile pass.)
    let tile = mirror.tile_file(&TilePath::full(TileKind::Hashes(0), 0).unwrap());
    let mut bytes = std::fs::read(&tile).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&tile, bytes).unwrap();
    let proof = prove_record(size, 5, &reader).unwrap_or_default();
    check_record(&proof, size, root, 5, record_hash(&mesh.log.leaves[5])).unwrap_err();
}
