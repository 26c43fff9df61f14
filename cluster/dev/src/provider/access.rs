//! The access log: one JSON line for each event, so that a test can show what reached the provider, and above
//! all that nothing did. It holds sizes and digests, no content;
//! that is for a log of its own ([`Exchange`]), made on demand only.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyhow::Context as _;
use aws_lc_rs::digest;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a connection's first head that are kept for its digest. The mesh's heads have at most 32 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// One event.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line {
    /// A TLS handshake ended well.
    Connected { suite: String },
    /// A TCP connection whose handshake did not end well.
    HandshakeFailed { error: String },
    /// Bytes inside TLS that are no HTTP request.
    Malformed { error: String },
    /// The reader of an answer left before its end.
    Abandoned,
    /// A request, whatever its answer.
    Request {
        method: String,
        path: String,
        /// `null` when the connection was closed instead of an answer.
        status: Option<u16>,
        body_bytes: usize,
        body_sha256: String,
        /// Of the connection's first head, as it came, with its empty line; `null` for later requests.
        head_sha256: Option<String>,
        head_bytes: Option<usize>,
    },
}

/// What was asked and answered, all of it: for holding both against the vendors' types.
#[derive(Serialize)]
pub(super) struct Exchange<'a> {
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) anthropic_version: &'a str,
    pub(super) request: String,
    pub(super) status: u16,
    pub(super) content_type: &'a str,
    /// Base64: frames are no text.
    pub(super) answer: String,
}

/// An append-only file shared by all connections.
pub(super) struct AccessLog(Mutex<File>);

impl AccessLog {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self(Mutex::new(file.with_context(|| format!("cannot open {}", path.display()))?)))
    }
}

/// Appends a line with one write, before the answer leaves: who has read the answer can read the line.
pub(super) fn log(access: Option<&AccessLog>, line: &impl Serialize) {
    let Some(AccessLog(file)) = access else { return };
    let Ok(mut text) = serde_json::to_vec(line) else { return };
    text.push(b'\n');
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = file.write_all(&text) {
        eprintln!("quorate-demo-provider: error: cannot write the access log: {error}");
    }
}

/// SHA-256 as lower-case hex.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// The raw bytes of a connection's first request head, as they are read.
#[derive(Clone, Default)]
pub(super) struct FirstHead(Arc<Mutex<Head>>);

#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    complete: bool,
}

impl FirstHead {
    /// Takes the head, once.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        let mut head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (head.complete && !head.bytes.is_empty()).then(|| std::mem::take(&mut head.bytes))
    }

    fn feed(&self, read: &[u8]) {
        let mut head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.complete {
            return;
        }
        let seen = head.bytes.len().saturating_sub(3);
        head.bytes.extend_from_slice(read);
        let end =
            head.bytes.get(seen..).and_then(|tail| tail.windows(4).position(|window| window == b"\r\n\r\n"));
        if let Some(end) = end {
            head.bytes.truncate(seen + end + 4);
            head.complete = true;
        } else if head.bytes.len() > HEAD_BYTES_MAX {
            head.bytes = Vec::new();
            head.complete = true;
        }
    }
}

/// A stream that shows what is read from it to a [`FirstHead`], if there is one.
pub(super) struct HeadTap<S> {
    inner: S,
    head: Option<FirstHead>,
}

impl<S> HeadTap<S> {
    pub(super) fn new(inner: S, head: Option<FirstHead>) -> Self {
        Self { inner, head }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadTap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let (Some(head), Some(read)) = (&self.head, buf.filled().get(before..)) {
            head.feed(read);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadTap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_at_its_empty_line_however_it_is_cut() {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nbody\r\n\r\n";
        for step in 1..=request.len() {
            let head = FirstHead::default();
            for part in request.chunks(step) {
                head.feed(part);
            }
            assert_eq!(
                head.take().as_deref(),
                Some(&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..]),
                "in steps of {step}"
            );
            assert_eq!(head.take(), None);
        }
    }

    #[test]
    fn an_endless_head_is_not_kept() {
        let head = FirstHead::default();
        for _ in 0..HEAD_BYTES_MAX {
            head.feed(b"xy");
        }
        assert_eq!(head.take(), None);
    }
}
