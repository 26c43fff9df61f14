//! A disk that fails on demand and then shows what a crash would have left of it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What happens to the operation that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It fails, but its effect is there.
    Kept,
    /// It fails and does nothing.
    Lost,
}

/// Which unsynced writes reached the platter before the crash.
#[derive(Debug, Clone, Copy)]
pub(super) enum Survives {
    All,
    OnlySynced,
    /// Some, picked by this seed: a disk may write in any order before a sync.
    Some(u64),
}

#[derive(Debug, Clone)]
enum Write {
    Data(usize, Vec<u8>),
    Len(usize),
}

impl Write {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Len(len) => image.resize(*len, 0),
            Self::Data(at, data) => {
                image.resize(image.len().max(at + data.len()), 0);
                image[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    /// Counts down operations; syncs only if `syncs_only`.
    left: u64,
    syncs_only: bool,
    effect: Effect,
    /// Whether all later operations fail too.
    forever: bool,
}

#[derive(Default)]
struct Inner {
    written: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Write>,
    fault: Option<Fault>,
    dead: bool,
    syncs_held: bool,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<(Mutex<Inner>, Condvar)>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    pub(super) fn holding(image: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.inner().synced = image.clone();
        disk.inner().written = image;
        disk
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap()
    }

    /// Fails the operation after `after` others, and all that follow.
    pub(super) fn die_after(&self, after: u64, effect: Effect) {
        self.inner().fault = Some(Fault { left: after, syncs_only: false, effect, forever: true });
    }

    /// Fails one operation, the next or the next sync; the disk works again afterwards.
    pub(super) fn fail_once(&self, syncs_only: bool, effect: Effect) {
        self.inner().fault = Some(Fault { left: 0, syncs_only, effect, forever: false });
    }

    pub(super) fn has_died(&self) -> bool {
        self.inner().dead
    }

    /// Makes syncs wait until the guard is dropped. Declare it after the store: a store's drop waits for syncs.
    pub(super) fn hold_syncs(&self) -> HeldSyncs {
        self.inner().syncs_held = true;
        HeldSyncs(self.clone())
    }

    /// What is there after a crash at this moment.
    pub(super) fn image(&self, survives: Survives) -> Vec<u8> {
        let inner = self.inner();
        match survives {
            Survives::All => inner.written.clone(),
            Survives::OnlySynced => inner.synced.clone(),
            Survives::Some(seed) => {
                let mut image = inner.synced.clone();
                let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                for write in &inner.unsynced {
                    // xorshift64: any spread of bits will do
                    bits ^= bits << 13;
                    bits ^= bits >> 7;
                    bits ^= bits << 17;
                    if bits & 1 == 1 {
                        write.apply(&mut image);
                    }
                }
                image
            }
        }
    }

    /// Runs one operation under the planned fault. `None` is a sync.
    fn operate(&self, write: Option<Write>) -> io::Result<()> {
        let mut inner = self.inner();
        while write.is_none() && inner.syncs_held {
            inner = self.0.1.wait(inner).unwrap();
        }
        if inner.dead {
            return Err(io::Error::from_raw_os_error(5));
        }
        let mut failing = None;
        if let Some(fault) = inner.fault.as_mut()
            && (write.is_none() || !fault.syncs_only)
        {
            match fault.left.checked_sub(1) {
                Some(left) => fault.left = left,
                None => failing = inner.fault.take(),
            }
        }
        if failing.is_none_or(|fault| fault.effect == Effect::Kept) {
            match write {
                Some(write) => {
                    write.apply(&mut inner.written);
                    inner.unsynced.push(write);
                }
                None => {
                    inner.synced = inner.written.clone();
                    inner.unsynced.clear();
                }
            }
        }
        match failing {
            None => Ok(()),
            Some(fault) => {
                inner.dead = fault.forever;
                // ENOSPC
                Err(io::Error::from_raw_os_error(28))
            }
        }
    }
}

/// Syncs wait while this lives.
pub(super) struct HeldSyncs(Disk);

impl Drop for HeldSyncs {
    fn drop(&mut self) {
        self.0.inner().syncs_held = false;
        self.0.0.1.notify_all();
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().written.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let inner = self.inner();
        let from = inner.written.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Some(Write::Len(len as usize)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(Some(Write::Data(offset as usize, data.to_vec())))
    }
}
