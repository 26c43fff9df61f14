//! This node's shares of provider keys, opened: its own mask A_k of each credentialed route, and other keyers' complements B_j.
//!
//! ```text
//! policy in force ──► Keeper: TPM unseals the share key ──► opens the policy's sealed shares ──► Vault ──► relay, keyer
//!        └─ approvals dropped: the TPM's counter is raised first     (the share key is erased again)
//! ```
//! **Decides**: which shares may be used: those of the policy in force, of the share epoch it names, and only while the policy's
//! approvals let this machine's TPM open the share key. A policy that no longer does takes the shares out of memory at once; a TPM
//! that merely does not answer leaves those of an unchanged epoch.
//!
//! **Refuses** to be an oracle: a share is asked for by route, epoch and keyer, and what is missing has a reason ([`Missing`])
//! that operators read in status and trace, strangers do not.
//!
//! **In memory** shares lie on pages of their own, locked where the system allows it, erased when the policy changes and when the
//! node stops; what is handed out for one request is an erased copy. No type here has a `Debug` that shows them.
//!
//! The TPM is asked when a policy changes what concerns shares, never on a request's path.
mod locked;
pub mod sealed;

use crate::directory::PolicyChain;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use locked::{LockedBytes, NoRoom, Place};
use quorate_attest_tpm::TpmHandle;
use quorate_core::ids::{NodeId, PolicyVersion, RouteId};
use quorate_core::policy::{Member, Policy, Route};
use quorate_core::shares::{self, NodeShares, OpenError, SharePrivateKey};
use quorate_splitkey::share::{Complement, Mask};
use sealed::UnsealError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// A policy is in force a moment before its shares are opened; a request waits this long for them.
const OPENING_WAIT: Duration = Duration::from_millis(1_000);
/// After a TPM that did not answer.
const RETRY: Duration = Duration::from_secs(2);

/// Why a share is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The policy's shares are being opened.
    #[error("the shares are being opened")]
    Opening,
    /// The node holds shares of another share epoch, or the route has no credential.
    #[error("the node holds shares of another share epoch")]
    Epoch,
    /// The private share key is not to be had.
    #[error("the share key is not open: {0}")]
    Locked(String),
    /// What the policy holds for this node does not open.
    #[error("the sealed shares do not open: {0}")]
    Sealed(#[from] OpenError),
    /// The policy holds none for this node.
    #[error("the policy seals no share to this node")]
    NotSealed,
    /// The memory for them.
    #[error("there is no memory for shares")]
    Memory,
    /// The node is stopping.
    #[error("the node is stopping")]
    Erased,
}

impl From<NoRoom> for Missing {
    fn from(_: NoRoom) -> Self {
        Self::Memory
    }
}

/// Shares, as relay and keyer see them. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    me: NodeId,
    held: watch::Sender<Arc<Held>>,
}

#[derive(Default)]
struct Held {
    routes: BTreeMap<RouteId, (u32, Result<Arc<RouteShares>, Missing>)>,
    erased: bool,
}

/// One route's shares, together on their pages.
struct RouteShares {
    bytes: LockedBytes,
    mask: Place,
    complements: BTreeMap<NodeId, Place>,
    locked: bool,
}

impl RouteShares {
    fn new(shares: &NodeShares) -> Result<Self, NoRoom> {
        let all = std::iter::once(&shares.mask).chain(shares.complements.values());
        let (mut bytes, locked) = LockedBytes::new(all.map(shares::Share::len).sum())?;
        let mask = bytes.push(shares.mask.expose_bytes())?;
        let mut complements = BTreeMap::new();
        for (node, share) in &shares.complements {
            complements.insert(*node, bytes.push(share.expose_bytes())?);
        }
        Ok(Self { bytes, mask, complements, locked })
    }

    fn copy(&self, place: &Place) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.bytes.expose_bytes(place).to_vec())
    }
}

impl Held {
    fn route(&self, route: &RouteId, epoch: u32) -> Result<&RouteShares, Missing> {
        if self.erased {
            return Err(Missing::Erased);
        }
        match self.routes.get(route) {
            Some((of, shares)) if *of == epoch => shares.as_deref().map_err(Clone::clone),
            Some((of, _)) if *of > epoch => Err(Missing::Epoch),
            // Not of the past: its policy is in force, or about to be.
            Some(_) | None => Err(Missing::Opening),
        }
    }
}

impl Vault {
    /// Without shares.
    pub fn new(me: NodeId) -> Self {
        Self { me, held: watch::Sender::new(Arc::default()) }
    }

    /// This node's own share for a route, A_k.
    pub fn mask(&self, route: &RouteId, epoch: u32) -> Result<Mask, Missing> {
        let held = Arc::clone(&self.held.borrow());
        let shares = held.route(route, epoch)?;
        Mask::new(shares.copy(&shares.mask)).map_err(|_| Missing::NotSealed)
    }

    /// What this node holds for another keyer of a route, B_keyer.
    pub fn complement(&self, route: &RouteId, epoch: u32, keyer: NodeId) -> Result<Complement, Missing> {
        let held = Arc::clone(&self.held.borrow());
        let shares = held.route(route, epoch)?;
        let place = shares.complements.get(&keyer).ok_or(Missing::NotSealed)?;
        Complement::new(shares.copy(place)).map_err(|_| Missing::NotSealed)
    }

    /// Whether the shares are there; waits a moment while they are being opened.
    pub async fn ready(&self, route: &RouteId, epoch: u32) -> Result<(), Missing> {
        let mut held = self.held.subscribe();
        let opened = held.wait_for(|h| !matches!(h.route(route, epoch), Err(Missing::Opening)));
        match tokio::time::timeout(OPENING_WAIT, opened).await {
            Ok(Ok(held)) => held.route(route, epoch).map(|_| ()),
            Ok(Err(_)) => Err(Missing::Erased),
            Err(_) => Err(Missing::Opening),
        }
    }

    /// How many wait for shares that are being opened.
    #[cfg(test)]
    pub(crate) fn awaited(&self) -> usize {
        self.held.receiver_count()
    }

    /// Each route of the policy with a credential: its share epoch, and why its shares are missing, if they are.
    pub fn status(&self, policy: &Policy) -> Vec<(RouteId, u32, Result<(), Missing>)> {
        let held = Arc::clone(&self.held.borrow());
        let keyed = policy.routes.values().filter(|r| r.credential.is_some());
        keyed
            .map(|r| (r.id.clone(), r.share_epoch(), held.route(&r.id, r.share_epoch()).map(|_| ())))
            .collect()
    }

    /// Opens what the policy seals to this node, in place of everything held.
    pub fn open(&self, policy: &Policy, key: &SharePrivateKey) {
        let open = |route: &RouteId| -> Result<RouteShares, Missing> {
            let binding = shares::ShareBinding::of(policy, route).ok_or(Missing::Epoch)?;
            let credential = policy.routes.get(route).and_then(|r| r.credential.as_ref());
            let sealed = credential.and_then(|c| c.shares.get(&self.me)).ok_or(Missing::NotSealed)?;
            Ok(RouteShares::new(&shares::open(&binding, self.me, key, sealed)?)?)
        };
        self.set(policy, |route, _| open(route).map(Arc::new));
    }

    /// Takes everything out of memory, for one reason.
    pub(crate) fn close(&self, policy: &Policy, reason: &Missing) {
        self.set(policy, |_, _| Err(reason.clone()));
    }

    /// Takes out of memory what is not of this policy, and gives a reason for what is missing.
    fn retain(&self, policy: &Policy, reason: &Missing) {
        let old = Arc::clone(&self.held.borrow());
        self.set(policy, |route, epoch| match old.routes.get(route) {
            Some((of, Ok(shares))) if *of == epoch => Ok(Arc::clone(shares)),
            _ => Err(reason.clone()),
        });
    }

    fn set(&self, policy: &Policy, open: impl Fn(&RouteId, u32) -> Result<Arc<RouteShares>, Missing>) {
        let keyed = policy.routes.values().filter(|r| r.credential.is_some());
        let of = |r: &Route| (r.id.clone(), (r.share_epoch(), open(&r.id, r.share_epoch())));
        let routes: BTreeMap<_, _> = keyed.map(of).collect();
        self.held.send_if_modified(|held| {
            if !held.erased {
                *held = Arc::new(Held { routes, erased: false });
            }
            !held.erased
        });
    }

    /// Whether all that is held lies on locked pages.
    fn is_locked(&self) -> bool {
        self.held.borrow().routes.values().all(|(_, shares)| shares.as_ref().map_or(true, |s| s.locked))
    }

    /// For good: the node stops.
    pub fn erase(&self) {
        self.held.send_replace(Arc::new(Held { routes: BTreeMap::new(), erased: true }));
    }
}

/// What of a policy concerns this node's shares: as long as it is the same, nothing is opened anew.
#[derive(PartialEq, Eq)]
struct Concern {
    share_key: Option<quorate_core::shares::SharePublicKey>,
    approvals: Vec<Vec<u8>>,
    shares: BTreeMap<RouteId, u32>,
}

impl Concern {
    fn of(policy: &Policy, me: NodeId) -> Self {
        let member = policy.members.get(&me);
        let keyed = policy.routes.values().filter(|r| r.credential.is_some());
        Self {
            share_key: member.and_then(|m| m.share_key.clone()),
            approvals: member.map(|m| m.approvals.clone()).unwrap_or_default(),
            shares: keyed.map(|r| (r.id.clone(), r.share_epoch())).collect(),
        }
    }
}

/// Keeps the vault as the policy has it.
pub struct Keeper {
    /// Whose policy.
    pub ledger: Ledger,
    /// What it fills.
    pub vault: Vault,
    /// Opens the share key.
    pub tpm: TpmHandle,
    /// Where the sealed share key lies.
    pub data_dir: PathBuf,
    /// Earlier policies: what they approved may be withdrawn since.
    pub chain: PolicyChain,
    /// Shows what is missing.
    pub metrics: Arc<Metrics>,
}

impl Keeper {
    /// Runs until the node stops.
    pub async fn run(self) {
        let mut changed = self.ledger.standing_changed();
        let mut done = None::<Concern>;
        let mut said = Said::default();
        loop {
            changed.mark_unchanged();
            let policy = Arc::clone(&self.ledger.view().policy);
            let mut retry = None;
            let concern = Concern::of(&policy, self.ledger.me());
            if done.as_ref() != Some(&concern) {
                said.0.clear();
                let opened = self.refresh(&policy, &mut said).await;
                done = opened.then_some(concern);
                retry = (!opened).then(|| Instant::now() + RETRY);
            }
            // A TPM that fails is not asked each time that somebody lapses.
            while self.ledger.view().policy.digest == policy.digest {
                let next = changed.changed();
                let woken = match retry {
                    None => Ok(next.await),
                    Some(at) => tokio::time::timeout_at(at, next).await,
                };
                match woken {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        let opened = self.refresh(&policy, &mut said).await;
                        done = opened.then(|| Concern::of(&policy, self.ledger.me()));
                        retry = (!opened).then(|| Instant::now() + RETRY);
                    }
                }
            }
        }
    }

    /// Opens the shares of this policy; `false` when it is to be tried again.
    async fn refresh(&self, policy: &Arc<Policy>, said: &mut Said) -> bool {
        let Some(member) = policy.members.get(&self.ledger.me()) else {
            self.vault.close(policy, &Missing::NotSealed);
            return true;
        };
        let withdrawn = self.withdraw(policy, member, said).await;
        let keyed = policy.routes.values().any(|r| r.credential.is_some());
        let opened = if keyed {
            match sealed::unseal(&self.tpm, &self.data_dir, policy, member).await {
                Ok(key) => self.open(policy, key).await,
                Err(error) => {
                    let reason = crate::report::chain(&error);
                    self.lock(policy, &error, &reason);
                    said.once(&reason, |reason| {
                        tracing::error!(reason, "this node cannot open its shares of provider keys");
                    });
                    !error.is_passing()
                }
            }
        } else {
            self.vault.close(policy, &Missing::Epoch);
            true
        };
        let status = self.vault.status(policy);
        let missing = status.iter().filter(|(.., held)| held.is_err()).count();
        self.metrics.shares(status.len() - missing, missing);
        for (route, epoch, held) in &status {
            // A reason for all of them was given above.
            if let Err(missing @ (Missing::Sealed(_) | Missing::NotSealed | Missing::Memory)) = held {
                said.once(&format!("{route}: {missing}"), |reason| {
                    tracing::error!(
                        reason,
                        epoch,
                        "this node has no shares of a provider key: split it again (`quorate admin credential rotate`)"
                    );
                });
            }
        }
        if keyed && missing == 0 {
            if !self.vault.is_locked() {
                said.once("not locked", |_| {
                    tracing::warn!(
                        "shares of provider keys lie in memory that may be swapped out: raise the limit of locked memory (LimitMEMLOCK)"
                    );
                });
            }
            said.once("open", |_| {
                tracing::info!(routes = status.len(), "shares of provider keys are open");
            });
        }
        opened && withdrawn
    }

    async fn open(&self, policy: &Arc<Policy>, key: SharePrivateKey) -> bool {
        let (vault, of) = (self.vault.clone(), Arc::clone(policy));
        // Some hundred microseconds for each route; the key goes with the task.
        tokio::task::spawn_blocking(move || vault.open(&of, &key)).await.is_ok()
    }

    /// What may no longer be used goes; a TPM that did not answer takes away nothing that is unchanged.
    fn lock(&self, policy: &Policy, error: &UnsealError, reason: &str) {
        let reason = Missing::Locked(reason.to_owned());
        if error.is_passing() {
            self.vault.retain(policy, &reason);
        } else {
            self.vault.close(policy, &reason);
        }
    }

    /// Raises the TPM's counter above approvals that earlier policies held and this one does not; `false` to try again.
    async fn withdraw(&self, policy: &Policy, member: &Member, said: &mut Said) -> bool {
        if member.share_key.is_none() {
            return true;
        }
        let (chain, me, version) = (self.chain.clone(), member.id, policy.version);
        let earlier = tokio::task::spawn_blocking(move || approvals_before(&chain, me, version)).await;
        let Ok(earlier) = earlier else { return false };
        let current: BTreeSet<&Vec<u8>> = member.approvals.iter().collect();
        let dropped = earlier.iter().filter(|a| !current.contains(a)).map(Vec::as_slice);
        let Some((counter, to)) = sealed::withdrawal(member.approvals.iter().map(Vec::as_slice), dropped)
        else {
            return true;
        };
        let raised = match self.tpm.counter(counter).await {
            Ok(value) if value >= to => return true,
            Ok(_) => self.tpm.raise_counter(counter, to).await,
            Err(error) => Err(error),
        };
        match raised {
            Ok(value) => {
                tracing::info!(counter = value, "withdrawn approvals no longer open the share key");
                true
            }
            Err(error) => {
                said.once(&crate::report::chain(&error), |error| {
                    tracing::error!(
                        error,
                        "withdrawn approvals still open the share key: the TPM's counter cannot be raised"
                    );
                });
                false
            }
        }
    }
}

/// Every approval of this node in a version below this one.
fn approvals_before(chain: &PolicyChain, me: NodeId, version: PolicyVersion) -> BTreeSet<Vec<u8>> {
    let earlier = chain.upto(PolicyVersion(version.0.saturating_sub(1))).unwrap_or_default();
    let policies = earlier.iter().filter_map(|signed| Policy::parse(&signed.document).ok());
    policies.filter_map(|mut p| p.members.remove(&me)).flat_map(|m| m.approvals).collect()
}

/// What was said of the present policy: the same thing is said once, however often it is tried.
#[derive(Default)]
struct Said(BTreeSet<String>);

impl Said {
    fn once(&mut self, text: &str, say: impl FnOnce(&str)) {
        if self.0.insert(text.to_owned()) {
            say(text);
        }
    }
}

#[cfg(test)]
pub(crate) mod swtpm;
#[cfg(test)]
mod tests;
