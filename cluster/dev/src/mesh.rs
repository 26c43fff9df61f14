//! A whole mesh on this machine: software TPMs, nodes, a provider, one client. The demo, the end-to-end tests and the
//! benchmarks all make theirs here, with the same commands an operator types.
//!
//! Everything lives in one folder: `mesh.json` says what runs where, `env` is for shells to source. Processes outlive the one
//! that started them and are ended by their id.
use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Ports are taken from here: below the kernel's range for outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Each node's: gRPC, HTTP, TPM, TPM control.
const PORTS_PER_NODE: u16 = 4;

/// The largest thing served is a tile of leaves: 256 of 64 KiB.
const ANSWER_BYTES_MAX: u64 = 20 * 1024 * 1024;

/// What to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Folder for everything; made when missing, must hold no mesh.
    pub dir: PathBuf,
    /// Folder of the binaries.
    pub bin: PathBuf,
    /// Nodes, three to seven.
    pub nodes: u64,
    /// Certification survives so many hostile nodes.
    pub hostile_nodes_max: u32,
    /// Evidence interval, lapse and nonce age, ms; the policy's defaults when `None`.
    pub timing: Option<(u64, u64, u64)>,
    /// What stands behind the mesh.
    pub provider: Provider,
    /// The provider's key, if it wants one.
    pub key: Key,
    /// Requests a minute and a day, and bytes a day, for the client.
    pub grant: (u64, u64, u64),
    /// Further lines for each node's configuration.
    pub node_config: String,
}

/// What stands behind the mesh.
#[derive(Debug, Clone)]
pub enum Provider {
    /// The demo's own, with these flags.
    Demo(Vec<String>),
    /// Somebody's.
    External {
        /// `https://host:port/base`.
        url: String,
        /// PEM of its root; the system's roots when `None`.
        ca: Option<PathBuf>,
        /// Model name.
        model: String,
        /// `openai` or `anthropic`.
        dialect: String,
    },
}

/// The provider's key, if it wants one. It ends up split over the nodes; until then it stands in a file of the provider's.
#[derive(Debug, Clone, Default)]
pub enum Key {
    /// It takes anybody.
    #[default]
    None,
    /// One made here, which the demo's provider insists on.
    Made,
    /// The same, for a second route to it: [`KEYED_ROUTE`] has a key, `provider` has none.
    Beside,
    /// In a file: of somebody's provider.
    File(PathBuf),
}

/// The route with a key of [`Key::Beside`].
pub const KEYED_ROUTE: &str = "keyed";
/// Where the demo's provider has it: only what is asked below this path needs the key.
pub const KEYED_PATH: &str = "/keyed";

/// A node's place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Site {
    /// Number.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Folder.
    pub dir: PathBuf,
    /// `host:port`, gRPC.
    pub grpc: String,
    /// `host:port`, HTTP.
    pub http: String,
    /// TPM folder.
    pub tpm_dir: PathBuf,
    /// TPM port.
    pub tpm_port: u16,
    /// What its commands begin with, such as `ip netns exec n1`; nothing where all nodes share this machine's network.
    #[serde(default)]
    pub inside: Vec<String>,
}

/// Where a node, or the provider, stands in the network.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address.
    pub host: String,
    /// See [`Site::inside`].
    pub inside: Vec<String>,
}

/// All on the loopback interface.
fn loopback(_: u64) -> Place {
    Place { host: "127.0.0.1".into(), inside: vec![] }
}

/// A mesh in a folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mesh {
    /// The folder.
    pub dir: PathBuf,
    /// Binaries.
    pub bin: PathBuf,
    /// Nodes.
    pub sites: Vec<Site>,
    /// Genesis digest, hex.
    pub genesis: String,
    /// Model to ask for.
    pub model: String,
    /// Whether the demo's own provider serves it, and its flags.
    pub demo_provider: Option<Vec<String>>,
    /// File with the provider's key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Where `quorate serve` listens, `host:port`, once it is started.
    #[serde(default)]
    pub adapter: String,
}

/// Runs a command to its end; its output is the error's text when it fails.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed ({}): {}{}", output.status, err.trim(), out.trim());
    Ok(out.into_owned())
}

/// Tries until it is so, or the time is up; then says what was awaited and what the last try said.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {} s: {what}", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A run of free ports.
fn free_ports(count: u16) -> anyhow::Result<u16> {
    // A different start for each process, so that meshes made at the same time seldom meet.
    let span = PORTS.end - PORTS.start - count;
    let mut from = PORTS.start + (std::process::id().wrapping_mul(131) % u32::from(span)) as u16;
    for _ in 0..2000 {
        if from + count >= PORTS.end {
            from = PORTS.start;
        }
        let held: Vec<_> =
            (from..from + count).map_while(|p| TcpListener::bind(("127.0.0.1", p)).ok()).collect();
        if held.len() == usize::from(count) {
            return Ok(from);
        }
        from += held.len() as u16 + 1;
    }
    bail!("no {count} free ports in a row between {} and {}", PORTS.start, PORTS.end)
}

fn pid_in(file: &Path) -> Option<rustix::process::Pid> {
    let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    rustix::process::Pid::from_raw(pid)
}

fn signal(file: &Path, signal: rustix::process::Signal) -> bool {
    pid_in(file).is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

/// Whether the process of a pid file runs (a zombie does not).
pub fn runs(file: &Path) -> bool {
    let Some(pid) = pid_in(file) else { return false };
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

impl Site {
    fn at(dir: &Path, id: u64, port: u16, place: Place) -> Self {
        let host = place.host;
        Self {
            id,
            name: format!("n{id}"),
            dir: dir.join(format!("n{id}")),
            grpc: format!("{host}:{port}"),
            http: format!("{host}:{}", port + 1),
            tpm_dir: dir.join(format!("tpm{id}")),
            tpm_port: port + 2,
            inside: place.inside,
        }
    }
    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }
    /// Trace lines of all its starts.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("node.toml")
    }
    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        pid_in(&self.pid_file()).map(|p| p.as_raw_nonzero().get().unsigned_abs())
    }
    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        runs(&self.pid_file())
    }
}

impl Mesh {
    /// Makes everything, starts nothing but TPMs: enrols each node by credential activation, signs the genesis policy, makes
    /// the data folders and the client's trust file. `say` hears what happens.
    pub fn create(plan: &Plan, say: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        Self::create_at(plan, &loopback, say)
    }

    /// The same, with each node where `place` says; node 0 is the provider, and whoever asks for anything is beside it.
    pub fn create_at(
        plan: &Plan,
        place: &dyn Fn(u64) -> Place,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Self> {
        let dir = &plan.dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = fs::canonicalize(dir)?;
        ensure!(!dir.join("mesh.json").exists(), "{} holds a mesh already", dir.display());
        let first = free_ports(PORTS_PER_NODE * plan.nodes as u16 + 2)?;
        let site = |id: u64| Site::at(&dir, id, first + PORTS_PER_NODE * (id - 1) as u16, place(id));
        let sites: Vec<Site> = (1..=plan.nodes).map(site).collect();
        let key_file = match &plan.key {
            Key::None => None,
            Key::Made | Key::Beside => Some(make_key(&dir)?),
            Key::File(path) => {
                Some(fs::canonicalize(path).with_context(|| format!("no {}", path.display()))?)
            }
        };
        let demo_provider = match &plan.provider {
            Provider::Demo(flags) => {
                let port = first + PORTS_PER_NODE * plan.nodes as u16;
                let mut all = vec!["--listen".to_owned(), format!("{}:{port}", place(0).host)];
                all.extend(flags.iter().cloned());
                if let Some(path) = &key_file {
                    all.extend(["--key-file".to_owned(), path.display().to_string()]);
                }
                if matches!(plan.key, Key::Beside) {
                    all.extend(["--key-path".to_owned(), KEYED_PATH.to_owned()]);
                }
                Some(all)
            }
            Provider::External { .. } => None,
        };
        let model = match &plan.provider {
            Provider::Demo(_) => "demo-chat".to_owned(),
            Provider::External { model, .. } => model.clone(),
        };
        let mut mesh = Self {
            dir: dir.clone(),
            bin: plan.bin.clone(),
            sites,
            genesis: String::new(),
            model,
            demo_provider,
            key_file,
            adapter: format!("127.0.0.1:{}", first + PORTS_PER_NODE * plan.nodes as u16 + 1),
        };
        mesh.set_up(plan, say)?;
        fs::write(dir.join("mesh.json"), serde_json::to_vec_pretty(&mesh)?)?;
        mesh.write_env()?;
        Ok(mesh)
    }

    /// The mesh that a folder holds.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("mesh.json");
        let text = fs::read(&path).with_context(|| format!("{} holds no mesh", dir.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// A command of the binaries' folder.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.bin.join(name))
    }
    /// A command of the binaries' folder, where a node is.
    fn command_at(&self, site: &Site, name: &str) -> Command {
        let program = self.bin.join(name);
        match site.inside.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        }
    }
    /// `quorate` with this mesh's trust file.
    pub fn quorate(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("quorate");
        command.env("QUORATE_TRUST", self.trust()).args(arguments);
        command
    }
    /// The client's trust file.
    pub fn trust(&self) -> PathBuf {
        self.dir.join("trust.toml")
    }
    /// The policy that the admins signed last.
    pub fn policy(&self) -> PathBuf {
        self.dir.join("policy.toml")
    }
    /// The admin's SSH key.
    pub fn admin_key(&self) -> PathBuf {
        self.dir.join("admin")
    }
    /// The secret in the provider's key, as the policy draft tells it from the public prefix.
    pub fn secret(&self) -> anyhow::Result<zeroize::Zeroizing<Vec<u8>>> {
        let path = self.key_file.as_ref().context("this mesh's provider has no key")?;
        let key = zeroize::Zeroizing::new(fs::read(path)?);
        let draft: toml::Table = toml::from_str(&fs::read_to_string(self.policy())?)?;
        let routes = draft.get("route").and_then(toml::Value::as_array).into_iter().flatten();
        let credential = routes.filter_map(|r| r.get("credential")).next().context("no route has a key")?;
        let length = credential.get("secret_bytes").and_then(toml::Value::as_integer);
        let length = usize::try_from(length.context("a credential without secret_bytes")?)?;
        let key = key.trim_ascii();
        let secret = key.len().checked_sub(length).and_then(|from| key.get(from..));
        Ok(zeroize::Zeroizing::new(secret.context("the key is shorter than its secret")?.to_vec()))
    }
    /// A node's place.
    pub fn site(&self, id: u64) -> anyhow::Result<&Site> {
        self.sites.iter().find(|s| s.id == id).with_context(|| format!("no node {id}"))
    }

    fn set_up(&mut self, plan: &Plan, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let (dir, policy) = (self.dir.clone(), self.policy());
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "admin"])
            .arg("-f")
            .arg(self.admin_key()))?;
        run(self.command("quorate-launch").arg("event-log").arg("--out").arg(dir.join("events")))?;
        let mut init = self.command("quorate");
        init.args(["admin", "init", "--cluster", "demo", "--allow-software-tpm", "--admin"]);
        init.arg(dir.join("admin.pub")).arg("--out").arg(&policy);
        if let Some((evidence, lapse, nonce)) = plan.timing {
            init.args(["--evidence-interval-ms", &evidence.to_string(), "--lapse-ms", &lapse.to_string()]);
            init.args(["--nonce-age-ms", &nonce.to_string()]);
        }
        run(&mut init)?;
        let values = run(self
            .command("quorate-launch")
            .arg("reference-values")
            .arg("--event-log")
            .arg(dir.join("events"))
            .arg("--binary")
            .arg(self.bin.join("quorated")))?;
        fs::write(dir.join("reference-values.toml"), values)?;
        self.admin(
            &["reference-values", "set", "--name", "demo", "--file"],
            &[&dir.join("reference-values.toml")],
        )?;
        if self.key_file.is_some() {
            self.admin(&["approver", "--key"], &[&self.approver_key()])?;
        }
        say("making software TPMs, each with an endorsement key certified by a CA of its own folder");
        for site in &self.sites {
            self.set_up_node(site, &plan.node_config)?;
            self.enrol(site)?;
            say(&format!("{}: enrolled; its TPM activated the credential made for its EK and AK", site.name));
        }
        self.add_route(plan)?;
        if let Some(file) = &self.key_file {
            self.approve(&[])?;
            let route = if matches!(plan.key, Key::Beside) { KEYED_ROUTE } else { "provider" };
            self.set_credential(route, file)?;
            say("the provider's key was split for these nodes, each share sealed to its node, and forgotten");
        }
        let key = run(self.command("quorate").arg("keygen").arg(dir.join("client.key")))?;
        let key = key.split_whitespace().last().context("keygen printed no key")?.to_owned();
        let (minute, day, bytes) = plan.grant;
        let (minute, day, bytes) = (minute.to_string(), day.to_string(), bytes.to_string());
        let mut client = vec!["client", "add", "--name", "app", "--key", &key, "--custodian", "developers"];
        client.extend(["--route", "provider"]);
        if matches!(plan.key, Key::Beside) {
            client.extend(["--route", KEYED_ROUTE]);
        }
        client.extend([
            "--requests-per-minute",
            &minute,
            "--requests-per-day",
            &day,
            "--bytes-per-day",
            &bytes,
        ]);
        self.admin(&client, &[])?;
        if plan.hostile_nodes_max != 1 {
            self.edit_policy(|text| {
                text.replace(
                    "hostile_nodes_max = 1",
                    &format!("hostile_nodes_max = {}", plan.hostile_nodes_max),
                )
            })?;
        }
        self.sign(&policy)?;
        for site in &self.sites {
            let said = self.init_node(site, &policy, false)?;
            self.genesis = said.split_whitespace().last().context("init printed no digest")?.to_owned();
        }
        let nodes: Vec<&str> = self.sites.iter().map(|s| s.grpc.as_str()).collect();
        let trust = format!(
            "genesis = \"{}\"\nnodes = {nodes:?}\nclient = \"app\"\nkey = \"client.key\"\n",
            self.genesis
        );
        fs::write(self.trust(), trust)?;
        Ok(())
    }

    fn set_up_node(&self, site: &Site, node_config: &str) -> anyhow::Result<()> {
        fs::create_dir_all(&site.dir)?;
        let mut setup = self.command_at(site, "quorate-launch");
        setup
            .args(["tpm", "setup", "--name", &site.name])
            .arg("--dir")
            .arg(&site.tpm_dir)
            .arg("--ca-dir")
            .arg(self.dir.join("ca"));
        run(&mut setup)?;
        self.tpm(site, "start")?;
        let config = format!(
            "node = {}\ndata_dir = \"data\"\nlisten = \"{}\"\nhttp_listen = \"{}\"\n{}\n[tpm]\ntcti = \"swtpm:host=127.0.0.1,port={}\"\nevent_log = \"events\"\n",
            site.id, site.grpc, site.http, node_config, site.tpm_port
        );
        fs::write(site.config(), config)?;
        Ok(())
    }

    /// A place for one more node: its ports, its TPM, its configuration. Nothing of it is in the policy yet.
    pub fn new_site(&mut self, id: u64) -> anyhow::Result<Site> {
        let port = free_ports(PORTS_PER_NODE)?;
        let site = Site::at(&self.dir, id, port, loopback(id));
        self.set_up_node(&site, "")?;
        self.sites.push(site.clone());
        Ok(site)
    }

    /// Makes a node's data folder from the genesis policy.
    pub fn init_node(&self, site: &Site, genesis: &Path, joins: bool) -> anyhow::Result<String> {
        let mut init = self.command_at(site, "quorated");
        init.arg("--config").arg(site.config()).arg("init").arg("--policy").arg(genesis);
        init.arg("--signature").arg(format!("{}.sig", genesis.display()));
        run(init.args(joins.then_some("--joins")))
    }

    /// Enrols a node into the policy draft.
    pub fn enrol(&self, site: &Site) -> anyhow::Result<()> {
        let (id, custodian) = (site.id.to_string(), format!("operators-{}", site.id));
        let ca = self.dir.join("ca");
        let mut enrol = self.command("quorate");
        enrol.args(["admin", "enrol", "--id", &id, "--name", &site.name, "--custodian", &custodian]);
        enrol.args(["--address", &site.grpc, "--http", &site.http, "--reference-values", "demo"]);
        enrol.arg("--policy").arg(self.policy());
        enrol
            .arg("--ek-roots")
            .arg(ca.join("swtpm-localca-rootca-cert.pem"))
            .arg("--ek-intermediates")
            .arg(ca.join("issuercert.pem"));
        enrol
            .arg("--")
            .args(&site.inside)
            .arg(self.bin.join("quorated"))
            .arg("--config")
            .arg(site.config())
            .arg("enrol");
        run(&mut enrol).map(drop)
    }

    fn add_route(&self, plan: &Plan) -> anyhow::Result<()> {
        let (url, ca, models, dialect) = match &plan.provider {
            Provider::Demo(flags) => {
                // Started once, so that its CA is there to be named in the policy.
                self.start_provider()?;
                let provider = self.dir.join("provider");
                let port = self
                    .demo_provider
                    .as_ref()
                    .and_then(|f| f.get(1))
                    .and_then(|a| a.rsplit_once(':'))
                    .map(|(_, p)| p.to_owned());
                let port = port.context("the demo provider has no port")?;
                let mut models = vec!["demo-chat".to_owned(), "demo-embed".to_owned()];
                models.extend(
                    ["close-mid-stream", "close", "slow", "400", "401", "429", "500", "502-html"]
                        .map(|f| format!("fault-{f}")),
                );
                let _shown_in_mesh_json = flags;
                (
                    format!("https://localhost:{port}"),
                    Some(provider.join("ca.pem")),
                    models,
                    "openai".to_owned(),
                )
            }
            Provider::External { url, ca, model, dialect } => {
                let url = url.trim_end_matches('/');
                // The paths of a dialect begin with /v1 already.
                let url = url.strip_suffix("/v1").unwrap_or(url).to_owned();
                (url, ca.clone(), vec![model.clone()], dialect.clone())
            }
        };
        let rest = url.strip_prefix("https://").context("the provider's URL begins with https://")?;
        let (authority, base) =
            rest.split_once('/').map_or((rest, String::new()), |(a, b)| (a, format!("/{b}")));
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
        let route = |name: &str, base: &str, models: &[String]| {
            let mut arguments =
                vec!["route", "add", "--name", name, "--host", host, "--port", port, "--dialect", &dialect];
            if !base.is_empty() {
                arguments.extend(["--base-path", base]);
            }
            for model in models {
                arguments.extend(["--model", model]);
            }
            let mut paths: Vec<&Path> = Vec::new();
            if let Some(ca) = &ca {
                arguments.push("--ca");
                paths.push(ca);
            }
            self.admin(&arguments, &paths)
        };
        route("provider", &base, &models)?;
        match plan.key {
            Key::Beside => route(KEYED_ROUTE, KEYED_PATH, &[format!("{KEYED_ROUTE}-chat")]),
            Key::None | Key::Made | Key::File(_) => Ok(()),
        }
    }

    /// `quorate admin … --policy POLICY`, with paths at the end of the arguments.
    pub fn admin(&self, arguments: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
        let mut command = self.command("quorate");
        command.arg("admin").args(arguments).args(paths).arg("--policy").arg(self.policy());
        run(&mut command).map(drop)
    }

    /// The key that approves which software may open shares.
    pub fn approver_key(&self) -> PathBuf {
        self.dir.join("approver.key")
    }

    /// `quorate admin approve` for the policy draft, with further arguments.
    pub fn approve(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let all: Vec<&str> = ["approve"].iter().chain(arguments).copied().collect();
        self.admin(&all, &[Path::new("--key"), &self.approver_key()])
    }

    /// Splits the key in a file for a route of the policy draft.
    pub fn set_credential(&self, route: &str, key: &Path) -> anyhow::Result<()> {
        self.admin(&["credential", "set", route, "--from-file"], &[key])
    }

    /// Signs a policy document with the admin's key, to `FILE.sig`.
    pub fn sign(&self, policy: &Path) -> anyhow::Result<PathBuf> {
        let sig = PathBuf::from(format!("{}.sig", policy.display()));
        let _stale = fs::remove_file(&sig);
        run(self.command("quorate").args(["admin", "sign", "--key"]).arg(self.admin_key()).arg(policy))?;
        Ok(sig)
    }

    /// Changes the policy draft's text.
    pub fn edit_policy(&self, edit: impl FnOnce(String) -> String) -> anyhow::Result<()> {
        Ok(fs::write(self.policy(), edit(fs::read_to_string(self.policy())?))?)
    }

    /// A change of policy as admins make it: the next draft, changed, signed, submitted, in force.
    pub fn change_policy(&self, change: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        fs::write(self.policy(), run(&mut self.quorate(&["admin", "policy", "--next"]))?)?;
        change(self)?;
        let signature = self.sign(&self.policy())?;
        run(self.quorate(&["admin", "submit"]).arg(self.policy()).arg(signature)).map(drop)
    }

    /// A route of the policy draft to the demo's provider, in one of its dialects, for these models. Granted to nobody yet.
    pub fn add_demo_route(
        &self,
        name: &str,
        dialect: &str,
        base_path: &str,
        models: &[&str],
    ) -> anyhow::Result<()> {
        let port = fs::read_to_string(self.dir.join("provider/addr"))?;
        let port = port.rsplit_once(':').context("the provider has no port")?.1.to_owned();
        let flags = ["route", "add", "--name", name, "--host", "localhost", "--port", &port];
        let mut arguments: Vec<String> = flags.map(ToOwned::to_owned).into();
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("--dialect", dialect.to_owned());
        if !base_path.is_empty() {
            add("--base-path", base_path.to_owned());
        }
        for model in models {
            add("--model", (*model).to_owned());
            // Paths that hold the model are listed for each, within the policy's bound of them.
            let verbs: &[&str] = match (dialect, *model) {
                ("gemini", "demo-chat") => {
                    &[":generateContent", ":streamGenerateContent?alt=sse", ":countTokens"]
                }
                ("gemini", "demo-embed") => &[":embedContent", ":batchEmbedContents"],
                ("gemini", _) => &[":generateContent", ":streamGenerateContent?alt=sse"],
                ("bedrock", "demo-embed") => &[],
                ("bedrock", _) => &["/converse", "/converse-stream"],
                _ => &[],
            };
            let folder = if dialect == "gemini" { "/v1beta/models" } else { "/model" };
            verbs.iter().for_each(|verb| add("--path", format!("{folder}/{model}{verb}")));
        }
        arguments.push("--ca".to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.admin(&arguments, &[&self.dir.join("provider/ca.pem")])
    }

    /// Changes the policy draft's content; comments are lost.
    pub fn edit_draft(
        &self,
        edit: impl FnOnce(&mut toml::Table) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut draft: toml::Table = fs::read_to_string(self.policy())?.parse()?;
        edit(&mut draft)?;
        Ok(fs::write(self.policy(), toml::to_string(&draft)?)?)
    }

    /// Further routes for a client of the policy draft.
    pub fn grant(&self, client: &str, routes: &[&str]) -> anyhow::Result<()> {
        self.edit_draft(|draft| {
            let clients = draft.get_mut("client").and_then(toml::Value::as_array_mut).into_iter().flatten();
            let named = |c: &&mut toml::Value| c.get("name").and_then(toml::Value::as_str) == Some(client);
            let granted = clients.into_iter().find(named).and_then(|c| c.get_mut("routes"));
            let granted = granted.and_then(toml::Value::as_array_mut);
            let granted = granted.with_context(|| format!("the draft has no client {client}"))?;
            granted.extend(routes.iter().map(|r| toml::Value::String((*r).to_owned())));
            Ok(())
        })
    }

    fn write_env(&self) -> anyhow::Result<()> {
        let join = |f: &dyn Fn(&Site) -> String| self.sites.iter().map(f).collect::<Vec<_>>().join(" ");
        let text = format!(
            "export QUORATE_TRUST='{}'\nexport QUORATE_NODES='{}'\nexport QUORATE_LOG_URLS='{}'\nexport QUORATE_METRICS_URLS='{}'\nexport QUORATE_MODEL='{}'\nexport QUORATE_ADAPTER_URL='http://{}'\nexport PATH='{}':\"$PATH\"\n",
            self.trust().display(),
            join(&|s| s.grpc.clone()),
            join(&|s| format!("http://{}", s.http)),
            join(&|s| format!("http://{}/metrics", s.http)),
            self.model,
            self.adapter,
            self.bin.display(),
        );
        Ok(fs::write(self.dir.join("env"), text)?)
    }

    /// `quorate-launch tpm VERB` for a node.
    pub fn tpm(&self, site: &Site, verb: &str) -> anyhow::Result<()> {
        let port = site.tpm_port.to_string();
        run(self
            .command_at(site, "quorate-launch")
            .args(["tpm", verb, "--port", &port])
            .arg("--dir")
            .arg(&site.tpm_dir))
        .map(drop)
    }

    /// Starts a node's process through the launcher.
    pub fn start_node(&self, id: u64) -> anyhow::Result<()> {
        self.start_node_with(id, &self.bin.join("quorated"), &[])
    }

    /// Starts a node with another program, or further flags for the launcher.
    pub fn start_node_with(&self, id: u64, program: &Path, launch: &[&str]) -> anyhow::Result<()> {
        let site = self.site(id)?;
        ensure!(!site.runs(), "{} runs already", site.name);
        let mut command = self.command_at(site, "quorate-launch");
        command.args(["node", "--port", &site.tpm_port.to_string()]).arg("--tpm-dir").arg(&site.tpm_dir);
        command.arg("--event-log").arg(self.dir.join("events")).arg("--log-out").arg(site.dir.join("events"));
        // Should it leave a core dump after all, then where it is looked for.
        command.current_dir(&site.dir);
        // All nodes share this machine: as many threads each as there would be cores for it.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        command.env("TOKIO_WORKER_THREADS", (cores / self.sites.len()).max(1).to_string());
        command.args(launch).arg("--").arg(program).arg("--config").arg(site.config());
        detach(&mut command, &site.log(), &site.pid_file())
    }

    /// Starts all nodes.
    pub fn start_nodes(&self) -> anyhow::Result<()> {
        self.sites.iter().try_for_each(|s| self.start_node(s.id))
    }

    /// SIGKILL.
    pub fn kill_node(&self, id: u64) -> anyhow::Result<()> {
        let file = self.site(id)?.pid_file();
        ensure!(signal(&file, rustix::process::Signal::KILL), "node {id} does not run");
        wait_for("the process is gone", Duration::from_secs(5), || {
            if runs(&file) { bail!("it runs") } else { Ok(()) }
        })
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop_node(&self, id: u64) -> anyhow::Result<()> {
        let file = self.site(id)?.pid_file();
        ensure!(signal(&file, rustix::process::Signal::TERM), "node {id} does not run");
        wait_for("the process is gone", Duration::from_secs(20), || {
            if runs(&file) { bail!("it runs") } else { Ok(()) }
        })
    }

    /// SIGSTOP or SIGCONT.
    pub fn pause_node(&self, id: u64, pause: bool) -> anyhow::Result<()> {
        let which = if pause { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        ensure!(signal(&self.site(id)?.pid_file(), which), "node {id} does not run");
        Ok(())
    }

    /// Starts the demo's provider, if the mesh has it and it does not run.
    pub fn start_provider(&self) -> anyhow::Result<()> {
        let Some(flags) = &self.demo_provider else { return Ok(()) };
        let (dir, pid) = (self.dir.join("provider"), self.provider_pid_file());
        if runs(&pid) {
            return Ok(());
        }
        let mut command = self.command("quorate-demo-provider");
        command.args(flags).arg("--dir").arg(&dir).arg("--access-log").arg(self.dir.join("provider.access"));
        detach(&mut command, &self.dir.join("provider.log"), &pid)?;
        let ready = || {
            ensure!(runs(&pid), "it ended; see {}", self.dir.join("provider.log").display());
            ensure!(dir.join("ca.pem").exists(), "not ready");
            // Of an earlier start the files are there too: what counts is that it listens.
            std::net::TcpStream::connect(flags.get(1).map_or("", String::as_str))?;
            Ok(())
        };
        wait_for("the demo provider is ready", Duration::from_secs(10), ready)
    }

    /// Where the provider's pid is.
    pub fn provider_pid_file(&self) -> PathBuf {
        self.dir.join("provider.pid")
    }

    /// Ends the provider.
    pub fn stop_provider(&self) {
        let file = self.provider_pid_file();
        signal(&file, rustix::process::Signal::TERM);
        let _late = wait_for("the provider is gone", Duration::from_secs(5), || {
            if runs(&file) { bail!("it runs") } else { Ok(()) }
        });
    }

    /// Starts `quorate serve` for the mesh's client, if it does not run, with further flags; waits until it is ready.
    pub fn start_adapter(&self, flags: &[&str]) -> anyhow::Result<()> {
        let (log, pid) = (self.dir.join("adapter.log"), self.adapter_pid_file());
        if runs(&pid) {
            return Ok(());
        }
        // The log of an earlier start has a ready line too.
        let _none = fs::remove_file(&log);
        let mut command = self.command("quorate");
        command.args(["serve", "--listen", &self.adapter]).args(flags).arg("--trust").arg(self.trust());
        detach(&mut command, &log, &pid)?;
        wait_for("the adapter is ready", Duration::from_secs(15), || {
            ensure!(runs(&pid), "it ended; see {}", log.display());
            ensure!(fs::read_to_string(&log)?.contains("quorate serve: ready "), "not ready");
            Ok(())
        })
    }

    /// Where the adapter's pid is.
    pub fn adapter_pid_file(&self) -> PathBuf {
        self.dir.join("adapter.pid")
    }

    /// Its process.
    pub fn adapter_pid(&self) -> Option<u32> {
        pid_in(&self.adapter_pid_file()).map(|p| p.as_raw_nonzero().get().unsigned_abs())
    }

    /// Ends the adapter: SIGTERM, and waits for what it has under way.
    pub fn stop_adapter(&self) -> anyhow::Result<()> {
        let file = self.adapter_pid_file();
        if !signal(&file, rustix::process::Signal::TERM) {
            return Ok(());
        }
        wait_for("the adapter is gone", Duration::from_secs(40), || {
            if runs(&file) { bail!("it runs") } else { Ok(()) }
        })
    }

    /// `quorate status --json`.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&run(&mut self.quorate(&["status", "--json"]))?)?)
    }

    /// The health of a node, by its HTTP service: the body, which says `ok` or why not.
    pub fn health(&self, id: u64) -> anyhow::Result<String> {
        http_get(&self.site(id)?.http, "/healthz").map(|(_, body)| body)
    }

    /// Waits until these nodes all count as attested and a quorum does.
    pub fn wait_healthy(&self, nodes: &[u64], limit: Duration) -> anyhow::Result<()> {
        wait_for(&format!("nodes {nodes:?} are attested"), limit, || {
            for id in nodes {
                let health = self.health(*id)?;
                ensure!(health.trim() == "ok", "node {id}: {}", health.trim());
            }
            Ok(())
        })
    }

    /// Waits until all nodes are attested.
    pub fn wait_all_healthy(&self, limit: Duration) -> anyhow::Result<()> {
        let all: Vec<u64> = self.sites.iter().map(|s| s.id).collect();
        self.wait_healthy(&all, limit)
    }

    /// A power cut: SIGKILL for every node and the provider, and the TPMs' power.
    pub fn kill(&self) {
        for site in &self.sites {
            signal(&site.pid_file(), rustix::process::Signal::KILL);
        }
        signal(&self.provider_pid_file(), rustix::process::Signal::KILL);
        signal(&self.adapter_pid_file(), rustix::process::Signal::KILL);
        for site in &self.sites {
            let _off_already = self.tpm(site, "kill");
        }
    }

    /// Ends everything this folder's mesh has running.
    pub fn stop(&self) {
        let _ended_anyway = self.stop_adapter();
        for site in &self.sites {
            signal(&site.pid_file(), rustix::process::Signal::CONT);
            signal(&site.pid_file(), rustix::process::Signal::TERM);
        }
        let gone = || if self.sites.iter().any(Site::runs) { bail!("some run") } else { Ok(()) };
        if wait_for("all nodes are gone", Duration::from_secs(15), gone).is_err() {
            for site in &self.sites {
                signal(&site.pid_file(), rustix::process::Signal::KILL);
            }
        }
        self.stop_provider();
        for site in &self.sites {
            let _not_running = self.tpm(site, "stop");
        }
    }
}

/// An application that asks without pause, in a process of its own.
pub struct Load {
    child: Child,
    said: BufReader<ChildStdout>,
}

/// How an application fared.
#[derive(Debug, Deserialize)]
pub struct Fared {
    /// Requests that were answered in full.
    pub answered: u64,
    /// Refusals after which the SDK says to try again.
    pub again: u64,
    /// The first errors.
    pub errors: Vec<String>,
}

impl Load {
    /// Starts it with so many requests at once, and waits for the first answer.
    pub fn start(mesh: &Mesh, models: &[&str], at_once: usize) -> anyhow::Result<Self> {
        let mut load = mesh.command("quorate-load");
        load.arg("--trust").arg(mesh.trust()).args(["--at-once", &at_once.to_string()]);
        load.args(models.iter().flat_map(|m| ["--model", m]));
        let mut child =
            load.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("no quorate-load")?;
        let mut said = BufReader::new(child.stdout.take().context("it has no standard output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.trim() == "running", "quorate-load: {line}");
        Ok(Self { child, said })
    }
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// Lets it end.
    pub fn end(mut self) -> anyhow::Result<Fared> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "quorate-load: {status}");
        serde_json::from_str(&line).with_context(|| format!("quorate-load: {line}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A GET over plain HTTP/1.1, for health and the like: status and text.
pub fn http_get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let (status, body) = http_get_bytes(address, path)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A POST of JSON over plain HTTP/1.0 to the adapter: the whole answer, head and body.
pub fn http_post(address: &str, path: &str, body: &str) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// A GET over plain HTTP/1.0 (the answer ends with the connection, never chunked), for tiles: status and body.
pub fn http_get_bytes(address: &str, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.set_write_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no HTTP answer")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP status")?;
    let announced = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
    ensure!(announced.is_none_or(|length: usize| length == body.len()), "the answer was cut off");
    Ok((status, body))
}

/// Makes a key as providers do, in the folder of the demo's.
fn make_key(dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = dir.join("provider");
    fs::create_dir_all(&folder)?;
    let mut random = [0; 64];
    aws_lc_rs::rand::fill(&mut random).ok().context("no randomness")?;
    let text = base64::engine::general_purpose::STANDARD.encode(random);
    let secret: String = text.chars().filter(char::is_ascii_alphanumeric).take(48).collect();
    let path = folder.join("key");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(format!("sk-proj-{secret}\n").as_bytes())?;
    Ok(path)
}

/// Starts a process that outlives this one, its output appended to a file.
fn detach(command: &mut Command, log: &Path, pid_file: &Path) -> anyhow::Result<()> {
    let log_file = OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file).process_group(0);
    let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    fs::write(pid_file, child.id().to_string())?;
    // Reaped by a thread of its own, so that no zombie looks like a running process.
    std::thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    Ok(())
}

/// The folder of this program's binaries.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("this program is in no folder")?;
    Ok(if dir.ends_with("deps") { dir.parent().context("no target folder")?.into() } else { dir.into() })
}
