//! Software TPM processes (swtpm): set up, start, stop, cut off.
//!
//! A TPM belongs to a folder. Its process is a daemon of its own, so that it outlives node and launcher as a chip
//! would; `swtpm.pid` in the folder names it, and it is signalled only while its command line names that folder.
use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use quorate_attest_tpm::{TpmConfig, TpmHandle, danger_firmware};
use rustix::process::{Pid, Signal, kill_process};

/// What swtpm keeps of a TPM, below its folder. There once setup is complete.
const STATE: &str = "state";
/// How long a software TPM may take to end, or to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(5);

/// A software TPM: its folder and its port.
#[derive(Clone, Debug)]
pub struct Swtpm {
    dir: PathBuf,
    port: u16,
}

/// Makes a TPM in `dir` whose EK certificates are signed by a local CA in `ca_dir`, which is made too if absent.
/// Does nothing when the TPM is there already. The CA's root certificate is `swtpm-localca-rootca-cert.pem`, and
/// the intermediate one that signs EK certificates `issuercert.pem`, both in `ca_dir`.
pub fn set_up(dir: &Path, ca_dir: &Path, name: &str) -> anyhow::Result<bool> {
    ensure!(
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        "a TPM's name has 1 to 64 letters, digits or hyphens"
    );
    let dir = make_dir(dir)?;
    let ca_dir = make_dir(ca_dir)?;
    for path in [&dir, &ca_dir] {
        let text = path.to_str().context("paths of TPM and CA must be UTF-8")?;
        ensure!(!text.contains(char::is_whitespace), "{text}: swtpm's configuration cannot hold spaces");
    }
    let (state, unfinished) = (dir.join(STATE), dir.join("unfinished"));
    if state.exists() {
        return Ok(false);
    }
    // From an attempt that was interrupted: nobody enrolled such a TPM.
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("cannot remove an unfinished TPM")?;
    }
    fs::create_dir(&unfinished).context("cannot make the TPM's state folder")?;
    let ca = ca_dir.display();
    let write = |file: PathBuf, text: String| {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    };
    let options = dir.join("localca.options");
    write(
        options.clone(),
        "--platform-manufacturer quorate --platform-version 1 --platform-model dev\n".into(),
    )?;
    let local_ca = dir.join("localca.conf");
    write(
        local_ca.clone(),
        format!(
            "statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
        ),
    )?;
    let setup = dir.join("setup.conf");
    write(
        setup.clone(),
        format!(
            "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
            local_ca.display(),
            options.display()
        ),
    )?;
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--ecc", "--createek", "--create-ek-cert", "--create-platform-cert", "--lock-nvram"])
        .args(["--pcr-banks", "sha256", "--vmid", name])
        .arg("--tpmstate")
        .arg(&unfinished)
        .arg("--config")
        .arg(&setup)
        .output()
        .context("cannot run swtpm_setup (Debian: apt install swtpm swtpm-tools)")?;
    if !output.status.success() {
        bail!(
            "swtpm_setup failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::rename(&unfinished, &state).context("cannot put the TPM's state in place")?;
    Ok(true)
}

impl Swtpm {
    /// The TPM in `dir`, served at 127.0.0.1:`port` and its control channel at `port` + 1.
    pub fn new(dir: &Path, port: u16) -> anyhow::Result<Self> {
        ensure!(port != 0 && port != u16::MAX, "the port and the one after it must exist");
        let dir = dir.canonicalize().with_context(|| format!("no TPM in {}", dir.display()))?;
        ensure!(
            dir.join(STATE).exists(),
            "no TPM in {}: run `quorate-launch tpm setup` first",
            dir.display()
        );
        Ok(Self { dir, port })
    }

    /// How the Attester reaches it.
    pub fn tcti(&self) -> String {
        format!("swtpm:host={},port={}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// A connection to it, made on first use.
    pub fn connect(&self) -> anyhow::Result<TpmHandle> {
        Ok(TpmHandle::spawn(TpmConfig::new(&self.tcti())?)?)
    }

    /// Powers the TPM on, unless it is already. Says whether it was off.
    pub fn start(&self) -> anyhow::Result<bool> {
        if self.running()?.is_some() {
            return Ok(false);
        }
        let channel = |port: u16| format!("type=tcp,port={port},bindaddr={}", Ipv4Addr::LOCALHOST);
        let log = self.dir.join("swtpm.log");
        // A daemon's parent returns when its sockets listen, and fails when they cannot.
        let output = Command::new("swtpm")
            .args(["socket", "--tpm2", "--daemon", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(self.state_argument())
            .args(["--server", &channel(self.port), "--ctrl", &channel(self.port.saturating_add(1))])
            .arg("--pid")
            .arg(format!("file={}", self.pid_file().display()))
            .arg("--log")
            .arg(format!("file={},level=1", log.display()))
            .output()
            .context("cannot run swtpm (Debian: apt install swtpm)")?;
        if !output.status.success() {
            bail!(
                "swtpm did not start on port {}: {}; see {}",
                self.port,
                String::from_utf8_lossy(&output.stderr).trim(),
                log.display()
            );
        }
        Ok(true)
    }

    /// Powers the TPM off in order: TPM2_Shutdown, then the process ends. Says whether it was on.
    pub fn stop(&self) -> anyhow::Result<bool> {
        let Some(pid) = self.running()? else { return Ok(false) };
        let tpm = self.connect()?;
        tpm.run_blocking(PATIENCE, danger_firmware::shutdown)
            .context("the TPM did not take its shutdown command; `kill` cuts its power")?;
        self.end(pid, Signal::TERM)
    }

    /// Cuts the TPM's power. Says whether it was on.
    pub fn kill(&self) -> anyhow::Result<bool> {
        match self.running()? {
            Some(pid) => self.end(pid, Signal::KILL),
            None => Ok(false),
        }
    }

    /// The process id of the running TPM.
    pub fn running(&self) -> anyhow::Result<Option<i32>> {
        let text = match fs::read_to_string(self.pid_file()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot read the TPM's process id"),
        };
        let Ok(pid) = text.trim().parse::<i32>() else { return Ok(None) };
        Ok(self.is_mine(pid).then_some(pid))
    }

    fn end(&self, pid: i32, signal: Signal) -> anyhow::Result<bool> {
        let target = Pid::from_raw(pid).context("process id 0")?;
        kill_process(target, signal).context("cannot signal swtpm")?;
        let deadline = Instant::now() + PATIENCE;
        while self.is_mine(pid) {
            ensure!(Instant::now() < deadline, "swtpm (process {pid}) does not end");
            std::thread::sleep(POLL);
        }
        Ok(true)
    }

    /// Whether this process is the swtpm of this folder. One that is dead but not reaped has no command line.
    fn is_mine(&self, pid: i32) -> bool {
        let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let state = self.state_argument();
        command_line.split(|b| *b == 0).any(|argument| argument == state.as_bytes())
    }

    fn state_argument(&self) -> String {
        format!("dir={}", self.dir.join(STATE).display())
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("swtpm.pid")
    }
}

fn make_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    let make = || {
        fs::create_dir_all(dir)?;
        dir.canonicalize()
    };
    make().with_context(|| format!("cannot make {}", dir.display()))
}
