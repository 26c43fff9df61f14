//! Ports that nobody else takes, and a plain HTTP getter for loopback.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// Below the kernel's range for outgoing connections, so that none of those can take a port in between, and above
/// the one that `cluster/lib.sh` picks from.
const PORTS: std::ops::Range<u16> = 30_001..32_700;
/// Bytes of an answer that [`http_get`] takes. The largest thing served is a tile of leaves: 256 of 64 KiB.
const ANSWER_BYTES_MAX: u64 = 20 * 1024 * 1024;
/// Loopback answers at once or not at all.
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// Consecutive ports, reserved among all test processes for as long as this lives.
pub struct PortBlock {
    first: u16,
    count: u16,
    _locks: Vec<File>,
}

impl PortBlock {
    /// Reserves `count` consecutive ports of 127.0.0.1. A software TPM takes two: commands, then control.
    pub fn take(count: u16) -> anyhow::Result<Self> {
        let folder = env::temp_dir().join("quorate-test-ports");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        ensure!(count > 0 && count < 64, "a block has 1 to 63 ports");
        let mut locks = Vec::new();
        for port in PORTS {
            let path = folder.join(port.to_string());
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            // The lock keeps other tests away, the bind shows that nobody else is there.
            if file.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
                locks.clear();
                continue;
            }
            locks.push(file);
            if locks.len() == usize::from(count) {
                return Ok(Self { first: port + 1 - count, count, _locks: locks });
            }
        }
        bail!("no {count} consecutive ports are free")
    }

    /// The block's first port, or a later one.
    pub fn port(&self, index: u16) -> u16 {
        assert!(index < self.count, "port {index} of a block of {}", self.count);
        self.first + index
    }

    /// The address of one of its ports.
    pub fn addr(&self, index: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port(index)))
    }
}

/// What an HTTP server answered.
#[derive(Debug)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// The head after its first line, as it came.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The body as text.
    pub fn text(&self) -> anyhow::Result<&str> {
        std::str::from_utf8(&self.body).context("the body is no text")
    }
}

/// `GET` of an `http://` URL, without TLS, redirects or reuse: for metrics and tiles.
pub fn http_get(url: &str) -> anyhow::Result<HttpAnswer> {
    get(url).with_context(|| format!("GET {url}"))
}

fn get(url: &str) -> anyhow::Result<HttpAnswer> {
    let rest = url.strip_prefix("http://").context("only http:// is understood")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let addr = host.to_socket_addrs().context("no such host")?.next().context("the host has no address")?;
    let mut tcp = TcpStream::connect_timeout(&addr, HTTP_LIMIT).context("cannot connect")?;
    tcp.set_read_timeout(Some(HTTP_LIMIT))?;
    tcp.set_write_timeout(Some(HTTP_LIMIT))?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n");
    tcp.write_all(request.as_bytes()).context("cannot send")?;
    let mut answer = Vec::new();
    tcp.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer).context("the answer broke off")?;
    ensure!(answer.len() as u64 <= ANSWER_BYTES_MAX, "the answer is larger than {ANSWER_BYTES_MAX} bytes");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("the answer has no head")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8(answer).context("the head is no text")?;
    let (first, headers) = head.trim_end().split_once("\r\n").unwrap_or((head.trim_end(), ""));
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    let announced = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    ensure!(announced.is_none_or(|announced| announced == body.len()), "the body was cut off");
    Ok(HttpAnswer { status, headers: headers.to_owned(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_while_they_live() {
        let (one, two) = (PortBlock::take(3).unwrap(), PortBlock::take(2).unwrap());
        let all: std::collections::BTreeSet<u16> =
            (0..3).map(|i| one.port(i)).chain((0..2).map(|i| two.port(i))).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(one.port(2), one.port(0) + 2);
    }

    fn serve_once(answer: &'static [u8]) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let read = tcp.read(&mut request).unwrap();
            tcp.write_all(answer).unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (url, server)
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let (url, server) = serve_once(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nx-a: b\r\n\r\nnone");
        let answer = http_get(&url).unwrap();
        assert_eq!((answer.status, answer.text().unwrap()), (404, "none"));
        assert!(answer.headers.contains("x-a: b"));
        assert!(server.join().unwrap().starts_with("GET /metrics HTTP/1.0\r\n"));
    }

    #[test]
    fn a_body_cut_off_is_an_error() {
        let (url, server) = serve_once(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfour");
        let error = http_get(&url).unwrap_err();
        assert!(format!("{error:#}").contains("the body was cut off"), "{error:#}");
        server.join().unwrap();
    }
}
