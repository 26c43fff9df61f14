//! One request, tried until it is answered: one target after the other, or two at once where hedging is asked for.
//!
//! Each attempt is a request of its own to the mesh: signed, authorised, with a receipt. What may have reached a provider is not
//! sent again unless the plan allows it; what was answered with the caller's own mistake is the answer. After the first byte
//! nothing is tried again.
use crate::health::{Book, Pass};
use crate::routing::{Plan, Target};
use crate::upstream::{Answer, Upstream};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{HeaderMap, StatusCode, header};
use quorate_client::{Error, Fault, Request, Retry, Trail};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// First pause before a target is asked again, doubled each time, and the longest; half of each is drawn at random.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// Longest body of an error answer that is kept for a while, in case no other target does better.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// How long it may take to arrive.
const ERROR_TIME_MAX: Duration = Duration::from_secs(5);

/// A request for one target.
pub(crate) struct Prepared {
    pub(crate) target: Target,
    pub(crate) request: Request,
}

/// What one attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// Under way.
    Pending,
    /// To the answer that the caller gets.
    Answered,
    /// To an answer with this status, not used.
    Status(u16),
    /// To an error of the mesh or the way to the provider.
    Failed,
    /// To no connection in time.
    NoConnection,
    /// To no answer in time.
    NoAnswer,
    /// Cancelled: another was faster.
    Outrun,
}

/// One attempt, for headers, receipts and metrics.
#[derive(Debug, Clone)]
pub(crate) struct Tried {
    /// Index of its target.
    pub(crate) target: usize,
    /// Its requests to the mesh.
    pub(crate) trail: Trail,
    /// What it came to.
    pub(crate) came: Came,
    /// When it began.
    pub(crate) began: (std::time::SystemTime, std::time::Instant),
    /// How long it took to its answer's head, or its end.
    pub(crate) took: Option<Duration>,
}

/// How a request ended before its answer's body.
pub(crate) enum Ended {
    /// An answer's head is there.
    Answered(Answer),
    /// An answer that is an error, read whole.
    Held(Held),
    /// None.
    Failed(Error),
    /// Out of time.
    TimedOut(&'static str, Duration),
    /// Every target's breaker is open.
    AllOpen(Duration),
}

/// An error answer that was read whole.
pub(crate) struct Held {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) provenance: quorate_client::Provenance,
}

/// The end, and all attempts on the way.
pub(crate) struct Outcome {
    pub(crate) ended: Ended,
    /// Index of the target that brought the end.
    pub(crate) target: usize,
    pub(crate) tried: Vec<Tried>,
}

/// What an attempt's end means for the next.
enum Next {
    /// It is the end.
    Stop,
    /// Another target may do better; this one too, if `again`.
    Elsewhere { again: bool },
}

/// Tries until the request is answered or given up.
pub(crate) async fn run(
    upstream: &dyn Upstream,
    plan: &Plan,
    prepared: &[Prepared],
    book: &Book,
    dice: &mut (dyn FnMut() -> f64 + Send),
) -> Outcome {
    let begun = Instant::now();
    let deadline = begun + plan.tries.total();
    let mut state = State { upstream, plan, prepared, book, deadline, tried: vec![], passes: vec![] };
    let (ended, target) = match timeout_at(deadline, state.work(dice)).await {
        Ok(ended) => ended,
        Err(_) => (Ended::TimedOut("the request", plan.tries.total()), 0),
    };
    if matches!(ended, Ended::TimedOut(..)) {
        // Whoever was asked last had the time and did not use it.
        state.passes.drain(..).flatten().for_each(|pass| pass.failed(std::time::Instant::now()));
    }
    let answered = matches!(ended, Ended::Answered(_) | Ended::Held(_));
    for tried in state.tried.iter_mut().filter(|t| t.came == Came::Pending) {
        tried.came = if answered { Came::Outrun } else { Came::NoAnswer };
    }
    Outcome { ended, target, tried: state.tried }
}

struct State<'a> {
    upstream: &'a dyn Upstream,
    plan: &'a Plan,
    prepared: &'a [Prepared],
    book: &'a Book,
    deadline: Instant,
    tried: Vec<Tried>,
    /// Of the attempts under way, by their number.
    passes: Vec<Option<Pass>>,
}

impl State<'_> {
    async fn work(&mut self, dice: &mut (dyn FnMut() -> f64 + Send)) -> (Ended, usize) {
        let mut queue: std::collections::VecDeque<usize> = (0..self.prepared.len()).collect();
        let mut again: Vec<usize> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut last: Option<(Ended, usize)> = None;
        let mut pause = PAUSE;
        let mut hedge_at: Option<Instant> = None;
        let (upstream, plan, prepared) = (self.upstream, self.plan, self.prepared);
        loop {
            if running.is_empty() {
                let spent = self.tried.len() >= plan.tries.attempts_max;
                if queue.is_empty() && !again.is_empty() && !spent {
                    // Somewhere in its second half, so that many adapters do not come back at one time.
                    tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * dice())).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    queue.extend(again.drain(..));
                }
                if spent || queue.is_empty() {
                    return last.unwrap_or((Ended::AllOpen(Duration::from_secs(1)), 0));
                }
                match self.begin(&mut queue) {
                    Ok(number) => {
                        running.push(once(
                            upstream,
                            prepared,
                            self.tried.get(number).cloned(),
                            plan,
                            number,
                            self.deadline,
                        ));
                        hedge_at = plan.hedge_after.map(|after| Instant::now() + after);
                    }
                    Err(open) => match last {
                        Some(last) => return last,
                        None => return (Ended::AllOpen(open), 0),
                    },
                }
                continue;
            }
            let ended = tokio::select! {
                ended = running.next() => ended,
                () = at(hedge_at) => {
                    hedge_at = None;
                    if self.tried.len() < plan.tries.attempts_max && let Ok(number) = self.begin(&mut queue) {
                        running.push(once(upstream, prepared, self.tried.get(number).cloned(), plan, number, self.deadline));
                    }
                    continue;
                }
            };
            let Some((number, ended)) = ended else { continue };
            let target = self.tried.get(number).map_or(0, |t| t.target);
            let next = self.judge(number, &ended, target);
            match next {
                Next::Stop if running.is_empty() || matches!(ended, Ended::Answered(_) | Ended::Held(_)) => {
                    return (ended, target);
                }
                // The hedge may still do it.
                Next::Stop => {
                    queue.clear();
                    again.clear();
                }
                Next::Elsewhere { again: true } => again.push(target),
                Next::Elsewhere { again: false } => {}
            }
            last = Some((ended, target));
        }
    }

    /// Begins the next attempt: the first in the queue whose breaker lets it, or where none does the first that nobody probes.
    fn begin(&mut self, queue: &mut std::collections::VecDeque<usize>) -> Result<usize, Duration> {
        let now = std::time::Instant::now();
        let mut open = Duration::from_secs(1);
        for force in [false, true] {
            for _ in 0..queue.len() {
                let Some(target) = queue.pop_front() else { break };
                let Some(prepared) = self.prepared.get(target) else { continue };
                let key = &prepared.target.key;
                if let Some(pass) = self.book.admit(key, now, force) {
                    let trail = Trail::default();
                    let began = (std::time::SystemTime::now(), now);
                    self.tried.push(Tried { target, trail, came: Came::Pending, began, took: None });
                    self.passes.push(Some(pass));
                    return Ok(self.tried.len() - 1);
                }
                if let crate::health::Verdict::Open(left) = self.book.verdict(key, now) {
                    open = open.max(left);
                }
                queue.push_back(target);
            }
        }
        Err(open)
    }

    /// Enters what came of an attempt, and says what to do about it.
    fn judge(&mut self, number: usize, ended: &Ended, target: usize) -> Next {
        let repeat =
            self.plan.repeat_unanswered || self.prepared.get(target).is_some_and(|p| p.request.idempotent);
        let tried = self.tried.get_mut(number);
        let began = tried.as_ref().is_some_and(|t| !t.trail.is_empty());
        let (came, next) = match ended {
            Ended::Answered(_) => (Came::Answered, Next::Stop),
            Ended::Held(held) => match held.status.as_u16() {
                // Another target has its own keys, models and limits. This one says no to the next try as well, or how long to
                // wait: that is for the application to hear.
                401 | 403 | 404 | 408 | 429 | 500..=599 => {
                    (Came::Status(held.status.as_u16()), Next::Elsewhere { again: false })
                }
                _ => (Came::Answered, Next::Stop),
            },
            Ended::Failed(error) => (Came::Failed, after(error, repeat)),
            Ended::TimedOut("a connection", _) => (Came::NoConnection, Next::Elsewhere { again: true }),
            Ended::TimedOut(..) if repeat || !began => (Came::NoAnswer, Next::Elsewhere { again: repeat }),
            Ended::TimedOut(..) | Ended::AllOpen(_) => (Came::NoAnswer, Next::Stop),
        };
        if let Some(tried) = tried {
            tried.came = came;
            tried.took = Some(tried.began.1.elapsed());
        }
        if let Some(pass) = self.passes.get_mut(number).and_then(Option::take) {
            let now = std::time::Instant::now();
            match is_bad(ended) {
                Some(true) => pass.failed(now),
                Some(false) => pass.answered(now),
                None => {}
            }
        }
        next
    }
}

/// Whether an end says something of the target: `true` if the next request would meet it too.
fn is_bad(ended: &Ended) -> Option<bool> {
    match ended {
        Ended::Answered(_) => Some(false),
        Ended::Held(held) => match held.status.as_u16() {
            500..=599 | 408 => Some(true),
            // A limit is not an outage.
            401 | 403 | 429 => None,
            _ => Some(false),
        },
        Ended::TimedOut(..) => Some(true),
        Ended::Failed(error) => match error.fault() {
            Fault::Provider | Fault::Operator => Some(true),
            Fault::Client | Fault::Mesh => None,
        },
        Ended::AllOpen(_) => None,
    }
}

fn after(error: &Error, repeat: bool) -> Next {
    match (error.retry(), error.fault()) {
        // The whole mesh is in the way; the next target is behind it too.
        _ if matches!(
            error,
            Error::Dark(_) | Error::NoNode(_) | Error::Stale { .. } | Error::Fork { .. }
        ) =>
        {
            Next::Stop
        }
        // A budget of ours: asking again only costs more of it.
        (Retry::Later, Fault::Client) => Next::Elsewhere { again: false },
        (Retry::Now | Retry::Later, _) => Next::Elsewhere { again: true },
        (Retry::Never, _) => Next::Elsewhere { again: false },
        (Retry::Unknown, _) if repeat => Next::Elsewhere { again: true },
        (Retry::Unknown, _) => Next::Stop,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// One attempt, to its answer's head, or to the end of an error answer.
async fn once(
    upstream: &dyn Upstream,
    prepared: &[Prepared],
    tried: Option<Tried>,
    plan: &Plan,
    number: usize,
    deadline: Instant,
) -> (usize, Ended) {
    let prepared = tried.as_ref().and_then(|t| prepared.get(t.target));
    let (Some(tried), Some(prepared)) = (tried, prepared) else {
        return (number, Ended::Failed(Error::Closed));
    };
    let begun = Instant::now();
    let mut request = prepared.request.clone();
    request.trail = Some(tried.trail.clone());
    request.duration_max = Some(deadline.saturating_duration_since(begun));
    let (connect, first_byte) =
        (Duration::from_millis(plan.tries.connect_ms), Duration::from_millis(plan.tries.first_byte_ms));
    let mut sending = upstream.send(request);
    let mut answer = timeout_at(begun + connect.min(first_byte), &mut sending).await;
    if answer.is_err() {
        // As long as no attempt began nothing has left this process.
        if tried.trail.is_empty() {
            return (number, Ended::TimedOut("a connection", connect.min(first_byte)));
        }
        answer = timeout_at(begun + first_byte, &mut sending).await;
    }
    let ended = match answer {
        Err(_) => Ended::TimedOut("the answer's first byte", first_byte),
        Ok(Err(error)) => Ended::Failed(error),
        Ok(Ok(answer)) if answer.status.as_u16() >= 400 => hold(answer).await,
        Ok(Ok(answer)) => Ended::Answered(answer),
    };
    (number, ended)
}

/// Reads an error answer whole. One that is too long or too slow is an answer like any other.
async fn hold(mut answer: Answer) -> Ended {
    let deadline = Instant::now() + ERROR_TIME_MAX;
    let mut read: Vec<Bytes> = Vec::new();
    let mut length = 0;
    loop {
        match timeout_at(deadline, answer.body.next()).await {
            Ok(Some(Ok(piece))) => {
                length += piece.len();
                read.push(piece);
                if length > ERROR_BYTES_MAX {
                    break;
                }
            }
            Ok(None) => {
                return Ended::Held(Held {
                    status: answer.status,
                    headers: answer.headers,
                    body: read.concat().into(),
                    provenance: answer.provenance,
                });
            }
            // Cut off: what is there of it still says more than we could.
            Ok(Some(Err(_))) => {
                answer.headers.remove(header::CONTENT_LENGTH);
                return Ended::Held(Held {
                    status: answer.status,
                    headers: answer.headers,
                    body: read.concat().into(),
                    provenance: answer.provenance,
                });
            }
            Err(_) => break,
        }
    }
    answer.body = Box::pin(Resumed { read: read.into(), rest: answer.body });
    Ended::Answered(answer)
}

/// A body whose beginning was read already.
struct Resumed {
    read: std::collections::VecDeque<Bytes>,
    rest: std::pin::Pin<Box<dyn crate::upstream::Body>>,
}

impl futures::Stream for Resumed {
    type Item = Result<Bytes, Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        match self.read.pop_front() {
            Some(piece) => std::task::Poll::Ready(Some(Ok(piece))),
            None => self.rest.as_mut().poll_next(cx),
        }
    }
}

impl crate::upstream::Body for Resumed {
    fn tokens(&self) -> (u64, u64) {
        self.rest.tokens()
    }
}

#[cfg(test)]
mod tests;
