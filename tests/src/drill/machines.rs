//! Machines, disks and TPMs that are not what they seem: each is shut out, or takes no harm along.
#![expect(clippy::indexing_slicing, reason = "a drill that stops says why, and harms nothing")]
use super::{Detect, Held, Outside, SHOWS};
use crate::hostile::Taken;
use crate::lab::{Lab, WHOLE};
use crate::tlog::{checkpoint, cosigners};
use crate::{Tlog, run, wait_for};
use anyhow::{Context as _, bail, ensure};
use quorate_client::Client;
use quorate_cluster::mesh::Site;
use quorate_cluster::scan::{Canary, Scan};
use quorate_core::command::{Alarm, ClientCommand, Command, NodeCommand};
use quorate_core::ids::NodeId;
use quorate_core::leaf::{LeafBody, Outcome};
use quorate_proto::v1::StatusReply;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tonic::Code;

pub(super) const ROWS: [Outside; 10] = [
    ("tampered-boot", tampered_boot),
    ("tampered-binary", tampered_binary),
    ("cuckoo-tpm", cuckoo_tpm),
    ("stolen-disk", stolen_disk),
    ("replayed-quote", replayed_quote),
    ("replayed-evidence", replayed_evidence),
    ("rolled-back-tpm", rolled_back_tpm),
    ("rolled-back-disk", rolled_back_disk),
    ("self-joining", self_joining),
    ("flooded-term", flooded_term),
];

/// A node that does not lead, so that the others need no election when it is gone.
fn victim(lab: &Lab, client: &Client) -> anyhow::Result<u64> {
    Ok(lab.leader(client)? % lab.mesh.sites.len() as u64 + 1)
}

/// Back as the admins approved it.
fn restore(lab: &Lab, node: u64) -> anyhow::Result<()> {
    let site = lab.mesh.site(node)?.clone();
    lab.mesh.kill_node(node)?;
    lab.mesh.tpm(&site, "power-cycle")?;
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)
}

/// Waits until another node has said in the log which check this one failed.
pub(crate) fn refused_for(lab: &Lab, node: u64, from: u64, check: &str) -> anyhow::Result<()> {
    let http = lab.http_but(node);
    wait_for(&format!("a leaf that says {check}"), SHOWS, || {
        let tlog = Tlog::read(&http[0])?;
        let said: Vec<String> = tlog.bodies(from).filter_map(|body| refusal_of(body, NodeId(node))).collect();
        ensure!(said.iter().any(|s| s == check), "the leaves say {said:?}");
        Ok(())
    })
}

fn refusal_of(body: &LeafBody, node: NodeId) -> Option<String> {
    let LeafBody::Decided { command, outcome } = body else { return None };
    match (command, outcome) {
        (Command::Node(n), Outcome::AlarmRaised) => match &n.body {
            NodeCommand::Alarm(Alarm::AdmissionRefused { node: refused, check }) if *refused == node => {
                Some(check.clone())
            }
            _ => None,
        },
        (Command::Evidence(e), Outcome::AppraisalRefused { check }) if e.node == node => Some(check.clone()),
        _ => None,
    }
}

/// Whether the log says, from some leaf on, that the node was attested.
fn was_attested(tlog: &Tlog, node: u64, from: u64) -> bool {
    tlog.bodies(from).any(|body| matches!(body, LeafBody::Decided { command: Command::Evidence(e), outcome: Outcome::Appraised { .. } } if e.node.0 == node))
}

/// It is nobody: not attested in anybody's view, not among the cosigners, on no request's path; and yet the mesh serves.
pub(crate) fn is_out(lab: &Lab, client: &Client, node: u64, from: u64) -> anyhow::Result<()> {
    let http = lab.http_but(node).remove(0);
    wait_for("it does not count", SHOWS, || {
        for status in lab.statuses(client).iter().filter(|s| s.node != node) {
            let record = status.nodes.iter().find(|n| n.node == node).context("it is not listed")?;
            ensure!(!record.attested, "node {} still counts it", status.node);
        }
        Ok(())
    })?;
    // What they apply is ahead of what they have certified.
    wait_for("it cosigns no more", SHOWS, || {
        let (_, note) = checkpoint(&http)?;
        ensure!(!cosigners(&note).contains(&format!("n{node}")), "{note:?}");
        Ok(())
    })?;
    for _ in 0..4 {
        let provenance = lab.ask(&lab.client("app")?)?.provenance;
        ensure!(provenance.relay.0 != node && provenance.keyer.0 != node, "{provenance:?}");
    }
    ensure!(!was_attested(&Tlog::read(&http)?, node, from), "it was attested");
    Ok(())
}

/// The size from which on the log is about what comes now: the node is stopped, and what it said before is in.
pub(crate) fn stopped(lab: &Lab, client: &Client, node: u64) -> anyhow::Result<u64> {
    lab.mesh.kill_node(node)?;
    let http = lab.http_but(node).remove(0);
    wait_for("it has lapsed", SHOWS, || {
        // All of them say so first, and then their log: it may still be behind what they apply, and end at an older lapse.
        let statuses = lab.statuses(client);
        let others: Vec<_> = statuses.iter().filter(|s| s.node != node).collect();
        let counts = |s: &&StatusReply| s.nodes.iter().any(|n| n.node == node && n.attested);
        ensure!(others.len() >= 3 && !others.iter().any(counts), "it still counts");
        let size = others.iter().map(|s| s.tree_size).max().unwrap_or_default();
        let tlog = Tlog::read(&http)?;
        ensure!(tlog.leaves.len() as u64 >= size, "the log ends at {} of {size}", tlog.leaves.len());
        let lapsed =
            tlog.bodies(0).rposition_of(|b| matches!(b, LeafBody::Lapsed { node: n } if n.0 == node));
        let lapsed = lapsed.context("no such leaf")?;
        ensure!(!was_attested(&tlog, node, lapsed), "an older one");
        Ok(tlog.leaves.len() as u64)
    })
}

trait LastPosition: Iterator {
    fn rposition_of(self, is: impl Fn(&Self::Item) -> bool) -> Option<u64>;
}

impl<I: Iterator> LastPosition for I {
    fn rposition_of(self, is: impl Fn(&Self::Item) -> bool) -> Option<u64> {
        self.zip(0..).filter(|(item, _)| is(item)).last().map(|(_, position)| position)
    }
}

/// Something that no event log explains goes into PCR 7.
pub fn tampered_boot(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let node = victim(lab, &client)?;
    let from = stopped(lab, &client, node)?;
    let site = lab.mesh.site(node)?.clone();
    lab.mesh.tpm(&site, "power-cycle")?;
    let begun = Instant::now();
    lab.mesh.start_node_with(node, &lab.mesh.bin.join("quorated"), &["--danger-extra-extend", "7"])?;
    refused_for(lab, node, from, "event-log-replay")?;
    let detect = Detect::since(begun);
    is_out(lab, &client, node, from)?;
    restore(lab, node)?;
    let held = Held::new(
        "every other node's Verifier: event-log-replay; it cosigns nothing and is on no request's path",
        format!("leaf Alarm(AdmissionRefused, n{node}, event-log-replay)"),
        detect,
    );
    let bites = "attest/src/tests/adversary.rs: event_logs, selections: one mutation at a time, each with its own rejection";
    Ok(held.twin("the same machine, booted as its event log says, is attested").bites(bites))
}

/// The event log explains it, but it is another binary than the policy lists.
pub fn tampered_binary(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let node = victim(lab, &client)?;
    let from = stopped(lab, &client, node)?;
    let site = lab.mesh.site(node)?.clone();
    let other = lab.mesh.dir.join("other-quorated");
    let mut bytes = fs::read(lab.mesh.bin.join("quorated"))?;
    bytes.extend_from_slice(b"one more section");
    fs::write(&other, &bytes)?;
    fs::set_permissions(&other, fs::metadata(lab.mesh.bin.join("quorated"))?.permissions())?;
    lab.mesh.tpm(&site, "power-cycle")?;
    let begun = Instant::now();
    lab.mesh.start_node_with(node, &other, &[])?;
    refused_for(lab, node, from, "reference-value")?;
    let detect = Detect::since(begun);
    is_out(lab, &client, node, from)?;

    // Approved by the admins, the same machine is taken, without a restart.
    let mut values = lab.mesh.command("quorate-launch");
    values.arg("reference-values").arg("--event-log").arg(lab.mesh.dir.join("events"));
    let file = lab.mesh.dir.join("other-values.toml");
    fs::write(&file, run(values.arg("--binary").arg(&other))?)?;
    let set = |file: &Path, add: &[&str]| {
        lab.change_policy(|mesh| {
            let flags = [&["reference-values", "set", "--name", "demo"], add, &["--file"]].concat();
            mesh.admin(&flags, &[file])?;
            if mesh.key_file.is_some() { mesh.approve(&[]) } else { Ok(()) }
        })
    };
    set(&file, &["--add"])?;
    lab.mesh.wait_healthy(&[node], SHOWS)?;

    // And withdrawn again, it is out at once, and the machine as it was is back.
    set(&lab.mesh.dir.join("reference-values.toml"), &[])?;
    let from = Tlog::read(&lab.http_but(node)[0])?.leaves.len() as u64;
    is_out(lab, &client, node, from)?;
    restore(lab, node)?;
    let held = Held::new(
        "every other node's Verifier: reference-value; it cosigns nothing and is on no request's path",
        format!("leaf Alarm(AdmissionRefused, n{node}, reference-value)"),
        detect,
    );
    let bites = "with its digest among the admins' reference values the same machine is admitted, and out again once withdrawn";
    Ok(held.twin("the approved binary on the same machine is attested").bites(bites))
}

/// Gives a stopped node another genuine TPM of the same maker, with an AK; puts its own back after `body`.
fn with_another_tpm<T>(
    lab: &Lab,
    site: &Site,
    body: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    lab.mesh.tpm(site, "stop")?;
    let (own, kept) = (site.tpm_dir.clone(), site.dir.join("own-tpm"));
    fs::rename(&own, &kept)?;
    let mut setup = lab.mesh.command("quorate-launch");
    setup.args(["tpm", "setup", "--name", "spare", "--dir"]).arg(&own);
    run(setup.arg("--ca-dir").arg(lab.mesh.dir.join("ca")))?;
    lab.mesh.tpm(site, "start")?;
    let mut enrol = lab.mesh.command("quorated");
    enrol.arg("--config").arg(site.config()).arg("enrol").stdin(Stdio::null());
    // It makes the AK, then finds that nobody sends a credential.
    ensure!(!enrol.output()?.status.success());
    lab.mesh.start_node(site.id)?;
    let done = body();
    lab.mesh.kill_node(site.id)?;
    lab.mesh.tpm(site, "stop")?;
    fs::remove_dir_all(&own)?;
    fs::rename(&kept, &own)?;
    lab.mesh.start_node(site.id)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    done
}

/// A genuine TPM by the same maker, and it has an AK: not the enrolled one.
pub fn cuckoo_tpm(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let node = victim(lab, &client)?;
    let from = stopped(lab, &client, node)?;
    let site = lab.mesh.site(node)?.clone();
    let begun = Instant::now();
    let detect = with_another_tpm(lab, &site, || {
        refused_for(lab, node, from, "signature")?;
        let detect = Detect::since(begun);
        is_out(lab, &client, node, from)?;
        Ok(detect)
    })?;
    let held = Held::new(
        "every other node's Verifier: signature, as the AK that admins enrolled by credential activation did not sign it",
        format!("leaf Alarm(AdmissionRefused, n{node}, signature)"),
        detect,
    );
    let bites = "by crypto: the AK's signature; attest/src/tests/adversary.rs: quotes: one by another AK, one mutation";
    Ok(held.twin("with its own TPM back the same machine is attested").bites(bites))
}

/// What a thief has: the disk, and a machine of the same kind.
fn stolen_disk(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    // Another one than the row before had: what was said of a node lately is not said again in the log.
    let node = victim(lab, &client)? % lab.mesh.sites.len() as u64 + 1;
    let from = stopped(lab, &client, node)?;
    let site = lab.mesh.site(node)?.clone();
    let secret = lab.mesh.secret()?;
    let canary = Canary::new(&secret)?;
    let mut scan = Scan::default();
    canary.folder(&site.dir, &[], &mut scan)?;
    scan.clean().context("on the stolen disk")?;
    let planted = site.dir.join("planted");
    fs::write(&planted, &*secret)?;
    let mut twin = Scan::default();
    canary.folder(&site.dir, &[], &mut twin)?;
    fs::remove_file(&planted)?;
    ensure!(!twin.found.is_empty(), "the search finds no key where one is");
    let traced = lab.trace(node)?.len();
    let begun = Instant::now();
    let (detect, said) = with_another_tpm(lab, &site, || {
        refused_for(lab, node, from, "signature")?;
        let detect = Detect::since(begun);
        let said = wait_for("it cannot open its shares", SHOWS, || {
            let trace = lab.trace(node)?.split_off(traced);
            let line = trace.lines().find(|l| l.contains("cannot open its shares")).map(str::to_owned);
            line.context("its trace says nothing of shares")
        });
        is_out(lab, &client, node, from)?;
        Ok((detect, said?))
    })?;
    wait_for("its shares are open again", SHOWS, || {
        let statuses = lab.statuses(&client);
        let own = statuses.iter().find(|s| s.node == node).context("it does not answer")?;
        ensure!(!own.shares.is_empty() && own.shares.iter().all(|s| s.held), "{:?}", own.shares);
        Ok(())
    })?;
    let said = said.get(..said.len().min(160)).unwrap_or_default().trim().to_owned();
    let held = Held::new(
        format!(
            "shares are sealed to the node's own TPM, TLS and cosigning keys live in memory alone: {} files, {} MB, no 16 bytes of the key",
            scan.files,
            scan.bytes / 1_000_000
        ),
        format!(
            "leaf Alarm(AdmissionRefused, n{node}, signature) when it is started elsewhere; its own trace: {said}"
        ),
        detect,
    );
    let bites = "the same search finds a key that is planted there; attest/tpm/tests/swtpm/sealing.rs: the_tpm_itself_demands_every_condition, another_tpm_does_not_open_it_nor_does_this_one_open_an_altered_blob";
    Ok(held.twin("with its own TPM the same disk opens its shares").bites(bites))
}

/// Root has the machine and its TPM, and is let into the channel, as it booted what it should. The same proof elsewhere is none.
pub fn replayed_quote(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let leader = lab.leader(&client)?;
    let node = victim(lab, &client)?;
    let from = stopped(lab, &client, node)?;
    let (taken, leaders) = taken(lab, &client, node, leader)?;
    let begun = lab.block(async {
        let link = taken.connect(&leaders).await?;
        let proof = taken.proof(&link, leader).await?;
        taken.admit(&link, proof.clone()).await.context("the twin")?;
        let begun = Instant::now();
        let link = taken.connect(&leaders).await?;
        let _its_own = taken.proof(&link, leader).await?;
        let again = taken.admit(&link, proof).await;
        ensure!(again.as_ref().is_err_and(|s| s.code() == Code::PermissionDenied), "{again:?}");
        Ok(begun)
    })?;
    refused_for(lab, node, from, "qualifying-data")?;
    let detect = Detect::since(begun);
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    let held = Held::new(
        "the Verifier: qualifying-data, as a quote is bound to one challenge, one TLS channel and both ends",
        format!("leaf Alarm(AdmissionRefused, n{node}, qualifying-data)"),
        detect,
    );
    let bites = "by crypto: the nonce is a hash of the challenge and the channel's exporter; attest/src/qualifying.rs: every_part_counts_and_boundaries_cannot_move";
    Ok(held.twin("the same proof in the channel it was made for was taken").bites(bites))
}

fn taken(lab: &Lab, client: &Client, node: u64, leader: u64) -> anyhow::Result<(Taken, String)> {
    let directory = client.directory();
    let verified = directory.verified();
    let taken = Taken::machine(&lab.mesh.site(node)?.clone(), verified.cluster, &verified.policy)?;
    Ok((taken, lab.mesh.site(leader)?.grpc.clone()))
}

/// Every quote of this node that the log ever took, oldest and newest; and what a client signed, from a node without evidence.
pub fn replayed_evidence(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let leader = lab.leader(&client)?;
    let node = victim(lab, &client)?;
    let _lapsed = stopped(lab, &client, node)?;
    let http = lab.http_but(node).remove(0);
    let (taken, leaders) = taken(lab, &client, node, leader)?;
    let link = lab.block(async {
        let link = taken.connect(&leaders).await?;
        let proof = taken.proof(&link, leader).await?;
        taken.admit(&link, proof).await.context("the twin")?;
        anyhow::Ok(link)
    })?;
    let tlog = Tlog::read(&http)?;
    let old: Vec<Command> =
        tlog.bodies(0)
            .filter_map(|body| match body {
                LeafBody::Decided {
                    command: c @ Command::Evidence(e),
                    outcome: Outcome::Appraised { .. },
                } if e.node.0 == node => Some(c.clone()),
                _ => None,
            })
            .collect();
    let (oldest, newest) = (old.first().context("no evidence")?, old.last().context("no evidence")?);
    let from = tlog.leaves.len() as u64;
    let mut detect = Detect::Prevented;
    for command in [oldest, newest] {
        let begun = Instant::now();
        let reply = lab.block(taken.propose(&link, std::slice::from_ref(command)))?;
        ensure!(reply.queued, "{leader} leads no more: {reply:?}");
        wait_for("a leaf that says stale_nonce", SHOWS, || {
            ensure!(Tlog::read(&http)?.refuses(from, command, "stale_nonce"));
            Ok(())
        })?;
        detect = Detect::since(begun);
    }
    // It may not speak for clients either, not even what they signed: its place in the channel is for evidence.
    let raw = crate::raw::RawClient::new(lab.trust("app")?)?;
    let others: Vec<NodeId> = (1..=4).filter(|n| *n != node).map(NodeId).collect();
    let pool = raw.pool(&client.directory(), "provider", others[0], others[1])?;
    let signed = raw.sign(ClientCommand::OpenPool(pool));
    let since = Tlog::read(&http)?.leaves.len() as u64;
    lab.block(taken.propose(&link, &[signed.clone(), oldest.clone()]))?;
    wait_for("what came with it is decided", SHOWS, || {
        let tlog = Tlog::read(&http)?;
        ensure!(tlog.refuses(since, oldest, "stale_nonce"));
        Ok(tlog)
    })
    .and_then(|tlog| {
        let taken =
            tlog.bodies(since).any(|b| matches!(b, LeafBody::Decided { command, .. } if *command == signed));
        ensure!(!taken, "a client's command was taken from a node that is not attested");
        Ok(())
    })?;
    is_out(lab, &client, node, from)?;
    // A client may not hand in evidence either.
    let verdict = lab.block(async {
        let link = raw.connect(&leaders).await?;
        crate::raw::submit_bytes(&link, quorate_core::crypto::encode(newest), vec![]).await
    })?;
    ensure!(verdict == crate::raw::Verdict::refused("wrong_command"), "{verdict:?}");
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    let held = Held::new(
        "every node's state machine: stale_nonce, as evidence names a recent certified checkpoint and counts once",
        format!("leaf Decided(Evidence of n{node}, Refused(stale_nonce)), for its oldest and its newest"),
        detect,
    );
    let bites = "state tests evidence_is_refused_for_one_thing_at_a_time, evidence_played_again_neither_helps_nor_harms: the same evidence, in time and for the first time, is taken";
    Ok(held.twin("its fresh evidence is taken once it runs again").bites(bites))
}

/// swtpm's folder, or a vendor's NV, as it was some boots ago.
fn rolled_back_tpm(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let node = victim(lab, &client)?;
    let site = lab.mesh.site(node)?.clone();
    let _lapsed = stopped(lab, &client, node)?;
    lab.mesh.tpm(&site, "stop")?;
    let copy = site.dir.join("tpm-copy");
    run(std::process::Command::new("cp").arg("-a").arg(&site.tpm_dir).arg(&copy))?;
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE).context("the twin: the same TPM, power-cycled")?;
    // Once more, so that the log holds counters that the copy, which boots as well, does not reach.
    restore(lab, node)?;
    // Counters of its present state are in the log now; back to the copy.
    let from = stopped(lab, &client, node)?;
    lab.mesh.tpm(&site, "stop")?;
    let kept = site.dir.join("tpm-now");
    fs::rename(&site.tpm_dir, &kept)?;
    fs::rename(&copy, &site.tpm_dir)?;
    let begun = Instant::now();
    lab.mesh.start_node(node)?;
    let refused = refused_for(lab, node, from, "counters-went-back").map(|()| Detect::since(begun));
    let out = is_out(lab, &client, node, from);
    lab.mesh.kill_node(node)?;
    lab.mesh.tpm(&site, "stop")?;
    fs::remove_dir_all(&site.tpm_dir)?;
    fs::rename(&kept, &site.tpm_dir)?;
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    let detect = refused?;
    out?;
    let held = Held::new(
        "every other node's Verifier: counters-went-back, by the highest counters that the log holds",
        format!("leaf that says counters-went-back of n{node}"),
        detect,
    );
    let bites = "attest/src/tests/adversary.rs: counters: each of them below its floor";
    Ok(held.twin("the same TPM after an honest power cycle is attested").bites(bites))
}

/// An older copy of a node's data folder. It signs nothing below what it signed before, and has everybody's history again.
fn rolled_back_disk(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let node = victim(lab, &client)?;
    let site = lab.mesh.site(node)?.clone();
    let http = lab.http_but(node).remove(0);
    lab.mesh.stop_node(node)?;
    let (data, copy) = (site.dir.join("data"), site.dir.join("data-copy"));
    run(std::process::Command::new("cp").arg("-a").arg(&data).arg(&copy))?;
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    for _ in 0..5 {
        lab.ask(&client)?;
    }
    let (before, _) = checkpoint(&site.http)?;
    lab.mesh.stop_node(node)?;
    fs::remove_dir_all(&data)?;
    fs::rename(&copy, &data)?;
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let begun = Instant::now();
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    let again = wait_for("it has the whole history again", WHOLE, || {
        let (now, note) = checkpoint(&site.http)?;
        ensure!(now.size >= before.size, "it serves {} of {}", now.size.0, before.size.0);
        ensure!(cosigners(&note).len() >= 3, "{:?}", cosigners(&note));
        Tlog::read(&site.http)
    })?;
    let detect = Detect::since(begun);
    ensure!(again.root(before.size.0)? == before.root, "another history");
    let others = Tlog::read(&http)?;
    ensure!(others.bytes.iter().zip(&again.bytes).all(|(a, b)| a == b), "another history");
    let accused = others.bodies(from).any(|body| match body {
        LeafBody::Decided { command: Command::Node(n), .. } => {
            matches!(&n.body, NodeCommand::Alarm(Alarm::Equivocation { .. }))
        }
        _ => false,
    });
    ensure!(!accused, "it signed two roots");
    wait_for("it cosigns again", SHOWS, || {
        lab.ask(&client)?;
        let names = cosigners(&checkpoint(&http)?.1);
        ensure!(names.iter().any(|n| *n == site.name || *n == format!("node-{node}")), "{names:?}");
        Ok(())
    })?;
    lab.ask(&client)?;
    let held = Held::new(
        "budgets and history are the mesh's, not the disk's: it asks a quorum for its own highest cosignature first, and catches up",
        format!(
            "its log from leaf 0 to {} is the others'; leaves since then name no equivocation",
            again.bytes.len()
        ),
        detect,
    );
    let bites = "tests/tests/oracles.rs: a_missing_sign_lock_is_found, a_lock_that_is_a_size_alone_is_found: two roots are signed at one size";
    Ok(held.twin("an honest restart of the same node").bites(bites))
}

/// Everything a member has but the admins' signature under its enrolment.
fn self_joining(lab: &Lab) -> anyhow::Result<Held> {
    let client = lab.client("app")?;
    let genesis = lab.mesh.dir.join("genesis.toml");
    let signed: quorate_core::policy::SignedPolicy =
        borsh::from_slice(&fs::read(lab.mesh.sites[0].dir.join("data/genesis"))?)?;
    fs::write(&genesis, &signed.document)?;
    lab.mesh.sign(&genesis)?;
    // Its own view of the mesh, so that what others see of it is no different from before.
    let mut own = quorate_cluster::mesh::Mesh::load(&lab.mesh.dir)?;
    let stranger = own.new_site(5)?;
    let mut enrol = own.command("quorated");
    enrol.arg("--config").arg(stranger.config()).arg("enrol").stdin(Stdio::null());
    ensure!(!enrol.output()?.status.success(), "it enrolled itself");
    own.init_node(&stranger, &genesis, true)?;
    let begun = Instant::now();
    let lengths: Vec<usize> =
        lab.mesh.sites.iter().map(|s| Ok(lab.trace(s.id)?.len())).collect::<anyhow::Result<_>>()?;
    let joined = own.start_node(5).and_then(|()| {
        wait_for("somebody refuses it", SHOWS, || {
            for (site, length) in lab.mesh.sites.iter().zip(&lengths) {
                let trace = lab.trace(site.id)?.split_off(*length);
                let refused = trace.lines().find(|l| l.contains("was not admitted"));
                if let Some(line) = refused {
                    let said = line.split("error=").nth(1).unwrap_or(line).trim().to_owned();
                    return Ok(format!("{}: {said}", site.name));
                }
            }
            bail!("nobody says so")
        })
    });
    let detect = Detect::since(begun);
    let still = wait_for("it stays outside", Duration::from_secs(3), || {
        ensure!(begun.elapsed() > Duration::from_secs(3), "a moment");
        Ok(())
    });
    let outside = || -> anyhow::Result<()> {
        still?;
        let (_, note) = checkpoint(&lab.mesh.sites[0].http)?;
        ensure!(!cosigners(&note).iter().any(|n| n == "n5" || n == "node-5"), "it cosigns");
        let statuses = lab.statuses(&client);
        ensure!(statuses.iter().all(|s| s.nodes.iter().all(|n| n.node != 5)), "it is listed");
        let health = own.health(5).unwrap_or_else(|_| "no answer".to_owned());
        ensure!(health.trim() != "ok", "it serves");
        lab.ask(&client)?;
        Ok(())
    };
    let outside = outside();
    own.kill_node(5)?;
    own.tpm(&stranger, "stop")?;
    let said = joined?;
    outside?;
    let held = Held::new(
        "every member: only whom m of n admins enrolled by its EK and AK is a member; a TPM of the same maker is not enough",
        format!("trace of {said}; no leaf, no cosignature and no status names it"),
        detect,
    );
    let bites = "e2e_attestation: a_fifth_member_joins_and_one_leaves: with the admins' signature the same kind of machine joins";
    Ok(held.twin("the enrolled members beside it are served and attested; one that admins enrol joins: the test named here").bites(bites))
}

/// Votes in ever higher terms, while clients ask; then a term that nobody could ever follow.
fn flooded_term(lab: &Lab) -> anyhow::Result<Held> {
    const VOTES: u64 = 300;
    let client = lab.client("app")?;
    let leader = lab.leader(&client)?;
    let node = victim(lab, &client)?;
    let _lapsed = stopped(lab, &client, node)?;
    let (taken, _) = taken(lab, &client, node, leader)?;
    let others: Vec<Site> = lab.mesh.sites.iter().filter(|s| s.id != node).cloned().collect();
    let lengths: Vec<usize> =
        others.iter().map(|s| Ok(lab.trace(s.id)?.len())).collect::<anyhow::Result<_>>()?;
    let (mut answered, begun) = (0u64, Instant::now());
    let mut links = Vec::new();
    for site in &others {
        links.push(lab.block(async {
            let link = taken.connect(&site.grpc).await?;
            let proof = taken.proof(&link, site.id).await?;
            taken.admit(&link, proof).await.context("the twin")?;
            anyhow::Ok(link)
        })?);
    }
    let mut failed = 0;
    for number in 0..VOTES {
        for link in &links {
            // Within reach of a campaign: heard, and answered.
            answered += u64::from(lab.block(taken.vote(link, 1_000 + number)).is_ok());
        }
        if number % 10 == 0 {
            failed += usize::from(lab.ask(&client).is_err());
        }
    }
    ensure!(answered >= VOTES, "the twin: an ordinary candidate is heard: {answered}");
    ensure!(failed <= 3, "{failed} of {} requests failed meanwhile", VOTES / 10);
    for link in &links {
        let reply = lab.block(taken.vote(link, u64::MAX / 2));
        ensure!(reply.as_ref().is_err_and(|s| s.code() == Code::FailedPrecondition), "{reply:?}");
    }
    let detect = Detect::since(begun);
    for (site, length) in others.iter().zip(&lengths) {
        let trace = lab.trace(site.id)?.split_off(*length);
        ensure!(trace.contains("the term is too far ahead"), "{}: its trace says nothing", site.name);
    }
    lab.ask(&client)?;
    lab.mesh.start_node(node)?;
    lab.mesh.wait_all_healthy(WHOLE)?;
    let held = Held::new(
        format!(
            "a leader's lease rations votes, and no message raises a term beyond reach: {} of {} requests were served during {} votes",
            VOTES / 10 - failed as u64,
            VOTES / 10,
            VOTES * links.len() as u64
        ),
        "trace of each node: a message of Raft's was refused: the term is too far ahead",
        detect,
    );
    let bites =
        "node/src/raft/guard.rs: no_message_uses_up_the_terms, one_peer_cannot_take_the_lead_without_end";
    Ok(held.twin("a vote in a term within reach is answered").bites(bites))
}
