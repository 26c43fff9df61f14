//! Bundles read, checked against their hashes, decoded, and their signatures checked, by several threads, given out in order.
use crate::finding::Error;
use crate::store::{Bundle, Mirror};
use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::command::Command;
use quorate_core::crypto::{Hash, PublicKey};
use quorate_core::ids::NodeId;
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::policy::Policy;
use quorate_core::state::VerifiedAhead;
use quorate_core::tlog::{TILE_WIDTH, TreeSize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};

/// Bundles read beyond the one that is replayed: some thousand commands, fewer than [`VerifiedAhead`] remembers. A bundle has
/// 16 MiB at most, mostly some 150 KiB.
const AHEAD: u64 = 24;

/// A leaf as read; no [`Leaf`] where its bytes are none.
#[derive(Debug)]
pub(super) struct ReadLeaf {
    pub(super) bytes: Bytes,
    pub(super) leaf: Option<Leaf>,
}

pub(super) struct ReadBundle {
    pub(super) leaves: Vec<ReadLeaf>,
    /// Of its tile of level 0.
    pub(super) hashes: Vec<Hash>,
}

/// Whose signatures are good at the moment.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) cluster: Hash,
    pub(super) policy: Arc<Policy>,
    pub(super) boot: BTreeMap<NodeId, PublicKey>,
}

struct Shared {
    mirror: Mirror,
    size: TreeSize,
    keys: ArcSwap<Keys>,
    ahead: VerifiedAhead,
    /// Next bundle to read.
    next: AtomicU64,
    /// Bundles given out; workers wait until theirs is within [`AHEAD`] of it.
    given: Mutex<u64>,
    given_changed: Condvar,
    stopped: AtomicBool,
}

/// The workers, and what they have read.
pub(super) struct Reader {
    shared: Arc<Shared>,
    results: mpsc::Receiver<(u64, Result<ReadBundle, Error>)>,
    early: BTreeMap<u64, Result<ReadBundle, Error>>,
    bundles: u64,
    next: u64,
}

impl Reader {
    pub(super) fn start(
        mirror: &Mirror,
        size: TreeSize,
        keys: Keys,
        ahead: VerifiedAhead,
        (first, threads): (u64, usize),
    ) -> Self {
        let shared = Arc::new(Shared {
            mirror: mirror.clone(),
            size,
            keys: ArcSwap::from_pointee(keys),
            ahead,
            next: AtomicU64::new(first),
            given: Mutex::new(first),
            given_changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        });
        let bundles = size.0.div_ceil(TILE_WIDTH);
        let (sender, results) = mpsc::channel();
        for _ in 0..threads.max(1) {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            std::thread::spawn(move || work(&shared, bundles, &sender));
        }
        Self { shared, results, early: BTreeMap::new(), bundles, next: first }
    }

    /// From now on signatures are checked by these.
    pub(super) fn publish(&self, keys: Keys) {
        self.shared.keys.store(Arc::new(keys));
    }

    /// The next bundle; none after the last.
    pub(super) fn next(&mut self) -> Result<Option<ReadBundle>, Error> {
        if self.next >= self.bundles {
            return Ok(None);
        }
        let read = loop {
            if let Some(read) = self.early.remove(&self.next) {
                break read;
            }
            let (index, read) = self.results.recv().map_err(|_| Error::Worker)?;
            self.early.insert(index, read);
        };
        self.next += 1;
        *self.shared.given.lock().unwrap_or_else(PoisonError::into_inner) = self.next;
        self.shared.given_changed.notify_all();
        read.map(Some)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.given_changed.notify_all();
    }
}

fn work(shared: &Shared, bundles: u64, results: &mpsc::Sender<(u64, Result<ReadBundle, Error>)>) {
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= bundles || !wait_for_turn(shared, index) {
            return;
        }
        if results.send((index, read(shared, index))).is_err() {
            return;
        }
    }
}

fn wait_for_turn(shared: &Shared, index: u64) -> bool {
    let mut given = shared.given.lock().unwrap_or_else(PoisonError::into_inner);
    while index >= given.saturating_add(AHEAD) && !shared.stopped.load(Ordering::Relaxed) {
        // A stop may come between look and wait: look again in a while.
        let waited = shared.given_changed.wait_timeout(given, std::time::Duration::from_millis(100));
        given = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    !shared.stopped.load(Ordering::Relaxed)
}

fn read(shared: &Shared, index: u64) -> Result<ReadBundle, Error> {
    let bundle = shared.mirror.checked_bundle(index, shared.size)?;
    let Bundle { leaves, hashes } = bundle.ok_or(Error::Worker)?;
    let keys = shared.keys.load();
    let decode = |bytes: Bytes| {
        let leaf: Option<Leaf> = borsh::from_slice(&bytes).ok();
        if let Some(Leaf::V1 { body: LeafBody::Decided { command, .. }, .. }) = &leaf
            && matches!(command, Command::Client(_) | Command::Node(_))
        {
            keys.verify(&shared.ahead, command);
        }
        ReadLeaf { bytes, leaf }
    };
    Ok(ReadBundle { leaves: leaves.into_iter().map(decode).collect(), hashes })
}
