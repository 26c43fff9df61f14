//! A mesh in a folder of its own, and its end.
//!
//! A **guardian** process waits until the test's process is gone, in whatever way, by the end of a pipe. Then it ends what
//! the mesh's pid files name, checks by the command line that it is the mesh's, and removes the folder unless a test failed.
use anyhow::{Context as _, ensure};
use quorate_client::{Client, TrustFile};
pub use quorate_cluster::mesh::Key;
use quorate_cluster::mesh::{Mesh, Plan, Provider, bin_dir, wait_for};
use quorate_proto::v1::StatusReply;
use std::fs;
use std::future::Future;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Evidence interval, lapse and nonce age of the tests' policies, ms: as short as a busy machine keeps up with.
pub const TIMING: (u64, u64, u64) = (1_000, 5_000, 5_000);
/// How long a mesh may take to be whole again.
pub const WHOLE: Duration = Duration::from_secs(40);
/// Lines of each log that a failure shows.
const TAIL_LINES: usize = 20;
const BINARIES: [&str; 5] =
    ["quorated", "quorate", "quorate-launch", "quorate-demo-provider", "quorate-load"];

const GUARD: &str = r#"
cat > /dev/null
for file in "$0"/*.pid "$0"/*/pid "$0"/*/swtpm.pid; do
  pid=$(cat "$file" 2> /dev/null) || continue
  if { tr '\0' ' ' < "/proc/$pid/cmdline"; } 2> /dev/null | grep -qF "$0/"; then kill -9 "$pid"; fi
done
for mount in "$0"/*/data; do if mountpoint -q "$mount" 2> /dev/null; then umount -l "$mount"; fi; done
[ -e "$0/keep" ] || rm -rf "$0"
"#;

struct Guardian {
    shell: Child,
}

impl Guardian {
    fn watch(dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("bash");
        // A group of its own: Ctrl-C at the terminal ends the tests, not this.
        command.args(["-c", GUARD]).arg(dir).stdin(Stdio::piped()).process_group(0);
        Ok(Self { shell: command.spawn().context("cannot start the guardian")? })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ended = self.shell.wait();
    }
}

/// A mesh, a runtime for the client in this process, and the guardian of both.
pub struct Lab {
    /// The mesh.
    pub mesh: Mesh,
    runtime: Runtime,
    _guardian: Guardian,
}

/// What a lab is made with.
pub struct Make {
    /// Whose it is; part of the folder's name.
    pub name: &'static str,
    /// Further flags of the demo provider.
    pub provider: &'static [&'static str],
    /// Whether it wants a key.
    pub key: Key,
}

impl Lab {
    /// Makes a mesh of four nodes, starts it, and waits until all are attested.
    pub fn make(make: &Make) -> anyhow::Result<Self> {
        let target = bin_dir()?;
        // On the disk of the target folder: a RAM disk would make fsync free.
        let dir = target.join("e2e").join(format!("{}-{}-{}", make.name, std::process::id(), serial()));
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        let guardian = Guardian::watch(&dir)?;
        for name in BINARIES {
            let from = target.join(name);
            let missing = || {
                format!(
                    "{} is not there: run cluster/test, or `cargo build --workspace --bins`",
                    from.display()
                )
            };
            fs::hard_link(&from, bin.join(name))
                .or_else(|_| fs::copy(&from, bin.join(name)).map(drop))
                .with_context(missing)?;
        }
        let plan = Plan {
            dir: dir.clone(),
            bin,
            nodes: 4,
            hostile_nodes_max: 1,
            timing: Some(TIMING),
            provider: Provider::Demo(make.provider.iter().map(|f| (*f).to_owned()).collect()),
            key: make.key.clone(),
            grant: (1_000_000, 10_000_000, 1_000_000_000_000),
            node_config: String::new(),
        };
        let made = Mesh::create(&plan, &mut |_| ()).and_then(|mesh| {
            mesh.start_nodes()?;
            mesh.wait_all_healthy(WHOLE).with_context(|| tails(&mesh))?;
            Ok(mesh)
        });
        if made.is_err() {
            keep(&dir);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self { mesh: made?, runtime, _guardian: guardian })
    }

    /// Runs a future on the lab's runtime.
    pub fn block<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The trust file of a client; `app` is there from the start.
    pub fn trust(&self, client: &str) -> anyhow::Result<TrustFile> {
        let file =
            if client == "app" { self.mesh.trust() } else { self.mesh.dir.join(format!("{client}.toml")) };
        Ok(TrustFile::load(&file)?)
    }

    /// A new client, connected.
    pub fn client(&self, client: &str) -> anyhow::Result<Client> {
        let trust = self.trust(client)?;
        Ok(self.block(Client::connect(trust))?)
    }

    /// All nodes' own status, through this client; those that do not answer are left out.
    pub fn statuses(&self, client: &Client) -> Vec<StatusReply> {
        self.block(client.status()).into_iter().filter_map(|(_, status)| status.ok()).collect()
    }

    /// The leader that most nodes name.
    pub fn leader(&self, client: &Client) -> anyhow::Result<u64> {
        wait_for("a leader", Duration::from_secs(10), || {
            let named: Vec<u64> = self.statuses(client).iter().map(|s| s.leader).collect();
            let first = named.first().copied().filter(|l| *l != 0).context("nobody answers")?;
            ensure!(named.iter().all(|l| *l == first), "they name {named:?}");
            Ok(first)
        })
    }

    /// Starts whatever does not run, and waits until all are attested.
    pub fn make_whole(&self) -> anyhow::Result<()> {
        self.mesh.start_provider()?;
        for site in self.mesh.sites.iter().filter(|s| !s.runs()) {
            self.mesh.start_node(site.id)?;
        }
        self.mesh.wait_all_healthy(WHOLE)
    }

    /// What a node has traced so far.
    pub fn trace(&self, node: u64) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.mesh.site(node)?.log())?)
    }

    /// The addresses of the other nodes' HTTP services.
    pub fn http_but(&self, node: u64) -> Vec<String> {
        self.mesh.sites.iter().filter(|s| s.id != node).map(|s| s.http.clone()).collect()
    }
}

fn serial() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn keep(dir: &Path) {
    let _told_anyway = fs::write(dir.join("keep"), "");
}

/// What each node says of itself, for a failure.
fn words(mesh: &Mesh) -> String {
    let shown =
        ["quorate_certified_lag", "quorate_tree_size", "quorate_nodes_attested", "quorate_raft_leader"];
    let word = |site: &quorate_cluster::mesh::Site| {
        let health = mesh.health(site.id).unwrap_or_else(|e| format!("{e:#}"));
        let metrics =
            quorate_cluster::mesh::http_get(&site.http, "/metrics").map(|(_, text)| text).unwrap_or_default();
        let lines: Vec<&str> = metrics.lines().filter(|l| shown.iter().any(|s| l.starts_with(s))).collect();
        format!("{}: {}; {}\n", site.name, health.trim(), lines.join(", "))
    };
    mesh.sites.iter().map(word).collect()
}

fn tails(mesh: &Mesh) -> String {
    let logs = mesh.sites.iter().map(|s| s.log()).chain([mesh.dir.join("provider.log")]);
    let tail = |log: PathBuf| {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n");
        format!("--- {}\n{last}\n", log.display())
    };
    format!("kept: {}\n{}{}", mesh.dir.display(), words(mesh), logs.map(tail).collect::<String>())
}

/// One lab for all tests of a binary, one test at a time; made by the first that needs it.
pub struct Shared {
    make: Make,
    lab: Mutex<Option<Lab>>,
}

impl Shared {
    /// Nothing is made yet.
    pub const fn new(make: Make) -> Self {
        Self { make, lab: Mutex::new(None) }
    }

    /// Runs a test on a whole mesh. Skips it, and says so, where software TPMs are missing.
    #[expect(clippy::panic, reason = "this is how a test fails")]
    pub fn run(&self, test: &str, body: impl FnOnce(&mut Lab) -> anyhow::Result<()>) {
        if let Some(missing) = ["swtpm", "swtpm_setup", "ssh-keygen"].into_iter().find(|p| !is_installed(p)) {
            return crate::skipped(test, &format!("{missing} is not installed"));
        }
        // A test that failed took its lab with it, so what the lock guards is whole.
        let mut slot = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let lab = slot.take().map_or_else(|| Lab::make(&self.make), Ok);
        let mut lab = lab.unwrap_or_else(|error| panic!("{test}: no mesh: {error:#}"));
        let made = begun.elapsed();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            lab.make_whole().context("the mesh was not whole before the test")?;
            body(&mut lab)
        }));
        println!(
            "{test}: {:.1} s, {:.1} s of it for a mesh",
            begun.elapsed().as_secs_f64(),
            made.as_secs_f64()
        );
        match outcome {
            Ok(Ok(())) => *slot = Some(lab),
            Ok(Err(error)) => {
                keep(&lab.mesh.dir);
                // What failed comes last: whoever sees the end of a long output sees it.
                eprintln!("{}", tails(&lab.mesh));
                panic!("{test}: {error:#}");
            }
            Err(panic) => {
                keep(&lab.mesh.dir);
                eprintln!("{}", tails(&lab.mesh));
                resume_unwind(panic);
            }
        }
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|dir| dir.join(program).is_file())
}

/// A chat of a few words.
pub fn hello(model: &str) -> quorate_client::Chat {
    let mut chat = quorate_client::Chat::new(model, "hello");
    chat.max_tokens = Some(4);
    chat
}

impl Lab {
    /// One short answer.
    pub fn ask(&self, client: &Client) -> Result<quorate_client::ChatAnswer, quorate_client::Error> {
        self.block(client.chat(&hello("demo-chat")))
    }

    /// A client with one lane, and a streamed answer of so many words on its way to it through this relay.
    pub fn stream_through(
        &self,
        relay: u64,
        words: u32,
    ) -> anyhow::Result<(Client, quorate_client::ChatStream)> {
        let options = quorate_client::PoolOptions { lanes: 1, ..Default::default() };
        let mut chat = hello("demo-chat");
        chat.max_tokens = Some(words);
        // Relays are drawn at random.
        for _ in 0..40 {
            let client = self.block(Client::connect_with(self.trust("app")?, options.clone()))?;
            let stream = self.block(client.chat_stream(&chat))?;
            if stream.provenance.relay.0 == relay {
                return Ok((client, stream));
            }
        }
        anyhow::bail!("no client took node {relay} as its relay")
    }
}

/// Reads a stream to its end.
pub async fn rest_of(mut stream: quorate_client::ChatStream) -> Result<String, quorate_client::Error> {
    let mut text = String::new();
    while let Some(piece) = tokio_stream::StreamExt::next(&mut stream).await {
        text.push_str(&piece?);
    }
    Ok(text)
}

impl Lab {
    /// A change of policy as admins make it: the next draft, changed, signed, submitted, in force.
    pub fn change_policy(&self, change: impl FnOnce(&Mesh) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let client = self.client("app")?;
        let version = |s: &StatusReply| s.policy_version;
        let newest = self.statuses(&client).iter().map(version).max().context("nobody answers")? + 1;
        // Any node gives the newest that it has seen certified; one may lag.
        let draft = wait_for("a draft of the next policy", Duration::from_secs(10), || {
            let draft = quorate_cluster::mesh::run(&mut self.mesh.quorate(&["admin", "policy", "--next"]))?;
            ensure!(draft.contains(&format!("\nversion = {newest}\n")), "not of version {newest}");
            Ok(draft)
        })?;
        fs::write(self.mesh.policy(), draft)?;
        change(&self.mesh)?;
        let signature = self.mesh.sign(&self.mesh.policy())?;
        quorate_cluster::mesh::run(
            self.mesh.quorate(&["admin", "submit"]).arg(self.mesh.policy()).arg(signature),
        )?;
        // In force now; what each node gives to clients follows within the blink of its cache.
        let healthy =
            |s: &&quorate_cluster::mesh::Site| self.mesh.health(s.id).is_ok_and(|h| h.trim() == "ok");
        let text = fs::read_to_string(self.mesh.policy())?;
        // Whom the new policy removes follows no longer.
        let member = |s: &&quorate_cluster::mesh::Site| text.contains(&format!("\"{}\"", s.grpc));
        for site in self.mesh.sites.iter().filter(healthy).filter(member) {
            let trust = TrustFile { nodes: vec![site.grpc.parse()?], ..self.trust("app")? };
            wait_for(&format!("{} gives the new policy", site.name), Duration::from_secs(10), || {
                let client = self.block(Client::connect(trust.clone()))?;
                let version = client.directory().verified().policy.version.0;
                ensure!(version >= newest, "version {version}, not {newest}");
                Ok(())
            })?;
        }
        Ok(())
    }
}
