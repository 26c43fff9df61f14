//! `cluster/demo` after set-up and build: makes a mesh, sends real requests through it, verifies what the mesh claims, and
//! tells the story as it goes.
#![forbid(unsafe_code)]

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use quorate_cluster::mesh::{Key, Load, Mesh, Plan, Provider, bin_dir, http_get, http_post, run};
use quorate_cluster::scan;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Starts an attested mesh of router nodes on this machine and sends requests through it.
///
/// Every node has a software TPM of its own. A launcher plays the firmware: it extends PCRs from a recorded event log and the
/// digest of the `quorated` binary, so measurements here prove nothing about this machine; everything above them is real.
#[derive(Parser)]
#[command(
    name = "cluster/demo",
    after_help = "Examples:\n  cluster/demo                                  a whole run, nothing left behind\n  cluster/demo --keep --dir /tmp/mesh           leave it up, then: . /tmp/mesh/env\n  cluster/demo stop --dir /tmp/mesh             end it\n  cluster/demo --keep --dir /tmp/mesh --provider https://localhost:18443/v1 --provider-ca ca.pem --model gemma-3-270m"
)]
struct Args {
    /// `stop` ends a mesh that `--keep` left up; nothing runs the demo.
    #[arg(value_parser = ["stop"])]
    verb: Option<String>,
    /// Leave the mesh up, and print how to use and stop it.
    #[arg(long)]
    keep: bool,
    /// Folder for the mesh's state [default: a fresh temporary one, or /tmp/quorate-demo with --keep and stop].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Nodes, 3 to 7. Four survive any one of them down or hostile.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(3..=7))]
    nodes: u64,
    /// A provider of your own, https://host:port/base [default: a small TLS server that comes with the demo].
    #[arg(long, value_name = "URL", requires = "model")]
    provider: Option<String>,
    /// PEM of the root that signed its certificate [default: the system's roots].
    #[arg(long, value_name = "FILE", requires = "provider")]
    provider_ca: Option<PathBuf>,
    /// File with its API key, which is split over the nodes [default: the provider asks for none].
    #[arg(long, value_name = "FILE", requires = "provider")]
    provider_key_file: Option<PathBuf>,
    /// Model to ask for.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Dialect of the provider.
    #[arg(long, default_value = "openai", value_parser = ["openai", "anthropic"])]
    dialect: String,
}

const KEPT: &str = "/tmp/quorate-demo";

fn main() -> ExitCode {
    match demo(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster/demo: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args) -> anyhow::Result<()> {
    if args.verb.is_some() {
        let dir = args.dir.clone().unwrap_or_else(|| KEPT.into());
        let mesh = Mesh::load(&dir)?;
        mesh.stop();
        std::fs::remove_dir_all(&dir)?;
        println!("stopped, and {} removed", dir.display());
        return Ok(());
    }
    let temporary = std::env::temp_dir().join(format!("quorate-demo-{}", std::process::id()));
    let dir = args.dir.clone().unwrap_or_else(|| if args.keep { KEPT.into() } else { temporary.clone() });
    if dir.join("mesh.json").exists() {
        bail!("{} holds a mesh already; `cluster/demo stop --dir {0}` ends it", dir.display());
    }
    let provider = match &args.provider {
        None => Provider::Demo(vec!["--chunk-delay-ms".into(), "15".into()]),
        Some(url) => Provider::External {
            url: url.clone(),
            ca: args.provider_ca.clone(),
            model: args.model.clone().context("--provider needs --model")?,
            dialect: args.dialect.clone(),
        },
    };
    let key = match (&args.provider, &args.provider_key_file) {
        (None, _) => Key::Made,
        (Some(_), Some(file)) => Key::File(file.clone()),
        (Some(_), None) => Key::None,
    };
    let plan = Plan {
        dir: dir.clone(),
        bin: bin_dir()?,
        nodes: args.nodes,
        hostile_nodes_max: if args.nodes == 7 { 2 } else { 1 },
        timing: None,
        provider,
        key,
        grant: (60_000, 10_000_000, 100_000_000_000_000),
        node_config: String::new(),
    };
    heading("A mesh of router nodes, each with a TPM of its own");
    let mesh = Mesh::create(&plan, &mut |line| println!("  {line}"));
    let outcome = mesh.and_then(|mesh| {
        let story = tell(&mesh, args);
        if story.is_err() || !args.keep {
            mesh.stop();
        }
        story
    });
    match (&outcome, args.keep) {
        (Ok(()), true) => print_kept(&dir),
        (Ok(()), false) if args.dir.is_none() => drop(std::fs::remove_dir_all(&dir)),
        (Ok(()), false) => drop(std::fs::remove_file(dir.join("mesh.json"))),
        (Err(_), _) => eprintln!("cluster/demo: hint: trace lines are in {}/n*/log", dir.display()),
    }
    outcome?;
    println!("\ndemo: ok");
    Ok(())
}

fn tell(mesh: &Mesh, args: &Args) -> anyhow::Result<()> {
    println!("  cluster (SHA-256 of the policy that an admin signed): {}", mesh.genesis);
    heading("Dark start: nobody is attested yet, so nothing is forwarded");
    let begun = Instant::now();
    mesh.start_nodes()?;
    mesh.wait_all_healthy(Duration::from_secs(60))?;
    println!(
        "  {} nodes quoted over each other's fresh values, one `recover` entry was certified, and each followed with evidence\n  over that checkpoint: all attested after {:.1} s",
        mesh.sites.len(),
        begun.elapsed().as_secs_f64()
    );
    indent(&run(&mut mesh.quorate(&["status"]))?);

    if mesh.key_file.is_some() {
        who_holds_what(mesh)?;
    }

    heading("A chat completion, through a relay that cannot read it");
    let receipt = mesh.dir.join("receipt.txt");
    let prompt = "Tell me in one sentence why a quorum is needed.";
    let mut chat = mesh.quorate(&["chat", "--model", &mesh.model, "--max-tokens", "48", "--receipt"]);
    chat.arg(&receipt).arg(prompt);
    println!("  $ quorate chat --model {} --receipt receipt.txt \"{prompt}\"\n", mesh.model);
    let asked = Instant::now();
    let status = chat.status().context("cannot start quorate chat")?;
    ensure!(status.success(), "quorate chat failed");
    println!("\n  answered, settled and receipted in {:.2} s", asked.elapsed().as_secs_f64());

    adapter(mesh, &args.dialect)?;

    if mesh.key_file.is_some() {
        search(mesh)?;
    }

    heading("What the receipt proves, offline, to anyone who knows the genesis digest");
    println!("  $ quorate verify --genesis {} receipt.txt\n", mesh.genesis);
    indent(&verify(mesh, &receipt)?);

    heading("One byte changed, and it proves nothing");
    let changed = mesh.dir.join("receipt-changed.txt");
    let mut bytes = std::fs::read(&receipt)?;
    let middle = bytes.len() / 2;
    if let Some(b) = bytes.get_mut(middle) {
        *b = if *b == b'A' { b'B' } else { b'A' };
    }
    std::fs::write(&changed, bytes)?;
    match verify(mesh, &changed) {
        Ok(_) => bail!("a changed receipt was accepted"),
        Err(refused) => println!("  refused: {}", last_line(&format!("{refused:#}"))),
    }

    heading("The log, as any C2SP client reads it from any node");
    let site = mesh.sites.first().context("no nodes")?;
    println!("  $ curl http://{}/checkpoint\n", site.http);
    let (code, note) = http_get(&site.http, "/checkpoint")?;
    ensure!(code == 200, "the checkpoint is not served");
    indent(&note);

    if args.provider.is_none() {
        heading("A node is killed; requests go on");
        let victim = mesh.sites.last().context("no nodes")?;
        mesh.kill_node(victim.id)?;
        let killed = Instant::now();
        let again = || {
            run(&mut mesh.quorate(&[
                "chat",
                "--model",
                &mesh.model,
                "--no-stream",
                "--max-tokens",
                "12",
                "Still there?",
            ]))
        };
        let answer =
            quorate_cluster::mesh::wait_for("an answer without that node", Duration::from_secs(5), again)?;
        println!(
            "  {} killed with SIGKILL; {:.2} s later: {}",
            victim.name,
            killed.elapsed().as_secs_f64(),
            answer.trim()
        );
        mesh.start_node(victim.id)?;
        mesh.wait_all_healthy(Duration::from_secs(30))?;
        println!("  {} restarted: new boot keys, new quote, attested again", victim.name);
    }
    audit(mesh, args)
}

/// Everything, decided again from a copy of one node's log. The page outlives a temporary folder.
fn audit(mesh: &Mesh, args: &Args) -> anyhow::Result<()> {
    heading("An auditor, who has the genesis digest, any node's log, and nobody's word");
    let url = format!("http://{}", mesh.sites.first().context("no nodes")?.http);
    let (log, page) = (mesh.dir.join("log"), mesh.dir.join("report.html"));
    let lasting = args.keep || args.dir.is_some();
    let page = if lasting { page } else { std::env::temp_dir().join("quorate-demo-report.html") };
    let quorate_audit = |arguments: &[&Path]| {
        let mut command = mesh.command("quorate-audit");
        run(command.env("QUORATE_GENESIS", &mesh.genesis).args(arguments))
    };
    println!("  $ export QUORATE_GENESIS={}\n  $ quorate-audit mirror {url} log", mesh.genesis);
    let copied = quorate_audit(&["mirror".as_ref(), url.as_ref(), &log])?;
    indent(copied.lines().next().unwrap_or_default());
    println!("\n  $ quorate-audit verify log");
    indent(&quorate_audit(&["verify".as_ref(), &log])?);
    println!("\n  $ quorate-audit report log --out {}", page.display());
    indent(&quorate_audit(&["report".as_ref(), &log, "--out".as_ref(), &page])?);
    Ok(())
}

/// Where the provider's key went.
fn who_holds_what(mesh: &Mesh) -> anyhow::Result<()> {
    heading("The provider's key: used by every request, held by nobody");
    println!(
        "  K, the {} bytes behind the key's public prefix, was split on the admin's machine. For each node k it drew a random mask\n  A_k, and B_k = K XOR A_k; then it forgot K. Any two nodes can serve a request, none can tell anything about K:",
        mesh.secret()?.len()
    );
    for site in &mesh.sites {
        let others: Vec<String> =
            mesh.sites.iter().filter(|s| s.id != site.id).map(|s| format!("B_{}", s.id)).collect();
        println!("  {}   A_{}, {}   sealed to its TPM", site.name, site.id, others.join(", "));
    }
    println!(
        "  The keyer adds A_k to the keystream of one TLS record, the relay B_k to what it gets: ciphertext, nothing else."
    );
    Ok(())
}

/// Looks for the key wherever it could be, while requests run.
fn search(mesh: &Mesh) -> anyhow::Result<()> {
    heading("Is that so? A search for the key, while an application asks without pause");
    if !rustix::process::geteuid().is_root() {
        println!("  left out: reading the nodes' memory needs root");
        return Ok(());
    }
    let load = Load::start(mesh, &[&mesh.model], 2)?;
    let begun = Instant::now();
    let adapter = mesh.adapter_pid().map(|pid| ("the adapter", pid));
    let outside: Vec<_> = std::iter::once(("the application", load.pid())).chain(adapter).collect();
    let scanned = scan::scan(mesh, &mesh.secret()?, &outside);
    let took = begun.elapsed().as_secs_f64();
    let fared = load.end()?;
    let scanned = scanned?;
    ensure!(fared.errors.is_empty(), "requests failed meanwhile: {}", fared.errors.join("; "));
    scanned.clean()?;
    println!(
        "  {} processes ({} mappings) and {} files, {:.1} GB, read in {took:.1} s while the provider accepted {} requests:\n  no 16 bytes of the key in a row, as they are, in hex or in base64",
        scanned.processes,
        scanned.mappings,
        scanned.files,
        scanned.bytes as f64 / 1e9,
        fared.answered
    );
    Ok(())
}

/// The way most applications come: an SDK with another base URL.
fn adapter(mesh: &Mesh, dialect: &str) -> anyhow::Result<()> {
    heading("The same for an application that only changes its base URL");
    mesh.start_adapter(&[])?;
    let path = if dialect == "anthropic" { "/v1/messages" } else { "/v1/chat/completions" };
    let body = serde_json::json!({
        "model": mesh.model,
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "Say hello."}],
    });
    println!("  $ quorate serve --listen {} &", mesh.adapter);
    println!("  $ curl -i http://{}{path} -H 'content-type: application/json' -d '{body}'\n", mesh.adapter);
    let answer = http_post(&mesh.adapter, path, &body.to_string())?;
    ensure!(answer.split(' ').nth(1) == Some("200"), "the adapter answered: {answer}");
    let shown = |line: &&str| ["HTTP/", "x-quorate-", "{"].iter().any(|begin| line.starts_with(begin));
    answer.lines().filter(shown).for_each(|line| println!("  {line}"));
    Ok(())
}

fn verify(mesh: &Mesh, receipt: &Path) -> anyhow::Result<String> {
    run(mesh.command("quorate").args(["verify", "--genesis", &mesh.genesis]).arg(receipt))
}

fn print_kept(dir: &Path) {
    let dir = dir.display();
    println!(
        "\nThe mesh stays up. To use it:\n  . {dir}/env\n  quorate status\n  quorate chat --model \"$QUORATE_MODEL\" 'Hello'\n  OPENAI_BASE_URL=\"$QUORATE_ADAPTER_URL/v1\" OPENAI_API_KEY=any YOUR-APPLICATION\nTo end it:\n  cluster/demo stop --dir {dir}"
    );
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn indent(text: &str) {
    for line in text.trim_end().lines() {
        println!("  {line}");
    }
}

/// What the command said, without how it was called.
fn last_line(text: &str) -> &str {
    text.trim_end().rsplit_once("quorate: error: ").map_or(text, |(_, said)| said)
}
