//! What a monitor remembers, so that a restart neither repeats an alarm nor misses one.
//!
//! ```text
//! DIR/monitor/alarms.jsonl   every alarm, one JSON object a line, appended and synced before anything else follows from it
//! DIR/monitor/state.json     conditions that hold, and how many of those lines were printed and posted
//! DIR/monitor/snapshot       state machine and rules at some verified size: what follows is replayed from the mirror
//! DIR/monitor/evidence/…     folders that convince others
//! DIR/monitor/keys           verifier keys that may cosign now, for a witness that follows them
//! ```
//! A leaf's alarm has an id that follows from the leaf: replayed after a crash, it is found to be there. A crash between
//! printing (or posting) and the note of it prints once more; the id tells.
use super::alarm::{Alarm, Kind, Severity, Turn};
use super::follow::Follower;
use super::grow::write;
use super::watch::Watch;
use crate::finding::Error;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_core::crypto::{Hash, encode, sha256};
use quorate_core::ids::Timestamp;
use quorate_core::state::State;
use quorate_core::tlog::VerifierKey;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Of `state.json` and of the snapshot.
const VERSION: u32 = 1;
/// Evidence folders kept: one of each kind and node convicts, a thousand are an attack on the disk.
const EVIDENCE_MAX: usize = 1000;

pub(super) struct Memory {
    dir: PathBuf,
    _lock: File,
    alarms: File,
    /// Ids of all alarms so far.
    ids: BTreeSet<String>,
    lines: u64,
    /// Lines that were not yet printed or posted.
    pending: VecDeque<(u64, Alarm)>,
    saved: Saved,
}

/// What `state.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    version: u32,
    conditions: BTreeMap<String, Condition>,
    told: u64,
    posted: u64,
}

/// Something that lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Condition {
    kind: Kind,
    subject: String,
    since: Timestamp,
    raised: bool,
}

#[derive(BorshSerialize, BorshDeserialize)]
struct Snapshot {
    version: u32,
    genesis: Hash,
    watch: Watch,
    state: Vec<u8>,
}

impl Memory {
    /// Of the monitor over this mirror; one process at a time.
    pub(super) fn open(mirror: &Path) -> Result<Self, Error> {
        let dir = mirror.join("monitor");
        std::fs::create_dir_all(dir.join("evidence")).map_err(Error::disk("create", &dir))?;
        let path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(Error::disk("open", &path))?;
        lock.try_lock().map_err(|e| {
            let held = match e {
                std::fs::TryLockError::WouldBlock => std::io::Error::other("another monitor holds it"),
                std::fs::TryLockError::Error(e) => e,
            };
            Error::disk("lock", &path)(held)
        })?;
        let saved = read_saved(&dir.join("state.json"))?;
        let path = dir.join("alarms.jsonl");
        let failed = |action| Error::disk(action, path.clone());
        let alarms = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let alarms = alarms.map_err(failed("open"))?;
        let mut memory = Self {
            alarms: alarms.try_clone().map_err(failed("open"))?,
            dir,
            _lock: lock,
            ids: BTreeSet::new(),
            lines: 0,
            pending: VecDeque::new(),
            saved,
        };
        let (mut reader, mut whole, mut line) = (BufReader::new(&alarms), 0u64, String::new());
        loop {
            line.clear();
            let read = reader.read_line(&mut line).map_err(failed("read"))?;
            // A crash may have left half a line: it was not yet told to anybody.
            let Some(text) = line.strip_suffix('\n').filter(|_| read > 0) else { break };
            let alarm: Alarm = serde_json::from_str(text)
                .map_err(|e| failed("read")(std::io::Error::new(std::io::ErrorKind::InvalidData, e)))?;
            whole += read as u64;
            memory.remember(alarm);
        }
        memory.alarms.set_len(whole).map_err(failed("shorten"))?;
        memory.alarms.seek(SeekFrom::Start(whole)).map_err(failed("read"))?;
        Ok(memory)
    }

    fn remember(&mut self, alarm: Alarm) {
        self.ids.insert(alarm.id.clone());
        if self.lines >= self.saved.told.min(self.saved.posted) {
            self.pending.push_back((self.lines, alarm));
        }
        self.lines += 1;
    }

    /// Appends those that are new, durably.
    pub(super) fn record(&mut self, alarms: Vec<Alarm>) -> Result<Vec<Alarm>, Error> {
        let fresh: Vec<Alarm> = alarms.into_iter().filter(|a| !self.ids.contains(&a.id)).collect();
        if fresh.is_empty() {
            return Ok(fresh);
        }
        let path = self.dir.join("alarms.jsonl");
        let mut text = String::new();
        for alarm in &fresh {
            text.push_str(&serde_json::to_string(alarm).unwrap_or_default());
            text.push('\n');
        }
        let appended = self.alarms.write_all(text.as_bytes()).and_then(|()| self.alarms.sync_data());
        appended.map_err(Error::disk("append to", path))?;
        fresh.iter().cloned().for_each(|alarm| self.remember(alarm));
        Ok(fresh)
    }

    /// Says whether a condition holds, `Some` with what was seen. Gives its alarm when it has held for `patience_ms`, and
    /// another when it is over.
    pub(super) fn condition(
        &mut self,
        now: Timestamp,
        kind: Kind,
        subject: &str,
        holds: Option<String>,
        patience_ms: u64,
    ) -> Option<Alarm> {
        let key = format!("{} {subject}", kind.name());
        let id = |since: Timestamp| {
            let subject = sha256(subject.as_bytes()).to_string();
            format!("{}-{}-{}", kind.name(), subject.get(..8).unwrap_or_default(), since.0)
        };
        let Some(what) = holds else {
            let over = self.saved.conditions.remove(&key).filter(|c| c.raised)?;
            let alarm = Alarm::new(kind, format!("{}-cleared", id(over.since)), now, "it is over".into());
            return Some(Alarm { state: Turn::Cleared, ..alarm.about(subject) });
        };
        let condition = self.saved.conditions.entry(key).or_insert_with(|| Condition {
            kind,
            subject: subject.to_owned(),
            since: now,
            raised: false,
        });
        if condition.raised || now.since_ms(condition.since) < patience_ms {
            return None;
        }
        condition.raised = true;
        Some(Alarm::new(kind, id(condition.since), now, what).about(subject))
    }

    /// Whether a condition was raised and is not over.
    pub(super) fn stands(&self, kind: Kind, subject: &str) -> bool {
        self.saved.conditions.get(&format!("{} {subject}", kind.name())).is_some_and(|c| c.raised)
    }

    /// How bad the worst condition is that stands.
    pub(super) fn worst(&self) -> Option<Severity> {
        self.saved.conditions.values().filter(|c| c.raised).map(|c| c.kind.severity()).max()
    }

    /// Alarms that were not yet printed.
    pub(super) fn untold(&self) -> Vec<Alarm> {
        self.pending.iter().filter(|(line, _)| *line >= self.saved.told).map(|(_, a)| a.clone()).collect()
    }

    /// All of them are printed now.
    pub(super) fn told(&mut self) {
        self.saved.told = self.lines;
        self.forget();
    }

    /// The next alarm to post.
    pub(super) fn unposted(&self) -> Option<Alarm> {
        self.pending.iter().find(|(line, _)| *line >= self.saved.posted).map(|(_, a)| a.clone())
    }

    /// That one is posted; or all are, where nobody wants them posted.
    pub(super) fn posted(&mut self, all: bool) {
        self.saved.posted = if all { self.lines } else { self.saved.posted.saturating_add(1) };
        self.forget();
    }

    fn forget(&mut self) {
        let done = self.saved.told.min(self.saved.posted);
        self.pending.retain(|(line, _)| *line >= done);
    }

    /// Writes `state.json`.
    pub(super) fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(&self.saved).unwrap_or_default();
        write(&self.dir.join("state.json"), text.as_bytes())
    }

    /// A folder for new evidence; `None` when there is enough.
    pub(super) fn evidence(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let dir = self.dir.join("evidence");
        let kept = std::fs::read_dir(&dir).map_err(Error::disk("list", &dir))?.count();
        Ok((kept < EVIDENCE_MAX).then(|| dir.join(name)))
    }

    /// Verified history as it was kept, if it was.
    pub(super) fn snapshot(&self, genesis: Hash) -> Result<Option<Follower>, Error> {
        let path = self.dir.join("snapshot");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::disk("read", path)(e)),
        };
        // One that an older program wrote, or of another cluster, is no loss: everything is replayed.
        let Ok(snapshot) = borsh::from_slice::<Snapshot>(&bytes) else { return Ok(None) };
        if snapshot.version != VERSION || snapshot.genesis != genesis {
            return Ok(None);
        }
        let state = State::from_bytes(&snapshot.state, genesis).ok();
        Ok(state.map(|state| Follower { state, watch: snapshot.watch }))
    }

    /// Keeps verified history.
    pub(super) fn keep_snapshot(&self, follower: &Follower) -> Result<(), Error> {
        let snapshot = Snapshot {
            version: VERSION,
            genesis: follower.state.cluster(),
            watch: follower.watch.clone(),
            state: follower.state.to_bytes(),
        };
        write(&self.dir.join("snapshot"), &encode(&snapshot))
    }

    /// Keeps the keys that may cosign now.
    pub(super) fn keep_keys(&self, keys: &[VerifierKey]) -> Result<(), Error> {
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        let path = self.dir.join("keys");
        match std::fs::read(&path) {
            Ok(same) if same == text.as_bytes() => Ok(()),
            _ => write(&path, text.as_bytes()),
        }
    }
}

fn read_saved(path: &Path) -> Result<Saved, Error> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<Saved>(&bytes)
            .ok()
            .filter(|saved| saved.version == VERSION)
            .ok_or_else(|| Error::disk("understand", path)(std::io::ErrorKind::InvalidData.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Ok(Saved { version: VERSION, conditions: BTreeMap::new(), told: 0, posted: 0 })
        }
        Err(e) => Err(Error::disk("read", path)(e)),
    }
}
