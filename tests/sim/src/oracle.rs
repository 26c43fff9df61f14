//! What must be true, whatever happens (DESIGN.md, three oracles). The oracle sees all nodes at once and believes none of their types.
//!
//! **One history**: two certified checkpoints never disagree about a size that both cover; the leaf of a filled hole is in every
//! certified tree that is long enough; no honest node signs two roots at one size, nor a smaller size than before, unless its
//! machine was reset in between; no two roots of one size have so many honest signers that the hostile ones could certify both.
//! **No forbidden forward**: whoever releases its half of a hole holds a certificate over the leaf, and the leaf is that request's
//! authorisation, decided well; a hole is filled once, and only after its keyer released.
//! **No wedge** is the runner's part; its one exception, [`Oracle::locks_conflict`], is here. What the log authorised was signed by
//! its client, once, and is within its budget.
use crate::node::{Node, short};
use crate::rogue::{REQUESTS_PER_MINUTE, ROGUE};
use crate::world::World;
use quorate_core::certificate::CertifiedAuthorisation;
use quorate_core::command::{CheckpointRef, ClientCommand, Command};
use quorate_core::crypto::{Hash, sha256};
use quorate_core::ids::{ClientId, ConnectionId, NodeId, RequestId};
use quorate_core::leaf::{Leaf, LeafBody, Outcome};
use quorate_core::tlog::{LeafIndex, TreeSize};
use quorated::cosigner::Signed;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Logs that conflict do so again and again.
const CONFLICTS_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// Earlier checkpoints compared each time something is certified; the end compares all.
const COMPARED: usize = 4;

/// Commands kept for replays.
const REMEMBERED: usize = 32;
/// Budgets of requests are counted by this.
const MINUTE_MS: u64 = 60_000;

#[derive(Default)]
struct Inner {
    failure: Option<String>,
    /// Root by size, and who said so first.
    certified: BTreeMap<TreeSize, (Hash, NodeId)>,
    /// What each honest node signed since its machine was last reset.
    signed: BTreeMap<NodeId, BTreeMap<TreeSize, Hash>>,
    /// Honest signers of each root at each size, ever.
    signers: BTreeMap<(TreeSize, Hash), BTreeSet<NodeId>>,
    /// Of them, who gave that up for another history that is certified.
    let_go: BTreeSet<(TreeSize, Hash, NodeId)>,
    approved: BTreeMap<RequestId, NodeId>,
    /// Requests that were on their way, for whoever asks about those of others.
    seen: Vec<(RequestId, ConnectionId)>,
    /// Their commands, for whoever sends them again.
    commands: VecDeque<Command>,
    filled: Vec<Filled>,
    installed: usize,
}

#[derive(Debug, Clone)]
struct Filled {
    request: RequestId,
    index: LeafIndex,
    leaf: Hash,
}

/// Sees everything.
pub struct Oracle {
    inner: Mutex<Inner>,
    hostile: BTreeSet<NodeId>,
    quorum: usize,
}

impl Oracle {
    /// For a mesh in which these are hostile and so many must sign.
    pub fn new(hostile: BTreeSet<NodeId>, quorum: usize) -> Self {
        Self { inner: Mutex::default(), hostile, quorum }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that must not be.
    pub fn fail(&self, what: String) {
        self.inner().failure.get_or_insert(what);
    }

    /// What was wrong first.
    pub fn failure(&self) -> Option<String> {
        self.inner().failure.clone()
    }

    /// How many holes were filled.
    pub fn filled_count(&self) -> usize {
        self.inner().filled.len()
    }

    /// A snapshot was installed.
    pub fn installed(&self) {
        self.inner().installed += 1;
    }

    /// How many were.
    pub fn installed_count(&self) -> usize {
        self.inner().installed
    }

    /// A request is on its way.
    pub fn saw(&self, command: &Command, request: RequestId, connection: ConnectionId) {
        let mut inner = self.inner();
        inner.seen.push((request, connection));
        inner.commands.push_back(command.clone());
        if inner.commands.len() > REMEMBERED {
            inner.commands.pop_front();
        }
    }

    /// One of the last commands that clients sent.
    pub fn some_command(&self, pick: u64) -> Option<Command> {
        let inner = self.inner();
        inner.commands.get(pick as usize % inner.commands.len().max(1)).cloned()
    }

    /// One of the last few of those.
    pub fn some_request(&self, pick: u64) -> Option<(RequestId, ConnectionId)> {
        let inner = self.inner();
        let last: Vec<_> = inner.seen.iter().rev().take(8).collect();
        last.get(pick as usize % last.len().max(1)).copied().copied()
    }

    /// A node gave up what it signed above this size: it can never be certified.
    pub fn gave_up(&self, node: NodeId, shared: TreeSize) {
        if let Some(own) = self.inner().signed.get_mut(&node) {
            own.retain(|size, _| *size <= shared);
        }
    }

    /// A node gives up its tail for a certified history: what it signed of it can be certified no more.
    pub fn gives_up_for_certified(&self, node: &Node, shared: TreeSize) {
        let mut inner = self.inner();
        let signed =
            inner.signers.iter().filter(|((size, _), nodes)| *size > shared && nodes.contains(&node.id));
        let tiles = node.ledger.tiles();
        let own =
            signed.map(|(at, _)| *at).filter(|(size, root)| tiles.root_at(*size).is_ok_and(|r| r == *root));
        let own: Vec<_> = own.map(|(size, root)| (size, root, node.id)).collect();
        inner.let_go.extend(own);
    }

    /// A node gives up what it says that it never signed: no start of its machine did.
    pub fn gives_up_unsigned(&self, node: &Node, shared: TreeSize) {
        let (tiles, own) = (node.ledger.tiles(), node.ledger.view().checkpoint.size);
        let signed = |(size, root): &(TreeSize, Hash)| {
            *size > shared && *size <= own && tiles.root_at(*size).is_ok_and(|r| r == *root)
        };
        let mut inner = self.inner();
        let all = inner.signers.iter().filter(|(_, nodes)| nodes.contains(&node.id)).map(|(at, _)| *at);
        let binds = |(size, root): &(TreeSize, Hash)| !inner.let_go.contains(&(*size, *root, node.id));
        if let Some((size, _)) = all.filter(signed).filter(binds).last() {
            let what = format!("sign lock: {} gives up size {}, which it signed", node.id, size.0);
            inner.failure.get_or_insert(what);
        }
    }

    /// A machine's memory of what it signed is declared lost.
    pub fn forget_signed(&self, node: NodeId) {
        self.inner().signed.remove(&node);
    }

    /// A node holds this to be certified.
    pub fn certified(&self, node: &Node, own: CheckpointRef) {
        if self.hostile.contains(&node.id) || node.is_stopped() {
            return;
        }
        let mut inner = self.inner();
        let (root, first) = *inner.certified.entry(own.size).or_insert((own.root, node.id));
        if root != own.root {
            inner.failure.get_or_insert(format!(
                "one history: {} and {first} hold two roots of size {} to be certified",
                node.id, own.size.0
            ));
        }
        let earlier: Vec<(TreeSize, Hash)> =
            inner.certified.range(..own.size).rev().take(COMPARED).map(|(s, (r, _))| (*s, *r)).collect();
        let filled: Vec<Filled> = inner.filled.iter().rev().take(COMPARED).cloned().collect();
        drop(inner);
        self.compare(node, own.size, &earlier, &filled);
    }

    /// At the end: everything against everybody's tree.
    pub fn finish(&self, node: &Node) {
        let Some(size) = node.ledger.certified().borrow().as_ref().map(|c| c.own.size) else { return };
        if self.hostile.contains(&node.id) {
            return;
        }
        let (certified, filled) = {
            let inner = self.inner();
            let certified: Vec<_> = inner.certified.range(..=size).map(|(s, (r, _))| (*s, *r)).collect();
            (certified, inner.filled.clone())
        };
        self.compare(node, size, &certified, &filled);
    }

    fn compare(&self, node: &Node, size: TreeSize, certified: &[(TreeSize, Hash)], filled: &[Filled]) {
        let tiles = node.ledger.tiles();
        for (earlier, root) in certified {
            match tiles.root_at(*earlier) {
                Ok(own) if own == *root => {}
                Ok(own) => self.fail(format!(
                    "one history: in {}'s tree of certified size {} the root at {} is {}, certified was {}",
                    node.id,
                    size.0,
                    earlier.0,
                    short(&own.0),
                    short(&root.0)
                )),
                Err(e) => self.fail(format!("one history: {} has no root at {}: {e}", node.id, earlier.0)),
            }
        }
        for f in filled.iter().filter(|f| f.index.0 < size.0) {
            match tiles.leaf(f.index) {
                Ok(leaf) if sha256(&leaf) == f.leaf => {}
                _ => self.fail(format!(
                    "one history: the leaf {} of a filled hole is not in {}'s certified tree of size {}",
                    f.index.0, node.id, size.0
                )),
            }
        }
    }

    /// Whether the locks of honest nodes conflict, so that no history holds those of a quorum: a hostile leader had them sign
    /// different tails. DESIGN.md section 4 declares that nobody but admins, or a member that is missing, ends this; it is the
    /// one exception to the third oracle, and without hostile nodes there is none.
    pub fn locks_conflict(&self, nodes: &[Arc<Node>]) -> bool {
        let honest: Vec<&Arc<Node>> = nodes.iter().filter(|n| !self.hostile.contains(&n.id)).collect();
        if self.hostile.is_empty() || honest.len() < self.quorum {
            return false;
        }
        let mut conflict = false;
        let mut agree_most = 0;
        let now = tokio::time::Instant::now().into_std();
        let recent = now.checked_sub(CONFLICTS_WITHIN).unwrap_or(now);
        for history in &honest {
            let (tiles, size) = (history.ledger.tiles(), history.ledger.view().checkpoint.size);
            let mut agree = 0;
            for node in &honest {
                // What a power cut left of its lock may be less than it signed, and its log, which would say how much, is not the one
                // that the others follow.
                let unknown = !node.cosigner.has_replayed(crate::giveup::applied(node))
                    && node.world.machine(node.id).lost_power();
                if unknown && node.guard.conflicting(recent) > 0 && node.id != history.id {
                    conflict = true;
                    continue;
                }
                match node.cosigner.lock() {
                    None => agree += 1,
                    Some(lock) if lock.size > size => {}
                    Some(lock) if tiles.root_at(lock.size).is_ok_and(|root| root == lock.root) => agree += 1,
                    Some(_) => conflict = true,
                }
            }
            agree_most = agree_most.max(agree);
        }
        conflict && agree_most < self.quorum
    }

    /// At the end: what the longest certified tree authorised was signed by its client, once, and within its budget.
    pub fn read_log(&self, nodes: &[Arc<Node>]) {
        let certified =
            |n: &Node| n.ledger.certified().borrow().as_ref().map_or(TreeSize::ZERO, |c| c.own.size);
        let honest = nodes.iter().filter(|n| !self.hostile.contains(&n.id));
        let Some(node) = honest.max_by_key(|n| certified(n)) else { return };
        let (tiles, policy) = (node.ledger.tiles(), Arc::clone(&node.ledger.view().policy));
        let mut requests = BTreeSet::new();
        let mut in_minute: BTreeMap<(ClientId, u64), u64> = BTreeMap::new();
        for index in 0..certified(node).0 {
            let Ok(bytes) = tiles.leaf(LeafIndex(index)) else {
                return self.fail(format!("one history: {} cannot read its leaf {index}", node.id));
            };
            let Ok(Leaf::V1 { time, body }) = borsh::from_slice(&bytes) else {
                return self.fail(format!("one history: leaf {index} does not decode"));
            };
            let LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } = body else {
                continue;
            };
            let ClientCommand::Authorise(a) = &c.body else { continue };
            let known = policy.clients.get(&c.client);
            if !known.is_some_and(|client| c.is_by(node.ledger.cluster(), &client.key)) {
                self.fail(format!(
                    "forward: {} never signed what leaf {index} authorises",
                    c.client.as_str()
                ));
            }
            if !requests.insert(a.request) {
                self.fail(format!("forward: leaf {index} authorises a request again"));
            }
            let count = in_minute.entry((c.client.clone(), time.0 / MINUTE_MS)).or_default();
            *count += 1;
            if c.client.as_str() == ROGUE && *count > REQUESTS_PER_MINUTE {
                self.fail(format!("forward: leaf {index} authorises more than its client's budget"));
            }
        }
    }

    /// A node signed.
    pub fn signed(&self, world: &World, signed: &Signed) {
        let (node, at) = (signed.node, signed.checkpoint);
        if self.hostile.contains(&node) || world.running(node).is_none() {
            return;
        }
        let mut inner = self.inner();
        let own = inner.signed.entry(node).or_default();
        let highest = own.last_key_value().map(|(s, _)| *s);
        let before = own.insert(at.size, at.root);
        let wrong = match before {
            Some(root) if root != at.root => {
                Some(format!("sign lock: {node} signed two roots at size {}", at.size.0))
            }
            _ if highest.is_some_and(|h| at.size < h) => {
                let highest = highest.unwrap_or_default().0;
                Some(format!("sign lock: {node} signed size {} after size {highest}", at.size.0))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            inner.failure.get_or_insert(wrong);
        }
        inner.signers.entry((at.size, at.root)).or_default().insert(node);
        let able = |signers: &BTreeSet<NodeId>| signers.len() + self.hostile.len() >= self.quorum;
        let roots = inner.signers.range((at.size, Hash([0; 32]))..=(at.size, Hash([255; 32])));
        if roots.filter(|(_, signers)| able(signers)).count() > 1 {
            let what = format!("one history: two roots of size {} could be certified", at.size.0);
            inner.failure.get_or_insert(what);
        }
    }

    /// A node releases its half of a hole on the strength of this.
    pub fn released(&self, node: &Node, certified: &CertifiedAuthorisation, role: &str) {
        if self.hostile.contains(&node.id) {
            return;
        }
        let (index, request) = (certified.index(), certified.request().request);
        if role == "keyer" {
            self.inner().approved.insert(request, node.id);
        }
        let own = node.ledger.certified().borrow().as_ref().map(|c| c.own);
        let covered = own.is_some_and(|own| {
            index.0 < own.size.0 && node.ledger.tiles().root_at(own.size).is_ok_and(|r| r == own.root)
        });
        if !covered {
            self.fail(format!(
                "forward: {} as {role} released leaf {} that nothing certified covers",
                node.id, index.0
            ));
        }
        if leaf_of(node, index).is_none_or(|r| r != request) {
            self.fail(format!(
                "forward: {} as {role} released for leaf {} of something else",
                node.id, index.0
            ));
        }
    }

    /// A keyer released its half by its own word alone: fine only if a certificate covers the leaf anyway.
    pub fn released_uncertified(&self, node: &Node, request: RequestId) {
        self.inner().approved.insert(request, node.id);
        let index = node.ledger.read(|state| state.request(&request).map(|r| r.leaf));
        let own = node.ledger.certified().borrow().as_ref().map(|c| c.own.size);
        if index.is_none_or(|index| own.is_none_or(|size| index.0 >= size.0)) {
            self.fail(format!(
                "forward: {} as keyer released for a request that nothing certified covers",
                node.id
            ));
        }
    }

    /// A relay filled a hole.
    pub fn filled(&self, node: &Node, certified: &CertifiedAuthorisation) {
        let (index, request, keyer) =
            (certified.index(), certified.request().request, certified.request().keyer);
        let leaf = node.ledger.tiles().leaf(index).map_or(Hash([0; 32]), |l| sha256(&l));
        let mut inner = self.inner();
        if inner.filled.iter().any(|f| f.request == request) {
            inner
                .failure
                .get_or_insert(format!("forward: {} filled the hole of leaf {} twice", node.id, index.0));
        }
        if !self.hostile.contains(&keyer) && inner.approved.get(&request) != Some(&keyer) {
            inner.failure.get_or_insert(format!("forward: the keyer of leaf {} never approved", index.0));
        }
        inner.filled.push(Filled { request, index, leaf });
    }
}

/// The request that a leaf of a node's tree authorises.
fn leaf_of(node: &Node, index: LeafIndex) -> Option<RequestId> {
    let bytes = node.ledger.tiles().leaf(index).ok()?;
    let Leaf::V1 { body, .. } = borsh::from_slice(&bytes).ok()?;
    match body {
        LeafBody::Decided { command: Command::Client(c), outcome: Outcome::Authorised } => match c.body {
            ClientCommand::Authorise(a) => Some(a.request),
            _ => None,
        },
        _ => None,
    }
}
