//! Links to the other members, and who a channel's key belongs to.
//!
//! A peer is who its key says only while that key is an attested boot key in this node's view; that is asked anew for every
//! request, because an open connection outlives a revocation. A peer that is not attested in the log yet proves itself in
//! the channel: a quote over a fresh challenge, the TLS exporter and both identities. It may then speak Raft, recovery and
//! evidence only.
use crate::attester::Attester;
use crate::blobs::BlobStore;
use crate::boot::{Boot, random};
use crate::ledger::{Ledger, View};
use quorate_attest::evidence::{BootKeys, Evidence};
use quorate_attest::qualifying;
use quorate_core::command::Alarm;
use quorate_core::ids::NodeId;
use quorate_core::state::{Blobs, appraise_member};
use quorate_core::tlog::{Hash, sha256};
use quorate_proto::PEER_MESSAGE_BYTES_MAX;
use quorate_proto::v1::peer_client::PeerClient;
use quorate_proto::v1::{AdmitReply, AdmitRequest, ChallengeReply, ChallengeRequest};
use quorate_transport::{AdmissionError, Connected, Expect, Link, LinkOptions, PublicKey, Target};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::Channel;

/// A channel admission is good for this long: then the peer's evidence stands in the log, or it proves itself again.
const ADMISSION_LASTS: Duration = Duration::from_secs(600);
/// Challenges that wait for their answer, one for each connection, the newest connections': to throw out an honest peer's,
/// somebody must open as many in the time of one quote.
const CHALLENGES_MAX: usize = 8192;
/// The same refusal of the same member is said once in this time: anybody can knock.
const REFUSAL_AGAIN: Duration = Duration::from_secs(60);

/// How far a caller is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its key is an attested boot key in this node's view.
    Attested(NodeId),
    /// It proved itself in the channel only.
    Admitted(NodeId),
}

impl Standing {
    /// Which member.
    pub fn node(self) -> NodeId {
        match self {
            Self::Attested(n) | Self::Admitted(n) => n,
        }
    }
}

struct Admission {
    node: NodeId,
    at: Instant,
}

struct Inner {
    ledger: Ledger,
    boot: Boot,
    attester: Attester,
    blobs: BlobStore,
    links: Mutex<BTreeMap<NodeId, PeerLink>>,
    admitted: Mutex<HashMap<PublicKey, Admission>>,
    /// By connection; ids rise.
    challenges: Mutex<BTreeMap<u64, [u8; 32]>>,
    /// When a member's refusal was last put into the log; members and checks are few.
    refusals: Mutex<HashMap<(NodeId, String), Instant>>,
}

struct PeerLink {
    link: Link,
    target: watch::Sender<Target>,
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

/// Why a peer was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// The call failed.
    #[error("the peer did not answer: {0}")]
    Call(tonic::Code),
    /// It answered nonsense.
    #[error("the peer's answer does not decode")]
    Malformed,
    /// It is another node.
    #[error("expected {expected}, found {found}")]
    WrongNode {
        /// Whom the address belongs to by policy.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// Its quote names another TLS key than the channel's.
    #[error("the quote is bound to another TLS key")]
    WrongKey,
    /// The Verifier.
    #[error("the channel quote was refused: {0}")]
    Refused(String),
    /// Ours.
    #[error("this node cannot quote")]
    Attester(#[from] crate::attester::AttesterError),
    /// Ours.
    #[error(transparent)]
    Randomness(#[from] crate::boot::NoRandomness),
    /// A challenge that was not issued on this connection, or was used.
    #[error("no challenge was issued on this connection")]
    NoChallenge,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// No links yet; see [`Peers::follow_policy`].
    pub fn new(ledger: Ledger, boot: Boot, attester: Attester, blobs: BlobStore) -> Self {
        Self {
            inner: Arc::new(Inner {
                ledger,
                boot,
                attester,
                blobs,
                links: Mutex::default(),
                admitted: Mutex::default(),
                challenges: Mutex::default(),
                refusals: Mutex::default(),
            }),
        }
    }

    /// Keeps one link to each other member of the policy in force, until the node stops.
    pub async fn follow_policy(self) {
        let mut changed = self.inner.ledger.standing_changed();
        let mut version = None;
        loop {
            let view = self.inner.ledger.view();
            if version != Some(view.policy.digest) {
                version = Some(view.policy.digest);
                self.relink(&view);
            }
            drop(view);
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn relink(&self, view: &View) {
        let mut links = lock(&self.inner.links);
        links.retain(|n, _| view.policy.members.contains_key(n));
        for member in view.policy.members.values().filter(|m| m.id != self.inner.ledger.me()) {
            let Ok(address) = member.address.parse() else {
                tracing::error!(
                    node = member.id.0,
                    address = member.address,
                    "the policy's address does not parse"
                );
                continue;
            };
            // Who answers is decided by admission, against the attested set of that moment.
            let target = Target { address, expect: Expect::danger_any_key() };
            if let Some(known) = links.get(&member.id) {
                known.target.send_if_modified(|t| {
                    let moved = *t != target;
                    *t = target;
                    moved
                });
                continue;
            }
            let (sender, receiver) = watch::channel(target);
            let (peers, node) = (self.clone(), member.id);
            let admit = move |connected: Arc<Connected>| {
                let peers = peers.clone();
                async move { peers.admit(node, &connected).await.map_err(kind) }
            };
            let identity = self.inner.boot.identity.clone();
            let link = Link::start(member.name.clone(), identity, receiver, LinkOptions::default(), admit);
            links.insert(member.id, PeerLink { link, target: sender });
        }
    }

    /// The open connection to a member.
    pub fn connected(&self, node: NodeId) -> Option<Arc<Connected>> {
        lock(&self.inner.links).get(&node).and_then(|l| l.link.up())
    }

    /// A client over it.
    pub fn client(&self, node: NodeId) -> Option<PeerClient<Channel>> {
        self.connected(node).map(|c| client_of(c.channel()))
    }

    /// A client over a connection to a member, for a caller who must know when the connection changes.
    pub fn client_on(&self, connected: &Connected) -> PeerClient<Channel> {
        client_of(connected.channel())
    }

    /// A client to a member whose key on the open connection is an attested boot key right now.
    pub fn attested_client(&self, node: NodeId) -> Option<PeerClient<Channel>> {
        let connected = self.connected(node)?;
        let view = self.inner.ledger.view();
        let same = view.attested(node).is_some_and(|b| b.tls == *connected.peer_key().as_bytes());
        same.then(|| client_of(connected.channel()))
    }

    /// State of the link to a member, as it changes.
    pub fn link_state(&self, node: NodeId) -> Option<watch::Receiver<quorate_transport::LinkState>> {
        lock(&self.inner.links).get(&node).map(|l| l.link.state())
    }

    /// All other members that there are links to.
    pub fn nodes(&self) -> Vec<NodeId> {
        lock(&self.inner.links).keys().copied().collect()
    }

    /// Who has this key, by this node's view or by an admission in the channel.
    pub fn standing(&self, key: PublicKey) -> Option<Standing> {
        if let Some(node) = self.inner.ledger.view().node_by_tls_key(key.as_bytes()) {
            return Some(Standing::Attested(node));
        }
        let admitted = lock(&self.inner.admitted);
        let admission = admitted.get(&key).filter(|a| a.at.elapsed() < ADMISSION_LASTS)?;
        self.inner
            .ledger
            .view()
            .policy
            .members
            .contains_key(&admission.node)
            .then_some(Standing::Admitted(admission.node))
    }

    /// A challenge for the connection of that id.
    pub fn challenge(&self, connection: u64, key: PublicKey) -> Result<ChallengeReply, NotAdmitted> {
        let challenge = random()?;
        let mut challenges = lock(&self.inner.challenges);
        challenges.insert(connection, challenge);
        while challenges.len() > CHALLENGES_MAX {
            challenges.pop_first();
        }
        let known = self.standing(key).is_some();
        Ok(ChallengeReply { challenge: challenge.to_vec().into(), known })
    }

    /// The callee's half of admission: appraises the caller, then quotes over the caller's challenge.
    pub async fn answer(
        &self,
        connection: u64,
        key: PublicKey,
        exporter: &[u8; 32],
        request: AdmitRequest,
    ) -> Result<AdmitReply, NotAdmitted> {
        let challenge = lock(&self.inner.challenges).remove(&connection).ok_or(NotAdmitted::NoChallenge)?;
        let (me, from) = (self.inner.ledger.me(), NodeId(request.node));
        let boot: BootKeys = borsh::from_slice(&request.boot).map_err(|_| NotAdmitted::Malformed)?;
        self.appraise(
            Proven { node: from, to: me, boot: &boot, challenge: &challenge, exporter },
            key,
            &request.evidence,
            &request.blobs,
        )?;
        let theirs: [u8; 32] = request.challenge.as_ref().try_into().map_err(|_| NotAdmitted::Malformed)?;
        let (evidence, blobs) = self.quote(from, &theirs, exporter).await?;
        self.remember(key, from);
        tracing::info!(node = from.0, "a peer proved itself in the channel");
        Ok(AdmitReply { node: me.0, boot: encode(&self.inner.boot.keys), evidence, blobs })
    }

    /// The caller's half.
    async fn admit(&self, node: NodeId, connected: &Connected) -> Result<(), NotAdmitted> {
        let mut client = client_of(connected.channel());
        let failed = |s: tonic::Status| NotAdmitted::Call(s.code());
        let reply = client.challenge(ChallengeRequest {}).await.map_err(failed)?.into_inner();
        match self.standing(connected.peer_key()) {
            Some(standing) if standing.node() == node && reply.known => return Ok(()),
            Some(Standing::Attested(found)) if found != node => {
                return Err(NotAdmitted::WrongNode { expected: node, found });
            }
            _ => {}
        }
        let theirs: [u8; 32] = reply.challenge.as_ref().try_into().map_err(|_| NotAdmitted::Malformed)?;
        let (me, ours) = (self.inner.ledger.me(), random()?);
        let (evidence, blobs) = self.quote(node, &theirs, connected.exporter()).await?;
        let boot = encode(&self.inner.boot.keys);
        let request = AdmitRequest { node: me.0, boot, evidence, blobs, challenge: ours.to_vec().into() };
        let reply = client.admit(request).await.map_err(failed)?.into_inner();
        if reply.node != node.0 {
            return Err(NotAdmitted::WrongNode { expected: node, found: NodeId(reply.node) });
        }
        let boot: BootKeys = borsh::from_slice(&reply.boot).map_err(|_| NotAdmitted::Malformed)?;
        let proven = Proven { node, to: me, boot: &boot, challenge: &ours, exporter: connected.exporter() };
        self.appraise(proven, connected.peer_key(), &reply.evidence, &reply.blobs)?;
        self.remember(connected.peer_key(), node);
        Ok(())
    }

    /// A member has one boot, so one key.
    fn remember(&self, key: PublicKey, node: NodeId) {
        let mut admitted = lock(&self.inner.admitted);
        admitted.retain(|_, a| a.node != node);
        admitted.insert(key, Admission { node, at: Instant::now() });
    }

    /// Whether a challenge waits for this connection's answer.
    pub fn is_challenged(&self, connection: u64) -> bool {
        lock(&self.inner.challenges).contains_key(&connection)
    }

    async fn quote(
        &self,
        to: NodeId,
        challenge: &[u8; 32],
        exporter: &[u8; 32],
    ) -> Result<(bytes::Bytes, Vec<bytes::Bytes>), NotAdmitted> {
        let view = self.inner.ledger.view();
        let cluster = self.inner.ledger.cluster();
        let (me, keys) = (self.inner.ledger.me(), &self.inner.boot.keys);
        let nonce = qualifying::for_channel(&cluster.0, challenge, exporter, me.0, to.0, keys);
        let attested = self.inner.attester.quote(&view.policy.attestation.pcrs, nonce).await?;
        Ok((encode(&attested.evidence), attested.blobs.into_iter().map(Into::into).collect()))
    }

    /// A member that is refused here never gets to write evidence of its own: this node says why in the log.
    fn say_refused(&self, node: NodeId, check: &str) {
        let mut refusals = lock(&self.inner.refusals);
        refusals.retain(|_, at| at.elapsed() < REFUSAL_AGAIN);
        if refusals.insert((node, check.to_owned()), Instant::now()).is_none() {
            self.inner.ledger.alarm(Alarm::AdmissionRefused { node, check: check.to_owned() });
        }
    }

    fn appraise(
        &self,
        proven: Proven<'_>,
        key: PublicKey,
        evidence: &[u8],
        blobs: &[bytes::Bytes],
    ) -> Result<(), NotAdmitted> {
        if proven.boot.tls != *key.as_bytes() {
            return Err(NotAdmitted::WrongKey);
        }
        let evidence: Evidence = borsh::from_slice(evidence).map_err(|_| NotAdmitted::Malformed)?;
        // Kept only once they explain a quote of a member's TPM: anybody may get this far.
        let shown = Shown { sent: blobs.iter().take(2).collect(), kept: &self.inner.blobs };
        let cluster = self.inner.ledger.cluster();
        let Proven { node, to, boot, challenge, exporter } = proven;
        let expected = qualifying::for_channel(&cluster.0, challenge, exporter, node.0, to.0, boot);
        let (policy, floor) =
            self.inner.ledger.read(|s| (Arc::clone(s.policy()), s.nodes().get(&node).and_then(|r| r.floor)));
        match appraise_member(&policy, node, &evidence, &expected, floor.as_ref(), &shown) {
            Ok(Ok(_)) => {
                for blob in shown.sent {
                    self.inner.blobs.put(blob).map_err(|_| NotAdmitted::Malformed)?;
                }
                Ok(())
            }
            Ok(Err(check)) => {
                self.say_refused(node, &check);
                Err(NotAdmitted::Refused(check))
            }
            Err(refusal) => Err(NotAdmitted::Refused(refusal.code().to_owned())),
        }
    }
}

/// Whose verdict it was, for the link's error.
fn kind(error: NotAdmitted) -> AdmissionError {
    match error {
        NotAdmitted::Call(tonic::Code::PermissionDenied) => AdmissionError::Refused(error.into()),
        NotAdmitted::WrongNode { .. }
        | NotAdmitted::WrongKey
        | NotAdmitted::Refused(_)
        | NotAdmitted::Malformed => AdmissionError::Rejected(error.into()),
        NotAdmitted::Call(_)
        | NotAdmitted::Attester(_)
        | NotAdmitted::Randomness(_)
        | NotAdmitted::NoChallenge => AdmissionError::Incomplete(error.into()),
    }
}

/// What came with a quote, before what is kept.
struct Shown<'a> {
    sent: Vec<&'a bytes::Bytes>,
    kept: &'a BlobStore,
}

impl Blobs for Shown<'_> {
    fn blob(&self, digest: &Hash) -> Option<Vec<u8>> {
        let sent = self.sent.iter().find(|b| sha256(b) == *digest);
        sent.map(|b| b.to_vec()).or_else(|| self.kept.blob(digest))
    }
}

struct Proven<'a> {
    node: NodeId,
    to: NodeId,
    boot: &'a BootKeys,
    challenge: &'a [u8; 32],
    exporter: &'a [u8; 32],
}

fn client_of(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

fn encode<T: borsh::BorshSerialize>(value: &T) -> bytes::Bytes {
    quorate_core::crypto::encode(value).into()
}
