//! Fixed bugs, put back one at a time: each must be found, or the simulation sees less than it says.
use crate::node::Floors;
use quorated::raft::CertifiedFloor;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    /// None: the product as it is.
    None,
    /// The sign lock is not on disk when the signature leaves, and a starting node asks nobody what it signed before.
    LockNotWritten,
    /// A leader's commit index is believed as it comes: an id with an early leader and a late index too.
    TrustsCommitIndex,
    /// What is certified may be truncated, and a leader's log is not compared with what was applied.
    TruncatesCertified,
    /// A leader that leaves out clients' commands keeps its followers.
    BearsWithholding,
    /// The log says that something is durable before the disk has it.
    SyncsLate,
    /// Followers listen to a leader under whom nothing is certified for as long as it sends heartbeats.
    WaitsForEver,
    /// A leader's snapshot is given to Raft as it comes.
    TrustsSnapshots,
    /// What a node applied in darkness, and signed none of, is never given up.
    KeepsUnsigned,
    /// A log that conflicts with all others, though no tree does, is kept.
    KeepsLog,
    /// A tail is given up that an earlier start signed, once a power cut took the lock.
    ForgetsSigned,
    /// A keyer answers for a leaf that is applied here and certified nowhere.
    KeyerTrustsApplied,
}

impl Mutation {
    /// The cosigner's floor, and the one that the log obeys.
    pub fn floor(self) -> Floors {
        let cosigner = CertifiedFloor::new();
        let log = match self {
            Self::TruncatesCertified => CertifiedFloor::new(),
            _ => cosigner.clone(),
        };
        Floors { cosigner, log }
    }

    /// Whether only hostile nodes make it matter.
    pub fn needs_hostile(self) -> bool {
        matches!(
            self,
            Self::LockNotWritten
                | Self::TrustsCommitIndex
                | Self::TruncatesCertified
                | Self::BearsWithholding
                | Self::WaitsForEver
                | Self::TrustsSnapshots
                | Self::KeepsUnsigned
                | Self::KeepsLog
                | Self::ForgetsSigned
        )
    }

    /// See [`Self::TruncatesCertified`].
    pub fn skips_history_check(self) -> bool {
        self == Self::TruncatesCertified
    }

    /// Whether only hostile nodes that never fall silent make it matter.
    pub fn needs_relentless(self) -> bool {
        matches!(self, Self::WaitsForEver | Self::BearsWithholding)
    }

    /// See [`Self::BearsWithholding`].
    pub fn bears_withholding(self) -> bool {
        self == Self::BearsWithholding
    }

    /// See [`Self::TrustsCommitIndex`].
    pub fn trusts_commit_index(self) -> bool {
        self == Self::TrustsCommitIndex
    }

    /// See [`Self::WaitsForEver`].
    pub fn waits_for_ever(self) -> bool {
        self == Self::WaitsForEver
    }

    /// See [`Self::TrustsSnapshots`].
    pub fn trusts_snapshots(self) -> bool {
        self == Self::TrustsSnapshots
    }

    /// See [`Self::KeepsUnsigned`].
    pub fn keeps_unsigned(self) -> bool {
        self == Self::KeepsUnsigned
    }

    /// See [`Self::KeepsLog`].
    pub fn keeps_log(self) -> bool {
        self == Self::KeepsLog
    }

    /// See [`Self::ForgetsSigned`].
    pub fn forgets_signed(self) -> bool {
        self == Self::ForgetsSigned
    }

    /// See [`Self::LockNotWritten`].
    pub fn forgets_lock(self) -> bool {
        self == Self::LockNotWritten
    }

    /// See [`Self::SyncsLate`].
    pub fn syncs_late(self) -> bool {
        self == Self::SyncsLate
    }

    /// See [`Self::KeyerTrustsApplied`].
    pub fn trusts_applied(self) -> bool {
        self == Self::KeyerTrustsApplied
    }
}
