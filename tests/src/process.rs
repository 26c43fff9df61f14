//! One child process whose output goes to a file, and which never outlives its handle.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often something awaited is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 25;

/// A running, paused or ended child process.
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both its outputs are appended to `logs/NAME.log`.
    pub fn spawn(name: &str, command: &mut Command, logs: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let out = file.with_context(|| format!("cannot open {}", log.display()))?;
        let err = out.try_clone().context("cannot share a log between two outputs")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, ended: None, log })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> anyhow::Result<String> {
        let bytes = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// SIGKILL, and its end: what a power cut is to a process.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait_exit(Duration::from_secs(10))
    }

    /// SIGTERM: asks it to stop; does not wait.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP: it hangs, and its peers see silence rather than a close.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT: it goes on as if nothing had happened.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("cannot ask after {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Fails, with how it ended and its last words, unless it still runs.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.exit_status()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status})\n{}", self.name, tail(&self.log)),
        }
    }

    /// Waits until it has ended.
    pub fn wait_exit(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            if begun.elapsed() >= limit {
                bail!("{} had not ended after {limit:?}\n{}", self.name, tail(&self.log));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops it in order: SIGTERM, and an exit code of 0 within `limit`.
    pub fn stop(mut self, limit: Duration) -> anyhow::Result<()> {
        self.terminate()?;
        let status = self.wait_exit(limit)?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            _ => bail!("{} did not stop in order ({status})\n{}", self.name, tail(&self.log)),
        }
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // Once reaped, the id may belong to somebody else.
        if let Some(status) = self.exit_status()? {
            bail!("{} has ended already ({status})\n{}", self.name, tail(&self.log));
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.exit_status(), Ok(Some(_))) {
            let _already_gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Runs a short command to its end; its output, or its error with what it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", program.display(), output.status, said.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last lines of a log, with its path above them.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    format!("--- {} (last {} of {} lines)\n{}", log.display(), shown.len(), lines.len(), shown.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workdir;

    fn check(holds: bool) -> anyhow::Result<()> {
        anyhow::ensure!(holds, "not yet");
        Ok(())
    }

    fn shell(work: &Workdir, script: &str) -> Process {
        Process::spawn("shell", Command::new("sh").args(["-c", script]), &work.logs()).unwrap()
    }

    #[test]
    fn a_stopped_process_is_told_apart_from_a_killed_one() {
        let work = Workdir::new("process-stop").unwrap();
        let limit = Duration::from_secs(10);
        let orderly = shell(&work, "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done");
        work.wait_for("the shell", limit, || check(orderly.log()?.contains("up"))).unwrap();
        orderly.stop(limit).unwrap();
        let rude = shell(&work, "echo last words; exec sleep 60");
        let error = rude.stop(limit).unwrap_err().to_string();
        assert!(error.contains("did not stop in order"), "{error}");
        work.passed();
    }

    #[test]
    fn a_paused_process_stands_still_until_it_is_resumed() {
        let work = Workdir::new("process-pause").unwrap();
        let mut process = shell(&work, "while :; do echo tick; sleep 0.01; done");
        let limit = Duration::from_secs(10);
        let state = |process: &Process| -> anyhow::Result<char> {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
            stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).context("no state")
        };
        process.pause().unwrap();
        work.wait_for("a stopped state", limit, || check(state(&process)? == 'T')).unwrap();
        process.resume().unwrap();
        work.wait_for("a running state", limit, || check(state(&process)? != 'T')).unwrap();
        assert_eq!(process.kill().unwrap().signal(), Some(9));
        assert!(process.terminate().unwrap_err().to_string().contains("has ended already"));
        work.passed();
    }

    #[test]
    fn dropping_the_handle_ends_the_process_even_a_paused_one() {
        let work = Workdir::new("process-drop").unwrap();
        let mut process = shell(&work, "exec sleep 60");
        process.pause().unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
        work.passed();
    }

    #[test]
    fn an_unexpected_end_is_reported_with_the_last_words() {
        let work = Workdir::new("process-end").unwrap();
        let mut process = shell(&work, "echo the disk is full >&2; exit 3");
        assert_eq!(process.wait_exit(Duration::from_secs(10)).unwrap().code(), Some(3));
        let error = process.check_running().unwrap_err().to_string();
        assert!(error.contains("the disk is full") && error.contains("exit status: 3"), "{error}");
        work.passed();
    }
}
