//! The policy: one TOML document that says who is a member, admin, client, what is a route, and what counts as good
//! evidence. A version is signed by m of n admins over its exact bytes (`ssh-keygen -Y sign -n quorate`), names the
//! SHA-256 of the version it replaces, and expires. Version 1 is genesis; its digest is the cluster's identity.
//!
//! Parsing decides everything once: a [`Policy`] cannot contradict itself. It reports *all* mistakes, not the first.
mod check;
mod credential;
mod document;
mod limits;

pub use credential::{
    Credential, CredentialScheme, PUBLIC_PREFIX_BYTES_MAX, SECRET_BYTES_MAX, SECRET_BYTES_MIN, UnknownScheme,
    change_allowed,
};
pub use document::{
    AdminDocument, AttestationDocument, ClientDocument, CredentialDocument, MemberDocument, PolicyDocument,
    PriceDocument, RouteDocument, TeamDocument,
};
pub use limits::{Limits, Moment, PerWindow, Price, Rates, Team, Tokens};

use crate::crypto::{Hash, PublicKey, sha256};
use crate::ids::{ClientId, Custodian, NodeId, PolicyVersion, PriceId, RouteId, TeamId, Timestamp};
use crate::shares::SharePublicKey;
use crate::sshsig::{AdminKey, SshSignature};
use crate::tlog::Origin;
use borsh::{BorshDeserialize, BorshSerialize};
use check::Checker;
use quorate_attest::reference_values::ReferenceValues;
use std::collections::{BTreeMap, BTreeSet};

/// Largest policy document: thousands of clients, yet read and hashed in milliseconds.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;
/// Most members: certification is all-to-all.
pub const MEMBERS_MAX: usize = 7;
/// Fewest members: below three nothing can fail.
pub const MEMBERS_MIN: usize = 3;
/// Most admins.
pub const ADMINS_MAX: usize = 32;
/// Most release manifests of one set of reference values: releases that are good at one time.
pub const RELEASES_MAX: usize = 64;
/// Most approvals of one member: combinations of PCR values that are good at one time.
pub const APPROVALS_MAX: usize = 32;
/// Longest approval, bytes; a P-256 signature and what it names take some hundred.
pub const APPROVAL_BYTES_MAX: usize = 1024;
/// A request's signature may be valid for this long at most; nonces are kept as long.
pub const REQUEST_LIFETIME_MS_MAX: u64 = 120_000;
/// Longest life of a token that any grant can allow: a day. Tokens are for agents and jobs, not for people.
pub const TOKEN_LIFETIME_MS_MAX: u64 = 86_400_000;
/// Unsettled requests one client may hold.
pub const IN_FLIGHT_MAX: u32 = 4096;

/// A checked member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Custodian.
    pub custodian: Custodian,
    /// gRPC address.
    pub address: String,
    /// HTTP address.
    pub http: String,
    /// `TPMT_PUBLIC` of the AK.
    pub ak: Vec<u8>,
    /// Software TPM.
    pub software_tpm: bool,
    /// Reference values' name.
    pub reference_values: String,
    /// What shares are sealed to; a member without one can hold none.
    pub share_key: Option<SharePublicKey>,
    /// Its NV counter at enrolment.
    pub share_counter: Option<u64>,
    /// The approver's signatures, as `quorate_attest` reads them.
    pub approvals: Vec<Vec<u8>>,
}

/// A checked route; the numbers are the document's.
#[derive(Debug, Clone)]
pub struct Route {
    /// Name.
    pub id: RouteId,
    /// As signed.
    pub document: RouteDocument,
    /// The provider's key, split; `None` for a route without one.
    pub credential: Option<Credential>,
}

impl Route {
    /// Share epoch of its credential, 0 without one: what a request names.
    pub fn share_epoch(&self) -> u32 {
        self.credential.as_ref().map_or(0, |c| c.share_epoch)
    }
}

/// A checked grant.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Name.
    pub id: ClientId,
    /// Key.
    pub key: PublicKey,
    /// Custodian.
    pub custodian: Custodian,
    /// Routes.
    pub routes: BTreeSet<RouteId>,
    /// What it may use.
    pub limits: Limits,
    /// Whose limits it shares.
    pub team: Option<TeamId>,
    /// It may mint tokens that live at most so long, ms.
    pub token_lifetime_ms_max: Option<u64>,
    /// End.
    pub expires: Timestamp,
    /// Revoked.
    pub revoked: bool,
}

/// A policy that cannot contradict itself.
#[derive(Debug, Clone)]
pub struct Policy {
    /// SHA-256 of the document's bytes.
    pub digest: Hash,
    /// Name of the cluster.
    pub cluster: String,
    /// Version.
    pub version: PolicyVersion,
    /// Digest of the predecessor; `None` in genesis.
    pub previous: Option<Hash>,
    /// Last moment it may come into force.
    pub expires: Timestamp,
    /// f.
    pub hostile_nodes_max: u32,
    /// m of the admins.
    pub admin_threshold: usize,
    /// Admins by key.
    pub admins: BTreeMap<AdminKey, String>,
    /// SEC1 point of whoever approves the software that may unseal share keys.
    pub share_approver: Option<Vec<u8>>,
    /// Timing and appraisal.
    pub attestation: AttestationDocument,
    /// Members by number.
    pub members: BTreeMap<NodeId, Member>,
    /// Reference values by name.
    pub reference_values: BTreeMap<String, ReferenceValues>,
    /// Release manifests that a set of reference values was taken from, by its name and their SHA-256.
    pub releases: BTreeMap<String, BTreeSet<Hash>>,
    /// Routes by name.
    pub routes: BTreeMap<RouteId, Route>,
    /// Grants by name.
    pub clients: BTreeMap<ClientId, Grant>,
    /// What money is in; for people.
    pub currency: String,
    /// The price table.
    pub prices: BTreeMap<PriceId, Price>,
    /// Clients that share limits.
    pub teams: BTreeMap<TeamId, Team>,
}

/// A document and the admins' signatures over its bytes.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SignedPolicy {
    /// The document, exactly as signed.
    pub document: Vec<u8>,
    /// Binary SSH signatures (PROTOCOL.sshsig), at most [`ADMINS_MAX`].
    pub signatures: Vec<SshSignature>,
}

/// Everything that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {} mistake(s): {}", .0.len(), .0.join("; "))]
pub struct PolicyMistakes(pub Vec<String>);

/// floor((n + f) / 2) + 1: two such sets share more than f members, so at least one honest one.
pub fn quorum(members: usize, hostile_nodes_max: u32) -> usize {
    (members + hostile_nodes_max as usize) / 2 + 1
}

impl Policy {
    /// Parses and checks a document.
    pub fn parse(document: &[u8]) -> Result<Self, PolicyMistakes> {
        let fail = |m: String| PolicyMistakes(vec![m]);
        if document.len() > POLICY_BYTES_MAX {
            return Err(fail(format!("{} bytes, at most {POLICY_BYTES_MAX}", document.len())));
        }
        let text = std::str::from_utf8(document).map_err(|e| fail(format!("not UTF-8: {e}")))?;
        let parsed: PolicyDocument = toml::from_str(text).map_err(|e| fail(e.to_string()))?;
        Checker::default().policy(parsed, sha256(document))
    }

    /// Cosignatures that certify a checkpoint under this policy.
    pub fn quorum(&self) -> usize {
        quorum(self.members.len(), self.hostile_nodes_max)
    }

    /// The team whose limits a client shares.
    pub fn team_of(&self, grant: &Grant) -> Option<&Team> {
        grant.team.as_ref().and_then(|team| self.teams.get(team))
    }

    /// The row that a client names for this model over this route: the first by name, if any is for it.
    pub fn price_for(&self, route: &RouteId, model: &str) -> Option<&Price> {
        self.prices.values().find(|p| p.routes.contains(route) && p.is_for(model))
    }

    /// Counts distinct admins of *this* policy who signed `document`; refuses any signature that is none of theirs.
    pub fn check_signers(&self, signed: &SignedPolicy) -> Result<Vec<String>, crate::refusal::Refusal> {
        use crate::refusal::Refusal;
        if signed.signatures.len() > ADMINS_MAX {
            return Err(Refusal::Oversized);
        }
        let mut seen = BTreeMap::new();
        for signature in &signed.signatures {
            let key = signature.verify(&signed.document).map_err(|_| Refusal::BadSignature)?;
            let name = self.admins.get(&key).ok_or(Refusal::UnknownSigner)?;
            if seen.insert(key, name.clone()).is_some() {
                return Err(Refusal::UnknownSigner);
            }
        }
        if seen.len() < self.admin_threshold {
            Err(Refusal::TooFewSigners)
        } else {
            Ok(seen.into_values().collect())
        }
    }

    /// The name of the tlog, first line of every checkpoint (C2SP tlog-checkpoint): it names genesis, so that two
    /// clusters of one name are two logs.
    pub fn origin(cluster: &str, genesis: &Hash) -> Origin {
        match Origin::new(format!(
            "quorate/{cluster}/{}",
            hex::encode(genesis.0.get(..8).unwrap_or_default())
        )) {
            Ok(origin) => origin,
            Err(e) => unreachable!("a checked cluster name makes an origin: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check::unix_ms;
    use super::*;

    #[test]
    fn quorums_are_those_of_the_design() {
        assert_eq!([(3, 1), (4, 1), (5, 1), (6, 1), (7, 2)].map(|(n, f)| quorum(n, f)), [3, 3, 4, 4, 5]);
    }

    #[test]
    fn two_quorums_share_an_honest_member() {
        for n in 3..=7usize {
            for f in 1..=2u32 {
                let q = quorum(n, f);
                if q <= n {
                    assert!(2 * q - n > f as usize, "n={n} f={f}");
                }
            }
        }
    }

    #[test]
    fn dates_convert() {
        let at = |s: &str| unix_ms(&s.parse().unwrap()).unwrap().0 / 1000;
        assert_eq!(at("1970-01-01T00:00:00Z"), 0);
        assert_eq!(at("2026-11-21T21:40:00Z"), 1_795_297_200);
        assert_eq!(at("2024-02-29T12:00:00+02:00"), 1_709_200_800);
        assert!(unix_ms(&"2024-02-29".parse().unwrap()).is_err());
    }

    #[test]
    fn releases_stand_beside_the_values_taken_from_them() {
        let parse = |edit: &dyn Fn(&mut PolicyDocument)| {
            let mut document = crate::testing::Fleet::new(4, 1, |_| ()).document;
            edit(&mut document);
            Policy::parse(toml::to_string(&document).unwrap().as_bytes())
        };
        assert!(parse(&|_| ()).unwrap().releases.is_empty());
        let named = |name: &str, hex: String| {
            let (name, hex) = (name.to_owned(), hex);
            parse(&|d| drop(d.releases.insert(name.clone(), BTreeSet::from([hex.clone()]))))
        };
        let policy = named("plain", "07".repeat(32)).unwrap();
        assert_eq!(policy.releases["plain"], BTreeSet::from([Hash([7; 32])]));
        for (result, expected) in [
            (named("other", "07".repeat(32)), "releases.other: no reference values named \"other\""),
            (named("plain", "07".into()), "releases.plain: 64 hex digits of a release manifest's SHA-256"),
            (
                parse(&|d| drop(d.releases.insert("plain".into(), BTreeSet::new()))),
                "releases.plain: 1 to 64 manifests",
            ),
        ] {
            assert_eq!(result.unwrap_err(), PolicyMistakes(vec![expected.into()]));
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = "format = 2\ncluster = \"a b\"\nversion = 0\nexpires = 2030-01-01T00:00:00Z\nadmin_threshold = 0\nadmin = []\nmember = []\n";
        let PolicyMistakes(mistakes) = Policy::parse(text.as_bytes()).unwrap_err();
        for part in ["format 2", "cluster:", "version:", "admin_threshold", "member:", "hostile_nodes_max"] {
            assert!(mistakes.iter().any(|m| m.contains(part)), "{part} in {mistakes:?}");
        }
    }
}
