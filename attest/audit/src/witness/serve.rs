//! The witness's sockets. Nobody is asked who they are, so a bounded number of connections is held, a request's head has to arrive in
//! time, and no connection lasts for ever, however little it asks for. Who comes when all are taken waits in the kernel's backlog.
//!
//! **Left to a proxy**: TLS, and how often one address may ask.
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// After its time, a connection may finish the request it is in; one whose peer does not read is then cut off.
const GRACE: Duration = Duration::from_secs(30);
/// How long a stop waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(5);
/// After a failed `accept` (out of file descriptors), wait rather than spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How much strangers may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at a time: each has a request of 64 KiB at most in memory, and a file descriptor.
    pub connections: usize,
    /// For a request's head to arrive, from the connection's begin or the end of the request before.
    pub head: Duration,
    /// A connection takes no new request after this long.
    pub connection: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        // Feeders keep connections alive between looks, so there are as many as logs that are fed often, and then some.
        Self { connections: 1024, head: Duration::from_secs(15), connection: Duration::from_secs(600) }
    }
}

/// Serves until `stop` resolves, then lets requests in flight finish.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds, stop: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(bounds.connections));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = accept(&listener, &slots) => match accepted {
                Ok((tcp, slot)) => {
                    let held = hold(tcp, router.clone(), bounds, stopped.clone());
                    connections.spawn(async move {
                        held.await;
                        drop(slot);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _late = tokio::time::timeout(DRAIN, drained).await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, _) = listener.accept().await?;
    tcp.set_nodelay(true)?;
    Ok((tcp, slot))
}

async fn hold(tcp: TcpStream, router: Router, bounds: Bounds, mut stopped: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.head);
    let connection = builder.serve_connection(TokioIo::new(tcp), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let mut over = std::pin::pin!(tokio::time::sleep(bounds.connection));
    let mut cut = std::pin::pin!(tokio::time::sleep(bounds.connection + GRACE));
    let mut ending = false;
    loop {
        tokio::select! {
            _ended = connection.as_mut() => return,
            () = &mut cut => return,
            () = &mut over, if !ending => {}
            _ = stopped.wait_for(|stop| *stop), if !ending => {}
        }
        ending = true;
        connection.as_mut().graceful_shutdown();
    }
}
