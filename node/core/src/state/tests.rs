//! Every refusal, each by one change to something honest; its unchanged twin passes.
use super::*;
use crate::command::*;
use crate::ids::{ConnectionId, PolicyVersion, RouteId};
use crate::leaf::AnomalyRule;
use crate::policy::ClientDocument;
use crate::testing::*;
use crate::tlog::{Cosignature, MAX_LEAF_BYTES};
use std::collections::BTreeSet;

fn refused(r: Refusal) -> Outcome {
    Outcome::Refused(r)
}

/// Pools: what is changed, and the refusal.
#[test]
fn pools_are_refused_for_one_thing_at_a_time() {
    type Case = (&'static str, fn(&mut Mesh, &mut OpenPool), Refusal);
    let cases: &[Case] = &[
        ("route", |_, p| p.route = RouteId::new("none").unwrap(), Refusal::UnknownRoute),
        ("scope", |_, p| p.route = RouteId::new("other").unwrap(), Refusal::OutOfScope),
        ("relay's boot", |_, p| p.relay_boot.cosign[0] ^= 1, Refusal::RelayNotAttested),
        ("relay's TLS key", |_, p| p.relay_boot.tls[0] ^= 1, Refusal::RelayNotAttested),
        ("keyer's boot", |_, p| p.keyer_boot.tls[0] ^= 1, Refusal::KeyerNotAttested),
        (
            "relay is keyer",
            |_, p| (p.keyer, p.keyer_boot) = (p.relay, p.relay_boot.clone()),
            Refusal::SameCustodian,
        ),
        ("lives a millisecond too long", |_, p| p.expires = p.expires.plus_ms(2), Refusal::PoolTooLong),
        ("is over", |m, p| p.expires = m.state().time().plus_ms(1), Refusal::PoolTooLong),
        ("id in use", |m, p| p.pool = m.open_pool().pool, Refusal::DuplicatePool),
        ("third keyer", third_keyer, Refusal::WrongKeyer),
    ];
    for (what, edit, refusal) in cases {
        let mut mesh = Mesh::new(4, 1, |d| d.route.push(route_document("other")));
        mesh.open_pool();
        let mut pool = mesh.fleet.pool(&mesh.log.state, 1);
        edit(&mut mesh, &mut pool);
        let command = mesh.fleet.client(CLIENT, ClientCommand::OpenPool(pool));
        assert_eq!(mesh.decide(command), refused(*refusal), "{what}");
    }
}

fn third_keyer(mesh: &mut Mesh, pool: &mut OpenPool) {
    let (_, allowed) = mesh.fleet.way(mesh.state(), 1);
    let third = (2..=4).map(NodeId).find(|n| !allowed.contains(n)).unwrap();
    (pool.keyer, pool.keyer_boot) = (third, mesh.fleet.nodes[&third].boot());
}

#[test]
fn custodians_of_client_relay_and_keyer_differ() {
    // The relay's machine is run by the client's custodian, or by the keyer's.
    for (member, custodian) in [(0, "developers"), (0, "custodian-2"), (0, "custodian-3"), (0, "custodian-4")]
    {
        let mut mesh = Mesh::new(4, 1, |d| d.member[member].custodian = custodian.into());
        let relay = mesh.fleet.nodes[&NodeId(1)].boot();
        for keyer in 2..=4 {
            let boot = mesh.fleet.nodes[&NodeId(keyer)].boot();
            let same = custodian == "developers" || custodian == format!("custodian-{keyer}");
            let mut pool = OpenPool {
                pool: crate::ids::PoolId([keyer as u8; 16]),
                route: route(),
                relay: NodeId(1),
                relay_boot: relay.clone(),
                keyer: NodeId(keyer),
                keyer_boot: boot,
                expires: mesh.time.plus_ms(1000),
                probe: None,
                token: None,
            };
            let command = mesh.fleet.client(CLIENT, ClientCommand::OpenPool(pool.clone()));
            assert_eq!(mesh.decide(command) == refused(Refusal::SameCustodian), same, "{custodian} {keyer}");
            pool.pool.0[1] ^= 1;
        }
    }
}

#[test]
fn authorisations_are_refused_for_one_thing_at_a_time() {
    type Case = (&'static str, fn(&mut Mesh, &mut Authorise), Refusal);
    let cases: &[Case] = &[
        ("pool", |_, a| a.pool.0[0] ^= 1, Refusal::UnknownPool),
        ("route", |_, a| a.route = RouteId::new("other").unwrap(), Refusal::PoolMismatch),
        ("relay", |_, a| a.relay = NodeId(2), Refusal::PoolMismatch),
        ("keyer", |_, a| a.keyer = NodeId(1), Refusal::PoolMismatch),
        ("expired", |m, a| a.expires = m.time.plus_ms(1), Refusal::Expired),
        ("expires too far ahead", |m, a| a.expires = m.time.plus_ms(120_002), Refusal::Expired),
        ("policy", |_, a| a.policy = PolicyVersion(2), Refusal::StalePolicy),
        ("body ceiling", |_, a| a.body_bytes_max = (1 << 20) + 1, Refusal::CeilingTooHigh),
        ("response ceiling", |_, a| a.response_bytes_max = (1 << 22) + 1, Refusal::CeilingTooHigh),
        ("duration ceiling", |_, a| a.duration_ms_max = 600_001, Refusal::CeilingTooHigh),
        ("request id used", |m, a| a.request = used(m, a).request, Refusal::Replayed),
        ("connection used", |m, a| a.connection = used(m, a).connection, Refusal::ConnectionUsed),
        ("relay restarted", |m, a| restarted(m, a.relay), Refusal::RelayNotAttested),
        ("keyer restarted", |m, a| restarted(m, a.keyer), Refusal::KeyerNotAttested),
    ];
    for (what, edit, refusal) in cases {
        let mut mesh = Mesh::new(4, 1, |d| d.route.push(route_document("other")));
        let pool = mesh.open_pool();
        mesh.authorise(&pool);
        let mut request = mesh.fleet.request(&mesh.log.state, &pool);
        edit(&mut mesh, &mut request);
        let command = mesh.fleet.client(CLIENT, ClientCommand::Authorise(request));
        assert_eq!(mesh.decide(command), refused(*refusal), "{what}");
    }
}

/// Another request in the same pool, decided.
fn used(mesh: &mut Mesh, a: &Authorise) -> Authorise {
    let other = Authorise { request: RequestId([7; 16]), connection: ConnectionId([7; 16]), ..a.clone() };
    let command = mesh.fleet.client(CLIENT, ClientCommand::Authorise(other.clone()));
    assert_eq!(mesh.decide(command), Outcome::Authorised);
    other
}

fn restarted(mesh: &mut Mesh, node: NodeId) {
    mesh.wait(1000);
    mesh.apply(vec![]);
    mesh.fleet.node(node.0).restart_process();
    let evidence = mesh.evidence(node.0);
    assert!(matches!(mesh.decide(evidence), Outcome::Appraised { .. }));
}

#[test]
fn ceilings_and_expiries_hold_exactly() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let now = mesh.time.plus_ms(1);
    let (_, command) = mesh.request_with(&pool, |a| {
        (a.body_bytes_max, a.response_bytes_max, a.duration_ms_max) = (1 << 20, 1 << 22, 600_000);
        a.expires = now.plus_ms(120_000);
    });
    assert_eq!(mesh.decide(command), Outcome::Authorised);
    let now = mesh.time.plus_ms(1);
    let command = mesh.pool_with(|p| p.expires = now.plus_ms(300_000));
    assert_eq!(mesh.decide(command), Outcome::PoolOpened);
}

#[test]
fn a_pool_ends_at_its_time() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    mesh.attest_all();
    for _ in 0..14 {
        mesh.wait(20_000);
        mesh.attest_all();
    }
    let late = |m: &mut Mesh| m.request_with(&pool, |_| ()).1;
    mesh.time = Timestamp(pool.expires.0 - 2);
    let command = late(&mut mesh);
    assert_eq!(mesh.decide(command), Outcome::Authorised);
    let command = late(&mut mesh);
    assert_eq!(mesh.decide(command), refused(Refusal::UnknownPool));
    assert!(mesh.state().pool(&pool.pool).is_none());
    assert_eq!(mesh.state().usage(&ClientId::new(CLIENT).unwrap()).unwrap().pools, 0);
}

#[test]
fn a_client_speaks_only_for_itself_and_while_it_may() {
    let mut mesh = Mesh::new(4, 1, |d| {
        for (name, revoked) in [("gone", true), ("late", false)] {
            d.client.push(ClientDocument { revoked, ..client_document(name) });
        }
        d.client[2].expires = "2024-10-04T11:00:00Z".parse().unwrap();
    });
    let pool = ClientCommand::OpenPool(mesh.fleet.pool(&mesh.log.state, 1));
    let cluster = mesh.fleet.cluster();
    let app = ClientId::new(CLIENT).unwrap();
    let sign = |cluster, name: &ClientId, k: &str| {
        Command::Client(ClientSigned::sign(cluster, name.clone(), pool.clone(), &key(k)))
    };
    let stranger = sign(cluster, &ClientId::new("nobody").unwrap(), "nobody");
    let before = mesh.log.leaves.len();
    mesh.refuses(stranger, Refusal::UnknownClient);
    mesh.refuses(sign(cluster, &app, "gone"), Refusal::BadSignature);
    mesh.refuses(sign(Hash([0; 32]), &app, CLIENT), Refusal::BadSignature);
    assert_eq!(
        mesh.log.leaves.len(),
        before + 3,
        "bytes that anybody can make up leave no leaf but the batch's end"
    );
    mesh.refuses(mesh.fleet.client("gone", pool.clone()), Refusal::ClientRevoked);
    mesh.refuses(mesh.fleet.client("late", pool.clone()), Refusal::ClientExpired);
    assert_eq!(mesh.decide(sign(cluster, &app, CLIENT)), Outcome::PoolOpened);
}

#[test]
fn rates_hold_exactly_and_roll_with_minute_and_day() {
    let mut mesh =
        Mesh::new(4, 1, |d| (d.client[0].requests_per_minute, d.client[0].requests_per_day) = (2, 3));
    let pool = mesh.open_pool();
    let ask = |m: &mut Mesh| {
        let (_, c) = m.request_with(&pool, |_| ());
        m.decide(c)
    };
    let outcomes: Vec<_> = (0..3).map(|_| ask(&mut mesh)).collect();
    assert_eq!(outcomes, [Outcome::Authorised, Outcome::Authorised, refused(Refusal::RateExceeded)]);
    mesh.time = Timestamp(START.0 + 60_000 - 2);
    assert_eq!(ask(&mut mesh), refused(Refusal::RateExceeded), "last millisecond of the minute");
    assert_eq!(ask(&mut mesh), Outcome::Authorised, "first of the next");
    assert_eq!(ask(&mut mesh), refused(Refusal::RequestBudgetExceeded));
    // The next day, after a dark half: the budget is new.
    mesh.time = Timestamp(START.0 + 43_200_000 - 4);
    mesh.apply(vec![]);
    mesh.recover();
    let pool = mesh.open_pool();
    assert!(mesh.time.0 >= START.0 + 43_200_000);
    let (_, c) = mesh.request_with(&pool, |_| ());
    assert_eq!(mesh.decide(c), Outcome::Authorised);
}

#[test]
fn bytes_are_reserved_then_charged_as_settled() {
    let mut mesh = Mesh::new(4, 1, |d| d.client[0].bytes_per_day = 25_000);
    let app = ClientId::new(CLIENT).unwrap();
    let pool = mesh.open_pool();
    let (first, _second) = (mesh.authorise(&pool), mesh.authorise(&pool));
    let too_much = |m: &mut Mesh, bytes| {
        m.request_with(&pool, |a| (a.body_bytes_max, a.response_bytes_max) = (0, bytes)).1
    };
    let c = too_much(&mut mesh, 5001);
    mesh.refuses(c, Refusal::ByteBudgetExceeded);
    mesh.settle(&pool, first);
    let usage = mesh.state().usage(&app).unwrap();
    assert_eq!((usage.day.bytes, usage.day.reserved_bytes, usage.in_flight), (512 + 2048, 10_000, 1));
    let left = 25_000 - 512 - 2048 - 10_000;
    let c = too_much(&mut mesh, left + 1);
    mesh.refuses(c, Refusal::ByteBudgetExceeded);
    let c = too_much(&mut mesh, left);
    assert_eq!(mesh.decide(c), Outcome::Authorised, "to the last byte");
    // A relay cannot charge more than was reserved.
    let c = too_much(&mut mesh, 0);
    assert_eq!(mesh.decide(c), Outcome::Authorised);
}

#[test]
fn a_settlement_charges_no_more_than_was_reserved() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let request = mesh.authorise(&pool);
    let huge = Settlement { bytes_up: u64::MAX, bytes_down: u64::MAX, ..Fleet::settlement(request) };
    let settle = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![huge]));
    assert_eq!(mesh.decide(settle), Outcome::Settled(vec![]));
    assert_eq!(mesh.state().usage(&ClientId::new(CLIENT).unwrap()).unwrap().day.bytes, 10_000);
}

#[test]
fn what_runs_over_midnight_is_charged_to_the_day_it_began() {
    let mut mesh = Mesh::dark(4, 1, |_| ());
    mesh.time = Timestamp(START.0 + 43_200_000 - 10_000);
    mesh.recover();
    let pool = mesh.open_pool();
    let request = mesh.authorise(&pool);
    mesh.wait(20_000);
    mesh.settle(&pool, request);
    let usage = mesh.state().usage(&ClientId::new(CLIENT).unwrap()).unwrap();
    assert_eq!((usage.day.bytes, usage.day.reserved_bytes, usage.in_flight), (0, 0, 0));
    assert_eq!(usage.day.index, mesh.time.0 / 86_400_000);
}

#[test]
fn too_many_requests_in_flight() {
    let mut mesh = Mesh::new(4, 1, |d| (d.client[0].requests_per_minute) = 1 << 20);
    let pool = mesh.open_pool();
    for _ in 0..4 {
        let commands = (0..1024).map(|_| mesh.request_with(&pool, |_| ()).1).collect();
        assert!(mesh.apply(commands).outcomes.iter().all(|o| o.1 == Outcome::Authorised));
    }
    let (_, c) = mesh.request_with(&pool, |_| ());
    mesh.refuses(c, Refusal::TooManyInFlight);
}

#[test]
fn too_many_pools() {
    let mut mesh = Mesh::four();
    let commands = (0..257).map(|_| mesh.pool_with(|_| ())).collect();
    let outcomes = mesh.apply(commands).outcomes;
    assert!(outcomes[..256].iter().all(|o| o.1 == Outcome::PoolOpened));
    assert_eq!(outcomes[256].1, refused(Refusal::TooManyInFlight));
}

#[test]
fn settlements_are_their_authors_alone() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let request = mesh.authorise(&pool);
    let settle = |m: &Mesh, n, r| m.fleet.node_command(n, NodeCommand::Settle(vec![Fleet::settlement(r)]));
    let one = |r| Outcome::Settled(vec![(0, r)]);
    let other = settle(&mesh, pool.keyer, request);
    assert_eq!(mesh.decide(other), one(Refusal::NotYours));
    let unknown = settle(&mesh, pool.relay, RequestId([9; 16]));
    assert_eq!(mesh.decide(unknown), one(Refusal::UnknownRequest));
    mesh.settle(&pool, request);
    let again = settle(&mesh, pool.relay, request);
    assert_eq!(mesh.decide(again), one(Refusal::UnknownRequest));
    let report =
        |m: &Mesh, name: &str, r| m.fleet.client(name, ClientCommand::Report(vec![Fleet::report(r)]));
    let one = |r| Outcome::Reported(vec![(0, r)]);
    let again = report(&mesh, CLIENT, request);
    assert_eq!(mesh.decide(again), one(Refusal::UnknownRequest));
    let unknown = report(&mesh, CLIENT, RequestId([9; 16]));
    assert_eq!(mesh.decide(unknown), one(Refusal::UnknownRequest));
}

#[test]
fn reports_come_in_batches_and_each_stands_for_itself() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let requests: Vec<_> = (0..3).map(|_| mesh.authorise(&pool)).collect();
    let mut reports: Vec<_> = requests.iter().map(|r| Fleet::report(*r)).collect();
    reports.insert(1, Fleet::report(RequestId([9; 16])));
    reports.push(Fleet::report(requests[0]));
    let batch = mesh.fleet.client(CLIENT, ClientCommand::Report(reports.clone()));
    let refused = vec![(1, Refusal::UnknownRequest), (4, Refusal::UnknownRequest)];
    assert_eq!(mesh.decide(batch), Outcome::Reported(refused));
    assert!(requests.iter().all(|r| mesh.state().request(r).unwrap().reported.is_some()));
    let flood = vec![reports[0].clone(); crate::command::REPORTS_MAX + 1];
    let flood = mesh.fleet.client(CLIENT, ClientCommand::Report(flood));
    mesh.refuses(flood, Refusal::Oversized);
}

#[test]
fn another_clients_report_is_refused() {
    let mut mesh = Mesh::new(4, 1, |d| d.client.push(client_document("other")));
    let pool = mesh.open_pool();
    let request = mesh.authorise(&pool);
    let report = mesh.fleet.client("other", ClientCommand::Report(vec![Fleet::report(request)]));
    assert_eq!(mesh.decide(report), Outcome::Reported(vec![(0, Refusal::NotYours)]));
    mesh.settle(&pool, request);
    // Nor may another client use the pool.
    let request = mesh.fleet.request(&mesh.log.state, &pool);
    let command = mesh.fleet.client("other", ClientCommand::Authorise(request));
    mesh.refuses(command, Refusal::PoolMismatch);
}

#[test]
fn a_node_speaks_only_for_itself_and_while_attested() {
    let mut mesh = Mesh::four();
    let cluster = mesh.fleet.cluster();
    let sign = |node: u64, key: &aws_lc_rs::signature::Ed25519KeyPair| {
        Command::Node(NodeSigned::sign(cluster, NodeId(node), NodeCommand::Settle(vec![]), key))
    };
    let before = mesh.log.leaves.len();
    mesh.refuses(sign(9, mesh.fleet.nodes[&NodeId(1)].cosign_key()), Refusal::UnknownNode);
    mesh.refuses(sign(1, mesh.fleet.nodes[&NodeId(2)].cosign_key()), Refusal::BadSignature);
    mesh.fleet.node(1).restart_process();
    mesh.refuses(sign(1, mesh.fleet.nodes[&NodeId(1)].cosign_key()), Refusal::BadSignature);
    let snapshot = |m: &Mesh| m.fleet.node_command(NodeId(2), NodeCommand::Snapshot);
    assert_eq!(mesh.log.leaves.len(), before + 3);
    mesh.refuses(snapshot(&mesh), Refusal::TooSoon);
    // Node 2 alone lapses.
    for _ in 0..4 {
        mesh.wait(20_000);
        mesh.silent.insert(NodeId(2));
        mesh.attest_all();
    }
    let before = mesh.log.leaves.len();
    mesh.refuses(snapshot(&mesh), Refusal::NodeNotAttested);
    assert_eq!(mesh.log.leaves.len(), before + 1);
}

#[test]
fn alarms_of_equivocation_prove_themselves() {
    let mut mesh = Mesh::four();
    let (size, accused) = (TreeSize(5), NodeId(3));
    let cosign = |m: &Mesh, n: u64, root| {
        (root, m.fleet.nodes[&NodeId(n)].cosign(m.state(), CheckpointRef { size, root }))
    };
    let (one, other) = (cosign(&mesh, 3, Hash([1; 32])), cosign(&mesh, 3, Hash([2; 32])));
    let key_of = |m: &Mesh, n: u64| PublicKey(m.fleet.nodes[&NodeId(n)].boot().cosign);
    let key = key_of(&mesh, 3);
    let alarm = |m: &Mesh, accused, key, one, other| {
        m.fleet.node_command(
            NodeId(1),
            NodeCommand::Alarm(Alarm::Equivocation { accused, key, size, one, other }),
        )
    };
    let bad = Refusal::BadSignature;
    mesh.refuses(alarm(&mesh, accused, key, one, one), bad);
    mesh.refuses(alarm(&mesh, accused, key, (Hash([3; 32]), one.1), other), bad);
    mesh.refuses(alarm(&mesh, NodeId(2), key, one, other), bad);
    let framed = (cosign(&mesh, 4, Hash([1; 32])), cosign(&mesh, 4, Hash([2; 32])));
    mesh.refuses(alarm(&mesh, accused, key_of(&mesh, 4), framed.0, framed.1), bad);
    assert_eq!(mesh.decide(alarm(&mesh, accused, key, one, other)), Outcome::AlarmRaised);
    // By a key of an earlier boot too, while it is remembered.
    restarted(&mut mesh, accused);
    assert_eq!(mesh.decide(alarm(&mesh, accused, key, one, other)), Outcome::AlarmRaised);
    let head = Alarm::HeadRefused { request: RequestId([1; 16]), code: 3 };
    let head = mesh.fleet.node_command(NodeId(1), NodeCommand::Alarm(head));
    assert_eq!(mesh.decide(head), Outcome::AlarmRaised);
}

#[test]
fn a_request_that_nobody_settles_is_an_anomaly_and_costs_its_ceiling() {
    for (relay_speaks, client_speaks) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut mesh = Mesh::new(4, 1, |d| d.attestation.settle_ms = 1000);
        let app = ClientId::new(CLIENT).unwrap();
        let pool = mesh.open_pool();
        let request = mesh.authorise(&pool);
        if relay_speaks {
            let c =
                mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![Fleet::settlement(request)]));
            mesh.apply(vec![c]);
        }
        if client_speaks {
            let c = mesh.fleet.client(CLIENT, ClientCommand::Report(vec![Fleet::report(request)]));
            mesh.apply(vec![c]);
        }
        let deadline = mesh.state().request(&request).unwrap().deadline;
        mesh.time = Timestamp(deadline.0 - 2);
        mesh.apply(vec![]);
        assert!(mesh.state().request(&request).is_some(), "its nonce is kept");
        let leaves = mesh.apply(vec![]).leaves;
        let unsettled: Vec<_> = leaves
            .iter()
            .filter_map(|l| match l.leaf() {
                Leaf::V1 { body: LeafBody::Unsettled { request, relay, client }, .. } => {
                    Some((*request, *relay, *client))
                }
                _ => None,
            })
            .collect();
        let expected = if relay_speaks && client_speaks {
            vec![]
        } else {
            vec![(request, !relay_speaks, !client_speaks)]
        };
        assert_eq!(unsettled, expected);
        let usage = mesh.state().usage(&app).unwrap();
        let charged = if relay_speaks { 2560 } else { 10_000 };
        assert_eq!((usage.day.bytes, usage.day.reserved_bytes, usage.in_flight), (charged, 0, 0));
        assert!(mesh.state().request(&request).is_none());
    }
}

#[test]
fn what_does_not_fit_together_is_flagged() {
    type Case = (fn(&mut Settlement, &mut Report), Option<AnomalyRule>);
    let cases: [Case; 5] = [
        (|_, _| (), None),
        (|s, r| r.tokens_out = s.bytes_down + 256, None),
        (|s, r| r.tokens_out = s.bytes_down + 257, Some(AnomalyRule::TokensExceedBytes)),
        (|s, r| r.tokens_in = s.bytes_up + 257, Some(AnomalyRule::TokensExceedBytes)),
        (|_, r| r.ended = Ended::Truncated, Some(AnomalyRule::EndsDiffer)),
    ];
    for (edit, rule) in cases {
        let mut mesh = Mesh::four();
        let pool = mesh.open_pool();
        let request = mesh.authorise(&pool);
        let (mut s, mut r) = (Fleet::settlement(request), Fleet::report(request));
        edit(&mut s, &mut r);
        let settle = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![s]));
        let report = mesh.fleet.client(CLIENT, ClientCommand::Report(vec![r]));
        let found = mesh.apply(vec![report, settle]).leaves.iter().find_map(|l| match l.leaf() {
            Leaf::V1 { body: LeafBody::Anomaly { rule, .. }, .. } => Some(*rule),
            _ => None,
        });
        assert_eq!(found, rule);
    }
}

// --- evidence ---

/// Evidence that is refused before it is appraised, or appraised and rejected.
#[test]
fn evidence_is_refused_for_one_thing_at_a_time() {
    type Case = (&'static str, fn(&mut Mesh, &mut EvidenceCommand), Outcome);
    let check = |c: &str| Outcome::AppraisalRefused { check: c.into() };
    let cases: Vec<Case> = vec![
        ("node", |_, c| c.node = NodeId(9), refused(Refusal::UnknownNode)),
        ("boot key", |m, c| c.boot = m.fleet.nodes[&NodeId(3)].boot(), refused(Refusal::BadSignature)),
        ("nonce's root", |_, c| c.nonce.root.0[0] ^= 1, refused(Refusal::StaleNonce)),
        ("nonce's size", |_, c| c.nonce.size.0 += 1, refused(Refusal::StaleNonce)),
        ("too few cosignatures", |_, c| drop(c.certificate.drain(..2)), refused(Refusal::UncertifiedNonce)),
        (
            "one cosignature twice",
            |_, c| c.certificate[1] = c.certificate[0],
            refused(Refusal::UncertifiedNonce),
        ),
        ("a cosignature's time", |_, c| c.certificate[1].1.time_s += 1, refused(Refusal::UncertifiedNonce)),
        ("blob", |_, c| c.evidence.event_log[0] ^= 1, refused(Refusal::MissingBlob)),
        ("IMA blob", |_, c| c.evidence.ima_log = Some([1; 32]), refused(Refusal::MissingBlob)),
        ("list of PCRs", |_, c| c.evidence.pcrs = vec![(0, [0; 32]); 25], refused(Refusal::Oversized)),
        (
            "list of cosignatures",
            |_, c| c.certificate = vec![c.certificate[0]; 8],
            refused(Refusal::Oversized),
        ),
        ("long signature", |_, c| c.evidence.signature = vec![0; 1025], refused(Refusal::Oversized)),
        ("signature", |_, c| c.evidence.signature[20] ^= 1, check("signature")),
        ("another node's quote", |m, c| c.evidence = quote_of(m, 2, c), check("signature")),
        (
            "another root in the quote",
            |m, c| c.evidence = m.fleet.quote(&m.log.state.policy().clone(), c.node, &[9; 32]),
            check("qualifying-data"),
        ),
        ("PCR values", |_, c| c.evidence.pcrs[0].1[0] ^= 1, check("pcr-digest")),
    ];
    for (what, edit, outcome) in cases {
        let mut mesh = Mesh::four();
        mesh.wait(1000);
        mesh.apply(vec![]);
        let nonce = mesh.nonce();
        let state = mesh.log.state.clone();
        let mut command = mesh.fleet.evidence_with(&state, NodeId(1), &nonce, |_| ());
        edit(&mut mesh, &mut command);
        let command = command.sign(mesh.fleet.cluster(), mesh.fleet.nodes[&NodeId(1)].cosign_key());
        let forged = matches!(&outcome, Outcome::AppraisalRefused { check } if check == "signature" || check == "qualifying-data");
        assert_eq!(mesh.decide(Command::Evidence(Box::new(command))), outcome, "{what}");
        let kept = forged || matches!(outcome, Outcome::Refused(_));
        assert_eq!(
            mesh.state().attested(NodeId(1)).is_some(),
            kept,
            "{what}: only a quote of its own TPM costs a node its place"
        );
    }
}

/// What node `id` would quote for the very same command.
fn quote_of(mesh: &mut Mesh, id: u64, c: &EvidenceCommand) -> quorate_attest::evidence::Evidence {
    let policy = mesh.log.state.policy().clone();
    let expected = evidence_nonce(mesh.fleet.cluster(), c);
    mesh.fleet.quote(&policy, NodeId(id), &expected)
}

#[test]
fn a_nonce_grows_old_by_entry_time() {
    for (age, accepted) in [(60_000, true), (60_001, false)] {
        let mut mesh = Mesh::four();
        let nonce = mesh.nonce();
        let at = mesh.state().anchors().iter().find(|a| a.checkpoint == nonce.reference()).unwrap().time;
        let state = mesh.log.state.clone();
        let command = mesh.fleet.evidence(&state, NodeId(1), &nonce);
        mesh.time = Timestamp(at.0 + age - 1);
        let outcome = mesh.decide(command);
        assert_eq!(matches!(outcome, Outcome::Appraised { .. }), accepted, "{outcome:?}");
        assert!(accepted || outcome == refused(Refusal::StaleNonce));
    }
}

/// All nodes down, for however long: either the newest value to quote over still counts, or it is dark and a recovery needs none.
#[test]
fn after_an_outage_of_any_length_somebody_may_go_on() {
    let lapse = Mesh::four().state().policy().attestation.lapse_ms;
    for down in (0..2 * lapse).step_by(1_000) {
        let mut mesh = Mesh::four();
        let nonce = mesh.nonce();
        let state = mesh.log.state.clone();
        mesh.fleet.node(1).restart_process();
        let command = mesh.fleet.evidence(&state, NodeId(1), &nonce);
        mesh.wait(down);
        mesh.apply(vec![]);
        let dark = mesh.state().is_dark();
        let outcome = mesh.decide(command);
        assert!(dark || matches!(outcome, Outcome::Appraised { .. }), "down for {down} ms: {outcome:?}");
    }
}

#[test]
fn evidence_played_again_neither_helps_nor_harms() {
    let mut mesh = Mesh::four();
    let old = mesh.evidence(1);
    let withheld = mesh.evidence(1);
    mesh.wait(1000);
    mesh.apply(vec![]);
    let new = mesh.evidence(1);
    assert!(matches!(mesh.decide(old.clone()), Outcome::Appraised { .. }));
    assert!(matches!(mesh.decide(new.clone()), Outcome::Appraised { .. }));
    let record = mesh.state().nodes()[&NodeId(1)].clone();
    for replay in [old, withheld, new] {
        mesh.wait(1000);
        mesh.refuses(replay, Refusal::StaleNonce);
        assert_eq!(mesh.state().nodes()[&NodeId(1)], record);
    }
    // A withheld one over the same nonce, after the counters went on.
    let (early, late) = (mesh.evidence(2), mesh.evidence(2));
    assert!(matches!(mesh.decide(late), Outcome::Appraised { .. }));
    mesh.refuses(early, Refusal::StaleNonce);
    assert!(mesh.state().attested(NodeId(2)).is_some());
}

#[test]
fn counters_that_went_back_cost_a_node_its_place() {
    let mut mesh = Mesh::four();
    mesh.wait(1000);
    mesh.apply(vec![]);
    mesh.fleet.node(1).tpm.clock_ms -= 100;
    let evidence = mesh.evidence(1);
    assert_eq!(mesh.decide(evidence), Outcome::AppraisalRefused { check: "counters-went-back".into() });
    let status = &mesh.state().nodes()[&NodeId(1)].status;
    assert_eq!(*status, NodeStatus::NotAttested(NotAttested::Refused("counters-went-back".into())));
    // An older good quote, kept back until now, does not bring it back.
}

#[test]
fn a_wrong_pcr_costs_a_node_its_place_and_an_older_quote_does_not_restore_it() {
    let mut mesh = Mesh::four();
    let kept_back = mesh.evidence(1);
    mesh.wait(1000);
    mesh.apply(vec![]);
    mesh.fleet.node(1).tpm.measure(4, 13, b"something else");
    let evidence = mesh.evidence(1);
    assert_eq!(mesh.decide(evidence), Outcome::AppraisalRefused { check: "reference-value".into() });
    assert_eq!(mesh.state().attested(NodeId(1)), None);
    assert!(!mesh.applied.last().unwrap().certifiers.keys.contains_key(&NodeId(1)));
    mesh.refuses(kept_back, Refusal::StaleNonce);
    assert_eq!(mesh.state().attested(NodeId(1)), None);
}

#[test]
fn evidence_lapses_exactly_then() {
    let mut mesh = Mesh::four();
    let at = mesh.state().nodes()[&NodeId(1)].attested_at().unwrap();
    assert_eq!(mesh.state().next_due(), Some(at.plus_ms(60_001)));
    mesh.time = Timestamp(at.0 + 60_000 - 1);
    assert_eq!(mesh.apply(vec![]).certifiers.keys.len(), 4);
    let applied = mesh.apply(vec![]);
    assert!(mesh.state().is_dark() && applied.certifiers.keys.is_empty());
    let lapses =
        applied.leaves.iter().filter(|l| matches!(l.leaf(), Leaf::V1 { body: LeafBody::Lapsed { .. }, .. }));
    assert_eq!(lapses.count(), 4);
    // In the dark nothing is forwarded; out of it, without an admin.
    let node = mesh.fleet.node_command(NodeId(1), NodeCommand::Snapshot);
    mesh.refuses(node, Refusal::NodeNotAttested);
    let pool = ClientCommand::OpenPool(OpenPool {
        pool: crate::ids::PoolId([1; 16]),
        route: route(),
        relay: NodeId(1),
        relay_boot: mesh.fleet.nodes[&NodeId(1)].boot(),
        keyer: NodeId(2),
        keyer_boot: mesh.fleet.nodes[&NodeId(2)].boot(),
        expires: mesh.time.plus_ms(1000),
        probe: None,
        token: None,
    });
    let pool = mesh.fleet.client(CLIENT, pool);
    mesh.refuses(pool, Refusal::Dark);
    mesh.recover();
    let pool = mesh.open_pool();
    mesh.authorise(&pool);
}

#[test]
fn a_reset_machine_counts_once_a_certificate_without_it_holds_its_evidence() {
    let mut mesh = Mesh::four();
    mesh.wait(1000);
    mesh.apply(vec![]);
    mesh.fleet.node(4).reset_machine();
    let first = mesh.evidence(4);
    assert_eq!(mesh.decide(first), Outcome::AwaitingCertificate);
    assert_eq!(mesh.state().attested(NodeId(4)), None);
    let certified = mesh.nonce();
    assert!(certified.cosignatures().iter().all(|(n, _)| *n != NodeId(4)), "certified without it");
    // Over an older nonce it waits on, over one that holds its evidence it counts.
    let older = mesh.certified.values().rev().nth(1).unwrap().clone();
    let state = mesh.log.state.clone();
    let again = mesh.fleet.evidence(&state, NodeId(4), &older);
    assert_eq!(mesh.decide(again), Outcome::AwaitingCertificate);
    let again = mesh.fleet.evidence(&state, NodeId(4), &certified);
    assert!(matches!(mesh.decide(again), Outcome::Appraised { .. }));
    assert!(mesh.state().attested(NodeId(4)).is_some());
    // A suspended machine counts as reset too; a restarted process does not.
    mesh.fleet.node(3).tpm.restart();
    let evidence = mesh.evidence(3);
    assert_eq!(mesh.decide(evidence), Outcome::AwaitingCertificate);
    restarted(&mut mesh, NodeId(2));
}

// --- recovery ---

#[test]
fn a_recovery_is_refused_for_one_thing_at_a_time() {
    type Case = (&'static str, fn(&mut Mesh, &mut RecoverCommand), Refusal);
    let cases: &[Case] = &[
        ("too few", |_, c| shorten(c, 2), Refusal::TooFewContributions),
        ("a list shorter", |_, c| drop(c.proofs.pop()), Refusal::Oversized),
        ("too long a list", |_, c| c.contributions = vec![c.contributions[0].clone(); 8], Refusal::Oversized),
        ("one twice", |_, c| c.contributions[1] = c.contributions[0].clone(), Refusal::BadContribution),
        ("out of order", |_, c| c.contributions.swap(0, 1), Refusal::BadContribution),
        ("evidence out of order", |_, c| c.evidence.swap(0, 1), Refusal::BadContribution),
        ("a changed lock", |_, c| c.contributions[0].lock.size.0 += 1, Refusal::BadContribution),
        ("a changed random", |_, c| c.contributions[0].random[0] ^= 1, Refusal::BadContribution),
        ("a stranger", stranger, Refusal::BadContribution),
        ("base", |_, c| c.base.root.0[0] ^= 1, Refusal::WrongBase),
        ("tree", |_, c| c.tree.0 -= 1, Refusal::LockConflict),
        ("a lock that is no prefix", other_lock, Refusal::LockConflict),
        ("a proof that proves nothing", |_, c| c.proofs[0].1 = c.proofs[0].0.clone(), Refusal::LockConflict),
        ("a log", |_, c| c.evidence[0].1.event_log[0] ^= 1, Refusal::MissingBlob),
    ];
    for (what, edit, refusal) in cases {
        let mut mesh = Mesh::four();
        mesh.apply(vec![]);
        mesh.wait(60_001);
        mesh.apply(vec![]);
        let mut recovery = mesh.recovery();
        edit(&mut mesh, &mut recovery);
        let outcome = mesh.decide(Command::Recover(Box::new(recovery)));
        assert_eq!(outcome, refused(*refusal), "{what}");
        mesh.recover();
    }
    let mut mesh = Mesh::four();
    let recovery = mesh.recovery();
    mesh.refuses(Command::Recover(Box::new(recovery)), Refusal::NotDark);
}

fn shorten(c: &mut RecoverCommand, to: usize) {
    c.contributions.truncate(to);
    c.evidence.truncate(to);
    c.proofs.truncate(to);
}

fn stranger(mesh: &mut Mesh, c: &mut RecoverCommand) {
    let node = TestNode::new(9, 9);
    let x = Contribution { node: NodeId(9), boot: node.boot(), ..c.contributions[3].clone() };
    c.contributions[3] = x.sign(mesh.fleet.cluster(), node.cosign_key());
    c.evidence[3].0 = NodeId(9);
}

fn other_lock(mesh: &mut Mesh, c: &mut RecoverCommand) {
    let mut x = c.contributions[0].clone();
    x.lock.root.0[0] ^= 1;
    c.contributions[0] = x.sign(mesh.fleet.cluster(), mesh.fleet.nodes[&NodeId(1)].cosign_key());
}

#[test]
fn a_recovery_rests_on_fresh_quotes() {
    let mut mesh = Mesh::dark(4, 1, |_| ());
    mesh.apply(vec![]);
    let mut recovery = mesh.recovery();
    recovery.evidence[1].1 = recovery.evidence[0].1.clone();
    let refused = |check: &str| Outcome::AppraisalRefused { check: check.into() };
    assert_eq!(mesh.decide(Command::Recover(Box::new(recovery))), refused("signature"));
    // Quotes made for other contributions.
    let (one, mut other) = (mesh.recovery(), mesh.recovery());
    other.evidence = one.evidence;
    assert_eq!(mesh.decide(Command::Recover(Box::new(other))), refused("qualifying-data"));
    mesh.recover();
}

#[test]
fn a_recovery_rests_on_the_tree_before_its_entry() {
    // The same entry lapses everybody first: the proposer cannot know how many leaves that makes.
    let mut mesh = Mesh::four();
    let contributions = mesh.contributions();
    let plan = plan_recovery(&mesh.log.state, &mesh.log.tree, contributions).unwrap().unwrap();
    let state = mesh.log.state.clone();
    let tree = mesh.log.tree.clone();
    let recovery = mesh.fleet.recovery(&state, &tree, plan);
    mesh.wait(60_001);
    let applied = mesh.apply(vec![Command::Recover(Box::new(recovery))]);
    assert_eq!(applied.outcomes[0].1, Outcome::Recovered);
    mesh.attest_all();
    assert!(!mesh.state().is_dark());
}

#[test]
fn recovered_keys_certify_that_checkpoint_alone_and_older_nonces_are_void() {
    let mut mesh = Mesh::four();
    let before = mesh.nonce();
    // Two machines of four are reset at once: dark, though nobody lapsed.
    mesh.fleet.node(3).reset_machine();
    mesh.fleet.node(4).reset_machine();
    let state = mesh.log.state.clone();
    let evidence = [3, 4].map(|n| mesh.fleet.evidence(&state, NodeId(n), &before));
    let outcomes = mesh.apply(evidence.to_vec()).outcomes;
    assert!(outcomes.iter().all(|o| o.1 == Outcome::AwaitingCertificate) && mesh.state().is_dark());
    let recovery = mesh.recovery();
    let applied = mesh.apply(vec![Command::Recover(Box::new(recovery))]);
    assert_eq!(applied.certifiers.keys.len(), 4);
    assert_eq!(mesh.apply(vec![]).certifiers.keys.len(), 0);
    let state = mesh.log.state.clone();
    let old = mesh.fleet.evidence(&state, NodeId(1), &before);
    mesh.refuses(old, Refusal::StaleNonce);
    mesh.attest_all();
    assert!(!mesh.state().is_dark());
}

#[test]
fn a_plan_leaves_out_what_conflicts_and_says_so() {
    let mut mesh = Mesh::dark(4, 1, |_| ());
    mesh.apply(vec![]);
    let mut contributions = mesh.contributions();
    contributions[2].lock.root.0[0] ^= 1;
    let node = &mesh.fleet.nodes[&NodeId(3)];
    contributions[2] = contributions[2].clone().sign(mesh.fleet.cluster(), node.cosign_key());
    contributions[3].random[0] ^= 1; // no longer signed
    let plan = plan_recovery(mesh.state(), &mesh.log.tree, contributions.clone()).unwrap();
    assert_eq!(plan, Err(NoPlan { usable: 2, needed: 3, conflicting: BTreeSet::from([NodeId(3)]) }));
    contributions[3].random[0] ^= 1;
    let plan = plan_recovery(mesh.state(), &mesh.log.tree, contributions).unwrap().unwrap();
    assert_eq!(plan.contributions.iter().map(|x| x.node.0).collect::<Vec<_>>(), [1, 2, 4]);
}

// --- policy ---

#[test]
fn policy_changes_are_refused_for_one_thing_at_a_time() {
    type Edit = fn(&mut crate::policy::PolicyDocument);
    let cases: [(&str, Edit, &[usize], Refusal); 9] = [
        ("one admin of two", |_| (), &[0], Refusal::TooFewSigners),
        ("nobody", |_| (), &[], Refusal::TooFewSigners),
        ("an admin twice", |_| (), &[0, 0], Refusal::UnknownSigner),
        ("predecessor", |d| d.previous = hex::encode([1; 32]), &[0, 1], Refusal::WrongPredecessor),
        ("version", |d| d.version = 3, &[0, 1], Refusal::WrongPredecessor),
        ("cluster", |d| d.cluster = "other".into(), &[0, 1], Refusal::WrongPredecessor),
        ("expired", |d| d.expires = "2024-10-04T11:00:00Z".parse().unwrap(), &[0, 1], Refusal::PolicyExpired),
        ("contradicts itself", |d| d.admin_threshold = 9, &[0, 1], Refusal::PolicyInvalid),
        ("two members", |d| drop(d.member.drain(3..)), &[0, 1], Refusal::TooManyMemberChanges),
    ];
    for (what, edit, admins, refusal) in cases {
        let mut mesh = Mesh::new(5, 1, |_| ());
        let command = change(&mut mesh, edit, admins);
        mesh.refuses(Command::Policy(command), refusal);
        assert_eq!(mesh.version(), PolicyVersion(1), "{what}");
        let good = change(&mut mesh, |_| (), &[0, 2]);
        let signers = vec!["admin-0".into(), "admin-2".into()];
        let outcome = Outcome::PolicyChanged { version: PolicyVersion(2), signers };
        let Outcome::PolicyChanged { version, mut signers } = mesh.decide(Command::Policy(good)) else {
            panic!("{what}")
        };
        signers.sort();
        assert_eq!(Outcome::PolicyChanged { version, signers }, outcome);
        assert!(!mesh.state().is_dark(), "what nobody's evidence depends on costs nobody its place");
    }
}

/// A successor of version 1 that the fleet does not follow.
fn change(
    mesh: &mut Mesh,
    edit: impl FnOnce(&mut crate::policy::PolicyDocument),
    admins: &[usize],
) -> PolicyCommand {
    let mut document = mesh.fleet.document.clone();
    document.previous = hex::encode(mesh.fleet.cluster().0);
    document.version = 2;
    edit(&mut document);
    let signed = mesh.fleet.sign_policy(document, admins);
    PolicyCommand { document: sha256(&signed.document), signatures: signed.signatures }
}

#[test]
fn a_policy_needs_its_document_and_sound_signatures() {
    let mut mesh = Mesh::four();
    let good = change(&mut mesh, |_| (), &[0, 1]);
    let mut missing = good.clone();
    missing.document.0[0] ^= 1;
    mesh.refuses(Command::Policy(missing), Refusal::MissingBlob);
    let mut broken = good.clone();
    let last = broken.signatures[0].0.len() - 1;
    broken.signatures[0].0[last] ^= 1;
    mesh.refuses(Command::Policy(broken), Refusal::BadSignature);
    let mut foreign = good.clone();
    let document = mesh.fleet.blobs.0[&good.document].clone();
    foreign.signatures[0] = ssh_sign(&key("stranger"), &document);
    mesh.refuses(Command::Policy(foreign), Refusal::UnknownSigner);
    let mut long = good.clone();
    long.signatures[0].0 = vec![0; 1025];
    mesh.refuses(Command::Policy(long), Refusal::Oversized);
    let mut many = good.clone();
    many.signatures = vec![good.signatures[0].clone(); 33];
    mesh.refuses(Command::Policy(many), Refusal::Oversized);
    assert!(matches!(mesh.decide(Command::Policy(good)), Outcome::PolicyChanged { .. }));
}

#[test]
fn withdrawn_reference_values_cost_nodes_their_place() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let command = mesh.fleet.change_policy(|d| {
        let mut fine = d.reference_values["plain"].clone();
        d.reference_values.get_mut("plain").unwrap().pcrs.get_mut(&4).unwrap()[0][0] ^= 1;
        fine.pcrs.get_mut(&4).unwrap().push([0; 32]);
        d.reference_values.insert("fine".into(), fine);
        d.member[1..].iter_mut().for_each(|m| m.reference_values = "fine".into());
    });
    let applied = mesh.apply(vec![command]);
    assert_eq!(mesh.state().nodes()[&NodeId(1)].status, NodeStatus::NotAttested(NotAttested::PolicyChanged));
    assert_eq!(applied.certifiers.keys.keys().map(|n| n.0).collect::<Vec<_>>(), [2, 3, 4]);
    let (_, c) = mesh.request_with(&pool, |_| ());
    mesh.refuses(c, Refusal::RelayNotAttested);
    let evidence = mesh.evidence(1);
    assert_eq!(mesh.decide(evidence), Outcome::AppraisalRefused { check: "reference-value".into() });
    // What the state still accepts, a client must accept too.
    let proof = mesh.proof(&[]);
    assert_eq!(proof.verify(mesh.fleet.cluster()).unwrap().nodes.len(), 3);
}

#[test]
fn firmware_that_is_no_longer_good_costs_nodes_their_place() {
    let mut mesh = Mesh::four();
    let good = mesh.fleet.nodes[&NodeId(1)].tpm.firmware_version;
    for (versions, attested) in [(BTreeSet::from([good]), 4), (BTreeSet::from([good + 1]), 0)] {
        let command = mesh.fleet.change_policy(|d| {
            d.reference_values.get_mut("plain").unwrap().firmware_versions = Some(versions)
        });
        assert!(matches!(mesh.decide(command), Outcome::PolicyChanged { .. }));
        assert_eq!(mesh.state().attested_nodes().count(), attested);
    }
}

#[test]
fn software_tpms_count_only_while_the_policy_says_so() {
    let mut mesh = Mesh::four();
    let command = mesh.fleet.change_policy(|d| {
        d.attestation.allow_software_tpm = false;
        d.member.iter_mut().for_each(|m| m.software_tpm = false);
    });
    assert!(matches!(mesh.decide(command), Outcome::PolicyChanged { .. }));
    assert_eq!(mesh.state().attested_nodes().count(), 0, "a relabelled TPM is appraised again");
}

#[test]
fn a_route_or_grant_withdrawn_under_an_open_pool_counts_at_once() {
    for (routes, scope, refusal) in
        [(false, false, Refusal::UnknownRoute), (true, false, Refusal::OutOfScope)]
    {
        let mut mesh = Mesh::new(4, 1, |d| d.route.push(route_document("other")));
        let pool = mesh.open_pool();
        let command = mesh.fleet.change_policy(|d| {
            if !routes {
                d.route.remove(0);
            }
            d.client[0].routes = if scope { vec![ROUTE.into()] } else { vec!["other".into()] };
        });
        assert!(matches!(mesh.decide(command), Outcome::PolicyChanged { .. }));
        let (_, c) = mesh.request_with(&pool, |_| ());
        mesh.refuses(c, refusal);
    }
}

#[test]
fn a_change_of_members_needs_both_sets_until_both_have_certified_it() {
    let mut mesh = Mesh::four();
    // Node 4 leaves while 3 is silent: the old set agrees with 4's help, the new set of three needs 3.
    mesh.silent = BTreeSet::from([NodeId(3)]);
    let leave = mesh.fleet.change_policy(|d| drop(d.member.remove(3)));
    let applied = mesh.apply(vec![leave]);
    let thresholds =
        |a: &Applied| a.certifiers.rules.iter().map(|r| (r.members.len(), r.threshold)).collect::<Vec<_>>();
    assert_eq!(thresholds(&applied), [(3, 3), (4, 3)]);
    assert_eq!(applied.certifiers.keys.len(), 4, "the removed one may agree to its removal");
    assert!(!mesh.certified.contains_key(&applied.checkpoint.size));
    // Not even the next checkpoint steps over it, and no second change begins.
    assert_eq!(thresholds(&mesh.apply(vec![])), [(3, 3), (4, 3)]);
    let back = mesh.fleet.change_policy(|d| d.hostile_nodes_max = 1);
    assert!(
        matches!(mesh.decide(back), Outcome::PolicyChanged { .. }),
        "another policy change is none of members"
    );
    let node = TestNode::new(5, 5);
    let mut document = mesh.fleet.document.clone();
    document.member.push(Fleet::member_document(&node));
    document.previous = hex::encode(sha256(&mesh.fleet.chain.last().unwrap().document).0);
    document.version += 1;
    let signed = mesh.fleet.sign_policy(document, &[0, 1]);
    let add =
        Command::Policy(PolicyCommand { document: sha256(&signed.document), signatures: signed.signatures });
    mesh.refuses(add.clone(), Refusal::TooManyMemberChanges);
    // 3 speaks again: both rules are met, evidence shows it, the old one is gone.
    mesh.silent.clear();
    mesh.wait(1000);
    mesh.apply(vec![]);
    assert_eq!(mesh.proof(&[]).verify(mesh.fleet.cluster()).unwrap().nodes.len(), 3);
    mesh.attest_all();
    let applied = mesh.apply(vec![]);
    assert_eq!(thresholds(&applied), [(3, 3)]);
    assert!(!applied.certifiers.keys.contains_key(&NodeId(4)));
    assert!(matches!(mesh.decide(add), Outcome::PolicyChanged { .. }));
    assert_eq!(thresholds(mesh.applied.last().unwrap()), [(4, 3), (3, 3)]);
}

#[test]
fn a_member_with_another_tpm_is_another_machine() {
    let mut mesh = Mesh::four();
    mesh.fleet.nodes.insert(NodeId(4), TestNode::new(4, 44));
    let member = Fleet::member_document(&mesh.fleet.nodes[&NodeId(4)]);
    let replace = mesh.fleet.change_policy(|d| d.member[3] = member);
    let applied = mesh.apply(vec![replace]);
    assert_eq!(mesh.state().nodes()[&NodeId(4)], NodeRecord::default());
    let old: Vec<_> = applied.certifiers.rules[1].members.iter().map(|n| n.0).collect();
    assert_eq!(
        (old, applied.certifiers.rules[1].threshold),
        (vec![1, 2, 3], 3),
        "it does not speak for the old one"
    );
    mesh.attest_all();
    assert!(mesh.state().attested(NodeId(4)).is_some());
}

// --- the machine as a whole ---

#[test]
fn an_entry_that_does_not_decode_leaves_its_digest() {
    let mut mesh = Mesh::four();
    let mut garbage =
        encode(&Batch { time: mesh.time.plus_ms(1 << 40), proposer: NodeId(1), commands: vec![] });
    garbage.push(0);
    let too_many = Batch {
        time: mesh.time,
        proposer: NodeId(1),
        commands: vec![
            Command::Policy(PolicyCommand { document: Hash([0; 32]), signatures: vec![] });
            COMMANDS_MAX + 1
        ],
    };
    for entry in [garbage, vec![], encode(&too_many)] {
        let time = mesh.state().time();
        let applied = mesh.log.apply_bytes(&entry, &mesh.fleet.blobs);
        let expected = LeafBody::Undecodable { entry: sha256(&entry) };
        assert!(matches!(applied.leaves[0].leaf(), Leaf::V1 { body, .. } if *body == expected));
        assert_eq!((applied.leaves.len(), mesh.state().time()), (2, time));
    }
}

#[test]
fn time_never_goes_back() {
    let mut mesh = Mesh::four();
    let time = mesh.state().time();
    mesh.log.apply(Timestamp(5), vec![], &mesh.fleet.blobs);
    assert_eq!(mesh.state().time(), time);
}

#[test]
fn a_snapshots_digest_is_the_next_batchs_first_leaf_whatever_that_batch_is() {
    for garbage in [false, true] {
        let mut mesh = Mesh::four();
        let early = mesh.fleet.node_command(NodeId(1), NodeCommand::Snapshot);
        while mesh.state().batches_since_snapshot() < SNAPSHOT_BATCHES_MIN - 1 {
            mesh.apply(vec![]);
        }
        mesh.refuses(early.clone(), Refusal::TooSoon);
        let applied = mesh.apply(vec![early]);
        assert!(applied.snapshot_point && mesh.state().digest_due());
        let copy = State::from_bytes(&mesh.state().to_bytes(), mesh.fleet.cluster()).unwrap();
        let expected = LeafBody::StateDigest { size: mesh.state().checkpoint().size, digest: copy.digest() };
        let applied =
            if garbage { mesh.log.apply_bytes(b"?", &mesh.fleet.blobs) } else { mesh.apply(vec![]) };
        assert!(matches!(applied.leaves[0].leaf(), Leaf::V1 { body, .. } if *body == expected));
        assert!(!mesh.state().digest_due());
    }
}

#[test]
fn a_restored_state_goes_on_alike_and_the_tlog_replays_to_the_same_leaves() {
    let mut mesh = Mesh::new(4, 1, |d| d.attestation.settle_ms = 1000);
    let (genesis, _) = mesh.fleet.genesis();
    let mut restored = State::from_bytes(&genesis.to_bytes(), mesh.fleet.cluster()).unwrap();
    let pool = mesh.open_pool();
    let settled = mesh.authorise(&pool);
    let _open = mesh.authorise(&pool);
    mesh.settle(&pool, settled);
    let replay = mesh.request_with(&pool, |a| a.request = settled).1;
    mesh.refuses(replay, Refusal::Replayed);
    mesh.wait(61_001);
    mesh.apply(vec![]);
    mesh.recover();
    mesh.fleet.node(2).reset_machine();
    let evidence = mesh.evidence(2);
    mesh.decide(evidence);
    let change = mesh.fleet.change_policy(|d| d.client[0].revoked = true);
    mesh.decide(change);
    // Commands from the leaves alone, batch by batch.
    let (mut time, mut commands, mut index) = (Timestamp(0), Vec::new(), 1);
    for bytes in &mesh.log.leaves[1..] {
        let Leaf::V1 { time: at, body } = borsh::from_slice(bytes).unwrap();
        time = time.max(at);
        match body {
            LeafBody::Decided { command, .. } => commands.push(command),
            LeafBody::BatchEnd(end) => {
                let batch = Batch { time, proposer: end.proposer, commands: std::mem::take(&mut commands) };
                let applied = restored.apply(&encode(&batch), &mesh.fleet.blobs);
                for leaf in applied.leaf_bytes {
                    assert_eq!(leaf, mesh.log.leaves[index], "leaf {index}");
                    index += 1;
                }
                restored = State::from_bytes(&restored.to_bytes(), mesh.fleet.cluster()).unwrap();
            }
            _ => (),
        }
    }
    assert_eq!(
        (restored.digest(), restored.checkpoint()),
        (mesh.state().digest(), mesh.state().checkpoint())
    );
}

#[test]
fn a_foreign_or_newer_snapshot_is_refused() {
    let mesh = Mesh::four();
    let bytes = mesh.state().to_bytes();
    assert!(matches!(State::from_bytes(&bytes, Hash([0; 32])), Err(BadSnapshot::WrongCluster)));
    let mut newer = bytes.clone();
    let next = MACHINE_VERSION + 1;
    newer[..4].copy_from_slice(&next.to_le_bytes());
    let refused = State::from_bytes(&newer, mesh.fleet.cluster());
    assert!(matches!(refused, Err(BadSnapshot::Version(version)) if version == next));
    assert!(matches!(State::from_bytes(&bytes[1..], mesh.fleet.cluster()), Err(BadSnapshot::Undecodable)));
}

/// The widest commands within bounds make leaves that tiles can carry.
#[test]
fn no_leaf_is_too_large_for_a_tile() {
    let hash = Hash([0; 32]);
    let proof = || crate::tlog::ConsistencyProof::try_from(vec![hash; 65]).unwrap();
    let evidence = quorate_attest::evidence::Evidence {
        attest: vec![0; quorate_attest::tpm::ATTEST_BYTES_MAX],
        signature: vec![0; quorate_attest::tpm::SIGNATURE_BYTES_MAX],
        pcrs: vec![(0, [0; 32]); 24],
        event_log: [0; 32],
        ima_log: Some([0; 32]),
    };
    let mut mesh = Mesh::four();
    let x = mesh.contributions().remove(0);
    let reference = x.lock;
    let cosignature = Cosignature { time_s: 0, signature: [0; 64] };
    let settlement = Fleet::settlement(RequestId([0; 16]));
    let signature = crate::crypto::Signature([0; 64]);
    let commands = [
        Command::Recover(Box::new(RecoverCommand {
            base: reference,
            contributions: vec![x.clone(); 7],
            evidence: vec![(NodeId(1), evidence.clone()); 7],
            tree: TreeSize(0),
            proofs: vec![(proof(), proof()); 7],
        })),
        Command::Evidence(Box::new(EvidenceCommand {
            node: NodeId(1),
            boot: x.boot.clone(),
            nonce: reference,
            certificate: vec![(NodeId(1), cosignature); 7],
            evidence,
            signature,
        })),
        Command::Policy(PolicyCommand {
            document: hash,
            signatures: vec![crate::sshsig::SshSignature(vec![0; 1024]); 32],
        }),
        mesh.fleet.node_command(NodeId(1), NodeCommand::Settle(vec![settlement; SETTLEMENTS_MAX])),
    ];
    let outcomes = [
        Outcome::Settled((0..SETTLEMENTS_MAX as u16).map(|i| (i, Refusal::UnknownRequest)).collect()),
        Outcome::PolicyChanged { version: PolicyVersion(1), signers: vec!["x".repeat(64); 32] },
        Outcome::AppraisalRefused { check: "x".repeat(64) },
    ];
    for command in commands {
        assert!(command.within_bounds());
        for outcome in &outcomes {
            let body = LeafBody::Decided { command: command.clone(), outcome: outcome.clone() };
            let bytes = encode(&Leaf::V1 { time: Timestamp(0), body }).len();
            assert!(bytes <= MAX_LEAF_BYTES, "{bytes}");
        }
    }
}

#[test]
fn oversized_commands_leave_no_leaf() {
    let mut mesh = Mesh::four();
    let settlement = Fleet::settlement(RequestId([0; 16]));
    for node in [NodeId(1), NodeId(7)] {
        let mut long = mesh
            .fleet
            .node_command(NodeId(1), NodeCommand::Settle(vec![settlement.clone(); SETTLEMENTS_MAX + 1]));
        if let Command::Node(n) = &mut long {
            n.node = node;
        }
        let leaves = mesh.apply(vec![long]);
        assert_eq!((leaves.outcomes[0].1.clone(), leaves.leaves.len()), (refused(Refusal::Oversized), 1));
    }
}

#[test]
fn a_flood_of_worthless_evidence_keeps_the_nonces_of_others() {
    let mut mesh = Mesh::four();
    mesh.wait(1000);
    mesh.apply(vec![]);
    let nonce = mesh.nonce();
    let state = mesh.log.state.clone();
    let honest = mesh.fleet.evidence(&state, NodeId(1), &nonce);
    for i in 0..300u32 {
        let mut forged = mesh.fleet.evidence_with(&state, NodeId(2), &nonce, |_| ());
        forged.evidence.signature.truncate(4 + (i % 8) as usize);
        let forged = forged.sign(mesh.fleet.cluster(), mesh.fleet.nodes[&NodeId(2)].cosign_key());
        mesh.decide(Command::Evidence(Box::new(forged)));
    }
    assert!(matches!(mesh.decide(honest), Outcome::Appraised { .. }));
    assert!(mesh.state().attested(NodeId(2)).is_some());
}

#[test]
fn commands_name_the_blobs_they_need_and_whether_they_hurry() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let (_, request) = mesh.request_with(&pool, |_| ());
    let evidence = mesh.evidence(1);
    let recovery = Command::Recover(Box::new(mesh.recovery()));
    let log = sha256(mesh.fleet.nodes[&NodeId(1)].tpm.event_log());
    assert_eq!((evidence.blobs(), evidence.goes_first()), (vec![log], true));
    assert_eq!((recovery.blobs(), recovery.goes_first()), (vec![log; 4], true));
    assert_eq!((request.blobs(), request.goes_first()), (vec![], false));
    let change = mesh.fleet.change_policy(|_| ());
    assert_eq!((change.blobs().len(), change.goes_first()), (1, true));
}

/// Refusals that this machine has a name for but no command can meet: a statement for another cluster does not verify, and
/// what the Verifier rejects is an outcome of its own.
const NEVER_MET: [Refusal; 2] = [Refusal::WrongCluster, Refusal::AppraisalFailed];

#[test]
fn tests_name_every_refusal() {
    let text = [
        include_str!("tests.rs"),
        include_str!("metering/tests/machine.rs"),
        include_str!("budget/tests.rs"),
        include_str!("tokens/tests.rs"),
    ]
    .concat();
    for refusal in Refusal::ALL {
        assert!(text.contains(&format!("Refusal::{refusal:?}")), "no test for {refusal:?}");
    }
    assert_eq!(NEVER_MET.len(), 2);
}

#[test]
fn a_refused_admission_names_a_member_and_a_short_check() {
    let mut mesh = Mesh::four();
    let alarm = |m: &Mesh, node, check: String| {
        m.fleet.node_command(NodeId(1), NodeCommand::Alarm(Alarm::AdmissionRefused { node, check }))
    };
    let long = "x".repeat(CHECK_BYTES_MAX);
    mesh.refuses(alarm(&mesh, NodeId(9), "signature".into()), Refusal::UnknownNode);
    mesh.refuses(alarm(&mesh, NodeId(4), format!("{long}x")), Refusal::Oversized);
    assert_eq!(mesh.decide(alarm(&mesh, NodeId(4), long)), Outcome::AlarmRaised);
    assert!(mesh.state().attested(NodeId(4)).is_some(), "one node's word costs nobody its place");
}

#[test]
fn a_node_that_quotes_without_end_keeps_the_nonces_of_others() {
    let mut mesh = Mesh::four();
    let slow = mesh.evidence(2);
    for _ in 0..300 {
        let fast = mesh.evidence(1);
        assert!(matches!(mesh.decide(fast), Outcome::Appraised { .. }));
    }
    assert!(matches!(mesh.decide(slow), Outcome::Appraised { .. }));
}
