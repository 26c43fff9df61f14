//! C2SP signed-note: a text and the signatures under it.
//!
//! Parsing trusts nothing: it bounds the note and the number of signatures and knows no keys. [`Note::verified_by`]
//! then applies the specification's rule: unknown keys are ignored, a known key whose signature fails spoils the note,
//! and without one good signature from a known key there is no note. Only the two types that quorate uses exist:
//! Ed25519 (0x01) and Ed25519 cosignatures (0x04).

use std::{fmt, io, str::FromStr};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use super::{cosignature::Cosignature, hash::sha256};

/// Seven members, their witnesses and a log of somebody else's with ML-DSA signatures fit; the specification demands 16.
pub const SIGNATURES_MAX: usize = 64;
/// 64 signatures of the largest assigned kind (3,300 bytes as base64) fit, and not much more.
pub const NOTE_BYTES_MAX: usize = 256 * 1024;
/// Key names are URLs without a scheme.
pub const KEY_NAME_BYTES_MAX: usize = 255;

/// Ed25519 keys, by RFC 8032.
const ED25519_KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;
const SIGNATURE_LINE: &str = "\u{2014} ";

/// Who signed, by a name nobody checks: only name and [`KeyId`] together mean a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(String);

/// The first four bytes of a hash over key name, signature type and public key: an identifier, not a commitment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

/// What a key signs, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// 0x01: Ed25519 over the text of the note
    Ed25519,
    /// 0x04: C2SP tlog-cosignature, Ed25519
    CosignatureV1,
}

/// A public key as notes know it. Text form is the vkey, `name+id+base64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: KeyName,
    kind: KeyKind,
    public_key: [u8; ED25519_KEY_BYTES],
}

/// One signature line. What is in it is a claim until it was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// the key's name
    pub name: KeyName,
    /// the key's id
    pub key_id: KeyId,
    /// what the signature type makes of a signature
    pub bytes: Vec<u8>,
}

/// A text with signatures, none of which needs to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// Why something is not a note, or not one to believe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// longer than [`NOTE_BYTES_MAX`]
    #[error("a note of {0} bytes exceeds {NOTE_BYTES_MAX}")]
    TooLong(usize),
    /// more than [`SIGNATURES_MAX`] signatures
    #[error("the note has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// a note has at least one signature
    #[error("the note has no signature")]
    Unsigned,
    /// notes are UTF-8
    #[error("the note is not UTF-8")]
    NotUtf8,
    /// notes have no ASCII control characters but newline
    #[error("the note has a control character")]
    ControlCharacter,
    /// text, blank line, signature lines: something is missing
    #[error("the note has no blank line between text and signatures")]
    NoBlankLine,
    /// the text does not end in a newline
    #[error("the note's text does not end in a newline")]
    TextNotTerminated,
    /// a signature line is not `— name base64`
    #[error("signature line {0} is malformed")]
    SignatureLine(usize),
    /// empty, too long, or with a space, a plus or a control character
    #[error("not a key name")]
    KeyName,
    /// not `name+id+base64`
    #[error("not a verifier key")]
    VerifierKey,
    /// a signature type that quorate does not use
    #[error("verifier keys of type {0:#04x} are not supported")]
    KeyKind(u8),
    /// the id is not the one this name and key have
    #[error("the verifier key says id {said:08x}, but has {computed:08x}")]
    KeyIdMismatch {
        /// what the text says
        said: u32,
        /// what the key has
        computed: u32,
    },
    /// a known key's signature does not verify
    #[error("the signature of {0} does not verify")]
    BadSignature(KeyName),
    /// no known key has signed
    #[error("no known key has signed the note")]
    NoKnownKey,
}

impl KeyName {
    /// Checks a name: not empty, no space, no plus, no control character, at most [`KEY_NAME_BYTES_MAX`] bytes.
    pub fn new(name: impl Into<String>) -> Result<Self, NoteError> {
        let name = name.into();
        let good = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
        if name.is_empty() || name.len() > KEY_NAME_BYTES_MAX || !name.chars().all(good) {
            return Err(NoteError::KeyName);
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for KeyName {
    type Error = NoteError;
    fn try_from(name: String) -> Result<Self, NoteError> {
        Self::new(name)
    }
}

impl From<KeyName> for String {
    fn from(name: KeyName) -> Self {
        name.0
    }
}

impl BorshDeserialize for KeyName {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        Self::new(String::deserialize_reader(reader)?)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl KeyKind {
    /// The signature type identifier byte.
    pub fn type_byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::CosignatureV1 => 0x04,
        }
    }
}

impl VerifierKey {
    /// A key of this name.
    pub fn new(name: KeyName, kind: KeyKind, public_key: [u8; 32]) -> Self {
        Self { name, kind, public_key }
    }

    /// The key's name.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// What it signs.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The Ed25519 public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    /// C2SP signed-note, Signatures: SHA-256(name || 0x0A || type || public key)[:4].
    pub fn key_id(&self) -> KeyId {
        let named = [self.name.0.as_bytes(), b"\n", &[self.kind.type_byte()], &self.public_key].concat();
        let [a, b, c, d, ..] = sha256(&named).0;
        KeyId(u32::from_be_bytes([a, b, c, d]))
    }

    /// Whether a signature line claims to be by this key.
    pub fn is_claimed_by(&self, signature: &NoteSignature) -> bool {
        self.name == signature.name && self.key_id() == signature.key_id
    }

    fn verify(&self, text: &str, signature: &NoteSignature) -> bool {
        match self.kind {
            KeyKind::Ed25519 => UnparsedPublicKey::new(&ED25519, &self.public_key)
                .verify(text.as_bytes(), &signature.bytes)
                .is_ok(),
            KeyKind::CosignatureV1 => Cosignature::from_bytes(&signature.bytes)
                .is_ok_and(|cosignature| cosignature.verify_body(text, &self.public_key).is_ok()),
        }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let typed = [&[self.kind.type_byte()][..], &self.public_key].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.key_id().0, STANDARD.encode(typed))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;
    fn from_str(text: &str) -> Result<Self, NoteError> {
        if text.len() > 2 * KEY_NAME_BYTES_MAX {
            return Err(NoteError::VerifierKey);
        }
        // base64 may have a plus, names may not
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::VerifierKey);
        };
        let id_is_hex =
            id.len() == 2 * KEY_ID_BYTES && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let said = u32::from_str_radix(id, 16).ok().filter(|_| id_is_hex).ok_or(NoteError::VerifierKey)?;
        let typed = STANDARD.decode(key).map_err(|_| NoteError::VerifierKey)?;
        let (kind, key) = typed.split_first().ok_or(NoteError::VerifierKey)?;
        let kind = match kind {
            0x01 => KeyKind::Ed25519,
            0x04 => KeyKind::CosignatureV1,
            other => return Err(NoteError::KeyKind(*other)),
        };
        let public_key = key.try_into().map_err(|_| NoteError::VerifierKey)?;
        let key = Self { name: KeyName::new(name)?, kind, public_key };
        let computed = key.key_id().0;
        if said != computed {
            return Err(NoteError::KeyIdMismatch { said, computed });
        }
        Ok(key)
    }
}

impl Note {
    /// Puts signatures under a text, which ends in a newline.
    pub fn new(text: impl Into<String>, signatures: Vec<NoteSignature>) -> Result<Self, NoteError> {
        let text = text.into();
        if !text.ends_with('\n') {
            return Err(NoteError::TextNotTerminated);
        }
        check_characters(&text)?;
        if signatures.is_empty() {
            return Err(NoteError::Unsigned);
        }
        if signatures.len() > SIGNATURES_MAX {
            return Err(NoteError::TooManySignatures);
        }
        Ok(Self { text, signatures })
    }

    /// Parses a note; what is said in it is not yet anybody's word.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteError::TooLong(bytes.len()));
        }
        let note = str::from_utf8(bytes).map_err(|_| NoteError::NotUtf8)?;
        check_characters(note)?;
        // the last empty line separates
        let blank = note.rfind("\n\n").ok_or(NoteError::NoBlankLine)?;
        let (text, lines) = note.split_at_checked(blank + 1).ok_or(NoteError::NoBlankLine)?;
        let lines = lines.strip_prefix('\n').ok_or(NoteError::NoBlankLine)?;
        let mut signatures = Vec::new();
        for (number, line) in lines.split_inclusive('\n').enumerate() {
            if number >= SIGNATURES_MAX {
                return Err(NoteError::TooManySignatures);
            }
            signatures.push(parse_signature(line).ok_or(NoteError::SignatureLine(number + 1))?);
        }
        Self::new(text, signatures)
    }

    /// The text, with its final newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Those of `known` that have signed. Fails when one of them did so badly, or none did.
    pub fn verified_by<'k>(&self, known: &'k [VerifierKey]) -> Result<Vec<&'k VerifierKey>, NoteError> {
        let mut by = Vec::new();
        for signature in &self.signatures {
            let Some(key) = known.iter().find(|key| key.is_claimed_by(signature)) else { continue };
            if !key.verify(&self.text, signature) {
                return Err(NoteError::BadSignature(key.name.clone()));
            }
            if !by.contains(&key) {
                by.push(key);
            }
        }
        if by.is_empty() { Err(NoteError::NoKnownKey) } else { Ok(by) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for NoteSignature { name, key_id, bytes } in &self.signatures {
            let keyed = [&key_id.0.to_be_bytes()[..], bytes].concat();
            writeln!(f, "{SIGNATURE_LINE}{name} {}", STANDARD.encode(keyed))?;
        }
        Ok(())
    }
}

fn check_characters(text: &str) -> Result<(), NoteError> {
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        return Err(NoteError::ControlCharacter);
    }
    Ok(())
}

fn parse_signature(line: &str) -> Option<NoteSignature> {
    let line = line.strip_suffix('\n')?.strip_prefix(SIGNATURE_LINE)?;
    let (name, base64) = line.split_once(' ')?;
    let keyed = STANDARD.decode(base64).ok()?;
    let (id, bytes) = keyed.split_first_chunk()?;
    if bytes.is_empty() {
        return None;
    }
    Some(NoteSignature {
        name: KeyName::new(name).ok()?,
        key_id: KeyId(u32::from_be_bytes(*id)),
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::tlog::testing::fixtures;

    /// The example of C2SP signed-note.md.
    const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    const NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo \
        Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

    fn example() -> (VerifierKey, Note) {
        (VKEY.parse().unwrap(), Note::parse(NOTE.as_bytes()).unwrap())
    }

    #[test]
    fn the_specifications_example() {
        let (key, note) = example();
        assert_eq!(key.to_string(), VKEY);
        assert_eq!(note.to_string(), NOTE);
        assert_eq!(note.text(), "This is an example message.\n");
        assert_eq!(note.verified_by(std::slice::from_ref(&key)), Ok(vec![&key]));
    }

    #[test]
    fn the_fixtures_example_is_the_same() {
        let Some(file) = fixtures("README.md") else { return };
        let readme = fs::read_to_string(file).unwrap();
        let section = readme.split("## Signed-note example").nth(1).expect("the example");
        let vkey = section.split("vkey: ").nth(1).unwrap().lines().next().unwrap();
        let note = section.split("```\n").nth(1).unwrap();
        let key = vkey.parse::<VerifierKey>().unwrap();
        assert_eq!(Note::parse(note.as_bytes()).unwrap().verified_by(&[key]).map(|by| by.len()), Ok(1));
    }

    #[test]
    fn verification_follows_the_rule() {
        let (key, note) = example();
        let changed = NOTE.replace("example message", "Example message");
        let changed = Note::parse(changed.as_bytes()).unwrap();
        assert_eq!(
            changed.verified_by(std::slice::from_ref(&key)),
            Err(NoteError::BadSignature(key.name.clone()))
        );
        let stranger =
            VerifierKey::new(KeyName::new("example.com/bar").unwrap(), KeyKind::Ed25519, key.public_key);
        let cosigner = VerifierKey::new(key.name.clone(), KeyKind::CosignatureV1, key.public_key);
        assert_eq!(note.verified_by(&[stranger.clone(), cosigner]), Err(NoteError::NoKnownKey));
        // a signature of somebody unknown changes nothing, even under a known name
        let mut both = note.signatures.clone();
        both.insert(0, NoteSignature { key_id: KeyId(1), ..both[0].clone() });
        let both = Note::new(note.text.clone(), both).unwrap();
        assert_eq!(both.verified_by(&[stranger, key.clone()]), Ok(vec![&key]));
    }

    #[test]
    fn refuses_malformed_notes() {
        let line = NOTE.lines().last().unwrap();
        let parse = |note: &str| Note::parse(note.as_bytes());
        assert_eq!(parse("text\n"), Err(NoteError::NoBlankLine));
        assert_eq!(parse("text\n\n"), Err(NoteError::Unsigned));
        assert_eq!(parse(&format!("text\n{line}\n")), Err(NoteError::NoBlankLine));
        assert_eq!(parse(&format!("te\rxt\n\n{line}\n")), Err(NoteError::ControlCharacter));
        assert_eq!(parse(&format!("text\n\n{line}")), Err(NoteError::SignatureLine(1)));
        assert_eq!(
            parse(&format!("text\n\n{line}\n{}\n", line.replace('\u{2014}', "-"))),
            Err(NoteError::SignatureLine(2))
        );
        assert_eq!(
            parse(&format!("text\n\n{}\n", line.replace("foo", "f+o"))),
            Err(NoteError::SignatureLine(1))
        );
        assert_eq!(parse(&format!("text\n\n{}\n", line.replace('=', ""))), Err(NoteError::SignatureLine(1)));
        assert_eq!(parse("text\n\n\u{2014} name AAAAAA==\n"), Err(NoteError::SignatureLine(1)));
        assert_eq!(
            parse(&format!("text\n\n{}", format!("{line}\n").repeat(65))),
            Err(NoteError::TooManySignatures)
        );
        assert!(parse(&format!("text\n\n{}", format!("{line}\n").repeat(64))).is_ok());
        assert_eq!(Note::parse(b"\xff\n\n"), Err(NoteError::NotUtf8));
        let long = "x".repeat(NOTE_BYTES_MAX + 1);
        assert_eq!(parse(&long), Err(NoteError::TooLong(NOTE_BYTES_MAX + 1)));
        // blank lines in the text are the text's
        assert_eq!(parse(&format!("a\n\nb\n\n{line}\n")).unwrap().text(), "a\n\nb\n");
        assert_eq!(Note::new("text", vec![]), Err(NoteError::TextNotTerminated));
    }

    #[test]
    fn refuses_malformed_keys() {
        for bad in ["", "name", "name+00000000", "name+0+AAAA", "name+00000000+!", "name+00000000+AQ=="] {
            assert_eq!(bad.parse::<VerifierKey>(), Err(NoteError::VerifierKey), "{bad}");
        }
        assert_eq!(VKEY.replace("530d903a", "530D903A").parse::<VerifierKey>(), Err(NoteError::VerifierKey));
        let mismatch = NoteError::KeyIdMismatch { said: 0x530d_903b, computed: 0x530d_903a };
        assert_eq!(VKEY.replace("530d903a", "530d903b").parse::<VerifierKey>(), Err(mismatch));
        assert_eq!(VKEY.replace("+Aeky", "+Beky").parse::<VerifierKey>(), Err(NoteError::KeyKind(0x05)));
        for bad in ["", "a b", "a+b", "a\u{2003}b", "a\nb", &"x".repeat(256)] {
            assert_eq!(KeyName::new(bad), Err(NoteError::KeyName), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(bytes in "[a\n\u{2014} /A=]{0,40}") {
            let note = format!("{bytes}\n\n\u{2014} n AAAAAAA=\n");
            if let Ok(parsed) = Note::parse(note.as_bytes()) {
                prop_assert_eq!(parsed.to_string(), note);
            }
        }
    }
}
