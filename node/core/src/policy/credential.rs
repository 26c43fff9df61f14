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
