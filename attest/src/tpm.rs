//! The few TPM structures a Verifier reads: `TPMS_ATTEST` of a quote, `TPMT_SIGNATURE`, `TPMT_PUBLIC`.
//!
//! Implements TCG "TPM 2.0 Library r1.59 Part 2, Structures"; each item names its structure. Decides nothing but form:
//! what it refuses is trailing bytes, lengths beyond a bound, algorithms too weak to prove anything (SHA-1), and values
//! the specification reserves. It assumes nothing about who wrote the bytes.
use std::collections::BTreeSet;

use aws_lc_rs::{digest, signature};

use crate::read::{ReadError, Reader};

/// Largest `TPMT_PUBLIC` read: RSA-4096 with a SHA-512 policy needs 600 bytes.
pub const PUBLIC_BYTES_MAX: usize = 1024;
/// Largest `TPMS_ATTEST` read: names of 66 bytes, 64 bytes of qualifying data and 16 selections need under 400.
pub const ATTEST_BYTES_MAX: usize = 1024;
/// Largest `TPMT_SIGNATURE` read: RSA-4096 needs 518 bytes.
pub const SIGNATURE_BYTES_MAX: usize = 1024;
/// Largest digest, in bytes: SHA-512.
const DIGEST_BYTES_MAX: usize = 64;
/// Largest `TPM2B_NAME`: an algorithm id and a SHA-512 digest (the TPM's union also allows a handle).
const NAME_BYTES_MAX: usize = 2 + DIGEST_BYTES_MAX;
/// Largest `TPM2B_DATA`: a `TPMT_HA` of SHA-512.
const DATA_BYTES_MAX: usize = 2 + DIGEST_BYTES_MAX;
/// Banks in one `TPML_PCR_SELECTION` (Part 2: HASH_COUNT is implementation dependent; 16 is the common maximum).
const SELECTIONS_MAX: u32 = 16;
/// Bytes of one PCR bitmap: 24 PCRs on a PC, at most 32 anywhere.
const PCR_SELECT_BYTES_MAX: u8 = 4;
/// Largest RSA modulus, in bytes.
const RSA_BYTES_MAX: usize = 512;
/// Smallest RSA modulus, in bytes, whose signature counts.
const RSA_BYTES_MIN: usize = 256;
/// Largest coordinate of a point, in bytes: P-521.
const COORDINATE_BYTES_MAX: usize = 66;

/// `TPM_GENERATED_VALUE`: what the TPM puts before everything it attests to, and refuses to sign otherwise.
pub(crate) const TPM_GENERATED: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
pub(crate) const ST_ATTEST_QUOTE: u16 = 0x8018;

const ALG_RSA: u16 = 0x0001;
const ALG_SHA1: u16 = 0x0004;
const ALG_AES: u16 = 0x0006;
const ALG_SHA256: u16 = 0x000b;
const ALG_SHA384: u16 = 0x000c;
const ALG_SHA512: u16 = 0x000d;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAES: u16 = 0x0015;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_OAEP: u16 = 0x0017;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDH: u16 = 0x0019;
const ALG_ECMQV: u16 = 0x001d;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;
/// Part 2, TPMT_PUBLIC / TPMS_RSA_PARMS: an exponent of zero means this one.
const RSA_DEFAULT_EXPONENT: u32 = 65_537;

/// Why bytes are not the TPM structure they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// The structure ends before its last field.
    #[error("the structure is cut short")]
    Short,
    /// A length field exceeds the bound of its field.
    #[error("a length exceeds its bound")]
    TooLong,
    /// Bytes follow the structure.
    #[error("{bytes} bytes follow the structure")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// `TPMS_ATTEST.magic` is not `TPM_GENERATED_VALUE`: no TPM vouches for these bytes.
    #[error("magic is {got:#010x}, not TPM_GENERATED_VALUE")]
    NotTpmGenerated {
        /// What stands there.
        got: u32,
    },
    /// `TPMS_ATTEST.type` is not `TPM_ST_ATTEST_QUOTE`.
    #[error("attestation of type {got:#06x} is not a quote")]
    NotAQuote {
        /// What stands there.
        got: u16,
    },
    /// SHA-1 where a digest carries weight.
    #[error("SHA-1 proves nothing")]
    Sha1,
    /// An algorithm this Verifier does not know.
    #[error("algorithm {got:#06x} is not supported here")]
    Algorithm {
        /// `TPM_ALG_ID`.
        got: u16,
    },
    /// A curve this Verifier does not know.
    #[error("curve {got:#06x} is not supported")]
    Curve {
        /// `TPM_ECC_CURVE`.
        got: u16,
    },
    /// A field holds a value the specification does not allow.
    #[error("{field} has a value that is not allowed")]
    Value {
        /// Which field.
        field: &'static str,
    },
}

impl From<ReadError> for TpmError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Short => Self::Short,
            ReadError::TooLong => Self::TooLong,
        }
    }
}

/// A signature did not verify, or the key may not make such a signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signature's scheme is not one the key can have made.
    #[error("the signature's scheme does not fit the key")]
    SchemeDoesNotFitKey,
    /// The signature is not by this key over these bytes.
    #[error("the signature does not verify")]
    DoesNotVerify,
}

/// A hash that may carry weight. Part 2, TPMI_ALG_HASH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HashAlg {
    /// `TPM_ALG_SHA256`
    Sha256,
    /// `TPM_ALG_SHA384`
    Sha384,
    /// `TPM_ALG_SHA512`
    Sha512,
}

impl HashAlg {
    fn from_id(id: u16) -> Result<Self, TpmError> {
        match id {
            ALG_SHA256 => Ok(Self::Sha256),
            ALG_SHA384 => Ok(Self::Sha384),
            ALG_SHA512 => Ok(Self::Sha512),
            ALG_SHA1 => Err(TpmError::Sha1),
            got => Err(TpmError::Algorithm { got }),
        }
    }

    /// `TPM_ALG_ID`.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha256 => ALG_SHA256,
            Self::Sha384 => ALG_SHA384,
            Self::Sha512 => ALG_SHA512,
        }
    }

    /// Size of a digest in bytes.
    pub fn len_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    pub(crate) fn digest(self, bytes: &[u8]) -> digest::Digest {
        digest::digest(self.algorithm(), bytes)
    }
}

/// A curve. Part 2, TPM_ECC_CURVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// `TPM_ECC_NIST_P256`
    P256,
    /// `TPM_ECC_NIST_P384`
    P384,
}

impl Curve {
    /// Size of a coordinate in bytes.
    pub fn len_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// Object attributes. Part 2, TPMA_OBJECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectAttributes(u32);

impl ObjectAttributes {
    /// The key cannot leave its TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// The key cannot be moved to another parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made the private part itself.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// The key signs or decrypts only what the TPM itself made.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// The key decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// The key signs.
    pub const SIGN: Self = Self(1 << 18);
    /// Bits that shall be zero (Part 2, Table 31: 0, 3, 8, 9, 12 to 15, 20 to 31), as of r1.59.
    const RESERVED: u32 = 1 | 1 << 3 | 0b11 << 8 | 0b1111 << 12 | 0xfff0_0000;

    /// Whether every bit of `other` is set here.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// The cryptographic part of a public area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Part 2, TPMS_RSA_PARMS and TPM2B_PUBLIC_KEY_RSA.
    Rsa {
        /// Big-endian, as long as the key.
        modulus: Vec<u8>,
        /// 65537 where the TPM says zero.
        exponent: u32,
    },
    /// Part 2, TPMS_ECC_PARMS and TPMS_ECC_POINT.
    Ecc {
        /// The curve.
        curve: Curve,
        /// Coordinate, padded to the curve's size.
        x: Vec<u8>,
        /// Coordinate, padded to the curve's size.
        y: Vec<u8>,
    },
}

/// The signing scheme a key is bound to, where it is bound to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `TPM_ALG_NULL`: none.
    None,
    /// `TPM_ALG_RSASSA` with a hash.
    Rsassa(HashAlg),
    /// `TPM_ALG_ECDSA` with a hash.
    Ecdsa(HashAlg),
    /// One that makes no signature read here: encryption, key agreement, RSAPSS.
    Other(u16),
}

/// A public area. Part 2, TPMT_PUBLIC. Only [`TpmPublic::parse`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmPublic {
    raw: Vec<u8>,
    name_alg: HashAlg,
    attributes: ObjectAttributes,
    auth_policy: Vec<u8>,
    aes_bits: Option<u16>,
    scheme: Scheme,
    key: PublicKey,
}

impl TpmPublic {
    /// Reads a marshalled `TPMT_PUBLIC` (without the size field of a `TPM2B_PUBLIC`).
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > PUBLIC_BYTES_MAX {
            return Err(TpmError::TooLong);
        }
        let mut r = Reader::new(bytes);
        let kind = r.u16_be()?;
        let name_alg = HashAlg::from_id(r.u16_be()?)?;
        let attributes = r.u32_be()?;
        if attributes & ObjectAttributes::RESERVED != 0 {
            return Err(TpmError::Value { field: "objectAttributes" });
        }
        let auth_policy = r.tpm2b(DIGEST_BYTES_MAX)?.to_vec();
        if !auth_policy.is_empty() && auth_policy.len() != name_alg.len_bytes() {
            return Err(TpmError::Value { field: "authPolicy" });
        }
        let aes_bits = match kind {
            ALG_RSA | ALG_ECC => parse_symmetric(&mut r)?,
            got => return Err(TpmError::Algorithm { got }),
        };
        let scheme = parse_scheme(&mut r)?;
        let key = if kind == ALG_RSA { parse_rsa(&mut r)? } else { parse_ecc(&mut r)? };
        finish(&r)?;
        Ok(Self {
            raw: bytes.to_vec(),
            name_alg,
            attributes: ObjectAttributes(attributes),
            auth_policy,
            aes_bits,
            scheme,
            key,
        })
    }

    /// The bytes this was read from.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The hash that names the object.
    pub fn name_alg(&self) -> HashAlg {
        self.name_alg
    }

    /// What the object may do.
    pub fn attributes(&self) -> ObjectAttributes {
        self.attributes
    }

    /// The policy that authorises its use; empty where there is none.
    pub fn auth_policy(&self) -> &[u8] {
        &self.auth_policy
    }

    /// Key length of the AES-CFB that a storage key or EK protects its children with.
    pub fn aes_bits(&self) -> Option<u16> {
        self.aes_bits
    }

    /// The scheme the key is bound to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The object's Name: the name algorithm and the digest of the public area (TPM 2.0 Library r1.59 Part 1, "Names").
    pub fn name(&self) -> Vec<u8> {
        let mut name = self.name_alg.id().to_be_bytes().to_vec();
        name.extend_from_slice(self.name_alg.digest(&self.raw).as_ref());
        name
    }

    /// Verifies a signature by this key. The key's own scheme, where it has one, must be the signature's.
    pub fn verify(&self, message: &[u8], sig: &TpmSignature) -> Result<(), SignatureError> {
        use SignatureError::{DoesNotVerify, SchemeDoesNotFitKey};
        let made_with = match sig {
            TpmSignature::Rsassa { .. } => Scheme::Rsassa(sig.hash()),
            TpmSignature::Ecdsa { .. } => Scheme::Ecdsa(sig.hash()),
        };
        if self.scheme != Scheme::None && self.scheme != made_with {
            return Err(SchemeDoesNotFitKey);
        }
        match (&self.key, sig) {
            (
                PublicKey::Rsa { modulus, exponent },
                TpmSignature::Rsassa { hash: HashAlg::Sha256, signature },
            ) => {
                let components = signature::RsaPublicKeyComponents { n: modulus, e: &minimal(*exponent) };
                components
                    .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                    .map_err(|_| DoesNotVerify)
            }
            (PublicKey::Ecc { curve, x, y }, TpmSignature::Ecdsa { hash, r, s }) => {
                let algorithm = match (curve, hash) {
                    (Curve::P256, HashAlg::Sha256) => &signature::ECDSA_P256_SHA256_FIXED,
                    (Curve::P384, HashAlg::Sha384) => &signature::ECDSA_P384_SHA384_FIXED,
                    _ => return Err(SchemeDoesNotFitKey),
                };
                let len = curve.len_bytes();
                let mut fixed = pad(r, len).ok_or(DoesNotVerify)?;
                fixed.extend(pad(s, len).ok_or(DoesNotVerify)?);
                signature::UnparsedPublicKey::new(algorithm, uncompressed(x, y))
                    .verify(message, &fixed)
                    .map_err(|_| DoesNotVerify)
            }
            _ => Err(SchemeDoesNotFitKey),
        }
    }
}

/// An uncompressed point, SEC 1 §2.3.3.
pub(crate) fn uncompressed(x: &[u8], y: &[u8]) -> Vec<u8> {
    let mut point = vec![4u8];
    point.extend_from_slice(x);
    point.extend_from_slice(y);
    point
}

/// Big-endian bytes of an exponent without leading zeros.
pub(crate) fn minimal(exponent: u32) -> Vec<u8> {
    exponent.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect()
}

/// Pads a big-endian number to `len` bytes; `None` where it is longer.
fn pad(number: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut padded = vec![0; len.checked_sub(number.len())?];
    padded.extend_from_slice(number);
    Some(padded)
}

fn finish(r: &Reader<'_>) -> Result<(), TpmError> {
    if r.is_empty() { Ok(()) } else { Err(TpmError::Trailing { bytes: r.rest().len() }) }
}

/// Part 2, TPMT_SYM_DEF_OBJECT: none, or AES-CFB.
fn parse_symmetric(r: &mut Reader<'_>) -> Result<Option<u16>, TpmError> {
    match r.u16_be()? {
        ALG_NULL => Ok(None),
        ALG_AES => {
            let bits = r.u16_be()?;
            let mode = r.u16_be()?;
            if !matches!(bits, 128 | 256) {
                return Err(TpmError::Value { field: "symmetric.keyBits" });
            }
            if mode != ALG_CFB {
                return Err(TpmError::Algorithm { got: mode });
            }
            Ok(Some(bits))
        }
        got => Err(TpmError::Algorithm { got }),
    }
}

/// Part 2, TPMT_RSA_SCHEME and TPMT_ECC_SCHEME.
fn parse_scheme(r: &mut Reader<'_>) -> Result<Scheme, TpmError> {
    match r.u16_be()? {
        ALG_NULL => Ok(Scheme::None),
        ALG_RSASSA => Ok(Scheme::Rsassa(HashAlg::from_id(r.u16_be()?)?)),
        ALG_ECDSA => Ok(Scheme::Ecdsa(HashAlg::from_id(r.u16_be()?)?)),
        id @ (ALG_RSAPSS | ALG_OAEP | ALG_ECDH | ALG_ECMQV) => {
            HashAlg::from_id(r.u16_be()?)?;
            Ok(Scheme::Other(id))
        }
        ALG_RSAES => Ok(Scheme::Other(ALG_RSAES)),
        got => Err(TpmError::Algorithm { got }),
    }
}

fn parse_rsa(r: &mut Reader<'_>) -> Result<PublicKey, TpmError> {
    let bits = r.u16_be()?;
    let exponent = match r.u32_be()? {
        0 => RSA_DEFAULT_EXPONENT,
        e if e >= 3 && e % 2 == 1 => e,
        _ => return Err(TpmError::Value { field: "exponent" }),
    };
    let modulus = r.tpm2b(RSA_BYTES_MAX)?.to_vec();
    let first_is_set = modulus.first().is_some_and(|b| b & 0x80 != 0);
    if modulus.len() * 8 != usize::from(bits) || modulus.len() < RSA_BYTES_MIN || !first_is_set {
        return Err(TpmError::Value { field: "modulus" });
    }
    Ok(PublicKey::Rsa { modulus, exponent })
}

fn parse_ecc(r: &mut Reader<'_>) -> Result<PublicKey, TpmError> {
    let curve = match r.u16_be()? {
        CURVE_P256 => Curve::P256,
        CURVE_P384 => Curve::P384,
        got => return Err(TpmError::Curve { got }),
    };
    // Part 2, TPMT_KDF_SCHEME: not used by any command, so only none is read.
    match r.u16_be()? {
        ALG_NULL => {}
        got => return Err(TpmError::Algorithm { got }),
    }
    let x = pad(r.tpm2b(COORDINATE_BYTES_MAX)?, curve.len_bytes()).ok_or(TpmError::Value { field: "x" })?;
    let y = pad(r.tpm2b(COORDINATE_BYTES_MAX)?, curve.len_bytes()).ok_or(TpmError::Value { field: "y" })?;
    Ok(PublicKey::Ecc { curve, x, y })
}

/// A signature. Part 2, TPMT_SIGNATURE, of the schemes read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmSignature {
    /// Part 2, TPMS_SIGNATURE_RSA under RSASSA.
    Rsassa {
        /// Over which digest.
        hash: HashAlg,
        /// As long as the modulus.
        signature: Vec<u8>,
    },
    /// Part 2, TPMS_SIGNATURE_ECC under ECDSA.
    Ecdsa {
        /// Over which digest.
        hash: HashAlg,
        /// As the TPM wrote it.
        r: Vec<u8>,
        /// As the TPM wrote it.
        s: Vec<u8>,
    },
}

impl TpmSignature {
    /// Reads a marshalled `TPMT_SIGNATURE`. SHA-1, RSAPSS, ECDAA and the rest are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > SIGNATURE_BYTES_MAX {
            return Err(TpmError::TooLong);
        }
        let mut r = Reader::new(bytes);
        let scheme = r.u16_be()?;
        let parsed = match scheme {
            ALG_RSASSA => {
                let hash = HashAlg::from_id(r.u16_be()?)?;
                Self::Rsassa { hash, signature: r.tpm2b(RSA_BYTES_MAX)?.to_vec() }
            }
            ALG_ECDSA => {
                let hash = HashAlg::from_id(r.u16_be()?)?;
                let first = r.tpm2b(COORDINATE_BYTES_MAX)?.to_vec();
                Self::Ecdsa { hash, r: first, s: r.tpm2b(COORDINATE_BYTES_MAX)?.to_vec() }
            }
            got => return Err(TpmError::Algorithm { got }),
        };
        finish(&r)?;
        Ok(parsed)
    }

    /// The hash that was signed; a quote's `pcrDigest` uses it too.
    pub fn hash(&self) -> HashAlg {
        match self {
            Self::Rsassa { hash, .. } | Self::Ecdsa { hash, .. } => *hash,
        }
    }
}

/// One bank of a selection. Part 2, TPMS_PCR_SELECTION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrSelection {
    /// `TPM_ALG_ID` of the bank; any, because a selection is compared, not trusted.
    pub bank: u16,
    /// The selected PCRs.
    pub pcrs: BTreeSet<u8>,
}

impl PcrSelection {
    /// Whether this is the SHA-256 bank.
    pub fn is_sha256(&self) -> bool {
        self.bank == ALG_SHA256
    }
}

/// A quote. Part 2, TPMS_ATTEST with TPMS_QUOTE_INFO and TPMS_CLOCK_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Qualified Name of the key that signed; it names the hierarchy above the key, not checked here.
    pub qualified_signer: Vec<u8>,
    /// The qualifying data given to TPM2_Quote.
    pub extra_data: Vec<u8>,
    /// Milliseconds the TPM has been powered since it was last cleared.
    pub clock_ms: u64,
    /// TPM resets (power cycles) since the last clear.
    pub reset_count: u32,
    /// TPM restarts and resumes since the last reset.
    pub restart_count: u32,
    /// Whether no higher value of clock can have been reported before.
    pub safe: bool,
    /// The TPM vendor's firmware version.
    pub firmware_version: u64,
    /// Which PCRs of which banks.
    pub selections: Vec<PcrSelection>,
    /// Digest over their values, with the hash of the signing scheme.
    pub pcr_digest: Vec<u8>,
}

impl Quote {
    /// Reads a marshalled `TPMS_ATTEST` that must be a quote. `magic` is looked at first, then the type.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > ATTEST_BYTES_MAX {
            return Err(TpmError::TooLong);
        }
        let mut r = Reader::new(bytes);
        let magic = r.u32_be()?;
        if magic != TPM_GENERATED {
            return Err(TpmError::NotTpmGenerated { got: magic });
        }
        let kind = r.u16_be()?;
        if kind != ST_ATTEST_QUOTE {
            return Err(TpmError::NotAQuote { got: kind });
        }
        let qualified_signer = r.tpm2b(NAME_BYTES_MAX)?.to_vec();
        let extra_data = r.tpm2b(DATA_BYTES_MAX)?.to_vec();
        let clock_ms = r.u64_be()?;
        let reset_count = r.u32_be()?;
        let restart_count = r.u32_be()?;
        // Part 2, TPMI_YES_NO.
        let safe = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(TpmError::Value { field: "safe" }),
        };
        let firmware_version = r.u64_be()?;
        let count = r.u32_be()?;
        if count > SELECTIONS_MAX {
            return Err(TpmError::TooLong);
        }
        let mut selections = Vec::new();
        for _ in 0..count {
            selections.push(parse_selection(&mut r)?);
        }
        let pcr_digest = r.tpm2b(DIGEST_BYTES_MAX)?.to_vec();
        finish(&r)?;
        Ok(Self {
            qualified_signer,
            extra_data,
            clock_ms,
            reset_count,
            restart_count,
            safe,
            firmware_version,
            selections,
            pcr_digest,
        })
    }
}

fn parse_selection(r: &mut Reader<'_>) -> Result<PcrSelection, TpmError> {
    let bank = r.u16_be()?;
    let len = r.u8()?;
    if len > PCR_SELECT_BYTES_MAX {
        return Err(TpmError::TooLong);
    }
    let bitmap = r.take(usize::from(len))?;
    let pcrs = (0u8..).zip(bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)));
    Ok(PcrSelection { bank, pcrs: pcrs.filter_map(|(pcr, selected)| selected.then_some(pcr)).collect() })
}
