//! Real sockets, a scripted upstream.
use super::*;
use crate::testing::{Act, Fake, ok, route};
use quorate_dialects::Dialect;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Running {
    fake: Arc<Fake>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<bool>,
}

async fn start(config: &str, acts: Vec<Act>) -> Running {
    let mut config: Config = toml::from_str(config).unwrap();
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let fake = Arc::new(Fake::new(vec![route("r", Dialect::OpenAi, &["*"])]).acts("r", acts));
    let server = Server::bind(&config, Gate::Local, fake.clone()).await.unwrap();
    let address = server.address().unwrap();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running { fake, address, stop, ended }
}

const BODY: &str = r#"{"model":"m","messages":[]}"#;

fn chat(more: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n{body}"
    )
}

impl Running {
    async fn say(&self, bytes: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        tcp
    }

    async fn hears(&self, bytes: &str) -> String {
        rest(&mut self.say(bytes).await).await
    }
}

async fn rest(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let _cut = tokio::time::timeout(Duration::from_secs(20), io.read_to_end(&mut all)).await.unwrap();
    String::from_utf8(all).unwrap()
}

/// Until a condition holds; a test that waits in vain ends here.
async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("in vain: {what}");
}

#[tokio::test]
async fn hanging_up_before_the_answer_and_within_it_releases_everything() {
    for act in [Act::Silence, Act::Hang(200)] {
        let running = start("", vec![act]).await;
        let tcp = running.say(&chat("", BODY)).await;
        until("it is open", || running.fake.open() == 1).await;
        drop(tcp);
        until("it is cancelled", || running.fake.open() == 0).await;
        running.stop.send(()).unwrap();
        assert!(running.ended.await.unwrap());
    }
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let running = start("", vec![ok("{}")]).await;
    for (case, bytes) in [
        ("two lengths", chat("content-length: 5\r\n", BODY)),
        ("an odd coding", chat("transfer-encoding: gzip\r\n", BODY)),
        ("chunked, not last", chat("transfer-encoding: chunked, identity\r\n", BODY)),
        ("a space before the colon", chat("x-a : b\r\n", BODY)),
        ("a folded header", chat("x-a: b\r\n c\r\n", BODY)),
        ("a bare line feed in a value", chat("x-a: b\nx-c\u{0}: d\r\n", BODY)),
        ("a signed length", chat("", BODY).replace("content-length: ", "content-length: +")),
        ("a bad chunk", "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n".into()),
    ] {
        let heard = running.hears(&bytes).await;
        assert!(heard.starts_with("HTTP/1.1 400"), "{case}: {heard}");
        assert_eq!(heard.matches("HTTP/1.1").count(), 1, "{case}: {heard}");
    }
    assert_eq!(running.fake.sent().len(), 0, "none of them went on");
    // A length beside chunks is no second way: chunks count, and the connection ends.
    let both = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1b\r\n";
    let heard = running.hears(&format!("{both}{BODY}\r\n0\r\n\r\nGET /v1/nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await;
    assert!(heard.matches("HTTP/1.1 200").count() <= 1 && !heard.contains("invalid_request"), "{heard}");
    assert!(running.fake.sent().len() <= 1);
}

/// Many clients read nothing before they have sent all.
#[tokio::test]
async fn whoever_sends_too_much_hears_why() {
    let running = start("[limits]\nbody_bytes_max = 1024", vec![ok("{}")]).await;
    let body = "x".repeat(16 * 1024 * 1024);
    let wrong = chat("", &body).replace("/v1/chat/completions", "/chat/completions");
    for (bytes, status, code) in
        [(chat("", &body), 413, "body_too_large"), (wrong, 404, "endpoint_not_found")]
    {
        let heard = running.hears(&bytes.replacen("\r\n", "\r\nconnection: close\r\n", 1)).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status}")) && heard.contains(code), "{heard}");
    }
    let chunked = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1000000\r\n{body}\r\n0\r\n\r\n"
    );
    let heard = running.hears(&chunked).await;
    assert!(heard.starts_with("HTTP/1.1 413"), "{heard}");
}

#[tokio::test]
async fn whoever_asks_before_sending_is_answered_before() {
    let running = start("[limits]\nbody_bytes_max = 1024", vec![ok("{}")]).await;
    let expect = "expect: 100-continue\r\nconnection: close\r\n";
    let mut tcp = running.say(chat(expect, BODY).strip_suffix(BODY).unwrap()).await;
    let mut heard = [0; 25];
    tcp.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"HTTP/1.1 100 Continue\r\n\r\n");
    tcp.write_all(BODY.as_bytes()).await.unwrap();
    assert!(rest(&mut tcp).await.starts_with("HTTP/1.1 200"));
    let large = chat(expect, &"x".repeat(2_000));
    let heard = running.hears(large.trim_end_matches('x')).await;
    assert!(heard.starts_with("HTTP/1.1 413") && heard.contains("body_too_large"), "{heard}");
    let wrong = chat(expect, BODY).replace("/v1/chat", "/chat");
    let heard = running.hears(wrong.strip_suffix(BODY).unwrap()).await;
    assert!(heard.starts_with("HTTP/1.1 404"), "{heard}");
}

#[tokio::test]
async fn requests_one_behind_the_other_are_answered_in_order() {
    let running = start("", vec![ok("{\"n\":1}"), ok("{\"n\":2}"), ok("{\"n\":3}")]).await;
    let heard =
        running.hears(&[chat("", BODY), chat("", BODY), chat("connection: close\r\n", BODY)].concat()).await;
    let bodies: Vec<&str> = heard.split("{\"n\":").skip(1).map(|b| &b[..1]).collect();
    assert_eq!(bodies, ["1", "2", "3"], "{heard}");
}

#[tokio::test]
async fn the_older_http_is_answered_too() {
    let events = Act::Answer(
        200,
        vec![("content-type", "text/event-stream")],
        vec!["data: 1\n\n", "data: [DONE]\n\n"],
        None,
    );
    let running = start("", vec![ok("{\"n\":1}"), events]).await;
    let old = chat("", BODY).replace("HTTP/1.1\r\nhost: 127.0.0.1", "HTTP/1.0");
    let heard = running.hears(&old).await;
    assert!(heard.starts_with("HTTP/1.0 200") && heard.ends_with("{\"n\":1}"), "{heard}");
    assert!(heard.contains("content-length: 7\r\n"), "{heard}");
    let heard = running.hears(&old).await;
    assert!(heard.ends_with("\r\n\r\ndata: 1\n\ndata: [DONE]\n\n") && !heard.contains("chunked"), "{heard}");
    let heard = running.hears("GET /v1/nothing HTTP/1.0\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.0 404") && heard.contains("endpoint_not_found"), "{heard}");
}

#[tokio::test]
async fn half_a_head_does_not_hold_up_a_stop_and_an_answer_does() {
    let slow = Act::Slow(Duration::from_secs(4), Box::new(ok("{\"whole\":true}")));
    let running = start("", vec![slow]).await;
    let half = running.say("POST /v1/chat/completions HTTP/1.1\r\nhost: loc").await;
    let mut whole = running.say(&chat("", BODY)).await;
    until("it is open", || running.fake.open() == 1).await;
    let begun = tokio::time::Instant::now();
    running.stop.send(()).unwrap();
    assert!(rest(&mut whole).await.contains("{\"whole\":true}"));
    assert!(running.ended.await.unwrap(), "in time");
    assert!(begun.elapsed() < Duration::from_secs(25));
    drop(half);
}

#[tokio::test]
async fn a_page_that_had_its_name_made_ours_reads_no_metrics() {
    let running = start("", vec![ok("{}")]).await;
    let get = |host: &str| format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    assert!(running.hears(&get("127.0.0.1:9")).await.contains("quorate_adapter_in_flight"));
    let heard = running.hears(&get("evil.example")).await;
    assert!(heard.contains("host_not_allowed") && !heard.contains("in_flight"), "{heard}");
}

mod tls {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use std::os::unix::fs::PermissionsExt as _;
    use tokio_rustls::TlsConnector;

    type Made = (CertificateDer<'static>, PrivateKeyDer<'static>);

    struct Ca(CertifiedIssuer<'static, KeyPair>);

    impl Ca {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn makes(&self, purpose: ExtendedKeyUsagePurpose, dir: Option<&std::path::Path>) -> Made {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
            params.extended_key_usages = vec![purpose];
            let cert = params.signed_by(&key, &self.0).unwrap();
            if let Some(dir) = dir {
                std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
                std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
                std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o600))
                    .unwrap();
            }
            (cert.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        }
    }

    async fn asks(
        running: &Running,
        ca: &Ca,
        own: Option<Made>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<String, std::io::Error> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.0.der().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
        let config = match own {
            Some((cert, key)) => builder.with_client_auth_cert(vec![cert], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let tcp = TcpStream::connect(running.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        stream.write_all(chat("connection: close\r\n", BODY).as_bytes()).await?;
        let mut heard = Vec::new();
        let read = stream.read_to_end(&mut heard).await;
        if heard.is_empty() {
            read?;
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8(heard).unwrap())
    }

    #[tokio::test]
    async fn the_listener_speaks_tls_1_3_and_nothing_else() {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        ca.makes(ExtendedKeyUsagePurpose::ServerAuth, Some(dir.path()));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config =
            format!("tls = {{ cert_file = {:?}, key_file = {:?} }}", path("cert.pem"), path("key.pem"));
        let running = start(&config, vec![ok("{}")]).await;
        let heard = asks(&running, &ca, None, &[&rustls::version::TLS13]).await.unwrap();
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
        let plain = running.hears(&chat("", BODY)).await;
        assert!(!plain.contains("HTTP/1.1"), "{plain}");
        let config: Config = toml::from_str(&config).unwrap();
        std::fs::set_permissions(dir.path().join("key.pem"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = socket::acceptor(config.tls.as_ref().unwrap()).err().unwrap();
        assert!(refused.to_string().contains("readable by others"), "{refused}");
    }

    #[tokio::test]
    async fn with_a_client_ca_only_its_certificates_are_heard() {
        let (dir, ca, other) = (tempfile::tempdir().unwrap(), Ca::new(), Ca::new());
        ca.makes(ExtendedKeyUsagePurpose::ServerAuth, Some(dir.path()));
        std::fs::write(dir.path().join("ca.pem"), ca.0.pem()).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "tls = {{ cert_file = {:?}, key_file = {:?}, client_ca_file = {:?} }}",
            path("cert.pem"),
            path("key.pem"),
            path("ca.pem")
        );
        let running = start(&config, vec![ok("{}")]).await;
        let client = |ca: &Ca| ca.makes(ExtendedKeyUsagePurpose::ClientAuth, None);
        let versions = [&rustls::version::TLS13];
        assert!(asks(&running, &ca, Some(client(&ca)), &versions).await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(asks(&running, &ca, None, &versions).await.is_err());
        assert!(asks(&running, &ca, Some(client(&other)), &versions).await.is_err());
        assert_eq!(running.fake.sent().len(), 1);
    }
}
