//! `quorated init`: makes a data folder from a signed genesis policy. A log is created by this explicit command, never because
//! a file was missing at start.
use crate::config::Config;
use crate::cosigner::Cosigner;
use crate::raft::LogStore;
use crate::tilestore::TileStore;
use quorate_core::crypto::{Hash, encode};
use quorate_core::policy::SignedPolicy;
use quorate_core::sshsig::{SshSigError, SshSignature};
use quorate_core::state::{GenesisError, State};
use std::path::{Path, PathBuf};

/// Why there is no new data folder, or why one cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It exists.
    #[error("{0} holds a node already: a log is never created twice")]
    Exists(PathBuf),
    /// It does not exist.
    #[error("{0} holds no node")]
    Missing(PathBuf),
    /// The disk.
    #[error("cannot write {0}")]
    Disk(PathBuf, #[source] std::io::Error),
    /// A file that cannot be read.
    #[error("cannot read {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// A signature.
    #[error("{0}")]
    Signature(PathBuf, #[source] SshSigError),
    /// The policy.
    #[error("the policy is no genesis")]
    Genesis(#[from] GenesisError),
    /// This node is not in it.
    #[error("the policy lists no member {0}")]
    NotAMember(quorate_core::ids::NodeId),
    /// Raft's log.
    #[error("cannot create Raft's log")]
    Log(#[from] crate::raft::LogStoreError),
    /// Tiles.
    #[error("cannot create the tile store")]
    Tiles(#[from] crate::tilestore::StoreError),
    /// Damaged.
    #[error("{0} is damaged")]
    Damaged(PathBuf),
}

/// Where things are in a data folder.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Of this folder.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Raft's log.
    pub fn raft_log(&self) -> PathBuf {
        self.root.join("raft")
    }
    /// The tlog.
    pub fn tiles(&self) -> PathBuf {
        self.root.join("tlog")
    }
    /// Every policy version.
    pub fn policies(&self) -> PathBuf {
        self.root.join("policies")
    }
    /// Where a node signs once.
    pub fn sign_lock(&self) -> PathBuf {
        self.root.join("sign.lock")
    }
    /// A decision to give up a tail, until it is carried out.
    pub fn given_up(&self) -> PathBuf {
        self.root.join("given-up")
    }
    /// The signed genesis policy. Written last: its presence says that the folder is whole.
    pub fn genesis(&self) -> PathBuf {
        self.root.join("genesis")
    }

    /// Reads the genesis the folder was made from.
    pub fn read_genesis(&self) -> Result<SignedPolicy, InitError> {
        let path = self.genesis();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(InitError::Missing(self.root.clone()));
            }
            Err(e) => return Err(InitError::Unreadable(path, e)),
        };
        borsh::from_slice(&bytes).map_err(|_| InitError::Damaged(path))
    }
}

/// Makes the folder; returns the genesis digest.
///
/// A node that joins later is no member of genesis yet: it begins there all the same, and learns from its peers that it is.
pub fn init(config: &Config, policy: &Path, signatures: &[PathBuf], joins: bool) -> Result<Hash, InitError> {
    let layout = Layout::new(&config.data_dir);
    if layout.genesis().exists() || layout.raft_log().exists() {
        return Err(InitError::Exists(config.data_dir.clone()));
    }
    let document = std::fs::read(policy).map_err(|e| InitError::Unreadable(policy.into(), e))?;
    let mut signed = SignedPolicy { document, signatures: Vec::new() };
    for path in signatures {
        let pem = std::fs::read_to_string(path).map_err(|e| InitError::Unreadable(path.clone(), e))?;
        signed
            .signatures
            .push(SshSignature::from_pem(&pem).map_err(|e| InitError::Signature(path.clone(), e))?);
    }
    let (state, _) = State::genesis(signed.clone())?;
    if !joins && !state.policy().members.contains_key(&config.node) {
        return Err(InitError::NotAMember(config.node));
    }
    let disk = |path: &Path| {
        let path = path.to_owned();
        move |e| InitError::Disk(path, e)
    };
    std::fs::create_dir_all(layout.root()).map_err(disk(layout.root()))?;
    LogStore::create(&layout.raft_log())?;
    TileStore::create(&layout.tiles())?;
    Cosigner::init(layout.root()).map_err(disk(layout.root()))?;
    write_durably(&layout.genesis(), &encode(&signed)).map_err(disk(&layout.genesis()))?;
    Ok(state.cluster())
}

pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let draft = path.with_extension("draft");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
