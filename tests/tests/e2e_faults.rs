//! Nodes, TPMs and disks fail; the mesh says so, goes on where it can, loses nothing, and comes back by itself.
//!
//! Real processes and software TPMs; needs the binaries. Each test names its row of the fault table.
#![forbid(unsafe_code)]
use anyhow::{Context as _, bail, ensure};
use quorate_client::{Client, Error, Fault, Retry};
use quorate_core::command::{CheckpointRef, ClientCommand};
use quorate_core::crypto::encode;
use quorate_core::ids::NodeId;
use quorate_core::leaf::LeafBody;
use quorate_core::policy::SignedPolicy;
use quorate_core::proof::Receipt;
use quorate_core::state::State;
use quorate_core::testing::MemoryBlobs;
use quorate_tests::lab::{Key, Make, rest_of};
use quorate_tests::raw::{RawClient, Verdict};
use quorate_tests::tlog::{checkpoint, cosigners};
use quorate_tests::{Lab, Shared, Tlog, http_get, run, skipped, wait_for};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Streams take 40 ms a word; long enough to be in flight.
static LAB: Shared = Shared::new(Make {
    name: "faults",
    provider: &["--chunk-delay-ms", "40", "--tokens", "400"],
    key: Key::None,
});

/// What the issue promises after the loss of one node, and for a refusal.
const SOON: Duration = Duration::from_secs(3);
/// A node that says nothing is given up after the channel's keep-alive (some 5 s); a request may meet two such nodes, and
/// then asks who is there.
const HUNG: Duration = Duration::from_secs(15);
/// What it promises after the loss of all.
const SERVING_AGAIN: Duration = Duration::from_secs(15);

#[test]
fn one_of_four_killed_leader_included() {
    LAB.run("one_of_four_killed_leader_included", |lab| {
        let client = lab.client("app")?;
        lab.ask(&client)?;
        for kill_leader in [false, true] {
            let leader = lab.leader(&client)?;
            let victim = if kill_leader { leader } else { leader % 4 + 1 };
            let (_lost, stream) = lab.stream_through(victim, 300)?;
            lab.mesh.kill_node(victim)?;
            let killed = Instant::now();
            let error = lab.block(rest_of(stream)).err().context("the stream through it was whole")?;
            ensure!(killed.elapsed() < SOON, "the request in flight hung for {:?}", killed.elapsed());
            ensure!(
                error.retry() != Retry::Never && error.fault() == Fault::Mesh,
                "not retryable: {error:?}"
            );
            // Whoever was not on its path is served, and whoever was, too.
            let answer = wait_for("requests go on", SOON, || {
                lab.ask(&client)
                    .inspect_err(|e| assert!(e.retry() != Retry::Never, "{e:?}"))
                    .map_err(Into::into)
            })?;
            ensure!(killed.elapsed() < SOON, "requests went on after {:?}", killed.elapsed());
            ensure!(answer.provenance.relay.0 != victim && answer.provenance.keyer.0 != victim);
            lab.make_whole()?;
        }
        Ok(())
    });
}

#[test]
fn two_of_four_gone() {
    LAB.run("two_of_four_gone", |lab| {
        let client = lab.client("app")?;
        lab.ask(&client)?;
        let leader = lab.leader(&client)?;
        let gone = [leader, leader % 4 + 1];
        gone.iter().try_for_each(|n| lab.mesh.kill_node(*n))?;
        let killed = Instant::now();
        let mut refusals = 0;
        // Before and after their evidence lapses.
        while refusals < 3 || killed.elapsed() < Duration::from_millis(quorate_tests::lab::TIMING.1) {
            let asked = Instant::now();
            let error = lab.ask(&client).err().context("served without a quorum")?;
            ensure!(asked.elapsed() < SOON, "refused after {:?}: {error}", asked.elapsed());
            // Only a request that was on its way when they died may not know.
            let Error::Dark(darkness) = &error else {
                ensure!(asked.duration_since(killed) < Duration::from_secs(1), "names no quorum: {error:?}");
                ensure!(error.retry() != Retry::Never && error.fault() == Fault::Mesh, "{error:?}");
                continue;
            };
            ensure!(darkness.quorum == 3 && error.retry() == Retry::Later, "{error:?}");
            for node in gone {
                let named = darkness.missing.iter().any(|m| m.starts_with(&format!("n{node} ")));
                ensure!(named, "n{node} is not named: {error}");
            }
            refusals += 1;
        }
        let asked = Instant::now();
        let said = run(&mut lab.mesh.quorate(&["chat", "--model", "demo-chat", "hello"]));
        let said = said.err().context("served without a quorum")?.to_string();
        ensure!(asked.elapsed() < SOON * 2, "the command took {:?}", asked.elapsed());
        ensure!(gone.iter().all(|n| said.contains(&format!("n{n} "))), "it names no lost quorum: {said}");
        gone.iter().try_for_each(|n| lab.mesh.start_node(*n))?;
        wait_for("it recovers by itself", SERVING_AGAIN, || Ok(lab.ask(&client)?))?;
        Ok(())
    });
}

/// Connections stay open and say nothing: only time tells. Keep-alives notice it.
#[test]
fn two_of_four_hang() {
    LAB.run("two_of_four_hang", |lab| {
        let client = lab.client("app")?;
        lab.ask(&client)?;
        let leader = lab.leader(&client)?;
        let hung = [leader, leader % 4 + 1];
        hung.iter().try_for_each(|n| lab.mesh.pause_node(*n, true))?;
        let named = wait_for("a refusal that names them", Duration::from_secs(20), || {
            let asked = Instant::now();
            let error = lab.ask(&client).err().context("served without a quorum")?;
            assert!(asked.elapsed() < HUNG, "hung for {:?}: {error}", asked.elapsed());
            assert!(error.retry() != Retry::Never, "{error:?}");
            let Error::Dark(darkness) = error else { bail!("{error:?}") };
            Ok(darkness.missing)
        })?;
        ensure!(named.len() == 2, "{named:?}");
        hung.iter().try_for_each(|n| lab.mesh.pause_node(*n, false))?;
        wait_for("it recovers by itself", SERVING_AGAIN, || Ok(lab.ask(&client)?))?;
        Ok(())
    });
}

/// What was certified before, and receipts of it.
struct Before {
    certified: CheckpointRef,
    tlog: Tlog,
    receipts: Vec<(quorate_core::ids::RequestId, String)>,
}

impl Before {
    fn take(lab: &Lab, client: &Client) -> anyhow::Result<Self> {
        let mut receipts = Vec::new();
        for _ in 0..3 {
            let request = lab.ask(client)?.provenance.request;
            receipts.push((request, lab.block(client.receipt(request))?.to_text()));
        }
        // The most that any node shows as certified.
        let all = lab.mesh.sites.iter().map(|s| checkpoint(&s.http).map(|(c, _)| (c, &s.http)));
        let all = all.collect::<anyhow::Result<Vec<_>>>()?;
        let (certified, http) = all.into_iter().max().context("nothing is certified")?;
        Ok(Self { certified, tlog: Tlog::read_to(http, certified.size.0)?, receipts })
    }

    /// Every certified leaf is on every node, under the same root, and receipts prove what they proved.
    fn check(&self, lab: &Lab, client: &Client) -> anyhow::Result<()> {
        let size = self.certified.size.0;
        for site in &lab.mesh.sites {
            wait_for(&format!("{} has what was certified", site.name), Duration::from_secs(10), || {
                let (now, _) = checkpoint(&site.http)?;
                ensure!(now.size >= self.certified.size, "it shows {} of {size}", now.size.0);
                Ok(())
            })?;
            let now = Tlog::read(&site.http)?;
            ensure!(now.root(size)? == self.certified.root, "{}: another root at {size}", site.name);
            let kept = self.tlog.bytes.iter().zip(&now.bytes).all(|(before, now)| before == now);
            ensure!(
                kept && now.bytes.len() >= self.tlog.bytes.len(),
                "{}: a certified leaf is gone",
                site.name
            );
        }
        let genesis = lab.trust("app")?.genesis;
        for (request, receipt) in &self.receipts {
            Receipt::from_text(receipt)?.verify(genesis)?;
            let again = lab.block(client.receipt(*request)).context("no receipt for an old request")?;
            again.verify(genesis)?;
        }
        Ok(())
    }
}

fn all_killed(test: &str, meanwhile: impl FnOnce(&Lab) -> anyhow::Result<()>) {
    LAB.run(test, |lab| {
        let client = lab.client("app")?;
        let before = Before::take(lab, &client)?;
        for site in &lab.mesh.sites {
            lab.mesh.kill_node(site.id)?;
        }
        meanwhile(lab)?;
        lab.mesh.start_nodes()?;
        let started = Instant::now();
        wait_for("serving without an operator", SERVING_AGAIN, || Ok(lab.ask(&client)?))?;
        println!("{test}: serving after {:.1} s", started.elapsed().as_secs_f64());
        ensure!(started.elapsed() < SERVING_AGAIN, "serving after {:?}", started.elapsed());
        lab.mesh.wait_all_healthy(SERVING_AGAIN)?;
        before.check(lab, &client)
    });
}

#[test]
fn all_killed_at_once() {
    all_killed("all_killed_at_once", |_| Ok(()));
}

#[test]
fn all_killed_and_dark_for_longer_than_the_lapse() {
    all_killed("all_killed_and_dark_for_longer_than_the_lapse", |_| {
        let dark = Instant::now();
        let lapse = Duration::from_millis(quorate_tests::lab::TIMING.1 + 1_000);
        wait_for("the lapse has passed", lapse * 2, || {
            if dark.elapsed() > lapse { Ok(()) } else { bail!("not yet") }
        })
    });
}

#[test]
fn all_killed_and_the_tpms_power_cycled() {
    all_killed("all_killed_and_the_tpms_power_cycled", |lab| {
        lab.mesh.sites.iter().try_for_each(|site| lab.mesh.tpm(site, "kill"))
    });
}

#[test]
fn a_tpm_dies() {
    LAB.run("a_tpm_dies", |lab| {
        let client = lab.client("app")?;
        let victim = lab.leader(&client)? % 4 + 1;
        let (site, node) = (lab.mesh.site(victim)?.clone(), NodeId(victim));
        let http = lab.http_but(victim).remove(0);
        let (before, _) = checkpoint(&http)?;
        // What a client knew while it was attested.
        let raw = RawClient::new(lab.trust("app")?)?;
        let known = client.directory();
        let pool = |relay, keyer| raw.pool(&known, "provider", relay, keyer);
        let others: Vec<NodeId> = (1..=4).filter(|n| *n != victim).map(NodeId).collect();
        lab.mesh.tpm(&site, "kill")?;
        wait_for("a leaf says that it lapsed", Duration::from_secs(15), || {
            let tlog = Tlog::read(&http)?;
            let said = tlog
                .bodies(before.size.0)
                .any(|body| matches!(body, LeafBody::Lapsed { node: n } if *n == node));
            ensure!(said, "no such leaf among {}", tlog.leaves.len());
            Ok(())
        })?;
        wait_for("it says so itself", SOON, || {
            let health = lab.mesh.health(victim)?;
            ensure!(health.starts_with("not attested"), "{health}");
            Ok(())
        })?;
        // Neither relay nor keyer, for those who choose...
        for _ in 0..6 {
            let provenance = lab.ask(&lab.client("app")?)?.provenance;
            ensure!(provenance.relay != node && provenance.keyer != node, "{provenance:?}");
        }
        // ...and for those who insist.
        let link = lab.block(raw.connect(&lab.mesh.site(others[0].0)?.grpc))?;
        for (relay, keyer, code) in
            [(node, others[0], "relay_not_attested"), (others[0], node, "keyer_not_attested")]
        {
            let command = ClientCommand::OpenPool(pool(relay, keyer)?);
            let verdict = lab.block(raw.submit(&link, command.clone()))?;
            ensure!(verdict == Verdict::refused(code), "{verdict:?}, not {code}");
            wait_for("a leaf of the refusal", Duration::from_secs(5), || {
                ensure!(Tlog::read(&http)?.refuses(before.size.0, &raw.sign(command.clone()), code));
                Ok(())
            })?;
        }
        // Nor cosigner: of what is certified from now on it signs nothing that counts.
        let (seen, _) = checkpoint(&http)?;
        for _ in 0..3 {
            let (_, note) = wait_for("a newer checkpoint", Duration::from_secs(5), || {
                let (now, note) = checkpoint(&http)?;
                ensure!(now.size > seen.size, "still {}", now.size.0);
                Ok((now, note))
            })?;
            let names = cosigners(&note);
            ensure!(names.len() == 3 && !names.contains(&site.name), "{names:?}");
        }
        // A machine whose TPM was off has to boot: the launcher plays the firmware again.
        lab.mesh.kill_node(victim)?;
        lab.mesh.start_node(victim)?;
        lab.mesh.wait_all_healthy(SERVING_AGAIN)?;
        wait_for("it cosigns again", Duration::from_secs(10), || {
            let names = cosigners(&checkpoint(&http)?.1);
            ensure!(names.contains(&site.name), "{names:?}");
            Ok(())
        })
    });
}

/// A small file system of its own below a node's data folder.
struct SmallDisk<'a> {
    data: &'a Path,
}

impl<'a> SmallDisk<'a> {
    fn mount(data: &'a Path, megabytes: u32) -> anyhow::Result<Self> {
        let moved = data.with_extension("moved");
        fs::rename(data, &moved)?;
        fs::create_dir(data)?;
        let options = format!("size={megabytes}m");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(data));
        if mounted.is_err() {
            fs::remove_dir(data)?;
            fs::rename(&moved, data)?;
        }
        mounted?;
        run(Command::new("cp").arg("-a").arg(moved.join(".")).arg(data))?;
        fs::remove_dir_all(moved)?;
        Ok(Self { data })
    }

    /// Takes all the space there is.
    fn fill(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut file = fs::File::create(self.data.join("filler"))?;
        let zeros = vec![0; 1 << 12];
        while file.write_all(&zeros).is_ok() {}
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.data.join("filler"))?)
    }

    /// Puts the folder back on the big disk.
    fn unmount(self) -> anyhow::Result<()> {
        let moved = self.data.with_extension("moved");
        run(Command::new("cp").arg("-a").arg(self.data).arg(&moved))?;
        run(Command::new("umount").arg(self.data))?;
        fs::remove_dir(self.data)?;
        Ok(fs::rename(moved, self.data)?)
    }
}

#[test]
fn a_disk_is_full() {
    LAB.run("a_disk_is_full", |lab| {
        let client = lab.client("app")?;
        let before = Before::take(lab, &client)?;
        // The leader's disk: the hardest to do without.
        let victim = lab.leader(&client)?;
        let data = lab.mesh.site(victim)?.dir.join("data");
        lab.mesh.stop_node(victim)?;
        let disk = match SmallDisk::mount(&data, 256) {
            Ok(disk) => disk,
            Err(error) => {
                skipped("a_disk_is_full", &format!("no small disk can be mounted here: {error:#}"));
                return lab.make_whole();
            }
        };
        lab.mesh.start_node(victim)?;
        lab.mesh.wait_all_healthy(quorate_tests::lab::WHOLE)?;
        disk.fill()?;
        let asked = |what: &str| wait_for(what, SOON, || Ok(lab.ask(&client)?));
        wait_for("it says that its disk is full", Duration::from_secs(30), || {
            lab.ask(&client)?;
            let health = lab.mesh.health(victim)?;
            ensure!(health.starts_with("failed:"), "{}", health.trim());
            Ok(())
        })?;
        ensure!(lab.trace(victim)?.contains("acknowledges nothing more"), "its trace does not say so");
        asked("the others go on")?;
        let names = wait_for("the others certify without it", Duration::from_secs(15), || {
            let names = cosigners(&checkpoint(&lab.http_but(victim)[0])?.1);
            ensure!(!names.contains(&format!("n{victim}")), "{names:?}");
            Ok(names)
        })?;
        ensure!(names.len() == 3, "{names:?}");
        disk.free()?;
        lab.mesh.kill_node(victim)?;
        lab.mesh.start_node(victim)?;
        lab.mesh.wait_all_healthy(quorate_tests::lab::WHOLE)?;
        before.check(lab, &client)?;
        lab.mesh.stop_node(victim)?;
        disk.unmount()?;
        lab.make_whole()
    });
}

#[test]
fn sigterm_drains() {
    LAB.run("sigterm_drains", |lab| {
        let client = lab.client("app")?;
        lab.ask(&client)?;
        let victim = lab.leader(&client)? % 4 + 1;
        let (_client, stream) = lab.stream_through(victim, 60)?;
        let started = lab.trace(victim)?.len();
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let stopping = scope.spawn(|| lab.mesh.stop_node(victim));
            let text = lab.block(rest_of(stream)).context("the running request was cut")?;
            ensure!(text.split_whitespace().count() >= 50, "only {text:?}");
            stopping.join().ok().context("panicked")??;
            Ok(())
        })?;
        let trace = lab.trace(victim)?.split_off(started);
        ensure!(trace.contains("draining") && trace.contains("stopped") && !trace.contains("cut"), "{trace}");
        lab.ask(&client)?;
        lab.make_whole()
    });
}

#[test]
fn every_node_has_the_same_state_and_the_log_replays_to_it() {
    LAB.run("every_node_has_the_same_state_and_the_log_replays_to_it", |lab| {
        let client = lab.client("app")?;
        for _ in 0..5 {
            lab.ask(&client)?;
        }
        let (size, digest) = wait_for("all nodes stand at one size", Duration::from_secs(20), || {
            let all = lab.statuses(&client);
            ensure!(all.len() == 4, "{} answer", all.len());
            let sizes: Vec<u64> = all.iter().map(|s| s.tree_size).collect();
            ensure!(sizes.iter().all(|s| *s == sizes[0]), "{sizes:?}");
            // At one size there is one state: no second look, no excuse.
            for s in &all {
                assert_eq!(
                    (&s.state_digest, &s.root),
                    (&all[0].state_digest, &all[0].root),
                    "node {}",
                    s.node
                );
            }
            Ok((all[0].tree_size, all[0].state_digest.clone()))
        })?;
        let site = &lab.mesh.sites[0];
        let tlog = wait_for("that size is certified", Duration::from_secs(10), || {
            ensure!(checkpoint(&site.http)?.0.size.0 >= size);
            Tlog::read_to(&site.http, size)
        })?;
        let mut blobs = MemoryBlobs::default();
        for blob in fs::read_dir(site.dir.join("data/blobs"))? {
            blobs.put(fs::read(blob?.path())?);
        }
        let genesis: SignedPolicy = borsh::from_slice(&fs::read(site.dir.join("data/genesis"))?)?;
        let (mut state, first) = State::genesis(genesis)?;
        let mut replayed = vec![first];
        for batch in tlog.batches()? {
            replayed.extend(state.apply(&encode(&batch), &blobs).leaf_bytes);
        }
        let differs = replayed.iter().zip(&tlog.bytes).position(|(ours, theirs)| ours != theirs);
        ensure!(
            differs.is_none() && replayed.len() == tlog.bytes.len(),
            "leaf {differs:?} replays otherwise"
        );
        ensure!(state.digest().to_string() == digest, "the replayed state has another digest");
        println!("{size} leaves replayed");
        Ok(())
    });
}

#[test]
fn every_node_serves_metrics_and_names_itself_healthy() {
    LAB.run("every_node_serves_metrics_and_names_itself_healthy", |lab| {
        for site in &lab.mesh.sites {
            let (status, metrics) = http_get(&site.http, "/metrics")?;
            ensure!(
                status == 200 && metrics.contains("quorate_nodes_attested 4"),
                "{}: {metrics}",
                site.name
            );
            let (status, _) = http_get(&site.http, "/healthz")?;
            ensure!(status == 200);
        }
        Ok(())
    });
}
