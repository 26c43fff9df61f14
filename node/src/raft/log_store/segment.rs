//! One segment file, and the hands that make the next one ready and take back the old ones.
//!
//! A segment has its full length in written zeros, durably, before its name says that it is one: an append then
//! changes no metadata, and its sync waits for no journal. An emptied segment is used again under a new name with
//! a new header; its old frames are then no frames, because each is summed with its segment's number. All this
//! happens on a thread of its own, so that the writer finds the next segment ready.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::LogStoreError;
use super::disk::{Blob, Folder};
use super::frame::{SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, Salt, segment_header};

/// A segment that is being filled with zeros.
pub(super) const DRAFT: &str = "draft";
/// An emptied segment, kept for the next one.
pub(super) const SPARE: &str = "spare";

/// Zeros written at once, each time followed by a sync and a pause unless somebody waits: the writer's own syncs share
/// the disk.
const ZEROS_BYTES: usize = 1 << 20;
const PAUSE: Duration = Duration::from_millis(5);

/// One file of the log.
pub(super) struct Segment {
    id: u64,
    path: PathBuf,
    /// Its length when it was opened; a longer frame at its head makes it longer.
    room: u64,
    blob: Box<dyn Blob>,
}

impl Segment {
    pub(super) fn name(id: u64) -> String {
        format!("{id:016x}.segment")
    }

    pub(super) fn id_in(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(".segment")?;
        let id = u64::from_str_radix(digits, 16).ok()?;
        (Self::name(id) == name).then_some(id)
    }

    fn new(folder: &dyn Folder, id: u64, blob: Box<dyn Blob>) -> Result<Self, LogStoreError> {
        let path = folder.path().join(Self::name(id));
        let room = blob.len().map_err(LogStoreError::file("measure", &path))?;
        Ok(Self { id, path, room, blob })
    }

    pub(super) fn open(folder: &dyn Folder, id: u64) -> Result<Self, LogStoreError> {
        let name = Self::name(id);
        let blob = folder.open(&name).map_err(LogStoreError::file("open", folder.path().join(&name)))?;
        Self::new(folder, id, blob)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn room(&self) -> u64 {
        self.room
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, LogStoreError> {
        let mut bytes = vec![0; length];
        self.blob.read_at(offset, &mut bytes).map_err(LogStoreError::file("read", &self.path))?;
        Ok(bytes)
    }

    pub(super) fn read_all(&self) -> Result<Vec<u8>, LogStoreError> {
        let length = self.blob.len().map_err(LogStoreError::file("measure", &self.path))?;
        match usize::try_from(length) {
            Ok(length) if length <= SEGMENT_BYTES_MAX => self.read(0, length),
            _ => {
                let (segment, offset) = (self.id, SEGMENT_BYTES_MAX as u64);
                Err(LogStoreError::Damaged { segment, offset, what: "it is longer than any" })
            }
        }
    }

    /// One write, one sync.
    pub(super) fn write_durably(&self, offset: u64, data: &[u8]) -> Result<(), LogStoreError> {
        self.blob.write_at(offset, data).map_err(LogStoreError::file("write to", &self.path))?;
        self.blob.sync().map_err(LogStoreError::file("sync", &self.path))
    }
}

/// Asks of the thread that it ends, or that it does not pause.
#[derive(Default)]
struct Pace {
    stop: AtomicBool,
    hurry: AtomicBool,
}

/// Makes segments and takes them back.
pub(super) struct Factory {
    folder: Arc<dyn Folder>,
    salt: Salt,
    bytes: u64,
    spare: Option<Box<dyn Blob>>,
    /// Whether an old segment could not be removed. Later ones then stay too: a gap would look like a loss.
    stuck: bool,
    pace: Arc<Pace>,
}

impl Factory {
    pub(super) fn new(folder: Arc<dyn Folder>, salt: Salt, bytes: u64) -> Self {
        let bytes = bytes.clamp(SEGMENT_HEADER_BYTES as u64, SEGMENT_BYTES_MAX as u64);
        Self { folder, salt, bytes, spare: None, stuck: false, pace: Arc::default() }
    }

    /// A durable segment, with `first` after its header.
    pub(super) fn make(&mut self, id: u64, first: &[u8]) -> Result<Segment, LogStoreError> {
        let (blob, name) = match self.spare.take() {
            Some(blob) => (blob, SPARE),
            None => (self.zeros()?, DRAFT),
        };
        let path = self.folder.path().join(name);
        let mut head = segment_header(self.salt, id);
        head.extend_from_slice(first);
        blob.write_at(0, &head).map_err(LogStoreError::file("write to", &path))?;
        blob.sync().map_err(LogStoreError::file("sync", &path))?;
        self.folder.rename(name, &Segment::name(id)).map_err(LogStoreError::file("rename", &path))?;
        self.folder.sync().map_err(LogStoreError::file("sync", self.folder.path()))?;
        Segment::new(&*self.folder, id, blob)
    }

    pub(super) fn without_pause(self) -> Self {
        self.pace.hurry.store(true, Ordering::Relaxed);
        self
    }

    fn zeros(&self) -> Result<Box<dyn Blob>, LogStoreError> {
        let path = self.folder.path().join(DRAFT);
        remove(&*self.folder, DRAFT)?;
        let filled = self.folder.create(DRAFT).and_then(|blob| self.fill(&*blob).map(|()| blob));
        filled.map_err(|error| {
            // room that a full disk needs; the file is no part of the log, so a failure changes nothing
            self.folder.remove(DRAFT).ok();
            LogStoreError::file("fill", path)(error)
        })
    }

    fn fill(&self, blob: &dyn Blob) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(self.bytes).unwrap_or(ZEROS_BYTES))];
        let mut at = 0;
        while at < self.bytes {
            if self.pace.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("the log is closing"));
            }
            let left = usize::try_from(self.bytes - at).unwrap_or(usize::MAX);
            let chunk = zeros.get(..left.min(zeros.len())).unwrap_or_default();
            blob.write_at(at, chunk)?;
            at += chunk.len() as u64;
            if at < self.bytes && !self.pace.hurry.load(Ordering::Relaxed) {
                blob.sync()?;
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Takes back a segment that a durable purge emptied. What fails here costs room, nothing else.
    fn retire(&mut self, segment: Arc<Segment>) {
        if self.stuck {
            return;
        }
        let name = Segment::name(segment.id);
        // A reader may still hold it: then its bytes stay, and only its name goes.
        let unused = Arc::try_unwrap(segment).ok().filter(|segment| {
            self.spare.is_none() && segment.blob.len().is_ok_and(|length| length == self.bytes)
        });
        let taken = match &unused {
            Some(_) => self.folder.rename(&name, SPARE),
            None => self.folder.remove(&name),
        };
        // one by one, so that no order of the disk's makes a gap
        match taken.and_then(|()| self.folder.sync()) {
            Ok(()) => self.spare = unused.map(|segment| segment.blob).or(self.spare.take()),
            Err(error) => {
                self.stuck = true;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, name, "an emptied segment of the Raft log could not be removed");
            }
        }
    }
}

/// Removes a file that need not be there.
pub(super) fn remove(folder: &dyn Folder, name: &str) -> Result<(), LogStoreError> {
    match folder.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LogStoreError::file("remove", folder.path().join(name))(error))
        }
        _ => Ok(()),
    }
}

/// Who runs the factory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Making {
    /// A thread.
    Ahead,
    /// Whoever asks: for tests that count operations, and simulations, in which no thread may run.
    AtOnce,
}

enum Ask {
    Make(u64),
    Retire(Arc<Segment>),
}

enum Hands {
    Thread {
        asks: Option<mpsc::Sender<Ask>>,
        made: mpsc::Receiver<Result<Segment, LogStoreError>>,
        thread: Option<JoinHandle<()>>,
        pace: Arc<Pace>,
    },
    Own(Box<Factory>),
}

/// The writer's side of the factory.
pub(super) struct Maker {
    next: Option<Segment>,
    asked: bool,
    hands: Hands,
}

impl Maker {
    /// `next` is a segment that is ready.
    pub(super) fn start(
        factory: Factory,
        next: Option<Segment>,
        making: Making,
    ) -> Result<Self, LogStoreError> {
        let hands = match making {
            Making::AtOnce => Hands::Own(Box::new(factory)),
            Making::Ahead => {
                let (pace, path) = (Arc::clone(&factory.pace), factory.folder.path());
                let (asks, asked) = mpsc::channel();
                let (to, made) = mpsc::channel();
                let thread = std::thread::Builder::new()
                    .name("raft-log-segments".to_owned())
                    .spawn(move || work(factory, &asked, &to))
                    .map_err(LogStoreError::file("start a thread for", path))?;
                Hands::Thread { asks: Some(asks), made, thread: Some(thread), pace }
            }
        };
        Ok(Self { next, asked: false, hands })
    }

    /// Has this segment made ready, unless it is or will be.
    pub(super) fn ask(&mut self, id: u64) {
        if self.next.is_some() || self.asked {
            return;
        }
        match &mut self.hands {
            Hands::Thread { asks, .. } => {
                self.asked = asks.as_ref().is_some_and(|asks| asks.send(Ask::Make(id)).is_ok());
            }
            Hands::Own(factory) => self.next = factory.make(id, &[]).ok(),
        }
    }

    /// The segment, once it is ready. A failure before does not count: the disk may have room by now.
    pub(super) fn take(&mut self, id: u64) -> Result<Segment, LogStoreError> {
        if let Some(next) = self.next.take() {
            return Ok(next);
        }
        match &mut self.hands {
            Hands::Thread { made, pace, .. } => {
                pace.hurry.store(true, Ordering::Relaxed);
                let early = if std::mem::take(&mut self.asked) { made.recv().ok() } else { None };
                if let Some(Ok(next)) = early {
                    self.paused_again();
                    return Ok(next);
                }
            }
            Hands::Own(factory) => return factory.make(id, &[]),
        }
        self.ask(id);
        self.asked = false;
        let made = match &self.hands {
            Hands::Thread { made, .. } => made.recv().ok(),
            Hands::Own(_) => None,
        };
        self.paused_again();
        let ended =
            || LogStoreError::Failed { reason: "the thread that makes segments has ended".to_owned() };
        made.ok_or_else(ended)?
    }

    fn paused_again(&self) {
        match &self.hands {
            Hands::Thread { pace, .. } => pace.hurry.store(false, Ordering::Relaxed),
            Hands::Own(_) => {}
        }
    }

    pub(super) fn retire(&mut self, segment: Arc<Segment>) {
        match &mut self.hands {
            Hands::Thread { asks, .. } => {
                // a thread that has ended leaves the file, which the next start takes back
                asks.as_ref().and_then(|asks| asks.send(Ask::Retire(segment)).ok());
            }
            Hands::Own(factory) => factory.retire(segment),
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        match &mut self.hands {
            Hands::Thread { asks, thread, pace, .. } => {
                pace.stop.store(true, Ordering::Relaxed);
                *asks = None;
                if let Some(thread) = thread.take()
                    && thread.join().is_err()
                {
                    tracing::error!("the thread that makes segments of the Raft log ended in a panic");
                }
            }
            Hands::Own(_) => {}
        }
    }
}

fn work(
    mut factory: Factory,
    asked: &mpsc::Receiver<Ask>,
    made: &mpsc::Sender<Result<Segment, LogStoreError>>,
) {
    while let Ok(ask) = asked.recv() {
        match ask {
            Ask::Retire(segment) => factory.retire(segment),
            Ask::Make(id) => {
                let segment = factory.make(id, &[]);
                if let Err(error) = &segment
                    && !factory.pace.stop.load(Ordering::Relaxed)
                {
                    let error = error as &dyn std::error::Error;
                    tracing::warn!(error, "the next segment of the Raft log could not be made yet");
                }
                if made.send(segment).is_err() {
                    return;
                }
            }
        }
    }
}
