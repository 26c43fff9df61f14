//! What a client or auditor can check with nothing but the genesis digest: a [`Proof`] encloses the policy chain, a cosigned
//! checkpoint, the evidence of everyone who was attested in it, and leaves. A directory is a proof of the log's newest state;
//! a [`Receipt`] is a proof of one request. The signers' keys are proved by quotes under AKs in the admin-signed policy
//! chain, never by the tree they sign.
//!
//! A receipt has one byte form: whatever byte is changed, it no longer verifies. Left to the caller: whether the
//! checkpoint's time is recent enough.
use crate::certificate::{
    CertifiedAuthorisation, CertifiedCheckpoint, CertifiedLeaf, Certifiers, NotCertified, QuorumRule,
};
use crate::command::{Alarm, CheckpointRef, ClientCommand, Command, EvidenceCommand, NodeCommand};
use crate::crypto::{Hash, PublicKey, encode, sha256};
use crate::ids::{ClientId, NodeId, PolicyVersion, RequestId, Timestamp};
use crate::leaf::{BatchEnd, Leaf, LeafBody, Outcome};
use crate::policy::{Policy, SignedPolicy};
use crate::refusal::Refusal;
use crate::state::{Blobs, appraise_member, checkpoint_of, evidence_nonce, outgoing_rule, rule_of};
use crate::tlog::{
    ConsistencyProof, Cosignature, InclusionProof, LeafIndex, leaf_hash, verify_consistency, verify_inclusion,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::appraisal::Counters;
use quorate_attest::evidence::BootKeys;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// Largest proof accepted: a long policy chain and seven event logs fit.
pub const PROOF_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A leaf's bytes and where they stand.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProvenLeaf {
    /// Position.
    pub index: LeafIndex,
    /// The leaf's bytes.
    pub bytes: Vec<u8>,
    /// To the proof's checkpoint.
    pub inclusion: InclusionProof,
}

/// Evidence of one attested node.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct ProvenEvidence {
    /// The leaf with the evidence and its verdict.
    pub leaf: ProvenLeaf,
    /// That the nonce is a prefix of this very log.
    pub nonce: ConsistencyProof,
}

/// Unverified; see [`Proof::verify`].
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Proof {
    /// Every policy version from genesis to the one in force.
    pub chain: Vec<SignedPolicy>,
    /// The checkpoint.
    pub checkpoint: CheckpointRef,
    /// Its cosignatures.
    pub cosignatures: Vec<(NodeId, Cosignature)>,
    /// The last leaf under the checkpoint, a batch's end.
    pub end: ProvenLeaf,
    /// The evidence each attested node rests on, in the order of the batch's end.
    pub evidence: Vec<ProvenEvidence>,
    /// The leaves the proof is about.
    pub leaves: Vec<ProvenLeaf>,
    /// Logs that the evidence names.
    pub blobs: Vec<Vec<u8>>,
}

/// A node whose evidence the holder verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedNode {
    /// Keys of its boot.
    pub boot: BootKeys,
    /// Entry time of the evidence.
    pub evidence_at: Timestamp,
    /// Leaf of the evidence.
    pub leaf: LeafIndex,
    /// Software TPM.
    pub software_tpm: bool,
    /// TPM firmware.
    pub firmware: u64,
    /// Counters in the quote.
    pub counters: Counters,
}

/// A leaf and the certificate it stands under: enough for whoever holds a verified directory to check it on the spot.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct LeafCertificate {
    /// The certified checkpoint.
    pub checkpoint: CheckpointRef,
    /// Its cosignatures.
    pub cosignatures: Vec<(NodeId, Cosignature)>,
    /// The leaf.
    pub leaf: ProvenLeaf,
}

/// A proof that verified.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Policy in force.
    pub policy: Arc<Policy>,
    /// Genesis digest it was verified against.
    pub cluster: Hash,
    /// The certified checkpoint.
    pub certified: CertifiedCheckpoint,
    /// Entry time of the checkpoint's last batch.
    pub time: Timestamp,
    /// Attested nodes.
    pub nodes: BTreeMap<NodeId, VerifiedNode>,
    /// The leaves, in the proof's order.
    pub leaves: Vec<CertifiedLeaf>,
}

impl Verified {
    /// Who may certify, by this state's evidence.
    pub fn certifiers(&self) -> Certifiers {
        Certifiers {
            keys: self.nodes.iter().map(|(n, v)| (*n, PublicKey(v.boot.cosign))).collect(),
            rules: vec![rule_of(&self.policy)],
        }
    }

    /// Checks that a leaf's certificate proves the authorisation of this client's request, by this state's boot keys. A node
    /// that restarted since signs with keys unknown here: then the certificate falls short, and the caller asks for a newer
    /// state.
    pub fn authorisation(
        &self,
        certificate: &LeafCertificate,
        client: &ClientId,
        request: RequestId,
    ) -> Result<CertifiedAuthorisation, ProofError> {
        self.certify(certificate)?.authorisation(client, request, &certificate.leaf)
    }

    /// Checks the checkpoint that a leaf's certificate names, by this state's boot keys. It holds for every leaf under it, so
    /// that the requests of one batch cost one check.
    pub fn certify(&self, certificate: &LeafCertificate) -> Result<CertifiedCheckpoint, ProofError> {
        let checkpoint = checkpoint_of(&self.certified.checkpoint().origin, certificate.checkpoint);
        let known = certificate.cosignatures.iter().filter(|(n, _)| self.nodes.contains_key(n)).copied();
        Ok(self.certifiers().certify(checkpoint, &known.collect::<Vec<_>>())?)
    }
}

impl CertifiedCheckpoint {
    /// The authorisation of this client's request, if that is the leaf, and it stands under this checkpoint.
    pub fn authorisation(
        &self,
        client: &ClientId,
        request: RequestId,
        leaf: &ProvenLeaf,
    ) -> Result<CertifiedAuthorisation, ProofError> {
        let authorisation = self.leaf(&leaf.bytes, leaf.index, &leaf.inclusion)?.authorisation();
        let own = authorisation.filter(|a| a.client() == client && a.request().request == request);
        own.ok_or(ProofError::NoAuthorisation)
    }
}

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Does not decode, or not from its one byte form.
    #[error("not a proof in its canonical form")]
    Malformed,
    /// Not this cluster's.
    #[error("the chain begins with another genesis than {expected}")]
    WrongGenesis {
        /// What the trust file names.
        expected: Hash,
    },
    /// A policy version that does not parse.
    #[error("policy version {0} is not valid")]
    Policy(PolicyVersion, #[source] crate::policy::PolicyMistakes),
    /// A policy version that its predecessor's admins did not sign.
    #[error("policy version {0} does not follow from its predecessor")]
    Chain(PolicyVersion, #[source] Refusal),
    /// Last leaf is not a batch's end, or names another policy.
    #[error("the checkpoint's last leaf does not match the policy chain")]
    End,
    /// Not in the tree.
    #[error("a leaf is not in the checkpoint's tree")]
    NotIncluded,
    /// Evidence is not that of the attested node.
    #[error("the evidence of {0} is not what its leaf says")]
    Evidence(NodeId),
    /// The Verifier rejected it.
    #[error("the evidence of {0} was rejected: {1}")]
    Appraisal(NodeId, String),
    /// The quote's nonce is not of this log.
    #[error("the nonce of {0} is not a checkpoint of this log")]
    Nonce(NodeId),
    /// Evidence was too old.
    #[error("the evidence of {0} had lapsed")]
    Lapsed(NodeId),
    /// Not certified.
    #[error("the checkpoint is not certified")]
    NotCertified(#[from] NotCertified),
    /// Something in it proves nothing.
    #[error("the proof holds a blob or leaf that has no place in it")]
    Surplus,
    /// Not a receipt.
    #[error("the proof holds no authorisation")]
    NoAuthorisation,
}

struct BlobSet(BTreeMap<Hash, Vec<u8>>);

impl Blobs for BlobSet {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        self.0.get(digest).cloned()
    }
}

/// Verifies a policy chain from a genesis digest; the result is the version in force.
pub fn verify_chain(chain: &[SignedPolicy], genesis: Hash) -> Result<Policy, ProofError> {
    let wrong = || ProofError::WrongGenesis { expected: genesis };
    let (first, rest) = chain.split_first().ok_or_else(wrong)?;
    if sha256(&first.document) != genesis {
        return Err(wrong());
    }
    let parse = |d: &[u8], v: u64| Policy::parse(d).map_err(|e| ProofError::Policy(PolicyVersion(v), e));
    let mut policy = parse(&first.document, 1)?;
    policy.check_signers(first).map_err(|e| ProofError::Chain(policy.version, e))?;
    for signed in rest {
        let version = PolicyVersion(policy.version.0 + 1);
        policy.check_signers(signed).map_err(|e| ProofError::Chain(version, e))?;
        let next = parse(&signed.document, version.0)?;
        if next.version != version || next.previous != Some(policy.digest) || next.cluster != policy.cluster {
            return Err(ProofError::Chain(version, Refusal::WrongPredecessor));
        }
        policy = next;
    }
    Ok(policy)
}

impl Proof {
    /// Decodes the one byte form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProofError> {
        if bytes.len() > PROOF_BYTES_MAX {
            return Err(ProofError::Malformed);
        }
        let proof: Self = borsh::from_slice(bytes).map_err(|_| ProofError::Malformed)?;
        if encode(&proof) == bytes { Ok(proof) } else { Err(ProofError::Malformed) }
    }

    /// Checks everything, in this order: chain, batch end, evidence, certificate, leaves.
    pub fn verify(&self, genesis: Hash) -> Result<Verified, ProofError> {
        let policy = verify_chain(&self.chain, genesis)?;
        let included = |l: &ProvenLeaf| -> Result<Leaf, ProofError> {
            let CheckpointRef { size, root } = self.checkpoint;
            verify_inclusion(leaf_hash(&l.bytes), l.index, size, root, &l.inclusion)
                .map_err(|_| ProofError::NotIncluded)?;
            borsh::from_slice(&l.bytes).map_err(|_| ProofError::NotIncluded)
        };
        let Leaf::V1 { time, body: LeafBody::BatchEnd(end) } = included(&self.end)? else {
            return Err(ProofError::End);
        };
        let last = self.end.index.0.checked_add(1) == Some(self.checkpoint.size.0);
        if !last
            || end.policy != policy.version
            || end.policy_digest != policy.digest
            || end.attested.len() != self.evidence.len()
        {
            return Err(ProofError::End);
        }
        let nodes = self.verify_evidence(&policy, genesis, &end, time, included)?;
        let mut rules = vec![rule_of(&policy)];
        if let Some(from) = end.changing {
            rules.push(self.outgoing_rule(from)?);
        }
        let keys = nodes.iter().map(|(n, v)| (*n, PublicKey(v.boot.cosign))).collect();
        let certifiers = Certifiers { keys, rules };
        let origin = Policy::origin(&policy.cluster, &genesis);
        let certified = certifiers.certify(checkpoint_of(&origin, self.checkpoint), &self.cosignatures)?;
        let leaves = self
            .leaves
            .iter()
            .map(|l| certified.leaf(&l.bytes, l.index, &l.inclusion).map_err(ProofError::from))
            .collect::<Result<_, _>>()?;
        Ok(Verified { policy: Arc::new(policy), cluster: genesis, certified, time, nodes, leaves })
    }

    /// What the members of this version demand while the next one replaces them.
    fn outgoing_rule(&self, from: PolicyVersion) -> Result<QuorumRule, ProofError> {
        let version = |v: u64| {
            let signed = usize::try_from(v)
                .ok()
                .and_then(|v| self.chain.get(v.checked_sub(1)?))
                .ok_or(ProofError::End)?;
            Policy::parse(&signed.document).map_err(|e| ProofError::Policy(PolicyVersion(v), e))
        };
        outgoing_rule(&version(from.0)?, &version(from.0.saturating_add(1))?).ok_or(ProofError::End)
    }

    fn verify_evidence(
        &self,
        policy: &Policy,
        genesis: Hash,
        end: &BatchEnd,
        time: Timestamp,
        included: impl Fn(&ProvenLeaf) -> Result<Leaf, ProofError>,
    ) -> Result<BTreeMap<NodeId, VerifiedNode>, ProofError> {
        let blobs = BlobSet(self.blobs.iter().map(|b| (sha256(b), b.clone())).collect());
        let mut named = BTreeSet::new();
        let mut nodes = BTreeMap::new();
        for ((node, index), proven) in end.attested.iter().zip(&self.evidence) {
            let wrong = || ProofError::Evidence(*node);
            let Leaf::V1 { time: at, body } = included(&proven.leaf)?;
            let LeafBody::Decided { command: Command::Evidence(command), outcome: Outcome::Appraised { .. } } =
                body
            else {
                return Err(wrong());
            };
            let EvidenceCommand { node: whose, boot, nonce, evidence, .. } = &*command;
            if whose != node || proven.leaf.index != *index || !command.possesses_key(genesis) {
                return Err(wrong());
            }
            let CheckpointRef { size, root } = self.checkpoint;
            verify_consistency(nonce.size, nonce.root, size, root, &proven.nonce)
                .map_err(|_| ProofError::Nonce(*node))?;
            named.insert(Hash(evidence.event_log));
            named.extend(evidence.ima_log.map(Hash));
            let expected = evidence_nonce(genesis, &command);
            let appraised = appraise_member(policy, *node, evidence, &expected, None, &blobs)
                .map_err(|_| wrong())?
                .map_err(|check| ProofError::Appraisal(*node, check))?;
            if time.since_ms(at) > policy.attestation.lapse_ms {
                return Err(ProofError::Lapsed(*node));
            }
            let verified = VerifiedNode {
                boot: boot.clone(),
                evidence_at: at,
                leaf: *index,
                software_tpm: appraised.software_tpm(),
                firmware: appraised.firmware_version(),
                counters: appraised.counters(),
            };
            if nodes.insert(*node, verified).is_some() {
                return Err(wrong());
            }
        }
        let once = self.blobs.len() == blobs.0.len() && blobs.0.keys().eq(named.iter());
        if once { Ok(nodes) } else { Err(ProofError::Surplus) }
    }
}

/// A proof of one request, as a file: anyone with the genesis digest can verify it offline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt(pub Proof);

const RECEIPT_HEADER: &str = "quorate receipt v1";
const RECEIPT_COLUMNS: usize = 76;

impl Receipt {
    /// Header line, then base64 of the proof's canonical bytes, 76 columns a line.
    pub fn to_text(&self) -> String {
        let body = BASE64.encode(encode(&self.0));
        let mut text = String::with_capacity(body.len() + body.len() / RECEIPT_COLUMNS + 32);
        text.push_str(RECEIPT_HEADER);
        text.push('\n');
        for line in body.as_bytes().chunks(RECEIPT_COLUMNS) {
            text.extend(line.iter().map(|b| char::from(*b)));
            text.push('\n');
        }
        text
    }

    /// Reads exactly what [`Receipt::to_text`] writes.
    pub fn from_text(text: &str) -> Result<Self, ProofError> {
        if text.len() > 2 * PROOF_BYTES_MAX {
            return Err(ProofError::Malformed);
        }
        let body = text.strip_prefix(RECEIPT_HEADER).ok_or(ProofError::Malformed)?;
        let joined: String = body.split('\n').collect();
        let bytes = BASE64.decode(joined).map_err(|_| ProofError::Malformed)?;
        let receipt = Self(Proof::from_bytes(&bytes)?);
        if receipt.to_text() == text { Ok(receipt) } else { Err(ProofError::Malformed) }
    }

    /// Verifies it: the first leaf is the authorisation, the others (settlements) name the same request.
    pub fn verify(&self, genesis: Hash) -> Result<(Verified, CertifiedAuthorisation), ProofError> {
        let verified = self.0.verify(genesis)?;
        let (first, rest) = verified.leaves.split_first().ok_or(ProofError::NoAuthorisation)?;
        let authorisation = first.authorisation().ok_or(ProofError::NoAuthorisation)?;
        let request = authorisation.request().request;
        let mut last = first.index();
        for leaf in rest {
            if !speaks_of(leaf.leaf(), request) || leaf.index() <= last {
                return Err(ProofError::Surplus);
            }
            last = leaf.index();
        }
        Ok((verified, authorisation))
    }
}

/// Those of a batch that were not refused.
pub fn taken<'a, T>(all: &'a [T], refused: &'a [(u16, Refusal)]) -> impl Iterator<Item = &'a T> {
    let stands = |at: usize| !refused.iter().any(|(position, _)| usize::from(*position) == at);
    all.iter().enumerate().filter(move |(at, _)| stands(*at)).map(|(_, item)| item)
}

/// Whether a leaf says how this request ended.
fn speaks_of(leaf: &Leaf, request: RequestId) -> bool {
    let Leaf::V1 { body, .. } = leaf;
    match body {
        LeafBody::Decided { command: Command::Node(c), outcome: Outcome::Settled(refused) } => {
            match &c.body {
                NodeCommand::Settle(settlements) => taken(settlements, refused).any(|s| s.request == request),
                NodeCommand::Unanswered(requests) => taken(requests, refused).any(|r| *r == request),
                NodeCommand::Alarm(_) | NodeCommand::Snapshot => false,
            }
        }
        LeafBody::Decided { command: Command::Node(c), outcome: Outcome::AlarmRaised } => {
            matches!(&c.body, NodeCommand::Alarm(Alarm::HeadRefused { request: r, .. }) if *r == request)
        }
        LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Reported(refused) } => {
            let ClientCommand::Report(reports) = &c.body else { return false };
            taken(reports, refused).any(|r| r.request == request)
        }
        LeafBody::Unsettled { request: r, .. } | LeafBody::Anomaly { request: r, .. } => *r == request,
        _ => false,
    }
}
