//! The way out of darkness, driven by whoever leads: collect contributions from a quorum, have each quote over all of them,
//! propose one `recover` entry. Nobody needs to trust the leader for it: every signer checks that its own fresh value is in.
use crate::attester::{Attested, Attester};
use crate::blobs::BlobStore;
use crate::boot::{Boot, random};
use crate::cosigner::CosignerHandle;
use crate::ledger::{DecideError, Ledger, View};
use crate::peers::Peers;
use crate::proposer::leads;
use crate::raft::types::Raft;
use quorate_attest::evidence::Evidence;
use quorate_core::command::{CheckpointRef, Command, Contribution, RecoverCommand};
use quorate_core::crypto::Signature;
use quorate_core::ids::{NodeId, Timestamp};
use quorate_core::leaf::Outcome;
use quorate_core::state::{
    NodeRecord, State, appraise_member, build_recovery, genesis_checkpoint, plan_recovery, recovery_nonce,
};
use quorate_core::tlog::TreeSize;
use quorate_proto::v1::{ContributeRequest, RecoveryQuoteRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// For one peer's contribution: no TPM is asked for it.
const CONTRIBUTION: Duration = Duration::from_secs(1);
/// Every so many tries, those who were left out are asked again: what ailed them may be over.
const FORGIVE_EVERY: u32 = 8;
/// For one peer's quote; a hardware TPM takes up to a second for a quote.
const ANSWER: Duration = Duration::from_secs(5);
/// Contributions of this node that one caller asked for and did not use yet. Each caller has its own: one that asks without end
/// makes nobody else's void.
const OWN_MAX: usize = 4;

/// Evidence and the logs it names.
type Quote = (Evidence, Vec<Vec<u8>>);

/// What one caller asked for.
#[derive(Default)]
struct Asked {
    contributions: Vec<Contribution>,
    quoting: bool,
}

/// Ends with the quote, or with whoever waited for it.
struct Quoting {
    own: Arc<Mutex<BTreeMap<NodeId, Asked>>>,
    caller: NodeId,
}

impl Drop for Quoting {
    fn drop(&mut self) {
        if let Some(asked) = self.own.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.caller) {
            asked.quoting = false;
        }
    }
}

/// A node's side: contributes, and quotes when its own contribution is among those shown.
#[derive(Clone)]
pub struct Contributor {
    ledger: Ledger,
    boot: Boot,
    attester: Attester,
    cosigner: CosignerHandle,
    own: Arc<Mutex<BTreeMap<NodeId, Asked>>>,
}

/// Why this node does not take part.
#[derive(Debug, thiserror::Error)]
pub enum NotContributing {
    /// Its own contribution is missing or altered.
    #[error("this node's own contribution is not among those shown")]
    NotMine,
    /// The mesh is not dark.
    #[error("the mesh is not dark in this node's view")]
    NotDark,
    /// One at a time: the TPM is needed for this node's own evidence too.
    #[error("this node is quoting for the caller already")]
    Quoting,
    /// TPM.
    #[error("cannot quote")]
    Attester(#[from] crate::attester::AttesterError),
    /// Randomness.
    #[error(transparent)]
    Randomness(#[from] crate::boot::NoRandomness),
}

/// Whether fewer than a quorum have fresh evidence by a node's clock: what `apply` will see once an entry has that time.
pub fn is_dark_now(view: &View, now: Timestamp) -> bool {
    let lapse = view.policy.attestation.lapse_ms;
    let fresh = |r: &&NodeRecord| r.attested_at().is_some_and(|at| now.since_ms(at) <= lapse);
    view.nodes.values().filter(fresh).count() < view.policy.quorum()
}

impl Contributor {
    /// Builds it.
    pub fn new(ledger: Ledger, boot: Boot, attester: Attester, cosigner: CosignerHandle) -> Self {
        Self { ledger, boot, attester, cosigner, own: Arc::default() }
    }

    /// What this node must not lose, and a fresh value.
    pub fn contribute(&self, caller: NodeId) -> Result<Contribution, NotContributing> {
        if !is_dark_now(&self.ledger.view(), self.ledger.now()) {
            return Err(NotContributing::NotDark);
        }
        let genesis = genesis_checkpoint(self.ledger.cluster());
        let contribution = Contribution {
            node: self.ledger.me(),
            boot: self.boot.keys.clone(),
            certified: self.cosigner.certified().unwrap_or(genesis),
            lock: self.cosigner.lock().unwrap_or(genesis),
            random: random()?,
            signature: Signature([0; 64]),
        }
        .sign(self.ledger.cluster(), &self.boot.cosign);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = own.entry(caller).or_default();
        if asked.contributions.len() >= OWN_MAX {
            asked.contributions.remove(0);
        }
        asked.contributions.push(contribution.clone());
        Ok(contribution)
    }

    /// Quotes over base and contributions, if this node's own is among them; each contribution is quoted over once.
    pub async fn quote(
        &self,
        caller: NodeId,
        base: CheckpointRef,
        contributions: Vec<Contribution>,
    ) -> Result<Attested, NotContributing> {
        let mine =
            contributions.iter().find(|c| c.node == self.ledger.me()).ok_or(NotContributing::NotMine)?;
        {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = own.get_mut(&caller).ok_or(NotContributing::NotMine)?;
            let position =
                asked.contributions.iter().position(|c| c == mine).ok_or(NotContributing::NotMine)?;
            if asked.quoting {
                return Err(NotContributing::Quoting);
            }
            asked.contributions.remove(position);
            asked.quoting = true;
        }
        let _quoting = Quoting { own: Arc::clone(&self.own), caller };
        let boot = mine.boot.clone();
        let command = draft(base, contributions);
        let nonce = recovery_nonce(self.ledger.cluster(), self.ledger.me(), &boot, &command);
        let pcrs = &self.ledger.view().policy.attestation.pcrs;
        Ok(self.attester.quote(pcrs, nonce).await?)
    }
}

fn draft(base: CheckpointRef, contributions: Vec<Contribution>) -> RecoverCommand {
    RecoverCommand { base, contributions, evidence: Vec::new(), tree: Default::default(), proofs: Vec::new() }
}

/// The leader's task.
pub struct Recovery {
    /// View.
    pub ledger: Ledger,
    /// Raft.
    pub raft: Raft,
    /// Links.
    pub peers: Peers,
    /// This node's own part.
    pub contributor: Contributor,
    /// Where logs are kept.
    pub blobs: BlobStore,
}

impl Recovery {
    /// Runs until the node stops.
    pub async fn run(self) {
        let mut said = "";
        let mut left_out = BTreeSet::new();
        let mut tries = 0u32;
        loop {
            tokio::time::sleep(PAUSE).await;
            if !leads(&self.raft, self.ledger.me()) || !is_dark_now(&self.ledger.view(), self.ledger.now()) {
                said = "";
                left_out.clear();
                continue;
            }
            tries = tries.wrapping_add(1);
            if tries.is_multiple_of(FORGIVE_EVERY) {
                left_out.clear();
            }
            match self.attempt(&mut left_out).await {
                Ok(()) => {
                    tracing::info!("the mesh is recovering from darkness");
                    said = "";
                    // The checkpoint needs cosignatures, then evidence over it; give both a moment.
                    tokio::time::sleep(PAUSE * 4).await;
                }
                Err(why) => {
                    if said != why {
                        tracing::warn!(why, "the mesh is dark: nothing is forwarded");
                    }
                    said = why;
                }
            }
        }
    }

    /// One try. Whoever contributed and then did not quote, or not well, is left out of the next.
    async fn attempt(&self, left_out: &mut BTreeSet<NodeId>) -> Result<(), &'static str> {
        let contributions = self.collect(left_out).await?;
        // An empty batch lets everything that is due by time happen first; then the tree stands still.
        if !self.ledger.read(State::is_dark) {
            return Err("lapses are not applied yet");
        }
        let tiles = self.ledger.tiles();
        let planned = self.ledger.read(|state| plan_recovery(state, &*tiles, contributions));
        let plan = match planned.map_err(|_| "the tiles give no proof")? {
            Ok(plan) => plan,
            Err(no_plan) => {
                if !no_plan.conflicting.is_empty() {
                    tracing::error!(%no_plan, "contributions conflict with this node's history");
                }
                return Err("fewer nodes than a quorum can recover from this node's history");
            }
        };
        let command = draft(plan.base, plan.contributions.clone());
        let mut quotes = self.quotes(&command).await;
        let mut evidence = Vec::new();
        let mut blobs = Vec::new();
        for c in &command.contributions {
            match quotes.remove(&c.node).filter(|quote| self.is_good(c, &command, quote)) {
                Some((quote, logs)) => {
                    evidence.push((c.node, quote));
                    blobs.extend(logs);
                }
                None => drop(left_out.insert(c.node)),
            }
        }
        if evidence.len() < command.contributions.len() {
            return Err("a node that contributed did not quote, or not well");
        }
        blobs.sort();
        blobs.dedup();
        let built = self.ledger.read(|state| build_recovery(state, &*tiles, plan, evidence));
        let command = built.map_err(|_| "the tiles give no proof")?;
        let outcome = self
            .ledger
            .decide_applied(Command::Recover(Box::new(command)), blobs, Duration::from_secs(3))
            .await;
        match outcome {
            Ok(Outcome::Recovered) => Ok(()),
            Ok(Outcome::AppraisalRefused { check }) => {
                tracing::error!(check, "a recovery quote was refused");
                Err("a recovery quote was refused")
            }
            Err(DecideError::Refused(refusal)) => {
                tracing::debug!(code = refusal.code(), "recovery refused");
                Err(refusal.code())
            }
            Ok(_) | Err(_) => Err("the recovery entry was not committed"),
        }
    }

    /// Appraises a quote as `apply` will, so that one bad quote does not spoil the entry for all.
    fn is_good(&self, c: &Contribution, command: &RecoverCommand, quote: &Quote) -> bool {
        let (evidence, logs) = quote;
        if logs.iter().take(2).any(|log| self.blobs.put(log).is_err()) {
            return false;
        }
        let expected = recovery_nonce(self.ledger.cluster(), c.node, &c.boot, command);
        let (policy, floor) =
            self.ledger.read(|s| (Arc::clone(s.policy()), s.nodes().get(&c.node).and_then(|r| r.floor)));
        match appraise_member(&policy, c.node, evidence, &expected, floor.as_ref(), &self.blobs) {
            Ok(Ok(_)) => true,
            Ok(Err(check)) => {
                tracing::error!(
                    node = c.node.0,
                    check,
                    "a recovery quote does not hold: that node is left out"
                );
                false
            }
            Err(refusal) => {
                tracing::warn!(
                    node = c.node.0,
                    code = refusal.code(),
                    "a recovery quote cannot be appraised"
                );
                false
            }
        }
    }

    /// Contributions of everyone reachable.
    async fn collect(&self, left_out: &BTreeSet<NodeId>) -> Result<Vec<Contribution>, &'static str> {
        let mut calls = tokio::task::JoinSet::new();
        for node in self.peers.nodes().into_iter().filter(|n| !left_out.contains(n)) {
            let Some(mut client) = self.peers.client(node) else { continue };
            calls.spawn(async move {
                let call = client.contribute(ContributeRequest {});
                let reply = tokio::time::timeout(CONTRIBUTION, call).await.ok()?.ok()?;
                let c: Contribution = borsh::from_slice(&reply.into_inner().contribution).ok()?;
                (c.node == node).then_some(c)
            });
        }
        let own =
            self.contributor.contribute(self.ledger.me()).map_err(|_| "this node does not contribute")?;
        let mut all = vec![own];
        while let Some(done) = calls.join_next().await {
            all.extend(done.ok().flatten());
        }
        match all.len() >= self.ledger.view().policy.quorum() {
            true => Ok(all),
            false => Err("fewer nodes than a quorum contributed"),
        }
    }

    async fn quotes(&self, command: &RecoverCommand) -> BTreeMap<NodeId, Quote> {
        let base = quorate_core::crypto::encode(&command.base);
        let contributions: Vec<bytes::Bytes> =
            command.contributions.iter().map(|c| quorate_core::crypto::encode(c).into()).collect();
        let mut calls = tokio::task::JoinSet::new();
        for c in command.contributions.iter().filter(|c| c.node != self.ledger.me()) {
            let (node, Some(mut client)) = (c.node, self.peers.client(c.node)) else { continue };
            let request =
                RecoveryQuoteRequest { base: base.clone().into(), contributions: contributions.clone() };
            calls.spawn(async move {
                let reply = tokio::time::timeout(ANSWER, client.recovery_quote(request))
                    .await
                    .ok()?
                    .ok()?
                    .into_inner();
                let evidence: Evidence = borsh::from_slice(&reply.evidence).ok()?;
                Some((node, (evidence, reply.blobs.iter().map(|b| b.to_vec()).collect())))
            });
        }
        let mut quotes = BTreeMap::new();
        if let Ok(a) =
            self.contributor.quote(self.ledger.me(), command.base, command.contributions.clone()).await
        {
            quotes.insert(self.ledger.me(), (a.evidence, a.blobs));
        }
        while let Some(done) = calls.join_next().await {
            if let Ok(Some((node, quote))) = done {
                quotes.insert(node, quote);
            }
        }
        quotes
    }
}

/// Asks a quorum for this node's own highest cosignature before it signs anything: a restored disk may have forgotten.
pub async fn ask_for_own_lock(ledger: Ledger, peers: Peers, cosigner: CosignerHandle) {
    let me = ledger.me();
    loop {
        let mut claims = Vec::new();
        for node in peers.nodes() {
            let Some(mut client) = peers.client(node) else { continue };
            let request = quorate_proto::v1::HighestCosignatureRequest { node: me.0 };
            if let Ok(Ok(reply)) =
                tokio::time::timeout(Duration::from_secs(1), client.highest_cosignature(request)).await
            {
                claims.push(TreeSize(reply.into_inner().size));
            }
        }
        let policy = Arc::clone(&ledger.view().policy);
        if claims.len() + 1 >= policy.quorum() {
            claims.sort_unstable_by(|a, b| b.cmp(a));
            // f hostile peers could claim a size that never comes, and silence this node for ever: what f + 1 claim, or
            // more, an honest one does.
            let claimed = claims.get(policy.hostile_nodes_max as usize).copied().unwrap_or_default();
            cosigner.may_sign_from(claimed.max(cosigner.lock().map_or(TreeSize(0), |l| l.size)));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
