//! The verified directory: policy, attested nodes and their boot keys, proven by the log against the genesis digest.
//!
//! A directory only moves forward: a smaller certified checkpoint than the one we hold is ignored, another root at the
//! same size is a fork. How far its time may be from our clock is the trust file's to say.
use crate::error::Error;
use crate::pool::lock;
use crate::trust::TrustFile;
use quorate_core::certificate::{CertifiedAuthorisation, CertifiedCheckpoint};
use quorate_core::ids::{ClientId, Custodian, NodeId, RequestId, RouteId, Timestamp};
use quorate_core::policy::{Grant, Member, Route};
use quorate_core::proof::{LeafCertificate, Proof, ProofError, Verified, VerifiedNode};
use quorate_core::rendezvous;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// This machine's clock. The one place where this crate reads it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Checkpoints remembered as certified: the requests of one batch, and of a few before it, stand under one each.
const CERTIFIED_KEPT: usize = 64;

/// What the client believes of the mesh.
#[derive(Debug)]
pub struct Directory {
    verified: Verified,
    document: Vec<u8>,
    /// Newest last. Verified by this directory's keys, and forgotten with them.
    certified: Mutex<VecDeque<Arc<CertifiedCheckpoint>>>,
}

impl Directory {
    /// Verifies the bytes of a proof. `node` names who sent them.
    pub fn verify(bytes: &[u8], trust: &TrustFile, node: &str) -> Result<Self, Error> {
        let failed = |source| Error::Directory { node: node.to_owned(), source: Arc::new(source) };
        let mut proof = Proof::from_bytes(bytes).map_err(failed)?;
        let verified = proof.verify(trust.genesis).map_err(failed)?;
        let document = proof.chain.pop().map(|s| s.document).unwrap_or_default();
        Ok(Self { verified, document, certified: Mutex::default() })
    }

    /// Checks that a leaf's certificate proves the authorisation of this client's request. The cosignatures of one checkpoint
    /// are verified once.
    pub fn authorisation(
        &self,
        certificate: &LeafCertificate,
        client: &ClientId,
        request: RequestId,
    ) -> Result<CertifiedAuthorisation, ProofError> {
        let known =
            lock(&self.certified).iter().rev().find(|c| c.reference() == certificate.checkpoint).cloned();
        let certified = match known {
            Some(certified) => certified,
            None => {
                let certified = Arc::new(self.verified.certify(certificate)?);
                let mut kept = lock(&self.certified);
                kept.push_back(certified.clone());
                if kept.len() > CERTIFIED_KEPT {
                    kept.pop_front();
                }
                certified
            }
        };
        certified.authorisation(client, request, &certificate.leaf)
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

    /// Our grant; the policy must list our key. With a token it is the issuer's, for the token's routes alone, and the token must
    /// name our key; whether it still stands the log decides.
    pub fn grant(&self, trust: &TrustFile, key: &[u8; 32]) -> Result<Cow<'_, Grant>, Error> {
        let name = || trust.client.as_str().to_owned();
        let grant = self
            .verified
            .policy
            .clients
            .get(&trust.client)
            .ok_or_else(|| Error::UnknownClient { name: name() })?;
        let Some(token) = trust.token.as_ref().map(|t| &t.token) else {
            let ours = grant.key.0 == *key;
            return if ours { Ok(Cow::Borrowed(grant)) } else { Err(Error::WrongClientKey { name: name() }) };
        };
        if token.key.0 != *key {
            return Err(Error::WrongClientKey { name: token.subject.as_str().to_owned() });
        }
        let routes = token.routes.iter().filter(|r| grant.routes.contains(r)).cloned().collect();
        Ok(Cow::Owned(Grant { routes, ..grant.clone() }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::crypto::{Hash, encode};
    use quorate_core::ids::ClientId;
    use quorate_core::testing::{CLIENT, Mesh, ROUTE, key};

    fn trust(genesis: Hash, client: &str) -> TrustFile {
        TrustFile {
            genesis,
            nodes: vec!["127.0.0.1:1".parse().unwrap()],
            client: ClientId::new(client).unwrap(),
            key: "unused".into(),
            freshness_ms: 1000,
            token: None,
        }
    }

    fn directory(mesh: &Mesh) -> Directory {
        Directory::verify(&encode(&mesh.proof(&[])), &trust(mesh.fleet.cluster(), CLIENT), "n").unwrap()
    }

    #[test]
    fn a_directory_proves_nodes_grant_and_routes() {
        let mesh = Mesh::four();
        let directory = directory(&mesh);
        let trusted = trust(mesh.fleet.cluster(), CLIENT);
        let ours = quorate_core::crypto::public_key(&key(CLIENT)).0;
        let grant = directory.grant(&trusted, &ours).unwrap();
        assert!(matches!(directory.grant(&trusted, &[0; 32]), Err(Error::WrongClientKey { .. })));
        let stranger = trust(mesh.fleet.cluster(), "stranger");
        assert!(matches!(directory.grant(&stranger, &ours), Err(Error::UnknownClient { .. })));

        let route = directory.route_for_model(&grant, "any").unwrap();
        assert_eq!(route.as_str(), ROUTE);
        let pairs = directory.pairs(&route, &grant.custodian);
        assert_eq!(pairs.len(), 8, "four relays, two keyers each");
        let custodian = |n| &directory.node(n).unwrap().0.custodian;
        for (relay, keyer) in pairs {
            assert!(custodian(relay) != custodian(keyer) && custodian(relay) != &grant.custodian);
        }
        assert_eq!(directory.policy_document(), mesh.fleet.chain[0].document);
    }

    #[test]
    fn a_token_grants_what_it_shares_with_its_issuer() {
        use quorate_core::token::Token;
        let mesh = Mesh::new(4, 1, |d| {
            d.route.push(quorate_core::testing::route_document("other"));
            d.client[0].routes.push("other".into());
        });
        let directory = directory(&mesh);
        let id = |name: &str| RouteId::new(name).unwrap();
        let holder = quorate_core::crypto::public_key(&key("agent"));
        let token = Token {
            serial: [1; 16],
            issuer: ClientId::new(CLIENT).unwrap(),
            subject: ClientId::new("agent").unwrap(),
            key: holder,
            routes: vec![id("other"), id("forbidden")],
            limits: Default::default(),
            not_before: Timestamp(0),
            expires: Timestamp(1),
        };
        let token = Arc::new(token.sign(mesh.fleet.cluster(), &key(CLIENT)));
        let trusted = TrustFile { token: Some(token), ..trust(mesh.fleet.cluster(), CLIENT) };
        let grant = directory.grant(&trusted, &holder.0).unwrap();
        assert_eq!(grant.routes, std::collections::BTreeSet::from([id("other")]));
        assert_eq!(directory.route_for_model(&grant, "any"), Some(id("other")));
        let issuer = quorate_core::crypto::public_key(&key(CLIENT)).0;
        assert!(matches!(directory.grant(&trusted, &issuer), Err(Error::WrongClientKey { .. })));
    }

    #[test]
    fn relays_and_keyers_under_the_clients_custodian_are_left_out() {
        let mesh = Mesh::new(4, 1, |d| d.member[0].custodian = "developers".into());
        let directory = directory(&mesh);
        let route = RouteId::new(ROUTE).unwrap();
        let pairs = directory.pairs(&route, &Custodian::new("developers").unwrap());
        assert!(!pairs.is_empty() && pairs.iter().all(|(r, k)| r.0 != 1 && k.0 != 1), "{pairs:?}");
    }

    #[test]
    fn the_cosignatures_of_a_checkpoint_are_verified_once() {
        let mut mesh = Mesh::four();
        let pool = mesh.open_pool();
        let requests = [mesh.authorise(&pool), mesh.authorise(&pool)];
        let client = ClientId::new(CLIENT).unwrap();
        let directory = directory(&mesh);
        let certificate = |request| {
            let Proof { checkpoint, cosignatures, mut leaves, .. } = mesh.receipt(request).0;
            LeafCertificate { checkpoint, cosignatures, leaf: leaves.remove(0) }
        };
        let [first, second] = requests.map(certificate);
        assert_eq!(first.checkpoint, second.checkpoint);
        let bare = LeafCertificate { cosignatures: vec![], ..second };
        assert!(matches!(
            directory.authorisation(&bare, &client, requests[1]),
            Err(ProofError::NotCertified(_))
        ));
        directory.authorisation(&first, &client, requests[0]).unwrap();
        directory.authorisation(&bare, &client, requests[1]).unwrap();
        // What is known of one root says nothing of another, nor of a leaf that is not under it.
        let mut other = bare.clone();
        other.checkpoint.root.0[0] ^= 1;
        assert!(matches!(
            directory.authorisation(&other, &client, requests[1]),
            Err(ProofError::NotCertified(quorate_core::certificate::NotCertified::TooFew { .. }))
        ));
        let mut altered = bare.clone();
        *altered.leaf.bytes.last_mut().unwrap() ^= 1;
        assert!(matches!(
            directory.authorisation(&altered, &client, requests[1]),
            Err(ProofError::NotCertified(quorate_core::certificate::NotCertified::NotIncluded))
        ));
    }

    #[test]
    fn another_genesis_or_one_changed_byte_proves_nothing() {
        let mesh = Mesh::four();
        let mut bytes = encode(&mesh.proof(&[]));
        let other = trust(Hash([9; 32]), CLIENT);
        assert!(matches!(Directory::verify(&bytes, &other, "n"), Err(Error::Directory { .. })));
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        let ours = trust(mesh.fleet.cluster(), CLIENT);
        assert!(matches!(Directory::verify(&bytes, &ours, "n"), Err(Error::Directory { .. })));
    }

    #[test]
    fn time_may_differ_by_the_bound_and_no_more() {
        let mesh = Mesh::four();
        let directory = directory(&mesh);
        let time = directory.verified().time;
        assert!(directory.check_fresh(time.plus_ms(1000), 1000).is_ok());
        assert!(matches!(
            directory.check_fresh(time.plus_ms(1001), 1000),
            Err(Error::Stale { age_ms: 1001, .. })
        ));
        assert!(matches!(directory.check_fresh(Timestamp(time.0 - 1001), 1000), Err(Error::Stale { .. })));
    }

    #[test]
    fn a_directory_only_moves_forward_and_a_fork_is_named() {
        let mut mesh = Mesh::four();
        let mut fork = Mesh::four();
        let old = directory(&mesh);
        mesh.attest_all();
        let new = directory(&mesh);
        assert!(old.check_succeeded_by(&new).unwrap());
        assert!(!new.check_succeeded_by(&old).unwrap());
        assert!(!new.check_succeeded_by(&new).unwrap());
        fork.wait(5);
        fork.attest_all();
        let other = directory(&fork);
        assert_eq!(new.size(), other.size());
        assert!(matches!(new.check_succeeded_by(&other), Err(Error::Fork { .. })));
    }
}
