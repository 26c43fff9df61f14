//! The way out of darkness, driven by whoever leads: collect contributions from a quorum, have each quote over all of them,
//! propose one `recover` entry. Nobody needs to trust the leader for it: every signer checks that its own fresh value is in.
use crate::attester::{Attested, Attester};
use crate::boot::{Boot, random};
use crate::clock;
use crate::cosigner::CosignerHandle;
use crate::ledger::{DecideError, Ledger, View};
use crate::peers::Peers;
use crate::proposer::leads;
use crate::raft::types::Raft;
use quorate_attest::evidence::Evidence;
use quorate_core::command::{CheckpointRef, Command, Contribution, RecoverCommand};
use quorate_core::crypto::Signature;
use quorate_core::ids::NodeId;
use quorate_core::leaf::Outcome;
use quorate_core::state::{NodeRecord, genesis_checkpoint, recovery_nonce};
use quorate_core::tlog::TreeSize;
use quorate_proto::v1::{ContributeRequest, RecoveryQuoteRequest};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// For one peer's answer; a hardware TPM takes up to a second for a quote.
const ANSWER: Duration = Duration::from_secs(5);
/// Contributions of this node that were not used yet.
const OWN_MAX: usize = 16;

/// A node's side: contributes, and quotes when its own contribution is among those shown.
#[derive(Clone)]
pub struct Contributor {
    ledger: Ledger,
    boot: Boot,
    attester: Attester,
    cosigner: CosignerHandle,
    own: Arc<Mutex<Vec<Contribution>>>,
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
    /// TPM.
    #[error("cannot quote")]
    Attester(#[from] crate::attester::AttesterError),
    /// Randomness.
    #[error(transparent)]
    Randomness(#[from] crate::boot::NoRandomness),
}

/// Whether fewer than a quorum have fresh evidence by this node's clock: what `apply` will see once an entry has that time.
pub fn is_dark_now(view: &View) -> bool {
    let now = clock::now();
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
    pub fn contribute(&self) -> Result<Contribution, NotContributing> {
        if !is_dark_now(&self.ledger.view()) {
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
        if own.len() >= OWN_MAX {
            own.remove(0);
        }
        own.push(contribution.clone());
        Ok(contribution)
    }

    /// Quotes over base and contributions, if this node's own is among them; each contribution is quoted over once.
    pub async fn quote(
        &self,
        base: CheckpointRef,
        contributions: Vec<Contribution>,
    ) -> Result<Attested, NotContributing> {
        let mine =
            contributions.iter().find(|c| c.node == self.ledger.me()).ok_or(NotContributing::NotMine)?;
        {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            let position = own.iter().position(|c| c == mine).ok_or(NotContributing::NotMine)?;
            own.remove(position);
        }
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
}

impl Recovery {
    /// Runs until the node stops.
    pub async fn run(self) {
        let mut said = "";
        loop {
            tokio::time::sleep(PAUSE).await;
            if !leads(&self.raft, self.ledger.me()) || !is_dark_now(&self.ledger.view()) {
                said = "";
                continue;
            }
            match self.attempt().await {
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

    async fn attempt(&self) -> Result<(), &'static str> {
        let contributions = self.collect().await?;
        let base = contributions.values().map(|c| c.certified).max().ok_or("nobody contributed")?;
        let contributions: Vec<Contribution> = contributions.into_values().collect();
        let mut command = draft(base, contributions);
        let mut blobs = Vec::new();
        let quotes = self.quotes(&command).await;
        for c in &command.contributions {
            let (evidence, logs) =
                quotes.get(&c.node).ok_or("a node that contributed did not quote")?.clone();
            command.evidence.push((c.node, evidence));
            for log in logs {
                if !blobs.contains(&log) {
                    blobs.push(log);
                }
            }
        }
        // An empty batch lets everything that is due by time happen first; then the tree stands still.
        if !self.ledger.read(|s| s.is_dark()) {
            return Err("lapses are not applied yet");
        }
        let view = self.ledger.view();
        command.tree = view.checkpoint.size;
        let tiles = self.ledger.tiles();
        for c in &command.contributions {
            let proof = |part: CheckpointRef| {
                if part.size > command.tree {
                    return Err("a node signed a larger tree than this one's: waiting for its entries");
                }
                tiles.consistency(part.size, command.tree).map_err(|_| "the tiles give no proof")
            };
            let proofs = (proof(c.certified)?, proof(c.lock)?);
            command.proofs.push(proofs);
        }
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

    /// Contributions of at least a quorum whose certified checkpoint and lock are prefixes of this node's tree.
    async fn collect(&self) -> Result<BTreeMap<NodeId, Contribution>, &'static str> {
        let mut calls = tokio::task::JoinSet::new();
        for node in self.peers.nodes() {
            let Some(mut client) = self.peers.client(node) else { continue };
            calls.spawn(async move {
                let reply =
                    tokio::time::timeout(ANSWER, client.contribute(ContributeRequest {})).await.ok()?.ok()?;
                let c: Contribution = borsh::from_slice(&reply.into_inner().contribution).ok()?;
                (c.node == node).then_some(c)
            });
        }
        let own = self.contributor.contribute().map_err(|_| "this node does not contribute")?;
        let mut all = BTreeMap::from([(own.node, own)]);
        while let Some(done) = calls.join_next().await {
            if let Ok(Some(c)) = done
                && c.possesses_key(self.ledger.cluster())
            {
                all.insert(c.node, c);
            }
        }
        let tiles = self.ledger.tiles();
        let size = self.ledger.view().checkpoint.size;
        let ours = |c: &CheckpointRef| c.size <= size && tiles.root_at(c.size).is_ok_and(|r| r == c.root);
        let before = all.len();
        all.retain(|_, c| ours(&c.certified) && ours(&c.lock));
        if all.len() < before {
            tracing::error!(
                left_out = before - all.len(),
                "contributions conflict with this node's history: left out"
            );
        }
        match all.len() >= self.ledger.view().policy.quorum() {
            true => Ok(all),
            false => Err("fewer nodes than a quorum contributed"),
        }
    }

    async fn quotes(&self, command: &RecoverCommand) -> BTreeMap<NodeId, (Evidence, Vec<Vec<u8>>)> {
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
        if let Ok(a) = self.contributor.quote(command.base, command.contributions.clone()).await {
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
