//! A software TPM for this crate's tests: bare, without EK certificates, ended by its process id.
use quorate_attest_tpm::{EkKind, TpmConfig, TpmHandle};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Swtpm {
    state: tempfile::TempDir,
    port: u16,
    child: Child,
}

/// Says loudly that a test did not run.
pub(crate) fn missing() -> bool {
    let missing =
        Command::new("swtpm").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err();
    if missing {
        eprintln!("SKIPPED: swtpm is not installed; NOTHING about the TPM was tested");
    }
    missing
}

fn ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

fn spawn(state: &std::path::Path, port: u16) -> Child {
    let channel = |port| format!("type=tcp,port={port},bindaddr=127.0.0.1");
    Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", state.display()))
        .args(["--server", &channel(port), "--ctrl", &channel(port + 1)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Swtpm {
    /// A new TPM with an AK, and a handle to it.
    pub(crate) async fn start() -> (Self, TpmHandle) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let state = tempfile::tempdir().unwrap();
            let port = ports();
            let child = spawn(state.path(), port);
            let mut swtpm = Self { state, port, child };
            // Another process may have had its port for a moment.
            while swtpm.child.try_wait().unwrap().is_none() {
                let tpm = swtpm.handle();
                if tpm.enrol(EkKind::P384).await.is_ok() {
                    return (swtpm, tpm);
                }
                assert!(Instant::now() < deadline, "swtpm does not answer");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(Instant::now() < deadline, "swtpm ends at once");
        }
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    fn handle(&self) -> TpmHandle {
        TpmHandle::spawn(TpmConfig::new(&self.tcti()).unwrap()).unwrap()
    }

    /// Off: what asks it from now on gets no answer.
    pub(crate) fn cut_power(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// On again, reset.
    pub(crate) fn switch_on(&mut self) {
        self.child = spawn(self.state.path(), self.port);
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
