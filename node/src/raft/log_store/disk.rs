//! The few things the log asks of a file system, so that tests and simulations can fail and lose each of them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::LogStoreError;

/// A folder of files without subfolders.
pub trait Folder: Send + Sync {
    /// For messages.
    fn path(&self) -> PathBuf;
    /// The names in it.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn Blob>>;
    /// Makes a new, empty file; an existing one is an error.
    fn create(&self, name: &str) -> io::Result<Box<dyn Blob>>;
    /// Renames a file; whatever had the new name is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;
}

/// One file.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait Blob: Send + Sync {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Fills `out` from there.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of it there, past the end too.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the file system. The lock on it (`flock`) ends with this value.
pub(super) struct LockedFolder {
    path: PathBuf,
    folder: File,
}

impl LockedFolder {
    pub(super) fn lock(path: &Path) -> Result<Self, LogStoreError> {
        let folder = File::open(path).map_err(LogStoreError::file("open", path))?;
        match folder.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), folder }),
            Err(TryLockError::WouldBlock) => Err(LogStoreError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(LogStoreError::file("lock", path)(error)),
        }
    }
}

impl Folder for LockedFolder {
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        // a name that is no UTF-8 is none of ours
        let name = |item: io::Result<std::fs::DirEntry>| match item {
            Ok(item) => item.file_name().into_string().ok().map(Ok),
            Err(error) => Some(Err(error)),
        };
        std::fs::read_dir(&self.path)?.filter_map(name).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Box::new(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Blob>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(self.path.join(name))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}

impl Blob for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    /// `fdatasync`: times need no journal commit, a new length is written all the same.
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
