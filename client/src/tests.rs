//! The request path against a mock of a node: real mutual TLS, real gRPC, a real TLS 1.3 provider behind it; only the log is
//! not there. The mock relay runs the handshake watch and the body meter, the mock keyer checks the head.
use crate::error::Error;
use crate::http1::HttpError;
use crate::pool::{Lane, PoolOptions};
use crate::request::{Method, Request, Target};
use crate::response::{Exchange, First, ResponseBody};
use crate::send::testing::{Limits, start};
use crate::{Client, DangerDirect, TrustFile, head_template};
use aws_lc_rs::signature::Ed25519KeyPair;
use futures::Stream;
use quorate_core::command::{ClientCommand, ClientSigned, Command, Ended};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{ClientId, NodeId, PoolId};
use quorate_core::leaf::Outcome;
use quorate_core::policy::RouteDocument;
use quorate_core::proof::{LeafCertificate, Proof};
use quorate_core::refusal::Refusal;
use quorate_core::tlog::LeafIndex;
use quorate_proto::v1::mesh_server::{Mesh, MeshServer};
use quorate_proto::v1::{self, tunnel_down, tunnel_up};
use quorate_splitkey::framing::{BodyMeter, HeadRecords};
use quorate_splitkey::keyer::KeyerConnection;
use quorate_splitkey::record::TrafficSecret;
use quorate_splitkey::watch::HandshakeWatch;
use quorate_transport::{Expect, Identity, Incoming, Limits as NodeLimits, grpc_server};
use rustls::pki_types::PrivateKeyDer;
use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

mod keyed;

/// How the mock provider behaves.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Provider {
    Good,
    /// Cuts TCP in the middle of the body.
    Cuts,
    /// Offers AES only.
    NoSuite,
    /// Asks for a client certificate.
    WantsCertificate,
    /// Checks the key, and knows requests that are bad: see `keyed::refusal`.
    Keyed,
    /// Refuses every key, and repeats the request's head.
    Echoes,
}

pub(crate) struct Stage {
    pub(crate) route: RouteDocument,
    accepted: Arc<AtomicUsize>,
}

fn route(port: u16, ca_pem: String) -> RouteDocument {
    RouteDocument {
        name: "r".into(),
        host: "localhost".into(),
        port,
        base_path: String::new(),
        paths: vec!["/v1/chat/completions".into()],
        dialect: "openai".into(),
        headers: vec![],
        models: vec!["*".into()],
        ca_pem,
        body_bytes_max: 1 << 24,
        response_bytes_max: 1 << 24,
        duration_ms_max: 10_000,
        credential: None,
    }
}

/// A TLS provider that echoes the body's length and the body, chunked.
pub(crate) async fn provider(kind: Provider) -> Stage {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut crypto = rustls::crypto::aws_lc_rs::default_provider();
    if kind == Provider::NoSuite {
        crypto.cipher_suites.retain(|s| s.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
    let crypto = Arc::new(crypto);
    let builder = rustls::ServerConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let builder = if kind == Provider::WantsCertificate {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto)
            .allow_unauthenticated()
            .build()
            .unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, count) = (acceptor.clone(), count.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                count.fetch_add(1, Ordering::SeqCst);
                serve(&mut tls, kind).await;
            });
        }
    });
    Stage { route: route(port, own.cert.pem()), accepted }
}

async fn serve(tls: &mut tokio_rustls::server::TlsStream<TcpStream>, kind: Provider) {
    let mut request = Vec::new();
    let (head_end, length) = loop {
        let mut piece = [0; 4096];
        let Ok(read @ 1..) = tls.read(&mut piece).await else { return };
        request.extend_from_slice(&piece[..read]);
        if let Some(at) = request.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = std::str::from_utf8(&request[..at]).unwrap();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
            break (at + 4, length.map_or(0, |l| l.parse::<usize>().unwrap()));
        }
    };
    while request.len() < head_end + length {
        let mut piece = [0; 4096];
        let Ok(read @ 1..) = tls.read(&mut piece).await else { return };
        request.extend_from_slice(&piece[..read]);
    }
    let body = &request[head_end..];
    if kind == Provider::Keyed
        && let Some((status, error)) = keyed::refusal(&request[..head_end], body)
    {
        let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: {}\r\n\r\n{error}", error.len());
        tls.write_all(answer.as_bytes()).await.unwrap();
        tls.shutdown().await.unwrap();
        return;
    }
    if kind == Provider::Echoes {
        let mut answer = format!("HTTP/1.1 401 No\r\ncontent-length: {head_end}\r\n\r\n").into_bytes();
        answer.extend_from_slice(&request[..head_end]);
        tls.write_all(&answer).await.unwrap();
        tls.shutdown().await.unwrap();
        return;
    }
    let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(10_000) {
        answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
        answer.extend(chunk);
        answer.extend(b"\r\n");
    }
    if kind == Provider::Cuts {
        tls.write_all(&answer).await.unwrap();
        tls.flush().await.unwrap();
        return;
    }
    answer.extend(b"0\r\n\r\n");
    tls.write_all(&answer).await.unwrap();
    tls.shutdown().await.unwrap();
}

/// What the mock relay says once it has the request.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    Authorised,
    Refused,
    Lost,
}

type Secrets = Arc<Mutex<Vec<(Vec<u8>, [u8; 32])>>>;

struct MockNode {
    route: RouteDocument,
    word: Word,
    keyers: Secrets,
    id: NodeId,
    log: Option<Arc<MockLog>>,
}

/// What the nodes of a mock mesh share in place of a log.
#[derive(Default)]
struct MockLog {
    directory: Mutex<Vec<u8>>,
    /// How often it was given.
    looked: AtomicUsize,
    submitted: Mutex<Vec<Command>>,
    /// Nodes whose tunnels are refused as lapsed.
    lapsed: Mutex<BTreeSet<NodeId>>,
    /// The real state machine, certified by the members' keys.
    mesh: Mutex<Option<quorate_core::testing::Mesh>>,
    /// Pairs that flip a bit of the key.
    spoiling: Mutex<BTreeSet<(NodeId, NodeId)>>,
    /// Nodes that have no shares.
    shareless: Mutex<BTreeSet<NodeId>>,
    /// Pairs whose relay finds that the keyer's answer does not fit.
    unfit: Mutex<BTreeSet<(NodeId, NodeId)>>,
    /// Whether relays keep the certificate to themselves.
    uncertified: std::sync::atomic::AtomicBool,
}

fn decide(mesh: &mut quorate_core::testing::Mesh, command: Command) -> Outcome {
    mesh.time = mesh.time.max(crate::directory::now());
    mesh.decide(command)
}

impl MockLog {
    fn decide(&self, command: Command) -> Outcome {
        decide(self.mesh.lock().unwrap().as_mut().unwrap(), command)
    }

    /// Decides an authorisation, and certifies it.
    fn authorise(&self, command: Command) -> Result<v1::tunnel_down::Authorised, Refusal> {
        let mut mesh = self.mesh.lock().unwrap();
        let mesh = mesh.as_mut().unwrap();
        match decide(mesh, command) {
            Outcome::Authorised => {}
            Outcome::Refused(refusal) => return Err(refusal),
            other => panic!("{other:?}"),
        }
        // The entry's last leaf is its end; the one before is the decision.
        let size = mesh.state().checkpoint().size.0;
        let Proof { checkpoint, cosignatures, mut leaves, .. } = mesh.proof(&[LeafIndex(size - 2)]);
        let certificate = LeafCertificate { checkpoint, cosignatures, leaf: leaves.remove(0) };
        let kept = self.uncertified.load(Ordering::SeqCst);
        Ok(v1::tunnel_down::Authorised {
            leaf_index: size - 2,
            tree_size: size,
            certificate: if kept { Vec::new() } else { encode(&certificate) }.into(),
            timings: None,
        })
    }
}

type Down = Pin<Box<dyn Stream<Item = Result<v1::TunnelDown, Status>> + Send>>;

#[tonic::async_trait]
impl Mesh for MockNode {
    type TunnelStream = Down;

    async fn directory(
        &self,
        _: tonic::Request<v1::DirectoryRequest>,
    ) -> Result<Response<v1::DirectoryReply>, Status> {
        let log = self.log.as_ref().ok_or_else(no_log)?;
        log.looked.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::DirectoryReply { proof: log.directory.lock().unwrap().clone().into() }))
    }
    async fn submit(
        &self,
        request: tonic::Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let command: Command = borsh::from_slice(&request.into_inner().command).unwrap();
        let Command::Client(signed) = &command else { panic!("clients submit client commands") };
        let outcome = match &signed.body {
            ClientCommand::OpenPool(_) | ClientCommand::Report(_) | ClientCommand::RevokeToken(_) => {
                self.log.as_ref().unwrap().decide(command.clone())
            }
            ClientCommand::Authorise(_) => panic!("authorisations go through the tunnel"),
        };
        self.log.as_ref().unwrap().submitted.lock().unwrap().push(command);
        Ok(Response::new(v1::SubmitReply { outcome: encode(&outcome).into(), leaf_index: None }))
    }
    async fn register(
        &self,
        r: tonic::Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        if self.shareless() {
            let refused = prost::Message::encode_to_vec(&no_use("shares_missing"));
            let mut status = Status::unavailable("shares_missing");
            let value = tonic::metadata::MetadataValue::from_bytes(&refused);
            status.metadata_mut().insert_bin(quorate_proto::REFUSAL_METADATA, value);
            return Err(status);
        }
        let r = r.into_inner();
        self.keyers
            .lock()
            .unwrap()
            .push((r.connection.to_vec(), r.traffic_secret.as_ref().try_into().unwrap()));
        Ok(Response::new(v1::RegisterReply {}))
    }
    async fn receipt(
        &self,
        _: tonic::Request<v1::ReceiptRequest>,
    ) -> Result<Response<v1::ReceiptReply>, Status> {
        Err(no_log())
    }
    async fn usage(&self, _: tonic::Request<v1::UsageRequest>) -> Result<Response<v1::UsageReply>, Status> {
        Err(no_log())
    }
    async fn status(
        &self,
        _: tonic::Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        // There, which is all that clients ask of it.
        self.log.as_ref().map(|_| Response::new(v1::StatusReply::default())).ok_or_else(no_log)
    }
    async fn tunnel(&self, up: tonic::Request<Streaming<v1::TunnelUp>>) -> Result<Response<Down>, Status> {
        let (down, receiver) = mpsc::channel(8);
        if self.shareless() {
            let frame = Some(tunnel_down::Frame::Refused(no_use("shares_missing")));
            down.send(Ok(v1::TunnelDown { frame })).await.unwrap();
            return Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))));
        }
        if self.log.as_ref().is_some_and(|l| l.lapsed.lock().unwrap().contains(&self.id)) {
            let frame = Some(tunnel_down::Frame::Refused(refused(Refusal::RelayNotAttested)));
            down.send(Ok(v1::TunnelDown { frame })).await.unwrap();
            return Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))));
        }
        let (route, word, keyers, log) =
            (self.route.clone(), self.word, self.keyers.clone(), self.log.clone());
        tokio::spawn(async move {
            let _ = relay(up.into_inner(), down, route, word, keyers, log).await;
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }
}

impl MockNode {
    fn shareless(&self) -> bool {
        self.log.as_ref().is_some_and(|l| l.shareless.lock().unwrap().contains(&self.id))
    }
}

/// What a node says, and not the log, of itself or its keyer.
fn no_use(code: &str) -> v1::Refused {
    let (retry, fault) = (v1::Retry::Now.into(), v1::Fault::Mesh.into());
    v1::Refused { code: code.into(), message: code.into(), hint: "h".into(), retry, fault }
}

fn no_log() -> Status {
    Status::unimplemented("no log here")
}

fn refused(refusal: Refusal) -> v1::Refused {
    use quorate_core::refusal::{Fault, Retry};
    let retry = match refusal.retry() {
        Retry::Now => v1::Retry::Now,
        Retry::Later => v1::Retry::Later,
        Retry::Never => v1::Retry::Never,
    };
    let fault = match refusal.fault() {
        Fault::Client => v1::Fault::Client,
        Fault::Operator => v1::Fault::Operator,
        Fault::Mesh => v1::Fault::Mesh,
    };
    v1::Refused {
        code: refusal.code().into(),
        message: refusal.to_string(),
        hint: refusal.hint().into(),
        retry: retry.into(),
        fault: fault.into(),
    }
}

/// A relay with everything but the log. Ends with `None` when somebody hangs up.
async fn relay(
    mut up: Streaming<v1::TunnelUp>,
    down: mpsc::Sender<Result<v1::TunnelDown, Status>>,
    route: RouteDocument,
    word: Word,
    keyers: Secrets,
    log: Option<Arc<MockLog>>,
) -> Option<()> {
    let say = |frame| {
        let down = down.clone();
        async move { down.send(Ok(v1::TunnelDown { frame: Some(frame) })).await.ok() }
    };
    let Some(tunnel_up::Frame::Open(open)) = up.message().await.ok()??.frame else { panic!("first Open") };
    let Ok(tcp) = TcpStream::connect(("127.0.0.1", route.port)).await else {
        say(tunnel_down::Frame::Closed(tunnel_down_closed("unreachable"))).await?;
        return None;
    };
    say(tunnel_down::Frame::Opened(v1::tunnel_down::Opened {})).await?;
    let (mut from, mut to) = tcp.into_split();
    let watch = Arc::new(Mutex::new(HandshakeWatch::new("localhost".parse().unwrap())));
    let reader_watch = watch.clone();
    let reader_down = down.clone();
    tokio::spawn(async move {
        loop {
            let mut piece = vec![0; 16 * 1024];
            let read = from.read(&mut piece).await.unwrap_or(0);
            let frame = if read == 0 {
                tunnel_down::Frame::Closed(tunnel_down_closed("complete"))
            } else {
                piece.truncate(read);
                let mut forward = Vec::new();
                reader_watch.lock().unwrap().provider_bytes(&piece, &mut forward).ok()?;
                tunnel_down::Frame::Data(forward.into())
            };
            reader_down.send(Ok(v1::TunnelDown { frame: Some(frame) })).await.ok()?;
            if read == 0 {
                return Some(());
            }
        }
    });
    let template = head_template(&route).unwrap();
    let mut meter: Option<BodyMeter> = None;
    while let Some(message) = up.message().await.ok()? {
        let mut forward = Vec::new();
        match (message.frame?, meter.as_mut()) {
            (tunnel_up::Frame::Data(data), None) => {
                let mut input: &[u8] = &data;
                watch.lock().unwrap().client_bytes(&mut input, &mut forward).unwrap();
                assert!(input.is_empty(), "nothing after Finished but the request");
            }
            (tunnel_up::Frame::Data(data), Some(meter)) => meter.body_bytes(&data, &mut forward).unwrap(),
            (tunnel_up::Frame::Request(request), None) => {
                assert!(watch.lock().unwrap().is_done());
                match word {
                    Word::Lost => {
                        std::mem::forget(to);
                        down.send(Err(Status::unavailable("going down"))).await.ok()?;
                        return None;
                    }
                    Word::Refused => {
                        let refused = v1::Refused { code: "rate_exceeded".into(), ..Default::default() };
                        say(tunnel_down::Frame::Refused(refused)).await?;
                        return None;
                    }
                    Word::Authorised => {}
                }
                let records = HeadRecords::from_bytes(&request.head, template.shape()).unwrap();
                let secret = keyers.lock().unwrap().iter().find(|(c, _)| *c == open.connection).unwrap().1;
                let mut keyer = KeyerConnection::new();
                keyer.register(TrafficSecret::new(secret)).unwrap();
                let checked = keyer.check_head(&template, &records).expect("a canonical head");
                let (signed, pair) = match borsh::from_slice::<Command>(&request.command) {
                    Ok(Command::Client(ClientSigned { body: ClientCommand::Authorise(a), .. })) => {
                        assert_eq!(a.connection.0, open.connection.as_ref());
                        (a.head_digest.0, (a.relay, a.keyer))
                    }
                    _ => (request.command.as_ref().try_into().unwrap(), (NodeId(1), NodeId(2))),
                };
                assert_eq!(signed, records.digest().0, "the signature covers the head");
                meter = Some(BodyMeter::new(checked.content_length()));
                let authorised = match &log {
                    Some(log) => log.authorise(borsh::from_slice(&request.command).unwrap()),
                    None => {
                        Ok(v1::tunnel_down::Authorised { leaf_index: 7, tree_size: 9, ..Default::default() })
                    }
                };
                let authorised = match authorised {
                    Ok(authorised) => authorised,
                    Err(refusal) => {
                        say(tunnel_down::Frame::Refused(refused(refusal))).await?;
                        return None;
                    }
                };
                if log.as_ref().is_some_and(|l| l.unfit.lock().unwrap().contains(&pair)) {
                    say(tunnel_down::Frame::Refused(no_use("keyer_answer"))).await?;
                    return None;
                }
                let spoils = log.as_ref().is_some_and(|l| l.spoiling.lock().unwrap().contains(&pair));
                let hole = template.credential().map(|slot| keyed::hole(keyer, slot, pair.1, spoils));
                records.release_into(hole, &mut forward).unwrap();
                say(tunnel_down::Frame::Authorised(authorised)).await?;
            }
            _ => panic!("out of turn"),
        }
        to.write_all(&forward).await.ok()?;
    }
    Some(())
}

fn tunnel_down_closed(reason: &str) -> v1::tunnel_down::Closed {
    v1::tunnel_down::Closed { reason: reason.into() }
}

/// A lane through a mock relay and a mock keyer.
async fn lane(route: &RouteDocument, word: Word, options: PoolOptions) -> Arc<Lane> {
    let keyers = Secrets::default();
    let mut links = Vec::new();
    for node in 1..=2 {
        let identity = Identity::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let incoming = Incoming::new(listener, &identity, NodeLimits::default()).unwrap();
        let address = incoming.local_addr().into();
        let service =
            MockNode { route: route.clone(), word, keyers: Arc::clone(&keyers), log: None, id: NodeId(node) };
        tokio::spawn(grpc_server().add_service(MeshServer::new(service)).serve_with_incoming(incoming));
        let client = Identity::generate().unwrap();
        let expect = Expect::Key(identity.public());
        let link =
            quorate_transport::connect(&address, &client, expect, Duration::from_secs(5)).await.unwrap();
        links.push((NodeId(node), Arc::new(link)));
    }
    let keyer = links.pop().unwrap();
    let relay = links.pop().unwrap();
    Lane::for_tests(route, PoolId([1; 16]), relay, keyer, options)
}

fn request(body: Vec<u8>) -> Request {
    let request = Request::post_json(Target::Route("r".into()), "/v1/chat/completions", body);
    assert!(request.method == Method::Post);
    request
}

async fn begin(lane: &Lane, request: &Request) -> Result<Exchange, Error> {
    let conn = lane.take().await?;
    let limits = Limits { response_bytes_max: 1 << 24, allowed: Duration::from_secs(10) };
    start(lane, conn, request, |digest: Hash| digest.0.to_vec(), limits).await
}

async fn whole(lane: &Lane, body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut exchange = begin(lane, &request(body.to_vec())).await?;
    assert!(matches!(exchange.wait_authorised().await?, First::Authorised));
    assert_eq!(exchange.authorised.unwrap().leaf_index, 7);
    assert_eq!(exchange.head().await?.status, 200);
    Ok(ResponseBody::new(exchange).bytes(1 << 24).await?.to_vec())
}

fn body(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_cross_the_mesh_and_each_takes_a_connection_of_its_own() {
    let stage = provider(Provider::Good).await;
    let lane = lane(&stage.route, Word::Authorised, PoolOptions::default()).await;
    for length in [0, 10, 16_384, 49_152, 49_153, 1_000_000] {
        assert_eq!(whole(&lane, &body(length)).await.unwrap(), body(length), "{length}");
    }
    assert!(stage.accepted.load(Ordering::SeqCst) >= 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once() {
    let stage = provider(Provider::Good).await;
    let lane = lane(&stage.route, Word::Authorised, PoolOptions::default()).await;
    let all = (0..40).map(|n| {
        let lane = lane.clone();
        async move { whole(&lane, &body(n * 100)).await.unwrap().len() }
    });
    let lengths = futures::future::join_all(all).await;
    assert_eq!(lengths, (0..40).map(|n| n * 100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_answer_is_truncated_never_complete() {
    let stage = provider(Provider::Cuts).await;
    let lane = lane(&stage.route, Word::Authorised, PoolOptions::default()).await;
    let error = whole(&lane, &body(30_000)).await.unwrap_err();
    assert!(
        matches!(error, Error::Truncated { .. } | Error::ProviderHttp(HttpError::Truncated)),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_typed_and_a_lost_relay_is_not_an_answer() {
    let stage = provider(Provider::Good).await;
    let refusing = lane(&stage.route, Word::Refused, PoolOptions::default()).await;
    let mut exchange = begin(&refusing, &request(vec![])).await.unwrap();
    let First::Refused(Error::Refused(refusal)) = exchange.wait_authorised().await.unwrap() else {
        panic!("refused")
    };
    assert_eq!(refusal.code, "rate_exceeded");
    let lost = lane(&stage.route, Word::Lost, PoolOptions::default()).await;
    let mut exchange = begin(&lost, &request(vec![])).await.unwrap();
    assert!(matches!(exchange.wait_authorised().await, Err(Error::NodeLost { node: NodeId(1), .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_provider_is_named() {
    for (kind, expected) in
        [(Provider::NoSuite, "suite"), (Provider::WantsCertificate, "certificate request")]
    {
        let stage = provider(kind).await;
        let direct = DangerDirect::new(&stage.route, PoolOptions::default()).unwrap();
        let error = direct.request(&request(vec![])).await.unwrap_err();
        let got = match error {
            Error::ProviderSuite { .. } => "suite",
            Error::ProviderWantsCertificate { .. } => "certificate request",
            other => panic!("{other:?}"),
        };
        assert_eq!(got, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_than_the_routes_is_refused() {
    let (one, other) = (provider(Provider::Good).await, provider(Provider::Good).await);
    let mixed = RouteDocument { ca_pem: other.route.ca_pem, ..one.route.clone() };
    for (route, good) in [(one.route, true), (mixed, false)] {
        let lane = lane(&route, Word::Authorised, PoolOptions::default()).await;
        match whole(&lane, b"x").await {
            Ok(_) => assert!(good),
            Err(error) => assert!(!good && matches!(error, Error::ProviderCertificate { .. }), "{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_mode_runs_the_same_code() {
    let stage = provider(Provider::Good).await;
    let direct = DangerDirect::new(&stage.route, PoolOptions::default()).unwrap();
    let response = direct.request(&request(body(100_000))).await.unwrap();
    assert_eq!(response.body.bytes(1 << 20).await.unwrap(), body(100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_provider_is_the_providers_fault() {
    let mut route = provider(Provider::Good).await.route;
    // A port that was free a moment ago and has no listener.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    route.port = free.local_addr().unwrap().port();
    drop(free);
    let lane = lane(&route, Word::Authorised, PoolOptions::default()).await;
    let error = whole(&lane, b"x").await.unwrap_err();
    assert!(matches!(error, Error::ProviderUnreachable { .. }), "{error:?}");
}

/// Writes a key pair the way key files are.
fn key_file(path: &Path, pair: &Ed25519KeyPair) {
    use std::os::unix::fs::PermissionsExt;
    let der = pair.to_pkcs8v1().unwrap();
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der.as_ref());
    std::fs::write(path, format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"))
        .unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

struct MockMesh {
    trust: TrustFile,
    log: Arc<MockLog>,
    nodes: Vec<Option<tokio::runtime::Runtime>>,
    _dir: tempfile::TempDir,
}

impl MockMesh {
    fn kill(&mut self, node: NodeId) {
        // Waits until nothing of it runs: what is answered after this is not its answer.
        let runtime = self.nodes[node.0 as usize - 1].take().unwrap();
        tokio::task::block_in_place(|| runtime.shutdown_timeout(Duration::from_secs(5)));
    }
}

impl Drop for MockMesh {
    fn drop(&mut self) {
        self.nodes.drain(..).flatten().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

/// Four nodes whose directory is proven, with the boot keys that it names; `age_ms` is how old it is.
async fn mesh(provider: &RouteDocument, age_ms: u64) -> MockMesh {
    mesh_with(provider, age_ms, |_| ()).await
}

async fn mesh_with(
    provider: &RouteDocument,
    age_ms: u64,
    edit: impl FnOnce(&mut quorate_core::policy::PolicyDocument),
) -> MockMesh {
    use quorate_core::testing::{CLIENT, Mesh as Honest, key};
    let dir = tempfile::tempdir().unwrap();
    let mut listeners = Vec::new();
    for _ in 0..4 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let mut honest = Honest::dark(4, 1, |d| {
        for (member, address) in d.member.iter_mut().zip(&addresses) {
            member.address = address.to_string();
        }
        let route = d.route.first_mut().unwrap();
        *route = RouteDocument { name: route.name.clone(), ..provider.clone() };
        edit(d);
    });
    honest.time = quorate_core::ids::Timestamp(crate::directory::now().0 - age_ms);
    honest.recover();
    let directory = Mutex::new(encode(&honest.proof(&[])));
    let route = honest.fleet.document.route.first().unwrap().clone();
    let nodes_keys: Vec<_> = honest.fleet.nodes.iter().map(|(id, node)| (*id, node.tls_key())).collect();
    let (cluster, mesh) = (honest.fleet.cluster(), Mutex::new(Some(honest)));
    let log = Arc::new(MockLog { directory, mesh, ..MockLog::default() });
    let keyers = Secrets::default();
    let mut nodes = Vec::new();
    for (listener, (id, tls_key)) in listeners.into_iter().zip(&nodes_keys) {
        let path = dir.path().join(id.to_string());
        key_file(&path, tls_key);
        let identity = Identity::load(&path).unwrap();
        let service = MockNode {
            route: route.clone(),
            word: Word::Authorised,
            keyers: Arc::clone(&keyers),
            log: Some(log.clone()),
            id: *id,
        };
        // A runtime of its own: stopping it cuts every connection, as a crash does.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = Incoming::new(listener, &identity, NodeLimits::default()).unwrap();
            grpc_server().add_service(MeshServer::new(service)).serve_with_incoming(incoming).await
        });
        nodes.push(Some(runtime));
    }
    let client_key = dir.path().join("client.key");
    key_file(&client_key, &key(CLIENT));
    let trust = TrustFile {
        genesis: cluster,
        nodes: addresses.iter().map(|a| (*a).into()).collect(),
        client: ClientId::new(CLIENT).unwrap(),
        key: client_key,
        freshness_ms: 90_000,
        token: None,
    };
    MockMesh { trust, log, nodes, _dir: dir }
}

fn ask(body: Vec<u8>) -> Request {
    Request { target: Target::Model("any".into()), ..request(body) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_connects_asks_and_reports() {
    let stage = provider(Provider::Good).await;
    let mesh = mesh(&stage.route, 0).await;
    let client = Client::connect(mesh.trust.clone()).await.unwrap();
    let response = client.request(ask(body(100_000))).await.unwrap();
    assert_eq!(response.status.as_u16(), 200);
    let authorised = response.provenance.authorised;
    assert_eq!(authorised.leaf_index + 2, authorised.tree_size, "as the certificate says");
    let request = response.provenance.request;
    assert_eq!(response.body.bytes(1 << 20).await.unwrap(), body(100_000));
    // One that is dropped is cancelled, and says so.
    let dropped = client.request(ask(body(10))).await.unwrap();
    let cancelled = dropped.provenance.request;
    drop(dropped);
    client.flush().await;
    let submitted = mesh.log.submitted.lock().unwrap();
    let ended = |id| {
        submitted.iter().find_map(|c| match c {
            Command::Client(ClientSigned { body: ClientCommand::Report(all), .. }) => {
                all.iter().find(|r| r.request == id).map(|r| (r.status, r.ended))
            }
            _ => None,
        })
    };
    assert_eq!(ended(request), Some((200, Ended::Complete)));
    assert_eq!(ended(cancelled), Some((200, Ended::Cancelled)));
}

/// No leaf, no forward: an answer without a certificate of its own request's authorisation is not handed on.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_certificate_is_not_handed_on() {
    let stage = provider(Provider::Good).await;
    let mesh = mesh(&stage.route, 0).await;
    let client = Client::connect(mesh.trust.clone()).await.unwrap();
    assert!(client.request(ask(body(10))).await.is_ok());
    mesh.log.uncertified.store(true, Ordering::SeqCst);
    let error = client.request(ask(body(10))).await.unwrap_err();
    assert!(format!("{error:?}").contains("NodeMisbehaved"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_relay_costs_a_retry_not_a_request() {
    let stage = provider(Provider::Good).await;
    let mut mesh = mesh(&stage.route, 0).await;
    let client = Client::connect(mesh.trust.clone()).await.unwrap();
    let first = client.request(ask(vec![])).await.unwrap().provenance;
    mesh.kill(first.relay);
    for _ in 0..6 {
        // The first may be on its way when its relay dies: only the caller knows that it may be repeated.
        let again = Request { idempotent: true, ..ask(body(5)) };
        let next = client.request(again).await.unwrap().provenance;
        assert_ne!(next.relay, first.relay);
    }
    // As keyer it is left as soon as its connection is known to be closed; these relays ask no keyer.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while client.request(ask(body(5))).await.unwrap().provenance.keyer == first.relay {
        assert!(tokio::time::Instant::now() < deadline, "a dead keyer is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_lapses_is_left() {
    let stage = provider(Provider::Good).await;
    let mesh = mesh(&stage.route, 0).await;
    let client = Client::connect(mesh.trust.clone()).await.unwrap();
    let first = client.request(ask(vec![])).await.unwrap().provenance;
    mesh.log.lapsed.lock().unwrap().insert(first.relay);
    for _ in 0..12 {
        client.request(ask(body(5))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_directory_is_refused_and_nothing_is_sent() {
    let stage = provider(Provider::Good).await;
    let mesh = mesh(&stage.route, 120_000).await;
    let error = Client::connect(mesh.trust.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error:?}");
    assert_eq!(stage.accepted.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_fails_in_time_and_names_each_node() {
    let stage = provider(Provider::Good).await;
    let mut mesh = mesh(&stage.route, 0).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = free.local_addr().unwrap();
    // Accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(free);
    mesh.trust.nodes = vec![gone.into(), silent.local_addr().unwrap().into()];
    let began = std::time::Instant::now();
    let Error::NoNode(failures) = Client::connect(mesh.trust.clone()).await.unwrap_err() else { panic!() };
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(failures.len(), 2);
    assert!(
        failures.iter().any(|f| f.address == gone.to_string() && f.reason.contains("refused")),
        "{failures:?}"
    );
}
