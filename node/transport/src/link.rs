//! A link: a connection to one peer that is kept up.
//!
//! ```text
//!            connect + admit                ended
//! Connecting ───────────────► Up(Connected) ──────► Down{error, since} ──┐
//!     │                            ▲                    ▲      │ retry   │ retry failed
//!     └─────── failed ─────────────┼────────────────────┘      └─────────┘ (error renewed, since kept)
//!                                  └──────── connect + admit ──┘
//! ```
//!
//! One task owns it. It retries for ever, with growing and randomised pauses, so that nodes which lost a peer at
//! the same moment do not come back at the same moment. A connection counts as [`LinkState::Up`] only after the
//! caller's admission hook agreed, and each new connection is admitted anew. The pauses start over only after a
//! connection has lasted: a peer that accepts and then drops us is not hammered.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::client::{Address, Connected, Expect, connect};
use crate::error::{AdmissionError, LinkError};
use crate::identity::Identity;

/// The first pause; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: a returned peer is found within two seconds.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A connection that lasted this long was a good one: the next loss starts with the shortest pause.
const LASTED: Duration = Duration::from_secs(5);

/// Where a link goes, and whom it expects there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: Address,
    /// Whom.
    pub expect: Expect,
}

/// How long a link waits for its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkOptions {
    /// For name lookup, TCP and TLS in all. Default 3 s.
    pub connect_timeout: Duration,
    /// For the admission hook. Default 10 s: a hardware TPM takes up to a second for a quote, and may be busy.
    pub admission_timeout: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(3), admission_timeout: Duration::from_secs(10) }
    }
}

/// The state of a link.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// Not connected yet: just started, or the target moved.
    Connecting,
    /// Connected and admitted.
    Up(Arc<Connected>),
    /// Not connected; being retried, unless the error says [`LinkError::Shutdown`].
    Down {
        /// Why: the latest reason.
        error: Arc<LinkError>,
        /// Since when there has been no connection.
        since: Instant,
    },
}

impl LinkState {
    /// The connection, if there is one.
    pub fn up(&self) -> Option<&Arc<Connected>> {
        match self {
            Self::Up(connected) => Some(connected),
            Self::Connecting | Self::Down { .. } => None,
        }
    }
}

/// A supervised connection to one peer. Dropping it closes the connection.
pub struct Link {
    state: watch::Receiver<LinkState>,
    retry_now: Arc<Notify>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts a link. `name` is for people, in the log. `on_connect` performs admission on each new connection.
    ///
    /// When the sender of `target` is dropped, the link shuts down.
    pub fn start<F, Fut>(
        name: impl Into<String>,
        identity: Identity,
        target: watch::Receiver<Target>,
        options: LinkOptions,
        on_connect: F,
    ) -> Self
    where
        F: Fn(Arc<Connected>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), AdmissionError>> + Send + 'static,
    {
        let (sender, state) = watch::channel(LinkState::Connecting);
        let retry_now = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let task = Supervisor {
            name: name.into(),
            identity,
            target,
            options,
            on_connect,
            state: sender,
            retry_now: retry_now.clone(),
            stop: stop.clone(),
        };
        Self { state, retry_now, stop, task: Some(tokio::spawn(task.run())) }
    }

    /// The state as it changes.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The connection, if the link is up now.
    pub fn up(&self) -> Option<Arc<Connected>> {
        self.state.borrow().up().cloned()
    }

    /// Ends the present pause, for instance because the peer has just called us.
    pub fn retry_now(&self) {
        self.retry_now.notify_one();
    }

    /// Closes the connection and waits until the link's task has ended.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // it ends by itself; a panic in the hook is reported by the runtime
            let _ = task.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Why a wait ended.
enum Woken {
    Moved,
    Stop,
}

struct Supervisor<F> {
    name: String,
    identity: Identity,
    target: watch::Receiver<Target>,
    options: LinkOptions,
    on_connect: F,
    state: watch::Sender<LinkState>,
    retry_now: Arc<Notify>,
    stop: CancellationToken,
}

impl<F, Fut> Supervisor<F>
where
    F: Fn(Arc<Connected>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), AdmissionError>> + Send + 'static,
{
    async fn run(mut self) {
        let mut pauses = Pauses::default();
        loop {
            let target = self.target.borrow_and_update().clone();
            let stop = self.stop.clone();
            let attempt = tokio::select! {
                result = self.attempt(&target) => Ok(result),
                woken = moved(self.target.clone(), &stop) => Err(woken),
            };
            match attempt {
                Err(Woken::Stop) => break,
                Err(Woken::Moved) => {
                    self.target_moved();
                    pauses = Pauses::default();
                    continue;
                }
                Ok(Err(error)) => self.down(error),
                Ok(Ok(connected)) => {
                    self.up(&connected);
                    let since = Instant::now();
                    let ended = self.watch(&target, &connected).await;
                    connected.cut();
                    match ended {
                        Ok(error) => self.down(error),
                        Err(Woken::Stop) => break,
                        Err(Woken::Moved) => {
                            self.target_moved();
                            pauses = Pauses::default();
                            continue;
                        }
                    }
                    if since.elapsed() >= LASTED {
                        pauses = Pauses::default();
                    }
                }
            }
            let pause = pauses.next();
            debug!(link = %self.name, ms = pause.as_millis() as u64, "retrying after a pause");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.retry_now.notified() => {}
                woken = moved(self.target.clone(), &stop) => match woken {
                    Woken::Stop => break,
                    Woken::Moved => pauses = Pauses::default(),
                },
            }
        }
        self.down(LinkError::Shutdown);
    }

    /// Connects and has the connection admitted.
    async fn attempt(&self, target: &Target) -> Result<Arc<Connected>, LinkError> {
        let connected =
            connect(&target.address, &self.identity, target.expect, self.options.connect_timeout).await?;
        debug!(link = %self.name, connection = connected.id(), "connected; asking for admission");
        // Whatever ends this early, the target moving included, must not leave the connection open.
        let mut guard = CutOnDrop { connected: Arc::new(connected), keep: false };
        let connected = guard.connected.clone();
        let allowed = self.options.admission_timeout;
        tokio::select! {
            admitted = tokio::time::timeout(allowed, (self.on_connect)(connected.clone())) => match admitted {
                Err(_) => Err(LinkError::AdmissionTimedOut { allowed }),
                Ok(Err(error)) => Err(error.into()),
                Ok(Ok(())) => {
                    guard.keep = true;
                    Ok(connected)
                }
            },
            reason = connected.closed() => Err(LinkError::Lost(reason)),
        }
    }

    /// Waits until the connection ends, or no longer fits the target.
    async fn watch(&mut self, used: &Target, connected: &Connected) -> Result<LinkError, Woken> {
        let closed = connected.closed();
        tokio::pin!(closed);
        loop {
            let woken = tokio::select! {
                reason = &mut closed => return Ok(LinkError::Lost(reason)),
                woken = moved(self.target.clone(), &self.stop) => woken,
            };
            match woken {
                Woken::Stop => return Err(Woken::Stop),
                Woken::Moved => {
                    let now = self.target.borrow_and_update();
                    if now.address != used.address || !now.expect.accepts(connected.peer_key()) {
                        return Err(Woken::Moved);
                    }
                    // same place, and the key it proved is (still) a right one: nothing to do
                }
            }
        }
    }

    fn up(&self, connected: &Arc<Connected>) {
        info!(
            link = %self.name, connection = connected.id(), address = %connected.address(),
            peer = %connected.peer_key(), "link up"
        );
        self.state.send_replace(LinkState::Up(connected.clone()));
    }

    fn target_moved(&self) {
        debug!(link = %self.name, "the target has moved");
        self.state.send_replace(LinkState::Connecting);
    }

    /// Says so once for each loss; retries that fail are told at debug level only.
    fn down(&self, error: LinkError) {
        let since = match &*self.state.borrow() {
            LinkState::Down { since, .. } => Some(*since),
            LinkState::Connecting | LinkState::Up(_) => None,
        };
        let cause = chain(&error);
        match since {
            None => info!(link = %self.name, error = %cause, hint = error.hint(), "link down"),
            Some(_) => debug!(link = %self.name, error = %cause, "link still down"),
        }
        let since = since.unwrap_or_else(Instant::now);
        self.state.send_replace(LinkState::Down { error: Arc::new(error), since });
    }
}

/// Completes when the target has changed since it was last looked at, or the link is to stop.
async fn moved(mut target: watch::Receiver<Target>, stop: &CancellationToken) -> Woken {
    tokio::select! {
        () = stop.cancelled() => Woken::Stop,
        changed = target.changed() => match changed {
            Ok(()) => Woken::Moved,
            Err(_) => Woken::Stop,
        },
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Cuts a connection, unless it was kept.
struct CutOnDrop {
    connected: Arc<Connected>,
    keep: bool,
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if !self.keep {
            self.connected.cut();
        }
    }
}

/// Pauses between attempts: doubling, each drawn from its upper half.
struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: PAUSE_MIN }
    }
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(PAUSE_MAX);
        let half = full / 2;
        half + half.mul_f64(fraction())
    }
}

/// Uniform in [0, 1]. Without randomness the pause is the full one.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_vary() {
        for _ in 0..50 {
            let mut pauses = Pauses::default();
            let drawn: Vec<_> = (0..10).map(|_| pauses.next()).collect();
            let mut full = PAUSE_MIN;
            for pause in &drawn {
                assert!(*pause >= full / 2 && *pause <= full, "{pause:?} of {full:?}");
                full = (full * 2).min(PAUSE_MAX);
            }
        }
        let first = |_| Pauses::default().next();
        let many: std::collections::HashSet<_> = (0..50).map(first).collect();
        assert!(many.len() > 10, "the pauses do not vary");
    }
}
