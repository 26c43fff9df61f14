//! Commands: what Raft orders. Each is signed by its author over label, cluster and body, so the leader who orders
//! them can delay but not forge. A [`Batch`] is one Raft log entry.
use crate::crypto::{Hash, PublicKey, Signature, encode, sha256, sign_statement, statement_bytes};
use crate::ids::{
    ClientId, ConnectionId, NodeId, PolicyVersion, PoolId, PriceId, RequestId, RouteId, Timestamp, TokenId,
};
use crate::policy::{ADMINS_MAX, MEMBERS_MAX, SignedPolicy};
use crate::sshsig::{SIGNATURE_BYTES_MAX as SSH_SIGNATURE_BYTES_MAX, SshSignature};
use crate::tlog::{ConsistencyProof, Cosignature, TreeSize};
use crate::token::{SignedToken, TOKEN_ROUTES_MAX, Token};
use aws_lc_rs::signature::Ed25519KeyPair;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::evidence::{BootKeys, Evidence};
use quorate_attest::tpm;

/// Most commands in a batch: an entry stays below a few MiB.
pub const COMMANDS_MAX: usize = 1024;
/// Most settlements in one node command: a leaf stays under 64 KiB.
pub const SETTLEMENTS_MAX: usize = 256;
/// Most pairs in a probe grant: every relay with every other member as keyer.
pub const PROBE_PAIRS_MAX: usize = MEMBERS_MAX * (MEMBERS_MAX - 1);
/// A probe grant lasts this long at most.
pub const PROBE_GRANT_MS_MAX: u64 = 3_600_000;
/// A usage grant lasts this long at most.
pub const USAGE_GRANT_MS_MAX: u64 = 3_600_000;
/// Most reports in one client command, likewise.
pub const REPORTS_MAX: usize = 256;
/// Longest code of a failed check.
pub const CHECK_BYTES_MAX: usize = 64;
/// Most cosignatures listed anywhere: one per member.
pub const COSIGNATURES_MAX: usize = crate::policy::MEMBERS_MAX;

/// One Raft log entry: commands in the order they apply, at one time.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Batch {
    /// The entry's time, by the proposing leader's clock; followers refuse to append what is out of bounds.
    pub time: Timestamp,
    /// Who proposed it. Not signed: it is a hint for operators, no decision rests on it.
    pub proposer: NodeId,
    /// At most [`COMMANDS_MAX`].
    pub commands: Vec<Command>,
}

/// A command and its author's signature.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Command {
    /// By a client.
    Client(ClientSigned),
    /// By an attested node.
    Node(NodeSigned),
    /// Evidence of one node; proves itself.
    Evidence(Box<EvidenceCommand>),
    /// The end of darkness; proves itself.
    Recover(Box<RecoverCommand>),
    /// A policy change by m of n admins.
    Policy(PolicyCommand),
}

impl Command {
    /// SHA-256 of the command's canonical bytes: how a proposer finds its outcome again.
    pub fn digest(&self) -> Hash {
        sha256(&encode(self))
    }
    /// Evidence, recovery and admin commands go first in every batch, so that load never starves attestation.
    pub fn goes_first(&self) -> bool {
        match self {
            Self::Evidence(_) | Self::Recover(_) | Self::Policy(_) => true,
            Self::Client(_) | Self::Node(_) => false,
        }
    }
    /// Whether every list and text is within its bound. The bounds keep a leaf, which holds the whole command, within what
    /// C2SP tlog-tiles can carry (65,535 bytes), whoever wrote the command and whatever becomes of it.
    pub fn within_bounds(&self) -> bool {
        let quote = |e: &Evidence| {
            e.attest.len() <= tpm::ATTEST_BYTES_MAX
                && e.signature.len() <= tpm::SIGNATURE_BYTES_MAX
                && e.pcrs.len() <= usize::from(quorate_attest::eventlog::PCRS)
        };
        match self {
            Self::Client(ClientSigned { body: ClientCommand::OpenPool(p), .. }) => {
                p.probe.as_ref().is_none_or(|probe| {
                    probe.grant.pairs.len() <= PROBE_PAIRS_MAX
                        && probe.signature.0.len() <= SSH_SIGNATURE_BYTES_MAX
                }) && p.token.as_ref().is_none_or(|t| t.token.routes.len() <= TOKEN_ROUTES_MAX)
            }
            Self::Client(ClientSigned { body: ClientCommand::RevokeToken(token), .. }) => {
                token.routes.len() <= TOKEN_ROUTES_MAX
            }
            Self::Client(ClientSigned { body: ClientCommand::Report(reports), .. }) => {
                reports.len() <= REPORTS_MAX
            }
            Self::Client(ClientSigned { body: ClientCommand::Authorise(_), .. }) => true,
            Self::Node(NodeSigned { body: NodeCommand::Settle(settlements), .. }) => {
                settlements.len() <= SETTLEMENTS_MAX
            }
            Self::Node(NodeSigned {
                body: NodeCommand::Alarm(Alarm::AdmissionRefused { check, .. }),
                ..
            }) => check.len() <= CHECK_BYTES_MAX,
            Self::Node(NodeSigned { body: NodeCommand::Unanswered(requests), .. }) => {
                requests.len() <= SETTLEMENTS_MAX
            }
            Self::Node(_) => true,
            Self::Evidence(c) => c.certificate.len() <= COSIGNATURES_MAX && quote(&c.evidence),
            Self::Recover(c) => {
                let lengths = [c.contributions.len(), c.evidence.len(), c.proofs.len()];
                lengths.iter().all(|l| *l <= MEMBERS_MAX) && c.evidence.iter().all(|(_, e)| quote(e))
            }
            Self::Policy(c) => {
                c.signatures.len() <= ADMINS_MAX
                    && c.signatures.iter().all(|s| s.0.len() <= SSH_SIGNATURE_BYTES_MAX)
            }
        }
    }
    /// Blobs that must be durable before the entry that holds this command is appended.
    pub fn blobs(&self) -> Vec<Hash> {
        let logs =
            |e: &Evidence| std::iter::once(Hash(e.event_log)).chain(e.ima_log.map(Hash)).collect::<Vec<_>>();
        match self {
            Self::Evidence(c) => logs(&c.evidence),
            Self::Recover(c) => c.evidence.iter().flat_map(|(_, e)| logs(e)).collect(),
            Self::Policy(c) => vec![c.document],
            Self::Client(_) | Self::Node(_) => Vec::new(),
        }
    }
}

/// A command by a client, or by whoever holds a token of its.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ClientSigned {
    /// Author; of a token its issuer, who answers for it.
    pub client: ClientId,
    /// The token whose key signed; `None` for the client's own.
    pub token: Option<TokenId>,
    /// What it wants.
    pub body: ClientCommand,
    /// Over label, cluster, author, token and body.
    pub signature: Signature,
}

/// What a client may say.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ClientCommand {
    /// Authorise connections for some minutes.
    OpenPool(OpenPool),
    /// Authorise one request.
    Authorise(Authorise),
    /// Report how requests ended; at most [`REPORTS_MAX`].
    Report(Vec<Report>),
    /// Take a token back that the author issued, whether or not it was used yet.
    RevokeToken(Box<Token>),
}

const CLIENT_LABEL: &str = "quorate client command v2";
const NODE_LABEL: &str = "quorate node command v1";
const EVIDENCE_LABEL: &str = "quorate evidence command v1";
const PROBE_LABEL: &str = "quorate probe grant v1";
const USAGE_LABEL: &str = "quorate usage grant v1";
const CONTRIBUTION_LABEL: &str = "quorate recovery contribution v1";

impl ClientCommand {
    /// How many reports it holds.
    pub(crate) fn reports(&self) -> usize {
        match self {
            Self::Report(reports) => reports.len(),
            Self::OpenPool(_) | Self::Authorise(_) | Self::RevokeToken(_) => 0,
        }
    }
}

impl ClientSigned {
    /// Signs as a client.
    pub fn sign(cluster: Hash, client: ClientId, body: ClientCommand, key: &Ed25519KeyPair) -> Self {
        Self::sign_as(cluster, client, None, body, key)
    }
    /// Signs as a client, or as the holder of a token of its.
    pub fn sign_as(
        cluster: Hash,
        client: ClientId,
        token: Option<TokenId>,
        body: ClientCommand,
        key: &Ed25519KeyPair,
    ) -> Self {
        let signature = sign_statement(key, CLIENT_LABEL, &(cluster, &client, &token, &body));
        Self { client, token, body, signature }
    }
    /// Whether the signature is `key`'s, for this cluster.
    pub fn is_by(&self, cluster: Hash, key: &PublicKey) -> bool {
        let Self { client, token, body, signature } = self;
        key.verify(&statement_bytes(CLIENT_LABEL, &(cluster, client, token, body)), signature).is_ok()
    }
}

/// A pool of connections for one (route, relay, keyer).
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct OpenPool {
    /// New random id.
    pub pool: PoolId,
    /// Destination.
    pub route: RouteId,
    /// Who carries the records.
    pub relay: NodeId,
    /// The relay's boot keys, as the client verified them.
    pub relay_boot: BootKeys,
    /// Who checks the heads.
    pub keyer: NodeId,
    /// The keyer's boot keys.
    pub keyer_boot: BootKeys,
    /// End, at most the policy's pool lifetime away.
    pub expires: Timestamp,
    /// For `quorate admin credential check` alone: an admin's word that this client may try this very pair, whatever the
    /// rendezvous order says, unmetered. Otherwise none.
    pub probe: Option<SignedProbeGrant>,
    /// The token by whose key the command is signed; otherwise none.
    pub token: Option<Box<SignedToken>>,
}

/// What an admin grants to whoever checks a credential: requests over named pairs that are not metered. It changes no policy,
/// so one admin is enough (DESIGN P8 is about changes); what it could be misused for is bounded by
/// [`PROBES_PER_PAIR_MAX`](crate::state::PROBES_PER_PAIR_MAX) per share epoch, whatever is signed.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProbeGrant {
    /// The route.
    pub route: RouteId,
    /// Share epoch of its credential.
    pub share_epoch: u32,
    /// Key of the client that may probe; the policy's grant to that client holds all the same.
    pub client_key: PublicKey,
    /// (relay, keyer), at most [`PROBE_PAIRS_MAX`].
    pub pairs: Vec<(NodeId, NodeId)>,
    /// End, at most [`PROBE_GRANT_MS_MAX`] away.
    pub expires: Timestamp,
}

/// What an admin grants to whoever looks at everybody's usage: the key of its connection, for a while. No command: a node that is asked
/// checks it, and nothing of it is logged.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct UsageGrant {
    /// Key of the connection that asks: shown by anybody else it is worth nothing.
    pub caller_key: PublicKey,
    /// End, at most [`USAGE_GRANT_MS_MAX`] away.
    pub expires: Timestamp,
}

impl UsageGrant {
    /// The bytes an admin signs, as [`ProbeGrant::statement`].
    pub fn statement(&self, cluster: Hash) -> Vec<u8> {
        statement_bytes(USAGE_LABEL, &(cluster, self))
    }
}

/// A usage grant and its admin's signature.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedUsageGrant {
    /// What is granted.
    pub grant: UsageGrant,
    /// `ssh-keygen -Y sign -n quorate` over [`UsageGrant::statement`].
    pub signature: SshSignature,
}

/// A probe grant and its admin's signature.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedProbeGrant {
    /// What is granted.
    pub grant: ProbeGrant,
    /// `ssh-keygen -Y sign -n quorate` over [`ProbeGrant::statement`].
    pub signature: SshSignature,
}

impl ProbeGrant {
    /// The bytes an admin signs. They begin with a label and a NUL, which no policy document can hold, so that neither can be
    /// read as the other.
    pub fn statement(&self, cluster: Hash) -> Vec<u8> {
        statement_bytes(PROBE_LABEL, &(cluster, self))
    }
}

/// One request. Everything that relay, keyer and provider will be held to.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Authorise {
    /// New random id: the nonce.
    pub request: RequestId,
    /// The pool that authorised the connection.
    pub pool: PoolId,
    /// The TLS connection; it carries this request only.
    pub connection: ConnectionId,
    /// Destination, equal to the pool's.
    pub route: RouteId,
    /// Equal to the pool's.
    pub relay: NodeId,
    /// Equal to the pool's.
    pub keyer: NodeId,
    /// Share epoch of the route's credential; 0 for a route without one.
    pub share_epoch: u32,
    /// Policy the client knows.
    pub policy: PolicyVersion,
    /// Digest of the head's sealed records.
    pub head_digest: Hash,
    /// SHA-256 over a fresh salt and the body: only the client can open it.
    pub body_digest: Hash,
    /// The most bytes the relay may send as body.
    pub body_bytes_max: u64,
    /// The most bytes the relay may send back.
    pub response_bytes_max: u64,
    /// The longest the request may run.
    pub duration_ms_max: u64,
    /// The row of the price table that it is paid by; `None` where nothing limits money, then it costs nothing.
    pub price: Option<PriceId>,
    /// The most tokens of input it will be charged for, and holds of budgets until it is settled; never more than the body's
    /// bytes allow. `u64::MAX` leaves it at these.
    pub tokens_in_max: u64,
    /// The most tokens of output, likewise.
    pub tokens_out_max: u64,
    /// End of this signature's validity.
    pub expires: Timestamp,
}

/// How a request ended, as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Report {
    /// The request.
    pub request: RequestId,
    /// HTTP status of the provider; 0 when there was none.
    pub status: u16,
    /// Outcome.
    pub ended: Ended,
    /// Tokens of input by the provider's own count, cached ones included; 0 when it gave none. The client's word.
    pub tokens_in: u64,
    /// Of these, the ones from the provider's cache, likewise.
    pub tokens_cached: u64,
    /// Tokens out, likewise.
    pub tokens_out: u64,
    /// Whether an error answer (4xx or 5xx) was in the API's own error form, as the route's dialect has it; false otherwise.
    pub error_form: bool,
    /// This request repeated that one over a disjoint pair, because the API answered that one with a 400 in its own form: the
    /// same answer here says it was the application's, and neither counts against a pair.
    pub same_as: Option<RequestId>,
}

/// The end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Ended {
    /// The response was read to its proper end.
    Complete,
    /// The client stopped it.
    Cancelled,
    /// The provider could not be reached.
    Unreachable,
    /// The provider closed before the response was whole.
    Truncated,
    /// A ceiling was reached.
    CeilingReached,
    /// The keyer refused the head.
    HeadRefused,
    /// A node failed on the way.
    MeshFailure,
    /// No response in the time allowed.
    TimedOut,
}

/// A node's command, by its boot key.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NodeSigned {
    /// Author.
    pub node: NodeId,
    /// What it says.
    pub body: NodeCommand,
    /// By the boot cosigning key over label, cluster, author and body.
    pub signature: Signature,
}

/// What a node may say.
#[expect(
    clippy::large_enum_variant,
    reason = "an alarm is rare and short-lived; boxing it would cost every reader"
)]
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum NodeCommand {
    /// Requests it relayed have ended; at most [`SETTLEMENTS_MAX`].
    Settle(Vec<Settlement>),
    /// Something that people should look at.
    Alarm(Alarm),
    /// Commit to the state's digest, so that a snapshot at this entry can be installed.
    Snapshot,
    /// Authorised requests that name the author as keyer, for which it never answered and never will: with a relay that says
    /// it sent nothing either, no hole was filled, so whatever went wrong says nothing about the credential. Only for requests
    /// that failed; at most [`SETTLEMENTS_MAX`].
    Unanswered(Vec<RequestId>),
}

impl NodeSigned {
    /// Signs.
    pub fn sign(cluster: Hash, node: NodeId, body: NodeCommand, key: &Ed25519KeyPair) -> Self {
        let signature = sign_statement(key, NODE_LABEL, &(cluster, node, &body));
        Self { node, body, signature }
    }
    /// Whether the signature is `key`'s, for this cluster.
    pub fn is_by(&self, cluster: Hash, key: &PublicKey) -> bool {
        key.verify(&statement_bytes(NODE_LABEL, &(cluster, self.node, &self.body)), &self.signature).is_ok()
    }
}

/// A relayed request's end, as the relay saw it. Sizes are rounded up to [`SIZE_BUCKET`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Settlement {
    /// The request.
    pub request: RequestId,
    /// Bytes sent to the provider after the handshake, bucketed.
    pub bytes_up: u64,
    /// Bytes received from it after the head was sent, bucketed.
    pub bytes_down: u64,
    /// From release of the head to the first byte of the answer, ms.
    pub first_byte_ms: u32,
    /// From release of the head to the end, ms.
    pub total_ms: u32,
    /// Outcome.
    pub ended: Ended,
}

/// Published sizes are multiples of this, so that a leaf says less about a prompt.
pub const SIZE_BUCKET: u64 = 256;

/// Rounds a size up to its bucket.
pub fn bucketed(bytes: u64) -> u64 {
    bytes.div_ceil(SIZE_BUCKET).saturating_mul(SIZE_BUCKET)
}

/// What a node raises.
#[expect(clippy::large_enum_variant, reason = "rare and short-lived")]
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Alarm {
    /// A keyer refused the head of an authorised request; the code is the head refusal's.
    HeadRefused {
        /// The request.
        request: RequestId,
        /// Stable code.
        code: u16,
    },
    /// Two cosignatures of one node over two roots at one size: both stand here, so the leaf proves it.
    Equivocation {
        /// Who signed both.
        accused: NodeId,
        /// The key it used.
        key: PublicKey,
        /// The size.
        size: TreeSize,
        /// One root and its cosignature.
        one: (Hash, Cosignature),
        /// Another root and its cosignature.
        other: (Hash, Cosignature),
    },
    /// The leader did not commit a command of this node in time; the node campaigned.
    Withheld {
        /// Digest of the command.
        command: Hash,
    },
    /// A member did not prove itself to the author in the channel. The author's word: whoever is refused there never gets
    /// to write evidence of its own, and yet the log must say why.
    AdmissionRefused {
        /// Whom it claimed to be, or whom the policy has at that address.
        node: NodeId,
        /// The Verifier's stable code; at most [`CHECK_BYTES_MAX`] bytes.
        check: String,
    },
}

/// A checkpoint by number and root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct CheckpointRef {
    /// Leaves.
    pub size: TreeSize,
    /// Root hash.
    pub root: Hash,
}

/// Evidence and the certified checkpoint it was quoted over.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct EvidenceCommand {
    /// Whose.
    pub node: NodeId,
    /// Keys of this boot; the quote's qualifying data binds them.
    pub boot: BootKeys,
    /// The checkpoint whose root is the nonce.
    pub nonce: CheckpointRef,
    /// Its certificate.
    pub certificate: Vec<(NodeId, Cosignature)>,
    /// The quote.
    pub evidence: Evidence,
    /// By the boot cosigning key: possession.
    pub signature: Signature,
}

impl EvidenceCommand {
    fn statement(&self, cluster: Hash) -> Vec<u8> {
        let Self { node, boot, nonce, certificate, evidence, signature: _ } = self;
        statement_bytes(EVIDENCE_LABEL, &(cluster, node, boot, nonce, certificate, evidence))
    }
    /// Fills in the signature.
    pub fn sign(mut self, cluster: Hash, key: &Ed25519KeyPair) -> Self {
        self.signature = crate::crypto::sign(key, &self.statement(cluster));
        self
    }
    /// Whether the boot key signed it.
    pub fn possesses_key(&self, cluster: Hash) -> bool {
        PublicKey(self.boot.cosign).verify(&self.statement(cluster), &self.signature).is_ok()
    }
}

/// What one node brings to a recovery: what it must not lose, and a value nobody could know before.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Contribution {
    /// Whose.
    pub node: NodeId,
    /// Keys of this boot.
    pub boot: BootKeys,
    /// Highest checkpoint it saw certified.
    pub certified: CheckpointRef,
    /// Highest checkpoint it signed.
    pub lock: CheckpointRef,
    /// Fresh.
    pub random: [u8; 32],
    /// By the boot cosigning key.
    pub signature: Signature,
}

impl Contribution {
    fn statement(&self, cluster: Hash) -> Vec<u8> {
        let Self { node, boot, certified, lock, random, signature: _ } = self;
        statement_bytes(CONTRIBUTION_LABEL, &(cluster, node, boot, certified, lock, random))
    }
    /// Fills in the signature.
    pub fn sign(mut self, cluster: Hash, key: &Ed25519KeyPair) -> Self {
        self.signature = crate::crypto::sign(key, &self.statement(cluster));
        self
    }
    /// Whether the boot key signed it.
    pub fn possesses_key(&self, cluster: Hash) -> bool {
        PublicKey(self.boot.cosign).verify(&self.statement(cluster), &self.signature).is_ok()
    }
}

/// The way out of darkness (DESIGN "Dark start"): one entry that re-establishes boot keys for at least a quorum.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RecoverCommand {
    /// The highest certified checkpoint contributed.
    pub base: CheckpointRef,
    /// At least a quorum, by node, ascending.
    pub contributions: Vec<Contribution>,
    /// Quotes of the same nodes with qualifying data over base and all contributions.
    pub evidence: Vec<(NodeId, Evidence)>,
    /// Size of the tree this entry extends.
    pub tree: TreeSize,
    /// For each contribution, that its certified checkpoint and its lock are prefixes of that tree.
    pub proofs: Vec<(ConsistencyProof, ConsistencyProof)>,
}

impl RecoverCommand {
    /// Digest of all contributions, part of the quotes' qualifying data.
    pub fn contributions_digest(contributions: &[Contribution]) -> Hash {
        sha256(&statement_bytes("quorate recovery contributions v1", &contributions))
    }
}

/// A policy change; the document itself is a blob.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PolicyCommand {
    /// SHA-256 of the document.
    pub document: Hash,
    /// Admins' signatures over the document.
    pub signatures: Vec<SshSignature>,
}

impl PolicyCommand {
    /// With the document beside it.
    pub fn with_document(&self, document: Vec<u8>) -> SignedPolicy {
        SignedPolicy { document, signatures: self.signatures.clone() }
    }
}
