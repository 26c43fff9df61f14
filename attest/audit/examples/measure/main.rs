//! What an audit of a large log costs: makes one, serves it, mirrors it with the process killed twice on its way, verifies it, makes
//! the report and asks for a blast radius. Everything goes into a temporary folder, which goes away.
//!
//! ```console
//! $ cargo build --release -p quorate-audit
//! $ cargo run --release -p quorate-audit --features danger-testing --example measure -- 1000000
//! ```
//! A million requests take some 2 GB in `TMPDIR`: log, mirror, and what `blast-radius` says of half of them. With `--keep DIR` the
//! folder is DIR and stays. Each command is a process of its own; its memory is the peak of its resident set as the kernel counts
//! it, read fifty times a second, and so is its processor time, which says what it costs on a machine that has other work too.
#![expect(clippy::expect_used, reason = "a program for measuring: a broken invariant should stop it")]
mod maker;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use quorate_core::crypto::sha256;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a running command's memory is read.
const READ_EVERY: Duration = Duration::from_millis(20);

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut requests, mut keep) = (1_000_000, None);
    while let Some(arg) = args.next() {
        match (arg.as_str(), arg.parse()) {
            ("--keep", _) => keep = Some(PathBuf::from(args.next().expect("--keep DIR"))),
            (_, Ok(n)) => requests = n,
            _ => {
                eprintln!("usage: measure [REQUESTS] [--keep DIR]");
                std::process::exit(2);
            }
        }
    }
    let dir = keep
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("quorate-measure-{}", std::process::id())));
    std::fs::create_dir_all(&dir).expect("a folder");
    let failed = measure(&dir, requests);
    if keep.is_none() {
        std::fs::remove_dir_all(&dir).expect("removed");
    }
    if failed {
        std::process::exit(1);
    }
}

/// Whether something came out otherwise than it should.
fn measure(dir: &Path, requests: u64) -> bool {
    let (log, copy, page) = (dir.join("log"), dir.join("mirror"), dir.join("report.html"));
    let began = Instant::now();
    let made = maker::make(&log, requests);
    let rate = |n: u64, took: Duration| (n as f64 / took.as_secs_f64()) as u64;
    println!(
        "made          {requests} requests, {} leaves, {} signed commands, in {:.1} s; {:.0} MB",
        made.leaves,
        made.signed,
        began.elapsed().as_secs_f64(),
        size(&log) as f64 / 1e6
    );
    let (url, served) = serve(&log);
    let genesis = made.genesis.to_string();
    let audit = |args: &[&str]| {
        // Examples stand in a folder beside the programs.
        let own = std::env::current_exe().expect("a program has a path");
        let program = own.ancestors().nth(2).expect("examples/ has a parent").join("quorate-audit");
        let mut command = Command::new(&program);
        command.env("QUORATE_GENESIS", &genesis).args(args).stdout(Stdio::null());
        command
    };
    let (copied, log) = (copy.to_str().expect("UTF-8"), log.to_str().expect("UTF-8"));
    let mut failed = false;
    let mut tell = |what: &str, run: &Run, more: &str| {
        let code = |status: ExitStatus| status.code().map(|code| format!("exit {code}"));
        let exit = run.status.and_then(code).unwrap_or_else(|| "ended by SIGKILL".into());
        let (took, cpu, peak) = (run.took.as_secs_f64(), run.cpu_ms as f64 / 1000., run.peak_kb / 1024);
        println!("{what:<14}{took:.1} s, {cpu:.1} s of processor time, {peak} MB at most, {exit}{more}");
        failed |= run.status.is_some_and(|s| !s.success());
    };

    // Killed once at a third of all requests, once at two thirds, then left alone.
    let files = (made.leaves.0 / 256) * 2;
    let mut before = 0;
    for until in [files / 3, files * 2 / 3, u64::MAX] {
        let child = audit(&["mirror", &url, copied]).spawn().expect("quorate-audit: build it first");
        let run = watch(child, || served.load(Ordering::Relaxed) >= until);
        let fetched = served.load(Ordering::Relaxed);
        tell("mirror", &run, &format!(", {} files fetched", fetched - before));
        before = fetched;
    }
    println!("              all runs together fetched {before} files; the log has {}", count(Path::new(log)));

    let verified = audit(&["verify", copied]).stdout(Stdio::inherit()).spawn().expect("it starts");
    let run = watch(verified, || false);
    tell("verify", &run, &format!(", {} requests a second", rate(requests, run.took)));
    let run = watch(
        audit(&["report", copied, "--out", page.to_str().expect("UTF-8")]).spawn().expect("it starts"),
        || false,
    );
    let bytes = std::fs::metadata(&page).map_or(0, |m| m.len());
    tell("report", &run, &format!(", {} requests a second, {} KB", rate(requests, run.took), bytes / 1024));
    let build = sha256(maker::OTHER_BUILD).to_string();
    let found = dir.join("blast-radius.json");
    let out = std::fs::File::create(&found).expect("a file");
    let run = watch(
        audit(&["blast-radius", copied, "--binary", &build, "--json"])
            .stdout(out)
            .spawn()
            .expect("it starts"),
        || false,
    );
    let lines = std::fs::read_to_string(&found).map_or(0, |text| text.lines().count());
    tell(
        "blast-radius",
        &run,
        &format!(", {} requests a second, {lines} lines of JSON", rate(requests, run.took)),
    );
    let run =
        watch(audit(&["blast-radius", copied, "--binary", &build]).spawn().expect("it starts"), || false);
    tell("  as text", &run, "");
    failed
}

/// A command that ran.
struct Run {
    took: Duration,
    cpu_ms: u64,
    peak_kb: u64,
    /// `None` where it was killed here.
    status: Option<ExitStatus>,
}

/// Waits for its end, or kills it when it is time.
fn watch(mut child: Child, kill: impl Fn() -> bool) -> Run {
    let (began, mut peak_kb, mut cpu_ms) = (Instant::now(), 0, 0);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        peak_kb = peak_kb.max(kb.unwrap_or(0));
        cpu_ms = cpu_ms.max(processor_ms(child.id()));
        if let Some(status) = child.try_wait().expect("it is ours") {
            return Run { took: began.elapsed(), cpu_ms, peak_kb, status: Some(status) };
        }
        if kill() {
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
            return Run { took: began.elapsed(), cpu_ms, peak_kb, status: None };
        }
        std::thread::sleep(READ_EVERY);
    }
}

/// Processor time of all threads so far: fields 14 and 15 of `stat`, in hundredths of a second on every Linux.
fn processor_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = after_name.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok());
    ticks.sum::<u64>() * 10
}

/// Serves a folder over HTTP, and counts what it served.
fn serve(dir: &Path) -> (String, Arc<AtomicU64>) {
    let served = Arc::new(AtomicU64::new(0));
    let (dir, counted) = (dir.to_owned(), Arc::clone(&served));
    let (sender, url) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let at = listener.local_addr().expect("it listens");
            sender.send(format!("http://{at}")).expect("main waits");
            let router = Router::new().fallback(file).with_state((dir, counted));
            axum::serve(listener, router).await.expect("it serves");
        });
    });
    (url.recv().expect("it listens"), served)
}

async fn file(
    State((dir, served)): State<(PathBuf, Arc<AtomicU64>)>,
    uri: Uri,
) -> Result<Vec<u8>, StatusCode> {
    let bytes = std::fs::read(dir.join(uri.path().trim_start_matches('/')));
    served.fetch_add(1, Ordering::Relaxed);
    bytes.map_err(|_| StatusCode::NOT_FOUND)
}

fn walk(dir: &Path, visit: &mut dyn FnMut(u64)) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let meta = entry.metadata().expect("it is there");
        if meta.is_dir() { walk(&entry.path(), visit) } else { visit(meta.len()) }
    }
}

fn size(dir: &Path) -> u64 {
    let mut all = 0;
    walk(dir, &mut |bytes| all += bytes);
    all
}

fn count(dir: &Path) -> u64 {
    let mut all = 0;
    walk(dir, &mut |_| all += 1);
    all
}
