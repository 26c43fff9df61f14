//! Approvals: which states of a machine may open what is sealed to its TPM, and until when.
//!
//! Implements the policy digests of TCG "TPM 2.0 Library r1.59 Part 3": TPM2_PolicyPCR, TPM2_PolicyNV and
//! TPM2_PolicyAuthorize, all with SHA-256, and the Names of Part 1, "Names".
//!
//! A sealed object's own policy is [`sealed_policy`]: whatever the approver approves for this [`PolicyRef`]. One
//! [`Approval`] is the approver's signature over one approved policy: these PCRs have exactly these values, and this
//! NV counter stands at `limit` or below. So new software needs a new approval but no new sealing, and raising the
//! counter above `limit` withdraws an approval for ever, since no counter goes back.
//!
//! Assumes that the approver's key signs nothing else: an approval is ECDSA over 64 bytes without a label, since the TPM
//! fixes what it verifies. Decides only form and signature: which PCR values deserve an approval is the approver's
//! choice. It is the TPM, not this module, that enforces an approval. Signing takes randomness from the operating
//! system; only an admin's machine signs.
use std::{fmt, ops::RangeInclusive};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey,
    },
};
use zeroize::Zeroizing;

use crate::{
    qualifying::qualifying_data,
    read::{ReadError, Reader},
};

/// Length of an uncompressed P-256 point (SEC 1 §2.3.3).
pub const POINT_BYTES: usize = 65;
/// Length of a Name under SHA-256: an algorithm id and the digest.
pub const NAME_BYTES: usize = 34;
/// Length of an encoded approval.
pub const APPROVAL_BYTES: usize = 1 + 3 + 32 + 4 + 8 + SIGNATURE_BYTES;
/// Largest PKCS#8 file read for an approver's key; P-256 needs about 140 bytes.
pub const PKCS8_BYTES_MAX: usize = 1024;

/// Length of an ECDSA P-256 signature: r and s.
const SIGNATURE_BYTES: usize = 64;
/// First byte of an encoded approval.
const VERSION: u8 = 1;
/// PCRs that a PC Client TPM has.
const PCR_COUNT: u8 = 24;
/// NV indices that belong to the owner (TCG "Registry of Reserved TPM 2.0 Handles and Localities").
const OWNER_INDICES: RangeInclusive<u32> = 0x0180_0000..=0x01bf_ffff;
/// Label of the policyRef of what a node's TPM keeps.
const NODE_LABEL: &str = "quorate sealed to node v1";

// TPM 2.0 Library r1.59, Part 2: TPM_CC, TPM_ALG_ID, TPM_EO, TPM_ECC_CURVE.
const CC_POLICY_NV: u32 = 0x149;
const CC_POLICY_AUTHORIZE: u32 = 0x16a;
const CC_POLICY_PCR: u32 = 0x17f;
const EO_UNSIGNED_LE: u16 = 0x0009;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const CURVE_P256: u16 = 0x0003;
/// `TPMA_OBJECT` of the approver's key: userWithAuth and sign.
const APPROVER_ATTRIBUTES: u32 = 1 << 6 | 1 << 18;
/// Size of a counter.
const COUNTER_BYTES: u16 = 8;

/// Why something is not an approval, or not one that counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// The approver's public key is not an uncompressed point on P-256.
    #[error("the approver's key is not an uncompressed P-256 point of {POINT_BYTES} bytes")]
    ApproverKey,
    /// The approver's private key is not a P-256 key in PKCS#8.
    #[error("the approver's private key is not a P-256 key in PKCS#8 (DER)")]
    PrivateKey,
    /// The PCRs are none, unordered, or not among those that exist.
    #[error("the PCRs {0:?} are not an ascending list of PCRs below {PCR_COUNT}")]
    Pcrs(Vec<u8>),
    /// The counter's NV index does not belong to the owner.
    #[error("{0:#010x} is not an NV index of the owner (0x01800000 to 0x01bfffff)")]
    CounterIndex(u32),
    /// Encoded by a version that this one does not know.
    #[error("the approval is of version {0}, not {VERSION}")]
    Version(u8),
    /// Not as long as an approval.
    #[error("an approval has {APPROVAL_BYTES} bytes")]
    Length,
    /// Not signed by this approver for this policyRef.
    #[error("the approval is not signed by the approver for this node")]
    NotSigned,
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl From<ReadError> for ApprovalError {
    fn from(_: ReadError) -> Self {
        Self::Length
    }
}

/// What an approval is for, beside the approver: so that one node's approvals open nothing on another. TPM2B_NONCE
/// `policyRef` of TPM2_PolicyAuthorize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRef([u8; 32]);

impl PolicyRef {
    /// For what node `node` of the cluster named `cluster` keeps.
    pub fn for_node(cluster: &str, node: u64) -> Self {
        Self(qualifying_data(NODE_LABEL, &[cluster.as_bytes(), &node.to_be_bytes()]))
    }

    /// From bytes that [`Self::as_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As the TPM gets it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The public key that approves: P-256.
#[derive(Clone, PartialEq, Eq)]
pub struct Approver([u8; POINT_BYTES]);

impl fmt::Debug for Approver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Approver({})", hex::encode(self.0))
    }
}

impl Approver {
    /// From an uncompressed point, which must be on the curve.
    pub fn from_sec1(bytes: &[u8]) -> Result<Self, ApprovalError> {
        let point = <[u8; POINT_BYTES]>::try_from(bytes).map_err(|_| ApprovalError::ApproverKey)?;
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| ApprovalError::ApproverKey)?;
        Ok(Self(point))
    }

    /// The uncompressed point.
    pub fn sec1(&self) -> &[u8; POINT_BYTES] {
        &self.0
    }

    /// Part 2, TPMT_PUBLIC, as TPM2_LoadExternal takes it.
    pub fn tpmt_public(&self) -> Vec<u8> {
        let [_, coordinates @ ..] = &self.0;
        let (x, y) = coordinates.split_at(32);
        let mut out = Vec::with_capacity(96);
        out.extend(ALG_ECC.to_be_bytes());
        out.extend(ALG_SHA256.to_be_bytes());
        out.extend(APPROVER_ATTRIBUTES.to_be_bytes());
        out.extend(0u16.to_be_bytes()); // authPolicy
        out.extend(ALG_NULL.to_be_bytes()); // symmetric
        out.extend(ALG_ECDSA.to_be_bytes());
        out.extend(ALG_SHA256.to_be_bytes());
        out.extend(CURVE_P256.to_be_bytes());
        out.extend(ALG_NULL.to_be_bytes()); // kdf
        for coordinate in [x, y] {
            out.extend(32u16.to_be_bytes());
            out.extend(coordinate);
        }
        out
    }

    /// The key's Name (Part 1, "Names").
    pub fn name(&self) -> [u8; NAME_BYTES] {
        name(&self.tpmt_public())
    }
}

/// The approver's private key. On an admin's machine only; drop it soon.
pub struct ApproverKey(EcdsaKeyPair);

impl ApproverKey {
    /// A new key as a PKCS#8 document (DER), to be kept in a file.
    pub fn generate_pkcs8() -> Result<Zeroizing<Vec<u8>>, ApprovalError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| Zeroizing::new(document.as_ref().to_vec()))
            .map_err(|_| ApprovalError::Crypto)
    }

    /// Reads such a document.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, ApprovalError> {
        if der.len() > PKCS8_BYTES_MAX {
            return Err(ApprovalError::PrivateKey);
        }
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)
            .map(Self)
            .map_err(|_| ApprovalError::PrivateKey)
    }

    /// The public half.
    pub fn approver(&self) -> Result<Approver, ApprovalError> {
        Approver::from_sec1(self.0.public_key().as_ref())
    }
}

/// The NV index of a node's approval counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterIndex(u32);

impl CounterIndex {
    /// Used unless configured otherwise.
    pub const DEFAULT: Self = Self(0x0180_0010);
    /// Part 2, TPMA_NV: TPMA_NV_OWNERWRITE, TPM_NT_COUNTER, TPMA_NV_OWNERREAD, TPMA_NV_AUTHREAD, TPMA_NV_NO_DA. A counter
    /// takes increments only, here with the owner's authorisation; anybody may read it. Deleting it takes the owner's
    /// authorisation too, and a counter defined anew starts above every value that any deleted one had (Part 3,
    /// TPM2_NV_Increment), so that no withdrawn approval comes back.
    pub const ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 17 | 1 << 18 | 1 << 25;
    /// TPMA_NV_WRITTEN: set by the first increment.
    const WRITTEN: u32 = 1 << 29;

    /// An index of the owner's.
    pub fn new(index: u32) -> Result<Self, ApprovalError> {
        if OWNER_INDICES.contains(&index) { Ok(Self(index)) } else { Err(ApprovalError::CounterIndex(index)) }
    }

    /// The TPM's handle.
    pub fn handle(self) -> u32 {
        self.0
    }

    /// The index's Name once it counts: of the TPMS_NV_PUBLIC with exactly [`Self::ATTRIBUTES`]. An index with other
    /// attributes has another Name, and so cannot stand in for it.
    pub fn name(self) -> [u8; NAME_BYTES] {
        let mut public = Vec::with_capacity(14);
        public.extend(self.0.to_be_bytes());
        public.extend(ALG_SHA256.to_be_bytes());
        public.extend((Self::ATTRIBUTES | Self::WRITTEN).to_be_bytes());
        public.extend(0u16.to_be_bytes()); // authPolicy
        public.extend(COUNTER_BYTES.to_be_bytes());
        name(&public)
    }
}

/// PCRs of the SHA-256 bank, and the digest of their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApprovedPcrs {
    select: [u8; 3],
    digest: [u8; 32],
}

impl ApprovedPcrs {
    /// Exactly these values, ascending by index.
    pub fn new(values: &[(u8, [u8; 32])]) -> Result<Self, ApprovalError> {
        let indices = || values.iter().map(|(index, _)| *index);
        let refuse = || ApprovalError::Pcrs(indices().collect());
        if values.is_empty() || !indices().is_sorted_by(|a, b| a < b) {
            return Err(refuse());
        }
        let mut select = [0; 3];
        for index in indices() {
            *select.get_mut(usize::from(index / 8)).ok_or_else(refuse)? |= 1 << (index % 8);
        }
        let concatenated: Vec<u8> = values.iter().flat_map(|(_, value)| *value).collect();
        Ok(Self { select, digest: sha256(&[&concatenated]) })
    }

    /// The indices, ascending.
    pub fn indices(&self) -> impl Iterator<Item = u8> + '_ {
        (0..PCR_COUNT).filter(|index| {
            self.select.get(usize::from(index / 8)).is_some_and(|bits| bits >> (index % 8) & 1 == 1)
        })
    }

    /// The digest of their values: `pcrDigest` of TPM2_PolicyPCR.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Part 2, TPML_PCR_SELECTION, marshalled.
    fn selection(&self) -> [u8; 10] {
        let [a, b, c] = self.select;
        let [hash_high, hash_low] = ALG_SHA256.to_be_bytes();
        [0, 0, 0, 1, hash_high, hash_low, 3, a, b, c]
    }
}

/// One signed permission to open what is sealed: in this state of the machine, while the counter is at most `limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    pcrs: ApprovedPcrs,
    counter: CounterIndex,
    limit: u64,
    /// r and s.
    signature: [[u8; 32]; 2],
}

impl Approval {
    /// Signs one.
    pub fn sign(
        key: &ApproverKey,
        policy_ref: &PolicyRef,
        pcrs: ApprovedPcrs,
        counter: CounterIndex,
        limit: u64,
    ) -> Result<Self, ApprovalError> {
        let mut approval = Self { pcrs, counter, limit, signature: [[0; 32]; 2] };
        let signature = key
            .0
            .sign(&SystemRandom::new(), &approval.signed_bytes(policy_ref))
            .map_err(|_| ApprovalError::Crypto)?;
        let mut r = Reader::new(signature.as_ref());
        approval.signature = [r.array()?, r.array()?];
        Ok(approval)
    }

    /// Whether `approver` signed it for `policy_ref`. The TPM asks the same again.
    pub fn verify(&self, approver: &Approver, policy_ref: &PolicyRef) -> Result<(), ApprovalError> {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, approver.0)
            .map_err(|_| ApprovalError::ApproverKey)?
            .verify_sig(&self.signed_bytes(policy_ref), self.signature.as_flattened())
            .map_err(|_| ApprovalError::NotSigned)
    }

    /// The PCRs it is for.
    pub fn pcrs(&self) -> &ApprovedPcrs {
        &self.pcrs
    }

    /// The counter that can withdraw it.
    pub fn counter(&self) -> CounterIndex {
        self.counter
    }

    /// The last value of the counter at which it holds.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// r and s.
    pub fn signature(&self) -> &[[u8; 32]; 2] {
        &self.signature
    }

    /// `approvedPolicy` of TPM2_PolicyAuthorize: PolicyPCR, then PolicyNV, of a fresh session.
    pub fn policy_digest(&self) -> [u8; 32] {
        let after_pcr =
            sha256(&[&[0; 32], &CC_POLICY_PCR.to_be_bytes(), &self.pcrs.selection(), &self.pcrs.digest]);
        // Part 3, TPM2_PolicyNV: args = H(operandB.buffer, offset, operation)
        let args = sha256(&[&self.limit.to_be_bytes(), &0u16.to_be_bytes(), &EO_UNSIGNED_LE.to_be_bytes()]);
        sha256(&[&after_pcr, &CC_POLICY_NV.to_be_bytes(), &args, &self.counter.name()])
    }

    /// What TPM2_VerifySignature takes as `digest` (Part 3, TPM2_PolicyAuthorize: aHash).
    pub fn signed_digest(&self, policy_ref: &PolicyRef) -> [u8; 32] {
        sha256(&[&self.signed_bytes(policy_ref)])
    }

    /// approvedPolicy, then policyRef; ECDSA hashes them once.
    fn signed_bytes(&self, policy_ref: &PolicyRef) -> [u8; 64] {
        let mut bytes = [0; 64];
        let (policy, reference) = bytes.split_at_mut(32);
        policy.copy_from_slice(&self.policy_digest());
        reference.copy_from_slice(&policy_ref.0);
        bytes
    }

    /// The one encoding: version, PCR bitmap, PCR digest, counter, limit, signature; numbers big-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(APPROVAL_BYTES);
        out.push(VERSION);
        out.extend(self.pcrs.select);
        out.extend(self.pcrs.digest);
        out.extend(self.counter.0.to_be_bytes());
        out.extend(self.limit.to_be_bytes());
        out.extend(self.signature.as_flattened());
        out
    }

    /// Reads what [`Self::to_bytes`] wrote. The signature is not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ApprovalError> {
        let mut r = Reader::new(bytes);
        match r.u8()? {
            VERSION => {}
            other => return Err(ApprovalError::Version(other)),
        }
        let select = r.array()?;
        if select == [0; 3] {
            return Err(ApprovalError::Pcrs(Vec::new()));
        }
        let pcrs = ApprovedPcrs { select, digest: r.array()? };
        let counter = CounterIndex::new(r.u32_be()?)?;
        let approval = Self { pcrs, counter, limit: r.u64_be()?, signature: [r.array()?, r.array()?] };
        if !r.is_empty() {
            return Err(ApprovalError::Length);
        }
        Ok(approval)
    }
}

/// The policy of a sealed object: TPM2_PolicyAuthorize by `approver` for `policy_ref`, whatever it approves.
pub fn sealed_policy(approver: &Approver, policy_ref: &PolicyRef) -> [u8; 32] {
    let keyed = sha256(&[&[0; 32], &CC_POLICY_AUTHORIZE.to_be_bytes(), &approver.name()]);
    sha256(&[&keyed, &policy_ref.0])
}

/// Part 1, "Names": the algorithm, then the digest of the public area.
fn name(public: &[u8]) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    let (algorithm, hash) = name.split_at_mut(2);
    algorithm.copy_from_slice(&ALG_SHA256.to_be_bytes());
    hash.copy_from_slice(&sha256(&[public]));
    name
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, &parts.concat()).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: u64 = 7;

    fn policy_ref() -> PolicyRef {
        PolicyRef::for_node("test", NODE)
    }

    fn key() -> ApproverKey {
        ApproverKey::from_pkcs8(&ApproverKey::generate_pkcs8().unwrap()).unwrap()
    }

    fn pcrs() -> ApprovedPcrs {
        ApprovedPcrs::new(&[(0, [0; 32]), (7, [1; 32]), (11, [2; 32])]).unwrap()
    }

    fn approval(key: &ApproverKey) -> Approval {
        Approval::sign(key, &policy_ref(), pcrs(), CounterIndex::DEFAULT, 3).unwrap()
    }

    #[test]
    fn an_approval_counts_for_its_approver_and_node_and_as_signed_only() {
        let key = key();
        let approver = key.approver().unwrap();
        let good = approval(&key);
        good.verify(&approver, &policy_ref()).unwrap();

        let other = self::key().approver().unwrap();
        assert_eq!(good.verify(&other, &policy_ref()), Err(ApprovalError::NotSigned));
        for elsewhere in [PolicyRef::for_node("test", NODE + 1), PolicyRef::for_node("tesu", NODE)] {
            assert_eq!(good.verify(&approver, &elsewhere), Err(ApprovalError::NotSigned));
        }
        let others = [
            Approval { pcrs: ApprovedPcrs { select: [0x81, 8, 1], ..good.pcrs }, ..good.clone() },
            Approval { pcrs: ApprovedPcrs { digest: [9; 32], ..good.pcrs }, ..good.clone() },
            Approval { counter: CounterIndex::new(0x0180_0011).unwrap(), ..good.clone() },
            Approval { limit: 4, ..good.clone() },
            Approval { signature: [[1; 32]; 2], ..good.clone() },
        ];
        for altered in others {
            assert_eq!(
                altered.verify(&approver, &policy_ref()),
                Err(ApprovalError::NotSigned),
                "{altered:?}"
            );
        }
    }

    /// As tpm2-tools 5.4 had a software TPM compute them: `tpm2_nvreadpublic`, and in a trial session `tpm2_policypcr -l
    /// sha256:4,7,11` on a fresh TPM, then `tpm2_policynv 0x1800010 ule` with 3 as its operand.
    #[test]
    fn digests_are_those_that_a_tpm_computes() {
        let fresh = ApprovedPcrs::new(&[(4, [0; 32]), (7, [0; 32]), (11, [0; 32])]).unwrap();
        let approval = Approval::sign(&key(), &policy_ref(), fresh, CounterIndex::DEFAULT, 3).unwrap();
        assert_eq!(
            hex::encode(CounterIndex::DEFAULT.name()),
            "000b326efac900147058c44fe89fb3f23ff35804c3c18dd5072ed092bc4097b0469c"
        );
        assert_eq!(
            hex::encode(approval.policy_digest()),
            "89f45519ffad342a7934c17b63f9aa867b2c486245daa7342c0e4e34b06ed9be"
        );
    }

    #[test]
    fn the_encoding_is_one_to_one_and_bounded() {
        let good = approval(&key());
        let bytes = good.to_bytes();
        assert_eq!(bytes.len(), APPROVAL_BYTES);
        assert_eq!(Approval::from_bytes(&bytes), Ok(good));

        for length in 0..bytes.len() {
            assert_eq!(Approval::from_bytes(&bytes[..length]), Err(ApprovalError::Length));
        }
        let with = |at: usize, byte: u8| {
            let mut altered = bytes.clone();
            altered[at] = byte;
            Approval::from_bytes(&altered)
        };
        assert_eq!(Approval::from_bytes(&[&bytes[..], &[0]].concat()), Err(ApprovalError::Length));
        assert_eq!(with(0, 2), Err(ApprovalError::Version(2)));
        assert_eq!(with(36, 2), Err(ApprovalError::CounterIndex(0x0280_0010)));
        let mut none = bytes.clone();
        none[1..4].fill(0);
        assert_eq!(Approval::from_bytes(&none), Err(ApprovalError::Pcrs(vec![])));
    }

    #[test]
    fn pcrs_are_an_ascending_list_of_those_that_exist() {
        assert_eq!(pcrs().indices().collect::<Vec<_>>(), [0, 7, 11]);
        assert_eq!(pcrs().selection(), [0, 0, 0, 1, 0, 11, 3, 0x81, 8, 0]);
        for bad in [&[][..], &[24], &[255], &[1, 1], &[2, 1]] {
            let values: Vec<_> = bad.iter().map(|index| (*index, [0; 32])).collect();
            assert_eq!(ApprovedPcrs::new(&values), Err(ApprovalError::Pcrs(bad.to_vec())));
        }
        for bad in [0x017f_ffff, 0x01c0_0000, 0] {
            assert_eq!(CounterIndex::new(bad), Err(ApprovalError::CounterIndex(bad)));
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let point = *key().approver().unwrap().sec1();
        let off_curve = {
            let mut altered = point;
            altered[64] ^= 1;
            altered
        };
        for bad in [&point[..64], &off_curve, &[&point[..], &[0]].concat(), &[0; POINT_BYTES]] {
            assert_eq!(Approver::from_sec1(bad), Err(ApprovalError::ApproverKey));
        }
        for bad in [&[][..], &[0x30, 0], &[0; PKCS8_BYTES_MAX + 1]] {
            assert_eq!(ApproverKey::from_pkcs8(bad).err(), Some(ApprovalError::PrivateKey));
        }
    }
}
