//! A long run of mixed load through the adapter and a mesh whose nodes keep restarting: nothing may leak, no receipt may be lost,
//! and every failure must have a name.
//!
//! ```text
//! workers   ask every API of every dialect, plainly and streamed, hang up at any point, ask for each fault    asks, http
//! reaper    ends a node a minute, SIGTERM and SIGKILL in turn, the leader every third time
//! checker   verifies the receipt of each answered request as it is written                                    receipts
//! sampler   reads the memory of nodes, adapters and provider every ten seconds                                memory
//! ```
//!
//! **These bite**: an answer that looks whole and is not counts as untyped; a run in which some kind of request, fault, end or
//! budget was never seen is a failure; each promise's check has a test that breaks it.

mod asks;
mod http;
mod memory;
mod receipts;
mod report;

use self::asks::{Ask, Dice, End, FAULTS, WAYS};
use self::http::{Connection, Got};
use self::receipts::{Awaited, Checker};
use crate::mesh::{Mesh, http_get, run, runs, wait_for};
use anyhow::{Context as _, ensure};
use quorate_client::{Client, TrustFile};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

pub use self::memory::{Growth, Sample, Slope};
pub use self::report::{GROWTH_KIB_MAX, Receipts, Report};

/// A request that has not ended by then hangs: longer than any bound of the adapter's configuration.
const HANG: Duration = Duration::from_secs(75);
/// A restarted node must be attested again within this.
const BACK: Duration = Duration::from_secs(60);
/// Between two readings of memory.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Between two looks for receipts.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long receipts may take when load has ended.
const LAST_RECEIPTS: Duration = Duration::from_secs(120);
/// The log closes what nobody settled after this and the longest request, [`TOTAL_MS`].
const SETTLE_MS: i64 = 10_000;
/// The longest request, ms.
const TOTAL_MS: u64 = 25_000;
/// Longest pause of a worker, ms.
const THINK_MS: u64 = 500;
/// Untyped ends whose text is kept.
const SHOWN: usize = 12;
/// A restart may begin so much later than it is due, the spared node then being chosen.
const RESTARTS_MAX: u32 = 2;
/// So long must a node have lived after its own warm-up.
const LONG_LIFE: Duration = Duration::from_secs(180);
/// From this part of a run on, one node is left alone: memory that grows with a life shows only in a long one.
const SPARED_FROM: f64 = 0.25;
/// A run of fewer requests need not show every kind of everything.
const COVERAGE_MIN: Duration = Duration::from_secs(110);

/// Flags of the provider for a soak: slow streams, so that there is something to hang up on.
pub const PROVIDER: [&str; 6] = ["--slow-ms", "2500", "--chunk-delay-ms", "15", "--tokens", "40"];

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long load runs.
    pub length: Duration,
    /// Memory is judged from here.
    pub warm_up: Duration,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Applications at once.
    pub at_once: usize,
    /// Between two restarts.
    pub restart_every: Duration,
    /// Every sample goes here too, as JSON lines, as it is taken.
    pub samples: Option<PathBuf>,
}

/// An adapter of its own. Ends with this.
struct Adapter {
    name: &'static str,
    child: Child,
    address: String,
    folder: PathBuf,
}

impl Adapter {
    fn start(mesh: &Mesh, name: &'static str, trust: &Path, config: &Path) -> anyhow::Result<Self> {
        let folder = mesh.dir.join(format!("{name}.receipts"));
        let log = mesh.dir.join(format!("{name}.log"));
        let mut command =
            mesh.quorate(&["serve", "--listen", "127.0.0.1:0", "--drain-ms", "60000", "--trust"]);
        command.arg(trust).arg("--config").arg(config).arg("--receipts").arg(&folder);
        let said = fs::File::create(&log)?;
        let child = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn()?;
        let mut adapter = Self { name, child, address: String::new(), folder };
        adapter.address = wait_for("the adapter is ready", Duration::from_secs(30), || {
            let text = fs::read_to_string(&log)?;
            let url = text.split("ready http://").nth(1).and_then(|rest| rest.split_whitespace().next());
            Ok(url.with_context(|| format!("it said {text:?}"))?.to_owned())
        })?;
        fs::write(mesh.dir.join(format!("{name}.pid")), adapter.child.id().to_string())?;
        Ok(adapter)
    }

    /// Lets it end what is under way.
    fn end(&mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = wait_for(&format!("{} ends", self.name), LAST_RECEIPTS, || {
            self.child.try_wait()?.context("it runs")
        })?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What the threads of a run share.
struct Run {
    plan: Plan,
    mesh: Mesh,
    begun: Instant,
    over: AtomicBool,
    asked: AtomicU64,
    tally: Mutex<Tally>,
    /// When each process was started, and how often before.
    lives: Mutex<BTreeMap<String, (u32, Instant)>>,
    /// The node that is not restarted any more.
    spared: OnceLock<u64>,
}

#[derive(Default)]
struct Tally {
    ends: BTreeMap<String, u64>,
    untyped: Vec<String>,
    untyped_count: u64,
    hung: u64,
    cut_off: u64,
    /// Faults that were asked for and answered, and ways on which something was answered in full.
    faults: BTreeMap<String, u64>,
    ways: BTreeMap<String, u64>,
    broken: Vec<String>,
    restarts: (u32, u32, u32),
    samples: Vec<Sample>,
}

impl Run {
    fn tally<T>(&self, enter: impl FnOnce(&mut Tally) -> T) -> T {
        enter(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.begun.elapsed() >= self.plan.length
    }

    /// Sleeps in steps, so that the end is noticed.
    fn pause(&self, until: Instant) -> bool {
        while Instant::now() < until && !self.is_over() {
            std::thread::sleep(Duration::from_millis(100));
        }
        !self.is_over()
    }
}

/// Policy, grants and prices of a soak, on a mesh that runs with [`PROVIDER`] and a key beside: one route for each dialect, two
/// with a key, and a client whose budgets are small.
fn prepare(mesh: &Mesh) -> anyhow::Result<PathBuf> {
    let models: Vec<String> = FAULTS.iter().map(|f| format!("fault-{f}")).collect();
    let models: Vec<&str> =
        ["demo-chat", "demo-embed"].into_iter().chain(models.iter().map(String::as_str)).collect();
    let key = run(mesh.command("quorate").arg("keygen").arg(mesh.dir.join("frugal.key")))?;
    let key = key.split_whitespace().last().context("keygen printed no key")?.to_owned();
    mesh.change_policy(|mesh| {
        let file = mesh.key_file.as_deref().context("no key")?;
        for (_, route, dialect) in WAYS {
            let base = if route.starts_with("keyed") { crate::mesh::KEYED_PATH } else { "" };
            mesh.add_demo_route(route, dialect, base, &models)?;
            if !base.is_empty() {
                mesh.set_credential(route, file)?;
            }
        }
        mesh.add_demo_route("priced", "openai", "", &["demo-chat", "demo-embed"])?;
        mesh.edit_draft(|draft| {
            let timing = draft.get_mut("attestation").and_then(toml::Value::as_table_mut);
            let timing = timing.context("the draft has no [attestation]")?;
            timing.insert("settle_ms".to_owned(), toml::Value::Integer(SETTLE_MS));
            Ok(())
        })?;
        let routes: Vec<&str> = WAYS.iter().map(|(_, route, _)| *route).collect();
        mesh.grant("app", &routes)?;
        for (model, output) in [("demo-chat", "4000"), ("demo-embed", "0")] {
            let name = format!("priced/{model}");
            mesh.admin(
                &["price", "set", "--name", &name, "--route", "priced", "--input", "1", "--output", output],
                &[],
            )?;
        }
        let limits = ["--requests-per-minute", "30", "--money-per-minute", "1.5"];
        let client = ["client", "add", "--name", "frugal", "--key", &key, "--route", "priced"];
        let all: Vec<&str> = client.into_iter().chain(["--custodian", "developers"]).chain(limits).collect();
        mesh.admin(&all, &[])
    })?;
    let trust = mesh.dir.join("frugal.toml");
    let text = fs::read_to_string(mesh.trust())?
        .replace("client = \"app\"", "client = \"frugal\"")
        .replace("client.key", "frugal.key");
    fs::write(&trust, text)?;
    Ok(trust)
}

/// The adapter's configuration: every model of the provider by a name that leads to it on each way, and some that try more.
fn config() -> String {
    let mut text = format!("[defaults]\nattempts_max = 2\nfirst_byte_ms = 15000\ntotal_ms = {TOTAL_MS}\n");
    let models = ["demo-chat".to_owned(), "demo-embed".to_owned()];
    let models: Vec<String> = models.into_iter().chain(FAULTS.map(|f| format!("fault-{f}"))).collect();
    for (prefix, route, _) in WAYS {
        for model in &models {
            let _infallible = writeln!(
                text,
                "[[model]]\nname = \"{prefix}{model}\"\nroutes = [{{ route = \"{route}\", model = \"{model}\" }}]"
            );
        }
    }
    text + r#"
[[model]]
name = "ladder"
routes = [{ route = "openai", model = "fault-500" }, { route = "anthropic", model = "demo-chat" }]
[[model]]
name = "hasty"
tries = { attempts_max = 1, first_byte_ms = 900, total_ms = 25000 }
routes = [{ route = "openai", model = "fault-slow" }]
[[model]]
name = "hedged"
hedge_after_ms = 300
routes = [{ route = "openai", model = "fault-slow" }, { route = "keyed-openai", model = "demo-chat" }]
[[model]]
name = "spread"
strategy = "fastest"
repeat_unanswered = true
routes = [{ route = "openai", model = "demo-chat" }, { route = "gemini", model = "demo-chat" }, { route = "keyed-anthropic", model = "demo-chat" }]
"#
}

/// Runs a soak on a mesh that is up. `say` hears how it goes.
pub fn soak(mesh: &Mesh, plan: &Plan, say: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let frugal_trust = prepare(mesh)?;
    let files = [mesh.dir.join("soak.toml"), mesh.dir.join("frugal-serve.toml")];
    let [whole, small] = &files;
    fs::write(whole, config())?;
    fs::write(small, format!("[defaults]\nattempts_max = 1\ntotal_ms = {TOTAL_MS}\n"))?;
    let mut adapters = [
        Adapter::start(mesh, "adapter", &mesh.trust(), whole)?,
        Adapter::start(mesh, "frugal", &frugal_trust, small)?,
    ];
    let begun = Instant::now();
    let shared = Arc::new(Run {
        plan: plan.clone(),
        mesh: mesh.clone(),
        begun,
        over: AtomicBool::new(false),
        asked: AtomicU64::new(0),
        tally: Mutex::default(),
        lives: Mutex::new(mesh.sites.iter().map(|s| (s.name.clone(), (0, begun))).collect()),
        spared: OnceLock::new(),
    });
    let genesis = mesh.genesis.parse().ok().context("the genesis digest")?;
    let (answered, to_check) = mpsc::channel();
    let places: Vec<_> = adapters.iter().map(|a| (a.address.clone(), a.folder.clone())).collect();
    let pids: Vec<_> = adapters.iter().map(|a| (a.name.to_owned(), a.child.id())).collect();
    let load_is_over = AtomicBool::new(false);
    let runtime = &tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for (adapter, trust) in adapters.iter().zip([mesh.trust(), frugal_trust]) {
            clients.push((adapter.folder.clone(), Client::connect(TrustFile::load(&trust)?).await?));
        }
        anyhow::Ok(clients)
    })?;
    let mut checked = std::thread::scope(|scope| {
        let (run, load_is_over) = (&shared, &load_is_over);
        scope.spawn(move || sample(run, &pids));
        scope.spawn(move || reap(run));
        let clients = &clients;
        let checker = scope.spawn(move || {
            let mut checker = Checker::new(genesis);
            while !load_is_over.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK_EVERY);
                to_check.try_iter().for_each(|awaited| checker.push(awaited));
                checker.look(false);
                runtime.block_on(checker.close(clients));
            }
            checker
        });
        let load = scope.spawn(move || load(run, &places, &answered));
        let mut next = begun + Duration::from_secs(60);
        while !load.is_finished() {
            std::thread::sleep(Duration::from_millis(200));
            if Instant::now() >= next {
                next += Duration::from_secs(60);
                let line = run.tally(|t| {
                    let asked = run.asked.load(Ordering::Relaxed);
                    let (minutes, untyped) = (begun.elapsed().as_secs() / 60, t.untyped_count + t.hung);
                    format!(
                        "minute {minutes}: {asked} requests, {untyped} untyped, restarts {:?}",
                        t.restarts
                    )
                });
                say(&line);
            }
        }
        let outcome = load.join();
        run.over.store(true, Ordering::Relaxed);
        load_is_over.store(true, Ordering::Relaxed);
        let outcome = outcome.ok().context("the load ended in a panic").and_then(|o| o);
        checker.join().ok().context("the checker ended in a panic").and_then(|c| outcome.map(|()| c))
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    say("load is over; waiting for the last receipts");
    let patience = Instant::now() + LAST_RECEIPTS;
    while checked.waiting() > 0 && Instant::now() < patience {
        std::thread::sleep(LOOK_EVERY);
        checked.look(false);
    }
    let named = cuts_named(&adapters)?;
    for adapter in &mut adapters {
        if let Err(error) = adapter.end() {
            shared.tally(|t| t.broken.push(format!("{error:#}")));
        }
    }
    checked.look(true);
    while checked.open() > 0 {
        std::thread::sleep(LOOK_EVERY);
        runtime.block_on(checked.close(&clients));
    }
    let tally = shared.tally(std::mem::take);
    let long = plan.length >= COVERAGE_MIN;
    let growth = memory::growth(&tally.samples, plan.warm_up);
    Ok(Report {
        seed: plan.seed,
        seconds,
        warm_up_s: plan.warm_up.as_secs_f64(),
        not_seen: if long { not_seen(&tally, plan, &growth) } else { vec![] },
        growth,
        ends: tally.ends,
        untyped: tally.untyped,
        untyped_count: tally.untyped_count,
        hung: tally.hung,
        cut_off: (tally.cut_off, named),
        restarts: tally.restarts,
        receipts: checked.found,
        broken: tally.broken,
    })
}

/// What a run of some minutes must have seen, or it shows nothing.
fn not_seen(tally: &Tally, plan: &Plan, growth: &[Growth]) -> Vec<String> {
    let mut missing = Vec::new();
    for end in ["answered", "hung up", "ours rate_exceeded", "ours client_money_per_minute", "ours timed_out"]
    {
        if !tally.ends.contains_key(end) {
            missing.push(end.to_owned());
        }
    }
    let faults = FAULTS.iter().filter(|f| !tally.faults.contains_key(**f));
    missing.extend(faults.map(|f| format!("fault-{f}")));
    let ways = WAYS.iter().filter(|(_, route, _)| !tally.ways.contains_key(*route));
    missing.extend(ways.map(|(_, route, _)| format!("an answer over {route}")));
    let (term, kill, leader) = tally.restarts;
    if term == 0 || kill == 0 || leader == 0 {
        missing.push("restarts of every kind".into());
    }
    if plan.length.mul_f64(1.0 - SPARED_FROM) > plan.warm_up + RESTARTS_MAX * plan.restart_every + LONG_LIFE
        && growth.iter().all(|g| g.by != memory::LONG_LIVED || g.resident.is_none())
    {
        missing.push("memory of a node that lived long".into());
    }
    missing
}

fn load(
    run: &Arc<Run>,
    places: &[(String, PathBuf)],
    answered: &mpsc::Sender<Awaited>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (Some(main), Some(frugal)) = (places.first(), places.get(1)) else { return Ok(()) };
    runtime.block_on(async {
        let mut workers = tokio::task::JoinSet::new();
        for number in 0..=run.plan.at_once {
            // The last one is frugal.
            let small = number == run.plan.at_once;
            let (run, answered) = (run.clone(), answered.clone());
            let place = if small { frugal } else { main }.clone();
            let dice = Dice::new(run.plan.seed.wrapping_add((number as u64) << 32));
            workers.spawn(async move { work(&run, &place, dice, small, &answered).await });
        }
        while workers.join_next().await.transpose().context("a worker ended in a panic")?.is_some() {}
        Ok(())
    })
}

async fn work(
    run: &Run,
    (address, folder): &(String, PathBuf),
    mut dice: Dice,
    frugal: bool,
    answered: &mpsc::Sender<Awaited>,
) {
    let mut connection = Connection::default();
    while !run.is_over() {
        let ask = if frugal { Ask::frugal(&mut dice) } else { Ask::draw(&mut dice) };
        // Half of the applications open a connection for each request.
        if dice.percent(50) {
            connection = Connection::default();
        }
        let mut got = Got::default();
        let message = (ask.method, ask.path.as_str(), ask.headers);
        let asked = connection.ask(address, message, &ask.body, ask.hang_up, &mut got);
        let asked = tokio::time::timeout(HANG, asked).await;
        run.asked.fetch_add(1, Ordering::Relaxed);
        match asked {
            Err(_) => {
                connection = Connection::default();
                run.tally(|t| {
                    t.hung += 1;
                    *t.ends.entry("hung".into()).or_default() += 1;
                    note(&mut t.untyped, &ask, "it hung");
                });
            }
            Ok(asked) => enter(run, &ask, &got, ask.judge(&got, &asked)),
        }
        if let Some(request) = got.header("x-quorate-request") {
            let (request, folder, asked) = (request.to_owned(), folder.clone(), ask.name());
            let awaited = Awaited { request, folder, asked, since: Instant::now() };
            let _over = answered.send(awaited);
        }
        tokio::time::sleep(Duration::from_millis(dice.below(THINK_MS))).await;
    }
}

fn note(untyped: &mut Vec<String>, ask: &Ask, what: &str) {
    if untyped.len() < SHOWN {
        untyped.push(format!("{}: {what}", ask.name()));
    }
}

fn enter(run: &Run, ask: &Ask, got: &Got, end: End) {
    run.tally(|t| {
        let name = match &end {
            End::Answered => "answered".to_owned(),
            End::HungUp => "hung up".to_owned(),
            End::Ours(code) => format!("ours {code}"),
            End::Provider(status) => format!("provider's {status}"),
            End::Event(code) => format!("stream ended with {code}"),
            End::CutOff => "cut off".to_owned(),
            End::Untyped(_) => "untyped".to_owned(),
        };
        *t.ends.entry(name).or_default() += 1;
        match &end {
            End::Untyped(what) => {
                t.untyped_count += 1;
                note(&mut t.untyped, ask, what);
            }
            End::CutOff => t.cut_off += 1,
            End::Answered => {
                if let Some(route) = got.header("x-quorate-route") {
                    *t.ways.entry(route.to_owned()).or_default() += 1;
                }
            }
            _ => {}
        }
        if let Some(fault) = ask.fault.filter(|_| end != End::HungUp) {
            *t.faults.entry(fault.to_owned()).or_default() += 1;
        }
    });
}

/// Answers whose failure the adapters' metrics name, and that had a head by then: their bodies are cut off, or end with an event.
fn cuts_named(adapters: &[Adapter]) -> anyhow::Result<u64> {
    let mut named = 0;
    for adapter in adapters {
        let (_, text) = http_get(&adapter.address, "/metrics")?;
        let mut by_code: BTreeMap<String, i64> = BTreeMap::new();
        let count = "gen_ai_client_operation_duration_seconds_count{";
        // Those whose head said it are in the second.
        for (family, label, sign) in [(count, "error_type", 1), ("quorate_adapter_errors_total{", "code", -1)]
        {
            for line in text.lines().filter(|l| l.starts_with(family)) {
                let Some((labels, count)) = line.rsplit_once("} ") else { continue };
                let code = labels.split(&format!("{label}=\"")).nth(1).and_then(|r| r.split('"').next());
                let Some(code) = code.filter(|c| !c.is_empty() && *c != "cancelled") else { continue };
                // Digits are a provider's status.
                if !code.starts_with(|c: char| c.is_ascii_digit()) {
                    let count: i64 = count.trim().parse().context("a count that is none")?;
                    *by_code.entry(code.to_owned()).or_default() += sign * count;
                }
            }
        }
        named += by_code.values().map(|n| n.max(&0).unsigned_abs()).sum::<u64>();
    }
    Ok(named)
}

fn sample(run: &Run, adapters: &[(String, u32)]) {
    let mut next = run.begun;
    while run.pause(next) {
        next += SAMPLE_EVERY;
        let mut processes = memory::processes(&run.mesh);
        processes.extend(adapters.iter().cloned());
        for (process, pid) in processes {
            // A node that ends just now is no sample.
            let Ok((resident_kib, anonymous_kib)) = memory::read(pid) else { continue };
            let lives = run.lives.lock().unwrap_or_else(PoisonError::into_inner);
            let (life, born) = lives.get(&process).copied().unwrap_or((0, run.begun));
            drop(lives);
            let (at_s, age_s) = (run.begun.elapsed().as_secs_f64(), born.elapsed().as_secs_f64());
            let sample = Sample { process, life, at_s, age_s, resident_kib, anonymous_kib };
            if let Some(path) = &run.plan.samples
                && let Ok(line) = serde_json::to_string(&sample)
            {
                use std::io::Write as _;
                let file = fs::OpenOptions::new().create(true).append(true).open(path);
                let _diagnostic = file.and_then(|mut file| writeln!(file, "{line}"));
            }
            run.tally(|t| t.samples.push(sample));
        }
    }
}

/// Ends a node and starts it again, time after time.
fn reap(run: &Run) {
    let mut dice = Dice::new(run.plan.seed ^ 0x5ea9);
    let mut next = run.begun + run.plan.restart_every;
    let mut count = 0;
    while run.pause(next) {
        next += run.plan.restart_every;
        if let Err(error) = restart(run, count, &mut dice) {
            run.tally(|t| t.broken.push(format!("restart {count}: {error:#}")));
        }
        count += 1;
    }
}

fn restart(run: &Run, count: u32, dice: &mut Dice) -> anyhow::Result<()> {
    let mesh = &run.mesh;
    // Two at once would be more than a mesh of four is made for.
    mesh.wait_all_healthy(BACK).context("the mesh was not whole")?;
    let leader = mesh.sites.iter().find_map(|site| leader(&site.http));
    if run.begun.elapsed() >= run.plan.length.mul_f64(SPARED_FROM) {
        // Not the leader: once it leads, no leader is restarted any more.
        let follower = mesh.sites.iter().map(|s| s.id).find(|id| Some(*id) != leader);
        run.spared.get_or_init(|| follower.unwrap_or_default());
    }
    let may_end = |id: &u64| Some(id) != run.spared.get();
    let ids: Vec<u64> = mesh.sites.iter().map(|s| s.id).filter(may_end).collect();
    let drawn = dice.one(&ids, 1);
    let node = if count % 3 == 2 { leader.filter(may_end).unwrap_or(drawn) } else { drawn };
    let kill = count % 2 == 1;
    if kill {
        mesh.kill_node(node)?
    } else {
        mesh.stop_node(node)?
    }
    mesh.start_node(node)?;
    let name = mesh.site(node)?.name.clone();
    let mut lives = run.lives.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(life) = lives.get_mut(&name) {
        *life = (life.0 + 1, Instant::now());
    }
    drop(lives);
    run.tally(|t| {
        t.restarts.0 += u32::from(!kill);
        t.restarts.1 += u32::from(kill);
        t.restarts.2 += u32::from(leader == Some(node));
    });
    mesh.wait_healthy(&[node], BACK).with_context(|| format!("{name} did not come back"))?;
    ensure!(runs(&mesh.provider_pid_file()), "the provider ended");
    Ok(())
}

/// The leader that a node names.
fn leader(http: &str) -> Option<u64> {
    let (_, text) = http_get(http, "/metrics").ok()?;
    let value = text.lines().find_map(|l| l.strip_prefix("quorate_raft_leader "))?;
    value.trim().parse().ok().filter(|l| *l != 0)
}
