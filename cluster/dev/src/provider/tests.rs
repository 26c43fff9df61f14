//! The provider over real sockets and TLS, seen by a client that trusts nothing but its CA.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::access::sha256_hex;
use super::{Options, Provider};

struct Running {
    dir: tempfile::TempDir,
    addr: std::net::SocketAddr,
    ca_pem: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), flags).await
    }

    async fn start_in(dir: tempfile::TempDir, flags: &[&str]) -> Self {
        let path = dir.path().to_str().unwrap().to_owned();
        let log = format!("{path}/access.jsonl");
        let args = ["test", "--dir", &path, "--access-log", &log];
        let provider = Provider::bind(Options::parse_from(args.iter().chain(flags))).await.unwrap();
        let (addr, ca_pem) = (provider.addr(), provider.ca_pem().to_owned());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(provider.run(async {
            let _asked_or_dropped = stopped.await;
        }));
        Self { dir, addr, ca_pem, stop: Some(stop), task }
    }

    async fn connect(&self, suites: &[SupportedCipherSuite]) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let mut crypto = rustls::crypto::aws_lc_rs::default_provider();
        crypto.cipher_suites = suites.to_vec();
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(self.addr).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    async fn exchange(&self, request: &str) -> (u16, String, io::Result<()>) {
        let mut tls = self.connect(CHACHA).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tls.read_to_end(&mut answer).await.map(drop);
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer, ended)
    }

    fn access(&self) -> Vec<Value> {
        let lines = std::fs::read_to_string(self.dir.path().join("access.jsonl")).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const CHACHA: &[SupportedCipherSuite] =
    &[rustls::crypto::aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
const AES: &[SupportedCipherSuite] = &[rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];

fn post(path: &str, extra: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{extra}content-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn chat(model: &str, stream: bool) -> String {
    let body =
        format!(r#"{{"model":"{model}","stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#);
    post("/v1/chat/completions", "", &body)
}

fn error_of(answer: &str) -> Value {
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    body["error"].clone()
}

#[tokio::test]
async fn answers_plain_and_streamed_and_logs_the_head_it_saw() {
    let provider = Running::start(&[]).await;
    let request = chat("demo-chat", false);
    let (status, answer, ended) = provider.exchange(&request).await;
    assert_eq!(status, 200, "{answer}");
    ended.unwrap();
    assert!(answer.contains("\"object\":\"chat.completion\""));
    let (status, answer, ended) = provider.exchange(&chat("demo-chat", true)).await;
    assert_eq!(status, 200);
    ended.unwrap();
    assert!(answer.contains("transfer-encoding: chunked") && answer.contains("data: [DONE]\n\n"), "{answer}");

    let access = provider.access();
    assert_eq!(access[0]["event"], "connected");
    assert_eq!(access[0]["suite"], "TLS13_CHACHA20_POLY1305_SHA256");
    let head = request.split_inclusive("\r\n\r\n").next().unwrap();
    assert_eq!(access[1]["event"], "request");
    assert_eq!(access[1]["status"], 200);
    assert_eq!(access[1]["head_sha256"], sha256_hex(head.as_bytes()));
    assert_eq!(access[1]["body_sha256"], sha256_hex(request.strip_prefix(head).unwrap().as_bytes()));
}

#[tokio::test]
async fn lists_its_models() {
    let provider = Running::start(&["--model", "extra"]).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let (status, answer, _) = provider.exchange(&get("/v1/models")).await;
    assert_eq!(status, 200);
    for model in ["demo-chat", "demo-embed", "extra"] {
        assert!(answer.contains(&format!("\"id\":\"{model}\"")), "{answer}");
    }
    assert_eq!(provider.exchange(&get("/v1/models/extra")).await.0, 200);
    assert_eq!(provider.exchange(&get("/v1/models/other")).await.0, 404);
}

#[tokio::test]
async fn refuses_in_the_api_s_own_form() {
    let provider = Running::start(&[]).await;
    let large =
        format!("POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 5 * 1024 * 1024);
    let cases = [
        (post("/v1/images/generations", "", "{}"), 404, "unknown_url"),
        (
            "GET /v1/embeddings HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(),
            405,
            "method_not_supported",
        ),
        (chat("gpt-9", false), 404, "model_not_found"),
        (large, 413, "request_too_large"),
        (chat("fault-400", false), 400, "invalid_value"),
        (chat("fault-401", false), 401, "invalid_api_key"),
        (chat("fault-429", false), 429, "rate_limit_exceeded"),
        (chat("fault-500", true), 500, "internal_error"),
    ];
    for (request, expected, code) in cases {
        let (status, answer, _) = provider.exchange(&request).await;
        assert_eq!(status, expected, "{request}");
        assert_eq!(error_of(&answer)["code"], code, "{answer}");
    }
    let plain_text = post("/v1/embeddings", "", "{}").replace("application/json", "text/plain");
    assert_eq!(provider.exchange(&plain_text).await.0, 400);
    let (status, answer, _) = provider.exchange(&chat("fault-502-html", false)).await;
    assert_eq!(status, 502);
    assert!(answer.contains("<html>") && !answer.contains("\"error\""));
}

#[tokio::test]
async fn with_a_key_file_only_that_key_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "sk-demo-1234\n").unwrap();
    let key = key.to_str().unwrap().to_owned();
    let provider = Running::start_in(dir, &["--key-file", &key]).await;
    let body = r#"{"model":"demo-embed","input":"hello"}"#;
    let ask = |header: &str| post("/v1/embeddings", header, body);
    assert_eq!(provider.exchange(&ask("authorization: Bearer sk-demo-1234\r\n")).await.0, 200);
    for wrong in ["", "authorization: Bearer sk-demo-1235\r\n", "authorization: sk-demo-1234\r\n"] {
        let (status, answer, _) = provider.exchange(&ask(wrong)).await;
        assert_eq!(status, 401, "{wrong}");
        assert_eq!(error_of(&answer)["code"], "invalid_api_key");
        assert!(!answer.contains("sk-demo"), "the refusal repeats a key");
    }
}

#[tokio::test]
async fn a_key_path_alone_needs_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "sk-demo-1234\n").unwrap();
    let key = key.to_str().unwrap().to_owned();
    let provider = Running::start_in(dir, &["--key-file", &key, "--key-path", "/keyed"]).await;
    let body = r#"{"model":"demo-embed","input":"hello"}"#;
    let good = "authorization: Bearer sk-demo-1234\r\n";
    let table =
        [("/v1/embeddings", "", 200), ("/keyed/v1/embeddings", "", 401), ("/keyed/v1/embeddings", good, 200)];
    for (path, header, expected) in table {
        assert_eq!(provider.exchange(&post(path, header, body)).await.0, expected, "{path} {header}");
    }
}

#[tokio::test]
async fn a_cut_stream_ends_without_an_end() {
    let provider = Running::start(&[]).await;
    for stream in [true, false] {
        let (status, answer, ended) = provider.exchange(&chat("fault-close-mid-stream", stream)).await;
        assert_eq!(status, 200);
        assert!(answer.contains("chat.completion"), "the first half is missing: {answer}");
        assert!(!answer.contains("[DONE]") && !answer.ends_with("0\r\n\r\n"));
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::UnexpectedEof, "no close_notify is expected");
    }
    let (status, answer, ended) = provider.exchange(&chat("fault-close", false)).await;
    assert_eq!((status, answer.as_str()), (0, ""));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_slow_answer_is_late() {
    let provider = Running::start(&["--slow-ms", "300", "--delay-ms", "1"]).await;
    let started = Instant::now();
    assert_eq!(provider.exchange(&chat("fault-slow", false)).await.0, 200);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn wrong_certificate_and_wrong_suite_are_seen_as_such() {
    let right = Running::start(&[]).await;
    right.connect(AES).await.unwrap();
    let wrong = Running::start(&["--wrong-cert"]).await;
    let error = wrong.connect(CHACHA).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    let aes = Running::start(&["--only-aes"]).await;
    aes.connect(AES).await.unwrap();
    let error = aes.connect(CHACHA).await.unwrap_err();
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
    assert!(aes.access().iter().any(|line| line["event"] == "handshake_failed"));
}

#[tokio::test]
async fn the_ca_survives_a_restart_and_a_stop_is_prompt() {
    let mut first = Running::start(&[]).await;
    let _idle = first.connect(CHACHA).await.unwrap();
    first.stop.take().unwrap().send(()).unwrap();
    first.task.await.unwrap();
    let old_ca = first.ca_pem.clone();
    let second = Running::start_in(first.dir, &[]).await;
    assert_eq!(second.ca_pem, old_ca);
    assert_eq!(second.exchange(&chat("demo-chat", false)).await.0, 200);
    let read = |name: &str| std::fs::read_to_string(second.dir.path().join(name)).unwrap();
    assert_eq!(read("addr"), second.addr.to_string());
    assert_eq!(read("url"), format!("https://localhost:{}/v1", second.addr.port()));
}

#[tokio::test]
async fn an_unwritable_folder_is_an_error_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let dir: &Path = file.path();
    let error =
        Provider::bind(Options::parse_from(["test".as_ref(), "--dir".as_ref(), dir.as_os_str()])).await;
    let error = error.err().unwrap();
    assert!(format!("{error:#}").contains(dir.to_str().unwrap()), "{error:#}");
}

#[tokio::test]
async fn a_pool_may_wait_unless_a_head_limit_says_otherwise() {
    let provider = Running::start(&["--head-limit-ms", "100"]).await;
    let mut idle = provider.connect(CHACHA).await.unwrap();
    let mut byte = [0];
    let closed =
        tokio::time::timeout(Duration::from_secs(10), idle.read(&mut byte)).await.expect("it stays open");
    assert!(matches!(closed, Ok(0) | Err(_)));
}

#[tokio::test]
async fn each_dialect_answers_and_refuses_in_its_own_form() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "sk-demo-1234").unwrap();
    let key = key.to_str().unwrap().to_owned();
    let provider = Running::start_in(dir, &["--key-file", &key]).await;
    let version = "anthropic-version: 2023-06-01\r\n";
    let messages = r#"{"model":"demo-chat","max_tokens":99,"messages":[{"role":"user","content":"hi"}]}"#;
    let contents = r#"{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}"#;
    let converse = r#"{"messages":[{"role":"user","content":[{"text":"hi"}]}]}"#;
    let gemini = "/v1beta/models/demo-chat:generateContent";
    let stream = "/v1beta/models/demo-chat:streamGenerateContent?alt=sse";
    let (anthropic_key, google_key) = ("x-api-key: sk-demo-1234\r\n", "x-goog-api-key: sk-demo-1234\r\n");
    let bearer = "authorization: Bearer sk-demo-1234\r\n";
    let table = [
        ("/v1/messages", format!("{version}{anthropic_key}"), messages, 200, "\"type\":\"message\""),
        ("/v1/messages", format!("{version}{bearer}"), messages, 401, "authentication_error"),
        ("/v1/messages", anthropic_key.to_owned(), messages, 400, "anthropic-version: header is required"),
        (
            "/v1/messages",
            format!("{version}{anthropic_key}"),
            contents,
            400,
            "contents: Extra inputs are not permitted",
        ),
        (
            "/v1/messages",
            format!("{version}{anthropic_key}"),
            r#"{"model":"demo-chat","messages":[]}"#,
            400,
            "max_tokens: Field required",
        ),
        (gemini, google_key.to_owned(), contents, 200, "\"finishReason\":\"STOP\""),
        (stream, google_key.to_owned(), contents, 200, "\"finishReason\":\"STOP\""),
        (gemini, bearer.to_owned(), contents, 403, "PERMISSION_DENIED"),
        (gemini, "x-goog-api-key: sk\r\n".to_owned(), contents, 400, "API_KEY_INVALID"),
        (gemini, google_key.to_owned(), messages, 400, "Cannot find field"),
        ("/v1beta/models/gemini-9:generateContent", google_key.to_owned(), contents, 404, "NOT_FOUND"),
        ("/model/demo-chat/converse", bearer.to_owned(), converse, 200, "\"stopReason\":\"end_turn\""),
        ("/model/demo-chat/converse", String::new(), converse, 403, "AccessDeniedException"),
        ("/model/demo-chat/converse", bearer.to_owned(), contents, 400, "ValidationException"),
        ("/model/fault-503/converse", bearer.to_owned(), converse, 503, "ServiceUnavailableException"),
        (
            "/v1/responses",
            bearer.to_owned(),
            r#"{"model":"demo-chat","input":"hi"}"#,
            200,
            "\"object\":\"response\"",
        ),
    ];
    for (path, headers, body, status, part) in table {
        let (got, answer, _) = provider.exchange(&post(path, &headers, body)).await;
        assert_eq!(got, status, "{path} {headers} {answer}");
        assert!(answer.contains(part), "{part} in {answer}");
        assert!(!answer.contains("sk-demo"), "the answer repeats a key");
    }
}

#[tokio::test]
async fn a_reader_that_leaves_is_written_down() {
    let provider = Running::start(&[]).await;
    let mut tls = provider.connect(CHACHA).await.unwrap();
    tls.write_all(chat("fault-slow-stream", true).as_bytes()).await.unwrap();
    let mut byte = [0];
    tls.read_exact(&mut byte).await.unwrap();
    drop(tls);
    let limit = Instant::now() + Duration::from_secs(10);
    while !provider.access().iter().any(|line| line["event"] == "abandoned") {
        assert!(Instant::now() < limit, "the provider goes on for nobody");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
