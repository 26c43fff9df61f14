//! Whether a checkpoint that a node serves is of the history that was followed, and the proof where it is not.
//!
//! Of two checkpoints, the older is a prefix of the newer or it is not. A consistency proof leads from some root at the older
//! size to the newer root; if that root is not the one that the older checkpoint names, no tree has both. So four things
//! convict: the two notes, the root that the newer one implies, and the proof. Who signed is for their keys to say.
use super::follow::FILE;
use super::grow::write;
use crate::fetch::{Client, FetchError};
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::{Mirror, Need, StoredCheckpoint, known_node};
use quorate_core::crypto::Hash;
use quorate_core::tlog::{
    ConsistencyProof, Cosignature, FULL_TILE_BYTES, KeyName, NodeReader, Note, ProofError, ProveError,
    TilePath, TreeSize, VerifierKey, decode_tile, prove_consistency, root_at, verify_consistency,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Two checkpoints that no tree has both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitView {
    /// The smaller, or what was followed where both have one size.
    pub older: StoredCheckpoint,
    /// The other.
    pub newer: StoredCheckpoint,
    /// The root that the newer one's tree has at the older one's size.
    pub implied: Hash,
    /// From there to the newer root.
    pub proof: ConsistencyProof,
}

/// Why two checkpoints are no split view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotASplit {
    /// Two logs may well differ.
    #[error("the checkpoints are of two logs")]
    OtherLog,
    /// The newer tree has the older one.
    #[error("the newer checkpoint extends the older one")]
    Consistent,
    /// The proof proves nothing.
    #[error("the proof does not lead to the newer checkpoint: {0}")]
    Proof(ProofError),
    /// What was kept does not read.
    #[error("it is not what was kept: {0}")]
    Malformed(String),
}

impl SplitView {
    /// Decides from the notes and the proof alone, as whoever gets them should.
    pub fn check(&self) -> Result<(), NotASplit> {
        let (older, newer) = (&self.older.checkpoint, &self.newer.checkpoint);
        if older.origin != newer.origin {
            return Err(NotASplit::OtherLog);
        }
        if older.root == self.implied {
            return Err(NotASplit::Consistent);
        }
        verify_consistency(older.size, self.implied, newer.size, newer.root, &self.proof)
            .map_err(NotASplit::Proof)
    }

    /// Keeps it in a folder that convinces others.
    pub fn keep(&self, folder: &Path, known: &[VerifierKey]) -> Result<(), Error> {
        let keys: String = known.iter().map(|key| format!("{key}\n")).collect();
        let proof = Kept { implied: self.implied, proof: self.proof.clone() };
        let proof = serde_json::to_string_pretty(&proof).unwrap_or_default();
        write(&folder.join("older"), self.older.note.to_string().as_bytes())?;
        write(&folder.join("newer"), self.newer.note.to_string().as_bytes())?;
        write(&folder.join("proof.json"), proof.as_bytes())?;
        write(&folder.join("signers.vkeys"), keys.as_bytes())?;
        write(&folder.join("README"), README.as_bytes())
    }

    /// Reads what was kept.
    pub fn read(folder: &Path) -> Result<Self, NotASplit> {
        let malformed = |e: &dyn std::fmt::Display| NotASplit::Malformed(e.to_string());
        let file = |name: &str| std::fs::read(folder.join(name)).map_err(|e| malformed(&e));
        let note = |name: &str| StoredCheckpoint::parse(&file(name)?).map_err(|e| malformed(&e));
        let Kept { implied, proof } =
            serde_json::from_slice(&file("proof.json")?).map_err(|e| malformed(&e))?;
        Ok(Self { older: note("older")?, newer: note("newer")?, implied, proof })
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Root at the older size in the newer tree.
    implied: Hash,
    /// RFC 6962 consistency proof.
    proof: ConsistencyProof,
}

const README: &str = "\
Two signed checkpoints of one log that no tree has both: `older` and `newer`, C2SP signed notes.

proof.json is an RFC 6962 consistency proof from the root `implied`, at the older one's size, to the newer one's root. A
checkpoint that is a prefix of the newer one's tree names that root. The older one names another.

signers.vkeys are the nodes' keys of the history that was followed: a cosignature by one of them under either note is that
node's word (C2SP tlog-cosignature). Whoever signed both lied to somebody; with more than f nodes, a quorum can.
";

/// Names of known keys whose cosignature stands under a note and verifies.
pub fn signed_by<'k>(note: &Note, known: &'k [VerifierKey]) -> Vec<&'k KeyName> {
    let mut names = Vec::new();
    for line in note.signatures() {
        let by = known.iter().find(|key| {
            key.is_claimed_by(line)
                && Cosignature::from_bytes(&line.bytes)
                    .is_ok_and(|c| c.verify_body(note.text(), key.public_key()).is_ok())
        });
        if let Some(key) = by.filter(|key| !names.contains(&key.name())) {
            names.push(key.name());
        }
    }
    names
}

/// How a checkpoint stands to the history that was followed.
#[derive(Debug)]
pub(super) enum Compared {
    /// One history, as far as both go.
    Consistent,
    /// Two.
    Split(Box<SplitView>),
    /// The node does not serve what would show it.
    Unserved(FetchError),
    /// What it serves does not fit its own checkpoint.
    Broken(ProofError),
}

/// Compares with the newest checkpoint followed, whose tree the mirror holds.
pub(super) async fn compare(
    client: &Client,
    url: &str,
    offered: &StoredCheckpoint,
    mirror: &Mirror,
    held: &StoredCheckpoint,
) -> Result<Compared, Error> {
    let split = |older: &StoredCheckpoint, newer: &StoredCheckpoint, implied, proof| {
        if implied == older.checkpoint.root {
            return Compared::Consistent;
        }
        let split = SplitView { older: older.clone(), newer: newer.clone(), implied, proof };
        match split.check() {
            Ok(()) => Compared::Split(Box::new(split)),
            Err(NotASplit::Proof(error)) => Compared::Broken(error),
            // The caller compared origins, and the roots were compared just now.
            Err(_) => Compared::Consistent,
        }
    };
    if offered.size() == TreeSize::ZERO {
        return Ok(Compared::Consistent);
    }
    if offered.size() <= held.size() {
        let tree = mirror.tree(held.size());
        let implied = root_at(&tree, offered.size())?;
        let proof = prove_consistency(&tree, offered.size(), held.size()).map_err(own)?;
        return Ok(split(offered, held, implied, proof));
    }
    let tree = Remote { size: offered.size(), tiles: BTreeMap::new() };
    match tree.prove(client, url, held.size()).await {
        Ok((implied, proof)) => Ok(match split(held, offered, implied, proof.clone()) {
            // It names the right root: then the proof must lead from there, or its tiles are made up.
            Compared::Consistent => {
                let (old, new) = (&held.checkpoint, &offered.checkpoint);
                match verify_consistency(old.size, old.root, new.size, new.root, &proof) {
                    Ok(()) => Compared::Consistent,
                    Err(error) => Compared::Broken(error),
                }
            }
            other => other,
        }),
        Err(error) => Ok(Compared::Unserved(error)),
    }
}

fn own(error: ProveError<Error>) -> Error {
    match error {
        ProveError::Reader(error) => error,
        ProveError::Unprovable(_) => Finding::at(Place::Checkpoint, Fault::NotABatchEnd).into(),
    }
}

/// A node's tree, as far as its tiles were fetched. Nothing of it is believed but what a proof shows.
struct Remote {
    size: TreeSize,
    tiles: BTreeMap<TilePath, Vec<Hash>>,
}

impl NodeReader for Remote {
    type Error = Need;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Need> {
        known_node(level, index, self.size, &self.tiles)
    }
}

impl Remote {
    /// The root at a smaller size, and the proof from there. Fetches what it takes: two tiles a level.
    async fn prove(
        mut self,
        client: &Client,
        url: &str,
        old: TreeSize,
    ) -> Result<(Hash, ConsistencyProof), FetchError> {
        let nonsense = || FetchError::Body { url: url.to_owned(), bytes_max: FULL_TILE_BYTES };
        loop {
            let need = match root_at(&self, old) {
                Ok(implied) => match prove_consistency(&self, old, self.size) {
                    Ok(proof) => return Ok((implied, proof)),
                    Err(ProveError::Reader(need)) => need,
                    Err(ProveError::Unprovable(_)) => return Err(nonsense()),
                },
                Err(need) => need,
            };
            let path = need.0.ok_or_else(nonsense)?;
            let at = format!("{url}/{path}");
            let bytes = tokio::time::timeout(FILE, client.get(&at, FULL_TILE_BYTES)).await;
            let bytes = bytes.map_err(|_| FetchError::TooSlow(at.clone()))??;
            let hashes = decode_tile(&bytes, path.width()).map_err(|_| nonsense())?;
            self.tiles.insert(path, hashes);
        }
    }
}
