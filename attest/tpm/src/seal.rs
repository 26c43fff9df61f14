//! A small secret that only this TPM opens, and only for a machine in an approved state.
//!
//! The secret is a sealed data object (TPM 2.0 Library r1.59, Part 1, "Protected Storage") under the storage primary of
//! the owner hierarchy. It has no authorisation value: its policy alone opens it, and that is
//! [`quorate_attest::approval::sealed_policy`]. The TPM enforces each condition of an [`Approval`]; the checks here only
//! turn its answers into facts that an operator can act on.
//!
//! The storage primary is made anew for each use, from the TPM's seed, so that it takes no place in the TPM. Sessions
//! are salted to it, and what is secret crosses the bus encrypted: a listener on the bus learns nothing. At unsealing its
//! Name must be the one that the blob recorded, so an active impostor on the bus can fake a TPM at the time of sealing
//! only, which is enrolment.
//!
//! Leaves to the caller: where the blob is kept (it needs no secrecy), and the erasure of what `unseal` returns.
use crate::{
    Tpm, TpmError,
    error::During,
    esys::{Esys, Object, Session},
    quote::selection_list,
};
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::approval::{Approval, Approver, NAME_BYTES, POINT_BYTES, PolicyRef, sealed_policy};
use tss_esapi::{
    attributes::ObjectAttributesBuilder,
    constants::tss::{TPM2_RC_HANDLE, TPM2_RC_PCR_CHANGED, TPM2_RC_POLICY, TPM2_RC_VALUE},
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        ecc::EccCurve,
    },
    structures::{
        Digest, EccPoint, EccScheme, KeyDerivationFunctionScheme, KeyedHashScheme, Private, Public,
        PublicBuilder, PublicEccParametersBuilder, PublicKeyedHashParameters, SymmetricDefinitionObject,
    },
    traits::{Marshall, UnMarshall},
    tss2_esys::{TPM2B_PRIVATE, TPM2B_PUBLIC, TPML_PCR_SELECTION},
};
use zeroize::Zeroizing;

pub use crate::esys::SECRET_BYTES_MAX;

/// Largest encoded blob; one has about 450 bytes.
pub const BLOB_BYTES_MAX: usize = 2048;
/// First byte of an encoded blob.
const VERSION: u8 = 1;
/// How often opening is tried when any PCR is extended meanwhile: the TPM then refuses, even if it is not an approved one.
const ATTEMPTS: u32 = 4;

/// What [`Tpm::seal`] makes. Only its TPM opens it, so it may lie in any file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBlob(Fields);

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Fields {
    version: u8,
    approver: [u8; POINT_BYTES],
    policy_ref: [u8; 32],
    /// Name of the storage primary.
    parent: [u8; NAME_BYTES],
    /// TPMT_PUBLIC.
    public: Vec<u8>,
    /// Contents of the TPM2B_PRIVATE.
    private: Vec<u8>,
}

impl SealedBlob {
    /// The one encoding: borsh.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TpmError> {
        borsh::to_vec(&self.0).map_err(|_| TpmError::BlobDamaged("it cannot be encoded"))
    }

    /// Reads what [`Self::to_bytes`] wrote. Whether the TPM will open it only the TPM knows.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(TpmError::BlobDamaged("it is too long"));
        }
        if bytes.first() != Some(&VERSION) {
            return Err(TpmError::BlobDamaged("it is of another version"));
        }
        borsh::from_slice(bytes).map(Self).map_err(|_| TpmError::BlobDamaged("it cannot be decoded"))
    }

    /// Whose approvals open it.
    pub fn approver(&self) -> Result<Approver, TpmError> {
        Approver::from_sec1(&self.0.approver).map_err(|_| TpmError::BlobDamaged("its approver is no key"))
    }

    /// What an approval must be for.
    pub fn policy_ref(&self) -> PolicyRef {
        PolicyRef::from_bytes(self.0.policy_ref)
    }
}

impl Tpm {
    /// Seals `secret` (1 to [`SECRET_BYTES_MAX`] bytes) to this TPM, to be opened by what `approver` approves for
    /// `policy_ref`.
    pub fn seal(
        &mut self,
        approver: &Approver,
        policy_ref: &PolicyRef,
        secret: &[u8],
    ) -> Result<SealedBlob, TpmError> {
        const COMMAND: &str = "TPM2_Create";
        let primary = storage_template()?;
        let template = sealed_template(&sealed_policy(approver, policy_ref))?;
        self.raw(|esys| {
            let primary = esys.create_primary(&primary)?;
            esys.with(primary, |esys, primary| {
                let parent = name(esys, primary)?;
                let session = esys.start_session(primary, Session::HmacEncryptingCommands)?;
                let (public, private) = esys
                    .with(session, |esys, session| esys.create_sealed(primary, session, &template, secret))?;
                let public = Public::try_from(public).and_then(|public| public.marshall()).during(COMMAND)?;
                Ok(SealedBlob(Fields {
                    version: VERSION,
                    approver: *approver.sec1(),
                    policy_ref: *policy_ref.as_bytes(),
                    parent,
                    public,
                    private,
                }))
            })
        })
    }

    /// Opens `blob` under `approval`.
    pub fn unseal(&mut self, blob: &SealedBlob, approval: &Approval) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let opening = Opening::new(blob, approval)?;
        self.raw(|esys| {
            for _ in 0..ATTEMPTS {
                match opening.attempt(esys) {
                    Err(TpmError::PcrsUnstable { .. }) => {}
                    outcome => return outcome,
                }
            }
            Err(TpmError::PcrsUnstable { attempts: ATTEMPTS })
        })
    }
}

/// A blob and an approval in the TPM's form.
struct Opening<'a> {
    approval: &'a Approval,
    parent: [u8; NAME_BYTES],
    policy_ref: PolicyRef,
    approver_name: [u8; NAME_BYTES],
    approver: TPM2B_PUBLIC,
    primary: TPM2B_PUBLIC,
    public: TPM2B_PUBLIC,
    private: TPM2B_PRIVATE,
    pcrs: Vec<u8>,
    selection: TPML_PCR_SELECTION,
}

impl<'a> Opening<'a> {
    fn new(blob: &SealedBlob, approval: &'a Approval) -> Result<Self, TpmError> {
        const NOT_AN_OBJECT: TpmError = TpmError::BlobDamaged("it holds no sealed object");
        let approver = blob.approver()?;
        let policy_ref = blob.policy_ref();
        let public = Public::unmarshall(&blob.0.public).map_err(|_| NOT_AN_OBJECT)?;
        if public.auth_policy().as_slice() != sealed_policy(&approver, &policy_ref) {
            return Err(TpmError::BlobDamaged("it was sealed for another approver or node than it says"));
        }
        let private = Private::try_from(blob.0.private.clone()).map_err(|_| NOT_AN_OBJECT)?;
        let pcrs: Vec<u8> = approval.pcrs().indices().collect();
        Ok(Self {
            approval,
            parent: blob.0.parent,
            policy_ref,
            approver_name: approver.name(),
            approver: tpm2b(&approver.tpmt_public())?,
            primary: storage_template()?,
            public: TPM2B_PUBLIC::try_from(public).map_err(|_| NOT_AN_OBJECT)?,
            private: private.into(),
            selection: selection_list(&pcrs)?.into(),
            pcrs,
        })
    }

    /// At most two objects and one session at a time: some TPMs hold three of each.
    fn attempt(&self, esys: &mut Esys) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let signed = self.approval.signed_digest(&self.policy_ref);
        let [r, s] = self.approval.signature();
        let approver = esys.load_external(&self.approver)?;
        let ticket = esys.with(approver, |esys, key| esys.verify_ecdsa(key, &signed, r, s))?;

        let primary = esys.create_primary(&self.primary)?;
        esys.with(primary, |esys, primary| {
            if name(esys, primary)? != self.parent {
                return Err(TpmError::WrongTpm);
            }
            let session = esys.start_session(primary, Session::PolicyEncryptingResponses)?;
            esys.with(session, |esys, session| {
                self.satisfy(esys, session)?;
                let approved = self.approval.policy_digest();
                let policy_ref = self.policy_ref.as_bytes();
                esys.policy_authorize(session, &approved, policy_ref, &self.approver_name, &ticket)?;
                let sealed = esys.load(primary, &self.public, &self.private).map_err(|failed| {
                    if failed.is_about_arguments() {
                        TpmError::BlobDamaged("the TPM does not load it")
                    } else {
                        failed.into()
                    }
                })?;
                let secret = esys.with(sealed, |esys, sealed| {
                    esys.unseal(sealed, session).map_err(|failed| {
                        if failed.is(TPM2_RC_PCR_CHANGED) {
                            TpmError::PcrsUnstable { attempts: 1 }
                        } else {
                            failed.into()
                        }
                    })
                })?;
                esys.overwrite_buffer(primary)?;
                Ok(secret)
            })
        })
    }

    /// What the approval demands, in the order that its policy digest has.
    fn satisfy(&self, esys: &mut Esys, session: Object) -> Result<(), TpmError> {
        esys.policy_pcr(session, &self.selection, self.approval.pcrs().digest()).map_err(|failed| {
            if failed.is(TPM2_RC_VALUE) {
                TpmError::ApprovalDoesNotFitPcrs { pcrs: self.pcrs.clone() }
            } else {
                failed.into()
            }
        })?;
        let handle = self.approval.counter().handle();
        let counter = esys.existing(handle).map_err(|failed| {
            if failed.is(TPM2_RC_HANDLE) { TpmError::CounterAbsent { handle } } else { failed.into() }
        })?;
        if esys.name(counter)? != self.approval.counter().name() {
            return Err(TpmError::CounterOccupied { handle });
        }
        let limit = self.approval.limit();
        esys.policy_nv_at_most(session, counter, limit).map_err(|failed| {
            if failed.is(TPM2_RC_POLICY) { TpmError::ApprovalWithdrawn { limit } } else { failed.into() }
        })
    }
}

fn name(esys: &mut Esys, object: Object) -> Result<[u8; NAME_BYTES], TpmError> {
    let nonsense = |_| TpmError::Nonsense { command: "Esys_TR_GetName", what: "no Name under SHA-256" };
    <[u8; NAME_BYTES]>::try_from(esys.name(object)?).map_err(nonsense)
}

fn tpm2b(public: &[u8]) -> Result<TPM2B_PUBLIC, TpmError> {
    Public::unmarshall(public).and_then(TPM2B_PUBLIC::try_from).during("TPM2_LoadExternal")
}

/// The storage primary: TCG TPM v2.0 Provisioning Guidance, "SRK Templates", P-256. `noDA`: a machine that loses power
/// several times must still be able to open what it sealed.
fn storage_template() -> Result<TPM2B_PUBLIC, TpmError> {
    let build = || {
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_sensitive_data_origin(true)
            .with_user_with_auth(true)
            .with_no_da(true)
            .with_restricted(true)
            .with_decrypt(true)
            .build()?;
        let parameters = PublicEccParametersBuilder::new()
            .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
            .with_ecc_scheme(EccScheme::Null)
            .with_curve(EccCurve::NistP256)
            .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
            .with_is_decryption_key(true)
            .with_restricted(true)
            .build()?;
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(EccPoint::default())
            .build()
            .and_then(TPM2B_PUBLIC::try_from)
    };
    build().during("TPM2_CreatePrimary")
}

/// A sealed data object: neither `userWithAuth` nor, with `adminWithPolicy`, any other way in than its policy.
fn sealed_template(policy: &[u8; 32]) -> Result<TPM2B_PUBLIC, TpmError> {
    let build = || {
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_admin_with_policy(true)
            .with_no_da(true)
            .build()?;
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::KeyedHash)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes)
            .with_auth_policy(Digest::try_from(policy.as_slice())?)
            .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
            .with_keyed_hash_unique_identifier(Digest::default())
            .build()
            .and_then(TPM2B_PUBLIC::try_from)
    };
    build().during("TPM2_Create")
}
