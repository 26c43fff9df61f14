//! A TLS provider that does what is allowed and unusual, or what is not allowed, on demand: one listener for each way to shake
//! hands ([`Handshake`]), and on each the request's body names what becomes of the answer ([`Play`]).
//!
//! The handshake, key updates and orderly records are rustls's; whatever rustls would not send is sealed here, under its keys.
//!
//! # Where each detail of TLS and HTTP/1.1 is tested
//! `e2e_tls` (tests/tests) sends every play through the SDK twice: straight to this provider, and through real nodes. Its tests
//! are `answers_whole_and_cut` and `handshakes_of_all_kinds`. What is beside them here tests the same further down: in
//! `quorate-splitkey` (S), `quorate-client` (C), the relay of `quorated` (R), `quorate-cluster` (P), `e2e_keys` (K).
//!
//! | detail | play or handshake | further down |
//! |---|---|---|
//! | session tickets | [`Handshake::Tickets`], [`Play::TicketBetween`]; nothing is ever resumed | S `padding_tickets_and_empty_records_are_passed_over` |
//! | alerts | [`Play::AlertFirst`], [`Play::AlertAmid`], [`Play::UserCanceled`] | S `endings_are_told_apart`, `alerts_in_place_of_server_hello_are_told_apart` |
//! | close_notify | [`Play::Close`], [`Play::BareClose`]; none needed: [`Play::BareChunked`], [`Play::BareLength`] | S `a_cut_answer_is_not_an_end`; C `a_cut_is_never_an_end` |
//! | record sizes | [`Play::Drips`], [`Play::Padded`], [`Play::EmptyRecords`], [`Play::PlaintextTooLong`], [`Play::RecordTooLong`], [`Handshake::SmallRecords`] | S `sealing_bounds`, `headers_out_of_bounds_are_refused`, `each_bad_record_has_its_own_error`, `each_client_hello_mutation_has_its_own_refusal` (record_size_limit is not offered) |
//! | server's KeyUpdate | [`Play::KeyUpdates`] | S `a_key_update_moves_to_the_next_generation_only` |
//! | hello retry | [`Handshake::Retries`] | S `a_retry_is_checked_alike`, `a_request_and_its_answer_cross_after_a_retry`, `a_keyed_request_crosses_after_a_retry` |
//! | compatibility records | every connection has one each way; [`Play::LateCompatibility`] | S `exactly_one_finished_and_at_most_one_ccs`, `what_rustls_really_sends` |
//! | no suite, no HTTP/1.1 | [`Handshake::OnlyAes`], [`Handshake::OnlyHttp2`] | S `what_a_provider_lacks_is_named`; C `what_is_wrong_with_a_provider_is_named`; K `a_provider_without_the_suite`; P `wrong_certificate_and_wrong_suite_are_seen_as_such` |
//! | client certificates | [`Handshake::WantsCertificate`], [`Play::CertificateRequest`] | S `clients_set_up_otherwise_are_refused` |
//! | certificate failure | [`Handshake::OtherCertificate`] | C `another_certificate_than_the_routes_is_refused`; S `a_client_that_distrusts_the_provider_gives_up` |
//! | early answers | [`Play::EarlyReads`], [`Play::EarlyStops`] | R `a_large_body_flows_through_a_bounded_window_and_the_client_may_half_close` |
//! | framings | [`Play::Chunked`], [`Play::Length`], [`Play::Close`] | C `every_framing_at_every_split_point`, `refuses_what_has_two_readings` |
//! | truncation | [`Play::CutChunked`], [`Play::CutLength`], [`Play::CutHead`], [`Play::Nothing`], [`Play::BareClose`], [`Play::TornChunked`], [`Play::TornLength`], [`Play::TornClose`], [`Play::TornRecord`], [`Play::ResetAmid`] | C `a_cut_answer_is_truncated_never_complete`, `a_cut_is_never_an_end`; R `records_are_followed_by_length_only` |
//! | forged records | [`Play::Forged`], [`Play::Repeated`], [`Play::SecondFinished`] | S `every_altered_bit_is_noticed`, `a_skipped_sequence_number_is_missed_by_the_reader` |
use anyhow::{Context as _, bail};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ConnectionTrafficSecrets, HandshakeKind, RootCertStore, ServerConfig};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How the provider shakes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// As rustls does.
    Plain,
    /// Takes only a group that clients send no share for.
    Retries,
    /// Eight session tickets, at once.
    Tickets,
    /// Records of 256 bytes.
    SmallRecords,
    /// Without TLS_CHACHA20_POLY1305_SHA256.
    OnlyAes,
    /// Without HTTP/1.1.
    OnlyHttp2,
    /// Asks for a client certificate, and would do without.
    WantsCertificate,
    /// With a certificate that the route's CA did not sign.
    OtherCertificate,
}

impl Handshake {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::Retries,
        Self::Tickets,
        Self::SmallRecords,
        Self::OnlyAes,
        Self::OnlyHttp2,
        Self::WantsCertificate,
        Self::OtherCertificate,
    ];

    /// A name for a route.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Play {
    /// Whole: chunked.
    Chunked,
    /// Whole: with a content-length.
    Length,
    /// Whole: as long as the connection.
    Close,
    /// Whole by its chunks, without close_notify.
    BareChunked,
    /// Whole by its length, without close_notify.
    BareLength,
    /// One byte a record.
    Drips,
    /// New keys before the head, amid the body and before its end, with a request for the client's.
    KeyUpdates,
    /// A ticket between two records of the body.
    TicketBetween,
    /// Empty records between others.
    EmptyRecords,
    /// Records padded with zeros.
    Padded,
    /// The alert that announces close_notify.
    UserCanceled,
    /// 413 before the body's end, which is read on.
    EarlyReads,
    /// 413 before the body's end, and nothing more is read.
    EarlyStops,
    /// close_notify amid chunks.
    CutChunked,
    /// close_notify before the length is reached.
    CutLength,
    /// close_notify amid the head.
    CutHead,
    /// close_notify in place of an answer.
    Nothing,
    /// A body that only the close delimits, without close_notify.
    BareClose,
    /// TCP ends amid chunks.
    TornChunked,
    /// TCP ends before the length is reached.
    TornLength,
    /// TCP ends amid a body that only the close delimits.
    TornClose,
    /// TCP ends amid a record.
    TornRecord,
    /// TCP is reset amid the body.
    ResetAmid,
    /// A fatal alert in place of an answer.
    AlertFirst,
    /// A fatal alert amid a body that only the close delimits.
    AlertAmid,
    /// A record with more plaintext than is allowed.
    PlaintextTooLong,
    /// A record that says it is longer than any may be.
    RecordTooLong,
    /// A record with one bit flipped.
    Forged,
    /// A record that comes twice.
    Repeated,
    /// A compatibility record after the handshake.
    LateCompatibility,
    /// A second Finished.
    SecondFinished,
    /// A request for a certificate after the handshake.
    CertificateRequest,
}

impl Play {
    /// All of them.
    pub const ALL: [Self; 32] = [
        Self::Chunked,
        Self::Length,
        Self::Close,
        Self::BareChunked,
        Self::BareLength,
        Self::Drips,
        Self::KeyUpdates,
        Self::TicketBetween,
        Self::EmptyRecords,
        Self::Padded,
        Self::UserCanceled,
        Self::EarlyReads,
        Self::EarlyStops,
        Self::CutChunked,
        Self::CutLength,
        Self::CutHead,
        Self::Nothing,
        Self::BareClose,
        Self::TornChunked,
        Self::TornLength,
        Self::TornClose,
        Self::TornRecord,
        Self::ResetAmid,
        Self::AlertFirst,
        Self::AlertAmid,
        Self::PlaintextTooLong,
        Self::RecordTooLong,
        Self::Forged,
        Self::Repeated,
        Self::LateCompatibility,
        Self::SecondFinished,
        Self::CertificateRequest,
    ];

    /// The body of a request for it.
    pub fn request(self) -> Vec<u8> {
        let mut body = format!("{self:?}\n").into_bytes();
        if matches!(self, Self::EarlyReads | Self::EarlyStops) {
            // More than all buffers on the way hold, so that the answer comes before its end.
            body.resize(EARLY_BODY_BYTES, b' ');
        }
        body
    }

    fn asked(body: &[u8]) -> Option<Self> {
        let name = body.split(|b| *b == b'\n').next()?;
        Self::ALL.into_iter().find(|play| format!("{play:?}").as_bytes() == name)
    }
}

/// What a whole answer holds: several records.
pub fn content() -> Vec<u8> {
    (0..50_000u32).map(|n| (n % 251) as u8).collect()
}

/// The answer of [`Play::EarlyReads`] and [`Play::EarlyStops`].
pub const TOO_LARGE: &str = r#"{"error":{"message":"the body is too large","type":"invalid_request_error"}}"#;
/// What a fatal alert says: internal_error.
pub const ALERT: u8 = 80;

const EARLY_BODY_BYTES: usize = 12 << 20;
/// A record's content types (RFC 8446 §5.1).
const ALERT_TYPE: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// Longest wait for a client that should hang up.
const LINGERS: Duration = Duration::from_secs(20);

/// A listener.
pub struct Contrary {
    /// Its port on loopback.
    pub port: u16,
    /// What clients should trust.
    pub ca_pem: String,
    seen: Arc<Mutex<Vec<HandshakeKind>>>,
}

impl Contrary {
    /// Starts to listen; ends with the runtime.
    pub async fn start(handshake: Handshake) -> anyhow::Result<Self> {
        let (config, ca_pem) = config(handshake)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kinds = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, kinds) = (acceptor.clone(), Arc::clone(&kinds));
                tokio::spawn(async move {
                    tcp.set_nodelay(true)?;
                    let tls = acceptor.accept(tcp).await?;
                    let kind = tls.get_ref().1.handshake_kind().context("no handshake")?;
                    kinds.lock().unwrap_or_else(PoisonError::into_inner).push(kind);
                    serve(tls).await
                });
            }
        });
        Ok(Self { port, ca_pem, seen })
    }

    /// How the handshakes went that were complete.
    pub fn handshakes(&self) -> Vec<HandshakeKind> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn config(handshake: Handshake) -> anyhow::Result<(ServerConfig, String)> {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let trusted = if handshake == Handshake::OtherCertificate {
        rcgen::generate_simple_self_signed(["localhost".to_owned()])?.cert.pem()
    } else {
        own.cert.pem()
    };
    let mut crypto = default_provider();
    match handshake {
        Handshake::Retries => crypto.kx_groups = vec![kx_group::SECP384R1],
        // A share of X25519MLKEM768 makes ServerHello longer than such a record, and one message is one record.
        Handshake::SmallRecords => crypto.kx_groups = vec![kx_group::X25519],
        Handshake::OnlyAes => crypto.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
        _ => {}
    }
    let crypto = Arc::new(crypto);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let certificate: CertificateDer<'static> = own.cert.der().clone();
    let builder = if handshake == Handshake::WantsCertificate {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto);
        builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let mut config = builder.with_single_cert(vec![certificate], key)?;
    let protocol: &[u8] = if handshake == Handshake::OnlyHttp2 { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![protocol.to_vec()];
    config.enable_secret_extraction = true;
    match handshake {
        Handshake::Tickets => config.send_tls13_tickets = 8,
        Handshake::SmallRecords => config.max_fragment_size = Some(256),
        _ => {}
    }
    Ok((config, trusted))
}

/// The request's head, and what of its body came with it.
struct Asked {
    play: Play,
    /// Bytes of the body that have not come.
    left: usize,
}

async fn asked(tls: &mut TlsStream<TcpStream>) -> anyhow::Result<Asked> {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = tls.read(&mut piece).await?;
        if count == 0 {
            bail!("the client left");
        }
        request.extend_from_slice(piece.get(..count).unwrap_or_default());
        let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let (head, body) = request.split_at(end + 4);
        let Some(play) = Play::asked(body).filter(|_| body.contains(&b'\n')) else { continue };
        let head = String::from_utf8_lossy(head);
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).context("no length")?;
        return Ok(Asked { play, left: length.parse::<usize>()?.saturating_sub(body.len()) });
    }
}

async fn read_on(tls: &mut TlsStream<TcpStream>, mut left: usize) -> anyhow::Result<()> {
    let mut piece = vec![0; 64 * 1024];
    while left > 0 {
        match tls.read(&mut piece).await? {
            0 => bail!("the client left"),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// A head, and the body as that head frames it.
fn answer(framing: Play, body: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n";
    let (fields, body) = match framing {
        Play::Length => (format!("content-length: {}\r\n", body.len()), body.to_vec()),
        Play::Close => (String::new(), body.to_vec()),
        _ => {
            let chunk = |c: &[u8]| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat();
            let chunks: Vec<u8> = body.chunks(7_000).flat_map(chunk).collect();
            ("transfer-encoding: chunked\r\n".to_owned(), [&chunks[..], b"0\r\n\r\n"].concat())
        }
    };
    (format!("{head}{fields}\r\n").into_bytes(), body)
}

async fn serve(mut tls: TlsStream<TcpStream>) -> anyhow::Result<()> {
    let Asked { play, left } = asked(&mut tls).await?;
    if !matches!(play, Play::EarlyReads | Play::EarlyStops) {
        read_on(&mut tls, left).await?;
    }
    let framing = match play {
        Play::Length | Play::BareLength | Play::CutLength | Play::TornLength => Play::Length,
        Play::Close | Play::BareClose | Play::TornClose | Play::AlertAmid | Play::UserCanceled => Play::Close,
        _ => Play::Chunked,
    };
    let content = content();
    let (head, body) = answer(framing, &content);
    let half = body.split_at(body.len() / 2);
    match play {
        Play::Chunked | Play::Length | Play::Close => {
            tls.write_all(&[head, body].concat()).await?;
            tls.shutdown().await?;
        }
        Play::Drips => {
            let (head, body) = answer(Play::Chunked, content.get(..300).unwrap_or_default());
            for byte in [head, body].concat() {
                tls.write_all(&[byte]).await?;
                tls.flush().await?;
            }
            tls.shutdown().await?;
        }
        Play::KeyUpdates => {
            let end = half.1.split_at(half.1.len() - 5);
            for piece in [&head[..], half.0, end.0, end.1] {
                tls.get_mut().1.refresh_traffic_keys()?;
                tls.write_all(piece).await?;
                tls.flush().await?;
            }
            tls.shutdown().await?;
        }
        Play::EarlyReads | Play::EarlyStops => {
            let head = format!("HTTP/1.1 413 Too Large\r\ncontent-length: {}\r\n\r\n", TOO_LARGE.len());
            tls.write_all(&[head.as_bytes(), TOO_LARGE.as_bytes()].concat()).await?;
            tls.shutdown().await?;
            if play == Play::EarlyReads {
                let _client_leaves = read_on(&mut tls, left).await;
            } else {
                // Until whoever carries it has hung up: closing with bytes unread would be a reset.
                let _gone = tokio::time::timeout(LINGERS, hung_up(tls.get_ref().0)).await;
            }
        }
        Play::CutChunked | Play::CutLength => {
            tls.write_all(&[&head, half.0].concat()).await?;
            tls.shutdown().await?;
        }
        Play::CutHead => {
            tls.write_all(head.get(..20).unwrap_or_default()).await?;
            tls.shutdown().await?;
        }
        Play::Nothing => tls.shutdown().await?,
        Play::BareChunked | Play::BareLength | Play::BareClose => {
            tls.write_all(&[head, body].concat()).await?;
            tls.flush().await?;
        }
        Play::TornChunked | Play::TornLength | Play::TornClose => {
            tls.write_all(&[&head, half.0].concat()).await?;
            tls.flush().await?;
        }
        Play::ResetAmid => {
            tls.write_all(&[&head, half.0].concat()).await?;
            tls.flush().await?;
            tls.get_ref().0.set_zero_linger()?;
        }
        _ => {
            tls.flush().await?;
            return Sealed::of(tls)?.play(play, &head, half).await;
        }
    }
    Ok(())
}

/// Waits until the other side closed or reset the connection, and reads nothing of what it sends before.
async fn hung_up(tcp: &TcpStream) -> anyhow::Result<()> {
    loop {
        let ready = tcp.ready(tokio::io::Interest::READABLE | tokio::io::Interest::ERROR).await?;
        if ready.is_read_closed() || ready.is_error() || tcp.take_error()?.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The sending half of a connection whose records are sealed here.
struct Sealed {
    tcp: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Sealed {
    fn of(tls: TlsStream<TcpStream>) -> anyhow::Result<Self> {
        let (tcp, connection) = tls.into_inner();
        let (sequence, secrets) = connection.dangerous_extract_secrets()?.tx;
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else { bail!("another suite") };
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).ok().context("no key")?;
        Ok(Self { tcp, key: LessSafeKey::new(key), iv: iv.as_ref().try_into()?, sequence })
    }

    /// RFC 8446 §5.2 and §5.3, for any content and any length.
    fn record(&mut self, content_type: u8, content: &[u8], padding: usize) -> anyhow::Result<Vec<u8>> {
        let mut inner = [content, &[content_type], &vec![0; padding]].concat();
        let length = u16::try_from(inner.len() + 16)?.to_be_bytes();
        let header = [&[APPLICATION_DATA, 3, 3][..], &length].concat();
        let mut nonce = self.iv;
        for (byte, own) in nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()) {
            *byte ^= own;
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(&header), &mut inner).ok().context("no seal")?;
        self.sequence += 1;
        Ok([header, inner].concat())
    }

    fn data(&mut self, content: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut records = Vec::new();
        for piece in content.chunks(16 * 1024) {
            records.extend(self.record(APPLICATION_DATA, piece, 0)?);
        }
        Ok(records)
    }

    async fn play(mut self, play: Play, head: &[u8], half: (&[u8], &[u8])) -> anyhow::Result<()> {
        let before = match play {
            Play::AlertFirst => Vec::new(),
            _ => self.data(&[head, half.0].concat())?,
        };
        let between = match play {
            Play::TicketBetween => {
                // lifetime, age_add, nonce, ticket, extensions
                let ticket =
                    [&[0, 0, 1, 0][..], &[1, 2, 3, 4], &[1, 9], &[0, 32], &[7; 32], &[0, 0]].concat();
                let message = [&[4, 0, 0, u8::try_from(ticket.len())?][..], &ticket].concat();
                // In two records, as a message may be.
                let (one, two) = message.split_at(9);
                [self.record(HANDSHAKE, one, 0)?, self.record(HANDSHAKE, two, 0)?].concat()
            }
            Play::EmptyRecords => {
                let mut empty = Vec::new();
                for _ in 0..5 {
                    empty.extend(self.record(APPLICATION_DATA, b"", 0)?);
                }
                empty
            }
            Play::Padded => self.record(APPLICATION_DATA, b"", 1_000)?,
            Play::AlertFirst | Play::AlertAmid => self.record(ALERT_TYPE, &[2, ALERT], 0)?,
            Play::PlaintextTooLong => self.record(APPLICATION_DATA, &[b'x'; 16 * 1024 + 1], 0)?,
            Play::RecordTooLong => [&[APPLICATION_DATA, 3, 3, 0x41, 0x01][..], &[0; 600]].concat(),
            Play::Forged => {
                let mut record = self.data(half.1)?;
                if let Some(byte) = record.get_mut(30) {
                    *byte ^= 1;
                }
                record
            }
            Play::Repeated => {
                let record = self.data(half.1.get(..100).unwrap_or_default())?;
                [record.clone(), record].concat()
            }
            Play::LateCompatibility => vec![20, 3, 3, 0, 1, 1],
            Play::SecondFinished => self.record(HANDSHAKE, &[&[20, 0, 0, 32][..], &[5; 32]].concat(), 0)?,
            Play::CertificateRequest => {
                // An empty context, and no extension.
                self.record(HANDSHAKE, &[13, 0, 0, 3, 0, 0, 0], 0)?
            }
            _ => Vec::new(),
        };
        let rest = match play {
            Play::Padded => {
                let (one, two) = half.1.split_at(1_000);
                [self.record(APPLICATION_DATA, one, 5_000)?, self.data(two)?].concat()
            }
            _ => self.data(half.1)?,
        };
        let mut all = [before, between, rest].concat();
        match play {
            Play::TornRecord => all.truncate(all.len() - 1_000),
            Play::UserCanceled => all.extend(self.record(ALERT_TYPE, &[1, 90], 0)?),
            _ => {}
        }
        if play != Play::TornRecord {
            all.extend(self.record(ALERT_TYPE, &[1, 0], 0)?);
        }
        self.tcp.write_all(&all).await?;
        self.tcp.shutdown().await?;
        // Closing with bytes unread would be a reset.
        let mut rest = Vec::new();
        let _gone = tokio::time::timeout(LINGERS, self.tcp.read_to_end(&mut rest)).await;
        Ok(())
    }
}
