//! Endorsements (RFC 9334 §8.2): which TPM an AK lives in.
use crate::tpm::{Curve, HashAlg, ObjectAttributes, PublicKey, Scheme, TpmError, TpmPublic};

/// Why a public area is not that of an attestation key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AkError {
    /// The bytes are not a public area that is understood here.
    #[error("the attestation key's public area is malformed")]
    Malformed(#[from] TpmError),
    /// An attribute without which the TPM would sign what it did not make, or the key could leave it.
    #[error("the attestation key lacks an attribute: needed {needed:#010x}, has {has:#010x}")]
    Attributes {
        /// Bits that must be set.
        needed: u32,
        /// Bits that are.
        has: u32,
    },
    /// The key also decrypts.
    #[error("the attestation key also decrypts")]
    Decrypts,
    /// Not ECDSA P-256 with SHA-256, P-384 with SHA-384, or RSASSA with SHA-256.
    #[error("the attestation key's scheme is not one that quotes are verified with")]
    Scheme,
}

/// An attestation key that was enrolled: shown to live in a TPM that an EK vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledAk {
    public: TpmPublic,
    software_tpm: bool,
}

impl EnrolledAk {
    /// An AK as it stands in the policy. What makes it trusted is the admins' signatures over the policy, which the
    /// caller has verified; checked here is that the key is one that signs nothing but what its TPM made.
    pub fn from_policy(ak_public: &[u8], software_tpm: bool) -> Result<Self, AkError> {
        Ok(Self { public: ak(ak_public)?, software_tpm })
    }

    /// The public area.
    pub fn public(&self) -> &TpmPublic {
        &self.public
    }

    /// The marshalled `TPMT_PUBLIC`, as policy holds it.
    pub fn public_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    /// The object's Name.
    pub fn name(&self) -> Vec<u8> {
        self.public.name()
    }

    /// Whether a TPM in software holds it: anybody with root on that machine can copy it.
    pub fn software_tpm(&self) -> bool {
        self.software_tpm
    }
}

/// Parses an AK and demands what makes its quotes worth anything (TPM 2.0 Library r1.59 Part 1, "Attestation").
fn ak(bytes: &[u8]) -> Result<TpmPublic, AkError> {
    let public = TpmPublic::parse(bytes)?;
    let needed = ObjectAttributes::FIXED_TPM.bits()
        | ObjectAttributes::FIXED_PARENT.bits()
        | ObjectAttributes::SENSITIVE_DATA_ORIGIN.bits()
        | ObjectAttributes::RESTRICTED.bits()
        | ObjectAttributes::SIGN.bits();
    let has = public.attributes();
    if has.bits() & needed != needed {
        return Err(AkError::Attributes { needed, has: has.bits() });
    }
    if has.contains(ObjectAttributes::DECRYPT) {
        return Err(AkError::Decrypts);
    }
    match (public.key(), public.scheme()) {
        (PublicKey::Ecc { curve: Curve::P256, .. }, Scheme::Ecdsa(HashAlg::Sha256))
        | (PublicKey::Ecc { curve: Curve::P384, .. }, Scheme::Ecdsa(HashAlg::Sha384))
        | (PublicKey::Rsa { .. }, Scheme::Rsassa(HashAlg::Sha256)) => Ok(public),
        _ => Err(AkError::Scheme),
    }
}
