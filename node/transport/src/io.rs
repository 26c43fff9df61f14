//! The byte stream under HTTP/2, with a lifeline: others can learn when and why it ended, and can cut it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep};

/// How often a side with nothing to hear asks whether the other is there.
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long the answer may take. A cut line is noticed within the sum of both.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Flow-control window of one stream: body records flow before anyone reads them.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of a connection: four full streams.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// The client's connection preface (RFC 9113 §3.4). Once it is here, HTTP/2's own keep-alive takes over.
const PREFACE_BYTES: usize = 24;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed it.
    #[error("closed by the peer")]
    PeerClosed,
    /// Nothing was heard, not even the answer to a keep-alive.
    #[error("the peer went silent")]
    Silent,
    /// The network or TLS failed.
    #[error("broken: {0}")]
    Broken(io::ErrorKind),
    /// This program cut it.
    #[error("cut here")]
    Cut,
    /// HTTP/2 ended in good order: the peer said goodbye, or all handles here are gone.
    #[error("ended")]
    Ended,
}

/// Shared by a stream and those who watch it.
pub(crate) struct Lifeline {
    id: u64,
    cut: AtomicBool,
    waker: AtomicWaker,
    closed: watch::Sender<Option<CloseReason>>,
}

impl Lifeline {
    pub(crate) fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            closed: watch::channel(None).0,
        })
    }

    /// Unique among all connections of this process, accepted or opened.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Makes the stream fail at its next use, and wakes its owner so that this is now.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn reason(&self) -> Option<CloseReason> {
        *self.closed.borrow()
    }

    pub(crate) fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static {
        let mut closed = self.closed.subscribe();
        async move {
            match closed.wait_for(Option::is_some).await {
                Ok(reason) => reason.unwrap_or(CloseReason::Ended),
                // the stream notes a reason when it is dropped, and the lifeline outlives it
                Err(_) => CloseReason::Ended,
            }
        }
    }

    /// The first reason stands; what follows from it is not news.
    fn note(&self, reason: CloseReason) {
        self.closed.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(reason);
            }
            first
        });
    }
}

/// A stream on a [`Lifeline`].
pub(crate) struct GuardedIo<S> {
    stream: S,
    lifeline: Arc<Lifeline>,
    last_heard: Instant,
    preface: Option<Preface>,
    /// Given back when the stream ends.
    _places: Vec<OwnedSemaphorePermit>,
}

/// What a server still waits for, and until when: a peer that proves a key and then says nothing must not hold
/// a connection for ever.
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<S> GuardedIo<S> {
    pub(crate) fn new(stream: S, lifeline: Arc<Lifeline>) -> Self {
        Self { stream, lifeline, last_heard: Instant::now(), preface: None, _places: Vec::new() }
    }

    pub(crate) fn with_preface_deadline(mut self, within: Duration) -> Self {
        self.preface =
            Some(Preface { missing: PREFACE_BYTES, deadline: Box::pin(tokio::time::sleep(within)) });
        self
    }

    pub(crate) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self._places.push(place);
        self
    }

    fn check_cut(&self) -> io::Result<()> {
        if self.lifeline.cut.load(Ordering::Acquire) {
            self.lifeline.note(CloseReason::Cut);
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, CloseReason::Cut));
        }
        Ok(())
    }

    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            self.lifeline.note(CloseReason::Broken(e.kind()));
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Register before looking, so that a cut in between is not missed. HTTP/2 reads and writes in one task.
        this.lifeline.waker.register(cx.waker());
        this.check_cut()?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_pending()
            && let Some(preface) = &mut this.preface
            && preface.deadline.as_mut().poll(cx).is_ready()
        {
            this.lifeline.note(CloseReason::Silent);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let result = ready!(polled);
        let got = buf.filled().len().saturating_sub(before);
        if got > 0 {
            this.last_heard = Instant::now();
            if let Some(preface) = &mut this.preface {
                preface.missing = preface.missing.saturating_sub(got);
                if preface.missing == 0 {
                    this.preface = None;
                }
            }
        } else if result.is_ok() && buf.remaining() > 0 {
            this.lifeline.note(CloseReason::PeerClosed);
        }
        Poll::Ready(this.noted(result))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_cut()?;
        let result = ready!(Pin::new(&mut this.stream).poll_write(cx, buf));
        Poll::Ready(this.noted(result))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_cut()?;
        let result = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(this.noted(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_cut()?;
        let result = ready!(Pin::new(&mut this.stream).poll_flush(cx));
        Poll::Ready(this.noted(result))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S> Drop for GuardedIo<S> {
    fn drop(&mut self) {
        // Where keep-alive runs, something is heard every interval; a longer silence is why HTTP/2 gave up.
        let reason = if self.last_heard.elapsed() >= KEEP_ALIVE_TIMEOUT {
            CloseReason::Silent
        } else {
            CloseReason::Ended
        };
        self.lifeline.note(reason);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn tells_why_it_ended() {
        let (ours, theirs) = tokio::io::duplex(64);
        let lifeline = Lifeline::new();
        let mut io = GuardedIo::new(ours, lifeline.clone());
        assert_eq!(lifeline.reason(), None);
        drop(theirs);
        assert_eq!(io.read(&mut [0; 8]).await.unwrap(), 0);
        drop(io);
        assert_eq!(lifeline.closed().await, CloseReason::PeerClosed);
    }

    #[tokio::test]
    async fn a_cut_wakes_a_pending_read() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let lifeline = Lifeline::new();
        let mut io = GuardedIo::new(ours, lifeline.clone());
        let (reading, about_to_read) = tokio::sync::oneshot::channel();
        let read = tokio::spawn(async move {
            let mut byte = [0; 1];
            io.read_exact(&mut byte).await.unwrap();
            reading.send(()).unwrap();
            (io.read(&mut byte).await.unwrap_err().kind(), io.write(b"x").await.unwrap_err().kind())
        });
        theirs.write_all(b"x").await.unwrap();
        about_to_read.await.unwrap();
        lifeline.cut();
        assert_eq!(read.await.unwrap(), (io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionAborted));
        assert_eq!(lifeline.reason(), Some(CloseReason::Cut));
    }

    #[tokio::test]
    async fn a_stream_without_a_preface_ends_at_the_deadline() {
        for sent in [0, PREFACE_BYTES - 1] {
            let (ours, mut theirs) = tokio::io::duplex(64);
            let lifeline = Lifeline::new();
            let mut io =
                GuardedIo::new(ours, lifeline.clone()).with_preface_deadline(Duration::from_millis(100));
            theirs.write_all(&vec![b'P'; sent]).await.unwrap();
            let mut got = Vec::new();
            let error = io.read_to_end(&mut got).await.unwrap_err();
            assert_eq!((error.kind(), got.len()), (io::ErrorKind::TimedOut, sent));
            assert_eq!(lifeline.reason(), Some(CloseReason::Silent));
        }
        // with it, silence is HTTP/2's business
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut io = GuardedIo::new(ours, Lifeline::new()).with_preface_deadline(Duration::from_millis(100));
        theirs.write_all(&[b'P'; PREFACE_BYTES]).await.unwrap();
        let mut got = Vec::new();
        let read = tokio::time::timeout(Duration::from_millis(400), io.read_to_end(&mut got)).await;
        assert!(read.is_err() && got.len() == PREFACE_BYTES);
    }
}
