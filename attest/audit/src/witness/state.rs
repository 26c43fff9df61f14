//! What a witness remembers: for each log, the checkpoint it cosigned last, as a note with its own cosignature, in one file.
//!
//! ```text
//! DIR/logs/ID/cosigned     the newest one (ID is the hex SHA-256 of the origin); or the origin alone: nothing was cosigned yet
//! DIR/logs/ID/forks/…      pairs of checkpoints that prove a log's misbehaviour: `cosigned`, and the `request` that does not fit
//! DIR/logs/ID/suspected/…  pairs that may
//! ```
//! A log's file is made by an explicit command, so that a lost file is never taken for a new log. It is replaced durably before a
//! cosignature leaves. Read from the disk each time: after a write that failed, what counts is what is there.
use super::disk::Disk;
use quorate_core::tlog::note::NOTE_BYTES_MAX;
use quorate_core::tlog::{Checkpoint, Hash, Note, Origin, TreeSize, VerifierKey, sha256};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Forks kept of one log: the first ones prove it, more prove nothing else.
const FORKS_MAX: usize = 100;
const NEVER: &str = "nothing was cosigned yet\n";

/// A witness's folder of logs, held by one process.
pub struct Store {
    dir: PathBuf,
    disk: Disk,
    _lock: File,
}

/// The checkpoint cosigned last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigned {
    /// With the log's signatures and the witness's.
    pub note: Note,
    /// Its text.
    pub checkpoint: Checkpoint,
    /// When, in POSIX seconds.
    pub time_s: u64,
}

/// Why the memory is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// Somebody else.
    #[error("another process holds {}", .0.display())]
    Locked(PathBuf),
    /// A configured log has no memory.
    #[error("there is no memory of the log {0}")]
    Unknown(Origin),
    /// It is no longer what was written.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
    /// The log is there already.
    #[error("the log {0} is known already")]
    Exists(Origin),
}

fn disk_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Disk { action, path, source }
}

/// A log's name as a file name and in URLs.
pub fn log_id(origin: &Origin) -> Hash {
    sha256(origin.as_str().as_bytes())
}

impl Store {
    /// Takes the folder for this process alone.
    pub fn open(dir: &Path, disk: Disk) -> Result<Self, StateError> {
        let path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(disk_error("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.into(), disk, _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(StateError::Locked(dir.into())),
            Err(std::fs::TryLockError::Error(e)) => Err(disk_error("lock", &path)(e)),
        }
    }

    /// Begins the memory of a new log.
    pub fn begin(&self, origin: &Origin) -> Result<(), StateError> {
        let path = self.path(origin);
        if path.exists() {
            return Err(StateError::Exists(origin.clone()));
        }
        let folder = self.folder(origin);
        std::fs::create_dir_all(&folder).map_err(disk_error("create", &folder))?;
        self.disk.replace(&path, format!("{origin}\n{NEVER}").as_bytes()).map_err(disk_error("write", &path))
    }

    /// What was cosigned last; `None` if nothing ever was. The own cosignature must verify: a damaged file is an error.
    pub fn last(&self, origin: &Origin, own: &VerifierKey) -> Result<Option<Cosigned>, StateError> {
        let path = self.path(origin);
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StateError::Unknown(origin.clone()),
            _ => disk_error("read", &path)(e),
        })?;
        let read = file.take(NOTE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(disk_error("read", &path))?;
        if bytes == format!("{origin}\n{NEVER}").as_bytes() {
            return Ok(None);
        }
        let damaged = || StateError::Damaged(path.clone());
        let note = Note::parse(&bytes).map_err(|_| damaged())?;
        note.verified_by(std::slice::from_ref(own)).map_err(|_| damaged())?;
        let (checkpoint, _) = Checkpoint::parse_with_extensions(note.text()).map_err(|_| damaged())?;
        let line = note.signatures().iter().find(|line| own.is_claimed_by(line)).ok_or_else(damaged)?;
        let own = quorate_core::tlog::Cosignature::from_bytes(&line.bytes).map_err(|_| damaged())?;
        if checkpoint.origin != *origin {
            return Err(damaged());
        }
        Ok(Some(Cosigned { note, checkpoint, time_s: own.time_s }))
    }

    /// Remembers a cosigned checkpoint, durably.
    pub fn remember(&self, origin: &Origin, note: &Note) -> Result<(), StateError> {
        let path = self.path(origin);
        self.disk.replace(&path, note.to_string().as_bytes()).map_err(disk_error("write", &path))
    }

    /// Keeps what proves that a log misbehaved, or may: the checkpoint cosigned before, and the request that does not fit it.
    /// Each pair once; `None` when there are enough.
    pub fn keep_fork(
        &self,
        held: &Cosigned,
        offered: &Checkpoint,
        request: &[u8],
        proven: bool,
    ) -> Result<Option<PathBuf>, StateError> {
        let folder = self.folder(&offered.origin).join(if proven { "forks" } else { "suspected" });
        std::fs::create_dir_all(&folder).map_err(disk_error("create", &folder))?;
        let name = fork_name(held.checkpoint.size, offered);
        let path = folder.join(&name);
        let kept = std::fs::read_dir(&folder).map_err(disk_error("list", &folder))?.count();
        if path.exists() || kept >= FORKS_MAX {
            return Ok(path.exists().then_some(path));
        }
        let draft = folder.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&draft)?;
            for (name, bytes) in [("cosigned", held.note.to_string().as_bytes()), ("request", request)] {
                let mut file = File::create(draft.join(name))?;
                file.write_all(bytes)?;
                file.sync_all()?;
            }
            std::fs::rename(&draft, &path)?;
            File::open(&folder)?.sync_all()
        };
        write().map_err(disk_error("write", &path))?;
        Ok(Some(path))
    }

    fn folder(&self, origin: &Origin) -> PathBuf {
        self.dir.join("logs").join(log_id(origin).to_string())
    }
    fn path(&self, origin: &Origin) -> PathBuf {
        self.folder(origin).join("cosigned")
    }
}

fn fork_name(held: TreeSize, offered: &Checkpoint) -> String {
    format!("{held}-{}-{}", offered.size, offered.root)
}
