//! Who may take part: machines that booted otherwise, other TPMs, old quotes; and how admins change the set.
//!
//! Real processes and software TPMs; needs the binaries. Each test names its row of the fault table.
//!
//! The attacks themselves are the drill's (`quorate_tests::drill::machines`). **These bite**: with the reference values of the
//! mesh widened to what the altered machine measures, the same machine is admitted, which [`a_node_whose_pcrs_differ`] does in
//! its last step; and [`an_old_quote_played_again`] first hands in a proof of its own making, which is taken.
#![forbid(unsafe_code)]
use anyhow::{Context as _, bail, ensure};
use quorate_audit::fetch::Client as Http;
use quorate_audit::life::explain;
use quorate_audit::mirror::{Source, mirror_log};
use quorate_audit::prove::Desk;
use quorate_audit::replay::Options;
use quorate_audit::store::Mirror;
use quorate_audit::verify::{Verdict, verify};
use quorate_client::Client;
use quorate_core::state::State;
use quorate_core::tlog::Note;
use quorate_tests::drill::machines;
use quorate_tests::lab::{Key, Make, WHOLE};
use quorate_tests::tlog::{checkpoint, cosigners};
use quorate_tests::{Shared, Tlog, run, wait_for};
use std::fs;
use std::time::Duration;

static LAB: Shared = Shared::new(Make { name: "attestation", provider: &[], key: Key::None });

/// For something to show in the log.
const SHOWS: Duration = Duration::from_secs(20);

#[test]
fn a_node_whose_pcrs_differ() {
    LAB.run("a_node_whose_pcrs_differ", |lab| {
        machines::tampered_boot(lab)?;
        machines::tampered_binary(lab).map(drop)
    });
}

#[test]
fn a_node_with_another_tpm() {
    LAB.run("a_node_with_another_tpm", |lab| machines::cuckoo_tpm(lab).map(drop));
}

#[test]
fn an_old_quote_played_again() {
    LAB.run("an_old_quote_played_again", |lab| {
        machines::replayed_quote(lab)?;
        machines::replayed_evidence(lab).map(drop)
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
