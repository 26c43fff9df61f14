//! The way to the collector: a bounded queue, batches, one request at a time.
use crate::otlp;
use crate::post::{Post, PostError};
use crate::span::Span;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

/// Spans that wait: some seconds of a busy process, and a few MiB.
const QUEUE_MAX: usize = 8_192;
/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;
/// How long a batch waits for more.
const GATHER: Duration = Duration::from_millis(500);
/// How long the collector may take.
const SEND: Duration = Duration::from_secs(10);
/// How much of its answer is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Between lines that say the collector does not take spans.
const SAY_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Shared {
    exported: AtomicU64,
    dropped: AtomicU64,
}

/// How many spans came through, and how many did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped: the queue was full, or the collector did not take them.
    pub dropped: u64,
}

enum Job {
    Span(Box<Span>),
    Flush(oneshot::Sender<()>),
}

/// Where spans go. Cheap to clone; without a collector they go nowhere.
#[derive(Clone, Default)]
pub struct Traces {
    queue: Option<mpsc::Sender<Job>>,
    shared: Arc<Shared>,
}

impl Traces {
    /// Sends spans to a collector's base URL, such as `http://127.0.0.1:4318`; `/v1/traces` is put behind it. Call within a runtime.
    pub fn to(
        otlp: &str,
        ca: Option<&Path>,
        service: &'static str,
        instance: String,
    ) -> Result<Self, PostError> {
        let post = Post::to(otlp, ca)?.below("/v1/traces")?;
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        tokio::spawn(run(post, service, instance, jobs, shared.clone()));
        Ok(Self { queue: Some(queue), shared })
    }

    /// Whether there is a collector: without one a span need not be made.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Gives a span away. Never waits.
    pub fn export(&self, span: Span) {
        if let Some(queue) = &self.queue
            && queue.try_send(Job::Span(Box::new(span))).is_err()
        {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of spans so far.
    pub fn counts(&self) -> Counts {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counts { exported: of(&self.shared.exported), dropped: of(&self.shared.dropped) }
    }

    /// Waits until what was given away before has gone out, at most so long.
    pub async fn flush(&self, bound: Duration) {
        let Some(queue) = &self.queue else { return };
        let (tell, told) = oneshot::channel();
        let flushed = async {
            if queue.send(Job::Flush(tell)).await.is_ok() {
                let _gone = told.await;
            }
        };
        let _late = timeout(bound, flushed).await;
    }
}

async fn run(
    post: Post,
    service: &'static str,
    instance: String,
    mut jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
) {
    let mut said: Option<Instant> = None;
    while let Some(first) = jobs.recv().await {
        let (mut batch, mut waiting) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + GATHER;
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Span(span) => batch.push(*span),
                Job::Flush(tell) => waiting.push(tell),
            }
            if batch.len() >= BATCH_MAX || !waiting.is_empty() {
                break;
            }
            next = timeout_at(deadline, jobs.recv()).await.ok().flatten();
        }
        if !batch.is_empty() {
            let body = otlp::encode(service, &instance, &batch).into();
            let sent = timeout(SEND, post.send("application/x-protobuf", body, ANSWER_BYTES_MAX)).await;
            let taken = matches!(&sent, Ok(Ok((status, _))) if status.is_success());
            let counter = if taken { &shared.exported } else { &shared.dropped };
            counter.fetch_add(batch.len() as u64, Ordering::Relaxed);
            if !taken && said.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                said = Some(Instant::now());
                tracing::warn!(
                    collector = post.host(),
                    "the collector does not take spans; they are dropped"
                );
            }
        }
        // Who no longer waits need not hear.
        waiting.into_iter().for_each(|tell| {
            let _gone = tell.send(());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::{Kind, SpanId, TraceId};
    use std::time::SystemTime;

    fn span() -> Span {
        let (trace, id) = (TraceId([1; 16]), SpanId([2; 8]));
        let (begun, took) = (SystemTime::now(), Duration::ZERO);
        Span {
            trace,
            id,
            parent: None,
            links: vec![],
            name: "x",
            of: None,
            kind: Kind::Internal,
            begun,
            took,
            attributes: vec![],
        }
    }

    #[tokio::test]
    async fn without_a_collector_nothing_is_held_up_and_drops_are_counted() {
        let off = Traces::default();
        off.export(span());
        assert_eq!((off.is_on(), off.counts()), (false, Counts::default()));
        // A port that nobody listens on: taken, and let go again.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let traces = Traces::to(&format!("http://127.0.0.1:{port}"), None, "s", "i".into()).unwrap();
        let many = QUEUE_MAX as u64 + 10;
        (0..many).for_each(|_| traces.export(span()));
        assert_eq!(traces.counts().dropped, 10, "the queue is bounded");
        while traces.counts().dropped < many {
            traces.flush(Duration::from_secs(5)).await;
        }
        assert_eq!(traces.counts(), Counts { exported: 0, dropped: many });
    }
}
