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
//! One client counts once per pair; from its fault on, held or counted, it is barred there ([`Refusal::PairBarred`]). All its
//! faults are held, so that what makes one void launders no other. Three clients suspend the pair ([`Refusal::PairSuspended`]),
//! provisionally while some of the three are held. Counted answers of three clients over pairs without a common node freeze the
//! credential ([`Refusal::CredentialFrozen`]); where the pairs have a node in common, it can have done it alone, and its pairs
//! are suspended instead. Answerless faults never freeze. It ends with a new share epoch, or when admins raise the credential's
//! `lifted`.
//!
//! Disjoint pairs show them: the pairs with answerless faults within 60 s have no node in common, as two disjoint pairs have
//! none, and as three of three nodes have none where one of four is down. Then it is the provider. The clients stay barred for
//! the minute all the same, and a pair's faults are void [`VOIDS_PER_PAIR_MAX`] times in a share epoch. Answerless faults that
//! count over pairs without a common node, however far apart, are void as well, out of the same budget. When it is used up, an
//! outage suspends pairs until admins lift it.
//!
//! Nothing released: the keyer says that it never answered (`HeadRefused`, [`NodeCommand::Unanswered`]) and the relay that it
//! sent nothing. Neither word alone is believed, nor the relay's through the client. It shows nothing of other pairs, nor does
//! what is excused.
//!
//! Which adversary: one hostile node, or one hostile client. A node's faults are all on pairs with itself, so alone it can never
//! make its own void; a client that helps it could, and those two are outside the promise. An honest client's trouble elsewhere
//! in the very minute does it too, within the budget. A node may restart or lapse on purpose to have its faults excused: that
//! works for one fault of each client over each pair, [`EXCUSED_PER_NODE_MAX`] times per share epoch, each in the log; a crash
//! under several requests of one client bars it, as any fault does. A client that lies is one client.
//!
//! The leak bound: before a client's first fault shows, a hostile node has tried at most [`OPEN_PER_PAIR_MAX`] requests of that
//! client over a pair, for no more are open, that is authorised and not yet reported ([`Refusal::PairBusy`]). A relay that keeps
//! answers back until the application gives up (`Cancelled`) has [`STALLS_MAX`] - 1 more of each client and pair.
//!
//! Not seen here: a fault that a client lies about.
//!
//! Memory is bounded: at most 42 pairs of 7 members, per credential; for each [`REMEMBERED_PER_PAIR_MAX`] clients that count,
//! [`HELD_PER_PAIR_MAX`] held faults, and two numbers for each client of the policy. Held faults beyond that are dropped: it
//! takes eight clients with all that they may have open.
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
/// Clients whose counted answers, on two pairs or more, freeze a credential, or suspend the node that all those pairs share.
pub const FREEZING_CLIENTS: usize = 3;
/// How many faults the interruptions (a crash, a lapse) of one node excuse in one share epoch. A machine that fails more often
/// between two rotations is better suspended, and a hostile one has no more tries than that.
pub const EXCUSED_PER_NODE_MAX: u32 = 64;
/// Clients that are excused over one pair in one share epoch, each once.
pub const EXCUSED_PER_PAIR_MAX: usize = 64;
/// How often faults of one client over one pair are void in one share epoch because other pairs show them: each time is one
/// minute of that client.
pub const VOIDS_PER_PAIR_MAX: u32 = 64;
/// Clients whose faults count over one pair: three decide.
pub const REMEMBERED_PER_PAIR_MAX: usize = 8;
/// Requests of one client over one pair that it has not reported yet: what a hostile node can try before the first fault shows.
pub const OPEN_PER_PAIR_MAX: u32 = 32;
/// Faults of one client over one pair that are held: no more are open once the first bars it.
const HELD_PER_CLIENT_MAX: usize = OPEN_PER_PAIR_MAX as usize;
/// Faults of all clients over one pair that are held.
const HELD_PER_PAIR_MAX: usize = 8 * HELD_PER_CLIENT_MAX;
/// This one of the requests that the application gave up before any answer is a fault, per client and pair, and so are more.
pub const STALLS_MAX: u32 = 8;

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
    at: Timestamp,
    authorised: Timestamp,
    kind: FaultKind,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct PairMeter {
    /// Several of one client only while each may still be cancelled.
    counted: BTreeMap<ClientId, BTreeMap<RequestId, FaultKind>>,
    held: BTreeMap<(ClientId, RequestId), Held>,
    /// By its own clients.
    suspended: bool,
    /// By a node of it, for what the clients of several pairs say.
    distrusted: bool,
    /// The newest answerless fault, those included that other pairs made void.
    answerless: Option<(Timestamp, RequestId)>,
    /// Until when clients stay barred although their fault is void.
    voided: BTreeMap<ClientId, Timestamp>,
    voids: u32,
    excused: BTreeSet<ClientId>,
    /// Requests that their clients have not reported.
    open: BTreeMap<ClientId, u32>,
    /// Requests that were given up before any answer.
    stalled: BTreeMap<ClientId, u32>,
    probes: u32,
}

impl PairMeter {
    fn clients(&self) -> usize {
        self.counted.keys().chain(self.held.keys().map(|(c, _)| c)).collect::<BTreeSet<_>>().len()
    }
    fn holds(&self, client: &ClientId) -> usize {
        self.held.keys().filter(|(c, _)| c == client).count()
    }
    fn bars(&self, client: &ClientId) -> bool {
        self.counted.contains_key(client) || self.holds(client) > 0 || self.voided.contains_key(client)
    }
    fn is_suspended(&self) -> bool {
        self.suspended || self.distrusted
    }
    /// Whether one more fault of this client may be void, for it bars until then; a client's minute costs one.
    fn void(&mut self, rules: &Rules, client: &ClientId, until: Timestamp) -> bool {
        if let Some(barred) = self.voided.get_mut(client) {
            *barred = until.max(*barred);
            return true;
        }
        if self.voids >= rules.voids_max {
            return false;
        }
        self.voids += 1;
        self.voided.insert(client.clone(), until);
        true
    }
}

/// The faults of one credential.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Meter {
    share_epoch: u32,
    lifted: u32,
    /// Who holds shares in this epoch.
    members: BTreeSet<NodeId>,
    frozen: bool,
    pairs: BTreeMap<Pair, PairMeter>,
    /// How many faults the interruptions of a node excused.
    excused: BTreeMap<NodeId, u32>,
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
    /// So many faults of a node that was interrupted are excused.
    excused_max: u32,
    /// A client is excused once per pair.
    excused_once: bool,
    /// So many clients are excused per pair.
    excused_per_pair_max: usize,
    /// So often are faults over one pair void.
    voids_max: u32,
    /// So many requests of one client are open over one pair.
    open_max: u32,
    /// The one of the requests given up that is a fault.
    stalls_max: u32,
    /// Answers over pairs with a common node suspend that node's pairs, and freeze nothing.
    common_node: bool,
    /// What was never answered freezes nothing.
    answers_only: bool,
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
    excused_max: EXCUSED_PER_NODE_MAX,
    excused_once: true,
    excused_per_pair_max: EXCUSED_PER_PAIR_MAX,
    voids_max: VOIDS_PER_PAIR_MAX,
    open_max: OPEN_PER_PAIR_MAX,
    stalls_max: STALLS_MAX,
    common_node: true,
    answers_only: true,
    quorum_lost: true,
    repeats: true,
    disjoint_repeats: true,
};

impl Meter {
    fn new(share_epoch: u32, lifted: u32, members: BTreeSet<NodeId>) -> Self {
        Self { share_epoch, lifted, members, frozen: false, pairs: BTreeMap::new(), excused: BTreeMap::new() }
    }

    /// The share epoch whose faults these are.
    pub fn share_epoch(&self) -> u32 {
        self.share_epoch
    }
    /// Whether metering froze the credential. Admins may have as well: that stands in the policy.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }
    /// Pairs that are suspended.
    pub fn suspended(&self) -> impl Iterator<Item = Pair> + '_ {
        self.pairs.iter().filter(|(_, m)| m.is_suspended()).map(|(p, _)| *p)
    }
    /// Clients whose faults count, by pair.
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
            Some(m) if m.is_suspended() || m.clients() >= SUSPENDING_CLIENTS => Err(Refusal::PairSuspended),
            _ => Ok(()),
        }
    }
    /// Whether this client may use the credential over this pair.
    pub fn usable_by(&self, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
        self.usable_under(&RULES, pair, client)
    }
    fn usable_under(&self, rules: &Rules, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
        self.usable(pair)?;
        if rules.bars && self.pairs.get(&pair).is_some_and(|m| m.bars(client)) {
            Err(Refusal::PairBarred)
        } else {
            Ok(())
        }
    }

    /// Whether this client may have one more request open over this pair.
    pub(super) fn may_open(&self, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
        self.may_open_under(&RULES, pair, client)
    }
    fn may_open_under(&self, rules: &Rules, pair: Pair, client: &ClientId) -> Result<(), Refusal> {
        let open = self.pairs.get(&pair).and_then(|m| m.open.get(client));
        if open.is_some_and(|n| *n >= rules.open_max) { Err(Refusal::PairBusy) } else { Ok(()) }
    }
    /// A request of this client was authorised over this pair.
    pub(super) fn opened(&mut self, pair: Pair, client: &ClientId) {
        *self.pairs.entry(pair).or_default().open.entry(client.clone()).or_default() += 1;
    }
    #[cfg(test)]
    fn open_requests(&self) -> u32 {
        self.pairs.values().flat_map(|m| m.open.values()).sum()
    }
    /// Its client reported it, or never will.
    fn closed(&mut self, pair: Pair, client: &ClientId) {
        let Some(meter) = self.pairs.get_mut(&pair) else { return };
        if let Some(open) = meter.open.get_mut(client) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                meter.open.remove(client);
            }
        }
    }
    /// The application gave a request up before any answer: whether that is one too many.
    fn stalled(&mut self, rules: &Rules, pair: Pair, client: &ClientId) -> bool {
        let stalled = self.pairs.entry(pair).or_default().stalled.entry(client.clone()).or_default();
        *stalled = stalled.saturating_add(1).min(rules.stalls_max);
        *stalled >= rules.stalls_max
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
        let client = if rules.clients_once { client } else { distinct(request) };
        if kind == FaultKind::Answerless && rules.elsewhere {
            if self.excuse(rules, pair, &client, interrupted(pair, authorised)) {
                return verdicts.push(Verdict::Excused(request));
            }
            self.pairs.entry(pair).or_default().answerless = Some((now, request));
            if self.nobody_alone(now) {
                self.void_held(rules, now, verdicts);
                if self.pairs.entry(pair).or_default().void(rules, &client, now.plus_ms(HOLD_MS)) {
                    return verdicts.push(Verdict::Elsewhere(request));
                }
            }
        }
        let holds = match kind {
            FaultKind::Answer => false,
            FaultKind::OwnForm400 => rules.repeats,
            FaultKind::Answerless => rules.elsewhere,
        };
        if !holds {
            return self.count(rules, pair, client, request, kind, verdicts);
        }
        let meter = self.pairs.entry(pair).or_default();
        if meter.held.len() < HELD_PER_PAIR_MAX && meter.holds(&client) < HELD_PER_CLIENT_MAX {
            meter.held.insert((client, request), Held { at: now, authorised, kind });
        }
    }

    /// Whether the pairs that showed answerless faults lately have no node in common: then no node can have done it alone.
    fn nobody_alone(&self, now: Timestamp) -> bool {
        let lately = |m: &PairMeter| m.answerless.is_some_and(|(at, _)| now.since_ms(at) <= HOLD_MS);
        let pairs: Vec<Pair> = self.pairs.iter().filter(|(_, m)| lately(m)).map(|(p, _)| *p).collect();
        !pairs.is_empty() && common(&pairs).is_empty()
    }

    fn void_held(&mut self, rules: &Rules, now: Timestamp, verdicts: &mut Vec<Verdict>) {
        for meter in self.pairs.values_mut() {
            let lately = |h: &Held| h.kind == FaultKind::Answerless && now.since_ms(h.at) <= HOLD_MS;
            let due: Vec<_> =
                meter.held.iter().filter(|(_, h)| lately(h)).map(|(k, h)| (k.clone(), h.at)).collect();
            for (key, at) in due {
                if meter.void(rules, &key.0, at.plus_ms(HOLD_MS)) {
                    meter.held.remove(&key);
                    verdicts.push(Verdict::Elsewhere(key.1));
                }
            }
        }
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
        let known = meter.counted.contains_key(&client);
        if !known && meter.counted.len() >= REMEMBERED_PER_PAIR_MAX {
            return;
        }
        let own = meter.counted.entry(client.clone()).or_default();
        if kind == FaultKind::Answer {
            // Nothing makes it void: the others add nothing.
            own.clear();
            meter.held.retain(|(c, _), _| *c != client);
        } else if own.values().any(|k| *k == FaultKind::Answer) || own.len() >= HELD_PER_CLIENT_MAX {
            return;
        }
        own.insert(request, kind);
        if !known {
            verdicts.push(Verdict::Counted(request));
        }
        if !rules.limits {
            return;
        }
        if !meter.is_suspended() && meter.counted.len() >= SUSPENDING_CLIENTS {
            meter.suspended = true;
            verdicts.push(Verdict::Suspended(pair));
        }
        if kind == FaultKind::Answerless {
            if rules.elsewhere {
                self.void_counted(rules, verdicts);
            }
        } else {
            self.judge_answers(rules, verdicts);
        }
    }

    /// Answers of three clients over pairs without a common node freeze; with one, they suspend all that node's pairs: it can
    /// have done it alone, and must not freeze by that. What was never answered does neither.
    fn judge_answers(&mut self, rules: &Rules, verdicts: &mut Vec<Verdict>) {
        let answers = |kind: &FaultKind| *kind != FaultKind::Answerless || !rules.answers_only;
        let answered = |own: &BTreeMap<RequestId, FaultKind>| own.values().any(answers);
        let mut clients = BTreeSet::new();
        let mut pairs = Vec::new();
        for (pair, meter) in &self.pairs {
            let own: Vec<_> = meter.counted.iter().filter(|(_, own)| answered(own)).map(|(c, _)| c).collect();
            if !own.is_empty() {
                pairs.push(*pair);
                clients.extend(own);
            }
        }
        if self.frozen || pairs.len() < 2 || clients.len() < FREEZING_CLIENTS {
            return;
        }
        let common = common(&pairs);
        if common.is_empty() || !rules.common_node {
            self.frozen = true;
            return verdicts.push(Verdict::Frozen);
        }
        let members = self.members.clone();
        let all = members.iter().flat_map(|r| members.iter().map(|k| Pair { relay: *r, keyer: *k }));
        for pair in all.filter(|p| p.relay != p.keyer && common.is_subset(&p.nodes())) {
            let meter = self.pairs.entry(pair).or_default();
            if !meter.is_suspended() {
                verdicts.push(Verdict::Suspended(pair));
            }
            meter.distrusted = true;
        }
    }

    /// What was never answered over pairs without a common node, however far apart, is the provider's.
    fn void_counted(&mut self, rules: &Rules, verdicts: &mut Vec<Verdict>) {
        let silent = |own: &BTreeMap<RequestId, FaultKind>| own.values().any(|k| *k == FaultKind::Answerless);
        let shows = |m: &PairMeter| m.counted.values().any(silent);
        let pairs: Vec<Pair> = self.pairs.iter().filter(|(_, m)| shows(m)).map(|(p, _)| *p).collect();
        if pairs.is_empty() || !common(&pairs).is_empty() {
            return;
        }
        for meter in self.pairs.values_mut() {
            let PairMeter { counted, voids, .. } = meter;
            counted.retain(|_, own| {
                if silent(own) && *voids < rules.voids_max {
                    *voids += 1;
                    own.retain(|request, kind| {
                        let void = *kind == FaultKind::Answerless;
                        if void {
                            verdicts.push(Verdict::Elsewhere(*request));
                        }
                        !void
                    });
                }
                !own.is_empty()
            });
            meter.suspended &= meter.counted.len() >= SUSPENDING_CLIENTS;
        }
    }

    /// Whether an interruption excuses a fault: one per client and pair, and so many per node.
    fn excuse(&mut self, rules: &Rules, pair: Pair, client: &ClientId, interrupted: Interrupted) -> bool {
        let node = match interrupted {
            Interrupted::Nothing => return false,
            Interrupted::Mesh if rules.quorum_lost => None,
            Interrupted::Mesh => return false,
            Interrupted::Node(node) => Some(node),
        };
        let meter = self.pairs.entry(pair).or_default();
        if rules.excused_once
            && (meter.excused.contains(client) || meter.excused.len() >= rules.excused_per_pair_max)
        {
            return false;
        }
        if let Some(node) = node {
            let excused = self.excused.entry(node).or_default();
            if *excused >= rules.excused_max {
                return false;
            }
            *excused += 1;
        }
        meter.excused.insert(client.clone());
        true
    }

    /// A repetition over `by` was answered alike: forgets this client's fault over a disjoint pair.
    fn cancel(&mut self, rules: &Rules, client: &ClientId, first: RequestId, by: Pair) -> bool {
        let mut cancelled = false;
        let key = (client.clone(), first);
        for (pair, meter) in &mut self.pairs {
            if rules.disjoint_repeats && !pair.disjoint(by) {
                continue;
            }
            if meter.held.get(&key).is_some_and(|h| h.kind == FaultKind::OwnForm400) {
                meter.held.remove(&key);
                cancelled = true;
            }
            if let Some(own) = meter.counted.get_mut(client)
                && own.get(&first) == Some(&FaultKind::OwnForm400)
            {
                own.remove(&first);
                if own.is_empty() {
                    meter.counted.remove(client);
                }
                cancelled = true;
            }
        }
        cancelled
    }

    /// Keyer and relay both say that nothing was released: forgets the fault, if it is still held. It shows nothing of the
    /// provider either.
    fn unreleased(&mut self, client: &ClientId, request: RequestId, pair: Pair) -> bool {
        let Some(meter) = self.pairs.get_mut(&pair) else { return false };
        if meter.answerless.is_some_and(|(_, r)| r == request) {
            let silent =
                meter.held.iter().filter(|((_, r), h)| h.kind == FaultKind::Answerless && *r != request);
            meter.answerless = silent.map(|((_, r), h)| (h.at, *r)).max();
        }
        meter.held.remove(&(client.clone(), request)).is_some()
    }

    /// Decides on what was held long enough.
    fn release(
        &mut self,
        rules: &Rules,
        now: Timestamp,
        interrupted: &dyn Fn(Pair, Timestamp) -> Interrupted,
        verdicts: &mut Vec<Verdict>,
    ) {
        let mut over: Vec<(Timestamp, Pair, (ClientId, RequestId))> = Vec::new();
        for (pair, meter) in &mut self.pairs {
            meter.voided.retain(|_, until| *until >= now);
            let due = meter.held.iter().filter(|(_, h)| now.since_ms(h.at) > HOLD_MS);
            over.extend(due.map(|(key, h)| (h.at, *pair, key.clone())));
        }
        over.sort();
        for (_, pair, key) in over {
            let Some(held) = self.pairs.get_mut(&pair).and_then(|m| m.held.remove(&key)) else { continue };
            let (client, request) = key;
            let excused = held.kind == FaultKind::Answerless
                && self.excuse(rules, pair, &client, interrupted(pair, held.authorised));
            if excused {
                verdicts.push(Verdict::Excused(request));
            } else {
                self.count(rules, pair, client, request, held.kind, verdicts);
            }
        }
    }

    /// When the next held fault is decided, or a bar ends.
    fn next_due(&self) -> Option<Timestamp> {
        let held = self.pairs.values().flat_map(|m| m.held.values().map(|h| h.at.plus_ms(HOLD_MS)));
        let barred = self.pairs.values().flat_map(|m| m.voided.values().copied());
        held.chain(barred).map(|at| at.plus_ms(1)).min()
    }

    /// Admins lifted what was imposed. Probes and excuses are of the share epoch, and stay.
    fn lift(&mut self, lifted: u32) {
        (self.lifted, self.frozen) = (lifted, false);
        for meter in self.pairs.values_mut() {
            let excused = std::mem::take(&mut meter.excused);
            *meter = PairMeter { probes: meter.probes, excused, ..PairMeter::default() };
        }
    }
}

/// The nodes that are in every pair.
fn common(pairs: &[Pair]) -> BTreeSet<NodeId> {
    let nodes = pairs.iter().map(|p| p.nodes());
    nodes.reduce(|a, b| a.intersection(&b).copied().collect()).unwrap_or_default()
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
                None => Meter::new(c.share_epoch, c.lifted, policy.members.keys().copied().collect()),
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
        if used.metered
            && let Some(meter) = meter_of(&mut self.state.data.meters, used)
        {
            meter.closed(pair, client);
            // A relay that keeps an answer back until the application gives up has had its try.
            let gave_up = (report.status, report.ended) == (0, Ended::Cancelled);
            if gave_up && !used.denied && meter.stalled(&RULES, pair, client) {
                used.fault = Some(FaultKind::Answerless);
            }
        }
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
            r.account.client == *client
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
        if meter.is_some_and(|m| m.unreleased(&record.account.client, request, pair)) {
            self.metered(&used.route, used.share_epoch, vec![Verdict::Unreleased(request)]);
        }
    }

    /// A request was authorised on a metered credential.
    pub(super) fn meter_opened(&mut self, client: &ClientId, pair: Pair, used: &CredentialUse) {
        if let (Some(meter), true) = (meter_of(&mut self.state.data.meters, used), used.metered) {
            meter.opened(pair, client);
        }
    }

    /// A request is over that its client never reported.
    pub(super) fn meter_unreported(&mut self, client: &ClientId, pair: Pair, used: &CredentialUse) {
        if let (Some(meter), true) = (meter_of(&mut self.state.data.meters, used), used.metered) {
            meter.closed(pair, client);
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
        #[cfg(feature = "danger-hostile")]
        if crate::danger_hostile::off("Metering") {
            return;
        }
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
