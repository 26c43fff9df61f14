//! The Attester of RFC 9334: talks to one TPM 2.0 and makes the Evidence that the Verifier (`quorate-attest`)
//! appraises. The only crate that links tpm2-tss.
//!
//! - [`Tpm`] owns the one ESYS context and is blocking; [`TpmHandle`] puts it on a thread of its own behind a
//!   bounded queue, and gives every caller a deadline: a dead TPM is an error, never a hang.
//! - A TPM that went away (a restarted swtpm, a reset device) is reopened on the next use.
//! - It keeps a small secret for the node ([`Tpm::seal`]), which only a machine in an approved state opens again.
//! - It decides nothing: what it returns is checked by others, from bytes alone.
//! - `danger_firmware` is for the development launcher, which plays the machine's firmware. A node never calls it.
//!
//! Texts: TPM 2.0 Library r1.59; TCG EK Credential Profile for TPM Family 2.0, v2.5.
mod counter;
pub mod danger_firmware;
mod enrolment;
mod error;
mod esys;
mod handle;
mod quiet;
mod quote;
mod seal;
mod tcti;
mod tpm;

pub use enrolment::{EkKind, EnrolmentRequest};
pub use error::TpmError;
pub use handle::{TpmConfig, TpmHandle};
pub use quiet::silence_c_library;
pub use quote::Quoted;
pub use seal::{BLOB_BYTES_MAX, SECRET_BYTES_MAX, SealedBlob};
pub use tcti::Tcti;
pub use tpm::{AK_HANDLE_DEFAULT, Tpm};
