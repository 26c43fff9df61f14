//! What the leaves say that somebody should know: rules over replayed batches, and the little memory they need. Pure: the same
//! history gives the same alarms, with the same ids.
use super::alarm::{Alarm, Kind};
use crate::replay::Step;
use crate::words;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_core::certificate::Certifiers;
use quorate_core::command::{
    Alarm as Raised, ClientCommand, Command, Ended, NodeCommand, Report, Settlement,
};
use quorate_core::ids::{NodeId, RequestId, RouteId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::policy::Policy;
use quorate_core::state::State;
use quorate_core::tlog::{KeyKind, KeyName, LeafIndex, Origin, VerifierKey};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Answers of a route that its usual time is taken from.
const PACE_SAMPLES: usize = 64;
/// Fewer than this say nothing.
const PACE_SAMPLES_MIN: usize = 16;
/// A first byte is a detour when it took so many times the route's median …
const DETOUR_TIMES: u32 = 5;
/// … and at least this much longer, ms.
const DETOUR_MS_MIN: u32 = 2_000;
/// Between authorisation and settlement this much may pass unexplained, ms: settlements wait for a batch.
const UNEXPLAINED_MS_MAX: u64 = 60_000;
/// A relay's clock may run this much faster than the log's, ms.
const CLOCK_MS: u64 = 5_000;
/// Boot keys remembered, oldest dropped: a signature by an older one proves no recent fork.
const SIGNERS_MAX: usize = 4096;

/// The rules' memory after some batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Watch {
    /// `host:port` of every route in any policy so far.
    destinations: BTreeSet<String>,
    /// Requests that were authorised and not settled by their relay.
    open: BTreeMap<RequestId, Open>,
    /// Recent times to the first byte.
    pace: BTreeMap<RouteId, VecDeque<u32>>,
    dark: bool,
    /// Keys that could sign checkpoints, with their names, in the order of their coming.
    signers: VecDeque<(String, [u8; 32])>,
}

#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Open {
    authorised: Timestamp,
    route: RouteId,
    relay: NodeId,
}

/// What one leaf leads to.
struct Leaves<'a> {
    at: LeafIndex,
    time: Timestamp,
    alarms: &'a mut Vec<Alarm>,
}

impl Leaves<'_> {
    fn raise(&mut self, kind: Kind, what: String) {
        let alarm = self.alarm(kind, what);
        self.alarms.push(alarm);
    }
    fn raise_about(&mut self, kind: Kind, subject: impl std::fmt::Display, what: String) {
        let alarm = self.alarm(kind, what).about(subject);
        self.alarms.push(alarm);
    }
    fn alarm(&self, kind: Kind, what: String) -> Alarm {
        let nth = self.alarms.iter().filter(|a| a.leaf == Some(self.at) && a.kind == kind).count();
        Alarm::of_leaf(kind, self.at, nth, self.time, what)
    }
}

impl Watch {
    /// At genesis: its destinations are known.
    pub(super) fn genesis(policy: &Policy) -> Self {
        Self { destinations: destinations(policy).map(|(_, to)| to).collect(), dark: true, ..Self::default() }
    }

    /// Takes one batch; `before` is the policy that was in force before it, `state` the state after.
    pub(super) fn observe(&mut self, step: &Step, before: &Policy, state: &State) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for leaf in &step.leaves {
            let Leaf::V1 { body, .. } = leaf.leaf();
            let mut leaves = Leaves { at: leaf.index(), time: step.time, alarms: &mut alarms };
            self.leaf(leaf.leaf(), body, &mut leaves, before, state);
        }
        self.learn(&step.certifiers, state);
        alarms
    }

    fn leaf(&mut self, leaf: &Leaf, body: &LeafBody, out: &mut Leaves<'_>, before: &Policy, state: &State) {
        match body {
            LeafBody::Decided { command, outcome } => self.decided(command, outcome, out, before, state),
            LeafBody::Lapsed { node } => out.raise_about(Kind::Lapsed, node, words::leaf(leaf)),
            LeafBody::Unsettled { request, relay, .. } => {
                if *relay {
                    self.open.remove(request);
                }
                out.raise_about(Kind::Unsettled, request, words::leaf(leaf));
            }
            LeafBody::Anomaly { request, .. } => out.raise_about(Kind::Anomaly, request, words::leaf(leaf)),
            LeafBody::PairSuspended { route, .. } | LeafBody::CredentialFrozen { route, .. } => {
                out.raise_about(Kind::CredentialStopped, route, words::leaf(leaf));
            }
            LeafBody::Undecodable { .. } => out.raise(Kind::Undecodable, words::leaf(leaf)),
            LeafBody::BatchEnd(end) => {
                if end.dark && !self.dark {
                    let what = format!("{} of the nodes are attested: too few", end.attested.len());
                    out.raise(Kind::Dark, what);
                }
                self.dark = end.dark;
            }
            LeafBody::Genesis { .. } | LeafBody::StateDigest { .. } => {}
        }
    }

    fn decided(
        &mut self,
        command: &Command,
        outcome: &Outcome,
        out: &mut Leaves<'_>,
        before: &Policy,
        state: &State,
    ) {
        match (command, outcome) {
            (Command::Client(c), Outcome::Authorised) => {
                if let ClientCommand::Authorise(a) = &c.body {
                    let open = Open { authorised: out.time, route: a.route.clone(), relay: a.relay };
                    self.open.insert(a.request, open);
                }
            }
            (Command::Client(c), Outcome::Reported(refused)) => {
                if let ClientCommand::Report(reports) = &c.body {
                    for report in accepted(reports, refused) {
                        odd_status(report, out);
                    }
                }
            }
            (Command::Node(c), Outcome::Settled(refused)) => {
                if let NodeCommand::Settle(settlements) = &c.body {
                    for settlement in accepted(settlements, refused) {
                        self.settled(settlement, out);
                    }
                }
            }
            (Command::Node(c), Outcome::AlarmRaised) => {
                if let NodeCommand::Alarm(raised) = &c.body {
                    let what = format!("{} says: {}", c.node, words::alarm(raised));
                    match raised {
                        Raised::HeadRefused { request, .. } => {
                            out.raise_about(Kind::HeadRefused, request, what);
                        }
                        Raised::Equivocation { accused, .. } => {
                            out.raise_about(Kind::Equivocation, accused, what)
                        }
                        Raised::Withheld { .. } => out.raise_about(Kind::Withheld, c.node, what),
                        Raised::AdmissionRefused { node, .. } => {
                            out.raise_about(Kind::AdmissionRefused, node, what);
                        }
                    }
                }
            }
            (Command::Evidence(c), Outcome::AppraisalRefused { check }) => {
                let what = format!("the evidence of {} was refused: {check}", c.node);
                out.raise_about(Kind::AppraisalRefused, c.node, what);
            }
            (Command::Recover(_), Outcome::AppraisalRefused { check }) => {
                out.raise(Kind::AppraisalRefused, format!("a recovery was refused: {check}"));
            }
            (Command::Recover(_), Outcome::Recovered) => {
                out.raise(Kind::Recovered, words::command(command));
            }
            (Command::Policy(_), Outcome::PolicyChanged { .. }) => {
                self.policy(outcome, out, before, state.policy());
            }
            _ => {}
        }
    }

    /// In a batch with several changes, the differences are those of all.
    fn policy(&mut self, outcome: &Outcome, out: &mut Leaves<'_>, before: &Policy, after: &Policy) {
        let changes = differences(before, after).join("; ");
        out.raise_about(
            Kind::PolicyChanged,
            after.version,
            format!("{}: {changes}", words::outcome(outcome)),
        );
        for (route, to) in destinations(after) {
            if self.destinations.insert(to.clone()) {
                let what = format!("route {route} leads to {to}, where none led before");
                out.raise_about(Kind::NewDestination, to, what);
            }
        }
    }

    fn settled(&mut self, settlement: &Settlement, out: &mut Leaves<'_>) {
        let Some(open) = self.open.remove(&settlement.request) else { return };
        let Settlement { request, first_byte_ms, total_ms, ended, .. } = settlement;
        let relay = open.relay;
        let (elapsed, total) = (out.time.since_ms(open.authorised), u64::from(*total_ms));
        if elapsed.saturating_sub(total) > UNEXPLAINED_MS_MAX {
            let what = format!(
                "request {request} over {relay} was settled {elapsed} ms after its authorisation, and took {total} ms: \
                 {} ms are not explained",
                elapsed.saturating_sub(total)
            );
            out.raise_about(Kind::Detour, request, what);
        } else if total > elapsed.saturating_add(CLOCK_MS) {
            let what = format!(
                "request {request}: {relay} says it took {total} ms, and {elapsed} ms after its authorisation it was over"
            );
            out.raise_about(Kind::Detour, request, what);
        }
        if *ended == Ended::Complete {
            let pace = self.pace.entry(open.route.clone()).or_default();
            if let Some(usual) = median(pace)
                && *first_byte_ms > usual.saturating_mul(DETOUR_TIMES)
                && *first_byte_ms > usual.saturating_add(DETOUR_MS_MIN)
            {
                let what = format!(
                    "request {request} over {relay} waited {first_byte_ms} ms for its first byte; on {} it is mostly {usual} ms",
                    open.route
                );
                out.raise_about(Kind::Detour, request, what);
            }
            pace.push_back(*first_byte_ms);
            if pace.len() > PACE_SAMPLES {
                pace.pop_front();
            }
        }
    }

    fn learn(&mut self, certifiers: &Certifiers, state: &State) {
        for (node, key) in &certifiers.keys {
            let Some(member) = state.policy().members.get(node) else { continue };
            let signer = (format!("{}/{}", state.origin(), member.name), key.0);
            if !self.signers.contains(&signer) {
                self.signers.push_back(signer);
            }
            if self.signers.len() > SIGNERS_MAX {
                self.signers.pop_front();
            }
        }
    }

    /// Every key that history ever let sign checkpoints, as far as remembered.
    pub(super) fn signers(&self) -> Vec<VerifierKey> {
        self.signers.iter().filter_map(|(name, key)| cosigner(name, *key)).collect()
    }
}

fn cosigner(name: &str, key: [u8; 32]) -> Option<VerifierKey> {
    Some(VerifierKey::new(KeyName::new(name).ok()?, KeyKind::CosignatureV1, key))
}

/// The keys that may cosign now, as verifier keys.
pub(super) fn present_signers(state: &State, origin: &Origin) -> Vec<VerifierKey> {
    let keys = state.nodes().iter().filter_map(|(node, record)| {
        let name = &state.policy().members.get(node)?.name;
        cosigner(&format!("{origin}/{name}"), record.attested()?.cosign)
    });
    keys.collect()
}

/// Items that the state machine took.
fn accepted<'a, T, R>(all: &'a [T], refused: &'a [(u16, R)]) -> impl Iterator<Item = &'a T> {
    let taken = move |at: usize| !refused.iter().any(|(refused, _)| usize::from(*refused) == at);
    all.iter().enumerate().filter(move |(at, _)| taken(*at)).map(|(_, item)| item)
}

/// DESIGN section 3: 401 and 403, what is no answer of the API (other than in its error form), and what no API says.
fn odd_status(report: &Report, out: &mut Leaves<'_>) {
    let odd = match report.status {
        // No answer: how it ended says more.
        0 | 200..=299 => false,
        401 | 403 | 407 => true,
        400..=599 => !report.error_form,
        _ => true,
    };
    if odd {
        let form = if report.error_form { "" } else { ", not in the API's own error form" };
        let what = format!("request {} was answered with {}{form}", report.request, report.status);
        out.raise_about(Kind::OddStatus, report.request, what);
    }
}

fn median(pace: &VecDeque<u32>) -> Option<u32> {
    if pace.len() < PACE_SAMPLES_MIN {
        return None;
    }
    let mut sorted: Vec<u32> = pace.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

fn destinations(policy: &Policy) -> impl Iterator<Item = (&RouteId, String)> {
    policy.routes.values().map(|r| (&r.id, format!("{}:{}", r.document.host, r.document.port)))
}

/// What differs, in words.
fn differences(before: &Policy, after: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let mut sets = |what: &str, old: BTreeSet<String>, new: BTreeSet<String>| {
        let list = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>().join(", ");
        let (gone, come) = (list(old.difference(&new).collect()), list(new.difference(&old).collect()));
        for (verb, names) in [("without", gone), ("with", come)] {
            if !names.is_empty() {
                found.push(format!("{verb} {what} {names}"));
            }
        }
    };
    let members = |p: &Policy| p.members.values().map(|m| format!("{} ({})", m.name, m.id)).collect();
    sets("member", members(before), members(after));
    let admins = |p: &Policy| p.admins.values().cloned().collect();
    sets("admin", admins(before), admins(after));
    let clients = |p: &Policy| p.clients.keys().map(ToString::to_string).collect();
    sets("client", clients(before), clients(after));
    let routes = |p: &Policy| destinations(p).map(|(r, to)| format!("{r} to {to}")).collect();
    sets("route", routes(before), routes(after));
    let revoked = |p: &Policy| {
        p.clients.values().filter(|c| c.revoked).map(|c| c.id.to_string()).collect::<BTreeSet<_>>()
    };
    sets("revoked client", revoked(before), revoked(after));
    let epochs = |p: &Policy| {
        let keyed = p.routes.values().filter(|r| r.credential.is_some());
        keyed.map(|r| format!("{} (epoch {})", r.id, r.share_epoch())).collect()
    };
    sets("key of route", epochs(before), epochs(after));
    if before.admin_threshold != after.admin_threshold {
        found.push(format!("{} admins must sign, not {}", after.admin_threshold, before.admin_threshold));
    }
    if before.hostile_nodes_max != after.hostile_nodes_max {
        found
            .push(format!("hostile_nodes_max {}, not {}", after.hostile_nodes_max, before.hostile_nodes_max));
    }
    if before.reference_values != after.reference_values {
        found.push("other reference values".into());
    }
    if found.is_empty() {
        found.push("other settings".into());
    }
    found
}
