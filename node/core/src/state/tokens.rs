//! Short-lived client tokens (see [`crate::token`]): which are known, what they used, and what makes one void.
//!
//! A pool that is opened with a token makes it known; from then on its digest stands for it, and commands are checked by its key.
//! It is remembered, with what it used, until it has expired and the last of its requests is over: so showing it again gives
//! no new budget.
//!
//! **Never wider than its issuer**, at each use and not only at the first: a grant that expired, was revoked, narrowed or given
//! another key takes its tokens along, and so does an issuer's [`RevokeToken`]. What a token uses its issuer uses too.
//!
//! [`RevokeToken`]: crate::command::ClientCommand::RevokeToken
use super::budget::{Account, Charge, Hold, Window};
use super::{Run, State};
use crate::command::{ClientCommand, ClientSigned};
use crate::crypto::PublicKey;
use crate::ids::{ClientId, RouteId, Timestamp, TokenId};
use crate::leaf::Outcome;
use crate::policy::Grant;
use crate::refusal::Refusal;
use crate::token::{SignedToken, Token};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

/// Tokens of one issuer that are remembered at a time.
pub const TOKENS_PER_ISSUER_MAX: u32 = 1024;
/// Beside them, such as it takes back before anybody showed them: a leaked one can be stopped however many are in use.
pub const REVOKED_PER_ISSUER_MAX: u32 = 256;
/// Tokens of all issuers: some tens of MB at the very most.
pub const TOKENS_MAX: usize = 16_384;
/// Pools one token may hold open at a time: its issuer has 256 for all.
pub const POOLS_PER_TOKEN_MAX: u32 = 32;
/// Unsettled requests of one token: an eighth of its issuer's.
pub const IN_FLIGHT_PER_TOKEN_MAX: u32 = 512;

/// A token that was used, or taken back.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct TokenRecord {
    /// What its issuer signed.
    pub token: Token,
    /// The issuer's key that signed it: another one later makes it void.
    pub issuer_key: PublicKey,
    /// Taken back.
    pub revoked: bool,
    /// What it used in all.
    pub used: Window,
    /// Running requests.
    pub in_flight: u32,
    /// Open pools.
    pub pools: u32,
    /// Not forgotten before: its last request may be reported until then.
    keep_until: Timestamp,
}

impl TokenRecord {
    fn new(token: Token, issuer_key: PublicKey) -> Self {
        let keep_until = token.expires;
        let used = Window::default();
        Self { token, issuer_key, revoked: false, used, in_flight: 0, pools: 0, keep_until }
    }

    /// Whether its own limits allow this much more.
    pub(super) fn check(&self, hold: Hold) -> Result<(), Refusal> {
        let [requests, bytes, money] = self.used.with(hold);
        let limits = &self.token.limits;
        let over = |limit: Option<u64>, would| limit.is_some_and(|limit| would > limit);
        if over(limits.requests, requests) {
            return Err(Refusal::TokenRequestsUsedUp);
        }
        if over(limits.bytes, bytes) {
            return Err(Refusal::TokenBytesUsedUp);
        }
        if over(limits.money, money) {
            return Err(Refusal::TokenMoneyUsedUp);
        }
        if self.in_flight >= IN_FLIGHT_PER_TOKEN_MAX { Err(Refusal::TooManyInFlight) } else { Ok(()) }
    }
}

/// The tokens that are remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Tokens {
    known: BTreeMap<TokenId, TokenRecord>,
    deadlines: BTreeSet<(Timestamp, TokenId)>,
    by_issuer: BTreeMap<ClientId, BTreeSet<TokenId>>,
}

impl Tokens {
    pub(super) fn get(&self, id: &TokenId) -> Option<&TokenRecord> {
        self.known.get(id)
    }
    pub(super) fn get_mut(&mut self, id: &TokenId) -> Option<&mut TokenRecord> {
        self.known.get_mut(id)
    }

    fn room(&self, issuer: &ClientId, beside: u32) -> Result<(), Refusal> {
        let own = self.by_issuer.get(issuer).map_or(0, BTreeSet::len);
        let beside = beside as usize;
        let full = own >= (TOKENS_PER_ISSUER_MAX as usize).saturating_add(beside)
            || self.known.len() >= TOKENS_MAX.saturating_add(beside);
        if full { Err(Refusal::TooManyTokens) } else { Ok(()) }
    }

    fn insert(&mut self, id: TokenId, record: TokenRecord) {
        self.deadlines.insert((record.token.expires, id));
        self.by_issuer.entry(record.token.issuer.clone()).or_default().insert(id);
        self.known.insert(id, record);
    }

    pub(super) fn reserve(&mut self, id: &TokenId, account: &Account, deadline: Timestamp) {
        if let Some(record) = self.known.get_mut(id) {
            record.used.reserve(account.hold);
            record.in_flight = record.in_flight.saturating_add(1);
            record.keep_until = record.keep_until.max(deadline);
        }
    }

    pub(super) fn charge(&mut self, account: &Account, charge: &Charge) {
        if let Some(record) = account.token.and_then(|id| self.known.get_mut(&id)) {
            record.used.charge(charge);
            if matches!(charge, Charge::Bytes { .. }) {
                record.in_flight = record.in_flight.saturating_sub(1);
            }
        }
    }

    pub(super) fn pool_closed(&mut self, id: &TokenId) {
        if let Some(record) = self.known.get_mut(id) {
            record.pools = record.pools.saturating_sub(1);
        }
    }

    /// Forgets what is over.
    pub(super) fn expire(&mut self, time: Timestamp) {
        while let Some(&(due, id)) = self.deadlines.first().filter(|(t, _)| *t <= time) {
            self.deadlines.remove(&(due, id));
            match self.known.get(&id).map(|r| r.keep_until) {
                Some(later) if later > time => drop(self.deadlines.insert((later, id))),
                _ => self.forget(&id),
            }
        }
    }

    fn forget(&mut self, id: &TokenId) {
        let Some(record) = self.known.remove(id) else { return };
        let issuer = &record.token.issuer;
        if let Some(all) = self.by_issuer.get_mut(issuer) {
            all.remove(id);
            if all.is_empty() {
                self.by_issuer.remove(issuer);
            }
        }
    }
}

/// Whether a token of this issuer may be used for this route now.
pub fn usable(grant: &Grant, token: &Token, route: &RouteId, now: Timestamp) -> Result<(), Refusal> {
    check_terms(grant, token, now)?;
    // The issuer's own scope is checked where every client's is.
    if token.routes.contains(route) { Ok(()) } else { Err(Refusal::OutOfScope) }
}

fn check_terms(grant: &Grant, token: &Token, now: Timestamp) -> Result<(), Refusal> {
    let longest = grant.token_lifetime_ms_max.ok_or(Refusal::MayNotIssue)?;
    if now < token.not_before {
        return Err(Refusal::TokenNotYetValid);
    }
    if now >= token.expires {
        return Err(Refusal::TokenExpired);
    }
    if token.lifetime_ms() > longest { Err(Refusal::TokenTooLong) } else { Ok(()) }
}

/// As [`usable`], for a token that is shown: its signature, and that all of it lies within what its issuer may do. For a node that
/// decides whether to propose it; `apply` decides again.
pub fn presentable(
    grant: &Grant,
    cluster: crate::crypto::Hash,
    signed: &SignedToken,
    route: &RouteId,
    now: Timestamp,
) -> Result<(), Refusal> {
    if signed.token.issuer != grant.id || !signed.is_by(cluster, &grant.key) {
        return Err(Refusal::BadToken);
    }
    usable(grant, &signed.token, route, now)?;
    if signed.token.routes.iter().all(|r| grant.routes.contains(r)) {
        Ok(())
    } else {
        Err(Refusal::TokenTooWide)
    }
}

impl State {
    /// A token that was used or taken back, until it is over.
    pub fn token(&self, id: &TokenId) -> Option<&TokenRecord> {
        self.data.tokens.get(id)
    }

    /// The tokens of an issuer that are remembered, by digest, from the one after `after` on.
    pub fn tokens_of<'s>(
        &'s self,
        issuer: &ClientId,
        after: Option<TokenId>,
    ) -> impl Iterator<Item = (&'s TokenId, &'s TokenRecord)> + 's {
        let tokens = &self.data.tokens;
        let own = tokens.by_issuer.get(issuer).into_iter();
        let rest = own.flat_map(move |all| all.range((after.map_or(Unbounded, Excluded), Unbounded)));
        rest.filter_map(|id| tokens.known.get_key_value(id))
    }

    /// The key that a command for this token has to be signed with: that of a token that is known, or is shown and its issuer's.
    pub(super) fn token_key(
        &self,
        grant: &Grant,
        id: &TokenId,
        c: &ClientSigned,
    ) -> Result<PublicKey, Refusal> {
        let shown = match &c.body {
            ClientCommand::OpenPool(p) => p.token.as_deref(),
            ClientCommand::Authorise(_) | ClientCommand::Report(_) | ClientCommand::RevokeToken(_) => None,
        };
        let known = self.data.tokens.get(id).filter(|r| r.token.issuer == grant.id);
        match (known, shown) {
            // What its requests cost is still for it to say, whatever became of its issuer.
            (Some(known), _) if matches!(c.body, ClientCommand::Report(_)) => Ok(known.token.key),
            (Some(known), _) if known.issuer_key != grant.key => Err(Refusal::BadToken),
            (Some(known), None) => Ok(known.token.key),
            (Some(known), Some(shown)) if shown.token == known.token => Ok(known.token.key),
            (None, Some(shown)) => {
                let its_issuers = shown.token.issuer == grant.id
                    && shown.token.id(self.data.genesis) == *id
                    && (self.ahead.take(shown.digest(), grant.key)
                        || shown.is_by(self.data.genesis, &grant.key));
                if its_issuers { Ok(shown.token.key) } else { Err(Refusal::BadToken) }
            }
            (Some(_), Some(_)) => Err(Refusal::BadToken),
            (None, None) => Err(Refusal::UnknownToken),
        }
    }

    /// Whether a pool may be opened with a token. It is known by now, or shown and its issuer's.
    pub(super) fn check_token_for_pool(
        &self,
        grant: &Grant,
        id: &TokenId,
        shown: Option<&SignedToken>,
        (route, expires): (&RouteId, Timestamp),
    ) -> Result<(), Refusal> {
        let now = self.data.time;
        let token = match (self.data.tokens.get(id), shown) {
            (Some(record), _) if record.revoked => return Err(Refusal::TokenRevoked),
            (Some(record), _) if record.pools >= POOLS_PER_TOKEN_MAX => return Err(Refusal::TooManyInFlight),
            (Some(record), _) => &record.token,
            (None, Some(shown)) => {
                check_terms(grant, &shown.token, now)?;
                if !shown.token.routes.iter().all(|r| grant.routes.contains(r)) {
                    return Err(Refusal::TokenTooWide);
                }
                self.data.tokens.room(&grant.id, 0)?;
                &shown.token
            }
            (None, None) => return Err(Refusal::UnknownToken),
        };
        usable(grant, token, route, now)?;
        if expires > token.expires { Err(Refusal::PoolTooLong) } else { Ok(()) }
    }
}

impl Run<'_> {
    /// A pool was opened with this token: from now on it is known.
    pub(super) fn token_used(&mut self, grant: &Grant, id: TokenId, shown: Option<&SignedToken>) {
        let tokens = &mut self.state.data.tokens;
        if let (None, Some(shown)) = (tokens.get(&id), shown) {
            tokens.insert(id, TokenRecord::new(shown.token.clone(), grant.key));
        }
        if let Some(record) = tokens.get_mut(&id) {
            record.pools += 1;
        }
    }

    /// Its issuer takes a token back, whether it was used or not.
    pub(super) fn revoke_token(&mut self, grant: &Grant, token: &Token) -> Result<Outcome, Refusal> {
        if token.issuer != grant.id {
            return Err(Refusal::NotYours);
        }
        let time = self.state.data.time;
        if token.expires <= time {
            return Err(Refusal::TokenExpired);
        }
        // One that could not be used is not worth a place: those that nobody minted would fill the table for ever.
        let longest = grant.token_lifetime_ms_max.ok_or(Refusal::MayNotIssue)?;
        let latest = time.plus_ms(longest.saturating_mul(2));
        if token.lifetime_ms() > longest || token.expires > latest {
            return Err(Refusal::TokenTooLong);
        }
        let id = token.id(self.state.data.genesis);
        let tokens = &mut self.state.data.tokens;
        if tokens.get(&id).is_none() {
            tokens.room(&grant.id, REVOKED_PER_ISSUER_MAX)?;
            tokens.insert(id, TokenRecord::new(token.clone(), grant.key));
        }
        match tokens.get_mut(&id) {
            Some(record) if !record.revoked => record.revoked = true,
            _ => return Err(Refusal::TokenRevoked),
        }
        Ok(Outcome::TokenRevoked)
    }
}

#[cfg(test)]
mod tests;
