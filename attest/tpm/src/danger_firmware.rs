//! What a machine's firmware does to its TPM, for the development launcher only.
//!
//! A process that extends its own PCRs attests nothing about the machine it runs on: that is self-report. A node
//! never calls this module.
use crate::{Tpm, TpmError, error::During};
use tss_esapi::{
    constants::StartupType,
    handles::PcrHandle,
    interface_types::{algorithm::HashingAlgorithm, session_handles::AuthSession},
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
