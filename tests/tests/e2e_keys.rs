//! A provider's key that exists nowhere: searched for while requests run; refused, rotated, withdrawn, restarted around; and
//! served by TLS stacks that are not ours.
//!
//! Real processes and software TPMs; needs the binaries, and root for the search of memory. Each test names what it shows.
//!
//! **These bite**: the same search finds the key when it is put into one node, in memory or in a file, whole or in part
//! ([`nobody_has_the_key`]); the same pairs serve again when the admins put the right key back.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "test code")]
use anyhow::{Context as _, ensure};
use base64::Engine as _;
use quorate_client::{Client, Error, Fault, Retry};
use quorate_cluster::mesh::{Load, Mesh};
use quorate_cluster::scan::{Memory, Scan, scan};
use quorate_core::command::{Authorise, ClientCommand, Command, Ended};
use quorate_core::leaf::{LeafBody, Outcome};
use quorate_proto::v1::ShareStatus;
use quorate_tests::lab::{Key, Make, hello};
use quorate_tests::stacks::{self, Stack};
use quorate_tests::{Lab, Shared, Tlog, run, skipped, wait_for};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

static LAB: Shared = Shared::new(Make {
    name: "keys",
    provider: &["--model", "nginx-chat", "--chunk-delay-ms", "2"],
    key: Key::Made,
});

/// For something to show in the log or a status.
const SHOWS: Duration = Duration::from_secs(20);
/// Searches while requests run.
const SCANS: usize = 5;
/// Of the key, put where it must be found.
const PLANTED: usize = 16;

/// A further route to a server of the same key, with one model; the app may use it.
fn add_route(lab: &Lab, name: &str, port: u16) -> anyhow::Result<()> {
    lab.change_policy(|mesh| {
        route(mesh, name, port)?;
        mesh.set_credential(name, mesh.key_file.as_deref().context("no key")?)
    })
}

fn route(mesh: &Mesh, name: &str, port: u16) -> anyhow::Result<()> {
    let (port, model) = (port.to_string(), format!("{name}-chat"));
    let flags =
        ["route", "add", "--name", name, "--host", "localhost", "--port", &port, "--model", &model, "--ca"];
    mesh.admin(&flags, &[&Stack::ca(mesh)])?;
    mesh.edit_policy(|text| {
        text.replace("routes = [\"provider\"", &format!("routes = [\"provider\", \"{name}\""))
    })
}

/// Takes a route away again, for the tests after this one.
fn drop_route(lab: &Lab, name: &str) -> anyhow::Result<()> {
    lab.change_policy(|mesh| {
        mesh.edit_policy(|text| {
            let text = text.replace(&format!(", \"{name}\""), "");
            let mut draft: toml::Table = text.parse().unwrap();
            draft["route"].as_array_mut().unwrap().retain(|r| r["name"].as_str() != Some(name));
            toml::to_string(&draft).unwrap()
        })
    })
}

/// What a node says of its shares.
fn shares(lab: &Lab, client: &Client, node: u64) -> anyhow::Result<Vec<ShareStatus>> {
    let status = lab.statuses(client).into_iter().find(|s| s.node == node);
    Ok(status.context("it does not answer")?.shares)
}

/// Waits until every node holds the shares of every route with a key.
fn all_hold(lab: &Lab, client: &Client) -> anyhow::Result<()> {
    wait_for("all nodes hold their shares", SHOWS, || {
        for site in &lab.mesh.sites {
            let shares = shares(lab, client, site.id)?;
            ensure!(!shares.is_empty() && shares.iter().all(|s| s.held), "{}: {shares:?}", site.name);
        }
        Ok(())
    })
}

/// Asks until this node was both relay and keyer.
fn serves(lab: &Lab, node: u64) -> anyhow::Result<()> {
    let (mut relayed, mut keyed) = (false, false);
    for _ in 0..60 {
        let provenance = lab.ask(&lab.client("app")?)?.provenance;
        relayed |= provenance.relay.0 == node;
        keyed |= provenance.keyer.0 == node;
        if relayed && keyed {
            return Ok(());
        }
    }
    anyhow::bail!("node {node}: relay: {relayed}, keyer: {keyed}, of 60 requests")
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Statuses of all requests that the demo provider took so far.
fn accepted(mesh: &Mesh) -> anyhow::Result<Vec<u64>> {
    let text = fs::read_to_string(mesh.dir.join("provider.access"))?;
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.iter().filter(|l| l["event"] == "request").filter_map(|l| l["status"].as_u64()).collect())
}

#[test]
fn nobody_has_the_key() {
    if !is_root() {
        return skipped("nobody_has_the_key", "reading the memory of processes needs root");
    }
    LAB.run("nobody_has_the_key", |lab| {
        // Were cores written, they would be long: nodes are started with the limit of this process.
        run(std::process::Command::new("prlimit").args([
            "--pid",
            &std::process::id().to_string(),
            "--core=unlimited:unlimited",
        ]))?;
        for site in lab.mesh.sites.iter() {
            lab.mesh.stop_node(site.id)?;
        }
        lab.make_whole()?;
        let nginx = stacks::nginx(&lab.mesh)?;
        match &nginx {
            Some(nginx) => add_route(lab, "nginx", nginx.port)?,
            None => skipped("nobody_has_the_key", "nginx is not installed: with the demo provider alone"),
        }
        let models: &[&str] = if nginx.is_some() { &["demo-chat", "nginx-chat"] } else { &["demo-chat"] };
        let client = lab.client("app")?;
        all_hold(lab, &client)?;
        drop(client);
        let before = accepted(&lab.mesh)?.len();
        let secret = lab.mesh.secret()?;
        let load = Load::start(&lab.mesh, models, 4)?;
        let clients = [("the application", load.pid())];
        let search = |lab: &Lab| scan(&lab.mesh, &secret, &clients);
        for number in 0..SCANS {
            let answered = accepted(&lab.mesh)?.len();
            let scan = search(lab)?;
            scan.clean()?;
            ensure!(scan.processes == 5 && scan.mappings > 200 && scan.files > 50, "{scan:?}");
            println!(
                "search {number}: {} processes, {} mappings, {} files, {:.2} GB",
                scan.processes,
                scan.mappings,
                scan.files,
                scan.bytes as f64 / 1e9
            );
            wait_for("requests went on", SHOWS, || {
                ensure!(accepted(&lab.mesh)?.len() > answered + 8);
                Ok(())
            })?;
        }
        plant(lab, &secret, &search)?;
        abort(lab, &search)?;
        let fared = load.end()?;
        // The one that was made to end took what went through it along.
        ensure!(fared.errors.len() <= 8 && fared.answered > 50, "{fared:?}");
        let statuses = accepted(&lab.mesh)?;
        ensure!(
            statuses.len() as u64 - before as u64 >= fared.answered,
            "{} answered",
            statuses.len() - before
        );
        ensure!(statuses[before..].iter().all(|s| *s == 200), "the provider refused: {statuses:?}");
        if let Some(nginx) = &nginx {
            let log = nginx.read("access.log");
            let took = log.lines().filter(|l| l.contains("/chat/")).count();
            let refused: Vec<&str> =
                log.lines().filter(|l| l.contains("/chat/") && !l.starts_with("200 ")).collect();
            ensure!(took > 20 && refused.is_empty(), "nginx took {took} and refused {refused:?}");
            drop_route(lab, "nginx")?;
        }
        Ok(())
    });
}

/// The same search finds the key where it was put.
fn plant(lab: &Lab, secret: &[u8], search: &dyn Fn(&Lab) -> anyhow::Result<Scan>) -> anyhow::Result<()> {
    let site = lab.mesh.site(2)?;
    let pid = site.pid().context("it does not run")?;
    // The far end of the main thread's stack: the kernel gave it, nothing stands there any more.
    let mappings = Memory::open(pid)?.mappings()?;
    let stack = mappings.iter().find(|m| m.name == "[stack]").context("no stack")?.start;
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut there = vec![0; PLANTED];
    memory.read_exact_at(&mut there, stack)?;
    let from = secret.len() / 3;
    memory.write_all_at(&secret[from..from + PLANTED], stack)?;
    let planted = search(lab)?;
    memory.write_all_at(&there, stack)?;
    let place = format!("memory of {} at {stack:#x}", site.name);
    ensure!(planted.found.iter().any(|f| f.place == place && f.length >= PLANTED), "{:?}", planted.found);
    search(lab)?.clean()?;
    // In files: as base64 in a log, as hex deep in its data.
    let encoded = base64::engine::general_purpose::URL_SAFE.encode([&b"Bearer sk-"[..], secret].concat());
    let hex: String = secret[..PLANTED].iter().map(|b| format!("{b:02X}")).collect();
    for (file, text) in [("core", encoded), ("data/x", hex)] {
        let file = site.dir.join(file);
        fs::write(&file, format!("authorization={text}\n"))?;
        let planted = search(lab)?;
        fs::remove_file(&file)?;
        let name = file.display().to_string();
        ensure!(planted.found.iter().any(|f| f.place.starts_with(&name)), "{name}: {:?}", planted.found);
    }
    search(lab)?.clean()
}

/// A node that dies in the middle of its work leaves no core dump, where others do.
fn abort(lab: &Lab, search: &dyn Fn(&Lab) -> anyhow::Result<Scan>) -> anyhow::Result<()> {
    let cores = |dir: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let all = fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(all
            .into_iter()
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("core")))
            .collect())
    };
    let elsewhere = lab.mesh.dir.join("cores");
    fs::create_dir_all(&elsewhere)?;
    let _aborted =
        std::process::Command::new("sh").args(["-c", "kill -ABRT $$"]).current_dir(&elsewhere).status()?;
    if cores(&elsewhere)?.is_empty() {
        println!("this system writes core dumps elsewhere or not at all");
    }
    let site = lab.mesh.site(3)?;
    let pid = site.pid().context("it does not run")?;
    run(std::process::Command::new("kill").args(["-ABRT", &pid.to_string()]))?;
    wait_for("it is gone", SHOWS, || {
        ensure!(!site.runs());
        Ok(())
    })?;
    let left = cores(&site.dir)?;
    ensure!(left.is_empty(), "{left:?}");
    lab.make_whole()?;
    search(lab)?.clean()
}

/// Starts the demo provider with this key.
fn provider_with(lab: &mut Lab, key: &Path) -> anyhow::Result<()> {
    let flags = lab.mesh.demo_provider.as_mut().context("no demo provider")?;
    let at = flags.iter().position(|f| f == "--key-file").context("no key")?;
    flags[at + 1] = key.display().to_string();
    lab.mesh.stop_provider();
    lab.mesh.start_provider()
}

/// Pairs that authorisations name, from some leaf on.
/// What the log authorised to this client.
fn authorised(tlog: &Tlog, by: &str, from: u64) -> Vec<Authorise> {
    let by_it = |body: &LeafBody| match body {
        LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => match &c.body {
            ClientCommand::Authorise(a) if c.client.as_str() == by => Some(a.clone()),
            _ => None,
        },
        _ => None,
    };
    tlog.bodies(from).filter_map(by_it).collect()
}

fn grant(lab: &Lab, names: &[&str]) -> anyhow::Result<()> {
    lab.change_policy(|mesh| {
        for name in names {
            let key = mesh.dir.join(format!("{name}.key"));
            let public = run(mesh.command("quorate").arg("keygen").arg(&key))?.trim().to_owned();
            let trust = fs::read_to_string(mesh.trust())?
                .replace("client = \"app\"", &format!("client = \"{name}\""))
                .replace("client.key", &format!("{name}.key"));
            fs::write(mesh.dir.join(format!("{name}.toml")), trust)?;
            mesh.admin(
                &[
                    "client",
                    "add",
                    "--name",
                    name,
                    "--key",
                    &public,
                    "--route",
                    "provider",
                    "--custodian",
                    "developers",
                ],
                &[],
            )?;
        }
        Ok(())
    })
}

fn rotate(mesh: &Mesh) -> anyhow::Result<()> {
    mesh.admin(
        &["credential", "rotate", "provider", "--from-file"],
        &[mesh.key_file.as_deref().context("no key")?],
    )
}

/// A key that the provider no longer takes: its own answer reaches the application, each failure counts against its pair, three
/// clients freeze the credential, and a new splitting ends that without a restart of anything.
#[test]
fn a_key_that_the_provider_refuses() {
    LAB.run("a_key_that_the_provider_refuses", |lab| {
        grant(lab, &["ada", "bo", "cy"])?;
        let right = lab.mesh.key_file.clone().context("no key")?;
        let other = lab.mesh.dir.join("provider/other-key");
        fs::write(&other, "sk-demo-another-key-of-another-account-entirely-0000")?;
        let early = lab.client("app")?;
        lab.ask(&early)?;
        let http = lab.mesh.sites[0].http.clone();
        let from = Tlog::read(&http)?.leaves.len() as u64;
        provider_with(lab, &other)?;
        let mut tried = BTreeSet::new();
        for name in ["ada", "bo"] {
            let client = lab.client(name)?;
            let begun = Tlog::read(&http)?.leaves.len() as u64;
            for asked in 1..=2 {
                let error = lab.ask(&client).err().context("served with a wrong key")?;
                let Error::Provider { status: 401, body } = &error else {
                    anyhow::bail!("{name}: {error:?}")
                };
                ensure!(String::from_utf8_lossy(body).contains("invalid_api_key"), "{error:?}");
                ensure!(error.fault() == Fault::Provider && error.retry() == Retry::Never, "{error:?}");
                // A pair that failed this client is not tried with it again.
                wait_for("both are reported", SHOWS, || {
                    let tlog = Tlog::read(&http)?;
                    let ids: Vec<_> = authorised(&tlog, name, begun).iter().map(|a| a.request).collect();
                    ensure!(ids.len() >= asked && ids.iter().all(|id| tlog.report(*id).is_some()), "{ids:?}");
                    let reports: Vec<_> = ids.iter().filter_map(|id| tlog.report(*id)).collect();
                    ensure!(
                        reports.iter().all(|r| (r.status, r.ended) == (401, Ended::Complete)),
                        "{reports:?}"
                    );
                    Ok(())
                })?;
            }
            let pairs = authorised(&Tlog::read(&http)?, name, begun);
            let over: Vec<_> = pairs.iter().map(|a| (a.relay, a.keyer)).collect();
            ensure!(
                over.iter().collect::<BTreeSet<_>>().len() == over.len(),
                "{name} tried a pair twice: {over:?}"
            );
            tried.extend(over);
        }
        ensure!(tried.len() >= 2, "{tried:?}");
        let cy = lab.client("cy")?;
        let error = lab.ask(&cy).err().context("served with a wrong key")?;
        ensure!(matches!(&error, Error::Provider { status: 401, .. }), "{error:?}");
        wait_for("the credential is frozen", SHOWS, || {
            let tlog = Tlog::read(&http)?;
            ensure!(tlog.bodies(from).any(|b| matches!(b, LeafBody::CredentialFrozen { .. })));
            Ok(())
        })?;
        let error = lab.ask(&early).err().context("served while frozen")?;
        ensure!(matches!(&error, Error::Refused(r) if r.code == "credential_frozen"), "{error:?}");
        // The account has its key back; the admins split it anew.
        provider_with(lab, &right)?;
        lab.change_policy(rotate)?;
        for client in [&early, &cy] {
            lab.ask(client)?;
        }
        Ok(())
    });
}

/// Shares change under an application that asks without pause: nothing but refusals that ask to try again.
#[test]
fn a_new_splitting_under_load() {
    LAB.run("a_new_splitting_under_load", |lab| {
        let client = lab.client("app")?;
        let epoch = |lab: &Lab| anyhow::Ok(shares(lab, &client, 1)?[0].share_epoch);
        let before = epoch(lab)?;
        let load = Load::start(&lab.mesh, &["demo-chat"], 4)?;
        for _ in 0..2 {
            lab.change_policy(rotate)?;
            let took = accepted(&lab.mesh)?.len();
            wait_for("requests went on", SHOWS, || {
                ensure!(accepted(&lab.mesh)?.len() > took + 20);
                Ok(())
            })?;
        }
        let fared = load.end()?;
        println!("{} answered, {} asked again", fared.answered, fared.again);
        ensure!(fared.errors.is_empty() && fared.answered > 40, "{fared:?}");
        ensure!(epoch(lab)? >= before + 2);
        all_hold(lab, &client)
    });
}

/// The TPM opens a node's shares again after the node was killed, and after the machine was.
#[test]
fn a_node_that_was_killed_opens_its_shares_again() {
    LAB.run("a_node_that_was_killed_opens_its_shares_again", |lab| {
        let node = 4;
        let site = lab.mesh.site(node)?.clone();
        for power in [false, true] {
            lab.mesh.kill_node(node)?;
            if power {
                lab.mesh.tpm(&site, "power-cycle")?;
            }
            lab.make_whole()?;
            all_hold(lab, &lab.client("app")?)?;
            serves(lab, node)?;
        }
        Ok(())
    });
}

/// Software whose approval was withdrawn opens nothing: the node says so, and others serve.
#[test]
fn a_withdrawn_approval() {
    LAB.run("a_withdrawn_approval", |lab| {
        let node = 2;
        let client = lab.client("app")?;
        lab.change_policy(|mesh| {
            mesh.edit_policy(|text| {
                let mut draft: toml::Table = text.parse().unwrap();
                for member in draft["member"].as_array_mut().unwrap() {
                    if member["id"].as_integer() == Some(2) {
                        member.as_table_mut().unwrap().remove("approvals");
                    }
                }
                toml::to_string(&draft).unwrap()
            })
        })?;
        wait_for("it holds none, and says why", SHOWS, || {
            let shares = shares(lab, &client, node)?;
            ensure!(
                shares.iter().all(|s| !s.held && !s.reason.is_empty()) && !shares.is_empty(),
                "{shares:?}"
            );
            Ok(())
        })?;
        let shown = run(&mut lab.mesh.quorate(&["status", "--routes"]))?;
        println!("{shown}");
        for _ in 0..6 {
            // Half of the pairs have this node, and a new client knows of none.
            let provenance = lab.ask(&lab.client("app")?)?.provenance;
            ensure!(provenance.relay.0 != node && provenance.keyer.0 != node, "{provenance:?}");
        }
        // The old approvals are worth nothing any more, though they stand in every old policy: its counter was raised.
        lab.change_policy(|mesh| mesh.approve(&["--withdraw", "n2"]))?;
        lab.make_whole()?;
        all_hold(lab, &client)?;
        serves(lab, node)
    });
}

/// A member without a share key, and shares for other members than there are, are mistakes that `check` names.
#[test]
fn members_and_shares_that_do_not_fit() {
    LAB.run("members_and_shares_that_do_not_fit", |lab| {
        let mesh = &lab.mesh;
        let text = run(&mut mesh.quorate(&["admin", "policy", "--next"]))?;
        let file = mesh.dir.join("unfit.toml");
        let check = |change: &dyn Fn(&mut toml::Table)| -> anyhow::Result<String> {
            let mut draft: toml::Table = text.parse()?;
            change(&mut draft);
            fs::write(&file, toml::to_string(&draft)?)?;
            let checked = run(mesh.command("quorate").args(["admin", "check"]).arg(&file));
            Ok(checked.err().map(|e| format!("{e:#}")).unwrap_or_default())
        };
        ensure!(check(&|_| ())?.is_empty());
        let said = check(&|draft| drop(draft["member"][1].as_table_mut().unwrap().remove("share_key")))?;
        ensure!(said.contains("no share_key"), "{said}");
        let said = check(&|draft| drop(draft["member"].as_array_mut().unwrap().remove(3)))?;
        ensure!(said.contains("exactly the members") && said.contains("credential rotate"), "{said}");
        Ok(())
    });
}

/// An admin tries the key over every pair, and sees which one fails.
#[test]
fn every_pair_is_checked() {
    LAB.run("every_pair_is_checked", |lab| {
        all_hold(lab, &lab.client("app")?)?;
        let key = lab.mesh.admin_key();
        let check = || {
            let mut check = lab.mesh.quorate(&["admin", "credential", "check", "provider", "--key"]);
            check.arg(&key);
            check
        };
        let said = run(&mut check())?;
        for relay in 1..=4 {
            for keyer in (1..=4).filter(|k| *k != relay) {
                let line = said.lines().find(|l| {
                    let mut words = l.split_whitespace();
                    words.next() == Some(&format!("n{relay}")) && words.next() == Some(&format!("n{keyer}"))
                });
                let line = line.with_context(|| format!("n{relay} n{keyer} is not there:\n{said}"))?;
                ensure!(line.contains("ok"), "{line}");
            }
        }
        Ok(())
    });
}

/// A provider without the one suite is refused with the cure, before and after its key is split.
#[test]
fn a_provider_without_the_suite() {
    LAB.run("a_provider_without_the_suite", |lab| {
        let cure = |text: &str| text.contains("CHACHA20");
        let aes = stacks::only_aes(&lab.mesh)?;
        let refused = add_route(lab, "aes", aes.port).err().context("a key was split for it")?;
        ensure!(cure(&format!("{refused:#}")), "{refused:#}");
        // It went away from a provider that had it: TLS of another stack than the first.
        let flags = lab.mesh.demo_provider.clone().context("no demo provider")?;
        lab.mesh.stop_provider();
        lab.mesh.demo_provider = Some(flags.iter().cloned().chain(["--only-aes".to_owned()]).collect());
        lab.mesh.start_provider()?;
        let error = lab.ask(&lab.client("app")?).err().context("served")?;
        lab.mesh.stop_provider();
        lab.mesh.demo_provider = Some(flags);
        lab.mesh.start_provider()?;
        ensure!(matches!(error, Error::ProviderSuite { .. }), "{error:?}");
        let said = format!("{error} {}", error.hint());
        ensure!(cure(&said) && error.fault() == Fault::Provider && error.retry() == Retry::Never, "{said}");
        lab.ask(&lab.client("app")?)?;
        Ok(())
    });
}

/// Keyed requests over three TLS stacks, none of which has code in common: rustls, OpenSSL, Java's.
#[test]
fn three_stacks_take_the_key() {
    LAB.run("three_stacks_take_the_key", |lab| {
        let (nginx, java) = (stacks::nginx(&lab.mesh)?, stacks::java(&lab.mesh)?);
        for (name, stack) in [("nginx", &nginx), ("java", &java)] {
            match stack {
                Some(stack) => add_route(lab, name, stack.port)?,
                None => skipped("three_stacks_take_the_key", &format!("{name} is not installed")),
            }
        }
        let all = [
            ("rustls", "demo-chat", true),
            ("OpenSSL", "nginx-chat", nginx.is_some()),
            ("Java", "java-chat", java.is_some()),
        ];
        let client = lab.client("app")?;
        all_hold(lab, &client)?;
        for (stack, model, _) in all.iter().filter(|(.., there)| *there) {
            for _ in 0..4 {
                let answer = lab.block(client.chat(&hello(model)));
                let answer = answer.map_err(|e| anyhow::anyhow!("{stack}: {}", quorate_client::chain(&e)))?;
                ensure!(!answer.text.is_empty(), "{stack}: an empty answer");
            }
        }
        for (name, stack) in [("nginx", &nginx), ("java", &java)] {
            if stack.is_some() {
                drop_route(lab, name)?;
            }
        }
        Ok(())
    });
}
