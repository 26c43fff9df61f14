//! Leaves of the tlog. A leaf holds a whole command and its outcome, so that the tlog alone replays: feed the commands of
//! a batch through the same state machine and the same leaves must come out. Never content: digests, ids, numbers.
use crate::command::Command;
use crate::crypto::Hash;
use crate::ids::{NodeId, PolicyVersion, RequestId, RouteId, Timestamp};
use crate::refusal::Refusal;
use crate::tlog::{LeafIndex, TreeSize};
use borsh::{BorshDeserialize, BorshSerialize};

/// A leaf, versioned by its first byte.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Leaf {
    /// Version 1.
    V1 {
        /// Time of the entry that made it.
        time: Timestamp,
        /// What happened.
        body: LeafBody,
    },
}

/// What happened.
#[expect(clippy::large_enum_variant, reason = "most leaves are the large variant")]
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum LeafBody {
    /// Leaf 0: which document began it all.
    Genesis {
        /// SHA-256 of policy version 1.
        policy: Hash,
    },
    /// A command was decided.
    Decided {
        /// As signed by its author.
        command: Command,
        /// The decision.
        outcome: Outcome,
    },
    /// A node's evidence is too old.
    Lapsed {
        /// Whose.
        node: NodeId,
    },
    /// Relay or client never settled a request: an anomaly.
    Unsettled {
        /// The request.
        request: RequestId,
        /// Whether the relay's half is missing.
        relay: bool,
        /// Whether the client's half is missing.
        client: bool,
    },
    /// What relay and client say of one request does not fit together: an anomaly.
    Anomaly {
        /// The request.
        request: RequestId,
        /// Rule that fired.
        rule: AnomalyRule,
    },
    /// The state's digest as the previous batch left it: a snapshot of that state may be installed.
    StateDigest {
        /// Size of the tree as the previous batch left it.
        size: TreeSize,
        /// SHA-256 of the state's canonical bytes.
        digest: Hash,
    },
    /// An entry that does not decode: a lying leader.
    Undecodable {
        /// SHA-256 of the entry's bytes.
        entry: Hash,
    },
    /// Last leaf of every batch: what the state rests on.
    BatchEnd(BatchEnd),
    /// Requests of three clients failed over a relay and keyer: the pair may not use the route's credential.
    PairSuspended {
        /// Whose credential.
        route: RouteId,
        /// Which splitting of it.
        share_epoch: u32,
        /// The pair's relay.
        relay: NodeId,
        /// The pair's keyer.
        keyer: NodeId,
    },
    /// Requests of three clients failed over pairs that no one node is in: nobody may use the route's credential.
    CredentialFrozen {
        /// Whose credential.
        route: RouteId,
        /// Which splitting of it.
        share_epoch: u32,
    },
}

/// Rules that flag a settled request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum AnomalyRule {
    /// More tokens than bytes could carry.
    TokensExceedBytes,
    /// The relay says complete, the client truncated; or nothing went up, says the relay, and the client had an answer.
    EndsDiffer,
    /// It failed as it would with a wrong key, and counts against its relay and keyer.
    CredentialFault,
    /// It had no answer, and does not count: its relay or keyer was interrupted meanwhile.
    FaultOfInterruptedNode,
    /// It had no answer, and does not count: nor had others, over pairs of other nodes.
    FaultElsewhereToo,
    /// It had no answer, and does not count: keyer and relay both say that no hole was filled.
    FaultBeforeRelease,
    /// More tokens than the request's own ceilings: charged at these.
    TokensExceedCeilings,
}

/// Policy version and attested set after a batch.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct BatchEnd {
    /// Policy in force.
    pub policy: PolicyVersion,
    /// Its digest.
    pub policy_digest: Hash,
    /// Attested members and the leaf that holds the evidence each rests on, ascending.
    pub attested: Vec<(NodeId, LeafIndex)>,
    /// Whether fewer than a quorum are attested.
    pub dark: bool,
    /// While members change: the policy version whose members must certify as well.
    pub changing: Option<PolicyVersion>,
    /// Who proposed the entry.
    pub proposer: NodeId,
}

/// The decision on a command.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Outcome {
    /// A pool is open.
    PoolOpened,
    /// The request may be forwarded once this leaf is certified.
    Authorised,
    /// The client's reports were taken; codes of those that were not, by position.
    Reported(Vec<(u16, Refusal)>),
    /// The settlements, or a keyer's word on requests it never answered, were taken; codes of those that were not, by position.
    Settled(Vec<(u16, Refusal)>),
    /// The alarm stands.
    AlarmRaised,
    /// The evidence was appraised and the node is attested.
    Appraised {
        /// Firmware version the quote names.
        firmware: u64,
        /// A software TPM: host-bound to nothing.
        software_tpm: bool,
    },
    /// The evidence is good, but the machine was reset: the node counts again once a checkpoint certified without it holds
    /// this leaf.
    AwaitingCertificate,
    /// The evidence was rejected; `check` is the Verifier's stable code.
    AppraisalRefused {
        /// Which check failed.
        check: String,
    },
    /// The boot keys in the command may certify the checkpoint that ends with this entry.
    Recovered,
    /// The policy is in force.
    PolicyChanged {
        /// New version.
        version: PolicyVersion,
        /// Names of the admins who signed.
        signers: Vec<String>,
    },
    /// A snapshot point; the next batch begins with the digest.
    SnapshotPoint,
    /// Refused.
    Refused(Refusal),
    /// The token is taken back.
    TokenRevoked,
}
