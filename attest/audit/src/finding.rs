//! What can be wrong with a log, as facts: each [`Finding`] names a place and a [`Fault`], and says what it means.
use quorate_core::certificate::NotCertified;
use quorate_core::crypto::Hash;
use quorate_core::ids::Timestamp;
use quorate_core::tlog::{CheckpointError, LeafIndex, NoteError, Origin, TileError, TilePath, TreeSize};
use std::fmt;
use std::path::PathBuf;

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The genesis policy and its signatures.
    Genesis,
    /// The newest checkpoint.
    Checkpoint,
    /// An older checkpoint, by the size in its name.
    OlderCheckpoint(TreeSize),
    /// A leaf.
    Leaf(LeafIndex),
    /// A tile or entry bundle.
    Tile(TilePath),
    /// A blob, by its name, and the first leaf that names it where that is known.
    Blob(Hash, Option<LeafIndex>),
    /// The state that a cut left, from which what remains is replayed.
    PrunedState,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Genesis => f.write_str("genesis"),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::OlderCheckpoint(size) => write!(f, "checkpoint of size {size}"),
            Self::Leaf(index) => write!(f, "leaf {index}"),
            Self::Tile(path) => write!(f, "{path}"),
            Self::PrunedState => f.write_str("pruned-state"),
            Self::Blob(digest, None) => write!(f, "blob {digest}"),
            Self::Blob(digest, Some(leaf)) => write!(f, "blob {digest} (named by leaf {leaf})"),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Not there.
    #[error("it is missing")]
    Missing,
    /// Beyond any bound.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
    /// Not a tile or bundle.
    #[error("{0}")]
    Tile(TileError),
    /// Not a signed note.
    #[error("{0}")]
    Note(NoteError),
    /// Not a checkpoint.
    #[error("{0}")]
    Checkpoint(CheckpointError),
    /// Not the one spelling of a note.
    #[error("it is not in its canonical form")]
    NotCanonical,
    /// Another log's.
    #[error("it is of the log {said:?}, not of {expected:?}")]
    OtherOrigin {
        /// What stands there.
        said: Origin,
        /// This log's.
        expected: Origin,
    },
    /// Another size than the name says.
    #[error("it is of size {0}")]
    OtherSize(TreeSize),
    /// The genesis policy is not the one the auditor was told of.
    #[error("its SHA-256 is {got}, not {expected}")]
    OtherGenesis {
        /// What the auditor was given.
        expected: Hash,
        /// The document's.
        got: Hash,
    },
    /// The genesis policy is none.
    #[error("{0}")]
    GenesisInvalid(String),
    /// Content under another content's name.
    #[error("its SHA-256 is {0}")]
    OtherDigest(Hash),
    /// A leaf that the tree does not have there.
    #[error("its hash is not the one in {0}")]
    LeafHash(TilePath),
    /// A tile whose hash the tree does not have there.
    #[error("its root is not the one in {0}")]
    TileRoot(TilePath),
    /// The tile at the right edge, which no other one names.
    #[error("it does not have the hashes of the leaves, which lead to the checkpoint's root")]
    OpenTile,
    /// The leaves do not lead to the root.
    #[error("it names root {said}, and the leaves lead to {computed}")]
    Root {
        /// What stands there.
        said: Hash,
        /// The tree's.
        computed: Hash,
    },
    /// Not a prefix of the other.
    #[error("it names root {said} at a size at which this mirror holds {held}")]
    Fork {
        /// What was offered.
        said: Hash,
        /// What was mirrored before.
        held: Hash,
    },
    /// Not where a batch ends.
    #[error("no batch of the log ends at that size")]
    NotABatchEnd,
    /// A cosigner that is no member.
    #[error("a cosignature is by {0:?}, which is no member's key")]
    UnknownCosigner(String),
    /// Cosignatures in another order than their nodes'.
    #[error("its cosignatures are not in the order of their nodes")]
    CosignatureOrder,
    /// Cosignatures are no certificate.
    #[error("it is not certified: {0}")]
    NotCertified(NotCertified),
    /// A leaf that is none.
    #[error("it does not decode")]
    Undecodable,
    /// More than a batch can hold.
    #[error("the batch that begins at leaf {0} has no end within its bounds")]
    EndlessBatch(LeafIndex),
    /// Two times in one batch.
    #[error("it is of {}, and its batch of {}", crate::words::date(*said), crate::words::date(*batch))]
    Time {
        /// What stands there.
        said: Timestamp,
        /// The batch's.
        batch: Timestamp,
    },
    /// Another decision than the rules give.
    #[error("the log says {said:?} of {what}; by the rules it is {rules:?}")]
    Decision {
        /// What was decided on.
        what: String,
        /// What stands there.
        said: String,
        /// What the state machine says.
        rules: String,
        /// Whether by the rules the author is not proven.
        forged: bool,
    },
    /// Something must stand here and does not.
    #[error("by the rules it is {rules:?}; the log has {said:?}")]
    Differs {
        /// What stands there.
        said: String,
        /// What the state machine says.
        rules: String,
    },
    /// Something stands here that nothing led to.
    #[error("the log has {0:?}, which by the rules did not happen")]
    Unfounded(String),
    /// A batch lacks what the rules demand at its end.
    #[error("by the rules {0:?} follows, and the log's batch ends before it")]
    Lacking(String),
}

impl Fault {
    /// Stable code, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::TooLong(_) => "too_long",
            Self::Tile(_) => "tile_malformed",
            Self::Note(_) => "note_malformed",
            Self::Checkpoint(_) => "checkpoint_malformed",
            Self::NotCanonical => "not_canonical",
            Self::OtherOrigin { .. } => "other_origin",
            Self::OtherSize(_) => "other_size",
            Self::OtherGenesis { .. } => "other_genesis",
            Self::GenesisInvalid(_) => "genesis_invalid",
            Self::OtherDigest(_) => "other_digest",
            Self::LeafHash(_) => "leaf_hash",
            Self::TileRoot(_) | Self::OpenTile => "tile_root",
            Self::Root { .. } => "root",
            Self::Fork { .. } => "fork",
            Self::NotABatchEnd => "not_a_batch_end",
            Self::UnknownCosigner(_) => "unknown_cosigner",
            Self::CosignatureOrder => "cosignature_order",
            Self::NotCertified(_) => "not_certified",
            Self::Undecodable => "undecodable",
            Self::EndlessBatch(_) => "endless_batch",
            Self::Time { .. } => "time",
            Self::Decision { .. } => "decision",
            Self::Differs { .. } => "differs",
            Self::Unfounded(_) => "unfounded",
            Self::Lacking(_) => "lacking",
        }
    }

    /// What it means, in a sentence or two.
    pub fn meaning(&self) -> &'static str {
        match self {
            Self::Missing | Self::TooLong(_) | Self::Tile(_) | Self::OtherDigest(_) | Self::OtherSize(_) => {
                "This copy is damaged or was tampered with; it proves nothing about what it lacks. Whether the log itself is \
                 sound, a fresh mirror from another node will show."
            }
            Self::Note(_) | Self::Checkpoint(_) | Self::NotCanonical => {
                "Whoever serves or keeps this copy changed the checkpoint: nothing says which history it is of. Fetch it again."
            }
            Self::OtherOrigin { .. } | Self::OtherGenesis { .. } => {
                "This is another cluster's log, or another one was put in its place. Compare the genesis digest with your \
                 admins'."
            }
            Self::GenesisInvalid(_) => {
                "The policy that everything rests on is not one that its own admins signed: nothing after it counts."
            }
            Self::LeafHash(_) => {
                "The leaf is not the one that was certified: it was altered, exchanged or moved after the fact, in this copy."
            }
            Self::TileRoot(_) | Self::OpenTile => {
                "The tile was altered after the fact, in this copy: proofs made from it would be refused."
            }
            Self::Root { .. } => {
                "The checkpoint is of another history than these leaves. If its cosignatures are good, a quorum of nodes signed \
                 two histories: keep both copies as evidence."
            }
            Self::Fork { .. } => {
                "Two histories of one log: whoever signed both checkpoints lied to somebody. Keep both as evidence."
            }
            Self::NotABatchEnd | Self::EndlessBatch(_) => {
                "No honest node signs a tree that ends within a batch: the log was cut or never written by the state machine."
            }
            Self::UnknownCosigner(_) | Self::CosignatureOrder => {
                "The checkpoint's signature lines were altered after the fact, in this copy or by who serves it."
            }
            Self::NotCertified(_) => {
                "No quorum of attested nodes stands behind this checkpoint: either it was altered in this copy, or somebody made \
                 up a history without the nodes' keys."
            }
            Self::Undecodable => {
                "A certified leaf that no version of the state machine writes: more than a quorum of nodes runs other software."
            }
            Self::Time { .. } => {
                "All leaves of a batch have its time. The log was not written by the state machine."
            }
            Self::Decision { forged: true, .. } => {
                "The command was never signed by its alleged author: it was made up, and who certified it let that pass."
            }
            Self::Decision { forged: false, .. } => {
                "Policy and history did not allow this decision (or demanded it): whoever certified it broke the rules."
            }
            Self::Differs { .. } | Self::Unfounded(_) | Self::Lacking(_) => {
                "Replaying the same commands gives another history: what is certified here is not what the state machine does. A \
                 quorum of nodes runs other software, or this log is made up."
            }
        }
    }
}

/// A fault and its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What.
    pub fault: Fault,
}

impl Finding {
    /// At a place.
    pub fn at(place: Place, fault: Fault) -> Self {
        Self { place, fault }
    }

    /// For machines: place, code, what, meaning.
    pub fn to_json(&self) -> serde_json::Value {
        let leaf = match &self.place {
            Place::Leaf(index) | Place::Blob(_, Some(index)) => Some(index.0),
            _ => None,
        };
        serde_json::json!({
            "place": self.place.to_string(),
            "leaf": leaf,
            "code": self.fault.code(),
            "what": self.fault.to_string(),
            "means": self.fault.meaning(),
        })
    }
}

/// Why an audit did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log is not what it claims.
    #[error(transparent)]
    Found(Box<Finding>),
    /// The auditor's own disk.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        source: std::io::Error,
    },
    /// Not a mirror.
    #[error("{} holds no mirror", .0.display())]
    NoMirror(PathBuf),
    /// A mirror without its beginning, where all of history is needed.
    #[error("this mirror begins at leaf {0}: it was pruned")]
    Pruned(LeafIndex),
    /// The auditor's program.
    #[error("a worker thread ended before its work")]
    Worker,
}

impl From<Finding> for Error {
    fn from(finding: Finding) -> Self {
        Self::Found(Box::new(finding))
    }
}

impl Error {
    pub(crate) fn disk(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { action, path, source }
    }
}
