//! The relay: carries one TLS connection per tunnel between a client and the provider of an admin-signed route, and the one
//! request on it.
//!
//! ```text
//! Open ─► pool stands, mine ─► TCP to the route's host ─► handshake, watched ─► idle
//!   Request ─► decide (leader, quorum) ──┐
//!          └─► keyer checks the head ────┴─► both in hand: release head and body ─► stream ─► settle
//! ```
//! **Decides** nothing about a request: it holds the head until the authorisation is certified over its own root *and* the
//! keyer approved *and* the pool still stands by its own clock (`release` takes all three as types). On a route with a credential
//! it then fills the head's hole from the keyer's answer and its own share, which nothing else can: see [`release`]. **Refuses** bytes that
//! the handshake watch did not place, a second request, body beyond the content-length. **Reads** no record's content.
//!
//! Exactly one settlement follows each authorised request, whatever ends it; what a lost quorum leaves undecided is
//! settled when its leaf turns up ([`Relay::on_leaf`]).
mod release;
mod span;
mod tunnel;

use crate::ledger::{Ledger, Outgoing};
use crate::metrics::Metrics;
use crate::pool::PoolFacts;
use crate::services::status::Problem;
use crate::shares::Vault;
use quorate_attest::evidence::BootKeys;
use quorate_core::command::{ClientCommand, Command, Ended, Settlement};
use quorate_core::ids::{ClientId, ConnectionId, NodeId, PoolId, RequestId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::refusal::Refusal;
use quorate_core::state::AppliedLeaf;
use quorate_proto::v1;
use quorate_transport::PublicKey;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Tunnels of one client on one node, idle ones included: enough for its pool and its running requests, few enough that
/// eight clients cannot take every place of a node.
pub const TUNNELS_PER_CLIENT_MAX: usize = 512;
/// Undecided requests remembered for a late leaf; each is forgotten when its leaf comes or its signature expired.
const ABANDONED_MAX: usize = 16_384;
/// Messages on their way to one client: with 32 KiB each, a quarter MiB per tunnel.
const DOWN_MESSAGES_MAX: usize = 8;

/// How the relay reaches a keyer; over the peer links in a node.
#[tonic::async_trait]
pub trait KeyerPort: Send + Sync + 'static {
    /// Asks a keyer to judge a head. An error means that no answer came.
    async fn check_head(
        &self,
        keyer: NodeId,
        request: v1::CheckHeadRequest,
    ) -> Result<v1::CheckHeadReply, Status>;
}

/// What goes back to the client.
pub type Down = ReceiverStream<Result<v1::TunnelDown, Status>>;

/// The relay of this node. Cheap to clone.
#[derive(Clone)]
pub struct Relay {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    boot: BootKeys,
    keyers: Arc<dyn KeyerPort>,
    metrics: Arc<Metrics>,
    vault: Vault,
    tunnels_max: usize,
    places: Mutex<Places>,
    /// Number of open tunnels, for whoever waits for the last.
    open: watch::Sender<usize>,
    /// Set once: until when running requests may go on.
    drain: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct Places {
    by_client: HashMap<ClientId, usize>,
    connections: HashSet<(PoolId, ConnectionId)>,
    running: HashSet<RequestId>,
    /// Requests given up before they were decided, until when each may still be.
    abandoned: HashMap<RequestId, Instant>,
}

impl Relay {
    /// A relay without tunnels.
    pub fn new(
        ledger: Ledger,
        boot: BootKeys,
        keyers: Arc<dyn KeyerPort>,
        metrics: Arc<Metrics>,
        vault: Vault,
        tunnels_max: usize,
    ) -> Self {
        let inner = Inner {
            ledger,
            boot,
            keyers,
            metrics,
            vault,
            tunnels_max,
            places: Mutex::default(),
            open: watch::Sender::new(0),
            drain: watch::Sender::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// This node's shares.
    pub fn vault(&self) -> &Vault {
        &self.inner.vault
    }

    /// Starts a tunnel for a caller who proved this key.
    pub fn tunnel<U>(&self, key: PublicKey, up: U) -> Result<Down, Problem>
    where
        U: futures::Stream<Item = Result<v1::TunnelUp, Status>> + Send + Unpin + 'static,
    {
        if self.inner.drain.borrow().is_some() {
            return Err(Problem::ShuttingDown);
        }
        let place = OpenPlace::take(self)?;
        let (down, stream) = mpsc::channel(DOWN_MESSAGES_MAX);
        tokio::spawn(tunnel::Tunnel::new(self.clone(), key, up, down).run(place));
        Ok(ReceiverStream::new(stream))
    }

    /// Takes no more tunnels, ends idle ones, and gives running requests until `deadline`.
    pub fn drain(&self, deadline: Instant) {
        self.inner.drain.send_replace(Some(deadline));
    }

    /// Completes when no tunnel is open.
    pub async fn drained(&self) {
        let mut open = self.inner.open.subscribe();
        // The sender lives as long as `self`: there is no error to see.
        let _none_open = open.wait_for(|open| *open == 0).await;
    }

    /// Whether this relay is still carrying the request.
    pub fn is_running(&self, request: &RequestId) -> bool {
        self.places().running.contains(request)
    }

    /// To be called for each applied leaf: settles a request that was given up before it was decided.
    pub fn on_leaf(&self, applied: &AppliedLeaf) {
        let Leaf::V1 { body, .. } = applied.leaf();
        let LeafBody::Decided { command: Command::Client(c), outcome } = body else { return };
        let ClientCommand::Authorise(a) = &c.body else { return };
        if a.relay != self.inner.ledger.me() || self.places().abandoned.remove(&a.request).is_none() {
            return;
        }
        if *outcome == Outcome::Authorised {
            self.settle_unsent(a.request);
        }
    }

    /// Gives up a request whose decision did not come in time; it is settled if it is authorised after all.
    fn abandon(&self, request: RequestId, until: Instant) {
        {
            let mut places = self.places();
            if places.abandoned.len() >= ABANDONED_MAX {
                let now = Instant::now();
                places.abandoned.retain(|_, until| *until > now);
            }
            if places.abandoned.len() < ABANDONED_MAX {
                places.abandoned.insert(request, until);
            }
        }
        // Its leaf may have come between the decision's timeout and now, or be applied but not certified.
        let applied =
            self.inner.ledger.read(|state| state.request(&request).is_some_and(|r| r.settled.is_none()));
        if applied && self.places().abandoned.remove(&request).is_some() {
            self.settle_unsent(request);
        }
    }

    fn settle_unsent(&self, request: RequestId) {
        let ended = Ended::MeshFailure;
        let settlement =
            Settlement { request, bytes_up: 0, bytes_down: 0, first_byte_ms: 0, total_ms: 0, ended };
        if !self.inner.ledger.send(Outgoing::Settlement(settlement)) {
            tracing::warn!(%request, "a settlement was dropped: the queue to the leader is full");
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.inner.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the node's tunnels.
struct OpenPlace(Relay);

impl OpenPlace {
    fn take(relay: &Relay) -> Result<Self, Problem> {
        let mut taken = false;
        relay.inner.open.send_if_modified(|open| {
            taken = *open < relay.inner.tunnels_max;
            *open += usize::from(taken);
            taken
        });
        if !taken {
            return Err(Problem::TooManyTunnels);
        }
        relay.inner.metrics.tunnels().inc();
        Ok(Self(relay.clone()))
    }
}

impl Drop for OpenPlace {
    fn drop(&mut self) {
        self.0.inner.metrics.tunnels().dec();
        self.0.inner.open.send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// One connection of one client.
struct ConnectionPlace {
    relay: Relay,
    client: ClientId,
    connection: (PoolId, ConnectionId),
}

impl ConnectionPlace {
    fn take(relay: &Relay, pool: &PoolFacts, connection: ConnectionId) -> Result<Self, Problem> {
        let mut places = relay.places();
        if places.by_client.get(&pool.client).is_some_and(|held| *held >= TUNNELS_PER_CLIENT_MAX) {
            return Err(Problem::TooManyTunnelsOfClient);
        }
        // Two tunnels of one connection could both wait for, and both act on, one authorisation.
        if !places.connections.insert((pool.id, connection)) {
            return Err(Problem::ConnectionInUse);
        }
        *places.by_client.entry(pool.client.clone()).or_default() += 1;
        drop(places);
        Ok(Self { relay: relay.clone(), client: pool.client.clone(), connection: (pool.id, connection) })
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut places = self.relay.places();
        places.connections.remove(&self.connection);
        if let Entry::Occupied(mut held) = places.by_client.entry(self.client.clone()) {
            if *held.get() <= 1 {
                held.remove();
            } else {
                *held.get_mut() -= 1;
            }
        }
    }
}

/// One running request; no other tunnel may carry it.
struct Running {
    relay: Relay,
    request: RequestId,
}

impl Running {
    fn start(relay: &Relay, request: RequestId) -> Result<Self, Problem> {
        let mut places = relay.places();
        if places.abandoned.contains_key(&request) || !places.running.insert(request) {
            return Err(Refusal::Replayed.into());
        }
        drop(places);
        Ok(Self { relay: relay.clone(), request })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.relay.places().running.remove(&self.request);
    }
}

#[cfg(test)]
pub(crate) mod tests;
