//! Real swtpm processes for tests: own state, own CA, free ports, ended by their process id.
use quorate_attest_tpm::{Tpm, TpmConfig, TpmHandle};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// A software TPM that lives as long as this value. Its state survives [`Swtpm::cut_power`].
pub(crate) struct Swtpm {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

/// Says loudly that a test did not run.
pub(crate) fn swtpm_missing() -> bool {
    let missing = ["swtpm", "swtpm_setup"].into_iter().any(|tool| {
        Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    if missing {
        eprintln!("SKIPPED: swtpm and swtpm_setup are not installed; NOTHING about the TPM was tested");
    }
    missing
}

impl Swtpm {
    /// Makes a new TPM with EK certificates from a CA of its own, and switches it on.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::create_dir(dir.path().join("ca")).unwrap();
        fs::write(
            path("localca.conf"),
            format!(
                "statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n",
                ca = path("ca")
            ),
        )
        .unwrap();
        fs::write(
            path("localca.options"),
            "--platform-manufacturer test\n--platform-version 1\n--platform-model test\n",
        )
        .unwrap();
        fs::write(
            path("setup.conf"),
            format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
                path("localca.conf"),
                path("localca.options")
            ),
        )
        .unwrap();
        let output = Command::new("swtpm_setup")
            .args([
                "--tpm2",
                "--ecc",
                "--createek",
                "--create-ek-cert",
                "--create-platform-cert",
                "--lock-nvram",
            ])
            .args(["--pcr-banks", "sha256", "--vmid", "test", "--overwrite"])
            .args(["--tpmstate", &path("state"), "--config", &path("setup.conf")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut swtpm = Self { dir, port: free_port_pair(), child: None };
        swtpm.switch_on();
        swtpm
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    pub(crate) fn tpm(&self) -> Tpm {
        Tpm::open(&self.tcti()).unwrap()
    }

    pub(crate) fn handle(&self, timeout: Duration) -> TpmHandle {
        TpmHandle::spawn(TpmConfig { timeout, ..TpmConfig::new(&self.tcti()).unwrap() }).unwrap()
    }

    /// The same TPM behind a listener on its bus.
    pub(crate) fn tapped(&self) -> Tap {
        Tap::new(self.port)
    }

    /// The TPM for somebody who may do everything with it, e.g. root on that machine.
    pub(crate) fn context(&self) -> tss_esapi::Context {
        tss_esapi::Context::new(self.tcti().parse().unwrap()).unwrap()
    }

    /// Folder of the CA that signed the EK certificates.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    pub(crate) fn switch_on(&mut self) {
        assert!(self.child.is_none());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut child = self.start();
            // Listening is not enough: the control channel listens before the command channel does.
            while child.try_wait().unwrap().is_none() {
                if Tpm::open(&self.tcti()).is_ok() {
                    self.child = Some(child);
                    return;
                }
                assert!(Instant::now() < deadline, "swtpm does not answer");
                std::thread::sleep(Duration::from_millis(5));
            }
            // Another process may have had its port for a moment, e.g. as the near end of a connection.
            assert!(Instant::now() < deadline, "swtpm ends at once");
        }
    }

    fn start(&self) -> Child {
        let state = self.dir.path().join("state");
        let channel = |port| format!("type=tcp,port={port},bindaddr=127.0.0.1");
        Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", state.display()))
            .args(["--server", &channel(self.port), "--ctrl", &channel(self.port + 1)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// SIGKILL: what a power cut looks like to the TPM.
    pub(crate) fn cut_power(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Copies the state folder aside.
    pub(crate) fn save_state(&self) {
        self.copy_state("state", "saved");
    }

    /// Puts the copy back, as somebody with root could. The TPM must be off.
    pub(crate) fn restore_state(&self) {
        assert!(self.child.is_none());
        self.copy_state("saved", "state");
    }

    fn copy_state(&self, from: &str, to: &str) {
        fs::create_dir_all(self.dir.path().join(to)).unwrap();
        for entry in fs::read_dir(self.dir.path().join(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.dir.path().join(to).join(entry.file_name())).unwrap();
        }
    }

    /// Sends a signal by name: `STOP` hangs the TPM, `CONT` lets it go on.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.cut_power();
    }
}

/// Passes on what goes to a TPM and comes back, and remembers it. Ends with the process.
pub(crate) struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn new(target: u16) -> Self {
        let (port, heard) = (free_port_pair(), Arc::new(Mutex::new(Vec::new())));
        for offset in [0, 1] {
            let listener = TcpListener::bind(("127.0.0.1", port + offset)).unwrap();
            let heard = heard.clone();
            thread::spawn(move || {
                for near in listener.incoming().map(Result::unwrap) {
                    let far = TcpStream::connect(("127.0.0.1", target + offset)).unwrap();
                    for (from, to) in [(&near, &far), (&far, &near)] {
                        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                        let heard = heard.clone();
                        thread::spawn(move || pass_on(from, to, &heard));
                    }
                }
            });
        }
        Self { port, heard }
    }

    pub(crate) fn tpm(&self) -> Tpm {
        Tpm::open(&format!("swtpm:host=127.0.0.1,port={}", self.port)).unwrap()
    }

    pub(crate) fn heard(&self, bytes: &[u8]) -> bool {
        self.heard.lock().unwrap().windows(bytes.len()).any(|window| window == bytes)
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        heard.lock().unwrap().extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// A port whose successor is free too: the control channel's place is fixed.
fn free_port_pair() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
    panic!("no two free ports in a row");
}

/// The DER of the first certificate in a PEM file.
pub(crate) fn pem_certificate(path: &Path) -> Vec<u8> {
    let output = Command::new("openssl").args(["x509", "-outform", "DER", "-in"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
