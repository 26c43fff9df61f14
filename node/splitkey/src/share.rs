//! The two halves of a route's secret, and the only place where a whole secret is known.
//!
//! ```text
//! for each keyer k:   A_k  the mask        random, as long as the secret     sealed to node k
//!                     B_k  the complement  K XOR A_k                         sealed to every node but k
//! ```
//!
//! K is the credential without its public prefix, which stands in the head and is nobody's secret. A node knows its own
//! mask and other keyers' complements. Each mask is used for one complement only, so what a node knows is a list of
//! independent random strings, whatever K is: that is what the masks must be random, of full length and all different
//! for, and why [`Secret::split`] refuses the outputs of a random source that is broken visibly (a mask of zeros is a
//! complement in clear; two equal masks give a node K).
//!
//! **Only visible ASCII.** A secret with a space, a control byte or a line end could end its header line or begin another,
//! and no one after this point can look: the keyer checks everything of the head but the hole. So [`Secret::new`]
//! refuses other bytes than `!` to `~`, on the admin's own machine, before there is anything to seal.
//!
//! **Decides**: whether bytes may be a secret or a share. **Refuses**: lengths outside [`SECRET_MIN`] to [`SECRET_MAX`]
//! (a short secret could be guessed through metered failures). **There is no way to join shares**: the relay joins its
//! complement with a keyer's pad, which gives ciphertext ([`crate::hole`]). **Leaves to the caller**: randomness, which
//! is an argument, sealing, and that a share's epoch and route are the request's.

use zeroize::Zeroizing;

use crate::head::{SECRET_LEN_MAX, SECRET_LEN_MIN};

/// Shortest secret that is split.
pub const SECRET_MIN: usize = SECRET_LEN_MIN as usize;
/// Longest secret.
pub const SECRET_MAX: usize = SECRET_LEN_MAX as usize;
/// Most keyers a secret is split for; far above any cluster.
pub const KEYERS_MAX: usize = 256;

/// Why bytes are no secret, or no share of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Outside [`SECRET_MIN`] to [`SECRET_MAX`].
    #[error("a secret or share has {SECRET_MIN} to {SECRET_MAX} bytes, not {length}")]
    Length {
        /// The bytes given.
        length: usize,
    },
    /// A byte other than `!` to `~`. Says nothing of which: it may be most of the key.
    #[error("the secret has a byte that is not visible ASCII")]
    NotVisible,
}

/// Why a secret is not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// No keyer, or above [`KEYERS_MAX`].
    #[error("a secret is split for 1 to {KEYERS_MAX} keyers, not {keyers}")]
    KeyerCount {
        /// How many.
        keyers: usize,
    },
    /// Not one random byte for each byte of each mask.
    #[error("splitting needs {wanted} random bytes, not {got}")]
    RandomLength {
        /// Keyers times the secret's length.
        wanted: usize,
        /// The bytes given.
        got: usize,
    },
    /// A mask or complement of zeros, or two equal masks: the random source is broken.
    #[error("the random source repeats itself")]
    RandomRepeats,
}

/// A credential's secret part. Exists on the admin's machine only.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the secret, without its public prefix.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, ShareError> {
        check_length(bytes.len())?;
        if !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(ShareError::NotVisible);
        }
        Ok(Self(bytes))
    }

    /// The secret itself.
    pub fn expose_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes of it: the length of the hole.
    #[expect(clippy::len_without_is_empty, reason = "no secret is empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One pair for each keyer, in the order of `random`, which holds one mask after the other.
    pub fn split(&self, keyers: usize, random: Zeroizing<Vec<u8>>) -> Result<Vec<SharePair>, SplitError> {
        if keyers == 0 || keyers > KEYERS_MAX {
            return Err(SplitError::KeyerCount { keyers });
        }
        let wanted = keyers * self.len();
        if random.len() != wanted {
            return Err(SplitError::RandomLength { wanted, got: random.len() });
        }
        let masks = || random.chunks_exact(self.len());
        let repeats = masks().enumerate().any(|(at, mask)| {
            is_same(mask, &self.0)
                || mask.iter().fold(0, |all, byte| all | byte) == 0
                || masks().skip(at + 1).any(|other| is_same(mask, other))
        });
        if repeats {
            return Err(SplitError::RandomRepeats);
        }
        let pair = |mask: &[u8]| SharePair {
            mask: Mask(Zeroizing::new(mask.to_vec())),
            complement: Complement(xor(&self.0, mask)),
        };
        Ok(masks().map(pair).collect())
    }
}

/// The shares of one keyer: the mask is for it alone, the complement for every other node.
pub struct SharePair {
    /// A_k.
    pub mask: Mask,
    /// B_k.
    pub complement: Complement,
}

/// A keyer's own share, A_k.
pub struct Mask(Zeroizing<Vec<u8>>);

/// The other share of a keyer's pair, B_k, which its relays hold.
pub struct Complement(Zeroizing<Vec<u8>>);

macro_rules! share {
    ($share:ident) => {
        impl $share {
            /// Takes an unsealed share.
            pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, ShareError> {
                check_length(bytes.len())?;
                Ok(Self(bytes))
            }

            /// The share itself.
            pub fn expose_bytes(&self) -> &[u8] {
                &self.0
            }

            /// Bytes of it: the length of the hole.
            #[expect(clippy::len_without_is_empty, reason = "no share is empty")]
            pub fn len(&self) -> usize {
                self.0.len()
            }
        }
    };
}

share!(Mask);
share!(Complement);

fn check_length(length: usize) -> Result<(), ShareError> {
    if (SECRET_MIN..=SECRET_MAX).contains(&length) { Ok(()) } else { Err(ShareError::Length { length }) }
}

/// Without an early end: one operand is a secret.
fn is_same(one: &[u8], two: &[u8]) -> bool {
    one.iter().zip(two).fold(0, |all, (one, two)| all | (one ^ two)) == 0
}

/// Byte by byte, over the shorter of the two; callers have compared the lengths.
pub(crate) fn xor(one: &[u8], two: &[u8]) -> Zeroizing<Vec<u8>> {
    // the exact capacity, so that no copy is left behind by growing
    let mut out = Zeroizing::new(Vec::with_capacity(one.len()));
    out.extend(one.iter().zip(two).map(|(one, two)| one ^ two));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeroizing(bytes: impl Into<Vec<u8>>) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(bytes.into())
    }

    fn secret(text: &str) -> Secret {
        Secret::new(zeroizing(text)).ok().unwrap()
    }

    const KEY: &str = "0123456789abcdef";

    #[test]
    fn each_pair_joins_to_the_secret_and_no_other() {
        let random: Vec<u8> = (0..48u32).map(|at| (at * 37 + 1) as u8).collect();
        let pairs = secret(KEY).split(3, zeroizing(random.clone())).ok().unwrap();
        for (at, one) in pairs.iter().enumerate() {
            assert_eq!(one.mask.expose_bytes(), &random[at * 16..][..16]);
            for (other, two) in pairs.iter().enumerate() {
                let joined = xor(one.mask.expose_bytes(), two.complement.expose_bytes());
                assert_eq!(joined.as_slice() == KEY.as_bytes(), at == other);
            }
        }
    }

    #[test]
    fn a_random_source_that_shows_its_fault_is_refused() {
        let split = |keyers, random: Vec<u8>| secret(KEY).split(keyers, zeroizing(random)).err();
        assert_eq!(split(0, vec![]), Some(SplitError::KeyerCount { keyers: 0 }));
        assert_eq!(split(257, vec![]), Some(SplitError::KeyerCount { keyers: 257 }));
        assert_eq!(split(2, vec![1; 31]), Some(SplitError::RandomLength { wanted: 32, got: 31 }));
        assert_eq!(split(1, vec![0; 16]), Some(SplitError::RandomRepeats), "a complement in clear");
        assert_eq!(split(1, KEY.into()), Some(SplitError::RandomRepeats), "a mask that is the key");
        assert_eq!(split(2, vec![9; 32]), Some(SplitError::RandomRepeats), "a node would have a whole pair");
        assert_eq!(split(1, vec![9; 16]), None);
    }

    #[test]
    fn secrets_are_visible_ascii_of_a_known_length() {
        let error = |bytes: Vec<u8>| Secret::new(zeroizing(bytes)).err();
        for length in [0, 15, 1025] {
            assert_eq!(error(vec![b'x'; length]), Some(ShareError::Length { length }));
            assert_eq!(Mask::new(zeroizing(vec![1; length])).err(), Some(ShareError::Length { length }));
            assert_eq!(
                Complement::new(zeroizing(vec![1; length])).err(),
                Some(ShareError::Length { length })
            );
        }
        for length in [16, 1024] {
            assert_eq!(error(vec![b'x'; length]), None);
            assert!(Mask::new(zeroizing(vec![0xff; length])).is_ok(), "shares are any bytes");
        }
        for byte in [b' ', b'\r', b'\n', b'\t', 0, 0x7f, 0x80] {
            for at in [0, 7, 15] {
                let mut key = KEY.as_bytes().to_vec();
                key[at] = byte;
                assert_eq!(error(key), Some(ShareError::NotVisible));
            }
        }
    }
}
