//! Finds the fixtures that tests share. They are not part of the repository: a test whose file is missing says so and
//! checks nothing.
use std::path::PathBuf;

/// Contents of one fixture, or `None` with a line that says what was skipped.
pub(crate) fn fixture(name: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("QUORATE_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures")),
        PathBuf::from,
    );
    let path = root.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(e) => {
            println!("skipped: {}: {e}", path.display());
            None
        }
    }
}
