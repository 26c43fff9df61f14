//! A history in which something happens, the page made of it, and what a real browser makes of the page.
use super::{Exit, Report, make};
use crate::replay::Options;
use crate::store::Mirror;
use crate::testing::mirror_of;
use quorate_core::command::{Alarm, ClientCommand, Ended, NodeCommand, OpenPool};
use quorate_core::ids::{ClientId, NodeId, RequestId, RouteId};
use quorate_core::leaf::Outcome;
use quorate_core::rendezvous;
use quorate_core::testing::{
    CLIENT, Fleet, Mesh, ROUTE, client_document, credential_document, keyed, route_document,
};
use std::path::{Path, PathBuf};
use std::process::Command as Process;

/// An admin's name may be anything.
const HOSTILE: &str = "</title><script>document.title='owned'</script><img src=x>\u{202e}";

/// A pool of a client over a route, through this relay.
pub(crate) fn pool(mesh: &mut Mesh, client: &str, route: &str, relay: u64) -> OpenPool {
    let route = RouteId::new(route).unwrap();
    let state = &mesh.log.state;
    let custodian = &state.policy().clients[&ClientId::new(client).unwrap()].custodian;
    let keyers = rendezvous::keyers(state.policy(), state.attested_nodes(), &route, NodeId(relay), custodian);
    let keyer = keyers[0];
    let mut pool = mesh.fleet.pool(&mesh.log.state, relay);
    (pool.route, pool.keyer, pool.keyer_boot) = (route, keyer, mesh.fleet.nodes[&keyer].boot());
    let command = mesh.fleet.client(client, ClientCommand::OpenPool(pool.clone()));
    assert_eq!(mesh.decide(command), Outcome::PoolOpened);
    pool
}

/// An authorised request.
pub(crate) fn request(mesh: &mut Mesh, client: &str, pool: &OpenPool) -> RequestId {
    let mut request = mesh.fleet.request(&mesh.log.state, pool);
    request.expires = mesh.time.plus_ms(30_000);
    let id = request.request;
    let command = mesh.fleet.client(client, ClientCommand::Authorise(request));
    assert_eq!(mesh.decide(command), Outcome::Authorised);
    id
}

/// Both say that it went well, the client with so many tokens.
pub(crate) fn settle(
    mesh: &mut Mesh,
    client: &str,
    pool: &OpenPool,
    request: RequestId,
    tokens: u64,
    ended: Ended,
) {
    let settlement = Fleet::settlement(request);
    let report = quorate_core::command::Report { tokens_out: tokens, ended, ..Fleet::report(request) };
    let settle = mesh.fleet.node_command(pool.relay, NodeCommand::Settle(vec![settlement]));
    let report = mesh.fleet.client(client, ClientCommand::Report(vec![report]));
    let outcomes = mesh.apply(vec![settle, report]).outcomes;
    assert!(matches!((&outcomes[0].1, &outcomes[1].1), (Outcome::Settled(_), Outcome::Reported(_))));
}

/// Three routes, one with a provider's key, and an admin with a hostile name.
fn edit(d: &mut quorate_core::policy::PolicyDocument) {
    d.cluster = "acme-eu".into();
    d.attestation.settle_ms = 120_000;
    d.admin[0].name = HOSTILE.into();
    d.admin[1].name = "bob".into();
    for (name, custodian) in
        [("fra-1", "platform"), ("ams-2", "security"), ("waw-3", "hosting-co"), ("lis-4", "finance")]
            .into_iter()
            .zip(0usize..)
            .map(|((name, custodian), i)| ((i, name), custodian))
    {
        d.member[name.0].name = name.1.into();
        d.member[name.0].custodian = custodian.into();
    }
    d.route.push(route_document("claude"));
    d.client.push(client_document("batch/nightly"));
    d.client[0].routes.push("claude".into());
    d.client[1].routes.push("claude".into());
    keyed(d);
}

/// Half an hour: a lapse, a refused node, policy changes, anomalies, alarms, a restart, a split key.
pub(crate) fn eventful() -> Mesh {
    let mut mesh = Mesh::new(4, 1, edit);
    let mut forgotten = false;
    for step in 0..90u64 {
        match step {
            20 => drop(mesh.silent.insert(NodeId(4))),
            27 => drop(mesh.silent.remove(&NodeId(4))),
            33 => {
                let change = mesh.fleet.change_policy(|d| {
                    d.route.push(route_document("local"));
                    let mut client = client_document("team-a");
                    client.routes = vec!["local".into(), "claude".into()];
                    d.client.push(client);
                });
                assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
            }
            // Somebody installs what the admins have not approved yet; then they do.
            42 => mesh.fleet.node(3).tpm.measure(11, 0x8000_0012, b"another build"),
            55 => {
                let value = mesh.fleet.nodes[&NodeId(3)].tpm.pcr(11);
                let change = mesh.fleet.change_policy(|d| {
                    d.reference_values.get_mut("plain").unwrap().pcrs.get_mut(&11).unwrap().push(value);
                });
                assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
            }
            60 => mesh.fleet.node(2).restart_process(),
            66 => {
                let credential = credential_document(&mesh.fleet.document, ROUTE, 2);
                let change = mesh.fleet.change_policy(|d| d.route[0].credential = Some(credential));
                assert!(matches!(mesh.decide(change), Outcome::PolicyChanged { .. }));
            }
            70 => {
                let alarm = Alarm::AdmissionRefused { node: NodeId(3), check: "<b>ima</b>".into() };
                let alarm = mesh.fleet.node_command(NodeId(1), NodeCommand::Alarm(alarm));
                assert_eq!(mesh.decide(alarm), Outcome::AlarmRaised);
            }
            _ => {}
        }
        mesh.wait(19_000);
        mesh.attest_all();
        let attested: Vec<u64> = mesh.state().attested_nodes().map(|n| n.0).collect();
        let mut wishes =
            vec![(CLIENT, ROUTE, 2 + (step * 7) % 5), ("batch/nightly", "claude", (step / 9) % 3)];
        if step % 4 == 0 {
            wishes.push((CLIENT, "claude", 1));
        }
        if step > 33 && step % 2 == 0 {
            wishes.push(("team-a", "local", 3));
        }
        for (client, route, count) in wishes.into_iter().filter(|(_, _, n)| *n > 0) {
            let relay = attested[(step as usize + count as usize) % attested.len()];
            for i in 0..count {
                let pool = pool(&mut mesh, client, route, relay);
                let id = request(&mut mesh, client, &pool);
                match (step, i) {
                    (15, 0) => settle(&mut mesh, client, &pool, id, 1_000_000, Ended::Complete),
                    (48, 0) => settle(&mut mesh, client, &pool, id, 10, Ended::Truncated),
                    // Never settled.
                    (50, 0) if !forgotten => forgotten = true,
                    _ => settle(&mut mesh, client, &pool, id, 100, Ended::Complete),
                }
            }
        }
    }
    mesh
}

fn quiet(requests: usize) -> Mesh {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    for _ in 0..requests {
        let request = mesh.authorise(&pool);
        mesh.settle(&pool, request);
    }
    mesh
}

fn report(mesh: &Mesh, dir: &Path) -> (Mirror, Report) {
    let mirror = mirror_of(mesh, dir, &[]);
    let report = make(&mirror, mesh.fleet.cluster(), Options { threads: 2 }, |_, _| ()).unwrap();
    (mirror, report)
}

#[test]
fn what_happened_shows_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = eventful();
    let (mirror, report) = report(&mesh, &dir.path().join("log"));
    assert_eq!(report.findings, []);
    let html = &report.html;
    let events = section(html, "events");
    let policy = section(html, "policy");
    let cluster = section(html, "cluster");
    let shows = |what: &str, within: &str, texts: &[&str]| {
        for text in texts {
            assert!(within.contains(text), "{what}: {text:?} is not in {within}");
        }
    };
    shows(
        "the lapse",
        cluster,
        &["class=\"mark drop\"", "class=\"bar warn\"", "<td>lapsed: its evidence is too old</td>"],
    );
    shows("the lapse", events, &["node-4 lapsed: no evidence in time"]);
    shows(
        "the refused node",
        cluster,
        &["class=\"mark cross\"", "class=\"bar bad\"", "refused: reference-value"],
    );
    shows("the refused node", events, &["the evidence of node-3 was refused: reference-value"]);
    shows(
        "the policy changes",
        policy,
        &[
            "new route local to api.example.com:443",
            "new client team-a may use claude, local",
            "1 new PCR value(s) are good",
            "share epoch 2, before 1",
            "bob",
        ],
    );
    shows(
        "the anomalies",
        events,
        &[
            "more tokens than the bytes could carry",
            "relay and client tell different ends",
            "neither relay nor client said how it ended",
        ],
    );
    shows("the alarm", events, &["node-1: node-3 was not admitted: &lt;b&gt;ima&lt;/b&gt;"]);
    shows("the rotation", section(html, "keys"), &["epoch 1", "epoch 2"]);
    shows("the restart", cluster, &["class=\"mark restart\"", "started again, with new boot keys"]);
    shows(
        "the volumes",
        section(html, "traffic"),
        &["Requests over time by route", "batch/nightly", "local ("],
    );
    shows("the limits", section(html, "limits"), &["is software, as policy permits"]);
    well_formed(html);

    // A function of the copy.
    let again = make(&mirror, mesh.fleet.cluster(), Options { threads: 1 }, |_, _| ()).unwrap();
    assert_eq!(again.html, *html);

    // None of it where none of it was.
    let (_, calm) = self::report(&quiet(5), &dir.path().join("quiet"));
    let (events, cluster) = (section(&calm.html, "events"), section(&calm.html, "cluster"));
    for text in ["chip warn", "chip bad"] {
        assert!(!events.contains(text), "{text:?} in {events}");
    }
    for text in ["<td>lapsed", "refused: ", "policy 2"] {
        assert!(!cluster.contains(text), "{text:?} in {cluster}");
    }
    well_formed(&calm.html);
    if let Some(kept) = std::env::var_os("QUORATE_SCREENSHOTS") {
        std::fs::write(Path::new(&kept).join("report.html"), html).unwrap();
    }
}

#[test]
fn the_command_writes_a_page_whatever_it_finds() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = quiet(3);
    let log = dir.path().join("log");
    mirror_of(&mesh, &log, &[]);
    let genesis = mesh.fleet.cluster();
    for (genesis, exit, text) in [
        (genesis, Exit::Good, "Everything in this copy of the log holds."),
        (quorate_core::crypto::Hash([0; 32]), Exit::ProvenWrong, "other_genesis"),
    ] {
        let out = dir.path().join("report.html");
        let genesis = crate::cli::GenesisArg { genesis };
        let args = super::ReportArgs { dir: log.clone(), genesis, out: out.clone() };
        assert_eq!(super::run(args), Ok(exit));
        assert!(std::fs::read_to_string(&out).unwrap().contains(text));
    }
    assert_eq!(walk(dir.path()).iter().filter(|p| p.extension().is_some_and(|e| e == "part")).count(), 0);
}

#[test]
fn names_are_never_markup() {
    let dir = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::new(4, 1, edit);
    mesh.attest_all();
    let (_, report) = report(&mesh, dir.path());
    assert!(report.html.contains("&lt;/title&gt;&lt;script&gt;"), "the name is shown");
    assert!(report.html.contains("\\u{202e}"), "what turns text around is shown by number");
    for markup in ["<script", "<img", "http://", "https://", "url(h", "@import", "\u{202e}"] {
        assert!(!report.html.contains(markup), "{markup}");
    }
    well_formed(&report.html);
}

#[test]
fn a_broken_history_is_told_up_to_the_break() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = quiet(150);
    let (mirror, good) = report(&mesh, dir.path());
    assert!(good.html.contains("Everything in this copy of the log holds."));
    let mut bundles = walk(&mirror.dir().join("tile/entries"));
    bundles.sort();
    assert!(bundles.len() > 2);
    for (file, begins) in [(&bundles[bundles.len() - 1], true), (&bundles[0], false)] {
        let honest = std::fs::read(file).unwrap();
        let mut bytes = honest.clone();
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).unwrap();
        let broken = make(&mirror, mesh.fleet.cluster(), Options { threads: 1 }, |_, _| ()).unwrap();
        std::fs::write(file, honest).unwrap();
        assert_eq!(broken.findings.len(), 1);
        assert_eq!(broken.findings[0].fault.code(), "leaf_hash");
        assert!(broken.html.contains("This copy of the log does not hold."));
        assert!(section(&broken.html, "checked").contains("leaf_hash"));
        assert!(!broken.html.contains("Everything in this copy of the log holds."));
        assert_eq!(broken.html.contains("<section id=\"policy\">"), begins);
        well_formed(&broken.html);
    }
}

/// A page in a real browser: no script of a name runs, nothing is cut off or overlaps, and it prints.
#[test]
fn a_browser_shows_and_prints_it() {
    let Some(browser) = browser() else {
        eprintln!(
            "SKIPPED a_browser_shows_and_prints_it: no Chromium here; `apt-get install chromium`, or set QUORATE_BROWSER"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mesh = eventful();
    let (_, report) = report(&mesh, &dir.path().join("log"));
    let page = dir.path().join("report.html");
    std::fs::write(&page, &report.html).unwrap();
    let kept = std::env::var_os("QUORATE_SCREENSHOTS").map(PathBuf::from);
    let out = kept.as_deref().unwrap_or(dir.path());

    for (name, width, height, more) in [
        ("light", 1280, 4600, &[][..]),
        ("dark", 1280, 4600, &["--blink-settings=preferredColorScheme=0"][..]),
        ("narrow", 500, 9000, &[]),
    ] {
        let png = out.join(format!("report-{name}.png"));
        let size = format!("--window-size={width},{height}");
        let shot = format!("--screenshot={}", png.display());
        run(&browser, dir.path(), &[&[size.as_str(), shot.as_str()], more].concat(), &page);
        let bytes = std::fs::read(&png).unwrap();
        assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
        assert_eq!(bytes[16..20], u32::to_be_bytes(width));
        assert!(bytes.len() > 100_000, "{name}: {} bytes show hardly anything", bytes.len());
    }

    let pdf = out.join("report.pdf");
    let print = format!("--print-to-pdf={}", pdf.display());
    run(&browser, dir.path(), &["--no-pdf-header-footer", &print], &page);
    assert!(std::fs::read(&pdf).unwrap().starts_with(b"%PDF"));

    // The page has no script; a copy of it gets one that measures, for which its policy must go.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
    assert!(report.html.contains(POLICY));
    let measured = dir.path().join("measured.html");
    let script = format!("<script>{}</script></body>", include_str!("measure.js"));
    std::fs::write(&measured, report.html.replace(POLICY, "").replace("</body>", &script)).unwrap();
    for (width, more) in
        [(1280, &[][..]), (500, &[][..]), (1280, &["--blink-settings=preferredColorScheme=0"][..])]
    {
        let size = format!("--window-size={width},900");
        let args = [&[size.as_str(), "--dump-dom"], more].concat();
        let dom = run(&browser, dir.path(), &args, &measured);
        let found = dom.split_once("data-measured=\"").unwrap().1.split_once('"').unwrap().0;
        let found: serde_json::Value = serde_json::from_str(&found.replace("&quot;", "\"")).unwrap();
        assert_eq!(found["title"], "Audit report of acme-eu");
        assert_eq!(found["foreign"], 0, "elements that nobody wrote");
        assert!(found["overflow"].as_i64().unwrap() <= 0, "at {width}: {found}");
        if width > 1000 {
            assert_eq!(found["wide"], serde_json::json!([]), "tables that do not fit");
        }
        assert_eq!(found["cut"], serde_json::json!([]), "text outside of its picture at {width}");
        assert_eq!(found["pale"], serde_json::json!([]), "text with too little contrast at {width} {more:?}");
        for id in ["summary", "cluster", "policy", "traffic", "events", "keys", "checked", "limits"] {
            assert!(found["sections"][id].as_i64().unwrap() > 80, "{id} at {width}: {found}");
        }
    }
}

fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("QUORATE_BROWSER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = ["chromium", "chromium-browser", "google-chrome"];
    let found = || {
        std::env::split_paths(&path).flat_map(|dir| known.map(|name| dir.join(name))).find(|p| p.is_file())
    };
    named.or_else(found)
}

fn run(browser: &Path, home: &Path, args: &[&str], page: &Path) -> String {
    let output = Process::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-extensions"])
        .arg(format!("--user-data-dir={}", home.join("profile").display()))
        .args(args)
        .arg(format!("file://{}", page.display()))
        .env("HOME", home)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
}

fn section<'a>(html: &'a str, id: &str) -> &'a str {
    let from = html.find(&format!("<section id=\"{id}\">")).unwrap();
    let to = html[from..].find("</section>").unwrap();
    &html[from..from + to]
}

/// Every tag that opens closes, in order.
#[track_caller]
fn well_formed(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let style = html.find("<style>").unwrap()..html.find("</style>").unwrap();
    let mut at = 0;
    while let Some(from) = html[at..].find('<').map(|i| i + at) {
        let to = from + html[from..].find('>').unwrap();
        at = to + 1;
        let tag = &html[from + 1..to];
        if style.contains(&from) && tag != "style" {
            continue;
        }
        let name = tag.split([' ', '/']).find(|n| !n.is_empty()).unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "near {}", &html[from.saturating_sub(200)..to]);
        } else if !(tag.ends_with('/') || tag.starts_with('!') || ["meta", "br"].contains(&name)) {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}
