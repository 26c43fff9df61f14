//! The witness as a process that is killed again and again while it cosigns: what it told anybody it remembers, it never goes
//! back, and it cosigns no second root at one size.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code: a broken invariant should stop the test")]
use quorate_audit::fetch::Client;
use quorate_audit::witness::key::SigningKey;
use quorate_audit::witness::request::AddCheckpoint;
use quorate_audit::witness::state::log_id;
use quorate_core::testing::MemoryTree;
use quorate_core::tlog::{
    Checkpoint, ConsistencyProof, KeyKind, KeyName, Note, Origin, TreeSize, VerifierKey, prove_consistency,
    root_at,
};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const ORIGIN: &str = "example.com/log";
const LEAVES: u64 = 4000;

/// Kills its process, whatever becomes of the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn audit(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate-audit")).args(args).output().unwrap()
}

fn line(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().lines().next().unwrap().to_owned()
}

fn serve(dir: &Path) -> (Process, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate-audit"))
        .args(["witness", "serve", dir.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let url = first.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{first:?}")).to_owned();
    (Process(child), url)
}

fn note(tree: &MemoryTree, key: &SigningKey, size: u64) -> Note {
    let (origin, size) = (Origin::new(ORIGIN).unwrap(), TreeSize(size));
    let text = Checkpoint { origin, size, root: root_at(tree, size).unwrap() }.body();
    Note::new(text.as_str(), vec![key.sign_note(&text)]).unwrap()
}

fn request(tree: &MemoryTree, key: &SigningKey, old: u64, new: u64) -> String {
    let proof = match old {
        0 => ConsistencyProof::default(),
        old => prove_consistency(tree, TreeSize(old), TreeSize(new)).unwrap(),
    };
    AddCheckpoint::body(TreeSize(old), &proof, &note(tree, key, new))
}

#[tokio::test]
async fn a_witness_that_is_killed_remembers_what_it_told() {
    let dir = tempfile::tempdir().unwrap();
    let (w, key_file) = (dir.path().join("w"), dir.path().join("log.key"));
    let (w_arg, key_arg) = (w.to_str().unwrap(), key_file.to_str().unwrap());
    let own: VerifierKey =
        line(&audit(&["witness", "init", w_arg, "--name", "w.example/1"])).parse().unwrap();
    let log_key = line(&audit(&["witness", "keygen", key_arg, "--name", ORIGIN]));
    line(&audit(&["witness", "add-log", w_arg, "--origin", ORIGIN, "--key", &log_key]));
    // Nothing is ever made twice.
    assert_eq!(audit(&["witness", "init", w_arg, "--name", "w.example/1"]).status.code(), Some(1));
    assert_eq!(audit(&["witness", "keygen", key_arg, "--name", ORIGIN]).status.code(), Some(1));
    let config = std::fs::read_to_string(w.join("witness.toml")).unwrap();
    std::fs::write(w.join("witness.toml"), config.replace("127.0.0.1:7300", "127.0.0.1:0")).unwrap();

    let key = SigningKey::read(&key_file, KeyKind::Ed25519).unwrap();
    assert_eq!(key.verifier_key().name(), &KeyName::new(ORIGIN).unwrap());
    let (mut tree, mut fork) = (MemoryTree::default(), MemoryTree::default());
    for i in 0..LEAVES {
        tree.push(format!("leaf {i}").as_bytes());
        fork.push(format!("fork {i}").as_bytes());
    }
    let client = Client::new();
    let (mut told, mut kills) = (0, 0);
    while kills < 6 {
        let (process, url) = serve(&w);
        let last = format!("{url}/{}/checkpoint", log_id(&Origin::new(ORIGIN).unwrap()));
        let mut at = match client.get(&last, 1 << 16).await {
            Ok(bytes) => {
                let kept = Note::parse(&bytes).unwrap();
                kept.verified_by(std::slice::from_ref(&own)).unwrap();
                Checkpoint::parse(kept.text()).unwrap().size.0
            }
            Err(error) => {
                assert!(error.is_not_found() && told == 0, "{error}");
                0
            }
        };
        assert!(at >= told, "it told of {told} and remembers {at}");
        let post = |body: String| {
            let url = format!("{url}/add-checkpoint");
            let client = client.clone();
            async move { client.post(&url, "text/plain", body.into(), 1 << 16).await }
        };
        if at > 0 {
            let (status, body) = post(request(&fork, &key, at, at)).await.unwrap();
            assert_eq!((status.as_u16(), body.as_ref()), (409, format!("{at}\n").as_bytes()));
        }
        // Killed after another number of answers each time, while the next request is on its way.
        let (answered, mut answers) = tokio::sync::watch::channel(at);
        let last = at + 1 + 5 * kills;
        let killer = tokio::spawn(async move {
            answers.wait_for(|at| *at >= last).await.unwrap();
            tokio::time::sleep(Duration::from_micros(300 * kills)).await;
            drop(process);
        });
        while let Ok((status, _)) = post(request(&tree, &key, at, at + 1)).await {
            assert_eq!(status, 200);
            at += 1;
            told = at;
            answered.send_replace(at);
        }
        killer.await.unwrap();
        kills += 1;
    }
    assert!(told > 0 && told < LEAVES - 1, "it was killed while it cosigned: {told}");
}
