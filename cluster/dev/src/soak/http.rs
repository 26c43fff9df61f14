//! Just enough of an HTTP/1.1 client to hang up at any byte, and to tell a whole answer from one that was cut off.
use anyhow::{Context as _, bail, ensure};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// The adapter's heads are far below.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// And its bodies.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Read at once.
const PIECE_BYTES: usize = 4096;

/// When the application hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HangUp {
    /// It stays to the end.
    Never,
    /// Having sent half of its own body.
    MidRequest,
    /// After this time, wherever the answer is.
    After(Duration),
    /// After so many bytes of the answer's body.
    AtByte(usize),
}

/// What came back, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Got {
    /// HTTP status; 0 without a head.
    pub(super) status: u16,
    /// By lower-case name.
    pub(super) headers: HashMap<String, String>,
    /// Without HTTP's framing.
    pub(super) body: Vec<u8>,
    /// Whether the body has the end that HTTP asks for.
    pub(super) whole: bool,
    /// Whether it was this side that hung up.
    pub(super) hung_up: bool,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A connection to the adapter, kept between requests.
#[derive(Default)]
pub(super) struct Connection(Option<BufReader<TcpStream>>);

impl Connection {
    /// Sends one request and reads its answer into `got`, which holds what came even if this fails or is dropped.
    pub(super) async fn ask(
        &mut self,
        address: &str,
        (method, path, headers): (&str, &str, &str),
        body: &[u8],
        hang_up: HangUp,
        got: &mut Got,
    ) -> anyhow::Result<()> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer of-no-meaning\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        let message = [head.as_bytes(), body].concat();
        // The server may have closed a kept connection by now; then nothing of an answer is there.
        if let Some(kept) = self.0.take()
            && self.on(kept, &message, body.len(), hang_up, got).await.is_ok()
        {
            return Ok(());
        }
        if got.status != 0 || got.hung_up {
            bail!("the connection was lost");
        }
        let stream = TcpStream::connect(address).await.context("the adapter takes no connection")?;
        stream.set_nodelay(true)?;
        self.on(BufReader::new(stream), &message, body.len(), hang_up, got).await
    }

    async fn on(
        &mut self,
        mut stream: BufReader<TcpStream>,
        message: &[u8],
        body: usize,
        hang_up: HangUp,
        got: &mut Got,
    ) -> anyhow::Result<()> {
        if hang_up == HangUp::MidRequest {
            let some = message.get(..message.len() - body.div_ceil(2)).unwrap_or_default();
            stream.write_all(some).await?;
            got.hung_up = true;
            return Ok(());
        }
        stream.write_all(message).await?;
        let read = async {
            read_head(&mut stream, got).await?;
            let at = if let HangUp::AtByte(at) = hang_up { at } else { usize::MAX };
            read_body(&mut stream, got, at).await
        };
        match hang_up {
            HangUp::After(wait) => match tokio::time::timeout(wait, read).await {
                Ok(read) => read?,
                Err(_) => {
                    got.hung_up = true;
                    return Ok(());
                }
            },
            _ => read.await?,
        }
        if got.whole && !got.hung_up && got.header("connection") != Some("close") {
            self.0 = Some(stream);
        }
        Ok(())
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut line = Vec::new();
    stream.take(HEAD_BYTES_MAX).read_until(b'\n', &mut line).await?;
    ensure!(line.ends_with(b"\r\n"), "a line without an end");
    line.truncate(line.len() - 2);
    Ok(String::from_utf8(line)?)
}

async fn read_head(stream: &mut BufReader<TcpStream>, got: &mut Got) -> anyhow::Result<()> {
    let status = line(stream).await?;
    let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
    loop {
        let line = line(stream).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').context("a header without a colon")?;
        got.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    got.status = status;
    Ok(())
}

/// Reads until the body's end, or `at` bytes of it. An end that is missing is no error here: `whole` says so.
async fn read_body(stream: &mut BufReader<TcpStream>, got: &mut Got, at: usize) -> anyhow::Result<()> {
    let length = got.header("content-length").map(str::parse::<usize>).transpose()?;
    let chunked = got.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
    ensure!(length.is_some() || chunked, "a body of unknown length");
    if let Some(length) = length {
        got.whole = piece(stream, got, length, at).await;
        return Ok(());
    }
    loop {
        let Ok(size) = line(stream).await else { return Ok(()) };
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16)?;
        if !piece(stream, got, size, at).await {
            return Ok(());
        }
        let Ok(end) = line(stream).await else { return Ok(()) };
        ensure!(end.is_empty(), "a chunk without an end");
        if size == 0 {
            got.whole = true;
            return Ok(());
        }
    }
}

/// So many bytes of the body. False if they were cut off, or if it is time to hang up.
async fn piece(stream: &mut BufReader<TcpStream>, got: &mut Got, length: usize, at: usize) -> bool {
    let mut left = length;
    while left > 0 {
        if got.body.len() >= at {
            got.hung_up = true;
            return false;
        }
        let mut buffer = [0; PIECE_BYTES];
        let most = left.min(PIECE_BYTES).min(at.saturating_sub(got.body.len()).max(1));
        let Some(buffer) = buffer.get_mut(..most) else { return false };
        match stream.read(buffer).await {
            Ok(read @ 1..) => {
                got.body.extend_from_slice(buffer.get(..read).unwrap_or_default());
                left -= read;
            }
            Ok(0) | Err(_) => return false,
        }
        if got.body.len() > BODY_BYTES_MAX {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn ask(answer: &'static [u8], hang_up: HangUp) -> (Got, anyhow::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _read = stream.read(&mut request).await;
            stream.write_all(answer).await.unwrap();
        });
        let mut got = Got::default();
        let asked = Connection::default().ask(&address, ("POST", "/", ""), b"{}", hang_up, &mut got).await;
        server.await.unwrap();
        (got, asked)
    }

    #[tokio::test]
    async fn an_end_that_is_missing_is_seen() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let whole = [&head[..], b"3\r\nabc\r\n0\r\n\r\n"].concat().leak();
        let (got, asked) = ask(whole, HangUp::Never).await;
        asked.unwrap();
        assert!(got.whole && got.body == b"abc" && got.status == 200, "{got:?}");
        let (got, asked) = ask(&whole[..whole.len() - 5], HangUp::Never).await;
        asked.unwrap();
        assert!(!got.whole && got.body == b"abc", "{got:?}");
        let (got, _) = ask(&whole[..head.len() + 4], HangUp::Never).await;
        assert!(!got.whole && got.body == b"a", "{got:?}");
        let (got, _) = ask(whole, HangUp::AtByte(2)).await;
        assert!(!got.whole && got.hung_up && got.body == b"ab", "{got:?}");
        let (got, asked) = ask(b"", HangUp::Never).await;
        assert!(asked.is_err() && got.status == 0, "{got:?}");
        let (got, _) = ask(b"HTTP/1.1 500 no\r\ncontent-length: 2\r\n\r\nab", HangUp::Never).await;
        assert!(got.whole && got.body == b"ab" && got.status == 500, "{got:?}");
        let (got, _) = ask(b"HTTP/1.1 500 no\r\ncontent-length: 3\r\n\r\nab", HangUp::Never).await;
        assert!(!got.whole && !got.hung_up, "{got:?}");
    }
}
