//! Many short segments: crossing them, emptying them, using them again, and a disk without room for the next.

use proptest::prelude::*;

use super::*;

/// How many segments there are.
fn segments(disk: &Disk) -> usize {
    disk.image(Survives::OnlySynced).keys().filter(|name| segment::Segment::id_in(name).is_some()).count()
}

#[tokio::test]
async fn emptied_segments_are_used_again() {
    let disk = Disk::holding(formatted());
    let mut store = start(&disk).unwrap();
    store.save_vote(&Vote::new(1, 1)).await.unwrap();
    for index in 0..400 {
        store.blocking_append(vec![entry(1, index, 150)]).await.unwrap();
        if index % 10 == 9 {
            store.purge(log_id(1, 1, index - 5)).await.unwrap();
        }
    }
    assert!(segments(&disk) <= 3, "{} segments", segments(&disk));
    // each new segment is one rename; each one taken back for the next, another
    assert!(disk.renames() > 40, "{} renames", disk.renames());
    let files = disk.image(Survives::OnlySynced);
    assert!(files.keys().all(|name| segment::Segment::id_in(name).is_some_and(|id| id > 15)), "{files:?}");
    let before = contents(&mut store).await;
    assert_eq!(before.entries.len(), 5);
    drop(store);
    assert_eq!(contents(&mut start(&disk).unwrap()).await, before);
}

#[tokio::test]
async fn a_reader_keeps_the_bytes_it_is_about_to_read() {
    let disk = Disk::holding(formatted());
    let mut store = start(&disk).unwrap();
    store.blocking_append(entries(1, 0..3, 100)).await.unwrap();
    drop(store);
    let mut store = start(&disk).unwrap();
    let view = store.reader.shared.state().view(0, 3, usize::MAX).unwrap();
    for index in 3..100 {
        store.blocking_append(vec![entry(1, index, 150)]).await.unwrap();
        store.purge(log_id(1, 1, index - 1)).await.unwrap();
    }
    let read: Vec<_> = view.disk.iter().map(|located| located.read().unwrap()).collect();
    assert_eq!(read, entries(1, 0..3, 100));
}

/// Whoever purged may crash before its segments are gone.
#[tokio::test]
async fn segments_left_behind_are_taken_back_at_the_next_start() {
    let disk = Disk::holding(formatted());
    let mut store = start(&disk).unwrap();
    for index in 0..100 {
        store.blocking_append(vec![entry(1, index, 150)]).await.unwrap();
    }
    // whatever was to be made ready is ready then
    drop(store);
    let many = segments(&disk);
    assert!(many > 5);
    let mut store = start(&disk).unwrap();
    // the frame's write and sync pass, then nothing more
    disk.die_after(2, Effect::Lost);
    store.purge(log_id(1, 1, 98)).await.unwrap();
    drop(store);
    let rest = Disk::holding(disk.image(Survives::OnlySynced));
    assert_eq!(segments(&rest), many);
    let mut store = start(&rest).unwrap();
    assert_eq!(contents(&mut store).await.entries.len(), 1);
    assert!(segments(&rest) <= 2, "{} segments", segments(&rest));
}

#[tokio::test]
async fn a_full_disk_ends_writing_when_the_segment_is_full() {
    for making in [Making::AtOnce, Making::Ahead] {
        let disk = Disk::holding(formatted());
        let start = |disk: &Disk| {
            LogStore::start(Arc::new(disk.clone()), CertifiedFloor::new(), options(), making).unwrap()
        };
        let mut store = start(&disk);
        disk.leave_room(1000);
        let mut acknowledged = 0;
        let error = loop {
            match store.blocking_append(vec![entry(1, acknowledged, 150)]).await {
                Ok(()) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("os error 28"), "{error}");
        assert!(store.failed().unwrap().contains("os error 28"));
        assert!(acknowledged > 8, "a segment's worth fits: {acknowledged}");
        disk.leave_room(1 << 20);
        let refused = store.save_vote(&Vote::new(1, 1)).await.unwrap_err();
        assert!(refused.to_string().contains("closed for writing"), "{refused}");
        drop(store);

        let rest = Disk::holding(disk.image(Survives::OnlySynced));
        let mut store = start(&rest);
        assert_eq!(contents(&mut store).await.entries.len() as u64, acknowledged);
        store.blocking_append(entries(1, acknowledged..acknowledged + 50, 150)).await.unwrap();
    }
}

#[tokio::test]
async fn room_that_comes_back_in_time_is_enough() {
    for making in [Making::AtOnce, Making::Ahead] {
        let disk = Disk::holding(formatted());
        let mut store =
            LogStore::start(Arc::new(disk.clone()), CertifiedFloor::new(), options(), making).unwrap();
        disk.leave_room(0);
        // beyond the half, where the next one is asked for
        store.blocking_append(entries(1, 0..11, 150)).await.unwrap();
        store.save_vote(&Vote::new(1, 1)).await.unwrap();
        disk.leave_room(1 << 20);
        for index in 11..60 {
            store.blocking_append(vec![entry(1, index, 150)]).await.unwrap();
        }
        assert_eq!(store.failed(), None);
    }
}

/// A failed sync leaves pages that are readable and will never be written. Whoever starts again must not take
/// them for durable.
#[tokio::test]
async fn what_only_the_page_cache_holds_is_written_again() {
    let disk = Disk::holding(formatted());
    let mut store = start(&disk).unwrap();
    store.blocking_append(entries(1, 0..3, 100)).await.unwrap();
    disk.fail_once(true, Effect::Lost);
    store.blocking_append(entries(1, 3..5, 100)).await.unwrap_err();
    drop(store);
    // the process starts again on the same machine, and reports what it reads as durable
    let store = start(&disk).unwrap();
    store.reader().durable_upto(4).await.unwrap();
    // then the power fails
    let rest = Disk::holding(disk.image(Survives::OnlySynced));
    assert_eq!(contents(&mut start(&rest).unwrap()).await.entries.len(), 5);
}

#[tokio::test]
async fn segments_are_crossed_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raft");
    std::fs::create_dir(&path).unwrap();
    initialise(Arc::new(LockedFolder::lock(&path).unwrap()), SHORT_SEGMENT).unwrap();
    let open = || LogStore::open(&path, CertifiedFloor::new(), options()).unwrap();
    let mut store = open();
    for index in 0..300 {
        store.blocking_append(vec![entry(1, index, 150)]).await.unwrap();
        if index % 50 == 49 {
            store.purge(log_id(1, 1, index - 5)).await.unwrap();
        }
    }
    let before = contents(&mut store).await;
    assert_eq!(before.entries.len(), 5);
    drop(store);
    assert_eq!(contents(&mut open()).await, before);
    let files = std::fs::read_dir(&path).unwrap().count();
    assert!(files <= 4, "{files} files");
}

// --- against a model

#[derive(Debug, Clone)]
enum Act {
    Append {
        count: u64,
        bytes: usize,
    },
    /// Takes back so many.
    Truncate(u64),
    /// Keeps so many.
    Purge(u64),
    /// A snapshot ahead of the log.
    PurgeBeyond(u64),
    Vote,
    Committed,
    /// Ends cleanly and starts again.
    Restart,
    /// Loses power, and of the unsynced keeps what the seed picks.
    Crash(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1..6u64, 0..400usize).prop_map(|(count, bytes)| Act::Append { count, bytes }),
        1 => (1..2u64, 2_000..6_000usize).prop_map(|(count, bytes)| Act::Append { count, bytes }),
        2 => (1..12u64).prop_map(Act::Truncate),
        2 => (0..30u64).prop_map(Act::Purge),
        1 => (1..4u64).prop_map(Act::PurgeBeyond),
        2 => Just(Act::Vote),
        2 => Just(Act::Committed),
        1 => Just(Act::Restart),
        1 => any::<u64>().prop_map(Act::Crash),
    ]
}

async fn follow(acts: Vec<Act>, segment_bytes: u64, making: Making) {
    let disk = Disk::default();
    initialise(Arc::new(disk.clone()), segment_bytes).unwrap();
    let start = |disk: &Disk| {
        let options = LogStoreOptions { segment_bytes, ..LogStoreOptions::default() };
        LogStore::start(Arc::new(disk.clone()), CertifiedFloor::new(), options, making).unwrap()
    };
    let (mut disk, mut term, mut model) = (disk, 1, Model::default());
    let mut store = start(&disk);
    for act in acts {
        let next = model.entries.keys().next_back().map(|last| last + 1);
        let next = next.or(model.purged.map(|purged| purged.index + 1)).unwrap_or(0);
        match act {
            Act::Append { count, bytes } => {
                let new = entries(term, next..next + count, bytes);
                store.blocking_append(new.clone()).await.unwrap();
                Step::Append(new).apply(&mut model);
            }
            Act::Truncate(back) => {
                let from = next.saturating_sub(back).max(next - model.entries.len() as u64);
                term += 1;
                store.truncate(log_id(term, 1, from)).await.unwrap();
                Step::Truncate(from).apply(&mut model);
            }
            Act::Purge(keep) => {
                if let Some(upto) = next.checked_sub(keep + 1).filter(|upto| model.entries.contains_key(upto))
                {
                    store.purge(model.entries[&upto].log_id).await.unwrap();
                    Step::Purge(upto).apply(&mut model);
                }
            }
            Act::PurgeBeyond(by) => {
                let upto = log_id(term, 1, next + by);
                store.purge(upto).await.unwrap();
                (model.purged, model.entries) = (Some(upto), BTreeMap::new());
            }
            Act::Vote => {
                term += 1;
                let vote = Vote::new(term, 1);
                store.save_vote(&vote).await.unwrap();
                model.vote = Some(vote);
            }
            Act::Committed => {
                let last = store.get_log_state().await.unwrap().last_log_id;
                if last.is_some() {
                    store.save_committed(last).await.unwrap();
                }
            }
            Act::Restart => {
                let committed = store.read_committed().await.unwrap();
                drop(store);
                store = start(&disk);
                assert_eq!(store.read_committed().await.unwrap(), committed);
            }
            Act::Crash(seed) => {
                disk = Disk::holding(disk.image(Survives::Some(seed)));
                store = start(&disk);
            }
        }
        assert_eq!(contents(&mut store).await, model);
    }
    drop(store);
    let mut store = start(&disk);
    assert_eq!(contents(&mut store).await, model);
    // what is not needed is gone, whatever happened before
    if let Some(first) = model.entries.keys().next() {
        let first = model.entries[first].log_id;
        store
            .purge(log_id(first.leader_id.term, 1, model.entries.keys().next_back().copied().unwrap()))
            .await
            .unwrap();
        drop(store);
        drop(start(&disk));
        assert!(segments(&disk) <= 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_found_again(
        acts in proptest::collection::vec(act(), 1..60),
        segment_bytes in prop_oneof![Just(1024u64), Just(2048), Just(8192)],
        ahead in any::<bool>(),
    ) {
        let making = if ahead { Making::Ahead } else { Making::AtOnce };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follow(acts, segment_bytes, making));
    }
}
