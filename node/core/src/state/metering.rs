//! Faults of a credential, metered (DESIGN section 3). A hostile relay or keyer can flip chosen bits of a provider key and learn
//! from the failure whether it guessed right; so a failure costs it a client, and three cost it the pair.
//!
//! A *credential* is a route's key in one share epoch; there is one [`Meter`] for each. A *pair* is (relay, keyer).
//!
//! ```text
//! answer fault       401, 403, 400 or another 4xx, not in the API's own form      counts at once
//! 400 in that form   may be the application's own: held 60 s                      repeated over a disjoint pair with the
//!                                                                                  same answer: cancelled, else counts
//! answerless fault   alert, close, no settlement, and what a gateway says while   held 60 s; void when disjoint pairs show
//!                    its API is down (408, 425, 429, 5xx, not in that form)        them within 60 s of it, or when a node of
//!                                                                                  the pair was interrupted, or a quorum was
//!                                                                                  lost, or nothing was released
//! ```
//! One client counts once per pair; from its fault on, held or counted, it is barred there ([`Refusal::PairBarred`]). Three
//! clients suspend the pair ([`Refusal::PairSuspended`]), provisionally while some of the three are held. Counted faults of
//! three clients on two pairs freeze the credential ([`Refusal::CredentialFrozen`]). It ends with a new share epoch, or when
//! admins raise the credential's `lifted`.
//!
//! Disjoint pairs show them: the pairs with answerless faults within 60 s have no node in common, as two disjoint pairs have
//! none, and as three of three nodes have none where one of four is down. Then it is the provider, for whatever pair falls into
//! that minute.
//!
//! Nothing released: the keyer says that it never answered (`HeadRefused`, [`NodeCommand::Unanswered`]) and the relay that it
//! sent nothing. Neither word alone is believed, nor the relay's through the client.
//!
//! Which adversary: one hostile node, or one hostile client. A node's faults are all on pairs with itself, so alone it can never
//! make its own void; a client that helps it could, and those two are outside the promise. An honest client's trouble elsewhere
//! in the very minute does it too: what a node does then goes unmetered. A node may restart or lapse on purpose to have its
//! faults excused: that works [`INTERRUPTIONS_MAX`] times per share epoch, each in the log. A client that lies is one client.
//!
//! Not seen here: a fault that a client never reports, and a request the application gave up (`Cancelled`), unless the relay
//! keeps silent as well. How many requests of one client are in flight over a pair when its first fault comes is the pool's
//! matter; each of them is a try.
//!
//! Memory is bounded: at most 42 pairs of 7 members with [`REMEMBERED_PER_PAIR_MAX`] clients each, per credential.
use super::{RequestRecord, Run};
#[cfg(doc)]
use crate::command::NodeCommand;
use crate::command::{Ended, Report};
use crate::ids::{ClientId, NodeId, RequestId, RouteId, Timestamp};
use crate::leaf::{AnomalyRule, LeafBody};
use crate::policy::Policy;
use crate::refusal::Refusal;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// Probes over one pair in one share epoch: each lets a hostile node of the pair try once more, unmetered.
pub const PROBES_PER_PAIR_MAX: u32 = 8;
/// How long a fault is held, and how near a disjoint pair's fault makes it void.
pub const HOLD_MS: u64 = 60_000;
/// Clients whose faults suspend a pair.
pub const SUSPENDING_CLIENTS: usize = 3;
/// Clients whose counted faults, on [`FREEZING_PAIRS`] pairs or more, freeze a credential.
pub const FREEZING_CLIENTS: usize = 3;
/// See [`FREEZING_CLIENTS`].
pub const FREEZING_PAIRS: usize = 2;
/// How many interruptions of one node (a crash, a lapse) excuse its faults in one share epoch. A machine that fails more often
/// between two rotations is better suspended, and a hostile one has no more tries than that.
pub const INTERRUPTIONS_MAX: u32 = 16;
/// Faults remembered per pair, held or counted: three decide, the rest leaves room for some that turn out void.
pub const REMEMBERED_PER_PAIR_MAX: usize = 8;

/// A relay and a keyer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub struct Pair {
    /// Share B.
    pub relay: NodeId,
    /// Share A.
    pub keyer: NodeId,
}

impl Pair {
    /// Whether no node is in both: what one does, no node of the other can have done.
    pub fn disjoint(self, other: Self) -> bool {
        self.nodes().is_disjoint(&other.nodes())
    }
    fn nodes(self) -> BTreeSet<NodeId> {
        BTreeSet::from([self.relay, self.keyer])
    }
}

/// What kind of fault a report shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum FaultKind {
    /// The provider refused the key, or what came with it.
    Answer,
    /// A 400 in the API's own form.
    OwnForm400,
    /// No answer of the API's.
    Answerless,
}

impl FaultKind {
    /// What a client's report says about the credential.
    pub fn of(report: &Report) -> Option<Self> {
        match (report.status, report.error_form) {
            // What the application gave up proves nothing. That a head was refused is the relay's word, until the keyer says so.
            (0, _) => match report.ended {
                Ended::Cancelled => None,
                Ended::Complete
                | Ended::HeadRefused
                | Ended::Unreachable
                | Ended::Truncated
                | Ended::CeilingReached
                | Ended::MeshFailure
                | Ended::TimedOut => Some(Self::Answerless),
            },
            (400, true) => Some(Self::OwnForm400),
            (400 | 401 | 403, _) => Some(Self::Answer),
            (400..=599, true) => None,
            // What a gateway says for an API that is down or busy. A node could provoke it with a key that is none, so it is a
            // fault; but an outage shows the same on every pair.
            (408 | 425 | 429 | 500..=599, false) => Some(Self::Answerless),
            (400..=499, false) => Some(Self::Answer),
            _ => None,
        }
    }
}

/// What a metered request remembers.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct CredentialUse {
    /// Whose credential.
    pub route: RouteId,
    /// Its share epoch.
    pub share_epoch: u32,
    /// How often it had been lifted.
    pub lifted: u32,
    /// When it was authorised: a node whose attestation did not begin by then, or ended since, was interrupted.
    pub authorised: Timestamp,
    /// Not for a probe.
    pub metered: bool,
    /// Whether its client saw an answer.
    pub answered: bool,
    /// Whether its keyer says that it never answered.
    pub denied: bool,
    /// What its client's report shows.
    pub fault: Option<FaultKind>,
}

/// A fault, as the state hands it over.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) pair: Pair,
    pub(super) client: ClientId,
    pub(super) request: RequestId,
    pub(super) authorised: Timestamp,
    pub(super) kind: FaultKind,
}

/// Whether something else than the credential explains a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupted {
    /// Nothing does.
    Nothing,
    /// This node of the pair was not attested all the time.
    Node(NodeId),
    /// The pair was, but fewer than a quorum: nothing could be certified, so nothing was released. Neither of the pair brings
    /// that about.
    Mesh,
}

/// What became of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts.
    Counted(RequestId),
    /// A node was interrupted.
    Excused(RequestId),
    /// Disjoint pairs show it too.
    Elsewhere(RequestId),
    /// Nothing was released.
    Unreleased(RequestId),
    /// That was the third client.
    Suspended(Pair),
    /// The credential is frozen.
    Frozen,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Held {
    request: RequestId,
    at: Timestamp,
    authorised: Timestamp,
    kind: FaultKind,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct PairMeter {
    counted: BTreeMap<ClientId, (RequestId, FaultKind)>,
    held: BTreeMap<ClientId, Held>,
    suspended: bool,
    /// Entry time of the newest answerless fault, void ones included.
    answerless: Option<Timestamp>,
    probes: u32,
}

impl PairMeter {
    fn clients(&self) -> usize {
        self.counted.keys().chain(self.held.keys()).collect::<BTreeSet<_>>().len()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Interruptions {
    count: u32,
    /// Faults excused up to then belong to one interruption.
    until: Timestamp,
}

/// The faults of one credential.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Meter {
    share_epoch: u32,
    lifted: u32,
    frozen: bool,
    pairs: BTreeMap<Pair, PairMeter>,
    interruptions: BTreeMap<NodeId, Interruptions>,
    /// When answerless faults last showed on pairs without a node in common.
    outage: Option<Timestamp>,
}

/// The defences, in one place. There is one value, [`RULES`]; a test switches one off to show that its attack succeeds then.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// A client's fault bars it from the pair.
    bars: bool,
    /// One client counts once.
    clients_once: bool,
    /// Three clients suspend a pair, and more freeze.
    limits: bool,
    /// Answerless faults are held, and void when pairs without a node in common show them.
    elsewhere: bool,
    /// A node that was interrupted is excused, so often.
    interruptions_max: u32,
    /// Nobody answers for what happened while fewer than a quorum were attested.
    quorum_lost: bool,
    /// A 400 in the API's own form is held for its repetition.
    repeats: bool,
    /// Only a disjoint pair's repetition cancels.
    disjoint_repeats: bool,
}

const RULES: Rules = Rules {
    bars: true,
    clients_once: true,
    limits: true,
    elsewhere: true,
    interruptions_max: INTERRUPTIONS_MAX,
    quorum_lost: true,
    repeats: true,
    disjoint_repeats: true,
};

impl Meter {
    fn new(share_epoch: u32, lifted: u32) -> Self {
        Self {
            share_epoch,
            lifted,
            frozen: false,
            pairs: BTreeMap::new(),
            interruptions: BTreeMap::new(),
            outage: None,
        }
    }

    /// Whether metering froze the credential. Admins may have as well: that stands in the policy.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }
    /// Pairs that are suspended.
    pub fn suspended(&self) -> impl Iterator<Item = Pair> + '_ {
        self.pairs.iter().filter(|(_, m)| m.suspended).map(|(p, _)| *p)
    }
    /// Counted faults, by pair.
    pub fn counted(&self) -> impl Iterator<Item = (Pair, usize)> + '_ {
        self.pairs.iter().map(|(p, m)| (*p, m.counted.len()))
    }
    /// Whether the credential may be used over this pair by anybody.
    pub fn usable(&self, pair: Pair) -> Result<(), Refusal> {
        if self.frozen {
            return Err(Refusal::CredentialFrozen);
        }
        match self.pairs.get(&pair) {
            // Three clients, some of them held: suspended for as long as that stays so.
            Some(m) if m.suspended || m.clients() >= SUSPENDING_CLIENTS => Err(Refusal::PairSuspended),
            _ => Ok(()),
        }
    }
    /// Whether this client may use the credential over this pair.
    pub fn usable_by(&self, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
        self.usable_under(&RULES, pair, client)
    }
    fn usable_under(&self, rules: &Rules, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
        self.usable(pair)?;
        let barred = |m: &PairMeter| m.counted.contains_key(client) || m.held.contains_key(client);
        if rules.bars && self.pairs.get(&pair).is_some_and(barred) {
            Err(Refusal::PairBarred)
        } else {
            Ok(())
        }
    }

    /// One more probe over this pair.
    pub(super) fn probe(&mut self, pair: Pair) -> Result<(), Refusal> {
        let meter = self.pairs.entry(pair).or_default();
        if meter.probes >= PROBES_PER_PAIR_MAX {
            return Err(Refusal::ProbesExhausted);
        }
        meter.probes += 1;
        Ok(())
    }

    /// Takes a fault. `interrupted` tells which node of a pair was not attested all the time since a moment.
    fn fault(
        &mut self,
        rules: &Rules,
        now: Timestamp,
        fault: Fault,
        interrupted: &dyn Fn(Pair, Timestamp) -> Interrupted,
        verdicts: &mut Vec<Verdict>,
    ) {
        let Fault { pair, client, request, authorised, kind } = fault;
        if kind == FaultKind::Answerless && rules.elsewhere {
            let excused = self.excuse(rules, interrupted(pair, authorised), now);
            self.pairs.entry(pair).or_default().answerless = Some(now);
            let near = |at: Timestamp| now.since_ms(at) <= HOLD_MS;
            if self.nobody_alone(near) {
                self.outage = Some(now);
                for meter in self.pairs.values_mut() {
                    meter.held.retain(|_, held| {
                        let void = held.kind == FaultKind::Answerless && near(held.at);
                        if void {
                            verdicts.push(Verdict::Elsewhere(held.request));
                        }
                        !void
                    });
                }
            }
            if excused {
                return verdicts.push(Verdict::Excused(request));
            }
            if self.outage.is_some_and(near) {
                return verdicts.push(Verdict::Elsewhere(request));
            }
        }
        let meter = self.pairs.entry(pair).or_default();
        let client = if rules.clients_once { client } else { distinct(request) };
        if meter.counted.contains_key(&client) {
            return;
        }
        let holds = match kind {
            FaultKind::Answer => false,
            FaultKind::OwnForm400 => rules.repeats,
            FaultKind::Answerless => rules.elsewhere,
        };
        if !holds {
            meter.held.remove(&client);
            self.count(rules, pair, client, request, kind, verdicts);
        } else if meter.held.len() + meter.counted.len() < REMEMBERED_PER_PAIR_MAX {
            meter.held.entry(client).or_insert(Held { request, at: now, authorised, kind });
        }
    }

    /// Whether the pairs that showed answerless faults lately have no node in common: then no node can have done it alone.
    fn nobody_alone(&self, near: impl Fn(Timestamp) -> bool) -> bool {
        let lately = self.pairs.iter().filter(|(_, m)| m.answerless.is_some_and(&near)).map(|(p, _)| *p);
        let common = lately.map(Pair::nodes).reduce(|a, b| a.intersection(&b).copied().collect());
        common.is_some_and(|nodes| nodes.is_empty())
    }

    fn count(
        &mut self,
        rules: &Rules,
        pair: Pair,
        client: ClientId,
        request: RequestId,
        kind: FaultKind,
        verdicts: &mut Vec<Verdict>,
    ) {
        let meter = self.pairs.entry(pair).or_default();
        if meter.counted.len() >= REMEMBERED_PER_PAIR_MAX {
            return;
        }
        meter.counted.insert(client, (request, kind));
        verdicts.push(Verdict::Counted(request));
        if !rules.limits {
            return;
        }
        if !meter.suspended && meter.counted.len() >= SUSPENDING_CLIENTS {
            meter.suspended = true;
            verdicts.push(Verdict::Suspended(pair));
        }
        let faulty = self.pairs.values().filter(|m| !m.counted.is_empty());
        let pairs = faulty.clone().count();
        let clients: BTreeSet<&ClientId> = faulty.flat_map(|m| m.counted.keys()).collect();
        if !self.frozen && clients.len() >= FREEZING_CLIENTS && pairs >= FREEZING_PAIRS {
            self.frozen = true;
            verdicts.push(Verdict::Frozen);
        }
    }

    /// Whether an interruption excuses a fault; faults within one hold are of one interruption of a node.
    fn excuse(&mut self, rules: &Rules, interrupted: Interrupted, now: Timestamp) -> bool {
        let node = match interrupted {
            Interrupted::Nothing => return false,
            Interrupted::Mesh => return rules.quorum_lost,
            Interrupted::Node(node) => node,
        };
        let record =
            self.interruptions.entry(node).or_insert(Interruptions { count: 0, until: Timestamp(0) });
        if now > record.until {
            if record.count >= rules.interruptions_max {
                return false;
            }
            record.count += 1;
            record.until = now.plus_ms(HOLD_MS);
        }
        true
    }

    /// A repetition over `by` was answered alike: forgets this client's fault over a disjoint pair.
    fn cancel(&mut self, rules: &Rules, client: &ClientId, first: RequestId, by: Pair) -> bool {
        let mut cancelled = false;
        for (pair, meter) in &mut self.pairs {
            if rules.disjoint_repeats && !pair.disjoint(by) {
                continue;
            }
            let own = |request, kind| request == first && kind == FaultKind::OwnForm400;
            if meter.held.get(client).is_some_and(|h| own(h.request, h.kind)) {
                meter.held.remove(client);
                cancelled = true;
            }
            if meter.counted.get(client).is_some_and(|(r, k)| own(*r, *k)) {
                meter.counted.remove(client);
                cancelled = true;
            }
        }
        cancelled
    }

    /// Keyer and relay both say that nothing was released: forgets the fault, if it is still held.
    fn unreleased(&mut self, client: &ClientId, request: RequestId, pair: Pair) -> bool {
        let Some(meter) = self.pairs.get_mut(&pair) else { return false };
        let own = meter.held.get(client).is_some_and(|h| h.request == request);
        own && meter.held.remove(client).is_some()
    }

    /// Decides on what was held long enough.
    fn release(
        &mut self,
        rules: &Rules,
        now: Timestamp,
        interrupted: &dyn Fn(Pair, Timestamp) -> Interrupted,
        verdicts: &mut Vec<Verdict>,
    ) {
        let due = |h: &Held| now.since_ms(h.at) > HOLD_MS;
        let mut over: Vec<(Timestamp, Pair, ClientId)> = Vec::new();
        for (pair, meter) in &self.pairs {
            over.extend(meter.held.iter().filter(|(_, h)| due(h)).map(|(c, h)| (h.at, *pair, c.clone())));
        }
        over.sort();
        for (_, pair, client) in over {
            let Some(held) = self.pairs.get_mut(&pair).and_then(|m| m.held.remove(&client)) else { continue };
            let excused = held.kind == FaultKind::Answerless
                && self.excuse(rules, interrupted(pair, held.authorised), now);
            if excused {
                verdicts.push(Verdict::Excused(held.request));
            } else {
                self.count(rules, pair, client, held.request, held.kind, verdicts);
            }
        }
    }

    /// When the next held fault is decided.
    fn next_due(&self) -> Option<Timestamp> {
        let held = self.pairs.values().flat_map(|m| m.held.values());
        held.map(|h| h.at.plus_ms(HOLD_MS).plus_ms(1)).min()
    }

    /// Admins lifted what was imposed. Probes and interruptions are of the share epoch, and stay.
    fn lift(&mut self, lifted: u32) {
        (self.lifted, self.frozen, self.outage) = (lifted, false, None);
        for meter in self.pairs.values_mut() {
            *meter = PairMeter { probes: meter.probes, ..PairMeter::default() };
        }
    }
}

/// For a test that lets one client count more than once.
fn distinct(request: RequestId) -> ClientId {
    match ClientId::new(request.to_string()) {
        Ok(id) => id,
        Err(e) => unreachable!("32 hex digits are a name: {e}"),
    }
}

/// The meters that a policy needs: what goes on in one share epoch goes on, everything else begins anew.
pub(super) fn meters(old: &BTreeMap<RouteId, Meter>, policy: &Policy) -> BTreeMap<RouteId, Meter> {
    let keyed = policy.routes.values().filter_map(|r| Some((&r.id, r.credential.as_ref()?)));
    keyed
        .map(|(id, c)| {
            let meter = match old.get(id).filter(|m| m.share_epoch == c.share_epoch) {
                Some(meter) if meter.lifted == c.lifted => meter.clone(),
                Some(meter) => {
                    let mut meter = meter.clone();
                    meter.lift(c.lifted);
                    meter
                }
                None => Meter::new(c.share_epoch, c.lifted),
            };
            (id.clone(), meter)
        })
        .collect()
}

/// When the next held fault of any credential is decided.
pub(super) fn next_due(meters: &BTreeMap<RouteId, Meter>) -> Option<Timestamp> {
    meters.values().filter_map(Meter::next_due).min()
}

impl Run<'_> {
    /// What a client's report says about its credential.
    pub(super) fn meter_report(&mut self, client: &ClientId, report: &Report) {
        let Some(record) = self.state.data.requests.get_mut(&report.request) else { return };
        let pair = Pair { relay: record.relay, keyer: record.keyer };
        let Some(used) = record.credential.as_mut() else { return };
        used.answered = report.status != 0;
        used.fault = FaultKind::of(report);
        let used = used.clone();
        if used.metered && used.fault == Some(FaultKind::Answerless) && nothing_released(record) {
            return self.metered(&used.route, used.share_epoch, vec![Verdict::Unreleased(report.request)]);
        }
        let (Some(kind), true) = (used.fault, used.metered) else { return };
        if let (FaultKind::OwnForm400, Some(first)) = (kind, report.same_as)
            && self.repeated(client, first, pair, &used)
        {
            return;
        }
        self.meter_fault(client.clone(), report.request, pair, kind, &used);
    }

    /// Whether `first` was this client's, over a disjoint pair, and answered by a 400 of the API's own as well. Its fault is
    /// forgotten then. The record says so even where the meter held another fault of that client in its place.
    fn repeated(&mut self, client: &ClientId, first: RequestId, pair: Pair, used: &CredentialUse) -> bool {
        let data = &mut self.state.data;
        let Some(meter) = meter_of(&mut data.meters, used) else { return false };
        let metered = meter.cancel(&RULES, client, first, pair);
        let recorded = data.requests.get(&first).is_some_and(|r| {
            r.client == *client
                && Pair { relay: r.relay, keyer: r.keyer }.disjoint(pair)
                && r.credential.as_ref().is_some_and(|u| {
                    (&u.route, u.share_epoch, u.fault)
                        == (&used.route, used.share_epoch, Some(FaultKind::OwnForm400))
                })
        });
        metered || recorded
    }

    /// A node says that it never answered for a request as its keyer.
    pub(super) fn keyer_denies(&mut self, node: NodeId, request: RequestId) {
        let record = self.state.data.requests.get_mut(&request).filter(|r| r.keyer == node);
        if let Some(used) = record.and_then(|r| r.credential.as_mut()) {
            used.denied = true;
            self.void_unreleased(request);
        }
    }

    /// Once keyer and relay both say that nothing was released, the request's fault is forgotten, if it is still held.
    pub(super) fn void_unreleased(&mut self, request: RequestId) {
        let data = &mut self.state.data;
        let Some(record) = data.requests.get(&request).filter(|r| nothing_released(r)) else { return };
        let pair = Pair { relay: record.relay, keyer: record.keyer };
        let Some(used) = record.credential.clone() else { return };
        let meter = meter_of(&mut data.meters, &used);
        if meter.is_some_and(|m| m.unreleased(&record.client, request, pair)) {
            self.metered(&used.route, used.share_epoch, vec![Verdict::Unreleased(request)]);
        }
    }

    /// A request was never settled by its relay, and its client saw no answer either.
    pub(super) fn meter_unsettled(
        &mut self,
        client: ClientId,
        request: RequestId,
        pair: Pair,
        used: &CredentialUse,
    ) {
        self.meter_fault(client, request, pair, FaultKind::Answerless, used);
    }

    fn meter_fault(
        &mut self,
        client: ClientId,
        request: RequestId,
        pair: Pair,
        kind: FaultKind,
        used: &CredentialUse,
    ) {
        let data = &mut self.state.data;
        let Some(meter) = meter_of(&mut data.meters, used) else { return };
        let fault = Fault { pair, client, request, authorised: used.authorised, kind };
        let mut verdicts = Vec::new();
        let (nodes, quorum) = (&data.nodes, self.state.policy.quorum());
        meter.fault(
            &RULES,
            data.time,
            fault,
            &|p, since| interrupted(nodes, quorum, p, since),
            &mut verdicts,
        );
        self.metered(&used.route, used.share_epoch, verdicts);
    }

    /// What was held long enough by this entry's time is decided.
    pub(super) fn release_faults(&mut self) {
        let data = &mut self.state.data;
        let (time, nodes, quorum) = (data.time, &data.nodes, self.state.policy.quorum());
        let mut decided = Vec::new();
        for (route, meter) in &mut data.meters {
            let mut verdicts = Vec::new();
            meter.release(&RULES, time, &|p, since| interrupted(nodes, quorum, p, since), &mut verdicts);
            decided.push((route.clone(), meter.share_epoch, verdicts));
        }
        for (route, share_epoch, verdicts) in decided {
            self.metered(&route, share_epoch, verdicts);
        }
    }

    fn metered(&mut self, route: &RouteId, share_epoch: u32, verdicts: Vec<Verdict>) {
        let time = self.state.data.time;
        for verdict in verdicts {
            let anomaly = |request, rule| LeafBody::Anomaly { request, rule };
            let body = match verdict {
                Verdict::Counted(request) => anomaly(request, AnomalyRule::CredentialFault),
                Verdict::Excused(request) => anomaly(request, AnomalyRule::FaultOfInterruptedNode),
                Verdict::Elsewhere(request) => anomaly(request, AnomalyRule::FaultElsewhereToo),
                Verdict::Unreleased(request) => anomaly(request, AnomalyRule::FaultBeforeRelease),
                Verdict::Suspended(Pair { relay, keyer }) => {
                    LeafBody::PairSuspended { route: route.clone(), share_epoch, relay, keyer }
                }
                Verdict::Frozen => LeafBody::CredentialFrozen { route: route.clone(), share_epoch },
            };
            self.leaf(time, body);
        }
    }
}

/// Whether keyer and relay both say that no hole was filled. One of them is honest: a hostile relay cannot make the keyer say
/// so, and what a hostile keyer filled with, an honest relay has sent.
fn nothing_released(record: &RequestRecord) -> bool {
    let denied = record.credential.as_ref().is_some_and(|used| used.denied);
    denied && record.settled.is_some_and(|(up, _, _)| up == 0)
}

/// The meter of what a request used; none once the credential is another, or was lifted since.
fn meter_of<'a>(meters: &'a mut BTreeMap<RouteId, Meter>, used: &CredentialUse) -> Option<&'a mut Meter> {
    let same = |m: &&mut Meter| (m.share_epoch, m.lifted) == (used.share_epoch, used.lifted);
    meters.get_mut(&used.route).filter(same)
}

/// Who was not attested, by the same boot keys, all the time since.
fn interrupted(
    nodes: &BTreeMap<NodeId, super::NodeRecord>,
    quorum: usize,
    pair: Pair,
    since: Timestamp,
) -> Interrupted {
    let steady = nodes.iter().filter(|(_, r)| r.attested_since().is_some_and(|from| from <= since));
    interruption(&steady.map(|(n, _)| *n).collect(), quorum, pair)
}

/// A node of the pair comes first: it can interrupt itself at will, and where three of three make a quorum that would otherwise
/// excuse it for ever.
fn interruption(steady: &BTreeSet<NodeId>, quorum: usize, pair: Pair) -> Interrupted {
    match [pair.relay, pair.keyer].into_iter().find(|n| !steady.contains(n)) {
        Some(node) => Interrupted::Node(node),
        None if steady.len() < quorum => Interrupted::Mesh,
        None => Interrupted::Nothing,
    }
}

#[cfg(test)]
mod tests;
