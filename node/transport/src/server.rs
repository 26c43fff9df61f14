//! Accepting connections: a listener whose items have finished TLS and proved a key.
//!
//! Before a peer has proved anything it can only hold a place in a bounded set of handshakes, for a bounded
//! time, and only half of the places from one address. After that it holds one of a bounded number of
//! connections, again half at most from one address, and must start HTTP/2 within the same time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::error::ConnectError;
use crate::identity::{Identity, PublicKey};
use crate::io::{
    CONNECTION_WINDOW_BYTES, CloseReason, GuardedIo, KEEP_ALIVE_TIMEOUT, Lifeline, STREAM_WINDOW_BYTES,
};
use crate::tls;

/// Finished handshakes that wait for the server to take them; it only spawns a task for each.
const READY_MAX: usize = 16;

/// Pause after an accept that failed for want of files or memory; spinning would make that worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often a server asks an idle client whether it is there. Rarer than clients ask: a client notices a dead
/// server for its own sake, a server only frees a place.
const SERVER_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Calls at once on one connection. Further ones wait at the client; it can open another connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

/// Bounds of an [`Incoming`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a peer may take for the TLS handshake, and then for the first bytes of HTTP/2. Default 5 s.
    pub handshake_timeout: Duration,
    /// Handshakes at once; further connections wait in the kernel's backlog. Default 256.
    pub handshakes_max: usize,
    /// Open connections; further ones wait in the kernel's backlog. Default 4096.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(5), handshakes_max: 256, connections_max: 4096 }
    }
}

/// What has happened at a listener since it was opened.
#[derive(Debug, Default)]
pub struct ListenerStats {
    accepted: AtomicU64,
    established: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    turned_away: AtomicU64,
}

impl ListenerStats {
    /// TCP connections accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Handshakes completed.
    pub fn established(&self) -> u64 {
        self.established.load(Ordering::Relaxed)
    }

    /// Connections with a completed handshake that are open now.
    pub fn open(&self) -> u64 {
        self.established().saturating_sub(self.closed.load(Ordering::Relaxed))
    }

    /// Handshakes that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Handshakes that took too long.
    pub fn timed_out(&self) -> u64 {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// Connections closed at once because their address held too many places.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a request knows about the connection it came on: `request.extensions().get::<Channel>()`.
///
/// The key is proved; who holds it, and whether it may do what it asks, must be judged for each request against
/// the state of that moment.
#[derive(Clone)]
pub struct Channel {
    peer_key: PublicKey,
    exporter: [u8; 32],
    remote: SocketAddr,
    lifeline: Arc<Lifeline>,
}

impl Channel {
    /// The key the peer proved.
    pub fn peer_key(&self) -> PublicKey {
        self.peer_key
    }

    /// The value that only the two ends of this very connection know (RFC 8446 §7.5, [`crate::EXPORTER_LABEL`]).
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// Where the peer came from.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Unique among this process's connections: the key for what is known about this one alone.
    pub fn id(&self) -> u64 {
        self.lifeline.id()
    }

    /// Why the connection ended, if it did.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.lifeline.reason()
    }

    /// Completes when the connection has ended; does not keep it open. For dropping what was kept under its id.
    pub fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static {
        self.lifeline.closed()
    }

    /// Ends the connection now, with every call on it.
    pub fn cut(&self) {
        self.lifeline.cut();
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("id", &self.id())
            .field("peer_key", &self.peer_key)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// A tonic server with this crate's HTTP/2 settings.
pub fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(Some(false))
        .http2_keepalive_interval(Some(SERVER_KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
}

/// A stream of connections that have proved their keys, for tonic's `serve_with_incoming`.
///
/// Dropping it closes the listening socket; connections already handed out stay.
pub struct Incoming {
    ready: mpsc::Receiver<ServerIo>,
    accepting: AbortHandle,
    stats: Arc<ListenerStats>,
    local_addr: SocketAddr,
}

impl Incoming {
    /// Starts to accept on a bound listener.
    pub fn new(listener: TcpListener, identity: &Identity, limits: Limits) -> Result<Self, ConnectError> {
        let config = tls::server_config(identity).map_err(|source| ConnectError::Setup { source })?;
        let local_addr = listener.local_addr().map_err(|source| ConnectError::Listener { source })?;
        let (sender, ready) = mpsc::channel(READY_MAX);
        let stats = Arc::new(ListenerStats::default());
        let door = Door {
            acceptor: TlsAcceptor::from(config),
            limits,
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            connections: Arc::new(Semaphore::new(limits.connections_max)),
            handshakes_from: PerAddress::new(limits.handshakes_max),
            connections_from: PerAddress::new(limits.connections_max),
            stats: stats.clone(),
            sender,
        };
        let accepting = tokio::spawn(door.run(listener)).abort_handle();
        Ok(Self { ready, accepting, stats, local_addr })
    }

    /// The address the listener is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Counters; they outlive the listener.
    pub fn stats(&self) -> Arc<ListenerStats> {
        self.stats.clone()
    }
}

impl Stream for Incoming {
    type Item = Result<ServerIo, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|io| io.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The task that accepts. Handshakes run in tasks of their own, which end with it.
struct Door {
    acceptor: TlsAcceptor,
    limits: Limits,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    handshakes_from: PerAddress,
    connections_from: PerAddress,
    stats: Arc<ListenerStats>,
    sender: mpsc::Sender<ServerIo>,
}

impl Door {
    async fn run(self, listener: TcpListener) {
        let mut running = JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            // Places first: who finds none waits in the kernel's backlog, where it costs us nothing.
            let (Ok(connection), Ok(handshake)) = (
                self.connections.clone().acquire_owned().await,
                self.handshakes.clone().acquire_owned().await,
            ) else {
                return; // the semaphores are never closed
            };
            let (tcp, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            count(&self.stats.accepted);
            let (Some(handshake_from), Some(connection_from)) =
                (self.handshakes_from.enter(remote.ip()), self.connections_from.enter(remote.ip()))
            else {
                count(&self.stats.turned_away);
                debug!(%remote, "turned away: too many connections from this address");
                continue;
            };
            let places = Places { connection, connection_from };
            running.spawn(greet(
                self.acceptor.clone(),
                self.limits.handshake_timeout,
                self.stats.clone(),
                self.sender.clone(),
                tcp,
                remote,
                places,
                (handshake, handshake_from),
            ));
        }
    }
}

struct Places {
    connection: OwnedSemaphorePermit,
    connection_from: PlaceOf,
}

/// One handshake, and what becomes of it.
#[allow(clippy::too_many_arguments, reason = "all of it moves into one task")]
async fn greet(
    acceptor: TlsAcceptor,
    within: Duration,
    stats: Arc<ListenerStats>,
    sender: mpsc::Sender<ServerIo>,
    tcp: TcpStream,
    remote: SocketAddr,
    places: Places,
    handshake_places: (OwnedSemaphorePermit, PlaceOf),
) {
    let lifeline = Lifeline::new();
    let id = lifeline.id();
    match tokio::time::timeout(within, handshake(acceptor, tcp, remote, lifeline)).await {
        Err(_) => {
            count(&stats.timed_out);
            debug!(%remote, connection = id, "TLS handshake timed out");
        }
        Ok(Err(error)) => {
            count(&stats.failed);
            debug!(%remote, connection = id, %error, "TLS handshake failed");
        }
        Ok(Ok((stream, channel))) => {
            count(&stats.established);
            debug!(%remote, connection = id, peer = %channel.peer_key, "connection established");
            let io = GuardedIo::new(stream, channel.lifeline.clone())
                .with_preface_deadline(within)
                .holding(places.connection);
            let io = ServerIo { io, channel, _from: places.connection_from, _open: Open(stats) };
            // the handshake's place is kept until the server takes the stream: that bounds the queue too
            if sender.send(io).await.is_err() {
                debug!(%remote, connection = id, "the server no longer takes connections");
            }
        }
    }
    drop(handshake_places);
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    remote: SocketAddr,
    lifeline: Arc<Lifeline>,
) -> io::Result<(TlsStream<TcpStream>, Channel)> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let (_, session) = stream.get_ref();
    let peer_key = tls::peer_key(session).map_err(io::Error::other)?;
    let exporter = tls::exporter(|out, label, context| session.export_keying_material(out, label, context))
        .map_err(io::Error::other)?;
    if !tls::speaks_http2(session) {
        return Err(io::Error::other("the client does not speak HTTP/2"));
    }
    Ok((stream, Channel { peer_key, exporter, remote, lifeline }))
}

/// An accepted connection whose peer has proved its key.
pub struct ServerIo {
    io: GuardedIo<TlsStream<TcpStream>>,
    channel: Channel,
    _from: PlaceOf,
    _open: Open,
}

/// Counts an open connection out when it ends.
struct Open(Arc<ListenerStats>);

impl Drop for Open {
    fn drop(&mut self) {
        count(&self.0.closed);
    }
}

impl tonic::transport::server::Connected for ServerIo {
    type ConnectInfo = Channel;

    fn connect_info(&self) -> Channel {
        self.channel.clone()
    }
}

impl AsyncRead for ServerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for ServerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Places held per address: half of all at most, so that one host cannot shut out the others. The map has no
/// more entries than there are places.
#[derive(Clone)]
struct PerAddress {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

impl PerAddress {
    fn new(places: usize) -> Self {
        Self { held: Arc::default(), max: places.div_ceil(2) }
    }

    fn enter(&self, address: IpAddr) -> Option<PlaceOf> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = held.entry(address).or_insert(0);
        if *mine >= self.max {
            return None;
        }
        *mine += 1;
        Some(PlaceOf { all: self.clone(), address })
    }
}

/// One place, given back on drop.
struct PlaceOf {
    all: PerAddress,
    address: IpAddr,
}

impl Drop for PlaceOf {
    fn drop(&mut self) {
        let mut held = self.all.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = held.get_mut(&self.address) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                held.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use rustls::pki_types::ServerName;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::client::Expect;

    #[tokio::test]
    async fn who_proves_a_key_and_then_says_nothing_loses_its_place() {
        let node = Identity::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limits = Limits { handshake_timeout: Duration::from_millis(500), ..Limits::default() };
        let mut incoming = Incoming::new(listener, &node, limits).unwrap();
        let (addr, stats) = (incoming.local_addr(), incoming.stats());

        let me = Identity::generate().unwrap();
        let config = tls::client_config(&me, Expect::Key(node.public())).unwrap();
        let tcp = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::from(addr.ip());
        let _mute = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();

        let Ok(mut io) = incoming.next().await.unwrap();
        assert_eq!((io.channel.peer_key(), stats.open()), (me.public(), 1));
        let error = io.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(io.channel.close_reason(), Some(CloseReason::Silent));
        drop(io);
        assert_eq!(stats.open(), 0);
    }

    #[test]
    fn one_address_gets_half_of_the_places() {
        let places = PerAddress::new(4);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held = (places.enter(a).unwrap(), places.enter(a).unwrap());
        assert!(places.enter(a).is_none());
        assert!(places.enter(b).is_some());
        drop(held);
        assert!(places.held.lock().unwrap().is_empty());
        assert!(places.enter(a).is_some());
    }
}
