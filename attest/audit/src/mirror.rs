//! `mirror URL DIR`: a copy of a log, each file checked as it comes.
//!
//! ```text
//! checkpoint ─► right edge: does it lead to the root? ─► does the root extend what is here already? ─► tiles from the top down,
//! each against the one above ─► bundles, each leaf against its tile ─► blobs that leaves name ─► last, the checkpoint
//! ```
//! The checkpoint's file is replaced when everything under it is on disk, so that a run that was killed leaves a whole, older
//! mirror, and the next one fetches what is missing. Files that are there are checked like those that come.
//!
//! Who signed the checkpoint is not decided here: that takes the history, which [`crate::verify`] replays. A source that serves
//! nonsense under a checkpoint of its own gets it mirrored, and refused then. A checkpoint that contradicts one that was
//! mirrored before is kept under `forks/`: the two together convict whoever signed both.
use crate::cli::{Exit, Failure, Outcome, chain, findings, say, say_json};
use crate::fetch::{Client, FetchError};
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::{
    BLOB_BYTES_MAX, GENESIS_BYTES_MAX, Mirror, Need, StoredCheckpoint, known_node, tile_path,
};
use crate::words;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate_core::crypto::{Hash, sha256};
use quorate_core::leaf::{Leaf, LeafBody};
use quorate_core::policy::{Policy, SignedPolicy};
use quorate_core::tlog::note::NOTE_BYTES_MAX;
use quorate_core::tlog::{
    BUNDLE_BYTES_MAX, FULL_TILE_BYTES, LeafIndex, NodeReader, ProveError, TILE_HEIGHT, TILE_WIDTH, TileKind,
    TilePath, TreeSize, decode_bundle, decode_tile, leaf_hash, prove_consistency, root_at, tree_root,
    verify_consistency,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of older checkpoints those are kept that are at least this many leaves apart: a mirror that runs every minute keeps few.
const OLDER_SPACING: u64 = 4096;

/// Copies a log. Run it again to resume or to follow: it fetches what is new and refuses what contradicts what it has.
#[derive(clap::Args)]
pub struct MirrorArgs {
    /// A node's HTTP address, such as http://node-1.example:7102, or another mirror's
    url: String,
    /// The folder; made if there is none
    dir: PathBuf,
    /// SHA-256 of policy version 1, 64 hex digits; without it, whatever genesis is served is mirrored and named
    #[arg(long, env = "QUORATE_GENESIS", value_name = "HEX")]
    genesis: Option<Hash>,
    /// Ask there too for what the first does not have; repeatable
    #[arg(long, value_name = "URL")]
    also: Vec<String>,
    /// Requests at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Why a copy did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Nothing came, or not all.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What came is wrong, or the disk failed.
    #[error(transparent)]
    Audit(#[from] Error),
    /// Blobs that no source has.
    #[error(
        "{count} blob(s) that leaves name were not to be had; the first is {first}, named by leaf {leaf}"
    )]
    Blobs {
        /// How many.
        count: usize,
        /// One of them.
        first: Hash,
        /// Where it is named.
        leaf: LeafIndex,
    },
}

impl From<Finding> for MirrorError {
    fn from(finding: Finding) -> Self {
        Self::Audit(finding.into())
    }
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mirrored {
    /// Digest of the genesis policy that the log rests on.
    pub genesis: Hash,
    /// Leaves before.
    pub before: TreeSize,
    /// Leaves now.
    pub size: TreeSize,
    /// Root now.
    pub root: Hash,
    /// Bytes fetched.
    pub bytes: u64,
    /// Blobs fetched.
    pub blobs: u64,
    /// The source is behind what is here already, and agrees with it as far as it goes.
    pub source_lags: bool,
}

/// Where from, and how.
#[derive(Debug, Clone)]
pub struct Source {
    /// Asked in order.
    pub urls: Vec<String>,
    /// The genesis digest, if the caller knows it.
    pub genesis: Option<Hash>,
    /// Requests at a time.
    pub connections: usize,
}

/// The subcommand.
pub fn run(args: MirrorArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(format!("cannot start: {e}"), ""))?;
    let urls = std::iter::once(&args.url).chain(&args.also);
    let source = Source {
        urls: urls.map(|u| u.trim_end_matches('/').to_owned()).collect(),
        genesis: args.genesis,
        connections: args.connections.into(),
    };
    let bar = progress_bar("mirroring");
    let mirror = Mirror::at(&args.dir);
    let watch = |done: TreeSize, size: TreeSize| {
        bar.set_length(size.0);
        bar.set_position(done.0);
    };
    let mirrored = runtime.block_on(mirror_log(&Client::new(), &source, &mirror, &watch));
    bar.finish_and_clear();
    match mirrored {
        Ok(mirrored) if args.json => say_json(&mirrored).map(|()| Exit::Good),
        Ok(mirrored) => say(&describe(&mirrored, &args)).map(|()| Exit::Good),
        Err(MirrorError::Audit(Error::Found(finding))) => {
            if args.json {
                say_json(&serde_json::json!({ "findings": [finding.to_json()] }))?;
            } else {
                say(&format!("REFUSED: {} does not fit\n\n{}", args.url, findings(&[*finding])))?;
            }
            Ok(Exit::ProvenWrong)
        }
        Err(MirrorError::Audit(error)) => Err(error.into()),
        Err(error @ MirrorError::Fetch(_)) => Err(Failure::new(
            chain(&error),
            "what came is kept: run it again to go on, or with `--also URL` of another node",
        )),
        Err(error @ MirrorError::Blobs { .. }) => Err(Failure::new(
            chain(&error),
            "run it again with `--also URL` of another node; what came is kept",
        )),
    }
}

fn describe(m: &Mirrored, args: &MirrorArgs) -> String {
    let dir = args.dir.display();
    let mut text = match (m.source_lags, m.size.0 - m.before.0) {
        (true, _) => {
            format!("the source is behind: {dir} has {} leaves, and they agree\n", words::count(m.size.0))
        }
        (false, 0) => format!("nothing new: {} leaves\n", words::count(m.size.0)),
        (false, new) => format!(
            "{} new leaves, {} in all; {} new blob(s); {:.1} MB fetched\n",
            words::count(new),
            words::count(m.size.0),
            m.blobs,
            m.bytes as f64 / 1e6
        ),
    };
    text.push_str(&format!("root          {}\ngenesis       {}\n", m.root, m.genesis));
    if args.genesis.is_none() {
        text.push_str("              (as served: compare it with what your admins told you)\n");
    }
    text.push_str(&format!("\nnext: quorate-audit verify {dir} --genesis {}\n", m.genesis));
    text
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar:.cyan/blue} {human_pos}/{human_len} leaves  {per_sec}  {eta} left",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}

/// Told how many leaves are here, and how many there will be.
pub type Watch<'w> = &'w (dyn Fn(TreeSize, TreeSize) + Sync);

/// Copies what a source serves under its newest checkpoint.
pub async fn mirror_log(
    client: &Client,
    source: &Source,
    mirror: &Mirror,
    watch: Watch<'_>,
) -> Result<Mirrored, MirrorError> {
    let copy = Copy { client, source, mirror, bytes: AtomicU64::new(0), blobs: AtomicU64::new(0) };
    let [first, ..] = source.urls.as_slice() else { return Err(FetchError::Url(String::new()).into()) };
    let note = copy.get_from(first, "checkpoint", NOTE_BYTES_MAX).await?;
    let offered = StoredCheckpoint::parse(&note).map_err(|fault| Finding::at(Place::Checkpoint, fault))?;
    let held = match mirror.newest() {
        Ok(held) => Some(held),
        Err(Error::Found(finding)) if finding.fault == Fault::Missing => None,
        Err(error) => return Err(error.into()),
    };
    let genesis = copy.genesis(&offered).await?;
    let before = held.as_ref().map_or(TreeSize::ZERO, StoredCheckpoint::size);
    let mut done = Mirrored {
        genesis,
        before,
        size: offered.size(),
        root: offered.checkpoint.root,
        bytes: 0,
        blobs: 0,
        source_lags: false,
    };
    if let Some(held) = held.as_ref().filter(|held| offered.size() <= held.size()) {
        let root = root_at(&mirror.tree(held.size()), offered.size())?;
        if root != offered.checkpoint.root {
            return Err(copy.fork(&note, &offered, root)?.into());
        }
        (done.size, done.root) = (held.size(), held.checkpoint.root);
        done.source_lags = offered.size() < held.size();
        return Ok(done);
    }
    copy.tiles(&offered, held.as_ref(), &note).await?;
    copy.leaves(offered.size(), before, watch).await?;
    copy.publish(&note, &offered, held.as_ref())?;
    done.bytes = copy.bytes.into_inner();
    done.blobs = copy.blobs.into_inner();
    Ok(done)
}

struct Copy<'a> {
    client: &'a Client,
    source: &'a Source,
    mirror: &'a Mirror,
    bytes: AtomicU64,
    blobs: AtomicU64,
}

/// A tree as far as its tiles are known.
struct Known {
    size: TreeSize,
    tiles: Mutex<BTreeMap<TilePath, Vec<Hash>>>,
}

impl Known {
    fn tiles(&self) -> MutexGuard<'_, BTreeMap<TilePath, Vec<Hash>>> {
        self.tiles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeReader for Known {
    type Error = Need;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Need> {
        known_node(level, index, self.size, &self.tiles())
    }
}

impl Copy<'_> {
    async fn get_from(&self, url: &str, path: &str, bytes_max: usize) -> Result<Bytes, FetchError> {
        let bytes = self.client.get(&format!("{url}/{path}"), bytes_max).await?;
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// From the first source whose answer is accepted. What is wrong is said of the first that gave anything.
    async fn get<T>(
        &self,
        path: &str,
        bytes_max: usize,
        accept: impl Fn(&Bytes) -> Result<T, Error>,
    ) -> Result<(Bytes, T), MirrorError> {
        let mut failed: Option<MirrorError> = None;
        for url in &self.source.urls {
            let got = self.get_from(url, path, bytes_max).await;
            let accepted = match got {
                Ok(bytes) => accept(&bytes).map(|accepted| (bytes, accepted)).map_err(MirrorError::from),
                Err(error) => Err(error.into()),
            };
            match accepted {
                Ok(accepted) => return Ok(accepted),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| FetchError::Url(String::new()).into()))
    }

    /// The genesis policy, mirrored if it is not here; the checkpoint must be of its log.
    async fn genesis(&self, offered: &StoredCheckpoint) -> Result<Hash, MirrorError> {
        let wrong = |fault| Finding::at(Place::Genesis, fault);
        let accept = |signed: &SignedPolicy| -> Result<Hash, Error> {
            let digest = sha256(&signed.document);
            if let Some(expected) = self.source.genesis.filter(|expected| *expected != digest) {
                return Err(wrong(Fault::OtherGenesis { expected, got: digest }).into());
            }
            let policy =
                Policy::parse(&signed.document).map_err(|e| wrong(Fault::GenesisInvalid(e.to_string())))?;
            let (expected, said) =
                (Policy::origin(&policy.cluster, &digest), offered.checkpoint.origin.clone());
            if said != expected {
                return Err(Finding::at(Place::Checkpoint, Fault::OtherOrigin { said, expected }).into());
            }
            Ok(digest)
        };
        match self.mirror.genesis() {
            Ok(signed) => return Ok(accept(&signed)?),
            Err(Error::Found(finding)) if finding.fault == Fault::Missing => {}
            Err(error) => return Err(error.into()),
        }
        let decode = |bytes: &Bytes| {
            let signed: SignedPolicy = borsh::from_slice(bytes).map_err(|_| wrong(Fault::Undecodable))?;
            Ok((accept(&signed)?, signed))
        };
        let (bytes, (digest, signed)) = self.get("genesis", GENESIS_BYTES_MAX, decode).await?;
        write(self.mirror, &self.mirror.blob_path(&digest), &signed.document)?;
        write(self.mirror, &self.mirror.genesis_path(), &bytes)?;
        Ok(digest)
    }

    /// Two roots at one size: keeps what was offered.
    fn fork(&self, note: &[u8], offered: &StoredCheckpoint, held: Hash) -> Result<Finding, Error> {
        let said = offered.checkpoint.root;
        let name = format!("{}-{said}", offered.size());
        write(self.mirror, &self.mirror.dir().join("forks").join(name), note)?;
        Ok(Finding::at(Place::Checkpoint, Fault::Fork { said, held }))
    }

    /// Checks the root, that it extends what is here, and fetches every tile above level 0.
    async fn tiles(
        &self,
        offered: &StoredCheckpoint,
        held: Option<&StoredCheckpoint>,
        note: &[u8],
    ) -> Result<(), MirrorError> {
        let (size, root) = (offered.size(), offered.checkpoint.root);
        let known = Known { size, tiles: Mutex::default() };
        let wrong = |fault| Finding::at(Place::Checkpoint, fault);
        let computed = loop {
            match root_at(&known, size) {
                Ok(computed) => break computed,
                Err(need) => self.learn(&known, need).await?,
            }
        };
        if computed != root {
            return Err(wrong(Fault::Root { said: root, computed }).into());
        }
        if let Some(held) = held {
            let proof = loop {
                match prove_consistency(&known, held.size(), size) {
                    Ok(proof) => break proof,
                    Err(ProveError::Reader(need)) => self.learn(&known, need).await?,
                    Err(ProveError::Unprovable(_)) => return Err(wrong(Fault::OtherSize(size)).into()),
                }
            };
            let extends = verify_consistency(held.size(), held.checkpoint.root, size, root, &proof);
            if extends.is_err() {
                return Err(self.fork(note, offered, held.checkpoint.root)?.into());
            }
        }
        let before = held.map_or(0, |held| held.size().0);
        for level in (1..TILE_HEIGHT).rev() {
            let first = before.checked_shr(u32::from(TILE_HEIGHT) * (u32::from(level) + 1)).unwrap_or(0);
            for index in first.. {
                let Some(path) = tile_path(TileKind::Hashes(level), index, size) else { break };
                self.tile(&path, size, &known).await?;
            }
        }
        // The open tile of level 0 cannot be checked against one above it: it was part of the root.
        if let Some((path, hashes)) = tile_path(TileKind::Hashes(0), size.0 / TILE_WIDTH, size)
            .and_then(|path| Some((path, known.tiles().get(&path)?.clone())))
        {
            write(self.mirror, &self.mirror.tile_file(&path), &quorate_core::tlog::encode_tile(&hashes))?;
        }
        Ok(())
    }

    /// Fetches a tile that a proof needs. It is believed as far as the proof verifies.
    async fn learn(&self, known: &Known, need: Need) -> Result<(), MirrorError> {
        let size = known.size;
        let path = need.0.ok_or_else(|| Finding::at(Place::Checkpoint, Fault::OtherSize(size)))?;
        let (_, hashes) = self.get(&path.to_string(), FULL_TILE_BYTES, |b| decoded(&path, b)).await?;
        known.tiles().insert(path, hashes);
        Ok(())
    }

    /// A tile: from the disk, from what a proof took, or fetched; on disk at the end.
    async fn tile(&self, path: &TilePath, size: TreeSize, known: &Known) -> Result<Vec<Hash>, MirrorError> {
        let expected = self.expected(path, size)?;
        if let Some(hashes) = self.on_disk(path, expected) {
            return Ok(hashes);
        }
        let learnt = known.tiles().get(path).cloned();
        let accept = |hashes: Vec<Hash>| match expected {
            Some((above, root)) if tree_root(&hashes) != root => {
                Err(Error::from(Finding::at(Place::Tile(*path), Fault::TileRoot(above))))
            }
            _ => Ok(hashes),
        };
        let hashes = match learnt {
            Some(hashes) => accept(hashes)?,
            None => self.get(&path.to_string(), FULL_TILE_BYTES, |b| accept(decoded(path, b)?)).await?.1,
        };
        write(self.mirror, &self.mirror.tile_file(path), &quorate_core::tlog::encode_tile(&hashes))?;
        Ok(hashes)
    }

    /// The root that a full tile must have, by the tile above it, which is on disk.
    fn expected(&self, path: &TilePath, size: TreeSize) -> Result<Option<(TilePath, Hash)>, Error> {
        let TileKind::Hashes(level) = path.kind() else { return Ok(None) };
        if !path.is_full() {
            return Ok(None);
        }
        let above = tile_path(TileKind::Hashes(level + 1), path.index() / TILE_WIDTH, size);
        let Some(above) = above else { return Ok(None) };
        let row = self.mirror.hashes(&above)?;
        let at = usize::try_from(path.index() % TILE_WIDTH).unwrap_or(usize::MAX);
        Ok(row.get(at).map(|root| (above, *root)))
    }

    /// A full tile that an earlier run left, if it is the right one.
    fn on_disk(&self, path: &TilePath, expected: Option<(TilePath, Hash)>) -> Option<Vec<Hash>> {
        let (_, root) = expected?;
        self.mirror.hashes(path).ok().filter(|hashes| tree_root(hashes) == root)
    }

    /// Tiles of level 0, bundles, and the blobs that leaves name, from leaf `before` on.
    async fn leaves(&self, size: TreeSize, before: TreeSize, watch: Watch<'_>) -> Result<(), MirrorError> {
        let known = Known { size, tiles: Mutex::default() };
        let here = AtomicU64::new(before.0);
        watch(before, size);
        let numbers = before.0 / TILE_WIDTH..size.0.div_ceil(TILE_WIDTH);
        let mut jobs = stream::iter(numbers)
            .map(|number| {
                let known = &known;
                async move { self.bundle(number, size, known).await }
            })
            .buffer_unordered(self.source.connections);
        let mut missing: BTreeMap<LeafIndex, Hash> = BTreeMap::new();
        while let Some(done) = jobs.next().await {
            let (leaves, lacking) = done?;
            missing.extend(lacking);
            let so_far = here.fetch_add(leaves, Ordering::Relaxed) + leaves;
            watch(TreeSize(so_far.min(size.0)), size);
        }
        match missing.first_key_value() {
            None => Ok(()),
            Some((leaf, first)) => {
                let count = missing.values().collect::<BTreeSet<_>>().len();
                Err(MirrorError::Blobs { count, first: *first, leaf: *leaf })
            }
        }
    }

    /// One bundle with its tile and blobs: how many leaves, and which blobs nobody has.
    async fn bundle(
        &self,
        number: u64,
        size: TreeSize,
        known: &Known,
    ) -> Result<(u64, Vec<(LeafIndex, Hash)>), MirrorError> {
        let none = || Finding::at(Place::Checkpoint, Fault::OtherSize(size));
        let tile = tile_path(TileKind::Hashes(0), number, size).ok_or_else(none)?;
        let entries = tile_path(TileKind::Entries, number, size).ok_or_else(none)?;
        // The open one was written with the root.
        let hashes =
            if tile.is_full() { self.tile(&tile, size, known).await? } else { self.mirror.hashes(&tile)? };
        let first = number.saturating_mul(TILE_WIDTH);
        let accept = |bytes: &Bytes| -> Result<Vec<Bytes>, Error> {
            let leaves = decode_bundle(bytes, entries.width())
                .map_err(|e| Finding::at(Place::Tile(entries), Fault::Tile(e)))?;
            let mut compared = (first..).zip(&leaves).zip(&hashes);
            match compared.find(|((_, leaf), hash)| leaf_hash(leaf) != **hash) {
                Some(((at, _), _)) => {
                    Err(Finding::at(Place::Leaf(LeafIndex(at)), Fault::LeafHash(tile)).into())
                }
                None => Ok(leaves.into_iter().map(|leaf| bytes.slice_ref(leaf)).collect()),
            }
        };
        let file = self.mirror.tile_file(&entries);
        let here = std::fs::read(&file).ok().map(Bytes::from).and_then(|bytes| accept(&bytes).ok());
        let leaves = match here {
            Some(leaves) => leaves,
            None => {
                let (bytes, leaves) = self.get(&entries.to_string(), BUNDLE_BYTES_MAX, accept).await?;
                write(self.mirror, &file, &bytes)?;
                leaves
            }
        };
        let mut lacking = Vec::new();
        for (at, leaf) in (first..).map(LeafIndex).zip(&leaves) {
            for digest in blobs_of(leaf) {
                if !self.blob(&digest).await? {
                    lacking.push((at, digest));
                }
            }
        }
        Ok((leaves.len() as u64, lacking))
    }

    /// Whether a blob is here at the end.
    async fn blob(&self, digest: &Hash) -> Result<bool, MirrorError> {
        if self.mirror.has_blob(digest) {
            return Ok(true);
        }
        let accept = |bytes: &Bytes| match sha256(bytes) {
            got if got == *digest => Ok(()),
            got => Err(Error::from(Finding::at(Place::Blob(*digest, None), Fault::OtherDigest(got)))),
        };
        match self.get(&format!("blob/{digest}"), BLOB_BYTES_MAX, accept).await {
            Ok((bytes, ())) => {
                self.blobs.fetch_add(1, Ordering::Relaxed);
                write(self.mirror, &self.mirror.blob_path(digest), &bytes)?;
                Ok(true)
            }
            Err(MirrorError::Fetch(error)) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Everything is here: the checkpoint takes its place, the old one steps aside, and partial tiles of it go.
    fn publish(
        &self,
        note: &[u8],
        offered: &StoredCheckpoint,
        held: Option<&StoredCheckpoint>,
    ) -> Result<(), Error> {
        if let Some(held) = held {
            let last = self.mirror.older()?.last().map_or(0, |size| size.0);
            if held.size().0.saturating_sub(last) >= OLDER_SPACING {
                write(self.mirror, &self.mirror.older_path(held.size()), held.note.to_string().as_bytes())?;
            }
        }
        write(self.mirror, &self.mirror.checkpoint_path(), note)?;
        // What stays behind here and below harms nobody.
        let _left = std::fs::remove_dir_all(drafts(self.mirror));
        if let Some(held) = held {
            let now: BTreeSet<TilePath> = open_tiles(offered.size()).collect();
            for path in open_tiles(held.size()).filter(|path| !now.contains(path)) {
                let file = self.mirror.tile_file(&path);
                let _left = std::fs::remove_file(&file);
                let _not_empty = file.parent().map(std::fs::remove_dir);
            }
        }
        Ok(())
    }
}

/// The partial tiles and bundle of a tree.
fn open_tiles(size: TreeSize) -> impl Iterator<Item = TilePath> {
    let last = move |kind| {
        let level = if let TileKind::Hashes(level) = kind { level } else { 0 };
        let number = size.0.checked_shr(u32::from(TILE_HEIGHT) * (u32::from(level) + 1))?;
        tile_path(kind, number, size)
    };
    (0..TILE_HEIGHT).map(TileKind::Hashes).chain([TileKind::Entries]).filter_map(last)
}

/// The blobs that a leaf's command names.
fn blobs_of(leaf: &[u8]) -> Vec<Hash> {
    match borsh::from_slice(leaf) {
        Ok(Leaf::V1 { body: LeafBody::Decided { command, .. }, .. }) => command.blobs(),
        _ => Vec::new(),
    }
}

fn decoded(path: &TilePath, bytes: &[u8]) -> Result<Vec<Hash>, Error> {
    decode_tile(bytes, path.width()).map_err(|e| Finding::at(Place::Tile(*path), Fault::Tile(e)).into())
}

/// Writes a file durably among the drafts, then renames it. Drafts that a killed run left go when one comes to its end.
fn write(mirror: &Mirror, file: &Path, bytes: &[u8]) -> Result<(), Error> {
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let draft = format!("{}-{}", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed));
    let draft = drafts(mirror).join(draft);
    let written = || -> std::io::Result<()> {
        for folder in [draft.parent(), file.parent()].into_iter().flatten() {
            std::fs::create_dir_all(folder)?;
        }
        let mut out = std::fs::File::create(&draft)?;
        out.write_all(bytes)?;
        out.sync_data()?;
        std::fs::rename(&draft, file)
    };
    written().map_err(Error::disk("write", file))
}

fn drafts(mirror: &Mirror) -> PathBuf {
    mirror.dir().join("drafts")
}
