//! A disk that fails on demand and then shows what a crash would have left of it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::super::disk::{Blob, Folder};

/// What happens to the operation that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It fails, but its effect is there.
    Kept,
    /// It fails and does nothing.
    Lost,
}

/// What of the unsynced reached the platter before the crash.
#[derive(Debug, Clone, Copy)]
pub(super) enum Survives {
    All,
    OnlySynced,
    /// Some sectors and some names, picked by this seed: a disk may write in any order before a sync.
    Some(u64),
}

/// What a crash left, by name.
pub(super) type Image = BTreeMap<String, Vec<u8>>;

const SECTOR: usize = 512;

fn write(file: &mut Vec<u8>, at: usize, data: &[u8]) {
    file.resize(file.len().max(at + data.len()), 0);
    file[at..at + data.len()].copy_from_slice(data);
}

#[derive(Default)]
struct Content {
    written: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum Naming {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, file) => drop(names.insert(name.clone(), *file)),
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => drop(names.remove(name)),
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
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    unsynced_names: Vec<Naming>,
    fault: Option<Fault>,
    dead: bool,
    syncs_held: bool,
    /// Bytes that files may grow by in all.
    room: Option<usize>,
    renames: u64,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<(Mutex<Inner>, Condvar)>);

enum Operation<'a> {
    Name(Naming),
    SyncNames,
    Write(usize, usize, &'a [u8]),
    Sync(usize),
}

impl Disk {
    pub(super) fn holding(image: Image) -> Self {
        let disk = Self::default();
        {
            let mut inner = disk.inner();
            for (name, bytes) in image {
                let file = inner.files.len();
                inner.files.push(Content { written: bytes.clone(), synced: bytes, unsynced: Vec::new() });
                inner.names.insert(name, file);
            }
            inner.synced_names = inner.names.clone();
        }
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

    /// Lets files grow by so many bytes, then by none.
    pub(super) fn leave_room(&self, bytes: usize) {
        self.inner().room = Some(bytes);
    }

    pub(super) fn has_died(&self) -> bool {
        self.inner().dead
    }

    /// How many files were renamed since it began.
    pub(super) fn renames(&self) -> u64 {
        self.inner().renames
    }

    /// Makes syncs wait until the guard is dropped. Declare it after the store: a store's drop waits for syncs.
    pub(super) fn hold_syncs(&self) -> HeldSyncs {
        self.inner().syncs_held = true;
        HeldSyncs(self.clone())
    }

    /// What is there after a crash at this moment.
    pub(super) fn image(&self, survives: Survives) -> Image {
        let inner = self.inner();
        let mut bits = match survives {
            Survives::Some(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 0,
        };
        let mut picked = move || {
            // xorshift64: any spread of bits will do
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits & 1 == 1
        };
        let mut names = inner.synced_names.clone();
        match survives {
            Survives::All => names = inner.names.clone(),
            Survives::OnlySynced => {}
            Survives::Some(_) => {
                inner.unsynced_names.iter().filter(|_| picked()).for_each(|naming| naming.apply(&mut names));
            }
        }
        let mut content = |file: &usize| {
            let content = &inner.files[*file];
            match survives {
                Survives::All => content.written.clone(),
                Survives::OnlySynced => content.synced.clone(),
                Survives::Some(_) => {
                    let mut image = content.synced.clone();
                    for (at, data) in &content.unsynced {
                        let (mut at, mut data) = (*at, &data[..]);
                        while !data.is_empty() {
                            let (sector, rest) = data.split_at(data.len().min(SECTOR - at % SECTOR));
                            if picked() {
                                write(&mut image, at, sector);
                            }
                            (at, data) = (at + sector.len(), rest);
                        }
                    }
                    image
                }
            }
        };
        names.iter().map(|(name, file)| (name.clone(), content(file))).collect()
    }

    /// Runs one operation under the planned fault.
    fn operate(&self, operation: &Operation<'_>) -> io::Result<()> {
        let is_sync = matches!(operation, Operation::Sync(_) | Operation::SyncNames);
        let mut inner = self.inner();
        while is_sync && inner.syncs_held {
            inner = self.0.1.wait(inner).unwrap();
        }
        if inner.dead {
            return Err(io::Error::from_raw_os_error(5));
        }
        let mut failing = None;
        if let Some(fault) = inner.fault.as_mut()
            && (is_sync || !fault.syncs_only)
        {
            match fault.left.checked_sub(1) {
                Some(left) => fault.left = left,
                None => failing = inner.fault.take(),
            }
        }
        if let Operation::Write(file, at, data) = operation
            && let grows = (at + data.len()).saturating_sub(inner.files[*file].written.len())
            && let Some(room) = &mut inner.room
        {
            match room.checked_sub(grows) {
                Some(left) => *room = left,
                None => return Err(io::Error::from_raw_os_error(28)),
            }
        }
        if let (Some(Fault { effect: Effect::Lost, .. }), Operation::Sync(file)) = (failing, operation) {
            // as Linux does: the pages are clean now, readable, and no later sync writes them
            inner.files[*file].unsynced.clear();
        }
        if failing.is_none_or(|fault| fault.effect == Effect::Kept) {
            let inner = &mut *inner;
            match operation {
                Operation::Name(naming) => {
                    inner.renames += u64::from(matches!(naming, Naming::Rename(..)));
                    naming.apply(&mut inner.names);
                    inner.unsynced_names.push(naming.clone());
                }
                Operation::SyncNames => {
                    inner.synced_names = inner.names.clone();
                    inner.unsynced_names.clear();
                }
                Operation::Write(file, at, data) => {
                    let content = &mut inner.files[*file];
                    write(&mut content.written, *at, data);
                    content.unsynced.push((*at, data.to_vec()));
                }
                Operation::Sync(file) => {
                    let content = &mut inner.files[*file];
                    for (at, data) in std::mem::take(&mut content.unsynced) {
                        write(&mut content.synced, at, &data);
                    }
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

    fn file(&self, name: &str) -> io::Result<usize> {
        self.inner().names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
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

struct DiskFile {
    disk: Disk,
    file: usize,
}

impl Folder for Disk {
    fn path(&self) -> PathBuf {
        "disk".into()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        Ok(Box::new(DiskFile { disk: self.clone(), file: self.file(name)? }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        if self.file(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = {
            let mut inner = self.inner();
            inner.files.push(Content::default());
            inner.files.len() - 1
        };
        self.operate(&Operation::Name(Naming::Create(name.to_owned(), file)))?;
        Ok(Box::new(DiskFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.file(from)?;
        self.operate(&Operation::Name(Naming::Rename(from.to_owned(), to.to_owned())))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.operate(&Operation::Name(Naming::Remove(name.to_owned())))
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(&Operation::SyncNames)
    }
}

impl Blob for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.inner().files[self.file].written.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let inner = self.disk.inner();
        let from = inner.files[self.file].written.get(at..at + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.operate(&Operation::Write(self.file, offset as usize, data))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate(&Operation::Sync(self.file))
    }
}
