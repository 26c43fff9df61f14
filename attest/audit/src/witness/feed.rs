//! Feeding: a mirrored log's newest checkpoint goes to a C2SP witness with its proof, and the cosignature that comes back is kept
//! beside the mirror.
//!
//! A mesh has no single log key: its nodes cosign, with keys of each boot. A witness that follows those keys takes the note as it
//! is; every other one is told one vkey, the feeder's, which signs the note's text before it is submitted. That key decides
//! only whom the witness listens to: whoever relies on the witness still wants a quorum of nodes, and the witness.
//!
//! **Left to the caller**: that the checkpoint is certified. What a witness once cosigned it can never take back.
use super::disk::Disk;
use super::key::SigningKey;
use super::request::{AddCheckpoint, size};
use crate::fetch::{Client, FetchError};
use crate::finding::Error;
use crate::store::{Mirror, StoredCheckpoint};
use bytes::Bytes;
use quorate_core::tlog::{
    ConsistencyProof, Note, NoteError, NoteSignature, TreeSize, VerifierKey, prove_consistency,
};
use std::path::PathBuf;

/// Answers are signature lines, a size, or one line of words.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// A witness that moves on between question and answer is asked again so often.
const TRIES: u32 = 4;

/// A witness, as its clients know it.
pub struct WitnessPeer {
    /// Submission prefix, without a slash at its end.
    pub url: String,
    /// Its key, of type 0x04.
    pub key: VerifierKey,
    /// Signs what is submitted, for witnesses that do not follow the nodes' keys.
    pub feeder: Option<SigningKey>,
    /// Whether checkpoints are submitted at all, or what it cosigned is only read (which `quorate-audit witness` serves).
    pub feeds: bool,
}

/// What a witness made of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fed {
    /// It cosigned; the note with its line.
    Cosigned(Note),
    /// It has cosigned a larger tree than this one.
    Ahead(TreeSize),
    /// 409 at the very size: it has cosigned another root.
    OtherRoot(TreeSize),
    /// 422: the tree does not extend what it has cosigned at that size.
    Inconsistent(TreeSize),
}

/// Why nothing came of it; says nothing about the log.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The network.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The mirror.
    #[error(transparent)]
    Mirror(#[from] Error),
    /// The witness refused: 400, 403, 404 and the like.
    #[error("the witness answers {status}: {said}")]
    Refused {
        /// Its status.
        status: u16,
        /// Its words, shortened.
        said: String,
    },
    /// It answered what the specification does not have.
    #[error("the witness's answer makes no sense: {0}")]
    Nonsense(&'static str),
    /// It answered with a cosignature that is none.
    #[error("the witness's cosignature: {0}")]
    BadCosignature(NoteError),
}

/// Submits the mirror's newest checkpoint.
pub async fn submit(
    client: &Client,
    peer: &WitnessPeer,
    mirror: &Mirror,
    stored: &StoredCheckpoint,
) -> Result<Fed, FeedError> {
    let note = signed(peer, &stored.note)?;
    let new = stored.size();
    // What is kept from the last time is the best guess; a wrong one is corrected by the answer.
    let mut old = kept(peer, mirror)?.map_or(TreeSize::ZERO, |kept| kept.size());
    old = old.min(new);
    for _ in 0..TRIES {
        let proof = match (old, new) {
            (TreeSize::ZERO, _) => ConsistencyProof::default(),
            (old, new) if old == new => ConsistencyProof::default(),
            _ => prove_consistency(&mirror.tree(new), old, new).map_err(|e| match e {
                quorate_core::tlog::ProveError::Reader(error) => FeedError::Mirror(error),
                quorate_core::tlog::ProveError::Unprovable(_) => FeedError::Nonsense("an impossible size"),
            })?,
        };
        let body = Bytes::from(AddCheckpoint::body(old, &proof, &note));
        let url = format!("{}/add-checkpoint", peer.url);
        let (status, answer) = client.post(&url, "text/plain; charset=utf-8", body, ANSWER_BYTES_MAX).await?;
        match status.as_u16() {
            200 => return cosigned(peer, mirror, stored, &answer).map(Fed::Cosigned),
            409 => {
                let text = std::str::from_utf8(&answer).ok().and_then(|t| t.strip_suffix('\n'));
                let held = text.and_then(size).ok_or(FeedError::Nonsense("409 without a size"))?;
                match held {
                    held if held > new => return Ok(Fed::Ahead(held)),
                    held if held == old && old == new => return Ok(Fed::OtherRoot(held)),
                    held if held == old => return Err(FeedError::Nonsense("409 with the size it was given")),
                    held => old = held,
                }
            }
            422 => return Ok(Fed::Inconsistent(old)),
            status => {
                let said = String::from_utf8_lossy(&answer);
                let said = said.chars().filter(|c| !c.is_control()).take(200).collect();
                return Err(FeedError::Refused { status, said });
            }
        }
    }
    Err(FeedError::Nonsense("its size never stays the same"))
}

fn signed(peer: &WitnessPeer, note: &Note) -> Result<Note, FeedError> {
    let Some(feeder) = &peer.feeder else { return Ok(note.clone()) };
    let lines = note.signatures().iter().cloned().chain([feeder.sign_note(note.text())]).collect();
    Note::new(note.text(), lines).map_err(FeedError::BadCosignature)
}

/// Takes the witness's line out of its answer, verified, and keeps the note with it.
fn cosigned(
    peer: &WitnessPeer,
    mirror: &Mirror,
    stored: &StoredCheckpoint,
    answer: &[u8],
) -> Result<Note, FeedError> {
    let text = stored.note.text();
    let answer = std::str::from_utf8(answer).map_err(|_| FeedError::Nonsense("200 without text"))?;
    // C2SP tlog-witness: put the lines under the checkpoint and read it as a note. Lines of unknown keys are ignored.
    let only = Note::parse(format!("{text}\n{answer}").as_bytes()).map_err(FeedError::BadCosignature)?;
    only.verified_by(std::slice::from_ref(&peer.key)).map_err(FeedError::BadCosignature)?;
    let own = only.signatures().iter().find(|line| peer.key.is_claimed_by(line));
    let own = own.ok_or(FeedError::BadCosignature(NoteError::NoKnownKey))?;
    let lines: Vec<NoteSignature> = stored.note.signatures().iter().chain([own]).cloned().collect();
    let note = Note::new(text, lines).map_err(FeedError::BadCosignature)?;
    keep(peer, mirror, &note)?;
    Ok(note)
}

/// Keeps a note that this witness cosigned.
pub fn keep(peer: &WitnessPeer, mirror: &Mirror, note: &Note) -> Result<(), Error> {
    let path = kept_path(peer, mirror);
    let folder = path.parent().unwrap_or(mirror.dir());
    std::fs::create_dir_all(folder).map_err(Error::disk("create", folder))?;
    Disk::default().replace(&path, note.to_string().as_bytes()).map_err(Error::disk("write", &path))
}

/// Where the newest note is that this witness cosigned.
pub fn kept_path(peer: &WitnessPeer, mirror: &Mirror) -> PathBuf {
    mirror.dir().join("witnessed").join(format!("{:08x}", peer.key.key_id().0))
}

/// The newest checkpoint that this witness cosigned, as it was kept; whatever does not verify is not.
pub fn kept(peer: &WitnessPeer, mirror: &Mirror) -> Result<Option<StoredCheckpoint>, Error> {
    let path = kept_path(peer, mirror);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(StoredCheckpoint::parse(&bytes)
            .ok()
            .filter(|kept| kept.note.verified_by(std::slice::from_ref(&peer.key)).is_ok())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::disk("read", path)(e)),
    }
}
