//! Pools, authorisations, settlements: nonces, rates and budgets hold exactly, cluster-wide, because they are decided here. What
//! each may use and is charged is [`budget`](super::budget)'s, what tokens may do [`tokens`](super::tokens)'s.
use super::budget::{Account, Charge, Hold, Said};
use super::metering::{CredentialUse, HOLD_MS, Pair};
use super::{Run, State, tokens};
use crate::command::{
    Alarm, Authorise, ClientCommand, ClientSigned, Ended, OpenPool, PROBE_GRANT_MS_MAX, Report, Settlement,
    SignedProbeGrant,
};
use crate::crypto::{Hash, PublicKey};
use crate::ids::{ClientId, ConnectionId, NodeId, RequestId, RouteId, Timestamp, TokenId};
use crate::leaf::{AnomalyRule, LeafBody, Outcome};
use crate::policy::{Grant, IN_FLIGHT_MAX, Limits, Moment, Price, REQUEST_LIFETIME_MS_MAX, Rates, Route};
use crate::refusal::Refusal;
use crate::rendezvous;
use crate::tlog::LeafIndex;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::evidence::BootKeys;
use std::collections::{BTreeMap, BTreeSet};

/// Pools one client may hold open at a time.
const POOLS_PER_CLIENT_MAX: u32 = 256;
/// A pool counts so long at least, however short it lives: opening one leaves a leaf.
const POOL_COUNTS_MS_MIN: u64 = 60_000;

/// An authorised set of connections.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Pool {
    /// Whose.
    pub client: ClientId,
    /// The token it was opened with, and its key: whose requests these are.
    pub token: Option<(TokenId, PublicKey)>,
    /// Destination.
    pub route: RouteId,
    /// Relay and its boot keys.
    pub relay: (NodeId, BootKeys),
    /// Keyer and its boot keys.
    pub keyer: (NodeId, BootKeys),
    /// End.
    pub expires: Timestamp,
    /// Connections that carried their one request.
    pub used: BTreeSet<ConnectionId>,
    /// An admin granted it for checking the credential of this share epoch.
    pub probe: Option<u32>,
}

/// A request that is open, or whose nonce is remembered.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct RequestRecord {
    /// Who pays, and what for.
    pub account: Account,
    /// Through which relay.
    pub relay: NodeId,
    /// Checked by which keyer.
    pub keyer: NodeId,
    /// Leaf of the authorisation.
    pub leaf: LeafIndex,
    /// End of the signature's validity: the nonce is kept as long.
    pub expires: Timestamp,
    /// When a missing settlement becomes an anomaly.
    pub deadline: Timestamp,
    /// The relay's word: bytes up and down, end.
    pub settled: Option<(u64, u64, Ended)>,
    /// The client's word.
    pub reported: Option<Said>,
    /// What it used of a credential; `None` on a route without one.
    pub credential: Option<CredentialUse>,
}

impl Run<'_> {
    pub(super) fn client_command(&mut self, digest: Hash, c: &ClientSigned) -> Result<Outcome, Refusal> {
        let policy = std::sync::Arc::clone(&self.state.policy);
        let grant = policy.clients.get(&c.client).ok_or(Refusal::UnknownClient)?;
        let key = match &c.token {
            None => grant.key,
            Some(id) => self.state.token_key(grant, id, c)?,
        };
        if !self.state.ahead.take(digest, key) && !c.is_by(self.state.data.genesis, &key) {
            return Err(Refusal::BadSignature);
        }
        if self.state.is_dark() {
            return Err(Refusal::Dark);
        }
        if let ClientCommand::Report(reports) = &c.body {
            return Ok(self.report(c, reports));
        }
        if grant.revoked {
            return Err(Refusal::ClientRevoked);
        }
        if grant.expires <= self.state.data.time {
            return Err(Refusal::ClientExpired);
        }
        match &c.body {
            ClientCommand::OpenPool(p) => self.open_pool(grant, c.token, p),
            ClientCommand::Authorise(a) => self.authorise(grant, c.token, a),
            ClientCommand::Report(reports) => Ok(self.report(c, reports)),
            // A token can take nothing back, itself included.
            ClientCommand::RevokeToken(_) if c.token.is_some() => Err(Refusal::NotYours),
            ClientCommand::RevokeToken(token) => self.revoke_token(grant, token),
        }
    }

    fn open_pool(&mut self, grant: &Grant, token: Option<TokenId>, p: &OpenPool) -> Result<Outcome, Refusal> {
        let state = &*self.state;
        let time = state.data.time;
        let route = state.policy.routes.get(&p.route).ok_or(Refusal::UnknownRoute)?;
        if !grant.routes.contains(&p.route) {
            return Err(Refusal::OutOfScope);
        }
        if p.expires <= time || p.expires > time.plus_ms(state.policy.attestation.pool_lifetime_ms) {
            return Err(Refusal::PoolTooLong);
        }
        let shown = p.token.as_deref();
        match &token {
            Some(id) => state.check_token_for_pool(grant, id, shown, (&p.route, p.expires))?,
            None if shown.is_some() => return Err(Refusal::BadToken),
            None => {}
        }
        if state.data.pools.contains_key(&p.pool) {
            return Err(Refusal::DuplicatePool);
        }
        if state.attested(p.relay) != Some(&p.relay_boot) {
            return Err(Refusal::RelayNotAttested);
        }
        if state.attested(p.keyer) != Some(&p.keyer_boot) {
            return Err(Refusal::KeyerNotAttested);
        }
        let custodian = |n| state.policy.members.get(&n).map(|m| &m.custodian);
        let (relay, keyer) = (custodian(p.relay), custodian(p.keyer));
        if relay == keyer || relay == Some(&grant.custodian) || keyer == Some(&grant.custodian) {
            return Err(Refusal::SameCustodian);
        }
        let probe = match &p.probe {
            // Granted to a client, not to its tokens.
            Some(_) if token.is_some() => return Err(Refusal::BadProbeGrant),
            Some(probe) => Some(probe_granted(state, grant, p, probe)?),
            None => {
                if !rendezvous::keyers(
                    &state.policy,
                    state.attested_nodes(),
                    &p.route,
                    p.relay,
                    &grant.custodian,
                )
                .contains(&p.keyer)
                {
                    return Err(Refusal::WrongKeyer);
                }
                // Refused once more when a request comes; said here already, so that nobody fills a pool in vain.
                usable_by(state, route, Pair { relay: p.relay, keyer: p.keyer }, &grant.id)?;
                None
            }
        };
        let holder = token.and_then(|id| {
            let known = state.data.tokens.get(&id).map(|r| r.token.key);
            Some((id, known.or(shown.map(|s| s.token.key))?))
        });
        if self.state.data.budgets.open(&grant.id).0 >= POOLS_PER_CLIENT_MAX {
            return Err(Refusal::TooManyInFlight);
        }
        self.state.data.budgets.client(&grant.id, Moment::of(time)).pools += 1;
        if let Some(id) = token {
            self.token_used(grant, id, shown);
        }
        let pool = Pool {
            client: grant.id.clone(),
            token: holder,
            route: p.route.clone(),
            relay: (p.relay, p.relay_boot.clone()),
            keyer: (p.keyer, p.keyer_boot.clone()),
            expires: p.expires,
            used: BTreeSet::new(),
            probe,
        };
        let counts_until = p.expires.max(time.plus_ms(POOL_COUNTS_MS_MIN));
        self.state.data.pool_deadlines.insert((counts_until, p.pool));
        self.state.data.pools.insert(p.pool, pool);
        Ok(Outcome::PoolOpened)
    }

    fn authorise(
        &mut self,
        grant: &Grant,
        token: Option<TokenId>,
        a: &Authorise,
    ) -> Result<Outcome, Refusal> {
        let state = &*self.state;
        let time = state.data.time;
        let pool = state.data.pools.get(&a.pool).filter(|p| p.expires > time).ok_or(Refusal::UnknownPool)?;
        if (&pool.client, &pool.route, pool.relay.0, pool.keyer.0) != (&grant.id, &a.route, a.relay, a.keyer)
        {
            return Err(Refusal::PoolMismatch);
        }
        if pool.token.map(|(id, _)| id) != token {
            return Err(Refusal::PoolMismatch);
        }
        let token = match &token {
            None => None,
            Some(id) => {
                let record = state.data.tokens.get(id).ok_or(Refusal::UnknownToken)?;
                if record.revoked {
                    return Err(Refusal::TokenRevoked);
                }
                tokens::usable(grant, &record.token, &a.route, time)?;
                Some((*id, record))
            }
        };
        if a.expires <= time || a.expires > time.plus_ms(REQUEST_LIFETIME_MS_MAX) {
            return Err(Refusal::Expired);
        }
        if state.data.requests.contains_key(&a.request) {
            return Err(Refusal::Replayed);
        }
        if pool.used.contains(&a.connection) {
            return Err(Refusal::ConnectionUsed);
        }
        if a.policy != state.policy.version {
            return Err(Refusal::StalePolicy);
        }
        let route = state.policy.routes.get(&a.route).ok_or(Refusal::UnknownRoute)?;
        if !grant.routes.contains(&a.route) {
            return Err(Refusal::OutOfScope);
        }
        if a.share_epoch != route.share_epoch() {
            return Err(Refusal::StaleShareEpoch);
        }
        let d = &route.document;
        let too_high = a.body_bytes_max > d.body_bytes_max
            || a.response_bytes_max > d.response_bytes_max
            || a.duration_ms_max > d.duration_ms_max;
        if too_high {
            return Err(Refusal::CeilingTooHigh);
        }
        if state.attested(a.relay) != Some(&pool.relay.1) {
            return Err(Refusal::RelayNotAttested);
        }
        if state.attested(a.keyer) != Some(&pool.keyer.1) {
            return Err(Refusal::KeyerNotAttested);
        }
        let custodian = |n| state.policy.members.get(&n).map(|m| &m.custodian);
        let (relay, keyer) = (custodian(a.relay), custodian(a.keyer));
        if relay == keyer || relay == Some(&grant.custodian) || keyer == Some(&grant.custodian) {
            return Err(Refusal::SameCustodian);
        }
        let pair = Pair { relay: a.relay, keyer: a.keyer };
        let metered = match pool.probe {
            None => {
                usable_by(state, route, pair, &grant.id)?;
                state.data.meters.get(&route.id).map_or(Ok(()), |m| m.may_open(pair, &grant.id))?;
                true
            }
            Some(epoch) if epoch == a.share_epoch => false,
            Some(_) => return Err(Refusal::StaleShareEpoch),
        };
        let credential = route.credential.as_ref().map(|c| CredentialUse {
            route: a.route.clone(),
            share_epoch: c.share_epoch,
            lifted: c.lifted,
            authorised: time,
            metered,
            answered: false,
            denied: false,
            fault: None,
        });
        let team = state.policy.team_of(grant);
        let money_limits = [Some(&grant.limits), team.map(|t| &t.limits)];
        let money_is_limited = money_limits.into_iter().flatten().any(Limits::limit_money)
            || token.is_some_and(|(_, r)| r.token.limits.money.is_some());
        let price = price_of(state, a, money_is_limited)?;
        let account = account(grant, token.map(|(id, _)| id), a, price.map(|p| p.rates), time);
        if let Some((_, record)) = token {
            record.check(account.hold)?;
        }
        let settle_ms = state.policy.attestation.settle_ms;
        let leaf = LeafIndex(state.data.tree.size().0);
        let token = token.map(|(id, _)| id);
        let policy = std::sync::Arc::clone(&state.policy);
        let team = policy.team_of(grant).map(|t| &t.limits);
        self.state.data.budgets.check(&account, &grant.limits, team)?;
        if self.state.data.budgets.open(&grant.id).1 >= IN_FLIGHT_MAX {
            return Err(Refusal::TooManyInFlight);
        }
        if !metered {
            // Last of all, so that what is refused for another reason costs no probe.
            let meter = self.state.data.meters.get_mut(&a.route).ok_or(Refusal::StaleShareEpoch)?;
            meter.probe(pair)?;
        }
        let deadline = time.plus_ms(a.duration_ms_max).plus_ms(settle_ms).max(a.expires);
        self.state.data.budgets.reserve(&account);
        if let Some(id) = &token {
            self.state.data.tokens.reserve(id, &account, deadline);
        }
        let record = RequestRecord {
            account,
            relay: a.relay,
            keyer: a.keyer,
            leaf,
            expires: a.expires,
            deadline,
            settled: None,
            reported: None,
            credential,
        };
        if let Some(used) = &record.credential {
            self.meter_opened(&grant.id, pair, used);
        }
        if let Some(pool) = self.state.data.pools.get_mut(&a.pool) {
            pool.used.insert(a.connection);
        }
        self.state.data.request_deadlines.insert((record.deadline, a.request));
        self.state.data.requests.insert(a.request, record);
        Ok(Outcome::Authorised)
    }

    pub(super) fn settle(&mut self, node: NodeId, settlements: &[Settlement]) -> Result<Outcome, Refusal> {
        let mut refused = Vec::new();
        for (position, s) in settlements.iter().enumerate() {
            if let Err(refusal) = self.settle_one(node, s) {
                refused.push((position as u16, refusal));
            }
        }
        Ok(Outcome::Settled(refused))
    }

    fn settle_one(&mut self, node: NodeId, s: &Settlement) -> Result<(), Refusal> {
        let data = &mut self.state.data;
        let record = data.requests.get_mut(&s.request).ok_or(Refusal::UnknownRequest)?;
        if record.relay != node {
            return Err(Refusal::NotYours);
        }
        if record.settled.is_some() {
            return Err(Refusal::UnknownRequest);
        }
        record.settled = Some((s.bytes_up, s.bytes_down, s.ended));
        let held = record.account.hold.bytes;
        let used = s.bytes_up.saturating_add(s.bytes_down).min(held);
        let charge = Charge::Bytes { held, used };
        data.budgets.charge(&record.account, &charge);
        data.tokens.charge(&record.account, &charge);
        self.void_unreleased(s.request);
        self.compare(s.request);
        Ok(())
    }

    fn report(&mut self, author: &ClientSigned, reports: &[Report]) -> Outcome {
        let mut refused = Vec::new();
        for (position, r) in reports.iter().enumerate() {
            if let Err(refusal) = self.report_one(author, r) {
                refused.push((position as u16, refusal));
            }
        }
        Outcome::Reported(refused)
    }

    fn report_one(&mut self, author: &ClientSigned, r: &Report) -> Result<(), Refusal> {
        let record = self.state.data.requests.get_mut(&r.request).ok_or(Refusal::UnknownRequest)?;
        if (&record.account.client, record.account.token) != (&author.client, author.token) {
            return Err(Refusal::NotYours);
        }
        if record.reported.is_some() {
            return Err(Refusal::UnknownRequest);
        }
        record.reported = Some(Said::of(r));
        self.meter_report(&author.client, r);
        self.compare(r.request);
        Ok(())
    }

    /// Once both halves are there: charge what is due, flag what does not fit, and keep only the nonce.
    fn compare(&mut self, request: RequestId) {
        let time = self.state.data.time;
        let data = &mut self.state.data;
        let Some(record) = data.requests.get_mut(&request) else { return };
        let (Some((up, down, relay_end)), Some(said)) = (record.settled, record.reported) else { return };
        let (old, mut expires) = (record.deadline, record.expires);
        if record.credential.as_ref().is_some_and(|used| used.fault.is_some()) {
            // As long as its fault may be held: a repetition, or the keyer's word, can still make it void.
            expires = expires.max(time.plus_ms(HOLD_MS));
        }
        record.deadline = expires;
        let account = &record.account;
        let over =
            |(input, output): (u64, u64)| said.tokens.is_some_and(|t| t.input > input || t.output > output);
        let exceeds = over(account.tokens_in_bytes((up, down)));
        let over_ceilings = over(account.ceilings);
        let (tokens, used) = account.due(Some((up, down)), Some(&said));
        let charge = Charge::Money { held: account.hold.money, used, tokens };
        data.budgets.charge(account, &charge);
        data.tokens.charge(account, &charge);
        let differ =
            (relay_end == Ended::Complete && said.ended == Ended::Truncated) || (up == 0 && said.answered);
        data.request_deadlines.remove(&(old, request));
        data.request_deadlines.insert((expires, request));
        if exceeds {
            self.leaf(time, LeafBody::Anomaly { request, rule: AnomalyRule::TokensExceedBytes });
        } else if over_ceilings {
            self.leaf(time, LeafBody::Anomaly { request, rule: AnomalyRule::TokensExceedCeilings });
        }
        if differ {
            self.leaf(time, LeafBody::Anomaly { request, rule: AnomalyRule::EndsDiffer });
        }
    }

    /// Forgets what is over; a settlement that never came is an anomaly.
    pub(super) fn deadlines(&mut self) {
        let time = self.state.data.time;
        while let Some(&(expires, pool)) = self.state.data.pool_deadlines.first().filter(|(t, _)| *t <= time)
        {
            self.state.data.pool_deadlines.remove(&(expires, pool));
            let Some(p) = self.state.data.pools.remove(&pool) else { continue };
            if let Some(usage) = self.state.data.budgets.clients.get_mut(&p.client) {
                usage.pools = usage.pools.saturating_sub(1);
            }
            if let Some((id, _)) = &p.token {
                self.state.data.tokens.pool_closed(id);
            }
        }
        while let Some(&(deadline, request)) =
            self.state.data.request_deadlines.first().filter(|(t, _)| *t <= time)
        {
            self.state.data.request_deadlines.remove(&(deadline, request));
            let Some(record) = self.state.data.requests.remove(&request) else { continue };
            let pair = Pair { relay: record.relay, keyer: record.keyer };
            if let (Some(used), None) = (&record.credential, record.reported) {
                self.meter_unreported(&record.account.client, pair, used);
            }
            if record.settled.is_some() && record.reported.is_some() {
                continue;
            }
            let (account, data) = (&record.account, &mut self.state.data);
            if record.settled.is_none() {
                // Nobody knows what it used: it is charged what it held.
                let held = account.hold.bytes;
                let charge = Charge::Bytes { held, used: held };
                data.budgets.charge(account, &charge);
                data.tokens.charge(account, &charge);
            }
            let bytes = record.settled.map(|(up, down, _)| (up, down));
            let (tokens, used) = account.due(bytes, record.reported.as_ref());
            let charge = Charge::Money { held: account.hold.money, used, tokens };
            data.budgets.charge(account, &charge);
            data.tokens.charge(account, &charge);
            let (relay, client) = (record.settled.is_none(), record.reported.is_none());
            self.leaf(time, LeafBody::Unsettled { request, relay, client });
            // A client that died says nothing about a relay that settled; a relay that keeps silent may hide an answer, unless
            // the client saw one, or already reported a fault.
            let silent = |end: Ended| end == Ended::Cancelled;
            let unanswered = record.reported.is_none_or(|said| silent(said.ended));
            if let Some(used) = &record.credential
                && used.metered
                && relay
                && unanswered
                && !used.answered
                && used.fault.is_none()
            {
                self.meter_unsettled(record.account.client.clone(), request, pair, used);
            }
        }
    }

    /// A keyer's word that it never answered for these requests.
    pub(super) fn unanswered(&mut self, node: NodeId, requests: &[RequestId]) -> Result<Outcome, Refusal> {
        let mut refused = Vec::new();
        for (position, request) in requests.iter().enumerate() {
            match self.state.data.requests.get(request).map(|r| r.keyer == node) {
                Some(true) => self.keyer_denies(node, *request),
                Some(false) => refused.push((position as u16, Refusal::NotYours)),
                None => refused.push((position as u16, Refusal::UnknownRequest)),
            }
        }
        Ok(Outcome::Settled(refused))
    }

    pub(super) fn alarm(&mut self, node: NodeId, alarm: &Alarm) -> Result<Outcome, Refusal> {
        if let Alarm::HeadRefused { request, .. } = alarm {
            self.keyer_denies(node, *request);
        }
        if let Alarm::Equivocation { accused, key, size, one, other } = alarm {
            // Otherwise anybody could make a key of its own sign two roots and accuse another with it.
            let known = |keys: &BTreeMap<NodeId, PublicKey>| keys.get(accused) == Some(key);
            let attested = self.state.attested(*accused).is_some_and(|boot| boot.cosign == key.0);
            if !attested && !self.state.data.anchors.iter().any(|a| known(&a.certifiers.keys)) {
                return Err(Refusal::BadSignature);
            }
            let origin = &self.state.data.origin;
            let signed = |(root, cosignature): &(Hash, crate::tlog::Cosignature)| {
                let reference = crate::command::CheckpointRef { size: *size, root: *root };
                cosignature.verify(&super::checkpoint_of(origin, reference), &key.0).is_ok()
            };
            if one.0 == other.0 || !signed(one) || !signed(other) {
                return Err(Refusal::BadSignature);
            }
        }
        if let Alarm::AdmissionRefused { node, .. } = alarm
            && !self.state.data.nodes.contains_key(node)
        {
            return Err(Refusal::UnknownNode);
        }
        Ok(Outcome::AlarmRaised)
    }
}

/// Whether a client may use a route's credential, if it has one, over this pair.
fn usable_by(state: &State, route: &Route, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
    let Some(credential) = &route.credential else { return Ok(()) };
    if credential.frozen {
        return Err(Refusal::CredentialFrozen);
    }
    state.data.meters.get(&route.id).map_or(Ok(()), |m| m.usable_by(pair, client))
}

/// The share epoch an admin granted a probe of, for exactly this pool.
fn probe_granted(
    state: &State,
    client: &Grant,
    p: &OpenPool,
    probe: &SignedProbeGrant,
) -> Result<u32, Refusal> {
    let SignedProbeGrant { grant, signature } = probe;
    let statement = grant.statement(state.data.genesis);
    let admin = signature.verify(&statement).map_err(|_| Refusal::BadProbeGrant)?;
    let fits = state.policy.admins.contains_key(&admin)
        && (&grant.route, grant.client_key) == (&p.route, client.key)
        && grant.pairs.contains(&(p.relay, p.keyer));
    if !fits {
        return Err(Refusal::BadProbeGrant);
    }
    let epoch = state.policy.routes.get(&p.route).map_or(0, Route::share_epoch);
    if epoch == 0 || grant.share_epoch != epoch {
        return Err(Refusal::StaleShareEpoch);
    }
    let time = state.data.time;
    let lasts = grant.expires > time
        && grant.expires <= time.plus_ms(PROBE_GRANT_MS_MAX)
        && p.expires <= grant.expires;
    if lasts { Ok(epoch) } else { Err(Refusal::ProbeGrantExpired) }
}

/// The row a request is paid by.
fn price_of<'s>(state: &'s State, a: &Authorise, required: bool) -> Result<Option<&'s Price>, Refusal> {
    match &a.price {
        None if required => Err(Refusal::PriceRequired),
        None => Ok(None),
        Some(name) => {
            let row = state.policy.prices.get(name).filter(|p| p.routes.contains(&a.route));
            row.map(Some).ok_or(Refusal::PriceNotForRoute)
        }
    }
}

/// What an authorised request holds until it is settled: its ceilings, and what the tokens within them may cost.
fn account(
    grant: &Grant,
    token: Option<TokenId>,
    a: &Authorise,
    rates: Option<Rates>,
    at: Timestamp,
) -> Account {
    let mut account = Account {
        client: grant.id.clone(),
        token,
        team: grant.team.clone(),
        route: a.route.clone(),
        at,
        hold: Hold { bytes: a.body_bytes_max.saturating_add(a.response_bytes_max), money: 0 },
        rates,
        ceilings: (0, 0),
    };
    let (input, output) = account.tokens_in_bytes((a.body_bytes_max, a.response_bytes_max));
    let (input, output) =
        rates.map_or((input, output), |r| (input.min(r.input_max), output.min(r.output_max)));
    account.ceilings = (a.tokens_in_max.min(input), a.tokens_out_max.min(output));
    account.hold.money = rates.map_or(0, |r| r.cost_at_most(account.ceilings.0, account.ceilings.1));
    account
}
