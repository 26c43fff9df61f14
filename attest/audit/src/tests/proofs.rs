use super::busy::{busy, some_request};
use crate::life::explain;
use crate::prove::{Desk, NoProof};
use crate::testing::mirror_of;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_core::ids::RequestId;
use quorate_core::proof::Receipt;
use quorate_core::tlog::{Checkpoint, Hash, Note, leaf_hash, node_hash};

/// RFC 9162 §2.1.3.2, written again from the text, so that the proof is not checked by what made it.
fn root_of(mut hash: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let (mut fnode, mut snode) = (index, size - 1);
    for sibling in path {
        if snode == 0 {
            return None;
        }
        if fnode & 1 == 1 || fnode == snode {
            hash = node_hash(sibling, &hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    (snode == 0).then_some(hash)
}

#[test]
fn a_request_is_proven_to_others_and_explained() {
    let mesh = busy();
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(&mesh, dir.path(), &[]);
    let desk = Desk::open(mirror.clone()).unwrap();
    let (request, genesis) = (some_request(&mesh), mesh.fleet.cluster());

    let proven = desk.prove(request, genesis).unwrap();
    let again = Receipt::from_text(&proven.receipt.to_text()).unwrap();
    let (_, authorisation) = again.verify(genesis).unwrap();
    assert_eq!(authorisation.request().request, request);
    assert_eq!(proven.at.after.len(), 2, "settlement and report");

    // As a C2SP tool reads it: text, vkeys, and nothing of ours.
    let leaf = &proven.receipt.0.leaves[0];
    let text = desk.tlog_proof(leaf);
    let (head, note) = text.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("c2sp.org/tlog-proof@v1"));
    let index: u64 = lines.next().unwrap().strip_prefix("index ").unwrap().parse().unwrap();
    let path: Vec<Hash> =
        lines.map(|l| Hash::try_from(STANDARD.decode(l).unwrap().as_slice()).unwrap()).collect();
    let note = Note::parse(note.as_bytes()).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    assert_eq!(root_of(leaf_hash(&leaf.bytes), index, checkpoint.size.0, &path), Some(checkpoint.root));
    let keys: Vec<_> = desk.verifier_keys(&proven).iter().map(|k| k.to_string().parse().unwrap()).collect();
    assert_eq!(note.verified_by(&keys).unwrap().len(), 4);

    let life = explain(&desk, request, genesis).unwrap();
    assert_eq!((life.client.as_str(), life.nodes.len()), ("app", 4));
    assert_eq!(life.nodes.iter().filter(|n| !n.part.is_empty()).count(), 2);
    assert!(life.settled.is_some() && life.reported.is_some() && life.anomalies.is_empty(), "{life:?}");
    let (size, _, cosigners) = life.first_certificate.clone().unwrap();
    assert!(size.0 > life.leaf.0 && cosigners.len() >= 3);

    assert!(matches!(desk.prove(RequestId([7; 16]), genesis), Err(NoProof::NoSuchRequest(_))));
    assert!(matches!(desk.prove(request, Hash([7; 32])), Err(NoProof::Unproven(_))));
    // A quote in the mirror that is not the node's: the story is not told.
    let blob = mirror.blob_path(&life.nodes[0].event_log);
    std::fs::write(blob, b"another machine").unwrap();
    assert!(explain(&desk, request, genesis).is_err());
}
