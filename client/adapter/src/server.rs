//! Sockets: accepting, bounds on connections and heads, and a drain that lets answers under way end.
use crate::cache::Cache;
use crate::config::Config;
use crate::endpoints::Adapter;
use crate::gate::Gate;
use crate::health::Book;
use crate::metrics::Metrics;
use crate::receipts::Receipts;
use crate::routing::Table;
use crate::upstream::Upstream;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// Bytes of a request's head: SDKs send about one KiB. hyper takes 100 headers at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// From an open connection, or the last answer on it, to a whole head.
const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
/// How long an end waits for receipts: one of a request that just ended takes a few seconds.
const RECEIPTS_TIME_MAX: Duration = Duration::from_secs(25);
/// After a failed `accept` (out of file descriptors), wait rather than spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// An adapter that listens, and does not answer yet.
pub struct Server {
    listener: TcpListener,
    adapter: Arc<Adapter>,
    connections_max: usize,
    drain: Duration,
}

impl Server {
    /// Binds. `config` was checked.
    pub async fn bind(config: &Config, gate: Gate, upstream: Arc<dyn Upstream>) -> std::io::Result<Self> {
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
        };
        let drain = Duration::from_millis(config.limits.drain_ms);
        Ok(Self {
            listener,
            adapter: Arc::new(adapter),
            connections_max: config.limits.connections_max,
            drain,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves, then takes no more connections and lets answers under way end, within the bound.
    /// Reports and receipts go out before it comes back. `true` if everything ended in time.
    pub async fn run(self, stop: impl Future<Output = ()>) -> bool {
        let Self { listener, adapter, connections_max, drain } = self;
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
                    connections.spawn(connection(tcp, slot, adapter.clone(), stopped.clone()));
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

async fn connection(
    tcp: TcpStream,
    slot: OwnedSemaphorePermit,
    adapter: Arc<Adapter>,
    mut stopped: watch::Receiver<bool>,
) {
    let metrics = adapter.metrics.clone();
    metrics.connections.inc();
    let service = service_fn(move |request| {
        let adapter = adapter.clone();
        async move { Ok::<_, Infallible>(adapter.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        // Whoever has closed its side has hung up: the request is cancelled.
        .half_close(false);
    let serving = builder.serve_connection(TokioIo::new(tcp), service);
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
        }
    }
    metrics.connections.dec();
    drop(slot);
}
