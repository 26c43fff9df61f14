//! What clients and peers send as commands, what stands in the log and in proofs of it.
use crate::input::{Input, text};
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_audit::store::StoredCheckpoint;
use quorate_audit::witness::request::AddCheckpoint;
use quorate_core::command::{
    Batch, Command, Contribution, EvidenceCommand, RecoverCommand, SignedProbeGrant, SignedUsageGrant,
};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::NodeId;
use quorate_core::leaf::{Leaf, Outcome};
use quorate_core::policy::{ADMINS_MAX, MEMBERS_MAX, Policy, SignedPolicy};
use quorate_core::proof::{LeafCertificate, Proof, Receipt};
use quorate_core::sshsig::{AdminKey, SshSignature};
use quorate_core::state::State;
use quorate_core::testing::{CLIENT, Mesh};
use quorate_core::tlog::{
    Checkpoint, ConsistencyProof, Cosignature, InclusionProof, Note, TilePath, VerifierKey, decode_bundle,
    decode_tile, encode_bundle, encode_tile,
};
use quorate_core::token::SignedToken;
use std::path::Path;

/// A mesh of four whose client has asked once. Its keys follow from their names: it is the same in each process.
pub struct Known {
    /// The mesh.
    pub mesh: Mesh,
    /// The receipt of that request.
    pub receipt: Receipt,
    /// A pool that is open.
    pool: quorate_core::command::OpenPool,
}

thread_local! {
    static KNOWN: Known = known();
}

/// Looks at it.
pub fn with_known<T>(look: impl FnOnce(&Known) -> T) -> T {
    KNOWN.with(look)
}

fn known() -> Known {
    let mut mesh = Mesh::four();
    mesh.attest_all();
    let pool = mesh.open_pool();
    let request = mesh.authorise(&pool);
    mesh.settle(&pool, request);
    let receipt = mesh.receipt(request);
    Known { mesh, receipt, pool }
}

/// What decodes encodes to the same bytes: there is one form of each thing that is signed, hashed or stored.
pub(crate) fn canonical<T: BorshDeserialize + BorshSerialize>(data: &[u8]) -> Option<T> {
    let value = borsh::from_slice::<T>(data).ok()?;
    assert!(encode(&value) == data, "{}: a second form", std::any::type_name::<T>());
    Some(value)
}

/// Input: a choice (1), then a batch, or a command for one of this mesh's clients and nodes to sign, or another thing that is
/// kept or sent in this encoding.
pub fn apply(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    let entry = match choice % 8 {
        0 => data.to_vec(),
        1..=3 => {
            let Some(command) = canonical::<Command>(data) else { return false };
            let signed = if choice % 8 == 1 { command } else { signed(command) };
            with_known(|k| {
                encode(&Batch { time: k.mesh.time.plus_ms(1), proposer: NodeId(1), commands: vec![signed] })
            })
        }
        4 => return canonical::<Leaf>(data).is_some() || canonical::<Outcome>(data).is_some(),
        5 => {
            return canonical::<EvidenceCommand>(data).is_some()
                || canonical::<RecoverCommand>(data).is_some()
                || canonical::<Contribution>(data).is_some();
        }
        6 => {
            return canonical::<SignedToken>(data).is_some()
                || canonical::<SignedProbeGrant>(data).is_some()
                || canonical::<SignedUsageGrant>(data).is_some();
        }
        _ => {
            let bounds = |policy: &Policy| {
                assert!(policy.members.len() <= MEMBERS_MAX && policy.admins.len() <= ADMINS_MAX);
            };
            let state = with_known(|k| State::from_bytes(data, k.mesh.fleet.cluster()));
            return state.map(|state| bounds(state.policy())).is_ok();
        }
    };
    let decoded = canonical::<Batch>(&entry).is_some();
    with_known(|k| {
        let mut one = k.mesh.log.clone();
        let mut other = k.mesh.log.state.clone();
        let before = one.state.time();
        // asserts that each leaf fits a tile, and that what was said of the tree is so
        let applied = one.apply_bytes(&entry, &k.mesh.fleet.blobs);
        let again = other.apply(&entry, &k.mesh.fleet.blobs);
        assert!(applied.leaf_bytes == again.leaf_bytes && applied.checkpoint == again.checkpoint);
        assert_eq!(one.state.digest(), other.digest(), "one entry, one state");
        assert!(one.state.time() >= before, "time does not go back");
        for leaf in &applied.leaf_bytes {
            assert!(canonical::<Leaf>(leaf).is_some(), "a leaf that nobody can read");
        }
        let stored = one.state.to_bytes();
        let Ok(read) = State::from_bytes(&stored, k.mesh.fleet.cluster()) else {
            panic!("cannot be read again")
        };
        assert_eq!(read.digest(), one.state.digest());
    });
    decoded
}

/// The same command by someone who may: fuzzing gets past the signature.
fn signed(command: Command) -> Command {
    with_known(|k| match command {
        Command::Client(c) => {
            let name = if k.mesh.state().policy().clients.contains_key(&c.client) {
                c.client.as_str()
            } else {
                CLIENT
            };
            k.mesh.fleet.client(name, c.body)
        }
        Command::Node(c) => {
            let node = if k.mesh.fleet.nodes.contains_key(&c.node) { c.node } else { NodeId(1) };
            k.mesh.fleet.node_command(node, c.body)
        }
        other => other,
    })
}

/// Input: a choice (1), then a note, a checkpoint, a request to a witness, a tile, a bundle, a path, a key or a cosignature.
pub fn notes(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    match choice % 8 {
        0 => {
            let stored = StoredCheckpoint::parse(data);
            let Ok(note) = Note::parse(data) else {
                assert!(stored.is_err());
                return false;
            };
            let again = note.to_string();
            assert_eq!(Note::parse(again.as_bytes()).as_ref(), Ok(&note));
            if let Ok(stored) = stored {
                assert!(again.as_bytes() == data && stored.checkpoint.body() == note.text());
            }
            true
        }
        1 => text(data).and_then(|t| Checkpoint::parse(t).ok().map(|c| assert_eq!(c.body(), t))).is_some(),
        2 => {
            let Ok(request) = AddCheckpoint::parse(data) else { return false };
            let body = AddCheckpoint::body(request.old, &request.proof, &request.note);
            let Ok(again) = AddCheckpoint::parse(body.as_bytes()) else { panic!("written and refused") };
            assert!(again.note == request.note && again.proof == request.proof && again.old == request.old);
            true
        }
        3 => {
            let mut input = Input(data);
            let width = input.u16();
            decode_tile(input.0, width).map(|hashes| assert!(encode_tile(&hashes) == input.0)).is_ok()
        }
        4 => {
            let mut input = Input(data);
            let width = input.u16();
            let bytes = input.0;
            let leaves = decode_bundle(bytes, width);
            leaves.map(|leaves| assert!(encode_bundle(&leaves).is_ok_and(|again| again == bytes))).is_ok()
        }
        5 => {
            let path = text(data).and_then(|t| Some((t, t.parse::<TilePath>().ok()?)));
            path.map(|(t, path)| assert_eq!(path.to_string(), t)).is_some()
        }
        6 => {
            let key = text(data).and_then(|t| Some((t, t.parse::<VerifierKey>().ok()?)));
            key.map(|(t, key)| assert_eq!(key.to_string(), t)).is_some()
        }
        _ => Cosignature::from_bytes(data).map(|c| assert_eq!(c.to_bytes(), data)).is_ok(),
    }
}

/// Input: a choice (1), then a proof, a receipt's text, a certificate, or a proof of the tree. Of the mesh that is known
/// nothing can be proved but what its history says.
pub fn proofs(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    let check = |proof: &Proof| {
        with_known(|k| {
            let Ok(verified) = proof.verify(k.mesh.fleet.cluster()) else { return };
            let known = k.mesh.certified.get(&verified.certified.reference().size);
            assert_eq!(known.map(|c| c.reference()), Some(verified.certified.reference()), "another history");
        });
    };
    match choice % 4 {
        0 => {
            let Ok(proof) = Proof::from_bytes(data) else { return false };
            assert!(encode(&proof) == data);
            check(&proof);
            true
        }
        1 => {
            let Some(Ok(receipt)) = text(data).map(Receipt::from_text) else { return false };
            assert!(receipt.to_text().as_bytes() == data, "a second form");
            check(&receipt.0);
            with_known(|k| {
                if let Ok((_, of)) = receipt.verify(k.mesh.fleet.cluster()) {
                    assert_eq!(of.client().as_str(), CLIENT);
                }
            });
            true
        }
        2 => {
            let Some(certificate) = canonical::<LeafCertificate>(data) else { return false };
            with_known(|k| {
                if let Ok(verified) = k.receipt.0.verify(k.mesh.fleet.cluster())
                    && let Ok(certified) = verified.certify(&certificate)
                {
                    let known = k.mesh.certified.get(&certified.reference().size);
                    assert_eq!(known.map(|c| c.reference()), Some(certified.reference()), "another history");
                }
            });
            true
        }
        _ => canonical::<InclusionProof>(data).is_some() || canonical::<ConsistencyProof>(data).is_some(),
    }
}

/// Input: a choice (1), then a policy document, which two admins of the mesh then sign as its genesis and as its next version;
/// a signature or a key of SSH; a trust file.
pub fn policies(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = input.byte();
    let data = input.0;
    match choice % 4 {
        0 => {
            let parsed = Policy::parse(data);
            let Ok(policy) = &parsed else { return false };
            assert!(policy.members.len() <= MEMBERS_MAX && policy.admins.len() <= ADMINS_MAX);
            assert!(policy.quorum() <= policy.members.len() && 2 * policy.quorum() > policy.members.len());
            with_known(|k| {
                let signatures =
                    k.mesh.fleet.admins.iter().map(|a| quorate_core::testing::ssh_sign(a, data)).collect();
                let signed = SignedPolicy { document: data.to_vec(), signatures };
                if let Ok((state, leaf)) = State::genesis(signed) {
                    assert!(canonical::<Leaf>(&leaf).is_some());
                    let read = State::from_bytes(&state.to_bytes(), state.cluster());
                    assert!(read.is_ok_and(|read| read.digest() == state.digest()));
                }
            });
            true
        }
        1 => {
            let mut input = Input(data);
            let message = input.piece();
            let Some(Ok(signature)) = text(input.0).map(SshSignature::from_pem) else { return false };
            drop(signature.verify(message));
            true
        }
        2 => {
            text(data).is_some_and(|t| AdminKey::from_openssh(t).is_ok()) || {
                SshSignature(data.to_vec()).verify(b"").is_ok()
            }
        }
        _ => {
            let Some(t) = text(data) else { return false };
            quorate_client::TrustFile::parse(t, Path::new("/x/trust.toml")).is_ok()
        }
    }
}

/// Real structures, as inputs of the targets here.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut all: Vec<(&'static str, String, Vec<u8>)> = Vec::new();
    with_known(|k| {
        let mut add = |target, name: &str, choice: u8, bytes: &[u8]| {
            all.push((target, name.to_owned(), [&[choice], bytes].concat()));
        };
        let mut commands: Vec<(&str, Command)> = Vec::new();
        for (at, leaf) in k.mesh.log.leaves.iter().enumerate() {
            let Ok(Leaf::V1 { body, .. }) = borsh::from_slice(leaf) else { continue };
            let name = match &body {
                quorate_core::leaf::LeafBody::Decided { command, .. } => {
                    let name = match command {
                        Command::Client(_) => "client",
                        Command::Node(_) => "node",
                        Command::Evidence(_) => "evidence",
                        Command::Recover(_) => "recover",
                        Command::Policy(_) => "policy",
                    };
                    commands.push((name, command.clone()));
                    name
                }
                _ => "other",
            };
            if at < 3 || commands.iter().filter(|(n, _)| *n == name).count() == 1 {
                add("apply", &format!("leaf-{at}"), 4, leaf);
            }
        }
        commands.dedup_by(|a, b| a.0 == b.0 && a.0 == "evidence");
        for (at, (name, command)) in commands.iter().enumerate() {
            add(
                "apply",
                &format!("{name}-{at}"),
                if matches!(*name, "client" | "node") { 2 } else { 1 },
                &encode(command),
            );
        }
        let time = k.mesh.time.plus_ms(5);
        let all_of_them = commands.iter().map(|(_, c)| c.clone()).collect();
        add("apply", "batch", 0, &encode(&Batch { time, proposer: NodeId(2), commands: all_of_them }));
        add("apply", "state", 7, &k.mesh.state().to_bytes());
        let grant = k.mesh.fleet.probe_grant(k.mesh.state(), CLIENT, vec![(k.pool.relay, k.pool.keyer)]);
        add("apply", "grant", 6, &encode(&grant));

        let size = k.mesh.state().checkpoint().size;
        if let Some(certified) = k.mesh.certified.get(&size) {
            let body = certified.checkpoint().body();
            let origin = k.mesh.state().origin().as_str();
            let lines = certified.cosignatures().iter().filter_map(|(node, cosignature)| {
                let name = quorate_core::tlog::KeyName::new(format!("{origin}/{}", node.0)).ok()?;
                Some(cosignature.to_note_signature(&name, &k.mesh.fleet.nodes.get(node)?.boot().cosign))
            });
            if let Ok(note) = Note::new(body.clone(), lines.collect()) {
                add("notes", "note", 0, note.to_string().as_bytes());
                let old = quorate_core::tlog::TreeSize(size.0 - 2);
                if let Ok(proof) = quorate_core::tlog::prove_consistency(&k.mesh.log.tree, old, size) {
                    add("notes", "add-checkpoint", 2, AddCheckpoint::body(old, &proof, &note).as_bytes());
                    add("proofs", "consistency", 3, &encode(&proof));
                }
            }
            add("notes", "checkpoint", 1, body.as_bytes());
            if let Some((node, cosignature)) = certified.cosignatures().first() {
                add("notes", "cosignature", 7, &cosignature.to_bytes());
                if let (Ok(name), Some(node)) =
                    (quorate_core::tlog::KeyName::new("example.com/log"), k.mesh.fleet.nodes.get(node))
                {
                    let kind = quorate_core::tlog::KeyKind::CosignatureV1;
                    let key = VerifierKey::new(name, kind, node.boot().cosign);
                    add("notes", "key", 6, key.to_string().as_bytes());
                }
            }
            let certificate = LeafCertificate {
                leaf: k.mesh.proven_leaf(quorate_core::tlog::LeafIndex(3), size),
                checkpoint: certified.reference(),
                cosignatures: certified.cosignatures().to_vec(),
            };
            add("proofs", "certificate", 2, &encode(&certificate));
        }
        let hashes: Vec<Hash> = (0..5u8).map(|n| Hash([n; 32])).collect();
        add("notes", "tile", 3, &[&[0, 5], &encode_tile(&hashes)[..]].concat());
        let few: Vec<&Vec<u8>> = k.mesh.log.leaves.iter().take(3).collect();
        if let Ok(bundle) = encode_bundle(&few) {
            add("notes", "bundle", 4, &[&[0, 3], &bundle[..]].concat());
        }
        for (at, path) in ["tile/0/x001/234.p/7", "tile/entries/000", "tile/63/255"].iter().enumerate() {
            add("notes", &format!("path-{at}"), 5, path.as_bytes());
        }
        add("proofs", "proof", 0, &encode(&k.receipt.0));
        add("proofs", "receipt", 1, k.receipt.to_text().as_bytes());
        if let Some(proven) = k.receipt.0.leaves.first() {
            add("proofs", "inclusion", 3, &encode(&proven.inclusion));
        }

        let signed = k.mesh.state().signed_policy();
        add("policies", "plain", 0, &signed.document);
        let keyed = Mesh::new(4, 1, quorate_core::testing::keyed);
        add("policies", "keyed", 0, &keyed.state().signed_policy().document);
        let five = Mesh::new(5, 1, |d| d.cluster = "five".into());
        add("policies", "five", 0, &five.state().signed_policy().document);
        add(
            "policies",
            "ssh-key",
            2,
            quorate_core::testing::ssh_line(&quorate_core::testing::key("admin 0")).as_bytes(),
        );
        add(
            "policies",
            "ssh-blob",
            2,
            &quorate_core::testing::ssh_sign(&quorate_core::testing::key("admin 0"), b"").0,
        );
        let trust = format!(
            "genesis = \"{}\"\nnodes = [\"127.0.0.1:7001\"]\nclient = \"app\"\nkey = \"client.key\"\nfreshness_ms = 5000\n",
            k.mesh.fleet.cluster()
        );
        add("policies", "trust", 3, trust.as_bytes());
        let pem = "-----BEGIN SSH SIGNATURE-----\n";
        let blob = quorate_core::testing::ssh_sign(&quorate_core::testing::key("admin 0"), b"msg").0;
        add(
            "policies",
            "ssh-pem",
            1,
            &[&[0, 3], &b"msg"[..], pem.as_bytes(), armour(&blob).as_bytes()].concat(),
        );
    });
    all
}

/// The rest of an armoured signature.
fn armour(blob: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in blob.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let six = (bits >> (18 - 6 * at) & 63) as usize;
            text.push(if at <= group.len() { char::from(*ALPHABET.get(six).unwrap_or(&b'A')) } else { '=' });
        }
    }
    let lines: Vec<&str> = (0..text.len()).step_by(70).map(|at| &text[at..text.len().min(at + 70)]).collect();
    format!("{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
}
