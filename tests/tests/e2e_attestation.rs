//! Who may take part: machines that booted otherwise, other TPMs, old quotes; and how admins change the set.
//!
//! Real processes and software TPMs; needs the binaries. Each test names its row of the fault table.
//!
//! **These bite**: with the reference values of the mesh widened to what the altered machine measures, the same machine is
//! admitted, which [`a_node_whose_pcrs_differ`] does in its last step; and [`an_old_quote_played_again`] first hands in a
//! proof of its own making, which is taken.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "test code")]
use anyhow::{Context as _, bail, ensure};
use quorate_audit::fetch::Client as Http;
use quorate_audit::life::explain;
use quorate_audit::mirror::{Source, mirror_log};
use quorate_audit::prove::Desk;
use quorate_audit::replay::Options;
use quorate_audit::store::Mirror;
use quorate_audit::verify::{Verdict, verify};
use quorate_client::Client;
use quorate_core::command::{Alarm, Command, NodeCommand};
use quorate_core::ids::NodeId;
use quorate_core::leaf::{LeafBody, Outcome};
use quorate_core::state::State;
use quorate_core::tlog::Note;
use quorate_proto::v1::StatusReply;
use quorate_tests::hostile::Taken;
use quorate_tests::lab::{Key, Make, WHOLE};
use quorate_tests::tlog::{checkpoint, cosigners};
use quorate_tests::{Lab, Shared, Tlog, run, wait_for};
use std::fs;
use std::process::Stdio;
use std::time::Duration;
use tonic::Code;

static LAB: Shared = Shared::new(Make { name: "attestation", provider: &[], key: Key::None });

/// For something to show in the log.
const SHOWS: Duration = Duration::from_secs(20);

/// Waits until every other node has said in the log which check this one failed.
fn refused_for(lab: &Lab, node: u64, from: u64, check: &str) -> anyhow::Result<()> {
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
fn is_out(lab: &Lab, client: &Client, node: u64, from: u64) -> anyhow::Result<()> {
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
fn stopped(lab: &Lab, client: &Client, node: u64) -> anyhow::Result<u64> {
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

#[test]
fn a_node_whose_pcrs_differ() {
    LAB.run("a_node_whose_pcrs_differ", |lab| {
        let client = lab.client("app")?;
        let node = lab.leader(&client)? % 4 + 1;
        let from = stopped(lab, &client, node)?;
        let site = lab.mesh.site(node)?.clone();
        // Something that no event log explains went into PCR 7.
        lab.mesh.tpm(&site, "power-cycle")?;
        lab.mesh.start_node_with(node, &lab.mesh.bin.join("quorated"), &["--danger-extra-extend", "7"])?;
        refused_for(lab, node, from, "event-log-replay")?;
        is_out(lab, &client, node, from)?;
        lab.mesh.kill_node(node)?;

        // The log explains it this time, but it is another binary than the policy lists.
        let other = lab.mesh.dir.join("other-quorated");
        let mut bytes = fs::read(lab.mesh.bin.join("quorated"))?;
        bytes.extend_from_slice(b"one more section");
        fs::write(&other, &bytes)?;
        fs::set_permissions(&other, fs::metadata(lab.mesh.bin.join("quorated"))?.permissions())?;
        lab.mesh.tpm(&site, "power-cycle")?;
        lab.mesh.start_node_with(node, &other, &[])?;
        refused_for(lab, node, from, "reference-value")?;
        is_out(lab, &client, node, from)?;

        // Approved by the admins, the same machine is taken, without a restart.
        let mut values = lab.mesh.command("quorate-launch");
        values.arg("reference-values").arg("--event-log").arg(lab.mesh.dir.join("events"));
        let file = lab.mesh.dir.join("other-values.toml");
        fs::write(&file, run(values.arg("--binary").arg(&other))?)?;
        lab.change_policy(|mesh| {
            mesh.admin(&["reference-values", "set", "--name", "demo", "--add", "--file"], &[&file])
        })?;
        lab.mesh.wait_healthy(&[node], SHOWS)?;

        // And withdrawn again, it is out at once, and the machine as it was is back.
        let original = lab.mesh.dir.join("reference-values.toml");
        lab.change_policy(|mesh| {
            mesh.admin(&["reference-values", "set", "--name", "demo", "--file"], &[&original])
        })?;
        let from = Tlog::read(&lab.http_but(node)[0])?.leaves.len() as u64;
        is_out(lab, &client, node, from)?;
        lab.mesh.kill_node(node)?;
        lab.mesh.tpm(&site, "power-cycle")?;
        lab.mesh.start_node(node)?;
        lab.mesh.wait_all_healthy(WHOLE)
    });
}

#[test]
fn a_node_with_another_tpm() {
    LAB.run("a_node_with_another_tpm", |lab| {
        let client = lab.client("app")?;
        let node = lab.leader(&client)? % 4 + 1;
        let from = stopped(lab, &client, node)?;
        let site = lab.mesh.site(node)?.clone();
        lab.mesh.tpm(&site, "stop")?;
        // A genuine TPM by the same maker, and it has an AK: not the enrolled one.
        let (own, kept) = (site.tpm_dir.clone(), site.dir.join("own-tpm"));
        fs::rename(&own, &kept)?;
        let mut setup = lab.mesh.command("quorate-launch");
        setup
            .args(["tpm", "setup", "--name", "spare", "--dir"])
            .arg(&own)
            .arg("--ca-dir")
            .arg(lab.mesh.dir.join("ca"));
        run(&mut setup)?;
        lab.mesh.tpm(&site, "start")?;
        let mut enrol = lab.mesh.command("quorated");
        enrol.arg("--config").arg(site.config()).arg("enrol").stdin(Stdio::null());
        // It makes the AK, then finds that nobody sends a credential.
        ensure!(!enrol.output()?.status.success());
        lab.mesh.start_node(node)?;
        refused_for(lab, node, from, "signature")?;
        is_out(lab, &client, node, from)?;
        lab.mesh.kill_node(node)?;
        lab.mesh.tpm(&site, "stop")?;
        fs::remove_dir_all(&own)?;
        fs::rename(&kept, &own)?;
        lab.mesh.start_node(node)?;
        lab.mesh.wait_all_healthy(WHOLE)
    });
}

#[test]
fn an_old_quote_played_again() {
    LAB.run("an_old_quote_played_again", |lab| {
        let client = lab.client("app")?;
        let leader = lab.leader(&client)?;
        let node = leader % 4 + 1;
        let from = stopped(lab, &client, node)?;
        let (site, http) = (lab.mesh.site(node)?.clone(), lab.http_but(node).remove(0));
        let directory = client.directory();
        let verified = directory.verified();
        let taken = Taken::machine(&site, verified.cluster, &verified.policy)?;
        let leaders = lab.mesh.site(leader)?.grpc.clone();
        // Root has the machine and its TPM: it is let into the channel, as it booted what it should.
        let (link, proof) = lab.block(async {
            let link = taken.connect(&leaders).await?;
            let proof = taken.proof(&link, leader).await?;
            taken.admit(&link, proof.clone()).await?;
            anyhow::Ok((link, proof))
        })?;
        // The same proof in another channel is none.
        let again = lab.block(async {
            let link = taken.connect(&leaders).await?;
            let _its_own = taken.proof(&link, leader).await?;
            anyhow::Ok(taken.admit(&link, proof).await)
        })?;
        ensure!(again.as_ref().is_err_and(|s| s.code() == Code::PermissionDenied), "{again:?}");
        refused_for(lab, node, from, "qualifying-data")?;
        // Every quote of this node that the log ever took, oldest and newest.
        let tlog = Tlog::read(&http)?;
        let old: Vec<Command> = tlog
            .bodies(0)
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
        for command in [oldest, newest] {
            let reply = lab.block(taken.propose(&link, std::slice::from_ref(command)))?;
            ensure!(reply.queued, "{leader} leads no more: {reply:?}");
            wait_for("a leaf that says stale_nonce", SHOWS, || {
                ensure!(Tlog::read(&http)?.refuses(from, command, "stale_nonce"));
                Ok(())
            })?;
        }
        // It may not speak for clients either, not even what they signed: its place in the channel is for evidence.
        let raw = quorate_tests::raw::RawClient::new(lab.trust("app")?)?;
        let others: Vec<NodeId> = (1..=4).filter(|n| *n != node).map(NodeId).collect();
        let pool = raw.pool(&directory, "provider", others[0], others[1])?;
        let signed = raw.sign(quorate_core::command::ClientCommand::OpenPool(pool));
        let since = Tlog::read(&http)?.leaves.len() as u64;
        lab.block(taken.propose(&link, &[signed.clone(), oldest.clone()]))?;
        wait_for("what came with it is decided", SHOWS, || {
            let tlog = Tlog::read(&http)?;
            ensure!(tlog.refuses(since, oldest, "stale_nonce"));
            let taken = tlog
                .bodies(since)
                .any(|b| matches!(b, LeafBody::Decided { command, .. } if *command == signed));
            assert!(!taken, "a client's command was taken from a node that is not attested");
            Ok(())
        })?;
        is_out(lab, &client, node, from)?;
        // A client may not hand in evidence either.
        let verdict = lab.block(async {
            let link = raw.connect(&leaders).await?;
            quorate_tests::raw::submit_bytes(&link, quorate_core::crypto::encode(newest), vec![]).await
        })?;
        ensure!(verdict == quorate_tests::raw::Verdict::refused("wrong_command"), "{verdict:?}");
        lab.mesh.start_node(node)?;
        lab.mesh.wait_all_healthy(WHOLE)
    });
}

#[test]
fn a_fifth_member_joins_and_one_leaves() {
    LAB.run("a_fifth_member_joins_and_one_leaves", |lab| {
        let client = lab.client("app")?;
        let before = lab.ask(&client)?.provenance.request;
        let receipt = lab.block(client.receipt(before))?;
        let genesis = lab.mesh.dir.join("genesis.toml");
        let signed: quorate_core::policy::SignedPolicy =
            borsh::from_slice(&fs::read(lab.mesh.sites[0].dir.join("data/genesis"))?)?;
        fs::write(&genesis, &signed.document)?;
        lab.mesh.sign(&genesis)?;
        let fifth = lab.mesh.new_site(5)?;
        lab.change_policy(|mesh| mesh.enrol(&fifth))?;
        lab.mesh.init_node(&fifth, &genesis, true)?;
        lab.mesh.start_node(5)?;
        lab.mesh.wait_all_healthy(WHOLE)?;
        wait_for("the fifth cosigns", SHOWS, || {
            let names = cosigners(&checkpoint(&lab.mesh.sites[0].http)?.1);
            ensure!(names.contains(&"n5".to_owned()) && names.len() >= 4, "{names:?}");
            Ok(())
        })?;
        let one = Tlog::read(&fifth.http)?;
        let size = one.leaves.len() as u64;
        let other = wait_for("the first certifies as much", SHOWS, || {
            ensure!(checkpoint(&lab.mesh.sites[0].http)?.0.size.0 >= size);
            Tlog::read_to(&lab.mesh.sites[0].http, size)
        })?;
        ensure!(one.bytes == other.bytes, "the fifth has another history");
        lab.ask(&client)?;
        lab.ask(&lab.client("app")?)?;

        // And out again.
        lab.change_policy(|mesh| {
            mesh.edit_policy(|text| {
                let at = text.find("\n[[member]]\nid = 5").unwrap_or(text.len());
                let end = text
                    .get(at + 1..)
                    .and_then(|rest| rest.find("\n[").map(|n| at + 1 + n))
                    .unwrap_or(text.len());
                format!("{}{}", text.get(..at).unwrap_or_default(), text.get(end..).unwrap_or_default())
            })
        })?;
        wait_for("it is gone from the policy in force", SHOWS, || {
            let status = lab.statuses(&client);
            ensure!(status.iter().all(|s| s.node == 5 || s.nodes.len() == 4), "some still list five");
            Ok(())
        })?;
        lab.mesh.kill_node(5)?;
        lab.mesh.sites.pop();
        wait_for("four cosign and no fifth", SHOWS, || {
            let names = cosigners(&checkpoint(&lab.mesh.sites[0].http)?.1);
            ensure!(!names.contains(&"n5".to_owned()), "{names:?}");
            Ok(())
        })?;
        lab.ask(&client)?;
        lab.ask(&lab.client("app")?)?;
        receipt.verify(lab.trust("app")?.genesis)?;
        Ok(())
    });
}

#[test]
fn a_policy_needs_the_admins_and_the_right_predecessor() {
    LAB.run("a_policy_needs_the_admins_and_the_right_predecessor", |lab| {
        let client = lab.client("app")?;
        let version = lab.statuses(&client)[0].policy_version;
        let mesh = &lab.mesh;
        let next = mesh.dir.join("next.toml");
        fs::write(&next, run(&mut mesh.quorate(&["admin", "policy", "--next"]))?)?;
        let submit = |signature: &std::path::Path| {
            run(mesh.quorate(&["admin", "submit"]).arg(&next).arg(signature)).map_err(|e| format!("{e:#}"))
        };
        // Signed by somebody else.
        let stranger = mesh.dir.join("stranger");
        let _again = fs::remove_file(&stranger);
        run(std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&stranger))?;
        let sig = mesh.dir.join("stranger.sig");
        run(mesh.quorate(&["admin", "sign", "--key"]).arg(&stranger).arg("--out").arg(&sig).arg(&next))?;
        let refused = submit(&sig).err().context("a stranger's policy was taken")?;
        ensure!(refused.contains("not an admin's"), "{refused}");
        // Signed, then changed.
        let good = mesh.sign(&next)?;
        let document = fs::read_to_string(&next)?;
        fs::write(&next, format!("{document}\n# one more line\n"))?;
        let refused = submit(&good).err().context("a changed policy was taken")?;
        ensure!(refused.contains("does not verify") || refused.contains("signature"), "{refused}");
        fs::write(&next, &document)?;
        submit(&good).map_err(anyhow::Error::msg)?;
        // Taken once, it follows no more from the policy in force.
        let refused = submit(&good).err().context("an old policy was taken")?;
        // By the command, where it knows the new version already, or else by the log.
        ensure!(refused.contains("does not follow") || refused.contains("predecessor"), "{refused}");
        let now = lab.statuses(&client)[0].policy_version;
        ensure!(now == version + 1, "version {version}, then {now}");
        lab.ask(&client)?;
        Ok(())
    });
}

#[test]
fn genesis_is_not_taken_from_another_cluster() {
    LAB.run("genesis_is_not_taken_from_another_cluster", |lab| {
        // One byte of the digest in the trust file.
        let mut trust = lab.trust("app")?;
        trust.genesis.0[0] ^= 1;
        let error = lab.block(Client::connect(trust)).err().context("another genesis was believed")?;
        let text = quorate_client::chain(&error);
        ensure!(text.contains("genesis"), "{text}");
        let signed = borsh::from_slice(&fs::read(lab.mesh.sites[0].dir.join("data/genesis"))?)?;
        let (state, _) = State::genesis(signed)?;
        if state.cluster() != lab.trust("app")?.genesis {
            bail!("the node's genesis is another than the trust file's");
        }
        Ok(())
    });
}

/// Any node's log, mirrored while it grows, replays from the genesis digest to the last leaf, whatever the other tests did to the
/// mesh before; and a request in it is explained and proven.
#[test]
fn an_auditor_needs_nobodys_word() {
    LAB.run("an_auditor_needs_nobodys_word", |lab| {
        let client = lab.client("app")?;
        let (genesis, from) = (lab.trust("app")?.genesis, checkpoint(&lab.mesh.sites[0].http)?.0.size);
        let request = lab.ask(&client)?.provenance.request;
        wait_for("a settlement and a report", SHOWS, || {
            let tlog = Tlog::read(&lab.mesh.sites[0].http)?;
            ensure!(tlog.settlement(request).is_some() && tlog.report(request).is_some(), "not yet");
            Ok(())
        })?;
        // Those that are members still; the first is mirrored a second time, a request later.
        let members: Vec<_> = lab.mesh.sites.iter().filter(|s| lab.mesh.health(s.id).is_ok()).collect();
        for (dir, site) in
            members.iter().chain(members.first()).enumerate().map(|(n, s)| (n % members.len(), s))
        {
            let mirror = Mirror::at(&lab.mesh.dir.join(format!("audit-{dir}")));
            let source = Source {
                urls: vec![format!("http://{}", site.http)],
                genesis: Some(genesis),
                connections: 4,
            };
            let copied = wait_for(&format!("{} to serve the request", site.name), SHOWS, || {
                let copied = lab.block(mirror_log(&Http::new(), &source, &mirror, &|_, _| ()))?;
                ensure!(copied.size > from, "only {} leaves", copied.size);
                Ok(copied)
            })?;
            match verify(&mirror, genesis, Options::default(), |_, _| ())? {
                Verdict::Holds(verified) => {
                    ensure!(verified.size == copied.size && verified.cosigners.len() >= 3, "{verified:?}");
                }
                Verdict::Fails { findings, upto } => {
                    bail!("{}: after {upto} leaves: {findings:?}", site.name)
                }
            }
            lab.ask(&client)?;
        }
        let desk = Desk::open(Mirror::at(&lab.mesh.dir.join("audit-0")))?;
        let life = explain(&desk, request, genesis)?;
        ensure!(
            life.settled.is_some() && life.nodes.iter().filter(|n| !n.part.is_empty()).count() == 2,
            "{life:?}"
        );
        let proven = desk.prove(request, genesis)?;
        let note = desk.tlog_proof(&proven.receipt.0.leaves[0]);
        let note = Note::parse(note.split_once("\n\n").context("no note")?.1.as_bytes())?;
        ensure!(note.verified_by(&desk.verifier_keys(&proven))?.len() >= 3, "too few keys verify");
        Ok(())
    });
}
