//! A provider that keeps every byte it decrypted, in order, whatever it makes of it: what an attack brought to the provider is
//! asked of it, and of nobody else.
//!
//! It is careless where a strict one would hide what came: it takes early data, reads on after a request said that it is the
//! last, and answers what is none of its paths. It runs in the test's process, so its memory is the test's.
use anyhow::{Context as _, ensure};
use quorate_cluster::mesh::{Mesh, run, wait_for};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ServerSessionMemoryCache;
use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it reads on after its last answer.
const READS_ON: Duration = Duration::from_millis(150);
/// How long it waits for a client that said nothing yet.
const WAITS: Duration = Duration::from_secs(120);
/// How long it waits for the rest of a request.
const WAITS_FOR_REST: Duration = Duration::from_secs(1);
/// So many bytes of the secret in a row are not there by chance.
const RUN: usize = 8;
/// Early data that it takes.
const EARLY_MAX: u32 = 16_384;

/// One connection.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The server name it asked for.
    pub server_name: Option<String>,
    /// Everything decrypted, in order, early data first.
    pub stream: Vec<u8>,
    /// How much of it came as early data.
    pub early: usize,
    /// Requests that were whole.
    pub requests: Vec<Asked>,
    /// What its TLS stack said when it gave up.
    pub error: Option<String>,
}

/// A request as the provider read it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where its head lies in the stream.
    pub head: std::ops::Range<usize>,
    /// Where its body lies.
    pub body: std::ops::Range<usize>,
    /// What it was answered.
    pub status: u16,
}

impl Seen {
    /// The lines of the first request's head, each with its place.
    fn lines(&self) -> Vec<(usize, &[u8])> {
        let end = self.stream.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(self.stream.len());
        let mut lines = Vec::new();
        let mut rest = self.stream.get(..end).unwrap_or_default();
        let mut at = 0;
        while let Some(length) = rest.windows(2).position(|w| w == b"\r\n") {
            lines.push((at, rest.get(..length).unwrap_or_default()));
            rest = rest.get(length + 2..).unwrap_or_default();
            at += length + 2;
        }
        lines.push((at, rest));
        lines
    }

    /// Where bytes of the secret stand, eight or more in a row.
    pub fn secret_at(&self, secret: &[u8]) -> Vec<usize> {
        let runs: std::collections::HashSet<&[u8]> = secret.windows(RUN).collect();
        let windows = self.stream.windows(RUN).enumerate();
        windows.filter(|(_, window)| runs.contains(window)).map(|(at, _)| at).collect()
    }

    /// In what the first run of the secret stands: the line of the first head, or what is beyond it.
    pub fn place_of(&self, secret: &[u8]) -> Option<String> {
        let at = *self.secret_at(secret).first()?;
        let line =
            self.lines().into_iter().rev().find(|(begin, line)| (*begin..begin + line.len()).contains(&at));
        Some(match line {
            Some((0, _)) => "the request line".to_owned(),
            Some((_, line)) => {
                let name = line.split(|b| *b == b':').next().unwrap_or_default();
                format!("header {}", String::from_utf8_lossy(name))
            }
            None => "the body".to_owned(),
        })
    }

    /// Whether no byte of the secret is anywhere but in the one credential header of one request to the route's destination.
    pub fn is_proper(&self, secret: &[u8]) -> anyhow::Result<()> {
        let at = self.secret_at(secret);
        if at.is_empty() {
            return Ok(());
        }
        ensure!(self.server_name.as_deref() == Some("localhost"), "to {:?}", self.server_name);
        ensure!(self.early == 0, "behind {} bytes of early data", self.early);
        ensure!(
            self.stream.starts_with(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:"),
            "another request line"
        );
        let opening = b"authorization: Bearer ";
        let lines = self.lines();
        let mut credentials = lines.iter().filter(|(_, line)| line.starts_with(opening));
        let (begin, line) = credentials.next().context("the key is in no credential header")?;
        ensure!(credentials.next().is_none(), "two credential headers");
        let place = begin + opening.len()..begin + line.len();
        ensure!(at.iter().all(|at| place.contains(at)), "the key is elsewhere too: {at:?}, not in {place:?}");
        Ok(())
    }

    /// What it holds, for people; the secret is not shown.
    pub fn show(&self, secret: &[u8]) -> String {
        let text = String::from_utf8_lossy(&self.stream).replace(&*String::from_utf8_lossy(secret), "KEY");
        text.chars().take(600).collect()
    }
}

/// The provider. Its thread ends with the test's process.
pub struct Recorder {
    /// Its port on localhost.
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Recorder {
    /// One whose certificate is signed by the demo provider's CA, or by itself; it takes requests that bear the mesh's key.
    pub fn start(mesh: &Mesh, name: &str, by_ca: bool) -> anyhow::Result<Self> {
        let dir = certificate(mesh, name, by_ca)?;
        let key = mesh.key_file.as_ref().context("the mesh's provider has no key")?;
        let key = fs::read_to_string(key)?.trim().to_owned();
        let mut chain = vec![CertificateDer::from_pem_file(dir.join("tls.pem"))?];
        if by_ca {
            chain.push(CertificateDer::from_pem_file(mesh.dir.join("provider/ca.pem"))?);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(dir.join("tls.key"))?)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(64);
        config.max_early_data_size = EARLY_MAX;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (config, all) = (Arc::new(config), Arc::clone(&seen));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (config, all, key) = (Arc::clone(&config), Arc::clone(&all), key.clone());
                std::thread::spawn(move || {
                    let slot = {
                        let mut all = lock(&all);
                        all.push(Seen::default());
                        all.len() - 1
                    };
                    let served = serve(&socket, config, key.as_bytes(), &mut |seen| {
                        if let Some(place) = lock(&all).get_mut(slot) {
                            place.clone_from(seen);
                        }
                    });
                    if let (Err(error), Some(place)) = (served, lock(&all).get_mut(slot)) {
                        place.error = Some(format!("{error:#}"));
                    }
                });
            }
        });
        Ok(Self { port, seen })
    }

    /// Connections so far.
    pub fn count(&self) -> usize {
        lock(&self.seen).len()
    }

    /// Connections from the `from`th on.
    pub fn since(&self, from: usize) -> Vec<Seen> {
        lock(&self.seen).iter().skip(from).cloned().collect()
    }

    /// Waits for a connection, from the `from`th on, of which this can be said.
    pub fn wait<T>(&self, what: &str, from: usize, is: impl Fn(&Seen) -> Option<T>) -> anyhow::Result<T> {
        wait_for(what, Duration::from_secs(10), || {
            let seen = self.since(from);
            seen.iter().find_map(&is).with_context(|| format!("{} connections, none so", seen.len()))
        })
    }
}

fn lock(seen: &Mutex<Vec<Seen>>) -> std::sync::MutexGuard<'_, Vec<Seen>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key and a certificate for localhost and a neighbour of it, in a folder among the provider's.
fn certificate(mesh: &Mesh, name: &str, by_ca: bool) -> anyhow::Result<PathBuf> {
    let dir = mesh.dir.join("provider").join(name);
    fs::create_dir_all(&dir)?;
    let openssl = |arguments: &str| {
        run(Command::new("openssl").args(arguments.split_whitespace()).current_dir(&dir)).map(drop)
    };
    let names = "subjectAltName=DNS:localhost,DNS:other.localhost";
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls.key -subj /CN=localhost";
    if by_ca {
        fs::write(dir.join("names"), format!("{names}\nbasicConstraints=critical,CA:FALSE\n"))?;
        openssl(&format!("req {key} -out tls.csr"))?;
        openssl(
            "x509 -req -in tls.csr -CA ../ca.pem -CAkey ../ca.key -set_serial 11 -days 7 -extfile names -out tls.pem",
        )?;
    } else {
        let not_a_ca = "basicConstraints=critical,CA:FALSE";
        openssl(&format!("req -x509 {key} -days 7 -addext {names} -addext {not_a_ca} -out tls.pem"))?;
    }
    Ok(dir)
}

fn serve(
    mut socket: &TcpStream,
    config: Arc<ServerConfig>,
    key: &[u8],
    show: &mut dyn FnMut(&Seen),
) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(READS_ON))?;
    let mut tls = ServerConnection::new(config)?;
    let mut seen = Seen::default();
    let (mut next, mut heard) = (0, Instant::now());
    loop {
        match tls.read_tls(&mut socket) {
            Ok(0) => return Ok(()),
            Ok(_) => heard = Instant::now(),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let waits = if seen.stream.is_empty() { WAITS } else { WAITS_FOR_REST };
                if !seen.requests.is_empty() || heard.elapsed() > waits {
                    tls.send_close_notify();
                    tls.write_tls(&mut socket)?;
                    return Ok(());
                }
                continue;
            }
            Err(e) => return Err(e.into()),
        }
        let processed = tls.process_new_packets();
        seen.server_name = tls.server_name().map(str::to_owned);
        if let Some(mut early) = tls.early_data() {
            let before = seen.stream.len();
            early.read_to_end(&mut seen.stream)?;
            seen.early += seen.stream.len() - before;
        }
        match tls.reader().read_to_end(&mut seen.stream) {
            Err(e) if e.kind() != ErrorKind::WouldBlock => {
                show(&seen);
                return Err(e.into());
            }
            _ => {}
        }
        while let Some(asked) = request(&seen.stream, next, key) {
            next = asked.body.end;
            tls.writer().write_all(answer(asked.status).as_bytes())?;
            seen.requests.push(asked);
        }
        show(&seen);
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        processed.context("TLS")?;
    }
}

/// The request that begins at `from`, if it is whole.
fn request(stream: &[u8], from: usize, key: &[u8]) -> Option<Asked> {
    let rest = stream.get(from..)?;
    let length = rest.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(rest.get(..length)?).into_owned();
    let body =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
    let credential = format!("authorization: Bearer {}", String::from_utf8_lossy(key));
    let status = if head.lines().any(|line| line == credential) { 200 } else { 401 };
    let begin = from + length;
    (stream.len() >= begin + body).then(|| Asked { head: from..begin, body: begin..begin + body, status })
}

fn answer(status: u16) -> String {
    let body = match status {
        200 => r#"{"id":"1","object":"chat.completion","choices":[]}"#,
        _ => {
            r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#
        }
    };
    let reason = if status == 200 { "OK" } else { "Unauthorized" };
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(stream: &str) -> Seen {
        Seen { server_name: Some("localhost".into()), stream: stream.into(), ..Seen::default() }
    }

    #[test]
    fn only_the_credential_header_is_proper() {
        let key = b"0123456789abcdef";
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:1\r\n";
        let close = "content-length: 2\r\nconnection: close\r\n\r\n";
        let good = format!("{head}authorization: Bearer sk-0123456789abcdef\r\n{close}{{}}");
        assert!(seen(&good).is_proper(key).is_ok());
        assert_eq!(seen(&good).place_of(key).as_deref(), Some("header authorization"));
        assert!(Seen { server_name: Some("other.localhost".into()), ..seen(&good) }.is_proper(key).is_err());
        assert!(Seen { early: 1, ..seen(&good) }.is_proper(key).is_err());
        let bad = [
            (format!("POST /v1/chat/completions?x=0123456789abcdef HTTP/1.1\r\n{close}"), "the request line"),
            (format!("{head}user-agent: 0123456789abcdef\r\n{close}"), "header user-agent"),
            (format!("{head}{close}0123456789abcdef"), "the body"),
            (format!("{head}{close}{good}"), "the body"),
        ];
        for (stream, place) in bad {
            assert!(seen(&stream).is_proper(key).is_err(), "{stream}");
            assert_eq!(seen(&stream).place_of(key).as_deref(), Some(place));
        }
        assert!(seen(&format!("{good}456789ab")).is_proper(key).is_err());
    }
}
