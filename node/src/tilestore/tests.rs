//! The store against an obviously right twin, through reopening, crashes, forks and lying peers.

use std::{cell::Cell, fs, path::Path};

use proptest::prelude::*;
use quorate_core::tlog::{
    EMPTY_ROOT, NodeReader, decode_bundle, node_hash, sha256, verify_consistency, verify_inclusion,
};
use tempfile::TempDir;

use super::*;

/// Leaves of uneven length, some empty.
pub(super) fn leaves(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    range.map(|i| sha256(&i.to_be_bytes()).0.repeat(2)[..i * 7 % 65].to_vec()).collect()
}

/// RFC 6962 §2.1 to the letter.
fn mth(hashes: &[Hash]) -> Hash {
    match hashes.len() {
        0 => EMPTY_ROOT,
        1 => hashes[0],
        n => {
            let k = n.next_power_of_two() / 2;
            node_hash(&mth(&hashes[..k]), &mth(&hashes[k..]))
        }
    }
}

fn hashes(leaves: &[Vec<u8>]) -> Vec<Hash> {
    leaves.iter().map(|leaf| leaf_hash(leaf)).collect()
}

pub(super) fn filled(count: usize) -> (TempDir, TileStore) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = TileStore::create(dir.path()).unwrap();
    store.append(&leaves(0..count)).unwrap();
    (dir, store)
}

fn recoded(tail: &StoreTail) -> StoreTail {
    borsh::from_slice(&borsh::to_vec(tail).unwrap()).unwrap()
}

fn path(name: &str) -> TilePath {
    name.parse().unwrap()
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    Snapshot,
    /// back to the last snapshot, as after a crash
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0usize..300).prop_map(Op::Append),
        2 => (0usize..8).prop_map(Op::Append),
        2 => Just(Op::Snapshot),
        2 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn equals_the_twin_through_reopening(ops in ops(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = TileStore::create(dir.path()).unwrap();
        let mut snapshot = store.tail();
        let mut count = 0;
        for op in ops {
            match op {
                Op::Append(more) => {
                    let head = store.append(&leaves(count..count + more)).unwrap();
                    count += more;
                    prop_assert_eq!(head, (TreeSize(count as u64), mth(&hashes(&leaves(0..count)))));
                }
                Op::Snapshot => {
                    store.sync().unwrap();
                    snapshot = recoded(&store.tail());
                    prop_assert_eq!(&snapshot, &store.tail());
                    prop_assert_eq!((snapshot.size(), snapshot.root()), store.head());
                    fsck(dir.path(), &snapshot).unwrap();
                }
                Op::Reopen => {
                    store = TileStore::open(dir.path(), &snapshot).unwrap();
                    count = snapshot.size().0 as usize;
                }
            }
            prop_assert_eq!(store.reader().head(), store.head());
        }
        fsck(dir.path(), &store.tail()).unwrap();
        if count > 0 {
            let all = leaves(0..count);
            let hashes = hashes(&all);
            let reader = store.reader();
            let size = a.index(count) + 1;
            let (n, root) = (TreeSize(size as u64), mth(&hashes[..size]));
            prop_assert_eq!(reader.root_at(n).unwrap(), root);
            let index = b.index(size);
            let at = LeafIndex(index as u64);
            prop_assert_eq!(&reader.leaf(at).unwrap()[..], &all[index][..]);
            verify_inclusion(hashes[index], at, n, root, &reader.inclusion(at, n).unwrap()).unwrap();
            let m = at.size_with();
            let proof = reader.consistency(m, n).unwrap();
            verify_consistency(m, mth(&hashes[..=index]), n, root, &proof).unwrap();
        }
    }
}

#[test]
fn every_tile_of_the_specifications_example() {
    let (dir, store) = filled(70_000);
    let all = leaves(0..70_000);
    let hashes = hashes(&all);
    let reader = store.reader();
    assert_eq!(store.head().1, mth(&hashes));
    let level_1: Vec<_> = hashes.chunks_exact(256).map(mth).collect();
    for (name, wanted) in [
        ("tile/0/000", &hashes[..256]),
        ("tile/0/272", &hashes[69_632..69_888]),
        ("tile/0/272.p/3", &hashes[69_632..69_635]),
        ("tile/0/273.p/112", &hashes[69_888..]),
        ("tile/0/273.p/1", &hashes[69_888..69_889]),
        ("tile/1/000", &level_1[..256]),
        ("tile/1/000.p/255", &level_1[..255]),
        ("tile/1/001.p/17", &level_1[256..]),
        ("tile/2/000.p/1", &[mth(&level_1[..256])]),
    ] {
        assert_eq!(reader.tile(&path(name)).unwrap(), encode_tile(wanted), "{name}");
    }
    for (name, first, width) in [
        ("tile/entries/000", 0, 256),
        ("tile/entries/000.p/9", 0, 9),
        ("tile/entries/272", 69_632, 256),
        ("tile/entries/273.p/112", 69_888, 112),
    ] {
        let bytes = reader.tile(&path(name)).unwrap();
        assert_eq!(decode_bundle(&bytes, width).unwrap(), all[first..first + usize::from(width)], "{name}");
    }
    for name in [
        "tile/0/273",
        "tile/0/273.p/113",
        "tile/0/274.p/1",
        "tile/1/001.p/18",
        "tile/1/001",
        "tile/2/000.p/2",
        "tile/3/000.p/1",
        "tile/8/000.p/1",
        "tile/63/000",
        "tile/entries/273",
        "tile/entries/273.p/113",
    ] {
        assert!(matches!(reader.tile(&path(name)), Err(StoreError::Beyond { .. })), "{name}");
    }
    for (level, index) in [(0, 0), (0, 69_999), (3, 8_749), (7, 545), (8, 272), (9, 5), (15, 1), (16, 0)] {
        let width = 1usize << level;
        let start = index as usize * width;
        assert_eq!(reader.node(level, index).unwrap(), mth(&hashes[start..start + width]), "{level} {index}");
    }
    for (level, index) in [(0, 70_000), (3, 8_750), (16, 1), (17, 0), (63, 1), (64, 0), (255, u64::MAX)] {
        assert!(matches!(reader.node(level, index), Err(StoreError::Beyond { .. })), "{level} {index}");
    }
    let files = || walkdir(&dir.path().join("tile"));
    assert_eq!(files().iter().filter(|file| file.contains("/entries/")).count(), 273);
    assert_eq!(files().len(), 273 + 273 + 1);
    fsck(dir.path(), &store.tail()).unwrap();
}

fn walkdir(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { walkdir(&path) } else { vec![path.display().to_string()] })
        .collect()
}

#[test]
fn a_proof_near_the_right_edge_needs_no_file() {
    let (dir, store) = filled(3000);
    fs::remove_dir_all(dir.path().join("tile")).unwrap();
    let (size, root) = store.head();
    let reader = store.reader();
    for index in 2500..3000 {
        let leaf = leaf_hash(&reader.leaf(LeafIndex(index)).unwrap());
        verify_inclusion(
            leaf,
            LeafIndex(index),
            size,
            root,
            &reader.inclusion(LeafIndex(index), size).unwrap(),
        )
        .unwrap();
    }
}

#[test]
fn is_created_and_opened_on_purpose() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(TileStore::open(dir.path(), &StoreTail::default()), Err(StoreError::NotCreated(_))));
    assert!(matches!(fsck(dir.path(), &StoreTail::default()), Err(StoreError::NotCreated(_))));
    let store = TileStore::create(dir.path()).unwrap();
    assert_eq!(store.head(), (TreeSize::ZERO, EMPTY_ROOT));
    assert!(matches!(TileStore::create(dir.path()), Err(StoreError::AlreadyExists(_))));
    TileStore::open(dir.path(), &StoreTail::default()).unwrap();
}

#[test]
fn refuses_what_does_not_exist() {
    let (_dir, mut store) = filled(10);
    let reader = store.reader();
    let n = TreeSize(10);
    assert!(matches!(reader.leaf(LeafIndex(10)), Err(StoreError::Beyond { .. })));
    assert!(matches!(reader.leaf(LeafIndex(u64::MAX)), Err(StoreError::Beyond { .. })));
    assert!(matches!(
        reader.root_at(TreeSize(11)),
        Err(StoreError::Beyond { asked: TreeSize(11), size: TreeSize(10) })
    ));
    assert!(matches!(reader.inclusion(LeafIndex(0), TreeSize(11)), Err(StoreError::Beyond { .. })));
    assert!(matches!(
        reader.inclusion(LeafIndex(10), n),
        Err(StoreError::Unprovable(ProofError::IndexBeyondSize { .. }))
    ));
    assert!(matches!(
        reader.consistency(TreeSize(0), n),
        Err(StoreError::Unprovable(ProofError::FromEmptyTree))
    ));
    let before = store.head();
    let refused = store.append(&[vec![], vec![0; MAX_LEAF_BYTES + 1]]);
    assert!(matches!(refused, Err(StoreError::LeafTooLong { index: LeafIndex(11), bytes: 65_536 })));
    assert_eq!(store.head(), before);
    store.append(&[vec![0; MAX_LEAF_BYTES]]).unwrap();
}

#[test]
fn missing_and_damaged_files_are_found() {
    let (dir, store) = filled(70_000);
    let tail = store.tail();
    let open = || TileStore::open(dir.path(), &tail);
    for (name, shape_shows) in [("tile/0/100", true), ("tile/1/000", true), ("tile/entries/100", false)] {
        let file = dir.path().join(name);
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(matches!(open(), Err(StoreError::Missing(found)) if found == path(name)), "{name}");
        assert!(matches!(fsck(dir.path(), &tail), Err(StoreError::Missing(found)) if found == path(name)));
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(matches!(open(), Err(StoreError::Damaged { .. })), shape_shows, "{name}");
        assert!(
            matches!(fsck(dir.path(), &tail), Err(StoreError::Damaged { path: found, .. }) if found == path(name))
        );
        fs::write(&file, []).unwrap();
        assert!(
            matches!(open(), Err(StoreError::Damaged { path: found, .. }) if found == path(name)),
            "{name}"
        );
        // the last byte of the last leaf or hash
        fs::write(&file, &bytes).unwrap();
        change(&file, |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert!(
            matches!(fsck(dir.path(), &tail), Err(StoreError::WrongHash(found)) if found == path(name)),
            "{name}"
        );
        fs::write(&file, &bytes).unwrap();
    }
    fsck(dir.path(), &tail).unwrap();
    let reader = open().unwrap().reader();
    change(&dir.path().join("tile/entries/000"), |bytes| bytes.truncate(bytes.len() - 1));
    assert!(matches!(reader.leaf(LeafIndex(0)), Err(StoreError::Damaged { .. })));
    change(&dir.path().join("tile/0/000"), |bytes| bytes.truncate(bytes.len() - 1));
    assert!(matches!(reader.inclusion(LeafIndex(0), tail.size()), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_power_cut_is_repaired_and_a_fork_is_refused() {
    let (dir, mut store) = filled(100);
    let snapshot = store.tail();
    store.append(&leaves(100..600)).unwrap();
    let head = store.head();
    // what was never synced comes back empty, short, or with holes
    let file = |name: &str| dir.path().join(name);
    change(&file("tile/0/000"), Vec::clear);
    change(&file("tile/0/001"), |bytes| bytes[512..2048].fill(0));
    change(&file("tile/entries/000"), |bytes| bytes.truncate(700));
    fs::remove_file(file("tile/entries/001")).unwrap();
    let mut store = TileStore::open(dir.path(), &snapshot).unwrap();
    assert_eq!(store.append(&leaves(100..600)).unwrap(), head);
    store.sync().unwrap();
    fsck(dir.path(), &store.tail()).unwrap();

    let mut store = TileStore::open(dir.path(), &snapshot).unwrap();
    let mut other = leaves(100..600);
    other[3].push(1);
    let before = store.head();
    assert!(
        matches!(store.append(&other), Err(StoreError::Fork(found)) if found == path("tile/entries/000"))
    );
    assert_eq!(store.head(), before);
    // given up for a certified one: the old files move away and stay readable
    let old = fs::read(file("tile/0/001")).unwrap();
    assert_eq!(set_aside_beyond(dir.path(), &snapshot).unwrap(), 4);
    assert_eq!(set_aside_beyond(dir.path(), &snapshot).unwrap(), 0);
    store.append(&other).unwrap();
    assert_ne!(store.head(), head);
    fsck(dir.path(), &store.tail()).unwrap();
    assert_eq!(fs::read(file("set-aside/100-0/tile/0/001")).unwrap(), old);
}

#[test]
fn a_failed_append_changes_nothing_and_a_failed_sync_is_final() {
    let (dir, mut store) = filled(100);
    let before = store.head();
    // a file where a folder must be
    fs::write(dir.path().join("tile/entries"), []).unwrap();
    assert!(matches!(store.append(&leaves(100..600)), Err(StoreError::Io { .. })));
    assert_eq!((store.head(), store.reader().head()), (before, before));
    fs::remove_file(dir.path().join("tile/entries")).unwrap();
    let head = store.append(&leaves(100..600)).unwrap();
    assert_eq!(head.1, mth(&hashes(&leaves(0..600))));
    fs::remove_file(dir.path().join("tile/0/001")).unwrap();
    assert!(matches!(store.sync(), Err(StoreError::Io { action: "sync", .. })));
    assert!(matches!(store.sync(), Err(StoreError::SyncFailedBefore)));
    assert!(matches!(store.append(&leaves(600..601)), Err(StoreError::SyncFailedBefore)));
}

#[test]
fn installs_from_a_peer_and_only_what_is_missing() {
    let (_peer_dir, peer) = filled(70_000);
    let (tail, (_, root), reader) = (recoded(&peer.tail()), peer.head(), peer.reader());
    let honest = |path: &TilePath| reader.tile(path).map(|bytes| bytes.to_vec()).map_err(BoxError::from);
    let dir = tempfile::tempdir().unwrap();
    let store = install(dir.path(), &tail, root, honest).unwrap();
    assert_eq!(store.head(), peer.head());
    fsck(dir.path(), &tail).unwrap();
    let proof = store.reader().inclusion(LeafIndex(77), tail.size()).unwrap();
    verify_inclusion(leaf_hash(&leaves(77..78)[0]), LeafIndex(77), tail.size(), root, &proof).unwrap();

    // what was damaged since, and nothing else, is fetched; what a longer tail left behind is set aside
    change(&dir.path().join("tile/0/017"), |bytes| bytes[9] ^= 1);
    fs::remove_file(dir.path().join("tile/entries/200")).unwrap();
    fs::write(dir.path().join("tile/0/273"), vec![1; 8192]).unwrap();
    let fetched = Cell::new(0);
    let counting = |path: &TilePath| {
        fetched.set(fetched.get() + 1);
        honest(path)
    };
    install(dir.path(), &tail, root, counting).unwrap();
    assert_eq!(fetched.get(), 2);
    assert!(dir.path().join("set-aside/70000-0/tile/0/273").exists());
    fsck(dir.path(), &tail).unwrap();
}

#[test]
fn a_lying_peer_installs_nothing() {
    let (_peer_dir, peer) = filled(70_000);
    let (tail, (_, root), reader) = (peer.tail(), peer.head(), peer.reader());
    let install_with = |lie: &str, how: fn(&mut Vec<u8>)| {
        let dir = tempfile::tempdir().unwrap();
        let result = install(dir.path(), &tail, root, |asked| {
            let mut bytes = reader.tile(asked)?.to_vec();
            if *asked == path(lie) {
                how(&mut bytes);
            }
            Ok(bytes)
        });
        assert!(!dir.path().join(lie).exists(), "what was refused is not on disk");
        result.map(|_| ())
    };
    for lie in ["tile/1/000", "tile/0/005", "tile/0/270", "tile/entries/005"] {
        let flipped = install_with(lie, |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert!(matches!(flipped, Err(StoreError::WrongHash(found)) if found == path(lie)), "{lie}");
        let short = install_with(lie, |bytes| bytes.truncate(bytes.len() - 1));
        assert!(matches!(short, Err(StoreError::Damaged { path: found, .. }) if found == path(lie)), "{lie}");
    }
    let dir = tempfile::tempdir().unwrap();
    let refused = install(dir.path(), &tail, root, |_| Err("gone".into()));
    assert!(matches!(refused, Err(StoreError::Fetch { .. })));
    let refused = install(dir.path(), &tail, EMPTY_ROOT, |_| Err("never asked".into()));
    assert!(matches!(refused, Err(StoreError::TailRoot { want: EMPTY_ROOT, got }) if got == root));
}

#[test]
fn a_tail_is_what_its_size_says() {
    let (_dir, store) = filled(70_000);
    let tail = store.tail();
    assert_eq!((tail.size(), tail.root()), store.head());
    let good = borsh::to_vec(&tail).unwrap();
    assert_eq!(borsh::from_slice::<StoreTail>(&good).unwrap(), tail);
    let refusal = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let error = borsh::from_slice::<StoreTail>(&bytes).unwrap_err();
        error.get_ref().and_then(|inner| inner.downcast_ref::<TailError>().copied())
    };
    assert_eq!(refusal(|bytes| bytes[0] = 2), Some(TailError::Version(2)));
    // bytes 1 to 8 are the size, 70,000 = 0x011170
    assert_eq!(refusal(|bytes| bytes[1] = 0x71), Some(TailError::Leaves { got: 112, want: 113 }));
    let widened = Some(TailError::TileWidth { level: 1, got: 17, want: 18 });
    assert_eq!(refusal(|bytes| bytes[2] = 0x12), widened);
    assert_eq!(refusal(|bytes| bytes[3] = 2), Some(TailError::TileWidth { level: 2, got: 1, want: 2 }));
    assert_eq!(refusal(|bytes| bytes[8] = 0x80), Some(TailError::Size(70_000 | 1 << 63)));

    let mut tall = (1u8, tail.size(), tail.tiles().to_vec(), tail.leaves().to_vec());
    tall.2.resize(9, vec![EMPTY_ROOT]);
    let error = borsh::from_slice::<StoreTail>(&borsh::to_vec(&tall).unwrap()).unwrap_err();
    assert!(error.to_string().contains("9 levels"));

    // golden: version 1 of a tail of two leaves
    let mut small = TileStore::create(&tempfile::tempdir().unwrap().path().join("x")).unwrap();
    small.append(&[b"a", b"b"]).unwrap();
    let golden = b"\x01\x02\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x01\0\0\0a\x01\0\0\0b";
    assert_eq!(borsh::to_vec(&small.tail()).unwrap(), golden);
    let mut long = (1u8, TreeSize(1), Vec::<Vec<Hash>>::new(), vec![vec![0u8; MAX_LEAF_BYTES + 1]]);
    assert!(borsh::from_slice::<StoreTail>(&borsh::to_vec(&long).unwrap()).is_err());
    long.3[0].pop();
    assert!(borsh::from_slice::<StoreTail>(&borsh::to_vec(&long).unwrap()).is_ok());
}

#[test]
fn readers_see_whole_appends_while_the_writer_goes_on() {
    let (_dir, mut store) = filled(1);
    let reader = store.reader();
    let proving = std::thread::spawn(move || {
        let mut last = (TreeSize(1), reader.root_at(TreeSize(1)).unwrap());
        let mut seen = 0;
        while last.0 < TreeSize(1 + 37 * 200) {
            let (size, root) = reader.head();
            if size == last.0 {
                std::thread::yield_now();
                continue;
            }
            assert_eq!((size.0 - 1) % 37, 0, "part of an append was seen");
            verify_consistency(last.0, last.1, size, root, &reader.consistency(last.0, size).unwrap())
                .unwrap();
            let index = LeafIndex(size.0 * 2 / 3);
            let leaf = leaf_hash(&reader.leaf(index).unwrap());
            verify_inclusion(leaf, index, size, root, &reader.inclusion(index, size).unwrap()).unwrap();
            last = (size, root);
            seen += 1;
        }
        seen
    });
    for batch in 0..200 {
        store.append(&leaves(1 + batch * 37..1 + (batch + 1) * 37)).unwrap();
    }
    assert!(proving.join().unwrap() > 0);
}
