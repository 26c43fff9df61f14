//! The simulated network: each message has a delay of its own, so messages overtake one another; it can be lost, come twice, or
//! meet a cut. Nobody is told that a message was lost: whoever waits gives up by a timeout.
use crate::byzantine::Asked;
use crate::peer::{Message, Reply};
use crate::rng::Rng;
use crate::world::World;
use quorate_core::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Who is no node: clients are here.
pub const CLIENTS: NodeId = NodeId(0);

/// How the links are.
pub struct Conditions {
    rng: Rng,
    /// Directed cuts, with how many faults hold each.
    cut: BTreeMap<(NodeId, NodeId), u32>,
    /// Microseconds, lowest and highest.
    pub delay_us: (u64, u64),
    /// Links of these take so much longer, in microseconds.
    pub slow_us: BTreeMap<NodeId, u64>,
    /// In a thousand.
    pub loss: u64,
    /// In a thousand.
    pub twice: u64,
}

/// The network.
pub struct Net {
    conditions: Mutex<Conditions>,
}

impl Net {
    /// A good one.
    pub fn new(rng: Rng) -> Self {
        let conditions = Conditions {
            rng,
            cut: BTreeMap::new(),
            delay_us: (100, 1_500),
            slow_us: BTreeMap::new(),
            loss: 0,
            twice: 0,
        };
        Self { conditions: Mutex::new(conditions) }
    }

    /// To look at or change.
    pub fn conditions(&self) -> MutexGuard<'_, Conditions> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts or restores one direction.
    pub fn cut(&self, from: NodeId, to: NodeId, cut: bool) {
        let mut c = self.conditions();
        let held = c.cut.entry((from, to)).or_default();
        *held = if cut { *held + 1 } else { held.saturating_sub(1) };
    }

    /// Everything is well again.
    pub fn heal(&self) {
        let mut c = self.conditions();
        c.cut.clear();
        c.slow_us.clear();
        (c.loss, c.twice, c.delay_us) = (0, 0, (100, 1_500));
    }

    /// How long a message takes; `None` if it never arrives.
    fn fate(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let mut c = self.conditions();
        let (low, high) = c.delay_us;
        let delay = c.rng.range(low, high)
            + c.slow_us.get(&from).copied().unwrap_or(0)
            + c.slow_us.get(&to).copied().unwrap_or(0);
        let loss = c.loss;
        let lost = c.rng.permille(loss) || c.cut.get(&(from, to)).is_some_and(|held| *held > 0);
        (!lost).then(|| Duration::from_micros(delay))
    }

    fn comes_twice(&self) -> Option<Duration> {
        let mut c = self.conditions();
        let twice = c.twice;
        c.rng.permille(twice).then(|| Duration::from_micros(c.rng.range(500, 400_000)))
    }

    /// Whether a message from one to the other would arrive at all.
    pub fn connected(&self, from: NodeId, to: NodeId) -> bool {
        self.conditions().cut.get(&(from, to)).is_none_or(|held| *held == 0)
    }

    /// All cut pairs.
    pub fn cuts(&self) -> BTreeSet<(NodeId, NodeId)> {
        self.conditions().cut.iter().filter(|(_, held)| **held > 0).map(|(pair, _)| *pair).collect()
    }
}

/// One message and its answer. `None` when nothing came within the time.
pub async fn call(
    world: &Arc<World>,
    from: NodeId,
    to: NodeId,
    message: Message,
    within: Duration,
) -> Option<Reply> {
    let exchange = async {
        let message = world.adversary.outgoing(world, from, to, message);
        let Some(message) = message else { return std::future::pending().await };
        let asked = Asked::of(&world.adversary, to, &message);
        let entries = matches!(message, Message::Append(_));
        if let Some(delay) = world.net.comes_twice() {
            let (world, message) = (Arc::clone(world), message.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                if let Some(node) = world.running(to) {
                    let handler = Arc::clone(&node);
                    node.spawn(async move { drop(handler.handle(from, message).await) });
                }
            });
        }
        let Some(delay) = world.net.fate(from, to) else { return std::future::pending().await };
        tokio::time::sleep(delay).await;
        let node = world.running(to)?;
        let (told, answer) = oneshot::channel();
        let handler = Arc::clone(&node);
        node.spawn(async move {
            // Nobody waits any more.
            let _gone = told.send(handler.handle(from, message).await);
        });
        let answer = answer.await.ok()?;
        let answer = world.adversary.answering(world, to, from, &asked, answer);
        let Some(delay) = world.net.fate(to, from) else { return std::future::pending().await };
        tokio::time::sleep(delay).await;
        (!entries || world.adversary.hears(from, &answer)).then_some(answer)
    };
    tokio::time::timeout(within, exchange).await.ok().flatten()
}
