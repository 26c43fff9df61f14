//! A response as it arrives: records opened, HTTP read, nothing altered. Dropping it cancels the request.
use crate::answer::{ERROR_BYTES_MAX, ERROR_TIME_MAX, is_own_error_form};
use crate::client::Inner;
use crate::error::Error;
use crate::http1::{Event, ResponseHead, ResponseParser};
use crate::pool::Lane;
use crate::usage::UsageTail;
use crate::wire::{Down, DownHalf, Up, plain};
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, StatusCode};
use quorate_core::command::{Ended, Report};
use quorate_core::ids::{NodeId, RequestId};
use quorate_core::state::FaultKind;
use quorate_splitkey::record::{Ending, Event as RecordEvent, RecordOpener};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

/// Where the time of a request went, microseconds since the relay had it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Its leaf was applied.
    pub applied_us: u32,
    /// A quorum's cosignatures met.
    pub certified_us: u32,
    /// The keyer approved the head.
    pub keyer_us: u32,
    /// The head left for the provider.
    pub released_us: u32,
}

/// How a request was authorised: proven by the certificate that the client checked before it handed on any answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Authorised {
    /// Position of its leaf.
    pub leaf_index: u64,
    /// Size of the certified checkpoint.
    pub tree_size: u64,
    /// Where the time went.
    pub timings: Timings,
}

/// What identifies a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Its id; what to ask a receipt for.
    pub request: RequestId,
    /// Who carried it; 0 in direct mode.
    pub relay: NodeId,
    /// Who checked its head; 0 in direct mode.
    pub keyer: NodeId,
    /// The authorisation; all zero in direct mode.
    pub authorised: Authorised,
    /// With it and the body, anyone can recompute the body digest in the leaf: SHA-256(salt ‖ body).
    pub body_salt: [u8; 32],
}

/// An answer whose head has arrived.
pub struct Response {
    /// Status.
    pub status: StatusCode,
    /// Headers, as the provider sent them.
    pub headers: HeaderMap,
    /// How it came.
    pub provenance: Provenance,
    /// The rest, as it arrives.
    pub body: ResponseBody,
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("provenance", &self.provenance)
            .finish_non_exhaustive()
    }
}

/// A body as it arrives. An error is the last item; without one before it, `None` means that the body is whole.
pub struct ResponseBody {
    exchange: Exchange,
    /// Read already, to see what kind of error it is.
    ahead: VecDeque<Result<Bytes, Error>>,
}

impl ResponseBody {
    pub(crate) fn new(exchange: Exchange) -> Self {
        Self { exchange, ahead: VecDeque::new() }
    }

    /// Reads an error answer's body, as far as its bounds go, and judges its form. What was read is handed on all the same.
    pub(crate) async fn read_error(&mut self, dialect: &str) {
        let deadline = Instant::now() + ERROR_TIME_MAX;
        let mut body = Vec::new();
        let mut whole = false;
        while body.len() <= ERROR_BYTES_MAX {
            let next = std::future::poll_fn(|cx| self.poll_rest(cx));
            match tokio::time::timeout_at(deadline, next).await {
                Ok(Some(piece)) => {
                    if let Ok(piece) = &piece {
                        body.extend_from_slice(piece);
                    }
                    self.ahead.push_back(piece);
                }
                Ok(None) => {
                    whole = matches!(self.exchange.ended, Some(Ended::Complete));
                    break;
                }
                Err(_) => break,
            }
        }
        self.exchange.error_form = whole && is_own_error_form(dialect, &body);
    }

    /// What the log will make of this answer.
    pub(crate) fn fault(&self) -> Option<FaultKind> {
        self.exchange.fault()
    }

    /// Reports now how the request ended, in place of when this value is dropped. For an answer that was read.
    pub(crate) fn report_now(&mut self) -> Option<JoinHandle<()>> {
        self.exchange.report_now()
    }

    /// Tokens in and out, as far as the provider has said by now; 0 where it has not.
    pub fn tokens(&self) -> (u64, u64) {
        let tokens = self.exchange.usage.tokens();
        (tokens.input, tokens.output)
    }

    /// Reads all of it, up to `bytes_max`.
    pub async fn bytes(mut self, bytes_max: usize) -> Result<Bytes, Error> {
        let mut first: Option<Bytes> = None;
        let mut all = Vec::new();
        while let Some(piece) = std::future::poll_fn(|cx| Pin::new(&mut self).poll_next(cx)).await {
            let piece = piece?;
            if all.len() + first.as_ref().map_or(0, Bytes::len) + piece.len() > bytes_max {
                return Err(Error::CeilingReached { bound: bytes_max as u64 });
            }
            // Most answers are one piece: then nothing is copied.
            match first.take() {
                None if all.is_empty() => first = Some(piece),
                None => all.extend_from_slice(&piece),
                Some(before) => {
                    all.extend_from_slice(&before);
                    all.extend_from_slice(&piece);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.into()))
    }
}

impl Stream for ResponseBody {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.ahead.pop_front() {
            Some(piece) => Poll::Ready(Some(piece)),
            None => self.poll_rest(cx),
        }
    }
}

impl ResponseBody {
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.exchange.ended.is_some() {
            return Poll::Ready(None);
        }
        Poll::Ready(match std::task::ready!(self.exchange.poll_event(cx)) {
            Ok(Event::Body(bytes)) => {
                self.exchange.usage.observe(&bytes);
                Some(Ok(bytes))
            }
            Ok(Event::End) => None,
            Ok(Event::Head(_)) => Some(Err(Error::ProviderAnswer("a second head".into()))),
            Err(error) => Some(Err(error)),
        })
    }
}

/// Both directions of a request under way.
pub(crate) struct Exchange {
    pub(crate) up: Option<Up>,
    pub(crate) down: Option<DownHalf>,
    pub(crate) opener: RecordOpener,
    pub(crate) pending: VecDeque<Bytes>,
    pub(crate) parser: ResponseParser,
    pub(crate) deadline: Pin<Box<Sleep>>,
    pub(crate) allowed: Duration,
    pub(crate) left: u64,
    pub(crate) bound: u64,
    pub(crate) status: u16,
    /// Bytes of the request's body.
    pub(crate) sent: u64,
    pub(crate) usage: UsageTail,
    pub(crate) ended: Option<Ended>,
    /// Whether an error answer was in the API's own form.
    pub(crate) error_form: bool,
    /// The request that this one repeats.
    pub(crate) same_as: Option<RequestId>,
    pub(crate) report: Option<Reporter>,
    pub(crate) authorised: Option<Authorised>,
    /// The relay's certificate for it, not checked yet.
    pub(crate) certificate: Bytes,
    pub(crate) feeder: Option<tokio::task::AbortHandle>,
    pub(crate) orderly: bool,
}

/// Who to tell how it ended.
pub(crate) struct Reporter {
    pub(crate) inner: Weak<Inner>,
    pub(crate) lane: Arc<Lane>,
    pub(crate) request: RequestId,
}

/// What arrived first.
pub(crate) enum First {
    Authorised,
    Refused(Error),
}

impl Exchange {
    /// Waits for the relay's word. What the provider says meanwhile (tickets) is kept.
    pub(crate) async fn wait_authorised(&mut self) -> Result<First, Error> {
        let Some(down) = self.down.as_mut() else { return Err(Error::Closed) };
        loop {
            match down.next().await? {
                Down::Data(bytes) => self.pending.push_back(bytes),
                Down::Authorised(a) => {
                    let t = a.timings.unwrap_or_default();
                    self.certificate = a.certificate;
                    self.authorised = Some(Authorised {
                        leaf_index: a.leaf_index,
                        tree_size: a.tree_size,
                        timings: Timings {
                            applied_us: t.applied_us,
                            certified_us: t.certified_us,
                            keyer_us: t.keyer_us,
                            released_us: t.released_us,
                        },
                    });
                    return Ok(First::Authorised);
                }
                Down::Refused(refusal) => return Ok(First::Refused(Error::Refused(refusal))),
                // A relay refuses what it did not release; an end without that leaves the question open.
                Down::Closed(reason) => {
                    let relay = down.relay().unwrap_or_default();
                    let reason = format!(
                        "the connection ended before the request's authorisation ({})",
                        plain(&reason)
                    );
                    return Err(Error::NodeLost { node: relay, reason });
                }
            }
        }
    }

    /// Waits for the answer's head.
    pub(crate) async fn head(&mut self) -> Result<ResponseHead, Error> {
        match std::future::poll_fn(|cx| self.poll_event(cx)).await? {
            Event::Head(head) => {
                self.status = head.status.as_u16();
                Ok(head)
            }
            Event::Body(_) | Event::End => Err(Error::ProviderAnswer("a body without a head".into())),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        let event = std::task::ready!(self.poll_inner(cx));
        match &event {
            Ok(Event::End) => self.ended = Some(Ended::Complete),
            Ok(_) => {}
            Err(error) => {
                self.ended = Some(match error {
                    Error::TimedOut { .. } => Ended::TimedOut,
                    Error::CeilingReached { .. } => Ended::CeilingReached,
                    Error::NodeLost { .. } | Error::NodeMisbehaved { .. } | Error::Refused(_) => {
                        Ended::MeshFailure
                    }
                    Error::ProviderUnreachable { .. } => Ended::Unreachable,
                    _ => Ended::Truncated,
                });
            }
        }
        Poll::Ready(event)
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        loop {
            if let Some(event) = self.parser.next()? {
                return Poll::Ready(Ok(event));
            }
            if let Some(bytes) = self.pending.front_mut() {
                let mut rest: &[u8] = bytes;
                let event = self.opener.read(&mut rest)?;
                let left = rest.len();
                if left == 0 {
                    self.pending.pop_front();
                } else {
                    let _ = bytes.split_to(bytes.len() - left);
                }
                match event {
                    Some(RecordEvent::AppData(data)) => {
                        self.left = self
                            .left
                            .checked_sub(data.len() as u64)
                            .ok_or(Error::CeilingReached { bound: self.bound })?;
                        self.parser.feed(data);
                    }
                    Some(RecordEvent::CloseNotify) => {
                        self.parser.close(true).map_err(|_| truncated("the provider closed"))?;
                    }
                    Some(RecordEvent::Alert(code)) => return Poll::Ready(Err(Error::ProviderAlert { code })),
                    Some(RecordEvent::KeyUpdated { .. }) | None => {}
                }
                continue;
            }
            if self.deadline.as_mut().poll(cx).is_ready() {
                let allowed_ms = u64::try_from(self.allowed.as_millis()).unwrap_or(u64::MAX);
                return Poll::Ready(Err(Error::TimedOut { what: "the request", allowed_ms }));
            }
            let Some(down) = self.down.as_mut() else {
                return Poll::Ready(Err(truncated("the tunnel is gone")));
            };
            match std::task::ready!(down.poll(cx))? {
                Down::Data(bytes) => self.pending.push_back(bytes),
                Down::Closed(reason) => {
                    self.orderly = true;
                    let close_notify = self.opener.ending() == Ending::CloseNotify;
                    if self.parser.close(close_notify).is_err() {
                        return Poll::Ready(Err(match reason.as_str() {
                            "unreachable" => {
                                Error::ProviderUnreachable { host: "the provider".into(), reason }
                            }
                            "ceiling_reached" => Error::CeilingReached { bound: self.bound },
                            "timed_out" => {
                                let allowed_ms = u64::try_from(self.allowed.as_millis()).unwrap_or(u64::MAX);
                                Error::TimedOut { what: "the request", allowed_ms }
                            }
                            // The relay sees whole records and no answers.
                            "complete" => truncated("the provider closed before its end"),
                            other => truncated(other),
                        }));
                    }
                }
                Down::Refused(refusal) => return Poll::Ready(Err(Error::Refused(refusal))),
                Down::Authorised(_) => {}
            }
        }
    }
}

fn truncated(reason: &str) -> Error {
    Error::Truncated { reason: plain(reason) }
}

/// How long the relay may take to say that the provider closed too, before we hang up.
const GOODBYE: Duration = Duration::from_secs(2);

impl Exchange {
    fn as_reported(&self, request: RequestId) -> Report {
        let tokens = match self.status {
            200..300 => self.usage.tokens_or_guess(self.sent),
            _ => self.usage.tokens(),
        };
        Report {
            request,
            status: self.status,
            ended: self.ended.unwrap_or(Ended::Cancelled),
            tokens_in: tokens.input,
            tokens_cached: tokens.cached,
            tokens_out: tokens.output,
            error_form: self.error_form,
            same_as: self.same_as,
        }
    }

    /// What the log will make of the report.
    pub(crate) fn fault(&self) -> Option<FaultKind> {
        FaultKind::of(&self.as_reported(RequestId([0; 16])))
    }

    fn report_now(&mut self) -> Option<JoinHandle<()>> {
        if let Some(feeder) = self.feeder.take() {
            feeder.abort();
        }
        let Reporter { inner, lane, request } = self.report.take()?;
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let report = self.as_reported(request);
        let (up, mut down) = (self.up.take(), self.down.take());
        let wait = report.ended == Ended::Complete && !self.orderly;
        let strong = inner.upgrade()?;
        let reporting = async move {
            // A complete answer is followed by the provider's own close; hanging up before it would look like a cancel.
            if wait && let Some(down) = down.as_mut() {
                let closed = async { while !matches!(down.next().await, Ok(Down::Closed(_)) | Err(_)) {} };
                let _ = tokio::time::timeout_at(Instant::now() + GOODBYE, closed).await;
            }
            drop((up, down));
            if let Some(inner) = inner.upgrade() {
                inner.report(&lane, report).await;
            }
        };
        Some(strong.tasks.spawn_on(reporting, &runtime))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.report_now();
    }
}
