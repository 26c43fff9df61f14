//! Snapshots on disk: at most two files, each whole and checked, or not there.
//!
//! A file is `snapshots/<index>-<digest>.snap`, where the digest is SHA-256 of the content and the index that
//! of the last entry covered. It is written under another name, synced, renamed, and the folder is synced: a
//! crash leaves the old set or the new one. Its layout, integers little-endian:
//!
//! ```text
//! "QRTSNAP" | version (1) | meta length u32 | content length u64 | SHA-256(content) | meta | SHA-256(all before) | content
//! ```
//!
//! What is decided here: whether a file is what was saved. What is left to the caller: whether a snapshot
//! may be installed at all, which takes a certified leaf that holds its [`SnapshotDigest`]; the digests here
//! find accidents, not an attacker who writes to the disk. All calls block: keep them off the async runtime.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

use super::types::SnapshotMeta;

const MAGIC: &[u8; 7] = b"QRTSNAP";
const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 32;
/// Magic, version, two lengths and the content's digest.
const FIXED_BYTES: usize = 7 + 1 + 4 + 8 + DIGEST_BYTES;

/// The longest meta: a membership of a few nodes takes some hundred bytes.
const META_BYTES_MAX: usize = 64 << 10;
/// The longest content. It is held in memory once to send or to install.
pub const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// Snapshots kept: the newest, and the one before in case the newest proves damaged.
pub const SNAPSHOTS_KEPT: usize = 2;
const SUFFIX: &str = ".snap";
const DRAFT_SUFFIX: &str = ".draft";

/// SHA-256 of a snapshot's content: what a certified leaf must hold before it is installed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotDigest([u8; DIGEST_BYTES]);

impl SnapshotDigest {
    /// Hashes a content.
    pub fn of(content: &[u8]) -> Self {
        let mut bytes = [0; DIGEST_BYTES];
        for (to, from) in bytes.iter_mut().zip(digest(&SHA256, content).as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// The hash.
    pub fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl fmt::Display for SnapshotDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SnapshotDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotDigest({self})")
    }
}

/// Why a snapshot could not be saved or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused; a full disk comes out here.
    #[error("could not {doing} {path}")]
    File {
        /// The attempt.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The content exceeds [`SNAPSHOT_BYTES_MAX`].
    #[error("a snapshot of {got} bytes exceeds {SNAPSHOT_BYTES_MAX}")]
    TooLarge {
        /// The length offered or declared.
        got: u64,
    },
    /// The meta exceeds its bound.
    #[error("a snapshot's meta of {got} bytes exceeds {META_BYTES_MAX}")]
    MetaTooLarge {
        /// The length offered or declared.
        got: u64,
    },
    /// The file does not begin as a snapshot does.
    #[error("{path} is not a snapshot")]
    NotASnapshot {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error("{path} has version {got}; this build reads version {VERSION}")]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version found.
        got: u8,
    },
    /// The header does not match its digest.
    #[error("the header of {path} is damaged")]
    HeaderDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The file is shorter or longer than its header says.
    #[error("{path} has {got} bytes, its header says {want}")]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The file's length.
        got: u64,
        /// The length that follows from the header.
        want: u64,
    },
    /// The content does not match the header's digest.
    #[error("the content of {path} is damaged")]
    ContentDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The name promises another snapshot than the file holds.
    #[error("{path} holds another snapshot than its name says")]
    NameMismatch {
        /// The file.
        path: PathBuf,
    },
    /// The meta did not encode or decode.
    #[error("a snapshot's meta does not encode or decode")]
    Meta {
        /// The encoder's answer.
        source: postcard::Error,
    },
}

impl SnapshotError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
}

/// A snapshot as it was saved.
#[derive(Clone)]
pub struct StoredSnapshot {
    /// What it covers.
    pub meta: SnapshotMeta,
    /// SHA-256 of the content.
    pub digest: SnapshotDigest,
    /// The state machine's bytes.
    pub content: Vec<u8>,
}

/// What loading found.
pub struct LoadedSnapshots {
    /// The newest whole snapshot.
    pub newest: Option<StoredSnapshot>,
    /// Newer files that had to be passed over, newest first. Worth an operator's look.
    pub rejected: Vec<SnapshotError>,
}

/// The folder of snapshots. One process owns it: the one that holds the log's lock.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    folder: PathBuf,
}

impl SnapshotStore {
    /// Opens `data_folder/snapshots`, making it if needed, and clears away what a crash left half written.
    pub fn open(data_folder: &Path) -> Result<Self, SnapshotError> {
        let folder = data_folder.join("snapshots");
        if !folder.is_dir() {
            fs::create_dir_all(&folder).map_err(SnapshotError::file("create", &folder))?;
            sync_folder(data_folder)?;
        }
        let store = Self { folder };
        for (_, path) in store.named(DRAFT_SUFFIX)? {
            fs::remove_file(&path).map_err(SnapshotError::file("remove", &path))?;
        }
        Ok(store)
    }

    /// Saves a snapshot durably and removes all but it and the newest other one.
    pub fn save(&self, meta: &SnapshotMeta, content: &[u8]) -> Result<SnapshotDigest, SnapshotError> {
        let digest = SnapshotDigest::of(content);
        let header = header(meta, content.len() as u64, &digest)?;
        let name = file_name(meta, &digest);
        let path = self.folder.join(&name);
        let draft = self.folder.join(format!("{name}{DRAFT_SUFFIX}"));
        let written = write_draft(&draft, &header, content).and_then(|()| {
            fs::rename(&draft, &path).map_err(SnapshotError::file("rename", &draft))?;
            sync_folder(&self.folder)
        });
        if let Err(error) = written {
            // on a full disk the draft is in the way of recovery; what failed first is what matters
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        self.prune(&path)?;
        Ok(digest)
    }

    /// Reads the newest whole snapshot, and says which newer ones were damaged.
    pub fn load(&self) -> Result<LoadedSnapshots, SnapshotError> {
        let mut rejected = Vec::new();
        for (_, path) in self.named(SUFFIX)? {
            match read(&path) {
                Ok(newest) => return Ok(LoadedSnapshots { newest: Some(newest), rejected }),
                Err(error) => rejected.push(error),
            }
        }
        Ok(LoadedSnapshots { newest: None, rejected })
    }

    fn prune(&self, saved: &Path) -> Result<(), SnapshotError> {
        let others = self.named(SUFFIX)?.into_iter().map(|(_, path)| path).filter(|path| path != saved);
        let mut removed = false;
        for path in others.skip(SNAPSHOTS_KEPT - 1) {
            fs::remove_file(&path).map_err(SnapshotError::file("remove", &path))?;
            removed = true;
        }
        if removed { sync_folder(&self.folder) } else { Ok(()) }
    }

    /// Files with this suffix, newest first: by name, which starts with the index, then by time of writing.
    fn named(&self, suffix: &str) -> Result<Vec<(String, PathBuf)>, SnapshotError> {
        let list = || -> io::Result<Vec<_>> {
            let mut found = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                if name.ends_with(suffix) {
                    let index = name.split('-').next().unwrap_or_default().to_owned();
                    found.push((index, entry.metadata()?.modified()?, entry.path()));
                }
            }
            found.sort();
            Ok(found.into_iter().rev().map(|(index, _, path)| (index, path)).collect())
        };
        list().map_err(SnapshotError::file("list", &self.folder))
    }
}

/// Twenty digits hold any index, so names sort as numbers do. A snapshot of nothing counts as index 0.
fn file_name(meta: &SnapshotMeta, digest: &SnapshotDigest) -> String {
    let index = meta.last_log_id.map_or(0, |last| last.index);
    format!("{index:020}-{digest}{SUFFIX}")
}

fn header(meta: &SnapshotMeta, content_len: u64, digest: &SnapshotDigest) -> Result<Vec<u8>, SnapshotError> {
    if content_len > SNAPSHOT_BYTES_MAX {
        return Err(SnapshotError::TooLarge { got: content_len });
    }
    let meta = postcard::to_stdvec(meta).map_err(|source| SnapshotError::Meta { source })?;
    if meta.len() > META_BYTES_MAX {
        return Err(SnapshotError::MetaTooLarge { got: meta.len() as u64 });
    }
    let mut header = Vec::with_capacity(FIXED_BYTES + meta.len() + DIGEST_BYTES);
    header.extend_from_slice(MAGIC);
    header.push(VERSION);
    header.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    header.extend_from_slice(&content_len.to_le_bytes());
    header.extend_from_slice(digest.as_bytes());
    header.extend_from_slice(&meta);
    let seal = SnapshotDigest::of(&header);
    header.extend_from_slice(seal.as_bytes());
    Ok(header)
}

fn write_draft(draft: &Path, header: &[u8], content: &[u8]) -> Result<(), SnapshotError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(draft)
        .map_err(SnapshotError::file("create", draft))?;
    file.write_all(header)
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.sync_all())
        .map_err(SnapshotError::file("write", draft))
}

fn sync_folder(folder: &Path) -> Result<(), SnapshotError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(SnapshotError::file("sync", folder))
}

fn read(path: &Path) -> Result<StoredSnapshot, SnapshotError> {
    let mut file = File::open(path).map_err(SnapshotError::file("open", path))?;
    let file_len = file.metadata().map_err(SnapshotError::file("read", path))?.len();
    let not_one = || SnapshotError::NotASnapshot { path: path.to_owned() };

    let mut magic = [0; 7];
    let mut version = [0; 1];
    let mut meta_len = [0; 4];
    let mut content_len = [0; 8];
    let mut digest = [0; DIGEST_BYTES];
    let mut seal = [0; DIGEST_BYTES];
    for part in [&mut magic[..], &mut version, &mut meta_len, &mut content_len, &mut digest] {
        read_part(&mut file, path, part, &not_one)?;
    }
    if magic != *MAGIC {
        return Err(not_one());
    }
    let [got] = version;
    if got != VERSION {
        return Err(SnapshotError::UnknownVersion { path: path.to_owned(), got });
    }
    // the lengths are not trusted before the seal holds, so their bounds come first
    let meta_bytes = u32::from_le_bytes(meta_len) as usize;
    if meta_bytes > META_BYTES_MAX {
        return Err(SnapshotError::MetaTooLarge { got: meta_bytes as u64 });
    }
    let content_bytes = u64::from_le_bytes(content_len);
    if content_bytes > SNAPSHOT_BYTES_MAX {
        return Err(SnapshotError::TooLarge { got: content_bytes });
    }
    let mut meta = vec![0; meta_bytes];
    let damaged = || SnapshotError::HeaderDamaged { path: path.to_owned() };
    read_part(&mut file, path, &mut meta, &damaged)?;
    read_part(&mut file, path, &mut seal, &damaged)?;
    let sealed = [&magic[..], &version, &meta_len, &content_len, &digest, &meta].concat();
    if *SnapshotDigest::of(&sealed).as_bytes() != seal {
        return Err(damaged());
    }

    let want = (FIXED_BYTES + meta_bytes + DIGEST_BYTES) as u64 + content_bytes;
    if file_len != want {
        return Err(SnapshotError::WrongLength { path: path.to_owned(), got: file_len, want });
    }
    let mut content = Vec::new();
    file.take(content_bytes).read_to_end(&mut content).map_err(SnapshotError::file("read", path))?;
    let digest = SnapshotDigest(digest);
    if SnapshotDigest::of(&content) != digest {
        return Err(SnapshotError::ContentDamaged { path: path.to_owned() });
    }
    let meta: SnapshotMeta = postcard::from_bytes(&meta).map_err(|source| SnapshotError::Meta { source })?;
    if path.file_name().and_then(|name| name.to_str()) != Some(&file_name(&meta, &digest)) {
        return Err(SnapshotError::NameMismatch { path: path.to_owned() });
    }
    Ok(StoredSnapshot { meta, digest, content })
}

fn read_part(
    file: &mut File,
    path: &Path,
    part: &mut [u8],
    cut_short: &dyn Fn() -> SnapshotError,
) -> Result<(), SnapshotError> {
    file.read_exact(part).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => cut_short(),
        _ => SnapshotError::file("read", path)(error),
    })
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;
    use crate::raft::types::{Membership, StoredMembership};

    fn meta(index: u64) -> SnapshotMeta {
        let members = Membership::new(vec![[1, 2, 3, 4].into_iter().collect()], None);
        SnapshotMeta {
            last_log_id: Some(log_id(2, 1, index)),
            last_membership: StoredMembership::new(Some(log_id(1, 1, 0)), members),
            snapshot_id: format!("s-{index}"),
        }
    }

    fn files(store: &SnapshotStore) -> Vec<PathBuf> {
        store.named("").unwrap().into_iter().map(|(_, path)| path).collect()
    }

    /// A store with snapshots 5 and 9, and the path of the newer.
    fn two() -> (tempfile::TempDir, SnapshotStore, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(folder.path()).unwrap();
        store.save(&meta(5), b"five").unwrap();
        store.save(&meta(9), b"nine").unwrap();
        let newest = files(&store)[0].clone();
        (folder, store, newest)
    }

    /// Puts `bytes` in place of the newer snapshot: the older must be loaded and one error reported.
    fn rejected_as(store: &SnapshotStore, newest: &Path, bytes: &[u8]) -> SnapshotError {
        fs::write(newest, bytes).unwrap();
        let mut loaded = store.load().unwrap();
        assert_eq!(loaded.newest.unwrap().content, b"five");
        assert_eq!(loaded.rejected.len(), 1);
        loaded.rejected.pop().unwrap()
    }

    #[test]
    fn the_newest_is_loaded_and_two_are_kept() {
        let (folder, store, _) = two();
        // 10 sorts after 9: names sort as numbers
        let digest = store.save(&meta(10), b"ten").unwrap();
        assert_eq!(files(&store).len(), SNAPSHOTS_KEPT);
        let loaded = SnapshotStore::open(folder.path()).unwrap().load().unwrap();
        let newest = loaded.newest.unwrap();
        assert_eq!((newest.meta, newest.digest, newest.content), (meta(10), digest, b"ten".to_vec()));
        assert_eq!(digest, SnapshotDigest::of(b"ten"));
        assert!(loaded.rejected.is_empty());
        assert!(files(&store)[0].ends_with(format!("{:020}-{digest}.snap", 10)));
    }

    #[test]
    fn what_was_just_saved_is_never_pruned() {
        let (_folder, store, _) = two();
        store.save(&meta(3), b"three").unwrap();
        let kept: Vec<_> = files(&store).iter().map(|path| read(path).unwrap().content).collect();
        assert_eq!(kept, [b"nine".to_vec(), b"three".to_vec()]);
    }

    #[test]
    fn nothing_saved_is_nothing_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let loaded = SnapshotStore::open(folder.path()).unwrap().load().unwrap();
        assert!(loaded.newest.is_none() && loaded.rejected.is_empty());
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_set() {
        let (folder, store, newest) = two();
        let whole = fs::read(&newest).unwrap();
        fs::write(newest.with_file_name("x.snap.draft"), &whole).unwrap();
        assert_eq!(files(&store).len(), 3);
        let store = SnapshotStore::open(folder.path()).unwrap();
        assert_eq!(files(&store).len(), 2);
        assert_eq!(store.load().unwrap().newest.unwrap().content, b"nine");
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let (_folder, store, newest) = two();
        let whole = fs::read(&newest).unwrap();
        let content_at = whole.len() - 4;
        for byte in 0..whole.len() {
            let mut bad = whole.clone();
            bad[byte] ^= 0x10;
            let error = rejected_as(&store, &newest, &bad);
            let right = match byte {
                0..7 => matches!(error, SnapshotError::NotASnapshot { .. }),
                7 => matches!(error, SnapshotError::UnknownVersion { got: 0x11, .. }),
                at if at >= content_at => matches!(error, SnapshotError::ContentDamaged { .. }),
                _ => matches!(
                    error,
                    SnapshotError::HeaderDamaged { .. }
                        | SnapshotError::MetaTooLarge { .. }
                        | SnapshotError::TooLarge { .. }
                ),
            };
            assert!(right, "byte {byte}: {error}");
        }
    }

    #[test]
    fn a_cut_or_extended_file_is_noticed() {
        let (_folder, store, newest) = two();
        let whole = fs::read(&newest).unwrap();
        for len in 0..whole.len() {
            let error = rejected_as(&store, &newest, &whole[..len]);
            let right = match len {
                len if len < FIXED_BYTES => matches!(error, SnapshotError::NotASnapshot { .. }),
                len if len < whole.len() - 4 => matches!(error, SnapshotError::HeaderDamaged { .. }),
                _ => matches!(error, SnapshotError::WrongLength { .. }),
            };
            assert!(right, "cut to {len}: {error}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(matches!(rejected_as(&store, &newest, &longer), SnapshotError::WrongLength { .. }));
    }

    #[test]
    fn a_snapshot_under_anothers_name_is_refused() {
        let (_folder, store, newest) = two();
        let older = fs::read(&files(&store)[1]).unwrap();
        assert!(matches!(rejected_as(&store, &newest, &older), SnapshotError::NameMismatch { .. }));
    }

    #[test]
    fn a_meta_over_the_bound_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(folder.path()).unwrap();
        let meta = SnapshotMeta { snapshot_id: "x".repeat(META_BYTES_MAX), ..meta(1) };
        assert!(matches!(store.save(&meta, b""), Err(SnapshotError::MetaTooLarge { .. })));
        assert!(matches!(
            header(&meta, SNAPSHOT_BYTES_MAX + 1, &SnapshotDigest::of(b"")),
            Err(SnapshotError::TooLarge { .. })
        ));
        assert!(files(&store).is_empty());
    }

    #[test]
    fn a_failed_save_leaves_the_old_set() {
        let (_folder, store, newest) = two();
        // a folder where the draft should go: the write fails even for root
        let name = file_name(&meta(12), &SnapshotDigest::of(b"twelve"));
        fs::create_dir(newest.with_file_name(format!("{name}{DRAFT_SUFFIX}"))).unwrap();
        assert!(matches!(store.save(&meta(12), b"twelve"), Err(SnapshotError::File { doing: "create", .. })));
        assert_eq!(store.load().unwrap().newest.unwrap().content, b"nine");
    }
}
