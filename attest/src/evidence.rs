//! Evidence (RFC 9334 §8.1) as a node sends it: a TPM quote, the PCR values it covers, and the digests of the
//! logs that explain them. Nothing here is trusted before [`crate::appraisal`] has looked at it.
use borsh::{BorshDeserialize, BorshSerialize};

/// A quote and what is needed to appraise it. The logs themselves travel as blobs named by SHA-256 digest.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Evidence {
    /// `TPMS_ATTEST`, as the TPM marshalled and signed it.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` by the AK over `attest`.
    pub signature: Vec<u8>,
    /// Index and value of each quoted PCR in the SHA-256 bank, ascending.
    pub pcrs: Vec<(u8, [u8; 32])>,
    /// SHA-256 of the TCG PC Client event log blob.
    pub event_log: [u8; 32],
    /// SHA-256 of the IMA measurement list blob, where PCR 10 is quoted.
    pub ima_log: Option<[u8; 32]>,
}

/// The public boot keys of one start of a node: made anew each time, bound by the quote's qualifying data.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct BootKeys {
    /// Ed25519 public key (32 bytes) that the node's TLS endpoints prove possession of.
    pub tls: [u8; 32],
    /// Ed25519 public key (32 bytes) that signs checkpoints and the node's own commands.
    pub cosign: [u8; 32],
}
