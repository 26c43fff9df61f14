//! One TLS connection to a provider: through a relay's tunnel, or for the benchmark straight.
//!
//! The handshake is rustls's; it is given exactly the handshake's records, so that every byte after them is ours
//! ([`quorate_splitkey::client`]). A [`Conn`] is ready for its one request.
use crate::error::{Error, MeshRefusal};
use crate::http1::{Event, ResponseParser};
use crate::route::RouteTls;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use quorate_core::ids::{ConnectionId, NodeId, PoolId};
use quorate_core::policy::RouteDocument;
use quorate_proto::v1::{self, mesh_client::MeshClient, tunnel_down, tunnel_up};
use quorate_splitkey::client::ClientConnection;
use quorate_splitkey::record::{RecordReader, TrafficSecret};
use quorate_transport::Connected;
use rustls::{AlertDescription, PeerIncompatible, PeerMisbehaved};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Frames on their way to the relay before the sender waits: with HTTP/2's own window, some 512 KiB.
const FRAMES_WAITING_MAX: usize = 8;
/// Until the relay reached the provider.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the TLS handshake with the provider is complete.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes kept of what a provider sends before it was asked: tickets, and a goodbye.
const EARLY_BYTES_MAX: usize = 64 * 1024;
/// Read buffer of a direct connection.
const READ_BYTES: usize = 32 * 1024;

/// What comes down.
pub(crate) enum Down {
    Data(Bytes),
    Authorised(v1::tunnel_down::Authorised),
    Refused(MeshRefusal),
    Closed(String),
}

/// To the provider.
pub(crate) enum Up {
    Mesh { frames: mpsc::Sender<v1::TunnelUp>, relay: NodeId },
    Direct(OwnedWriteHalf),
}

impl Up {
    async fn frame(&mut self, frame: tunnel_up::Frame) -> Result<(), Error> {
        match self {
            Self::Mesh { frames, relay } => frames
                .send(v1::TunnelUp { frame: Some(frame) })
                .await
                .map_err(|_| Error::NodeLost { node: *relay, reason: "the tunnel is closed".into() }),
            Self::Direct(_) => Ok(()),
        }
    }

    /// Sends TLS records.
    pub(crate) async fn data(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        if let Self::Direct(io) = self {
            return io
                .write_all(&bytes)
                .await
                .map_err(|e| Error::ProviderUnreachable { host: "direct".into(), reason: e.to_string() });
        }
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(quorate_proto::TUNNEL_DATA_BYTES_MAX));
            self.frame(tunnel_up::Frame::Data(piece)).await?;
        }
        Ok(())
    }

    /// Sends the request: its signed authorisation and its head.
    pub(crate) async fn request(&mut self, command: Vec<u8>, head: Vec<u8>) -> Result<(), Error> {
        if matches!(self, Self::Direct(_)) {
            return self.data(head.into()).await;
        }
        let request = v1::tunnel_up::Request { command: command.into(), head: head.into() };
        self.frame(tunnel_up::Frame::Request(request)).await
    }
}

/// From the provider.
pub(crate) enum DownHalf {
    Mesh { frames: Box<tonic::Streaming<v1::TunnelDown>>, relay: NodeId },
    Direct(OwnedReadHalf),
}

impl DownHalf {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Down, Error>> {
        match self {
            Self::Mesh { frames, relay } => loop {
                let lost = |reason: &str| Error::NodeLost { node: *relay, reason: reason.to_owned() };
                let frame = match std::task::ready!(Pin::new(frames.as_mut()).poll_next(cx)) {
                    None => return Poll::Ready(Err(lost("the relay ended the tunnel without a word"))),
                    Some(Err(status)) => return Poll::Ready(Err(Error::from_status(*relay, &status))),
                    Some(Ok(frame)) => frame.frame,
                };
                return Poll::Ready(Ok(match frame {
                    Some(tunnel_down::Frame::Data(data)) if data.is_empty() => continue,
                    Some(tunnel_down::Frame::Data(data)) => Down::Data(data),
                    Some(tunnel_down::Frame::Authorised(a)) => Down::Authorised(a),
                    Some(tunnel_down::Frame::Refused(r)) => Down::Refused(r.into()),
                    Some(tunnel_down::Frame::Closed(c)) => Down::Closed(c.reason),
                    Some(tunnel_down::Frame::Opened(_)) | None => continue,
                }));
            },
            Self::Direct(io) => {
                let mut bytes = BytesMut::zeroed(READ_BYTES);
                let mut buffer = ReadBuf::new(&mut bytes);
                let read = std::task::ready!(Pin::new(io).poll_read(cx, &mut buffer));
                let length = buffer.filled().len();
                Poll::Ready(Ok(match (read, length) {
                    (Err(_), _) => Down::Closed("truncated".into()),
                    (Ok(()), 0) => Down::Closed("complete".into()),
                    (Ok(()), _) => {
                        bytes.truncate(length);
                        Down::Data(bytes.freeze())
                    }
                }))
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Down, Error> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    pub(crate) fn relay(&self) -> Option<NodeId> {
        match self {
            Self::Mesh { relay, .. } => Some(*relay),
            Self::Direct(_) => None,
        }
    }
}

/// A connection whose handshake is complete and which has carried nothing.
pub(crate) struct Conn {
    pub(crate) id: ConnectionId,
    pub(crate) up: Up,
    pub(crate) down: DownHalf,
    pub(crate) tls: ClientConnection,
    /// What came after the handshake's last record.
    pub(crate) early: VecDeque<Bytes>,
    early_bytes: usize,
}

impl Conn {
    /// Whether neither provider nor relay has ended it, as far as is known here and now.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        loop {
            match self.down.poll(&mut cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(Down::Data(bytes))) => {
                    self.early_bytes += bytes.len();
                    self.early.push_back(bytes);
                    if self.early_bytes > EARLY_BYTES_MAX {
                        return false;
                    }
                }
                Poll::Ready(_) => return false,
            }
        }
    }
}

/// 16 random bytes.
pub(crate) fn random_id() -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Error::NoRandomness)?;
    Ok(id)
}

/// A client of a node's service with this crate's limits.
pub(crate) fn mesh_client(connected: &Connected) -> MeshClient<tonic::transport::Channel> {
    MeshClient::new(connected.channel())
        .max_decoding_message_size(quorate_core::proof::PROOF_BYTES_MAX + 1024)
        .max_encoding_message_size(quorate_proto::CLIENT_MESSAGE_BYTES_MAX)
}

/// Opens a tunnel and makes the handshake in it.
pub(crate) async fn open_tunnel(
    relay: (NodeId, &Connected),
    pool: PoolId,
    tls: &RouteTls,
) -> Result<Conn, Error> {
    let (node, connected) = relay;
    let id = ConnectionId(random_id()?);
    let (frames, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let mut up = Up::Mesh { frames, relay: node };
    let open = v1::tunnel_up::Open { pool: pool.0.to_vec().into(), connection: id.0.to_vec().into() };
    up.frame(tunnel_up::Frame::Open(open)).await?;
    let opening = async {
        let mut client = mesh_client(connected);
        let reply = client.tunnel(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
        let mut frames = reply.map_err(|s| Error::from_status(node, &s))?.into_inner();
        let first = frames.message().await.map_err(|s| Error::from_status(node, &s))?;
        match first.and_then(|f| f.frame) {
            Some(tunnel_down::Frame::Opened(_)) => Ok(frames),
            Some(tunnel_down::Frame::Refused(r)) => Err(refused(r.into(), tls)),
            Some(tunnel_down::Frame::Closed(c)) => {
                Err(Error::ProviderUnreachable { host: tls.host.clone(), reason: plain(&c.reason) })
            }
            _ => Err(Error::NodeMisbehaved { node, what: "a tunnel that does not begin with Opened".into() }),
        }
    };
    let frames = timeout(OPEN_TIMEOUT, opening).await.map_err(|_| Error::ProviderUnreachable {
        host: tls.host.clone(),
        reason: "the relay's connect timed out".into(),
    })??;
    let mut down = DownHalf::Mesh { frames: Box::new(frames), relay: node };
    let (tls, early) = handshake(&mut up, &mut down, tls).await?;
    Ok(Conn { id, up, down, tls, early_bytes: 0, early })
}

/// Straight to the provider: no mesh, no log, no policy. For the benchmark's baseline only.
pub(crate) async fn danger_open_direct(host: &str, port: u16, tls: &RouteTls) -> Result<Conn, Error> {
    let lost =
        |e: std::io::Error| Error::ProviderUnreachable { host: host.to_owned(), reason: e.to_string() };
    let io = TcpStream::connect((host, port)).await.map_err(lost)?;
    io.set_nodelay(true).map_err(lost)?;
    let (read, write) = io.into_split();
    let (mut up, mut down) = (Up::Direct(write), DownHalf::Direct(read));
    let (tls, early) = handshake(&mut up, &mut down, tls).await?;
    Ok(Conn { id: ConnectionId(random_id()?), up, down, tls, early_bytes: 0, early })
}

/// What came back on a TLS connection straight to the provider.
pub(crate) struct DirectAnswer {
    pub(crate) status: u16,
    /// Every byte, head and framing included.
    pub(crate) raw: Vec<u8>,
    /// The body alone, as far as it came.
    pub(crate) body: Vec<u8>,
}

/// Most bytes read of a direct answer, and the longest time for all of it.
const DIRECT_BYTES_MAX: usize = 256 * 1024;
const DIRECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends these pieces, a TLS record each, straight to a route's provider, and reads one answer: no mesh, no log. For probing a
/// provider with a key that is none, from an admin's machine, with the TLS settings that requests have.
pub(crate) async fn danger_converse(route: &RouteDocument, pieces: &[&[u8]]) -> Result<DirectAnswer, Error> {
    let tls = RouteTls::new(route)?;
    let conversing = async {
        let host = || tls.host.clone();
        let lost = |e: std::io::Error| Error::ProviderUnreachable { host: host(), reason: e.to_string() };
        let tcp = TcpStream::connect((tls.host.as_str(), route.port)).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let (config, name, watcher) = tls.watched();
        let connected = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
        if watcher.asked_for_certificate() {
            return Err(Error::ProviderWantsCertificate { host: host() });
        }
        let failed = |e: std::io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(error) => explain(&tls.host, error.clone()),
            None => lost(e),
        };
        let mut stream = connected.map_err(failed)?;
        for piece in pieces {
            stream.write_all(piece).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
        }
        let mut parser = ResponseParser::new();
        let mut answer = DirectAnswer { status: 0, raw: Vec::new(), body: Vec::new() };
        let mut buffer = vec![0; READ_BYTES];
        while answer.raw.len() < DIRECT_BYTES_MAX && !parser.is_done() {
            // A provider that does not say goodbye has said enough before.
            let read = match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(_) if answer.status != 0 => break,
                Err(e) => return Err(failed(e)),
            };
            answer.raw.extend_from_slice(read);
            parser.feed(read.to_vec());
            while let Some(event) = parser.next()? {
                match event {
                    Event::Head(head) => answer.status = head.status.as_u16(),
                    Event::Body(piece) => answer.body.extend_from_slice(&piece),
                    Event::End => break,
                }
            }
        }
        if answer.status == 0 { Err(Error::Truncated { reason: "no answer".into() }) } else { Ok(answer) }
    };
    let allowed_ms = u64::try_from(DIRECT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    timeout(DIRECT_TIMEOUT, conversing)
        .await
        .unwrap_or(Err(Error::TimedOut { what: "the provider's answer", allowed_ms }))
}

pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

async fn handshake(
    up: &mut Up,
    down: &mut DownHalf,
    tls: &RouteTls,
) -> Result<(ClientConnection, VecDeque<Bytes>), Error> {
    timeout(HANDSHAKE_TIMEOUT, drive(up, down, tls)).await.map_err(|_| Error::ProviderTls {
        host: tls.host.clone(),
        reason: "it did not finish in time".into(),
    })?
}

async fn drive(
    up: &mut Up,
    down: &mut DownHalf,
    tls: &RouteTls,
) -> Result<(ClientConnection, VecDeque<Bytes>), Error> {
    let failed = |reason: String| Error::ProviderTls { host: tls.host.clone(), reason };
    let (mut connection, watcher) = tls.connection()?;
    let mut reader = RecordReader::new();
    let mut input = Bytes::new();
    loop {
        // Before anything is sent: rustls would answer a certificate request with an empty certificate.
        if watcher.asked_for_certificate() {
            return Err(Error::ProviderWantsCertificate { host: tls.host.clone() });
        }
        let mut out = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut out).map_err(|e| failed(e.to_string()))?;
        }
        if !out.is_empty() {
            up.data(out.into()).await?;
        }
        if !connection.is_handshaking() {
            break;
        }
        // One record at a time: the first one after the handshake is not rustls's.
        let record = loop {
            let mut rest: &[u8] = &input;
            let record = reader.read(&mut rest).map_err(|e| failed(e.to_string()))?;
            let left = rest.len();
            input = input.split_off(input.len() - left);
            if let Some(record) = record {
                break record;
            }
            input = match down.next().await? {
                Down::Data(bytes) => bytes,
                Down::Refused(refusal) => return Err(refused(refusal, tls)),
                Down::Closed(reason) => {
                    return Err(Error::ProviderUnreachable {
                        host: tls.host.clone(),
                        reason: plain(&reason),
                    });
                }
                Down::Authorised(_) => {
                    let node = down.relay().unwrap_or_default();
                    return Err(Error::NodeMisbehaved {
                        node,
                        what: "an authorisation nobody asked for".into(),
                    });
                }
            };
        };
        let mut bytes = Vec::with_capacity(record.wire_len());
        record.write_to(&mut bytes);
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            connection.read_tls(&mut bytes).map_err(|e| failed(e.to_string()))?;
        }
        connection.process_new_packets().map_err(|e| explain(&tls.host, e))?;
    }
    let secret = |bytes: &[u8]| TrafficSecret::try_from(bytes).map_err(|e| failed(e.to_string()));
    let (client, server) = watcher.take().ok_or_else(|| failed("the TLS library kept its secrets".into()))?;
    let early = if input.is_empty() { VecDeque::new() } else { VecDeque::from([input]) };
    Ok((ClientConnection::new(secret(&client)?, secret(&server)?), early))
}

/// A relay that connects and watches the handshake may be the first to see what is wrong with the provider.
fn refused(refusal: MeshRefusal, tls: &RouteTls) -> Error {
    let host = tls.host.clone();
    match refusal.code.as_str() {
        "provider_lacks_suite" | "provider_lacks_tls13" | "provider_lacks_http11" => {
            Error::ProviderSuite { host }
        }
        "provider_wants_certificate" => Error::ProviderWantsCertificate { host },
        "provider_not_tls" | "provider_handshake_refused" => {
            Error::ProviderTls { host, reason: refusal.message }
        }
        "provider_unreachable" => Error::ProviderUnreachable { host, reason: refusal.message },
        _ => Error::Refused(refusal),
    }
}

fn explain(host: &str, error: rustls::Error) -> Error {
    use rustls::Error as R;
    let host = host.to_owned();
    match error {
        R::InvalidCertificate(reason) => Error::ProviderCertificate { host, reason: reason.to_string() },
        R::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::ProtocolVersion
            | AlertDescription::NoApplicationProtocol,
        )
        | R::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite)
        | R::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
        | R::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            Error::ProviderSuite { host }
        }
        other => Error::ProviderTls { host, reason: other.to_string() },
    }
}
