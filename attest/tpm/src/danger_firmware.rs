//! What a machine's firmware does to its TPM, for the development launcher only.
//!
//! A process that extends its own PCRs attests nothing about the machine it runs on: that is self-report. A node
//! never calls this module.
use crate::{Tpm, TpmError, error::During};
use quorate_attest::approval::CounterIndex;
use tss_esapi::{
    constants::StartupType,
    handles::{NvIndexTpmHandle, PcrHandle},
    interface_types::{
        algorithm::HashingAlgorithm, resource_handles::Provision, session_handles::AuthSession,
    },
    structures::{Digest, DigestValues},
};

/// TPM2_PCR_Extend in the SHA-256 bank. Not repeated on failure: the PCR may have been extended already.
pub fn extend_pcr(tpm: &mut Tpm, index: u8, digest: [u8; 32]) -> Result<(), TpmError> {
    const COMMAND: &str = "TPM2_PCR_Extend";
    let pcr = PcrHandle::try_from(u32::from(index)).during(COMMAND)?;
    let mut digests = DigestValues::new();
    digests.set(HashingAlgorithm::Sha256, Digest::try_from(digest.as_slice()).during(COMMAND)?);
    tpm.once(|open| {
        open.context
            .execute_with_session(Some(AuthSession::Password), |context| context.pcr_extend(pcr, digests))
            .during(COMMAND)
    })
}

/// TPM2_Shutdown(CLEAR), as an orderly power-off does. Without it, a few power cycles put the TPM into
/// dictionary-attack lockout.
pub fn shutdown(tpm: &mut Tpm) -> Result<(), TpmError> {
    tpm.once(|open| {
        open.context
            .execute_without_session(|context| context.shutdown(StartupType::Clear))
            .during("TPM2_Shutdown")
    })
}

/// TPM2_NV_UndefineSpace of a counter with the owner's authorisation, as somebody with root could: for tests of what that
/// gains.
pub fn owner_deletes(tpm: &mut Tpm, index: CounterIndex) -> Result<(), TpmError> {
    const COMMAND: &str = "TPM2_NV_UndefineSpace";
    let handle = NvIndexTpmHandle::new(index.handle()).during(COMMAND)?;
    tpm.once(|open| {
        let object = open
            .context
            .execute_without_session(|context| context.tr_from_tpm_public(handle.into()))
            .during(COMMAND)?;
        open.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_undefine_space(Provision::Owner, object.into())
            })
            .during(COMMAND)
    })
}
