//! The body of an answer on its way to the application: as it arrives, unaltered where the dialects agree.
//!
//! Dropping it, which hyper does when the application hangs up, cancels the request in the mesh. A stream that breaks is never
//! ended as if it were whole: at the border of an event it gets an error event in the caller's dialect, anywhere else the
//! connection is cut.
use crate::cache::{Cache, Meta};
use crate::errors::Failure;
use crate::metrics::{Labels, Metrics};
use crate::receipts::{Chain, Receipts};
use crate::upstream::{Body, Upstream};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use quorate_client::Error;
use quorate_dialects::{AnswerTranslator, Operation};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// What hyper sends.
pub(crate) enum Reply {
    /// At once.
    Whole(Option<Bytes>),
    /// As it arrives.
    Live(Box<Live>),
}

/// An answer under way.
pub(crate) struct Live {
    pub(crate) body: Pin<Box<dyn Body>>,
    /// Where the route speaks another dialect than the caller.
    pub(crate) translator: Option<Box<AnswerTranslator>>,
    /// What was asked for, if the answer is a stream of events.
    pub(crate) events: Option<Operation>,
    pub(crate) last: Tail,
    pub(crate) over: bool,
    /// Where it is kept once it is whole.
    pub(crate) keep: Option<Keep>,
    pub(crate) watch: Watch,
}

/// An answer on its way into the cache.
pub(crate) struct Keep {
    pub(crate) cache: Arc<Cache>,
    pub(crate) name: String,
    pub(crate) meta: Meta,
    pub(crate) body: Vec<u8>,
}

impl Keep {
    /// Adds bytes; beyond the bound it is given up by growing no more, and refused at the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.body.len() <= self.cache.entry_bytes_max() {
            self.body.extend_from_slice(bytes);
        }
    }

    /// It is whole.
    pub(crate) fn whole(self) {
        tokio::spawn(self.cache.put(self.name, self.meta, self.body));
    }
}

/// The last bytes that were sent.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tail([u8; 4], bool);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let Self(last, begun) = self;
        for byte in bytes.iter().skip(bytes.len().saturating_sub(last.len())) {
            last.rotate_left(1);
            if let Some(end) = last.last_mut() {
                *end = *byte;
            }
            *begun = true;
        }
    }

    /// Whether an event may follow.
    fn is_border(self) -> bool {
        let Self(last, begun) = self;
        !begun || last == *b"\r\n\r\n" || last.ends_with(b"\n\n") || last.ends_with(b"\r\r")
    }
}

/// Counts one operation, whichever way it ends.
pub(crate) struct Watch {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) labels: Option<Labels>,
    pub(crate) begun: Instant,
    pub(crate) first_byte: Option<Instant>,
    pub(crate) tokens: (u64, u64),
    /// Receipts to fetch when it is over.
    pub(crate) receipts: Option<(Arc<Receipts>, Arc<dyn Upstream>, Chain)>,
    pub(crate) _in_flight: InFlight,
}

/// A place among the requests at once.
pub(crate) struct InFlight(Arc<Metrics>, #[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl InFlight {
    pub(crate) fn new(metrics: Arc<Metrics>, permit: OwnedSemaphorePermit) -> Self {
        metrics.in_flight.inc();
        Self(metrics, permit)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

impl Watch {
    /// Names why it was no success; the first reason stays.
    pub(crate) fn failed(&mut self, code: &str) {
        if let Some(labels) = &mut self.labels
            && labels.error_type.is_empty()
        {
            code.clone_into(&mut labels.error_type);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(labels) = self.labels.take() {
            let first = self.first_byte.map(|at| at.saturating_duration_since(self.begun));
            self.metrics.ended(labels, self.begun.elapsed(), first, self.tokens);
        }
        if let Some((receipts, upstream, chain)) = self.receipts.take() {
            receipts.write(upstream, self.metrics.clone(), chain);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.over && self.translator.is_none() {
            // hyper does not look for the end of a body whose announced length it has sent: it is there, and no cancel.
            let mut cx = Context::from_waker(futures::task::noop_waker_ref());
            if let Poll::Ready(None) = self.body.as_mut().poll_next(&mut cx) {
                self.over = true;
                self.keep.take().into_iter().for_each(Keep::whole);
            }
        }
        self.watch.tokens = self.tokens();
        if !self.over {
            self.watch.failed("cancelled");
        }
    }
}

impl Live {
    fn tokens(&self) -> (u64, u64) {
        let said = self.translator.as_ref().and_then(|t| t.outcome().usage);
        said.map_or_else(|| self.body.tokens(), |usage| (usage.input, usage.output))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            let piece = std::task::ready!(self.body.as_mut().poll_next(cx));
            let said = match (piece, &mut self.translator) {
                (Some(Ok(bytes)), None) => Ok(bytes),
                (Some(Ok(bytes)), Some(translator)) => {
                    translator.feed(&bytes).map_err(|e| Error::ProviderAnswer(e.to_string()))
                }
                (Some(Err(error)), _) => Err(error),
                (None, None) => {
                    self.over = true;
                    self.keep.take().into_iter().for_each(Keep::whole);
                    return Poll::Ready(None);
                }
                (None, Some(translator)) => {
                    self.over = true;
                    translator.finish().map_err(|e| Error::ProviderAnswer(e.to_string()))
                }
            };
            match said {
                Ok(bytes) if bytes.is_empty() && self.over => {
                    self.keep.take().into_iter().for_each(Keep::whole);
                    return Poll::Ready(None);
                }
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    self.watch.first_byte.get_or_insert_with(Instant::now);
                    if let Some(keep) = &mut self.keep {
                        keep.push(&bytes);
                    }
                    if self.over {
                        self.keep.take().into_iter().for_each(Keep::whole);
                    }
                    if self.events.is_some() {
                        self.last.push(&bytes);
                    }
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Err(error) => return Poll::Ready(self.broken(error)),
            }
        }
    }

    fn broken(&mut self, error: Error) -> Option<Result<Bytes, Error>> {
        self.over = true;
        self.keep = None;
        self.watch.failed(error.code());
        // A translation ends with whole events. Frames of bytes have no border that could be seen here.
        let is_border = self.translator.is_some()
            || (self.last.is_border() && !matches!(self.events, Some(Operation::Converse { .. })));
        match self.events.filter(|_| is_border) {
            Some(operation) => Some(Ok(Failure::of(&error).event(operation))),
            None => Some(Err(error)),
        }
    }
}

impl hyper::body::Body for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Self::Live(live) => live.poll_piece(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Live(live) => live.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Live(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_of_events() {
        let after = |pieces: &[&str]| {
            let mut tail = Tail::default();
            pieces.iter().for_each(|p| tail.push(p.as_bytes()));
            tail.is_border()
        };
        assert!(after(&[]));
        assert!(after(&["data: x\n\n"]));
        assert!(after(&["data: x\n", "\n"]));
        assert!(after(&["data: x\r\n\r\n"]));
        assert!(after(&["data: x\r", "\n\r", "\n"]));
        assert!(!after(&["data: x"]));
        assert!(!after(&["data: x\n\n", "d"]));
        assert!(!after(&["data: x\r\n"]));
        assert!(!after(&["\n"]), "a line, not an event");
    }
}
