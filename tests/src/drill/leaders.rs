//! A leader whose host is owned: it orders what it likes, and every node decides it by the signatures it bears.
use super::keyed::Field;
use super::{Detect, Held, Report, SHOWS};
use crate::hostile_build;
use crate::raw::{RawClient, now};
use crate::{Lab, Tlog, run, wait_for};
use anyhow::{Context as _, ensure};
use quorate_client::{Client, TrustFile};
use quorate_core::command::{Alarm, ClientCommand, Command, NodeCommand, PolicyCommand};
use quorate_core::crypto::encode;
use quorate_core::ids::{Custodian, RouteId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::policy::SignedPolicy;
use quorate_core::sshsig::SshSignature;
use quorate_core::tlog::sha256;
use std::fs;
use std::time::{Duration, Instant};

/// Rows that the admins' signatures stop.
pub(super) const SIGNED: [&str; 1] = ["leader-redirect"];
/// How long the mesh may take to have another leader, or this one.
const ELECTED: Duration = Duration::from_secs(40);
/// Until those who are rid of a leader have another: in ten runs 3.5 to 36 s.
const UNSEATED: Duration = Duration::from_secs(90);
/// Where a redirected request would go.
const ELSEWHERE: &str = "llm.attacker.example";

/// Commands for [`inject`], each with its blobs.
type Injected = Vec<(Command, Vec<Vec<u8>>)>;

pub(super) fn rows(f: &Field<'_>, report: &mut Report) {
    let (lab, owned) = (f.lab, f.owned());
    report.row("leader-redirect", || redirect(lab, owned));
    report.row("leader-downgrade", || downgrade(lab, owned));
    report.row("leader-forge", || forge(f, owned));
    // The other one: whoever withheld is not followed for a while.
    report.row("leader-withhold", || withhold(lab, (owned.1, owned.0)));
    report.row("clock-skew", || clock_skew(lab, owned));
    report.row("forked-log", || two_roots(lab, owned));
}

fn order(lab: &Lab, node: u64, words: &[&str]) -> anyhow::Result<()> {
    hostile_build::order(lab, node, &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
}

/// Makes the owned node lead.
fn lead(lab: &Lab, node: u64) -> anyhow::Result<()> {
    let client = lab.client("app")?;
    order(lab, node, &["leader:campaign"])?;
    let led = wait_for("the owned node leads", ELECTED, || {
        let leader = lab.leader(&client)?;
        ensure!(leader == node, "n{leader} does");
        Ok(())
    });
    order(lab, node, &[])?;
    led
}

/// The owned node, which leads, puts this into the log.
fn inject(lab: &Lab, node: u64, commands: &Injected) -> anyhow::Result<()> {
    let file = lab.mesh.site(node)?.dir.join("danger-hostile-inject");
    let part = file.with_extension("part");
    fs::write(&part, encode(commands))?;
    Ok(fs::rename(part, file)?)
}

/// Has it lead and put these there, and waits for the last one's leaf, by another node's log.
fn injected(lab: &Lab, node: u64, commands: &Injected) -> anyhow::Result<(Outcome, Detect)> {
    let http = lab.http_but(node).remove(0);
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let (last, _) = commands.last().context("nothing to inject")?;
    for _ in 0..5 {
        lead(lab, node)?;
        let begun = Instant::now();
        inject(lab, node, commands)?;
        let outcome = wait_for("its leaf", Duration::from_secs(8), || {
            let tlog = Tlog::read(&http)?;
            let outcome = tlog.bodies(from).find_map(|body| match body {
                LeafBody::Decided { command, outcome } if command == last => Some(outcome.clone()),
                _ => None,
            });
            outcome.context("no such leaf")
        });
        if let Ok(outcome) = outcome {
            return Ok((outcome, Detect::since(begun)));
        }
        // It lost the lead in between: once more.
    }
    anyhow::bail!("it never came into the log")
}

fn code(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused(refusal) => refusal.code().to_owned(),
        other => format!("{other:?}"),
    }
}

/// The policy in force but for its version, and with the route's host another; signed by a key that is no admin's.
fn redirected(lab: &Lab) -> anyhow::Result<(Command, Vec<Vec<u8>>)> {
    let mesh = &lab.mesh;
    let next = run(&mut mesh.quorate(&["admin", "policy", "--next"]))?;
    let document = next.replace("host = \"localhost\"", &format!("host = \"{ELSEWHERE}\""));
    ensure!(document.contains(ELSEWHERE), "no route to redirect in {next}");
    let signed = signed_by_stranger(lab, document.as_bytes())?;
    let command = PolicyCommand { document: sha256(&signed.document), signatures: signed.signatures };
    Ok((Command::Policy(command), vec![signed.document]))
}

/// The policy in force with one more route, to the attacker, signed likewise. The drill's own routes have keys, and another
/// check stands behind their hosts: without new shares they cannot change.
fn added(lab: &Lab) -> anyhow::Result<(Command, Vec<Vec<u8>>)> {
    let file = lab.mesh.dir.join("added.toml");
    fs::write(&file, run(&mut lab.mesh.quorate(&["admin", "policy", "--next"]))?)?;
    let words = ["admin", "route", "add", "--name", "elsewhere", "--host", ELSEWHERE, "--dialect", "openai"];
    run(lab.mesh.quorate(&words).args(["--model", "elsewhere", "--policy"]).arg(&file))?;
    let signed = signed_by_stranger(lab, &fs::read(file)?)?;
    let command = PolicyCommand { document: sha256(&signed.document), signatures: signed.signatures };
    Ok((Command::Policy(command), vec![signed.document]))
}

/// What `quorate admin sign` makes of it with the key of nobody the policy knows.
fn signed_by_stranger(lab: &Lab, document: &[u8]) -> anyhow::Result<SignedPolicy> {
    let mesh = &lab.mesh;
    let (stranger, file) = (mesh.dir.join("leaders-own"), mesh.dir.join("redirected.toml"));
    if !stranger.exists() {
        let mut keygen = std::process::Command::new("ssh-keygen");
        run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&stranger))?;
    }
    fs::write(&file, document)?;
    let sig = file.with_extension("sig");
    let _earlier = fs::remove_file(&sig);
    run(mesh.quorate(&["admin", "sign", "--key"]).arg(&stranger).arg("--out").arg(&sig).arg(&file))?;
    let signature = SshSignature::from_pem(&fs::read_to_string(sig)?)?;
    let document = document.to_vec();
    Ok(SignedPolicy { document, signatures: vec![signature] })
}

fn redirect(lab: &Lab, owned: (u64, u64)) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let version = policy_version(lab, &client)?;
    // Signed by a key that the policy does not know it leaves no leaf: anybody could fill the log with such. Unsigned it does.
    let (signed, blobs) = redirected(lab)?;
    let Command::Policy(PolicyCommand { document, .. }) = &signed else { anyhow::bail!("no policy") };
    let unsigned = Command::Policy(PolicyCommand { document: *document, signatures: vec![] });
    let (outcome, detect) = injected(lab, owned.0, &vec![(signed, blobs.clone()), (unsigned, blobs)])?;
    let code = code(&outcome);
    ensure!(code == "too_few_signers", "{code}");
    ensure!(policy_version(lab, &client)? == version, "the policy changed");
    let directory = lab.client("app")?.directory();
    let hosts: Vec<String> =
        directory.verified().policy.routes.values().map(|r| r.document.host.clone()).collect();
    ensure!(!hosts.iter().any(|h| h == ELSEWHERE), "{hosts:?}");
    lab.ask(&client)?;
    let held = Held::new(
        format!("every node's state machine: {code}"),
        format!(
            "leaf Decided(Policy, Refused({code})), proposed by n{}; signed by a stranger it leaves none",
            owned.0
        ),
        detect,
    );
    Ok(held.twin("the same change signed by an admin is in force (the routes of this drill)"))
}

fn policy_version(lab: &Lab, client: &Client) -> anyhow::Result<u64> {
    lab.statuses(client).iter().map(|s| s.policy_version).max().context("nobody answers")
}

/// With that check off in all nodes the redirected policy is in force there; the client still does not believe it.
pub(super) fn signatures_off(f: &Field<'_>, report: &mut Report) -> anyhow::Result<()> {
    let (lab, owned) = (f.lab, f.owned());
    let client = lab.client("app")?;
    let version = policy_version(lab, &client)?;
    lead(lab, owned.0)?;
    for site in &lab.mesh.sites {
        order(lab, site.id, &["off:AdminSignatures"])?;
    }
    inject(lab, owned.0, &vec![added(lab)?])?;
    wait_for("the redirected policy is in force", SHOWS, || {
        let now = policy_version(lab, &client)?;
        ensure!(now == version + 1, "version {now}");
        Ok(())
    })?;
    let error = lab.client("app").and_then(|c| Ok(lab.ask(&c)?)).err().context("a new client believes it")?;
    report.bites_later(
        &SIGNED,
        &format!(
            "off in all nodes: version {} with a route to the attacker's host added is in force there (a keyed route's host stays: it needs new shares); a client that checks the chain itself still refuses ({})",
            version + 1,
            format!("{error:#}").lines().next().unwrap_or_default()
        ),
    );
    Ok(())
}

fn downgrade(lab: &Lab, owned: (u64, u64)) -> anyhow::Result<Held> {
    let http = lab.http_but(owned.0).remove(0);
    let client = lab.client("app")?;
    let version = policy_version(lab, &client)?;
    // The newest change that admins did sign, as it stands in the log; it was in force, and so was its predecessor.
    let tlog = Tlog::read(&http)?;
    let signed: Vec<PolicyCommand> = tlog
        .bodies(0)
        .filter_map(|body| match body {
            LeafBody::Decided { command: Command::Policy(c), outcome: Outcome::PolicyChanged { .. } } => {
                Some(c.clone())
            }
            _ => None,
        })
        .collect();
    let old = signed.first().context("no policy was changed yet")?;
    let document = fs::read(lab.mesh.site(owned.0)?.dir.join("data/blobs").join(old.document.to_string()))
        .context("no document of it")?;
    let command = vec![(Command::Policy(old.clone()), vec![document])];
    let (outcome, detect) = injected(lab, owned.0, &command)?;
    let code = code(&outcome);
    ensure!(code == "wrong_predecessor", "{code}");
    ensure!(policy_version(lab, &client)? == version, "the policy changed");
    lab.ask(&client)?;
    let held = Held::new(
        format!("every node's state machine: {code}; versions only rise, each names the one it replaces"),
        format!("leaf Decided(Policy, Refused({code})), proposed by n{}", owned.0),
        detect,
    );
    let bites = "state test policy_changes_are_refused_for_one_thing_at_a_time: the same command naming its predecessor is taken";
    Ok(held.twin("the same document, when it was next, was taken: leaf PolicyChanged").bites(bites))
}

/// Altered after its signature, and made up.
fn forge(f: &Field<'_>, owned: (u64, u64)) -> anyhow::Result<Held> {
    let lab = f.lab;
    let raw = RawClient::new(lab.trust("app")?)?;
    let directory = lab.client("app")?.directory();
    let (route, custodian) = (RouteId::new("provider")?, Custodian::new("developers")?);
    let (relay, keyer) = directory.pairs(&route, &custodian).first().copied().context("no pair")?;
    let signed = raw.sign(ClientCommand::OpenPool(raw.pool(&directory, "provider", relay, keyer)?));
    let mut altered = signed.clone();
    if let Command::Client(c) = &mut altered
        && let ClientCommand::OpenPool(p) = &mut c.body
    {
        p.expires = p.expires.plus_ms(1_000);
    }
    // Another client's key in the name of this one.
    let forger = RawClient::new(TrustFile { client: lab.trust("app")?.client, ..lab.trust("ada")? })?;
    let made_up = forger.sign(ClientCommand::OpenPool(raw.pool(&directory, "provider", relay, keyer)?));
    let from = Tlog::read(&lab.http_but(owned.0).remove(0))?.leaves.len() as u64;
    // Unforged it comes last, so that all before it were decided when its leaf stands there.
    let all: Injected = [altered.clone(), made_up.clone(), signed.clone()].map(|c| (c, vec![])).to_vec();
    let (outcome, _) = injected(lab, owned.0, &all)?;
    ensure!(outcome == Outcome::PoolOpened, "the unaltered twin: {outcome:?}");
    let tlog = Tlog::read(&lab.http_but(owned.0).remove(0))?;
    let taken = tlog.bodies(from).any(|body| match body {
        LeafBody::Decided { command, outcome } => {
            (*command == altered || *command == made_up) && !matches!(outcome, Outcome::Refused(_))
        }
        _ => false,
    });
    ensure!(!taken, "a command that the client did not sign was taken");
    let held = Held::new(
        "every node's state machine checks the client's own signature: nothing became of either",
        "no leaf of them: nobody proved to have said it; the twin's leaf PoolOpened stands right behind",
        Detect::Prevented,
    );
    let bites = "state test a_client_speaks_only_for_itself_and_while_it_may";
    Ok(held.twin("the unaltered command in the same batch: PoolOpened").bites(bites))
}

fn withhold(lab: &Lab, owned: (u64, u64)) -> anyhow::Result<Held> {
    let http = lab.http_but(owned.0).remove(0);
    lead(lab, owned.0)?;
    let client = lab.client("app")?;
    lab.ask(&client).context("the twin, before it withholds")?;
    let from = Tlog::read(&http)?.leaves.len() as u64;
    order(lab, owned.0, &["leader:withhold"])?;
    let begun = Instant::now();
    let served = wait_for("requests go on", UNSEATED, || Ok(lab.ask(&client)?));
    let (took, done) = (begun.elapsed(), order(lab, owned.0, &[]));
    served?;
    done?;
    let tlog = wait_for("a batch by another leader", SHOWS, || {
        let tlog = Tlog::read(&http)?;
        let other = tlog
            .bodies(from)
            .any(|body| matches!(body, LeafBody::BatchEnd(end) if end.proposer.0 != owned.0));
        ensure!(other, "all are by n{}", owned.0);
        Ok(tlog)
    })?;
    let next = tlog.bodies(from).find_map(|body| match body {
        LeafBody::BatchEnd(end) if end.proposer.0 != owned.0 => Some(end.proposer.0),
        _ => None,
    });
    let mut saw = Vec::new();
    for site in lab.mesh.sites.iter().filter(|s| s.id != owned.0) {
        if lab.trace(site.id)?.contains("the leader withholds: not listening to it") {
            saw.push(site.name.clone());
        }
    }
    ensure!(!saw.is_empty(), "nobody stopped listening to it");
    let held = Held::new(
        "a client's command that the leader leaves out is shown to others; who sees the log go on without it follows another",
        format!(
            "leaf BatchEnd names n{} instead of n{} as the proposer; trace of {}: not listening to it",
            next.unwrap_or_default(),
            owned.0,
            saw.join(", ")
        ),
        Detect::After(took),
    );
    let bites = "a_leader_that_leaves_out_what_clients_signed_is_blamed_by_all_at_once";
    Ok(held.twin("the same leader, while it does not withhold, has the request served").bites(bites))
}

fn clock_skew(lab: &Lab, owned: (u64, u64)) -> anyhow::Result<Held> {
    const AHEAD_MS: u64 = 60_000;
    let http = lab.http_but(owned.0).remove(0);
    lead(lab, owned.0)?;
    let client = lab.client("app")?;
    lab.ask(&client).context("the twin, by the right clock")?;
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let ahead = format!("clock:ahead={AHEAD_MS}");
    // It may have lost the lead by now: it asks for it until its entries are seen.
    order(lab, owned.0, &["leader:campaign", &ahead])?;
    let begun = Instant::now();
    let refused = wait_for("a follower refuses its entry", SHOWS, || {
        for site in lab.mesh.sites.iter().filter(|s| s.id != owned.0) {
            if lab.trace(site.id)?.contains("an entry is from the future: refused") {
                return Ok(site.name.clone());
            }
        }
        anyhow::bail!("nobody does")
    });
    let detect = Detect::since(begun);
    order(lab, owned.0, &[&ahead])?;
    let served =
        refused.and_then(|r| Ok((r, wait_for("requests go on", ELECTED, || Ok(lab.ask(&client)?))?)));
    let took = begun.elapsed();
    order(lab, owned.0, &[])?;
    let (refuser, _) = served?;
    let now = now();
    let tlog = Tlog::read(&http)?;
    let latest = tlog
        .leaves
        .iter()
        .skip(usize::try_from(from)?)
        .map(|Leaf::V1 { time, .. }| time.since_ms(now))
        .max()
        .unwrap_or_default();
    ensure!(latest < AHEAD_MS / 2, "a leaf is {latest} ms in the future");
    lab.mesh.wait_all_healthy(crate::lab::WHOLE)?;
    let held = Held::new(
        format!(
            "followers append no entry from the future, and elect another leader: served after {:.1} s",
            took.as_secs_f64()
        ),
        format!("trace of {refuser}: an entry is from the future: refused; no leaf bears such a time"),
        detect,
    );
    let bites = "tests/tests/oracles.rs: no_wedge_from_the_states_the_design_names, with a time out of bounds among them; followers_that_refuse_old_entries_are_found";
    Ok(held.twin("by the right clock the same leader's entry is taken").bites(bites))
}

/// It signs its own second root at each size. Not one that anybody else signs; whoever sees both has the proof.
fn two_roots(lab: &Lab, owned: (u64, u64)) -> anyhow::Result<Held> {
    let node = owned.0;
    let http = lab.http_but(node).remove(0);
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let accused = |tlog: &Tlog| {
        tlog.bodies(from).find_map(|body| match body {
            LeafBody::Decided { command: Command::Node(n), outcome: Outcome::AlarmRaised } => match &n.body {
                NodeCommand::Alarm(Alarm::Equivocation { accused, size, .. }) if accused.0 == node => {
                    Some((n.node, size.0))
                }
                _ => None,
            },
            _ => None,
        })
    };
    let client = lab.client("app")?;
    lab.ask(&client)?;
    ensure!(accused(&Tlog::read(&http)?).is_none(), "the twin: an honest node was accused");
    order(lab, node, &["cosign:two-roots"])?;
    let begun = Instant::now();
    let found = wait_for("the alarm", SHOWS, || {
        let _any_request_moves_the_log = lab.ask(&client);
        accused(&Tlog::read(&http)?).context("no such leaf")
    });
    let detect = Detect::since(begun);
    order(lab, node, &[])?;
    let (by, size) = found?;
    // One history all the same: the others' logs are alike under their certified checkpoints.
    let mut logs = Vec::new();
    for http in lab.http_but(node) {
        logs.push(Tlog::read(&http)?);
    }
    let shortest = logs.iter().map(|l| l.bytes.len()).min().context("no log")?;
    let first = logs.first().context("no log")?;
    let alike = |l: &Tlog| l.bytes.iter().zip(&first.bytes).take(shortest).all(|(a, b)| a == b);
    ensure!(logs.iter().all(alike), "two histories are certified");
    lab.ask(&client)?;
    let held = Held::new(
        "no quorum signs the other root; whoever hears both keeps them",
        format!("leaf Alarm(Equivocation) by n{} with both of n{node}'s signatures at size {size}", by.0),
        detect,
    );
    let bites = "tests/tests/oracles.rs: with each defence off, *_is_found; attest/audit: a_split_view_is_caught_with_both_signed_checkpoints_as_evidence";
    Ok(held.twin("the same node, signing once, is accused of nothing").bites(bites))
}
