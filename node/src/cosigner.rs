//! After applying an entry this node signs the checkpoint at that size, and collects its peers' cosignatures until a quorum
//! meets: that is the certificate, there is no other vote.
//!
//! **Sign lock**: never two roots at one size, nor a smaller size, and only entries that are fsynced in this node's own log.
//! The lock is written before the signature leaves, without waiting for the disk: that survives the process. A machine reset
//! shows in the quote's counters, and the state machine then does not count this node until it is safe again.
//!
//! What a lying leader can do here: make nodes sign different tails. What it cannot: have two of them certified.
use crate::boot::Boot;
use crate::ledger::{AppliedCheckpoint, Audience, Certified, Ledger};
use crate::raft::CertifiedFloor;
use borsh::{BorshDeserialize, BorshSerialize};
use quorate_core::certificate::{Certifiers, VerifiedCosignature};
use quorate_core::command::{Alarm, CheckpointRef};
use quorate_core::crypto::{PublicKey, encode};
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::state::checkpoint_of;
use quorate_core::tlog::{Checkpoint, Cosignature, TreeSize};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, mpsc};

/// This node's own checkpoints above the newest certified one: when more wait, the oldest goes, since later ones cover it.
const PENDING_MAX: usize = 8192;
/// Cosignatures of one peer above the newest certified size. When more come, that peer's first go: an honest peer's later ones
/// cover them, and a hostile one crowds out nobody but itself.
const HEARD_MAX: usize = 4096;
/// How long a certificate that nobody waits for may take: one check then covers all batches of that time.
const UNHURRIED: std::time::Duration = std::time::Duration::from_millis(50);
/// How many of the newest checkpoints are looked at for a certificate that covers the others.
const NEWEST: usize = 64;
/// Anchors whose certificates are kept for evidence.
const ANCHORS_KEPT: usize = 256;

/// A cosignature on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Who signed.
    pub node: NodeId,
    /// What.
    pub checkpoint: CheckpointRef,
    /// The cosignature.
    pub cosignature: Cosignature,
    /// Raft index the signer had applied: a hint, from an authenticated peer.
    pub log_index: u64,
}

/// What stands in the lock file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Lock {
    /// Highest checkpoint signed.
    pub checkpoint: CheckpointRef,
    /// Highest checkpoint signed, by an earlier boot's key, on a tail that was given up for a certified one. It can never be
    /// certified, so what lies below it is no longer this node's lock.
    pub superseded: Option<CheckpointRef>,
}

impl Lock {
    /// Reads the file's content; a file from before any tail was given up has the checkpoint only.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let whole = borsh::from_slice::<Self>(bytes);
        whole.ok().or_else(|| Some(Self { checkpoint: borsh::from_slice(bytes).ok()?, superseded: None }))
    }
}

/// A certificate that evidence can name as its nonce.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AnchorCertificate {
    /// The checkpoint.
    pub checkpoint: CheckpointRef,
    /// Its certificate.
    pub cosignatures: Vec<(NodeId, Cosignature)>,
    /// Raft index of its entry.
    pub log_index: u64,
    /// When this node saw it certified.
    pub seen: Timestamp,
}

/// What other tasks ask the cosigner.
#[derive(Debug, Default)]
struct Shared {
    lock: Option<CheckpointRef>,
    superseded: Option<CheckpointRef>,
    certified: Option<(CheckpointRef, u64)>,
    anchors: BTreeMap<TreeSize, AnchorCertificate>,
    /// Highest cosignature seen of each peer, and the log index it claimed.
    highest: HashMap<NodeId, (CheckpointRef, u64)>,
    /// Highest checkpoint of the log that this start found, in which this node counts by the key of an earlier one.
    counted: Option<CheckpointRef>,
    /// Where that log ended: no earlier start signed anything above.
    inherited: u64,
    /// Set once a quorum answered what it holds of ours: below this we never sign.
    floor: Option<TreeSize>,
}

/// Handle to the cosigner; cheap to clone.
#[derive(Clone)]
pub struct CosignerHandle {
    shared: Arc<Mutex<Shared>>,
    incoming: mpsc::Sender<Signed>,
    outgoing: broadcast::Sender<(Signed, Audience)>,
}

impl CosignerHandle {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A peer's cosignature.
    pub async fn received(&self, signed: Signed) {
        let _stopping = self.incoming.send(signed).await;
    }
    /// This node's cosignatures as they are made, and who should hear of each at once.
    pub fn subscribe(&self) -> broadcast::Receiver<(Signed, Audience)> {
        self.outgoing.subscribe()
    }
    /// The newest anchor with its certificate.
    pub fn newest_anchor(&self) -> Option<AnchorCertificate> {
        self.shared().anchors.last_key_value().map(|(_, a)| a.clone())
    }
    /// Highest checkpoint this node signed.
    pub fn lock(&self) -> Option<CheckpointRef> {
        self.shared().lock
    }
    /// Highest checkpoint of the log that this start found, in which this node counts by the key of an earlier one. That one may
    /// have signed it, and a power cut may have taken the lock: the log is the lock then.
    pub fn counted(&self) -> Option<CheckpointRef> {
        self.shared().counted
    }
    /// Whether all is applied that this start found in its log, if Raft applied its entries up to that index: before, an earlier start
    /// may have signed more than is known here.
    pub fn has_replayed(&self, applied: u64) -> bool {
        applied >= self.shared().inherited
    }
    /// Ends all signing until the next start, if nothing above `size` was signed, may have been signed, or is certified: what lies
    /// above it may then be given up. Whether it did. Not before all is applied that this start found in its log: an earlier one
    /// may have signed that, too.
    pub fn end_above(&self, size: TreeSize, applied: u64) -> bool {
        let mut shared = self.shared();
        let certified = shared.certified.map(|(c, _)| c);
        let nothing_above = [shared.lock, shared.counted, certified].iter().flatten().all(|c| c.size <= size);
        let unsigned = applied >= shared.inherited && nothing_above;
        if unsigned {
            shared.floor = Some(TreeSize(u64::MAX));
        }
        unsigned
    }
    /// Highest checkpoint this node saw certified.
    pub fn certified(&self) -> Option<CheckpointRef> {
        self.shared().certified.map(|(c, _)| c)
    }
    /// Highest cosignature of a node that this one holds.
    pub fn highest_of(&self, node: NodeId) -> Option<CheckpointRef> {
        self.shared().highest.get(&node).map(|(c, _)| *c)
    }
    /// Log index of that checkpoint.
    pub fn certified_index(&self) -> Option<u64> {
        self.shared().certified.map(|(_, index)| index)
    }
    /// A quorum answered: this node never signs below `size`, nor at it what it does not remember to have signed there.
    pub fn may_sign_from(&self, size: TreeSize) {
        let mut shared = self.shared();
        let own = shared.lock.map_or(TreeSize::ZERO, |l| l.size);
        // Peers remember the highest; on a tail that was given up it says nothing about the one that was certified.
        let given_up = shared.superseded.is_some_and(|s| size <= s.size);
        let size = match size > own && !given_up {
            true => TreeSize(size.0.saturating_add(1)),
            false => own,
        };
        shared.floor = Some(shared.floor.unwrap_or(size).max(size));
    }
}

/// A checkpoint of this node's own, and who cosigned it.
struct Pending {
    applied: AppliedCheckpoint,
    verified: BTreeMap<NodeId, VerifiedCosignature>,
}

/// What one peer signed, not verified yet.
#[derive(Default)]
struct Heard {
    by_size: BTreeMap<TreeSize, Signed>,
    order: VecDeque<TreeSize>,
}

impl Heard {
    fn insert(&mut self, signed: Signed) {
        self.order.push_back(signed.checkpoint.size);
        self.by_size.insert(signed.checkpoint.size, signed);
        while self.order.len() > HEARD_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.by_size.remove(&first);
        }
    }

    /// Forgets what a certificate covers.
    fn covered(&mut self, size: TreeSize) {
        self.by_size = self.by_size.split_off(&TreeSize(size.0.saturating_add(1)));
        self.order.retain(|s| *s > size);
    }
}

/// The task.
pub struct Cosigner {
    ledger: Ledger,
    boot: Boot,
    handle: CosignerHandle,
    incoming: mpsc::Receiver<Signed>,
    applied: mpsc::UnboundedReceiver<AppliedCheckpoint>,
    /// Log index durable in this node's own log.
    durable: tokio::sync::watch::Receiver<u64>,
    /// Whether this start's tree holds the lock: a log may end before what an earlier start signed, and go on elsewhere.
    holds_lock: bool,
    raft_floor: CertifiedFloor,
    lock_file: File,
    certificate_file: PathBuf,
    pending: BTreeMap<TreeSize, Pending>,
    heard: BTreeMap<NodeId, Heard>,
    /// Applied and not yet durable here, or not yet allowed: signed when that changes.
    unsigned: BTreeMap<TreeSize, AppliedCheckpoint>,
    /// The largest size that somebody here waits for.
    wanted: tokio::sync::watch::Receiver<TreeSize>,
    /// Whether to certify what nobody waits for.
    unhurried: bool,
    /// Keys whose equivocation this node has shown: one proof is enough, and each costs a leaf.
    accused: BTreeSet<(NodeId, [u8; 32])>,
}

/// Why the cosigner cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CosignerError {
    /// The lock.
    #[error("cannot use the sign lock {0}")]
    Lock(PathBuf, #[source] std::io::Error),
    /// The lock's content.
    #[error("the sign lock {0} is damaged: this node must not sign; replace the member, or admins decide")]
    Damaged(PathBuf),
}

/// What the cosigner is built from.
pub struct CosignerParts {
    /// View.
    pub ledger: Ledger,
    /// Keys.
    pub boot: Boot,
    /// Every applied batch.
    pub applied: mpsc::UnboundedReceiver<AppliedCheckpoint>,
    /// Durable log index.
    pub durable: tokio::sync::watch::Receiver<u64>,
    /// Raised as entries are certified.
    pub raft_floor: CertifiedFloor,
}

impl Cosigner {
    /// Opens the lock in `data_dir`. `create` only at `init`: a lock that is missing later is an error.
    pub fn open(data_dir: &Path, parts: CosignerParts) -> Result<(Self, CosignerHandle), CosignerError> {
        let path = data_dir.join("sign.lock");
        let fail = |e| CosignerError::Lock(path.clone(), e);
        let lock_file = OpenOptions::new().read(true).write(true).open(&path).map_err(fail)?;
        let bytes = std::fs::read(&path).map_err(fail)?;
        let lock = match bytes.is_empty() {
            true => None,
            false => Some(Lock::from_bytes(&bytes).ok_or_else(|| CosignerError::Damaged(path.clone()))?),
        };
        let certificate_file = data_dir.join("certificate");
        let mut shared = Shared {
            lock: lock.map(|l| l.checkpoint),
            superseded: lock.and_then(|l| l.superseded),
            ..Shared::default()
        };
        let mut heard: BTreeMap<NodeId, Heard> = BTreeMap::new();
        // Only a hint that saves a restart the way through recovery; evidence over it is checked by everyone.
        if let Some(a) = std::fs::read(&certificate_file)
            .ok()
            .and_then(|b| borsh::from_slice::<AnchorCertificate>(&b).ok())
        {
            shared.certified = Some((a.checkpoint, a.log_index));
            parts.raft_floor.raise(a.log_index);
            // Once its entry is applied again this is a certificate again: others learn from it what is certified, also
            // when too few are there to certify anything new.
            for (node, cosignature) in &a.cosignatures {
                let (node, cosignature) = (*node, *cosignature);
                let signed = Signed { node, checkpoint: a.checkpoint, cosignature, log_index: a.log_index };
                heard.entry(node).or_default().insert(signed);
            }
            shared.anchors.insert(a.checkpoint.size, a);
        }
        let (incoming_tx, incoming) = mpsc::channel(4096);
        let (outgoing, _) = broadcast::channel(4096);
        let handle = CosignerHandle { shared: Arc::new(Mutex::new(shared)), incoming: incoming_tx, outgoing };
        let CosignerParts { ledger, boot, applied, durable, raft_floor } = parts;
        let wanted = ledger.wanted();
        handle.shared().inherited = *durable.borrow();
        let cosigner = Self {
            ledger,
            boot,
            handle: handle.clone(),
            incoming,
            applied,
            durable,
            holds_lock: false,
            raft_floor,
            lock_file,
            certificate_file,
            pending: BTreeMap::new(),
            heard,
            unsigned: BTreeMap::new(),
            wanted,
            unhurried: false,
            accused: BTreeSet::new(),
        };
        Ok((cosigner, handle))
    }

    /// Makes the empty lock of a new node.
    pub fn init(data_dir: &Path) -> std::io::Result<()> {
        let path = data_dir.join("sign.lock");
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.sync_all()
    }

    /// Runs until the node stops.
    pub async fn run(mut self) {
        let mut retry = tokio::time::interval(UNHURRIED);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                // Before what peers send, which may come without end.
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.meet_newest();
                }
                changed = self.durable.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.sign_due();
                }
                applied = self.applied.recv() => match applied {
                    Some(applied) => self.on_applied(applied),
                    None => return,
                },
                signed = self.incoming.recv() => match signed {
                    Some(signed) => self.on_signed(signed),
                    None => return,
                },
                _ = retry.tick(), if !self.pending.is_empty() => {
                    self.sign_due();
                    self.unhurried = true;
                    self.meet_newest();
                    self.unhurried = false;
                }
            }
        }
    }

    fn on_applied(&mut self, applied: AppliedCheckpoint) {
        let size = applied.checkpoint.size;
        // It falls where Raft cut off what no leader had.
        let inherited = {
            let mut shared = self.handle.shared();
            shared.inherited = shared.inherited.min(*self.durable.borrow());
            shared.inherited
        };
        match applied.certifiers.keys.get(&self.ledger.me()) {
            Some(key) if *key == PublicKey(self.boot.keys.cosign) => {
                self.unsigned.insert(size, applied.clone());
                while self.unsigned.len() > PENDING_MAX {
                    self.unsigned.pop_first();
                }
            }
            Some(_) if applied.log_index <= inherited => {
                let lock = self.handle.shared().lock.filter(|l| l.size <= size);
                // What does not hold the lock no earlier start signed either.
                if lock.is_none_or(|l| self.extends(l)) {
                    self.handle.shared().counted = Some(applied.checkpoint);
                }
            }
            Some(_) | None => {}
        }
        self.pending.insert(size, Pending { applied, verified: BTreeMap::new() });
        while self.pending.len() > PENDING_MAX {
            self.pending.pop_first();
        }
        self.sign_due();
        self.meet(size);
    }

    /// Signs what has become durable and is allowed.
    fn sign_due(&mut self) {
        let durable = *self.durable.borrow_and_update();
        let (skew, now) = (self.ledger.view().policy.attestation.clock_skew_ms, self.ledger.now());
        while let Some((size, applied)) = self.unsigned.pop_first() {
            let (lock, floor) = {
                let shared = self.handle.shared();
                (shared.lock, shared.floor)
            };
            let newest = self.unsigned.is_empty();
            if applied.log_index > durable || floor.is_none() {
                self.unsigned.insert(size, applied);
                return;
            }
            let below = lock.is_some_and(|l| size < l.size || (size == l.size && applied.checkpoint != l));
            if below || floor.is_some_and(|f| size < f) {
                if lock.is_some_and(|l| l.size == size && l != applied.checkpoint) {
                    tracing::error!(
                        size = size.0,
                        "this node signed another root at this size before: it will not sign again"
                    );
                }
                continue;
            }
            // An old entry (replayed at start, or backdated by a lying leader) is never signed for its own sake: a
            // later checkpoint covers it.
            let stale = now.since_ms(applied.time) > skew && !newest;
            let far = now.since_ms(applied.time) > skew || applied.time.since_ms(now) > skew;
            if stale || far {
                continue;
            }
            if !self.holds_lock && lock.is_some_and(|l| !self.extends(l)) {
                tracing::error!(
                    size = size.0,
                    "this node signed another history than the one it follows now: it does not sign this one"
                );
                continue;
            }
            self.holds_lock = true;
            self.sign(&applied);
        }
    }

    /// What this node signed and a certified history, which its own tree is of, does not hold can be certified no more.
    fn let_go_of_lock(&mut self, certified: CheckpointRef) {
        let (lock, superseded) = {
            let shared = self.handle.shared();
            (shared.lock, shared.superseded)
        };
        let Some(lost) = lock.filter(|l| !self.holds_lock && l.size <= certified.size && !self.extends(*l))
        else {
            return;
        };
        let superseded = superseded.into_iter().chain([lost]).max_by_key(|c| c.size);
        let lock = Lock { checkpoint: certified, superseded };
        let written =
            self.lock_file.write_all_at(&encode(&lock), 0).and_then(|()| self.lock_file.sync_data());
        if let Err(e) = written {
            tracing::error!(error = %e, "cannot write the sign lock: not signing");
            return;
        }
        tracing::warn!(
            lost = lost.size.0,
            certified = certified.size.0,
            "what this node signed last is not of the certified history"
        );
        let mut shared = self.handle.shared();
        (shared.lock, shared.superseded) = (Some(certified), superseded);
        self.holds_lock = true;
    }

    fn extends(&self, lock: CheckpointRef) -> bool {
        self.ledger.tiles().root_at(lock.size).is_ok_and(|root| root == lock.root)
    }

    fn sign(&mut self, applied: &AppliedCheckpoint) {
        let superseded = {
            let mut shared = self.handle.shared();
            // In one step: nobody gives up a tail between the question and the signature.
            if shared.floor.is_none_or(|f| applied.checkpoint.size < f) {
                return;
            }
            shared.lock = Some(applied.checkpoint);
            shared.superseded
        };
        let lock = Lock { checkpoint: applied.checkpoint, superseded };
        if let Err(e) = self.lock_file.write_all_at(&encode(&lock), 0) {
            tracing::error!(error = %e, "cannot write the sign lock: not signing");
            return;
        }
        let (me, checkpoint) = (self.ledger.me(), self.checkpoint(applied.checkpoint));
        let made = applied.certifiers.cosign(&checkpoint, me, &self.boot.cosign, self.ledger.now().0 / 1000);
        let verified = match made {
            Ok(verified) => verified,
            Err(e) => {
                tracing::error!(error = %e, "this node's key may not certify: not signing");
                return;
            }
        };
        let cosignature = verified.cosignature();
        let signed =
            Signed { node: me, checkpoint: applied.checkpoint, cosignature, log_index: applied.log_index };
        let _nobody_connected = self.handle.outgoing.send((signed, applied.audience.clone()));
        #[cfg(feature = "danger-hostile")]
        if crate::danger_hostile::is("cosign:two-roots") {
            let mut other = applied.checkpoint;
            other.root.0[0] ^= 1;
            let time_s = self.ledger.now().0 / 1000;
            let made = applied.certifiers.cosign(&self.checkpoint(other), me, &self.boot.cosign, time_s);
            if let Ok(made) = made {
                let log_index = applied.log_index;
                let signed =
                    Signed { node: me, checkpoint: other, cosignature: made.cosignature(), log_index };
                let _nobody_connected = self.handle.outgoing.send((signed, applied.audience.clone()));
            }
        }
        if let Some(pending) = self.pending.get_mut(&applied.checkpoint.size) {
            pending.verified.insert(me, verified);
        }
        self.meet(applied.checkpoint.size);
    }

    fn checkpoint(&self, reference: CheckpointRef) -> Checkpoint {
        checkpoint_of(self.ledger.origin(), reference)
    }

    fn on_signed(&mut self, signed: Signed) {
        let size = signed.checkpoint.size;
        {
            let mut shared = self.handle.shared();
            let known = shared.highest.entry(signed.node).or_insert((signed.checkpoint, 0));
            if known.0.size <= size {
                *known = (signed.checkpoint, signed.log_index.max(known.1));
            }
            if shared.certified.is_some_and(|(c, _)| size <= c.size) {
                return;
            }
        }
        let verified = self.pending.get(&size).and_then(|pending| {
            Some(Signed {
                node: signed.node,
                checkpoint: pending.applied.checkpoint,
                cosignature: pending.verified.get(&signed.node)?.cosignature(),
                log_index: pending.applied.log_index,
            })
        });
        let heard = self.heard.entry(signed.node).or_default();
        let earlier = heard.by_size.get(&size).cloned().or(verified);
        if let Some(earlier) = earlier {
            if earlier.checkpoint != signed.checkpoint {
                self.accuse(&earlier, &signed);
            }
            return;
        }
        heard.insert(signed);
        self.meet(size);
    }

    /// Two roots at one size by one node: whoever sees it, shows it.
    fn accuse(&mut self, one: &Signed, other: &Signed) {
        let Some(key) = self.ledger.view().attested(one.node).map(|b| PublicKey(b.cosign)) else { return };
        let proven = |s: &Signed| s.cosignature.verify(&self.checkpoint(s.checkpoint), &key.0).is_ok();
        if !proven(one) || !proven(other) || !self.accused.insert((one.node, key.0)) {
            return;
        }
        tracing::error!(
            node = one.node.0,
            size = one.checkpoint.size.0,
            "a node signed two roots at one size"
        );
        self.ledger.alarm(Alarm::Equivocation {
            accused: one.node,
            key,
            size: one.checkpoint.size,
            one: (one.checkpoint.root, one.cosignature),
            other: (other.checkpoint.root, other.cosignature),
        });
    }

    /// The newest checkpoint that a quorum signed covers all before it.
    fn meet_newest(&mut self) {
        let sizes: Vec<TreeSize> = self.pending.keys().rev().take(NEWEST).copied().collect();
        for size in sizes {
            self.meet(size);
            if !self.pending.contains_key(&size) {
                return;
            }
        }
    }

    /// Verifies what waits at this size, as far as needed, and publishes the certificate once a quorum met. What nobody here
    /// waits for is left to the next tick, which checks the newest only: most certificates are some other node's business.
    fn meet(&mut self, size: TreeSize) {
        let Some(pending) = self.pending.get_mut(&size) else { return };
        let applied = &pending.applied;
        let certified = self.handle.shared().certified.map_or(TreeSize::ZERO, |(c, _)| c.size);
        if certified >= *self.wanted.borrow() && !applied.anchor && !self.unhurried {
            return;
        }
        let checkpoint = checkpoint_of(self.ledger.origin(), applied.checkpoint);
        let certifiers: &Certifiers = &applied.certifiers;
        let satisfied = |v: &BTreeMap<NodeId, VerifiedCosignature>| {
            certifiers.satisfied_by(&v.keys().copied().collect()).is_ok()
        };
        let mut done = satisfied(&pending.verified);
        for (node, heard) in &mut self.heard {
            if done {
                break;
            }
            let node = *node;
            let Some(signed) = heard.by_size.remove(&size) else { continue };
            if signed.checkpoint != applied.checkpoint {
                tracing::error!(
                    node = node.0,
                    size = size.0,
                    "a peer signed another root than this node's own: histories differ"
                );
                continue;
            }
            match certifiers.check(&checkpoint, node, signed.cosignature) {
                Ok(verified) => drop(pending.verified.insert(node, verified)),
                Err(e) => {
                    tracing::warn!(node = node.0, size = size.0, error = %e, "a cosignature does not count")
                }
            }
            done = satisfied(&pending.verified);
        }
        if !done {
            return;
        }
        let applied = applied.clone();
        let cosignatures: Vec<_> = pending.verified.values().cloned().collect();
        self.certified(applied, checkpoint, cosignatures);
    }

    fn certified(
        &mut self,
        applied: AppliedCheckpoint,
        checkpoint: Checkpoint,
        cosignatures: Vec<VerifiedCosignature>,
    ) {
        // Each was verified as it came, which its type says: to verify all once more would be on every request's path.
        let certified = match applied.certifiers.certify_verified(checkpoint, cosignatures) {
            Ok(certified) => certified,
            Err(e) => {
                tracing::error!(error = %e, "a met quorum does not certify: this is a bug");
                return;
            }
        };
        let (own, log_index) = (applied.checkpoint, applied.log_index);
        self.raft_floor.raise(log_index);
        {
            let mut shared = self.handle.shared();
            if shared.certified.is_none_or(|(c, _)| c.size < own.size) {
                shared.certified = Some((own, log_index));
            }
            if applied.anchor {
                let cosignatures = certified.cosignatures().to_vec();
                let anchor =
                    AnchorCertificate { checkpoint: own, cosignatures, log_index, seen: self.ledger.now() };
                // Not fsynced: after a power cut the mesh recovers without it.
                if let Err(e) = std::fs::write(&self.certificate_file, encode(&anchor)) {
                    tracing::warn!(error = %e, "cannot keep the newest certificate");
                }
                // One read at start keeps the time it was seen at.
                shared.anchors.entry(own.size).or_insert(anchor);
                while shared.anchors.len() > ANCHORS_KEPT {
                    shared.anchors.pop_first();
                }
            }
        }
        self.let_go_of_lock(own);
        self.ledger.publish(Certified { certified, own, log_index });
        // What lies below is covered.
        self.pending = self.pending.split_off(&TreeSize(own.size.0.saturating_add(1)));
        for heard in self.heard.values_mut() {
            heard.covered(own.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::BlobStore;
    use crate::ledger::Start;
    use crate::tilestore::TileStore;
    use quorate_core::state::Applied;
    use quorate_core::testing::Mesh;

    fn wanted(size: TreeSize) -> tokio::sync::watch::Receiver<TreeSize> {
        tokio::sync::watch::channel(size).1
    }

    struct Bench {
        mesh: Mesh,
        ledger: Ledger,
        cosigner: Cosigner,
        folder: tempfile::TempDir,
    }

    impl Bench {
        /// The cosigner of a node that does not sign itself: its boot is new.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut mesh = Mesh::four();
            mesh.attest_all();
            let (state, leaf) = mesh.fleet.genesis();
            let tiles_dir = folder.path().join("tiles");
            let mut tiles = TileStore::create(&tiles_dir).unwrap();
            tiles.append(&[leaf]).unwrap();
            let blobs = BlobStore::open(folder.path()).unwrap();
            let (me, on_leaf) = (NodeId(4), Box::new(|_: &_| ()));
            let start = Start { me, state, log_index: 0, tiles, tiles_dir, blobs, on_leaf };
            let (applied_tx, _) = mpsc::unbounded_channel();
            let (ledger, _applier) = Ledger::new(start, applied_tx, mpsc::channel(16).0);
            Cosigner::init(folder.path()).unwrap();
            let cosigner = Self::open(&folder, &ledger);
            Self { mesh, ledger, cosigner, folder }
        }

        fn open(folder: &tempfile::TempDir, ledger: &Ledger) -> Cosigner {
            let parts = CosignerParts {
                ledger: ledger.clone(),
                boot: Boot::new().unwrap(),
                applied: mpsc::unbounded_channel().1,
                durable: tokio::sync::watch::channel(u64::MAX).1,
                raft_floor: CertifiedFloor::new(),
            };
            let mut cosigner = Cosigner::open(folder.path(), parts).unwrap().0;
            cosigner.wanted = wanted(TreeSize(u64::MAX));
            cosigner
        }

        fn signed(&mut self, node: u64, checkpoint: CheckpointRef) -> Signed {
            let state = self.mesh.state().clone();
            let cosignature = self.mesh.fleet.node(node).cosign(&state, checkpoint);
            Signed { node: NodeId(node), checkpoint, cosignature, log_index: 1 }
        }

        fn applied(&self, applied: &Applied) -> AppliedCheckpoint {
            AppliedCheckpoint {
                audience: Audience::All,
                log_index: 1,
                checkpoint: applied.checkpoint,
                certifiers: applied.certifiers.clone(),
                anchor: applied.anchor,
                time: self.mesh.time,
            }
        }

        fn certified(&self) -> Option<CheckpointRef> {
            self.ledger.certified().borrow().as_ref().map(|c| c.own)
        }
    }

    #[test]
    fn a_peer_that_signs_without_end_crowds_out_nobody() {
        let mut bench = Bench::new();
        let applied = bench.mesh.apply(vec![]);
        for node in 1..=3 {
            let signed = bench.signed(node, applied.checkpoint);
            bench.cosigner.on_signed(signed);
        }
        // Sizes that are never reached: before, and once more after, the node applied the entry itself.
        let spam = bench.signed(4, applied.checkpoint);
        for size in 0..3 * PENDING_MAX as u64 {
            let checkpoint = CheckpointRef { size: TreeSize(1_000_000 + size), ..spam.checkpoint };
            bench.cosigner.on_signed(Signed { checkpoint, ..spam.clone() });
        }
        assert_eq!(bench.cosigner.heard[&NodeId(4)].by_size.len(), HEARD_MAX);
        bench.cosigner.on_applied(bench.applied(&applied));
        assert_eq!(bench.certified(), Some(applied.checkpoint));
    }

    /// An entry in which this start's own key may certify.
    fn counting(bench: &mut Bench) -> AppliedCheckpoint {
        let applied = bench.mesh.apply(vec![]);
        let mut applied = bench.applied(&applied);
        applied.certifiers.keys.insert(NodeId(4), PublicKey(bench.cosigner.boot.keys.cosign));
        applied.time = bench.ledger.now();
        applied
    }

    #[test]
    fn what_an_earlier_start_may_have_signed_is_held() {
        let mut bench = Bench::new();
        let (applied, handle) = (bench.mesh.apply(vec![]), bench.cosigner.handle.clone());
        let held = |bench: &Bench| crate::giveup::held(&bench.cosigner.handle, bench.mesh.fleet.cluster());
        assert_eq!(held(&bench).size, TreeSize(1));
        bench.cosigner.on_applied(bench.applied(&applied));
        assert_eq!((handle.lock(), held(&bench)), (None, applied.checkpoint));
        let next = bench.mesh.apply(vec![]);
        let mut without = bench.applied(&next);
        without.certifiers.keys.remove(&NodeId(4));
        bench.cosigner.on_applied(without);
        assert_eq!(held(&bench), applied.checkpoint, "a node that does not count signs nothing");
        bench.cosigner.handle.shared().inherited = 0;
        let since = bench.mesh.apply(vec![]);
        bench.cosigner.on_applied(bench.applied(&since));
        assert_eq!(held(&bench), applied.checkpoint, "the earlier start was over");
    }

    #[test]
    fn nothing_is_signed_once_a_tail_is_given_up_and_nothing_signed_is() {
        let mut bench = Bench::new();
        let handle = bench.cosigner.handle.clone();
        handle.may_sign_from(TreeSize::ZERO);
        let first = counting(&mut bench);
        bench.cosigner.on_applied(first.clone());
        assert_eq!(handle.lock(), Some(first.checkpoint));
        assert!(
            !handle.end_above(first.checkpoint.size, u64::MAX - 1),
            "more is in the log that this start found"
        );
        bench.cosigner.handle.shared().inherited = 1;
        bench.cosigner.on_applied(first.clone());
        // It was signed since the peers were asked.
        assert!(!handle.end_above(TreeSize(first.checkpoint.size.0 - 1), 1));
        let second = counting(&mut bench);
        bench.cosigner.on_applied(second.clone());
        assert_eq!(handle.lock(), Some(second.checkpoint), "it signs on");
        assert!(handle.end_above(second.checkpoint.size, 1));
        let third = counting(&mut bench);
        bench.cosigner.on_applied(third.clone());
        bench.cosigner.sign(&third);
        handle.may_sign_from(TreeSize::ZERO);
        bench.cosigner.on_applied(third);
        assert_eq!(handle.lock(), Some(second.checkpoint));
    }

    #[test]
    fn who_signed_another_history_does_not_sign_this_one() {
        let mut bench = Bench::new();
        let (size, root) = (TreeSize(1), bench.ledger.tiles().root_at(TreeSize(1)).unwrap());
        for (root, signs) in [(quorate_core::crypto::Hash([7; 32]), false), (root, true)] {
            let lock = Lock { checkpoint: CheckpointRef { size, root }, superseded: None };
            std::fs::write(bench.folder.path().join("sign.lock"), encode(&lock)).unwrap();
            bench.cosigner = Bench::open(&bench.folder, &bench.ledger);
            bench.cosigner.handle.may_sign_from(size);
            let first = counting(&mut bench);
            bench.cosigner.on_applied(first.clone());
            let signed = if signs { first.checkpoint } else { lock.checkpoint };
            assert_eq!(bench.cosigner.handle.lock(), Some(signed));
        }
    }

    #[test]
    fn a_lock_that_the_certified_history_does_not_hold_is_let_go_of() {
        let mut bench = Bench::new();
        let genesis = bench.ledger.tiles().root_at(TreeSize(1)).unwrap();
        let at = |size, root| CheckpointRef { size: TreeSize(size), root };
        let lost = at(1, quorate_core::crypto::Hash([7; 32]));
        for (lock, lets_go) in [(lost, true), (at(1, genesis), false), (at(9, genesis), false)] {
            let lock = Lock { checkpoint: lock, superseded: None };
            std::fs::write(bench.folder.path().join("sign.lock"), encode(&lock)).unwrap();
            bench.cosigner = Bench::open(&bench.folder, &bench.ledger);
            let certified = at(5, genesis);
            bench.cosigner.let_go_of_lock(certified);
            let written = Lock::from_bytes(&std::fs::read(bench.folder.path().join("sign.lock")).unwrap());
            let superseded = Lock { checkpoint: certified, superseded: Some(lost) };
            assert_eq!(written, Some(if lets_go { superseded } else { lock }));
        }
    }

    #[test]
    fn two_of_four_certify_nothing() {
        let mut bench = Bench::new();
        let applied = bench.mesh.apply(vec![]);
        bench.cosigner.on_applied(bench.applied(&applied));
        for node in [1, 2] {
            let signed = bench.signed(node, applied.checkpoint);
            bench.cosigner.on_signed(signed.clone());
            bench.cosigner.on_signed(Signed { node: NodeId(3), ..signed });
        }
        assert_eq!(bench.certified(), None);
        let third = bench.signed(3, applied.checkpoint);
        bench.cosigner.on_signed(third);
        assert_eq!(bench.certified(), Some(applied.checkpoint));
    }

    #[test]
    fn what_nobody_waits_for_is_certified_unhurriedly_and_at_once_when_somebody_does() {
        let mut bench = Bench::new();
        bench.cosigner.wanted = wanted(TreeSize::ZERO);
        let sign_all = |bench: &mut Bench| {
            let applied = bench.mesh.apply(vec![]);
            bench.cosigner.on_applied(bench.applied(&applied));
            for node in 1..=3 {
                let signed = bench.signed(node, applied.checkpoint);
                bench.cosigner.on_signed(signed);
            }
            applied.checkpoint
        };
        let (_, second) = (sign_all(&mut bench), sign_all(&mut bench));
        assert_eq!(bench.certified(), None);
        bench.cosigner.unhurried = true;
        bench.cosigner.meet_newest();
        bench.cosigner.unhurried = false;
        assert_eq!(bench.certified(), Some(second));
        assert!(bench.cosigner.pending.is_empty(), "the first is covered by the second");

        // Somebody waits for a size whose own cosignatures never come: a later one will do.
        let third = bench.mesh.apply(vec![]);
        bench.cosigner.on_applied(bench.applied(&third));
        bench.cosigner.wanted = wanted(third.checkpoint.size);
        let fourth = sign_all(&mut bench);
        assert_eq!(bench.certified(), Some(fourth));
    }

    #[test]
    fn a_restarted_node_takes_its_newest_certificate_up_again() {
        let mut bench = Bench::new();
        bench.mesh.wait(2_000);
        let applied = bench.mesh.apply(vec![]);
        assert!(applied.anchor);
        bench.cosigner.on_applied(bench.applied(&applied));
        for node in 1..=3 {
            let signed = bench.signed(node, applied.checkpoint);
            bench.cosigner.on_signed(signed);
        }
        bench.ledger = Bench::new().ledger;
        let mut again = Bench::open(&bench.folder, &bench.ledger);
        assert_eq!((again.handle.certified(), bench.certified()), (Some(applied.checkpoint), None));
        again.on_applied(bench.applied(&applied));
        assert_eq!(bench.certified(), Some(applied.checkpoint), "nobody had to sign again");
    }

    #[test]
    fn a_superseded_lock_binds_no_more_and_a_claim_above_it_does() {
        let bench = Bench::new();
        let at = |size| CheckpointRef { size: TreeSize(size), ..bench.mesh.state().checkpoint() };
        let lock = Lock { checkpoint: at(10), superseded: Some(at(500)) };
        std::fs::write(bench.folder.path().join("sign.lock"), encode(&lock)).unwrap();
        for (claimed, floor) in [(0, 10), (10, 10), (400, 10), (500, 10), (501, 502)] {
            let handle = Bench::open(&bench.folder, &bench.ledger).handle;
            handle.may_sign_from(TreeSize(claimed));
            assert_eq!(handle.shared().floor, Some(TreeSize(floor)), "claimed {claimed}");
        }
        // A lock of the first format.
        std::fs::write(bench.folder.path().join("sign.lock"), encode(&at(10))).unwrap();
        assert_eq!(Bench::open(&bench.folder, &bench.ledger).handle.lock(), Some(at(10)));
    }
}
