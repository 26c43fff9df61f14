//! One look at all nodes and the witness: follow whoever is ahead and verifies, hold everybody else against that, and say what
//! changed.
use super::alarm::{Alarm, Kind, Severity};
use super::compare::{Compared, SplitView, compare, signed_by};
use super::follow::{FILE, Follower, NotFollowed, Source};
use super::grow::{Growing, write};
use super::memory::Memory;
use super::watch::present_signers;
use crate::cli::chain;
use crate::fetch::{Client, FetchError};
use crate::finding::{Error, Fault, Finding, Place};
use crate::store::{GENESIS_BYTES_MAX, Mirror, StoredCheckpoint};
use crate::witness::feed::{self, Fed, WitnessPeer};
use crate::witness::state::log_id;
use bytes::Bytes;
use futures::future::join_all;
use quorate_core::crypto::Hash;
use quorate_core::ids::Timestamp;
use quorate_core::policy::SignedPolicy;
use quorate_core::tlog::note::NOTE_BYTES_MAX;
use quorate_core::tlog::{Frontier, TreeSize};
use std::path::Path;
use std::time::{Duration, Instant};

/// A snapshot this old is replaced when history went on.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
/// Kinds that say what is wrong with a node that answers.
const OF_NODES: [Kind; 6] = [
    Kind::BadCheckpoint,
    Kind::SplitView,
    Kind::RulesBroken,
    Kind::Uncertified,
    Kind::Unserved,
    Kind::NodeBehind,
];

/// What is watched, and how patiently.
#[derive(Debug, Clone)]
pub struct Settings {
    /// SHA-256 of policy version 1.
    pub genesis: Hash,
    /// HTTP addresses of nodes, or of whoever else serves the log, without a slash at the end.
    pub nodes: Vec<String>,
    /// A node or witness that fails is an alarm after this long, ms.
    pub patience_ms: u64,
    /// A node that is behind the others is one after this long, ms.
    pub behind_ms: u64,
    /// A log that does not grow is one after this long, ms: each node's evidence alone makes it grow every 20 s.
    pub stale_ms: u64,
    /// A witness that is behind is one after this long, ms.
    pub witness_ms: u64,
}

/// A monitor over its mirror.
pub struct Monitor {
    settings: Settings,
    client: Client,
    mirror: Mirror,
    witness: Option<WitnessPeer>,
    memory: Memory,
    follower: Follower,
    genesis_leaf: Bytes,
    /// The newest checkpoint that was verified; its tree is in the mirror.
    held: Option<StoredCheckpoint>,
    /// Leaves at the end of the last look.
    last: TreeSize,
    snapshot: Option<Instant>,
}

/// What one node answered.
enum Offer {
    Checkpoint(StoredCheckpoint),
    Bad(String),
    Down(String),
}

/// How a node stands: what is wrong, and how long that may be so before it is an alarm.
type Standing = Option<(Kind, String, u64)>;

impl Monitor {
    /// Opens or begins the mirror in a folder, and replays what its snapshot lacks.
    pub async fn open(
        dir: &Path,
        settings: Settings,
        witness: Option<WitnessPeer>,
    ) -> Result<Self, OpenError> {
        let (client, mirror) = (Client::new(), Mirror::at(dir));
        let mut memory = Memory::open(dir)?;
        genesis(&client, &mirror, &settings).await?;
        let (at_genesis, genesis_leaf) = Follower::genesis(&mirror, settings.genesis)?;
        let mut follower = memory.snapshot(settings.genesis)?.unwrap_or(at_genesis);
        let held = match mirror.newest() {
            Ok(held) => Some(held),
            Err(Error::Found(finding)) if finding.fault == Fault::Missing => None,
            Err(error) => return Err(error.into()),
        };
        let at_checkpoint = |fault| OpenError::Audit(Finding::at(Place::Checkpoint, fault).into());
        let size = held.as_ref().map_or(TreeSize(1), StoredCheckpoint::size);
        if follower.size() > size {
            return Err(OpenError::Behind { mirror: size, snapshot: follower.size() });
        }
        if let Some(held) = &held {
            if held.size() > follower.size() {
                let (after, alarms) = follower
                    .advance(&Source::Mirror, &mirror, held, None)
                    .await
                    .map_err(|error| OpenError::Audit(error.into()))?;
                memory.record(alarms)?;
                follower = after;
            }
            let root = follower.state.checkpoint().root;
            if root != held.checkpoint.root {
                return Err(at_checkpoint(Fault::Root { said: held.checkpoint.root, computed: root }));
            }
        }
        let last = follower.size();
        Ok(Self {
            settings,
            client,
            mirror,
            witness,
            memory,
            follower,
            genesis_leaf,
            held,
            last,
            snapshot: None,
        })
    }

    /// Leaves verified so far.
    pub fn size(&self) -> TreeSize {
        self.follower.size()
    }

    /// How bad the worst condition is that stands.
    pub fn worst(&self) -> Option<Severity> {
        self.memory.worst()
    }

    /// Looks at everybody once. Gives what is new, which is on disk by then.
    pub async fn poll(&mut self, now: Timestamp) -> Result<Vec<Alarm>, Error> {
        let mut raised = Vec::new();
        let offers = join_all(self.settings.nodes.iter().map(|url| self.offer(url))).await;
        let nodes: Vec<(String, Offer)> = self.settings.nodes.iter().cloned().zip(offers).collect();
        let mut refused: Vec<Option<NotFollowed>> = nodes.iter().map(|_| None).collect();
        let mut order: Vec<(usize, &String, &StoredCheckpoint)> = Vec::new();
        for (at, (url, offer)) in nodes.iter().enumerate() {
            if let Offer::Checkpoint(stored) = offer {
                order.push((at, url, stored));
            }
        }
        // The largest first: mostly it covers the others.
        order.sort_by_key(|(_, _, stored)| std::cmp::Reverse(stored.size()));
        for (at, url, stored) in order {
            if stored.size() <= self.follower.size() {
                continue;
            }
            match self.follow(url, stored).await {
                Ok(alarms) => raised.extend(alarms),
                Err(NotFollowed::Own(error)) => return Err(error),
                Err(other) => {
                    if let Some(refused) = refused.get_mut(at) {
                        *refused = Some(other);
                    }
                }
            }
        }
        let mut alarms = Vec::new();
        for ((url, offer), refused) in nodes.iter().zip(refused) {
            alarms.extend(self.node(now, url, offer, refused).await?);
        }
        alarms.extend(self.stale(now));
        // A witness may follow these keys: before it is asked.
        self.memory.keep_keys(&present_signers(&self.follower.state, self.follower.state.origin()))?;
        alarms.extend(self.witness(now).await?);
        raised.extend(self.memory.record(alarms)?);
        self.last = self.follower.size();
        if self.snapshot.is_none_or(|at| at.elapsed() >= SNAPSHOT_EVERY) {
            self.keep()?;
        }
        self.memory.save()?;
        Ok(raised)
    }

    /// Keeps the verified history, so that the next start need not replay it.
    pub fn keep(&mut self) -> Result<(), Error> {
        self.memory.keep_snapshot(&self.follower)?;
        self.snapshot = Some(Instant::now());
        Ok(())
    }

    /// Tells what was not told yet: prints it by `say`, and posts it. A webhook that fails gets it with the next look.
    pub async fn tell<E>(
        &mut self,
        webhook: Option<&str>,
        mut say: impl FnMut(&Alarm) -> Result<(), E>,
    ) -> Result<Result<(), WebhookError>, TellError<E>> {
        for alarm in self.memory.untold() {
            say(&alarm).map_err(TellError::Say)?;
        }
        self.memory.told();
        let posted = match webhook {
            Some(url) => self.post(url).await,
            None => {
                self.memory.posted(true);
                Ok(())
            }
        };
        self.memory.save().map_err(TellError::Own)?;
        Ok(posted)
    }

    async fn post(&mut self, url: &str) -> Result<(), WebhookError> {
        while let Some(alarm) = self.memory.unposted() {
            let body = Bytes::from(serde_json::to_vec(&alarm).unwrap_or_default());
            let sent = tokio::time::timeout(FILE, self.client.post(url, "application/json", body, 64 * 1024));
            let (status, _) = sent.await.map_err(|_| FetchError::TooSlow(url.to_owned()))??;
            if !status.is_success() {
                return Err(WebhookError::Status(status.as_u16()));
            }
            self.memory.posted(false);
        }
        Ok(())
    }

    async fn offer(&self, url: &str) -> Offer {
        let at = format!("{url}/checkpoint");
        let got = tokio::time::timeout(FILE, self.client.get(&at, NOTE_BYTES_MAX)).await;
        let bytes = match got {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Offer::Down(chain(&error)),
            Err(_) => return Offer::Down("it does not answer in time".into()),
        };
        match StoredCheckpoint::parse(&bytes) {
            Ok(stored) if stored.checkpoint.origin == *self.follower.state.origin() => {
                Offer::Checkpoint(stored)
            }
            Ok(stored) => Offer::Bad(format!("it serves the log {:?}", stored.checkpoint.origin.as_str())),
            Err(fault) => Offer::Bad(fault.to_string()),
        }
    }

    /// Verifies what a node has beyond this history and takes it over.
    async fn follow(&mut self, url: &str, stored: &StoredCheckpoint) -> Result<Vec<Alarm>, NotFollowed> {
        let mut growing = match &self.held {
            Some(_) => Growing::from(&self.mirror, self.follower.state.tree())?,
            None => {
                let mut growing = Growing::from(&self.mirror, &Frontier::new())?;
                growing.push(self.genesis_leaf.clone())?;
                growing
            }
        };
        let source = Source::Node(&self.client, url);
        let (after, alarms) =
            self.follower.advance(&source, &self.mirror, stored, Some(&mut growing)).await?;
        // Alarms first: if this is cut off here, the same leaves give the same ids again.
        let fresh = self.memory.record(alarms)?;
        growing.publish(stored, self.held.as_ref())?;
        self.follower = after;
        self.held = Some(stored.clone());
        Ok(fresh)
    }

    async fn node(
        &mut self,
        now: Timestamp,
        url: &str,
        offer: &Offer,
        refused: Option<NotFollowed>,
    ) -> Result<Vec<Alarm>, Error> {
        let patience = self.settings.patience_ms;
        let down = match offer {
            Offer::Down(why) => Some(why.clone()),
            _ => None,
        };
        let is_down = down.is_some();
        let mut alarms: Vec<Alarm> =
            self.memory.condition(now, Kind::Unreachable, url, down, patience).into_iter().collect();
        if is_down {
            // What else is wrong with it stays as it was.
            return Ok(alarms);
        }
        let mut evidence = None;
        let standing: Standing = match offer {
            Offer::Down(_) => None,
            Offer::Bad(why) => Some((Kind::BadCheckpoint, why.clone(), 0)),
            Offer::Checkpoint(stored) => self.standing(url, stored, refused, &mut evidence).await?,
        };
        for kind in OF_NODES {
            let (holds, patience) = match &standing {
                Some((stands, what, patience)) if *stands == kind => (Some(what.clone()), *patience),
                _ => (None, 0),
            };
            let alarm = self.memory.condition(now, kind, url, holds, patience);
            alarms.extend(alarm.map(|a| match a.state {
                super::alarm::Turn::Raised => Alarm { evidence: evidence.clone(), ..a },
                super::alarm::Turn::Cleared => a,
            }));
        }
        Ok(alarms)
    }

    /// What is wrong with the checkpoint that a node serves.
    async fn standing(
        &self,
        url: &str,
        stored: &StoredCheckpoint,
        refused: Option<NotFollowed>,
        evidence: &mut Option<std::path::PathBuf>,
    ) -> Result<Standing, Error> {
        let patience = self.settings.patience_ms;
        let known = self.follower.watch.signers();
        let signers = signed_by(&stored.note, &known);
        if let Some(held) = &self.held
            && held.checkpoint != stored.checkpoint
        {
            match compare(&self.client, url, stored, &self.mirror, held).await? {
                Compared::Consistent => {}
                Compared::Unserved(error) => return Ok(Some((Kind::Unserved, chain(&error), patience))),
                Compared::Broken(error) => {
                    let what = format!("its tiles do not lead to its checkpoint: {error}");
                    return Ok(Some((Kind::Unserved, what, patience)));
                }
                Compared::Split(split) => {
                    let (kind, what) = describe(&split, held, &signers, &known);
                    if !self.memory.stands(kind, url) {
                        *evidence = self.keep_split(kind, &split)?;
                    }
                    return Ok(Some((kind, what, 0)));
                }
            }
        }
        match refused {
            None => {
                let behind = stored.size() < self.last;
                let what = || {
                    format!("its checkpoint has {} leaves, and others have {}", stored.size(), self.size())
                };
                Ok(behind.then(|| (Kind::NodeBehind, what(), self.settings.behind_ms)))
            }
            Some(NotFollowed::Own(error)) => Err(error),
            Some(NotFollowed::Fetch(error)) => Ok(Some((Kind::Unserved, chain(&error), patience))),
            Some(NotFollowed::Found(finding)) => {
                let certified = signers.len() >= self.follower.state.policy().quorum();
                let uncertified = matches!(
                    finding.fault,
                    Fault::NotCertified(_) | Fault::UnknownCosigner(_) | Fault::CosignatureOrder
                );
                if uncertified {
                    return Ok(Some((Kind::Uncertified, finding.to_string(), 0)));
                }
                if let Place::Blob(..) = finding.place {
                    // Its name says that it is not the one that the leaf names: nobody signed this one.
                    return Ok(Some((Kind::Unserved, finding.to_string(), patience)));
                }
                // Only what is really under the signed root breaks the rules; other leaves are the node's own invention.
                let source = Source::Node(&self.client, url);
                let genuine = self.follower.leads_to(&source, &self.mirror, stored).await;
                match (genuine, certified) {
                    (true, true) => {
                        if !self.memory.stands(Kind::RulesBroken, url) {
                            *evidence = self.keep_note("rules", stored, &finding)?;
                        }
                        Ok(Some((Kind::RulesBroken, finding.to_string(), 0)))
                    }
                    (true, false) => Ok(Some((Kind::Uncertified, finding.to_string(), 0))),
                    (false, _) => {
                        let what = format!("it serves leaves that its checkpoint does not have: {finding}");
                        Ok(Some((Kind::Unserved, what, patience)))
                    }
                }
            }
        }
    }

    fn keep_split(&self, kind: Kind, split: &SplitView) -> Result<Option<std::path::PathBuf>, Error> {
        let (older, newer) = (&split.older.checkpoint, &split.newer.checkpoint);
        let root = split.implied.to_string();
        let name = format!(
            "{}-{}-{}-{}-{}",
            kind.name(),
            older.size,
            newer.size,
            older.root.to_string().get(..8).unwrap_or_default(),
            root.get(..8).unwrap_or_default()
        );
        let Some(folder) = self.memory.evidence(&name)? else { return Ok(None) };
        split.keep(&folder, &self.follower.watch.signers())?;
        Ok(Some(folder))
    }

    fn keep_note(
        &self,
        what: &str,
        stored: &StoredCheckpoint,
        finding: &Finding,
    ) -> Result<Option<std::path::PathBuf>, Error> {
        let root = stored.checkpoint.root.to_string();
        let name = format!("{what}-{}-{}", stored.size(), root.get(..8).unwrap_or_default());
        let Some(folder) = self.memory.evidence(&name)? else { return Ok(None) };
        write(&folder.join("checkpoint"), stored.note.to_string().as_bytes())?;
        let finding = serde_json::to_string_pretty(&finding.to_json()).unwrap_or_default();
        write(&folder.join("finding.json"), finding.as_bytes())?;
        Ok(Some(folder))
    }

    fn stale(&mut self, now: Timestamp) -> Option<Alarm> {
        let (at, stale_ms) = (self.follower.state.time(), self.settings.stale_ms);
        let holds = (now.since_ms(at) > stale_ms).then(|| match &self.held {
            Some(held) => {
                format!("the newest checkpoint, of {} leaves, is of {}", held.size(), crate::words::date(at))
            }
            None => "no node has served a checkpoint that holds".into(),
        });
        // That it is stale says that it has lasted.
        self.memory.condition(now, Kind::Stale, "the log", holds, 0)
    }

    async fn witness(&mut self, now: Timestamp) -> Result<Vec<Alarm>, Error> {
        let Some(held) = self.held.clone() else { return Ok(Vec::new()) };
        let Some(peer) = self.witness.take() else { return Ok(Vec::new()) };
        let looked = self.look_at_witness(&peer, &held).await;
        let subject = peer.url.clone();
        let at = feed::kept(&peer, &self.mirror);
        self.witness = Some(peer);
        let (mut failing, mut other, mut behind, mut evidence) = (None, None, None, None);
        match looked {
            Ok(Witnessed::Same) => {}
            Ok(Witnessed::Ahead(size)) => {
                behind = Some(format!("it has cosigned {size} leaves, and nodes show {}", held.size()));
            }
            Ok(Witnessed::Other(what, split)) => {
                other = Some(what);
                if !self.memory.stands(Kind::WitnessOtherHistory, &subject) {
                    evidence = match split {
                        Some(split) => self.keep_split(Kind::WitnessOtherHistory, &split)?,
                        None => None,
                    };
                }
            }
            Err(WitnessError::Own(error)) => return Err(error),
            Err(WitnessError::Failing(why)) => failing = Some(why),
        }
        if behind.is_none() {
            let at = at?.map_or(TreeSize::ZERO, |kept| kept.size());
            behind = (at < self.last && other.is_none())
                .then(|| format!("it has cosigned {at} of {} leaves", held.size()));
        }
        let (patience, late) = (self.settings.patience_ms, self.settings.witness_ms);
        let mut alarms = Vec::new();
        let failed = failing.is_some();
        alarms.extend(self.memory.condition(now, Kind::WitnessFailing, &subject, failing, patience));
        alarms.extend(self.memory.condition(now, Kind::WitnessBehind, &subject, behind, late));
        if !failed {
            let alarm = self.memory.condition(now, Kind::WitnessOtherHistory, &subject, other, 0);
            alarms.extend(alarm.map(|alarm| Alarm { evidence, ..alarm }));
        }
        Ok(alarms)
    }

    async fn look_at_witness(
        &self,
        peer: &WitnessPeer,
        held: &StoredCheckpoint,
    ) -> Result<Witnessed, WitnessError> {
        if !peer.feeds {
            let theirs = self.witnessed(peer).await?;
            let stands = self.hold_against(held, &theirs).await?;
            if matches!(stands, Witnessed::Same) {
                feed::keep(peer, &self.mirror, &theirs.note).map_err(WitnessError::Own)?;
            }
            return Ok(stands);
        }
        let fed = feed::submit(&self.client, peer, &self.mirror, held).await;
        match fed {
            Ok(Fed::Cosigned(_)) => Ok(Witnessed::Same),
            Ok(Fed::Ahead(size)) => Ok(Witnessed::Ahead(size)),
            Ok(Fed::OtherRoot(size) | Fed::Inconsistent(size)) => {
                // A witness of ours shows what it has; of another one only its word is known.
                let theirs = self.witnessed(peer).await.ok();
                let split = match theirs {
                    Some(theirs) => self.hold_against(held, &theirs).await.ok(),
                    None => None,
                };
                Ok(match split {
                    Some(Witnessed::Other(what, split)) => Witnessed::Other(what, split),
                    _ => Witnessed::Other(format!("it has cosigned another tree of size {size}"), None),
                })
            }
            Err(feed::FeedError::Mirror(error)) => Err(WitnessError::Own(error)),
            Err(error) => Err(WitnessError::Failing(chain(&error))),
        }
    }

    /// What the witness says that it cosigned last, where it says so.
    async fn witnessed(&self, peer: &WitnessPeer) -> Result<StoredCheckpoint, WitnessError> {
        let url = format!("{}/{}/checkpoint", peer.url, log_id(self.follower.state.origin()));
        let failing = |why: String| WitnessError::Failing(why);
        let got = tokio::time::timeout(FILE, self.client.get(&url, NOTE_BYTES_MAX)).await;
        let bytes = got.map_err(|_| failing("it does not answer in time".into()))?;
        let bytes = bytes.map_err(|e| failing(chain(&e)))?;
        let theirs = StoredCheckpoint::parse(&bytes).map_err(|fault| failing(fault.to_string()))?;
        theirs
            .note
            .verified_by(std::slice::from_ref(&peer.key))
            .map_err(|e| failing(format!("its checkpoint: {e}")))?;
        if theirs.checkpoint.origin != *self.follower.state.origin() {
            return Err(failing("its checkpoint is of another log".into()));
        }
        Ok(theirs)
    }

    async fn hold_against(
        &self,
        held: &StoredCheckpoint,
        theirs: &StoredCheckpoint,
    ) -> Result<Witnessed, WitnessError> {
        if theirs.size() > held.size() {
            return Ok(Witnessed::Ahead(theirs.size()));
        }
        let compared = compare(&self.client, "", theirs, &self.mirror, held).await;
        Ok(match compared.map_err(WitnessError::Own)? {
            Compared::Split(split) => Witnessed::Other(
                format!("it has cosigned another tree of size {}", theirs.size()),
                Some(split),
            ),
            _ => Witnessed::Same,
        })
    }
}

/// How the witness stands to what is held.
enum Witnessed {
    Same,
    Ahead(TreeSize),
    Other(String, Option<Box<SplitView>>),
}

enum WitnessError {
    Own(Error),
    Failing(String),
}

/// Why a monitor does not begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The mirror or the disk.
    #[error(transparent)]
    Audit(#[from] Error),
    /// Nobody serves the genesis policy.
    #[error("no node serves the genesis policy")]
    NoGenesis(#[source] FetchError),
    /// Somebody put an older mirror there.
    #[error("the mirror has {mirror} leaves, and this monitor has verified {snapshot}: it was exchanged")]
    Behind {
        /// Of the mirror.
        mirror: TreeSize,
        /// Of the snapshot.
        snapshot: TreeSize,
    },
}

/// Why an alarm was not posted.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The network.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Another status than success.
    #[error("the webhook answers {0}")]
    Status(u16),
}

/// Why telling ended.
#[derive(Debug)]
pub enum TellError<E> {
    /// The caller's.
    Say(E),
    /// The disk.
    Own(Error),
}

impl From<NotFollowed> for Error {
    fn from(error: NotFollowed) -> Self {
        match error {
            NotFollowed::Found(finding) => Self::Found(finding),
            NotFollowed::Own(own) => own,
            // Only a node's leaves are fetched.
            NotFollowed::Fetch(_) => Finding::at(Place::Checkpoint, Fault::Missing).into(),
        }
    }
}

/// A split view in words: who signed what.
fn describe(
    split: &SplitView,
    held: &StoredCheckpoint,
    signers: &[&quorate_core::tlog::KeyName],
    known: &[quorate_core::tlog::VerifierKey],
) -> (Kind, String) {
    let (older, newer) = (&split.older.checkpoint, &split.newer.checkpoint);
    let sizes = format!(
        "the checkpoint of size {} names root {}, and the tree of size {} has {} there",
        older.size, older.root, newer.size, split.implied
    );
    if signers.is_empty() {
        return (Kind::Uncertified, format!("{sizes}; no known key signed what the node serves"));
    }
    let ours = signed_by(&held.note, known);
    let both: Vec<&str> = signers.iter().filter(|n| ours.contains(n)).map(|n| n.as_str()).collect();
    let signed = |names: Vec<&str>| if names.is_empty() { "nobody".into() } else { names.join(", ") };
    let theirs = signed(signers.iter().map(|n| n.as_str()).collect());
    (Kind::SplitView, format!("{sizes}; it is signed by {theirs}; both are signed by {}", signed(both)))
}

/// The genesis policy is in the mirror afterwards, and is the right one.
async fn genesis(client: &Client, mirror: &Mirror, settings: &Settings) -> Result<(), OpenError> {
    match mirror.genesis() {
        Ok(_) => return Ok(()),
        Err(Error::Found(finding)) if finding.fault == Fault::Missing => {}
        Err(error) => return Err(error.into()),
    }
    let mut failed = FetchError::Url(String::new());
    for url in &settings.nodes {
        let at = format!("{url}/genesis");
        match tokio::time::timeout(FILE, client.get(&at, GENESIS_BYTES_MAX)).await {
            Ok(Ok(bytes)) => {
                let signed: Option<SignedPolicy> = borsh::from_slice(&bytes).ok();
                let digest = signed.as_ref().map(|s| quorate_core::crypto::sha256(&s.document));
                if let (Some(signed), true) = (signed, digest == Some(settings.genesis)) {
                    write(&mirror.blob_path(&settings.genesis), &signed.document)?;
                    write(&mirror.genesis_path(), &bytes)?;
                    return Ok(());
                }
            }
            Ok(Err(error)) => failed = error,
            Err(_) => failed = FetchError::TooSlow(at),
        }
    }
    Err(OpenError::NoGenesis(failed))
}
