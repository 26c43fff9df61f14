//! Response bodies: bytes that are ready, paced if asked, and cut short where a fault says so.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::access::{self, AccessLog};

/// The wait between the last byte and the cut: hyper flushes while a body is pending, so the client sees them.
const BEFORE_CUT: Duration = Duration::from_millis(20);

/// The body ended before its end, on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the answer is cut short, as the model's name asks")]
pub(super) struct CutShort;

/// A body of parts that are known in advance.
pub(super) struct Reply {
    parts: VecDeque<Bytes>,
    /// Wait before each part but the first.
    pace: Option<Duration>,
    cut: bool,
    /// The whole length where it is announced; a stream has none.
    length: Option<u64>,
    waiting: Option<Pin<Box<Sleep>>>,
    started: bool,
    /// Hears of it when nobody waits for the end.
    noted: Option<Arc<AccessLog>>,
}

impl Reply {
    /// One whole body with a content-length.
    pub(super) fn whole(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let length = Some(body.len() as u64);
        Self {
            parts: VecDeque::from([body]),
            pace: None,
            cut: false,
            length,
            waiting: None,
            started: false,
            noted: None,
        }
    }

    /// A chunked body.
    pub(super) fn stream(parts: VecDeque<Bytes>, pace: Option<Duration>) -> Self {
        Self { parts, pace, cut: false, length: None, waiting: None, started: false, noted: None }
    }

    /// The same body without its second half, if it is a stream, and this as its last part.
    pub(super) fn ending_with(mut self, event: Bytes) -> Self {
        if self.length.is_none() {
            self.parts.truncate(self.parts.len() / 2);
            self.parts.push_back(event);
        }
        self
    }

    /// The same body; a reader that leaves early is written down.
    pub(super) fn noted_by(mut self, access: Arc<AccessLog>) -> Self {
        self.noted = Some(access);
        self
    }

    /// The same body without its second half, ending in a close instead of an end.
    pub(super) fn cut_short(mut self) -> Self {
        self.cut = true;
        if let (Some(_), Some(part)) = (self.length, self.parts.front_mut()) {
            part.truncate(part.len() / 2);
        } else {
            self.parts.truncate(self.parts.len() / 2);
        }
        self
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.parts.is_empty() {
            access::log(self.noted.as_deref(), &access::Line::Abandoned);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = &mut *self;
        if let Some(sleep) = &mut this.waiting {
            std::task::ready!(sleep.as_mut().poll(cx));
            this.waiting = None;
        } else {
            let wait = match (this.started, this.parts.is_empty(), this.cut) {
                (true, false, _) => this.pace,
                (_, true, true) => Some(BEFORE_CUT),
                _ => None,
            };
            if let Some(wait) = wait {
                let mut sleep = Box::pin(tokio::time::sleep(wait));
                if sleep.as_mut().poll(cx).is_pending() {
                    this.waiting = Some(sleep);
                    return Poll::Pending;
                }
            }
        }
        this.started = true;
        match this.parts.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None if this.cut => Poll::Ready(Some(Err(CutShort))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && !self.cut
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
