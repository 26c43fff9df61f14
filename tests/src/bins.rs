//! Where the workspace's binaries are: in the target folder that this test was built into.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// The path of one of the workspace's binaries.
pub fn bin(name: &str) -> anyhow::Result<PathBuf> {
    let path = profile_dir()?.join(name);
    ensure!(
        path.is_file(),
        "{} is not there: run cluster/test, or `cargo build --workspace --bins` before",
        path.display()
    );
    Ok(path)
}

/// `target/debug` or `target/release`: tests are built into `deps` below it.
pub(crate) fn profile_dir() -> anyhow::Result<PathBuf> {
    let me = env::current_exe().context("this test does not know its own path")?;
    let deps = me.parent().context("this test has no folder")?;
    let profile = if deps.ends_with("deps") { deps.parent() } else { Some(deps) };
    profile.map(Path::to_owned).context("the target folder has no parent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_is_an_error_that_says_what_to_do() {
        let error = bin("quorate-no-such-program").unwrap_err().to_string();
        assert!(error.contains("quorate-no-such-program is not there: run cluster/test"), "{error}");
    }
}
