//! A software TPM for one node, through `quorate-launch`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bins::bin;
use crate::net::PortBlock;
use crate::process::run;
use crate::workdir::Workdir;

/// A software TPM. Its process is a daemon that outlives `quorate-launch`; it ends with this handle.
pub struct SoftTpm {
    launch: PathBuf,
    dir: PathBuf,
    ports: PortBlock,
}

impl SoftTpm {
    /// Makes a TPM with EK certificates from the test's own CA; it is off.
    pub fn set_up(work: &Workdir, name: &str) -> anyhow::Result<Self> {
        let tpm = Self {
            launch: bin("quorate-launch")?,
            dir: work.join(format!("tpm-{name}")),
            ports: PortBlock::take(2)?,
        };
        let mut command = Command::new(&tpm.launch);
        command
            .args(["tpm", "setup", "--name", name, "--dir"])
            .arg(&tpm.dir)
            .arg("--ca-dir")
            .arg(Self::ca_dir(work));
        run(&mut command)?;
        Ok(tpm)
    }

    /// The folder of the CA that signs EK certificates.
    pub fn ca_dir(work: &Workdir) -> PathBuf {
        work.join("tpm-ca")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its command port; the control port is the next one.
    pub fn port(&self) -> u16 {
        self.ports.port(0)
    }

    /// Powers it on.
    pub fn start(&self) -> anyhow::Result<()> {
        self.task("start")
    }

    /// Powers it off in order.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.task("stop")
    }

    /// Cuts its power.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.task("kill")
    }

    /// Reboots the machine, as far as the TPM can tell: PCRs at their reset values, `resetCount` one higher.
    pub fn power_cycle(&self) -> anyhow::Result<()> {
        self.task("power-cycle")
    }

    /// A command that measures and then becomes `program`: append its arguments. `event_log` is the firmware's.
    pub fn launch(&self, event_log: &Path, log_out: &Path, program: &Path) -> Command {
        let mut command = Command::new(&self.launch);
        command.args(["node", "--port", &self.port().to_string(), "--tpm-dir"]).arg(&self.dir);
        command.arg("--event-log").arg(event_log).arg("--log-out").arg(log_out).arg("--").arg(program);
        command
    }

    fn task(&self, task: &str) -> anyhow::Result<()> {
        let port = self.port().to_string();
        run(Command::new(&self.launch).args(["tpm", task, "--port", &port, "--dir"]).arg(&self.dir)).map(drop)
    }
}

impl Drop for SoftTpm {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("a software TPM may still run: {error:#}");
        }
    }
}
