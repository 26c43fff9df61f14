//! Evidence, recovery, and the question for one's own lock: as `evidence.rs` and `recovery.rs` of the product have them, with the
//! fleet's TPMs and the simulated links in place of tss-esapi and tonic.
use crate::node::Node;
use crate::peer::{Message, Reply};
use quorate_attest::evidence::Evidence;
use quorate_core::command::{CheckpointRef, Command, Contribution, EvidenceCommand, RecoverCommand};
use quorate_core::crypto::{Signature, sha256};
use quorate_core::ids::NodeId;
use quorate_core::leaf::Outcome;
use quorate_core::state::{
    State, appraise_member, build_recovery, evidence_nonce, genesis_checkpoint, plan_recovery, recovery_nonce,
};
use quorate_core::tlog::TreeSize;
use quorated::proposer::leads;
use quorated::recovery::is_dark_now;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const EAGER: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(250);
const CONTRIBUTION: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
const FORGIVE_EVERY: u32 = 8;
const OWN_MAX: usize = 4;

/// A quote of this node's TPM, which takes its time; its log is kept here.
async fn quote(node: &Node, nonce: [u8; 32]) -> Option<(Evidence, Vec<u8>)> {
    tokio::time::sleep(node.world.machine(node.id).quote_takes()).await;
    if node.is_stopped() {
        return None;
    }
    let policy = Arc::clone(&node.ledger.view().policy);
    let (evidence, log) = {
        let mut fleet = node.world.fleet();
        // The machine's quote says which start it is of: a zombie gets none.
        if fleet.nodes[&node.id].boot() != node.boot.keys {
            return None;
        }
        let evidence = fleet.quote(&policy, node.id, &nonce);
        (evidence, fleet.nodes[&node.id].tpm.event_log().to_vec())
    };
    node.blobs.put(&log).ok()?;
    Some((evidence, log))
}

/// Mirrors `EvidenceTask`.
pub async fn evidence(node: Arc<Node>) {
    let ledger = node.ledger.clone();
    let mut last = None::<Instant>;
    loop {
        let view = ledger.view();
        let interval = Duration::from_millis(view.policy.attestation.evidence_interval_ms);
        let attested = view.attested(node.id) == Some(&node.boot.keys);
        if attested && last.is_some_and(|l| l.elapsed() < interval) {
            let rest = last.map_or(interval, |l| interval.saturating_sub(l.elapsed()));
            let mut changed = ledger.view_changed();
            let lost = async {
                while ledger.view().attested(node.id) == Some(&node.boot.keys) {
                    if changed.changed().await.is_err() {
                        return;
                    }
                }
            };
            let _either = tokio::time::timeout(rest, lost).await;
            continue;
        }
        match round(&node).await {
            Some(true) => {
                last = Some(Instant::now());
                tokio::time::sleep(EAGER).await;
            }
            Some(false) => tokio::time::sleep(RETRY).await,
            None => tokio::time::sleep(EAGER).await,
        }
    }
}

/// One round: submitted, failed, or nothing to quote over.
async fn round(node: &Node) -> Option<bool> {
    let view = node.ledger.view();
    let anchor = node.cosigner.newest_anchor()?;
    let age = node.ledger.now().since_ms(anchor.seen);
    if age > view.policy.attestation.nonce_age_ms || anchor.checkpoint.size > view.checkpoint.size {
        return None;
    }
    let none =
        Evidence { attest: vec![], signature: vec![], pcrs: vec![], event_log: [0; 32], ima_log: None };
    let mut command = EvidenceCommand {
        node: node.id,
        boot: node.boot.keys.clone(),
        nonce: anchor.checkpoint,
        certificate: anchor.cosignatures,
        evidence: none,
        signature: Signature([0; 64]),
    };
    let nonce = evidence_nonce(node.ledger.cluster(), &command);
    let Some((evidence, log)) = quote(node, nonce).await else { return Some(false) };
    command.evidence = evidence;
    let command = command.sign(node.ledger.cluster(), &node.boot.cosign);
    let command = Command::Evidence(Box::new(command));
    match node.ledger.decide_applied(command, vec![log], Duration::from_secs(3)).await {
        Ok(Outcome::Appraised { .. }) => Some(true),
        Ok(Outcome::AwaitingCertificate) => None,
        Ok(_) | Err(_) => Some(false),
    }
}

/// What one caller asked for.
#[derive(Default)]
struct Asked {
    contributions: Vec<Contribution>,
    quoting: bool,
}

/// Mirrors `recovery::Contributor`.
#[derive(Clone, Default)]
pub struct Contributor {
    own: Arc<Mutex<BTreeMap<NodeId, Asked>>>,
}

impl Contributor {
    /// What this node must not lose, and a fresh value.
    pub fn contribute(&self, node: &Node, caller: NodeId) -> Option<Contribution> {
        if !is_dark_now(&node.ledger.view(), node.ledger.now()) {
            return None;
        }
        let genesis = genesis_checkpoint(node.ledger.cluster());
        let random = node.world.chance(|rng| rng.draw());
        let contribution = Contribution {
            node: node.id,
            boot: node.boot.keys.clone(),
            certified: node.cosigner.certified().unwrap_or(genesis),
            lock: node.cosigner.lock().unwrap_or(genesis),
            random: sha256(&random.to_be_bytes()).0,
            signature: Signature([0; 64]),
        }
        .sign(node.ledger.cluster(), &node.boot.cosign);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = own.entry(caller).or_default();
        if asked.contributions.len() >= OWN_MAX {
            asked.contributions.remove(0);
        }
        asked.contributions.push(contribution.clone());
        Some(contribution)
    }

    /// Quotes over base and contributions, if this node's own is among them; each contribution is quoted over once.
    pub async fn quote(
        &self,
        node: &Node,
        caller: NodeId,
        base: CheckpointRef,
        contributions: Vec<Contribution>,
    ) -> Option<(Evidence, Vec<u8>)> {
        let mine = contributions.iter().find(|c| c.node == node.id)?;
        {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = own.get_mut(&caller)?;
            let position = asked.contributions.iter().position(|c| c == mine)?;
            if asked.quoting {
                return None;
            }
            asked.contributions.remove(position);
            asked.quoting = true;
        }
        let boot = mine.boot.clone();
        let nonce = recovery_nonce(node.ledger.cluster(), node.id, &boot, &draft(base, contributions));
        let quoted = quote(node, nonce).await;
        if let Some(asked) = self.own.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&caller) {
            asked.quoting = false;
        }
        quoted
    }
}

fn draft(base: CheckpointRef, contributions: Vec<Contribution>) -> RecoverCommand {
    RecoverCommand { base, contributions, evidence: Vec::new(), tree: TreeSize::ZERO, proofs: Vec::new() }
}

/// Mirrors `recovery::Recovery`.
pub async fn recovery(node: Arc<Node>) {
    let mut left_out = BTreeSet::new();
    let mut tries = 0u32;
    let mut said = "";
    loop {
        tokio::time::sleep(PAUSE).await;
        if !leads(&node.raft, node.id) || !is_dark_now(&node.ledger.view(), node.ledger.now()) {
            left_out.clear();
            said = "";
            continue;
        }
        tries = tries.wrapping_add(1);
        if tries.is_multiple_of(FORGIVE_EVERY) {
            left_out.clear();
        }
        match attempt(&node, &mut left_out).await {
            Ok(()) => {
                crate::note!(node.world, "{} recovered the mesh from darkness", node.id);
                said = "";
                tokio::time::sleep(PAUSE * 4).await;
            }
            Err(why) => {
                if said != why {
                    crate::note!(node.world, "{} cannot recover yet: {why}", node.id);
                }
                said = why;
            }
        }
    }
}

async fn attempt(node: &Arc<Node>, left_out: &mut BTreeSet<NodeId>) -> Result<(), &'static str> {
    let contributions = collect(node, left_out).await?;
    if !node.ledger.read(State::is_dark) {
        return Err("lapses are not applied yet");
    }
    let tiles = node.ledger.tiles();
    let planned = node.ledger.read(|state| plan_recovery(state, &*tiles, contributions));
    let plan = match planned.map_err(|_| "the tiles give no proof")? {
        Ok(plan) => plan,
        Err(no_plan) if no_plan.conflicting.is_empty() => {
            return Err("fewer nodes than a quorum can recover from this node's history");
        }
        Err(no_plan) => {
            crate::note!(node.world, "{}: {no_plan}", node.id);
            return Err("contributions conflict with this node's history");
        }
    };
    let command = draft(plan.base, plan.contributions.clone());
    let mut quotes = quotes(node, &command).await;
    let mut evidence = Vec::new();
    let mut blobs = Vec::new();
    for c in &command.contributions {
        match quotes.remove(&c.node).filter(|quote| is_good(node, c, &command, quote)) {
            Some((quote, log)) => {
                evidence.push((c.node, quote));
                blobs.push(log);
            }
            None => drop(left_out.insert(c.node)),
        }
    }
    if evidence.len() < command.contributions.len() {
        return Err("a node that contributed did not quote, or not well");
    }
    blobs.sort();
    blobs.dedup();
    let built = node.ledger.read(|state| build_recovery(state, &*tiles, plan, evidence));
    let command = built.map_err(|_| "the tiles give no proof")?;
    let command = Command::Recover(Box::new(command));
    match node.ledger.decide_applied(command, blobs, Duration::from_secs(3)).await {
        Ok(Outcome::Recovered) => Ok(()),
        Ok(Outcome::AppraisalRefused { .. }) => Err("a recovery quote was refused"),
        Ok(_) => Err("the recovery came to something else"),
        Err(quorated::ledger::DecideError::Refused(refusal)) => Err(refusal.code()),
        Err(_) => Err("the recovery entry was not committed"),
    }
}

fn is_good(node: &Node, c: &Contribution, command: &RecoverCommand, quote: &(Evidence, Vec<u8>)) -> bool {
    let (evidence, log) = quote;
    if node.blobs.put(log).is_err() {
        return false;
    }
    let expected = recovery_nonce(node.ledger.cluster(), c.node, &c.boot, command);
    let (policy, floor) =
        node.ledger.read(|s| (Arc::clone(s.policy()), s.nodes().get(&c.node).and_then(|r| r.floor)));
    matches!(appraise_member(&policy, c.node, evidence, &expected, floor.as_ref(), &node.blobs), Ok(Ok(_)))
}

async fn collect(node: &Arc<Node>, left_out: &BTreeSet<NodeId>) -> Result<Vec<Contribution>, &'static str> {
    let mut calls = tokio::task::JoinSet::new();
    for peer in node.peers().into_iter().filter(|n| !left_out.contains(n)) {
        let node = Arc::clone(node);
        calls.spawn(async move {
            match node.ask(peer, Message::Contribute, CONTRIBUTION).await {
                Some(Reply::Contribution(c)) if c.node == peer => Some(*c),
                _ => None,
            }
        });
    }
    let own = node.contributor.contribute(node, node.id).ok_or("this node does not contribute")?;
    let mut all = vec![own];
    while let Some(done) = calls.join_next().await {
        all.extend(done.ok().flatten());
    }
    match all.len() >= node.ledger.view().policy.quorum() {
        true => Ok(all),
        false => Err("fewer nodes than a quorum contributed"),
    }
}

async fn quotes(node: &Arc<Node>, command: &RecoverCommand) -> BTreeMap<NodeId, (Evidence, Vec<u8>)> {
    let mut calls = tokio::task::JoinSet::new();
    for c in command.contributions.iter().filter(|c| c.node != node.id) {
        let (node, peer) = (Arc::clone(node), c.node);
        let message = Message::RecoveryQuote(command.base, Arc::new(command.contributions.clone()));
        calls.spawn(async move {
            match node.ask(peer, message, ANSWER).await {
                Some(Reply::Quote(quote)) => Some((peer, *quote)),
                _ => None,
            }
        });
    }
    let mut quotes = BTreeMap::new();
    let own = node.contributor.quote(node, node.id, command.base, command.contributions.clone()).await;
    quotes.extend(own.map(|quote| (node.id, quote)));
    while let Some(done) = calls.join_next().await {
        quotes.extend(done.ok().flatten());
    }
    quotes
}

/// Mirrors `recovery::ask_for_own_lock`.
pub async fn ask_for_own_lock(node: Arc<Node>) {
    loop {
        let mut claims = Vec::new();
        for peer in node.peers() {
            let reply = node.ask(peer, Message::HighestCosignature(node.id), Duration::from_secs(1)).await;
            if let Some(Reply::Highest(size)) = reply {
                claims.push(size);
            }
        }
        let policy = Arc::clone(&node.ledger.view().policy);
        if claims.len() + 1 >= policy.quorum() {
            claims.sort_unstable_by(|a, b| b.cmp(a));
            let claimed = claims.get(policy.hostile_nodes_max as usize).copied().unwrap_or_default();
            let own = node.cosigner.lock().map_or(TreeSize::ZERO, |l| l.size);
            node.cosigner.may_sign_from(claimed.max(own));
            return;
        }
        tokio::time::sleep(EAGER).await;
    }
}
