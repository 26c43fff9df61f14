//! Bad requests, bad clients, bad bytes and bad providers: each a clear, typed refusal, and every node stays up.
//!
//! Real processes and software TPMs; needs the binaries. Each test names its row of the fault table.
//!
//! **These bite**: each altered request has its unaltered twin, which goes through ([`altered_and_replayed_requests`]); each
//! refused client becomes a served one by the change of policy that the refusal asks for.
#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "test code")]
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use quorate_client::{Client, Error, Fault, Retry, TrustFile};
use quorate_cluster::mesh::http_get;
use quorate_core::command::{Authorise, ClientCommand, Command, Ended};
use quorate_core::crypto::encode;
use quorate_core::ids::{NodeId, PolicyVersion, RequestId, RouteId};
use quorate_core::leaf::{AnomalyRule, LeafBody, Outcome};
use quorate_proto::v1::{self, tunnel_up};
use quorate_tests::lab::{Key, Make, hello, rest_of};
use quorate_tests::raw::{RawClient, Ready, Tunnel, Verdict, code_of, mesh, now, submit_bytes};
use quorate_tests::{Lab, Shared, Tlog, run, wait_for};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use tonic::Code;

static LAB: Shared = Shared::new(Make { name: "requests", provider: &["--slow-ms", "300"], key: Key::None });

const SHOWS: Duration = Duration::from_secs(10);

/// Adds a client with a key of its own to the draft, and writes its trust file.
fn add_client(lab: &Lab, name: &str, flags: &[&str]) -> anyhow::Result<String> {
    let mesh = &lab.mesh;
    let key = mesh.dir.join(format!("{name}.key"));
    let public = run(mesh.command("quorate").arg("keygen").arg(&key))?.trim().to_owned();
    let trust = std::fs::read_to_string(mesh.trust())?
        .replace("client = \"app\"", &format!("client = \"{name}\""))
        .replace("client.key", &format!("{name}.key"));
    std::fs::write(mesh.dir.join(format!("{name}.toml")), trust)?;
    let mut add = vec!["client", "add", "--name", name, "--key", &public, "--route", "provider"];
    add.extend(flags);
    if !flags.contains(&"--custodian") {
        add.extend(["--custodian", "developers"]);
    }
    mesh.admin(&add, &[])?;
    Ok(public)
}

/// An honest pool of this client as the app's directory has it, and a link to its relay.
fn honest_pool(
    lab: &Lab,
    raw: &RawClient,
    route: &str,
) -> anyhow::Result<(
    quorate_core::command::OpenPool,
    quorate_transport::Connected,
    quorate_transport::Connected,
)> {
    let directory = lab.client("app")?.directory();
    let custodian = quorate_core::ids::Custodian::new("developers")?;
    let (relay, keyer) = directory.pairs(&RouteId::new("provider")?, &custodian)[0];
    let pool = raw.pool(&directory, route, relay, keyer)?;
    let link = |n: NodeId| lab.mesh.site(n.0).map(|s| s.grpc.clone());
    let (relay, keyer) = (link(relay)?, link(keyer)?);
    lab.block(async { Ok((pool, raw.connect(&relay).await?, raw.connect(&keyer).await?)) })
}

/// All nodes are there and serve.
fn all_up(lab: &Lab) -> anyhow::Result<()> {
    ensure!(lab.mesh.sites.iter().all(|s| s.runs()), "a node ended");
    lab.mesh.wait_all_healthy(SHOWS)?;
    lab.ask(&lab.client("app")?)?;
    for site in &lab.mesh.sites {
        let trace = lab.trace(site.id)?;
        ensure!(!trace.contains("panicked"), "{} panicked", site.name);
    }
    Ok(())
}

/// The leaf of a refusal.
fn leaf_refuses(lab: &Lab, from: u64, command: &Command, code: &str) -> anyhow::Result<()> {
    wait_for(&format!("a leaf that says {code}"), SHOWS, || {
        ensure!(Tlog::read(&lab.mesh.sites[0].http)?.refuses(from, command, code));
        Ok(())
    })
}

#[test]
fn clients_that_may_not() {
    LAB.run("clients_that_may_not", |lab| {
        let from = Tlog::read(&lab.mesh.sites[0].http)?.leaves.len() as u64;
        lab.change_policy(|mesh| {
            add_client(lab, "late", &["--expires", "2020-01-01T00:00:00Z"])?;
            add_client(lab, "gone", &[])?;
            add_client(lab, "narrow", &[])?;
            add_client(lab, "poor", &["--requests-per-minute", "100000", "--requests-per-day", "1"])?;
            add_client(lab, "hasty", &["--requests-per-minute", "1"])?;
            add_client(lab, "thin", &["--bytes-per-day", "1000"])?;
            add_client(lab, "inside", &["--custodian", "operators-1"])?;
            mesh.admin(&["client", "revoke", "--name", "gone"], &[])?;
            mesh.edit_policy(|text| {
                // One more route, which only the app may use.
                let route = text.find("[[route]]").unwrap();
                let end = text[route + 1..].find("\n[[").map_or(text.len(), |n| route + 1 + n);
                let other = text[route..end]
                    .replace("name = \"provider\"", "name = \"other\"")
                    .replace("demo-chat", "other-chat");
                format!("{text}\n{other}\n")
            })
        })?;
        // A new client is served at once.
        let narrow = lab.client("narrow")?;
        lab.ask(&narrow)?;
        // Pools: who may not, and why, to the client and in the log.
        let directory = lab.client("app")?.directory();
        for (name, route, code) in [
            ("late", "provider", "client_expired"),
            ("gone", "provider", "client_revoked"),
            ("narrow", "other", "out_of_scope"),
            ("narrow", "none", "unknown_route"),
        ] {
            let raw = RawClient::new(lab.trust(name)?)?;
            let (pool, relay, _) = honest_pool(lab, &raw, route)?;
            let command = ClientCommand::OpenPool(pool);
            let verdict = lab.block(raw.submit(&relay, command.clone()))?;
            ensure!(verdict == Verdict::refused(code), "{name}: {verdict:?}, not {code}");
            leaf_refuses(lab, from, &raw.sign(command), code)?;
        }
        // The same through the SDK: an error that names it.
        for (name, code) in [("late", "client_expired"), ("gone", "client_revoked")] {
            let error = lab.client(name).and_then(|c| Ok(lab.ask(&c)?)).err().context("served")?;
            let error = error.downcast::<Error>()?;
            let Error::Refused(refusal) = &error else { anyhow::bail!("{name}: {error:?}") };
            ensure!(refusal.code == code && error.retry() == Retry::Never, "{name}: {refusal:?}");
        }
        let error = lab.block(narrow.chat(&hello("other-chat"))).err().context("served")?;
        ensure!(matches!(&error, Error::UnknownModel { model } if model == "other-chat"), "{error:?}");
        // One request, then none.
        for (name, code, retry) in
            [("poor", "request_budget_exceeded", Retry::Later), ("hasty", "rate_exceeded", Retry::Later)]
        {
            let client = lab.client(name)?;
            lab.ask(&client)?;
            let begun = Instant::now();
            let error = lab.ask(&client).err();
            // A minute may have just begun anew.
            let error = error.or_else(|| lab.ask(&client).err()).context("served again")?;
            ensure!(begun.elapsed() < Duration::from_secs(3));
            let Error::Refused(refusal) = &error else { anyhow::bail!("{name}: {error:?}") };
            ensure!(
                refusal.code == code && error.retry() == retry && refusal.fault == Fault::Client,
                "{name}: {refusal:?}"
            );
        }
        let error = lab.ask(&lab.client("thin")?).err().context("served beyond its bytes")?;
        ensure!(matches!(&error, Error::Refused(r) if r.code == "byte_budget_exceeded"), "{error:?}");
        // Its own people run node 1: no path leads through there, and none that insists is opened.
        let inside = lab.client("inside")?;
        for _ in 0..4 {
            let provenance = lab.ask(&inside)?.provenance;
            ensure!(provenance.relay != NodeId(1) && provenance.keyer != NodeId(1), "{provenance:?}");
        }
        let raw = RawClient::new(lab.trust("inside")?)?;
        for (relay, keyer) in [(1, 2), (2, 1), (2, 2)] {
            let link = lab.block(raw.connect(&lab.mesh.site(relay)?.grpc))?;
            let command =
                ClientCommand::OpenPool(raw.pool(&directory, "provider", NodeId(relay), NodeId(keyer))?);
            let verdict = lab.block(raw.submit(&link, command.clone()))?;
            ensure!(
                verdict == Verdict::refused("same_custodian"),
                "relay {relay}, keyer {keyer}: {verdict:?}"
            );
            leaf_refuses(lab, from, &raw.sign(command), "same_custodian")?;
        }
        // Revoked in the middle of its work: its open connections are no use from then on.
        lab.change_policy(|mesh| mesh.admin(&["client", "revoke", "--name", "narrow"], &[]))?;
        let error = lab.ask(&narrow).err().context("served after its revocation")?;
        ensure!(matches!(&error, Error::Refused(r) if r.code == "client_revoked"), "{error:?}");
        // Nobody the policy knows; and the right name with another key.
        lab.change_policy(|_| add_client(lab, "stranger", &[]).map(drop))?;
        let trust = lab.trust("stranger")?;
        let unknown = TrustFile { client: quorate_core::ids::ClientId::new("nobody")?, ..trust.clone() };
        let error = lab.block(Client::connect(unknown)).err().context("served")?;
        ensure!(matches!(error, Error::UnknownClient { .. }), "{error:?}");
        let app = TrustFile { client: quorate_core::ids::ClientId::new("app")?, ..trust };
        let raw = RawClient::new(app.clone())?;
        let error = lab.block(Client::connect(app)).err().context("served")?;
        ensure!(matches!(error, Error::WrongClientKey { .. }), "{error:?}");
        let (pool, relay, _) = honest_pool(lab, &raw, "provider")?;
        let verdict = lab.block(raw.submit(&relay, ClientCommand::OpenPool(pool)))?;
        ensure!(verdict == Verdict::refused("not_the_client"), "{verdict:?}");
        all_up(lab)
    });
}

const BODY: &[u8] = br#"{"model":"demo-chat","messages":[{"role":"user","content":"hi"}],"max_tokens":3}"#;

#[test]
fn altered_and_replayed_requests() {
    LAB.run("altered_and_replayed_requests", |lab| {
        let raw = RawClient::new(lab.trust("app")?)?;
        let client = lab.client("app")?;
        let directory = client.directory();
        let version = directory.verified().policy.version;
        let route = directory.route(&RouteId::new("provider")?).context("no route")?.document.clone();
        let (pool, relay, keyer) = honest_pool(lab, &raw, "provider")?;
        let from = directory.size();
        let opened = lab.block(raw.submit(&relay, ClientCommand::OpenPool(pool.clone())))?;
        ensure!(matches!(opened, Verdict::Done(Outcome::PoolOpened, Some(_))), "{opened:?}");
        let again = lab.block(raw.submit(&relay, ClientCommand::OpenPool(pool.clone())))?;
        ensure!(again == Verdict::refused("duplicate_pool") || again == opened, "{again:?}");
        let ready = || lab.block(Ready::connect((&pool, &route), &relay, &keyer, BODY.len() as u64));

        // The honest twin of all that follows.
        let mut honest = ready()?;
        let a = honest.authorise(&pool, version)?;
        let taken = raw.sign(ClientCommand::Authorise(a.clone()));
        let answer = lab.block(async {
            honest.request(encode(&taken), honest.head.clone()).await;
            honest.send_body(BODY).await?;
            honest.tunnel.end().await
        })?;
        ensure!(answer == "closed: complete", "{answer}");
        ensure!(
            wait_for("it is settled", SHOWS, || {
                Tlog::read(&lab.mesh.sites[0].http)?.settlement(a.request).map(|s| s.ended).context("not yet")
            })? == Ended::Complete
        );

        // One change each.
        type Change = (&'static str, fn(&mut Authorise), &'static str, bool);
        let changes: [Change; 8] = [
            ("another relay", |a| a.relay = NodeId(a.relay.0 % 4 + 1), "pool_mismatch", false),
            ("another route", |a| a.route = RouteId::new("none").unwrap(), "pool_mismatch", false),
            ("another head", |a| a.head_digest.0[0] ^= 1, "head_digest", false),
            ("a policy of before", |a| a.policy = PolicyVersion(a.policy.0 + 1), "stale_policy", true),
            ("it is over", |a| a.expires = now().min(quorate_core::ids::Timestamp(1)), "expired", true),
            ("valid for too long", |a| a.expires = now().plus_ms(600_000), "expired", true),
            ("above the route's ceiling", |a| a.response_bytes_max = u64::MAX / 4, "ceiling_too_high", true),
            ("less body than announced", |a| a.body_bytes_max = 1, "body_above_ceiling", false),
        ];
        for (what, change, code, has_leaf) in changes {
            let mut altered = ready()?;
            let mut a = altered.authorise(&pool, version)?;
            change(&mut a);
            let command = raw.sign(ClientCommand::Authorise(a));
            let end = lab.block(async {
                altered.request(encode(&command), altered.head.clone()).await;
                altered.tunnel.end().await
            })?;
            ensure!(end == code, "{what}: {end}, not {code}");
            if has_leaf {
                leaf_refuses(lab, from, &command, code)?;
            }
        }
        // Signed, then altered: no leaf, since nobody proved to have said it.
        let mut altered = ready()?;
        let mut command = raw.sign(ClientCommand::Authorise(altered.authorise(&pool, version)?));
        if let Command::Client(c) = &mut command
            && let ClientCommand::Authorise(a) = &mut c.body
        {
            a.response_bytes_max += 1;
        }
        let end = lab.block(async {
            altered.request(encode(&command), altered.head.clone()).await;
            altered.tunnel.end().await
        })?;
        ensure!(end == "bad_signature", "{end}");
        // The head that the signature covers, and another one sent.
        let mut altered = ready()?;
        let command = raw.sign(ClientCommand::Authorise(altered.authorise(&pool, version)?));
        let mut head = altered.head.clone();
        *head.last_mut().unwrap() ^= 1;
        let end = lab.block(async {
            altered.request(encode(&command), head).await;
            altered.tunnel.end().await
        })?;
        ensure!(end == "head_digest", "{end}");
        // A head that was garbled before it was signed: authorised, refused by the keyer, and the log has its alarm.
        let mut garbled = ready()?;
        let mut head = garbled.head.clone();
        *head.last_mut().unwrap() ^= 1;
        garbled.head_digest = {
            let shape = quorate_client::head_template(&route)?.shape();
            let records = quorate_splitkey::framing::HeadRecords::from_bytes(&head, shape)?;
            quorate_core::crypto::Hash(records.digest().0)
        };
        let a = garbled.authorise(&pool, version)?;
        let end = lab.block(async {
            garbled.request(encode(&raw.sign(ClientCommand::Authorise(a.clone()))), head).await;
            garbled.tunnel.end().await
        })?;
        ensure!(end.starts_with("head"), "{end}");
        ensure!(
            wait_for("it is settled", SHOWS, || {
                Tlog::read(&lab.mesh.sites[0].http)?.settlement(a.request).map(|s| s.ended).context("not yet")
            })? == Ended::HeadRefused
        );
        // Played again: on its own connection, which is used; on another, which it does not name; under a new signature.
        let mut other = ready()?;
        let end = lab.block(async {
            other.request(encode(&taken), other.head.clone()).await;
            other.tunnel.end().await
        })?;
        ensure!(end == "pool_mismatch", "{end}");
        let mut other = ready()?;
        let replay = Authorise { request: RequestId(id_of(&taken)), ..other.authorise(&pool, version)? };
        let command = raw.sign(ClientCommand::Authorise(replay));
        let end = lab.block(async {
            other.request(encode(&command), other.head.clone()).await;
            other.tunnel.end().await
        })?;
        ensure!(end == "replayed", "{end}");
        leaf_refuses(lab, from, &command, "replayed")?;
        all_up(lab)
    });
}

fn id_of(command: &Command) -> [u8; 16] {
    match command {
        Command::Client(c) => match &c.body {
            ClientCommand::Authorise(a) => a.request.0,
            _ => [0; 16],
        },
        _ => [0; 16],
    }
}

#[test]
fn malformed_and_oversized_bytes() {
    LAB.run("malformed_and_oversized_bytes", |lab| {
        let raw = RawClient::new(lab.trust("app")?)?;
        let client = lab.client("app")?;
        let directory = client.directory();
        let route = directory.route(&RouteId::new("provider")?).context("no route")?.document.clone();
        let (pool, relay, keyer) = honest_pool(lab, &raw, "provider")?;
        // Submit.
        let garbage = Bytes::from_static(&[0xff; 100]);
        let submit = |command: Vec<u8>, blobs: Vec<Bytes>| lab.block(submit_bytes(&relay, command, blobs));
        let honest = encode(&raw.sign(ClientCommand::OpenPool(pool.clone())));
        let cases = [
            (vec![], vec![], Verdict::refused("malformed")),
            (garbage.to_vec(), vec![], Verdict::refused("malformed")),
            (honest[..honest.len() - 1].to_vec(), vec![], Verdict::refused("malformed")),
            ([&honest[..], b"x"].concat(), vec![], Verdict::refused("malformed")),
            (vec![0; 64 * 1024 + 1], vec![], Verdict::refused("too_large")),
            (honest.clone(), vec![garbage.clone()], Verdict::refused("wrong_blobs")),
            (honest.clone(), vec![Bytes::from(vec![0; 1024 * 1024 + 1])], Verdict::refused("too_large")),
            (honest.clone(), vec![Bytes::from(vec![0; 3 * 1024 * 1024])], Verdict::Status(Code::OutOfRange)),
        ];
        for (number, (command, blobs, verdict)) in cases.into_iter().enumerate() {
            let got = submit(command, blobs)?;
            ensure!(got == verdict, "case {number}: {got:?}, not {verdict:?}");
        }
        let opened = submit(honest, vec![])?;
        ensure!(matches!(opened, Verdict::Done(..)), "the honest twin: {opened:?}");
        // Register and Receipt: wrong lengths, and who may not.
        let register = |key: &RawClient, pool: &[u8], connection: &[u8], secret: &[u8]| {
            let copy = Bytes::copy_from_slice;
            let (pool, connection, traffic_secret) = (copy(pool), copy(connection), copy(secret));
            let request = v1::RegisterRequest { pool, connection, traffic_secret };
            lab.block(async {
                let keyer = key.connect(keyer.address().as_str()).await?;
                let status = mesh(&keyer).register(request).await.err();
                anyhow::Ok(status.map(|s| code_of(&s).unwrap_or_else(|| format!("{:?}", s.code()))))
            })
        };
        let id = pool.pool.0;
        ensure!(register(&raw, &id[..15], &[1; 16], &[1; 32])?.as_deref() == Some("malformed"));
        ensure!(register(&raw, &id, &[1; 17], &[1; 32])?.as_deref() == Some("malformed"));
        ensure!(register(&raw, &id, &[1; 16], &[1; 31])?.as_deref() == Some("malformed"));
        ensure!(register(&raw, &[9; 16], &[1; 16], &[1; 32])?.as_deref() == Some("unknown_pool"));
        ensure!(register(&raw, &id, &[1; 16], &[1; 32])?.is_none(), "the honest twin");
        ensure!(register(&raw, &id, &[1; 16], &[2; 32])?.as_deref() == Some("already_registered"));
        let receipt = lab.block(mesh(&relay).receipt(v1::ReceiptRequest { request: garbage.clone() }));
        ensure!(receipt.err().and_then(|s| code_of(&s)).as_deref() == Some("malformed"));
        // Tunnels.
        let tunnel = |frames: Vec<tunnel_up::Frame>| {
            lab.block(async {
                let mut tunnel = Tunnel::call(&relay).await?;
                for frame in frames {
                    tunnel.send(frame).await;
                }
                tunnel.end().await
            })
        };
        let open = |pool: &[u8], connection: &[u8]| {
            let (pool, connection) = (Bytes::copy_from_slice(pool), Bytes::copy_from_slice(connection));
            tunnel_up::Frame::Open(v1::tunnel_up::Open { pool, connection })
        };
        let data = |bytes: &[u8]| tunnel_up::Frame::Data(Bytes::copy_from_slice(bytes));
        ensure!(tunnel(vec![data(b"GET / HTTP/1.1\r\n\r\n")])? == "out_of_turn");
        ensure!(tunnel(vec![open(&id[..3], &[1; 16])])? == "malformed");
        ensure!(tunnel(vec![open(&[9; 16], &[1; 16])])? == "unknown_pool");
        ensure!(tunnel(vec![open(&id, &[2; 16]), open(&id, &[2; 16])])? == "out_of_turn");
        // Plain HTTP where TLS belongs, garbage, and a record that is too long.
        for bytes in [
            &b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\r\n"[..],
            &[0; 64],
            &[22, 3, 1, 0xff, 0xff],
        ] {
            let end = tunnel(vec![open(&id, &quorate_tests::raw::random_id()?), data(bytes)])?;
            ensure!(end == "handshake_refused", "{bytes:?}: {end}");
        }
        ensure!(tunnel(vec![open(&id, &[4; 16]), data(&vec![0; 64 * 1024 + 1])])? == "too_large");
        let ready = || lab.block(Ready::connect((&pool, &route), &relay, &keyer, 4));
        let mut tests: Vec<(Vec<u8>, Vec<u8>, &str)> = Vec::new();
        let first = ready()?;
        let version = directory.verified().policy.version;
        let command = encode(&raw.sign(ClientCommand::Authorise(first.authorise(&pool, version)?)));
        tests.push((garbage.to_vec(), first.head.clone(), "malformed"));
        tests.push((vec![0; 64 * 1024 + 1], first.head.clone(), "too_large"));
        tests.push((command.clone(), vec![0; 1 << 20], "too_large"));
        tests.push((
            encode(&raw.sign(ClientCommand::OpenPool(pool.clone()))),
            first.head.clone(),
            "wrong_command",
        ));
        for (command, head, code) in tests {
            let mut ready = ready()?;
            let end = lab.block(async {
                ready.request(command, head).await;
                ready.tunnel.end().await
            })?;
            ensure!(end == code, "{end}, not {code}");
        }
        // Not TLS at all, at each port; half-open; and a client that sends nothing.
        for site in &lab.mesh.sites {
            for address in [&site.grpc, &site.http] {
                for bytes in [
                    &b"\x00\x01\x02\x03 garbage \xff\xff"[..],
                    &[b'A'; 100_000],
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"",
                ] {
                    let mut socket = TcpStream::connect(address)?;
                    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                    // It may hang up before it has read all.
                    let _refused = socket.write_all(bytes).and_then(|()| socket.shutdown(Shutdown::Write));
                    let mut answer = Vec::new();
                    let _reset = socket.read_to_end(&mut answer);
                }
            }
            let (status, _) = http_get(&site.http, "/../../etc/passwd")?;
            ensure!((400..500).contains(&status), "{status}");
            let (status, _) = http_get(&site.http, "/tile/0/x999/x999/999")?;
            ensure!(status == 404, "{status}");
        }
        all_up(lab)
    });
}

#[test]
fn requests_beyond_their_bounds() {
    LAB.run("requests_beyond_their_bounds", |lab| {
        let client = lab.client("app")?;
        let error = lab.block(client.chat(&hello("no-such-model"))).err().context("served")?;
        ensure!(matches!(&error, Error::UnknownModel { model } if model == "no-such-model"), "{error:?}");
        ensure!(error.fault() == Fault::Client && error.retry() == Retry::Never);
        let target = || quorate_client::Target::Model("demo-chat".into());
        let post = |path: &str, body: Vec<u8>| {
            lab.block(client.request(quorate_client::Request::post_json(target(), path, body)))
        };
        let error = post("/v1/files", b"{}".to_vec()).err().context("served")?;
        ensure!(matches!(error, Error::Head(_)), "{error:?}");
        let error = post("/v1/chat/completions", vec![b' '; 17 * 1024 * 1024]).err().context("served")?;
        ensure!(matches!(error, Error::BodyTooLarge { .. }), "{error:?}");
        let mut request = quorate_client::Request::post_json(target(), "/v1/chat/completions", BODY.to_vec());
        request.headers.push(("authorization".into(), "Bearer mine".into()));
        let error = lab.block(client.request(request)).err().context("served")?;
        ensure!(matches!(error, Error::CredentialHeader { .. }), "{error:?}");
        // A ceiling on the answer, and on the time.
        let mut request = quorate_client::Request::post_json(target(), "/v1/chat/completions", BODY.to_vec());
        request.response_bytes_max = Some(100);
        let error = lab.block(async { client.request(request).await?.body.bytes(1 << 20).await }).err();
        let error = error.context("served beyond its ceiling")?;
        ensure!(matches!(error, Error::CeilingReached { .. }), "{error:?}");
        let body = String::from_utf8_lossy(BODY).replace("demo-chat", "fault-slow");
        let mut request = quorate_client::Request::post_json(target(), "/v1/chat/completions", body);
        request.duration_max = Some(Duration::from_millis(100));
        let error = lab.block(client.request(request)).err().context("served beyond its time")?;
        ensure!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        all_up(lab)
    });
}

/// The settlement and report of the newest request of this client.
fn how_it_ended(lab: &Lab, from: u64) -> anyhow::Result<(Ended, u16, Ended)> {
    wait_for("settlement and report", SHOWS, || {
        let tlog = Tlog::read(&lab.mesh.sites[0].http)?;
        let newest = tlog.bodies(from).filter_map(|body| match body {
            LeafBody::Decided { command, outcome: Outcome::Authorised } => Some(RequestId(id_of(command))),
            _ => None,
        });
        let newest = newest.last().context("no request")?;
        let settled = tlog.settlement(newest).context("no settlement")?.ended;
        let report = tlog.report(newest).context("no report")?;
        Ok((settled, report.status, report.ended))
    })
}

#[test]
fn a_provider_that_fails_its_answer() {
    LAB.run("a_provider_that_fails_its_answer", |lab| {
        let client = lab.client("app")?;
        lab.ask(&client)?;
        for (model, status, part, retry) in [
            ("fault-400", 400, "invalid_request_error", Retry::Never),
            ("fault-401", 401, "invalid_api_key", Retry::Never),
            ("fault-429", 429, "rate_limit", Retry::Later),
            ("fault-500", 500, "server_error", Retry::Later),
            ("fault-502-html", 502, "<html", Retry::Later),
        ] {
            let from = Tlog::read(&lab.mesh.sites[0].http)?.leaves.len() as u64;
            let error = lab.block(client.chat(&hello(model))).err().context("served")?;
            let Error::Provider { status: got, body } = &error else { anyhow::bail!("{model}: {error:?}") };
            let body = String::from_utf8_lossy(body);
            ensure!(*got == status && body.contains(part), "{model}: {got}: {body}");
            ensure!(error.fault() == Fault::Provider && error.retry() == retry, "{model}: {error:?}");
            let ended = how_it_ended(lab, from)?;
            ensure!(ended == (Ended::Complete, status, Ended::Complete), "{model}: {ended:?}");
        }
        // A relay sees records, not what is in them: where they end well, only the client can tell. That they differ is a
        // leaf of its own.
        for (model, status, relay) in
            [("fault-close", 0, Ended::Truncated), ("fault-close-mid-stream", 200, Ended::Complete)]
        {
            let from = Tlog::read(&lab.mesh.sites[0].http)?.leaves.len() as u64;
            let outcome = lab.block(async { rest_of(client.chat_stream(&hello(model)).await?).await });
            let error = outcome.err().with_context(|| format!("{model}: whole"))?;
            ensure!(matches!(error, Error::Truncated { .. } | Error::ProviderHttp(_)), "{model}: {error:?}");
            ensure!(
                error.fault() == Fault::Provider && error.retry() == Retry::Unknown,
                "{model}: {error:?}"
            );
            let ended = how_it_ended(lab, from)?;
            ensure!(ended == (relay, status, Ended::Truncated), "{model}: {ended:?}");
            let anomaly = |b: &LeafBody| matches!(b, LeafBody::Anomaly { rule: AnomalyRule::EndsDiffer, .. });
            let flagged = Tlog::read(&lab.mesh.sites[0].http)?.bodies(from).any(anomaly);
            ensure!(flagged == (relay == Ended::Complete), "{model}: flagged: {flagged}");
        }
        all_up(lab)
    });
}

#[test]
fn a_provider_that_is_not_the_routes() {
    LAB.run("a_provider_that_is_not_the_routes", |lab| {
        let flags = lab.mesh.demo_provider.clone().context("no demo provider")?;
        // What is applied by now is of before, certified or not.
        let from =
            lab.statuses(&lab.client("app")?).iter().map(|s| s.tree_size).max().context("nobody answers")?;
        lab.mesh.stop_provider();
        let error = lab.ask(&lab.client("app")?).err().context("served by nobody")?;
        ensure!(
            matches!(error, Error::ProviderUnreachable { .. })
                || matches!(&error, Error::Refused(r) if r.code == "provider_unreachable"),
            "{error:?}"
        );
        ensure!(error.fault() == Fault::Provider && error.retry() == Retry::Later, "{error:?}");
        for (flag, wrong) in [("--wrong-cert", "certificate"), ("--only-aes", "suite")] {
            lab.mesh.demo_provider = Some(flags.iter().cloned().chain([flag.to_owned()]).collect());
            lab.mesh.start_provider()?;
            let error = lab.ask(&lab.client("app")?).err().context("served by another")?;
            let right = match wrong {
                "certificate" => matches!(error, Error::ProviderCertificate { .. }),
                _ => matches!(error, Error::ProviderSuite { .. }),
            };
            ensure!(
                right && error.fault() == Fault::Provider && error.retry() == Retry::Never,
                "{flag}: {error:?}"
            );
            lab.mesh.stop_provider();
        }
        lab.mesh.demo_provider = Some(flags);
        lab.mesh.start_provider()?;
        // Nothing was authorised, so there is nothing to settle.
        let tlog = Tlog::read(&lab.mesh.sites[0].http)?;
        let authorised =
            tlog.bodies(from).any(|b| matches!(b, LeafBody::Decided { outcome: Outcome::Authorised, .. }));
        ensure!(!authorised, "a request was authorised");
        all_up(lab)
    });
}
