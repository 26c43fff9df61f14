//! Which logs a witness knows: `witness.toml` in its folder. Everything is checked when it is read, and all mistakes are told.
use quorate_core::tlog::{KeyName, Origin, VerifierKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Logs of one witness: each costs a file and a lock.
pub const LOGS_MAX: usize = 10_000;
/// Keys of one log; a mesh has seven members at most, and a few that changed.
pub const KEYS_MAX: usize = 256;
/// A configuration of that many logs with a key each.
const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A key file of [`KEYS_MAX`] keys, with comments.
const KEYS_FILE_BYTES_MAX: u64 = 256 * 1024;

/// The file as serde reads and writes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessDocument {
    /// Where it listens. Default 127.0.0.1:7300. Requests are not encrypted: put a TLS proxy before a public one.
    #[serde(default = "listen")]
    pub listen: String,
    /// The logs.
    #[serde(default)]
    pub log: Vec<LogDocument>,
}

/// One log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogDocument {
    /// First line of its checkpoints.
    pub origin: String,
    /// Its verifier keys (`NAME+ID+BASE64`).
    #[serde(default)]
    pub keys: Vec<String>,
    /// A file with further keys, one a line, read again for each request: a quorate mesh's keys change with each restart of a
    /// node, and `quorate-audit monitor` keeps such a file. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// How many of the keys must have signed. Default 1.
    #[serde(default = "one")]
    pub threshold: usize,
}

fn listen() -> String {
    "127.0.0.1:7300".into()
}
fn one() -> usize {
    1
}

/// A log that the witness knows.
#[derive(Debug, Clone)]
pub struct KnownLog {
    /// First line of its checkpoints.
    pub origin: Origin,
    keys: Vec<VerifierKey>,
    keys_file: Option<PathBuf>,
    /// Signatures needed.
    pub threshold: usize,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: String,
    /// By origin.
    pub logs: BTreeMap<Origin, KnownLog>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What came of it.
        source: std::io::Error,
    },
    /// Not TOML of this shape.
    #[error("{} is not a witness configuration", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where, and what.
        source: Box<toml::de::Error>,
    },
    /// Everything that is wrong with it.
    #[error("{} has {} mistake(s): {}", path.display(), mistakes.len(), mistakes.join("; "))]
    Mistakes {
        /// Which.
        path: PathBuf,
        /// All of them.
        mistakes: Vec<String>,
    },
}

impl WitnessDocument {
    /// Reads a file's text.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.into(), source };
        let text = bounded(path, CONFIG_BYTES_MAX).map_err(failed)?;
        toml::from_str(&text).map_err(|e| ConfigError::Syntax { path: path.into(), source: e.into() })
    }
}

impl Config {
    /// Reads and checks a file; paths in it are relative to its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let document = WitnessDocument::read(path)?;
        Self::check(document, path.parent().unwrap_or(Path::new(".")))
            .map_err(|mistakes| ConfigError::Mistakes { path: path.into(), mistakes })
    }

    fn check(document: WitnessDocument, folder: &Path) -> Result<Self, Vec<String>> {
        let (mut logs, mut mistakes) = (BTreeMap::new(), Vec::new());
        if document.log.len() > LOGS_MAX {
            mistakes.push(format!("more than {LOGS_MAX} logs"));
        }
        for log in document.log.into_iter().take(LOGS_MAX) {
            let name = log.origin.clone();
            let mut wrong = |what: String| mistakes.push(format!("log {name:?}: {what}"));
            let mut keys = Vec::new();
            for text in &log.keys {
                match text.parse::<VerifierKey>() {
                    Ok(key) => keys.push(key),
                    Err(e) => wrong(format!("key {text:?}: {e}")),
                }
            }
            if keys.len() > KEYS_MAX {
                wrong(format!("more than {KEYS_MAX} keys"));
            }
            if keys.is_empty() && log.keys_file.is_none() {
                wrong("no keys: nothing could ever be believed of it".into());
            }
            if log.threshold == 0 || (log.keys_file.is_none() && log.threshold > distinct(&keys)) {
                wrong(format!("threshold {} with {} key(s)", log.threshold, distinct(&keys)));
            }
            match Origin::new(log.origin) {
                Ok(origin) => {
                    let keys_file = log.keys_file.map(|file| folder.join(file));
                    let known =
                        KnownLog { origin: origin.clone(), keys, keys_file, threshold: log.threshold };
                    if logs.insert(origin, known).is_some() {
                        mistakes.push(format!("log {name:?} stands twice"));
                    }
                }
                Err(e) => wrong(e.to_string()),
            }
        }
        if mistakes.is_empty() { Ok(Self { listen: document.listen, logs }) } else { Err(mistakes) }
    }
}

fn distinct(keys: &[VerifierKey]) -> usize {
    keys.iter().map(|key| (key.name(), key.public_key())).collect::<BTreeSet<(&KeyName, &[u8; 32])>>().len()
}

impl KnownLog {
    /// The keys as they are now. A key file that cannot be read or does not parse gives none of its keys.
    pub fn keys(&self) -> Vec<VerifierKey> {
        let mut keys = self.keys.clone();
        if let Some(Ok(text)) = self.keys_file.as_ref().map(|file| bounded(file, KEYS_FILE_BYTES_MAX)) {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let read: Result<Vec<VerifierKey>, _> = lines.take(KEYS_MAX).map(str::parse).collect();
            keys.extend(read.unwrap_or_default());
        }
        keys
    }
}

fn bounded(path: &Path, bytes_max: u64) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(std::io::Error::other(format!("longer than {bytes_max} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness.toml");
        let text = "[[log]]\norigin = \"a\"\nkeys = [\"x\"]\n[[log]]\norigin = \"b\"\n[[log]]\norigin = \"\"\n\
                    keys = [\"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\"]\nthreshold = 2\n";
        std::fs::write(&path, text).unwrap();
        let Err(ConfigError::Mistakes { mistakes, .. }) = Config::load(&path) else { panic!("it is wrong") };
        for part in ["key \"x\"", "log \"b\": no keys", "threshold 2 with 1", "log \"\""] {
            assert!(mistakes.iter().any(|m| m.contains(part)), "{part} in {mistakes:?}");
        }
        std::fs::write(&path, "lisen = \"\"\n").unwrap();
        assert!(matches!(Config::load(&path), Err(ConfigError::Syntax { .. })));
    }

    #[test]
    fn a_key_file_is_read_anew_and_all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness.toml");
        std::fs::write(&path, "[[log]]\norigin = \"a\"\nkeys_file = \"keys\"\nthreshold = 2\n").unwrap();
        let config = Config::load(&path).unwrap();
        let log = &config.logs[&Origin::new("a").unwrap()];
        assert_eq!(log.keys(), []);
        let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        std::fs::write(dir.path().join("keys"), format!("# now\n{key}\n\n")).unwrap();
        assert_eq!(log.keys().len(), 1);
        std::fs::write(dir.path().join("keys"), format!("{key}\nnonsense\n")).unwrap();
        assert_eq!(log.keys(), []);
    }
}
