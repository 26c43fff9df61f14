//! Accepting, bounds on connections and heads, and a drain that lets answers under way end.
use crate::answer::{InFlight, Reply};
use crate::cache::Cache;
use crate::config::Config;
use crate::endpoints::Adapter;
use crate::gate::Gate;
use crate::guards::Guards;
use crate::health::Book;
use crate::metrics::Metrics;
use crate::receipts::Receipts;
use crate::routing::Table;
use crate::socket::{self, Unstuck};
use crate::upstream::Upstream;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use quorate_client::Error;
use quorate_telemetry::Traces;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Bytes of a request's head: SDKs send about one KiB. hyper takes 100 headers at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// From an open connection, or the last answer on it, to a whole head.
const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
/// How long an end waits for receipts: one of a request that just ended takes a few seconds.
const RECEIPTS_TIME_MAX: Duration = Duration::from_secs(25);
/// How long TLS may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a connection without a request may stay when the process is told to stop: half a head is no answer under way.
const LINGER: Duration = Duration::from_secs(2);
/// How long spans may take to go out at the end.
const SPANS_TIME_MAX: Duration = Duration::from_secs(5);
/// After a failed `accept` (out of file descriptors), wait rather than spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// An adapter that listens, and does not answer yet.
pub struct Server {
    listener: TcpListener,
    adapter: Arc<Adapter>,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
    drain: Duration,
}

impl Server {
    /// Binds. `config` was checked.
    pub async fn bind(config: &Config, gate: Gate, upstream: Arc<dyn Upstream>) -> std::io::Result<Self> {
        let tls = config.tls.as_ref().map(socket::acceptor).transpose()?;
        let guards = Guards::new(&config.rules, config.guards.streams).map_err(std::io::Error::other)?;
        let traces = match &config.telemetry.otlp {
            None => Traces::default(),
            Some(url) => {
                let instance = format!("{}:{}", std::process::id(), config.listen);
                Traces::to(url, config.telemetry.ca_file.as_deref(), "quorate-adapter", instance)
                    .map_err(|e| std::io::Error::other(quorate_client::chain(&e)))?
            }
        };
        let listener = TcpListener::bind(config.listen).await?;
        let cache = config.cache.as_ref().map(Cache::open).transpose().map_err(std::io::Error::other)?;
        let receipts = config.receipts.as_deref().map(Receipts::open).transpose()?;
        let adapter = Adapter {
            upstream,
            table: Table::new(config),
            gate,
            limits: config.limits.clone(),
            book: Book::default(),
            metrics: Arc::new(Metrics::default()),
            receipts: receipts.map(Arc::new),
            cache: cache.map(Arc::new),
            places: Arc::new(Semaphore::new(config.limits.requests_max)),
            buffers: Arc::new(Semaphore::new(InFlight::steps(config.limits.buffers_bytes_max))),
            guards,
            unwelcome: AtomicBool::new(false),
            traces,
        };
        let drain = Duration::from_millis(config.limits.drain_ms);
        Ok(Self {
            listener,
            adapter: Arc::new(adapter),
            tls,
            connections_max: config.limits.connections_max,
            drain,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Serves until `stop` resolves, then takes no more connections and lets answers under way end, within the bound.
    /// Reports and receipts go out before it comes back. `true` if everything ended in time.
    pub async fn run(self, stop: impl Future<Output = ()>) -> bool {
        let Self { listener, adapter, tls, connections_max, drain } = self;
        let (tell, stopped) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(connections_max));
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&listener, &slots) => accepted,
            };
            match accepted {
                Ok((tcp, slot)) => {
                    connections.spawn(greeted(tcp, tls.clone(), slot, adapter.clone(), stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        tell.send_replace(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(drain, ended).await.is_ok();
        connections.shutdown().await;
        adapter.upstream.flush().await;
        if let Some(receipts) = &adapter.receipts {
            let _late = tokio::time::timeout(RECEIPTS_TIME_MAX, receipts.finish()).await;
        }
        adapter.traces.flush(SPANS_TIME_MAX).await;
        in_time
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, _) = listener.accept().await?;
    // Small writes of a stream would wait 40 ms for an acknowledgement each.
    tcp.set_nodelay(true)?;
    Ok((tcp, slot))
}

async fn greeted(
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    slot: OwnedSemaphorePermit,
    adapter: Arc<Adapter>,
    mut stopped: watch::Receiver<bool>,
) {
    let Some(tls) = tls else { return connection(Unstuck::new(tcp), slot, adapter, stopped).await };
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(Unstuck::new(tcp))) => greeted,
        _ = stopped.wait_for(|stop| *stop) => return,
    };
    // Whoever speaks no TLS, or has no certificate, is no matter for a trace line.
    if let Ok(Ok(stream)) = greeted {
        connection(stream, slot, adapter, stopped).await;
    }
}

async fn connection<IO>(
    io: IO,
    slot: OwnedSemaphorePermit,
    adapter: Arc<Adapter>,
    mut stopped: watch::Receiver<bool>,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let metrics = adapter.metrics.clone();
    metrics.connections.inc();
    let busy = Arc::new(AtomicUsize::new(0));
    let of_service = busy.clone();
    let service = service_fn(move |request| {
        let (adapter, busy) = (adapter.clone(), Busy::new(&of_service));
        async move {
            let response = adapter.answer(request).await;
            Ok::<_, Infallible>(response.map(|reply| Counted { reply, _busy: busy }))
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        // Whoever has closed its side has hung up: the request is cancelled.
        .half_close(false);
    let serving = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(serving);
    let mut draining = false;
    loop {
        tokio::select! {
            // How a connection ended is in the metrics of its requests.
            _ended = serving.as_mut() => break,
            _ = stopped.wait_for(|stop| *stop), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(LINGER), if draining => {
                if busy.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
        }
    }
    metrics.connections.dec();
    drop(slot);
}

/// A request of a connection that is not answered yet.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reply that is under way as long as it is there.
struct Counted {
    reply: Reply,
    _busy: Busy,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.reply).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.reply.size_hint()
    }
}

#[cfg(test)]
mod tests;
