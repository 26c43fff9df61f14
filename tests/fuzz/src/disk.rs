//! What a node reads back from its own disk after whatever happened to it there.
use crate::input::Input;
use crate::log::{canonical, with_known};
use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader as _};
use quorate_core::crypto::encode;
use quorated::cosigner::{AnchorCertificate, Lock};
use quorated::raft::types::{Entry, LogId, Vote};
use quorated::raft::{Batch, Blob, CertifiedFloor, Folder, LogStore, LogStoreOptions};
use quorated::tilestore::StoreTail;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Files = BTreeMap<String, Arc<Mutex<Vec<u8>>>>;

/// A folder in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Files>>);

struct Open(Arc<Mutex<Vec<u8>>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// The same bytes in files of its own.
    fn copy(&self) -> Self {
        let files = locked(&self.0);
        let copies =
            files.iter().map(|(name, file)| (name.clone(), Arc::new(Mutex::new(locked(file).clone()))));
        Self(Arc::new(Mutex::new(copies.collect())))
    }
}

impl Folder for Memory {
    fn path(&self) -> PathBuf {
        PathBuf::from("/memory")
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(locked(&self.0).keys().cloned().collect())
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let file = locked(&self.0).get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open(file)))
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let file = Arc::<Mutex<Vec<u8>>>::default();
        match locked(&self.0).insert(name.to_owned(), Arc::clone(&file)) {
            None => Ok(Box::new(Open(file))),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = locked(&self.0);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        locked(&self.0).remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Blob for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.0).len() as u64)
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = locked(&self.0);
        let from = usize::try_from(offset).ok().and_then(|at| file.get(at..at.checked_add(out.len())?));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut file = locked(&self.0);
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at + data.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file.get_mut(at..end).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(data);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Short segments, so that the log has several.
const SEGMENT: u64 = 4096;
/// Entries of the log that is damaged.
const ENTRIES: u64 = 24;

thread_local! {
    static WRITTEN: Memory = written();
}

fn options() -> LogStoreOptions {
    LogStoreOptions { segment_bytes: SEGMENT, ..LogStoreOptions::default() }
}

fn entry(index: u64) -> Entry {
    let payload = match Batch::new(vec![index as u8; 100 + 20 * index as usize]) {
        Ok(batch) if index % 5 != 4 => EntryPayload::Normal(batch),
        _ => EntryPayload::Blank,
    };
    Entry { log_id: LogId::new(CommittedLeaderId::new(1 + index / 10, 1), index), payload }
}

fn runtime() -> tokio::runtime::Runtime {
    let made = tokio::runtime::Builder::new_current_thread().build();
    made.unwrap_or_else(|error| panic!("no runtime: {error}"))
}

/// Runs something on the log of a folder while its writer runs beside it.
fn on_log<T>(folder: &Memory, run: impl AsyncFnOnce(&mut LogStore) -> T) -> Option<T> {
    runtime().block_on(async {
        let folder: Arc<dyn Folder> = Arc::new(folder.clone());
        let opened = LogStore::open_in(folder, CertifiedFloor::new(), options(), || std::future::ready(()));
        let (mut store, writing) = opened.ok()?;
        tokio::select! {
            biased;
            done = run(&mut store) => Some(done),
            () = writing => None,
        }
    })
}

fn written() -> Memory {
    let folder = Memory::default();
    let made = LogStore::create_in(Arc::new(folder.clone()), SEGMENT);
    assert!(made.is_ok(), "a new log");
    let done = on_log(&folder, async |store| {
        for first in (0..ENTRIES).step_by(3) {
            assert!(store.blocking_append((first..first + 3).map(entry).collect::<Vec<_>>()).await.is_ok());
        }
        assert!(store.save_vote(&Vote::new_committed(3, 1)).await.is_ok());
        assert!(store.save_committed(Some(entry(20).log_id)).await.is_ok());
    });
    assert!(done.is_some(), "the log was written");
    folder
}

/// Input: edits of a log's files, each of a file (1), a place (2), what to do (1) and bytes. Whatever they are, an entry that is
/// read is the one that was written there.
pub fn wal(data: &[u8]) -> bool {
    let folder = WRITTEN.with(Memory::copy);
    let mut input = Input(data);
    let names = folder.names().unwrap_or_default();
    let mut edits = 0;
    while !input.0.is_empty() && edits < 16 {
        edits += 1;
        let at = usize::from(input.byte()) % names.len().max(1);
        let Some(file) = names.get(at).and_then(|name| locked(&folder.0).get(name).cloned()) else { break };
        let mut file = locked(&file);
        let place = usize::from(input.u16()) % (file.len() + 1);
        match input.byte() % 6 {
            0 => {
                let mask = input.byte();
                if let Some(byte) = file.get_mut(place) {
                    *byte ^= mask;
                }
            }
            1 => file.truncate(place),
            2 => {
                let bytes = input.piece();
                let end = file.len().min(place + bytes.len());
                if let Some(to) = file.get_mut(place..end) {
                    to.copy_from_slice(bytes.get(..to.len()).unwrap_or_default());
                }
            }
            3 => {
                // a sector of another place, as by a lost or misdirected write
                let from = usize::from(input.u16()) % (file.len() + 1);
                let length = 8 * usize::from(input.byte());
                let moved = file.get(from..file.len().min(from + length)).unwrap_or_default().to_vec();
                let end = file.len().min(place + moved.len());
                if let Some(to) = file.get_mut(place..end) {
                    to.copy_from_slice(moved.get(..to.len()).unwrap_or_default());
                }
            }
            4 => {
                let length = 8 * usize::from(input.byte());
                let end = file.len().min(place + length);
                if let Some(to) = file.get_mut(place..end) {
                    to.fill(0);
                }
            }
            _ => {
                let more = input.piece().to_vec();
                file.extend(more);
            }
        }
    }
    let opened = on_log(&folder, async |store| {
        let Ok(state) = store.get_log_state().await else { return };
        let vote = store.read_vote().await.ok().flatten();
        assert!(vote.is_none_or(|vote| vote == Vote::new_committed(3, 1)), "a vote that was never cast");
        let first = state.last_purged_log_id.map_or(0, |id| id.index + 1);
        let end = state.last_log_id.map_or(0, |id| id.index + 1);
        assert!(end <= ENTRIES);
        for index in first..end {
            let Ok(read) = store.try_get_log_entries(index..=index).await else { continue };
            for read in read {
                let wrote = entry(read.log_id.index);
                assert!(read.log_id == wrote.log_id, "another entry's place");
                match (&read.payload, &wrote.payload) {
                    (EntryPayload::Normal(read), EntryPayload::Normal(wrote)) => assert!(read == wrote),
                    (EntryPayload::Blank, EntryPayload::Blank) => {}
                    _ => panic!("another kind of entry"),
                }
            }
        }
        // what opened takes more
        let next =
            Entry { log_id: LogId::new(CommittedLeaderId::new(9, 1), end), payload: EntryPayload::Blank };
        drop(store.blocking_append([next]).await);
    });
    opened.is_some() || edits > 0
}

/// Input: a choice (1), then a snapshot's content, a sign lock, a certificate, the edge of a tile store, or the three parts of
/// a snapshot with their lengths.
pub fn snapshots(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    let cluster = with_known(|k| k.mesh.fleet.cluster());
    match choice % 5 {
        0 => {
            let opened = quorated::snapshots::open(data, cluster);
            let verified = quorated::snapshots::verify(data, cluster);
            assert!(verified.is_err() || opened.is_ok());
            opened.is_ok()
        }
        1 => {
            let Some(lock) = Lock::from_bytes(data) else { return false };
            assert_eq!(Lock::from_bytes(&encode(&lock)), Some(lock));
            true
        }
        2 => canonical::<AnchorCertificate>(data).is_some(),
        3 => {
            // Rows without a tile may be written or not.
            let Ok(tail) = borsh::from_slice::<StoreTail>(data) else { return false };
            assert!(canonical::<StoreTail>(&encode(&tail)).is_some());
            assert_eq!(tail.frontier().size(), tail.size());
            assert_eq!(tail.frontier().root(), tail.root());
            true
        }
        _ => {
            let parts = [input.piece().to_vec(), input.piece().to_vec(), input.0.to_vec()];
            let [state, tail, proof] = parts;
            quorated::snapshots::open(&encode(&(1u8, state, tail, proof)), cluster).is_ok()
        }
    }
}

/// Real structures, as inputs of the targets here.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    with_known(|k| {
        let checkpoint = k.mesh.state().checkpoint();
        let size = checkpoint.size;
        let tail = encode(&(1u8, size, Vec::<Vec<quorate_core::crypto::Hash>>::new(), &k.mesh.log.leaves));
        let state = k.mesh.state().to_bytes();
        let content = encode(&(1u8, &state, &tail, encode(&k.receipt.0)));
        let mut all = vec![
            ("snapshots", "content".to_owned(), [&[0], &content[..]].concat()),
            (
                "snapshots",
                "lock".to_owned(),
                [&[1], &encode(&Lock { checkpoint, superseded: None })[..]].concat(),
            ),
            ("snapshots", "old-lock".to_owned(), [&[1], &encode(&checkpoint)[..]].concat()),
            ("snapshots", "tail".to_owned(), [&[3], &tail[..]].concat()),
            ("wal", "whole".to_owned(), vec![]),
            ("wal", "torn".to_owned(), vec![1, 0x0a, 0, 1]),
            ("wal", "flip".to_owned(), vec![0, 2, 8, 0, 1]),
            ("wal", "zeros".to_owned(), vec![0, 3, 0, 4, 64]),
            ("wal", "moved".to_owned(), vec![1, 2, 0, 3, 4, 0, 32, 0, 8, 0, 2, 0, 3, 9, 9, 9]),
        ];
        if let Some(certified) = k.mesh.certified.get(&size) {
            let anchor = AnchorCertificate {
                checkpoint,
                cosignatures: certified.cosignatures().to_vec(),
                log_index: 9,
                seen: k.mesh.time,
            };
            all.push(("snapshots", "anchor".to_owned(), [&[2], &encode(&anchor)[..]].concat()));
        }
        all
    })
}
