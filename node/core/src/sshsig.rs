//! Admin signatures: `ssh-keygen -Y sign -n quorate` (openssh PROTOCOL.sshsig), Ed25519 and FIDO Ed25519 keys. Release manifests
//! are signed alike, in a namespace of their own, so that neither can be read as the other.
//!
//! `ssh-key` parses the envelope; the signature itself is verified by the one provider. Refused: other namespaces, other
//! algorithms, SHA-256 envelopes (ssh-keygen's default is SHA-512, one form is enough), a FIDO signature without
//! the user-present flag.
use crate::crypto::{PublicKey, Signature};
use borsh::{BorshDeserialize, BorshSerialize};
use ssh_key::public::KeyData;
use std::fmt;

/// The namespace of every admin signature.
pub const NAMESPACE: &str = "quorate";
/// The namespace of signatures over release manifests.
pub const RELEASE_NAMESPACE: &str = "quorate-release";
/// Longest binary signature accepted; Ed25519 ones take some 160 bytes.
pub(crate) const SIGNATURE_BYTES_MAX: usize = 1024;

/// An admin's public key: what identifies an admin.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, BorshSerialize, BorshDeserialize)]
pub enum AdminKey {
    /// `ssh-ed25519`.
    Ed25519([u8; 32]),
    /// `sk-ssh-ed25519@openssh.com` and its application, such as `ssh:`.
    SkEd25519([u8; 32], String),
}

/// Why a signature or key was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshSigError {
    /// Not an OpenSSH public key.
    #[error("not an OpenSSH public key line")]
    MalformedKey,
    /// Only Ed25519 kinds.
    #[error("key type is not ssh-ed25519 or sk-ssh-ed25519@openssh.com")]
    UnsupportedKey,
    /// Not an SSH signature.
    #[error("not an SSH signature (ssh-keygen -Y sign)")]
    Malformed,
    /// Another namespace.
    #[error("the signature's namespace is not {0:?}: sign with `ssh-keygen -Y sign -n {0}`")]
    WrongNamespace(&'static str),
    /// Another hash.
    #[error("the signature's hash is not sha512")]
    WrongHash,
    /// A FIDO key that was not touched.
    #[error("the security key was not touched")]
    UserNotPresent,
    /// Does not verify.
    #[error("the signature does not verify")]
    BadSignature,
}

/// A binary SSHSIG blob, unverified.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SshSignature(pub Vec<u8>);

impl fmt::Debug for SshSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshSignature({} bytes)", self.0.len())
    }
}

impl AdminKey {
    /// Reads an OpenSSH public key line.
    pub fn from_openssh(line: &str) -> Result<Self, SshSigError> {
        let key = ssh_key::PublicKey::from_openssh(line.trim()).map_err(|_| SshSigError::MalformedKey)?;
        Self::from_key_data(key.key_data())
    }

    fn from_key_data(key: &KeyData) -> Result<Self, SshSigError> {
        match key {
            KeyData::Ed25519(k) => Ok(Self::Ed25519(k.0)),
            KeyData::SkEd25519(k) => Ok(Self::SkEd25519(k.public_key().0, k.application().to_owned())),
            _ => Err(SshSigError::UnsupportedKey),
        }
    }
}

impl SshSignature {
    /// Reads the armoured form that ssh-keygen writes.
    pub fn from_pem(pem: &str) -> Result<Self, SshSigError> {
        let parsed = ssh_key::SshSig::from_pem(pem.trim()).map_err(|_| SshSigError::Malformed)?;
        let mut bytes = Vec::new();
        ssh_encoding_encode(&parsed, &mut bytes)?;
        Ok(Self(bytes))
    }

    /// Verifies over `message` and tells whose signature it is.
    pub fn verify(&self, message: &[u8]) -> Result<AdminKey, SshSigError> {
        self.verify_in(NAMESPACE, message)
    }

    /// As [`SshSignature::verify`], in another namespace.
    pub fn verify_in(&self, namespace: &'static str, message: &[u8]) -> Result<AdminKey, SshSigError> {
        if self.0.len() > SIGNATURE_BYTES_MAX {
            return Err(SshSigError::Malformed);
        }
        let parsed = <ssh_key::SshSig as ssh_encoding::Decode>::decode(&mut self.0.as_slice())
            .map_err(|_| SshSigError::Malformed)?;
        // One byte form for one signature: what decodes must encode to the same bytes.
        let mut again = Vec::new();
        ssh_encoding_encode(&parsed, &mut again)?;
        if again != self.0 {
            return Err(SshSigError::Malformed);
        }
        if parsed.namespace() != namespace {
            return Err(SshSigError::WrongNamespace(namespace));
        }
        if parsed.hash_alg() != ssh_key::HashAlg::Sha512 {
            return Err(SshSigError::WrongHash);
        }
        let signer = AdminKey::from_key_data(parsed.public_key())?;
        let signed = signed_data(namespace, message);
        let raw = parsed.signature().as_bytes();
        match &signer {
            AdminKey::Ed25519(key) => verify(key, &signed, raw)?,
            AdminKey::SkEd25519(key, application) => {
                // openssh PROTOCOL.u2f: SHA-256(application) ‖ flags ‖ counter ‖ SHA-256(message); raw = signature ‖ flags ‖ counter
                let (signature, tail) = raw.split_at_checked(64).ok_or(SshSigError::Malformed)?;
                let (&flags, counter) = tail.split_first().ok_or(SshSigError::Malformed)?;
                if counter.len() != 4 {
                    return Err(SshSigError::Malformed);
                }
                if flags & 1 == 0 {
                    return Err(SshSigError::UserNotPresent);
                }
                let mut message = crate::crypto::sha256(application.as_bytes()).0.to_vec();
                message.push(flags);
                message.extend_from_slice(counter);
                message.extend_from_slice(&crate::crypto::sha256(&signed).0);
                verify(key, &message, signature)?;
            }
        }
        Ok(signer)
    }
}

fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<(), SshSigError> {
    let signature = Signature(signature.try_into().map_err(|_| SshSigError::Malformed)?);
    PublicKey(*key).verify(message, &signature).map_err(|_| SshSigError::BadSignature)
}

/// PROTOCOL.sshsig, "Signed Data, of which the signature goes into the blob above".
fn signed_data(namespace: &str, message: &[u8]) -> Vec<u8> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, message);
    let mut bytes = b"SSHSIG".to_vec();
    for part in [namespace.as_bytes(), b"", b"sha512", digest.as_ref()] {
        bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn ssh_encoding_encode(signature: &ssh_key::SshSig, bytes: &mut Vec<u8>) -> Result<(), SshSigError> {
    ssh_encoding::Encode::encode(signature, bytes).map_err(|_| SshSigError::Malformed)
}
