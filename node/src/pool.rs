//! What relay and keyer need to know of a pool, and whether it still stands by this node's own clock.
//!
//! The pool comes from this node's own applied state. `apply` judges pools by entry time; a leader that stops the clock
//! could keep one alive for ever, so both nodes judge again by their own clocks whenever they release something.
use crate::ledger::{Ledger, View};
use crate::services::status::Problem;
use quorate_attest::evidence::BootKeys;
use quorate_core::crypto;
use quorate_core::ids::{ClientId, NodeId, PoolId, RouteId, Timestamp, TokenId};
use quorate_core::policy::{self, Route};
use quorate_core::refusal::Refusal;
use quorate_splitkey::head::{CredentialScheme, CredentialSlot, HeadTemplate};
use quorate_transport::PublicKey;
use std::time::Duration;

/// How long to wait for a pool that another node has seen already: this node may be some batches behind.
const POOL_WAIT: Duration = Duration::from_millis(1500);

/// A pool, without what grows in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFacts {
    /// Its id.
    pub id: PoolId,
    /// Whose.
    pub client: ClientId,
    /// The token it was opened with, and its key.
    pub token: Option<(TokenId, crypto::PublicKey)>,
    /// Destination.
    pub route: RouteId,
    /// Relay and its boot keys.
    pub relay: (NodeId, BootKeys),
    /// Keyer and its boot keys.
    pub keyer: (NodeId, BootKeys),
    /// End.
    pub expires: Timestamp,
}

/// A pool was found standing. Only [`PoolFacts::check_standing`] makes one; use it at once, time goes on.
#[derive(Debug)]
pub struct Standing(());

impl PoolFacts {
    /// Looks a pool up, waiting a moment for it.
    pub async fn find(ledger: &Ledger, id: PoolId) -> Result<Self, Problem> {
        let mut changed = ledger.view_changed();
        let look = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = Self::look(ledger, id) {
                    return Ok(found);
                }
                if changed.changed().await.is_err() {
                    return Err(Problem::ShuttingDown);
                }
            }
        };
        tokio::time::timeout(POOL_WAIT, look).await.unwrap_or(Err(Problem::Refused(Refusal::UnknownPool)))
    }

    fn look(ledger: &Ledger, id: PoolId) -> Option<Self> {
        ledger.read(|state| {
            state.pool(&id).map(|p| Self {
                id,
                client: p.client.clone(),
                token: p.token,
                route: p.route.clone(),
                relay: p.relay.clone(),
                keyer: p.keyer.clone(),
                expires: p.expires,
            })
        })
    }

    /// Whether this key is the pool's client's, or its token's, and the grant still good. That a token still stands `apply` checks
    /// with each request.
    pub fn check_client(&self, view: &View, key: &PublicKey, now: Timestamp) -> Result<(), Problem> {
        let grant = view.policy.clients.get(&self.client).ok_or(Refusal::UnknownClient)?;
        let owner = self.token.map_or(grant.key, |(_, holder)| holder);
        if owner.0 != *key.as_bytes() {
            return Err(Problem::NotTheClient);
        }
        if grant.revoked {
            return Err(Refusal::ClientRevoked.into());
        }
        if grant.expires <= now {
            return Err(Refusal::ClientExpired.into());
        }
        Ok(())
    }

    /// Whether it is unexpired, and relay and keyer are attested with the very boot keys it names, by this clock.
    pub fn check_standing(&self, view: &View, now: Timestamp) -> Result<Standing, Problem> {
        if self.expires <= now {
            return Err(Refusal::UnknownPool.into());
        }
        let attested = |(node, boot): &(NodeId, BootKeys)| {
            view.attested(*node) == Some(boot) && view.attested_at(*node, now)
        };
        if !attested(&self.relay) {
            return Err(Refusal::RelayNotAttested.into());
        }
        if !attested(&self.keyer) {
            return Err(Refusal::KeyerNotAttested.into());
        }
        Ok(Standing(()))
    }

    /// The route in force, and the template of its heads: around a hole if the route has a credential.
    pub fn route<'v>(&self, view: &'v View) -> Result<(&'v Route, HeadTemplate), Problem> {
        let route = view.policy.routes.get(&self.route).ok_or(Refusal::UnknownRoute)?;
        let d = &route.document;
        let template =
            HeadTemplate::for_route(&d.host, d.port, &d.base_path, &d.paths, &d.dialect, &d.headers)
                .and_then(|template| match slot(route) {
                    Some(slot) => template.with_credential(slot),
                    None => Ok(template),
                });
        Ok((route, template.map_err(|_| Problem::RouteInvalid)?))
    }
}

/// Where the credential stands in a head of this route.
fn slot(route: &Route) -> Option<CredentialSlot> {
    let credential = route.credential.as_ref()?;
    let scheme = match credential.scheme {
        policy::CredentialScheme::Bearer => CredentialScheme::Bearer,
        policy::CredentialScheme::XApiKey => CredentialScheme::XApiKey,
        policy::CredentialScheme::ApiKey => CredentialScheme::ApiKey,
        policy::CredentialScheme::XGoogApiKey => CredentialScheme::XGoogApiKey,
    };
    let public_prefix = credential.public_prefix.clone();
    Some(CredentialSlot { scheme, public_prefix, secret_len: credential.secret_bytes })
}
