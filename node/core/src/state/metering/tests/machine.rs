//! Metering through the whole state machine: signed commands in, leaves and refusals out.
use crate::command::*;
use crate::crypto::{encode, public_key};
use crate::ids::{ClientId, NodeId, RequestId, Timestamp};
use crate::leaf::{AnomalyRule, Leaf, LeafBody, Outcome};
use crate::policy::PolicyDocument;
use crate::refusal::Refusal;
use crate::rendezvous;
use crate::state::metering::{HOLD_MS, OPEN_PER_PAIR_MAX, PROBES_PER_PAIR_MAX, Pair, STALLS_MAX};
use crate::state::{Applied, State};
use crate::testing::*;
use std::collections::BTreeMap;

type Way = (NodeId, NodeId);
const CLIENTS: [&str; 4] = [CLIENT, "b", "c", "d"];

/// A mesh with a keyed route and four clients.
struct Keyed {
    mesh: Mesh,
    pools: BTreeMap<(String, Way), OpenPool>,
}

fn refused(applied: &Applied, at: usize) -> Option<Refusal> {
    match applied.outcomes[at].1 {
        Outcome::Refused(r) => Some(r),
        _ => None,
    }
}

fn bodies(applied: &Applied) -> Vec<LeafBody> {
    let body = |l: &crate::state::AppliedLeaf| match l.leaf() {
        Leaf::V1 { body, .. } => body.clone(),
    };
    applied.leaves.iter().map(body).collect()
}

impl Keyed {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(edit: impl FnOnce(&mut PolicyDocument)) -> Self {
        let mesh = Mesh::new(4, 1, |d| {
            keyed(d);
            d.client.extend(CLIENTS[1..].iter().map(|c| client_document(c)));
            edit(d);
        });
        Self { mesh, pools: BTreeMap::new() }
    }

    /// A pair, one disjoint to it, one that shares its relay.
    fn ways(&self) -> [Way; 3] {
        let state = self.mesh.state();
        let attested: Vec<NodeId> = state.attested_nodes().collect();
        let custodian = &state.policy().clients[&ClientId::new(CLIENT).unwrap()].custodian;
        let all = rendezvous::pairs(state.policy(), &attested, &route(), custodian);
        let pair = |(relay, keyer)| Pair { relay, keyer };
        all.iter()
            .find_map(|one| {
                let apart = all.iter().find(|w| pair(**w).disjoint(pair(*one)))?;
                let beside = all.iter().find(|w| w.0 == one.0 && w.1 != one.1)?;
                Some([*one, *apart, *beside])
            })
            .expect("four nodes have two disjoint pairs for this route")
    }

    /// Opens a pool, unless there is one, and asks.
    fn ask_with(
        &mut self,
        client: &str,
        way: Way,
        edit: impl FnOnce(&mut Authorise),
    ) -> Result<RequestId, Refusal> {
        let name = (client.to_owned(), way);
        if !self.pools.contains_key(&name) {
            let pool = self.mesh.fleet.pool_over(&self.mesh.log.state, way);
            self.open(client, pool)?;
        }
        let pool = self.pools[&name].clone();
        let mut request = self.mesh.fleet.request(&self.mesh.log.state, &pool);
        request.expires = self.mesh.time.plus_ms(30_000);
        edit(&mut request);
        let id = request.request;
        match self.mesh.decide(self.mesh.fleet.client(client, ClientCommand::Authorise(request))) {
            Outcome::Authorised => Ok(id),
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, client: &str, way: Way) -> Result<RequestId, Refusal> {
        self.ask_with(client, way, |_| ())
    }

    fn open(&mut self, client: &str, pool: OpenPool) -> Result<(), Refusal> {
        let way = (pool.relay, pool.keyer);
        match self.mesh.decide(self.mesh.fleet.client(client, ClientCommand::OpenPool(pool.clone()))) {
            Outcome::PoolOpened => {
                self.pools.insert((client.to_owned(), way), pool);
                Ok(())
            }
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn report_with(
        &mut self,
        client: &str,
        request: RequestId,
        edit: impl FnOnce(&mut Report),
    ) -> Vec<LeafBody> {
        let mut report = Fleet::report(request);
        edit(&mut report);
        let applied =
            self.mesh.apply(vec![self.mesh.fleet.client(client, ClientCommand::Report(vec![report]))]);
        assert_eq!(refused(&applied, 0), None);
        bodies(&applied)
    }

    fn answer(&mut self, client: &str, request: RequestId, status: u16) -> Vec<LeafBody> {
        self.report_with(client, request, |r| r.status = status)
    }

    /// The client saw the tunnel end before any answer.
    fn silence(&mut self, client: &str, request: RequestId) -> Vec<LeafBody> {
        self.report_with(client, request, |r| (r.status, r.ended) = (0, Ended::MeshFailure))
    }

    fn settle(&mut self, way: Way, request: RequestId) {
        let settle = NodeCommand::Settle(vec![Fleet::settlement(request)]);
        let outcome = self.mesh.decide(self.mesh.fleet.node_command(way.0, settle));
        assert_eq!(outcome, Outcome::Settled(vec![]));
    }

    /// Time passes, everybody stays attested. What happened meanwhile.
    fn wait(&mut self, ms: u64) -> Vec<LeafBody> {
        let mut seen = Vec::new();
        let mut left = ms;
        while left > 0 {
            let step = left.min(15_000);
            self.mesh.wait(step);
            seen.extend(bodies(&self.mesh.attest_all()));
            left -= step;
        }
        seen
    }

    fn counted(&self) -> usize {
        self.mesh.state().meter(&route()).unwrap().counted().map(|(_, n)| n).sum()
    }

    fn change(&mut self, edit: impl FnOnce(&mut PolicyDocument)) -> Outcome {
        let before = (self.mesh.fleet.document.clone(), self.mesh.fleet.chain.len());
        let command = self.mesh.fleet.change_policy(edit);
        let outcome = self.mesh.decide(command);
        if matches!(outcome, Outcome::Refused(_)) {
            self.mesh.fleet.document = before.0;
            self.mesh.fleet.chain.truncate(before.1);
        }
        outcome
    }

    fn changes(&mut self, edit: impl FnOnce(&mut PolicyDocument)) {
        let outcome = self.change(edit);
        assert!(matches!(outcome, Outcome::PolicyChanged { .. }), "{outcome:?}");
    }
}

fn faults(leaves: &[LeafBody], which: AnomalyRule) -> usize {
    leaves.iter().filter(|l| matches!(l, LeafBody::Anomaly { rule, .. } if *rule == which)).count()
}

/// Splits anew, in this share epoch.
fn split(d: &mut PolicyDocument, share_epoch: u32) {
    d.route[0].credential = Some(credential_document(d, ROUTE, share_epoch));
}

#[test]
fn a_request_names_the_share_epoch() {
    let mut keyed = Keyed::new();
    let [way, ..] = keyed.ways();
    for wrong in [0, 2] {
        let asked = keyed.ask_with(CLIENT, way, |a| a.share_epoch = wrong);
        assert_eq!(asked, Err(Refusal::StaleShareEpoch));
    }
    assert!(keyed.ask(CLIENT, way).is_ok(), "the twin with epoch 1");
    let mut unkeyed = Mesh::four();
    let pool = unkeyed.open_pool();
    let (_, command) = unkeyed.request_with(&pool, |a| a.share_epoch = 1);
    unkeyed.refuses(command, Refusal::StaleShareEpoch);
    unkeyed.authorise(&pool);
}

#[test]
fn three_clients_suspend_a_pair_and_on_two_pairs_freeze() {
    let mut keyed = Keyed::new();
    let [one, apart, _] = keyed.ways();
    let requests: Vec<_> = CLIENTS.iter().map(|c| keyed.ask(c, one).unwrap()).collect();
    let first = keyed.answer(CLIENTS[0], requests[0], 401);
    assert_eq!(faults(&first, AnomalyRule::CredentialFault), 1);
    assert_eq!(keyed.ask(CLIENTS[0], one), Err(Refusal::PairBarred));
    keyed.pools.remove(&(CLIENTS[0].to_owned(), one));
    assert_eq!(keyed.ask(CLIENTS[0], one), Err(Refusal::PairBarred), "nor does it get a pool");
    assert!(keyed.ask(CLIENTS[0], apart).is_ok(), "another pair will do");
    keyed.answer(CLIENTS[1], requests[1], 403);
    assert!(keyed.ask(CLIENTS[3], one).is_ok());
    let third = keyed.answer(CLIENTS[2], requests[2], 401);
    let (relay, keyer) = one;
    let leaf = LeafBody::PairSuspended { route: route(), share_epoch: 1, relay, keyer };
    assert_eq!(third.iter().filter(|l| **l == leaf).count(), 1);
    assert_eq!(keyed.ask(CLIENTS[3], one), Err(Refusal::PairSuspended));
    let usable =
        |k: &Keyed, (relay, keyer)| k.mesh.state().credential_usable(&route(), 1, Pair { relay, keyer });
    assert_eq!((usable(&keyed, one), usable(&keyed, apart)), (Err(Refusal::PairSuspended), Ok(())));

    let request = keyed.ask(CLIENTS[3], apart).unwrap();
    let frozen = keyed.answer(CLIENTS[3], request, 401);
    assert!(frozen.contains(&LeafBody::CredentialFrozen { route: route(), share_epoch: 1 }));
    assert_eq!(keyed.ask(CLIENTS[1], apart), Err(Refusal::CredentialFrozen));
    assert_eq!(usable(&keyed, apart), Err(Refusal::CredentialFrozen));
}

#[test]
fn a_new_share_epoch_or_the_admins_word_ends_it() {
    let freeze = || {
        let mut keyed = Keyed::new();
        let [one, apart, _] = keyed.ways();
        for client in &CLIENTS[..3] {
            for way in [one, apart] {
                if let Ok(request) = keyed.ask(client, way) {
                    keyed.answer(client, request, 401);
                }
            }
        }
        assert_eq!(keyed.ask(CLIENTS[3], apart), Err(Refusal::CredentialFrozen));
        (keyed, one, apart)
    };
    let (mut keyed, one, apart) = freeze();
    keyed.changes(|d| d.client[0].requests_per_day += 1);
    assert_eq!(keyed.ask(CLIENTS[3], apart), Err(Refusal::CredentialFrozen), "another change does not");
    keyed.changes(|d| split(d, 2));
    for (client, way) in CLIENTS.iter().flat_map(|c| [(c, one), (c, apart)]) {
        assert!(keyed.ask(client, way).is_ok(), "{client} {way:?}");
    }
    let (mut keyed, one, apart) = freeze();
    keyed.changes(|d| d.route[0].credential.as_mut().unwrap().lifted = 1);
    for (client, way) in CLIENTS.iter().flat_map(|c| [(c, one), (c, apart)]) {
        assert!(keyed.ask(client, way).is_ok(), "{client} {way:?}");
    }
}

#[test]
fn admins_freeze_and_thaw() {
    let mut keyed = Keyed::new();
    let [one, ..] = keyed.ways();
    let request = keyed.ask(CLIENT, one).unwrap();
    keyed.answer(CLIENT, request, 200);
    keyed.changes(|d| d.route[0].credential.as_mut().unwrap().frozen = true);
    assert_eq!(keyed.ask(CLIENT, one), Err(Refusal::CredentialFrozen));
    let (relay, keyer) = one;
    let usable = keyed.mesh.state().credential_usable(&route(), 1, Pair { relay, keyer });
    assert_eq!(usable, Err(Refusal::CredentialFrozen));
    keyed.changes(|d| d.route[0].credential.as_mut().unwrap().frozen = false);
    assert!(keyed.ask(CLIENT, one).is_ok());
}

// --- what must not count ---

#[test]
fn an_outage_counts_against_nobody_and_one_pairs_silence_does() {
    let mut keyed = Keyed::new();
    let [one, apart, beside] = keyed.ways();
    for (client, way) in [(CLIENTS[0], one), (CLIENTS[1], apart), (CLIENTS[2], beside), (CLIENTS[3], one)] {
        let request = keyed.ask(client, way).unwrap();
        keyed.silence(client, request);
    }
    let leaves = keyed.wait(HOLD_MS + 20_000);
    assert_eq!((keyed.counted(), faults(&leaves, AnomalyRule::CredentialFault)), (0, 0));
    assert!(CLIENTS.iter().all(|c| keyed.ask(c, one).is_ok()));
    // The twin: silence over pairs that share the relay.
    let mut keyed = Keyed::new();
    for (client, way) in [(CLIENTS[0], one), (CLIENTS[1], beside), (CLIENTS[2], beside)] {
        let request = keyed.ask(client, way).unwrap();
        let leaves = keyed.silence(client, request);
        assert_eq!(faults(&leaves, AnomalyRule::CredentialFault), 0, "held");
    }
    let due = keyed.mesh.state().next_due().unwrap();
    assert!(due <= keyed.mesh.time.plus_ms(HOLD_MS + 1));
    let leaves = keyed.wait(HOLD_MS + 20_000);
    assert_eq!(faults(&leaves, AnomalyRule::CredentialFault), 3);
    assert!(!keyed.mesh.state().meter(&route()).unwrap().is_frozen(), "silence freezes nothing");
}

/// The relay dies under three clients' requests over two pairs: by a restart of its process, or not at all.
fn crash(restarts: bool) -> (Keyed, Vec<LeafBody>) {
    let mut keyed = Keyed::new();
    let [one, _, beside] = keyed.ways();
    let asked: Vec<_> = [(CLIENTS[0], one), (CLIENTS[1], beside), (CLIENTS[2], one)]
        .into_iter()
        .map(|(client, way)| (client, keyed.ask(client, way).unwrap()))
        .collect();
    if restarts {
        keyed.mesh.fleet.node(one.0.0).restart_process();
    }
    let mut leaves: Vec<_> = asked.into_iter().flat_map(|(client, id)| keyed.silence(client, id)).collect();
    leaves.extend(keyed.wait(HOLD_MS + 20_000));
    (keyed, leaves)
}

#[test]
fn a_crashed_node_counts_against_nobody() {
    let (keyed, leaves) = crash(true);
    assert_eq!((keyed.counted(), faults(&leaves, AnomalyRule::FaultOfInterruptedNode)), (0, 3));
    assert!(!keyed.mesh.state().meter(&route()).unwrap().is_frozen());
    let (keyed, leaves) = crash(false);
    assert_eq!(faults(&leaves, AnomalyRule::CredentialFault), 3, "the twin that never restarted");
    assert_eq!(keyed.counted(), 3);
}

#[test]
fn a_node_that_lapsed_and_came_back_by_the_same_keys_counts_against_nobody() {
    let mut keyed = Keyed::new();
    let [one, _, beside] = keyed.ways();
    let asked: Vec<_> = [(CLIENTS[0], one), (CLIENTS[1], beside), (CLIENTS[2], one)]
        .into_iter()
        .map(|(client, way)| (client, keyed.ask(client, way).unwrap()))
        .collect();
    // Cut off for longer than the lapse, together with whoever would report.
    keyed.mesh.silent.insert(one.0);
    keyed.wait(75_000);
    assert!(keyed.mesh.state().attested(one.0).is_none());
    keyed.mesh.silent.clear();
    keyed.wait(1000);
    assert!(keyed.mesh.state().attested(one.0).is_some());
    for (client, id) in asked {
        keyed.silence(client, id);
    }
    keyed.wait(HOLD_MS + 20_000);
    assert_eq!(keyed.counted(), 0);
}

#[test]
fn a_stale_pool_counts_against_nobody() {
    let mut keyed = Keyed::new();
    let [one, apart, _] = keyed.ways();
    let asked: Vec<_> =
        CLIENTS.iter().flat_map(|c| [one, apart].map(|way| (*c, keyed.ask(c, way).unwrap()))).collect();
    keyed.changes(|d| split(d, 2));
    // Pools stand; what was signed for the old shares does not.
    assert_eq!(keyed.ask_with(CLIENT, one, |a| a.share_epoch = 1), Err(Refusal::StaleShareEpoch));
    for (client, id) in asked {
        keyed.answer(client, id, 401);
    }
    assert_eq!(keyed.counted(), 0, "faults of the old shares say nothing about the new ones");
    assert!(keyed.ask(CLIENT, one).is_ok());
    // Nor does what was in flight when admins lifted.
    let asked: Vec<_> =
        CLIENTS.iter().flat_map(|c| [one, apart].map(|way| (*c, keyed.ask(c, way).unwrap()))).collect();
    keyed.changes(|d| d.route[0].credential.as_mut().unwrap().lifted += 1);
    asked.into_iter().for_each(|(client, id)| drop(keyed.answer(client, id, 401)));
    assert_eq!(keyed.counted(), 0);
    // The twin.
    for client in CLIENTS {
        let request = keyed.ask(client, one);
        request.into_iter().for_each(|id| drop(keyed.answer(client, id, 401)));
    }
    assert_eq!(keyed.counted(), 3);
}

#[test]
fn a_request_that_its_relay_never_settles_is_a_fault_unless_the_client_saw_an_answer() {
    type Case = (bool, Option<(u16, Ended)>, usize);
    let cases: [Case; 7] = [
        (false, None, 1),
        (true, None, 0),
        (false, Some((0, Ended::Cancelled)), 1),
        (false, Some((200, Ended::Cancelled)), 0),
        (false, Some((200, Ended::Complete)), 0),
        (false, Some((0, Ended::HeadRefused)), 1),
        (true, Some((0, Ended::Cancelled)), 0),
    ];
    for (settled, reported, expected) in cases {
        let mut keyed = Keyed::with(|d| d.attestation.settle_ms = 1000);
        let [one, ..] = keyed.ways();
        let request = keyed.ask(CLIENT, one).unwrap();
        if settled {
            keyed.settle(one, request);
        }
        if let Some((status, ended)) = reported {
            keyed.report_with(CLIENT, request, |r| (r.status, r.ended) = (status, ended));
        }
        keyed.wait(61_000 + HOLD_MS + 30_000);
        assert!(keyed.mesh.state().request(&request).is_none(), "it is over");
        assert_eq!(keyed.counted(), expected, "{settled} {reported:?}");
    }
}

/// How much one client tells a hostile node before its first fault shows.
#[test]
fn so_many_requests_of_a_client_are_open_over_a_pair() {
    let mut keyed = Keyed::with(|d| d.attestation.settle_ms = 1000);
    let [one, apart, _] = keyed.ways();
    let asked: Vec<_> = (0..OPEN_PER_PAIR_MAX).map(|_| keyed.ask(CLIENT, one).unwrap()).collect();
    assert_eq!(keyed.ask(CLIENT, one), Err(Refusal::PairBusy));
    assert!(keyed.ask("b", one).is_ok(), "another client");
    assert!(keyed.ask(CLIENT, apart).is_ok(), "another pair");
    // The relay's word does not make room: its client may have seen a failure.
    keyed.settle(one, asked[0]);
    assert_eq!(keyed.ask(CLIENT, one), Err(Refusal::PairBusy));
    keyed.answer(CLIENT, asked[0], 200);
    let last = keyed.ask(CLIENT, one).unwrap();
    assert_eq!(keyed.ask(CLIENT, one), Err(Refusal::PairBusy));
    // What is never reported is over at its deadline.
    asked.iter().skip(1).chain([&last]).for_each(|id| keyed.settle(one, *id));
    keyed.wait(61_000 + HOLD_MS + 30_000);
    keyed.pools.clear();
    let room = (0..=OPEN_PER_PAIR_MAX).take_while(|_| keyed.ask(CLIENT, one).is_ok()).count();
    assert_eq!(room, OPEN_PER_PAIR_MAX as usize);
    keyed.changes(|d| d.route[0].credential.as_mut().unwrap().lifted = 1);
    let room = (0..=OPEN_PER_PAIR_MAX).take_while(|_| keyed.ask(CLIENT, one).is_ok()).count();
    assert_eq!(room, OPEN_PER_PAIR_MAX as usize);
}

/// A relay keeps answers back until the application gives up.
#[test]
fn so_many_requests_are_given_up_before_it_is_a_fault() {
    for denied in [false, true] {
        let mut keyed = Keyed::new();
        let [one, apart, _] = keyed.ways();
        let stall = |keyed: &mut Keyed, way: Way| {
            let request = keyed.ask(CLIENT, way)?;
            if denied {
                let denial = NodeCommand::Unanswered(vec![request]);
                keyed.mesh.apply(vec![keyed.mesh.fleet.node_command(way.1, denial)]);
            }
            keyed.settle(way, request);
            keyed.report_with(CLIENT, request, |r| (r.status, r.ended) = (0, Ended::Cancelled));
            Ok(())
        };
        for n in 1..=STALLS_MAX {
            assert_eq!(stall(&mut keyed, one), Ok(()), "{n}");
        }
        let expected = if denied { Ok(()) } else { Err(Refusal::PairBarred) };
        assert_eq!(stall(&mut keyed, one), expected);
        assert_eq!(stall(&mut keyed, apart), Ok(()), "another pair");
        keyed.wait(HOLD_MS + 20_000);
        assert_eq!(keyed.counted(), usize::from(!denied));
    }
}

/// A request that fails, and what keyer and relay say about it, before the client does or after.
#[test]
fn a_fault_before_release_is_void_when_keyer_and_relay_both_say_so() {
    type Say = fn(&Keyed, Way, RequestId) -> Vec<Command>;
    let keyer: Say = |k, way, id| vec![k.mesh.fleet.node_command(way.1, NodeCommand::Unanswered(vec![id]))];
    let head: Say = |k, way, request| {
        let alarm = Alarm::HeadRefused { request, code: 100 };
        vec![k.mesh.fleet.node_command(way.1, NodeCommand::Alarm(alarm))]
    };
    let by_the_relay: Say = |k, way, request| {
        let alarm = Alarm::HeadRefused { request, code: 100 };
        vec![
            k.mesh.fleet.node_command(way.0, NodeCommand::Alarm(alarm)),
            k.mesh.fleet.node_command(way.0, NodeCommand::Unanswered(vec![request])),
        ]
    };
    let settled = |k: &Keyed, way: Way, request, bytes_up| {
        let unsent = Settlement { bytes_up, ended: Ended::MeshFailure, ..Fleet::settlement(request) };
        k.mesh.fleet.node_command(way.0, NodeCommand::Settle(vec![unsent]))
    };
    let nothing: Say = |_, _, _| vec![];
    let cases: [(Say, Option<u64>, usize); 7] = [
        (keyer, Some(0), 0),
        (head, Some(0), 0),
        // A hostile relay: the keyer did answer, and says nothing.
        (nothing, Some(0), 1),
        (by_the_relay, Some(0), 1),
        // A hostile keyer: the relay has sent what it filled in.
        (keyer, Some(512), 1),
        (head, Some(512), 1),
        (keyer, None, 1),
    ];
    for (case, (say, bytes_up, counted)) in cases.into_iter().enumerate() {
        for client_first in [false, true] {
            let mut keyed = Keyed::new();
            let [one, ..] = keyed.ways();
            let request = keyed.ask(CLIENT, one).unwrap();
            if client_first {
                keyed.silence(CLIENT, request);
            }
            let mut words = say(&keyed, one, request);
            words.extend(bytes_up.map(|up| settled(&keyed, one, request, up)));
            keyed.mesh.apply(words);
            if !client_first {
                keyed.silence(CLIENT, request);
            }
            assert_eq!(keyed.ask(CLIENT, one).is_ok(), counted == 0, "case {case}: the bar");
            keyed.wait(HOLD_MS + 20_000);
            assert_eq!(keyed.counted(), counted, "case {case} {client_first}");
        }
    }
}

/// Longer than its signature is valid: as long as its fault may be held.
#[test]
fn a_denial_that_comes_late_still_counts() {
    for (after, counted) in [(45_000, 0), (HOLD_MS + 1_000, 1)] {
        let mut keyed = Keyed::new();
        let [one, ..] = keyed.ways();
        let request = keyed.ask(CLIENT, one).unwrap();
        let unsent = Settlement { bytes_up: 0, ended: Ended::MeshFailure, ..Fleet::settlement(request) };
        keyed.mesh.apply(vec![keyed.mesh.fleet.node_command(one.0, NodeCommand::Settle(vec![unsent]))]);
        keyed.silence(CLIENT, request);
        keyed.wait(after);
        let denial = NodeCommand::Unanswered(vec![request]);
        keyed.mesh.apply(vec![keyed.mesh.fleet.node_command(one.1, denial)]);
        keyed.wait(HOLD_MS + 20_000);
        assert_eq!(keyed.counted(), counted, "{after}");
    }
}

#[test]
fn only_its_keyer_denies_a_request() {
    let mut keyed = Keyed::new();
    let [one, ..] = keyed.ways();
    let request = keyed.ask(CLIENT, one).unwrap();
    let deny = |k: &Keyed, node, ids| k.mesh.fleet.node_command(node, NodeCommand::Unanswered(ids));
    let decided = |k: &mut Keyed, c| k.mesh.decide(c);
    let ids = vec![RequestId([9; 16]), request];
    let by_relay = deny(&keyed, one.0, ids.clone());
    let refused = vec![(0, Refusal::UnknownRequest), (1, Refusal::NotYours)];
    assert_eq!(decided(&mut keyed, by_relay), Outcome::Settled(refused));
    let by_keyer = deny(&keyed, one.1, ids);
    assert_eq!(decided(&mut keyed, by_keyer), Outcome::Settled(vec![(0, Refusal::UnknownRequest)]));
    let flood = deny(&keyed, one.1, vec![request; SETTLEMENTS_MAX + 1]);
    assert_eq!(decided(&mut keyed, flood), Outcome::Refused(Refusal::Oversized));
}

#[test]
fn the_same_400_over_a_disjoint_pair_cancels_both() {
    let own = |same_as| move |r: &mut Report| (r.status, r.error_form, r.same_as) = (400, true, same_as);
    for (disjoint, left) in [(true, 0), (false, 2)] {
        let mut keyed = Keyed::new();
        let [one, apart, beside] = keyed.ways();
        let other = if disjoint { apart } else { beside };
        // Two at once, so that the meter holds only one of them.
        let firsts = [keyed.ask(CLIENT, one).unwrap(), keyed.ask(CLIENT, one).unwrap()];
        firsts.iter().for_each(|id| drop(keyed.report_with(CLIENT, *id, own(None))));
        assert_eq!(keyed.ask(CLIENT, one), Err(Refusal::PairBarred));
        let again = [keyed.ask(CLIENT, other).unwrap(), keyed.ask(CLIENT, other).unwrap()];
        for (first, id) in firsts.iter().zip(again) {
            keyed.report_with(CLIENT, id, own(Some(*first)));
        }
        assert_eq!(keyed.ask(CLIENT, one).is_ok(), disjoint, "the bar");
        keyed.wait(HOLD_MS + 20_000);
        assert_eq!(keyed.counted(), left);
    }
    // Also where the meter has forgotten the first for something worse: the repetition is the application's mistake all the same.
    let mut keyed = Keyed::new();
    let [one, apart, _] = keyed.ways();
    let [first, worse] = [(); 2].map(|()| keyed.ask(CLIENT, one).unwrap());
    keyed.report_with(CLIENT, first, own(None));
    keyed.answer(CLIENT, worse, 401);
    let again = keyed.ask(CLIENT, apart).unwrap();
    keyed.report_with(CLIENT, again, own(Some(first)));
    assert_eq!(keyed.ask(CLIENT, one), Err(Refusal::PairBarred));
    assert!(keyed.ask(CLIENT, apart).is_ok());
    // Only of the client's own, and only of the same kind.
    let mut keyed = Keyed::new();
    let [one, apart, _] = keyed.ways();
    let first = keyed.ask("b", one).unwrap();
    keyed.report_with("b", first, own(None));
    let refused = keyed.ask(CLIENT, one).unwrap();
    keyed.answer(CLIENT, refused, 401);
    for named in [first, refused] {
        let request = keyed.ask("c", apart).unwrap();
        keyed.report_with("c", request, own(Some(named)));
        let request = keyed.ask_with(CLIENT, apart, |_| ());
        request.into_iter().for_each(|id| drop(keyed.report_with(CLIENT, id, own(Some(refused)))));
        if named == first {
            keyed.wait(HOLD_MS + 20_000);
            assert_eq!(keyed.counted(), 4);
            break;
        }
    }
}

// --- probes ---

/// A pair outside the rendezvous order.
fn third(keyed: &Keyed) -> Way {
    let (relay, allowed) = keyed.mesh.fleet.way(keyed.mesh.state(), 1);
    let keyer = (2..=4).map(NodeId).find(|n| !allowed.contains(n)).unwrap();
    (relay, keyer)
}

#[test]
fn a_probe_opens_exactly_the_pairs_that_an_admin_named() {
    type Case = (&'static str, fn(&mut Keyed, &mut OpenPool), Refusal);
    fn grant(p: &mut OpenPool) -> &mut ProbeGrant {
        &mut p.probe.as_mut().unwrap().grant
    }
    /// Changed, and signed again.
    fn signed(k: &Keyed, p: &mut OpenPool, edit: impl FnOnce(&mut ProbeGrant)) {
        edit(grant(p));
        p.probe = Some(k.mesh.fleet.sign_probe(grant(p).clone(), 0));
    }
    let cases: &[Case] = &[
        ("no grant", |_, p| p.probe = None, Refusal::WrongKeyer),
        ("changed after signing", |_, p| grant(p).expires.0 -= 1, Refusal::BadProbeGrant),
        (
            "signed by nobody",
            |k, p| {
                let statement = grant(p).statement(k.mesh.fleet.cluster());
                p.probe.as_mut().unwrap().signature = ssh_sign(&key("nobody"), &statement);
            },
            Refusal::BadProbeGrant,
        ),
        (
            "another cluster",
            |k, p| {
                let statement = grant(p).statement(crate::crypto::Hash([0; 32]));
                p.probe.as_mut().unwrap().signature = ssh_sign(&k.mesh.fleet.admins[0], &statement);
            },
            Refusal::BadProbeGrant,
        ),
        (
            "another client",
            |k, p| signed(k, p, |g| g.client_key = public_key(&key("b"))),
            Refusal::BadProbeGrant,
        ),
        (
            "another route",
            |k, p| signed(k, p, |g| g.route = crate::ids::RouteId::new("other").unwrap()),
            Refusal::BadProbeGrant,
        ),
        (
            "the pair the other way round",
            |k, p| signed(k, p, |g| g.pairs.iter_mut().for_each(|p| *p = (p.1, p.0))),
            Refusal::BadProbeGrant,
        ),
        ("no pair", |k, p| signed(k, p, |g| g.pairs.clear()), Refusal::BadProbeGrant),
        ("share epoch", |k, p| signed(k, p, |g| g.share_epoch = 2), Refusal::StaleShareEpoch),
        ("expired", |k, p| signed(k, p, |g| g.expires = k.mesh.time), Refusal::ProbeGrantExpired),
        (
            "lasts too long",
            |k, p| signed(k, p, |g| g.expires = k.mesh.time.plus_ms(PROBE_GRANT_MS_MAX + 2)),
            Refusal::ProbeGrantExpired,
        ),
        (
            "shorter than the pool",
            |k, p| {
                let expires = Timestamp(p.expires.0 - 1);
                signed(k, p, |g| g.expires = expires);
            },
            Refusal::ProbeGrantExpired,
        ),
        (
            "too many pairs",
            |k, p| signed(k, p, |g| g.pairs = vec![g.pairs[0]; PROBE_PAIRS_MAX + 1]),
            Refusal::Oversized,
        ),
    ];
    for (what, edit, refusal) in cases {
        let mut keyed = Keyed::new();
        let way = third(&keyed);
        let mut pool = keyed.mesh.fleet.pool_over(&keyed.mesh.log.state, way);
        pool.probe = Some(keyed.mesh.fleet.probe_grant(&keyed.mesh.log.state, CLIENT, vec![way]));
        let honest = pool.clone();
        edit(&mut keyed, &mut pool);
        assert_eq!(keyed.open(CLIENT, pool), Err(*refusal), "{what}");
        assert_eq!(keyed.open(CLIENT, honest), Ok(()), "{what}: its twin");
        assert!(keyed.ask(CLIENT, way).is_ok());
    }
    let mut unkeyed = Keyed::with(|d| d.route[0].credential = None);
    let way = third(&unkeyed);
    let mut pool = unkeyed.mesh.fleet.pool_over(&unkeyed.mesh.log.state, way);
    pool.probe = Some(unkeyed.mesh.fleet.probe_grant(&unkeyed.mesh.log.state, CLIENT, vec![way]));
    assert_eq!(unkeyed.open(CLIENT, pool), Err(Refusal::StaleShareEpoch), "there is nothing to check");
}

#[test]
fn probes_are_not_metered_but_counted() {
    let mut keyed = Keyed::new();
    let way = third(&keyed);
    let probe = keyed.mesh.fleet.probe_grant(&keyed.mesh.log.state, CLIENT, vec![way]);
    let mut pool = keyed.mesh.fleet.pool_over(&keyed.mesh.log.state, way);
    pool.probe = Some(probe);
    keyed.open(CLIENT, pool.clone()).unwrap();
    // What is refused for another reason costs no probe.
    assert_eq!(keyed.ask_with(CLIENT, way, |a| a.share_epoch = 2), Err(Refusal::StaleShareEpoch));
    let open = |keyed: &Keyed| keyed.mesh.state().meter(&route()).unwrap().open_requests();
    assert_eq!(open(&keyed), 0);
    for n in 0..PROBES_PER_PAIR_MAX {
        // An admin checks what is frozen, too.
        if n == 1 {
            keyed.changes(|d| d.route[0].credential.as_mut().unwrap().frozen = true);
        }
        let request = keyed.ask(CLIENT, way).unwrap();
        assert_eq!(open(&keyed), 0, "nor does it take a request's place");
        assert_eq!(faults(&keyed.answer(CLIENT, request, 401), AnomalyRule::CredentialFault), 0);
    }
    assert_eq!(keyed.counted(), 0);
    assert_eq!(keyed.ask(CLIENT, way), Err(Refusal::ProbesExhausted));
    let fresh = keyed.mesh.fleet.probe_grant(&keyed.mesh.log.state, CLIENT, vec![way]);
    let again = OpenPool { pool: crate::ids::PoolId([9; 16]), probe: Some(fresh), ..pool };
    keyed.open(CLIENT, again).unwrap();
    assert_eq!(keyed.ask(CLIENT, way), Err(Refusal::ProbesExhausted), "whatever is signed");
    keyed.changes(|d| split(d, 2));
    assert_eq!(keyed.ask(CLIENT, way), Err(Refusal::StaleShareEpoch), "the grant was for the shares before");
}

// --- policy changes ---

#[test]
fn a_credential_changes_with_its_share_epoch_alone() {
    type Case = (&'static str, fn(&mut PolicyDocument), Refusal);
    fn credential(d: &mut PolicyDocument) -> &mut crate::policy::CredentialDocument {
        d.route[0].credential.as_mut().unwrap()
    }
    let cases: &[Case] = &[
        ("host", |d| d.route[0].host = "api.example.org".into(), Refusal::ShareEpochUnchanged),
        ("port", |d| d.route[0].port = 8443, Refusal::ShareEpochUnchanged),
        ("scheme", |d| credential(d).scheme = "x-api-key".into(), Refusal::ShareEpochUnchanged),
        ("prefix", |d| credential(d).public_prefix.push('x'), Refusal::ShareEpochUnchanged),
        ("length", |d| credential(d).secret_bytes += 1, Refusal::ShareEpochUnchanged),
        ("echo", |d| credential(d).accept_echo = true, Refusal::ShareEpochUnchanged),
        (
            "one share",
            |d| {
                let other = credential_document(d, ROUTE, 3).shares["1"].clone();
                credential(d).shares.insert("1".into(), other);
            },
            Refusal::ShareEpochUnchanged,
        ),
        (
            "a share key",
            |d| d.member[0].share_key = Some(share_key(77).public().to_base64()),
            Refusal::ShareEpochUnchanged,
        ),
        ("lifted goes down", |d| credential(d).lifted = 4, Refusal::ShareEpochUnchanged),
        ("a lower epoch", |d| split(d, 1), Refusal::ShareEpochUsed),
        ("a member less", |d| drop(d.member.pop()), Refusal::PolicyInvalid),
    ];
    for (what, edit, refusal) in cases {
        let mut keyed = Keyed::new();
        keyed.changes(|d| {
            split(d, 2);
            credential(d).lifted = 5;
        });
        assert_eq!(keyed.change(edit), Outcome::Refused(*refusal), "{what}");
        if *refusal == Refusal::ShareEpochUnchanged {
            // Its twin: the same with shares split for it.
            keyed.changes(|d| {
                edit(d);
                split(d, 3);
            });
        }
        keyed.changes(|d| d.route[0].duration_ms_max += 1);
    }
    let mut keyed = Keyed::new();
    keyed.changes(|d| {
        d.member.pop();
        split(d, 2);
    });
}

#[test]
fn a_share_epoch_is_never_used_again() {
    let mut keyed = Keyed::new();
    keyed.changes(|d| split(d, 4));
    keyed.changes(|d| d.route[0].credential = None);
    assert!(keyed.mesh.state().meter(&route()).is_none());
    for used in 1..=4 {
        assert_eq!(keyed.change(|d| split(d, used)), Outcome::Refused(Refusal::ShareEpochUsed), "{used}");
    }
    // Nor after the route itself was gone.
    let (mut gone, mut clients) = (None, Vec::new());
    keyed.changes(|d| {
        gone = d.route.pop();
        clients = d.client.iter_mut().map(|c| std::mem::take(&mut c.routes)).collect();
    });
    let gone = gone.unwrap();
    let back = |d: &mut PolicyDocument, epoch| {
        d.route.push(gone.clone());
        split(d, epoch);
    };
    assert_eq!(keyed.change(|d| back(d, 4)), Outcome::Refused(Refusal::ShareEpochUsed));
    assert_eq!(keyed.mesh.state().share_epoch_highest(&route()), Some(4));
    keyed.changes(|d| back(d, 5));
    assert_eq!(keyed.mesh.state().share_epoch_highest(&route()), Some(5));
}

// --- determinism ---

/// A history with everything in it replays from its leaves alone, through a snapshot after every batch.
#[test]
fn what_was_metered_replays() {
    let mut keyed = Keyed::with(|d| d.attestation.settle_ms = 1000);
    let (genesis, _) = keyed.mesh.fleet.genesis();
    let [one, apart, beside] = keyed.ways();
    for (client, way, status) in [("b", one, 401), ("c", one, 0), ("d", beside, 400), (CLIENT, apart, 503)] {
        let request = keyed.ask(client, way).unwrap();
        keyed.report_with(client, request, |r| {
            (r.status, r.ended, r.error_form) = (status, Ended::Truncated, status == 400);
        });
    }
    let unsettled = keyed.ask("d", apart).unwrap();
    keyed.mesh.fleet.node(one.0.0).restart_process();
    keyed.wait(150_000);
    assert!(keyed.mesh.state().request(&unsettled).is_none());
    keyed.changes(|d| d.route[0].credential.as_mut().unwrap().lifted = 1);
    keyed.pools.clear();
    for client in ["b", "c", "d"] {
        let request = keyed.ask(client, beside).unwrap();
        keyed.answer(client, request, 401);
    }
    assert_eq!(keyed.mesh.state().meter(&route()).unwrap().suspended().count(), 1);
    let mesh = &keyed.mesh;
    let mut restored = State::from_bytes(&genesis.to_bytes(), mesh.fleet.cluster()).unwrap();
    let (mut commands, mut index, mut anomalies) = (Vec::new(), 1, 0);
    for bytes in &mesh.log.leaves[1..] {
        let Leaf::V1 { time, body } = borsh::from_slice(bytes).unwrap();
        match body {
            LeafBody::Decided { command, .. } => commands.push(command),
            LeafBody::Anomaly { .. } => anomalies += 1,
            LeafBody::BatchEnd(end) => {
                let batch = Batch { time, proposer: end.proposer, commands: std::mem::take(&mut commands) };
                for leaf in restored.apply(&encode(&batch), &mesh.fleet.blobs).leaf_bytes {
                    assert_eq!(leaf, mesh.log.leaves[index], "leaf {index}");
                    index += 1;
                }
                restored = State::from_bytes(&restored.to_bytes(), mesh.fleet.cluster()).unwrap();
            }
            _ => (),
        }
    }
    assert!(anomalies >= 5, "{anomalies}");
    assert_eq!(restored.digest(), mesh.state().digest());
}
