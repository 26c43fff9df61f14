//! `[route.credential]`: what a route's provider key looks like, and its shares, each sealed to one node. The document holds
//! nothing secret: the public prefix is public, and a sealed share opens on its own node alone ([`crate::shares`]).
//!
//! Refused: a scheme nobody knows, a prefix that could end a header line, a secret shorter than guessing allows, epoch 0,
//! shares for other nodes than exactly the members, a member without a share key. What a *change* may do to a credential is
//! [`change_allowed`]'s: another credential needs a higher share epoch, so that an epoch names one splitting for ever.
use super::document::{CredentialDocument, RouteDocument};
use super::{Checker, Member, Policy};
use crate::ids::{NodeId, RouteId};
use crate::refusal::Refusal;
use crate::shares::{SEALED_BYTES_MAX, SealedShares};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;

/// Shortest secret: below, a share says too much by being guessed.
pub const SECRET_BYTES_MIN: u16 = 16;
/// Longest secret, a bearer token of some size; the hole stays one small record.
pub const SECRET_BYTES_MAX: u16 = 1024;
/// Longest public prefix, as `sk-ant-api03-`.
pub const PUBLIC_PREFIX_BYTES_MAX: usize = 64;

/// Which header carries the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum CredentialScheme {
    /// `authorization: Bearer KEY`.
    Bearer,
    /// `x-api-key: KEY`.
    XApiKey,
    /// `api-key: KEY`.
    ApiKey,
    /// `x-goog-api-key: KEY`.
    XGoogApiKey,
}

impl CredentialScheme {
    /// Every scheme.
    pub const ALL: [Self; 4] = [Self::Bearer, Self::XApiKey, Self::ApiKey, Self::XGoogApiKey];
    /// As the policy writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::XApiKey => "x-api-key",
            Self::ApiKey => "api-key",
            Self::XGoogApiKey => "x-goog-api-key",
        }
    }
}

/// A scheme that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("scheme is bearer, x-api-key, api-key or x-goog-api-key")]
pub struct UnknownScheme;

impl std::str::FromStr for CredentialScheme {
    type Err = UnknownScheme;
    fn from_str(s: &str) -> Result<Self, UnknownScheme> {
        Self::ALL.into_iter().find(|scheme| scheme.as_str() == s).ok_or(UnknownScheme)
    }
}

/// A checked credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Header.
    pub scheme: CredentialScheme,
    /// What stands in the head before the secret.
    pub public_prefix: String,
    /// Length of the secret.
    pub secret_bytes: u16,
    /// Which splitting these shares are of; 1 or more.
    pub share_epoch: u32,
    /// Whether admins accepted that the provider echoes keys.
    pub accept_echo: bool,
    /// Whether admins stopped its use.
    pub frozen: bool,
    /// How often admins lifted what the metering imposed.
    pub lifted: u32,
    /// Each member's shares, sealed to it.
    pub shares: BTreeMap<NodeId, SealedShares>,
}

impl Checker {
    pub(super) fn credential(
        &mut self,
        route: &RouteDocument,
        members: &BTreeMap<NodeId, Member>,
    ) -> Option<Credential> {
        let d = route.credential.as_ref()?;
        let what = format!("route {:?}: credential", route.name);
        let scheme = self.keep(&what, d.scheme.parse::<CredentialScheme>());
        // Neither can a space, CR or LF end the header's value, nor can anything else be read in two ways.
        if d.public_prefix.len() > PUBLIC_PREFIX_BYTES_MAX
            || !d.public_prefix.bytes().all(|b| b.is_ascii_graphic())
        {
            self.wrong(format!(
                "{what}: public_prefix is up to {PUBLIC_PREFIX_BYTES_MAX} visible ASCII characters without space"
            ));
        }
        let range = SECRET_BYTES_MIN..=SECRET_BYTES_MAX;
        if !range.contains(&d.secret_bytes) {
            self.wrong(format!("{what}: secret_bytes is {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}"));
        }
        if d.share_epoch == 0 {
            self.wrong(format!("{what}: share_epoch starts at 1"));
        }
        let mut shares = BTreeMap::new();
        for (node, sealed) in &d.shares {
            let canonical = |n: &u64| n.to_string() == *node;
            let Some(id) = node.parse::<u64>().ok().filter(canonical).map(NodeId) else {
                self.wrong(format!("{what}: shares: {node:?} is no node id"));
                continue;
            };
            let bytes = BASE64.decode(sealed).ok().filter(|b| b.len() <= SEALED_BYTES_MAX);
            match bytes.and_then(|b| SealedShares::from_bytes(b).ok()) {
                Some(bytes) => drop(shares.insert(id, bytes)),
                None => self.wrong(format!("{what}: shares: those of {id} are not base64 of sealed shares")),
            }
        }
        if !shares.keys().eq(members.keys()) {
            self.wrong(format!(
                "{what}: shares must name exactly the members; when members change, split again: \
                 `quorate admin credential rotate`"
            ));
        }
        for member in members.values().filter(|m| m.share_key.is_none()) {
            self.wrong(format!("{what}: {} has no share_key, so it can hold no share", member.id));
        }
        Some(Credential {
            scheme: scheme?,
            public_prefix: d.public_prefix.clone(),
            secret_bytes: d.secret_bytes,
            share_epoch: d.share_epoch,
            accept_echo: d.accept_echo,
            frozen: d.frozen,
            lifted: d.lifted,
            shares,
        })
    }
}

/// Whether `new` may follow `old`, as far as credentials go. `highest` is the highest share epoch a route's credential ever
/// had: an epoch is never used again, also not after the credential was removed.
///
/// Within one epoch everything a share was sealed for stays: the whole table, host and port, members and their share keys.
/// Only the admins' switches move: `frozen` freely, `lifted` upwards.
pub fn change_allowed(old: &Policy, new: &Policy, highest: &BTreeMap<RouteId, u32>) -> Result<(), Refusal> {
    for (id, route) in &new.routes {
        let Some(credential) = &route.credential else { continue };
        let before = old
            .routes
            .get(id)
            .and_then(|r| Some((r, r.credential.as_ref()?)))
            .filter(|(_, c)| c.share_epoch == credential.share_epoch);
        match before {
            Some((route_before, before)) => {
                let keys =
                    |p: &Policy| p.members.iter().map(|(n, m)| (*n, m.share_key.clone())).collect::<Vec<_>>();
                let switches_apart = |c: &Credential| Credential { frozen: false, lifted: 0, ..c.clone() };
                let same = switches_apart(before) == switches_apart(credential)
                    && route_before.document.host == route.document.host
                    && route_before.document.port == route.document.port
                    && keys(old) == keys(new)
                    && before.lifted <= credential.lifted;
                if !same {
                    return Err(Refusal::ShareEpochUnchanged);
                }
            }
            None if highest.get(id).is_some_and(|h| *h >= credential.share_epoch) => {
                return Err(Refusal::ShareEpochUsed);
            }
            None => {}
        }
    }
    Ok(())
}

impl CredentialDocument {
    /// A table for these shares, with every switch at rest.
    pub fn new(
        scheme: CredentialScheme,
        public_prefix: impl Into<String>,
        secret_bytes: u16,
        share_epoch: u32,
        shares: &BTreeMap<NodeId, SealedShares>,
    ) -> Self {
        Self {
            scheme: scheme.as_str().into(),
            public_prefix: public_prefix.into(),
            secret_bytes,
            share_epoch,
            accept_echo: false,
            frozen: false,
            lifted: 0,
            shares: shares.iter().map(|(n, s)| (n.0.to_string(), BASE64.encode(s.as_bytes()))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PolicyDocument, PolicyMistakes};
    use super::*;
    use crate::testing::{Fleet, keyed, share_key};

    fn mistakes(edit: fn(&mut PolicyDocument)) -> Vec<String> {
        let mut document = Fleet::new(4, 1, keyed).document;
        edit(&mut document);
        match Policy::parse(toml::to_string(&document).unwrap().as_bytes()) {
            Ok(_) => Vec::new(),
            Err(PolicyMistakes(mistakes)) => mistakes,
        }
    }

    fn credential(d: &mut PolicyDocument) -> &mut CredentialDocument {
        d.route[0].credential.as_mut().unwrap()
    }

    fn approved(d: &mut PolicyDocument) {
        d.share_approver = Some(BASE64.encode([&[4u8][..], &[1; 64]].concat()));
        d.member[0].approvals = vec![BASE64.encode([7; 72])];
    }

    /// One mistake each, and what is said about it.
    #[test]
    fn credentials_are_checked_one_thing_at_a_time() {
        type Case = (fn(&mut PolicyDocument), &'static str);
        let cases: &[Case] = &[
            (|d| credential(d).scheme = "basic".into(), "scheme is bearer"),
            (|d| credential(d).scheme = "Bearer".into(), "scheme is bearer"),
            (|d| credential(d).public_prefix = "sk test".into(), "public_prefix"),
            (|d| credential(d).public_prefix = "sk\r".into(), "public_prefix"),
            (|d| credential(d).public_prefix = "sk\n".into(), "public_prefix"),
            (|d| credential(d).public_prefix = "ské".into(), "public_prefix"),
            (|d| credential(d).public_prefix = "\u{7f}".into(), "public_prefix"),
            (|d| credential(d).public_prefix = "x".repeat(65), "public_prefix"),
            (|d| credential(d).secret_bytes = 15, "secret_bytes is 16 to 1024"),
            (|d| credential(d).secret_bytes = 1025, "secret_bytes is 16 to 1024"),
            (|d| credential(d).share_epoch = 0, "share_epoch starts at 1"),
            (|d| drop(credential(d).shares.remove("4")), "exactly the members"),
            (
                |d| {
                    let one = credential(d).shares["1"].clone();
                    credential(d).shares.insert("5".into(), one);
                },
                "exactly the members",
            ),
            (
                |d| {
                    let one = credential(d).shares.remove("1").unwrap();
                    credential(d).shares.insert("01".into(), one);
                },
                "\"01\" is no node id",
            ),
            (|d| drop(credential(d).shares.insert("1".into(), "AAAA".into())), "not base64 of sealed shares"),
            (|d| credential(d).shares.get_mut("1").unwrap().push('!'), "not base64 of sealed shares"),
            (
                |d| {
                    let long = BASE64.encode(vec![0; SEALED_BYTES_MAX + 1]);
                    credential(d).shares.insert("1".into(), long);
                },
                "not base64 of sealed shares",
            ),
            (|d| d.member[1].share_key = None, "node-2 has no share_key"),
            (|d| d.member[1].share_key = Some("AAAA".into()), "base64 of an X-Wing public key"),
            (|d| d.member[1].share_counter = None, "share_key without share_counter"),
            (|d| d.share_approver = Some("AAAA".into()), "SEC1 P-256 point"),
            (
                |d| {
                    approved(d);
                    d.share_approver = None;
                },
                "approvals need a share_approver",
            ),
            (
                |d| {
                    approved(d);
                    d.member[0].approvals = vec![BASE64.encode([7; 1025])];
                },
                "approvals are up to 32",
            ),
            (
                |d| {
                    approved(d);
                    d.member[0].approvals = vec![String::new(); 33];
                },
                "approvals are up to 32",
            ),
        ];
        for (edit, said) in cases {
            let mistakes = mistakes(*edit);
            assert!(mistakes.iter().any(|m| m.contains(said)), "{said}: {mistakes:?}");
        }
        let fine: [fn(&mut PolicyDocument); 4] = [
            |_| (),
            approved,
            |d| d.route[0].credential = None,
            |d| {
                credential(d).public_prefix = "!~".into();
                (credential(d).frozen, credential(d).lifted) = (true, 7);
            },
        ];
        for edit in fine {
            assert_eq!(mistakes(edit), Vec::<String>::new());
        }
    }

    #[test]
    fn a_policy_without_credentials_needs_no_share_keys() {
        let edit: fn(&mut PolicyDocument) = |d| {
            d.route[0].credential = None;
            d.member.iter_mut().for_each(|m| (m.share_key, m.share_counter) = (None, None));
        };
        assert_eq!(mistakes(edit), Vec::<String>::new());
        let text = {
            let mut d = Fleet::new(4, 1, keyed).document;
            edit(&mut d);
            toml::to_string(&d).unwrap()
        };
        for word in ["share", "credential", "approv", "frozen", "lifted"] {
            assert!(!text.contains(word), "older programs read what was written without {word}");
        }
    }

    #[test]
    fn schemes_have_one_name_each() {
        for scheme in CredentialScheme::ALL {
            assert_eq!(scheme.as_str().parse(), Ok(scheme));
        }
        assert_eq!("".parse::<CredentialScheme>(), Err(UnknownScheme));
    }

    /// What a node does with its policy: finds its share, and opens it with the key the policy names.
    #[test]
    fn a_checked_policy_holds_shares_that_open() {
        let fleet = Fleet::new(4, 1, keyed);
        let policy = Policy::parse(&fleet.chain[0].document).unwrap();
        let route = crate::testing::route();
        let binding = crate::shares::ShareBinding::of(&policy, &route).unwrap();
        for (node, member) in &policy.members {
            let key = share_key(node.0);
            assert_eq!(member.share_key, Some(key.public()));
            let sealed = &policy.routes[&route].credential.as_ref().unwrap().shares[node];
            let shares = crate::shares::open(&binding, *node, &key, sealed).unwrap();
            assert_eq!((shares.mask.len(), shares.complements.len()), (32, 3));
        }
    }
}
