//! The hole: the record at sequence 1 of a keyed connection, which holds the credential's secret and nothing else.
//!
//! ```text
//!                n = the secret's length       position in the record
//! inner          K                             0 .. n
//!                17 (application_data)         n
//! header         17 03 03, n + 17              the AEAD's additional data
//! keystream S    ChaCha20, counter 1 on        S[0 .. n] over K, S[n] over the content type
//! one-time key   ChaCha20, counter 0           32 bytes, of this record alone (RFC 8439 §2.6)
//!
//! keyer   pad        = S[0 .. n] XOR A_k  ‖  S[n] XOR 17          (n + 1 bytes)
//! relay   ciphertext = pad[0 .. n] XOR B_k  ‖  pad[n]             (= S XOR inner, K nowhere)
//!         tag        = Poly1305(one-time key, RFC 8439 §2.8 padding of header and ciphertext)
//! ```
//!
//! **What each learns.** The keyer knows S and A_k and never sees the ciphertext. The relay sees pad and ciphertext and
//! knows B_k, but S only at n, over a byte that is the same in every hole. S[0 .. n] is used once, for this record, so
//! to the relay pad and ciphertext are random strings that differ by B_k. The client knows S and sees nothing of the
//! hole: it travels between relay and provider only.
//!
//! **One-time key.** It authenticates one record: another sequence number has another key, so a relay cannot sign a
//! record of its own with it, only this one. It lets a relay sign an *altered* hole. What that gains is guesses of
//! chosen bits of K (flips that happen to be harmless; a shorter record that happens to end on a content type), each
//! answered by a refusal of the provider: they are counted (DESIGN.md section 3), not prevented. The same goes for a
//! keyer that answers with a false pad or key. What neither can do is move the hole: its bytes stand between the end
//! of head part one and the CRLF that begins part two, which the keyer checked and which have their own tags.
//!
//! **Why the public prefix is not in the hole.** Whoever can flip bits of a hole controls exactly the bytes whose plaintext
//! is known. Under a known prefix that is enough to write a line end and a header of one's own behind it. So the prefix
//! is the end of head part one, under its own tag, and the hole holds only what nobody knows.
//!
//! **Once.** A [`crate::keyer::KeyerConnection`] gives one [`HoleAnswer`], and that is used up by [`HoleAnswer::fill`]:
//! two pads under one keystream would differ by two masks, and show a relay the XOR of two secrets.
//!
//! **Decides**: the record's bytes. **Refuses**: a mask, pad or complement of another length than the route's secret, so
//! that the hole is the whole secret and nothing but the secret. **Leaves to the caller**: that the request is certified,
//! that mask and complement are of one pair and share epoch (a false pair is a wrong key at the provider, nothing
//! worse).

use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};
use zeroize::Zeroizing;

use crate::head::{CONTENT_LENGTH_MAX, CredentialSlot};
use crate::record::{ContentType, HEADER_LEN, OVERHEAD, TAG_LEN};
use crate::share::{Complement, Mask, SECRET_MAX, SECRET_MIN, xor};

/// Bytes of a Poly1305 key.
pub const ONE_TIME_KEY_LEN: usize = 32;
/// Shortest pad: a secret and its content type.
pub const PAD_MIN: usize = SECRET_MIN + 1;
/// Longest pad.
pub const PAD_MAX: usize = SECRET_MAX + 1;

/// What a keyer keeps between checking a head and answering: enough for this hole and no other record.
pub(crate) struct HoleKeys {
    /// Over the secret and its content type.
    pub(crate) keystream: Zeroizing<Vec<u8>>,
    pub(crate) one_time_key: Zeroizing<[u8; ONE_TIME_KEY_LEN]>,
}

/// Why a keyer gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerRefusal {
    /// No head of a keyed route was approved on this connection.
    #[error("the connection has no hole to answer for")]
    NoHole,
    /// The mask is not as long as the route's secret.
    #[error("the mask has {got} bytes where the secret has {wanted}")]
    MaskLength {
        /// The template's.
        wanted: usize,
        /// The mask's.
        got: usize,
    },
}

impl HoleKeys {
    /// Masks the keystream and closes the record.
    pub(crate) fn answer(self, mask: &Mask, content_length: u64) -> Result<HoleAnswer, AnswerRefusal> {
        let wanted = self.keystream.len().saturating_sub(1);
        if mask.len() != wanted {
            return Err(AnswerRefusal::MaskLength { wanted, got: mask.len() });
        }
        // the content type takes the place of the mask's missing last byte
        let mut inner = Zeroizing::new(Vec::with_capacity(wanted + 1));
        inner.extend_from_slice(mask.expose_bytes());
        inner.push(ContentType::ApplicationData.code());
        Ok(HoleAnswer { pad: xor(&self.keystream, &inner), one_time_key: self.one_time_key, content_length })
    }
}

/// A keyer's answer for one hole. As it fills a hole, it has no `Debug` and is erased when dropped.
pub struct HoleAnswer {
    pad: Zeroizing<Vec<u8>>,
    one_time_key: Zeroizing<[u8; ONE_TIME_KEY_LEN]>,
    content_length: u64,
}

/// Why fields of a message are no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerMalformed {
    /// Outside [`PAD_MIN`] to [`PAD_MAX`].
    #[error("a pad of {length} bytes")]
    PadLength {
        /// The bytes given.
        length: usize,
    },
    /// Not [`ONE_TIME_KEY_LEN`] bytes.
    #[error("a one-time key of {length} bytes")]
    KeyLength {
        /// The bytes given.
        length: usize,
    },
    /// More than any head may announce.
    #[error("a content-length of {content_length}")]
    ContentLength {
        /// The length given.
        content_length: u64,
    },
}

/// Why a relay does not fill a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillRefusal {
    /// The keyer's pad is not one byte longer than the route's secret.
    #[error("the keyer's pad has {got} bytes where this route's has {wanted}")]
    PadLength {
        /// The secret's length and one.
        wanted: usize,
        /// The pad's.
        got: usize,
    },
    /// The relay's complement is not as long as the route's secret.
    #[error("the complement has {got} bytes where the secret has {wanted}")]
    ComplementLength {
        /// The template's.
        wanted: usize,
        /// The complement's.
        got: usize,
    },
}

impl HoleAnswer {
    /// Puts together what a message carried: `pad` is masked keystream and closing byte, as [`Self::expose_pad`].
    pub fn from_parts(pad: &[u8], one_time_key: &[u8], content_length: u64) -> Result<Self, AnswerMalformed> {
        if !(PAD_MIN..=PAD_MAX).contains(&pad.len()) {
            return Err(AnswerMalformed::PadLength { length: pad.len() });
        }
        let one_time_key: [u8; ONE_TIME_KEY_LEN] =
            one_time_key.try_into().map_err(|_| AnswerMalformed::KeyLength { length: one_time_key.len() })?;
        if content_length > CONTENT_LENGTH_MAX {
            return Err(AnswerMalformed::ContentLength { content_length });
        }
        Ok(Self {
            pad: Zeroizing::new(pad.to_vec()),
            one_time_key: Zeroizing::new(one_time_key),
            content_length,
        })
    }

    /// Masked keystream, then the closing byte: one byte more than the secret.
    pub fn expose_pad(&self) -> &[u8] {
        &self.pad
    }

    /// The record's Poly1305 key.
    pub fn expose_one_time_key(&self) -> &[u8; ONE_TIME_KEY_LEN] {
        &self.one_time_key
    }

    /// Bytes of body the relay may let through.
    pub fn content_length(&self) -> u64 {
        self.content_length
    }

    /// The relay's part: joins its complement and writes the record.
    pub fn fill(self, slot: &CredentialSlot, complement: &Complement) -> Result<FilledHole, FillRefusal> {
        let wanted = usize::from(slot.secret_len);
        if complement.len() != wanted {
            return Err(FillRefusal::ComplementLength { wanted, got: complement.len() });
        }
        let (Some((closing, pad)), true) = (self.pad.split_last(), self.pad.len() == wanted + 1) else {
            return Err(FillRefusal::PadLength { wanted: wanted + 1, got: self.pad.len() });
        };
        // slot lengths are 16 bits, bounded far below a record's: nothing is cut
        let [high, low] = ((wanted + OVERHEAD) as u16).to_be_bytes();
        let header = [ContentType::ApplicationData.code(), 3, 3, high, low];
        let mut record = Vec::with_capacity(HEADER_LEN + wanted + OVERHEAD);
        record.extend_from_slice(&header);
        record.extend_from_slice(&xor(pad, complement.expose_bytes()));
        record.push(*closing);
        let tag = tag(&self.one_time_key, &header, record.get(HEADER_LEN..).unwrap_or_default());
        record.extend_from_slice(&tag);
        Ok(FilledHole(record))
    }
}

/// The whole record at sequence 1, ready for the provider.
pub struct FilledHole(Vec<u8>);

impl FilledHole {
    /// Header, ciphertext and tag, as they go on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// RFC 8439 §2.8: both strings padded with zeros to 16 bytes, then both lengths, little-endian.
pub(crate) fn tag(one_time_key: &[u8; ONE_TIME_KEY_LEN], aad: &[u8], ciphertext: &[u8]) -> [u8; TAG_LEN] {
    let mut mac = Poly1305::new(one_time_key.into());
    mac.update_padded(aad);
    mac.update_padded(ciphertext);
    let mut lengths = [0; 16];
    let both = (aad.len() as u64).to_le_bytes().into_iter().chain((ciphertext.len() as u64).to_le_bytes());
    for (slot, byte) in lengths.iter_mut().zip(both) {
        *slot = byte;
    }
    mac.update(&[lengths.into()]);
    mac.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::CredentialScheme;
    use crate::record::{RecordKeys, RecordSealer, TrafficSecret};
    use proptest::prelude::*;

    fn slot(secret_len: usize) -> CredentialSlot {
        let secret_len = u16::try_from(secret_len).unwrap();
        CredentialSlot { scheme: CredentialScheme::Bearer, public_prefix: String::new(), secret_len }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Twin: what keyer and relay make from two shares is what a sealer with the whole secret makes.
        #[test]
        fn a_filled_hole_is_the_sealed_secret(
            traffic in any::<[u8; 32]>(),
            shares in (SECRET_MIN..=SECRET_MAX).prop_flat_map(|length| {
                (prop::collection::vec(any::<u8>(), length), prop::collection::vec(any::<u8>(), length))
            }),
            content_length in 0..=CONTENT_LENGTH_MAX,
        ) {
            let (mask, complement) = shares;
            let secret = TrafficSecret::new(traffic);
            let keys = RecordKeys::new(&secret).hole(1, mask.len() + 1);
            let mask = Mask::new(Zeroizing::new(mask)).unwrap_or_else(|_| unreachable!());
            let complement = Complement::new(Zeroizing::new(complement)).unwrap_or_else(|_| unreachable!());
            let answer = keys.answer(&mask, content_length).unwrap_or_else(|_| unreachable!());
            prop_assert_eq!(answer.content_length(), content_length);
            let filled = answer.fill(&slot(mask.len()), &complement).unwrap_or_else(|_| unreachable!());

            let mut sealer = RecordSealer::new(&secret);
            sealer.skip().unwrap();
            let mut whole = Vec::new();
            let joined = xor(mask.expose_bytes(), complement.expose_bytes());
            sealer.seal_into(ContentType::ApplicationData, &joined, &mut whole).unwrap();
            prop_assert!(filled.as_bytes() == whole);
        }
    }
}
