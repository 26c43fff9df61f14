//! What goes wrong, and when: a list of events from a seed, each of which can be left out.
use crate::byzantine::Adversary;
use crate::disk::Crash;
use crate::note;
use crate::rng::Rng;
use crate::world::World;
use quorate_core::ids::NodeId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Runs with busy clients: they take long.
const BUSY_PERMILLE: u64 = 60;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A process dies, and starts again at the end.
    Kill(NodeId),
    /// A machine loses power.
    PowerCut(NodeId),
    /// All machines lose power.
    Blackout,
    /// These hear nothing of the others, and the reverse.
    Partition(Vec<NodeId>),
    /// Messages from the first to the second do not arrive.
    OneWay(NodeId, NodeId),
    /// So many messages in a thousand are lost, as many come twice.
    Loss(u64),
    /// Messages take up to so many milliseconds.
    Delay(u64),
    /// A node's links are so many milliseconds slower.
    SlowLink(NodeId, u64),
    /// A disk's commits take so many milliseconds.
    SlowDisk(NodeId, u64),
    /// A disk fails; its process is started again at the end.
    FailingDisk(NodeId),
    /// A sector of a log goes bad while its process is down.
    BadSector(NodeId),
    /// A clock is off by so many milliseconds.
    Clock(NodeId, i64),
    /// A TPM takes so many milliseconds for a quote.
    SlowTpm(NodeId, u64),
    /// A node campaigns, at no particular moment.
    Campaign(NodeId),
    /// Admins change the policy. No fault, but it may meet one.
    Policy,
}

/// A fault, from when, for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds from the beginning.
    pub at_ms: u64,
    /// How long it lasts.
    pub lasts_ms: u64,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} ms, for {:>6} ms: {:?}", self.at_ms, self.lasts_ms, self.fault)
    }
}

/// A run before it is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Members.
    pub nodes: u64,
    /// Of them, so many may be hostile.
    pub hostile_max: u32,
    /// Between two pieces of evidence of a node.
    pub evidence_ms: u64,
    /// Clients.
    pub clients: u64,
    /// When everything heals.
    pub heals_at_ms: u64,
    /// Faults in order.
    pub events: Vec<Event>,
    /// Hostile nodes.
    pub adversary: Adversary,
    /// Whether clients pause for less: enough comes about for snapshots.
    pub busy: bool,
    /// Whether a client is hostile.
    pub rogue: bool,
}

/// Which kinds of plans.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kinds {
    /// With hostile nodes, which fall silent when everything else heals.
    pub byzantine: bool,
    /// Hostile nodes that go on lying after it.
    pub relentless: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, kinds: Kinds) -> Self {
        let mut rng = Rng::stream(seed, "plan");
        let nodes = match kinds.byzantine {
            true => *rng.pick(&[4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 7]),
            false => *rng.pick(&[4, 4, 4, 4, 5, 3]),
        };
        let hostile_max = if nodes >= 7 { 2 } else { 1 };
        let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let heals_at_ms = rng.range(15_000, 40_000);
        let mut bad_sectors = if nodes == 3 || kinds.byzantine { 0 } else { 1 };
        let mut events = Vec::new();
        for _ in 0..rng.range(1, 9) {
            let at_ms = rng.range(500, heals_at_ms);
            let lasts_ms = rng.range(200, 12_000);
            let node = *rng.pick(&members);
            let fault = match rng.below(18) {
                0..=2 => Fault::Kill(node),
                3 => Fault::PowerCut(node),
                4 if rng.permille(300) => Fault::Blackout,
                4 | 5 => {
                    let some = members.iter().filter(|_| rng.permille(400)).copied().collect();
                    Fault::Partition(some)
                }
                6 => Fault::OneWay(node, *rng.pick(&members)),
                7 => Fault::Loss(rng.range(10, 300)),
                8 => Fault::Delay(rng.range(5, 400)),
                9 => Fault::SlowLink(node, rng.range(10, 600)),
                10 => Fault::SlowDisk(node, rng.range(10, 3_000)),
                11 => Fault::FailingDisk(node),
                12 if bad_sectors > 0 && rng.permille(300) => {
                    bad_sectors -= 1;
                    Fault::BadSector(node)
                }
                12 | 13 => {
                    let off = rng.range(0, 20_000) as i64 - 10_000;
                    Fault::Clock(node, off)
                }
                14 | 15 => Fault::Campaign(node),
                16 => Fault::Policy,
                _ => Fault::SlowTpm(node, rng.range(100, 4_000)),
            };
            events.push(Event { at_ms, lasts_ms, fault });
        }
        events.sort_by_key(|e| e.at_ms);
        let adversary = match kinds.byzantine {
            true => {
                let [mut rng, mut more] = ["adversary", "more lies"].map(|name| Rng::stream(seed, name));
                Adversary::new(&mut rng, &mut more, &members, hostile_max, kinds.relentless)
            }
            false => Adversary::default(),
        };
        let busy = Rng::stream(seed, "busy?").permille(BUSY_PERMILLE);
        Self {
            seed,
            nodes,
            hostile_max,
            evidence_ms: *rng.pick(&[3_000, 5_000, 20_000]),
            clients: if busy { 4 } else { rng.range(1, 4) },
            busy,
            heals_at_ms,
            events,
            adversary,
            rogue: kinds.byzantine && Rng::stream(seed, "rogue?").permille(400),
        }
    }
}

/// Begins a fault.
async fn begin(world: &Arc<World>, fault: &Fault) {
    note!(world, "begins: {fault:?}");
    match fault {
        Fault::Kill(node) => world.crash(*node, Crash::Process).await,
        Fault::PowerCut(node) => world.crash(*node, Crash::Power).await,
        Fault::Blackout => {
            for node in world.members() {
                world.crash(node, Crash::Power).await;
            }
        }
        Fault::Partition(some) => part(world, some, true),
        Fault::OneWay(from, to) => world.net.cut(*from, *to, true),
        Fault::Loss(permille) => {
            let mut c = world.net.conditions();
            (c.loss, c.twice) = (*permille, *permille);
        }
        Fault::Delay(ms) => world.net.conditions().delay_us = (100, 200 + ms * 1000),
        Fault::SlowLink(node, ms) => drop(world.net.conditions().slow_us.insert(*node, ms * 1000)),
        Fault::SlowDisk(node, ms) => world.machine(*node).disk.set_commit(Duration::from_millis(*ms)),
        Fault::FailingDisk(node) => world.machine(*node).disk.set_failing(true),
        Fault::BadSector(node) => {
            world.crash(*node, Crash::Process).await;
            let damaged = world.chance(|rng| world.machine(*node).disk.corrupt(rng));
            note!(world, "a sector of {node} goes bad: {damaged}");
        }
        Fault::Policy => world.change_policy(),
        Fault::Clock(node, ms) => world.machine(*node).clock.set_offset(*ms),
        Fault::SlowTpm(node, ms) => world.machine(*node).set_quote(Duration::from_millis(*ms)),
        Fault::Campaign(node) => {
            if let Some(node) = world.running(*node) {
                drop(node.raft.trigger().elect().await);
            }
        }
    }
}

/// Ends it.
async fn end(world: &Arc<World>, fault: &Fault) {
    note!(world, "ends: {fault:?}");
    match fault {
        Fault::Kill(node) | Fault::PowerCut(node) | Fault::BadSector(node) => world.start(*node).await,
        Fault::Blackout => {
            for node in world.members() {
                world.start(node).await;
            }
        }
        Fault::Partition(some) => part(world, some, false),
        Fault::OneWay(from, to) => world.net.cut(*from, *to, false),
        Fault::Loss(_) => {
            let mut c = world.net.conditions();
            (c.loss, c.twice) = (0, 0);
        }
        Fault::Delay(_) => world.net.conditions().delay_us = (100, 1_500),
        Fault::SlowLink(node, _) => drop(world.net.conditions().slow_us.remove(node)),
        Fault::SlowDisk(node, _) => world.machine(*node).disk.set_commit(Duration::from_micros(800)),
        Fault::FailingDisk(node) => {
            world.machine(*node).disk.set_failing(false);
            if world.running(*node).is_some_and(|n| n.failed().is_some()) {
                world.crash(*node, Crash::Process).await;
                world.start(*node).await;
            }
        }
        Fault::Clock(node, _) => world.machine(*node).clock.set_offset(0),
        Fault::Campaign(_) | Fault::Policy => {}
        Fault::SlowTpm(node, _) => world.machine(*node).set_quote(Duration::from_millis(20)),
    }
}

fn part(world: &World, some: &[NodeId], cut: bool) {
    for one in some {
        for other in world.members().iter().filter(|n| !some.contains(n)) {
            world.net.cut(*one, *other, cut);
            world.net.cut(*other, *one, cut);
        }
    }
}

/// Carries out a plan's events until it heals.
pub async fn play(world: &Arc<World>, plan: &Plan) {
    // Begin and end of each, in order; an end beyond the healing is part of it.
    let mut steps: Vec<(u64, usize, bool)> = Vec::new();
    for (i, event) in plan.events.iter().enumerate() {
        steps.push((event.at_ms, i, true));
        steps.push((event.at_ms + event.lasts_ms, i, false));
    }
    steps.sort_unstable();
    let began = tokio::time::Instant::now();
    for (at, i, begins) in steps.into_iter().filter(|(at, ..)| *at < plan.heals_at_ms) {
        tokio::time::sleep_until(began + Duration::from_millis(at)).await;
        match begins {
            true => begin(world, &plan.events[i].fault).await,
            false => end(world, &plan.events[i].fault).await,
        }
    }
    tokio::time::sleep_until(began + Duration::from_millis(plan.heals_at_ms)).await;
}
