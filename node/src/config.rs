//! The node's own configuration: what is particular to this machine. Everything that concerns the mesh stands in the
//! admin-signed policy instead. Reading checks everything, opens nothing, and reports all mistakes at once.
use quorate_core::ids::NodeId;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `quorated --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This node's number in the policy.
    pub node: NodeId,
    /// Folder of everything durable: Raft's log, snapshots, tiles, blobs. Made by `quorated init`.
    pub data_dir: PathBuf,
    /// gRPC: clients, admins and peers.
    pub listen: SocketAddr,
    /// HTTP: tiles, checkpoint, metrics, health. Public by nature, yet plain text: put it where auditors can reach it.
    pub http_listen: SocketAddr,
    /// The TPM.
    pub tpm: TpmSection,
    /// Raft's timing.
    #[serde(default)]
    pub raft: RaftSection,
    /// Trace lines.
    #[serde(default)]
    pub log: LogSection,
    /// Where spans of requests go. Default nowhere.
    #[serde(default)]
    pub telemetry: TelemetrySection,
    /// How long running requests may go on after SIGTERM, ms. Default 10,000.
    #[serde(default = "drain")]
    pub drain_ms: u64,
    /// Most requests in tunnels at a time; further tunnels are refused. Default 4096.
    #[serde(default = "tunnels")]
    pub tunnels_max: usize,
}

fn drain() -> u64 {
    10_000
}
fn tunnels() -> usize {
    4096
}

/// Where evidence comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmSection {
    /// `device:/dev/tpmrm0`, or `swtpm:host=127.0.0.1,port=2321` in development.
    pub tcti: String,
    /// Persistent handle of the AK. Default 0x81010010.
    #[serde(default)]
    pub ak_handle: Option<u32>,
    /// The firmware's event log. Default `/sys/kernel/security/tpm0/binary_bios_measurements`.
    #[serde(default = "event_log")]
    pub event_log: PathBuf,
    /// The IMA list, where the policy quotes PCR 10. Default none.
    #[serde(default)]
    pub ima_log: Option<PathBuf>,
    /// Longest wait for a quote, ms. Default 5,000: hardware takes up to a second.
    #[serde(default = "quote_timeout")]
    pub timeout_ms: u64,
}

fn event_log() -> PathBuf {
    "/sys/kernel/security/tpm0/binary_bios_measurements".into()
}
fn quote_timeout() -> u64 {
    5_000
}

/// Raft's timing. The defaults suit one site; across sites raise all three alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftSection {
    /// Default 100 ms.
    pub heartbeat_ms: u64,
    /// Default 500 ms.
    pub election_min_ms: u64,
    /// Default 1,000 ms.
    pub election_max_ms: u64,
    /// Batches between snapshots. Default 20,000.
    pub snapshot_batches: u64,
}

impl Default for RaftSection {
    fn default() -> Self {
        Self { heartbeat_ms: 100, election_min_ms: 500, election_max_ms: 1_000, snapshot_batches: 20_000 }
    }
}

/// Trace lines go to standard error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `text` or `json`. Default text.
    pub format: LogFormat,
    /// Filter in tracing's syntax. Default `info`. `RUST_LOG` overrides.
    pub filter: Option<String>,
}

/// Spans of the requests that this node relays or judges, in the trace that has the request's id: what its metrics and leaves say
/// anyway (route, sizes in buckets, times, what came of it). No client is named, and nothing comes with the request to be repeated.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// Base URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Default none.
    pub otlp: Option<String>,
    /// CAs of its certificate, PEM. Default the system's.
    pub ca_file: Option<PathBuf>,
}

/// How trace lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// Not TOML of this shape.
    #[error("{0} is not a quorated configuration")]
    Malformed(PathBuf, #[source] Box<toml::de::Error>),
    /// Values that cannot work, all of them.
    #[error("{}: {}", .0.display(), .1.join("; "))]
    Mistakes(PathBuf, Vec<String>),
}

impl Config {
    /// Reads and checks.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Unreadable(path.into(), e))?;
        let mut config: Self =
            toml::from_str(&text).map_err(|e| ConfigError::Malformed(path.into(), Box::new(e)))?;
        let mut mistakes = Vec::new();
        if config.node.0 == 0 {
            mistakes.push("node starts at 1".to_owned());
        }
        if let Err(e) = quorate_attest_tpm::TpmConfig::new(&config.tpm.tcti) {
            mistakes.push(format!("tpm.tcti: {e}"));
        }
        let r = &config.raft;
        if r.heartbeat_ms == 0
            || r.heartbeat_ms * 3 > r.election_min_ms
            || r.election_min_ms >= r.election_max_ms
        {
            mistakes.push(
                "raft: three heartbeats fit into election_min_ms, which is below election_max_ms".to_owned(),
            );
        }
        if r.snapshot_batches < quorate_core::state::SNAPSHOT_BATCHES_MIN {
            mistakes.push(format!(
                "raft.snapshot_batches: at least {}",
                quorate_core::state::SNAPSHOT_BATCHES_MIN
            ));
        }
        if let Some(Err(e)) = config.telemetry.otlp.as_ref().map(|url| quorate_telemetry::post::check(url)) {
            mistakes.push(format!("telemetry.otlp: {e}"));
        }
        if config.listen == config.http_listen {
            mistakes.push("listen and http_listen are the same".to_owned());
        }
        if !mistakes.is_empty() {
            return Err(ConfigError::Mistakes(path.into(), mistakes));
        }
        // Relative paths are relative to the file, so that a folder of configurations can be moved.
        let base = path.parent().unwrap_or(Path::new("."));
        for p in [&mut config.data_dir, &mut config.tpm.event_log]
            .into_iter()
            .chain(config.tpm.ima_log.as_mut())
            .chain(config.telemetry.ca_file.as_mut())
        {
            *p = base.join(&p);
        }
        Ok(config)
    }

    /// How to reach the TPM.
    pub fn tpm(&self) -> Result<quorate_attest_tpm::TpmConfig, quorate_attest_tpm::TpmError> {
        let mut tpm = quorate_attest_tpm::TpmConfig::new(&self.tpm.tcti)?;
        tpm.timeout = Duration::from_millis(self.tpm.timeout_ms);
        if let Some(handle) = self.tpm.ak_handle {
            tpm.ak_handle = handle;
        }
        Ok(tpm)
    }
}
