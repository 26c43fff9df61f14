//! The verified directory: policy, attested nodes and their boot keys, proven by the log against the genesis digest.
//!
//! A directory only moves forward: a smaller certified checkpoint than the one we hold is ignored, another root at the
//! same size is a fork. How far its time may be from our clock is the trust file's to say.
use crate::error::Error;
use crate::trust::TrustFile;
use quorate_core::ids::{Custodian, NodeId, RouteId, Timestamp};
use quorate_core::policy::{Grant, Member, Route};
use quorate_core::proof::{Proof, Verified, VerifiedNode};
use quorate_core::rendezvous;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// This machine's clock. The one place where this crate reads it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the client believes of the mesh.
#[derive(Debug, Clone)]
pub struct Directory {
    verified: Verified,
    document: Vec<u8>,
}

impl Directory {
    /// Verifies the bytes of a proof. `node` names who sent them.
    pub fn verify(bytes: &[u8], trust: &TrustFile, node: &str) -> Result<Self, Error> {
        let failed = |source| Error::Directory { node: node.to_owned(), source: Arc::new(source) };
        let mut proof = Proof::from_bytes(bytes).map_err(failed)?;
        let verified = proof.verify(trust.genesis).map_err(failed)?;
        let document = proof.chain.pop().map(|s| s.document).unwrap_or_default();
        Ok(Self { verified, document })
    }

    /// The policy document in force, exactly as its admins signed it.
    pub fn policy_document(&self) -> &[u8] {
        &self.document
    }

    /// The proven facts.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Certified leaves.
    pub fn size(&self) -> u64 {
        self.verified.certified.checkpoint().size.0
    }

    /// Refuses a directory whose time is too far from `now`, in either direction.
    pub fn check_fresh(&self, now: Timestamp, bound_ms: u64) -> Result<(), Error> {
        let age_ms = self.verified.time.0.abs_diff(now.0);
        if age_ms > bound_ms { Err(Error::Stale { age_ms, bound_ms }) } else { Ok(()) }
    }

    /// Whether `newer` may replace this one.
    pub fn check_succeeded_by(&self, newer: &Self) -> Result<bool, Error> {
        let (old, new) = (self.verified.certified.reference(), newer.verified.certified.reference());
        if old.size == new.size && old.root != new.root {
            return Err(Error::Fork { size: old.size.0 });
        }
        Ok(new.size > old.size)
    }

    /// Our grant; the policy must list our key.
    pub fn grant(&self, trust: &TrustFile, key: &[u8; 32]) -> Result<&Grant, Error> {
        let name = || trust.client.as_str().to_owned();
        let grant = self
            .verified
            .policy
            .clients
            .get(&trust.client)
            .ok_or_else(|| Error::UnknownClient { name: name() })?;
        if grant.key.0 == *key { Ok(grant) } else { Err(Error::WrongClientKey { name: name() }) }
    }

    /// An attested node.
    pub fn node(&self, node: NodeId) -> Option<(&Member, &VerifiedNode)> {
        Some((self.verified.policy.members.get(&node)?, self.verified.nodes.get(&node)?))
    }

    /// A route.
    pub fn route(&self, route: &RouteId) -> Option<&Route> {
        self.verified.policy.routes.get(route)
    }

    /// The first granted route that names the model; one that names it comes before one that takes any.
    pub fn route_for_model(&self, grant: &Grant, model: &str) -> Option<RouteId> {
        let serves = |wanted: &str| {
            grant.routes.iter().find(|r| {
                self.route(r).is_some_and(|route| route.document.models.iter().any(|m| m == wanted))
            })
        };
        serves(model).or_else(|| serves("*")).cloned()
    }

    /// Every (relay, keyer) the policy allows for a route and a client of this custodian, relays in order of their number.
    pub fn pairs(&self, route: &RouteId, custodian: &Custodian) -> Vec<(NodeId, NodeId)> {
        let policy = &self.verified.policy;
        let attested = || self.verified.nodes.keys().copied();
        let relays = attested().filter(|n| policy.members.get(n).is_some_and(|m| m.custodian != *custodian));
        relays
            .flat_map(|relay| {
                let keyers = rendezvous::keyers(policy, attested(), route, relay, custodian);
                keyers.into_iter().map(move |keyer| (relay, keyer))
            })
            .collect()
    }
}
