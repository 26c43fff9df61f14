//! An honest receipt verifies; one thing changed, it does not.
use super::*;
use crate::certificate::NotCertified;
use crate::command::{Authorise, Settlement};
use crate::testing::*;
use crate::tlog::TreeSize;

fn settled() -> (Mesh, RequestId) {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    mesh.authorise(&pool);
    let request = mesh.authorise(&pool);
    mesh.settle(&pool, request);
    (mesh, request)
}

#[test]
fn a_receipt_says_what_was_authorised_and_who_could_certify() {
    let (mut mesh, request) = settled();
    let receipt = mesh.receipt(request);
    assert_eq!(receipt.0.leaves.len(), 3, "authorisation, settlement, report");
    let again = Receipt::from_text(&receipt.to_text()).unwrap();
    assert_eq!(again, receipt);
    let (verified, authorisation) = again.verify(mesh.fleet.cluster()).unwrap();
    assert_eq!(authorisation.request().request, request);
    assert_eq!(authorisation.client().as_str(), CLIENT);
    assert_eq!(authorisation.under(), mesh.state().checkpoint());
    assert_eq!(verified.time, mesh.state().time());
    for (id, node) in &mesh.fleet.nodes {
        assert_eq!(verified.nodes[id].boot, node.boot());
    }
    // Over a change of policy too.
    let change = mesh.fleet.change_policy(|d| d.client[0].requests_per_day = 5);
    mesh.apply(vec![change]);
    let receipt = mesh.receipt(request);
    assert_eq!(receipt.0.chain.len(), 2);
    assert_eq!(receipt.verify(mesh.fleet.cluster()).unwrap().0.policy.version, PolicyVersion(2));
}

/// Whatever byte of a receipt is changed, it no longer verifies.
#[test]
fn a_flipped_byte_is_always_found() {
    let (mesh, request) = settled();
    let (text, cluster) = (mesh.receipt(request).to_text().into_bytes(), mesh.fleet.cluster());
    let threads = 2;
    std::thread::scope(|s| {
        for t in 0..threads {
            let text = &text;
            s.spawn(move || {
                // Another bit at each position; every position of the first and last kilobyte, a third of the others.
                let near = |i: &usize| *i < 1024 || *i + 1024 > text.len() || i.is_multiple_of(3);
                for i in (0..text.len()).filter(near).filter(|i| i % threads == t) {
                    let mut changed = text.clone();
                    changed[i] ^= 1 << (i % 8);
                    let accepted = String::from_utf8(changed)
                        .ok()
                        .and_then(|text| Receipt::from_text(&text).ok())
                        .is_some_and(|r| r.verify(cluster).is_ok());
                    assert!(!accepted, "byte {i} of {}", text.len());
                }
            });
        }
    });
}

#[test]
fn a_receipt_has_one_text() {
    let (mesh, request) = settled();
    let text = mesh.receipt(request).to_text();
    for changed in [
        text.trim_end().to_owned(),
        format!("{text}\n"),
        text.replacen('\n', "\r\n", 2),
        text.replace("v1", "v2"),
        format!(" {text}"),
        text.lines().map(|l| format!("{l} \n")).collect(),
        String::new(),
    ] {
        assert!(matches!(Receipt::from_text(&changed), Err(ProofError::Malformed)));
    }
}

/// What is changed in an honest receipt, and what the verifier says.
#[test]
fn one_change_is_named() {
    type Case = (&'static str, fn(&Mesh, &mut Proof), fn(&ProofError) -> bool);
    let cases: &[Case] = &[
        ("no chain", |_, p| p.chain.clear(), |e| matches!(e, ProofError::WrongGenesis { .. })),
        (
            "genesis signed by one admin",
            |_, p| drop(p.chain[0].signatures.pop()),
            |e| matches!(e, ProofError::Chain(PolicyVersion(1), crate::refusal::Refusal::TooFewSigners)),
        ),
        (
            "genesis twice",
            |_, p| p.chain.push(p.chain[0].clone()),
            |e| matches!(e, ProofError::Chain(PolicyVersion(2), _)),
        ),
        ("checkpoint's root", |_, p| p.checkpoint.root.0[0] ^= 1, |e| matches!(e, ProofError::NotIncluded)),
        ("checkpoint's size", |_, p| p.checkpoint.size.0 += 1, |e| matches!(e, ProofError::NotIncluded)),
        ("another leaf for the end", |_, p| p.end = p.leaves[0].clone(), |e| matches!(e, ProofError::End)),
        ("an earlier end", earlier_end, |e| matches!(e, ProofError::End)),
        ("evidence dropped", |_, p| drop(p.evidence.pop()), |e| matches!(e, ProofError::End)),
        ("evidence doubled", |_, p| p.evidence.push(p.evidence[0].clone()), |e| matches!(e, ProofError::End)),
        ("evidence swapped", |_, p| p.evidence.swap(0, 1), |e| matches!(e, ProofError::Evidence(NodeId(1)))),
        (
            "one's evidence for another",
            |_, p| p.evidence[1] = p.evidence[0].clone(),
            |e| matches!(e, ProofError::Evidence(NodeId(2))),
        ),
        (
            "no evidence at all",
            |_, p| p.evidence[0].leaf = p.leaves[0].clone(),
            |e| matches!(e, ProofError::Evidence(NodeId(1))),
        ),
        (
            "nonce's proof",
            |_, p| p.evidence[2].nonce = ConsistencyProof::default(),
            |e| matches!(e, ProofError::Nonce(NodeId(3))),
        ),
        ("blob dropped", |_, p| drop(p.blobs.pop()), |e| matches!(e, ProofError::Evidence(_))),
        ("blob doubled", |_, p| p.blobs.push(p.blobs[0].clone()), |e| matches!(e, ProofError::Surplus)),
        ("blob added", |_, p| p.blobs.push(vec![1]), |e| matches!(e, ProofError::Surplus)),
        (
            "two cosignatures",
            |_, p| drop(p.cosignatures.drain(..2)),
            |e| matches!(e, ProofError::NotCertified(NotCertified::TooFew { have: 2, need: 3 })),
        ),
        (
            "none",
            |_, p| p.cosignatures.clear(),
            |e| matches!(e, ProofError::NotCertified(NotCertified::TooFew { have: 0, need: 3 })),
        ),
        (
            "one doubled",
            |_, p| p.cosignatures.push(p.cosignatures[0]),
            |e| matches!(e, ProofError::NotCertified(NotCertified::Doubled(NodeId(1)))),
        ),
        ("a foreign one", foreign, |e| {
            matches!(e, ProofError::NotCertified(NotCertified::NotACertifier(NodeId(9))))
        }),
        (
            "one under another's name",
            |_, p| p.cosignatures[0].1 = p.cosignatures[1].1,
            |e| matches!(e, ProofError::NotCertified(NotCertified::BadCosignature(NodeId(1)))),
        ),
        (
            "leaf's bytes",
            |_, p| p.leaves[0].bytes[9] ^= 1,
            |e| matches!(e, ProofError::NotCertified(NotCertified::NotIncluded)),
        ),
        (
            "leaf's place",
            |_, p| p.leaves[0].index.0 += 1,
            |e| matches!(e, ProofError::NotCertified(NotCertified::NotIncluded)),
        ),
        ("no leaves", |_, p| p.leaves.clear(), |e| matches!(e, ProofError::NoAuthorisation)),
        ("no authorisation", |_, p| drop(p.leaves.remove(0)), |e| matches!(e, ProofError::NoAuthorisation)),
        (
            "a leaf twice",
            |_, p| p.leaves.insert(1, p.leaves[1].clone()),
            |e| matches!(e, ProofError::Surplus),
        ),
        ("leaves swapped", |_, p| p.leaves.swap(1, 2), |e| matches!(e, ProofError::Surplus)),
        ("another's leaf", other_leaf, |e| matches!(e, ProofError::Surplus)),
    ];
    let (mesh, request) = settled();
    let honest = mesh.receipt(request);
    for (what, edit, expected) in cases {
        honest.verify(mesh.fleet.cluster()).unwrap();
        let mut changed = honest.clone();
        edit(&mesh, &mut changed.0);
        let error = changed.verify(mesh.fleet.cluster()).unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
        // The honest certificate minus what it can spare is a certificate still.
    }
    let mut fewer = honest.clone();
    fewer.0.cosignatures.pop();
    assert!(fewer.verify(mesh.fleet.cluster()).is_ok(), "three of four do");
    assert!(matches!(honest.verify(Hash([0; 32])), Err(ProofError::WrongGenesis { .. })));
}

fn earlier_end(mesh: &Mesh, p: &mut Proof) {
    let earlier = mesh.applied[mesh.applied.len() - 2].checkpoint.size.0 - 1;
    p.end = mesh.proven_leaf(LeafIndex(earlier), p.checkpoint.size);
}

fn foreign(_: &Mesh, p: &mut Proof) {
    p.cosignatures.push((NodeId(9), p.cosignatures[0].1));
}

/// The authorisation of the mesh's first request, which is in the tree all right.
fn other_leaf(mesh: &Mesh, p: &mut Proof) {
    let index = p.leaves[0].index.0 - 2;
    p.leaves.push(mesh.proven_leaf(LeafIndex(index), p.checkpoint.size));
}

#[test]
fn a_settlement_of_another_request_has_no_place() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let (one, other) = (mesh.authorise(&pool), mesh.authorise(&pool));
    mesh.settle(&pool, one);
    mesh.settle(&pool, other);
    let mut receipt = mesh.receipt(one);
    receipt.verify(mesh.fleet.cluster()).unwrap();
    receipt.0.leaves.extend(mesh.receipt(other).0.leaves.into_iter().skip(1));
    assert!(matches!(receipt.verify(mesh.fleet.cluster()), Err(ProofError::Surplus)));
    // Nor has one that was refused.
    let refused: Settlement = Fleet::settlement(one);
    let command = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![refused]));
    mesh.apply(vec![command]);
    assert!(matches!(mesh.receipt(one).verify(mesh.fleet.cluster()), Err(ProofError::Surplus)));
}

#[test]
fn a_refused_request_makes_no_receipt() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let (_, command) = mesh.request_with(&pool, |a: &mut Authorise| a.policy = PolicyVersion(7));
    let applied = mesh.apply(vec![command]);
    let leaf = applied.leaves[0].index();
    assert!(matches!(
        Receipt(mesh.proof(&[leaf])).verify(mesh.fleet.cluster()),
        Err(ProofError::NoAuthorisation)
    ));
}

#[test]
fn lapsed_evidence_proves_nothing() {
    // The honest state machine never signs such a tree: made here by hand, leaf for leaf, and cosigned by everybody.
    let (mesh, request) = settled();
    let honest = mesh.receipt(request).0;
    let Leaf::V1 { time, body } = borsh::from_slice(&honest.end.bytes).unwrap();
    for (late, lapsed) in [(60_000, false), (60_001, true)] {
        let evidence = mesh.state().nodes()[&NodeId(1)].attested_at().unwrap();
        let at = Timestamp(evidence.0 + late).max(time);
        let (mut tree, mut leaves) = (MemoryTree::default(), mesh.log.leaves.clone());
        *leaves.last_mut().unwrap() = encode(&Leaf::V1 { time: at, body: body.clone() });
        leaves.iter().for_each(|l| tree.push(l));
        let size = tree.size();
        let root = crate::tlog::root_at(&tree, size).unwrap();
        let checkpoint = CheckpointRef { size, root };
        let proven = |l: &ProvenLeaf| ProvenLeaf {
            index: l.index,
            bytes: leaves[l.index.0 as usize].clone(),
            inclusion: crate::tlog::prove_inclusion(&tree, l.index, size).unwrap(),
        };
        let nonce = |e: &ProvenEvidence| {
            let Leaf::V1 { body: LeafBody::Decided { command: Command::Evidence(c), .. }, .. } =
                borsh::from_slice(&e.leaf.bytes).unwrap()
            else {
                unreachable!("evidence")
            };
            crate::tlog::prove_consistency(&tree, c.nonce.size, size).unwrap()
        };
        let cosignatures =
            mesh.fleet.nodes.values().map(|n| (n.id, n.cosign(mesh.state(), checkpoint))).collect();
        let proof = Proof {
            chain: honest.chain.clone(),
            checkpoint,
            cosignatures,
            end: proven(&honest.end),
            evidence: honest
                .evidence
                .iter()
                .map(|e| ProvenEvidence { leaf: proven(&e.leaf), nonce: nonce(e) })
                .collect(),
            leaves: honest.leaves.iter().map(proven).collect(),
            blobs: honest.blobs.clone(),
        };
        let result = proof.verify(mesh.fleet.cluster());
        assert_eq!(matches!(result, Err(ProofError::Lapsed(NodeId(1)))), lapsed, "{result:?}");
        assert_eq!(result.is_ok(), !lapsed);
    }
    assert!(honest.checkpoint.size > TreeSize(1));
}

/// What a client checks of each request: the certificate of its own authorisation, and of nothing else.
#[test]
fn a_certificate_proves_one_authorisation() {
    let (mesh, request) = settled();
    let receipt = mesh.receipt(request);
    let (verified, authorisation) = receipt.verify(mesh.fleet.cluster()).unwrap();
    let Proof { checkpoint, cosignatures, leaves, .. } = receipt.0;
    let honest = LeafCertificate { checkpoint, cosignatures, leaf: leaves[0].clone() };
    let client = authorisation.client().clone();
    assert_eq!(verified.authorisation(&honest, &client, request).unwrap(), authorisation);

    let change = |edit: &dyn Fn(&mut LeafCertificate)| {
        let mut certificate = honest.clone();
        edit(&mut certificate);
        verified.authorisation(&certificate, &client, request).unwrap_err()
    };
    let short = change(&|c| c.cosignatures.truncate(2));
    assert!(matches!(short, ProofError::NotCertified(NotCertified::TooFew { .. })), "{short}");
    let forged = change(&|c| c.cosignatures[0].1.signature[0] ^= 1);
    assert!(matches!(forged, ProofError::NotCertified(NotCertified::BadCosignature(_))), "{forged}");
    let doubled = change(&|c| c.cosignatures.push(c.cosignatures[0]));
    assert!(matches!(doubled, ProofError::NotCertified(NotCertified::Doubled(_))), "{doubled}");
    let altered = change(&|c| *c.leaf.bytes.last_mut().unwrap() ^= 1);
    assert!(matches!(altered, ProofError::NotCertified(NotCertified::NotIncluded)), "{altered}");
    let settlement = change(&|c| c.leaf = leaves[1].clone());
    assert!(matches!(settlement, ProofError::NoAuthorisation), "{settlement}");
    let other = verified.authorisation(&honest, &client, RequestId([9; 16])).unwrap_err();
    assert!(matches!(other, ProofError::NoAuthorisation), "{other}");
    let stranger = ClientId::new("stranger").unwrap();
    assert!(matches!(verified.authorisation(&honest, &stranger, request), Err(ProofError::NoAuthorisation)));
}
