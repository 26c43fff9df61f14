//! Endorsements (RFC 9334 §8.2): which TPM an AK lives in.
//!
//! Three steps, each a type that cannot be had without the one before:
//!
//! 1. [`verify_ek`] takes an EK certificate to roots that the admin named and gives a [`GenuineEk`]; an EK that an admin
//!    inventoried, where a TPM has no certificate, enters by [`GenuineEk::inventoried`].
//! 2. [`Enrolment::begin`] demands that the EK's public area is that key's and the AK's that of an attestation key, and
//!    wraps a secret that only this TPM recovers, and only while it holds this AK.
//! 3. [`Enrolment::finish`] takes what came back and gives an [`EnrolledAk`]. Admins sign it into the policy, and from
//!    there it enters every node by [`EnrolledAk::from_policy`].
//!
//! Implements RFC 5280 §6.1 as far as TCG "EK Credential Profile 2.4" uses it: names, signatures, validity where it is
//! asked for, CA and path length, key usage, the EKU of EKs. It refuses critical extensions that it does not understand.
//! Not done: revocation (few vendors publish it), certificate policies and name constraints.
use std::collections::BTreeMap;

use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::{Oid, oid};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA1WITHRSA,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use crate::credential::{CredentialBlob, CredentialError, SECRET_BYTES, make_credential};
use crate::tpm::{Curve, HashAlg, ObjectAttributes, PublicKey, Scheme, TpmError, TpmPublic};

/// Largest certificate read. EK certificates have 800 to 1,600 bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 8 << 10;
/// Most intermediates offered for one chain.
pub const INTERMEDIATES_MAX: usize = 256;
/// Most roots an admin may trust at once; all TPM vendors together have some hundred.
pub const ROOTS_MAX: usize = 1024;
/// Most CA certificates between an EK and a root. Vendors use one to three.
const CHAIN_MAX: usize = 6;
/// Most signatures verified in search of one chain.
const VERIFICATIONS_MAX: usize = 256;

/// TCG EK Credential Profile 2.4, "Extended Key Usage": tcg-kp-EKCertificate.
const EKU_EK_CERTIFICATE: Oid<'static> = oid!(2.23.133.8.1);
/// TCG EK Credential Profile 2.4, "Subject Alternative Name": tcg-at-tpmManufacturer.
const TPM_MANUFACTURER: Oid<'static> = oid!(2.23.133.2.1);
/// RFC 4055 §4.1: id-RSAES-OAEP, which some vendors give as the key's algorithm.
const RSAES_OAEP: Oid<'static> = oid!(1.2.840.113549.1.1.7);

/// Manufacturer ids of TPMs in software: swtpm's certificates name IBM's PCI vendor id; libtpms and the reference
/// implementation say "IBM" in the TPM itself. A hypervisor's virtual TPM has its vendor's id and is not among these.
const SOFTWARE_MANUFACTURERS: [u32; 3] = [0x0000_1014, 0x4942_4d00, 0x4942_4d20];

/// Who made a TPM, as its EK certificate says: TCG "TPM Vendor ID Registry".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manufacturer(pub u32);

impl Manufacturer {
    /// Whether this is a TPM in software.
    pub fn is_software(self) -> bool {
        SOFTWARE_MANUFACTURERS.contains(&self.0)
    }
}

/// Whether the certificates' validity matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Every certificate of the chain must be valid at this time, in seconds since 1970.
    At(i64),
    /// Not checked: many EK certificates expire long before their TPM does, and an EK cannot be renewed. What an expired
    /// one still proves is that the vendor certified the key while it was valid.
    NotChecked,
}

/// How strictly an EK certificate is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EkPolicy {
    /// Whether validity matters.
    pub validity: Validity,
    /// Whether SHA-1 signatures count. TPMs of about 2014 have them; SHA-1 collisions let
    /// certificates be forged, so only for machines whose TPM an admin has in hand.
    pub danger_allow_sha1: bool,
}

/// Why an EK is not taken for genuine. Positions count from the EK's own certificate, 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EkError {
    /// More or larger certificates than are read.
    #[error("too many certificates, or one too large")]
    TooLarge,
    /// Bytes that are not an X.509 certificate, or followed by others.
    #[error("certificate {position} is malformed")]
    Malformed {
        /// Where in the chain; the EK's where an intermediate could not be read.
        position: usize,
    },
    /// No root and no intermediate issued the certificate.
    #[error("no trusted root or intermediate issued certificate {position}")]
    NoIssuer {
        /// Where in the chain.
        position: usize,
    },
    /// More than six CAs.
    #[error("the chain is longer than {CHAIN_MAX} CAs")]
    ChainTooLong,
    /// A signature with SHA-1, which the policy does not allow.
    #[error("certificate {position} is signed with SHA-1")]
    Sha1 {
        /// Where in the chain.
        position: usize,
    },
    /// Not valid yet, or not any more.
    #[error("certificate {position} is not valid at the time asked for")]
    NotValid {
        /// Where in the chain.
        position: usize,
    },
    /// An issuer that is not a CA or may not sign certificates.
    #[error("certificate {position} is not that of a CA")]
    IssuerIsNotACa {
        /// Where in the chain.
        position: usize,
    },
    /// More CAs below an issuer than it allows.
    #[error("certificate {position} allows fewer CAs below it")]
    PathLength {
        /// Where in the chain.
        position: usize,
    },
    /// A critical extension that is not understood here.
    #[error("certificate {position} has a critical extension that is not understood: {oid}")]
    CriticalExtension {
        /// Where in the chain.
        position: usize,
        /// Its object identifier.
        oid: String,
    },
    /// The EK's certificate is that of a CA.
    #[error("the EK's certificate is that of a CA")]
    LeafIsACa,
    /// The EK's certificate lacks the extended key usage of EKs.
    #[error("the certificate is not that of an EK: extended key usage 2.23.133.8.1 is missing")]
    NotAnEkCertificate,
    /// The EK's certificate forbids what an EK does.
    #[error("the certificate's key usage allows neither key encipherment nor key agreement")]
    KeyUsage,
    /// The EK's certificate does not name the TPM's manufacturer.
    #[error("the certificate does not name the TPM's manufacturer")]
    NoManufacturer,
    /// A key other than RSA, P-256 or P-384.
    #[error("the EK is of a kind that is not supported")]
    UnsupportedKey,
}

/// An EK that somebody trusted vouches for: a vendor by certificate, or an admin by inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenuineEk {
    key: PublicKey,
    manufacturer: Option<Manufacturer>,
    software_tpm: bool,
}

impl GenuineEk {
    /// An EK without a certificate, whose public area an admin read from the machine itself and wrote down.
    pub fn inventoried(ek_public: &TpmPublic, software_tpm: bool) -> Self {
        Self { key: ek_public.key().clone(), manufacturer: None, software_tpm }
    }

    /// The public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Who made the TPM, where a certificate says.
    pub fn manufacturer(&self) -> Option<Manufacturer> {
        self.manufacturer
    }

    /// Whether the TPM is software.
    pub fn software_tpm(&self) -> bool {
        self.software_tpm
    }
}

/// Verifies an EK certificate, DER, up to one of `roots`. `intermediates` may come from anybody and in any order.
pub fn verify_ek(
    ek: &[u8],
    intermediates: &[&[u8]],
    roots: &[&[u8]],
    policy: &EkPolicy,
) -> Result<GenuineEk, EkError> {
    if intermediates.len() > INTERMEDIATES_MAX || roots.len() > ROOTS_MAX {
        return Err(EkError::TooLarge);
    }
    let leaf = parse(ek, 0)?;
    // One that cannot be read does not help, and does not hurt the others either: bundles of vendors hold oddities.
    let pool: Vec<X509Certificate<'_>> = intermediates.iter().filter_map(|der| parse(der, 0).ok()).collect();
    let anchors: Vec<X509Certificate<'_>> = roots.iter().filter_map(|der| parse(der, 0).ok()).collect();

    check_common(&leaf, 0, policy)?;
    check_leaf(&leaf)?;
    Climb { pool, anchors, policy: *policy, verifications: 0 }.above(&leaf, 1)?;
    genuine(&leaf)
}

/// The search for a path. Two certificates may share name and key (a cross-signed CA, or one that somebody made up), so a
/// path that leads nowhere must not hide one that does; the number of signatures looked at is bounded instead.
struct Climb<'a> {
    pool: Vec<X509Certificate<'a>>,
    anchors: Vec<X509Certificate<'a>>,
    policy: EkPolicy,
    verifications: usize,
}

impl Climb<'_> {
    /// Finds a path from `subject` to an anchor; the issuer stands at `position`.
    fn above(&mut self, subject: &X509Certificate<'_>, position: usize) -> Result<(), EkError> {
        if position > CHAIN_MAX {
            return Err(EkError::ChainTooLong);
        }
        if subject.signature_algorithm.algorithm == OID_PKCS1_SHA1WITHRSA && !self.policy.danger_allow_sha1 {
            return Err(EkError::Sha1 { position: position - 1 });
        }
        let mut outcome = EkError::NoIssuer { position: position - 1 };
        for anchor in self.anchors.clone() {
            match self.accept(subject, &anchor, position) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => outcome = e,
            }
        }
        for issuer in self.pool.clone() {
            match self.accept(subject, &issuer, position).and_then(|issued| {
                if issued { self.above(&issuer, position + 1).map(|()| true) } else { Ok(false) }
            }) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => outcome = e,
            }
        }
        Err(outcome)
    }

    /// Whether `issuer` issued `subject`, and an error where it did but may not have.
    fn accept(
        &mut self,
        subject: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
        position: usize,
    ) -> Result<bool, EkError> {
        // RFC 5280 §6.1.3 (a)(4): the name, byte for byte
        if issuer.subject().as_raw() != subject.issuer().as_raw()
            || subject.signature_algorithm != subject.tbs_certificate.signature
        {
            return Ok(false);
        }
        self.verifications += 1;
        if self.verifications > VERIFICATIONS_MAX {
            return Err(EkError::TooLarge);
        }
        // (a)(1)
        if subject.verify_signature(Some(issuer.public_key())).is_err() {
            return Ok(false);
        }
        check_common(issuer, position, &self.policy)?;
        check_issuer(issuer, position)?;
        Ok(true)
    }
}

fn parse(der: &[u8], position: usize) -> Result<X509Certificate<'_>, EkError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(EkError::TooLarge);
    }
    match X509Certificate::from_der(der) {
        // EK certificates in NV memory may be padded, but what comes after is not ours to guess at
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(EkError::Malformed { position }),
    }
}

/// Validity and critical extensions: RFC 5280 §6.1.3 (a)(2), §4.2.
fn check_common(
    certificate: &X509Certificate<'_>,
    position: usize,
    policy: &EkPolicy,
) -> Result<(), EkError> {
    if let Validity::At(now) = policy.validity {
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
            return Err(EkError::NotValid { position });
        }
    }
    let mut seen = BTreeMap::new();
    for extension in certificate.extensions() {
        let oid = extension.oid.to_id_string();
        // RFC 5280 §4.2: no extension twice; which of the two would count is anybody's guess
        if seen.insert(oid.clone(), ()).is_some() {
            return Err(EkError::Malformed { position });
        }
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_)
            // "any policy" and the vendor's practice statement: critical in many, read by nobody
            | ParsedExtension::CertificatePolicies(_) => {}
            _ if extension.critical => return Err(EkError::CriticalExtension { position, oid }),
            _ => {}
        }
    }
    Ok(())
}

/// RFC 5280 §6.1.4 (k), (l), (n). `position` is the issuer's, so `position - 1` CAs stand below it.
fn check_issuer(issuer: &X509Certificate<'_>, position: usize) -> Result<(), EkError> {
    let malformed = |_| EkError::Malformed { position };
    let constraints = issuer.basic_constraints().map_err(malformed)?.map(|c| c.value);
    let constraints = constraints.filter(|c| c.ca).ok_or(EkError::IssuerIsNotACa { position })?;
    if issuer.key_usage().map_err(malformed)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(EkError::IssuerIsNotACa { position });
    }
    let below = position - 1;
    if constraints.path_len_constraint.is_some_and(|max| usize::try_from(max).is_ok_and(|max| below > max)) {
        return Err(EkError::PathLength { position });
    }
    Ok(())
}

fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), EkError> {
    let malformed = |_| EkError::Malformed { position: 0 };
    if leaf.basic_constraints().map_err(malformed)?.is_some_and(|c| c.value.ca) {
        return Err(EkError::LeafIsACa);
    }
    let usage = leaf.extended_key_usage().map_err(malformed)?;
    if !usage.is_some_and(|usage| usage.value.other.contains(&EKU_EK_CERTIFICATE)) {
        return Err(EkError::NotAnEkCertificate);
    }
    let usage = leaf.key_usage().map_err(malformed)?;
    if usage.is_some_and(|usage| !usage.value.key_encipherment() && !usage.value.key_agreement()) {
        return Err(EkError::KeyUsage);
    }
    Ok(())
}

fn genuine(leaf: &X509Certificate<'_>) -> Result<GenuineEk, EkError> {
    let manufacturer = manufacturer(leaf).ok_or(EkError::NoManufacturer)?;
    let key = public_key(leaf.public_key()).ok_or(EkError::UnsupportedKey)?;
    Ok(GenuineEk { key, software_tpm: manufacturer.is_software(), manufacturer: Some(manufacturer) })
}

/// TCG EK Credential Profile 2.4, "Subject Alternative Name": a directory name with `id:` and eight hex digits.
fn manufacturer(leaf: &X509Certificate<'_>) -> Option<Manufacturer> {
    let names = &leaf.subject_alternative_name().ok()??.value.general_names;
    let mut attributes = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DirectoryName(name) => Some(name),
            _ => None,
        })
        .flat_map(|name| name.iter_attributes())
        .filter(|attribute| *attribute.attr_type() == TPM_MANUFACTURER);
    let text = attributes.next()?.as_str().ok()?;
    // two manufacturers would be none
    if attributes.next().is_some() {
        return None;
    }
    let digits = text.strip_prefix("id:").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok().map(Manufacturer)
}

fn public_key(spki: &SubjectPublicKeyInfo<'_>) -> Option<PublicKey> {
    let bits = spki.subject_public_key.data.as_ref();
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_PKCS1_RSAENCRYPTION || *algorithm == RSAES_OAEP {
        let (_, key) = RSAPublicKey::from_der(bits).ok()?;
        let exponent = u32::try_from(key.try_exponent().ok()?).ok()?;
        let modulus = key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus).to_vec();
        return Some(PublicKey::Rsa { modulus, exponent });
    }
    if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return None;
    }
    let named = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let curve = match named {
        named if named == OID_EC_P256 => Curve::P256,
        named if named == OID_NIST_EC_P384 => Curve::P384,
        _ => return None,
    };
    let point = bits.strip_prefix(&[4]).filter(|point| point.len() == 2 * curve.len_bytes())?;
    let (x, y) = point.split_at_checked(curve.len_bytes())?;
    Some(PublicKey::Ecc { curve, x: x.to_vec(), y: y.to_vec() })
}

/// Why an AK was not enrolled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentError {
    /// The EK's public area is malformed.
    #[error("the EK's public area is malformed")]
    EkMalformed(#[source] TpmError),
    /// The EK's public area is not that of the key that was found genuine.
    #[error("the EK's public area is not that of the endorsed key")]
    AnotherEk,
    /// The EK's public area lacks what keeps it in its TPM.
    #[error("the EK's public area is not that of an endorsement key")]
    NotAnEk,
    /// The AK is not an attestation key.
    #[error("the AK was not accepted")]
    Ak(#[from] AkError),
    /// No credential could be made.
    #[error("no credential could be made")]
    Credential(#[from] CredentialError),
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    NoRandomness,
    /// What came back is not the secret: that TPM does not hold the EK, or not the AK.
    #[error("the secret that came back is wrong: the TPM does not hold both keys")]
    WrongSecret,
}

/// An enrolment under way: a secret is out, wrapped for one TPM. Runs on an admin's machine and takes randomness there.
pub struct Enrolment {
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    ak: EnrolledAk,
}

impl Enrolment {
    /// Wraps a fresh secret for the TPM that holds `ek` and the AK. `ek_public` is what the TPM says of its EK: it adds
    /// the algorithms to the key that the certificate names, and a false one merely makes activation fail.
    pub fn begin(
        ek: &GenuineEk,
        ek_public: &[u8],
        ak_public: &[u8],
    ) -> Result<(Self, CredentialBlob), EnrolmentError> {
        let ek_public = TpmPublic::parse(ek_public).map_err(EnrolmentError::EkMalformed)?;
        if *ek_public.key() != ek.key {
            return Err(EnrolmentError::AnotherEk);
        }
        let needed = [
            ObjectAttributes::FIXED_TPM,
            ObjectAttributes::FIXED_PARENT,
            ObjectAttributes::RESTRICTED,
            ObjectAttributes::DECRYPT,
        ];
        if !needed.iter().all(|bit| ek_public.attributes().contains(*bit)) {
            return Err(EnrolmentError::NotAnEk);
        }
        let ak = EnrolledAk { public: ak(ak_public)?, software_tpm: ek.software_tpm };
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        aws_lc_rs::rand::fill(secret.as_mut()).map_err(|_| EnrolmentError::NoRandomness)?;
        let blob = make_credential(&ek_public, &ak.name(), &secret)?;
        Ok((Self { secret, ak }, blob))
    }

    /// Takes what TPM2_ActivateCredential recovered. One try: a wrong answer ends the enrolment.
    pub fn finish(self, recovered: &[u8]) -> Result<EnrolledAk, EnrolmentError> {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.secret.as_ref(), recovered)
            .map_err(|_| EnrolmentError::WrongSecret)?;
        Ok(self.ak)
    }
}

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
