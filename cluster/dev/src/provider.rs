//! The demo provider: a small server on TLS 1.3 and loopback that speaks the dialects of OpenAI, Anthropic, Gemini and
//! Bedrock, for the demo, the tests and the benchmarks. Nothing in the mesh knows that it is the demo's.
//!
//! It decides nothing for the mesh and holds no secret of it. It is strict, so that a mesh that garbles a request or an adapter
//! that mistranslates one sees an error: bodies are checked field by field (module `strict`), and what a vendor refuses is
//! refused in that vendor's own error form (one module for each dialect). Answers are a function of the request (module
//! `answer`), so two runs can be compared. Certificates come from a throw-away CA in `--dir`, which survives a restart so
//! that a client may pin it.
//!
//! It refuses TLS below 1.3 and ALPN other than `http/1.1`. A model named `fault-…` asks for one fault; each is
//! listed at [`Fault`]. Departs from real providers: no rate limit, one choice, no log probabilities, images are not looked
//! at, tools are called when the question names them.

mod access;
mod answer;
mod anthropic;
mod api;
mod bedrock;
mod catalogue;
mod gemini;
mod openai;
mod reply;
mod strict;
mod tls;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use self::catalogue::Fault;

/// Connections held at once; more wait in the kernel's backlog. Well above any benchmark's pools, well below
/// the usual limit of open files.
const CONNECTIONS_MAX: usize = 4096;
/// A handshake that takes longer than this is given up.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a stop waits for answers in flight.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// After a failed `accept` (out of file descriptors), wait rather than spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(20);

/// How the demo provider listens, answers and misbehaves.
#[derive(Clone, clap::Parser)]
#[command(
    name = "quorate-demo-provider",
    version,
    about = "A small TLS 1.3 server for development that speaks the providers' dialects"
)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one, written to DIR/addr.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Folder for ca.pem, ca.key, addr and url; made when missing. A CA found there is used again.
    #[arg(long)]
    pub dir: PathBuf,
    /// File with the API key that requests must bear; without it any key, or none, will do.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Only paths below this one (such as /keyed) need the key; it is taken off them.
    #[arg(long, value_name = "PATH", requires = "key_file")]
    pub key_path: Option<String>,
    /// Wait this long before the first byte of an answer.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub delay_ms: u64,
    /// Wait this long before each further chunk of a stream; 0 sends them in one burst.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub chunk_delay_ms: u64,
    /// Tokens (words) in an answer, unless the request asks for fewer.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub tokens: u32,
    /// The wait of the model `fault-slow` before its first byte.
    #[arg(long, default_value_t = 5_000, value_name = "MS")]
    pub slow_ms: u64,
    /// A further chat model to serve, beside `demo-chat`.
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// A further DNS name or address for the certificate, beside localhost and the loopback addresses.
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Close a connection that sends no request head for this long; 0 waits for ever, as pools like it.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub head_limit_ms: u64,
    /// Fault: present a certificate for another name.
    #[arg(long)]
    pub wrong_cert: bool,
    /// Fault: offer TLS13_AES_128_GCM_SHA256 and no other suite.
    #[arg(long)]
    pub only_aes: bool,
    /// Append one JSON line for each connection and request to this file.
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Append all that is asked and answered, one JSON line each, to DIR/exchanges.jsonl.
    #[arg(long)]
    pub exchanges: bool,
    /// Worker threads.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: u8,
}

/// A provider that is bound and has written its folder, but does not answer yet.
pub struct Provider {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    ca_pem: String,
    addr: SocketAddr,
}

/// What a dialect answers, and the fault that the model asks for.
struct Answered {
    fault: Option<Fault>,
    content: Content,
}

/// A good answer's body.
enum Content {
    Json(Vec<u8>),
    /// Its content type, and its parts.
    Stream(&'static str, VecDeque<Bytes>),
}

/// A refusal in a dialect's own form.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: u16,
    body: Vec<u8>,
    headers: Vec<(&'static str, String)>,
}

impl Answered {
    fn json(fault: Option<Fault>, body: &serde_json::Value) -> Self {
        Self { fault, content: Content::Json(body.to_string().into_bytes()) }
    }
}

impl Content {
    /// Server-sent events.
    fn events(parts: VecDeque<Bytes>) -> Self {
        Self::Stream("text/event-stream; charset=utf-8", parts)
    }
}

impl Refusal {
    fn new(status: u16, body: &serde_json::Value) -> Self {
        Self { status, body: body.to_string().into_bytes(), headers: Vec::new() }
    }
}

/// What every connection reads; nothing here changes after the start.
struct Shared {
    api: api::Api,
    access: Option<Arc<access::AccessLog>>,
    head_limit: Option<Duration>,
}

impl Provider {
    /// Makes or reads the CA, issues a certificate, binds, and writes `ca.pem`, `addr` and `url`.
    pub async fn bind(options: Options) -> anyhow::Result<Self> {
        let dir = &options.dir;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let ca = tls::DevCa::open(dir)?;
        let config = tls::server_config(&ca, &options)?;
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let addr = listener.local_addr().context("the listener has no address")?;
        let access = options.access_log.as_deref().map(access::AccessLog::open).transpose()?.map(Arc::new);
        let head_limit = (options.head_limit_ms > 0).then(|| Duration::from_millis(options.head_limit_ms));
        let api = api::Api::new(&options)?;
        tls::write_whole(&dir.join("addr"), addr.to_string().as_bytes(), 0o644)?;
        tls::write_whole(&dir.join("url"), base_url(addr).as_bytes(), 0o644)?;
        let shared = Arc::new(Shared { api, access, head_limit });
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { listener, acceptor, shared, ca_pem: ca.cert_pem().to_owned(), addr })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The certificate authority that clients must trust, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The base URL that an OpenAI SDK takes.
    pub fn base_url(&self) -> String {
        base_url(self.addr)
    }

    /// Serves until `shutdown` resolves, then lets answers in flight finish within a bound.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, acceptor, shared, .. } = self;
        let (stop, stopped) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&listener, &slots) => accepted,
            };
            match accepted {
                Ok((tcp, slot)) => {
                    let connection = serve(tcp, acceptor.clone(), shared.clone(), stopped.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(slot);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            }
        }
        drop(listener);
        stop.send_replace(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        let _late = tokio::time::timeout(DRAIN_LIMIT, drained).await;
    }
}

fn base_url(addr: SocketAddr) -> String {
    // The certificate is for `localhost`: SNI carries names only, and relays insist on SNI.
    format!("https://localhost:{}/v1", addr.port())
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, _) = listener.accept().await?;
    // Head and body of an answer are small and separate: without this each waits 40 ms for an ACK.
    tcp.set_nodelay(true)?;
    Ok((tcp, slot))
}

async fn serve(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp));
    let tls = tokio::select! {
        done = handshake => done,
        _ = stopped.wait_for(|stop| *stop) => return,
    };
    let log = shared.access.as_deref();
    let tls = match tls {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            return access::log(log, &access::Line::HandshakeFailed { error: error.to_string() });
        }
        Err(_) => return access::log(log, &access::Line::HandshakeFailed { error: "timed out".to_owned() }),
    };
    if log.is_some() {
        let suite = tls.get_ref().1.negotiated_cipher_suite().map(|suite| suite.suite());
        let suite = suite.and_then(|suite| suite.as_str()).unwrap_or("unknown").to_owned();
        access::log(log, &access::Line::Connected { suite });
    }
    let head = log.map(|_| access::FirstHead::default());
    let io = TokioIo::new(access::HeadTap::new(tls, head.clone()));
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let (shared, head) = (shared.clone(), head.clone());
            async move { shared.api.answer(request, shared.access.as_ref(), head).await }
        })
    };
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(shared.head_limit);
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            _ = stopped.wait_for(|stop| *stop), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended
        && error.is_parse()
    {
        access::log(log, &access::Line::Malformed { error: error.to_string() });
    }
}

#[cfg(test)]
mod tests;
