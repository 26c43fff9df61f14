//! Disks that keep what was synced. Raft's real log store runs on [`Disk`]; what else a node keeps are plain files in a folder
//! of its own, which the world changes as a crash would have.
use crate::rng::Rng;
use quorated::raft::{Blob, Folder};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const SECTOR: usize = 512;

/// How a crash ended a machine's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process: what was written stays.
    Process,
    /// The machine: of what was written since the last sync, some sectors stay.
    Power,
}

#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    /// What the unsynced writes replaced, oldest first.
    undo: Vec<(usize, Vec<u8>)>,
    synced_len: usize,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<u64, File>,
    names: BTreeMap<String, u64>,
    next: u64,
    /// Handles of an earlier generation belong to a process that is dead.
    generation: u64,
    commit_us: u64,
    failing: bool,
    syncs_late: bool,
}

/// A machine's disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder as the process that starts now sees it.
    pub fn folder(&self) -> Arc<dyn Folder> {
        Arc::new(Handle { disk: self.clone(), generation: self.inner().generation })
    }

    /// How long a commit takes.
    pub fn set_commit(&self, took: Duration) {
        self.inner().commit_us = took.as_micros() as u64;
    }

    /// See [`Disk::set_commit`].
    pub fn commit(&self) -> Duration {
        Duration::from_micros(self.inner().commit_us)
    }

    /// Whether writes and syncs fail from now on.
    pub fn set_failing(&self, failing: bool) {
        self.inner().failing = failing;
    }

    /// See [`Disk::set_failing`].
    pub fn is_failing(&self) -> bool {
        self.inner().failing
    }

    /// From now on syncs return at once, and do nothing until [`Disk::flush`].
    pub fn set_syncs_late(&self) {
        self.inner().syncs_late = true;
    }

    /// What was written reaches the platter.
    pub fn flush(&self) {
        for file in self.inner().files.values_mut() {
            file.undo.clear();
            file.synced_len = file.bytes.len();
        }
    }

    /// Ends all handles there are.
    pub fn crash(&self, crash: Crash, rng: &mut Rng) {
        let mut inner = self.inner();
        inner.generation += 1;
        let late = inner.syncs_late;
        for file in inner.files.values_mut() {
            let undo = std::mem::take(&mut file.undo);
            if late {
                for (at, old) in undo.into_iter().rev() {
                    file.bytes[at..at + old.len()].copy_from_slice(&old);
                }
            } else if crash == Crash::Power {
                for (at, old) in undo.into_iter().rev() {
                    for (i, sector) in old.chunks(SECTOR).enumerate() {
                        if rng.permille(500) {
                            let at = at + i * SECTOR;
                            file.bytes[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
                file.bytes.truncate(file.synced_len.max(1));
            }
        }
    }

    /// Damages one written sector; false when there is none.
    pub fn corrupt(&self, rng: &mut Rng) -> bool {
        let mut inner = self.inner();
        let written: Vec<(u64, usize)> = inner
            .files
            .iter()
            .flat_map(|(id, f)| {
                let used = f.bytes.chunks(SECTOR).enumerate().filter(|(_, s)| s.iter().any(|b| *b != 0));
                used.map(|(i, _)| (*id, i)).collect::<Vec<_>>()
            })
            .collect();
        if written.is_empty() {
            return false;
        }
        let (id, sector) = *rng.pick(&written);
        let Some(file) = inner.files.get_mut(&id) else { return false };
        let end = file.bytes.len().min((sector + 1) * SECTOR);
        for byte in &mut file.bytes[sector * SECTOR..end] {
            *byte ^= (rng.draw() as u8) | 1;
        }
        true
    }
}

struct Handle {
    disk: Disk,
    generation: u64,
}

impl Handle {
    fn live(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.inner();
        match inner.generation == self.generation {
            true => Ok(inner),
            false => Err(io::Error::other("this process is dead")),
        }
    }

    fn writing(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.live()?;
        match inner.failing {
            true => Err(io::Error::other("the disk fails")),
            false => Ok(inner),
        }
    }
}

impl Folder for Handle {
    fn path(&self) -> PathBuf {
        PathBuf::from("/simulated")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.live()?.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let id = *self.live()?.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open { folder: Self { disk: self.disk.clone(), generation: self.generation }, id }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let id = {
            let mut inner = self.writing()?;
            if inner.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            inner.next += 1;
            let id = inner.next;
            inner.files.insert(id, File::default());
            inner.names.insert(name.to_owned(), id);
            id
        };
        Ok(Box::new(Open { folder: Self { disk: self.disk.clone(), generation: self.generation }, id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.writing()?;
        let id = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.writing()?.names.remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.writing().map(drop)
    }
}

struct Open {
    folder: Handle,
    id: u64,
}

impl Blob for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.folder.live()?.files[&self.id].bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.folder.live()?;
        let bytes = &inner.files[&self.id].bytes;
        let from = bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.folder.writing()?;
        let file = inner.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let at = offset as usize;
        if file.bytes.len() < at + data.len() {
            file.bytes.resize(at + data.len(), 0);
        }
        let old = file.bytes[at..at + data.len()].to_vec();
        file.undo.push((at, old));
        file.bytes[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.folder.writing()?;
        if inner.syncs_late {
            return Ok(());
        }
        if let Some(file) = inner.files.get_mut(&self.id) {
            file.undo.clear();
            file.synced_len = file.bytes.len();
        }
        Ok(())
    }
}
