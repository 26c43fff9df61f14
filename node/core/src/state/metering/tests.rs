//! The meter alone, over any course of faults; then through the whole state machine. Each defence has a twin: the same
//! attack with that one rule switched off, where it succeeds.
//!
//! **These bite.** Beyond the twins, each of these changes to `metering.rs` was made for a moment, alone, and made a test fail;
//! (m) is in `machine`.
//!
//! | what was changed | what noticed it |
//! |---|---|
//! | excuses: no bound by client and pair, by pair, by node; renewed by lifting | `a_client_is_excused_once_per_pair`, `excuses_are_bounded_by_node_and_by_pair`, `lifting_renews_no_excuse` |
//! | excuses: a lost quorum comes before the node that lost it | `excuses_are_bounded_by_node_and_by_pair` |
//! | voids: no bound, held or counted; the counted are free; no bar for the minute, or for ever | `faults_are_void_so_often_per_pair`, `what_is_never_answered_freezes_nothing_however_far_apart`, `held_faults_of_three_clients_suspend_for_as_long_as_they_are_held` |
//! | stalls: never or each a fault; over all pairs, over all clients; also where the keyer denies | `so_many_are_given_up_by_client_and_pair`, (m) `so_many_requests_are_given_up_before_it_is_a_fault` |
//! | open requests: no bound, not counted; over all clients, over all pairs; probes count; a settlement makes room, a report or the end makes none | `so_many_requests_are_open_by_client_and_pair`, (m) `so_many_requests_of_a_client_are_open_over_a_pair`, `probes_are_not_metered_but_counted` |
//! | a freeze: with a common node, of two clients, by silence, never; the common node goes on | `one_node_suspends_itself_and_freezes_nothing`, `two_clients_harm_nobody_else`, `silence_adds_nothing_to_answers`, `a_hostile_nodes_tries_are_bounded` |
//! | silence: void with a common node, whatever the time, never; shown by what is excused, unreleased, or beside an answer; forgotten with another's | `no_node_alone_is_silent_on_pairs_without_a_common_node`, `an_accused_pair_does_not_prolong_its_own_cover`, `what_is_excused_or_unreleased_shows_no_outage`, `a_client_whose_key_was_refused_shows_no_silence` |
//! | held faults: one of a client only; what makes one void takes the others, held or counted; no bound; no suspension meanwhile | `a_void_fault_launders_no_other`, `a_repetition_clears_its_own_fault_alone`, `what_is_held_and_counted_is_bounded`, `held_faults_of_three_clients_suspend_for_as_long_as_they_are_held` |
//! | before release: the keyer's word alone, the relay's, any node's; whatever was sent; not when the client is last; not when the keyer is late | (m) `a_fault_before_release_is_void_when_keyer_and_relay_both_say_so`, `a_denial_that_comes_late_still_counts` |
//! | repetitions: not by the request's record | (m) `the_same_400_over_a_disjoint_pair_cancels_both` |
//!
//! One change makes no difference, since what it leaves is ignored: to keep the held faults of a client whose key was refused.
use super::*;
use crate::testing::START;
use proptest::prelude::*;

fn pair(relay: u64, keyer: u64) -> Pair {
    Pair { relay: NodeId(relay), keyer: NodeId(keyer) }
}

fn client(n: u8) -> ClientId {
    ClientId::new(format!("client-{n}")).unwrap()
}

/// Pairs of four nodes.
fn all_pairs() -> Vec<Pair> {
    (1..=4).flat_map(|r| (1..=4).filter(move |k| *k != r).map(move |k| pair(r, k))).collect()
}

/// A meter, a clock, and nodes that are attested since some moment.
struct Bench {
    meter: Meter,
    rules: Rules,
    now: Timestamp,
    since: BTreeMap<NodeId, Timestamp>,
    verdicts: Vec<Verdict>,
    requests: u128,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        Self {
            meter: Meter::new(1, 0, (1..=4).map(NodeId).collect()),
            rules,
            now: START,
            since: (1..=4).map(|n| (NodeId(n), Timestamp(0))).collect(),
            verdicts: Vec::new(),
            requests: 0,
        }
    }

    /// An entry later.
    fn wait(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        let since = &self.since;
        let interrupted = |p: Pair, from| since_interrupted(since, p, from);
        self.meter.release(&self.rules, self.now, &interrupted, &mut self.verdicts);
    }

    /// A request now, and its fault; or why it is not authorised.
    fn fault(&mut self, c: u8, pair: Pair, kind: FaultKind) -> Result<RequestId, Refusal> {
        let request = self.request(c, pair)?;
        self.report(c, pair, request, self.now, kind);
        Ok(request)
    }

    fn request(&mut self, c: u8, pair: Pair) -> Result<RequestId, Refusal> {
        self.meter.usable_under(&self.rules, pair, &client(c))?;
        self.requests += 1;
        Ok(RequestId(self.requests.to_be_bytes()))
    }

    fn report(&mut self, c: u8, pair: Pair, request: RequestId, authorised: Timestamp, kind: FaultKind) {
        let fault = Fault { pair, client: client(c), request, authorised, kind };
        let since = &self.since;
        let interrupted = |p: Pair, from| since_interrupted(since, p, from);
        self.meter.fault(&self.rules, self.now, fault, &interrupted, &mut self.verdicts);
    }

    /// The node restarts.
    fn restart(&mut self, node: u64) {
        self.since.insert(NodeId(node), self.now);
    }

    fn suspended(&self) -> Vec<Pair> {
        self.meter.suspended().collect()
    }

    fn untouched(&self) -> bool {
        self.suspended().is_empty() && !self.meter.is_frozen() && self.meter.counted().all(|(_, n)| n == 0)
    }
}

fn since_interrupted(since: &BTreeMap<NodeId, Timestamp>, p: Pair, from: Timestamp) -> Interrupted {
    let steady = since.iter().filter(|(_, s)| **s <= from).map(|(n, _)| *n).collect();
    interruption(&steady, 3, p)
}

use FaultKind::{Answer, Answerless, OwnForm400};

#[test]
fn disjoint_pairs_have_no_node_in_common() {
    assert!(pair(1, 2).disjoint(pair(3, 4)));
    for other in [pair(1, 3), pair(3, 1), pair(2, 3), pair(3, 2), pair(2, 1), pair(1, 2)] {
        assert!(!pair(1, 2).disjoint(other), "{other:?}");
    }
}

#[test]
fn what_a_report_says_about_a_credential() {
    let none = [
        (200, false),
        (302, false),
        (404, true),
        (429, true),
        (500, true),
        (529, true),
        (100, false),
        (600, false),
    ];
    let answer =
        [(401, true), (401, false), (403, true), (403, false), (400, false), (404, false), (451, false)];
    let gateway =
        [(408, false), (425, false), (429, false), (500, false), (502, false), (520, false), (599, false)];
    let kind = |(status, error_form), ended| {
        let request = RequestId([1; 16]);
        FaultKind::of(&Report {
            request,
            status,
            ended,
            tokens_in: 0,
            tokens_cached: 0,
            tokens_out: 0,
            error_form,
            same_as: None,
        })
    };
    for ended in [Ended::Complete, Ended::Truncated, Ended::Cancelled] {
        none.iter().for_each(|s| assert_eq!(kind(*s, ended), None, "{s:?}"));
        answer.iter().for_each(|s| assert_eq!(kind(*s, ended), Some(Answer), "{s:?}"));
        gateway.iter().for_each(|s| assert_eq!(kind(*s, ended), Some(Answerless), "{s:?}"));
        assert_eq!(kind((400, true), ended), Some(OwnForm400));
    }
    use Ended as E;
    for ended in [E::Complete, E::Unreachable, E::Truncated, E::CeilingReached, E::MeshFailure, E::TimedOut] {
        assert_eq!(kind((0, false), ended), Some(Answerless), "{ended:?}");
    }
    assert_eq!(kind((0, false), E::HeadRefused), Some(Answerless), "the relay's word alone");
    assert_eq!(kind((0, false), E::Cancelled), None);
}

// --- one client ---

/// A hostile relay that tries with one client for ever.
fn tries_with_one_client(rules: Rules, kind: FaultKind) -> (usize, Bench) {
    let mut bench = Bench::new(rules);
    let mut tries = 0;
    for _ in 0..100 {
        tries += usize::from(bench.fault(0, pair(1, 2), kind).is_ok());
        bench.wait(HOLD_MS + 1);
    }
    (tries, bench)
}

#[test]
fn one_client_is_one_try_per_pair() {
    for kind in [Answer, Answerless, OwnForm400] {
        let (tries, bench) = tries_with_one_client(RULES, kind);
        assert_eq!(tries, 1, "{kind:?}");
        assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Err(Refusal::PairBarred));
        assert_eq!(bench.meter.usable_by(pair(1, 2), &client(1)), Ok(()));
        assert_eq!(bench.meter.usable_by(pair(1, 3), &client(0)), Ok(()));
        // The twin without bars: one client, and no end of tries.
        let (tries, _) = tries_with_one_client(Rules { bars: false, ..RULES }, kind);
        assert_eq!(tries, 100, "{kind:?}");
    }
}

/// A client that lies about every request over every pair.
fn one_lying_client(rules: Rules) -> Bench {
    let mut bench = Bench::new(rules);
    for round in 0..20 {
        for p in all_pairs() {
            // Requests that were in flight before the bar count no more than the first.
            let kind = [Answer, Answerless, OwnForm400][round % 3];
            let request = RequestId([
                round as u8,
                p.relay.0 as u8,
                p.keyer.0 as u8,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]);
            bench.report(0, p, request, bench.now, kind);
        }
        bench.wait(HOLD_MS + 1);
    }
    bench
}

#[test]
fn one_client_suspends_and_freezes_nothing() {
    let bench = one_lying_client(RULES);
    assert_eq!((bench.suspended(), bench.meter.is_frozen()), (vec![], false));
    assert!(all_pairs().into_iter().all(|p| bench.meter.usable_by(p, &client(1)).is_ok()));
    let twin = one_lying_client(Rules { clients_once: false, ..RULES });
    assert!(twin.meter.is_frozen());
}

// --- three clients ---

#[test]
fn three_clients_suspend_a_pair() {
    let suspended = |rules| {
        let mut bench = Bench::new(rules);
        for c in 0..2 {
            bench.fault(c, pair(1, 2), Answer).unwrap();
        }
        assert_eq!(bench.meter.usable(pair(1, 2)), Ok(()), "two do not");
        bench.fault(2, pair(1, 2), Answer).unwrap();
        bench
    };
    let bench = suspended(RULES);
    assert_eq!(
        (bench.suspended(), bench.meter.is_frozen()),
        (vec![pair(1, 2)], false),
        "one pair freezes nothing"
    );
    assert_eq!(bench.verdicts.last(), Some(&Verdict::Suspended(pair(1, 2))));
    assert_eq!(bench.meter.usable_by(pair(1, 2), &client(9)), Err(Refusal::PairSuspended));
    assert_eq!(bench.meter.usable_by(pair(2, 1), &client(9)), Ok(()));
    let mut twin = suspended(Rules { limits: false, ..RULES });
    twin.meter.pairs.values_mut().for_each(|m| m.held.clear());
    assert_eq!(twin.suspended(), vec![]);
}

#[test]
fn three_clients_answers_on_pairs_without_a_common_node_freeze() {
    let course = |rules| {
        let mut bench = Bench::new(rules);
        bench.fault(0, pair(1, 2), Answer).unwrap();
        bench.fault(1, pair(1, 2), Answer).unwrap();
        bench.fault(1, pair(3, 4), Answer).unwrap();
        assert!(!bench.meter.is_frozen(), "two clients on two pairs do not");
        bench.fault(2, pair(3, 4), Answer).unwrap();
        bench
    };
    let bench = course(RULES);
    assert!(bench.meter.is_frozen() && bench.suspended().is_empty());
    assert_eq!(bench.verdicts.last(), Some(&Verdict::Frozen));
    assert_eq!(bench.meter.usable_by(pair(4, 3), &client(9)), Err(Refusal::CredentialFrozen));
    let twin = course(Rules { limits: false, ..RULES });
    assert_eq!(twin.meter.usable_by(pair(4, 3), &client(9)), Ok(()));
}

/// One hostile node, or whoever sits on its uplink, spoils keys over two of its pairs.
#[test]
fn one_node_suspends_itself_and_freezes_nothing() {
    let course = |rules| {
        let mut bench = Bench::new(rules);
        bench.fault(0, pair(1, 2), Answer).unwrap();
        bench.fault(1, pair(1, 2), Answer).unwrap();
        assert_eq!(bench.meter.usable(pair(4, 1)), Ok(()));
        bench.fault(2, pair(1, 3), Answer).unwrap();
        bench
    };
    assert!(course(Rules { common_node: false, ..RULES }).meter.is_frozen(), "it could stop the service");
    let mut bench = course(RULES);
    assert!(!bench.meter.is_frozen());
    for p in all_pairs() {
        let expected = if of_node_one(p) { Err(Refusal::PairSuspended) } else { Ok(()) };
        assert_eq!(bench.meter.usable_by(p, &client(9)), expected, "{p:?}");
    }
    let said = bench.verdicts.iter().filter(|v| matches!(v, Verdict::Suspended(_))).count();
    assert_eq!((bench.suspended().len(), said), (6, 6), "each pair is in the log once");
    // Another node's pair as well: it was not that node alone.
    bench.fault(3, pair(3, 4), Answer).unwrap();
    assert!(bench.meter.is_frozen());
    // Either of two may be the one: only what has both is suspended.
    let mut bench = Bench::new(RULES);
    for (c, p) in [(0, pair(1, 2)), (1, pair(2, 1)), (2, pair(1, 2))] {
        bench.fault(c, p, Answer).unwrap();
    }
    assert_eq!(bench.suspended(), [pair(1, 2), pair(2, 1)]);
}

/// Two clients' silence over one pair, and one answer over another: one answer is not three.
#[test]
fn silence_adds_nothing_to_answers() {
    let course = |rules| {
        let mut bench = Bench::new(rules);
        for c in 0..2 {
            bench.fault(c, pair(1, 2), Answerless).unwrap();
        }
        bench.wait(HOLD_MS + 1);
        assert_eq!(bench.meter.counted().map(|(_, n)| n).sum::<usize>(), 2);
        bench.fault(2, pair(3, 4), Answer).unwrap();
        bench
    };
    let bench = course(RULES);
    assert!(!bench.meter.is_frozen() && bench.suspended().is_empty());
    assert!(course(Rules { answers_only: false, ..RULES }).meter.is_frozen());
}

#[test]
fn what_is_never_answered_freezes_nothing_however_far_apart() {
    for gap in [HOLD_MS + 1, 86_400_000] {
        let mut bench = Bench::new(RULES);
        for (c, p) in [(0, pair(1, 2)), (1, pair(1, 2)), (2, pair(1, 2)), (3, pair(1, 3))] {
            // Held faults of three suspend already: what comes then was in flight.
            let request = RequestId([100 + c; 16]);
            bench.report(c, p, request, bench.now, Answerless);
            bench.wait(gap);
        }
        assert_eq!((bench.suspended(), bench.meter.is_frozen()), (vec![pair(1, 2)], false), "one node's");
        bench.fault(4, pair(3, 4), Answerless).unwrap();
        bench.wait(HOLD_MS);
        assert_eq!(bench.suspended(), [pair(1, 2)]);
        bench.wait(1);
        assert!(bench.untouched(), "the provider's");
        assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Ok(()));
        assert!(bench.meter.pairs[&pair(1, 2)].voids == 3, "and it is counted");
    }
    // The twin: an answer stays.
    let mut bench = Bench::new(RULES);
    bench.fault(0, pair(1, 2), Answer).unwrap();
    bench.fault(1, pair(3, 4), Answerless).unwrap();
    bench.wait(HOLD_MS + 1);
    assert_eq!(bench.meter.counted().map(|(_, n)| n).sum::<usize>(), 2);
}

#[test]
fn held_faults_of_three_clients_suspend_for_as_long_as_they_are_held() {
    let mut bench = Bench::new(RULES);
    for c in 0..3 {
        bench.fault(c, pair(1, 2), Answerless).unwrap();
    }
    assert_eq!(bench.meter.usable_by(pair(1, 2), &client(9)), Err(Refusal::PairSuspended));
    assert!(bench.verdicts.is_empty(), "no leaf yet");
    // The provider: another pair shows it.
    bench.fault(3, pair(3, 4), Answerless).unwrap();
    assert!(bench.untouched());
    assert_eq!(bench.meter.usable_by(pair(1, 2), &client(9)), Ok(()), "at once");
    // A void fault was a try all the same: one in a minute.
    bench.wait(HOLD_MS);
    assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Err(Refusal::PairBarred));
    assert_eq!(bench.meter.next_due(), Some(bench.now.plus_ms(1)));
    bench.wait(1);
    assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Ok(()));
}

// --- outages, crashes ---

/// The provider answers nobody for ten minutes; clients try pair after pair.
fn outage(rules: Rules) -> Bench {
    let mut bench = Bench::new(rules);
    for step in 0..200u64 {
        let pairs = all_pairs();
        let p = pairs[(step * 5) as usize % pairs.len()];
        let _ = bench.fault((step % 5) as u8, p, Answerless);
        bench.wait(3000);
    }
    bench.wait(HOLD_MS + 1);
    bench
}

#[test]
fn a_providers_outage_counts_against_nobody() {
    assert!(outage(RULES).untouched());
    let twin = outage(Rules { elsewhere: false, ..RULES });
    assert!(!twin.suspended().is_empty() && !twin.meter.is_frozen());
}

#[test]
fn an_answerless_fault_is_void_by_a_disjoint_one_within_a_minute_either_side() {
    for (gap, void) in [(0, true), (HOLD_MS, true), (HOLD_MS + 1, false)] {
        for other in [pair(3, 4), pair(4, 3)] {
            let mut bench = Bench::new(RULES);
            let first = bench.fault(0, pair(1, 2), Answerless).unwrap();
            bench.wait(gap);
            let second = bench.fault(1, other, Answerless).unwrap();
            let both = [Verdict::Elsewhere(first), Verdict::Elsewhere(second)];
            let expected = if void { &both[..] } else { &[Verdict::Counted(first)] };
            assert_eq!(bench.verdicts, expected, "{gap} {other:?}");
        }
    }
    // A pair that shares a node says nothing: its fault can be that node's.
    for other in [pair(1, 3), pair(3, 1), pair(2, 1), pair(4, 2)] {
        let mut bench = Bench::new(RULES);
        let first = bench.fault(0, pair(1, 2), Answerless).unwrap();
        let second = bench.fault(1, other, Answerless).unwrap();
        bench.wait(HOLD_MS);
        assert_eq!(bench.verdicts, [], "{other:?}: still held");
        bench.wait(1);
        assert_eq!(bench.verdicts, [Verdict::Counted(first), Verdict::Counted(second)], "{other:?}");
    }
}

#[test]
fn no_node_alone_is_silent_on_pairs_without_a_common_node() {
    // Three of three nodes, as when one of four is down: no two of these pairs are disjoint.
    let mut bench = Bench::new(RULES);
    for (c, p) in [pair(1, 2), pair(3, 1), pair(2, 3), pair(2, 1)].into_iter().enumerate() {
        bench.fault(c as u8, p, Answerless).unwrap();
    }
    bench.wait(HOLD_MS + 1);
    assert!(bench.untouched());
    // In the minute of an outage, also a pair that shares a node with each that showed it.
    let mut bench = Bench::new(RULES);
    for (c, p) in [pair(1, 2), pair(3, 4), pair(1, 3)].into_iter().enumerate() {
        bench.fault(c as u8, p, Answerless).unwrap();
    }
    bench.wait(HOLD_MS);
    bench.fault(4, pair(1, 4), Answerless).unwrap();
    bench.wait(HOLD_MS + 1);
    assert!(bench.untouched());
    // A minute later, it is that pair's own.
    let last = bench.fault(4, pair(1, 4), Answerless).unwrap();
    bench.wait(HOLD_MS + 1);
    assert_eq!(bench.verdicts.last(), Some(&Verdict::Counted(last)));
    // The twin: one node is in all of them.
    let mut bench = Bench::new(RULES);
    for (c, p) in [pair(1, 2), pair(3, 1), pair(1, 4), pair(2, 1)].into_iter().enumerate() {
        bench.fault(c as u8, p, Answerless).unwrap();
    }
    bench.wait(HOLD_MS + 1);
    assert_eq!(bench.meter.counted().map(|(_, n)| n).sum::<usize>(), 4);
}

/// Two faults of a disjoint pair do not grow into cover for ever: it ends a minute after the older.
#[test]
fn an_accused_pair_does_not_prolong_its_own_cover() {
    let mut bench = Bench::new(RULES);
    bench.fault(0, pair(3, 4), Answerless).unwrap();
    bench.wait(HOLD_MS);
    let near = bench.fault(1, pair(1, 2), Answerless).unwrap();
    assert!(bench.verdicts.contains(&Verdict::Elsewhere(near)));
    bench.wait(1);
    let far = bench.fault(2, pair(1, 2), Answerless).unwrap();
    bench.wait(HOLD_MS + 1);
    assert_eq!(bench.verdicts.last(), Some(&Verdict::Counted(far)));
}

#[test]
fn what_is_excused_or_unreleased_shows_no_outage() {
    // The accused restarts, and with it another pair's request fails.
    let mut bench = Bench::new(RULES);
    let begun = bench.now;
    let running = bench.request(0, pair(3, 4)).unwrap();
    bench.wait(1000);
    bench.restart(3);
    bench.report(0, pair(3, 4), running, begun, Answerless);
    assert_eq!(bench.verdicts, [Verdict::Excused(running)]);
    let accused = bench.fault(1, pair(1, 2), Answerless).unwrap();
    bench.wait(HOLD_MS + 1);
    assert_eq!(bench.verdicts.last(), Some(&Verdict::Counted(accused)));
    let mut bench = Bench::new(RULES);
    let unsent = bench.fault(0, pair(3, 4), Answerless).unwrap();
    assert!(bench.meter.unreleased(&client(0), unsent, pair(3, 4)));
    let accused = bench.fault(1, pair(1, 2), Answerless).unwrap();
    bench.wait(HOLD_MS + 1);
    assert_eq!(bench.verdicts, [Verdict::Counted(accused)]);
    // The pair's other silence shows it still.
    let mut bench = Bench::new(RULES);
    let other = bench.fault(0, pair(3, 4), Answerless).unwrap();
    bench.wait(1);
    let unsent = bench.fault(1, pair(3, 4), Answerless).unwrap();
    assert!(bench.meter.unreleased(&client(1), unsent, pair(3, 4)));
    let accused = bench.fault(2, pair(1, 2), Answerless).unwrap();
    assert_eq!(bench.verdicts, [Verdict::Elsewhere(other), Verdict::Elsewhere(accused)]);
}

/// A node tries in the shadow of other pairs' trouble: so often, and no more.
#[test]
fn faults_are_void_so_often_per_pair() {
    let course = |rules| {
        let mut bench = Bench::new(rules);
        let others = [pair(3, 4), pair(4, 3), pair(2, 3), pair(3, 2), pair(2, 4), pair(4, 2)];
        let mut tries = 0;
        for round in 0..500usize {
            bench.report(200, others[round % 2], RequestId([1; 16]), bench.now, Answerless);
            tries += usize::from(bench.fault((round % 100) as u8, pair(1, 2), Answerless).is_ok());
            bench.wait(HOLD_MS + 1);
            // What other pairs' own budgets leave is not the matter here.
            others.iter().for_each(|p| drop(bench.meter.pairs.remove(p)));
        }
        (tries, bench)
    };
    let (tries, bench) = course(RULES);
    assert_eq!(tries, VOIDS_PER_PAIR_MAX as usize + SUSPENDING_CLIENTS);
    assert_eq!(bench.suspended(), [pair(1, 2)]);
    let (tries, twin) = course(Rules { voids_max: u32::MAX, ..RULES });
    assert_eq!((tries, twin.suspended()), (500, vec![]), "without the bound it goes on for ever");
}

/// A node dies under requests of three clients over two pairs, and comes back before or after its clients say so.
fn crash(rules: Rules, reported_after_ms: u64, back_after_ms: u64) -> Bench {
    let mut bench = Bench::new(rules);
    let begun = bench.now;
    let running: Vec<_> = (0..6u8)
        .map(|c| (c, pair(1, 2 + u64::from(c % 2))))
        .map(|(c, p)| (c, p, bench.request(c, p).unwrap()))
        .collect();
    bench.wait(1000);
    bench.since.remove(&NodeId(1));
    let mut waited = 0;
    for (at, back) in
        [(reported_after_ms, false), (back_after_ms, true)].iter().copied().collect::<BTreeMap<_, _>>()
    {
        bench.wait(at - waited);
        waited = at;
        if back {
            bench.restart(1);
        } else {
            running.iter().for_each(|(c, p, r)| bench.report(*c, *p, *r, begun, Answerless));
        }
    }
    bench.wait(HOLD_MS + 1);
    bench
}

#[test]
fn a_crash_counts_against_nobody() {
    for (reported, back) in [(500, 5000), (5000, 500), (500, 600_000)] {
        assert!(crash(RULES, reported, back).untouched(), "{reported} {back}");
        let twin = crash(Rules { excused_max: 0, ..RULES }, reported, back);
        assert_eq!(twin.suspended(), [pair(1, 2), pair(1, 3)], "{reported} {back}");
    }
}

#[test]
fn a_node_that_restarts_on_purpose_is_excused_so_often_and_no_more() {
    // Of four, and of three, where every restart costs the quorum.
    for nodes in [4, 3] {
        restarts_on_purpose(nodes);
    }
}

fn restarts_on_purpose(nodes: u64) {
    let course = |rules| {
        let mut bench = Bench::new(rules);
        bench.since.retain(|n, _| n.0 <= nodes);
        for crash in 0..100u8 {
            let p = pair(1, 2);
            let Ok(request) = bench.request(crash, p) else { break };
            let begun = bench.now;
            bench.wait(1000);
            bench.restart(1);
            bench.report(crash, p, request, begun, Answerless);
            bench.wait(2 * HOLD_MS);
        }
        bench
    };
    let bench = course(RULES);
    let excused = bench.verdicts.iter().filter(|v| matches!(v, Verdict::Excused(_))).count();
    assert_eq!(excused, EXCUSED_PER_NODE_MAX as usize);
    assert_eq!(bench.suspended(), vec![pair(1, 2)], "then it is metered like anybody");
    let twin = course(Rules { excused_max: u32::MAX, excused_once: false, ..RULES });
    assert!(twin.untouched(), "without the bound it goes on for ever");
}

/// Crashes on purpose, each under one request of a new client: the bound of a node and that of a pair, each where the other
/// would go on.
#[test]
fn excuses_are_bounded_by_node_and_by_pair() {
    let excused_of = |members: u64, rules, pairs: &[Pair], nodes: &[u64]| {
        let mut bench = Bench::new(rules);
        bench.since.retain(|n, _| n.0 <= members);
        for turn in 0..200u8 {
            let at = usize::from(turn);
            let (p, node) = (pairs[at % pairs.len()], nodes[at % nodes.len()]);
            let Ok(request) = bench.request(turn, p) else { continue };
            let begun = bench.now;
            bench.wait(1000);
            bench.restart(node);
            bench.report(turn, p, request, begun, Answerless);
            bench.wait(2 * HOLD_MS);
        }
        bench.verdicts.iter().filter(|v| matches!(v, Verdict::Excused(_))).count()
    };
    let excused = |rules, pairs: &[Pair], nodes: &[u64]| excused_of(4, rules, pairs, nodes);
    let own: Vec<Pair> = all_pairs().into_iter().filter(|p| of_node_one(*p)).collect();
    assert_eq!(excused(RULES, &own, &[1]), EXCUSED_PER_NODE_MAX as usize);
    // Of three nodes, where each of its restarts costs the quorum: that is its own doing, too.
    let three = [pair(1, 2), pair(2, 1), pair(1, 3), pair(3, 1)];
    assert_eq!(excused_of(3, RULES, &three, &[1]), EXCUSED_PER_NODE_MAX as usize);
    assert_eq!(excused(Rules { excused_max: u32::MAX, ..RULES }, &own, &[1]), 200);
    let (one, both) = ([pair(1, 2)], [1, 2]);
    assert_eq!(excused(RULES, &one, &both), EXCUSED_PER_PAIR_MAX);
    let twin = excused(Rules { excused_per_pair_max: usize::MAX, ..RULES }, &one, &both);
    assert_eq!(twin, 2 * EXCUSED_PER_NODE_MAX as usize, "each node's own");
}

/// Admins lift what was imposed; what a node or a client had of excuses in this share epoch is spent.
#[test]
fn lifting_renews_no_excuse() {
    let crash = |bench: &mut Bench, c: u8, p: Pair| {
        let (request, begun) = (bench.request(c, p).unwrap(), bench.now);
        bench.wait(1000);
        bench.restart(1);
        bench.report(c, p, request, begun, Answerless);
        bench.wait(HOLD_MS + 1);
        bench.verdicts.last() == Some(&Verdict::Excused(request))
    };
    let mut bench = Bench::new(RULES);
    assert!(crash(&mut bench, 0, pair(1, 2)));
    bench.meter.lift(1);
    assert!(!crash(&mut bench, 0, pair(1, 2)), "once per client and pair");
    assert!(crash(&mut bench, 1, pair(1, 2)), "the twin: another client");
    let mut bench = Bench::new(RULES);
    let own: Vec<Pair> = all_pairs().into_iter().filter(|p| of_node_one(*p)).collect();
    for c in 0..EXCUSED_PER_NODE_MAX as u8 {
        assert!(crash(&mut bench, c, own[usize::from(c) % own.len()]));
    }
    bench.meter.lift(1);
    assert!(!crash(&mut bench, 100, pair(1, 2)), "the node's are spent");
}

/// One interruption, and many faults of one client: one of them is excused.
#[test]
fn a_client_is_excused_once_per_pair() {
    let course = |rules| {
        let mut bench = Bench::new(rules);
        let begun = bench.now;
        let running: Vec<_> = (0..20).map(|_| bench.request(0, pair(1, 2)).unwrap()).collect();
        bench.wait(1000);
        bench.restart(1);
        running.into_iter().for_each(|r| bench.report(0, pair(1, 2), r, begun, Answerless));
        bench.wait(HOLD_MS + 1);
        let excused = bench.verdicts.iter().filter(|v| matches!(v, Verdict::Excused(_))).count();
        (excused, bench.meter.usable_by(pair(1, 2), &client(0)))
    };
    assert_eq!(course(RULES), (1, Err(Refusal::PairBarred)));
    assert_eq!(course(Rules { excused_once: false, ..RULES }), (20, Ok(())));
    // A lost quorum is no better cover.
    let mut bench = Bench::new(RULES);
    let begun = bench.now;
    let running: Vec<_> = (0..20).map(|_| bench.request(0, pair(1, 2)).unwrap()).collect();
    bench.wait(1000);
    bench.restart(3);
    bench.restart(4);
    running.into_iter().for_each(|r| bench.report(0, pair(1, 2), r, begun, Answerless));
    assert_eq!(bench.verdicts.len(), 1);
    assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Err(Refusal::PairBarred));
}

#[test]
fn a_crash_excuses_no_answer() {
    let mut bench = Bench::new(RULES);
    let begun = bench.now;
    bench.wait(1000);
    bench.restart(1);
    for c in 0..3 {
        let request = bench.request(c, pair(1, 2)).unwrap();
        bench.report(c, pair(1, 2), request, begun, Answer);
    }
    assert_eq!(bench.suspended(), vec![pair(1, 2)]);
}

/// Two of four nodes die; three clients' requests hang over the pair of the other two, then fail.
fn quorum_lost(rules: Rules) -> Bench {
    let mut bench = Bench::new(rules);
    let begun = bench.now;
    let ways = [pair(1, 2), pair(2, 1), pair(1, 2)];
    let running: Vec<_> =
        ways.into_iter().enumerate().map(|(c, p)| (c, p, bench.request(c as u8, p).unwrap())).collect();
    bench.wait(1000);
    bench.restart(3);
    bench.restart(4);
    running.iter().for_each(|(c, p, r)| bench.report(*c as u8, *p, *r, begun, Answerless));
    bench.wait(HOLD_MS + 1);
    bench
}

#[test]
fn a_lost_quorum_counts_against_nobody_and_costs_no_nodes_excuses() {
    let bench = quorum_lost(RULES);
    assert!(bench.untouched() && bench.meter.excused.is_empty());
    let twin = quorum_lost(Rules { quorum_lost: false, ..RULES });
    assert_eq!(twin.meter.counted().map(|(_, n)| n).sum::<usize>(), 3);
}

#[test]
fn what_failed_with_another_nodes_crash_costs_one_client_one_pair() {
    let mut bench = Bench::new(RULES);
    let begun = bench.now;
    let ways = [pair(1, 2), pair(4, 2), pair(4, 1)];
    let running: Vec<_> =
        ways.into_iter().enumerate().map(|(c, p)| (c, p, bench.request(c as u8, p).unwrap())).collect();
    bench.wait(1000);
    bench.restart(4);
    running.iter().for_each(|(c, p, r)| bench.report(*c as u8, *p, *r, begun, Answerless));
    bench.wait(HOLD_MS + 1);
    // A restart must be no cover for faults on pairs without the node.
    assert_eq!(bench.meter.counted().filter(|(_, n)| *n > 0).collect::<Vec<_>>(), [(pair(1, 2), 1)]);
    assert!(bench.suspended().is_empty());
}

// --- several faults of one client ---

/// A relay has one request fail that will be void, so that the others of its client are forgotten with it.
#[test]
fn a_void_fault_launders_no_other() {
    for others in [1, OPEN_PER_PAIR_MAX - 1] {
        let mut bench = Bench::new(RULES);
        let all: Vec<_> = (0..=others).map(|_| bench.request(0, pair(1, 2)).unwrap()).collect();
        all.iter().for_each(|r| bench.report(0, pair(1, 2), *r, bench.now, Answerless));
        // All but the last.
        for r in &all[..all.len() - 1] {
            assert!(bench.meter.unreleased(&client(0), *r, pair(1, 2)));
            assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Err(Refusal::PairBarred));
        }
        bench.wait(HOLD_MS + 1);
        assert_eq!(bench.verdicts, [Verdict::Counted(all[all.len() - 1])]);
    }
    for late in [false, true] {
        for second in [OwnForm400, Answerless, Answer] {
            let mut bench = Bench::new(RULES);
            let [one, two] = [(); 2].map(|()| bench.request(0, pair(1, 2)).unwrap());
            bench.report(0, pair(1, 2), one, bench.now, OwnForm400);
            bench.wait(if late { HOLD_MS + 1 } else { 1 });
            bench.report(0, pair(1, 2), two, bench.now, second);
            bench.meter.cancel(&RULES, &client(0), one, pair(3, 4));
            assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Err(Refusal::PairBarred));
            bench.wait(HOLD_MS + 1);
            assert_eq!(bench.meter.counted().collect::<Vec<_>>(), [(pair(1, 2), 1)], "{late} {second:?}");
            // Each has its own repetition.
            assert_eq!(bench.meter.cancel(&RULES, &client(0), two, pair(3, 4)), second == OwnForm400);
            assert_eq!(bench.untouched(), second == OwnForm400);
        }
    }
}

/// As above, when both count already.
#[test]
fn a_repetition_clears_its_own_fault_alone() {
    let mut bench = Bench::new(RULES);
    let [one, two] = [(); 2].map(|()| bench.request(0, pair(1, 2)).unwrap());
    [one, two].into_iter().for_each(|r| bench.report(0, pair(1, 2), r, bench.now, OwnForm400));
    bench.wait(HOLD_MS + 1);
    for (first, left) in [(one, 1), (two, 0)] {
        assert!(bench.meter.cancel(&RULES, &client(0), first, pair(3, 4)));
        assert_eq!(bench.meter.counted().map(|(_, n)| n).sum::<usize>(), left);
        assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)).is_err(), left == 1);
    }
}

/// A pair over which a client's key was refused is no witness of an outage, by that client's other requests.
#[test]
fn a_client_whose_key_was_refused_shows_no_silence() {
    for order in [[Answer, Answerless], [Answerless, Answer]] {
        let mut bench = Bench::new(RULES);
        let own = [(); 2].map(|()| bench.request(0, pair(1, 2)).unwrap());
        for (request, kind) in own.into_iter().zip(order) {
            bench.report(0, pair(1, 2), request, bench.now, kind);
            bench.wait(HOLD_MS + 1);
        }
        let silent = bench.fault(1, pair(3, 4), Answerless).unwrap();
        bench.wait(HOLD_MS + 1);
        assert_eq!(bench.verdicts.last(), Some(&Verdict::Counted(silent)), "{order:?}");
        assert_eq!(bench.meter.counted().map(|(_, n)| n).sum::<usize>(), 2, "{order:?}");
    }
}

#[test]
fn what_is_held_and_counted_is_bounded() {
    let mut bench = Bench::new(RULES);
    let report = |bench: &mut Bench, c: u8, n: u8, kind| {
        let mut id = [c; 16];
        id[0] = n;
        bench.report(c, pair(1, 2), RequestId(id), bench.now, kind);
    };
    let sizes = |bench: &Bench| {
        let meter = &bench.meter.pairs[&pair(1, 2)];
        let own = meter.counted.values().map(BTreeMap::len).max().unwrap_or_default();
        (meter.holds(&client(1)), meter.held.len(), meter.counted.len(), own)
    };
    for n in 0..100 {
        report(&mut bench, 1, n, OwnForm400);
    }
    assert_eq!(sizes(&bench), (HELD_PER_CLIENT_MAX, HELD_PER_CLIENT_MAX, 0, 0));
    for (c, n) in (2..20).flat_map(|c| (0..100).map(move |n| (c, n))) {
        report(&mut bench, c, n, OwnForm400);
    }
    assert_eq!(sizes(&bench), (HELD_PER_CLIENT_MAX, HELD_PER_PAIR_MAX, 0, 0));
    bench.wait(HOLD_MS + 1);
    assert_eq!(sizes(&bench), (0, 0, REMEMBERED_PER_PAIR_MAX, HELD_PER_CLIENT_MAX));
    for n in 100..200 {
        report(&mut bench, 1, n, OwnForm400);
    }
    bench.wait(HOLD_MS + 1);
    assert_eq!(sizes(&bench), (0, 0, REMEMBERED_PER_PAIR_MAX, HELD_PER_CLIENT_MAX));
}

// --- what is open, what is given up ---

#[test]
fn so_many_requests_are_open_by_client_and_pair() {
    let opened = |rules: &Rules, meter: &mut Meter, c: u8, p: Pair| {
        let open = |meter: &mut Meter| {
            meter.may_open_under(rules, p, &client(c))?;
            meter.opened(p, &client(c));
            Ok::<_, Refusal>(())
        };
        (0..100).take_while(|_| open(meter) != Err(Refusal::PairBusy)).count()
    };
    let mut meter = Bench::new(RULES).meter;
    for (c, p) in [(0, pair(1, 2)), (1, pair(1, 2)), (0, pair(3, 4)), (0, pair(2, 1))] {
        assert_eq!(opened(&RULES, &mut meter, c, p), OPEN_PER_PAIR_MAX as usize, "{c} {p:?}");
    }
    meter.closed(pair(1, 2), &client(0));
    assert_eq!(opened(&RULES, &mut meter, 0, pair(1, 2)), 1);
    let unbounded = Rules { open_max: u32::MAX, ..RULES };
    assert_eq!(opened(&unbounded, &mut Bench::new(unbounded).meter, 0, pair(1, 2)), 100);
}

#[test]
fn so_many_are_given_up_by_client_and_pair() {
    let first = |rules: &Rules, meter: &mut Meter, c: u8, p: Pair| {
        (1..100).find(|_| meter.stalled(rules, p, &client(c)))
    };
    let mut meter = Bench::new(RULES).meter;
    for (c, p) in [(0, pair(1, 2)), (1, pair(1, 2)), (0, pair(3, 4)), (0, pair(2, 1))] {
        assert_eq!(first(&RULES, &mut meter, c, p), Some(STALLS_MAX), "{c} {p:?}");
        assert_eq!(first(&RULES, &mut meter, c, p), Some(1), "and each after it");
    }
    let unbounded = Rules { stalls_max: u32::MAX, ..RULES };
    assert_eq!(first(&unbounded, &mut Bench::new(unbounded).meter, 0, pair(1, 2)), None);
}

// --- a 400 of the API's own ---

#[test]
fn the_same_400_over_a_disjoint_pair_cancels_both() {
    for (other, cancels) in [(pair(3, 4), true), (pair(4, 3), true), (pair(3, 1), false), (pair(2, 4), false)]
    {
        for late in [false, true] {
            let mut bench = Bench::new(RULES);
            let first = bench.fault(0, pair(1, 2), OwnForm400).unwrap();
            assert_eq!(bench.meter.usable_by(pair(1, 2), &client(0)), Err(Refusal::PairBarred));
            bench.wait(if late { HOLD_MS + 1 } else { 10 });
            assert_eq!(bench.meter.cancel(&RULES, &client(0), first, other), cancels, "{other:?}");
            let barred = bench.meter.usable_by(pair(1, 2), &client(0)).is_err();
            assert_eq!(barred, !cancels, "{other:?} {late}");
        }
    }
    // Nobody else's, no other request, no other kind.
    let mut bench = Bench::new(RULES);
    let first = bench.fault(0, pair(1, 2), OwnForm400).unwrap();
    let refused = bench.fault(1, pair(1, 2), Answer).unwrap();
    assert!(!bench.meter.cancel(&RULES, &client(1), first, pair(3, 4)));
    assert!(!bench.meter.cancel(&RULES, &client(0), refused, pair(3, 4)));
    assert!(!bench.meter.cancel(&RULES, &client(1), refused, pair(3, 4)));
}

/// A node makes keys wrong on both of its pairs; clients repeat a 400 wherever `by` is.
fn flipping(rules: Rules, by: Pair) -> Bench {
    let mut bench = Bench::new(rules);
    for c in 0..3 {
        let first = bench.fault(c, pair(1, 2), OwnForm400).unwrap();
        bench.wait(10);
        bench.meter.cancel(&rules, &client(c), first, by);
    }
    bench.wait(HOLD_MS + 1);
    bench
}

#[test]
fn a_node_cannot_cancel_its_own_faults() {
    assert_eq!(flipping(RULES, pair(3, 1)).suspended(), vec![pair(1, 2)]);
    assert!(flipping(Rules { disjoint_repeats: false, ..RULES }, pair(3, 1)).untouched());
    // Honest twin: the applications' own mistakes, the same over nodes that have nothing to do with each other.
    assert!(flipping(RULES, pair(3, 4)).untouched());
}

#[test]
fn without_holding_them_applications_mistakes_would_suspend_a_pair() {
    let course = |rules: Rules| {
        let mut bench = Bench::new(rules);
        let firsts: Vec<_> = (0..3).map(|c| bench.fault(c, pair(1, 2), OwnForm400).unwrap()).collect();
        for (c, first) in firsts.into_iter().enumerate() {
            bench.meter.cancel(&rules, &client(c as u8), first, pair(3, 4));
        }
        bench.wait(HOLD_MS + 1);
        bench
    };
    assert!(course(RULES).untouched());
    assert_eq!(course(Rules { repeats: false, ..RULES }).suspended(), vec![pair(1, 2)]);
}

// --- the rest ---

#[test]
fn lifting_begins_anew_but_keeps_probes_and_interruptions() {
    let mut bench = Bench::new(RULES);
    bench.meter.probe(pair(1, 2)).unwrap();
    for c in 0..3 {
        bench.fault(c, pair(1, 2), Answer).unwrap();
        let _ = bench.fault(c, pair(3, 4), Answer);
    }
    assert!(bench.meter.is_frozen());
    bench.meter.lift(1);
    assert!(bench.untouched());
    assert!((0..4).all(|c| all_pairs().into_iter().all(|p| bench.meter.usable_by(p, &client(c)).is_ok())));
    let more = (0..20).filter(|_| bench.meter.probe(pair(1, 2)).is_ok()).count();
    assert_eq!(more, PROBES_PER_PAIR_MAX as usize - 1);
}

#[derive(Debug, Clone)]
enum Op {
    Fault { client: u8, pair: usize, kind: u8 },
    Repeat { client: u8, first: u8, by: usize },
    Restart(u64),
    Wait(u64),
}

fn ops(clients: u8) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..clients, 0..12usize, 0..3u8).prop_map(|(client, pair, kind)| Op::Fault { client, pair, kind }),
        1 => (0..clients, any::<u8>(), 0..12usize).prop_map(|(client, first, by)| Op::Repeat { client, first, by }),
        1 => (1..=4u64).prop_map(Op::Restart),
        2 => prop_oneof![0..1000u64, 0..2 * HOLD_MS].prop_map(Op::Wait),
    ];
    proptest::collection::vec(op, 0..120)
}

fn play(bench: &mut Bench, ops: &[Op], authorised_only: bool) {
    for op in ops {
        match op {
            Op::Fault { client: c, pair, kind } => {
                let (p, kind) = (all_pairs()[*pair], [Answer, Answerless, OwnForm400][*kind as usize]);
                if bench.request(*c, p).is_ok() || !authorised_only {
                    let request = RequestId(bench.requests.to_be_bytes());
                    bench.report(*c, p, request, bench.now, kind);
                }
            }
            Op::Repeat { client: c, first, by } => {
                let first = RequestId(u128::from(*first).to_be_bytes());
                bench.meter.cancel(&RULES, &client(*c), first, all_pairs()[*by]);
            }
            Op::Restart(node) => bench.restart(*node),
            Op::Wait(ms) => bench.wait(*ms),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever two clients say, and whenever: nothing is suspended, nothing frozen, nobody else refused.
    #[test]
    fn two_clients_harm_nobody_else(ops in ops(2)) {
        let mut bench = Bench::new(RULES);
        play(&mut bench, &ops, false);
        prop_assert!(bench.suspended().is_empty() && !bench.meter.is_frozen());
        for p in all_pairs() {
            prop_assert_eq!(bench.meter.usable_by(p, &client(7)), Ok(()));
        }
    }

    /// Answerless faults alone, each with a disjoint pair's within the minute: nothing ever counts.
    #[test]
    fn what_the_provider_does_on_disjoint_pairs_never_counts(
        faults in proptest::collection::vec((0..6u8, 0..2usize, 0..HOLD_MS), 0..60),
    ) {
        let mut bench = Bench::new(RULES);
        for (c, turn, gap) in faults {
            for p in [[pair(1, 2), pair(4, 3)], [pair(2, 4), pair(3, 1)]][turn] {
                let request = RequestId([c; 16]);
                bench.report(c, p, request, bench.now, Answerless);
            }
            bench.wait(gap);
        }
        bench.wait(HOLD_MS + 1);
        prop_assert!(bench.untouched());
    }

    /// One hostile node, any number of clients, no other trouble: what it can try over all its pairs is bounded, and pairs
    /// without it go on.
    #[test]
    fn a_hostile_nodes_tries_are_bounded(ops in ops(40)) {
        let mut bench = Bench::new(RULES);
        let own: Vec<Op> = ops
            .into_iter()
            .filter(|op| match op {
                Op::Fault { pair, .. } => of_node_one(all_pairs()[*pair]),
                Op::Repeat { .. } => false,
                Op::Restart(node) => *node == 1,
                Op::Wait(_) => true,
            })
            .collect();
        play(&mut bench, &own, true);
        bench.wait(HOLD_MS + 1);
        // Three clients get through per pair, then it is refused: six pairs of four nodes hold node 1.
        let tries = bench.requests as usize;
        prop_assert!(tries <= 6 * SUSPENDING_CLIENTS, "{tries}");
        for p in all_pairs().into_iter().filter(|p| !of_node_one(*p)) {
            let usable = bench.meter.usable_by(p, &client(200));
            prop_assert_eq!(usable, Ok(()), "{:?}", p);
        }
    }

    /// Memory stays within its bound, whatever is in flight.
    #[test]
    fn memory_is_bounded(ops in ops(200)) {
        let mut bench = Bench::new(RULES);
        play(&mut bench, &ops, false);
        for meter in bench.meter.pairs.values() {
            prop_assert!(meter.counted.len() <= REMEMBERED_PER_PAIR_MAX && meter.held.len() <= HELD_PER_PAIR_MAX);
            prop_assert!(meter.counted.values().all(|own| own.len() <= HELD_PER_CLIENT_MAX));
            prop_assert!(meter.excused.len() <= EXCUSED_PER_PAIR_MAX);
            prop_assert!(meter.voided.len() <= VOIDS_PER_PAIR_MAX as usize);
        }
    }
}

fn of_node_one(p: Pair) -> bool {
    [p.relay, p.keyer].contains(&NodeId(1))
}

mod machine;
