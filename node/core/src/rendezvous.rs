//! Which nodes may be keyer for a route through a relay: highest-random-weight order, computed alike by everybody, over
//! the attested members whose custodian is neither the relay's nor the client's. The first two are allowed.
use crate::crypto::{Hash, sha256, statement_bytes};
use crate::ids::{Custodian, NodeId, RouteId};
use crate::policy::Policy;

/// How many keyers are allowed at any moment: a dead one is left at once for the other.
pub const KEYERS: usize = 2;

/// Keyers allowed for (route, relay) and a client of `client_custodian`, in order, at most [`KEYERS`].
pub fn keyers(
    policy: &Policy,
    attested: impl IntoIterator<Item = NodeId>,
    route: &RouteId,
    relay: NodeId,
    client_custodian: &Custodian,
) -> Vec<NodeId> {
    let Some(relay_member) = policy.members.get(&relay) else { return Vec::new() };
    let mut ranked: Vec<(Hash, NodeId)> = attested
        .into_iter()
        .filter_map(|n| policy.members.get(&n))
        .filter(|m| {
            m.id != relay && m.custodian != relay_member.custodian && m.custodian != *client_custodian
        })
        .map(|m| (weight(route, relay, m.id), m.id))
        .collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, n)| n).take(KEYERS).collect()
}

/// Every (relay, keyer) allowed for a route and a client of `client_custodian`. A client does well to use pairs to which
/// another is disjoint: over that one it can repeat what the API answered with a 400.
pub fn pairs(
    policy: &Policy,
    attested: &[NodeId],
    route: &RouteId,
    client_custodian: &Custodian,
) -> Vec<(NodeId, NodeId)> {
    let fits = |n: &&NodeId| policy.members.get(n).is_some_and(|m| m.custodian != *client_custodian);
    let keyers = |relay: NodeId| keyers(policy, attested.iter().copied(), route, relay, client_custodian);
    let relays = attested.iter().filter(fits);
    relays.flat_map(|relay| keyers(*relay).into_iter().map(|keyer| (*relay, keyer))).collect()
}

fn weight(route: &RouteId, relay: NodeId, node: NodeId) -> Hash {
    sha256(&statement_bytes("quorate rendezvous v1", &(route, relay, node)))
}
