//! Who may use how much: budgets that three nodes are asked for at once, money that a crash neither loses nor doubles, tokens that an
//! agent gets offline, and figures that every node gives alike, before and after all of them restarted.
//!
//! Real processes and software TPMs; needs the binaries. What each limit means is tested beside the state machine, over every order of
//! events; here the same figures come from a mesh that runs.
//!
//! **These bite**: one more request than the budget holds is asked for each time and refused by its stable code; the expected charge
//! is worked out here from what the provider said or from what the log holds, not read from the mesh.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "test code")]
use anyhow::{Context as _, ensure};
use quorate_client::{Client, Error, TrustFile};
use quorate_core::command::{Authorise, ClientCommand, ClientSigned, Command, Ended};
use quorate_core::ids::{Custodian, NodeId, RouteId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_proto::v1;
use quorate_tests::lab::{Key, Make, hello};
use quorate_tests::raw::{RawClient, Verdict};
use quorate_tests::stacks::Stack;
use quorate_tests::{Lab, Shared, Tlog, run, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

static LAB: Shared =
    Shared::new(Make { name: "governance", provider: &["--chunk-delay-ms", "20"], key: Key::None });

const SHOWS: Duration = Duration::from_secs(60);
/// Micro-units: of a request, of a token of input, of a cached one (a tenth), of one of output.
const REQUEST: u64 = 100_000;
const INPUT: u64 = 3;
const OUTPUT: u64 = 15;
/// How long a request may run, and be settled, ms: what nobody settles is charged soon.
const RUNS_MS: i64 = 20_000;
const SETTLES_MS: i64 = 4_000;

/// Limits as `quorate admin client add` takes them.
const CLIENTS: &[(&str, &[&str])] = &[
    ("days", &["--requests-per-day", "10"]),
    ("minutes", &["--requests-per-minute", "6"]),
    // Seven requests hold 0.70 and something for their tokens: an eighth would not fit.
    ("ann", &["--team", "till", "--money-per-month", "0.35"]),
    ("bob", &["--team", "till"]),
    ("brisk", &["--money-per-minute", "0.25"]),
    ("crash", &["--money-per-day", "9"]),
    ("issuer", &["--route", "second", "--token-lifetime", "10m", "--money-per-day", "50"]),
    ("lapsing", &["--token-lifetime", "10m"]),
    ("served", &["--money-per-day", "50"]),
    ("other", &[]),
];
const TEAM_DAY: &str = "0.75";

/// All clients, their team and prices, in one change of policy; the first test that runs makes it.
fn governed(lab: &Lab) -> anyhow::Result<()> {
    if lab.mesh.dir.join("other.toml").exists() {
        return Ok(());
    }
    lab.change_policy(|mesh| {
        let draft: toml::Table = fs::read_to_string(mesh.policy())?.parse()?;
        let route = &draft["route"].as_array().context("no route")?[0];
        let (host, port) = (route["host"].as_str().context("no host")?, route["port"].to_string());
        let second = [
            "route",
            "add",
            "--name",
            "second",
            "--host",
            host,
            "--port",
            &port,
            "--model",
            "second-chat",
            "--ca",
        ];
        mesh.admin(&second, &[&Stack::ca(mesh)])?;
        let team = ["team", "set", "--name", "till", "--money-per-day", TEAM_DAY];
        mesh.admin(&team, &[])?;
        for &(name, limits) in CLIENTS {
            let key = mesh.dir.join(format!("{name}.key"));
            let public = run(mesh.command("quorate").arg("keygen").arg(&key))?.trim().to_owned();
            let mut add = vec!["client", "add", "--name", name, "--key", &public, "--route", "provider"];
            add.extend(["--custodian", "developers"]);
            add.extend(limits);
            mesh.admin(&add, &[])?;
            let trust = fs::read_to_string(mesh.trust())?
                .replace("client = \"app\"", &format!("client = \"{name}\""))
                .replace("client.key", &format!("{name}.key"));
            fs::write(mesh.dir.join(format!("{name}.toml")), trust)?;
        }
        let price = [
            "price",
            "set",
            "--name",
            "demo/row",
            "--route",
            "provider",
            "--route",
            "second",
            "--model",
            "demo-chat",
            "--model",
            "second-chat",
            "--input",
            "3",
            "--cached-input",
            "0.30",
            "--output",
            "15",
            "--request",
            "0.10",
            "--currency",
            "USD",
        ];
        mesh.admin(&price, &[])?;
        mesh.edit_policy(|text| match text.parse::<toml::Table>() {
            Ok(mut draft) => {
                for route in draft["route"].as_array_mut().into_iter().flatten() {
                    if let Some(route) = route.as_table_mut() {
                        route.insert("duration_ms_max".into(), RUNS_MS.into());
                    }
                }
                if let Some(timing) = draft["attestation"].as_table_mut() {
                    timing.insert("settle_ms".into(), SETTLES_MS.into());
                }
                toml::to_string(&draft).unwrap_or(text)
            }
            Err(_) => text,
        })
    })
}

fn cost(input: u64, cached: u64, output: u64) -> u64 {
    ((input - cached) * INPUT * 10 + cached * INPUT).div_ceil(10) + output * OUTPUT + REQUEST
}

fn tlog(lab: &Lab) -> anyhow::Result<Tlog> {
    Tlog::read(&lab.mesh.sites[0].http)
}

/// What became of each request that a client asked for: minute, relay, and whether it was authorised.
struct Asked {
    minute: u64,
    authorise: Authorise,
    refused: Option<&'static str>,
}

fn asked(tlog: &Tlog, client: &str) -> Vec<Asked> {
    let one = |Leaf::V1 { time, body }: &Leaf| match body {
        LeafBody::Decided { command: Command::Client(ClientSigned { client: c, body, .. }), outcome }
            if c.as_str() == client =>
        {
            let ClientCommand::Authorise(a) = body else { return None };
            let refused = match outcome {
                Outcome::Refused(refusal) => Some(refusal.code()),
                _ => None,
            };
            Some(Asked { minute: time.0 / 60_000, authorise: a.clone(), refused })
        }
        _ => None,
    };
    tlog.leaves.iter().filter_map(one).collect()
}

/// So many at once, through several clients of one key, each with relays of its own: how many were served, and the codes of the rest.
fn at_once(lab: &Lab, names: &[&str], each: usize) -> anyhow::Result<(usize, BTreeMap<String, usize>)> {
    let clients = names.iter().map(|name| lab.client(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let answers = all_at_once(lab, clients.iter().flat_map(|client| (0..each).map(move |_| client)));
    let (mut served, mut codes) = (0, BTreeMap::<String, usize>::new());
    for answer in answers {
        match answer {
            Ok(_) => served += 1,
            Err(Error::Refused(refused)) => *codes.entry(refused.code.clone()).or_default() += 1,
            Err(error) => anyhow::bail!("neither served nor refused: {}", quorate_client::chain(&error)),
        }
    }
    lab.block(async {
        for client in &clients {
            client.flush().await;
        }
    });
    Ok((served, codes))
}

/// One short answer to each.
fn all_at_once<'c>(
    lab: &Lab,
    clients: impl Iterator<Item = &'c Client>,
) -> Vec<Result<quorate_client::ChatAnswer, Error>> {
    let clients: Vec<Client> = clients.cloned().collect();
    lab.block(async {
        let mut asks = tokio::task::JoinSet::new();
        for client in clients {
            asks.spawn(async move { client.chat(&hello("demo-chat")).await });
        }
        asks.join_all().await
    })
}

/// Figures as `quorate usage` prints them for an admin, once nothing runs and all nodes say the same.
fn figures(lab: &Lab, by: &str) -> anyhow::Result<Value> {
    wait_for("all nodes tell the same", SHOWS, || {
        let mut command = lab.mesh.quorate(&["usage", "--json", "--by", by, "--key"]);
        let told: Value = serde_json::from_str(&run(command.arg(lab.mesh.admin_key()))?)?;
        ensure!(told["agreeing"].as_array().is_some_and(|a| a.len() == 4), "{told}");
        Ok(told["usage"].clone())
    })
}

/// A client's day, once all of it is settled.
fn settled_day(lab: &Lab, client: &str) -> anyhow::Result<Value> {
    wait_for("everything is settled", SHOWS, || {
        let all = figures(lab, "client")?;
        let day = all[client]["day"].clone();
        ensure!(
            day["reserved_money"] == 0 && day["reserved_bytes"] == 0 && all[client]["in_flight"] == 0,
            "{all}"
        );
        Ok(day)
    })
}

fn code(error: &Error) -> String {
    match error {
        Error::Refused(refused) => refused.code.clone(),
        other => quorate_client::chain(other),
    }
}

/// Figures are of a UTC day: a test that would begin shortly before midnight begins after it.
fn in_one_day(test: &str, body: impl FnOnce(&mut Lab) -> anyhow::Result<()>) {
    const DAY_S: u64 = 86_400;
    const LONGEST_S: u64 = 90;
    LAB.run(test, |lab| {
        wait_for("a day that is long enough", Duration::from_secs(LONGEST_S + 5), || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let left = DAY_S - now.as_secs() % DAY_S;
            ensure!(left > LONGEST_S, "midnight in {left} s");
            Ok(())
        })?;
        body(lab)
    });
}

/// Thirty requests from fifteen clients of one grant at once, over several relays: ten are admitted, not nine and not eleven.
#[test]
fn a_budget_of_requests_is_exact_over_three_nodes_at_once() {
    in_one_day("a_budget_of_requests_is_exact_over_three_nodes_at_once", |lab| {
        governed(lab)?;
        let (served, codes) = at_once(lab, &["days"; 15], 2)?;
        ensure!(
            served == 10 && codes == BTreeMap::from([("request_budget_exceeded".to_owned(), 20)]),
            "{served} {codes:?}"
        );
        let all = asked(&tlog(lab)?, "days");
        let relays: BTreeSet<NodeId> = all.iter().map(|a| a.authorise.relay).collect();
        ensure!(relays.len() >= 3, "asked over {relays:?} alone");
        ensure!(all.iter().filter(|a| a.refused.is_none()).count() == 10);
        ensure!(settled_day(lab, "days")?["requests"] == 10);
        // A rate: in no minute more, and none refused in a minute that had room.
        let (served, codes) = at_once(lab, &["minutes", "minutes", "minutes"], 6)?;
        let refused = codes.get("rate_exceeded").copied().unwrap_or_default();
        ensure!(served + refused == 18 && codes.len() <= 1, "{served} {codes:?}");
        let mut minutes = BTreeMap::<u64, (usize, usize)>::new();
        for one in asked(&tlog(lab)?, "minutes") {
            let count = minutes.entry(one.minute).or_default();
            if one.refused.is_none() { count.0 += 1 } else { count.1 += 1 }
        }
        ensure!(
            minutes.values().all(|(admitted, refused)| *admitted <= 6 && (*admitted == 6 || *refused == 0)),
            "{minutes:?}"
        );
        Ok(())
    });
}

/// A team's money for a day, shared by two clients on several relays at once; one has a limit of its own for the month below it.
#[test]
fn money_is_exact_for_client_and_team() {
    in_one_day("money_is_exact_for_client_and_team", |lab| {
        governed(lab)?;
        // Three of its own fit into 0.35, and the team has room for seven.
        let (served, codes) = at_once(lab, &["ann", "ann"], 4)?;
        ensure!(
            served == 3 && codes == BTreeMap::from([("client_money_per_month".to_owned(), 5)]),
            "{served} {codes:?}"
        );
        settled_day(lab, "ann")?;
        let (served, codes) = at_once(lab, &["bob", "bob", "bob"], 4)?;
        ensure!(
            served == 4 && codes == BTreeMap::from([("team_money_per_day".to_owned(), 8)]),
            "{served} {codes:?}"
        );
        let (ann, bob) = (settled_day(lab, "ann")?, settled_day(lab, "bob")?);
        let money = |day: &Value| day["money"].as_u64().unwrap_or_default();
        let team = figures(lab, "team")?;
        ensure!(team["till"]["day"]["money"] == money(&ann) + money(&bob), "{team} {ann} {bob}");
        ensure!(
            team["till"]["day"]["requests"] == 7 && money(&ann) >= 3 * REQUEST && money(&bob) >= 4 * REQUEST
        );
        ensure!(money(&ann) + money(&bob) <= 750_000);
        // Per minute: at most two in any, whatever the load.
        let (served, codes) = at_once(lab, &["brisk", "brisk", "brisk"], 3)?;
        ensure!(served >= 2 && codes.keys().all(|c| c == "client_money_per_minute"), "{served} {codes:?}");
        let mut minutes = BTreeMap::<u64, usize>::new();
        for one in asked(&tlog(lab)?, "brisk").iter().filter(|a| a.refused.is_none()) {
            *minutes.entry(one.minute).or_default() += 1;
        }
        ensure!(minutes.values().all(|admitted| *admitted <= 2), "{minutes:?}");
        // What is left stands in the client's own view, without any admin.
        let own =
            run(lab.mesh.command("quorate").args(["usage", "--trust"]).arg(lab.mesh.dir.join("bob.toml")))?;
        ensure!(own.contains("team till") && own.contains("money per day") && own.contains("0.75"), "{own}");
        Ok(())
    });
}

/// Relay and client are killed in the middle of an answer: nobody settles or reports it. It is charged at the bound once its deadline
/// is over, once, and stays so when the node is back.
#[test]
fn a_crash_neither_loses_nor_doubles_money() {
    in_one_day("a_crash_neither_loses_nor_doubles_money", |lab| {
        governed(lab)?;
        let trust = lab.mesh.dir.join("crash.toml");
        let mut chat = lab.mesh.command("quorate");
        chat.args(["chat", "--model", "demo-chat", "--max-tokens", "900", "--trust"])
            .arg(&trust)
            .arg("hello");
        let mut chat = Running(chat.stdout(Stdio::piped()).spawn()?);
        let mut first = [0; 1];
        // Held open to the end: it would hang up by itself.
        let mut said = chat.0.stdout.take().context("no output")?;
        said.read_exact(&mut first)?;
        let one = wait_for("it is authorised", SHOWS, || {
            asked(&tlog(lab)?, "crash").pop().context("no authorisation")
        })?;
        ensure!(one.refused.is_none(), "{:?}", one.refused);
        let (a, relay) = (&one.authorise, one.authorise.relay.0);
        let running = figures_but(lab, "crash")?;
        // The relay does not live to see its client go.
        lab.mesh.pause_node(relay, true)?;
        chat.0.kill()?;
        lab.mesh.kill_node(relay)?;
        let input = a.tokens_in_max.min(a.body_bytes_max + 256);
        let output = a.tokens_out_max.min(a.response_bytes_max + 256);
        ensure!(output == 900, "the ceiling that was asked for: {output}");
        let (bytes, money) = (a.body_bytes_max + a.response_bytes_max, cost(input, 0, output));
        ensure!(running["reserved_money"] == money && running["money"] == 0, "held: {running}, not {money}");
        lab.make_whole()?;
        let unsettled = |tlog: &Tlog| {
            let of = |b: &&LeafBody| matches!(b, LeafBody::Unsettled { request, relay: true, client: true } if *request == a.request);
            tlog.bodies(0).filter(of).count()
        };
        wait_for("its deadline is over", SHOWS, || {
            ensure!(unsettled(&tlog(lab)?) == 1);
            Ok(())
        })?;
        let charged = settled_day(lab, "crash")?;
        let expected = [("requests", 1), ("bytes", bytes), ("money", money)];
        ensure!(expected.iter().all(|(what, n)| charged[*what] == *n), "{charged}, not {expected:?}");
        // A settlement that comes late, or the same client again, changes nothing of it.
        let client = lab.client("crash")?;
        lab.ask(&client)?;
        lab.block(client.flush());
        let after = settled_day(lab, "crash")?;
        let more =
            after["money"].as_u64().context("no money")?.checked_sub(money).context("less than before")?;
        ensure!(after["requests"] == 2 && (REQUEST..REQUEST + 100_000).contains(&more), "{after}");
        ensure!(unsettled(&tlog(lab)?) == 1);
        Ok(())
    });
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A client's day while something runs.
fn figures_but(lab: &Lab, client: &str) -> anyhow::Result<Value> {
    wait_for("it shows", SHOWS, || {
        let all = figures(lab, "client")?;
        ensure!(all[client]["in_flight"] == 1, "{all}");
        Ok(all[client]["day"].clone())
    })
}

/// `quorate token mint`, with these flags; the holder's trust file.
fn mint(lab: &Lab, issuer: &str, name: &str, flags: &[&str]) -> anyhow::Result<PathBuf> {
    let out = lab.mesh.dir.join(format!("{name}.toml"));
    let mut command = lab.mesh.command("quorate");
    command
        .args(["token", "mint", "--subject", name, "--trust"])
        .arg(lab.mesh.dir.join(format!("{issuer}.toml")));
    run(command.args(flags).arg("--out").arg(&out))?;
    Ok(out)
}

fn holder(lab: &Lab, file: &Path) -> anyhow::Result<Client> {
    Ok(lab.block(Client::connect(TrustFile::load(file)?))?)
}

/// An agent's token, minted offline: some routes, cents, minutes, one key.
#[test]
fn a_token_is_worth_what_its_issuer_wrote_on_it() {
    in_one_day("a_token_is_worth_what_its_issuer_wrote_on_it", |lab| {
        governed(lab)?;
        let refused = |file: &Path, expected: &str| -> anyhow::Result<()> {
            let client = holder(lab, file)?;
            let error = lab.ask(&client).err().with_context(|| format!("served, not {expected}"))?;
            ensure!(code(&error) == expected, "{}, not {expected}", code(&error));
            Ok(())
        };
        // Two requests fit into 0.25; a third does not, over whichever node.
        let cents =
            mint(lab, "issuer", "cents", &["--routes", "provider", "--money", "0.25", "--expires", "5m"])?;
        let agents = [holder(lab, &cents)?, holder(lab, &cents)?];
        let answers = all_at_once(lab, agents.iter().cycle().take(6));
        let served = answers.iter().filter(|a| a.is_ok()).count();
        let codes: BTreeSet<String> = answers.iter().filter_map(|a| a.as_ref().err()).map(code).collect();
        ensure!(
            served == 2 && codes == BTreeSet::from(["token_money_used_up".to_owned()]),
            "{served} {codes:?}"
        );
        let own = run(lab.mesh.command("quorate").args(["usage", "--trust"]).arg(&cents))?;
        ensure!(own.contains("token cents") && own.contains("client issuer"), "{own}");
        // Scopes: narrower than the issuer's holds; wider is worth nothing.
        let narrow = mint(lab, "issuer", "narrow", &["--routes", "second", "--expires", "5m"])?;
        let error = lab.ask(&holder(lab, &narrow)?).err().context("served, beyond its scope")?;
        // The SDK does not ask for it; what nodes say of those who do comes below.
        ensure!(error.code() == "model_not_found", "{}", error.code());
        let wide = mint(lab, "lapsing", "wide", &["--routes", "provider,second", "--expires", "5m"])?;
        refused(&wide, "token_too_wide")?;
        let long = mint(lab, "issuer", "long", &["--routes", "provider", "--expires", "11m"])?;
        refused(&long, "token_too_long")?;
        let barred = mint(lab, "served", "barred", &["--routes", "provider", "--expires", "5m"])?;
        refused(&barred, "may_not_issue")?;
        // Time.
        let brief = mint(lab, "issuer", "brief", &["--routes", "provider", "--expires", "6s"])?;
        wait_for("its time is over", SHOWS, || {
            let client = holder(lab, &brief)?;
            let error = lab.ask(&client).err().context("served")?;
            ensure!(code(&error) == "token_expired", "{}", code(&error));
            Ok(())
        })?;
        // Another key: the file's is replaced by that of another agent. The SDK itself sees that it is not the token's.
        let stolen = lab.mesh.dir.join("stolen.toml");
        fs::write(&stolen, fs::read_to_string(&cents)?.replace("cents.key", "wide.key"))?;
        let error = match lab.block(Client::connect(TrustFile::load(&stolen)?)) {
            Ok(client) => lab.ask(&client).err().context("served with another's token")?,
            Err(error) => error,
        };
        ensure!(error.code() == "wrong_client_key", "{}", error.code());
        nodes_refuse_what_the_sdk_does_not_ask(lab, &narrow, &wide)?;
        // Taken back, one by its issuer, and all of an issuer that admins revoke.
        let back = mint(lab, "lapsing", "back", &["--routes", "provider", "--expires", "5m"])?;
        let with_it = mint(lab, "lapsing", "with-it", &["--routes", "provider", "--expires", "5m"])?;
        for file in [&back, &with_it] {
            lab.ask(&holder(lab, file)?)?;
        }
        let revoke = || {
            let mut command = lab.mesh.command("quorate");
            command.args(["token", "revoke", "--trust"]).arg(lab.mesh.dir.join("lapsing.toml"));
            run(command.arg(&back))
        };
        revoke()?;
        refused(&back, "token_revoked")?;
        lab.change_policy(|mesh| {
            mesh.edit_draft(|draft| {
                let clients = draft.get_mut("client").and_then(toml::Value::as_array_mut);
                let mut clients = clients.into_iter().flatten().filter_map(toml::Value::as_table_mut);
                let lapsing =
                    clients.find(|c| c.get("name").and_then(toml::Value::as_str) == Some("lapsing"));
                lapsing.context("no such client")?.insert("revoked".into(), true.into());
                Ok(())
            })
        })?;
        refused(&with_it, "client_revoked")?;
        // What a token used, its issuer did.
        let day = settled_day(lab, "issuer")?;
        let admitted = asked(&tlog(lab)?, "issuer").iter().filter(|a| a.refused.is_none()).count() as u64;
        ensure!(admitted >= 2 && day["requests"] == admitted, "{admitted} admitted, {day}");
        ensure!(day["money"].as_u64() >= Some(admitted * REQUEST), "{day}");
        Ok(())
    });
}

/// Without the SDK's own checks: every node refuses a token for a route that is not among its own, and one with another agent's key,
/// whether that key opened the channel, signed, or both. The token's holder, with the route that it has, is served.
fn nodes_refuse_what_the_sdk_does_not_ask(lab: &Lab, narrow: &Path, other: &Path) -> anyhow::Result<()> {
    let held = RawClient::new(TrustFile::load(narrow)?)?;
    let stolen = RawClient::new(TrustFile { key: TrustFile::load(other)?.key, ..held.trust.clone() })?;
    let directory = lab.client("issuer")?.directory();
    let custodian = Custodian::new("developers")?;
    for site in &lab.mesh.sites {
        // (token's route, channel, signer, what comes of it)
        let cases = [
            ("provider", &held, &held, Some("out_of_scope")),
            ("second", &stolen, &stolen, Some("not_the_client")),
            ("second", &stolen, &held, Some("not_the_client")),
            ("second", &held, &stolen, Some("bad_signature")),
            ("second", &held, &held, None),
        ];
        for (route, channel, signer, refusal) in cases {
            let pairs = directory.pairs(&RouteId::new(route)?, &custodian);
            let &(relay, keyer) = pairs.first().context("no pair")?;
            let pool = signer.pool(&directory, route, relay, keyer)?;
            let verdict = lab.block(async {
                let link = channel.connect(&site.grpc).await?;
                signer.submit(&link, ClientCommand::OpenPool(pool)).await
            })?;
            let as_expected = match refusal {
                Some(code) => verdict == Verdict::refused(code),
                None => matches!(verdict, Verdict::Done(Outcome::PoolOpened, Some(_))),
            };
            ensure!(as_expected, "{}: {route}: {verdict:?}, not {refusal:?}", site.name);
        }
    }
    Ok(())
}

/// Figures are for whom they concern.
#[test]
fn strangers_and_other_clients_are_told_nothing() {
    in_one_day("strangers_and_other_clients_are_told_nothing", |lab| {
        governed(lab)?;
        let client = lab.client("other")?;
        lab.ask(&client)?;
        let asks = |request: v1::UsageRequest| {
            let answers = lab.block(client.usage(&request));
            answers.into_iter().map(|(_, a)| a.map_err(|e| code(&e))).collect::<Vec<_>>()
        };
        let own = asks(v1::UsageRequest { client: "other".into(), ..Default::default() });
        for reply in own {
            let reply = reply.map_err(anyhow::Error::msg)?;
            ensure!(
                reply.clients.iter().all(|c| c.name == "other")
                    && reply.routes.is_empty()
                    && reply.days.is_empty(),
                "{reply:?}"
            );
        }
        for other in ["app", "nobody"] {
            let request = v1::UsageRequest { client: other.into(), ..Default::default() };
            ensure!(asks(request).iter().all(|a| a.as_ref().is_err_and(|code| code == "not_the_client")));
        }
        // A key that is no admin's, and none at all.
        let key = lab.mesh.dir.join("no-admin");
        run(Process::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        let mut usage = lab.mesh.quorate(&["usage", "--by", "day", "--key"]);
        let said = run(usage.arg(&key)).err().context("told a stranger")?;
        ensure!(format!("{said:#}").contains("no admin"), "{said:#}");
        let said =
            run(&mut lab.mesh.quorate(&["usage", "--by", "route"])).err().context("told without a key")?;
        ensure!(format!("{said:#}").contains("--key"), "{said:#}");
        Ok(())
    });
}

/// An adapter for one test.
struct Adapter {
    _process: Running,
    address: String,
}

impl Adapter {
    fn start(lab: &Lab, client: &str) -> anyhow::Result<Self> {
        let mut command = lab.mesh.command("quorate");
        command.args(["serve", "--listen", "127.0.0.1:0", "--trust"]);
        command.arg(lab.mesh.dir.join(format!("{client}.toml"))).stdout(Stdio::piped());
        let mut process = Running(command.spawn().context("cannot start quorate serve")?);
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().context("no output")?).read_line(&mut line)?;
        let address =
            line.strip_prefix("quorate serve: ready http://").and_then(|l| l.split_whitespace().next());
        let address = address.with_context(|| format!("said {line:?}"))?.to_owned();
        Ok(Self { _process: process, address })
    }

    fn open(&self, body: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(SHOWS))?;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + body).as_bytes())?;
        Ok(stream)
    }

    fn post(&self, body: &str) -> anyhow::Result<String> {
        let mut text = String::new();
        self.open(body)?.read_to_string(&mut text)?;
        ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
        Ok(text)
    }
}

fn chat(more: &str) -> String {
    format!(
        "{{\"model\":\"demo-chat\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello there\"}}]{more}}}"
    )
}

/// Tokens of the usage object in an answer: input, cached, output.
fn usage_in(text: &str) -> anyhow::Result<(u64, u64, u64)> {
    let at = text.rfind("\"usage\":{").context("no usage")? + "\"usage\":".len();
    let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
    let usage = values.next().context("no usage")??;
    let n = |v: &Value| v.as_u64().unwrap_or_default();
    Ok((
        n(&usage["prompt_tokens"]),
        n(&usage["prompt_tokens_details"]["cached_tokens"]),
        n(&usage["completion_tokens"]),
    ))
}

/// What an application does through `quorate serve` is charged as the provider counted it, and what it hangs up on as far as it went.
#[test]
fn what_the_provider_counts_is_what_is_charged() {
    in_one_day("what_the_provider_counts_is_what_is_charged", |lab| {
        governed(lab)?;
        let adapter = Adapter::start(lab, "served")?;
        let money =
            |lab: &Lab| anyhow::Ok(settled_day(lab, "served")?["money"].as_u64().context("no money")?);
        let requests = |n: u64| {
            wait_for("it is counted", SHOWS, || {
                ensure!(settled_day(lab, "served")?["requests"] == n);
                Ok(())
            })
        };
        let whole = adapter.post(&chat(",\"max_tokens\":9"))?;
        let (input, cached, output) = usage_in(&whole)?;
        ensure!(output > 0 && input > 0, "{whole}");
        requests(1)?;
        let first = money(lab)?;
        ensure!(first == cost(input, cached, output), "{first}: {whole}");
        // Streamed, by an application that asks for no usage: the adapter sees to it that it is metered all the same.
        let streamed = adapter.post(&chat(",\"max_tokens\":12,\"stream\":true"))?;
        ensure!(streamed.contains("[DONE]"), "{streamed}");
        requests(2)?;
        let second = money(lab)? - first;
        let tlog = tlog(lab)?;
        let id = asked(&tlog, "served").last().context("nothing asked")?.authorise.request;
        let report = tlog.report(id).context("no report")?;
        ensure!(report.ended == Ended::Complete && report.tokens_out > 0, "{report:?}");
        ensure!(
            second == cost(report.tokens_in, report.tokens_cached, report.tokens_out),
            "{second}: {report:?}"
        );
        ensure!(report.tokens_in == input, "the same prompt: {report:?} and {input}");
        // Hung up on: more than nothing, less than all that it asked for.
        let mut stream = adapter.open(&chat(",\"max_tokens\":300,\"stream\":true"))?;
        let mut some = [0; 900];
        stream.read_exact(&mut some)?;
        drop(stream);
        requests(3)?;
        let third = money(lab)? - first - second;
        let tlog = Tlog::read(&lab.mesh.sites[0].http)?;
        let cancelled = asked(&tlog, "served").last().context("nothing asked")?.authorise.clone();
        let report = tlog.report(cancelled.request).context("no report")?;
        ensure!(report.ended == Ended::Cancelled, "{report:?}");
        let held = cost(cancelled.body_bytes_max + 256, 0, 300);
        ensure!(third > REQUEST && third < held, "{third} of {held}: {report:?}");
        Ok(())
    });
}

/// All nodes restart: everybody's figures are what they were, and the state is the same on every node, byte for byte.
#[test]
fn figures_outlive_all_nodes() {
    in_one_day("figures_outlive_all_nodes", |lab| {
        governed(lab)?;
        let client = lab.client("other")?;
        lab.ask(&client)?;
        lab.block(client.flush());
        let seen = figures(lab, "client")?;
        for name in seen.as_object().context("no clients")?.keys() {
            settled_day(lab, name)?;
        }
        let all = |lab: &Lab| {
            let without_minutes = |mut v: Value| {
                for one in v.as_object_mut().into_iter().flat_map(|o| o.values_mut()) {
                    one.as_object_mut().map(|o| o.remove("minute"));
                }
                v
            };
            ["client", "team", "route", "day"]
                .into_iter()
                .map(|by| Ok(without_minutes(figures(lab, by)?)))
                .collect::<anyhow::Result<Vec<_>>>()
        };
        let before = all(lab)?;
        // By client, by route and by day they add up to the same.
        let sum = |v: &Value, window: &str, what: &str| -> u64 {
            let of =
                |one: &Value| if window.is_empty() { one[what].as_u64() } else { one[window][what].as_u64() };
            v.as_object().into_iter().flat_map(|o| o.values()).filter_map(of).sum()
        };
        for what in ["requests", "bytes", "money", "tokens_in", "tokens_out"] {
            let by = [sum(&before[0], "day", what), sum(&before[2], "day", what), sum(&before[3], "", what)];
            ensure!(by[0] > 0 && by.iter().all(|n| *n == by[0]), "{what}: {by:?}");
        }
        // And what the log says was admitted is what is counted.
        let tlog = tlog(lab)?;
        for (name, _) in CLIENTS {
            let admitted = asked(&tlog, name).iter().filter(|a| a.refused.is_none()).count() as u64;
            let counted = before[0][name]["day"]["requests"].as_u64().unwrap_or_default();
            ensure!(admitted == counted, "{name}: {admitted} leaves, {counted} counted");
        }
        for site in &lab.mesh.sites {
            lab.mesh.stop_node(site.id)?;
        }
        lab.make_whole()?;
        ensure!(all(lab)? == before, "the figures are others after a restart");
        let client = lab.client("app")?;
        wait_for("one state on all nodes", SHOWS, || {
            let statuses = lab.statuses(&client);
            let states: BTreeSet<(u64, String)> =
                statuses.iter().map(|s| (s.tree_size, s.state_digest.clone())).collect();
            ensure!(statuses.len() == 4 && states.len() == 1, "{states:?}");
            Ok(())
        })
    });
}
