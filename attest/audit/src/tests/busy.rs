//! A log in which every kind of leaf stands.
use crate::store::Mirror;
use crate::testing::{LogWriter, note_of};
use quorate_core::command::{
    Alarm, CheckpointRef, ClientCommand, ClientSigned, Command, Ended, NodeCommand, Report,
};
use quorate_core::crypto::{Hash, PublicKey, public_key};
use quorate_core::ids::{ClientId, NodeId, RequestId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::state::checkpoint_of;
use quorate_core::testing::{CLIENT, Fleet, Mesh, client_document, key, keyed, route};
use quorate_core::tlog::TreeSize;
use quorate_core::token::{Token, TokenLimits};
use std::path::Path;

/// Four nodes; more than one bundle; a lapse, a change of policy, anomalies, alarms, a request that nobody settled, refused evidence,
/// a suspended pair, a frozen key, an entry that does not decode, a snapshot point; at the end everybody quotes over all of it.
pub(crate) fn busy() -> Mesh {
    let mut mesh = Mesh::new(4, 1, |d| {
        keyed(d);
        d.client.extend(["b", "c", "d"].map(client_document));
        d.attestation.settle_ms = 30_000;
        d.client[0].token_lifetime_ms_max = Some(900_000);
    });
    let pool = mesh.open_pool();
    for _ in 0..3 {
        let request = mesh.authorise(&pool);
        mesh.settle(&pool, request);
    }
    // One of which nobody says how it ended, and whose keyer says that it never answered.
    let silent = mesh.authorise(&pool);
    let denies = mesh.fleet.node_command(pool.keyer, NodeCommand::Unanswered(vec![silent]));
    assert!(matches!(mesh.decide(denies), Outcome::Settled(refused) if refused.is_empty()));
    by_token(&mut mesh);
    let odd = mesh.authorise(&pool);
    end(&mut mesh, CLIENT, pool.relay, Report { ended: Ended::Truncated, ..Fleet::report(odd) });
    let (_, greedy) = mesh.request_with(&pool, |r| r.body_bytes_max = u64::MAX);
    assert!(matches!(mesh.decide(greedy), Outcome::Refused(_)));
    for alarm in [
        Alarm::Withheld { command: Hash([9; 32]) },
        Alarm::AdmissionRefused { node: NodeId(3), check: "pcr-digest".into() },
        Alarm::HeadRefused { request: odd, code: 7 },
    ] {
        let by = if matches!(alarm, Alarm::HeadRefused { .. }) { pool.keyer } else { NodeId(1) };
        let command = mesh.fleet.node_command(by, NodeCommand::Alarm(alarm));
        assert_eq!(mesh.decide(command), Outcome::AlarmRaised);
    }
    let accuse = mesh.fleet.node_command(NodeId(1), NodeCommand::Alarm(two_roots(&mesh, NodeId(3))));
    assert_eq!(mesh.decide(accuse), Outcome::AlarmRaised);
    fresh(&mut mesh, 1_000);
    let forged = mesh.evidence_with(2, |c| c.evidence.pcrs[0].1[0] ^= 1);
    assert!(matches!(mesh.decide(forged), Outcome::AppraisalRefused { .. }));
    let honest = mesh.evidence(2);
    assert!(matches!(mesh.decide(honest), Outcome::Appraised { .. }));
    let change = mesh.fleet.change_policy(|d| d.attestation.settle_ms += 1);
    assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
    let applied = mesh.log.apply_bytes(b"no batch", &mesh.fleet.blobs);
    mesh.applied.push(applied);

    // A suspended pair, then a frozen key.
    let pair = (pool.relay, pool.keyer);
    for client in [CLIENT, "b", "c"] {
        fault(&mut mesh, client, pair);
    }
    let state = mesh.state().clone();
    let apart = (1..=4u64).filter(|r| NodeId(*r) != pair.0 && NodeId(*r) != pair.1).find_map(|relay| {
        let (relay, keyers) = mesh.fleet.way(&state, relay);
        Some((relay, keyers.into_iter().find(|k| *k != pair.0 && *k != pair.1)?))
    });
    for client in [CLIENT, "b", "c", "d"] {
        if !mesh.state().policy().routes.is_empty()
            && mesh.state().meter(&quorate_core::testing::route()).is_some_and(|m| !m.is_frozen())
        {
            fault(&mut mesh, client, apart.expect("two pairs without a common node"));
        }
    }

    // Node 4 is silent until it lapses, and back again.
    mesh.silent.insert(NodeId(4));
    for _ in 0..3 {
        fresh(&mut mesh, 40_000);
        mesh.attest_all();
    }
    mesh.silent.clear();
    fresh(&mut mesh, 2_000);
    mesh.attest_all();

    for _ in 0..260 {
        mesh.apply(Vec::new());
    }
    let snapshot = mesh.fleet.node_command(NodeId(1), NodeCommand::Snapshot);
    assert_eq!(mesh.decide(snapshot), Outcome::SnapshotPoint);
    fresh(&mut mesh, 2_000);
    mesh.attest_all();
    fresh(&mut mesh, 2_000);
    mesh.attest_all();
    mesh
}

/// A request of somebody who holds a client's token, which the client then takes back.
fn by_token(mesh: &mut Mesh) {
    let token = Token {
        serial: [7; 16],
        issuer: ClientId::new(CLIENT).unwrap(),
        subject: ClientId::new("agent").unwrap(),
        key: public_key(&key("agent")),
        routes: vec![route()],
        limits: TokenLimits::default(),
        not_before: mesh.time,
        expires: mesh.time.plus_ms(900_000),
    };
    let (cluster, issuer) = (mesh.fleet.cluster(), token.issuer.clone());
    let id = Some(token.id(cluster));
    let by = |body| {
        let signed = ClientSigned::sign_as(cluster, issuer.clone(), id, body, &key("agent"));
        Command::Client(signed)
    };
    let mut pool = mesh.fleet.pool(&mesh.log.state, 1);
    pool.token = Some(Box::new(token.clone().sign(cluster, &key(CLIENT))));
    assert_eq!(mesh.decide(by(ClientCommand::OpenPool(pool.clone()))), Outcome::PoolOpened);
    let request = mesh.fleet.request(&mesh.log.state, &pool);
    let asked = request.request;
    assert_eq!(mesh.decide(by(ClientCommand::Authorise(request))), Outcome::Authorised);
    let settled = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![Fleet::settlement(asked)]));
    mesh.apply(vec![settled, by(ClientCommand::Report(vec![Fleet::report(asked)]))]);
    let revoke = mesh.fleet.client(CLIENT, ClientCommand::RevokeToken(Box::new(token)));
    assert_eq!(mesh.decide(revoke), Outcome::TokenRevoked);
}

/// A node's two cosignatures over two roots at one size.
fn two_roots(mesh: &Mesh, accused: NodeId) -> Alarm {
    let size = TreeSize(5);
    let sign = |root| (root, mesh.fleet.nodes[&accused].cosign(mesh.state(), CheckpointRef { size, root }));
    let key = PublicKey(mesh.fleet.nodes[&accused].boot().cosign);
    Alarm::Equivocation { accused, key, size, one: sign(Hash([1; 32])), other: sign(Hash([2; 32])) }
}

/// A newer certified checkpoint to quote over.
fn fresh(mesh: &mut Mesh, ms: u64) {
    mesh.wait(ms);
    mesh.apply(Vec::new());
}

/// Settled as complete, reported so.
fn end(mesh: &mut Mesh, client: &str, relay: NodeId, report: Report) {
    let settle = mesh.fleet.node_command(relay, NodeCommand::Settle(vec![Fleet::settlement(report.request)]));
    let report = mesh.fleet.client(client, ClientCommand::Report(vec![report]));
    mesh.apply(vec![settle, report]);
}

/// A request over a pair that the provider refuses as with a wrong key.
fn fault(mesh: &mut Mesh, client: &str, pair: (NodeId, NodeId)) {
    let state = mesh.state().clone();
    let pool = mesh.fleet.pool_over(&state, pair);
    let open = mesh.fleet.client(client, ClientCommand::OpenPool(pool.clone()));
    assert_eq!(mesh.decide(open), Outcome::PoolOpened, "{client} over {pair:?}");
    let request = mesh.fleet.request(&state, &pool);
    let id = request.request;
    let ask = mesh.fleet.client(client, ClientCommand::Authorise(request));
    assert_eq!(mesh.decide(ask), Outcome::Authorised);
    end(mesh, client, pair.0, Report { status: 401, error_form: true, ..Fleet::report(id) });
}

/// What a leaf is, for tables.
pub(crate) fn kind(leaf: &[u8]) -> String {
    let Leaf::V1 { body, .. } = borsh::from_slice(leaf).unwrap();
    match body {
        LeafBody::Genesis { .. } => "genesis".into(),
        LeafBody::Decided { command, outcome } => {
            let refused = match outcome {
                Outcome::Refused(_) | Outcome::AppraisalRefused { .. } => " refused",
                _ => "",
            };
            let what = match command {
                Command::Client(c) => match (c.body, c.token.is_some()) {
                    (ClientCommand::OpenPool(_), false) => "pool",
                    (ClientCommand::OpenPool(_), true) => "pool by token",
                    (ClientCommand::Authorise(_), false) => "authorisation",
                    (ClientCommand::Authorise(_), true) => "authorisation by token",
                    (ClientCommand::Report(_), false) => "report",
                    (ClientCommand::Report(_), true) => "report by token",
                    (ClientCommand::RevokeToken(_), _) => "revocation of a token",
                },
                Command::Node(c) => match c.body {
                    NodeCommand::Settle(_) => "settlement",
                    NodeCommand::Alarm(Alarm::HeadRefused { .. }) => "alarm: head",
                    NodeCommand::Alarm(Alarm::Equivocation { .. }) => "alarm: equivocation",
                    NodeCommand::Alarm(Alarm::Withheld { .. }) => "alarm: withheld",
                    NodeCommand::Alarm(Alarm::AdmissionRefused { .. }) => "alarm: admission",
                    NodeCommand::Snapshot => "snapshot point",
                    NodeCommand::Unanswered(_) => "unanswered",
                },
                Command::Evidence(_) => "evidence",
                Command::Recover(_) => "recovery",
                Command::Policy(_) => "policy",
            };
            format!("{what}{refused}")
        }
        LeafBody::Lapsed { .. } => "lapse".into(),
        LeafBody::Unsettled { .. } => "unsettled".into(),
        LeafBody::Anomaly { .. } => "anomaly".into(),
        LeafBody::StateDigest { .. } => "state digest".into(),
        LeafBody::Undecodable { .. } => "undecodable entry".into(),
        LeafBody::BatchEnd(_) => "batch end".into(),
        LeafBody::PairSuspended { .. } => "pair suspended".into(),
        LeafBody::CredentialFrozen { .. } => "credential frozen".into(),
    }
}

/// A mirror of other leaves than the mesh wrote, as if all of its nodes had conspired to certify them.
pub(super) fn conspired(mesh: &Mesh, leaves: &[Vec<u8>], dir: &Path) -> Mirror {
    let mut writer = LogWriter::new(dir, &mesh.fleet.chain[0]);
    mesh.fleet.blobs.0.values().for_each(|blob| writer.blob(blob));
    leaves.iter().for_each(|leaf| writer.push(leaf));
    let reference = CheckpointRef { size: writer.size(), root: writer.root() };
    let cosignatures: Vec<_> =
        mesh.fleet.nodes.iter().map(|(id, node)| (*id, node.cosign(mesh.state(), reference))).collect();
    let checkpoint = checkpoint_of(mesh.state().origin(), reference);
    writer.finish(&note_of(&checkpoint, &cosignatures, |id| {
        (format!("node-{}", id.0), mesh.fleet.nodes[&id].boot().cosign)
    }))
}

/// A request that was settled and reported.
pub(super) fn some_request(mesh: &Mesh) -> RequestId {
    let mut ids = mesh.log.leaves.iter().filter_map(|leaf| match borsh::from_slice(leaf).unwrap() {
        Leaf::V1 {
            body: LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised },
            ..
        } => match c.body {
            ClientCommand::Authorise(a) => Some(a.request),
            _ => None,
        },
        _ => None,
    });
    ids.nth(1).unwrap()
}
