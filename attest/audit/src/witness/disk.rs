//! Replacing a file so that a crash at any point leaves the old content or the new, and nothing else: write beside it, fsync,
//! rename, fsync the folder. Each step asks [`Disk`] first and tells it after, so that tests can let it fail before or behind.
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A step of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new content, in a file beside.
    Write,
    /// That file's fsync.
    Sync,
    /// The rename.
    Rename,
    /// The folder's fsync.
    SyncFolder,
}

/// When a step is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has not happened yet.
    Before,
    /// It has happened.
    After,
}

type Hook = dyn Fn(Step, When) -> io::Result<()> + Send + Sync;

/// The disk, which tests can make fail.
#[derive(Default)]
pub struct Disk {
    hook: Option<Box<Hook>>,
}

impl Disk {
    /// One that fails where `hook` says so.
    #[cfg(test)]
    pub(crate) fn failing(hook: impl Fn(Step, When) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { hook: Some(Box::new(hook)) }
    }

    fn step<T>(&self, step: Step, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let ask = |when| self.hook.as_ref().map_or(Ok(()), |hook| hook(step, when));
        ask(When::Before)?;
        let done = run()?;
        ask(When::After)?;
        Ok(done)
    }

    /// Replaces a file's content. On an error it is the old or the new one.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = beside(path);
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = self.step(Step::Write, || {
            let mut file = File::create(&beside)?;
            file.write_all(bytes)?;
            Ok(file)
        })?;
        self.step(Step::Sync, || file.flush().and_then(|()| file.sync_all()))?;
        drop(file);
        self.step(Step::Rename, || std::fs::rename(&beside, path))?;
        self.step(Step::SyncFolder, || File::open(folder)?.sync_all())
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}
