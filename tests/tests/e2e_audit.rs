//! The auditor's programs beside a live mesh: a monitor that follows every node, a witness that it feeds, and the report on a
//! run in which a node lapsed, another machine posed as a node, the policy changed, and a client lied about its tokens.
//!
//! Real processes and software TPMs; needs the binaries. What the auditor says is compared with what this test did.
//!
//! **These bite**: before each event the monitor's file is searched for it too, and has nothing; the honest twin of each request
//! that the witness refuses is taken last.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "test code")]
use anyhow::{Context as _, ensure};
use quorate_audit::fetch::Client as Http;
use quorate_audit::monitor::alarm::{Alarm, Kind, Turn};
use quorate_audit::store::{Mirror, StoredCheckpoint};
use quorate_audit::witness::feed::{self, Fed, WitnessPeer};
use quorate_audit::witness::key::SigningKey;
use quorate_audit::witness::request::AddCheckpoint;
use quorate_audit::witness::state::log_id;
use quorate_cluster::mesh::bin_dir;
use quorate_core::command::{Alarm as Raised, ClientCommand, Command, Ended, NodeCommand, Report};
use quorate_core::crypto::encode;
use quorate_core::ids::{NodeId, RequestId, RouteId};
use quorate_core::leaf::{AnomalyRule, LeafBody, Outcome};
use quorate_core::tlog::{
    Checkpoint, ConsistencyProof, KeyKind, Note, TreeSize, VerifierKey, prove_consistency,
};
use quorate_tests::lab::{Key, Make};
use quorate_tests::raw::{RawClient, Ready, Verdict};
use quorate_tests::tlog::{checkpoint, cosigners};
use quorate_tests::{Lab, Shared, Tlog, run, wait_for};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

static LAB: Shared = Shared::new(Make { name: "audit", provider: &[], key: Key::None });

/// For something to show in the log, and in the monitor.
const SHOWS: Duration = Duration::from_secs(30);
const BODY: &[u8] = br#"{"model":"demo-chat","messages":[{"role":"user","content":"hi"}],"max_tokens":3}"#;

/// `quorate-audit`, told the lab's genesis.
fn audit(lab: &Lab) -> anyhow::Result<Process> {
    let mut command = Process::new(bin_dir()?.join("quorate-audit"));
    command.env("QUORATE_GENESIS", &lab.mesh.genesis);
    Ok(command)
}

/// What a command prints, and its exit code.
fn told(command: &mut Process) -> anyhow::Result<(i32, String)> {
    let output = command.stderr(Stdio::inherit()).output()?;
    Ok((output.status.code().context("it was killed")?, String::from_utf8(output.stdout)?))
}

/// A process that ends with the test. Its pid lies where the lab's guardian looks, should the test be killed.
struct Running {
    child: Child,
    pid: PathBuf,
}

impl Running {
    fn start(lab: &Lab, name: &str, command: &mut Process) -> anyhow::Result<Self> {
        let pid = lab.mesh.dir.join(format!("{name}.pid"));
        let child = command.stdin(Stdio::null()).spawn()?;
        fs::write(&pid, child.id().to_string())?;
        Ok(Self { child, pid })
    }

    /// SIGTERM; gives the exit code.
    fn stop(mut self) -> anyhow::Result<i32> {
        run(Process::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let ended = wait_for("it ends", SHOWS, || self.child.try_wait()?.context("it runs"))?;
        ended.code().context("killed")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        let _gone = fs::remove_file(&self.pid);
    }
}

/// A witness of ours that listens, and what it takes to feed it.
struct Witness {
    process: Running,
    url: String,
    key: String,
    feeder: PathBuf,
}

/// Makes and starts a witness that knows the lab's log by a feeder's key.
fn witness(lab: &Lab) -> anyhow::Result<Witness> {
    let (folder, feeder) = (lab.mesh.dir.join("witness"), lab.mesh.dir.join("feeder.key"));
    let line = |command: &mut Process| {
        anyhow::Ok(run(command)?.lines().next().context("it says nothing")?.to_owned())
    };
    let own =
        line(audit(lab)?.args(["witness", "init"]).arg(&folder).args(["--name", "witness.example/w1"]))?;
    let feeds =
        line(audit(lab)?.args(["witness", "keygen"]).arg(&feeder).args(["--name", "quorate/test/feeder"]))?;
    let origin = origin(lab)?;
    run(audit(lab)?.args(["witness", "add-log"]).arg(&folder).args(["--origin", &origin, "--key", &feeds]))?;
    let config = fs::read_to_string(folder.join("witness.toml"))?;
    fs::write(folder.join("witness.toml"), config.replace("127.0.0.1:7300", "127.0.0.1:0"))?;
    let mut serve = audit(lab)?;
    serve.args(["witness", "serve"]).arg(&folder).stdout(Stdio::piped());
    let mut process = Running::start(lab, "witness", &mut serve)?;
    let mut first = String::new();
    BufReader::new(process.child.stdout.take().context("no output")?).read_line(&mut first)?;
    let url = first.trim().strip_prefix("listening on ").context("it does not listen")?.to_owned();
    Ok(Witness { process, url, key: own, feeder })
}

/// First line of the log's checkpoints.
fn origin(lab: &Lab) -> anyhow::Result<String> {
    let (_, note) = checkpoint(&lab.mesh.sites[0].http)?;
    Ok(note.text().lines().next().context("an empty note")?.to_owned())
}

/// `monitor DIR` over all nodes.
fn monitor(lab: &Lab, folder: &Path) -> anyhow::Result<Process> {
    let mut command = audit(lab)?;
    command.arg("monitor").arg(folder).arg("--json");
    for site in &lab.mesh.sites {
        command.args(["--node", &format!("http://{}", site.http)]);
    }
    Ok(command)
}

/// Alarms that a monitor printed so far, whole lines.
fn alarms(file: &Path) -> anyhow::Result<Vec<Alarm>> {
    let text = fs::read_to_string(file)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn find(file: &Path, kind: Kind, turn: Turn, subject: Option<&str>) -> anyhow::Result<Option<Alarm>> {
    let fits = |a: &Alarm| {
        a.kind == kind && a.state == turn && subject.is_none_or(|s| a.subject.as_deref() == Some(s))
    };
    Ok(alarms(file)?.into_iter().find(fits))
}

/// An honest request of a client that then says how many tokens it got.
fn request_with_tokens(lab: &Lab, tokens_out: u64) -> anyhow::Result<RequestId> {
    let raw = RawClient::new(lab.trust("app")?)?;
    let directory = lab.client("app")?.directory();
    let (name, custodian) = (RouteId::new("provider")?, quorate_core::ids::Custodian::new("developers")?);
    let (relay, keyer) = directory.pairs(&name, &custodian)[0];
    let route = directory.route(&name).context("no route")?.document.clone();
    let pool = raw.pool(&directory, "provider", relay, keyer)?;
    let grpc = |n: NodeId| lab.mesh.site(n.0).map(|s| s.grpc.clone());
    let (relay, keyer) = (grpc(relay)?, grpc(keyer)?);
    lab.block(async {
        let (relay, keyer) = (raw.connect(&relay).await?, raw.connect(&keyer).await?);
        let opened = raw.submit(&relay, ClientCommand::OpenPool(pool.clone())).await?;
        ensure!(matches!(opened, Verdict::Done(Outcome::PoolOpened, _)), "{opened:?}");
        let mut ready = Ready::connect((&pool, &route), &relay, &keyer, BODY.len() as u64).await?;
        let a = ready.authorise(&pool, directory.verified().policy.version)?;
        let command = encode(&raw.sign(ClientCommand::Authorise(a.clone())));
        ready.request(command, ready.head.clone()).await;
        ready.send_body(BODY).await?;
        let end = ready.tunnel.end().await?;
        ensure!(end == "closed: complete", "{end}");
        let report = Report {
            request: a.request,
            status: 200,
            error_form: false,
            ended: Ended::Complete,
            tokens_in: 1,
            tokens_cached: 0,
            tokens_out,
            same_as: None,
        };
        let said = raw.submit(&relay, ClientCommand::Report(vec![report])).await?;
        ensure!(
            matches!(&said, Verdict::Done(Outcome::Reported(refused), _) if refused.is_empty()),
            "{said:?}"
        );
        Ok(a.request)
    })
}

/// Waits until a leaf from `from` on says what is looked for; the log's size then.
fn leaf(lab: &Lab, but: u64, from: u64, what: &str, is: impl Fn(&LeafBody) -> bool) -> anyhow::Result<u64> {
    let http = lab.http_but(but).remove(0);
    wait_for(&format!("a leaf that says {what}"), SHOWS, || {
        let tlog = Tlog::read(&http)?;
        ensure!(tlog.bodies(from).any(&is), "not yet");
        Ok(tlog.leaves.len() as u64)
    })
}

#[test]
fn a_live_run_is_followed_witnessed_and_reported() {
    LAB.run("a_live_run_is_followed_witnessed_and_reported", |lab| {
        let dir = lab.mesh.dir.clone();
        let (folder, said) = (dir.join("monitored"), dir.join("monitor.jsonl"));
        let witness = witness(lab)?;
        let mut follows = monitor(lab, &folder)?;
        follows.args(["--every", "1", "--patience", "2", "--witness-behind", "20"]);
        follows.args(["--witness", &witness.url, "--witness-key", &witness.key]);
        follows.arg("--feed-key").arg(&witness.feeder).stdout(fs::File::create(&said)?);
        let follows = Running::start(lab, "monitor", &mut follows)?;
        let client = lab.client("app")?;
        let node = lab.leader(&client)? % 4 + 1;
        let (name, url) = (format!("node-{node}"), format!("http://{}", lab.mesh.site(node)?.http));
        let shows = |kind: Kind, turn: Turn, subject: Option<&str>| {
            wait_for(&format!("the monitor says {kind:?} {turn:?} of {subject:?}"), SHOWS, || {
                find(&said, kind, turn, subject)?.context("not yet")
            })
        };
        let not_yet = |kind: Kind| {
            let early = find(&said, kind, Turn::Raised, None)?;
            ensure!(early.is_none(), "{early:?}");
            anyhow::Ok(())
        };
        shows(Kind::Recovered, Turn::Raised, None)?;

        // A lapse, while requests go on; cron, too, says that somebody should look, and goes on saying it.
        not_yet(Kind::Lapsed)?;
        not_yet(Kind::Unreachable)?;
        lab.mesh.kill_node(node)?;
        lab.ask(&client)?;
        let lapsed = leaf(lab, node, 0, "it lapsed", |b| matches!(b, LeafBody::Lapsed { node: n } if n.0 == node))?;
        shows(Kind::Unreachable, Turn::Raised, Some(&url))?;
        let alarm = shows(Kind::Lapsed, Turn::Raised, Some(&name))?;
        ensure!(alarm.leaf.is_some_and(|l| l.0 < lapsed), "{alarm:?}");
        let cron = dir.join("cron");
        for told_before in [false, true] {
            let (code, text) = told(monitor(lab, &cron)?.arg("--once"))?;
            ensure!(code == 4, "{code}: {text}");
            ensure!(text.contains("\"kind\":\"unreachable\"") != told_before, "{text}");
        }

        // Another machine than the admins approved says that it is that node.
        not_yet(Kind::AdmissionRefused)?;
        let site = lab.mesh.site(node)?.clone();
        lab.mesh.tpm(&site, "power-cycle")?;
        lab.mesh.start_node_with(node, &lab.mesh.bin.join("quorated"), &["--danger-extra-extend", "7"])?;
        leaf(lab, node, lapsed, "it was refused", |b| match b {
            LeafBody::Decided { command: Command::Node(n), outcome: Outcome::AlarmRaised } => matches!(
                &n.body,
                NodeCommand::Alarm(Raised::AdmissionRefused { node: n, check }) if n.0 == node && check == "event-log-replay"
            ),
            _ => false,
        })?;
        let alarm = shows(Kind::AdmissionRefused, Turn::Raised, Some(&name))?;
        ensure!(alarm.what.contains("event-log-replay"), "{alarm:?}");
        lab.mesh.kill_node(node)?;
        lab.mesh.tpm(&site, "power-cycle")?;
        lab.mesh.start_node(node)?;
        lab.mesh.wait_all_healthy(quorate_tests::lab::WHOLE)?;
        shows(Kind::Unreachable, Turn::Cleared, Some(&url))?;

        // The admins open a route to a host that no policy named.
        not_yet(Kind::PolicyChanged)?;
        lab.change_policy(|mesh| {
            let flags = ["route", "add", "--name", "second", "--host", "llm.example", "--port", "443"];
            mesh.admin(&[&flags[..], &["--model", "second-chat"]].concat(), &[])
        })?;
        let alarm = shows(Kind::PolicyChanged, Turn::Raised, None)?;
        ensure!(alarm.what.contains("signed by admin") && alarm.what.contains("second to llm.example:443"), "{alarm:?}");
        shows(Kind::NewDestination, Turn::Raised, Some("llm.example:443"))?;

        // A client that had some hundred bytes says that they were a billion tokens; its honest twin before it.
        let honest = request_with_tokens(lab, 3)?;
        let liar = request_with_tokens(lab, 1 << 30)?;
        leaf(lab, node, lapsed, "it does not fit", |b| {
            matches!(b, LeafBody::Anomaly { request, rule: AnomalyRule::TokensExceedBytes } if *request == liar)
        })?;
        shows(Kind::Anomaly, Turn::Raised, Some(&liar.to_string()))?;
        ensure!(find(&said, Kind::Anomaly, Turn::Raised, Some(&honest.to_string()))?.is_none());
        // Nobody lied about history, and the witness kept up.
        for wrong in [Kind::SplitView, Kind::RulesBroken, Kind::Uncertified, Kind::WitnessFailing, Kind::WitnessBehind] {
            not_yet(wrong)?;
        }
        ensure!(follows.stop()? == 0, "asked to stop, it ends well");
        wait_for("cron finds all well", SHOWS, || {
            let (code, text) = told(monitor(lab, &cron)?.arg("--once"))?;
            ensure!(code == 0, "{code}: {text}");
            Ok(())
        })?;

        what_the_witness_took(lab, &folder, &witness)?;
        the_report(lab, node, &liar)?;
        ensure!(witness.process.stop()? == 0);
        Ok(())
    });
}

/// What it cosigned lies beside the monitor's mirror, under the nodes' own signatures; and it takes nothing else.
fn what_the_witness_took(lab: &Lab, folder: &Path, witness: &Witness) -> anyhow::Result<()> {
    let key: VerifierKey = witness.key.parse()?;
    let feeder = SigningKey::read(&witness.feeder, KeyKind::Ed25519)?;
    let peer = WitnessPeer { url: witness.url.clone(), key: key.clone(), feeder: None, feeds: true };
    let kept = feed::kept(&peer, &Mirror::open(folder)?)?.context("nothing was cosigned")?;
    ensure!(kept.note.verified_by(std::slice::from_ref(&key))?.len() == 1);
    let nodes = cosigners(&kept.note).iter().filter(|n| n.starts_with("node-") || n.starts_with('n')).count();
    ensure!(nodes >= 3, "{:?}", cosigners(&kept.note));
    let http = Http::new();
    let last = format!("{}/{}/checkpoint", witness.url, log_id(&kept.checkpoint.origin));
    let held =
        StoredCheckpoint::parse(&lab.block(http.get(&last, 1 << 16))?).ok().context("no checkpoint")?;
    ensure!(held.size() >= kept.size(), "{} then {}", kept.size(), held.size());

    // A newer checkpoint of the live log, as anybody may fetch and submit it.
    let copy = lab.mesh.dir.join("log");
    let mirror = wait_for("the log to grow", SHOWS, || {
        run(audit(lab)?.args(["mirror", &format!("http://{}", lab.mesh.sites[0].http)]).arg(&copy))?;
        let mirror = Mirror::open(&copy)?;
        ensure!(mirror.newest()?.size() > held.size());
        Ok(mirror)
    })?;
    let newest = mirror.newest()?;
    let (old, new) = (held.size(), newest.size());
    let signed = |note: &Note| {
        let lines = note.signatures().iter().cloned().chain([feeder.sign_note(note.text())]).collect();
        Note::new(note.text(), lines)
    };
    let good = signed(&newest.note)?;
    let proof = prove_consistency(&mirror.tree(new), old, new)?;
    let right = AddCheckpoint::body(old, &proof, &good);
    let (first, rest) = right.split_once('\n').context("one line")?;
    let flipped = if rest.starts_with('A') { "B" } else { "A" };
    let wrong = format!("{first}\n{flipped}{}", &rest[1..]);
    let origin = newest.checkpoint.origin.as_str();
    let elsewhere = AddCheckpoint::body(old, &proof, &good).replace(origin, "quorate/elsewhere/00");
    let mut other_root = held.checkpoint.root;
    other_root.0[0] ^= 1;
    let fork = Checkpoint { root: other_root, ..held.checkpoint.clone() }.body();
    let fork = Note::new(fork.as_str(), vec![feeder.sign_note(&fork)])?;
    let before = TreeSize(old.0 - 1);
    let none = ConsistencyProof::default();
    let size = format!("{old}\n");
    for (what, body, status, answer) in [
        ("nonsense", "nonsense".to_owned(), 400, None),
        ("an old size above the new", AddCheckpoint::body(TreeSize(new.0 + 1), &none, &good), 400, None),
        ("a log that it does not know", elsewhere, 404, None),
        ("the nodes' signatures alone", AddCheckpoint::body(old, &proof, &newest.note), 403, None),
        ("another old size", AddCheckpoint::body(before, &proof, &good), 409, Some(&size)),
        ("another root of that size", AddCheckpoint::body(old, &none, &fork), 409, Some(&size)),
        ("a wrong proof", wrong, 422, None),
        ("all of it right", right, 200, None),
    ] {
        let url = format!("{}/add-checkpoint", witness.url);
        let (got, body) = lab.block(http.post(&url, "text/plain", body.into(), 1 << 16))?;
        let text = String::from_utf8_lossy(&body);
        ensure!(got.as_u16() == status, "{what}: {got}, {text}");
        ensure!(answer.is_none_or(|answer| *answer == text), "{what}: {text}");
        println!("a live checkpoint, {what}: {got}");
    }
    let metrics = lab.block(http.get(&format!("{}/metrics", witness.url), 1 << 16))?;
    ensure!(String::from_utf8_lossy(&metrics).contains("quorate_witness_forks_total 1\n"), "{metrics:?}");
    // And by the command, which verifies the mirror first.
    let mut feeds = audit(lab)?;
    feeds.args(["witness", "feed", "--json"]).arg(&copy).arg("--feed-key").arg(&witness.feeder);
    let (code, text) = told(feeds.args(["--witness", &witness.url, "--witness-key", &witness.key]))?;
    ensure!(code == 0 && text.contains("\"outcome\":\"cosigned\""), "{code}: {text}");
    Ok(())
}

/// Part of the page.
fn section<'h>(html: &'h str, id: &str) -> anyhow::Result<&'h str> {
    let begins = html.find(&format!("<section id=\"{id}\">")).with_context(|| format!("no section {id}"))?;
    let part = &html[begins..];
    Ok(&part[..part.find("</section>").context("it never ends")?])
}

/// A copy of the live log holds, and the page about it shows all that was done to the mesh.
fn the_report(lab: &Lab, node: u64, liar: &RequestId) -> anyhow::Result<()> {
    let (copy, page) = (lab.mesh.dir.join("log"), lab.mesh.dir.join("log.html"));
    run(audit(lab)?.args(["mirror", &format!("http://{}", lab.mesh.sites[0].http)]).arg(&copy))?;
    let (code, text) = told(audit(lab)?.arg("verify").arg(&copy))?;
    ensure!(code == 0 && text.starts_with("holds "), "{code}: {text}");
    let (code, text) = told(audit(lab)?.arg("report").arg(&copy).arg("--out").arg(&page))?;
    ensure!(code == 0 && text.contains("everything in this copy holds"), "{code}: {text}");
    let html = fs::read_to_string(&page)?;
    if let Some(kept) = std::env::var_os("QUORATE_SCREENSHOTS") {
        fs::copy(&page, Path::new(&kept).join("live.html"))?;
    }
    let (node, liar) = (format!("node-{node}"), liar.to_string());
    for (what, id, texts) in [
        (
            "the lapse",
            "cluster",
            &["lapsed: no evidence in time</title>", "<td>lapsed: its evidence is too old</td>"][..],
        ),
        ("the lapse", "events", &[&format!("{node} lapsed: no evidence in time, it no longer counts")]),
        ("the refused node", "cluster", &["not admitted by node-", ": event-log-replay</title>"]),
        ("the refused node", "events", &[&format!("{node} was not admitted: event-log-replay")]),
        ("the policy change", "cluster", &["policy 2"]),
        ("the policy change", "policy", &["new route second to llm.example:443", "admin"]),
        ("the anomaly", "events", &["more tokens than the bytes could carry", &liar]),
    ] {
        let part = section(&html, id)?;
        for text in texts {
            ensure!(part.contains(text), "{what}: no {text:?} in {id}: {part}");
        }
    }
    Ok(())
}

/// The PyPI package `aics-witness` 0.1.0 (C2SP tlog-witness v1.1.0, Python 3.12): another project's code takes a live log's checkpoints from
/// ours, and refuses what it should.
#[test]
fn a_witness_of_another_project_cosigns_a_live_log() {
    const TEST: &str = "a_witness_of_another_project_cosigns_a_live_log";
    let Some(program) = foreign() else {
        let how = "aics-witness is not in PATH nor named by QUORATE_AICS_WITNESS (pip install aics-witness)";
        return quorate_tests::skipped(TEST, how);
    };
    LAB.run(TEST, |lab| {
        let (folder, feeder) = (lab.mesh.dir.join("foreign"), lab.mesh.dir.join("foreign-feeder.key"));
        fs::create_dir(&folder)?;
        let config = folder.join("witness.json");
        let theirs = |verb: &str| {
            let mut command = Process::new(&program);
            command.arg(verb).arg("--config").arg(&config);
            command
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let key = run(theirs("init").args(["--name", "witness.example/foreign", "--listen", &listen]))?;
        let key: VerifierKey = key.trim().parse()?;
        let feeds =
            run(audit(lab)?.args(["witness", "keygen"]).arg(&feeder).args(["--name", "quorate/test/f2"]))?;
        run(theirs("add-log").args(["--origin", &origin(lab)?, "--vkey", feeds.trim()]))?;
        let _serves = Running::start(lab, "foreign", &mut theirs("serve"))?;
        wait_for("it listens", SHOWS, || Ok(std::net::TcpStream::connect(&listen)?))?;

        let url = format!("http://{listen}");
        let copy = lab.mesh.dir.join("log-for-foreign");
        let mut size = TreeSize::ZERO;
        // The first without a proof, the others with one.
        for round in 0..3 {
            wait_for("the log to grow", SHOWS, || {
                run(audit(lab)?
                    .args(["mirror", &format!("http://{}", lab.mesh.sites[round].http)])
                    .arg(&copy))?;
                ensure!(Mirror::open(&copy)?.newest()?.size() > size);
                Ok(())
            })?;
            let mut feed = audit(lab)?;
            feed.args(["witness", "feed", "--json"]).arg(&copy).arg("--feed-key").arg(&feeder);
            let (code, text) = told(feed.args(["--witness", &url, "--witness-key", &key.to_string()]))?;
            ensure!(code == 0 && text.contains("\"outcome\":\"cosigned\""), "{code}: {text}");
            size = Mirror::open(&copy)?.newest()?.size();
        }
        // A monitor reads what it cosigned, and finds it to be of the one history.
        let mut watches = monitor(lab, &lab.mesh.dir.join("watches-foreign"))?;
        watches.args([
            "--once",
            "--witness",
            &url,
            "--witness-key",
            &key.to_string(),
            "--witness-behind",
            "60",
        ]);
        let (_, text) = told(&mut watches)?;
        ensure!(!text.contains("witness"), "{text}");
        // Another root of that size, signed as ours are: it refuses, and our side knows what that means.
        let mirror = Mirror::open(&copy)?;
        let signs = SigningKey::read(&feeder, KeyKind::Ed25519)?;
        let mut other = mirror.newest()?.checkpoint;
        other.root.0[0] ^= 1;
        let body = other.body();
        let note = Note::new(body.as_str(), vec![signs.sign_note(&body)])?;
        let forged = StoredCheckpoint::parse(note.to_string().as_bytes()).ok().context("no checkpoint")?;
        let peer = WitnessPeer { url, key, feeder: None, feeds: true };
        let fed = lab.block(feed::submit(&Http::new(), &peer, &mirror, &forged))?;
        ensure!(matches!(fed, Fed::Inconsistent(s) | Fed::OtherRoot(s) if s == size), "{fed:?}");
        println!("another project's witness: three checkpoints cosigned, another root refused as {fed:?}");
        Ok(())
    });
}

fn foreign() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("QUORATE_AICS_WITNESS") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("aics-witness")).find(|file| file.is_file())
}
