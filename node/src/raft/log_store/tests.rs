//! The store against openraft's suite, against a disk that crashes at every operation, and rule by rule.
//!
//! That the tests bite was seen by breaking the code. Each of these fails at least one: no sync; answers given
//! before the write; names not synced; the last frame not written again at opening; a body's sum ignored; later
//! frames not looked for; needed segments dropped; a segment used again under a reader; a salt that is known; a
//! head not compared; no frame at a clean end.

#[path = "damage_tests.rs"]
mod damage;
#[path = "faults.rs"]
mod faults;
#[path = "segment_tests.rs"]
mod segments;

use std::collections::BTreeMap;
use std::io::Cursor;

use openraft::storage::{RaftLogStorageExt as _, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite, blank_ent, log_id};
use openraft::{EntryPayload, RaftSnapshotBuilder};

use self::faults::{Disk, Effect, Image, Survives};
use super::state::{TAIL_BYTES_MAX, TAIL_ENTRIES_MAX, weight};
use super::*;
use crate::raft::types::{Applied, Batch, Snapshot, SnapshotMeta, StoredMembership};

// --- openraft's conformance suite

/// A state machine that only counts: the suite needs one beside the log.
#[derive(Default, Clone)]
struct Counting {
    applied: Option<LogId>,
    membership: StoredMembership,
    count: u64,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

impl RaftSnapshotBuilder<TypeConfig> for Arc<tokio::sync::Mutex<Counting>> {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let mut sm = self.lock().await;
        let meta = SnapshotMeta {
            last_log_id: sm.applied,
            last_membership: sm.membership.clone(),
            snapshot_id: format!("{:?}", sm.applied),
        };
        let content = sm.count.to_le_bytes().to_vec();
        sm.snapshot = Some((meta.clone(), content.clone()));
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(content)) })
    }
}

impl RaftStateMachine<TypeConfig> for Arc<tokio::sync::Mutex<Counting>> {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let sm = self.lock().await;
        Ok((sm.applied, sm.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut sm = self.lock().await;
        let mut answers = Vec::new();
        for entry in entries {
            sm.applied = Some(entry.log_id);
            sm.count += 1;
            if let EntryPayload::Membership(membership) = entry.payload {
                sm.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            answers.push(Applied { tree_size: sm.count });
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let mut sm = self.lock().await;
        sm.applied = meta.last_log_id;
        sm.membership = meta.last_membership.clone();
        sm.count = u64::from_le_bytes(snapshot.get_ref()[..].try_into().unwrap());
        sm.snapshot = Some((meta.clone(), snapshot.into_inner()));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let sm = self.lock().await;
        let current = sm.snapshot.clone();
        Ok(current.map(|(meta, content)| Snapshot { meta, snapshot: Box::new(Cursor::new(content)) }))
    }
}

struct Builder;

type StateMachine = Arc<tokio::sync::Mutex<Counting>>;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let folder = tempfile::tempdir().unwrap();
        initialise(Arc::new(LockedFolder::lock(folder.path()).unwrap()), SHORT_SEGMENT).unwrap();
        let store = LogStore::open(folder.path(), CertifiedFloor::new(), options()).unwrap();
        Ok((folder, store, Arc::default()))
    }
}

/// All that `Suite::test_all` runs but `get_initial_state_membership_from_log_and_sm`: it appends index 1 to a
/// log purged up to 2, and then index 3 after it. This store refuses both, as the trait's contract asks.
#[tokio::test]
async fn openrafts_conformance_suite_passes() {
    type Openraft = Suite<TypeConfig, LogStore, StateMachine, Builder, tempfile::TempDir>;
    macro_rules! run {
        ($($name:ident),+ $(,)?) => {$(
            let (_folder, store, sm) = Builder.build().await.unwrap();
            Openraft::$name(store, sm).await.unwrap();
        )+};
    }
    run!(
        last_membership_in_log_initial,
        last_membership_in_log,
        last_membership_in_log_multi_step,
        get_membership_initial,
        get_membership_from_log_and_empty_sm,
        get_membership_from_empty_log_and_sm,
        get_membership_from_log_le_sm_last_applied,
        get_membership_from_log_gt_sm_last_applied_1,
        get_membership_from_log_gt_sm_last_applied_2,
        get_initial_state_without_init,
        get_initial_state_with_state,
        get_initial_state_last_log_gt_sm,
        get_initial_state_last_log_lt_sm,
        get_initial_state_log_ids,
        get_initial_state_re_apply_committed,
        save_vote,
        get_log_entries,
        limited_get_log_entries,
        try_get_log_entry,
        initial_logs,
        get_log_state,
        get_log_id,
        last_id_in_log,
        last_applied_state,
        purge_logs_upto_0,
        purge_logs_upto_5,
        purge_logs_upto_20,
        delete_logs_since_11,
        delete_logs_since_0,
        append_to_log,
        snapshot_meta,
        apply_single,
        apply_multiple,
    );
    Openraft::transfer_snapshot(&Builder).await.unwrap();
}

// --- helpers

fn open(path: &Path) -> Result<LogStore, LogStoreError> {
    LogStore::open(path, CertifiedFloor::new(), LogStoreOptions::default())
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let mut entry = blank_ent::<TypeConfig>(term, 1, index);
    entry.payload = EntryPayload::Normal(Batch::new(vec![index as u8; bytes]).unwrap());
    entry
}

fn entries(term: u64, range: std::ops::Range<u64>, bytes: usize) -> Vec<Entry> {
    range.map(|index| entry(term, index, bytes)).collect()
}

fn indexes(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// Short, so that stories cross many of them.
const SHORT_SEGMENT: u64 = 4096;

/// A disk that holds an empty log, as `create` leaves it.
fn formatted() -> Image {
    let disk = Disk::default();
    initialise(Arc::new(disk.clone()), SHORT_SEGMENT).unwrap();
    disk.image(Survives::OnlySynced)
}

fn options() -> LogStoreOptions {
    LogStoreOptions { segment_bytes: SHORT_SEGMENT, ..LogStoreOptions::default() }
}

fn start_with(disk: &Disk, options: LogStoreOptions) -> Result<LogStore, LogStoreError> {
    LogStore::start(Arc::new(disk.clone()), CertifiedFloor::new(), options, Making::AtOnce)
}

fn start(disk: &Disk) -> Result<LogStore, LogStoreError> {
    start_with(disk, options())
}

async fn on_new_disk() -> (Disk, LogStore) {
    let disk = Disk::holding(formatted());
    let store = start(&disk).unwrap();
    (disk, store)
}

async fn queue(store: &LogStore, entries: Vec<Entry>) -> oneshot::Receiver<Result<(), String>> {
    let (done, outcome) = answer();
    store.enqueue(entries, done).await.unwrap();
    outcome
}

// --- crash points

/// What a log should hold.
#[derive(Debug, Clone, PartialEq, Default)]
struct Model {
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
}

enum Step {
    Append(Vec<Entry>),
    Truncate(u64),
    Purge(u64),
    Vote(Vote),
}

impl Step {
    fn apply(&self, model: &mut Model) {
        match self {
            Self::Append(entries) => {
                model.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
            }
            Self::Truncate(from) => model.entries.retain(|index, _| index < from),
            Self::Purge(upto) => {
                model.purged = Some(model.entries[upto].log_id);
                model.entries.retain(|index, _| index > upto);
            }
            Self::Vote(vote) => model.vote = Some(*vote),
        }
    }

    async fn run(&self, store: &mut LogStore) -> Result<(), StorageError> {
        match self {
            Self::Append(entries) => store.blocking_append(entries.clone()).await,
            Self::Truncate(from) => store.truncate(log_id(1, 1, *from)).await,
            Self::Purge(upto) => store.purge(log_id(1, 1, *upto)).await,
            Self::Vote(vote) => store.save_vote(vote).await,
        }
    }
}

fn story() -> Vec<Step> {
    vec![
        Step::Vote(Vote::new(1, 1)),
        Step::Append(entries(1, 0..1, 10)),
        Step::Append(entries(1, 1..4, 512)),
        Step::Vote(Vote::new_committed(1, 1)),
        Step::Append(entries(1, 4..40, 512)),
        Step::Vote(Vote::new(2, 1)),
        Step::Truncate(30),
        Step::Append(entries(2, 30..50, 512)),
        Step::Purge(10),
        Step::Append(entries(2, 50..60, 200_000)),
        Step::Append(entries(2, 60..61, 0)),
        Step::Vote(Vote::new(3, 1)),
    ]
}

async fn contents(store: &mut LogStore) -> Model {
    let state = store.get_log_state().await.unwrap();
    let found = store.try_get_log_entries(..).await.unwrap();
    assert_eq!(found.last().map(|entry| entry.log_id).or(state.last_purged_log_id), state.last_log_id);
    Model {
        purged: state.last_purged_log_id,
        entries: found.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
        vote: store.read_vote().await.unwrap(),
    }
}

#[tokio::test]
async fn every_acknowledged_change_survives_a_crash_at_any_operation() {
    let formatted = formatted();
    let (mut crashes, mut mid_story) = (0, 0);
    for effect in [Effect::Kept, Effect::Lost] {
        for after in 0.. {
            let disk = Disk::holding(formatted.clone());
            disk.die_after(after, effect);
            let (mut acknowledged, mut in_flight) = (Model::default(), None);
            if let Ok(mut store) = start(&disk) {
                for step in story() {
                    let mut next = acknowledged.clone();
                    step.apply(&mut next);
                    match step.run(&mut store).await {
                        Ok(()) => acknowledged = next,
                        Err(_) => {
                            assert!(store.failed().is_some(), "a failed write closes the store");
                            in_flight = Some(next);
                            mid_story += 1;
                            break;
                        }
                    }
                }
            }
            if !disk.has_died() {
                assert!(in_flight.is_none());
                break;
            }
            crashes += 1;
            let survivals = [Survives::All, Survives::OnlySynced];
            for survives in survivals.into_iter().chain((1..=4).map(Survives::Some)) {
                let at = format!("operation {after}, {effect:?}, {survives:?}");
                let rest = Disk::holding(disk.image(survives));
                let mut store = start(&rest).unwrap_or_else(|error| panic!("{at}: {error:?}"));
                let found = contents(&mut store).await;
                let whole = found == acknowledged || Some(&found) == in_flight.as_ref();
                assert!(
                    whole,
                    "{at}: {:?} acknowledged, found {:?}",
                    acknowledged.entries.keys(),
                    found.entries.keys()
                );

                // and the log goes on
                let next = found.entries.keys().next_back().map_or(0, |last| last + 1);
                store.blocking_append(entries(4, next..next + 2, 100)).await.unwrap();
                assert_eq!(contents(&mut store).await.entries.len(), found.entries.len() + 2, "{at}");
            }
        }
    }
    assert!(
        crashes > 100 && mid_story > 80,
        "the story must be long enough: {crashes} crashes, {mid_story} in it"
    );
}

// --- when an answer is given

#[tokio::test]
async fn the_callback_fires_only_after_the_sync() {
    let (disk, store) = on_new_disk().await;
    let held = disk.hold_syncs();
    let mut outcome = queue(&store, entries(1, 0..3, 100)).await;

    // readable at once, by readers too
    let mut reader = store.reader();
    assert_eq!(indexes(&reader.try_get_log_entries(0..3).await.unwrap()), [0, 1, 2]);
    // a crash now may lose the entries, so nobody may have been told
    let crashed = Disk::holding(disk.image(Survives::OnlySynced));
    assert!(contents(&mut start(&crashed).unwrap()).await.entries.is_empty());
    assert!(outcome.try_recv().is_err(), "answered before the sync");

    drop(held);
    assert_eq!(outcome.await.unwrap(), Ok(()));
    let crashed = Disk::holding(disk.image(Survives::OnlySynced));
    assert_eq!(contents(&mut start(&crashed).unwrap()).await.entries.len(), 3);
}

/// Whether an append is acknowledged while no sync completes, and whether it is durable then and after.
async fn acknowledged_ahead(me: Option<RaftNodeId>, vote: Vote, term: u64) -> bool {
    let disk = Disk::holding(formatted());
    let mut store = start_with(&disk, LogStoreOptions { leads_ahead: me, ..options() }).unwrap();
    store.save_vote(&vote).await.unwrap();
    let reader = store.reader();
    let held = disk.hold_syncs();
    let mut appended = Box::pin(store.blocking_append(entries(term, 0..3, 100)));
    let ahead = tokio::time::timeout(Duration::from_millis(100), &mut appended).await.is_ok();
    let early = tokio::time::timeout(Duration::from_millis(50), reader.durable_upto(2)).await;
    assert!(early.is_err(), "durable before the sync");
    drop(held);
    reader.durable_upto(2).await.unwrap();
    drop(appended);
    drop(store);
    let crashed = Disk::holding(disk.image(Survives::OnlySynced));
    assert_eq!(contents(&mut start(&crashed).unwrap()).await.entries.len(), 3);
    ahead
}

#[tokio::test]
async fn only_a_leaders_own_entries_are_acknowledged_ahead() {
    let elected = Vote::new_committed(1, 1);
    assert!(acknowledged_ahead(Some(1), elected, 1).await);
    assert!(!acknowledged_ahead(None, elected, 1).await, "nobody holds back the peers' answers");
    assert!(!acknowledged_ahead(Some(2), elected, 1).await, "another node leads");
    assert!(!acknowledged_ahead(Some(1), Vote::new(1, 1), 1).await, "a candidate only");
    assert!(!acknowledged_ahead(Some(1), Vote::new_committed(2, 1), 1).await, "an earlier term's entries");
}

#[tokio::test]
async fn nothing_becomes_durable_once_a_write_failed() {
    let (disk, store) = on_new_disk().await;
    disk.fail_once(true, Effect::Lost);
    let outcome = queue(&store, entries(1, 0..1, 100)).await;
    assert!(outcome.await.unwrap().is_err());
    assert!(matches!(store.reader().durable_upto(0).await, Err(LogStoreError::Failed { .. })));
}

#[tokio::test]
async fn queued_appends_share_a_commit() {
    let (disk, store) = on_new_disk().await;
    let held = disk.hold_syncs();
    let first = queue(&store, entries(1, 0..1, 100)).await;
    let mut rest = Vec::new();
    for index in 1..21 {
        rest.push(queue(&store, entries(1, index..index + 1, 100)).await);
    }
    drop(held);
    first.await.unwrap().unwrap();
    for outcome in rest {
        outcome.await.unwrap().unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.jobs, stats.entries), (21, 21));
    // the writer may have taken a few with the first one, never one at a time
    assert!(stats.commits <= 2, "{} commits", stats.commits);
    assert_eq!(stats.commit_buckets.iter().sum::<u64>(), stats.commits);
    assert!(stats.bytes > 21 * 100 && stats.commit_us_total >= stats.commit_us_last);
}

#[tokio::test]
async fn each_commit_is_timed() {
    let (tx, rx) = std::sync::mpsc::channel();
    let on_commit: Option<writer::OnCommit> = Some(Box::new(move |took| tx.send(took).unwrap()));
    let mut store =
        start_with(&Disk::holding(formatted()), LogStoreOptions { on_commit, ..options() }).unwrap();
    store.blocking_append(entries(1, 0..1, 10)).await.unwrap();
    store.save_vote(&Vote::new(1, 1)).await.unwrap();
    assert_eq!(rx.try_iter().count(), 2);
    assert_eq!(store.monitor().stats().commits, 2);
}

// --- failures

#[tokio::test]
async fn one_failure_ends_writing_until_a_restart() {
    for (syncs_only, effect) in
        [(false, Effect::Lost), (false, Effect::Kept), (true, Effect::Lost), (true, Effect::Kept)]
    {
        // in the first half of a segment, where nothing is made ready
        let disk = Disk::default();
        initialise(Arc::new(disk.clone()), 1 << 16).unwrap();
        let mut store = start(&disk).unwrap();
        let mut monitor = store.monitor();
        store.save_vote(&Vote::new(1, 1)).await.unwrap();
        store.blocking_append(entries(1, 0..5, 512)).await.unwrap();
        assert_eq!(monitor.failed(), None);

        disk.fail_once(syncs_only, effect);
        let error = store.blocking_append(entries(1, 5..6, 512)).await.unwrap_err();
        assert!(error.to_string().contains("os error 28"), "{error}");
        let reason = monitor.wait_failed().await.unwrap();
        assert!(reason.contains("os error 28"), "{reason}");
        assert_eq!(store.failed(), Some(reason.clone()));

        // the disk works again, yet nothing is written
        for refused in [
            store.blocking_append(entries(1, 6..7, 10)).await,
            store.save_vote(&Vote::new(2, 1)).await,
            store.truncate(log_id(1, 1, 4)).await,
            store.purge(log_id(1, 1, 0)).await,
        ] {
            assert!(refused.unwrap_err().to_string().contains("closed for writing"));
        }
        assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(1, 1)), "a refused vote is not reported");
        assert_eq!(indexes(&store.try_get_log_entries(0..5).await.unwrap()), [0, 1, 2, 3, 4]);
        drop(store);

        let rest = Disk::holding(disk.image(Survives::OnlySynced));
        let mut store = start(&rest).unwrap();
        let found = contents(&mut store).await;
        assert!(found.entries.len() >= 5 && found.vote == Some(Vote::new(1, 1)));
        let next = found.entries.len() as u64;
        store.blocking_append(entries(1, next..next + 1, 10)).await.unwrap();
        assert_eq!(store.failed(), None);
    }
}

#[tokio::test]
async fn everything_queued_behind_a_failure_is_told() {
    let (disk, store) = on_new_disk().await;
    let held = disk.hold_syncs();
    disk.fail_once(true, Effect::Lost);
    let mut outcomes = Vec::new();
    for index in 0..100 {
        outcomes.push(queue(&store, entries(1, index..index + 1, 10)).await);
    }
    drop(held);
    for outcome in outcomes {
        assert!(outcome.await.unwrap().unwrap_err().contains("os error 28"));
    }
}

#[tokio::test]
async fn a_closed_store_is_not_a_failed_one() {
    let (_disk, store) = on_new_disk().await;
    let mut monitor = store.monitor();
    drop(store);
    assert_eq!(monitor.wait_failed().await, None);
}

// --- what is certified stays

#[tokio::test]
async fn what_is_certified_is_never_truncated() {
    let (disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..10, 10)).await.unwrap();
    store.floor().clone().raise(6);

    for from in 0..=6 {
        match store.truncate_from(from).await {
            Err(LogStoreError::CertifiedTruncation { asked, certified: 6 }) => assert_eq!(asked, from),
            other => panic!("truncation from {from}: {other:?}"),
        }
    }
    let error = store.truncate(log_id(1, 1, 6)).await.unwrap_err();
    assert!(
        error.to_string().contains("refused to truncate the log from 6: it is certified up to 6"),
        "{error}"
    );
    assert_eq!(contents(&mut store).await.entries.len(), 10, "nothing was touched");
    assert_eq!(store.failed(), None, "a refusal is no disk failure");

    // its twin, one above, passes and is durable
    store.truncate(log_id(1, 1, 7)).await.unwrap();
    drop(store);
    let mut store = start(&disk).unwrap();
    assert_eq!(contents(&mut store).await.entries.len(), 7);
}

#[tokio::test]
async fn a_certified_entry_is_never_overwritten() {
    let (_disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..10, 10)).await.unwrap();
    store.floor().raise(9);
    let error = store.blocking_append(entries(2, 9..10, 10)).await.unwrap_err();
    assert!(matches!(
        error.into_defensive().unwrap().violation,
        Violation::LogsNonConsecutive { prev: Some(LogId { index: 9, .. }), next: LogId { index: 9, .. } }
    ));
    assert_eq!(store.try_get_log_entries(9..10).await.unwrap(), entries(1, 9..10, 10));
}

#[test]
fn the_floor_only_rises() {
    let floor = CertifiedFloor::new();
    assert_eq!(floor.certified(), None);
    assert!(floor.allow_truncation(0).is_ok());
    floor.raise(0);
    assert_eq!(floor.certified(), Some(0));
    assert!(floor.allow_truncation(0).is_err());
    floor.raise(8);
    floor.clone().raise(3);
    assert_eq!(floor.certified(), Some(8));
    floor.raise(u64::MAX);
    assert!(floor.allow_truncation(u64::MAX - 1).is_err());
}

// --- order and bounds

#[tokio::test]
async fn an_append_with_a_hole_is_refused_whole() {
    let (_disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..2, 10)).await.unwrap();
    let holed = vec![entry(1, 2, 10), entry(1, 4, 10)];
    let error = store.blocking_append(holed).await.unwrap_err().into_defensive().unwrap();
    assert!(matches!(error.violation, Violation::LogsNonConsecutive { .. }));
    assert_eq!(contents(&mut store).await.entries.len(), 2);
}

/// What it sent ahead of its disk may stand at its peers under ids that a resumed lead would give away again.
#[tokio::test]
async fn a_leader_that_sends_ahead_does_not_lead_on_after_a_restart() {
    let (disk, mut store) = on_new_disk().await;
    let elected = Vote::new_committed(5, 1);
    store.save_vote(&elected).await.unwrap();
    drop(store);
    for (me, vote) in [(None, elected), (Some(2), elected), (Some(1), Vote::new(5, 1))] {
        let mut store = start_with(&disk, LogStoreOptions { leads_ahead: me, ..options() }).unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(vote), "{me:?}");
    }
    let mut store = start_with(&disk, LogStoreOptions { leads_ahead: Some(1), ..options() }).unwrap();
    store.save_vote(&Vote::new(6, 1)).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_holds_an_entry_up_is_noticed() {
    let disk = Disk::holding(formatted());
    let store = start_with(&disk, options()).unwrap();
    let reader = store.reader();
    assert!(!reader.is_stalled(Duration::ZERO));
    let held = disk.hold_syncs();
    let answer = queue(&store, entries(1, 0..1, 10)).await;
    assert!(reader.is_stalled(Duration::ZERO) && !reader.is_stalled(Duration::from_secs(60)));
    drop(held);
    answer.await.unwrap().unwrap();
    assert!(!reader.is_stalled(Duration::ZERO));
    reader.close_for("its tiles cannot be written");
    assert!(reader.is_stalled(Duration::from_secs(60)));
}

#[tokio::test]
async fn a_snapshot_over_a_shorter_log_of_a_later_leader_replaces_it() {
    let (disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(5, 0..11, 10)).await.unwrap();
    store.purge(log_id(3, 2, 20)).await.unwrap();
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(log_id(3, 2, 20)));
    store.blocking_append(entries(6, 21..23, 10)).await.unwrap();
    drop(store);
    let found = contents(&mut start(&disk).unwrap()).await;
    assert_eq!(found.entries.into_values().collect::<Vec<_>>(), entries(6, 21..23, 10));
}

#[tokio::test]
async fn a_vote_never_goes_back() {
    let (_disk, mut store) = on_new_disk().await;
    store.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
    for older in [Vote::new(3, 2), Vote::new(3, 1), Vote::new(2, 9)] {
        let error = store.save_vote(&older).await.unwrap_err().into_defensive().unwrap();
        assert!(matches!(error.violation, Violation::VoteNotAscending { to, .. } if to == older));
    }
    store.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
    store.save_vote(&Vote::new(4, 1)).await.unwrap();
    assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(4, 1)));
}

#[tokio::test]
async fn memory_is_bounded_and_older_entries_come_from_disk() {
    let (_disk, mut store) = on_new_disk().await;
    let count = TAIL_ENTRIES_MAX as u64 + 500;
    for start in (0..count).step_by(500) {
        store.blocking_append(entries(1, start..(start + 500).min(count), 8)).await.unwrap();
    }
    assert_eq!(store.reader.shared.state().tail.len(), TAIL_ENTRIES_MAX);
    let all = store.try_get_log_entries(..).await.unwrap();
    assert_eq!(indexes(&all), (0..count).collect::<Vec<_>>());
    // across the border, and on either side of it
    for range in [490..510, 3..4, 499..500, 500..501, count - 1..count + 5] {
        let want: Vec<_> = range.clone().filter(|index| *index < count).collect();
        assert_eq!(indexes(&store.try_get_log_entries(range).await.unwrap()), want);
    }

    // big entries: bytes bind before numbers do
    for index in count..count + 6 {
        store.blocking_append(entries(1, index..index + 1, Batch::BYTES_MAX)).await.unwrap();
    }
    assert!(store.reader.shared.state().tail_bytes <= TAIL_BYTES_MAX);
    // truncation below the tail, then on
    store.truncate(log_id(1, 1, 100)).await.unwrap();
    store.blocking_append(entries(2, 100..103, 8)).await.unwrap();
    assert_eq!(store.try_get_log_entries(98..200).await.unwrap().len(), 5);
    store.purge(log_id(1, 1, 98)).await.unwrap();
    assert_eq!(indexes(&store.try_get_log_entries(..).await.unwrap()), [99, 100, 101, 102]);
    let state = store.reader.shared.state();
    assert_eq!(state.tail_bytes, state.tail.iter().map(weight).sum::<usize>());
}

#[tokio::test]
async fn a_replication_read_is_bounded_but_never_empty() {
    let (disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..10, 1 << 20)).await.unwrap();
    store.blocking_append(entries(1, 10..11, Batch::BYTES_MAX)).await.unwrap();
    store.blocking_append(entries(1, 11..13, 10)).await.unwrap();
    for from_disk in [false, true] {
        if from_disk {
            drop(store);
            store = start(&disk).unwrap();
        }
        assert_eq!(indexes(&store.limited_get_log_entries(0, 13).await.unwrap()), [0, 1, 2]);
        assert_eq!(indexes(&store.limited_get_log_entries(10, 13).await.unwrap()), [10]);
        assert_eq!(indexes(&store.limited_get_log_entries(11, 13).await.unwrap()), [11, 12]);
        assert_eq!(store.try_get_log_entries(0..13).await.unwrap().len(), 13);
    }
}

#[tokio::test]
async fn a_purge_beyond_the_end_moves_the_log() {
    let (disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..5, 10)).await.unwrap();
    store.purge(log_id(3, 2, 20)).await.unwrap();
    // an older purge that comes late changes nothing
    store.purge(log_id(1, 1, 3)).await.unwrap();
    for _ in 0..2 {
        let state = store.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(3, 2, 20)));
        assert_eq!(state.last_log_id, Some(log_id(3, 2, 20)));
        assert!(store.try_get_log_entries(..).await.unwrap().is_empty());
        drop(store);
        store = start(&disk).unwrap();
    }
    store.blocking_append(entries(3, 21..23, 10)).await.unwrap();
    drop(store);
    assert_eq!(contents(&mut start(&disk).unwrap()).await.entries.len(), 2);
}

#[tokio::test]
async fn a_snapshot_of_another_history_replaces_what_follows_it() {
    let (disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..10, 10)).await.unwrap();
    // certified entries beyond the snapshot contradict it
    store.floor().raise(6);
    match store.purge_upto(log_id(2, 2, 5)).await {
        Err(LogStoreError::CertifiedTruncation { asked: 6, certified: 6 }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(contents(&mut store).await.entries.len(), 10);
    // the twin that covers them passes
    store.purge(log_id(2, 2, 6)).await.unwrap();
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 2, 6)));
    store.blocking_append(entries(2, 7..9, 10)).await.unwrap();
    drop(store);
    let found = contents(&mut start(&disk).unwrap()).await;
    assert_eq!(found.entries.into_values().collect::<Vec<_>>(), entries(2, 7..9, 10));
}

#[tokio::test]
async fn readers_never_see_a_hole_while_the_log_changes() {
    let (_disk, mut store) = on_new_disk().await;
    store.blocking_append(entries(1, 0..5000, 8)).await.unwrap();
    let mut reader = store.reader();
    let reading = tokio::spawn(async move {
        for _ in 0..100 {
            let seen = reader.try_get_log_entries(300..9000).await.unwrap();
            assert!(seen.windows(2).all(|pair| {
                pair[0].log_id.index + 1 == pair[1].log_id.index
                    && pair[0].log_id.leader_id <= pair[1].log_id.leader_id
            }));
        }
    });
    for term in 2..20 {
        store.truncate(log_id(1, 1, 400)).await.unwrap();
        store.blocking_append(entries(term, 400..5000, 8)).await.unwrap();
    }
    reading.await.unwrap();
}

// --- files

#[tokio::test]
async fn a_restart_finds_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raft");
    LogStore::create(&path).unwrap();
    let mut store = open(&path).unwrap();
    store.save_vote(&Vote::new(5, 3)).await.unwrap();
    store.blocking_append(entries(5, 0..10, 512)).await.unwrap();
    store.purge(log_id(5, 1, 2)).await.unwrap();
    store.save_committed(Some(log_id(5, 1, 7))).await.unwrap();
    let before = contents(&mut store).await;
    drop(store);

    let mut store = open(&path).unwrap();
    assert_eq!(contents(&mut store).await, before);
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(5, 1, 7)), "kept by a clean end");
    let mode = |path: &Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
    };
    assert_eq!(mode(&path), 0o700);
    let files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|item| item.unwrap().path()).collect();
    assert!(!files.is_empty() && files.iter().all(|file| mode(file) == 0o600), "{files:?}");
}

#[test]
fn a_log_is_never_made_by_opening_nor_replaced_by_creating() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raft");
    assert!(matches!(open(&path), Err(LogStoreError::Missing { .. })));
    assert!(!path.exists());
    // what an interrupted creation left is no obstacle
    std::fs::create_dir(path.with_extension("creating")).unwrap();
    std::fs::write(path.with_extension("creating").join(segment::DRAFT), b"half").unwrap();
    LogStore::create(&path).unwrap();
    assert!(matches!(LogStore::create(&path), Err(LogStoreError::Exists { .. })));
    drop(open(&path).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // an emptied folder, or a file of an earlier format, is no log either
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    assert!(matches!(open(&other), Err(LogStoreError::UnknownFormat { got: None })));
    std::fs::remove_dir(&other).unwrap();
    std::fs::write(&other, b"redb").unwrap();
    assert!(matches!(open(&other), Err(LogStoreError::UnknownFormat { got: None })));
}

#[test]
fn a_log_in_use_is_refused_to_a_second_opener() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raft");
    LogStore::create(&path).unwrap();
    let first = open(&path).unwrap();
    assert!(matches!(open(&path), Err(LogStoreError::InUse { .. })));
    // a reader holds it too
    let reader = first.reader();
    drop(first);
    assert!(matches!(open(&path), Err(LogStoreError::InUse { .. })));
    drop(reader);
    open(&path).unwrap();
}
