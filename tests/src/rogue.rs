//! A client whose host is owned: it seals what it likes under any sequence number, says any hello, and puts bytes of its own
//! wherever it can. Beside it what an honest client does, made of the same parts: an attack differs from that in one place.
use crate::raw::{RawClient, Tunnel, mesh, now, random_id};
use anyhow::{Context as _, ensure};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use bytes::Bytes;
use quorate_client::head_template;
use quorate_core::command::{Authorise, ClientCommand, Ended, OpenPool, Report};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{ConnectionId, PolicyVersion, RequestId};
use quorate_core::policy::RouteDocument;
use quorate_proto::v1::{self, tunnel_down, tunnel_up};
use quorate_splitkey::client::{KEY_LOG_CLIENT, KEY_LOG_SERVER};
use quorate_splitkey::framing::{HeadRecords, HeadShape};
use quorate_splitkey::head::{Head, Header, Method};
use quorate_splitkey::record::{Event, RecordOpener, RecordReader, SECRET_LEN, TrafficSecret};
use quorate_transport::Connected;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CipherSuite, ClientConfig, DigitallySignedStruct, KeyLog, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};

/// Inner content types.
pub mod inner {
    /// Application data.
    pub const DATA: u8 = 23;
    /// A handshake message.
    pub const HANDSHAKE: u8 = 22;
    /// An alert.
    pub const ALERT: u8 = 21;
}

/// KeyUpdate, update not requested (RFC 8446 §4.6.3).
pub const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// close_notify.
pub const CLOSE_NOTIFY: [u8; 2] = [1, 0];

#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Seals records of one traffic secret, under whatever sequence number.
pub struct Sealer {
    key: LessSafeKey,
    iv: [u8; 12],
}

impl Sealer {
    /// RFC 8446 §7.3.
    pub fn new(secret: &[u8; SECRET_LEN]) -> anyhow::Result<Self> {
        let prk = Prk::new_less_safe(HKDF_SHA256, secret);
        let expand = |label: &str, out: &mut [u8]| {
            let length = u16::try_from(out.len())?.to_be_bytes();
            let label = [&[u8::try_from(label.len() + 6)?][..], b"tls13 ", label.as_bytes(), &[0]].concat();
            let info: &[&[u8]] = &[&length, &label];
            let okm = prk.expand(info, Length(out.len())).ok().context("HKDF")?;
            okm.fill(out).ok().context("HKDF")
        };
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        expand("key", &mut key)?;
        expand("iv", &mut iv)?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).ok().context("not a key")?;
        Ok(Self { key: LessSafeKey::new(key), iv })
    }

    /// A record with this content and inner type, and so much padding.
    pub fn seal(&self, sequence: u64, content: &[u8], inner: u8, padding: usize) -> anyhow::Result<Vec<u8>> {
        let mut iv = self.iv;
        for (place, byte) in iv.iter_mut().skip(4).zip(sequence.to_be_bytes()) {
            *place ^= byte;
        }
        let mut sealed = [content, &[inner], &vec![0; padding]].concat();
        let [high, low] = u16::try_from(sealed.len() + 16)?.to_be_bytes();
        let header = [23, 3, 3, high, low];
        let nonce = Nonce::assume_unique_for_key(iv);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).ok().context("sealing")?;
        Ok([&header[..], &sealed].concat())
    }

    /// Application data.
    pub fn data(&self, sequence: u64, content: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.seal(sequence, content, inner::DATA, 0)
    }
}

/// Takes the secrets of a connection.
#[derive(Debug, Default)]
pub struct Secrets(Mutex<HashMap<String, [u8; SECRET_LEN]>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if let Ok(secret) = secret.try_into() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(label.to_owned(), secret);
        }
    }
}

impl Secrets {
    fn get(&self, label: &str) -> anyhow::Result<[u8; SECRET_LEN]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(label).copied().context("no secret yet")
    }
}

/// Believes any certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// How a client says hello.
pub struct Hello {
    /// The server name.
    pub name: String,
    /// Sent before the handshake is over.
    pub early: Vec<u8>,
    config: Arc<ClientConfig>,
    secrets: Arc<Secrets>,
}

impl Hello {
    /// An honest client's for a route; `checks` says whether it looks at the certificate.
    pub fn new(route: &RouteDocument, checks: bool) -> anyhow::Result<Self> {
        let default = rustls::crypto::aws_lc_rs::default_provider();
        let suites = default.cipher_suites.iter().copied();
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: suites
                .filter(|s| s.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)
                .collect(),
            ..default
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(route.ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = match checks {
            true => config.with_root_certificates(roots).with_no_client_auth(),
            false => {
                config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth()
            }
        };
        let secrets = Arc::new(Secrets::default());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.key_log = secrets.clone();
        Ok(Self { name: route.host.clone(), early: Vec::new(), config: Arc::new(config), secrets })
    }

    /// The same, resuming a session that it gets from the provider without the mesh, with this as early data.
    pub fn with_early_data(mut self, port: u16, early: &[u8]) -> anyhow::Result<Self> {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = rustls::client::Resumption::in_memory_sessions(8);
        config.enable_early_data = true;
        self.config = Arc::new(config);
        let mut tls = self.connection()?;
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())?;
        self.early = early.to_vec();
        Ok(self)
    }

    fn connection(&self) -> anyhow::Result<rustls::ClientConnection> {
        let name = ServerName::try_from(self.name.clone())?;
        let mut tls = rustls::ClientConnection::new(Arc::clone(&self.config), name)?;
        if !self.early.is_empty() {
            tls.early_data().context("no session that takes early data")?.write_all(&self.early)?;
        }
        Ok(tls)
    }
}

/// Where a pool's connections go.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// The pool.
    pub pool: &'a OpenPool,
    /// The route.
    pub route: &'a RouteDocument,
    /// Its relay.
    pub relay: &'a Connected,
    /// Its keyer.
    pub keyer: &'a Connected,
}

impl Way<'_> {
    /// Registers a secret for a connection; the code of the refusal, if it is one.
    pub async fn register(
        &self,
        connection: ConnectionId,
        secret: &[u8; SECRET_LEN],
    ) -> anyhow::Result<Option<String>> {
        let request = v1::RegisterRequest {
            pool: Bytes::copy_from_slice(&self.pool.pool.0),
            connection: Bytes::copy_from_slice(&connection.0),
            traffic_secret: Bytes::copy_from_slice(secret),
        };
        match mesh(self.keyer).register(request).await {
            Ok(_) => Ok(None),
            Err(status) => Ok(Some(crate::raw::code_of(&status).context("not a refusal")?)),
        }
    }

    /// The head of an honest request, in its two parts.
    pub fn parts(&self, content_length: u64) -> anyhow::Result<(String, String)> {
        let headers = vec![Header { name: "content-type".into(), value: "application/json".into() }];
        let head =
            Head { method: Method::Post, path: "/v1/chat/completions".into(), headers, content_length };
        let parts = head_template(self.route)?.serialise(&head)?;
        let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
        Ok((text(parts.one()), text(parts.two().context("the route has no key")?)))
    }
}

/// What ended a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The code of a refusal, or the reason of a close.
    pub code: String,
    /// What the refusal says.
    pub message: String,
    /// Whether the relay refused.
    pub refused: bool,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.message.as_str() {
            "" => f.write_str(&self.code),
            message => write!(f, "{}: {message}", self.code),
        }
    }
}

/// A connection through the mesh whose handshake is done.
pub struct Link {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Its name.
    pub connection: ConnectionId,
    /// The client's traffic secret.
    pub client: [u8; SECRET_LEN],
    opener: RecordOpener,
}

/// What became of a request.
#[derive(Debug, Default)]
pub struct Fate {
    /// Whether the relay said that it is authorised, and released it.
    pub released: bool,
    /// What the provider said.
    pub answer: Vec<u8>,
    /// How the provider's stream failed, where it did.
    pub failed: Option<String>,
    /// What the relay said last.
    pub ending: Option<Ending>,
}

impl Fate {
    /// The provider's status.
    pub fn status(&self) -> Option<u16> {
        let text = String::from_utf8_lossy(&self.answer);
        text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    /// For people.
    pub fn show(&self) -> String {
        let ending = self.ending.as_ref().map_or("nothing".to_owned(), Ending::to_string);
        match (self.status(), &self.failed) {
            (Some(status), _) => format!("{status}, {ending}"),
            (None, Some(failed)) => format!("{failed}, {ending}"),
            (None, None) => ending,
        }
    }

    /// What an honest client reports of it.
    pub fn report(&self, request: RequestId) -> ClientCommand {
        let status = self.status();
        let ended = if status.is_some() { Ended::Complete } else { Ended::Truncated };
        ClientCommand::Report(vec![Report {
            request,
            status: status.unwrap_or(0),
            ended,
            tokens_in: 0,
            tokens_cached: 0,
            tokens_out: 0,
            error_form: status == Some(401),
            same_as: None,
        }])
    }
}

async fn ending(tunnel: &mut Tunnel) -> anyhow::Result<Ending> {
    loop {
        if let Some(ending) = said(tunnel.next().await?)? {
            return Ok(ending);
        }
    }
}

/// The last word, if this is it.
fn said(frame: Option<tunnel_down::Frame>) -> anyhow::Result<Option<Ending>> {
    Ok(match frame.context("the tunnel ended without a word")? {
        tunnel_down::Frame::Refused(r) => Some(Ending { code: r.code, message: r.message, refused: true }),
        tunnel_down::Frame::Closed(c) => {
            Some(Ending { code: c.reason, message: String::new(), refused: false })
        }
        _ => None,
    })
}

impl Link {
    /// Opens a connection. `shadow` is given the client's secret and returns what goes out right behind Finished, in one
    /// frame with it. An inner error is the relay's refusal.
    pub async fn open(
        way: Way<'_>,
        hello: &Hello,
        shadow: impl Fn(&[u8; SECRET_LEN]) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Result<Self, Ending>> {
        let connection = ConnectionId(random_id()?);
        let mut tunnel = Tunnel::call(way.relay).await?;
        tunnel.open(&way.pool.pool.0, &connection.0).await;
        let first = tunnel.next().await?;
        if !matches!(first, Some(tunnel_down::Frame::Opened(_))) {
            return Ok(Err(said(first)?.context("not opened")?));
        }
        let mut tls = hello.connection()?;
        let mut reader = RecordReader::new();
        // After the handshake the provider may speak at once: tickets.
        let mut rest = Vec::new();
        loop {
            let mut out = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut out)?;
            }
            let done = !tls.is_handshaking();
            if done {
                out.extend(shadow(&hello.secrets.get(KEY_LOG_CLIENT)?)?);
            }
            if !out.is_empty() {
                tunnel.send(tunnel_up::Frame::Data(out.into())).await;
            }
            if done {
                break;
            }
            let frame = tunnel.next().await?;
            let Some(tunnel_down::Frame::Data(bytes)) = frame else {
                return Ok(Err(said(frame)?.context("no handshake")?));
            };
            let mut input = bytes.as_ref();
            while tls.is_handshaking() {
                let Some(record) = reader.read(&mut input)? else { break };
                let mut bytes = Vec::new();
                record.write_to(&mut bytes);
                tls.read_tls(&mut bytes.as_slice())?;
                tls.process_new_packets()?;
            }
            rest = input.to_vec();
        }
        let client = hello.secrets.get(KEY_LOG_CLIENT)?;
        let mut opener = RecordOpener::new(TrafficSecret::new(hello.secrets.get(KEY_LOG_SERVER)?));
        let mut rest = rest.as_slice();
        while opener.read(&mut rest)?.is_some() {}
        Ok(Ok(Self { tunnel, connection, client, opener }))
    }

    /// An honest one, registered.
    pub async fn honest(way: Way<'_>) -> anyhow::Result<Self> {
        let link = Self::open(way, &Hello::new(way.route, true)?, |_| Ok(Vec::new())).await?;
        let link = link.map_err(|ending| anyhow::anyhow!("the honest twin: {ending}"))?;
        let refused = way.register(link.connection, &link.client).await?;
        ensure!(refused.is_none(), "the honest twin: {refused:?}");
        Ok(link)
    }

    /// The authorisation of a request with this head.
    pub fn authorise(
        &self,
        way: Way<'_>,
        policy: PolicyVersion,
        head: &[u8],
        body_bytes: u64,
    ) -> anyhow::Result<Authorise> {
        let digest = HeadRecords::from_bytes(head, HeadShape::AroundHole).map(|records| records.digest().0);
        let pool = way.pool;
        Ok(Authorise {
            request: RequestId(random_id()?),
            pool: pool.pool,
            connection: self.connection,
            route: pool.route.clone(),
            relay: pool.relay,
            keyer: pool.keyer,
            share_epoch: way.route.credential.as_ref().map_or(0, |c| c.share_epoch),
            policy,
            head_digest: Hash(digest.unwrap_or_default()),
            body_digest: Hash([0; 32]),
            body_bytes_max: body_bytes,
            response_bytes_max: 1 << 20,
            duration_ms_max: 60_000,
            price: None,
            tokens_in_max: u64::MAX,
            tokens_out_max: u64::MAX,
            expires: now().plus_ms(60_000),
        })
    }

    /// Sends a request and body records, and reads to the end of the tunnel.
    pub async fn ask(
        &mut self,
        client: &RawClient,
        authorise: &Authorise,
        head: &[u8],
        body: &[u8],
    ) -> anyhow::Result<Fate> {
        let command = encode(&client.sign(ClientCommand::Authorise(authorise.clone())));
        let request = v1::tunnel_up::Request { command: command.into(), head: head.to_vec().into() };
        self.tunnel.send(tunnel_up::Frame::Request(request)).await;
        if !body.is_empty() {
            self.tunnel.send(tunnel_up::Frame::Data(body.to_vec().into())).await;
        }
        let mut fate = Fate::default();
        loop {
            let frame = match self.tunnel.next().await {
                Ok(frame) => frame,
                // A provider that waits for more says nothing.
                Err(error) if error.to_string().contains("hangs") => return Ok(fate),
                Err(error) => return Err(error),
            };
            match frame {
                Some(tunnel_down::Frame::Data(bytes)) => self.take(&bytes, &mut fate),
                Some(tunnel_down::Frame::Authorised(_)) => fate.released = true,
                frame => {
                    if let Some(ending) = said(frame)? {
                        fate.ending = Some(ending);
                        return Ok(fate);
                    }
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8], fate: &mut Fate) {
        let mut input = bytes;
        loop {
            match self.opener.read(&mut input) {
                Ok(Some(Event::AppData(bytes))) => fate.answer.extend(bytes),
                Ok(Some(Event::Alert(code))) => fate.failed = Some(format!("the provider's alert {code}")),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    fate.failed.get_or_insert_with(|| error.to_string());
                    return;
                }
            }
        }
    }

    /// What the relay says last, if it ends the tunnel.
    pub async fn ending(&mut self) -> anyhow::Result<Ending> {
        ending(&mut self.tunnel).await
    }
}
