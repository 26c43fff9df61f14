//! The body of an answer on its way to the application: as it arrives, unaltered where the dialects agree.
//!
//! Dropping it, which hyper does when the application hangs up, cancels the request in the mesh. A stream that breaks is never
//! ended as if it were whole: at the border of an event it gets an error event in the caller's dialect, anywhere else the
//! connection is cut. Where borders are seen, by the way an answer goes:
//!
//! | answer | border |
//! |---|---|
//! | one document | none: cut |
//! | events as they are | after a blank line, whatever its line ends ([`Tail`]) |
//! | frames of bytes as they are | none is seen: cut |
//! | watched on the way (a priced route) | where its reader is between two events or frames ([`AnswerTranslator::is_border`]) |
//! | translated | after all that was sent: only whole events are |
//! | one JSON array | the error is its last item ([`AnswerTranslator::last_item`]); behind its bracket: cut |
//!
//! Silence for longer than `idle_ms`, counted only while the application waits, is such a break: `stream_idle`.
use crate::cache::{Cache, Meta};
use crate::errors::Failure;
use crate::metrics::{Labels, Metrics};
use crate::receipts::{Chain, Receipts};
use crate::trace::{Sniff, Tracing};
use crate::upstream::{Body, Upstream};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use quorate_client::Error;
use quorate_dialects::{AnswerTranslator, Operation};
use quorate_telemetry::{Attribute, Name};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

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
    /// The events are items of one JSON array.
    pub(crate) array: bool,
    pub(crate) last: Tail,
    pub(crate) over: bool,
    /// Longest silence, and the silence now.
    pub(crate) idle: Duration,
    pub(crate) silence: Silence,
    /// Where it is kept once it is whole.
    pub(crate) keep: Option<Keep>,
    pub(crate) watch: Watch,
}

/// Measures silence: from when the application waits and nothing is there.
#[derive(Default)]
pub(crate) struct Silence {
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Silence {
    /// Something came.
    fn ended(&mut self) {
        self.waits = false;
    }

    /// Nothing is there. Ready when that has been so for too long.
    fn poll(&mut self, cx: &mut Context<'_>, allowed: Duration) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(allowed)));
        if !self.waits {
            self.waits = true;
            timer.as_mut().reset(tokio::time::Instant::now() + allowed);
        }
        timer.as_mut().poll(cx)
    }
}

/// An answer on its way into the cache.
pub(crate) struct Keep {
    pub(crate) cache: Arc<Cache>,
    pub(crate) name: String,
    pub(crate) meta: Meta,
    pub(crate) body: Vec<u8>,
    /// Says whether a stream that passes as it is has come to its end: the provider's connection ending well is no proof.
    pub(crate) proof: Option<Box<AnswerTranslator>>,
}

impl Keep {
    /// Adds bytes; beyond the bound it is given up by growing no more, and refused at the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.body.len() <= self.cache.entry_bytes_max() {
            self.body.extend_from_slice(bytes);
        }
    }

    /// It is whole.
    pub(crate) fn whole(mut self) {
        if let Some(mut proof) = self.proof.take() {
            let read = proof.feed(&self.body).and_then(|_| proof.finish());
            if read.is_err() || proof.outcome().error.is_some() {
                return;
            }
        }
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

    /// Whether an event may follow: what was sent ends with a line's end behind a line's end, in any spelling of the two.
    fn is_border(self) -> bool {
        let Self(last, begun) = self;
        let line = last.strip_suffix(b"\r\n").or_else(|| last.strip_suffix(b"\n"));
        let line = line.or_else(|| last.strip_suffix(b"\r"));
        !begun || line.is_some_and(|before| before.ends_with(b"\n") || before.ends_with(b"\r"))
    }
}

/// Counts one operation, whichever way it ends.
pub(crate) struct Watch {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) labels: Option<Labels>,
    pub(crate) begun: Instant,
    pub(crate) first_byte: Option<Instant>,
    pub(crate) tokens: (u64, u64),
    /// The request's span, and what is to be said of it.
    pub(crate) tracing: Option<(Tracing, Vec<Attribute>)>,
    /// Finds the answer's model, where nothing else reads it.
    pub(crate) sniff: Sniff,
    pub(crate) response_model: Option<Name>,
    /// Receipts to fetch when it is over.
    pub(crate) receipts: Option<(Arc<Receipts>, Arc<dyn Upstream>, Chain)>,
    pub(crate) in_flight: InFlight,
}

/// A place among the requests at once, and the bytes that the request holds.
pub(crate) struct InFlight {
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
    buffers: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

/// Bytes are counted in steps of so many.
const BUFFER_STEP: usize = 16 * 1024;

/// All bytes that may be held are held.
#[derive(Debug)]
pub(crate) struct NoRoom;

impl InFlight {
    pub(crate) fn new(metrics: Arc<Metrics>, permit: OwnedSemaphorePermit, buffers: Arc<Semaphore>) -> Self {
        metrics.in_flight.inc();
        Self { metrics, _place: permit, buffers, held: None }
    }

    /// How many steps so many bytes are.
    pub(crate) fn steps(bytes: usize) -> usize {
        bytes.div_ceil(BUFFER_STEP)
    }

    /// Makes room for bytes in all, until the request is over.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let have = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = Self::steps(bytes).saturating_sub(have);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| NoRoom)?;
        let more = self.buffers.clone().try_acquire_many_owned(more).map_err(|_| NoRoom)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.num_permits() * BUFFER_STEP)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
    }
}

impl Watch {
    fn error(&self) -> &str {
        self.labels.as_ref().map_or("", |labels| &labels.error_type)
    }

    /// Names why it was no success; the first reason stays.
    pub(crate) fn failed(&mut self, code: &str) {
        if let Some(labels) = &mut self.labels
            && labels.error_type.is_empty()
        {
            code.clone_into(&mut labels.error_type);
        }
    }
}

impl Watch {
    fn tell(&mut self) {
        let Some(((tracing, mut attributes), labels)) = self.tracing.take().zip(self.labels.as_ref()) else {
            return;
        };
        attributes.push(Attribute::Provider(labels.gen_ai_provider_name));
        let model = self.response_model.take().or_else(|| self.sniff.model());
        attributes.extend(model.map(Attribute::ResponseModel));
        let (tokens_in, tokens_out) = self.tokens;
        if self.tokens != (0, 0) {
            attributes.extend([Attribute::InputTokens(tokens_in), Attribute::OutputTokens(tokens_out)]);
        }
        let first = self.first_byte.map(|at| at.saturating_duration_since(self.begun));
        attributes.extend(first.map(Attribute::FirstChunk));
        if !labels.error_type.is_empty() {
            attributes.push(Attribute::Error(Name::new(&self.metrics.known(&labels.error_type))));
        }
        tracing.end(labels.gen_ai_operation_name, &labels.gen_ai_request_model, attributes);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tell();
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
        let model = self.translator.as_ref().and_then(|t| t.outcome().model.as_deref());
        self.watch.response_model = model.map(Name::new);
        if !self.over {
            self.watch.failed("cancelled");
        }
    }
}

impl Live {
    /// Takes all of it. What broke off is an error, not a whole answer.
    pub(crate) async fn whole(&mut self, bound: usize) -> Result<Bytes, Failure> {
        let begun = self.watch.in_flight.bytes();
        let mut all = bytes::BytesMut::new();
        while let Some(piece) = std::future::poll_fn(|cx| self.poll_piece(cx)).await {
            let piece = piece.map_err(|error| match self.watch.error() {
                "stream_idle" => Failure::idle(self.idle),
                _ => Failure::of(&error),
            })?;
            if all.len() + piece.len() > bound {
                return Err(Failure::of(&Error::CeilingReached { bound: bound as u64 }));
            }
            let held = begun + all.len() + piece.len();
            self.watch.in_flight.hold(held).map_err(|NoRoom| Failure::no_room())?;
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    fn tokens(&self) -> (u64, u64) {
        let said = self.translator.as_ref().and_then(|t| t.outcome().usage);
        said.map_or_else(|| self.body.tokens(), |usage| (usage.input, usage.output))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            let piece = match self.body.as_mut().poll_next(cx) {
                Poll::Ready(piece) => {
                    self.silence.ended();
                    piece
                }
                Poll::Pending => {
                    std::task::ready!(self.silence.poll(cx, self.idle));
                    let allowed_ms = u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX);
                    let error = Error::TimedOut { what: "more of the answer", allowed_ms };
                    return Poll::Ready(self.broken(error, Failure::idle(self.idle)));
                }
            };
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
                    let last = translator.finish().map_err(|e| Error::ProviderAnswer(e.to_string()));
                    if translator.outcome().error.is_some() {
                        self.keep = None;
                    }
                    last
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
                    if self.watch.tracing.is_some() {
                        self.watch.sniff.push(&bytes);
                    }
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Err(error) => {
                    let failure = Failure::of(&error);
                    return Poll::Ready(self.broken(error, failure));
                }
            }
        }
    }

    fn broken(&mut self, error: Error, failure: Failure) -> Option<Result<Bytes, Error>> {
        self.over = true;
        self.keep = None;
        self.watch.failed(&failure.code);
        let Some(operation) = self.events else { return Some(Err(error)) };
        let event = match &mut self.translator {
            Some(translator) if self.array => {
                translator.last_item(&failure.body(operation.dialect()).to_string())
            }
            Some(translator) => translator.is_border().then(|| failure.event(operation)),
            // Frames of bytes have no border that could be seen here.
            None if matches!(operation, Operation::Converse { .. }) => None,
            None => self.last.is_border().then(|| failure.event(operation)),
        };
        Some(event.ok_or(error))
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
        assert!(after(&["data: x\r", "\r"]) && after(&["data: x\n\r\n"]) && after(&["data: x\n\r"]));
        assert!(after(&["data: x\r\n\n"]) && after(&["data: x\r\n\r"]));
        assert!(after(&[": a comment\n\n"]) && after(&["data: x\ndata: y\n\n"]));
        assert!(!after(&["data: x\n\n: a comment\n"]) && !after(&["data: x\ndata: y\n"]));
        assert!(!after(&["data: x\r"]) && !after(&["data: x\r", "\n"]) && !after(&["data: x\n\nevent: y\n"]));
        assert!(!after(&["data: x"]));
        assert!(!after(&["data: x\n\n", "d"]));
        assert!(!after(&["data: x\r\n"]));
        assert!(!after(&["\n"]), "a line, not an event");
    }
}
