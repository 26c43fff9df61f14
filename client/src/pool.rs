//! Connections kept ready, so that no handshake stands in a request's way.
//!
//! A [`Lane`] is one authorised pool: a route through one relay and one keyer, for some minutes. Its keeper task opens
//! connections ahead, as many as recent demand asks for, replaces those that die, and ends with the pool. A
//! [`RouteLanes`] holds a few lanes through different relays, so that the loss of a node costs one retry and no wait.
//!
//! ```text
//! open (leaf) --> serving --(3/4 of its life)--> draining --> over
//!                    \---- relay or keyer lost, or two failures in a row ----> over
//! ```
use crate::client::Inner;
use crate::directory::now;
use crate::error::Error;
use crate::route::{RouteTls, head_template};
use crate::shun::Stamp;
use crate::wire::{Conn, danger_open_direct, mesh_client, open_tunnel, random_id};
use quorate_core::command::{ClientCommand, OpenPool, SignedProbeGrant};
use quorate_core::ids::{NodeId, PoolId, RouteId, Timestamp};
use quorate_core::policy::{Route, RouteDocument};
use quorate_core::refusal::Refusal;
use quorate_core::state::Pair;
use quorate_proto::v1;
use quorate_splitkey::head::HeadTemplate;
use quorate_transport::Connected;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How a client keeps its connections.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Connections kept ready in each lane. Default 2. Recent demand raises it.
    pub pool_size: usize,
    /// The most kept ready in each lane. Default 64.
    pub pool_size_max: usize,
    /// Lanes (relay and keyer) per route. Default 2: one is there when the other's node fails.
    pub lanes: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { pool_size: 2, pool_size_max: 64, lanes: 2 }
    }
}

/// Handshakes at once in one lane.
const OPENING_MAX: usize = 16;
/// How often a keeper looks after idle connections and demand.
const TICK: Duration = Duration::from_millis(200);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lane with connections left waits before it opens the next: by then the request that took one is on its way, and
/// no handshake competes with it for the processor.
const CALM: Duration = Duration::from_millis(4);
/// Failures in a row that end a lane.
const FAILURES_MAX: u32 = 2;
/// Lanes tried for one connection.
const LANES_TRIED_MAX: usize = 4;
/// How long a node that failed is passed over while others are there.
const COOLDOWN: Duration = Duration::from_secs(3);
/// Refusals of pairs for one request: seven members have 42.
pub(crate) const PAIR_REFUSALS_MAX: usize = 42;
/// How long a pair that was refused is not asked for again: what is held there may turn out void by then.
const REFUSED_PAIR: Duration = Duration::from_millis(quorate_core::state::HOLD_MS);
/// A lane that nobody used in this time is not renewed.
const IDLE_LANE: Duration = Duration::from_secs(600);

/// A lock that nothing can poison: no code under it panics, and if it did, what it guards is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Kind {
    Mesh {
        pool: PoolId,
        relay: (NodeId, Arc<Connected>),
        keyer: (NodeId, Arc<Connected>),
        expires: Timestamp,
    },
    DangerDirect {
        host: String,
        port: u16,
    },
}

/// By which nodes say that they lack their shares, and a relay that its keyer's answer does not fit.
const NO_USE_CODES: [&str; 2] = ["shares_missing", "keyer_answer"];

/// The codes by which the log, or one of its nodes, refuses one pair to a client while others may serve it.
pub(crate) fn is_pair_refusal(error: &Error) -> bool {
    let codes = [Refusal::PairBarred, Refusal::PairSuspended].map(Refusal::code);
    let refuses_pair = |code| codes.contains(&code) || NO_USE_CODES.contains(&code);
    matches!(error, Error::Refused(r) if refuses_pair(r.code.as_str()))
}

/// The code by which the log refuses a pair to a client that has as many requests open over it as may be: no word against the
/// pair, and over in moments.
pub(crate) fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Refused(r) if r.code == Refusal::PairBusy.code())
}

/// What a lane asks of its provider, as the policy had it when the lane was opened.
struct Destination {
    template: Arc<HeadTemplate>,
    tls: Arc<RouteTls>,
    share_epoch: u32,
}

impl Destination {
    fn new(route: &RouteDocument) -> Result<Self, Error> {
        Ok(Self {
            template: Arc::new(head_template(route)?),
            tls: Arc::new(RouteTls::new(route)?),
            share_epoch: route.credential.as_ref().map_or(0, |c| c.share_epoch),
        })
    }
}

/// See the module.
pub(crate) struct Lane {
    pub(crate) template: Arc<HeadTemplate>,
    tls: Arc<RouteTls>,
    share_epoch: u32,
    kind: Kind,
    opened: Instant,
    idle: Mutex<VecDeque<Conn>>,
    /// As many permits as idle connections; closed when the lane is over.
    ready: Semaphore,
    waiting: AtomicUsize,
    taken: AtomicUsize,
    wake: Notify,
    over: OnceLock<Error>,
    draining: AtomicBool,
    last_used: Mutex<Instant>,
    options: PoolOptions,
}

impl Lane {
    fn new(destination: Destination, kind: Kind, options: PoolOptions) -> Arc<Self> {
        let Destination { template, tls, share_epoch } = destination;
        let lane = Arc::new(Self {
            template,
            tls,
            share_epoch,
            kind,
            opened: Instant::now(),
            idle: Mutex::default(),
            ready: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            wake: Notify::new(),
            over: OnceLock::new(),
            draining: AtomicBool::new(false),
            last_used: Mutex::new(Instant::now()),
            options,
        });
        tokio::spawn(keep(lane.clone()));
        lane
    }

    /// A lane straight to the provider; for the benchmark's baseline only.
    pub(crate) fn danger_direct(route: &RouteDocument, options: PoolOptions) -> Result<Arc<Self>, Error> {
        let kind = Kind::DangerDirect { host: route.host.clone(), port: route.port };
        Ok(Self::new(Destination::new(route)?, kind, options))
    }

    /// A lane over connections that a test made.
    #[cfg(test)]
    pub(crate) fn for_tests(
        route: &RouteDocument,
        pool: PoolId,
        relay: (NodeId, Arc<Connected>),
        keyer: (NodeId, Arc<Connected>),
        options: PoolOptions,
    ) -> Arc<Self> {
        let destination = Destination::new(route).unwrap();
        Self::new(destination, Kind::Mesh { pool, relay, keyer, expires: now().plus_ms(60_000) }, options)
    }

    pub(crate) fn pool(&self) -> PoolId {
        match &self.kind {
            Kind::Mesh { pool, .. } => *pool,
            Kind::DangerDirect { .. } => PoolId([0; 16]),
        }
    }

    pub(crate) fn relay(&self) -> NodeId {
        self.link().map(|(node, _)| node).unwrap_or_default()
    }

    pub(crate) fn keyer(&self) -> NodeId {
        match &self.kind {
            Kind::Mesh { keyer, .. } => keyer.0,
            Kind::DangerDirect { .. } => NodeId(0),
        }
    }

    pub(crate) fn pair(&self) -> Pair {
        Pair { relay: self.relay(), keyer: self.keyer() }
    }

    /// Of the credential that its heads leave a hole for; 0 without one.
    pub(crate) fn share_epoch(&self) -> u32 {
        self.share_epoch
    }

    /// Whether its heads are still what the route asks for.
    pub(crate) fn fits(&self, route: &Route) -> bool {
        self.share_epoch == route.share_epoch()
            && head_template(&route.document).is_ok_and(|template| template == *self.template)
    }

    /// The relay and the connection to it.
    pub(crate) fn link(&self) -> Option<(NodeId, Arc<Connected>)> {
        match &self.kind {
            Kind::Mesh { relay, .. } => Some(relay.clone()),
            Kind::DangerDirect { .. } => None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    fn serves(&self) -> bool {
        !self.is_over() && !self.draining.load(Ordering::Relaxed)
    }

    fn idle_count(&self) -> usize {
        lock(&self.idle).len()
    }

    /// Ends the lane; whoever waits gets this error.
    pub(crate) fn end(&self, error: Error) {
        let _ = self.over.set(error);
        self.ready.close();
        lock(&self.idle).clear();
        self.wake.notify_one();
    }

    fn over_error(&self) -> Error {
        self.over.get().cloned().unwrap_or(Error::Closed)
    }

    /// A connection that is alive, opened ahead if demand was foreseen.
    pub(crate) async fn take(&self) -> Result<Conn, Error> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        *lock(&self.last_used) = Instant::now();
        let _waiting = Waiting::new(&self.waiting);
        loop {
            self.wake.notify_one();
            self.ready.acquire().await.map_err(|_| self.over_error())?.forget();
            let conn = lock(&self.idle).pop_front();
            if let Some(mut conn) = conn
                && conn.is_alive()
            {
                return Ok(conn);
            }
        }
    }

    fn put(&self, conn: Conn) {
        lock(&self.idle).push_back(conn);
        self.ready.add_permits(1);
    }

    fn prune(&self) {
        // A permit taken here stands for a connection that is looked at; who holds one already will find it or wait.
        let mut looked_at = 0;
        let count = self.idle_count();
        while looked_at < count {
            looked_at += 1;
            let Ok(permit) = self.ready.try_acquire() else { return };
            permit.forget();
            let conn = lock(&self.idle).pop_front();
            if let Some(mut conn) = conn
                && conn.is_alive()
            {
                self.put(conn);
            }
        }
    }

    async fn open(self: Arc<Self>) -> Result<Conn, Error> {
        match &self.kind {
            Kind::DangerDirect { host, port } => danger_open_direct(host, *port, &self.tls).await,
            Kind::Mesh { pool, relay, keyer, .. } => {
                let conn = open_tunnel((relay.0, &relay.1), *pool, &self.tls).await?;
                let request = v1::RegisterRequest {
                    pool: pool.0.to_vec().into(),
                    connection: conn.id.0.to_vec().into(),
                    traffic_secret: conn.tls.client_secret().expose_bytes().to_vec().into(),
                };
                let mut client = mesh_client(&keyer.1);
                let lost = |reason: &str| Error::NodeLost { node: keyer.0, reason: reason.to_owned() };
                timeout(REGISTER_TIMEOUT, client.register(request))
                    .await
                    .map_err(|_| lost("no answer to a registration"))?
                    .map_err(|s| Error::from_status(keyer.0, &s))?;
                Ok(conn)
            }
        }
    }

    /// Why the lane cannot serve any longer, if so.
    fn lapsed(&self) -> Option<Error> {
        let Kind::Mesh { relay, keyer, expires, .. } = &self.kind else { return None };
        for (node, link) in [relay, keyer] {
            if let Some(reason) = link.close_reason() {
                return Some(Error::NodeLost { node: *node, reason: reason.to_string() });
            }
        }
        (*expires <= now()).then_some(Error::Closed)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps one lane filled until it is over.
async fn keep(lane: Arc<Lane>) {
    let mut opening: JoinSet<Result<Conn, Error>> = JoinSet::new();
    let mut failures = 0;
    let mut demand = 0usize;
    let mut ticked = Instant::now();
    let mut pause_until = Instant::now();
    let mut calm_until: Option<Instant> = None;
    while !lane.is_over() {
        if let Some(error) = lane.lapsed() {
            lane.end(error);
            break;
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            // Demand of the last tick, forgotten by half each tick.
            demand = lane.taken.swap(0, Ordering::Relaxed).max(demand / 2);
            lane.prune();
        }
        if Instant::now() >= pause_until {
            let draining = lane.draining.load(Ordering::Relaxed);
            let waiting = lane.waiting.load(Ordering::Relaxed);
            let ahead = if draining {
                0
            } else {
                demand.clamp(lane.options.pool_size, lane.options.pool_size_max.max(1))
            };
            let wanted = ahead + waiting;
            let (now, coming) = (Instant::now(), lane.idle_count() + opening.len());
            let calm = coming < wanted && waiting == 0 && coming >= ahead.div_ceil(2);
            calm_until = calm.then(|| calm_until.unwrap_or(now + CALM));
            while calm_until.is_none_or(|until| now >= until)
                && lane.idle_count() + opening.len() < wanted
                && opening.len() < OPENING_MAX
            {
                opening.spawn(lane.clone().open());
            }
        }
        tokio::select! {
            Some(opened) = opening.join_next(), if !opening.is_empty() => match opened {
                Ok(Ok(conn)) => {
                    failures = 0;
                    lane.put(conn);
                }
                Ok(Err(error)) => {
                    failures += 1;
                    tracing::debug!(%error, "a connection could not be opened");
                    let wanted_now = lane.waiting.load(Ordering::Relaxed) > 0 && lane.idle_count() == 0;
                    if failures >= FAILURES_MAX || wanted_now {
                        lane.end(error);
                    } else {
                        pause_until = Instant::now() + TICK;
                    }
                }
                Err(_) => lane.end(Error::Closed),
            },
            () = lane.wake.notified() => {}
            () = tokio::time::sleep(if calm_until.is_some() { CALM } else { TICK }) => {}
        }
    }
}

/// The lanes of one route.
pub(crate) struct RouteLanes {
    route: RouteId,
    lanes: Mutex<Vec<Arc<Lane>>>,
    opening: tokio::sync::Mutex<()>,
    next: AtomicUsize,
    spare: AtomicBool,
}

impl RouteLanes {
    pub(crate) fn new(route: RouteId) -> Self {
        Self {
            route,
            lanes: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
            next: AtomicUsize::new(0),
            spare: AtomicBool::new(false),
        }
    }

    pub(crate) fn end(&self) {
        lock(&self.lanes).drain(..).for_each(|lane| lane.end(Error::Closed));
    }

    /// Takes a connection, through other nodes than `avoid` if there are any.
    pub(crate) async fn take(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        avoid: &[(NodeId, NodeId)],
    ) -> Result<(Arc<Lane>, Conn), Error> {
        let mut avoid = avoid.to_vec();
        let mut last = None;
        let mut tries = 0;
        let mut refused_pairs = 0;
        while tries < LANES_TRIED_MAX && refused_pairs < PAIR_REFUSALS_MAX {
            let lane = match self.pick(inner, &avoid) {
                Some(lane) => lane,
                None => match self.open_or_wait(inner, &avoid).await {
                    Ok(lane) => lane,
                    Err(error) => return Err(last.unwrap_or(error)),
                },
            };
            self.keep_spare(inner);
            let asked = Instant::now();
            match lane.take().await {
                Ok(conn) => return Ok((lane, conn)),
                Err(error) => {
                    self.left(inner, &lane, &error);
                    avoid.push((lane.relay(), lane.keyer()));
                    if is_pair_refusal(&error) {
                        inner.refused(&self.route, lane.share_epoch, lane.pair(), asked);
                        refused_pairs += 1;
                        continue;
                    }
                    tries += 1;
                    let provider = error.fault() == crate::error::Fault::Provider;
                    // What the provider does it does behind every relay; only its reachability may differ.
                    if provider && (last.is_some() || !matches!(error, Error::ProviderUnreachable { .. })) {
                        return Err(error);
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(Error::NoRelay { route: self.route.as_str().to_owned() }))
    }

    /// Leaves a lane whose relay or keyer failed.
    pub(crate) fn left(&self, inner: &Arc<Inner>, lane: &Arc<Lane>, error: &Error) {
        lane.end(error.clone());
        lock(&self.lanes).retain(|l| !l.is_over());
        match error {
            Error::NodeLost { node, .. } | Error::NodeMisbehaved { node, .. } => inner.cool(*node),
            // Whoever asked knows when that was, and remembers it: see `Inner::refused`.
            refused if is_pair_refusal(refused) => {}
            Error::Refused(_) => inner.refresh_soon(),
            _ => {}
        }
    }

    fn pick(&self, inner: &Inner, avoid: &[(NodeId, NodeId)]) -> Option<Arc<Lane>> {
        let share_epoch = inner.stamp(&self.route).share_epoch;
        let mut lanes = lock(&self.lanes);
        lanes.retain(|l| {
            if l.share_epoch != share_epoch {
                // Its head templates are of another credential.
                l.end(Error::Closed);
            }
            if let Some(error) = l.over.get()
                && is_pair_refusal(error)
            {
                // It ended before anybody asked it for a connection.
                inner.refused(&self.route, l.share_epoch, l.pair(), l.opened);
            }
            !l.is_over()
        });
        let usable: Vec<&Arc<Lane>> = lanes
            .iter()
            .filter(|l| l.serves() && !avoid.contains(&(l.relay(), l.keyer())))
            .filter(|l| !inner.is_shunned(&self.route, l.pair()))
            .collect();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let ready: Vec<&&Arc<Lane>> = usable.iter().filter(|l| l.idle_count() > 0).collect();
        match ready.len() {
            0 => usable.get(turn % usable.len().max(1)).map(|l| Arc::clone(l)),
            n => ready.get(turn % n).map(|l| Arc::clone(l)),
        }
    }

    async fn open_or_wait(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        avoid: &[(NodeId, NodeId)],
    ) -> Result<Arc<Lane>, Error> {
        let _one = self.opening.lock().await;
        // Somebody may have opened one while we waited.
        if let Some(lane) = self.pick(inner, avoid) {
            return Ok(lane);
        }
        self.open(inner, avoid).await
    }

    async fn open(&self, inner: &Arc<Inner>, avoid: &[(NodeId, NodeId)]) -> Result<Arc<Lane>, Error> {
        inner.fresh_directory().await?;
        let mut last = None;
        let mut tries = 0;
        let mut refused_pairs = 0;
        while tries < LANES_TRIED_MAX {
            let in_use: Vec<NodeId> =
                lock(&self.lanes).iter().filter(|l| l.serves()).map(|l| l.relay()).collect();
            let candidates = inner.candidates(&self.route, avoid, &in_use)?;
            let Some(&(relay, keyer)) = candidates.first() else { break };
            let asked = Instant::now();
            match inner.open_pool(&self.route, relay, keyer, None).await {
                Ok(lane) => {
                    lock(&self.lanes).push(lane.clone());
                    return Ok(lane);
                }
                Err(error) => {
                    tracing::debug!(%relay, %keyer, %error, "a pool could not be opened");
                    match &error {
                        Error::NodeLost { node, .. } | Error::NodeMisbehaved { node, .. } => {
                            inner.cool(*node)
                        }
                        refused if is_pair_refusal(refused) => {
                            // Not among the candidates from now on, unless it was cleared meanwhile.
                            let share_epoch = inner.stamp(&self.route).share_epoch;
                            inner.refused(&self.route, share_epoch, Pair { relay, keyer }, asked);
                            refused_pairs += 1;
                            if refused_pairs < PAIR_REFUSALS_MAX {
                                continue;
                            }
                        }
                        Error::Refused(r) if r.retry == crate::error::Retry::Now => {
                            // Relay or keyer lapsed or restarted: what we know is old.
                            inner.cool(relay);
                            inner.refresh().await?;
                        }
                        _ => return Err(error),
                    }
                    last = Some(error);
                    tries += 1;
                }
            }
        }
        Err(last.unwrap_or(Error::NoRelay { route: self.route.as_str().to_owned() }))
    }

    /// Opens what is missing in the background: a second relay, or the successor of a lane in its last quarter.
    fn keep_spare(self: &Arc<Self>, inner: &Arc<Inner>) {
        let serving = |l: &&Arc<Lane>| l.serves() && !inner.is_shunned(&self.route, l.pair());
        let serving = lock(&self.lanes).iter().filter(serving).count();
        if serving >= inner.options.lanes || self.spare.swap(true, Ordering::Relaxed) {
            return;
        }
        let (this, weak) = (self.clone(), Arc::downgrade(inner));
        tokio::spawn(async move {
            this.open_spare(&weak).await;
            this.spare.store(false, Ordering::Relaxed);
        });
    }

    async fn open_spare(&self, inner: &Weak<Inner>) {
        let Some(inner) = inner.upgrade() else { return };
        let one = self.opening.lock().await;
        let kept = |l: &&Arc<Lane>| !inner.is_shunned(&self.route, l.pair());
        let avoid: Vec<_> = lock(&self.lanes).iter().filter(kept).map(|l| (l.relay(), l.keyer())).collect();
        if avoid.len() < inner.options.lanes
            && let Err(error) = self.open(&inner, &avoid).await
        {
            tracing::debug!(%error, "no second lane");
            // Nothing waits for it, and nobody shall: do not ask again at once.
            drop((one, inner));
            tokio::time::sleep(COOLDOWN).await;
        }
    }

    /// Lets lanes in the last quarter of their life go, with a successor where they are used.
    pub(crate) async fn renew(self: &Arc<Self>, inner: &Arc<Inner>) {
        let quarter = inner.pool_lifetime_ms() / 4;
        let ending: Vec<_> = lock(&self.lanes)
            .iter()
            .filter(|l| {
                l.serves()
                    && matches!(&l.kind, Kind::Mesh { expires, .. } if expires.since_ms(now()) < quarter)
            })
            .cloned()
            .collect();
        for lane in ending {
            if lock(&lane.last_used).elapsed() < IDLE_LANE
                && !inner.is_shunned(&self.route, lane.pair())
                && let Ok(successor) = inner.open_pool(&self.route, lane.relay(), lane.keyer(), None).await
            {
                lock(&self.lanes).push(successor);
            }
            lane.draining.store(true, Ordering::Relaxed);
        }
    }
}

fn has_disjoint(pairs: &[(NodeId, NodeId)], pair: Pair) -> bool {
    pairs.iter().any(|(relay, keyer)| pair.disjoint(Pair { relay: *relay, keyer: *keyer }))
}

impl Inner {
    fn cool(&self, node: NodeId) {
        lock(&self.cooling).insert(node, Instant::now() + COOLDOWN);
        self.refresh_soon();
    }

    /// A route's credential, as the directory has it.
    pub(crate) fn stamp(&self, route: &RouteId) -> Stamp {
        self.directory().route(route).map(Stamp::of).unwrap_or_default()
    }

    /// Leaves a pair out. A lane of another share epoch says nothing about this one.
    pub(crate) fn shun(&self, route: &RouteId, share_epoch: u32, pair: Pair, until: Option<Instant>) {
        let stamp = self.stamp(route);
        if stamp.share_epoch == share_epoch {
            lock(&self.shunned).add(route, stamp, pair, until);
        }
    }

    /// Leaves a pair out for a while that was refused to a request begun at `asked`.
    pub(crate) fn refused(&self, route: &RouteId, share_epoch: u32, pair: Pair, asked: Instant) {
        let stamp = self.stamp(route);
        if stamp.share_epoch == share_epoch {
            lock(&self.shunned).add_refused(route, stamp, pair, asked, Instant::now() + REFUSED_PAIR);
        }
    }

    pub(crate) fn unshun(&self, route: &RouteId, pair: Pair) {
        lock(&self.shunned).forget(route, pair, Instant::now());
    }

    pub(crate) fn is_shunned(&self, route: &RouteId, pair: Pair) -> bool {
        lock(&self.shunned).contains(route, self.stamp(route), pair, Instant::now())
    }

    /// Pairs in the order to try: neither avoided nor shunned; nodes that failed lately, pairs that no other is disjoint to and
    /// relays in use last; else at random.
    fn candidates(
        &self,
        route: &RouteId,
        avoid: &[(NodeId, NodeId)],
        in_use: &[NodeId],
    ) -> Result<Vec<(NodeId, NodeId)>, Error> {
        let directory = self.directory();
        let grant = directory.grant(&self.trust, &self.key.public())?;
        let cooling: HashMap<NodeId, Instant> = lock(&self.cooling).clone();
        let cold = |n: &NodeId| cooling.get(n).is_some_and(|until| *until > Instant::now());
        let mut ranked = Vec::new();
        let mut shunned = false;
        let pairs = directory.pairs(route, &grant.custodian);
        let keyed = self.stamp(route).share_epoch > 0;
        for (relay, keyer) in pairs.iter().copied() {
            if self.is_shunned(route, Pair { relay, keyer }) {
                shunned = true;
                continue;
            }
            if avoid.contains(&(relay, keyer)) {
                continue;
            }
            let dice = u64::from_le_bytes(random_id()?.first_chunk().copied().unwrap_or_default());
            // A 400 that comes over such a pair could not be repeated over others.
            let alone = keyed && !has_disjoint(&pairs, Pair { relay, keyer });
            let cold = cold(&relay) || cold(&keyer);
            ranked.push((cold, alone, in_use.contains(&relay), dice, (relay, keyer)));
        }
        if ranked.is_empty() && shunned {
            return Err(Error::NoPairLeft { route: route.as_str().to_owned() });
        }
        ranked.sort_unstable();
        Ok(ranked.into_iter().map(|(.., pair)| pair).collect())
    }

    pub(crate) fn pool_lifetime_ms(&self) -> u64 {
        self.directory().verified().policy.attestation.pool_lifetime_ms
    }

    /// Opens a lane over this pair; `probe` is an admin's leave to try it unmetered.
    pub(crate) async fn open_pool(
        &self,
        route: &RouteId,
        relay: NodeId,
        keyer: NodeId,
        probe: Option<SignedProbeGrant>,
    ) -> Result<Arc<Lane>, Error> {
        let directory = self.directory();
        let unknown = || Error::UnknownRoute { route: route.as_str().to_owned() };
        let document = &directory.route(route).ok_or_else(unknown)?.document;
        let boot = |n: NodeId| directory.node(n).map(|(_, v)| v.boot.clone());
        let none = || Error::NoRelay { route: route.as_str().to_owned() };
        let (relay_boot, keyer_boot) = (boot(relay).ok_or_else(none)?, boot(keyer).ok_or_else(none)?);
        let destination = Destination::new(document)?;
        let (relay_link, keyer_link) = tokio::try_join!(self.link(relay), self.link(keyer))?;
        let pool = PoolId(random_id()?);
        // A quarter less than allowed: clocks differ.
        let expires = now().plus_ms(self.pool_lifetime_ms() / 4 * 3);
        let expires = probe.as_ref().map_or(expires, |p| expires.min(p.grant.expires));
        let expires = self.trust.token.as_ref().map_or(expires, |t| expires.min(t.token.expires));
        let command = ClientCommand::OpenPool(OpenPool {
            pool,
            route: route.clone(),
            relay,
            relay_boot,
            keyer,
            keyer_boot,
            expires,
            probe,
            token: self.trust.token.as_deref().map(|t| Box::new(t.clone())),
        });
        let submitted = self.submit((relay, &relay_link), self.sign(command));
        timeout(SUBMIT_TIMEOUT, submitted)
            .await
            .map_err(|_| Error::NodeLost { node: relay, reason: "no outcome for a pool in time".into() })??;
        let kind = Kind::Mesh { pool, relay: (relay, relay_link), keyer: (keyer, keyer_link), expires };
        Ok(Lane::new(destination, kind, self.options.clone()))
    }
}
