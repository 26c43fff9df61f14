//! The canary scan: looks for a secret in everything that some processes and folders hold, and says how much it read.
//!
//! **Finds** any 16 bytes of the secret in a row: as they are, as hex (both cases), as base64 (standard and URL-safe, at each of
//! the three places where a run may begin in a group). **Reads** every mapping of a process through `/proc/PID/mem`, whatever
//! its permissions, files that it holds open without a name, and every regular file below a folder.
//!
//! **What it may not read is an error**, never a gap. Three exceptions, each a place that holds nothing of the process's:
//! - `[vvar]`, `[vvar_vclock]`: the kernel's clock data, the same pages in every process, which nobody in user space can write;
//! - `[vsyscall]`: the kernel's own code, outside the address space that `/proc/PID/mem` has;
//! - pages of anonymous memory that are neither present nor swapped out (`/proc/PID/pagemap`): never written, they read as zero.
//!
//! A process that runs moves its bytes meanwhile: one scan is a sample, many are evidence. Registers and the kernel's socket
//! buffers are not read. Needs root. The caller's own process holds the secret and so cannot be one that is scanned.
use crate::mesh::Mesh;
use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A run of the secret this long is a find.
pub const RUN_BYTES: usize = 16;
/// Characters that base64 gives to such a run whatever stands beside it.
const RUN_BASE64: usize = 20;
/// Read at once.
const PIECE: usize = 1 << 20;
/// Kept from the piece before: longer than the longest find need be.
const OVERLAP: usize = 64;
const PAGE: u64 = 4096;
/// The aligned words that are looked up. A find has 15 bytes or more, so it covers one whole, also at a piece's end.
const WORD: usize = 8;
/// Bits of the first filter, a power of two.
const FILTER_BITS: u32 = 16;
/// Mappings come and go: how often those that came are looked at.
const LOOKS: usize = 4;
/// `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst): present, swapped.
const PAGE_HELD: u64 = 1 << 63 | 1 << 62;
/// The kernel's, see the module.
const KERNELS: [&str; 3] = ["[vvar]", "[vvar_vclock]", "[vsyscall]"];

/// One way in which the secret may be written.
struct Form {
    name: &'static str,
    bytes: Vec<u8>,
    /// So many in a row are a find.
    least: usize,
}

/// What is looked for. Holds the secret.
pub struct Canary {
    forms: Vec<Form>,
    filter: Vec<u64>,
    words: HashMap<u64, Vec<(usize, usize)>>,
}

/// Searches a mesh that runs for the key of its provider: every node, these clients, and every file in the mesh's folder but
/// the provider's own and the binaries.
pub fn scan(mesh: &Mesh, secret: &[u8], clients: &[(&str, u32)]) -> anyhow::Result<Scan> {
    let (canary, mut scan) = (Canary::new(secret)?, Scan::default());
    for site in &mesh.sites {
        let pid =
            site.pid().filter(|_| site.runs()).with_context(|| format!("{} does not run", site.name))?;
        canary.process(&site.name, pid, &mut scan)?;
    }
    for (name, pid) in clients {
        canary.process(name, *pid, &mut scan)?;
    }
    canary.folder(&mesh.dir, &["provider", "bin"].map(|n| mesh.dir.join(n)), &mut scan)?;
    Ok(scan)
}

/// What was read, and what was found.
#[derive(Debug, Default, Clone)]
pub struct Scan {
    /// Processes.
    pub processes: usize,
    /// Mappings read.
    pub mappings: usize,
    /// Files read.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Each find; none is what one hopes for.
    pub found: Vec<Find>,
}

/// A piece of the secret where none may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Find {
    /// Process and address, or file and offset.
    pub place: String,
    /// How it is written there.
    pub form: &'static str,
    /// So many characters of that form in a row.
    pub length: usize,
}

impl fmt::Display for Find {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} characters of the secret ({}) in {}", self.length, self.form, self.place)
    }
}

impl Scan {
    /// An error that names each find, if there is one.
    pub fn clean(&self) -> anyhow::Result<()> {
        let found: Vec<String> = self.found.iter().map(Find::to_string).collect();
        ensure!(found.is_empty(), "the key was found: {}", found.join("; "));
        Ok(())
    }
}

fn slot(word: u64) -> (usize, u64) {
    let hash = word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS);
    ((hash >> 6) as usize, 1 << (hash & 63))
}

fn word_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

impl Canary {
    /// Looks for this secret, without the key's public prefix.
    pub fn new(secret: &[u8]) -> anyhow::Result<Self> {
        ensure!(secret.len() >= RUN_BYTES, "a secret has {RUN_BYTES} bytes or more");
        let mut forms = vec![
            Form { name: "as it is", bytes: secret.to_vec(), least: RUN_BYTES },
            Form { name: "hex", bytes: hex::encode(secret).into_bytes(), least: 2 * RUN_BYTES },
            Form { name: "hex", bytes: hex::encode_upper(secret).into_bytes(), least: 2 * RUN_BYTES },
        ];
        for ahead in 0..3 {
            for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                let text = engine.encode([vec![0; ahead].as_slice(), secret].concat()).into_bytes();
                // Characters that hold bits of the secret alone: 0, 8 or 16 bits stand before it; the last may hold more.
                let (from, to) = ((8 * ahead).div_ceil(6), 8 * (ahead + secret.len()) / 6);
                let bytes = text.get(from..to).context("base64 is shorter than its input")?.to_vec();
                if forms.iter().all(|f| f.bytes != bytes) {
                    forms.push(Form { name: "base64", bytes, least: RUN_BASE64 });
                }
            }
        }
        let mut filter = vec![0_u64; 1 << (FILTER_BITS - 6)];
        let mut words: HashMap<u64, Vec<(usize, usize)>> = HashMap::new();
        for (number, form) in forms.iter().enumerate() {
            for (at, bytes) in form.bytes.windows(WORD).enumerate() {
                let word = word_of(bytes);
                let (index, bit) = slot(word);
                *filter.get_mut(index).context("the filter has a bit for each hash")? |= bit;
                words.entry(word).or_default().push((number, at));
            }
        }
        Ok(Self { forms, filter, words })
    }

    /// Finds in one piece; `place` tells where an offset is.
    fn piece(&self, piece: &[u8], place: &dyn Fn(usize) -> String, found: &mut Vec<Find>) {
        for (number, bytes) in piece.chunks_exact(WORD).enumerate() {
            let word = word_of(bytes);
            let (index, bit) = slot(word);
            if self.filter.get(index).is_some_and(|bits| bits & bit != 0) {
                self.look(piece, number * WORD, word, place, found);
            }
        }
    }

    /// A word of some form stands at `at`: how far does it go on, in both directions?
    #[cold]
    fn look(
        &self,
        piece: &[u8],
        at: usize,
        word: u64,
        place: &dyn Fn(usize) -> String,
        found: &mut Vec<Find>,
    ) {
        for (number, offset) in self.words.get(&word).into_iter().flatten() {
            let Some(form) = self.forms.get(*number) else { continue };
            let (before, after) = (piece.get(..at).unwrap_or_default(), piece.get(at..).unwrap_or_default());
            let (head, tail) = (
                form.bytes.get(..*offset).unwrap_or_default(),
                form.bytes.get(*offset..).unwrap_or_default(),
            );
            let back = before.iter().rev().zip(head.iter().rev()).take_while(|(a, b)| a == b).count();
            let length = back + after.iter().zip(tail).take_while(|(a, b)| a == b).count();
            let find = Find { place: place(at - back), form: form.name, length };
            // One find covers several words.
            if length >= form.least && found.last() != Some(&find) {
                found.push(find);
            }
        }
    }

    /// Every byte of a process's memory, and of files that it holds without a name.
    pub fn process(&self, name: &str, pid: u32, scan: &mut Scan) -> anyhow::Result<()> {
        ensure!(pid != std::process::id(), "this very process holds the secret: it cannot be {name}");
        let of = || format!("{name} (process {pid})");
        let memory = Memory::open(pid).with_context(of)?;
        let mut seen = BTreeSet::new();
        // Those that came while others were read are read too, as far as that can go.
        for _ in 0..LOOKS {
            let fresh: Vec<Mapping> =
                memory.mappings().with_context(of)?.into_iter().filter(|m| seen.insert(m.clone())).collect();
            if fresh.is_empty() {
                break;
            }
            self.mappings(name, &memory, &fresh, scan).with_context(of)?;
        }
        self.unnamed_files(name, pid, scan).with_context(of)?;
        scan.processes += 1;
        Ok(())
    }

    fn mappings(&self, name: &str, memory: &Memory, all: &[Mapping], scan: &mut Scan) -> anyhow::Result<()> {
        let mut buffer = vec![0; OVERLAP + PIECE];
        // Bytes at the buffer's head that stand right before the next address, and that address.
        let (mut kept, mut next) = (0, 0);
        for mapping in all {
            for (start, end) in memory.held(mapping)? {
                let mut at = start;
                while at < end {
                    if at != next {
                        kept = 0;
                    }
                    let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                    let into = buffer.get_mut(kept..kept + length).context("the buffer holds a piece")?;
                    if !memory.read(at, into)? {
                        // Gone meanwhile, or some of it: page by page then.
                        if length as u64 > PAGE {
                            self.pages(name, memory, at, length as u64, scan)?;
                        }
                        (at, next) = (at + length as u64, 0);
                        continue;
                    }
                    let first = at - kept as u64;
                    let filled = kept + length;
                    let place = |offset: usize| format!("memory of {name} at {:#x}", first + offset as u64);
                    self.piece(buffer.get(..filled).unwrap_or_default(), &place, &mut scan.found);
                    scan.bytes += length as u64;
                    kept = OVERLAP.min(filled);
                    buffer.copy_within(filled - kept..filled, 0);
                    (at, next) = (at + length as u64, at + length as u64);
                }
            }
            scan.mappings += 1;
        }
        Ok(())
    }

    fn pages(
        &self,
        name: &str,
        memory: &Memory,
        at: u64,
        length: u64,
        scan: &mut Scan,
    ) -> anyhow::Result<()> {
        let mut page = [0; PAGE as usize];
        for at in (at..at + length).step_by(PAGE as usize) {
            if memory.read(at, &mut page)? {
                let place = |offset: usize| format!("memory of {name} at {:#x}", at + offset as u64);
                self.piece(&page, &place, &mut scan.found);
                scan.bytes += PAGE;
            }
        }
        Ok(())
    }

    /// Files that were removed, or never had a name, are below no folder.
    fn unnamed_files(&self, name: &str, pid: u32, scan: &mut Scan) -> anyhow::Result<()> {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let link = entry?.path();
            // Closed meanwhile.
            let (Ok(to), Ok(about)) = (fs::read_link(&link), fs::metadata(&link)) else { continue };
            let to = to.to_string_lossy().into_owned();
            if about.is_file() && (to.ends_with(" (deleted)") || to.starts_with("/memfd:")) {
                self.file(&link, &format!("{to}, held open by {name}"), scan)?;
            }
        }
        Ok(())
    }

    /// Every byte of every regular file below a folder, `except` some; or of one file.
    pub fn folder(&self, path: &Path, except: &[PathBuf], scan: &mut Scan) -> anyhow::Result<()> {
        if except.iter().any(|e| e == path) {
            return Ok(());
        }
        let reading = || format!("cannot read {}", path.display());
        let about = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            about => about.with_context(reading)?,
        };
        if about.is_file() {
            return self.file(path, &path.display().to_string(), scan);
        }
        if about.is_dir() {
            let entries = match fs::read_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries.with_context(reading)?,
            };
            for entry in entries {
                self.folder(&entry.with_context(reading)?.path(), except, scan)?;
            }
        }
        // Sockets, pipes and links hold no bytes of their own.
        Ok(())
    }

    fn file(&self, path: &Path, name: &str, scan: &mut Scan) -> anyhow::Result<()> {
        let reading = || format!("cannot read {name}");
        let mut file = match File::open(path) {
            // Removed since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.with_context(reading)?,
        };
        let mut buffer = vec![0; OVERLAP + PIECE];
        let (mut kept, mut at) = (0, 0_u64);
        loop {
            let mut filled = kept;
            while let Some(into) = buffer.get_mut(filled..).filter(|into| !into.is_empty()) {
                match file.read(into).with_context(reading)? {
                    0 => break,
                    read => filled += read,
                }
            }
            if filled == kept {
                break;
            }
            let first = at - kept as u64;
            let place = |offset: usize| format!("{name} at {}", first + offset as u64);
            self.piece(buffer.get(..filled).unwrap_or_default(), &place, &mut scan.found);
            at += (filled - kept) as u64;
            scan.bytes += (filled - kept) as u64;
            kept = OVERLAP.min(filled);
            buffer.copy_within(filled - kept..filled, 0);
        }
        scan.files += 1;
        Ok(())
    }
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// As `rw-p`.
    pub permissions: String,
    /// Inode; 0 without a file.
    pub inode: u64,
    /// Path, or a name in brackets, or nothing.
    pub name: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?.to_owned();
        let inode = fields.nth(2)?.parse().ok()?;
        let name = fields.next().unwrap_or_default().trim().to_owned();
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Self { start: hex(start)?, end: hex(end)?, permissions, inode, name })
    }

    /// The kernel's, and read-only as those are.
    fn is_kernels(&self) -> bool {
        KERNELS.contains(&self.name.as_str()) && !self.permissions.contains('w')
    }
}

/// A process's memory, as root sees it.
pub struct Memory {
    pid: u32,
    memory: File,
    pagemap: File,
}

impl Memory {
    /// Opens it for reading.
    pub fn open(pid: u32) -> anyhow::Result<Self> {
        let open = |what: &str| {
            let path = format!("/proc/{pid}/{what}");
            File::open(&path).with_context(|| format!("cannot open {path}"))
        };
        Ok(Self { pid, memory: open("mem")?, pagemap: open("pagemap")? })
    }

    /// What is mapped now, without what is the kernel's.
    pub fn mappings(&self) -> anyhow::Result<Vec<Mapping>> {
        let text = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        ensure!(!text.is_empty(), "it ended");
        let all = text.lines().map(|l| Mapping::parse(l).with_context(|| format!("no mapping: {l}")));
        let all = all.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(all.into_iter().filter(|m| !m.is_kernels()).collect())
    }

    /// Runs of pages of a mapping that may hold something.
    fn held(&self, mapping: &Mapping) -> anyhow::Result<Vec<(u64, u64)>> {
        // A page of a file, or of memory with a name, may be held though this process has not touched it.
        if mapping.inode != 0 {
            return Ok(vec![(mapping.start, mapping.end)]);
        }
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut entries = vec![0; 8 * 4096];
        let mut at = mapping.start;
        while at < mapping.end {
            let pages = ((mapping.end - at) / PAGE).min(4096);
            let into = entries.get_mut(..8 * pages as usize).context("the buffer holds the entries")?;
            self.pagemap.read_exact_at(into, at / PAGE * 8).context("cannot read its pagemap")?;
            for entry in into.chunks_exact(8) {
                if word_of(entry) & PAGE_HELD != 0 {
                    match runs.last_mut() {
                        Some((_, end)) if *end == at => *end += PAGE,
                        _ => runs.push((at, at + PAGE)),
                    }
                }
                at += PAGE;
            }
        }
        Ok(runs)
    }

    /// Fills `into` from an address; `false` when it is mapped no longer. What is mapped and unreadable is an error.
    pub fn read(&self, at: u64, into: &mut [u8]) -> anyhow::Result<bool> {
        for _ in 0..LOOKS {
            let error = match self.memory.read_exact_at(into, at) {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            let (end, mut mapped) = (at + into.len() as u64, at);
            let mappings = self.mappings()?;
            for mapping in &mappings {
                if mapping.start <= mapped && mapped < mapping.end {
                    mapped = mapping.end;
                }
            }
            if mapped < end {
                return Ok(false);
            }
            // Mapped anew in between, perhaps: once more.
            let whose = mappings.iter().find(|m| m.start <= at && at < m.end).map(|m| m.name.as_str());
            let whose = whose.filter(|n| !n.is_empty()).unwrap_or("anonymous memory");
            if error.kind() == io::ErrorKind::PermissionDenied {
                bail!("may not read {whose} at {at:#x}: {error}");
            }
            if into.len() as u64 <= PAGE {
                continue;
            }
            return Ok(false);
        }
        bail!("cannot read memory at {at:#x}, which is mapped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    const SECRET: &[u8] = b"q7Zr+0mVx/9LkWc3TtYb5HdNf2Js8GpA_-4eRu";

    fn finds(piece: &[u8]) -> Vec<Find> {
        let mut found = Vec::new();
        Canary::new(SECRET).unwrap().piece(piece, &|at| at.to_string(), &mut found);
        found
    }

    /// Wherever it begins, however much of it there is, whatever stands beside it.
    #[test]
    fn any_sixteen_bytes_are_found_in_each_form_and_fifteen_in_none() {
        type Written = (&'static str, fn(&[u8]) -> Vec<u8>);
        let written: [Written; 5] = [
            ("as it is", <[u8]>::to_vec),
            ("hex", |b| hex::encode(b).into_bytes()),
            ("hex", |b| hex::encode_upper(b).into_bytes()),
            ("base64", |b| STANDARD_NO_PAD.encode(b).into_bytes()),
            ("base64", |b| URL_SAFE_NO_PAD.encode(b).into_bytes()),
        ];
        for (form, write) in written {
            for from in 0..SECRET.len() - RUN_BYTES {
                for ahead in 0..11 {
                    let text = [&b"Bearer sk-a"[..ahead], &SECRET[from..from + RUN_BYTES], b"!!"].concat();
                    for at in [0, 1, 5, 8] {
                        let piece = [&vec![0; at][..], &write(&text)].concat();
                        let found = finds(&piece);
                        assert!(
                            found.iter().any(|f| f.form == form),
                            "{form} from {from} behind {ahead} at {at}"
                        );
                    }
                }
                let short = [&SECRET[from..from + RUN_BYTES - 2], b"!!!!!!"].concat();
                assert_eq!(finds(&write(&short)), [], "{form}: fourteen bytes from {from}");
            }
        }
        assert_eq!(finds(&vec![0; 4096]), []);
    }

    #[test]
    fn a_file_is_read_across_its_pieces_and_a_scan_says_where() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        let file = dir.path().join("below/log");
        for at in [0, PIECE - 7, OVERLAP + PIECE - 20, 2 * PIECE, 3 * PIECE - 1] {
            let mut bytes = vec![b'x'; 3 * PIECE + SECRET.len()];
            bytes[at..at + SECRET.len()].copy_from_slice(SECRET);
            std::fs::write(&file, &bytes).unwrap();
            let canary = Canary::new(SECRET).unwrap();
            let mut scan = Scan::default();
            canary.folder(dir.path(), &[], &mut scan).unwrap();
            let place = format!("{} at {at}", file.display());
            assert!(
                scan.found.iter().any(|f| f.place == place && f.length == SECRET.len()),
                "{:?}",
                scan.found
            );
            assert_eq!((scan.files, scan.bytes), (1, bytes.len() as u64));
            let said = scan.clean().unwrap_err().to_string();
            assert!(!said.contains("q7Zr"), "the finding repeats the secret");
            let mut scan = Scan::default();
            canary.folder(dir.path(), &[dir.path().join("below")], &mut scan).unwrap();
            assert_eq!(scan.files, 0);
        }
    }

    struct Running(Child);
    impl Drop for Running {
        fn drop(&mut self) {
            let _ended = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    #[test]
    fn a_process_that_holds_it_is_told_from_one_that_does_not() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a_process_that_holds_it_is_told_from_one_that_does_not: needs root");
            return;
        }
        let canary = Canary::new(SECRET).unwrap();
        for held in [true, false] {
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let value = if held { SECRET } else { &[b'y'; 32] };
            command.env("HELD", String::from_utf8_lossy(value).as_ref());
            let running = Running(command.spawn().unwrap());
            // Until it is the program, with the environment on its stack.
            let pid = running.0.id();
            while !std::fs::read(format!("/proc/{pid}/cmdline")).unwrap().starts_with(b"cat") {
                std::thread::yield_now();
            }
            let mut scan = Scan::default();
            canary.process("cat", pid, &mut scan).unwrap();
            assert_eq!(scan.clean().is_err(), held, "{scan:?}");
            assert!(scan.mappings > 5 && scan.bytes > 100_000, "{scan:?}");
        }
        let own = canary.process("us", std::process::id(), &mut Scan::default()).unwrap_err();
        assert!(own.to_string().contains("this very process"));
        // A process that is gone is no clean process.
        assert!(canary.process("nobody", 0x7fff_fff0, &mut Scan::default()).is_err());
    }
}
