//! The keyer: holds the traffic secrets of connections it never saw, and judges one head on each, once.
//!
//! ```text
//! register(pool, connection, secret) ──► waiting ──► check_head: spent, whatever the answer
//!                                           └─ pool expires ──► forgotten, zeroized
//! ```
//! **Decides** whether a head may be sent. It opens and parses the records while the authorisation is still being certified,
//! and says yes only when its *own* view holds a certified authorisation that names this very request, connection, pool,
//! relay, keyer and head digest, the pool stands by its own clock, and relay and keyer are attested with the pool's boot keys.
//!
//! For a route with a credential its yes is the answer for the hole: keystream masked with this node's share, given once, with the
//! share of the very epoch that was authorised ([`crate::shares`]).
//!
//! **Refuses** a second secret for a connection, a second answer, and any caller but the pool's relay, so that nobody else
//! can spend a connection. A head that was really signed and is not what the route allows is an alarm: no client of ours
//! writes one. Unknown connections are a retryable refusal: after a restart all are unknown.
//!
//! It survives a hostile relay (which cannot make it answer for other records), client (its head is re-serialised) and
//! leader. **Leaves to the caller** the proof of who is calling.
use crate::clock;
#[cfg(feature = "danger-hostile")]
use crate::danger_hostile;
use crate::ledger::{Ledger, Outgoing};
use crate::metrics::Metrics;
use crate::pool::PoolFacts;
use crate::services::status::Problem;
use crate::shares::Vault;
use bytes::Bytes;
use quorate_attest::evidence::BootKeys;
use quorate_core::command::{Alarm, Authorise, NodeCommand};
use quorate_core::ids::{ClientId, ConnectionId, NodeId, PolicyVersion, PoolId, RequestId, Timestamp};
use quorate_core::refusal::Refusal;
use quorate_proto::v1::{self, check_head_reply::Answer};
use quorate_splitkey::framing::{HEAD_FRAGMENT_MAX, HeadRecords};
use quorate_splitkey::head::{CheckedHead, HeadRefusal};
use quorate_splitkey::hole::HoleAnswer;
use quorate_splitkey::keyer::{KeyerConnection, KeyerRefusal};
use quorate_splitkey::record::{HEADER_LEN, SECRET_LEN, TrafficSecret};
use quorate_telemetry::{Attribute, Kind, Name, Role, Span, mesh_span, mesh_trace};
use quorate_transport::PublicKey;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// Secrets that may wait at a time, 100 MB at most with everything around them.
pub const WAITING_MAX: usize = 65_536;
/// Secrets of one client: one cannot crowd the others out.
pub const WAITING_PER_CLIENT_MAX: usize = 2_048;
/// Connections of one pool over its life; a client that needs more opens another pool.
pub const CONNECTIONS_PER_POOL_MAX: usize = 65_536;
/// Largest head: two full records.
pub const HEAD_BYTES_MAX: usize = 2 * (HEADER_LEN + HEAD_FRAGMENT_MAX);
/// How long an authorisation may take to be certified here.
const AUTHORISATION_WAIT: Duration = Duration::from_millis(2_500);
/// How long it is waited for after that, only to say that there was no answer: as long as a fault is held.
const LATE_AUTHORISATION_WAIT: Duration = Duration::from_millis(quorate_core::state::HOLD_MS);
/// How often expired pools are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Registered connections and the answers to their heads. Cheap to clone.
#[derive(Clone)]
pub struct Keyer {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    boot: BootKeys,
    metrics: Arc<Metrics>,
    vault: Vault,
    registry: Mutex<Registry>,
}

/// Why a keyer does not approve.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("a field is malformed")]
    Malformed,
    #[error("the connection is not registered here")]
    UnknownConnection,
    #[error("another node than the pool's relay asks")]
    NotTheRelay,
    #[error("the authorisation is of another connection, relay, keyer, pool or head")]
    Mismatch,
    #[error("the policy changed while the request was checked")]
    PolicyChanged,
    /// What the node knows without looking at the head.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The head itself.
    #[error(transparent)]
    Head(#[from] KeyerRefusal),
}

impl Keyer {
    /// A keyer without connections.
    pub fn new(ledger: Ledger, boot: BootKeys, metrics: Arc<Metrics>, vault: Vault) -> Self {
        Self { inner: Arc::new(Inner { ledger, boot, metrics, vault, registry: Mutex::default() }) }
    }

    /// Takes a connection's secret from the client that owns the pool, once.
    pub async fn register(&self, key: &PublicKey, request: v1::RegisterRequest) -> Result<(), Problem> {
        let pool = PoolId(id(&request.pool, "pool")?);
        let connection = ConnectionId(id(&request.connection, "connection")?);
        let secret: [u8; SECRET_LEN] =
            request.traffic_secret.as_ref().try_into().map_err(|_| Problem::Malformed("traffic_secret"))?;
        let secret = TrafficSecret::new(secret);
        let pool = PoolFacts::find(&self.inner.ledger, pool).await?;
        let (view, now) = (self.inner.ledger.view(), clock::now());
        pool.check_client(&view, key, now)?;
        if pool.keyer.0 != self.inner.ledger.me() {
            return Err(Problem::WrongNode);
        }
        if pool.keyer.1 != self.inner.boot {
            return Err(Problem::Restarted);
        }
        if pool.expires <= now {
            return Err(Refusal::UnknownPool.into());
        }
        let share_epoch = pool.route(&view)?.0.share_epoch();
        drop(view);
        if share_epoch > 0 {
            self.inner.vault.ready(&pool.route, share_epoch).await.map_err(|_| Problem::SharesMissing)?;
        }
        #[cfg(feature = "danger-hostile")]
        danger_hostile::remember(connection, &pool, &secret);
        self.registry().register(pool, connection, secret, clock::now())
    }

    /// Judges the head of one connection. `from` is the caller, authenticated.
    pub async fn check_head(&self, from: NodeId, request: v1::CheckHeadRequest) -> v1::CheckHeadReply {
        // In a task of its own: a caller that has gone must not end it before it has said what became of the request.
        let (told, answer) = oneshot::channel();
        let this = self.clone();
        let (id, begun) =
            (request.request.clone(), (std::time::SystemTime::now(), std::time::Instant::now()));
        tokio::spawn(async move {
            let judged = this.judge(from, &request).await;
            if let Err(Ok(Answer::Hole(_))) = told.send(judged)
                && let Ok(id) = <[u8; 16]>::try_from(request.request.as_ref())
            {
                // Nobody has it, and nobody will.
                this.deny(RequestId(id));
            }
        });
        let answer =
            answer.await.unwrap_or(Err(Refused::Problem(Problem::Internal("a head was not judged"))));
        self.span(&id, from, begun, answer.as_ref().err().map(|refused| refused.code().0));
        let answer = match answer {
            Ok(answer) => {
                self.inner.metrics.keyer_answer("approved");
                answer
            }
            Err(refused) => {
                let (code, retryable) = refused.code();
                self.inner.metrics.keyer_answer(code);
                Answer::Refused(v1::HeadRefused {
                    code: code.to_owned(),
                    message: refused.to_string(),
                    retryable,
                })
            }
        };
        v1::CheckHeadReply { answer: Some(answer) }
    }

    /// One judgement as a span, below the relay's.
    fn span(
        &self,
        request: &[u8],
        from: NodeId,
        begun: (std::time::SystemTime, std::time::Instant),
        refused: Option<&'static str>,
    ) {
        let traces = self.inner.metrics.traces();
        let Ok(request) = <[u8; 16]>::try_from(request) else { return };
        if !traces.is_on() {
            return;
        }
        let mut attributes = vec![
            Attribute::Request(request),
            Attribute::Relay(from.0),
            Attribute::Keyer(self.inner.ledger.me().0),
            Attribute::Outcome(refused.unwrap_or("approved")),
        ];
        attributes.extend(refused.map(|code| Attribute::Error(Name::new(code))));
        traces.export(Span {
            trace: mesh_trace(request),
            id: mesh_span(request, Role::Keyer),
            parent: Some(mesh_span(request, Role::Relay)),
            links: vec![],
            name: "keyer",
            of: None,
            kind: Kind::Server,
            begun: begun.0,
            took: begun.1.elapsed(),
            attributes,
        });
    }

    /// Forgets expired pools, for as long as the node runs: secrets must not wait for the next caller to be erased.
    pub async fn sweep(self) {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            tick.tick().await;
            self.registry().forget_expired(clock::now());
        }
    }

    /// Secrets waiting for their head.
    pub fn waiting(&self) -> usize {
        self.registry().waiting
    }

    async fn judge(&self, from: NodeId, request: &v1::CheckHeadRequest) -> Result<Answer, Refused> {
        let id_of = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).map_err(|_| Refused::Malformed);
        let (request_id, connection) =
            (RequestId(id_of(&request.request)?), ConnectionId(id_of(&request.connection)?));
        if request.head.len() > HEAD_BYTES_MAX {
            return Err(Refused::Malformed);
        }
        let taken = self.registry().take(&connection, from);
        #[cfg(feature = "danger-hostile")]
        if danger_hostile::is("keyer:no-leaf")
            || taken.as_ref().is_err_and(|_| danger_hostile::off("UnknownConnection"))
        {
            return self.danger_answer(&connection, &request.head);
        }
        let (pool, mut secret) = taken?;
        // From here on the connection is spent. The work on the head runs while the authorisation is being certified.
        let view = self.inner.ledger.view();
        let (route, template) = pool.route(&view)?;
        let (policy, share_epoch) = (view.policy.version, route.share_epoch());
        drop(view);
        let records =
            HeadRecords::from_bytes(&request.head, template.shape()).map_err(|_| Refused::Malformed)?;
        let digest = records.digest();
        // For a credential it keeps what the hole needs, and nothing else.
        let checked = secret.check_head(&template, &records);

        let ledger = &self.inner.ledger;
        let certified = match ledger.authorisation(request_id, connection, AUTHORISATION_WAIT).await {
            Ok(certified) => certified,
            Err(error) => {
                if share_epoch > 0 {
                    tokio::spawn(self.clone().deny_late(request_id, connection, (pool.id, from)));
                }
                return Err(Problem::from(error).into());
            }
        };
        let a = certified.request();
        let author = (certified.client(), certified.token());
        let named = (a.request, a.pool, a.connection, a.relay, a.keyer, a.head_digest.0, author);
        let author = (&pool.client, pool.token.map(|(id, _)| id));
        let asked = (request_id, pool.id, connection, from, self.inner.ledger.me(), digest.0, author);
        let differs = named != asked;
        #[cfg(feature = "danger-hostile")]
        let differs = differs && !danger_hostile::off("Mismatch");
        if differs {
            return Err(Refused::Mismatch);
        }
        let asked = Asked { pool, policy, share_epoch, secret, checked };
        let answer = self.answer(asked, a).await;
        if let (Err(refused), true) = (&answer, a.share_epoch > 0) {
            match refused {
                // Its alarm says so too.
                Refused::Head(_) => {}
                // The connection is this request's alone, and is spent: there never will be an answer.
                _ => self.deny(request_id),
            }
        }
        answer
    }

    /// Says in the log that no hole of this request was filled, so that what became of it is held against nobody.
    fn deny(&self, request: RequestId) {
        let denial = NodeCommand::Unanswered(vec![request]);
        if !self.inner.ledger.send(Outgoing::Node(denial)) {
            tracing::debug!(%request, "a denial was dropped: the queue to the leader is full");
        }
    }

    /// As [`Self::deny`], for a request whose authorisation was not certified in time. Only if it names this connection: for any
    /// other, this request may have been answered over its own.
    async fn deny_late(self, request: RequestId, connection: ConnectionId, (pool, from): (PoolId, NodeId)) {
        let late = self.inner.ledger.authorisation(request, connection, LATE_AUTHORISATION_WAIT).await;
        if let Ok(certified) = late {
            let a = certified.request();
            let named = (a.request, a.connection, a.pool, a.relay, a.share_epoch > 0);
            if named == (request, connection, pool, from, true) {
                self.deny(request);
            }
        }
    }

    /// The answer to a head whose request is certified.
    async fn answer(&self, asked: Asked, a: &Authorise) -> Result<Answer, Refused> {
        let Asked { pool, policy, share_epoch, secret, checked } = asked;
        if a.policy != policy {
            return Err(Refused::PolicyChanged);
        }
        if a.share_epoch != share_epoch {
            return Err(Problem::Refused(Refusal::StaleShareEpoch).into());
        }
        // A refused head is an alarm, whatever else would be wrong by now.
        if checked.is_ok() && share_epoch > 0 {
            self.inner.vault.ready(&pool.route, share_epoch).await.map_err(|_| Problem::SharesMissing)?;
        }
        self.check_release(&pool, a)?;
        match checked {
            Ok(_) if share_epoch > 0 => {
                let mask = self.inner.vault.mask(&pool.route, share_epoch);
                let mask = mask.map_err(|_| Problem::SharesMissing)?;
                let answer = secret.answer(&mask).map_err(|refusal| {
                    tracing::error!(%refusal, "a share does not fit the route it was sealed for");
                    Problem::SharesMissing
                })?;
                Ok(Answer::Hole(hole(&answer)))
            }
            Ok(head) => Ok(Answer::ContentLength(head.content_length())),
            Err(refusal) => {
                self.inner.ledger.alarm(Alarm::HeadRefused { request: a.request, code: code_of(&refusal).0 });
                Err(refusal.into())
            }
        }
    }

    /// By this node's own clock and newest view, at the moment of the answer.
    fn check_release(&self, pool: &PoolFacts, a: &Authorise) -> Result<(), Refused> {
        let view = self.inner.ledger.view();
        if pool.keyer != (self.inner.ledger.me(), self.inner.boot.clone()) {
            return Err(Problem::Restarted.into());
        }
        if a.policy != view.policy.version {
            return Err(Refused::PolicyChanged);
        }
        let now = clock::now();
        pool.check_standing(&view, now)?;
        if a.expires.plus_ms(view.policy.attestation.clock_skew_ms) <= now {
            return Err(Problem::Refused(Refusal::Expired).into());
        }
        Ok(())
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "danger-hostile")]
impl Keyer {
    /// For a connection that it remembers, whatever was certified and however often it answered.
    fn danger_answer(&self, connection: &ConnectionId, head: &[u8]) -> Result<Answer, Refused> {
        let (pool, secret) = danger_hostile::remembered(connection).ok_or(Refused::UnknownConnection)?;
        let view = self.inner.ledger.view();
        let (route, template) = pool.route(&view)?;
        let records = HeadRecords::from_bytes(head, template.shape()).map_err(|_| Refused::Malformed)?;
        let mut holder = KeyerConnection::new();
        holder.register(secret).map_err(|_| Problem::AlreadyRegistered)?;
        holder.check_head(&template, &records)?;
        let mask = self.inner.vault.mask(&pool.route, route.share_epoch());
        let mask = mask.map_err(|_| Problem::SharesMissing)?;
        let answer = holder.answer(&mask).map_err(|_| Problem::SharesMissing)?;
        Ok(Answer::Hole(hole(&answer)))
    }
}

#[cfg(feature = "danger-hostile")]
impl Registry {
    /// A connection's first secret gives way to its next.
    fn danger_forget(&mut self, connection: &ConnectionId) {
        if let Some(id) = self.pool_of.remove(connection)
            && let Some(entry) = self.pools.get_mut(&id)
            && entry.waiting.remove(connection).is_some()
        {
            let client = entry.pool.client.clone();
            self.release(&client, 1);
        }
    }
}

/// A spent connection and what came out of its head.
struct Asked {
    pool: PoolFacts,
    /// Version under which the head was checked.
    policy: PolicyVersion,
    /// Share epoch of the route then.
    share_epoch: u32,
    secret: KeyerConnection,
    checked: Result<CheckedHead, KeyerRefusal>,
}

/// The answer as a message, erased once it is sent.
fn hole(answer: &HoleAnswer) -> v1::HoleAnswer {
    let erased = |bytes: &[u8]| Bytes::from_owner(Zeroizing::new(bytes.to_vec()));
    let hole = v1::HoleAnswer {
        pad: erased(answer.expose_pad()),
        one_time_key: erased(answer.expose_one_time_key()),
        content_length: answer.content_length(),
    };
    #[cfg(feature = "danger-hostile")]
    let hole = danger_hostile::altered(hole);
    hole
}

/// A 16-byte id out of a message.
pub(crate) fn id(bytes: &[u8], what: &'static str) -> Result<[u8; 16], Problem> {
    bytes.try_into().map_err(|_| Problem::Malformed(what))
}

#[derive(Default)]
struct Registry {
    pools: HashMap<PoolId, Registered>,
    /// Which pool a waiting connection belongs to: the relay names only the connection.
    pool_of: HashMap<ConnectionId, PoolId>,
    by_client: HashMap<ClientId, usize>,
    waiting: usize,
}

struct Registered {
    pool: PoolFacts,
    waiting: HashMap<ConnectionId, KeyerConnection>,
    spent: HashSet<ConnectionId>,
}

impl Registry {
    fn register(
        &mut self,
        pool: PoolFacts,
        connection: ConnectionId,
        secret: TrafficSecret,
        now: Timestamp,
    ) -> Result<(), Problem> {
        #[cfg(feature = "danger-hostile")]
        if danger_hostile::off("AlreadyRegistered") {
            self.danger_forget(&connection);
        }
        if self.waiting >= WAITING_MAX {
            self.forget_expired(now);
        }
        let of_client = self.by_client.get(&pool.client).copied().unwrap_or_default();
        if self.waiting >= WAITING_MAX || of_client >= WAITING_PER_CLIENT_MAX {
            return Err(Problem::TooManyRegistrations);
        }
        if self.pool_of.contains_key(&connection) {
            return Err(Problem::AlreadyRegistered);
        }
        let (id, client) = (pool.id, pool.client.clone());
        let entry = self.pools.entry(id).or_insert_with(|| Registered {
            pool,
            waiting: HashMap::new(),
            spent: HashSet::new(),
        });
        if entry.spent.contains(&connection) {
            return Err(Problem::AlreadyRegistered);
        }
        if entry.waiting.len() + entry.spent.len() >= CONNECTIONS_PER_POOL_MAX {
            return Err(Problem::TooManyRegistrations);
        }
        let mut holder = KeyerConnection::new();
        holder.register(secret).map_err(|_| Problem::AlreadyRegistered)?;
        entry.waiting.insert(connection, holder);
        self.pool_of.insert(connection, id);
        *self.by_client.entry(client).or_default() += 1;
        self.waiting += 1;
        Ok(())
    }

    /// Hands out the secret for the one answer; only the pool's relay can spend it.
    fn take(
        &mut self,
        connection: &ConnectionId,
        from: NodeId,
    ) -> Result<(PoolFacts, KeyerConnection), Refused> {
        let Entry::Occupied(pool_of) = self.pool_of.entry(*connection) else {
            return Err(Refused::UnknownConnection);
        };
        let entry = self.pools.get_mut(pool_of.get()).ok_or(Refused::UnknownConnection)?;
        if entry.pool.relay.0 != from {
            return Err(Refused::NotTheRelay);
        }
        pool_of.remove();
        let holder = entry.waiting.remove(connection).ok_or(Refused::UnknownConnection)?;
        entry.spent.insert(*connection);
        let pool = entry.pool.clone();
        self.release(&pool.client, 1);
        Ok((pool, holder))
    }

    fn forget_expired(&mut self, now: Timestamp) {
        let gone: Vec<Registered> =
            self.pools.extract_if(|_, r| r.pool.expires <= now).map(|(_, r)| r).collect();
        for registered in gone {
            for connection in registered.waiting.keys() {
                self.pool_of.remove(connection);
            }
            self.release(&registered.pool.client, registered.waiting.len());
        }
    }

    fn release(&mut self, client: &ClientId, count: usize) {
        self.waiting = self.waiting.saturating_sub(count);
        if let Entry::Occupied(mut held) = self.by_client.entry(client.clone()) {
            let left = held.get().saturating_sub(count);
            if left == 0 {
                held.remove();
            } else {
                held.insert(left);
            }
        }
    }
}

impl Refused {
    /// Stable code, and whether a new connection may fare better.
    fn code(&self) -> (&'static str, bool) {
        match self {
            Self::Malformed => ("malformed", false),
            Self::UnknownConnection => ("unknown_connection", true),
            Self::NotTheRelay => ("not_the_relay", false),
            Self::Mismatch => ("authorisation_mismatch", false),
            Self::PolicyChanged => ("policy_changed", true),
            Self::Problem(problem) => (problem.category(), true),
            Self::Head(refusal) => (code_of(refusal).1, false),
        }
    }
}

/// Number in the alarm leaf, and the code a caller sees. Never renumbered.
fn code_of(refusal: &KeyerRefusal) -> (u16, &'static str) {
    match refusal {
        KeyerRefusal::NotRegistered => (1, "not_registered"),
        KeyerRefusal::AlreadyAnswered => (2, "already_answered"),
        KeyerRefusal::Shape { .. } => (3, "head_shape"),
        KeyerRefusal::NotAuthentic { .. } => (4, "head_not_authentic"),
        KeyerRefusal::Padded { .. } => (5, "head_padded"),
        KeyerRefusal::InnerType { .. } => (6, "head_inner_type"),
        KeyerRefusal::Head(head) => match head {
            HeadRefusal::PartCount => (100, "head_part_count"),
            HeadRefusal::PartTooLong => (101, "head_part_too_long"),
            HeadRefusal::Byte => (102, "head_byte"),
            HeadRefusal::LineUnterminated => (103, "head_line_unterminated"),
            HeadRefusal::RequestLine => (104, "head_request_line"),
            HeadRefusal::MethodNotAllowed => (105, "head_method_not_allowed"),
            HeadRefusal::PathTooLong => (106, "head_path_too_long"),
            HeadRefusal::PathNotAllowed => (107, "head_path_not_allowed"),
            HeadRefusal::Host => (108, "head_host"),
            HeadRefusal::HeaderSyntax => (109, "head_header_syntax"),
            HeadRefusal::HeaderNotAllowed => (110, "head_header_not_allowed"),
            HeadRefusal::HeaderRepeated => (111, "head_header_repeated"),
            HeadRefusal::HeaderOrder => (112, "head_header_order"),
            HeadRefusal::HeaderValue => (113, "head_header_value"),
            HeadRefusal::HeaderValueTooLong => (114, "head_header_value_too_long"),
            HeadRefusal::CredentialOpening => (115, "head_credential_opening"),
            HeadRefusal::ContentLengthMissing => (116, "head_content_length_missing"),
            HeadRefusal::ContentLengthNotCanonical => (117, "head_content_length_not_canonical"),
            HeadRefusal::ContentLengthTooLarge => (118, "head_content_length_too_large"),
            HeadRefusal::GetWithBody => (119, "head_get_with_body"),
            HeadRefusal::ConnectionClose => (120, "head_connection_close"),
            HeadRefusal::End => (121, "head_end"),
            HeadRefusal::NotCanonical => (122, "head_not_canonical"),
        },
    }
}

#[cfg(test)]
mod tests;
