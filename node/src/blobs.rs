//! Content-addressed blobs: event logs, IMA lists, policy documents. An entry that names a blob is appended only once the
//! blob is durable here, so `apply` never has to ask the network. None is ever removed: auditors replay with them.
mod owed;

pub use owed::pay;

use quorate_core::state::Blobs;
use quorate_core::tlog::{Hash, sha256};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Largest blob: a full IMA list of a busy machine.
pub const BLOB_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The folder of blobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobStore {
    folder: Arc<PathBuf>,
    /// Held while the note of what is owed changes.
    noting: Arc<Mutex<()>>,
}

/// Why a blob was not kept.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Beyond the bound.
    #[error("a blob of {0} bytes exceeds {BLOB_BYTES_MAX}")]
    TooLarge(usize),
    /// The disk.
    #[error("cannot write the blob {1}")]
    Disk(#[source] std::io::Error, Hash),
}

impl BlobStore {
    /// Opens `data/blobs`, making it if needed.
    pub fn open(data: &Path) -> std::io::Result<Self> {
        let folder = data.join("blobs");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder: Arc::new(folder), noting: Arc::default() })
    }

    fn path(&self, digest: &Hash) -> PathBuf {
        self.folder.join(hex::encode(digest.0))
    }

    /// Whether the blob is durable here.
    pub fn has(&self, digest: &Hash) -> bool {
        self.path(digest).is_file()
    }

    /// Keeps a blob, fsynced before it returns.
    pub fn put(&self, bytes: &[u8]) -> Result<Hash, BlobError> {
        let digest = sha256(bytes);
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(BlobError::TooLarge(bytes.len()));
        }
        if self.has(&digest) {
            return Ok(digest);
        }
        let path = self.path(&digest);
        // Two tasks may put the same blob at once: each writes a draft of its own.
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        let draft = path.with_extension(format!("draft-{}", DRAFTS.fetch_add(1, Ordering::Relaxed)));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            File::open(self.folder.as_path())?.sync_all()
        };
        write().map_err(|e| BlobError::Disk(e, digest))?;
        Ok(digest)
    }
}

impl Blobs for BlobStore {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(digest)).ok()?;
        // A disk may rot; a wrong blob is a missing one.
        (sha256(&bytes) == *digest).then_some(bytes)
    }
}
