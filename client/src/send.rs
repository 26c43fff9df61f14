//! One request on its way: a connection, a signature, the relay's word, the answer's head; again through other nodes where
//! that is safe; and once more, behind the application's back, where a 400 must be told from a fault of the credential.
//!
//! **A 400 is repeated once** on a route with a credential, over nodes that had no part in the first try: a hostile relay can
//! spoil a key and learn from a 400, so it counts against relay and keyer unless others get the same answer. That is done for
//! every request, repeatable or not: what the API refused in its own words it has not executed. The application has the first
//! answer by then; a repetition that is answered in another way is cut off at the head of its answer.
//!
//! **What that cannot clear**: two bad requests at once over two pairs that are each other's only disjoint one. Either is held,
//! so neither can be repeated over the other, and the client loses both pairs until the next share epoch or lift.
use crate::answer::Disputed;
use crate::client::{Client, Inner};
use crate::directory::now;
use crate::error::{Error, Retry};
use crate::http1::ResponseParser;
use crate::pool::{Lane, PAIR_REFUSALS_MAX, PoolOptions, RouteLanes, is_busy, is_pair_refusal, lock};
use crate::request::{Attempted, Request, Target};
use crate::response::{Exchange, First, Provenance, Reporter, Response, ResponseBody};
use crate::usage::{UsageTail, tokens_asked};
use crate::wire::{Conn, random_id};
use bytes::Bytes;
use quorate_core::command::{Authorise, ClientCommand, Ended, SignedProbeGrant};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{NodeId, PolicyVersion, PriceId, RequestId, RouteId};
use quorate_core::policy::Policy;
use quorate_core::refusal::Refusal;
use quorate_core::state::{FaultKind, HOLD_MS, Pair};
use quorate_splitkey::client::{BodySealer, ClientRequest};
use quorate_splitkey::record::{OVERHEAD, PLAINTEXT_MAX};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// How long a request's signature is valid: covers queues and differing clocks, far below the policy's bound.
const REQUEST_LIFETIME_MS: u64 = 45_000;
/// From sending a request to its authorisation.
const AUTHORISE_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts for one request. Refusals of a pair are not among them: each leaves a pair out for good.
const ATTEMPTS_MAX: usize = 3;
/// How long in all a request waits for the policy in force after it was signed for another; such tries are no attempts either.
const STALE_WAIT: Duration = Duration::from_secs(2);
/// Between looks for it: certifying a policy takes some hundred milliseconds. Doubled each time.
const STALE_PAUSE: Duration = Duration::from_millis(20);
const STALE_PAUSE_MAX: Duration = Duration::from_millis(200);
/// Default ceiling on an answer: running requests reserve it in the daily budget.
const RESPONSE_BYTES: u64 = 8 * 1024 * 1024;
/// Body plaintext in one frame: three full records are below the tunnel's 64 KiB.
const FRAME_PLAINTEXT: usize = 3 * PLAINTEXT_MAX;
/// How long a request waits in all for repetitions that hold the last pairs, and for one of them before it looks again. No count:
/// repetitions of a burst end one shortly after the other, and each time others may be first.
const REPEATS_WAIT: Duration = Duration::from_secs(8);
const REPEAT_WAIT: Duration = Duration::from_secs(1);
/// How often a repetition looks for a pair, and how long it pauses between.
const REPEAT_TRIES_MAX: usize = 20;
const REPEAT_PAUSE: Duration = Duration::from_millis(500);
/// A repetition of a refused request, in all; the log holds the first fault for 60 s.
const REPEAT_TIMEOUT: Duration = Duration::from_secs(30);

impl Inner {
    pub(crate) async fn request(self: &Arc<Self>, request: &Request) -> Result<Response, Error> {
        request.check_headers()?;
        let deadline = request.deadline.map(|d| Instant::now() + d);
        let late = || deadline.is_some_and(|d| Instant::now() >= d);
        let mut avoid = Vec::new();
        let mut attempt = 1;
        let mut pair_refusals = 0;
        let mut patience: Option<Instant> = None;
        let mut stale = None;
        loop {
            self.fresh_directory().await?;
            // Each time anew: the policy may have changed.
            let route = self.resolve(&request.target)?;
            let lanes = self.lanes(&route);
            let reserved = self.reserved(&route);
            let left_out = [avoid.as_slice(), reserved.as_slice()].concat();
            // Each lane that is tried waits for an answer of its own: without a quorum none of them can have one.
            let taken = tokio::select! {
                taken = lanes.take(self, &left_out) => taken,
                darkness = self.dark_meanwhile() => return Err(Error::Dark(darkness)),
            };
            let (lane, conn) = match taken {
                Ok(taken) => taken,
                // Pairs are out only until a repetition is answered: in a moment there will be one. Asked now, since others may have
                // been refused while this one waited for a lane.
                Err(Error::NoPairLeft { .. } | Error::NoRelay { .. })
                    if self.is_disputed(&route) && !late() && patience.is_none_or(|p| Instant::now() < p) =>
                {
                    patience.get_or_insert_with(|| Instant::now() + REPEATS_WAIT);
                    let _ = timeout(REPEAT_WAIT, self.repeated.notified()).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let asked = Instant::now();
            let signed = self.directory().verified().policy.version;
            let (error, forwarded) = match self.attempt(&route, &lane, conn, request, None).await {
                Ok((response, None)) => return Ok(response),
                Ok((response, Some(disputed))) => {
                    self.repeat(route, &lane, request.clone(), disputed);
                    return Ok(response);
                }
                Err(failed) => (failed.error, failed.forwarded),
            };
            tracing::debug!(%error, ?forwarded, attempt, "a request failed");
            let late = late();
            if is_busy(&error) && pair_refusals < PAIR_REFUSALS_MAX && !late {
                pair_refusals += 1;
                avoid.push((lane.relay(), lane.keyer()));
                continue;
            }
            if is_pair_refusal(&error) && pair_refusals < PAIR_REFUSALS_MAX && !late {
                pair_refusals += 1;
                self.refused(&route, lane.share_epoch(), lane.pair(), asked);
                lanes.left(self, &lane, &error);
                continue;
            }
            if is_stale(&error)
                && !late
                && self
                    .catch_up(&lanes, (&lane, &route), (&error, signed), stale.get_or_insert_with(Stale::new))
                    .await?
            {
                continue;
            }
            let verdict = decide(&error, forwarded, request.idempotent, attempt, late);
            if matches!(error, Error::NodeLost { .. } | Error::NodeMisbehaved { .. }) {
                lanes.left(self, &lane, &error);
                avoid.push((lane.relay(), lane.keyer()));
            } else if forwarded == Forwarded::Yes {
                avoid.push((lane.relay(), lane.keyer()));
            }
            match verdict {
                Verdict::Fail => return Err(error),
                Verdict::OutcomeUnknown => return Err(Error::OutcomeUnknown(Box::new(error))),
                Verdict::Again => {}
            }
            if let Error::Refused(refusal) = &error {
                match refusal.code.as_str() {
                    _ if is_stale(&error) => {}
                    // Only this connection is no use.
                    "connection_used" | "connection_in_use" | "provider_closed" | "expired" | "replayed" => {}
                    // The pool is no use any longer, whatever it was.
                    _ => {
                        lanes.left(self, &lane, &error);
                        avoid.push((lane.relay(), lane.keyer()));
                    }
                }
            }
            attempt += 1;
        }
    }

    /// After a refusal of what was signed for another policy than the one in force: waits for a directory with another than
    /// `signed`, and leaves a lane that does not fit it. `false` when it took too long.
    async fn catch_up(
        self: &Arc<Self>,
        lanes: &RouteLanes,
        (lane, route): (&Arc<Lane>, &RouteId),
        (error, signed): (&Error, PolicyVersion),
        stale: &mut Stale,
    ) -> Result<bool, Error> {
        loop {
            match timeout_at(stale.until.into(), self.refresh()).await {
                Ok(refreshed) => refreshed?,
                Err(_) => return Ok(false),
            }
            let directory = self.directory();
            let fits = directory.route(route).is_some_and(|r| lane.fits(r));
            if !fits {
                lanes.left(self, lane, error);
            }
            if !fits || directory.verified().policy.version != signed {
                return Ok(true);
            }
            if !stale.pause().await {
                return Ok(false);
            }
            // The keyer may be the one that is behind.
            if is_keyers(error) {
                return Ok(true);
            }
        }
    }

    /// One try. `same_as` is the request that this one repeats.
    pub(crate) async fn attempt(
        self: &Arc<Self>,
        route: &RouteId,
        lane: &Arc<Lane>,
        conn: Conn,
        request: &Request,
        same_as: Option<RequestId>,
    ) -> Result<(Response, Option<Disputed>), Failed> {
        let directory = self.directory();
        let unknown = || Error::UnknownRoute { route: route.as_str().to_owned() };
        let document = &directory.route(route).ok_or_else(unknown)?.document;
        let length = request.body.len() as u64;
        if length > document.body_bytes_max {
            return Err(Error::BodyTooLarge { length, bound: document.body_bytes_max }.into());
        }
        let response_bytes_max =
            request.response_bytes_max.unwrap_or(RESPONSE_BYTES).min(document.response_bytes_max);
        let allowed_ms = request
            .duration_max
            .map_or(document.duration_ms_max, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
            .clamp(1, document.duration_ms_max);
        let id = RequestId(random_id()?);
        let (body_salt, body_digest) = salted_digest(&request.body)?;
        let connection = conn.id;
        let (pool, relay, keyer) = (lane.pool(), lane.relay(), lane.keyer());
        let share_epoch = lane.share_epoch();
        if let Some(trail) = &request.trail {
            trail.add(Attempted { request: id, route: route.clone(), relay, keyer });
        }
        let policy = directory.verified().policy.version;
        let price = price_of(&directory.verified().policy, route, request);
        let tokens_in_max = request.tokens_in_max.unwrap_or(u64::MAX);
        let asked = || price.as_ref().and_then(|_| tokens_asked(&request.body));
        let tokens_out_max = request.tokens_out_max.or_else(asked).unwrap_or(u64::MAX);
        let sign = |head_digest: Hash| {
            encode(&self.sign(ClientCommand::Authorise(Authorise {
                request: id,
                pool,
                connection,
                route: route.clone(),
                relay,
                keyer,
                share_epoch,
                policy,
                head_digest,
                body_digest,
                body_bytes_max: length,
                response_bytes_max,
                duration_ms_max: allowed_ms,
                price: price.clone(),
                tokens_in_max,
                tokens_out_max,
                expires: now().plus_ms(REQUEST_LIFETIME_MS),
            })))
        };
        let reporter = Reporter { inner: Arc::downgrade(self), lane: lane.clone(), request: id };
        let limits = Limits { response_bytes_max, allowed: Duration::from_millis(allowed_ms) };
        let mut exchange = start(lane, conn, request, sign, limits).await?;
        exchange.report = Some(reporter);
        exchange.same_as = same_as;
        match timeout(AUTHORISE_TIMEOUT, exchange.wait_authorised()).await {
            Ok(Ok(First::Authorised)) => {}
            Ok(Ok(First::Refused(error))) => {
                match share_epoch {
                    // There is no open request to report on.
                    0 => exchange.report = None,
                    // So says the relay, who may have released the hole all the same: the log knows whether there is one.
                    _ => exchange.ended = Some(Ended::MeshFailure),
                }
                return Err(Failed { error, forwarded: Forwarded::No });
            }
            Ok(Err(error)) => {
                exchange.ended = Some(Ended::MeshFailure);
                return Err(Failed { error, forwarded: Forwarded::Unknown });
            }
            Err(_) => {
                exchange.ended = Some(Ended::MeshFailure);
                let error = Error::NodeLost { node: relay, reason: "no word on a request in time".into() };
                return Err(Failed { error, forwarded: Forwarded::Unknown });
            }
        }
        let authorised = exchange.authorised.unwrap_or_default();
        if let Err(error) = self.check_certificate(id, relay, &exchange.certificate).await {
            exchange.ended = Some(Ended::MeshFailure);
            return Err(Failed { error, forwarded: Forwarded::Unknown });
        }
        let head = match exchange.head().await {
            Ok(head) => head,
            Err(error) => {
                self.shun_for(lane, route, exchange.fault());
                return Err(Failed { error, forwarded: Forwarded::Yes });
            }
        };
        let provenance = Provenance { request: id, relay, keyer, authorised, body_salt };
        let mut body = ResponseBody::new(exchange);
        let mut disputed = None;
        if head.status.as_u16() >= 400 {
            body.read_error(&document.dialect).await;
            let fault = body.fault();
            if lane.share_epoch() > 0 && fault == Some(FaultKind::OwnForm400) {
                disputed = body.report_now().map(|told| Disputed { first: id, told });
            }
            // What is disputed its repetition shuns, once others can see that it is due.
            if disputed.is_none() {
                self.shun_for(lane, route, fault);
            }
        }
        Ok((Response { status: head.status, headers: head.headers, provenance, body }, disputed))
    }

    /// After a fault the log bars this client from the pair; so it need not ask to hear that.
    fn shun_for(&self, lane: &Lane, route: &RouteId, fault: Option<FaultKind>) {
        let until = match fault {
            None => return,
            Some(FaultKind::Answer) => None,
            // Until its repetition is answered; or else as long as the log holds it.
            Some(FaultKind::OwnForm400) => Some(Instant::now() + Duration::from_millis(HOLD_MS)),
            // When the provider is down these are void at once: only the log knows.
            Some(FaultKind::Answerless) => return,
        };
        self.shun(route, lane.share_epoch(), lane.pair(), until);
    }

    /// Repeats a request that was answered with 400 over nodes that had no part in it. At most [`crate::client::REPEATS_MAX`] at
    /// a time: beyond, the pair stays barred.
    fn repeat(self: &Arc<Self>, route: RouteId, lane: &Lane, request: Request, disputed: Disputed) {
        let (first, permit) = (lane.pair(), Arc::clone(&self.repeats).try_acquire_owned());
        if permit.is_ok() {
            lock(&self.disputes).push((route.clone(), first, disputed.first));
        }
        self.shun_for(lane, &route, Some(FaultKind::OwnForm400));
        let Ok(permit) = permit else { return };
        let inner = Arc::downgrade(self);
        self.tasks.spawn(async move {
            let _permit = permit;
            let id = disputed.first;
            // The log forgets a fault that it knows: the first report goes first.
            let repeated = async {
                let _ = disputed.told.await;
                let Some(inner) = inner.upgrade() else { return };
                // One after the other: each needs a pair for itself, and may have to wait for one.
                for _ in 0..REPEAT_TRIES_MAX {
                    let one = inner.repeating.lock().await;
                    match inner.repeat_once(&route, first, &request, id).await {
                        Some(true) => return inner.unshun(&route, first),
                        Some(false) => return,
                        None => drop(one),
                    }
                    tokio::time::sleep(REPEAT_PAUSE).await;
                }
            };
            let _ = timeout(REPEAT_TIMEOUT, repeated).await;
            if let Some(inner) = inner.upgrade() {
                lock(&inner.disputes).retain(|(_, _, request)| *request != id);
                inner.repeated.notify_waiters();
            }
        });
    }

    fn is_disputed(&self, route: &RouteId) -> bool {
        lock(&self.disputes).iter().any(|(r, ..)| r == route)
    }

    /// Pairs that other requests leave to repetitions that are due: for each one that is disjoint to it. Otherwise an
    /// application that sends one bad request after the other would use up every pair before any is cleared.
    fn reserved(&self, route: &RouteId) -> Vec<(NodeId, NodeId)> {
        let due: Vec<Pair> =
            lock(&self.disputes).iter().filter(|(r, ..)| r == route).map(|(_, pair, _)| *pair).collect();
        if due.is_empty() {
            return vec![];
        }
        let directory = self.directory();
        let Ok(grant) = directory.grant(&self.trust, &self.key.public()) else { return vec![] };
        let pairs = directory.pairs(route, &grant.custodian);
        let mut reserved = Vec::new();
        for pair in due {
            let free = |(relay, keyer): &&(NodeId, NodeId)| {
                let other = Pair { relay: *relay, keyer: *keyer };
                pair.disjoint(other) && !self.is_shunned(route, other)
            };
            if let Some(kept) = pairs.iter().find(free)
                && !reserved.contains(kept)
            {
                reserved.push(*kept);
            }
        }
        reserved
    }

    /// Whether disjoint nodes brought the same answer; `None` when nobody could be asked.
    async fn repeat_once(
        self: &Arc<Self>,
        route: &RouteId,
        first: Pair,
        request: &Request,
        same_as: RequestId,
    ) -> Option<bool> {
        let directory = self.directory();
        let grant = directory.grant(&self.trust, &self.key.public()).ok()?;
        let custodian = &grant.custodian;
        let touching =
            |(relay, keyer): &(NodeId, NodeId)| !first.disjoint(Pair { relay: *relay, keyer: *keyer });
        let avoid: Vec<_> = directory.pairs(route, custodian).into_iter().filter(touching).collect();
        if avoid.len() == directory.pairs(route, custodian).len() {
            // Nobody else could tell.
            return Some(false);
        }
        let (lane, conn) = self.lanes(route).take(self, &avoid).await.ok()?;
        // A lane may be older than the directory.
        if !first.disjoint(lane.pair()) {
            return None;
        }
        let asked = Instant::now();
        let (response, again) = match self.attempt(route, &lane, conn, request, Some(same_as)).await {
            Ok(answered) => answered,
            Err(failed) => {
                if is_pair_refusal(&failed.error) {
                    self.refused(route, lane.share_epoch(), lane.pair(), asked);
                    self.lanes(route).left(self, &lane, &failed.error);
                }
                // Repeated once: what may have been forwarded is not sent again.
                return if failed.forwarded == Forwarded::No { None } else { Some(false) };
            }
        };
        let same = response.status.as_u16() == 400 && again.is_some();
        drop(response);
        if let Some(again) = again {
            self.shun_for(&lane, route, Some(FaultKind::OwnForm400));
            if again.told.await.is_ok() {
                self.unshun(route, lane.pair());
            }
        }
        Some(same)
    }
}

impl Client {
    /// One request over exactly this pair, by an admin's leave: not metered, not repeated. For `quorate admin credential check`.
    pub async fn probe_pair(
        &self,
        (relay, keyer): (NodeId, NodeId),
        grant: SignedProbeGrant,
        request: &Request,
    ) -> Result<Response, Error> {
        request.check_headers()?;
        let (inner, route) = (self.inner(), grant.grant.route.clone());
        inner.fresh_directory().await?;
        let lane = inner.open_pool(&route, relay, keyer, Some(grant)).await?;
        let sent = async {
            let conn = lane.take().await?;
            inner.attempt(&route, &lane, conn, request, None).await.map_err(|failed| failed.error)
        };
        let sent = sent.await;
        // What it shows is one probe's word; requests find out for themselves.
        inner.unshun(&route, lane.pair());
        // The answer has a tunnel of its own by now.
        lane.end(Error::Closed);
        sent.map(|(response, _)| response)
    }
}

/// The code of a keyer that saw two policies while it checked a head, or has yet to see the one signed for.
const POLICY_CHANGED: &str = "policy_changed";

fn is_keyers(error: &Error) -> bool {
    matches!(error, Error::Refused(r) if r.code == POLICY_CHANGED)
}

/// Whether a request was refused for the policy that it was signed for.
fn is_stale(error: &Error) -> bool {
    let codes = [Refusal::StalePolicy.code(), Refusal::StaleShareEpoch.code(), POLICY_CHANGED];
    matches!(error, Error::Refused(r) if codes.contains(&r.code.as_str()))
}

/// A request's patience with a policy that is about to be in force.
struct Stale {
    until: Instant,
    pause: Duration,
}

impl Stale {
    fn new() -> Self {
        Self { until: Instant::now() + STALE_WAIT, pause: STALE_PAUSE }
    }

    /// A short while, longer each time; `false` when none is left.
    async fn pause(&mut self) -> bool {
        if Instant::now() + self.pause >= self.until {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(STALE_PAUSE_MAX);
        true
    }
}

/// Whether the provider may have seen the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarded {
    No,
    Unknown,
    Yes,
}

pub(crate) struct Failed {
    pub(crate) error: Error,
    forwarded: Forwarded,
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), forwarded: Forwarded::No }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Again,
    Fail,
    OutcomeUnknown,
}

/// A retry needs an error that another try can cure, and either proof that nothing was forwarded or the caller's leave.
fn decide(error: &Error, forwarded: Forwarded, idempotent: bool, attempt: usize, late: bool) -> Verdict {
    let curable = match error.retry() {
        Retry::Now => true,
        Retry::Unknown => forwarded != Forwarded::No && idempotent,
        Retry::Later | Retry::Never => false,
    };
    match forwarded {
        Forwarded::Unknown if curable && !idempotent => Verdict::OutcomeUnknown,
        Forwarded::Yes if !idempotent => Verdict::Fail,
        _ if curable && attempt < ATTEMPTS_MAX && !late => Verdict::Again,
        _ => Verdict::Fail,
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) response_bytes_max: u64,
    pub(crate) allowed: Duration,
}

/// SHA-256 over a fresh salt and the body.
fn salted_digest(body: &[u8]) -> Result<([u8; 32], Hash), Error> {
    let mut salt = [0; 32];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| Error::NoRandomness)?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(&salt);
    context.update(body);
    let mut digest = [0; 32];
    digest.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    Ok((salt, Hash(digest)))
}

/// Seals head and body and sends them; `sign` makes the signed authorisation of the head's digest.
pub(crate) async fn start(
    lane: &Lane,
    conn: Conn,
    request: &Request,
    sign: impl FnOnce(Hash) -> Vec<u8>,
    limits: Limits,
) -> Result<Exchange, Error> {
    let Conn { mut up, down, tls, early, .. } = conn;
    let head = request.head();
    let ClientRequest { head, mut body, response } =
        tls.seal_request(&lane.template, &head).map_err(Error::Head)?;
    up.request(sign(Hash(head.digest().0)), head.to_bytes()).await?;
    let mut left = request.body.clone();
    let first = left.split_to(left.len().min(FRAME_PLAINTEXT));
    if !first.is_empty() {
        up.data(seal(&mut body, &first)?).await?;
    }
    let (up, feeder) = if left.is_empty() {
        (Some(up), None)
    } else {
        let feeder = tokio::spawn(async move {
            while !left.is_empty() {
                let piece = left.split_to(left.len().min(FRAME_PLAINTEXT));
                let Ok(records) = seal(&mut body, &piece) else { return };
                if up.data(records).await.is_err() {
                    return;
                }
            }
            // Closing our side early would look like hanging up.
            std::future::pending::<()>().await;
        });
        (None, Some(feeder.abort_handle()))
    };
    Ok(Exchange {
        up,
        down: Some(down),
        opener: response,
        pending: early,
        parser: ResponseParser::new(),
        deadline: Box::pin(tokio::time::sleep(limits.allowed)),
        allowed: limits.allowed,
        left: limits.response_bytes_max,
        bound: limits.response_bytes_max,
        status: 0,
        sent: request.body.len() as u64,
        usage: UsageTail::default(),
        ended: None,
        error_form: false,
        same_as: None,
        report: None,
        authorised: None,
        certificate: Bytes::new(),
        feeder,
        orderly: false,
    })
}

/// The row a request is paid by: its own choice, the one for the model it asks for, or the only one of the route.
fn price_of(policy: &Policy, route: &RouteId, request: &Request) -> Option<PriceId> {
    if let Some(price) = &request.price {
        return Some(price.clone());
    }
    if policy.prices.is_empty() {
        return None;
    }
    let of_model = match &request.target {
        Target::Model(model) => policy.price_for(route, model),
        Target::Route(_) => None,
    };
    let mut of_route = policy.prices.values().filter(|p| p.routes.contains(route));
    let only = of_route.next().filter(|_| of_route.next().is_none());
    of_model.or(only).map(|p| p.id.clone())
}

fn seal(body: &mut BodySealer, piece: &[u8]) -> Result<Bytes, Error> {
    let records = piece.len().div_ceil(PLAINTEXT_MAX);
    let mut out = Vec::with_capacity(piece.len() + records * (OVERHEAD + 5));
    body.seal_chunk(piece, &mut out)?;
    Ok(out.into())
}

/// The same client code on a TLS connection straight to the provider: no mesh, no log, no policy, no protection. It is
/// the benchmark's baseline and nothing else.
pub struct DangerDirect {
    lane: Arc<Lane>,
    limits: Limits,
}

impl DangerDirect {
    /// Keeps connections to the route's provider ready, as a lane does.
    pub fn new(route: &quorate_core::policy::RouteDocument, options: PoolOptions) -> Result<Self, Error> {
        if route.credential.is_some() {
            let reason = "nobody fills in its key on a direct connection".into();
            return Err(Error::BadRoute { route: route.name.clone(), reason });
        }
        let limits = Limits {
            response_bytes_max: route.response_bytes_max,
            allowed: Duration::from_millis(route.duration_ms_max),
        };
        Ok(Self { lane: Lane::danger_direct(route, options)?, limits })
    }

    /// Sends one request. The target is not looked at.
    pub async fn request(&self, request: &Request) -> Result<Response, Error> {
        let conn = self.lane.take().await?;
        let mut exchange = start(&self.lane, conn, request, |_| Vec::new(), self.limits).await?;
        let head = exchange.head().await?;
        let provenance = Provenance {
            request: RequestId([0; 16]),
            relay: NodeId(0),
            keyer: NodeId(0),
            authorised: Default::default(),
            body_salt: [0; 32],
        };
        Ok(Response {
            status: head.status,
            headers: head.headers,
            provenance,
            body: ResponseBody::new(exchange),
        })
    }
}

impl Drop for DangerDirect {
    fn drop(&mut self) {
        self.lane.end(Error::Closed);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::{Limits, start};
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault, MeshRefusal};

    fn refused(retry: Retry) -> Error {
        let text = String::new;
        Error::Refused(MeshRefusal { code: text(), message: text(), hint: text(), retry, fault: Fault::Mesh })
    }

    #[test]
    fn retries_only_what_was_not_forwarded_or_may_be_repeated() {
        let lost = Error::NodeLost { node: NodeId(1), reason: String::new() };
        let cut = Error::Truncated { reason: String::new() };
        use Forwarded as F;
        use Verdict as V;
        let table = [
            (&lost, F::No, false, 1, V::Again),
            (&lost, F::No, false, 3, V::Fail),
            (&lost, F::Unknown, false, 1, V::OutcomeUnknown),
            (&lost, F::Unknown, true, 1, V::Again),
            (&lost, F::Yes, false, 1, V::Fail),
            (&lost, F::Yes, true, 1, V::Again),
            (&lost, F::Yes, true, 3, V::Fail),
            (&cut, F::Yes, false, 1, V::Fail),
            (&cut, F::Yes, true, 1, V::Again),
            (&refused(Retry::Now), F::No, false, 2, V::Again),
            (&refused(Retry::Later), F::No, true, 1, V::Fail),
            (&refused(Retry::Never), F::No, true, 1, V::Fail),
        ];
        for (error, forwarded, idempotent, attempt, expected) in table {
            assert_eq!(
                decide(error, forwarded, idempotent, attempt, false),
                expected,
                "{error} {forwarded:?} {idempotent} {attempt}"
            );
        }
        assert_eq!(decide(&lost, F::No, false, 1, true), V::Fail, "not past the deadline");
    }

    #[test]
    fn the_salt_opens_the_digest() {
        let (salt, digest) = salted_digest(b"body").unwrap();
        let joined = [&salt[..], b"body"].concat();
        assert_eq!(quorate_core::crypto::sha256(&joined), digest);
        assert_ne!(salted_digest(b"body").unwrap().1, digest, "a fresh salt each time");
    }
}
