//! The one place where core verifies Ed25519 and hashes. Signed bytes are always label, NUL, then borsh: every kind of
//! statement has a label of its own, so that no signature can be read as another kind (RFC 8032 keys, no prehash).
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

pub use crate::tlog::Hash;
pub use crate::tlog::sha256;

/// An Ed25519 public key, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// An Ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex::encode(self.0.get(..4).unwrap_or_default()))
    }
}

/// A signature that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

impl PublicKey {
    /// Verifies an Ed25519 signature over `message`.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        verify_ed25519(&self.0, message, &signature.0)
    }
    /// Verifies a signature over a labelled statement, see [`statement_bytes`].
    pub fn verify_statement<T: BorshSerialize>(
        &self,
        label: &str,
        body: &T,
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        self.verify(&statement_bytes(label, body), signature)
    }
}

/// Verifies an Ed25519 signature over bytes that carry a label of their own.
pub fn verify_ed25519(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Result<(), BadSignature> {
    let check = || UnparsedPublicKey::new(&ED25519, key).verify(message, signature).map_err(|_| BadSignature);
    #[cfg(any(test, feature = "danger-testing"))]
    let check = || crate::testing::verdict([&key[..], &signature[..], message], check);
    check()
}

/// What is signed for a statement: its label, a NUL, and the canonical borsh bytes of its body.
pub fn statement_bytes<T: BorshSerialize>(label: &str, body: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(label.as_bytes());
    bytes.push(0);
    encode_into(body, &mut bytes);
    bytes
}

/// The canonical borsh bytes of a value of ours.
pub fn encode<T: BorshSerialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    encode_into(value, &mut bytes);
    bytes
}

fn encode_into<T: BorshSerialize>(value: &T, bytes: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and none of our types refuses to serialise.
    let written = value.serialize(bytes);
    assert!(written.is_ok(), "borsh into memory");
}

/// Signs a labelled statement.
pub fn sign_statement<T: BorshSerialize>(key: &Ed25519KeyPair, label: &str, body: &T) -> Signature {
    sign(key, &statement_bytes(label, body))
}

/// Signs bytes that carry a label of their own (a C2SP cosignature).
pub fn sign(key: &Ed25519KeyPair, message: &[u8]) -> Signature {
    let mut bytes = [0; 64];
    let signature = key.sign(message);
    bytes.iter_mut().zip(signature.as_ref()).for_each(|(to, from)| *to = *from);
    Signature(bytes)
}

/// The public half of a key pair.
pub fn public_key(key: &Ed25519KeyPair) -> PublicKey {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(key.public_key().as_ref()).for_each(|(to, from)| *to = *from);
    PublicKey(bytes)
}
