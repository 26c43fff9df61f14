//! Assembling [`Proof`]s: the directory (the newest certified state) and receipts (one request under it).
//!
//! Nothing here decides anything: whoever reads a proof verifies it from the genesis digest. What this module must get right
//! is that the parts belong together: cosignatures, batch end, evidence and consistency proofs are all of one checkpoint.
//!
//! A receipt names leaves by position. Positions of what ended are kept in a bounded [`RequestIndex`], because the state
//! forgets requests after their deadline; a node that restarts reads the newest leaves again, and finds no older requests.
use crate::blobs::BlobStore;
use crate::ledger::{Certified, Ledger};
use crate::services::status::Problem;
use crate::tilestore::{StoreError, TileReader};
use bytes::Bytes;
use quorate_core::command::{ClientCommand, Command, NodeCommand};
use quorate_core::crypto::{Hash, encode};
use quorate_core::ids::{NodeId, PolicyVersion, RequestId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::policy::{Policy, SignedPolicy};
use quorate_core::proof::{PROOF_BYTES_MAX, Proof, ProvenEvidence, ProvenLeaf, taken};
use quorate_core::state::{AppliedLeaf, Blobs};
use quorate_core::tlog::{LeafIndex, TILE_WIDTH, TileKind, TilePath, TreeSize, decode_bundle, sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A directory this old is good enough: a proof costs file reads and tens of hashes.
const REBUILD_AFTER: Duration = Duration::from_millis(200);
/// How long a receipt waits for the relay's settlement to be certified.
const SETTLEMENT_WAIT: Duration = Duration::from_secs(5);
/// Requests whose leaves are remembered at the most, and half as many at the least, some 50 bytes each: minutes at 800 a second.
const INDEX_MAX: usize = 393_216;
/// Leaves that a starting node reads again for its index: some 80 MB at the most, before it serves. A
/// receipt of an older request needs `quorate-audit prove`.
pub const RECALLED: u64 = 131_072;

/// Every policy version from genesis on, as files.
#[derive(Clone)]
pub struct PolicyChain {
    folder: Arc<PathBuf>,
    chain: Arc<RwLock<Versions>>,
}

#[derive(Default)]
struct Versions {
    signed: Vec<Arc<SignedPolicy>>,
    /// Strangers ask by digest; no document is hashed for them.
    by_digest: HashMap<Hash, Arc<SignedPolicy>>,
}

impl Versions {
    fn push(&mut self, signed: SignedPolicy) {
        let signed = Arc::new(signed);
        self.by_digest.insert(sha256(&signed.document), Arc::clone(&signed));
        self.signed.push(signed);
    }
}

/// Why the policy chain cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The disk.
    #[error("cannot read or write the policy chain in {0}")]
    Disk(PathBuf, #[source] std::io::Error),
    /// A file that is no signed policy of its number.
    #[error("{0} is not the policy of that version")]
    Damaged(PathBuf),
    /// A version that does not follow the last one.
    #[error("policy version {got} does not follow version {last}")]
    Gap {
        /// The last one kept.
        last: PolicyVersion,
        /// The one offered.
        got: PolicyVersion,
    },
    /// A document that does not parse.
    #[error("the policy document is not valid")]
    Invalid,
}

impl PolicyChain {
    /// Opens the folder, writing genesis where there is nothing yet.
    pub fn open(folder: &Path, genesis: SignedPolicy) -> Result<Self, ChainError> {
        let disk = |e| ChainError::Disk(folder.into(), e);
        std::fs::create_dir_all(folder).map_err(disk)?;
        let this = Self { folder: Arc::new(folder.into()), chain: Arc::default() };
        for version in 1.. {
            let path = this.path(PolicyVersion(version));
            let signed: SignedPolicy = match std::fs::read(&path) {
                Ok(bytes) => borsh::from_slice(&bytes).map_err(|_| ChainError::Damaged(path.clone()))?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => break,
                Err(e) => return Err(disk(e)),
            };
            let parsed = Policy::parse(&signed.document).map_err(|_| ChainError::Damaged(path.clone()))?;
            let first_differs = version == 1 && signed.document != genesis.document;
            if parsed.version.0 != version || first_differs {
                return Err(ChainError::Damaged(path));
            }
            this.write().push(signed);
        }
        if this.len() == 0 {
            this.push(genesis)?;
        }
        Ok(this)
    }

    /// Keeps the next version, fsynced. A version that is there already is left alone: entries are applied again at start.
    pub fn push(&self, signed: SignedPolicy) -> Result<(), ChainError> {
        let got = Policy::parse(&signed.document).map_err(|_| ChainError::Invalid)?.version;
        let last = PolicyVersion(self.len());
        if got <= last {
            return Ok(());
        }
        if got.0 != last.0.saturating_add(1) {
            return Err(ChainError::Gap { last, got });
        }
        let path = self.path(got);
        let draft = path.with_extension("draft");
        let written = || -> std::io::Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(&encode(&signed))?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            File::open(self.folder.as_path())?.sync_all()
        };
        written().map_err(|e| ChainError::Disk(path.clone(), e))?;
        self.write().push(signed);
        Ok(())
    }

    /// Versions 1 to `version`; `None` when one is missing here.
    pub fn upto(&self, version: PolicyVersion) -> Option<Vec<SignedPolicy>> {
        let chain = self.chain.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = usize::try_from(version.0).ok()?;
        Some(chain.signed.get(..wanted)?.iter().map(|signed| SignedPolicy::clone(signed)).collect())
    }

    /// The document of that digest, if one of the versions is it.
    pub fn document(&self, digest: &Hash) -> Option<Vec<u8>> {
        let found = {
            let chain = self.chain.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(chain.by_digest.get(digest)?)
        };
        Some(found.document.clone())
    }

    /// The newest version kept.
    pub fn newest(&self) -> PolicyVersion {
        PolicyVersion(self.len())
    }

    fn len(&self) -> u64 {
        self.chain.read().unwrap_or_else(PoisonError::into_inner).signed.len() as u64
    }
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Versions> {
        self.chain.write().unwrap_or_else(PoisonError::into_inner)
    }
    fn path(&self, version: PolicyVersion) -> PathBuf {
        self.folder.join(policy_file(version))
    }
}

/// The name of a policy's file.
pub(crate) fn policy_file(version: PolicyVersion) -> String {
    format!("policy-{:08}", version.0)
}

/// Where the leaves of one request stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestLeaves {
    /// The authorisation.
    pub authorised: Option<LeafIndex>,
    /// The relay's settlement, or the log's word that there was none in time.
    pub settled: Option<LeafIndex>,
    /// The client's report, or the same of it.
    pub reported: Option<LeafIndex>,
}

/// Leaves by request, of the newest requests, see [`INDEX_MAX`].
#[derive(Default)]
pub struct RequestIndex {
    inner: Mutex<IndexInner>,
    settled: Notify,
}

/// Two generations: when the younger is full, the older goes. That costs no list of who came first.
#[derive(Default)]
struct IndexInner {
    young: HashMap<RequestId, Packed>,
    old: HashMap<RequestId, Packed>,
}

impl IndexInner {
    fn get_mut(&mut self, request: &RequestId) -> Option<&mut Packed> {
        // Not `or_else`: that would borrow both for as long as the answer lives.
        match self.young.get_mut(request) {
            Some(packed) => Some(packed),
            None => self.old.get_mut(request),
        }
    }
}

/// [`RequestLeaves`] of an authorised request, the others as distances from it. There are many.
#[derive(Clone, Copy)]
struct Packed {
    authorised: u64,
    settled: u32,
    reported: u32,
}

impl Packed {
    fn of(leaves: RequestLeaves) -> Option<Self> {
        let authorised = leaves.authorised?.0;
        // Both come later, if at all. What is four thousand million leaves away is not found.
        let away = |leaf: Option<LeafIndex>| {
            leaf.and_then(|l| u32::try_from(l.0.checked_sub(authorised)?).ok()).unwrap_or(0)
        };
        Some(Self { authorised, settled: away(leaves.settled), reported: away(leaves.reported) })
    }

    fn leaves(self) -> RequestLeaves {
        let at = |away: u32| (away > 0).then(|| LeafIndex(self.authorised + u64::from(away)));
        RequestLeaves {
            authorised: Some(LeafIndex(self.authorised)),
            settled: at(self.settled),
            reported: at(self.reported),
        }
    }
}

impl RequestIndex {
    /// To be called for each applied leaf, in order.
    pub fn on_leaf(&self, applied: &AppliedLeaf) {
        self.enter(applied.leaf(), applied.index());
    }

    /// Reads the newest leaves again, oldest first, so that a node which restarts still finds the requests of before. What cannot
    /// be read is left out: nothing here decides anything, and the store says of what is damaged wherever that matters.
    pub fn recall(&self, tiles: &TileReader) {
        let size = tiles.size().0;
        let mut at = size.saturating_sub(RECALLED) / TILE_WIDTH * TILE_WIDTH;
        while at < size {
            if let Err(error) = self.recall_bundle(tiles, at) {
                tracing::warn!(
                    error = crate::report::chain(&error),
                    at,
                    "leaves before the start are not indexed"
                );
            }
            at += TILE_WIDTH;
        }
    }

    fn recall_bundle(&self, tiles: &TileReader, at: u64) -> Result<(), StoreError> {
        let width = u16::try_from((tiles.size().0 - at).min(TILE_WIDTH)).unwrap_or(u16::MAX);
        let damaged = |source| StoreError::Damaged { path: TilePath::bundle_of(LeafIndex(at)).0, source };
        let path = TilePath::of_width(TileKind::Entries, at / TILE_WIDTH, width).map_err(damaged)?;
        let bundle = tiles.tile(&path)?;
        for (index, bytes) in (at..).zip(decode_bundle(&bundle, width).map_err(damaged)?) {
            if let Ok(leaf) = borsh::from_slice::<Leaf>(bytes) {
                self.enter(&leaf, LeafIndex(index));
            }
        }
        Ok(())
    }

    fn enter(&self, leaf: &Leaf, index: LeafIndex) {
        let Leaf::V1 { body, .. } = leaf;
        if let LeafBody::Unsettled { request, relay, client } = body {
            self.update(request, |leaves| {
                let at = Some(index);
                leaves.settled = if *relay { at } else { leaves.settled };
                leaves.reported = if *client { at } else { leaves.reported };
            });
            return self.settled.notify_waiters();
        }
        let LeafBody::Decided { command, outcome } = body else { return };
        match (command, outcome) {
            (Command::Client(c), Outcome::Authorised) => {
                if let ClientCommand::Authorise(a) = &c.body {
                    self.insert(a.request, index);
                }
            }
            (Command::Client(c), Outcome::Reported(refused)) => {
                let ClientCommand::Report(reports) = &c.body else { return };
                for report in taken(reports, refused) {
                    self.update(&report.request, |leaves| leaves.reported = Some(index));
                }
            }
            (Command::Node(n), Outcome::Settled(refused)) => {
                let NodeCommand::Settle(settlements) = &n.body else { return };
                for settlement in taken(settlements, refused) {
                    self.update(&settlement.request, |leaves| leaves.settled = Some(index));
                }
                self.settled.notify_waiters();
            }
            _ => {}
        }
    }

    /// What is known of a request.
    pub fn leaves(&self, request: &RequestId) -> Option<RequestLeaves> {
        self.lock().get_mut(request).map(|packed| packed.leaves())
    }

    /// Waits until the request is settled, or for so long.
    async fn when_settled(&self, request: &RequestId, within: Duration) -> Option<RequestLeaves> {
        let deadline = Instant::now() + within;
        loop {
            let mut notified = std::pin::pin!(self.settled.notified());
            // Registered before looking: a settlement between look and wait is not missed.
            notified.as_mut().enable();
            let leaves = self.leaves(request);
            if leaves.is_none_or(|l| l.settled.is_some()) {
                return leaves;
            }
            if tokio::time::timeout_at(deadline, notified).await.is_err() {
                return self.leaves(request);
            }
        }
    }

    fn insert(&self, request: RequestId, at: LeafIndex) {
        let mut inner = self.lock();
        if inner.young.len() >= INDEX_MAX / 2 {
            inner.old = std::mem::take(&mut inner.young);
        }
        let authorised = RequestLeaves { authorised: Some(at), ..RequestLeaves::default() };
        inner.young.extend(Packed::of(authorised).map(|packed| (request, packed)));
    }

    fn update(&self, request: &RequestId, change: impl FnOnce(&mut RequestLeaves)) {
        if let Some(packed) = self.lock().get_mut(request) {
            let mut leaves = packed.leaves();
            change(&mut leaves);
            *packed = Packed::of(leaves).unwrap_or(*packed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, IndexInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Proofs for clients and auditors. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    blobs: BlobStore,
    chain: PolicyChain,
    index: Arc<RequestIndex>,
    /// Held while building, so that one caller builds and the others take what it built.
    cache: tokio::sync::Mutex<Option<Arc<Built>>>,
}

/// A proof of a certified checkpoint without leaves of its own.
struct Built {
    size: TreeSize,
    at: Instant,
    proof: Proof,
    bytes: Bytes,
}

impl Directory {
    /// Over the node's own stores.
    pub fn new(ledger: Ledger, blobs: BlobStore, chain: PolicyChain, index: Arc<RequestIndex>) -> Self {
        Self { inner: Arc::new(Inner { ledger, blobs, chain, index, cache: tokio::sync::Mutex::new(None) }) }
    }

    /// The index that [`RequestIndex::on_leaf`] feeds.
    pub fn index(&self) -> &Arc<RequestIndex> {
        &self.inner.index
    }

    /// Canonical bytes of a proof of the newest certified state.
    pub async fn directory(&self) -> Result<Bytes, Problem> {
        Ok(self.built(TreeSize::ZERO).await?.bytes.clone())
    }

    /// Canonical bytes of a proof of one request. Waits for its settlement when `ended` says that there will be one.
    pub async fn receipt(&self, request: RequestId, ended: bool) -> Result<Bytes, Problem> {
        let leaves = match (self.inner.index.leaves(&request), ended) {
            (Some(_), true) => self.inner.index.when_settled(&request, SETTLEMENT_WAIT).await,
            (Some(leaves), false) => Some(leaves),
            // Decided before this node started.
            (None, _) => self.inner.ledger.read(|state| {
                let record = state.request(&request)?;
                Some(RequestLeaves { authorised: Some(record.leaf), ..RequestLeaves::default() })
            }),
        };
        let leaves = leaves.ok_or(Problem::NoSuchRequest)?;
        let authorised = leaves.authorised.ok_or(Problem::NoSuchRequest)?;
        let mut positions: Vec<LeafIndex> =
            [Some(authorised), leaves.settled, leaves.reported].into_iter().flatten().collect();
        // The authorisation comes first; which of the other two does is chance.
        positions.sort_unstable();
        // Of a request that neither settled one leaf says so.
        positions.dedup();
        let proof = self.prove(positions).await?;
        blocking(move || bounded(encode(&proof))).await
    }

    /// A proof of leaves under the newest certified checkpoint that covers them.
    pub async fn prove(&self, positions: Vec<LeafIndex>) -> Result<Proof, Problem> {
        let needs = positions.iter().map(|p| p.size_with()).max().unwrap_or_default();
        let built = self.built(needs).await?;
        let tiles = self.inner.ledger.tiles().clone();
        blocking(move || {
            let mut proof = built.proof.clone();
            proof.leaves =
                positions.iter().map(|at| proven(&tiles, *at, built.size)).collect::<Result<_, Problem>>()?;
            Ok(proof)
        })
        .await
    }

    /// The cached proof, or a new one when it does not cover `needs` or is old and outdated.
    async fn built(&self, needs: TreeSize) -> Result<Arc<Built>, Problem> {
        if needs > TreeSize::ZERO {
            self.inner.ledger.certified_at(needs, Instant::now() + SETTLEMENT_WAIT).await?;
        }
        let mut cache = self.inner.cache.lock().await;
        let newest = self.inner.ledger.certified().borrow().clone();
        let newest = newest.ok_or(Problem::NothingCertified)?;
        if let Some(built) = cache.as_ref() {
            let current = built.size >= newest.own.size || built.at.elapsed() < REBUILD_AFTER;
            if current && built.size >= needs {
                return Ok(Arc::clone(built));
            }
        }
        let this = self.clone();
        let built = Arc::new(blocking(move || this.inner.build(&newest)).await?);
        *cache = Some(Arc::clone(&built));
        Ok(built)
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(job).await.map_err(|_| Problem::ShuttingDown)?
}

fn bounded(bytes: Vec<u8>) -> Result<Bytes, Problem> {
    if bytes.len() > PROOF_BYTES_MAX {
        Err(Problem::Internal("the proof exceeds its bound"))
    } else {
        Ok(bytes.into())
    }
}

fn proven(
    tiles: &crate::tilestore::TileReader,
    at: LeafIndex,
    size: TreeSize,
) -> Result<ProvenLeaf, Problem> {
    let bytes = tiles.leaf(at)?.to_vec();
    Ok(ProvenLeaf { index: at, bytes, inclusion: tiles.inclusion(at, size)? })
}

impl Inner {
    fn build(&self, certified: &Certified) -> Result<Built, Problem> {
        let checkpoint = certified.own;
        let tiles = self.ledger.tiles();
        let last = checkpoint.size.0.checked_sub(1).ok_or(Problem::NothingCertified)?;
        let end = proven(&tiles, LeafIndex(last), checkpoint.size)?;
        let Ok(Leaf::V1 { body: LeafBody::BatchEnd(batch_end), .. }) = borsh::from_slice(&end.bytes) else {
            return Err(Problem::NothingCertified);
        };
        let mut evidence = Vec::with_capacity(batch_end.attested.len());
        let mut blobs = BTreeMap::new();
        for (_, at) in &batch_end.attested {
            evidence.push(self.evidence(*at, checkpoint.size, &mut blobs)?);
        }
        let cosignatures: Vec<(NodeId, _)> = certified.certified.cosignatures().to_vec();
        let chain =
            self.chain.upto(batch_end.policy).ok_or(Problem::Internal("the policy chain has a gap"))?;
        let blobs = blobs.into_values().collect();
        let proof = Proof { chain, checkpoint, cosignatures, end, evidence, leaves: Vec::new(), blobs };
        let bytes = bounded(encode(&proof))?;
        Ok(Built { size: checkpoint.size, at: Instant::now(), proof, bytes })
    }

    fn evidence(
        &self,
        at: LeafIndex,
        size: TreeSize,
        blobs: &mut BTreeMap<Hash, Vec<u8>>,
    ) -> Result<ProvenEvidence, Problem> {
        let leaf = proven(&self.ledger.tiles(), at, size)?;
        let Ok(Leaf::V1 { body: LeafBody::Decided { command: Command::Evidence(command), .. }, .. }) =
            borsh::from_slice(&leaf.bytes)
        else {
            return Err(Problem::Internal("an attested node's leaf holds no evidence"));
        };
        for digest in Command::Evidence(command.clone()).blobs() {
            if let std::collections::btree_map::Entry::Vacant(place) = blobs.entry(digest) {
                place.insert(
                    self.blobs
                        .blob(&digest)
                        .ok_or(Problem::Internal("a log that evidence names is missing"))?,
                );
            }
        }
        let nonce = self.ledger.tiles().consistency(command.nonce.size, size)?;
        Ok(ProvenEvidence { leaf, nonce })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tilestore::TileStore;
    use quorate_core::testing::{CLIENT, Fleet, Mesh};

    fn signed(version: u64) -> SignedPolicy {
        SignedPolicy { document: document(version).into_bytes(), signatures: Vec::new() }
    }

    fn document(version: u64) -> String {
        let previous = if version == 1 { String::new() } else { "00".repeat(32) };
        let mut text = format!(
            "format = 1\ncluster = \"t\"\nversion = {version}\nprevious = \"{previous}\"\nexpires = 2040-01-01T00:00:00Z\nadmin_threshold = 1\n\
             [[admin]]\nname = \"a\"\nkey = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2hYAEZ5mPJSBu7hdQKQHf3vT1yQZqYzJ7gqZl8m1yS\"\n\
             [reference_values.r]\npcrs = {{ \"0\" = [\"{z}\"], \"2\" = [\"{z}\"], \"4\" = [\"{z}\"], \"7\" = [\"{z}\"], \"11\" = [\"{z}\"] }}\n",
            z = "00".repeat(32)
        );
        for n in 1..=4 {
            text += &format!(
                "[[member]]\nid = {n}\nname = \"n{n}\"\ncustodian = \"c{n}\"\naddress = \"h:{n}\"\nhttp = \"h:1{n}\"\nak = \"AAA{n}\"\nreference_values = \"r\"\n"
            );
        }
        text
    }

    #[test]
    fn a_policy_chain_survives_and_has_no_gaps() {
        if let Err(e) = Policy::parse(document(1).as_bytes()) {
            panic!("the test's own document: {e}");
        }
        let folder = tempfile::tempdir().unwrap();
        let chain = PolicyChain::open(folder.path(), signed(1)).unwrap();
        chain.push(signed(2)).unwrap();
        chain.push(signed(2)).unwrap();
        assert!(matches!(
            chain.push(signed(4)),
            Err(ChainError::Gap { last: PolicyVersion(2), got: PolicyVersion(4) })
        ));
        let again = PolicyChain::open(folder.path(), signed(1)).unwrap();
        assert_eq!(again.upto(PolicyVersion(2)), Some(vec![signed(1), signed(2)]));
        assert_eq!(again.upto(PolicyVersion(1)), Some(vec![signed(1)]));
        assert_eq!(again.upto(PolicyVersion(3)), None);
        // The one read and the one pushed are both found, and nothing else.
        for chain in [&chain, &again] {
            for version in 1..=2 {
                let document = signed(version).document;
                assert_eq!(chain.document(&sha256(&document)), Some(document));
            }
            assert_eq!(chain.document(&sha256(&signed(3).document)), None);
        }
        std::fs::write(folder.path().join("policy-00000002"), b"x").unwrap();
        assert!(matches!(PolicyChain::open(folder.path(), signed(1)), Err(ChainError::Damaged(_))));
    }

    #[test]
    fn the_index_forgets_the_oldest() {
        let index = RequestIndex::default();
        let id = |n: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_be_bytes());
            RequestId(id)
        };
        let count = INDEX_MAX as u64;
        for n in 0..count {
            index.insert(id(n), LeafIndex(3 * n));
        }
        index.update(&id(0), |leaves| leaves.settled = Some(LeafIndex(7)));
        assert_eq!(index.leaves(&id(0)).unwrap().settled, Some(LeafIndex(7)));
        index.insert(id(count), LeafIndex(3 * count));
        assert_eq!(index.leaves(&id(count / 2 - 1)), None);
        let kept = index.leaves(&id(count / 2)).unwrap();
        assert_eq!((kept.authorised, kept.settled), (Some(LeafIndex(3 * (count / 2))), None));
        assert!(index.leaves(&id(count)).is_some());
    }

    /// Where nobody settles a request, the log's word takes the settlement's place: whoever waits for a receipt gets it.
    #[test]
    fn the_index_knows_what_the_log_closed() {
        let mut mesh = Mesh::new(4, 1, |d| d.attestation.settle_ms = 1000);
        let index = RequestIndex::default();
        let pool = mesh.open_pool();
        let (silent, heard) = (mesh.authorise(&pool), mesh.authorise(&pool));
        let reports = ClientCommand::Report(vec![Fleet::report(heard)]);
        let report = mesh.fleet.client(CLIENT, reports);
        mesh.apply(vec![report]);
        let deadline = [silent, heard].map(|id| mesh.state().request(&id).unwrap().deadline);
        mesh.time = deadline[0].max(deadline[1]);
        mesh.apply(vec![]);
        let mut closed = HashMap::new();
        for leaf in mesh.applied.iter().flat_map(|applied| &applied.leaves) {
            index.on_leaf(leaf);
            let Leaf::V1 { body, .. } = leaf.leaf();
            if let LeafBody::Unsettled { request, .. } = body {
                closed.insert(*request, leaf.index());
            }
        }
        let (silent, at) = (index.leaves(&silent).unwrap(), closed[&silent]);
        assert_eq!((silent.settled, silent.reported), (Some(at), Some(at)));
        let (heard, at) = (index.leaves(&heard).unwrap(), closed[&heard]);
        assert_eq!(heard.settled, Some(at));
        assert!(heard.reported.is_some_and(|own| own < at), "its client's report stays");
    }

    #[test]
    fn a_node_that_restarts_knows_the_requests_of_before() {
        let mut mesh = Mesh::new(4, 1, |_| {});
        let (folder, before, after) =
            (tempfile::tempdir().unwrap(), RequestIndex::default(), RequestIndex::default());
        let mut tiles = TileStore::create(folder.path()).unwrap();
        let pool = mesh.open_pool();
        let requests: Vec<RequestId> = (0..300).map(|_| mesh.authorise(&pool)).collect();
        let reports = ClientCommand::Report(vec![Fleet::report(requests[0]), Fleet::report(requests[299])]);
        let report = mesh.fleet.client(CLIENT, reports);
        mesh.apply(vec![report]);
        // The genesis leaf is none of the mesh's own.
        let first = mesh.applied[0].leaves[0].index().0;
        tiles.append(&vec![b"not a leaf".to_vec(); usize::try_from(first).unwrap()]).unwrap();
        for applied in &mesh.applied {
            applied.leaves.iter().for_each(|leaf| before.on_leaf(leaf));
            tiles.append(&applied.leaf_bytes).unwrap();
        }
        assert!(tiles.head().0.0 > 2 * TILE_WIDTH);
        after.recall(&tiles.reader());
        for request in &requests {
            let (before, after) = (before.leaves(request).unwrap(), after.leaves(request).unwrap());
            assert_eq!((before.authorised, before.reported), (after.authorised, after.reported));
        }
        assert!(after.leaves(&requests[299]).unwrap().reported.is_some());
    }
}
