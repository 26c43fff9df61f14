//! The relay's view of a TLS handshake it cannot decrypt: where does the application stream begin?
//!
//! A relay must know which record is sequence 0 under the client's application key, because that record is the head
//! the keyer checks. Whoever could get one byte to the provider before it, unseen, could put a request of his own in
//! front of the checked one. So nothing is forwarded that this module did not place.
//!
//! ```text
//!  client -> provider                                   provider -> client
//!  [Hello]    22 ClientHello, alone in its record   -->
//!                                                  <--  [Answer]  22 HelloRetryRequest, alone
//!  [Retried]  20 ChangeCipherSpec (optional)        -->           20 ChangeCipherSpec (optional)
//!             22 ClientHello, alike                 -->
//!                                                  <--  [Answer]  22 ServerHello, alone
//!  [Finish]   20 ChangeCipherSpec (if none yet)     -->           anything, unparsed, for ever
//!             23 one record of exactly 5 + 53 bytes -->
//!  [Done]     23 head, sequence 0                        (handed to the caller, not forwarded)
//! ```
//!
//! **Byte counts.** Finished is 4 bytes of header and 32 of HMAC-SHA-256, 1 of content type, 16 of tag: a fragment of
//! [`FINISHED_LEN`] = 53. It is the only record under the handshake key, so the next is sequence 0 under the
//! application key. Two other lengths are recognised only to name what happened: 19, a protected alert; and 25 or 61, an
//! empty client Certificate alone or together with Finished.
//!
//! **Each rule, and the attack it stops**
//! - *Only TLS 1.3 offered, only TLS_CHACHA20_POLY1305_SHA256 offered and selected*: record arithmetic is for that
//!   suite; TLS 1.2 would place application data elsewhere.
//! - *SNI is the route's host, ALPN is `http/1.1`*: no other virtual host of the same address, no HTTP/2 framing.
//! - *No early_data*: a request in the handshake's shadow. *No PSK*: resumption skips the certificate and makes early
//!   data possible. *No ECH*: it hides the true SNI. *No post_handshake_auth, no record_size_limit, nothing unknown*:
//!   an allow-list, because each extension may move the record that is the head.
//! - *One message per plaintext record*: no second reading of where a message ends.
//! - *Client silent until the answer; at most one ChangeCipherSpec; exactly one 53-byte record*: a second record under
//!   the handshake key would make the relay's count and the provider's differ. A client Certificate is such a
//!   record: that is why providers that ask for one cannot be used.
//! - *The second hello equals the first outside key_share and cookie* (RFC 8446 §4.1.2).
//!
//! The provider's bytes after ServerHello pass unparsed: only the client can judge them. A provider's alert in place
//! of ServerHello is the typed outcome an operator needs ([`HandshakeRefusal::ProviderLacksSuite`]).
//!
//! **Assumes**: one watch per connection, both directions fed in order. **Leaves to the caller**: sockets, timeouts.

use crate::host::ServerHost;
use crate::record::{ContentType, OVERHEAD, Record, RecordError, RecordReader};

/// Fragment bytes of the client's protected Finished.
pub const FINISHED_LEN: usize = 4 + 32 + OVERHEAD;
/// Bytes of an empty client Certificate message: the answer to a CertificateRequest.
const EMPTY_CERTIFICATE: usize = 4 + 1 + 3;
/// Its fragment when it has a record of its own.
const CERTIFICATE_LEN: usize = EMPTY_CERTIFICATE + OVERHEAD;
/// Its fragment when Finished shares the record, as rustls sends them.
const CERTIFICATE_AND_FINISHED_LEN: usize = EMPTY_CERTIFICATE + FINISHED_LEN;
/// Fragment bytes of a protected alert.
const PROTECTED_ALERT_LEN: usize = 2 + OVERHEAD;

const TLS12: u16 = 0x0303;
const TLS13: u16 = 0x0304;
const SUITE: u16 = 0x1303;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SESSION_ID_MAX: usize = 32;
const ALPN_HTTP11: &[u8] = b"\x00\x09\x08http/1.1";
/// SHA-256 of "HelloRetryRequest" (RFC 8446 §4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Extension numbers (IANA TLS ExtensionType Values) that the rules name.
mod ext {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const STATUS_REQUEST: u16 = 5;
    pub(super) const SUPPORTED_GROUPS: u16 = 10;
    pub(super) const EC_POINT_FORMATS: u16 = 11;
    pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
    pub(super) const ALPN: u16 = 16;
    pub(super) const EXTENDED_MASTER_SECRET: u16 = 23;
    pub(super) const PRE_SHARED_KEY: u16 = 41;
    pub(super) const EARLY_DATA: u16 = 42;
    pub(super) const SUPPORTED_VERSIONS: u16 = 43;
    pub(super) const COOKIE: u16 = 44;
    /// Only says how a ticket might be used later; without `pre_shared_key` it does nothing. rustls always sends it.
    pub(super) const PSK_KEY_EXCHANGE_MODES: u16 = 45;
    pub(super) const KEY_SHARE: u16 = 51;
    pub(super) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

    /// What a client may offer besides what has a rule of its own: inert in TLS 1.3, or about keys and certificates.
    pub(super) const INERT: [u16; 7] = [
        STATUS_REQUEST,
        SUPPORTED_GROUPS,
        EC_POINT_FORMATS,
        SIGNATURE_ALGORITHMS,
        EXTENDED_MASTER_SECRET,
        PSK_KEY_EXCHANGE_MODES,
        KEY_SHARE,
    ];
}

/// Whose doing a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The client, or who sits between it and the relay.
    Client,
    /// The provider, or who sits between it and the relay.
    Provider,
}

/// Where in a hello the grammar of RFC 8446 §4.1 is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloField {
    /// `legacy_version` is not 03 03.
    LegacyVersion,
    /// `random` is cut off.
    Random,
    /// `legacy_session_id` is cut off or above 32 bytes.
    SessionId,
    /// `cipher_suites` is cut off.
    CipherSuites,
    /// `legacy_compression_methods` is cut off.
    Compression,
    /// `extensions` is cut off or does not end the message.
    Extensions,
    /// `supported_versions` is malformed.
    SupportedVersions,
    /// `server_name` is malformed.
    ServerName,
}

/// Why a handshake is refused. Final for the connection; nothing more is forwarded in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeRefusal {
    /// The client's bytes are not records.
    #[error("client does not send TLS records")]
    ClientRecord(#[source] RecordError),
    /// The client spoke while it was the provider's turn.
    #[error("client sent bytes before the provider's answer")]
    ClientOutOfTurn,
    /// The client sent an alert instead of going on; with protected alerts, judged by length.
    #[error("client gave up the handshake")]
    ClientGaveUp,
    /// Another record type than the handshake needs here.
    #[error("client sent record type {got:?} in place of its hello")]
    ClientRecordType {
        /// The outer type.
        got: ContentType,
    },
    /// A plaintext record with a version this place does not allow.
    #[error("client record has version {got:#06x}")]
    ClientRecordVersion {
        /// The version.
        got: u16,
    },
    /// Another handshake message than ClientHello.
    #[error("client sent handshake message {got} in place of its hello")]
    NotClientHello {
        /// Its type.
        got: u8,
    },
    /// ClientHello goes on in another record.
    #[error("ClientHello is spread over records")]
    ClientHelloFragmented,
    /// Something follows ClientHello in its record.
    #[error("ClientHello is not alone in its record")]
    ClientHelloCoalesced,
    /// ClientHello breaks the grammar.
    #[error("ClientHello is malformed at {at:?}")]
    ClientHelloMalformed {
        /// Where.
        at: HelloField,
    },
    /// Not exactly the one suite.
    #[error("client offers other suites than TLS_CHACHA20_POLY1305_SHA256")]
    ClientSuites,
    /// A compression method other than null.
    #[error("client offers compression")]
    ClientCompression,
    /// No `supported_versions`: not TLS 1.3.
    #[error("client does not offer TLS 1.3")]
    ClientLacksTls13,
    /// Other versions offered besides TLS 1.3.
    #[error("client offers other versions than TLS 1.3")]
    ClientVersions,
    /// No server name, though the route's host is a name.
    #[error("client sends no server name")]
    SniMissing,
    /// A server name, though the route's host is an address.
    #[error("client sends a server name for an address")]
    SniUnexpected,
    /// Another server name than the route's host.
    #[error("client sends another server name than the route's")]
    SniMismatch,
    /// No ALPN.
    #[error("client offers no application protocol")]
    AlpnMissing,
    /// ALPN is not exactly `http/1.1`.
    #[error("client offers other application protocols than http/1.1")]
    AlpnNotHttp11,
    /// The client offers early data.
    #[error("client offers early data")]
    EarlyDataOffered,
    /// The client offers a pre-shared key.
    #[error("client offers a pre-shared key")]
    PskOffered,
    /// The client offers encrypted ClientHello.
    #[error("client offers encrypted client hello")]
    EchOffered,
    /// An extension outside the allow-list.
    #[error("client sends extension {extension}, which is not allowed")]
    ClientExtension {
        /// Its number.
        extension: u16,
    },
    /// An extension twice.
    #[error("client repeats extension {extension}")]
    ClientExtensionRepeated {
        /// Its number.
        extension: u16,
    },
    /// A cookie in the first hello: there was no retry to take it from.
    #[error("client sends a cookie it was not given")]
    CookieUnasked,
    /// The second hello differs from the first outside key_share and cookie.
    #[error("the hello after a retry differs from the first")]
    SecondHelloDiffers,
    /// ChangeCipherSpec before any answer of the provider. (After Finished it would be in the head's place.)
    #[error("client sends ChangeCipherSpec too early")]
    CcsTooEarly,
    /// A second ChangeCipherSpec.
    #[error("client repeats ChangeCipherSpec")]
    CcsRepeated,
    /// A ChangeCipherSpec that is not 14 03 03 00 01 01.
    #[error("client sends a malformed ChangeCipherSpec")]
    CcsMalformed,
    /// Another record than application_data in Finished's place.
    #[error("client sent record type {got:?} in place of Finished")]
    FinishedType {
        /// The outer type.
        got: ContentType,
    },
    /// Another length than [`FINISHED_LEN`].
    #[error("client sent a record of {got} bytes in place of Finished")]
    FinishedLength {
        /// The fragment's length.
        got: usize,
    },
    /// The client answers a request for a certificate (judged by length): the provider demands client
    /// certificates, which moves the head by one record.
    #[error("provider asks for a client certificate, which a route cannot use")]
    ClientCertificate,
    /// The provider's answer is not TLS.
    #[error("provider does not speak TLS")]
    ProviderNotTls(#[source] RecordError),
    /// The provider spoke while it was the client's turn.
    #[error("provider sent bytes before it was asked")]
    ProviderOutOfTurn,
    /// The provider answered with an alert: it has no suite or group in common with the client, most often because
    /// it lacks TLS_CHACHA20_POLY1305_SHA256.
    #[error("provider shares no suite: it needs TLS_CHACHA20_POLY1305_SHA256")]
    ProviderLacksSuite,
    /// The provider answered with an alert: it does not speak TLS 1.3.
    #[error("provider does not speak TLS 1.3")]
    ProviderLacksTls13,
    /// The provider answered with an alert: it does not speak HTTP/1.1.
    #[error("provider does not offer http/1.1")]
    ProviderLacksHttp11,
    /// The provider answered with another alert (RFC 8446 §6).
    #[error("provider ended the handshake with alert {code}")]
    ProviderAlert {
        /// The alert.
        code: u8,
    },
    /// Another record type in place of ServerHello.
    #[error("provider sent record type {got:?} in place of ServerHello")]
    ProviderRecordType {
        /// The outer type.
        got: ContentType,
    },
    /// A record version other than 03 03.
    #[error("provider record has version {got:#06x}")]
    ProviderRecordVersion {
        /// The version.
        got: u16,
    },
    /// A ChangeCipherSpec of the provider that is malformed, repeated or before its HelloRetryRequest.
    #[error("provider sends a misplaced ChangeCipherSpec")]
    ProviderCcs,
    /// Another handshake message than ServerHello.
    #[error("provider sent handshake message {got} in place of ServerHello")]
    NotServerHello {
        /// Its type.
        got: u8,
    },
    /// ServerHello goes on in another record.
    #[error("ServerHello is spread over records")]
    ServerHelloFragmented,
    /// Something follows ServerHello in its record.
    #[error("ServerHello is not alone in its record")]
    ServerHelloCoalesced,
    /// ServerHello breaks the grammar.
    #[error("ServerHello is malformed at {at:?}")]
    ServerHelloMalformed {
        /// Where.
        at: HelloField,
    },
    /// The provider selected an older version.
    #[error("provider selected version {got:#06x}, not TLS 1.3")]
    ProviderVersion {
        /// The version; 03 03 when it sent no `supported_versions`.
        got: u16,
    },
    /// The provider selected another suite.
    #[error("provider selected suite {got:#06x}, not TLS_CHACHA20_POLY1305_SHA256")]
    ProviderSuite {
        /// The suite.
        got: u16,
    },
    /// The session id is not the client's.
    #[error("provider does not echo the session id")]
    SessionIdEcho,
    /// The provider selected compression.
    #[error("provider selected compression")]
    ProviderCompression,
    /// The provider resumes a session nobody offered.
    #[error("provider selected a pre-shared key")]
    ProviderPsk,
    /// An extension that ServerHello may not have.
    #[error("provider sends extension {extension} in ServerHello")]
    ProviderExtension {
        /// Its number.
        extension: u16,
    },
    /// An extension twice.
    #[error("provider repeats extension {extension}")]
    ProviderExtensionRepeated {
        /// Its number.
        extension: u16,
    },
    /// A second HelloRetryRequest.
    #[error("provider asks for a second retry")]
    SecondRetry,
}

impl HandshakeRefusal {
    /// Whose doing it is.
    pub fn fault(&self) -> Party {
        match self {
            Self::ClientRecord(_)
            | Self::ClientOutOfTurn
            | Self::ClientGaveUp
            | Self::ClientRecordType { .. }
            | Self::ClientRecordVersion { .. }
            | Self::NotClientHello { .. }
            | Self::ClientHelloFragmented
            | Self::ClientHelloCoalesced
            | Self::ClientHelloMalformed { .. }
            | Self::ClientSuites
            | Self::ClientCompression
            | Self::ClientLacksTls13
            | Self::ClientVersions
            | Self::SniMissing
            | Self::SniUnexpected
            | Self::SniMismatch
            | Self::AlpnMissing
            | Self::AlpnNotHttp11
            | Self::EarlyDataOffered
            | Self::PskOffered
            | Self::EchOffered
            | Self::ClientExtension { .. }
            | Self::ClientExtensionRepeated { .. }
            | Self::CookieUnasked
            | Self::SecondHelloDiffers
            | Self::CcsTooEarly
            | Self::CcsRepeated
            | Self::CcsMalformed
            | Self::FinishedType { .. }
            | Self::FinishedLength { .. } => Party::Client,
            Self::ClientCertificate
            | Self::ProviderNotTls(_)
            | Self::ProviderOutOfTurn
            | Self::ProviderLacksSuite
            | Self::ProviderLacksTls13
            | Self::ProviderLacksHttp11
            | Self::ProviderAlert { .. }
            | Self::ProviderRecordType { .. }
            | Self::ProviderRecordVersion { .. }
            | Self::ProviderCcs
            | Self::NotServerHello { .. }
            | Self::ServerHelloFragmented
            | Self::ServerHelloCoalesced
            | Self::ServerHelloMalformed { .. }
            | Self::ProviderVersion { .. }
            | Self::ProviderSuite { .. }
            | Self::SessionIdEcho
            | Self::ProviderCompression
            | Self::ProviderPsk
            | Self::ProviderExtension { .. }
            | Self::ProviderExtensionRepeated { .. }
            | Self::SecondRetry => Party::Provider,
        }
    }
}

/// Follows one handshake; see the module's diagram.
#[derive(Debug)]
pub struct HandshakeWatch {
    host: ServerHost,
    phase: Phase,
    client: RecordReader,
    provider: RecordReader,
    /// The hello last forwarded.
    hello: Option<Hello>,
    retried: bool,
    client_ccs: bool,
    provider_ccs: bool,
    refused: Option<HandshakeRefusal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A ClientHello must come, the first or the one after a retry.
    Hello,
    /// The provider must answer.
    Answer,
    /// The client must finish.
    Finish,
    /// The next client record is sequence 0.
    Done,
}

impl HandshakeWatch {
    /// Watches a connection that must go to `host`.
    pub fn new(host: ServerHost) -> Self {
        Self {
            host,
            phase: Phase::Hello,
            client: RecordReader::new(),
            provider: RecordReader::new(),
            hello: None,
            retried: false,
            client_ccs: false,
            provider_ccs: false,
            refused: None,
        }
    }

    /// Takes the client's bytes off the front of `input` and appends what may go to the provider now. Once
    /// [`Self::is_done`], nothing more is taken: what is left in `input` begins with the head.
    pub fn client_bytes(&mut self, input: &mut &[u8], forward: &mut Vec<u8>) -> Result<(), HandshakeRefusal> {
        self.guard(|watch| {
            while !input.is_empty() && watch.phase != Phase::Done {
                if watch.phase == Phase::Answer {
                    let gave_up = input.first() == Some(&ContentType::Alert.code());
                    return Err(match gave_up {
                        true => HandshakeRefusal::ClientGaveUp,
                        false => HandshakeRefusal::ClientOutOfTurn,
                    });
                }
                let Some(record) = watch.client.read(input).map_err(HandshakeRefusal::ClientRecord)? else {
                    break;
                };
                watch.client_record(&record)?;
                record.write_to(forward);
            }
            Ok(())
        })
    }

    /// Takes the provider's bytes, all of them, and appends what may go to the client now.
    pub fn provider_bytes(
        &mut self,
        mut input: &[u8],
        forward: &mut Vec<u8>,
    ) -> Result<(), HandshakeRefusal> {
        self.guard(|watch| {
            while !input.is_empty() {
                if matches!(watch.phase, Phase::Finish | Phase::Done) {
                    forward.extend_from_slice(input);
                    break;
                }
                let ccs_may_follow = watch.retried && !watch.provider_ccs;
                if watch.phase == Phase::Hello && !ccs_may_follow {
                    return Err(HandshakeRefusal::ProviderOutOfTurn);
                }
                let Some(record) =
                    watch.provider.read(&mut input).map_err(HandshakeRefusal::ProviderNotTls)?
                else {
                    break;
                };
                watch.provider_record(&record)?;
                record.write_to(forward);
            }
            Ok(())
        })
    }

    /// Whether the client's Finished has passed: its next record is sequence 0.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done && self.refused.is_none()
    }

    /// Whether the provider was asked for a retry; costs one round trip, worth a metric.
    pub fn retried(&self) -> bool {
        self.retried
    }

    fn guard(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<(), HandshakeRefusal>,
    ) -> Result<(), HandshakeRefusal> {
        if let Some(refusal) = self.refused {
            return Err(refusal);
        }
        let outcome = step(self);
        self.refused = outcome.err();
        outcome
    }

    fn client_record(&mut self, record: &Record) -> Result<(), HandshakeRefusal> {
        match record.outer_type() {
            ContentType::ChangeCipherSpec => return self.client_ccs(record),
            ContentType::Alert => return Err(HandshakeRefusal::ClientGaveUp),
            ContentType::Handshake | ContentType::ApplicationData => {}
        }
        // RFC 8446 §5.1: 03 01 is for the first ClientHello only.
        let first = self.hello.is_none();
        if record.version() != TLS12 && !first {
            return Err(HandshakeRefusal::ClientRecordVersion { got: record.version() });
        }
        match self.phase {
            Phase::Hello => {
                if record.outer_type() != ContentType::Handshake {
                    return Err(HandshakeRefusal::ClientRecordType { got: record.outer_type() });
                }
                let hello = Hello::parse(record.fragment(), &self.host, first)?;
                if self.hello.as_ref().is_some_and(|before| *before != hello) {
                    return Err(HandshakeRefusal::SecondHelloDiffers);
                }
                self.hello = Some(hello);
                self.phase = Phase::Answer;
                Ok(())
            }
            Phase::Finish => {
                if record.outer_type() != ContentType::ApplicationData {
                    return Err(HandshakeRefusal::FinishedType { got: record.outer_type() });
                }
                match record.fragment().len() {
                    FINISHED_LEN => {
                        self.phase = Phase::Done;
                        Ok(())
                    }
                    PROTECTED_ALERT_LEN => Err(HandshakeRefusal::ClientGaveUp),
                    CERTIFICATE_LEN | CERTIFICATE_AND_FINISHED_LEN => {
                        Err(HandshakeRefusal::ClientCertificate)
                    }
                    got => Err(HandshakeRefusal::FinishedLength { got }),
                }
            }
            Phase::Answer | Phase::Done => Err(HandshakeRefusal::ClientOutOfTurn),
        }
    }

    fn client_ccs(&mut self, record: &Record) -> Result<(), HandshakeRefusal> {
        if self.hello.is_none() {
            return Err(HandshakeRefusal::CcsTooEarly);
        }
        if self.client_ccs {
            return Err(HandshakeRefusal::CcsRepeated);
        }
        if record.version() != TLS12 || record.fragment() != [1] {
            return Err(HandshakeRefusal::CcsMalformed);
        }
        self.client_ccs = true;
        Ok(())
    }

    fn provider_record(&mut self, record: &Record) -> Result<(), HandshakeRefusal> {
        match record.outer_type() {
            ContentType::Alert => return Err(provider_alert(record.fragment())),
            ContentType::ChangeCipherSpec => {
                // RFC 8446 App. D.4: right after its first handshake message, so here only after a retry.
                if !self.retried || self.provider_ccs || record.version() != TLS12 || record.fragment() != [1]
                {
                    return Err(HandshakeRefusal::ProviderCcs);
                }
                self.provider_ccs = true;
                return Ok(());
            }
            ContentType::ApplicationData => {
                return Err(HandshakeRefusal::ProviderRecordType { got: ContentType::ApplicationData });
            }
            ContentType::Handshake => {}
        }
        if record.version() != TLS12 {
            return Err(HandshakeRefusal::ProviderRecordVersion { got: record.version() });
        }
        // The phase is Hello only while a ChangeCipherSpec may follow a retry.
        let Some(hello) = self.hello.as_ref().filter(|_| self.phase == Phase::Answer) else {
            return Err(HandshakeRefusal::ProviderOutOfTurn);
        };
        match parse_server_hello(record.fragment(), hello)? {
            Answer::Hello => self.phase = Phase::Finish,
            Answer::Retry if self.retried => return Err(HandshakeRefusal::SecondRetry),
            Answer::Retry => {
                self.retried = true;
                self.phase = Phase::Hello;
            }
        }
        Ok(())
    }
}

fn provider_alert(fragment: &[u8]) -> HandshakeRefusal {
    match fragment {
        // handshake_failure, insufficient_security
        [_, 40 | 71] => HandshakeRefusal::ProviderLacksSuite,
        // protocol_version
        [_, 70] => HandshakeRefusal::ProviderLacksTls13,
        // no_application_protocol
        [_, 120] => HandshakeRefusal::ProviderLacksHttp11,
        [_, code] => HandshakeRefusal::ProviderAlert { code: *code },
        _ => HandshakeRefusal::ProviderRecordType { got: ContentType::Alert },
    }
}

/// A checked ClientHello, reduced to what the second one must repeat.
#[derive(Debug, PartialEq, Eq)]
struct Hello {
    random: Vec<u8>,
    session_id: Vec<u8>,
    /// All but key_share and cookie, in order (RFC 8446 §4.1.2).
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    fn parse(fragment: &[u8], host: &ServerHost, first: bool) -> Result<Self, HandshakeRefusal> {
        use HandshakeRefusal as R;
        let malformed = |at| R::ClientHelloMalformed { at };

        let (kind, body) = message(fragment).map_err(|shape| match shape {
            Shape::Fragmented => R::ClientHelloFragmented,
            Shape::Coalesced => R::ClientHelloCoalesced,
        })?;
        if kind != CLIENT_HELLO {
            return Err(R::NotClientHello { got: kind });
        }
        let mut body = Fields(body);
        if body.u16() != Some(TLS12) {
            return Err(malformed(HelloField::LegacyVersion));
        }
        let random = body.bytes(32).ok_or(malformed(HelloField::Random))?;
        let session_id =
            body.vector8().filter(|id| id.len() <= SESSION_ID_MAX).ok_or(malformed(HelloField::SessionId))?;
        let suites = body.vector16().ok_or(malformed(HelloField::CipherSuites))?;
        if suites != SUITE.to_be_bytes() {
            return Err(R::ClientSuites);
        }
        let compression = body.vector8().ok_or(malformed(HelloField::Compression))?;
        if compression != [0] {
            return Err(R::ClientCompression);
        }
        let mut list = Fields(body.last_vector16().ok_or(malformed(HelloField::Extensions))?);

        let mut seen: Vec<u16> = Vec::new();
        let mut extensions = Vec::new();
        let (mut versions, mut name, mut alpn) = (None, None, None);
        while !list.0.is_empty() {
            let (extension, data) = list.extension().ok_or(malformed(HelloField::Extensions))?;
            if seen.contains(&extension) {
                return Err(R::ClientExtensionRepeated { extension });
            }
            seen.push(extension);
            match extension {
                ext::SUPPORTED_VERSIONS => versions = Some(data),
                ext::SERVER_NAME => name = Some(data),
                ext::ALPN => alpn = Some(data),
                ext::EARLY_DATA => return Err(R::EarlyDataOffered),
                ext::PRE_SHARED_KEY => return Err(R::PskOffered),
                ext::ENCRYPTED_CLIENT_HELLO => return Err(R::EchOffered),
                ext::COOKIE if first => return Err(R::CookieUnasked),
                ext::COOKIE => {}
                inert if ext::INERT.contains(&inert) => {}
                extension => return Err(R::ClientExtension { extension }),
            }
            if !matches!(extension, ext::KEY_SHARE | ext::COOKIE) {
                extensions.push((extension, data.to_vec()));
            }
        }
        check_versions(versions.ok_or(R::ClientLacksTls13)?)?;
        check_server_name(name, host)?;
        if alpn.ok_or(R::AlpnMissing)? != ALPN_HTTP11 {
            return Err(R::AlpnNotHttp11);
        }
        Ok(Self { random: random.to_vec(), session_id: session_id.to_vec(), extensions })
    }
}

fn check_versions(data: &[u8]) -> Result<(), HandshakeRefusal> {
    let malformed = HandshakeRefusal::ClientHelloMalformed { at: HelloField::SupportedVersions };
    let mut fields = Fields(data);
    let versions =
        fields.vector8().filter(|list| !list.is_empty() && list.len() % 2 == 0).ok_or(malformed)?;
    if !fields.0.is_empty() {
        return Err(malformed);
    }
    if versions == TLS13.to_be_bytes() {
        return Ok(());
    }
    let has_tls13 = versions.chunks_exact(2).any(|version| version == TLS13.to_be_bytes());
    Err(if has_tls13 { HandshakeRefusal::ClientVersions } else { HandshakeRefusal::ClientLacksTls13 })
}

/// RFC 6066 §3, with exactly one name of type host_name.
fn check_server_name(data: Option<&[u8]>, host: &ServerHost) -> Result<(), HandshakeRefusal> {
    let malformed = HandshakeRefusal::ClientHelloMalformed { at: HelloField::ServerName };
    let (data, expected) = match (data, host) {
        (None, ServerHost::Address(_)) => return Ok(()),
        (Some(_), ServerHost::Address(_)) => return Err(HandshakeRefusal::SniUnexpected),
        (None, ServerHost::Name(_)) => return Err(HandshakeRefusal::SniMissing),
        (Some(data), ServerHost::Name(name)) => (data, name),
    };
    let mut list = Fields(Fields(data).last_vector16().ok_or(malformed)?);
    if list.u8() != Some(0) {
        return Err(malformed);
    }
    let name = list.last_vector16().ok_or(malformed)?;
    if name == expected.as_str().as_bytes() { Ok(()) } else { Err(HandshakeRefusal::SniMismatch) }
}

enum Answer {
    Hello,
    Retry,
}

fn parse_server_hello(fragment: &[u8], hello: &Hello) -> Result<Answer, HandshakeRefusal> {
    use HandshakeRefusal as R;
    let malformed = |at| R::ServerHelloMalformed { at };

    let (kind, body) = message(fragment).map_err(|shape| match shape {
        Shape::Fragmented => R::ServerHelloFragmented,
        Shape::Coalesced => R::ServerHelloCoalesced,
    })?;
    if kind != SERVER_HELLO {
        return Err(R::NotServerHello { got: kind });
    }
    let mut body = Fields(body);
    match body.u16() {
        Some(TLS12) => {}
        Some(older) if older < TLS12 => return Err(R::ProviderVersion { got: older }),
        _ => return Err(malformed(HelloField::LegacyVersion)),
    }
    let random = body.bytes(32).ok_or(malformed(HelloField::Random))?;
    let session_id =
        body.vector8().filter(|id| id.len() <= SESSION_ID_MAX).ok_or(malformed(HelloField::SessionId))?;
    let suite = body.u16().ok_or(malformed(HelloField::CipherSuites))?;
    let compression = body.u8().ok_or(malformed(HelloField::Compression))?;
    // A TLS 1.2 ServerHello may end here.
    let mut list = match body.0.is_empty() {
        true => Fields(&[]),
        false => Fields(body.last_vector16().ok_or(malformed(HelloField::Extensions))?),
    };
    let retry = random == RETRY_RANDOM;

    let mut seen: Vec<u16> = Vec::new();
    let mut version = None;
    let mut unwanted = None;
    while !list.0.is_empty() {
        let (extension, data) = list.extension().ok_or(malformed(HelloField::Extensions))?;
        if seen.contains(&extension) {
            return Err(R::ProviderExtensionRepeated { extension });
        }
        seen.push(extension);
        match extension {
            ext::SUPPORTED_VERSIONS => {
                let mut data = Fields(data);
                version = data.u16().filter(|_| data.0.is_empty());
                if version.is_none() {
                    return Err(malformed(HelloField::SupportedVersions));
                }
            }
            ext::KEY_SHARE => {}
            ext::COOKIE if retry => {}
            ext::PRE_SHARED_KEY => unwanted = unwanted.or(Some(R::ProviderPsk)),
            extension => unwanted = unwanted.or(Some(R::ProviderExtension { extension })),
        }
    }
    // The version first: with an older one, what else it says means something else.
    match version {
        Some(TLS13) => {}
        other => return Err(R::ProviderVersion { got: other.unwrap_or(TLS12) }),
    }
    if suite != SUITE {
        return Err(R::ProviderSuite { got: suite });
    }
    if session_id != hello.session_id {
        return Err(R::SessionIdEcho);
    }
    if compression != 0 {
        return Err(R::ProviderCompression);
    }
    match unwanted {
        Some(refusal) => Err(refusal),
        None if retry => Ok(Answer::Retry),
        None => Ok(Answer::Hello),
    }
}

enum Shape {
    Fragmented,
    Coalesced,
}

/// The one handshake message that fills a record: type and body.
fn message(fragment: &[u8]) -> Result<(u8, &[u8]), Shape> {
    let (&[kind, high, middle, low], body) = fragment.split_first_chunk::<4>().ok_or(Shape::Fragmented)?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    match body.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(Shape::Fragmented),
        std::cmp::Ordering::Greater => Err(Shape::Coalesced),
        std::cmp::Ordering::Equal => Ok((kind, body)),
    }
}

/// The presentation language's integers and vectors (RFC 8446 §3), read off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        let (&[byte], rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.bytes(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.bytes(usize::from(length))
    }

    /// A vector that ends what contains it.
    fn last_vector16(&mut self) -> Option<&'a [u8]> {
        self.vector16().filter(|_| self.0.is_empty())
    }

    fn extension(&mut self) -> Option<(u16, &'a [u8])> {
        Some((self.u16()?, self.vector16()?))
    }
}
