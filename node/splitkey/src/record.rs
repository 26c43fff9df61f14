//! The TLS 1.3 record layer for one suite, TLS_CHACHA20_POLY1305_SHA256 (RFC 8446 §5, §7.3; RFC 8439).
//!
//! **Why our own.** The relay must know, by its own count, which sequence number a record has; the keyer must open
//! records of a connection it never saw; the client must leave a sequence number out. No TLS library offers
//! that, and the part needed is small: three HKDF labels, one AEAD, one counter.
//!
//! **On the wire** a record is
//!
//! ```text
//! byte 0      outer content type   20 change_cipher_spec, 21 alert, 22 handshake, 23 application_data
//! bytes 1-2   legacy version       03 03 (03 01 only before ServerHello)
//! bytes 3-4   length of what follows, big-endian
//! bytes 5-    fragment; when protected: plaintext ‖ inner type (1) ‖ zero padding ‖ Poly1305 tag (16)
//! ```
//!
//! A protected record without padding is therefore [`OVERHEAD`] = 17 bytes longer than its plaintext, plus the
//! [`HEADER_LEN`] = 5 byte header, which is the AEAD's additional data. The nonce is the 12-byte IV XOR the
//! big-endian sequence number; sequence 0 is the first record under a traffic secret.
//!
//! **Decides**: where records begin and end ([`RecordReader`]); what a protected record says ([`RecordOpener`]).
//! **Refuses**: lengths outside §5.1/§5.2; outer types other than application_data once protected; records that
//! fail to open; empty or endless control records; handshake messages other than NewSessionTicket and KeyUpdate
//! (a CertificateRequest after the handshake would need an answer no one here may send); a KeyUpdate that does not
//! end its record (§5.1). **Leaves to the caller**: sockets, and what to do about an [`Ending::Truncated`]:
//! bytes before it must not pass for a whole answer, because anyone on the path can cut a connection.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::hole::{HoleKeys, ONE_TIME_KEY_LEN};

/// Bytes of a record header.
pub const HEADER_LEN: usize = 5;
/// Most plaintext bytes in one record: 2^14 (RFC 8446 §5.1).
pub const PLAINTEXT_MAX: usize = 1 << 14;
/// Most fragment bytes in one protected record: 2^14 + 256 (RFC 8446 §5.2).
pub const CIPHERTEXT_MAX: usize = PLAINTEXT_MAX + 256;
/// Bytes of the Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// Fragment bytes a protected, unpadded record has beyond its plaintext: inner content type and tag.
pub const OVERHEAD: usize = TAG_LEN + 1;
/// Bytes of a traffic secret of this suite (SHA-256).
pub const SECRET_LEN: usize = 32;
/// Longest handshake message the opener reassembles. Only tickets and KeyUpdates come, and tickets are dropped; the
/// bound keeps a provider from making a client hold memory.
pub const HANDSHAKE_MESSAGE_MAX: usize = 1 << 16;
/// Records in a row that carry no application data. Real servers send one to four tickets; without a bound a
/// provider could keep a client busy for ever while delivering nothing.
pub const CONTROL_RECORDS_MAX: u32 = 32;

const VERSION_TLS12: u16 = 0x0303;
const VERSION_TLS10: u16 = 0x0301;
const HANDSHAKE_HEADER_LEN: usize = 4;
const MESSAGE_NEW_SESSION_TICKET: u8 = 4;
const MESSAGE_CERTIFICATE_REQUEST: u8 = 13;
const MESSAGE_KEY_UPDATE: u8 = 24;
const ALERT_CLOSE_NOTIFY: u8 = 0;
const ALERT_USER_CANCELED: u8 = 90;

/// A record's content type (RFC 8446 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// 20, sent only for middlebox compatibility.
    ChangeCipherSpec,
    /// 21
    Alert,
    /// 22
    Handshake,
    /// 23, also the outer type of every protected record.
    ApplicationData,
}

impl ContentType {
    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::ChangeCipherSpec => 20,
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::ApplicationData => 23,
        }
    }

    /// The type with this number, if it is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            20 => Some(Self::ChangeCipherSpec),
            21 => Some(Self::Alert),
            22 => Some(Self::Handshake),
            23 => Some(Self::ApplicationData),
            _ => None,
        }
    }
}

/// Why a byte stream is not a sequence of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The first byte is no content type: most often not TLS at all.
    #[error("record has unknown content type {code}")]
    UnknownType {
        /// The byte found.
        code: u8,
    },
    /// Neither 03 01 nor 03 03.
    #[error("record has version {version:#06x}")]
    Version {
        /// The version found.
        version: u16,
    },
    /// Longer than its type allows.
    #[error("record fragment of {length} bytes is too long")]
    TooLong {
        /// The length announced.
        length: usize,
    },
    /// Empty, or protected and too short to hold a content type and a tag.
    #[error("record fragment of {length} bytes is too short")]
    TooShort {
        /// The length announced.
        length: usize,
    },
}

/// One whole record as it stood on the wire, its header checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    outer: ContentType,
    header: [u8; HEADER_LEN],
    fragment: Vec<u8>,
}

impl Record {
    /// The content type in the header.
    pub fn outer_type(&self) -> ContentType {
        self.outer
    }

    /// The legacy version in the header.
    pub fn version(&self) -> u16 {
        let [_, major, minor, _, _] = self.header;
        u16::from_be_bytes([major, minor])
    }

    /// What follows the header.
    pub fn fragment(&self) -> &[u8] {
        &self.fragment
    }

    /// Bytes on the wire, header included.
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.fragment.len()
    }

    /// Appends the record as it stood on the wire.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header);
        out.extend_from_slice(&self.fragment);
    }
}

/// Cuts a byte stream into records. Holds at most one partial record; takes nothing beyond the record it returns.
#[derive(Debug, Default)]
pub struct RecordReader {
    header: [u8; HEADER_LEN],
    header_filled: usize,
    fragment: Vec<u8>,
    pending: Option<(ContentType, usize)>,
}

impl RecordReader {
    /// A reader at a record boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` until one record is whole. `None` means all input was taken.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Record>, RecordError> {
        let (outer, length) = match self.pending {
            Some(pending) => pending,
            None => {
                let wanted = take(input, HEADER_LEN - self.header_filled);
                for (slot, byte) in self.header.iter_mut().skip(self.header_filled).zip(wanted) {
                    *slot = *byte;
                }
                self.header_filled += wanted.len();
                if self.header_filled < HEADER_LEN {
                    return Ok(None);
                }
                let pending = check_header(&self.header)?;
                self.fragment = Vec::with_capacity(pending.1);
                self.pending = Some(pending);
                pending
            }
        };
        self.fragment.extend_from_slice(take(input, length - self.fragment.len()));
        if self.fragment.len() < length {
            return Ok(None);
        }
        self.pending = None;
        self.header_filled = 0;
        Ok(Some(Record { outer, header: self.header, fragment: std::mem::take(&mut self.fragment) }))
    }

    /// Whether no partial record is held: only here may a stream end.
    pub fn at_boundary(&self) -> bool {
        self.header_filled == 0
    }
}

/// Cuts a complete byte string into records; a partial one at the end is `None` in place of the vector.
pub fn split_records(mut bytes: &[u8]) -> Result<Option<Vec<Record>>, RecordError> {
    let mut reader = RecordReader::new();
    let mut records = Vec::new();
    while let Some(record) = reader.read(&mut bytes)? {
        records.push(record);
    }
    Ok(reader.at_boundary().then_some(records))
}

/// A TLS 1.3 traffic secret: everything one side writes on one connection follows from it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TrafficSecret([u8; SECRET_LEN]);

impl TrafficSecret {
    /// Takes the secret's bytes.
    pub fn new(bytes: [u8; SECRET_LEN]) -> Self {
        Self(bytes)
    }

    /// The secret after a KeyUpdate (RFC 8446 §7.2).
    pub fn next_generation(&self) -> Self {
        Self(*expand_label(&self.0, b"traffic upd", 32))
    }

    /// The bytes themselves, to register them with the keyer.
    pub fn expose_bytes(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }
}

/// A secret of another length than [`SECRET_LEN`]: another suite was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a traffic secret of this suite has 32 bytes, not {length}")]
pub struct SecretLength {
    /// The length offered.
    pub length: usize,
}

impl TryFrom<&[u8]> for TrafficSecret {
    type Error = SecretLength;

    fn try_from(bytes: &[u8]) -> Result<Self, SecretLength> {
        bytes.try_into().map(Self).map_err(|_| SecretLength { length: bytes.len() })
    }
}

/// Write key and IV of one traffic secret (RFC 8446 §7.3).
pub(crate) struct RecordKeys {
    key: Zeroizing<[u8; 32]>,
    iv: Zeroizing<[u8; 12]>,
}

impl RecordKeys {
    pub(crate) fn new(secret: &TrafficSecret) -> Self {
        let key = expand_label(&secret.0, b"key", 32);
        let mut iv = Zeroizing::new([0; 12]);
        for (slot, byte) in iv.iter_mut().zip(expand_label(&secret.0, b"iv", 12).iter()) {
            *slot = *byte;
        }
        Self { key, iv }
    }

    /// IV XOR the sequence number, left-padded to twelve bytes (RFC 8446 §5.3).
    fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = *self.iv;
        for (slot, byte) in nonce.iter_mut().skip(4).zip(sequence.to_be_bytes()) {
            *slot ^= byte;
        }
        nonce.into()
    }

    /// Takes the AEAD of one record apart (RFC 8439 §2.6, §2.8): the Poly1305 key out of block 0, and the first
    /// `length` bytes of keystream from block 1 on.
    pub(crate) fn hole(&self, sequence: u64, length: usize) -> HoleKeys {
        let mut cipher = ChaCha20::new(Key::from_slice(self.key.as_slice()), &self.nonce(sequence));
        let mut block = Zeroizing::new([0u8; 64]);
        cipher.apply_keystream(block.as_mut_slice());
        let mut one_time_key = Zeroizing::new([0; ONE_TIME_KEY_LEN]);
        for (slot, byte) in one_time_key.iter_mut().zip(block.iter()) {
            *slot = *byte;
        }
        let mut keystream = Zeroizing::new(vec![0; length]);
        cipher.apply_keystream(&mut keystream);
        HoleKeys { keystream, one_time_key }
    }

    /// Seals inner bytes as given (content, type, padding): records no honest sealer writes.
    #[cfg(test)]
    pub(crate) fn seal_raw_for_tests(&self, sequence: u64, inner: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + TAG_LEN).unwrap().to_be_bytes();
        let header = [23, 3, 3, high, low];
        let mut content = inner.to_vec();
        let nonce = self.nonce(sequence);
        let tag = self.cipher().encrypt_in_place_detached(&nonce, &header, &mut content).unwrap();
        [&header[..], &content, &tag].concat()
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(Key::from_slice(self.key.as_slice()))
    }

    /// Opens a protected record; gives content ‖ inner type ‖ padding.
    pub(crate) fn open(&self, sequence: u64, record: Record) -> Result<Vec<u8>, RecordNotAuthentic> {
        let Record { outer: _, header, fragment: mut buffer } = record;
        let content_len = buffer.len().checked_sub(TAG_LEN).ok_or(RecordNotAuthentic)?;
        let (content, tag) = buffer.split_at_mut_checked(content_len).ok_or(RecordNotAuthentic)?;
        let tag = Tag::clone_from_slice(tag);
        self.cipher()
            .decrypt_in_place_detached(&self.nonce(sequence), &header, content, &tag)
            .map_err(|_| RecordNotAuthentic)?;
        buffer.truncate(content_len);
        Ok(buffer)
    }
}

/// The tag does not match: altered, out of order, or under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record does not open under this key and sequence number")]
pub struct RecordNotAuthentic;

/// Why a record was not sealed. Both are the caller's mistake; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// More than [`PLAINTEXT_MAX`] bytes for one record.
    #[error("plaintext of {length} bytes does not fit one record")]
    PlaintextTooLong {
        /// The bytes offered.
        length: usize,
    },
    /// The last sequence number is used up (RFC 8446 §5.3 forbids wrapping).
    #[error("no sequence number is left")]
    SequenceExhausted,
    /// The cipher refused, which it does only for lengths far above one record's.
    #[error("the cipher refused the record")]
    Cipher,
}

/// Writes protected records under one traffic secret, counting from sequence 0.
pub struct RecordSealer {
    keys: RecordKeys,
    sequence: u64,
}

impl RecordSealer {
    /// A sealer at sequence 0 of `secret`.
    pub fn new(secret: &TrafficSecret) -> Self {
        Self { keys: RecordKeys::new(secret), sequence: 0 }
    }

    /// The sequence number of the next record.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Appends one unpadded record with this plaintext to `out`.
    pub fn seal_into(
        &mut self,
        inner: ContentType,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(SealError::PlaintextTooLong { length: plaintext.len() });
        }
        let after = self.sequence.checked_add(1).ok_or(SealError::SequenceExhausted)?;
        let fragment_len = u16::try_from(plaintext.len() + OVERHEAD)
            .map_err(|_| SealError::PlaintextTooLong { length: plaintext.len() })?;
        let [length_high, length_low] = fragment_len.to_be_bytes();
        let header = [ContentType::ApplicationData.code(), 3, 3, length_high, length_low];

        out.reserve(HEADER_LEN + plaintext.len() + OVERHEAD);
        let start = out.len();
        out.extend_from_slice(&header);
        out.extend_from_slice(plaintext);
        out.push(inner.code());
        let sealed = out.get_mut(start + HEADER_LEN..).ok_or(SealError::Cipher).and_then(|content| {
            self.keys
                .cipher()
                .encrypt_in_place_detached(&self.keys.nonce(self.sequence), &header, content)
                .map_err(|_| SealError::Cipher)
        });
        match sealed {
            Ok(tag) => out.extend_from_slice(&tag),
            Err(error) => {
                // plaintext must not stay where the caller expects records
                out.truncate(start);
                return Err(error);
            }
        }
        self.sequence = after;
        Ok(())
    }

    /// Leaves the next sequence number to somebody else: the hole, whose record the relay writes.
    pub(crate) fn skip(&mut self) -> Result<(), SealError> {
        self.sequence = self.sequence.checked_add(1).ok_or(SealError::SequenceExhausted)?;
        Ok(())
    }
}

/// What the peer said. Carries completions, so there is no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the application stream, never empty.
    AppData(Vec<u8>),
    /// The peer re-keyed its direction; reading goes on under the next generation.
    KeyUpdated {
        /// The peer wants us to re-key too. Departs from RFC 8446 §4.6.3: a KeyUpdate of ours would count as body
        /// at the relay and shift what the keyer checked. The request is over or bounded, so none is sent.
        requested: bool,
    },
    /// The peer ended its direction in order: what came before is whole.
    CloseNotify,
    /// The peer gave up, with this alert code (RFC 8446 §6).
    Alert(u8),
}

/// How a direction ended, once the transport has no more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// close_notify came.
    CloseNotify,
    /// A fatal alert came.
    Alert(u8),
    /// The transport ended without either: what came before may be cut off.
    Truncated,
}

/// Why a peer's records cannot be read any further. Final for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The bytes are not records.
    #[error("the stream is not TLS records")]
    Record(#[from] RecordError),
    /// A record that is not protected, after the handshake.
    #[error("record with outer type {outer:?} after the handshake")]
    NotProtected {
        /// Its outer type.
        outer: ContentType,
    },
    /// A protected record with another legacy version than 03 03.
    #[error("protected record has version {version:#06x}")]
    ProtectedVersion {
        /// The version found.
        version: u16,
    },
    /// The record does not open.
    #[error("a record was refused")]
    NotAuthentic(#[from] RecordNotAuthentic),
    /// The last sequence number is used up.
    #[error("no sequence number is left")]
    SequenceExhausted,
    /// Nothing but zeros inside: no content type (RFC 8446 §5.4).
    #[error("record has no content type")]
    NoContentType,
    /// More than [`PLAINTEXT_MAX`] bytes inside.
    #[error("record plaintext of {length} bytes is too long")]
    PlaintextTooLong {
        /// The length found.
        length: usize,
    },
    /// An inner type that may not be there.
    #[error("record has inner content type {code}")]
    InnerType {
        /// The byte found.
        code: u8,
    },
    /// An alert that is not two bytes.
    #[error("alert is malformed")]
    AlertMalformed,
    /// A handshake record without content (RFC 8446 §5.1).
    #[error("handshake record is empty")]
    HandshakeEmpty,
    /// A handshake message above [`HANDSHAKE_MESSAGE_MAX`].
    #[error("handshake message of {length} bytes is too long")]
    HandshakeTooLong {
        /// The length announced.
        length: usize,
    },
    /// Another record type in the middle of a handshake message (RFC 8446 §5.1).
    #[error("a record interrupts a handshake message")]
    HandshakeInterrupted,
    /// The provider asks for a client certificate after the handshake; nobody here has one.
    #[error("provider asks for a client certificate")]
    CertificateRequested,
    /// A handshake message that may not come now.
    #[error("handshake message {message} after the handshake")]
    HandshakeMessage {
        /// Its type.
        message: u8,
    },
    /// A KeyUpdate that is not one byte of 0 or 1.
    #[error("key update is malformed")]
    KeyUpdateMalformed,
    /// Bytes after a KeyUpdate in its record: they would be under a key that is gone (RFC 8446 §5.1).
    #[error("key update does not end its record")]
    KeyUpdateNotLast,
    /// More than [`CONTROL_RECORDS_MAX`] records in a row without application data.
    #[error("too many records without application data")]
    ControlFlood,
}

/// Reads a peer's protected records from sequence 0 of one traffic secret on.
pub struct RecordOpener {
    secret: TrafficSecret,
    keys: RecordKeys,
    sequence: u64,
    reader: RecordReader,
    handshake: Vec<u8>,
    control_records: u32,
    ended: Option<Ending>,
    failed: Option<OpenError>,
}

impl RecordOpener {
    /// An opener at sequence 0 of `secret`.
    pub fn new(secret: TrafficSecret) -> Self {
        let keys = RecordKeys::new(&secret);
        Self {
            secret,
            keys,
            sequence: 0,
            reader: RecordReader::new(),
            handshake: Vec::new(),
            control_records: 0,
            ended: None,
            failed: None,
        }
    }

    /// Takes bytes off the front of `input` until there is something to say; `None` means all input was taken.
    /// After close_notify or an alert everything is taken and ignored (RFC 8446 §6.1). An error is final.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Event>, OpenError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        loop {
            if self.ended.is_some() {
                *input = &[];
                return Ok(None);
            }
            let outcome = match self.reader.read(input) {
                Ok(None) => return Ok(None),
                Ok(Some(record)) => self.open(record),
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.failed = Some(error);
                    return Err(error);
                }
            }
        }
    }

    /// How the direction ended, asked when the transport has no more bytes.
    pub fn ending(&self) -> Ending {
        self.ended.unwrap_or(Ending::Truncated)
    }

    /// The sequence number of the next record under the current generation.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    fn open(&mut self, record: Record) -> Result<Option<Event>, OpenError> {
        if record.outer_type() != ContentType::ApplicationData {
            return Err(OpenError::NotProtected { outer: record.outer_type() });
        }
        if record.version() != VERSION_TLS12 {
            return Err(OpenError::ProtectedVersion { version: record.version() });
        }
        let mut content = self.keys.open(self.sequence, record)?;
        self.sequence = self.sequence.checked_add(1).ok_or(OpenError::SequenceExhausted)?;

        // RFC 8446 §5.4: the last byte that is not zero is the content type.
        let type_at = content.iter().rposition(|byte| *byte != 0).ok_or(OpenError::NoContentType)?;
        let code = content.get(type_at).copied().ok_or(OpenError::NoContentType)?;
        content.truncate(type_at);
        if content.len() > PLAINTEXT_MAX {
            return Err(OpenError::PlaintextTooLong { length: content.len() });
        }
        let inner = ContentType::from_code(code).ok_or(OpenError::InnerType { code })?;
        if inner != ContentType::Handshake && !self.handshake.is_empty() {
            return Err(OpenError::HandshakeInterrupted);
        }
        if inner == ContentType::ApplicationData && !content.is_empty() {
            self.control_records = 0;
            return Ok(Some(Event::AppData(content)));
        }
        self.control_records += 1;
        if self.control_records > CONTROL_RECORDS_MAX {
            return Err(OpenError::ControlFlood);
        }
        match inner {
            ContentType::ApplicationData => Ok(None),
            ContentType::Alert => self.alert(&content),
            ContentType::Handshake => self.handshake(&content),
            // RFC 8446 §5: change_cipher_spec is never protected.
            ContentType::ChangeCipherSpec => Err(OpenError::InnerType { code }),
        }
    }

    fn alert(&mut self, content: &[u8]) -> Result<Option<Event>, OpenError> {
        match content {
            [_, ALERT_CLOSE_NOTIFY] => {
                self.ended = Some(Ending::CloseNotify);
                Ok(Some(Event::CloseNotify))
            }
            // RFC 8446 §6.1: a warning, to be followed by close_notify.
            [_, ALERT_USER_CANCELED] => Ok(None),
            // RFC 8446 §6: all other alerts are fatal, whatever level they claim.
            [_, code] => {
                self.ended = Some(Ending::Alert(*code));
                Ok(Some(Event::Alert(*code)))
            }
            _ => Err(OpenError::AlertMalformed),
        }
    }

    fn handshake(&mut self, content: &[u8]) -> Result<Option<Event>, OpenError> {
        if content.is_empty() {
            return Err(OpenError::HandshakeEmpty);
        }
        self.handshake.extend_from_slice(content);
        while let Some((&[message, high, middle, low], rest)) =
            self.handshake.split_first_chunk::<HANDSHAKE_HEADER_LEN>()
        {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            match message {
                MESSAGE_NEW_SESSION_TICKET | MESSAGE_KEY_UPDATE => {}
                MESSAGE_CERTIFICATE_REQUEST => return Err(OpenError::CertificateRequested),
                message => return Err(OpenError::HandshakeMessage { message }),
            }
            if length > HANDSHAKE_MESSAGE_MAX {
                return Err(OpenError::HandshakeTooLong { length });
            }
            let Some((body, after)) = rest.split_at_checked(length) else { return Ok(None) };
            if message == MESSAGE_KEY_UPDATE {
                let requested = match body {
                    [0] => false,
                    [1] => true,
                    _ => return Err(OpenError::KeyUpdateMalformed),
                };
                if !after.is_empty() {
                    return Err(OpenError::KeyUpdateNotLast);
                }
                self.handshake.clear();
                self.secret = self.secret.next_generation();
                self.keys = RecordKeys::new(&self.secret);
                self.sequence = 0;
                return Ok(Some(Event::KeyUpdated { requested }));
            }
            // A ticket: resumption would bypass the certificate check, so it is never used.
            let done = HANDSHAKE_HEADER_LEN + length;
            self.handshake.drain(..done);
        }
        Ok(None)
    }
}

fn take<'a>(input: &mut &'a [u8], at_most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(at_most.min(input.len()));
    *input = rest;
    taken
}

fn check_header(header: &[u8; HEADER_LEN]) -> Result<(ContentType, usize), RecordError> {
    let &[code, major, minor, length_high, length_low] = header;
    let outer = ContentType::from_code(code).ok_or(RecordError::UnknownType { code })?;
    let version = u16::from_be_bytes([major, minor]);
    if version != VERSION_TLS12 && version != VERSION_TLS10 {
        return Err(RecordError::Version { version });
    }
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let (shortest, longest) = match outer {
        ContentType::ApplicationData => (OVERHEAD, CIPHERTEXT_MAX),
        ContentType::Alert | ContentType::Handshake | ContentType::ChangeCipherSpec => (1, PLAINTEXT_MAX),
    };
    if length > longest {
        return Err(RecordError::TooLong { length });
    }
    if length < shortest {
        return Err(RecordError::TooShort { length });
    }
    Ok((outer, length))
}

/// HKDF-Expand-Label with an empty context (RFC 8446 §7.1). All our outputs fit one block of SHA-256, where
/// HKDF-Expand is one HMAC over info ‖ 01 (RFC 5869 §2.3); the caller uses the first `length` bytes.
fn expand_label(secret: &[u8; SECRET_LEN], label: &[u8], length: u8) -> Zeroizing<[u8; 32]> {
    // HMAC pads a key with zeros to the block size; padding here makes the constructor infallible.
    let mut block = Zeroizing::new([0u8; 64]);
    for (slot, byte) in block.iter_mut().zip(secret) {
        *slot = *byte;
    }
    let mut mac = <Hmac<Sha256> as Mac>::new((&*block).into());
    let prefix = b"tls13 ";
    let label_len = u8::try_from(prefix.len() + label.len()).unwrap_or(u8::MAX);
    mac.update(&[0, length, label_len]);
    mac.update(prefix);
    mac.update(label);
    mac.update(&[0, 1]);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> TrafficSecret {
        TrafficSecret::new([7; 32])
    }

    fn sealed(items: &[(ContentType, &[u8])]) -> Vec<u8> {
        let mut sealer = RecordSealer::new(&secret());
        let mut out = Vec::new();
        for (inner, plaintext) in items {
            sealer.seal_into(*inner, plaintext, &mut out).unwrap();
        }
        out
    }

    /// Seals raw inner bytes (content, type and padding as given), which no honest sealer would.
    fn sealed_raw(inner: &[u8]) -> Vec<u8> {
        RecordKeys::new(&secret()).seal_raw_for_tests(0, inner)
    }

    fn read_all(bytes: &[u8]) -> (Result<Vec<Event>, OpenError>, Ending) {
        let mut opener = RecordOpener::new(secret());
        let mut input = bytes;
        let mut events = Vec::new();
        loop {
            match opener.read(&mut input) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (Ok(events), opener.ending()),
                Err(error) => {
                    assert_eq!(opener.read(&mut &bytes[..]).err(), Some(error), "an error is final");
                    return (Err(error), opener.ending());
                }
            }
        }
    }

    fn error_of(bytes: &[u8]) -> OpenError {
        read_all(bytes).0.err().expect("refused")
    }

    /// RFC 8448 §3 (simple 1-RTT handshake): server handshake traffic secret to key and IV. The trace's suite is
    /// AES-128, whose key is 16 bytes; the IV derivation is the same for both suites.
    #[test]
    fn expand_label_matches_rfc_8448() {
        let secret: [u8; 32] =
            hex::decode("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
                .unwrap()
                .try_into()
                .unwrap();
        assert_eq!(hex::encode(&expand_label(&secret, b"key", 16)[..16]), "3fce516009c21727d0f2e4e86ee403bc");
        assert_eq!(hex::encode(&expand_label(&secret, b"iv", 12)[..12]), "5d313eb2671276ee13000b30");
    }

    const SUNSCREEN: &[u8] =
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
                               future, sunscreen would be it.";

    /// One vector of RFC 8439, through each of our code paths.
    struct Vector {
        key: String,
        nonce: &'static str,
        aad: &'static str,
        one_time_key: Option<&'static str>,
        plaintext: Vec<u8>,
        ciphertext: &'static str,
        tag: Option<&'static str>,
    }

    fn vectors() -> [Vector; 4] {
        let range = |from: u8| hex::encode((from..from + 32).collect::<Vec<u8>>());
        [
            // §2.4.2, ChaCha20 from counter 1
            Vector {
                key: range(0),
                nonce: "000000000000004a00000000",
                aad: "",
                one_time_key: None,
                plaintext: SUNSCREEN.to_vec(),
                ciphertext: "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab\
                             8f593dabcd62b3571639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e\
                             52bc514d16ccf806818ce91ab77937365af90bbf74a35be6b40b8eedf2785e42874d",
                tag: None,
            },
            // §2.6.2, the one-time key
            Vector {
                key: range(0x80),
                nonce: "000000000001020304050607",
                aad: "",
                one_time_key: Some("8ad5a08b905f81cc815040274ab29471a833b637e3fd0da508dbb8e2fdd1a646"),
                plaintext: vec![],
                ciphertext: "",
                tag: None,
            },
            // §2.8.2, the whole AEAD
            Vector {
                key: range(0x80),
                nonce: "070000004041424344454647",
                aad: "50515253c0c1c2c3c4c5c6c7",
                one_time_key: Some("7bac2b252db447af09b67a55a4e955840ae1d6731075d9eb2a9375783ed553ff"),
                plaintext: SUNSCREEN.to_vec(),
                ciphertext: "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca96712\
                             82fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58\
                             fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116",
                tag: Some("1ae10b594f09e26a7e902ecbd0600691"),
            },
            // A.5
            Vector {
                key: "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0".into(),
                nonce: "000000000102030405060708",
                aad: "f33388860000000000004e91",
                one_time_key: Some("bdf04aa95ce4de8995b14bb6a18fecaf26478f50c054f563dbc0a21e261572aa"),
                plaintext:
                    "Internet-Drafts are draft documents valid for a maximum of six months and may be \
                            updated, replaced, or obsoleted by other documents at any time. It is \
                            inappropriate to use Internet-Drafts as reference material or to cite them other \
                            than as /\u{201c}work in progress./\u{201d}"
                        .into(),
                ciphertext: "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea0\
                             9ee94e382d26b0bdb7b73c321b0100d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114\
                             ad176e008d33bd60f982b1ff37c8559797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9\
                             f6157b53c867e4b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523eaf\
                             4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a0bb2316053fa76991955\
                             ebd63159434ecebb4e466dae5a1073a6727627097a1049e617d91d361094fa68f0ff77987130305bea\
                             ba2eda04df997b714d6c6f2c29a6ad5cb4022b02709b",
                tag: Some("eead9d67890cbb22392336fea1851f38"),
            },
        ]
    }

    /// The hole's parts (keystream, one-time key, tag) and the record cipher give what RFC 8439 says.
    #[test]
    fn the_arithmetic_matches_rfc_8439() {
        for vector in vectors() {
            let bytes = |text: &str| hex::decode(text).unwrap();
            let keys = RecordKeys {
                key: Zeroizing::new(bytes(&vector.key).try_into().unwrap()),
                iv: Zeroizing::new(bytes(vector.nonce).try_into().unwrap()),
            };
            // sequence 0 leaves the IV as it is
            let hole = keys.hole(0, vector.plaintext.len());
            let ciphertext = crate::share::xor(&hole.keystream, &vector.plaintext);
            assert_eq!(hex::encode(&*ciphertext), vector.ciphertext);
            if let Some(one_time_key) = vector.one_time_key {
                assert_eq!(hex::encode(hole.one_time_key.as_slice()), one_time_key);
            }
            let aad = bytes(vector.aad);
            let mut sealed = vector.plaintext.clone();
            let tag = keys.cipher().encrypt_in_place_detached(&keys.nonce(0), &aad, &mut sealed).unwrap();
            assert_eq!(hex::encode(sealed), vector.ciphertext);
            let ours = crate::hole::tag(&hole.one_time_key, &aad, &ciphertext);
            assert_eq!(ours, tag.as_slice());
            if let Some(tag) = vector.tag {
                assert_eq!(hex::encode(ours), tag);
            }
        }
    }

    #[test]
    fn what_is_sealed_opens_in_order() {
        let bytes = sealed(&[(ContentType::ApplicationData, b"one"), (ContentType::ApplicationData, b"two")]);
        let (events, ending) = read_all(&bytes);
        assert!(events == Ok(vec![Event::AppData(b"one".to_vec()), Event::AppData(b"two".to_vec())]));
        assert_eq!(ending, Ending::Truncated);
    }

    #[test]
    fn a_skipped_sequence_number_is_missed_by_the_reader() {
        let mut sealer = RecordSealer::new(&secret());
        let mut out = Vec::new();
        sealer.skip().unwrap();
        assert_eq!(sealer.sequence(), 1);
        sealer.seal_into(ContentType::ApplicationData, b"x", &mut out).unwrap();
        assert_eq!(error_of(&out), OpenError::NotAuthentic(RecordNotAuthentic));
    }

    #[test]
    fn sealing_bounds() {
        let mut sealer = RecordSealer::new(&secret());
        let mut out = Vec::new();
        let long = vec![0; PLAINTEXT_MAX + 1];
        assert_eq!(
            sealer.seal_into(ContentType::ApplicationData, &long, &mut out),
            Err(SealError::PlaintextTooLong { length: PLAINTEXT_MAX + 1 })
        );
        sealer.sequence = u64::MAX;
        assert_eq!(
            sealer.seal_into(ContentType::ApplicationData, b"x", &mut out),
            Err(SealError::SequenceExhausted)
        );
        assert_eq!(sealer.skip(), Err(SealError::SequenceExhausted));
        assert!(out.is_empty());
    }

    #[test]
    fn headers_out_of_bounds_are_refused() {
        let cases: [(&[u8], RecordError); 6] = [
            (b"SSH-2.0", RecordError::UnknownType { code: b'S' }),
            (&[23, 3, 2, 0, 20], RecordError::Version { version: 0x0302 }),
            (&[23, 3, 3, 0x41, 1], RecordError::TooLong { length: CIPHERTEXT_MAX + 1 }),
            (&[22, 3, 3, 0x40, 1], RecordError::TooLong { length: PLAINTEXT_MAX + 1 }),
            (&[22, 3, 3, 0, 0], RecordError::TooShort { length: 0 }),
            (&[23, 3, 3, 0, 16], RecordError::TooShort { length: 16 }),
        ];
        for (mut bytes, expected) in cases {
            assert_eq!(RecordReader::new().read(&mut bytes), Err(expected));
        }
    }

    #[test]
    fn a_string_is_split_only_at_its_end() {
        let bytes = sealed(&[(ContentType::ApplicationData, b"one"), (ContentType::ApplicationData, b"two")]);
        let records = split_records(&bytes).unwrap().unwrap();
        let mut again = Vec::new();
        records.iter().for_each(|record| record.write_to(&mut again));
        assert_eq!((records.len(), again), (2, bytes.clone()));
        assert_eq!(split_records(&bytes[..bytes.len() - 1]), Ok(None));
    }

    #[test]
    fn every_altered_bit_is_noticed() {
        let bytes = sealed(&[(ContentType::ApplicationData, b"one")]);
        for at in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[at / 8] ^= 1 << (at % 8);
            let (events, ending) = read_all(&altered);
            assert!(events.is_err() || (events == Ok(vec![]) && ending == Ending::Truncated), "bit {at}");
        }
    }

    #[test]
    fn endings_are_told_apart() {
        let close = sealed(&[(ContentType::ApplicationData, b"x"), (ContentType::Alert, &[1, 0])]);
        assert_eq!(read_all(&close).1, Ending::CloseNotify);
        assert_eq!(read_all(&close[..close.len() - 1]).1, Ending::Truncated);
        // a warning level does not make an alert less fatal
        assert_eq!(read_all(&sealed(&[(ContentType::Alert, &[1, 80])])).1, Ending::Alert(80));
        let canceled = sealed(&[(ContentType::Alert, &[1, 90]), (ContentType::Alert, &[1, 0])]);
        assert_eq!(read_all(&canceled).1, Ending::CloseNotify);
        let mut after = close.clone();
        after.extend_from_slice(b"anything");
        assert!(read_all(&after).0.is_ok(), "what follows close_notify is ignored");
    }

    #[test]
    fn each_bad_record_has_its_own_error() {
        let long = [vec![1; PLAINTEXT_MAX + 1], vec![23]].concat();
        let certificate_request: &[u8] = &[13, 0, 0, 3, 0, 0, 0];
        let cases: Vec<(Vec<u8>, OpenError)> = vec![
            (vec![9; 5], OpenError::Record(RecordError::UnknownType { code: 9 })),
            (vec![21, 3, 3, 0, 2, 2, 40], OpenError::NotProtected { outer: ContentType::Alert }),
            (
                [&[23, 3, 1, 0, 17], &[0; 17][..]].concat(),
                OpenError::ProtectedVersion { version: VERSION_TLS10 },
            ),
            (sealed_raw(&[0, 0, 0]), OpenError::NoContentType),
            (sealed_raw(&long), OpenError::PlaintextTooLong { length: PLAINTEXT_MAX + 1 }),
            (sealed_raw(&[1, 99]), OpenError::InnerType { code: 99 }),
            (sealed(&[(ContentType::ChangeCipherSpec, &[1])]), OpenError::InnerType { code: 20 }),
            (sealed(&[(ContentType::Alert, &[2])]), OpenError::AlertMalformed),
            (sealed(&[(ContentType::Handshake, &[])]), OpenError::HandshakeEmpty),
            (
                sealed(&[(ContentType::Handshake, &[4, 1, 0, 1])]),
                OpenError::HandshakeTooLong { length: HANDSHAKE_MESSAGE_MAX + 1 },
            ),
            (
                sealed(&[(ContentType::Handshake, &[4, 0]), (ContentType::ApplicationData, b"x")]),
                OpenError::HandshakeInterrupted,
            ),
            (sealed(&[(ContentType::Handshake, certificate_request)]), OpenError::CertificateRequested),
            (
                sealed(&[(ContentType::Handshake, &[20, 0, 0, 0])]),
                OpenError::HandshakeMessage { message: 20 },
            ),
            (sealed(&[(ContentType::Handshake, &[24, 0, 0, 1, 2])]), OpenError::KeyUpdateMalformed),
            (sealed(&[(ContentType::Handshake, &[24, 0, 0, 1, 0, 4])]), OpenError::KeyUpdateNotLast),
            (sealed(&[(ContentType::ApplicationData, &[][..]); 33]), OpenError::ControlFlood),
        ];
        for (bytes, expected) in cases {
            assert_eq!(error_of(&bytes), expected);
        }
    }

    #[test]
    fn padding_tickets_and_empty_records_are_passed_over() {
        assert!(read_all(&sealed_raw(&[b'x', 23, 0, 0, 0])).0 == Ok(vec![Event::AppData(b"x".to_vec())]));
        let ticket = [&[4, 0, 0, 9][..], &[0; 9]].concat();
        let bytes = sealed(&[
            (ContentType::Handshake, &ticket[..6]),
            (ContentType::Handshake, &[&ticket[6..], &ticket[..]].concat()),
            (ContentType::ApplicationData, b""),
            (ContentType::ApplicationData, b"x"),
        ]);
        assert!(read_all(&bytes).0 == Ok(vec![Event::AppData(b"x".to_vec())]));
    }

    #[test]
    fn a_key_update_moves_to_the_next_generation_only() {
        let update: &[u8] = &[24, 0, 0, 1, 1];
        let before = sealed(&[(ContentType::Handshake, update)]);
        let mut after = Vec::new();
        let mut next = RecordSealer::new(&secret().next_generation());
        next.seal_into(ContentType::ApplicationData, b"x", &mut after).unwrap();
        let events = read_all(&[before.clone(), after].concat()).0;
        assert!(
            events == Ok(vec![Event::KeyUpdated { requested: true }, Event::AppData(b"x".to_vec())]),
            "re-keyed"
        );
        let stale = sealed(&[(ContentType::Handshake, update), (ContentType::ApplicationData, b"x")]);
        assert_eq!(error_of(&stale), OpenError::NotAuthentic(RecordNotAuthentic));
    }

    #[test]
    fn a_secret_of_another_suite_is_refused() {
        assert_eq!(TrafficSecret::try_from(&[0; 48][..]).err(), Some(SecretLength { length: 48 }));
    }
}
