//! This node's own evidence: quotes from the TPM, and the logs that explain them.
use crate::blobs::BlobStore;
use crate::config::Config;
use quorate_attest::evidence::Evidence;
use quorate_attest_tpm::{TpmError, TpmHandle};
use quorate_core::tlog::Hash;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Makes evidence. Cheap to clone.
#[derive(Clone)]
pub struct Attester {
    tpm: TpmHandle,
    event_log: Arc<PathBuf>,
    ima_log: Option<Arc<PathBuf>>,
    blobs: BlobStore,
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum AttesterError {
    /// The TPM.
    #[error("the TPM gave no quote")]
    Tpm(#[from] TpmError),
    /// A log.
    #[error("cannot read {0}")]
    Log(PathBuf, #[source] std::io::Error),
    /// The log does not fit into a blob or the disk.
    #[error("cannot keep a log as a blob")]
    Blob(#[from] crate::blobs::BlobError),
}

/// Evidence and the blobs it names.
#[derive(Debug, Clone)]
pub struct Attested {
    /// The quote.
    pub evidence: Evidence,
    /// Event log and, where there is one, IMA list.
    pub blobs: Vec<Vec<u8>>,
}

impl Attester {
    /// Starts the TPM's thread. The TPM itself is opened on first use.
    pub fn new(config: &Config, blobs: BlobStore) -> Result<Self, TpmError> {
        Ok(Self {
            tpm: TpmHandle::spawn(config.tpm()?)?,
            event_log: Arc::new(config.tpm.event_log.clone()),
            ima_log: config.tpm.ima_log.clone().map(Arc::new),
            blobs,
        })
    }

    /// The TPM.
    pub fn tpm(&self) -> &TpmHandle {
        &self.tpm
    }

    /// Quotes these PCRs with this qualifying data, and keeps the logs as blobs.
    pub async fn quote(&self, pcrs: &BTreeSet<u8>, qualifying: [u8; 32]) -> Result<Attested, AttesterError> {
        let selection: Vec<u8> = pcrs.iter().copied().collect();
        let quoted = self.tpm.quote(&selection, qualifying).await?;
        let event_log = read(&self.event_log)?;
        let event_digest = self.blobs.put(&event_log)?;
        let mut blobs = vec![event_log];
        let mut ima_digest = None;
        // After the quote: the list then holds at least what the quote covers.
        if let Some(path) = &self.ima_log {
            let list = read(path)?;
            ima_digest = Some(self.blobs.put(&list)?);
            blobs.push(list);
        }
        let evidence = quoted.into_evidence(event_digest.0, ima_digest.map(|h: Hash| h.0));
        Ok(Attested { evidence, blobs })
    }
}

fn read(path: &Arc<PathBuf>) -> Result<Vec<u8>, AttesterError> {
    std::fs::read(path.as_path()).map_err(|e| AttesterError::Log(path.as_path().into(), e))
}
