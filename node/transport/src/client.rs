//! Opening one connection: TCP, TLS, the peer's key, and a gRPC channel that is exactly this connection.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::error::{AddressError, ConnectError, KeyMismatch, PeerKeyError, Stage};
use crate::identity::{Identity, PublicKey};
use crate::io::{
    CONNECTION_WINDOW_BYTES, CloseReason, GuardedIo, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, Lifeline,
    STREAM_WINDOW_BYTES,
};
use crate::tls;

/// A DNS name has at most 253 characters; a colon and five digits follow.
const ADDRESS_BYTES_MAX: usize = 253 + 6;

/// How many addresses of one name are tried: both families of a host, and a little more.
const ADDRESSES_TRIED_MAX: usize = 4;

/// `host:port`, where the host is a name or an IP address (IPv6 in brackets).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

impl Address {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.to_string().into())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        if s.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong { got: s.len(), max: ADDRESS_BYTES_MAX });
        }
        let (host, port) = s.rsplit_once(':').ok_or(AddressError::Port)?;
        // `u16::from_str` would also take "+80"
        if !port.bytes().all(|b| b.is_ascii_digit()) || !matches!(port.parse::<u16>(), Ok(1..)) {
            return Err(AddressError::Port);
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let valid = match bracketed {
            Some(inner) => matches!(inner.parse(), Ok(IpAddr::V6(_))),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            }
        };
        if valid { Ok(Self(s.into())) } else { Err(AddressError::Host) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom we expect to find at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The holder of this key; the handshake fails for everyone else.
    Key(PublicKey),
    /// Anyone. See [`Expect::danger_any_key`].
    DangerAnyKey,
}

impl Expect {
    /// Accepts whatever key the peer shows, for first contact. The channel is private to its two ends, but who
    /// the other end is remains unknown until the caller has verified a quote that covers
    /// [`Connected::peer_key`] and [`Connected::exporter`]. Send nothing secret before.
    pub const fn danger_any_key() -> Self {
        Self::DangerAnyKey
    }

    /// Whether the holder of `key` may be who we talk to.
    pub fn accepts(&self, key: PublicKey) -> bool {
        self.pinned().is_none_or(|pinned| pinned == key)
    }

    pub(crate) fn pinned(&self) -> Option<PublicKey> {
        match self {
            Self::Key(key) => Some(*key),
            Self::DangerAnyKey => None,
        }
    }
}

/// One open connection to a peer that proved its key.
///
/// When the connection dies, calls in flight fail (with a code that depends on how HTTP/2 ended:
/// [`is_transport_failure`] tells such a failure from the peer's answer), and new calls fail at once with
/// `UNAVAILABLE`. It never reconnects.
pub struct Connected {
    channel: tonic::transport::Channel,
    address: Address,
    peer_key: PublicKey,
    exporter: [u8; 32],
    remote: SocketAddr,
    lifeline: Arc<Lifeline>,
}

impl Connected {
    /// A gRPC channel over this connection; cheap to clone.
    pub fn channel(&self) -> tonic::transport::Channel {
        self.channel.clone()
    }

    /// The key the peer proved.
    pub fn peer_key(&self) -> PublicKey {
        self.peer_key
    }

    /// The value that only the two ends of this very connection know (RFC 8446 §7.5, [`crate::EXPORTER_LABEL`]).
    /// Put it into what is signed to bind that to the connection.
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// The address as it was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The socket address that was reached.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Unique among this process's connections.
    pub fn id(&self) -> u64 {
        self.lifeline.id()
    }

    /// Why the connection ended, if it did.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.lifeline.reason()
    }

    /// Completes when the connection has ended; does not keep it open.
    pub fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static {
        self.lifeline.closed()
    }

    /// Ends the connection now, whoever still holds a clone of its channel.
    pub fn cut(&self) {
        self.lifeline.cut();
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected")
            .field("id", &self.id())
            .field("address", &self.address)
            .field("peer_key", &self.peer_key)
            .field("close_reason", &self.close_reason())
            .finish_non_exhaustive()
    }
}

/// Whether a call failed on the way, not by the peer's answer: the connection died, or could not carry it.
///
/// The peer may or may not have acted on the call. The code alone does not tell: a connection that breaks gives
/// `UNKNOWN`, one that goes silent `UNAVAILABLE`, and a peer may answer with either.
pub fn is_transport_failure(status: &tonic::Status) -> bool {
    // A status that came over the wire has no cause here; one that tonic made of an error carries it.
    std::error::Error::source(status).is_some()
}

/// Opens one connection, within `timeout` in all.
pub async fn connect(
    address: &Address,
    identity: &Identity,
    expect: Expect,
    timeout: Duration,
) -> Result<Connected, ConnectError> {
    let deadline = Instant::now() + timeout;
    let timed_out = |stage| ConnectError::TimedOut { address: address.clone(), stage, allowed: timeout };
    let setup = |source| ConnectError::Setup { source };
    let config = tls::client_config(identity, expect).map_err(setup)?;

    let found = timeout_at(deadline, tokio::net::lookup_host(address.as_str()))
        .await
        .map_err(|_| timed_out(Stage::Resolve))?
        .map_err(|source| ConnectError::Resolve { address: address.clone(), source })?
        .take(ADDRESSES_TRIED_MAX)
        .collect::<Vec<_>>();
    let (tcp, remote) = timeout_at(deadline, connect_tcp(address, &found, deadline))
        .await
        .map_err(|_| timed_out(Stage::Tcp))??;

    // The name is not sent and not checked: keys are all that counts.
    let name = ServerName::from(remote.ip());
    let tls = timeout_at(deadline, TlsConnector::from(config).connect(name, tcp))
        .await
        .map_err(|_| timed_out(Stage::Tls))?
        .map_err(|e| explain(address, e))?;
    let (_, session) = tls.get_ref();
    let peer_key = tls::peer_key(session)
        .map_err(|source| ConnectError::PeerKey { address: address.clone(), source })?;
    let exporter = tls::exporter(|out, label, context| session.export_keying_material(out, label, context))
        .map_err(setup)?;
    if !tls::speaks_http2(session) {
        return Err(ConnectError::NotHttp2 { address: address.clone() });
    }

    let lifeline = Lifeline::new();
    let channel = channel_over(GuardedIo::new(tls, lifeline.clone()), lifeline.clone())
        .await
        .map_err(|source| ConnectError::Http2 { address: address.clone(), source })?;
    Ok(Connected { channel, address: address.clone(), peer_key, exporter, remote, lifeline })
}

/// Tries the addresses in turn, each with its share of the time that is left.
async fn connect_tcp(
    address: &Address,
    found: &[SocketAddr],
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let mut last = None;
    let mut left = found.len() as u32;
    for &remote in found {
        let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        let tried = async {
            let tcp = TcpStream::connect(remote).await?;
            // Without it a small frame waits for the acknowledgement of the one before: 40 ms.
            tcp.set_nodelay(true)?;
            io::Result::Ok(tcp)
        };
        // the last one is bounded by the caller, who names the stage
        let result = if left == 0 {
            tried.await
        } else {
            tokio::time::timeout(share, tried).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match result {
            Ok(tcp) => return Ok((tcp, remote)),
            Err(source) => last = Some(source),
        }
    }
    Err(match last {
        Some(source) => ConnectError::Tcp { address: address.clone(), source },
        None => ConnectError::NoAddress { address: address.clone() },
    })
}

/// tokio-rustls wraps what rustls said into an I/O error; unwrap it, and what our verifier said in that.
fn explain(address: &Address, error: io::Error) -> ConnectError {
    let address = address.clone();
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        return ConnectError::Broken { address, source: error };
    };
    if let Some(source) = tls::verifier_cause::<KeyMismatch>(tls) {
        return ConnectError::WrongKey { address, source };
    }
    if let Some(source) = tls::verifier_cause::<PeerKeyError>(tls) {
        return ConnectError::PeerKey { address, source };
    }
    ConnectError::Tls { address, source: tls.clone() }
}

/// What calls on a dead connection fail with; tonic makes it `UNAVAILABLE`.
#[derive(Debug, thiserror::Error)]
#[error("the connection is over: {0}")]
struct ConnectionOver(CloseReason);

/// Runs HTTP/2 over this stream. tonic's channel reconnects by asking its connector again; ours has one stream
/// to give, and after that an error, which every further call receives at once.
async fn channel_over<S>(
    io: GuardedIo<S>,
    lifeline: Arc<Lifeline>,
) -> Result<tonic::transport::Channel, tonic::transport::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut once = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        std::future::ready(once.take().ok_or_else(|| {
            let reason = lifeline.reason().unwrap_or(CloseReason::Ended);
            ConnectionOver(reason)
        }))
    });
    // The authority is fixed: it says nothing, and nobody should route by it.
    Endpoint::from_static("http://quorate.invalid")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:1", "node-1.example:7443", "[::1]:65535", "my_host:80"] {
            assert_eq!(good.parse::<Address>().unwrap().as_str(), good);
        }
        let cases = [
            ("", AddressError::Port),
            ("host", AddressError::Port),
            ("host:", AddressError::Port),
            ("host:0", AddressError::Port),
            ("host:+80", AddressError::Port),
            ("host:65536", AddressError::Port),
            (":80", AddressError::Host),
            ("a b:80", AddressError::Host),
            ("::1:80", AddressError::Host),
            ("[127.0.0.1]:80", AddressError::Host),
            ("http://x:80", AddressError::Host),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
        let long = format!("{}:80", "a".repeat(300));
        assert_eq!(long.parse::<Address>(), Err(AddressError::TooLong { got: 303, max: 259 }));
    }
}
