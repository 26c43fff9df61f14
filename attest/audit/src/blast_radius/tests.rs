//! Histories in which a node has a binary for a while, against an oracle that knows when.
use super::tell;
use super::*;
use crate::manifest::tests::{release, trust};
use crate::report::tests::{pool, request, settle};
use crate::testing::mirror_of;
use quorate_attest::eventlog;
use quorate_attest::evidence::Evidence;
use quorate_attest::testing::TestTpm;
use quorate_core::command::{Ended, OpenPool};
use quorate_core::crypto::sha256;
use quorate_core::ids::{NodeId, RequestId};
use quorate_core::leaf::Outcome as Decided;
use quorate_core::policy::Policy;
use quorate_core::testing::{CLIENT, Fleet, MemoryBlobs, Mesh, ROUTE};
use quorate_core::tlog::{Hash as NodeHash, InclusionProof, LeafIndex, leaf_hash, verify_inclusion};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const ROGUE: &[u8] = b"a build with a hole";
const BOUGHT: NodeId = NodeId(3);

fn digest() -> Hash {
    sha256(ROGUE)
}

fn found(mesh: &Mesh, dir: &Path, target: &Target) -> (Mirror, Radius) {
    let mirror = mirror_of(mesh, dir, &[]);
    let found = radius(&mirror, mesh.fleet.cluster(), Options { threads: 2 }, target, |_, _| ()).unwrap();
    (mirror, found)
}

fn binary(digest: Hash) -> Target {
    Target::new(&[digest], None, &[]).unwrap()
}

/// One round: everybody's evidence, then requests over every attested relay, settled.
fn round(mesh: &mut Mesh, requests: &mut Vec<(RequestId, OpenPool, usize)>, number: usize) {
    mesh.wait(15_000);
    mesh.attest_all();
    let attested: Vec<u64> = mesh.state().attested_nodes().map(|n| n.0).collect();
    for relay in attested {
        let pool = pool(mesh, CLIENT, ROUTE, relay);
        let id = request(mesh, CLIENT, &pool);
        settle(mesh, CLIENT, &pool, id, 10, Ended::Complete);
        requests.push((id, pool, number));
    }
}

fn serves(pool: &OpenPool, node: NodeId) -> bool {
    pool.relay == node || pool.keyer == node
}

#[test]
fn requests_are_shown_possible_or_neither() {
    let mut mesh = Mesh::four();
    let mut requests = Vec::new();
    // The admins accept the build before it runs.
    let mut future = TestTpm::new(BOUGHT.0);
    future.measure(11, 1, ROGUE);
    let value = future.pcr(11);
    let change = mesh.fleet.change_policy(|d| {
        d.reference_values.get_mut("plain").unwrap().pcrs.get_mut(&11).unwrap().push(value);
    });
    assert!(matches!(mesh.decide(change), Decided::PolicyChanged { .. }));
    // A claim in a PCR that no quote covers is nobody's evidence.
    mesh.fleet.node(2).tpm.measure(14, 1, ROGUE);
    (0..3).for_each(|n| round(&mut mesh, &mut requests, n));
    // Two requests that run across the first evidence with it: one over the node, one not.
    let over = pool(&mut mesh, CLIENT, ROUTE, BOUGHT.0);
    let running = request(&mut mesh, CLIENT, &over);
    mesh.fleet.node(BOUGHT.0).tpm.measure(11, 1, ROGUE);
    (3..6).for_each(|n| round(&mut mesh, &mut requests, n));
    settle(&mut mesh, CLIENT, &over, running, 10, Ended::Complete);
    // The machine starts again without it; round 5's requests were still over a node that showed it.
    let node = mesh.fleet.node(BOUGHT.0);
    let clock = node.tpm.clock_ms;
    node.tpm = TestTpm::new(BOUGHT.0);
    node.tpm.clock_ms = clock + 1;
    node.tpm.power_cycle();
    node.restart_process();
    (6..9).for_each(|n| round(&mut mesh, &mut requests, n));
    assert!(mesh.state().attested(BOUGHT).is_some(), "it came back");

    let dir = tempfile::tempdir().unwrap();
    let (_, found) = found(&mesh, dir.path(), &binary(digest()));
    let [exposure] = &found.exposures[..] else { panic!("{:?}", found.exposures) };
    assert_eq!((exposure.node, exposure.certain, exposure.refused), (BOUGHT, true, false));
    assert!(exposure.before.is_some() && exposure.until.is_some());
    assert!(matches!(exposure.reasons[..], [Reason::EventLog { pcr: 11, .. }]), "{:?}", exposure.reasons);
    assert!(exposure.first < exposure.last);

    let mut got: BTreeMap<RequestId, Certainty> = BTreeMap::new();
    for affected in found.affected.values() {
        let own = affected.by.iter().filter(|((_, role), _)| *role != Role::Certifier);
        got.extend(own.map(|(_, certainty)| *certainty).max().map(|c| (affected.served.request, c)));
    }
    let mut expected = BTreeMap::from([(running, Certainty::Shown)]);
    for (id, _, number) in requests.iter().filter(|(_, pool, _)| serves(pool, BOUGHT)) {
        match number {
            2 => drop(expected.insert(*id, Certainty::Possible)),
            3..=5 => drop(expected.insert(*id, Certainty::Shown)),
            _ => {}
        }
    }
    assert!(expected.values().filter(|c| **c == Certainty::Possible).count() > 0);
    assert_eq!(got, expected);
    // Requests that it only certified: those of rounds 3 to 5 that it did not serve.
    let certified = found.affected.values().filter(|a| !got.contains_key(&a.served.request)).count();
    let not_served =
        requests.iter().filter(|(_, pool, n)| (3..6).contains(n) && !serves(pool, BOUGHT)).count();
    assert_eq!(certified, not_served);
    assert_eq!(exposure.certified as usize, requests.iter().filter(|(_, _, n)| (3..6).contains(n)).count());
}

#[test]
fn refused_evidence_tells_who_was_served_before_it() {
    let mut mesh = Mesh::four();
    let mut requests = Vec::new();
    (0..2).for_each(|n| round(&mut mesh, &mut requests, n));
    mesh.fleet.node(BOUGHT.0).tpm.measure(11, 1, ROGUE);
    round(&mut mesh, &mut requests, 2);
    assert!(mesh.state().attested(BOUGHT).is_none());
    let dir = tempfile::tempdir().unwrap();
    let (_, found) = found(&mesh, dir.path(), &binary(digest()));
    let [exposure] = &found.exposures[..] else { panic!("{:?}", found.exposures) };
    assert!(exposure.refused && exposure.until.is_none());
    let got: BTreeMap<_, _> = found.affected.values().map(|a| (a.served.request, a.certainty())).collect();
    let last = requests.iter().filter(|(_, pool, n)| *n == 1 && serves(pool, BOUGHT));
    assert_eq!(got, last.map(|(id, ..)| (*id, Certainty::Possible)).collect());
    assert!(!got.is_empty());
}

#[test]
fn another_digest_meets_nobody() {
    let mut mesh = Mesh::four();
    let mut requests = Vec::new();
    (0..2).for_each(|n| round(&mut mesh, &mut requests, n));
    let dir = tempfile::tempdir().unwrap();
    let (_, found) = found(&mesh, dir.path(), &binary(digest()));
    assert_eq!((found.exposures.len(), found.affected.len()), (0, 0));
    assert!(found.evidence > 8);
}

#[test]
fn a_package_is_followed_through_its_release() {
    let dir = tempfile::tempdir().unwrap();
    let package: Package = "ssl@1.1.1".parse().unwrap();
    // By policy: the nodes' reference values were taken from the release.
    let named = SignedRelease::read(&release(dir.path(), |_| ())).unwrap();
    let mut mesh = Mesh::new(4, 1, |d| {
        d.releases.insert("plain".into(), BTreeSet::from([named.digest().to_string()]));
    });
    let mut requests = Vec::new();
    round(&mut mesh, &mut requests, 0);
    let releases = [named.clone()];
    let target = Target::new(&[], Some(&package), &releases).unwrap();
    let (_, by_policy) = found(&mesh, &dir.path().join("a"), &target);
    assert_eq!(by_policy.exposures.len(), 4);
    assert!(by_policy.exposures.iter().all(|e| e.certain));
    assert!(matches!(by_policy.exposures[0].reasons[..], [Reason::Policy { alone: true, .. }]));
    assert_eq!(by_policy.affected.len(), requests.len());
    assert!(by_policy.manifests.contains(&named.digest()));

    // By PCRs: the release names what a machine shows that runs it. One that names other values is not met.
    let value = Hash(mesh.fleet.nodes[&NodeId(1)].tpm.pcr(11));
    for (value, met) in [(value, 4), (Hash([7; 32]), 0)] {
        let path = release(dir.path(), |m| drop(m.pcrs.insert("11".into(), BTreeSet::from([value]))));
        let target = Target::new(&[], Some(&package), &[SignedRelease::read(&path).unwrap()]).unwrap();
        let (_, by_pcrs) = found(&mesh, &dir.path().join(met.to_string()), &target);
        assert_eq!(by_pcrs.exposures.len(), met);
        assert!(by_pcrs.exposures.iter().all(|e| matches!(e.reasons[..], [Reason::Pcrs { .. }])));
    }

    // With a second release beside it, the policy's word is only perhaps about this one.
    let both = BTreeSet::from([named.digest().to_string(), "07".repeat(32)]);
    let mut mesh = Mesh::new(4, 1, |d| drop(d.releases.insert("plain".into(), both)));
    round(&mut mesh, &mut requests, 1);
    let (_, perhaps) = found(&mesh, &dir.path().join("b"), &target);
    assert!(perhaps.exposures.iter().all(|e| !e.certain) && perhaps.exposures.len() == 4);
    assert!(perhaps.affected.values().all(|a| a.certainty() == Certainty::Possible));

    let nowhere = Target::new(&[], Some(&"ssl@9".parse().unwrap()), &releases).unwrap_err();
    assert_eq!(nowhere, NoTarget::PackageNowhere { package: "ssl@9".into(), releases: 1 });
    assert!(target.names(&named) && !binary(digest()).names(&named));
    assert!(named.vouch(&trust("releaser")).is_ok());
}

#[test]
fn every_leaf_comes_with_a_proof() {
    let mut mesh = Mesh::four();
    let mut requests = Vec::new();
    (0..2).for_each(|n| round(&mut mesh, &mut requests, n));
    mesh.fleet.node(BOUGHT.0).tpm.measure(11, 1, ROGUE);
    round(&mut mesh, &mut requests, 2);
    let dir = tempfile::tempdir().unwrap();
    let target = binary(digest());
    let (mirror, found) = found(&mesh, dir.path(), &target);
    let args = BlastRadiusArgs {
        dir: dir.path().into(),
        genesis: GenesisArg { genesis: mesh.fleet.cluster() },
        binaries: vec![digest()],
        package: None,
        releases: vec![],
        signers: vec![],
        certified: false,
        json: true,
    };
    let mut lines = Vec::new();
    tell::json(&mirror, &args, &target, &[], &found, |line| {
        lines.push(line.clone());
        Ok(())
    })
    .unwrap();
    let kinds: Vec<_> = lines.iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["target", "exposure"]);
    assert_eq!(kinds.last(), Some(&"sum"));
    let checkpoint =
        crate::store::StoredCheckpoint::parse(lines[0]["checkpoint"].as_str().unwrap().as_bytes());
    let checkpoint = checkpoint.unwrap().checkpoint;
    let leaves: Vec<&serde_json::Value> = lines
        .iter()
        .flat_map(|l| l["leaves"].as_array().into_iter().flatten().chain(l.get("leaf")))
        .collect();
    assert!(leaves.len() >= 3);
    for leaf in leaves {
        let mut bytes = {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(leaf["bytes"].as_str().unwrap()).unwrap()
        };
        let at = LeafIndex(leaf["index"].as_u64().unwrap());
        let hashes: Vec<NodeHash> = serde_json::from_value(leaf["inclusion"].clone()).unwrap();
        let proof = InclusionProof::try_from(hashes).unwrap();
        let verify =
            |bytes: &[u8]| verify_inclusion(leaf_hash(bytes), at, checkpoint.size, checkpoint.root, &proof);
        verify(&bytes).unwrap();
        bytes[0] ^= 1;
        assert!(verify(&bytes).is_err());
    }
    let text = tell::text(&args, &target, &[], &found);
    for part in ["node-3", "event log, PCR 11", "the mesh did not accept that evidence", "(possible)"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn the_command_believes_releases_from_whom_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::four();
    let mut requests = Vec::new();
    round(&mut mesh, &mut requests, 0);
    let log = dir.path().join("log");
    mirror_of(&mesh, &log, &[]);
    let file = release(dir.path(), |_| ());
    let signer = dir.path().join("releaser.pub");
    std::fs::write(&signer, quorate_core::testing::ssh_line(&quorate_core::testing::key("releaser")))
        .unwrap();
    let args = |signers: Vec<PathBuf>, genesis: Hash| BlastRadiusArgs {
        dir: log.clone(),
        genesis: GenesisArg { genesis },
        binaries: vec![],
        package: Some("ssl@1.1.1".parse().unwrap()),
        releases: vec![file.clone()],
        signers,
        certified: false,
        json: false,
    };
    let genesis = mesh.fleet.cluster();
    let refused = run(args(vec![], genesis)).unwrap_err();
    assert!(refused.message.starts_with("nobody vouches for release app 1.0.0"), "{refused:?}");
    assert_eq!(run(args(vec![signer.clone()], genesis)), Ok(Exit::Good));
    assert_eq!(run(args(vec![signer], digest())), Ok(Exit::ProvenWrong));
}

#[test]
fn nothing_follows_from_a_log_that_does_not_hold() {
    let mut mesh = Mesh::four();
    let mut requests = Vec::new();
    round(&mut mesh, &mut requests, 0);
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(&mesh, dir.path(), &[]);
    let other = radius(&mirror, digest(), Options { threads: 1 }, &binary(digest()), |_, _| ());
    assert!(matches!(other, Err(Error::Found(_))));
}

/// One entry of an IMA list in its binary form, and what it extends PCR 10 with.
fn measured(file: &[u8; 32], path: &str) -> (Vec<u8>, [u8; 32]) {
    let digest = [b"sha256:\0".as_slice(), file].concat();
    let path = [path.as_bytes(), &[0]].concat();
    let sized = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let data = [sized(&digest), sized(&path)].concat();
    let extended = sha256(&data).0;
    let entry = [&10u32.to_le_bytes()[..], &extended, &sized(b"ima-ng"), &sized(&data)].concat();
    (entry, extended)
}

#[test]
fn an_ima_list_shows_what_the_quote_covers() {
    let mut fleet = Fleet::new(4, 1, |_| ());
    let policy = Policy::parse(&fleet.chain[0].document).unwrap();
    let log = fleet.node(1).tpm.event_log().to_vec();
    let start = eventlog::replay(&log).unwrap().value(10);
    let (one, first) = measured(&[1; 32], "/usr/bin/one");
    let (two, second) = measured(&digest().0, "/usr/bin/\u{1b}[2Jtwo");
    let mut blobs = MemoryBlobs::default();
    let list = blobs.put([one, two].concat());
    let event_log = blobs.put(log);
    let after_one = eventlog::extend(&start, &first);
    let after_two = eventlog::extend(&after_one, &second);
    let evidence = |pcr: [u8; 32]| Evidence {
        attest: vec![],
        signature: vec![],
        pcrs: vec![(10, pcr)],
        event_log: event_log.0,
        ima_log: Some(list.0),
    };
    let shown = |pcr| binary(digest()).shown(NodeId(1), &evidence(pcr), true, &policy, &blobs);
    let [Reason::Ima { path, .. }] = &shown(after_two)[..] else { panic!("{:?}", shown(after_two)) };
    assert_eq!(path, "/usr/bin/\u{1b}[2Jtwo");
    assert!(!shown(after_two)[0].to_string().contains('\u{1b}'), "a terminal is not a path's to command");
    assert_eq!(shown(after_one), [], "the entry came after the quote");
    assert_eq!(shown([9; 32]), [], "a list that does not lead to the quoted value is anybody's claim");
}
