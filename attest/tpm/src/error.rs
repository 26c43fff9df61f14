//! What can go wrong between a node and its TPM.
use std::time::Duration;

/// A failed TPM operation. None of these says anything about another machine: the fault is local.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The TCTI string is not one of the supported forms.
    #[error("TCTI `{given}` is not supported: {reason}")]
    TctiUnsupported {
        /// What the configuration said.
        given: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// No TPM answers at the configured place.
    #[error("no TPM answers at {tcti}")]
    Unreachable {
        /// Where it was looked for.
        tcti: String,
        /// What tpm2-tss said.
        source: tss_esapi::Error,
    },
    /// The TPM (or the way to it) refused a command.
    #[error("TPM command {command} failed")]
    Command {
        /// The command, by its name in the TPM 2.0 Library.
        command: &'static str,
        /// What tpm2-tss said.
        source: tss_esapi::Error,
    },
    /// The TPM answered with something that the command cannot return.
    #[error("TPM answered {command} with {what}")]
    Nonsense {
        /// The command, by its name in the TPM 2.0 Library.
        command: &'static str,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// The AK's persistent handle is empty: the TPM is not enrolled, or was cleared.
    #[error("no AK at handle {handle:#010x}: the TPM is not enrolled, or was cleared")]
    AkAbsent {
        /// The configured persistent handle.
        handle: u32,
    },
    /// Something else lives at the AK's persistent handle; it is left alone.
    #[error("handle {handle:#010x} holds another key than this TPM's AK")]
    AkHandleOccupied {
        /// The configured persistent handle.
        handle: u32,
    },
    /// A handle outside the range for persistent objects of the owner.
    #[error("{handle:#010x} is not a persistent handle of the owner (0x81000000 to 0x817fffff)")]
    AkHandleInvalid {
        /// The configured handle.
        handle: u32,
    },
    /// The PCR selection is empty, unordered, or names a PCR that does not exist.
    #[error("PCR selection {0:?} is not an ascending list of PCRs below 24")]
    SelectionInvalid(Vec<u8>),
    /// PCRs kept changing between the quote and the reading of their values.
    #[error("PCRs changed during each of {attempts} attempts to quote them")]
    PcrsUnstable {
        /// How often it was tried.
        attempts: u32,
    },
    /// The approval is not signed by the approver that the blob was sealed for, or is for another node.
    #[error("the approval is not signed by this blob's approver for this node")]
    ApprovalNotSigned,
    /// The PCRs do not have the approved values.
    #[error("the approval does not fit this machine's PCRs {pcrs:?}")]
    ApprovalDoesNotFitPcrs {
        /// The PCRs that the approval is about.
        pcrs: Vec<u8>,
    },
    /// The counter stands above the approval's limit.
    #[error("the approval is withdrawn: the TPM's counter stands above {limit}")]
    ApprovalWithdrawn {
        /// The last value at which it held.
        limit: u64,
    },
    /// The blob was sealed by another TPM, or by this one before its owner cleared it.
    #[error("the blob was sealed by another TPM, or by this one before it was cleared")]
    WrongTpm,
    /// The blob is not one, or was altered.
    #[error("the sealed blob is damaged: {0}")]
    BlobDamaged(&'static str),
    /// A secret of a size that is not sealed.
    #[error("a secret of {bytes} bytes is not sealed: 1 to 128 are")]
    SecretSize {
        /// Its size.
        bytes: usize,
    },
    /// The TPM has no counter at this NV index.
    #[error("no counter at NV index {handle:#010x}: the TPM is not enrolled, or was cleared")]
    CounterAbsent {
        /// The NV index.
        handle: u32,
    },
    /// Something else is defined at the counter's NV index; it is left alone.
    #[error("NV index {handle:#010x} is not this program's counter")]
    CounterOccupied {
        /// The NV index.
        handle: u32,
    },
    /// Raising the counter would take more increments than a TPM's memory is to be worn with.
    #[error("the counter stands at {value}: {asked} is too far")]
    CounterTooFar {
        /// Where it stands.
        value: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The TPM did not answer in time. The operation may still be running; the next one waits behind it.
    #[error("TPM did not answer within {0:?}")]
    TimedOut(Duration),
    /// Too many operations are waiting already, so the TPM is slow or hangs.
    #[error("TPM queue is full")]
    Busy,
    /// The TPM's thread has ended.
    #[error("TPM thread has ended")]
    Closed,
    /// The TPM's thread could not be started.
    #[error("TPM thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// Names the command that a tpm2-tss call belongs to.
pub(crate) trait During<T> {
    fn during(self, command: &'static str) -> Result<T, TpmError>;
}

impl<T> During<T> for tss_esapi::Result<T> {
    fn during(self, command: &'static str) -> Result<T, TpmError> {
        self.map_err(|source| TpmError::Command { command, source })
    }
}
