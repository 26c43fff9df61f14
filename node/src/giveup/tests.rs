//! Two histories over real states, logs, tiles and locks: the one that a lying leader gave this node, and the certified one.
use super::*;
use crate::raft::types::{Batch as RaftBatch, Entry};
use crate::tilestore::TileStore;
use openraft::storage::RaftLogStorage as _;
use openraft::storage::RaftLogStorageExt as _;
use openraft::{CommittedLeaderId, EmptyNode, Membership};
use quorate_core::command::{Batch, Command};
use quorate_core::testing::{Log, Mesh};
use std::collections::BTreeSet;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

/// A mesh with a certified history, and a copy of it that went astray after `shared` leaves.
struct Split {
    mesh: Mesh,
    astray: Log,
    /// Raft's log of the node that went astray, and how many of its entries are shared.
    entries: Vec<Entry>,
    shared: (TreeSize, u64),
}

fn split(batches: usize) -> Split {
    let mut mesh = Mesh::dark(4, 1, |_| ());
    let mut batches_seen = Vec::new();
    let mut apply = |mesh: &mut Mesh, commands: Vec<Command>| {
        mesh.apply(commands.clone());
        batches_seen.push(encode(&Batch { time: mesh.time, proposer: NodeId(1), commands }));
    };
    let recovery = mesh.recovery();
    apply(&mut mesh, vec![Command::Recover(Box::new(recovery))]);
    let evidence = (1..=4).map(|n| mesh.evidence(n)).collect();
    apply(&mut mesh, evidence);
    let shared = mesh.state().checkpoint().size;
    let mut astray = mesh.log.clone();
    let mut entries: Vec<Entry> = batches_seen.iter().map(|b| normal(1, b.clone())).collect();
    let count = entries.len() as u64;
    // What a leader begins with; no tree shows it.
    entries.push(Entry { log_id: id(2, 0), payload: EntryPayload::Blank });
    for n in 0..batches {
        // The same batches, of another leader: every leaf differs.
        mesh.apply(Vec::new());
        let time = mesh.time.plus_ms(n as u64);
        let batch = encode(&Batch { time, proposer: NodeId(2), commands: Vec::new() });
        astray.apply_bytes(&batch, &mesh.fleet.blobs);
        entries.push(normal(2, batch));
    }
    let members = (1..=4).map(|n| (n, EmptyNode {})).collect::<std::collections::BTreeMap<_, _>>();
    let first = Membership::new(vec![BTreeSet::from([1, 2, 3, 4])], members);
    entries.insert(0, Entry { log_id: LogId::default(), payload: EntryPayload::Membership(first) });
    for (index, entry) in entries.iter_mut().enumerate() {
        entry.log_id.index = index as u64;
    }
    Split { mesh, astray, entries, shared: (shared, count) }
}

fn normal(term: u64, batch: Vec<u8>) -> Entry {
    Entry { log_id: id(term, 0), payload: EntryPayload::Normal(RaftBatch::new(batch).unwrap()) }
}

fn tiles_of(dir: &Path, leaves: &[Vec<u8>]) -> TileStore {
    let mut tiles = TileStore::create(dir).unwrap();
    tiles.append(leaves).unwrap();
    tiles
}

#[test]
fn a_certified_history_shows_where_this_node_went_astray() {
    for batches in [1, 5, 300] {
        let s = split(batches);
        let folder = tempfile::tempdir().unwrap();
        let own = tiles_of(&folder.path().join("own"), &s.astray.leaves).reader();
        let theirs = tiles_of(&folder.path().join("theirs"), &s.mesh.log.leaves).reader();
        let proof = encode(&s.mesh.proof(&[]));
        let cluster = s.mesh.fleet.cluster();
        let fetch = |path: &TilePath| theirs.tile(path).map_err(|e| e.to_string());
        let Examined::Astray(marker) = examine(&proof, cluster, &own, fetch).unwrap() else { panic!() };
        assert_eq!(marker.shared, s.shared.0);
        assert_eq!(marker.certified, s.mesh.state().checkpoint());

        // A node that agrees, that is behind, or that is ahead: nothing to give up.
        let behind = &s.mesh.log.leaves[..s.mesh.log.leaves.len() - 1];
        let mut ahead = s.mesh.log.leaves.clone();
        ahead.push(b"not certified yet".to_vec());
        for (name, leaves, says) in [
            ("same", &s.mesh.log.leaves[..], Examined::Held),
            ("behind", behind, Examined::Behind),
            ("ahead", &ahead, Examined::Held),
        ] {
            let own = tiles_of(&folder.path().join(name), leaves).reader();
            assert_eq!(examine(&proof, cluster, &own, fetch).unwrap(), says, "{name}");
        }
    }
}

#[test]
fn what_this_node_signed_none_of_goes_when_an_honest_one_stands_elsewhere() {
    let s = split(5);
    let folder = tempfile::tempdir().unwrap();
    let own = tiles_of(&folder.path().join("own"), &s.astray.leaves).reader();
    let theirs = tiles_of(&folder.path().join("theirs"), &s.mesh.log.leaves).reader();
    let fetch = |path: &TilePath| theirs.tile(path).map_err(|e| e.to_string());
    let (lock, shared) = (s.mesh.state().checkpoint(), s.shared.0);
    assert_eq!(parting(&own, lock, fetch).unwrap(), Some(shared));
    let behind = CheckpointRef { size: shared, root: own.root_at(shared).unwrap() };
    assert_eq!(parting(&own, behind, fetch).unwrap(), None);
    let made_up = CheckpointRef { root: Hash([9; 32]), ..lock };
    assert!(matches!(parting(&own, made_up, fetch), Err(Unusable::NotTheTree)));
}

#[test]
fn what_this_node_signed_none_of_goes_when_it_is_lost() {
    let held = CheckpointRef { size: TreeSize(10), root: Hash([1; 32]) };
    let began = Instant::now();
    // Of seven, two may be hostile, and five must sign.
    let locks = |partings: &[u64], silent| Locks {
        held,
        partings: partings.iter().map(|at| TreeSize(*at)).collect(),
        silent,
        members: 7,
        quorum: 5,
        hostile_max: 2,
        holders: 0,
        astray: None,
    };
    let shared = |unsigned: &mut Unsigned, locks: &Locks, s: u64| {
        let marker = unsigned.round(locks, began + Duration::from_secs(s));
        marker.map(|m| (m.shared.0, m.certified)).inspect(|(_, c)| assert_eq!(*c, held)).map(|(at, _)| at)
    };
    let at_once = |partings: &[u64]| shared(&mut Unsigned::default(), &locks(partings, 0), 0);
    assert_eq!(at_once(&[12, 15, 11]), Some(11));
    assert_eq!(at_once(&[12, 15, 11, 10]), Some(11), "one honest node is enough");
    assert_eq!(at_once(&[12, 15]), None, "they may be hostile");
    assert_eq!(at_once(&[12, 9, 9]), None, "that tail is signed");

    // Two stand elsewhere, two are silent: no quorum is left.
    let (lost, lost_s, apart_s) = (locks(&[12, 15], 2), LOST.as_secs(), APART.as_secs());
    let mut unsigned = Unsigned::default();
    assert_eq!(shared(&mut unsigned, &lost, 0), None);
    assert_eq!(shared(&mut unsigned, &lost, lost_s - 1), None);
    assert_eq!(shared(&mut unsigned, &lost, lost_s), Some(12));
    // Once all answer, it begins anew.
    let mut unsigned = Unsigned::default();
    assert_eq!(shared(&mut unsigned, &lost, 0), None);
    assert_eq!(shared(&mut unsigned, &locks(&[12, 15], 0), 4), None);
    assert_eq!(shared(&mut unsigned, &lost, lost_s), None);
    assert_eq!(shared(&mut unsigned, &lost, 2 * lost_s), Some(12));
    // The silent ones alone say nothing about it, nor do those that stand elsewhere below what is signed.
    let mut unsigned = Unsigned::default();
    for s in 0..2 * apart_s {
        assert_eq!(shared(&mut unsigned, &locks(&[], 6), s), None);
        assert_eq!(shared(&mut unsigned, &locks(&[9, 9, 9], 3), s), None);
    }
    // A quorum seems to be left, and nothing comes of it.
    let mut unsigned = Unsigned::default();
    assert_eq!(shared(&mut unsigned, &locks(&[12], 0), 0), None);
    assert_eq!(shared(&mut unsigned, &locks(&[12], 0), apart_s - 1), None);
    assert_eq!(shared(&mut unsigned, &locks(&[12], 0), apart_s), Some(12));
    // It was given again what it had let go of, and holds to another history.
    let again = Locks { astray: Some(TreeSize(7)), ..locks(&[], 0) };
    assert_eq!(shared(&mut Unsigned::default(), &again, 0), Some(7));
    // Nobody stands elsewhere any more.
    assert_eq!(shared(&mut unsigned, &locks(&[], 0), apart_s), None);
    assert_eq!(shared(&mut unsigned, &locks(&[12], 0), apart_s + 1), None);
}

#[test]
fn raft_s_log_goes_when_the_tree_stands_still_and_others_have_what_it_has() {
    let began = Instant::now();
    let at = |s: u64| began + Duration::from_secs(s);
    let (stalled, lost) = (STALLED.as_secs(), LOST.as_secs());
    let locks = |holders| Locks {
        held: CheckpointRef { size: TreeSize(10), root: Hash([1; 32]) },
        partings: Vec::new(),
        silent: 0,
        members: 4,
        quorum: 3,
        hostile_max: 1,
        holders,
        astray: None,
    };
    let mut still = Standstill::default();
    let (cut_off, guard) = (TermGuard::default(), TermGuard::default());
    guard.conflicts(2, at(0).into_std());
    let look = |l: &mut Standstill, own, guard, s| l.look(TreeSize(own), guard, at(s));
    assert_eq!(look(&mut still, 9, &guard, 0), (1, false));
    assert_eq!(look(&mut still, 9, &cut_off, stalled), (0, false));
    assert_eq!(look(&mut still, 9, &guard, stalled), (1, true));
    // More is certified.
    let certified = |still: &Standstill, s| still.go(true, 1, &locks(0), at(s));
    assert!(!certified(&still, lost - 1) && certified(&still, lost));
    // Two conflict with this node, one of them honest. One holder may be hostile.
    assert!(still.go(false, 2, &locks(2), at(lost)));
    assert!(!still.go(false, 2, &locks(1), at(9 * lost)));
    // One conflicts with all.
    assert!(!still.go(false, 1, &locks(2), at(2 * lost - 1)));
    assert!(still.go(false, 1, &locks(2), at(2 * lost)));
    // The tree grows.
    assert_eq!(look(&mut still, 10, &guard, 2 * lost), (0, false));
    assert!(!certified(&still, 3 * lost - 1));
}

#[test]
fn two_never_rely_on_one_another_at_once() {
    let (skew, members) = (5_000, [1, 2, 3, 4].map(NodeId));
    let firsts: Vec<NodeId> = (0..4)
        .map(|turn| {
            let before = |a: &NodeId, b: &NodeId| stands_behind(turn, *b, *a, &members);
            for (a, b) in members.iter().flat_map(|a| members.iter().map(move |b| (a, b))) {
                assert_eq!(before(a, b), a != b && !before(b, a));
            }
            *members.iter().find(|a| members.iter().all(|b| *a == b || before(a, b))).unwrap()
        })
        .collect();
    assert_eq!(BTreeSet::from_iter(&firsts), BTreeSet::from_iter(&members), "everybody is first once");
    // Clocks that differ by less than the bound are never in two turns.
    for at in 0..60_000 {
        let (one, other) = (turn(Timestamp(at), skew), turn(Timestamp(at + skew), skew));
        assert!(one.is_none() || other.is_none() || one == other, "{at}");
    }
    assert_eq!((turn(Timestamp(4_999), skew), turn(Timestamp(5_000), skew)), (None, Some(0)));
    assert_eq!((turn(Timestamp(9_999), skew), turn(Timestamp(10_000), skew)), (Some(0), None));
}

#[test]
fn who_gives_the_tiles_has_what_this_node_may_not_give_up() {
    let s = split(5);
    let folder = tempfile::tempdir().unwrap();
    let own = tiles_of(&folder.path().join("own"), &s.astray.leaves).reader();
    let theirs = tiles_of(&folder.path().join("theirs"), &s.mesh.log.leaves).reader();
    let fetch = |path: &TilePath| theirs.tile(path).map_err(|e| e.to_string());
    let lock = s.mesh.state().checkpoint();
    let shared = CheckpointRef { size: s.shared.0, root: own.root_at(s.shared.0).unwrap() };
    let astray = s.astray.state.checkpoint();
    assert!(holds(lock, shared, fetch).unwrap() && holds(lock, lock, fetch).unwrap());
    assert!(!holds(lock, astray, fetch).unwrap(), "of another history");
    assert!(!holds(shared, lock, fetch).unwrap(), "it has less");
    let empty = |_: &TilePath| Err("it has let go of it".to_owned());
    assert!(holds(lock, shared, empty).is_err());

    assert!(lacks(&own, lock) && !lacks(&own, astray) && !lacks(&own, shared));
    let longer = CheckpointRef { size: TreeSize(lock.size.0 + 1), ..lock };
    assert!(!lacks(&own, longer), "it may still come");
}

#[test]
fn a_peer_that_lies_about_its_tiles_or_its_proof_moves_nobody() {
    let s = split(5);
    let folder = tempfile::tempdir().unwrap();
    let own_leaves = &s.mesh.log.leaves[..s.mesh.log.leaves.len() - 1];
    let own = tiles_of(&folder.path().join("own"), own_leaves).reader();
    let theirs = tiles_of(&folder.path().join("theirs"), &s.mesh.log.leaves).reader();
    let proof = encode(&s.mesh.proof(&[]));
    let flipped = |path: &TilePath| {
        let mut tile = theirs.tile(path).map_err(|e| e.to_string())?.to_vec();
        tile[3] ^= 1;
        Ok(Bytes::from(tile))
    };
    let error = examine(&proof, s.mesh.fleet.cluster(), &own, flipped).unwrap_err();
    assert_eq!(error, "the tiles do not lead to the certified root");

    // Cosigned by two of four only.
    let mut few = s.mesh.proof(&[]);
    few.cosignatures.truncate(2);
    let fetch = |path: &TilePath| theirs.tile(path).map_err(|e| e.to_string());
    let error = examine(&encode(&few), s.mesh.fleet.cluster(), &own, fetch).unwrap_err();
    assert!(error.contains("not certified"), "{error}");
}

/// The data folder of the node that went astray, and what it signed.
async fn node_of(s: &Split) -> (tempfile::TempDir, CheckpointRef) {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    let blobs = BlobStore::open(folder.path()).unwrap();
    for blob in s.mesh.fleet.blobs.0.values() {
        blobs.put(blob).unwrap();
    }
    LogStore::create(&layout.raft_log()).unwrap();
    tiles_of(&layout.tiles(), &s.astray.leaves);
    let tail = s.astray.state.checkpoint();
    std::fs::write(layout.sign_lock(), encode(&Lock { checkpoint: tail, superseded: None })).unwrap();
    let mut log = log_of(&layout);
    log.save_vote(&crate::raft::types::Vote::new(2, 1)).await.unwrap();
    log.blocking_append(s.entries.clone()).await.unwrap();
    log.save_committed(s.entries.last().map(|e| e.log_id)).await.unwrap();
    (folder, tail)
}

fn log_of(layout: &Layout) -> LogStore {
    LogStore::open(&layout.raft_log(), CertifiedFloor::new(), LogStoreOptions::default()).unwrap()
}

/// Its end, what is committed, and the vote, which no decision may change.
async fn ends(layout: &Layout) -> (Option<LogId>, Option<LogId>) {
    let mut log = log_of(layout);
    let vote = log.read_vote().await.unwrap();
    assert_eq!(vote, Some(crate::raft::types::Vote::new(2, 1)));
    (log.get_log_state().await.unwrap().last_log_id, log.read_committed().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_raft_s_log_goes_what_makes_no_leaf_and_then_all() {
    let mut s = split(3);
    let batch = s.entries.last().map(|e| e.log_id);
    for payload in [EntryPayload::Blank, s.entries[0].payload.clone()] {
        let index = s.entries.len() as u64;
        s.entries.push(Entry { log_id: id(3, index), payload });
    }
    let (folder, tail) = node_of(&s).await;
    let layout = Layout::new(folder.path());
    let blobs = BlobStore::open(folder.path()).unwrap();
    let (cluster, (genesis, _)) = (s.mesh.fleet.cluster(), s.mesh.fleet.genesis());
    std::fs::write(folder.path().join("certificate"), b"of a place in the log").unwrap();
    let decide = async |own| {
        write_durably(&layout.given_up(), &encode(&Marker::of_log(own, tail))).unwrap();
        assert!(finish(&layout, cluster, &genesis, &blobs).await.unwrap());
        ends(&layout).await
    };
    let first = s.entries.first().map(|e| e.log_id);
    assert_eq!(decide(tail.size).await, (batch, batch), "every leaf stays");
    assert!(!folder.path().join("certificate").exists());
    assert_eq!(decide(tail.size).await, (first, first), "that did not help");
    let lock = Lock::from_bytes(&std::fs::read(layout.sign_lock()).unwrap()).unwrap();
    assert_eq!(lock, Lock { checkpoint: tail, superseded: None }, "what it signed binds it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_is_given_up_and_nothing_shared_is_lost() {
    let s = split(300);
    let (folder, tail) = node_of(&s).await;
    let layout = Layout::new(folder.path());
    let blobs = BlobStore::open(folder.path()).unwrap();
    let (genesis, leaf) = s.mesh.fleet.genesis();
    let (cluster, end) = (s.mesh.fleet.cluster(), s.entries.len() as u64 - 1);
    assert!(!finish(&layout, cluster, &genesis, &blobs).await.unwrap(), "nothing was decided yet");
    let certified = s.mesh.state().checkpoint();
    let marker = Marker { version: OF_TAIL, shared: s.shared.0, certified };
    write_durably(&layout.given_up(), &encode(&marker)).unwrap();
    assert!(finish(&layout, cluster, &genesis, &blobs).await.unwrap());
    assert!(!layout.given_up().exists());

    // The log ends with the shared entries, and says that no more is committed.
    let mut log = log_of(&layout);
    let last = s.entries[s.shared.1 as usize].log_id;
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(last));
    assert_eq!(log.read_committed().await.unwrap(), Some(last));
    // What a start makes of it: the shared state, over which the certified leaves go without a fork.
    let mut state = genesis.clone();
    let mut tiles = TileStore::open(&layout.tiles(), &StoreTail::default()).unwrap();
    tiles.append(&[leaf]).unwrap();
    for entry in log.try_get_log_entries(0..=end).await.unwrap() {
        let EntryPayload::Normal(batch) = entry.payload else { continue };
        tiles.append(&state.apply(batch.bytes(), &blobs).leaf_bytes).unwrap();
    }
    assert_eq!(state.checkpoint().size, s.shared.0);
    tiles.append(&s.mesh.log.leaves[s.shared.0.0 as usize..]).unwrap();
    assert_eq!(tiles.head(), (certified.size, certified.root));
    // The old lock is on record.
    let lock = Lock::from_bytes(&std::fs::read(layout.sign_lock()).unwrap()).unwrap();
    assert_eq!(lock, Lock { checkpoint: certified, superseded: Some(tail) });
    assert!(layout.tiles().join("set-aside").exists());
}
