//! Every kind of leaf and every other kind of byte: flipped, dropped, swapped, truncated. In the copy alone, and with all nodes
//! conspiring to sign the altered history. Prints the table of what was found.
use super::busy::{busy, conspired, kind};
use crate::finding::{Finding, Place};
use crate::replay::Options;
use crate::store::{Mirror, tile_paths};
use crate::testing::mirror_of;
use crate::verify::{Verdict, verify};
use quorate_core::command::Command;
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::refusal::Refusal;
use quorate_core::testing::Mesh;
use quorate_core::tlog::{LeafIndex, TILE_WIDTH, TileKind, encode_bundle};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(busy)
}

fn findings(mirror: &Mirror) -> Vec<Finding> {
    match verify(mirror, mesh().fleet.cluster(), Options { threads: 1 }, |_, _| ()).unwrap() {
        Verdict::Fails { findings, .. } => findings,
        Verdict::Holds(_) => Vec::new(),
    }
}

/// What was done to what, and what it was found as.
#[derive(Default)]
struct Table(Vec<(String, Vec<Alike>)>);

/// A finding's code, and the changes that lead to it.
type Alike = (String, Vec<String>);

impl Table {
    fn add(&mut self, what: &str, how: &str, found: &[Finding]) {
        let found = found.first().map_or("NOTHING", |f| f.fault.code());
        if self.0.last().is_none_or(|(last, _)| last != what) {
            self.0.push((what.to_owned(), Vec::new()));
        }
        let (_, cells) = self.0.last_mut().unwrap();
        match cells.iter_mut().find(|(code, _)| code == found) {
            // Flips of the same thing that are found alike are told once.
            Some((_, changes)) if changes.iter().any(|c| c == how) => {}
            Some((_, changes)) => changes.push(how.to_owned()),
            None => cells.push((found.to_owned(), vec![how.to_owned()])),
        }
    }

    /// A test run shows it even where it captures output.
    fn print(&self, title: &str) {
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        writeln!(out, "\ntampering: {title}: every change found, and the place named").unwrap();
        for (what, cells) in &self.0 {
            let cells: Vec<String> =
                cells.iter().map(|(code, changes)| format!("{code}: {}", changes.join(", "))).collect();
            writeln!(out, "  {what:<24} {}", cells.join("; ")).unwrap();
        }
    }
}

/// The first leaf of each kind; none too near the end, which no quote covers yet.
fn one_of_each() -> BTreeMap<String, usize> {
    let leaves = &mesh().log.leaves;
    let mut found = BTreeMap::new();
    for (at, leaf) in leaves.iter().enumerate().take(leaves.len() - 8) {
        found.entry(kind(leaf)).or_insert(at);
    }
    found
}

fn older() -> Vec<quorate_core::tlog::TreeSize> {
    mesh().certified.keys().copied().skip(10).step_by(100).collect()
}

#[test]
fn the_log_has_every_kind_of_leaf_and_holds() {
    let kinds: Vec<String> = one_of_each().into_keys().collect();
    for expected in [
        "alarm: admission",
        "alarm: equivocation",
        "alarm: head",
        "alarm: withheld",
        "anomaly",
        "authorisation",
        "authorisation by token",
        "authorisation refused",
        "batch end",
        "credential frozen",
        "evidence",
        "evidence refused",
        "genesis",
        "lapse",
        "pair suspended",
        "policy",
        "pool",
        "pool by token",
        "recovery",
        "report",
        "report by token",
        "revocation of a token",
        "settlement",
        "snapshot point",
        "state digest",
        "unanswered",
        "undecodable entry",
        "unsettled",
    ] {
        assert!(kinds.iter().any(|k| k == expected), "no {expected} in {kinds:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(findings(&mirror_of(mesh(), dir.path(), &older())), []);
    let again = tempfile::tempdir().unwrap();
    assert_eq!(
        findings(&conspired(mesh(), &mesh().log.leaves, again.path())),
        [],
        "the forger's own tools are sound"
    );
}

type Change = (&'static str, fn(&mut Vec<Vec<u8>>, usize));

const CHANGES: [Change; 7] = [
    ("flip time", |leaves, at| leaves[at][2] ^= 1),
    ("flip kind", |leaves, at| leaves[at][9] ^= 1),
    ("flip middle", |leaves, at| {
        let middle = leaves[at].len() / 2;
        leaves[at][middle] ^= 1;
    }),
    ("flip last", |leaves, at| *leaves[at].last_mut().unwrap() ^= 1),
    ("drop", |leaves, at| {
        leaves.remove(at);
    }),
    ("swap", |leaves, at| leaves.swap(at, at + 1)),
    ("truncate", |leaves, at| {
        leaves[at].pop();
    }),
];

#[test]
fn a_leaf_altered_in_the_copy_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(mesh(), dir.path(), &[]);
    let size = mirror.newest().unwrap().size();
    let mut table = Table::default();
    for (kind, at) in one_of_each() {
        let entries = tile_paths(size)
            .find(|p| p.kind() == TileKind::Entries && p.index() == at as u64 / TILE_WIDTH)
            .unwrap();
        let file = mirror.tile_file(&entries);
        let honest = fs::read(&file).unwrap();
        let first = entries.index() as usize * TILE_WIDTH as usize;
        for (how, change) in CHANGES {
            let mut leaves: Vec<Vec<u8>> =
                mesh().log.leaves[first..first + usize::from(entries.width())].to_vec();
            change(&mut leaves, at - first);
            fs::write(&file, encode_bundle(&leaves).unwrap()).unwrap();
            let found = findings(&mirror);
            table.add(&kind, how, &found);
            assert_eq!(found.len(), 1, "{kind} {how}");
            assert_eq!(found[0].place, Place::Leaf(LeafIndex(at as u64)), "{kind} {how}: {}", found[0]);
            fs::write(&file, &honest).unwrap();
        }
    }
    table.print(&format!("{} kinds of leaf, changed in the copy", table.0.len()));
}

#[test]
fn a_history_that_all_nodes_conspire_to_alter_contradicts_itself() {
    let mut table = Table::default();
    for (kind, at) in one_of_each() {
        for (how, change) in CHANGES {
            let mut leaves = mesh().log.leaves.clone();
            change(&mut leaves, at);
            let dir = tempfile::tempdir().unwrap();
            let found = findings(&conspired(mesh(), &leaves, dir.path()));
            table.add(&kind, how, &found);
            let place = match found.first().map(|f| &f.place) {
                Some(Place::Leaf(index)) => index.0,
                Some(Place::Blob(_, Some(index))) => index.0,
                // A batch without an end, which was the whole rest of the log.
                Some(Place::Checkpoint) => at as u64,
                other => panic!("{kind} {how}: {other:?}"),
            };
            // Where the leaf was; or in its batch; or, where a whole command vanished, the first that knew of it: at the latest
            // the next quote, over a tree that had it.
            assert!(place + 3 >= at as u64, "{kind} {how}: found at {place} already");
        }
    }
    table.print(&format!("{} kinds of leaf, changed and signed by every node", table.0.len()));
}

type Pick<'p> = &'p dyn Fn(&Command, &Outcome) -> Option<(Command, Outcome)>;

/// What more than a quorum of hostile nodes might want to have said.
#[test]
fn a_decision_that_the_rules_do_not_give_is_named_with_both() {
    let leaves = &mesh().log.leaves;
    let mut table = Table::default();
    let mut rewrite = |what: &str, pick: Pick<'_>| {
        let mut forged = leaves.clone();
        let at = leaves.iter().position(|leaf| match borsh::from_slice(leaf).unwrap() {
            Leaf::V1 { body: LeafBody::Decided { command, outcome }, .. } => {
                pick(&command, &outcome).is_some()
            }
            _ => false,
        });
        let at = at.unwrap();
        let Leaf::V1 { time, body } = borsh::from_slice(&leaves[at]).unwrap();
        let LeafBody::Decided { command, outcome } = body else { unreachable!() };
        let (command, outcome) = pick(&command, &outcome).unwrap();
        forged[at] = borsh::to_vec(&Leaf::V1 { time, body: LeafBody::Decided { command, outcome } }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let found = findings(&conspired(mesh(), &forged, dir.path()));
        table.add(what, "rewrite", &found);
        assert_eq!(found[0].place, Place::Leaf(LeafIndex(at as u64)), "{what}: {}", found[0]);
        assert_eq!(found[0].fault.code(), "decision", "{what}: {}", found[0]);
        found[0].fault.to_string()
    };
    let told = rewrite("a refused request called authorised", &|c, o| match (c, o) {
        (Command::Client(_), Outcome::Refused(Refusal::CeilingTooHigh)) => {
            Some((c.clone(), Outcome::Authorised))
        }
        _ => None,
    });
    assert!(told.contains("ceiling_too_high"), "{told}");
    let told = rewrite("a client's signature changed", &|c, o| match (c, o) {
        (Command::Client(signed), Outcome::Authorised) => {
            let mut signed = signed.clone();
            signed.signature.0[10] ^= 1;
            Some((Command::Client(signed), Outcome::Authorised))
        }
        _ => None,
    });
    assert!(told.contains("bad_signature"), "{told}");
    let told = rewrite("a settlement's bytes changed", &|c, o| match (c, o) {
        (Command::Node(signed), Outcome::Settled(_)) => {
            let mut signed = signed.clone();
            if let quorate_core::command::NodeCommand::Settle(list) = &mut signed.body {
                list[0].bytes_down += 256;
            }
            Some((Command::Node(signed), o.clone()))
        }
        _ => None,
    });
    assert!(told.contains("bad_signature"), "{told}");
    let told = rewrite("a quote's PCR changed, evidence called good", &|c, o| match (c, o) {
        (Command::Evidence(e), Outcome::Appraised { .. }) => {
            let mut e = e.clone();
            e.evidence.pcrs[0].1[0] ^= 1;
            // The node itself lies: its boot key signs what its TPM did not quote.
            let key = mesh().fleet.nodes[&e.node].cosign_key();
            Some((Command::Evidence(Box::new(e.sign(mesh().fleet.cluster(), key))), o.clone()))
        }
        _ => None,
    });
    assert!(told.contains("pcr"), "{told}");
    let told = rewrite("a policy with one admin's signature", &|c, o| match (c, o) {
        (Command::Policy(p), Outcome::PolicyChanged { .. }) => {
            let mut p = p.clone();
            p.signatures.pop();
            Some((Command::Policy(p), o.clone()))
        }
        _ => None,
    });
    assert!(told.contains("too_few_signers"), "{told}");
    table.print("decisions rewritten and signed by every node");
}

/// Every part of evidence: the nonce and its certificate, the quote, its signature, PCRs, digests of the logs, the boot keys, the
/// node's own signature, and the decision. All nodes sign the flipped history.
#[test]
fn a_bit_of_evidence_flipped_anywhere_is_named() {
    let leaves = &mesh().log.leaves;
    let at = one_of_each()["evidence"];
    let mut table = Table::default();
    let length = leaves[at].len();
    for byte in (10..length).step_by(length / 40) {
        let mut forged = leaves.clone();
        forged[at][byte] ^= 1;
        let dir = tempfile::tempdir().unwrap();
        let found = findings(&conspired(mesh(), &forged, dir.path()));
        table.add("evidence", "flip at 41 places", &found);
        let place = found.first().map(|f| f.place.clone());
        let named = match &place {
            Some(Place::Leaf(index) | Place::Blob(_, Some(index))) => index.0 == at as u64,
            _ => false,
        };
        assert!(named, "flip {byte}: {place:?}");
    }
    table.print("a bit of evidence flipped, and signed by every node");
}

/// Files other than leaves.
#[test]
fn any_other_file_altered_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(mesh(), dir.path(), &older());
    let size = mirror.newest().unwrap().size();
    let tiles: Vec<_> = tile_paths(size).collect();
    let of = |kind| tiles.iter().filter(move |p| p.kind() == kind).collect::<Vec<_>>();
    let (level_0, level_1) = (of(TileKind::Hashes(0)), of(TileKind::Hashes(1)));
    let policy = mirror.blob_path(&mesh().state().policy().digest);
    let mut logs = fs::read_dir(dir.path().join("blob")).unwrap().map(|e| e.unwrap().path());
    let event_log = logs.find(|p| !fs::read(p).unwrap().starts_with(b"format")).unwrap();
    let first_older = mirror.older_path(older()[0]);
    let bundles = of(TileKind::Entries);
    let mut table = Table::default();
    let files: [(&str, PathBuf, PathBuf); 10] = [
        ("full bundle", mirror.tile_file(bundles[0]), mirror.tile_file(bundles[1])),
        ("partial bundle", mirror.tile_file(bundles[bundles.len() - 1]), mirror.tile_file(bundles[0])),
        ("full tile of level 0", mirror.tile_file(level_0[0]), mirror.tile_file(level_0[1])),
        ("partial tile of level 0", mirror.tile_file(level_0[1]), mirror.tile_file(level_0[0])),
        ("partial tile of level 1", mirror.tile_file(level_1[0]), mirror.tile_file(level_0[1])),
        ("event log (blob)", event_log.clone(), policy.clone()),
        ("policy document (blob)", policy, event_log),
        ("newest checkpoint", mirror.checkpoint_path(), first_older.clone()),
        ("older checkpoint", first_older, mirror.older_path(older()[1])),
        ("genesis", mirror.genesis_path(), mirror.checkpoint_path()),
    ];
    for (what, file, other) in files {
        let (honest, others) = (fs::read(&file).unwrap(), fs::read(&other).unwrap());
        let mut check = |how: &str| {
            let found = findings(&mirror);
            table.add(what, how, &found);
            assert!(!found.is_empty(), "{what} {how}");
            let place = found[0].place.to_string();
            let named = match what {
                // A flipped length makes it unreadable; any other bit is of some leaf.
                _ if what.contains("bundle") => place.contains("tile/entries") || place.starts_with("leaf "),
                _ if what.contains("tile") => place.contains("tile/"),
                _ if what.contains("blob") => place.contains("blob"),
                "newest checkpoint" => place == "checkpoint",
                "older checkpoint" => place.starts_with("checkpoint of size"),
                _ => place == "genesis",
            };
            assert!(named, "{what} {how}: {place}");
        };
        for at in [0, honest.len() / 3, honest.len() / 2, honest.len() - 2] {
            let mut flipped = honest.clone();
            flipped[at] ^= 1;
            fs::write(&file, flipped).unwrap();
            check("flip");
        }
        fs::remove_file(&file).unwrap();
        if what != "older checkpoint" {
            check("drop");
        }
        fs::write(&file, &honest[..honest.len() - 1]).unwrap();
        check("truncate");
        fs::write(&file, []).unwrap();
        check("empty");
        fs::write(&file, &others).unwrap();
        fs::write(&other, &honest).unwrap();
        // Either of the two may be the first that is looked at.
        let found = findings(&mirror);
        table.add(what, "swap", &found);
        assert!(!found.is_empty(), "{what} swap");
        fs::write(&file, &honest).unwrap();
        fs::write(&other, &others).unwrap();
        assert_eq!(findings(&mirror), [], "{what}: restored");
    }
    table.print("files");
}

/// Every line of a checkpoint, and its cosignatures one by one.
#[test]
fn a_checkpoint_altered_in_any_part_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(mesh(), dir.path(), &[]);
    let file = mirror.checkpoint_path();
    let honest = fs::read(&file).unwrap();
    let text = String::from_utf8(honest.clone()).unwrap();
    let mut table = Table::default();
    let mut check = |how: &str, bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let found = findings(&mirror);
        let part = if how.contains("cosignature") { "cosignature" } else { "checkpoint" };
        table.add(part, how, &found);
        assert!(!found.is_empty(), "{how}");
        assert_eq!(found[0].place, Place::Checkpoint, "{how}: {}", found[0]);
    };
    for at in (0..honest.len()).step_by(honest.len() / 48) {
        let mut flipped = honest.clone();
        flipped[at] ^= 1;
        let cosignature = at > text.find("\n\n").unwrap() + 1;
        check(if cosignature { "flip (cosignature)" } else { "flip" }, &flipped);
    }
    let lines: Vec<&str> = text.lines().collect();
    let (body, signatures) = (lines[..4].join("\n"), &lines[4..]);
    assert_eq!(signatures.len(), 4);
    let with = |lines: &[&str]| format!("{body}\n{}\n", lines.join("\n"));
    // Three of four are still a quorum: nothing that is claimed is lost with the fourth, and two are none.
    fs::write(&file, with(&signatures[..3])).unwrap();
    assert_eq!(findings(&mirror), []);
    check("drop 2 cosignatures", with(&signatures[..2]).as_bytes());
    let mut swapped = signatures.to_vec();
    swapped.swap(0, 1);
    check("swap cosignatures", with(&swapped).as_bytes());
    let mut doubled = signatures.to_vec();
    doubled.insert(1, signatures[0]);
    check("double a cosignature", with(&doubled).as_bytes());
    let mut cut = signatures.to_vec();
    cut[1] = &cut[1][..cut[1].len() - 4];
    check("truncate a cosignature", with(&cut).as_bytes());
    check("truncate", &honest[..honest.len() - 1]);
    table.print("checkpoint and cosignatures");
}

#[test]
fn another_genesis_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = mirror_of(mesh(), dir.path(), &[]);
    let verdict =
        verify(&mirror, quorate_core::crypto::Hash([7; 32]), Options::default(), |_, _| ()).unwrap();
    let Verdict::Fails { findings, upto } = verdict else { panic!("{verdict:?}") };
    assert_eq!(
        (findings[0].place.clone(), findings[0].fault.code(), upto.0),
        (Place::Genesis, "other_genesis", 0)
    );
}

#[test]
fn a_folder_without_a_mirror_is_no_mirror() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Mirror::open(dir.path()), Err(crate::finding::Error::NoMirror(_))));
}
