//! The demo provider as a process.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::bins::bin;
use crate::process::Process;
use crate::workdir::Workdir;

const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running `quorate-demo-provider`.
pub struct DemoProvider {
    process: Process,
    dir: PathBuf,
    url: String,
}

impl DemoProvider {
    /// Starts one in `work/NAME` with further flags, and waits until it listens. A second start with the same name
    /// finds the same CA; give it `--listen 127.0.0.1:PORT` to have the same address too.
    pub fn start(work: &Workdir, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let dir = work.join(name);
        let url_file = dir.join("url");
        if url_file.exists() {
            fs::remove_file(&url_file).context("cannot remove an earlier provider's url")?;
        }
        let mut command = Command::new(bin("quorate-demo-provider")?);
        command.arg("--dir").arg(&dir).arg("--access-log").arg(dir.join("access.jsonl")).args(flags);
        let mut process = Process::spawn(name, &mut command, &work.logs())?;
        let url =
            work.wait_for("the provider to listen", START_LIMIT, || match fs::read_to_string(&url_file) {
                Ok(url) => Ok(Ok(url)),
                Err(not_yet) => match process.check_running() {
                    Ok(()) => Err(not_yet.into()),
                    Err(ended) => Ok(Err(ended)),
                },
            })??;
        Ok(Self { process, dir, url })
    }

    /// Its base URL, as an OpenAI SDK takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file with the CA that clients must trust.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The process, to kill or pause it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The requests that have reached it, as its access log has them: method, path, status, digests of head and body.
    pub fn requests(&self) -> anyhow::Result<Vec<Value>> {
        let mut events = self.events()?;
        events.retain(|event| event.get("event").and_then(Value::as_str) == Some("request"));
        Ok(events)
    }

    /// Everything in its access log: connections, failed handshakes, bytes that are no request, requests.
    pub fn events(&self) -> anyhow::Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.join("access.jsonl")).context("cannot read the access log")?;
        text.lines().map(|line| serde_json::from_str(line).context("an access line is no JSON")).collect()
    }

    /// Stops it in order.
    pub fn stop(self) -> anyhow::Result<()> {
        self.process.stop(STOP_LIMIT)
    }
}
