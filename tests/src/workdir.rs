//! A test's folder, its logs, and waiting.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::bins::profile_dir;
use crate::process::{POLL, tail};

/// A folder of its own for one test, on the disk that holds the target folder: a RAM disk would make fsync free.
/// It goes when the test says [`passed`](Self::passed); otherwise it stays, with the logs.
pub struct Workdir {
    path: PathBuf,
    passed: bool,
}

impl Workdir {
    /// Makes an empty folder; `name` says whose it is.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = profile_dir()?.join("e2e").join(unique);
        if path.exists() {
            // From an earlier process with this id.
            fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, passed: false })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Where processes write their logs.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Looks until `look` succeeds and returns what it found. After `limit` it fails, with what was awaited, why the
    /// last look failed, and the end of every log.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            match look() {
                Ok(found) => return Ok(found),
                Err(reason) if begun.elapsed() >= limit => {
                    bail!("waited {limit:?} for {what}: {reason:#}\n{}", self.tails());
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// The last lines of every log.
    pub fn tails(&self) -> String {
        let mut logs: Vec<PathBuf> = fs::read_dir(self.logs())
            .map(|entries| entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
            .unwrap_or_default();
        logs.sort();
        logs.iter().map(|log| tail(log)).collect::<Vec<_>>().join("\n")
    }

    /// The test has passed: its folder may go. `QUORATE_KEEP=1` keeps it all the same.
    pub fn passed(mut self) {
        self.passed = env::var_os("QUORATE_KEEP").is_none();
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if self.passed {
            let _best_effort = fs::remove_dir_all(&self.path);
        } else {
            eprintln!("kept: {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_is_too_long_says_what_why_and_what_the_logs_said() {
        let work = Workdir::new("workdir-wait").unwrap();
        fs::create_dir_all(work.logs()).unwrap();
        fs::write(work.logs().join("node-1.log"), "one\ntwo\n").unwrap();
        let mut looks = 0;
        let error = work
            .wait_for("a leader", Duration::from_millis(50), || -> anyhow::Result<()> {
                looks += 1;
                bail!("nobody voted")
            })
            .unwrap_err()
            .to_string();
        assert!(looks > 1);
        for part in ["waited 50ms for a leader: nobody voted", "node-1.log (last 2 of 2 lines)\none\ntwo"] {
            assert!(error.contains(part), "{error}");
        }
        work.passed();
    }

    #[test]
    fn the_folder_goes_only_when_the_test_has_passed() {
        let (kept, gone) = (Workdir::new("workdir-kept").unwrap(), Workdir::new("workdir-gone").unwrap());
        let (kept_path, gone_path) = (kept.path().to_owned(), gone.path().to_owned());
        assert_ne!(kept_path, gone_path);
        gone.passed();
        drop(kept);
        assert!(kept_path.exists());
        fs::remove_dir_all(kept_path).unwrap();
        assert!(!gone_path.exists() || env::var_os("QUORATE_KEEP").is_some());
    }
}
