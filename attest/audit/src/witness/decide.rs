//! C2SP tlog-witness: what becomes of an add-checkpoint request. One request of a log at a time; stores before it answers.
//!
//! The checks, in this order, each with its status: form (400), a known origin (404), signatures of known keys (403), the old
//! size is not above the new (400) and is the one cosigned last (409 with that size), equal sizes have equal roots (409), the
//! consistency proof (422). Then the new checkpoint is made durable, and only then the cosignature leaves.
//!
//! A log that signs what does not extend what it signed before is reported with both checkpoints. Two roots at one size prove
//! that, and so does a good proof from another old root; a request whose proof is merely bad proves nothing, since anybody can
//! send a genuine checkpoint with a made-up proof: it is kept apart, as a suspicion.
use super::config::{Config, KnownLog};
use super::disk::Disk;
use super::key::SigningKey;
use super::request::{AddCheckpoint, Malformed};
use super::state::{Cosigned, StateError, Store};
use quorate_core::tlog::{
    Checkpoint, EMPTY_ROOT, Hash, Note, NoteError, Origin, ProofError, TreeSize, verify_consistency,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A witness over its folder.
pub struct Witness {
    key: SigningKey,
    logs: BTreeMap<Origin, (KnownLog, Mutex<()>)>,
    store: Store,
    /// What it answered so far, and forks that it saw.
    pub counts: Counts,
}

/// Answers given since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// By status: 200, 400, 403, 404, 409, 422, 500.
    pub answers: [(u16, AtomicU64); 7],
    /// Requests that prove a log's misbehaviour.
    pub forks: AtomicU64,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Answer {
    /// 200: the cosignature line.
    Cosigned(String),
    /// 400.
    Malformed(Malformed),
    /// 404.
    UnknownLog,
    /// 403.
    NotSigned(NotSigned),
    /// 409, with the size cosigned last.
    Conflict(TreeSize),
    /// 409: another root at the very size cosigned last, which has it in its body too.
    Forked(TreeSize, Fork),
    /// 422.
    Inconsistent(ProofError, Fork),
    /// 500: the disk.
    Failed(StateError),
}

/// Two checkpoints of a log that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Whether that is proven, or only not excluded.
    pub proven: bool,
    /// Where both are kept; `None` when enough of them are.
    pub kept: Option<PathBuf>,
}

/// Why a note is not the log's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    /// By no known key, or badly.
    #[error("{0}")]
    Note(NoteError),
    /// By too few.
    #[error("{have} of {need} signatures by known keys")]
    TooFew {
        /// Good ones.
        have: usize,
        /// Needed.
        need: usize,
    },
}

impl Answer {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Cosigned(_) => 200,
            Self::Malformed(_) => 400,
            Self::NotSigned(_) => 403,
            Self::UnknownLog => 404,
            Self::Conflict(_) | Self::Forked(..) => 409,
            Self::Inconsistent(..) => 422,
            Self::Failed(_) => 500,
        }
    }

    /// Checkpoints that do not fit together.
    pub fn fork(&self) -> Option<&Fork> {
        match self {
            Self::Forked(_, fork) | Self::Inconsistent(_, fork) => Some(fork),
            _ => None,
        }
    }
}

impl Witness {
    /// Opens a witness whose configured logs all have their memory, undamaged.
    pub fn open(dir: &Path, key: SigningKey, config: &Config, disk: Disk) -> Result<Self, StateError> {
        let store = Store::open(dir, disk)?;
        let own = key.verifier_key();
        for origin in config.logs.keys() {
            store.last(origin, &own)?;
        }
        let logs = config.logs.iter().map(|(o, log)| (o.clone(), (log.clone(), Mutex::new(()))));
        Ok(Self { key, logs: logs.collect(), store, counts: Counts::new() })
    }

    /// Its key, as others are told it.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Origins of the logs that it knows.
    pub fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.logs.keys()
    }

    /// The checkpoint of a log that it cosigned last.
    pub fn last(&self, origin: &Origin) -> Result<Option<Cosigned>, StateError> {
        self.store.last(origin, &self.key.verifier_key())
    }

    /// Decides on a request's body, at a time in POSIX seconds.
    pub fn add_checkpoint(&self, body: &[u8], now_s: u64) -> Answer {
        let answer = self.decide(body, now_s).unwrap_or_else(|refused| refused);
        self.counts.count(&answer);
        answer
    }

    fn decide(&self, body: &[u8], now_s: u64) -> Result<Answer, Answer> {
        let request = AddCheckpoint::parse(body).map_err(Answer::Malformed)?;
        let checkpoint = &request.checkpoint;
        let (log, lock) = self.logs.get(&checkpoint.origin).ok_or(Answer::UnknownLog)?;
        signed(&request.note, log).map_err(Answer::NotSigned)?;
        let (old, size) = (request.old, checkpoint.size);
        if old > size {
            return Err(Answer::Malformed(Malformed::OldAboveNew { old, size }));
        }
        // From the comparison to the end of the write: one at a time, or an older request could roll back a newer one.
        let _one = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.last(&checkpoint.origin).map_err(Answer::Failed)?;
        let (held_size, held_root) =
            held.as_ref().map_or((TreeSize::ZERO, EMPTY_ROOT), |h| (h.checkpoint.size, h.checkpoint.root));
        let report = |proven| {
            let kept = match &held {
                Some(held) => self.store.keep_fork(held, checkpoint, body, proven).map_err(Answer::Failed)?,
                None => None,
            };
            Ok(Fork { proven, kept })
        };
        if size == held_size && checkpoint.root != held_root {
            // Whatever old size it claims: two signed roots at one size are the proof.
            return Err(Answer::Forked(held_size, report(true)?));
        }
        if old != held_size {
            return Err(Answer::Conflict(held_size));
        }
        if let Err(error) = consistent(old, held_root, checkpoint, &request) {
            return Err(Answer::Inconsistent(error, report(extends_another(&request, held_root, error))?));
        }
        // Its time never goes back either, whatever the clock does.
        let time_s = held.as_ref().map_or(now_s, |held| held.time_s.max(now_s));
        let line = self.key.cosign(request.note.text(), time_s);
        let note = Note::new(request.note.text(), kept_lines(&request.note, log, &line))
            .map_err(|e| Answer::Malformed(Malformed::Note(e)))?;
        self.store.remember(&checkpoint.origin, &note).map_err(Answer::Failed)?;
        let own = Note::new(request.note.text(), vec![line])
            .map_err(|e| Answer::Malformed(Malformed::Note(e)))?
            .to_string();
        Ok(Answer::Cosigned(own.get(request.note.text().len() + 1..).unwrap_or_default().to_owned()))
    }
}

/// The known keys' lines and the own one: what strangers put below is not kept.
fn kept_lines(
    note: &Note,
    log: &KnownLog,
    own: &quorate_core::tlog::NoteSignature,
) -> Vec<quorate_core::tlog::NoteSignature> {
    let keys = log.keys();
    let known = note.signatures().iter().filter(|line| keys.iter().any(|key| key.is_claimed_by(line)));
    known.take(quorate_core::tlog::note::SIGNATURES_MAX - 1).chain([own]).cloned().collect()
}

fn signed(note: &Note, log: &KnownLog) -> Result<(), NotSigned> {
    let keys = log.keys();
    let by = note.verified_by(&keys).map_err(NotSigned::Note)?;
    let distinct: std::collections::BTreeSet<&[u8; 32]> = by.iter().map(|key| key.public_key()).collect();
    if distinct.len() < log.threshold {
        return Err(NotSigned::TooFew { have: distinct.len(), need: log.threshold });
    }
    Ok(())
}

/// C2SP tlog-witness: "The proof MUST be empty if the old size is zero"; everything extends the empty tree.
fn consistent(
    old: TreeSize,
    old_root: Hash,
    new: &Checkpoint,
    request: &AddCheckpoint,
) -> Result<(), ProofError> {
    if old == TreeSize::ZERO {
        return if request.proof.hashes().is_empty() { Ok(()) } else { Err(ProofError::TooLong) };
    }
    verify_consistency(old, old_root, new.size, new.root, &request.proof)
}

/// Whether the proof is good, only not from the root that was cosigned: then the log has signed another history.
fn extends_another(request: &AddCheckpoint, held_root: Hash, error: ProofError) -> bool {
    let ProofError::OldRootMismatch { computed, expected } = error else { return false };
    let new = &request.checkpoint;
    expected == held_root
        && verify_consistency(request.old, computed, new.size, new.root, &request.proof).is_ok()
}

impl Counts {
    fn new() -> Self {
        Self {
            answers: [200, 400, 403, 404, 409, 422, 500].map(|status| (status, AtomicU64::new(0))),
            forks: AtomicU64::new(0),
        }
    }

    fn count(&self, answer: &Answer) {
        if let Some((_, count)) = self.answers.iter().find(|(status, _)| *status == answer.status()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if answer.fork().is_some_and(|fork| fork.proven) {
            self.forks.fetch_add(1, Ordering::Relaxed);
        }
    }
}
