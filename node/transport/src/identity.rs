//! Keys: our own key pair, and the public key a peer is known by.
//!
//! A node makes an [`Identity`] at each start and never writes it down; a client loads one from a PKCS#8 PEM
//! file (RFC 8410, what `openssl genpkey -algorithm ed25519` writes). The key pair lives in AWS-LC's memory,
//! which wipes it when freed; our own copies of the seed are zeroized.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{IdentityError, PeerKeyError};

/// DER of an Ed25519 SubjectPublicKeyInfo up to the key itself (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// DER of an Ed25519 PKCS#8 v1 private key up to the seed itself (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A PEM file with one Ed25519 key has some 120 bytes; comments and line ends fit in the rest.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// An Ed25519 public key, which is all the name a peer has on this layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Length of its DER form.
    pub const SPKI_LEN: usize = 44;

    /// Takes the 32 raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a DER SubjectPublicKeyInfo. Strict: the one canonical encoding of an Ed25519 key and nothing else.
    pub fn from_spki(der: &[u8]) -> Result<Self, PeerKeyError> {
        if der.len() != Self::SPKI_LEN {
            return Err(PeerKeyError::Length { got: der.len() });
        }
        let key = der.strip_prefix(&SPKI_PREFIX).ok_or(PeerKeyError::Algorithm)?;
        let key = key.try_into().map_err(|_| PeerKeyError::Length { got: der.len() })?;
        Ok(Self(key))
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn to_spki(&self) -> [u8; Self::SPKI_LEN] {
        let mut der = [0; Self::SPKI_LEN];
        let (prefix, key) = der.split_at_mut(SPKI_PREFIX.len());
        prefix.copy_from_slice(&SPKI_PREFIX);
        key.copy_from_slice(&self.0);
        der
    }

    /// Whether `signature` over `message` was made with the private half.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

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

impl FromStr for PublicKey {
    type Err = hex::FromHexError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(s, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Our own Ed25519 key pair. Cheap to clone; has no `Debug` and no way to read the private half.
#[derive(Clone)]
pub struct Identity {
    pair: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

impl Identity {
    /// Makes a new key pair, in memory only.
    pub fn generate() -> Result<Self, IdentityError> {
        let seed = random_seed()?;
        Self::from_seed(&seed).ok_or(IdentityError::NoRandomness)
    }

    /// Loads a key pair from a PKCS#8 PEM file that other users of the machine cannot read.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { path: path.to_owned(), what: "read", source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        // Group access is left to the operator: mounted secrets are often readable by a group of one.
        if mode & 0o007 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode: mode & 0o7777 });
        }
        // Room for all of it from the start: growing would leave unwiped copies behind.
        let mut pem = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize + 1));
        file.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut pem).map_err(failed)?;
        if pem.len() as u64 > KEY_FILE_BYTES_MAX {
            return Err(IdentityError::TooLong { path: path.to_owned(), max: KEY_FILE_BYTES_MAX });
        }
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| IdentityError::NotPkcs8Pem { path: path.to_owned() })?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        let pair = pair.map_err(|_| IdentityError::NotEd25519 { path: path.to_owned() })?;
        Self::from_pair(pair).ok_or_else(|| IdentityError::NotEd25519 { path: path.to_owned() })
    }

    /// Makes a new key pair and writes it to a new file (mode 0600). Refuses to overwrite.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let seed = random_seed()?;
        let identity = Self::from_seed(&seed).ok_or(IdentityError::NoRandomness)?;
        let mut der = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        let (prefix, secret) = der.split_at_mut(PKCS8_PREFIX.len());
        prefix.copy_from_slice(&PKCS8_PREFIX);
        secret.copy_from_slice(seed.as_slice());
        // 48 bytes are 64 characters of base64: one PEM line.
        let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der.as_slice()));
        let pem = Zeroizing::new(format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            body.as_str()
        ));

        let failed = |source| IdentityError::File { path: path.to_owned(), what: "created", source };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(identity)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs bytes. They must begin with a label of their own that no TLS message begins with (TLS 1.3 signs
    /// sixty-four spaces first, RFC 8446 §4.4.3).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        let signature = self.pair.sign(message);
        for (to, from) in out.iter_mut().zip(signature.as_ref()) {
            *to = *from;
        }
        out
    }

    /// The form in which rustls shows and uses the key.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let spki = CertificateDer::from(self.public.to_spki().to_vec());
        Arc::new(CertifiedKey::new(vec![spki], Arc::new(HandshakeKey(self.clone()))))
    }

    fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        Self::from_pair(Ed25519KeyPair::from_seed_unchecked(seed).ok()?)
    }

    fn from_pair(pair: Ed25519KeyPair) -> Option<Self> {
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair: Arc::new(pair), public })
    }
}

fn random_seed() -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let mut seed = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(seed.as_mut_slice()).map_err(|_| IdentityError::NoRandomness)?;
    Ok(seed)
}

/// The key pair as rustls wants it: for both roles at once, Ed25519 only.
struct HandshakeKey(Identity);

impl fmt::Debug for HandshakeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandshakeKey({})", self.0.public)
    }
}

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ED25519)
            .then(|| Box::new(HandshakeKey(self.0.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.public.to_spki().to_vec()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for HandshakeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature = self
            .0
            .pair
            .try_sign(message)
            .map_err(|_| rustls::Error::General("Ed25519 signing failed".into()))?;
        Ok(signature.as_ref().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spki_round_trip_and_strictness() {
        let key = Identity::generate().unwrap().public();
        let der = key.to_spki();
        assert_eq!(PublicKey::from_spki(&der), Ok(key));
        assert_eq!(PublicKey::from_spki(&der[..43]), Err(PeerKeyError::Length { got: 43 }));
        let mut longer = der.to_vec();
        longer.push(0);
        assert_eq!(PublicKey::from_spki(&longer), Err(PeerKeyError::Length { got: 45 }));
        for i in 0..SPKI_PREFIX.len() {
            let mut bad = der;
            bad[i] ^= 1;
            assert_eq!(PublicKey::from_spki(&bad), Err(PeerKeyError::Algorithm), "byte {i}");
        }
    }

    #[test]
    fn text_form_round_trips() {
        let key = Identity::generate().unwrap().public();
        assert_eq!(key.to_string().parse::<PublicKey>(), Ok(key));
        assert!("00".parse::<PublicKey>().is_err());
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let made = Identity::create(&path).unwrap();
        let loaded = Identity::load(&path).unwrap();
        assert_eq!(made.public(), loaded.public());
        assert!(made.public().verify(b"label message", &loaded.sign(b"label message")));
        assert!(!made.public().verify(b"label messagE", &loaded.sign(b"label message")));

        assert!(matches!(Identity::create(&path), Err(IdentityError::File { what: "created", .. })));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Exposed { mode: 0o604, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();

        std::fs::write(&path, b"hello").unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::NotPkcs8Pem { .. })));
        std::fs::write(&path, vec![b'x'; 20_000]).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::TooLong { .. })));
        // a PEM section whose content is no key
        let empty = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        std::fs::write(&path, empty).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::NotEd25519 { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::File { what: "read", .. })));
    }

    #[test]
    fn loads_what_openssl_writes() {
        // The private key of RFC 8410 §10.3.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        std::fs::write(&path, pem).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = Identity::load(&path).unwrap().public();
        // The public key of RFC 8410 §10.1 belongs to it.
        assert_eq!(key.to_string(), "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1");
    }
}
