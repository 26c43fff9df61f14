//! Pools, authorisations, settlements: nonces, rates and budgets hold exactly, cluster-wide, because they are decided here.
use super::metering::{CredentialUse, HOLD_MS, Pair};
use super::{Run, State};
use crate::command::{
    Alarm, Authorise, ClientCommand, ClientSigned, Ended, OpenPool, PROBE_GRANT_MS_MAX, Report, SIZE_BUCKET,
    Settlement, SignedProbeGrant,
};
use crate::crypto::{Hash, PublicKey};
use crate::ids::{ClientId, ConnectionId, NodeId, RequestId, RouteId, Timestamp};
use crate::leaf::{AnomalyRule, LeafBody, Outcome};
use crate::policy::{Grant, IN_FLIGHT_MAX, REQUEST_LIFETIME_MS_MAX, Route};
use crate::refusal::Refusal;
use crate::rendezvous;
use crate::tlog::LeafIndex;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_attest::evidence::BootKeys;
use std::collections::{BTreeMap, BTreeSet};

/// Pools one client may hold open at a time.
const POOLS_PER_CLIENT_MAX: u32 = 256;
const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;

/// An authorised set of connections.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Pool {
    /// Whose.
    pub client: ClientId,
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
    /// Whose.
    pub client: ClientId,
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
    /// Bytes reserved in the client's budget.
    pub reserved: u64,
    /// The day of the reservation.
    pub day: u64,
    /// The relay's word: bytes up and down, end.
    pub settled: Option<(u64, u64, Ended)>,
    /// The client's word: tokens in and out, end.
    pub reported: Option<(u64, u64, Ended)>,
    /// What it used of a credential; `None` on a route without one.
    pub credential: Option<CredentialUse>,
}

/// What a client used; windows are UTC minutes and days of entry time.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Usage {
    /// Minute since the epoch.
    pub minute: u64,
    /// Requests in it.
    pub minute_requests: u64,
    /// Day since the epoch.
    pub day: u64,
    /// Requests in it.
    pub day_requests: u64,
    /// Settled bytes in it.
    pub day_bytes: u64,
    /// Bytes that running requests of this day may still use.
    pub reserved_bytes: u64,
    /// Running requests.
    pub in_flight: u32,
    /// Open pools.
    pub pools: u32,
}

impl Usage {
    fn roll(&mut self, time: Timestamp) {
        let (minute, day) = (time.0 / MINUTE_MS, time.0 / DAY_MS);
        if self.minute != minute {
            (self.minute, self.minute_requests) = (minute, 0);
        }
        if self.day != day {
            // What still runs was reserved on its own day and is charged there.
            (self.day, self.day_requests, self.day_bytes, self.reserved_bytes) = (day, 0, 0, 0);
        }
    }
}

impl Run<'_> {
    pub(super) fn client_command(&mut self, digest: Hash, c: &ClientSigned) -> Result<Outcome, Refusal> {
        let policy = std::sync::Arc::clone(&self.state.policy);
        let grant = policy.clients.get(&c.client).ok_or(Refusal::UnknownClient)?;
        if !self.state.ahead.take(digest, grant.key) && !c.is_by(self.state.data.genesis, &grant.key) {
            return Err(Refusal::BadSignature);
        }
        if self.state.is_dark() {
            return Err(Refusal::Dark);
        }
        if let ClientCommand::Report(reports) = &c.body {
            return Ok(self.report(&c.client, reports));
        }
        if grant.revoked {
            return Err(Refusal::ClientRevoked);
        }
        if grant.expires <= self.state.data.time {
            return Err(Refusal::ClientExpired);
        }
        match &c.body {
            ClientCommand::OpenPool(p) => self.open_pool(grant, p),
            ClientCommand::Authorise(a) => self.authorise(grant, a),
            ClientCommand::Report(reports) => Ok(self.report(&c.client, reports)),
        }
    }

    fn open_pool(&mut self, grant: &Grant, p: &OpenPool) -> Result<Outcome, Refusal> {
        let state = &*self.state;
        let time = state.data.time;
        let route = state.policy.routes.get(&p.route).ok_or(Refusal::UnknownRoute)?;
        if !grant.routes.contains(&p.route) {
            return Err(Refusal::OutOfScope);
        }
        if p.expires <= time || p.expires > time.plus_ms(state.policy.attestation.pool_lifetime_ms) {
            return Err(Refusal::PoolTooLong);
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
        let usage = self.state.data.usage.entry(grant.id.clone()).or_default();
        if usage.pools >= POOLS_PER_CLIENT_MAX {
            return Err(Refusal::TooManyInFlight);
        }
        usage.pools += 1;
        let pool = Pool {
            client: grant.id.clone(),
            route: p.route.clone(),
            relay: (p.relay, p.relay_boot.clone()),
            keyer: (p.keyer, p.keyer_boot.clone()),
            expires: p.expires,
            used: BTreeSet::new(),
            probe,
        };
        self.state.data.pool_deadlines.insert((p.expires, p.pool));
        self.state.data.pools.insert(p.pool, pool);
        Ok(Outcome::PoolOpened)
    }

    fn authorise(&mut self, grant: &Grant, a: &Authorise) -> Result<Outcome, Refusal> {
        let state = &*self.state;
        let time = state.data.time;
        let pool = state.data.pools.get(&a.pool).filter(|p| p.expires > time).ok_or(Refusal::UnknownPool)?;
        if (&pool.client, &pool.route, pool.relay.0, pool.keyer.0) != (&grant.id, &a.route, a.relay, a.keyer)
        {
            return Err(Refusal::PoolMismatch);
        }
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
        let reserved = reservation(a);
        let settle_ms = state.policy.attestation.settle_ms;
        let leaf = LeafIndex(state.data.tree.size().0);
        let usage = self.state.data.usage.entry(grant.id.clone()).or_default();
        usage.roll(time);
        if usage.minute_requests >= grant.requests_per_minute {
            return Err(Refusal::RateExceeded);
        }
        if usage.day_requests >= grant.requests_per_day {
            return Err(Refusal::RequestBudgetExceeded);
        }
        let bytes = usage.day_bytes.saturating_add(usage.reserved_bytes).saturating_add(reserved);
        if bytes > grant.bytes_per_day {
            return Err(Refusal::ByteBudgetExceeded);
        }
        if usage.in_flight >= IN_FLIGHT_MAX {
            return Err(Refusal::TooManyInFlight);
        }
        if !metered {
            // Last of all, so that what is refused for another reason costs no probe.
            let meter = self.state.data.meters.get_mut(&a.route).ok_or(Refusal::StaleShareEpoch)?;
            meter.probe(pair)?;
        }
        usage.minute_requests += 1;
        usage.day_requests += 1;
        usage.reserved_bytes += reserved;
        usage.in_flight += 1;
        let record = RequestRecord {
            client: grant.id.clone(),
            relay: a.relay,
            keyer: a.keyer,
            leaf,
            expires: a.expires,
            deadline: time.plus_ms(a.duration_ms_max).plus_ms(settle_ms).max(a.expires),
            reserved,
            day: time.0 / DAY_MS,
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
        let time = self.state.data.time;
        let record = self.state.data.requests.get_mut(&s.request).ok_or(Refusal::UnknownRequest)?;
        if record.relay != node {
            return Err(Refusal::NotYours);
        }
        if record.settled.is_some() {
            return Err(Refusal::UnknownRequest);
        }
        record.settled = Some((s.bytes_up, s.bytes_down, s.ended));
        let used = s.bytes_up.saturating_add(s.bytes_down).min(record.reserved);
        let (client, reserved, day) = (record.client.clone(), record.reserved, record.day);
        if let Some(usage) = self.state.data.usage.get_mut(&client) {
            usage.roll(time);
            if usage.day == day {
                usage.reserved_bytes = usage.reserved_bytes.saturating_sub(reserved);
                usage.day_bytes = usage.day_bytes.saturating_add(used);
            }
            usage.in_flight = usage.in_flight.saturating_sub(1);
        }
        self.void_unreleased(s.request);
        self.compare(s.request);
        Ok(())
    }

    fn report(&mut self, client: &ClientId, reports: &[Report]) -> Outcome {
        let mut refused = Vec::new();
        for (position, r) in reports.iter().enumerate() {
            if let Err(refusal) = self.report_one(client, r) {
                refused.push((position as u16, refusal));
            }
        }
        Outcome::Reported(refused)
    }

    fn report_one(&mut self, client: &ClientId, r: &Report) -> Result<(), Refusal> {
        let record = self.state.data.requests.get_mut(&r.request).ok_or(Refusal::UnknownRequest)?;
        if record.client != *client {
            return Err(Refusal::NotYours);
        }
        if record.reported.is_some() {
            return Err(Refusal::UnknownRequest);
        }
        record.reported = Some((r.tokens_in, r.tokens_out, r.ended));
        self.meter_report(client, r);
        self.compare(r.request);
        Ok(())
    }

    /// Once both halves are there: flag what does not fit, and keep only the nonce.
    fn compare(&mut self, request: RequestId) {
        let time = self.state.data.time;
        let Some(record) = self.state.data.requests.get_mut(&request) else { return };
        let (Some((up, down, relay_end)), Some((tokens_in, tokens_out, client_end))) =
            (record.settled, record.reported)
        else {
            return;
        };
        let (old, mut expires) = (record.deadline, record.expires);
        if record.credential.as_ref().is_some_and(|used| used.fault.is_some()) {
            // As long as its fault may be held: a repetition, or the keyer's word, can still make it void.
            expires = expires.max(time.plus_ms(HOLD_MS));
        }
        record.deadline = expires;
        // A token has at least a byte; a chat template may add some that the body does not hold.
        let exceeds =
            tokens_out > down.saturating_add(SIZE_BUCKET) || tokens_in > up.saturating_add(SIZE_BUCKET);
        let differ = relay_end == Ended::Complete && client_end == Ended::Truncated;
        self.state.data.request_deadlines.remove(&(old, request));
        self.state.data.request_deadlines.insert((expires, request));
        if exceeds {
            self.leaf(time, LeafBody::Anomaly { request, rule: AnomalyRule::TokensExceedBytes });
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
            if let Some(p) = self.state.data.pools.remove(&pool)
                && let Some(usage) = self.state.data.usage.get_mut(&p.client)
            {
                usage.pools = usage.pools.saturating_sub(1);
            }
        }
        while let Some(&(deadline, request)) =
            self.state.data.request_deadlines.first().filter(|(t, _)| *t <= time)
        {
            self.state.data.request_deadlines.remove(&(deadline, request));
            let Some(record) = self.state.data.requests.remove(&request) else { continue };
            let pair = Pair { relay: record.relay, keyer: record.keyer };
            if let (Some(used), None) = (&record.credential, record.reported) {
                self.meter_unreported(&record.client, pair, used);
            }
            if record.settled.is_some() && record.reported.is_some() {
                continue;
            }
            if record.settled.is_none()
                && let Some(usage) = self.state.data.usage.get_mut(&record.client)
            {
                // Nobody knows what it used: it is charged what it reserved.
                usage.roll(time);
                if usage.day == record.day {
                    usage.reserved_bytes = usage.reserved_bytes.saturating_sub(record.reserved);
                    usage.day_bytes = usage.day_bytes.saturating_add(record.reserved);
                }
                usage.in_flight = usage.in_flight.saturating_sub(1);
            }
            let (relay, client) = (record.settled.is_none(), record.reported.is_none());
            self.leaf(time, LeafBody::Unsettled { request, relay, client });
            // A client that died says nothing about a relay that settled; a relay that keeps silent may hide an answer, unless
            // the client saw one, or already reported a fault.
            let silent = |end: Ended| end == Ended::Cancelled;
            let unanswered = record.reported.is_none_or(|(_, _, end)| silent(end));
            if let Some(used) = &record.credential
                && used.metered
                && relay
                && unanswered
                && !used.answered
                && used.fault.is_none()
            {
                self.meter_unsettled(record.client.clone(), request, pair, used);
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

/// What an authorised request holds of its client's budget until it is settled.
fn reservation(a: &Authorise) -> u64 {
    a.body_bytes_max.saturating_add(a.response_bytes_max)
}
