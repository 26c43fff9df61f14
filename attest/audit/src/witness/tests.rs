//! The witness by its specification: every status, its memory through crashes, and what it reports.
//!
//! **These bite.** Each of these was taken out for a moment, alone, and a test failed:
//!
//! | what was taken out | what noticed it |
//! |---|---|
//! | the log's signatures, the old size, its bound, equal roots, the proof | `each_refusal_…`, `over_http_…` |
//! | the write before the answer, its fsync | `a_write_that_fails_…`, `it_is_durable_…` |
//! | one request of a log at a time | `races_never_roll_back` |
//! | that time never goes back | `a_log_that_grows_…` |
//! | that a threshold counts keys | `a_threshold_…` |
//! | that a bad proof proves nothing | `forks_are_kept_…` |
//! | the own cosignature under the memory; that a memory is begun once | `a_lost_or_damaged_memory_…` |
//! | the feeder's check of what a witness answers | `a_witness_that_answers_nonsense_…` |
//! | each of the times and the number of connections that strangers have | `who_sends_slowly_…` |
use super::config::{Config, LogDocument, WitnessDocument};
use super::decide::{Answer, NotSigned, Witness};
use super::disk::{Disk, Step, When};
use super::http::router;
use super::key::SigningKey;
use super::request::{AddCheckpoint, Malformed};
use super::state::{StateError, Store, log_id};
use axum::body::{Body, Bytes};
use axum::http::{Request, Response, StatusCode};
use quorate_core::testing::MemoryTree;
use quorate_core::tlog::{
    Checkpoint, ConsistencyProof, EMPTY_ROOT, Hash, KeyKind, KeyName, Note, NoteError, NoteSignature, Origin,
    ProofError, TreeSize, VerifierKey, prove_consistency, root_at,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt as _;

/// One request through the whole router, its body collected.
async fn oneshot(router: axum::Router, request: Request<Body>) -> Response<Bytes> {
    let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
    Response::from_parts(parts, axum::body::to_bytes(body, 1 << 20).await.unwrap())
}

const ORIGIN: &str = "example.com/log";
const NOW: u64 = 1_700_000_000;

/// A log that signs whatever it is told to.
struct TestLog {
    tree: MemoryTree,
    key: SigningKey,
}

impl TestLog {
    fn new(leaves: u64, name: &str) -> Self {
        let mut tree = MemoryTree::default();
        (0..leaves).for_each(|i| tree.push(format!("{name} {i}").as_bytes()));
        Self { tree, key: SigningKey::generate(KeyName::new(ORIGIN).unwrap(), KeyKind::Ed25519).unwrap() }
    }
    /// The same leaves up to `same`, others after; the same key.
    fn forked(&self, same: u64, leaves: u64) -> Self {
        let mut tree = MemoryTree::default();
        (0..same).for_each(|i| tree.push(format!("log {i}").as_bytes()));
        (same..leaves).for_each(|i| tree.push(format!("fork {i}").as_bytes()));
        Self { tree, key: SigningKey::parse(&self.key.expose_text()).unwrap() }
    }
    fn root(&self, size: u64) -> Hash {
        if size == 0 { EMPTY_ROOT } else { root_at(&self.tree, TreeSize(size)).unwrap() }
    }
    fn checkpoint(&self, size: u64) -> Checkpoint {
        Checkpoint { origin: Origin::new(ORIGIN).unwrap(), size: TreeSize(size), root: self.root(size) }
    }
    fn note(&self, size: u64) -> Note {
        let text = self.checkpoint(size).body();
        Note::new(text.as_str(), vec![self.key.sign_note(&text)]).unwrap()
    }
    fn proof(&self, old: u64, new: u64) -> ConsistencyProof {
        if old == 0 {
            return ConsistencyProof::default();
        }
        prove_consistency(&self.tree, TreeSize(old), TreeSize(new)).unwrap()
    }
    fn request(&self, old: u64, new: u64) -> String {
        AddCheckpoint::body(TreeSize(old), &self.proof(old, new), &self.note(new))
    }
    fn document(&self) -> WitnessDocument {
        let keys = vec![self.key.verifier_key().to_string()];
        let log = LogDocument { origin: ORIGIN.into(), keys, keys_file: None, threshold: 1 };
        WitnessDocument { listen: "127.0.0.1:0".into(), log: vec![log] }
    }
}

/// A folder with a witness that knows the log, as `init` and `add-log` leave it.
fn made(log: &TestLog) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("w");
    super::init(&at, "witness.example/w1".into()).unwrap();
    super::add_log(&at, log.document().log.remove(0)).unwrap();
    dir
}

fn open_with(dir: &Path, disk: Disk) -> Result<Witness, StateError> {
    let at = dir.join("w");
    let key = SigningKey::read(&at.join("key"), KeyKind::CosignatureV1).unwrap();
    Witness::open(&at, key, &Config::load(&at.join("witness.toml")).unwrap(), disk)
}

fn open(dir: &Path) -> Witness {
    open_with(dir, Disk::default()).unwrap()
}

fn origin() -> Origin {
    Origin::new(ORIGIN).unwrap()
}

fn held(witness: &Witness) -> Option<u64> {
    witness.last(&origin()).unwrap().map(|held| held.checkpoint.size.0)
}

/// The cosignature in an answer, verified over the log's checkpoint.
fn cosigned(answer: &Answer, note: &Note, key: &VerifierKey) -> NoteSignature {
    let Answer::Cosigned(line) = answer else { panic!("{answer:?}") };
    let read = Note::parse(format!("{}\n{line}", note.text()).as_bytes()).unwrap();
    assert_eq!(read.verified_by(std::slice::from_ref(key)).unwrap(), [key]);
    assert_eq!(read.signatures().len(), 1);
    read.signatures()[0].clone()
}

#[test]
fn a_log_that_grows_is_cosigned() {
    let log = TestLog::new(100, "log");
    let dir = made(&log);
    let witness = open(dir.path());
    let key = witness.key().verifier_key();
    assert_eq!(held(&witness), None);
    // First any size; then the same again, with a later time; then one leaf, then many.
    for (old, new) in [(0, 10), (10, 10), (10, 11), (11, 64), (64, 100)] {
        let answer = witness.add_checkpoint(log.request(old, new).as_bytes(), NOW + new);
        let line = cosigned(&answer, &log.note(new), &key);
        assert_eq!(line.name.as_str(), "witness.example/w1");
        assert_eq!(held(&witness), Some(new));
    }
    // What it keeps has both signatures, so that it can be shown.
    let kept = witness.last(&origin()).unwrap().unwrap();
    assert_eq!(kept.note.verified_by(&[key, log.key.verifier_key()]).unwrap().len(), 2);
    // The clock going back does not take the cosignature's time along.
    let answer = witness.add_checkpoint(log.request(100, 100).as_bytes(), 5);
    let line = cosigned(&answer, &log.note(100), &witness.key().verifier_key());
    assert_eq!(quorate_core::tlog::Cosignature::from_bytes(&line.bytes).unwrap().time_s, NOW + 100);
}

#[test]
fn an_empty_log_and_extension_lines_are_cosigned_as_they_are() {
    let log = TestLog::new(3, "log");
    let dir = made(&log);
    let witness = open(dir.path());
    cosigned(
        &witness.add_checkpoint(log.request(0, 0).as_bytes(), NOW),
        &log.note(0),
        &witness.key().verifier_key(),
    );
    let text = log.checkpoint(3).body() + "extension\n";
    let note = Note::new(text.as_str(), vec![log.key.sign_note(&text)]).unwrap();
    let body = AddCheckpoint::body(TreeSize(0), &ConsistencyProof::default(), &note);
    cosigned(&witness.add_checkpoint(body.as_bytes(), NOW), &note, &witness.key().verifier_key());
    assert_eq!(held(&witness), Some(3));
}

#[test]
fn each_refusal_has_its_status_and_changes_nothing() {
    let log = TestLog::new(100, "log");
    let dir = made(&log);
    let witness = open(dir.path());
    let good = |old, new| log.request(old, new);
    cosigned(
        &witness.add_checkpoint(good(0, 10).as_bytes(), NOW),
        &log.note(10),
        &witness.key().verifier_key(),
    );
    let before = witness.last(&origin()).unwrap();
    let stranger = TestLog::new(100, "log");
    let forked = log.forked(7, 100);
    let unknown = good(10, 20).replace(ORIGIN, "example.com/other");
    let mut flipped = log.note(20).signatures()[0].clone();
    flipped.bytes[3] ^= 1;
    let flipped = Note::new(log.note(20).text(), vec![flipped]).unwrap();
    let flipped = AddCheckpoint::body(TreeSize(10), &log.proof(10, 20), &flipped);
    let mut short = log.proof(10, 20).hashes().to_vec();
    short.pop();
    let short = AddCheckpoint::body(TreeSize(10), &short.try_into().unwrap(), &log.note(20));
    let empty_proof = AddCheckpoint::body(TreeSize(10), &ConsistencyProof::default(), &log.note(20));
    let proof_at_equal = AddCheckpoint::body(TreeSize(10), &log.proof(9, 10), &log.note(10));
    for (body, status) in [
        (String::from("nonsense"), 400),
        (good(10, 20).replace("old 10", "old 010"), 400),
        (good(10, 20).replace("old 10", "old 21"), 400),
        (unknown, 404),
        (stranger.request(10, 20), 403),
        (flipped, 403),
        (good(9, 20), 409),
        (good(11, 20), 409),
        (good(0, 20), 409),
        (good(5, 9), 409),
        (forked.request(10, 10), 409),
        (forked.request(8, 10), 409),
        (forked.request(10, 20), 422),
        (short, 422),
        (empty_proof, 422),
        (proof_at_equal, 422),
    ] {
        let answer = witness.add_checkpoint(body.as_bytes(), NOW + 1);
        assert_eq!(answer.status(), status, "{answer:?} to {body}");
        assert_eq!(witness.last(&origin()).unwrap(), before, "{body}");
        if status == 409 {
            assert!(matches!(answer, Answer::Conflict(TreeSize(10)) | Answer::Forked(TreeSize(10), _)));
        }
    }
    // The exact reasons, where one status has several.
    let reason = |body: String| witness.add_checkpoint(body.as_bytes(), NOW);
    assert!(matches!(
        reason(stranger.request(10, 20)),
        Answer::NotSigned(NotSigned::Note(NoteError::NoKnownKey))
    ));
    assert!(matches!(
        reason(good(10, 20).replace("old 10", "old 21")),
        Answer::Malformed(Malformed::OldAboveNew { .. })
    ));
    assert!(matches!(
        reason(forked.request(10, 20)),
        Answer::Inconsistent(ProofError::OldRootMismatch { .. }, _)
    ));
    assert!(matches!(reason(forked.request(10, 10)), Answer::Forked(..)));
    // A log of which nothing was cosigned takes no proof.
    let other = made(&log);
    let witness = open(other.path());
    let body = AddCheckpoint::body(TreeSize(0), &log.proof(10, 20), &log.note(20));
    assert!(matches!(
        witness.add_checkpoint(body.as_bytes(), NOW),
        Answer::Inconsistent(ProofError::TooLong, _)
    ));
    assert!(matches!(witness.add_checkpoint(good(10, 20).as_bytes(), NOW), Answer::Conflict(TreeSize(0))));
    // Its unmutated twin passes.
    assert_eq!(witness.add_checkpoint(good(0, 20).as_bytes(), NOW).status(), 200);
}

#[test]
fn a_threshold_counts_keys_not_lines() {
    let log = TestLog::new(20, "log");
    let (second, dir) = (TestLog::new(20, "log"), tempfile::tempdir().unwrap());
    super::init(&dir.path().join("w"), "witness.example/w1".into()).unwrap();
    let mut document = log.document().log.remove(0);
    document.keys.push(second.key.verifier_key().to_string());
    document.threshold = 2;
    super::add_log(&dir.path().join("w"), document).unwrap();
    let witness = open(dir.path());
    let text = log.checkpoint(20).body();
    let (one, two) = (log.key.sign_note(&text), second.key.sign_note(&text));
    let body = |lines: &[&NoteSignature]| {
        let note = Note::new(text.as_str(), lines.iter().map(|l| (*l).clone()).collect()).unwrap();
        AddCheckpoint::body(TreeSize(0), &ConsistencyProof::default(), &note)
    };
    for lines in [&[&one][..], &[&one, &one]] {
        let answer = witness.add_checkpoint(body(lines).as_bytes(), NOW);
        assert!(matches!(answer, Answer::NotSigned(NotSigned::TooFew { have: 1, need: 2 })), "{answer:?}");
    }
    // A known key's bad line spoils the note, whatever else is there (C2SP signed-note).
    let mut bad = two.clone();
    bad.bytes[0] ^= 1;
    assert_eq!(witness.add_checkpoint(body(&[&one, &bad]).as_bytes(), NOW).status(), 403);
    assert_eq!(witness.add_checkpoint(body(&[&one, &two]).as_bytes(), NOW).status(), 200);
}

#[test]
fn forks_are_kept_with_both_checkpoints() {
    let log = TestLog::new(100, "log");
    let dir = made(&log);
    let witness = open(dir.path());
    assert_eq!(witness.add_checkpoint(log.request(0, 10).as_bytes(), NOW).status(), 200);
    let forked = log.forked(7, 100);
    for (body, proven) in [
        // Two roots at one size.
        (forked.request(10, 10), true),
        // A good proof, from another root at the size that was cosigned.
        (forked.request(10, 20), true),
        // A genuine checkpoint under a made-up proof: anybody can send that, and it proves nothing.
        (AddCheckpoint::body(TreeSize(10), &forked.proof(10, 30), &log.note(30)), false),
    ] {
        let answer = witness.add_checkpoint(body.as_bytes(), NOW);
        let fork = answer.fork().unwrap();
        assert_eq!(fork.proven, proven, "{answer:?}");
        let kept = fork.kept.clone().unwrap();
        assert_eq!(std::fs::read(kept.join("request")).unwrap(), body.as_bytes());
        // Each of the two is signed by the log: that is what convicts it.
        let before = Note::parse(&std::fs::read(kept.join("cosigned")).unwrap()).unwrap();
        let offered = AddCheckpoint::parse(body.as_bytes()).unwrap();
        for note in [&before, &offered.note] {
            assert!(note.verified_by(&[log.key.verifier_key()]).is_ok());
        }
        assert_eq!(Checkpoint::parse(before.text()).unwrap().size, TreeSize(10));
    }
    assert_eq!(witness.counts.forks.load(Ordering::Relaxed), 2);
    // The log that was first goes on being cosigned.
    assert_eq!(witness.add_checkpoint(log.request(10, 20).as_bytes(), NOW).status(), 200);
}

/// Fails one step of every write, before or after it happened, then restarts: no cosignature has left, what is remembered is the
/// old checkpoint or the new one, and the witness goes on from there.
#[test]
fn a_write_that_fails_anywhere_sends_no_cosignature() {
    let log = TestLog::new(100, "log");
    for step in [Step::Write, Step::Sync, Step::Rename, Step::SyncFolder] {
        for when in [When::Before, When::After] {
            let dir = made(&log);
            let broken = Arc::new(AtomicBool::new(false));
            let breaks = Arc::clone(&broken);
            let disk = Disk::failing(move |at, at_when| {
                let fails = breaks.load(Ordering::Relaxed) && (at, at_when) == (step, when);
                if fails { Err(std::io::Error::other("the test's")) } else { Ok(()) }
            });
            let witness = open_with(dir.path(), disk).unwrap();
            assert_eq!(witness.add_checkpoint(log.request(0, 10).as_bytes(), NOW).status(), 200);
            broken.store(true, Ordering::Relaxed);
            let answer = witness.add_checkpoint(log.request(10, 20).as_bytes(), NOW);
            assert!(
                matches!(answer, Answer::Failed(StateError::Disk { .. })),
                "{step:?} {when:?}: {answer:?}"
            );
            drop(witness);
            let witness = open(dir.path());
            let at = held(&witness).unwrap();
            let renamed = (step, when) == (Step::Rename, When::After) || step == Step::SyncFolder;
            assert_eq!(at, if renamed { 20 } else { 10 }, "{step:?} {when:?}");
            assert_eq!(witness.add_checkpoint(log.request(at, 30).as_bytes(), NOW).status(), 200);
        }
    }
}

/// The order that makes it safe: the file is on the disk before its name is taken, and its name before the answer.
#[test]
fn it_is_durable_before_the_answer() {
    let log = TestLog::new(20, "log");
    let dir = made(&log);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let disk = Disk::failing(move |step, when| {
        if when == When::After {
            seen.lock().unwrap().push(step);
        }
        Ok(())
    });
    let witness = open_with(dir.path(), disk).unwrap();
    assert_eq!(witness.add_checkpoint(log.request(0, 10).as_bytes(), NOW).status(), 200);
    assert_eq!(*steps.lock().unwrap(), [Step::Write, Step::Sync, Step::Rename, Step::SyncFolder]);
}

#[test]
fn a_lost_or_damaged_memory_stops_the_witness() {
    let log = TestLog::new(20, "log");
    let dir = made(&log);
    let witness = open(dir.path());
    assert_eq!(witness.add_checkpoint(log.request(0, 10).as_bytes(), NOW).status(), 200);
    // One process at a time.
    assert!(matches!(open_with(dir.path(), Disk::default()), Err(StateError::Locked(_))));
    drop(witness);
    let file = dir.path().join("w/logs").join(log_id(&origin()).to_string()).join("cosigned");
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    // Its size, 10, becomes 11: only the own cosignature tells.
    flipped[ORIGIN.len() + 2] ^= 1;
    for bytes in [&flipped[..], &good[..good.len() / 2], b""] {
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(open_with(dir.path(), Disk::default()), Err(StateError::Damaged(_))));
    }
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(open_with(dir.path(), Disk::default()), Err(StateError::Unknown(_))));
    std::fs::write(&file, &good).unwrap();
    assert_eq!(held(&open(dir.path())), Some(10));
    // Nor does a second `add-log` begin it anew, or leave a configuration that does not load.
    assert!(super::add_log(&dir.path().join("w"), log.document().log.remove(0)).is_err());
    assert_eq!(held(&open(dir.path())), Some(10));
    let store = Store::open(&dir.path().join("w"), Disk::default()).unwrap();
    assert!(matches!(store.begin(&origin()), Err(StateError::Exists(_))));
}

/// Requests that race: each answer is a size above the one before it, and no size is cosigned with two roots.
#[test]
fn races_never_roll_back() {
    let log = Arc::new(TestLog::new(64, "log"));
    let dir = made(&log);
    let witness = Arc::new(open(dir.path()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (log, witness) = (Arc::clone(&log), Arc::clone(&witness));
            std::thread::spawn(move || {
                let mut old = 0;
                while old < 64 {
                    let new = (old + 3).min(64);
                    match witness.add_checkpoint(log.request(old, new).as_bytes(), NOW) {
                        Answer::Cosigned(_) => old = new,
                        Answer::Conflict(size) => {
                            assert!(size.0 >= old, "it went back from {old} to {size}");
                            old = size.0;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(held(&witness), Some(64));
}

#[tokio::test]
async fn over_http_it_is_what_the_specification_says() {
    let log = TestLog::new(20, "log");
    let dir = made(&log);
    let witness = Arc::new(open(dir.path()));
    let key = witness.key().verifier_key();
    let router = router(witness);
    let post = |body: String| {
        let request = Request::post("/add-checkpoint").body(Body::from(body)).unwrap();
        oneshot(router.clone(), request)
    };
    let get = |path: &str| oneshot(router.clone(), Request::get(path).body(Body::empty()).unwrap());
    let last = format!("/{}/checkpoint", log_id(&origin()));
    assert_eq!(get(&last).await.status(), StatusCode::NOT_FOUND);

    let ok = post(log.request(0, 10)).await;
    assert_eq!(ok.status(), StatusCode::OK);
    let text = String::from_utf8(ok.body().to_vec()).unwrap();
    assert!(text.starts_with("\u{2014} witness.example/w1 ") && text.ends_with('\n'), "{text:?}");
    let note = Note::parse(format!("{}\n{text}", log.note(10).text()).as_bytes()).unwrap();
    assert!(note.verified_by(std::slice::from_ref(&key)).is_ok());

    let conflict = post(log.request(5, 15)).await;
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    assert_eq!(conflict.headers()["content-type"], "text/x.tlog.size");
    assert_eq!(&conflict.body()[..], b"10\n");
    let fork = post(log.forked(7, 20).request(10, 10)).await;
    assert_eq!((fork.status(), &fork.body()[..]), (StatusCode::CONFLICT, &b"10\n"[..]));

    assert_eq!(
        post("x".repeat(super::request::REQUEST_BYTES_MAX + 1)).await.status(),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(post(TestLog::new(20, "log").request(10, 20)).await.status(), StatusCode::FORBIDDEN);
    let unknown = log.request(10, 20).replace(ORIGIN, "example.com/other");
    assert_eq!(post(unknown).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(post(log.forked(7, 20).request(10, 20)).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(get("/add-checkpoint").await.status(), StatusCode::METHOD_NOT_ALLOWED);

    let kept = get(&last).await;
    let kept = Note::parse(kept.body()).unwrap();
    assert_eq!(kept.verified_by(&[key, log.key.verifier_key()]).unwrap().len(), 2);
    assert_eq!(get("/healthz").await.status(), StatusCode::OK);
    let metrics = get("/metrics").await;
    let metrics = String::from_utf8(metrics.body().to_vec()).unwrap();
    for line in [
        "quorate_witness_answers_total{status=\"200\"} 1",
        "quorate_witness_answers_total{status=\"409\"} 2",
        "quorate_witness_forks_total 2",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

/// The feeder's side: a 200 counts by its cosignature alone, and whatever else is no answer is an error, not a loop.
#[tokio::test]
async fn a_witness_that_answers_nonsense_is_not_believed() {
    use super::feed::{Fed, FeedError, WitnessPeer, kept, submit};
    use crate::store::{Mirror, StoredCheckpoint};
    let log = TestLog::new(20, "log");
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::at(dir.path());
    let stored = StoredCheckpoint::parse(log.note(10).to_string().as_bytes()).unwrap();
    let own = SigningKey::generate(KeyName::new("w.example/1").unwrap(), KeyKind::CosignatureV1).unwrap();
    let stranger =
        SigningKey::generate(KeyName::new("w.example/1").unwrap(), KeyKind::CosignatureV1).unwrap();
    let line = |key: &SigningKey, text: &str| {
        let note = Note::new(text, vec![key.cosign(text, NOW)]).unwrap().to_string();
        note[text.len() + 1..].to_owned()
    };
    let (text, other) = (log.note(10).text().to_owned(), log.note(11).text().to_owned());
    let good = line(&own, &text);
    let answer = async |status: u16, body: String| {
        let status = StatusCode::from_u16(status).unwrap();
        let router = axum::Router::new().fallback(async move || (status, body));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let peer = WitnessPeer { url, key: own.verifier_key(), feeder: None, feeds: true };
        let fed = submit(&crate::fetch::Client::new(), &peer, &mirror, &stored).await;
        server.abort();
        (fed, kept(&peer, &mirror).unwrap())
    };
    for (status, body, expected) in [
        (200, line(&own, &other), "does not verify"),
        (200, line(&stranger, &text), "no known key"),
        (200, String::new(), "the witness's cosignature"),
        (409, "x\n".into(), "409 without a size"),
        (409, "0\n".into(), "409 with the size it was given"),
        (403, "no\u{7} thanks\n".into(), "403: no thanks"),
        (500, String::new(), "500"),
    ] {
        let (fed, kept) = answer(status, body).await;
        let error: FeedError = fed.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected:?} in {error}");
        assert_eq!(kept, None);
    }
    assert_eq!(answer(409, "11\n".into()).await.0.unwrap(), Fed::Ahead(TreeSize(11)));
    assert_eq!(answer(422, String::new()).await.0.unwrap(), Fed::Inconsistent(TreeSize(0)));
    // Lines of strangers beside the right one are ignored, and not kept.
    let (fed, kept) = answer(200, line(&stranger, &text) + &good).await;
    let Fed::Cosigned(note) = fed.unwrap() else { panic!("it is cosigned") };
    assert_eq!(note.signatures().len(), 2);
    assert_eq!(kept.unwrap().note, note);
}

/// Requests that never arrive hold the witness up for their time, and no longer: each of these would take a place for ever.
#[tokio::test]
async fn who_sends_slowly_or_nothing_is_cut_off() {
    use super::serve::{Bounds, serve};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    const HEAD: &[u8] = b"POST /add-checkpoint HTTP/1.1\r\nhost: w\r\n";
    let log = TestLog::new(20, "log");
    let dir = made(&log);
    let (head, connection) = (Duration::from_millis(300), Duration::from_millis(900));
    let bounds = Bounds { connections: 4, head, connection };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, router(Arc::new(open(dir.path()))), bounds, async {
        let _asked = stopped.await;
    }));
    let connect = async || TcpStream::connect(at).await.unwrap();
    // Ended by the other side, whatever it said before.
    let ends = async |mut tcp: TcpStream| {
        let mut said = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), tcp.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "it is still held");
        String::from_utf8(said).unwrap()
    };
    for round in 0..2 {
        let begun = std::time::Instant::now();
        let silent = connect().await;
        let mut half = connect().await;
        half.write_all(HEAD).await.unwrap();
        // A byte now and then: the time is the whole head's.
        let mut trickle = connect().await;
        let trickling = tokio::spawn(async move {
            for byte in HEAD.iter().cycle() {
                if trickle.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        });
        // One request, and then nothing.
        let mut idle = connect().await;
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: w\r\n\r\n").await.unwrap();
        // All places are taken. The fifth is served when they are given up.
        let client = crate::fetch::Client::new();
        let url = format!("http://{at}/healthz");
        let fifth = tokio::time::timeout(Duration::from_secs(20), client.get(&url, 64)).await;
        assert_eq!(&fifth.expect("it waits for ever").unwrap()[..], b"ok\n", "{round}");
        assert!(begun.elapsed() >= head, "it was given a place that there is not");
        assert!(!ends(silent).await.contains("200"));
        assert!(!ends(half).await.contains("200"));
        assert!(ends(idle).await.starts_with("HTTP/1.1 200"));
        tokio::time::timeout(Duration::from_secs(20), trickling)
            .await
            .expect("it trickles for ever")
            .unwrap();
    }
    // One that asks without end is ended too, after an answer.
    let mut busy = connect().await;
    let asking = async {
        let mut answers = 0;
        let mut buffer = [0; 4096];
        loop {
            let sent = busy.write_all(b"GET /healthz HTTP/1.1\r\nhost: w\r\n\r\n").await;
            match (sent, busy.read(&mut buffer).await) {
                (Ok(()), Ok(read)) if read > 0 => answers += 1,
                _ => break answers,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answers = tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it asks for ever");
    assert!(answers > 0);
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), served).await.expect("it stops").unwrap();
}
