//! What a keyer and a relay do with one request, without the bytes of TLS: the same questions in the same order as `keyer.rs` and
//! `relay/` of the product, over the product's ledger. A hole is filled where both said yes.
use crate::network::CLIENTS;
use crate::node::Node;
use crate::note;
use crate::peer::{Message, Reply};
use quorate_core::certificate::CertifiedAuthorisation;
use quorate_core::command::{Authorise, Command, Ended, Settlement};
use quorate_core::ids::{ConnectionId, NodeId, PoolId, RequestId};
use quorated::ledger::DecideError;
use quorated::pool::PoolFacts;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// As in the product.
const AUTHORISATION_WAIT: Duration = Duration::from_millis(2_500);
/// How long a relay waits for the log's decision.
const DECISION_WAIT: Duration = Duration::from_millis(2_500);

/// Registered connections; each is spent by its first head.
#[derive(Default)]
pub struct Registry {
    waiting: BTreeMap<ConnectionId, PoolFacts>,
    known: BTreeSet<ConnectionId>,
    /// As a relay: requests that run.
    running: BTreeSet<RequestId>,
}

/// Why not.
pub type Refused = String;

fn refused(why: impl std::fmt::Display) -> Refused {
    why.to_string()
}

impl Node {
    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection, once.
    pub async fn register(&self, pool: PoolId, connection: ConnectionId) -> Result<(), Refused> {
        let pool = PoolFacts::find(&self.ledger, pool).await.map_err(refused)?;
        if pool.keyer != (self.id, self.boot.keys.clone()) {
            return Err("restarted, or another node".into());
        }
        if pool.expires <= self.ledger.now() {
            return Err("the pool expired".into());
        }
        let mut registry = self.registry();
        if !registry.known.insert(connection) {
            return Err("registered already".into());
        }
        registry.waiting.insert(connection, pool);
        Ok(())
    }

    /// Judges one head: the keyer's half of a hole, once.
    pub async fn check_head(
        &self,
        from: NodeId,
        request: RequestId,
        connection: ConnectionId,
        head_digest: [u8; 32],
    ) -> Result<(), Refused> {
        let pool = {
            let mut registry = self.registry();
            let pool = registry.waiting.get(&connection).ok_or("unknown connection")?;
            if pool.relay.0 != from {
                return Err("not the relay".into());
            }
            registry.waiting.remove(&connection).ok_or("unknown connection")?
        };
        let policy = self.ledger.view().policy.version;
        if self.world.mutation.trusts_applied() && self.applied_soon(request).await {
            self.world.oracle.released_uncertified(self, request);
            return Ok(());
        }
        let certified = self.ledger.authorisation(request, connection, AUTHORISATION_WAIT).await;
        let certified = certified.map_err(refused)?;
        let a = certified.request();
        let named = (a.request, a.pool, a.connection, a.relay, a.keyer, a.head_digest.0, certified.client());
        if named != (request, pool.id, connection, from, self.id, head_digest, &pool.client) {
            return Err("mismatch".into());
        }
        if a.policy != policy {
            return Err("the policy changed".into());
        }
        self.check_release(&pool, a)?;
        self.world.oracle.released(self, &certified, "keyer");
        Ok(())
    }

    /// The mutation's look: applied here, by whomever certified.
    async fn applied_soon(&self, request: RequestId) -> bool {
        for _ in 0..20 {
            if self.ledger.read(|state| state.request(&request).is_some()) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    fn check_release(&self, pool: &PoolFacts, a: &Authorise) -> Result<(), Refused> {
        let (view, now) = (self.ledger.view(), self.ledger.now());
        if a.policy != view.policy.version {
            return Err("the policy changed".into());
        }
        pool.check_standing(&view, now).map_err(refused)?;
        if a.expires.plus_ms(view.policy.attestation.clock_skew_ms) <= now {
            return Err("expired".into());
        }
        Ok(())
    }

    /// The relay's part of one request, to the settlement.
    pub async fn relay(self: &Arc<Self>, command: Command) -> Result<RequestId, Refused> {
        let a = authorise_of(&command).ok_or("not a request")?.clone();
        self.world.oracle.saw(&command, a.request, a.connection);
        let pool = PoolFacts::find(&self.ledger, a.pool).await.map_err(refused)?;
        if pool.relay != (self.id, self.boot.keys.clone()) || a.relay != self.id {
            return Err("another relay's pool".into());
        }
        if !self.registry().running.insert(a.request) {
            return Err("replayed".into());
        }
        let outcome = self.carry(command, &a, &pool).await;
        self.registry().running.remove(&a.request);
        outcome
    }

    async fn carry(
        self: &Arc<Self>,
        command: Command,
        a: &Authorise,
        pool: &PoolFacts,
    ) -> Result<RequestId, Refused> {
        let question =
            Message::CheckHead { request: a.request, connection: a.connection, head_digest: a.head_digest.0 };
        let keyer = self.ask(a.keyer, question, Duration::from_secs(4));
        let decision = self.ledger.decide(command, Vec::new(), DECISION_WAIT);
        let (decided, keyer) = tokio::join!(biased; decision, keyer);
        let decided = decided.map_err(|e: DecideError| refused(e))?;
        let settle = |ended, (bytes_up, bytes_down)| Settlement {
            request: a.request,
            bytes_up,
            bytes_down,
            first_byte_ms: 100,
            total_ms: 200,
            ended,
        };
        let certified = decided.leaf.and_then(|leaf| leaf.authorisation()).ok_or("not an authorisation")?;
        let filled = match keyer {
            Some(Reply::Done(Ok(()))) => self.fill(&certified, a, pool),
            Some(Reply::Done(Err(why))) => Err(format!("the keyer: {why}")),
            _ => Err("the keyer did not answer".into()),
        };
        match filled {
            Ok(()) => {
                // The provider takes its time, too.
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.ledger.settle(settle(Ended::Complete, (512, 2048))).await;
                Ok(a.request)
            }
            Err(why) => {
                self.ledger.settle(settle(Ended::MeshFailure, (0, 0))).await;
                Err(why)
            }
        }
    }

    /// Nothing waits from here to the first byte.
    fn fill(
        &self,
        certified: &CertifiedAuthorisation,
        asked: &Authorise,
        pool: &PoolFacts,
    ) -> Result<(), Refused> {
        if certified.request() != asked {
            return Err("another request was certified".into());
        }
        self.check_release(pool, asked)?;
        self.world.oracle.released(self, certified, "relay");
        self.world.oracle.filled(self, certified);
        note!(self.world, "{} filled the hole of a request of leaf {}", self.id, certified.index().0);
        Ok(())
    }
}

/// The authorisation that a command asks for.
pub fn authorise_of(command: &Command) -> Option<&Authorise> {
    match command {
        Command::Client(c) => match &c.body {
            quorate_core::command::ClientCommand::Authorise(a) => Some(a),
            _ => None,
        },
        _ => None,
    }
}

/// Clients have no number.
pub const FROM_CLIENT: NodeId = CLIENTS;
