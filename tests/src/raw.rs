//! A client without the SDK's manners: it signs what it is told to, sends what it is told to, and says what came back.
use anyhow::{Context as _, bail};
use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use prost::Message as _;
use quorate_client::{Directory, TrustFile, head_template};
use quorate_core::command::{Authorise, ClientCommand, ClientSigned, Command, OpenPool};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{ConnectionId, NodeId, PoolId, RequestId, RouteId, Timestamp};
use quorate_core::leaf::Outcome;
use quorate_core::policy::RouteDocument;
use quorate_core::token::SignedToken;
use quorate_proto::REFUSAL_METADATA;
use quorate_proto::v1::{self, mesh_client::MeshClient, tunnel_down, tunnel_up};
use quorate_splitkey::client::{BodySealer, ClientConnection, KEY_LOG_CLIENT, KEY_LOG_SERVER};
use quorate_splitkey::head::{Head, Header, Method};
use quorate_splitkey::record::{RecordReader, TrafficSecret};
use quorate_transport::{Connected, Expect, Identity};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{CipherSuite, KeyLog};
use rustls_pki_types::pem::PemObject as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// For anything on loopback.
const PATIENCE: Duration = Duration::from_secs(10);

/// This machine's time.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Sixteen random bytes.
pub fn random_id() -> anyhow::Result<[u8; 16]> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).ok().context("no randomness")?;
    Ok(id)
}

/// The stable code of a refusal, `None` where a status bears none.
pub fn code_of(status: &Status) -> Option<String> {
    let detail = status.metadata().get_bin(REFUSAL_METADATA)?.to_bytes().ok()?;
    v1::Refused::decode(detail).ok().map(|refused| refused.code)
}

/// How a call ended: the outcome, or the code of the refusal, wherever it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done; and the leaf where there is one.
    Done(Outcome, Option<u64>),
    /// Refused, by the state machine or by the node before it: the stable code.
    Refused(String),
    /// A gRPC status without a refusal: this layer's own.
    Status(Code),
}

impl Verdict {
    /// A refusal with this code.
    pub fn refused(code: &str) -> Self {
        Self::Refused(code.to_owned())
    }
}

/// A connection to a node.
pub async fn connect(address: &str, identity: &Identity) -> anyhow::Result<Connected> {
    let address = address.parse()?;
    Ok(quorate_transport::connect(&address, identity, Expect::danger_any_key(), PATIENCE).await?)
}

/// The service, with no limit on this side.
pub fn mesh(connected: &Connected) -> MeshClient<tonic::transport::Channel> {
    MeshClient::new(connected.channel())
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(64 << 20)
}

/// Submits bytes as a command.
pub async fn submit_bytes(
    connected: &Connected,
    command: Vec<u8>,
    blobs: Vec<Bytes>,
) -> anyhow::Result<Verdict> {
    let request = v1::SubmitRequest { command: command.into(), blobs };
    match mesh(connected).submit(request).await {
        Ok(reply) => {
            let reply = reply.into_inner();
            Ok(match borsh::from_slice(&reply.outcome)? {
                Outcome::Refused(refusal) => Verdict::Refused(refusal.code().to_owned()),
                outcome => Verdict::Done(outcome, reply.leaf_index),
            })
        }
        Err(status) => Ok(code_of(&status).map_or(Verdict::Status(status.code()), Verdict::Refused)),
    }
}

/// A client's key and name.
pub struct RawClient {
    /// Its trust file.
    pub trust: TrustFile,
    /// Its TLS identity.
    pub identity: Identity,
    pair: Ed25519KeyPair,
}

impl RawClient {
    /// Of a trust file.
    pub fn new(trust: TrustFile) -> anyhow::Result<Self> {
        let identity = Identity::load(&trust.key)?;
        let der = PrivatePkcs8KeyDer::from_pem_file(&trust.key)?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok().context("not a key")?;
        Ok(Self { trust, identity, pair })
    }

    /// Signs anything; as the token's holder, where the trust file has one.
    pub fn sign(&self, body: ClientCommand) -> Command {
        let cluster = self.trust.genesis;
        let token = self.trust.token.as_ref().map(|t| t.token.id(cluster));
        let client = self.trust.client.clone();
        Command::Client(ClientSigned::sign_as(cluster, client, token, body, &self.pair))
    }

    /// An honest pool through these two.
    pub fn pool(
        &self,
        directory: &Directory,
        route: &str,
        relay: NodeId,
        keyer: NodeId,
    ) -> anyhow::Result<OpenPool> {
        let boot = |n| {
            directory.node(n).map(|(_, v)| v.boot.clone()).with_context(|| format!("{n} is not attested"))
        };
        Ok(OpenPool {
            pool: PoolId(random_id()?),
            route: RouteId::new(route)?,
            relay,
            relay_boot: boot(relay)?,
            keyer,
            keyer_boot: boot(keyer)?,
            expires: now().plus_ms(60_000),
            probe: None,
            token: self.trust.token.as_ref().map(|token| Box::new(SignedToken::clone(token))),
        })
    }

    /// Signs and submits.
    pub async fn submit(&self, connected: &Connected, body: ClientCommand) -> anyhow::Result<Verdict> {
        submit_bytes(connected, encode(&self.sign(body)), vec![]).await
    }

    /// A connection to a node.
    pub async fn connect(&self, address: &str) -> anyhow::Result<Connected> {
        connect(address, &self.identity).await
    }
}

/// A tunnel, and whatever its user puts into it.
pub struct Tunnel {
    up: mpsc::Sender<v1::TunnelUp>,
    down: Streaming<v1::TunnelDown>,
}

impl Tunnel {
    /// Calls; nothing is sent yet.
    pub async fn call(relay: &Connected) -> anyhow::Result<Self> {
        let (up, frames) = mpsc::channel(64);
        let down = mesh(relay).tunnel(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { up, down })
    }

    /// Sends a frame, unless the relay ended the tunnel.
    pub async fn send(&self, frame: tunnel_up::Frame) {
        let _ended = self.up.send(v1::TunnelUp { frame: Some(frame) }).await;
    }

    /// Opens.
    pub async fn open(&self, pool: &[u8], connection: &[u8]) {
        let (pool, connection) = (Bytes::copy_from_slice(pool), Bytes::copy_from_slice(connection));
        self.send(tunnel_up::Frame::Open(v1::tunnel_up::Open { pool, connection })).await;
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<tunnel_down::Frame>> {
        let message =
            tokio::time::timeout(PATIENCE, self.down.message()).await.context("the tunnel hangs")??;
        message.map(|m| m.frame.context("an empty frame")).transpose()
    }

    /// The word that ends the tunnel: a refusal's code, or `closed: REASON`.
    pub async fn end(&mut self) -> anyhow::Result<String> {
        loop {
            match self.next().await? {
                Some(tunnel_down::Frame::Refused(refused)) => return Ok(refused.code),
                Some(tunnel_down::Frame::Closed(closed)) => return Ok(format!("closed: {}", closed.reason)),
                Some(_) => {}
                None => bail!("the tunnel ended without a word"),
            }
        }
    }
}

#[derive(Debug, Default)]
struct Secrets(Mutex<HashMap<String, Vec<u8>>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(label.to_owned(), secret.to_vec());
    }
}

impl Secrets {
    fn secret(&self, label: &str) -> anyhow::Result<TrafficSecret> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(all.get(label).context("no secret")?.as_slice().try_into()?)
    }
}

fn tls(route: &RouteDocument, secrets: Arc<Secrets>) -> anyhow::Result<rustls::ClientConnection> {
    let default = rustls::crypto::aws_lc_rs::default_provider();
    let suites = default.cipher_suites.iter().copied();
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: suites.filter(|s| s.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256).collect(),
        ..default
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(route.ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.key_log = secrets;
    Ok(rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(route.host.clone())?)?)
}

/// A tunnel whose handshake is done and whose secret the keyer has, and one sealed request for it.
pub struct Ready {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Its connection.
    pub connection: ConnectionId,
    /// The head's records.
    pub head: Vec<u8>,
    /// Their digest.
    pub head_digest: Hash,
    /// Seals the body.
    pub body: BodySealer,
}

impl Ready {
    /// Opens a connection in a pool, through relay and keyer, for a POST with such a body.
    pub async fn connect(
        (pool, route): (&OpenPool, &RouteDocument),
        relay: &Connected,
        keyer: &Connected,
        content_length: u64,
    ) -> anyhow::Result<Self> {
        let connection = ConnectionId(random_id()?);
        let mut tunnel = Tunnel::call(relay).await?;
        tunnel.open(&pool.pool.0, &connection.0).await;
        match tunnel.next().await? {
            Some(tunnel_down::Frame::Opened(_)) => {}
            other => bail!("not opened: {other:?}"),
        }
        let secrets = Arc::new(Secrets::default());
        let mut tls = tls(route, Arc::clone(&secrets))?;
        let mut reader = RecordReader::new();
        loop {
            let mut out = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut out)?;
            }
            if !out.is_empty() {
                tunnel.send(tunnel_up::Frame::Data(out.into())).await;
            }
            if !tls.is_handshaking() {
                break;
            }
            let Some(tunnel_down::Frame::Data(bytes)) = tunnel.next().await? else { bail!("no handshake") };
            let mut input = bytes.as_ref();
            while tls.is_handshaking() {
                let Some(record) = reader.read(&mut input)? else { break };
                let mut bytes = Vec::new();
                record.write_to(&mut bytes);
                tls.read_tls(&mut bytes.as_slice())?;
                tls.process_new_packets()?;
            }
        }
        let (client, server) = (secrets.secret(KEY_LOG_CLIENT)?, secrets.secret(KEY_LOG_SERVER)?);
        let request = v1::RegisterRequest {
            pool: Bytes::copy_from_slice(&pool.pool.0),
            connection: Bytes::copy_from_slice(&connection.0),
            traffic_secret: Bytes::copy_from_slice(client.expose_bytes()),
        };
        mesh(keyer).register(request).await?;
        let headers = vec![Header { name: "content-type".into(), value: "application/json".into() }];
        let head =
            Head { method: Method::Post, path: "/v1/chat/completions".into(), headers, content_length };
        let sealed = ClientConnection::new(client, server).seal_request(&head_template(route)?, &head)?;
        let head_digest = Hash(sealed.head.digest().0);
        Ok(Self { tunnel, connection, head: sealed.head.to_bytes(), head_digest, body: sealed.body })
    }

    /// The honest authorisation of this request.
    pub fn authorise(
        &self,
        pool: &OpenPool,
        policy: quorate_core::ids::PolicyVersion,
    ) -> anyhow::Result<Authorise> {
        Ok(Authorise {
            request: RequestId(random_id()?),
            pool: pool.pool,
            connection: self.connection,
            route: pool.route.clone(),
            relay: pool.relay,
            keyer: pool.keyer,
            share_epoch: 0,
            policy,
            head_digest: self.head_digest,
            body_digest: Hash([0; 32]),
            body_bytes_max: self.body.remaining(),
            response_bytes_max: 1 << 20,
            duration_ms_max: 30_000,
            price: None,
            tokens_in_max: u64::MAX,
            tokens_out_max: u64::MAX,
            expires: now().plus_ms(30_000),
        })
    }

    /// Sends the request.
    pub async fn request(&self, command: Vec<u8>, head: Vec<u8>) {
        self.tunnel
            .send(tunnel_up::Frame::Request(v1::tunnel_up::Request {
                command: command.into(),
                head: head.into(),
            }))
            .await;
    }

    /// Sends so much body.
    pub async fn send_body(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let mut records = Vec::new();
        self.body.seal_chunk(body, &mut records)?;
        self.tunnel.send(tunnel_up::Frame::Data(records.into())).await;
        Ok(())
    }
}
