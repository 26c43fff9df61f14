//! What the relay may write after the handshake: head records, then body records, and not a byte more.
//!
//! ```text
//! sequence   unkeyed route            keyed route
//! 0          head                     head part one
//! 1          body ...                 the hole (the relay writes it)
//! 2                                   head part two
//! 3                                   body ...
//! ```
//!
//! Every record here has outer type application_data and version 03 03. A head part is one record of 1 to 2^14
//! plaintext bytes, so a fragment of 18 to 2^14 + 17 ([`HEAD_FRAGMENT_MAX`]): no room for padding beyond a full
//! record, and the keyer refuses any inside.
//!
//! **Release.** [`HeadRecords::release_into`] is the one way from a held head to bytes for a provider. It wants the hole
//! exactly where the head was cut around one: a keyed head without it would put part two at sequence 1, and a hole
//! beside a whole head would put a secret where the body begins.
//!
//! **The body's cap.** The relay cannot decrypt body records, but a record's plaintext is at most its fragment less
//! 17. [`BodyMeter`] admits records while the sum of those stays within the content-length that the keyer read in the
//! head. A provider that takes content-length at its word sees no byte after the body, so no second request. Padding
//! only shortens what a client can say. Empty records are refused: they would be free of the cap.
//!
//! **Assumes**: records in the order sent. **Leaves to the caller**: holding the head until it is approved.

use sha2::{Digest, Sha256};

use crate::hole::FilledHole;
use crate::record::{ContentType, OVERHEAD, PLAINTEXT_MAX, Record, RecordError, RecordReader};

/// Longest fragment of a head record: a full, unpadded record.
pub const HEAD_FRAGMENT_MAX: usize = PLAINTEXT_MAX + OVERHEAD;

const DIGEST_LABEL: &[u8] = b"quorate head records v1";
const VERSION: u16 = 0x0303;

/// How many records a head has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadShape {
    /// One record at sequence 0: a route without a credential.
    Whole,
    /// Two records, at sequences 0 and 2, around the hole.
    AroundHole,
}

impl HeadShape {
    /// The client's own records of such a head.
    pub const fn record_count(self) -> usize {
        match self {
            Self::Whole => 1,
            Self::AroundHole => 2,
        }
    }
}

/// Why bytes cannot be a head or a body record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingRefusal {
    /// Not a record.
    #[error("the stream is not TLS records")]
    Record(#[from] RecordError),
    /// Another outer type than application_data.
    #[error("record has outer type {got:?}")]
    OuterType {
        /// The type found.
        got: ContentType,
    },
    /// Another version than 03 03.
    #[error("record has version {got:#06x}")]
    Version {
        /// The version found.
        got: u16,
    },
    /// A head record too short for one byte of plaintext.
    #[error("head record is empty")]
    HeadEmpty,
    /// A head record above [`HEAD_FRAGMENT_MAX`].
    #[error("head record of {length} bytes is too long")]
    HeadTooLong {
        /// The fragment's length.
        length: usize,
    },
    /// The bytes end inside a head.
    #[error("head is cut off")]
    HeadIncomplete,
    /// Bytes after a head where only the head may be.
    #[error("bytes follow the head")]
    HeadTrailing,
    /// A body record without plaintext.
    #[error("body record is empty")]
    BodyEmptyRecord,
    /// More body than the head announced.
    #[error("body exceeds its content-length of {content_length} bytes")]
    BodyTooLong {
        /// What the head announced.
        content_length: u64,
    },
}

/// Why a head is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseRefusal {
    /// A keyed head whose hole is not filled.
    #[error("the head's hole is not filled")]
    HoleMissing,
    /// A hole for a head that has none.
    #[error("the head has no hole to fill")]
    HoleUnexpected,
}

/// The records of one head, as they go to the keyer and, once approved, to the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRecords {
    one: Record,
    two: Option<Record>,
}

impl HeadRecords {
    /// Reads exactly one head of this shape.
    pub fn from_bytes(mut bytes: &[u8], shape: HeadShape) -> Result<Self, FramingRefusal> {
        let head = HeadCollector::new(shape).collect(&mut bytes)?.ok_or(FramingRefusal::HeadIncomplete)?;
        #[cfg(feature = "danger-hostile")]
        if crate::danger_hostile::waives(&FramingRefusal::HeadTrailing) {
            return Ok(head);
        }
        if bytes.is_empty() { Ok(head) } else { Err(FramingRefusal::HeadTrailing) }
    }

    /// The record at sequence 0.
    pub fn one(&self) -> &Record {
        &self.one
    }

    /// The record at sequence 2, after the hole.
    pub fn two(&self) -> Option<&Record> {
        self.two.as_ref()
    }

    /// How many records these are.
    pub fn shape(&self) -> HeadShape {
        if self.two.is_some() { HeadShape::AroundHole } else { HeadShape::Whole }
    }

    /// The records' bytes, one after the other: for the keyer. [`Self::release_into`] is for the provider.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(self.one.wire_len() + self.two.as_ref().map_or(0, Record::wire_len));
        self.one.write_to(&mut bytes);
        if let Some(two) = &self.two {
            two.write_to(&mut bytes);
        }
        bytes
    }

    /// Appends the head as the provider gets it: part one, the hole if there is one, part two. The body follows in
    /// the same write where possible.
    pub fn release_into(&self, hole: Option<FilledHole>, out: &mut Vec<u8>) -> Result<(), ReleaseRefusal> {
        let hole = match (&self.two, hole) {
            (Some(_), None) => return Err(ReleaseRefusal::HoleMissing),
            (None, Some(_)) => return Err(ReleaseRefusal::HoleUnexpected),
            (_, hole) => hole,
        };
        self.one.write_to(out);
        if let (Some(two), Some(hole)) = (&self.two, hole) {
            out.extend_from_slice(hole.as_bytes());
            two.write_to(out);
        }
        Ok(())
    }

    /// The digest a request signature covers; see [`digest_of_head_records`].
    pub fn digest(&self) -> HeadDigest {
        digest_of_head_records(self)
    }
}

/// A digest of sealed head records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadDigest(pub [u8; 32]);

/// SHA-256 over: label length (1 byte) ‖ `quorate head records v1` ‖ number of records (1) ‖ for each, its
/// wire length (4, big-endian) ‖ its bytes. It binds a request to ciphertext, so relay, log and keyer speak of the
/// same head although only the keyer can read it.
pub fn digest_of_head_records(head: &HeadRecords) -> HeadDigest {
    let mut hash = Sha256::new();
    hash.update([DIGEST_LABEL.len() as u8]);
    hash.update(DIGEST_LABEL);
    hash.update([head.shape().record_count() as u8]);
    for record in std::iter::once(&head.one).chain(head.two.as_ref()) {
        let mut bytes = Vec::with_capacity(record.wire_len());
        record.write_to(&mut bytes);
        hash.update((bytes.len() as u32).to_be_bytes());
        hash.update(&bytes);
    }
    HeadDigest(hash.finalize().into())
}

/// Collects one head from the client's stream, from the first byte after Finished on.
#[derive(Debug)]
pub struct HeadCollector {
    shape: HeadShape,
    reader: RecordReader,
    one: Option<Record>,
}

impl HeadCollector {
    /// A collector at sequence 0.
    pub fn new(shape: HeadShape) -> Self {
        Self { shape, reader: RecordReader::new(), one: None }
    }

    /// Takes bytes off the front of `input` until the head is whole; what is left belongs to the body. `None` means
    /// all input was taken. An error is final for the connection.
    pub fn collect(&mut self, input: &mut &[u8]) -> Result<Option<HeadRecords>, FramingRefusal> {
        while let Some(record) = self.reader.read(input)? {
            check_outer(&record)?;
            match record.fragment().len() {
                OVERHEAD => return Err(FramingRefusal::HeadEmpty),
                length if length > HEAD_FRAGMENT_MAX => return Err(FramingRefusal::HeadTooLong { length }),
                _ => {}
            }
            match (self.shape, self.one.take()) {
                (HeadShape::Whole, _) => return Ok(Some(HeadRecords { one: record, two: None })),
                (HeadShape::AroundHole, None) => self.one = Some(record),
                (HeadShape::AroundHole, Some(one)) => {
                    return Ok(Some(HeadRecords { one, two: Some(record) }));
                }
            }
        }
        Ok(None)
    }
}

/// Caps a request's body to the content-length the keyer read.
#[derive(Debug)]
pub struct BodyMeter {
    content_length: u64,
    remaining: u64,
    reader: RecordReader,
    refused: Option<FramingRefusal>,
}

impl BodyMeter {
    /// A meter for a body of this many bytes.
    pub fn new(content_length: u64) -> Self {
        Self { content_length, remaining: content_length, reader: RecordReader::new(), refused: None }
    }

    /// Takes the client's bytes and appends the whole records that may be written. A refusal is final; records
    /// admitted before it stand in `forward`.
    pub fn body_bytes(&mut self, mut input: &[u8], forward: &mut Vec<u8>) -> Result<(), FramingRefusal> {
        if let Some(refusal) = self.refused {
            return Err(refusal);
        }
        let outcome = self.admit(&mut input, forward);
        self.refused = outcome.err();
        outcome
    }

    /// Bytes of body that records may still carry.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Whether nothing more may come.
    pub fn is_complete(&self) -> bool {
        self.remaining == 0 && self.reader.at_boundary() && self.refused.is_none()
    }

    fn admit(&mut self, input: &mut &[u8], forward: &mut Vec<u8>) -> Result<(), FramingRefusal> {
        let too_long = FramingRefusal::BodyTooLong { content_length: self.content_length };
        // nothing after the body, not even the beginning of a record
        if self.remaining == 0 && !input.is_empty() {
            return Err(too_long);
        }
        while let Some(record) = self.reader.read(input)? {
            check_outer(&record)?;
            let plaintext = record.fragment().len().saturating_sub(OVERHEAD) as u64;
            if plaintext == 0 {
                return Err(FramingRefusal::BodyEmptyRecord);
            }
            self.remaining = self.remaining.checked_sub(plaintext).ok_or(too_long)?;
            record.write_to(forward);
            if self.remaining == 0 && !input.is_empty() {
                return Err(too_long);
            }
        }
        Ok(())
    }
}

fn check_outer(record: &Record) -> Result<(), FramingRefusal> {
    if record.outer_type() != ContentType::ApplicationData {
        return Err(FramingRefusal::OuterType { got: record.outer_type() });
    }
    if record.version() != VERSION {
        return Err(FramingRefusal::Version { got: record.version() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::CIPHERTEXT_MAX;

    fn record(fragment_len: usize) -> Vec<u8> {
        let [high, low] = u16::try_from(fragment_len).unwrap().to_be_bytes();
        [vec![23, 3, 3, high, low], vec![0xaa; fragment_len]].concat()
    }

    #[test]
    fn heads_have_exactly_their_records() {
        let one = record(18);
        let two = record(HEAD_FRAGMENT_MAX);
        let both = [one.clone(), two].concat();
        let whole = HeadRecords::from_bytes(&one, HeadShape::Whole).unwrap();
        assert_eq!((whole.shape(), whole.to_bytes()), (HeadShape::Whole, one.clone()));
        let around = HeadRecords::from_bytes(&both, HeadShape::AroundHole).unwrap();
        assert_eq!((around.shape(), around.to_bytes()), (HeadShape::AroundHole, both.clone()));
        assert_eq!(HeadRecords::from_bytes(&one, HeadShape::AroundHole), Err(FramingRefusal::HeadIncomplete));
        assert_eq!(HeadRecords::from_bytes(&both, HeadShape::Whole), Err(FramingRefusal::HeadTrailing));
    }

    #[test]
    fn a_collector_leaves_the_body() {
        let bytes = [record(20), record(30)].concat();
        let mut collector = HeadCollector::new(HeadShape::Whole);
        assert_eq!(collector.collect(&mut &bytes[..7]), Ok(None));
        let mut rest = &bytes[7..];
        assert!(collector.collect(&mut rest).unwrap().is_some());
        assert_eq!(rest, record(30));
    }

    #[test]
    fn head_records_are_bounded() {
        let handshake = [&[22, 3, 3, 0, 20][..], &[0; 20]].concat();
        let old = [&[23, 3, 1, 0, 20][..], &[0; 20]].concat();
        let cases = [
            (handshake, FramingRefusal::OuterType { got: ContentType::Handshake }),
            (old, FramingRefusal::Version { got: 0x0301 }),
            (record(17), FramingRefusal::HeadEmpty),
            (record(HEAD_FRAGMENT_MAX + 1), FramingRefusal::HeadTooLong { length: HEAD_FRAGMENT_MAX + 1 }),
            (
                record(CIPHERTEXT_MAX + 1),
                FramingRefusal::Record(RecordError::TooLong { length: CIPHERTEXT_MAX + 1 }),
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(HeadRecords::from_bytes(&bytes, HeadShape::Whole), Err(expected));
        }
    }

    #[test]
    fn the_digest_depends_on_every_bit_and_on_the_cut() {
        let bytes = record(24);
        let digest = HeadRecords::from_bytes(&bytes, HeadShape::Whole).unwrap().digest();
        for at in 5 * 8..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[at / 8] ^= 1 << (at % 8);
            assert_ne!(HeadRecords::from_bytes(&altered, HeadShape::Whole).unwrap().digest(), digest);
        }
        let around =
            HeadRecords::from_bytes(&[bytes.clone(), bytes].concat(), HeadShape::AroundHole).unwrap();
        assert_ne!(around.digest(), digest);
    }

    /// Pins the digest's definition: signatures in the log depend on it.
    #[test]
    fn the_digest_is_stable() {
        let head = HeadRecords::from_bytes(&record(18), HeadShape::Whole).unwrap();
        let mut preimage = vec![23];
        preimage.extend_from_slice(b"quorate head records v1\x01\x00\x00\x00\x17");
        preimage.extend_from_slice(&record(18));
        assert_eq!(head.digest().0, <[u8; 32]>::from(Sha256::digest(&preimage)));
    }

    #[test]
    fn a_body_is_cut_at_its_content_length() {
        let mut meter = BodyMeter::new(10);
        let mut out = Vec::new();
        meter.body_bytes(&record(17 + 4), &mut out).unwrap();
        assert_eq!((meter.remaining(), meter.is_complete()), (6, false));
        meter.body_bytes(&record(17 + 6), &mut out).unwrap();
        assert!(meter.is_complete());
        let admitted = out.len();
        let too_long = Err(FramingRefusal::BodyTooLong { content_length: 10 });
        assert_eq!(meter.body_bytes(&[23], &mut out), too_long);
        assert_eq!(meter.body_bytes(&[], &mut out), too_long, "a refusal is final");
        assert_eq!(out.len(), admitted);
    }

    #[test]
    fn body_records_each_have_their_rule() {
        let cases = [
            (record(17 + 11), FramingRefusal::BodyTooLong { content_length: 10 }),
            ([record(17 + 10), vec![23]].concat(), FramingRefusal::BodyTooLong { content_length: 10 }),
            (record(17), FramingRefusal::BodyEmptyRecord),
            (vec![21, 3, 3, 0, 2, 1, 0], FramingRefusal::OuterType { got: ContentType::Alert }),
            ([&[23, 3, 1, 0, 20][..], &[0; 20]].concat(), FramingRefusal::Version { got: 0x0301 }),
            (vec![23, 3, 3, 0, 3], FramingRefusal::Record(RecordError::TooShort { length: 3 })),
        ];
        for (bytes, expected) in cases {
            assert_eq!(BodyMeter::new(10).body_bytes(&bytes, &mut Vec::new()), Err(expected));
        }
        // a request without body has nothing after its head
        assert_eq!(
            BodyMeter::new(0).body_bytes(&[23], &mut Vec::new()),
            Err(FramingRefusal::BodyTooLong { content_length: 0 })
        );
    }
}
