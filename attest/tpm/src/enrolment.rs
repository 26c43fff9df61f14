//! Enrolment: what ties an AK to a manufacturer's TPM.
//!
//! The AK is a primary key of the endorsement hierarchy: that hierarchy alone signs clock and firmware version in
//! the clear (TPM 2.0 Library r1.59, Part 1, "Attestation", obfuscation), and being primary it is made again from
//! the TPM's seed, so that the key at the persistent handle can be checked to be exactly this one.
//!
//! What is left to others: the EK certificate's chain, and whether it belongs to `ek_public`, are for the Verifier;
//! intermediate certificates are not in NV and come from the admin.
use crate::{Tpm, TpmError, error::During, tpm::Open};
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::credential::CredentialBlob;
use std::fmt;
use tss_esapi::{
    abstraction::{AsymmetricAlgorithmSelection, DefaultKey, ek},
    attributes::ObjectAttributesBuilder,
    constants::SessionType,
    handles::{
        AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, PersistentTpmHandle, SessionHandle,
        TpmHandle as RawHandle,
    },
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        dynamic_handles::Persistent,
        ecc::EccCurve,
        key_bits::RsaKeyBits,
        resource_handles::{Hierarchy, NvAuth, Provision},
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        Digest, DigestList, EccPoint, EccScheme, EncryptedSecret, HashScheme, IdObject,
        KeyDerivationFunctionScheme, Public, PublicBuilder, PublicEccParametersBuilder, SymmetricDefinition,
        SymmetricDefinitionObject,
    },
    traits::Marshall,
};
use zeroize::Zeroizing;

/// Bytes read from NV at a time: every TPM offers at least this (TPM 2.0 Library r1.59, MAX_NV_BUFFER_SIZE).
const NV_CHUNK: u16 = 512;
/// Largest EK certificate read; real ones have 1 to 2 KiB.
const EK_CERTIFICATE_MAX: usize = 8 * 1024;

/// Which of its endorsement keys a TPM enrols with (TCG EK Credential Profile v2.5, templates L-1, L-2, H-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum EkKind {
    /// RSA 2048, certificate at NV 0x01c00002.
    Rsa2048,
    /// NIST P-256, certificate at NV 0x01c0000a.
    P256,
    /// NIST P-384, certificate at NV 0x01c00016.
    P384,
}

impl EkKind {
    /// All kinds, the strongest first.
    pub const ALL: [Self; 3] = [Self::P384, Self::P256, Self::Rsa2048];

    fn nv_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0002,
            Self::P256 => 0x01c0_000a,
            Self::P384 => 0x01c0_0016,
        }
    }

    fn algorithm(self) -> AsymmetricAlgorithmSelection {
        match self {
            Self::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
            Self::P256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            Self::P384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
        }
    }
}

impl fmt::Display for EkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rsa2048 => "RSA 2048",
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        })
    }
}

/// What a node sends to an admin to be enrolled. Only claims, until the EK's chain is verified and the TPM has
/// activated a credential made for exactly this pair.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct EnrolmentRequest {
    /// Which endorsement key `ek_public` is.
    pub ek: EkKind,
    /// Certificate of that key in the TPM's NV (DER); none where the manufacturer stored none, and an admin must have
    /// inventoried the key.
    pub ek_certs: Vec<Vec<u8>>,
    /// `TPMT_PUBLIC` of the EK.
    pub ek_public: Vec<u8>,
    /// `TPMT_PUBLIC` of the AK.
    pub ak_public: Vec<u8>,
    /// The manufacturer as the TPM tells it, e.g. `IBM` (a software TPM) or `IFX`.
    pub manufacturer: String,
    /// Firmware version as the TPM tells it.
    pub firmware: u64,
}

impl Tpm {
    /// The endorsement keys for which the TPM holds a certificate, the strongest first.
    pub fn ek_kinds(&mut self) -> Result<Vec<EkKind>, TpmError> {
        self.repeatable(|open| {
            let mut kinds = Vec::new();
            for kind in EkKind::ALL {
                if open.exists(nv_handle(kind)?.into())? {
                    kinds.push(kind);
                }
            }
            Ok(kinds)
        })
    }

    /// Makes the AK if the TPM does not have it yet, and collects what an admin needs to enrol it.
    pub fn enrol(&mut self, ek: EkKind) -> Result<EnrolmentRequest, TpmError> {
        let ak_handle = self.ak_handle();
        self.repeatable(|open| {
            let ek_certs = open.ek_certificate(ek)?.into_iter().collect();
            let key = open.create_ek(ek)?;
            let ek_public = open.with_transient(key.into(), |open| open.public(key))?;
            let ak_public = open.provision_ak(ak_handle)?;
            let (manufacturer, firmware) = open.identity()?;
            Ok(EnrolmentRequest { ek, ek_certs, ek_public, ak_public, manufacturer, firmware })
        })
    }

    /// `TPMT_PUBLIC` of the AK that the TPM holds.
    pub fn ak_public(&mut self) -> Result<Vec<u8>, TpmError> {
        let ak_handle = self.ak_handle();
        self.repeatable(|open| {
            let ak = open.ak(ak_handle)?;
            open.public(ak)
        })
    }

    /// TPM2_ActivateCredential: opens a credential made for this TPM's EK and AK, and so proves that one TPM holds
    /// both.
    pub fn activate(
        &mut self,
        ek: EkKind,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        const COMMAND: &str = "TPM2_ActivateCredential";
        let CredentialBlob { id_object, encrypted_secret } = credential.clone();
        let id_object = IdObject::try_from(id_object).during(COMMAND)?;
        let encrypted_secret = EncryptedSecret::try_from(encrypted_secret).during(COMMAND)?;
        let ak_handle = self.ak_handle();
        self.repeatable(|open| {
            let ak = open.ak(ak_handle)?;
            let key = open.create_ek(ek)?;
            open.with_transient(key.into(), |open| {
                let session = open.endorsement_session(ek)?;
                open.with_transient(SessionHandle::from(session).into(), |open| {
                    open.authorize_endorsement(session, ek)?;
                    let sessions = (Some(AuthSession::Password), Some(session), None);
                    let secret = open
                        .context
                        .execute_with_sessions(sessions, |context| {
                            context.activate_credential(ak, key, id_object.clone(), encrypted_secret.clone())
                        })
                        .during(COMMAND)?;
                    Ok(Zeroizing::new(secret.as_slice().to_vec()))
                })
            })
        })
    }
}

impl Open {
    /// The EK certificate in NV, cut to its DER length: some manufacturers pad the index.
    fn ek_certificate(&mut self, kind: EkKind) -> Result<Option<Vec<u8>>, TpmError> {
        const COMMAND: &str = "TPM2_NV_Read";
        let handle = RawHandle::from(nv_handle(kind)?);
        if !self.exists(handle)? {
            return Ok(None);
        }
        let mut object = self
            .context
            .execute_without_session(|context| context.tr_from_tpm_public(handle))
            .during("TPM2_NV_ReadPublic")?;
        let index = NvIndexHandle::from(object);
        let (public, _) = self
            .context
            .execute_without_session(|context| context.nv_read_public(index))
            .during("TPM2_NV_ReadPublic")?;
        let size = public.data_size();
        if size > EK_CERTIFICATE_MAX {
            return Err(TpmError::Nonsense { command: COMMAND, what: "an EK certificate over 8 KiB" });
        }
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let chunk = u16::try_from(size - bytes.len()).unwrap_or(NV_CHUNK).min(NV_CHUNK);
            let offset = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            let read = self
                .context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.nv_read(NvAuth::NvIndex(index), index, chunk, offset)
                })
                .during(COMMAND)?;
            if read.is_empty() {
                return Err(TpmError::Nonsense { command: COMMAND, what: "no bytes" });
            }
            bytes.extend_from_slice(&read);
        }
        self.context.tr_close(&mut object).during("Esys_TR_Close")?;
        let length = der_length(&bytes)
            .ok_or(TpmError::Nonsense { command: COMMAND, what: "an EK certificate that is not DER" })?;
        bytes.truncate(length);
        Ok(Some(bytes))
    }

    fn create_ek(&mut self, kind: EkKind) -> Result<KeyHandle, TpmError> {
        const COMMAND: &str = "TPM2_CreatePrimary";
        let template = ek::create_ek_public_from_default_template_2(kind.algorithm(), None::<DefaultKey>)
            .during(COMMAND)?;
        self.create_endorsement_primary(template)
    }

    fn create_endorsement_primary(&mut self, template: Public) -> Result<KeyHandle, TpmError> {
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            })
            .during("TPM2_CreatePrimary")
            .map(|created| created.key_handle)
    }

    fn public(&mut self, key: KeyHandle) -> Result<Vec<u8>, TpmError> {
        const COMMAND: &str = "TPM2_ReadPublic";
        let (public, _, _) =
            self.context.execute_without_session(|context| context.read_public(key)).during(COMMAND)?;
        public.marshall().during(COMMAND)
    }

    /// Makes the AK, puts it at its persistent handle if nothing is there, and returns its public area.
    fn provision_ak(&mut self, handle: PersistentTpmHandle) -> Result<Vec<u8>, TpmError> {
        let made = self.create_endorsement_primary(ak_template()?)?;
        self.with_transient(made.into(), |open| {
            let public = open.public(made)?;
            if open.exists(RawHandle::Persistent(handle))? {
                let present = open.ak(handle)?;
                if open.public(present)? != public {
                    return Err(TpmError::AkHandleOccupied { handle: handle.into() });
                }
                return Ok(public);
            }
            open.context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.evict_control(Provision::Owner, made.into(), Persistent::Persistent(handle))
                })
                .during("TPM2_EvictControl")?;
            Ok(public)
        })
    }

    /// A policy session of the EK's name algorithm.
    fn endorsement_session(&mut self, kind: EkKind) -> Result<AuthSession, TpmError> {
        const COMMAND: &str = "TPM2_StartAuthSession";
        let hash = match kind {
            EkKind::Rsa2048 | EkKind::P256 => HashingAlgorithm::Sha256,
            EkKind::P384 => HashingAlgorithm::Sha384,
        };
        self.context
            .execute_without_session(|context| {
                context.start_auth_session(
                    None,
                    None,
                    None,
                    SessionType::Policy,
                    SymmetricDefinition::Null,
                    hash,
                )
            })
            .during(COMMAND)?
            .ok_or(TpmError::Nonsense { command: COMMAND, what: "no session" })
    }

    /// Satisfies the EK's policy: PolicySecret with the endorsement authorisation (PolicyA), for the high-range
    /// templates as a branch of PolicyOr (PolicyB). TCG EK Credential Profile v2.5, Annex B.6.
    fn authorize_endorsement(&mut self, session: AuthSession, kind: EkKind) -> Result<(), TpmError> {
        const COMMAND: &str = "TPM2_PolicySecret";
        let policy = PolicySession::try_from(session).during(COMMAND)?;
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.policy_secret(
                    policy,
                    AuthHandle::Endorsement,
                    Default::default(),
                    Default::default(),
                    Default::default(),
                    None,
                )
            })
            .during(COMMAND)?;
        match kind {
            EkKind::Rsa2048 | EkKind::P256 => Ok(()),
            EkKind::P384 => {
                const COMMAND: &str = "TPM2_PolicyOR";
                let mut branches = DigestList::new();
                for digest in [POLICY_A_SHA384, POLICY_C_SHA384] {
                    let digest = Digest::try_from(digest.as_slice()).during(COMMAND)?;
                    branches.add(digest).during(COMMAND)?;
                }
                self.context
                    .execute_without_session(|context| context.policy_or(policy, branches))
                    .during(COMMAND)
            }
        }
    }
}

/// The AK: P-256, ECDSA with SHA-256, restricted to signing what the TPM itself made. `noDA`: a machine that loses
/// power several times must still be able to attest.
fn ak_template() -> Result<Public, TpmError> {
    let build = || {
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_sensitive_data_origin(true)
            .with_user_with_auth(true)
            .with_no_da(true)
            .with_restricted(true)
            .with_sign_encrypt(true)
            .build()?;
        let parameters = PublicEccParametersBuilder::new()
            .with_symmetric(SymmetricDefinitionObject::Null)
            .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
            .with_curve(EccCurve::NistP256)
            .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
            .with_is_signing_key(true)
            .with_restricted(true)
            .build()?;
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(EccPoint::default())
            .build()
    };
    build().during("TPM2_CreatePrimary")
}

fn nv_handle(kind: EkKind) -> Result<NvIndexTpmHandle, TpmError> {
    NvIndexTpmHandle::new(kind.nv_index()).during("TPM2_NV_ReadPublic")
}

/// Length of the DER SEQUENCE at the start of `bytes`, header included, if all of it is there.
fn der_length(bytes: &[u8]) -> Option<usize> {
    const SEQUENCE: u8 = 0x30;
    let (header, body) = match bytes {
        [SEQUENCE, short @ 0..=0x7f, ..] => (2, usize::from(*short)),
        [SEQUENCE, 0x81, a, ..] => (3, usize::from(*a)),
        [SEQUENCE, 0x82, a, b, ..] => (4, usize::from(*a) << 8 | usize::from(*b)),
        _ => return None,
    };
    let length = header + body;
    (length <= bytes.len()).then_some(length)
}

/// PolicyA for SHA-384, TCG EK Credential Profile v2.5, Annex B.6.
const POLICY_A_SHA384: [u8; 48] = [
    0x8b, 0xbf, 0x22, 0x66, 0x53, 0x7c, 0x17, 0x1c, 0xb5, 0x6e, 0x40, 0x3c, 0x4d, 0xc1, 0xd4, 0xb6, //
    0x4f, 0x43, 0x26, 0x11, 0xdc, 0x38, 0x6e, 0x6f, 0x53, 0x20, 0x50, 0xc3, 0x27, 0x8c, 0x93, 0x0e, //
    0x14, 0x3e, 0x8b, 0xb1, 0x13, 0x38, 0x24, 0xcc, 0xb4, 0x31, 0x05, 0x38, 0x71, 0xc6, 0xdb, 0x53,
];
/// PolicyC for SHA-384, TCG EK Credential Profile v2.5, Annex B.6.
const POLICY_C_SHA384: [u8; 48] = [
    0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef, //
    0x2b, 0x6a, 0x16, 0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5, //
    0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6, 0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_after_a_certificate_is_cut_and_a_short_one_is_refused() {
        assert_eq!(der_length(&[0x30, 2, 1, 2, 0xff, 0xff]), Some(4));
        assert_eq!(der_length(&[0x30, 0x81, 1, 9]), Some(4));
        assert_eq!(der_length(&[0x30, 0x82, 0, 1, 9, 0]), Some(5));
        for bad in [&[][..], &[0x30], &[0x30, 2, 1], &[0x30, 0x82, 1], &[0x30, 0x83, 0, 0, 0], &[0x31, 0]] {
            assert_eq!(der_length(bad), None, "{bad:?}");
        }
    }
}
