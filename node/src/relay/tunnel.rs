//! One tunnel: a task that owns both ends of one connection from Open to settlement.
//!
//! Everything that it holds is bounded: a read buffer, the body's window, the messages on their way to the client. Whoever
//! does not read is waited for; time ends it (the pool's expiry before the request, the request's ceiling after).
use super::release::{Handshake, Held, KeyerApproval, RecordEdge, Released};
use super::{ConnectionPlace, OpenPlace, Relay, Running};
use crate::clock;
#[cfg(feature = "danger-hostile")]
use crate::danger_hostile;
use crate::keyer::{HEAD_BYTES_MAX, id};
use crate::ledger::{DecideError, Decided, Ledger, Outgoing};
use crate::pool::PoolFacts;
use crate::services::status::Problem;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use quorate_core::certificate::{CertifiedAuthorisation, CertifiedLeaf};
use quorate_core::command::{Authorise, ClientCommand, ClientSigned, Command, Ended, Settlement, bucketed};
use quorate_core::crypto::encode;
use quorate_core::ids::{ConnectionId, PoolId, RequestId, Timestamp};
use quorate_core::refusal::Refusal;
use quorate_proto::v1::{self, tunnel_down, tunnel_up};
use quorate_proto::{COMMAND_BYTES_MAX, TUNNEL_DATA_BYTES_MAX};
use quorate_splitkey::framing::{FramingRefusal, HeadRecords};
use quorate_splitkey::head::HeadTemplate;
use quorate_transport::PublicKey;
use std::io;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Status;

/// First frame, and the handshake's own writes.
const OPEN_WAIT: Duration = Duration::from_secs(5);
/// Name resolution and TCP.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// From Open to the client's Finished; a connection is idle only after that.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(15);
/// A request is decided within this or refused: a lost quorum must show within three seconds.
const DECIDE_WAIT: Duration = Duration::from_millis(2_000);
/// The keyer's answer may come a little after the relay's own certificate.
const KEYER_WAIT: Duration = Duration::from_millis(2_200);
/// The last message to a client that does not read.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);
/// Body held while a request is being decided.
const BODY_WINDOW_BYTES: usize = 256 * 1024;
/// What a provider may send before the request: a certificate chain and tickets.
const HANDSHAKE_BYTES_MAX: usize = 256 * 1024;
/// One read of the handshake, or of an idle connection.
const IDLE_READ_BYTES: usize = 8 * 1024;
/// One read of an answer; a message to the client is never larger.
const READ_BYTES: usize = 32 * 1024;

type Sent = Result<v1::TunnelDown, Status>;

/// How a tunnel ended.
enum End {
    /// The request is over; what the client is told.
    Closed(&'static str),
    /// The client went away: nobody to tell.
    ClientGone,
}

/// A tunnel before its first frame.
pub(super) struct Tunnel<U> {
    relay: Relay,
    key: PublicKey,
    up: U,
    down: mpsc::Sender<Sent>,
    drain: watch::Receiver<Option<Instant>>,
}

fn down(frame: tunnel_down::Frame) -> Sent {
    Ok(v1::TunnelDown { frame: Some(frame) })
}

fn data(bytes: Bytes) -> Sent {
    down(tunnel_down::Frame::Data(bytes))
}

/// The frame, or why the tunnel ends.
fn frame(message: Option<Result<v1::TunnelUp, Status>>) -> Result<Option<tunnel_up::Frame>, Problem> {
    match message {
        Some(Ok(v1::TunnelUp { frame: Some(tunnel_up::Frame::Data(bytes)) }))
            if bytes.len() > TUNNEL_DATA_BYTES_MAX =>
        {
            Err(Problem::TooLarge { what: "data", max: TUNNEL_DATA_BYTES_MAX })
        }
        Some(Ok(v1::TunnelUp { frame: Some(frame) })) => Ok(Some(frame)),
        Some(Ok(v1::TunnelUp { frame: None })) => Err(Problem::Malformed("frame")),
        Some(Err(_)) | None => Ok(None),
    }
}

/// Completes once a drain began.
async fn draining(drain: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match drain.wait_for(Option::is_some).await.map(|d| *d) {
        Ok(Some(deadline)) => deadline,
        _ => Instant::now(),
    }
}

/// A connection between Open and Request.
struct Connection {
    pool: PoolFacts,
    id: ConnectionId,
    template: HeadTemplate,
    read: OwnedReadHalf,
    handshake: Handshake,
    edge: RecordEdge,
}

impl<U> Tunnel<U>
where
    U: Stream<Item = Result<v1::TunnelUp, Status>> + Send + Unpin,
{
    pub(super) fn new(relay: Relay, key: PublicKey, up: U, down: mpsc::Sender<Sent>) -> Self {
        let drain = relay.inner.drain.subscribe();
        Self { relay, key, up, down, drain }
    }

    /// Runs to the end, and tells the client.
    pub(super) async fn run(mut self, place: OpenPlace) {
        let last = match self.serve().await {
            Ok(End::ClientGone) => return,
            Ok(End::Closed(reason)) => {
                tunnel_down::Frame::Closed(v1::tunnel_down::Closed { reason: reason.to_owned() })
            }
            Err(problem) => {
                self.relay.inner.metrics.refused(problem.category());
                tracing::debug!(code = problem.code(), "a tunnel was refused");
                tunnel_down::Frame::Refused(problem.refused())
            }
        };
        drop(place);
        let _gone = timeout(GOODBYE_WAIT, self.down.send(down(last))).await;
    }

    async fn serve(&mut self) -> Result<End, Problem> {
        let first = timeout(OPEN_WAIT, self.up.next()).await.map_err(|_| Problem::NotOpened)?;
        let open = match frame(first)? {
            Some(tunnel_up::Frame::Open(open)) => open,
            Some(_) => return Err(Problem::OutOfTurn("the first frame must be Open")),
            None => return Ok(End::ClientGone),
        };
        let (mut connection, _place) = self.open(&open).await?;
        if self.down.send(down(tunnel_down::Frame::Opened(v1::tunnel_down::Opened {}))).await.is_err() {
            return Ok(End::ClientGone);
        }
        match self.handshake(&mut connection).await? {
            Some(request) => self.request(connection, request).await,
            None => Ok(End::ClientGone),
        }
    }

    async fn open(&mut self, open: &v1::tunnel_up::Open) -> Result<(Connection, ConnectionPlace), Problem> {
        let (pool, id) = (PoolId(id(&open.pool, "pool")?), ConnectionId(id(&open.connection, "connection")?));
        let inner = &self.relay.inner;
        let pool = PoolFacts::find(&inner.ledger, pool).await?;
        let (view, now) = (inner.ledger.view(), clock::now());
        pool.check_client(&view, &self.key, now)?;
        if pool.relay.0 != inner.ledger.me() {
            return Err(Problem::WrongNode);
        }
        if pool.relay.1 != inner.boot {
            return Err(Problem::Restarted);
        }
        pool.check_standing(&view, now)?;
        let place = ConnectionPlace::take(&self.relay, &pool, id)?;
        let (route, template) = pool.route(&view)?;
        let share_epoch = route.share_epoch();
        drop(view);
        if share_epoch > 0 {
            inner.vault.ready(&pool.route, share_epoch).await.map_err(|_| Problem::SharesMissing)?;
        }
        let socket = connect(&template).await?;
        let (read, write) = socket.into_split();
        let handshake = Handshake::new(write, template.host().clone());
        Ok((Connection { pool, id, template, read, handshake, edge: RecordEdge::default() }, place))
    }

    /// Carries the handshake and keeps the idle connection, until the request comes. `None` when the client left.
    async fn handshake(&mut self, c: &mut Connection) -> Result<Option<v1::tunnel_up::Request>, Problem> {
        let lives = Duration::from_millis(c.pool.expires.since_ms(clock::now()));
        let expiry = Instant::now() + lives;
        let mut deadline = std::pin::pin!(sleep_until(expiry.min(Instant::now() + HANDSHAKE_WAIT)));
        let mut buffer = BytesMut::with_capacity(IDLE_READ_BYTES);
        let mut received = 0usize;
        let mut done = false;
        loop {
            tokio::select! {
                message = self.up.next() => match frame(message)? {
                    Some(tunnel_up::Frame::Data(bytes)) => {
                        let mut input = bytes.as_ref();
                        let written = timeout(OPEN_WAIT, c.handshake.client_bytes(&mut input)).await;
                        let written = written.map_err(|_| Problem::ProviderClosed)?.map_err(Problem::Handshake)?;
                        written.map_err(|_| Problem::ProviderClosed)?;
                        if !input.is_empty() {
                            return Err(Problem::OutOfTurn("what follows the handshake comes in Request"));
                        }
                        if c.handshake.is_done() && !done {
                            done = true;
                            deadline.as_mut().reset(expiry);
                        }
                    }
                    Some(tunnel_up::Frame::Request(request)) => return Ok(Some(request)),
                    Some(tunnel_up::Frame::Open(_)) => return Err(Problem::OutOfTurn("the tunnel is open already")),
                    None => return Ok(None),
                },
                read = c.read.read_buf(&mut buffer) => {
                    if !matches!(read, Ok(1..)) {
                        return Err(Problem::ProviderClosed);
                    }
                    received = received.saturating_add(buffer.len());
                    if received > HANDSHAKE_BYTES_MAX {
                        return Err(Problem::TooLarge { what: "the provider's handshake", max: HANDSHAKE_BYTES_MAX });
                    }
                    let mut forward = Vec::with_capacity(buffer.len());
                    let placed = c.handshake.provider_bytes(&buffer, &mut forward);
                    buffer.clear();
                    c.edge.feed(&forward);
                    // What the watch placed before it refused (an alert's predecessor) is still the client's.
                    if !forward.is_empty() && timeout_at(expiry, self.down.send(data(forward.into()))).await.is_err() {
                        return Err(Refusal::UnknownPool.into());
                    }
                    placed.map_err(Problem::Handshake)?;
                },
                () = &mut deadline => {
                    return Err(if done { Refusal::UnknownPool.into() } else { Problem::NotOpened });
                }
                _ = draining(&mut self.drain) => return Err(Problem::ShuttingDown),
                () = self.down.closed() => return Ok(None),
            }
        }
    }

    async fn request(&mut self, c: Connection, request: v1::tunnel_up::Request) -> Result<End, Problem> {
        let received = Instant::now();
        let (command, a) = self.check_request(&c, &request)?;
        let head = HeadRecords::from_bytes(&request.head, c.template.shape()).map_err(Problem::Head)?;
        if head.digest().0 != a.head_digest.0 {
            return Err(Problem::HeadDigest);
        }
        let span = super::span::RelaySpan::begin(&self.relay, &a, &c.template);
        let Connection { pool, id, template, read, handshake, edge } = c;
        let held = handshake.hold(id, head, &template)?;
        let mut waiting =
            Waiting { received, body: Vec::new(), bytes: 0, read, edge, certified_us: 0, keyer_us: 0 };
        // A pooled connection grows old: what the provider closed must not cost a request.
        self.provider_is_open(&mut waiting)?;
        #[cfg(feature = "danger-hostile")]
        if danger_hostile::is("relay:no-leaf") || danger_hostile::is("relay:other-request") {
            return self.danger_without_leaf(held, &a, &pool, request.head, waiting).await;
        }
        let running = Running::start(&self.relay, a.request)?;
        let (decided, outcome) = self.decide(&mut waiting, command, &a, &pool, request.head).await?;
        // From here on the request is authorised: whatever happens, it is settled.
        let mut owed = Owed::new(self.relay.inner.ledger.clone(), a.request);
        let authorisation = decided.leaf.as_ref().and_then(CertifiedLeaf::authorisation);
        let Some(authorisation) = authorisation else {
            return Err(Problem::Internal("an authorisation without a leaf"));
        };
        let released = match outcome {
            Waited::Approved(approval) => {
                self.release(held, &authorisation, approval, &pool, &template, &mut waiting).await
            }
            Waited::Refused(problem) => Err(problem),
            Waited::ClientGone => {
                owed.pay(Ended::Cancelled).await;
                return Ok(End::ClientGone);
            }
        };
        let end = match released {
            Ok(released) => {
                self.stream(&mut owed, waiting, released, &authorisation, decided.applied_at).await
            }
            Err(problem) => Err((ended_by(&problem), problem)),
        };
        let (ended, end) = match end {
            Ok((ended, end)) => (ended, Ok(end)),
            Err((ended, problem)) => (ended, Err(problem)),
        };
        self.relay.inner.metrics.relayed(owed.up, owed.down);
        span.end(&owed.settlement(ended));
        // Settled before the client hears of it: the receipt it asks for next will have the settlement.
        owed.pay(ended).await;
        drop(running);
        end
    }

    /// The command, if it is an authorisation of this client for this very connection. Bounds come before decoding.
    fn check_request(
        &self,
        c: &Connection,
        request: &v1::tunnel_up::Request,
    ) -> Result<(Command, Authorise), Problem> {
        if !c.handshake.is_done() {
            return Err(Problem::OutOfTurn("the request came before the end of the handshake"));
        }
        if request.command.len() > COMMAND_BYTES_MAX {
            return Err(Problem::TooLarge { what: "command", max: COMMAND_BYTES_MAX });
        }
        if request.head.len() > HEAD_BYTES_MAX {
            return Err(Problem::TooLarge { what: "head", max: HEAD_BYTES_MAX });
        }
        let command: Command =
            borsh::from_slice(&request.command).map_err(|_| Problem::Malformed("command"))?;
        let Command::Client(ClientSigned { client, token, body: ClientCommand::Authorise(a), .. }) = &command
        else {
            return Err(Problem::WrongCommand);
        };
        let pool = &c.pool;
        if (client, *token) != (&pool.client, pool.token.map(|(id, _)| id)) {
            return Err(Problem::NotTheClient);
        }
        let named = (a.pool, a.connection, &a.route, a.relay, a.keyer);
        if named != (pool.id, c.id, &pool.route, pool.relay.0, pool.keyer.0) {
            return Err(Refusal::PoolMismatch.into());
        }
        // An open connection outlives a revocation.
        let (view, now) = (self.relay.inner.ledger.view(), clock::now());
        pool.check_client(&view, &self.key, now)?;
        pool.check_standing(&view, now)?;
        let a = a.clone();
        Ok((command, a))
    }

    /// Waits for both answers, holding body meanwhile. An error means that the request is not authorised.
    async fn decide(
        &mut self,
        waiting: &mut Waiting,
        command: Command,
        a: &Authorise,
        pool: &PoolFacts,
        head: Bytes,
    ) -> Result<(Decided, Waited), Problem> {
        let relay = self.relay.clone();
        let inner = &relay.inner;
        let mut decision = std::pin::pin!(inner.ledger.decide(command, Vec::new(), DECIDE_WAIT));
        let answer = async {
            #[cfg(feature = "danger-hostile")]
            danger_hostile::withhold(a.request).await;
            KeyerApproval::ask(inner.keyers.as_ref(), pool.keyer.0, a.request, a.connection, head).await
        };
        let mut answer = std::pin::pin!(timeout(KEYER_WAIT, answer));
        let mut buffer = BytesMut::with_capacity(IDLE_READ_BYTES);
        let (mut decided, mut waited) = (None, None);
        loop {
            (decided, waited) = match (decided, waited) {
                (Some(decided), Some(waited)) => return Ok((decided, waited)),
                incomplete => incomplete,
            };
            let busy = waited.as_ref().is_none_or(|w| matches!(w, Waited::Approved(_)));
            tokio::select! {
                result = &mut decision, if decided.is_none() => match result {
                    Ok(done) => {
                        waiting.certified_us = micros(waiting.received);
                        decided = Some(done);
                    }
                    Err(error @ (DecideError::NoQuorum | DecideError::ShuttingDown)) => {
                        relay.abandon(a.request, until(a.expires));
                        return Err(error.into());
                    }
                    Err(error @ (DecideError::Refused(_) | DecideError::Overloaded)) => return Err(error.into()),
                },
                result = &mut answer, if waited.is_none() => {
                    waiting.keyer_us = micros(waiting.received);
                    waited = Some(match result {
                        Ok(Ok(approval)) => Waited::Approved(approval),
                        Ok(Err(problem)) => Waited::Refused(problem),
                        Err(_) => Waited::Refused(Problem::KeyerUnavailable),
                    });
                }
                message = self.up.next(), if busy && waiting.bytes < BODY_WINDOW_BYTES => match frame(message) {
                    Ok(Some(tunnel_up::Frame::Data(bytes))) => {
                        waiting.bytes += bytes.len();
                        waiting.body.push(bytes);
                    }
                    Ok(Some(_)) => waited = Some(Waited::Refused(Problem::OutOfTurn("one request, one connection"))),
                    Ok(None) => waited = Some(Waited::ClientGone),
                    Err(problem) => waited = Some(Waited::Refused(problem)),
                },
                read = waiting.read.read_buf(&mut buffer), if busy => {
                    if matches!(read, Ok(1..)) {
                        let bytes = buffer.split().freeze();
                        buffer.reserve(IDLE_READ_BYTES);
                        waiting.edge.feed(&bytes);
                        if self.down.try_send(data(bytes)).is_err() {
                            waited = Some(Waited::ClientGone);
                        }
                    } else {
                        waited = Some(Waited::Refused(Problem::ProviderClosed));
                    }
                }
                () = self.down.closed(), if busy => waited = Some(Waited::ClientGone),
            }
        }
    }

    /// Both answers are in hand: by this node's own clock and newest view, may the head go?
    async fn release(
        &mut self,
        held: Held,
        authorisation: &CertifiedAuthorisation,
        approval: KeyerApproval,
        pool: &PoolFacts,
        connected: &HeadTemplate,
        waiting: &mut Waiting,
    ) -> Result<Released, Problem> {
        let relay = self.relay.clone();
        let (ledger, vault) = (&relay.inner.ledger, &relay.inner.vault);
        let a = authorisation.request();
        if a.share_epoch > 0 {
            vault.ready(&pool.route, a.share_epoch).await.map_err(|_| Problem::SharesMissing)?;
        }
        // Nothing waits from here on to the first write.
        let view = ledger.view();
        let (route, template) = pool.route(&view)?;
        // The route may have moved since the connection was opened; the signature names the policy it was read from.
        if a.policy != view.policy.version || template != *connected {
            return Err(Refusal::StalePolicy.into());
        }
        if a.share_epoch != route.share_epoch() {
            return Err(Refusal::StaleShareEpoch.into());
        }
        let now = clock::now();
        if a.expires.plus_ms(view.policy.attestation.clock_skew_ms) <= now {
            return Err(Refusal::Expired.into());
        }
        // Nobody is to blame for a provider that closed an idle connection: nothing is released on it.
        self.provider_is_open(waiting)?;
        let standing = pool.check_standing(&view, now)?;
        match (held, approval) {
            (Held::Whole(held), KeyerApproval::Whole(approval)) => {
                held.release(authorisation, approval, standing)
            }
            (Held::Around(held), KeyerApproval::Hole(approval)) => {
                let complement = vault.complement(&pool.route, a.share_epoch, pool.keyer.0);
                let complement = complement.map_err(|_| Problem::SharesMissing)?;
                held.release(authorisation, approval, &complement, standing)
            }
            (Held::Whole(_), KeyerApproval::Hole(_)) | (Held::Around(_), KeyerApproval::Whole(_)) => {
                Err(Problem::KeyerAnswer)
            }
        }
    }

    /// Asks the socket itself, now, whether the provider closed its side: the runtime may not have heard of it yet. What came
    /// before that is still the client's.
    fn provider_is_open(&self, waiting: &mut Waiting) -> Result<(), Problem> {
        let mut came = Vec::new();
        let open = super::release::look(waiting.read.as_ref(), &mut came);
        for bytes in came.chunks(IDLE_READ_BYTES) {
            waiting.edge.feed(bytes);
            // A client that reads nothing meanwhile is not worth a buffer of ours.
            if self.down.try_send(data(Bytes::copy_from_slice(bytes))).is_err() {
                return Err(Problem::OutOfTurn("the tunnel's answers are not read"));
            }
        }
        if open { Ok(()) } else { Err(Problem::ProviderClosed) }
    }

    /// Head, body, answer.
    async fn stream(
        &mut self,
        owed: &mut Owed,
        waiting: Waiting,
        mut released: Released,
        authorisation: &CertifiedAuthorisation,
        applied_at: Instant,
    ) -> Result<(Ended, End), (Ended, Problem)> {
        let a = authorisation.request();
        let Waiting { received, body, mut read, mut edge, certified_us, keyer_us, .. } = waiting;
        // One write: the head and the body that is here already.
        for bytes in &body {
            released.admit(bytes).map_err(body_problem)?;
        }
        drop(body);
        #[cfg(feature = "danger-hostile")]
        danger_hostile::detour("relay:delay-unsaid").await;
        let started = Instant::now();
        #[cfg(feature = "danger-hostile")]
        danger_hostile::detour("relay:delay").await;
        owed.started = Some(started);
        let ceiling = started + Duration::from_millis(a.duration_ms_max);
        let mut provider_reads = match timeout_at(ceiling, released.write_some()).await {
            Ok(written) => written.is_ok(),
            Err(_) => return Ok((Ended::TimedOut, End::Closed("timed_out"))),
        };
        owed.up = released.sent();
        let timings = v1::Timings {
            applied_us: u32::try_from(applied_at.saturating_duration_since(received).as_micros())
                .unwrap_or(u32::MAX),
            certified_us,
            keyer_us,
            released_us: micros(received),
        };
        self.relay.inner.metrics.released(&timings);
        let authorised = tunnel_down::Frame::Authorised(v1::tunnel_down::Authorised {
            leaf_index: authorisation.index().0,
            tree_size: authorisation.under().size.0,
            timings: Some(timings),
            certificate: self
                .relay
                .inner
                .ledger
                .leaf_certificate(authorisation.index())
                .map(|c| encode(&c).into())
                .unwrap_or_default(),
        });
        if !matches!(timeout_at(ceiling, self.down.send(down(authorised))).await, Ok(Ok(()))) {
            return Ok((Ended::Cancelled, End::ClientGone));
        }
        let mut too_long = std::pin::pin!(sleep_until(ceiling));
        let mut drain = self.drain.clone();
        let mut drained = std::pin::pin!(async move { sleep_until(draining(&mut drain).await).await });
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut permit = None;
        let mut client_sends = true;
        loop {
            if !provider_reads {
                released.discard();
            }
            tokio::select! {
                message = self.up.next(), if client_sends && !released.has_pending() => {
                    match frame(message).map_err(|p| (Ended::Cancelled, p))? {
                        Some(tunnel_up::Frame::Data(bytes)) => released.admit(&bytes).map_err(body_problem)?,
                        Some(_) => return Err((Ended::Cancelled, Problem::OutOfTurn("one request, one connection"))),
                        // It may half-close once the body is through, and still read the answer.
                        None if released.body_complete() => client_sends = false,
                        None => return Ok((Ended::Cancelled, End::ClientGone)),
                    }
                }
                written = released.write_some(), if released.has_pending() => {
                    // A provider may answer and stop reading: its answer is still to be carried.
                    provider_reads = written.is_ok();
                    owed.up = released.sent();
                }
                reserved = self.down.reserve(), if permit.is_none() => match reserved {
                    Ok(reserved) => permit = Some(reserved),
                    Err(_) => return Ok((Ended::Cancelled, End::ClientGone)),
                },
                got = read.read_buf(&mut buffer), if permit.is_some() => {
                    let count = match got {
                        Ok(count @ 1..) => count,
                        end => return Ok(provider_end(&end, owed.down, &edge)),
                    };
                    if owed.down == 0 {
                        owed.first_byte_ms = millis(started);
                    }
                    owed.down = owed.down.saturating_add(count as u64);
                    if owed.down > a.response_bytes_max {
                        return Ok((Ended::CeilingReached, End::Closed("ceiling_reached")));
                    }
                    #[cfg(feature = "danger-hostile")]
                    danger_hostile::alter("relay:alter-down", &mut buffer, 0);
                    let bytes = buffer.split().freeze();
                    buffer.reserve(READ_BYTES);
                    edge.feed(&bytes);
                    if let Some(permit) = permit.take() {
                        permit.send(data(bytes));
                    }
                }
                () = self.down.closed(), if permit.is_some() => return Ok((Ended::Cancelled, End::ClientGone)),
                () = &mut too_long => return Ok((Ended::TimedOut, End::Closed("timed_out"))),
                () = &mut drained => return Err((Ended::MeshFailure, Problem::ShuttingDown)),
            }
        }
    }
}

#[cfg(feature = "danger-hostile")]
impl<U: Send> Tunnel<U> {
    /// Asks the keyer, and nobody else.
    async fn danger_without_leaf(
        &mut self,
        held: Held,
        a: &Authorise,
        pool: &PoolFacts,
        head: Bytes,
        mut waiting: Waiting,
    ) -> Result<End, Problem> {
        let inner = &self.relay.inner;
        let request = danger_hostile::named(a.request);
        let approval =
            KeyerApproval::ask(inner.keyers.as_ref(), pool.keyer.0, request, a.connection, head).await?;
        let (Held::Around(held), KeyerApproval::Hole(approval)) = (held, approval) else {
            return Err(Problem::KeyerAnswer);
        };
        let complement = inner.vault.complement(&pool.route, a.share_epoch, pool.keyer.0);
        let complement = complement.map_err(|_| Problem::SharesMissing)?;
        let mut released = held.danger_release(approval, &complement)?;
        while released.has_pending() {
            released.write_some().await.map_err(|_| Problem::ProviderClosed)?;
        }
        let mut answer = BytesMut::with_capacity(READ_BYTES);
        let _silent = timeout(OPEN_WAIT, waiting.read.read_buf(&mut answer)).await;
        Ok(End::Closed("danger-hostile"))
    }
}

/// The provider's end of the connection: whole only between two records, after an answer.
fn provider_end(end: &io::Result<usize>, received: u64, edge: &RecordEdge) -> (Ended, End) {
    if end.is_ok() && received > 0 && edge.at_boundary() {
        (Ended::Complete, End::Closed("complete"))
    } else {
        (Ended::Truncated, End::Closed("truncated"))
    }
}

fn body_problem(refusal: FramingRefusal) -> (Ended, Problem) {
    let problem = Problem::Body(refusal);
    (ended_by(&problem), problem)
}

/// How an authorised request ended that was refused on the way.
fn ended_by(problem: &Problem) -> Ended {
    match problem {
        Problem::KeyerRefused { retryable: false, .. } => Ended::HeadRefused,
        Problem::Body(FramingRefusal::BodyTooLong { .. }) | Problem::BodyAboveCeiling => {
            Ended::CeilingReached
        }
        Problem::Body(_) | Problem::OutOfTurn(_) | Problem::Malformed(_) | Problem::TooLarge { .. } => {
            Ended::Cancelled
        }
        Problem::ProviderClosed => Ended::Truncated,
        _ => Ended::MeshFailure,
    }
}

/// What is kept while a request is being decided.
struct Waiting {
    received: Instant,
    body: Vec<Bytes>,
    bytes: usize,
    read: OwnedReadHalf,
    edge: RecordEdge,
    certified_us: u32,
    keyer_us: u32,
}

/// What came besides the decision.
enum Waited {
    Approved(KeyerApproval),
    Refused(Problem),
    ClientGone,
}

/// The settlement of an authorised request: paid once, at the latest when dropped.
struct Owed {
    ledger: Ledger,
    request: RequestId,
    up: u64,
    down: u64,
    first_byte_ms: u32,
    started: Option<Instant>,
    paid: bool,
}

impl Owed {
    fn new(ledger: Ledger, request: RequestId) -> Self {
        Self { ledger, request, up: 0, down: 0, first_byte_ms: 0, started: None, paid: false }
    }

    async fn pay(mut self, ended: Ended) {
        self.paid = true;
        self.ledger.settle(self.settlement(ended)).await;
    }

    fn settlement(&self, ended: Ended) -> Settlement {
        Settlement {
            request: self.request,
            bytes_up: bucketed(self.up),
            bytes_down: bucketed(self.down),
            first_byte_ms: self.first_byte_ms,
            total_ms: self.started.map_or(0, millis),
            ended,
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        // Only when the task is dropped with its runtime, or left by an error of ours.
        if !self.paid {
            self.ledger.send(Outgoing::Settlement(self.settlement(Ended::MeshFailure)));
        }
    }
}

/// TCP to the route's host and nowhere else.
async fn connect(template: &HeadTemplate) -> Result<TcpStream, Problem> {
    let host = template.host().to_string();
    let connecting = TcpStream::connect((host.as_str(), template.port()));
    #[cfg(feature = "danger-hostile")]
    let connecting = async {
        match danger_hostile::value("relay:elsewhere") {
            Some(address) => TcpStream::connect(address).await,
            None => connecting.await,
        }
    };
    let unreachable = |e: io::Error| {
        tracing::info!(error = %e, "the provider of a route cannot be reached");
        Problem::ProviderUnreachable
    };
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    let connected = timeout(CONNECT_WAIT, connecting).await.map_err(|_| unreachable(timed_out()))?;
    let socket = connected.map_err(unreachable)?;
    socket.set_nodelay(true).map_err(unreachable)?;
    Ok(socket)
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

fn millis(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX)
}

/// A moment of the wall clock as one of this process; a minute later, so that clocks may differ.
fn until(at: Timestamp) -> Instant {
    Instant::now()
        + Duration::from_millis(at.since_ms(clock::now())).min(Duration::from_secs(180))
        + Duration::from_secs(60)
}
