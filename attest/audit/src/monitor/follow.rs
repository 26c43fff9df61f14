//! History as far as it is verified, and the next part of it: leaves from a node (or from the mirror, after a restart) go through
//! the state machine, and the very same leaves must come out; the checkpoint must be certified by who the state says. Only then
//! does anything of it count. Blobs are staged until then, and how much a node may send before it has proven anything is
//! bounded: leaves that are never certified can be had for nothing.
use super::alarm::Alarm;
use super::grow::{Growing, write};
use super::watch::Watch;
use crate::fetch::{Client, FetchError};
use crate::finding::{Error, Fault, Finding, Place};
use crate::replay::{self, Step};
use crate::store::{BLOB_BYTES_MAX, Mirror, StoredCheckpoint, tile_path};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use quorate_core::command::{Batch, Command};
use quorate_core::crypto::{Hash, sha256};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::refusal::Refusal;
use quorate_core::state::{Applied, Blobs, State};
use quorate_core::tlog::{
    BUNDLE_BYTES_MAX, LeafIndex, TILE_WIDTH, TileKind, TilePath, TreeSize, decode_bundle, leaf_hash,
};
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of one batch: its commands are 1,024 leaves at most, and what follows by itself is small.
const BATCH_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Most bytes of leaves and blobs that are taken before a certificate covers them; a log that is larger begins as a copy made by
/// `mirror`.
const UNPROVEN_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Leaves that are fetched to see whether a history that breaks the rules is really under a root, at most …
const LEAVES_MAX: u64 = 1 << 20;
/// … and for so long.
const LEAVES: Duration = Duration::from_secs(120);
/// Bundles fetched ahead: a first sync is as fast as one core replays. Each has 16 MiB at most, mostly some 150 KiB.
const AHEAD: usize = 8;
/// For one file of a node.
pub(super) const FILE: Duration = Duration::from_secs(20);

/// Where leaves come from.
pub(super) enum Source<'a> {
    /// A node's URL.
    Node(&'a Client, &'a str),
    /// The mirror itself, up to its checkpoint.
    Mirror,
}

/// Why it was not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFollowed {
    /// The node does not serve it.
    #[error("it does not serve what its checkpoint covers")]
    Fetch(#[source] FetchError),
    /// What it serves is wrong. Says nothing about whether its checkpoint is of this history.
    #[error(transparent)]
    Found(Box<Finding>),
    /// The monitor's own disk.
    #[error(transparent)]
    Own(Error),
}

impl From<Error> for NotFollowed {
    fn from(error: Error) -> Self {
        match error {
            Error::Found(finding) => Self::Found(finding),
            own => Self::Own(own),
        }
    }
}

impl From<Finding> for NotFollowed {
    fn from(finding: Finding) -> Self {
        Self::Found(Box::new(finding))
    }
}

/// Verified history.
#[derive(Clone)]
pub(super) struct Follower {
    pub(super) state: State,
    pub(super) watch: Watch,
}

impl Follower {
    /// Genesis, of which there is a leaf.
    pub(super) fn genesis(mirror: &Mirror, genesis: Hash) -> Result<(Self, Bytes), Error> {
        let signed = mirror.genesis()?;
        let wrong = |fault| Finding::at(Place::Genesis, fault);
        let got = sha256(&signed.document);
        if got != genesis {
            return Err(wrong(Fault::OtherGenesis { expected: genesis, got }).into());
        }
        let (state, leaf) =
            State::genesis(signed).map_err(|e| wrong(Fault::GenesisInvalid(crate::cli::chain(&e))))?;
        let watch = Watch::genesis(state.policy());
        Ok((Self { state, watch }, leaf.into()))
    }

    /// Leaves so far.
    pub(super) fn size(&self) -> TreeSize {
        self.state.tree().size()
    }

    /// This history and what comes after it up to a checkpoint, with what its leaves lead to. With `growing`, the leaves go into
    /// the mirror, whose checkpoint is left as it is.
    pub(super) async fn advance(
        &self,
        source: &Source<'_>,
        mirror: &Mirror,
        target: &StoredCheckpoint,
        mut growing: Option<&mut Growing<'_>>,
    ) -> Result<(Self, Vec<Alarm>), NotFollowed> {
        let (mut after, mut alarms, mut last) = (self.clone(), Vec::new(), None);
        let mut staged = Staged::new(mirror)?;
        let (first, size) = (self.size(), target.size());
        let (mut batch, mut batch_bytes, mut begins) = (Vec::new(), 0, LeafIndex(first.0));
        let mut skip = usize::try_from(first.0 % TILE_WIDTH).unwrap_or(usize::MAX);
        let mut bundles = std::pin::pin!(source.bundles(mirror, first, size));
        while let Some(leaves) = bundles.next().await {
            for bytes in leaves?.into_iter().skip(std::mem::take(&mut skip)) {
                let at = LeafIndex(begins.0.saturating_add(batch.len() as u64));
                let leaf: Leaf = borsh::from_slice(&bytes)
                    .map_err(|_| Finding::at(Place::Leaf(at), Fault::Undecodable))?;
                if let Some(growing) = growing.as_deref_mut() {
                    growing.push(bytes.clone())?;
                }
                let ends = matches!(leaf, Leaf::V1 { body: LeafBody::BatchEnd(_), .. });
                batch_bytes += bytes.len();
                staged.count(bytes.len())?;
                batch.push((bytes, leaf));
                if batch_bytes > BATCH_BYTES_MAX {
                    return Err(Finding::at(Place::Leaf(at), Fault::EndlessBatch(begins)).into());
                }
                if ends {
                    let leaves = std::mem::take(&mut batch);
                    batch_bytes = 0;
                    let applied = after.batch(source, &mut staged, begins, leaves, &mut alarms).await?;
                    begins = LeafIndex(applied.checkpoint.size.0);
                    last = Some(applied);
                }
            }
        }
        if !batch.is_empty() {
            return Err(Finding::at(Place::Checkpoint, Fault::NotABatchEnd).into());
        }
        let applied = last.ok_or_else(|| Finding::at(Place::Checkpoint, Fault::NotABatchEnd))?;
        replay::certify(target, &applied, &after.state)
            .map_err(|fault| Finding::at(Place::Checkpoint, fault))?;
        staged.keep()?;
        Ok((after, alarms))
    }

    /// Whether the leaves that a source serves beyond this history are those under a root, whatever they say.
    pub(super) async fn leads_to(
        &self,
        source: &Source<'_>,
        mirror: &Mirror,
        target: &StoredCheckpoint,
    ) -> bool {
        let (mut tree, size) = (self.state.tree().clone(), target.size());
        if size.0.saturating_sub(tree.size().0) > LEAVES_MAX {
            return false;
        }
        let read = async {
            let first = tree.size();
            let mut skip = usize::try_from(first.0 % TILE_WIDTH).unwrap_or(usize::MAX);
            let mut bundles = std::pin::pin!(source.bundles(mirror, first, size));
            while let Some(leaves) = bundles.next().await {
                let leaves = leaves?;
                leaves.iter().skip(std::mem::take(&mut skip)).for_each(|leaf| tree.push(leaf_hash(leaf)));
            }
            Ok::<_, NotFollowed>(tree.root())
        };
        let root = tokio::time::timeout(LEAVES, read).await;
        root.is_ok_and(|root| root.is_ok_and(|root| root == target.checkpoint.root))
    }

    async fn batch(
        &mut self,
        source: &Source<'_>,
        staged: &mut Staged<'_>,
        first: LeafIndex,
        leaves: Vec<(Bytes, Leaf)>,
        alarms: &mut Vec<Alarm>,
    ) -> Result<Applied, NotFollowed> {
        let Some((_, Leaf::V1 { time, body: LeafBody::BatchEnd(end) })) = leaves.last() else {
            return Err(Finding::at(Place::Leaf(first), Fault::Undecodable).into());
        };
        let (time, proposer) = (*time, end.proposer);
        let (mut said, mut commands, mut undecodable) = (Vec::with_capacity(leaves.len()), Vec::new(), None);
        for (index, (bytes, leaf)) in (first.0..).map(LeafIndex).zip(leaves) {
            let Leaf::V1 { time: leaf_time, body } = leaf;
            if leaf_time != time {
                let fault = Fault::Time { said: leaf_time, batch: time };
                return Err(Finding::at(Place::Leaf(index), fault).into());
            }
            match body {
                LeafBody::Decided { command, outcome } => {
                    if outcome != Outcome::Refused(Refusal::MissingBlob) {
                        source.blobs(staged, &command, index).await?;
                    }
                    commands.push(command);
                }
                LeafBody::Undecodable { entry } => undecodable = Some(entry),
                _ => {}
            }
            said.push(bytes);
        }
        let before = Arc::clone(self.state.policy());
        let applied = match undecodable {
            Some(entry) => self.state.apply_undecodable(entry),
            None => self.state.apply_batch(Batch { time, proposer, commands }, &*staged),
        };
        let alike = said.len() == applied.leaf_bytes.len()
            && said.iter().zip(&applied.leaf_bytes).all(|(said, rules)| said.as_ref() == rules.as_slice());
        if !alike {
            return Err(replay::difference(first, &said, &applied).into());
        }
        let step = Step {
            first,
            time,
            proposer,
            leaves: applied.leaves.clone(),
            checkpoint: applied.checkpoint,
            certifiers: applied.certifiers.clone(),
            certified: None,
        };
        alarms.extend(self.watch.observe(&step, &before, &self.state));
        Ok(applied)
    }
}

impl Source<'_> {
    /// The bundles from the one that leaf `first` is in, in order; some are fetched ahead of the one that is replayed.
    fn bundles<'s>(
        &'s self,
        mirror: &'s Mirror,
        first: TreeSize,
        size: TreeSize,
    ) -> impl Stream<Item = Result<Vec<Bytes>, NotFollowed>> + 's {
        let paths = (first.0 / TILE_WIDTH..).map_while(move |n| tile_path(TileKind::Entries, n, size));
        stream::iter(paths).map(move |path| async move { self.bundle(mirror, &path).await }).buffered(AHEAD)
    }

    async fn bundle(&self, mirror: &Mirror, path: &TilePath) -> Result<Vec<Bytes>, NotFollowed> {
        match self {
            Self::Mirror => Ok(mirror.bundle(path)?),
            Self::Node(client, url) => {
                let bytes = get(client, &format!("{url}/{path}"), BUNDLE_BYTES_MAX).await?;
                let leaves = decode_bundle(&bytes, path.width())
                    .map_err(|e| Finding::at(Place::Tile(*path), Fault::Tile(e)))?;
                Ok(leaves.into_iter().map(|leaf| bytes.slice_ref(leaf)).collect())
            }
        }
    }

    /// Every blob that a command names is at hand afterwards.
    async fn blobs(
        &self,
        staged: &mut Staged<'_>,
        command: &Command,
        at: LeafIndex,
    ) -> Result<(), NotFollowed> {
        for digest in command.blobs() {
            match (staged.get(&digest), self) {
                (Ok(_), _) => {}
                (Err(_), Self::Node(client, url)) => {
                    let bytes = get(client, &format!("{url}/blob/{digest}"), BLOB_BYTES_MAX).await?;
                    let got = sha256(&bytes);
                    if got != digest {
                        let fault = Fault::OtherDigest(got);
                        return Err(Finding::at(Place::Blob(digest, Some(at)), fault).into());
                    }
                    staged.put(&digest, &bytes)?;
                }
                (Err(error), Self::Mirror) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

async fn get(client: &Client, url: &str, bytes_max: usize) -> Result<Bytes, NotFollowed> {
    match tokio::time::timeout(FILE, client.get(url, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(NotFollowed::Fetch(error)),
        Err(_) => Err(NotFollowed::Fetch(FetchError::TooSlow(url.to_owned()))),
    }
}

/// Blobs of leaves that nobody has certified yet, beside the mirror; gone if it comes to nothing.
struct Staged<'m> {
    mirror: &'m Mirror,
    beside: Mirror,
    bytes: u64,
}

impl<'m> Staged<'m> {
    fn new(mirror: &'m Mirror) -> Result<Self, Error> {
        let dir = mirror.dir().join("monitor").join("staged");
        // What a crash left.
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::disk("remove", dir)(e)),
            _ => Ok(Self { mirror, beside: Mirror::at(&dir), bytes: 0 }),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), NotFollowed> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        match self.bytes > UNPROVEN_BYTES_MAX {
            true => Err(Finding::at(Place::Checkpoint, Fault::TooLong(UNPROVEN_BYTES_MAX)).into()),
            false => Ok(()),
        }
    }

    fn get(&self, digest: &Hash) -> Result<Vec<u8>, Error> {
        self.mirror.blob(digest).or_else(|_| self.beside.blob(digest))
    }

    fn put(&mut self, digest: &Hash, bytes: &[u8]) -> Result<(), NotFollowed> {
        self.count(bytes.len())?;
        Ok(write(&self.beside.blob_path(digest), bytes)?)
    }

    /// A certificate covers the leaves that name them.
    fn keep(&self) -> Result<(), Error> {
        let from = self.beside.dir().join("blob");
        let to = self.mirror.dir().join("blob");
        let entries = match std::fs::read_dir(&from) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::disk("list", from)(e)),
        };
        std::fs::create_dir_all(&to).map_err(Error::disk("create", &to))?;
        for entry in entries {
            let name = entry.map_err(Error::disk("list", &from))?.file_name();
            std::fs::rename(from.join(&name), to.join(&name))
                .map_err(Error::disk("move", from.join(&name)))?;
        }
        std::fs::File::open(&to).and_then(|dir| dir.sync_all()).map_err(Error::disk("sync", to))
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(self.beside.dir());
    }
}

impl Blobs for Staged<'_> {
    /// What must be there was made sure of before.
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        self.get(digest).ok()
    }
}
