//! The keyer's side of one connection: what it holds, and the one answer it gives.
//!
//! ```text
//! Vacant --register(secret)--> Registered --check_head--> Checked  (keyed head approved; hole's keys kept)
//!                                              |             `--answer(mask)--> HoleAnswer, connection consumed
//!                                              `--------> Answered (unkeyed head approved, or any refused)
//! ```
//!
//! A keyer holds the client's application traffic secret of a connection it never saw, and is shown the head's
//! records by the relay. It derives key and IV itself and counts sequence numbers itself, from 0: a client that
//! could choose key, IV or sequence could make the keyer's answer fit another record than the one it checked.
//!
//! **Decides**: whether these records are a head the route's template allows.
//! **Refuses**: a second registration (the secret is the connection's, immutable); records of another shape; records
//! that do not open at their sequence number; inner types other than application_data; padding (the inner plaintext
//! must end with its content type, so that a record's length says exactly how long the head is).
//! **Once.** The first call of [`KeyerConnection::check_head`] is the last, whatever it answers, and the secret is
//! erased: two answers on one connection would be two pads under one key, and a refused head is an alarm, not an
//! invitation to try again. An approved keyed head leaves the keystream and the one-time key of its hole, nothing
//! from which another record's could be derived, while the request is being certified.
//! [`KeyerConnection::answer`] consumes them; dropping the connection erases them.
//!
//! **A false secret.** Poly1305 does not commit to a key, so "opens under the registered secret" does not prove
//! "opens at the provider". It need not: under another key the provider reads the XOR of two keystreams that nobody
//! chose, which is no request. Whatever is later released for the hole is a pad under the registered key, so a hole
//! filled with it opens at the provider only if that key is the connection's.
//!
//! **Leaves to the caller**: who may register and ask, that the request is certified, comparing the head's digest
//! ([`crate::framing::digest_of_head_records`]) with the signed one, expiry of connections never used.

use crate::framing::{HeadRecords, HeadShape};
use crate::head::{CheckedHead, HeadRefusal, HeadTemplate};
use crate::hole::{AnswerRefusal, HoleAnswer, HoleKeys};
use crate::record::{ContentType, Record, RecordKeys, RecordNotAuthentic, TrafficSecret};
use crate::share::Mask;

/// Sequence number of head part one.
pub const SEQUENCE_PART_ONE: u64 = 0;
/// Sequence number of the hole.
pub const SEQUENCE_HOLE: u64 = 1;
/// Sequence number of head part two.
pub const SEQUENCE_PART_TWO: u64 = 2;

/// Why a secret is not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection already has its secret")]
pub struct AlreadyRegistered;

/// Why a keyer does not approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyerRefusal {
    /// No secret is registered: the keyer restarted, or the client never did. No fault of the head.
    #[error("no secret is registered for the connection")]
    NotRegistered,
    /// The connection had its answer.
    #[error("the connection has been answered")]
    AlreadyAnswered,
    /// One record where the template wants two, or the other way round.
    #[error("head has {got:?} records where the route has {wanted:?}")]
    Shape {
        /// The template's.
        wanted: HeadShape,
        /// The records'.
        got: HeadShape,
    },
    /// A record does not open at this sequence number.
    #[error("head record at sequence {sequence} was refused")]
    NotAuthentic {
        /// The sequence number.
        sequence: u64,
        /// The cause.
        #[source]
        source: RecordNotAuthentic,
    },
    /// Zeros after the content type.
    #[error("head record at sequence {sequence} is padded")]
    Padded {
        /// The sequence number.
        sequence: u64,
    },
    /// Another inner type than application_data.
    #[error("head record at sequence {sequence} has inner type {code}")]
    InnerType {
        /// The sequence number.
        sequence: u64,
        /// The type found.
        code: u8,
    },
    /// The head is not what the template allows.
    #[error("head is not allowed on this route")]
    Head(#[from] HeadRefusal),
}

/// What a keyer keeps for one connection.
#[derive(Default)]
pub struct KeyerConnection {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Vacant,
    Registered(TrafficSecret),
    Checked {
        keys: HoleKeys,
        content_length: u64,
    },
    Answered,
}

impl KeyerConnection {
    /// A connection without a secret.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the connection's `client_application_traffic_secret_0`, once.
    pub fn register(&mut self, secret: TrafficSecret) -> Result<(), AlreadyRegistered> {
        match self.state {
            State::Vacant => {
                self.state = State::Registered(secret);
                Ok(())
            }
            State::Registered(_) | State::Checked { .. } | State::Answered => Err(AlreadyRegistered),
        }
    }

    /// Whether a secret waits for its head.
    pub fn is_registered(&self) -> bool {
        matches!(self.state, State::Registered(_))
    }

    /// Opens and checks the head. The first call with a secret registered spends the connection; for a keyed head that
    /// it approves, [`Self::answer`] is left.
    pub fn check_head(
        &mut self,
        template: &HeadTemplate,
        records: &HeadRecords,
    ) -> Result<CheckedHead, KeyerRefusal> {
        let secret = match std::mem::replace(&mut self.state, State::Answered) {
            State::Registered(secret) => secret,
            // a second question spoils the answer that was to come: nobody honest asks twice
            State::Checked { .. } | State::Answered => return Err(KeyerRefusal::AlreadyAnswered),
            State::Vacant => {
                self.state = State::Vacant;
                return Err(KeyerRefusal::NotRegistered);
            }
        };
        if records.shape() != template.shape() {
            return Err(KeyerRefusal::Shape { wanted: template.shape(), got: records.shape() });
        }
        let keys = RecordKeys::new(&secret);
        let one = open_part(&keys, SEQUENCE_PART_ONE, records.one())?;
        let two = records.two().map(|record| open_part(&keys, SEQUENCE_PART_TWO, record)).transpose()?;
        let checked = template.check(&one, two.as_deref());
        #[cfg(feature = "danger-hostile")]
        let checked = match checked {
            Err(refusal) if crate::danger_hostile::waives(&refusal) => {
                Ok(CheckedHead::danger_unchecked(&one, two.as_deref()))
            }
            checked => checked,
        };
        let checked = checked?;
        if let Some(slot) = template.credential() {
            let inner_len = usize::from(slot.secret_len) + 1;
            let keys = keys.hole(SEQUENCE_HOLE, inner_len);
            self.state = State::Checked { keys, content_length: checked.content_length() };
        }
        Ok(checked)
    }

    /// Puts another keystream in the place of the hole's, which [`crate::noninterference`] treats as a random string.
    #[cfg(test)]
    pub(crate) fn replace_keystream_for_tests(&mut self, replacement: &[u8]) {
        if let State::Checked { keys, .. } = &mut self.state {
            keys.keystream.copy_from_slice(replacement);
        }
    }

    /// The answer for the hole of the approved head, with this node's own share. Consumes the connection: there is
    /// no second one, and a refusal ends it too.
    pub fn answer(self, mask: &Mask) -> Result<HoleAnswer, AnswerRefusal> {
        match self.state {
            State::Checked { keys, content_length } => keys.answer(mask, content_length),
            State::Vacant | State::Registered(_) | State::Answered => Err(AnswerRefusal::NoHole),
        }
    }
}

fn open_part(keys: &RecordKeys, sequence: u64, record: &Record) -> Result<Vec<u8>, KeyerRefusal> {
    let mut content = keys
        .open(sequence, record.clone())
        .map_err(|source| KeyerRefusal::NotAuthentic { sequence, source })?;
    match content.pop() {
        Some(code) if code == ContentType::ApplicationData.code() => Ok(content),
        #[cfg(feature = "danger-hostile")]
        Some(0) if crate::danger_hostile::waives(&KeyerRefusal::Padded { sequence }) => {
            let end = content.iter().rposition(|byte| *byte != 0).unwrap_or_default();
            content.truncate(end);
            Ok(content)
        }
        Some(0) | None => Err(KeyerRefusal::Padded { sequence }),
        Some(code) => Err(KeyerRefusal::InnerType { sequence, code }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::{CredentialScheme, CredentialSlot, Head, HeadTemplateSpec, Method, PathRule};
    use crate::record::RecordSealer;

    fn template(keyed: bool) -> HeadTemplate {
        HeadTemplate::try_from(HeadTemplateSpec {
            host: "localhost".into(),
            port: 443,
            base_path: String::new(),
            paths: vec![PathRule { method: Method::Post, path: "/v1/embeddings".into(), prefix: false }],
            headers: vec![],
            credential: keyed.then(|| CredentialSlot {
                scheme: CredentialScheme::XApiKey,
                public_prefix: "sk-".into(),
                secret_len: 32,
            }),
        })
        .unwrap()
    }

    fn secret() -> TrafficSecret {
        TrafficSecret::new([3; 32])
    }

    fn registered() -> KeyerConnection {
        let mut connection = KeyerConnection::new();
        connection.register(secret()).unwrap();
        connection
    }

    fn plaintext(keyed: bool) -> (Vec<u8>, Option<Vec<u8>>) {
        let head =
            Head { method: Method::Post, path: "/v1/embeddings".into(), headers: vec![], content_length: 5 };
        let parts = template(keyed).serialise(&head).unwrap();
        (parts.one().to_vec(), parts.two().map(<[u8]>::to_vec))
    }

    fn records(sealer: &mut RecordSealer, inner: ContentType, plaintext: &[u8]) -> HeadRecords {
        let mut bytes = Vec::new();
        sealer.seal_into(inner, plaintext, &mut bytes).unwrap();
        HeadRecords::from_bytes(&bytes, HeadShape::Whole).unwrap()
    }

    fn refusal(result: Result<CheckedHead, KeyerRefusal>) -> KeyerRefusal {
        result.expect_err("refused")
    }

    #[test]
    fn an_honest_head_is_approved_once() {
        let head =
            records(&mut RecordSealer::new(&secret()), ContentType::ApplicationData, &plaintext(false).0);
        let mut connection = registered();
        assert_eq!(connection.register(secret()), Err(AlreadyRegistered));
        let checked = connection.check_head(&template(false), &head).expect("approved");
        assert_eq!(checked.content_length(), 5);
        assert_eq!(refusal(connection.check_head(&template(false), &head)), KeyerRefusal::AlreadyAnswered);
        assert_eq!(connection.register(secret()), Err(AlreadyRegistered));
    }

    #[test]
    fn a_keyed_head_lies_around_the_hole() {
        let (one, two) = plaintext(true);
        let mut sealer = RecordSealer::new(&secret());
        let mut bytes = Vec::new();
        sealer.seal_into(ContentType::ApplicationData, &one, &mut bytes).unwrap();
        let unskipped = bytes.clone();
        sealer.skip().unwrap();
        sealer.seal_into(ContentType::ApplicationData, two.as_deref().unwrap(), &mut bytes).unwrap();
        let head = HeadRecords::from_bytes(&bytes, HeadShape::AroundHole).unwrap();
        assert!(registered().check_head(&template(true), &head).is_ok());

        // part two at sequence 1 would stand where the hole goes
        let mut sealer = RecordSealer::new(&secret());
        let mut bytes = Vec::new();
        sealer.seal_into(ContentType::ApplicationData, &one, &mut bytes).unwrap();
        assert_eq!(bytes, unskipped);
        sealer.seal_into(ContentType::ApplicationData, two.as_deref().unwrap(), &mut bytes).unwrap();
        let head = HeadRecords::from_bytes(&bytes, HeadShape::AroundHole).unwrap();
        assert_eq!(
            refusal(registered().check_head(&template(true), &head)),
            KeyerRefusal::NotAuthentic { sequence: SEQUENCE_PART_TWO, source: RecordNotAuthentic }
        );
    }

    #[test]
    fn a_refusal_spends_the_connection_too() {
        let template = template(false);
        let good =
            records(&mut RecordSealer::new(&secret()), ContentType::ApplicationData, &plaintext(false).0);
        let bad =
            records(&mut RecordSealer::new(&secret()), ContentType::ApplicationData, b"GET / HTTP/1.1\r\n");
        let mut connection = registered();
        assert!(matches!(refusal(connection.check_head(&template, &bad)), KeyerRefusal::Head(_)));
        assert_eq!(refusal(connection.check_head(&template, &good)), KeyerRefusal::AlreadyAnswered);
    }

    #[test]
    fn asking_without_a_secret_spends_nothing() {
        let good =
            records(&mut RecordSealer::new(&secret()), ContentType::ApplicationData, &plaintext(false).0);
        let mut connection = KeyerConnection::new();
        assert_eq!(refusal(connection.check_head(&template(false), &good)), KeyerRefusal::NotRegistered);
        connection.register(secret()).unwrap();
        assert!(connection.check_head(&template(false), &good).is_ok());
    }

    #[test]
    fn each_bad_record_has_its_own_refusal() {
        let plain = plaintext(false).0;
        let app = ContentType::ApplicationData;
        let mut late = RecordSealer::new(&secret());
        late.skip().unwrap();
        let not_authentic = KeyerRefusal::NotAuthentic { sequence: 0, source: RecordNotAuthentic };
        let padded = RecordKeys::new(&secret()).seal_raw_for_tests(0, &[&plain[..], &[23, 0]].concat());
        let cases = [
            (records(&mut late, app, &plain), not_authentic),
            (records(&mut RecordSealer::new(&TrafficSecret::new([4; 32])), app, &plain), not_authentic),
            (
                records(&mut RecordSealer::new(&secret()), ContentType::Handshake, &plain),
                KeyerRefusal::InnerType { sequence: 0, code: 22 },
            ),
            (
                HeadRecords::from_bytes(&padded, HeadShape::Whole).unwrap(),
                KeyerRefusal::Padded { sequence: 0 },
            ),
        ];
        for (head, expected) in cases {
            assert_eq!(refusal(registered().check_head(&template(false), &head)), expected);
        }
        let head = records(&mut RecordSealer::new(&secret()), app, &plain);
        assert_eq!(
            refusal(registered().check_head(&template(true), &head)),
            KeyerRefusal::Shape { wanted: HeadShape::AroundHole, got: HeadShape::Whole }
        );
    }
}
