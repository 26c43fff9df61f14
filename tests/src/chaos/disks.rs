//! A disk for each node: an ext4 of its own in a file, mounted over its data folder. What is done to it is done by the kernel to
//! a real file system: it is full, it stands still, it takes no more writes.
use anyhow::Context as _;
use quorate_cluster::mesh::{Site, run, wait_for};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Room for a long run's log and snapshots; the file is sparse.
const BYTES: u64 = 2 << 30;
const BLOCK: usize = 4096;
/// A process that ends lets go of a disk that is broken within this.
const LET_GO: Duration = Duration::from_secs(20);

/// One node's.
pub(super) struct Disk {
    data: PathBuf,
}

impl Disk {
    /// Puts the data folder of a node that does not run onto a disk of its own.
    pub(super) fn mount(site: &Site) -> anyhow::Result<Self> {
        let (data, image) = (site.dir.join("data"), site.dir.join("disk"));
        let moved = data.with_extension("moved");
        fs::File::create(&image)?.set_len(BYTES)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        fs::rename(&data, &moved)?;
        fs::create_dir(&data)?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&data))
            .context("no loop device can be mounted here")?;
        run(Command::new("cp").arg("-a").arg(moved.join(".")).arg(&data))?;
        fs::remove_dir_all(moved)?;
        // What `init` had made durable is again: a disk that breaks takes nothing from it.
        run(Command::new("sync").arg("-f").arg(&data))?;
        Ok(Self { data })
    }

    /// Takes all the space there is.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let filler = self.data.join("filler");
        let free = run(Command::new("df").args(["--output=avail", "-B1"]).arg(&self.data))?;
        let free: u64 = free.lines().last().unwrap_or_default().trim().parse().context("df")?;
        let most = free.saturating_sub(1 << 20).to_string();
        run(Command::new("fallocate").args(["-l", &most]).arg(&filler))?;
        let mut file = fs::File::options().append(true).open(&filler)?;
        let zeros = vec![0; BLOCK];
        while file.write_all(&zeros).is_ok() {}
        Ok(())
    }

    /// Gives it back.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.data.join("filler"))?)
    }

    /// Every write stands still, or goes on.
    pub(super) fn freeze(&self, frozen: bool) -> anyhow::Result<()> {
        run(Command::new("fsfreeze").arg(if frozen { "-f" } else { "-u" }).arg(&self.data)).map(drop)
    }

    /// Every write is refused, as by a disk that found itself broken; and mended.
    pub(super) fn break_down(&self, broken: bool) -> anyhow::Result<()> {
        // An emergency remount: an orderly one waits until nobody has a file open for writing.
        if broken {
            run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.data)).map(drop)
        } else {
            // An aborted journal is mended by mounting anew. Whoever had it open ends by itself, some of them a moment later.
            wait_for("the broken disk is let go", LET_GO, || {
                run(Command::new("umount").arg(&self.data)).map(drop)
            })?;
            let image = self.data.with_file_name("disk");
            // 1: errors were found and corrected.
            let checked = Command::new("e2fsck").args(["-p"]).arg(&image).output()?;
            anyhow::ensure!(checked.status.code().is_some_and(|c| c <= 1), "e2fsck: {}", checked.status);
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&self.data)).map(drop)
        }
    }
}
