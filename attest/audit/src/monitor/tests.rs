//! The monitor over logs that the real state machine made, served over HTTP by nodes that lie one way at a time.
//!
//! **These bite.** Each of these was taken out for a moment, alone, and a test failed:
//!
//! | what was taken out | what noticed it |
//! |---|---|
//! | the comparison of roots; that both checkpoints are of one log | `a_split_view_is_caught_…`, also from cron and by the witness |
//! | who signed the other history | `a_made_up_history_convicts_…` |
//! | that leaves are what the rules give; the certificate; that the leaves are those of the tree; that a blob is the one named, and accuses nobody; that what is not certified is not kept; that the log is this one | `a_node_that_lies_…` |
//! | that an alarm is known; that half a line is cut; that the mirror is not older than the snapshot | `a_restart_…` |
//! | patience | `conditions_…` |
//! | that an alarm was printed; that the webhook took it | `alarms_are_told_once_…` |
//! | that a destination is known; time that nobody explains; more time than there was; how much slower is slow; each half of odd statuses; that the dark is told once | `each_kind_of_leaf_…` |
//! | that partial tiles go | `an_honest_log_…` |
//!
//! Two made no difference: a condition that was raised is not raised again by its id alone, and a log that ends within a batch
//! is refused for its root too.
use super::alarm::{Alarm, Kind, Severity, Turn};
use super::compare::{NotASplit, SplitView, signed_by};
use super::poll::{Monitor, OpenError, Settings};
use crate::cli::Exit;
use crate::finding::{Error, Fault};
use crate::replay::Options;
use crate::store::Mirror;
use crate::testing::{LogWriter, mirror_of, note_of};
use crate::verify::{Verdict, verify};
use crate::witness::config::{Config, LogDocument, WitnessDocument};
use crate::witness::decide::Witness;
use crate::witness::disk::Disk;
use crate::witness::feed::{WitnessPeer, kept};
use crate::witness::key::SigningKey;
use crate::witness::state::Store;
use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, Uri};
use axum::routing::post;
use quorate_core::command::{
    Alarm as Raised, CheckpointRef, ClientCommand, Command, NodeCommand, Report, Settlement,
};
use quorate_core::crypto::{Hash, PublicKey};
use quorate_core::ids::{NodeId, RequestId, Timestamp};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::refusal::Refusal;
use quorate_core::state::checkpoint_of;
use quorate_core::testing::{CLIENT, Fleet, Mesh, client_document, keyed, route_document};
use quorate_core::tlog::{KeyKind, KeyName, Note, Origin, TreeSize, VerifierKey};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A node's HTTP service: whatever lies in a folder.
struct Served {
    url: String,
    dir: Arc<Mutex<PathBuf>>,
    task: JoinHandle<()>,
}

impl Served {
    async fn at(dir: &Path) -> Self {
        let dir = Arc::new(Mutex::new(dir.to_owned()));
        let router = Router::new().fallback(file).with_state(Arc::clone(&dir));
        let (url, task) = listen(router).await;
        Self { url, dir, task }
    }
    fn serve(&self, dir: &Path) {
        *self.dir.lock().unwrap() = dir.to_owned();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn file(Shared(dir): Shared<Arc<Mutex<PathBuf>>>, uri: Uri) -> Result<Vec<u8>, StatusCode> {
    let path = dir.lock().unwrap().join(uri.path().trim_start_matches('/'));
    std::fs::read(path).map_err(|_| StatusCode::NOT_FOUND)
}

async fn listen(router: Router) -> (String, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

/// A folder for everything of one test.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// Writes a mesh's log, and gives where.
    fn publish(&self, name: &str, mesh: &Mesh) -> PathBuf {
        mirror_of(mesh, &self.path(name), &[]);
        self.path(name)
    }
    async fn open(&self, mesh: &Mesh, nodes: &[&Served]) -> Monitor {
        self.open_with(mesh, nodes, None, |_| ()).await.unwrap()
    }
    async fn open_with(
        &self,
        mesh: &Mesh,
        nodes: &[&Served],
        witness: Option<WitnessPeer>,
        edit: impl FnOnce(&mut Settings),
    ) -> Result<Monitor, OpenError> {
        let nodes = nodes.iter().map(|node| node.url.clone()).collect();
        let genesis = mesh.fleet.cluster();
        let mut settings =
            Settings { genesis, nodes, patience_ms: 0, behind_ms: 0, stale_ms: u64::MAX, witness_ms: 0 };
        edit(&mut settings);
        Monitor::open(&self.path("mirror"), settings, witness).await
    }
    fn mirror(&self) -> Mirror {
        Mirror::open(&self.path("mirror")).unwrap()
    }
}

const NOW: Timestamp = Timestamp(2_000_000_000_000);

/// A millisecond after the last look of any test.
async fn poll(monitor: &mut Monitor) -> Vec<Alarm> {
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    monitor.poll(NOW.plus_ms(LOOKS.fetch_add(1, Ordering::Relaxed))).await.unwrap()
}

fn kinds(alarms: &[Alarm]) -> Vec<Kind> {
    alarms.iter().map(|a| a.kind).collect()
}

fn requests(mesh: &mut Mesh, count: usize) {
    let pool = mesh.open_pool();
    for _ in 0..count {
        let request = mesh.authorise(&pool);
        mesh.settle(&pool, request);
    }
}

/// The keys of the mesh's nodes, as notes know them.
fn node_keys(mesh: &Mesh) -> Vec<VerifierKey> {
    let key = |(node, n): (&NodeId, &quorate_core::testing::TestNode)| {
        let name = KeyName::new(format!("{}/node-{}", mesh.state().origin(), node.0)).unwrap();
        VerifierKey::new(name, KeyKind::CosignatureV1, n.boot().cosign)
    };
    mesh.fleet.nodes.iter().map(key).collect()
}

#[tokio::test]
async fn an_honest_log_is_followed_and_its_mirror_verifies() {
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    let (one, two) =
        (Served::at(&bench.publish("1", &mesh)).await, Served::at(&bench.publish("2", &mesh)).await);
    let mut monitor = bench.open(&mesh, &[&one, &two]).await;
    // The first start of the mesh is a recovery, and nothing else is to be seen.
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
    for round in 0..4 {
        requests(&mut mesh, 40 * round);
        mesh.attest_all();
        bench.publish("1", &mesh);
        assert_eq!(poll(&mut monitor).await, [], "round {round}");
        bench.publish("2", &mesh);
        assert_eq!(poll(&mut monitor).await, []);
        assert_eq!(monitor.size(), mesh.log.tree.size());
    }
    let genesis = mesh.fleet.cluster();
    let verdict = verify(&bench.mirror(), genesis, Options { threads: 1 }, |_, _| ()).unwrap();
    let Verdict::Holds(verified) = verdict else { panic!("{verdict:?}") };
    assert_eq!((verified.size, verified.summary.authorised), (mesh.log.tree.size(), 240));
    assert_eq!(bench.mirror().newest().unwrap().note.to_string(), {
        std::fs::read_to_string(bench.path("1").join("checkpoint")).unwrap()
    });
    // No partial tile of an earlier size stays behind.
    let left = std::fs::read_dir(bench.path("mirror/tile/entries")).unwrap();
    let partial = left.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".p"));
    assert_eq!(partial.count(), 1);
    // Somebody else's genesis is refused.
    drop(monitor);
    let other = bench.open_with(&mesh, &[&one], None, |s| s.genesis = Hash([1; 32])).await;
    let Err(OpenError::Audit(Error::Found(finding))) = other else { panic!("it must not open") };
    assert!(matches!(finding.fault, Fault::OtherGenesis { .. }));
}

/// A first sync does not wait for each bundle in turn: with a node that takes its time, several are on their way at once.
#[tokio::test]
async fn a_first_sync_fetches_ahead() {
    type Slow = Arc<(PathBuf, AtomicU64, AtomicU64)>;
    let slow = async |Shared(slow): Shared<Slow>, uri: Uri| {
        let (dir, now, most) = &*slow;
        if uri.path().contains("/entries/") {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            now.fetch_sub(1, Ordering::Relaxed);
        }
        std::fs::read(dir.join(uri.path().trim_start_matches('/'))).map_err(|_| StatusCode::NOT_FOUND)
    };
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    for _ in 0..1500 {
        mesh.apply(vec![]);
    }
    let served: Slow = Arc::new((bench.publish("1", &mesh), AtomicU64::new(0), AtomicU64::new(0)));
    let (url, _task) = listen(Router::new().fallback(slow).with_state(Arc::clone(&served))).await;
    let mut monitor = bench.open_with(&mesh, &[], None, |s| s.nodes = vec![url]).await.unwrap();
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
    assert_eq!(monitor.size(), mesh.log.tree.size());
    assert!(served.2.load(Ordering::Relaxed) > 2, "{:?}", served.2);
    let verdict = verify(&bench.mirror(), mesh.fleet.cluster(), Options { threads: 1 }, |_, _| ()).unwrap();
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict:?}");
}

/// Two histories from the same beginning, each certified: with every node's key, somebody made both.
fn forked(ours: usize, theirs: usize) -> (Mesh, Mesh) {
    let mut both = [Mesh::four(), Mesh::four()];
    both.iter_mut().for_each(|mesh| requests(mesh, 3));
    let [mut one, mut other] = both;
    assert_eq!(one.log.leaves, other.log.leaves);
    requests(&mut one, ours);
    // The other history is of another client's doing: an attestation comes first.
    other.attest_all();
    requests(&mut other, theirs);
    (one, other)
}

#[tokio::test]
async fn a_split_view_is_caught_with_both_signed_checkpoints_as_evidence() {
    // The other history is longer, shorter, and (one request is three leaves fewer here, an attestation five) of one size.
    for (ours, theirs) in [(2, 150), (150, 2), (150, 149)] {
        let bench = Bench::new();
        let (one, other) = forked(ours, theirs);
        let (a, b) =
            (Served::at(&bench.publish("a", &one)).await, Served::at(&bench.publish("a", &one)).await);
        let (c, d) =
            (Served::at(&bench.publish("c", &other)).await, Served::at(&bench.publish("c", &other)).await);
        // The monitor learns ours first, from nodes that later are joined by those that tell the other.
        let mut monitor = bench.open(&one, &[&a, &b]).await;
        assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
        drop(monitor);
        let mut monitor = bench.open(&one, &[&a, &b, &c, &d]).await;
        let alarms = poll(&mut monitor).await;
        assert_eq!(kinds(&alarms), [Kind::SplitView, Kind::SplitView], "{ours} {theirs}");
        assert_eq!(monitor.worst(), Some(Severity::Proven));
        for (alarm, node) in alarms.iter().zip([&c, &d]) {
            assert_eq!(alarm.subject.as_deref(), Some(node.url.as_str()));
            for name in node_keys(&one).iter().map(|key| key.name().as_str()) {
                assert!(alarm.what.contains(name), "{name} signed both: {}", alarm.what);
            }
            // What was kept convinces without the monitor: two notes signed by a quorum each, and a proof that no tree has both.
            let split = SplitView::read(alarm.evidence.as_ref().unwrap()).unwrap();
            assert_eq!(split.check(), Ok(()));
            let keys = node_keys(&one);
            let notes = [&split.older.note, &split.newer.note];
            for note in notes {
                assert_eq!(signed_by(note, &keys).len(), 4);
                let served = ["a", "c"].map(|d| std::fs::read(bench.path(d).join("checkpoint")).unwrap());
                assert!(served.contains(&note.to_string().into_bytes()));
            }
            assert_ne!(notes[0], notes[1]);
            one_change_makes_it_worthless(&split);
        }
        // It is told once; a restart does not repeat it; and the history that was followed goes on.
        assert_eq!(poll(&mut monitor).await, []);
        drop(monitor);
        let mut monitor = bench.open(&one, &[&a, &b, &c, &d]).await;
        assert_eq!(poll(&mut monitor).await, []);
        assert_eq!(monitor.worst(), Some(Severity::Proven));
        // When they come back to the one history, it is over.
        c.serve(&bench.path("a"));
        let alarms = poll(&mut monitor).await;
        assert_eq!((kinds(&alarms), alarms[0].state), (vec![Kind::SplitView], Turn::Cleared));
    }
}

fn one_change_makes_it_worthless(split: &SplitView) {
    let changed = |edit: fn(&mut SplitView)| {
        let mut split = split.clone();
        edit(&mut split);
        split.check()
    };
    assert_eq!(changed(|s| s.implied = s.older.checkpoint.root), Err(NotASplit::Consistent));
    assert!(matches!(changed(|s| s.implied.0[0] ^= 1), Err(NotASplit::Proof(_))));
    assert!(matches!(changed(|s| s.newer.checkpoint.root.0[0] ^= 1), Err(NotASplit::Proof(_))));
    let other = |s: &mut SplitView| s.newer.checkpoint.origin = Origin::new("other").unwrap();
    assert_eq!(changed(other), Err(NotASplit::OtherLog));
}

#[tokio::test]
async fn a_made_up_history_convicts_nobody_but_who_serves_it() {
    let bench = Bench::new();
    let (one, mut other) = forked(10, 20);
    // The same fork, under keys that no history ever knew.
    let keys = |mesh: &Mesh| mesh.fleet.nodes.keys().copied().collect::<Vec<_>>();
    keys(&other).into_iter().for_each(|n| other.fleet.node(n.0).restart_process());
    let reference = other.log.state.checkpoint();
    let checkpoint = checkpoint_of(other.state().origin(), reference);
    let sign = |n: &NodeId| (*n, other.fleet.nodes[n].cosign(other.state(), reference));
    let cosignatures: Vec<_> = other.fleet.nodes.keys().map(sign).collect();
    let note = note_of(&checkpoint, &cosignatures, |n| {
        (format!("node-{}", n.0), other.fleet.nodes[&n].boot().cosign)
    });
    let at = bench.publish("b", &other);
    std::fs::write(at.join("checkpoint"), note.to_string()).unwrap();
    let (a, b) = (Served::at(&bench.publish("a", &one)).await, Served::at(&at).await);
    let mut monitor = bench.open(&one, &[&a]).await;
    poll(&mut monitor).await;
    drop(monitor);
    let mut monitor = bench.open(&one, &[&a, &b]).await;
    let alarms = poll(&mut monitor).await;
    assert_eq!(kinds(&alarms), [Kind::Uncertified]);
    assert_eq!(alarms[0].subject.as_deref(), Some(b.url.as_str()));
    assert_eq!(monitor.worst(), Some(Severity::Warning));
}

/// Re-signs a log of altered leaves with the nodes' keys, as a quorum of hostile nodes could.
fn forge(bench: &Bench, name: &str, mesh: &Mesh, leaves: &[Vec<u8>], signers: usize) -> PathBuf {
    let dir = bench.path(name);
    let mut writer = LogWriter::new(&dir, &mesh.fleet.chain[0]);
    mesh.fleet.blobs.0.values().for_each(|blob| writer.blob(blob));
    leaves.iter().for_each(|leaf| writer.push(leaf));
    let reference = CheckpointRef { size: writer.size(), root: writer.root() };
    let checkpoint = checkpoint_of(mesh.state().origin(), reference);
    let sign = |n: &NodeId| (*n, mesh.fleet.nodes[n].cosign(mesh.state(), reference));
    let cosignatures: Vec<_> = mesh.fleet.nodes.keys().take(signers).map(sign).collect();
    let key = |n: NodeId| (format!("node-{}", n.0), mesh.fleet.nodes[&n].boot().cosign);
    writer.finish(&note_of(&checkpoint, &cosignatures, key));
    dir
}

#[tokio::test]
async fn a_node_that_lies_is_named_and_nothing_of_it_is_followed() {
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    requests(&mut mesh, 3);
    let honest = Served::at(&bench.publish("honest", &mesh)).await;
    let before = mesh.log.leaves.len();
    let pool = mesh.open_pool();
    mesh.authorise(&pool);
    let longer = bench.publish("longer", &mesh);
    // An authorisation that the rules gave, recorded as a refusal.
    let mut altered = mesh.log.leaves.clone();
    let at = altered.iter().rposition(|l| matches!(outcome(l), Some(Outcome::Authorised))).unwrap();
    let Leaf::V1 { time, body: LeafBody::Decided { command, .. } } = borsh::from_slice(&altered[at]).unwrap()
    else {
        unreachable!("just looked")
    };
    let outcome = Outcome::Refused(Refusal::RateExceeded);
    altered[at] = borsh::to_vec(&Leaf::V1 { time, body: LeafBody::Decided { command, outcome } }).unwrap();
    let broken = forge(&bench, "broken", &mesh, &altered, 4);
    let two_signed = forge(&bench, "two signed", &mesh, &mesh.log.leaves.clone(), 2);
    let cut = forge(&bench, "cut", &mesh, &mesh.log.leaves[..before + 1], 4);
    // The right checkpoint over altered leaves; over none; and none at all.
    let swapped = forge(&bench, "swapped", &mesh, &altered, 4);
    std::fs::copy(longer.join("checkpoint"), swapped.join("checkpoint")).unwrap();
    let withheld = bench.publish("withheld", &mesh);
    std::fs::remove_dir_all(withheld.join("tile/entries")).unwrap();
    // The right tiles over altered leaves, and the right leaves that name a blob which is another's.
    let other_leaves = bench.publish("other leaves", &mesh);
    let partial = |dir: &Path| {
        let mut entries: Vec<_> = std::fs::read_dir(dir.join("tile/entries")).unwrap().flatten().collect();
        assert_eq!(entries.len(), 1);
        let folder = entries.remove(0).path();
        std::fs::read_dir(folder).unwrap().flatten().next().unwrap().path()
    };
    std::fs::copy(partial(&broken), partial(&other_leaves)).unwrap();
    let (garbage, elsewhere) = (bench.publish("garbage", &mesh), bench.publish("elsewhere", &mesh));
    std::fs::write(garbage.join("checkpoint"), "nonsense").unwrap();
    let other = Mesh::new(4, 1, |d| d.cluster = "other".into());
    std::fs::copy(bench.publish("other", &other).join("checkpoint"), elsewhere.join("checkpoint")).unwrap();

    let lying = Served::at(&bench.path("honest")).await;
    let mut monitor = bench.open(&mesh, &[&honest, &lying]).await;
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
    let size = monitor.size();
    for (dir, kind, severity) in [
        (&broken, Kind::RulesBroken, Severity::Proven),
        (&two_signed, Kind::Uncertified, Severity::Warning),
        (&swapped, Kind::Unserved, Severity::Warning),
        (&withheld, Kind::Unserved, Severity::Warning),
        (&other_leaves, Kind::Unserved, Severity::Warning),
        (&garbage, Kind::BadCheckpoint, Severity::Warning),
        (&elsewhere, Kind::BadCheckpoint, Severity::Warning),
        (&cut, Kind::RulesBroken, Severity::Proven),
    ] {
        lying.serve(dir);
        let alarms = poll(&mut monitor).await;
        let raised: Vec<_> = alarms.iter().filter(|a| a.state == Turn::Raised).collect();
        assert_eq!(raised.len(), 1, "{}: {alarms:?}", dir.display());
        assert_eq!((raised[0].kind, raised[0].severity), (kind, severity), "{}", dir.display());
        assert_eq!(raised[0].subject.as_deref(), Some(lying.url.as_str()));
        assert_eq!(raised[0].evidence.is_some(), kind == Kind::RulesBroken);
        assert_eq!(monitor.size(), size, "nothing of it counts");
        lying.serve(&bench.path("honest"));
        let alarms = poll(&mut monitor).await;
        assert!(alarms.iter().all(|a| a.state == Turn::Cleared && a.kind == kind), "{alarms:?}");
        assert_eq!(alarms.len(), 1);
    }
    // The same node, honest: it is followed.
    lying.serve(&longer);
    assert_eq!(poll(&mut monitor).await, []);
    assert_eq!(monitor.size(), mesh.log.tree.size());
    honest.serve(&longer);
    // A blob that is not the one its leaf names proves nothing against those who certified the leaf, and is not kept.
    let change = mesh.fleet.change_policy(|d| d.client[0].requests_per_minute += 1);
    let Command::Policy(named) = &change else { unreachable!("it is one") };
    let blob = named.document.to_string();
    mesh.apply(vec![change]);
    let other_blob = bench.publish("other blob", &mesh);
    std::fs::write(other_blob.join("blob").join(&blob), "another").unwrap();
    lying.serve(&other_blob);
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Unserved]);
    let (kept, staged) = (bench.path("mirror/blob").join(&blob), bench.path("mirror/monitor/staged"));
    assert!(!kept.exists() && !staged.exists());
    lying.serve(&bench.publish("right blob", &mesh));
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::PolicyChanged, Kind::Unserved]);
    assert!(kept.exists() && !staged.exists());
    honest.serve(&bench.path("right blob"));
    // Leaves that nobody certified leave none of theirs behind either.
    let change = mesh.fleet.change_policy(|d| d.client[0].requests_per_minute += 1);
    let Command::Policy(named) = &change else { unreachable!("it is one") };
    let blob = bench.path("mirror/blob").join(named.document.to_string());
    mesh.apply(vec![change]);
    lying.serve(&forge(&bench, "one signed", &mesh, &mesh.log.leaves.clone(), 1));
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Uncertified]);
    assert!(!blob.exists() && !staged.exists());
    let verdict = verify(&bench.mirror(), mesh.fleet.cluster(), Options { threads: 1 }, |_, _| ()).unwrap();
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict:?}");
}

fn outcome(leaf: &[u8]) -> Option<Outcome> {
    match borsh::from_slice(leaf).unwrap() {
        Leaf::V1 { body: LeafBody::Decided { outcome, .. }, .. } => Some(outcome),
        _ => None,
    }
}

/// What each kind of leaf leads to, once each, in one history.
#[tokio::test]
async fn each_kind_of_leaf_has_its_alarm() {
    let bench = Bench::new();
    let mut mesh = Mesh::new(4, 1, |d| d.attestation.settle_ms = 1000);
    let node = Served::at(&bench.publish("node", &mesh)).await;
    let mut monitor = bench.open(&mesh, &[&node]).await;
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
    // A usual pace, so that a detour shows; and reports that are not odd.
    requests(&mut mesh, 20);
    let mut expect = async |mesh: &mut Mesh, expected: &[Kind]| {
        let size = mesh.log.tree.size();
        if !mesh.certified.contains_key(&size) {
            mesh.apply(vec![]);
        }
        bench.publish("node", mesh);
        let alarms = poll(&mut monitor).await;
        assert_eq!(kinds(&alarms), expected, "{alarms:?}");
        assert!(alarms.iter().all(|a| a.leaf.is_some() && !a.what.is_empty() && a.state == Turn::Raised));
        alarms
    };
    expect(&mut mesh, &[]).await;

    // Reports.
    let pool = mesh.open_pool();
    let ended = |mesh: &mut Mesh, settlement: Option<Settlement>, report: Option<Report>| {
        let mut commands = Vec::new();
        if let Some(settlement) = settlement {
            commands.push(mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![settlement])));
        }
        if let Some(report) = report {
            commands.push(mesh.fleet.client(CLIENT, ClientCommand::Report(vec![report])));
        }
        mesh.apply(commands)
    };
    for (status, error_form, odd) in [
        (200, false, false),
        (400, true, false),
        (429, true, false),
        (500, true, false),
        (401, true, true),
        (403, true, true),
        (302, false, true),
        (502, false, true),
        (101, false, true),
    ] {
        let request = mesh.authorise(&pool);
        let report = Report { status, error_form, ..Fleet::report(request) };
        ended(&mut mesh, Some(Fleet::settlement(request)), Some(report));
        let expected: &[Kind] = if odd { &[Kind::OddStatus] } else { &[] };
        let alarms = expect(&mut mesh, expected).await;
        assert!(alarms.iter().all(|a| a.subject == Some(request.to_string())));
    }
    let request = mesh.authorise(&pool);
    let tokens = Report { tokens_out: 1 << 30, ..Fleet::report(request) };
    ended(&mut mesh, Some(Fleet::settlement(request)), Some(tokens));
    expect(&mut mesh, &[Kind::Anomaly]).await;

    // Time: a slow first byte where others are fast; time that nobody explains; more time than there was.
    for (first_byte_ms, total_ms, waits, detour) in [
        (2_000, 2_500, 3_000, false),
        (9_000, 9_500, 10_000, true),
        (100, 900, 60_950, true),
        (100, 20_000, 10_000, true),
    ] {
        mesh.attest_all();
        let pool = mesh.open_pool();
        let request = mesh.authorise(&pool);
        for _ in 0..waits / 20_000 {
            mesh.wait(20_000);
            mesh.attest_all();
        }
        mesh.wait(waits % 20_000);
        let settlement = Settlement { first_byte_ms, total_ms, ..Fleet::settlement(request) };
        let settle = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![settlement]));
        let report = mesh.fleet.client(CLIENT, ClientCommand::Report(vec![Fleet::report(request)]));
        mesh.apply(vec![settle, report]);
        expect(&mut mesh, if detour { &[Kind::Detour] } else { &[] }).await;
    }
    let pool = mesh.open_pool();
    let request = mesh.authorise(&pool);
    for _ in 0..4 {
        mesh.wait(20_000);
        mesh.attest_all();
    }
    let alarms = expect(&mut mesh, &[Kind::Unsettled]).await;
    assert_eq!(alarms[0].subject, Some(request.to_string()));

    // What nodes say.
    let say = |mesh: &mut Mesh, alarm| {
        let command = mesh.fleet.node_command(NodeId(1), NodeCommand::Alarm(alarm));
        assert_eq!(mesh.decide(command), Outcome::AlarmRaised);
    };
    say(&mut mesh, Raised::Withheld { command: Hash([1; 32]) });
    expect(&mut mesh, &[Kind::Withheld]).await;
    say(&mut mesh, Raised::AdmissionRefused { node: NodeId(2), check: "signature".into() });
    expect(&mut mesh, &[Kind::AdmissionRefused]).await;
    say(&mut mesh, Raised::HeadRefused { request: RequestId([1; 16]), code: 3 });
    expect(&mut mesh, &[Kind::HeadRefused]).await;
    let sign = |mesh: &Mesh, root| {
        let reference = CheckpointRef { size: TreeSize(5), root };
        (root, mesh.fleet.nodes[&NodeId(3)].cosign(mesh.state(), reference))
    };
    let (one, other) = (sign(&mesh, Hash([1; 32])), sign(&mesh, Hash([2; 32])));
    let key = PublicKey(mesh.fleet.nodes[&NodeId(3)].boot().cosign);
    let (accused, size) = (NodeId(3), TreeSize(5));
    say(&mut mesh, Raised::Equivocation { accused, key, size, one, other });
    let alarms = expect(&mut mesh, &[Kind::Equivocation]).await;
    assert_eq!((alarms[0].severity, alarms[0].subject.as_deref()), (Severity::Proven, Some("node-3")));

    // Policy: a change that leads nowhere new, and one that does; back again is not new.
    let change = mesh.fleet.change_policy(|d| d.client[0].requests_per_minute += 1);
    mesh.apply(vec![change]);
    expect(&mut mesh, &[Kind::PolicyChanged]).await;
    let change = mesh.fleet.change_policy(|d| {
        d.route.push(route_document("second"));
        d.route[1].host = "evil.example.com".into();
    });
    mesh.apply(vec![change]);
    let alarms = expect(&mut mesh, &[Kind::PolicyChanged, Kind::NewDestination]).await;
    assert!(alarms[0].what.contains("with route second to evil.example.com:443"), "{}", alarms[0].what);
    assert!(["admin-0", "admin-1"].iter().all(|a| alarms[0].what.contains(a)), "{}", alarms[0].what);
    assert_eq!(alarms[1].subject.as_deref(), Some("evil.example.com:443"));
    let without = mesh.fleet.change_policy(|d| drop(d.route.pop()));
    mesh.apply(vec![without]);
    expect(&mut mesh, &[Kind::PolicyChanged]).await;
    let again = mesh.fleet.change_policy(|d| {
        d.route.push(route_document("third"));
        d.route[1].host = "evil.example.com".into();
    });
    mesh.apply(vec![again]);
    expect(&mut mesh, &[Kind::PolicyChanged]).await;

    // Attestation: a wrong PCR, a lapse, the dark, the way out of it, and nonsense from a leader.
    mesh.attest_all();
    mesh.wait(1000);
    mesh.apply(vec![]);
    mesh.fleet.node(4).tpm.measure(4, 13, b"something else");
    let evidence = mesh.evidence(4);
    assert!(matches!(mesh.decide(evidence), Outcome::AppraisalRefused { .. }));
    let alarms = expect(&mut mesh, &[Kind::AppraisalRefused]).await;
    assert_eq!(alarms[0].subject.as_deref(), Some("node-4"));
    mesh.silent.insert(NodeId(4));
    mesh.log.apply_bytes(b"nonsense", &mesh.fleet.blobs.clone());
    expect(&mut mesh, &[Kind::Undecodable]).await;
    mesh.wait(60_001);
    mesh.apply(vec![]);
    assert!(mesh.state().is_dark());
    mesh.recover();
    let dark = [Kind::Lapsed, Kind::Lapsed, Kind::Lapsed, Kind::Dark, Kind::Recovered];
    expect(&mut mesh, &dark).await;
}

/// Three clients whose requests over one pair fail as with a wrong key.
#[tokio::test]
async fn a_suspended_pair_is_an_alarm() {
    let (bench, clients) = (Bench::new(), [CLIENT, "b", "c"]);
    let mut mesh = Mesh::new(4, 1, |d| {
        keyed(d);
        d.client.extend(clients[1..].iter().map(|c| client_document(c)));
    });
    let pool = mesh.fleet.pool(&mesh.log.state, 1);
    for client in clients {
        let mut own = mesh.fleet.pool(&mesh.log.state, 1);
        assert_eq!((own.relay, own.keyer), (pool.relay, pool.keyer));
        own.expires = mesh.time.plus_ms(60_000);
        let open = mesh.fleet.client(client, ClientCommand::OpenPool(own.clone()));
        assert_eq!(mesh.decide(open), Outcome::PoolOpened);
        let mut request = mesh.fleet.request(&mesh.log.state, &own);
        request.expires = mesh.time.plus_ms(30_000);
        let id = request.request;
        let ask = mesh.fleet.client(client, ClientCommand::Authorise(request));
        assert_eq!(mesh.decide(ask), Outcome::Authorised);
        let report = Report { status: 401, error_form: true, ..Fleet::report(id) };
        let settle = NodeCommand::Settle(vec![Fleet::settlement(id)]);
        let settle = mesh.fleet.node_command(pool.relay, settle);
        let report = mesh.fleet.client(client, ClientCommand::Report(vec![report]));
        mesh.apply(vec![settle, report]);
    }
    let node = Served::at(&bench.publish("1", &mesh)).await;
    let alarms = poll(&mut bench.open(&mesh, &[&node]).await).await;
    let of = |kind| alarms.iter().filter(|a| a.kind == kind).count();
    let counts = [Kind::OddStatus, Kind::Anomaly, Kind::CredentialStopped].map(of);
    assert_eq!(counts, [3, 3, 1], "{alarms:?}");
    let stopped = alarms.iter().find(|a| a.kind == Kind::CredentialStopped).unwrap();
    assert_eq!(stopped.subject.as_deref(), Some("llm"));
}

/// A pair without a common node with the first, on top of that: the key is frozen. (The log in which every kind of leaf stands.)
#[tokio::test]
async fn a_frozen_credential_is_an_alarm() {
    let (bench, mesh) = (Bench::new(), crate::tests::busy::busy());
    let node = Served::at(&bench.publish("1", &mesh)).await;
    let alarms = poll(&mut bench.open(&mesh, &[&node]).await).await;
    let stopped: Vec<&Alarm> = alarms.iter().filter(|a| a.kind == Kind::CredentialStopped).collect();
    let [suspended, frozen] = stopped[..] else { panic!("{stopped:?}") };
    assert!(suspended.what.contains("suspended for the key of llm"), "{suspended:?}");
    assert_eq!(frozen.what, "the key of llm frozen (share epoch 1)");
    assert_eq!((frozen.subject.as_deref(), frozen.severity), (Some("llm"), Severity::Warning));
    let leaf = frozen.leaf.unwrap().0 as usize;
    assert_eq!(crate::tests::busy::kind(&mesh.log.leaves[leaf]), "credential frozen");
    // What else stands in that log, once each where it happened once.
    let of = |kind| alarms.iter().filter(|a| a.kind == kind).count();
    let once = [
        Kind::Recovered,
        Kind::Unsettled,
        Kind::AppraisalRefused,
        Kind::AdmissionRefused,
        Kind::HeadRefused,
        Kind::Withheld,
        Kind::Equivocation,
        Kind::PolicyChanged,
        Kind::Undecodable,
        Kind::Lapsed,
    ];
    assert_eq!(once.map(of), [1; 10], "{alarms:?}");
}

/// In the dark somebody's recovery rests on a quote that is not its node's; the honest one follows.
#[tokio::test]
async fn a_refused_recovery_is_an_alarm() {
    let (bench, mut mesh) = (Bench::new(), Mesh::dark(4, 1, |_| ()));
    let mut recovery = mesh.recovery();
    recovery.evidence[1].1 = recovery.evidence[0].1.clone();
    let refused = mesh.decide(Command::Recover(Box::new(recovery)));
    assert_eq!(refused, Outcome::AppraisalRefused { check: "signature".into() });
    mesh.recover();
    let node = Served::at(&bench.publish("1", &mesh)).await;
    let alarms = poll(&mut bench.open(&mesh, &[&node]).await).await;
    assert_eq!(kinds(&alarms), [Kind::AppraisalRefused, Kind::Recovered]);
    assert_eq!(alarms[0].what, "a recovery was refused: signature");
    assert!(alarms[0].leaf < alarms[1].leaf, "{alarms:?}");
    assert_eq!(super::exit(&alarms, None), Exit::Alarmed);
}

#[tokio::test]
async fn conditions_are_raised_after_patience_and_cleared() {
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    let (one, two) =
        (Served::at(&bench.publish("1", &mesh)).await, Served::at(&bench.publish("2", &mesh)).await);
    let patient = |s: &mut Settings| {
        s.patience_ms = 30_000;
        s.behind_ms = 60_000;
    };
    let mut monitor = bench.open_with(&mesh, &[&one, &two], None, patient).await.unwrap();
    let at = |s: u64| NOW.plus_ms(s * 1000);
    assert_eq!(kinds(&monitor.poll(at(0)).await.unwrap()), [Kind::Recovered]);
    // Behind: only once the others have been ahead for a while.
    mesh.attest_all();
    bench.publish("1", &mesh);
    for (s, raised) in [(10, false), (20, false), (70, false), (80, true), (90, false)] {
        let alarms = monitor.poll(at(s)).await.unwrap();
        assert_eq!(kinds(&alarms), if raised { vec![Kind::NodeBehind] } else { vec![] }, "at {s}");
    }
    bench.publish("2", &mesh);
    let alarms = monitor.poll(at(100)).await.unwrap();
    assert_eq!((kinds(&alarms), alarms[0].state), (vec![Kind::NodeBehind], Turn::Cleared));
    // Unreachable: likewise. A restart in between loses no time and repeats nothing.
    two.serve(&bench.path("nowhere"));
    assert_eq!(monitor.poll(at(110)).await.unwrap(), []);
    drop(monitor);
    let mut monitor = bench.open_with(&mesh, &[&one, &two], None, patient).await.unwrap();
    assert_eq!(kinds(&monitor.poll(at(140)).await.unwrap()), [Kind::Unreachable]);
    drop(monitor);
    let mut monitor = bench.open_with(&mesh, &[&one, &two], None, patient).await.unwrap();
    assert_eq!(monitor.poll(at(150)).await.unwrap(), []);
    // Stale: by the log's own time.
    drop(monitor);
    let stale = |s: &mut Settings| s.stale_ms = 120_000;
    let mut monitor = bench.open_with(&mesh, &[&one], None, stale).await.unwrap();
    let time = mesh.state().time();
    assert_eq!(monitor.poll(time.plus_ms(120_000)).await.unwrap(), []);
    assert_eq!(kinds(&monitor.poll(time.plus_ms(120_001)).await.unwrap()), [Kind::Stale]);
    mesh.wait(20_000);
    mesh.attest_all();
    bench.publish("1", &mesh);
    let alarms = monitor.poll(time.plus_ms(120_002)).await.unwrap();
    assert_eq!((kinds(&alarms), alarms[0].state), (vec![Kind::Stale], Turn::Cleared));
}

#[tokio::test]
async fn a_restart_neither_repeats_nor_misses() {
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    let node = Served::at(&bench.publish("1", &mesh)).await;
    let log = bench.path("mirror/monitor/alarms.jsonl");
    let written = || std::fs::read_to_string(&log).unwrap().lines().count();
    let mut monitor = bench.open(&mesh, &[&node]).await;
    assert_eq!(poll(&mut monitor).await.len(), 1);
    drop(monitor);
    // An orderly restart.
    let mut monitor = bench.open(&mesh, &[&node]).await;
    assert_eq!((poll(&mut monitor).await, written()), (vec![], 1));
    drop(monitor);
    // Killed after the mirror went on and before the snapshot: the mirror is replayed, and what it says is known already.
    let snapshot = bench.path("mirror/monitor/snapshot");
    let old = std::fs::read(&snapshot).unwrap();
    let change = mesh.fleet.change_policy(|d| d.client[0].requests_per_minute += 1);
    mesh.apply(vec![change]);
    bench.publish("1", &mesh);
    let mut monitor = bench.open(&mesh, &[&node]).await;
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::PolicyChanged]);
    drop(monitor);
    for snapshot_left in [Some(&old), None] {
        match snapshot_left {
            Some(bytes) => std::fs::write(&snapshot, bytes).unwrap(),
            None => std::fs::remove_file(&snapshot).unwrap(),
        }
        let mut monitor = bench.open(&mesh, &[&node]).await;
        assert_eq!((poll(&mut monitor).await, written()), (vec![], 2));
    }
    // Killed before the alarm was whole on disk, nothing after it done: it is raised again.
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text[..text.len() - 9].to_owned() + &"x".repeat(999)).unwrap();
    std::fs::write(&snapshot, &old).unwrap();
    let mut monitor = bench.open(&mesh, &[&node]).await;
    assert_eq!((poll(&mut monitor).await, written()), (vec![], 2));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), text);
    // Two monitors over one mirror would.
    assert!(bench.open_with(&mesh, &[&node], None, |_| ()).await.is_err());
    drop(monitor);
    // A mirror that somebody exchanged for an older one is not taken over.
    std::fs::remove_dir_all(bench.path("mirror/tile")).unwrap();
    mirror_of(&Mesh::four(), &bench.path("mirror"), &[]);
    let exchanged = bench.open_with(&mesh, &[&node], None, |_| ()).await;
    assert!(matches!(exchanged, Err(OpenError::Behind { .. })));
}

#[tokio::test]
async fn alarms_are_told_once_and_posted_until_they_arrive() {
    type Posts = Arc<(AtomicU16, Mutex<Vec<Alarm>>)>;
    let posts: Posts = Arc::new((AtomicU16::new(500), Mutex::default()));
    let hook = async |Shared(posts): Shared<Posts>, body: axum::body::Bytes| {
        let status = StatusCode::from_u16(posts.0.load(Ordering::Relaxed)).unwrap();
        if status.is_success() {
            posts.1.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        }
        status
    };
    let (url, _task) = listen(Router::new().route("/", post(hook)).with_state(Arc::clone(&posts))).await;
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    let node = Served::at(&bench.publish("1", &mesh)).await;
    let mut said: Vec<String> = Vec::new();
    let mut round = async |mesh: &Mesh, posted: bool| {
        let mut monitor = bench.open(mesh, &[&node]).await;
        poll(&mut monitor).await;
        let say = |alarm: &Alarm| {
            said.push(alarm.id.clone());
            Ok::<_, ()>(())
        };
        assert_eq!(monitor.tell(Some(&url), say).await.unwrap().is_ok(), posted);
        said.len()
    };
    assert_eq!(round(&mesh, false).await, 1);
    let change = mesh.fleet.change_policy(|d| d.client[0].requests_per_minute += 1);
    mesh.apply(vec![change]);
    bench.publish("1", &mesh);
    // The webhook fails still; what was printed is not printed again.
    assert_eq!(round(&mesh, false).await, 2);
    posts.0.store(204, Ordering::Relaxed);
    assert_eq!(round(&mesh, true).await, 2);
    assert_eq!(kinds(&posts.1.lock().unwrap()), [Kind::Recovered, Kind::PolicyChanged]);
    assert_eq!(round(&mesh, true).await, 2);
    assert_eq!(posts.1.lock().unwrap().len(), 2);
}

/// A witness of our own that knows the log by these keys.
async fn witness(bench: &Bench, mesh: &Mesh, log: LogDocument) -> (String, JoinHandle<()>, VerifierKey) {
    let dir = bench.path("witness");
    std::fs::create_dir(&dir).unwrap();
    let key = SigningKey::generate(KeyName::new("witness.example/w1").unwrap(), KeyKind::CosignatureV1);
    let document = WitnessDocument { listen: String::new(), log: vec![log] };
    std::fs::write(dir.join("witness.toml"), toml::to_string(&document).unwrap()).unwrap();
    Store::open(&dir, Disk::default()).unwrap().begin(mesh.state().origin()).unwrap();
    let config = Config::load(&dir.join("witness.toml")).unwrap();
    let witness = Witness::open(&dir, key.unwrap(), &config, Disk::default()).unwrap();
    let public = witness.key().verifier_key();
    let (url, task) = listen(crate::witness::http::router(Arc::new(witness))).await;
    (url, task, public)
}

#[tokio::test]
async fn a_witness_is_fed_and_held_against_the_log() {
    let bench = Bench::new();
    let (mut one, mut other) = forked(20, 30);
    let feeder = || SigningKey::parse(&FEEDER.0.expose_text()).unwrap();
    let origin = one.state().origin().to_string();
    let keys = vec![FEEDER.0.verifier_key().to_string()];
    let log = LogDocument { origin, keys, keys_file: None, threshold: 1 };
    let (url, task, key) = witness(&bench, &one, log).await;
    let peer =
        |feeds: bool| WitnessPeer { url: url.clone(), key: key.clone(), feeder: feeds.then(feeder), feeds };
    let node = Served::at(&bench.publish("1", &one)).await;
    let early = Served::at(&bench.publish("early", &one)).await;
    let mut monitor = bench.open_with(&one, &[&node], Some(peer(true)), |_| ()).await.unwrap();
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
    for _ in 0..3 {
        one.attest_all();
        bench.publish("1", &one);
        assert_eq!(poll(&mut monitor).await, []);
        // The cosigned note lies beside the mirror: nodes' and witness's signatures, and not the feeder's.
        let kept = kept(&peer(true), &bench.mirror()).unwrap().unwrap();
        assert_eq!(kept.size(), one.log.tree.size());
        assert_eq!(kept.note.verified_by(std::slice::from_ref(&key)).unwrap().len(), 1);
        assert_eq!(signed_by(&kept.note, &node_keys(&one)).len(), 4);
        assert_eq!(kept.note.signatures().len(), 5);
    }
    drop(monitor);
    // Only read: the same, as long as somebody feeds it.
    let mut monitor = bench.open_with(&one, &[&node], Some(peer(false)), |_| ()).await.unwrap();
    assert_eq!(poll(&mut monitor).await, []);
    one.attest_all();
    bench.publish("1", &one);
    assert_eq!(poll(&mut monitor).await, []);
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::WitnessBehind]);
    drop(monitor);
    let mut monitor = bench.open_with(&one, &[&node], Some(peer(true)), |_| ()).await.unwrap();
    let alarms = poll(&mut monitor).await;
    assert_eq!((kinds(&alarms), alarms[0].state), (vec![Kind::WitnessBehind], Turn::Cleared));
    drop(monitor);

    // Who is shown an old state learns that the witness has seen more; nothing is proven by that.
    let behind = Bench::new();
    for feeds in [false, true] {
        let mut monitor = behind.open_with(&one, &[&early], Some(peer(feeds)), |_| ()).await.unwrap();
        let alarms = poll(&mut monitor).await;
        let expected: &[Kind] = if feeds { &[] } else { &[Kind::Recovered, Kind::WitnessBehind] };
        assert_eq!((kinds(&alarms).as_slice(), monitor.worst()), (expected, Some(Severity::Warning)));
    }

    // Somebody else, who is told the other history, finds that the witness has seen this one: with a proof of both.
    for _ in 0..40 {
        other.attest_all();
    }
    let elsewhere = Bench::new();
    let lying = Served::at(&elsewhere.publish("1", &other)).await;
    let mut monitor = elsewhere.open_with(&other, &[&lying], Some(peer(true)), |_| ()).await.unwrap();
    let alarms = poll(&mut monitor).await;
    assert_eq!(kinds(&alarms), [Kind::Recovered, Kind::WitnessOtherHistory]);
    let split = SplitView::read(alarms[1].evidence.as_ref().unwrap()).unwrap();
    assert_eq!(split.check(), Ok(()));
    assert!(split.older.note.verified_by(std::slice::from_ref(&key)).is_ok());
    assert_eq!(signed_by(&split.newer.note, &node_keys(&other)).len(), 4);
    drop(monitor);
    // Likewise without feeding.
    let mut monitor = elsewhere.open_with(&other, &[&lying], Some(peer(false)), |_| ()).await.unwrap();
    assert_eq!(poll(&mut monitor).await, []);
    assert_eq!(monitor.worst(), Some(Severity::Proven));
    // A witness that is gone.
    task.abort();
    let _gone = task.await;
    drop(monitor);
    let mut monitor = bench.open_with(&one, &[&node], Some(peer(true)), |_| ()).await.unwrap();
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::WitnessFailing]);
}

/// A key to feed with.
static FEEDER: std::sync::LazyLock<(SigningKey,)> = std::sync::LazyLock::new(|| {
    (SigningKey::generate(KeyName::new("quorate/test/feeder").unwrap(), KeyKind::Ed25519).unwrap(),)
});

#[tokio::test]
async fn a_witness_can_follow_the_nodes_own_keys() {
    let (bench, mut mesh) = (Bench::new(), Mesh::four());
    let origin = mesh.state().origin().to_string();
    let keys_file = Some(bench.path("mirror/monitor/keys"));
    let log = LogDocument { origin, keys: vec![], keys_file, threshold: 3 };
    let (url, _task, key) = witness(&bench, &mesh, log).await;
    let peer = WitnessPeer { url: url.clone(), key, feeder: None, feeds: true };
    let node = Served::at(&bench.publish("1", &mesh)).await;
    let mut monitor = bench.open_with(&mesh, &[&node], Some(peer), |_| ()).await.unwrap();
    assert_eq!(kinds(&poll(&mut monitor).await), [Kind::Recovered]);
    // A node that restarts has other keys; the witness follows with the next look.
    mesh.fleet.node(1).restart_process();
    mesh.wait(1000);
    mesh.attest_all();
    bench.publish("1", &mesh);
    assert_eq!(poll(&mut monitor).await, []);
    // Two signatures are too few, whoever feeds.
    let note = Note::parse(&std::fs::read(bench.path("1").join("checkpoint")).unwrap()).unwrap();
    let two = Note::new(note.text(), note.signatures()[1..3].to_vec()).unwrap();
    let body = format!("old 0\n\n{two}");
    let client = crate::fetch::Client::new();
    let (status, _) =
        client.post(&format!("{url}/add-checkpoint"), "text/plain", body.into(), 1 << 16).await.unwrap();
    assert_eq!(status, 403);
}

#[test]
fn the_exit_code_says_how_bad_it_is() {
    let alarm = |kind| Alarm::new(kind, "1".into(), NOW, String::new());
    let over = Alarm { state: Turn::Cleared, ..alarm(Kind::SplitView) };
    for (raised, standing, exit) in [
        (vec![], None, Exit::Good),
        (vec![alarm(Kind::PolicyChanged)], None, Exit::Good),
        (vec![over], None, Exit::Good),
        (vec![alarm(Kind::Lapsed), alarm(Kind::PolicyChanged)], None, Exit::Alarmed),
        (vec![], Some(Severity::Warning), Exit::Alarmed),
        (vec![alarm(Kind::Lapsed)], Some(Severity::Proven), Exit::ProvenWrong),
        (vec![alarm(Kind::SplitView)], None, Exit::ProvenWrong),
    ] {
        assert_eq!(super::exit(&raised, standing), exit, "{raised:?} {standing:?}");
    }
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: super::MonitorArgs,
}

/// The subcommand as cron runs it, twice each: what stands is not told again, and the exit code goes on saying it.
#[tokio::test]
async fn from_cron_the_exit_code_says_whether_to_look() {
    let bench = Bench::new();
    let (one, other) = forked(2, 150);
    let (a, b) = (Served::at(&bench.publish("a", &one)).await, Served::at(&bench.publish("a", &one)).await);
    let look = async || {
        let (dir, genesis) = (bench.path("mirror"), one.fleet.cluster().to_string());
        let urls = format!("{}/ {}", a.url, b.url);
        let args = ["monitor", dir.to_str().unwrap(), "--genesis", &genesis, "--node", &urls, "--once"];
        let more = ["--json", "--stale", "99999999999"];
        let cli = <Cli as clap::Parser>::try_parse_from(args.iter().chain(&more)).unwrap();
        super::monitor(cli.args).await
    };
    for _ in 0..2 {
        assert_eq!(look().await, Ok(Exit::Good));
    }
    b.serve(&bench.path("nowhere"));
    for _ in 0..2 {
        assert_eq!(look().await, Ok(Exit::Alarmed));
    }
    b.serve(&bench.publish("b", &other));
    for _ in 0..2 {
        assert_eq!(look().await, Ok(Exit::ProvenWrong));
    }
    b.serve(&bench.path("a"));
    assert_eq!(look().await, Ok(Exit::Good));
    let log = std::fs::read_to_string(bench.path("mirror/monitor/alarms.jsonl")).unwrap();
    let kinds: Vec<Kind> = log.lines().map(|l| serde_json::from_str::<Alarm>(l).unwrap().kind).collect();
    let (down, split) = (Kind::Unreachable, Kind::SplitView);
    assert_eq!(kinds, [Kind::Recovered, down, down, split, split]);
}

#[test]
fn json_names_are_stable() {
    let alarm =
        Alarm::of_leaf(Kind::OddStatus, quorate_core::tlog::LeafIndex(7), 0, Timestamp(5), "x".into());
    let json = serde_json::to_value(alarm.about("y")).unwrap();
    for (key, value) in [
        ("id", "leaf-7-odd_status-0"),
        ("kind", "odd_status"),
        ("severity", "warning"),
        ("state", "raised"),
        ("subject", "y"),
        ("what", "x"),
    ] {
        assert_eq!(json[key], value);
    }
    assert_eq!((json["leaf"].as_u64(), json["time"].as_u64()), (Some(7), Some(5)));
}
