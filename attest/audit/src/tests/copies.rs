//! Mirroring, from a static web server over a mirror.
use super::busy::{busy, conspired};
use crate::fetch::Client;
use crate::finding::{Error, Finding, Place};
use crate::mirror::{MirrorError, Mirrored, Source, mirror_log};
use crate::replay::Options;
use crate::store::{Mirror, tile_path};
use crate::testing::mirror_of;
use crate::verify::{Verdict, verify};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quorate_core::testing::Mesh;
use quorate_core::tlog::{TileKind, TreeSize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Serves a folder; after so many answers, none.
#[derive(Clone)]
struct Site {
    dir: Arc<std::sync::Mutex<PathBuf>>,
    answers: Arc<AtomicI64>,
}

async fn serve(State(site): State<Site>, request: Request) -> Response {
    if site.answers.fetch_sub(1, Ordering::SeqCst) <= 0 {
        return StatusCode::FORBIDDEN.into_response();
    }
    let file = site.dir.lock().unwrap().join(request.uri().path().trim_start_matches('/'));
    std::fs::read(file).map_or_else(|_| StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

struct Lab {
    runtime: tokio::runtime::Runtime,
    site: Site,
    url: String,
}

impl Lab {
    fn new(dir: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let site = Site {
            dir: Arc::new(std::sync::Mutex::new(dir.to_owned())),
            answers: Arc::new(AtomicI64::new(i64::MAX)),
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(site.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { runtime, site, url }
    }
    fn serve(&self, dir: &Path) {
        *self.site.dir.lock().unwrap() = dir.to_owned();
    }
    fn mirror(&self, into: &Path) -> Result<Mirrored, MirrorError> {
        self.mirror_also(into, &[])
    }
    fn mirror_also(&self, into: &Path, also: &[&str]) -> Result<Mirrored, MirrorError> {
        let urls =
            std::iter::once(self.url.as_str()).chain(also.iter().copied()).map(str::to_owned).collect();
        let source = Source { urls, genesis: None, connections: 4 };
        let mirror = Mirror::at(into);
        self.runtime.block_on(mirror_log(&Client::new(), &source, &mirror, &|_, _| ()))
    }
}

fn holds(mesh: &Mesh, dir: &Path) {
    let mirror = Mirror::open(dir).unwrap();
    let verdict = verify(&mirror, mesh.fleet.cluster(), Options { threads: 2 }, |_, _| ()).unwrap();
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict:?}");
}

fn finding(result: Result<Mirrored, MirrorError>) -> Finding {
    match result {
        Err(MirrorError::Audit(Error::Found(finding))) => *finding,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mirror_resumes_follows_and_refuses() {
    let mut mesh = busy();
    let [first, second, copy] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    mirror_of(&mesh, first.path(), &[]);
    let lab = Lab::new(first.path());

    // Cut off again and again, until it is through; nothing calls itself a mirror before.
    let mut runs = 0;
    let mirrored = loop {
        runs += 1;
        lab.site.answers.store(4, Ordering::SeqCst);
        match lab.mirror(copy.path()) {
            Ok(mirrored) => break mirrored,
            Err(MirrorError::Fetch(_)) => {
                assert!(Mirror::open(copy.path()).is_err(), "a half mirror shows a checkpoint")
            }
            Err(other) => panic!("{other}"),
        }
    };
    lab.site.answers.store(i64::MAX, Ordering::SeqCst);
    assert!(runs > 2, "{runs} runs: nothing was resumed");
    assert!(!copy.path().join("drafts").exists());
    assert_eq!((mirrored.genesis, mirrored.before), (mesh.fleet.cluster(), TreeSize(0)));
    holds(&mesh, copy.path());
    let again = lab.mirror(copy.path()).unwrap();
    assert_eq!((again.before, again.size, again.source_lags), (mirrored.size, mirrored.size, false));

    // The log grows.
    for _ in 0..300 {
        mesh.apply(Vec::new());
    }
    mirror_of(&mesh, second.path(), &[]);
    lab.serve(second.path());
    let grown = lab.mirror(copy.path()).unwrap();
    assert_eq!((grown.before, grown.size.0), (mirrored.size, mesh.log.leaves.len() as u64));
    holds(&mesh, copy.path());
    let old = tile_path(TileKind::Entries, mirrored.size.0 / 256, mirrored.size).unwrap();
    assert!(!Mirror::at(copy.path()).tile_file(&old).exists(), "the old partial bundle is gone");

    // A node that is behind agrees, and takes nothing away.
    lab.serve(first.path());
    let lagging = lab.mirror(copy.path()).unwrap();
    assert_eq!((lagging.size, lagging.source_lags), (grown.size, true));
    // A mirror is a log again.
    let third = tempfile::tempdir().unwrap();
    lab.serve(copy.path());
    lab.mirror(third.path()).unwrap();
    holds(&mesh, third.path());
}

#[test]
fn another_history_is_refused_and_kept_as_evidence() {
    let mesh = busy();
    let [honest, forked, copy] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    mirror_of(&mesh, honest.path(), &[]);
    let lab = Lab::new(honest.path());
    lab.mirror(copy.path()).unwrap();
    // All nodes sign another history: as long, longer, shorter.
    let mut leaves = mesh.log.leaves.clone();
    leaves[40][2] ^= 1;
    for (what, leaves) in [
        ("as long", leaves.clone()),
        ("longer", [&leaves[..], &leaves[1..50]].concat()),
        ("shorter", leaves[..300].to_vec()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        conspired(&mesh, &leaves, dir.path());
        lab.serve(dir.path());
        let found = finding(lab.mirror(copy.path()));
        assert_eq!((found.place, found.fault.code()), (Place::Checkpoint, "fork"), "{what}");
    }
    assert_eq!(std::fs::read_dir(copy.path().join("forks")).unwrap().count(), 3);
    // What was there stays whole.
    holds(&mesh, copy.path());
    drop(forked);
}

#[test]
fn what_does_not_fit_is_never_taken() {
    let mesh = busy();
    let honest = tempfile::tempdir().unwrap();
    let mirror = mirror_of(&mesh, honest.path(), &[]);
    let size = mirror.newest().unwrap().size();
    let lab = Lab::new(honest.path());
    let file = |kind, index| mirror.tile_file(&tile_path(kind, index, size).unwrap());
    let blob = std::fs::read_dir(honest.path().join("blob")).unwrap().map(|e| e.unwrap().path());
    let log = blob.into_iter().find(|p| !std::fs::read(p).unwrap().starts_with(b"format")).unwrap();
    for (file, code) in [
        (file(TileKind::Hashes(0), 0), "tile_root"),
        (file(TileKind::Hashes(0), 1), "root"),
        (file(TileKind::Hashes(1), 0), "root"),
        (file(TileKind::Entries, 0), "leaf_hash"),
        (file(TileKind::Entries, 1), "leaf_hash"),
        (log.clone(), "other_digest"),
        (mirror.genesis_path(), "other_origin"),
    ] {
        let bytes = std::fs::read(&file).unwrap();
        let mut flipped = bytes.clone();
        let at = bytes.len() / 2;
        flipped[at] ^= 1;
        std::fs::write(&file, flipped).unwrap();
        let copy = tempfile::tempdir().unwrap();
        let found = finding(lab.mirror(copy.path()));
        let genesis = file == mirror.genesis_path();
        assert!(found.fault.code() == code || genesis, "{}: {found}", file.display());
        assert!(Mirror::open(copy.path()).is_err());
        // Another source has it right.
        if code != "root" && !genesis {
            let sound = tempfile::tempdir().unwrap();
            mirror_of(&mesh, sound.path(), &[]);
            let other = Lab::new(sound.path());
            lab.mirror_also(copy.path(), &[&other.url]).unwrap();
            holds(&mesh, copy.path());
        }
        std::fs::write(&file, bytes).unwrap();
    }
    // A blob that is not to be had: all the rest comes, and it says which and where.
    std::fs::remove_file(&log).unwrap();
    let copy = tempfile::tempdir().unwrap();
    assert!(matches!(lab.mirror(copy.path()), Err(MirrorError::Blobs { .. })));
    // Served under another history's checkpoint.
    let mut leaves = mesh.log.leaves.clone();
    leaves[40][2] ^= 1;
    let other = tempfile::tempdir().unwrap();
    let forged = conspired(&mesh, &leaves, other.path());
    std::fs::copy(forged.checkpoint_path(), mirror.checkpoint_path()).unwrap();
    assert_eq!(finding(lab.mirror(tempfile::tempdir().unwrap().path())).fault.code(), "root");
}
