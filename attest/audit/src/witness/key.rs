//! Signing keys as files: the text form of Go's `note` package, `PRIVATE+KEY+NAME+ID+BASE64`, so that other C2SP tools read them
//! too. Read and written here only; nothing prints the private half but [`SigningKey::expose_text`].
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_core::crypto::{public_key, sign};
use quorate_core::tlog::{Cosignature, KeyKind, KeyName, NoteSignature, VerifierKey};
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const PREFIX: &str = "PRIVATE+KEY+";
/// A name of 255 bytes, an id and 33 bytes in base64 fit.
const KEY_FILE_BYTES_MAX: u64 = 1024;
const SEED_BYTES: usize = 32;

/// A key that signs notes (0x01) or cosigns checkpoints (0x04). Has no `Debug`: it is secret.
pub struct SigningKey {
    name: KeyName,
    kind: KeyKind,
    seed: Zeroizing<[u8; SEED_BYTES]>,
    pair: Ed25519KeyPair,
}

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not the text of a key.
    #[error("it is not a signing key (PRIVATE+KEY+NAME+ID+BASE64)")]
    Malformed,
    /// A key for something else.
    #[error("it is a key of type {got:#04x}, and one of type {expected:#04x} is needed")]
    OtherKind {
        /// What the file has.
        got: u8,
        /// What is needed.
        expected: u8,
    },
    /// No randomness, or a key that the library refuses.
    #[error("the cryptography library refused")]
    Library,
    /// The file.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        source: std::io::Error,
    },
}

impl SigningKey {
    /// A new random key.
    pub fn generate(name: KeyName, kind: KeyKind) -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; SEED_BYTES]);
        aws_lc_rs::rand::fill(seed.as_mut()).map_err(|_| KeyError::Library)?;
        Self::from_seed(name, kind, seed)
    }

    fn from_seed(name: KeyName, kind: KeyKind, seed: Zeroizing<[u8; SEED_BYTES]>) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| KeyError::Library)?;
        Ok(Self { name, kind, seed, pair })
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let parts = text.trim_end().strip_prefix(PREFIX).ok_or(KeyError::Malformed)?;
        let mut parts = parts.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Malformed);
        };
        let typed = Zeroizing::new(STANDARD.decode(key).map_err(|_| KeyError::Malformed)?);
        let (kind, seed) = typed.split_first().ok_or(KeyError::Malformed)?;
        let kind = match kind {
            0x01 => KeyKind::Ed25519,
            0x04 => KeyKind::CosignatureV1,
            _ => return Err(KeyError::Malformed),
        };
        let seed = Zeroizing::new(seed.try_into().map_err(|_| KeyError::Malformed)?);
        let name = KeyName::new(name).map_err(|_| KeyError::Malformed)?;
        let key = Self::from_seed(name, kind, seed)?;
        if format!("{:08x}", key.verifier_key().key_id().0) != id {
            return Err(KeyError::Malformed);
        }
        Ok(key)
    }

    /// Reads a key file that must be of this kind.
    pub fn read(path: &Path, expected: KeyKind) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { action: "read", path: path.into(), source };
        let mut text = Zeroizing::new(String::new());
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        let key = Self::parse(&text)?;
        if key.kind == expected {
            Ok(key)
        } else {
            Err(KeyError::OtherKind { got: key.kind.type_byte(), expected: expected.type_byte() })
        }
    }

    /// Writes a new key file that only its owner can read; never over another file.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source| KeyError::File { action: "create", path: path.into(), source };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let text = self.expose_text();
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// The private key as text.
    pub fn expose_text(&self) -> Zeroizing<String> {
        let mut typed = Zeroizing::new(vec![self.kind.type_byte()]);
        typed.extend_from_slice(self.seed.as_ref());
        let id = self.verifier_key().key_id().0;
        let key = Zeroizing::new(STANDARD.encode(&*typed));
        Zeroizing::new(format!("{PREFIX}{}+{id:08x}+{}\n", self.name, *key))
    }

    /// The public half, as others are told it.
    pub fn verifier_key(&self) -> VerifierKey {
        VerifierKey::new(self.name.clone(), self.kind, public_key(&self.pair).0)
    }

    /// C2SP signed-note: a plain signature (0x01) over a note's text.
    pub fn sign_note(&self, text: &str) -> NoteSignature {
        let bytes = sign(&self.pair, text.as_bytes()).0.to_vec();
        NoteSignature { name: self.name.clone(), key_id: self.verifier_key().key_id(), bytes }
    }

    /// C2SP tlog-cosignature (0x04) over a checkpoint's text, extension lines included. The sign lock is the caller's.
    pub fn cosign(&self, text: &str, time_s: u64) -> NoteSignature {
        let signature = sign(&self.pair, format!("cosignature/v1\ntime {time_s}\n{text}").as_bytes()).0;
        Cosignature { time_s, signature }.to_note_signature(&self.name, &public_key(&self.pair).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::tlog::Note;

    fn name() -> KeyName {
        KeyName::new("witness.example/w1").unwrap()
    }

    #[test]
    fn a_key_survives_its_file_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SigningKey::generate(name(), KeyKind::CosignatureV1).unwrap();
        key.write_new(&path).unwrap();
        let again = SigningKey::read(&path, KeyKind::CosignatureV1).unwrap();
        assert_eq!(again.verifier_key(), key.verifier_key());
        assert!(matches!(key.write_new(&path), Err(KeyError::File { action: "create", .. })));
        assert!(matches!(
            SigningKey::read(&path, KeyKind::Ed25519),
            Err(KeyError::OtherKind { got: 4, expected: 1 })
        ));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_it_signs_verifies() {
        let text = "example.com/log\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\nextension\n";
        for kind in [KeyKind::Ed25519, KeyKind::CosignatureV1] {
            let key = SigningKey::generate(name(), kind).unwrap();
            let line = match kind {
                KeyKind::Ed25519 => key.sign_note(text),
                KeyKind::CosignatureV1 => key.cosign(text, 1_679_315_147),
            };
            let note = Note::new(text, vec![line]).unwrap();
            assert_eq!(note.verified_by(&[key.verifier_key()]).map(|by| by.len()), Ok(1));
        }
    }

    #[test]
    fn the_go_packages_example_reads() {
        // golang.org/x/mod/sumdb/note, documentation of NewSigner.
        let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        let key = SigningKey::parse(skey).unwrap();
        let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(key.verifier_key().to_string(), vkey);
        assert_eq!(key.expose_text().trim_end(), skey);
        for changed in [skey.replace("c74f20a3", "c74f20a4"), skey.replace("PRIVATE", "PUBLIC"), "x".into()] {
            assert!(matches!(SigningKey::parse(&changed), Err(KeyError::Malformed)), "{changed}");
        }
    }
}
