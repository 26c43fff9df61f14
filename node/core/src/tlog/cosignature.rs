//! C2SP tlog-cosignature, Ed25519 (type 0x04): a node's statement that this is the largest tree it has seen of this log.
//!
//! Verifying says that the key's holder made that statement at the time it claims. Whether that key may cosign, whether
//! the time is acceptable and whether it ever signed something else at this size is the caller's to decide. The message
//! does not name the cosigner: one key, one cosigner.

use aws_lc_rs::signature::Ed25519KeyPair;
use borsh::{BorshDeserialize, BorshSerialize};

use crate::crypto::verify_ed25519;

use super::{
    checkpoint::Checkpoint,
    note::{KeyKind, KeyName, NoteSignature, VerifierKey},
};

/// C2SP tlog-cosignature, Format: a timestamp must not exceed this.
pub const TIME_S_MAX: u64 = i64::MAX as u64;

const SIGNATURE_BYTES: usize = 64;

/// `timestamped_signature`: when, and the Ed25519 signature over [`cosigned_bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Cosignature {
    /// when it was made, in seconds of POSIX time
    pub time_s: u64,
    /// the Ed25519 signature
    pub signature: [u8; SIGNATURE_BYTES],
}

/// Why a cosignature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CosignatureError {
    /// the time does not fit into 63 bits
    #[error("the cosignature's time {0} is out of range")]
    Time(u64),
    /// not eight bytes of time and 64 of signature
    #[error("a cosignature has 72 bytes, not {0}")]
    Length(usize),
    /// the signature line names another key
    #[error("the signature line is not by {0}")]
    OtherKey(KeyName),
    /// the signature is not this key's over this checkpoint and time
    #[error("the cosignature does not verify")]
    BadSignature,
}

/// What is signed: C2SP tlog-cosignature, Ed25519 signed message.
pub fn cosigned_bytes(checkpoint: &Checkpoint, time_s: u64) -> Vec<u8> {
    cosigned_body(&checkpoint.body(), time_s)
}

impl Cosignature {
    /// Cosigns. The sign lock (never two roots at one size, never a smaller size) is the caller's.
    pub fn sign(
        key: &Ed25519KeyPair,
        checkpoint: &Checkpoint,
        time_s: u64,
    ) -> Result<Self, CosignatureError> {
        check_time(time_s)?;
        let signature = key.sign(&cosigned_bytes(checkpoint, time_s));
        let signature = signature.as_ref().try_into().map_err(|_| CosignatureError::BadSignature)?;
        Ok(Self { time_s, signature })
    }

    /// Verifies that the holder of this Ed25519 key cosigned this checkpoint at [`Cosignature::time_s`].
    pub fn verify(&self, checkpoint: &Checkpoint, public_key: &[u8; 32]) -> Result<(), CosignatureError> {
        self.verify_body(&checkpoint.body(), public_key)
    }

    /// As [`Cosignature::verify`], over the text of a note, which may have extension lines.
    pub fn verify_body(&self, body: &str, public_key: &[u8; 32]) -> Result<(), CosignatureError> {
        check_time(self.time_s)?;
        verify_ed25519(public_key, &cosigned_body(body, self.time_s), &self.signature)
            .map_err(|_| CosignatureError::BadSignature)
    }

    /// The bytes of `timestamped_signature`.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.time_s.to_be_bytes()[..], &self.signature].concat()
    }

    /// Parses `timestamped_signature`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CosignatureError> {
        let wrong = || CosignatureError::Length(bytes.len());
        let (time, signature) = bytes.split_first_chunk().ok_or_else(wrong)?;
        let signature = signature.try_into().map_err(|_| wrong())?;
        let time_s = u64::from_be_bytes(*time);
        check_time(time_s)?;
        Ok(Self { time_s, signature })
    }

    /// The signature line, for the key of this name.
    pub fn to_note_signature(&self, name: &KeyName, public_key: &[u8; 32]) -> NoteSignature {
        let key = VerifierKey::new(name.clone(), KeyKind::CosignatureV1, *public_key);
        NoteSignature { name: name.clone(), key_id: key.key_id(), bytes: self.to_bytes() }
    }

    /// Takes a cosignature, not yet verified, from a signature line of this key.
    pub fn from_note_signature(
        line: &NoteSignature,
        name: &KeyName,
        public_key: &[u8; 32],
    ) -> Result<Self, CosignatureError> {
        let key = VerifierKey::new(name.clone(), KeyKind::CosignatureV1, *public_key);
        if !key.is_claimed_by(line) {
            return Err(CosignatureError::OtherKey(name.clone()));
        }
        Self::from_bytes(&line.bytes)
    }
}

fn check_time(time_s: u64) -> Result<(), CosignatureError> {
    if time_s > TIME_S_MAX { Err(CosignatureError::Time(time_s)) } else { Ok(()) }
}

fn cosigned_body(body: &str, time_s: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {time_s}\n{body}").into_bytes()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::KeyPair;

    use super::*;
    use crate::tlog::{
        checkpoint::Origin,
        hash::{Hash, TreeSize},
        note::{Note, NoteError},
    };

    fn key(seed: u8) -> (Ed25519KeyPair, [u8; 32]) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().try_into().unwrap();
        (pair, public)
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: Origin::new("quorate/demo").unwrap(), size: TreeSize(9), root: Hash([9; 32]) }
    }

    #[test]
    fn the_specifications_message() {
        let body = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
        let message = cosigned_bytes(&Checkpoint::parse(body).unwrap(), 1_679_315_147);
        assert_eq!(message, format!("cosignature/v1\ntime 1679315147\n{body}").as_bytes());
    }

    #[test]
    fn verifies_only_what_was_signed() {
        let ((pair, public), (_, other)) = (key(1), key(2));
        let good = Cosignature::sign(&pair, &checkpoint(), 1000).unwrap();
        assert_eq!(good.verify(&checkpoint(), &public), Ok(()));
        assert_eq!(borsh::from_slice::<Cosignature>(&borsh::to_vec(&good).unwrap()).unwrap(), good);
        let bad = Err(CosignatureError::BadSignature);
        assert_eq!(good.verify(&checkpoint(), &other), bad);
        assert_eq!(Cosignature { time_s: 1001, ..good }.verify(&checkpoint(), &public), bad);
        let mut signature = good.signature;
        signature[40] ^= 1;
        assert_eq!(Cosignature { signature, ..good }.verify(&checkpoint(), &public), bad);
        for changed in [
            Checkpoint { size: TreeSize(10), ..checkpoint() },
            Checkpoint { root: Hash([8; 32]), ..checkpoint() },
            Checkpoint { origin: Origin::new("quorate/demo2").unwrap(), ..checkpoint() },
        ] {
            assert_eq!(good.verify(&changed, &public), bad);
        }
        let late = TIME_S_MAX + 1;
        assert_eq!(Cosignature::sign(&pair, &checkpoint(), late), Err(CosignatureError::Time(late)));
        assert_eq!(
            Cosignature { time_s: late, ..good }.verify(&checkpoint(), &public),
            Err(CosignatureError::Time(late))
        );
    }

    #[test]
    fn travels_in_a_note() {
        let ((pair, public), (_, other)) = (key(1), key(2));
        let name = KeyName::new("quorate/demo/node-1").unwrap();
        let good = Cosignature::sign(&pair, &checkpoint(), 1000).unwrap();
        let line = good.to_note_signature(&name, &public);
        let note = Note::new(checkpoint().body(), vec![line.clone()]).unwrap();
        let note = Note::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!(Checkpoint::parse(note.text()), Ok(checkpoint()));
        assert_eq!(Cosignature::from_note_signature(&note.signatures()[0], &name, &public), Ok(good));
        let elsewhere = Cosignature::from_note_signature(&line, &name, &other);
        assert_eq!(elsewhere, Err(CosignatureError::OtherKey(name.clone())));
        let mut short = line;
        short.bytes.pop();
        assert_eq!(
            Cosignature::from_note_signature(&short, &name, &public),
            Err(CosignatureError::Length(71))
        );

        let known = [VerifierKey::new(name.clone(), KeyKind::CosignatureV1, public)];
        assert_eq!(known[0].to_string().parse(), Ok(known[0].clone()));
        assert_eq!(note.verified_by(&known).map(|by| by.len()), Ok(1));
        let mut moved = good;
        moved.time_s += 1;
        let moved = Note::new(checkpoint().body(), vec![moved.to_note_signature(&name, &public)]).unwrap();
        assert_eq!(moved.verified_by(&known), Err(NoteError::BadSignature(name)));
    }

    #[test]
    fn the_specifications_line_parses() {
        let line = "\u{2014} witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==";
        let note = Note::parse(format!("text\n\n{line}\n").as_bytes()).unwrap();
        let cosignature = Cosignature::from_bytes(&note.signatures()[0].bytes).unwrap();
        assert_eq!(cosignature.time_s, 1_679_315_147);
    }
}
